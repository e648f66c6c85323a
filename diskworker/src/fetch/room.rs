//! Room on the disk: who waits for some, and whether more of it is made. Who fetches and finds none waits here until there is
//! enough, or nothing more can go; who makes it ([`super::evict`]) does so in rounds, and says how each ended.
//!
//! A round that had begun before somebody said what he needs may not have looked for him: only a later one can tell him that
//! nothing more can be done.

use std::time::{Duration, Instant};

use delugefs_proto::errno::FsError;
use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::content::ContentStore;

/// Longest wait for room, as long as some is made.
pub(super) const LONGEST: Duration = Duration::from_secs(30);
/// Between two looks at the free space: some file systems show what went only later.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Default)]
pub(super) struct Room {
    /// Bytes that must be free for each who waits.
    needs: Mutex<Vec<u64>>,
    rounds: watch::Sender<Rounds>,
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

impl Room {
    /// After an attempt that failed with `error`: whether to try again, since there are, or may be, so many bytes now. Waits
    /// until then, and calls `tick` meanwhile; not after `until`, and not when nothing more can be done.
    pub async fn is_made(
        &self,
        error: &FsError,
        store: &ContentStore,
        bytes: u64,
        until: Instant,
        tick: impl Fn(),
    ) -> bool {
        if !matches!(error.errno, Errno::ENOSPC | Errno::EDQUOT) {
            return false;
        }
        let mut rounds = self.rounds.subscribe();
        // Said before it looks at the rounds: the next one will know.
        let _need = self.need(bytes);
        let next = rounds.borrow().begun + 1;
        self.asked.notify_one();
        loop {
            let Rounds { kept, in_vain, .. } = *rounds.borrow_and_update();
            if !kept || in_vain >= next || Instant::now() >= until {
                return false;
            }
            tick();
            let _ = timeout(TICK, rounds.changed()).await; // also when nobody says anything
            match store.free_space() {
                Ok(space) if space.free >= bytes.max(1) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    fn need(&self, bytes: u64) -> Need<'_> {
        self.needs.lock().push(bytes);
        Need(self, bytes)
    }

    /// What must be free for those who wait, of what `can_be` at most: nothing is done for who needs more than that.
    pub fn needed(&self, can_be: u64) -> u64 {
        self.needs.lock().iter().copied().filter(|bytes| *bytes <= can_be).max().unwrap_or(0)
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
        self.rounds.send_modify(|rounds| rounds.kept = true);
        Keeping(self)
    }
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
        self.0.rounds.send_modify(|rounds| rounds.begun += 1);
    }

    /// It has ended.
    pub fn end(&self, in_vain: bool) {
        self.0.rounds.send_modify(|rounds| {
            if in_vain {
                rounds.in_vain = rounds.begun;
            }
        });
    }
}

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        self.0.rounds.send_modify(|rounds| rounds.kept = false);
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
    use super::*;

    #[test]
    fn nothing_is_done_for_who_needs_more_than_there_can_be() {
        let room = Room::default();
        let (small, large) = (room.need(5), room.need(50));
        assert_eq!([4, 5, 49, 50].map(|can_be| room.needed(can_be)), [0, 5, 5, 50]);
        drop(large);
        assert_eq!((room.needed(u64::MAX), room.is_needed()), (5, true));
        drop(small);
        assert_eq!((room.needed(u64::MAX), room.is_needed()), (0, false));
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
