//! What of a content is on this disk when its transfer begins: what an earlier attempt left, and what the version before has.
//! Until both are known others are asked only for what a reader waits for; and of that not for what may still be found here.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use nix::errno::Errno;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinHandle};

use super::write::corrupt;
use super::{Fault, Piece, State, Transfer};
use crate::engine::Engine;
use crate::fetch::{Since, earlier, is_set};

impl Transfer {
    /// Find out what an earlier attempt left, and copy what the version before has; readers are served meanwhile. Of a small
    /// content nothing can be told: `None`.
    pub(super) fn look_what_is_here(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        fills: &Arc<Semaphore>,
    ) -> FsResult<Option<JoinHandle<FsResult<()>>>> {
        let Some(pieces) = self.pieces.clone() else {
            self.state.lock().looked = true;
            return Ok(None);
        };
        let file = self.file.lock().clone().ok_or(Errno::ECANCELED)?;
        let (engine, fills, this) = (engine.clone(), fills.clone(), self.clone());
        self.state.lock().hashing = true;
        Ok(Some(tokio::spawn(async move {
            let (wanted, store, stopped) = (this.wanted, engine.clone(), this.clone());
            let looking = tokio::task::spawn_blocking(move || {
                let stop = || stopped.stopped.is_cancelled(); // an error of its own then
                store.store.incoming_pieces(&file, wanted.content, wanted.size, &pieces, &stop)
            });
            let bits = looking.await.map_err(|_| FsError::from(Errno::EIO))??;
            this.take_what_is_here(&bits);
            earlier::fill(this, engine, fills).await;
            Ok(())
        })))
    }

    /// Take what is missing from the content in `data/`, if this disk has it by now. Readers of this file need it to be whole too.
    pub(super) async fn copy_own(self: &Arc<Self>, engine: &Arc<Engine>) -> FsResult<Own> {
        let (holder, wanted) = (engine.clone(), self.wanted);
        // Whatever its length: every piece is verified.
        let opening = tokio::task::spawn_blocking(move || match holder.store.open_as_it_is(wanted.content) {
            Err(error) if error.errno == Errno::ENOENT => Ok(None),
            opened => opened.map(|file| Some(Arc::new(file))),
        });
        let Some(whole) = opening.await.map_err(|_| FsError::from(Errno::EIO))?? else { return Ok(Own::Absent) };
        let mut own = Own::Whole;
        let mut missing: BTreeSet<usize> = {
            let state = self.state.lock();
            (0..state.have.len()).filter(|piece| state.have[*piece] != Piece::Here).collect()
        };
        loop {
            // What a reader waits for does not stand behind all that is before it.
            let wanted = self.state.lock().wants.iter().copied().find(|piece| missing.contains(piece));
            let Some(piece) = wanted.or_else(|| missing.first().copied()) else { break };
            missing.remove(&piece);
            if self.stopped.is_cancelled() {
                return Err(FsError::new(Errno::ECANCELED, "the fetch was given up"));
            }
            let (whole, offset, length) = (whole.clone(), piece as u64 * self.piece_bytes, self.length(piece));
            let reading = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; length as usize];
                // A bad sector is one piece, and the others are right.
                whole.read_exact_at(&mut bytes, offset).ok().map(|()| Bytes::from(bytes))
            });
            let read = reading.await.map_err(|_| FsError::from(Errno::EIO))?;
            let written = match read {
                Some(bytes) => self.write_patiently(engine, piece, vec![bytes]).await,
                None => Err(corrupt("it cannot be read")),
            };
            match written {
                Ok(()) => {}
                Err(Fault::Ours(error)) => return Err(error),
                Err(_) => own = Own::Damaged,
            }
        }
        Ok(own)
    }

    fn take_what_is_here(&self, bits: &[u8]) {
        let mut state = self.state.lock();
        for piece in 0..state.have.len() {
            if is_set(bits, piece) && state.have[piece] != Piece::Here {
                state.have[piece] = Piece::Here;
                state.have_bytes += self.length(piece);
            }
        }
        state.since = Since(Instant::now(), state.have_bytes);
        self.changed.notify_all();
    }

    /// The version before is about to be looked through; the first piece to look for.
    pub fn begin_copying(&self) -> Option<usize> {
        let mut state = self.state.lock();
        state.unlooked = vec![true; state.have.len()];
        state.next_to_copy()
    }

    /// Whether the version before has a piece, and then it is here; the next piece to look for.
    pub fn copied(&self, piece: usize, is_here: bool) -> Option<usize> {
        let mut state = self.state.lock();
        if is_here && state.have[piece] != Piece::Here {
            state.have[piece] = Piece::Here;
            state.have_bytes += self.length(piece);
            // It did not come from elsewhere.
            state.since.1 += self.length(piece);
            self.changed.notify_all();
        }
        state.unlooked[piece] = false;
        if !is_here && state.wants.contains(&piece) {
            self.news.notify_one();
        }
        state.next_to_copy()
    }

    /// No more is looked for.
    pub fn end_copying(&self) {
        self.state.lock().unlooked.clear();
    }

    /// What is here is known: now the rest may be asked for.
    pub(super) fn looked(&self, looked: Result<FsResult<()>, JoinError>) -> FsResult<()> {
        let mut state = self.state.lock();
        (state.hashing, state.looked, state.progress) = (false, true, Instant::now());
        looked.map_err(|_| FsError::from(Errno::EIO))?
    }
}

/// What this disk has of a content in `data/`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    Absent,
    Whole,
    /// Not all of it could be taken.
    Damaged,
}

impl State {
    /// The next piece to look for in the version before: what a reader waits for, or else in order.
    fn next_to_copy(&mut self) -> Option<usize> {
        let State { wants, have, unlooked, look_at, .. } = self;
        let may_have = |piece: &usize| unlooked[*piece] && have[*piece] == Piece::Missing;
        if let Some(piece) = wants.iter().copied().find(may_have) {
            return Some(piece);
        }
        let next = (*look_at..have.len()).find(may_have);
        // What comes from elsewhere already is asked for again if need be.
        unlooked[*look_at..next.unwrap_or(have.len())].fill(false);
        *look_at = next.map_or(have.len(), |next| next + 1);
        next
    }
}
