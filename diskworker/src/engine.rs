//! The disk at work: the namespace, the content store, who has what open, and the threads that commit, seal and clean.
//!
//! One mutex ([`Core`]) owns the namespace and the table of staged files. It is held for memory work and one write to
//! the journal; never while a file is copied or hashed, and never over a socket. What needs a file for longer marks its
//! inode busy ([`staged::Staged`]) and comes back.
//!
//! Life of a written file: *staged* (ROOT/staging, a frontend writes through a passed descriptor) -> *sealed* (hashed,
//! recorded, in ROOT/data or the catalog). `Close` of the last writer starts the second step. Until it is done the
//! staged file answers reads, and after a crash [`recover`] starts it again.

mod asker;
mod ballast;
mod clean;
mod commit;
mod complete;
mod cramped;
mod doubles;
mod events;
mod exchange;
mod files;
mod held;
mod ledger;
mod left;
mod loose;
mod lost;
mod marks;
mod meta;
mod noted;
mod overdue;
mod recover;
mod report;
mod room;
mod seal;
pub(crate) mod stable;
mod staged;
mod take;
mod written;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ActorId, Ino};
use delugefs_proto::local_pb::Attr;
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex, MutexGuard};

pub use self::asker::asked_over;
pub use self::events::EventQueue;
pub use self::exchange::Offer;
pub use self::files::Opening;
pub use self::ledger::{Entry as LedgerEntry, Ledger};
pub use self::marks::Marks;
pub use self::meta::Answer;
pub use self::recover::{Running, Settings, make_catalog};
pub use self::report::{Alone, Fate, Others, PROBLEMS_MAX, ScrubReport};
pub use self::take::{Following, PLACED_MIN_BYTES, Placer};

use self::staged::StagedTable;
use crate::catalog::Catalog;
use crate::content::ContentStore;
use crate::folder::DiskFolder;
use crate::journal::Journal;
use crate::namespace::{Namespace, Node};

/// A frontend, as it calls itself.
pub type SessionId = u64;

/// See the module.
pub struct Engine {
    /// The disk's folder.
    pub folder: Arc<DiskFolder>,
    /// Its contents.
    pub store: Arc<ContentStore>,
    journal: Arc<Journal>,
    /// The same one for ever, as the namespace has it.
    catalog: Arc<Catalog>,
    core: Mutex<Core>,
    /// Signalled when an inode stops being busy.
    idle: Condvar,
    /// Why nothing can be changed, if so.
    refusal: Mutex<Option<FsError>>,
    commits: commit::Signal,
    commit_lock: Mutex<()>,
    seals: seal::Queue,
    events: events::Hub,
    ballast: ballast::Ballast,
    cramped: cramped::Cramped,
    next_handle: AtomicU64,
    /// Tells this life of the process from others.
    run: u64,
    actor: ActorId,
    stopping: AtomicBool,
    ledger: Mutex<Option<Arc<Ledger>>>,
    /// Held while what no file has is collected.
    collecting: Mutex<()>,
    /// The committed state, for those who follow it.
    published: tokio::sync::watch::Sender<git2::Oid>,
    /// Wakes the cleaning thread for the stop.
    halt: Condvar,
    halt_lock: Mutex<()>,
    marks: Mutex<Option<marks::Known>>,
    placer: std::sync::OnceLock<take::Placer>,
    moves: take::Moves,
    retention: Duration,
    stable: stable::Stable,
    elsewhere: held::Elsewhere,
}

/// What the engine's mutex protects.
struct Core {
    ns: Namespace,
    staged: StagedTable,
}

impl Engine {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    /// The error with which changes are refused now, if any.
    pub fn refusal(&self) -> Option<FsError> {
        self.refusal.lock().clone()
    }

    /// Changes are possible.
    fn check_writable(&self) -> FsResult<()> {
        self.refusal().map_or(Ok(()), Err)
    }

    /// New names are possible.
    fn check_creatable(&self) -> FsResult<()> {
        self.check_writable()?;
        self.cramped.check()
    }

    /// Removals are possible: also on a full disk, as they are the way out.
    fn check_removable(&self) -> FsResult<()> {
        match self.refusal() {
            Some(error) if !room::is_full(error.errno) => Err(error),
            _ => Ok(()),
        }
    }

    /// Drawn anew at each start.
    pub fn run_id(&self) -> u64 {
        self.run
    }

    /// A frontend connects its event connection.
    pub fn begin_session(&self, session: SessionId) -> Arc<EventQueue> {
        self.events.add(session)
    }

    /// Where its file system is mounted, as it says; for people.
    pub fn session_mounted(&self, session: SessionId, dir: &[u8]) {
        self.events.is_mounted(session, dir);
    }

    /// The event connection of a frontend has closed: unless it is back already, its session has ended.
    pub fn session_lost(&self, session: SessionId, queue: &Arc<EventQueue>) {
        if self.events.remove(session, queue) {
            self.end_session(session);
        }
    }

    /// Another connection of a frontend has closed. What it still had under way when the session ended may have opened
    /// files after that: nobody else would close them.
    pub fn connection_lost(&self, session: SessionId) {
        if !self.events.has(session) {
            self.end_session(session);
        }
    }

    /// Whether a frontend's event connection is open.
    pub fn has_session(&self, session: SessionId) -> bool {
        self.events.has(session)
    }

    /// The change counter.
    pub fn seq(&self) -> u64 {
        self.core().ns.seq()
    }

    /// Whether nothing is changed here any more, as the process is about to end.
    pub fn has_ended(&self) -> bool {
        self.journal.has_ended()
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// What the whole file system can hold.
    pub fn stat_fs(&self) -> FsResult<delugefs_proto::local_pb::StatFsReply> {
        const BLOCK: u64 = 4096;
        let space = self.store.free_space()?;
        Ok(delugefs_proto::local_pb::StatFsReply {
            block_bytes: BLOCK,
            blocks: space.total / BLOCK,
            blocks_free: space.free / BLOCK,
            blocks_available: space.free / BLOCK,
            files: 1 << 40,
            files_free: 1 << 40,
        })
    }
}

impl Core {
    /// A node's attributes; size and times of a file being written are those of its staged file.
    fn attr(&self, store: &ContentStore, node: &Node) -> Attr {
        let mut attr = node.attr();
        if let Some(staged) = self.staged.get(node.ino)
            && !self.is_renumbered(node.ino)
            && let Ok(Some(stat)) = store.staged_stat(node.ino)
        {
            attr.size = stat.size;
            attr.blocks = stat.blocks;
            attr.mtime = stat.mtime_ns;
            if !staged.is_as_made(&stat.written) {
                attr.ctime = attr.ctime.max(stat.ctime_ns);
                // What was shown here and is never recorded would be waited for, for ever, where another disk stands in.
                attr.written = attr.written.max(stat.written.ctime_ns);
            }
        }
        attr
    }

    /// What is being written must have a name, or it would be taken for removed when it is closed: a change may have brought something
    /// under it that hides it.
    fn show_written(&mut self) {
        for (dir, ino) in self.ns.touched(|ino| self.staged.get(ino).is_some()) {
            let base = self.staged.get(ino).and_then(|staged| staged.base.clone()).unwrap_or_default();
            if let Err(error) = self.ns.unhide(ino, dir).and_then(|_| self.ns.part(ino, dir, &base)) {
                tracing::error!("file {ino}, which is being written, has no name: {error}");
            }
            if let Err(error) = self.follow_written(ino, dir) {
                tracing::error!("file {ino}, which is being written, may have another place: {error}");
            }
        }
    }

    /// A file that is being written may have been moved into this directory, or have got another number.
    fn follow_written(&mut self, ino: Ino, dir: Ino) -> FsResult<()> {
        let Some(staged) = self.staged.get(ino) else { return Ok(()) };
        let (was_in, base) = (staged.dir, staged.base.clone().unwrap_or_default());
        let is_moved = dir != was_in && self.ns.shows(dir, ino)? && !self.ns.shows(was_in, ino)?;
        let number = self.ns.renumbered(was_in, ino, &base)?;
        if let Some(number) = number {
            self.staged.renumber(ino, number);
        }
        if let Some(staged) = self.staged.get_mut(ino).filter(|staged| is_moved && staged.number.is_none()) {
            staged.dir = dir;
        }
        Ok(())
    }

    /// Versions that writers started from may have got new dots.
    fn renew_bases(&mut self) {
        for (ino, old, new) in self.ns.take_renewed() {
            self.staged.renew_base(ino, old, new);
        }
    }

    /// Whether the file that is staged under this number has got another one since, and the number is another file's: two hosts gave one
    /// to two, or one was renamed and another made in its place.
    fn is_renumbered(&self, ino: Ino) -> bool {
        self.staged.get(ino).is_some_and(|staged| staged.number.is_some())
    }

    /// A proposed number is not that of a file being written.
    fn check_unstaged(&self, ino: Ino) -> FsResult<()> {
        match self.staged.get(ino) {
            None => Ok(()),
            Some(_) => Err(FsError::new(Errno::EEXIST, format!("the inode number {ino} is another node's"))),
        }
    }

    fn dir_attr(&mut self, dir: Ino) -> Option<Attr> {
        self.ns.dir_node(dir).ok().map(|node| node.attr())
    }
}

#[cfg(test)]
mod tests {
    use delugefs_proto::local_pb as pb;

    use super::recover::tests::fresh;
    use super::*;

    /// A join holds all up for as long as it takes, and a frontend that is not greeted turns to another worker.
    #[test]
    fn who_greets_waits_for_no_change() {
        let (_dir, running) = fresh();
        let (welcomed, engine) = (std::sync::mpsc::channel(), running.engine.clone());
        let change = running.engine.core();
        let greeting = std::thread::spawn(move || {
            drop(engine.begin_session(7));
            engine.session_mounted(7, b"/mnt");
            let welcome = crate::serve::local::welcome(&engine);
            welcomed.0.send(welcome.body.is_some())
        });
        let said = welcomed.1.recv_timeout(Duration::from_secs(30));
        drop(change);
        assert_eq!(said, Ok(true), "it waits for the change");
        greeting.join().unwrap().unwrap();
        running.stop().unwrap();
    }

    /// `touch f`: nothing is written, and nothing of it recorded but the time.
    #[test]
    fn a_file_whose_time_is_set_was_not_written() {
        let (_dir, running) = fresh();
        let engine = &running.engine;
        let q = pb::Create { dir: 1, name: "f".into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
        let (answer, opening) = engine.create(1, false, &q).unwrap();
        let ino = answer.node.unwrap().ino;
        let mut open = Some(opening);
        for is_new in [true, false] {
            let opening = open
                .take()
                .unwrap_or_else(|| engine.open(1, &pb::Open { ino, dir: 1, write: true, truncate: false }).unwrap().1);
            let Opening::File { handle, file } = opening else { panic!() };
            let (before, begin) = (os_ctime(&file), std::time::Instant::now());
            let mut shown = pb::Attr::default();
            while os_ctime(&file) == before {
                assert!(begin.elapsed() < Duration::from_secs(30), "no time passes");
                let q = pb::SetAttr { ino, dir: 1, mtime: Some(7), ..Default::default() };
                shown = engine.set_attr(1, &q).unwrap().node.unwrap();
            }
            assert_eq!(shown.mtime, 7);
            drop(file);
            engine.close(1, handle, true).unwrap();
            assert!(!engine.store.is_staged(Ino(ino)).unwrap());
            let recorded = engine.get_attr(&pb::GetAttr { ino, dir: 1 }).unwrap().node.unwrap();
            assert!(recorded.written >= shown.written, "it was shown as written, new: {is_new}");
            assert!(recorded.ctime >= shown.ctime, "new: {is_new}");
        }
        running.stop().unwrap();
    }

    fn os_ctime(file: &std::fs::File) -> i64 {
        crate::os::ctime_ns(&nix::sys::stat::fstat(file).unwrap())
    }
}
