//! A disk is taken out of one host and put into another, with content that nobody else has.

use std::fs;

use super::ending::Ending;
use super::lab::{KILLS, Lab};
use super::stories::{bytes, joined, wait_for_content};
use super::wait_for;

/// On which host a disk is, as another host has it, and whether it is connected.
fn place(lab: &Lab, at: usize, disk: &str) -> (String, bool) {
    let disks = lab.hosts[at].json(&["peers"])["disks"].as_array().cloned().unwrap_or_default();
    let found = disks.into_iter().find(|it| it["disk_id"] == disk).unwrap_or_default();
    (found["host_id"].as_str().unwrap_or_default().to_owned(), found["connected"] == true)
}

/// The disks that hold a file, as a host has it.
fn holders(lab: &Lab, at: usize, name: &str) -> serde_json::Value {
    let file = lab.hosts[at].file(name);
    lab.hosts[at].json(&["whereis", file.to_str().unwrap()])[0]["disk_ids"].clone()
}

#[test]
fn a_disk_that_comes_back_on_another_host_brings_what_only_it_has() {
    let Some(mut lab) = joined(3) else { return };
    let host_id = |lab: &Lab, at: usize| lab.hosts[at].json(&["peers"])["host_id"].as_str().unwrap().to_owned();
    let hosts = [host_id(&lab, 0), host_id(&lab, 1), host_id(&lab, 2)];
    let disk = lab.hosts[1].json(&["status"])["disks"][0]["disk_id"].as_str().unwrap().to_owned();
    fs::create_dir(lab.hosts[1].file("one")).unwrap();
    assert_eq!(lab.hosts[1].says(&["copies", lab.hosts[1].file("one").to_str().unwrap(), "1"]).0, 0);
    let files = [("one/note", 100), ("one/small", 70_000), ("one/large", 9 << 20)];
    for (name, size) in files {
        fs::write(lab.hosts[1].file(name), bytes(size)).unwrap();
    }
    let only_there = |lab: &Lab, at: usize| {
        let stored = files.iter().filter(|(_, size)| *size > 4096);
        stored.clone().all(|(name, _)| holders(lab, at, name) == serde_json::json!([disk]))
    };
    wait_for("its names and holdings", || lab.logs(), || [0, 2].iter().all(|at| only_there(&lab, *at)));

    // Closed before the others, and perhaps recorded after them.
    for at in [0, 2] {
        wait_for_content(&lab, &lab.hosts[at].file("one/note"), &bytes(100));
    }
    lab.hosts[1].kill();
    lab.wait_for_peers(&[0, 2], 1);
    // What is in the catalog is everywhere. The rest is known to be on a disk that is away, and an error.
    std::thread::scope(|scope| {
        for path in [0, 2].into_iter().flat_map(|at| ["one/small", "one/large"].map(|name| lab.hosts[at].file(name))) {
            scope.spawn(move || {
                let error = fs::read(&path).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(nix::libc::EHOSTUNREACH), "{}: {error}", path.display());
            });
        }
    });
    for at in [0, 2] {
        let note = fs::read(lab.hosts[at].file("one/note")).unwrap();
        let known = lab.hosts[at].json(&["whereis", lab.hosts[at].file("one/note").to_str().unwrap()]);
        assert!(note == bytes(100), "{at}: {} bytes read, {known}", note.len());
        assert!(only_there(&lab, at));
        assert_eq!(place(&lab, at, &disk), (hosts[1].clone(), false));
    }

    let (old, new) = (lab.hosts[1].path("d"), lab.hosts[2].path("wandered"));
    fs::rename(&old, &new).unwrap();
    assert_eq!(lab.hosts[2].says(&["disk", "add", new.to_str().unwrap()]).0, 0);
    lab.wait_for_peers(&[0, 2], 2);
    for (at, (name, size)) in [0, 2].into_iter().flat_map(|at| files.map(|file| (at, file))) {
        wait_for_content(&lab, &lab.hosts[at].file(name), &bytes(size));
    }
    let is_there = |lab: &Lab, at: usize| place(lab, at, &disk) == (hosts[2].clone(), true);
    wait_for("all to know where it is", || lab.logs(), || [0, 2].iter().all(|at| is_there(&lab, *at)));

    // The old host starts again: without the folder, with an empty one in its place, and with a disk of its own.
    for _ in 0..2 {
        lab.hosts[1].begin("d", &["--no-mdns"]);
        assert_eq!(lab.hosts[1].wait_for_end(), 10, "{}", lab.logs());
        let _ = fs::create_dir(&old);
    }
    lab.hosts[1].start("d2", &["--create", "--no-mdns"]);
    lab.wait_for_peers(&[0, 1, 2], 3);
    lab.wait_for_one_catalog(&[0, 1, 2]);
    for at in 0..3 {
        wait_for("all to know where it is", || lab.logs(), || is_there(&lab, at));
        for (name, size) in files {
            wait_for_content(&lab, &lab.hosts[at].file(name), &bytes(size));
        }
    }
    let readers = [("cannot be reached", "readers find the only disk with a content away")];
    lab.end(&Ending {
        expected: &[&KILLS[..], &readers].concat(),
        incomplete: Some(
            "what the third host wanted to read before the disk with it was there, and then reads on that one",
        ),
        ..Ending::default()
    });
}
