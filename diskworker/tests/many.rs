//! What many disks cost that do nothing: real workers on the loopback interface of a network namespace of their own, where every byte
//! between them is counted. A measurement, so it runs only when asked for:
//! `cargo build --release && DELUGEFS_BIN=$PWD/target/release cargo test --workspace --test diskworker -- --ignored --nocapture many_disks`
//! `DELUGEFS_DISKS` says how many (100), `DELUGEFS_FIGURES_SECONDS` for how long they are looked at (120).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use delugefs_proto::disk::DiskToml;
use delugefs_proto::identity::Identity;
use delugefs_proto::ids::DiskId;
use delugefs_proto::members::{Members, Role};
use delugefs_proto::worker_pb as pb;

use crate::user::User;
use crate::worker::{Host, Worker};

/// Disks of one host.
const PER_HOST: usize = 4;
/// For all to know each other. Some hundred processes share few cores.
const PATIENCE: Duration = Duration::from_secs(900);
/// So long no link came or went: all are there, and those that are not needed any more have ended.
const SETTLED: Duration = Duration::from_secs(90);
/// Changes that are followed to the last disk.
const CHANGES: usize = 5;
/// Ticks of the clock that /proc counts processor time in, in a second.
const TICKS: f64 = 100.0;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Starts the one below again in its namespace.
#[test]
#[ignore = "a measurement"]
fn many_disks() {
    let script = "ip link set lo up && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-Urn", "sh", "-c", script, "sh"]).arg(std::env::current_exe().unwrap());
    let status = command.args(["--ignored", "--exact", "--nocapture", "many::inside"]).status();
    assert!(status.is_ok_and(|status| status.success()), "it needs `unshare -Urn` and ip(8)");
}

/// All that has gone over the loopback interface: bytes with their headers, and packets.
fn sent() -> (u64, u64) {
    let text = fs::read_to_string("/proc/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
    let fields: Vec<u64> = line.split_whitespace().map(|field| field.parse().unwrap()).collect();
    (fields[8], fields[9])
}

/// Connections, each counted at both ends.
fn connections() -> usize {
    let text = fs::read_to_string("/proc/net/tcp").unwrap();
    text.lines().filter(|line| line.split_whitespace().nth(3) == Some("01")).count()
}

/// Seconds of processor that a process has used.
fn used(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text[text.rfind(')').unwrap() + 2..].split(' ').collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / TICKS
}

/// How often threads of a process were woken.
fn wakes(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |thread: PathBuf| {
        let text = fs::read_to_string(thread.join("status")).unwrap_or_default();
        let switches = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        switches.map_or(0, |count| count.trim().parse::<u64>().unwrap())
    };
    threads.map(|thread| of(thread.unwrap().path())).sum()
}

/// Memory of a process in KiB: what is shared with others counts in part.
fn memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn peers(worker: &Worker) -> pb::PeersReply {
    worker.ask(async |mut client| client.peers(pb::PeersRequest {}).await).unwrap().into_inner()
}

/// A worker on a new disk, and which it is.
fn start(cluster: &str) -> (Host, Worker, DiskId) {
    let host = Host::new();
    let mut command = host.command(&["--create", "--reserve-bytes", "0", "--listen", "127.0.0.1"]);
    command.args(["--cluster-id", cluster]);
    if let Some(folder) = std::env::var_os("DELUGEFS_BIN") {
        let arguments: Vec<&OsStr> = command.get_args().collect();
        let mut other = Command::new(PathBuf::from(folder).join("delugefs-diskworker"));
        other.args(arguments).env_clear().stdin(Stdio::null());
        command = other;
    }
    let worker = host.try_start(command).unwrap_or_else(|ended| panic!("a worker did not start: {ended:?}"));
    let id = DiskId::from_hex(&DiskToml::read(&host.root()).unwrap().disk_id).unwrap();
    (host, worker, id)
}

#[test]
#[ignore = "only in a namespace of its own, see above"]
fn inside() {
    let count = setting("DELUGEFS_DISKS", 100) as usize;
    let key = Identity::from_pkcs8(&Identity::generate_pkcs8().unwrap()).unwrap();
    let mut members = Members::found(&key, [1; 16], "test", "tower", 1).unwrap();
    let cluster = members.cluster_id().to_hex();
    let disks: Vec<_> = (0..count).map(|_| start(&cluster)).collect();
    for (_, _, id) in &disks {
        members.admit(Role::Disk, (*id).into(), "tower", 2, &key).unwrap();
    }
    let set = members.encode();
    let ports: Vec<u32> = disks.iter().map(|(_, worker, _)| worker.status().tcp_port).collect();
    let begin = Instant::now();
    for (number, (_, worker, _)) in disks.iter().enumerate() {
        let host = number / PER_HOST;
        let host_id = [&host.to_le_bytes()[..], &[7; 24]].concat();
        let request = pb::MembersRequest { set: set.clone(), host_label: format!("host{host}"), host_id };
        worker.ask(async |mut client| client.members(request).await).unwrap();
        // Each is told of one other; of the rest they hear from each other.
        let next = (number + 1) % count;
        let hint = pb::Hint { disk_id: disks[next].2.0.to_vec(), address: format!("127.0.0.1:{}", ports[next]) };
        let request = pb::HintsRequest { hints: vec![hint] };
        worker.ask(async |mut client| client.hints(request).await).unwrap();
    }
    let knows_all = |worker: &Worker| peers(worker).peers.iter().filter(|peer| peer.connected).count() == count - 1;
    disks.iter().for_each(|(_, worker, _)| until("all know all", || knows_all(worker)));
    let state = |worker: &Worker| peers(worker).me.unwrap().state_commit;
    let one_state = || disks.iter().map(|(_, worker, _)| state(worker)).collect::<BTreeSet<_>>().len() == 1;
    until("all have one state", one_state);
    println!("{count} disks, {} of each host, know each other after {:.0?}", PER_HOST, begin.elapsed());
    // Whom each is to meet has been met, and what a start has to say was said.
    let linked = || -> usize {
        let of = |worker: &Worker| peers(worker).peers.iter().filter(|peer| peer.linked).count();
        disks.iter().map(|(_, worker, _)| of(worker)).sum()
    };
    let mut last = (linked(), Instant::now());
    until("no link comes or goes", || {
        let now = linked();
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > SETTLED
    });
    // Those for requests are kept for ten minutes after the last one, or as long as there is a link: one more for each, at most.
    until("there are no other connections", || connections() <= 2 * linked() + linked() / 10);

    let pids: Vec<u32> = disks.iter().map(|(_, worker, _)| worker.pid()).collect();
    let cpu = || pids.iter().map(|pid| used(*pid)).sum::<f64>();
    let woken = || pids.iter().map(|pid| wakes(*pid)).sum::<u64>();
    let (begin, bytes, busy, wakes) = (Instant::now(), sent(), cpu(), woken());
    std::thread::sleep(Duration::from_secs(setting("DELUGEFS_FIGURES_SECONDS", 120)));
    let (took, now, busy, wakes) = (begin.elapsed().as_secs_f64(), sent(), cpu() - busy, woken() - wakes);
    let each = |total: f64| total / count as f64;
    println!("links of a disk: {:.1}", each(linked() as f64));
    println!("sent by a disk in a minute: {:.1} kB", each((now.0 - bytes.0) as f64) / took * 60.0 / 1000.0);
    println!("packets of a disk in a minute: {:.0}", each((now.1 - bytes.1) as f64) / took * 60.0);
    println!(
        "of a core for a disk: {:.2} %, {:.0} wakes a second",
        each(busy) / took * 100.0,
        each(wakes as f64) / took
    );
    println!("memory of a disk: {:.1} MiB", each(pids.iter().map(|pid| memory(*pid)).sum::<u64>() as f64) / 1024.0);

    let mut clients: Vec<_> = disks.iter().map(|(_, worker, _)| worker.client(1)).collect();
    for number in 0..CHANGES.min(count) {
        let (name, bytes, begin) = (format!("change{number}"), sent().0, Instant::now());
        clients[number].mkdir(1, &name).unwrap();
        for client in &mut clients {
            while client.lookup(1, &name).is_err() {
                assert!(begin.elapsed() < PATIENCE, "{name} does not come");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        println!("a change is everywhere after {:.0?}; {:.0} kB", begin.elapsed(), (sent().0 - bytes) as f64 / 1000.0);
        until("all have one state", one_state);
    }
    drop(clients);
    for (host, worker, _) in disks {
        let ended = worker.stop();
        let odd = |line: &&str| ["WARN", "ERROR", "panicked"].iter().any(|word| line.contains(word));
        let odd: Vec<&str> = ended.log.lines().filter(odd).take(3).collect();
        assert!(odd.is_empty(), "{odd:?}");
        drop(host);
    }
}
