//! What peers send: complete, small, and refused when anything is wrong with it.

use std::collections::BTreeMap;

use delugefs_proto::codec::{Leaf, encode_leaf, encode_version_vector};
use delugefs_proto::ids::{ActorId, ContentId, Ino};
use delugefs_proto::limits::FILE_MAX_BYTES;
use delugefs_proto::record::*;
use git2::{ObjectType, Oid};

use super::world::*;
use crate::catalog::content::NameHash;
use crate::catalog::layout::{Place, SHARD_LEVELS, width};
use crate::catalog::pack::PackWriter;
use crate::catalog::tree::{self, Node, Root};
use crate::catalog::{Catalog, CatalogError, ImportLimits, OBJECT_MAX_BYTES, blob_id};

const ME: ActorId = ActorId(5);

fn sample(keys: u16) -> Model {
    let mut model = Model::default();
    for n in 0..keys {
        let dot = model.draw(ME);
        model.sets.insert(Key::Entry(Ino(20 + u64::from(n % 3)), name(n)), vec![element(dot, n as u8)]);
    }
    let dot = model.draw(ME);
    model.sets.insert(Key::Inode(Ino(90)), vec![element(dot, 2)]);
    model
}

#[test]
fn full_and_incremental() {
    let (_d, source, _) = sample(400).build_anew();
    let (_d, target) = new_catalog();
    let mut full = Vec::new();
    let commit = export(&source, None, &mut full).unwrap();
    assert_eq!(commit, source.state().commit);
    let theirs = target.import(&mut full.as_slice(), commit, &ImportLimits::default(), None).unwrap();
    assert_ne!(target.state(), theirs, "import does not change our state");
    let joined = target.join(&theirs).unwrap();
    assert_eq!(joined.state.commit, commit);
    assert_eq!(joined.changed.len(), 401);
    sample(400).assert_is(&target);

    let mut model = sample(400);
    let before = model.clone();
    let dot = model.draw(ME);
    model.sets.insert(Key::Entry(Ino(20), name(3)), vec![element(dot, 2)]);
    source.commit(&model.changes_from(&before), &model.ctx).unwrap();
    let mut small = Vec::new();
    let commit = export(&source, Some(target.state().commit), &mut small).unwrap();
    assert!(small.len() * 5 < full.len(), "{} of {} bytes", small.len(), full.len());
    let theirs = target.import(&mut small.as_slice(), commit, &ImportLimits::default(), None).unwrap();
    assert_eq!(target.join(&theirs).unwrap().changed.len(), 1);
    model.assert_is(&target);
    assert_eq!(target.verify().unwrap().problems, Vec::<String>::new());

    // Nothing new, and a state nobody knows.
    let mut nothing = Vec::new();
    export(&source, Some(commit), &mut nothing).unwrap();
    assert!(nothing.len() < 300);
    target.import(&mut nothing.as_slice(), commit, &ImportLimits::default(), None).unwrap();
    let mut unknown = Vec::new();
    export(&source, Some(Oid::hash_object(ObjectType::Blob, b"?").unwrap()), &mut unknown).unwrap();
    assert!(unknown.len() > full.len() / 2);
}

#[test]
fn the_state_before_is_still_the_base_of_a_difference_after_consolidation() {
    let (_d, source, old) = sample(400).build_anew();
    let old = old.commit;
    let mut model = sample(400);
    for n in 0..5 {
        let before = model.clone();
        let dot = model.draw(ME);
        model.sets.insert(Key::Entry(Ino(20), name(n)), vec![element(dot, 4)]);
        source.commit(&model.changes_from(&before), &model.ctx).unwrap();
    }
    source.consolidate(u64::MAX).unwrap();
    assert_eq!(source.packs(), 1);
    let (mut small, mut full) = (Vec::new(), Vec::new());
    export(&source, Some(old), &mut small).unwrap();
    export(&source, None, &mut full).unwrap();
    assert!(small.len() * 3 < full.len(), "{} of {} bytes", small.len(), full.len());
}

#[test]
fn imported_states_survive_consolidation_while_they_are_held() {
    let (_d, source, _) = sample(100).build_anew();
    let (_d, target) = new_catalog();
    let mut pack = Vec::new();
    let commit = export(&source, None, &mut pack).unwrap();
    let theirs = target.import(&mut pack.as_slice(), commit, &ImportLimits::default(), None).unwrap();
    target.consolidate(u64::MAX).unwrap();
    assert_eq!(target.packs(), 1);
    assert_eq!(target.join(&theirs).unwrap().changed.len(), 101);
    sample(100).assert_is(&target);
    // And go when they are not.
    let (_d, other) = new_catalog();
    drop(other.import(&mut pack.as_slice(), commit, &ImportLimits::default(), None).unwrap());
    other.consolidate(u64::MAX).unwrap();
    let (id, _) = small_attachment(2);
    assert!(target.attachment(id).unwrap().is_some() && other.attachment(id).unwrap().is_none());
}

/// Import into a catalog, which must refuse and keep nothing. Returns why.
fn refusal(catalog: &Catalog, pack: &[u8], commit: Oid, limits: &ImportLimits) -> String {
    let before = (catalog.state(), catalog.packs());
    let why = match catalog.import(&mut &*pack, commit, limits, None) {
        Err(CatalogError::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!((catalog.state(), catalog.packs()), before);
    let left = std::fs::read_dir(catalog.dir.join("quarantine")).unwrap().count();
    assert_eq!(left, 0, "something is left in quarantine");
    why
}

#[test]
fn damage_on_the_way_is_refused() {
    let (_d, source, _) = sample(120).build_anew();
    let (_d, target) = new_catalog();
    let limits = ImportLimits::default();
    let mut pack = Vec::new();
    let commit = export(&source, None, &mut pack).unwrap();
    for cut in [0, 5, 12, 30, pack.len() / 2, pack.len() - 20, pack.len() - 1] {
        refusal(&target, &pack[..cut], commit, &limits);
    }
    for at in (0..pack.len()).step_by(pack.len() / 150) {
        let mut flipped = pack.clone();
        flipped[at] ^= 1 << (at % 8);
        refusal(&target, &flipped, commit, &limits);
    }
    let longer = [&pack[..], b"x"].concat();
    assert!(refusal(&target, &longer, commit, &limits).contains("follows"));
    let other = blob_id(b"no commit");
    refusal(&target, &pack, Oid::from_bytes(&other.0).unwrap(), &limits);
    target.import(&mut pack.as_slice(), commit, &limits, None).unwrap();
}

#[test]
fn limits_are_kept() {
    let (_d, source, _) = sample(120).build_anew();
    let (_d, target) = new_catalog();
    let mut pack = Vec::new();
    let commit = export(&source, None, &mut pack).unwrap();
    let usual = ImportLimits::default();
    for limits in [
        ImportLimits { pack_bytes: pack.len() as u64 - 1, ..usual },
        ImportLimits { objects: 10, ..usual },
        ImportLimits { inflated_bytes: 2000, ..usual },
        ImportLimits { keys: 120, ..usual },
    ] {
        let why = refusal(&target, &pack, commit, &limits);
        assert!(why.contains("than"), "{why}");
    }
    target.import(&mut pack.as_slice(), commit, &ImportLimits { keys: 121, ..usual }, None).unwrap();
}

/// Objects that a peer makes up.
#[derive(Default)]
struct Forged(BTreeMap<Oid, (ObjectType, Vec<u8>)>);

impl Forged {
    fn put(&mut self, kind: ObjectType, data: &[u8]) -> Oid {
        let oid = Oid::hash_object(kind, data).unwrap();
        self.0.insert(oid, (kind, data.to_vec()));
        oid
    }

    fn hex(&mut self, entries: &[(u64, Node)], width: usize) -> Node {
        Node::tree(self.put(ObjectType::Tree, &tree::serialize_hex(entries, width)))
    }

    /// A state whose directory 0x10 is this node.
    fn state(&mut self, node: Node, ctx: &VersionVector) -> Oid {
        let dirs = self.place(Ino(16), node);
        self.state_of(Some(dirs), None, ctx, "1\n")
    }

    /// The trees above one node.
    fn place(&mut self, ino: Ino, node: Node) -> Node {
        let place = Place::of(ino);
        (0..=SHARD_LEVELS).rev().fold(node, |node, level| self.hex(&[(place.at(level), node)], width(level)))
    }

    fn state_of(&mut self, dirs: Option<Node>, inodes: Option<Node>, ctx: &VersionVector, version: &str) -> Oid {
        let ctx = self.put(ObjectType::Blob, &encode_version_vector(ctx));
        let version = self.put(ObjectType::Blob, version.as_bytes());
        let root = tree::serialize_root(&Root { ctx, dirs, inodes, version });
        let tree = self.put(ObjectType::Tree, &root);
        self.put(ObjectType::Commit, &tree::serialize_commit(tree))
    }

    fn pack(&self) -> Vec<u8> {
        let mut writer = PackWriter::new(Vec::new(), self.0.len()).unwrap();
        for (oid, (kind, data)) in &self.0 {
            writer.object(*oid, *kind, data).unwrap();
        }
        writer.finish().unwrap().0
    }
}

fn leaf(names: std::ops::Range<u16>, variant: u8) -> (Leaf, VersionVector) {
    let mut model = Model::default();
    let leaf = names.map(|n| (name(n), vec![element(model.draw(ME), variant)])).collect();
    (leaf, model.ctx)
}

/// Make a directory, and import the state with it. Returns why it was refused.
fn forged(make: impl FnOnce(&mut Forged, &mut VersionVector) -> Node) -> Result<(), String> {
    let (_d, target) = new_catalog();
    let mut forged = Forged::default();
    let (_, mut ctx) = leaf(0..100, 4);
    let node = make(&mut forged, &mut ctx);
    let commit = forged.state(node, &ctx);
    let limits = ImportLimits::default();
    match target.import(&mut forged.pack().as_slice(), commit, &limits, None) {
        Ok(theirs) => {
            target.join(&theirs).unwrap();
            assert_eq!(target.verify().unwrap().problems, Vec::<String>::new());
            Ok(())
        }
        Err(_) => Err(refusal(&target, &forged.pack(), commit, &limits)),
    }
}

#[test]
fn states_that_must_not_exist_are_refused() {
    let plain = |forged: &mut Forged, leaf: &Leaf| Node::blob(forged.put(ObjectType::Blob, &encode_leaf(leaf)));
    // The forgery itself is sound.
    forged(|f, _| plain(f, &leaf(0..64, 4).0)).unwrap();

    let why = |result: Result<(), String>, what: &str| match result {
        Err(why) => assert!(why.contains(what), "{why}"),
        Ok(()) => panic!("accepted, should be refused for {what}"),
    };
    why(forged(|f, _| plain(f, &leaf(0..65, 4).0)), "has 65 keys");
    why(forged(|f, _| plain(f, &Leaf::new())), "has 0 keys");
    why(
        forged(|f, ctx| {
            ctx.0.insert(ME, 63);
            plain(f, &leaf(0..64, 4).0)
        }),
        "does not cover",
    );
    why(
        forged(|f, ctx| {
            ctx.0.extend((0..=1 << 20).map(|actor| (ActorId(actor << 8), 1)));
            plain(f, &leaf(0..64, 4).0)
        }),
        "actors",
    );
    why(
        forged(|f, _| {
            let mut bytes = encode_leaf(&leaf(0..2, 4).0);
            bytes.push(0);
            Node::blob(f.put(ObjectType::Blob, &bytes))
        }),
        "behind the end",
    );
    why(
        forged(|f, _| {
            // Two entries in the wrong order.
            let (one, two) = (encode_leaf(&leaf(1..2, 4).0), encode_leaf(&leaf(2..3, 4).0));
            let head = one.iter().zip(&two).take_while(|(a, b)| a == b).count();
            let at = 1 + 1 + 8 + 1;
            assert!(head > at);
            let mut bytes = two[..at - 1].to_vec();
            bytes.push(2);
            bytes.extend(&two[at..]);
            bytes.extend(&one[at..]);
            Node::blob(f.put(ObjectType::Blob, &bytes))
        }),
        "not in canonical form",
    );
    let long = |size| {
        let data = Data::Stored { content: ContentId([1; 32]), size, pieces: None };
        let body = Body::Content { ino: Ino(30), data };
        let one = Element { dot: Dot { actor: ME, seq: 1 }, body, hlc: Hlc(5) };
        forged(|f, _| plain(f, &[(name(1), vec![one])].into()))
    };
    long(FILE_MAX_BYTES).unwrap();
    why(long(FILE_MAX_BYTES + 1), "longer than any");
    why(long(u64::MAX), "longer than any");
    // Times and numbers behind which there is none, and sets that take for ever to look at.
    let late = |element: Element, hlc| Element { hlc: Hlc(hlc), ..element };
    let at = |hlc| forged(|f, _| plain(f, &[(name(1), vec![late(element(Dot { actor: ME, seq: 1 }, 4), hlc)])].into()));
    at(1 << 62).unwrap();
    why(at((1 << 62) + 1), "a time of");
    why(at(u64::MAX), "a time of");
    why(
        forged(|f, ctx| {
            ctx.0.insert(ME, u64::MAX);
            plain(f, &leaf(0..64, 4).0)
        }),
        "changes of actor",
    );
    let with_many = |count: u64, refs: bool| {
        forged(|f, ctx| {
            ctx.0.insert(ME, count);
            let body = |n: u64| match refs {
                true => Body::Ref { dir: Ino(40), name: name(n as u16) },
                false => Body::Times { ino: Ino(30 + n), mtime_ns: 0, atime_ns: 0 },
            };
            let one = |n| Element { dot: Dot { actor: ME, seq: n + 1 }, body: body(n), hlc: Hlc(5) };
            let mut set: Vec<Element> = (0..count).map(one).collect();
            delugefs_proto::codec::canonicalize(&mut set);
            plain(f, &[(name(1), set)].into())
        })
    };
    with_many(4096, false).unwrap();
    with_many(5000, true).unwrap();
    why(with_many(4097, false), "has 4097 elements");
    // Attachments: absent, superfluous, of the wrong length, missing from the pack.
    why(forged(|f, _| plain(f, &leaf(1..2, 2).0)), "other attachments");
    let with = |f: &mut Forged, leaf: &Leaf, attached: &[Oid]| {
        let entries = f.put(ObjectType::Blob, &encode_leaf(leaf));
        Node::tree(f.put(ObjectType::Tree, &tree::serialize_leaf(entries, attached.iter().copied())))
    };
    let (id, bytes) = small_attachment(2);
    let id = Oid::from_bytes(&id.0).unwrap();
    forged(|f, _| {
        f.put(ObjectType::Blob, &bytes);
        with(f, &leaf(1..2, 2).0, &[id])
    })
    .unwrap();
    why(forged(|f, _| with(f, &leaf(1..2, 2).0, &[id])), "missing");
    why(
        forged(|f, _| {
            let other = f.put(ObjectType::Blob, b"superfluous");
            f.put(ObjectType::Blob, &bytes);
            let mut both = [id, other];
            both.sort();
            with(f, &leaf(1..2, 2).0, &both)
        }),
        "other attachments",
    );
    why(
        forged(|f, _| {
            let other = f.put(ObjectType::Blob, b"superfluous");
            with(f, &leaf(1..2, 4).0, &[other])
        }),
        "other attachments",
    );
    why(
        forged(|f, _| {
            let blob = f.put(ObjectType::Blob, b"123");
            let data = Data::Inline { blob: crate::catalog::changes::from_oid(blob), size: 4 };
            let element =
                Element { body: Body::Content { ino: Ino(30), data }, ..element(Dot { actor: ME, seq: 1 }, 4) };
            with(f, &[(name(1), vec![element])].into(), &[blob])
        }),
        "3 bytes instead of 4",
    );
    // What is read as a whole, and sent in one answer.
    let beside = |inline: usize, value: usize| {
        forged(|f, _| {
            let mut put = |length| {
                let bytes = vec![b'x'; length];
                (f.put(ObjectType::Blob, &bytes), u32::try_from(length).unwrap())
            };
            let ((blob, size), (xattr, xattr_size)) = (put(inline), put(value));
            let data = Data::Inline { blob: crate::catalog::changes::from_oid(blob), size };
            let value = XattrValue::Blob { blob: crate::catalog::changes::from_oid(xattr), size: xattr_size };
            let perm = Perm { mode: 0o644, uid: 1, gid: 1 };
            let xattrs = [(b"user.x".to_vec().into(), value)].into();
            let one = |body| Element { body, ..element(Dot { actor: ME, seq: 1 }, 4) };
            let mut set =
                vec![one(Body::Content { ino: Ino(30), data }), one(Body::Attrs { ino: Ino(30), perm, xattrs })];
            delugefs_proto::codec::canonicalize(&mut set);
            let mut both = [blob, xattr];
            both.sort();
            with(f, &[(name(1), set)].into(), &both)
        })
    };
    beside(4096, 64 << 10).unwrap();
    why(beside(4097, 64 << 10), "too large");
    why(beside(4096, (64 << 10) + 1), "too large");
    // Shapes.
    why(
        forged(|f, _| {
            let bucket = plain(f, &leaf(1..2, 4).0);
            f.hex(&[(0, bucket)], 1)
        }),
        "",
    );
    why(forged(|f, _| f.hex(&[], 1)), "");
    why(
        forged(|f, _| {
            let mut entries: Vec<(u64, Node)> = vec![];
            for digit in 0..16 {
                entries.push((digit, plain(f, &leaf(1..60, 4).0)));
            }
            f.hex(&entries, 1)
        }),
        "wrong bucket",
    );
    why(
        forged(|f, _| {
            let mut node = plain(f, &leaf(1..60, 4).0);
            for _ in 0..50 {
                node = f.hex(&[(0, node), (1, node)], 1);
            }
            node
        }),
        "",
    );
    why(forged(|f, _| Node::tree(f.put(ObjectType::Tree, b"garbage"))), "");
    why(forged(|f, _| Node::tree(f.put(ObjectType::Blob, b"no tree"))), "wrong kind");
    why(forged(|_, _| Node::blob(Oid::hash_object(ObjectType::Blob, b"dangling").unwrap())), "missing");
}

#[test]
fn roots_that_must_not_exist_are_refused() {
    let (_d, target) = new_catalog();
    let limits = ImportLimits::default();
    let ctx = VersionVector::default();
    let mut newer = Forged::default();
    let commit = newer.state_of(None, None, &ctx, "2\n");
    let result = target.import(&mut newer.pack().as_slice(), commit, &limits, None);
    assert!(matches!(result, Err(CatalogError::Newer { found: 2 })), "{result:?}");
    for version in ["1", "01\n", "one\n", ""] {
        let mut odd = Forged::default();
        let commit = odd.state_of(None, None, &ctx, version);
        refusal(&target, &odd.pack(), commit, &limits);
    }
    // A commit with another message, and an inode that is a directory.
    let mut odd = Forged::default();
    let state = odd.state_of(None, None, &ctx, "1\n");
    let text = String::from_utf8(odd.0[&state].1.clone()).unwrap().replace("state", "stale");
    let commit = odd.put(ObjectType::Commit, text.as_bytes());
    assert!(refusal(&target, &odd.pack(), commit, &limits).contains("no commit of a state"));
    let mut odd = Forged::default();
    let (two, ctx) = leaf(0..2, 4);
    let node = Node::blob(odd.put(ObjectType::Blob, &encode_leaf(&two)));
    let inodes = odd.place(Ino(16), node);
    let commit = odd.state_of(None, Some(inodes), &ctx, "1\n");
    assert!(refusal(&target, &odd.pack(), commit, &limits).contains("no single set"));
    // Inode number 3 is reserved.
    let mut odd = Forged::default();
    let node = Node::blob(odd.put(ObjectType::Blob, &encode_leaf(&two)));
    let dirs = odd.place(Ino(3), node);
    let commit = odd.state_of(Some(dirs), None, &ctx, "1\n");
    assert!(refusal(&target, &odd.pack(), commit, &limits).contains("reserved"));
}

#[test]
fn a_bomb_is_refused_before_it_goes_off() {
    let (_d, target) = new_catalog();
    let mut bomb = Forged::default();
    let blob = bomb.put(ObjectType::Blob, &vec![0; OBJECT_MAX_BYTES + 1]);
    let pack = bomb.pack();
    assert!(pack.len() < 1 << 20, "{}", pack.len());
    assert!(refusal(&target, &pack, blob, &ImportLimits::default()).contains("more than"));
    // A header that announces less than there is, and one that announces a delta.
    let mut small = Forged::default();
    let blob = small.put(ObjectType::Blob, &[0; 100]);
    let mut pack = small.pack();
    pack[13] = 2;
    assert!(refusal(&target, &pack, blob, &ImportLimits::default()).contains("larger than it says"));
    pack[12] = pack[12] & 0x8f | 7 << 4;
    assert!(refusal(&target, &pack, blob, &ImportLimits::default()).contains("kind 7"));
}

#[test]
fn a_small_tree_that_refers_to_one_leaf_very_often_is_limited() {
    let (_d, target) = new_catalog();
    let mut forged = Forged::default();
    let (full, ctx) = leaf(0..64, 4);
    let node = Node::blob(forged.put(ObjectType::Blob, &encode_leaf(&full)));
    // So many that they are just as many keys as are allowed.
    let many: Vec<(u64, Node)> = (1..129).map(|rest| (rest, node)).collect();
    let mut dirs = forged.hex(&many, width(SHARD_LEVELS));
    for level in (0..SHARD_LEVELS).rev() {
        let all: Vec<(u64, Node)> = (0..16).map(|digit| (digit, dirs)).collect();
        dirs = forged.hex(&all, width(level));
    }
    let commit = forged.state_of(Some(dirs), None, &ctx, "1\n");
    let limits = ImportLimits { keys: 100_000, ..ImportLimits::default() };
    assert!(refusal(&target, &forged.pack(), commit, &limits).contains("more than 100000 keys"));
    let limits = ImportLimits { inflated_bytes: 1 << 20, ..ImportLimits::default() };
    assert!(refusal(&target, &forged.pack(), commit, &limits).contains("bytes of records"));
    assert!(refusal(&target, &forged.pack(), commit, &ImportLimits::default()).contains("the same leaf"));
    // The same as a directory that is split.
    let mut forged = Forged::default();
    let mut splits = Forged::default();
    let halves = [0, 1].map(|digit| {
        let of_it = (0..2000).filter(|n| NameHash::of(&name(*n)).digit(0) == digit).take(40);
        let mut model = Model::default();
        let leaf: Leaf = of_it.map(|n| (name(n), vec![element(model.draw(ME), 4)])).collect();
        (digit, Node::blob(splits.put(ObjectType::Blob, &encode_leaf(&leaf))))
    });
    forged.0.append(&mut splits.0);
    let node = forged.hex(&halves, 1);
    let many: Vec<(u64, Node)> = (1..4000).map(|rest| (rest, node)).collect();
    let mut dirs = forged.hex(&many, width(SHARD_LEVELS));
    for level in (0..SHARD_LEVELS).rev() {
        dirs = forged.hex(&[(1, dirs), (2, dirs)], width(level));
    }
    let commit = forged.state_of(Some(dirs), None, &ctx, "1\n");
    assert!(refusal(&target, &forged.pack(), commit, &ImportLimits::default()).contains("the same leaf"));
}

/// Both names of a file that gets a second one have one dot.
#[test]
fn directories_whose_files_are_linked_under_the_same_names_may_have_the_same_leaves() {
    let mut model = Model::default();
    for n in 0..5000 {
        let dot = model.draw(ME);
        let link = Element { dot, body: Body::Link { ino: Ino(1000 + u64::from(n)) }, hlc: Hlc(5) };
        for dir in [20, 21] {
            model.sets.insert(Key::Entry(Ino(dir), name(n)), vec![link.clone()]);
        }
    }
    let (_d, source, _) = model.build_anew();
    let (_d, target) = new_catalog();
    let mut pack = Vec::new();
    let commit = export(&source, None, &mut pack).unwrap();
    let small = ImportLimits { memory_bytes: 1 << 20, ..ImportLimits::default() };
    assert!(refusal(&target, &pack, commit, &small).contains("memory"));
    let theirs = target.import(&mut pack.as_slice(), commit, &ImportLimits::default(), None).unwrap();
    assert_eq!(target.join(&theirs).unwrap().changed.len(), 10_000);
    model.assert_is(&target);
    // What differs counts, not all that is beside it: one of the names in each of many leaves.
    for n in (0..5000).step_by(50) {
        let link = Element { dot: model.draw(ME), body: Body::Link { ino: Ino(9000) }, hlc: Hlc(6) };
        model.sets.insert(Key::Entry(Ino(20), name(n)), vec![link]);
    }
    let (_d, source, _) = model.build_anew();
    let mut pack = Vec::new();
    let commit = export(&source, None, &mut pack).unwrap();
    let some = ImportLimits { memory_bytes: 100 << 10, ..ImportLimits::default() };
    let theirs = target.import(&mut pack.as_slice(), commit, &some, None).unwrap();
    assert_eq!(target.join(&theirs).unwrap().changed.len(), 100);
    let none = ImportLimits { memory_bytes: 10 << 10, ..some };
    let (_d, empty) = new_catalog();
    assert!(refusal(&empty, &pack, commit, &none).contains("memory"));
}

#[test]
fn verify_finds_damage() {
    let (_d, catalog, _) = sample(120).build_anew();
    assert_eq!(catalog.verify().unwrap().problems, Vec::<String>::new());
    let report = catalog.verify().unwrap();
    assert_eq!((report.keys, report.directories), (121, 4));
    let dir = catalog.dir.clone();
    drop(catalog);
    let files = std::fs::read_dir(dir.join("objects/pack")).unwrap().map(|entry| entry.unwrap().path());
    let packs = files.filter(|path| path.extension().is_some_and(|extension| extension == "pack"));
    let largest = packs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let sound = std::fs::read(&largest).unwrap();
    std::fs::remove_file(&largest).unwrap();
    // The first objects are those that opening reads; anywhere behind them.
    for at in (sound.len() / 3..sound.len() - 20).step_by(sound.len() / 20) {
        let mut bytes = sound.clone();
        bytes[at] ^= 4;
        std::fs::write(&largest, bytes).unwrap();
        let problems = Catalog::open(&dir).unwrap().verify().unwrap().problems;
        assert!(!problems.is_empty(), "damage at {at} of {} was not found", sound.len());
        std::fs::remove_file(&largest).unwrap();
    }
    std::fs::write(&largest, sound).unwrap();
    assert_eq!(Catalog::open(&dir).unwrap().verify().unwrap().problems, Vec::<String>::new());
}
