//! What this frontend remembers of the file system: whole directories (name -> inode number) and the attributes of
//! the inodes in them, each inode once however many names it has. Bounded by the total number of entries; the
//! directories used longest ago go first. No requests are made here and no lock outlives a call.
//!
//! Two histories meet here: answers to our own requests, and events about what others did. Both carry the worker's
//! change counter, and they arrive on different threads, so an answer may come in after an event that is newer. Rules:
//! - An inode's attributes are replaced only by newer ones.
//! - A listing is kept only if no change of its directory newer than its oldest page has been seen meanwhile
//!   ([`Cache::begin_fetch`], [`Cache::finish_fetch`]).
//! - An answer older than the newest event is not trusted: the names it mentions become unknown ("holes", to be asked
//!   for one by one) and its inodes stale.
//! - A file that was written here is what it was when its last writer left, until the worker has answered to that: an
//!   answer made earlier may come in later, and the counter does not move while a file is written.
//! - A new link starts with nothing: events were missed while the old one was lost.

mod state;

use std::collections::BTreeMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use delugefs_proto::local_pb::{Attr, Changed, Entry};
use parking_lot::RwLock;

use self::state::State;
pub(crate) use self::state::kind_of;
pub use self::state::{Patch, Written};
use crate::worker::Stamp;

/// Default bound on cached directory entries: with names of usual length, and what is noted of as many inodes that the kernel knows,
/// about 110 MB.
pub const CAPACITY_ENTRIES: usize = 180_000;

/// A map keyed by inode numbers, which are random already: one multiplication spreads the small ones too.
pub type InoMap<V> = std::collections::HashMap<u64, V, BuildHasherDefault<InoHasher>>;

/// See [`InoMap`].
#[derive(Default)]
pub struct InoHasher(u64);

impl Hasher for InoHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, ino: u64) {
        let mixed = (self.0 ^ ino).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// What a directory says about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// The inode it names.
    pub ino: u64,
    /// Its kind: the S_IFMT bits shifted down by 12. An inode never changes it.
    pub kind: u8,
}

impl Item {
    /// A name of this node.
    pub fn of(attr: &Attr) -> Self {
        Self { ino: attr.ino, kind: kind_of(attr.mode) }
    }
}

/// The names of a directory, in byte order.
pub type List = BTreeMap<Box<[u8]>, Item>;

/// The names of a directory at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Shared with the cache, which copies it before it changes.
    pub list: Arc<List>,
    /// The directory this one is in.
    pub parent: u64,
}

/// What has become of a name in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Standing {
    /// It is gone.
    Gone,
    /// It must be asked for.
    Unknown,
    /// It is there, and belongs to this node, which may be another one than before.
    Known(Attr),
}

/// What the cache knows about a name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Found {
    /// It names this node.
    Node(Attr),
    /// It names this inode, whose attributes must be asked for.
    Stale(u64),
    /// There is no such name.
    Absent,
    /// Ask for this name.
    Unknown,
    /// Nothing is known of the directory.
    UnknownDir,
}

/// A question on its way. To be ended by one of the functions that take it.
#[derive(Debug)]
pub struct Fetch {
    id: u64,
    link: u64,
    dir: u64,
}

/// A listing that came in.
#[derive(Debug, Default)]
pub struct Fetched {
    /// All pages, in order, each with its stamp's counter.
    pub pages: Vec<(u64, Vec<Entry>)>,
    /// The directory this one is in.
    pub parent: u64,
    /// False when the caller gave up because there are too many entries: only that is remembered.
    pub complete: bool,
}

/// The cache. Shared by all threads.
pub struct Cache {
    state: RwLock<State>,
    capacity: usize,
}

impl Cache {
    /// An empty cache for this many directory entries.
    pub fn new(capacity: usize) -> Self {
        Self { state: RwLock::default(), capacity }
    }

    /// A directory with more entries than this is read page by page and never held whole.
    pub fn held_entries(&self) -> usize {
        self.capacity / 4
    }

    /// A directory with more entries than this is not loaded for a lookup, but asked name by name.
    pub fn looked_up_entries(&self) -> usize {
        self.capacity / 8
    }

    /// Forget everything known up to this stamp, and follow its link.
    pub fn reset(&self, stamp: Stamp) {
        self.state.write().reset(stamp);
    }

    /// What is known of a name in a directory.
    pub fn lookup(&self, dir: u64, name: &[u8]) -> Found {
        self.state.read().lookup(dir, name)
    }

    /// Whether this directory is known to have too many entries for lookups to load it.
    pub fn is_big(&self, dir: u64) -> bool {
        self.state.read().dirs.get(&dir).is_some_and(|dir| dir.big)
    }

    /// The inode's attributes, unless unknown or stale.
    pub fn attr(&self, ino: u64) -> Option<Attr> {
        self.state.read().nodes.get(&ino).filter(|node| node.fresh).map(|node| node.attr)
    }

    /// A directory that held one name of the inode when we last heard of it.
    pub fn dir_of(&self, ino: u64) -> Option<u64> {
        self.state.read().nodes.get(&ino).map(|node| node.attr.dir)
    }

    /// Whether the inode is known to have no extended attributes.
    pub fn has_no_xattrs(&self, ino: u64) -> bool {
        self.state.read().nodes.get(&ino).is_some_and(|node| node.no_xattrs)
    }

    /// The names of a directory, if all are known.
    pub fn snapshot(&self, dir: u64) -> Option<Snapshot> {
        self.state.read().snapshot(dir)
    }

    /// Whether all names of a directory are known, and are so.
    pub fn is_known_whole(&self, dir: u64, are_so: impl FnOnce(&List) -> bool) -> bool {
        let state = self.state.read();
        state.dirs.get(&dir).is_some_and(|dir| dir.complete && dir.holes.is_empty() && are_so(&dir.list))
    }

    /// The names of a directory that must be asked for before there can be a snapshot.
    pub fn holes(&self, dir: u64) -> Vec<Box<[u8]>> {
        let state = self.state.read();
        state.dirs.get(&dir).map(|dir| dir.holes.iter().cloned().collect()).unwrap_or_default()
    }

    /// For names taken from a snapshot of a directory: what they are now.
    pub fn standings<'a>(
        &self,
        dir: u64,
        snapshot: &Snapshot,
        items: impl Iterator<Item = (&'a [u8], Item)>,
        mut each: impl FnMut(&'a [u8], Standing),
    ) {
        let state = self.state.read();
        let now = state.dirs.get(&dir);
        let is_unchanged = now.is_some_and(|dir| dir.complete && Arc::ptr_eq(&dir.list, &snapshot.list));
        for (name, before) in items {
            let item = if is_unchanged { Some(before) } else { now.and_then(|dir| dir.list.get(name)).copied() };
            // Only a complete list says that a name is gone.
            let is_gone = item.is_none() && now.is_some_and(|dir| dir.complete && !dir.holes.contains(name));
            let node = item.and_then(|item| state.nodes.get(&item.ino)).filter(|node| node.fresh);
            let known = node.map_or(Standing::Unknown, |node| Standing::Known(node.attr));
            each(name, if is_gone { Standing::Gone } else { known });
        }
    }

    /// Take in what an answer says.
    pub fn apply(&self, stamp: Stamp, patch: impl FnOnce(&mut Patch<'_>)) {
        let mut state = self.state.write();
        if stamp.link == state.link {
            patch(&mut Patch::new(&mut state, stamp.seq));
            state.trim(self.capacity);
        }
    }

    /// A file that was written here is being handed over to the worker: from now on this is its size, whatever answers say
    /// that were made before. A number for [`Cache::end_hand_over`], and the attributes, if they are held.
    pub fn begin_hand_over(&self, ino: u64, written: Written) -> (u64, Option<Attr>) {
        self.state.write().begin_hand_over(ino, written)
    }

    /// The worker's answer to it has come (or none will). It counts unless the file was written and handed over again since;
    /// then what was handed over is given back, with our own changes since.
    pub fn end_hand_over(&self, stamp: Stamp, ino: u64, number: u64, node: Option<Attr>) -> Option<Written> {
        let mut state = self.state.write();
        let written = state.end_hand_over(ino, number, node.map(|_| stamp.seq))?;
        if stamp.link == state.link {
            Patch::new(&mut state, stamp.seq).handed_over(node);
            state.trim(self.capacity);
        }
        Some(written)
    }

    /// Whether this is the link whose worker's history is held.
    pub fn follows(&self, link: u64) -> bool {
        self.state.read().link == link
    }

    /// Whether something newer than an answer has been heard of: an event after it, or another link.
    pub fn is_late(&self, stamp: Stamp) -> bool {
        let state = self.state.read();
        stamp.link != state.link || stamp.seq < state.newest_event
    }

    /// Inodes being watched.
    pub fn watches(&self) -> usize {
        self.state.read().fetches.len()
    }

    /// Start watching an inode, before something is asked about it: a directory for changes of its names, another for
    /// changes of its attributes.
    pub fn begin_fetch(&self, dir: u64) -> Fetch {
        let mut state = self.state.write();
        let id = state.begin_fetch(dir);
        Fetch { id, link: state.link, dir }
    }

    /// Keep what came, if it is not older than what was seen meanwhile. Whether it was kept.
    pub fn finish_fetch(&self, fetch: &Fetch, link: u64, fetched: Fetched) -> bool {
        let mut state = self.state.write();
        let watched = state.end_fetch(fetch.id);
        let Some(watched) = watched.filter(|_| link == fetch.link && state.link == link) else { return false };
        let kept = state.keep(fetch.dir, &watched, fetched);
        state.trim(self.capacity);
        kept
    }

    /// Whether nothing was seen to change in a watched directory, neither names nor inodes, since this counter.
    pub fn is_quiet_since(&self, fetch: &Fetch, seq: u64) -> bool {
        let state = self.state.read();
        state.link == fetch.link && state.fetches.get(&fetch.id).is_some_and(|watched| watched.is_quiet_since(seq))
    }

    /// A name was found to be absent. Answers that say so tell no time, so this counts only if nothing was seen to
    /// happen to the directory since before the question.
    pub fn finish_absent(&self, fetch: &Fetch, link: u64, name: &[u8]) {
        let mut state = self.state.write();
        let watched = state.end_fetch(fetch.id);
        if watched.is_some_and(|watched| watched.is_quiet()) && link == fetch.link && state.link == link {
            state.take_name(fetch.dir, name);
        }
    }

    /// Nothing is known of a name any more: whoever asks for it next is told what the worker says.
    pub fn forget_name(&self, dir: u64, name: &[u8]) {
        self.state.write().make_hole(dir, name);
    }

    /// Whoever asks for this inode next, by a name of it too, is told what the worker says.
    pub fn doubt(&self, ino: u64) {
        self.state.write().make_stale(ino);
    }

    /// The inode's extended attributes are known to be none; the same holds for this answer.
    pub fn finish_no_xattrs(&self, fetch: &Fetch, link: u64) {
        let mut state = self.state.write();
        let watched = state.end_fetch(fetch.id);
        if watched.is_some_and(|watched| watched.is_quiet()) && link == fetch.link && state.link == link {
            state.set_no_xattrs(fetch.dir);
        }
    }

    /// Stop watching. Whether nothing happened to the inode meanwhile.
    pub fn finish_quiet(&self, fetch: &Fetch) -> bool {
        let mut state = self.state.write();
        state.link == fetch.link && state.end_fetch(fetch.id).is_some_and(|watched| watched.is_quiet())
    }

    /// Stop watching; the fetch failed.
    pub fn drop_fetch(&self, fetch: &Fetch) {
        self.state.write().end_fetch(fetch.id);
    }

    /// Take in one change by others.
    pub fn event(&self, stamp: Stamp, changed: &Changed) {
        let mut state = self.state.write();
        if stamp.link == state.link {
            state.event(stamp.seq, changed);
        }
    }

    /// Number of entries held, for tests and logs.
    pub fn len(&self) -> usize {
        self.state.read().entries
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(size: u64) -> Attr {
        Attr { ino: 77, size, ..Attr::default() }
    }

    fn stamp(seq: u64) -> Stamp {
        Stamp { link: 1, seq }
    }

    #[test]
    fn what_was_written_is_not_undone_by_answers_that_were_made_before() {
        let cache = Cache::new(100);
        cache.reset(stamp(0));
        let size = || cache.attr(77).map(|attr| attr.size);
        let late = |seq, size| cache.apply(stamp(seq), |patch| patch.node(Some(attr(size))));
        late(5, 0);
        let written = |size| Written { size, blocks: 8, mtime: 9, ctime: None, written: None };
        let (first, before) = cache.begin_hand_over(77, written(10));
        assert_eq!((before.map(|attr| attr.size), size()), (Some(10), Some(10)));
        // Asked before the writing, with the counter of then, or of another change since.
        late(5, 0);
        late(6, 3);
        assert_eq!(size(), Some(10));
        // Written and handed over again before the first answer is there: that one is of no use any more.
        let (second, _) = cache.begin_hand_over(77, written(20));
        assert_eq!(cache.end_hand_over(stamp(6), 77, first, Some(attr(10))), None);
        assert_eq!(size(), Some(20));
        assert_eq!(cache.end_hand_over(stamp(6), 77, second, Some(attr(20))), Some(written(20)));
        // The counter has not moved: nothing says whether these were made before or after.
        late(6, 10);
        late(5, 0);
        assert_eq!(size(), Some(20));
        late(7, 30);
        assert_eq!(size(), Some(30));
        // Nothing is held of it when it is handed over.
        let (third, before) = cache.begin_hand_over(78, written(40));
        assert!(before.is_none());
        cache.apply(stamp(7), |patch| patch.node(Some(Attr { ino: 78, ..attr(0) })));
        assert_eq!(cache.attr(78).map(|attr| attr.size), Some(40));
        // No answer comes: what was put over an answer is asked for again.
        assert!(cache.end_hand_over(stamp(0), 78, third, None).is_some());
        assert_eq!(cache.attr(78), None);
        // Removed before the answer is there: nothing brings it back.
        let (fourth, _) = cache.begin_hand_over(79, written(50));
        assert!(cache.end_hand_over(stamp(8), 79, fourth, Some(Attr { ino: 79, ..attr(50) })).is_some());
        assert_eq!(cache.attr(79), None);
    }

    #[test]
    fn what_was_listed_before_a_hand_over_is_not_taken_for_what_is_after_it() {
        let cache = Cache::new(100);
        cache.reset(stamp(0));
        let page = cache.begin_fetch(1);
        assert!(cache.is_quiet_since(&page, 5));
        // The counter does not move while a file is written, and of this one nothing is held.
        let (number, _) =
            cache.begin_hand_over(77, Written { size: 10, blocks: 8, mtime: 9, ctime: None, written: None });
        assert!(!cache.is_quiet_since(&page, 5));
        let page = cache.begin_fetch(1);
        assert!(cache.is_quiet_since(&page, 5));
        assert!(cache.end_hand_over(stamp(5), 77, number, Some(attr(10))).is_some());
        assert!(!cache.is_quiet_since(&page, 5));
    }

    #[test]
    fn our_own_changes_count_while_a_file_is_handed_over() {
        for closed_at in [6, 8] {
            let cache = Cache::new(100);
            cache.reset(stamp(0));
            let told = || cache.attr(77).map(|attr| (attr.size, attr.mtime));
            cache.apply(stamp(5), |patch| patch.node(Some(attr(0))));
            let (number, _) =
                cache.begin_hand_over(77, Written { size: 10, blocks: 8, mtime: 9, ctime: Some(9), written: None });
            cache.apply(stamp(7), |patch| patch.changed(Attr { mtime: 3, ..attr(10) }, false));
            assert_eq!(told(), Some((10, 3)));
            cache.apply(stamp(7), |patch| patch.changed(Attr { mtime: 4, ..attr(30) }, true));
            assert_eq!(told(), Some((30, 4)));
            let node = Attr { mtime: closed_at as i64, ..attr(10) };
            let handed = cache.end_hand_over(stamp(closed_at), 77, number, Some(node)).unwrap();
            assert_eq!((handed.size, handed.mtime), (30, 4));
            // The worker made the change before the hand-over, and this is what it made of both, or after it, and then
            // it is asked.
            assert_eq!(told(), (closed_at == 8).then_some((10, 8)));
        }
    }
}
