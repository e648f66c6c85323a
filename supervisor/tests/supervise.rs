//! The supervisor as a watcher: restarts, adoption by configuration, orderly and disorderly ends.

use std::fs;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::lab::{Lab, kill_hard, pid_of, terminate};

#[test]
fn crashed_processes_come_back() {
    let mut lab = Lab::new();
    let sup = lab.supervisor("sup", &["--no-mdns"]);
    lab.make_disk();
    assert_eq!(lab.says(&["disk", "add", "a"]).code, 0);
    assert_eq!(lab.says(&["mount", "m"]).code, 0);
    let before = lab.status();
    kill_hard(pid_of(&before["disks"][0]).unwrap());
    kill_hard(pid_of(&before["mounts"][0]).unwrap());
    let after = lab.wait_for_status("both to come back", |status| {
        let back = |what: &str| {
            status[what][0]["state"] == "up"
                && status[what][0]["pid"] != before[what][0]["pid"]
                && status[what][0]["restarts"].as_u64() >= Some(1)
        };
        back("disks") && back("mounts")
    });
    assert_eq!(after["disks"][0]["last_error"]["message"], "delugefs-diskworker was killed by SIGKILL");
    assert_eq!(after["problems"].as_array().unwrap().len(), 0, "what is up again is no problem");
    assert!(!lab.says(&["disks"]).stdout.contains("last error"), "{}", lab.says(&["disks"]).stdout);
    assert!(lab.err("sup").contains("] fake worker started with --root LAB/a"), "{}", lab.err("sup"));
    terminate(sup);
    assert_eq!(lab.wait(sup), 0);
    lab.assert_clean();
}

#[test]
fn what_cannot_be_restarted_is_reported() {
    let mut lab = Lab::new();
    lab.supervisor("sup", &["--no-mdns"]);
    lab.make_disk();
    assert_eq!(lab.says(&["disk", "add", "a"]).code, 0);
    assert_eq!(lab.says(&["status", "-x"]).code, 0);
    lab.manners("worker", "exit-before-ready 13");
    kill_hard(pid_of(&lab.status()["disks"][0]).unwrap());
    let status = lab.wait_for_status("the disk to be given up", |status| status["disks"][0]["state"] == "stopped");
    assert_eq!(status["disks"][0]["last_error"]["exit"], 13);
    let said = lab.says(&["status", "-x"]);
    assert_eq!(said.code, 20);
    assert!(
        said.stdout.ends_with(" (LAB/a) is stopped: told to fail; `delugefs disk add LAB/a` starts it again\n"),
        "{}",
        said.stdout
    );
    // Repaired, it goes on by command.
    lab.manners("worker", "");
    assert_eq!(lab.says(&["disk", "add", "a"]).code, 0);
    assert_eq!(lab.says(&["status", "-x"]).stdout, "");
}

#[test]
fn trouble_of_a_running_disk_is_a_problem() {
    let mut lab = Lab::new();
    lab.run(&["--create"]);
    lab.manners("worker", "read-only");
    let said = lab.says(&["status", "-x"]);
    assert_eq!(said.code, 20);
    assert!(said.stdout.ends_with(" (LAB/a) is read-only: the disk is full\n"), "{}", said.stdout);
    lab.manners("worker", "silent");
    let said = lab.says(&["status", "-x", "--json"]);
    assert_eq!(said.code, 20);
    assert!(said.stdout.contains(" (LAB/a) does not answer\""), "{}", said.stdout);
}

/// A full or failing disk may have an old catalog, and can note nothing.
#[test]
fn a_disk_that_takes_no_changes_is_asked_last() {
    let mut lab = Lab::new();
    lab.manners("worker", "member");
    lab.run(&["--create"]);
    let said = lab.says(&["disk", "add", "b", "--create"]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    let status = lab.wait_for_status("both disks", |status| status["disks"][1]["state"] == "up");
    let disk = |at: usize| status["disks"][at]["disk_id"].as_str().unwrap();
    let heard = |what: &str| ["a", "b"].map(|folder| lab.err("run").matches(&format!("LAB/{folder} {what}")).count());
    lab.wait_for("the policy to read what there is", || heard("says all contents") == [1, 0]);
    assert_eq!(lab.says(&["disk", "drain", disk(1)]).code, 0);
    lab.wait_for("the log", || heard("is told of a mark") == [1, 0]);

    // As `disk add` and `disk remove` name it.
    for (folder, code) in [("./nothing", 2), ("./b", 0)] {
        assert_eq!(lab.says(&["disk", "drain", folder]).code, code, "{folder}");
    }
    lab.wait_for("the log", || heard("is told of a mark") == [2, 0]);

    lab.manners("worker", "member\nrefuses a");
    lab.wait_for("the policy to look elsewhere", || heard("says all contents") == [1, 1]);
    assert_eq!(lab.says(&["disk", "drain", disk(0)]).code, 0);
    lab.wait_for("the log", || heard("is told of a mark") == [2, 1]);

    // One that fails in this moment is passed over too.
    lab.manners("worker", "member\nno-marks a");
    assert_eq!(lab.says(&["disk", "drain", disk(0)]).code, 0);
    lab.wait_for("the log", || heard("is told of a mark") == [3, 2]);
    lab.manners("worker", "member\nno-marks a\nrefuses b");
    let said = lab.says(&["disk", "drain", disk(0)]);
    assert!(said.code != 0 && said.stderr.contains("the disk is full"), "{said:?}");
}

#[test]
fn one_supervisor_for_a_run_directory() {
    let mut lab = Lab::new();
    let sup = lab.supervisor("sup", &[]);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_delugefs-supervisor"));
    lab.hermetic(&mut command);
    let said = lab.said(command.args(["--run-dir", "r", "--state-dir", "s2"]).output().unwrap());
    assert_eq!(said.code, 14);
    let stderr = said.stderr.replace(&sup.to_string(), "PID");
    insta::assert_snapshot!(stderr, @"
    delugefs-supervisor: a supervisor (pid PID) has LAB/r
    Hint: `delugefs --run-dir r status` asks it, `delugefs --run-dir r stop` ends it; --run-dir DIR --state-dir DIR runs another one beside it
    ");
    // systemd-tmpfiles leaves a directory alone that somebody has a lock on.
    let lock = || Flock::lock(fs::File::open(lab.path("r")).unwrap(), FlockArg::LockExclusiveNonblock);
    assert_eq!(lock().unwrap_err().1, Errno::EWOULDBLOCK);
    assert_eq!(lab.says(&["stop"]).code, 0);
    assert_eq!(lab.wait(sup), 0);
    lab.assert_clean();
}

#[test]
fn after_stop_the_next_one_can_start_at_once() {
    let mut lab = Lab::new();
    let mut last = lab.supervisor("sup0", &[]);
    for n in 1..=5 {
        assert_eq!(lab.says(&["stop"]).code, 0);
        let next = lab.supervisor(&format!("sup{n}"), &[]);
        assert_eq!(lab.wait(last), 0);
        last = next;
    }
    terminate(last);
    assert_eq!(lab.wait(last), 0);
}

#[test]
fn the_configuration_and_what_was_added_are_started() {
    let mut lab = Lab::new();
    let run = lab.run(&["--create"]);
    terminate(run);
    assert_eq!(lab.wait(run), 0);
    let config = format!("cluster = 'home'\n[[disk]]\nroot = '{}'\nreserve_bytes = 7\n", lab.path("a").display());
    fs::write(lab.path("delugefs.toml"), config).unwrap();
    let sup = lab.supervisor("sup", &["--config", "delugefs.toml"]);
    lab.wait_for_status("the configured disk", |status| status["disks"][0]["state"] == "up");
    assert_eq!(lab.says(&["mount", "m"]).code, 0);
    assert_eq!(lab.says(&["mount", "n"]).code, 0);
    assert_eq!(lab.says(&["umount", "n"]).code, 0);
    terminate(sup);
    assert_eq!(lab.wait(sup), 0);
    assert!(lab.err("sup").contains("--reserve-bytes 7 "), "{}", lab.err("sup"));

    let sup = lab.supervisor("sup2", &["--config", "delugefs.toml"]);
    let status = lab.wait_for_status("the remembered mount", |status| status["mounts"][0]["state"] == "up");
    assert_eq!(status["mounts"].as_array().unwrap().len(), 1);
    assert_eq!(lab.says(&["umount", "m"]).code, 0);
    terminate(sup);
    assert_eq!(lab.wait(sup), 0);
    let text = fs::read_to_string(lab.path("s/added.toml")).unwrap();
    assert!(!text.contains("/m"), "{text}");
}

#[test]
fn a_bad_configuration_is_explained() {
    let lab = Lab::new();
    let start = |text: &str| {
        fs::write(lab.path("delugefs.toml"), text).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_delugefs-supervisor"));
        lab.hermetic(&mut command);
        command.args(["--run-dir", "r", "--state-dir", "s", "--config", "delugefs.toml"]);
        let said = lab.said(command.output().unwrap());
        assert_eq!(said.code, 2);
        said.stderr.lines().filter(|line| !line.contains("INFO")).collect::<Vec<_>>().join("\n")
    };
    let typo = start("[[disk]]\nroot = '/x'\nlazzy = true\n");
    assert!(typo.contains("unknown field `lazzy`"), "{typo}");
    insta::assert_snapshot!(start("[[disk]]\nroot = '/x'\n"), @r#"
    delugefs-supervisor: the configuration has disks, but does not say of which cluster
    Hint: add a line `cluster = "NAME"` at its top
    "#);
}

#[test]
fn a_process_that_does_not_stop_is_killed() {
    let mut lab = Lab::new();
    let mount = if lab.can_mount() { "mount\n" } else { "" };
    lab.manners("frontend", &format!("{mount}stubborn\n"));
    let run = lab.run(&["--create", "--mount", "m"]);
    terminate(run);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
    lab.assert_clean();
    assert_eq!(
        delugefs_supervisor::sys::delugefs_at(&lab.path("m")).unwrap(),
        None,
        "a killed one's mount is detached"
    );
}

#[test]
fn a_missing_program_is_explained() {
    let lab = Lab::new();
    fs::remove_file(lab.path("lib/delugefs-diskworker")).unwrap();
    let said = lab.says(&["run", "home", "a", "--create", "--state-dir", "s"]);
    assert_eq!(said.code, 1);
    let last: Vec<_> =
        said.stderr.lines().filter(|line| line.starts_with("delugefs: ") || line.starts_with("Hint")).collect();
    insta::assert_snapshot!(last.join("\n"), @"
    delugefs: cannot start delugefs-diskworker: No such file or directory (os error 2)
    Hint: install it beside delugefs-supervisor, or say where it is in DELUGEFS_LIBEXEC
    ");
}

/// Two clusters that were founded under one name have different files.
#[test]
fn a_disk_of_another_cluster_with_the_same_name_is_refused() {
    let mut lab = Lab::new();
    lab.manners("worker", "member");
    let run = lab.run(&["--create"]);
    lab.make_disk_of_another_home("b");
    let said = lab.says(&["disk", "add", "b"]);
    assert_eq!(said.code, 12);
    insta::assert_snapshot!(said.stderr, @"
    delugefs: the cluster of the disk at LAB/b has the same name, home, but is another cluster
    Hint: give it a supervisor of its own: `delugefs --run-dir DIR run home LAB/b --state-dir DIR`
    ");
    // One that is started by hand makes itself known.
    let mut command = std::process::Command::new(lab.path("lib/delugefs-diskworker"));
    lab.hermetic(&mut command);
    command.args(["--root", lab.path("b").to_str().unwrap(), "--cluster", "home"]).arg("--run-dir").arg(lab.run_dir());
    let by_hand = lab.spawn(command, "run2");
    lab.wait_for("it to be refused", || lab.err("run2").contains("cannot register: the cluster of the disk at LAB/b"));
    let status = lab.wait_for_status("the policy to look", |status| status["replication"].is_object());
    assert_eq!(status["disks"].as_array().unwrap().len(), 1);
    assert_eq!(status["replication"]["disks"].as_array().unwrap().len(), 1);
    for pid in [by_hand, run] {
        terminate(pid);
        assert_eq!(lab.wait(pid), 0, "{}", lab.logs());
    }

    // Both in the configuration: the first that can be read says which cluster this is.
    let disk = |folder| format!("[[disk]]\nroot = '{}'\n", lab.path(folder).display());
    fs::write(lab.path("delugefs.toml"), ["cluster = 'home'\n", &disk("a"), &disk("b")].concat()).unwrap();
    let sup = lab.supervisor("sup", &["--config", "delugefs.toml"]);
    let status = lab.wait_for_status("the first disk", |status| status["disks"][0]["state"] == "up");
    assert_eq!(status["disks"][1]["state"], "stopped");
    assert_eq!(lab.says(&["disk", "add", "b"]).code, 12);
    let said = lab.says(&["status", "-x"]);
    assert!(said.stdout.ends_with("`delugefs disk remove LAB/b` takes it from this supervisor\n"), "{}", said.stdout);
    assert_eq!(lab.says(&["disk", "remove", "b"]).code, 0);
    // The policy may not have looked at what there is yet.
    lab.wait_for("nothing to be wrong", || lab.says(&["status", "-x"]).code == 0);
    terminate(sup);
    assert_eq!(lab.wait(sup), 0);
    lab.assert_clean();
}

/// A pipe takes the place of a file on a disk that hangs.
#[test]
fn a_disk_whose_folder_hangs_holds_up_neither_the_others_nor_the_end() {
    let mut lab = Lab::new();
    lab.manners("worker", "member\nport 4711");
    let hang = |lab: &Lab, folder: &str| {
        let pipe = lab.path(&format!("{folder}/pipe"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::rename(pipe, lab.path(&format!("{folder}/disk.toml"))).unwrap();
    };
    let run = lab.run(&["--create"]);
    assert_eq!(lab.says(&["disk", "add", "b", "--create"]).code, 0);
    lab.wait_for_status("both", |status| status["disks"][1]["worker"].is_object());
    hang(&lab, "a");
    for (log, arguments) in
        [("run2", &["disk", "remove", "b"][..]), ("sup", &["disk", "add", "b"]), ("sup2", &["invite"])]
    {
        let pid = lab.spawn(lab.delugefs(arguments), log);
        assert_eq!(lab.wait(pid), 0, "{arguments:?} {}", lab.logs());
    }
    terminate(run);
    assert_eq!(lab.wait(run), 0, "{}", lab.logs());
    lab.assert_clean();

    let disk = |folder| format!("[[disk]]\nroot = '{}'\n", lab.path(folder).display());
    fs::write(lab.path("delugefs.toml"), ["cluster = 'home'\n", &disk("a"), &disk("b")].concat()).unwrap();
    let sup = lab.supervisor("sup", &["--config", "delugefs.toml"]);
    lab.wait_for_status("the other disk", |status| status["disks"][1]["state"] == "up");
    terminate(sup);
    assert_eq!(lab.wait(sup), 0, "{}", lab.logs());
    lab.assert_clean();
}

#[test]
fn a_mount_of_somebody_who_is_gone_keeps_nothing_else_from_starting() {
    let mut lab = Lab::new();
    let run = lab.run(&["--create"]);
    terminate(run);
    assert_eq!(lab.wait(run), 0);
    let added = format!(
        "cluster = 'home'\n[[disk]]\nroot = '{}'\n[[mount]]\ndir = '{}'\nuser = 'no such user'\n[[mount]]\ndir = '{}'\n",
        lab.path("a").display(),
        lab.path("m").display(),
        lab.path("n").display(),
    );
    fs::write(lab.path("s/added.toml"), added).unwrap();
    lab.supervisor("sup", &["--no-mdns"]);
    let status = lab.wait_for_status("the others", |status| {
        status["disks"][0]["state"] == "up" && status["mounts"][1]["state"] == "up"
    });
    assert_eq!(
        (&status["mounts"][0]["state"], &status["mounts"][0]["last_error"]["exit"]),
        (&"stopped".into(), &2.into())
    );
    let said = lab.says(&["status", "-x"]);
    insta::assert_snapshot!(said.stdout, @r#"mount LAB/m is stopped: there is no user "no such user" on this machine; `delugefs umount LAB/m` forgets the mount"#);
    assert_eq!(lab.says(&["umount", "m"]).code, 0);
    assert_eq!(lab.says(&["status", "-x"]).code, 0);
    assert!(!fs::read_to_string(lab.path("s/added.toml")).unwrap().contains("no such user"));
}

/// A folder in the place of the file that is written first: as if the file system of the state directory were full.
#[test]
fn what_cannot_be_remembered_is_said_and_remembered_later() {
    let mut lab = Lab::new();
    lab.run(&["--create"]);
    let full = lab.path("s/added.toml.new");
    fs::create_dir(&full).unwrap();
    let said = lab.says(&["disk", "add", "b", "--create"]);
    assert_eq!(said.code, 1);
    insta::assert_snapshot!(said.stderr, @"
    delugefs: it is done, but would not be remembered at the next start: cannot write LAB/s/added.toml: Is a directory (os error 21)
    Hint: make room there; it is tried again every few seconds, and `delugefs status -x` says so until it is written
    ");
    assert_eq!(lab.status()["disks"][1]["state"], "up");
    let said = lab.says(&["status", "-x"]);
    assert!(said.code == 20 && said.stdout.contains("what was added or removed is not remembered"), "{said:?}");
    assert!(!lab.path("s/added.toml").exists());
    fs::remove_dir(&full).unwrap();
    lab.wait_for("it to be written", || lab.says(&["status", "-x"]).code == 0);
    assert!(fs::read_to_string(lab.path("s/added.toml")).unwrap().contains("/b"));
    fs::create_dir(&full).unwrap();
    assert_eq!(lab.says(&["disk", "remove", "b"]).code, 1, "it would come back");
    fs::remove_dir(&full).unwrap();
    lab.wait_for("it to be written", || lab.says(&["status", "-x"]).code == 0);
    assert!(!fs::read_to_string(lab.path("s/added.toml")).unwrap().contains("/b"));
}
