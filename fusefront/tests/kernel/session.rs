//! From INIT to DESTROY: what is agreed on, what is refused, and that nobody waits for another's request.

use nix::errno::Errno;

use super::requests::{attributes, getattr};
#[cfg(target_os = "linux")]
use super::wire::notice;
use super::wire::{Body, op};
use super::{ASYNC_READ, BIG_WRITES, BLOCK_BYTES, EXPORT_SUPPORT, KERNELS, Mount, ROOT};

/// Bytes of fuse_init_out since 7.23. FreeBSD refuses the mount if the answer has another length.
const INIT_OUT_BYTES: usize = 64;

#[test]
fn the_greeting_grants_only_what_freebsd_offers() {
    for kernel in KERNELS {
        let mount = Mount::new(kernel);
        let greeting = &mount.greeting;
        assert_eq!((greeting.errno, greeting.body.len()), (0, INIT_OUT_BYTES));
        let (major, theirs) = (greeting.u32(0), greeting.u32(4));
        // The lower of the two minors holds: the kernel's, which it knows.
        assert!(major == 7 && theirs >= kernel.minor, "{major}.{theirs}");
        let (max_readahead, granted, max_write) = (greeting.u32(8), greeting.u32(12), greeting.u32(20));
        assert_eq!(granted & !kernel.offered, 0, "granted without having been offered");
        // Not the write-back cache, nor locks of our own; files and directories are opened.
        assert_eq!(granted, ASYNC_READ | EXPORT_SUPPORT | BIG_WRITES);
        assert_eq!(max_readahead, BLOCK_BYTES);
        assert!((BLOCK_BYTES..=16 << 20).contains(&max_write), "{max_write}");
        assert_eq!(greeting.u32(24), 1, "granularity of times, in nanoseconds");
        // The flags of later protocols, passthrough among them, and what belongs to them.
        assert_eq!(greeting.body[30..], [0; 34]);
    }
}

#[test]
fn what_is_not_there_is_refused_and_the_session_goes_on() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let file = mount.file(ROOT, "f", b"text");
        // FreeBSD does not ask again for what was answered so, and does without.
        for (request, body) in [
            (4711, Body::new()),
            (op::ACCESS, Body::new().u32(4).u32(0)),
            (op::FLUSH, Body::new().u64(0).u32(0).u32(0).u64(0)),
            (op::BMAP, Body::new().u64(0).u32(BLOCK_BYTES).u32(0)),
            (op::INTERRUPT, Body::new().u64(2)),
        ] {
            assert_eq!(mount.kernel.fail(request, file.ino, &body), Errno::ENOSYS, "request {request}");
            assert_eq!(mount.getattr(file.ino).unwrap().size, 4);
        }
    }
}

#[test]
fn statfs_has_the_sizes_of_the_disk() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let sizes = mount.kernel.call(op::STATFS, ROOT, &Body::new());
        let counts = [0, 8, 16, 24, 32].map(|at| sizes.u64(at));
        assert_eq!(counts, [1000, 600, 500, 100, 50]);
        assert_eq!([40, 44, 48].map(|at| sizes.u32(at)), [4096, 255, 4096]);
    }
}

#[test]
fn one_request_that_waits_keeps_no_other_waiting() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let file = mount.file(ROOT, "f", b"text");
        mount.getattr(file.ino).unwrap();
        mount.getattr(ROOT).unwrap();
        mount.worker.be_silent_to("mkdir");
        // More than any pool might have of idle threads.
        let name = |n| format!("d{n}");
        let mkdir = |n| Body::new().u32(0o040_755).u32(0o022).name(&name(n));
        let waiting: Vec<_> = (0..20).map(|n| mount.kernel.send(op::MKDIR, ROOT, &mkdir(n))).collect();
        for _ in 0..100 {
            let answered = mount.kernel.call(op::GETATTR, file.ino, &getattr());
            assert_eq!(attributes(&answered).size, 4);
        }
        let handle = mount.open(file.ino, libc::O_RDONLY).unwrap();
        assert_eq!(mount.read(file.ino, handle, 0), b"text");
        mount.release(file.ino, handle);
        assert!(!waiting.iter().any(|unique| mount.kernel.has_reply_to(*unique)), "the worker was not silent");
        mount.worker.answer();
        for unique in waiting {
            assert_eq!(mount.kernel.reply_to(unique).errno, 0);
        }
        assert!(mount.lookup(ROOT, &name(19)).is_ok());
    }
}

#[test]
fn destroy_ends_the_session_and_loses_nothing_open() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        // Still open, as after `umount -f`.
        let (file, handle) = mount.create(ROOT, "open");
        mount.write(file.ino, handle, b"written");
        mount.unmount().unwrap();
        assert_eq!(mount.worker.shared.tree.lock().lookup(1, b"open").unwrap().size, 7);
        assert_eq!(mount.worker.open_handles(), 0);
    }
}

/// A process that has a signal and does nothing of it yet. Killed when dropped.
#[cfg(target_os = "linux")]
struct Signalled(std::process::Child);

#[cfg(target_os = "linux")]
impl Signalled {
    /// It will end.
    fn deadly() -> Self {
        use nix::sys::signal::{Signal, kill};
        let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGSTOP).unwrap();
        Self(child).with(Signal::SIGTERM)
    }

    /// It has a handler.
    fn caught(signal: nix::sys::signal::Signal) -> Self {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("sh");
        command.arg("-c").arg("trap : ALRM INT; kill -STOP $$; exec sleep 1000");
        // A shell cannot catch what it has to ignore, as in the background.
        // SAFETY: between fork and exec, one system call that installs no handler.
        #[allow(unsafe_code)]
        let command = unsafe {
            use nix::sys::signal::{SigHandler, Signal, signal};
            command.pre_exec(|| Ok(signal(Signal::SIGINT, SigHandler::SigDfl).map(drop)?))
        };
        Self(command.spawn().unwrap()).with(signal)
    }

    fn with(self, signal: nix::sys::signal::Signal) -> Self {
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        assert!(matches!(waitpid(pid, Some(WaitPidFlag::WUNTRACED)), Ok(WaitStatus::Stopped(..))));
        nix::sys::signal::kill(pid, signal).unwrap();
        self
    }
}

#[cfg(target_os = "linux")]
impl Drop for Signalled {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_killed_program_began_is_told_to_the_kernel_when_it_is_done() {
    let mut mount = Mount::new(KERNELS[2]);
    mount.file(ROOT, "old", b"text");
    mount.settle();
    let dying = Signalled::deadly();
    let own = std::mem::replace(&mut mount.kernel.pid, dying.0.id());
    let mkdir = Body::new().u32(0o040_755).u32(0o022).name("made");
    let rename = Body::new().u64(ROOT).name("old").name("new");
    let create =
        Body::new().u32((libc::O_CREAT | libc::O_RDWR) as u32).u32(0o100_644).u32(0o022).u32(0).name("created");
    for (request, silent_to, body, names) in [
        (op::MKDIR, "mkdir", mkdir, &["made"][..]),
        (op::RENAME, "rename", rename, &["old", "new"]),
        (op::CREATE, "create", create, &["created"]),
        (op::UNLINK, "unlink", Body::new().name("new"), &["new"]),
    ] {
        mount.worker.be_silent_to(silent_to);
        assert_eq!(mount.kernel.fail(request, ROOT, &body), Errno::EINTR, "request {request}");
        mount.worker.answer();
        for name in names {
            assert_eq!(mount.kernel.notice_of_name(), (ROOT, (*name).to_owned()), "request {request}");
        }
    }
    mount.settle();
    // What may have another content since.
    let file = mount.file(ROOT, "f", b"text");
    mount.getattr(file.ino).unwrap();
    mount.settle();
    const FATTR_SIZE: u32 = 1 << 3;
    let truncate = Body::new().u32(FATTR_SIZE).u32(0).u64(0).u64(2).bytes(&[0; 64]);
    let open = Body::new().u32((libc::O_WRONLY | libc::O_TRUNC) as u32).u32(0);
    for (request, silent_to, body) in [(op::SETATTR, "setattr", truncate), (op::OPEN, "open", open)] {
        mount.worker.be_silent_to(silent_to);
        assert_eq!(mount.kernel.fail(request, file.ino, &body), Errno::EINTR, "request {request}");
        mount.worker.answer();
        loop {
            let told = mount.kernel.notice();
            if (told.errno, told.u64(0), told.u64(8)) == (notice::INVAL_INODE, file.ino, 0) {
                break;
            }
        }
    }
    mount.kernel.pid = own;
}

#[cfg(target_os = "linux")]
#[test]
fn a_program_that_catches_a_signal_hears_what_became_of_its_change() {
    use nix::sys::signal::Signal;
    let mut mount = Mount::new(KERNELS[2]);
    let old = mount.file(ROOT, "old", b"text");
    mount.file(ROOT, "other", b"text");
    mount.settle();
    let (dying, timer, asked) =
        (Signalled::deadly(), Signalled::caught(Signal::SIGALRM), Signalled::caught(Signal::SIGINT));
    let own = mount.kernel.pid;
    let rename = |from: &str, to: &str| Body::new().u64(ROOT).name(from).name(to);
    for (process, from, to, other, another) in
        [(&timer, "old", "new", "other", "another"), (&asked, "new", "newer", "another", "other")]
    {
        mount.worker.be_silent_to("rename");
        mount.kernel.pid = process.0.id();
        let renaming = mount.kernel.send(op::RENAME, ROOT, &rename(from, to));
        // Who came later is looked at later.
        mount.kernel.pid = dying.0.id();
        assert_eq!(mount.kernel.fail(op::RENAME, ROOT, &rename(other, another)), Errno::EINTR);
        assert!(!mount.kernel.has_reply_to(renaming), "{to}");
        mount.worker.answer();
        assert_eq!(mount.kernel.reply_to(renaming).errno, 0, "{to}");
        mount.settle();
    }
    // What changes nothing can be told to have been interrupted, by who sits in front of it.
    mount.worker.be_silent_to("open");
    let open = Body::new().u32(libc::O_RDONLY as u32).u32(0);
    mount.kernel.pid = timer.0.id();
    let opening = mount.kernel.send(op::OPEN, old.ino, &open);
    mount.kernel.pid = asked.0.id();
    assert_eq!(mount.kernel.fail(op::OPEN, old.ino, &open), Errno::EINTR);
    assert!(!mount.kernel.has_reply_to(opening));
    mount.worker.answer();
    let opened = mount.kernel.reply_to(opening);
    assert_eq!(opened.errno, 0);
    mount.kernel.pid = own;
    mount.release(old.ino, opened.u64(0));
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_not_begun_when_its_program_was_killed_is_not_done_later() {
    let mut mount = Mount::new(KERNELS[2]);
    for name in ["state.tmp", "state"] {
        mount.file(ROOT, name, b"text");
    }
    mount.settle();
    let dying = Signalled::deadly();
    let own = std::mem::replace(&mut mount.kernel.pid, dying.0.id());
    mount.worker.crash();
    let link = mount.fs.worker.newest_link();
    // What goes out before the loss is noticed may have been carried out, and goes out again.
    while mount.fs.worker.link().is_some() {
        std::thread::yield_now();
    }
    let rename = Body::new().u64(ROOT).name("state.tmp").name("state");
    assert_eq!(mount.kernel.fail(op::RENAME, ROOT, &rename), Errno::EINTR);
    const FATTR_SIZE: u32 = 1 << 3;
    let truncate = Body::new().u32(FATTR_SIZE).u32(0).u64(0).u64(2).bytes(&[0; 64]);
    let ino = mount.worker.shared.tree.lock().lookup(1, b"state.tmp").unwrap().ino;
    assert_eq!(mount.kernel.fail(op::SETATTR, ino, &truncate), Errno::EINTR);
    mount.worker.resume();
    assert!(mount.fs.worker.wait_for_link(std::time::Duration::from_secs(20)).is_some_and(|now| now != link));
    mount.settle();
    mount.kernel.pid = own;
    assert_eq!((mount.worker.count("rename"), mount.worker.count("setattr")), (0, 0));
    assert_eq!(mount.lookup(ROOT, "state.tmp").unwrap().size, 4);
}
