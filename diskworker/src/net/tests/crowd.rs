//! One member that asks for much: the others are served all the same.

use std::sync::atomic::AtomicUsize;

use tokio::task::JoinSet;

use super::*;

/// Each takes a thread of this disk until it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_that_asks_for_much_and_reads_nothing_leaves_places_for_others() {
    let (_, _, nodes) = cluster(3, &[(0, 1), (0, 2)]).await;
    until("all to meet", || nodes[1].connected(&nodes[0]) && nodes[2].connected(&nodes[0])).await;
    let size = 64 << 20;
    let content = ContentId([7; 32]);
    let path = nodes[0].engine().folder.path("data/07");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::File::create(path.join(content.to_hex())).unwrap().set_len(size).unwrap();
    let ask = |from: usize| {
        let (net, of) = (nodes[from].net.clone(), nodes[0].id());
        let content = content.0.to_vec();
        let request = pb::ReadContentRequest { content, size_bytes: size, offset: 0, length: size };
        async move { net.client(of).await.unwrap().read_content(request).await.map(tonic::Response::into_inner) }
    };
    let (mut asking, answered) = (JoinSet::new(), Arc::<AtomicUsize>::default());
    for _ in 0..READS_EACH + 5 {
        let (asked, answered) = (ask(1), answered.clone());
        asking.spawn(async move {
            let replies = asked.await;
            answered.fetch_add(1, Ordering::SeqCst);
            replies
        });
    }
    until("it to have its share", || answered.load(Ordering::SeqCst) >= READS_EACH).await;
    let mut replies = ask(2).await.unwrap();
    assert!(replies.message().await.unwrap().is_some_and(|reply| !reply.data.is_empty()));
    assert_eq!(answered.load(Ordering::SeqCst), READS_EACH);
    drop(asking.join_next().await);
    until("a further one when one has ended", || answered.load(Ordering::SeqCst) > READS_EACH).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_has_no_more_connections_than_its_share() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    until("both to meet", || nodes[0].connected(&nodes[1])).await;
    let address = SocketAddr::from(([127, 0, 0, 1], nodes[0].net.port()));
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_EACH {
        held.push(nodes[1].net.identity.dial(None, address, ALPN_GRPC, PATIENCE).await.unwrap());
    }
    until("it to be refused more", || nodes[0].net.is_crowding(nodes[1].id())).await;
    let logged = || nodes[0].net.log.0.lock().contains_key("crowd");
    until("that to be said", logged).await;
    drop(held);
    until("them to be gone", || !nodes[0].net.is_crowding(nodes[1].id())).await;
    nodes[0].mkdir("still");
    until("the name", || nodes[1].sees("still")).await;
}
