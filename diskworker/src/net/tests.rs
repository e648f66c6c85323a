//! Disks in one process that meet on the loopback interface.

mod away;
mod crowd;
mod figures;
mod joining;
mod large;
pub(crate) mod liar;
mod silent;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::codec::decode_version_vector;
use delugefs_proto::identity::tls::{ALPN_GRPC, ALPN_JOIN};
use delugefs_proto::ids::{ClusterId, Ino};
use delugefs_proto::local_pb::{Lookup, Mkdir};
use delugefs_proto::members::{Members, Role};
use delugefs_proto::message;
use delugefs_proto::worker_pb::{Hint, HintsRequest, Mark, MembersRequest};
use tempfile::TempDir;

use super::*;
use crate::engine::{Offer, Running, Settings, make_catalog};
use crate::fetch::Wanted;
use crate::folder::DiskFolder;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    net: Arc<Net>,
    fetcher: Arc<Fetcher>,
    running: Option<Running>,
    dir: TempDir,
}

fn key() -> Identity {
    Identity::from_pkcs8(&Identity::generate_pkcs8().unwrap()).unwrap()
}

fn found(host: &Identity) -> Members {
    Members::found(host, [1; 16], "test", "tower", 1).unwrap()
}

impl Node {
    async fn new(cluster: ClusterId) -> Self {
        Self::new_in(tempfile::tempdir().unwrap(), cluster).await
    }

    async fn new_in(dir: TempDir, cluster: ClusterId) -> Self {
        DiskFolder::create_with(&dir.path().join("d"), "test", Some(cluster), make_catalog).unwrap();
        Self::start(dir, 0).await
    }

    pub(crate) async fn start(dir: TempDir, port: u16) -> Self {
        // The last life's tasks may still be on their way out.
        let begin = Instant::now();
        let folder = loop {
            match DiskFolder::open(&dir.path().join("d"), None) {
                Ok(folder) => break Arc::new(folder),
                Err(error) => assert!(begin.elapsed() < PATIENCE, "{error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let settings = Settings { reserve_bytes: 0, retention: Duration::from_secs(60) };
        let running = Running::start(folder, settings).unwrap();
        let listen = Some("127.0.0.1".to_owned());
        let settings = NetSettings { listen, port, run_dir: dir.path().into(), ..NetSettings::default() };
        let swarm = Arc::new(Swarm::start(running.engine.store.clone()).unwrap());
        let net = Net::start(running.engine.clone(), swarm.clone(), settings).await.unwrap();
        net.recall_holdings();
        let holder = Arc::downgrade(&net);
        running.engine.store.watch(Box::new(move |content, held| {
            if let Some(net) = holder.upgrade() {
                net.holding_changed(content, held);
            }
        }));
        let runtime = tokio::runtime::Handle::current();
        let fetcher = Fetcher::new(running.engine.clone(), swarm, net.clone(), runtime);
        net.serve_contents(&fetcher);
        Self { net, fetcher, running: Some(running), dir }
    }

    pub(crate) fn net(&self) -> &Arc<Net> {
        &self.net
    }

    pub(crate) fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.net.engine
    }

    /// Whether its catalog names the content.
    pub(crate) fn catalog_has(&self, wanted: Wanted) -> bool {
        self.net.engine.find_content(wanted.content).unwrap().is_some()
    }

    pub(crate) fn id(&self) -> DiskId {
        self.net.engine.folder.disk_id()
    }

    fn admit(&self, members: &Members) {
        let request = MembersRequest { set: members.encode(), host_label: "tower".into(), host_id: vec![1; 32] };
        self.net.take_members(&request).unwrap();
    }

    fn knows(&self, other: &Node) {
        let address = format!("127.0.0.1:{}", other.net.port());
        let hints = vec![Hint { disk_id: other.id().0.to_vec(), address }];
        self.net.take_hints(&HintsRequest { hints });
    }

    fn mkdir(&self, name: &str) {
        let making = Mkdir { dir: Ino::ROOT.0, name: name.to_owned().into(), mode: 0o755, uid: 1, gid: 1, token: 0 };
        self.net.engine.mkdir(1, false, &making).unwrap();
    }

    fn sees(&self, name: &str) -> bool {
        self.net.engine.lookup(&Lookup { dir: Ino::ROOT.0, name: name.to_owned().into() }).is_ok()
    }

    fn connected(&self, other: &Node) -> bool {
        self.net.table.lock().is_connected(other.id())
    }

    fn commit(&self) -> git2::Oid {
        *self.net.engine.commits().borrow()
    }

    pub(crate) async fn stop(mut self) -> TempDir {
        self.net.shutdown();
        let running = self.running.take().unwrap();
        tokio::task::spawn_blocking(move || running.stop()).await.unwrap().unwrap();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.net.shutdown();
        if let Some(running) = self.running.take() {
            let _ = running.stop();
        }
    }
}

pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Disks of one host, admitted and known to each other as `pairs` says.
pub(crate) async fn cluster(count: usize, pairs: &[(usize, usize)]) -> (Identity, Members, Vec<Node>) {
    cluster_in((0..count).map(|_| tempfile::tempdir().unwrap()).collect(), pairs).await
}

/// The same in these folders.
pub(crate) async fn cluster_in(dirs: Vec<TempDir>, pairs: &[(usize, usize)]) -> (Identity, Members, Vec<Node>) {
    let host = key();
    let mut members = found(&host);
    let mut nodes = Vec::new();
    for dir in dirs {
        let node = Node::new_in(dir, members.cluster_id()).await;
        members.admit(Role::Disk, node.id().into(), "tower", 1, &host).unwrap();
        nodes.push(node);
    }
    nodes.iter().for_each(|node| node.admit(&members));
    for (one, other) in pairs {
        nodes[*one].knows(&nodes[*other]);
    }
    (host, members, nodes)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_disk_changes_the_others_see() {
    // The first and the last hear of each other from the one in the middle.
    let (_, _, nodes) = cluster(3, &[(0, 1), (1, 2)]).await;
    until("all to meet", || nodes.iter().all(|a| nodes.iter().all(|b| a.id() == b.id() || a.connected(b)))).await;
    nodes[0].mkdir("from-0");
    nodes[2].mkdir("from-2");
    let all = |name: &str| nodes.iter().all(|node| node.sees(name));
    until("both names everywhere", || all("from-0") && all("from-2")).await;
    until("one state", || nodes.iter().all(|node| node.commit() == nodes[0].commit())).await;
    // The supervisor tells by what they have seen whether one does not follow.
    let seen = |node: &Node| decode_version_vector(&node.net.peers().me.unwrap().seen).unwrap();
    assert!(nodes.iter().all(|node| seen(node) == seen(&nodes[0]) && !seen(node).0.is_empty()));
    // Who holds what, also when it is the other side's first word.
    let content = ContentId([7; 32]);
    nodes[2].net.holding_changed(content, true);
    until("the holder to be known", || nodes[0].net.holders(content) == [nodes[2].id()]).await;
    nodes[2].net.holding_changed(content, false);
    until("the holder to be gone", || nodes[0].net.holders(content).is_empty()).await;
}

/// Not sent to all by all: that would be as many times all as there are links.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_a_disk_holds_is_announced_and_sent_to_who_asks() {
    let (host, mut members, nodes) = cluster(3, &[(0, 1), (1, 2)]).await;
    until("all to meet", || nodes.iter().all(|a| nodes.iter().all(|b| a.id() == b.id() || a.connected(b)))).await;
    let away = DiskId(key().id().0);
    members.admit(Role::Disk, away.into(), "tower", 1, &host).unwrap();
    nodes.iter().for_each(|node| node.admit(&members));
    let mut told = nodes[1].net.told.subscribe();
    // The second disk hears of it from the first, the third from the second.
    let content = ContentId([7; 32]);
    let claim = |epoch, generation| {
        let (disk_id, added) = (away.0.into(), content.0[..16].into());
        pb::Holdings { disk_id, epoch, generation, added, ..Default::default() }
    };
    let link = nodes[0].net.table.lock().disks[&nodes[2].id()].link.as_ref().unwrap().id;
    nodes[0].net.holdings.lock().hear(&claim(5, 3));
    nodes[0].net.tell(Some(link), claim(5, 3));
    until("the holder to be known", || nodes.iter().all(|node| *node.net.known_holders(content) == [away])).await;
    loop {
        let (_, message) = told.recv().await.unwrap();
        if message.disk_id == away.0 {
            assert_eq!((message.epoch, message.generation, message.added.len()), (5, 3, 0));
            break;
        }
    }
}

/// Its clock was far ahead once and the note of that is lost, or somebody has made it up.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_which_others_know_a_later_count_is_heard_again() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    until("the link", || nodes[0].connected(&nodes[1]) && nodes[1].connected(&nodes[0])).await;
    let (content, me) = (ContentId([7; 32]), nodes[0].id());
    nodes[0].net.holding_changed(content, true);
    until("the holder to be known", || nodes[1].net.holders(content) == [me]).await;
    let epoch = nodes[0].net.holdings.lock().epoch(me) + 1_000_000_000;
    let claim = pb::Holdings { disk_id: me.0.into(), epoch, generation: 9, ..Default::default() };
    nodes[1].net.holdings.lock().hear(&claim);
    assert!(nodes[1].net.holders(content).is_empty());
    nodes[1].net.tell(None, claim);
    until("the holder to be known again", || nodes[1].net.holders(content) == [me]).await;
    // One that nobody could outdo is not taken.
    let claim = pb::Holdings { disk_id: me.0.into(), epoch: u64::MAX, generation: 9, ..Default::default() };
    assert_eq!(nodes[1].net.holdings.lock().hear(&claim), crate::net::holdings::Heard::Nothing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_away_catches_up_and_is_known_meanwhile() {
    let (_, _, mut nodes) = cluster(2, &[(0, 1)]).await;
    until("both to meet", || nodes[0].connected(&nodes[1])).await;
    let content = ContentId([9; 32]);
    nodes[1].net.holding_changed(content, true);
    until("the holder to be known", || *nodes[0].net.known_holders(content) == [nodes[1].id()]).await;
    let away = nodes.pop().unwrap();
    let (id, port) = (away.id(), away.net.port());
    let dir = away.stop().await;
    until("it to be missed", || !nodes[0].net.table.lock().is_connected(id)).await;
    nodes[0].mkdir("meanwhile");
    assert_eq!(*nodes[0].net.known_holders(content), [id]);
    let mut reply = Default::default();
    nodes[0].net.add_holders(content, &mut reply);
    assert_eq!((&reply.disk_ids, reply.disk_ids.len()), (&reply.away, 1));
    let back = Node::start(dir, port).await;
    until("it to be back", || nodes[0].connected(&back)).await;
    until("it to catch up", || back.sees("meanwhile") && back.commit() == nodes[0].commit()).await;
    // Its new count says that it does not hold that content any more.
    until("its new count", || nodes[0].net.known_holders(content).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_from_a_disk_that_went_away_is_still_a_base_when_it_is_back() {
    let (_, _, mut nodes) = cluster(2, &[(0, 1)]).await;
    until("both to meet", || nodes[0].connected(&nodes[1])).await;
    (0..200).for_each(|n| nodes[1].mkdir(&format!("old-{n}")));
    until("its names", || nodes[0].commit() == nodes[1].commit() && nodes[0].sees("old-199")).await;
    let away = nodes.pop().unwrap();
    let id = away.id();
    let dir = away.stop().await;
    until("it to be missed", || !nodes[0].net.table.lock().is_connected(id)).await;
    // Enough commits for the packs to be rewritten without what is outdated: every part of the catalog is.
    for n in 0..40 {
        (0..20).for_each(|m| nodes[0].mkdir(&format!("new-{n}-{m}")));
        nodes[0].net.engine.commit().unwrap();
    }
    // It has news when the two meet again; each takes what the other has.
    let back = Node::start(dir, 0).await;
    back.mkdir("other");
    back.net.engine.commit().unwrap();
    nodes[0].knows(&back);
    until("it to catch up", || back.sees("new-39-19") && nodes[0].sees("other")).await;
    until("one state", || back.commit() == nodes[0].commit()).await;
    for node in [&nodes[0], &back] {
        let logged = node.net.log.0.lock().clone();
        assert!(logged.is_empty(), "{logged:?}");
    }
}

/// A disk that only follows: nothing was ever taken from it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_disk_had_when_it_went_away_is_a_base_when_it_is_back() {
    let (_, _, mut nodes) = cluster(2, &[(0, 1)]).await;
    until("both to meet", || nodes[0].connected(&nodes[1])).await;
    (0..1000).for_each(|n| nodes[0].mkdir(&format!("old-{n}")));
    until("it to follow", || nodes[1].sees("old-999") && nodes[1].commit() == nodes[0].commit()).await;
    let reached = nodes[1].commit();
    until("it to say so", || nodes[0].net.following(nodes[1].id()).state == Some(reached)).await;
    let away = nodes.pop().unwrap();
    let id = away.id();
    let dir = away.stop().await;
    until("it to be missed", || !nodes[0].net.table.lock().is_connected(id)).await;
    for n in 0..40 {
        nodes[0].mkdir(&format!("new-{n}"));
        nodes[0].net.engine.commit().unwrap();
    }
    let exported = |base| {
        let mut pack = Vec::new();
        let offer = Offer { state: nodes[0].net.engine.committed(), base };
        nodes[0].net.engine.export(&offer, &mut pack).unwrap();
        pack.len()
    };
    let (all, rest) = (exported(None), exported(Some(reached)));
    assert!(rest * 2 < all, "{rest} of {all} bytes");
    let back = Node::start(dir, 0).await;
    nodes[0].knows(&back);
    until("it to catch up", || back.sees("new-39") && back.commit() == nodes[0].commit()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_nobody_has_heard_of_proves_it() {
    let host = key();
    let mut old = found(&host);
    let one = Node::new(old.cluster_id()).await;
    old.admit(Role::Disk, one.id().into(), "tower", 1, &host).unwrap();
    let other = Node::new(old.cluster_id()).await;
    let second = key();
    let mut new = old.clone();
    new.admit(Role::Host, second.id(), "laptop", 2, &host).unwrap();
    new.admit(Role::Disk, other.id().into(), "laptop", 3, &second).unwrap();
    one.admit(&old);
    other.admit(&new);
    other.knows(&one);
    until("both to meet", || one.connected(&other) && other.connected(&one)).await;
    until("the same members", || one.net.members.get() == other.net.members.get()).await;
    // As a holder it is shown, also when nobody waits for it, but not when it is no member any more.
    let content = ContentId([7; 32]);
    other.net.holding_changed(content, true);
    until("the holder to be known", || one.net.holders(content) == [other.id()]).await;
    let where_is = || {
        let mut reply = Default::default();
        one.net.add_holders(content, &mut reply);
        (reply.disk_ids, reply.away, reply.forgotten)
    };
    let (hex, none) = (vec![other.id().to_hex()], Vec::<String>::new());
    assert_eq!(where_is(), (hex.clone(), none.clone(), none.clone()));
    one.net.engine.mark(other.id(), Mark::Forgotten).unwrap();
    until("the mark", || where_is() == (hex.clone(), none.clone(), hex.clone())).await;
    // Revoked: the connection ends and does not come back.
    new.revoke(other.id().into(), 4, &host).unwrap();
    one.admit(&new);
    until("the end", || !one.connected(&other)).await;
    assert_eq!(where_is().0, none);
    one.mkdir("secret");
    for _ in 0..3 {
        let asked = async {
            let mut client = other.net.client(one.id()).await?;
            client.fetch_pack(pb::FetchPackRequest::default()).await.map_err(|_| FsError::from(Errno::EACCES))
        };
        assert!(asked.await.is_err());
        other.net.channels.lock().clear();
    }
    assert!(!one.connected(&other) && !other.sees("secret"));
    // It is shown why, and believes nobody but the host that revoked it.
    let is_out = || other.net.members.get().is_some_and(|members| members.is_revoked(other.id().into()));
    until("it to know", is_out).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nowhere() {
    let (_, _, nodes) = cluster(1, &[]).await;
    let address = SocketAddr::from(([127, 0, 0, 1], nodes[0].net.port()));
    let stranger = key();
    let dial = |alpn| stranger.dial(Some(nodes[0].id().into()), address, alpn, PATIENCE);
    // Its connection is closed before anything is read.
    let mut stream = dial(ALPN_GRPC).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
    assert!(answer.is_empty(), "{read:?} {answer:?}");
    let ask = |request: pb::JoinRequest| async move {
        let mut stream = dial(ALPN_JOIN).await.unwrap();
        message::write(&mut stream, &request).await.unwrap();
        message::read::<pb::JoinReply>(&mut stream, 1 << 20).await.unwrap().error
    };
    let cluster_id = nodes[0].net.engine.folder.cluster_id().0.to_vec();
    let good = pb::JoinRequest { version: 1, cluster_id, ..pb::JoinRequest::default() };
    assert!(ask(good.clone()).await.contains("does not belong"));
    assert!(ask(pb::JoinRequest { proof: b"nonsense".to_vec(), ..good.clone() }).await.contains("does not belong"));
    assert!(ask(pb::JoinRequest { version: 9, ..good.clone() }).await.contains("version"));
    assert!(ask(pb::JoinRequest { cluster_id: vec![0; 16], ..good.clone() }).await.contains("another cluster"));
    // No supervisor to ask.
    assert!(ask(pb::JoinRequest { secret: vec![1; 16], ..good }).await.contains("supervisor"));
    // A length that would take all memory.
    let mut stream = dial(ALPN_JOIN).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &u32::MAX.to_le_bytes()).await.unwrap();
    assert_eq!(tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(nodes[0].net.table.lock().disks.len(), 0);
}

#[test]
fn strangers_hide_no_other_warning() {
    let (log, mut said) = (LogOnce::default(), 0);
    for n in 0..2 * LogOnce::MAX {
        log.once("no member", &n.to_string(), || said += 1);
    }
    assert_eq!(said, LogOnce::MAX);
    for _ in 0..2 {
        log.once("refused", "", || said += 1);
    }
    assert_eq!(said, LogOnce::MAX + 1);
}

#[test]
fn what_one_disk_does_hides_nothing_of_others() {
    let (log, mut said) = (LogOnce::default(), [0; 2]);
    for n in 0..1000 {
        log.once_of("catalog", DiskId([1; 32]), &n.to_string(), || said[0] += 1);
    }
    for _ in 0..2 {
        log.once_of("catalog", DiskId([2; 32]), "", || said[1] += 1);
    }
    assert_eq!(said, [LogOnce::EACH_MAX, 1]);
}
