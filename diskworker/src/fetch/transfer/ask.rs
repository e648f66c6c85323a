//! Whom a transfer asks for what: the next run of pieces and the disk that is to give it, one request to its end, and when a slow disk is
//! left for another one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use delugefs_proto::disk::short_id;
use delugefs_proto::errno::FsError;
use delugefs_proto::ids::DiskId;
use delugefs_proto::peer_pb::ReadContentRequest;
use nix::errno::Errno;
use tokio::time::{timeout, timeout_at};

use super::write::corrupt;
use super::{Fault, Piece, REQUEST_BYTES, State, Transfer};
use crate::engine::Engine;
use crate::fetch::{LEAVING, Wanted};
use crate::net::Net;
use crate::net::pace::Pace;

/// After a reader has jumped, the rest is filled in for so long by a piece at a time: what is asked for is not taken back,
/// and the next jump would wait behind it.
const JUMPY: Duration = Duration::from_millis(250);
/// A holder that sends nothing for so long is left.
const SILENT: Duration = Duration::from_secs(8);
/// Less than this is nothing; limited lines send as much at once, or what is left.
const STEP_BYTES: usize = 16 << 10;
/// A holder that needs longer for [`SLOW_BYTES`] is left for another one that may be faster: it keeps readers waiting.
const SLOW: Duration = Duration::from_secs(3);
/// Of one request: up to eight share a line.
const SLOW_BYTES: usize = 64 << 10;

impl Transfer {
    /// The next run of pieces to ask for: for a reader, or else, with `fill`, of the rest. They are marked as coming.
    pub(super) fn choose(&self, fill: bool) -> Option<(usize, usize)> {
        let mut state = self.state.lock();
        let State { wants, have, unlooked, cursor, request_bytes, looked, jumped, .. } = &mut *state;
        let is_missing =
            |piece: &usize| have[*piece] == Piece::Missing && !unlooked.get(*piece).is_some_and(|unlooked| *unlooked);
        let first = wants.iter().position(is_missing).and_then(|at| wants.remove(at));
        wants.retain(|piece| have[*piece] == Piece::Missing);
        if first.is_none() && !(*looked && fill) {
            return None;
        }
        let is_jumpy = jumped.is_some_and(|(when, _)| when.elapsed() < JUMPY);
        if first.is_none() && is_jumpy && have.contains(&Piece::Coming) {
            return None;
        }
        let (cursor, count) = (*cursor, have.len());
        let first = first.or_else(|| (cursor..count).find(is_missing)).or_else(|| (0..cursor).find(is_missing))?;
        let run = (*request_bytes / self.piece_bytes).max(1) as usize;
        let length = (first..count).take(run).take_while(is_missing).count();
        have[first..first + length].fill(Piece::Coming);
        if wants.is_empty() && !is_jumpy {
            // Nobody waits: fill in with larger requests.
            *request_bytes = (*request_bytes * 2).min(REQUEST_BYTES);
        }
        Some((first, length))
    }

    /// A request to a disk has ended.
    pub(super) fn answered(&self, disk: DiskId) {
        let asked = &mut self.state.lock().asked;
        if let Some(at) = asked.iter().position(|other| *other == disk) {
            asked.swap_remove(at);
        }
    }

    /// What of a request did not come may be asked for again.
    pub(super) fn give_back(&self, first: usize, count: usize) {
        let mut state = self.state.lock();
        for piece in &mut state.have[first..first + count] {
            if *piece == Piece::Coming {
                *piece = Piece::Missing;
                // Who waits for it says so again.
                self.changed.notify_all();
            }
        }
    }

    /// Ask one disk for a run of pieces; each is verified and written as it comes.
    pub(super) async fn request(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        net: &Arc<Net>,
        disk: DiskId,
        first: usize,
        count: usize,
    ) -> Result<(), Fault> {
        let offset = first as u64 * self.piece_bytes;
        let length = (first..first + count).map(|piece| self.length(piece)).sum();
        let silent = || Fault::Theirs(Errno::ETIMEDOUT.into());
        let client = timeout(SILENT, net.client(disk)).await.map_err(|_| silent())?;
        let mut client = client.map_err(Fault::Theirs)?;
        // By the channel: without one it is not known whose line that is.
        let pace = net.pace_from(disk);
        if let Some(pace) = &pace {
            self.wait_for_turn(pace, length).await;
        }
        // A limited line is slow whoever sends.
        let may_leave = || pace.is_none() && self.leave_for_other(net, disk);
        let request = ReadContentRequest {
            content: self.wanted.content.0.to_vec(),
            size_bytes: self.wanted.size,
            offset,
            length,
        };
        let lost = |text: &str| Fault::Theirs(FsError::new(Errno::ECONNRESET, text));
        let broken = |status: tonic::Status| match status.code() {
            LEAVING => Fault::Leaving(FsError::new(Errno::EBUSY, status.message())),
            _ => lost(status.message()),
        };
        let replies = timeout(SILENT, client.read_content(request)).await.map_err(|_| silent())?;
        let mut replies = replies.map_err(broken)?.into_inner();
        let mut piece = first;
        let mut parts: Vec<Bytes> = Vec::new();
        let mut gathered = 0;
        let (mut waited, mut step) = (Duration::ZERO, 0);
        let (mut slow_at, mut slowly) = (Instant::now() + SLOW, 0);
        while piece < first + count {
            let asked = Instant::now();
            let silent_at = asked + SILENT.saturating_sub(waited);
            let reply = loop {
                if Instant::now() >= slow_at {
                    if may_leave() {
                        let text = "it is slow, and another disk holds the content";
                        return Err(Fault::Slow(FsError::new(Errno::ETIMEDOUT, text)));
                    }
                    (slow_at, slowly) = (Instant::now() + SLOW, 0);
                }
                match timeout_at(slow_at.min(silent_at).into(), replies.message()).await {
                    Ok(reply) => break reply.map_err(broken)?,
                    Err(_) if Instant::now() >= silent_at => return Err(silent()),
                    Err(_) => {}
                }
            };
            waited += asked.elapsed();
            let Some(reply) = reply else {
                return Err(lost("it sent less than it was asked for"));
            };
            let mut data = reply.data;
            (step, slowly) = (step + data.len(), slowly + data.len());
            if step >= STEP_BYTES {
                (waited, step) = (Duration::ZERO, 0);
                self.state.lock().progress = Instant::now();
            }
            while !data.is_empty() {
                if piece >= first + count {
                    return Err(corrupt("it sent more than it was asked for"));
                }
                let take = (self.length(piece) - gathered).min(data.len() as u64);
                parts.push(data.split_to(take as usize));
                gathered += take;
                if gathered == self.length(piece) {
                    let whole = std::mem::take(&mut parts);
                    if let Err(fault) = self.write_piece(engine, piece, whole.clone()).await {
                        // What is not read keeps back all else on the same connection: also the promises without which no
                        // room is made. The rest of the request is given back, and asked for again.
                        drop((replies, data));
                        return match fault {
                            Fault::Ours(error) => self.write_with_room(engine, piece, whole, error).await,
                            fault => {
                                if matches!(fault, Fault::Corrupt(_)) {
                                    net.report_corrupt(disk, self.wanted.content);
                                }
                                Err(fault)
                            }
                        };
                    }
                    (gathered, piece) = (0, piece + 1);
                    // To write it took our time.
                    slowly = SLOW_BYTES;
                }
            }
            if slowly >= SLOW_BYTES {
                (slow_at, slowly) = (Instant::now() + SLOW, 0);
            }
        }
        Ok(())
    }

    /// Whether another disk that is there has the content and did not fail when it was last asked; then this one counts as failed. Once in a transfer,
    /// or where all are slow what had come of a piece would be thrown away over and over.
    fn leave_for_other(&self, net: &Net, disk: DiskId) -> bool {
        let sources = net.sources(self.wanted.content);
        let mut state = self.state.lock();
        let is_better =
            |(other, in_doubt): &(DiskId, bool)| *other != disk && !in_doubt && !state.failed.contains(other);
        let has_other = sources.iter().any(is_better);
        if has_other {
            state.failed.insert(disk);
        }
        has_other
    }

    /// A limited line is used by one after the other, before they ask: what is asked for and not taken would keep back all
    /// else that comes on the same connection. Waiting for one's turn is no standstill.
    async fn wait_for_turn(&self, pace: &Pace, bytes: u64) {
        let Some(wait) = pace.turn(bytes) else { return };
        let until = Instant::now() + wait;
        while Instant::now() < until {
            tokio::time::sleep((until - Instant::now()).min(SILENT / 4)).await;
            self.state.lock().progress = Instant::now();
        }
    }
}

/// Why a disk did not give what it was asked for. Some errors name it already.
pub(super) fn said_of(disk: DiskId, error: &FsError) -> String {
    let name = format!("disk {}", short_id(&disk.to_hex()));
    if error.why().starts_with(&name) { error.why().to_owned() } else { format!("{name}: {}", error.why()) }
}

/// Whom to ask next.
#[derive(Default)]
pub(super) struct Holders {
    pub turn: usize,
    /// Those that failed, until when.
    pub rest: HashMap<DiskId, Instant>,
    pub error: Option<String>,
}

impl Holders {
    /// In turn, so that several sources share the work: who takes it adds to `turn`.
    pub fn next(&self, net: &Net, wanted: Wanted) -> Option<DiskId> {
        let now = Instant::now();
        let mut holders = net.holders(wanted.content);
        holders.retain(|disk| self.rest.get(disk).is_none_or(|until| *until <= now));
        // From afar only what nobody near has; and from who has failed, here or with another content, only what nobody else has: a
        // near disk that stalls would be asked again and again.
        let has_failed = |disk| self.rest.contains_key(&disk) || net.is_in_doubt(disk);
        let ranked: Vec<_> = holders.into_iter().map(|disk| ((has_failed(disk), net.distance(disk)), disk)).collect();
        let best = ranked.iter().map(|(rank, _)| *rank).min()?;
        let best: Vec<DiskId> = ranked.into_iter().filter(|(rank, _)| *rank == best).map(|(_, disk)| disk).collect();
        best.get(self.turn % best.len().max(1)).copied()
    }
}
