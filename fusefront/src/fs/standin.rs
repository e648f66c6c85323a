//! Another disk of the host stands in for the one that a mount was of. It has what had reached it of what was written on that one, and
//! what is known to be newer than that is not read from it: a program that saw its own bytes, synced perhaps, would see them
//! undone, and go on from there. What is known is what the kernel had been told of when the disk was left.
//!
//! Contents are compared by the time by which the disks order versions of one file, which nothing but writing changes: so it does
//! not matter what else is changed meanwhile, and on which disk.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use delugefs_proto::errno::FsError;
use delugefs_proto::local_pb::Attr;
use nix::errno::Errno;
use parking_lot::Mutex;

use super::{Fs, is_gone, written};
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
    disk: String,
    /// When the newest content was written that is known, by inode.
    files: InoMap<i64>,
    /// What was removed, and when its content was written.
    removed: VecDeque<(u64, i64)>,
}

impl Awaited {
    /// The content that was written to the inode at that time may be on another disk than the one that is asked.
    pub fn await_version(&self, ino: u64, written: i64) {
        let mut state = self.state.lock();
        let known = state.files.entry(ino).or_default();
        *known = written.max(*known);
        self.count.store(state.files.len(), Ordering::Release);
    }

    /// A file has lost its last name. A disk that has not heard of it has it still, under that name.
    pub fn was_removed(&self, attr: &Attr) {
        let mut state = self.state.lock();
        if state.removed.len() == REMOVED_MAX {
            state.removed.pop_front();
        }
        state.removed.push_back((attr.ino, attr.written));
    }

    /// Whether the disk that is asked may not have heard of the inode: it does not know it, and that says nothing.
    pub fn is_awaited(&self, ino: u64) -> bool {
        self.version(ino).is_some()
    }

    fn version(&self, ino: u64) -> Option<i64> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.state.lock().files.get(&ino).copied()
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
    /// This disk is asked from now on; before what is remembered of the one before is forgotten.
    pub(super) fn ask_disk(&self, disk: &str) {
        {
            let mut state = self.awaited.state.lock();
            let before = std::mem::replace(&mut state.disk, disk.to_owned());
            if before.is_empty() || before == disk {
                return;
            }
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
        let mut files: InoMap<i64> = self.known.shown().into_iter().map(newest).filter(|file| file.1 > 0).collect();
        let mut state = self.awaited.state.lock();
        for (ino, written) in state.files.drain() {
            let known = files.entry(ino).or_default();
            *known = written.max(*known);
        }
        let mut newest_first: Vec<(u64, i64)> = files.into_iter().collect();
        newest_first.sort_unstable_by_key(|(_, written)| std::cmp::Reverse(*written));
        state.files.extend(newest_first.into_iter().take(FILES_MAX));
        // Only what was written to it elsewhere since then brings such a file back.
        let removed = std::mem::take(&mut state.removed);
        state.files.extend(removed.into_iter().filter(|file| file.1 > 0).map(|(ino, written)| (ino, written + 1)));
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

    /// A change of what only the disk that is away has would be a change of nothing.
    pub(super) fn unheard_of(ino: u64) -> Stop {
        let message = format!(
            "the disk that was mounted is away, and the one that stands in for it has not heard of file {ino:016x}: it can be changed when \
            that disk is back"
        );
        FsError::new(Errno::EIO, message).into()
    }
}
