//! Copies whose bytes have changed, met by a reader: the disk that holds one hears of it, and sets it aside.

use std::path::PathBuf;

use super::*;
use crate::content::Look;

/// The bytes of a copy change.
pub(super) fn rot(node: &Node, wanted: Wanted) -> PathBuf {
    let (path, file) = writable(node, wanted);
    file.write_all_at(b"rot", wanted.size / 2).unwrap();
    path
}

/// The file of a copy, as the disk may change it.
pub(super) fn writable(node: &Node, wanted: Wanted) -> (PathBuf, std::fs::File) {
    let path = format!("data/{:02x}/{}", wanted.content.0[0], wanted.content);
    let path = node.engine().folder.path(&path);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    (path, file)
}

/// A small one is known to be wrong by its SHA-256, a large one by that of a piece.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_corrupt_copy_that_a_reader_meets_is_set_aside_and_replaced() {
    let (_, _, nodes) = cluster(3, &[(0, 1), (1, 2), (0, 2)]).await;
    for content in [bytes(50_000), bytes(6 << 20)] {
        let wanted = write(&nodes[0], &format!("file{}", content.len()), &content);
        known(&nodes[1], wanted).await;
        let whole = |at: usize| {
            let fetcher = nodes[at].fetcher().clone();
            blocking(move || fetcher.whole(wanted))
        };
        whole(1).await.unwrap();
        let path = rot(&nodes[0], wanted);
        known(&nodes[2], wanted).await;
        until("both holders", || nodes[2].net().holders(wanted.content).len() == 2).await;
        until("its own disk to know of the other", || !nodes[0].net().keepers(wanted.content).is_empty()).await;
        // The one with the corrupt copy is asked first, also of the second content: what it sent of the first is held against it.
        nodes[2].net().asked(nodes[0].id(), true);
        nodes[2].net().asked(nodes[1].id(), false);
        whole(2).await.unwrap();
        assert_eq!(read(&nodes[2], wanted), content);
        let aside = path.with_extension("damaged");
        until("the corrupt copy to be set aside", || !path.exists() && aside.exists()).await;
        until("nobody to count on it", || nodes[1].net().holders(wanted.content) == [nodes[2].id()]).await;
        whole(0).await.unwrap();
        assert_eq!(read(&nodes[0], wanted), content);
        assert!(!aside.exists());
        until("all to count on it", || nodes[1].net().holders(wanted.content).len() == 2).await;
    }
}

/// It was cut: then it gives an error and no byte, and nobody but itself can tell why. As long as nobody has a whole one it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_that_cannot_be_given_is_looked_at_by_its_disk() {
    let (_, _, mut nodes) = cluster(3, &[(0, 1), (0, 2)]).await;
    let wanted = write(&nodes[0], "file", &bytes(50_000));
    known(&nodes[1], wanted).await;
    let path = rot(&nodes[0], wanted);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(25_000).unwrap();
    let fetcher = nodes[1].fetcher().clone();
    let error = blocking(move || fetcher.whole(wanted)).await.unwrap_err();
    assert_eq!(error.errno, Errno::EHOSTUNREACH, "{error}");
    let (content, disk) = (wanted.content.to_hex(), nodes[0].id().to_hex());
    let begin = format!("content {}: disk {}: ", &content[..8], &disk[..8]);
    let text = error.to_string();
    assert!(text.starts_with(&begin) && text.matches("No route to host").count() == 1, "{text}");
    until("it to be found damaged", || nodes[0].net().damaged_contents() == 1).await;
    assert!(path.exists() && nodes[0].net().is_suspect(wanted.content));
    assert!(!nodes[0].net().is_whole(wanted.content).await, "it vouches for it");
    assert!(!nodes[0].fetcher().promise(&promise_of(wanted)).await.unwrap().promised);
    // Another one that is damaged, too, is nothing to rely on.
    let other = write(&nodes[2], "file2", &bytes(50_000));
    assert_eq!(other, wanted);
    until("it to be known", || !nodes[0].net().keepers(wanted.content).is_empty()).await;
    let damaged = rot(&nodes[2], wanted);
    assert!(!nodes[0].net().is_whole_elsewhere(wanted.content).await);
    until("that to be found, too", || nodes[2].net().damaged_contents() == 1).await;
    assert!(path.exists() && damaged.exists(), "both can still be read in part");
    // Nor is it relied on by anybody after a restart, though nobody has met it since.
    let back = Node::start(nodes.remove(0).stop().await, 0).await;
    assert!(back.net().damaged_contents() == 1 && back.net().is_suspect(wanted.content));
    assert!(!back.net().is_whole(wanted.content).await, "it vouches for it");
}

fn promise_of(wanted: Wanted) -> delugefs_proto::peer_pb::PromiseRequest {
    delugefs_proto::peer_pb::PromiseRequest { content: wanted.content.0.to_vec(), ..Default::default() }
}

/// As for what others meet: of an only copy most can be read, and none of its wrong bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scrub_sets_aside_only_what_another_disk_has_verified() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let content = bytes(6 << 20);
    let wanted = write(&nodes[0], "file", &content);
    known(&nodes[1], wanted).await;
    let path = rot(&nodes[0], wanted);
    let scrub = || {
        let (engine, others) = (nodes[0].engine().clone(), Elsewhere::new(nodes[0].net(), CancellationToken::new()));
        blocking(move || engine.scrub(&others).unwrap().problems)
    };
    // Another disk that says it has it may be as bad.
    let other = write(&nodes[1], "file2", &content);
    assert_eq!(other, wanted);
    until("it to be known", || !nodes[0].net().keepers(wanted.content).is_empty()).await;
    let others = rot(&nodes[1], wanted);
    let problems = scrub().await;
    assert!(problems.len() == 1 && problems[0].contains("is damaged") && problems[0].contains("stays"), "{problems:?}");
    assert!(path.exists() && nodes[0].net().damaged_contents() == 1 && nodes[0].net().is_suspect(wanted.content));
    assert_eq!(nodes[0].engine().store.open_to_read(wanted.content, wanted.size).unwrap_err().errno, Errno::EIO);
    // By now there is a whole one.
    std::fs::write(&others, &content).unwrap();
    let again = nodes[1].engine().clone();
    let look = blocking(move || again.store.look_at(wanted.content)).await.unwrap();
    assert!(matches!(look, Look::Whole));
    until("the other to have looked", || !nodes[1].net().is_suspect(wanted.content)).await;
    let problems = scrub().await;
    assert!(problems.len() == 1 && problems[0].contains("set aside"), "{problems:?}");
    assert!(!path.exists() && nodes[0].net().damaged_contents() == 0);
    assert_eq!(scrub().await, Vec::<String>::new(), "the other has it");
}

/// What was found to have wrong bytes is as good as absent to who reads it, but for its right pieces.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_gets_the_right_pieces_of_a_damaged_copy_and_the_others_from_who_has_them() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    for (n, content) in [bytes(50_000), bytes(6 << 20)].into_iter().enumerate() {
        let wanted = write(&nodes[0], &format!("file{n}"), &content);
        known(&nodes[1], wanted).await;
        rot(&nodes[0], wanted);
        let (engine, fetcher) = (nodes[0].engine().clone(), nodes[0].fetcher().clone());
        let looking = engine.clone();
        assert!(matches!(blocking(move || looking.store.look_at(wanted.content)).await.unwrap(), Look::Bad(_)));
        let ino =
            engine.lookup(&Lookup { dir: Ino::ROOT.0, name: format!("file{n}").into() }).unwrap().node.unwrap().ino;
        let looking = engine.clone();
        assert_eq!(blocking(move || looking.absent(Ino(ino), Ino::ROOT)).await.unwrap(), Some(wanted));
        let opening = fetcher.clone();
        if let Some((handle, file)) = blocking(move || opening.open(7, wanted)).await.unwrap() {
            let need = |offset| {
                let fetcher = fetcher.clone();
                blocking(move || fetcher.need(7, handle, offset, 100))
            };
            let mut found = vec![0; 100];
            need(1 << 20).await.unwrap();
            file.read_exact_at(&mut found, 1 << 20).unwrap();
            assert!(found == content[1 << 20..][..100]);
            assert_eq!(need(wanted.size / 2).await.unwrap_err().errno, Errno::EIO);
            assert!(fetcher.close(7, handle));
            assert_eq!(engine.store.incoming().unwrap(), [], "it was copied");
        }
        let whole = || {
            let fetcher = fetcher.clone();
            blocking(move || fetcher.whole(wanted))
        };
        let error = whole().await.unwrap_err();
        assert!(error.errno == Errno::EIO && error.message.contains("damaged"), "{error}");
        assert_eq!(nodes[0].net().damaged_contents(), 1);
        // And then another disk has it.
        assert_eq!(write(&nodes[1], &format!("other{n}"), &content), wanted);
        until("it to be known", || !nodes[0].net().holders(wanted.content).is_empty()).await;
        whole().await.unwrap();
        assert_eq!((read(&nodes[0], wanted) == content, nodes[0].net().damaged_contents()), (true, 0));
    }
}

/// Who asks again and again does not keep it reading.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_reads_for_others_a_small_part_of_the_time() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let [one, other, third] =
        [40_000, 50_000, 60_000].map(|size| write(&nodes[0], &size.to_string(), &bytes(size)).content);
    let net = nodes[0].net();
    // Two that ask at one time are both answered.
    assert_eq!(tokio::join!(net.is_whole(one), net.is_whole(other)), (true, true));
    net.has_read_for_others(Duration::from_secs(3600));
    assert!(!net.is_whole(third).await, "it was read");
    assert!(net.is_whole(one).await && net.is_whole(other).await, "that is known");
    // A report is looked at some time; what it finds itself at once.
    let wanted = Wanted { content: third, size: 60_000, pieces: None };
    rot(&nodes[0], wanted);
    net.suspect(nodes[1].id(), one);
    net.suspect_own(third);
    until("it to be found", || net.damaged_contents() == 1).await;
    assert!(net.is_suspect(one), "it was read");
}
