//! The files of the log.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::os;

/// Room a segment is given in advance: what about ten thousand changes take.
pub(super) const SEGMENT_BYTES: u64 = 4 << 20;
/// Name of the emptied segment that is kept.
pub(super) const SPARE: &str = "tmp-spare";

pub(super) struct Segment {
    pub first_lsn: u64,
    pub file: Arc<File>,
    /// Where the next record goes, in bytes from the beginning.
    pub end: u64,
    /// A sync of it failed, and the records in it may not be on the disk.
    pub failed: Option<Errno>,
}

pub(super) fn name(first_lsn: u64) -> String {
    format!("log-{first_lsn:016x}")
}

/// The first lsn of the segment with this name, if it is one's.
pub(super) fn first_lsn(file_name: &str) -> Option<u64> {
    let lsn = u64::from_str_radix(file_name.strip_prefix("log-")?, 16).ok()?;
    (name(lsn) == file_name).then_some(lsn)
}

impl Segment {
    /// A new one, whose name is not on stable storage yet: see [`sync_folder`]. Nothing is left of it on an error.
    pub fn create(dir: &File, first_lsn: u64) -> io::Result<Self> {
        let temporary = format!("tmp-{first_lsn:016x}");
        let made = fill(dir, &temporary).and_then(|file| place(dir, &temporary, file, first_lsn));
        if made.is_err() {
            // Best effort: the next start removes it too.
            let _ = unlinkat(dir, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        made
    }

    /// The spare one. The same holds of its name. Nothing is written to it: that it became the spare one may not be on the disk yet,
    /// and when the machine goes down it may be the segment that it was, with others behind it. Replay ends at its first record, of a
    /// lower lsn than its name says.
    pub fn reuse(dir: &File, first_lsn: u64) -> io::Result<Self> {
        let file = os::open_file(dir, SPARE, OFlag::O_RDWR)?;
        place(dir, SPARE, file, first_lsn)
    }
}

fn fill(dir: &File, temporary: &str) -> io::Result<File> {
    let file = os::open_file(dir, temporary, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)?;
    // Real zeros, not a hole: an fdatasync then has no block to allocate and no size to record.
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < SEGMENT_BYTES {
        file.write_all_at(&zeros, at)?;
        at += zeros.len() as u64;
    }
    file.sync_all()?;
    Ok(file)
}

fn place(dir: &File, from: &str, file: File, first_lsn: u64) -> io::Result<Segment> {
    renameat(dir, from, dir, name(first_lsn).as_str())?;
    Ok(Segment { first_lsn, file: Arc::new(file), end: 0, failed: None })
}

#[cfg(test)]
thread_local! {
    /// With what a sync of the folder fails in this thread.
    pub(super) static FOLDER_FAILS: std::cell::Cell<Option<Errno>> = const { std::cell::Cell::new(None) };
}

/// Make the names in the folder durable, and that others are gone.
pub(super) fn sync_folder(dir: &File) -> Result<(), Errno> {
    #[cfg(test)]
    if let Some(errno) = FOLDER_FAILS.get() {
        return Err(errno);
    }
    fsync(dir)
}
