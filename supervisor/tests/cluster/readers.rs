//! Who reads what is elsewhere: a host that keeps only what it reads, and a reader who has two to read from.

use std::fs;

use super::ending::Ending;
use super::lab::{KILLS, Lab};
use super::limits::sent;
use super::stories::{bytes, joined, wait_for_content};
use super::wait_for;

/// Contents that a host's disk holds.
fn held(lab: &Lab, at: usize) -> Option<u64> {
    lab.hosts[at].json(&["status"])["disks"][0]["worker"]["contents"].as_u64()
}

#[test]
fn a_lazy_host_keeps_only_what_is_read_there() {
    let Some(mut lab) = Lab::new(3) else { return };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    for (at, more) in [(1, &["--lazy"][..]), (2, &[])] {
        let token = lab.hosts[0].invite();
        lab.hosts[at].start("d", &[&["--join", &token, "--no-mdns"], more].concat());
    }
    lab.wait_for_peers(&[0, 1, 2], 2);
    let files = [("read", 9 << 20), ("unread", 8 << 20), ("small", 70_000)];
    for (name, size) in files {
        fs::write(lab.hosts[0].file(name), bytes(size)).unwrap();
    }
    for (name, _) in files {
        wait_for("two copies", || lab.logs(), || lab.hosts[0].copies(name) == 2);
    }
    // The two others have them.
    wait_for("the third host's copies", || lab.logs(), || held(&lab, 2) == Some(3));
    assert_eq!(held(&lab, 1), Some(0));
    wait_for_content(&lab, &lab.hosts[1].file("read"), &bytes(9 << 20));
    wait_for_content(&lab, &lab.hosts[1].file("small"), &bytes(70_000));
    wait_for("them to be kept", || lab.logs(), || held(&lab, 1) == Some(2));
    wait_for("that to be known", || lab.logs(), || lab.hosts[0].copies("read") == 3);
    assert_eq!(lab.hosts[0].copies("unread"), 2);
    // Nobody else is left: what was read is here, and the rest is not, and says so.
    lab.hosts[0].kill();
    lab.hosts[2].kill();
    assert!(fs::read(lab.hosts[1].file("read")).unwrap() == bytes(9 << 20));
    assert!(fs::read(lab.hosts[1].file("unread")).is_err());
    let alone = [
        ("cannot be reached", "who reads what those have who were killed"),
        ("no disk that holds the content", "the same"),
    ];
    lab.end(&Ending {
        expected: &[&KILLS[..], &alone].concat(),
        short: Some("what the lazy one has not read is on the disks that were killed"),
        incomplete: Some("what is read when nobody is left who has it"),
        ..Ending::default()
    });
}

#[test]
fn a_reader_is_served_by_all_who_have_it() {
    let Some(lab) = joined(3) else { return };
    let content = bytes(64 << 20);
    fs::create_dir(lab.hosts[0].file("one")).unwrap();
    assert_eq!(lab.hosts[0].says(&["copies", lab.hosts[0].file("one").to_str().unwrap(), "1"]).0, 0);
    wait_for("the folder", || lab.logs(), || lab.hosts[1].file("one").exists());
    fs::write(lab.hosts[0].file("one/film"), &content).unwrap();
    // Read on the second host, which has it from then on.
    wait_for_content(&lab, &lab.hosts[1].file("one/film"), &content);
    wait_for("two to have it", || lab.logs(), || lab.hosts[2].copies("one/film") == 2);
    let before = [sent(&lab, 0), sent(&lab, 1)];
    assert!(fs::read(lab.hosts[2].file("one/film")).unwrap() == content);
    for (at, before) in before.into_iter().enumerate() {
        let sent = sent(&lab, at) - before;
        println!("host {at} sent {sent} bytes");
        assert!(sent >= 4 << 20, "host {at} sent {sent} bytes of {}", content.len());
    }
    lab.finish(&[]);
}
