//! The content store of one disk: whole plain files named by their SHA-256 (`data/`), files being written (`staging/`),
//! files being fetched (`incoming/`) and files nobody refers to any more (`trash/`).
//!
//! It knows contents and inode numbers, nothing of names, the catalog or torrents. What is referred to, and when a
//! staging file may be sealed, its callers decide. All methods may be called from any thread, block on the disk, and
//! fail with the system's errno and a sentence.
//!
//! **Life of a content.** A writer gets a staging file under a shared flock. When the last one is gone,
//! [`ContentStore::begin_seal`] and [`SealJob::run`] hash it; the caller records the result in the catalog and then calls
//! [`ContentStore::finish_seal`], which renames it into `data/`. In this order: a crash in between leaves the staging
//! file, which is simply sealed again; the other way round it would leave a content without a name. Before the record is
//! committed [`ContentStore::barrier_for`] makes the file durable. [`ContentStore::collect`] moves what is not referred to
//! into `trash/`, from where whoever asks for it gets it back until its time is over.
//!
//! **A staging file that could not be synced** is never sealed as it is: see [`doubt`].
//!
//! **What is verified when.** A content is hashed when it is sealed and when it was fetched, and never served before. Reading
//! a local file of `data/` does not hash it again: descriptors are passed to the frontend and read there at full speed.
//! Rot on a disk is found by a scrub ([`ContentStore::check`]) and by peers, who verify every piece.
//!
//! **Locks.** `staging` (whether a seal is still valid), then one of 256 `shards` (which of `data/` and `trash/` a content
//! is in), then the small ones in `durable` and `garbage`. No lock is held while a file is hashed, copied or synced, but
//! for the sync before a damaged content is replaced.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::SystemTime;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ContentId, Ino};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use parking_lot::{Condvar, Mutex};

use crate::folder::{Dir, DiskFolder};
use crate::os;

mod aside;
mod copies;
mod damaged;
mod doubt;
mod durable;
mod earlier;
mod fail;
mod garbage;
mod hash;
mod incoming;
mod met;
mod retouched;
mod seal;
mod staging;
mod stamp;
pub mod torrent;

pub use aside::{Look, Suspect};
pub use copies::{Copied, Life};
pub use damaged::Damage;
pub use garbage::{Collected, Giving, Retention};
#[cfg(test)]
pub(crate) use hash::{HASHED, UNREADABLE};
pub use seal::{Seal, SealJob, Sealed, SealedSmall, Ticket};
pub use staging::StagedStat;
pub use stamp::Stamp;

use fail::fail;

/// See the module.
pub struct ContentStore {
    folder: Arc<DiskFolder>,
    reserve_bytes: u64,
    shards: Vec<Mutex<Shard>>,
    staging: Mutex<staging::State>,
    /// There are copies to sync.
    copied: Condvar,
    retouched: retouched::Retouched,
    damaged: damaged::Damaged,
    durable: durable::Durable,
    keep: garbage::Keep,
    earlier: earlier::Earlier,
    watch: std::sync::OnceLock<Watch>,
}

/// Told of every content that comes (`true`) or goes. Must not block.
pub type Watch = Box<dyn Fn(ContentId, bool) + Send + Sync>;

/// What is known of the contents whose names begin with one byte; `None` until somebody counts them.
type Shard = Option<Usage>;

/// How much is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Whole contents in `data/`.
    pub contents: u64,
    /// Their length together, in bytes.
    pub bytes: u64,
}

/// Room on the file system the disk folder is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system, in bytes.
    pub total: u64,
    /// What new contents may use, in bytes: what is free less the reserve, and nothing when no further file can be made.
    pub free: u64,
    /// What is free, in bytes.
    pub available: u64,
}

/// Where a content is found, relative to `data/`.
fn shard_of(content: ContentId) -> String {
    format!("{:02x}", content.0[0])
}

/// A content's name in messages.
fn data_path(content: ContentId) -> String {
    format!("data/{}/{content}", shard_of(content))
}

impl ContentStore {
    /// Of an open disk folder. `reserve_bytes` of the file system stay free for the catalog and the journal. Removes
    /// half-made copies that a crash left in `staging/`.
    pub fn open(folder: Arc<DiskFolder>, reserve_bytes: u64) -> FsResult<Self> {
        let damaged = damaged::Damaged::recall(&folder);
        let this = Self {
            folder,
            reserve_bytes,
            shards: (0..256).map(|_| Mutex::new(None)).collect(),
            staging: Mutex::default(),
            copied: Condvar::default(),
            retouched: retouched::Retouched::default(),
            damaged,
            durable: durable::Durable::default(),
            keep: garbage::Keep::default(),
            earlier: earlier::Earlier::default(),
            watch: std::sync::OnceLock::new(),
        };
        this.remove_half_made()?;
        this.find_copies()?;
        this.find_notes()?;
        this.forget_gone();
        Ok(this)
    }

    /// The folder this store is in.
    pub fn folder(&self) -> &Arc<DiskFolder> {
        &self.folder
    }

    /// Have somebody told of every content that comes or goes from now on. Once.
    pub fn watch(&self, watch: Watch) {
        if self.watch.set(watch).is_err() {
            tracing::error!("a content store has one watcher only");
        }
    }

    fn tell(&self, content: ContentId, held: bool) {
        if let Some(watch) = self.watch.get() {
            watch(content, held);
        }
    }

    fn dir(&self, dir: Dir) -> BorrowedFd<'_> {
        self.folder.dir(dir)
    }

    fn shard(&self, content: ContentId) -> &Mutex<Shard> {
        &self.shards[usize::from(content.0[0])]
    }

    /// The length in bytes of a content this disk holds. A content found in the trash is taken back: who asks is about to
    /// rely on it.
    pub fn has(&self, content: ContentId) -> FsResult<Option<u64>> {
        match self.stat(content) {
            Ok(Some(stat)) => Ok(Some(stat.st_size as u64)),
            Ok(None) => self.take_back(content).map(|stat| stat.map(|stat| stat.st_size as u64)),
            Err(errno) => Err(fail(errno, "look for", &data_path(content))),
        }
    }

    /// When a content was read last, as far as the file system notes that, or came.
    pub fn last_used(&self, content: ContentId) -> Option<SystemTime> {
        let stat = self.stat(content).ok()??;
        Some(os::time(os::atime_ns(&stat).max(os::mtime_ns(&stat))))
    }

    /// A descriptor to read a content by, from the trash if need be. It stays readable whatever happens to the name.
    ///
    /// # Errors
    /// `ENOENT` when this disk does not hold it; `EIO` when the file has not the expected length or is no regular file.
    pub fn open_content(&self, content: ContentId, expect_size: u64) -> FsResult<File> {
        let file = self.open_as_it_is(content)?;
        let size = fstat(&file).map_err(|errno| fail(errno, "look at", &data_path(content)))?.st_size as u64;
        if size != expect_size {
            return Err(fail::damaged(&data_path(content), &format!("it has {size} bytes, not {expect_size}")));
        }
        Ok(file)
    }

    /// The same for who verifies every byte: it may be damaged, and longer or shorter than it should be.
    ///
    /// # Errors
    /// `ENOENT` when this disk does not hold it; `EIO` when it is no regular file.
    pub fn open_as_it_is(&self, content: ContentId) -> FsResult<File> {
        let open = || self.open_shard(content).and_then(|dir| os::open_file(dir, &content.to_hex(), OFlag::O_RDONLY));
        let file = match open() {
            Err(Errno::ENOENT) => match self.take_back(content)? {
                Some(_) => open(),
                None => {
                    self.missed(content);
                    Err(Errno::ENOENT)
                }
            },
            other => other,
        };
        file.map_err(|errno| fail(errno, "open", &data_path(content)))
    }

    /// [`ContentStore::open_content`] for who does not verify what he reads: a reader, or who makes a new file of it.
    ///
    /// # Errors
    /// As those of [`ContentStore::open_content`]; `EIO` also for what was found to have wrong bytes. What cannot be read in places says
    /// so itself.
    pub fn open_to_read(&self, content: ContentId, expect_size: u64) -> FsResult<File> {
        match self.damage(content) {
            Some(Damage::Wrong) => Err(fail::damaged(&data_path(content), "it is not what its name says")),
            Some(Damage::Unreadable) | None => self.open_content(content, expect_size),
        }
    }

    /// Read a whole content again and compare it with its name.
    ///
    /// # Errors
    /// `EIO` naming the file when it is not what its name says, otherwise as [`ContentStore::open_content`].
    pub fn check(&self, content: ContentId, size: u64) -> FsResult<()> {
        self.check_unless(content, size, &|| false)
    }

    /// The same until `stop` says that nobody wants to know any more: `EBUSY`.
    fn check_unless(&self, content: ContentId, size: u64, stop: &dyn Fn() -> bool) -> FsResult<()> {
        let file = self.open_content(content, size)?;
        let found = hash::hash(&file, size, false, stop).map_err(|e| fail(e, "read", &data_path(content)))?;
        match found.content == content {
            true => Ok(()),
            false => Err(fail::damaged(&data_path(content), &format!("its SHA-256 is {}", found.content))),
        }
    }

    /// The contents in `data/`, in no order. By their names alone: a look at each would cost a seek for every one on a
    /// disk that turns, minutes for a million.
    pub fn held(&self) -> impl Iterator<Item = FsResult<ContentId>> + '_ {
        (0..=255).flat_map(|first: u8| {
            let shard = format!("{first:02x}");
            let names = match os::file_names(self.dir(Dir::Data), &shard) {
                Ok(names) => names,
                Err(Errno::ENOENT) => Vec::new(),
                Err(errno) => return vec![Err(fail(errno, "list", &format!("data/{shard}")))],
            };
            let held = names.iter().filter_map(|name| content_of(name).filter(|content| content.0[0] == first));
            held.map(Ok).collect()
        })
    }

    /// Everything in `data/`, in no order: contents with their lengths, and errors for what should not be there.
    pub fn contents(&self) -> impl Iterator<Item = FsResult<(ContentId, u64)>> + '_ {
        (0..=255).flat_map(|first| self.contents_of(first))
    }

    fn contents_of(&self, first: u8) -> Vec<FsResult<(ContentId, u64)>> {
        let shard = format!("{first:02x}");
        let names = match os::names(self.dir(Dir::Data), &shard) {
            Ok(names) => names,
            Err(Errno::ENOENT) => return Vec::new(),
            Err(errno) => return vec![Err(fail(errno, "list", &format!("data/{shard}")))],
        };
        let look = |name: String| {
            if aside::aside_of(&name).is_some() {
                return None;
            }
            let path = format!("data/{shard}/{}", name.escape_default());
            let Some(content) = content_of(&name).filter(|content| content.0[0] == first) else {
                return Some(Err(fail::damaged(&path, "nothing of this name belongs there")));
            };
            match self.stat(content) {
                Ok(stat) => stat.map(|stat| Ok((content, stat.st_size as u64))),
                Err(errno) => Some(Err(fail(errno, "look at", &path))),
            }
        };
        names.into_iter().filter_map(look).collect()
    }

    /// How much is held. The first call counts what was there when the store was opened.
    pub fn usage(&self) -> Usage {
        let mut sum = Usage::default();
        for (first, shard) in (0..=255).zip(&self.shards) {
            let mut shard = shard.lock();
            let usage = shard.get_or_insert_with(|| {
                let sizes = self.contents_of(first).into_iter().flatten().map(|(_, size)| size);
                sizes.fold(Usage::default(), |sum, size| Usage { contents: sum.contents + 1, bytes: sum.bytes + size })
            });
            sum.contents += usage.contents;
            sum.bytes += usage.bytes;
        }
        sum
    }

    /// Room for new contents.
    pub fn free_space(&self) -> FsResult<Space> {
        let vfs =
            fstatvfs(self.folder.root_fd()).map_err(|errno| fail(errno, "ask for the free space of", "the disk"))?;
        let bytes = |blocks: u64| blocks.saturating_mul(vfs.fragment_size() as u64);
        let available = bytes(vfs.blocks_available() as u64);
        // Without a free inode no file can be made, however many bytes are free. Some file systems count none at all.
        let is_full = vfs.files() > 0 && vfs.files_available() == 0;
        let free = if is_full { 0 } else { available.saturating_sub(self.reserve_bytes) };
        Ok(Space { total: bytes(vfs.blocks() as u64), free, available })
    }

    /// See to it that so much room is left beyond the reserve, which belongs to the catalog: if need be the trash is emptied.
    ///
    /// # Errors
    /// `ENOSPC`, and what the disk says.
    pub fn make_room(&self, bytes: u64) -> FsResult<()> {
        self.with_room(bytes, || Ok(())).map_err(|errno| match errno {
            Errno::ENOSPC | Errno::EDQUOT => FsError::new(errno, "no room to fetch more on this disk"),
            _ => fail(errno, "make room on", "the disk"),
        })
    }

    /// Do something that takes room; when there is none, empty the trash and try once more.
    fn with_room<T>(&self, bytes: u64, act: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match self.in_room(bytes, &act) {
            Err(Errno::ENOSPC | Errno::EDQUOT) if self.purge_trash().is_ok_and(|freed| freed > 0) => {
                self.in_room(bytes, &act)
            }
            other => other,
        }
    }

    /// The same in the room that there is: the trash stays.
    fn in_room<T>(&self, bytes: u64, act: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match self.free_space() {
            Ok(space) if space.free < bytes.max(1) => Err(Errno::ENOSPC),
            _ => act(),
        }
    }

    /// The file of a content in `data/`; what is not a regular file is `ELOOP`.
    fn stat(&self, content: ContentId) -> Result<Option<FileStat>, Errno> {
        let found = self.open_shard(content).and_then(|dir| stat_regular(&dir, &content.to_hex()));
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn open_shard(&self, content: ContentId) -> Result<File, Errno> {
        os::open_dir(self.dir(Dir::Data), &shard_of(content))
    }

    /// Move a file into `data/` over whatever has that name. The caller holds the shard's lock and gives it.
    fn put(&self, shard: &mut Shard, from: Dir, name: &str, content: ContentId) -> Result<(), Errno> {
        let to = match self.open_shard(content) {
            Err(Errno::ENOENT) => {
                match mkdirat(self.dir(Dir::Data), shard_of(content).as_str(), Mode::S_IRWXU) {
                    Ok(()) | Err(Errno::EEXIST) => self.durable.made_shard(),
                    Err(errno) => return Err(errno),
                }
                self.open_shard(content)?
            }
            other => other?,
        };
        let replaced = stat_regular(&to, &content.to_hex()).ok();
        let size = stat_regular(self.dir(from), name)?.st_size as u64;
        renameat(self.dir(from), name, &to, content.to_hex().as_str())?;
        if let Some(usage) = shard {
            usage.contents += u64::from(replaced.is_none());
            usage.bytes = usage.bytes.saturating_sub(replaced.map_or(0, |stat| stat.st_size as u64)) + size;
        }
        self.durable.renamed(content);
        self.keep.finished(content);
        self.drop_aside(&to, content);
        self.damaged.forget(content);
        let is_marked = |stat: FileStat| stat.st_mode & damaged::MARK != 0;
        if from == Dir::Trash && stat_regular(&to, &content.to_hex()).is_ok_and(is_marked) {
            self.damaged.note(content, Damage::Wrong);
        }
        self.tell(content, true);
        Ok(())
    }
}

/// The content a name means.
fn content_of(name: &str) -> Option<ContentId> {
    ContentId::from_hex(name).filter(|content| content.to_hex() == name)
}

/// The inode number a name in `staging/` means.
fn ino_of(name: &str) -> Option<Ino> {
    u64::from_str_radix(name, 16).ok().map(Ino).filter(|ino| ino.to_string() == name)
}

/// What a name stands for, if that is a regular file.
fn stat_regular(at: impl std::os::fd::AsFd, name: &str) -> Result<FileStat, Errno> {
    let stat = fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if os::is_regular(&stat) { Ok(stat) } else { Err(Errno::ELOOP) }
}

#[cfg(test)]
pub(crate) mod tests;
