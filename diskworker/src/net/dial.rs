//! Opening connections: whom to meet, trying addresses, and channels for requests.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::identity::tls::{ALPN_GRPC, ALPN_JOIN, ALPN_TORRENT, ClientStream, peer_id};
use delugefs_proto::ids::{DiskId, NodeId};
use delugefs_proto::message;
use delugefs_proto::peer_pb::{self as pb, peer_client::PeerClient};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::io::{PeerInfo, PeerIo};
use super::pace::{Limits, Pace};
use super::table::{Table, whom_to_meet};
use super::{Net, join, link};

/// For one address.
const DIAL: Duration = Duration::from_secs(5);
/// So long after a look whom to meet there is another one at the latest. Whatever may change that wakes who looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Failures after which another disk is met instead.
const HOPELESS_AFTER: u32 = 3;
/// An unused channel to a disk that we do not meet is closed after this.
const CHANNEL_IDLE: Duration = Duration::from_secs(600);

/// A channel for requests, opened by us.
pub(super) struct Open {
    client: PeerClient<Channel>,
    info: PeerInfo,
    used: Instant,
}

/// Meet whom we should meet, for as long as the network runs.
pub(super) async fn keep_meeting(net: Arc<Net>) {
    let mut members = net.members.watch();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            changed = members.changed() => {
                if changed.is_err() {
                    return;
                }
                net.forget_strangers();
            }
            () = net.wake.notified() => {}
            () = net.stop.cancelled() => return,
        }
        next = Instant::now() + LOOK_EVERY;
        net.close_idle_channels();
        let Some(all) = net.members.get() else { continue };
        let me = net.engine.folder.disk_id();
        if !all.is_disk(me) {
            continue;
        }
        let disks: Vec<DiskId> = all.disks().keys().copied().collect();
        let now = Instant::now();
        let host = net.host.lock().0.clone();
        let (due, spare): (Vec<DiskId>, Vec<DiskId>) = {
            let (mut table, book) = (net.table.lock(), net.book.lock());
            // Who has just joined knows where one disk is, and nobody knows where it is.
            let is_hopeless = |table: &Table, disk| match table.disks.get(&disk) {
                Some(other) if other.link.is_some() => false,
                other => !book.knows(disk) || other.is_some_and(|other| other.failures >= HOPELESS_AFTER),
            };
            let mut chosen = whom_to_meet(me, &disks, |disk| is_hopeless(&table, disk));
            // Those of this host give each other contents.
            let is_mate = |disk: &DiskId| {
                let about = table.disks.get(disk).and_then(|other| other.about.as_ref());
                !host.is_empty() && about.is_some_and(|about| about.host_id == host)
            };
            chosen.extend(disks.iter().copied().filter(|disk| *disk != me && is_mate(disk)));
            chosen.sort_unstable();
            chosen.dedup();
            let retries = chosen.iter().filter_map(|disk| table.disks.get(disk)?.next_try).filter(|at| *at > now);
            next = retries.min().map_or(next, |at| at.min(next));
            let is_met = |disk: &DiskId| table.is_connected(*disk) || is_hopeless(&table, *disk);
            let is_all = chosen.iter().all(is_met);
            let spare = if is_all { table.begin_parting(&chosen, now) } else { Vec::new() };
            let is_due = |disk: &DiskId| book.knows(*disk) && table.disks.entry(*disk).or_default().begin(now);
            (chosen.into_iter().filter(is_due).collect(), spare)
        };
        spare.into_iter().for_each(|disk| net.part_from(disk));
        for disk in due {
            let net = net.clone();
            tokio::spawn(async move {
                let met = meet(&net, disk).await;
                net.table.lock().disks.entry(disk).or_default().tried(met);
                net.wake.notify_one(); // it may be tried again soon, or another one in its place
            });
        }
        next = next.min(net.try_unnamed());
    }
}

/// Connect and talk until the link ends.
async fn meet(net: &Arc<Net>, disk: DiskId) -> FsResult<()> {
    if net.introduced.lock().insert(disk) {
        // It may not have heard of our admission yet, and would take us for a stranger.
        net.introduce_to(disk).await;
    }
    let client = net.client(disk).await?;
    let info = net.channels.lock().get(&disk).map(|open| open.info.clone()).ok_or(Errno::ENOTCONN)?;
    let met = link::open(net, client, info.clone()).await;
    if met.is_err() {
        info.token.cancel();
        net.channels.lock().remove(&disk);
    }
    met
}

impl Net {
    /// A channel for requests to a disk: the one that is open, or a new one.
    ///
    /// # Errors
    /// `EHOSTUNREACH` with the last address' reason.
    pub async fn client(&self, disk: DiskId) -> FsResult<PeerClient<Channel>> {
        // One dials at a time for a disk; the others use what he got.
        let gate = self.dialing.lock().entry(disk).or_default().clone();
        let _one = gate.lock().await;
        if let Some(open) = self.channels.lock().get_mut(&disk)
            && !open.info.token.is_cancelled()
        {
            open.used = Instant::now();
            return Ok(open.client.clone());
        }
        let (stream, from) = self.dial(disk, ALPN_GRPC).await?;
        let info = PeerInfo { disk, from, token: self.connection_token(disk) };
        let client = PeerClient::new(channel(PeerIo::new(stream, info.clone())).await?)
            .max_decoding_message_size(link::MESSAGE_MAX_BYTES);
        self.channels.lock().insert(disk, Open { client: client.clone(), info, used: Instant::now() });
        Ok(client)
    }

    /// What limits the contents that come over the channel of a disk.
    pub(crate) fn pace_from(&self, disk: DiskId) -> Option<Arc<Pace>> {
        let from = self.channels.lock().get(&disk)?.info.from.ip();
        self.limits_for(disk, from).map(|limits| limits.down)
    }

    /// What limits contents to and from a disk: none for those of this host.
    pub(super) fn limits_for(&self, disk: DiskId, address: IpAddr) -> Option<Limits> {
        let is_here = address.to_canonical().is_loopback() || self.roommates().iter().any(|(mate, ..)| *mate == disk);
        (!is_here).then(|| self.limits.clone())
    }

    /// A stream on which BitTorrent about one content can be spoken: the other end has accepted.
    ///
    /// # Errors
    /// `EHOSTUNREACH`, or `ENOENT` with the other end's reason.
    pub async fn torrent_stream(&self, disk: DiskId, request: pb::StreamRequest) -> FsResult<PeerIo<ClientStream>> {
        let (mut stream, from) = self.dial(disk, ALPN_TORRENT).await?;
        let asked = async {
            message::write(&mut stream, &request).await?;
            message::read::<pb::StreamReply>(&mut stream, message::REQUEST_MAX_BYTES).await
        };
        let reply = timeout(DIAL * 12, asked).await.map_err(|_| Errno::ETIMEDOUT)??;
        if !reply.error.is_empty() {
            return Err(FsError::new(Errno::ENOENT, format!("disk {}: {}", &disk.to_hex()[..8], reply.error)));
        }
        let io = PeerIo::new(stream, PeerInfo { disk, from, token: self.connection_token(disk) });
        Ok(io.limited(self.limits_for(disk, from.ip())))
    }

    /// Try the addresses of a disk in turn.
    async fn dial(&self, disk: DiskId, alpn: &[u8]) -> FsResult<(ClientStream, SocketAddr)> {
        let unreachable = |why: String| {
            FsError::new(Errno::EHOSTUNREACH, format!("disk {} cannot be reached: {why}", &disk.to_hex()[..8]))
        };
        if !self.members.is_disk(disk) {
            return Err(unreachable("it is no member".into()));
        }
        let mut last = "no address of it is known".to_owned();
        let known = self.book.lock().of(disk);
        let mut tried = HashSet::new();
        loop {
            // One that has come meanwhile is the likeliest: a disk that is back has called from there.
            let now = self.book.lock().of(disk);
            let next = now.iter().find(|one| !known.contains(one)).filter(|one| !tried.contains(*one));
            let Some(text) = next.or_else(|| now.iter().find(|one| !tried.contains(*one))).cloned() else { break };
            tried.insert(text.clone());
            // Last from now on, unless it works: a dead one must not stand before a good one for ever.
            self.book.lock().trying(disk, &text);
            for address in resolve(&text).await {
                match self.identity.dial(Some(disk.into()), address, alpn, DIAL).await {
                    Ok(stream) => {
                        self.book.lock().worked(disk, &text);
                        return Ok((stream, address));
                    }
                    Err(error) => last = format!("{text}: {}", FsError::from(error).why()),
                }
            }
        }
        Err(unreachable(last))
    }

    /// Show a disk that does not know us why we are a member, wherever it answers.
    pub(super) async fn introduce_to(self: &Arc<Self>, disk: DiskId) {
        let addresses = self.book.lock().of(disk);
        for text in addresses {
            for address in resolve(&text).await {
                match join::introduce(self, Some(disk.into()), address).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(%address, %error, "could not introduce ourselves"),
                }
            }
        }
    }

    /// End the link with a disk that is to be heard of by others from now on.
    pub(super) fn part_from(&self, disk: DiskId) {
        if let Some(other) = self.table.lock().disks.get_mut(&disk) {
            other.parts = true;
            other.link.iter().for_each(|link| link.parting.notify_one());
        }
    }

    /// Find out who answers at addresses given without a name, until they are there. When there is more of that to do.
    fn try_unnamed(self: &Arc<Self>) -> Instant {
        let me = self.engine.folder.disk_id();
        let (due, next) = {
            let table = self.table.lock();
            let is_there = |disk| disk == me || table.is_there(disk);
            let (mut book, now) = (self.book.lock(), Instant::now());
            (book.due(now, is_there), book.next_due(is_there).unwrap_or(now + LOOK_EVERY))
        };
        for text in due {
            let net = self.clone();
            tokio::spawn(async move {
                let mut who = Vec::new();
                for address in resolve(&text).await {
                    // A join conversation: it says who is there, and who we are.
                    let Ok(stream) = net.identity.dial(None, address, ALPN_JOIN, DIAL).await else { continue };
                    let Some(NodeId(key)) = peer_id(stream.get_ref().1) else { continue };
                    drop(stream);
                    let disk = DiskId(key);
                    who.push(disk);
                    if disk != me && net.book.lock().hint(Some(disk), &text, |disk| net.members.is_disk(disk)) {
                        net.wake.notify_one();
                    }
                }
                net.book.lock().answered(&text, who, Instant::now());
                net.wake.notify_one();
            });
        }
        next
    }

    fn forget_strangers(&self) {
        let Some(members) = self.members.get() else { return };
        self.table.lock().retain(|disk| members.is_disk(disk));
        self.channels.lock().retain(|disk, open| {
            let stays = members.is_disk(*disk);
            if !stays {
                open.info.token.cancel();
            }
            stays
        });
        self.connections.lock().retain(|(disk, token)| {
            if !members.is_disk(*disk) {
                token.cancel();
            }
            !token.is_cancelled()
        });
    }

    fn close_idle_channels(&self) {
        let table = self.table.lock();
        self.channels.lock().retain(|disk, open| {
            let in_use = table.is_connected(*disk) || open.used.elapsed() < CHANNEL_IDLE;
            if !in_use {
                open.info.token.cancel();
            }
            in_use && !open.info.token.is_cancelled()
        });
        self.connections.lock().retain(|(_, token)| !token.is_cancelled());
    }
}

async fn resolve(text: &str) -> Vec<SocketAddr> {
    match timeout(DIAL, tokio::net::lookup_host(text.to_owned())).await {
        Ok(Ok(found)) => found.take(4).collect(),
        _ => Vec::new(),
    }
}

/// gRPC over one connection; when that ends, so does the channel.
async fn channel(io: PeerIo<ClientStream>) -> FsResult<Channel> {
    let mut io = Some(TokioIo::new(io));
    let connector = tower::service_fn(move |_| {
        let io = io.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        async move { io }
    });
    let endpoint = Endpoint::from_static("http://peer")
        .http2_keep_alive_interval(link::KEEP_ALIVE)
        .keep_alive_timeout(link::KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(link::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(link::CONNECTION_WINDOW_BYTES);
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|error| FsError::new(Errno::ENOTCONN, format!("no gRPC on the connection: {error}")))
}
