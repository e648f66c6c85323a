//! What the kernel may keep of files: the pages of the version it opens, and of no other.

use super::*;

impl Bench {
    fn open(&self, ino: u64, write: bool) -> Opened {
        self.fs.open(&Caller::own(), ino, write, false).unwrap()
    }
}

#[test]
fn pages_of_an_older_version_are_dropped_until_the_kernel_has_done_so() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", &[1; 5000]);
    let replace = |byte| bench.worker.shared.tree.lock().replace(ino, &[byte; 5000]);
    assert!(bench.open(ino, false).keep_pages, "as they were written");
    // Opened by several, whose answers are on their way.
    replace(2);
    let [first, second] = [(); 2].map(|()| bench.open(ino, false));
    assert!(!first.keep_pages && !second.keep_pages);
    assert_eq!(bench.read_handle(second.handle), [2; 5000]);
    assert!(bench.open(ino, false).keep_pages, "by now it has come with one of them");
    // What it comes with is of the version before.
    replace(3);
    assert!(!bench.open(ino, false).keep_pages);
    assert_eq!(bench.read_handle(first.handle), [3; 5000]);
    let third = bench.open(ino, false);
    assert!(!third.keep_pages);
    bench.fs.release(third.handle);
    assert!(bench.open(ino, false).keep_pages, "it was closed unread");
    // To be written, and opened by others meanwhile.
    replace(4);
    let writer = bench.open(ino, true);
    let reader = bench.open(ino, false);
    assert!(!writer.keep_pages && !reader.keep_pages);
    let file = bench.fs.file(writer.handle).unwrap();
    bench.fs.write(&file, 0, &[5; 10]).unwrap();
    drop(file);
    assert!(bench.open(ino, false).keep_pages);
}

/// The kernel is told the size of a file: which one, and whether that is all there is to say.
fn told(bench: &Bench, ino: u64) -> (u64, bool) {
    let (attr, is_all) = bench.fs.tell(bench.fs.getattr(&Caller::own(), ino).unwrap());
    (attr.size, is_all)
}

#[test]
fn the_kernel_never_has_the_pages_of_one_version_and_the_size_of_another() {
    let bench = Bench::start();
    bench.fs.hold_back();
    let ino = bench.write_file(1, "f", &[1; 100]);
    let opened = bench.open(ino, false);
    assert_eq!(bench.read_handle(opened.handle), [1; 100]);
    assert_eq!(told(&bench, ino), (100, true));
    // Larger, smaller, and of the same size.
    for (size, byte, before) in [(3000, 2, (100, 1)), (50, 3, (3000, 2)), (50, 4, (50, 3))] {
        bench.invalidations.try_iter().for_each(drop);
        bench.worker.elsewhere(|tree| {
            tree.replace(ino, &vec![byte; size as usize]);
            vec![changed(0, &[], &[ino])]
        });
        bench.wait_for("it is heard of", || bench.invalidations.try_iter().any(|it| it == Invalidation::Content(ino)));
        assert!(!bench.fs.pages_are_current(ino));
        let is_as_before = |why| {
            assert_eq!(told(&bench, ino), (before.0, size == before.0), "{why}");
            assert_eq!(bench.read_handle(opened.handle), vec![before.1; before.0 as usize], "{why}");
        };
        is_as_before("the kernel has not been told");
        // A kernel whose notification is held back; and somebody reads after the first one, whose pages have to go, too.
        let drops = std::cell::Cell::new(0);
        let drop_pages = || {
            drops.set(drops.get() + 1);
            if drops.get() == 1 {
                is_as_before("it is being told");
            } else {
                assert_eq!(told(&bench, ino), (before.0, size == before.0), "it was read meanwhile");
            }
            Ok(())
        };
        bench.fs.renew(ino, |content| if content { drop_pages() } else { Ok(()) }).unwrap();
        assert_eq!(drops.get(), 2);
        assert_eq!(told(&bench, ino), (size, true));
        assert_eq!(bench.read_handle(opened.handle), vec![byte; size as usize]);
        assert!(bench.fs.pages_are_current(ino));
        // The same news, come in by another way: a message would take away what is being asked for.
        bench.fs.renew(ino, |_| panic!("told twice")).unwrap();
    }
    // Who never stops reading does not keep what is new from anybody.
    bench.worker.shared.tree.lock().replace(ino, &[5; 70]);
    let reads = || {
        bench.read_handle(opened.handle);
        Ok(())
    };
    bench.fs.turn(ino, reads).unwrap();
    assert_eq!(bench.read_handle(opened.handle), [5; 70]);
    bench.fs.release(opened.handle);
}

#[test]
fn an_open_that_brings_another_version_waits_for_the_pages_of_the_one_before() {
    let bench = Bench::start();
    bench.fs.hold_back();
    let ino = bench.write_file(1, "f", &[1; 100]);
    let begin = |write| bench.fs.begin_open(&Caller::own(), ino, write, false).unwrap();
    let replace = |bytes: &[u8]| {
        let mut tree = bench.worker.shared.tree.lock();
        tree.replace(ino, bytes);
        tree.seq += 1;
    };
    let read = |opening| {
        let opened = bench.fs.finish_open(opening).unwrap();
        let bytes = bench.read_handle(opened.handle);
        bench.fs.release(opened.handle);
        bytes
    };
    let first = begin(false);
    assert_eq!(first.outdated, None, "it was written here");
    assert_eq!(read(first), [1; 100]);
    assert_eq!(told(&bench, ino), (100, true));
    for write in [false, true] {
        // No news of it but the answer.
        let size = 3000 + u64::from(write);
        let before = told(&bench, ino);
        replace(&vec![2; size as usize]);
        let opening = begin(write);
        assert_eq!(opening.outdated, Some(Outdated::Pages));
        assert_eq!(told(&bench, ino), (before.0, false), "the answer is not taken in yet");
        // Two have opened it, and the second finds that done.
        let other = begin(write);
        bench.fs.make_way(&opening, |_| Ok(())).unwrap();
        bench.fs.make_way(&other, |_| panic!("told twice")).unwrap();
        assert_eq!(told(&bench, ino), (size, true));
        assert_eq!(read(other), vec![2; size as usize]);
        assert_eq!(read(opening), vec![2; size as usize]);
        assert_eq!(told(&bench, ino), (size, true));
    }
    // A file of which the kernel has only attributes.
    bench.fs.turn(ino, || Ok(())).unwrap();
    told(&bench, ino);
    replace(&[3; 20]);
    let opening = begin(false);
    assert_eq!(opening.outdated, Some(Outdated::Attributes));
    bench.fs.make_way(&opening, |content| if content { panic!("it has none") } else { Ok(()) }).unwrap();
    assert_eq!(begin(false).outdated, None);
    assert_eq!(told(&bench, ino), (20, true));
    assert_eq!(read(opening), [3; 20]);
}

#[test]
fn what_is_open_and_was_not_read_is_of_the_version_whose_size_is_told() {
    let bench = Bench::start();
    bench.fs.hold_back();
    let ino = bench.write_file(1, "f", &[1; 100]);
    let replace = |bytes: &[u8]| {
        let mut tree = bench.worker.shared.tree.lock();
        tree.replace(ino, bytes);
        tree.seq += 1;
    };
    let open = || {
        let opening = bench.fs.begin_open(&Caller::own(), ino, false, false).unwrap();
        bench.fs.make_way(&opening, |_| Ok(())).unwrap();
        bench.fs.finish_open(opening).unwrap().handle
    };
    let learn = |size| {
        bench.worker.elsewhere(|_| vec![changed(0, &[], &[ino])]);
        bench.wait_for("it is heard of", || bench.fs.getattr(&Caller::own(), ino).unwrap().size == size);
    };
    // The kernel asks before it is told that there is something to ask for.
    replace(&[2; 3000]);
    let unread = open();
    assert_eq!(told(&bench, ino), (3000, true));
    replace(&[3; 70]);
    learn(70);
    assert_eq!(told(&bench, ino), (70, true));
    assert_eq!(bench.read_handle(unread), [3; 70]);
    bench.fs.release(unread);
    // One that is stale reads a version that came since another was opened, and then there is news of it.
    bench.fs.turn(ino, || Ok(())).unwrap();
    let stale = open();
    bench.fs.turn(ino, || Ok(())).unwrap();
    let unread = open();
    bench.fs.turn(ino, || Ok(())).unwrap();
    let fresh = open();
    replace(&[4; 80]);
    assert_eq!(bench.read_handle(stale), [4; 80]);
    learn(80);
    bench.fs.renew(ino, |_| Ok(())).unwrap();
    for handle in [unread, fresh, stale] {
        assert_eq!(bench.read_handle(handle), [4; 80]);
        bench.fs.release(handle);
    }
    // The kernel does not have the inode: what it was told of it may be on its way.
    bench.fs.turn(ino, || Ok(())).unwrap();
    told(&bench, ino);
    replace(&[5; 90]);
    learn(90);
    let gone = || Err(std::io::Error::from(std::io::ErrorKind::NotFound));
    assert!(bench.fs.renew(ino, |_| gone()).is_err());
    let opening = bench.fs.begin_open(&Caller::own(), ino, false, false).unwrap();
    assert_eq!(opening.outdated, Some(Outdated::Attributes));
    bench.fs.release(bench.fs.finish_open(opening).unwrap().handle);
}

#[test]
fn who_opens_an_older_version_at_the_same_time_reads_the_newer_one() {
    let bench = Bench::start();
    bench.fs.hold_back();
    let ino = bench.write_file(1, "f", &[1; 100]);
    let begin = || bench.fs.begin_open(&Caller::own(), ino, false, false).unwrap();
    let older = begin();
    {
        let mut tree = bench.worker.shared.tree.lock();
        tree.replace(ino, &[2; 3000]);
        tree.seq += 1;
    }
    let newer = begin();
    bench.fs.make_way(&newer, |_| Ok(())).unwrap();
    let newer = bench.fs.finish_open(newer).unwrap();
    assert_eq!(bench.read_handle(newer.handle), [2; 3000]);
    let older = bench.fs.finish_open(older).unwrap();
    assert!(!older.keep_pages);
    for opened in [older, newer] {
        assert_eq!(bench.read_handle(opened.handle), [2; 3000]);
        bench.fs.release(opened.handle);
    }
    assert!(bench.fs.pages_are_current(ino));
}

#[test]
fn the_kernel_keeps_no_pages_of_what_another_mount_is_writing() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", &[1; 5000]);
    let opens = [false, true, false].map(|is_written| {
        bench.worker.shared.written_elsewhere.store(is_written, Ordering::SeqCst);
        let opened = bench.open(ino, false);
        assert_eq!(bench.read_handle(opened.handle), [1; 5000]);
        bench.fs.release(opened.handle);
        opened.direct
    });
    assert_eq!(opens, [false, true, false]);
}

#[test]
fn who_could_not_open_it_has_had_nothing_dropped() {
    let bench = Bench::start();
    let ino = bench.write_file(1, "f", &[1; 5000]);
    bench.worker.shared.tree.lock().replace(ino, &[2; 5000]);
    bench.worker.shared.without_descriptors.store(true, Ordering::SeqCst);
    for write in [false, true] {
        let failed = bench.fs.open(&Caller::own(), ino, write, false).map(drop).map_err(|stop| stop.errno());
        assert_eq!(failed, Err(Errno::ENFILE));
    }
    bench.worker.shared.without_descriptors.store(false, Ordering::SeqCst);
    let opened = bench.open(ino, false);
    assert!(!opened.keep_pages);
    // He was killed before the answer was there.
    bench.fs.release_unheard(opened.handle);
    assert!(!bench.open(ino, false).keep_pages);
}

#[test]
fn a_version_that_came_while_the_file_was_open_has_none_of_the_writers_pages() {
    for (is_written, is_replaced) in [(false, false), (true, false), (false, true), (true, true)] {
        let bench = Bench::start();
        let ino = bench.write_file(1, "f", &[1; 5000]);
        let writer = bench.open(ino, true);
        if is_written {
            let file = bench.fs.file(writer.handle).unwrap();
            bench.fs.write(&file, 0, &[2; 10]).unwrap();
        }
        assert_eq!(bench.read_handle(writer.handle).len(), 5000);
        if is_replaced {
            // Nothing is heard of it but the answer: the event came while the pages were those of the staged file, or is ours.
            *bench.worker.shared.at_close.lock() = Some(Box::new(move |tree: &mut Tree| tree.replace(ino, &[3; 4999])));
        }
        assert_eq!(bench.invalidations.try_iter().collect::<Vec<_>>(), []);
        bench.fs.release(writer.handle);
        let drops = bench.invalidations.try_iter().any(|it| it == Invalidation::Content(ino));
        assert_eq!((drops, bench.fs.pages_are_current(ino)), (is_replaced, !is_replaced), "written: {is_written}");
        let reader = bench.open(ino, false);
        assert_eq!(reader.keep_pages, !is_replaced, "written: {is_written}");
        assert_eq!(bench.read_handle(reader.handle).len(), if is_replaced { 4999 } else { 5000 });
    }
}

#[test]
fn pages_of_a_worker_that_is_behind_are_not_those_of_the_one_before() {
    let mut bench = Bench::start();
    let ino = bench.write_file(1, "f", b"older");
    let version = |bench: &Bench| {
        let tree = bench.worker.shared.tree.lock();
        (tree.nodes[&ino].attr, tree.nodes[&ino].content.clone())
    };
    let set = |tree: &mut Tree, (attr, content)| {
        let node = tree.node(ino).unwrap();
        (node.attr, node.content) = (attr, content);
    };
    let older = version(&bench);
    let heard_of = |bench: &Bench| {
        bench.wait_for("it is heard of", || bench.invalidations.try_iter().any(|it| it == Invalidation::Content(ino)));
    };
    bench.worker.elsewhere(|tree| {
        tree.replace(ino, b"newer");
        vec![changed(0, &[], &[ino])]
    });
    heard_of(&bench);
    let newer = version(&bench);
    let opened = bench.open(ino, false);
    assert_eq!(bench.read_handle(opened.handle), b"newer");
    assert!(bench.fs.pages_are_current(ino));
    let link = bench.fs.worker.link();
    bench.worker.crash();
    set(&mut bench.worker.shared.tree.lock(), older);
    bench.worker.resume();
    bench.wait_for("there is a new link", || bench.fs.worker.link().is_some_and(|now| Some(now) != link));
    assert_eq!(bench.read_handle(opened.handle), b"older");
    bench.worker.elsewhere(|tree| {
        set(tree, newer);
        vec![changed(0, &[], &[ino])]
    });
    heard_of(&bench);
    assert!(!bench.fs.pages_are_current(ino));
    assert!(!bench.open(ino, false).keep_pages);
}
