//! A diskworker for tests: a tree in memory over a temporary folder, speaking local.proto on a real socket with real
//! descriptors and locks. It checks what the frontend owes it: a descriptor is closed before its handle.

#[path = "fake/tree.rs"]
pub mod tree;

use std::collections::HashMap;
use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use delugefs_fusefront::os::ENOATTR;
use delugefs_proto::ids::random_u64;
use delugefs_proto::local::{LOCAL_VERSION, frame};
use delugefs_proto::local_pb::*;
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use self::tree::{Tree, now};

/// What says that it cannot be synced. FreeBSD's /dev/null can.
fn unsyncable_file() -> File {
    match cfg!(target_os = "linux") {
        true => File::options().read(true).write(true).open("/dev/null").unwrap(),
        false => OwnedFd::from(UnixStream::pair().unwrap().0).into(),
    }
}

pub struct FakeWorker {
    pub socket: PathBuf,
    pub shared: Arc<Shared>,
    accepting: Option<(JoinHandle<()>, Arc<AtomicBool>)>,
    _dir: tempfile::TempDir,
}

pub struct Shared {
    pub tree: Mutex<Tree>,
    /// Requests answered, by name of the operation.
    pub requests: Mutex<HashMap<&'static str, usize>>,
    /// So many changing requests are carried out without an answer, the connection is closed instead.
    pub swallow: AtomicUsize,
    silence: Mutex<Silence>,
    /// So many connections are closed as soon as they are made.
    pub refuse: AtomicUsize,
    /// Who opens to write gets a descriptor that cannot be synced.
    pub unsyncable: AtomicBool,
    /// Who opens to read gets a descriptor that cannot be read, and would get another one once that is told.
    pub unreadable: AtomicBool,
    /// No other disk has what cannot be read.
    pub only_copy: AtomicBool,
    /// Another mount has what is opened for reading open for writing.
    pub written_elsewhere: AtomicBool,
    /// So many are told that what they open for reading is still being fetched. Their handles are soon gone.
    pub partial: AtomicUsize,
    /// No descriptor arrives, as where the frontend may not have more.
    pub without_descriptors: AtomicBool,
    /// Requests that told of a failed sync.
    pub told: Mutex<Vec<&'static str>>,
    /// Done to the tree when a writer has closed and before he is answered, once.
    pub at_close: Mutex<Option<AtClose>>,
    answering: Condvar,
    connections: Mutex<Vec<UnixStream>>,
    events: Mutex<Vec<(u64, UnixStream)>>,
    handles: Mutex<HashMap<u64, Handle>>,
    run: Mutex<u64>,
    /// The disk's id.
    pub disk: Mutex<String>,
    /// The cluster's id.
    pub cluster_id: Mutex<String>,
    broken_promises: Mutex<Vec<String>>,
}

/// What waits until that changes.
#[derive(Default)]
struct Silence {
    /// Requests of any name, and greetings.
    all: bool,
    /// Requests of this name.
    to: Option<&'static str>,
    /// Answers to requests of this name, which are carried out.
    after: Option<&'static str>,
    /// Answers that wait.
    withheld: usize,
}

struct Handle {
    session: u64,
    ino: u64,
    write: bool,
}

pub type AtClose = Box<dyn FnOnce(&mut Tree) + Send>;

type Answer = Result<(Reply, Option<OwnedFd>), Errno>;

impl FakeWorker {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("w.sock");
        let shared = Arc::new(Shared {
            tree: Mutex::new(Tree::new(dir.path())),
            requests: Mutex::default(),
            swallow: AtomicUsize::new(0),
            silence: Mutex::default(),
            refuse: AtomicUsize::new(0),
            unsyncable: AtomicBool::new(false),
            unreadable: AtomicBool::new(false),
            only_copy: AtomicBool::new(false),
            written_elsewhere: AtomicBool::new(false),
            partial: AtomicUsize::new(0),
            without_descriptors: AtomicBool::new(false),
            told: Mutex::default(),
            at_close: Mutex::default(),
            answering: Condvar::new(),
            connections: Mutex::default(),
            events: Mutex::default(),
            handles: Mutex::default(),
            run: Mutex::new(0),
            disk: Mutex::new("00".into()),
            cluster_id: Mutex::new("c1".into()),
            broken_promises: Mutex::default(),
        });
        // A frontend under test may have dropped its privileges.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut worker = Self { socket, shared, accepting: None, _dir: dir };
        worker.resume();
        worker
    }

    /// Close everything, as a crash would. Files and tree stay.
    pub fn crash(&mut self) {
        let Some((thread, stop)) = self.accepting.take() else { return };
        stop.store(true, Ordering::SeqCst);
        let _wakes_accept = UnixStream::connect(&self.socket);
        thread.join().unwrap();
        std::fs::remove_file(&self.socket).unwrap();
        for connection in self.shared.connections.lock().drain(..) {
            let _gone = connection.shutdown(Shutdown::Both);
        }
        self.shared.events.lock().clear();
    }

    /// Come back after a crash.
    pub fn resume(&mut self) {
        *self.shared.run.lock() = random_u64();
        self.shared.handles.lock().clear();
        self.shared.tree.lock().recover();
        let listener = UnixListener::bind(&self.socket).unwrap();
        std::fs::set_permissions(&self.socket, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (self.shared.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for socket in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (shared, socket) = (shared.clone(), socket.unwrap());
                if shared.refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                    continue;
                }
                shared.connections.lock().push(socket.try_clone().unwrap());
                std::thread::spawn(move || shared.serve(&socket));
            }
        });
        self.accepting = Some((thread, stop));
    }

    pub fn count(&self, op: &str) -> usize {
        self.shared.requests.lock().get(op).copied().unwrap_or(0)
    }

    pub fn total(&self) -> usize {
        self.shared.requests.lock().values().sum()
    }

    pub fn open_handles(&self) -> usize {
        self.shared.handles.lock().len()
    }

    /// Carry out and answer no request of this name until [`Self::answer`].
    pub fn be_silent_to(&self, op: &'static str) {
        self.shared.silence.lock().to = Some(op);
    }

    /// Hang: carry out and answer nothing, not even a greeting, until [`Self::answer`]. Connections stay.
    pub fn hang(&self) {
        self.shared.silence.lock().all = true;
    }

    /// Carry out requests of this name and keep the answers back until [`Self::answer`].
    pub fn withhold(&self, op: &'static str) {
        self.shared.silence.lock().after = Some(op);
    }

    /// Number of answers kept back.
    pub fn withheld(&self) -> usize {
        self.shared.silence.lock().withheld
    }

    /// Answer everything again, also what has been waiting.
    pub fn answer(&self) {
        let mut silence = self.shared.silence.lock();
        *silence = Silence { withheld: silence.withheld, ..Silence::default() };
        drop(silence);
        self.shared.answering.notify_all();
    }

    /// Do something to the tree as another host would, and tell everybody.
    pub fn elsewhere(&self, change: impl FnOnce(&mut Tree) -> Vec<Changed>) {
        self.by_others(false, change);
    }

    /// The same as another mount of the disk would.
    pub fn through_another_mount(&self, change: impl FnOnce(&mut Tree) -> Vec<Changed>) {
        self.by_others(true, change);
    }

    fn by_others(&self, here: bool, change: impl FnOnce(&mut Tree) -> Vec<Changed>) {
        let event = {
            let mut tree = self.shared.tree.lock();
            let changed = change(&mut tree);
            tree.seq += 1;
            Event { seq: tree.seq, changed, all: false, here }
        };
        self.push(&event);
    }

    pub fn push(&self, event: &Event) {
        for (_, socket) in self.shared.events.lock().iter() {
            frame::send(socket, event, None).unwrap();
        }
    }

    /// What the frontend did against the agreement.
    pub fn broken_promises(&self) -> Vec<String> {
        self.shared.broken_promises.lock().clone()
    }
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        self.crash();
    }
}

impl Shared {
    fn serve(&self, socket: &UnixStream) {
        let mut receiver = frame::Receiver::default();
        let mut session = 0;
        let mut events = false;
        while let Ok(Some((request, fd))) = receiver.receive::<Request>(socket) {
            self.answering.wait_while(&mut self.silence.lock(), |silence| silence.all);
            if let Some(request::Op::Hello(hello)) = &request.op {
                assert_eq!(hello.version, LOCAL_VERSION);
                (session, events) = (hello.session, hello.events);
                let welcome = Welcome {
                    version: LOCAL_VERSION,
                    cluster: "test".into(),
                    disk_id: self.disk.lock().clone(),
                    root: 1,
                    worker_run: *self.run.lock(),
                    cluster_id: self.cluster_id.lock().clone(),
                };
                let reply = Reply { body: Some(reply::Body::Welcome(welcome)), ..Reply::default() };
                // Whoever has the answer hears of every change after it.
                let mut listening = self.events.lock();
                if frame::send(socket, &reply, None).is_err() {
                    break;
                }
                if events {
                    listening.push((session, socket.try_clone().unwrap()));
                }
                continue;
            }
            let Some(op) = request.op else { break };
            let (name, changes) = name_of(&op);
            if tells_of_failed_sync(&op) {
                self.told.lock().push(name);
            }
            // Whatever is not answered now is what is not here.
            if request.here
                && matches!(&op, request::Op::Open(q) if !q.truncate)
                && self.silence.lock().to == Some(name)
            {
                let reply = Reply { errno: Errno::EAGAIN as u32, ..Reply::default() };
                if frame::send(socket, &reply, None).is_err() {
                    break;
                }
                continue;
            }
            *self.requests.lock().entry(name).or_default() += 1;
            self.answering.wait_while(&mut self.silence.lock(), |silence| silence.to == Some(name));
            let (mut reply, fd) = match self.carry_out(session, request.retry, op, fd) {
                Ok(answer) => answer,
                Err(errno) => (Reply { errno: errno as u32, ..Reply::default() }, None),
            };
            let fd = fd.filter(|_| !self.without_descriptors.load(Ordering::SeqCst));
            if reply.seq == 0 {
                reply.seq = self.tree.lock().seq;
            }
            {
                let mut silence = self.silence.lock();
                if silence.after == Some(name) {
                    silence.withheld += 1;
                    self.answering.wait_while(&mut silence, |silence| silence.after == Some(name));
                    silence.withheld -= 1;
                }
            }
            let swallowed =
                changes && self.swallow.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
            if swallowed || frame::send(socket, &reply, fd.as_ref().map(|fd| fd.as_fd())).is_err() {
                break;
            }
        }
        // What a request opened after its session had ended goes with its connection.
        if events || !self.events.lock().iter().any(|(id, _)| *id == session) {
            self.end_session(session);
        }
        let _gone = socket.shutdown(Shutdown::Both);
    }

    fn end_session(&self, session: u64) {
        self.events.lock().retain(|(id, _)| *id != session);
        let mut ended = Vec::new();
        self.handles.lock().retain(|_, handle| {
            let keep = handle.session != session;
            if !keep && handle.write {
                ended.push(handle.ino);
            }
            keep
        });
        let mut tree = self.tree.lock();
        for ino in ended {
            tree.seal_if_free(ino);
        }
    }

    fn carry_out(&self, session: u64, retry: bool, op: request::Op, fd: Option<OwnedFd>) -> Answer {
        use request::Op;
        let mut tree = self.tree.lock();
        let tree = &mut *tree;
        let plain = |tree: &Tree, node: Option<Attr>, dir: Option<Attr>| {
            Ok((Reply { seq: tree.seq, node, dir, ..Reply::default() }, None))
        };
        let data = |tree: &Tree, bytes: Vec<u8>| {
            let body = Some(reply::Body::Data(bytes.into()));
            Ok((Reply { seq: tree.seq, body, ..Reply::default() }, None))
        };
        match op {
            Op::Hello(_) => Err(Errno::EPROTO),
            Op::Need(_) => Err(Errno::EBADF),
            Op::Unread(op) => {
                assert!(tree.attr(op.ino).is_ok() && op.length > 0 && op.content.is_empty());
                self.unreadable.fetch_and(self.only_copy.load(Ordering::SeqCst), Ordering::SeqCst);
                plain(tree, None, None)
            }
            Op::OpenContent(_) | Op::TakeContent(_) => Err(Errno::ENOSYS),
            Op::Lookup(op) => plain(tree, Some(tree.lookup(op.dir, &op.name)?), None),
            Op::GetAttr(op) => plain(tree, Some(tree.attr(op.ino)?), None),
            Op::ReadDir(op) => {
                let (entries, more, parent) = tree.read_dir(op.dir, &op.after, op.limit as usize)?;
                let body = Some(reply::Body::Listing(Listing { entries, more, parent }));
                let dir = Some(tree.attr(op.dir)?);
                Ok((Reply { seq: tree.seq, dir, body, ..Reply::default() }, None))
            }
            Op::Create(op) => {
                let ino = match tree.lookup(op.dir, &op.name) {
                    Ok(attr) if retry && attr.ino == op.ino => attr.ino,
                    Ok(_) => return Err(Errno::EEXIST),
                    Err(_) => tree.make(op.dir, &op.name, op.mode, (op.uid, op.gid), op.ino)?,
                };
                let file = tree.stage(ino, false)?;
                self.opened(tree, session, ino, true, file, Some(op.dir))
            }
            Op::Mknod(op) => self.made(tree, retry, op.dir, &op.name, op.ino, |tree| {
                let ino = tree.make(op.dir, &op.name, op.mode, (op.uid, op.gid), op.ino)?;
                tree.node(ino)?.attr.rdev = op.rdev;
                Ok(())
            }),
            Op::Mkdir(op) => self.made(tree, retry, op.dir, &op.name, 0, |tree| {
                tree.make(op.dir, &op.name, op.mode, (op.uid, op.gid), 0).map(drop)
            }),
            Op::Symlink(op) => self.made(tree, retry, op.dir, &op.name, op.ino, |tree| {
                let ino = tree.make(op.dir, &op.name, 0o120_777, (op.uid, op.gid), op.ino)?;
                let node = tree.node(ino)?;
                node.attr.size = op.target.len() as u64;
                node.target = op.target.to_vec();
                Ok(())
            }),
            Op::Link(op) => {
                self.made(tree, retry, op.dir, &op.name, op.ino, |tree| tree.link(op.ino, op.dir, &op.name))
            }
            Op::Unlink(op) => {
                let node = removed(tree, retry, (op.dir, &op.name, op.expect_ino), Tree::unlink)?;
                plain(tree, node, Some(tree.attr(op.dir)?))
            }
            Op::Rmdir(op) => {
                let node = removed(tree, retry, (op.dir, &op.name, op.expect_ino), Tree::rmdir)?;
                plain(tree, node, Some(tree.attr(op.dir)?))
            }
            Op::Rename(op) => {
                let already = tree.lookup(op.dir2, &op.name2).is_ok_and(|attr| attr.ino == op.expect_ino);
                let is_there = tree.lookup(op.dir, &op.name).is_ok_and(|attr| attr.ino == op.expect_ino);
                let (moved, node) = match retry && already && !is_there {
                    true => (tree.attr(op.expect_ino)?, None),
                    false if retry && !is_there => return Err(Errno::ENOENT),
                    false => tree.rename((op.dir, &op.name), (op.dir2, &op.name2), op.no_replace, op.exchange)?,
                };
                let (dir, dir2) = (Some(tree.attr(op.dir)?), Some(tree.attr(op.dir2)?));
                let moved = Some(moved);
                Ok((Reply { seq: tree.seq, node, dir, dir2, moved, ..Reply::default() }, None))
            }
            Op::SetAttr(op) => {
                tree.set_attr(&op)?;
                plain(tree, Some(tree.attr(op.ino)?), None)
            }
            Op::Open(op) => {
                if !op.write
                    && let Some(bytes) = tree.inline(op.ino)?
                {
                    let opened = Opened { has_inline: true, inline: bytes.into(), ..Opened::default() };
                    let body = Some(reply::Body::Opened(opened));
                    return Ok((
                        Reply { seq: tree.seq, node: Some(tree.attr(op.ino)?), body, ..Reply::default() },
                        None,
                    ));
                }
                let file = match op.write {
                    true if self.unsyncable.load(Ordering::SeqCst) => {
                        tree.stage(op.ino, op.truncate)?;
                        unsyncable_file()
                    }
                    true => tree.stage(op.ino, op.truncate)?,
                    // Nothing is mapped at its begin: EIO. (On Linux.)
                    false if self.unreadable.load(Ordering::SeqCst) => File::open("/proc/self/mem").unwrap(),
                    false => tree.open_read(op.ino)?,
                };
                let (mut reply, fd) = self.opened(tree, session, op.ino, op.write, file, None)?;
                if let Some(reply::Body::Opened(opened)) = &mut reply.body {
                    opened.shared = !op.write && self.written_elsewhere.load(Ordering::SeqCst);
                    opened.written = opened.shared;
                    let fetched = |n: usize| n.checked_sub(1).filter(|_| !op.write);
                    opened.partial = self.partial.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fetched).is_ok();
                    opened.size = tree.attr(op.ino)?.size;
                }
                Ok((reply, fd))
            }
            Op::Close(op) => {
                let Some(handle) = self.handles.lock().remove(&op.handle) else { return Err(Errno::EBADF) };
                let written_elsewhere =
                    self.handles.lock().values().any(|other| other.write && other.ino == handle.ino);
                // Of several the one that wrote may be closed last.
                if handle.write && !tree.is_truly(op.unwritten, handle.ino) && !written_elsewhere {
                    self.broken_promises.lock().push(format!("{:x} was written", handle.ino));
                }
                if handle.write && !written_elsewhere && !tree.seal_if_free(handle.ino) {
                    self.broken_promises.lock().push(format!("{:x} is still open somewhere", handle.ino));
                    return Err(Errno::EBUSY);
                }
                if handle.write
                    && let Some(change) = self.at_close.lock().take()
                {
                    change(tree);
                }
                plain(tree, tree.attr(handle.ino).ok(), None)
            }
            Op::Fsync(op) if op.sync_failed => Err(Errno::EIO),
            // It is written on another disk.
            Op::Fsync(op) if op.writes && op.handle == 0 => Err(Errno::EIO),
            Op::Fsync(_) => plain(tree, None, None),
            Op::Adopt(op) => {
                let Some(fd) = fd else { return Err(Errno::EPROTO) };
                drop(fd);
                tree.attr(op.ino)?;
                if tree.lost.contains(&op.ino) {
                    return Err(Errno::ESTALE);
                }
                self.opened_reply(tree, session, op.ino, true, None)
            }
            Op::GetXattr(op) => {
                let value = tree.node(op.ino)?.xattrs.get(&op.name[..]).cloned().ok_or(ENOATTR)?;
                data(tree, value)
            }
            Op::ListXattr(op) => {
                let names = tree.node(op.ino)?.xattrs.keys().flat_map(|name| [&name[..], b"\0"].concat()).collect();
                data(tree, names)
            }
            Op::SetXattr(op) => {
                let node = tree.node(op.ino)?;
                match node.xattrs.get(&op.name[..]) {
                    Some(value) if op.create && !(retry && value[..] == op.value[..]) => return Err(Errno::EEXIST),
                    None if op.replace => return Err(ENOATTR),
                    _ => {}
                }
                node.xattrs.insert(op.name.to_vec(), op.value.to_vec());
                node.attr.ctime = now();
                tree.seq += 1;
                plain(tree, Some(tree.attr(op.ino)?), None)
            }
            Op::RemoveXattr(op) => {
                let node = tree.node(op.ino)?;
                let is_other = match (node.xattrs.get(&op.name[..]), &op.value) {
                    (Some(now), Some(before)) => now[..] != before[..],
                    _ => false,
                };
                let is_removed = !(retry && is_other) && node.xattrs.remove(&op.name[..]).is_some();
                if !is_removed && !retry {
                    return Err(ENOATTR);
                }
                node.attr.ctime = now();
                tree.seq += 1;
                plain(tree, Some(tree.attr(op.ino)?), None)
            }
            Op::StatFs(_) => {
                let stat_fs = StatFsReply {
                    block_bytes: 4096,
                    blocks: 1000,
                    blocks_free: 600,
                    blocks_available: 500,
                    files: 100,
                    files_free: 50,
                };
                let body = Some(reply::Body::StatFs(stat_fs));
                Ok((Reply { seq: tree.seq, body, ..Reply::default() }, None))
            }
            Op::ReadLink(op) => {
                let target = tree.node(op.ino)?.target.clone();
                data(tree, target)
            }
        }
    }

    fn made(
        &self,
        tree: &mut Tree,
        retry: bool,
        dir: u64,
        name: &[u8],
        ino: u64,
        make: impl FnOnce(&mut Tree) -> Result<(), Errno>,
    ) -> Answer {
        match tree.lookup(dir, name) {
            Ok(attr) if retry && (ino == 0 || attr.ino == ino) => {}
            Ok(_) => return Err(Errno::EEXIST),
            Err(_) => make(tree)?,
        }
        let node = Some(tree.lookup(dir, name)?);
        Ok((Reply { seq: tree.seq, node, dir: Some(tree.attr(dir)?), ..Reply::default() }, None))
    }

    fn opened(&self, tree: &mut Tree, session: u64, ino: u64, write: bool, file: File, dir: Option<u64>) -> Answer {
        let (reply, _) = self.opened_reply(tree, session, ino, write, dir)?;
        Ok((reply, Some(file.into())))
    }

    fn opened_reply(&self, tree: &mut Tree, session: u64, ino: u64, write: bool, dir: Option<u64>) -> Answer {
        let handle = random_u64().max(1);
        self.handles.lock().insert(handle, Handle { session, ino, write });
        let body = Some(reply::Body::Opened(Opened { handle, ..Opened::default() }));
        let dir = dir.map(|dir| tree.attr(dir)).transpose()?;
        Ok((Reply { seq: tree.seq, node: Some(tree.attr(ino)?), dir, body, ..Reply::default() }, None))
    }
}

/// What all removals share: the node that is gone. One sent again leaves alone what has the name by now.
fn removed(
    tree: &mut Tree,
    retry: bool,
    (dir, name, expect_ino): (u64, &[u8], u64),
    remove: fn(&mut Tree, u64, &[u8]) -> Result<Attr, Errno>,
) -> Result<Option<Attr>, Errno> {
    let is_other = tree.lookup(dir, name).is_ok_and(|attr| attr.ino != expect_ino);
    if retry && expect_ino != 0 && is_other {
        return Ok(None);
    }
    match remove(tree, dir, name) {
        Err(Errno::ENOENT) if retry => Ok(None),
        other => other.map(Some),
    }
}

fn tells_of_failed_sync(op: &request::Op) -> bool {
    use request::Op;
    matches!(op, Op::Fsync(Fsync { sync_failed: true, .. }))
        || matches!(op, Op::Adopt(Adopt { sync_failed: true, .. }))
        || matches!(op, Op::Close(Close { sync_failed: true, .. }))
}

fn name_of(op: &request::Op) -> (&'static str, bool) {
    use request::Op;
    match op {
        Op::Hello(_) => ("hello", false),
        Op::Lookup(_) => ("lookup", false),
        Op::GetAttr(_) => ("getattr", false),
        Op::ReadDir(_) => ("readdir", false),
        Op::Create(_) => ("create", true),
        Op::Mknod(_) => ("mknod", true),
        Op::Mkdir(_) => ("mkdir", true),
        Op::Symlink(_) => ("symlink", true),
        Op::Link(_) => ("link", true),
        Op::Unlink(_) => ("unlink", true),
        Op::Rmdir(_) => ("rmdir", true),
        Op::Rename(_) => ("rename", true),
        Op::SetAttr(_) => ("setattr", true),
        Op::Open(_) => ("open", false),
        Op::Close(_) => ("close", false),
        Op::Fsync(_) => ("fsync", false),
        Op::Adopt(_) => ("adopt", false),
        Op::GetXattr(_) => ("getxattr", false),
        Op::ListXattr(_) => ("listxattr", false),
        Op::SetXattr(_) => ("setxattr", true),
        Op::RemoveXattr(_) => ("removexattr", true),
        Op::StatFs(_) => ("statfs", false),
        Op::ReadLink(_) => ("readlink", false),
        Op::Need(_) => ("need", false),
        Op::OpenContent(_) => ("open content", false),
        Op::TakeContent(_) => ("take content", false),
        Op::Unread(_) => ("unread", false),
    }
}

/// Where the parts of the fake are kept.
pub fn staging_path(root: &Path, ino: u64) -> PathBuf {
    root.join("staging").join(format!("{ino:016x}"))
}
