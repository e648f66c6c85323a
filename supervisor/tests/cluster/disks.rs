//! Several disks on one host.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use delugefs_proto::ids::{Ino, random_u64};
use delugefs_proto::local::client::{Client, check, op};
use delugefs_proto::local_pb::{Close, Create, reply, request};

use super::lab::Lab;
use super::stories::{bytes, wait_for_content};
use super::wait_for;

/// Write a file through the worker of a disk that is not mounted, as a frontend would.
fn write_on(socket: &Path, name: &str, content: &[u8]) {
    let session = random_u64();
    let _events = Client::connect(socket, session, true).unwrap();
    let mut client = Client::connect(socket, session, false).unwrap();
    let create = Create { dir: Ino::ROOT.0, name: name.as_bytes().to_vec().into(), mode: 0o644, ..Create::default() };
    let (reply, fd) = client.call(&op(request::Op::Create(create)), None).unwrap();
    let Some(reply::Body::Opened(opened)) = check(reply).unwrap().body else { panic!("not opened") };
    File::from(fd.unwrap()).write_all(content).unwrap();
    let (reply, _) = client.call(&op(request::Op::Close(Close { handle: opened.handle })), None).unwrap();
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
}
