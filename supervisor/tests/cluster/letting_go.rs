//! A disk that is drained ends up empty. It lets go of nothing before promises of an earlier life must have run out, ten
//! minutes after the workers' start: here the clocks of all hosts run faster.

use std::fs;
use std::process::Command;

use super::lab::Lab;
use super::stories::{bytes, wait_for_content};
use super::wait_for;

/// As faketime(1) has it: ten minutes are half a minute.
const FASTER: &str = "+0 x20";

#[test]
#[ignore = "takes a minute: .ci/run has it in a step of its own"]
fn a_drained_disk_ends_up_empty() {
    let Some(mut lab) = Lab::new(3) else { return };
    if Command::new("faketime").arg("--version").output().is_err() {
        println!("skipped: it needs faketime");
        return;
    }
    for host in &mut lab.hosts {
        host.clock = Some(FASTER);
    }
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
    assert_eq!((held(&lab, 1), held(&lab, 2)), (2.into(), 2.into()));
    for (name, size) in files {
        wait_for_content(&lab, &lab.hosts[0].file(name), &bytes(size));
    }
}
