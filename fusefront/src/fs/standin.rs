//! Another disk of the host stands in for the one that a mount was of. It has what had reached it of what was written on that one, and
//! what is known to be newer than that is not read from it: a program that saw its own bytes, synced perhaps, would see them
//! undone, and go on from there. What is known is what the kernel had been told of when the disk was left.
//!
//! Contents are compared by the time by which the disks order versions of one file, which nothing but writing changes: so it does
//! not matter what else is changed meanwhile, and on which disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use delugefs_proto::errno::FsError;
use delugefs_proto::local_pb::Attr;
use nix::errno::Errno;
use parking_lot::Mutex;

use super::{Fs, News, is_gone, written};
use crate::cache::InoMap;
use crate::call::{Caller, Outcome, Stop};

/// Files that are remembered, those that were written last.
const FILES_MAX: usize = 100_000;
/// The same of those that were removed last, or replaced: other disks know of it a moment later.
const REMOVED_MAX: usize = 10_000;

/// The disk that is asked, and what may be newer on another one.
#[derive(Default)]
pub(super) struct Awaited {
    state: Mutex<State>,
    /// How many there are.
    count: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Its id.
    disk: Arc<str>,
    /// Number of the first link to it since another one was asked.
    since: u64,
    /// What is known that may be newer, by inode.
    files: InoMap<File>,
    /// What was removed, and when its content was written.
    removed: VecDeque<(u64, i64)>,
}

/// A file that may be newer on another disk.
struct File {
    /// When the newest content was written that is known.
    written: i64,
    /// The disk that was asked then.
    disk: Arc<str>,
    /// The link over which was said that it is not known.
    unheard: Option<u64>,
    /// The disk that is asked now has told of it: what that does not know any more was removed.
    heard: bool,
}

impl File {
    fn new(written: i64, disk: Arc<str>) -> Self {
        Self { written, disk, unheard: None, heard: false }
    }
}

impl Awaited {
    /// The content that was written to the inode at that time may be on another disk than the one that is asked.
    pub fn await_version(&self, ino: u64, written: i64) {
        let mut state = self.state.lock();
        let disk = state.disk.clone();
        let known = state.files.entry(ino).or_insert_with(|| File::new(written, disk));
        known.written = written.max(known.written);
        self.count.store(state.files.len(), Ordering::Release);
    }

    /// Id of the disk that has said what is remembered now, when `newest_link` is the newest one that was published. While another one
    /// is taken, what the disk before has said may be remembered yet: none, which counts as another one than any.
    pub fn disk(&self, newest_link: impl FnOnce() -> u64) -> Arc<str> {
        let (disk, since) = {
            let state = self.state.lock();
            (state.disk.clone(), state.since)
        };
        // Asked later: one that was published was made to forget before.
        if newest_link() < since { Arc::default() } else { disk }
    }

    /// Number of the first link to the disk that is asked.
    pub fn since(&self) -> u64 {
        self.state.lock().since
    }

    /// Whether what was said over this link was said by another disk than that one.
    pub fn is_another(&self, disk: &str, link: u64) -> bool {
        let state = self.state.lock();
        *state.disk != *disk && link >= state.since
    }

    /// A file has lost its last name. A disk that has not heard of it has it still, under that name.
    pub fn was_removed(&self, attr: &Attr) {
        let mut state = self.state.lock();
        if state.removed.len() == REMOVED_MAX {
            state.removed.pop_front();
        }
        state.removed.push_back((attr.ino, attr.written));
    }

    /// The disk that is asked does not know the inode, as it said over this link; whether that may be because it has not heard of it.
    /// If `is_news` nothing is noted: it may have heard of it since.
    pub fn is_unheard(&self, ino: u64, link: Option<u64>, is_news: impl Fn() -> bool) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut state = self.state.lock();
        let disk = state.disk.clone();
        let Some(file) = state.files.get_mut(&ino).filter(|file| file.disk != disk && !file.heard) else {
            return false;
        };
        // Under this lock, which whoever brings news takes after having said so.
        file.unheard = link.filter(|_| !is_news());
        true
    }

    /// Whether what was known of the inode was known of another disk than the one that is asked.
    pub fn is_elsewhere(&self, ino: u64) -> bool {
        let state = self.state.lock();
        state.files.get(&ino).is_some_and(|file| file.disk != state.disk)
    }

    /// Whether that was said over this link, and nothing was heard of the inode since: it need not be asked again.
    pub fn was_unheard(&self, ino: u64, link: Option<u64>) -> bool {
        let is = |file: &File| link.is_some() && file.unheard == link;
        self.count.load(Ordering::Acquire) > 0 && self.state.lock().files.get(&ino).is_some_and(is)
    }

    /// Anything may have changed.
    pub fn hears_of_all(&self) {
        self.state.lock().files.values_mut().for_each(|file| file.unheard = None);
    }

    /// Something of the inode has changed on the disk that is asked: that has it, or had it until now.
    pub fn hears_of(&self, ino: u64) {
        if self.count.load(Ordering::Acquire) > 0
            && let Some(file) = self.state.lock().files.get_mut(&ino)
        {
            (file.unheard, file.heard) = (None, true);
        }
    }

    fn version(&self, ino: u64) -> Option<i64> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.state.lock().files.get(&ino).map(|file| file.written)
    }

    /// The file has another content by now, or none.
    pub fn forget(&self, ino: u64) {
        if self.count.load(Ordering::Acquire) > 0 {
            let mut state = self.state.lock();
            state.files.remove(&ino);
            self.count.store(state.files.len(), Ordering::Release);
        }
    }
}

impl Fs {
    /// This disk is asked from now on, over links from this one on; before what is remembered of the one before is forgotten.
    pub(super) fn ask_disk(&self, disk: &str, link: u64) {
        let before = {
            let mut state = self.awaited.state.lock();
            if *state.disk != *disk {
                state.since = link;
            }
            std::mem::replace(&mut state.disk, disk.into())
        };
        if before.is_empty() || *before == *disk {
            return;
        }
        let newest = |(ino, shown): (u64, i64)| {
            let open = self.open.get(ino);
            // Of what is open it matters also whether it is there at all.
            let shown = if open.is_some() { shown.max(1) } else { shown };
            let being_written = open.and_then(|inode| inode.writer.read().as_ref().and_then(written));
            let known = self.cache.attr(ino).map(|attr| attr.written);
            let written = known.max(being_written.and_then(|written| written.written));
            (ino, written.map_or(shown, |written| shown.max(written)))
        };
        let known = self.known.shown().into_iter().map(newest).filter(|file| file.1 > 0);
        let noted = |(ino, written)| (ino, File::new(written, before.clone()));
        let mut files: InoMap<File> = known.map(noted).collect();
        let mut state = self.awaited.state.lock();
        for (ino, file) in state.files.drain() {
            // Which disk was the first to have it is what matters.
            let written = files.get(&ino).map_or(file.written, |known| known.written.max(file.written));
            files.insert(ino, File::new(written, file.disk));
        }
        let mut newest_first: Vec<(u64, File)> = files.into_iter().collect();
        newest_first.sort_unstable_by_key(|(_, file)| std::cmp::Reverse(file.written));
        state.files.extend(newest_first.into_iter().take(FILES_MAX));
        // Only what was written to it elsewhere since then brings such a file back.
        let removed = std::mem::take(&mut state.removed);
        let removed = removed.into_iter().filter(|file| file.1 > 0).map(|(ino, written)| (ino, written + 1));
        state.files.extend(removed.map(noted));
        self.awaited.count.store(state.files.len(), Ordering::Release);
    }

    /// Before the content of a file is opened, or part of it is kept.
    ///
    /// # Errors
    /// EIO when the disk that is asked has an older version than was shown already.
    pub(super) fn is_not_behind(&self, caller: &Caller, ino: u64) -> Outcome<()> {
        let Some(shown) = self.awaited.version(ino) else { return Ok(()) };
        // What is still being handed over counts as the file's in memory; this is what the disk has.
        let attr = match self.ask_attr(caller, ino) {
            // The request itself tells of that.
            Err(Stop::Failed(error)) if is_gone(error.errno) => return Ok(()),
            other => other?,
        };
        // A worker of an earlier version does not say it.
        if attr.written >= shown || attr.written == 0 {
            self.awaited.forget(ino);
            return Ok(());
        }
        let message = format!(
            "the disk that was mounted is away and has something newer in the place of file {ino:016x} than the one that stands in for it: \
            it can be read when that disk is back; to use the older version, unmount and mount again"
        );
        Err(FsError::new(Errno::EIO, message).into())
    }

    /// The disk that is asked has just said that it does not know the inode: whether it may only not have heard of it. That is known until
    /// something is heard, if nothing was since it was asked.
    pub(super) fn is_unheard(&self, ino: u64, asked: News) -> bool {
        self.awaited.is_unheard(ino, self.worker.link(), || self.news() != asked)
    }

    /// A change of what only the disk that is away has would be a change of nothing.
    pub(super) fn unheard_of(ino: u64) -> Stop {
        let message = format!(
            "the disk that was mounted is away, and the one that stands in for it has not heard of file {ino:016x}: it can be changed when \
            that disk is back"
        );
        FsError::new(Errno::EIO, message).into()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::worker::Worker;

    #[test]
    fn while_another_disk_is_taken_what_is_remembered_is_not_of_that_one() {
        let fs = Fs::new(Worker::new(Path::new("/nonexistent")), 100, crossbeam_channel::unbounded().0);
        fs.ask_disk("00", 1);
        assert_eq!(*fs.awaited.disk(|| 1), *"00");
        fs.ask_disk("01", 2);
        // Its link is not published yet.
        let noted = fs.awaited.disk(|| 1);
        assert!(fs.awaited.is_another(&noted, 2), "what it does not have it may not have heard of");
        assert_eq!((&*fs.awaited.disk(|| 2), fs.awaited.since()), ("01", 2));
        // A further link to the same one.
        fs.ask_disk("01", 3);
        let noted = fs.awaited.disk(|| 2);
        assert!(!fs.awaited.is_another(&noted, 3));
    }
}
