//! The hosts and their cables. Whatever a test leaves is removed when the lab is dropped, also after a panic: processes by
//! the ids the supervisors wrote down, mounts below the lab's folder, namespaces by name. A story that ends well ends with
//! [`Lab::finish`] or [`Lab::end`], which look at what it leaves (`ending`).

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::ending::Expected;
use super::wait_for;
use crate::e2e::{bin, children, clean, is_ours, kill_noted, noted, said, signal, usage};

/// What the programs warn about when one of them is killed.
pub const KILLS: [Expected; 9] = [
    ("the serving process was killed signal=Some(9)", "the launcher of a frontend that was killed"),
    ("the process that served", "the supervisor, of the same"),
    ("the launcher is gone", "a frontend whose launcher was killed"),
    ("was killed by SIGKILL", "the supervisor, of each"),
    ("lost the diskworker; waiting for it to come back", "a frontend whose worker was killed"),
    ("connection of a frontend", "a worker whose frontend was killed"),
    (": transport error", "a supervisor that asked a worker as it was killed"),
    ("delugefs-fusefront ended", "of one that the supervisor before had started"),
    ("delugefs-diskworker ended", "the same"),
];

/// And when a worker is halted for a while.
pub const HALTED: [Expected; 7] = [
    ("the diskworker hangs", "its frontend"),
    ("lost the diskworker; waiting for it to come back", "the same"),
    ("cannot be reached", "who asked it for a content"),
    ("Connection timed out", "the same, who was connected with it"),
    ("the content does not arrive", "a frontend whose program waited for that"),
    ("connection of a frontend", "the worker, of one that has not waited for it"),
    (": transport error", "its supervisor"),
];

/// See the module.
pub struct Lab {
    switch: String,
    pub hosts: Vec<Host>,
    /// Nothing of it is left.
    is_removed: bool,
}

/// One "host".
pub struct Host {
    dir: TempDir,
    name: String,
    switch: String,
    number: usize,
    run: Option<Child>,
    starts: u32,
    /// How far its clock is off, as faketime(1) has it.
    pub clock: Option<&'static str>,
    limited: Vec<PathBuf>,
    /// Whether what ran last here ended by itself or was asked to end.
    ended_well: bool,
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

impl Lab {
    /// With so many hosts, all connected. `None`, with the reason printed, where this cannot be.
    pub fn new(count: usize) -> Option<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("df{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let switch = format!("{prefix}-s");
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() || !ip(&["netns", "add", &switch]) {
            println!("skipped: it needs root, /dev/fuse and network namespaces");
            return None;
        }
        let mut lab = Self { switch: switch.clone(), hosts: Vec::new(), is_removed: false };
        let must = |arguments: &[&str]| assert!(ip(arguments), "ip {arguments:?}");
        must(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        must(&["-n", &switch, "link", "set", "br0", "up"]);
        for number in 1..=count {
            let name = format!("{prefix}-{number}");
            must(&["netns", "add", &name]);
            let dir = TempDir::with_prefix_in("dfc", "/tmp").unwrap();
            let host = Host {
                dir,
                name,
                switch: switch.clone(),
                number,
                run: None,
                starts: 0,
                clock: None,
                limited: Vec::new(),
                ended_well: true,
            };
            let (name, port) = (host.name.clone(), host.port());
            lab.hosts.push(host);
            must(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name]);
            must(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
            must(&["-n", &name, "addr", "add", &format!("10.77.0.{number}/24"), "dev", "eth0"]);
            must(&["-n", &name, "link", "set", "eth0", "up"]);
            must(&["-n", &name, "link", "set", "lo", "up"]);
            must(&["-n", &name, "route", "add", "default", "via", "10.77.0.254"]);
        }
        Some(lab)
    }

    /// All that the programs said.
    pub fn logs(&self) -> String {
        self.hosts.iter().map(Host::logs).collect()
    }

    /// Warnings and errors in what the programs said that have none of these texts in them.
    pub fn unexpected(&self, expected: &[Expected]) -> Vec<String> {
        let logs = self.logs();
        let odd = logs.lines().filter(|line| ["WARN", "ERROR", "panicked at"].iter().any(|what| line.contains(what)));
        odd.filter(|line| !expected.iter().any(|(text, _)| line.contains(text))).map(str::to_owned).collect()
    }

    /// Wait until these hosts have one catalog, with nothing uncommitted.
    pub fn wait_for_one_catalog(&self, hosts: &[usize]) {
        let commits = || -> Vec<(Value, Value)> {
            let workers = hosts.iter().flat_map(|at| {
                let disks = self.hosts[*at].json(&["status"])["disks"].as_array().cloned().unwrap_or_default();
                disks.into_iter().map(|disk| disk["worker"].clone()).collect::<Vec<_>>()
            });
            workers.map(|it| (it["catalog_commit"].clone(), it["uncommitted_changes"].clone())).collect()
        };
        wait_for(
            "one catalog",
            || format!("{:?}\n{}", commits(), self.logs()),
            || {
                let commits = commits();
                commits[0].0.is_string() && commits.iter().all(|one| *one == commits[0] && one.1 == 0)
            },
        );
    }

    /// Wait until all disks of these hosts are connected with so many others.
    pub fn wait_for_peers(&self, hosts: &[usize], others: usize) {
        for at in hosts {
            let connected = || {
                let peers = self.hosts[*at].json(&["peers"]);
                let disks = peers["disks"].as_array().cloned().unwrap_or_default();
                disks.iter().filter(|disk| disk["connected"] == true).count() == others + 1
            };
            wait_for("peers", || format!("{}\n{}", self.hosts[*at].says(&["peers"]).1, self.logs()), connected);
        }
    }
}

impl Host {
    fn port(&self) -> String {
        format!("v{}", self.number)
    }

    /// Pull the cable, or put it back.
    pub fn plug(&self, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        assert!(ip(&["-n", &self.switch, "link", "set", &self.port(), state]));
    }

    /// Another address than the one it had.
    pub fn move_to(&self, address: &str) {
        assert!(ip(&["-n", &self.name, "addr", "flush", "dev", "eth0"]));
        assert!(ip(&["-n", &self.name, "addr", "add", &format!("{address}/24"), "dev", "eth0"]));
        assert!(ip(&["-n", &self.name, "route", "replace", "default", "via", "10.77.0.254"]));
    }

    /// ip(8) in its network.
    #[cfg(target_os = "linux")]
    pub fn ip(&self, arguments: &[&str]) {
        let all = [&["-n", &self.name], arguments].concat();
        assert!(ip(&all), "ip {all:?}");
    }

    /// Put a network device of this process into its network.
    #[cfg(target_os = "linux")]
    pub fn take_device(&self, device: &str) {
        assert!(ip(&["link", "set", device, "netns", &self.name]));
    }

    /// Put a file system of so many MiB behind a folder.
    pub fn limit(&mut self, disk: &str, mib: u32) {
        fs::create_dir(self.path(disk)).unwrap();
        let size = format!("size={mib}m");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(self.path(disk)).status();
        assert!(status.unwrap().success());
        self.limited.push(self.path(disk));
    }

    /// Below the host's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Below its mount.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path("m").join(name)
    }

    /// Any program, in the host's network.
    pub fn command(&self, program: &str) -> Command {
        let mut command = clean(Command::new("nsenter"), self.dir.path());
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }

    /// See [`usage`].
    pub fn usage(&self) -> (f64, u64) {
        usage(&self.path("r"))
    }

    fn delugefs(&self, arguments: &[&str]) -> Command {
        let mut command = clean(Command::new("nsenter"), self.dir.path());
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--");
        if let Some(clock) = self.clock {
            command.args(["faketime", "-f", clock]);
        }
        command.arg(bin("delugefs"));
        command.arg("--run-dir").arg(self.path("r")).args(arguments);
        command
    }

    /// Run it to its end: exit code and all it said.
    pub fn says(&self, arguments: &[&str]) -> (i32, String) {
        said(&mut self.delugefs(arguments))
    }

    /// What it prints with --json.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.delugefs(arguments).arg("--json").output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// An invitation.
    pub fn invite(&self) -> String {
        let output = self.delugefs(&["invite"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Whether it was started and neither stopped nor killed.
    pub fn runs(&self) -> bool {
        self.run.is_some()
    }

    /// Whether what ran last here ended by itself or was asked to end.
    pub fn ended_well(&self) -> bool {
        self.ended_well
    }

    /// Its network namespace,
    pub fn network_file(&self) -> File {
        File::open(format!("/run/netns/{}", self.name)).unwrap()
    }

    /// and which that is, as the kernel numbers them.
    pub fn network(&self) -> u64 {
        self.network_file().metadata().unwrap().ino()
    }

    /// Begin `delugefs run home DISK`, with its mount.
    pub fn begin(&mut self, disk: &str, more: &[&str]) {
        self.starts += 1;
        self.ended_well = false;
        let log = |end| File::create(self.path(&format!("run{}.{end}", self.starts))).unwrap();
        let mut command = self.delugefs(&["run", "home", disk, "--mount", "m", "--state-dir", "s"]);
        command.args(more).stdout(log("out")).stderr(log("err"));
        self.run = Some(command.spawn().unwrap());
    }

    /// The same, until it is ready.
    pub fn start(&mut self, disk: &str, more: &[&str]) {
        self.begin(disk, more);
        let said = || fs::read_to_string(self.path(&format!("run{}.out", self.starts))).unwrap_or_default();
        wait_for("`delugefs run` to be ready", || self.logs(), || said() == "ready\n");
    }

    /// The same as a service would: `delugefs-supervisor` with a configuration, until its first mount is up.
    pub fn serve(&mut self, config: &str, more: &[&str]) {
        self.starts += 1;
        self.ended_well = false;
        let log = |end| File::create(self.path(&format!("run{}.{end}", self.starts))).unwrap();
        let mut command = self.command(bin("delugefs-supervisor").to_str().unwrap());
        command.arg("--run-dir").arg(self.path("r")).arg("--state-dir").arg(self.path("s"));
        command.arg("--config").arg(self.path(config)).args(more).stdout(log("out")).stderr(log("err"));
        self.run = Some(command.spawn().unwrap());
        wait_for("the mount", || self.logs(), || self.json(&["status"])["mounts"][0]["state"] == "up");
    }

    /// Wait until it ends by itself; its exit code.
    pub fn wait_for_end(&mut self) -> i32 {
        let mut run = self.run.take().expect("it runs");
        let mut code = None;
        wait_for(
            "`delugefs run` to end",
            || self.logs(),
            || {
                code = run.try_wait().unwrap().map(|status| status.code().unwrap_or(-1));
                code.is_some()
            },
        );
        self.ended_well = true;
        code.unwrap()
    }

    /// Ask it to end, as a person would.
    pub fn ask_to_end(&self) {
        let run = self.run.as_ref().expect("it runs").id();
        // faketime(1) is the parent of the program, and hands no signal on.
        let program = self.clock.and_then(|_| children(run).first().copied());
        signal(program.unwrap_or(run), Signal::SIGTERM);
    }

    /// End it as a person would, and well.
    pub fn stop(&mut self) {
        self.ask_to_end();
        let code = self.wait_for_end();
        assert_eq!(code, 0, "`delugefs run` of host {} ended badly\n{}", self.number, self.logs());
    }

    /// Kill everything at once, as if the power had gone.
    pub fn kill(&mut self) {
        self.ended_well = false;
        if let Some(mut run) = self.run.take() {
            // faketime(1) is the parent of the program, which would start all again.
            children(run.id()).into_iter().for_each(|child| signal(child, Signal::SIGKILL));
            run.kill().unwrap();
            run.wait().unwrap();
        }
        kill_noted(&self.path("r"));
        wait_for("killed processes to end", || self.logs(), || !noted(&self.path("r")).into_iter().any(is_ours));
        for mount in delugefs_supervisor::sys::delugefs_mounts().unwrap_or_default() {
            if mount.starts_with(self.dir.path()) {
                let _ = delugefs_supervisor::sys::detach(&mount);
            }
        }
    }

    /// Nothing of it runs or is mounted any more.
    pub fn assert_gone(&self) {
        let left: Vec<_> = noted(&self.path("r")).into_iter().filter(|pid| is_ours(*pid)).collect();
        assert!(left.is_empty(), "processes {left:?} are left\n{}", self.logs());
        let mounts = delugefs_supervisor::sys::delugefs_mounts().unwrap_or_default();
        let left: Vec<_> = mounts.iter().filter(|mount| mount.starts_with(self.dir.path())).collect();
        assert!(left.is_empty(), "{left:?} is still mounted\n{}", self.logs());
    }

    /// The process id of the first disk's worker.
    pub fn worker(&self) -> u32 {
        self.json(&["status"])["disks"][0]["pid"].as_u64().unwrap() as u32
    }

    /// Number of disks that hold a file's content.
    pub fn copies(&self, name: &str) -> usize {
        let file = self.file(name);
        let answer = self.json(&["whereis", file.to_str().unwrap()]);
        answer[0]["disk_ids"].as_array().map_or(0, Vec::len)
    }

    pub fn logs(&self) -> String {
        let read = |n| fs::read(self.path(&format!("run{n}.err"))).unwrap_or_default();
        let log = |n| format!("--- host {} run {n}\n{}", self.number, String::from_utf8_lossy(&read(n)));
        (1..=self.starts).map(log).collect()
    }
}

impl Lab {
    /// Take away what is left of hosts that do not run, and the hosts; what could not be taken away.
    pub fn remove(&mut self) -> Vec<String> {
        let mut kept = Vec::new();
        for host in &self.hosts {
            for disk in &host.limited {
                let _ = delugefs_supervisor::sys::detach(disk); // looked at below
            }
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let folder = host.dir.path().to_str().unwrap();
            kept.extend(mounts.lines().filter(|line| line.contains(folder)).map(str::to_owned));
        }
        for name in self.hosts.iter().map(|host| &host.name).chain([&self.switch]) {
            ip(&["netns", "del", name]);
            kept.extend(Path::new("/run/netns").join(name).exists().then(|| name.clone()));
        }
        self.is_removed = true;
        kept
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.is_removed {
            return;
        }
        for host in &mut self.hosts {
            if std::thread::panicking() && std::env::var_os("DELUGEFS_E2E_KEEP").is_some() {
                host.dir.disable_cleanup(true);
            }
            if !std::thread::panicking() || host.run.is_some() {
                host.kill();
            }
        }
        self.remove();
        assert!(std::thread::panicking(), "the story ends without Lab::finish");
    }
}
