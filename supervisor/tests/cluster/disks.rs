//! Several disks on one host.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use delugefs_proto::ids::{Ino, random_u64};
use delugefs_proto::local::client::{Client, check, op};
use delugefs_proto::local_pb::{Close, Create, reply, request};

use super::lab::{Host, KILLS, Lab};
use super::stories::{bytes, joined, wait_for_content};
use super::wait_for;

/// Write a file through the worker of a disk that is not mounted, as a frontend would.
pub fn write_on(socket: &Path, name: &str, content: &[u8]) {
    let session = random_u64();
    let _events = Client::connect(socket, session, true).unwrap();
    let mut client = Client::connect(socket, session, false).unwrap();
    let create = Create { dir: Ino::ROOT.0, name: name.as_bytes().to_vec().into(), mode: 0o644, ..Create::default() };
    let (reply, fd) = client.call(&op(request::Op::Create(create)), None).unwrap();
    let Some(reply::Body::Opened(opened)) = check(reply).unwrap().body else { panic!("not opened") };
    File::from(fd.unwrap()).write_all(content).unwrap();
    let (reply, _) =
        client.call(&op(request::Op::Close(Close { handle: opened.handle, ..Default::default() })), None).unwrap();
    check(reply).unwrap();
}

/// What the status says of the disk in this folder.
fn disk(lab: &Lab, folder: &Path) -> serde_json::Value {
    let status = lab.hosts[0].json(&["status"]);
    let disks = status["disks"].as_array().cloned().unwrap_or_default();
    disks.into_iter().find(|disk| disk["root"] == folder.to_str().unwrap()).unwrap_or_default()
}

#[test]
fn what_another_disk_of_the_host_holds_is_read_there_and_not_copied() {
    let Some(mut lab) = Lab::new(1) else { return };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    let (first, second) = (lab.hosts[0].path("d"), lab.hosts[0].path("d2"));
    let root = lab.hosts[0].file("");
    assert_eq!(lab.hosts[0].says(&["copies", root.to_str().unwrap(), "1"]).0, 0);
    assert_eq!(lab.hosts[0].says(&["disk", "add", second.to_str().unwrap(), "--create"]).0, 0);
    lab.wait_for_peers(&[0], 1);
    lab.wait_for_one_catalog(&[0]);
    let id = disk(&lab, &second)["disk_id"].as_str().unwrap().to_owned();
    let socket = delugefs_proto::rundir::local_socket(&lab.hosts[0].path("r"), delugefs_proto::disk::short_id(&id));
    for (name, size) in [("small", 70_000), ("large", 9 << 20)] {
        write_on(&socket, name, &bytes(size));
        wait_for_content(&lab, &lab.hosts[0].file(name), &bytes(size));
    }
    let contents = |folder: &Path| disk(&lab, folder)["worker"]["contents"].as_u64();
    assert_eq!((contents(&first), contents(&second)), (Some(0), Some(2)));
    // To be changed it must be here.
    let mut file = File::options().append(true).open(lab.hosts[0].file("large")).unwrap();
    file.write_all(b"more").unwrap();
    drop(file);
    let longer = [bytes(9 << 20), b"more".to_vec()].concat();
    wait_for_content(&lab, &lab.hosts[0].file("large"), &longer);
    wait_for("the changed file", || lab.logs(), || lab.hosts[0].copies("large") == 1);
    assert!(fs::read(lab.hosts[0].file("small")).unwrap() == bytes(70_000));
    lab.finish(&[]);
}

#[test]
fn disks_that_are_too_many_to_be_connected_with_all_know_of_each_other() {
    const HOSTS: usize = 5;
    const FILES: usize = 60;
    let Some(mut lab) = Lab::new(HOSTS) else { return };
    let all: Vec<usize> = (0..HOSTS).collect();
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    for at in 1..HOSTS {
        let token = lab.hosts[at - 1].invite();
        lab.hosts[at].start("d", &["--join", &token, "--no-mdns"]);
    }
    for host in &lab.hosts {
        assert_eq!(host.says(&["disk", "add", host.path("d2").to_str().unwrap(), "--create"]).0, 0);
    }
    lab.wait_for_peers(&all, 2 * HOSTS - 1);
    lab.wait_for_one_catalog(&all);
    for n in 0..FILES {
        fs::write(lab.hosts[n % HOSTS].file(&n.to_string()), bytes(5000 + n)).unwrap();
    }
    // Who is to have a copy sees that the disk is there which has the only one, although they are not connected.
    wait_for("two copies", || lab.logs(), || (0..FILES).all(|n| lab.hosts[n % HOSTS].copies(&n.to_string()) >= 2));
    let policy = |host: &Host| host.json(&["status"])["replication"].clone();
    let is_safe = |policy: &serde_json::Value| policy["contents"] == FILES && policy["short"] == 0;
    wait_for("health", || lab.logs(), || lab.hosts.iter().all(|host| is_safe(&policy(host))));
    lab.finish(&[]);
}

#[test]
fn a_disk_is_emptied_and_another_one_is_forgotten() {
    let Some(mut lab) = joined(3) else { return };
    const FILES: usize = 6;
    let name = |n: usize| format!("f{n}");
    for n in 0..FILES {
        fs::write(lab.hosts[0].file(&name(n)), bytes(100_000 + n)).unwrap();
    }
    let holders = |lab: &Lab, n: usize| -> Vec<String> {
        let file = lab.hosts[0].file(&name(n));
        let answer = lab.hosts[0].json(&["whereis", file.to_str().unwrap()]);
        let ids = answer[0]["disk_ids"].as_array().cloned().unwrap_or_default();
        ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    };
    wait_for("two copies", || lab.logs(), || (0..FILES).all(|n| holders(&lab, n).len() == 2));
    let id = |at: usize| disk_of(&lab, at)["disk_id"].as_str().unwrap().to_owned();
    let ids = [id(0), id(1), id(2)];
    assert_eq!(lab.hosts[1].says(&["disk", "drain", "12"]).0, 2);
    assert_eq!(lab.hosts[1].says(&["disk", "drain", "0123456789"]).0, 2);
    // All is on the first disk and one of the others. Empty the first: the two others take everything.
    assert_eq!(lab.hosts[1].says(&["disk", "drain", &ids[0][..8]]).0, 0);
    let both = |n| holders(&lab, n).contains(&ids[1]) && holders(&lab, n).contains(&ids[2]);
    wait_for("copies on the others", || lab.logs(), || (0..FILES).all(both));
    wait_for("everybody to know", || lab.logs(), || (0..3).all(|at| mark(&lab, at, &ids[0]) == "draining"));
    // What is copied is said to be. (It goes ten minutes after the start, when the others may promise to keep it.)
    let drain = || lab.hosts[0].json(&["disks"])[0]["drain"].clone();
    wait_for("all to be known as copied", || format!("{}\n{}", drain(), lab.logs()), || drain()["uncopied"] == 0);
    assert_eq!(drain()["may_be_removed"], false);
    assert_eq!(lab.hosts[2].says(&["disk", "drain", "--undo", &ids[0][..8]]).0, 0);
    wait_for("everybody to know", || lab.logs(), || (0..3).all(|at| mark(&lab, at, &ids[0]) == ""));
    // Who is here is not forgotten; who is away is not waited for, and is welcome when he comes back.
    assert_eq!(lab.hosts[0].says(&["disk", "forget", &ids[2]]).0, 14);
    lab.hosts[2].kill();
    lab.wait_for_peers(&[0, 1], 1);
    fs::write(lab.hosts[0].file("new"), bytes(300_000)).unwrap();
    assert_eq!(lab.hosts[0].says(&["disk", "forget", &ids[2]]).0, 0);
    let lost = || lab.hosts[0].says(&["status", "-x"]).1;
    wait_for("copies on those that are left", lost, || {
        let whole = |n| holders(&lab, n).contains(&ids[0]) && holders(&lab, n).contains(&ids[1]);
        (0..FILES).all(whole) && lab.hosts[0].says(&["status", "-x"]).0 == 0
    });
    lab.hosts[2].start("d", &["--no-mdns"]);
    lab.wait_for_peers(&[0, 1, 2], 2);
    wait_for("it to be remembered", || lab.logs(), || (0..3).all(|at| mark(&lab, at, &ids[2]) == ""));
    lab.finish(&KILLS);
}

#[test]
fn unequal_disks_of_a_host_fill_evenly() {
    let Some(mut lab) = Lab::new(1) else { return };
    lab.hosts[0].limit("d", 200);
    lab.hosts[0].limit("d2", 400);
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    let (first, second) = (lab.hosts[0].path("d"), lab.hosts[0].path("d2"));
    assert_eq!(lab.hosts[0].says(&["copies", lab.hosts[0].file("").to_str().unwrap(), "1"]).0, 0);
    assert_eq!(lab.hosts[0].says(&["disk", "add", second.to_str().unwrap(), "--create"]).0, 0);
    lab.wait_for_peers(&[0], 1);
    lab.wait_for_one_catalog(&[0]);
    // More than the disk that is mounted could hold.
    const FILES: usize = 50;
    const FAST: usize = 35;
    let content = |n: usize| bytes((5 << 20) + n * 4);
    let name = |n: usize| format!("f{n}");
    let staged = |lab: &Lab| disk(lab, &first)["worker"]["staged_files"].as_u64();
    // As fast as it goes: what waits to be sealed is on the disk that is mounted, and who writes waits for that to move.
    for n in 0..FAST {
        fs::write(lab.hosts[0].file(&name(n)), content(n)).unwrap();
    }
    wait_for("all to be sealed", || lab.logs(), || staged(&lab) == Some(0));
    // What waited to be sealed counted where it was, which on a busy machine is a lot. What comes one by one evens that out.
    for n in FAST..FILES {
        fs::write(lab.hosts[0].file(&name(n)), content(n)).unwrap();
        wait_for("it to be sealed", || lab.logs(), || staged(&lab) == Some(0));
    }
    let held = |folder: &Path| disk(&lab, folder)["worker"]["content_bytes"].as_u64().unwrap() >> 20;
    let (one, other) = (held(&first), held(&second));
    println!("{one} MiB and {other} MiB");
    // 136 MiB and 336 MiB could be used: as much of each is left, of its whole size.
    let left = |free: u64, held: u64, size: u64| free.saturating_sub(held) as f64 / size as f64;
    assert!((left(136, one, 200) - left(336, other, 400)).abs() < 0.15, "{one} MiB and {other} MiB");
    assert_eq!(one + other, 250, "each once");
    for n in 0..FILES {
        assert!(fs::read(lab.hosts[0].file(&name(n))).unwrap() == content(n), "f{n}");
    }
    // What the other disk took is whole there, also after both were killed.
    lab.hosts[0].kill();
    lab.hosts[0].start("d", &["--no-mdns"]);
    lab.wait_for_peers(&[0], 1);
    for n in 0..FILES {
        wait_for_content(&lab, &lab.hosts[0].file(&name(n)), &content(n));
    }
    let (code, text) = lab.hosts[0].says(&["scrub"]);
    assert_eq!(code, 0, "{text}\n{}", lab.logs());
    lab.finish(&KILLS);
}

/// The first disk of a host.
fn disk_of(lab: &Lab, at: usize) -> serde_json::Value {
    lab.hosts[at].json(&["status"])["disks"][0].clone()
}

/// What is said of a disk, as a host has it.
fn mark(lab: &Lab, at: usize, id: &str) -> serde_json::Value {
    let disks = lab.hosts[at].json(&["peers"])["disks"].as_array().cloned().unwrap_or_default();
    disks.into_iter().find(|disk| disk["disk_id"] == id).map(|disk| disk["mark"].clone()).unwrap_or_default()
}
