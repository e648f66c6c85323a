//! Staging files whose file others have changed since it was opened here. Which versions a writer started from is known in memory
//! only; a worker that comes back after a crash would take what was written for a successor of all there are. For most files
//! that is right. For these it is not, and so they are marked when the other version comes, in a bit of their mode: that
//! outlives the process and costs nothing otherwise.

use std::fs::File;

use delugefs_proto::ids::Ino;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};

use super::staging::staging_path;
use super::{ContentStore, fail, stat_regular};
use crate::folder::Dir;
use crate::os;

/// Of a staging file, which no group may execute.
const MET: Mode = Mode::S_IXGRP;

impl ContentStore {
    /// Mark a staging file, if there is one.
    pub fn mark_met(&self, ino: Ino) {
        let _state = self.staging.lock();
        // Nor is that a write: nobody else's removal is to be undone for it.
        let mark = |file: &File, stat: &FileStat| fchmod(file, Mode::from_bits_truncate(stat.st_mode) | MET);
        let marked = os::open_file(self.dir(Dir::Staging), &ino.to_string(), OFlag::O_RDONLY)
            .and_then(|file| self.retouch_mode(ino, &file, |stat| mark(&file, stat)));
        match marked {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => tracing::warn!("{}", fail(errno, "mark for the next start", &staging_path(ino))),
        }
    }

    /// Whether a staging file is marked; also when that cannot be told.
    pub fn is_met(&self, ino: Ino) -> bool {
        let stat = stat_regular(self.dir(Dir::Staging), &ino.to_string());
        stat.map_or(true, |stat| Mode::from_bits_truncate(stat.st_mode).contains(MET))
    }
}

/// What takes the place of a staging file is marked as that is.
pub(super) fn keep_mark(old: &File, new: &File) -> Result<(), Errno> {
    match Mode::from_bits_truncate(fstat(old)?.st_mode).contains(MET) {
        true => fchmod(new, Mode::from_bits_truncate(fstat(new)?.st_mode) | MET),
        false => Ok(()),
    }
}
