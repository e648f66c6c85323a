//! A file that only takes up space, so that a full disk still has room for the commits that removals need.

use std::fs::File;
use std::io::Write;

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::Mutex;

use crate::os;

/// Room for the pack of the largest usual commit, several times over.
pub(super) const BALLAST_BYTES: u64 = 8 << 20;
/// Room that must be left beside it before it is taken again: who has just made some is not to find it taken.
const MARGIN_BYTES: u64 = 1 << 20;
const NAME: &str = "ballast";

pub(super) struct Ballast {
    journal_dir: File,
    lock: Mutex<()>,
}

impl Ballast {
    pub fn new(journal_dir: File) -> Self {
        Self { journal_dir, lock: Mutex::default() }
    }

    /// Give the space up; whether there was any.
    pub fn release(&self) -> bool {
        let _one = self.lock.lock();
        let gone = self.remove();
        if gone {
            tracing::warn!("the disk is full: gave up the reserve of {} MiB", BALLAST_BYTES >> 20);
        }
        gone
    }

    /// Take the space, if it is not taken and there is more than that; whether it is taken now.
    pub fn fill(&self, available_bytes: impl Fn() -> u64) -> bool {
        let _one = self.lock.lock();
        let stat = fstatat(&self.journal_dir, NAME, AtFlags::AT_SYMLINK_NOFOLLOW);
        if stat.is_ok_and(|stat| os::is_regular(&stat) && stat.st_size as u64 == BALLAST_BYTES) {
            return true;
        }
        if available_bytes() < BALLAST_BYTES + MARGIN_BYTES {
            return false;
        }
        // What is there is a part of one, or nothing of ours.
        self.remove();
        let filled = self.write().is_ok();
        if !filled {
            self.remove();
        }
        filled
    }

    /// Real bytes: a hole would keep nothing free.
    fn write(&self) -> std::io::Result<()> {
        let mut file = os::open_file(&self.journal_dir, NAME, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)?;
        let block = vec![0xd1; 1 << 20];
        (0..BALLAST_BYTES / block.len() as u64).try_for_each(|_| file.write_all(&block))
    }

    fn remove(&self) -> bool {
        unlinkat(&self.journal_dir, NAME, UnlinkatFlags::NoRemoveDir).is_ok()
    }
}
