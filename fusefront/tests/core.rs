//! The file system without a mount, against the fake worker.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use delugefs_fusefront::cache::CAPACITY_ENTRIES;
use delugefs_fusefront::call::{Caller, Patience, Stop};
use delugefs_fusefront::events::Events;
use delugefs_fusefront::fs::{Change, DirEntry, Fs, Invalidation, Making, RenameHow, Time};
use delugefs_fusefront::worker::Worker;
use delugefs_proto::local_pb::{Attr, Changed, Event};
use nix::errno::Errno;

use crate::fake::FakeWorker;

pub struct Bench {
    pub fs: Arc<Fs>,
    pub invalidations: Receiver<Invalidation>,
    events: Option<Events>,
    pub worker: FakeWorker,
}

impl Bench {
    pub fn start() -> Self {
        Self::with_capacity(CAPACITY_ENTRIES)
    }

    pub fn with_capacity(entries: usize) -> Self {
        let worker = FakeWorker::start();
        let (sender, invalidations) = crossbeam_channel::unbounded();
        let fs = Arc::new(Fs::new(Worker::new(&worker.socket), entries, sender));
        let (events, welcome) = Events::start(fs.clone()).unwrap();
        assert_eq!(welcome.root, 1);
        Self { fs, invalidations, events: Some(events), worker }
    }

    fn make(&self, dir: u64, name: &'static str, making: Making) -> Result<Attr, Errno> {
        let attr = self.fs.make(&Caller::own(), dir, &Bytes::from(name), &making).map_err(|stop| stop.errno())?;
        self.fs.remember(&attr);
        Ok(attr)
    }

    fn mkdir(&self, dir: u64, name: &'static str) -> u64 {
        self.make(dir, name, Making::Dir { mode: 0o755 }).unwrap().ino
    }

    fn write_file(&self, dir: u64, name: &'static str, bytes: &[u8]) -> u64 {
        let (attr, opened) = self.fs.create(&Caller::own(), dir, &Bytes::from(name), 0o644, true).unwrap();
        self.fs.remember(&attr);
        let file = self.fs.file(opened.handle).unwrap();
        assert_eq!(self.fs.write(&file, 0, bytes).unwrap(), bytes.len());
        drop(file);
        self.fs.release(opened.handle);
        attr.ino
    }

    fn read_handle(&self, handle: u64) -> Vec<u8> {
        let mut buf = vec![0; 1 << 20];
        let file = self.fs.file(handle).unwrap();
        let n = self.fs.read(&Caller::own(), &file, 0, &mut buf).unwrap();
        buf.truncate(n);
        buf
    }

    pub fn read_file(&self, ino: u64) -> Vec<u8> {
        let opened = self.fs.open(&Caller::own(), ino, false, false).unwrap();
        let bytes = self.read_handle(opened.handle);
        self.fs.release(opened.handle);
        bytes
    }

    fn lookup(&self, dir: u64, name: &str) -> Option<Attr> {
        self.fs.lookup(&Caller::own(), dir, name.as_bytes()).unwrap()
    }

    pub fn names(&self, dir: u64) -> Vec<String> {
        let handle = self.fs.opendir(dir);
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let before = offset;
            // In small bites, so that it has to go on.
            let page = self.fs.read_dir(&Caller::own(), handle, offset, false).unwrap();
            for (count, entry) in (1..).zip(page.iter().take(3)) {
                names.push(String::from_utf8(entry.name.to_vec()).unwrap());
                offset = entry.offset;
                self.fs.taken(handle, count, entry);
            }
            if offset == before {
                break;
            }
        }
        self.fs.releasedir(handle);
        assert_eq!(names[..2], [".", ".."]);
        names.split_off(2)
    }

    /// Wait until everything pushed so far has been taken in.
    fn wait_for(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(events) = self.events.take() {
            events.stop();
        }
        if !std::thread::panicking() {
            assert_eq!(self.worker.broken_promises(), Vec::<String>::new());
        }
    }
}

fn changed(dir: u64, names: &[&str], inos: &[u64]) -> Changed {
    Changed {
        dir,
        names: names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect(),
        inos: inos.into(),
    }
}

#[test]
fn small_and_large_files_come_back_as_written() {
    let bench = Bench::start();
    let large: Vec<u8> = (0..300_000_u32).map(|n| (n / 7) as u8).collect();
    for (name, bytes) in [("empty", &b""[..]), ("small", b"hello"), ("page", &large[..4096]), ("large", &large)] {
        let ino = bench.write_file(1, name, bytes);
        assert_eq!(bench.lookup(1, name).unwrap().size, bytes.len() as u64);
        assert_eq!(bench.read_file(ino), bytes, "{name}");
    }
    assert_eq!(bench.names(1), ["empty", "large", "page", "small"]);
    assert_eq!(bench.worker.open_handles(), 0);
}

#[test]
fn a_warm_tree_needs_no_requests() {
    let bench = Bench::start();
    let dir = bench.mkdir(1, "dir");
    let ino = bench.write_file(dir, "file", b"x");
    let before = bench.worker.total();
    for _ in 0..3 {
        assert_eq!(bench.lookup(dir, "file").map(|attr| attr.ino), Some(ino));
        assert_eq!(bench.lookup(dir, "other"), None);
        assert_eq!(bench.names(dir), ["file"]);
        assert_eq!(bench.fs.getattr(&Caller::own(), ino).unwrap().size, 1);
        assert_eq!(bench.fs.getattr(&Caller::own(), dir).unwrap().nlink, 2);
    }
    assert_eq!(bench.worker.total(), before);
}

#[test]
fn readers_see_what_is_being_written_and_what_was_sealed() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", b"first");
    let reader = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
    assert_eq!(bench.read_handle(reader.handle), b"first");
    let writer = bench.fs.open(&Caller::own(), ino, true, false).unwrap();
    let file = bench.fs.file(writer.handle).unwrap();
    bench.fs.write(&file, 5, b" and second").unwrap();
    assert_eq!(bench.read_handle(reader.handle), b"first and second");
    assert_eq!(bench.fs.getattr(&Caller::own(), ino).unwrap().size, 16);
    assert_eq!(bench.lookup(1, "f").unwrap().size, 16);
    drop(file);
    bench.fs.release(writer.handle);
    assert_eq!(bench.read_handle(reader.handle), b"first and second");
    bench.fs.release(reader.handle);
    assert_eq!(bench.worker.open_handles(), 0);
}

#[test]
fn unlinked_files_live_while_open() {
    let bench = Bench::start();
    let (attr, opened) = bench.fs.create(&Caller::own(), 1, &Bytes::from("f"), 0o600, true).unwrap();
    bench.fs.remember(&attr);
    let file = bench.fs.file(opened.handle).unwrap();
    bench.fs.write(&file, 0, b"still here").unwrap();
    bench.fs.unlink(&Caller::own(), 1, &Bytes::from("f")).unwrap();
    assert_eq!(bench.lookup(1, "f"), None);
    let now = bench.fs.getattr(&Caller::own(), attr.ino).unwrap();
    assert_eq!((now.nlink, now.size), (0, 10));
    let change = Change { size: Some(5), mode: Some(0o100_640), uid: Some(7), ..Change::default() };
    let now = bench.fs.setattr(&Caller::own(), attr.ino, &change).unwrap();
    assert_eq!((now.size, now.mode, now.uid), (5, 0o100_640, 7));
    bench.fs.write(&file, 5, b"!").unwrap();
    assert_eq!(bench.read_handle(opened.handle), b"still!");
    drop(file);
    bench.fs.release(opened.handle);
    bench.fs.forget(attr.ino, 1);
    assert!(bench.fs.getattr(&Caller::own(), attr.ino).is_err());
    assert_eq!(bench.worker.open_handles(), 0);
}

#[test]
fn hard_links_share_their_attributes() {
    let bench = Bench::start();
    let dir = bench.mkdir(1, "d");
    let ino = bench.write_file(1, "a", b"x");
    bench.fs.link(&Caller::own(), ino, dir, &Bytes::from("b")).unwrap();
    assert_eq!(bench.lookup(1, "a").unwrap().nlink, 2);
    let change = Change { mode: Some(0o100_600), ..Change::default() };
    bench.fs.setattr(&Caller::own(), ino, &change).unwrap();
    assert_eq!(bench.lookup(dir, "b").unwrap().mode, 0o100_600);
    bench.fs.unlink(&Caller::own(), 1, &Bytes::from("a")).unwrap();
    assert_eq!(bench.lookup(dir, "b").unwrap().nlink, 1);
    let error = bench.fs.link(&Caller::own(), dir, 1, &Bytes::from("c")).unwrap_err();
    assert_eq!(error.errno(), Errno::EPERM);
}

#[test]
fn renames_move_replace_and_exchange() {
    let bench = Bench::start();
    let caller = Caller::own();
    let (d1, d2) = (bench.mkdir(1, "d1"), bench.mkdir(1, "d2"));
    let sub = bench.mkdir(d1, "sub");
    let (a, b) = (bench.write_file(d1, "a", b"a"), bench.write_file(d2, "b", b"b"));
    let rename = |from: (u64, &'static str), to: (u64, &'static str), how| {
        bench.fs.rename(&caller, (from.0, &Bytes::from(from.1)), (to.0, &Bytes::from(to.1)), how)
    };
    let no_replace = RenameHow { no_replace: true, exchange: false };
    assert_eq!(rename((d1, "a"), (d2, "b"), no_replace).unwrap_err().errno(), Errno::EEXIST);
    rename((d1, "a"), (d2, "b"), RenameHow { exchange: true, no_replace: false }).unwrap();
    assert_eq!((bench.lookup(d1, "a").unwrap().ino, bench.lookup(d2, "b").unwrap().ino), (b, a));
    rename((d1, "a"), (d2, "b"), RenameHow::default()).unwrap();
    assert_eq!((bench.lookup(d1, "a"), bench.lookup(d2, "b").unwrap().ino), (None, b));
    rename((d1, "sub"), (d2, "sub"), RenameHow::default()).unwrap();
    let handle = bench.fs.opendir(sub);
    let up = bench.fs.read_dir(&caller, handle, 0, false).unwrap().iter().nth(1).unwrap().ino;
    assert_eq!(up, d2, "the parent of a moved directory");
    assert_eq!(bench.fs.getattr(&caller, d1).unwrap().nlink, 2);
    assert_eq!(rename((1, "d2"), (sub, "x"), RenameHow::default()).unwrap_err().errno(), Errno::EINVAL);
    // Two names of one inode: nothing happens.
    bench.fs.link(&caller, b, d1, &Bytes::from("same")).unwrap();
    rename((d1, "same"), (d2, "b"), RenameHow::default()).unwrap();
    assert_eq!((bench.names(d1), bench.names(d2)), (vec!["same".to_owned()], vec!["b".into(), "sub".into()]));
}

#[test]
fn events_reach_cache_kernel_and_open_readers() {
    let bench = Bench::start();
    let dir = bench.mkdir(1, "d");
    let ino = bench.write_file(dir, "f", b"old");
    assert_eq!(bench.names(dir), ["f"]);
    let reader = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
    assert_eq!(bench.read_handle(reader.handle), b"old");
    bench.worker.elsewhere(|tree| {
        tree.make(dir, b"new", 0o100_644, (0, 0), 0).unwrap();
        tree.replace(ino, b"newer content");
        vec![changed(dir, &["new"], &[ino])]
    });
    bench.wait_for("the new name is there", || bench.lookup(dir, "new").is_some());
    assert_eq!(bench.names(dir), ["f", "new"]);
    assert_eq!(bench.lookup(dir, "f").unwrap().size, 13);
    assert_eq!(bench.read_handle(reader.handle), b"newer content");
    // The last thing an event does is to tell the kernel of its directory.
    let mut told = Vec::new();
    while told.last() != Some(&Invalidation::Dir(dir)) {
        told.push(bench.invalidations.recv_timeout(Duration::from_secs(20)).unwrap());
    }
    assert!(told.contains(&Invalidation::Name { dir, name: Box::from(&b"new"[..]) }), "{told:?}");
    assert!(told.contains(&Invalidation::Content(ino)), "{told:?}");
    bench.worker.elsewhere(|tree| {
        tree.unlink(dir, b"f").unwrap();
        vec![changed(dir, &["f"], &[])]
    });
    bench.wait_for("the name is gone", || bench.lookup(dir, "f").is_none());
    assert_eq!(bench.read_handle(reader.handle), b"newer content", "what is open can still be read");
    bench.fs.release(reader.handle);
    bench.worker.elsewhere(|tree| {
        tree.make(1, b"late", 0o100_644, (0, 0), 0).unwrap();
        vec![]
    });
    let seq = bench.worker.shared.tree.lock().seq;
    bench.worker.push(&Event { seq: seq + 1, changed: vec![], all: true });
    bench.wait_for("everything was dropped", || bench.lookup(1, "late").is_some());
    bench.wait_for("the kernel is told", || bench.invalidations.try_iter().any(|what| what == Invalidation::All));
}

#[test]
fn survives_a_restart_of_the_worker() {
    let mut bench = Bench::start();
    let ino = bench.write_file(1, "old", b"old");
    let (attr, opened) = bench.fs.create(&Caller::own(), 1, &Bytes::from("new"), 0o644, true).unwrap();
    bench.fs.remember(&attr);
    let file = bench.fs.file(opened.handle).unwrap();
    bench.fs.write(&file, 0, b"before").unwrap();
    bench.worker.crash();
    // Without a worker: what is open can be read and written, what is cached is known.
    bench.fs.write(&file, 6, b", during").unwrap();
    assert_eq!(bench.read_handle(opened.handle), b"before, during");
    assert_eq!(bench.fs.getattr(&Caller::own(), ino).unwrap().size, 3);
    let fs = bench.fs.clone();
    let waiting = std::thread::spawn(move || fs.unlink(&Caller::own(), 1, &Bytes::from("old")));
    bench.worker.resume();
    waiting.join().unwrap().unwrap();
    assert_eq!(bench.worker.count("adopt"), 1);
    bench.fs.write(&file, 14, b", after").unwrap();
    drop(file);
    bench.fs.release(opened.handle);
    assert_eq!(bench.worker.shared.tree.lock().content(attr.ino), b"before, during, after");
    assert_eq!(bench.names(1), ["new"]);
    bench.wait_for("the kernel is told", || bench.invalidations.try_iter().any(|what| what == Invalidation::All));
}

#[test]
fn a_lost_answer_is_asked_for_again() {
    let bench = Bench::start();
    let swallow = || bench.worker.shared.swallow.store(1, Ordering::SeqCst);
    swallow();
    let ino = bench.write_file(1, "a", b"once");
    assert_eq!(bench.read_file(ino), b"once");
    swallow();
    let dir = bench.mkdir(1, "d");
    swallow();
    let how = RenameHow::default();
    bench.fs.rename(&Caller::own(), (1, &Bytes::from("a")), (dir, &Bytes::from("b")), how).unwrap();
    assert_eq!(bench.names(dir), ["b"]);
    swallow();
    bench.fs.unlink(&Caller::own(), dir, &Bytes::from("b")).unwrap();
    assert_eq!((bench.names(dir), bench.names(1)), (vec![], vec!["d".to_owned()]));
}

/// As a reading thread does it, and then the pool: the answer is lost with the worker, and the operation is begun again.
fn begun_again<T>(bench: &mut Bench, operation: impl Fn(&Fs, &Caller) -> Result<T, Stop>) -> Result<T, Errno> {
    bench.worker.shared.swallow.store(1, Ordering::SeqCst);
    let mut caller = Caller::new(0, 0, Patience::Brief);
    assert!(matches!(operation(&bench.fs, &caller), Err(Stop::Later)), "it did not go out");
    let link = bench.fs.worker.link();
    bench.worker.crash();
    bench.worker.resume();
    bench.wait_for("there is a new link", || bench.fs.worker.link().is_some_and(|now| Some(now) != link));
    caller.patience = Patience::Patient;
    operation(&bench.fs, &caller).map_err(|stop| stop.errno())
}

#[test]
fn an_operation_that_is_begun_again_is_still_done_once() {
    let mut bench = Bench::start();
    let (a, b) = (bench.write_file(1, "a", b"a"), bench.write_file(1, "b", b"b"));
    let name = Bytes::from;
    for (to, how) in [("b", RenameHow { exchange: true, no_replace: false }), ("c", RenameHow::default())] {
        let rename = |fs: &Fs, caller: &Caller| fs.rename(caller, (1, &name("a")), (1, &name(to)), how);
        assert_eq!(begun_again(&mut bench, rename), Ok(()), "to {to}");
        let ino = |name| bench.lookup(1, name).map(|attr| attr.ino);
        match to {
            "b" => assert_eq!((ino("a"), ino("b")), (Some(b), Some(a))),
            _ => assert_eq!((ino("a"), ino("b"), ino("c")), (None, Some(a), Some(b))),
        }
    }
    // What is asked for first, since the cache is empty, does not make a new request of it.
    let making = Making::Dir { mode: 0o755 };
    let made = begun_again(&mut bench, |fs, caller| fs.make(caller, 1, &name("d"), &making));
    assert_eq!(made.map(|attr| Some(attr.ino)), Ok(bench.lookup(1, "d").map(|attr| attr.ino)));
}

#[test]
fn a_reader_of_a_directory_is_not_disturbed() {
    let bench = Bench::start();
    let dir = bench.mkdir(1, "d");
    for name in ["a", "c", "e", "g"] {
        bench.write_file(dir, name, b"");
    }
    let handle = bench.fs.opendir(dir);
    let page = |offset, most| {
        let page = bench.fs.read_dir(&Caller::own(), handle, offset, true).unwrap();
        let name = |entry: DirEntry<'_>| (String::from_utf8(entry.name.to_vec()).unwrap(), entry.offset);
        page.iter().take(most).map(name).collect::<Vec<_>>()
    };
    let names = |page: Vec<(String, u64)>| page.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(page(0, 3), [(".".to_owned(), 1), ("..".into(), 2), ("a".into(), 3)]);
    bench.write_file(dir, "b", b"");
    bench.fs.unlink(&Caller::own(), dir, &Bytes::from("e")).unwrap();
    assert_eq!(names(page(3, 9)), ["c", "g"], "e is gone, b came later");
    assert_eq!(page(4, 9), [("g".to_owned(), 6)]);
    assert_eq!(names(page(6, 9)), Vec::<String>::new());
    assert_eq!(names(page(0, 9)), [".", "..", "a", "b", "c", "g"]);
}

#[test]
fn the_cache_stays_within_its_bound() {
    let bench = Bench::with_capacity(200);
    for n in 0..40_u64 {
        let dir = bench.mkdir(1, Box::leak(format!("d{n}").into_boxed_str()));
        for m in 0..10_u64 {
            bench
                .make(dir, Box::leak(format!("f{m}").into_boxed_str()), Making::Node { mode: 0o100_644, rdev: 0 })
                .unwrap();
        }
        assert!(bench.fs.cached_entries() <= 200, "{}", bench.fs.cached_entries());
    }
    for n in 0..40 {
        let dir = bench.lookup(1, &format!("d{n}")).unwrap().ino;
        assert_eq!(bench.names(dir).len(), 10);
        assert!(bench.fs.cached_entries() <= 200);
    }
}

#[test]
fn limits_are_kept_by_the_frontend() {
    let bench = Bench::start();
    let long = "n".repeat(256);
    let caller = Caller::own();
    assert_eq!(bench.fs.lookup(&caller, 1, long.as_bytes()).unwrap_err().errno(), Errno::ENAMETOOLONG);
    assert_eq!(bench.fs.create(&caller, 1, &Bytes::from(long), 0o644, true).unwrap_err().errno(), Errno::ENAMETOOLONG);
    let target = Making::Symlink(Bytes::from(vec![b'x'; 4096]));
    assert_eq!(bench.make(1, "s", target).unwrap_err(), Errno::ENAMETOOLONG);
    let link = bench.make(1, "s", Making::Symlink(Bytes::from_static(b"to"))).unwrap();
    assert_eq!(bench.fs.readlink(&caller, link.ino).unwrap(), &b"to"[..]);
    let error = bench.fs.setattr(&caller, 1, &Change { size: Some(u64::MAX), ..Change::default() }).unwrap_err();
    assert_eq!(error.errno(), Errno::EFBIG);
}

#[test]
fn a_directory_too_big_to_hold_is_read_page_by_page() {
    let bench = Bench::with_capacity(400);
    let dir = bench.mkdir(1, "big");
    let name = |n: usize| format!("f{n:05}");
    {
        let mut tree = bench.worker.shared.tree.lock();
        for n in 0..5000 {
            tree.make(dir, name(n).as_bytes(), 0o100_644, (0, 0), 0).unwrap();
        }
    }
    bench.worker.push(&Event { seq: 10_000, changed: vec![], all: true });
    bench.wait_for("it is found", || bench.lookup(dir, "f00007").is_some());
    let expected: Vec<String> = (0..5000).map(name).collect();
    assert_eq!(bench.names(dir), expected);
    assert!(bench.fs.cached_entries() <= 400);
    // Lookups ask for one name each.
    let listings = bench.worker.count("readdir");
    assert_eq!((bench.lookup(dir, "f04999").is_some(), bench.lookup(dir, "g")), (true, None));
    assert_eq!(bench.worker.count("readdir"), listings);
    // With attributes, while others come and go, and with going back.
    let handle = bench.fs.opendir(dir);
    let page = |offset: u64, most: usize| {
        let page = bench.fs.read_dir(&Caller::own(), handle, offset, true).unwrap();
        let name = |entry: DirEntry<'_>| String::from_utf8(entry.name.to_vec()).unwrap();
        let told = |entry: DirEntry<'_>| (name(entry), entry.offset, entry.attr.map_or(0, |attr| attr.mode));
        page.iter().take(most).map(told).collect::<Vec<_>>()
    };
    let mut at = page(0, 102).last().unwrap().1;
    assert_eq!(at, 102);
    bench.fs.unlink(&Caller::own(), dir, &Bytes::from("f00100")).unwrap();
    let ino = bench.lookup(dir, "f00101").unwrap().ino;
    let change = Change { mode: Some(0o100_600), ..Change::default() };
    bench.fs.setattr(&Caller::own(), ino, &change).unwrap();
    let next = page(at, 2);
    assert_eq!(next, [("f00101".to_owned(), 103, 0o100_600), ("f00102".into(), 104, 0o100_644)]);
    let mut names = 102;
    let mut deleted = 102;
    loop {
        let next = page(at, 300);
        let Some((last, offset, _)) = next.last().cloned() else { break };
        names += next.len();
        at = offset;
        // As `rm -r` does.
        if deleted < 2000 && last > name(deleted + 50) {
            for n in deleted + 1..deleted + 50 {
                bench.fs.unlink(&Caller::own(), dir, &Bytes::from(name(n))).unwrap();
            }
            deleted += 50;
        }
    }
    assert_eq!(names, 5001, "the dots and all but one");
    assert_eq!(page(4000, 1)[0].0, name(3999));
    bench.fs.releasedir(handle);
}

#[test]
fn another_worker_serves_when_the_first_stays_away() {
    let (mut first, second) = (FakeWorker::start(), FakeWorker::start());
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&second.socket, folder.path().join("b.sock")).unwrap();
    // Something that is no worker.
    let _deaf = std::os::unix::net::UnixListener::bind(folder.path().join("a.stock")).unwrap();
    let (sender, _invalidations) = crossbeam_channel::unbounded();
    let worker = Worker::new(&first.socket).with_fallback(folder.path(), Duration::from_millis(100));
    let fs = Arc::new(Fs::new(worker, CAPACITY_ENTRIES, sender));
    let (events, _) = Events::start(fs.clone()).unwrap();
    let making = Making::Dir { mode: 0o755 };
    fs.make(&Caller::own(), 1, &Bytes::from("one"), &making).unwrap();
    first.crash();
    // Waits for the link, and gets it from the other.
    fs.make(&Caller::own(), 1, &Bytes::from("two"), &making).unwrap();
    assert_eq!((first.count("mkdir"), second.count("mkdir")), (1, 1));
    events.stop();
}

#[test]
fn who_copies_or_seeks_may_go_on_when_the_last_writer_leaves() {
    let bench = Bench::start();
    let caller = Caller::own();
    let (to, copy) = bench.fs.create(&caller, 1, &Bytes::from("copy"), 0o644, true).unwrap();
    bench.fs.remember(&to);
    for round in 0..100 {
        // Opened while it is written, so that the reader has nothing of its own, and closed while it is read.
        let (attr, writer) = bench.fs.create(&Caller::own(), 1, &Bytes::from(format!("{round}")), 0o644, true).unwrap();
        let file = bench.fs.file(writer.handle).unwrap();
        bench.fs.write(&file, 0, b"content").unwrap();
        drop(file);
        let reader = bench.fs.open(&caller, attr.ino, false, false).unwrap();
        let fs = bench.fs.clone();
        let closing = std::thread::spawn(move || fs.release(writer.handle));
        loop {
            let is_closed = closing.is_finished();
            assert_eq!(bench.fs.copy_range(&caller, (reader.handle, 0), (copy.handle, 0), 100), Ok(7));
            assert_eq!(bench.fs.lseek(&caller, reader.handle, 3, libc::SEEK_DATA), Ok(3));
            if is_closed {
                break;
            }
        }
        closing.join().unwrap();
        bench.fs.release(reader.handle);
    }
    bench.fs.release(copy.handle);
}

#[test]
fn what_is_opened_while_it_changes_is_read_as_it_is_then() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", b"first");
    bench.worker.withhold("open");
    let opened = std::thread::scope(|scope| {
        let opening = scope.spawn(|| bench.fs.open(&Caller::own(), ino, false, false).unwrap());
        bench.wait_for("the answer is made", || bench.worker.withheld() == 1);
        bench.worker.elsewhere(|tree| {
            tree.replace(ino, b"second");
            vec![changed(0, &[], &[ino])]
        });
        bench.wait_for("it is heard of", || bench.invalidations.try_iter().any(|it| it == Invalidation::Content(ino)));
        bench.worker.answer();
        opening.join().unwrap()
    });
    assert_eq!(bench.read_handle(opened.handle), b"second");
    bench.fs.release(opened.handle);
}

#[test]
fn who_opens_a_newer_version_has_all_others_read_it() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", b"first");
    let reader = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
    bench.worker.shared.tree.lock().replace(ino, b"second");
    assert_eq!(bench.read_handle(reader.handle), b"first", "nobody was told");
    // Whoever opens it sees it, and then so does everybody: the kernel has one set of pages.
    let other = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
    assert!(!other.keep_pages);
    assert_eq!(bench.read_handle(reader.handle), b"second");
    bench.fs.release(reader.handle);
    bench.fs.release(other.handle);
}

#[test]
fn our_own_change_does_not_carry_pages_over_somebody_elses() {
    let mode = Change { mode: Some(0o100_600), ..Change::default() };
    let size = Change { size: Some(3), ..Change::default() };
    let mtime = Change { mtime: Some(Time::At(5)), ..Change::default() };
    for change in [mode, size, mtime] {
        let bench = Bench::start();
        let ino = bench.write_file(1, "f", b"first");
        assert_eq!(bench.read_file(ino), b"first");
        bench.fs.getattr(&Caller::own(), ino).unwrap();
        bench.fs.setattr(&Caller::own(), ino, &change).unwrap();
        assert!(bench.fs.pages_are_current(ino), "nobody else changed it");
        // Somebody else's change comes before ours, and the event about it after.
        let event = {
            let mut tree = bench.worker.shared.tree.lock();
            let times = tree.attr(ino).unwrap();
            let other = vec![b'x'; times.size as usize];
            tree.replace(ino, &other);
            tree.node(ino).unwrap().attr.mtime = times.mtime;
            tree.seq += 1;
            Event { seq: tree.seq, changed: vec![changed(0, &[], &[ino])], all: false }
        };
        bench.fs.setattr(&Caller::own(), ino, &change).unwrap();
        bench.worker.push(&event);
        bench.wait_for("it is heard of", || bench.invalidations.try_iter().any(|it| it == Invalidation::Content(ino)));
        assert!(!bench.fs.pages_are_current(ino), "{change:?}");
        assert!(!bench.fs.open(&Caller::own(), ino, false, false).unwrap().keep_pages);
    }
}

#[test]
fn what_was_removed_elsewhere_has_its_newest_size() {
    let bench = Bench::start();
    let remove = |ino: u64| {
        bench.worker.elsewhere(|tree| {
            tree.unlink(1, b"f").unwrap();
            vec![changed(1, &["f"], &[ino])]
        });
        bench.wait_for("it is gone", || bench.invalidations.try_iter().any(|it| it == Invalidation::Dir(1)));
        let now = bench.fs.getattr(&Caller::own(), ino).unwrap();
        (now.nlink, now.size)
    };
    // Written here since the other handle was opened.
    let (attr, writer) = bench.fs.create(&Caller::own(), 1, &Bytes::from("f"), 0o644, true).unwrap();
    bench.fs.remember(&attr);
    let reader = bench.fs.open(&Caller::own(), attr.ino, false, false).unwrap();
    let file = bench.fs.file(writer.handle).unwrap();
    assert_eq!(bench.fs.write(&file, 0, &[7; 100]).unwrap(), 100);
    drop(file);
    bench.fs.release(writer.handle);
    assert_eq!(remove(attr.ino), (0, 100));
    assert_eq!(bench.read_handle(reader.handle), [7; 100]);
    bench.fs.release(reader.handle);
    // Written elsewhere since: known by reading, by asking, or by looking it up.
    for how in ["read", "stat", "lookup"] {
        let ino = bench.write_file(1, "f", &[1; 10]);
        let reader = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
        bench.worker.elsewhere(|tree| {
            tree.replace(ino, &[2; 20]);
            vec![changed(0, &[], &[ino])]
        });
        bench.wait_for("it is another", || bench.invalidations.try_iter().any(|it| it == Invalidation::Content(ino)));
        match how {
            "read" => assert_eq!(bench.read_handle(reader.handle), [2; 20]),
            "stat" => assert_eq!(bench.fs.getattr(&Caller::own(), ino).unwrap().size, 20),
            _ => assert_eq!(bench.lookup(1, "f").unwrap().size, 20),
        }
        assert_eq!(remove(ino), (0, 20), "{how}");
        bench.fs.release(reader.handle);
    }
    // The same when everything is to be forgotten.
    let ino = bench.write_file(1, "f", &[1; 10]);
    let reader = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
    bench.worker.elsewhere(|tree| {
        tree.replace(ino, &[2; 20]);
        vec![changed(0, &[], &[ino])]
    });
    bench.wait_for("it is another", || bench.invalidations.try_iter().any(|it| it == Invalidation::Content(ino)));
    assert_eq!(bench.lookup(1, "f").unwrap().size, 20);
    let seq = {
        let mut tree = bench.worker.shared.tree.lock();
        tree.unlink(1, b"f").unwrap();
        tree.seq
    };
    bench.worker.push(&Event { seq, changed: vec![], all: true });
    bench.wait_for("all is forgotten", || bench.invalidations.try_iter().any(|it| it == Invalidation::All));
    let now = bench.fs.getattr(&Caller::own(), ino).unwrap();
    assert_eq!((now.nlink, now.size), (0, 20));
    bench.fs.release(reader.handle);
}

#[test]
fn what_was_written_is_closed_though_no_connection_can_be_had_at_first() {
    let bench = Bench::start();
    let (attr, opened) = bench.fs.create(&Caller::own(), 1, &Bytes::from("f"), 0o644, true).unwrap();
    bench.fs.remember(&attr);
    let file = bench.fs.file(opened.handle).unwrap();
    bench.fs.write(&file, 0, b"content").unwrap();
    drop(file);
    // The connection there is has a request under way, and the next ones are refused.
    bench.worker.be_silent_to("mkdir");
    std::thread::scope(|scope| {
        scope.spawn(|| bench.mkdir(1, "d"));
        bench.wait_for("it is asked", || bench.worker.count("mkdir") == 1);
        bench.worker.shared.refuse.store(3, Ordering::SeqCst);
        bench.fs.release(opened.handle);
        bench.worker.answer();
    });
    assert_eq!((bench.worker.count("close"), bench.worker.open_handles()), (1, 0));
}

#[test]
fn what_was_removed_elsewhere_may_come_back() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", b"text");
    let reader = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
    let heard_of = |name: &str| {
        let name = Invalidation::Name { dir: 1, name: Box::from(name.as_bytes()) };
        bench.wait_for("it is heard of", || bench.invalidations.try_iter().any(|it| it == name));
    };
    bench.worker.elsewhere(|tree| {
        tree.unlink(1, b"f").unwrap();
        vec![changed(1, &["f"], &[ino])]
    });
    heard_of("f");
    assert_eq!(bench.fs.getattr(&Caller::own(), ino).unwrap().nlink, 0);
    bench.worker.elsewhere(|tree| {
        tree.make(1, b"g", 0o100_644, (0, 0), ino).unwrap();
        tree.replace(ino, b"changed there");
        vec![changed(1, &["g"], &[ino])]
    });
    heard_of("g");
    bench.fs.remember(&bench.lookup(1, "g").unwrap());
    let now = bench.fs.getattr(&Caller::own(), ino).unwrap();
    assert_eq!((now.nlink, now.size), (1, 13));
    assert_eq!(bench.read_file(ino), b"changed there");
    bench.fs.setattr(&Caller::own(), ino, &Change { mode: Some(0o600), ..Change::default() }).unwrap();
    assert_eq!(bench.worker.shared.tree.lock().attr(ino).unwrap().mode & 0o777, 0o600, "not for us alone");
    bench.fs.release(reader.handle);
}

#[test]
fn names_that_are_forgotten_all_at_once_can_still_be_told() {
    let mut bench = Bench::start();
    bench.write_file(1, "f", b"");
    let is_told = |bench: &Bench| bench.fs.told_names().contains(&(1, Box::from(&b"f"[..])));
    let wait = |bench: &Bench| {
        bench.wait_for("it is forgotten", || bench.invalidations.try_iter().any(|it| it == Invalidation::All));
    };
    assert_eq!(bench.names(1), ["f"]);
    let seq = bench.worker.shared.tree.lock().seq;
    bench.worker.push(&Event { seq: seq + 1, changed: vec![], all: true });
    wait(&bench);
    assert!(is_told(&bench));
    assert!(!is_told(&bench), "once is enough");
    assert_eq!(bench.names(1), ["f"]);
    bench.worker.crash();
    bench.worker.resume();
    wait(&bench);
    assert!(is_told(&bench));
}

#[test]
fn who_opened_while_it_was_written_reads_it_after_it_is_gone() {
    let bench = Bench::start();
    for removed_first in [false, true] {
        let (attr, opened) = bench.fs.create(&Caller::own(), 1, &Bytes::from("f"), 0o644, true).unwrap();
        bench.fs.remember(&attr);
        let file = bench.fs.file(opened.handle).unwrap();
        assert_eq!(bench.fs.write(&file, 0, b"content").unwrap(), 7);
        drop(file);
        let reader = bench.fs.open(&Caller::own(), attr.ino, false, false).unwrap();
        let unlink = || bench.fs.unlink(&Caller::own(), 1, &Bytes::from("f")).unwrap();
        if removed_first {
            unlink();
        }
        bench.fs.release(opened.handle);
        if !removed_first {
            unlink();
        }
        assert_eq!(bench.read_handle(reader.handle), b"content");
        bench.fs.release(reader.handle);
        assert_eq!(bench.worker.open_handles(), 0);
    }
}
