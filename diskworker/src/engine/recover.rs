//! Starting and stopping: from a folder to a disk at work, whatever the last life left behind.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use delugefs_proto::disk;
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::{Ino, random_u64};
use delugefs_proto::record::{Body, Data, Element, Key, Perm};
use nix::errno::Errno;

use super::ballast::Ballast;
use super::staged::{Staged, StagedTable};
use super::{Core, Engine};
use crate::catalog::{Catalog, Changes};
use crate::content::ContentStore;
use crate::folder::DiskFolder;
use crate::journal::{Journal, Recovered};
use crate::namespace::Namespace;
use crate::view;

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
        let store = Arc::new(ContentStore::open(folder.clone(), settings.reserve_bytes)?);
        let journal_dir = folder.path(disk::JOURNAL);
        let catalog = Arc::new(Catalog::open(&folder.path(disk::CATALOG)).context("opening the catalog")?);
        let (journal, recovered) = Journal::open(&journal_dir).context("opening the journal")?;
        let journal = Arc::new(journal);
        if let Some(damage) = &recovered.damage {
            tracing::warn!("{damage}; what was acknowledged before it is complete");
        }
        let homes = replay(&catalog, &store, &recovered)?;
        journal.rotate()?;
        journal.retire()?;

        let mut ns = Namespace::new(catalog, journal.clone(), recovered.actor);
        if ns.dir_node(Ino::ROOT).is_err() {
            let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
            ns.make_root(Perm { mode: 0o755, uid, gid })?;
        }
        let staged = find_staged(&mut ns, &store, homes)?;
        let left = staged.waiting();
        let engine = Arc::new(Engine {
            folder,
            store,
            journal,
            core: Core { ns, staged }.into(),
            idle: Default::default(),
            refusal: Default::default(),
            commits: Default::default(),
            commit_lock: Default::default(),
            seals: Default::default(),
            events: Default::default(),
            ballast: Ballast::new(&journal_dir),
            next_handle: AtomicU64::new(random_u64() >> 16 | 1),
            run: random_u64(),
            actor: recovered.actor,
            stopping: AtomicBool::new(false),
            halt: Default::default(),
            halt_lock: Default::default(),
            retention: settings.retention,
        });
        engine.commit()?;
        engine.ballast.fill();
        if !left.is_empty() {
            tracing::info!("{} files were being written when this disk stopped: sealing them", left.len());
        }
        left.into_iter().for_each(|ino| engine.seals.push(ino));
        let threads = [
            ("commit", Engine::commit_loop as fn(&Engine)),
            ("seal", Engine::seal_loop),
            ("clean", Engine::clean_loop),
        ];
        let threads = threads.into_iter().map(|(name, body)| {
            let engine = engine.clone();
            std::thread::Builder::new().name(name.into()).spawn(move || body(&engine))
        });
        Ok(Self { threads: threads.collect::<Result<_, _>>()?, engine })
    }

    /// Seal, commit, note the clean stop. Sessions must have ended.
    pub fn stop(self) -> FsResult<()> {
        let engine = self.engine;
        engine.events.close_all();
        let waiting = engine.core().staged.waiting();
        waiting.into_iter().for_each(|ino| engine.seals.push(ino));
        engine.seals.close();
        engine.stopping.store(true, Ordering::Relaxed);
        engine.commits.wake();
        {
            let _asleep_or_looking = engine.halt_lock.lock();
            engine.halt.notify_all();
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the engine had panicked");
            }
        }
        engine.commit()?;
        engine.journal.close(engine.actor)?;
        Ok(())
    }
}

/// Commit what the journal has. Gives the directory of every file it mentions.
fn replay(catalog: &Catalog, store: &ContentStore, recovered: &Recovered) -> anyhow::Result<HashMap<Ino, Ino>> {
    let mut homes = HashMap::new();
    let mut changes = Changes::default();
    let mut ctx = catalog.state().ctx.clone();
    for change in &recovered.changes {
        for (key, elements) in &change.sets {
            elements.iter().for_each(|element| ctx.advance(element.dot));
            if !recovered.same_boot && !is_intact(store, elements) {
                tracing::error!(
                    "{key:?}: its content did not reach the disk before the machine went down; \
                    the version before it is kept"
                );
                continue;
            }
            if let Key::Entry(dir, _) = key {
                homes.extend(elements.iter().filter_map(|e| e.body.ino()).map(|ino| (ino, *dir)));
            }
            changes.sets.insert(key.clone(), elements.clone());
        }
        changes.blobs.extend(change.blobs.clone());
    }
    if !changes.sets.is_empty() {
        tracing::info!("journal: {} changes of {} entries replayed", recovered.changes.len(), changes.sets.len());
        store.barrier()?;
        catalog.commit(&changes, &ctx).context("committing the journal's changes")?;
    }
    Ok(homes)
}

/// After the machine went down, a content named in the journal may be a file whose bytes never reached the disk.
fn is_intact(store: &ContentStore, elements: &[Element]) -> bool {
    elements.iter().all(|element| match &element.body {
        Body::Content { ino, data: Data::Stored { content, size, .. } } => {
            // Staged still: then it is sealed anew.
            matches!(store.staged_stat(*ino), Ok(Some(_))) || store.check(*content, *size).is_ok()
        }
        _ => true,
    })
}

/// Put every staged file into the table, or remove it when its name is gone.
fn find_staged(ns: &mut Namespace, store: &ContentStore, mut homes: HashMap<Ino, Ino>) -> anyhow::Result<StagedTable> {
    let inos = store.staged()?;
    let mut table = StagedTable::default();
    if inos.iter().any(|ino| !homes.contains_key(ino)) {
        // Opened before the last commit: one walk finds them all.
        let mut visit = |key: &Key, elements: &[Element]| {
            if let Key::Entry(dir, name) = key
                && !name.is_header()
            {
                homes.extend(view::view(elements).iter().map(|shown| (shown.ino, *dir)));
            }
            Ok(())
        };
        let wanted: std::collections::HashSet<Ino> = inos.iter().copied().collect();
        ns.catalog().clone().for_each(&mut visit)?;
        homes.retain(|ino, _| wanted.contains(ino));
    }
    for ino in inos {
        let found = match homes.get(&ino) {
            Some(dir) => ns.locate(ino, *dir).map(|_| *dir),
            None => Err(Errno::ENOENT.into()),
        };
        match found {
            Ok(dir) => table.insert(ino, Staged { dir, ..Staged::default() }),
            Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESTALE) => {
                tracing::info!("staged file {ino} has no name any more: removed");
                store.remove_staged(ino)?;
            }
            // A catalog that cannot be read is no reason to throw away what was written.
            Err(error) => anyhow::bail!("looking for the name of the staged file {ino}: {error}"),
        }
    }
    Ok(table)
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
