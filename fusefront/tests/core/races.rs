//! Requests, answers and news that come in an order nobody asked for.

use super::*;

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

/// Whoever came with a path had it looked up before.
#[test]
fn of_a_file_that_was_replaced_nothing_is_told_by_its_name() {
    let bench = Bench::start();
    let caller = Caller::own();
    let name = Bytes::from("f");
    // Removed here, with and without being open, and elsewhere.
    for (is_open, is_ours) in [(false, true), (true, true), (false, false)] {
        let ino = bench.write_file(1, "f", b"old");
        bench.fs.setxattr(&caller, ino, &Bytes::from("user.a"), &name, (false, false)).unwrap();
        let opened = is_open.then(|| bench.fs.open(&caller, ino, false, false).unwrap());
        match is_ours {
            true => bench.fs.unlink(&caller, 1, &name).unwrap(),
            false => drop(bench.worker.shared.tree.lock().unlink(1, b"f")),
        }
        let cut = Change { size: Some(1), ..Change::default() };
        let answers = [
            bench.fs.setattr(&caller, ino, &cut).map(drop),
            bench.fs.getxattr(&caller, ino, b"user.a").map(drop),
            bench.fs.listxattr(&caller, ino).map(drop),
            bench.fs.link(&caller, ino, 1, &Bytes::from("other")).map(drop),
            bench.fs.readlink(&caller, ino).map(drop),
        ];
        let errnos = answers.map(|answer| answer.unwrap_err().errno());
        assert_eq!(errnos, [Errno::ESTALE; 5], "open: {is_open}, ours: {is_ours}");
        assert_eq!(bench.lookup(1, "f"), None, "open: {is_open}, ours: {is_ours}");
        opened.into_iter().for_each(|opened| bench.fs.release(opened.handle));
    }
}

/// As `ln -s new t; mv -T t current` does through another mount. The kernel looks the name up once more when it is told ESTALE.
#[test]
fn a_link_that_was_replaced_elsewhere_is_followed_and_linked_by_its_name() {
    let caller = Caller::own();
    for is_open in [false, true] {
        let follow: &dyn Fn(&Bench, u64) -> Result<(), Stop> = &|bench, ino| bench.fs.readlink(&caller, ino).map(drop);
        let link: &dyn Fn(&Bench, u64) -> Result<(), Stop> =
            &|bench, ino| bench.fs.link(&caller, ino, 1, &Bytes::from(format!("{ino}"))).map(drop);
        for (what, ask) in [("follow", follow), ("link", link)] {
            let bench = Bench::start();
            let made = |name, target| bench.make(1, name, Making::Symlink(Bytes::from_static(target))).unwrap().ino;
            let (ino, other) = match is_open {
                false => (made("current", b"old"), made("t", b"new")),
                true => (bench.write_file(1, "current", b"old"), bench.write_file(1, "t", b"new")),
            };
            let opened = is_open.then(|| bench.fs.open(&caller, ino, false, false).unwrap());
            assert_eq!(bench.names(1), ["current", "t"]);
            assert_eq!(bench.lookup(1, "current").unwrap().ino, ino);
            bench.worker.shared.tree.lock().rename((1, b"t"), (1, b"current"), false, false).unwrap();
            assert_eq!(ask(&bench, ino).map_err(|stop| stop.errno()), Err(Errno::ESTALE), "{what}, open: {is_open}");
            assert_eq!(bench.lookup(1, "current").unwrap().ino, other, "{what}, open: {is_open}");
            assert_eq!(ask(&bench, other), Ok(()), "{what}, open: {is_open}");
            // Of one that is open it is known by now that it has no name.
            assert_eq!(bench.fs.getattr(&caller, ino).is_ok(), is_open);
            assert_eq!(ask(&bench, ino).map_err(|stop| stop.errno()), Err(Errno::ESTALE), "{what}, open: {is_open}");
            opened.into_iter().for_each(|opened| bench.fs.release(opened.handle));
        }
    }
}

#[test]
fn emptying_a_file_changes_its_times_at_once() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", b"old");
    bench.wait_for("it is sealed", || bench.worker.open_handles() == 0);
    let before = bench.fs.getattr(&Caller::own(), ino).unwrap();
    let opened = bench.fs.open(&Caller::own(), ino, true, true).unwrap();
    let now = bench.fs.getattr(&Caller::own(), ino).unwrap();
    assert!(now.size == 0 && now.mtime > before.mtime && now.ctime > before.ctime, "{before:?} {now:?}");
    bench.fs.release(opened.handle);
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
            Event { seq: tree.seq, changed: vec![changed(0, &[], &[ino])], ..Event::default() }
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
    // Opened with 10 bytes, and since then it has 20 others.
    let replaced = || {
        let ino = bench.write_file(1, "f", &[1; 10]);
        let reader = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
        bench.worker.elsewhere(|tree| {
            tree.replace(ino, &[2; 20]);
            vec![changed(0, &[], &[ino])]
        });
        bench.wait_for("it is another", || bench.invalidations.try_iter().any(|it| it == Invalidation::Content(ino)));
        (ino, reader)
    };
    // Written elsewhere since: known by reading, by asking, or by looking it up.
    for how in ["read", "stat", "lookup"] {
        let (ino, reader) = replaced();
        match how {
            "read" => assert_eq!(bench.read_handle(reader.handle), [2; 20]),
            "stat" => assert_eq!(bench.fs.getattr(&Caller::own(), ino).unwrap().size, 20),
            _ => assert_eq!(bench.lookup(1, "f").unwrap().size, 20),
        }
        assert_eq!(remove(ino), (0, 20), "{how}");
        bench.fs.release(reader.handle);
    }
    // The same when everything is to be forgotten.
    let (ino, reader) = replaced();
    assert_eq!(bench.lookup(1, "f").unwrap().size, 20);
    let seq = {
        let mut tree = bench.worker.shared.tree.lock();
        tree.unlink(1, b"f").unwrap();
        tree.seq
    };
    bench.worker.push(&Event { seq, all: true, ..Event::default() });
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
fn what_was_opened_and_left_alone_is_closed_though_no_connection_can_be_had_at_first() {
    for write in [true, false] {
        let bench = Bench::start();
        let ino = bench.write_file(1, "f", &[7; 10_000]);
        let opened = bench.fs.open(&Caller::own(), ino, write, false).unwrap();
        let before = bench.worker.count("close");
        bench.worker.be_silent_to("mkdir");
        std::thread::scope(|scope| {
            scope.spawn(|| bench.mkdir(1, "d"));
            bench.wait_for("it is asked", || bench.worker.count("mkdir") == 1);
            bench.worker.shared.refuse.store(3, Ordering::SeqCst);
            bench.fs.release(opened.handle);
            bench.worker.answer();
        });
        assert_eq!((bench.worker.count("close"), bench.worker.open_handles()), (before + 1, 0), "written: {write}");
        assert!(!bench.worker.shared.tree.lock().node(ino).unwrap().staged);
    }
}

#[test]
fn what_is_appended_after_a_short_read_is_behind_what_others_have_appended() {
    use std::io::Write;
    let bench = Bench::start();
    let (attr, opened) = bench.fs.create(&Caller::own(), 1, &Bytes::from("f"), 0o644, true).unwrap();
    bench.fs.remember(&attr);
    let file = bench.fs.file(opened.handle).unwrap();
    assert_eq!(bench.fs.append(&file, 0, b"0123456789"), Ok((10, false)));
    // Another mount of the same worker has the same file.
    let staged = bench.worker.shared.tree.lock().staging(attr.ino);
    let mut other = std::fs::File::options().append(true).open(staged).unwrap();
    other.set_len(4).unwrap();
    other.write_all(b"xx").unwrap();
    // By that the kernel learns where the end is.
    assert_eq!(bench.read_handle(opened.handle), b"0123xx");
    other.write_all(b"yy").unwrap();
    drop(other);
    assert_eq!(bench.fs.append(&file, 6, b"end"), Ok((3, true)));
    assert_eq!(bench.read_handle(opened.handle), b"0123xxyyend");
    drop(file);
    bench.fs.release(opened.handle);
}

#[test]
fn a_reader_whose_handle_another_reader_has_closed_asks_again() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", &[7; 10_000]);
    bench.worker.shared.partial.store(1, Ordering::SeqCst);
    let opened = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
    assert!(bench.fs.is_partial(opened.handle));
    assert_eq!(bench.read_handle(opened.handle), [7; 10_000]);
    bench.fs.release(opened.handle);
    assert_eq!(bench.worker.open_handles(), 0);
}

#[test]
fn what_is_opened_for_a_reader_who_has_gone_is_closed() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", &[7; 10_000]);
    let opened = bench.fs.open(&Caller::own(), ino, false, false).unwrap();
    bench.worker.elsewhere(|tree| {
        tree.replace(ino, &[8; 10_000]);
        vec![changed(0, &[], &[ino])]
    });
    let file = bench.fs.file(opened.handle).unwrap();
    bench.wait_for("it is heard of", || !file.is_readable());
    bench.worker.withhold("open");
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| bench.fs.read(&Caller::own(), &file, 0, &mut [0; 10]));
        bench.wait_for("it is opened anew", || bench.worker.withheld() == 1);
        // The program was killed, and is answered.
        bench.fs.release(opened.handle);
        bench.worker.answer();
        let _nobody_waits = reading.join().unwrap();
    });
    assert_eq!(bench.worker.open_handles(), 0);
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
fn names_that_are_forgotten_here_can_still_be_told() {
    let mut bench = Bench::start();
    let caller = Caller::own();
    let ino = bench.write_file(1, "f", b"");
    let told = |bench: &Bench| {
        let mut names: Vec<_> = bench.fs.told_names().into_iter().map(|(dir, name)| (dir, name.to_vec())).collect();
        names.sort();
        names
    };
    let wait = |bench: &Bench, what: &Invalidation| {
        bench.wait_for("it is forgotten", || bench.invalidations.try_iter().any(|it| it == *what));
    };
    assert_eq!(bench.names(1), ["f"]);
    // More changes of a directory than are noted one by one: it is forgotten.
    let others: Vec<String> = (0..257).map(|n| format!("{n}")).collect();
    let names: Vec<&str> = others.iter().map(String::as_str).collect();
    bench.worker.elsewhere(|_| vec![changed(1, &names, &[])]);
    wait(&bench, &Invalidation::Dir(1));
    assert_eq!(bench.fs.cached_entries(), 0);
    let seq = bench.worker.shared.tree.lock().seq;
    bench.worker.push(&Event { seq: seq + 1, all: true, ..Event::default() });
    wait(&bench, &Invalidation::All);
    assert_eq!(told(&bench), [(1, b"f".to_vec())]);
    // Nothing of the directory is held, and the kernel knows the name of the one made in it.
    let dir = bench.mkdir(1, "d");
    bench.worker.crash();
    bench.worker.resume();
    wait(&bench, &Invalidation::All);
    assert_eq!(told(&bench), [(1, b"d".to_vec()), (1, b"f".to_vec())]);
    // What the kernel does with its names is followed.
    let attr = bench.fs.link(&caller, ino, dir, &Bytes::from("g")).unwrap();
    bench.fs.remember_as(&attr, dir, b"g");
    bench.fs.rename(&caller, (1, &Bytes::from("f")), (dir, &Bytes::from("h")), RenameHow::default()).unwrap();
    assert_eq!(told(&bench), [(1, b"d".to_vec()), (dir, b"g".to_vec()), (dir, b"h".to_vec())]);
    let exchange = RenameHow { exchange: true, no_replace: false };
    let other = bench.write_file(1, "e", b"");
    bench.fs.rename(&caller, (1, &Bytes::from("e")), (dir, &Bytes::from("h")), exchange).unwrap();
    bench.fs.forget(other, 1);
    assert_eq!(told(&bench), [(1, b"d".to_vec()), (1, b"e".to_vec()), (dir, b"g".to_vec())]);
    bench.fs.unlink(&caller, dir, &Bytes::from("g")).unwrap();
    assert_eq!(told(&bench), [(1, b"d".to_vec()), (1, b"e".to_vec())]);
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

/// The event is late. The kernel looks the name up once more when it is told ESTALE, and opens what it finds then.
#[test]
fn a_file_that_was_replaced_elsewhere_is_opened_by_its_name_at_once() {
    for write in [false, true] {
        let bench = Bench::start();
        let ino = bench.write_file(1, "f", b"first");
        let other = bench.write_file(1, "g", b"second");
        assert_eq!(bench.names(1), ["f", "g"]);
        assert_eq!(bench.lookup(1, "f").unwrap().ino, ino);
        bench.worker.shared.tree.lock().rename((1, b"g"), (1, b"f"), false, false).unwrap();
        let opened = bench.fs.open(&Caller::own(), ino, write, false);
        assert_eq!(opened.map(drop).map_err(|stop| stop.errno()), Err(Errno::ESTALE));
        assert_eq!(bench.lookup(1, "f").unwrap().ino, other);
        assert_eq!(bench.read_file(other), b"second");
    }
    // Removed: then there is nothing to be opened.
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", b"first");
    assert_eq!(bench.names(1), ["f"]);
    bench.worker.shared.tree.lock().unlink(1, b"f").unwrap();
    assert!(bench.fs.open(&Caller::own(), ino, false, false).is_err());
    assert!(bench.lookup(1, "f").is_none());
}
