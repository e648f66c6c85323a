//! Files in the run directory by which a supervisor finds what an earlier one left running: one note (`*.pid`) and one
//! log (`*.log`) per process, named after the disk's folder or the mountpoint.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use delugefs_proto::ids::hex;
use delugefs_proto::local::client::connect_now;
use delugefs_proto::rundir;
use serde::{Deserialize, Serialize};

use crate::owner::Served;
use crate::sys;

/// The program that serves a disk.
pub const WORKER: &str = "delugefs-diskworker";
/// The program that serves a mount.
pub const FRONTEND: &str = "delugefs-fusefront";

/// What a supervisor writes down about a process it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// The process.
    pub pid: u32,
    /// The disk's folder, or the mountpoint.
    pub path: PathBuf,
    /// Mounts: the local socket of the worker it was started for.
    pub socket: Option<PathBuf>,
    /// Disks: how the worker is reached; absent until it is ready.
    pub served: Option<Served>,
}

impl Note {
    /// Write it in one step, so that nobody reads half of it.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("pid.new");
        fs::write(&new, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        fs::rename(new, file)
    }

    /// The note, if there is one.
    pub fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }

    /// The note, if it is one about a process that still runs `program`.
    pub fn read_living(file: &Path, program: &str) -> Option<Self> {
        Self::read(file).filter(|note| sys::is_running(note.pid, program))
    }

    /// Frontends of an earlier supervisor that still serve their mountpoint. One that runs but has not mounted was just
    /// starting, and ends when it finds nobody to say `ready` to.
    ///
    /// # Errors
    /// Those of the file system and of reading the mount table.
    pub fn living_frontends(run_dir: &Path) -> io::Result<Vec<Self>> {
        let mounts = sys::delugefs_mounts()?;
        let mut found = Self::all_living(run_dir, "mount-", FRONTEND)?;
        found.retain(|note| mounts.contains(&note.path));
        Ok(found)
    }

    /// Workers of an earlier supervisor that are ready, and how they are reached.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn living_workers(run_dir: &Path) -> io::Result<Vec<(Self, Served)>> {
        let found = Self::all_living(run_dir, "disk-", WORKER)?.into_iter();
        Ok(found.filter_map(|note| note.served.clone().map(|served| (note, served))).collect())
    }

    fn all_living(run_dir: &Path, prefix: &str, program: &str) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(run_dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(prefix) && name.ends_with(".pid") {
                found.extend(Self::read_living(&path, program));
            }
        }
        Ok(found)
    }
}

/// Remove notes and logs of processes that have ended, and sockets of workers where nobody listens: of one that was killed, and whose disk is
/// elsewhere by now. Those of a worker that lives are not asked: it may hang, and FreeBSD says of one that takes nobody out of its queue what
/// it says of one that is dead.
///
/// # Errors
/// Those of the file system. What goes by itself meanwhile is none: a worker that ends takes its sockets away.
pub fn sweep(run_dir: &Path) -> io::Result<()> {
    let living = Note::living_workers(run_dir)?.into_iter();
    // By their names alone: the run directory may be called otherwise by now.
    let name_of = |path: PathBuf| path.file_name().map(ToOwned::to_owned);
    let served = |(_, served): (Note, Served)| [served.local_socket, served.grpc_socket];
    let served: HashSet<_> = living.flat_map(served).filter_map(name_of).collect();
    for entry in fs::read_dir(run_dir)? {
        let entry = entry?;
        let Some(kind) = unless_gone(entry.file_type())? else { continue };
        let (path, is_socket) = (entry.path(), kind.is_socket() && !served.contains(&entry.file_name()));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let note = path.with_extension("pid");
        let ours = name.starts_with("mount-") || name.starts_with("disk-");
        let lives = |program| Note::read_living(&note, program).is_some();
        let is_dead =
            |path: &Path| connect_now(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        let is_workers = is_socket && path != rundir::control_socket(run_dir);
        if ours && !lives(WORKER) && !lives(FRONTEND) || is_workers && is_dead(&path) {
            unless_gone(fs::remove_file(&path))?;
        }
    }
    Ok(())
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Note about a disk's worker.
pub fn worker_note(run_dir: &Path, root: &Path) -> PathBuf {
    run_dir.join(format!("disk-{}.pid", tag(root)))
}

/// Note about a mount's frontend.
pub fn frontend_note(run_dir: &Path, dir: &Path) -> PathBuf {
    run_dir.join(format!("mount-{}.pid", tag(dir)))
}

/// What a process writes to its stderr goes here, when its note is there.
pub fn log_beside(note: &Path) -> PathBuf {
    note.with_extension("log")
}

fn tag(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, path.as_os_str().as_bytes());
    hex(&digest.as_ref()[..8])
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn sockets_go_where_nobody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let bind = |name: &str| UnixListener::bind(dir.path().join(name)).unwrap();
        drop((bind("1a2b3c4d.sock"), bind("1a2b3c4d.grpc"), bind("control.sock")));
        let _living = bind("5e6f7a8b.sock");
        fs::write(dir.path().join("notes.sock"), "no socket").unwrap();
        sweep(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["5e6f7a8b.sock", "control.sock", "notes.sock"]);
    }

    /// Whoever would wait until it is taken out of the queue would wait for ever.
    #[test]
    fn a_worker_that_hangs_is_not_waited_for() {
        use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1a2b3c4d.sock");
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let queue: Vec<_> = (0..1000).map_while(|_| connect_now(&path).ok()).collect();
        assert!((1..1000).contains(&queue.len()), "{} are in it", queue.len());
        let (sender, swept) = std::sync::mpsc::channel();
        let run_dir = dir.path().to_owned();
        std::thread::spawn(move || sender.send(sweep(&run_dir)));
        let swept = swept.recv_timeout(std::time::Duration::from_secs(30));
        drop(queue);
        swept.expect("it waits").unwrap();
        // FreeBSD cannot tell.
        assert!(path.exists() || cfg!(target_os = "freebsd"));
    }

    /// FreeBSD says of one that hangs what it says of this one, where nobody listens.
    #[cfg(target_os = "linux")] // elsewhere it may have the name of what the link leads to
    #[test]
    fn the_sockets_of_a_worker_that_lives_are_not_asked() {
        use std::os::unix::process::CommandExt;
        use std::process::{Command, Stdio};
        let (dir, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let program = bin.path().join(WORKER);
        std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
        let mut worker =
            Command::new(&program).arg0("sh").args(["-c", "read ended"]).stdin(Stdio::piped()).spawn().unwrap();
        let [local_socket, grpc_socket] = ["1a2b3c4d.sock", "1a2b3c4d.grpc"].map(|name| dir.path().join(name));
        drop([&local_socket, &grpc_socket].map(|path| UnixListener::bind(path).unwrap()));
        let served = Served { disk_id: "1a2b3c4d".into(), local_socket, grpc_socket };
        let note = Note { pid: worker.id(), path: "/a".into(), socket: None, served: Some(served) };
        note.write(&worker_note(dir.path(), &note.path)).unwrap();
        let count = || fs::read_dir(dir.path()).unwrap().count();
        let swept = sweep(dir.path());
        let left = count();
        drop(worker.stdin.take()); // it ends
        worker.wait().unwrap();
        swept.unwrap();
        assert_eq!(left, 3);
        sweep(dir.path()).unwrap();
        assert_eq!(count(), 0);
    }

    #[test]
    fn only_the_living_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = frontend_note(dir.path(), Path::new("/mnt/x"));
        let me =
            Note { pid: std::process::id(), path: "/mnt/x".into(), socket: Some("/run/1.sock".into()), served: None };
        me.write(&file).unwrap();
        let program = std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let thread_name = fs::read_to_string("/proc/self/comm").unwrap_or(program);
        assert_eq!(Note::read_living(&file, thread_name.trim()), Some(me));
        assert_eq!(Note::living_frontends(dir.path()).unwrap(), [], "this process is no frontend");
        fs::write(log_beside(&file), "").unwrap();
        sweep(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
