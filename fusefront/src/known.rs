//! The inodes the kernel knows: those it was told of and has not forgotten. It may ask about them by number at any
//! time, also long after they left the cache, so for each there is a directory the worker can find it in, and the names it was told of
//! where they have to be dropped one by one. Inodes that lost their last name while in use live on here, with attributes that are nobody
//! else's any more. What the kernel has of their contents is in [`pages`].
//!
//! There is no bound but the kernel's own: it forgets what it has no memory for, and an inode takes more of that there than here.

mod pages;

use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb::Attr;
use parking_lot::Mutex;

use self::pages::Held;
pub use self::pages::{Dropping, Outdated, Place, Version};
use crate::cache::InoMap;

const SHARDS: usize = 16;
/// Names noted of one inode. Whoever gives a file more of them may have the kernel ask for some again.
const NAMES_MAX: usize = 16;

/// A shard is not made smaller than for so many inodes.
const ROOM_MIN: usize = 1024;
/// It is made smaller when only one in so many places is in use: a search through millions of files is not to take their room for ever.
const ROOM_SHARE: usize = 4;

/// A name, with its directory.
pub type Name = (u64, Box<[u8]>);

#[derive(Default)]
struct Entry {
    /// References the kernel holds.
    lookups: u64,
    dir: u64,
    orphan: Option<Box<Attr>>,
    /// Where its last name went, as far as that is known.
    removed: Removed,
    /// The names the kernel has of it, where they are noted.
    names: Vec<Name>,
    /// Of a directory: it changed since it was last opened.
    relist: bool,
    held: Held,
}

/// Who took the last name of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Removed {
    /// Another host, or nobody knows.
    #[default]
    Elsewhere,
    /// Another mount of this disk, by what was heard last of its names.
    Beside,
    /// This mount.
    Here,
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
            (entry.orphan, entry.removed) = (None, Removed::Elsewhere);
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
                let (len, room) = (shard.len(), shard.capacity());
                if room > ROOM_MIN && len < room / ROOM_SHARE {
                    shard.shrink_to(len * 2);
                }
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

    /// The same where this mount has taken the name.
    pub fn removed_here(&self, attr: Attr) {
        self.removed(attr, Removed::Here);
    }

    /// The same where another mount of this disk seems to have taken it.
    pub fn removed_beside(&self, attr: Attr) {
        self.removed(attr, Removed::Beside);
    }

    fn removed(&self, attr: Attr, by: Removed) {
        if let Some(entry) = self.shard(attr.ino).lock().get_mut(&attr.ino)
            && entry.orphan.is_none()
        {
            entry.removed = by;
        }
        self.orphan(attr);
    }

    /// Another host has changed its names, so that one may have taken the last of them, and not another mount.
    pub fn changed_elsewhere_too(&self, ino: u64) {
        if let Some(entry) = self.shard(ino).lock().get_mut(&ino)
            && entry.removed == Removed::Beside
        {
            entry.removed = Removed::Elsewhere;
        }
    }

    /// Whether it has no name any more, and its last one went through this mount.
    pub fn was_removed_here(&self, ino: u64) -> bool {
        self.was_removed(ino, |by| by == Removed::Here)
    }

    /// The same of a mount of this disk: this one, or, as it seems, another.
    pub fn was_removed_on_disk(&self, ino: u64) -> bool {
        self.was_removed(ino, |by| by != Removed::Elsewhere)
    }

    fn was_removed(&self, ino: u64, is_it: impl Fn(Removed) -> bool) -> bool {
        self.shard(ino).lock().get(&ino).is_some_and(|entry| entry.orphan.is_some() && is_it(entry.removed))
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
    fn what_is_forgotten_takes_no_room() {
        let known = Known::default();
        let room = |known: &Known| known.shards.iter().map(|shard| shard.lock().capacity()).sum::<usize>();
        for ino in 100..100_100 {
            known.remember(&Attr { ino, nlink: 1, ..Attr::default() });
        }
        assert!(room(&known) >= 100_000);
        for ino in 100..100_000 {
            known.forget(ino, 1);
        }
        assert!(room(&known) <= SHARDS * ROOM_MIN * 2, "{}", room(&known));
        assert!((100_000..100_100).all(|ino| known.contains(ino)) && known.contains(Ino::ROOT.0));
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
}
