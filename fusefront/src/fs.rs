//! The file system itself, with no kernel in it: what each operation means in requests to the worker, descriptors and
//! the cache. The adapter calls it for the kernel; tests call it for themselves.
//!
//! Reading order: [`lookup`](self) (names and attributes), `listing` (directories), `names` (what changes them),
//! `open` and `close` (handles), `io`, `setattr`, `xattr`, and `link` for what happens when the worker comes, goes or tells news,
//! and `standin` when that is another disk's; `turn` for how the kernel comes to see it.
//!
//! No lock is held over a request to the worker. Permissions are the kernel's business (default_permissions).

mod close;
mod io;
mod link;
mod listing;
mod lookup;
mod names;
mod open;
mod paged;
mod setattr;
mod standin;
mod turn;
mod xattr;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::Sender;
use delugefs_proto::local_pb::{Attr, StatFsReply};
use delugefs_proto::times::nanoseconds;
use nix::errno::Errno;
use parking_lot::Mutex;

pub use self::listing::{DirEntry, Page};
pub use self::names::{Making, RenameHow};
pub use self::open::{Opened, Opening};
pub use self::paged::Paged;
pub use self::setattr::{Change, Time};
use self::standin::Awaited;
use crate::cache::{Cache, Found, Written};
use crate::call::{Caller, Outcome, Stop};
use crate::handles::{DirHandle, FileHandle, OpenInodes, Table, Writer};
pub use crate::known::Outdated;
use crate::known::{Known, Name};
use crate::worker::{Stamp, Worker};

/// The S_IFMT bits.
pub const S_IFMT: u32 = 0o170_000;
/// Mode bits of a directory.
pub const S_IFDIR: u32 = 0o040_000;
/// Mode bits of a regular file.
pub const S_IFREG: u32 = 0o100_000;
pub(crate) const S_ISUID: u32 = 0o4000;
pub(crate) const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o010;

/// Invalidations waiting for the kernel above which they become one for everything.
const INVALIDATIONS_MAX: usize = 100_000;

/// What the kernel must forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// What it knows of a name, also that there is none.
    Name {
        /// The directory.
        dir: u64,
        /// The name in it.
        name: Box<[u8]>,
    },
    /// An inode's attributes.
    Attr(u64),
    /// What the kernel has of an inode that is not of the current version ([`Fs::renew`]).
    Content(u64),
    /// An inode's attributes and its content, whatever is known of their version.
    Pages(u64),
    /// A directory's attributes, and a listing the kernel may have kept.
    Dir(u64),
    /// Everything.
    All,
}

/// A point in the sequence of what was heard of others' changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News(u64);

/// A point in the sequence of files handed over to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment(u64);

/// The file system. Shared by all threads.
pub struct Fs {
    /// The way to the worker.
    pub worker: Worker,
    cache: Cache,
    known: Known,
    open: OpenInodes,
    /// Counts the files handed over to the worker: attributes read before may lack what was written.
    handovers: AtomicU64,
    /// Counts what was heard of others' changes: see [`Self::news`].
    news: AtomicU64,
    /// Inodes that have a writer, or are being handed over to the worker: spares the search in `open` where there are none.
    writers: AtomicUsize,
    /// Contents being read that are still being fetched: spares the look into each handle where there are none.
    partials: Arc<AtomicUsize>,
    files: Table<FileHandle>,
    dirs: Table<DirHandle>,
    statfs: Mutex<Option<(Instant, StatFsReply)>>,
    invalidations: Sender<Invalidation>,
    flooded: AtomicBool,
    /// Each name the kernel is told is noted.
    notes_names: AtomicBool,
    /// Everything is being closed.
    ending: AtomicBool,
    /// See [`Self::hold_back`].
    holds_back: AtomicBool,
    awaited: Awaited,
}

impl Fs {
    /// A file system served by this worker. What the kernel must forget is sent to `invalidations`.
    pub fn new(worker: Worker, cache_entries: usize, invalidations: Sender<Invalidation>) -> Self {
        Self {
            worker,
            cache: Cache::new(cache_entries),
            known: Known::default(),
            open: OpenInodes::default(),
            handovers: AtomicU64::new(0),
            news: AtomicU64::new(0),
            writers: AtomicUsize::new(0),
            partials: Arc::default(),
            files: Table::default(),
            dirs: Table::default(),
            statfs: Mutex::new(None),
            invalidations,
            flooded: AtomicBool::new(false),
            notes_names: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            holds_back: AtomicBool::new(false),
            awaited: Awaited::default(),
        }
    }

    /// The kernel is being told of this inode; to be called before the answer is sent.
    pub fn remember(&self, attr: &Attr) {
        self.known.remember(attr);
    }

    /// The same, by this name.
    pub fn remember_as(&self, attr: &Attr, dir: u64, name: &[u8]) {
        self.known.remember(attr);
        // By these no name becomes known.
        if self.notes_names() && !matches!(name, b"." | b"..") {
            self.drop_name(self.known.named(attr.ino, dir, name));
        }
    }

    /// The kernel cannot drop all names at once: [`Self::told_names`] are needed. To be called before it is told of any.
    pub fn note_names(&self) {
        self.notes_names.store(true, Ordering::Release);
    }

    fn notes_names(&self) -> bool {
        self.notes_names.load(Ordering::Acquire)
    }

    fn drop_name(&self, name: Option<Name>) {
        if let Some((dir, name)) = name {
            self.invalidate(Invalidation::Name { dir, name });
        }
    }

    /// The kernel has dropped this many references to an inode.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.known.forget(ino, lookups);
    }

    /// Whether the kernel was told of this inode and has not forgotten it.
    pub(crate) fn knows(&self, ino: u64) -> bool {
        self.known.contains(ino)
    }

    /// To be noted before an operation whose result the kernel is told of. If there are other news when the inode has been
    /// remembered, the result may be older than they are, and the kernel was not told of them for it did not know the inode
    /// yet. Without any it is told of those to come.
    pub fn news(&self) -> News {
        News(self.news.load(Ordering::Acquire))
    }

    /// Between taking them in and telling the kernel.
    fn note_news(&self) {
        self.news.fetch_add(1, Ordering::AcqRel);
    }

    /// All inodes the kernel knows.
    pub fn known_inodes(&self) -> Vec<u64> {
        self.known.all()
    }

    /// All names the kernel was told of, with their directories, if they are noted. What is held in memory would not do: that is
    /// less, and forgotten when it may be wrong.
    pub fn told_names(&self) -> Vec<Name> {
        self.known.names()
    }

    /// Nothing remembered is certain any more, up to this stamp.
    fn forget_all(&self, stamp: Stamp) {
        // What is open may be gone, and then nobody can be asked what it was.
        for inode in self.open.all() {
            if let Some(attr) = self.cache.attr(inode.ino) {
                *inode.last.lock() = attr;
            }
        }
        self.cache.reset(stamp);
        // Another worker may have an older version, and when the newer one comes there the pages are not of that.
        self.known.doubt_all_pages();
        self.known.relist_all();
        self.note_news();
    }

    /// Of an answer that has been taken in: what it said of the pages is worth nothing when all was to be forgotten meanwhile.
    fn recheck_pages(&self, ino: u64, link: u64) {
        if !self.cache.follows(link) {
            self.known.doubt_pages(ino);
        }
    }

    /// Number of directory entries held in memory.
    pub fn cached_entries(&self) -> usize {
        self.cache.len()
    }

    /// Number of inodes watched for changes, each for an answer under way or a page of a directory being read.
    pub fn watches(&self) -> usize {
        self.cache.watches()
    }

    /// The inode a name belongs to, as far as that is held in memory.
    pub(crate) fn named(&self, dir: u64, name: &[u8]) -> Option<u64> {
        match self.cache.lookup(dir, name) {
            Found::Node(attr) => Some(attr.ino),
            Found::Stale(ino) => Some(ino),
            Found::Absent | Found::Unknown | Found::UnknownDir => None,
        }
    }

    /// A directory in which the worker finds the inode; 0 if we do not know one.
    fn dir_of(&self, ino: u64) -> u64 {
        self.cache.dir_of(ino).filter(|dir| *dir != 0).or_else(|| self.known.dir_of(ino)).unwrap_or(0)
    }

    /// To be noted before attributes are read that are then given to [`Self::merged`].
    fn moment(&self) -> Moment {
        Moment(self.handovers.load(Ordering::Acquire))
    }

    /// Attributes with what is newer in the staging file, if the inode is being written here. `None` if the file was
    /// handed over to the worker since they were read, and newer ones are not known.
    fn merged(&self, since: Moment, mut attr: Attr) -> Option<Attr> {
        let mut since = since;
        loop {
            if self.writers.load(Ordering::Acquire) > 0
                && let Some(inode) = self.open.get(attr.ino)
            {
                inode.told.store(true, Ordering::Release);
                if let Some(writer) = &*inode.writer.read() {
                    let before = writer.reached();
                    attr = with_stat(attr, writer);
                    writer.ends_at(attr.size, before);
                }
            }
            let now = self.moment();
            if now == since {
                return Some(attr);
            }
            since = now;
            attr = self.known.orphan_attr(attr.ino).or_else(|| self.cache.attr(attr.ino))?;
        }
    }

    /// The same; asks the worker where newer ones are not known.
    fn current(&self, caller: &Caller, since: Moment, attr: Attr) -> Outcome<Attr> {
        match self.merged(since, attr) {
            Some(attr) => Ok(attr),
            None => self.getattr(caller, attr.ino),
        }
    }

    /// Have the kernel forget this soon.
    pub(crate) fn invalidate(&self, what: Invalidation) {
        let what = match self.invalidations.len() {
            0..INVALIDATIONS_MAX => what,
            // The kernel cannot keep up: one for all instead, and nothing until that is carried out.
            _ if self.flooded.swap(true, Ordering::AcqRel) => return,
            _ => Invalidation::All,
        };
        // Nobody listens when there is no mount, as in tests, or no mount any more.
        let _unheard = self.invalidations.send(what);
    }

    /// [`Invalidation::All`] is about to be carried out: later ones are needed again.
    pub fn invalidating_all(&self) {
        self.flooded.store(false, Ordering::Release);
    }
}

/// Attributes with size, blocks and times as the descriptor has them; an fstat that fails changes nothing.
fn with_stat(attr: Attr, writer: &Writer) -> Attr {
    written(writer).map_or(attr, |written| written.over(attr))
}

/// What the descriptor knows better than the worker's answers.
fn written(writer: &Writer) -> Option<Written> {
    let stat = nix::sys::stat::fstat(writer.file()).ok()?;
    // Of the status changes, writes are only known there, and chmod and link only here.
    let ctime = writer.is_changed().then(|| nanoseconds(stat.st_ctime, stat.st_ctime_nsec));
    Some(Written {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        mtime: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        ctime,
        written: ctime,
    })
}

/// The node an answer must have.
fn required(node: Option<Attr>) -> Outcome<Attr> {
    node.ok_or_else(|| {
        let message = "the diskworker's answer lacks the node; are both of the same version?";
        Stop::Failed(delugefs_proto::errno::FsError::new(Errno::EIO, message))
    })
}

/// Whether the worker no longer knows the inode.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ESTALE)
}
