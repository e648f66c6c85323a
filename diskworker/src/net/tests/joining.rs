//! Who is not known shows why it is a member.

use super::*;

/// What a key says to a disk, and its answer.
async fn ask(net: Arc<Net>, key: &Identity, proof: Vec<u8>) -> pb::JoinReply {
    let address = SocketAddr::from(([127, 0, 0, 1], net.port()));
    let folder = &net.engine.folder;
    let cluster_id = folder.cluster_id().0.to_vec();
    let mut stream = key.dial(Some(folder.disk_id().into()), address, ALPN_JOIN, PATIENCE).await.unwrap();
    let request = pb::JoinRequest { version: 1, cluster_id, proof, ..pb::JoinRequest::default() };
    message::write(&mut stream, &request).await.unwrap();
    message::read::<pb::JoinReply>(&mut stream, 1 << 20).await.unwrap()
}

/// It may have found others' records anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn of_what_a_stranger_shows_only_what_makes_it_a_member_is_kept() {
    let (host, mut members, nodes) = cluster(1, &[]).await;
    let net = &nodes[0].net;
    let (new, others) = (key(), (1..20).map(|n| DiskId([n; 32])));
    let others: Vec<DiskId> = others.collect();
    members.admit(Role::Disk, new.id(), "tower", 2, &host).unwrap();
    for other in &others {
        members.admit(Role::Disk, (*other).into(), "tower", 2, &host).unwrap();
    }
    assert!(!ask(net.clone(), &key(), members.encode()).await.error.is_empty());
    assert!(!net.members.is_disk(DiskId(new.id().0)), "what another one shows says nothing");
    assert_eq!(ask(net.clone(), &new, members.encode()).await.error, "");
    let known = net.members.get().unwrap();
    assert!(known.is_disk(DiskId(new.id().0)) && !others.iter().any(|other| known.is_disk(*other)));
}

/// Each costs as much as verifying a hundred records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_looked_at_one_after_the_other() {
    let (_, members, nodes) = cluster(2, &[(0, 1)]).await;
    let joining = nodes[0].net.joining.clone().lock_owned().await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (net, proof) = (nodes[0].net.clone(), members.encode());
        asking.spawn(async move { ask(net, &key(), proof).await });
    }
    // They wait, and the members do not.
    until("all to wait", || Arc::strong_count(&nodes[0].net.joining) == 2 + 5).await;
    nodes[0].mkdir("meanwhile");
    until("the members to go on", || nodes[1].sees("meanwhile")).await;
    assert_eq!(asking.len(), 5);
    assert!(asking.try_join_next().is_none(), "one was looked at");
    drop(joining);
    let answers = asking.join_all().await;
    assert!(answers.iter().all(|reply| reply.error.contains("does not belong")));
}
