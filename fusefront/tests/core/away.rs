//! A worker that is away, comes back, hangs or loses an answer, and another one that stands in for it.

use delugefs_fusefront::os::ENOATTR;

use super::*;

/// Another disk serves from now on, on which this is otherwise.
fn move_to(bench: &mut Bench, disk: &str, change: impl Fn(&mut Tree)) {
    let link = bench.fs.worker.link();
    bench.worker.crash();
    disk.clone_into(&mut bench.worker.shared.disk.lock());
    change(&mut bench.worker.shared.tree.lock());
    bench.worker.resume();
    bench.wait_for("there is a new link", || bench.fs.worker.link().is_some_and(|now| Some(now) != link));
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
fn what_a_stand_in_has_nothing_of_is_not_shown_once_it_is_closed() {
    let mut bench = Bench::start();
    let ino = bench.write_file(1, "f", &[1; 10]);
    assert_eq!(bench.names(1), ["f"]);
    let writer = bench.fs.open(&Caller::own(), ino, true, false).unwrap();
    let file = bench.fs.file(writer.handle).unwrap();
    bench.fs.write(&file, 0, &[2; 20]).unwrap();
    let link = bench.fs.worker.link();
    bench.worker.crash();
    bench.worker.shared.tree.lock().lose_staged();
    bench.worker.resume();
    bench.wait_for("there is a new link", || bench.fs.worker.link().is_some_and(|now| Some(now) != link));
    bench.wait_for("the kernel is told", || bench.invalidations.try_iter().any(|what| what == Invalidation::All));
    assert_eq!(bench.worker.count("adopt"), 1);
    let size = || bench.fs.getattr(&Caller::own(), ino).unwrap().size;
    assert_eq!(size(), 20, "as long as it is open");
    bench.fs.write(&file, 20, &[2; 5]).unwrap();
    drop(file);
    bench.fs.release(writer.handle);
    assert!(bench.invalidations.try_iter().any(|what| what == Invalidation::Pages(ino)));
    assert_eq!(size(), 10);
    let reader = bench.fs.open(&Caller::own(), ino, false, false);
    assert_eq!(reader.map_err(|stop| stop.errno()).unwrap_err(), Errno::EIO);
}

#[test]
fn what_a_stand_in_has_not_heard_of_is_not_taken_for_removed() {
    let mut bench = Bench::start();
    let (attr, opened) = bench.fs.create(&Caller::own(), 1, &Bytes::from("new"), 0o644, true).unwrap();
    bench.fs.remember(&attr);
    let read_only = bench.write_file(1, "read", b"");
    let reader = bench.fs.open(&Caller::own(), read_only, false, false).unwrap();
    bench.fs.write(&bench.fs.file(opened.handle).unwrap(), 0, b"bytes").unwrap();
    let before = [attr.ino, read_only].map(|ino| bench.fs.getattr(&Caller::own(), ino).unwrap());
    let sync = |bench: &Bench| bench.fs.fsync(&Caller::own(), opened.handle, false).map_err(|stop| stop.errno());
    assert_eq!(sync(&bench), Ok(()));
    move_to(&mut bench, "01", |tree| {
        tree.lose_staged();
        for name in ["new", "read"] {
            tree.unlink(1, name.as_bytes()).unwrap();
        }
    });
    let mode = Change { mode: Some(0o600), ..Change::default() };
    let chmod = |bench: &Bench, ino| bench.fs.setattr(&Caller::own(), ino, &mode).map_err(|stop| stop.errno());
    for before in before {
        let now = bench.fs.getattr(&Caller::own(), before.ino).unwrap();
        assert_eq!((now.nlink, now.size, now.mode), (1, before.size, before.mode));
        let asked = bench.worker.count("getattr");
        assert_eq!(bench.fs.getattr(&Caller::own(), before.ino).unwrap().nlink, 1);
        assert_eq!(bench.worker.count("getattr"), asked, "it said so already");
        assert_eq!(chmod(&bench, before.ino), Err(Errno::EIO));
        assert_eq!(sync(&bench), Err(Errno::EIO), "it was not asked for what it has not heard of");
    }
    // It hears of both.
    bench.worker.elsewhere(|tree| {
        before.into_iter().for_each(|attr| tree.put_back(1, format!("{:x}", attr.ino).as_bytes(), attr, b"bytes"));
        vec![changed(1, &[], &before.map(|attr| attr.ino))]
    });
    for before in before {
        assert_eq!(chmod(&bench, before.ino).map(|attr| attr.mode & 0o7777), Ok(0o600));
    }
    // The disk that had them is back, and there they were removed: that is so.
    let asked = bench.worker.count("getattr");
    move_to(&mut bench, "00", |tree| {
        for before in before {
            tree.unlink(1, format!("{:x}", before.ino).as_bytes()).unwrap();
        }
    });
    for before in before {
        assert_eq!(bench.fs.getattr(&Caller::own(), before.ino).unwrap().nlink, 0);
        assert_eq!(chmod(&bench, before.ino).map(|attr| attr.mode & 0o7777), Ok(0o600));
    }
    assert!(bench.worker.count("getattr") > asked);
    [opened.handle, reader.handle].into_iter().for_each(|handle| bench.fs.release(handle));
}

/// What was written is on the disk that is away, with those who wrote it.
#[test]
fn a_sync_of_what_a_stand_in_knows_to_be_removed_does_not_call_it_lost() {
    let mut bench = Bench::start();
    let ino = bench.write_file(1, "f", b"text");
    let writer = bench.fs.open(&Caller::own(), ino, true, false).unwrap();
    bench.fs.write(&bench.fs.file(writer.handle).unwrap(), 0, b"more").unwrap();
    move_to(&mut bench, "01", Tree::lose_staged);
    bench.worker.elsewhere(|tree| {
        tree.unlink(1, b"f").unwrap();
        vec![changed(1, &["f"], &[ino])]
    });
    bench.wait_for("it is heard of", || bench.fs.getattr(&Caller::own(), ino).unwrap().nlink == 0);
    let Err(Stop::Failed(error)) = bench.fs.fsync(&Caller::own(), writer.handle, false) else { panic!() };
    assert!(error.errno == Errno::EIO && error.message.contains("shows when that disk is back"), "{error}");
    bench.fs.release(writer.handle);
}

#[test]
fn what_a_stand_in_has_heard_of_and_has_no_more_was_removed() {
    let mut bench = Bench::start();
    let inos = ["told", "untold"].map(|name| bench.write_file(1, name, b"text"));
    let readers = inos.map(|ino| bench.fs.open(&Caller::own(), ino, false, false).unwrap().handle);
    move_to(&mut bench, "01", |_| ());
    bench.worker.elsewhere(|tree| {
        tree.unlink(1, b"told").unwrap();
        vec![changed(1, &["told"], &[inos[0]])]
    });
    bench.worker.shared.tree.lock().unlink(1, b"untold").unwrap();
    let links = |bench: &Bench, ino| bench.fs.getattr(&Caller::own(), ino).unwrap().nlink;
    bench.wait_for("it is heard of", || links(&bench, inos[0]) == 0);
    let mode = Change { mode: Some(0o600), ..Change::default() };
    let chmod = |ino| bench.fs.setattr(&Caller::own(), ino, &mode).map(|attr| attr.nlink).map_err(|stop| stop.errno());
    assert_eq!(inos.map(chmod), [Ok(0), Err(Errno::EIO)]);
    readers.into_iter().for_each(|handle| bench.fs.release(handle));
}

#[test]
fn what_a_stand_in_has_not_heard_of_is_not_taken_for_having_been_removed_by_it() {
    type Change = fn(&Fs) -> Result<(), Stop>;
    let changes: [(&str, Change); 3] = [
        ("unlink", |fs| fs.unlink(&Caller::own(), 1, &Bytes::from("f"))),
        ("rmdir", |fs| fs.rmdir(&Caller::own(), 1, &Bytes::from("d"))),
        ("rename", |fs| {
            let (from, to) = (Bytes::from("f"), Bytes::from("g"));
            fs.rename(&Caller::own(), (1, &from), (1, &to), RenameHow::default())
        }),
    ];
    for (name, change) in changes {
        for (disk, errno) in [("00", (name == "rename").then_some(Errno::ENOENT)), ("01", Some(Errno::EIO))] {
            let mut bench = Bench::start();
            bench.write_file(1, "f", b"text");
            bench.mkdir(1, "d");
            bench.worker.be_silent_to(name);
            let fs = bench.fs.clone();
            let changing = std::thread::spawn(move || change(&fs));
            bench.wait_for("it is asked", || bench.worker.count(name) == 1);
            move_to(&mut bench, disk, |tree| {
                tree.unlink(1, b"f").unwrap();
                tree.rmdir(1, b"d").unwrap();
            });
            bench.worker.answer();
            let changed = changing.join().unwrap().map_err(|stop| stop.errno());
            assert_eq!(changed.err(), errno, "{name} on {disk}");
        }
    }
}

#[test]
fn a_stand_in_does_not_show_what_is_older_than_what_was_shown() {
    let mut bench = Bench::start();
    let names = ["as it was", "written", "open", "emptied", "removed"];
    let [same, written, open, emptied, removed] = names.map(|name| bench.write_file(1, name, &[1; 10]));
    let all = [same, written, open, emptied, removed];
    let reader = bench.fs.open(&Caller::own(), written, false, false).unwrap();
    let write = |ino, bytes: &[u8]| {
        let opened = bench.fs.open(&Caller::own(), ino, true, false).unwrap();
        bench.fs.write(&bench.fs.file(opened.handle).unwrap(), 0, bytes).unwrap();
        opened.handle
    };
    let before = all.map(|ino| bench.worker.shared.tree.lock().node(ino).unwrap().attr.written);
    [written, emptied, removed].iter().for_each(|ino| bench.fs.release(write(*ino, &[2; 20])));
    let writer = write(open, &[2; 20]);
    // One that was replaced, and one that was removed.
    let replaced = ["replaced", "gone"].map(|name| bench.write_file(1, name, &[1; 10]));
    let known = replaced.map(|ino| bench.worker.shared.tree.lock().attr(ino).unwrap());
    let newer = bench.write_file(1, "newer", &[2; 20]);
    let (old, new) = ((1, &Bytes::from("newer")), (1, &Bytes::from("replaced")));
    bench.fs.rename(&Caller::own(), old, new, RenameHow::default()).unwrap();
    bench.fs.unlink(&Caller::own(), 1, &Bytes::from("gone")).unwrap();
    replaced.iter().chain([&newer]).for_each(|ino| bench.fs.forget(*ino, 1));
    // It has none of that.
    move_to(&mut bench, "01", |tree| {
        tree.lose_staged();
        for (ino, before) in all.into_iter().zip(before).filter(|(ino, _)| *ino != same) {
            tree.replace(ino, &[1; 10]);
            tree.node(ino).unwrap().attr.written = before;
        }
        for (name, attr) in ["replaced", "gone"].into_iter().zip(known) {
            tree.put_back(1, name.as_bytes(), attr, &[1; 10]);
        }
    });
    let open_to = |bench: &Bench, ino, write, truncate| {
        bench.fs.open(&Caller::own(), ino, write, truncate).map(|opened| opened.handle).map_err(|stop| stop.errno())
    };
    let read = |bench: &Bench, handle| {
        let file = bench.fs.file(handle).unwrap();
        bench.fs.read(&Caller::own(), &file, 0, &mut [0; 100]).map_err(|stop| stop.errno())
    };
    let cut = |bench: &Bench, size| {
        let change = Change { size: Some(size), ..Change::default() };
        bench.fs.setattr(&Caller::own(), written, &change).map(|attr| attr.size).map_err(|stop| stop.errno())
    };
    assert_eq!(bench.read_file(same), [1; 10]);
    for (name, ino) in ["replaced", "gone"].into_iter().zip(replaced) {
        assert_eq!(bench.lookup(1, name).unwrap().ino, ino);
        assert_eq!(open_to(&bench, ino, false, false), Err(Errno::EIO), "{name}");
        // Somebody else has written to it, and so it lives on.
        bench.worker.elsewhere(|tree| {
            tree.replace(ino, &[5; 5]);
            vec![changed(0, &[], &[ino])]
        });
        bench.wait_for("it is heard of", || bench.fs.getattr(&Caller::own(), ino).unwrap().size == 5);
        assert_eq!(bench.read_file(ino), [5; 5]);
    }
    // As long as it is open here it is all there.
    assert_eq!(bench.read_file(open), [2; 20]);
    bench.fs.write(&bench.fs.file(writer).unwrap(), 20, &[2; 5]).unwrap();
    bench.fs.release(writer);
    for change in [Change::default(), Change { mode: Some(0o600), ..Change::default() }] {
        // What is changed besides does not make it newer.
        for ino in [written, open] {
            bench.fs.setattr(&Caller::own(), ino, &change).unwrap();
            for write in [false, true] {
                assert_eq!(open_to(&bench, ino, write, false), Err(Errno::EIO));
            }
        }
        assert_eq!((read(&bench, reader.handle), cut(&bench, 5)), (Err(Errno::EIO), Err(Errno::EIO)));
    }
    // It may be given another content, or removed.
    let handle = open_to(&bench, emptied, true, true).unwrap();
    bench.fs.write(&bench.fs.file(handle).unwrap(), 0, &[3; 3]).unwrap();
    bench.fs.release(handle);
    assert_eq!(bench.read_file(emptied), [3; 3]);
    bench.fs.unlink(&Caller::own(), 1, &Bytes::from("removed")).unwrap();
    // The disk that has it is back, and this one hears of it.
    let at = |bench: &Bench, ino| bench.fs.getattr(&Caller::own(), ino).unwrap().size;
    for ino in [written, open] {
        bench.worker.elsewhere(|tree| {
            tree.replace(ino, &[2; 30]);
            vec![changed(0, &[], &[ino])]
        });
        bench.wait_for("it is heard of", || at(&bench, ino) == 30);
        assert_eq!(bench.read_file(ino), [2; 30]);
    }
    assert_eq!((read(&bench, reader.handle), cut(&bench, 5)), (Ok(30), Ok(5)));
    bench.fs.release(reader.handle);
    // The same disk again says what it likes, as after a change of a host whose clock is behind.
    move_to(&mut bench, "01", |tree| {
        tree.replace(same, &[4; 4]);
        tree.node(same).unwrap().attr.written = 1;
    });
    assert_eq!(bench.read_file(same), [4; 4]);
    // One that is opened to be written when its disk is left is opened anew.
    let opening = bench.fs.begin_open(&Caller::own(), same, true, false).unwrap();
    move_to(&mut bench, "00", |_| ());
    assert_eq!(bench.fs.finish_open(opening).unwrap_err().errno(), Errno::ESTALE);
}

#[test]
fn the_worker_is_told_of_a_sync_that_failed() {
    let mut bench = Bench::start();
    let ino = bench.write_file(1, "f", b"text");
    let told = |bench: &Bench| std::mem::take(&mut *bench.worker.shared.told.lock());
    let sync =
        |bench: &Bench, caller: &Caller, handle| bench.fs.fsync(caller, handle, false).map_err(|stop| stop.errno());
    bench.worker.shared.unsyncable.store(true, Ordering::SeqCst);
    let opened = bench.fs.open(&Caller::own(), ino, true, false).unwrap();
    bench.worker.shared.unsyncable.store(false, Ordering::SeqCst);
    // Who must not wait begins again elsewhere; the error is not lost on the way.
    assert_eq!(sync(&bench, &Caller::new(0, 0, Patience::Cached), opened.handle), Err(Errno::EAGAIN));
    assert_eq!(told(&bench), Vec::<&str>::new());
    assert!(sync(&bench, &Caller::own(), opened.handle).is_err());
    assert_eq!(told(&bench), ["fsync"]);
    // Another handle has the same descriptor.
    let reader = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
    assert!(sync(&bench, &Caller::own(), reader.handle).is_err());
    assert_eq!(told(&bench), ["fsync"]);
    bench.fs.release(reader.handle);
    let link = bench.fs.worker.link();
    bench.worker.crash();
    bench.worker.resume();
    bench.wait_for("there is a new link", || bench.fs.worker.link().is_some_and(|now| Some(now) != link));
    assert_eq!(told(&bench), ["adopt"]);
    bench.fs.release(opened.handle);
    assert_eq!(told(&bench), ["close"]);
    // One that is opened anew has nothing to tell.
    let opened = bench.fs.open(&Caller::own(), ino, true, false).unwrap();
    assert_eq!(sync(&bench, &Caller::own(), opened.handle), Ok(()));
    bench.fs.release(opened.handle);
    assert_eq!(told(&bench), Vec::<&str>::new());
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
    begun_again_after(bench, |_| (), operation)
}

/// The same, while another host does something to the tree in between.
fn begun_again_after<T>(
    bench: &mut Bench,
    between: impl FnOnce(&mut Tree),
    operation: impl Fn(&Fs, &Caller) -> Result<T, Stop>,
) -> Result<T, Errno> {
    bench.worker.shared.swallow.store(1, Ordering::SeqCst);
    let mut caller = Caller::new(0, 0, Patience::Brief);
    assert!(matches!(operation(&bench.fs, &caller), Err(Stop::Later)), "it did not go out");
    let link = bench.fs.worker.link();
    bench.worker.crash();
    between(&mut bench.worker.shared.tree.lock());
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
fn a_removal_that_is_begun_again_takes_nothing_that_came_since() {
    let name = |name: &'static str| Bytes::from(name);
    for is_known in [true, false] {
        let mut bench = Bench::start();
        bench.write_file(1, "f", b"ours");
        bench.mkdir(1, "d");
        if !is_known {
            // The kernel knows the names still.
            bench.worker.push(&Event { seq: 1000, all: true, ..Event::default() });
            bench.wait_for("it is forgotten", || bench.fs.cached_entries() == 0);
        }
        let theirs = |tree: &mut Tree| assert!(tree.make(1, b"f", 0o100_644, (1, 1), 0).is_ok());
        begun_again_after(&mut bench, theirs, |fs, caller| fs.unlink(caller, 1, &name("f"))).unwrap();
        assert!(bench.lookup(1, "f").is_some(), "known: {is_known}");
        let theirs = |tree: &mut Tree| assert!(tree.make(1, b"d", 0o040_755, (1, 1), 0).is_ok());
        begun_again_after(&mut bench, theirs, |fs, caller| fs.rmdir(caller, 1, &name("d"))).unwrap();
        assert!(bench.lookup(1, "d").is_some(), "known: {is_known}");
        assert_eq!(bench.names(1), ["d", "f"]);
        // And when nobody came in between it is done once.
        begun_again(&mut bench, |fs, caller| fs.unlink(caller, 1, &name("f"))).unwrap();
        begun_again(&mut bench, |fs, caller| fs.rmdir(caller, 1, &name("d"))).unwrap();
        assert_eq!(bench.names(1), Vec::<String>::new());
    }
}

#[test]
fn a_removal_that_waited_takes_nothing_that_came_meanwhile() {
    type Operation<'a> = &'a dyn Fn(&Fs, &Caller) -> Result<(), Stop>;
    let (f, d, g) = (|| Bytes::from("f"), || Bytes::from("d"), || Bytes::from("g"));
    let operations: [(Operation<'_>, Result<(), Errno>, &[&str]); 3] = [
        (&|fs, caller| fs.unlink(caller, 1, &f()), Ok(()), &["d"]),
        (&|fs, caller| fs.rmdir(caller, 1, &d()), Ok(()), &["f"]),
        (&|fs, caller| fs.rename(caller, (1, &f()), (1, &g()), RenameHow::default()), Err(Errno::ENOENT), &["d", "g"]),
    ];
    for ((operation, late, alone), theirs) in operations.into_iter().flat_map(|it| [(it, true), (it, false)]) {
        let mut bench = Bench::start();
        bench.write_file(1, "f", b"ours");
        bench.mkdir(1, "d");
        assert_eq!(bench.names(1), ["d", "f"]);
        let link = bench.fs.worker.link();
        bench.worker.crash();
        bench.wait_for("the link is down", || bench.fs.worker.link().is_none());
        // Begun by a reading thread, which does not wait, and not sent.
        let mut caller = Caller::new(0, 0, Patience::Cached);
        assert_eq!(operation(&bench.fs, &caller), Err(Stop::Later));
        if theirs {
            let mut tree = bench.worker.shared.tree.lock();
            tree.unlink(1, b"f").unwrap();
            tree.rmdir(1, b"d").unwrap();
            tree.make(1, b"f", 0o100_644, (1, 1), 0).unwrap();
            tree.make(1, b"d", 0o040_755, (1, 1), 0).unwrap();
        }
        bench.worker.resume();
        bench.wait_for("there is a link", || bench.fs.worker.link().is_some_and(|now| Some(now) != link));
        caller.patience = Patience::Patient;
        let done = operation(&bench.fs, &caller).map_err(|stop| stop.errno());
        let (expected, names) = if theirs { (late, &["d", "f"][..]) } else { (Ok(()), alone) };
        assert_eq!(done, expected);
        assert_eq!(bench.names(1), names);
    }
}

/// As a lock is given back, and taken by somebody else.
#[test]
fn an_attribute_that_somebody_else_has_set_meanwhile_stays() {
    let name = Bytes::from("user.lock");
    for (between, left) in [(Some(&b"theirs"[..]), Some(&b"theirs"[..])), (None, None)] {
        let mut bench = Bench::start();
        let ino = bench.write_file(1, "f", b"");
        bench.fs.setxattr(&Caller::own(), ino, &name, &Bytes::from("ours"), (true, false)).unwrap();
        let others = |tree: &mut Tree| {
            let xattrs = &mut tree.node(ino).unwrap().xattrs;
            assert!(xattrs.is_empty(), "it was carried out");
            xattrs.extend(between.map(|value| (name.to_vec(), value.to_vec())));
        };
        let remove = |fs: &Fs, caller: &Caller| fs.removexattr(caller, ino, &name);
        assert_eq!(begun_again_after(&mut bench, others, remove), Ok(()));
        assert_eq!(bench.fs.getxattr(&Caller::own(), ino, &name).ok().as_deref(), left);
        let again = bench.fs.removexattr(&Caller::own(), ino, &name).map_err(|stop| stop.errno());
        assert_eq!(again, if left.is_some() { Ok(()) } else { Err(ENOATTR) });
    }
}

/// Of a file that has no name any more a worker that was restarted knows nothing.
#[test]
fn a_file_that_lost_its_names_elsewhere_is_synced_after_a_restart_as_far_as_it_can_be() {
    // Removed through another mount of the disk, and by another host; known before the restart, or found by the sync itself.
    for (is_here, is_known) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut bench = Bench::start();
        let (attr, opened) = bench.fs.create(&Caller::own(), 1, &Bytes::from("f"), 0o644, true).unwrap();
        bench.fs.remember(&attr);
        bench.fs.write(&bench.fs.file(opened.handle).unwrap(), 0, b"text").unwrap();
        let unlink = |tree: &mut Tree| {
            tree.unlink(1, b"f").unwrap();
            vec![changed(1, &["f"], &[attr.ino])]
        };
        match is_here {
            true => bench.worker.through_another_mount(unlink),
            false => bench.worker.elsewhere(unlink),
        }
        bench.wait_for("it is heard of", || bench.invalidations.try_iter().any(|it| it == Invalidation::Dir(1)));
        if is_known {
            assert_eq!(bench.fs.getattr(&Caller::own(), attr.ino).unwrap().nlink, 0);
        }
        let link = bench.fs.worker.link();
        bench.worker.crash();
        bench.worker.resume();
        bench.wait_for("there is a new link", || bench.fs.worker.link().is_some_and(|now| Some(now) != link));
        match bench.fs.fsync(&Caller::own(), opened.handle, false) {
            Ok(()) => assert!(is_here && is_known),
            Err(Stop::Failed(error)) => {
                assert!(!(is_here && is_known));
                assert!(
                    error.errno == Errno::EIO && error.message.contains("removed or replaced elsewhere"),
                    "{error}"
                );
            }
            Err(Stop::Later) => panic!("it was to wait"),
        }
        bench.fs.release(opened.handle);
    }
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
fn another_worker_serves_when_the_first_hangs() {
    let (first, second) = (FakeWorker::start(), FakeWorker::start());
    let folder = tempfile::tempdir().unwrap();
    for (worker, name) in [(&first, "a.sock"), (&second, "b.sock")] {
        std::os::unix::fs::symlink(&worker.socket, folder.path().join(name)).unwrap();
    }
    let (sender, _invalidations) = crossbeam_channel::unbounded();
    let worker = Worker::new(&folder.path().join("a.sock")).with_fallback(folder.path(), Duration::from_millis(600));
    let fs = Arc::new(Fs::new(worker, CAPACITY_ENTRIES, sender));
    let (events, _) = Events::start(fs.clone()).unwrap();
    let making = Making::Dir { mode: 0o755 };
    fs.make(&Caller::own(), 1, &Bytes::from("one"), &making).unwrap();
    let link = fs.worker.link();
    // A request that takes long does not make it one that hangs.
    first.be_silent_to("lookup");
    assert!(!fs.worker.hangs(|| true));
    first.answer();
    first.hang();
    // More than there are connections: the others wait for a greeting.
    let make = |n: usize| {
        let (fs, making) = (fs.clone(), Making::Dir { mode: 0o755 });
        std::thread::spawn(move || fs.make(&Caller::own(), 1, &Bytes::from(format!("two{n}")), &making).map(drop))
    };
    for made in (0..4).map(make).collect::<Vec<_>>() {
        made.join().unwrap().unwrap();
    }
    assert_eq!((first.count("mkdir"), second.count("mkdir")), (1, 4));
    assert_ne!(fs.worker.link(), link);
    events.stop();
    first.answer();
}

/// Both were founded under one name; what the other has are other files.
#[test]
fn a_worker_of_another_cluster_with_the_same_name_never_serves() {
    let (mut first, stranger, second) = (FakeWorker::start(), FakeWorker::start(), FakeWorker::start());
    *stranger.shared.cluster_id.lock() = "c2".into();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&stranger.socket, folder.path().join("a.sock")).unwrap();
    let (sender, _invalidations) = crossbeam_channel::unbounded();
    let worker = Worker::new(&first.socket).with_fallback(folder.path(), Duration::from_millis(100));
    let fs = Arc::new(Fs::new(worker, CAPACITY_ENTRIES, sender));
    let (events, _) = Events::start(fs.clone()).unwrap();
    let making = Making::Dir { mode: 0o755 };
    fs.make(&Caller::own(), 1, &Bytes::from("one"), &making).unwrap();
    let link = fs.worker.link().unwrap();
    assert!(!fs.worker.desert(link), "it hangs, and nobody of its cluster is there");
    first.crash();
    // Taken only once the stranger was looked at.
    std::os::unix::fs::symlink(&second.socket, folder.path().join("b.sock")).unwrap();
    fs.make(&Caller::own(), 1, &Bytes::from("two"), &making).unwrap();
    assert_eq!((stranger.count("mkdir"), second.count("mkdir")), (0, 1));
    events.stop();
}

#[test]
fn where_there_is_no_other_worker_one_that_hangs_is_waited_for() {
    let (worker, folder) = (FakeWorker::start(), tempfile::tempdir().unwrap());
    let own = folder.path().join("a.sock");
    std::os::unix::fs::symlink(&worker.socket, &own).unwrap();
    let (sender, _invalidations) = crossbeam_channel::unbounded();
    let way = Worker::new(&own).with_fallback(folder.path(), Duration::from_millis(60));
    let fs = Arc::new(Fs::new(way, CAPACITY_ENTRIES, sender));
    let (events, _) = Events::start(fs.clone()).unwrap();
    let link = fs.worker.link();
    worker.hang();
    let making = std::thread::spawn({
        let fs = fs.clone();
        move || fs.make(&Caller::own(), 1, &Bytes::from("d"), &Making::Dir { mode: 0o755 }).map(drop)
    });
    assert!(fs.worker.hangs(|| true) && link.is_some_and(|link| !fs.worker.desert(link)));
    worker.answer();
    making.join().unwrap().unwrap();
    assert_eq!(fs.worker.link(), link);
    events.stop();
}

#[test]
fn a_worker_that_hangs_does_not_keep_ours_from_coming_back() {
    let mut worker = FakeWorker::start();
    let folder = tempfile::tempdir().unwrap();
    let hanging = std::os::unix::net::UnixListener::bind(folder.path().join("a.sock")).unwrap();
    let (sender, _invalidations) = crossbeam_channel::unbounded();
    let after = Duration::from_millis(100);
    let fs =
        Arc::new(Fs::new(Worker::new(&worker.socket).with_fallback(folder.path(), after), CAPACITY_ENTRIES, sender));
    let (events, _) = Events::start(fs.clone()).unwrap();
    let making = Making::Dir { mode: 0o755 };
    worker.crash();
    // It is turned to, and says nothing.
    let _silent = hanging.accept().unwrap();
    worker.resume();
    fs.make(&Caller::own(), 1, &Bytes::from("d"), &making).unwrap();
    assert_eq!(worker.count("mkdir"), 1);
    events.stop();
}

#[test]
fn a_worker_that_hangs_while_it_is_given_the_open_files_is_asked_again() {
    let mut bench = Bench::start();
    let (attr, opened) = bench.fs.create(&Caller::own(), 1, &Bytes::from("f"), 0o644, true).unwrap();
    bench.fs.remember(&attr);
    bench.worker.crash();
    bench.worker.be_silent_to("adopt");
    bench.worker.resume();
    bench.wait_for("it is asked again", || bench.worker.count("adopt") > 1);
    bench.worker.answer();
    bench.mkdir(1, "d");
    let file = bench.fs.file(opened.handle).unwrap();
    bench.fs.write(&file, 0, b"text").unwrap();
    drop(file);
    bench.fs.release(opened.handle);
    // What the first try had opened goes with its connection.
    bench.wait_for("it is sealed", || !bench.worker.shared.tree.lock().nodes[&attr.ino].staged);
}

#[test]
fn what_takes_long_holds_up_neither_a_reconnect_nor_readers() {
    let mut bench = Bench::start();
    let (attr, opened) = bench.fs.create(&Caller::own(), 1, &Bytes::from("f"), 0o644, true).unwrap();
    bench.fs.remember(&attr);
    let file = bench.fs.file(opened.handle).unwrap();
    bench.fs.write(&file, 0, b"text").unwrap();
    let reader = bench.fs.open(&Caller::own(), attr.ino, false, false).unwrap();
    // As an fsync or a copy has it, whose program was killed meanwhile.
    let long = file.inode.in_use().unwrap();
    drop(file);
    let fs = bench.fs.clone();
    let closing = std::thread::spawn(move || {
        fs.release(opened.handle);
        fs.release(reader.handle);
    });
    bench.worker.crash();
    bench.worker.resume();
    bench.mkdir(1, "d");
    assert_eq!(bench.worker.count("adopt"), 1);
    // Nobody waits for the slot, so that nobody waits behind him.
    assert_eq!(bench.fs.getattr(&Caller::own(), attr.ino).unwrap().size, 4);
    assert_eq!(bench.read_handle(reader.handle), b"text");
    assert!(!closing.is_finished() && bench.worker.shared.tree.lock().nodes[&attr.ino].staged);
    long.to_change().set_len(2).unwrap();
    drop(long);
    closing.join().unwrap();
    assert_eq!(bench.worker.shared.tree.lock().content(attr.ino), b"te");
    assert_eq!(bench.fs.getattr(&Caller::own(), attr.ino).unwrap().size, 2);
}
