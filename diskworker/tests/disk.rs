//! A disk at work in a temporary folder, and the calls tests make on it.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use delugefs_diskworker::engine::{Engine, Offer, Opening, Running, Settings, make_catalog};
use delugefs_diskworker::folder::DiskFolder;
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::{ClusterId, Ino};
use delugefs_proto::local_pb as pb;

/// Session number the tests use.
pub const SESSION: u64 = 7;

/// See the module.
pub struct Disk {
    running: Option<Running>,
    dir: tempfile::TempDir,
}

/// The state of a disk at a moment.
pub struct Given {
    pack: Vec<u8>,
    commit: git2::Oid,
}

impl Disk {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { running: Some(new_at(&dir.path().join("d"))), dir }
    }

    pub fn engine(&self) -> &Arc<Engine> {
        &self.running.as_ref().unwrap().engine
    }

    /// Until nothing is staged any more.
    pub fn wait_until_sealed(&self) {
        let begin = std::time::Instant::now();
        while !self.engine().store.staged().unwrap().is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(30), "something stays staged");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stop cleanly and start again.
    pub fn restart(&mut self) {
        self.running.take().unwrap().stop().unwrap();
        self.running = Some(start(open(&self.dir.path().join("d"))));
    }

    /// Start from what the folder held at this moment, as after a crash of the process.
    pub fn crash(&mut self) {
        self.crash_with(|_| ());
    }

    /// The same, with a look at the folder before it is started.
    pub fn crash_with<T>(&mut self, look: impl FnOnce(&std::path::Path) -> T) -> T {
        let image = tempfile::tempdir().unwrap();
        let copy = || {
            let mut cp = std::process::Command::new("cp");
            cp.arg("-a").arg(self.dir.path().join("d")).arg(image.path()).output().unwrap()
        };
        // Its threads go on: a file may vanish while it is copied, and what is copied last may be newer than what was copied first.
        let state = || {
            let engine = self.engine();
            (engine.committed().commit, engine.seq(), engine.store.staged().unwrap())
        };
        let is_copied = (0..20).any(|_| {
            let (before, copied) = (state(), copy());
            let is_whole = copied.status.success() && state() == before;
            if !is_whole {
                eprintln!("copied again: {}", String::from_utf8_lossy(&copied.stderr));
                std::fs::remove_dir_all(image.path().join("d")).unwrap();
            }
            is_whole
        });
        assert!(is_copied, "it is never the same before and after it is copied");
        self.running.take().unwrap().stop().unwrap();
        self.dir = image;
        let seen = look(&self.dir.path().join("d"));
        self.running = Some(start(open(&self.dir.path().join("d"))));
        seen
    }

    /// The machine goes down when a joined state is on the disk, and of what the join made of it nothing.
    pub fn crash_with_join(&mut self, given: &Given) {
        self.take(given);
        self.crash_with(|root| {
            for file in std::fs::read_dir(root.join("journal")).unwrap().map(|file| file.unwrap().path()) {
                if file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"log-")) {
                    std::fs::remove_file(file).unwrap();
                }
            }
        });
    }

    /// Give our state to another disk and take its state.
    pub fn exchange(&self, other: &Disk) {
        other.take(&self.give());
        self.take(&other.give());
    }

    /// Our state as it is now.
    pub fn give(&self) -> Given {
        let mut pack = Vec::new();
        self.engine().commit().unwrap();
        let offer = Offer { state: self.engine().committed(), base: None };
        self.engine().export(&offer, &mut pack).unwrap();
        Given { pack, commit: offer.state.commit }
    }

    /// Join what another disk gave.
    pub fn take(&self, given: &Given) {
        self.engine().join(&mut &given.pack[..], given.commit, None).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let stopped = running.stop();
            if !std::thread::panicking() {
                stopped.unwrap();
            }
        }
    }
}

/// A new disk in a folder that is not there yet.
pub fn new_at(root: &std::path::Path) -> Running {
    start(match DiskFolder::create_with(root, "test", Some(ClusterId([1; 16])), make_catalog) {
        // Made, and then locked again: see `open`.
        Err(error) if error.to_string().contains("is in use by") => open(root),
        made => made.unwrap(),
    })
}

/// Open a disk's folder. A program that another test is just starting has a copy of the lock until it runs.
pub fn open(root: &std::path::Path) -> DiskFolder {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        match DiskFolder::open(root, Some("test")) {
            Err(error) if error.to_string().contains("is in use by") && std::time::Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            opened => return opened.unwrap(),
        }
    }
}

pub fn start(folder: DiskFolder) -> Running {
    Running::start(Arc::new(folder), Settings { reserve_bytes: 0, retention: Duration::from_secs(3600) }).unwrap()
}

/// What a user does, by path; each call resolves its path anew.
pub trait Posix {
    fn resolve(&self, path: &[&[u8]]) -> FsResult<pb::Attr>;
    fn parent(&self, path: &[&[u8]]) -> FsResult<u64>;
    fn create(&self, path: &[&[u8]], mode: u32, data: &[u8]) -> FsResult<()>;
    fn write(&self, path: &[&[u8]], at: u64, data: &[u8], truncate: bool) -> FsResult<()>;
    fn read(&self, path: &[&[u8]]) -> FsResult<Vec<u8>>;
    fn list(&self, dir: u64) -> FsResult<Vec<(Vec<u8>, pb::Attr)>>;
}

fn bytes(name: &[u8]) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(name)
}

impl Posix for Engine {
    fn resolve(&self, path: &[&[u8]]) -> FsResult<pb::Attr> {
        let root = pb::GetAttr { ino: Ino::ROOT.0, dir: 0 };
        let mut attr = self.get_attr(&root)?.node.unwrap();
        for name in path {
            if attr.mode & 0o170000 != 0o040000 {
                return Err(nix::errno::Errno::ENOTDIR.into());
            }
            attr = self.lookup(&pb::Lookup { dir: attr.ino, name: bytes(name) })?.node.unwrap();
        }
        Ok(attr)
    }

    fn parent(&self, path: &[&[u8]]) -> FsResult<u64> {
        let attr = self.resolve(&path[..path.len() - 1])?;
        if attr.mode & 0o170000 == 0o040000 { Ok(attr.ino) } else { Err(nix::errno::Errno::ENOTDIR.into()) }
    }

    fn create(&self, path: &[&[u8]], mode: u32, data: &[u8]) -> FsResult<()> {
        let dir = self.parent(path)?;
        let name = bytes(path[path.len() - 1]);
        let q = pb::Create { dir, name, mode, uid: 1, gid: 2, ino: 0 };
        let (_, opening) = Engine::create(self, SESSION, false, &q)?;
        let Opening::File { handle, file } = opening else { panic!() };
        file.write_all_at(data, 0)?;
        drop(file);
        self.close(SESSION, handle, false).map(drop)
    }

    fn write(&self, path: &[&[u8]], at: u64, data: &[u8], truncate: bool) -> FsResult<()> {
        let attr = self.resolve(path)?;
        let q = pb::Open { ino: attr.ino, dir: attr.dir, write: true, truncate };
        let (_, opening) = self.open(SESSION, &q)?;
        let Opening::File { handle, file } = opening else { panic!() };
        file.write_all_at(data, at)?;
        drop(file);
        self.close(SESSION, handle, false).map(drop)
    }

    fn read(&self, path: &[&[u8]]) -> FsResult<Vec<u8>> {
        let attr = self.resolve(path)?;
        let q = pb::Open { ino: attr.ino, dir: attr.dir, write: false, truncate: false };
        match self.open(SESSION, &q)?.1 {
            Opening::Inline(data) => Ok(data.to_vec()),
            Opening::File { mut file, .. } => {
                let mut data = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut data)?;
                Ok(data)
            }
        }
    }

    fn list(&self, dir: u64) -> FsResult<Vec<(Vec<u8>, pb::Attr)>> {
        let mut all: Vec<(Vec<u8>, pb::Attr)> = Vec::new();
        loop {
            let after = all.last().map_or_else(Default::default, |(name, _)| bytes(name));
            let (_, listing) = self.read_dir(&pb::ReadDir { dir, after, limit: 3 })?;
            all.extend(listing.entries.into_iter().map(|e| (e.name.to_vec(), e.attr.unwrap())));
            if !listing.more {
                return Ok(all);
            }
        }
    }
}
