//! Sealing: from a staged file to content with a name for ever.

use std::cell::Cell;
use std::collections::{HashSet, VecDeque};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::{DiskId, Ino};
use delugefs_proto::local_pb::Changed;
use delugefs_proto::record::Dot;
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use super::room::is_full;
use super::staged::Work;
use super::written::SealedAs;
use super::{Core, Engine, SessionId};
use crate::content::{Seal, SealJob, Sealed, SealedSmall, Stamp};
use crate::namespace::{Located, NewContent};

/// Threads that seal. One of them hashes at a time; the others wait for disks: for the one that takes a content, for the
/// commit that names it, for that other disk to follow, which are tens of milliseconds each where disks turn.
pub(super) const SEALERS: usize = 8;

/// Files waiting for the sealing threads.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<Waiting>,
    ready: Condvar,
    hashing: Mutex<()>,
}

#[derive(Default)]
struct Waiting {
    order: VecDeque<Ino>,
    /// The same: there may be hundreds of thousands, and each is offered again every second.
    known: HashSet<Ino>,
    /// Taken from the queue, and not done.
    under_way: usize,
    is_closed: bool,
}

impl Queue {
    pub fn push(&self, ino: Ino) {
        let mut state = self.state.lock();
        if state.known.insert(ino) {
            state.order.push_back(ino);
        }
        self.ready.notify_one();
    }

    /// The next file; `None` when closed and empty.
    fn next(&self) -> Option<Ino> {
        let mut state = self.state.lock();
        loop {
            if let Some(ino) = state.order.pop_front() {
                state.known.remove(&ino);
                state.under_way += 1;
                return Some(ino);
            }
            if state.is_closed {
                return None;
            }
            self.ready.wait(&mut state);
        }
    }

    /// Whether anything is waiting or under way.
    pub fn is_busy(&self) -> bool {
        let state = self.state.lock();
        state.under_way > 0 || !state.order.is_empty()
    }

    pub fn close(&self) {
        self.state.lock().is_closed = true;
        self.ready.notify_all();
    }
}

/// Which files a call of [`Engine::seal`] is for.
#[derive(Clone, Copy)]
pub(super) enum Size<'a> {
    /// All.
    Any,
    /// All, for a sealing thread. To be called when the file is hashed: it is the next one's turn then.
    InTurn(&'a dyn Fn()),
    /// Those that need no hashing; others are left to the threads.
    Small,
}

/// How a seal went that did not fail.
enum Outcome {
    Finished,
    /// Once more, by a thread.
    TooLarge,
}

/// Says so at its end that a file from the queue is done.
struct Done<'a>(&'a Engine);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.seals.state.lock().under_way -= 1;
        self.0.idle.notify_all();
    }
}

/// A staged file as it was when its seal began.
pub(super) struct Seen {
    session: Option<SessionId>,
    pub(super) ino: Ino,
    pub(super) entry: u64,
    opened: u64,
    /// It is a copy, or a new file, that nobody wrote to.
    pub(super) unwritten: bool,
    /// See [`super::staged::Staged::promised`].
    promised: bool,
}

impl Engine {
    /// Body of a sealing thread.
    pub(super) fn seal_loop(&self) {
        loop {
            let turn = Cell::new(Some(self.seals.hashing.lock()));
            let Some(ino) = self.seals.next() else { return };
            let _done = Done(self);
            self.seal(ino, Size::InTurn(&|| drop(turn.take())));
        }
    }

    /// Seal a file if nobody writes it. What fails stays staged, readable, and is tried again by the cleaner.
    pub(super) fn seal(&self, ino: Ino, size: Size<'_>) {
        if let Err(error) = self.try_seal(ino, size)
            && !is_full(error.errno)
            && !self.has_ended()
        {
            tracing::error!("file {ino} stays staged: {error}");
        }
    }

    /// The same for who has to know why it failed. When the disk is full, it takes nothing new from then on.
    pub(super) fn try_seal(&self, ino: Ino, size: Size<'_>) -> FsResult<()> {
        let seen = {
            let mut core = self.core();
            let Some(staged) = core.staged.get_mut(ino) else { return Ok(()) };
            if staged.writers > 0 || staged.work != Work::None {
                return Ok(());
            }
            staged.work = Work::Sealing;
            let session = staged.session;
            let (entry, opened, unwritten, promised) = (staged.entry, staged.opened, staged.unwritten, staged.promised);
            Seen { session, ino, entry, opened, unwritten, promised }
        };
        let result = self.with_room(|| {
            if !seen.unwritten {
                self.give_name_back(ino)?;
            }
            self.seal_marked(&seen, size)
        });
        let again = {
            let mut core = self.core();
            // Once it is sealed, somebody may have opened the file anew: that entry is not ours to touch.
            match core.staged.same(ino, seen.entry) {
                Some(staged) => {
                    staged.work = Work::None;
                    if result.is_err() {
                        staged.failed();
                    }
                    // Opened and closed again while it was hashed, or left to the thread.
                    staged.writers == 0 && (staged.opened != seen.opened || matches!(result, Ok(Outcome::TooLarge)))
                }
                None => false,
            }
        };
        self.idle.notify_all();
        if again {
            self.seals.push(ino);
        }
        if let Err(error) = &result
            && is_full(error.errno)
        {
            self.refuse(error.clone());
        }
        result.map(drop)
    }

    fn seal_marked(&self, seen: &Seen, size: Size<'_>) -> FsResult<Outcome> {
        match self.store.begin_seal(seen.ino) {
            Err(error) if error.errno == Errno::ENOENT => {
                self.core().staged.remove(seen.ino);
                Ok(Outcome::Finished)
            }
            Err(error) => Err(error),
            Ok(Seal::Busy) => Ok(Outcome::Finished),
            // Nothing to read or hash: it goes as it came. The stamp too, for after a start not all who had it open may have said something.
            Ok(_) if seen.unwritten && self.is_as_made(seen) => self.finish_small(seen, None),
            Ok(Seal::Small(small)) if self.is_as_found(seen, &SealedAs::Small(&small)) => self.finish_small(seen, None),
            Ok(Seal::Small(small)) => self.finish_small(seen, Some(small)),
            Ok(Seal::Large(_) | Seal::Doubtful(_)) if matches!(size, Size::Small) => Ok(Outcome::TooLarge),
            Ok(Seal::Doubtful(job)) => {
                if let Size::InTurn(next) = size {
                    next(); // a failing disk takes its time, and nothing is hashed
                }
                self.renew(seen.ino, job)
            }
            Ok(Seal::Large(job)) => match job.run() {
                Err(error) if error.errno == Errno::EBUSY => Ok(Outcome::Finished), // it is being written again
                sealed => {
                    let sealed = sealed?;
                    if let Size::InTurn(next) = size {
                        next();
                    }
                    if self.is_as_found(seen, &SealedAs::Large(&sealed)) {
                        self.store.sync_held(&sealed)?;
                        return self.finish_small(seen, None);
                    }
                    let moving = self.moves.begin();
                    match self.place(seen.ino, sealed.content, sealed.size)? {
                        Some(disk) => {
                            let finished = self.finish_placed(seen, &sealed, disk)?;
                            moving.moved();
                            Ok(finished)
                        }
                        None => {
                            drop(moving); // it stays
                            self.store.sync_replacing(&sealed)?; // before anybody has to wait for what follows
                            match seen.promised {
                                true => self.finish_promised(seen, &sealed),
                                false => self.finish_large(seen, &sealed),
                            }
                        }
                    }
                }
            },
        }
    }

    /// What could not be synced is copied, and sealed after that.
    fn renew(&self, ino: Ino, job: SealJob) -> FsResult<Outcome> {
        match self.store.renew_staged(job) {
            Err(error) if error.errno == Errno::EBUSY => Ok(Outcome::Finished), // it is being written again
            renewed => {
                renewed?;
                tracing::warn!("file {ino} was copied, since a sync of it had failed; look at dmesg");
                Ok(Outcome::TooLarge)
            }
        }
    }

    /// Where the file's name is now, and the versions its writers started from; `None` when it has no name any more (then
    /// it is forgotten) or somebody has opened it for writing meanwhile.
    fn still_there(&self, core: &mut Core, seen: &Seen) -> FsResult<Option<(Located, Option<Vec<Dot>>)>> {
        let Some(staged) = core.staged.same(seen.ino, seen.entry) else { return Ok(None) };
        if staged.writers > 0 || staged.opened != seen.opened {
            return Ok(None);
        }
        let base = staged.base.clone();
        let located = match staged.number {
            Some(number) => core.ns.locate(number, staged.dir),
            None => core.ns.locate_written(seen.ino, staged.dir, base.as_deref().unwrap_or_default()),
        };
        match located {
            Ok(at) => Ok(Some((at, base))),
            Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESTALE) => {
                let staged = core.staged.same(seen.ino, seen.entry);
                if staged.is_some_and(|staged| staged.taken.is_some() && self.may_have_more(seen, staged)) {
                    return Err(error); // a join has just taken it, and it could not be given back
                }
                core.staged.remove(seen.ino);
                self.store.remove_staged(seen.ino)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Record a small content (`None`: it has not changed), then let the staged file go. No writer can come in between:
    /// all of this process come through the table, and `begin_seal` has seen that no other has a descriptor.
    fn finish_small(&self, seen: &Seen, small: Option<SealedSmall>) -> FsResult<Outcome> {
        let recorded = self.change_content(seen.session, |core| {
            let Some((at, base)) = self.still_there(core, seen)? else { return Ok(None) };
            if let Some(small) = &small {
                let content = NewContent::Small(small.blob, small.bytes.clone());
                core.record(seen.ino, at, content, base.as_deref(), small.ticket.times(), small.ticket.stamp())?;
            }
            // Removing takes longer than all the rest: without the lock, with those who want to write waiting.
            Ok(core.staged.get_mut(seen.ino).map(|staged| {
                staged.work = Work::Making;
                staged.promised
            }))
        })?;
        if let Some(promised) = recorded {
            // Also what was recorded before: at a start on a full disk that is in the log alone, and perhaps not on the disk.
            if promised {
                self.sync_records()?;
            }
            let removed = self.store.remove_staged(seen.ino);
            let mut core = self.core();
            let is_other = small.is_none() && core.has_other_content(seen.ino);
            core.staged.remove(seen.ino);
            if is_other {
                // Only now: whoever asks upon it is told of the record. The counter, for nothing else puts that before the copy.
                core.ns.resized();
                let changed = Changed { inos: vec![seen.ino.0], ..Changed::default() };
                self.events.send(None, core.ns.seq(), &[changed]);
            }
            drop(core);
            removed?;
        }
        Ok(Outcome::Finished)
    }

    /// The same as [`Self::finish_large`] for a file that was fsynced. Its bytes and its record must be on stable storage before
    /// its name in `staging/` goes: any other sync of this file system may make that durable, and after a power loss nothing
    /// would be left of it.
    fn finish_promised(&self, seen: &Seen, sealed: &Sealed) -> FsResult<Outcome> {
        self.store.sync_staged(seen.ino)?;
        let recorded = self.change_content(seen.session, |core| {
            let Some((at, base)) = self.still_there(core, seen)? else { return Ok(false) };
            if !self.store.can_finish(&sealed.ticket)? {
                return Ok(false);
            }
            core.record(seen.ino, at, stored(sealed), base.as_deref(), sealed.ticket.times(), sealed.ticket.stamp())?;
            if let Some(staged) = core.staged.get_mut(seen.ino) {
                staged.work = Work::Making;
            }
            Ok(true)
        })?;
        if recorded {
            self.store.sync_held(sealed)?;
            self.sync_records()?;
            self.store.finish_seal(sealed)?;
            self.core().staged.remove(seen.ino);
        }
        Ok(Outcome::Finished)
    }

    /// Record a content that another disk of this host holds now, and let the staged file go. The record must be committed
    /// before: a journal that names a content which is not here is not believed after a power loss.
    fn finish_placed(&self, seen: &Seen, sealed: &Sealed, disk: DiskId) -> FsResult<Outcome> {
        let recorded = self.change_content(seen.session, |core| {
            let Some((at, base)) = self.still_there(core, seen)? else { return Ok(false) };
            if !self.store.can_finish(&sealed.ticket)? {
                return Ok(false);
            }
            core.record(seen.ino, at, stored(sealed), base.as_deref(), sealed.ticket.times(), sealed.ticket.stamp())?;
            // Nobody writes it until it is gone; readers have it meanwhile.
            if let Some(staged) = core.staged.get_mut(seen.ino) {
                staged.work = Work::Making;
            }
            Ok(true)
        })?;
        if recorded {
            self.commit_recorded()?;
            // Both keep it when the other one does not follow: it might not know that a file has it.
            match self.is_followed_by(disk) {
                true => self.store.remove_staged(seen.ino)?,
                false => {
                    // The record is committed, and is not looked at again after a power loss.
                    self.store.sync_staged(seen.ino)?;
                    self.store.sync_held(sealed)?;
                    self.store.finish_seal(sealed)?;
                }
            }
            // After an error it stays in the table, and is sealed once more.
            self.core().staged.remove(seen.ino);
        }
        Ok(Outcome::Finished)
    }

    /// Record a content in a file of its own, and give that file its name.
    fn finish_large(&self, seen: &Seen, sealed: &Sealed) -> FsResult<Outcome> {
        self.change_content(seen.session, |core| {
            let Some((at, base)) = self.still_there(core, seen)? else { return Ok(Outcome::Finished) };
            if !self.store.can_finish(&sealed.ticket)? {
                return Ok(Outcome::Finished);
            }
            if core.staged.get(seen.ino).is_some_and(|staged| staged.promised) {
                return Ok(Outcome::TooLarge); // since the seal began: once more, the other way
            }
            // The record first: after a crash in between, the staged file is still there and is sealed again.
            core.record(seen.ino, at, stored(sealed), base.as_deref(), sealed.ticket.times(), sealed.ticket.stamp())?;
            self.store.finish_seal(sealed)?;
            core.staged.remove(seen.ino);
            Ok(Outcome::Finished)
        })
    }
}

impl Core {
    /// Whether versions came from elsewhere or went since a copy of a file was staged: all who asked meanwhile, and its writers, know
    /// the copy.
    fn has_other_content(&mut self, ino: Ino) -> bool {
        let Some((dir, base)) = self.staged.get(ino).map(|staged| (staged.dir, staged.base.clone())) else {
            return false;
        };
        // All are told of a file that has no name any more.
        let Ok(now) = self.ns.locate(ino, dir).and_then(|at| self.ns.content_dots(&at)) else { return false };
        base.is_none_or(|base| base.len() != now.len() || now.iter().any(|dot| !base.contains(dot)))
    }

    /// Record a staged file's new content. If it stays staged all the same (something behind this fails, or somebody has it open),
    /// what is written next replaces this version too; versions from elsewhere stay what they are to its writers. The times are those of the
    /// last change of the content, and of anything.
    pub(super) fn record(
        &mut self,
        ino: Ino,
        at: Located,
        content: NewContent,
        base: Option<&[Dot]>,
        (mtime_ns, ctime_ns): (i64, i64),
        seen: Stamp,
    ) -> FsResult<()> {
        // What got another number may be shown with that and stored with another yet.
        let at = if at.ino() == ino { self.ns.settle_copy(at)? } else { self.ns.settle(at)? };
        self.renew_bases();
        let renewed = self.staged.get(ino).map(|staged| staged.base.clone());
        let base = renewed.as_ref().map_or(base, Option::as_deref);
        let before = self.ns.content_dots(&at)?;
        self.ns.set_content(at.clone(), content, base, mtime_ns, ctime_ns)?;
        let after = self.ns.content_dots(&at)?;
        if let Some(staged) = self.staged.get_mut(ino) {
            staged.closed = None;
            staged.recorded = Some(seen);
            staged.found = None;
        }
        if let Some(base) = self.staged.get_mut(ino).and_then(|staged| staged.base.as_mut()) {
            base.extend(after.into_iter().filter(|dot| !before.contains(dot)));
        }
        Ok(())
    }
}

/// The record of a hashed content.
pub(super) fn stored(sealed: &Sealed) -> NewContent {
    NewContent::Stored { content: sealed.content, size: sealed.size, pieces: sealed.pieces.clone() }
}
