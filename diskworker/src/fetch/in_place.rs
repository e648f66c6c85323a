//! Reading a damaged content that no other disk gives: where it lies, piece by piece. To copy what is right of it first, as for who puts
//! two damaged copies together, would take the room of the file and as long, and would gain nothing. A reader gets the
//! descriptor of the file in `data/` and may read what [`InPlace::verify_range`] answered for; for the rest there is an error.

use std::fs::File;
use std::os::unix::fs::FileExt;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::limits::piece_length_bytes;
use delugefs_proto::local_pb::Ranges;
use nix::errno::Errno;
use parking_lot::Mutex;

use super::transfer::DAMAGED;
use super::{Fetcher, Wanted};
use crate::content::Damage;

/// See the module.
pub(super) struct InPlace {
    pub wanted: Wanted,
    pieces: Bytes,
    piece_bytes: u64,
    file: File,
    /// Pieces that were found right.
    right: Mutex<Vec<bool>>,
}

impl Fetcher {
    /// A content to be read where it lies, and the descriptor for who reads it; `None` where it is whole, or not here, or where there is more
    /// of it elsewhere: on another disk, or come from one in `incoming/`. Blocks on the disk.
    pub(super) fn in_place(&self, wanted: Wanted) -> FsResult<Option<(InPlace, File)>> {
        let (store, content) = (&self.engine.store, wanted.content);
        let Some(pieces) = wanted.pieces.filter(|_| store.damage(content) == Some(Damage::Wrong)) else {
            return Ok(None);
        };
        if !self.net.sources(content).is_empty() || store.incoming_used(content).is_some() {
            return Ok(None);
        }
        let file = match store.open_as_it_is(content) {
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            file => file?,
        };
        let pieces = self.engine.attachment(pieces)?;
        let piece_bytes = u64::from(piece_length_bytes(wanted.size));
        let count = wanted.size.div_ceil(piece_bytes) as usize;
        if pieces.len() != count * 20 {
            return Ok(None); // who fetches it says what is wrong with that
        }
        let descriptor = file.try_clone()?;
        Ok(Some((InPlace { wanted, pieces, piece_bytes, file, right: Mutex::new(vec![false; count]) }, descriptor)))
    }
}

impl InPlace {
    /// Read the pieces of a range; the run of right ones around it. Blocks on the disk.
    ///
    /// # Errors
    /// `EIO` when one of them is wrong or cannot be read.
    pub fn verify_range(&self, offset: u64, length: u64) -> FsResult<Ranges> {
        let size = self.wanted.size;
        let end = offset.checked_add(length).filter(|end| *end <= size).ok_or(Errno::EINVAL)?;
        let count = self.pieces.len() / 20;
        let first = ((offset / self.piece_bytes) as usize).min(count - 1);
        let last = ((end.max(offset + 1) - 1) / self.piece_bytes) as usize;
        let last = last.min(count - 1);
        for piece in first..=last {
            if !self.right.lock()[piece] {
                self.verify(piece)?;
                self.right.lock()[piece] = true;
            }
        }
        let right = self.right.lock();
        let from = (0..first).rev().take_while(|piece| right[*piece]).last().unwrap_or(first);
        let to = (last + 1..count).take_while(|piece| right[*piece]).last().unwrap_or(last);
        let (from, to) = (from as u64 * self.piece_bytes, ((to as u64 + 1) * self.piece_bytes).min(size));
        Ok(Ranges { offset: from, length: to - from, complete: false })
    }

    fn verify(&self, piece: usize) -> FsResult<()> {
        let offset = piece as u64 * self.piece_bytes;
        let mut bytes = vec![0; self.piece_bytes.min(self.wanted.size - offset) as usize];
        let is_right = self.file.read_exact_at(&mut bytes, offset).is_ok()
            && digest(&SHA1_FOR_LEGACY_USE_ONLY, &bytes).as_ref() == &self.pieces[piece * 20..][..20];
        match is_right {
            true => Ok(()),
            false => Err(FsError::new(Errno::EIO, DAMAGED)),
        }
    }
}
