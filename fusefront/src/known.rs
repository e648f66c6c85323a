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

    /// What distinguishes these attributes from others of the inode, whether its content is another or not.
    fn of_all(attr: &Attr) -> Self {
        let others = [attr.mode, attr.uid, attr.gid, attr.nlink].map(u64::from);
        let mut hash = Self::of(attr).0;
        for part in others.into_iter().chain([attr.blocks, attr.atime as u64]) {
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
    /// Newest answer that the inode was opened by.
    opened_by: Option<Stamp>,
    /// Of our own change by which the pages came to be of this version: whatever happened before it may have been missed.
    carried: Option<Stamp>,
    orphan: Option<Box<Attr>>,
    /// The names the kernel has of it, where they are noted.
    names: Vec<Name>,
    /// The size the kernel has, in bytes, if it was ever told one.
    size: Option<u64>,
    /// The attributes it has, all of them; none when it has to ask for them.
    told: Version,
    /// Counts how often it was told.
    tellings: u32,
    /// The same of the size it had, in the place of a newer one.
    held_back: u32,
    /// It was told others since it dropped them last. Of two answers on their way at the same time it may have taken the older
    /// one, and thrown away the newer.
    mixed: bool,
    /// It may have pages.
    filled: bool,
    /// Counts how often it was noted that it is given some.
    fillings: u32,
    /// When the content that was shown of it was written.
    shown: i64,
    /// Of a directory: it changed since it was last opened.
    relist: bool,
}

/// What the kernel has of an inode that is not what it is about to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outdated {
    /// Attributes.
    Attributes,
    /// Pages, and perhaps attributes.
    Pages,
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

    /// The version whose pages the kernel has; none while it may have others.
    fn pages(&self) -> Version {
        if self.dropping { Version::default() } else { self.pages }
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
        self.shard(ino).lock().get(&ino).map(Entry::pages)
    }

    /// The inode is opened with this version to be read through a handle that there is already. Whether what was opened last, or
    /// read, is another one.
    pub fn reopened(&self, ino: u64, version: Version) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(entry) = shard.get_mut(&ino).filter(|entry| entry.pages != version) else { return false };
        if !entry.filled {
            entry.pages = version;
        }
        true
    }

    /// The kernel is about to be told these attributes. If it has pages of another version, their size would be put on those: then
    /// the size it was told before is given back, for it to be told again. `has_pages` says whether it has some by the handles that are
    /// open; it is given whether they are of another version than the one that was opened last.
    pub fn tell(&self, attr: &Attr, has_pages: impl FnOnce(bool) -> bool) -> Option<u64> {
        let mut shard = self.shard(attr.ino).lock();
        let (entry, version) = (shard.get_mut(&attr.ino)?, Version::of(attr));
        let other = entry.size.filter(|size| *size != attr.size);
        let is_of_other = other.is_some() && entry.pages() != version;
        match other {
            Some(size) if is_of_other && (entry.filled || has_pages(entry.pages != version)) => {
                entry.held_back = entry.held_back.wrapping_add(1);
                Some(size)
            }
            _ => {
                entry.shown = attr.written;
                let all = Version::of_all(attr);
                entry.mixed |= entry.told != Version::default() && entry.told != all;
                (entry.size, entry.told) = (Some(attr.size), all);
                entry.tellings = entry.tellings.wrapping_add(1);
                None
            }
        }
    }

    /// These attributes are shown to users.
    pub fn show(&self, attr: &Attr) {
        if let Some(entry) = self.shard(attr.ino).lock().get_mut(&attr.ino) {
            entry.shown = attr.written;
        }
    }

    /// All inodes, and when the contents that were shown of them were written.
    pub fn shown(&self) -> Vec<(u64, i64)> {
        let of = |shard: &Mutex<InoMap<Entry>>| {
            shard.lock().iter().map(|(ino, entry)| (*ino, entry.shown)).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of).collect()
    }

    /// How often the kernel was told the attributes.
    pub fn tellings(&self, ino: u64) -> u32 {
        self.shard(ino).lock().get(&ino).map_or(0, |entry| entry.tellings)
    }

    /// How often the kernel was told the size it had, in the place of a newer one.
    pub fn held_back(&self, ino: u64) -> u32 {
        self.shard(ino).lock().get(&ino).map_or(0, |entry| entry.held_back)
    }

    /// The kernel has dropped the attributes that it had when it was told so often.
    pub fn dropped_attr(&self, ino: u64, tellings: u32) {
        let mut shard = self.shard(ino).lock();
        let Some(entry) = shard.get_mut(&ino) else { return };
        match entry.tellings.wrapping_sub(tellings) {
            0 => (entry.told, entry.mixed) = (Version::default(), false),
            // Nothing that was on its way before counts.
            1 => entry.mixed = false,
            _ => {}
        }
    }

    /// The kernel has taken this size for itself, for it is of what it wrote or cut; of the pages it has too.
    pub fn sized(&self, ino: u64, size: u64) {
        if let Some(entry) = self.shard(ino).lock().get_mut(&ino) {
            (entry.size, entry.filled) = (Some(size), true);
            entry.fillings = entry.fillings.wrapping_add(1);
        }
    }

    /// What the kernel has that is not of the version with these attributes. `version` is that of the content: none if it is of
    /// no known one.
    /// `has_pages` says whether the kernel has pages by the handles that are open.
    pub fn outdated(&self, attr: &Attr, version: Version, has_pages: impl FnOnce() -> bool) -> Option<Outdated> {
        let shard = self.shard(attr.ino).lock();
        let entry = shard.get(&attr.ino)?;
        if (entry.filled || has_pages()) && (entry.pages() != version || version == Version::default()) {
            return Some(Outdated::Pages);
        }
        let is_old = entry.told != Version::of_all(attr) || entry.mixed || version == Version::default();
        (is_old && entry.told != Version::default()).then_some(Outdated::Attributes)
    }

    /// Whether the kernel may have pages.
    pub fn is_filled(&self, ino: u64) -> bool {
        self.shard(ino).lock().get(&ino).is_some_and(|entry| entry.filled)
    }

    /// The kernel is being given pages, the first ones since [`Self::emptied`] or others than those: of this version and size, if
    /// they are of one. Whether it has pages of more than one version by that. `is_overtaken` says whether somebody has opened
    /// another version since they were looked for.
    pub fn fill(&self, ino: u64, content: Option<(Version, u64)>, is_overtaken: impl FnOnce() -> bool) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(entry) = shard.get_mut(&ino) else { return false };
        let mut is_mixed = false;
        if let Some((version, size)) = content {
            match entry.filled {
                // There are others already.
                true if entry.pages != version => {
                    entry.set_pages(Version::default(), true);
                    is_mixed = true;
                }
                true => {}
                // The kernel drops these with the answer to that.
                false if entry.dropping && entry.pages != version && is_overtaken() => {}
                false => entry.set_pages(version, false),
            }
            // A read that is shorter than expected makes it cut the size itself.
            entry.size = entry.size.map(|told| told.min(size));
        }
        entry.filled = true;
        entry.fillings = entry.fillings.wrapping_add(1);
        is_mixed
    }

    /// How often it was noted that the kernel is given pages.
    pub fn fillings(&self, ino: u64) -> u32 {
        self.shard(ino).lock().get(&ino).map_or(0, |entry| entry.fillings)
    }

    /// Whether the inode was opened by a newer answer than this one; if not this is the newest from now on.
    pub fn is_older(&self, ino: u64, stamp: Stamp) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(entry) = shard.get_mut(&ino) else { return false };
        let is_older = entry.opened_by.is_some_and(|by| by.link == stamp.link && stamp.seq < by.seq);
        if !is_older {
            entry.opened_by = Some(stamp);
        }
        is_older
    }

    /// The kernel has dropped all pages that it had after so many fillings, if this still says so: nothing is filled in meanwhile.
    /// Whether it has none by that.
    pub fn emptied(&self, ino: u64, fillings: u32, is_empty: impl FnOnce() -> bool) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(entry) = shard.get_mut(&ino) else { return is_empty() };
        let is_empty = entry.fillings == fillings && is_empty();
        entry.filled &= !is_empty;
        is_empty
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

    /// Others changed the directory.
    pub fn relist(&self, dir: u64) {
        if let Some(entry) = self.shard(dir).lock().get_mut(&dir) {
            entry.relist = true;
        }
    }

    /// The same of all directories.
    pub fn relist_all(&self) {
        for shard in &self.shards {
            shard.lock().values_mut().for_each(|entry| entry.relist = true);
        }
    }

    /// The directory is being opened. Whether others changed it since it was opened before.
    pub fn take_relist(&self, dir: u64) -> bool {
        self.shard(dir).lock().get_mut(&dir).is_some_and(|entry| std::mem::take(&mut entry.relist))
    }

    /// The inode has lost its last name. Kept for as long as the kernel knows it.
    pub fn orphan(&self, attr: Attr) {
        if let Some(entry) = self.shard(attr.ino).lock().get_mut(&attr.ino) {
            // What was changed of it since then only we know.
            entry.orphan.get_or_insert_with(|| Box::new(Attr { nlink: 0, ..attr }));
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
    fn what_the_kernel_was_told_at_the_same_time_is_dropped_for_certain() {
        let known = Known::default();
        let old = Attr { ino: 77, nlink: 1, dir: 1, size: 3, ..Attr::default() };
        let new = Attr { size: 4, ..old };
        let outdated = |attr: &Attr| known.outdated(attr, Version::of(attr), || false);
        known.remember(&old);
        assert_eq!(outdated(&old), None, "it has none");
        assert_eq!((known.tell(&old, |_| false), outdated(&old)), (None, None));
        assert_eq!(outdated(&new), Some(Outdated::Attributes));
        // Which one it has taken nobody knows.
        assert_eq!((known.tell(&new, |_| false), outdated(&new)), (None, Some(Outdated::Attributes)));
        known.dropped_attr(77, known.tellings(77));
        assert_eq!(outdated(&new), None);
        assert_eq!((known.tell(&new, |_| false), outdated(&new)), (None, None));
        // Told while it drops them: it has these or none.
        known.tell(&old, |_| false);
        let before = known.tellings(77);
        known.tell(&new, |_| false);
        known.dropped_attr(77, before);
        assert_eq!((outdated(&new), outdated(&old)), (None, Some(Outdated::Attributes)));
        // With pages of the older one it keeps that one's size.
        known.fill(77, Some((Version::of(&new), 4)), || false);
        assert_eq!((outdated(&new), outdated(&old)), (None, Some(Outdated::Pages)));
        assert_eq!((known.tell(&old, |_| false), known.tell(&new, |_| false)), (Some(4), None));
        let fillings = known.fillings(77);
        assert!(!known.emptied(77, fillings, || false) && known.is_filled(77));
        assert_eq!(known.held_back(77), 1);
        // Given some again while it drops them, by a handle that is closed by now.
        known.fill(77, None, || false);
        assert!(!known.emptied(77, fillings, || true) && known.emptied(77, known.fillings(77), || true));
        assert!(!known.is_filled(77));
        assert_eq!(known.tell(&old, |_| false), None);
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
