//! What the journal says of contents whose bytes did not reach the disk before the machine, or the disk, went down: such a record
//! gets the version before it, and the rest of the change stays.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::{ContentId, Ino};
use delugefs_proto::record::{Body, Data, Element, Hlc, Key};

use crate::catalog::{Catalog, Changes};
use crate::content::{ContentStore, Life, Seal};
use crate::namespace::Namespace;
use crate::view::{self, What};

/// Of one start. The default is that nothing is lost.
#[derive(Default)]
pub(super) struct Lost {
    contents: HashSet<ContentId>,
    /// Files that can be sealed anew: nothing of them is lost.
    staged: HashSet<Ino>,
    /// Files whose staging file is what is left of a lost content. Later than the version that comes in its place, it looks like an edit of
    /// that one.
    stumps: HashSet<Ino>,
}

impl Lost {
    /// After the machine or the disk went down, a content named in the journal may be a file whose bytes never reached the disk: those
    /// that are not here as they should be. One that cannot be read, or not now, is not among them: whoever reads the file is told. Nor
    /// is one that the last commit knows: the journal has a change of its name or attributes, and to drop that would lose a file whose
    /// content may well be on another disk. What was merely renamed or got other attributes is not even looked at: its bytes were synced by
    /// the commit that knows it, and to hash a whole tree after a `chmod -R` would take hours.
    pub fn find(catalog: &Catalog, store: &ContentStore, changes: &[Changes]) -> anyhow::Result<Self> {
        let elements = || changes.iter().flat_map(|change| change.sets.values().flatten());
        let known = known(catalog, changes)?;
        // Every change of a file has its content, and one with gigabytes is not to be hashed for each.
        let (mut contents, mut verified) = (HashSet::new(), HashSet::new());
        for element in elements() {
            if let Body::Content { data: Data::Stored { content, size, .. }, .. } = &element.body
                && !known.contains(&(*content, element.hlc))
                && verified.insert((*content, *size))
                && let Err(error) = store.verify_on_disk(*content, *size)
            {
                // What is damaged has been set aside.
                match store.has(*content) {
                    Ok(found) if found != Some(*size) => drop(contents.insert(*content)),
                    _ => tracing::error!("{error}: what the journal says of it is kept"),
                }
            }
        }
        if !contents.is_empty() {
            catalog.for_each(&mut |_: &Key, elements: &[Element]| {
                for (_, content) in elements.iter().filter_map(stored) {
                    contents.remove(&content);
                }
                Ok(())
            })?;
        }
        let (mut staged, mut stumps, mut compared) = (HashSet::new(), HashSet::new(), HashSet::new());
        for element in elements() {
            let Some((ino, content)) = stored(element) else { continue };
            // To compare means to hash too. What is whole for one version may be a stump of the next.
            let is_compared = !compared.insert((ino, content, element.hlc));
            if is_compared || !contents.contains(&content) || !store.is_staged(ino)? || stumps.contains(&ino) {
                continue;
            }
            let is_whole = match store.is_unsynced_copy(ino) {
                true => store.life_of_copy(ino) == Life::This || is_open(store, ino),
                false => !is_stump(store, ino, element),
            };
            if is_whole {
                staged.insert(ino)
            } else {
                stumps.insert(ino)
            };
        }
        staged.retain(|ino| !stumps.contains(ino));
        Ok(Self { contents, staged, stumps })
    }

    /// Whether the staging file of this inode must not replace what is recorded of it.
    pub fn has_stump(&self, ino: Ino) -> bool {
        self.stumps.contains(&ino)
    }

    fn has(&self, element: &Element) -> bool {
        stored(element).is_some_and(|(ino, content)| self.contents.contains(&content) && !self.staged.contains(&ino))
    }

    /// Put the versions before them in the place of lost ones, and leave the rest of a change as it is: with the name alone, a rename
    /// would take the older version along, and a link would leave names of nothing.
    pub fn take_back(&self, ns: &mut Namespace, change: &mut Changes) -> FsResult<()> {
        if !change.sets.values().flatten().any(|element| self.has(element)) {
            return Ok(());
        }
        let before = Before::of(ns, change)?;
        for (key, elements) in &mut change.sets {
            let (gone, mut kept): (Vec<_>, Vec<_>) =
                std::mem::take(elements).into_iter().partition(|element| self.has(element));
            ns.cover(&gone);
            for mut element in gone {
                let Some(ino) = element.body.ino() else { continue };
                tracing::error!(
                    "{key:?}: its content did not reach the disk before the machine or the disk went down; \
                    the version before it is kept"
                );
                let older: Vec<_> = before.versions(key, ino).cloned().collect();
                let mtime_ns = if older.iter().all(is_empty) {
                    let (data, mtime_ns) = before.stand_in(ns, ino)?.unwrap_or((Data::Empty, None));
                    element.body = Body::Content { ino, data };
                    kept.push(element);
                    mtime_ns
                } else {
                    let missing: Vec<_> = older.into_iter().filter(|element| !kept.contains(element)).collect();
                    kept.extend(missing);
                    mtime_in(&before.sets[key], ino)
                };
                // Else who compares sizes and times, as rsync does, takes it for the lost one.
                for element in &mut kept {
                    if let (Body::Times { ino: of, mtime_ns, .. }, Some(time)) = (&mut element.body, mtime_ns)
                        && *of == ino
                    {
                        *mtime_ns = time;
                    }
                }
            }
            kept.sort();
            *elements = kept;
        }
        Ok(())
    }
}

/// What the keys of a change were set to before it, and which names it gives to what.
struct Before {
    sets: BTreeMap<Key, Vec<Element>>,
    names: Vec<(Ino, Key)>,
    /// What has a name still after it, in its own right.
    kept: Vec<Data>,
}

impl Before {
    fn of(ns: &mut Namespace, change: &Changes) -> FsResult<Self> {
        let (mut sets, mut names, mut kept) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (key, elements) in &change.sets {
            sets.insert(key.clone(), ns.set(key)?);
            for element in elements.iter().filter(|_| matches!(key, Key::Entry(..))) {
                match &element.body {
                    Body::Content { ino, data } => {
                        names.push((*ino, key.clone()));
                        kept.push(data.clone());
                    }
                    Body::Link { ino } => names.push((*ino, key.clone())),
                    _ => {}
                }
            }
        }
        Ok(Self { sets, names, kept })
    }

    fn versions(&self, key: &Key, ino: Ino) -> impl Iterator<Item = &Element> {
        self.sets.get(key).into_iter().flatten().filter(move |e| is_version(e, ino))
    }

    /// What stands in for a file that has no other version under this key, and its time. One of its own that comes from another name:
    /// one, for there is one dot. A file that never had any came in the place of another, if that has no name any more: then that one's.
    /// Not a name alone would be lost else, for what has none is collected.
    fn stand_in(&self, ns: &mut Namespace, ino: Ino) -> FsResult<Option<(Data, Option<i64>)>> {
        let all = self.sets.values().flat_map(|set| set.iter().map(move |element| (set, element)));
        let own = all.filter(|(_, e)| is_version(e, ino) && !is_empty(e)).max_by_key(|(_, e)| (e.hlc, e.dot));
        if let Some((set, Element { body: Body::Content { data, .. }, .. })) = own {
            return Ok(Some((data.clone(), mtime_in(set, ino))));
        }
        for (_, key) in self.names.iter().filter(|(of, _)| *of == ino) {
            let set = &self.sets[key];
            let Some(shown) = view::view(set).into_iter().next() else { continue };
            let replaced = match &shown.what {
                What::File(parts) => Some((parts.data().clone(), mtime_in(set, parts.stored_ino))),
                What::Link => {
                    let inode = ns.set(&Key::Inode(shown.ino))?;
                    view::contents(&inode).first().map(|parts| (parts.data().clone(), mtime_in(&inode, shown.ino)))
                }
                What::Dir => None,
            };
            if let Some(found) = replaced.filter(|(data, _)| *data != Data::Empty && !self.kept.contains(data)) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// The contents that the last commit has under the keys of these changes, and when they were written. One that was written anew has
/// another time, though it may be the same: then what lies here may be new.
fn known(catalog: &Catalog, changes: &[Changes]) -> anyhow::Result<HashSet<(ContentId, Hlc)>> {
    let keys: BTreeSet<&Key> = changes.iter().flat_map(|change| change.sets.keys()).collect();
    let mut known = HashSet::new();
    for key in keys {
        let set = catalog.set(key)?;
        known.extend(set.iter().filter_map(|element| Some((stored(element)?.1, element.hlc))));
    }
    Ok(known)
}

fn mtime_in(set: &[Element], of: Ino) -> Option<i64> {
    match view::latest(set, |body| matches!(body, Body::Times { ino, .. } if *ino == of))?.body {
        Body::Times { mtime_ns, .. } => Some(mtime_ns),
        _ => None,
    }
}

fn is_version(element: &Element, of: Ino) -> bool {
    matches!(&element.body, Body::Content { ino, .. } if *ino == of)
}

fn is_empty(element: &Element) -> bool {
    matches!(&element.body, Body::Content { data: Data::Empty, .. })
}

fn stored(element: &Element) -> Option<(Ino, ContentId)> {
    match &element.body {
        Body::Content { ino, data: Data::Stored { content, .. } } => Some((*ino, *content)),
        _ => None,
    }
}

/// Whether somebody has a staging file open to write: then the kernel has all of it.
pub(super) fn is_open(store: &ContentStore, ino: Ino) -> bool {
    matches!(store.begin_seal(ino), Ok(Seal::Busy))
}

/// Whether a staging file is what was sealed as this record, but for bytes that did not reach the disk: the name of such a file may be
/// there with less than its bytes, and that it went when it was sealed not yet. It was not changed since then, and is not what the record
/// says. One that was written to after it is later.
pub(super) fn is_stump(store: &ContentStore, ino: Ino, recorded: &Element) -> bool {
    let is_later = |stat: crate::content::StagedStat| stat.ctime_ns.max(0) as u64 > recorded.hlc.0;
    match store.staged_stat(ino) {
        Ok(Some(stat)) if !is_later(stat) => {}
        _ => return false,
    }
    let Body::Content { data, .. } = &recorded.body else { return false };
    let is_same = || -> FsResult<bool> {
        Ok(match (store.begin_seal(ino)?, data) {
            (Seal::Busy, _) => true,
            (Seal::Small(small), Data::Inline { blob, .. }) => small.blob == *blob,
            (Seal::Large(job) | Seal::Doubtful(job), Data::Stored { content, .. }) => job.run()?.content == *content,
            (_, Data::Inline { .. } | Data::Stored { .. }) => false,
            _ => true,
        })
    };
    // One that cannot be read is not replaced by anything.
    !is_same().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};

    use delugefs_proto::local_pb as pb;

    use super::*;
    use crate::content::HASHED;
    use crate::engine::recover::tests::start;
    use crate::engine::{Engine, Opening, make_catalog};
    use crate::folder::DiskFolder;

    /// A new file with this content, which is sealed; its number and that of the content.
    fn write(engine: &Engine, name: &'static str, bytes: &[u8]) -> (Ino, ContentId) {
        let ino = make(engine, name, bytes);
        (ino, sealed(engine, ino, None))
    }

    fn make(engine: &Engine, name: &'static str, bytes: &[u8]) -> Ino {
        let q = pb::Create { dir: 1, name: name.into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
        let (answer, opening) = engine.create(1, false, &q).unwrap();
        let Opening::File { handle, file } = opening else { panic!() };
        file.write_all_at(bytes, 0).unwrap();
        drop(file);
        engine.close(1, handle, false).unwrap();
        Ino(answer.node.unwrap().ino)
    }

    /// Wait for another content than this.
    fn sealed(engine: &Engine, ino: Ino, but: Option<ContentId>) -> ContentId {
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
    }

    fn rename(engine: &Engine, from: &'static str, to: &'static str, exchange: bool) {
        let q = pb::Rename { dir: 1, name: from.into(), dir2: 1, name2: to.into(), exchange, ..Default::default() };
        engine.rename(1, false, &q).unwrap();
    }

    fn link(engine: &Engine, ino: Ino, name: &'static str) {
        engine.link(1, false, &pb::Link { ino: ino.0, ino_dir: 1, dir: 1, name: name.into() }).unwrap();
    }

    /// What a name has after a start of this image without that content, and after the next commit.
    fn without(image: &std::path::Path, lost: ContentId, check: impl Fn(&Engine)) {
        std::fs::remove_file(image.join(format!("data/{:02x}/{}", lost.0[0], lost.to_hex()))).unwrap();
        let running = start(image);
        for _ in 0..2 {
            let listed = running.engine.read_dir(&pb::ReadDir { dir: 1, limit: 100, ..Default::default() });
            assert!(listed.is_ok(), "{:?}", listed.err());
            check(&running.engine);
            running.engine.commit().unwrap();
        }
        running.stop().unwrap();
    }

    fn content_of(engine: &Engine, name: &'static str) -> Option<ContentId> {
        let found = engine.lookup(&pb::Lookup { dir: 1, name: name.into() }).ok()?.node?;
        engine.stored(Ino(found.ino)).unwrap().map(|stored| stored.content)
    }

    fn mtime_of(engine: &Engine, name: &'static str) -> Option<i64> {
        Some(engine.lookup(&pb::Lookup { dir: 1, name: name.into() }).ok()?.node?.mtime)
    }

    /// Make files that a commit has, do something that none has, and look at the disk as it is then without the content this gives.
    fn after(commits: impl Fn(&Engine), act: impl Fn(&Engine) -> ContentId, check: impl Fn(&Engine)) {
        let (image, lost) = image_after(commits, act);
        without(&image.path().join("d"), lost, check);
    }

    /// The same without the look: that disk, and what this gives.
    fn image_after<T>(commits: impl Fn(&Engine), act: impl Fn(&Engine) -> T) -> (tempfile::TempDir, T) {
        let (dir, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = dir.path().join("d");
        drop(DiskFolder::create_with(&root, "test", None, make_catalog).unwrap());
        let running = start(&root);
        let engine = &running.engine;
        commits(engine);
        engine.commit().unwrap();
        // No commit from here on.
        let one = engine.commit_lock.lock();
        let done = act(engine);
        let copied = std::process::Command::new("cp").arg("-a").arg(&root).arg(image.path()).status();
        assert!(copied.unwrap().success());
        drop(one);
        running.stop().unwrap();
        (image, done)
    }

    #[test]
    fn a_start_hashes_a_content_once_however_often_the_journal_has_it() {
        let act = |engine: &Engine| {
            let ino = write(engine, "f", &[7; 10_000]).0;
            for mode in [0o640, 0o644] {
                engine
                    .set_attr(1, &pb::SetAttr { ino: ino.0, dir: 1, mode: Some(mode), ..Default::default() })
                    .unwrap();
            }
            rename(engine, "f", "g", false);
        };
        let (image, ()) = image_after(|_| (), act);
        let before = HASHED.get();
        let running = start(&image.path().join("d"));
        assert_eq!(HASHED.get() - before, 1);
        running.stop().unwrap();
    }

    /// What a commit has was synced for that; but what is written anew may lie here since then only, though the commit has the same.
    #[test]
    fn a_start_hashes_what_was_written_since_the_last_commit_alone() {
        for is_written in [false, true] {
            let act = |engine: &Engine| {
                let found = |name| Ino(engine.lookup(&pb::Lookup { dir: 1, name }).unwrap().node.unwrap().ino);
                let (f, g) = (found("f".into()), found("g".into()));
                if is_written {
                    let open = pb::Open { ino: f.0, dir: 1, write: true, truncate: true };
                    let Opening::File { handle, file } = engine.open(1, &open).unwrap().1 else { panic!() };
                    file.write_all_at(&[7; 10_000], 0).unwrap();
                    drop(file);
                    engine.close(1, handle, false).unwrap();
                    sealed(engine, f, None);
                }
                let q = pb::SetAttr { ino: f.0, dir: 1, mode: Some(0o640), ..Default::default() };
                engine.set_attr(1, &q).unwrap();
                rename(engine, "f", "f2", false);
                link(engine, g, "h");
                rename(engine, "h", "h2", false);
            };
            let commits = |engine: &Engine| {
                write(engine, "f", &[7; 10_000]);
                write(engine, "g", &[8; 10_000]);
            };
            let (image, ()) = image_after(commits, act);
            let before = HASHED.get();
            let running = start(&image.path().join("d"));
            assert_eq!(HASHED.get() - before, u64::from(is_written));
            running.stop().unwrap();
        }
    }

    /// A file was written, edited in place, and given another name; of the edited bytes nothing reached the disk.
    #[test]
    fn the_version_before_a_lost_one_has_the_name_of_the_lost_one() {
        for is_link in [false, true] {
            let first = std::cell::Cell::new(None);
            let act = |engine: &Engine| {
                let found = engine.lookup(&pb::Lookup { dir: 1, name: "f".into() }).unwrap().node.unwrap();
                let open = pb::Open { ino: found.ino, dir: 1, write: true, truncate: false };
                let Opening::File { handle, file } = engine.open(1, &open).unwrap().1 else { panic!() };
                file.write_all_at(&[8; 10_000], 0).unwrap();
                drop(file);
                engine.close(1, handle, false).unwrap();
                let second = sealed(engine, Ino(found.ino), first.get());
                match is_link {
                    true => link(engine, Ino(found.ino), "g"),
                    false => rename(engine, "f", "g", false),
                }
                second
            };
            let names: &[_] = if is_link { &["f", "g"] } else { &["g"] };
            let check =
                |engine: &Engine| names.iter().for_each(|name| assert_eq!(content_of(engine, name), first.get()));
            after(|engine| first.set(Some(write(engine, "f", &[7; 10_000]).1)), act, check);
        }
    }

    /// `cp new tmp; mv tmp old` of which no byte reached the disk, and what was done with the name after that.
    #[test]
    fn a_file_that_was_replaced_by_a_lost_one_has_its_name_again() {
        for is_linked in [false, true] {
            for then in ["nothing", "rename", "link", "exchange", "chmod", "link and rename"] {
                let (old, time) = (std::cell::Cell::new(None), std::cell::Cell::new(None));
                let make = |engine: &Engine| {
                    let (ino, content) = write(engine, "g", &[7; 10_000]);
                    write(engine, "other", &[9; 10_000]);
                    if is_linked {
                        link(engine, ino, "g2");
                    }
                    old.set(Some(content));
                    time.set(mtime_of(engine, "g"));
                };
                let act = |engine: &Engine| {
                    let (ino, new) = write(engine, "tmp", &[8; 10_000]);
                    match then {
                        "link and rename" => {
                            link(engine, ino, "h");
                            rename(engine, "tmp", "g", false);
                            return new;
                        }
                        _ => rename(engine, "tmp", "g", false),
                    }
                    match then {
                        "rename" => rename(engine, "g", "h", false),
                        "link" => link(engine, ino, "h"),
                        "exchange" => rename(engine, "g", "other", true),
                        "chmod" => {
                            let q = pb::SetAttr { ino: ino.0, dir: 1, mode: Some(0o640), ..Default::default() };
                            engine.set_attr(1, &q).unwrap();
                        }
                        _ => {}
                    }
                    new
                };
                let check = |engine: &Engine| {
                    let names: &[_] = match then {
                        "rename" => &["h"],
                        "link" | "link and rename" => &["g", "h"],
                        "exchange" => &["other"],
                        _ => &["g"],
                    };
                    for name in names.iter().chain(is_linked.then_some(&"g2")) {
                        assert_eq!(content_of(engine, name), old.get(), "{name} after {then}, {is_linked}");
                        assert_eq!(mtime_of(engine, name), time.get(), "{name} after {then}, {is_linked}");
                    }
                    let listed = engine.read_dir(&pb::ReadDir { dir: 1, limit: 100, ..Default::default() }).unwrap().1;
                    assert!(!listed.entries.iter().any(|entry| entry.name.windows(9).any(|part| part == b".conflict")));
                };
                after(make, act, check);
            }
        }
    }

    /// Its bytes are in the catalog.
    #[test]
    fn a_small_file_that_was_replaced_by_a_lost_one_has_its_name_again() {
        let act = |engine: &Engine| {
            let new = write(engine, "tmp", &[8; 10_000]).1;
            rename(engine, "tmp", "g", false);
            new
        };
        let check = |engine: &Engine| {
            let found = engine.lookup(&pb::Lookup { dir: 1, name: "g".into() }).unwrap().node.unwrap();
            let open = pb::Open { ino: found.ino, dir: 1, write: false, truncate: false };
            let Opening::Inline(bytes) = engine.open(1, &open).unwrap().1 else { panic!("it is not small") };
            assert_eq!(bytes, &b"small"[..]);
        };
        let old = |engine: &Engine| {
            make(engine, "g", b"small");
        };
        after(old, act, check);
    }

    /// What was exchanged with a lost one has its other name, and that alone.
    #[test]
    fn what_was_exchanged_with_a_lost_one_is_not_there_twice() {
        let old = std::cell::Cell::new(None);
        let act = |engine: &Engine| {
            let new = write(engine, "tmp", &[8; 10_000]).1;
            rename(engine, "tmp", "g", true);
            new
        };
        let check = |engine: &Engine| {
            assert_eq!((content_of(engine, "tmp"), content_of(engine, "g")), (old.get(), None));
        };
        after(|engine| old.set(Some(write(engine, "g", &[7; 10_000]).1)), act, check);
    }
}
