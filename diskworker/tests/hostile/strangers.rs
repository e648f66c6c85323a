//! Users who were not invited.

use std::os::unix::net::UnixStream;

use delugefs_proto::local_pb::request;
use delugefs_proto::{local::client::Client, local_pb as pb, worker_pb};
use nix::errno::Errno;
use nix::libc;

use crate::user::User;
use crate::worker::{Host, SLACK, wait_until};

const NOBODY: libc::uid_t = 65_534;

/// Do something as another user: effective ids belong to threads, and this one ends with it.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            #[allow(unsafe_code)]
            // SAFETY: the bare system call changes the ids of this thread alone and touches no memory.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, NOBODY, -1) };
            assert_eq!(changed, 0);
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn strangers_are_refused_on_both_sockets() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("not root, cannot be somebody else: skipped");
    }
    let host = Host::new();
    let worker = host.create(&[]);
    let before = worker.descriptors();
    for _ in 0..20 {
        let error = as_nobody(|| worker.try_client(1, false).err().unwrap()).to_string();
        assert!(error.contains("uid 65534 is not served"), "{error}");
        let error = as_nobody(|| worker.try_client(1, true).err().unwrap()).to_string();
        assert!(error.contains("uid 65534 is not served"), "{error}");
    }
    for _ in 0..20 {
        let status = as_nobody(|| worker.ask(async |mut w| w.status(worker_pb::StatusRequest {}).await));
        assert!(status.is_err());
        let stop = as_nobody(|| worker.ask(async |mut w| w.shutdown(worker_pb::ShutdownRequest {}).await));
        assert!(stop.is_err());
    }
    let log = worker.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("65534")).collect();
    assert_eq!(lines.len(), 1, "one line per stranger, however often he comes: {lines:#?}");
    assert!(lines[0].contains("--allow-uid 65534"), "it says what to do: {lines:?}");

    // Strangers who only hold on to their connections take nothing from those who may come.
    let held: Vec<UnixStream> = as_nobody(|| {
        let mut held = Vec::new();
        for _ in 0..400 {
            held.push(UnixStream::connect(worker.grpc()).unwrap());
            held.push(UnixStream::connect(&worker.local).unwrap());
        }
        held
    });
    worker.client(1).mkdir(1, "made").unwrap();
    assert!(!worker.status().read_only);
    wait_until("the worker has hung up on them", || worker.descriptors() <= before + SLACK);
    drop(held);
    worker.assert_sound();
}

#[test]
fn who_is_named_on_the_command_line_is_served() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("not root, cannot be somebody else: skipped");
    }
    let host = Host::new();
    let worker = host.create(&["--allow-uid", "65534"]);
    as_nobody(|| {
        let mut client: Client = worker.client(1);
        client.put(1, "mine", b"mine").unwrap();
        let error = client.ask(request::Op::GetAttr(pb::GetAttr { ino: 99, dir: 1 })).unwrap_err();
        assert_eq!(error.errno, Errno::ESTALE);
    });
    // With files. He is nobody to say what the worker is to do.
    let stop = as_nobody(|| worker.ask(async |mut w| w.shutdown(worker_pb::ShutdownRequest {}).await));
    assert!(stop.is_err());
    worker.assert_sound();
}

#[test]
fn root_is_served_only_when_told() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: it needs root");
        return;
    }
    let host = Host::new();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_delugefs-diskworker"));
    command.env_clear().arg("--root").arg(host.root()).arg("--run-dir").arg(host.path("r"));
    let output = command.args(["--cluster", "test", "--create"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(16) && said.contains("--allow-root"), "{said}");
    assert!(!host.root().join("disk.toml").exists() && !host.path("r").exists());
    host.create(&[]).stop();
}
