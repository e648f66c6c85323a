//! Random operations on a disk and on the reference: same results, same errors, same tree; over clean restarts, crashes
//! and changes that come from another disk.

use std::collections::HashMap;

use delugefs_diskworker::engine::{Alone, Engine};
use delugefs_proto::errno::FsResult;
use delugefs_proto::local_pb as pb;
use nix::errno::Errno;
use proptest::prelude::*;

use crate::disk::{Disk, Posix, SESSION};
use crate::reference::{Kind, Path, Reference};

#[derive(Clone, Debug)]
enum Op {
    Create(Path, usize),
    Write(Path, usize, usize, bool),
    Truncate(Path, usize),
    Mkdir(Path),
    Symlink(Path),
    Unlink(Path),
    Rmdir(Path),
    Link(Path, Path),
    Rename(Path, Path, bool, bool),
    Chmod(Path, u32),
    SetXattr(Path, usize),
    RemoveXattr(Path),
    Restart,
    Crash,
    /// The other disk takes our state and does something; we take its state.
    Foreign(Box<Op>),
}

fn path() -> impl Strategy<Value = Path> {
    const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"\xff\n"];
    let name = prop::sample::select(&NAMES[..]);
    prop::collection::vec(name, 1..4)
}

/// Around the limits of inline contents and of small files.
fn size() -> impl Strategy<Value = usize> {
    prop::sample::select(&[0usize, 1, 5, 4095, 4096, 4097, 20_000][..])
}

fn op() -> impl Strategy<Value = Op> {
    let plain = prop_oneof![
        4 => (path(), size()).prop_map(|(p, n)| Op::Create(p, n)),
        3 => (path(), size(), size(), any::<bool>()).prop_map(|(p, at, n, t)| Op::Write(p, at, n, t)),
        1 => (path(), size()).prop_map(|(p, n)| Op::Truncate(p, n)),
        4 => path().prop_map(Op::Mkdir),
        1 => path().prop_map(Op::Symlink),
        2 => path().prop_map(Op::Unlink),
        1 => path().prop_map(Op::Rmdir),
        3 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        5 => (path(), path(), any::<bool>(), any::<bool>()).prop_map(|(a, b, n, x)| Op::Rename(a, b, n && !x, x)),
        1 => (path(), 0u32..0o10000).prop_map(|(p, m)| Op::Chmod(p, m)),
        2 => (path(), size()).prop_map(|(p, n)| Op::SetXattr(p, n)),
        1 => path().prop_map(Op::RemoveXattr),
    ]
    .boxed();
    let foreign = plain.clone().prop_map(|op| Op::Foreign(Box::new(op)));
    prop_oneof![40 => plain, 1 => Just(Op::Restart), 1 => Just(Op::Crash), 4 => foreign]
}

fn fill(n: usize, salt: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + salt) as u8).collect()
}

fn on_reference(model: &mut Reference, op: &Op, salt: usize) -> Result<(), Errno> {
    match op {
        Op::Create(p, n) => model.create(p, 0o640, fill(*n, salt)),
        Op::Write(p, at, n, t) => model.write(p, *at, &fill(*n, salt), *t),
        Op::Truncate(p, n) => model.truncate(p, *n),
        Op::Mkdir(p) => model.mkdir(p),
        Op::Symlink(p) => model.symlink(p, b"some/where"),
        Op::Unlink(p) => model.unlink(p),
        Op::Rmdir(p) => model.rmdir(p),
        Op::Link(a, b) => model.link(a, b),
        Op::Rename(a, b, n, x) => model.rename(a, b, *n, *x),
        Op::Chmod(p, mode) => {
            let id = model.find(p)?;
            model.nodes[id].mode = *mode;
            Ok(())
        }
        Op::SetXattr(p, n) => {
            let id = model.find(p)?;
            model.nodes[id].xattrs.insert(b"user.x".to_vec(), fill(*n, salt));
            Ok(())
        }
        Op::RemoveXattr(p) => {
            let id = model.find(p)?;
            model.nodes[id].xattrs.remove(&b"user.x"[..]).map(drop).ok_or(delugefs_diskworker::os::ENOATTR)
        }
        Op::Restart | Op::Crash | Op::Foreign(_) => Ok(()),
    }
}

fn on_engine(engine: &Engine, op: &Op, salt: usize) -> FsResult<()> {
    let name = |p: &Path| bytes::Bytes::from_static(p[p.len() - 1]);
    match op {
        Op::Create(p, n) => Posix::create(engine, p, 0o640, &fill(*n, salt)),
        Op::Write(p, at, n, t) => engine.write(p, *at as u64, &fill(*n, salt), *t),
        Op::Truncate(p, n) => {
            let attr = engine.resolve(p)?;
            let q = pb::SetAttr { ino: attr.ino, dir: attr.dir, size: Some(*n as u64), ..Default::default() };
            engine.set_attr(SESSION, &q).map(drop)
        }
        Op::Mkdir(p) => {
            let q = pb::Mkdir { dir: engine.parent(p)?, name: name(p), mode: 0o755, uid: 1, gid: 2, token: 0 };
            engine.mkdir(SESSION, false, &q).map(drop)
        }
        Op::Symlink(p) => {
            let target = bytes::Bytes::from_static(b"some/where");
            let q = pb::Symlink { dir: engine.parent(p)?, name: name(p), target, uid: 1, gid: 2, ino: 0 };
            engine.symlink(SESSION, false, &q).map(drop)
        }
        Op::Unlink(p) => engine
            .unlink(SESSION, false, &pb::Unlink { dir: engine.parent(p)?, name: name(p), expect_ino: 0 })
            .map(drop),
        Op::Rmdir(p) => {
            engine.rmdir(SESSION, false, &pb::Rmdir { dir: engine.parent(p)?, name: name(p), expect_ino: 0 }).map(drop)
        }
        Op::Link(a, b) => {
            let attr = engine.resolve(a)?;
            let q = pb::Link { ino: attr.ino, ino_dir: attr.dir, dir: engine.parent(b)?, name: name(b) };
            engine.link(SESSION, false, &q).map(drop)
        }
        Op::Rename(a, b, no_replace, exchange) => {
            let q = pb::Rename {
                dir: engine.parent(a)?,
                name: name(a),
                dir2: engine.parent(b)?,
                name2: name(b),
                no_replace: *no_replace,
                exchange: *exchange,
                expect_ino: 0,
            };
            engine.rename(SESSION, false, &q).map(drop)
        }
        Op::Chmod(p, mode) => {
            let attr = engine.resolve(p)?;
            let q = pb::SetAttr { ino: attr.ino, dir: attr.dir, mode: Some(*mode), ..Default::default() };
            engine.set_attr(SESSION, &q).map(drop)
        }
        Op::SetXattr(p, n) => {
            let attr = engine.resolve(p)?;
            let q = pb::SetXattr {
                ino: attr.ino,
                dir: attr.dir,
                name: bytes::Bytes::from_static(b"user.x"),
                value: fill(*n, salt).into(),
                create: false,
                replace: false,
            };
            engine.set_xattr(SESSION, false, &q).map(drop)
        }
        Op::RemoveXattr(p) => {
            let attr = engine.resolve(p)?;
            let q = pb::RemoveXattr {
                ino: attr.ino,
                dir: attr.dir,
                name: bytes::Bytes::from_static(b"user.x"),
                value: None,
            };
            engine.remove_xattr(SESSION, false, &q).map(drop)
        }
        Op::Restart | Op::Crash | Op::Foreign(_) => Ok(()),
    }
}

/// The whole tree is the same, node for node.
fn compare(engine: &Engine, model: &Reference) {
    let mut inos = HashMap::new();
    let mut todo: Vec<(Vec<Vec<u8>>, usize, u64)> = vec![(Vec::new(), 0, 1)];
    while let Some((path, id, ino)) = todo.pop() {
        let listed = engine.list(ino).unwrap();
        let expected = model.dir(id).unwrap();
        let names: Vec<_> = listed.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, expected.keys().cloned().collect::<Vec<_>>(), "names in {path:?}");
        for (name, attr) in listed {
            let child = expected[&name];
            let node = &model.nodes[child];
            let full: Vec<Vec<u8>> = path.iter().cloned().chain([name]).collect();
            let parts: Vec<&[u8]> = full.iter().map(Vec::as_slice).collect();
            let what = format!("{full:?}");
            assert_eq!(*inos.entry(child).or_insert(attr.ino), attr.ino, "one inode, one number: {what}");
            assert_eq!(attr.mode & 0o7777, node.mode, "mode of {what}");
            assert_eq!(attr.nlink as usize, model.nlink(child), "links of {what}");
            assert_eq!((attr.uid, attr.gid), (1, 2), "owner of {what}");
            assert_eq!(engine.resolve(&parts).unwrap(), attr, "lookup and list agree on {what}");
            let x = pb::GetXattr { ino: attr.ino, dir: attr.dir, name: bytes::Bytes::from_static(b"user.x") };
            let x = engine.get_xattr(&x).ok().map(|v| v.to_vec());
            assert_eq!(x.as_ref(), node.xattrs.get(&b"user.x"[..]), "attribute of {what}");
            match &node.kind {
                Kind::File(data) => {
                    assert_eq!(attr.size as usize, data.len(), "size of {what}");
                    assert!(engine.read(&parts).unwrap() == *data, "content of {what}");
                }
                Kind::Symlink(target) => {
                    let q = pb::ReadLink { ino: attr.ino, dir: attr.dir };
                    assert_eq!(engine.read_link(&q).unwrap(), *target, "target of {what}");
                }
                Kind::Dir(_) => todo.push((full, child, attr.ino)),
            }
        }
    }
}

fn run(ops: &[Op]) {
    let mut disk = Disk::new();
    let mut other: Option<Disk> = None;
    let mut model = Reference::new();
    for (salt, op) in ops.iter().enumerate() {
        match op {
            Op::Restart => disk.restart(),
            Op::Crash => disk.crash(),
            Op::Foreign(op) => {
                let other = other.get_or_insert_with(Disk::new);
                disk.exchange(other);
                let expected = on_reference(&mut model, op, salt);
                let got = on_engine(other.engine(), op, salt).map_err(|e| e.errno);
                // What is stored in a file of its own stays on the disk that wrote it until disks exchange contents.
                assert_eq!(got, expected, "{op:?} elsewhere");
                disk.exchange(other);
            }
            op => {
                let expected = on_reference(&mut model, op, salt);
                let got = on_engine(disk.engine(), op, salt).map_err(|e| e.errno);
                assert_eq!(got, expected, "{op:?}");
            }
        }
    }
    compare(disk.engine(), &model);
    disk.crash();
    compare(disk.engine(), &model);
    let report = disk.engine().scrub(&Alone).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

/// Sizes that stay in the catalog, for operations on the other disk: it does not have our contents.
fn is_small(op: &Op) -> bool {
    match op {
        Op::Create(_, n) | Op::Truncate(_, n) => *n <= 4096,
        Op::Write(_, at, n, _) => at + n <= 4096,
        Op::Foreign(op) => is_small(op),
        _ => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn same_as_the_reference(mut ops in prop::collection::vec(op(), 1..60)) {
        // With another disk in play all contents are small: larger ones would have to travel.
        if ops.iter().any(|op| matches!(op, Op::Foreign(_))) {
            ops.retain(is_small);
        }
        run(&ops);
    }
}
