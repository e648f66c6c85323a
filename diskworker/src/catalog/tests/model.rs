//! Commits against a `BTreeMap`; the tree is always the one that building from nothing gives.

use delugefs_proto::ids::{ActorId, Ino};
use delugefs_proto::limits::LEAF_MAX_ENTRIES;
use delugefs_proto::record::*;
use proptest::prelude::*;

use super::world::*;
use crate::catalog::{Catalog, CatalogError, Changes, STATE_FORMAT, attachable, blob_id};

const ME: ActorId = ActorId(7);

/// What happens to one key.
#[derive(Clone, Debug)]
enum Op {
    Put(Key, u8),
    Add(Key, u8),
    Remove(Key),
}

fn key() -> impl Strategy<Value = Key> {
    // Few directories and many names in one of them, so that it splits and collapses.
    prop_oneof![
        6 => (0..160u16).prop_map(|n| Key::Entry(Ino::ROOT, name(n))),
        2 => (0..6u64, 0..6u16).prop_map(|(d, n)| Key::Entry(Ino(16 + d * 256), name(n))),
        1 => (0..6u64).prop_map(|i| Key::Inode(Ino(16 + i * 4096 + i))),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (key(), any::<u8>()).prop_map(|(key, v)| Op::Put(key, v)),
        1 => (key(), any::<u8>()).prop_map(|(key, v)| Op::Add(key, v)),
        4 => key().prop_map(Op::Remove),
    ]
}

impl Model {
    fn op(&mut self, op: &Op) {
        let dot = self.draw(ME);
        match op {
            Op::Put(key, variant) => drop(self.sets.insert(key.clone(), vec![element(dot, *variant)])),
            Op::Add(key, variant) => {
                let set = self.sets.entry(key.clone()).or_default();
                set.push(element(dot, *variant));
                delugefs_proto::codec::canonicalize(set);
            }
            Op::Remove(key) => drop(self.sets.remove(key)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn commits_are_a_map(rounds in prop::collection::vec(prop::collection::vec(op(), 1..120), 1..8)) {
        let (dir, mut catalog) = new_catalog();
        let mut model = Model::default();
        for (number, ops) in rounds.iter().enumerate() {
            let before = model.clone();
            ops.iter().for_each(|op| model.op(op));
            let state = catalog.commit(&model.changes_from(&before), &model.ctx).unwrap();
            prop_assert_eq!(&state, &catalog.state());
            let (_dir, _catalog, scratch) = model.build_anew();
            prop_assert_eq!(scratch.tree, state.tree, "not the canonical tree");
            prop_assert_eq!(scratch.commit, state.commit);
            match number % 3 {
                0 => catalog.consolidate(u64::MAX).unwrap(),
                1 => {
                    drop(catalog);
                    catalog = Catalog::open(&dir.path().join("catalog.git")).unwrap();
                }
                _ => {}
            }
            model.assert_is(&catalog);
        }
        prop_assert_eq!(catalog.verify().unwrap().problems, Vec::<String>::new());
    }
}

#[test]
fn splits_and_collapses_at_the_limit() {
    let (_dir, catalog) = new_catalog();
    let mut model = Model::default();
    let step = |model: &mut Model, op: Op| {
        let before = model.clone();
        model.op(&op);
        let state = catalog.commit(&model.changes_from(&before), &model.ctx).unwrap();
        let (_dir, _catalog, scratch) = model.build_anew();
        assert_eq!(scratch.tree, state.tree, "after {op:?} with {} keys", model.sets.len());
    };
    let limit = LEAF_MAX_ENTRIES as u16;
    let keys: Vec<Key> = (0..limit + 3).map(|n| Key::Entry(Ino(99), name(n))).collect();
    for key in &keys[..limit as usize - 2] {
        let before = model.clone();
        model.op(&Op::Put(key.clone(), 4));
        catalog.commit(&model.changes_from(&before), &model.ctx).unwrap();
    }
    for key in &keys[limit as usize - 2..] {
        step(&mut model, Op::Put(key.clone(), 2));
    }
    for key in &keys[..6] {
        step(&mut model, Op::Remove(key.clone()));
    }
    for key in &keys[..6] {
        step(&mut model, Op::Put(key.clone(), 3));
    }
    model.assert_is(&catalog);
    // A nested split, and its collapse in one step.
    let before = model.clone();
    (0..2500).for_each(|n| model.op(&Op::Put(Key::Entry(Ino(99), name(n)), 1)));
    catalog.commit(&model.changes_from(&before), &model.ctx).unwrap();
    model.assert_is(&catalog);
    let before = model.clone();
    (0..2490).for_each(|n| model.op(&Op::Remove(Key::Entry(Ino(99), name(n)))));
    let state = catalog.commit(&model.changes_from(&before), &model.ctx).unwrap();
    assert_eq!(model.build_anew().2.tree, state.tree);
    model.assert_is(&catalog);
}

#[test]
fn commits_that_change_nothing_write_nothing() {
    let (_dir, catalog) = new_catalog();
    let mut model = Model::default();
    model.op(&Op::Put(Key::header(Ino::ROOT), 5));
    let first = catalog.commit(&model.changes_from(&Model::default()), &model.ctx).unwrap();
    let packs = catalog.packs();
    let again = catalog.commit(&model.changes_from(&Model::default()), &model.ctx).unwrap();
    assert_eq!((again, catalog.packs()), (first, packs));
    catalog.commit(&Changes::default(), &model.ctx).unwrap();
    assert_eq!(catalog.packs(), packs);
    assert!(catalog.directory(Ino(77)).unwrap().is_empty());
    assert!(catalog.set(&Key::Inode(Ino(77))).unwrap().is_empty());
    assert_eq!(catalog.attachment(blob_id(b"unknown")).unwrap(), None);
}

#[test]
fn an_unsorted_set_is_put_in_order() {
    let (_dir, catalog) = new_catalog();
    let mut model = Model::default();
    let (a, b) = (model.draw(ME), model.draw(ME));
    let key = Key::Entry(Ino::ROOT, name(1));
    let mut set = vec![element(a, 1), element(b, 1)];
    delugefs_proto::codec::canonicalize(&mut set);
    let reversed: Vec<Element> = set.iter().rev().chain(&set).cloned().collect();
    let changes = Changes { sets: [(key.clone(), reversed)].into(), ..Changes::default() };
    catalog.commit(&changes, &model.ctx).unwrap();
    assert_eq!(catalog.set(&key).unwrap(), set);
}

#[test]
fn states_that_must_not_exist_are_refused() {
    let (_dir, catalog) = new_catalog();
    let mut model = Model::default();
    let dot = model.draw(ME);
    let key = Key::Entry(Ino::ROOT, name(1));
    let commit = |key: &Key, element: Element, blobs: &[(delugefs_proto::ids::BlobId, &'static [u8])]| {
        let blobs = blobs.iter().map(|(id, data)| (*id, (*data).into())).collect();
        let changes = Changes { sets: [(key.clone(), vec![element])].into(), blobs };
        match catalog.commit(&changes, &model.ctx) {
            Err(CatalogError::Invalid(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    let inline = |data: &[u8], size| {
        let data = Data::Inline { blob: blob_id(data), size };
        Element { dot, body: Body::Content { ino: Ino(50), data }, hlc: Hlc(1) }
    };
    let before = catalog.state();
    let uncovered = Element { dot: Dot { actor: ME, seq: 2 }, ..element(dot, 1) };
    assert!(commit(&key, uncovered, &[]).contains("does not cover"));
    assert!(commit(&Key::Inode(Ino(3)), element(dot, 1), &[]).contains("reserved"));
    assert!(commit(&key, inline(b"abc", 3), &[]).contains("is not there"));
    assert!(commit(&key, inline(b"abc", 4), &[(blob_id(b"abc"), b"abc")]).contains("3 bytes, the record says 4"));
    assert!(commit(&key, inline(b"abc", 3), &[(blob_id(b"abc"), b"abd")]).contains("other bytes"));
    let reserved = Element { dot, body: Body::Dir { ino: Ino(3) }, hlc: Hlc(1) };
    assert!(commit(&key, reserved, &[]).contains("no record can have"));
    assert_eq!(catalog.state(), before);
    catalog.commit(&Changes::default(), &model.ctx).unwrap();
    let backwards = catalog.commit(&Changes::default(), &VersionVector::default());
    assert!(matches!(backwards, Err(CatalogError::Invalid(why)) if why.contains("less than before")));
}

#[test]
fn golden_state() {
    // Changing what these ids are is a new format: then STATE_FORMAT changes too, and old states are still read.
    assert_eq!(STATE_FORMAT, 1);
    let (_dir, catalog) = new_catalog();
    assert_eq!(catalog.state().commit.to_string(), "8b9e70dfd5d08c49677a8667c36ce9853765b9c5");
    let mut model = Model::default();
    (0..70).for_each(|n| model.op(&Op::Put(Key::Entry(Ino(0x1234_5678), name(n)), n as u8)));
    model.op(&Op::Put(Key::Inode(Ino(0x77)), 2));
    assert_eq!(model.build_anew().2.commit.to_string(), "e1aacce1ce5c32d49d5846c9342ce8136538a599");
}

#[test]
fn what_can_be_attached() {
    assert!([&b""[..], &vec![7; 1 << 20]].iter().all(|data| attachable(data) == Some(blob_id(data))));
    assert!(attachable(&vec![7; crate::catalog::OBJECT_MAX_BYTES + 1]).is_none());
    assert_eq!(blob_id(b"").to_hex(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
}
