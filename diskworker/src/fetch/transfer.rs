//! One content on its way here by ranged requests: which pieces are verified, who waits for which, and the task that
//! fetches. Readers' ranges come first, then what follows the last of them, then the rest.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{DiskId, random_u64};
use delugefs_proto::limits::{TORRENT_MIN_BYTES, piece_count, piece_length_bytes};
use delugefs_proto::local_pb::Ranges;
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::room::Room;
use super::using::Users;
use super::{Since, Wanted};
use crate::engine::Engine;
use crate::net::Net;

mod ask;
mod here;
mod rest;
mod write;

use ask::{Holders, said_of};
use here::Own;
pub(super) use rest::Rest;

/// Requests under way at once, and more of them for what readers wait for: they do not stand behind the rest.
const REQUESTS_MAX: usize = 4;
const REQUESTS_MORE: usize = 4;
/// Between two looks while nothing is under way.
const TICK: Duration = Duration::from_millis(50);
/// Bytes of one request that fills in the rest.
const REQUEST_BYTES: u64 = 4 << 20;
/// He does not jump any more when he went on for so many pieces; what the kernel reads ahead is less.
const STEADY_PIECES: usize = 4;
/// Requests grow to that from a single piece, so that the first bytes come at once.
const REQUEST_MIN_BYTES: u64 = 256 << 10;
/// How long a holder that failed is left alone.
const REST: Duration = Duration::from_secs(2);
/// With no holder for so long, the transfer fails: news of a new content travel beside it.
const NOBODY: Duration = Duration::from_secs(4);
/// A transfer that nobody waits for goes on without progress for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a reader is told of pieces that nobody has.
pub(super) const DAMAGED: &str = "the copy on this disk is damaged, and no disk that holds a whole one can be reached";

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
    /// It is about to let its copy go, by right.
    Leaving(FsError),
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
        // One that is verified as a whole is gathered in memory, and whoever says how long it is may say anything.
        if pieces.is_none() && wanted.size > TORRENT_MIN_BYTES {
            return Err(FsError::new(
                Errno::EHOSTUNREACH,
                "the catalog has no hashes of its pieces: nobody can give it",
            ));
        }
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

    /// Wait for all of it, or until it is called off, see [`Transfer::wake`].
    pub fn wait_whole(&self, stalled: Duration, is_called_off: &dyn Fn() -> bool) -> FsResult<()> {
        self.wholes.fetch_add(1, Ordering::AcqRel);
        self.news.notify_one();
        let ended = self.wait(stalled, |state| match is_called_off() {
            true => Some(Err(FsError::new(Errno::ECANCELED, "the mirror was called off"))),
            false => state.ended.clone(),
        });
        self.wholes.fetch_sub(1, Ordering::AcqRel);
        ended
    }

    /// Whether somebody waits for all of it.
    #[cfg(test)]
    pub fn is_awaited(&self) -> bool {
        self.wholes.load(Ordering::Acquire) > 0
    }

    /// Those who wait look whether they still should.
    pub fn wake(&self) {
        let _state = self.state.lock();
        self.changed.notify_all();
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
                        return Err(FsError::new(Errno::EIO, DAMAGED));
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
                        let (rest, is_bad, error) = match fault {
                            Fault::Ours(error) => return Err(error),
                            Fault::Corrupt(error) => (PATIENCE, true, error),
                            Fault::Theirs(error) => (REST, true, error),
                            // It is good for other contents.
                            Fault::Slow(error) | Fault::Leaving(error) => (REST, false, error),
                        };
                        tracing::debug!("content {} from disk {}: {error}", self.wanted.content, &disk.to_hex()[..8]);
                        if is_bad {
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
}
