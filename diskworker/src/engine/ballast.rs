//! A file that only takes up space, so that a full disk still has room for the commit that makes it say so.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// Room for the pack of the largest usual commit, several times over.
const BALLAST_BYTES: usize = 8 << 20;

pub(super) struct Ballast {
    path: PathBuf,
    lock: Mutex<()>,
}

impl Ballast {
    pub fn new(journal_dir: &Path) -> Self {
        Self { path: journal_dir.join("ballast"), lock: Mutex::new(()) }
    }

    /// Give the space up.
    pub fn release(&self) {
        let _one = self.lock.lock();
        if std::fs::remove_file(&self.path).is_ok() {
            tracing::warn!("the disk is full: gave up the reserve of {} MiB", BALLAST_BYTES >> 20);
        }
    }

    /// Take the space, if it is not taken. Real bytes: a hole would keep nothing free.
    pub fn fill(&self) {
        let _one = self.lock.lock();
        if std::fs::metadata(&self.path).is_ok_and(|m| m.len() == BALLAST_BYTES as u64) {
            return;
        }
        let write = || {
            let mut file = File::create(&self.path)?;
            let block = vec![0xd1; 1 << 20];
            (0..BALLAST_BYTES / block.len()).try_for_each(|_| file.write_all(&block))
        };
        if write().is_err() {
            // No space for it now; the cleaner tries again.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
