//! Starting and stopping: from a folder to a disk at work, whatever the last life left behind.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use delugefs_proto::disk;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{Ino, random_u64};
use delugefs_proto::record::{Body, Data, Key, Perm};
use nix::errno::Errno;

use super::ballast::Ballast;
use super::left;
use super::lost::Lost;
use super::room::{FULL, is_full};
use super::seal::SEALERS;
use super::{Core, Engine};
use crate::catalog::Catalog;
use crate::content::ContentStore;
use crate::folder::DiskFolder;
use crate::journal::{Journal, Recovered};
use crate::namespace::Namespace;
use crate::os;

/// Settings of one disk.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes to leave free on the file system.
    pub reserve_bytes: u64,
    /// How long contents without a name are kept.
    pub retention: Duration,
}

/// An engine with its threads; stops them when told to, and waits for them.
pub struct Running {
    /// The engine.
    pub engine: Arc<Engine>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Bring a disk to work: replay the journal, commit it, put staged files into the table, start the threads.
    pub fn start(folder: Arc<DiskFolder>, settings: Settings) -> anyhow::Result<Self> {
        // First those that tell whether all of it is of a version we know: before anything is changed.
        let catalog = Arc::new(Catalog::open(&folder.path(disk::CATALOG)).context("opening the catalog")?);
        let ballast = Ballast::new(journal_dir(&folder)?);
        let (journal, recovered) = open_journal(&folder, &ballast)?;
        let journal = Arc::new(journal);
        let store = Arc::new(ContentStore::open(folder.clone(), settings.reserve_bytes)?);
        if let Some(damage) = &recovered.damage {
            tracing::warn!("{damage}; what was acknowledged before it is complete");
        }
        let published = tokio::sync::watch::channel(catalog.state().commit).0;
        let actor = recovered.actor;
        let mut ns = Namespace::new(catalog.clone(), journal.clone(), actor);
        let (homes, lost) = replay(&mut ns, &store, recovered)?;
        if ns.dir_node(Ino::ROOT).is_err() {
            let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
            ns.make_root(Perm { mode: 0o755, uid, gid })?;
        }
        let staged = left::find_staged(&mut ns, &store, homes, &lost)?;
        let left = staged.waiting(Instant::now());
        let engine = Arc::new(Engine {
            folder,
            store,
            journal,
            catalog,
            core: Core { ns, staged }.into(),
            idle: Default::default(),
            refusal: Default::default(),
            commits: Default::default(),
            commit_lock: Default::default(),
            seals: Default::default(),
            events: Default::default(),
            ballast,
            cramped: Default::default(),
            next_handle: AtomicU64::new(random_u64() >> 16 | 1),
            run: random_u64(),
            actor,
            stopping: AtomicBool::new(false),
            ledger: Default::default(),
            collecting: Default::default(),
            published,
            halt: Default::default(),
            halt_lock: Default::default(),
            marks: Default::default(),
            placer: Default::default(),
            moves: Default::default(),
            retention: settings.retention,
            stable: Default::default(),
            elsewhere: Default::default(),
        });
        // Without room (or on a failing disk) it is served as it is, and the journal keeps what is not committed.
        if engine.commit().is_ok() && !engine.fill_ballast() {
            engine.refuse(FsError::new(Errno::ENOSPC, FULL));
        }
        if !left.is_empty() {
            tracing::info!("{} files were being written when this disk stopped: sealing them", left.len());
        }
        left.into_iter().for_each(|ino| engine.seals.push(ino));
        let sealers = std::iter::repeat_n(("seal", Engine::seal_loop as fn(&Engine)), SEALERS);
        let threads = [
            ("commit", Engine::commit_loop as fn(&Engine)),
            ("clean", Engine::clean_loop),
            ("copies", Engine::copies_loop),
            ("rest", Engine::rest_loop),
        ];
        let threads = threads.into_iter().chain(sealers).map(|(name, body)| {
            let engine = engine.clone();
            std::thread::Builder::new().name(name.into()).spawn(move || body(&engine))
        });
        Ok(Self { threads: threads.collect::<Result<_, _>>()?, engine })
    }

    /// Seal, commit, note the clean stop. Sessions may go on: what they change from the last commit on is refused, and asked again of the
    /// next worker.
    pub fn stop(self) -> FsResult<()> {
        let engine = self.engine;
        engine.events.close_all();
        let waiting = engine.core().staged.waiting(Instant::now());
        waiting.into_iter().for_each(|ino| engine.seals.push(ino));
        engine.seals.close();
        engine.stopping.store(true, Ordering::Relaxed);
        engine.commits.wake();
        {
            let _asleep_or_looking = engine.halt_lock.lock();
            engine.halt.notify_all();
        }
        engine.store.wake_for_copies();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the engine had panicked");
            }
        }
        engine.store.sync_copies();
        {
            // Not in the middle of a change: a join that is under way mends what it brought, or does not begin.
            let _core = engine.core();
            engine.journal.end();
        }
        match engine.commit() {
            // Of what was fetched commits have synced nothing.
            Ok(()) => engine.store.barrier().and_then(|()| Ok(engine.journal.close(engine.actor)?))?,
            // Nothing is lost: the next start replays the journal.
            Err(error) if is_full(error.errno) => {
                engine.store.barrier()?;
                engine.journal.sync()?;
                tracing::warn!("stopped with changes that are only in the journal: {error}");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn journal_dir(folder: &DiskFolder) -> anyhow::Result<File> {
    os::open_dir(folder.root_fd(), disk::JOURNAL).context("opening the journal's folder")
}

/// The journal; on a full disk with the room of the ballast, if need be.
fn open_journal(folder: &DiskFolder, ballast: &Ballast) -> anyhow::Result<(Journal, Recovered)> {
    let opened = match Journal::open(journal_dir(folder)?) {
        Err(error) if is_full(error.errno()) && ballast.release() => Journal::open(journal_dir(folder)?),
        opened => opened,
    };
    opened.context("opening the journal")
}

/// Take what the journal has and no commit. Gives the directory of every file it mentions, and what of it is lost.
fn replay(ns: &mut Namespace, store: &ContentStore, recovered: Recovered) -> anyhow::Result<(HashMap<Ino, Ino>, Lost)> {
    let mut homes = HashMap::new();
    // A clean stop syncs everything. After another one nothing tells whether only the process ended: a disk that is pulled and
    // plugged in again loses what was not written yet while the machine runs on.
    let lost = match recovered.clean {
        true => Lost::default(),
        false => Lost::find(ns.catalog(), store, &recovered.changes)?,
    };
    for mut change in recovered.changes {
        anyhow::ensure!(
            ns.follows(&change),
            "the journal goes on from a later state than the catalog is in: the disk was copied while it was in use, or lost \
            what had been written to it. Use the original, or a copy made while no worker served it. Or empty the folder \
            journal: changes of the last moments are lost then, unless other disks have them"
        );
        lost.take_back(ns, &mut change)?;
        for (key, elements) in &change.sets {
            if let Key::Entry(dir, _) = key {
                homes.extend(elements.iter().filter_map(|e| e.body.ino()).map(|ino| (ino, *dir)));
            }
        }
        for element in change.sets.values().flatten() {
            if let Body::Content { data: Data::Stored { content, .. }, .. } = &element.body {
                store.doubt(*content);
            }
        }
        ns.replay(change)?;
    }
    if ns.is_dirty() {
        tracing::info!("journal: changes of {} entries replayed", ns.pending_len());
    }
    Ok((homes, lost))
}

/// Make what the engine keeps in a new disk's folder: catalog and journal. An interrupted attempt may have left them
/// half-made; nothing of value can be in them before the folder has its `disk.toml`.
pub fn make_catalog(root: &Path) -> anyhow::Result<()> {
    for name in [disk::CATALOG, disk::JOURNAL] {
        match std::fs::remove_dir_all(root.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Catalog::create(&root.join(disk::CATALOG)).context("making the catalog")?;
    std::fs::create_dir(root.join(disk::JOURNAL)).context("making the journal's folder")
}

#[cfg(test)]
pub(super) mod tests {
    use delugefs_proto::local_pb as pb;

    use super::*;
    use crate::content::UNREADABLE;
    use crate::engine::{Opening, make_catalog};

    /// A new disk, in the folder `d` of this one.
    pub fn fresh() -> (tempfile::TempDir, Running) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("d");
        drop(DiskFolder::create_with(&root, "test", None, make_catalog).unwrap());
        let running = start(&root);
        (dir, running)
    }

    pub fn start(root: &std::path::Path) -> Running {
        let begin = Instant::now();
        let folder = loop {
            match DiskFolder::open(root, None) {
                Ok(folder) => break Arc::new(folder),
                // A program that another test is starting has our lock until it runs.
                Err(error) => assert!(begin.elapsed() < Duration::from_secs(20), "{error:#}"),
            }
            std::thread::yield_now();
        };
        Running::start(folder, Settings { reserve_bytes: 0, retention: Duration::from_secs(3600) }).unwrap()
    }

    /// Frontends are connected until the process ends.
    #[test]
    fn nothing_is_changed_once_the_last_commit_of_a_clean_stop_has_begun() {
        let (dir, running) = fresh();
        let engine = running.engine.clone();
        let make = |name: &'static str| {
            engine.mkdir(1, false, &pb::Mkdir { dir: 1, name: name.into(), mode: 0o700, ..Default::default() })
        };
        make("before").unwrap();
        running.stop().unwrap();
        assert!(engine.has_ended());
        let refused = make("after").map(drop).unwrap_err();
        assert_eq!(refused.errno, Errno::EAGAIN);
        assert!(refused.message.contains("try again"), "{refused}");
        drop(engine);
        let running = start(&dir.path().join("d"));
        let is_there = |name: &'static str| running.engine.lookup(&pb::Lookup { dir: 1, name: name.into() }).is_ok();
        assert!(is_there("before") && !is_there("after"));
        running.stop().unwrap();
    }

    /// Such a disk, a moment ago: what it looked like, and a file that is in the journal only.
    fn crashed() -> (tempfile::TempDir, Ino) {
        let (dir, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = dir.path().join("d");
        drop(DiskFolder::create_with(&root, "test", None, make_catalog).unwrap());
        let running = start(&root);
        let engine = &running.engine;
        let q = pb::Create { dir: 1, name: "file".into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
        let (answer, opening) = engine.create(1, false, &q).unwrap();
        let Opening::File { handle, file } = opening else { panic!() };
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 10_000], 0).unwrap();
        drop(file);
        engine.close(1, handle, false).unwrap();
        let (ino, begin) = (Ino(answer.node.unwrap().ino), Instant::now());
        while engine.stored(ino).unwrap().is_none() {
            assert!(begin.elapsed() < Duration::from_secs(30), "it is not sealed");
            std::thread::yield_now();
        }
        let copied = std::process::Command::new("cp").arg("-a").arg(&root).arg(image.path()).status();
        assert!(copied.unwrap().success());
        assert!(engine.status().unwrap().uncommitted_changes > 0, "committed before it was copied");
        running.stop().unwrap();
        (image, ino)
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_lost() {
        let (image, ino) = crashed();
        UNREADABLE.set(true);
        let running = start(&image.path().join("d"));
        UNREADABLE.set(false);
        let wanted = running.engine.stored(ino).unwrap().unwrap();
        running.engine.store.check(wanted.content, wanted.size).unwrap();
        running.stop().unwrap();
    }
}
