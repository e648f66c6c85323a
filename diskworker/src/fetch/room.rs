//! Room on the disk: who waits for some, and whether more of it is made. Who fetches and finds none waits here until there is
//! enough, or nothing more can go; who makes it ([`super::evict`]) does so in rounds, and says how each ended.
//!
//! A round that had begun before somebody said what he needs may not have looked for him: only a later one can tell him that
//! nothing more can be done.

use std::time::{Duration, Instant};

use delugefs_proto::errno::FsError;
use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::content::ContentStore;

/// Longest wait for room, as long as some is made.
const LONGEST: Duration = Duration::from_secs(30);
/// Between two looks at the free space: some file systems show what went only later.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// Attempts that may fail one after the other although there is room: others may have taken it, and more been made. When they
/// all do, it is something else that there is too little of, like a quota.
const FAILED_MAX: u32 = 3;

/// See the module.
#[derive(Default)]
pub(super) struct Room {
    /// Bytes that must be free for each who waits.
    needs: Mutex<Vec<u64>>,
    rounds: Mutex<Rounds>,
    /// Somebody needs room, or has taken some.
    asked: Notify,
}

#[derive(Clone, Copy, Default)]
struct Rounds {
    /// Somebody makes room, if it must be.
    kept: bool,
    begun: u64,
    /// The last that ended with nothing more to be done.
    in_vain: u64,
}

/// How long somebody waits for room, in all his attempts.
pub(super) struct Patience {
    until: Instant,
    /// Attempts that failed although there was room, since one for which there was none.
    failed: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { until: Instant::now() + LONGEST, failed: 0 }
    }
}

impl Room {
    /// After an attempt that failed with `error`: whether to try again, since there are, or may be, so many bytes now. Waits
    /// until then, and calls `tick` meanwhile; not longer than he has patience, and not when nothing more can be done.
    pub async fn is_made(
        &self,
        error: &FsError,
        store: &ContentStore,
        bytes: u64,
        patience: &mut Patience,
        tick: impl Fn(),
    ) -> bool {
        if !matches!(error.errno, Errno::ENOSPC | Errno::EDQUOT) {
            return false;
        }
        let has_room = || store.free_space().map(|space| space.free >= bytes.max(1));
        let Ok(had_room) = has_room() else { return false };
        patience.failed = if had_room { patience.failed + 1 } else { 0 };
        if patience.failed > FAILED_MAX {
            return false;
        }
        // Said before it looks at the rounds: the next one will know.
        let _need = self.need(bytes);
        let next = self.rounds.lock().begun + 1;
        self.asked.notify_one();
        loop {
            let Rounds { kept, in_vain, .. } = *self.rounds.lock();
            if !kept || in_vain >= next || Instant::now() >= patience.until {
                return false;
            }
            tick();
            sleep(TICK).await;
            match has_room() {
                Ok(true) => return true,
                Ok(false) => {}
                Err(_) => return false,
            }
        }
    }

    fn need(&self, bytes: u64) -> Need<'_> {
        self.needs.lock().push(bytes);
        Need(self, bytes)
    }

    /// Bytes that must be free for each who waits now.
    pub fn needs(&self) -> Vec<u64> {
        self.needs.lock().clone()
    }

    /// Whether somebody waits.
    pub fn is_needed(&self) -> bool {
        !self.needs.lock().is_empty()
    }

    /// Room was taken: there may be little left.
    pub fn taken(&self) {
        self.asked.notify_one();
    }

    /// Until somebody waits, or has taken room.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Until this is dropped room is made.
    pub fn keep(&self) -> Keeping<'_> {
        self.rounds.lock().kept = true;
        Keeping(self)
    }
}

/// What must be free for those who wait, of what `can_be` at most: nothing is done for who needs more than that.
pub(super) fn needed(needs: &[u64], can_be: u64) -> u64 {
    needs.iter().copied().filter(|bytes| *bytes <= can_be).max().unwrap_or(0)
}

/// Of one who waits.
struct Need<'a>(&'a Room, u64);

impl Drop for Need<'_> {
    fn drop(&mut self) {
        let mut needs = self.0.needs.lock();
        if let Some(at) = needs.iter().position(|bytes| *bytes == self.1) {
            needs.swap_remove(at);
        }
    }
}

/// Of the one who makes room.
pub(super) struct Keeping<'a>(&'a Room);

impl Keeping<'_> {
    /// A round begins.
    pub fn begin(&self) {
        self.0.rounds.lock().begun += 1;
    }

    /// It has ended.
    pub fn end(&self, in_vain: bool) {
        let mut rounds = self.0.rounds.lock();
        if in_vain {
            rounds.in_vain = rounds.begun;
        }
    }
}

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        self.0.rounds.lock().kept = false;
    }
}

/// Whether a file system shows as free what went: ZFS, btrfs and soft updates do so seconds later, and who looked only at the
/// free space would let everything go meanwhile. What grows is added up, as others take room all the time.
pub(super) struct Shown {
    free: u64,
    grown: u64,
}

impl Shown {
    pub fn new(free: u64) -> Self {
        Self { free, grown: 0 }
    }

    /// So much is free now.
    pub fn look(&mut self, free: u64) {
        self.grown += free.saturating_sub(self.free);
        self.free = free;
    }

    /// Whether that may be what was let go, but for what others took in the same moments.
    pub fn is_like(&self, gone: u64) -> bool {
        self.grown >= gone / 4
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::folder::DiskFolder;

    #[test]
    fn nothing_is_done_for_who_needs_more_than_there_can_be() {
        let room = Room::default();
        let (small, large) = (room.need(5), room.need(50));
        assert_eq!([4, 5, 49, 50].map(|can_be| needed(&room.needs(), can_be)), [0, 5, 5, 50]);
        drop(large);
        assert_eq!((room.needs(), room.is_needed()), (vec![5], true));
        drop(small);
        assert_eq!((room.needs(), room.is_needed()), (vec![], false));
    }

    #[tokio::test]
    async fn who_fails_although_there_is_room_gives_up() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Arc::new(DiskFolder::create(&dir.path().join("d"), "test", None).unwrap());
        let store = ContentStore::open(folder, 0).unwrap();
        let (room, error) = (Room::default(), FsError::from(Errno::EDQUOT));
        let keeping = room.keep();
        keeping.begin();
        let (mut patience, mut tries) = (Patience::default(), 0);
        while room.is_made(&error, &store, 1, &mut patience, || {}).await {
            tries += 1;
            assert!(tries <= FAILED_MAX);
        }
        assert_eq!((tries, room.is_needed()), (FAILED_MAX, false));
        // What is no lack of room is not waited for at all.
        assert!(!room.is_made(&Errno::EIO.into(), &store, 1, &mut Patience::default(), || {}).await);
    }

    #[test]
    fn what_others_take_meanwhile_hides_nothing() {
        let mut shown = Shown::new(100);
        // 40 went in four steps, and others took more.
        for free in [105, 90, 98, 80, 86, 85] {
            shown.look(free);
        }
        assert!(shown.is_like(40) && !shown.is_like(80));
    }
}
