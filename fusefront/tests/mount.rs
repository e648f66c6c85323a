//! Real mounts of the real binary, against the fake worker.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fake::FakeWorker;

mod descriptors;
mod direct;
mod ending;
mod export;
mod limits;
mod listing;
mod posix;
mod sharing;
mod signals;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running frontend; unmounted and ended when dropped, also on a panic.
pub struct Mounted {
    pub dir: PathBuf,
    pub worker: FakeWorker,
    pub child: Option<Child>,
    _temp: tempfile::TempDir,
}

pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_delugefs-fusefront"))
}

impl Mounted {
    pub fn start() -> Self {
        Self::start_with(|command| command)
    }

    pub fn start_with(adjust: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let temp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let dir = temp.path().join("mnt");
        std::fs::create_dir(&dir).unwrap();
        let mut mounted = Self { dir, worker: FakeWorker::start(), child: None, _temp: temp };
        let mut command = mounted.command();
        adjust(&mut command);
        mounted.run(command);
        mounted
    }

    pub fn command(&self) -> Command {
        let mut command = program();
        command.arg("--worker").arg(&self.worker.socket).arg("--mount").arg(&self.dir);
        command
    }

    /// Start it and wait until it is ready.
    pub fn run(&mut self, mut command: Command) {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.child = Some(child);
        assert_eq!(line, "ready\n");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.as_ref().unwrap().id() as i32), signal).unwrap();
    }

    /// Wait for the end; the exit code, `None` if it was killed.
    pub fn wait(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > deadline {
                self.child = Some(child);
                panic!("the frontend does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.dir)
    }
}

pub fn is_mounted(dir: &Path) -> bool {
    delugefs_fusefront::mounts::top(dir).unwrap().is_some()
}

/// Wait until it is so.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_raw(child.id() as i32);
            let _gone = kill(pid, Signal::SIGTERM);
            let deadline = Instant::now() + PATIENCE;
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _gone = child.kill();
            let _reaped = child.wait();
        }
        let left = self.is_mounted();
        while self.is_mounted() {
            nix::mount::umount2(&self.dir, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
        if !std::thread::panicking() {
            assert!(!left, "left mounted");
            assert_eq!(self.worker.broken_promises(), Vec::<String>::new());
        }
    }
}
