//! `delugefs run`: the one command of the quick start.

use std::fs;

use crate::lab::{Lab, Said, kill_hard, pid_of, terminate};

#[test]
fn starts_everything_and_stops_it_again() {
    let mut lab = Lab::new();
    let run = lab.run(&["--create", "--mount", "m"]);
    let status = lab.status();
    assert_eq!(status["disks"][0]["state"], "up");
    assert_eq!(status["mounts"][0]["state"], "up");
    assert_eq!(status["problems"].as_array().unwrap().len(), 0);
    terminate(run);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
    lab.assert_clean();
    assert_eq!(lab.says(&["status"]).code, 17, "the supervisor is gone too");

    // Later, without --create and without a mount.
    let run = lab.run(&[]);
    assert_eq!(lab.status()["disks"][0]["disk_id"], status["disks"][0]["disk_id"]);
    terminate(run);
    assert_eq!(lab.wait(run), 0);
    lab.assert_clean();
}

#[test]
fn a_failure_carries_exit_code_and_hint_and_leaves_nothing_running() {
    let lab = Lab::new();
    let run = |arguments: &[&str]| {
        let said = lab.says(&[&["run", "--state-dir", "s"], arguments].concat());
        assert_eq!(said.stdout, "");
        let ours = said.stderr.lines().filter(|line| line.starts_with("delugefs: ") || line.starts_with("Hint: "));
        (said.code, ours.collect::<Vec<_>>().join("\n"))
    };
    let (code, text) = run(&["home", "a"]);
    assert_eq!(code, 10);
    insta::assert_snapshot!(text, @"
    delugefs: LAB/a is not a DelugeFS disk folder (it has no disk.toml)
    Hint: --create makes a new disk of an empty folder
    ");
    let (code, text) = run(&["home", "nowhere", "--create"]);
    assert_eq!(code, 10);
    insta::assert_snapshot!(text, @"
    delugefs: LAB/nowhere does not exist
    Hint: make the folder first
    ");
    let kept = fs::read_dir(lab.path("s")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(
        kept.into_iter().all(|name| !name.starts_with("members-")),
        "a cluster was founded for a disk that could not be made"
    );
    let (code, text) = run(&["../x", "a", "--create"]);
    assert_eq!(code, 2);
    insta::assert_snapshot!(text, @r#"
    delugefs: "../x" is no name for a cluster
    Hint: use letters, digits, '-', '_' and '.'
    "#);
    let (code, text) = run(&["home", "a", "--create", "--mount", "a/inside"]);
    assert_eq!(code, 15);
    insta::assert_snapshot!(text, @"
    delugefs: LAB/a/inside lies in the disk's own folder LAB/a
    Hint: mount on a folder outside of it
    ");
    let (code, text) = run(&["home", "a", "--create", "--mount", "no/where"]);
    assert_eq!(code, 15);
    insta::assert_snapshot!(text, @"
    delugefs: the folder that LAB/no/where should be made in does not exist
    Hint: make that folder first
    ");
    assert_eq!(
        fs::read_dir(lab.path("a")).unwrap().count(),
        0,
        "the disk is not made before the mountpoint is looked at"
    );
    lab.make_disk();
    let (code, text) = run(&["home", "a", "--create"]);
    assert_eq!(code, 11);
    insta::assert_snapshot!(text, @"
    delugefs: LAB/a is a disk already
    Hint: leave out --create
    ");
    let (code, text) = run(&["work", "a"]);
    assert_eq!(code, 12);
    insta::assert_snapshot!(text, @"delugefs: LAB/a belongs to cluster home");
    let (code, text) = run(&["home", "a", "--mount", "m", "--user", "no such user"]);
    assert_eq!(code, 2);
    insta::assert_snapshot!(text, @r#"
    delugefs: there is no user "no such user" on this machine
    Hint: `getent passwd` lists the users
    "#);
    lab.assert_clean();
}

#[test]
fn what_is_mistyped_is_said_before_anything_is_started() {
    let lab = Lab::new();
    let run = |arguments: &[&str]| {
        let said = lab.says(&[&["run", "--state-dir", "s"], arguments].concat());
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{said:?}");
        said.stderr
    };
    insta::assert_snapshot!(run(&["", "a"]), @r#"
    delugefs: "" is no name for a cluster
    Hint: use letters, digits, '-', '_' and '.'
    "#);
    insta::assert_snapshot!(run(&["home", "a", "--join", "delugefs1-abc"]), @"
    delugefs: this join token was mistyped or is cut short: copy all of it, from delugefs1- to the end
    Hint: `delugefs invite` on a host of the cluster prints one: a single word, all of which is needed
    ");
    insta::assert_snapshot!(run(&["home", "a", "--listen", "localhost:80"]), @r#"
    delugefs: "localhost:80" is no IP address
    Hint: write one of this machine, such as 192.168.1.5 or fd00::2; --btport PORT sets the port
    "#);
    insta::assert_snapshot!(run(&["home", "a", "--listen", "192.0.2.1"]), @r#"
    delugefs: "192.0.2.1" is no address of this machine
    Hint: write one of this machine, such as 192.168.1.5 or fd00::2; --btport PORT sets the port
    "#);
    insta::assert_snapshot!(run(&["home", "a", "--peer", "nas"]), @r#"
    delugefs: "nas" is no address of a peer
    Hint: write HOST:PORT, such as nas.lan:40999 or [fd00::2]:40999
    "#);
    assert!(!lab.path("s").exists());
}

#[test]
fn a_remembered_folder_that_is_no_disk_any_more_is_not_made_one_unasked() {
    let mut lab = Lab::new();
    let run = lab.run(&["--create"]);
    assert_eq!(lab.says(&["disk", "add", "b", "--create"]).code, 0);
    terminate(run);
    assert_eq!(lab.wait(run), 0);
    // As if its file system were not mounted.
    fs::rename(lab.path("b"), lab.path("b.away")).unwrap();
    fs::create_dir(lab.path("b")).unwrap();
    let ours = |said: Said| {
        let lines = said.stderr.lines().filter(|line| line.starts_with("delugefs: ") || line.starts_with("Hint: "));
        (said.code, lines.collect::<Vec<_>>().join("\n"))
    };
    let (code, text) = ours(lab.says(&["run", "home", "b", "--state-dir", "s", "--create"]));
    assert_eq!(code, 11);
    insta::assert_snapshot!(text, @"
    delugefs: LAB/b is remembered as a disk of this host already
    Hint: leave out --create, and mount what belongs there if it is not mounted; for a new disk choose another folder, or take this one out of `added.toml` in the state directory
    ");
    let (code, text) = ours(lab.says(&["run", "home", "b", "--state-dir", "s"]));
    assert_eq!(code, 10);
    insta::assert_snapshot!(text, @"
    delugefs: LAB/b is not a DelugeFS disk folder (it has no disk.toml)
    Hint: this host remembers a disk there: mount what belongs there if it is not mounted; for a new disk choose another folder, or take this one out of `added.toml` in the state directory
    ");
    assert_eq!(fs::read_dir(lab.path("b")).unwrap().count(), 0);
    lab.assert_clean();
}

#[test]
fn a_second_one_is_told_so_and_harms_nothing() {
    let mut lab = Lab::new();
    let run = lab.run(&["--create", "--mount", "m"]);
    let before = lab.status();
    let said = lab.says(&["run", "home", "a", "--mount", "m"]);
    assert_eq!(said.code, 14);
    insta::assert_snapshot!(said.stderr, @"
    delugefs: the disk at LAB/a is running already
    Hint: `delugefs status` shows it; `delugefs mount DIR` mounts it
    ");
    let said = lab.says(&["run", "work", "b", "--create"]);
    assert_eq!(said.code, 12);
    insta::assert_snapshot!(said.stderr, @"
    delugefs: this host's supervisor runs cluster home, not work
    Hint: give another cluster a supervisor of its own: --run-dir DIR --state-dir DIR
    ");
    let said = lab.says(&["run", "home", "b", "--create", "--mount", "m"]);
    assert_eq!(said.code, 14);
    insta::assert_snapshot!(said.stderr, @"
    delugefs: LAB/m is mounted already
    Hint: `delugefs umount LAB/m` unmounts it; or choose another folder
    ");
    assert_eq!(lab.status(), before);
    terminate(run);
    assert_eq!(lab.wait(run), 0);
}

#[test]
fn a_host_that_lost_its_first_disk_runs_from_its_second() {
    let mut lab = Lab::new();
    let run = lab.run(&["--create"]);
    assert_eq!(lab.says(&["disk", "add", "b", "--create"]).code, 0);
    terminate(run);
    assert_eq!(lab.wait(run), 0);
    fs::rename(lab.path("a"), lab.path("a.lost")).unwrap();
    let from = |lab: &mut Lab, log: &str| {
        let run = lab.spawn(lab.delugefs(&["run", "home", "b", "--state-dir", "s"]), log);
        lab.wait_for("the second disk", || lab.out(log) == "ready\n");
        run
    };
    // More than once: it stays remembered.
    for log in ["run1", "run2"] {
        let run = from(&mut lab, log);
        let said = lab.says(&["run", "home", "b"]);
        assert_eq!((said.code, said.stdout.as_str()), (14, ""), "{said:?}");
        terminate(run);
        assert_eq!(lab.wait(run), 0, "{}", lab.logs());
        lab.assert_clean();
    }
    // Beside a supervisor that was there the disk goes on.
    lab.supervisor("sup", &["--no-mdns"]);
    for log in ["run3", "run4"] {
        let run = from(&mut lab, log);
        terminate(run);
        assert_eq!(lab.wait(run), 0, "{}", lab.logs());
        assert_eq!(lab.status()["disks"][0]["state"], "up");
    }
}

#[test]
fn another_cluster_gets_directories_of_its_own() {
    let mut lab = Lab::new();
    let run = lab.run(&["--create"]);
    assert_eq!(lab.says(&["disk", "add", "b", "--create"]).code, 0);
    fs::create_dir(lab.path("c")).unwrap();
    let other = |lab: &Lab, state_dir: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_delugefs"));
        lab.hermetic(&mut command);
        command.args(["--run-dir", "r2", "run", "work", "c", "--create", "--no-mdns", "--state-dir", state_dir]);
        command
    };
    // A run directory alone is not enough: the key, the members and what is remembered are the other supervisor's.
    let before = fs::read_to_string(lab.path("s/added.toml")).unwrap();
    let said = lab.said(other(&lab, "s").output().unwrap());
    let pid = lab.status()["pid"].to_string();
    assert_eq!(said.code, 14, "{said:?}");
    let ours = |said: &Said| {
        let lines = said.stderr.lines().filter(|line| line.starts_with("delugefs") || line.starts_with("Hint: "));
        lines.collect::<Vec<_>>().join("\n").replace(&pid, "PID")
    };
    insta::assert_snapshot!(ours(&said), @"
    delugefs-supervisor: a supervisor (pid PID) of another run directory keeps its state in s
    Hint: `delugefs status` asks it; or give this one a directory of its own for that too: --state-dir DIR
    ");
    assert_eq!(fs::read_to_string(lab.path("s/added.toml")).unwrap(), before);
    // Who only asks is answered.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_delugefs-supervisor"));
    lab.hermetic(&mut command);
    let said = lab.said(command.args(["--state-dir", "s", "--found", "work"]).output().unwrap());
    assert_eq!((said.code, said.stdout.trim().len()), (0, 32), "{said:?}");
    terminate(run);
    assert_eq!(lab.wait(run), 0);

    // With the supervisor gone, what it remembers is in the way still. The hint helps.
    let said = lab.said(other(&lab, "s").output().unwrap());
    assert_eq!(said.code, 12, "{said:?}");
    insta::assert_snapshot!(ours(&said), @"
    delugefs: this host's supervisor runs cluster home, not work
    Hint: give another cluster a supervisor of its own: --run-dir DIR --state-dir DIR
    ");
    let run = lab.run(&[]);
    let beside = lab.spawn(other(&lab, "s2"), "run2");
    lab.wait_for("the other cluster", || lab.out("run2") == "ready\n");
    for pid in [beside, run] {
        terminate(pid);
        assert_eq!(lab.wait(pid), 0, "{}", lab.logs());
    }
    lab.assert_clean();
}

#[test]
fn beside_a_supervisor_that_was_there_it_takes_away_only_its_own() {
    let mut lab = Lab::new();
    lab.supervisor("sup", &["--no-mdns"]);
    assert_eq!(lab.says(&["disk", "add", "b", "--create"]).code, 2, "of which cluster?");
    let run = lab.run(&["--create", "--mount", "m"]);
    assert_eq!(lab.says(&["disk", "add", "b", "--create"]).code, 0);
    terminate(run);
    assert_eq!(lab.wait(run), 0);
    let status = lab.status();
    assert_eq!(status["disks"].as_array().unwrap().len(), 1);
    assert_eq!(status["disks"][0]["state"], "up");
    assert_eq!(status["mounts"].as_array().unwrap().len(), 0);
}

#[test]
fn beside_a_supervisor_that_was_there_it_ends_in_peace_when_others_take_away_what_is_its() {
    let mut lab = Lab::new();
    lab.supervisor("sup", &["--no-mdns"]);
    let run = lab.run(&["--create", "--mount", "m"]);
    assert_eq!(lab.says(&["umount", "m"]).code, 0);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
    assert_eq!(lab.status()["disks"].as_array().unwrap().len(), 0, "its disk is stopped too");
    let run = lab.run(&[]);
    assert_eq!(lab.says(&["disk", "remove", "a"]).code, 0);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
}

#[test]
fn a_child_that_died_for_good_ends_it_with_that_childs_code() {
    let mut lab = Lab::new();
    let run = lab.run(&["--create", "--mount", "m"]);
    lab.manners("worker", "exit-before-ready 13");
    kill_hard(pid_of(&lab.status()["disks"][0]).unwrap());
    assert_eq!(lab.wait(run), 13);
    let err = lab.err("run");
    assert!(err.ends_with("delugefs: told to fail\nHint: tell it to work\n"), "{err}");
    lab.assert_clean();
}

#[test]
fn an_unmount_by_hand_ends_it_in_peace() {
    let mut lab = Lab::new();
    let run = lab.run(&["--create", "--mount", "m"]);
    terminate(pid_of(&lab.status()["mounts"][0]).unwrap());
    assert_eq!(lab.wait(run), 0);
    assert!(lab.err("run").contains("delugefs: LAB/m was unmounted by hand\n"), "{}", lab.err("run"));
    lab.assert_clean();
}

#[test]
fn a_killed_supervisor_is_started_again_and_finds_the_others_alive() {
    let mut lab = Lab::new();
    if !lab.can_mount() {
        return;
    }
    let run = lab.run(&["--create", "--mount", "m"]);
    let before = lab.status();
    kill_hard(pid_of(&before).unwrap());
    let after = lab.wait_for_status("the next supervisor", |status| {
        status["pid"] != before["pid"] && status["disks"][0]["state"] == "up" && status["mounts"][0]["state"] == "up"
    });
    assert_eq!(after["disks"][0]["pid"], before["disks"][0]["pid"], "the worker went on");
    assert_eq!(after["mounts"][0]["pid"], before["mounts"][0]["pid"], "and the mount");
    terminate(run);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
    assert_eq!(lab.out("run"), "ready\n", "said once");
    lab.assert_clean();
}

#[test]
fn asked_to_stop_just_when_the_supervisor_was_killed_it_still_stops_everything() {
    let mut lab = Lab::new();
    if !lab.can_mount() {
        return;
    }
    let run = lab.run(&["--create", "--mount", "m"]);
    kill_hard(pid_of(&lab.status()).unwrap());
    terminate(run);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
    lab.assert_clean();
}

#[test]
fn asked_to_stop_while_a_disk_starts_it_leaves_nothing() {
    let mut lab = Lab::new();
    lab.manners("worker", "never-ready");
    let run = lab.spawn(lab.delugefs(&["run", "home", "a", "--create", "--state-dir", "s"]), "run");
    lab.wait_for_status("the worker", |status| status["disks"][0]["pid"].is_u64());
    assert_eq!(lab.status()["disks"][0]["state"], "starting");
    terminate(run);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
    lab.assert_clean();
    assert_eq!(lab.out("run"), "");
}

#[test]
fn when_the_supervisor_of_others_dies_it_says_so_and_can_be_repeated() {
    let mut lab = Lab::new();
    if !lab.can_mount() {
        return;
    }
    let sup = lab.supervisor("sup", &["--no-mdns"]);
    let run = lab.run(&["--create", "--mount", "m"]);
    let before = pid_of(&lab.status()["disks"][0]);
    kill_hard(sup);
    assert_eq!(lab.wait(run), 17);
    insta::assert_snapshot!(lab.err("run"), @"
    delugefs: the supervisor ended; disks and mounts go on without it
    Hint: the same command again finds them
    ");
    let run = lab.run(&["--mount", "m"]);
    assert_eq!(
        (pid_of(&lab.status()["disks"][0]), lab.status()["disks"][0]["by_hand"].as_bool()),
        (before, Some(false))
    );
    terminate(run);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
}

#[test]
fn a_state_directory_is_made_and_a_run_directory_of_others_is_refused() {
    let mut lab = Lab::new();
    let run = lab.run(&["--create"]);
    assert!(lab.path("s").is_dir());
    terminate(run);
    assert_eq!(lab.wait(run), 0);
    fs::create_dir(lab.path("open")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(lab.path("open"), fs::Permissions::from_mode(0o777)).unwrap();
    let said = lab.says(&["--run-dir", "open", "run", "home", "a"]);
    assert_eq!(said.code, 2, "--run-dir was given twice");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_delugefs"));
    lab.hermetic(&mut command);
    let said = lab.said(command.args(["--run-dir", "open", "run", "home", "a"]).output().unwrap());
    assert_eq!(said.code, 16);
    insta::assert_snapshot!(said.stderr, @"delugefs-supervisor: cannot use the directory: open may be written by others; run `chmod go-w open`");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_delugefs"));
    lab.hermetic(&mut command);
    fs::write(lab.path("file"), "").unwrap();
    let said = lab.said(command.args(["--run-dir", "file/r", "run", "home", "a"]).output().unwrap());
    assert_eq!(said.code, 16);
    insta::assert_snapshot!(said.stderr, @"
    delugefs-supervisor: cannot use the directory file/r: Not a directory (os error 20)
    Hint: --run-dir DIR names another one; one that cannot be written to needs `chown` or `chmod`
    ");
}

/// A host with a mount and two disks, the first of which is then unplugged.
fn without_its_first_disk(lab: &mut Lab) -> u32 {
    let run = lab.run(&["--create", "--mount", "m"]);
    assert_eq!(lab.says(&["disk", "add", "b", "--create"]).code, 0);
    let before = lab.status();
    fs::rename(lab.path("a"), lab.path("a.away")).unwrap();
    kill_hard(pid_of(&before["disks"][0]).unwrap());
    lab.wait_for_status("the disk to be given up", |status| status["disks"][0]["state"] == "stopped");
    lab.wait_for("it to be said", || lab.err("run").contains("goes on with the other disks of this host"));
    run
}

#[test]
fn when_its_disk_is_unplugged_it_goes_on_with_the_others_and_takes_it_again() {
    let mut lab = Lab::new();
    let run = without_its_first_disk(&mut lab);
    assert!(lab.err("run").contains("delugefs: LAB/a does not exist; goes on"), "{}", lab.err("run"));
    let status = lab.status();
    assert_eq!((&status["disks"][1]["state"], &status["mounts"][0]["state"]), (&"up".into(), &"up".into()));
    // A mount that has to be started again shows the other disk.
    kill_hard(pid_of(&status["mounts"][0]).unwrap());
    let restarted =
        |status: &serde_json::Value| status["mounts"][0]["restarts"] == 1 && status["mounts"][0]["state"] == "up";
    lab.wait_for_status("the mount to be started again", restarted);
    fs::rename(lab.path("a.away"), lab.path("a")).unwrap();
    lab.wait_for("it to be back", || lab.err("run").contains("delugefs: the disk at LAB/a is back\n"));
    assert_eq!(lab.status()["problems"].as_array().unwrap().len(), 0);
    terminate(run);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
    lab.assert_clean();
}

#[test]
fn without_its_disk_it_ends_when_the_last_of_the_others_goes_too() {
    let mut lab = Lab::new();
    let run = without_its_first_disk(&mut lab);
    // The disk that is away is not waited for any more, as `status` advises: nothing changes.
    assert_eq!(lab.says(&["umount", "m"]).code, 0);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
    lab.assert_clean();
    fs::rename(lab.path("a.away"), lab.path("a")).unwrap();
    fs::create_dir_all(lab.path("m")).unwrap();
    let run = lab.run(&["--mount", "m"]);
    lab.wait_for_status("both disks", |status| {
        status["disks"][0]["state"] == "up" && status["disks"][1]["state"] == "up"
    });
    for (folder, at) in [("a", 1), ("b", 0)] {
        let status = lab.status();
        let at = if status["disks"][0]["root"].as_str().unwrap().ends_with(folder) { 0 } else { at };
        fs::rename(lab.path(folder), lab.path(&format!("{folder}.away"))).unwrap();
        kill_hard(pid_of(&status["disks"][at]).unwrap());
        if folder == "a" {
            lab.wait_for("it to be said", || lab.err("run").contains("goes on with the other disks of this host"));
        }
    }
    assert_eq!(lab.wait(run), 10, "{}", lab.logs());
    lab.assert_clean();
}

#[test]
fn a_supervisor_that_dies_while_the_disk_is_away_is_started_again_and_waits_for_it() {
    let mut lab = Lab::new();
    if !lab.can_mount() {
        return;
    }
    let run = without_its_first_disk(&mut lab);
    let before = lab.status();
    kill_hard(pid_of(&before).unwrap());
    let after = lab.wait_for_status("the next supervisor", |status| {
        let disks = status["disks"].as_array().cloned().unwrap_or_default();
        let states: Vec<_> = disks.iter().map(|disk| disk["state"].as_str().unwrap_or_default()).collect();
        status["pid"] != before["pid"]
            && states.len() == 2
            && states.contains(&"up")
            && states.contains(&"stopped")
            && status["mounts"][0]["state"] == "up"
    });
    assert_eq!(after["mounts"][0]["pid"], before["mounts"][0]["pid"], "the mount went on");
    fs::rename(lab.path("a.away"), lab.path("a")).unwrap();
    lab.wait_for("it to be back", || lab.err("run").contains("delugefs: the disk at LAB/a is back\n"));
    terminate(run);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
    assert_eq!(lab.out("run"), "ready\n", "said once");
    lab.assert_clean();
}

#[test]
fn a_disk_that_is_not_there_at_the_start_is_said_and_what_is_there() {
    let mut lab = Lab::new();
    let run = without_its_first_disk(&mut lab);
    terminate(run);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
    let hint = |said: &Said| {
        let lines = said.stderr.lines().filter(|line| line.starts_with("delugefs: ") || line.starts_with("Hint: "));
        lines.collect::<Vec<_>>().join("\n")
    };
    let said = lab.says(&["run", "home", "a", "--state-dir", "s", "--mount", "m"]);
    assert_eq!(said.code, 10);
    insta::assert_snapshot!(hint(&said), @"
    delugefs: LAB/a does not exist
    Hint: make the folder first; without it this host runs from its other disks by `delugefs run home LAB/b --mount LAB/m --state-dir s`
    ");
    lab.assert_clean();
    lab.supervisor("sup", &["--no-mdns"]);
    let said = lab.says(&["run", "home", "a", "--mount", "m"]);
    assert_eq!(said.code, 10);
    insta::assert_snapshot!(hint(&said), @"
    delugefs: LAB/a does not exist
    Hint: make the folder first; `delugefs mount LAB/m` mounts another disk of this host
    ");
    assert_eq!(lab.status()["disks"].as_array().unwrap().len(), 1, "it is not waited for");
}

#[test]
fn how_an_added_disk_takes_part_in_the_network_is_the_same_at_the_next_start() {
    let mut lab = Lab::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let flags = format!("--listen 127.0.0.1 --btport {port} --site attic --lazy");
    let add: Vec<&str> = ["disk", "add", "b", "--create"].into_iter().chain(flags.split(' ')).collect();
    let started = |lab: &Lab| {
        let log = lab.err("run");
        let mut starts = log.lines().filter(|line| line.contains("fake worker started with --root LAB/b "));
        starts.next_back().unwrap_or_default().to_owned()
    };
    let run = lab.run(&["--create"]);
    let said = lab.says(&["disk", "add", "b", "--create", "--listen", "localhost"]);
    assert_eq!(said.code, 2, "{said:?}");
    let said = lab.says(&add);
    assert_eq!(said.code, 0, "{said:?}");
    lab.wait_for("the worker's start", || started(&lab).contains(&flags));
    terminate(run);
    assert_eq!(lab.wait(run), 0);
    let run = lab.run(&[]);
    lab.wait_for("the worker's start", || started(&lab).contains(&flags));
    // While it is served, too; what is not given stays.
    let said = lab.says(&["disk", "add", "b", "--no-lazy", "--site", ""]);
    assert_eq!(said.code, 0, "{said:?}");
    let is_left = |start: &str| start.contains(&port) && !start.contains("--site") && !start.contains("--lazy");
    lab.wait_for("the worker's start", || is_left(&started(&lab)));
    assert_eq!(lab.says(&["disk", "add", "b"]).code, 14, "nothing new");
    terminate(run);
    assert_eq!(lab.wait(run), 0);
    let run = lab.run(&[]);
    lab.wait_for("the worker's start", || is_left(&started(&lab)));
    terminate(run);
    assert_eq!(lab.wait(run), 0);
    lab.assert_clean();
}

#[test]
fn a_hint_can_be_typed_as_it_is() {
    let mut lab = Lab::new();
    let run_dir = lab.run_dir().display().to_string();
    let said = |lab: &Lab, arguments: &[&str]| {
        let output = lab.delugefs(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let is_said = |text: &str, command: &str| {
        let command = format!("`delugefs --run-dir {run_dir} {command}`");
        assert!(text.contains(&command), "{command} is not in {text}");
    };
    is_said(&said(&lab, &["status"]), "run CLUSTER ROOT --state-dir DIR");
    let run = lab.run(&["--create", "--mount", "m"]);
    is_said(&said(&lab, &["run", "home", "a"]), "status");
    is_said(&said(&lab, &["umount", "/nowhere"]), "status");
    assert_eq!(lab.says(&["disk", "add", "b", "--create"]).code, 0);
    fs::rename(lab.path("b"), lab.path("b.away")).unwrap();
    let disks = lab.status()["disks"].as_array().cloned().unwrap();
    kill_hard(pid_of(&disks[1]).unwrap());
    lab.wait_for_status("the disk to be given up", |status| status["disks"][1]["state"] == "stopped");
    is_said(&said(&lab, &["status", "-x"]), &format!("disk remove {}", lab.path("b").display()));
    terminate(run);
    assert_eq!(lab.wait(run), 0);
}
