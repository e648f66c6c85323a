//! Following the catalogs of others: one at a time, whoever has announced a state that ours may lack. Another one is asked
//! beside those that are slow, so that a disk which stalls keeps no news out but its own. What comes is checked and joined
//! by the engine; nothing here trusts a peer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::DiskId;
use delugefs_proto::peer_pb as pb;
use git2::Oid;
use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::Net;
use super::cut::{self, Way};
use super::shares::Share;
use super::table::Other;
use crate::catalog::State;
use crate::fetch::hand_over;

/// States known to be part of ours.
const INCLUDED_MAX: usize = 256;
/// States taken from others of which all is kept: it costs what has changed since. Those of connected disks are kept anyway.
const TAKEN_MAX: usize = 16;
/// What a disk had of ours is kept for so long after it went away: when it is back it costs what has changed since.
const REACHED: Duration = Duration::from_secs(7 * 24 * 3600);
/// States offered as what we have.
const HAVE_MAX: usize = 8;
/// A peer that needs longer than this for [`CHUNK_BYTES`], on average, is given up.
const STALLED: Duration = Duration::from_secs(20);
/// Another disk is asked beside one that needs longer than this for them.
const SLOW: Duration = Duration::from_secs(3);
/// And beside one exchange that lasts longer than this, however fast it is: it may have no end. Not beside more, for all that bring the same
/// large catalog would share the line.
const LONG: Duration = Duration::from_secs(60);
/// Pause after a failed exchange with a disk; doubles.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause; and the longest after what came was refused: the next time it will hardly be another, and all of it comes again.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(3600);
/// Bytes of a pack in one message.
const CHUNK_BYTES: usize = 256 << 10;

/// Which states are part of ours.
#[derive(Default)]
struct Included {
    set: HashSet<Oid>,
    order: VecDeque<Oid>,
}

impl Included {
    fn add(&mut self, commit: Oid) {
        if self.set.insert(commit) {
            self.order.push_back(commit);
            if self.order.len() > INCLUDED_MAX
                && let Some(old) = self.order.pop_front()
            {
                self.set.remove(&old);
            }
        }
    }
}

/// An exchange that is under way.
struct Exchange {
    task: AbortHandle,
    begun: Instant,
    waits: Waits,
}

/// Since when the next [`CHUNK_BYTES`] of an exchange are waited for; `None` when all is here.
type Waits = Arc<Mutex<Option<Instant>>>;

/// When another exchange may begin, by when those under way began and since when they wait: when all are slow, or the first of them has
/// lasted long. `None`: not before one of them has ended.
fn is_free_at(under_way: impl Iterator<Item = (Instant, Option<Instant>)>, now: Instant) -> Option<Instant> {
    let slow_at = |waits: Option<Instant>| waits.map(|since| since + SLOW);
    let mut under_way: Vec<_> = under_way.collect();
    under_way.sort_unstable();
    let Some(((begun, waits), others)) = under_way.split_first() else { return Some(now) };
    let long_at = *begun + LONG;
    let first = slow_at(*waits).map_or(long_at, |at| at.min(long_at));
    others.iter().try_fold(first.max(now), |latest, (_, waits)| Some(latest.max(slow_at(*waits)?)))
}

/// Whom to ask of those that may have something new: who was asked longest ago. One that has news all the time keeps out nobody else's.
fn next_of(lacking: impl Iterator<Item = (DiskId, Oid)>, asked: &HashMap<DiskId, Instant>) -> Option<(DiskId, Oid)> {
    lacking.min_by_key(|(disk, _)| asked.get(disk).copied())
}

/// How long a disk is not asked after an exchange failed, and so many before it.
fn pause_after(count: u32, errno: Errno) -> Duration {
    let longest = if errno == Errno::EPROTO { REFUSED_PAUSE_MAX } else { PAUSE_MAX };
    PAUSE.saturating_mul(1 << count.min(20)).min(longest)
}

/// Follow for as long as the network runs.
pub(super) async fn follow(net: Arc<Net>) {
    let mut included = Included::default();
    let mut failures: HashMap<DiskId, (u32, Instant)> = HashMap::new();
    let mut commits = net.engine.commits();
    // What is offered as what we have must be here, all of it: so these are states and not ids. Ours of late, which others
    // may have taken, and the latest one taken from each, the best to continue from.
    let mut own: VecDeque<State> = VecDeque::new();
    let mut taken: HashMap<DiskId, State> = HashMap::new();
    // And for the others: the latest of ours that each has said to be in.
    let mut reached: HashMap<DiskId, (State, Instant)> = HashMap::new();
    let mut under_way: HashMap<DiskId, Exchange> = HashMap::new();
    let mut asked: HashMap<DiskId, Instant> = HashMap::new();
    let mut takes = JoinSet::new();
    let mut tidied = Instant::now();
    let mut told = net.engine.states_to_go();
    loop {
        let ours = *commits.borrow_and_update();
        included.add(ours);
        if std::mem::replace(&mut told, net.engine.states_to_go()) != told {
            // Whoever is sent to or asked gets more of it.
            (own, taken, reached) = Default::default();
            net.drop_given();
        }
        if own.front().is_none_or(|state| state.commit != ours) {
            own.push_front(net.engine.committed());
            own.truncate(HAVE_MAX);
        }
        let now = Instant::now();
        note_reached(&mut reached, &net, &own, now);
        if let Some(ours) = own.front() {
            let states = |(disk, other): (&DiskId, &Other)| Some((*disk, other.state?));
            let announced: Vec<_> = net.table.lock().disks.iter().filter_map(states).collect();
            net.engine.note_states(ours, announced.into_iter());
        }
        let free_at = is_free_at(under_way.values().map(|one| (one.begun, *one.waits.lock())), now);
        let wanted = free_at.filter(|at| *at <= now).and_then(|_| {
            let table = net.table.lock();
            let connected = table.disks.iter().filter(|(_, other)| other.link.is_some());
            let announced = connected.filter_map(|(disk, other)| Some((*disk, other.state?)));
            let lacking = announced.filter(|(disk, state)| {
                let may_try = failures.get(disk).is_none_or(|(_, until)| *until <= now);
                may_try && !included.set.contains(state) && !under_way.contains_key(disk)
            });
            next_of(lacking, &asked)
        });
        if let Some((disk, state)) = wanted {
            let states = own.iter().take(1).chain(taken.get(&disk)).chain(own.iter().skip(1));
            let have: Vec<State> = states.take(HAVE_MAX).cloned().collect();
            let (net, waits) = (net.clone(), Arc::new(Mutex::new(Some(now))));
            let waiting = waits.clone();
            let task = takes.spawn(async move { (disk, state, take(&net, disk, have, &waiting).await) });
            asked.insert(disk, now);
            under_way.insert(disk, Exchange { task, begun: now, waits });
            continue;
        }
        let retry = failures.values().map(|(_, until)| *until).chain(free_at).filter(|until| *until > now).min();
        if tidied.elapsed() >= STALLED {
            tidied = Instant::now();
            let net = net.clone();
            tokio::task::spawn_blocking(move || net.tidy_cuts());
        }
        let ended = tokio::select! {
            Some(ended) = takes.join_next() => ended,
            () = net.states.notified() => continue,
            _ = commits.changed() => continue,
            () = tokio::time::sleep_until(retry.unwrap_or(now + STALLED).into()) => continue,
            () = net.stop.cancelled() => return,
        };
        under_way.retain(|_, exchange| !exchange.task.is_finished());
        let (disk, state, result) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!("an exchange of catalogs panicked: {error}");
                continue;
            }
        };
        match result {
            Ok((theirs, is_resumed)) => {
                let got = theirs.commit;
                included.add(got);
                net.engine.note_taken(disk, &theirs);
                if let Some(other) = net.table.lock().disks.get_mut(&disk) {
                    other.has_of_ours = theirs.ctx.0.get(&net.engine.actor()).copied().unwrap_or(0);
                }
                taken.insert(disk, theirs);
                if taken.len() > TAKEN_MAX {
                    let table = net.table.lock();
                    taken.retain(|disk, _| table.is_connected(*disk));
                }
                failures.remove(&disk);
                // What went on from an earlier exchange is behind what it announced since, which is still wanted.
                if got != state && !is_resumed {
                    // It moved on meanwhile and will have announced that, or has gone back.
                    if let Some(other) = net.table.lock().disks.get_mut(&disk)
                        && other.state == Some(state)
                    {
                        other.state = Some(got);
                    }
                }
            }
            Err(error) => {
                let count = failures.get(&disk).map_or(0, |(count, _)| *count);
                let pause = pause_after(count, error.errno);
                failures.insert(disk, (count + 1, Instant::now() + pause));
                let id = disk.to_hex();
                match error.errno {
                    Errno::EHOSTUNREACH | Errno::ECONNRESET | Errno::ENOTCONN => {
                        tracing::debug!("catalog of disk {}: {error}", &id[..8]);
                    }
                    _ => {
                        let text = error.to_string();
                        let log = || tracing::warn!("cannot take the catalog of disk {}: {text}", &id[..8]);
                        taken.remove(&disk);
                        net.log.once_of("catalog", disk, &text, log);
                    }
                }
            }
        }
    }
}

/// Keep the states that connected disks are in now, as far as they are among our latest ones.
fn note_reached(reached: &mut HashMap<DiskId, (State, Instant)>, net: &Net, own: &VecDeque<State>, now: Instant) {
    let table = net.table.lock();
    for (disk, other) in table.disks.iter().filter(|(_, other)| other.link.is_some()) {
        let state = own.iter().find(|state| Some(state.commit) == other.state);
        match (reached.get_mut(disk), state) {
            (Some((before, since)), state) => {
                *since = now;
                if let Some(state) = state.filter(|state| state.commit != before.commit) {
                    *before = state.clone();
                }
            }
            (None, Some(state)) => drop(reached.insert(*disk, (state.clone(), now))),
            (None, None) => {}
        }
    }
    drop(table);
    reached.retain(|disk, (_, since)| now.duration_since(*since) < REACHED && net.members.is_disk(*disk));
}

/// The messages of an exchange, and how slowly they come.
struct Replies<'a> {
    stream: Streaming<pb::FetchPackReply>,
    received_bytes: usize,
    waited: Duration,
    waits: &'a Waits,
}

impl Replies<'_> {
    async fn next(&mut self) -> FsResult<Option<pb::FetchPackReply>> {
        let begin = Instant::now();
        let chunks = self.received_bytes / CHUNK_BYTES;
        // A byte now and then is no progress.
        let patience = (STALLED * (chunks as u32 + 1)).saturating_sub(self.waited);
        let reply = timeout(patience, self.stream.message()).await;
        let reply = reply.map_err(|_| FsError::new(Errno::ETIMEDOUT, "it stopped sending"))?.map_err(lost)?;
        self.waited += begin.elapsed();
        self.received_bytes += reply.as_ref().map_or(0, |reply| reply.pack.len());
        match &reply {
            None => *self.waits.lock() = None,
            Some(_) if self.received_bytes / CHUNK_BYTES > chunks => *self.waits.lock() = Some(Instant::now()),
            Some(_) => {}
        }
        Ok(reply)
    }
}

fn lost(status: Status) -> FsError {
    FsError::new(Errno::ECONNRESET, status.message().to_owned())
}

/// Fetch what a disk has more than we do, and join it; the state it was, and whether that is one which was asked for before.
async fn take(net: &Arc<Net>, disk: DiskId, states: Vec<State>, waits: &Waits) -> FsResult<(State, bool)> {
    let have = states.iter().map(|state| state.commit.as_bytes().to_vec()).collect();
    let mut client = net.client(disk).await?;
    let received = {
        let net = net.clone();
        tokio::task::spawn_blocking(move || net.cut_of(disk)).await.map_err(|_| Errno::EIO)?
    };
    let mut request = pb::FetchPackRequest { have, ..Default::default() };
    if let Some((way, _, length)) = &received {
        request.resume_offset = *length;
        request.resume_commit = way.to.as_bytes().into();
        request.resume_base = way.from.map(|from| from.as_bytes().into()).unwrap_or_default();
    }
    let asked = timeout(STALLED, client.fetch_pack(request)).await;
    let stream = asked.map_err(|_| Errno::ETIMEDOUT)?.map_err(lost)?.into_inner();
    let mut replies = Replies { stream, received_bytes: 0, waited: Duration::ZERO, waits };
    let first = replies.next().await?.ok_or(Errno::EPROTO)?;
    let way = Way::new(&first.commit, &first.base).ok_or(Errno::EPROTO)?;
    let begin: Box<dyn Read + Send> = match received {
        Some((before, file, length)) if first.offset == length && before == way => Box::new(file),
        _ if first.offset == 0 => Box::new(io::empty()),
        _ => return Err(Errno::EPROTO.into()),
    };
    let is_resumed = first.offset > 0;
    // What was not gone on with takes up room.
    let forget = |net: &Arc<Net>| {
        let net = net.clone();
        tokio::task::spawn_blocking(move || net.drop_cut(disk))
    };
    if !is_resumed {
        forget(net).await.map_err(|_| Errno::EIO)?;
    }
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    let engine = net.engine.clone();
    let joining = tokio::task::spawn_blocking(move || {
        let mut pack = begin.chain(Chunks { receiver, current: Bytes::new() });
        engine.join(&mut pack, way.to, Some(&cut::name(disk)))
    });
    let mut chunk = first.pack;
    loop {
        if !chunk.is_empty() && sender.send(Ok(chunk.into())).await.is_err() {
            break; // refused: the result says why
        }
        chunk = match replies.next().await {
            Ok(Some(reply)) => reply.pack,
            Ok(None) => break,
            Err(error) => {
                let _ = sender.send(Err(io::Error::other(error.to_string()))).await;
                drop(sender);
                let _ = joining.await;
                net.note_cut(disk, way);
                return Err(error);
            }
        };
    }
    drop(sender);
    let joined = joining.await.map_err(|error| FsError::new(Errno::EIO, error.to_string()))?;
    drop(states); // until here what they consist of is relied on
    if is_resumed {
        forget(net).await.map_err(|_| Errno::EIO)?;
    }
    match joined {
        // Another version of the program may write another pack. The next one begins anew.
        Err(error) if is_resumed && error.errno == Errno::EIO => {
            Err(FsError::new(Errno::ECONNRESET, format!("the rest did not fit: {error}")))
        }
        joined => Ok((joined?, is_resumed)),
    }
}

/// The other end: our state, as messages.
pub(super) fn give(
    net: &Arc<Net>,
    disk: DiskId,
    request: pb::FetchPackRequest,
    place: Share,
) -> mpsc::Receiver<Result<pb::FetchPackReply, Status>> {
    let (sender, receiver) = mpsc::channel(4);
    let have: Vec<Oid> = request.have.iter().take(HAVE_MAX).filter_map(|id| Oid::from_bytes(id).ok()).collect();
    let net = net.clone();
    tokio::task::spawn_blocking(move || {
        let give = || -> FsResult<()> {
            let (offer, offset) = net.offer(disk, &have, &request)?;
            let first = pb::FetchPackReply {
                commit: offer.state.commit.as_bytes().into(),
                base: offer.base.map(|base| base.as_bytes().into()).unwrap_or_default(),
                offset,
                pack: Vec::new(),
            };
            if !hand_over(&sender, Ok(first)) {
                return Err(Errno::EPIPE.into());
            }
            let buffer = Vec::with_capacity(CHUNK_BYTES);
            let mut out = Packed { sender: sender.clone(), skip: offset, buffer };
            net.engine.export(&offer, &mut out)?;
            Ok(out.flush()?)
        };
        if let Err(error) = give() {
            hand_over(&sender, Err(Status::from(error))); // it may have gone away
        }
        drop(place);
    });
    receiver
}

/// Reads what the network task hands over.
struct Chunks {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let length = into.len().min(self.current.len());
        into[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// Writes into messages.
struct Packed {
    sender: mpsc::Sender<Result<pb::FetchPackReply, Status>>,
    /// Bytes at the beginning that the other end has.
    skip: u64,
    buffer: Vec<u8>,
}

impl Write for Packed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.skip > 0 {
            let skipped = bytes.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            self.skip -= skipped as u64;
            return Ok(skipped);
        }
        // Never more than fits into a message, however large an object is.
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend(&bytes[..taken]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let pack = std::mem::take(&mut self.buffer);
        let reply = pb::FetchPackReply { pack, ..Default::default() };
        hand_over(&self.sender, Ok(reply)).then_some(()).ok_or(io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(n: u8) -> DiskId {
        DiskId([n; 32])
    }

    #[test]
    fn what_was_refused_is_hardly_asked_for_again() {
        let [first, lost, refused] =
            [(0, Errno::EPROTO), (9, Errno::EIO), (30, Errno::EPROTO)].map(|(count, errno)| pause_after(count, errno));
        assert_eq!((first, lost, refused), (PAUSE, PAUSE_MAX, REFUSED_PAUSE_MAX));
    }

    /// Whoever of the two is looked at first.
    #[test]
    fn who_has_news_all_the_time_keeps_out_no_others() {
        let (restless, other, begin) = (disk(1), disk(2), Instant::now());
        for order in [[restless, other], [other, restless]] {
            let (mut asked, mut turns) = (HashMap::new(), Vec::new());
            for n in 0..4 {
                let lacking = order.iter().map(|disk| (*disk, Oid::ZERO_SHA1));
                let (next, _) = next_of(lacking, &asked).unwrap();
                asked.insert(next, begin + Duration::from_secs(n));
                turns.push(next);
            }
            assert!(turns.windows(2).all(|two| two[0] != two[1]), "{turns:?}");
        }
        assert_eq!(next_of(std::iter::empty(), &HashMap::new()), None);
    }

    #[test]
    fn another_one_is_asked_beside_those_that_are_slow_and_beside_one_that_has_no_end() {
        let (s, begin) = (Duration::from_secs, Instant::now());
        let free = |under_way: &[(u64, Option<u64>)], now| {
            let under_way = under_way.iter().map(|(begun, waits)| (begin + s(*begun), waits.map(|at| begin + s(at))));
            is_free_at(under_way, begin + s(now)).map(|at| (at - begin).as_secs())
        };
        assert_eq!((free(&[], 5), free(&[(0, Some(0))], 1), free(&[(0, Some(0))], 9)), (Some(5), Some(3), Some(9)));
        // It sends all the time; or all of it is here, and is being joined.
        assert_eq!((free(&[(0, Some(58))], 59), free(&[(0, None)], 59)), (Some(60), Some(60)));
        // One more, and a third beside that only where it is slow.
        assert_eq!(free(&[(0, Some(70)), (61, Some(69))], 71), Some(72));
        assert_eq!((free(&[(0, Some(70)), (61, None)], 200), free(&[(61, None), (0, None)], 200)), (None, None));
    }
}
