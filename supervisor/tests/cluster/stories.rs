//! What a user does with several hosts, and what must not happen to his files.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::ending::Ending;
use super::lab::{HALTED, KILLS, Lab};
use super::wait_for;
use crate::e2e::signal;

/// Bytes that no two offsets share.
pub fn bytes(size: usize) -> Vec<u8> {
    (0..size as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(size).collect()
}

/// Wait until a file has this content, as another host wrote it.
pub fn wait_for_content(lab: &Lab, path: &Path, content: &[u8]) {
    wait_for(&format!("{}", path.display()), || lab.logs(), || fs::read(path).is_ok_and(|found| found == content));
}

/// Hosts that found each other by their invitations alone.
pub fn joined(count: usize) -> Option<Lab> {
    let mut lab = Lab::new(count)?;
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    for at in 1..count {
        let token = lab.hosts[0].invite();
        lab.hosts[at].start("d", &["--join", &token, "--no-mdns"]);
    }
    let all: Vec<usize> = (0..count).collect();
    lab.wait_for_peers(&all, count - 1);
    Some(lab)
}

#[test]
fn join_and_share() {
    let Some(mut lab) = Lab::new(3) else { return };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    fs::write(lab.hosts[0].file("before"), "it was there").unwrap();
    let token = lab.hosts[0].invite();
    // Who has mistyped the cluster's name does not use it up.
    let (code, said) = lab.hosts[2].says(&["run", "hone", "d", "--join", &token, "--state-dir", "s", "--no-mdns"]);
    assert!(code == 12 && said.contains("run home ROOT --join TOKEN"), "{code} {said}");
    lab.hosts[1].start("d", &["--join", &token, "--no-mdns"]);
    lab.wait_for_peers(&[0, 1], 1);
    wait_for_content(&lab, &lab.hosts[1].file("before"), b"it was there");
    let made = |at: usize| fs::metadata(lab.hosts[at].file("")).map(|meta| (meta.mode(), meta.uid())).unwrap();
    let chmod = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(lab.hosts[0].file(""), chmod).unwrap();
    wait_for("the root's mode", || lab.logs(), || made(0).0 & 0o7777 == 0o1777 && made(1) == made(0));
    for (from, to) in [(0, 1), (1, 0)] {
        for size in [10, 300_000, 9 << 20] {
            let name = format!("from-{from}-{size}");
            fs::write(lab.hosts[from].file(&name), bytes(size)).unwrap();
            wait_for_content(&lab, &lab.hosts[to].file(&name), &bytes(size));
        }
    }
    lab.wait_for_one_catalog(&[0, 1]);
    // Two copies are wanted of what is not in the catalog.
    for name in ["from-0-300000", "from-1-9437184"] {
        wait_for("two copies", || lab.logs(), || lab.hosts[0].copies(name) == 2 && lab.hosts[1].copies(name) == 2);
    }
    // What another host wrote is changed here: first all of it comes.
    let mut file = File::options().append(true).open(lab.hosts[1].file("from-0-9437184")).unwrap();
    file.write_all(b"and more").unwrap();
    drop(file);
    let longer = [bytes(9 << 20), b"and more".to_vec()].concat();
    wait_for_content(&lab, &lab.hosts[0].file("from-0-9437184"), &longer);
    // The invitation was used; others were never given.
    for (wrong, exit) in [(token.as_str(), 16), ("delugefs1-abc", 2), ("nonsense", 2)] {
        lab.hosts[2].begin("d", &["--join", wrong, "--no-mdns"]);
        let code = lab.hosts[2].wait_for_end();
        assert_eq!(code, exit, "{wrong}\n{}", lab.logs());
        assert!(!lab.hosts[2].path("d").exists());
    }
    // A change of what is there already, and a removal.
    fs::write(lab.hosts[1].file("before"), "it is changed").unwrap();
    wait_for_content(&lab, &lab.hosts[0].file("before"), b"it is changed");
    fs::remove_file(lab.hosts[0].file("from-0-10")).unwrap();
    wait_for("the removal", || lab.logs(), || !lab.hosts[1].file("from-0-10").exists());
    // Everything is checked, on both.
    for host in &lab.hosts[..2] {
        let (code, text) = host.says(&["scrub"]);
        assert_eq!(code, 0, "{text}\n{}", lab.logs());
    }
    lab.finish(&[("did not admit host", "who gave a wrong name, and who came with an invitation that was used")]);
}

#[test]
fn both_halves_of_a_cut_network_go_on() {
    let Some(lab) = joined(2) else { return };
    fs::write(lab.hosts[0].file("both"), "first").unwrap();
    wait_for_content(&lab, &lab.hosts[1].file("both"), b"first");
    lab.hosts[1].plug(false);
    lab.wait_for_peers(&[0, 1], 0);
    for (at, host) in lab.hosts.iter().enumerate() {
        fs::write(host.file("both"), format!("second, by {at}")).unwrap();
        fs::write(host.file(&format!("only-{at}")), bytes(50_000 + at)).unwrap();
        fs::create_dir(host.file("dir")).unwrap();
        fs::write(host.file(&format!("dir/{at}")), "x").unwrap();
    }
    lab.hosts[1].plug(true);
    lab.wait_for_peers(&[0, 1], 1);
    lab.wait_for_one_catalog(&[0, 1]);
    let mut names: Vec<Vec<String>> = Vec::new();
    for host in &lab.hosts {
        wait_for_content(&lab, &host.file("only-0"), &bytes(50_000));
        wait_for_content(&lab, &host.file("only-1"), &bytes(50_001));
        assert!(host.file("dir/0").exists() && host.file("dir/1").exists());
        let list = host.json(&["conflicts"]);
        let paths: Vec<String> =
            list["paths"].as_array().unwrap().iter().map(|path| path.as_str().unwrap().to_owned()).collect();
        assert!(paths.len() == 1 && paths[0].starts_with("/both.conflict-"), "{list}");
        let mut both = [
            fs::read_to_string(host.file("both")).unwrap(),
            fs::read_to_string(host.file(paths[0].trim_start_matches('/'))).unwrap(),
        ];
        both.sort();
        assert_eq!(both, ["second, by 0", "second, by 1"]);
        names.push(paths);
    }
    assert_eq!(names[0], names[1]);
    lab.finish(&[]);
}

#[test]
fn a_host_that_dies_is_missed_and_nothing_is_lost() {
    let Some(mut lab) = joined(3) else { return };
    let content = bytes(6 << 20);
    fs::write(lab.hosts[0].file("film"), &content).unwrap();
    fs::write(lab.hosts[0].file("note"), "small").unwrap();
    wait_for("two copies", || lab.logs(), || lab.hosts[0].copies("film") >= 2);
    // Its worker alone: it comes back, and so does what was open.
    signal(lab.hosts[0].worker(), Signal::SIGKILL);
    wait_for_content(&lab, &lab.hosts[0].file("film"), &content);
    lab.wait_for_peers(&[0, 1, 2], 2);
    // The whole host.
    lab.hosts[0].kill();
    lab.wait_for_peers(&[1, 2], 1);
    for at in [1, 2] {
        wait_for_content(&lab, &lab.hosts[at].file("film"), &content);
        assert_eq!(fs::read_to_string(lab.hosts[at].file("note")).unwrap(), "small");
    }
    fs::write(lab.hosts[2].file("meanwhile"), bytes(100_000)).unwrap();
    lab.hosts[0].start("d", &["--no-mdns"]);
    lab.wait_for_peers(&[0, 1, 2], 2);
    wait_for_content(&lab, &lab.hosts[0].file("meanwhile"), &bytes(100_000));
    lab.wait_for_one_catalog(&[0, 1, 2]);
    lab.finish(&KILLS);
}

#[test]
fn who_is_revoked_is_out() {
    let Some(mut lab) = joined(2) else { return };
    let peers = lab.hosts[0].json(&["peers"]);
    let me = peers["host_id"].clone();
    let other = peers["hosts"].as_array().unwrap().iter().find(|host| host["host_id"] != me).unwrap();
    let id = other["host_id"].as_str().unwrap()[..12].to_owned();
    assert_eq!(lab.hosts[0].says(&["revoke", "1234"]).0, 2);
    // Not with what only its disk has, unless that is said.
    let mount = lab.hosts[1].path("m");
    assert_eq!(lab.hosts[1].says(&["copies", mount.to_str().unwrap(), "1"]).0, 0);
    fs::write(lab.hosts[1].file("only-there"), bytes(200_000)).unwrap();
    let is_whole = || fs::metadata(lab.hosts[0].file("only-there")).is_ok_and(|meta| meta.len() == 200_000);
    wait_for("the file", || lab.logs(), || is_whole() && lab.hosts[0].copies("only-there") == 1);
    let said = lab.hosts[0].says(&["revoke", &id]);
    assert_eq!(said.0, 14, "{}", said.1);
    assert!(said.1.contains("1 contents are only on disk ") && said.1.contains("disk drain DISK"), "{}", said.1);
    // It does not hear of it: it will come as if nothing had happened.
    lab.hosts[1].plug(false);
    lab.wait_for_peers(&[0], 0);
    assert_eq!(lab.hosts[0].says(&["revoke", &id, "--yes"]).0, 0);
    wait_for(
        "its disk to be out",
        || lab.logs(),
        || {
            let peers = lab.hosts[0].json(&["peers"]);
            peers["disks"].as_array().is_some_and(|disks| disks.len() == 1)
        },
    );
    fs::write(lab.hosts[0].file("secret"), "x").unwrap();
    // It comes again and again, also after a restart, and is let in nowhere.
    lab.hosts[1].stop();
    lab.hosts[1].start("d", &["--no-mdns"]);
    lab.hosts[1].plug(true);
    let refused = || lab.logs().matches("WARN refused [").count() >= 1;
    wait_for("it to be refused", || lab.logs(), refused);
    assert!(!lab.hosts[1].file("secret").exists());
    assert!(lab.logs().matches("WARN refused [").count() <= 2, "logged again and again\n{}", lab.logs());
    // And it learns why, from records that it can check.
    let told = || lab.hosts[1].says(&["status", "-x"]).1.contains("this host was revoked by ");
    wait_for("it to be told", || lab.logs(), told);
    assert_eq!(lab.logs().matches("this disk is out: ").count(), 1, "{}", lab.logs());
    // Whatever is tried, it is said that its key is out, and that another one helps.
    let help = |said: &str| said.contains("this host was revoked by ") && said.contains("/s/host.key away");
    let (code, said) = lab.hosts[1].says(&["invite"]);
    assert!(code == 16 && help(&said), "{code} {said}");
    let (_, problems) = lab.hosts[1].says(&["status", "-x"]);
    assert!(help(&problems) && !problems.contains("--join TOKEN` makes it one"), "{problems}");
    let token = lab.hosts[0].invite();
    lab.hosts[1].stop();
    // Also one that does not remember why.
    let sets = fs::read_dir(lab.hosts[1].path("s")).unwrap().map(|entry| entry.unwrap().path());
    for set in sets.filter(|path| path.to_str().unwrap().contains("members-")) {
        fs::remove_file(set).unwrap();
    }
    let (code, said) = lab.hosts[1].says(&["run", "home", "d", "--join", &token, "--state-dir", "s", "--no-mdns"]);
    assert!(code == 16 && help(&said), "{code} {said}");
    fs::rename(lab.hosts[1].path("s/host.key"), lab.hosts[1].path("old.key")).unwrap();
    lab.hosts[1].start("d", &["--join", &token, "--no-mdns"]);
    lab.wait_for_peers(&[0, 1], 1);
    wait_for_content(&lab, &lab.hosts[1].file("secret"), b"x");
    lab.finish(&[
        ("WARN refused [", "who comes all the same"),
        ("this disk is out", "itself, when it is told"),
        ("this host was revoked by", "its supervisor"),
        ("did not admit host", "of the one that it asks with the old key"),
    ]);
}

#[test]
fn a_second_disk_needs_no_invitation() {
    let Some(mut lab) = Lab::new(1) else { return };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    fs::write(lab.hosts[0].file("file"), bytes(200_000)).unwrap();
    let second = lab.hosts[0].path("d2");
    let (code, text) = lab.hosts[0].says(&["disk", "add", second.to_str().unwrap(), "--create"]);
    assert_eq!(code, 0, "{text}");
    lab.wait_for_peers(&[0], 1);
    wait_for("a second copy", || lab.logs(), || lab.hosts[0].copies("file") == 2);
    lab.wait_for_one_catalog(&[0]);
    // The disk that is mounted fails for long: the other one takes over.
    fs::rename(lab.hosts[0].path("d/node.key"), lab.hosts[0].path("gone")).unwrap();
    signal(lab.hosts[0].worker(), Signal::SIGKILL);
    wait_for("the mount to go on", || lab.logs(), || fs::write(lab.hosts[0].file("after"), "x").is_ok());
    let shown = lab.hosts[0].json(&["status"])["mounts"][0]["root"].clone();
    assert_eq!(shown.as_str(), second.to_str(), "it is said which disk it shows");
    wait_for_content(&lab, &lab.hosts[0].file("file"), &bytes(200_000));
    // One copy is enough of what is said to be worth no more.
    let file = lab.hosts[0].file("file");
    let (code, text) = lab.hosts[0].says(&["copies", file.to_str().unwrap(), "1"]);
    assert!(code == 0 && text.starts_with("1 copy wanted"), "{text}");
    // And it comes back.
    fs::rename(lab.hosts[0].path("gone"), lab.hosts[0].path("d/node.key")).unwrap();
    lab.wait_for_peers(&[0], 1);
    let fails = [
        ("node.key is missing", "the supervisor, of the disk that fails for long"),
        ("the disk is away", "the frontend, whose mount goes to the other one"),
    ];
    lab.finish(&[&KILLS[..], &fails].concat());
}

#[test]
fn a_disk_that_hangs_does_not_stop_its_mount_where_there_is_another() {
    let Some(mut lab) = Lab::new(1) else { return };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    fs::write(lab.hosts[0].file("file"), bytes(200_000)).unwrap();
    let second = lab.hosts[0].path("d2");
    assert_eq!(lab.hosts[0].says(&["disk", "add", second.to_str().unwrap(), "--create"]).0, 0);
    lab.wait_for_peers(&[0], 1);
    wait_for("a second copy", || lab.logs(), || lab.hosts[0].copies("file") == 2);
    lab.wait_for_one_catalog(&[0]);
    fs::write(lab.hosts[0].file("from"), bytes(10_000)).unwrap();
    fs::write(lab.hosts[0].file("log"), "synced").unwrap();
    lab.wait_for_one_catalog(&[0]);
    // The other one will not have this.
    let mut log = fs::File::options().append(true).open(lab.hosts[0].file("log")).unwrap();
    log.write_all(b" twice").and_then(|()| log.sync_all()).unwrap();
    let hangs = lab.hosts[0].worker();
    halt(hangs);
    let (from, to) = (lab.hosts[0].file("from"), lab.hosts[0].file("to"));
    let renamed = std::thread::spawn(move || fs::rename(from, &to).and_then(|()| fs::remove_file(to)));
    let (sender, told) = std::sync::mpsc::channel();
    let [file, after, behind] = ["file", "after", "log"].map(|name| lab.hosts[0].file(name));
    let begin = std::time::Instant::now();
    // In a thread of its own: it might wait for as long as the disk hangs.
    std::thread::spawn(move || {
        let read = fs::read(file);
        let written = fs::write(after, "x");
        let after_so_long = begin.elapsed();
        // As long as it is open it is read as it is, and then not at all.
        drop(log);
        let refused = loop {
            match fs::read(&behind) {
                Ok(read) if read == b"synced twice" => std::thread::yield_now(),
                other => break other.map_err(|error| error.raw_os_error()),
            }
        };
        let _ = sender.send((read, written, after_so_long, refused));
    });
    let answer = told.recv_timeout(std::time::Duration::from_secs(60));
    signal(hangs, Signal::SIGCONT);
    let (read, written, after_so_long, refused) = answer.unwrap_or_else(|_| panic!("it hangs\n{}", lab.logs()));
    assert!(read.is_ok_and(|read| read == bytes(200_000)), "{}", lab.logs());
    written.unwrap();
    assert_eq!(refused, Err(Some(Errno::EIO as i32)), "{}", lab.logs());
    println!("went on after {after_so_long:?}");
    // It wakes up with requests that were carried out elsewhere meanwhile, and does not carry them out again.
    renamed.join().unwrap().unwrap();
    lab.wait_for_peers(&[0], 1);
    lab.wait_for_one_catalog(&[0]);
    let names = || {
        fs::read_dir(lab.hosts[0].file("")).unwrap().map(|entry| entry.unwrap().file_name()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(), ["after", "file", "log"].map(Into::into).into());
    wait_for_content(&lab, &lab.hosts[0].file("log"), b"synced twice");
    let away = [
        ("the disk is away", "the frontend, whose mount goes to the other one"),
        ("the diskworker did not take an open file back", "what only the first one has"),
        ("is away and has something newer in the place of file", "the same"),
    ];
    lab.finish(&[&HALTED[..], &away].concat());
}

#[test]
fn who_founds_a_cluster_of_a_name_that_is_there_is_told_so() {
    let Some(mut lab) = Lab::new(2) else { return };
    for at in 0..2 {
        lab.hosts[at].start("d", &["--create"]);
    }
    let text = "another cluster on this network is called home too";
    wait_for("the second host to be told", || lab.logs(), || lab.hosts[1].logs().contains(text));
    assert!(lab.hosts[1].logs().contains("run home ROOT --join INVITATION"), "{}", lab.hosts[1].logs());
    let apart: [&[usize]; 2] = [&[0], &[1]];
    lab.end(&Ending { groups: Some(&apart), expected: &[(text, "what this is about")], ..Ending::default() });
}

#[test]
fn disks_find_each_other_by_multicast_and_after_a_move() {
    let Some(mut lab) = Lab::new(2) else { return };
    lab.hosts[0].start("d", &["--create"]);
    let token = lab.hosts[0].invite();
    lab.hosts[1].start("d", &["--join", &token]);
    lab.wait_for_peers(&[0, 1], 1);
    // Both get other addresses and ports while they are off: nothing that is remembered is true any more.
    for host in &mut lab.hosts {
        host.stop();
    }
    for (at, address) in [(0, "10.77.0.50"), (1, "10.77.0.60")] {
        lab.hosts[at].move_to(address);
        lab.hosts[at].start("d", &["--btport", if at == 0 { "41000" } else { "41001" }]);
    }
    lab.wait_for_peers(&[0, 1], 1);
    let peers = lab.hosts[0].says(&["peers"]).1;
    assert!(
        peers.contains("10.77.0.60:41001") || lab.hosts[1].says(&["peers"]).1.contains("10.77.0.50:41000"),
        "{peers}"
    );
    lab.finish(&[]);
}

#[test]
fn where_multicast_does_not_reach_an_address_is_enough() {
    let Some(mut lab) = Lab::new(2) else { return };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    let token = lab.hosts[0].invite();
    lab.hosts[1].start("d", &["--join", &token, "--no-mdns"]);
    lab.wait_for_peers(&[0, 1], 1);
    for host in &mut lab.hosts {
        host.stop();
    }
    lab.hosts[0].move_to("10.77.0.50");
    lab.hosts[0].start("d", &["--btport", "41000", "--no-mdns"]);
    lab.hosts[1].move_to("10.77.0.60");
    lab.hosts[1].start("d", &["--no-mdns", "--peer", "10.77.0.50:41000"]);
    lab.wait_for_peers(&[0, 1], 1);
    lab.finish(&[]);
}

/// Two hosts, and `one/large` (40 MiB) and `one/small` (70,000 bytes) whose bytes only the first one has.
pub fn joined_with_single_copies() -> Option<Lab> {
    let lab = joined(2)?;
    let (here, there) = (&lab.hosts[0], &lab.hosts[1]);
    fs::create_dir(here.file("one")).unwrap();
    assert_eq!(here.says(&["copies", here.file("one").to_str().unwrap(), "1"]).0, 0);
    wait_for("the folder", || lab.logs(), || there.file("one").exists());
    for (name, size) in [("one/large", 40 << 20), ("one/small", 70_000)] {
        fs::write(here.file(name), bytes(size)).unwrap();
        let arrived = || fs::metadata(there.file(name)).is_ok_and(|meta| meta.len() == size as u64);
        wait_for(name, || lab.logs(), arrived);
    }
    Some(lab)
}

/// Stop a process until SIGCONT. Its threads halt one after the other: until the last has, it may still answer.
pub fn halt(pid: u32) {
    signal(pid, Signal::SIGSTOP);
    let state = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).unwrap_or_default();
    let is_halted = |stat: String| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'));
    let tasks = || fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    wait_for("the process to halt", String::new, || tasks().all(|task| is_halted(state(task))));
}

#[test]
fn a_holder_that_stalls_ends_in_an_error_and_comes_back() {
    let Some(lab) = joined_with_single_copies() else { return };
    let (here, there) = (&lab.hosts[0], &lab.hosts[1]);
    let worker = here.worker();
    halt(worker);
    // It takes connections and answers nothing: bounded, an error, and no byte of it.
    for name in ["one/large", "one/small"] {
        let error = fs::read(there.file(name)).unwrap_err();
        let expected = [nix::libc::EHOSTUNREACH, nix::libc::ETIMEDOUT];
        assert!(error.raw_os_error().is_some_and(|errno| expected.contains(&errno)), "{name}: {error}");
    }
    signal(worker, Signal::SIGCONT);
    wait_for_content(&lab, &there.file("one/small"), &bytes(70_000));
    wait_for_content(&lab, &there.file("one/large"), &bytes(40 << 20));
    lab.finish(&HALTED);
}
