//! A disk that was properly admitted, and whose program lies. It has the real key of a disk whose worker was stopped, is a thread of the
//! test in the network of that disk's host, and speaks TLS and gRPC as a worker does.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use delugefs_proto::disk::{DiskToml, NODE_KEY};
use delugefs_proto::identity::Identity;
use delugefs_proto::identity::tls::{ALPN_GRPC, ALPN_JOIN, ALPN_TORRENT, ClientStream, peer_id};
use delugefs_proto::ids::{ContentId, DiskId, HostId, random_u64};
use delugefs_proto::limits::piece_count;
use delugefs_proto::message;
use delugefs_proto::peer_pb::peer_client::PeerClient;
use delugefs_proto::peer_pb::peer_server::{Peer, PeerServer};
use delugefs_proto::peer_pb::{self as pb, news::News};
use hyper_util::rt::TokioIo;
use nix::libc;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::forged::{self, Pack};
use super::lab::Host;

/// More than any message may be.
const OVERSIZED: usize = 9 << 20;

/// What it does when it is asked for a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Other bytes.
    Wrong,
    /// A message above every limit.
    Oversized,
    /// Messages without end, with nothing in them.
    Endless,
    /// Half of it, and silence.
    Stalls,
    /// Connections are accepted, and nothing is said on them.
    Mute,
}

/// What it does when it is asked for its catalog.
#[derive(Clone)]
pub enum Offer {
    Pack(Pack),
    Oversized,
    Endless,
    Stalls,
}

/// See the module.
pub struct Liar {
    pub lies: Arc<Lies>,
    pub id: DiskId,
    handle: Handle,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What its connections share.
pub struct Lies {
    key: Identity,
    cluster: Vec<u8>,
    host: HostId,
    port: u16,
    run: u64,
    pub manner: Mutex<Manner>,
    /// What it is asked for by BitTorrent is an endless row of these.
    pub torrent: Mutex<Vec<u8>>,
    offers: Mutex<HashMap<DiskId, Offer>>,
    links: Mutex<HashMap<DiskId, mpsc::Sender<Result<pb::News, Status>>>>,
    asked: Mutex<HashMap<(&'static str, DiskId), usize>>,
    /// Connections end when it changes.
    round: watch::Sender<u64>,
}

impl Liar {
    /// In place of the worker that host had for a disk. Its supervisor has told the others so: it is `host` to them.
    pub fn take_over(at: &Host, disk: &str, host: &str, port: u16) -> Self {
        let folder = at.path(disk);
        let identity = DiskToml::read(&folder).unwrap();
        let key = Identity::from_pkcs8(&std::fs::read(folder.join(NODE_KEY)).unwrap()).unwrap();
        let id = key.disk_id();
        assert_eq!(Some(id), identity.disk_id());
        let lies = Arc::new(Lies {
            key,
            cluster: identity.cluster_id().unwrap().0.to_vec(),
            host: HostId::from_hex(host).unwrap(),
            port,
            run: random_u64(),
            manner: Mutex::new(Manner::Wrong),
            torrent: Mutex::default(),
            offers: Mutex::default(),
            links: Mutex::default(),
            asked: Mutex::default(),
            round: watch::channel(0).0,
        });
        let (network, (stop, mut stopped)) = (at.network_file(), watch::channel(false));
        let (started, handle) = std::sync::mpsc::channel();
        let served = lies.clone();
        let work = move || {
            #[allow(unsafe_code)]
            // SAFETY: the descriptor is open; a network belongs to the thread, and this one ends with the liar.
            let entered = unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(entered, 0, "setns: {}", std::io::Error::last_os_error());
            // One thread: what others open would be in the network of the test.
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            started.send(runtime.handle().clone()).unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = serve(served) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("liar".into()).spawn(work).unwrap();
        Self { lies, id, handle: handle.recv().unwrap(), stop, thread: Some(thread) }
    }

    /// Have it do something, to its end.
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (done, result) = std::sync::mpsc::channel();
        self.handle.spawn(async move { done.send(work.await) });
        result.recv().expect("what the liar does has panicked")
    }

    /// All connections end; others come. Who comes then finds this manner.
    pub fn begin(&self, manner: Manner) {
        *self.lies.manner.lock() = manner;
        self.lies.links.lock().clear();
        self.lies.round.send_modify(|round| *round += 1);
    }

    /// Tell a disk something; whether there is a link.
    pub fn say(&self, disk: DiskId, news: News) -> bool {
        let link = self.lies.links.lock().get(&disk).cloned();
        link.is_some_and(|link| link.try_send(Ok(pb::News { news: Some(news) })).is_ok())
    }

    /// Disks that have met it since [`Liar::begin`].
    pub fn links(&self) -> Vec<DiskId> {
        self.lies.links.lock().keys().copied().collect()
    }

    /// Say that it holds these contents, and of how many changes that is the last.
    pub fn claims(&self, contents: &[ContentId]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let added = contents.iter().flat_map(|content| content.0[..16].to_vec()).collect();
        let news = pb::Holdings { disk_id: self.id.0.into(), epoch: now, generation: 1, added, ..Default::default() };
        self.links().into_iter().for_each(|disk| assert!(self.say(disk, News::Holdings(news.clone()))));
    }

    /// Announce a state to a disk, and what it gets when it asks for that.
    pub fn offers(&self, disk: DiskId, commit: forged::Id, offer: Offer) -> bool {
        self.lies.offers.lock().insert(disk, offer);
        self.say(disk, News::State(pb::State { commit: commit.into() }))
    }

    /// How often a disk has asked for something: `pack`, `content`, `torrent`, `verify`.
    pub fn asked(&self, what: &'static str, by: DiskId) -> usize {
        self.lies.asked.lock().get(&(what, by)).copied().unwrap_or(0)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        let _ = self.stop.send(true); // it may have panicked
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the liar has panicked");
    }
}

async fn serve(lies: Arc<Lies>) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, lies.port)).await.unwrap();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let lies = lies.clone();
        tokio::spawn(async move {
            let mut round = lies.round.subscribe();
            tokio::select! {
                () = lies.connection(tcp) => {}
                _ = round.changed() => {}
            }
        });
    }
}

impl Lies {
    async fn connection(self: &Arc<Self>, tcp: TcpStream) {
        if *self.manner.lock() == Manner::Mute {
            return std::future::pending().await;
        }
        let acceptor = TlsAcceptor::from(self.key.server_config(&[ALPN_GRPC, ALPN_TORRENT, ALPN_JOIN]));
        let Ok(mut stream) = acceptor.accept(tcp).await else { return };
        let connection = stream.get_ref().1;
        let caller = DiskId(peer_id(connection).unwrap().0);
        match connection.alpn_protocol().unwrap_or_default() {
            ALPN_GRPC => self.grpc(stream, caller).await,
            ALPN_TORRENT => self.torrent(stream, caller).await.unwrap_or_default(),
            // Who introduces himself is known.
            _ => message::write(&mut stream, &pb::JoinReply::default()).await.unwrap_or_default(),
        }
    }

    /// A server for each connection, so that it is known who asks.
    async fn grpc(self: &Arc<Self>, mut stream: TlsStream<TcpStream>, caller: DiskId) {
        let (mut near, far) = tokio::io::duplex(64 << 10);
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(far)).chain(tokio_stream::pending());
        let server = Server::builder().add_service(PeerServer::new(Service { lies: self.clone(), caller }));
        tokio::select! {
            _ = server.serve_with_incoming(incoming) => {}
            _ = tokio::io::copy_bidirectional(&mut near, &mut stream) => {}
        }
    }

    /// It has all pieces, and each of them is wrong.
    async fn torrent(&self, mut stream: TlsStream<TcpStream>, caller: DiskId) -> std::io::Result<()> {
        let request: pb::StreamRequest = message::read(&mut stream, message::REQUEST_MAX_BYTES).await?;
        self.count("torrent", caller);
        message::write(&mut stream, &pb::StreamReply::default()).await?;
        let pieces = vec![0xff; piece_count(request.size_bytes).div_ceil(8) as usize];
        stream.write_all(&framed(5, &pieces)).await?;
        stream.write_all(&framed(1, &[])).await?;
        stream.flush().await?;
        let odd = self.torrent.lock().clone();
        while !odd.is_empty() {
            stream.write_all(&odd).await?;
        }
        loop {
            let asked = frame(&mut stream).await?;
            if let [6, place @ ..] = &asked[..] {
                let length = u32::from_be_bytes(place[8..12].try_into().unwrap()) as usize;
                stream.write_all(&framed(7, &[&place[..8], &vec![b'x'; length]].concat())).await?;
                stream.flush().await?;
            }
        }
    }

    fn count(&self, what: &'static str, caller: DiskId) {
        *self.asked.lock().entry((what, caller)).or_default() += 1;
    }

    /// A connection to a disk of another host.
    pub async fn dial(&self, disk: DiskId, address: Ipv4Addr, alpn: &[u8]) -> std::io::Result<ClientStream> {
        self.key.dial(Some(disk.into()), (address, self.port).into(), alpn, Duration::from_secs(10)).await
    }

    /// The same to ask it something.
    pub async fn client(&self, disk: DiskId, address: Ipv4Addr) -> Result<PeerClient<Channel>, String> {
        let mut stream = Some(self.dial(disk, address, ALPN_GRPC).await.map_err(|error| error.to_string())?);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().map(TokioIo::new).ok_or(std::io::ErrorKind::NotConnected);
            async move { stream.map_err(std::io::Error::from) }
        });
        let connected = Endpoint::from_static("http://peer").connect_with_connector(connector).await;
        Ok(PeerClient::new(connected.map_err(|error| error.to_string())?))
    }

    pub fn about(&self) -> pb::News {
        let (cluster_id, host_id) = (self.cluster.clone(), self.host.0.to_vec());
        let (total_bytes, free_bytes) = (1 << 50, 1 << 50);
        let port = self.port.into();
        let about = pb::About {
            version: 1,
            cluster_id,
            host_id,
            port,
            run: self.run,
            total_bytes,
            free_bytes,
            ..Default::default()
        };
        pb::News { news: Some(News::About(about)) }
    }
}

/// A message of BitTorrent.
pub fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32 + 1).to_be_bytes()[..], &[kind], payload].concat()
}

async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// What a disk that calls gets.
struct Service {
    lies: Arc<Lies>,
    caller: DiskId,
}

type Messages<T> = ReceiverStream<Result<T, Status>>;
type Answer<T> = Result<Response<Messages<T>>, Status>;

/// These messages, and that was all.
fn ended<T: Send + 'static>(messages: impl Iterator<Item = T> + Send + 'static) -> Messages<T> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        for message in messages {
            if sender.send(Ok(message)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// These, and then silence.
fn stalled<T: Send + 'static>(messages: impl Iterator<Item = T> + Send + 'static) -> Messages<T> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        for message in messages {
            if sender.send(Ok(message)).await.is_err() {
                return;
            }
        }
        sender.closed().await;
    });
    ReceiverStream::new(receiver)
}

#[tonic::async_trait]
impl Peer for Service {
    type MeetStream = Messages<pb::News>;
    type FetchPackStream = Messages<pb::FetchPackReply>;
    type ReadContentStream = Messages<pb::ReadContentReply>;

    async fn meet(&self, request: Request<Streaming<pb::News>>) -> Answer<pb::News> {
        let (sender, receiver) = mpsc::channel(64);
        sender.try_send(Ok(self.lies.about())).unwrap();
        self.lies.links.lock().insert(self.caller, sender);
        // What it is told is read, and forgotten.
        let mut incoming = request.into_inner();
        tokio::spawn(async move { while let Ok(Some(_)) = incoming.message().await {} });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn fetch_pack(&self, _: Request<pb::FetchPackRequest>) -> Answer<pb::FetchPackReply> {
        let offer = self.lies.offers.lock().get(&self.caller).cloned();
        self.lies.count("pack", self.caller);
        let reply = |commit: forged::Id, pack| pb::FetchPackReply { commit: commit.into(), pack, ..Default::default() };
        let first = |pack| std::iter::once(reply([0xab; 20], pack));
        Ok(Response::new(match offer.ok_or_else(|| Status::unavailable("nothing"))? {
            Offer::Pack((commit, pack)) => {
                let parts: Vec<_> = pack.chunks(256 << 10).map(|part| reply(commit, part.to_vec())).collect();
                ended(std::iter::once(reply(commit, Vec::new())).chain(parts))
            }
            Offer::Oversized => stalled(first(vec![b'P'; OVERSIZED])),
            Offer::Endless => {
                let again = reply([0; 20], forged::filler(1 << 20));
                ended(first(forged::begin(8 << 20)).chain(std::iter::repeat(again)))
            }
            Offer::Stalls => stalled(first(forged::begin(9))),
        }))
    }

    async fn read_content(&self, request: Request<pb::ReadContentRequest>) -> Answer<pb::ReadContentReply> {
        self.lies.count("content", self.caller);
        let length = request.get_ref().length as usize;
        let reply = |length| pb::ReadContentReply { data: vec![b'x'; length].into() };
        let parts =
            move |length: usize| (0..length).step_by(64 << 10).map(move |at| reply((length - at).min(64 << 10)));
        let manner = *self.lies.manner.lock();
        Ok(Response::new(match manner {
            Manner::Wrong => ended(parts(length)),
            Manner::Oversized => stalled(std::iter::once(reply(OVERSIZED))),
            Manner::Endless => ended(std::iter::repeat(reply(0))),
            Manner::Stalls | Manner::Mute => stalled(parts(length / 2)),
        }))
    }

    async fn promise(&self, _: Request<pb::PromiseRequest>) -> Result<Response<pb::PromiseReply>, Status> {
        Ok(Response::new(pb::PromiseReply { promised: true, ..Default::default() }))
    }

    async fn report_corrupt(
        &self,
        _: Request<pb::ReportCorruptRequest>,
    ) -> Result<Response<pb::ReportCorruptReply>, Status> {
        Ok(Response::new(pb::ReportCorruptReply {}))
    }

    async fn verify(&self, _: Request<pb::VerifyRequest>) -> Result<Response<pb::VerifyReply>, Status> {
        self.lies.count("verify", self.caller);
        Ok(Response::new(pb::VerifyReply { whole: true }))
    }
}
