//! A bad member: a disk that was properly admitted, and whose program lies ([`liar`]). It holds what it does not hold, sends what nobody
//! should, stalls, and calls the others with garbage. They go on with each other as if it were not there: nobody is shown a wrong byte or
//! waits for long, nothing of it is kept, no worker dies, grows or fills its log; and when its host is revoked it gets in nowhere.
//!
//! [`liar`]: super::liar

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use delugefs_proto::identity::tls::ALPN_TORRENT;
use delugefs_proto::ids::{ContentId, DiskId};
use delugefs_proto::message;
use delugefs_proto::peer_pb as pb;

use super::ending::{Ending, Expected};
use super::forged::{self, Objects};
use super::hostile::read;
use super::lab::Lab;
use super::liar::{Liar, Lies, Manner, Offer, framed};
use super::load::digest;
use super::stories::{bytes, wait_for_content};
use super::wait_for;

const PORT: u16 = 41000;
/// Who reads has what he asked for, or an error, after so long.
const BOUND: Duration = Duration::from_secs(60);
/// Of an honest worker. What it needs for all of this by itself is a third of that.
const MEMORY_MAX_KIB: u64 = 500 << 10;
/// Lines of one kind in the logs of all of them.
const LINES_MAX: usize = 40;

/// What the honest ones say of all that.
pub const EXPECTED: [Expected; 11] = [
    ("cannot take the catalog of disk", "who was sent none"),
    ("no more of this kind is logged", "who was sent many"),
    ("sent corrupt bytes of content", "who asked for one"),
    ("(No route to host)", "the frontend there, whose program got an error"),
    ("the content does not arrive", "the same"),
    ("cannot be reached", "the same"),
    ("a torrent failed", "who wanted one of it"),
    ("a fetch makes no progress", "the same"),
    ("runs another version", "who was told so"),
    ("too many connections", "whom it called too often"),
    (": no member (", "whom it comes to afterwards"),
];

/// Two honest hosts, and a third one whose disk is the liar now.
pub struct Stage {
    pub lab: Lab,
    pub liar: Liar,
    /// Of the liar.
    host: String,
    /// Honest disks, and where they are.
    pub disks: Vec<(DiskId, Ipv4Addr)>,
    workers: Vec<u32>,
    rounds: usize,
    begun: Instant,
}

pub fn id_of(content: &[u8]) -> ContentId {
    ContentId(digest(content).0)
}

impl Stage {
    /// With `one/lost-small` and `one/lost-large`, which only the disk has that is the liar now.
    pub fn new(limit_mib: Option<u32>) -> Option<Self> {
        let mut lab = Lab::new(3)?;
        if let Some(mib) = limit_mib {
            lab.hosts[1].limit("d", mib);
        }
        let port = PORT.to_string();
        lab.hosts[0].start("d", &["--create", "--no-mdns", "--btport", &port]);
        for at in [1, 2] {
            let token = lab.hosts[0].invite();
            lab.hosts[at].start("d", &["--join", &token, "--no-mdns", "--btport", &port]);
        }
        lab.wait_for_peers(&[0, 1, 2], 2);
        fs::create_dir(lab.hosts[0].file("one")).unwrap();
        assert_eq!(lab.hosts[0].says(&["copies", lab.hosts[0].file("one").to_str().unwrap(), "1"]).0, 0);
        lab.wait_for_one_catalog(&[0, 1, 2]);
        for (name, content) in lost() {
            fs::write(lab.hosts[2].file(name), &content).unwrap();
            arrived(&lab, name, content.len());
        }
        lab.wait_for_one_catalog(&[0, 1, 2]);
        let host = lab.hosts[2].json(&["peers"])["host_id"].as_str().unwrap().to_owned();
        lab.hosts[2].stop();
        let disk = |at: usize| {
            let status = lab.hosts[at].json(&["status"]);
            let id = DiskId::from_hex(status["disks"][0]["disk_id"].as_str().unwrap()).unwrap();
            (id, Ipv4Addr::new(10, 77, 0, at as u8 + 1))
        };
        let disks = vec![disk(0), disk(1)];
        let liar = Liar::take_over(&lab.hosts[2], "d", &host, PORT);
        let workers = lab.hosts[..2].iter().map(|host| host.worker()).collect();
        let stage = Self { lab, liar, host, disks, workers, rounds: 0, begun: Instant::now() };
        stage.wait_until_met();
        Some(stage)
    }

    pub fn why(&self) -> String {
        self.lab.logs()
    }

    pub fn wait_until_met(&self) {
        wait_for("the liar to be met", || self.why(), || self.liar.links().len() == 2);
    }

    /// A file of which the first host has the only copy, and what it holds.
    pub fn single(&self, name: &str, content: &[u8]) {
        fs::write(self.lab.hosts[0].file(name), content).unwrap();
        arrived(&self.lab, name, content.len());
        wait_for("it to be stored", || self.why(), || self.lab.hosts[1].copies(name) >= 1);
    }

    /// All is well with those who are honest: what one writes the other one reads, and they have one catalog.
    pub fn goes_on(&mut self, after: &str) {
        self.rounds += 1;
        println!("{:>6.1} s: after {after}", self.begun.elapsed().as_secs_f64());
        let lab = &self.lab;
        for (from, to) in [(0, 1), (1, 0)] {
            for size in [10 + self.rounds, 70_000 + self.rounds] {
                let name = format!("{size}-from-{from}");
                fs::write(lab.hosts[from].file(&name), bytes(size)).unwrap();
                wait_for_content(lab, &lab.hosts[to].file(&name), &bytes(size));
            }
        }
        lab.wait_for_one_catalog(&[0, 1]);
        let mut wrong = Vec::new();
        for (host, before) in lab.hosts.iter().zip(&self.workers) {
            let (now, memory) = (host.worker(), peak_kib(*before));
            println!("{memory} KiB");
            wrong.extend((now != *before).then(|| "a worker was started anew".to_owned()));
            wrong.extend((memory > MEMORY_MAX_KIB).then(|| format!("a worker has had {memory} KiB")));
            wrong.extend(host.file("bad").exists().then(|| "there is garbage".to_owned()));
        }
        let logs = lab.logs();
        let mut kinds: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for line in logs.lines() {
            kinds.entry(line.chars().filter(|c| !c.is_ascii_hexdigit()).collect()).or_default().push(line);
            wrong.extend(["ERROR", "panicked at"].iter().any(|odd| line.contains(odd)).then(|| line.to_owned()));
        }
        for lines in kinds.values().filter(|lines| lines.len() > LINES_MAX) {
            wrong.push(format!("it is said {} times: {}", lines.len(), lines[0]));
        }
        assert!(wrong.is_empty(), "after {after}: {}\n{logs}", wrong.join("\n"));
    }

    /// What the first disk's catalog is now.
    fn state(&self) -> Objects {
        let (lies, (disk, address)) = (self.liar.lies.clone(), self.disks[0]);
        self.liar.run(async move {
            let mut client = lies.client(disk, address).await.unwrap();
            let mut replies = client.fetch_pack(pb::FetchPackRequest::default()).await.unwrap().into_inner();
            let (mut commit, mut pack) = (Vec::new(), Vec::new());
            while let Some(reply) = replies.message().await.unwrap() {
                commit = if commit.is_empty() { reply.commit } else { commit };
                pack.extend(reply.pack);
            }
            Objects::parse(commit[..].try_into().unwrap(), &pack)
        })
    }

    /// Its host is revoked, and it gets in nowhere; then the end of every story.
    pub fn shut_out(self, ending: &Ending) {
        let Self { lab, liar, host, disks, .. } = self;
        liar.begin(Manner::Wrong);
        let (code, said) = lab.hosts[0].says(&["revoke", &host[..12], "--yes"]);
        assert_eq!(code, 0, "{said}\n{}", lab.logs());
        for host in &lab.hosts[..2] {
            let disks = || host.json(&["peers"])["disks"].as_array().map(Vec::len);
            wait_for("its disk to be out", || lab.logs(), || disks() == Some(2));
        }
        for (disk, address) in disks {
            let lies = liar.lies.clone();
            let got = liar.run(async move { gets_in(&lies, disk, address).await });
            assert_eq!(got, Vec::<&str>::new(), "{}", lab.logs());
        }
        drop(liar);
        for (name, _) in lost() {
            fs::remove_file(lab.hosts[0].file(name)).unwrap();
        }
        lab.end(ending);
    }
}

/// What it gets from a disk.
async fn gets_in(lies: &Lies, disk: DiskId, address: Ipv4Addr) -> Vec<&'static str> {
    let mut got = Vec::new();
    if let Ok(mut client) = lies.client(disk, address).await {
        let request = pb::FetchPackRequest::default();
        got.extend(client.fetch_pack(request).await.is_ok().then_some("the catalog"));
        let greeting = tokio_stream::once(lies.about());
        if let Ok(met) = client.meet(greeting).await {
            got.extend(matches!(met.into_inner().message().await, Ok(Some(_))).then_some("news"));
        }
    }
    if let Ok(mut stream) = lies.dial(disk, address, ALPN_TORRENT).await {
        let _ = message::write(&mut stream, &pb::StreamRequest::default()).await; // it has hung up
        let reply = message::read::<pb::StreamReply>(&mut stream, 4096).await;
        got.extend(reply.is_ok().then_some("a torrent"));
    }
    got
}

/// What only the liar's disk had, when it was honest.
fn lost() -> [(&'static str, Vec<u8>); 2] {
    [("one/lost-small", bytes(100_001)), ("one/lost-large", bytes((9 << 20) + 1))]
}

fn arrived(lab: &Lab, name: &str, length: usize) {
    let is_there = |at: usize| fs::metadata(lab.hosts[at].file(name)).is_ok_and(|meta| meta.len() == length as u64);
    wait_for(name, || lab.logs(), || is_there(0) && is_there(1));
}

/// The most memory that a process has had.
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn what_a_bad_member_gives_is_never_shown() {
    let Some(mut stage) = Stage::new(None) else { return };
    let manners = [Manner::Wrong, Manner::Oversized, Manner::Endless, Manner::Stalls, Manner::Mute];
    let reader = stage.disks[1].0;
    for (n, manner) in manners.into_iter().enumerate() {
        let contents = [("small", bytes(100_010 + n)), ("large", bytes((9 << 20) + 10 + n))];
        let named = contents.map(|(name, content)| (format!("one/{name}-{n}"), content));
        named.iter().for_each(|(name, content)| stage.single(name, content));
        // New links: what it failed to give before is forgotten.
        stage.liar.begin(manner);
        if manner != Manner::Mute {
            stage.wait_until_met();
            let all: Vec<_> = named.iter().map(|(_, content)| id_of(content)).collect();
            stage.liar.claims(&[all, lost().map(|(_, content)| id_of(&content)).to_vec()].concat());
            let is_believed = || named.iter().all(|(name, _)| stage.lab.hosts[1].copies(name) == 2);
            wait_for("its claims to be heard", || stage.why(), is_believed);
        }
        for (name, content) in &named {
            let begin = Instant::now();
            while !read(&stage.lab, 1, name, content) {
                assert!(begin.elapsed() < BOUND, "{manner:?}: {name} does not come\n{}", stage.why());
            }
            println!("{manner:?} {name}: {:?}", begin.elapsed());
            assert!(begin.elapsed() < BOUND, "{manner:?}: {name} took {:?}\n{}", begin.elapsed(), stage.why());
        }
        for (name, content) in lost() {
            let begin = Instant::now();
            assert!(!read(&stage.lab, 1, name, &content), "{manner:?}: nobody has {name}");
            println!("{manner:?} {name}: {:?}", begin.elapsed());
            assert!(begin.elapsed() < BOUND, "{manner:?}: {name} took {:?}\n{}", begin.elapsed(), stage.why());
        }
        assert!(manner == Manner::Mute || stage.liar.asked("content", reader) > 2 * n, "{manner:?}: it was not asked");
        stage.goes_on(&format!("{manner:?}"));
    }
    // By BitTorrent, from it and from the one that has the content: wrong pieces, and what is no message.
    let deep = [&[0][..], b"d1:x", &[b'l'; 20_000]].concat();
    let odd =
        [Vec::new(), framed(4, &[0xff; 4]).repeat(1000), vec![0xff; 1000], framed(20, &deep), framed(99, &[0; 9])];
    for (n, odd) in odd.into_iter().enumerate() {
        let (name, content) = (format!("one/torrent-{n}"), bytes((9 << 20) + 100 + n));
        stage.single(&name, &content);
        stage.liar.begin(Manner::Wrong);
        *stage.liar.lies.torrent.lock() = odd;
        stage.wait_until_met();
        stage.liar.claims(&[id_of(&content)]);
        wait_for("its claim to be heard", || stage.why(), || stage.lab.hosts[1].copies(&name) == 2);
        let before = stage.liar.asked("torrent", reader);
        let path = stage.lab.hosts[0].file(&name);
        assert_eq!(stage.lab.hosts[0].says(&["copies", path.to_str().unwrap(), "3"]).0, 0);
        wait_for("an honest copy", || stage.why(), || stage.lab.hosts[1].copies(&name) == 3);
        assert!(stage.liar.asked("torrent", reader) > before, "it was not asked");
        assert!(read(&stage.lab, 1, &name, &content));
        stage.goes_on(&format!("torrent {n}"));
    }
    // What can be verified only when all of it is here is not gathered in memory, however much is sent of it.
    stage.liar.begin(Manner::Wrong);
    stage.wait_until_met();
    let (flood, pack) = (ContentId([0xf1; 32]), stage.state().with_flood(ContentId([0xf1; 32]), 2 << 30).pack());
    assert!(stage.disks.iter().all(|(disk, _)| stage.liar.offers(*disk, pack.0, Offer::Pack(pack.clone()))));
    arrived(&stage.lab, "flood", 2 << 30);
    stage.liar.claims(&[flood]);
    wait_for("its claim to be heard", || stage.why(), || stage.lab.hosts[1].copies("flood") == 1);
    let begin = Instant::now();
    assert!(fs::read(stage.lab.hosts[1].file("flood")).is_err(), "nobody has it");
    assert!(begin.elapsed() < BOUND, "flood took {:?}\n{}", begin.elapsed(), stage.why());
    stage.goes_on("flood");
    fs::remove_file(stage.lab.hosts[0].file("flood")).unwrap();
    stage.shut_out(&Ending {
        expected: &EXPECTED,
        incomplete: Some("what only the liar was said to have"),
        ..Ending::default()
    });
}

#[test]
fn what_a_bad_member_says_of_names_is_refused() {
    let Some(mut stage) = Stage::new(Some(500)) else { return };
    let objects = stage.state();
    let disks: Vec<DiskId> = stage.disks.iter().map(|(disk, _)| *disk).collect();
    let mut actor = 1000;
    // A state that is good between those that are not: else they would be asked for less and less often.
    let mut make_good = |stage: &Stage| {
        for disk in &disks {
            actor += 1;
            let (pack, before) = (objects.later(actor).pack(), stage.liar.asked("pack", *disk));
            assert!(stage.liar.offers(*disk, pack.0, Offer::Pack(pack)));
            wait_for("a good state to be taken", || stage.why(), || stage.liar.asked("pack", *disk) > before);
        }
    };
    let offer = |stage: &Stage, what: &str, commit: forged::Id, offer: Offer| {
        for disk in &disks {
            let before = stage.liar.asked("pack", *disk);
            assert!(stage.liar.offers(*disk, commit, offer.clone()), "{what}: it is not connected\n{}", stage.why());
            wait_for(what, || stage.why(), || stage.liar.asked("pack", *disk) > before);
        }
    };
    for (what, pack) in objects.bad() {
        offer(&stage, what, pack.0, Offer::Pack(pack));
        stage.goes_on(what);
        make_good(&stage);
    }
    // The same again and again, each time a little different.
    for n in 0..30 {
        let pack = objects.later(5000 + n).behind_a_leaf();
        offer(&stage, "one of many", pack.0, Offer::Pack(pack));
        make_good(&stage);
    }
    stage.goes_on("many");
    offer(&stage, "what makes no sense", [1; 20], Offer::Pack(objects.odd().pack()));
    for (n, kind) in [Offer::Oversized, Offer::Stalls, Offer::Endless].into_iter().enumerate() {
        offer(&stage, "a stream", [2 + n as u8; 20], kind);
        stage.goes_on(&format!("stream {n}"));
        make_good(&stage);
    }
    for host in &stage.lab.hosts[..2] {
        for entry in fs::read_dir(host.file("")).unwrap() {
            let _whatever = fs::metadata(entry.unwrap().path()); // nothing must come of it but an errno
        }
    }
    stage.goes_on("all");
    assert!(!stage.state().has("bad"));
    stage.shut_out(&Ending { expected: &EXPECTED, ..Ending::default() });
}
