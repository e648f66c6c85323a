//! Reading directories. A reader sees the names as they were when it began (or went back to) the beginning, so its
//! offsets stay good while others create and remove. Offset 1 is behind ".", 2 behind "..", then one per name.

use std::ops::Bound;

use delugefs_proto::local_pb::Attr;
use nix::errno::Errno;
use parking_lot::Mutex;

use super::{Fs, S_IFDIR};
use crate::cache::{Item, Snapshot, kind_of};
use crate::call::{Caller, Outcome};
use crate::handles::{DirHandle, Reading};

/// Most names given in one answer with attributes: what fits into the largest buffer programs use.
const PLUS_MAX: usize = 256;
/// Unknown names of a cached directory asked for one by one; above this it is loaded anew.
const HOLES_MAX: usize = 16;

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

impl Fs {
    /// A handle for reading a directory.
    pub fn opendir(&self, ino: u64) -> u64 {
        self.dirs.put(DirHandle { ino, reading: Mutex::new(None) })
    }

    /// The handle is not used any more.
    pub fn releasedir(&self, handle: u64) {
        self.dirs.take(handle);
    }

    /// Make sure that reading from this offset needs no worker: first step of reading a page.
    pub fn prepare_dir(&self, caller: &Caller, handle: u64, offset: u64, plus: bool) -> Outcome<()> {
        let handle = self.dirs.get(handle).ok_or(Errno::EBADF)?;
        if offset == 0 || handle.reading.lock().is_none() {
            let snapshot = self.snapshot(caller, handle.ino)?;
            *handle.reading.lock() = Some(Reading { snapshot, offset: 2, after: None });
        }
        if !plus {
            return Ok(());
        }
        // Attributes that have to be asked for: of names somebody else touched, or that left the cache.
        let mut missing = Vec::new();
        if let Some(reading) = &mut *handle.reading.lock() {
            reading.seek(offset);
            self.cache.attrs_of(handle.ino, &reading.snapshot, reading.rest().take(PLUS_MAX), |name, _, known| {
                if let Some(None) = known {
                    missing.push(Box::<[u8]>::from(name));
                }
            });
        }
        for name in missing {
            self.lookup_one(caller, handle.ino, &name)?;
        }
        Ok(())
    }

    /// Give out names from this offset on, until `emit` says that it is full: second step, without the worker. With
    /// `plus` only names that still are what they were, with their attributes.
    pub fn read_dir(
        &self,
        handle: u64,
        offset: u64,
        plus: bool,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Outcome<()> {
        let handle = self.dirs.get(handle).ok_or(Errno::EBADF)?;
        let mut reading = handle.reading.lock();
        let Some(reading) = &mut *reading else { return Err(Errno::EBADF.into()) };
        let kind = kind_of(S_IFDIR);
        if offset == 0 && emit(DirEntry { ino: handle.ino, offset: 1, kind, name: b".", attr: None }) {
            return Ok(());
        }
        let parent = reading.snapshot.parent;
        if offset <= 1 && emit(DirEntry { ino: parent, offset: 2, kind, name: b"..", attr: None }) {
            return Ok(());
        }
        reading.seek(offset);
        let mut at = reading.offset;
        let mut given: Option<(u64, &[u8])> = None;
        if plus {
            let mut page = Vec::with_capacity(PLUS_MAX);
            let rest = reading.rest().take(PLUS_MAX);
            self.cache
                .attrs_of(handle.ino, &reading.snapshot, rest, |name, item, known| page.push((name, item, known)));
            for (name, item, known) in page {
                // Gone names are passed over; so are those whose attributes left the cache since the first step, for
                // a wrong attribute in the kernel would be worse: plain lookups still find them.
                if let Some(Some(attr)) = known {
                    let attr = Some(self.merged(attr));
                    if emit(DirEntry { ino: item.ino, offset: at + 1, kind: item.kind, name, attr }) {
                        break;
                    }
                }
                at += 1;
                given = Some((at, name));
            }
        } else {
            for (name, item) in reading.rest() {
                if emit(DirEntry { ino: item.ino, offset: at + 1, kind: item.kind, name, attr: None }) {
                    break;
                }
                at += 1;
                given = Some((at, name));
            }
        }
        if let Some((offset, name)) = given.map(|(offset, name)| (offset, Box::from(name))) {
            (reading.offset, reading.after) = (offset, Some(name));
        }
        Ok(())
    }

    /// All names of a directory, as they are now.
    fn snapshot(&self, caller: &Caller, dir: u64) -> Outcome<Snapshot> {
        if let Some(snapshot) = self.cache.snapshot(dir) {
            return Ok(snapshot);
        }
        if let Some(attr) = self.known.orphan_attr(dir) {
            return Ok(Snapshot { list: Default::default(), parent: attr.dir });
        }
        let holes = self.cache.holes(dir);
        if (1..=HOLES_MAX).contains(&holes.len()) {
            for name in holes {
                self.lookup_one(caller, dir, &name)?;
            }
            if let Some(snapshot) = self.cache.snapshot(dir) {
                return Ok(snapshot);
            }
        }
        Ok(self.load(caller, dir, usize::MAX)?.ok_or(Errno::EAGAIN)?)
    }
}

impl Reading {
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
}
