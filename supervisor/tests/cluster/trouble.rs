//! Disks that are not what they were: an older state, a clone, another clock, too small.

use std::fs;
use std::process::Command;

use super::lab::Lab;
use super::stories::{bytes, joined, wait_for_content};
use super::wait_for;

/// A copy of a folder with everything in it, as a person would make it.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

#[test]
fn a_disk_that_returns_with_an_older_state_loses_and_revives_nothing() {
    let Some(mut lab) = joined(2) else { return };
    fs::write(lab.hosts[1].file("old"), bytes(200_000)).unwrap();
    fs::write(lab.hosts[1].file("changed"), "before").unwrap();
    wait_for_content(&lab, &lab.hosts[0].file("old"), &bytes(200_000));
    wait_for("two copies", || lab.logs(), || lab.hosts[0].copies("old") == 2);
    lab.hosts[1].stop();
    let (disk, older) = (lab.hosts[1].path("d"), lab.hosts[1].path("older"));
    copy(&disk, &older);
    lab.hosts[1].start("d", &["--no-mdns"]);
    lab.wait_for_peers(&[0, 1], 1);
    fs::write(lab.hosts[1].file("since"), bytes(300_000)).unwrap();
    fs::write(lab.hosts[1].file("changed"), "after").unwrap();
    fs::remove_file(lab.hosts[1].file("old")).unwrap();
    wait_for_content(&lab, &lab.hosts[0].file("since"), &bytes(300_000));
    wait_for_content(&lab, &lab.hosts[0].file("changed"), b"after");
    wait_for("two copies", || lab.logs(), || lab.hosts[0].copies("since") == 2);
    wait_for("the removal", || lab.logs(), || !lab.hosts[0].file("old").exists());
    lab.hosts[1].stop();
    fs::remove_dir_all(&disk).unwrap();
    fs::rename(&older, &disk).unwrap();
    // It works before it meets anybody who knows better: what it does then must not be taken for what it did before.
    lab.hosts[1].plug(false);
    lab.hosts[1].start("d", &["--no-mdns"]);
    assert_eq!(fs::read_to_string(lab.hosts[1].file("changed")).unwrap(), "before");
    fs::write(lab.hosts[1].file("alone"), "written by the older state").unwrap();
    lab.hosts[1].plug(true);
    lab.wait_for_peers(&[0, 1], 1);
    lab.wait_for_one_catalog(&[0, 1]);
    for host in &lab.hosts {
        wait_for_content(&lab, &host.file("alone"), b"written by the older state");
        wait_for_content(&lab, &host.file("since"), &bytes(300_000));
        wait_for_content(&lab, &host.file("changed"), b"after");
        assert!(!host.file("old").exists());
        assert!(host.json(&["conflicts"])["paths"].as_array().unwrap().is_empty());
    }
    // It says what it holds now, not what it held.
    wait_for("two copies again", || lab.logs(), || lab.hosts[0].copies("since") == 2);
    assert_eq!(lab.hosts[1].says(&["scrub"]).0, 0, "{}", lab.logs());
    lab.finish(&[]);
}

#[test]
fn a_copy_of_a_disk_in_use_is_kept_out() {
    let Some(mut lab) = joined(3) else { return };
    fs::write(lab.hosts[1].file("file"), bytes(200_000)).unwrap();
    wait_for("copies", || lab.logs(), || lab.hosts[0].copies("file") >= 2);
    lab.hosts[1].stop();
    copy(&lab.hosts[1].path("d"), &lab.hosts[2].path("clone"));
    lab.hosts[1].start("d", &["--no-mdns"]);
    let clone = lab.hosts[2].path("clone");
    lab.wait_for_peers(&[0, 1, 2], 2);
    assert_eq!(lab.hosts[2].says(&["disk", "add", clone.to_str().unwrap()]).0, 0);
    // Who was there first stays; the other is not let in, and says why, once.
    let said = |what: &str| lab.logs().matches(what).count();
    wait_for("the copy to be noticed", || lab.logs(), || said("is a copy of a disk that is in use on host") == 1);
    let (code, shown) = lab.hosts[2].says(&["status", "-x"]);
    assert!(code == 20 && shown.contains("is a copy of a disk that is in use on host"), "{code} {shown}");
    for (at, size) in [(0, 200_001), (1, 300_000), (2, 400_000)] {
        let name = format!("by-{at}");
        fs::write(lab.hosts[at].file(&name), bytes(size)).unwrap();
        for host in &lab.hosts {
            wait_for_content(&lab, &host.file(&name), &bytes(size));
        }
        // Nobody is confused about what the disk holds.
        wait_for("copies", || lab.logs(), || lab.hosts.iter().all(|host| host.copies(&name) >= 2));
    }
    // The one that was there first goes: the other takes its place, with all that it has.
    lab.hosts[1].stop();
    wait_for(
        "the copy to be let in",
        || lab.logs(),
        || {
            let disks = lab.hosts[0].json(&["peers"])["disks"].as_array().cloned().unwrap_or_default();
            disks.iter().filter(|disk| disk["connected"] == true).count() == 3
        },
    );
    let says = || lab.hosts[2].says(&["status", "-x"]).1;
    wait_for("nothing to be said of it", || says() + &lab.logs(), || !says().contains("is a copy"));
    let me = lab.hosts[2].json(&["peers"])["host_id"].clone();
    wait_for(
        "everybody to know where the disk is now",
        || lab.hosts[0].says(&["peers"]).1 + &lab.logs(),
        || {
            let disks = lab.hosts[0].json(&["peers"])["disks"].as_array().cloned().unwrap_or_default();
            disks.iter().filter(|disk| disk["host_id"] == me).count() == 2
        },
    );
    lab.wait_for_one_catalog(&[0, 2]);
    for (at, size) in [(0, 200_001), (1, 300_000), (2, 400_000)] {
        wait_for_content(&lab, &lab.hosts[2].file(&format!("by-{at}")), &bytes(size));
    }
    assert_eq!(lab.hosts[2].says(&["scrub"]).0, 0, "{}", lab.logs());
    lab.finish(&[
        ("is a copy of a disk that is in use on host", "the supervisor there"),
        ("one of the two folders is a copy of the other", "who met both, and the one that was refused"),
    ]);
}

/// Alone on its host it is not noticed there: the others do not let it in. What it says to do must not cost what was
/// written to it.
#[test]
fn a_copy_that_was_written_to_is_let_in_when_the_other_one_stops() {
    let Some(mut lab) = joined(3) else { return };
    fs::write(lab.hosts[1].file("file"), bytes(200_000)).unwrap();
    wait_for("copies", || lab.logs(), || lab.hosts[0].copies("file") >= 2);
    lab.hosts[1].stop();
    lab.hosts[2].stop();
    copy(&lab.hosts[1].path("d"), &lab.hosts[2].path("clone"));
    lab.hosts[1].start("d", &["--no-mdns"]);
    lab.wait_for_peers(&[0, 1], 1);
    lab.hosts[2].start("clone", &["--no-mdns"]);
    fs::write(lab.hosts[2].file("only-there"), bytes(300_000)).unwrap();
    let said = |what: &str| lab.hosts[2].logs().contains(what);
    wait_for(
        "it to say why it is alone",
        || lab.logs(),
        || said("one of the two folders is a copy of the other; stop"),
    );
    assert!(said("copy what was written to it") && !said("remove"), "{}", lab.hosts[2].logs());
    lab.hosts[1].stop();
    wait_for_content(&lab, &lab.hosts[0].file("only-there"), &bytes(300_000));
    wait_for_content(&lab, &lab.hosts[2].file("file"), &bytes(200_000));
    lab.finish(&[("one of the two folders is a copy of the other", "who met both, and the one that was refused")]);
}

#[test]
fn clocks_that_differ_by_days_do_no_harm() {
    let Some(mut lab) = Lab::new(2) else { return };
    if Command::new("faketime").arg("--version").output().is_err() {
        println!("skipped: it needs faketime");
        return lab.finish(&[]);
    }
    lab.hosts[1].clock = Some("-3d");
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    let token = lab.hosts[0].invite();
    lab.hosts[1].start("d", &["--join", &token, "--no-mdns"]);
    lab.wait_for_peers(&[0, 1], 1);
    for round in 0..3 {
        for at in [0, 1] {
            let name = format!("file-{at}");
            let content = bytes(100_000 + round * 10 + at);
            fs::write(lab.hosts[at].file(&name), &content).unwrap();
            wait_for_content(&lab, &lab.hosts[1 - at].file(&name), &content);
        }
        // The last who writes wins, whatever his clock says.
        for at in [0, 1] {
            let content = format!("round {round} by {at}");
            fs::write(lab.hosts[at].file("shared"), &content).unwrap();
            wait_for_content(&lab, &lab.hosts[1 - at].file("shared"), content.as_bytes());
        }
    }
    lab.wait_for_one_catalog(&[0, 1]);
    for host in &lab.hosts {
        assert!(host.json(&["conflicts"])["paths"].as_array().unwrap().is_empty());
        wait_for("two copies", || lab.logs(), || host.copies("file-0") == 2 && host.copies("file-1") == 2);
    }
    lab.finish(&[]);
}

#[test]
fn unequal_disks_hold_the_wanted_copies_and_a_full_one_is_passed_over() {
    let Some(mut lab) = Lab::new(3) else { return };
    for (at, mib) in [(0, 400), (1, 250), (2, 100)] {
        lab.hosts[at].limit("d", mib);
    }
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    for at in [1, 2] {
        let token = lab.hosts[0].invite();
        lab.hosts[at].start("d", &["--join", &token, "--no-mdns"]);
    }
    lab.wait_for_peers(&[0, 1, 2], 2);
    const FILES: usize = 30;
    let content = |n: usize| bytes((5 << 20) + n);
    for n in 0..FILES {
        fs::write(lab.hosts[0].file(&format!("f{n}")), content(n)).unwrap();
    }
    let all = || (0..FILES).all(|n| lab.hosts[0].copies(&format!("f{n}")) == 2);
    wait_for("two copies of everything", || lab.hosts[0].says(&["status"]).1 + &lab.logs(), all);
    for host in &lab.hosts {
        println!("{}", host.says(&["disks"]).1);
    }
    for n in 0..FILES {
        wait_for_content(&lab, &lab.hosts[1].file(&format!("f{n}")), &content(n));
    }
    lab.finish(&[]);
}
