//! Reading a directory that is too big to hold: page by page from the worker. A place in it is a name, so creating and
//! removing elsewhere in it disturbs nobody; offsets gone back to are found again through the places passed before.

use bytes::Bytes;
use delugefs_proto::local_pb::{Attr, ReadDir, reply, request};
use nix::errno::Errno;

use super::Fs;
use crate::cache::{Fetch, Item};
use crate::call::{Caller, Outcome};

/// Entries fetched at once: not the most possible, since a page is fetched again when its directory changes.
const PAGE_ENTRIES: u32 = 1024;

/// A reader's page.
#[derive(Default)]
pub struct Paged {
    /// Names with inodes and attributes, the first at offset `start`.
    page: Vec<(Bytes, Attr)>,
    start: u64,
    /// There is nothing behind the page.
    is_last: bool,
    /// Watches the directory while the page is in use, from before it was made.
    watch: Option<(Fetch, u64)>,
    /// Places passed: offsets, each with the name before it.
    marks: Vec<(u64, Bytes)>,
    /// The directory this one is in.
    pub parent: u64,
}

impl Fs {
    /// Have the entries at this offset at hand. With `fresh` they must be as they are now.
    pub(super) fn turn_page(
        &self,
        caller: &Caller,
        dir: u64,
        paged: &mut Paged,
        offset: u64,
        fresh: bool,
    ) -> Outcome<()> {
        let offset = offset.max(2);
        if paged.watch.is_some() && paged.holds(offset) {
            let is_current = paged.watch.as_ref().is_some_and(|(watch, seq)| self.cache.is_quiet_since(watch, *seq));
            if is_current || !fresh {
                return Ok(());
            }
        }
        // From the exact place if it is in this page, else from the last place known before it.
        if paged.page.len() as u64 >= offset.wrapping_sub(paged.start) && offset > paged.start {
            let before = paged.page[(offset - paged.start - 1) as usize].0.clone();
            paged.mark(offset, before);
        }
        loop {
            let (at, after) = paged.place_before(offset);
            self.fetch_page(caller, dir, paged, at, after)?;
            if paged.holds(offset) || paged.is_last {
                return Ok(());
            }
            if let Some((name, _)) = paged.page.last() {
                paged.mark(paged.start + paged.page.len() as u64, name.clone());
            }
        }
    }

    fn fetch_page(&self, caller: &Caller, dir: u64, paged: &mut Paged, at: u64, after: Bytes) -> Outcome<()> {
        self.close_page(paged);
        let watch = self.cache.begin_fetch(dir);
        let op = request::Op::ReadDir(ReadDir { dir, after, limit: PAGE_ENTRIES });
        let answer = self.worker.ask(caller, op).and_then(|answer| Ok(answer.check()?));
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.cache.drop_fetch(&watch);
                return Err(error);
            }
        };
        paged.watch = Some((watch, answer.reply.seq));
        let Some(reply::Body::Listing(listing)) = answer.reply.body else { return Err(Errno::EIO.into()) };
        paged.parent = listing.parent;
        paged.page = listing.entries.into_iter().filter_map(|entry| Some((entry.name, entry.attr?))).collect();
        paged.start = at;
        paged.is_last = !listing.more;
        Ok(())
    }

    /// The page is not used any more.
    pub(super) fn close_page(&self, paged: &mut Paged) {
        if let Some((watch, _)) = paged.watch.take() {
            self.cache.drop_fetch(&watch);
        }
    }
}

impl Paged {
    fn holds(&self, offset: u64) -> bool {
        let index = offset.wrapping_sub(self.start);
        index < self.page.len() as u64 || (self.is_last && index == self.page.len() as u64)
    }

    fn mark(&mut self, offset: u64, before: Bytes) {
        match self.marks.binary_search_by_key(&offset, |(at, _)| *at) {
            Ok(index) => self.marks[index].1 = before,
            Err(index) => self.marks.insert(index, (offset, before)),
        }
    }

    /// The last place passed at or before an offset.
    fn place_before(&self, offset: u64) -> (u64, Bytes) {
        let behind = self.marks.partition_point(|(at, _)| *at <= offset);
        behind.checked_sub(1).map_or((2, Bytes::new()), |index| self.marks[index].clone())
    }

    /// The entries from an offset on.
    pub(super) fn rest(&self, offset: u64) -> impl Iterator<Item = (&[u8], Item, Attr)> {
        let index = usize::try_from(offset.max(2).wrapping_sub(self.start)).unwrap_or(usize::MAX);
        let rest = self.page.get(index..).unwrap_or_default();
        rest.iter().map(|(name, attr)| (&name[..], Item::of(attr), *attr))
    }
}
