//! Members that are hostile or broken: their keys are good, what they say is not. Each is a real listener that speaks TLS
//! and gRPC as a disk does; the disks it meets must go on with each other as if it were not there.

use std::sync::atomic::{AtomicUsize, Ordering};

use delugefs_proto::peer_pb::peer_server::Peer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Streaming};

use super::*;
use crate::catalog::State;
use crate::net::io::{PeerInfo, PeerIo};

/// The begin of a pack with one object, a blob of 60,000 bytes that are not compressed.
const BEGIN: &[u8] = b"PACK\0\0\0\x02\0\0\0\x01\xb0\xa6\x1d\x78\x01\x01\x60\xea\x9f\x15";

/// What a liar does when it is asked for its catalog, or for a content.
#[derive(Clone, Debug)]
pub(crate) enum Manner {
    /// Bytes that are no pack.
    Garbage,
    /// A message above the limit.
    Oversized,
    /// The begin of a good pack.
    Truncated(Vec<u8>),
    /// A good pack with a wrong byte in it.
    Flipped(Vec<u8>),
    /// A good pack without the state it is said to lead to.
    Undeliverable(Vec<u8>),
    /// A good pack in two halves: the connection is lost between them, and then there is a newer state with a pack of its own.
    Halves([(git2::Oid, Vec<u8>); 2]),
    /// Takes the request and is silent.
    Stall,
    /// A byte now and then, without end.
    Trickle,
    /// The same with so much of a content that it is not taken for silent.
    Slow,
}

/// See the module.
pub(crate) struct Liar {
    key: Identity,
    port: u16,
    asked: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Liar {
    async fn new(cluster: ClusterId, manner: Manner) -> Self {
        let (key, stop, asked) = (key(), CancellationToken::new(), Arc::<AtomicUsize>::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (accepted, incoming) = mpsc::channel(16);
        let acceptor = TlsAcceptor::from(key.server_config(&[ALPN_GRPC]));
        let stopped = stop.clone();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((tcp, from)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(tcp).await else { continue };
                let info = PeerInfo { disk: DiskId([0; 32]), from, token: stopped.child_token() };
                let _ = accepted.send(Ok::<_, std::io::Error>(PeerIo::new(stream, info))).await;
            }
        }));
        let resumed = Arc::<AtomicUsize>::default();
        let service = Lies { manner, resumed: resumed.clone(), cluster, asked: asked.clone(), stop: stop.clone() };
        let server = tonic::transport::Server::builder().add_service(PeerServer::new(service));
        let served = server.serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.clone().cancelled_owned());
        tokio::spawn(served);
        Self { key, port, asked, resumed, stop }
    }

    pub(crate) fn id(&self) -> DiskId {
        DiskId(self.key.id().0)
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// A disk hears from this one that it holds a content,
    pub(crate) fn claims(&self, node: &Node, content: ContentId, epoch: u64) {
        self.claims_all(node, &[content], epoch);
    }

    /// or several.
    pub(crate) fn claims_all(&self, node: &Node, contents: &[ContentId], epoch: u64) {
        let (disk_id, added) =
            (self.id().0.into(), contents.iter().flat_map(|content| &content.0[..16]).copied().collect());
        let claim = pb::Holdings { disk_id, epoch, generation: 1, added, ..Default::default() };
        node.net.holdings.lock().hear(&claim);
    }

    /// Whether a disk has met it.
    pub(crate) fn is_met_by(&self, node: &Node) -> bool {
        node.net.table.lock().is_connected(self.id())
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Lies {
    manner: Manner,
    /// Bytes that need not be sent again.
    resumed: Arc<AtomicUsize>,
    cluster: ClusterId,
    asked: Arc<AtomicUsize>,
    stop: CancellationToken,
}

type Answer<T> = Result<Response<ReceiverStream<Result<T, tonic::Status>>>, tonic::Status>;

impl Lies {
    /// Send these messages; then `again`, slowly and for as long as it is listened to.
    fn answer<T: Clone + Send + Sync + 'static>(&self, messages: Vec<T>, again: Option<T>) -> Answer<T> {
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(async move {
            for message in messages {
                if sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            while let Some(message) = &again {
                tokio::time::sleep(Duration::from_millis(200)).await;
                if sender.send(Ok(message.clone())).await.is_err() {
                    return;
                }
            }
        }));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    /// As [`Lies::answer`], and then an error.
    fn answer_and_break<T: Send + Sync + 'static>(&self, messages: Vec<T>) -> Answer<T> {
        let (sender, receiver) = mpsc::channel(4);
        let broken = std::iter::once(Err(tonic::Status::unavailable("the line is dead")));
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(async move {
            for message in messages.into_iter().map(Ok).chain(broken) {
                let _ = sender.send(message).await; // it may have gone away
            }
        }));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    /// As [`Lies::answer`], and then silence.
    fn answer_and_stall<T: Clone + Send + Sync + 'static>(&self, messages: Vec<T>) -> Answer<T> {
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(async move {
            for message in messages {
                let _ = sender.send(Ok(message)).await; // it may have gone away
            }
            sender.closed().await;
        }));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl Peer for Lies {
    type MeetStream = ReceiverStream<Result<pb::News, tonic::Status>>;
    type FetchPackStream = ReceiverStream<Result<pb::FetchPackReply, tonic::Status>>;
    type ReadContentStream = ReceiverStream<Result<pb::ReadContentReply, tonic::Status>>;

    async fn meet(&self, _: Request<Streaming<pb::News>>) -> Result<Response<Self::MeetStream>, tonic::Status> {
        let cluster_id = self.cluster.0.to_vec();
        // Who is on the same host is asked first.
        let host_id = vec![if matches!(self.manner, Manner::Slow) { 1 } else { 9 }; 32];
        let about = pb::About { version: 1, cluster_id, host_id, run: random_u64(), ..Default::default() };
        let commit = match &self.manner {
            Manner::Halves([_, (newest, _)]) => newest.as_bytes().into(),
            _ => vec![0xab; 20],
        };
        let state = pb::State { commit };
        let news = [news::News::About(about), news::News::State(state)];
        self.answer_and_stall(news.map(|news| pb::News { news: Some(news) }).into())
    }

    async fn fetch_pack(
        &self,
        request: Request<pb::FetchPackRequest>,
    ) -> Result<Response<Self::FetchPackStream>, tonic::Status> {
        if !matches!(self.manner, Manner::Slow) {
            self.asked.fetch_add(1, Ordering::SeqCst);
        }
        let reply = |pack: Vec<u8>| pb::FetchPackReply { commit: vec![0xab; 20], pack, ..Default::default() };
        match self.manner.clone() {
            Manner::Garbage => self.answer(vec![reply(vec![b'x'; 100_000]); 20], None),
            Manner::Oversized => self.answer(vec![reply(vec![b'P'; link::MESSAGE_MAX_BYTES + 1])], None),
            Manner::Truncated(pack) => self.answer(vec![reply(pack[..pack.len() / 2].into())], None),
            Manner::Flipped(mut pack) => {
                let middle = pack.len() / 2;
                pack[middle] ^= 0x10;
                self.answer(vec![reply(pack)], None)
            }
            Manner::Undeliverable(pack) => self.answer(vec![reply(pack)], None),
            Manner::Halves([(commit, pack), (newest, more)]) => {
                let (half, request) = (pack.len() / 2, request.into_inner());
                let first = pb::FetchPackReply { commit: commit.as_bytes().into(), ..Default::default() };
                match request.resume_offset as usize {
                    0 if self.resumed.load(Ordering::SeqCst) > 0 => {
                        let commit = newest.as_bytes().into();
                        self.answer(vec![pb::FetchPackReply { commit, pack: more, ..Default::default() }], None)
                    }
                    0 => self.answer_and_break(vec![pb::FetchPackReply { pack: pack[..half].into(), ..first }]),
                    // Bytes may be lost on the way.
                    at if at <= half && request.resume_commit == first.commit => {
                        self.resumed.fetch_add(at, Ordering::SeqCst);
                        let offset = at as u64;
                        self.answer(vec![pb::FetchPackReply { pack: pack[at..].into(), offset, ..first }], None)
                    }
                    _ => Err(tonic::Status::internal("what it asks for was not sent")),
                }
            }
            Manner::Stall => self.answer_and_stall(vec![reply(b"PACK".into())]),
            Manner::Trickle | Manner::Slow => self.answer(vec![reply(BEGIN.into())], Some(reply(vec![b'x']))),
        }
    }

    async fn read_content(
        &self,
        request: Request<pb::ReadContentRequest>,
    ) -> Result<Response<Self::ReadContentStream>, tonic::Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let length = request.get_ref().length as usize;
        let reply = |length| pb::ReadContentReply { data: vec![b'x'; length].into() };
        match self.manner {
            Manner::Garbage | Manner::Flipped(_) => self.answer(vec![reply(length)], None),
            Manner::Oversized => self.answer(vec![reply(length + 1)], None),
            Manner::Truncated(_) | Manner::Undeliverable(_) => self.answer(vec![reply(length / 2)], None),
            Manner::Stall | Manner::Halves(..) => self.answer_and_stall(vec![reply(length / 2)]),
            Manner::Trickle => self.answer(vec![reply(0)], Some(reply(1))),
            // 100 KiB in 8 seconds: a piece takes 20.
            Manner::Slow => self.answer(vec![reply(0)], Some(reply(2560))),
        }
    }

    async fn promise(&self, _: Request<pb::PromiseRequest>) -> Result<Response<pb::PromiseReply>, tonic::Status> {
        Ok(Response::new(pb::PromiseReply { promised: true, ..pb::PromiseReply::default() }))
    }

    async fn report_corrupt(
        &self,
        _: Request<pb::ReportCorruptRequest>,
    ) -> Result<Response<pb::ReportCorruptReply>, tonic::Status> {
        Err(tonic::Status::unimplemented("as an older one"))
    }

    async fn verify(&self, _: Request<pb::VerifyRequest>) -> Result<Response<pb::VerifyReply>, tonic::Status> {
        if matches!(self.manner, Manner::Stall) {
            std::future::pending::<()>().await;
        }
        Err(tonic::Status::unimplemented("as an older one"))
    }
}

/// Two good disks that know each other, and liars that both know.
pub(crate) async fn among_liars(manners: impl FnOnce(&Node) -> Vec<Manner>) -> (Vec<Node>, Vec<Liar>) {
    let (host, mut members, nodes) = cluster(2, &[(0, 1)]).await;
    until("both to meet", || nodes[0].connected(&nodes[1]) && nodes[1].connected(&nodes[0])).await;
    let mut liars = Vec::new();
    for manner in manners(&nodes[0]) {
        let liar = Liar::new(members.cluster_id(), manner).await;
        members.admit(Role::Disk, liar.id().into(), "tower", 1, &host).unwrap();
        liars.push(liar);
    }
    for node in &nodes {
        node.admit(&members);
        let hint = |liar: &Liar| Hint { disk_id: liar.id().0.into(), address: format!("127.0.0.1:{}", liar.port) };
        node.net.take_hints(&HintsRequest { hints: liars.iter().map(hint).collect() });
    }
    (nodes, liars)
}

/// A disk of no cluster with a catalog of 5000 names.
fn lone() -> (Running, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let folder = DiskFolder::create_with(&dir.path().join("d"), "test", None, make_catalog).unwrap();
    let running = Running::start(Arc::new(folder), Settings { reserve_bytes: 0, retention: Duration::ZERO }).unwrap();
    for n in 0..5000 {
        let making = Mkdir { dir: Ino::ROOT.0, name: format!("far-{n}").into(), mode: 0o755, uid: 1, gid: 1, token: 0 };
        running.engine.mkdir(1, false, &making).unwrap();
    }
    running.engine.commit().unwrap();
    (running, dir)
}

/// The whole catalog of a disk.
fn pack_of(node: &Node) -> Vec<u8> {
    let mut pack = Vec::new();
    let offer = Offer { state: node.net.engine.committed(), base: None };
    node.net.engine.export(&offer, &mut pack).unwrap();
    pack
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_liars_send_is_refused_and_the_others_go_on() {
    let manners = |node: &Node| {
        (0..20).for_each(|n| node.mkdir(&format!("before-{n}")));
        node.net.engine.commit().unwrap();
        let pack = pack_of(node);
        vec![
            Manner::Trickle,
            Manner::Stall,
            Manner::Garbage,
            Manner::Oversized,
            Manner::Truncated(pack.clone()),
            Manner::Flipped(pack.clone()),
            Manner::Undeliverable(pack),
        ]
    };
    let (nodes, liars) = among_liars(manners).await;
    // Both ask each of them, once and again where the answer was an end.
    let asked = || {
        let enough = |liar: &Liar| liar.asked() >= 2;
        liars.iter().all(enough) && liars[2..].iter().map(Liar::asked).sum::<usize>() >= 4 * liars[2..].len()
    };
    let mut round = 0;
    while !asked() || round < 5 {
        for (from, to) in [(0, 1), (1, 0)] {
            let name = format!("{round}-from-{from}");
            nodes[from].mkdir(&name);
            until("the name", || nodes[to].sees(&name)).await;
        }
        round += 1;
        assert!(round < 10_000, "{:?}", liars.iter().map(Liar::asked).collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    until("one state", || nodes[0].commit() == nodes[1].commit()).await;
    for node in &nodes {
        assert!((0..20).all(|n| node.sees(&format!("before-{n}"))));
        // Each kind of refusal is said once.
        let logged = node.net.log.0.lock().clone();
        assert!(logged.values().map(HashSet::len).sum::<usize>() <= 2 * liars.len(), "{logged:?}");
        // What is still being received is all that is not trusted.
        let quarantine = node.dir.path().join("d/catalog.git/quarantine");
        let left = std::fs::read_dir(quarantine).map_or(0, Iterator::count);
        assert!(left <= liars.len(), "{left} imports are left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_exchange_that_was_cut_off_goes_on_where_it_was() {
    let manners = |_: &Node| {
        let (running, _dir) = lone();
        let from = running.engine.clone();
        let pack = |state: State| {
            let (offer, mut pack) = (Offer { state, base: None }, Vec::new());
            from.export(&offer, &mut pack).unwrap();
            (offer.state.commit, pack)
        };
        let first = pack(from.committed());
        let making = Mkdir { dir: Ino::ROOT.0, name: "later".into(), mode: 0o755, uid: 1, gid: 1, token: 0 };
        from.mkdir(1, false, &making).unwrap();
        from.commit().unwrap();
        let second = pack(from.committed());
        running.stop().unwrap();
        vec![Manner::Halves([first, second])]
    };
    let (nodes, liars) = among_liars(manners).await;
    // Both disks ask it; one of them is the first who goes on.
    let all = |name: &str| nodes.iter().all(|node| node.sees(name));
    until("its names", || all("far-4999") && all("later")).await;
    // At least what is worth keeping.
    assert!(liars[0].resumed.load(Ordering::SeqCst) >= 256 << 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pack_goes_on_behind_what_was_received() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    (0..50).for_each(|n| nodes[0].mkdir(&format!("d-{n}")));
    until("it to follow", || nodes[1].sees("d-49") && nodes[1].commit() == nodes[0].commit()).await;
    let ask = async |resume_offset, resume_commit| {
        let mut client = nodes[1].net.client(nodes[0].id()).await.unwrap();
        let request = pb::FetchPackRequest { resume_offset, resume_commit, ..Default::default() };
        let mut stream = client.fetch_pack(request).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap();
        let mut pack = first.pack.clone();
        while let Some(reply) = stream.message().await.unwrap() {
            pack.extend(reply.pack);
        }
        (first, pack)
    };
    let (first, whole) = ask(0, Vec::new()).await;
    let (again, rest) = ask(100, first.commit.clone()).await;
    assert_eq!((again.offset, &again.commit, &rest[..]), (100, &first.commit, &whole[100..]));
    // What it never sent, it does not go on with.
    let (anew, pack) = ask(100, vec![7; 20]).await;
    assert_eq!((anew.offset, &anew.commit, pack), (0, &first.commit, whole));
    // It goes on with what it has sent also when its own state is another one by now.
    let (net, asking) = (&nodes[0].net, DiskId([9; 32]));
    let (sent, _) = net.offer(asking, &[], &pb::FetchPackRequest::default()).unwrap();
    nodes[0].mkdir("later");
    net.engine.commit().unwrap();
    let resume_commit = sent.state.commit.as_bytes().into();
    let request = pb::FetchPackRequest { resume_offset: 7, resume_commit, ..Default::default() };
    let (offer, offset) = net.offer(asking, &[], &request).unwrap();
    assert_eq!((offer.state.commit, offset), (sent.state.commit, 7));
}
