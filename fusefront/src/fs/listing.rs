//! Reading directories. A reader sees the names as they were when it began (or went back to) the beginning, so its
//! offsets stay good while others create and remove. Offset 1 is behind ".", 2 behind "..", then one per name. A
//! directory too big to hold is read page by page instead, see [`super::paged`].
//!
//! Reading is two steps: one that may ask the worker ([`Fs::prepare_dir`]), and one that only gives out what is there
//! ([`Fs::read_dir`]).

use std::ops::Bound;

use delugefs_proto::local_pb::Attr;
use nix::errno::Errno;
use parking_lot::Mutex;

use super::paged::Paged;
use super::{Fs, S_IFDIR};
use crate::cache::{Item, Snapshot, kind_of};
use crate::call::{Caller, Outcome};
use crate::handles::{DirHandle, Reading, Snapped};

/// Most names given in one answer with attributes: what fits into the largest buffer programs use.
const PLUS_MAX: usize = 256;
/// Unknown names of a cached directory asked for one by one; above this it is loaded anew.
const ONE_BY_ONE_MAX: usize = 16;

/// One name of a directory.
#[derive(Debug)]
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

/// Takes entries until it says that it is full.
type Emit<'a> = &'a mut dyn FnMut(DirEntry<'_>) -> bool;

impl Fs {
    /// A handle for reading a directory.
    pub fn opendir(&self, ino: u64) -> u64 {
        self.dirs.put(DirHandle { ino, reading: Mutex::new(Reading::NotBegun) })
    }

    /// The handle is not used any more.
    pub fn releasedir(&self, handle: u64) {
        if let Some(handle) = self.dirs.take(handle)
            && let Reading::Paged(paged) = &mut *handle.reading.lock()
        {
            self.close_page(paged);
        }
    }

    /// Make sure that reading from this offset needs no worker: first step of reading.
    pub fn prepare_dir(&self, caller: &Caller, handle: u64, offset: u64, plus: bool) -> Outcome<()> {
        let handle = self.dirs.get(handle).ok_or(Errno::EBADF)?;
        // Taken out, so that no lock is held over a request; the kernel asks for one page at a time.
        let mut reading = std::mem::take(&mut *handle.reading.lock());
        let result = self.prepare(caller, handle.ino, &mut reading, offset, plus);
        *handle.reading.lock() = reading;
        result
    }

    fn prepare(&self, caller: &Caller, dir: u64, reading: &mut Reading, offset: u64, plus: bool) -> Outcome<()> {
        if offset == 0
            && let Reading::Paged(paged) = reading
        {
            self.close_page(paged);
        }
        if offset == 0 || matches!(reading, Reading::NotBegun) {
            *reading = match self.snapshot(caller, dir)? {
                Some(snapshot) => Reading::Snapped(Snapped { snapshot, offset: 2, after: None }),
                None => Reading::Paged(Paged::default()),
            };
        }
        match reading {
            Reading::Paged(paged) => self.turn_page(caller, dir, paged, offset, plus),
            Reading::Snapped(snapped) if plus => self.refresh(caller, dir, snapped, offset),
            _ => Ok(()),
        }
    }

    /// Ask for attributes that are missing: of names somebody else touched, or that left the cache.
    fn refresh(&self, caller: &Caller, dir: u64, snapped: &mut Snapped, offset: u64) -> Outcome<()> {
        snapped.seek(offset);
        let missing = |fs: &Self, snapped: &Snapped| {
            let mut missing = Vec::new();
            fs.cache.attrs_of(dir, &snapped.snapshot, snapped.rest().take(PLUS_MAX), |name, _, known| {
                if let Some(None) = known {
                    missing.push(Box::<[u8]>::from(name));
                }
            });
            missing
        };
        let mut names = missing(self, snapped);
        if names.len() > ONE_BY_ONE_MAX && self.known.orphan_attr(dir).is_none() {
            self.load(caller, dir, self.cache.held_entries())?;
            names = missing(self, snapped);
        }
        for name in names {
            self.lookup_one(caller, dir, &name)?;
        }
        Ok(())
    }

    /// Give out names from this offset on: second step, without the worker. With `plus` only names that still are
    /// what they were, with their attributes.
    pub fn read_dir(&self, handle: u64, offset: u64, plus: bool, emit: Emit<'_>) -> Outcome<()> {
        let handle = self.dirs.get(handle).ok_or(Errno::EBADF)?;
        let mut reading = handle.reading.lock();
        let parent = match &*reading {
            Reading::Snapped(snapped) => snapped.snapshot.parent,
            Reading::Paged(paged) => paged.parent,
            Reading::NotBegun => return Err(Errno::EBADF.into()),
        };
        let kind = kind_of(S_IFDIR);
        if offset == 0 && emit(DirEntry { ino: handle.ino, offset: 1, kind, name: b".", attr: None }) {
            return Ok(());
        }
        if offset <= 1 && emit(DirEntry { ino: parent, offset: 2, kind, name: b"..", attr: None }) {
            return Ok(());
        }
        match &mut *reading {
            Reading::Snapped(snapped) if plus => self.give_with_attrs(handle.ino, snapped, offset, emit),
            Reading::Snapped(snapped) => snapped.give(offset, emit),
            Reading::Paged(paged) => {
                let from = offset.max(2);
                for (offset, (name, item, attr)) in (from + 1..).zip(paged.rest(from)) {
                    let attr = plus.then(|| self.merged(attr));
                    if emit(DirEntry { ino: item.ino, offset, kind: item.kind, name, attr }) {
                        break;
                    }
                }
            }
            Reading::NotBegun => {}
        }
        Ok(())
    }

    fn give_with_attrs(&self, dir: u64, snapped: &mut Snapped, offset: u64, emit: Emit<'_>) {
        snapped.seek(offset);
        let mut given = false;
        loop {
            let mut page = Vec::with_capacity(PLUS_MAX);
            let rest = snapped.rest().take(PLUS_MAX);
            self.cache.attrs_of(dir, &snapped.snapshot, rest, |name, item, known| page.push((name, item, known)));
            let mut at = snapped.offset;
            let mut last = None;
            let mut full = false;
            for (name, item, known) in &page {
                // Gone names are passed over; so are those whose attributes left the cache since the first step, for
                // a wrong attribute in the kernel would be worse: plain lookups still find them.
                if let Some(Some(attr)) = known {
                    let attr = Some(self.merged(*attr));
                    if emit(DirEntry { ino: item.ino, offset: at + 1, kind: item.kind, name, attr }) {
                        full = true;
                        break;
                    }
                    given = true;
                }
                at += 1;
                last = Some(*name);
            }
            let last = last.map(Box::<[u8]>::from);
            let ended = page.is_empty();
            if last.is_some() {
                (snapped.offset, snapped.after) = (at, last);
            }
            // An answer without entries would mean the end.
            if given || full || ended {
                return;
            }
        }
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

    /// The names from here on.
    fn rest(&self) -> impl Iterator<Item = (&[u8], Item)> {
        let from = match &self.after {
            Some(name) => Bound::Excluded(&name[..]),
            None => Bound::Unbounded,
        };
        self.snapshot.list.range::<[u8], _>((from, Bound::Unbounded)).map(|(name, item)| (&name[..], *item))
    }

    fn give(&mut self, offset: u64, emit: Emit<'_>) {
        self.seek(offset);
        let mut given = None;
        for (offset, (name, item)) in (self.offset + 1..).zip(self.rest()) {
            if emit(DirEntry { ino: item.ino, offset, kind: item.kind, name, attr: None }) {
                break;
            }
            given = Some((offset, name));
        }
        if let Some((offset, name)) = given.map(|(offset, name)| (offset, Box::from(name))) {
            (self.offset, self.after) = (offset, Some(name));
        }
    }
}
