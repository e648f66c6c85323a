//! A disk that is drained ends up empty, and a lazy one makes room for what is read. Neither lets go of anything before promises
//! of an earlier life must have run out, ten minutes after the workers' start: here the clocks of all hosts run faster.

use std::fs;
use std::process::Command;

use super::lab::Lab;
use super::stories::{bytes, wait_for_content};
use super::wait_for;

/// As faketime(1) has it: ten minutes are half a minute.
const FASTER: &str = "+0 x20";

/// Hosts whose clocks run faster.
fn fast_lab(count: usize) -> Option<Lab> {
    if Command::new("faketime").arg("--version").output().is_err() {
        println!("skipped: it needs faketime");
        return None;
    }
    let mut lab = Lab::new(count)?;
    for host in &mut lab.hosts {
        host.clock = Some(FASTER);
    }
    Some(lab)
}

#[test]
#[ignore = "takes a minute: .ci/run has it in a step of its own"]
fn a_drained_disk_ends_up_empty() {
    let Some(mut lab) = fast_lab(3) else { return };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    for at in [1, 2] {
        let token = lab.hosts[0].invite();
        lab.hosts[at].start("d", &["--join", &token, "--no-mdns"]);
    }
    lab.wait_for_peers(&[0, 1, 2], 2);
    let files = [("small", 70_000), ("large", 6 << 20)];
    for (name, size) in files {
        fs::write(lab.hosts[0].file(name), bytes(size)).unwrap();
        wait_for("two copies", || lab.logs(), || lab.hosts[1].copies(name) >= 2);
    }
    let disk = lab.hosts[0].json(&["status"])["disks"][0]["disk_id"].as_str().unwrap().to_owned();
    assert_eq!(lab.hosts[0].says(&["disk", "drain", &disk]).0, 0);
    let held = |lab: &Lab, at: usize| lab.hosts[at].json(&["status"])["disks"][0]["worker"]["contents"].clone();
    wait_for("it to be empty", || lab.hosts[0].says(&["status"]).1 + &lab.logs(), || held(&lab, 0) == 0);
    // With clocks this fast a worker's answer may come too late for one look.
    wait_for("two copies of both", || lab.logs(), || [1, 2].iter().all(|at| held(&lab, *at) == 2));
    for (name, size) in files {
        wait_for_content(&lab, &lab.hosts[0].file(name), &bytes(size));
    }
    lab.finish(&[]);
}

#[test]
#[ignore = "takes a minute: .ci/run has it in a step of its own"]
fn more_is_read_through_a_lazy_disk_than_it_holds() {
    const FILES: usize = 32;
    let Some(mut lab) = fast_lab(2) else { return };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    assert_eq!(lab.hosts[0].says(&["copies", lab.hosts[0].file("").to_str().unwrap(), "1"]).0, 0);
    let token = lab.hosts[0].invite();
    // 64 MiB of it are the catalog's.
    lab.hosts[1].limit("d", 200);
    lab.hosts[1].start("d", &["--join", &token, "--no-mdns", "--lazy"]);
    lab.wait_for_peers(&[0, 1], 1);
    let (name, content) = (|n: usize| format!("f{n}"), |n: usize| bytes((8 << 20) + 4 * n));
    for n in 0..FILES {
        fs::write(lab.hosts[0].file(&name(n)), content(n)).unwrap();
    }
    let is_known =
        |n: usize| fs::metadata(lab.hosts[1].file(&name(n))).is_ok_and(|it| it.len() == content(n).len() as u64);
    wait_for("all files", || lab.logs(), || (0..FILES).all(is_known));
    // Past what it holds, as soon as it may let go; from then on nobody waits in vain.
    for n in 0..FILES / 2 + 4 {
        wait_for_content(&lab, &lab.hosts[1].file(&name(n)), &content(n));
    }
    for n in FILES / 2 + 4..FILES {
        let found = fs::read(lab.hosts[1].file(&name(n)));
        assert!(found.as_ref().is_ok_and(|found| *found == content(n)), "{:?}\n{}", found.err(), lab.logs());
    }
    lab.finish(&[]);
}
