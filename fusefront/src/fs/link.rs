//! What the worker's coming, going and news mean for the file system. Called by the events thread, which must never
//! wait for a handler: the handlers may wait for it.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use delugefs_proto::local::client::{Client, Disconnected, op};
use delugefs_proto::local_pb::{Adopt, Event, reply, request};

use super::{Fs, Invalidation};
use crate::call::{Caller, Patience};
use crate::handles::{OpenInode, Ticket};
use crate::known::Version;
use crate::worker::{NewLink, Stamp};

impl Fs {
    /// Start over with a new link, before anybody else may use it: nothing remembered is certain any more, and the
    /// worker must be given back what is open for writing. `client` is a connection of the link.
    ///
    /// # Errors
    /// When that connection is lost. Then the link is of no use: the next one tries again.
    pub fn link_up(&self, link: &NewLink, client: &mut Client) -> Result<(), Disconnected> {
        self.ask_disk(&link.welcome.disk_id, link.number);
        self.forget_all(Stamp { link: link.number, seq: 0 });
        for inode in self.open.all() {
            // Whoever changed it while nobody told us.
            inode.renamed_here.store(false, Ordering::Release);
            self.content_changes(&inode);
            self.readopt(&inode, link, client)?;
        }
        Ok(())
    }

    /// Tell the kernel to drop what it may have missed the news of; after the link was published.
    pub fn link_was_lost(&self) {
        self.invalidate(Invalidation::All);
    }

    /// Whether the pages the kernel has of a file are of its current version: then a change was of something else, or
    /// it was our own, told to us again. Asks the worker if need be; for the thread that carries out invalidations.
    pub fn pages_are_current(&self, ino: u64) -> bool {
        // It must not wait for a lost worker: handlers may wait for it.
        let caller = Caller::new(0, 0, Patience::Brief);
        match self.getattr(&caller, ino) {
            Ok(attr) => self.known.pages(ino) == Some(Version::of(&attr)),
            Err(_) => false,
        }
    }

    fn readopt(&self, inode: &OpenInode, link: &NewLink, client: &mut Client) -> Result<(), Disconnected> {
        // It is not handed over before it has its ticket, and it takes no further descriptor, which we may not be able to have.
        let Some(staging) = inode.in_use() else { return Ok(()) };
        let adopt = Adopt { ino: inode.ino, dir: self.dir_of(inode.ino), sync_failed: staging.is_doubtful() };
        let (reply, _) = client.call(&op(request::Op::Adopt(adopt)), Some(staging.file().as_fd()))?;
        if reply.errno != 0 && self.known.orphan_attr(inode.ino).is_none() {
            tracing::error!(
                ino = %format_args!("{:016x}", inode.ino), errno = reply.errno,
                "the diskworker did not take an open file back: {}", reply.message
            );
        }
        staging.set_ticket(match reply.body {
            Some(reply::Body::Opened(opened)) if reply.errno == 0 => Ticket::new(link.number, opened.handle),
            _ => None,
        });
        Ok(())
    }

    /// Others changed something.
    pub fn event(&self, link: u64, event: &Event) {
        if event.all {
            self.forget_all(Stamp { link, seq: event.seq });
            self.awaited.hears_of_all();
            for inode in self.open.all() {
                inode.renamed_here.store(false, Ordering::Release);
                self.known.changed_elsewhere_too(inode.ino);
                self.content_changes(&inode);
            }
            return self.invalidate(Invalidation::All);
        }
        let stamp = Stamp { link, seq: event.seq };
        for changed in &event.changed {
            // What is open of these may be gone, and then nobody can be asked what it was.
            changed.inos.iter().filter_map(|ino| self.cache.attr(*ino)).for_each(|attr| self.know_last(&attr));
            // What changes no name takes none.
            if !event.here || changed.dir != 0 {
                let open = changed.inos.iter().filter_map(|ino| self.open.get(*ino));
                open.for_each(|inode| inode.renamed_here.store(event.here, Ordering::Release));
            }
            if !event.here {
                changed.inos.iter().for_each(|ino| self.known.changed_elsewhere_too(*ino));
            }
            self.cache.event(stamp, changed);
            self.note_news();
            for &ino in &changed.inos {
                self.known.changed_elsewhere(ino, stamp);
                self.awaited.hears_of(ino);
                if let Some(inode) = self.open.get(ino) {
                    self.content_changes(&inode);
                }
                if self.known.contains(ino) {
                    self.invalidate(Invalidation::Content(ino));
                }
            }
            if changed.dir != 0 {
                self.known.relist(changed.dir);
                for name in &changed.names {
                    self.invalidate(Invalidation::Name { dir: changed.dir, name: Box::from(&name[..]) });
                }
                self.invalidate(Invalidation::Dir(changed.dir));
            }
        }
    }
}
