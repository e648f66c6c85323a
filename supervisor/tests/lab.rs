//! A host of its own for each test: run, state and disk folders below one temporary folder, the programs of this
//! workspace, stand-ins for worker and frontend. Whatever a test leaves running is ended by its recorded process id.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use delugefs_proto::disk::{DISK_TOML, DiskToml};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything; generous, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Lab {
    dir: TempDir,
    children: Vec<Child>,
}

/// What a finished command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Lab {
    pub fn new() -> Self {
        // /tmp and not $TMPDIR: paths of sockets are short.
        let lab = Self { dir: TempDir::with_prefix_in("dfs", "/tmp").unwrap(), children: Vec::new() };
        for folder in ["lib", "a", "b", "m", "n"] {
            fs::create_dir(lab.path(folder)).unwrap();
        }
        let supervisor = Path::new(env!("CARGO_BIN_EXE_delugefs-supervisor"));
        let examples = supervisor.parent().unwrap().join("examples");
        let fakes = [("delugefs-diskworker", "fake_worker"), ("delugefs-fusefront", "fake_frontend")];
        for (program, fake) in fakes {
            let fake = examples.join(fake);
            assert!(fake.exists(), "{} is missing: `cargo test` without --test builds it", fake.display());
            symlink(fake, lab.path("lib").join(program)).unwrap();
        }
        symlink(supervisor, lab.path("lib/delugefs-supervisor")).unwrap();
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("r")
    }

    /// How `worker` or `frontend` behave from their next start or call on.
    pub fn manners(&self, who: &str, text: &str) {
        let _ = fs::create_dir(self.run_dir());
        fs::write(self.run_dir().join(format!("fake-{who}")), text).unwrap();
    }

    /// Make the disk in `a` and take it back: the mount that is asked for with it fails.
    pub fn make_disk(&self) {
        self.manners("frontend", "exit-before-ready 15");
        assert_eq!(self.says(&["run", "home", "a", "--create", "--mount", "m", "--state-dir", "s"]).code, 15);
        fs::remove_file(self.run_dir().join("fake-frontend")).unwrap();
    }

    /// As somebody who founded a cluster of that name elsewhere made it.
    pub fn make_disk_of_another_home(&self, folder: &str) {
        let (cluster_id, disk_id) = ("02".repeat(16), "03".repeat(32));
        let disk = DiskToml { format: 1, cluster: "home".into(), cluster_id, disk_id };
        fs::write(self.path(folder).join(DISK_TOML), toml::to_string(&disk).unwrap()).unwrap();
    }

    /// Have frontends really mount, where that is possible; the caller is skipped elsewhere.
    pub fn can_mount(&self) -> bool {
        self.manners("frontend", "mount");
        let can = cfg!(target_os = "linux") && nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists();
        if !can {
            eprintln!("skipped: it needs Linux, root and /dev/fuse");
        }
        can
    }

    /// `delugefs`, with nothing of the tester's environment.
    pub fn delugefs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_delugefs"));
        self.hermetic(&mut command);
        command.arg("--run-dir").arg(self.run_dir()).args(arguments);
        command
    }

    pub fn hermetic(&self, command: &mut Command) {
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DELUGEFS_LIBEXEC", self.path("lib"));
        command.env("DELUGEFS_NO_MDNS", "1"); // nothing of it is for the machine's networks
        command.current_dir(self.dir.path()).stdin(Stdio::null());
    }

    /// Run it to its end.
    pub fn says(&self, arguments: &[&str]) -> Said {
        self.said(self.delugefs(arguments).output().unwrap())
    }

    /// With what differs from run to run replaced.
    pub fn said(&self, output: Output) -> Said {
        let text = |bytes: Vec<u8>| self.tidy(&String::from_utf8(bytes).unwrap());
        Said { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    pub fn tidy(&self, text: &str) -> String {
        let text = text.replace(self.path("").to_str().unwrap().trim_end_matches('/'), "LAB");
        text.replace("`delugefs --run-dir LAB/r ", "`delugefs ") // one test says that it is there
    }

    /// Start something that stays.
    pub fn spawn(&mut self, mut command: Command, log: &str) -> u32 {
        let log = |end| fs::File::create(self.path(&format!("{log}.{end}"))).unwrap();
        let child = command.stdout(log("out")).stderr(log("err")).spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        pid
    }

    /// Start `delugefs-supervisor` and wait until it serves.
    pub fn supervisor(&mut self, log: &str, arguments: &[&str]) -> u32 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_delugefs-supervisor"));
        self.hermetic(&mut command);
        command.arg("--run-dir").arg(self.run_dir()).arg("--state-dir").arg(self.path("s")).args(arguments);
        let pid = self.spawn(command, log);
        self.wait_for("the supervisor", || self.out(log).contains("ready"));
        pid
    }

    /// Start `delugefs run` with a mount and wait until it is ready.
    pub fn run(&mut self, arguments: &[&str]) -> u32 {
        let state_dir = self.path("s").display().to_string();
        let mut all = vec!["run", "home", "a", "--state-dir", &state_dir];
        all.extend(arguments);
        let pid = self.spawn(self.delugefs(&all), "run");
        self.wait_for("`delugefs run` to be ready", || self.out("run") == "ready\n");
        pid
    }

    pub fn out(&self, log: &str) -> String {
        fs::read_to_string(self.path(&format!("{log}.out"))).unwrap_or_default()
    }

    pub fn err(&self, log: &str) -> String {
        self.tidy(&fs::read_to_string(self.path(&format!("{log}.err"))).unwrap_or_default())
    }

    /// The exit code of a process that [`Lab::spawn`] started; -1 when a signal ended it.
    pub fn wait(&mut self, pid: u32) -> i32 {
        let at = self.children.iter().position(|child| child.id() == pid).unwrap();
        let mut child = self.children.remove(at);
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            if start.elapsed() > PATIENCE {
                self.children.push(child);
                panic!("process {pid} does not end\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn wait_for(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < PATIENCE, "waited in vain for {what}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `status --json`, or null while no supervisor answers.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.says(&["status", "--json"]).stdout).unwrap_or(Value::Null)
    }

    pub fn wait_for_status(&self, what: &str, mut condition: impl FnMut(&Value) -> bool) -> Value {
        let mut status = Value::Null;
        self.wait_for(what, || {
            status = self.status();
            condition(&status)
        });
        status
    }

    pub fn logs(&self) -> String {
        ["run", "run2", "sup", "sup2"].map(|log| format!("--- {log}\n{}{}", self.out(log), self.err(log))).join("")
    }

    /// Processes the supervisors wrote down.
    pub fn noted(&self) -> Vec<u32> {
        crate::e2e::noted(&self.run_dir())
    }

    /// Nothing is left that should not be.
    pub fn assert_clean(&self) {
        let left: Vec<_> = self.noted().into_iter().filter(|pid| is_ours(*pid)).collect();
        assert!(left.is_empty(), "processes {left:?} are left\n{}", self.logs());
        let files =
            fs::read_dir(self.run_dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let odd: Vec<_> =
            files.filter(|name| name.ends_with(".pid") || name.ends_with(".log") || name == "control.sock").collect();
        assert!(odd.is_empty(), "{odd:?} are left in the run directory");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Twice: a supervisor may just be starting another one.
        for pid in self.noted().into_iter().chain(self.noted()) {
            if is_ours(pid) {
                signal(pid, Signal::SIGKILL);
            }
        }
        for mount in delugefs_supervisor::sys::delugefs_mounts().unwrap_or_default() {
            if mount.starts_with(self.dir.path()) {
                let _ = delugefs_supervisor::sys::detach(&mount);
            }
        }
    }
}

fn is_ours(pid: u32) -> bool {
    ["delugefs-supervisor", "delugefs-diskworker", "delugefs-fusefront"]
        .iter()
        .any(|program| delugefs_supervisor::sys::is_running(pid, program))
}

pub fn pid_of(object: &Value) -> Option<u32> {
    object["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
}

pub fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
}

pub fn kill_hard(pid: u32) {
    signal(pid, Signal::SIGKILL);
}

pub fn terminate(pid: u32) {
    signal(pid, Signal::SIGTERM);
}
