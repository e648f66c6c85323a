//! Contents that one disk of a host gives to another when they are sealed, so that unequal disks fill evenly. The file was
//! written on the disk that is mounted; the one with more room copies it, verifies it, and holds it from then on.
//!
//! Order: its bytes on stable storage there, then its name, recorded and committed here, that commit followed there, and only then is
//! the staged file removed. A
//! crash before that leaves the staged file, which is sealed anew; a copy that nothing refers to then is collected there.
//! Without the third step the other disk might take the content for rubbish while this one is away.

use std::fs::File;
use std::time::{Duration, Instant};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ContentId, DiskId, Ino};
use nix::errno::Errno;
use parking_lot::Mutex;

use super::Engine;
use crate::content::Seal;
use crate::os;

/// Gives a content to another disk of this host: its id, its length in bytes, its file. Which one holds it now.
type Give = dyn Fn(ContentId, u64, &File) -> Option<DiskId> + Send + Sync;

/// The other disks of this host, as sealing sees them.
pub struct Placer {
    /// See [`Give`].
    pub give: Box<Give>,
    /// Whether another disk has the room for a content that is given now.
    pub has_room: Box<dyn Fn() -> bool + Send + Sync>,
    /// What a disk has of ours.
    pub following: Box<dyn Fn(DiskId) -> Following + Send + Sync>,
}

/// How far another disk has followed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Following {
    /// The state it has announced last.
    pub state: Option<git2::Oid>,
    /// The newest change of this disk that is in the state taken from it last.
    pub seq: u64,
}

/// What is smaller stays where it was written: to copy it costs more than it evens out.
pub const PLACED_MIN_BYTES: u64 = 1 << 20;
/// By then the catalog with the file has come. From when the content is here: to copy or verify it may take longer than that.
const KEPT: Duration = Duration::from_secs(600);
/// The other disk may take so long to follow a commit; on a running host it takes milliseconds.
const FOLLOWS: Duration = Duration::from_secs(5);
/// With less than this part of the disk free, and less than this many bytes, new files wait for those that are on their way
/// to other disks. A lazy disk keeps more than that free by itself.
const LOW_SHARE: u64 = 32;
const LOW_BYTES: u64 = 8 << 30;
/// For so long at most.
const LOW_WAIT: Duration = Duration::from_secs(60);
/// Files wait for the queue for so long after the last one went.
const LOW_PROGRESS: Duration = Duration::from_secs(5);
/// Between two looks.
const LOW_POLL: Duration = Duration::from_millis(100);
/// Bytes copied between two looks at the free space.
const STEP_BYTES: u64 = 64 << 20;

/// Files on their way to other disks of this host.
#[derive(Default)]
pub(super) struct Moves(Mutex<(usize, Option<Instant>)>);

impl Moves {
    /// One may be.
    pub fn begin(&self) -> Move<'_> {
        self.0.lock().0 += 1;
        Move(self)
    }

    /// Whether files go: some are on their way, or the last one went a moment ago and others wait.
    fn are_going(&self, others_wait: bool) -> bool {
        let (under_way, last) = *self.0.lock();
        under_way > 0 || others_wait && last.is_some_and(|last| last.elapsed() < LOW_PROGRESS)
    }
}

/// Until it is dropped a file is on its way.
pub(super) struct Move<'a>(&'a Moves);

impl Move<'_> {
    /// It has gone.
    pub fn moved(&self) {
        self.0.0.lock().1 = Some(Instant::now());
    }
}

impl Drop for Move<'_> {
    fn drop(&mut self) {
        self.0.0.lock().0 -= 1;
    }
}

impl Engine {
    /// Ask this before a content is kept here. Once.
    pub fn place_with(&self, placer: Placer) {
        let _ = self.placer.set(placer); // there is one
    }

    /// Give a staged file's content to another disk, if that is better. The one that holds it now, durably.
    pub(super) fn place(&self, ino: Ino, content: ContentId, size: u64) -> FsResult<Option<DiskId>> {
        let Some(placer) = self.placer.get().filter(|_| size >= PLACED_MIN_BYTES) else { return Ok(None) };
        if self.store.has(content)?.is_some() {
            return Ok(None);
        }
        let Some(file) = self.store.open_staged(ino, false)? else { return Ok(None) };
        Ok((placer.give)(content, size, &file))
    }

    /// Wait until that disk has the last commit of this one, or a later one. `false` when it takes too long.
    pub(super) fn is_followed_by(&self, disk: DiskId) -> bool {
        let Some(placer) = self.placer.get() else { return false };
        let begin = Instant::now();
        // Where both change all the time, no state of one is ever one of the other; then what it was made of counts.
        let seq = self.committed().ctx.0.get(&self.actor).copied().unwrap_or(0);
        let mut ours = Vec::new();
        while begin.elapsed() < FOLLOWS && !self.is_stopping() {
            let commit = *self.published.borrow();
            if ours.last() != Some(&commit) {
                ours.push(commit);
            }
            let following = (placer.following)(disk);
            if following.seq >= seq || following.state.is_some_and(|state| ours.contains(&state)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// Before something is written: when little is free here, and what waits to be sealed goes to other disks, wait for that.
    /// Who writes faster than they take it would find this one full, with room beside it.
    pub(super) fn wait_for_room(&self) {
        let Some(placer) = self.placer.get() else { return };
        let is_low = || {
            let space = self.store.free_space();
            space.is_ok_and(|space| space.free < (space.total / LOW_SHARE).min(LOW_BYTES))
        };
        let begin = Instant::now();
        // Whether files go is cheap to see, and seldom so: every new file comes here.
        while self.moves.are_going(self.seals.is_busy())
            && is_low()
            && (placer.has_room)()
            && begin.elapsed() < LOW_WAIT
            && !self.is_stopping()
        {
            self.idle.wait_for(&mut self.core(), LOW_POLL);
        }
    }

    /// Keep a content that another disk of this host gives: when this returns, it is whole, verified and on stable storage.
    ///
    /// # Errors
    /// `ENOSPC` without room, `EINVAL` when the file is something else; then nothing of it is left here.
    pub fn take_content(&self, content: ContentId, size: u64, from: &File) -> FsResult<()> {
        self.check_writable()?;
        // Nothing of the catalog refers to it yet.
        self.store.promise(content, KEPT);
        if self.store.has(content)? == Some(size) {
            let verified = self.store.check(content, size);
            #[cfg(test)]
            tests::meanwhile()?;
            self.store.promise(content, KEPT);
            match verified {
                // Unless the first promise was over by then, and it is gone.
                Ok(()) if self.store.has(content)? == Some(size) => {
                    // An earlier process may have put it there and ended before it was durable.
                    self.store.doubt(content);
                    return self.store.sync_content(content);
                }
                Ok(()) => {}
                // What is damaged or cannot be read is replaced by what is given.
                Err(error) => tracing::warn!("{error}; another disk of this host gives a good one"),
            }
        }
        if size < PLACED_MIN_BYTES || self.store.free_space()?.free < size {
            return Err(FsError::new(Errno::ENOSPC, "there is no room for it"));
        }
        // A file of nobody: after a crash it goes, as every staged file without a name.
        let ino = Ino::random();
        let taken = self.copy_and_seal(ino, content, size, from);
        if taken.is_err() {
            self.discard_staged(ino);
        }
        taken?;
        self.store.sync_content(content)
    }

    fn copy_and_seal(&self, ino: Ino, content: ContentId, size: u64, from: &File) -> FsResult<()> {
        let file = self.store.stage_new(ino)?;
        file.set_len(size)?;
        let mut at = 0;
        while let Some((start, end)) = os::next_data(from, at, size)? {
            // Several come at once, and the reserve belongs to the catalog.
            let end = end.min(start + STEP_BYTES);
            if self.store.free_space()?.free < end - start {
                return Err(FsError::new(Errno::ENOSPC, "there is no room for it any more"));
            }
            os::copy_range(from, &file, start, end)?;
            at = end;
        }
        // Before it gets its name: after a loss of power that would stand for a file of its length with holes in it, and be announced.
        sync(&file)?;
        drop(file);
        let Seal::Large(job) = self.store.begin_seal(ino)? else { return Err(Errno::EBUSY.into()) };
        let sealed = job.run()?;
        if sealed.content != content || sealed.size != size {
            return Err(FsError::new(Errno::EINVAL, "what came is another content"));
        }
        self.store.promise(content, KEPT);
        self.store.finish_seal(&sealed)
    }
}

fn sync(file: &File) -> FsResult<()> {
    #[cfg(test)]
    tests::meanwhile()?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashSet;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::engine::recover::tests::fresh;

    /// Something that happens once.
    type Happens = Box<dyn Fn() -> FsResult<()>>;

    thread_local! {
        /// What happens while a content is copied or verified by this thread.
        static MEANWHILE: Cell<Option<Happens>> = const { Cell::new(None) };
    }

    pub fn meanwhile() -> FsResult<()> {
        MEANWHILE.take().map_or(Ok(()), |happens| happens())
    }

    fn noted(bytes: &[u8]) -> (ContentId, u64, File) {
        let id = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        let given = tempfile::tempfile().unwrap();
        given.write_all_at(bytes, 0).unwrap();
        (ContentId::from_slice(id.as_ref()).unwrap(), bytes.len() as u64, given)
    }

    #[test]
    fn a_content_gets_its_name_when_its_bytes_are_on_the_disk() {
        let (dir, running) = fresh();
        let root = dir.path().join("d");
        let engine = &running.engine;
        let bytes = vec![7; 3 << 20];
        let (content, size, given) = noted(&bytes);
        // The disk is pulled before it is synced.
        MEANWHILE.set(Some(Box::new(|| Err(Errno::EIO.into()))));
        let taken = engine.take_content(content, size, &given);
        assert_eq!(taken.unwrap_err().errno, Errno::EIO);
        assert_eq!(engine.store.has(content).unwrap(), None);
        assert_eq!(std::fs::read_dir(root.join("staging")).unwrap().count(), 0);
        engine.take_content(content, size, &given).unwrap();
        engine.store.check(content, size).unwrap();
        // A damaged one that is there already is no reason to give up.
        let hex = content.to_hex();
        let path = root.join("data").join(&hex[..2]).join(&hex);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, vec![0; bytes.len()]).unwrap();
        // It stays until that has come: what is given may be damaged, too.
        let wrong = tempfile::tempfile().unwrap();
        assert_eq!(engine.take_content(content, size, &wrong).unwrap_err().errno, Errno::EINVAL);
        assert!(path.exists(), "it is set aside");
        engine.take_content(content, size, &given).unwrap();
        engine.store.check(content, size).unwrap();
        running.stop().unwrap();
    }
    /// To copy or to verify it takes longer than it is promised for, and the disk is pressed for room meanwhile.
    #[test]
    fn what_took_long_to_take_is_kept_from_then_on() {
        let (_dir, running) = fresh();
        let store = &running.engine.store;
        let (content, size, given) = noted(&vec![9; 2 << 20]);
        for is_here in [false, true] {
            let elapses = running.engine.clone();
            MEANWHILE.set(Some(Box::new(move || {
                elapses.store.break_promises();
                // What came before the second of them is not spared for having come.
                for _ in 0..2 {
                    elapses.store.collect(&HashSet::new(), Duration::ZERO, std::time::SystemTime::now())?;
                }
                Ok(())
            })));
            running.engine.take_content(content, size, &given).unwrap();
            assert!(store.is_promised(content), "{is_here}");
            store.check(content, size).unwrap();
        }
        running.stop().unwrap();
    }
}
