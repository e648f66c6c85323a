//! Names and attributes: from the cache, or from the worker into the cache.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use delugefs_proto::errno::FsError;
use delugefs_proto::limits::{NAME_MAX_BYTES, READDIR_MAX_ENTRIES};
use delugefs_proto::local_pb::{Attr, GetAttr, Lookup, ReadDir, ReadLink, StatFs, StatFsReply, reply, request};
use nix::errno::Errno;

use super::{Fs, S_IFDIR, S_IFMT, is_gone, required};
use crate::cache::{Fetched, Found, Item, List, Snapshot};
use crate::call::{Caller, Outcome, Stop};
use crate::worker::Answer;

/// How often a listing is fetched anew because the directory changed meanwhile.
const FETCH_TRIES: usize = 3;
/// How long an answer to statfs is given again.
const STATFS_AGE: Duration = Duration::from_secs(1);

impl Fs {
    /// The node a name belongs to; `None` if there is no such name. Also "." of any inode, and ".." of a directory:
    /// that is how a kernel finds what an NFS client has the number of, and it may have forgotten the inode long ago.
    pub fn lookup(&self, caller: &Caller, dir: u64, name: &[u8]) -> Outcome<Option<Attr>> {
        match name {
            b"." => return self.getattr(caller, dir).map(Some),
            b".." => return self.parent(caller, dir).map(Some),
            _ => check_name(name)?,
        }
        let since = self.moment();
        match self.cache.lookup(dir, name) {
            Found::Node(attr) => return self.current(caller, since, attr).map(Some),
            Found::Absent => return Ok(None),
            Found::UnknownDir if self.known.orphan_attr(dir).is_some() => return Ok(None),
            Found::UnknownDir => {
                self.load(caller, dir, self.cache.looked_up_entries())?;
            }
            Found::Stale(_) | Found::Unknown => {}
        }
        let since = self.moment();
        match self.cache.lookup(dir, name) {
            Found::Node(attr) => self.current(caller, since, attr).map(Some),
            Found::Absent => Ok(None),
            _ => self.lookup_one(caller, dir, name),
        }
    }

    /// Ask the worker for one name.
    pub(super) fn lookup_one(&self, caller: &Caller, dir: u64, name: &[u8]) -> Outcome<Option<Attr>> {
        let op = request::Op::Lookup(Lookup { dir, name: Bytes::copy_from_slice(name) });
        let since = self.moment();
        let watch = self.cache.begin_fetch(dir);
        let answer = match self.worker.ask(caller, op) {
            Ok(answer) if answer.reply.errno == Errno::ENOENT as u32 => {
                self.cache.finish_absent(&watch, answer.link, name);
                return Ok(None);
            }
            other => {
                self.cache.drop_fetch(&watch);
                other?.check()?
            }
        };
        let attr = required(answer.reply.node)?;
        self.cache.apply(answer.stamp(), |patch| patch.found(dir, name, attr));
        self.current(caller, since, attr).map(Some)
    }

    /// The inode's attributes.
    pub fn getattr(&self, caller: &Caller, ino: u64) -> Outcome<Attr> {
        loop {
            let (since, news, asked) = (self.moment(), self.news(), self.awaited.since());
            let known = self.known.orphan_attr(ino).or_else(|| self.cache.attr(ino));
            let attr = match known {
                Some(attr) => attr,
                // As it was shown; it may take the worker long to find that it knows nothing of it.
                None if self.awaited.was_unheard(ino, self.worker.link()) => {
                    *self.open.get(ino).ok_or(Errno::ESTALE)?.last.lock()
                }
                None => match self.ask_attr(caller, ino) {
                    // One disk has said so, and another one is asked by now.
                    Err(Stop::Failed(error)) if is_gone(error.errno) && self.awaited.since() != asked => continue,
                    Err(Stop::Failed(error)) if is_gone(error.errno) => match self.is_unheard(ino, news) {
                        true => *self.open.get(ino).ok_or(Stop::Failed(error))?.last.lock(),
                        false => self.bereave(ino).ok_or(Stop::Failed(error))?,
                    },
                    other => other?,
                },
            };
            // Once more if the file was handed over meanwhile, and the cache has no room for what it is now.
            if let Some(attr) = self.merged(since, attr) {
                if known.is_none() {
                    self.know_last(&attr);
                }
                return Ok(attr);
            }
        }
    }

    /// The directory a directory hangs in; the root hangs in itself.
    fn parent(&self, caller: &Caller, dir: u64) -> Outcome<Attr> {
        let attr = self.getattr(caller, dir)?;
        match attr.mode & S_IFMT {
            S_IFDIR => self.getattr(caller, attr.dir),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    pub(super) fn ask_attr(&self, caller: &Caller, ino: u64) -> Outcome<Attr> {
        let op = request::Op::GetAttr(GetAttr { ino, dir: self.dir_of(ino) });
        let answer = self.worker.ask(caller, op)?.check()?;
        let attr = required(answer.reply.node)?;
        self.take_in(&answer);
        self.known.moved(&attr);
        Ok(attr)
    }

    /// The node of an answer about an inode; one without a name was replaced a moment ago.
    pub(super) fn take_in(&self, answer: &Answer) {
        match answer.reply.node {
            Some(node) if node.nlink == 0 => {
                self.known.orphan(node);
                // Who is told ESTALE of it looks up the name once more, and is not to be told of it again.
                self.cache.doubt(node.ino);
            }
            node => self.cache.apply(answer.stamp(), |patch| patch.node(node)),
        }
    }

    /// The worker does not know the inode any more: somebody else removed it. If it is open here it lives on as an
    /// orphan, with the attributes it had.
    pub(super) fn bereave(&self, ino: u64) -> Option<Attr> {
        let inode = self.open.get(ino)?;
        let last = *inode.last.lock();
        match inode.renamed_here.load(Ordering::Acquire) {
            true => self.known.removed_beside(last),
            false => self.known.orphan(last),
        }
        self.known.orphan_attr(ino)
    }

    /// What the kernel is told when it comes by a name with an inode that the worker does not know any more: it was replaced or
    /// removed elsewhere, and the event of that is on its way. With ESTALE the kernel looks the name up once more, and must not be
    /// told of this inode again.
    pub(super) fn to_be_looked_up(&self, ino: u64, stop: Stop) -> Stop {
        match stop {
            Stop::Failed(error) if is_gone(error.errno) => {
                self.cache.doubt(ino);
                FsError::new(Errno::ESTALE, error.message).into()
            }
            other => other,
        }
    }

    /// For [`Self::bereave`]: an inode that is open has these attributes now.
    pub(super) fn know_last(&self, attr: &Attr) {
        if let Some(inode) = self.open.get(attr.ino) {
            *inode.last.lock() = *attr;
        }
    }

    /// Load a whole directory into the cache, and return its names. `None` if it has more than `limit` entries; then
    /// only that is remembered.
    pub(super) fn load(&self, caller: &Caller, dir: u64, limit: usize) -> Outcome<Option<Snapshot>> {
        for last_try in (0..FETCH_TRIES).map(|n| n + 1 == FETCH_TRIES) {
            let fetch = self.cache.begin_fetch(dir);
            let fetched = self.fetch(caller, dir, limit).inspect_err(|_| self.cache.drop_fetch(&fetch))?;
            let Some((link, fetched)) = fetched else {
                self.cache.drop_fetch(&fetch);
                continue;
            };
            let complete = fetched.complete;
            // Kept for the last try: names that changed meanwhile may be in or not, as for any reader.
            let own = (last_try && complete).then(|| snapshot_of(&fetched));
            if self.cache.finish_fetch(&fetch, link, fetched) {
                match self.cache.snapshot(dir) {
                    Some(snapshot) => return Ok(Some(snapshot)),
                    None if !complete => return Ok(None),
                    None => {}
                }
            }
            if own.is_some() {
                return Ok(own);
            }
        }
        Ok(None)
    }

    /// All pages of a directory. `None` if the link changed in between.
    fn fetch(&self, caller: &Caller, dir: u64, limit: usize) -> Outcome<Option<(u64, Fetched)>> {
        let mut fetched = Fetched { complete: true, ..Fetched::default() };
        let mut link = None;
        let mut after = Bytes::new();
        let mut entries = 0;
        loop {
            let op = request::Op::ReadDir(ReadDir { dir, after, limit: READDIR_MAX_ENTRIES });
            let answer = self.worker.ask(caller, op)?.check()?;
            if *link.get_or_insert(answer.link) != answer.link {
                return Ok(None);
            }
            let seq = answer.reply.seq;
            let (own, listing) = (answer.reply.dir, listing(answer)?);
            if let (Some(own), Some(link)) = (own, link) {
                self.cache.apply(crate::worker::Stamp { link, seq }, |patch| patch.node(Some(own)));
            }
            fetched.parent = listing.parent;
            entries += listing.entries.len();
            after = listing.entries.last().map(|entry| entry.name.clone()).unwrap_or_default();
            let more = listing.more && !after.is_empty();
            fetched.pages.push((seq, listing.entries));
            if more && entries > limit {
                fetched.complete = false;
            }
            if !more || !fetched.complete {
                return Ok(link.map(|link| (link, fetched)));
            }
        }
    }

    /// The target of a symlink.
    pub fn readlink(&self, caller: &Caller, ino: u64) -> Outcome<Bytes> {
        let op = request::Op::ReadLink(ReadLink { ino, dir: self.dir_of(ino) });
        let answer = self.worker.ask(caller, op)?.check().map_err(|error| self.to_be_looked_up(ino, error.into()))?;
        match answer.reply.body {
            Some(reply::Body::Data(target)) => Ok(target),
            _ => Err(Errno::EIO.into()),
        }
    }

    /// Sizes of the file system: at most a second old, or the last ones known while the worker is away.
    pub fn statfs(&self, caller: &Caller) -> Outcome<StatFsReply> {
        let last = *self.statfs.lock();
        if let Some((at, reply)) = last
            && (at.elapsed() < STATFS_AGE || self.worker.link().is_none())
        {
            return Ok(reply);
        }
        match self.worker.ask(caller, request::Op::StatFs(StatFs {}))?.check()?.reply.body {
            Some(reply::Body::StatFs(reply)) => {
                *self.statfs.lock() = Some((Instant::now(), reply));
                Ok(reply)
            }
            _ => Err(Errno::EIO.into()),
        }
    }
}

fn listing(answer: Answer) -> Outcome<delugefs_proto::local_pb::Listing> {
    match answer.reply.body {
        Some(reply::Body::Listing(listing)) => Ok(listing),
        _ => Err(Errno::EIO.into()),
    }
}

fn snapshot_of(fetched: &Fetched) -> Snapshot {
    let entries = fetched.pages.iter().flat_map(|(_, entries)| entries);
    let list: List = entries.filter_map(|entry| Some((Box::from(&entry.name[..]), Item::of(&entry.attr?)))).collect();
    Snapshot { list: list.into(), parent: fetched.parent }
}

/// Linux leaves the length of names to the server.
pub(super) fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_MAX_BYTES { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
}
