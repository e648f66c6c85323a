//! From one version of a file's content to the next, as the kernel sees it.
//!
//! The kernel keeps one set of pages and one size per inode, and puts the one on the other: a page that ends where an older
//! version ended has zeros behind that, which nobody has written, and a larger size shows them; a smaller one cuts off what is
//! there, and whoever writes at the end that it knows writes over what somebody else has put there. And it takes in
//! news in pieces: attributes come with any answer about the inode, pages with those to READ, opening drops pages and leaves the
//! attributes, a notification drops either, and none of them can be held together with another. So for each inode:
//!
//! 1. *It is told no other size than that of the version whose pages it has*, as long as it has any ([`Fs::tell`]): until then it is
//!    told the size it has, to be asked for again at once. It does not matter where the news came from: the worker's event, an answer
//!    that overtook it, a listing.
//! 2. *Handles that are open go on reading the old version* until all pages are dropped ([`Fs::turn`]). Only then, and only if
//!    no page was read meanwhile, what they opened is the old version: which is one step, by which every READ is
//!    either of before (its page was locked while it was under way, so that dropping waited for it; or it was noted, and all is
//!    dropped once more), or of after it. So the kernel never has pages of both.
//! 3. *An open that brings another version is answered when that is done* ([`Fs::begin_open`], [`Fs::finish_open`]). The answer
//!    waits, and no thread that any READ may need. If the kernel has no pages, dropping the attributes is enough, and waits for
//!    nobody. Then whoever has the file open asks for its size: Linux asks before it reads to the end, and before it seeks from there.
//!
//! A notification makes the kernel throw away answers to what it asked before (since Linux 5.8: the version of the attributes is
//! counted), so an older size that is still on its way does no harm after the step; an older Linux may take it until it asks
//! again. It throws away the newest size as well, and then a reader goes on with the size before, and the end of a shorter version,
//! which makes the kernel cut the size, is not noticed. So after the step there is no notification of the same news, which comes in by
//! several ways: what the kernel was told, and what it has dropped since, is noted ([`Fs::renew`]).
//!
//! While a file is written here all its pages and its size are those of the one staging file, and nothing of this applies. What is
//! left: two mounts of one disk that write one file at a time (what is opened to be read while the other writes is read past the
//! pages, [`Opened::direct`](super::Opened)); a read(2) that began before the step and ends after it may get some of each, and
//! sees old sizes if the news of yet another version comes at that moment; and readers who never pause, for whom the step is
//! taken after [`TRIES`] all the same.
//!
//! On FreeBSD opening holds what the notification waits for, so nothing is held back: see [`Fs::hold_back`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use delugefs_proto::local_pb::Attr;

use super::{Fs, Invalidation, Opening, S_IFMT, S_IFREG};
use crate::call::{Caller, Patience};
use crate::handles::OpenInode;
use crate::known::{Outdated, Version};

/// Times the pages are dropped again because somebody has read meanwhile.
const TRIES: usize = 3;

impl Fs {
    /// There is a kernel, which is told by [`Self::renew`] or [`Self::turn`] in the end of all that [`Self::invalidate`] says of
    /// contents: until then it is told nothing newer. Its opens wait for that.
    pub fn hold_back(&self) {
        self.holds_back.store(true, Ordering::Release);
    }

    pub(super) fn holds_back(&self) -> Option<()> {
        self.holds_back.load(Ordering::Acquire).then_some(())
    }

    /// Others have changed the content, and the kernel is to be told soon.
    pub(super) fn content_changes(&self, inode: &OpenInode) {
        if self.holds_back().is_none() || !self.known.contains(inode.ino) {
            inode.content_changed();
        }
    }

    /// The kernel is about to be told these attributes of an inode that it knows: what it is to be told, and whether that is all
    /// there is to say. If not it has to ask again.
    pub fn tell(&self, attr: Attr) -> (Attr, bool) {
        if attr.mode & S_IFMT != S_IFREG {
            return (attr, true);
        }
        if self.holds_back().is_none() {
            self.known.show(&attr);
            return (attr, true);
        }
        let inode = || self.open.get(attr.ino);
        // Who has an older version open and has not read it reads this one: else he would see the one cut off at the other's size.
        let keeps = |inode: Arc<OpenInode>, is_other| inode.is_filled() || is_other && !inode.change_unless_filled();
        let other = || self.known.tell(&attr, |is_other| inode().is_some_and(|inode| keeps(inode, is_other)));
        if other().is_none() {
            return (attr, true);
        }
        if inode().is_some_and(|inode| inode.writer.read().is_some()) {
            self.known.sized(attr.ino, attr.size);
            other();
            return (attr, true);
        }
        // Once more: a writer who has left since has also left the size.
        let Some(size) = other() else { return (attr, true) };
        self.invalidate(Invalidation::Content(attr.ino));
        (Attr { size, ..attr }, false)
    }

    /// The kernel has cut or extended the file itself, and is about to be told these attributes of it.
    pub fn tell_resized(&self, attr: &Attr) {
        self.known.sized(attr.ino, attr.size);
    }

    /// Have the kernel drop what it has of an inode that is not current any more, which `drop` does: its attributes, and the pages
    /// as well if that is asked for. Whoever has the file open reads the current version from then on.
    ///
    /// Nothing is dropped in vain: whoever asks for the size at that moment gets an answer that the kernel throws away, and goes on
    /// with the size before.
    pub fn renew(&self, ino: u64, drop: impl Fn(bool) -> io::Result<()>) -> io::Result<()> {
        let attr = self.getattr(&Caller::new(0, 0, Patience::Brief), ino);
        match attr {
            _ if self.holds_back().is_none() => drop(!self.pages_are_current(ino)),
            Ok(attr) if attr.mode & S_IFMT == S_IFREG => {
                self.known.show(&attr);
                self.drop_older(&attr, Version::of(&attr), drop)
            }
            _ => self.turn(ino, || drop(true)),
        }
    }

    /// The same before an open of another version is finished.
    pub fn make_way(&self, opening: &Opening, drop: impl Fn(bool) -> io::Result<()>) -> io::Result<()> {
        match opening.opens() {
            Some((attr, version)) => {
                let held_back = self.known.held_back(attr.ino);
                let dropped = self.drop_older(attr, version, &drop);
                // Who asked meanwhile was told the size before: that answer may come in after ours.
                match self.known.held_back(attr.ino) == held_back {
                    true => dropped,
                    false => self.drop_attr(attr.ino, || drop(false)),
                }
            }
            None => Ok(()),
        }
    }

    /// Whether the kernel has pages of another version than the one that is being opened. Of what is emptied it drops them itself.
    pub fn has_other_pages(&self, opening: &Opening) -> bool {
        let asked = opening.opens().filter(|_| self.holds_back().is_some() && !opening.empties());
        asked.is_some_and(|(attr, version)| self.outdated(attr, version) == Some(Outdated::Pages))
    }

    /// What the kernel has that is not of this version of a file.
    pub(super) fn outdated(&self, attr: &Attr, version: Version) -> Option<Outdated> {
        self.known.outdated(attr, version, || self.open.get(attr.ino).is_some_and(|inode| inode.is_filled()))
    }

    fn drop_older(&self, attr: &Attr, version: Version, drop: impl Fn(bool) -> io::Result<()>) -> io::Result<()> {
        let ino = attr.ino;
        let mut dropped = Ok(());
        for _ in 0..TRIES {
            match self.outdated(attr, version) {
                Some(Outdated::Pages) => break,
                Some(Outdated::Attributes) => dropped = self.drop_attr(ino, || drop(false)),
                None => {}
            }
            if self.known.is_filled(ino) {
                return dropped;
            }
            // Handles that were opened and not read.
            if self.open.get(ino).is_none_or(|inode| inode.writer.read().is_some() || inode.change_unless_filled()) {
                return dropped;
            }
        }
        self.turn(ino, || drop(true))
    }

    /// Have the kernel drop the attributes of an inode, which `drop` does.
    pub fn drop_attr(&self, ino: u64, drop: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let tellings = self.known.tellings(ino);
        let dropped = drop();
        // What the kernel does not have may be on its way to it.
        if dropped.is_ok() {
            self.known.dropped_attr(ino, tellings);
        }
        dropped
    }

    /// Have the kernel drop the pages of an inode, which `drop_pages` does, whatever they are of, and whoever has it open read the
    /// current version from then on.
    pub fn turn(&self, ino: u64, drop_pages: impl Fn() -> io::Result<()>) -> io::Result<()> {
        if self.holds_back().is_none() {
            return drop_pages();
        }
        for _ in 0..TRIES {
            let inode = self.open.get(ino);
            if let Some(inode) = &inode {
                if inode.writer.read().is_some() {
                    return self.drop_attr(ino, &drop_pages);
                }
                inode.empty();
            }
            let fillings = self.known.fillings(ino);
            let dropped = self.drop_attr(ino, &drop_pages);
            let is_turned = self.known.emptied(ino, fillings, || {
                let now = self.open.get(ino);
                let is_same = now.is_none() || now.as_ref().map(Arc::as_ptr) == inode.as_ref().map(Arc::as_ptr);
                is_same && inode.as_ref().is_none_or(|inode| inode.change_unless_filled())
            });
            if is_turned {
                return dropped;
            }
        }
        let inode = self.open.get(ino);
        if let Some(inode) = &inode {
            inode.content_changed();
            inode.empty();
        }
        let dropped = self.drop_attr(ino, &drop_pages);
        self.known.emptied(ino, self.known.fillings(ino), || true);
        if let Some(inode) = inode.filter(|inode| inode.is_filled()) {
            self.known.fill(ino, inode.given(), || false);
        }
        dropped
    }
}
