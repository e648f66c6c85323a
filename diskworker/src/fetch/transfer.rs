//! One content on its way here by ranged requests: which pieces are verified, who waits for which, and the task that
//! fetches. Readers' ranges come first, then what follows the last of them, then the rest.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use bytes::Bytes;
use delugefs_proto::disk::short_id;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{DiskId, random_u64};
use delugefs_proto::limits::{piece_count, piece_length_bytes};
use delugefs_proto::local_pb::Ranges;
use delugefs_proto::peer_pb::ReadContentRequest;
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::room::{self, Room};
use super::using::Users;
use super::{Since, Wanted};
use crate::engine::Engine;
use crate::net::Net;
use crate::net::pace::Pace;

mod here;
mod rest;

use here::Own;
pub(super) use rest::Rest;

/// Requests under way at once, and more of them for what readers wait for: they do not stand behind the rest.
const REQUESTS_MAX: usize = 4;
const REQUESTS_MORE: usize = 4;
/// Between two looks while nothing is under way.
const TICK: Duration = Duration::from_millis(50);
/// Bytes of one request that fills in the rest.
const REQUEST_BYTES: u64 = 4 << 20;
/// After a reader has jumped, the rest is filled in for so long by a piece at a time: what is asked for is not taken back,
/// and the next jump would wait behind it.
const JUMPY: Duration = Duration::from_millis(250);
/// He does not jump any more when he went on for so many pieces; what the kernel reads ahead is less.
const STEADY_PIECES: usize = 4;
/// Requests grow to that from a single piece, so that the first bytes come at once.
const REQUEST_MIN_BYTES: u64 = 256 << 10;
/// A holder that sends nothing for so long is left.
const SILENT: Duration = Duration::from_secs(8);
/// Less than this is nothing; limited lines send as much at once, or what is left.
const STEP_BYTES: usize = 16 << 10;
/// A holder that needs longer for [`SLOW_BYTES`] is left for another one that may be faster: it keeps readers waiting.
const SLOW: Duration = Duration::from_secs(3);
/// Of one request: up to eight share a line.
const SLOW_BYTES: usize = 64 << 10;
/// How long a holder that failed is left alone.
const REST: Duration = Duration::from_secs(2);
/// With no holder for so long, the transfer fails: news of a new content travel beside it.
const NOBODY: Duration = Duration::from_secs(4);
/// A transfer that nobody waits for goes on without progress for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Transfer {
    pub wanted: Wanted,
    pub users: Users,
    pieces: Option<Bytes>,
    piece_bytes: u64,
    file: Mutex<Option<Arc<File>>>,
    state: Mutex<State>,
    changed: Condvar,
    news: Notify,
    stopped: CancellationToken,
    room: Arc<Room>,
    /// How many wait for all of it.
    wholes: AtomicUsize,
}

struct State {
    /// One for each piece; a small content is one.
    have: Vec<Piece>,
    have_bytes: u64,
    /// Where readers are: pieces they wait for, the latest last.
    wants: VecDeque<usize>,
    /// Where the last reader was.
    cursor: usize,
    /// Bytes of the next request there: grows while it goes on from there.
    request_bytes: u64,
    /// When a reader last went on elsewhere, and where.
    jumped: Option<(Instant, usize)>,
    ended: Option<FsResult<()>>,
    progress: Instant,
    /// Whom requests are under way to, each as often as there is one.
    asked: Vec<DiskId>,
    /// Disks that have failed in this transfer.
    failed: HashSet<DiskId>,
    /// A file is being hashed: that is no standstill.
    hashing: bool,
    /// What an earlier attempt left is known. Before, only what is waited for is asked for.
    looked: bool,
    /// Pieces that the version before may have: until that is known nobody is asked for them. Empty when none may.
    unlooked: Vec<bool>,
    /// Where it is looked for next, but for what readers wait for.
    look_at: usize,
    since: Since,
}

/// Why something did not come. A kind and no errno: those of our own disk may be any (EBADMSG is a checksum to some file systems), and nobody
/// else is to be blamed for them.
enum Fault {
    /// Our own disk's: no other holder can help.
    Ours(FsError),
    /// What came is not what was asked for.
    Corrupt(FsError),
    /// It keeps readers waiting, and another one may be faster.
    Slow(FsError),
    /// It does not give it.
    Theirs(FsError),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Missing,
    Coming,
    Here,
}

impl Transfer {
    /// Into a file of the content's length.
    pub fn new(wanted: Wanted, pieces: Option<Bytes>, file: File, room: Arc<Room>) -> FsResult<Self> {
        let (count, piece_bytes) = match &pieces {
            Some(_) => (piece_count(wanted.size), u64::from(piece_length_bytes(wanted.size))),
            None => (1, wanted.size),
        };
        if pieces.as_ref().is_some_and(|hashes| hashes.len() as u64 != count * 20) {
            return Err(FsError::new(Errno::EIO, "the catalog's piece hashes do not fit the content's length"));
        }
        let state = State {
            have: vec![Piece::Missing; count as usize],
            have_bytes: 0,
            wants: VecDeque::new(),
            cursor: 0,
            request_bytes: REQUEST_MIN_BYTES,
            jumped: None,
            ended: None,
            progress: Instant::now(),
            asked: Vec::new(),
            failed: HashSet::new(),
            hashing: false,
            looked: false,
            unlooked: Vec::new(),
            look_at: 0,
            since: Since(Instant::now(), 0),
        };
        Ok(Self {
            wanted,
            users: Users::default(),
            pieces,
            piece_bytes,
            file: Mutex::new(Some(Arc::new(file))),
            state: Mutex::new(state),
            changed: Condvar::new(),
            news: Notify::new(),
            stopped: CancellationToken::new(),
            room,
            wholes: AtomicUsize::new(0),
        })
    }

    /// Bytes that are here, and bytes per second on average.
    pub fn progress(&self) -> (u64, u64) {
        let state = self.state.lock();
        let rate = (state.have_bytes - state.since.1) as f64 / state.since.0.elapsed().as_secs_f64().max(0.1);
        (state.have_bytes, rate as u64)
    }

    /// Disks that are asked for parts of it now.
    pub fn sources(&self) -> u32 {
        self.state.lock().asked.iter().collect::<HashSet<_>>().len() as u32
    }

    /// Wait for all of it.
    pub fn wait_whole(&self, stalled: Duration) -> FsResult<()> {
        self.wholes.fetch_add(1, Ordering::AcqRel);
        self.news.notify_one();
        let ended = self.wait(stalled, |state| state.ended.clone());
        self.wholes.fetch_sub(1, Ordering::AcqRel);
        ended
    }

    /// Wait for a range; the run of verified bytes around it.
    pub fn wait_range(&self, offset: u64, length: u64, stalled: Duration) -> FsResult<Ranges> {
        let size = self.wanted.size;
        let end = offset.checked_add(length).filter(|end| *end <= size).ok_or(Errno::EINVAL)?;
        let first = (offset / self.piece_bytes) as usize;
        let last = (end.max(offset + 1) - 1) / self.piece_bytes;
        let last = (last as usize).min(self.state.lock().have.len() - 1);
        let mut has_come = true;
        self.wait(stalled, |state| {
            if state.ended == Some(Ok(())) && state.have.iter().all(|piece| *piece == Piece::Here) {
                return Some(Ok(Ranges { offset: 0, length: size, complete: true }));
            }
            let missing = (first..=last).filter(|piece| state.have[*piece] != Piece::Here);
            let missing: Vec<usize> = missing.collect();
            if missing.is_empty() {
                let is_here = |piece: &usize| state.have[*piece] == Piece::Here;
                let from = (0..first).rev().take_while(is_here).last().unwrap_or(first);
                let to = (last + 1..state.have.len()).take_while(is_here).last().unwrap_or(last);
                let (from, to) = (from as u64 * self.piece_bytes, ((to as u64 + 1) * self.piece_bytes).min(size));
                return Some(Ok(Ranges { offset: from, length: to - from, complete: false }));
            }
            if let Some(Err(error)) = &state.ended {
                return Some(Err(error.clone()));
            }
            if std::mem::take(&mut has_come) {
                // A reader who goes on where the last one was is sequential: more at a time.
                let reach = 1 + (state.request_bytes / self.piece_bytes) as usize;
                if first.abs_diff(state.cursor) <= reach {
                    state.request_bytes = (state.request_bytes * 2).min(REQUEST_BYTES);
                    state.jumped = state.jumped.filter(|(_, to)| first.abs_diff(*to) < STEADY_PIECES);
                } else {
                    state.request_bytes = REQUEST_MIN_BYTES;
                    state.jumped = Some((Instant::now(), first));
                }
                state.cursor = last;
            }
            for piece in missing {
                if state.have[piece] == Piece::Missing && !state.wants.contains(&piece) {
                    state.wants.push_back(piece);
                }
            }
            self.news.notify_one();
            None
        })
    }

    fn wait<T>(&self, stalled: Duration, mut look: impl FnMut(&mut State) -> Option<FsResult<T>>) -> FsResult<T> {
        let begin = Instant::now();
        let mut state = self.state.lock();
        loop {
            if let Some(result) = look(&mut state) {
                return result;
            }
            let quiet = if state.hashing { Duration::ZERO } else { state.progress.max(begin).elapsed() };
            let Some(left) = stalled.checked_sub(quiet) else {
                let text = "the content does not arrive: the disks that hold it do not answer";
                return Err(FsError::new(Errno::ETIMEDOUT, text));
            };
            self.changed.wait_for(&mut state, left);
        }
    }

    /// Give it up.
    pub fn stop(&self) {
        self.stopped.cancel();
        self.news.notify_one();
    }

    /// Fetch to the end. Afterwards nobody writes the file any more.
    pub async fn run<F: Fn() -> bool>(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        net: &Arc<Net>,
        fills: &Arc<Semaphore>,
        rest: Rest<F>,
    ) -> FsResult<()> {
        let mut looking = self.look_what_is_here(engine, fills)?;
        let ended = self.fetch(engine, net, &mut looking, rest).await;
        if let Some(looking) = looking {
            self.stop();
            let _ = looking.await; // it has nothing more to say
        }
        ended
    }

    async fn fetch<F: Fn() -> bool>(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        net: &Arc<Net>,
        looking: &mut Option<JoinHandle<FsResult<()>>>,
        mut rest: Rest<F>,
    ) -> FsResult<()> {
        let mut holders = Holders { turn: random_u64() as usize, ..Holders::default() };
        let mut requests = JoinSet::new();
        let mut nobody: Option<Instant> = None;
        let mut own = Own::Absent;
        loop {
            if self.stopped.is_cancelled() {
                return Err(FsError::new(Errno::ECANCELED, "the fetch was given up"));
            }
            if looking.is_none() && self.is_complete() {
                requests.shutdown().await;
                self.state.lock().asked.clear();
                // All of it was verified as it came: what is wrong with it now is our own disk's.
                return self.finish(engine).await;
            }
            let fills = rest.may_come(self, &engine.store);
            while requests.len() < REQUESTS_MAX + REQUESTS_MORE {
                let Some(disk) = holders.next(net, self.wanted) else { break };
                let Some((first, count)) = self.choose(fills && requests.len() < REQUESTS_MAX) else { break };
                holders.turn += 1;
                self.state.lock().asked.push(disk);
                let (this, engine, net) = (self.clone(), engine.clone(), net.clone());
                requests.spawn(async move {
                    let done = this.request(&engine, &net, disk, first, count).await;
                    this.give_back(first, count);
                    this.answered(disk);
                    (disk, done)
                });
            }
            if requests.is_empty() {
                if !fills && looking.is_none() && self.state.lock().wants.is_empty() {
                    if rest.give_up() {
                        return Err(FsError::new(Errno::ECANCELED, "nobody reads it any more"));
                    }
                    nobody = None;
                    let _ = timeout(TICK, self.news.notified()).await;
                    continue;
                }
                if let Some(running) = looking.as_mut() {
                    tokio::select! {
                        looked = running => {
                            *looking = None;
                            self.looked(looked)?;
                        }
                        () = self.news.notified() => {}
                    }
                    continue;
                }
                // Somebody may have written the same bytes on this disk. Readers have this file, not that one. Or the copy here is damaged,
                // and of that all is taken that is right.
                if own == Own::Absent {
                    own = self.copy_own(engine).await?;
                    if own == Own::Damaged {
                        net.suspect_own(self.wanted.content);
                    }
                    if own != Own::Absent {
                        continue;
                    }
                }
                let since = *nobody.get_or_insert_with(Instant::now);
                if since.elapsed() > NOBODY || net.is_alone() {
                    if own == Own::Damaged {
                        let text =
                            "the copy on this disk is damaged, and no disk that holds a whole one can be reached";
                        return Err(FsError::new(Errno::EIO, text));
                    }
                    let text = holders.error.unwrap_or_else(|| "no disk that holds the content can be reached".into());
                    return Err(FsError::new(Errno::EHOSTUNREACH, text));
                }
                let _ = timeout(TICK, self.news.notified()).await;
                continue;
            }
            tokio::select! {
                Some(done) = requests.join_next() => match done {
                    Ok((disk, Ok(()))) => {
                        net.asked(disk, true);
                        nobody = None;
                    }
                    Ok((disk, Err(fault))) => {
                        let (rest, is_slow, error) = match fault {
                            Fault::Ours(error) => return Err(error),
                            Fault::Corrupt(error) => (PATIENCE, false, error),
                            Fault::Theirs(error) => (REST, false, error),
                            Fault::Slow(error) => (REST, true, error),
                        };
                        tracing::debug!("content {} from disk {}: {error}", self.wanted.content, &disk.to_hex()[..8]);
                        // A slow one is good for other contents.
                        if !is_slow {
                            net.asked(disk, false);
                        }
                        holders.rest.insert(disk, Instant::now() + rest);
                        self.state.lock().failed.insert(disk);
                        holders.error = Some(said_of(disk, &error));
                    }
                    Err(error) => tracing::error!("fetching panicked: {error}"),
                },
                Some(looked) = async { Some(looking.as_mut()?.await) } => {
                    *looking = None;
                    self.looked(looked)?;
                }
                () = self.news.notified() => {}
            }
            let quiet = self.state.lock().progress.elapsed();
            if looking.is_none() && quiet > PATIENCE {
                return Err(FsError::new(Errno::ETIMEDOUT, "the content does not arrive"));
            }
        }
    }

    /// Tell those who wait.
    pub fn end(&self, ended: FsResult<()>) {
        *self.file.lock() = None;
        let mut state = self.state.lock();
        state.ended = Some(ended);
        self.changed.notify_all();
    }

    fn is_complete(&self) -> bool {
        self.state.lock().have.iter().all(|piece| *piece == Piece::Here)
    }

    /// What it is and where it goes to.
    pub fn parts(&self) -> (Wanted, Option<Bytes>, Option<Arc<File>>) {
        (self.wanted, self.pieces.clone(), self.file.lock().clone())
    }

    /// Cancelled when it is given up.
    pub fn stopped(&self) -> &CancellationToken {
        &self.stopped
    }

    fn length(&self, piece: usize) -> u64 {
        let start = piece as u64 * self.piece_bytes;
        self.piece_bytes.min(self.wanted.size - start)
    }

    /// The next run of pieces to ask for: for a reader, or else, with `fill`, of the rest. They are marked as coming.
    fn choose(&self, fill: bool) -> Option<(usize, usize)> {
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
    fn answered(&self, disk: DiskId) {
        let asked = &mut self.state.lock().asked;
        if let Some(at) = asked.iter().position(|other| *other == disk) {
            asked.swap_remove(at);
        }
    }

    /// What of a request did not come may be asked for again.
    fn give_back(&self, first: usize, count: usize) {
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
    async fn request(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        net: &Arc<Net>,
        disk: DiskId,
        first: usize,
        count: usize,
    ) -> Result<(), Fault> {
        let offset = first as u64 * self.piece_bytes;
        let length = (first..first + count).map(|piece| self.length(piece)).sum();
        let pace = net.pace_from(disk);
        if let Some(pace) = &pace {
            self.wait_for_turn(pace, length).await;
        }
        // A limited line is slow whoever sends.
        let may_leave = || pace.is_none() && self.leave_for_other(net, disk);
        let silent = || Fault::Theirs(Errno::ETIMEDOUT.into());
        let client = timeout(SILENT, net.client(disk)).await.map_err(|_| silent())?;
        let mut client = client.map_err(Fault::Theirs)?;
        let request = ReadContentRequest {
            content: self.wanted.content.0.to_vec(),
            size_bytes: self.wanted.size,
            offset,
            length,
        };
        let lost = |text: &str| Fault::Theirs(FsError::new(Errno::ECONNRESET, text));
        let broken = |status: tonic::Status| lost(status.message());
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

    /// Write a piece for which there was no room, as soon as there is some. To wait for that is no standstill.
    async fn write_with_room(
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
    async fn write_patiently(
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
    async fn write_piece(self: &Arc<Self>, engine: &Arc<Engine>, piece: usize, parts: Vec<Bytes>) -> Result<(), Fault> {
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
    async fn finish(self: &Arc<Self>, engine: &Arc<Engine>) -> FsResult<()> {
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

fn corrupt(text: &str) -> Fault {
    Fault::Corrupt(FsError::new(Errno::EBADMSG, text))
}

/// Why a disk did not give what it was asked for. Some errors name it already.
fn said_of(disk: DiskId, error: &FsError) -> String {
    let name = format!("disk {}", short_id(&disk.to_hex()));
    if error.why().starts_with(&name) { error.why().to_owned() } else { format!("{name}: {}", error.why()) }
}

/// Whom to ask next.
#[derive(Default)]
struct Holders {
    turn: usize,
    /// Those that failed, until when.
    rest: HashMap<DiskId, Instant>,
    error: Option<String>,
}

impl Holders {
    /// In turn, so that several sources share the work: who takes it adds to `turn`.
    fn next(&self, net: &Net, wanted: Wanted) -> Option<DiskId> {
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
