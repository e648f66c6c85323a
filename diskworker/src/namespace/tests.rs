//! A cache that is smaller than what is used, and what no user can do.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Data, Hlc, Key, Name, Perm};
use nix::errno::Errno;

use super::{LARGE_FACTOR, LARGE_SHARE, Making, Namespace, Written};
use crate::catalog::{Catalog, ImportLimits};
use crate::journal::Journal;

const PERM: Perm = Perm { mode: 0o755, uid: 1, gid: 1 };
/// Entries in the cache.
const CACHED_MAX: usize = 300;
/// So many in a directory that two of them do not fit into it.
const FILES: usize = CACHED_MAX / 2 + 10;

fn new(root: &Path) -> Namespace {
    drop(Catalog::create(&root.join("catalog")).unwrap());
    std::fs::create_dir(root.join("journal")).unwrap();
    let mut ns = start(root);
    ns.make_root(PERM).unwrap();
    ns
}

/// As a worker does, with nothing in memory.
fn start(root: &Path) -> Namespace {
    let catalog = Arc::new(Catalog::open(&root.join("catalog")).unwrap());
    let (journal, recovered) = Journal::open(File::open(root.join("journal")).unwrap()).unwrap();
    let mut ns = Namespace::new(catalog, journal.into(), recovered.actor);
    ns.cached_entries_max = CACHED_MAX;
    ns.large_kept = Duration::ZERO;
    recovered.changes.into_iter().for_each(|change| ns.replay(change).unwrap());
    ns
}

/// Nobody writes anything.
fn nothing() -> Written<'static> {
    Written { files: HashMap::new(), has_more: &|_| false, note: &|_| () }
}

fn commit(ns: &mut Namespace) {
    let (changes, ctx) = ns.begin_commit().unwrap();
    ns.catalog.commit(&changes, &ctx).unwrap();
    drop(changes);
    ns.committed();
    ns.journal.retire().unwrap();
}

fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

fn mkdir(ns: &mut Namespace, dir: Ino, at: &str) -> Ino {
    ns.make_dir(&Making { dir, name: &name(at), perm: PERM }, 0).unwrap().ino
}

fn names(ns: &mut Namespace, dir: Ino) -> Vec<String> {
    let page = ns.list(dir, &Name::header(), usize::MAX).unwrap();
    page.entries.into_iter().map(|(name, _)| name.to_string()).collect()
}

/// Two large directories in the catalog, and nothing in memory.
fn large(root: &Path) -> (Namespace, [Ino; 2]) {
    let mut ns = new(root);
    let dirs = ["a", "b"].map(|at| mkdir(&mut ns, Ino::ROOT, at));
    for (dir, first) in dirs.into_iter().zip([1000, 2000]) {
        for n in 0..FILES {
            let making = Making { dir, name: &name(&format!("{n:04}")), perm: PERM };
            ns.make_file(&making, Ino(first + n as u64), Data::Empty, None).unwrap();
        }
    }
    commit(&mut ns);
    drop(ns);
    (start(root), dirs)
}

/// Who waits until nothing is uncommitted waits for the commit that is under way, too.
#[test]
fn what_is_being_committed_is_not_committed_yet() {
    let dir = tempfile::tempdir().unwrap();
    let mut ns = new(dir.path());
    commit(&mut ns);
    assert_eq!(ns.uncommitted_len(), 0);
    mkdir(&mut ns, Ino::ROOT, "a");
    let before = ns.uncommitted_len();
    let (changes, ctx) = ns.begin_commit().unwrap();
    assert_eq!((ns.uncommitted_len(), ns.pending_len()), (before, 0));
    // The root is changed once more.
    mkdir(&mut ns, Ino::ROOT, "b");
    assert!(ns.uncommitted_len() > before && ns.uncommitted_len() < before + ns.pending_len());
    ns.catalog.commit(&changes, &ctx).unwrap();
    drop(changes);
    ns.committed();
    assert_eq!(ns.uncommitted_len(), ns.pending_len());
}

#[test]
fn directories_that_do_not_fit_into_the_cache_together_keep_what_was_changed_in_both() {
    let root = tempfile::tempdir().unwrap();
    let (mut ns, [a, b]) = large(root.path());
    ns.rename((a, &name("0000")), (b, &name("moved")), false, false).unwrap();
    ns.rename((b, &name("0001")), (a, &name("moved too")), false, false).unwrap();
    let check = |ns: &mut Namespace| {
        for (dir, gone, come) in [(a, "0000", "moved too"), (b, "0001", "moved")] {
            let now = names(ns, dir);
            assert!(now.len() == FILES && now.contains(&come.to_owned()) && !now.contains(&gone.to_owned()));
            assert_eq!(ns.lookup(dir, &name(gone)).unwrap_err().errno, Errno::ENOENT);
        }
    };
    check(&mut ns);
    drop(ns);
    let mut ns = start(root.path());
    check(&mut ns);
    let (changes, ctx) = ns.begin_commit().unwrap();
    check(&mut ns);
    ns.catalog.commit(&changes, &ctx).unwrap();
    drop(changes);
    ns.committed();
    check(&mut ns);
}

/// Two programs, each at work in one of them.
#[test]
fn large_directories_that_are_in_use_stay_in_the_cache() {
    let root = tempfile::tempdir().unwrap();
    let (mut ns, [a, b]) = large(root.path());
    ns.large_kept = Duration::from_secs(600);
    for n in 0..3 {
        ns.lookup(a, &name("0000")).unwrap();
        mkdir(&mut ns, b, &n.to_string());
        commit(&mut ns);
        assert!(ns.dirs.contains_key(&a) && ns.dirs.contains_key(&b), "it is decoded anew");
    }
    // Not for ever.
    ns.large_kept = Duration::ZERO;
    commit(&mut ns);
    assert!(!ns.dirs.contains_key(&a) && ns.cached_entries <= CACHED_MAX);
    // Nor more than a few.
    ns.large_kept = Duration::from_secs(600);
    let many: Vec<Ino> = (0..12).map(|n| mkdir(&mut ns, Ino::ROOT, &format!("many {n}"))).collect();
    for (at, dir) in many.iter().enumerate() {
        for n in 0..CACHED_MAX / LARGE_SHARE + 1 {
            let making = Making { dir: *dir, name: &name(&n.to_string()), perm: PERM };
            ns.make_file(&making, Ino(10_000 + (at * FILES + n) as u64), Data::Empty, None).unwrap();
        }
    }
    commit(&mut ns);
    assert!(ns.cached_entries <= CACHED_MAX * (LARGE_FACTOR + 1), "{}", ns.cached_entries);
    assert!(ns.dirs.contains_key(&many[11]) && !ns.dirs.contains_key(&many[0]));
}

/// Two disks that have joined each other's state.
fn meet(disks: [&mut Namespace; 2]) {
    let packs = disks.each_ref().map(|ns| {
        let mut pack = Vec::new();
        let state = ns.catalog.state();
        ns.catalog.export(&state, None, &mut pack).unwrap();
        (pack, state.commit)
    });
    for (ns, (pack, commit)) in disks.into_iter().zip(packs.iter().rev()) {
        let theirs = ns.catalog.import(&mut &pack[..], *commit, &ImportLimits::default(), None).unwrap();
        ns.join(&theirs, &nothing()).unwrap();
    }
}

/// Each of two names was removed by a host that left the other one.
#[test]
fn nothing_is_left_of_a_file_whose_names_were_removed_on_several_hosts() {
    let roots = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let [mut one, mut two] = [0, 1].map(|n| new(roots[n].path()));
    let file = Ino(1000);
    one.make_file(&Making { dir: Ino::ROOT, name: &name("f"), perm: PERM }, file, Data::Fifo, None).unwrap();
    one.link(file, Ino::ROOT, Ino::ROOT, &name("g")).unwrap();
    for _ in 0..2 {
        [&mut one, &mut two].into_iter().for_each(commit);
        meet([&mut one, &mut two]);
    }
    one.unlink(Ino::ROOT, &name("f")).unwrap();
    two.unlink(Ino::ROOT, &name("g")).unwrap();
    for _ in 0..3 {
        [&mut one, &mut two].into_iter().for_each(commit);
        meet([&mut one, &mut two]);
    }
    for ns in [&mut one, &mut two] {
        assert_eq!(ns.set(&Key::Inode(file)).unwrap(), []);
        assert!(names(ns, Ino::ROOT).is_empty());
    }
    assert_eq!(one.catalog.state().commit, two.catalog.state().commit);
}

/// As catalogs from before have it.
#[test]
fn the_name_of_a_directory_that_is_not_there_is_in_nobodys_way_and_goes_when_it_is_met() {
    let roots = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let [mut one, mut two] = [0, 1].map(|n| new(roots[n].path()));
    let outer = mkdir(&mut one, Ino::ROOT, "outer");
    let (at, other) = (name("inner"), name("other"));
    mkdir(&mut one, outer, "real");
    let mut txn = one.txn();
    for (name, ino) in [(&at, Ino(1000)), (&other, Ino(1001))] {
        txn.set(Key::Entry(outer, name.clone()), vec![txn.element(Body::Dir { ino })]);
    }
    one.apply(txn).unwrap();
    assert_eq!(names(&mut one, outer), ["real"]);
    // A page with nothing on it would be taken for the last one.
    assert_eq!(one.list(outer, &Name::header(), 1).unwrap().entries[0].0, name("real"));
    commit(&mut one);
    commit(&mut two);
    let mut pack = Vec::new();
    let state = one.catalog.state();
    one.catalog.export(&state, None, &mut pack).unwrap();
    let taken = two.catalog.import(&mut &pack[..], state.commit, &ImportLimits::default(), None).unwrap();
    two.join(&taken, &nothing()).unwrap();
    assert!(two.dir(outer).unwrap().get(&at).is_empty());
    for ns in [&mut one, &mut two] {
        mkdir(ns, outer, "inner");
        for name in [&at, &name("real")] {
            ns.rmdir(outer, name).unwrap();
        }
        ns.rmdir(Ino::ROOT, &name("outer")).unwrap();
    }
}

/// Else whatever it changes next is taken for removed by everybody, itself among them.
#[test]
fn a_state_that_knows_more_of_a_disk_than_itself_is_refused() {
    let roots = [0, 1].map(|_| tempfile::tempdir().unwrap());
    let [mut liar, mut ns] = [0, 1].map(|n| new(roots[n].path()));
    commit(&mut liar);
    commit(&mut ns);
    for (seq, is_refused) in [(0, false), (1 << 40, true)] {
        let (changes, mut ctx) = liar.begin_commit().unwrap();
        ctx.0.insert(ns.actor, ns.ctx.0[&ns.actor] + seq);
        liar.catalog.commit(&changes, &ctx).unwrap();
        drop(changes);
        liar.committed();
        let (state, mut pack) = (liar.catalog.state(), Vec::new());
        liar.catalog.export(&state, None, &mut pack).unwrap();
        let taken = ns.catalog.import(&mut &pack[..], state.commit, &ImportLimits::default(), None).unwrap();
        match ns.join(&taken, &nothing()) {
            Err(error) => assert!(is_refused && error.message.contains("changes of this disk"), "{error}"),
            Ok(_) => assert!(!is_refused),
        }
        mkdir(&mut ns, Ino::ROOT, &format!("after {seq}"));
        commit(&mut ns);
    }
}

/// What else is in the set of such a name is another host's file: what is put there does not take it along.
#[test]
fn what_lies_under_the_name_of_nothing_is_there_when_the_name_is_taken() {
    let root = tempfile::tempdir().unwrap();
    let mut ns = new(root.path());
    for place in [Body::Dir { ino: Ino(1000) }, Body::Link { ino: Ino(1000) }] {
        for what in ["file", "directory", "rename", "rename of a directory", "link", "rename of the copy"] {
            let dir = mkdir(&mut ns, Ino::ROOT, &format!("{what} {}", matches!(place, Body::Dir { .. })));
            let at = name("n");
            let other = |ns: &mut Namespace, ino: u64| {
                let making = Making { dir, name: &name("other"), perm: PERM };
                ns.make_file(&making, Ino(ino), Data::Symlink(b"theirs".as_slice().into()), None).unwrap().ino
            };
            // Both a file and an empty one behind it, that is being written.
            let mut txn = ns.txn();
            let theirs = Data::Symlink(b"theirs".as_slice().into());
            let mut set = vec![txn.element(Body::Content { ino: Ino(2000), data: theirs.clone() })];
            set.push(txn.element_of(Body::Content { ino: Ino(3000), data: Data::Empty }, Hlc(1)));
            txn.hlc.0 += 1;
            set.push(txn.element(place.clone()));
            txn.set(Key::Entry(dir, at.clone()), set);
            ns.apply(txn).unwrap();
            let before = names(&mut ns, dir);
            assert!(before.len() == 1 && before[0].starts_with("n.conflict-"), "{before:?}");
            let copy = name(&before[0]);
            let making = Making { dir, name: &at, perm: PERM };
            let made = match what {
                "file" => ns.make_file(&making, Ino(4000), Data::Empty, None).unwrap().ino,
                "directory" => ns.make_dir(&making, 0).unwrap().ino,
                "link" => {
                    let ino = other(&mut ns, 5000 + dir.0 % 1000);
                    ns.link(ino, dir, dir, &at).unwrap().ino
                }
                "rename of a directory" => {
                    mkdir(&mut ns, dir, "other");
                    ns.rename((dir, &name("other")), (dir, &at), true, false).unwrap().moved.ino
                }
                "rename" => {
                    other(&mut ns, 7000 + dir.0 % 1000);
                    ns.rename((dir, &name("other")), (dir, &at), false, false).unwrap().moved.ino
                }
                _ => ns.rename((dir, &copy), (dir, &at), false, false).unwrap().moved.ino,
            };
            assert_eq!(ns.lookup(dir, &at).unwrap().ino, made, "{what}");
            if what == "rename of the copy" {
                assert_eq!(names(&mut ns, dir), ["n"]);
            } else {
                let kept = ns.lookup(dir, &copy).unwrap();
                assert_eq!((kept.ino, kept.kind), (Ino(2000), super::Kind::File(theirs)), "{what}");
            }
            let is_written = |e: &&delugefs_proto::record::Element| e.body.ino() == Some(Ino(3000));
            assert_eq!(ns.dir(dir).unwrap().get(&at).iter().filter(is_written).count(), 1, "{what}");
            assert!(!ns.dir(dir).unwrap().get(&at).iter().any(|e| e.body == place), "{what}");
        }
    }
}

/// A name that is used over and over: each directory is another one, and none costs more than the one before.
#[test]
fn a_name_may_be_a_directorys_as_often_as_one_likes() {
    let root = tempfile::tempdir().unwrap();
    let mut ns = new(root.path());
    for (at, is_moved) in [("lock", false), ("new", true)] {
        let mut seen = std::collections::HashSet::new();
        for n in 0..20 {
            let ino = mkdir(&mut ns, Ino::ROOT, at);
            assert!(seen.insert(ino), "{ino} was another one's");
            let agreed = crate::view::directory_ino(Ino::ROOT, &name(at), n);
            assert_eq!(ino == agreed, n < 8, "{at} {n}");
            match is_moved {
                true => {
                    let to = name(&format!("job {n}"));
                    ns.rename((Ino::ROOT, &name(at)), (Ino::ROOT, &to), false, false).map(drop).unwrap();
                }
                false => drop(ns.rmdir(Ino::ROOT, &name(at)).unwrap()),
            }
        }
    }
}

/// Else what two hosts make apart could be more than a catalog holds when they meet.
#[test]
fn names_of_one_file_have_a_bound_in_bytes() {
    use delugefs_proto::limits::LINK_NAMES_MAX_BYTES;

    let root = tempfile::tempdir().unwrap();
    let mut ns = new(root.path());
    let errno = |done: FsResult<()>| done.map_err(|error| error.errno);
    let ino = Ino(4000);
    ns.make_file(&Making { dir: Ino::ROOT, name: &name("f"), perm: PERM }, ino, Data::Empty, None).unwrap();
    let long = |n: usize| name(&format!("{n:0>255}"));
    ns.link(ino, Ino::ROOT, Ino::ROOT, &long(0)).unwrap();
    ns.link(ino, Ino::ROOT, Ino::ROOT, &name("g")).unwrap();
    // As if it had as many as it may have.
    let mut txn = ns.txn();
    let mut set = ns.inode(ino).unwrap().to_vec();
    let fits = (LINK_NAMES_MAX_BYTES - 2) / 255;
    set.extend((1..fits).map(|n| txn.element(Body::Ref { dir: Ino::ROOT, name: long(n) })));
    (1..fits).for_each(|n| txn.set(Key::Entry(Ino::ROOT, long(n)), vec![txn.element(Body::Link { ino })]));
    txn.set(Key::Inode(ino), set);
    ns.apply(txn).unwrap();
    assert_eq!(errno(ns.link(ino, Ino::ROOT, Ino::ROOT, &long(fits)).map(drop)), Err(Errno::EMLINK));
    let mut rename =
        |from: &Name, to: &Name| errno(ns.rename((Ino::ROOT, from), (Ino::ROOT, to), false, false).map(drop));
    assert_eq!(rename(&name("g"), &long(fits)), Err(Errno::EMLINK));
    assert_eq!(rename(&long(0), &long(fits)), Ok(()));
    ns.unlink(Ino::ROOT, &long(fits)).unwrap();
    ns.link(ino, Ino::ROOT, Ino::ROOT, &long(fits)).unwrap();
}
