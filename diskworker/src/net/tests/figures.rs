//! What it costs two disks to find that they have the same million names.

use std::sync::atomic::{AtomicU64, Ordering};

use delugefs_proto::ids::ActorId;
use delugefs_proto::record::{Body, Dot, Element, Hlc, Key, Name, Perm, Xattrs};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::catalog::{Catalog, Changes};

/// Names in one folder.
const PER_FOLDER: u64 = 1000;

/// Bytes that went through, and when the last ones did.
#[derive(Debug)]
struct Meter(AtomicU64, Mutex<Instant>);

/// Empty files, as the namespace makes them.
fn fill(catalog: &Catalog, names: u64) {
    let mut ctx = catalog.state().ctx.clone();
    for folder in 0..names.div_ceil(PER_FOLDER) {
        let mut changes = Changes::default();
        let dir = Ino(folder + 16);
        let mut element = |body| {
            let dot = Dot { actor: ActorId(1), seq: ctx.0.get(&ActorId(1)).map_or(1, |seq| seq + 1) };
            ctx.advance(dot);
            Element { dot, hlc: Hlc(dot.seq), body }
        };
        let name = Name::new(format!("folder {folder}").as_bytes()).unwrap();
        let perm = Perm { mode: 0o755, uid: 1, gid: 1 };
        changes.sets.insert(Key::Entry(Ino::ROOT, name.clone()), vec![element(Body::Dir { ino: dir })]);
        let head = Body::Head { parent: Ino::ROOT, name, perm, xattrs: Xattrs::new() };
        changes.sets.insert(Key::header(dir), vec![element(head)]);
        for n in 0..PER_FOLDER {
            let ino = Ino((folder + 1) << 32 | n);
            let content = element(Body::Content { ino, data: delugefs_proto::record::Data::Empty });
            let attributes = element(Body::Attrs { ino, perm, xattrs: Xattrs::new() });
            let name = Name::new(format!("file {n}").as_bytes()).unwrap();
            changes.sets.insert(Key::Entry(dir, name), vec![content, attributes]);
        }
        catalog.commit(&changes, &ctx).unwrap();
        if folder % 100 == 99 {
            catalog.consolidate(u64::MAX).unwrap();
        }
    }
}

async fn pass(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, meter: Arc<Meter>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut buffer).await {
        meter.0.fetch_add(n as u64, Ordering::Relaxed);
        *meter.1.lock() = Instant::now();
        if n == 0 || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

/// An address on the loopback interface that stands for another one, with a meter.
async fn metered(port: u16) -> (String, Arc<Meter>) {
    let meter = Arc::new(Meter(AtomicU64::new(0), Instant::now().into()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap().to_string(), meter.clone());
    tokio::spawn(async move {
        while let Ok((here, _)) = listener.accept().await {
            let there = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let ((a, b), (c, d)) = (here.into_split(), there.into_split());
            tokio::spawn(pass(a, d, seen.clone()));
            tokio::spawn(pass(c, b, seen.clone()));
        }
    });
    (address, meter)
}

/// `DELUGEFS_FIGURES_SCALE` in per cent makes it shorter.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn a_million_names_that_both_have() {
    let scale = std::env::var("DELUGEFS_FIGURES_SCALE").map_or(100, |text| text.parse().unwrap());
    let names = 10_000 * scale;
    let host = key();
    let mut members = found(&host);
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&one, &other] {
        let cluster = Some(members.cluster_id());
        DiskFolder::create_with(&dir.path().join("d"), "test", cluster, make_catalog).unwrap();
    }
    // Its first start makes the root.
    let one = Node::start(one, 0).await.stop().await;
    let catalog = |dir: &TempDir| dir.path().join("d").join(delugefs_proto::disk::CATALOG);
    fill(&Catalog::open(&catalog(&one)).unwrap(), names);
    std::fs::remove_dir_all(catalog(&other)).unwrap();
    let copy = std::process::Command::new("cp").arg("-R").args([catalog(&one), catalog(&other)]).status();
    assert!(copy.unwrap().success());
    let nodes = [Node::start(one, 0).await, Node::start(other, 0).await];
    for node in &nodes {
        members.admit(Role::Disk, node.id().into(), "tower", 1, &host).unwrap();
    }
    nodes.iter().for_each(|node| node.admit(&members));
    assert_eq!(nodes[0].commit(), nodes[1].commit());
    let (address, meter) = metered(nodes[1].net.port()).await;
    let start = Instant::now();
    let hints = vec![Hint { disk_id: nodes[1].id().0.to_vec(), address }];
    nodes[0].net.take_hints(&HintsRequest { hints });
    until("them to meet", || nodes[0].connected(&nodes[1]) && nodes[1].connected(&nodes[0])).await;
    let quiet = || meter.1.lock().elapsed() > Duration::from_millis(300);
    until("them to have said all", quiet).await;
    let (bytes, took) = (meter.0.load(Ordering::Relaxed), meter.1.lock().duration_since(start));
    println!("two disks that have the same {names} names, from the first byte to the last: {took:?}, {bytes} bytes");
    assert_eq!(nodes[0].commit(), nodes[1].commit());
    assert!(bytes < 10_000, "{bytes} bytes for nothing new");
}
