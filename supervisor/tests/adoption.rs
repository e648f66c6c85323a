//! A supervisor that was killed leaves its processes serving; the next one finds them.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::lab::{Lab, kill_hard, pid_of, terminate};

fn worker(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = Command::new(lab.path("lib/delugefs-diskworker"));
    lab.hermetic(&mut command);
    command
        .args(["--cluster", "home", "--root"])
        .arg(lab.path("a"))
        .arg("--run-dir")
        .arg(lab.run_dir())
        .args(arguments);
    command
}

#[test]
fn the_next_supervisor_finds_worker_and_mount() {
    let mut lab = Lab::new();
    let can_mount =
        cfg!(target_os = "linux") && nix::unistd::geteuid().is_root() && std::path::Path::new("/dev/fuse").exists();
    if !can_mount {
        eprintln!("skipped: it needs root and /dev/fuse");
        return;
    }
    let first = lab.supervisor("sup", &["--no-mdns"]);
    lab.make_disk();
    lab.manners("frontend", "mount");
    assert_eq!(lab.says(&["disk", "add", "a"]).code, 0);
    assert_eq!(lab.says(&["mount", "m"]).code, 0);
    let before = lab.status();
    kill_hard(first);
    assert_eq!(lab.wait(first), -1);
    let said = lab.says(&["status"]);
    assert_eq!(said.code, 17);

    let second = lab.supervisor("sup2", &["--no-mdns"]); // starts what was added
    let after = lab.wait_for_status("both to be adopted", |status| {
        status["disks"][0]["state"] == "up" && status["mounts"][0]["state"] == "up"
    });
    for what in ["disks", "mounts"] {
        assert_eq!(after[what][0]["pid"], before[what][0]["pid"]);
        assert_eq!(after[what][0]["by_hand"], false, "a supervisor has started it");
    }
    // The fake never answers the kernel: whoever had touched the mountpoint would hang.
    let said = lab.says(&["whereis", "m/note.txt"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    kill_hard(pid_of(&after["mounts"][0]).unwrap());
    let again = lab.wait_for_status("the mount to come back", |status| {
        status["mounts"][0]["state"] == "up" && status["mounts"][0]["pid"] != before["mounts"][0]["pid"]
    });
    assert_eq!(again["mounts"][0]["restarts"], 1);
    kill_hard(pid_of(&after["disks"][0]).unwrap());
    lab.wait_for_status("the disk to come back", |status| {
        status["disks"][0]["state"] == "up" && status["disks"][0]["pid"] != before["disks"][0]["pid"]
    });
    terminate(second);
    assert_eq!(lab.wait(second), 0);
    lab.assert_clean();
    assert!(delugefs_supervisor::sys::delugefs_mounts().unwrap().iter().all(|mount| *mount != lab.path("m")));
}

#[test]
fn a_dead_mount_is_seen_in_the_mount_table_and_cleared_away() {
    let mut lab = Lab::new();
    if !lab.can_mount() {
        return;
    }
    let run = lab.run(&["--create", "--mount", "m"]);
    lab.manners("frontend", "exit-before-ready 1");
    kill_hard(pid_of(&lab.status()["mounts"][0]).unwrap());
    lab.wait_for_status("the mount to be given up for a while", |status| status["mounts"][0]["state"] == "restarting");
    assert_eq!(lab.says(&["whereis", "m/photos/a.jpg"]).code, 0);
    assert_eq!(lab.says(&["status", "-x"]).code, 20);
    assert_eq!(lab.says(&["umount", "m"]).code, 0);
    assert!(delugefs_supervisor::sys::delugefs_mounts().unwrap().iter().all(|mount| *mount != lab.path("m")));
    assert_eq!(lab.wait(run), 0, "its mount was taken away");
    assert!(lab.err("run").contains("was taken away by another command"));
}

#[test]
fn the_mount_of_another_host_is_left_alone() {
    let mut lab = Lab::new();
    if !lab.can_mount() {
        return;
    }
    let run = lab.run(&["--create", "--mount", "m"]);
    let before = delugefs_supervisor::sys::delugefs_at(&lab.path("m")).unwrap();
    assert!(before.is_some());
    // Another supervisor, whose frontend refuses as the real one does.
    fs::create_dir(lab.path("r2")).unwrap();
    fs::write(lab.path("r2/fake-frontend"), "exit-before-ready 14\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_delugefs"));
    lab.hermetic(&mut command);
    command.args(["--run-dir", "r2", "run", "home", "b", "--create", "--mount", "m", "--state-dir", "s2"]);
    assert_eq!(lab.said(command.output().unwrap()).code, 14);
    assert_eq!(delugefs_supervisor::sys::delugefs_at(&lab.path("m")).unwrap(), before);
    terminate(run);
    assert_eq!(lab.wait(run), 0);
    lab.assert_clean();
}

#[test]
fn a_worker_started_by_hand_registers_and_is_left_alone() {
    let mut lab = Lab::new();
    let sup = lab.supervisor("sup", &["--no-mdns"]);
    let pid = lab.spawn(worker(&lab, &["--create"]), "worker");
    let status = lab.wait_for_status("it to register", |status| status["disks"][0]["state"] == "up");
    assert_eq!((pid_of(&status["disks"][0]), &status["disks"][0]["by_hand"]), (Some(pid), &true.into()));
    terminate(sup);
    assert_eq!(lab.wait(sup), 0);
    assert!(delugefs_supervisor::sys::is_running(pid, "delugefs-diskworker"));

    // A new supervisor is told of the same disk: it takes the living one.
    let sup = lab.supervisor("sup2", &["--no-mdns"]);
    assert_eq!(lab.says(&["disk", "add", "a"]).code, 0);
    let disk = &lab.status()["disks"][0];
    assert_eq!((pid_of(disk), &disk["by_hand"]), (Some(pid), &false.into()), "it is watched now");
    assert_eq!(lab.says(&["disk", "remove", "a"]).code, 0);
    assert_eq!(lab.wait(pid), 0, "asked for, it stops");
    terminate(sup);
    assert_eq!(lab.wait(sup), 0);
}

#[test]
fn a_folder_in_use_by_a_worker_that_does_not_register_is_reported() {
    let mut lab = Lab::new();
    let _sup = lab.supervisor("sup", &["--no-mdns"]);
    lab.spawn(worker(&lab, &["--create", "--no-register"]), "worker");
    lab.wait_for("the worker", || lab.out("worker").contains("ready"));
    let said = lab.says(&["disk", "add", "a"]);
    assert_eq!(said.code, 14);
    insta::assert_snapshot!(said.stderr, @"
    delugefs: LAB/a is in use by another worker
    Hint: stop it first
    ");
    assert_eq!(lab.status()["disks"].as_array().unwrap().len(), 0);
}

/// `mv /data /big/data; ln -s /big/data /data`: the disk is one, where it is now, and what was added goes by the name that is known of it.
#[test]
fn what_was_added_in_a_folder_that_was_moved_and_linked_can_be_taken_away() {
    let mut lab = Lab::new();
    let sup = lab.supervisor("sup", &["--no-mdns"]);
    lab.make_disk();
    let moves = |lab: &Lab, from: &str, to: &str| {
        fs::rename(lab.path(from), lab.path(to)).unwrap();
        symlink(to, lab.path(from)).unwrap();
    };
    fs::create_dir_all(lab.path("x/m")).unwrap();
    fs::rename(lab.path("a"), lab.path("x/a")).unwrap();
    assert_eq!(lab.says(&["disk", "add", "x/a"]).code, 0);
    let pid = pid_of(&lab.status()["disks"][0]);
    kill_hard(sup);
    assert_eq!(lab.wait(sup), -1);
    moves(&lab, "x", "y");
    let sup = lab.supervisor("sup2", &["--no-mdns"]);
    let status = lab.wait_for_status("it to be adopted", |status| status["disks"][0]["state"] == "up");
    let disk = &status["disks"][0];
    assert_eq!((disk["root"].as_str(), pid_of(disk)), (Some("LAB/y/a"), pid));
    assert_eq!(lab.says(&["mount", "x/m"]).code, 0);
    terminate(sup);
    assert_eq!(lab.wait(sup), 0);
    moves(&lab, "y", "z");
    let sup = lab.supervisor("sup", &["--no-mdns"]);
    let status = lab.wait_for_status("both to come", |status| {
        status["disks"][0]["state"] == "up" && status["mounts"][0]["state"] == "up"
    });
    let shown = (status["disks"][0]["root"].as_str(), status["mounts"][0]["dir"].as_str());
    assert_eq!(shown, (Some("LAB/z/a"), Some("LAB/y/m")));
    for what in [&["umount", "y/m"][..], &["disk", "remove", "y/a"]] {
        let said = lab.says(what);
        assert_eq!(said.code, 0, "{what:?}: {}", said.stderr);
    }
    let status = lab.status();
    assert_eq!([&status["disks"], &status["mounts"]].map(|list| list.as_array().unwrap().len()), [0, 0]);
    terminate(sup);
    assert_eq!(lab.wait(sup), 0);
    lab.assert_clean();
}
