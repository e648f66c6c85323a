//! Copies whose bytes have changed, met by a reader: the disk that holds one hears of it, and sets it aside.

use super::*;

/// The bytes of a copy change.
fn rot(node: &Node, wanted: Wanted) -> std::path::PathBuf {
    let path = format!("data/{:02x}/{}", wanted.content.0[0], wanted.content);
    let path = node.engine().folder.path(&path);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"rot", wanted.size / 2).unwrap();
    path
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
        // The one with the corrupt copy is asked first.
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
