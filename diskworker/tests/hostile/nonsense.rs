//! Random well-formed requests that make no sense together, over kills of the worker: every one is answered, and what
//! is on the disk afterwards is as sound as after any others.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use delugefs_proto::local::client::Client;
use delugefs_proto::local_pb::{self as pb, reply, request::Op};
use proptest::prelude::*;

use crate::worker::{Host, Worker};

/// A number: of a node that was answered once, or out of the blue.
#[derive(Clone, Debug)]
enum Number {
    Known(prop::sample::Index),
    Odd(u64),
}

#[derive(Clone, Debug)]
struct Step {
    /// Number of the operation in `local.proto`; above them: things a frontend does besides.
    what: u8,
    numbers: [Number; 3],
    names: [Bytes; 2],
    words: [u32; 3],
    wide: [u64; 2],
    bytes: usize,
    flags: [bool; 4],
    session: u64,
}

const KILL: u8 = 28;

fn number() -> impl Strategy<Value = Number> {
    let odd = prop_oneof![
        Just(0),
        Just(1),
        Just(2),
        0u64..20,
        any::<u64>(),
        Just(u64::MAX),
        Just(1 << 62),
        (0u32..64).prop_map(|bit| 1 << bit)
    ];
    prop_oneof![6 => any::<prop::sample::Index>().prop_map(Number::Known), 1 => odd.prop_map(Number::Odd)]
}

fn name() -> impl Strategy<Value = Bytes> {
    let usual = prop::sample::select(&["a", "b", "c", "user.a", "lost+found"][..]).prop_map(Bytes::from);
    let odd = prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
    let long = (250usize..260).prop_map(|n| vec![b'n'; n].into());
    let copy = Just(Bytes::from("a.conflict-00000000"));
    prop_oneof![12 => usual, 1 => odd, 1 => long, 1 => copy]
}

fn step() -> impl Strategy<Value = Step> {
    let word = || prop_oneof![any::<u32>(), 0u32..0o200_000, Just(0), Just(u32::MAX)];
    let wide = || prop_oneof![any::<u64>(), 0u64..10_000, Just(0), Just(u64::MAX), Just(1 << 63)];
    let size = prop::sample::select(&[0usize, 1, 255, 257, 4096, 4097, 5000, 65_536, 65_537, 300_000][..]);
    let what = prop_oneof![60 => 3u8..KILL, 1 => Just(KILL)];
    let numbers = [number(), number(), number()];
    (what, numbers, [name(), name()], [word(), word(), word()], [wide(), wide()], size, any::<[bool; 4]>(), 0u64..3)
        .prop_map(|(what, numbers, names, words, wide, bytes, flags, session)| Step {
            what,
            numbers,
            names,
            words,
            wide,
            bytes,
            flags,
            session,
        })
}

/// A frontend that forgets nothing it was told.
struct Frontend {
    worker: Option<Worker>,
    clients: Vec<Client>,
    _sessions: Vec<Client>,
    numbers: Vec<u64>,
    handles: Vec<u64>,
    files: Vec<File>,
}

impl Frontend {
    fn connect(worker: Worker, before: Option<Frontend>) -> Self {
        let sessions = (0..3).map(|session| worker.try_client(session, true).unwrap()).collect();
        let clients = (0..3).map(|session| worker.client(session)).collect();
        let (numbers, handles, files) =
            before.map_or((vec![1], vec![0], Vec::new()), |before| (before.numbers, before.handles, before.files));
        Self { worker: Some(worker), clients, _sessions: sessions, numbers, handles, files }
    }

    fn number(&self, number: &Number) -> u64 {
        match number {
            Number::Known(index) => *index.get(&self.numbers),
            Number::Odd(odd) => *odd,
        }
    }

    fn request(&self, step: &Step) -> Op {
        let [a, b, c] = step.numbers.each_ref().map(|n| self.number(n));
        let [name, name2] = step.names.clone();
        let [mode, uid, gid] = step.words;
        let [w, w2] = step.wide;
        let [f, f2, f3, f4] = step.flags;
        let value: Bytes = vec![w as u8; step.bytes].into();
        let handle = self.handles[w as usize % self.handles.len()];
        match step.what {
            3 => Op::Lookup(pb::Lookup { dir: a, name }),
            4 => Op::GetAttr(pb::GetAttr { ino: a, dir: b }),
            5 => Op::ReadDir(pb::ReadDir { dir: a, after: name, limit: mode }),
            6 => Op::Create(pb::Create { dir: a, name, mode, uid, gid, ino: if f { b } else { 0 } }),
            7 => Op::Mknod(pb::Mknod { dir: a, name, mode, uid, gid, rdev: w, ino: if f { b } else { 0 } }),
            8 => Op::Mkdir(pb::Mkdir { dir: a, name, mode, uid, gid, token: 0 }),
            9 => Op::Symlink(pb::Symlink { dir: a, name, target: value, uid, gid, ino: if f { b } else { 0 } }),
            10 => Op::Link(pb::Link { ino: a, ino_dir: b, dir: c, name }),
            11 => Op::Unlink(pb::Unlink { dir: a, name, expect_ino: c }),
            12 => Op::Rmdir(pb::Rmdir { dir: a, name, expect_ino: c }),
            13 => {
                let (no_replace, exchange) = (f && f2, f && f3);
                Op::Rename(pb::Rename { dir: a, name, dir2: b, name2, no_replace, exchange, expect_ino: c })
            }
            14 => Op::SetAttr(pb::SetAttr {
                ino: a,
                dir: b,
                mode: f.then_some(mode),
                uid: f2.then_some(uid),
                gid: f3.then_some(gid),
                // Not the sizes that are allowed and take a day to hash.
                size: f4.then_some(if w < 1 << 20 { w } else { w | 1 << 50 }),
                mtime: f.then_some(w as i64),
                mtime_now: f2,
                atime: f3.then_some(w2 as i64),
                atime_now: f4,
            }),
            15 => Op::Open(pb::Open { ino: a, dir: b, write: f, truncate: f && f2 }),
            16 => Op::Close(pb::Close { handle: if f { handle } else { w }, ..Default::default() }),
            17 => Op::Fsync(pb::Fsync {
                ino: a,
                dir: b,
                handle: w2,
                data_only: f,
                sync_failed: w & 1 == 1,
                writes: w & 2 == 2,
            }),
            18 => Op::Adopt(pb::Adopt { ino: a, dir: b, sync_failed: f }),
            19 => Op::GetXattr(pb::GetXattr { ino: a, dir: b, name }),
            20 => Op::ListXattr(pb::ListXattr { ino: a, dir: b }),
            21 => Op::SetXattr(pb::SetXattr { ino: a, dir: b, name, value, create: f, replace: f2 }),
            22 => Op::RemoveXattr(pb::RemoveXattr { ino: a, dir: b, name, value: None }),
            23 => Op::StatFs(pb::StatFs {}),
            24 => Op::ReadLink(pb::ReadLink { ino: a, dir: b }),
            25 => Op::Need(pb::Need { handle: if f { handle } else { w }, offset: w2, length: w }),
            26 => Op::Unread(pb::Unread {
                ino: a,
                dir: b,
                content: if f3 { value.slice(..value.len().min(32)) } else { Bytes::new() },
                offset: w,
                length: w2,
            }),
            _ => Op::Hello(pb::Hello { version: mode, session: w, events: f, ..pb::Hello::default() }),
        }
    }

    fn step(&mut self, step: &Step) {
        let op = self.request(step);
        let truncates_nothing = matches!(&op, Op::Open(q) if q.truncate && !q.write);
        assert!(!truncates_nothing);
        let request = pb::Request { retry: step.flags[3], op: Some(op), ..Default::default() };
        let fd = step.flags[0].then(|| self.files.get(step.wide[1] as usize % self.files.len().max(1))).flatten();
        let fd = fd.map(File::as_fd);
        let client = &mut self.clients[step.session as usize];
        let (reply, fd): (pb::Reply, Option<OwnedFd>) = client.call(&request, fd).unwrap();
        assert!(reply.errno < 200, "{reply:?}");
        let attrs = [&reply.node, &reply.dir, &reply.dir2, &reply.moved];
        self.numbers.extend(attrs.into_iter().flatten().map(|attr| attr.ino));
        if let Some(reply::Body::Opened(opened)) = &reply.body {
            self.handles.push(opened.handle);
        }
        if let Some(file) = fd.map(File::from) {
            // Into a descriptor for reading this fails.
            drop(file.write_all_at(&vec![step.words[0] as u8; step.bytes], step.wide[0] % 5000));
            self.files.push(file);
            if step.flags[1] {
                self.files.swap_remove(0);
            }
        }
        self.files.truncate(100);
    }
}

fn run(steps: &[Step]) {
    let host = Host::new();
    let mut frontend = Frontend::connect(host.create(&[]), None);
    for step in steps {
        if step.what == KILL {
            frontend.worker.take().unwrap().crash();
            frontend = Frontend::connect(host.start(&["--reserve-bytes", "0"]), Some(frontend));
        } else {
            frontend.step(step);
        }
    }
    let worker = frontend.worker.take().unwrap();
    drop(frontend);
    assert_eq!(worker.problems(), Vec::<String>::new());
    worker.crash();
    host.start(&[]).assert_sound();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_of_it_is_answered_and_nothing_breaks(steps in prop::collection::vec(step(), 1..250)) {
        run(&steps);
    }
}
