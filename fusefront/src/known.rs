//! The inodes the kernel knows: those it was told of and has not forgotten. It may ask about them by number at any
//! time, also long after they left the cache, so for each there is a directory the worker can find it in. Inodes that
//! lost their last name while in use live on here, with attributes that are nobody else's any more.

use std::sync::atomic::{AtomicBool, Ordering};

use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb::Attr;
use parking_lot::Mutex;

use crate::cache::InoMap;
use crate::worker::Stamp;

const SHARDS: usize = 16;
/// Names noted of one inode. Whoever gives a file more of them may have the kernel ask for some again.
const NAMES_MAX: usize = 16;

/// A name, with its directory.
pub type Name = (u64, Box<[u8]>);

/// What distinguishes two versions of a file's content; 0 is no version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version(u64);

impl Version {
    /// The version these attributes belong to.
    pub fn of(attr: &Attr) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for part in [attr.size, attr.mtime as u64, attr.ctime as u64] {
            hash = (hash ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 29;
        }
        Self(hash.max(1))
    }
}

/// An open by whose answer the kernel drops the pages it has. That it did so is known when it first comes with the handle: the
/// answer may be on its way for long, and others open the file meanwhile.
#[derive(Debug)]
pub struct Dropping {
    turn: u32,
    /// Nobody has opened this version before: the sources of others are older ones.
    pub is_first: bool,
    is_done: AtomicBool,
}

impl Dropping {
    fn new(turn: u32, is_first: bool) -> Self {
        Self { turn, is_first, is_done: AtomicBool::new(false) }
    }
}

#[derive(Default)]
struct Entry {
    /// References the kernel holds.
    lookups: u64,
    dir: u64,
    /// The version whose pages the kernel has, or will have when it has dropped others.
    pages: Version,
    /// It may not have dropped them yet.
    dropping: bool,
    /// Counts the versions: whoever opened an earlier one had nothing dropped of what came after.
    turn: u32,
    /// Of our own change by which the pages came to be of this version: whatever happened before it may have been missed.
    carried: Option<Stamp>,
    orphan: Option<Box<Attr>>,
    /// The names the kernel has of it, where they are noted.
    names: Vec<Name>,
}

impl Entry {
    /// Gives back what there is no room for.
    fn add_name(&mut self, dir: u64, name: &[u8]) -> Option<Name> {
        if self.names.iter().any(|(at, known)| *at == dir && **known == *name) {
            return None;
        }
        self.names.push((dir, name.into()));
        (self.names.len() > NAMES_MAX).then(|| self.names.remove(0))
    }

    fn take_name(&mut self, dir: u64, name: &[u8]) {
        self.names.retain(|(at, known)| *at != dir || **known != *name);
    }

    fn set_pages(&mut self, pages: Version, dropping: bool) {
        (self.pages, self.dropping, self.turn) = (pages, dropping, self.turn.wrapping_add(1));
    }
}

/// The table. Shared by all threads.
pub struct Known {
    shards: [Mutex<InoMap<Entry>>; SHARDS],
}

impl Default for Known {
    /// The root is known to the kernel without having been looked up, and as long as there is a mount.
    fn default() -> Self {
        let known = Self { shards: std::array::from_fn(|_| Mutex::default()) };
        let root = Entry { lookups: u64::MAX / 2, ..Entry::default() };
        known.shard(Ino::ROOT.0).lock().insert(Ino::ROOT.0, root);
        known
    }
}

impl Known {
    fn shard(&self, ino: u64) -> &Mutex<InoMap<Entry>> {
        &self.shards[(ino ^ (ino >> 32)) as usize % SHARDS]
    }

    /// The kernel is being told of the inode.
    pub fn remember(&self, attr: &Attr) {
        let mut shard = self.shard(attr.ino).lock();
        let entry = shard.entry(attr.ino).or_default();
        entry.lookups += 1;
        if attr.nlink > 0 {
            // It has a name again: what was removed elsewhere may come back with a change made there meanwhile.
            entry.orphan = None;
        }
        if attr.dir != 0 {
            entry.dir = attr.dir;
        }
    }

    /// The kernel has dropped this many references.
    pub fn forget(&self, ino: u64, lookups: u64) {
        let mut shard = self.shard(ino).lock();
        if let Some(entry) = shard.get_mut(&ino) {
            entry.lookups = entry.lookups.saturating_sub(lookups);
            if entry.lookups == 0 {
                shard.remove(&ino);
            }
        }
    }

    /// The kernel is being told of an inode by this name. Its oldest one is given back when it has too many: it is not noted any
    /// more, and the kernel has to drop it.
    pub fn named(&self, ino: u64, dir: u64, name: &[u8]) -> Option<Name> {
        self.shard(ino).lock().get_mut(&ino).and_then(|entry| entry.add_name(dir, name))
    }

    /// The same when it is given one name in the place of another.
    pub fn renamed(&self, ino: u64, (dir, name): (u64, &[u8]), (dir2, name2): (u64, &[u8])) -> Option<Name> {
        let mut shard = self.shard(ino).lock();
        let entry = shard.get_mut(&ino)?;
        entry.take_name(dir, name);
        entry.add_name(dir2, name2)
    }

    /// The kernel has one name less.
    pub fn unnamed(&self, ino: u64, dir: u64, name: &[u8]) {
        if let Some(entry) = self.shard(ino).lock().get_mut(&ino) {
            entry.take_name(dir, name);
        }
    }

    /// All names noted.
    pub fn names(&self) -> Vec<Name> {
        let of = |shard: &Mutex<InoMap<Entry>>| {
            shard.lock().values().flat_map(|entry| entry.names.iter().cloned()).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of).collect()
    }

    /// Whether the kernel knows the inode.
    pub fn contains(&self, ino: u64) -> bool {
        self.shard(ino).lock().contains_key(&ino)
    }

    /// A directory that held the inode when the kernel was told of it or later.
    pub fn dir_of(&self, ino: u64) -> Option<u64> {
        self.shard(ino).lock().get(&ino).map(|entry| entry.dir)
    }

    /// The inode is to be found in another directory now.
    pub fn moved(&self, attr: &Attr) {
        if let Some(entry) = self.shard(attr.ino).lock().get_mut(&attr.ino) {
            entry.dir = attr.dir;
        }
    }

    /// The version whose pages the kernel has; none while it may have others.
    pub fn pages(&self, ino: u64) -> Option<Version> {
        let pages = |entry: &Entry| if entry.dropping { Version::default() } else { entry.pages };
        self.shard(ino).lock().get(&ino).map(pages)
    }

    /// The inode is being opened with this version. `None` when the pages the kernel has are of the same one, and stay.
    pub fn opened(&self, ino: u64, version: Version) -> Option<Dropping> {
        let mut shard = self.shard(ino).lock();
        let Some(entry) = shard.get_mut(&ino) else { return Some(Dropping::new(0, true)) };
        let is_other = entry.pages != version || version == Version::default();
        if is_other {
            entry.set_pages(version, true);
        }
        entry.dropping.then(|| Dropping::new(entry.turn, is_other))
    }

    /// The same with the version it was last opened with, as it is being written here.
    pub fn joined(&self, ino: u64) -> Option<Dropping> {
        let shard = self.shard(ino).lock();
        shard.get(&ino).filter(|entry| entry.dropping).map(|entry| Dropping::new(entry.turn, false))
    }

    /// The kernel has come with a handle of this open.
    pub fn dropped(&self, ino: u64, dropping: &Dropping) {
        // Asked at each read.
        if dropping.is_done.load(Ordering::Relaxed) || dropping.is_done.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(entry) = self.shard(ino).lock().get_mut(&ino)
            && entry.turn == dropping.turn
        {
            entry.dropping = false;
        }
    }

    /// The pages the kernel has are of this version: they were written through this mount.
    pub fn written(&self, ino: u64, version: Version) {
        if let Some(entry) = self.shard(ino).lock().get_mut(&ino) {
            entry.set_pages(version, false);
        }
    }

    /// We changed attributes; of the content we changed nothing but what the kernel does to its pages itself. `at` is the
    /// answer's.
    pub fn same_content(&self, ino: u64, before: Version, after: Version, at: Stamp) {
        if let Some(entry) = self.shard(ino).lock().get_mut(&ino)
            && entry.pages == before
        {
            (entry.pages, entry.carried) = (after, Some(at));
        }
    }

    /// Somebody else changed the inode at this moment. If that was before a change of ours that the pages were taken to have
    /// gone through unchanged, they are of no version.
    pub fn changed_elsewhere(&self, ino: u64, at: Stamp) {
        if let Some(entry) = self.shard(ino).lock().get_mut(&ino)
            && entry.carried.is_some_and(|carried| carried.link == at.link && at.seq < carried.seq)
        {
            entry.set_pages(Version::default(), true);
        }
    }

    /// The pages the kernel has are of no version we know.
    pub fn doubt_pages(&self, ino: u64) {
        if let Some(entry) = self.shard(ino).lock().get_mut(&ino) {
            entry.set_pages(Version::default(), true);
        }
    }

    /// The same of all inodes.
    pub fn doubt_all_pages(&self) {
        for shard in &self.shards {
            shard.lock().values_mut().for_each(|entry| entry.set_pages(Version::default(), true));
        }
    }

    /// The inode has lost its last name. Kept for as long as the kernel knows it.
    pub fn orphan(&self, attr: Attr) {
        if let Some(entry) = self.shard(attr.ino).lock().get_mut(&attr.ino) {
            entry.orphan = Some(Box::new(Attr { nlink: 0, ..attr }));
        }
    }

    /// The attributes of an inode without a name.
    pub fn orphan_attr(&self, ino: u64) -> Option<Attr> {
        self.shard(ino).lock().get(&ino).and_then(|entry| entry.orphan.as_deref().copied())
    }

    /// Change the attributes of an inode without a name. What they are then.
    pub fn amend_orphan(&self, ino: u64, change: impl FnOnce(&mut Attr)) -> Option<Attr> {
        let mut shard = self.shard(ino).lock();
        let attr = shard.get_mut(&ino)?.orphan.as_deref_mut()?;
        change(attr);
        Some(*attr)
    }

    /// All inodes the kernel knows.
    pub fn all(&self) -> Vec<u64> {
        self.shards.iter().flat_map(|shard| shard.lock().keys().copied().collect::<Vec<_>>()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_until_the_last_reference_is_forgotten() {
        let known = Known::default();
        let attr = Attr { ino: 77, nlink: 1, dir: 1, size: 3, ..Attr::default() };
        known.remember(&attr);
        known.remember(&attr);
        known.orphan(attr);
        known.forget(77, 1);
        assert_eq!(known.orphan_attr(77).map(|attr| (attr.size, attr.nlink)), Some((3, 0)));
        assert_eq!(known.amend_orphan(77, |attr| attr.mode = 7).map(|attr| attr.mode), Some(7));
        known.remember(&attr);
        assert_eq!(known.orphan_attr(77), None, "it has a name again");
        known.forget(77, 2);
        assert_eq!((known.orphan_attr(77), known.dir_of(77), known.contains(77)), (None, None, false));
    }

    #[test]
    fn names_are_noted_as_long_as_the_kernel_has_them() {
        let known = Known::default();
        assert_eq!(known.named(77, 1, b"a"), None, "the kernel was told of none");
        assert_eq!(known.names(), []);
        known.remember(&Attr { ino: 77, nlink: 1, ..Attr::default() });
        let names = |names: &[(u64, &str)]| -> Vec<Name> {
            names.iter().map(|(dir, name)| (*dir, Box::from(name.as_bytes()))).collect()
        };
        for name in [b"a", b"b", b"a"] {
            assert_eq!(known.named(77, 1, name), None);
        }
        assert_eq!(known.names(), names(&[(1, "a"), (1, "b")]));
        assert_eq!(known.renamed(77, (1, b"a"), (2, b"c")), None);
        known.unnamed(77, 2, b"b");
        assert_eq!(known.names(), names(&[(1, "b"), (2, "c")]));
        known.unnamed(77, 1, b"b");
        let dropped: Vec<Name> = (0..16).filter_map(|n| known.named(77, 3, &[n])).collect();
        assert_eq!(dropped, names(&[(2, "c")]));
        known.forget(77, 1);
        assert_eq!(known.names(), []);
    }

    #[test]
    fn pages_are_of_a_version_when_the_kernel_has_come_with_a_handle_of_it() {
        let known = Known::default();
        let attr = Attr { ino: 77, nlink: 1, dir: 1, size: 3, ..Attr::default() };
        let (old, new) = (Version::of(&attr), Version::of(&Attr { size: 4, ..attr }));
        known.remember(&attr);
        assert!(known.joined(77).is_none(), "it has none yet");
        let first = known.opened(77, old).unwrap();
        assert!(first.is_first);
        let second = known.opened(77, old).unwrap();
        assert!(!second.is_first && known.joined(77).is_some());
        assert_eq!(known.pages(77), Some(Version::default()));
        // Whichever comes first.
        known.dropped(77, &second);
        assert_eq!(known.pages(77), Some(old));
        assert!(known.opened(77, old).is_none() && known.joined(77).is_none());
        let third = known.opened(77, new).unwrap();
        known.dropped(77, &first);
        assert_eq!(known.pages(77), Some(Version::default()), "that was another version");
        known.doubt_pages(77);
        let fourth = known.opened(77, new).unwrap();
        known.dropped(77, &third);
        assert_eq!(known.pages(77), Some(Version::default()), "something came in between");
        known.dropped(77, &fourth);
        assert_eq!(known.pages(77), Some(new));
        // Of what is no version nothing is kept, however often it is opened.
        let none = known.opened(77, Version::default()).unwrap();
        known.dropped(77, &none);
        assert!(known.opened(77, Version::default()).is_some_and(|dropping| dropping.is_first));
    }
}
