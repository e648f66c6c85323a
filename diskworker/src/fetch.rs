//! Contents that are not on this disk: fetched to be kept (the policy asks), or because somebody reads them now.
//!
//! - [`Fetcher::mirror`]: small contents come as one stream, larger ones by BitTorrent from several disks at once, or by
//!   ranges where that does not work.
//! - [`Fetcher::open`]: a reader gets the descriptor of the file in `incoming/` and asks for ranges ([`transfer`]); pieces are
//!   verified one by one and fetched where he reads first, the rest behind it.
//! - [`Fetcher::whole`]: waits until all of it is here, for writers and for small contents.
//!
//! Large contents begin with what the version before has in common with them ([`earlier`]).
//!
//! In every case the whole content is verified by its SHA-256 before it counts as held, and nothing unverified is ever read.
//! One way at a time: BitTorrent writes before it verifies, so it is stopped before a reader is given the file.

mod earlier;
mod evict;
mod in_place;
mod places;
mod promise;
mod proof;
mod room;
mod serve;
mod swarming;
mod transfer;
mod using;

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::disk::short_id;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{BlobId, ContentId};
use delugefs_proto::limits::TORRENT_MIN_BYTES;
use delugefs_proto::local_pb::Ranges;
use delugefs_proto::worker_pb as pb;
use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, SessionId};
use crate::net::Net;
use crate::swarm::Swarm;

pub use evict::Goes;
use in_place::InPlace;
use places::Place;
pub(crate) use serve::hand_over;
pub use serve::{LEAVING, read_content};
use transfer::{Rest, Transfer};
use using::{Asked, Beginning, Using};

/// Without any progress for so long a reader or writer gets an error.
const STALLED: Duration = Duration::from_secs(20);
/// Large contents mirrored at once; for small ones see [`places`].
const LARGE_MAX: usize = 4;
/// Contents whose rest is fetched behind their readers, at once. Of all others only what is read comes.
const RESTS_MAX: usize = 4;
/// Tries of a mirror before it is given up; the policy asks again.
const TRIES: u32 = 3;

/// What is known of a content that is to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub content: ContentId,
    /// Length in bytes.
    pub size: u64,
    /// The attachment with its piece hashes; `None` for small ones.
    pub pieces: Option<BlobId>,
}

/// A fetch under way, as `active_torrents` shows it.
struct Mirroring {
    size: u64,
    stop: CancellationToken,
}

/// What a reader with a handle reads.
enum Reading {
    /// A content on its way here.
    Coming(Using),
    /// A damaged one, where it lies.
    InPlace(InPlace),
}

/// See the module.
pub struct Fetcher {
    engine: Arc<Engine>,
    swarm: Arc<Swarm>,
    net: Arc<Net>,
    runtime: Handle,
    transfers: Mutex<HashMap<ContentId, Arc<Transfer>>>,
    handles: Mutex<HashMap<u64, (SessionId, Arc<Reading>)>>,
    /// Mirrors of which it is not decided yet whether they begin.
    asked: Mutex<HashMap<u64, (ContentId, CancellationToken)>>,
    mirroring: Mutex<HashMap<ContentId, Mirroring>>,
    /// Contents for whose file somebody waits, each as often as somebody does. Changed with the lock on `transfers`.
    beginning: Mutex<Vec<ContentId>>,
    /// Contents that BitTorrent fetches now, and what stops it. Taken after `transfers`.
    swarming: Mutex<HashMap<ContentId, CancellationToken>>,
    small: places::Places,
    large: Arc<Semaphore>,
    /// Contents that are begun with the version before, see [`earlier`].
    fills: Arc<Semaphore>,
    /// Contents whose rest is fetched behind their readers.
    rests: Arc<Semaphore>,
    promises: promise::Promises,
    room: Arc<room::Room>,
    /// Contents that could not be let go, and when.
    kept: Mutex<HashMap<ContentId, Instant>>,
    /// When what no file has was last removed for who needs room, and how long that took.
    collected: Mutex<Option<(Instant, Duration)>>,
}

impl Fetcher {
    /// Of a disk that is connected; tasks run on this runtime.
    pub fn new(engine: Arc<Engine>, swarm: Arc<Swarm>, net: Arc<Net>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            engine,
            swarm,
            net,
            runtime,
            transfers: Mutex::default(),
            handles: Mutex::default(),
            asked: Mutex::default(),
            mirroring: Mutex::default(),
            beginning: Mutex::default(),
            swarming: Mutex::default(),
            small: places::Places::default(),
            large: Arc::new(Semaphore::new(LARGE_MAX)),
            fills: Arc::new(Semaphore::new(1)),
            rests: Arc::new(Semaphore::new(RESTS_MAX)),
            promises: promise::Promises::default(),
            room: Arc::default(),
            kept: Mutex::default(),
            collected: Mutex::default(),
        })
    }

    /// Somebody asks for a content to be fetched and kept. From now on that can be called off.
    pub fn ask(self: &Arc<Self>, content: ContentId) -> Asked {
        Asked::new(self.clone(), content)
    }

    /// Begin to fetch a content to keep it. Does nothing when that is under way.
    pub fn mirror(self: &Arc<Self>, wanted: Wanted) {
        self.ask(wanted.content).mirror(wanted);
    }

    /// The same until `stop`; `false` when that has come already.
    fn mirror_until(self: &Arc<Self>, wanted: Wanted, stop: CancellationToken) -> bool {
        {
            let mut mirroring = self.mirroring.lock();
            // Under this lock: who calls it off comes for it afterwards.
            if stop.is_cancelled() {
                return false;
            }
            if mirroring.contains_key(&wanted.content) {
                return true;
            }
            mirroring.insert(wanted.content, Mirroring { size: wanted.size, stop: stop.clone() });
        }
        let this = self.clone();
        self.runtime.spawn(async move {
            let work = async {
                let mut pause = Duration::from_secs(1);
                for attempt in 1..=TRIES {
                    // Given back while it pauses: what cannot be reached keeps nobody else waiting.
                    let Some(place) = this.place(wanted).await else {
                        return tracing::debug!("content {}: the disk that holds it gives nothing", wanted.content);
                    };
                    // Nor do those that a disk which went away was to give. The policy asks again.
                    if this.net.sources(wanted.content).is_empty() {
                        return tracing::debug!("content {}: no disk that holds it is there", wanted.content);
                    }
                    let done = this.mirror_once(wanted, attempt, &stop).await;
                    drop(place);
                    match done {
                        Ok(()) => return,
                        Err(error) if attempt == TRIES || error.errno == Errno::ENOSPC => {
                            tracing::info!("content {} is not fetched: {error}", wanted.content);
                            return;
                        }
                        Err(error) => tracing::debug!("content {}: {error}", wanted.content),
                    }
                    tokio::time::sleep(pause).await;
                    pause *= 4;
                }
            };
            let mut work = std::pin::pin!(work);
            tokio::select! {
                () = &mut work => drop(this.mirroring.lock().remove(&wanted.content)),
                // `cancel` has removed it; another one may have begun since.
                () = stop.cancelled() => {
                    // Before `work` is dropped: as long as it is there, nobody else gets the file.
                    if let Err(error) = this.swarm.deactivate(wanted.content).await {
                        tracing::debug!("content {}: {error}", wanted.content);
                    }
                }
            }
        });
        true
    }

    async fn place(&self, wanted: Wanted) -> Option<Place> {
        match wanted.size > TORRENT_MIN_BYTES {
            true => self.large.clone().acquire_owned().await.ok().map(Place::of),
            false => self.small.take(|| self.net.sources(wanted.content)).await,
        }
    }

    async fn mirror_once(self: &Arc<Self>, wanted: Wanted, attempt: u32, stop: &CancellationToken) -> FsResult<()> {
        if self.engine.store.has(wanted.content)? == Some(wanted.size) {
            return Ok(());
        }
        let reading = self.transfers.lock().contains_key(&wanted.content);
        match wanted.pieces {
            // A reader's transfer goes on to the end. Where there is no torrent session, or at the other end, it has to do for
            // mirrors too.
            Some(pieces) if !reading && !self.swarm.is_absent() && attempt < TRIES => {
                self.swarm_fetch(wanted, pieces).await
            }
            _ => {
                let (this, stop) = (self.clone(), stop.clone());
                let waiting = tokio::task::spawn_blocking(move || this.wait_whole(wanted, Some(&stop)));
                waiting.await.map_err(|_| FsError::from(Errno::EIO))?
            }
        }
    }

    /// Wait until a content is here and verified. Blocks.
    ///
    /// # Errors
    /// `EHOSTUNREACH` when nobody who holds it can be reached, `ETIMEDOUT` without progress, or what the disk says.
    pub fn whole(self: &Arc<Self>, wanted: Wanted) -> FsResult<()> {
        self.wait_whole(wanted, None).map_err(|error| named(wanted.content, error))
    }

    /// A mirror waits until `stop`: the thread that waits goes on when its task has ended.
    fn wait_whole(self: &Arc<Self>, wanted: Wanted, stop: Option<&CancellationToken>) -> FsResult<()> {
        match self.begin(wanted, stop)? {
            Some(transfer) => transfer.wait_whole(STALLED, &|| is_called_off(stop)),
            None => Ok(()),
        }
    }

    /// The transfer of a content, with BitTorrent stopped; `None` when it is here meanwhile. For a mirror until `stop`. Blocks.
    fn begin(self: &Arc<Self>, wanted: Wanted, stop: Option<&CancellationToken>) -> FsResult<Option<Using>> {
        let mut patience = room::Patience::default();
        // As long as it waits for room nothing else says that what is here of it is of use.
        let _beginning = Beginning::new(self, wanted.content);
        loop {
            if is_called_off(stop) {
                return Err(FsError::new(Errno::ECANCELED, "the mirror was called off"));
            }
            let store = &self.engine.store;
            // A damaged one is replaced, if somebody has a whole one; of its pieces those are taken that are right.
            let is_damaged = self.engine.is_better_fetched(wanted.content, wanted.size);
            if !is_damaged && store.has(wanted.content)? == Some(wanted.size) {
                return Ok(None);
            }
            match self.transfer(wanted, stop.is_none()) {
                // Who calls it off from now on finds it in the table.
                Ok(Some(transfer)) if is_called_off(stop) => {
                    self.give_up_unused(&transfer);
                    continue;
                }
                Ok(Some(transfer)) => return Ok(Some(transfer)),
                Ok(None) => {}
                Err(error) => {
                    let bytes = store.incoming_needs(wanted.content, wanted.size);
                    let called_off = async {
                        match stop {
                            Some(stop) => stop.cancelled().await,
                            None => std::future::pending().await,
                        }
                    };
                    // No timer can be made any more when the runtime ends, nor is there anybody to wait for.
                    let ends = self.net.ends();
                    let goes_on = !ends.is_cancelled()
                        && self.runtime.block_on(async {
                            tokio::select! {
                                biased;
                                () = ends.cancelled() => false,
                                made = self.room.is_made(&error, store, bytes, &mut patience, || {}) => made,
                                () = called_off => true,
                            }
                        });
                    match goes_on {
                        true => continue,
                        false => return Err(error),
                    }
                }
            }
            let swarming = self.swarming.lock().get(&wanted.content).cloned();
            if let Some(swarming) = swarming {
                swarming.cancel();
                self.runtime.block_on(self.swarm.deactivate(wanted.content))?;
            }
            // The task says when it is out of the way.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Open a content that is not here, to read it while it comes: the handle, and a descriptor of which only ranges that
    /// [`Fetcher::need`] answered for may be read. `None` when it must be fetched as a whole first. Blocks on the disk.
    ///
    /// # Errors
    /// `ENOSPC`, and what the disk says.
    pub fn open(self: &Arc<Self>, session: SessionId, wanted: Wanted) -> FsResult<Option<(u64, File)>> {
        if wanted.pieces.is_none() {
            return Ok(None);
        }
        if let Some((place, file)) = self.in_place(wanted)? {
            return Ok(Some((self.give_handle(session, Reading::InPlace(place)), file)));
        }
        for _ in 0..TRIES {
            let Some(transfer) = self.begin(wanted, None)? else { return Ok(None) };
            let Some(file) = self.engine.store.open_incoming(wanted.content)? else { return Ok(None) };
            // When it has ended meanwhile this may be the file of a later one: pieces that were verified are holes there.
            if !self.transfers.lock().get(&wanted.content).is_some_and(|current| transfer.is(current)) {
                continue;
            }
            return Ok(Some((self.give_handle(session, Reading::Coming(transfer)), file)));
        }
        // Who waits for the whole learns why.
        Ok(None)
    }

    fn give_handle(&self, session: SessionId, reading: Reading) -> u64 {
        let handle = self.engine.new_handle();
        self.handles.lock().insert(handle, (session, Arc::new(reading)));
        handle
    }

    /// Wait until a range is there and verified. Blocks.
    ///
    /// # Errors
    /// `EBADF` for an unknown handle, else as [`Fetcher::whole`].
    pub fn need(&self, session: SessionId, handle: u64, offset: u64, length: u64) -> FsResult<Ranges> {
        let reading = match self.handles.lock().get(&handle) {
            Some((owner, reading)) if *owner == session => reading.clone(),
            _ => return Err(Errno::EBADF.into()),
        };
        let (content, ranges) = match &*reading {
            Reading::Coming(transfer) => (transfer.wanted.content, transfer.wait_range(offset, length, STALLED)),
            Reading::InPlace(place) => (place.wanted.content, place.verify_range(offset, length)),
        };
        ranges.map_err(|error| named(content, error))
    }

    /// Close a handle; `false` when it is none of these.
    pub fn close(&self, session: SessionId, handle: u64) -> bool {
        let mut handles = self.handles.lock();
        let ours = handles.get(&handle).is_some_and(|(owner, _)| *owner == session);
        if ours {
            handles.remove(&handle);
        }
        ours
    }

    /// A session has ended.
    pub fn end_session(&self, session: SessionId) {
        self.handles.lock().retain(|_, (owner, _)| *owner != session);
    }

    /// Give up fetching a content to keep it. Whether that was under way, or asked for.
    pub async fn cancel(&self, content: ContentId) -> FsResult<bool> {
        // First: who decides now that it begins does so with that token.
        let was_asked = {
            let asked = self.asked.lock();
            let of_it = asked.values().filter(|(other, _)| *other == content);
            of_it.inspect(|(_, stop)| stop.cancel()).count() > 0
        };
        let mirroring = self.mirroring.lock().remove(&content);
        if let Some(mirroring) = &mirroring {
            mirroring.stop.cancel();
        }
        // A transfer that nobody else uses was for this alone.
        if let Some(transfer) = self.transfers.lock().get(&content) {
            if transfer.users.is_none() {
                transfer.stop();
            }
            transfer.wake();
        }
        self.swarm.deactivate(content).await?;
        Ok(was_asked || mirroring.is_some())
    }

    /// Whether a content is being fetched to keep it.
    #[cfg(test)]
    fn is_mirroring(&self, content: ContentId) -> bool {
        self.mirroring.lock().contains_key(&content)
    }

    /// Fetches that are no live torrents, and what others fetch so from here.
    pub fn active(&self, but: &[ContentId]) -> Vec<pb::Torrent> {
        let transfers = self.transfers.lock();
        let mirroring = self.mirroring.lock();
        let mut found: HashMap<ContentId, pb::Torrent> = HashMap::new();
        for (content, mirroring) in &*mirroring {
            found.insert(*content, describe(*content, mirroring.size, 0, 0));
        }
        for (content, transfer) in &*transfers {
            let (have, rate) = transfer.progress();
            let peers = transfer.sources();
            found.insert(*content, pb::Torrent { peers, ..describe(*content, transfer.wanted.size, have, rate) });
        }
        for given in self.net.giving() {
            let Some(content) = ContentId::from_slice(&given.content) else { continue };
            found.entry(content).or_insert(given);
        }
        found.into_values().filter(|torrent| !but.iter().any(|but| but.0 == torrent.content[..])).collect()
    }

    /// The transfer of a content, begun now unless it is under way; `None` while BitTorrent fetches it, or one that was given
    /// up has not ended.
    fn transfer(self: &Arc<Self>, wanted: Wanted, counts: bool) -> FsResult<Option<Using>> {
        let under_way = |transfers: &HashMap<ContentId, Arc<Transfer>>| match transfers.get(&wanted.content) {
            Some(transfer) => {
                let goes_on = !transfer.stopped().is_cancelled();
                Some(goes_on.then(|| Using::new(transfer.clone(), counts)))
            }
            None => self.swarming.lock().contains_key(&wanted.content).then_some(None),
        };
        if let Some(found) = under_way(&self.transfers.lock()) {
            return Ok(found);
        }
        // What takes long, before the lock: tasks of the runtime wait for that, and everything else for them.
        let store = &self.engine.store;
        store.make_room(store.incoming_needs(wanted.content, wanted.size))?;
        let pieces = match wanted.pieces {
            Some(pieces) => Some(self.engine.attachment(pieces)?),
            None => None,
        };
        let mut transfers = self.transfers.lock();
        if let Some(found) = under_way(&transfers) {
            return Ok(found);
        }
        let file = store.incoming_file_in_room(wanted.content, wanted.size)?;
        let transfer = Arc::new(Transfer::new(wanted, pieces, file, self.room.clone())?);
        transfers.insert(wanted.content, transfer.clone());
        let using = Using::new(transfer.clone(), counts);
        drop(transfers);
        let (this, running) = (self.clone(), transfer);
        self.runtime.spawn(async move {
            let rest = Rest::new(this.rests.clone(), || this.give_up_unused(&running));
            let ended = running.run(&this.engine, &this.net, &this.fills, rest).await;
            this.transfers.lock().remove(&wanted.content);
            running.end(ended);
            this.room.taken();
        });
        Ok(Some(using))
    }

    /// Give up a transfer that nobody uses; `false` when somebody does.
    fn give_up_unused(&self, transfer: &Transfer) -> bool {
        // Who begins to use it does so under this lock, and waits for another one when it was given up.
        let _transfers = self.transfers.lock();
        let is_unused = transfer.users.is_none();
        if is_unused {
            transfer.stop();
        }
        is_unused
    }

    /// Whether the file in `incoming/` is in use, or about to be.
    fn is_fetched(&self, content: ContentId) -> bool {
        self.is_used(&self.transfers.lock(), content)
    }

    /// The same, for who has the lock on the table of transfers.
    fn is_used(&self, transfers: &HashMap<ContentId, Arc<Transfer>>, content: ContentId) -> bool {
        transfers.contains_key(&content)
            || self.beginning.lock().contains(&content)
            || self.swarming.lock().contains_key(&content)
            || self.mirroring.lock().contains_key(&content)
    }

    /// Remove what a fetch that was given up has left; `false` when the content is being fetched. Blocks.
    fn remove_left(&self, content: ContentId) -> FsResult<bool> {
        // While it is open its blocks stay: to free those of a large file takes long, and all who fetch wait for the lock.
        let open = self.engine.store.open_incoming(content).ok().flatten();
        // Who begins to fetch says so under this lock.
        let transfers = self.transfers.lock();
        if self.is_used(&transfers, content) {
            return Ok(false);
        }
        let removed = self.engine.store.remove_incoming(content);
        drop(transfers);
        drop(open);
        removed.map(|()| true)
    }

    /// The copy here is not what somebody expects: it is looked at soon, in the background.
    pub fn suspect(&self, content: ContentId) {
        self.net.suspect_own(content);
    }

    /// What a content is, as somebody said or else as the whole catalog says. Blocks.
    pub fn look_up(&self, content: ContentId, size: u64, pieces: &[u8]) -> FsResult<Option<Wanted>> {
        if size > 0 {
            return Ok(Some(Wanted { content, size, pieces: BlobId::from_slice(pieces) }));
        }
        let found = self.engine.find_content(content)?;
        Ok(found.map(|(size, pieces)| Wanted { content, size, pieces }))
    }
}

fn is_called_off(stop: Option<&CancellationToken>) -> bool {
    stop.is_some_and(CancellationToken::is_cancelled)
}

/// Whether a piece's bit is set: the first piece is the highest bit of the first byte.
fn is_set(bits: &[u8], piece: usize) -> bool {
    bits.get(piece / 8).is_some_and(|byte| byte & (0x80 >> (piece % 8)) != 0)
}

/// For who reads it in the log of a frontend, among others.
fn named(content: ContentId, error: FsError) -> FsError {
    error.about(&format!("content {}", short_id(&content.to_hex())))
}

fn describe(content: ContentId, size: u64, have: u64, rate: u64) -> pb::Torrent {
    pb::Torrent {
        content: content.0.to_vec(),
        size_bytes: size,
        have_bytes: have,
        down_bytes_per_s: rate,
        ..pb::Torrent::default()
    }
}

/// When something began, and how much was there then, for a rate.
struct Since(Instant, u64);

#[cfg(test)]
mod tests;
