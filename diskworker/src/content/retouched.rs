//! Change times of staging files that this process has moved itself: it sets the time of the last change for utimes(2), and bits of
//! the mode when a sync has failed, or another version has come. None of that is a write. Shown as one it would be a version that nobody
//! records when nothing was written, or that was recorded just before: who has seen it would wait for it on every other disk, for ever.

use std::collections::HashMap;
use std::fs::File;

use delugefs_proto::ids::Ino;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};
use parking_lot::Mutex;

use super::ContentStore;
use crate::os;

/// A write so close to a change of the mode may have the same time: clocks of files tick as slowly as that, in nanoseconds.
const TICK_NS: u64 = 10_000_000;

/// By inode: the change time that was given last, and that of the last write before.
#[derive(Default)]
pub(super) struct Retouched(Mutex<HashMap<Ino, (i64, i64)>>);

impl Retouched {
    /// The file is gone, or is another one.
    pub fn forget(&self, ino: Ino) {
        self.0.lock().remove(&ino);
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// When a file was written that has this change time now.
    pub fn written_ns(&self, ino: Ino, ctime_ns: i64) -> i64 {
        match self.0.lock().get(&ino) {
            Some((moved, written)) if *moved == ctime_ns => *written,
            _ => ctime_ns,
        }
    }
}

impl ContentStore {
    /// Change the mode of a staging file. Where a write may have come at that moment, it counts as one.
    pub(super) fn retouch_mode(
        &self,
        ino: Ino,
        file: &File,
        change: impl FnOnce(&FileStat) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let is_untouched = |before: &FileStat, now: &FileStat| {
            let age_ns = os::ctime_ns(now).saturating_sub(os::mtime_ns(now)).unsigned_abs();
            os::mtime_ns(now) == os::mtime_ns(before) && age_ns >= TICK_NS
        };
        self.retouch_unless_written(ino, file, change, is_untouched)
    }

    /// Change something about a staging file that is not its content.
    pub(super) fn retouch(
        &self,
        ino: Ino,
        file: &File,
        change: impl FnOnce(&FileStat) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.retouch_unless_written(ino, file, change, |_, _| true)
    }

    fn retouch_unless_written(
        &self,
        ino: Ino,
        file: &File,
        change: impl FnOnce(&FileStat) -> Result<(), Errno>,
        is_untouched: impl FnOnce(&FileStat, &FileStat) -> bool,
    ) -> Result<(), Errno> {
        // Until it is done, for of two at once the second would take the first for a write.
        let mut known = self.retouched.0.lock();
        let before = fstat(file)?;
        change(&before)?;
        let now = fstat(file)?;
        let (moved, to) = (os::ctime_ns(&before), os::ctime_ns(&now));
        if moved != to && is_untouched(&before, &now) {
            let written = known.get(&ino).filter(|(last, _)| *last == moved).map_or(moved, |(_, written)| *written);
            known.insert(ino, (to, written));
        }
        Ok(())
    }
}
