#![allow(unsafe_code)] // prlimit has no safe wrapper here
//! A frontend that may not have more files open: who opens is told so at once, and nothing is left open on the other side.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::ending::serving_pid;
use super::{Mounted, wait_until};

/// As little as it takes: every number below the limit is in use.
fn limit_to_what_is_open(pid: Pid) -> libc::rlimit {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open: Vec<u64> = open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    let first_free = (0..).find(|number| !open.contains(number)).unwrap();
    let before = set_limit(pid, None);
    set_limit(pid, Some(libc::rlimit { rlim_cur: first_free, ..before }));
    before
}

/// Set the limit of open files, if one is given; what it was.
fn set_limit(pid: Pid, new: Option<libc::rlimit>) -> libc::rlimit {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both point to live structures, or `new` to nothing.
    Errno::result(unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_NOFILE, new, &mut old) }).unwrap();
    old
}

#[test]
fn without_a_descriptor_nothing_is_opened_and_nothing_stays_open() {
    let mounted = Mounted::start();
    let path = |name: &str| mounted.path(name);
    let text = vec![b'x'; 20_000];
    fs::write(path("f"), &text).unwrap();
    wait_until("it is sealed", || mounted.worker.open_handles() == 0);
    let pid = serving_pid(&mounted);
    let before = limit_to_what_is_open(pid);
    let begin = Instant::now();
    let errno = |result: std::io::Result<File>| result.map(drop).map_err(|error| error.raw_os_error());
    let enfile = Err(Some(libc::ENFILE));
    for round in 0..3 {
        // What cannot be taken back is not begun.
        assert_eq!(errno(File::create(path("new"))), enfile, "round {round}");
        assert_eq!(errno(File::create(path("f"))), enfile, "round {round}");
        assert_eq!(errno(File::open(path("f"))), enfile, "round {round}");
        assert_eq!(errno(OpenOptions::new().write(true).open(path("f"))), enfile, "round {round}");
        assert_eq!(mounted.worker.open_handles(), 0, "round {round}");
    }
    assert!(begin.elapsed() < Duration::from_secs(20), "it was tried again and again");
    assert!(!path("new").exists());
    set_limit(pid, Some(before));
    assert_eq!(fs::read(path("f")).unwrap(), text);
    fs::write(path("new"), "text").unwrap();
    fs::write(path("f"), "shorter").unwrap();
    wait_until("all is sealed", || mounted.worker.open_handles() == 0);
    let tree = mounted.worker.shared.tree.lock();
    for (name, content) in [(&b"new"[..], &b"text"[..]), (b"f", b"shorter")] {
        let ino = tree.lookup(1, name).unwrap().ino;
        assert!(!tree.nodes[&ino].staged);
        assert_eq!(tree.content(ino), content);
    }
}

/// As with `ulimit -f` in the shell that has started it.
#[test]
fn a_write_beyond_the_limit_of_file_sizes_fails_and_ends_nothing() {
    let mounted = Mounted::start();
    let pid = serving_pid(&mounted);
    let limit = libc::rlimit { rlim_cur: 65_536, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: it points to a live structure.
    Errno::result(unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) }).unwrap();
    let error = fs::write(mounted.path("f"), [7; 100_000]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    assert_eq!(fs::read(mounted.path("f")).unwrap(), [7; 65_536]);
    assert_eq!(serving_pid(&mounted), pid);
}

#[test]
fn who_may_have_no_descriptor_hands_everything_over_in_the_end() {
    let mut mounted = Mounted::start();
    let file = File::create(mounted.path("f")).unwrap();
    file.write_all_at(b"acknowledged", 0).unwrap();
    // Given back to a worker that was restarted, and no connection for requests yet.
    mounted.worker.crash();
    mounted.worker.resume();
    wait_until("it was given back", || mounted.worker.count("adopt") == 1);
    let pid = serving_pid(&mounted);
    set_limit(pid, Some(libc::rlimit { rlim_cur: 3, ..set_limit(pid, None) }));
    drop(file);
    mounted.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(mounted.wait(), Some(0));
    assert_eq!(mounted.worker.count("close"), 1, "it was given up");
    let tree = mounted.worker.shared.tree.lock();
    assert_eq!(tree.content(tree.lookup(1, b"f").unwrap().ino), b"acknowledged");
}
