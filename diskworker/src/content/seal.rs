//! Sealing: a staging file nobody writes any more becomes a content.
//!
//! Three steps, so that the long one needs no lock: [`ContentStore::begin_seal`] gets the exclusive flock, which proves
//! that no writer's descriptor is left in any process; [`SealJob::run`] hashes; [`ContentStore::finish_seal`] makes sure
//! that nothing has opened the file for writing in between, and renames. A writer that comes meanwhile is not kept
//! waiting: opening for writing makes the seal invalid, and it ends with `EBUSY`.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ContentId, Ino};
use delugefs_proto::limits::{FILE_MAX_BYTES, INLINE_MAX_BYTES, TORRENT_MIN_BYTES};
use nix::errno::Errno;
use nix::fcntl::{FlockArg, OFlag};
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::staging::staging_path;
use super::{ContentStore, data_path, fail, hash, shard_of, stat_regular};
use crate::folder::{Dir, DiskFolder};
use crate::os;

/// What [`ContentStore::begin_seal`] found.
pub enum Seal {
    /// Somebody holds a descriptor to write by.
    Busy,
    /// Small enough for the catalog: the bytes and the time of their last change (nanoseconds since 1970). The file stays
    /// until the caller has recorded them and calls [`ContentStore::remove_staged`].
    Small(Bytes, i64),
    /// To be hashed.
    Large(SealJob),
}

/// The long part of sealing one file. Runs on any thread, without a lock.
pub struct SealJob {
    ino: Ino,
    file: File,
    stat: FileStat,
    superseded: Arc<AtomicBool>,
    folder: Arc<DiskFolder>,
}

/// A hashed staging file, to be recorded and then given to [`ContentStore::finish_seal`].
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Whose content it is.
    pub ino: Ino,
    /// SHA-256 of the whole.
    pub content: ContentId,
    /// Length in bytes.
    pub size: u64,
    /// Last change of content, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// SHA-1 of every piece, 20 bytes each; present above the torrent limit.
    pub pieces: Option<Bytes>,
    identity: (libc::dev_t, libc::ino_t),
    held_already: bool,
    superseded: Arc<AtomicBool>,
}

fn busy(ino: Ino) -> FsError {
    FsError::new(Errno::EBUSY, format!("{} is being written again; seal it later", staging_path(ino)))
}

fn identity(stat: &FileStat) -> (libc::dev_t, libc::ino_t) {
    (stat.st_dev, stat.st_ino)
}

impl ContentStore {
    /// Begin to seal a staging file. A seal begun earlier of the same file becomes invalid.
    ///
    /// # Errors
    /// `ENOENT` without such a file, `EFBIG` above the largest file size.
    pub fn begin_seal(&self, ino: Ino) -> FsResult<Seal> {
        let failed = |errno| fail(errno, "seal", &staging_path(ino));
        let mut state = self.staging.lock();
        let file = os::open_file(self.dir(Dir::Staging), &ino.to_string(), OFlag::O_RDONLY).map_err(failed)?;
        match os::flock(&file, FlockArg::LockExclusiveNonblock) {
            Err(Errno::EWOULDBLOCK) => return Ok(Seal::Busy),
            locked => locked.map_err(failed)?,
        }
        let stat = fstat(&file).map_err(failed)?;
        let size = stat.st_size as u64;
        if size > FILE_MAX_BYTES {
            return Err(failed(Errno::EFBIG));
        }
        if size <= INLINE_MAX_BYTES {
            let mut bytes = vec![0; size as usize];
            file.read_exact_at(&mut bytes, 0).map_err(|error| failed(os::errno(&error)))?;
            return Ok(Seal::Small(bytes.into(), os::mtime_ns(&stat)));
        }
        // It has served: from now on every new writer is seen by `open_staged`.
        os::flock(&file, FlockArg::Unlock).map_err(failed)?;
        state.seals.retain(|_, flag| flag.strong_count() > 0);
        let superseded = Arc::new(AtomicBool::new(false));
        let before = state.seals.insert(ino, Arc::downgrade(&superseded));
        if let Some(before) = before.and_then(|flag| flag.upgrade()) {
            before.store(true, Ordering::SeqCst);
        }
        Ok(Seal::Large(SealJob { ino, file, stat, superseded, folder: self.folder.clone() }))
    }

    /// Whether nothing has opened the file for writing since the seal began: while the caller keeps it so,
    /// [`ContentStore::finish_seal`] will not answer `EBUSY`. To be asked before recording.
    pub fn can_finish(&self, sealed: &Sealed) -> FsResult<bool> {
        let _state = self.staging.lock();
        match self.reopen(sealed) {
            Ok(_) => Ok(true),
            Err(error) if error.errno == Errno::EBUSY => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The last step: the staging file becomes read-only and gets its name in `data/`. Where the same content is held
    /// already the staging file just goes. Descriptors that read it stay valid.
    ///
    /// # Errors
    /// `EBUSY` when the file was opened for writing, changed or removed since the seal began.
    pub fn finish_seal(&self, sealed: &Sealed) -> FsResult<()> {
        let content = sealed.content;
        let failed = |errno| fail(errno, "make", &data_path(content));
        let mut state = self.staging.lock();
        let file = self.reopen(sealed)?;
        let name = sealed.ino.to_string();
        let mut shard = self.shard(content).lock();
        match self.stat(content) {
            Ok(Some(held)) if sealed.held_already && held.st_size as u64 == sealed.size => {
                unlinkat(self.dir(Dir::Staging), name.as_str(), UnlinkatFlags::NoRemoveDir).map_err(failed)?;
                self.keep.finished(content);
            }
            held => {
                // What is there is damaged, or came this moment. Others may rely on its being durable already, so what
                // replaces it must be durable before.
                if !matches!(held, Ok(None)) {
                    file.sync_all().map_err(|error| failed(os::errno(&error)))?;
                }
                self.put(&mut shard, Dir::Staging, &name, content).map_err(failed)?;
                // Last: a read-only file in `staging/` could not be opened for writing again.
                file.set_permissions(PermissionsExt::from_mode(0o400)).map_err(|error| failed(os::errno(&error)))?;
            }
        }
        state.seals.remove(&sealed.ino);
        state.gone(sealed.ino);
        Ok(())
    }

    /// The staging file, if it is still what was hashed and nobody writes it. The caller holds the `staging` lock.
    fn reopen(&self, sealed: &Sealed) -> FsResult<File> {
        let failed = |errno| fail(errno, "seal", &staging_path(sealed.ino));
        if sealed.superseded.load(Ordering::SeqCst) {
            return Err(busy(sealed.ino));
        }
        let file = match os::open_file(self.dir(Dir::Staging), &sealed.ino.to_string(), OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => return Err(busy(sealed.ino)),
            file => file.map_err(failed)?,
        };
        match os::flock(&file, FlockArg::LockExclusiveNonblock) {
            Err(Errno::EWOULDBLOCK) => return Err(busy(sealed.ino)),
            locked => locked.map_err(failed)?,
        }
        let stat = fstat(&file).map_err(failed)?;
        let unchanged = identity(&stat) == sealed.identity
            && stat.st_size as u64 == sealed.size
            && os::mtime_ns(&stat) == sealed.mtime_ns;
        if unchanged { Ok(file) } else { Err(busy(sealed.ino)) }
    }
}

impl SealJob {
    /// Length of the file, in bytes.
    pub fn size(&self) -> u64 {
        self.stat.st_size as u64
    }

    /// Hash the file in one pass: SHA-256, and above the torrent limit SHA-1 of every piece.
    ///
    /// # Errors
    /// `EBUSY` as soon as somebody opens it for writing, or when it changed.
    pub fn run(self) -> FsResult<Sealed> {
        let ino = self.ino;
        let failed = |errno| match errno {
            Errno::EBUSY => busy(ino),
            errno => fail(errno, "read", &staging_path(ino)),
        };
        let size = self.size();
        let stop = || self.superseded.load(Ordering::SeqCst);
        let hashes = hash::hash(&self.file, size, size > TORRENT_MIN_BYTES, &stop).map_err(failed)?;
        let held_already = self.is_held(hashes.content, &stop).map_err(failed)?;
        let after = fstat(&self.file).map_err(failed)?;
        if after.st_size != self.stat.st_size || os::mtime_ns(&after) != os::mtime_ns(&self.stat) || stop() {
            return Err(busy(ino));
        }
        Ok(Sealed {
            ino,
            content: hashes.content,
            size,
            mtime_ns: os::mtime_ns(&after),
            pieces: hashes.pieces,
            identity: identity(&after),
            held_already,
            superseded: self.superseded,
        })
    }

    /// Whether the content is in `data/` already, byte for byte. A name alone is not believed here: giving up the good
    /// copy in hand for one that rotted would lose what was just written. A rotten one is replaced.
    fn is_held(&self, content: ContentId, stop: &dyn Fn() -> bool) -> Result<bool, Errno> {
        let Ok(shard) = os::open_dir(self.folder.dir(Dir::Data), &shard_of(content)) else { return Ok(false) };
        match stat_regular(&shard, &content.to_hex()) {
            Ok(stat) if stat.st_size == self.stat.st_size => {}
            _ => return Ok(false),
        }
        let Ok(held) = os::open_file(&shard, &content.to_hex(), OFlag::O_RDONLY) else { return Ok(false) };
        let same = hash::same_bytes(&self.file, &held, self.size(), stop)?;
        if !same {
            tracing::error!(file = data_path(content), "damaged on disk; replaced by the copy just written");
        }
        Ok(same)
    }
}
