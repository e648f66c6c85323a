//! Announcing, in a network namespace of its own: nothing of it reaches the machine's networks.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::control_pb as pb;
use delugefs_proto::ids::ClusterId;
use delugefs_supervisor::discovery;

/// Starts the test below again, inside.
#[test]
fn a_disk_with_a_port_is_announced_and_one_without_is_not() {
    in_namespace("ip addr add 10.77.0.1/24 dev v0 && ip route add default via 10.77.0.2", "discovery::inside");
}

/// As when the cable is plugged in, or the wireless network found, after the start.
#[test]
fn a_disk_is_announced_on_a_network_that_comes_later() {
    in_namespace("ip addr add 10.78.0.1/24 dev w0", "discovery::inside_with_a_network_that_comes_later");
}

fn in_namespace(prepare: &str, test: &str) {
    let me = std::env::current_exe().unwrap();
    let script = format!(
        "ip link add v0 type veth peer name v1 && ip link add w0 type veth peer name w1 && ip link set lo up && \
         for i in v0 v1 w0 w1; do ip link set $i up; done && {prepare} && exec \"$@\""
    );
    let can = Command::new("unshare").args(["-Urn", "true"]).output().is_ok_and(|output| output.status.success());
    if !can {
        eprintln!("skipped: it needs `unshare -Urn`");
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["-Urn", "sh", "-c", &script, "sh"]).arg(me);
    let output = command.args(["--ignored", "--exact", test]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// A disk that is up.
fn disk(n: u8, tcp_port: u32) -> pb::Disk {
    let (disk_id, cluster_id) = (format!("{n:02x}").repeat(32), "ab".repeat(16));
    let cluster = "home".into();
    pb::Disk { disk_id, cluster, cluster_id, state: pb::disk::State::Up.into(), tcp_port, ..Default::default() }
}

#[test]
#[ignore = "only in a namespace of its own, see above"]
fn inside_with_a_network_that_comes_later() {
    assert!(std::fs::read_to_string("/proc/net/dev").unwrap().contains("v0:"), "not in the namespace");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let disks = vec![disk(1, 4711)];
    let (sender, receiver) = tokio::sync::watch::channel(Arc::new(pb::HostStatus { disks, ..Default::default() }));
    let following = runtime.spawn(discovery::follow(receiver));
    wait_for_answer_at([10, 78, 0, 1], |answer| answer.is_some());
    let added = Command::new("ip").args(["addr", "add", "10.77.0.1/24", "dev", "v0"]).status().unwrap();
    assert!(added.success());
    wait_for_answer_at([10, 77, 0, 1], |answer| answer.is_some());
    drop(sender);
    runtime.block_on(following).unwrap();
}

#[test]
#[ignore = "only in a namespace of its own, see above"]
fn inside() {
    assert!(std::fs::read_to_string("/proc/net/dev").unwrap().contains("v0:"), "not in the namespace");
    let host = |disks| Arc::new(pb::HostStatus { disks, ..Default::default() });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (sender, receiver) = tokio::sync::watch::channel(host(vec![disk(1, 4711), disk(2, 0)]));
    let following = runtime.spawn(discovery::follow(receiver));
    let answer = wait_for_answer(|answer| answer.is_some()).unwrap();
    let (hint, name) = (discovery::cluster_hint(ClusterId([0xab; 16])), discovery::name_hint("home"));
    for text in ["v=1".to_string(), format!("id={}", "01".repeat(32)), format!("c={hint}"), format!("n={name}")] {
        assert!(contains(&answer, text.as_bytes()), "{text} is not in {}", String::from_utf8_lossy(&answer));
    }
    assert!(!contains(&answer, "02".repeat(32).as_bytes()), "a disk without a port");
    sender.send(host(vec![disk(2, 4712)])).unwrap();
    wait_for_answer(|answer| answer.as_ref().is_some_and(|answer| contains(answer, "02".repeat(32).as_bytes())));
    sender.send(host(vec![])).unwrap();
    wait_for_answer(|answer| answer.is_none());
    drop(sender);
    runtime.block_on(following).unwrap();
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Ask for all disks until the answer (or that there is none) is as wanted.
fn wait_for_answer(wanted: impl Fn(&Option<Vec<u8>>) -> bool) -> Option<Vec<u8>> {
    wait_for_answer_at([10, 77, 0, 1], wanted)
}

/// The same on the interface with this address.
fn wait_for_answer_at(address: [u8; 4], wanted: impl Fn(&Option<Vec<u8>>) -> bool) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::from(address), 0)).unwrap();
    socket2::SockRef::from(&socket).set_multicast_if_v4(&address.into()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    // One question: PTR of _delugefs._tcp.local, class IN, answer to the asker alone.
    let mut question = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["_delugefs", "_tcp", "local"] {
        question.push(label.len() as u8);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 12, 0x80, 1]);
    let start = Instant::now();
    loop {
        socket.send_to(&question, "224.0.0.251:5353").unwrap();
        let mut buffer = [0; 9000];
        let answer = socket.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec());
        if wanted(&answer) {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "the last answer was {answer:?}");
    }
}
