//! What crashes leave, opening, and consolidation beside readers and writers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use delugefs_proto::ids::{ActorId, Ino};
use delugefs_proto::record::*;

use super::world::*;
use crate::catalog::{Catalog, CatalogError};

const ME: ActorId = ActorId(3);

fn put(model: &mut Model, n: u16) {
    let dot = model.draw(ME);
    model.sets.insert(Key::Entry(Ino::ROOT, name(n)), vec![element(dot, n as u8)]);
}

#[test]
fn leftovers_are_cleared_and_nothing_else() {
    let (_d, catalog) = new_catalog();
    let mut model = Model::default();
    for n in 0..4 {
        let before = model.clone();
        put(&mut model, n);
        catalog.commit(&model.changes_from(&before), &model.ctx).unwrap();
    }
    let dir = catalog.dir.clone();
    drop(catalog);
    let packs = dir.join("objects/pack");
    let stems: Vec<String> = crate::catalog::packdir::list(&packs).unwrap();
    assert_eq!(stems.len(), 5);
    fs::write(packs.join("tmp_0123456789abcdef"), b"half a pack").unwrap();
    fs::write(packs.join(format!("pack-{}.idx", "0".repeat(40))), b"the pack was removed").unwrap();
    fs::create_dir_all(dir.join("quarantine/aa/pack")).unwrap();
    fs::write(dir.join("quarantine/aa/pack/tmp_incoming"), b"half of what a peer sent").unwrap();
    fs::write(dir.join("refs/heads/state.lock"), b"half a ref").unwrap();
    // The index of a pack was lost: made anew.
    for stem in &stems {
        fs::remove_file(packs.join(format!("{stem}.idx"))).unwrap();
    }
    let opened = Catalog::open(&dir).unwrap();
    model.assert_is(&opened);
    assert_eq!(opened.packs(), 5);
    assert_eq!(fs::read_dir(&packs).unwrap().count(), 10);
    assert!(!dir.join("quarantine").exists());
    let before = model.clone();
    put(&mut model, 9);
    opened.commit(&model.changes_from(&before), &model.ctx).unwrap();
    model.assert_is(&opened);
}

#[test]
fn a_pack_whose_ref_never_moved_is_harmless() {
    let (_d, catalog) = new_catalog();
    let mut model = Model::default();
    put(&mut model, 1);
    let old = catalog.commit(&model.changes_from(&Model::default()), &model.ctx).unwrap();
    let was = fs::read(catalog.dir.join("refs/heads/state")).unwrap();
    let mut later = model.clone();
    put(&mut later, 2);
    let new = catalog.commit(&later.changes_from(&model), &later.ctx).unwrap();
    let dir = catalog.dir.clone();
    drop(catalog);
    fs::write(dir.join("refs/heads/state"), was).unwrap();
    let opened = Catalog::open(&dir).unwrap();
    assert_eq!(opened.state().commit, old.commit);
    model.assert_is(&opened);
    assert_eq!(opened.commit(&later.changes_from(&model), &later.ctx).unwrap().commit, new.commit);
    later.assert_is(&opened);
}

#[test]
fn create_is_all_or_nothing() {
    let dir = scratch();
    let path = dir.path().join("catalog.git");
    fs::create_dir_all(dir.path().join("catalog.unfinished/objects")).unwrap();
    drop(Catalog::create(&path).unwrap());
    assert!(!dir.path().join("catalog.unfinished").exists());
    assert!(matches!(Catalog::create(&path), Err(CatalogError::Io { .. })));
    let absent = Catalog::open(&dir.path().join("nothing"));
    assert!(matches!(absent, Err(CatalogError::NotACatalog(_))));
    Model::default().assert_is(&Catalog::open(&path).unwrap());
}

/// A disk comes from anywhere, and what is tidied away in its catalog must not be anybody else's.
#[test]
fn a_catalog_that_leads_elsewhere_is_refused_and_nothing_is_touched_there() {
    let (_d, catalog) = new_catalog();
    let dir = catalog.dir.clone();
    drop(catalog);
    let other = scratch();
    fs::write(other.path().join("Cargo.lock"), "mine").unwrap();
    fs::write(other.path().join("tmp_mine"), "mine").unwrap();
    let refused = |place: &str, leads: &dyn Fn(&Path)| {
        let (place, aside) = (dir.join(place), dir.with_extension("aside"));
        let was_there = fs::rename(&place, &aside).is_ok();
        leads(&place);
        let refused = Catalog::open(&dir);
        assert!(matches!(&refused, Err(CatalogError::Elsewhere(found)) if *found == place), "{place:?}");
        fs::remove_file(&place).unwrap();
        if was_there {
            fs::rename(aside, place).unwrap();
        }
    };
    let link = |place: &Path| std::os::unix::fs::symlink(other.path(), place).unwrap();
    for place in ["refs/x", "refs/heads", "objects/pack", "objects/info", "HEAD", "refs/heads/state"] {
        refused(place, &link);
    }
    let names_it = |place: &Path| fs::write(place, other.path().as_os_str().as_encoded_bytes()).unwrap();
    for place in ["commondir", "objects/info/alternates"] {
        refused(place, &names_it);
    }
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 2);
    Catalog::open(&dir).unwrap();
}

#[test]
fn a_newer_format_is_left_alone() {
    let (_d, catalog) = new_catalog();
    let dir = catalog.dir.clone();
    drop(catalog);
    let repo = git2::Repository::open_bare(&dir).unwrap();
    let tree = repo.find_commit(repo.refname_to_id("refs/heads/state").unwrap()).unwrap().tree().unwrap();
    let mut builder = repo.treebuilder(None).unwrap();
    builder.insert("version", repo.blob(b"2\n").unwrap(), 0o100644).unwrap();
    builder.insert("something else", tree.get_name("ctx").unwrap().id(), 0o100644).unwrap();
    let tree = builder.write().unwrap();
    let commit = crate::catalog::tree::serialize_commit(tree);
    let commit = repo.odb().unwrap().write(git2::ObjectType::Commit, &commit).unwrap();
    repo.reference("refs/heads/state", commit, true, "").unwrap();
    fs::write(dir.join("objects/pack/tmp_x"), b"not ours to remove").unwrap();
    assert!(matches!(Catalog::open(&dir), Err(CatalogError::Newer { found: 2 })));
    assert!(dir.join("objects/pack/tmp_x").exists());
}

#[test]
fn git_itself_finds_nothing_wrong() {
    let Ok(version) = std::process::Command::new("git").arg("--version").output() else { return };
    assert!(version.status.success());
    let (_d, catalog) = new_catalog();
    let mut model = Model::default();
    for n in 0..130 {
        put(&mut model, n);
    }
    catalog.commit(&model.changes_from(&Model::default()), &model.ctx).unwrap();
    for consolidate in [false, true] {
        if consolidate {
            catalog.consolidate(u64::MAX).unwrap();
        }
        let fsck = std::process::Command::new("git")
            .args(["-c", "safe.directory=*", "--git-dir"])
            .arg(&catalog.dir)
            .args(["fsck", "--strict", "--full"])
            .output()
            .unwrap();
        assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stderr));
    }
}

#[test]
fn consolidation_beside_readers_and_writers() {
    let (_d, catalog) = new_catalog();
    let mut model = Model::default();
    for n in 0..150 {
        put(&mut model, n);
    }
    catalog.commit(&model.changes_from(&Model::default()), &model.ctx).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut reads = 0;
                    while !stop.load(Ordering::Relaxed) {
                        assert!(catalog.directory(Ino::ROOT).unwrap().len() >= 150);
                        assert_eq!(catalog.set(&Key::Entry(Ino::ROOT, name(77))).unwrap().len(), 1);
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        let consolidator = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                catalog.consolidate(u64::MAX).unwrap();
            }
        });
        for n in 150..260 {
            let before = model.clone();
            put(&mut model, n);
            catalog.commit(&model.changes_from(&before), &model.ctx).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        consolidator.join().unwrap();
        assert!(readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u64>() > 0);
    });
    catalog.consolidate(u64::MAX).unwrap();
    assert!(catalog.packs() <= 2, "{} packs", catalog.packs());
    model.assert_is(&catalog);
    assert_eq!(catalog.verify().unwrap().problems, Vec::<String>::new());
    let reopened = Catalog::open(&catalog.dir).unwrap();
    model.assert_is(&reopened);
}

/// As on a full disk, where each change is a commit of its own because others follow.
#[test]
fn without_room_for_a_new_base_the_other_packs_become_one() {
    let (_d, catalog) = new_catalog();
    let mut model = Model::default();
    let edit = |model: &mut Model, names: std::ops::Range<u16>| {
        let before = model.clone();
        names.for_each(|n| put(model, n));
        catalog.commit(&model.changes_from(&before), &model.ctx).unwrap();
    };
    edit(&mut model, 0..1000);
    catalog.consolidate(u64::MAX).unwrap();
    let packs = || crate::catalog::packdir::list(&catalog.dir.join("objects/pack")).unwrap();
    let (base, base_bytes) = (packs(), catalog.packs_bytes().unwrap());
    (0..5).for_each(|n| edit(&mut model, n * 200..n * 200 + 200));
    let others_bytes = catalog.packs_bytes().unwrap() - base_bytes;
    assert!(others_bytes * 2 > base_bytes, "else they are the others in any case");
    catalog.consolidate(others_bytes - 1).unwrap();
    assert_eq!(packs().len(), 6, "there is no room for that either");
    catalog.consolidate(base_bytes + others_bytes - 1).unwrap();
    assert!(packs().len() == 2 && packs().contains(&base[0]), "{:?}", packs());
    model.assert_is(&catalog);
    assert_eq!(catalog.verify().unwrap().problems, Vec::<String>::new());
    model.assert_is(&Catalog::open(&catalog.dir).unwrap());
    edit(&mut model, 0..1);
    catalog.consolidate(u64::MAX).unwrap();
    assert!(packs().len() == 1 && packs() != base, "{:?}", packs());
    model.assert_is(&catalog);
}

#[test]
fn small_changes_leave_the_base_alone() {
    let (_d, mut catalog) = new_catalog();
    let mut model = Model::default();
    (0..1000).for_each(|n| put(&mut model, n));
    catalog.commit(&model.changes_from(&Model::default()), &model.ctx).unwrap();
    catalog.consolidate(u64::MAX).unwrap();
    let base = crate::catalog::packdir::list(&catalog.dir.join("objects/pack")).unwrap();
    assert_eq!(base.len(), 1);
    let edit = |catalog: &Catalog, model: &mut Model, names: std::ops::Range<u16>| {
        let before = model.clone();
        names.for_each(|n| put(model, n));
        catalog.commit(&model.changes_from(&before), &model.ctx).unwrap();
    };
    for round in 0..3 {
        (0..3).for_each(|n| edit(&catalog, &mut model, n..n + 1));
        catalog.consolidate(u64::MAX).unwrap();
        let packs = crate::catalog::packdir::list(&catalog.dir.join("objects/pack")).unwrap();
        assert!(packs.len() == 2 && packs.contains(&base[0]), "round {round}: {packs:?}");
        let dir = catalog.dir.clone();
        drop(catalog);
        catalog = Catalog::open(&dir).unwrap();
        model.assert_is(&catalog);
        assert_eq!(catalog.verify().unwrap().problems, Vec::<String>::new());
    }
    // Much has changed: a new base.
    edit(&catalog, &mut model, 0..900);
    catalog.consolidate(u64::MAX).unwrap();
    let packs = crate::catalog::packdir::list(&catalog.dir.join("objects/pack")).unwrap();
    assert!(packs.len() == 1 && packs != base, "{packs:?}");
    model.assert_is(&catalog);
    // A base that names nothing is none.
    for text in ["", "nonsense", &format!("pack-{} {}\n", "0".repeat(40), "0".repeat(40))] {
        fs::write(catalog.dir.join("base"), text).unwrap();
        (0..2).for_each(|n| edit(&catalog, &mut model, n..n + 1));
        catalog.consolidate(u64::MAX).unwrap();
        assert_eq!(catalog.packs(), 1);
        model.assert_is(&catalog);
    }
    assert_eq!(catalog.verify().unwrap().problems, Vec::<String>::new());
}

#[test]
fn consolidation_may_stop_anywhere() {
    let (_d, catalog) = new_catalog();
    let mut model = Model::default();
    for n in 0..3 {
        let before = model.clone();
        (n * 40..n * 40 + 40).for_each(|n| put(&mut model, n));
        catalog.commit(&model.changes_from(&before), &model.ctx).unwrap();
    }
    let dir = catalog.dir.clone();
    let packs = dir.join("objects/pack");
    let files = || -> BTreeMap<PathBuf, Vec<u8>> {
        fs::read_dir(&packs)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    };
    let before = files();
    catalog.consolidate(u64::MAX).unwrap();
    drop(catalog);
    let (after, base) = (files(), fs::read(dir.join("base")).unwrap());
    // The steps in their order: the new pack, its index, the base, then each old index and pack go.
    let new = |extension: &str| after.iter().find(|(path, _)| path.extension().unwrap() == extension).unwrap();
    let mut gone: Vec<&PathBuf> = before.keys().collect();
    gone.sort_by_key(|path| (path.file_stem(), path.extension() != Some("idx".as_ref())));
    let steps = 3 + gone.len();
    for done in 0..=steps {
        fs::remove_dir_all(&packs).unwrap();
        fs::create_dir(&packs).unwrap();
        drop(fs::remove_file(dir.join("base")));
        before.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        for step in 0..done {
            match step {
                0 => fs::write(new("pack").0, new("pack").1).unwrap(),
                1 => fs::write(new("idx").0, new("idx").1).unwrap(),
                2 => fs::write(dir.join("base"), &base).unwrap(),
                _ => fs::remove_file(gone[step - 3]).unwrap(),
            }
        }
        let opened = Catalog::open(&dir).unwrap();
        model.assert_is(&opened);
        assert_eq!(opened.verify().unwrap().problems, Vec::<String>::new(), "after step {done}");
        opened.consolidate(u64::MAX).unwrap();
        model.assert_is(&opened);
    }
}

#[test]
fn a_catalog_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Catalog>();
    shared::<crate::catalog::State>();
}
