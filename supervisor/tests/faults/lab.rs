//! A disk on a small file system, its worker, and a mount of it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use delugefs_proto::worker_pb::{ScrubRequest, StatusRequest, WorkerStatus, worker_client::WorkerClient};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for anything; generous, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module. What it started is killed when it is dropped.
pub struct Lab {
    dir: TempDir,
    worker: Option<Child>,
    frontend: Option<Child>,
    grpc: PathBuf,
    /// More of the worker's command line.
    pub arguments: Vec<String>,
}

/// Run a test with a disk on a tmpfs of so many MiB, mounted, if that is possible here.
pub fn with_lab(mib: u64, arguments: &[&str], test: impl FnOnce(&mut Lab) + Send) {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        return println!("skipped: needs root and /dev/fuse");
    }
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            if !own_mounts() {
                return println!("skipped: no mount namespace here");
            }
            // /tmp and not $TMPDIR: paths of sockets are short.
            let dir = TempDir::with_prefix_in("dff", "/tmp").unwrap();
            for folder in ["disk", "m"] {
                fs::create_dir(dir.path().join(folder)).unwrap();
            }
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let size = format!("size={mib}m");
            let disk = dir.path().join("disk");
            mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
            let mut lab = Lab { dir, worker: None, frontend: None, grpc: PathBuf::new(), arguments };
            lab.start();
            test(&mut lab);
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Give this thread, and what it starts, mounts of its own.
fn own_mounts() -> bool {
    #[allow(unsafe_code)]
    // SAFETY: changes nothing but the mount namespace and the working directory of this thread.
    let unshared = unsafe { nix::libc::unshare(nix::libc::CLONE_NEWNS) };
    let none: Option<&str> = None;
    unshared == 0 && mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).is_ok()
}

fn program(name: &str) -> Command {
    let path = Path::new(env!("CARGO_BIN_EXE_delugefs")).with_file_name(name);
    assert!(path.exists(), "{} is missing: `cargo build --workspace` makes it", path.display());
    let mut command = Command::new(path);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("RUST_BACKTRACE", "1").stdin(Stdio::null());
    command
}

impl Lab {
    /// Below the temporary folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// In the disk's folder.
    pub fn root(&self, name: &str) -> PathBuf {
        self.path("disk/d").join(name)
    }

    /// In the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.path("m").join(name)
    }

    /// Start worker and mount.
    pub fn start(&mut self) {
        let mut worker = program("delugefs-diskworker");
        worker.arg("--root").arg(self.path("disk/d")).arg("--run-dir").arg(self.path("r")).arg("--no-register");
        worker.args(["--cluster", "test", "--allow-root"]).args(&self.arguments);
        worker.args((!self.root("disk.toml").exists()).then_some("--create"));
        let (child, line) = self.spawn(worker);
        self.worker = Some(child);
        let words: Vec<&str> = line.split_whitespace().collect();
        let &["ready", _, local, grpc] = &words[..] else { panic!("the worker did not start\n{}", self.log()) };
        self.grpc = grpc.into();
        let mut frontend = program("delugefs-fusefront");
        frontend.arg("--worker").arg(local).arg("--mount").arg(self.path("m"));
        let (child, line) = self.spawn(frontend);
        self.frontend = Some(child);
        assert_eq!(line, "ready\n", "{}", self.log());
    }

    fn spawn(&self, mut command: Command) -> (Child, String) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (child, line)
    }

    /// What both programs said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Unmount, and stop in order.
    pub fn stop(&mut self) {
        for child in [self.frontend.take(), self.worker.take()] {
            let mut child = child.unwrap();
            kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
            let mut status = None;
            self.wait_until("the end", || {
                status = child.try_wait().unwrap();
                status.is_some()
            });
            assert!(status.unwrap().success(), "{status:?}\n{}", self.log());
        }
    }

    /// Stop, and start again: nothing is in any cache any more.
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Kill the worker and start another one; the mount stays.
    pub fn crash_worker(&mut self) {
        let mut worker = self.worker.take().unwrap();
        worker.kill().unwrap();
        worker.wait().unwrap();
        let mut worker = program("delugefs-diskworker");
        worker.arg("--root").arg(self.path("disk/d")).arg("--run-dir").arg(self.path("r")).arg("--no-register");
        worker.args(["--cluster", "test", "--allow-root"]).args(&self.arguments);
        let (child, line) = self.spawn(worker);
        self.worker = Some(child);
        assert!(line.starts_with("ready "), "{}", self.log());
    }

    fn ask<T, F: Future<Output = Result<tonic::Response<T>, tonic::Status>>>(
        &self,
        question: impl FnOnce(WorkerClient<Channel>) -> F,
    ) -> T {
        let grpc = self.grpc.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let connect = tower::service_fn(move |_| {
                let grpc = grpc.clone();
                async move { tokio::net::UnixStream::connect(grpc).await.map(hyper_util::rt::TokioIo::new) }
            });
            let channel = Endpoint::from_static("http://worker").connect_with_connector_lazy(connect);
            tokio::time::timeout(PATIENCE, question(WorkerClient::new(channel))).await.unwrap().unwrap().into_inner()
        })
    }

    pub fn status(&self) -> WorkerStatus {
        self.ask(async |mut worker| worker.status(StatusRequest {}).await)
    }

    /// What a check of the whole disk complains about.
    pub fn problems(&self) -> Vec<String> {
        self.ask(async |mut worker| worker.scrub(ScrubRequest {}).await).problems
    }

    pub fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain until {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Nothing panicked, everything on the disk is as it should be, and it stops in order.
    pub fn assert_sound(&mut self) {
        assert_eq!(self.problems(), Vec::<String>::new());
        self.stop();
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for mut child in [self.frontend.take(), self.worker.take()].into_iter().flatten() {
            let _gone = kill(Pid::from_raw(child.id().try_into().unwrap_or(0)), Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(10);
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _gone = child.kill();
            let _reaped = child.wait();
        }
        for mounted in ["m", "disk"] {
            let _not_mounted = umount2(&self.path(mounted), MntFlags::MNT_DETACH);
        }
    }
}

/// Bytes that do not compress and are the same for the same salt.
pub fn noise(len: usize, salt: u64) -> Vec<u8> {
    let mut word = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend(word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The errno of an error.
pub fn errno(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}
