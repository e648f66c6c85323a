//! What the kernel has of an inode's content: pages and the version they are of, the size, and the attributes it was told. From that
//! follows what it has to drop before it may have others; [`crate::fs`] says when (its `turn`). Nothing is told to the kernel here.

use std::sync::atomic::{AtomicBool, Ordering};

use delugefs_proto::local_pb::Attr;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use super::{Entry, Known};
use crate::cache::InoMap;
use crate::worker::Stamp;

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

/// Which file of a disk a content is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is not: it comes with the answer, or is being written.
    None,
    /// One that is read as a whole, without looking at it: its device, number and time of change, in one.
    File(u64),
    /// What is read of it is verified.
    Parts,
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

/// What the kernel has of an inode that is not what it is about to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outdated {
    /// Attributes.
    Attributes,
    /// Pages, and perhaps attributes.
    Pages,
}

/// What it has of one inode.
#[derive(Default)]
pub(super) struct Held {
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
    /// The file that the pages may be of, if that was read without looking at it.
    file: Option<u64>,
}

impl Held {
    /// The version whose pages the kernel has; none while it may have others.
    fn pages(&self) -> Version {
        if self.dropping { Version::default() } else { self.pages }
    }

    fn set_pages(&mut self, pages: Version, dropping: bool) {
        (self.pages, self.dropping, self.turn) = (pages, dropping, self.turn.wrapping_add(1));
    }
}

impl Known {
    /// What the kernel has of this inode, if it knows it.
    fn held(&self, ino: u64) -> Option<MappedMutexGuard<'_, Held>> {
        MutexGuard::try_map(self.shard(ino).lock(), |shard| Some(&mut shard.get_mut(&ino)?.held)).ok()
    }

    /// The version whose pages the kernel has; none while it may have others.
    pub fn pages(&self, ino: u64) -> Option<Version> {
        self.held(ino).map(|held| held.pages())
    }

    /// The inode is opened with this version to be read through a handle that there is already. Whether what was opened last, or
    /// read, is another one.
    pub fn reopened(&self, ino: u64, version: Version) -> bool {
        let Some(mut held) = self.held(ino).filter(|held| held.pages != version) else {
            return false;
        };
        if !held.filled {
            held.pages = version;
        }
        true
    }

    /// The kernel is about to be told these attributes. If it has pages of another version, their size would be put on those: then
    /// the size it was told before is given back, for it to be told again. `has_pages` says whether it has some by the handles that are
    /// open; it is given whether they are of another version than the one that was opened last.
    pub fn tell(&self, attr: &Attr, has_pages: impl FnOnce(bool) -> bool) -> Option<u64> {
        let (mut held, version) = (self.held(attr.ino)?, Version::of(attr));
        let other = held.size.filter(|size| *size != attr.size);
        let is_of_other = other.is_some() && held.pages() != version;
        match other {
            Some(size) if is_of_other && (held.filled || has_pages(held.pages != version)) => {
                held.held_back = held.held_back.wrapping_add(1);
                Some(size)
            }
            _ => {
                held.shown = attr.written;
                let all = Version::of_all(attr);
                held.mixed |= held.told != Version::default() && held.told != all;
                (held.size, held.told) = (Some(attr.size), all);
                held.tellings = held.tellings.wrapping_add(1);
                None
            }
        }
    }

    /// These attributes are shown to users.
    pub fn show(&self, attr: &Attr) {
        if let Some(mut held) = self.held(attr.ino) {
            held.shown = attr.written;
        }
    }

    /// All inodes, and when the contents that were shown of them were written.
    pub fn shown(&self) -> Vec<(u64, i64)> {
        let of = |shard: &Mutex<InoMap<Entry>>| {
            shard.lock().iter().map(|(ino, entry)| (*ino, entry.held.shown)).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of).collect()
    }

    /// How often the kernel was told the attributes.
    pub fn tellings(&self, ino: u64) -> u32 {
        self.held(ino).map_or(0, |held| held.tellings)
    }

    /// How often the kernel was told the size it had, in the place of a newer one.
    pub fn held_back(&self, ino: u64) -> u32 {
        self.held(ino).map_or(0, |held| held.held_back)
    }

    /// The kernel has dropped the attributes that it had when it was told so often.
    pub fn dropped_attr(&self, ino: u64, tellings: u32) {
        let Some(mut held) = self.held(ino) else { return };
        match held.tellings.wrapping_sub(tellings) {
            0 => (held.told, held.mixed) = (Version::default(), false),
            // Nothing that was on its way before counts.
            1 => held.mixed = false,
            _ => {}
        }
    }

    /// The kernel has taken this size for itself, for it is of what it wrote or cut; of the pages it has too.
    pub fn sized(&self, ino: u64, size: u64) {
        if let Some(mut held) = self.held(ino) {
            (held.size, held.filled) = (Some(size), true);
            held.fillings = held.fillings.wrapping_add(1);
        }
    }

    /// What the kernel has that is not of the version with these attributes. `version` is that of the content: none if it is of
    /// no known one.
    /// `has_pages` says whether the kernel has pages by the handles that are open.
    pub fn outdated(&self, attr: &Attr, version: Version, has_pages: impl FnOnce() -> bool) -> Option<Outdated> {
        let held = self.held(attr.ino)?;
        if (held.filled || has_pages()) && (held.pages() != version || version == Version::default()) {
            return Some(Outdated::Pages);
        }
        let is_old = held.told != Version::of_all(attr) || held.mixed || version == Version::default();
        (is_old && held.told != Version::default()).then_some(Outdated::Attributes)
    }

    /// Whether the kernel may have pages.
    pub fn is_filled(&self, ino: u64) -> bool {
        self.held(ino).is_some_and(|held| held.filled)
    }

    /// The kernel is being given pages, the first ones since [`Self::emptied`] or others than those: of this version and size, if
    /// they are of one. Whether it has pages of more than one version by that. `is_overtaken` says whether somebody has opened
    /// another version since they were looked for.
    pub fn fill(&self, ino: u64, content: Option<(Version, u64)>, is_overtaken: impl FnOnce() -> bool) -> bool {
        let Some(mut held) = self.held(ino) else { return false };
        let mut is_mixed = false;
        if let Some((version, size)) = content {
            match held.filled {
                // There are others already.
                true if held.pages != version => {
                    held.set_pages(Version::default(), true);
                    is_mixed = true;
                }
                true => {}
                // The kernel drops these with the answer to that.
                false if held.dropping && held.pages != version && is_overtaken() => {}
                false => held.set_pages(version, false),
            }
            // A read that is shorter than expected makes it cut the size itself.
            held.size = held.size.map(|told| told.min(size));
        }
        held.filled = true;
        held.fillings = held.fillings.wrapping_add(1);
        is_mixed
    }

    /// How often it was noted that the kernel is given pages.
    pub fn fillings(&self, ino: u64) -> u32 {
        self.held(ino).map_or(0, |held| held.fillings)
    }

    /// Whether the inode was opened by a newer answer than this one; if not this is the newest from now on.
    pub fn is_older(&self, ino: u64, stamp: Stamp) -> bool {
        let Some(mut held) = self.held(ino) else { return false };
        let is_older = held.opened_by.is_some_and(|by| by.link == stamp.link && stamp.seq < by.seq);
        if !is_older {
            held.opened_by = Some(stamp);
        }
        is_older
    }

    /// The kernel has dropped all pages that it had after so many fillings, if this still says so: nothing is filled in meanwhile.
    /// Whether it has none by that.
    pub fn emptied(&self, ino: u64, fillings: u32, is_empty: impl FnOnce() -> bool) -> bool {
        let Some(mut held) = self.held(ino) else { return is_empty() };
        let is_empty = held.fillings == fillings && is_empty();
        held.filled &= !is_empty;
        is_empty
    }

    /// The inode is being opened with this version. `None` when the pages the kernel has are of the same one, and stay.
    pub fn opened(&self, ino: u64, version: Version) -> Option<Dropping> {
        let Some(mut held) = self.held(ino) else { return Some(Dropping::new(0, true)) };
        let is_other = held.pages != version || version == Version::default();
        if is_other {
            held.set_pages(version, true);
        }
        held.dropping.then(|| Dropping::new(held.turn, is_other))
    }

    /// The inode was opened to be read, from here. Whether the kernel may have pages of another file of the same version: what was wrong with
    /// that one, and why it was replaced, or is looked at now, nobody says here.
    pub fn is_of_other_file(&self, ino: u64, place: Place) -> bool {
        let Some(mut held) = self.held(ino) else { return false };
        match place {
            Place::None => false,
            Place::Parts => held.file.take().is_some(),
            Place::File(file) => held.file.replace(file).is_some_and(|before| before != file),
        }
    }

    /// The same with the version it was last opened with, as it is being written here.
    pub fn joined(&self, ino: u64) -> Option<Dropping> {
        self.held(ino).filter(|held| held.dropping).map(|held| Dropping::new(held.turn, false))
    }

    /// The kernel has come with a handle of this open.
    pub fn dropped(&self, ino: u64, dropping: &Dropping) {
        // Asked at each read.
        if dropping.is_done.load(Ordering::Relaxed) || dropping.is_done.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(mut held) = self.held(ino)
            && held.turn == dropping.turn
        {
            held.dropping = false;
        }
    }

    /// The pages the kernel has are of this version: they were written through this mount.
    pub fn written(&self, ino: u64, version: Version) {
        if let Some(mut held) = self.held(ino) {
            held.set_pages(version, false);
        }
    }

    /// We changed attributes; of the content we changed nothing but what the kernel does to its pages itself. `at` is the
    /// answer's.
    pub fn same_content(&self, ino: u64, before: Version, after: Version, at: Stamp) {
        if let Some(mut held) = self.held(ino)
            && held.pages == before
        {
            (held.pages, held.carried) = (after, Some(at));
        }
    }

    /// Somebody else changed the inode at this moment. If that was before a change of ours that the pages were taken to have
    /// gone through unchanged, they are of no version.
    pub fn changed_elsewhere(&self, ino: u64, at: Stamp) {
        if let Some(mut held) = self.held(ino)
            && held.carried.is_some_and(|carried| carried.link == at.link && at.seq < carried.seq)
        {
            held.set_pages(Version::default(), true);
        }
    }

    /// The pages the kernel has are of no version we know.
    pub fn doubt_pages(&self, ino: u64) {
        if let Some(mut held) = self.held(ino) {
            held.set_pages(Version::default(), true);
        }
    }

    /// The same of all inodes.
    pub fn doubt_all_pages(&self) {
        for shard in &self.shards {
            shard.lock().values_mut().for_each(|entry| entry.held.set_pages(Version::default(), true));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
