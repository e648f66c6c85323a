//! Closing files: the last writer hands the file over to the worker, and what the kernel has of it is judged by what came of it.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::time::Duration;

use delugefs_proto::local_pb::{Attr, Close, Open, request};

use super::open::ticket_of;
use super::{Fs, Invalidation, is_gone, written};
use crate::cache::Written;
use crate::call::{Caller, Patience, Stop};
use crate::handles::{OpenInode, Source, Ticket, Writer};
use crate::known::Version;
use crate::worker::{RECONNECT_WAIT, Stamp};

impl Fs {
    /// How much the worker will have to read when this handle is closed, in bytes; 0 if it is not the last writer.
    pub fn closing_bytes(&self, handle: u64) -> u64 {
        let Some(file) = self.files.get(handle).filter(|file| file.writes) else { return 0 };
        let writer = file.inode.writer.read();
        match &*writer {
            Some(writer) if writer.users.load(Ordering::Acquire) == 1 => {
                writer.file().metadata().map_or(0, |metadata| metadata.len())
            }
            _ => 0,
        }
    }

    /// Whether a handle can be closed without waiting for a lost worker.
    pub fn can_close_now(&self) -> bool {
        self.worker.link().is_some()
    }

    /// Close a handle that the kernel was not told of: whether to drop its pages it was not told either.
    pub fn release_unheard(&self, handle: u64) {
        let Some(ino) = self.files.get(handle).map(|file| file.inode.ino) else { return };
        self.known.doubt_pages(ino);
        self.release(handle);
        self.invalidate(Invalidation::Pages(ino));
    }

    /// Close a handle.
    pub fn release(&self, handle: u64) {
        let Some(file) = self.files.take(handle) else { return };
        self.came_with(&file);
        if file.writes {
            self.leave_writers(&file.inode);
        }
        let source = std::mem::replace(&mut *file.source.write(), Source { released: true, ..Source::default() });
        let ticket = source.ticket;
        drop(source);
        self.close_ticket(ticket);
        self.released(&file.inode);
    }

    /// One handle less.
    pub(super) fn released(&self, inode: &OpenInode) {
        if self.open.release(inode.ino) {
            // What a last writer left for the others.
            self.give_writer_up(inode);
        }
    }

    /// Close all handles: the kernel is gone, and some of its closing may have been lost on the way. A worker that is
    /// away is not waited for; it looks after what is left when it comes back.
    pub fn release_all(&self) {
        self.ending.store(true, Ordering::Release);
        for handle in self.files.numbers() {
            self.release(handle);
        }
    }

    /// One writer less; the last one hands the file over to the worker.
    fn leave_writers(&self, inode: &OpenInode) {
        match &*inode.writer.read() {
            Some(writer) if writer.users.fetch_sub(1, Ordering::AcqRel) == 1 => {}
            _ => return,
        }
        // A worker that is away must first be given the descriptor back, or it would not know that we are done.
        let wait = if self.ending.load(Ordering::Acquire) { Duration::ZERO } else { RECONNECT_WAIT };
        if self.worker.wait_for_link(wait).is_none() {
            let ino = format_args!("{:016x}", inode.ino);
            tracing::warn!(%ino, "closed without a diskworker; it will seal the file when it starts");
        }
        if self.open.handles(inode.ino) > 1 && !self.keep_readable(inode) {
            return; // it stays until the last handle is closed
        }
        self.give_writer_up(inode);
    }

    /// Before the last writer leaves: have something to read for those who stay. Afterwards the file may lose its name at
    /// any moment, and the worker gives nothing of a file without one. `false`: it has none any more.
    fn keep_readable(&self, inode: &OpenInode) -> bool {
        *inode.kept.lock() = None; // of an earlier version
        if self.known.orphan_attr(inode.ino).is_some() {
            return false;
        }
        let op = request::Op::Open(Open { ino: inode.ino, dir: self.dir_of(inode.ino), write: false, truncate: false });
        let caller = Caller::new(0, 0, Patience::Brief);
        match self.worker.ask(&caller, op).and_then(|answer| Ok(answer.check()?)) {
            Ok(mut answer) => {
                // Of a file being written it is the staging file: its descriptor is all that is needed.
                *inode.kept.lock() = answer.fd.take().map(File::from);
                self.close_ticket(ticket_of(&answer));
                true
            }
            Err(Stop::Failed(error)) => !is_gone(error.errno),
            // Without a worker nobody can remove the name either.
            Err(Stop::Later) => true,
        }
    }

    /// Close the descriptor and hand the file over, unless somebody has begun to use it meanwhile.
    fn give_writer_up(&self, inode: &OpenInode) {
        if let Some((writer, handing, before)) = self.take_writer(inode) {
            self.hand_over(inode, writer, handing, before);
            // Only now: until then `merged` must notice who is told something that the worker may correct.
            self.writers.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Take the descriptor, unless somebody has begun to use it meanwhile. With the number of the hand-over, and the
    /// attributes that the descriptor left behind in the cache.
    fn take_writer(&self, inode: &OpenInode) -> Option<(Writer, u64, Option<Attr>)> {
        let (taken, written, slot) = loop {
            let mut slot = inode.writer.write();
            let (uses, written) = match &*slot {
                // Whatever may go wrong, before the slot is empty: what has been taken out of it has to be handed over.
                Some(writer) if writer.users.load(Ordering::Acquire) == 0 => (writer.uses(), written(writer)),
                _ => return None,
            };
            match uses {
                // Whoever was let go while it went on. Nobody begins anew once the slot is empty.
                Some(uses) => {
                    drop(slot);
                    uses.wait_for_the_last();
                }
                None => break (slot.take()?, written, slot),
            }
        };
        let (handing, before) = written.map_or((0, None), |written| self.cache.begin_hand_over(inode.ino, written));
        self.known.amend_orphan(inode.ino, |attr| *attr = written.map_or(*attr, |written| written.over(*attr)));
        if let Some(written) = written {
            inode.fill();
            self.known.sized(inode.ino, written.size);
            let mut last = inode.last.lock();
            *last = written.over(*last);
        }
        inode.content_changed();
        // While the slot is still locked: who finds it empty sees the count.
        self.handovers.fetch_add(1, Ordering::AcqRel);
        drop(slot);
        Some((taken, handing, before))
    }

    /// Close the descriptor, tell the worker that the file is complete, and take in what it says of it.
    fn hand_over(&self, inode: &OpenInode, writer: Writer, handing: u64, before: Option<Attr>) {
        let (ticket, unwritten, sync_failed) = (writer.ticket(), !writer.is_changed(), writer.is_doubtful());
        drop(writer);
        let closed = self.close_handle(ticket, unwritten, sync_failed);
        let is_lost = closed.is_none();
        let (link, reply) = closed.unwrap_or_default();
        if reply.errno != 0 {
            let (ino, errno) = (format_args!("{:016x}", inode.ino), reply.errno);
            tracing::error!(%ino, errno, "the diskworker could not seal a written file: {}", reply.message);
        }
        let node = reply.node.filter(|node| node.nlink > 0 && reply.errno == 0);
        // Written and handed over again while this answer was on its way: that one says more.
        let written = self.cache.end_hand_over(Stamp { link, seq: reply.seq }, inode.ino, handing, node);
        match (node, written) {
            (Some(node), Some(written)) => {
                *inode.last.lock() = node;
                self.known.show(&node);
                self.judge_pages(&node, written, unwritten);
                self.recheck_pages(inode.ino, link);
                let seen = |attr: &Attr| (attr.size, attr.mtime, attr.ctime, attr.mode);
                let is_other = before.is_none_or(|before| seen(&before) != seen(&node));
                if inode.told.load(Ordering::Acquire) && (is_other || self.cache.attr(inode.ino).is_none()) {
                    self.invalidate(Invalidation::Attr(inode.ino));
                }
            }
            // Nobody says what the file is now.
            (None, _) if self.known.orphan_attr(inode.ino).is_none() => {
                if is_lost && let Some(written) = written.and_then(|written| written.written) {
                    self.awaited.await_version(inode.ino, written);
                }
                self.known.doubt_pages(inode.ino);
                self.invalidate(Invalidation::Pages(inode.ino));
            }
            _ => {}
        }
    }

    /// The kernel has pages of a file that was handed over; this node came of it. It is another version when one from elsewhere
    /// came while the file was open: in the place of a copy that nobody wrote to, or of what was written, as a conflict.
    fn judge_pages(&self, node: &Attr, written: Written, unwritten: bool) {
        let version = Version::of(node);
        let is_as_left = (written.size, written.mtime) == (node.size, node.mtime);
        // Of what was not written times say nothing, and the version that was opened is known. An empty file has no pages.
        if is_as_left && (!unwritten || node.size == 0) {
            return self.known.written(node.ino, version);
        }
        if !unwritten {
            self.known.doubt_pages(node.ino);
        }
        if self.known.pages(node.ino).is_some_and(|pages| pages != version) {
            self.invalidate(Invalidation::Content(node.ino));
        }
    }

    /// Tell the worker that its handle is not used any more, and that nothing was written through it. The descriptor must be
    /// closed already.
    pub(super) fn close_ticket(&self, ticket: Option<Ticket>) {
        self.close_handle(ticket, true, false);
    }

    fn close_handle(
        &self,
        ticket: Option<Ticket>,
        unwritten: bool,
        sync_failed: bool,
    ) -> Option<(u64, delugefs_proto::local_pb::Reply)> {
        let Ticket { link, handle } = ticket?;
        let close = request::Op::Close(Close { handle, unwritten, sync_failed });
        // Without it the worker would take the file for open as long as the link lasts: what anybody writes to it would stay as it is, seen
        // by nobody else, and a content that is being read is not let go.
        let goes_on = || !self.ending.load(Ordering::Acquire);
        Some((link, self.worker.insist_through(link, &close, goes_on)?))
    }
}
