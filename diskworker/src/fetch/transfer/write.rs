//! What of a transfer is written where: a piece is verified before it gets into the file, waits for room if need be, and the whole gets its
//! name when it has been verified again.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use nix::errno::Errno;

use super::{Fault, Piece, Transfer};
use crate::engine::Engine;
use crate::fetch::room;

impl Transfer {
    /// Write a piece for which there was no room, as soon as there is some. To wait for that is no standstill.
    pub(super) async fn write_with_room(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        piece: usize,
        parts: Vec<Bytes>,
        mut error: FsError,
    ) -> Result<(), Fault> {
        let mut patience = room::Patience::default();
        let waits = || self.state.lock().progress = Instant::now();
        while self.room.is_made(&error, &engine.store, self.length(piece), &mut patience, waits).await {
            match self.write_piece(engine, piece, parts.clone()).await {
                Err(Fault::Ours(again)) => error = again,
                done => return done,
            }
        }
        Err(Fault::Ours(error))
    }

    /// The same, in the first place.
    pub(super) async fn write_patiently(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        piece: usize,
        parts: Vec<Bytes>,
    ) -> Result<(), Fault> {
        match self.write_piece(engine, piece, parts.clone()).await {
            Err(Fault::Ours(error)) => self.write_with_room(engine, piece, parts, error).await,
            done => done,
        }
    }

    /// Whether this is a piece. The only one of a small content has its SHA-256 to be known by: once it is in the file, a wrong byte may as well
    /// be our own disk's.
    fn is_right(&self, piece: usize, parts: &[Bytes]) -> bool {
        let (algorithm, expected) = match &self.pieces {
            Some(hashes) => (&SHA1_FOR_LEGACY_USE_ONLY, &hashes[piece * 20..piece * 20 + 20]),
            None => (&SHA256, &self.wanted.content.0[..]),
        };
        let mut hash = digest::Context::new(algorithm);
        parts.iter().for_each(|part| hash.update(part));
        hash.finish().as_ref() == expected
    }

    /// Verify a piece and write it.
    pub(super) async fn write_piece(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        piece: usize,
        parts: Vec<Bytes>,
    ) -> Result<(), Fault> {
        let (this, engine) = (self.clone(), engine.clone());
        let taking = tokio::task::spawn_blocking(move || {
            if !this.is_right(piece, &parts) {
                return Err(corrupt("it sent a corrupt piece"));
            }
            let write = || -> FsResult<()> {
                // What is left beyond the reserve belongs to everybody; the reserve to the catalog alone.
                engine.store.make_room(this.length(piece))?;
                let Some(file) = this.file.lock().clone() else { return Err(Errno::ECANCELED.into()) };
                let mut offset = piece as u64 * this.piece_bytes;
                for part in &parts {
                    file.write_all_at(part, offset)?;
                    offset += part.len() as u64;
                }
                Ok(())
            };
            write().map_err(Fault::Ours)
        });
        taking.await.map_err(|_| Fault::Ours(Errno::EIO.into()))??;
        let mut state = self.state.lock();
        if state.have[piece] != Piece::Here {
            state.have[piece] = Piece::Here;
            state.have_bytes += self.length(piece);
        }
        state.progress = Instant::now();
        self.changed.notify_all();
        Ok(())
    }

    /// Verify the whole, and give it its name.
    pub(super) async fn finish(self: &Arc<Self>, engine: &Arc<Engine>) -> FsResult<()> {
        // Nobody writes any more.
        *self.file.lock() = None;
        let (engine, wanted) = (engine.clone(), self.wanted);
        self.state.lock().hashing = true;
        let finishing =
            tokio::task::spawn_blocking(move || engine.store.finish_incoming(wanted.content, wanted.size, &|| false));
        let finished = finishing.await;
        let mut state = self.state.lock();
        (state.hashing, state.progress) = (false, Instant::now());
        finished.map_err(|_| FsError::from(Errno::EIO))?
    }
}

pub(super) fn corrupt(text: &str) -> Fault {
    Fault::Corrupt(FsError::new(Errno::EBADMSG, text))
}
