//! Opening files. See [`crate::handles`] for what handles of one inode share.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::local_pb::{self, Attr, Create, Open, reply, request};
use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::lookup::check_name;
use super::{Change, Fs, Invalidation, S_IFMT, S_IFREG, S_ISGID, S_ISUID, S_IXGRP, is_gone, required};
use crate::cache::Found;
use crate::call::{Caller, Outcome, Stop, Unread};
use crate::handles::{Content, FileHandle, OpenInode, Partial, Source, Ticket, Writer};
use crate::known::{Dropping, Outdated, Place, Version};
use crate::worker::{Answer, Stamp};

/// What opening gives.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The handle's number.
    pub handle: u64,
    /// The pages the kernel has of this inode are still good.
    pub keep_pages: bool,
    /// The kernel must not read or write its pages through this handle: it is being written through another mount, and any two
    /// reads may be of different contents under one size; or it is new, and is only written.
    pub direct: bool,
}

/// An open that is half done.
#[derive(Debug)]
pub struct Opening {
    /// What the kernel has to drop before it gets the answer ([`Fs::make_way`]).
    pub outdated: Option<Outdated>,
    state: OpeningState,
}

impl Opening {
    /// The node and the version of its content, if the worker was asked for them.
    pub(super) fn opens(&self) -> Option<(&Attr, Version)> {
        match &self.state {
            OpeningState::Done(_) => None,
            OpeningState::Asked(asked) => Some((&asked.attr, asked.version)),
        }
    }

    /// It is emptied by that.
    pub(super) fn empties(&self) -> bool {
        matches!(&self.state, OpeningState::Asked(asked) if asked.truncate)
    }
}

#[derive(Debug)]
enum OpeningState {
    Done(Opened),
    Asked(Box<Asked>),
}

#[derive(Debug)]
struct Asked {
    answer: Answer,
    attr: Attr,
    version: Version,
    write: bool,
    truncate: bool,
}

impl Fs {
    /// Make a regular file and open it for reading and writing.
    /// Of a name that somebody else has made since the kernel looked it up, the kernel is to look again: then it opens what is
    /// there, as a caller who does not insist on a new file (`exclusive`) wants it, and asks whether he may. ESTALE makes it
    /// do that.
    pub fn create(
        &self,
        caller: &Caller,
        dir: u64,
        name: &Bytes,
        mode: u32,
        exclusive: bool,
    ) -> Outcome<(Attr, Opened)> {
        check_name(name)?;
        let (gid, _) = self.group_for(caller, dir)?;
        has_descriptor_left()?;
        let mode = mode & !S_IFMT | S_IFREG;
        let (uid, ino) = (caller.uid, caller.proposal());
        let op = request::Op::Create(Create { dir, name: name.clone(), mode, uid, gid, ino });
        let mut answer = match self.worker.change(caller, op) {
            Err(Stop::Failed(error)) if error.errno == Errno::EEXIST && !exclusive => {
                self.cache.forget_name(dir, name);
                return Err(Errno::ESTALE.into());
            }
            answer => answer?,
        };
        let attr = self.made(&answer, dir, name)?;
        let (file, ticket) = self.writable(&mut answer)?;
        let inode = self.open.acquire(&attr);
        self.join_writers(&inode, file, ticket);
        let handle = self.files.put(FileHandle::new(inode, true, Source::default(), None));
        Ok((attr, Opened { handle, keep_pages: true, direct: false }))
    }

    /// The kernel is to write a new file past its pages.
    pub fn make_direct(&self, opened: Opened) -> Opened {
        if let Some(file) = self.files.get(opened.handle) {
            file.direct.store(true, Ordering::Release);
        }
        Opened { direct: true, ..opened }
    }

    /// This handle is for reading and writing: the file can be changed through a map of it.
    pub fn make_mappable(&self, handle: u64) {
        if let Some(writer) = self.files.get(handle).and_then(|file| file.inode.in_use()) {
            writer.is_mappable();
        }
    }

    /// Open a regular file. `truncate` empties it, and needs `write`.
    pub fn open(&self, caller: &Caller, ino: u64, write: bool, truncate: bool) -> Outcome<Opened> {
        self.begin_open(caller, ino, write, truncate).and_then(|opening| self.finish_open(opening))
    }

    /// Ask for what [`Self::finish_open`] opens when the kernel has dropped what is outdated.
    pub fn begin_open(&self, caller: &Caller, ino: u64, write: bool, truncate: bool) -> Outcome<Opening> {
        if truncate {
            self.clear_privileges(caller, ino)?;
        }
        if let Some(opened) = self.open_shared(ino, write, truncate)? {
            return Ok(Opening { outdated: None, state: OpeningState::Done(opened) });
        }
        // One that was replaced a moment ago can be read yet: who opens it by its name looked that up before.
        if self.known.orphan_attr(ino).is_some() && write {
            return Err(Errno::ESTALE.into());
        }
        if truncate {
            has_descriptor_left()?;
        } else {
            self.is_not_behind(caller, ino)?;
        }
        let op = request::Op::Open(Open { ino, dir: self.dir_of(ino), write, truncate });
        let answer = match write {
            true => self.worker.change(caller, op),
            false => self.worker.ask(caller, op).and_then(|answer| Ok(answer.check()?)),
        };
        let answer = match answer {
            Err(stop) => return Err(self.to_be_looked_up(ino, stop)),
            Ok(answer) => answer,
        };
        self.take_in(&answer);
        let attr = match answer.reply.node {
            Some(node) => node,
            None => self.getattr(caller, ino)?,
        };
        // What another mount is writing may be something else in a moment, under the same times: no version to keep pages of.
        let is_shared = matches!(&answer.reply.body, Some(reply::Body::Opened(opened)) if opened.shared);
        let version = if is_shared { Version::default() } else { Version::of(&attr) };
        // What it empties the kernel empties, too.
        let outdated = self.holds_back().filter(|()| !truncate).and_then(|()| self.outdated(&attr, version));
        if truncate {
            self.awaited.forget(ino);
        }
        let asked = Asked { answer, attr, version, write, truncate };
        Ok(Opening { outdated, state: OpeningState::Asked(Box::new(asked)) })
    }

    /// The second half of [`Self::open`].
    pub fn finish_open(&self, opening: Opening) -> Outcome<Opened> {
        let Asked { mut answer, attr, version, write, truncate } = match opening.state {
            OpeningState::Done(opened) => return Ok(opened),
            OpeningState::Asked(asked) => *asked,
        };
        let ino = attr.ino;
        // The worker was lost meanwhile, and perhaps left for another disk's: what is open was given back to the new link, and this was
        // not among it. The kernel opens it anew.
        if write && !self.cache.follows(answer.link) {
            return Err(Errno::ESTALE.into());
        }
        // Somebody else has opened a newer version meanwhile: it is opened anew before it is read.
        let is_older = self.holds_back().is_some() && self.known.is_older(ino, answer.stamp()) && !write;
        let dropping = if is_older { None } else { self.known.opened(ino, version) };
        self.recheck_pages(ino, answer.link);
        let keep_pages = dropping.is_none() && !is_older;
        if write {
            let (file, ticket) = self.writable(&mut answer)?;
            let inode = self.acquire(&attr, dropping.as_ref());
            self.join_writers(&inode, file, ticket);
            if truncate && let Some(writer) = &*inode.writer.read() {
                // It has changed by that, and when, the descriptor says.
                writer.to_change();
            }
            let handle = self.files.put(FileHandle::new(inode, true, Source::default(), dropping));
            return Ok(Opened { handle, keep_pages, direct: false });
        }
        let is_written = matches!(&answer.reply.body, Some(reply::Body::Opened(opened)) if opened.written);
        let inode = self.acquire(&attr, dropping.as_ref());
        let generation = match is_older {
            true => inode.generation().wrapping_sub(1),
            false => self.generation_of(&inode, answer.stamp()),
        };
        match self.readable(&mut answer, generation) {
            Ok(source) => {
                let place = if is_written { Place::None } else { place_of(&source.content) };
                let is_of_other = self.known.is_of_other_file(ino, place) && dropping.is_none();
                if is_of_other {
                    inode.content_changed(); // other handles have a descriptor of it
                }
                let handle = self.files.put(FileHandle::new(inode, false, source, dropping));
                Ok(Opened { handle, keep_pages: keep_pages && !is_of_other, direct: is_written })
            }
            Err(error) => {
                self.released(&inode);
                Err(error)
            }
        }
    }

    /// One handle more. When the version is another one than the kernel has pages of, it drops them with our answer, and
    /// nobody may fill them from the older one any more; the event that tells of it may still be on its way.
    fn acquire(&self, attr: &Attr, dropping: Option<&Dropping>) -> Arc<OpenInode> {
        let inode = self.open.acquire(attr);
        if dropping.is_some_and(|dropping| dropping.is_first) {
            inode.content_changed();
        }
        inode
    }

    /// The generation of a content that was opened before anybody could be told of its changes. If something was heard of
    /// since the answer was made it is an older one, to be opened anew before it is read: an event is noted in the cache
    /// first, and then looks for what is open.
    fn generation_of(&self, inode: &OpenInode, stamp: Stamp) -> u64 {
        let generation = inode.generation();
        if self.cache.is_late(stamp) { generation.wrapping_sub(1) } else { generation }
    }

    /// Open an inode that is being written here: no request is needed. `None` if it is not.
    fn open_shared(&self, ino: u64, write: bool, truncate: bool) -> Outcome<Option<Opened>> {
        let Some(inode) = self.open.acquire_open(ino) else { return Ok(None) };
        let joined = match &*inode.writer.read() {
            Some(writer) => {
                let emptied = if truncate { writer.to_change().set_len(0) } else { Ok(()) };
                if truncate {
                    writer.is_cut(0);
                }
                if emptied.is_ok() && write {
                    writer.users.fetch_add(1, Ordering::AcqRel);
                }
                emptied.map(|()| true)
            }
            None => Ok(false),
        };
        if !matches!(joined, Ok(true)) {
            self.open.release(ino);
            joined?;
            return Ok(None);
        }
        let dropping = self.known.joined(ino);
        let keep_pages = dropping.is_none();
        let handle = self.files.put(FileHandle::new(inode, write, Source::default(), dropping));
        Ok(Some(Opened { handle, keep_pages, direct: false }))
    }

    /// One writer more, with a descriptor that is only used if there is none yet.
    fn join_writers(&self, inode: &OpenInode, file: File, ticket: Option<Ticket>) {
        let mut spare = None;
        {
            let mut writer = inode.writer.write();
            match &*writer {
                Some(writer) => {
                    writer.users.fetch_add(1, Ordering::AcqRel);
                    spare = Some(file);
                }
                None => {
                    *writer = Some(Writer::new(file, ticket));
                    self.writers.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
        // Two opened at once: one descriptor is enough. It is closed before its handle, as agreed with the worker.
        if let Some(file) = spare {
            drop(file);
            self.close_ticket(ticket);
        }
    }

    /// Whether it may have set-user-id bits that writing clears.
    pub(crate) fn has_privileges(&self, ino: u64) -> bool {
        let attr = self.known.orphan_attr(ino).or_else(|| self.cache.attr(ino));
        attr.is_none_or(|attr| attr.mode & (S_ISUID | S_ISGID) != 0)
    }

    /// What the kernel does not do when the file system empties a file on open. The mode is given as a whole, so it must be
    /// made from what it is now: what was known when the file was opened before may have been changed since. Done before the file
    /// is emptied, so that the whole can begin again on a thread that may wait.
    pub(crate) fn clear_privileges(&self, caller: &Caller, ino: u64) -> Outcome<()> {
        if caller.uid == 0 {
            return Ok(());
        }
        let own = Caller::new(0, 0, caller.patience);
        let cleared = self.getattr(&own, ino).and_then(|attr| {
            let mut mode = attr.mode & !S_ISUID;
            if mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP {
                mode &= !S_ISGID;
            }
            if mode == attr.mode {
                return Ok(());
            }
            self.setattr(&own, ino, &Change { mode: Some(mode), ..Change::default() })?;
            self.invalidate(Invalidation::Attr(ino));
            Ok(())
        });
        match cleared {
            Err(Stop::Later) => cleared,
            Err(error) => {
                tracing::warn!(?error, "cannot clear the set-user-id bits of a truncated file");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// How much the worker has to copy before the inode can be written, in bytes; 0 if unknown or nothing.
    pub fn opening_bytes(&self, ino: u64) -> u64 {
        match self.open.get(ino) {
            Some(inode) if inode.writer.read().is_some() => 0,
            _ => self.cache.attr(ino).map_or(0, |attr| attr.size),
        }
    }

    /// How much the worker may have to read before a file comes in the place of another, in bytes; 0 if unknown.
    pub fn moving_bytes(&self, dir: u64, name: &Bytes) -> u64 {
        match self.cache.lookup(dir, name) {
            Found::Node(attr) => self.open.get(attr.ino).map_or(attr.size, |inode| match &*inode.writer.read() {
                Some(writer) => writer.file().metadata().map_or(0, |metadata| metadata.len()),
                None => attr.size,
            }),
            _ => 0,
        }
    }

    /// The kernel has come with a handle, and so has taken in the answer that gave it.
    pub(super) fn came_with(&self, file: &FileHandle) {
        if let Some(dropping) = &file.dropping {
            self.known.dropped(file.inode.ino, dropping);
        }
    }

    /// The same by its number.
    pub fn came_with_handle(&self, handle: u64) {
        if let Some(file) = self.files.get(handle) {
            self.came_with(&file);
        }
    }

    /// Make sure that the handle can be read: open the content's current version if it has an older one or none.
    pub fn prepare_read(&self, caller: &Caller, file: &FileHandle) -> Outcome<()> {
        if file.is_readable() { Ok(()) } else { self.reopen(caller, file) }
    }

    /// The disk cannot read what the handle has (EIO): tell the worker, and open what it gives then, which may be another disk's. Whether
    /// there is something else to be read.
    pub(super) fn reopen_unread(&self, caller: &Caller, file: &FileHandle, offset: u64, length: u64) -> Outcome<bool> {
        let ino = file.inode.ino;
        if caller.unread.get() == Unread::Failed {
            // Who has the disk pulled out is not to wait for its worker.
            if self.worker.link().is_none() {
                return Ok(false);
            }
            let unread = local_pb::Unread { ino, dir: self.dir_of(ino), offset, length, ..Default::default() };
            match self.worker.ask(caller, request::Op::Unread(unread))?.check() {
                Ok(_) => caller.unread.set(Unread::Told),
                // It was replaced or removed, or is nothing that the worker knows of.
                Err(_) => return Ok(false),
            }
        }
        match self.reopen(caller, file) {
            Ok(()) => {
                caller.unread.set(Unread::Reopened);
                Ok(true)
            }
            Err(Stop::Failed(error)) if error.errno != Errno::EINTR => {
                tracing::warn!("file {ino:016x}, which this disk cannot read, does not come from another one: {error}");
                Ok(false)
            }
            stopped => stopped.map(|()| false),
        }
    }

    fn reopen(&self, caller: &Caller, file: &FileHandle) -> Outcome<()> {
        let (ino, generation) = (file.inode.ino, file.inode.generation());
        let kept = || file.inode.kept.lock().as_ref().and_then(|kept| kept.try_clone().ok());
        self.is_not_behind(caller, ino)?;
        let op = request::Op::Open(Open { ino, dir: self.dir_of(ino), write: false, truncate: false });
        let answer = self.worker.ask(caller, op)?.check().map_err(Stop::from);
        let fresh = answer.and_then(|mut answer| {
            let stamp = answer.stamp();
            if let Some(node) = answer.reply.node.filter(|_| file.inode.generation() == generation) {
                *file.inode.last.lock() = node;
                // What the kernel is told has to be as new as what it reads.
                self.take_in(&answer);
            }
            let mut source = self.readable(&mut answer, generation)?;
            if self.holds_back().is_some() {
                // Who has opened another version and not read it yet reads this one, too.
                if source.version.is_some_and(|(version, _)| self.known.reopened(ino, version)) {
                    source.generation = file.inode.content_changed_since(generation).unwrap_or(generation);
                }
                // Who has opened an older one at the same time must not count as the last.
                self.known.is_older(ino, stamp);
                // It could not wait for the kernel's having dropped the pages of the version before.
                if file.inode.is_filled() && self.known.fill(ino, source.version, || false) {
                    self.invalidate(Invalidation::Content(ino));
                }
            }
            Ok(source)
        });
        let old = {
            let mut source = file.source.write();
            match fresh {
                // A reader that was killed has been answered, and the handle released while this went on: nobody would close it.
                Ok(fresh) if source.released => fresh,
                Ok(fresh) => std::mem::replace(&mut *source, fresh),
                // Removed, and never opened for reading by itself: what its last writer left.
                Err(Stop::Failed(error)) if is_gone(error.errno) && matches!(source.content, Content::None) => {
                    let Some(kept) = kept() else { return Err(error.into()) };
                    let kept = Source { content: Content::File(Arc::new(kept)), generation, ..Source::default() };
                    std::mem::replace(&mut *source, kept)
                }
                // Removed by somebody else: what was opened can still be read.
                Err(Stop::Failed(error)) if is_gone(error.errno) && !matches!(source.content, Content::None) => {
                    source.generation = generation;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        };
        let ticket = old.ticket;
        drop(old);
        self.close_ticket(ticket);
        if file.source.read().released { Err(Errno::EBADF.into()) } else { Ok(()) }
    }

    /// The descriptor of an answer to opening for writing.
    fn writable(&self, answer: &mut Answer) -> Outcome<(File, Option<Ticket>)> {
        let ticket = ticket_of(answer);
        match answer.fd.take() {
            Some(fd) => Ok((File::from(fd), ticket)),
            None => Err(self.without_descriptor(ticket)),
        }
    }

    /// The content of an answer to opening for reading.
    fn readable(&self, answer: &mut Answer, generation: u64) -> Outcome<Source> {
        let ticket = ticket_of(answer);
        let content = match (&answer.reply.body, answer.fd.take()) {
            (Some(reply::Body::Opened(opened)), Some(fd)) if opened.partial => {
                Content::Partial(Arc::new(Partial::new(File::from(fd), opened.size, &self.partials)))
            }
            (_, Some(fd)) => Content::File(Arc::new(File::from(fd))),
            (Some(reply::Body::Opened(opened)), None) if opened.has_inline => Content::Inline(opened.inline.clone()),
            _ => return Err(self.without_descriptor(ticket)),
        };
        let is_shared = matches!(&answer.reply.body, Some(reply::Body::Opened(opened)) if opened.shared);
        let version = |node: &Attr| if is_shared { Version::default() } else { Version::of(node) };
        let version = answer.reply.node.as_ref().map(|node| (version(node), node.size));
        Ok(Source { content, generation, ticket, version, released: false })
    }

    /// The worker has opened it, and the kernel could not give us the descriptor: as long as the worker takes it for open
    /// nobody else gets what was written. ENFILE, for it is not the caller who has too many.
    fn without_descriptor(&self, ticket: Option<Ticket>) -> Stop {
        self.close_ticket(ticket);
        no_descriptor_left().into()
    }

    /// The open file with this number.
    pub fn file(&self, handle: u64) -> Outcome<Arc<FileHandle>> {
        Ok(self.files.get(handle).ok_or(Errno::EBADF)?)
    }
}

impl FileHandle {
    /// Whether the kernel writes past its pages.
    pub fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Acquire)
    }

    /// Whether reading needs no request.
    pub fn is_readable(&self) -> bool {
        if self.inode.writer.read().is_some() {
            return true;
        }
        let source = self.source.read();
        !matches!(source.content, Content::None) && source.generation == self.inode.generation()
    }
}

/// Of a file that does not say which it is no pages are kept for another one.
fn place_of(content: &Content) -> Place {
    let Content::File(file) = content else {
        return if matches!(content, Content::Partial(_)) { Place::Parts } else { Place::None };
    };
    fstat(file).map_or(Place::Parts, |stat| {
        let mut hasher = DefaultHasher::new();
        (stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec).hash(&mut hasher);
        Place::File(hasher.finish())
    })
}

pub(super) fn ticket_of(answer: &Answer) -> Option<Ticket> {
    match &answer.reply.body {
        Some(reply::Body::Opened(opened)) => Ticket::new(answer.link, opened.handle),
        _ => None,
    }
}

/// To be asked before what cannot be taken back: making a file, and emptying one. Another thread may have the last one yet.
fn has_descriptor_left() -> FsResult<()> {
    match io::stderr().as_fd().try_clone_to_owned() {
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => Err(no_descriptor_left()),
        _ => Ok(()),
    }
}

fn no_descriptor_left() -> FsError {
    FsError::new(Errno::ENFILE, "this mount has as many files open as its process may: raise its limit of open files")
}

/// Attributes every answer to making or changing must have.
pub(super) fn node_of(answer: &Answer) -> Outcome<Attr> {
    required(answer.reply.node)
}
