//! Contents that one disk of a host gives to another when they are sealed, so that unequal disks fill evenly. The file was
//! written on the disk that is mounted; the one with more room copies it, verifies it, and holds it from then on.
//!
//! Order: durable there, recorded and committed here, and only then is the staged file removed. A crash before that leaves the
//! staged file, which is sealed anew; a copy that nothing refers to then is collected there.

use std::fs::File;
use std::time::Duration;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ContentId, Ino};
use nix::errno::Errno;

use super::Engine;
use crate::content::Seal;
use crate::os;

/// Gives a content to another disk of this host: its id, its length in bytes, its file. Whether that one holds it now.
pub type Placer = Box<dyn Fn(ContentId, u64, &File) -> bool + Send + Sync>;

/// What is smaller stays where it was written: to copy it costs more than it evens out.
pub(super) const PLACED_MIN_BYTES: u64 = 1 << 20;
/// By then the catalog with the file has come.
const KEPT: Duration = Duration::from_secs(600);

impl Engine {
    /// Ask this before a content is kept here. Once.
    pub fn place_with(&self, placer: Placer) {
        let _ = self.placer.set(placer); // there is one
    }

    /// Give a staged file's content to another disk, if that is better. Whether one holds it now, durably.
    pub(super) fn place(&self, ino: Ino, content: ContentId, size: u64) -> FsResult<bool> {
        let Some(placer) = self.placer.get().filter(|_| size >= PLACED_MIN_BYTES) else { return Ok(false) };
        if self.store.has(content)?.is_some() {
            return Ok(false);
        }
        let Some(file) = self.store.open_staged(ino, false)? else { return Ok(false) };
        Ok(placer(content, size, &file))
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
            self.store.check(content, size)?;
            return self.store.sync_content(content);
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
            os::copy_range(from, &file, start, end)?;
            at = end;
        }
        drop(file);
        let Seal::Large(job) = self.store.begin_seal(ino)? else { return Err(Errno::EBUSY.into()) };
        let sealed = job.run()?;
        if sealed.content != content || sealed.size != size {
            return Err(FsError::new(Errno::EINVAL, "what came is another content"));
        }
        self.store.finish_seal(&sealed)
    }
}
