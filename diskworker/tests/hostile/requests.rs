//! Well-formed requests that no kernel sends: refused one by one, and the tree stays as it was.

use bytes::Bytes;
use delugefs_proto::local::client::op;
use delugefs_proto::local_pb::{self as pb, reply, request::Op};
use nix::errno::Errno::{self, *};

use crate::user::User;
use crate::worker::{Host, SLACK, wait_until};

const NAMES: [(&[u8], Errno); 8] = [
    (b"", EINVAL),
    (b"/", EINVAL),
    (b".", EINVAL),
    (b"..", EINVAL),
    (b"a/b", EINVAL),
    (b"\0", EINVAL),
    (b"a\0b", EINVAL),
    (&[b'x'; 256], ENAMETOOLONG),
];

/// Numbers that are no node's.
const INOS: [u64; 12] =
    [0, 2, 3, 15, 16, 1 << 61, 1 << 62, (1 << 62) + 1, 1 << 63, (1 << 63) + 1, u64::MAX - 1, u64::MAX];

#[test]
fn nothing_of_it_is_done() {
    let host = Host::new();
    let worker = host.create(&[]);
    let mut client = worker.client(1);
    let dir = client.mkdir(1, "dir").unwrap();
    client.mkdir(dir, "sub").unwrap();
    let file = client.put(1, "file", &[3; 5000]).unwrap();
    client.put(dir, "small", b"small").unwrap();
    let link = pb::Symlink { dir: 1, name: "link".into(), target: "file".into(), ..Default::default() };
    let link = client.node(Op::Symlink(link)).unwrap();
    let pipe = pb::Mknod { dir: 1, name: "pipe".into(), mode: 0o010600, ..Default::default() };
    let pipe = client.node(Op::Mknod(pipe)).unwrap();
    let x = pb::SetXattr { ino: file.ino, dir: 1, name: "user.x".into(), value: "x".into(), ..Default::default() };
    client.node(Op::SetXattr(x)).unwrap();
    wait_until("all is sealed", || worker.status().staged_files == 0);
    let (tree, descriptors) = (client.tree(), worker.descriptors());

    let mut refuse = |wanted: &[Errno], q: Op| {
        let (reply, fd) = client.call(&op(q.clone()), None).unwrap();
        let got = Errno::from_raw(reply.errno as i32);
        assert!(wanted.contains(&got), "{got:?} ({}) and not one of {wanted:?} for {q:?}", reply.message);
        assert!(fd.is_none() && reply.body.is_none() && reply.node.is_none(), "{reply:?} for {q:?}");
        // Said again as one whose answer was lost: no excuse either.
        let (reply, _) =
            client.call(&pb::Request { retry: true, op: Some(q.clone()), ..Default::default() }, None).unwrap();
        let forgiven = matches!(q, Op::Unlink(_) | Op::Rmdir(_) | Op::RemoveXattr(_));
        assert!(reply.errno != 0 || forgiven, "done on retry: {q:?}");
    };

    for (name, errno) in NAMES {
        let name = Bytes::from_static(name);
        let (uid, gid, ino, mode) = (1, 2, 0, 0o644);
        let e = &[errno];
        refuse(e, Op::Lookup(pb::Lookup { dir: 1, name: name.clone() }));
        refuse(e, Op::Create(pb::Create { dir: 1, name: name.clone(), mode, uid, gid, ino }));
        refuse(e, Op::Mknod(pb::Mknod { dir: 1, name: name.clone(), mode, uid, gid, rdev: 0, ino }));
        refuse(e, Op::Mkdir(pb::Mkdir { dir: 1, name: name.clone(), mode, uid, gid, token: 0 }));
        refuse(e, Op::Symlink(pb::Symlink { dir: 1, name: name.clone(), target: "t".into(), uid, gid, ino }));
        refuse(e, Op::Link(pb::Link { ino: file.ino, ino_dir: 1, dir: 1, name: name.clone() }));
        refuse(e, Op::Unlink(pb::Unlink { dir: 1, name: name.clone(), expect_ino: 0 }));
        refuse(e, Op::Rmdir(pb::Rmdir { dir: 1, name: name.clone(), expect_ino: 0 }));
        if !name.is_empty() {
            refuse(e, Op::ReadDir(pb::ReadDir { dir: 1, after: name.clone(), limit: 1 }));
        }
        for (name, name2) in [(name.clone(), Bytes::from("to")), (Bytes::from("file"), name.clone())] {
            for (no_replace, exchange) in [(false, false), (true, false), (false, true)] {
                let (dir, dir2, expect_ino) = (1, 1, 0);
                let (name, name2) = (name.clone(), name2.clone());
                refuse(e, Op::Rename(pb::Rename { dir, name, dir2, name2, no_replace, exchange, expect_ino }));
            }
        }
    }

    // Numbers of nobody, and files where directories belong.
    let nobody = INOS.map(|ino| (ino, vec![ENOENT, ESTALE]));
    let files = [file.ino, link.ino, pipe.ino].map(|ino| (ino, vec![ENOTDIR, ENOENT]));
    for (ino, e) in nobody.iter().chain(&files) {
        let (ino, dir, e) = (*ino, *ino, &e[..]);
        let name = || Bytes::from("n");
        let (uid, gid, mode) = (1, 2, 0o644);
        refuse(e, Op::Lookup(pb::Lookup { dir, name: name() }));
        refuse(e, Op::ReadDir(pb::ReadDir { dir, after: Bytes::new(), limit: 1 }));
        refuse(e, Op::Create(pb::Create { dir, name: name(), mode, uid, gid, ino: 0 }));
        refuse(e, Op::Mknod(pb::Mknod { dir, name: name(), mode, uid, gid, rdev: 0, ino: 0 }));
        refuse(e, Op::Mkdir(pb::Mkdir { dir, name: name(), mode, uid, gid, token: 0 }));
        refuse(e, Op::Symlink(pb::Symlink { dir, name: name(), target: "t".into(), uid, gid, ino: 0 }));
        refuse(e, Op::Link(pb::Link { ino: file.ino, ino_dir: 1, dir, name: name() }));
        refuse(e, Op::Unlink(pb::Unlink { dir, name: name(), expect_ino: 0 }));
        refuse(e, Op::Rmdir(pb::Rmdir { dir, name: name(), expect_ino: 0 }));
        let rename = |dir, name: &str, dir2, name2: &str, exchange| {
            let (name, name2) = (name.to_owned().into(), name2.to_owned().into());
            Op::Rename(pb::Rename { dir, name, dir2, name2, no_replace: false, exchange, expect_ino: 0 })
        };
        for exchange in [false, true] {
            refuse(e, rename(dir, "n", 1, "m", exchange));
            refuse(e, rename(1, "file", dir, "n", exchange));
        }
        if files.iter().any(|(file, _)| *file == ino) {
            continue;
        }
        for dir in [0, 1, ino] {
            refuse(e, Op::GetAttr(pb::GetAttr { ino, dir }));
            refuse(e, Op::Open(pb::Open { ino, dir, write: false, truncate: false }));
            refuse(e, Op::Open(pb::Open { ino, dir, write: true, truncate: true }));
            refuse(e, Op::SetAttr(pb::SetAttr { ino, dir, mode: Some(0), ..Default::default() }));
            refuse(e, Op::SetAttr(pb::SetAttr { ino, dir, size: Some(0), ..Default::default() }));
            refuse(e, Op::Link(pb::Link { ino, ino_dir: dir, dir: 1, name: name() }));
            refuse(e, Op::GetXattr(pb::GetXattr { ino, dir, name: name() }));
            refuse(e, Op::ListXattr(pb::ListXattr { ino, dir }));
            refuse(e, Op::SetXattr(pb::SetXattr { ino, dir, name: name(), ..Default::default() }));
            refuse(e, Op::RemoveXattr(pb::RemoveXattr { ino, dir, name: name(), value: None }));
            refuse(e, Op::ReadLink(pb::ReadLink { ino, dir }));
        }
    }

    // Kinds.
    let of = |name: &'static str| Bytes::from(name);
    refuse(&[EISDIR], Op::Unlink(pb::Unlink { dir: 1, name: of("dir"), expect_ino: 0 }));
    refuse(&[ENOTEMPTY], Op::Rmdir(pb::Rmdir { dir: 1, name: of("dir"), expect_ino: 0 }));
    refuse(&[ENOTDIR], Op::Rmdir(pb::Rmdir { dir: 1, name: of("file"), expect_ino: 0 }));
    for write in [false, true] {
        refuse(&[EISDIR], Op::Open(pb::Open { ino: 1, dir: 0, write, truncate: write }));
        refuse(&[EISDIR], Op::Open(pb::Open { ino: dir, dir: 1, write, truncate: write }));
        refuse(&[EINVAL], Op::Open(pb::Open { ino: link.ino, dir: 1, write, truncate: write }));
        refuse(&[EINVAL], Op::Open(pb::Open { ino: pipe.ino, dir: 1, write, truncate: write }));
    }
    for ino in [1, dir, file.ino, pipe.ino] {
        refuse(&[EINVAL], Op::ReadLink(pb::ReadLink { ino, dir: 1 }));
    }
    for ino in [1, dir] {
        refuse(&[EPERM], Op::Link(pb::Link { ino, ino_dir: 1, dir: 1, name: of("again") }));
        refuse(&[EISDIR], Op::SetAttr(pb::SetAttr { ino, dir: 1, size: Some(1), ..Default::default() }));
    }
    for mode in [0o040755, 0o120777, 0o170000, 0o030000, 0o110644] {
        refuse(&[EINVAL], Op::Mknod(pb::Mknod { dir: 1, name: of("odd"), mode, ..Default::default() }));
    }
    refuse(&[EPROTO], Op::Hello(pb::Hello { version: 1, session: 1, events: false, ..pb::Hello::default() }));

    // Sizes.
    for size in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1, (64 << 40) + 1] {
        refuse(&[EFBIG], Op::SetAttr(pb::SetAttr { ino: file.ino, dir: 1, size: Some(size), ..Default::default() }));
    }
    for (target, errno) in [(0, ENOENT), (4096, ENAMETOOLONG), (1 << 20, ENAMETOOLONG)] {
        let (dir, name, target) = (1, of("l"), vec![b't'; target].into());
        refuse(&[errno], Op::Symlink(pb::Symlink { dir, name, target, ..Default::default() }));
    }
    let set = |name: &[u8], value: usize| {
        let (name, value) = (Bytes::copy_from_slice(name), vec![1; value].into());
        Op::SetXattr(pb::SetXattr { ino: file.ino, dir: 1, name, value, ..Default::default() })
    };
    for name in [&b""[..], &[b'n'; 256], b"user.\0x", &[b'n'; 1 << 16]] {
        refuse(&[ERANGE], set(name, 1));
    }
    for value in [(64 << 10) + 1, 1 << 20, 4_000_000] {
        refuse(&[E2BIG], set(b"user.y", value));
    }

    // The root and directories below themselves.
    for exchange in [false, true] {
        let rename = |dir, name: &'static str, dir2, name2: &'static str| {
            let (name, name2, no_replace, expect_ino) = (of(name), of(name2), false, 0);
            Op::Rename(pb::Rename { dir, name, dir2, name2, no_replace, exchange, expect_ino })
        };
        refuse(&[EINVAL], rename(1, "", 1, "root"));
        refuse(&[EINVAL, ENOENT], rename(1, "dir", dir, "below"));
        refuse(&[EINVAL, ENOTEMPTY], rename(1, "dir", dir, "sub"));
        refuse(&[EINVAL, ENOTEMPTY], rename(dir, "sub", 1, "dir"));
    }
    let (dir1, name, name2) = (1, of("file"), of("dir"));
    let both = pb::Rename { dir: dir1, name, dir2: 1, name2, no_replace: true, exchange: true, expect_ino: 0 };
    refuse(&[EINVAL], Op::Rename(both));

    assert_eq!(client.tree(), tree);
    assert!(worker.descriptors() <= descriptors + SLACK);
    worker.assert_sound();
}

/// What is odd but no mistake: taken within its limits, kept over a restart, and given back as it was taken.
#[test]
fn odd_values_are_kept_or_cut_to_what_they_mean() {
    let host = Host::new();
    let worker = host.create(&[]);
    let mut client = worker.client(1);
    let file = client.put(1, "f", b"x").unwrap();
    for mode in [u32::MAX, 0o170000, 0o7777, 1 << 31] {
        let q = pb::SetAttr { ino: file.ino, dir: 1, mode: Some(mode), ..Default::default() };
        let now = client.node(Op::SetAttr(q)).unwrap();
        assert_eq!(now.mode, 0o100000 | mode & 0o7777, "the kind stays");
    }
    let ids = pb::SetAttr { ino: file.ino, dir: 1, uid: Some(u32::MAX), gid: Some(u32::MAX - 1), ..Default::default() };
    assert_eq!(client.node(Op::SetAttr(ids)).unwrap().uid, u32::MAX);
    for ns in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX] {
        let q = pb::SetAttr { ino: file.ino, dir: 1, mtime: Some(ns), atime: Some(-1 - ns), ..Default::default() };
        let now = client.node(Op::SetAttr(q)).unwrap();
        assert_eq!((now.mtime, now.atime), (ns, -1 - ns));
        let q = pb::SetAttr { ino: 1, dir: 0, mtime: Some(ns), atime: Some(ns), ..Default::default() };
        assert_eq!(client.node(Op::SetAttr(q)).unwrap().mtime, ns);
        // Also while it is being written, as far as the disk's file system can tell such times.
        let writer = client.open_write(&file).unwrap();
        let q = pb::SetAttr { ino: file.ino, dir: 1, mtime: Some(ns), ..Default::default() };
        client.node(Op::SetAttr(q)).unwrap();
        client.close(writer).unwrap();
    }
    for (n, mode) in [0o020000, 0o060000].into_iter().enumerate() {
        let name = Bytes::from(format!("dev{n}"));
        let q = pb::Mknod { dir: 1, name, mode: mode | 0o7777, rdev: u64::MAX, ..Default::default() };
        assert_eq!(client.node(Op::Mknod(q)).unwrap().rdev, u64::MAX);
    }
    let q = pb::Mkdir { dir: 1, name: vec![0xff; 255].into(), mode: u32::MAX, uid: u32::MAX, gid: 0, token: 0 };
    assert_eq!(client.node(Op::Mkdir(q)).unwrap().mode, 0o047777);
    let q = pb::Symlink { dir: 1, name: "l".into(), target: vec![b'/'; 4095].into(), ..Default::default() };
    client.node(Op::Symlink(q)).unwrap();
    for n in 0..200 {
        let name: Bytes = format!("user.{n:0>250}").into();
        let q = pb::SetXattr { ino: file.ino, dir: 1, name, value: vec![n; 256].into(), ..Default::default() };
        client.node(Op::SetXattr(q)).unwrap();
    }
    let more = pb::SetXattr { ino: file.ino, dir: 1, name: "user.more".into(), ..Default::default() };
    assert_eq!(client.node(Op::SetXattr(more)).unwrap_err().errno, ENOSPC);
    let big = |value| {
        let name = format!("user.{:0>250}", 0).into();
        Op::SetXattr(pb::SetXattr { ino: file.ino, dir: 1, name, value, ..Default::default() })
    };
    client.node(big(vec![9; 64 << 10].into())).unwrap();
    // Any page size is a page.
    for limit in [0, 1, 2, 4096, 4097, u32::MAX] {
        let reply = client.ask(Op::ReadDir(pb::ReadDir { dir: 1, after: Bytes::new(), limit })).unwrap().0;
        let Some(reply::Body::Listing(page)) = reply.body else { panic!() };
        assert_eq!(page.entries.len(), (limit.max(1) as usize).min(5));
    }
    let tree = client.tree();
    assert_eq!(worker.problems(), Vec::<String>::new());
    worker.crash();
    let worker = host.start(&[]);
    assert_eq!(worker.client(2).tree(), tree);
    worker.assert_sound();
}

/// Proposals are only proposals: a number that is somebody's already, or nobody's to give, does not become two files'.
#[test]
fn one_number_is_one_node() {
    let host = Host::new();
    let worker = host.create(&[]);
    let mut client = worker.client(1);
    let dir = client.mkdir(1, "dir").unwrap();
    let kept = client.put(1, "kept", b"kept").unwrap();
    let large = client.put(dir, "large", &[5; 9000]).unwrap();
    let open = client.create(1, "open").unwrap();
    let link = pb::Link { ino: kept.ino, ino_dir: 1, dir, name: "linked".into() };
    client.node(Op::Link(link)).unwrap();
    wait_until("it is sealed", || worker.status().staged_files == 1);
    for ino in [1, 2, 3, 15, dir, kept.ino, large.ino, open.attr.ino, 1 << 62, 1 << 63, u64::MAX] {
        // Across directories only what is open or has several names is looked for: a search per file made is too dear.
        for parent in if ino == large.ino { vec![dir] } else { vec![1, dir] } {
            let name = || Bytes::from("n");
            let (mode, uid, gid, target) = (0o644, 1, 2, Bytes::from("t"));
            for q in [
                Op::Create(pb::Create { dir: parent, name: name(), mode, uid, gid, ino }),
                Op::Mknod(pb::Mknod { dir: parent, name: name(), mode, uid, gid, rdev: 0, ino }),
                Op::Symlink(pb::Symlink { dir: parent, name: name(), target, uid, gid, ino }),
            ] {
                let (reply, _) = client.call(&op(q.clone()), None).unwrap();
                if reply.errno != 0 {
                    assert_eq!(Errno::from_raw(reply.errno as i32), EEXIST, "{}: {q:?}", reply.message);
                    continue;
                }
                let made = reply.node.unwrap();
                let others = [1, 2, dir, kept.ino, large.ino, open.attr.ino];
                assert!(!others.contains(&made.ino), "{} is two nodes: {q:?}", made.ino);
                if let Some(reply::Body::Opened(opened)) = reply.body {
                    client.ask(Op::Close(pb::Close { handle: opened.handle, ..Default::default() })).unwrap();
                }
                client.unlink(parent, "n").unwrap();
            }
        }
    }
    assert_eq!(client.read(&kept).unwrap(), b"kept");
    assert_eq!(client.read(&large).unwrap(), [5; 9000]);
    client.close(open).unwrap();
    worker.assert_sound();
}
