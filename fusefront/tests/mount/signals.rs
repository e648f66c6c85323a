#![allow(unsafe_code)] // signals to threads have no safe wrapper
//! Programs that get signals while they wait. What signals there are is looked up on Linux alone.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use delugefs_proto::local_pb::Changed;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction, signal};
use nix::unistd::Pid;

use super::{Mounted, wait_until};

extern "C" fn handler(_: libc::c_int) {}

/// As git and others have it for what they say of their progress.
fn catch_alarms() {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGALRM, &action) }.unwrap();
}

/// A worker that hangs keeps no program that is killed.
#[test]
fn who_waits_for_the_worker_can_be_killed() {
    let mounted = Mounted::start();
    fs::create_dir(mounted.path("d")).unwrap();
    fs::write(mounted.path("f"), "x").unwrap();
    wait_until("all are sealed", || mounted.worker.open_handles() == 0);
    let ino = fs::metadata(mounted.path("d")).unwrap().ino();
    for (op, command, path) in [("mkdir", "mkdir", "new"), ("listxattr", "getfattr", "f"), ("getattr", "stat", "d")] {
        mounted.worker.be_silent_to(op);
        let before = mounted.worker.count(op);
        let start = || Command::new(command).arg(mounted.path(path)).stdout(Stdio::null()).spawn().unwrap();
        let mut child = start();
        wait_until("it waits", || {
            if mounted.worker.count(op) > before {
                return true;
            }
            // The kernel knows the attributes until it has heard that they are others.
            if op == "getattr" && child.try_wait().unwrap().is_some() {
                mounted.worker.elsewhere(|_| vec![Changed { dir: ino, names: vec![], inos: vec![] }]);
                child = start();
            }
            false
        });
        child.kill().unwrap();
        wait_until("it is let go", || child.try_wait().unwrap().is_some());
        mounted.worker.answer();
    }
    wait_until("it is made after all", || mounted.path("new").exists());
}

/// What it reads was here when it was opened, and has another content by now, which does not come.
#[test]
fn a_person_stops_a_program_that_reads_what_does_not_come() {
    let mounted = Mounted::start();
    fs::write(mounted.path("f"), vec![7; 10_000]).unwrap();
    wait_until("it is sealed", || mounted.worker.open_handles() == 0);
    let reader = fs::File::open(mounted.path("f")).unwrap();
    let ino = reader.metadata().unwrap().ino();
    mounted.worker.elsewhere(|tree| {
        tree.replace(ino, &[8; 20_000]);
        vec![Changed { dir: 0, names: vec![], inos: vec![ino] }]
    });
    wait_until("the new one is to be read", || reader.metadata().unwrap().len() == 20_000);
    mounted.worker.be_silent_to("open");
    let before = mounted.worker.count("open");
    // It catches SIGINT, to say how far it has come, and ends of it then.
    let mut command = Command::new("dd");
    command.arg("of=/dev/null").stdin(reader).stderr(Stdio::null());
    // Not where it has to ignore it, as in a shell's background.
    // SAFETY: between fork and exec, one system call that installs no handler.
    let command = unsafe { command.pre_exec(|| Ok(signal(Signal::SIGINT, SigHandler::SigDfl).map(drop)?)) };
    let mut child = command.spawn().unwrap();
    wait_until("it waits", || mounted.worker.count("open") > before);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let begin = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() && begin.elapsed() < super::PATIENCE / 2 {
        std::thread::yield_now();
    }
    let is_stopped = child.try_wait().unwrap().is_some();
    mounted.worker.answer();
    let status = child.wait().unwrap();
    assert!(is_stopped, "it went on waiting");
    assert_eq!(status.signal(), Some(libc::SIGINT));
}

#[test]
fn a_timer_does_not_interrupt_a_rename() {
    let mounted = Mounted::start();
    catch_alarms();
    for dir in ["a", "b"] {
        fs::create_dir(mounted.path(dir)).unwrap();
        // So much that it is done where it may take long.
        fs::write(mounted.path(dir).join("state.tmp"), vec![7; 1 << 20]).unwrap();
    }
    fs::write(mounted.path("a/state"), "good").unwrap();
    wait_until("all are sealed", || mounted.worker.open_handles() == 0);
    mounted.worker.be_silent_to("rename");
    let (sender, thread) = mpsc::channel();
    let (from, to) = (mounted.path("a/state.tmp"), mounted.path("a/state"));
    let renaming = std::thread::spawn(move || {
        // SAFETY: it has no conditions.
        sender.send(unsafe { libc::pthread_self() }).unwrap();
        fs::rename(from, to)
    });
    wait_until("it has begun", || mounted.worker.count("rename") == 1);
    // SAFETY: the thread waits in its rename.
    assert_eq!(unsafe { libc::pthread_kill(thread.recv().unwrap(), libc::SIGALRM) }, 0);
    // One that began later and ends of its signal: by then both were looked at.
    let mut killed = Command::new("mv").args([mounted.path("b/state.tmp"), mounted.path("b/state")]).spawn().unwrap();
    wait_until("another has begun", || mounted.worker.count("rename") == 2);
    kill(Pid::from_raw(killed.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(killed.wait().unwrap().code(), None);
    let is_waiting = !renaming.is_finished();
    mounted.worker.answer();
    renaming.join().unwrap().unwrap();
    assert!(is_waiting, "it came back before it was done");
    assert_eq!(fs::read(mounted.path("a/state")).unwrap().len(), 1 << 20);
    assert!(!mounted.path("a/state.tmp").exists());
}
