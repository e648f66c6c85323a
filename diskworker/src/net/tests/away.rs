//! A disk that is away has changes that this one has not heard of: what they need is kept for it.

use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use delugefs_proto::local_pb::{Create, Rename, Unlink};

use super::*;
use crate::engine::Opening;
use crate::engine::stable::tests::ROOMY;

#[tokio::test(flavor = "multi_thread")]
async fn a_content_that_a_rename_elsewhere_still_needs_stays_in_the_trash() {
    ROOMY.store(true, Ordering::Relaxed);
    let (_, _, mut nodes) = cluster(2, &[(0, 1)]).await;
    until("both to meet", || nodes[0].connected(&nodes[1])).await;
    let dir = Ino::ROOT.0;
    let engine = nodes[0].engine().clone();
    let q = Create { dir, name: "f".into(), mode: 0o644, uid: 1, gid: 1, ino: 0 };
    let (answer, opening) = engine.create(1, false, &q).unwrap();
    let Opening::File { handle, file } = opening else { panic!() };
    file.write_all_at(&[7; 100_000], 0).unwrap();
    drop(file);
    engine.close(1, handle, false).unwrap();
    let ino = Ino(answer.node.unwrap().ino);
    until("it to be sealed", || engine.stored(ino).unwrap().is_some()).await;
    let wanted = engine.stored(ino).unwrap().unwrap();
    until("it to be known", || nodes[1].catalog_has(wanted) && nodes[1].commit() == nodes[0].commit()).await;

    let away = nodes.pop().unwrap();
    away.net.shutdown();
    until("it to be missed", || !nodes[0].connected(&away)).await;
    let q = Rename { dir, name: "f".into(), dir2: dir, name2: "g".into(), ..Default::default() };
    away.engine().rename(1, false, &q).unwrap();
    away.engine().commit().unwrap();
    let trash = nodes[0].dir.path().join("d/trash").join(wanted.content.to_hex());
    let unlink = |name: &str| {
        engine.unlink(1, false, &Unlink { dir, name: name.to_owned().into(), ..Default::default() }).unwrap();
    };
    // Days later: the retention is a minute.
    let collect = || {
        engine.collect().unwrap();
        let two_days = Duration::from_secs(2 * 86_400);
        match std::fs::File::open(&trash) {
            Ok(file) => file.set_modified(SystemTime::now() - two_days).is_ok(),
            Err(_) => false,
        }
    };
    unlink("f");
    until("it to be in the trash", collect).await;
    assert!(collect() && collect(), "it is gone, and nobody else has it");

    let back = Node::start(away.stop().await, 0).await;
    nodes[0].knows(&back);
    until("the other name", || nodes[0].sees("g") && !back.sees("f")).await;
    assert_eq!(engine.store.has(wanted.content), Ok(Some(100_000)));

    // When all have followed, nobody will come and ask for it.
    unlink("g");
    until("it to be in the trash", || collect() || engine.store.held().next().is_none()).await;
    until("it to go", || !collect() && engine.store.held().next().is_none()).await;
    assert!(!trash.exists());
}
