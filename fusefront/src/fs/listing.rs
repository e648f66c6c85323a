//! Reading directories. A reader sees the names as they were when it began (or went back to) the beginning, so its
//! offsets stay good while others create and remove. Offset 1 is behind ".", 2 behind "..", then one per name; behind the last one
//! it is [`END`]. A directory too big to hold is read page by page instead, see [`super::paged`].
//!
//! The kernel may keep a listing and give it to handles that have read nothing from us. When it drops that, such a handle comes to us
//! in the middle, or goes on in a newer listing at the same offset, where other names may be. So it keeps only what every program
//! gets with one call, and we give with one answer ([`Fs::is_read_at_once`]): from there on it asks for what is behind [`END`], which is
//! nothing in any listing. A program that goes back into the middle (seekdir) is given what is there in the listing of when it opened the
//! directory: that is the one that the kernel had, unless that was replaced before the program began to read. Where the directory has grown
//! between the opening and the reading of a handle, the kernel keeps more than is read with one call: the other handles then have that
//! listing, too, and go on in it wherever the kernel leaves off.

use std::ops::{Bound, Range};
use std::sync::atomic::{AtomicUsize, Ordering};

use delugefs_proto::local_pb::Attr;
use nix::errno::Errno;
use parking_lot::Mutex;

use super::paged::Paged;
use super::{Fs, Moment, S_IFDIR, is_gone};
use crate::cache::{Item, List, Snapshot, Standing, kind_of};
use crate::call::{Caller, Outcome, Stop};
use crate::handles::{DirHandle, Reading, Snapped};

/// Entries in the first answer to a reader; later ones have what it took before.
const FIRST_ENTRIES: usize = 128;
/// Most entries in one answer.
const ENTRIES_MAX: usize = 2048;
/// Offset behind the last name of a directory that is held, however many it has. Programs of 32 bits can have it, too.
const END: u64 = i32::MAX as u64;
/// What programs take of a directory with one call, at least: the buffer of musl, the smallest that is in use.
const CALL_BYTES: usize = 2048;
/// What the kernel takes of it with one answer, whatever the program's buffer: a page. What that brings goes to the program at once, and
/// the rest is asked for with its next call.
const ANSWER_BYTES: usize = 4096;
/// Unknown names of a cached directory asked for one by one; above this it is loaded anew.
const ONE_BY_ONE_MAX: usize = 16;

/// One name of a directory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DirEntry<'a> {
    /// Its inode.
    pub ino: u64,
    /// Where reading goes on behind it.
    pub offset: u64,
    /// Its kind: the S_IFMT bits shifted down by 12.
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
    /// The attributes, if they were asked for; never for "." and "..".
    pub attr: Option<Attr>,
}

/// Some entries in a row; without any, the directory ends there.
#[derive(Debug, Default)]
pub struct Page {
    names: Vec<u8>,
    entries: Vec<Placed>,
}

#[derive(Debug)]
struct Placed {
    item: Item,
    offset: u64,
    name: Range<usize>,
    attr: Option<Attr>,
}

impl Page {
    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = DirEntry<'_>> {
        self.entries.iter().map(|placed| DirEntry {
            ino: placed.item.ino,
            offset: placed.offset,
            kind: placed.item.kind,
            name: &self.names[placed.name.clone()],
            attr: placed.attr,
        })
    }

    fn push(&mut self, name: &[u8], item: Item, offset: u64, attr: Option<Attr>) {
        let start = self.names.len();
        self.names.extend(name);
        self.entries.push(Placed { item, offset, name: start..self.names.len(), attr });
    }
}

impl Fs {
    /// A handle for reading a directory. `is_kept`: the kernel may have kept a listing, or keep one that another handle reads, and give it
    /// to this one.
    pub fn opendir(&self, ino: u64, is_kept: bool) -> u64 {
        let entries = AtomicUsize::new(FIRST_ENTRIES);
        let snapshot = if is_kept { self.cache.snapshot(ino) } else { None };
        let reading = snapshot.map_or(Reading::NotBegun, |snapshot| Reading::Snapped(Snapped::kernels(snapshot)));
        self.dirs.put(DirHandle { ino, is_kept, reading: Mutex::new(reading), entries })
    }

    /// Whether the kernel may use the listing that it has kept of a directory which it is opening: once not after each change by
    /// others. The notification of that drops what it has, and not what an answer brings that is older and still on its way.
    pub fn keeps_listing(&self, ino: u64) -> bool {
        !self.known.take_relist(ino)
    }

    /// Whether any program gets all of the directory with one call that is answered with one answer. `false` also if that is not known.
    pub fn is_read_at_once(&self, ino: u64) -> bool {
        self.cache.is_known_whole(ino, is_one_call)
    }

    /// A listing begins of which the kernel keeps what it is given through this handle. If that is not for one call, handles that have
    /// read nothing from us may be given a part of it by the kernel, and come to us for the rest.
    fn kernel_keeps(&self, handle: &DirHandle, reading: &Reading) {
        let listing = match reading {
            Reading::Snapped(snapped) if is_one_call(&snapped.snapshot.list) => return,
            Reading::Snapped(snapped) => Some(&snapped.snapshot),
            _ => None, // in pages: as it is when they come
        };
        let others = self.dirs.numbers().into_iter().filter_map(|number| self.dirs.get(number));
        for other in others.filter(|other| other.ino == handle.ino && other.is_kept && !std::ptr::eq(&**other, handle))
        {
            let mut reading = other.reading.lock();
            let is_unread = match &*reading {
                Reading::NotBegun => true,
                Reading::Snapped(snapped) => snapped.is_kernels,
                Reading::Paged(_) => false,
            };
            if is_unread {
                let listing = listing.cloned().map(Snapped::kernels);
                *reading = listing.map_or(Reading::NotBegun, Reading::Snapped);
            }
        }
    }

    /// The handle is not used any more.
    pub fn releasedir(&self, handle: u64) {
        if let Some(handle) = self.dirs.take(handle) {
            self.close_reading(&handle);
        }
    }

    fn close_reading(&self, handle: &DirHandle) {
        if let Reading::Paged(paged) = &mut *handle.reading.lock() {
            self.close_page(paged);
        }
    }

    /// The entries from an offset on. With `plus` only names that are still there, with the attributes of what they belong to now.
    pub fn read_dir(&self, caller: &Caller, handle: u64, offset: u64, plus: bool) -> Outcome<Page> {
        let number = handle;
        let handle = self.dirs.get(number).ok_or(Errno::EBADF)?;
        // Taken out, so that no lock is held over a request; the kernel asks for one page at a time.
        let mut reading = std::mem::take(&mut *handle.reading.lock());
        let page = self.read_on(caller, &handle, &mut reading, offset, plus);
        *handle.reading.lock() = reading;
        // A reader that was killed has been answered, and may have released the handle while this went on.
        if self.dirs.get(number).is_none() {
            self.close_reading(&handle);
        }
        page
    }

    /// The reader has taken so many of the entries it was given, this one the last: it will go on behind it.
    pub fn taken(&self, handle: u64, count: usize, last: DirEntry<'_>) {
        let Some(handle) = self.dirs.get(handle) else { return };
        handle.entries.store((count + count / 4 + 8).min(ENTRIES_MAX), Ordering::Relaxed);
        if let Reading::Snapped(snapped) = &mut *handle.reading.lock()
            && last.offset > 2
        {
            (snapped.offset, snapped.after) = (last.offset, Some(last.name.into()));
        }
    }

    fn read_on(
        &self,
        caller: &Caller,
        handle: &DirHandle,
        reading: &mut Reading,
        offset: u64,
        plus: bool,
    ) -> Outcome<Page> {
        let (dir, most) = (handle.ino, handle.entries.load(Ordering::Relaxed));
        if offset == 0
            && let Reading::Paged(paged) = reading
        {
            self.close_page(paged);
        }
        // Who had all of what the kernel keeps is told nothing more, however large the directory is by now.
        if offset == END && matches!(reading, Reading::NotBegun) {
            return Ok(Page::default());
        }
        if let Reading::Snapped(snapped) = reading
            && snapped.is_kernels
            && snapped.has_no(offset)
        {
            *reading = Reading::NotBegun; // that of which the kernel had a part is not known any more
        }
        if offset == 0 || matches!(reading, Reading::NotBegun) {
            *reading = match self.snapshot(caller, dir)? {
                Some(snapshot) => Reading::Snapped(Snapped::new(snapshot)),
                None => Reading::Paged(Paged::default()),
            };
            if offset == 0 && handle.is_kept {
                self.kernel_keeps(handle, reading);
            }
        }
        let mut since = self.moment();
        if let Reading::Paged(paged) = reading {
            self.turn_page(caller, dir, paged, offset, plus)?;
        }
        let mut page = Page::default();
        let parent = match reading {
            Reading::Snapped(snapped) => snapped.snapshot.parent,
            Reading::Paged(paged) => paged.parent,
            Reading::NotBegun => return Err(Errno::EBADF.into()),
        };
        let kind = kind_of(S_IFDIR);
        if offset == 0 {
            page.push(b".", Item { ino: dir, kind }, 1, None);
        }
        if offset <= 1 {
            page.push(b"..", Item { ino: parent, kind }, 2, None);
        }
        match reading {
            Reading::Snapped(snapped) => {
                snapped.seek(offset);
                match plus {
                    true => self.give_with_attrs(caller, dir, snapped, most, &mut page)?,
                    false => {
                        for (offset, (name, item)) in (snapped.offset + 1..).zip(snapped.rest()).take(most) {
                            page.push(name, item, snapped.behind(offset), None);
                        }
                    }
                }
                snapped.is_kernels &= page.entries.is_empty();
            }
            Reading::Paged(paged) => {
                let given_before = page.entries.len();
                let mut from = offset.max(2);
                loop {
                    let behind =
                        self.give_paged(caller, (dir, paged), (from, most), plus.then_some(since), &mut page)?;
                    // An answer without entries would mean the end.
                    if behind == from || page.entries.len() > given_before {
                        break;
                    }
                    from = behind;
                    since = self.moment();
                    self.turn_page(caller, dir, paged, from, plus)?;
                }
            }
            Reading::NotBegun => {}
        }
        Ok(page)
    }

    /// What the page at hand has, with attributes if it is given when that was made; the offset behind it. Names that are gone are
    /// left out where that is seen.
    fn give_paged(
        &self,
        caller: &Caller,
        (dir, paged): (u64, &Paged),
        (from, most): (u64, usize),
        since: Option<Moment>,
        page: &mut Page,
    ) -> Outcome<u64> {
        let mut behind = from;
        for (offset, (name, item, attr)) in (from + 1..).zip(paged.rest(from)).take(most) {
            behind = offset;
            let Some(since) = since else {
                page.push(name, item, offset, None);
                continue;
            };
            let found = match self.open.get(item.ino) {
                // What is open here changes without the directory's being touched.
                Some(_) => self.getattr(caller, item.ino),
                None => self.current(caller, since, attr),
            };
            let attr = match found {
                Ok(attr) if attr.nlink > 0 => Some(attr),
                Err(Stop::Failed(error)) if !is_gone(error.errno) => return Err(error.into()),
                Err(Stop::Later) => return Err(Stop::Later),
                // Removed or replaced since.
                _ => self.lookup_one(caller, dir, name)?,
            };
            if let Some(attr) = attr {
                page.push(name, Item::of(&attr), offset, Some(attr));
            }
        }
        Ok(behind)
    }

    /// Names with attributes, until there is at least one or the end.
    fn give_with_attrs(
        &self,
        caller: &Caller,
        dir: u64,
        snapped: &mut Snapped,
        most: usize,
        page: &mut Page,
    ) -> Outcome<()> {
        let given_before = page.entries.len();
        loop {
            let mut since = self.moment();
            let mut found = self.standings(dir, snapped, most);
            let missing = found.iter().filter(|(.., standing)| *standing == Standing::Unknown).count();
            if missing > ONE_BY_ONE_MAX {
                self.load(caller, dir, self.cache.held_entries())?;
                since = self.moment();
                found = self.standings(dir, snapped, most);
            }
            let mut last = None;
            for (offset, (name, standing)) in (snapped.offset + 1..).zip(&found) {
                let known = match standing {
                    Standing::Known(attr) => self.merged(since, *attr),
                    Standing::Gone | Standing::Unknown => None,
                };
                let attr = match known {
                    None if *standing != Standing::Gone => self.lookup_one(caller, dir, name)?,
                    known => known,
                };
                if let Some(attr) = attr {
                    page.push(name, Item::of(&attr), offset, Some(attr));
                }
                last = Some((offset, Box::<[u8]>::from(*name)));
            }
            if let (Some((offset, _)), Some(given)) = (&last, page.entries[given_before..].last_mut())
                && snapped.behind(*offset) == END
            {
                // Also if what comes behind it is gone.
                given.offset = END;
            }
            // An answer without entries would mean the end.
            match last {
                Some((offset, name)) if page.entries.len() == given_before => {
                    (snapped.offset, snapped.after) = (offset, Some(name));
                }
                _ => return Ok(()),
            }
        }
    }

    fn standings<'a>(&self, dir: u64, snapped: &'a Snapped, most: usize) -> Vec<(&'a [u8], Standing)> {
        let mut found = Vec::with_capacity(most);
        let rest = snapped.rest().take(most);
        self.cache.standings(dir, &snapped.snapshot, rest, |name, standing| found.push((name, standing)));
        found
    }

    /// All names of a directory, as they are now; `None` if it is too big to hold.
    fn snapshot(&self, caller: &Caller, dir: u64) -> Outcome<Option<Snapshot>> {
        if let Some(snapshot) = self.cache.snapshot(dir) {
            return Ok(Some(snapshot));
        }
        if let Some(attr) = self.known.orphan_attr(dir) {
            return Ok(Some(Snapshot { list: Default::default(), parent: attr.dir }));
        }
        let holes = self.cache.holes(dir);
        if (1..=ONE_BY_ONE_MAX).contains(&holes.len()) {
            for name in holes {
                self.lookup_one(caller, dir, &name)?;
            }
            if let Some(snapshot) = self.cache.snapshot(dir) {
                return Ok(Some(snapshot));
            }
        }
        self.load(caller, dir, self.cache.held_entries())
    }
}

impl Snapped {
    /// At the first name.
    fn new(snapshot: Snapshot) -> Self {
        Self { snapshot, offset: 2, after: None, is_kernels: false }
    }

    /// Of a handle that may be given it by the kernel.
    fn kernels(snapshot: Snapshot) -> Self {
        Self { is_kernels: true, ..Self::new(snapshot) }
    }

    /// Who is there has read more than there is.
    fn has_no(&self, offset: u64) -> bool {
        offset != END && offset >= 2 + self.snapshot.list.len() as u64
    }

    /// Go to an offset: for free where reading stopped, else by counting.
    fn seek(&mut self, offset: u64) {
        let offset = offset.max(2);
        if offset != self.offset {
            let index = usize::try_from(offset - 2).unwrap_or(usize::MAX);
            self.after = index.checked_sub(1).and_then(|index| self.snapshot.list.keys().nth(index).cloned());
            if index > 0 && self.after.is_none() {
                self.after = self.snapshot.list.keys().next_back().cloned();
            }
            self.offset = offset;
        }
    }

    /// What is given as the offset behind a name, of which this is the number.
    fn behind(&self, offset: u64) -> u64 {
        if offset < 2 + self.snapshot.list.len() as u64 { offset } else { END }
    }

    /// The names from here on.
    fn rest(&self) -> impl Iterator<Item = (&[u8], Item)> {
        let from = match &self.after {
            Some(name) => Bound::Excluded(&name[..]),
            None => Bound::Unbounded,
        };
        self.snapshot.list.range::<[u8], _>((from, Bound::Unbounded)).map(|(name, item)| (&name[..], *item))
    }
}

/// Whether any program gets that with one call that is answered with one answer.
fn is_one_call(list: &List) -> bool {
    // As getdents64(2) has them: 19 bytes, the name and a NUL, to a multiple of 8. As READDIRPLUS has them: 152 bytes and the name, to
    // a multiple of 8. And the dots.
    let called = |name: &[u8]| (20 + name.len()).next_multiple_of(8);
    let answered = |name: &[u8]| (152 + name.len()).next_multiple_of(8);
    let names = || list.keys().map(|name| &name[..]).chain([&b"."[..], b".."]);
    list.len() <= ANSWER_BYTES / answered(b"")
        && names().map(called).sum::<usize>() <= CALL_BYTES
        && names().map(answered).sum::<usize>() <= ANSWER_BYTES
}
