//! Stamps of staging files that this process has moved itself: it sets the time of the last change for utimes(2), and bits of
//! the mode when a sync has failed, or another version has come. None of that is a write. Shown as one it would be a version that nobody
//! records when nothing was written, or that was recorded just before: who has seen it would wait for it on every other disk, for ever.

use std::collections::HashMap;
use std::fs::File;

use delugefs_proto::ids::Ino;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};
use parking_lot::Mutex;

use super::{ContentStore, Stamp};

/// By inode: the stamp that was given last, and that of the last write before.
#[derive(Default)]
pub(super) struct Retouched(Mutex<HashMap<Ino, (Stamp, Stamp)>>);

impl Retouched {
    /// The file is gone, or is another one.
    pub fn forget(&self, ino: Ino) {
        self.0.lock().remove(&ino);
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// The stamp that a file had when it was written which has this one now.
    pub fn written(&self, ino: Ino, now: Stamp) -> Stamp {
        written(&self.0.lock(), ino, now)
    }
}

fn written(known: &HashMap<Ino, (Stamp, Stamp)>, ino: Ino, now: Stamp) -> Stamp {
    match known.get(&ino) {
        Some((moved, written)) if moved.is_same(&now) => now.at(written.ctime_ns, written.mtime_ns),
        _ => now,
    }
}

impl ContentStore {
    /// Change the mode of a staging file. A write that comes meanwhile is one.
    pub(super) fn retouch_mode(
        &self,
        ino: Ino,
        file: &File,
        change: impl FnOnce(&FileStat) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.retouch_unless(ino, file, |stat, _| change(stat), |before, now| before.mtime_ns != now.mtime_ns)
    }

    /// Set the time of a staging file, which is given with its stamp of the last write. Where that is the moment itself a write that follows
    /// might not be told from it.
    pub(super) fn retouch(
        &self,
        ino: Ino,
        file: &File,
        change: impl FnOnce(&FileStat, Stamp) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.retouch_unless(ino, file, change, |_, now| now.mtime_ns == now.ctime_ns)
    }

    fn retouch_unless(
        &self,
        ino: Ino,
        file: &File,
        change: impl FnOnce(&FileStat, Stamp) -> Result<(), Errno>,
        is_written: impl FnOnce(&Stamp, &Stamp) -> bool,
    ) -> Result<(), Errno> {
        // Until it is done, for of two at once the second would take the first for a write.
        let mut known = self.retouched.0.lock();
        let stat = fstat(file)?;
        let before = Stamp::of(&stat);
        change(&stat, written(&known, ino, before))?;
        let now = Stamp::of(&fstat(file)?);
        if !before.is_same(&now) && before.size == now.size && !is_written(&before, &now) {
            let written = known.get(&ino).filter(|(last, _)| last.is_same(&before)).map_or(before, |(_, was)| *was);
            known.insert(ino, (now, written));
        }
        Ok(())
    }
}
