//! Starting and stopping: from a folder to a disk at work, whatever the last life left behind.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use delugefs_proto::disk;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ContentId, Ino, random_u64};
use delugefs_proto::record::{Body, Data, Element, Key, Perm};
use nix::errno::Errno;

use super::ballast::Ballast;
use super::room::is_full;
use super::seal::SEALERS;
use super::staged::{Staged, StagedTable};
use super::{Core, Engine};
use crate::catalog::{Catalog, Changes};
use crate::content::{ContentStore, Copied};
use crate::folder::DiskFolder;
use crate::journal::{Journal, Recovered};
use crate::namespace::Namespace;
use crate::{os, view};

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
        let mut ns = Namespace::new(catalog, journal.clone(), actor);
        let homes = replay(&mut ns, &store, recovered)?;
        if ns.dir_node(Ino::ROOT).is_err() {
            let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
            ns.make_root(Perm { mode: 0o755, uid, gid })?;
        }
        let staged = find_staged(&mut ns, &store, homes)?;
        let left = staged.waiting(Instant::now());
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
        });
        // Without room (or on a failing disk) it is served as it is, and the journal keeps what is not committed.
        if engine.commit().is_ok() && !engine.fill_ballast() {
            engine.refuse(FsError::new(Errno::ENOSPC, "the disk is full: delete something or add a disk"));
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
        ];
        let threads = threads.into_iter().chain(sealers).map(|(name, body)| {
            let engine = engine.clone();
            std::thread::Builder::new().name(name.into()).spawn(move || body(&engine))
        });
        Ok(Self { threads: threads.collect::<Result<_, _>>()?, engine })
    }

    /// Seal, commit, note the clean stop. Sessions must have ended.
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
        match engine.commit() {
            Ok(()) => engine.journal.close(engine.actor)?,
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

/// Take what the journal has and no commit. Gives the directory of every file it mentions.
fn replay(ns: &mut Namespace, store: &ContentStore, recovered: Recovered) -> anyhow::Result<HashMap<Ino, Ino>> {
    let mut homes = HashMap::new();
    // A clean stop syncs everything. After another one nothing tells whether only the process ended: a disk that is pulled and
    // plugged in again loses what was not written yet while the machine runs on.
    let lost = match recovered.clean {
        true => HashSet::new(),
        false => lost(ns.catalog(), store, &recovered.changes)?,
    };
    for mut change in recovered.changes {
        anyhow::ensure!(
            ns.follows(&change),
            "the journal goes on from a later state than the catalog is in: the disk was copied while it was in use, or lost \
            what had been written to it. Use the original, or a copy made while no worker served it. Or empty the folder \
            journal: changes of the last moments are lost then, unless other disks have them"
        );
        if change.sets.values().flatten().any(|element| is_lost(store, &lost, element)) {
            take_back(ns, &mut change, |element| is_lost(store, &lost, element))?;
        }
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
    Ok(homes)
}

/// Put the versions before them in the place of lost ones, and leave the rest of a change as it is: with the name alone, a rename
/// would take the older version along, and a link would leave names of nothing.
fn take_back(ns: &mut Namespace, change: &mut Changes, is_lost: impl Fn(&Element) -> bool) -> FsResult<()> {
    let mut before = HashMap::new();
    for key in change.sets.keys() {
        before.insert(key.clone(), ns.set(key)?);
    }
    // Of a file that comes from another name: one version, for there is one dot.
    let latest = |ino: Ino| {
        let versions =
            before.values().flatten().filter(|e| matches!(&e.body, Body::Content { ino: of, .. } if *of == ino));
        versions.max_by_key(|element| (element.hlc, element.dot)).map(|element| element.body.clone())
    };
    for (key, elements) in &mut change.sets {
        let (gone, mut kept): (Vec<_>, Vec<_>) = std::mem::take(elements).into_iter().partition(&is_lost);
        ns.cover(&gone);
        for mut element in gone {
            let Some(ino) = element.body.ino() else { continue };
            tracing::error!(
                "{key:?}: its content did not reach the disk before the machine or the disk went down; \
                the version before it is kept"
            );
            let is_version = |e: &&Element| matches!(&e.body, Body::Content { ino: of, .. } if *of == ino);
            let here: Vec<_> = before.get(key).into_iter().flatten().filter(is_version).cloned().collect();
            if here.is_empty() {
                element.body = latest(ino).unwrap_or(Body::Content { ino, data: Data::Empty });
                kept.push(element);
            } else {
                kept.extend(
                    here.into_iter().filter(|e| !kept.iter().any(|other| other.dot == e.dot)).collect::<Vec<_>>(),
                );
            }
        }
        kept.sort();
        *elements = kept;
    }
    Ok(())
}

/// After the machine or the disk went down, a content named in the journal may be a file whose bytes never reached the disk: those that
/// are not here as they should be. One that cannot be read, or not now, is not among them: whoever reads the file is told. Nor is one
/// that the last commit knows: the journal has a change of its name or attributes, and to drop that would lose a file whose content
/// may well be on another disk.
fn lost(catalog: &Catalog, store: &ContentStore, changes: &[Changes]) -> anyhow::Result<HashSet<ContentId>> {
    let mut lost = HashSet::new();
    for element in changes.iter().flat_map(|change| change.sets.values().flatten()) {
        if let Body::Content { data: Data::Stored { content, size, .. }, .. } = &element.body
            && !lost.contains(content)
            && let Err(error) = store.verify(*content, *size)
        {
            // What is damaged has been set aside.
            match store.has(*content) {
                Ok(found) if found != Some(*size) => drop(lost.insert(*content)),
                _ => tracing::error!("{error}: what the journal says of it is kept"),
            }
        }
    }
    if !lost.is_empty() {
        catalog.for_each(&mut |_: &Key, elements: &[Element]| {
            for element in elements {
                if let Body::Content { data: Data::Stored { content, .. }, .. } = &element.body {
                    lost.remove(content);
                }
            }
            Ok(())
        })?;
    }
    Ok(lost)
}

/// Of one that is staged still nothing is lost: it is sealed anew, unless it may lack what it began with.
fn is_lost(store: &ContentStore, lost: &HashSet<ContentId>, element: &Element) -> bool {
    match &element.body {
        Body::Content { ino, data: Data::Stored { content, .. } } => {
            let is_whole = || !store.is_unsynced_copy(*ino) || store.is_copy_of_this_life(*ino);
            let is_staged = matches!(store.staged_stat(*ino), Ok(Some(_))) && is_whole();
            lost.contains(content) && !is_staged
        }
        _ => false,
    }
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
                let written = elements.iter().filter(|e| matches!(e.body, Body::Content { .. }));
                let inos = view::view(elements).into_iter().map(|shown| shown.ino);
                for ino in inos.chain(written.filter_map(|element| element.body.ino())) {
                    // What the journal says is newer.
                    homes.entry(ino).or_insert(*dir);
                }
            }
            Ok(())
        };
        let wanted: HashSet<Ino> = inos.iter().copied().collect();
        ns.catalog().clone().for_each(&mut visit)?;
        homes.retain(|ino, _| wanted.contains(ino));
    }
    for ino in inos {
        let found = match homes.get(&ino) {
            Some(dir) => ns.unhide(ino, *dir).and_then(|_| ns.locate(ino, *dir)).map(|_| *dir),
            None => Err(Errno::ENOENT.into()),
        };
        match found {
            Ok(dir) => {
                match copied(ns, store, ino, dir) {
                    Copied::Whole => {}
                    Copied::Lacking => {
                        tracing::warn!(
                            "file {ino}: what was written before the machine went down did not reach the disk"
                        );
                        store.remove_staged(ino)?;
                        continue;
                    }
                    Copied::Changed => {
                        tracing::warn!(
                            "file {ino}: not all of it reached the disk before the machine went down; the version before it is kept too"
                        );
                        store.mark_met(ino);
                    }
                }
                // What its writers started from is not known any more. It replaces all there is, or, where others have changed it
                // meanwhile, nothing.
                let base = store.is_met(ino).then(Vec::new);
                table.insert(ino, Staged { dir, base, promised: true, ..Staged::default() });
            }
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

/// What a staging file has of what it is a copy of.
fn copied(ns: &mut Namespace, store: &ContentStore, ino: Ino, dir: Ino) -> Copied {
    if !store.is_unsynced_copy(ino) || store.is_copy_of_this_life(ino) {
        return Copied::Whole;
    }
    let look = |ns: &mut Namespace| -> FsResult<Copied> {
        let at = ns.locate(ino, dir)?;
        if ns.content_dots(&at)?.len() > 1 {
            return Ok(Copied::Changed); // of one of them
        }
        match ns.node(&at)?.regular()? {
            Data::Inline { blob, .. } => {
                let bytes = ns.attachment(*blob)?;
                store.compare_copy(ino, bytes.len() as u64, |into, at| {
                    into.copy_from_slice(&bytes[at as usize..at as usize + into.len()]);
                    Ok(())
                })
            }
            Data::Stored { content, size, .. } => {
                let whole = store.open_content(*content, *size)?;
                let read = |into: &mut [u8], at| whole.read_exact_at(into, at).map_err(|error| os::errno(&error));
                store.compare_copy(ino, *size, read)
            }
            _ => Ok(Copied::Whole),
        }
    };
    // Where the original cannot be read both are kept.
    look(ns).unwrap_or(Copied::Changed)
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
mod tests {
    use delugefs_proto::local_pb as pb;

    use super::*;
    use crate::content::UNREADABLE;
    use crate::engine::{Opening, make_catalog};

    fn start(root: &std::path::Path) -> Running {
        let folder = Arc::new(DiskFolder::open(root, None).unwrap());
        Running::start(folder, Settings { reserve_bytes: 0, retention: Duration::from_secs(3600) }).unwrap()
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

    /// A file was written, edited in place, and given another name; of the edited bytes nothing reached the disk.
    #[test]
    fn the_version_before_a_lost_one_has_the_name_of_the_lost_one() {
        for is_link in [false, true] {
            let (dir, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let root = dir.path().join("d");
            drop(DiskFolder::create_with(&root, "test", None, make_catalog).unwrap());
            let running = start(&root);
            let engine = &running.engine;
            let sealed = |ino: Ino, but: Option<ContentId>| {
                let begin = Instant::now();
                loop {
                    match engine.stored(ino).unwrap() {
                        Some(found) if Some(found.content) != but && !engine.store.is_staged(ino).unwrap() => {
                            return found.content;
                        }
                        _ => std::thread::yield_now(),
                    }
                    assert!(begin.elapsed() < Duration::from_secs(30), "it is not sealed");
                }
            };
            let q = pb::Create { dir: 1, name: "f".into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
            let (answer, opening) = engine.create(1, false, &q).unwrap();
            let ino = Ino(answer.node.unwrap().ino);
            let Opening::File { handle, file } = opening else { panic!() };
            file.write_all_at(&[7; 10_000], 0).unwrap();
            drop(file);
            engine.close(1, handle, false).unwrap();
            let first = sealed(ino, None);
            engine.commit().unwrap();
            // No commit from here on.
            let _one = engine.commit_lock.lock();
            let open = pb::Open { ino: ino.0, dir: 1, write: true, truncate: false };
            let Opening::File { handle, file } = engine.open(1, &open).unwrap().1 else { panic!() };
            file.write_all_at(&[8; 10_000], 0).unwrap();
            drop(file);
            engine.close(1, handle, false).unwrap();
            let second = sealed(ino, Some(first));
            let names: &[&str] = if is_link {
                let q = pb::Link { ino: ino.0, ino_dir: 1, dir: 1, name: "g".into() };
                engine.link(1, false, &q).unwrap();
                &["f", "g"]
            } else {
                let q = pb::Rename { dir: 1, name: "f".into(), dir2: 1, name2: "g".into(), ..Default::default() };
                engine.rename(1, false, &q).unwrap();
                &["g"]
            };
            let copied = std::process::Command::new("cp").arg("-a").arg(&root).arg(image.path()).status();
            assert!(copied.unwrap().success());
            drop(_one);
            running.stop().unwrap();
            let lost = format!("data/{:02x}/{}", second.0[0], second.to_hex());
            std::fs::remove_file(image.path().join("d").join(lost)).unwrap();
            let running = start(&image.path().join("d"));
            let engine = &running.engine;
            for _ in 0..2 {
                let listed = engine.read_dir(&pb::ReadDir { dir: 1, limit: 100, ..Default::default() });
                assert!(listed.is_ok(), "{:?}", listed.err());
                for name in names {
                    let q = pb::Lookup { dir: 1, name: (*name).to_owned().into() };
                    let found = engine.lookup(&q).unwrap().node.unwrap();
                    assert_eq!(engine.stored(Ino(found.ino)).unwrap().unwrap().content, first, "{name}");
                }
                engine.commit().unwrap();
            }
            running.stop().unwrap();
        }
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
