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
use delugefs_proto::ids::{BlobId, ContentId, Ino};
use delugefs_proto::limits::{FILE_MAX_BYTES, INLINE_MAX_BYTES, TORRENT_MIN_BYTES};
use nix::errno::Errno;
use nix::fcntl::{FlockArg, OFlag};
use nix::sys::stat::{FileStat, fstat};

use super::staging::staging_path;
use super::{ContentStore, Stamp, data_path, fail, hash, shard_of, stat_regular};
use crate::folder::{Dir, DiskFolder};
use crate::os;

/// What [`ContentStore::begin_seal`] found.
pub enum Seal {
    /// Somebody holds a descriptor to write by.
    Busy,
    /// Small enough for the catalog.
    Small(SealedSmall),
    /// To be hashed.
    Large(SealJob),
    /// A sync of it has failed: not to be hashed before [`ContentStore::renew_staged`] has made a copy of it.
    Doubtful(SealJob),
}

/// Which state of a staging file a seal is of. Void as soon as somebody opens the file for writing.
#[derive(Clone, Debug)]
pub struct Ticket {
    pub(super) ino: Ino,
    pub(super) size: u64,
    pub(super) mtime_ns: i64,
    ctime_ns: i64,
    /// When it was written last.
    stamp: Stamp,
    inode: (libc::dev_t, libc::ino_t),
    superseded: Arc<AtomicBool>,
}

/// The bytes of a small staging file, to be recorded; then [`ContentStore::remove_staged`] lets the file go.
#[derive(Clone, Debug)]
pub struct SealedSmall {
    /// The whole content.
    pub bytes: Bytes,
    /// Its id as an attachment of the catalog.
    pub blob: BlobId,
    /// Last change of content, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// For [`ContentStore::can_finish`].
    pub ticket: Ticket,
}

/// The long part of sealing one file. Runs on any thread, without a lock.
pub struct SealJob {
    pub(super) file: File,
    pub(super) ticket: Ticket,
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
    /// For [`ContentStore::can_finish`].
    pub ticket: Ticket,
    held_already: bool,
}

impl Ticket {
    fn new(ino: Ino, stat: &FileStat, stamp: Stamp) -> Self {
        let (size, mtime_ns, ctime_ns) = (stat.st_size as u64, os::mtime_ns(stat), os::ctime_ns(stat));
        Self { ino, size, mtime_ns, ctime_ns, stamp, inode: (stat.st_dev, stat.st_ino), superseded: Arc::default() }
    }

    /// Last change of the content of the file, and of anything about it, nanoseconds since 1970.
    pub fn times(&self) -> (i64, i64) {
        (self.mtime_ns, self.ctime_ns)
    }

    /// The file when it was written last.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    pub(super) fn is_void(&self) -> bool {
        self.superseded.load(Ordering::SeqCst)
    }

    pub(super) fn is_of(&self, stat: &FileStat) -> bool {
        self.is_content_of(stat) && self.mtime_ns == os::mtime_ns(stat)
    }

    /// The same for one that is recorded: its time may be set since, which changes the record and not the content.
    fn is_content_of(&self, stat: &FileStat) -> bool {
        self.inode == (stat.st_dev, stat.st_ino) && self.size == stat.st_size as u64
    }
}

fn busy(ino: Ino) -> FsError {
    FsError::new(Errno::EBUSY, format!("{} is being written again; seal it later", staging_path(ino)))
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
        let ticket = Ticket::new(ino, &stat, self.retouched.written(ino, Stamp::of(&stat)));
        if ticket.size > FILE_MAX_BYTES {
            return Err(failed(Errno::EFBIG));
        }
        // The lock has served: from now on `open_staged` sees every new writer.
        os::flock(&file, FlockArg::Unlock).map_err(failed)?;
        state.seals.retain(|_, flag| flag.strong_count() > 0);
        let before = state.seals.insert(ino, Arc::downgrade(&ticket.superseded));
        if let Some(before) = before.and_then(|flag| flag.upgrade()) {
            before.store(true, Ordering::SeqCst);
        }
        if ticket.size <= INLINE_MAX_BYTES {
            let mut bytes = vec![0; ticket.size as usize];
            file.read_exact_at(&mut bytes, 0).map_err(|error| failed(os::errno(&error)))?;
            // What git will not store (marks of an attack on SHA-1) goes into a file like any large content.
            if let Some(blob) = crate::catalog::attachable(&bytes) {
                return Ok(Seal::Small(SealedSmall { bytes: bytes.into(), blob, mtime_ns: ticket.mtime_ns, ticket }));
            }
        }
        let job = SealJob { file, ticket, folder: self.folder.clone() };
        Ok(if state.is_doubtful(ino, &stat) { Seal::Doubtful(job) } else { Seal::Large(job) })
    }

    /// Whether nothing has opened the file for writing since the seal began: while the caller keeps it so, finishing
    /// will not answer `EBUSY`. To be asked before recording.
    pub fn can_finish(&self, ticket: &Ticket) -> FsResult<bool> {
        let _state = self.staging.lock();
        match self.reopen(ticket, Ticket::is_of) {
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
        let file = self.reopen(&sealed.ticket, Ticket::is_content_of)?;
        let name = sealed.ino.to_string();
        let mut shard = self.shard(content).lock();
        match self.stat(content) {
            Ok(Some(held)) if sealed.held_already && held.st_size as u64 == sealed.size => {
                self.unlink_staged(&mut state, sealed.ino)?;
                self.keep.finished(content);
                // An earlier process may have put it there and ended before it was durable.
                self.durable.renamed(content);
            }
            held => {
                // What is there is damaged, or came this moment. Others may rely on its being durable already, so what
                // replaces it must be durable before.
                if !matches!(held, Ok(None))
                    && let Err(error) = file.sync_all()
                {
                    self.mark_doubtful(&mut state, sealed.ino, &file);
                    return Err(failed(os::errno(&error)));
                }
                self.put(&mut shard, Dir::Staging, &name, content).map_err(failed)?;
                // Last: a read-only file in `staging/` could not be opened for writing again.
                file.set_permissions(PermissionsExt::from_mode(0o400)).map_err(|error| failed(os::errno(&error)))?;
            }
        }
        state.seals.remove(&sealed.ino);
        state.gone(sealed.ino);
        self.retouched.forget(sealed.ino);
        self.unmark_gone_copy(&mut state, sealed.ino);
        self.forget_gone_note(&mut state, sealed.ino);
        Ok(())
    }

    /// Where the same content has come meanwhile, or is in the trash, [`ContentStore::finish_seal`] replaces it, which must be durable
    /// before: to be called by who holds a lock then, for it takes as long as the file is large.
    pub fn sync_replacing(&self, sealed: &Sealed) -> FsResult<()> {
        // What cannot be looked at is met again, and said, when it gets its name.
        match !sealed.held_already && matches!(self.has(sealed.content), Ok(Some(_))) {
            true => self.sync_staged(sealed.ino).map(drop),
            false => Ok(()),
        }
    }

    /// Where the same content is held already, make that durable: to be called before [`ContentStore::finish_seal`] lets a staging
    /// file go that is.
    pub fn sync_held(&self, sealed: &Sealed) -> FsResult<()> {
        if sealed.held_already {
            self.doubt(sealed.content);
            self.sync_content(sealed.content)?;
        }
        Ok(())
    }

    /// The staging file, if it is still what the seal is of and nobody writes it. The caller holds the `staging` lock.
    pub(super) fn reopen(&self, ticket: &Ticket, is_of: fn(&Ticket, &FileStat) -> bool) -> FsResult<File> {
        let failed = |errno| fail(errno, "seal", &staging_path(ticket.ino));
        if ticket.is_void() {
            return Err(busy(ticket.ino));
        }
        let file = match os::open_file(self.dir(Dir::Staging), &ticket.ino.to_string(), OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => return Err(busy(ticket.ino)),
            file => file.map_err(failed)?,
        };
        match os::flock(&file, FlockArg::LockExclusiveNonblock) {
            Err(Errno::EWOULDBLOCK) => return Err(busy(ticket.ino)),
            locked => locked.map_err(failed)?,
        }
        let stat = fstat(&file);
        // The lock has served: new writers wait for the caller's. Given up and not left to the closing, for a process that is
        // being made just now has a copy of the descriptor, and the next writer would be refused.
        os::flock(&file, FlockArg::Unlock).map_err(failed)?;
        if is_of(ticket, &stat.map_err(failed)?) { Ok(file) } else { Err(busy(ticket.ino)) }
    }
}

impl Sealed {
    /// Whether this disk has the same bytes in `data/`: compared, and not by their name.
    pub fn is_held_already(&self) -> bool {
        self.held_already
    }
}

impl SealJob {
    /// Which state of the file it is of.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Length of the file, in bytes.
    pub fn size(&self) -> u64 {
        self.ticket.size
    }

    /// Hash the file in one pass: SHA-256, and above the torrent limit SHA-1 of every piece.
    ///
    /// # Errors
    /// `EBUSY` as soon as somebody opens it for writing, or when it changed.
    pub fn run(self) -> FsResult<Sealed> {
        let Ticket { ino, size, mtime_ns, .. } = self.ticket;
        let is_same = || fstat(&self.file).is_ok_and(|stat| self.ticket.is_of(&stat));
        let failed = |errno| match errno {
            Errno::EBUSY => busy(ino),
            // Made shorter meanwhile, which needs no descriptor of a writer: what is missing is no fault of the disk.
            Errno::EIO if !is_same() => busy(ino),
            errno => fail(errno, "read", &staging_path(ino)),
        };
        let stop = || self.ticket.is_void();
        let hashes = hash::hash(&self.file, size, size > TORRENT_MIN_BYTES, &stop).map_err(failed)?;
        let held_already = self.is_held(hashes.content, &stop).map_err(failed)?;
        if stop() || !is_same() {
            return Err(busy(ino));
        }
        let (content, pieces) = (hashes.content, hashes.pieces);
        Ok(Sealed { ino, content, size, mtime_ns, pieces, ticket: self.ticket, held_already })
    }

    /// Whether the content is in `data/` already, byte for byte. A name alone is not believed here: giving up the good
    /// copy in hand for one that rotted would lose what was just written. A rotten one is replaced.
    fn is_held(&self, content: ContentId, stop: &dyn Fn() -> bool) -> Result<bool, Errno> {
        let Ok(shard) = os::open_dir(self.folder.dir(Dir::Data), &shard_of(content)) else { return Ok(false) };
        match stat_regular(&shard, &content.to_hex()) {
            Ok(stat) if stat.st_size as u64 == self.ticket.size => {}
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
