//! The limits a person sets for the line, over the lab's network: no more passes than may.

use std::fs;
use std::time::{Duration, Instant};

use super::lab::Lab;
use super::stories::{bytes, joined, wait_for_content};
use super::wait_for;

/// What the first host may send.
const LIMIT_BYTES_PER_S: u64 = 2_000_000;
/// Of a file that is read, and of one that is copied.
const SIZE: usize = 8_000_000;

/// Bytes that a host has sent so far.
pub fn sent(lab: &Lab, at: usize) -> u64 {
    let answer = lab.hosts[at].command("ip").args(["-j", "-s", "link", "show", "eth0"]).output().unwrap();
    let links: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    links[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
}

/// What is done must not have been faster than the limit allows for the bytes that it moved.
fn limited(lab: &Lab, what: &str, work: impl FnOnce()) {
    let (before, begin) = (sent(lab, 0), Instant::now());
    work();
    let (moved, took) = (sent(lab, 0) - before, begin.elapsed());
    println!("{what}: {moved} bytes in {took:?}");
    assert!(moved >= SIZE as u64, "{what}: only {moved} bytes came over the network");
    // Of the content alone, and without the burst at the begin: what else travels is not limited.
    let least = Duration::from_secs_f64(SIZE as f64 / LIMIT_BYTES_PER_S as f64 * 0.8);
    assert!(took >= least, "{what}: {SIZE} bytes in {took:?} with a limit of {LIMIT_BYTES_PER_S} bytes a second");
}

#[test]
fn no_more_is_sent_than_may_be() {
    let Some(mut lab) = joined(2) else { return };
    lab.hosts[0].stop();
    let (root, mount) = (lab.hosts[0].path("d"), lab.hosts[0].path("m"));
    let config = format!(
        "cluster = 'home'\n[[disk]]\nroot = '{}'\nupload_bytes_per_s = {LIMIT_BYTES_PER_S}\n[[mount]]\ndir = '{}'\n",
        root.display(),
        mount.display()
    );
    fs::write(lab.hosts[0].path("delugefs.toml"), config).unwrap();
    lab.hosts[0].serve("delugefs.toml", &["--no-mdns"]);
    lab.wait_for_peers(&[0, 1], 1);
    let (here, there) = (&lab.hosts[0], &lab.hosts[1]);
    fs::create_dir(here.file("one")).unwrap();
    assert_eq!(here.says(&["copies", here.file("one").to_str().unwrap(), "1"]).0, 0);

    // Read by somebody else.
    let content = bytes(SIZE);
    fs::write(here.file("one/read"), &content).unwrap();
    let arrived = || there.copies("one/read") == 1 && fs::metadata(there.file("one/read")).is_ok_and(|it| it.len() > 0);
    wait_for("the name", || lab.logs(), arrived);
    limited(&lab, "reading", || wait_for_content(&lab, &there.file("one/read"), &content));

    // Copied because two copies are wanted.
    let content: Vec<u8> = content.iter().map(|byte| !byte).collect();
    limited(&lab, "copying", || {
        fs::write(here.file("copied"), &content).unwrap();
        wait_for("the copy", || lab.logs(), || there.copies("copied") == 2);
    });
    assert!(fs::read(there.file("copied")).unwrap() == content);

    // The other way there is no limit, and what one waits for is not held up: it is only not asserted how fast.
    fs::write(there.file("back"), bytes(300_000)).unwrap();
    wait_for_content(&lab, &here.file("back"), &bytes(300_000));
    lab.wait_for_one_catalog(&[0, 1]);
    lab.finish(&[]);
}
