//! The inodes the kernel knows: those it was told of and has not forgotten. It may ask about them by number at any
//! time, also long after they left the cache, so for each there is a directory the worker can find it in. Inodes that
//! lost their last name while in use live on here, with attributes that are nobody else's any more.

use delugefs_proto::local_pb::Attr;
use parking_lot::Mutex;

use crate::cache::InoMap;
use crate::worker::Stamp;

const SHARDS: usize = 16;

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

#[derive(Default)]
struct Entry {
    /// References the kernel holds.
    lookups: u64,
    dir: u64,
    /// The version whose pages the kernel may have.
    pages: Version,
    /// Of our own change by which the pages came to be of this version: whatever happened before it may have been missed.
    carried: Option<Stamp>,
    orphan: Option<Box<Attr>>,
}

/// The table. Shared by all threads.
pub struct Known {
    shards: [Mutex<InoMap<Entry>>; SHARDS],
}

impl Default for Known {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()) }
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

    /// The version whose pages the kernel may have.
    pub fn pages(&self, ino: u64) -> Option<Version> {
        self.shard(ino).lock().get(&ino).map(|entry| entry.pages)
    }

    /// The kernel will have pages of this version from now on. Whether those it has already are of the same one.
    pub fn opened(&self, ino: u64, version: Version) -> bool {
        match self.shard(ino).lock().get_mut(&ino) {
            Some(entry) => std::mem::replace(&mut entry.pages, version) == version && version != Version::default(),
            None => false,
        }
    }

    /// The pages the kernel has are of this version: they were written through this mount.
    pub fn written(&self, ino: u64, version: Version) {
        if let Some(entry) = self.shard(ino).lock().get_mut(&ino) {
            entry.pages = version;
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
            entry.pages = Version::default();
        }
    }

    /// The pages the kernel has are of no version we know.
    pub fn doubt_pages(&self, ino: u64) {
        if let Some(entry) = self.shard(ino).lock().get_mut(&ino) {
            entry.pages = Version::default();
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
        assert!(!known.opened(77, Version::of(&attr)), "nothing was opened before");
        assert!(known.opened(77, Version::of(&attr)));
        assert!(!known.opened(77, Version::of(&Attr { size: 4, ..attr })));
        known.orphan(attr);
        known.forget(77, 1);
        assert_eq!(known.orphan_attr(77).map(|attr| (attr.size, attr.nlink)), Some((3, 0)));
        assert_eq!(known.amend_orphan(77, |attr| attr.mode = 7).map(|attr| attr.mode), Some(7));
        known.remember(&attr);
        assert_eq!(known.orphan_attr(77), None, "it has a name again");
        known.forget(77, 2);
        assert_eq!((known.orphan_attr(77), known.dir_of(77), known.contains(77)), (None, None, false));
    }
}
