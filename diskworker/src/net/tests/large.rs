//! Clusters in which not everybody meets everybody.

use super::*;
use crate::net::table::{ALL_MAX, whom_to_meet};

/// More than all can meet.
const COUNT: usize = ALL_MAX + 4;

/// Disks of as many hosts that are told of each other, and a last one that nobody has heard of.
async fn all_and_one() -> (Vec<Node>, Node) {
    let host = key();
    let mut members = found(&host);
    let mut nodes = Vec::new();
    for _ in 0..COUNT {
        let node = Node::new(members.cluster_id()).await;
        members.admit(Role::Disk, node.id().into(), "tower", 1, &host).unwrap();
        nodes.push(node);
    }
    for (n, node) in nodes.iter().enumerate() {
        let request = MembersRequest { set: members.encode(), host_label: "tower".into(), host_id: vec![n as u8; 32] };
        node.net.take_members(&request).unwrap();
    }
    let last = nodes.pop().unwrap();
    for node in &nodes {
        nodes.iter().filter(|other| other.id() != node.id()).for_each(|other| node.knows(other));
    }
    (nodes, last)
}

/// One that neither is to meet the last one nor the other way round.
fn far<'a>(nodes: &'a [Node], last: &Node) -> &'a Node {
    let all: Vec<DiskId> = nodes.iter().chain([last]).map(Node::id).collect();
    let meets = |one: &Node, other: &Node| whom_to_meet(one.id(), &all, |_| false).contains(&other.id());
    nodes.iter().find(|node| !meets(last, node) && !meets(node, last)).unwrap()
}

fn is_there(at: &Node, of: &Node) -> bool {
    at.net.table.lock().is_there(of.id())
}

/// It knows where one disk is, that of the host which has let it in, and nobody knows where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_joins_a_large_cluster_meets_it_through_whomever_it_knows() {
    let (nodes, last) = all_and_one().await;
    let far = far(&nodes, &last);
    last.knows(far);
    until("it to be met", || last.connected(far) && far.connected(&last)).await;
    until("it to know all", || nodes.iter().all(|node| is_there(&last, node))).await;
    until("all to know it", || nodes.iter().all(|node| is_there(node, &last))).await;
    // Then it has others to hear from, and they part without missing each other.
    last.net.part_from(far.id());
    let is_over = || {
        assert!(is_there(&last, far) && is_there(far, &last));
        !last.connected(far) && !far.connected(&last)
    };
    until("the link to end", is_over).await;
    nodes[0].mkdir("news");
    until("news all the same", || last.sees("news")).await;
}

/// Also of those that a disk is not connected with.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_is_still_there_is_known_without_being_told_all_again() {
    let (nodes, last) = all_and_one().await;
    let far = far(&nodes, &last);
    nodes.iter().filter(|node| node.id() != far.id()).for_each(|node| last.knows(node));
    let about = || last.net.table.lock().disks.get(&far.id()).and_then(|other| other.about.clone());
    until("it to be known", || about().is_some()).await;
    assert!(!last.connected(far));
    let before = about().unwrap().uptime_s;
    let is_renewed = || {
        // As every ten seconds.
        for node in nodes.iter().chain([&last]) {
            let _ = node.net.about_changed.send(());
        }
        about().unwrap().uptime_s > before + 1
    };
    until("news of it", is_renewed).await;
    // The other things that it says are what they were.
    let (known, own) = (about().unwrap(), far.net.about_now());
    let stays = |about: &pb::About| (about.run, about.epoch, about.host_id.clone(), about.total_bytes, about.port);
    assert_eq!(stays(&known), stays(&own));
}
