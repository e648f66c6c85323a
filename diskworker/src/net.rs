//! The disk among other disks: one TCP port, mutual TLS with raw public keys, and what is said there.
//!
//! ```text
//!   listener   who calls, and what for     -> join      of strangers: an invitation, or proof of membership
//!   dial       whom to meet, channels      -> link      two disks talk: state, members, holdings, addresses
//!   members    who may take part           -> sync      follow the catalogs of others
//!   book       where disks may be          -> service   gRPC for members
//!   table      who is connected            -> holdings  who holds what
//!   said       what a link needs not hear  -> remember  what is known over a restart
//!                                          -> corrupt   copies that are not what their names say
//! ```
//! A peer is its key. Addresses are hints, its host is a label, and which of the two opened a connection does not matter.
//! Nothing here blocks on the disk but in the runtime's blocking threads.

mod allowance;
mod book;
mod corrupt;
mod cut;
mod dial;
mod giving;
mod holdings;
pub mod io;
mod join;
mod link;
mod listener;
mod members;
pub(crate) mod pace;
mod places;
mod remember;
mod report;
mod said;
mod service;
pub(crate) mod shares;
mod sync;
mod table;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::Context;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::identity::Identity;
use delugefs_proto::ids::{BlobId, ContentId, DiskId, random_u64};
use delugefs_proto::members::Members;
use delugefs_proto::peer_pb::{self as pb, news, peer_server::PeerServer};
use delugefs_proto::{disk, limits};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

pub use self::corrupt::Elsewhere;
pub use self::members::check as check_members;
use crate::engine::{Engine, Marks};
use crate::fetch::Fetcher;
use crate::swarm::Swarm;
use book::Book;
use holdings::{EPOCH_MAX, Holdings};
use members::MembersStore;
use pace::Limits;
use shares::Shares;
use table::Table;

/// Changes of holdings on their way to links.
const TOLD: usize = 4096;
/// How often what we say of ourselves is renewed: free space changes all the time.
const ABOUT_EVERY: Duration = Duration::from_secs(10);
/// How often others are told what came and went at most.
const HOLDS_EVERY: Duration = Duration::from_millis(50);
/// How often others are told of arrivals at most.
const ARRIVALS_EVERY: Duration = Duration::from_millis(500);

/// Contents read for other disks at once, and catalogs written for them; each takes a thread, of which there are 512. A disk asks for few
/// contents at once, and for the catalog once; what it has given up may stand for half a minute yet.
const READS_MAX: usize = 256;
const READS_EACH: usize = 64;
const EXPORTS_MAX: usize = 64;
const EXPORTS_EACH: usize = 4;
/// Connections with one disk: a few for requests, and one for each torrent that it fetches from here.
const CONNECTIONS_EACH: usize = 64;

/// How a disk takes part.
#[derive(Clone, Debug, Default)]
pub struct NetSettings {
    /// IP address to listen on; all when `None`.
    pub listen: Option<String>,
    /// TCP port; any when 0.
    pub port: u16,
    /// Tried when `port` is 0.
    pub last_port: u16,
    /// Fetch contents only to read them.
    pub lazy: bool,
    /// Where the disk is, for spreading copies.
    pub site: String,
    /// Most bytes of contents to send and to receive in a second; 0: no limit.
    pub limits: (u64, u64),
    /// Where the supervisor's socket is.
    pub run_dir: PathBuf,
}

/// See the module.
pub struct Net {
    engine: Arc<Engine>,
    swarm: Arc<Swarm>,
    identity: Identity,
    settings: NetSettings,
    members: MembersStore,
    /// Key and name of the host this disk is on, once the supervisor has said so.
    host: Mutex<(Vec<u8>, String)>,
    limits: Limits,
    port: u16,
    run: u64,
    started: Instant,
    stop: CancellationToken,
    table: Mutex<Table>,
    book: Mutex<Book>,
    holdings: Mutex<Holdings>,
    channels: Mutex<HashMap<DiskId, dial::Open>>,
    dialing: Mutex<HashMap<DiskId, Arc<tokio::sync::Mutex<()>>>>,
    connections: Mutex<Vec<(DiskId, CancellationToken)>>,
    /// Disks that were shown why we are a member, in this life of the process.
    introduced: Mutex<HashSet<DiskId>>,
    links: AtomicU64,
    reads: Shares,
    exports: Shares,
    given_bytes: AtomicU64,
    giving: Mutex<giving::Giving>,
    /// When a second process with a disk's key was first refused, or we were.
    copies: Mutex<HashMap<(DiskId, u64), Instant>>,
    /// A try to meet somebody may be due.
    wake: Notify,
    /// What this disk holds has changed.
    holds: Notify,
    /// Others have heard of a disk that had not been there.
    arrived: Notify,
    /// Somebody announced a state.
    states: Notify,
    /// A copy here is to be looked at.
    suspected: Notify,
    suspects: Mutex<corrupt::Suspects>,
    /// Held by who reads a copy for another disk.
    verifying: Arc<tokio::sync::Mutex<()>>,
    /// Held by who looks at what somebody shows who is not known.
    joining: Arc<tokio::sync::Mutex<()>>,
    about_changed: watch::Sender<()>,
    told: broadcast::Sender<(Option<u64>, Arc<pb::Holdings>)>,
    fetcher: std::sync::OnceLock<Weak<Fetcher>>,
    cuts: Mutex<cut::Cuts>,
    log: LogOnce,
}

impl Net {
    /// Listen and begin to meet others, on the runtime this is called on.
    ///
    /// # Errors
    /// When the port cannot be had, or the membership file is damaged.
    pub async fn start(engine: Arc<Engine>, swarm: Arc<Swarm>, settings: NetSettings) -> anyhow::Result<Arc<Self>> {
        let key = engine.folder.open_file(disk::NODE_KEY, OFlag::O_RDONLY).context("opening the disk's key")?;
        let identity = Identity::from_pkcs8(&std::io::Read::bytes(key).take(4096).collect::<Result<Vec<u8>, _>>()?)?;
        let members = MembersStore::open(engine.folder.clone())?;
        let bound = listener::bind(settings.listen.as_deref(), settings.port, settings.last_port)?;
        let net = Arc::new(Self {
            port: bound.local_addr()?.port(),
            run: random_u64(),
            started: Instant::now(),
            limits: Limits::new(settings.limits.0, settings.limits.1),
            table: Mutex::new(Table::new(engine.folder.disk_id())),
            engine,
            swarm,
            identity,
            settings,
            members,
            host: Mutex::default(),
            stop: CancellationToken::new(),
            book: Mutex::default(),
            holdings: Mutex::default(),
            channels: Mutex::default(),
            dialing: Mutex::default(),
            connections: Mutex::default(),
            introduced: Mutex::default(),
            links: AtomicU64::new(1),
            reads: Shares::new(READS_MAX, READS_EACH),
            exports: Shares::new(EXPORTS_MAX, EXPORTS_EACH),
            given_bytes: AtomicU64::new(0),
            giving: Mutex::default(),
            copies: Mutex::default(),
            wake: Notify::new(),
            holds: Notify::new(),
            arrived: Notify::new(),
            states: Notify::new(),
            suspected: Notify::new(),
            suspects: Mutex::default(),
            verifying: Arc::default(),
            joining: Arc::default(),
            about_changed: watch::channel(()).0,
            told: broadcast::channel(TOLD).0,
            fetcher: std::sync::OnceLock::new(),
            cuts: Mutex::default(),
            log: LogOnce::default(),
        });
        net.engine.watch_members({
            let net = Arc::downgrade(&net);
            Box::new(move || net.upgrade().map_or_else(Vec::new, |net| net.others()))
        });
        net.engine.look_elsewhere_with({
            let net = Arc::downgrade(&net);
            Box::new(move |content| net.upgrade().is_some_and(|net| net.is_given(content)))
        });
        let (accepted, incoming) = mpsc::channel(16);
        tokio::spawn(listener::accept(net.clone(), bound, accepted));
        tokio::spawn(serve(net.clone(), incoming));
        tokio::spawn(dial::keep_meeting(net.clone()));
        tokio::spawn(sync::follow(net.clone()));
        tokio::spawn(renew_about(net.clone()));
        tokio::spawn(tell_holdings(net.clone()));
        tokio::spawn(corrupt::look_at_suspects(net.clone()));
        Ok(net)
    }

    /// Cancelled when this disk's worker ends.
    pub fn ends(&self) -> &CancellationToken {
        &self.stop
    }

    /// End all connections.
    pub fn shutdown(&self) {
        self.stop.cancel();
        for (_, token) in self.connections.lock().drain(..) {
            token.cancel();
        }
    }

    /// Whether there is no other disk in the cluster.
    pub fn is_alone(&self) -> bool {
        self.members.get().is_none_or(|members| members.disks().len() <= 1)
    }

    /// The other disks of the cluster.
    fn others(&self) -> Vec<DiskId> {
        let me = self.engine.folder.disk_id();
        let members = self.members.get();
        members.iter().flat_map(|members| members.disks().keys()).copied().filter(|disk| *disk != me).collect()
    }

    /// Whether this disk fetches contents only to read them.
    pub fn is_lazy(&self) -> bool {
        self.settings.lazy
    }

    /// The TCP port others reach this disk at.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes of contents given to other disks by ranges since the start.
    pub fn given_bytes(&self) -> u64 {
        self.given_bytes.load(Ordering::Relaxed)
    }

    /// Large contents that others read by ranges.
    pub fn giving(&self) -> Vec<delugefs_proto::worker_pb::Torrent> {
        self.giving.lock().list(Instant::now())
    }

    /// Who answers for contents.
    pub fn serve_contents(&self, fetcher: &Arc<Fetcher>) {
        let _ = self.fetcher.set(Arc::downgrade(fetcher)); // there is one
    }

    /// A content came to this disk or left it.
    pub fn holding_changed(&self, content: ContentId, held: bool) {
        // It went, or another copy came.
        self.suspects.lock().forget(content);
        if self.holdings.lock().changed(self.engine.folder.disk_id(), content, held) {
            self.holds.notify_one();
        }
    }

    /// Changes whenever anything about who holds what does.
    pub fn holdings_version(&self) -> u64 {
        self.holdings.lock().version()
    }

    /// Every disk that said it holds a content, also those that are away and this one.
    pub fn known_holders(&self, content: ContentId) -> Arc<[DiskId]> {
        self.holdings.lock().holders(content)
    }

    /// All disks that said what they hold.
    pub fn holding_disks(&self) -> Vec<DiskId> {
        self.holdings.lock().disks()
    }

    /// Other disks that hold a content and are connected or may be reached; connected ones first.
    pub fn holders(&self, content: ContentId) -> Vec<DiskId> {
        let me = self.engine.folder.disk_id();
        let mut holders: Vec<DiskId> = self.known_holders(content).iter().copied().filter(|disk| *disk != me).collect();
        holders.retain(|disk| self.members.is_disk(*disk));
        let (table, book) = (self.table.lock(), self.book.lock());
        holders.retain(|disk| table.is_connected(*disk) || !book.of(*disk).is_empty());
        holders.sort_by_key(|disk| (!table.is_connected(*disk), !table.is_there(*disk)));
        holders
    }

    /// Other disks that hold a content, are there, and may promise to keep it: lazy ones do not.
    pub fn keepers(&self, content: ContentId) -> Vec<DiskId> {
        let mut holders = self.holders(content);
        let table = self.table.lock();
        holders.retain(|disk| {
            let about = table.disks.get(disk).and_then(|other| other.about.as_ref());
            table.is_there(*disk) && about.is_some_and(|about| !about.lazy)
        });
        holders
    }

    /// How many other disks may keep copies at all, there or not: all but those that were forgotten or are to be emptied, and those that are
    /// lazy, or of which nothing is known, not even something that they hold.
    pub fn may_keep(&self, marks: &Marks) -> usize {
        let (others, holding) = (self.others(), self.holding_disks());
        let table = self.table.lock();
        let may_keep = |disk: &&DiskId| match table.disks.get(*disk).and_then(|other| other.about.as_ref()) {
            Some(about) => !about.lazy,
            None => holding.contains(*disk),
        };
        others.iter().filter(|disk| !marks.contains_key(*disk)).filter(may_keep).count()
    }

    /// How far a disk is: 0 on this host, 1 at this site, 2 elsewhere, 3 not there.
    pub fn distance(&self, disk: DiskId) -> u8 {
        let host = self.host.lock().0.clone();
        let table = self.table.lock();
        let about = table.disks.get(&disk).and_then(|other| other.about.as_ref());
        match about.filter(|_| table.is_there(disk)) {
            None => 3,
            Some(about) if !host.is_empty() && about.host_id == host => 0,
            Some(about) if about.site == self.settings.site => 1,
            Some(_) => 2,
        }
    }

    /// Other disks that are there and hold a content, each with whether it is in doubt.
    pub fn sources(&self, content: ContentId) -> Vec<(DiskId, bool)> {
        let (holders, me) = (self.known_holders(content), self.engine.folder.disk_id());
        let (table, now) = (self.table.lock(), Instant::now());
        let holders = holders.iter().copied().filter(|disk| *disk != me && self.members.is_disk(*disk));
        let there = holders.filter(|disk| table.is_there(*disk));
        there.map(|disk| (disk, table.is_in_doubt(disk, now))).collect()
    }

    /// Whether another disk that is there holds a content, and is not in doubt.
    pub fn is_given(&self, content: ContentId) -> bool {
        self.sources(content).iter().any(|(_, in_doubt)| !in_doubt)
    }

    /// Whether a disk failed when it was last asked for a content, a short time ago.
    pub fn is_in_doubt(&self, disk: DiskId) -> bool {
        self.table.lock().is_in_doubt(disk, Instant::now())
    }

    /// A disk was asked for a content. Whether it gave what it was asked for.
    pub fn asked(&self, disk: DiskId, gave: bool) {
        self.table.lock().asked(disk, gave, Instant::now());
    }

    fn tell(&self, from: Option<u64>, news: pb::Holdings) {
        let _ = self.told.send((from, Arc::new(news))); // fails when there is no link
    }

    fn about(&self) -> pb::News {
        pb::News { news: Some(news::News::About(self.about_now())) }
    }

    /// What this disk says of itself.
    fn about_now(&self) -> pb::About {
        let (host_id, host_label) = self.host.lock().clone();
        let space = self.engine.free_space().unwrap_or_default();
        pb::About {
            version: 1,
            program: env!("CARGO_PKG_VERSION").into(),
            cluster_id: self.engine.folder.cluster_id().0.to_vec(),
            host_id,
            host_label,
            port: self.port.into(),
            site: self.settings.site.clone(),
            lazy: self.settings.lazy,
            total_bytes: space.total_bytes,
            free_bytes: space.free_bytes,
            read_only: space.read_only,
            full: space.full,
            run: self.run,
            epoch: self.holdings.lock().epoch(self.engine.folder.disk_id()).min(EPOCH_MAX),
            uptime_s: self.started.elapsed().as_secs(),
            state: self.engine.commits().borrow().as_bytes().to_vec(),
            knows_still: true,
        }
    }

    /// What is known of where these are, for somebody on this machine or elsewhere.
    fn addresses(&self, is_here: bool, members: &Members) -> BTreeMap<DiskId, Vec<String>> {
        let book = self.book.lock();
        let serves = |address: &&String| is_here || !address.starts_with("127.") && !address.starts_with("[::1]");
        let known = book.all().filter(|(disk, _)| members.is_disk(*disk));
        known.map(|(disk, addresses)| (disk, addresses.iter().filter(serves).cloned().collect())).collect()
    }

    /// Somebody is there who was not: others are told, and it may be one to be met.
    fn has_arrived(&self) {
        self.arrived.notify_one();
        self.wake.notify_one();
    }

    /// Whether a disk has as many connections as it may.
    fn is_crowding(&self, disk: DiskId) -> bool {
        let connections = self.connections.lock();
        let of_it = connections.iter().filter(|(other, token)| *other == disk && !token.is_cancelled());
        of_it.count() >= CONNECTIONS_EACH
    }

    /// A token for a connection of a disk; it is cancelled when the disk is no member any more, or we stop.
    fn connection_token(&self, disk: DiskId) -> CancellationToken {
        let token = self.stop.child_token();
        self.connections.lock().push((disk, token.clone()));
        // After that: whoever was revoked a moment ago is seen here or there.
        if !self.members.is_disk(disk) {
            token.cancel();
        }
        token
    }

    /// Make a content live for a peer who wants it by BitTorrent.
    async fn accept_torrent(&self, request: &pb::StreamRequest) -> FsResult<ContentId> {
        let content = ContentId::from_slice(&request.content).ok_or(Errno::EINVAL)?;
        let pieces = BlobId::from_slice(&request.pieces).ok_or(Errno::EINVAL)?;
        if request.size_bytes > limits::FILE_MAX_BYTES {
            return Err(Errno::EINVAL.into());
        }
        let (engine, size) = (self.engine.clone(), request.size_bytes);
        let found = tokio::task::spawn_blocking(move || match engine.store.has(content)? {
            _ if engine.store.is_leaving(content) => {
                Err(FsError::new(Errno::ENOENT, "this disk is about to let its copy go"))
            }
            Some(length) if length == size => engine.attachment(pieces),
            _ => Err(FsError::new(Errno::ENOENT, "this disk does not hold the content")),
        });
        let pieces = found.await.map_err(|_| Errno::EIO)??;
        self.swarm.activate(content, size, pieces).await?;
        Ok(content)
    }
}

async fn serve(net: Arc<Net>, incoming: listener::Incoming) {
    let service = PeerServer::new(service::PeerService(net.clone()))
        .max_decoding_message_size(link::MESSAGE_MAX_BYTES)
        .max_encoding_message_size(2 * link::MESSAGE_MAX_BYTES);
    let stop = net.stop.clone();
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(link::KEEP_ALIVE))
        .http2_keepalive_timeout(Some(link::KEEP_ALIVE))
        .initial_stream_window_size(link::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(link::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(256)
        .add_service(service);
    let served = server.serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!("serving other disks: {error}");
    }
}

/// Others are told of changes at once; of those that follow in a moment, together.
async fn tell_holdings(net: Arc<Net>) {
    let me = net.engine.folder.disk_id();
    loop {
        tokio::select! {
            () = net.holds.notified() => {}
            () = net.stop.cancelled() => return,
        }
        let news = net.holdings.lock().news(me);
        news.into_iter().for_each(|part| net.tell(None, part));
        tokio::time::sleep(HOLDS_EVERY).await;
    }
}

async fn renew_about(net: Arc<Net>) {
    let (mut remembered, mut rest_until) =
        (net.holdings_version(), Instant::now() + remember::pause_after(0, Duration::ZERO));
    loop {
        tokio::select! {
            () = tokio::time::sleep(ABOUT_EVERY) => drop(net.about_changed.send(())),
            () = net.arrived.notified() => {
                // Passed on, with those that follow.
                tokio::time::sleep(ARRIVALS_EVERY).await;
                let _ = net.about_changed.send(()); // fails without links
            }
            () = net.stop.cancelled() => return,
        }
        let version = net.holdings_version();
        if remembered != version && rest_until <= Instant::now() {
            remembered = version;
            let (net, begin) = (net.clone(), Instant::now());
            let written = tokio::task::spawn_blocking(move || net.remember_holdings()).await;
            if let Ok(Err(error)) = &written {
                tracing::debug!("what other disks hold is not written down: {error}");
            }
            let bytes = written.ok().and_then(Result::ok).unwrap_or_default();
            rest_until = Instant::now() + remember::pause_after(bytes, begin.elapsed());
        }
    }
}

/// Remembers what was logged: a stranger who calls a thousand times is logged once. So many of each kind: a thousand strangers hide
/// nothing but others like them.
#[derive(Default)]
struct LogOnce(Mutex<HashMap<&'static str, HashSet<String>>>);

impl LogOnce {
    const MAX: usize = 1000;
    /// Of one disk.
    const EACH_MAX: usize = 16;

    /// The same of what one disk does or says, which it can make different each time: so many lines of a kind.
    fn once_of(&self, kind: &'static str, disk: DiskId, what: &str, log: impl FnOnce()) {
        let who = disk.to_hex();
        let said = self.0.lock().get(kind).map_or(0, |all| all.iter().filter(|one| one.starts_with(&who)).count());
        let last = || {
            log();
            if said + 1 == Self::EACH_MAX {
                tracing::warn!("disk {}: no more of this kind is logged", &who[..8]);
            }
        };
        if said < Self::EACH_MAX {
            self.once(kind, &format!("{who} {what}"), last);
        }
    }

    fn once(&self, kind: &'static str, what: &str, log: impl FnOnce()) {
        let mut logged = self.0.lock();
        let logged = logged.entry(kind).or_default();
        if logged.len() < Self::MAX && logged.insert(what.into()) {
            log();
        }
    }
}
