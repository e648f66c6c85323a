//! Any sequence of operations, own ones and those of others, with restarts of the worker and a cache that is always too
//! small: what the frontend shows is what the worker's tree holds.

use bytes::Bytes;
use delugefs_fusefront::call::{Caller, Outcome};
use delugefs_fusefront::fs::{Change, Invalidation, Making, RenameHow};
use delugefs_proto::local_pb::Changed;
use nix::errno::Errno;
use proptest::prelude::*;

use crate::core::Bench;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Directories are chosen by number among those there are.
#[derive(Clone, Debug)]
enum Op {
    Mkdir(usize, usize),
    Write(usize, usize, usize),
    Overwrite(usize, usize, usize),
    Unlink(usize, usize),
    Rmdir(usize, usize),
    Rename(usize, usize, usize, usize, bool),
    Link(usize, usize, usize, usize),
    Chmod(usize, usize, u32),
    Truncate(usize, usize, u64),
    List(usize),
    Look(usize, usize),
    Elsewhere(Elsewhere),
    Restart,
    LoseAnswer,
}

#[derive(Clone, Debug)]
enum Elsewhere {
    Create(usize, usize),
    Unlink(usize, usize),
    Replace(usize, usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (d, n) = (0..6_usize, 0..NAMES.len());
    let size = prop_oneof![Just(0_usize), Just(9), Just(4096), Just(6000)];
    let at = (d, n);
    let elsewhere = prop_oneof![
        at.clone().prop_map(|(d, n)| Elsewhere::Create(d, n)),
        at.clone().prop_map(|(d, n)| Elsewhere::Unlink(d, n)),
        (at.clone(), size.clone()).prop_map(|((d, n), s)| Elsewhere::Replace(d, n, s)),
    ];
    prop_oneof![
        3 => at.clone().prop_map(|(d, n)| Op::Mkdir(d, n)),
        4 => (at.clone(), size.clone()).prop_map(|((d, n), s)| Op::Write(d, n, s)),
        2 => (at.clone(), size).prop_map(|((d, n), s)| Op::Overwrite(d, n, s)),
        2 => at.clone().prop_map(|(d, n)| Op::Unlink(d, n)),
        1 => at.clone().prop_map(|(d, n)| Op::Rmdir(d, n)),
        3 => (at.clone(), at.clone(), any::<bool>()).prop_map(|((d, n), (e, m), x)| Op::Rename(d, n, e, m, x)),
        2 => (at.clone(), at.clone()).prop_map(|((d, n), (e, m))| Op::Link(d, n, e, m)),
        1 => (at.clone(), 0..0o1000_u32).prop_map(|((d, n), mode)| Op::Chmod(d, n, mode)),
        1 => (at.clone(), 0..9000_u64).prop_map(|((d, n), size)| Op::Truncate(d, n, size)),
        2 => (0..6_usize).prop_map(Op::List),
        2 => at.prop_map(|(d, n)| Op::Look(d, n)),
        4 => elsewhere.prop_map(Op::Elsewhere),
        1 => Just(Op::Restart),
        1 => Just(Op::LoseAnswer),
    ]
}

struct Run {
    bench: Bench,
    markers: u64,
}

impl Run {
    /// The directories of the tree, by their numbers.
    fn dirs(&self) -> Vec<u64> {
        let tree = self.bench.worker.shared.tree.lock();
        let mut dirs: Vec<u64> =
            tree.nodes.iter().filter(|(_, node)| node.entries.is_some()).map(|(ino, _)| *ino).collect();
        // The order must not depend on the numbers, which are random: by path.
        dirs.sort_by_key(|ino| {
            let mut path = Vec::new();
            let mut at = *ino;
            while at != 1 {
                let parent = tree.nodes[&at].parent;
                let entries = tree.nodes[&parent].entries.as_ref().unwrap();
                path.push(entries.iter().find(|(_, ino)| **ino == at).unwrap().0.clone());
                at = parent;
            }
            path.reverse();
            path
        });
        dirs
    }

    fn dir(&self, number: usize) -> u64 {
        let dirs = self.dirs();
        dirs[number % dirs.len()]
    }

    fn find(&self, dir: u64, name: &str) -> Option<u64> {
        let found = self.bench.fs.lookup(&Caller::own(), dir, name.as_bytes()).unwrap();
        found.map(|attr| {
            self.bench.fs.remember(&attr);
            attr.ino
        })
    }

    fn apply(&mut self, op: &Op) {
        let caller = Caller::own();
        let name = |n: usize| Bytes::from_static(NAMES[n].as_bytes());
        let fs = self.bench.fs.clone();
        let fill = |size: usize| vec![size as u8; size];
        match *op {
            Op::Mkdir(d, n) => {
                let _taken = fs.make(&caller, self.dir(d), &name(n), &Making::Dir { mode: 0o755 });
            }
            Op::Write(d, n, size) => {
                let dir = self.dir(d);
                if let Ok((attr, opened)) = fs.create(&caller, dir, &name(n), 0o644, true) {
                    fs.remember(&attr);
                    fs.write(&fs.file(opened.handle).unwrap(), 0, &fill(size)).unwrap();
                    assert_eq!(fs.getattr(&caller, attr.ino).unwrap().size, size as u64);
                    fs.release(opened.handle);
                }
            }
            Op::Overwrite(d, n, size) => {
                if let Some(ino) = self.find(self.dir(d), NAMES[n])
                    && let Ok(opened) = fs.open(&caller, ino, true, size % 2 == 1)
                {
                    fs.write(&fs.file(opened.handle).unwrap(), 3, &fill(size)).unwrap();
                    fs.release(opened.handle);
                }
            }
            Op::Unlink(d, n) => {
                let _none_or_dir = fs.unlink(&caller, self.dir(d), &name(n));
            }
            Op::Rmdir(d, n) => {
                let (dir, root) = (self.dir(d), 1);
                if dir != root || self.dirs().len() > 3 {
                    let is_dir = self.find(dir, NAMES[n]).is_some_and(|ino| self.dirs().contains(&ino));
                    if is_dir {
                        let _not_empty = fs.rmdir(&caller, dir, &name(n));
                    }
                }
            }
            Op::Rename(d, n, e, m, exchange) => {
                let how = RenameHow { no_replace: false, exchange };
                let (from, to) = ((self.dir(d), &name(n)), (self.dir(e), &name(m)));
                let _refused = fs.rename(&caller, from, to, how);
            }
            Op::Link(d, n, e, m) => {
                let (dir, to) = (self.dir(d), self.dir(e));
                if let Some(ino) = self.find(dir, NAMES[n]) {
                    let is_dir = self.dirs().contains(&ino);
                    let linked = if is_dir { Err(Errno::EPERM) } else { Ok(()) };
                    match fs.link(&caller, ino, to, &name(m)) {
                        Ok(_) => assert_eq!(linked, Ok(())),
                        Err(stop) if stop.errno() == Errno::EEXIST => {}
                        Err(stop) => assert!(linked.is_err() || or_gone(Err::<(), _>(stop)).is_none()),
                    }
                }
            }
            Op::Chmod(d, n, mode) => {
                if let Some(ino) = self.find(self.dir(d), NAMES[n]) {
                    let change = Change { mode: Some(mode), ..Change::default() };
                    if let Some(attr) = or_gone(fs.setattr(&caller, ino, &change)) {
                        assert_eq!(attr.mode & 0o7777, mode);
                    }
                }
            }
            Op::Truncate(d, n, size) => {
                if let Some(ino) = self.find(self.dir(d), NAMES[n])
                    && !self.dirs().contains(&ino)
                {
                    let change = Change { size: Some(size), ..Change::default() };
                    if let Some(attr) = or_gone(fs.setattr(&caller, ino, &change)) {
                        assert_eq!(attr.size, size);
                    }
                }
            }
            Op::List(d) => drop(self.bench.names(self.dir(d))),
            Op::Look(d, n) => drop(self.find(self.dir(d), NAMES[n])),
            Op::Elsewhere(ref op) => self.elsewhere(op),
            Op::Restart => {
                self.bench.worker.crash();
                self.bench.worker.resume();
            }
            Op::LoseAnswer => self.bench.worker.shared.swallow.store(1, std::sync::atomic::Ordering::SeqCst),
        }
    }

    fn elsewhere(&mut self, op: &Elsewhere) {
        let at = |d: usize, n: usize| (self.dir(d), NAMES[n]);
        let changed = |dir: u64, name: &'static str, inos: Vec<u64>| {
            vec![Changed { dir, names: vec![Bytes::from_static(name.as_bytes())], inos }]
        };
        match *op {
            Elsewhere::Create(d, n) => {
                let (dir, name) = at(d, n);
                self.bench.worker.elsewhere(|tree| match tree.make(dir, name.as_bytes(), 0o100_666, (7, 7), 0) {
                    Ok(_) => changed(dir, name, vec![]),
                    Err(_) => vec![],
                });
            }
            Elsewhere::Unlink(d, n) => {
                let (dir, name) = at(d, n);
                self.bench.worker.elsewhere(|tree| match tree.unlink(dir, name.as_bytes()) {
                    Ok(attr) => changed(dir, name, vec![attr.ino]),
                    Err(_) => vec![],
                });
            }
            Elsewhere::Replace(d, n, size) => {
                let (dir, name) = at(d, n);
                self.bench.worker.elsewhere(|tree| match tree.lookup(dir, name.as_bytes()) {
                    Ok(attr) if attr.mode & 0o170_000 == 0o100_000 => {
                        tree.replace(attr.ino, &vec![1; size]);
                        changed(0, name, vec![attr.ino])
                    }
                    _ => vec![],
                });
            }
        }
    }

    /// Wait until all events so far have been taken in, and the worker answers.
    fn settle(&mut self) {
        assert!(self.bench.fs.worker.wait_for_link(std::time::Duration::from_secs(20)).is_some());
        self.markers += 1;
        let name: Box<[u8]> = format!("marker{}", self.markers).into_bytes().into();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        'send: loop {
            let changed = Changed { dir: u64::MAX, names: vec![Bytes::copy_from_slice(&name)], inos: vec![] };
            self.bench.worker.elsewhere(|_| vec![changed]);
            // A marker can be lost together with its link.
            while let Ok(what) = self.bench.invalidations.recv_timeout(std::time::Duration::from_millis(200)) {
                if what == (Invalidation::Name { dir: u64::MAX, name: name.clone() }) {
                    break 'send;
                }
            }
            assert!(std::time::Instant::now() < deadline);
        }
    }

    fn check(&mut self) {
        self.settle();
        let caller = Caller::own();
        for dir in self.dirs() {
            let expected: Vec<_> = {
                let tree = self.bench.worker.shared.tree.lock();
                let entries = tree.nodes[&dir].entries.clone().unwrap();
                let node = |(name, ino): (Vec<u8>, u64)| {
                    let attr = tree.attr(ino).unwrap();
                    let content = tree.nodes[&ino].entries.is_none().then(|| tree.content(ino));
                    (String::from_utf8(name).unwrap(), attr, content)
                };
                entries.into_iter().map(node).collect()
            };
            let names: Vec<_> = expected.iter().map(|(name, ..)| name.clone()).collect();
            assert_eq!(self.bench.names(dir), names);
            for (name, attr, content) in expected {
                let found = self.bench.fs.lookup(&caller, dir, name.as_bytes()).unwrap().unwrap();
                let told = |attr: &delugefs_proto::local_pb::Attr| {
                    (attr.ino, attr.mode, attr.nlink, attr.size, attr.mtime, attr.ctime, attr.uid)
                };
                assert_eq!(told(&found), told(&attr), "{name}");
                assert_eq!(told(&self.bench.fs.getattr(&caller, attr.ino).unwrap()), told(&attr));
                if let Some(content) = content {
                    assert_eq!(self.bench.read_file(attr.ino), content, "{name}");
                }
            }
            for name in NAMES {
                let expected = names.iter().any(|other| other == name);
                assert_eq!(self.bench.fs.lookup(&caller, dir, name.as_bytes()).unwrap().is_some(), expected);
            }
        }
    }
}

/// What others have removed a moment ago may be gone.
fn or_gone<T>(result: Outcome<T>) -> Option<T> {
    match result {
        Err(stop) if matches!(stop.errno(), Errno::ESTALE | Errno::ENOENT) => None,
        other => Some(other.unwrap()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shows_what_the_worker_holds(ops in proptest::collection::vec(op(), 1..60), capacity in 8..60_usize) {
        let mut run = Run { bench: Bench::with_capacity(capacity), markers: 0 };
        for (step, op) in ops.iter().enumerate() {
            run.apply(op);
            if step % 7 == 6 {
                run.check();
            }
        }
        run.check();
    }
}
