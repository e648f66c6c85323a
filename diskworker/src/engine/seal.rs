//! Sealing: from a staged file to content with a name for ever.

use std::collections::VecDeque;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::Ino;
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use super::staged::Work;
use super::{Engine, SessionId};
use crate::content::{Seal, Sealed, SealedSmall, Ticket};
use crate::namespace::NewContent;

/// Files waiting for the sealing thread.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<(VecDeque<Ino>, bool)>,
    ready: Condvar,
}

impl Queue {
    pub fn push(&self, ino: Ino) {
        let mut state = self.state.lock();
        if !state.0.contains(&ino) {
            state.0.push_back(ino);
        }
        self.ready.notify_one();
    }

    /// The next file; `None` when closed and empty.
    fn next(&self) -> Option<Ino> {
        let mut state = self.state.lock();
        loop {
            if let Some(ino) = state.0.pop_front() {
                return Some(ino);
            }
            if state.1 {
                return None;
            }
            self.ready.wait(&mut state);
        }
    }

    pub fn close(&self) {
        self.state.lock().1 = true;
        self.ready.notify_all();
    }
}

/// An entry of the table that is marked as being sealed, as it was then.
struct Marked {
    ino: Ino,
    entry: u64,
    opened: u64,
    baseline: Option<i64>,
}

/// A hashed or read staged file.
enum Finished {
    Small(SealedSmall),
    Large(Sealed),
}

impl Finished {
    fn ticket(&self) -> &Ticket {
        match self {
            Self::Small(small) => &small.ticket,
            Self::Large(sealed) => &sealed.ticket,
        }
    }

    fn mtime_ns(&self) -> i64 {
        match self {
            Self::Small(small) => small.mtime_ns,
            Self::Large(sealed) => sealed.mtime_ns,
        }
    }

    fn content(&self) -> NewContent {
        match self {
            Self::Small(small) => NewContent::Small(small.bytes.clone()),
            Self::Large(sealed) => {
                NewContent::Stored { content: sealed.content, size: sealed.size, pieces: sealed.pieces.clone() }
            }
        }
    }
}

impl Engine {
    /// Body of the sealing thread.
    pub(super) fn seal_loop(&self) {
        while let Some(ino) = self.seals.next() {
            self.seal(None, ino);
        }
    }

    /// Seal a file if nobody writes it. What fails stays staged, readable, and is tried again by the cleaner.
    pub(super) fn seal(&self, session: Option<SessionId>, ino: Ino) {
        let marked = {
            let mut core = self.core();
            let Some(staged) = core.staged.get_mut(ino) else { return };
            if staged.writers > 0 || staged.work != Work::None {
                return;
            }
            staged.work = Work::Sealing;
            Marked { ino, entry: staged.entry, opened: staged.opened, baseline: staged.baseline_ctime_ns }
        };
        let result = self.seal_marked(session, &marked);
        let again = {
            let mut core = self.core();
            // Once it is sealed, somebody may have opened the file anew: that entry is not ours to touch.
            match core.staged.same(ino, marked.entry) {
                Some(staged) => {
                    staged.work = Work::None;
                    // Opened and closed again while it was hashed.
                    staged.writers == 0 && staged.opened != marked.opened
                }
                None => false,
            }
        };
        self.idle.notify_all();
        if again {
            self.seals.push(ino);
        }
        match result {
            Ok(()) => {}
            Err(error) if error.errno == Errno::ENOSPC => {
                tracing::warn!("file {ino} stays staged: {error}");
                self.refuse(error);
            }
            Err(error) => tracing::error!("file {ino} stays staged: {error}"),
        }
    }

    fn seal_marked(&self, session: Option<SessionId>, marked: &Marked) -> FsResult<()> {
        let Some(stat) = self.store.staged_stat(marked.ino)? else {
            self.core().staged.remove(marked.ino);
            return Ok(());
        };
        if marked.baseline == Some(stat.ctime_ns) {
            // A copy nobody wrote to; but a writer of an earlier life of this process may still be there.
            return self.finish(session, marked, stat.ctime_ns, None);
        }
        match self.store.begin_seal(marked.ino)? {
            Seal::Busy => Ok(()),
            Seal::Small(small) => self.finish(session, marked, stat.ctime_ns, Some(Finished::Small(small))),
            Seal::Large(job) => match job.run() {
                Err(error) if error.errno == Errno::EBUSY => Ok(()), // it is being written again
                sealed => self.finish(session, marked, stat.ctime_ns, Some(Finished::Large(sealed?))),
            },
        }
    }

    /// Record the content (`None`: it has not changed) and let the staged file go, unless somebody has opened it for
    /// writing meanwhile.
    fn finish(
        &self,
        session: Option<SessionId>,
        marked: &Marked,
        ctime_ns: i64,
        new: Option<Finished>,
    ) -> FsResult<()> {
        let ino = marked.ino;
        self.change(session, |core| {
            let Some(staged) = core.staged.same(ino, marked.entry) else { return Ok(()) };
            if staged.writers > 0 || staged.opened != marked.opened {
                return Ok(());
            }
            let at = match core.ns.locate(ino, staged.dir) {
                Ok(at) => at,
                Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESTALE) => {
                    core.staged.remove(ino);
                    return self.store.remove_staged(ino);
                }
                Err(error) => return Err(error),
            };
            let base = staged.base.clone();
            if let Some(new) = &new {
                if !self.store.can_finish(new.ticket())? {
                    return Ok(());
                }
                // The record first: after a crash in between, the staged file is still there and is sealed again.
                core.ns.set_content(at, new.content(), base.as_deref(), new.mtime_ns(), ctime_ns)?;
            }
            match &new {
                Some(Finished::Large(sealed)) => self.store.finish_seal(sealed)?,
                Some(Finished::Small(small)) => self.store.finish_small(small)?,
                None => self.store.remove_staged(ino)?,
            }
            core.staged.remove(ino);
            Ok(())
        })
    }

    /// From now on changes are refused with this error, until a commit succeeds.
    pub(super) fn refuse(&self, error: FsError) {
        let mut refusal = self.refusal.lock();
        if refusal.is_none() {
            tracing::error!("read-only: {error}");
        }
        *refusal = Some(error);
    }
}
