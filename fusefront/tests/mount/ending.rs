//! Starting and ending: what is mounted, as whom, and what is left when something dies.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use super::{Mounted, program, wait_until};

/// The launcher's child.
pub fn serving_pid(mounted: &Mounted) -> Pid {
    let launcher = mounted.child.as_ref().unwrap().id();
    let children = std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
    Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap())
}

fn is_running(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

#[test]
fn who_serves_has_none_of_roots_rights() {
    let mounted = Mounted::start();
    // Of every thread.
    for thread in std::fs::read_dir(format!("/proc/{}/task", serving_pid(&mounted))).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        for line in ["CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "NoNewPrivs:\t1\n"] {
            assert!(!nix::unistd::geteuid().is_root() || status.contains(line), "{line}{status}");
        }
    }
    std::fs::write(mounted.path("f"), "served").unwrap();
}

#[test]
fn unmounts_on_sigterm_and_has_handed_everything_over() {
    let mut mounted = Mounted::start();
    assert!(mounted.is_mounted());
    std::fs::write(mounted.path("file"), vec![7; 100_000]).unwrap();
    mounted.signal(Signal::SIGTERM);
    assert_eq!(mounted.wait(), Some(0));
    assert!(!mounted.is_mounted());
    let tree = mounted.worker.shared.tree.lock();
    let ino = tree.lookup(1, b"file").unwrap().ino;
    assert!(!tree.nodes[&ino].staged);
    assert_eq!(tree.content(ino), vec![7; 100_000]);
}

#[test]
fn ends_when_unmounted_by_hand() {
    let mut mounted = Mounted::start();
    std::fs::write(mounted.path("file"), "x").unwrap();
    nix::mount::umount(&mounted.dir).unwrap();
    assert_eq!(mounted.wait(), Some(0));
    assert_eq!(mounted.worker.open_handles(), 0);
}

#[test]
fn is_detached_when_in_use() {
    let mut mounted = Mounted::start();
    let file = std::fs::File::create(mounted.path("file")).unwrap();
    mounted.signal(Signal::SIGTERM);
    assert_eq!(mounted.wait(), Some(0));
    assert!(!mounted.is_mounted());
    drop(file);
}

#[test]
fn a_crash_lets_nobody_write_below_the_mount_and_loses_nothing() {
    let mut mounted = Mounted::start();
    let file = std::fs::File::create(mounted.path("file")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"acknowledged", 0).unwrap();
    kill(serving_pid(&mounted), Signal::SIGKILL).unwrap();
    assert_eq!(mounted.wait(), Some(1));
    // What came into the bare directory would be hidden by the next mount, or keep it away.
    let refused = std::fs::write(mounted.path("file"), b"unseen").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(nix::libc::ENOTCONN));
    drop(file);
    let command = mounted.command();
    mounted.run(command);
    wait_until("the worker has sealed it", || {
        let tree = mounted.worker.shared.tree.lock();
        tree.nodes.values().all(|node| !node.staged)
    });
    assert_eq!(std::fs::read(mounted.path("file")).unwrap(), b"acknowledged");
}

#[test]
fn a_dead_mount_of_ours_is_covered_and_goes_in_the_end() {
    let mut mounted = Mounted::start();
    let serving = serving_pid(&mounted);
    mounted.signal(Signal::SIGKILL);
    assert_eq!(mounted.wait(), None);
    wait_until("the serving process has followed", || !is_running(serving));
    assert!(mounted.is_mounted(), "nobody was left to unmount");
    let command = mounted.command();
    mounted.run(command);
    std::fs::write(mounted.path("file"), "x").unwrap();
    let layers = || {
        let table = delugefs_fusefront::os::mount_table().unwrap();
        table.iter().filter(|line| line.dir == mounted.dir).count()
    };
    // There was no moment without a mount, where that is possible.
    assert!(
        layers() >= 1 && (layers() == 2 || !delugefs_fusefront::os::MOUNTS_OVER_DEAD || !is_root()),
        "{}",
        layers()
    );
    // However often: they do not heap up.
    for _ in 0..10 {
        let serving = serving_pid(&mounted);
        mounted.signal(Signal::SIGKILL);
        assert_eq!(mounted.wait(), None);
        wait_until("the serving process has followed", || !is_running(serving));
        let command = mounted.command();
        mounted.run(command);
    }
    let table = delugefs_fusefront::os::mount_table().unwrap();
    assert!(table.iter().filter(|line| line.dir == mounted.dir).count() <= 2, "one that is dead, and the one over it");
    mounted.signal(Signal::SIGTERM);
    assert_eq!(mounted.wait(), Some(0));
    let table = delugefs_fusefront::os::mount_table().unwrap();
    assert_eq!(table.iter().filter(|line| line.dir == mounted.dir).count(), 0);
}

/// Whoever ends it may not wait as long as the worker takes to close what is open.
#[test]
fn what_it_covers_goes_before_all_is_handed_over() {
    let mut mounted = Mounted::start();
    let serving = serving_pid(&mounted);
    mounted.signal(Signal::SIGKILL);
    assert_eq!(mounted.wait(), None);
    wait_until("the serving process has followed", || !is_running(serving));
    let command = mounted.command();
    mounted.run(command);
    mounted.worker.be_silent_to("close");
    let file = std::fs::File::create(mounted.path("file")).unwrap();
    mounted.signal(Signal::SIGTERM);
    wait_until("nothing is mounted", || !mounted.is_mounted());
    assert!(matches!(mounted.child.as_mut().unwrap().try_wait(), Ok(None)), "it waits for the worker");
    mounted.worker.answer();
    assert_eq!(mounted.wait(), Some(0));
    drop(file);
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The server was killed while it waited in the kernel for somebody who waits for it, and its launcher is gone too: it
/// keeps the device open, and never answers.
#[test]
fn a_silent_mount_that_no_living_process_serves_is_cleared_away() {
    let mut mounted = Mounted::start();
    mounted.signal(Signal::SIGTERM);
    assert_eq!(mounted.wait(), Some(0));
    let held = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    delugefs_fusefront::os::mount(std::os::fd::AsFd::as_fd(&held), &mounted.dir, "home", None).unwrap();
    let command = mounted.command();
    mounted.run(command);
    std::fs::write(mounted.path("file"), "x").unwrap();
    drop(held);
}

#[test]
fn refuses_what_it_cannot_mount_on() {
    let mounted = Mounted::start();
    let output = mounted.command().output().unwrap();
    assert_eq!(output.status.code(), Some(14));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("already mounted") && said.contains("Hint: run `umount"), "{said}");
    let refused = |arguments: &[&std::ffi::OsStr]| {
        let output = program().args(arguments).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("Hint: "), "{said}");
        output.status.code()
    };
    let other = tempfile::tempdir().unwrap();
    let (worker, dir) = (mounted.worker.socket.as_os_str(), other.path().as_os_str());
    let [w, m, n, u] = ["--worker", "--mount", "--name", "--user"].map(std::ffi::OsStr::new);
    assert_eq!(refused(&[w, worker, m, dir, n, "another".as_ref()]), Some(12));
    assert_eq!(refused(&[w, "/nonexistent".as_ref(), m, dir]), Some(10));
    assert_eq!(refused(&[w, worker, m, "/nonexistent/dir".as_ref()]), Some(15));
    assert_eq!(refused(&[w, worker, m, "/proc".as_ref()]), Some(15));
    assert_eq!(refused(&[w, worker, m, dir, u, "nobody-of-this-name".as_ref()]), Some(2));
}

#[test]
fn serves_everybody_as_an_unprivileged_user() {
    let mounted = Mounted::start_with(|command| command.args(["--user", "nobody"]));
    let nobody = User::from_name("nobody").unwrap().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", serving_pid(&mounted))).unwrap();
    let ids = format!("Uid:\t{0}\t{0}\t{0}\t{0}\n", nobody.uid);
    assert!(status.contains(&ids) && status.contains("CapEff:\t0000000000000000"), "{status}");
    std::fs::write(mounted.path("of-root"), "x").unwrap();
    assert_eq!(std::fs::metadata(mounted.path("of-root")).unwrap().uid(), 0);
    // Another user, and the kernel's permission checks.
    let as_daemon = |script: &str| {
        std::process::Command::new("sh").arg("-c").arg(script).current_dir(&mounted.dir).uid(1).gid(1).status().unwrap()
    };
    assert!(as_daemon("cat of-root").success());
    assert!(!as_daemon("echo y > of-root 2>/dev/null").success());
    std::fs::create_dir(mounted.path("shared")).unwrap();
    std::fs::set_permissions(mounted.path("shared"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    assert!(as_daemon("echo y > shared/mine && rm shared/mine && echo z > shared/other").success());
    assert_eq!(std::fs::metadata(mounted.path("shared/other")).unwrap().uid(), 1);
}

/// In a mount namespace of its own, because /dev/fuse may be closed to plain users here.
#[test]
fn a_plain_user_mounts_for_himself() {
    const SCRIPT: &str = r#"
        set -e
        cd /
        mknod "$TEMP/fuse" c 10 229
        chmod 666 "$TEMP/fuse"
        mount --bind "$TEMP/fuse" /dev/fuse
        as_daemon() { setpriv --reuid 1 --regid 1 --clear-groups "$@"; }
        mkfifo "$TEMP/said"
        setpriv --reuid 1 --regid 1 --clear-groups \
            "$PROGRAM" --worker "$WORKER" --mount "$TEMP/mnt" > "$TEMP/said" &
        pid=$!
        trap 'kill $pid' EXIT
        read line < "$TEMP/said"
        test "$line" = ready
        as_daemon sh -ec 'cd "$TEMP/mnt"; echo hello > f; cat f; ls -l; mkdir d; mv f d/; rm -r d'
        trap - EXIT
        kill $pid
        wait $pid
        ! mountpoint -q "$TEMP/mnt"
        echo done
    "#;
    let worker = crate::fake::FakeWorker::start();
    worker.shared.tree.lock().node(1).unwrap().attr.uid = 1;
    let temp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(temp.path().join("mnt")).unwrap();
    std::os::unix::fs::chown(temp.path().join("mnt"), Some(1), Some(1)).unwrap();
    let program = env!("CARGO_BIN_EXE_delugefs-fusefront");
    // Copied to where the user may run it.
    std::fs::copy(program, temp.path().join("program")).unwrap();
    let output = std::process::Command::new("timeout")
        .args(["60", "unshare", "--mount", "sh", "-c", SCRIPT])
        .env("TEMP", temp.path())
        .env("WORKER", &worker.socket)
        .env("PROGRAM", temp.path().join("program"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.starts_with("hello\n") && said.ends_with("done\n"), "{output:?}");
    assert_eq!((worker.broken_promises(), worker.open_handles()), (vec![], 0));
}
