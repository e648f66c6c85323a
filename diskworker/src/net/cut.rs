//! Exchanges of catalogs that were cut off: the next one goes on from there. A line that drops every minute would else never
//! bring a catalog that takes two.
//!
//! Who received keeps what came, unverified, and which state it leads to from which. Who sent keeps that state for a while
//! and writes the same pack once more, without what was received: the pack of two states is always the same. It
//! is verified from its first byte as if it had come at once, so nothing is trusted for it.

use std::collections::HashMap;
use std::fs::File;
use std::time::{Duration, Instant};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::DiskId;
use delugefs_proto::peer_pb as pb;
use git2::Oid;

use super::Net;
use crate::catalog::State;
use crate::engine::Offer;

/// A state that was sent is kept for so long.
const GIVEN: Duration = Duration::from_secs(600);

/// What a pack leads to, and from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub to: Oid,
    /// `None`: from nothing.
    pub from: Option<Oid>,
}

impl Way {
    pub fn new(to: &[u8], from: &[u8]) -> Option<Self> {
        let from = match from {
            [] => None,
            from => Some(Oid::from_bytes(from).ok()?),
        };
        Some(Self { to: Oid::from_bytes(to).ok()?, from })
    }
}

/// What there is of exchanges with each disk, and since when.
#[derive(Default)]
pub(super) struct Cuts {
    received: HashMap<DiskId, (Way, Instant)>,
    given: HashMap<DiskId, (State, Instant)>,
}

/// The name that what came from a disk is kept under.
pub(super) fn name(disk: DiskId) -> String {
    format!("cut-{}", disk.to_hex())
}

impl Net {
    /// What came from this disk before it was cut off, to be gone on with, and its length. Blocks on the disk.
    pub(super) fn cut_of(&self, disk: DiskId) -> Option<(Way, File, u64)> {
        let (way, _) = *self.cuts.lock().received.get(&disk)?;
        let file = self.engine.open_cut(&name(disk))?;
        let length = file.metadata().ok()?.len();
        Some((way, file, length))
    }

    /// An exchange with this disk was cut off.
    pub(super) fn note_cut(&self, disk: DiskId, way: Way) {
        self.cuts.lock().received.insert(disk, (way, Instant::now()));
    }

    /// What came from this disk is of no use any more. Blocks on the disk.
    pub(super) fn drop_cut(&self, disk: DiskId) {
        if self.cuts.lock().received.remove(&disk).is_some() {
            self.engine.drop_cut(&name(disk));
        }
    }

    /// Forget the states that were sent.
    pub(super) fn drop_given(&self) {
        self.cuts.lock().given.clear();
    }

    /// Drop what is too old, and what a full disk has no room for. Blocks on the disk.
    pub(super) fn tidy_cuts(&self) {
        let is_full = self.engine.refusal().is_some();
        let is_old = |since: &Instant| is_full || since.elapsed() >= GIVEN;
        let mut cuts = self.cuts.lock();
        cuts.given.retain(|_, (_, since)| !is_old(since));
        let received = cuts.received.iter().filter(|(_, (_, since))| is_old(since));
        let received: Vec<DiskId> = received.map(|(disk, _)| *disk).collect();
        drop(cuts);
        received.into_iter().for_each(|disk| self.drop_cut(disk));
    }

    /// What a disk is to get, and from which byte on.
    pub(super) fn offer(&self, disk: DiskId, have: &[Oid], asked: &pb::FetchPackRequest) -> FsResult<(Offer, u64)> {
        let again = Way::new(&asked.resume_commit, &asked.resume_base).filter(|_| asked.resume_offset > 0);
        let given = self.cuts.lock().given.get(&disk).map(|(state, _)| state.clone());
        let kept = again.zip(given).filter(|(way, state)| way.to == state.commit);
        let (offer, offset) = match kept {
            Some((way, state)) if self.engine.known_base(way.from.as_slice())? == way.from => {
                (Offer { state, base: way.from }, asked.resume_offset)
            }
            _ => (Offer { state: self.engine.committed(), base: self.engine.known_base(have)? }, 0),
        };
        self.cuts.lock().given.insert(disk, (offer.state.clone(), Instant::now()));
        Ok((offer, offset))
    }
}
