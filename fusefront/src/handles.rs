//! Open files and directories: the numbers the kernel has for them, and what all handles of one inode share.
//!
//! While anybody here writes an inode, there is one descriptor of its staging file, and all its handles read and write
//! through that. When the last writer leaves, the descriptor is closed, so that the worker can seal the file; the
//! handles that remain open the sealed content when they next read. The same happens when somebody else changed the
//! content: the kernel keeps one set of pages per inode, so handles of two versions must not fill it side by side.

use std::fs::File;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use delugefs_proto::local_pb::Attr;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::cache::{InoMap, Snapshot};
use crate::fs::Paged;
use crate::known::{Dropping, Version};
use crate::ranges::Ranges;

const SHARDS: usize = 16;

/// A table of handles by number.
pub struct Table<T> {
    next: AtomicU64,
    shards: [RwLock<InoMap<Arc<T>>>; SHARDS],
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), shards: std::array::from_fn(|_| RwLock::default()) }
    }
}

impl<T> Table<T> {
    fn shard(&self, number: u64) -> &RwLock<InoMap<Arc<T>>> {
        &self.shards[number as usize % SHARDS]
    }

    /// Give it a number.
    pub fn put(&self, value: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(number).write().insert(number, Arc::new(value));
        number
    }

    /// What has this number.
    pub fn get(&self, number: u64) -> Option<Arc<T>> {
        self.shard(number).read().get(&number).cloned()
    }

    /// All numbers in use.
    pub fn numbers(&self) -> Vec<u64> {
        self.shards.iter().flat_map(|shard| shard.read().keys().copied().collect::<Vec<_>>()).collect()
    }

    /// The number is free from now on.
    pub fn take(&self, number: u64) -> Option<Arc<T>> {
        self.shard(number).write().remove(&number)
    }
}

/// An open file.
pub struct FileHandle {
    /// What it shares with the inode's other handles.
    pub inode: Arc<OpenInode>,
    /// Whether it counts among the writers.
    pub writes: bool,
    /// Where it reads when nobody writes.
    pub source: RwLock<Source>,
    /// With its opening the kernel drops the pages it had.
    pub dropping: Option<Dropping>,
    /// The kernel was told to write past its pages.
    pub(crate) direct: AtomicBool,
}

impl FileHandle {
    /// Of an inode that counts it.
    pub fn new(inode: Arc<OpenInode>, writes: bool, source: Source, dropping: Option<Dropping>) -> Self {
        Self { inode, writes, source: RwLock::new(source), dropping, direct: AtomicBool::new(false) }
    }
}

/// Where the content of one version can be read.
#[derive(Default)]
pub struct Source {
    /// Its bytes.
    pub content: Content,
    /// The inode's generation they belong to.
    pub generation: u64,
    /// To be closed with the worker.
    pub ticket: Option<Ticket>,
    /// The version, if it is a known one, and its size in bytes.
    pub version: Option<(Version, u64)>,
    /// The handle is closed: nothing is to be opened for it any more.
    pub released: bool,
}

/// Bytes to read.
#[derive(Default)]
pub enum Content {
    /// Not opened yet.
    #[default]
    None,
    /// A small content, whole.
    Inline(Bytes),
    /// A descriptor.
    File(Arc<File>),
    /// Of a file that is still being fetched.
    Partial(Arc<Partial>),
}

/// A content that is still being fetched: only what the worker has said to be there may be read.
pub struct Partial {
    /// The file it is fetched into.
    pub file: File,
    /// Length of the content, in bytes.
    pub size: u64,
    /// What is there.
    pub here: Mutex<Ranges>,
    count: Arc<AtomicUsize>,
}

impl Partial {
    /// Of which nothing is known to be there. `count` counts those that are open.
    pub fn new(file: File, size: u64, count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self { file, size, here: Mutex::default(), count: count.clone() }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The worker's number for something open, and the link it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Number of the link.
    pub link: u64,
    /// The worker's handle; never 0.
    pub handle: u64,
}

impl Ticket {
    /// Of an answer; a handle of 0 needs no closing.
    pub fn new(link: u64, handle: u64) -> Option<Self> {
        (handle != 0).then_some(Self { link, handle })
    }
}

/// What all handles of one inode share.
pub struct OpenInode {
    /// Its number.
    pub ino: u64,
    /// The staging file, while there are writers. Held for reading during I/O that does not take long: to close the descriptor
    /// is to wait for that, and for its [`Use`]s.
    pub writer: RwLock<Option<Writer>>,
    /// Counts the versions of the content, in steps of two: a source of an older one must be opened anew. The lowest bit is set
    /// when the kernel is given pages.
    generation: AtomicU64,
    /// The version that the kernel was given pages of last, and its size in bytes, if it was a known one.
    given: Mutex<Option<(Version, u64)>>,
    /// Somebody was told the attributes of the staging file since the last write, and may have kept them.
    pub told: AtomicBool,
    /// The attributes we knew last: all that is left when the worker no longer knows the inode.
    pub last: Mutex<Attr>,
    /// To read what the last writer left, for handles that were opened while it wrote: when they come to read, the file may
    /// have lost its name.
    pub kept: Mutex<Option<File>>,
    /// What was heard last of its names was changed through another mount of this disk, and nothing by another host since.
    pub renamed_here: AtomicBool,
    /// It has had two handles at a time.
    shared: AtomicBool,
}

/// The one descriptor through which an inode is written. Who works on it for long takes a [`Use`] of it, and not the lock it is
/// kept in: others would wait behind whoever waits for that, the thread that gives it back to a restarted worker first of all.
pub struct Writer {
    staging: Arc<Staging>,
    /// Handles that can write.
    pub users: AtomicU32,
}

/// What is known of a staging file that is written here.
pub struct Staging {
    file: File,
    changed: AtomicBool,
    sync_failed: AtomicBool,
    mappable: AtomicBool,
    reached: AtomicU64,
    /// To be closed with the worker, after the file.
    ticket: Mutex<Option<Ticket>>,
    uses: Arc<Uses>,
}

/// Counts the [`Use`]s of a staging file.
#[derive(Default)]
pub struct Uses {
    count: Mutex<usize>,
    none: Condvar,
}

/// A staging file in use: it is not closed before this is dropped.
pub struct Use {
    // In this order: who waits for the last one closes the file, and nobody else may have it then.
    staging: Arc<Staging>,
    _counted: Counted,
}

struct Counted(Arc<Uses>);

impl Writer {
    /// Of the first handle that can write.
    pub fn new(file: File, ticket: Option<Ticket>) -> Self {
        let staging = Arc::new(Staging {
            file,
            changed: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            mappable: AtomicBool::new(false),
            reached: AtomicU64::new(0),
            ticket: Mutex::new(ticket),
            uses: Arc::default(),
        });
        Self { staging, users: AtomicU32::new(1) }
    }

    /// Keep it open for something that may take long.
    pub fn in_use(&self) -> Use {
        *self.staging.uses.count.lock() += 1;
        Use { staging: self.staging.clone(), _counted: Counted(self.staging.uses.clone()) }
    }

    /// What to wait for before it can be closed, if it is in use.
    pub fn uses(&self) -> Option<Arc<Uses>> {
        (*self.staging.uses.count.lock() > 0).then(|| self.staging.uses.clone())
    }
}

impl Deref for Writer {
    type Target = Staging;

    fn deref(&self) -> &Staging {
        &self.staging
    }
}

impl Deref for Use {
    type Target = Staging;

    fn deref(&self) -> &Staging {
        &self.staging
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut count = self.0.count.lock();
        *count -= 1;
        if *count == 0 {
            self.0.none.notify_all();
        }
    }
}

impl Uses {
    /// Wait until there are none.
    pub fn wait_for_the_last(&self) {
        let mut count = self.count.lock();
        self.none.wait_while(&mut count, |count| *count > 0);
    }
}

impl Staging {
    /// The staging file, to look at.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The staging file, to change its content.
    pub fn to_change(&self) -> &File {
        self.changed.store(true, Ordering::Release);
        &self.file
    }

    /// The kernel takes the file to be at least so long, in bytes: it has written so far through us.
    pub fn reached(&self) -> u64 {
        self.reached.load(Ordering::Acquire)
    }

    /// It is being answered that what was written ends here.
    pub fn has_reached(&self, end: u64) {
        if self.reached() < end {
            self.reached.fetch_max(end, Ordering::AcqRel);
        }
    }

    /// It was cut to this size.
    pub fn is_cut(&self, size: u64) {
        self.ends_at(size, u64::MAX);
    }

    /// The kernel is being told that it ends here, as was found after [`Self::reached`] was `before`. What was written through us
    /// since then counts for the kernel, too: it throws away a size that it asked for before that.
    ///
    /// Where the two meet the smaller one is taken: of a program that has said where to write, that is then appended; with the larger one
    /// what is to be appended would go over what others have appended.
    pub fn ends_at(&self, size: u64, before: u64) {
        if size < self.reached() {
            let cut = |now: u64| (size < now && now <= before).then_some(size);
            let _left_as_it_is = self.reached.fetch_update(Ordering::AcqRel, Ordering::Acquire, cut);
        }
    }

    /// Whether anybody here may have changed the content.
    pub fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    /// Somebody has it open so that he can change it through a memory map.
    pub fn is_mappable(&self) {
        self.mappable.store(true, Ordering::Release);
    }

    /// Whether the kernel may have changes of it that it has told nobody of.
    pub fn may_be_mapped(&self) -> bool {
        self.mappable.load(Ordering::Acquire)
    }

    /// Bring what was written to stable storage.
    pub fn sync(&self, data_only: bool) -> std::io::Result<()> {
        let synced = if data_only { self.file.sync_data() } else { self.file.sync_all() };
        if synced.is_err() {
            self.sync_failed.store(true, Ordering::Release);
        }
        synced
    }

    /// Whether a sync has failed. The kernel says so once, and then that all is well.
    pub fn is_doubtful(&self) -> bool {
        self.sync_failed.load(Ordering::Acquire)
    }

    /// The worker's number for it.
    pub fn ticket(&self) -> Option<Ticket> {
        *self.ticket.lock()
    }

    /// A worker has been given it back.
    pub fn set_ticket(&self, ticket: Option<Ticket>) {
        *self.ticket.lock() = ticket;
    }
}

impl OpenInode {
    /// The staging file, for something that may take long; `None` while there are no writers.
    pub fn in_use(&self) -> Option<Use> {
        self.writer.read().as_ref().map(Writer::in_use)
    }

    /// Whether it has had two handles at a time since the first of those that it has.
    pub fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Acquire)
    }

    /// The current version of the content.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire) >> 1
    }

    /// What was opened before is another version from now on.
    pub fn content_changed(&self) {
        self.generation.fetch_add(2, Ordering::AcqRel);
    }

    /// The same if this is the current one still: the new one.
    pub fn content_changed_since(&self, generation: u64) -> Option<u64> {
        let changed = |now: u64| (now >> 1 == generation).then_some(now.wrapping_add(2));
        let before = self.generation.fetch_update(Ordering::AcqRel, Ordering::Acquire, changed).ok()?;
        Some(before.wrapping_add(2) >> 1)
    }

    /// The kernel is about to be given pages: the version they have to be of, and whether they are the first since
    /// [`Self::empty`].
    pub fn fill(&self) -> (u64, bool) {
        let before = self.generation.fetch_or(1, Ordering::AcqRel);
        (before >> 1, before & 1 == 0)
    }

    /// The kernel is given pages of this version: whether it was given those of another before.
    pub fn gives(&self, content: Option<(Version, u64)>) -> bool {
        std::mem::replace(&mut *self.given.lock(), content) != content
    }

    /// The version that the kernel was given pages of last, and its size in bytes, if it was a known one.
    pub fn given(&self) -> Option<(Version, u64)> {
        *self.given.lock()
    }

    /// Whether the kernel may have been given pages.
    pub fn is_filled(&self) -> bool {
        self.generation.load(Ordering::Acquire) & 1 == 1
    }

    /// The kernel is about to drop all pages.
    pub fn empty(&self) {
        self.generation.fetch_and(!1, Ordering::AcqRel);
    }

    /// [`Self::content_changed`], unless the kernel was given pages since [`Self::empty`].
    pub fn change_unless_filled(&self) -> bool {
        let changed = |now: u64| (now & 1 == 0).then_some(now.wrapping_add(2));
        self.generation.fetch_update(Ordering::AcqRel, Ordering::Acquire, changed).is_ok()
    }
}

struct Open {
    handles: u32,
    inode: Arc<OpenInode>,
}

/// The inodes that have handles.
pub struct OpenInodes {
    shards: [Mutex<InoMap<Open>>; SHARDS],
}

impl Default for OpenInodes {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl OpenInodes {
    fn shard(&self, ino: u64) -> &Mutex<InoMap<Open>> {
        &self.shards[(ino ^ (ino >> 32)) as usize % SHARDS]
    }

    /// One handle more.
    pub fn acquire(&self, attr: &Attr) -> Arc<OpenInode> {
        let mut shard = self.shard(attr.ino).lock();
        let open = shard.entry(attr.ino).or_insert_with(|| Open {
            handles: 0,
            inode: Arc::new(OpenInode {
                ino: attr.ino,
                writer: RwLock::new(None),
                generation: AtomicU64::new(0),
                given: Mutex::default(),
                told: AtomicBool::new(false),
                last: Mutex::new(*attr),
                kept: Mutex::new(None),
                renamed_here: AtomicBool::new(false),
                shared: AtomicBool::new(false),
            }),
        });
        if open.handles > 0 {
            open.inode.shared.store(true, Ordering::Release);
        }
        open.handles += 1;
        *open.inode.last.lock() = *attr;
        open.inode.clone()
    }

    /// One handle more of an inode that has some. Looking first and acquiring later would not do: the last handle may be
    /// released in between, and then there are two of what all handles share.
    pub fn acquire_open(&self, ino: u64) -> Option<Arc<OpenInode>> {
        let mut shard = self.shard(ino).lock();
        let open = shard.get_mut(&ino)?;
        open.inode.shared.store(true, Ordering::Release);
        open.handles += 1;
        Some(open.inode.clone())
    }

    /// One handle less. Whether it was the last one.
    pub fn release(&self, ino: u64) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(open) = shard.get_mut(&ino) else { return false };
        open.handles -= 1;
        let is_last = open.handles == 0;
        if is_last {
            shard.remove(&ino);
        }
        is_last
    }

    /// Number of the inode's handles.
    pub fn handles(&self, ino: u64) -> u32 {
        self.shard(ino).lock().get(&ino).map_or(0, |open| open.handles)
    }

    /// What the inode's handles share, if it has any.
    pub fn get(&self, ino: u64) -> Option<Arc<OpenInode>> {
        self.shard(ino).lock().get(&ino).map(|open| open.inode.clone())
    }

    /// All inodes that have handles.
    pub fn all(&self) -> Vec<Arc<OpenInode>> {
        self.shards
            .iter()
            .flat_map(|shard| shard.lock().values().map(|open| open.inode.clone()).collect::<Vec<_>>())
            .collect()
    }
}

/// An open directory.
pub struct DirHandle {
    /// Its number.
    pub ino: u64,
    /// The kernel may have kept a listing, or keep what is given through this handle, for this and others.
    pub is_kept: bool,
    /// Where its reader is.
    pub reading: Mutex<Reading>,
    /// Entries to give it at once.
    pub entries: AtomicUsize,
}

/// A reader of a directory.
#[derive(Default)]
pub enum Reading {
    /// It has not begun.
    #[default]
    NotBegun,
    /// It reads what the directory looked like when it began.
    Snapped(Snapped),
    /// It reads page by page.
    Paged(Paged),
}

/// A place in a snapshot.
pub struct Snapped {
    /// The names.
    pub snapshot: Snapshot,
    /// Offset of the next entry.
    pub offset: u64,
    /// The name before it.
    pub after: Option<Box<[u8]>>,
    /// Nothing of it was given: it is what the kernel is thought to have.
    pub is_kernels: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_file_was_found_to_end_undoes_nothing_that_was_written_since() {
        let writer = Writer::new(tempfile::tempfile().unwrap(), None);
        writer.has_reached(100);
        // Two look, and somebody writes before the first one says what it has found.
        let before = writer.reached();
        writer.has_reached(200);
        writer.ends_at(50, before);
        assert_eq!(writer.reached(), 200);
        // Both find it cut, one of them later than the other.
        let before = writer.reached();
        writer.ends_at(60, before);
        writer.ends_at(50, before);
        assert_eq!(writer.reached(), 50);
        writer.ends_at(70, writer.reached());
        assert_eq!(writer.reached(), 50, "nothing is longer by being looked at");
        writer.is_cut(7);
        assert_eq!(writer.reached(), 7);
    }
}
