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
        assert_eq!(bench.invalidations.try_iter().count(), 0);
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
