//! Disks that promise to keep what they do not have.

use delugefs_proto::peer_pb::ReadContentRequest;

use super::*;
use crate::net::tests::liar::{Manner, among_liars};

/// One copy is wanted, and known to be by both disks.
async fn one_is_enough(nodes: &[Node], wanted: Wanted) {
    nodes.iter().for_each(|node| node.fetcher().promises.settle());
    let set = CopiesRequest { path: b"/".to_vec(), set: 1, inherit: false };
    nodes[0].engine().copies(&set).unwrap();
    let knows =
        |node: &Node| node.engine().ledger().unwrap().find(wanted.content).is_some_and(|entry| entry.wanted == 1);
    until("one to be enough", || nodes.iter().all(knows)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_promise_counts_only_of_a_disk_that_shows_the_content() {
    let manners = |_: &Node| vec![Manner::Garbage, Manner::Oversized, Manner::Truncated(Vec::new())];
    let (nodes, liars) = among_liars(manners).await;
    until("them to be met", || liars.iter().all(|liar| liar.is_met_by(&nodes[0]))).await;
    for (epoch, content) in [bytes(70_000), bytes(6 << 20)].iter().enumerate() {
        let wanted = write(&nodes[0], &format!("file{epoch}"), content);
        known(&nodes[1], wanted).await;
        one_is_enough(&nodes, wanted).await;
        liars.iter().for_each(|liar| liar.claims(&nodes[0], wanted.content, 1 + epoch as u64));
        let asked = liars[0].asked();
        let let_go = |others| nodes[0].fetcher().let_go(wanted.content, 1, others);
        for others in [1, 3] {
            let stays = let_go(others).await.unwrap().unwrap_err();
            assert!(stays.why.contains("show that they have it"), "{stays:?}");
            assert_eq!(read(&nodes[0], wanted), *content, "the only copy");
        }
        assert!(liars[0].asked() > asked);
        // One that has it counts, among them.
        let fetcher = nodes[1].fetcher().clone();
        blocking(move || fetcher.whole(wanted)).await.unwrap();
        until("it to be known", || nodes[0].net().keepers(wanted.content).contains(&nodes[1].id())).await;
        let_go(2).await.unwrap().unwrap_err();
        let_go(1).await.unwrap().unwrap();
        assert!(nodes[0].engine().store.has(wanted.content).unwrap().is_none());
        assert_eq!(read(&nodes[1], wanted), *content);
    }
}

/// Its bytes changed, and it does not know: nobody relies on it, and it looks at its copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_damaged_copy_is_found_by_who_would_rely_on_it() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let content = bytes(60_000);
    let wanted = write(&nodes[0], "file", &content);
    known(&nodes[1], wanted).await;
    let fetcher = nodes[1].fetcher().clone();
    blocking(move || fetcher.whole(wanted)).await.unwrap();
    until("it to be known", || !nodes[0].net().keepers(wanted.content).is_empty()).await;
    one_is_enough(&nodes, wanted).await;
    super::corrupt::rot(&nodes[1], wanted);
    nodes[0].fetcher().let_go(wanted.content, 1, 1).await.unwrap().unwrap_err();
    assert_eq!(read(&nodes[0], wanted), content);
    until("it to be set aside", || nodes[1].engine().store.has(wanted.content).unwrap().is_none()).await;
    assert!(!nodes[0].net().is_suspect(wanted.content));
}

/// The copy that is to go is the damaged one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_has_other_bytes_than_a_whole_copy_looks_at_its_own() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let content = bytes(60_000);
    let wanted = write(&nodes[0], "file", &content);
    known(&nodes[1], wanted).await;
    let fetcher = nodes[1].fetcher().clone();
    blocking(move || fetcher.whole(wanted)).await.unwrap();
    until("it to be known", || !nodes[0].net().keepers(wanted.content).is_empty()).await;
    one_is_enough(&nodes, wanted).await;
    super::corrupt::rot(&nodes[0], wanted);
    nodes[0].fetcher().let_go(wanted.content, 1, 1).await.unwrap().unwrap_err();
    until("it to be set aside", || nodes[0].engine().store.has(wanted.content).unwrap().is_none()).await;
    assert_eq!(read(&nodes[1], wanted), content);
}

/// Else a disk without it could show what it gets from who asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_about_to_go_is_given_to_nobody() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    for size in [70_000, 6 << 20] {
        let wanted = write(&nodes[0], &format!("file{size}"), &bytes(size));
        known(&nodes[1], wanted).await;
        let whole = || {
            let fetcher = nodes[1].fetcher().clone();
            blocking(move || fetcher.whole(wanted))
        };
        nodes[0].engine().store.begin_leaving(wanted.content);
        let error = whole().await.unwrap_err();
        assert!(error.why().contains("about to let its copy go"), "{error}");
        assert!(!nodes[1].net().is_in_doubt(nodes[0].id()), "it gives all others");
        nodes[0].engine().store.end_leaving(wanted.content);
        whole().await.unwrap();
    }
}

/// Who began before could show that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_being_read_by_another_disk_is_not_let_go() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let content = bytes(9 << 20);
    let wanted = write(&nodes[0], "file", &content);
    known(&nodes[1], wanted).await;
    let fetcher = nodes[1].fetcher().clone();
    blocking(move || fetcher.whole(wanted)).await.unwrap();
    until("it to be known", || !nodes[0].net().keepers(wanted.content).is_empty()).await;
    one_is_enough(&nodes, wanted).await;
    let request = ReadContentRequest {
        content: wanted.content.0.to_vec(),
        size_bytes: wanted.size,
        offset: 0,
        length: wanted.size,
    };
    let replies = nodes[1].net().client(nodes[0].id()).await.unwrap().read_content(request).await.unwrap();
    let let_go = || nodes[0].fetcher().let_go(wanted.content, 1, 1);
    let stays = let_go().await.unwrap().unwrap_err();
    assert!(stays.why.contains("is reading it"), "{stays:?}");
    drop(replies);
    until("the end of it", || !nodes[0].engine().store.is_given(wanted.content)).await;
    let_go().await.unwrap().unwrap();
    assert_eq!(read(&nodes[1], wanted), content);
}
