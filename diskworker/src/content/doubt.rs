//! Staging files of which a sync has failed. The kernel then takes their pages for written: the bytes are in memory, on the
//! disk are others, and the next sync says that all is well (Linux, measured on ext4; so do other systems). Sealed as it is,
//! such a file would have the hash of bytes that are gone after the next start of the machine. So it is marked, and before
//! it is sealed a copy of it that is on stable storage takes its place.
//!
//! The mark is a bit of the file's mode. That needs no write to a disk that fails, and it lives as long as the pages it is
//! about: in the kernel, through a crash of this process, until the machine goes down. It is remembered here too, for a
//! file system that takes no changes any more.

use std::fs::File;
use std::os::unix::fs::FileExt;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::Ino;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use nix::unistd::fsync;

use super::seal::{SealJob, Ticket};
use super::staging::{State, staging_path};
use super::{ContentStore, fail, met, stat_regular};
use crate::folder::Dir;
use crate::os;

/// Of a staging file, which nobody executes.
const DOUBTFUL: Mode = Mode::S_IXUSR;
/// Copied at once, and what is all zeros of it is left out: holes stay holes.
const BLOCK_BYTES: u64 = 128 << 10;

impl ContentStore {
    /// A sync of this staging file has failed. What is being sealed of it is void.
    pub fn doubt_staged(&self, ino: Ino) {
        let mut state = self.staging.lock();
        match os::open_file(self.dir(Dir::Staging), &ino.to_string(), OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => {}
            Ok(file) => self.mark_doubtful(&mut state, ino, &file),
            Err(_) => state.doubt(ino),
        }
    }

    /// The same for the file that was synced, whatever has come of it since.
    pub(super) fn sync_failed(&self, ino: Ino, file: &File, errno: Errno) {
        let mut state = self.staging.lock();
        let place = |stat: &FileStat| (stat.st_dev, stat.st_ino);
        let named = stat_regular(self.dir(Dir::Staging), &ino.to_string());
        match fstat(file) {
            Ok(stat) if named.is_ok_and(|named| place(&named) == place(&stat)) => {
                self.mark_doubtful(&mut state, ino, file)
            }
            Ok(stat) if stat.st_nlink == 0 => {} // it has become an attachment, or was removed
            _ => self.durable.failed(errno),     // a content: it was sealed meanwhile
        }
    }

    /// The same for one that is open. The caller holds the `staging` lock.
    pub(super) fn mark_doubtful(&self, state: &mut State, ino: Ino, file: &File) {
        state.doubt(ino);
        let mark = |stat: &FileStat| fchmod(file, Mode::from_bits_truncate(stat.st_mode) | DOUBTFUL);
        let marked = self.retouch_mode(ino, file, mark);
        if let Err(error) = marked {
            tracing::warn!("{}: cannot be marked for the next start: {error}", staging_path(ino));
        }
    }

    /// Whether a sync of this staging file has failed; `false` without such a file.
    pub fn is_doubtful(&self, ino: Ino) -> FsResult<bool> {
        let state = self.staging.lock();
        match stat_regular(self.dir(Dir::Staging), &ino.to_string()) {
            Ok(stat) => Ok(state.is_doubtful(ino, &stat)),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(fail(errno, "look at", &staging_path(ino))),
        }
    }

    /// Put a copy of a doubtful staging file in its place, on stable storage. The seal that was begun ends with that.
    ///
    /// # Errors
    /// `EBUSY` when somebody writes it or has replaced it meanwhile; `EIO` when it cannot be copied, also for lack of room: the
    /// disk is not full for others.
    pub fn renew_staged(&self, job: SealJob) -> FsResult<()> {
        let SealJob { file, ticket, .. } = job;
        let (ino, size) = (ticket.ino, ticket.size);
        let failed = |error: FsError| match error.errno {
            Errno::EBUSY => error,
            _ => FsError::new(
                Errno::EIO,
                format!("a sync of {} has failed, and so does copying it: {error}; look at dmesg", staging_path(ino)),
            ),
        };
        let made = self.make_temporary(ino, 0, Some(ticket.mtime_ns), |to| {
            self.copy_cached(&file, to, size, &|| ticket.is_void())?;
            fsync(to)
        });
        let (temporary, copy) = made.map_err(failed)?;
        let mut state = self.staging.lock();
        let renewed = self.reopen(&ticket, Ticket::is_of).and_then(|old| {
            let at = self.dir(Dir::Staging);
            // Under the lock: others may have changed the file while it was copied.
            met::keep_mark(&old, &copy)
                .and_then(|()| renameat(at, temporary.as_str(), at, ino.to_string().as_str()))
                .map_err(|errno| fail(errno, "replace", &staging_path(ino)))
        });
        match renewed {
            // And with it the mark of a failed sync. What is there now is synced, and no copy of what the file was.
            Ok(()) => {
                state.gone(ino);
                self.unmark_gone_copy(&mut state, ino);
            }
            Err(_) => self.remove_temporary(&temporary),
        }
        drop(state);
        renewed.map_err(failed)?;
        // Whoever was told that the name is on stable storage was told of the file before.
        fsync(self.dir(Dir::Staging)).map_err(|errno| {
            self.doubt_staged(ino);
            failed(fail(errno, "sync", "staging"))
        })
    }

    /// What a file is in memory: by reading and writing, for blocks that are shared or copied by the disk would be what the disk
    /// has; and all of it, for holes are told by what the disk has.
    pub(super) fn copy_cached(&self, from: &File, to: &File, size: u64, stop: &dyn Fn() -> bool) -> Result<(), Errno> {
        nix::unistd::ftruncate(to, size as i64)?;
        let mut block = vec![0; BLOCK_BYTES as usize];
        for at in (0..size).step_by(BLOCK_BYTES as usize) {
            if stop() {
                return Err(Errno::EBUSY);
            }
            let block = &mut block[..(size - at).min(BLOCK_BYTES) as usize];
            from.read_exact_at(block, at).map_err(|error| os::errno(&error))?;
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            // The reserve belongs to the catalog.
            if self.free_space().is_ok_and(|space| space.free < BLOCK_BYTES) {
                return Err(Errno::ENOSPC);
            }
            to.write_all_at(block, at).map_err(|error| os::errno(&error))?;
        }
        Ok(())
    }
}

impl State {
    fn doubt(&mut self, ino: Ino) {
        self.supersede(ino);
        self.doubtful.insert(ino);
    }

    pub(super) fn is_doubtful(&self, ino: Ino, stat: &FileStat) -> bool {
        self.doubtful.contains(&ino) || Mode::from_bits_truncate(stat.st_mode).contains(DOUBTFUL)
    }
}
