//! The file system without a mount, against the fake worker.

mod away;
mod links;
mod listing;
mod pages;
mod races;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use delugefs_fusefront::cache::CAPACITY_ENTRIES;
use delugefs_fusefront::call::{Caller, Patience, Stop};
use delugefs_fusefront::events::Events;
use delugefs_fusefront::fs::{Change, DirEntry, Fs, Invalidation, Making, Opened, Outdated, RenameHow, Time};
use delugefs_fusefront::worker::Worker;
use delugefs_proto::local_pb::{Attr, Changed, Event};
use nix::errno::Errno;

use crate::fake::FakeWorker;
use crate::fake::tree::Tree;

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
        fs.note_names();
        let (events, welcome) = Events::start(fs.clone()).unwrap();
        assert_eq!(welcome.root, 1);
        Self { fs, invalidations, events: Some(events), worker }
    }

    fn make(&self, dir: u64, name: &'static str, making: Making) -> Result<Attr, Errno> {
        let attr = self.fs.make(&Caller::own(), dir, &Bytes::from(name), &making).map_err(|stop| stop.errno())?;
        self.fs.remember_as(&attr, dir, name.as_bytes());
        Ok(attr)
    }

    fn mkdir(&self, dir: u64, name: &'static str) -> u64 {
        self.make(dir, name, Making::Dir { mode: 0o755 }).unwrap().ino
    }

    fn write_file(&self, dir: u64, name: &'static str, bytes: &[u8]) -> u64 {
        let (attr, opened) = self.fs.create(&Caller::own(), dir, &Bytes::from(name), 0o644, true).unwrap();
        self.fs.remember_as(&attr, dir, name.as_bytes());
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
        let handle = self.fs.opendir(dir, false);
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
        self.worker.answer();
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
    let handle = bench.fs.opendir(sub, false);
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
    bench.worker.push(&Event { seq: seq + 1, all: true, ..Event::default() });
    bench.wait_for("everything was dropped", || bench.lookup(1, "late").is_some());
    bench.wait_for("the kernel is told", || bench.invalidations.try_iter().any(|what| what == Invalidation::All));
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
    bench.worker.push(&Event { seq: 10_000, all: true, ..Event::default() });
    bench.wait_for("it is found", || bench.lookup(dir, "f00007").is_some());
    let expected: Vec<String> = (0..5000).map(name).collect();
    assert_eq!(bench.names(dir), expected);
    assert!(bench.fs.cached_entries() <= 400);
    // Lookups ask for one name each.
    let listings = bench.worker.count("readdir");
    assert_eq!((bench.lookup(dir, "f04999").is_some(), bench.lookup(dir, "g")), (true, None));
    assert_eq!(bench.worker.count("readdir"), listings);
    // With attributes, while others come and go, and with going back.
    let handle = bench.fs.opendir(dir, false);
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
fn a_killed_reader_of_a_big_directory_leaves_no_watch() {
    let bench = Bench::with_capacity(400);
    let dir = bench.mkdir(1, "big");
    {
        let mut tree = bench.worker.shared.tree.lock();
        for n in 0..5000 {
            tree.make(dir, format!("f{n:05}").as_bytes(), 0o100_644, (0, 0), 0).unwrap();
        }
    }
    bench.worker.push(&Event { seq: 10_000, all: true, ..Event::default() });
    bench.wait_for("it is found", || bench.lookup(dir, "f00007").is_some());
    let read = |handle| bench.fs.read_dir(&Caller::own(), handle, 0, false).map(drop);
    let handle = bench.fs.opendir(dir, false);
    read(handle).unwrap();
    assert_eq!(bench.fs.watches(), 1, "while its page is in use");
    bench.fs.releasedir(handle);
    assert_eq!(bench.fs.watches(), 0);
    let handle = bench.fs.opendir(dir, false);
    bench.worker.withhold("readdir");
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read(handle));
        bench.wait_for("it is asked", || bench.worker.withheld() == 1);
        // The program has been answered EINTR, and has ended.
        bench.fs.releasedir(handle);
        bench.worker.answer();
        reading.join().unwrap().unwrap();
    });
    assert_eq!(bench.fs.watches(), 0);
}

#[test]
fn a_listing_is_not_kept_over_a_change_by_others() {
    let bench = Bench::start();
    let dir = bench.mkdir(1, "d");
    assert!(!bench.fs.keeps_listing(1), "what was before the link nobody knows");
    for (dir, name) in [(1, "new"), (dir, "new")] {
        assert!(bench.fs.keeps_listing(dir));
        bench.worker.elsewhere(|tree| {
            tree.make(dir, name.as_bytes(), 0o100_644, (0, 0), 0).unwrap();
            vec![changed(dir, &[name], &[])]
        });
        bench.wait_for("it is told", || bench.invalidations.try_iter().any(|it| it == Invalidation::Dir(dir)));
        // What the kernel was given before may come after it was told.
        assert_eq!([(); 3].map(|()| bench.fs.keeps_listing(dir)), [false, true, true]);
    }
    bench.worker.push(&Event { seq: 1000, all: true, ..Event::default() });
    bench.wait_for("all is forgotten", || bench.invalidations.try_iter().any(|it| it == Invalidation::All));
    assert_eq!([1, dir, 1, dir].map(|dir| bench.fs.keeps_listing(dir)), [false, false, true, true]);
}

/// A bad sector of this disk, and another one has the content.
#[test]
#[cfg(target_os = "linux")] // nothing else is known that gives EIO
fn what_the_disk_cannot_read_is_opened_anew_once_the_worker_knows() {
    let bench = Bench::start();
    let bytes = vec![7; 100_000];
    let ino = bench.write_file(1, "f", &bytes);
    let told = |is_only: bool| {
        bench.worker.shared.only_copy.store(is_only, Ordering::SeqCst);
        bench.worker.shared.unreadable.store(true, Ordering::SeqCst);
        let opened = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
        (opened.handle, bench.worker.count("unread"), bench.worker.count("open"))
    };
    let (handle, unread, opens) = told(false);
    assert_eq!(bench.read_handle(handle), bytes);
    assert_eq!(bench.read_handle(handle), bytes, "and it stays so");
    assert_eq!((bench.worker.count("unread"), bench.worker.count("open")), (unread + 1, opens + 1));
    bench.fs.release(handle);
    // Each thread that it begins on anew goes on from there.
    let (handle, unread, _) = told(false);
    let mut caller = Caller::new(0, 0, Patience::Local);
    let file = bench.fs.file(handle).unwrap();
    let mut read = vec![0; bytes.len()];
    assert_eq!(bench.fs.read(&caller, &file, 0, &mut read).unwrap_err(), Stop::Later);
    caller.patience = Patience::Patient;
    assert_eq!(bench.fs.read(&caller, &file, 0, &mut read).unwrap(), bytes.len());
    assert!(read == bytes && bench.worker.count("unread") == unread + 1);
    drop(file);
    bench.fs.release(handle);
    // Nobody else has it: that is said, and said at once.
    let (handle, unread, _) = told(true);
    let file = bench.fs.file(handle).unwrap();
    let read = bench.fs.read(&Caller::own(), &file, 0, &mut [0; 100]).unwrap_err();
    assert_eq!((read.errno(), bench.worker.count("unread")), (Errno::EIO, unread + 1));
    drop(file);
    bench.fs.release(handle);
}

/// Another host has removed it, and cannot have seen what is being written: it is to outlast a crash under the name that it gets back.
#[test]
fn a_sync_of_what_was_removed_elsewhere_is_asked_of_the_worker() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", &[1; 10]);
    let writer = bench.fs.open(&Caller::own(), ino, true, false).unwrap();
    let file = bench.fs.file(writer.handle).unwrap();
    bench.fs.write(&file, 0, &[2; 20]).unwrap();
    bench.worker.elsewhere(|tree| {
        tree.unlink(1, b"f").unwrap();
        vec![changed(1, &["f"], &[ino])]
    });
    bench.wait_for("the name is gone", || bench.lookup(1, "f").is_none());
    let before = bench.worker.count("fsync");
    bench.fs.fsync(&Caller::own(), writer.handle, false).unwrap();
    assert_eq!(bench.worker.count("fsync"), before + 1);
    drop(file);
    bench.fs.release(writer.handle);
}

/// A scratch file: nobody needs it after a crash, and its worker may be away.
#[test]
fn a_sync_of_what_this_mount_has_removed_asks_nobody() {
    let bench = Bench::start();
    let (attr, opened) = bench.fs.create(&Caller::own(), 1, &Bytes::from("f"), 0o644, true).unwrap();
    bench.fs.remember_as(&attr, 1, b"f");
    bench.fs.unlink(&Caller::own(), 1, &Bytes::from("f")).unwrap();
    let before = bench.worker.count("fsync");
    bench.fs.fsync(&Caller::own(), opened.handle, false).unwrap();
    assert_eq!(bench.worker.count("fsync"), before);
    bench.fs.release(opened.handle);
}

/// Another mount of the disk has renamed it, and another host then removed it: that is not certain to be nobody's loss.
#[test]
fn a_sync_of_what_another_mount_has_renamed_is_asked_of_the_worker() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", &[1; 10]);
    let writer = bench.fs.open(&Caller::own(), ino, true, false).unwrap();
    bench.fs.write(&bench.fs.file(writer.handle).unwrap(), 0, &[2; 20]).unwrap();
    bench.worker.through_another_mount(|tree| {
        tree.rename((1, b"f"), (1, b"g"), false, false).unwrap();
        // By another host; that event is on its way.
        tree.unlink(1, b"g").unwrap();
        vec![changed(1, &["f", "g"], &[ino])]
    });
    bench.wait_for("the name is gone", || bench.lookup(1, "f").is_none());
    bench.wait_for("it is gone", || bench.fs.getattr(&Caller::own(), ino).unwrap().nlink == 0);
    let before = bench.worker.count("fsync");
    bench.fs.fsync(&Caller::own(), writer.handle, false).unwrap();
    assert_eq!(bench.worker.count("fsync"), before + 1);
    bench.fs.release(writer.handle);
}
