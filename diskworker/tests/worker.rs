//! The real program on a disk of its own, its log, and clients of both its sockets. Whatever a test leaves running is
//! ended by its process id.

use std::fs::{self, File};
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use delugefs_proto::exit::Exit;
use delugefs_proto::local::client::Client;
use delugefs_proto::worker_pb::{self as pb, worker_client::WorkerClient};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for anything; generous, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Descriptors that come and go with nobody's doing: packs, handles of the catalog.
pub const SLACK: usize = 8;

/// A folder with a disk and a run directory in it.
pub struct Host {
    dir: TempDir,
    root: PathBuf,
}

/// A running worker.
pub struct Worker {
    child: Option<Child>,
    log: PathBuf,
    /// Path of the framed socket.
    pub local: PathBuf,
    grpc: PathBuf,
}

/// How a worker ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    pub exit: Exit,
    pub log: String,
}

impl Host {
    pub fn new() -> Self {
        // /tmp and not $TMPDIR: paths of sockets are short. Others may look in: some tests come as somebody else.
        let dir = TempDir::with_prefix_in("dfw", "/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = dir.path().join("d");
        Self { dir, root }
    }

    /// With its disk somewhere else.
    pub fn on(root: PathBuf) -> Self {
        Self { root, ..Self::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The disk's folder.
    pub fn root(&self) -> PathBuf {
        self.root.clone()
    }

    /// The worker's command line.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_delugefs-diskworker"));
        command.env_clear().env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command.arg("--root").arg(self.root()).arg("--run-dir").arg(self.path("r")).arg("--no-register");
        command.args(["--cluster", "test", "--allow-root"]).args(arguments);
        command
    }

    /// Start it and wait until it serves.
    pub fn start(&self, arguments: &[&str]) -> Worker {
        self.try_start(self.command(arguments)).unwrap_or_else(|ended| panic!("the worker did not start: {ended:?}"))
    }

    /// A new disk with a worker on it.
    pub fn create(&self, arguments: &[&str]) -> Worker {
        let reserve: &[&str] = if arguments.contains(&"--reserve-bytes") { &[] } else { &["--reserve-bytes", "0"] };
        self.start(&[&["--create"], reserve, arguments].concat())
    }

    /// Start it; how it ended, if it did instead of serving.
    pub fn try_start(&self, mut command: Command) -> Result<Worker, Ended> {
        let log = self.path("log");
        command.stdout(Stdio::piped()).stderr(File::options().create(true).append(true).open(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("ready"), Some(_), Some(local), Some(grpc)) => {
                Ok(Worker { child: Some(child), log, local: local.into(), grpc: grpc.into() })
            }
            _ => Err(ended(&mut child, &log)),
        }
    }
}

fn ended(child: &mut Child, log: &Path) -> Ended {
    let status = wait(child);
    Ended { exit: exit_of(status), log: fs::read_to_string(log).unwrap_or_default() }
}

fn exit_of(status: ExitStatus) -> Exit {
    Exit::from_code(status.code().unwrap_or_else(|| panic!("killed by a signal: {status}")))
}

fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            drop(child.kill());
            panic!("the worker does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Worker {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Open descriptors of the process.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Path of the gRPC socket.
    pub fn grpc(&self) -> &Path {
        &self.grpc
    }

    pub fn client(&self, session: u64) -> Client {
        self.try_client(session, false).unwrap()
    }

    pub fn try_client(&self, session: u64, events: bool) -> std::io::Result<Client> {
        Client::connect(&self.local, session, events)
    }

    /// Ask over gRPC.
    pub fn ask<T, F: Future<Output = T>>(&self, question: impl FnOnce(WorkerClient<Channel>) -> F) -> T {
        let grpc = self.grpc.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let connect = tower::service_fn(move |_| {
                let grpc = grpc.clone();
                async move { tokio::net::UnixStream::connect(grpc).await.map(hyper_util::rt::TokioIo::new) }
            });
            let channel = Endpoint::from_static("http://worker").connect_with_connector_lazy(connect);
            tokio::time::timeout(PATIENCE, question(WorkerClient::new(channel))).await.unwrap()
        })
    }

    pub fn status(&self) -> pb::WorkerStatus {
        self.ask(async |mut worker| worker.status(pb::StatusRequest {}).await).unwrap().into_inner()
    }

    /// What a check of the whole disk complains about.
    pub fn problems(&self) -> Vec<String> {
        let scrub = async |mut worker: WorkerClient<Channel>| worker.scrub(pb::ScrubRequest {}).await;
        self.ask(scrub).unwrap().into_inner().problems
    }

    /// Stop it in order.
    pub fn stop(mut self) -> Ended {
        let mut child = self.child.take().unwrap();
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        ended(&mut child, &self.log)
    }

    /// Kill it.
    pub fn crash(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// It survived: no thread panicked, everything on the disk is as it should be, and it stops in order.
    pub fn assert_sound(self) {
        assert_eq!(self.problems(), Vec::<String>::new());
        let ended = self.stop();
        assert_eq!(ended.exit, Exit::Ok, "{}", ended.log);
        assert!(!ended.log.contains("panicked"), "{}", ended.log);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
            if std::thread::panicking() {
                let log = self.log();
                let lines: Vec<_> = log.lines().collect();
                eprintln!("--- end of the worker's log\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
    }
}

/// Wait until it is so.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Two clusters may have been founded under one name.
#[test]
fn a_disk_of_another_cluster_with_the_same_name_is_refused() {
    let (host, ours, other) = (Host::new(), "01".repeat(16), "02".repeat(16));
    host.create(&["--cluster-id", &ours]).stop();
    let ended = host.try_start(host.command(&["--cluster-id", &other])).err().unwrap();
    assert_eq!(ended.exit, Exit::WrongCluster);
    assert!(ended.log.contains("has the same name, test, but is another cluster"), "{}", ended.log);
    host.start(&["--cluster-id", &ours]).stop();
}
