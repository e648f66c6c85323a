//! A host of its own for each test: run, state, disk and mount folders under one short temporary folder, and the real
//! programs. Dropping it kills what it started and detaches its own mounts, also after a panic.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::wait_for;

const WORKER: &str = "delugefs-diskworker";
const FRONTEND: &str = "delugefs-fusefront";
const SUPERVISOR: &str = "delugefs-supervisor";

/// See the module.
pub struct Host {
    dir: TempDir,
    run: Option<Child>,
    /// Number of log files of `delugefs run` so far.
    logs: AtomicUsize,
}

impl Host {
    /// `None`, with the reason printed, where this machine cannot mount.
    pub fn new() -> Option<Self> {
        // /tmp and not $TMPDIR: paths of sockets are short.
        Self::new_in(Path::new("/tmp"))
    }

    /// The same with everything in a folder below this one, whose path must be short.
    pub fn new_in(parent: &Path) -> Option<Self> {
        let root = nix::unistd::geteuid().is_root();
        let missing = [
            (!Path::new("/dev/fuse").exists(), "there is no /dev/fuse"),
            (!root && cfg!(not(target_os = "linux")), "only root can mount here"),
            (!root && which("fusermount3").is_none(), "a plain user needs fusermount3"),
            (!root && File::options().read(true).write(true).open("/dev/fuse").is_err(), "/dev/fuse cannot be opened"),
        ];
        if let Some((_, reason)) = missing.into_iter().find(|(is_missing, _)| *is_missing) {
            println!("skipped: {reason}");
            return None;
        }
        for program in [WORKER, FRONTEND, SUPERVISOR] {
            let path = bin(program);
            assert!(path.exists(), "{} is missing: `cargo build --workspace` makes it", path.display());
        }
        let host = Self { dir: TempDir::with_prefix_in("dfe", parent).unwrap(), run: None, logs: AtomicUsize::new(0) };
        for folder in ["disk", "m", "m2"] {
            fs::create_dir(host.path(folder)).unwrap();
        }
        Some(host)
    }

    /// Below the temporary folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The disk's folder.
    pub fn disk(&self) -> PathBuf {
        self.path("disk")
    }

    /// The mountpoint.
    pub fn mount(&self) -> PathBuf {
        self.path("m")
    }

    /// `delugefs`, with nothing of the tester's environment.
    pub fn delugefs(&self, arguments: &[&str]) -> Command {
        let mut command = clean(Command::new(bin("delugefs")), self.dir.path());
        command.arg("--run-dir").arg(self.path("r")).args(arguments);
        command
    }

    /// Run it to its end: exit code and all it said.
    pub fn says(&self, arguments: &[&str]) -> (i32, String) {
        said(&mut self.delugefs(arguments))
    }

    /// Start `delugefs run` and wait until it is ready.
    pub fn start(&mut self) {
        let create = !self.disk().join("disk.toml").exists();
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        let log = |end| File::create(self.path(&format!("run{number}.{end}"))).unwrap();
        let (disk, mount, state) = (self.disk(), self.mount(), self.path("s"));
        let mut command = self.delugefs(&["run", "home"]);
        command.arg(disk).arg("--mount").arg(mount).arg("--state-dir").arg(state).arg("--no-mdns");
        command.args(create.then_some("--create")).stdout(log("out")).stderr(log("err"));
        self.run = Some(command.spawn().unwrap());
        let said = || fs::read_to_string(self.path(&format!("run{number}.out"))).unwrap_or_default();
        wait_for("`delugefs run` to be ready", || self.logs(), || said() == "ready\n");
    }

    /// SIGTERM to `delugefs run`; its exit code, and how long it took.
    pub fn stop(&mut self) -> (i32, Duration) {
        let mut run = self.run.take().expect("it runs");
        let start = Instant::now();
        signal(run.id(), Signal::SIGTERM);
        let mut status = None;
        wait_for(
            "`delugefs run` to end",
            || self.logs(),
            || {
                status = run.try_wait().unwrap();
                status.is_some()
            },
        );
        let status = status.unwrap();
        (status.code().unwrap_or_else(|| -status.signal().unwrap_or(0)), start.elapsed())
    }

    /// `status --json`, or null while no supervisor answers.
    pub fn status(&self) -> Value {
        let output = self.delugefs(&["status", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// The processes, as the status has them.
    pub fn pids(&self) -> Pids {
        let status = self.status();
        let frontends = status["mounts"].as_array().into_iter().flatten().filter_map(pid_of).collect();
        Pids { supervisor: pid_of(&status), worker: pid_of(&status["disks"][0]), frontends }
    }

    /// Kill `delugefs run` too, so that nobody starts a supervisor again.
    pub fn kill_run(&mut self) {
        if let Some(mut run) = self.run.take() {
            run.kill().unwrap();
            run.wait().unwrap();
        }
    }

    /// Wait for the end of processes that were killed.
    pub fn wait_until_gone(&self, pids: &[u32]) {
        wait_for("killed processes to end", || self.logs(), || !pids.iter().any(|pid| is_ours(*pid)));
    }

    /// Wait until disk and mounts are up, none of them in a process of `dead`, and the mount answers.
    pub fn wait_until_up(&self, dead: &[u32]) {
        let up = |status: &Value| {
            let of = |what: &str| status[what].as_array().cloned().unwrap_or_default();
            let all = [of("disks"), of("mounts")].concat();
            let lives = |it: &Value| it["state"] == "up" && pid_of(it).is_some_and(|pid| !dead.contains(&pid));
            all.len() >= 2 && all.iter().all(lives) && pid_of(status).is_some_and(|pid| !dead.contains(&pid))
        };
        wait_for("disk and mount to be up again", || self.logs(), || up(&self.status()));
        wait_for("the mount to answer", || self.logs(), || is_fuse(&self.mount()));
    }

    /// All that the programs said.
    pub fn logs(&self) -> String {
        let mut out = String::new();
        for number in 0..self.logs.load(Ordering::Relaxed) {
            let log = fs::read(self.path(&format!("run{number}.err"))).unwrap_or_default();
            out += &format!("--- run{number}\n{}", String::from_utf8_lossy(&log));
        }
        out
    }

    /// Processes the supervisors wrote down.
    fn noted(&self) -> Vec<u32> {
        noted(&self.path("r"))
    }

    /// Nothing of ours runs or is mounted any more.
    pub fn assert_gone(&self) {
        let left: Vec<_> = self.noted().into_iter().filter(|pid| is_ours(*pid)).collect();
        assert!(left.is_empty(), "processes {left:?} are left\n{}", self.logs());
        let mounted = self.mounted();
        assert!(mounted.is_empty(), "{mounted:?} is still mounted\n{}", self.logs());
    }

    fn mounted(&self) -> Vec<PathBuf> {
        let mounts = delugefs_supervisor::sys::delugefs_mounts().unwrap_or_default();
        mounts.into_iter().filter(|mount| mount.starts_with(self.dir.path())).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("DELUGEFS_E2E_KEEP").is_some() {
            self.dir.disable_cleanup(true);
        }
        self.kill_run();
        kill_noted(&self.path("r"));
        for mount in self.mounted() {
            let _ = delugefs_supervisor::sys::detach(&mount);
        }
    }
}

/// Process ids.
#[derive(Clone, Debug, Default)]
pub struct Pids {
    pub supervisor: Option<u32>,
    pub worker: Option<u32>,
    /// The processes that the supervisor started; under root each has a child that serves.
    pub frontends: Vec<u32>,
}

pub fn is_ours(pid: u32) -> bool {
    [SUPERVISOR, WORKER, FRONTEND].iter().any(|program| delugefs_supervisor::sys::is_running(pid, program))
}

fn pid_of(object: &Value) -> Option<u32> {
    object["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
}

/// With nothing of the tester's environment, in a folder.
pub fn clean(mut command: Command, folder: &Path) -> Command {
    command.env_clear().env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs(std::env::var("DELUGEFS_LOG").ok().map(|filter| ("DELUGEFS_LOG", filter)));
    command.current_dir(folder).stdin(Stdio::null());
    command
}

/// Run it to its end: exit code and all it said.
pub fn said(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

/// Processes that the supervisors of a run directory wrote down.
pub fn noted(run_dir: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    for entry in fs::read_dir(run_dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if name.ends_with(".pid") {
            pids.extend(serde_json::from_str::<Value>(&text).ok().and_then(|note| pid_of(&note)));
        } else if name == "supervisor.lock" {
            pids.extend(text.trim().parse::<u32>().ok());
        }
    }
    pids
}

/// CPU seconds that the programs of a run directory have used, and the memory they have now, in MiB.
pub fn usage(run_dir: &Path) -> (f64, u64) {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    let mut sum = (0.0, 0);
    let noted = noted(run_dir);
    let serving = noted.iter().flat_map(|pid| children(*pid));
    // A supervisor's children are noted themselves.
    let all: BTreeSet<u32> = noted.iter().copied().chain(serving).collect();
    for pid in all {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // utime and stime.
        sum.0 += fields.iter().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / ticks;
        let rss = read("status")
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        sum.1 += rss.unwrap_or(0_u64) / 1024;
    }
    sum
}

/// Kill them and their children.
pub fn kill_noted(run_dir: &Path) {
    // Twice: a supervisor may just be starting another one.
    for pid in noted(run_dir).into_iter().chain(noted(run_dir)) {
        if is_ours(pid) {
            for child in children(pid) {
                signal(child, Signal::SIGKILL);
            }
            signal(pid, Signal::SIGKILL);
        }
    }
}

/// A program of this workspace; those in `DELUGEFS_BIN` if that is set, such as the release build's.
pub fn bin(program: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("DELUGEFS_BIN") {
        return PathBuf::from(folder).canonicalize().unwrap().join(program);
    }
    Path::new(env!("CARGO_BIN_EXE_delugefs")).with_file_name(program)
}

pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Send a signal to a process that this test started.
pub fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
}

/// The child processes of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let parent = |pid: &u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    entries.flatten().filter_map(number).filter(|child| parent(child) == Some(pid)).collect()
}

/// Whether a live FUSE mount is on the directory. Asks for a name nobody has asked for: about the root itself the kernel
/// answers from memory, also when nobody serves the mount any more.
pub fn is_fuse(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let name = format!("probe-{}-{}", std::process::id(), ASKED.fetch_add(1, Ordering::Relaxed));
    let answers = fs::symlink_metadata(dir.join(name)).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    let device = |dir: &Path| fs::metadata(dir).map(|meta| meta.dev()).ok();
    answers && device(dir) != dir.parent().and_then(device)
}
