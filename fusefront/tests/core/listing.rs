//! Directories that change while they are read.

use super::*;

/// Behind the last name of any directory that is held.
const END: u64 = i32::MAX as u64;

/// Up to so many entries from an offset on: their names, inodes and offsets. With `plus` with attributes, as they are in the inode.
fn page(bench: &Bench, handle: u64, offset: u64, most: usize, plus: bool) -> Vec<(String, u64, u64)> {
    let page = bench.fs.read_dir(&Caller::own(), handle, offset, plus).unwrap();
    let told = |entry: DirEntry<'_>| {
        assert!(entry.attr.is_none_or(|attr| (attr.ino, attr.nlink) == (entry.ino, 1)), "{entry:?}");
        (String::from_utf8(entry.name.to_vec()).unwrap(), entry.ino, entry.offset)
    };
    page.iter().take(most).map(told).collect()
}

#[test]
fn a_reader_of_a_directory_is_not_disturbed() {
    let bench = Bench::start();
    let dir = bench.mkdir(1, "d");
    for name in ["a", "c", "e", "g"] {
        bench.write_file(dir, name, b"");
    }
    let handle = bench.fs.opendir(dir, false);
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
    assert_eq!(page(4, 9), [("g".to_owned(), END)]);
    assert_eq!(names(page(END, 9)), Vec::<String>::new());
    assert_eq!(names(page(0, 9)), [".", "..", "a", "b", "c", "g"]);
}

#[test]
fn a_name_that_is_given_to_another_file_is_listed_as_that() {
    // Held in memory, and read in pages.
    for capacity in [CAPACITY_ENTRIES, 200] {
        let bench = Bench::with_capacity(capacity);
        let dir = bench.mkdir(1, "d");
        let name = |n: usize| format!("{n:03}");
        let inos: Vec<u64> = {
            let mut tree = bench.worker.shared.tree.lock();
            (0..100).map(|n| tree.make(dir, name(n).as_bytes(), 0o100_644, (0, 0), 0).unwrap()).collect()
        };
        bench.worker.push(&Event { seq: 10_000, all: true, ..Event::default() });
        bench.wait_for("it is found", || bench.lookup(dir, "000").is_some());
        let opened = bench.fs.open(&Caller::own(), inos[80], false, false).unwrap();
        let handle = bench.fs.opendir(dir, false);
        assert_eq!(page(&bench, handle, 0, 12, true).last().unwrap().0, "009");
        // As programs write files that others read.
        let (ours, open) = (bench.write_file(1, "ours", b"new"), bench.write_file(1, "open", b"new"));
        for (from, to) in [("ours", 50), ("open", 80)] {
            let (from, to) = (Bytes::from(from), Bytes::from(name(to)));
            bench.fs.rename(&Caller::own(), (1, &from), (dir, &to), RenameHow::default()).unwrap();
        }
        let theirs = {
            let mut theirs = 0;
            bench.worker.elsewhere(|tree| {
                tree.unlink(dir, b"060").unwrap();
                theirs = tree.make(dir, b"060", 0o040_755, (0, 0), 0).unwrap();
                tree.unlink(dir, b"070").unwrap();
                vec![changed(dir, &["060", "070"], &[])]
            });
            theirs
        };
        bench.wait_for("it is told", || bench.invalidations.try_iter().any(|it| it == Invalidation::Dir(dir)));
        let (mut listed, mut offset) = (Vec::new(), 12);
        loop {
            let more = bench.fs.read_dir(&Caller::own(), handle, offset, true).unwrap();
            let Some(last) = more.iter().last() else { break };
            offset = last.offset;
            listed.extend(more.iter().map(|entry| (String::from_utf8(entry.name.to_vec()).unwrap(), entry.ino)));
        }
        let mut expected: Vec<_> = (10..100).map(|n| (name(n), inos[n])).collect();
        for (n, ino) in [(50, ours), (60, theirs), (80, open)] {
            expected[n - 10].1 = ino;
        }
        expected.remove(70 - 10);
        assert_eq!(listed, expected, "capacity {capacity}");
        bench.fs.releasedir(handle);
        bench.fs.release(opened.handle);
    }
}

#[test]
fn who_has_read_it_all_is_told_nothing_more_by_any_listing() {
    let bench = Bench::start();
    let dir = bench.mkdir(1, "d");
    for name in ["b", "c", "d"] {
        bench.write_file(dir, name, b"");
    }
    for plus in [false, true] {
        let handle = bench.fs.opendir(dir, false);
        let offset = page(&bench, handle, 0, 99, plus).last().unwrap().2;
        // By others, so that the kernel has dropped the listing when it asks for what is behind it through a handle that has read none.
        let name = if plus { "a" } else { "aa" };
        bench.write_file(dir, name, b"");
        let other = bench.fs.opendir(dir, false);
        assert_eq!(page(&bench, other, offset, 99, plus), []);
        assert_eq!(page(&bench, other, 0, 99, plus)[2].0, name);
    }
    // The last ones are gone when they are given.
    let handle = bench.fs.opendir(dir, false);
    page(&bench, handle, 0, 3, true);
    bench.fs.unlink(&Caller::own(), dir, &Bytes::from("d")).unwrap();
    let last = page(&bench, handle, 3, 99, true).pop().unwrap();
    assert_eq!((last.0.as_str(), last.2), ("c", END));
}

#[test]
fn who_goes_back_into_a_listing_that_the_kernel_had_kept_finds_his_place() {
    let bench = Bench::start();
    let dir = bench.mkdir(1, "d");
    for name in ["b", "c", "d", "e", "f", "g", "h"] {
        bench.write_file(dir, name, b"");
    }
    assert!(bench.fs.is_read_at_once(dir));
    for (plus, is_removed) in [(false, false), (false, true), (true, false), (true, true)] {
        // It reads what the kernel has, and notes where it is behind "f": nothing of that is heard of here.
        let (handle, place) = (bench.fs.opendir(dir, true), 2 + 5);
        bench.worker.elsewhere(|tree| {
            match is_removed {
                true => drop(tree.unlink(dir, b"a").unwrap()),
                false => drop(tree.make(dir, b"a", 0o100_644, (0, 0), 0).unwrap()),
            }
            vec![changed(dir, &["a"], &[])]
        });
        bench.wait_for("it is told", || bench.invalidations.try_iter().any(|it| it == Invalidation::Dir(dir)));
        // With the name that was removed one more is before that place.
        let place = place + u64::from(is_removed);
        let rest: Vec<_> = page(&bench, handle, place, 99, plus).into_iter().map(|entry| entry.0).collect();
        assert_eq!(rest, ["g", "h"], "with attributes: {plus}, removed: {is_removed}");
        assert_eq!(page(&bench, handle, END, 99, plus), []);
        bench.fs.releasedir(handle);
        // As the program's next listing does.
        bench.names(dir);
    }
}

#[test]
fn the_kernel_keeps_what_is_read_with_one_call() {
    let bench = Bench::start();
    let dir = bench.mkdir(1, "d");
    assert!(bench.fs.is_read_at_once(dir), "it is empty");
    // 168 bytes each in an answer with attributes, and 320 for the dots.
    for n in 0..22 {
        bench.write_file(dir, Box::leak(format!("name {n:04}").into_boxed_str()), b"");
    }
    assert!(bench.fs.is_read_at_once(dir));
    bench.write_file(dir, "name 0022", b"");
    assert!(!bench.fs.is_read_at_once(dir));
    assert!(!bench.fs.is_read_at_once(77), "of which nothing is known");
    // Of long names the program's buffer takes less: 280 bytes each, and 48 for the dots.
    let dir = bench.mkdir(1, "long");
    let long = |n: usize| -> &'static str { Box::leak(format!("{n:0255}").into_boxed_str()) };
    for n in 0..7 {
        bench.write_file(dir, long(n), b"");
    }
    assert!(bench.fs.is_read_at_once(dir));
    bench.write_file(dir, long(7), b"");
    assert!(!bench.fs.is_read_at_once(dir));
}

/// Two handles were opened while it was small, and the kernel keeps what one of them reads when it has grown.
#[test]
fn a_listing_that_has_grown_before_it_was_read_is_read_to_its_end_by_all() {
    let old = |n: usize| format!("old {n}");
    let (new, is_left) = (|n: usize| format!("new {n:03}"), |name: &String| name != "new 000");
    for (plus, begins) in [(false, true), (true, true), (true, false)] {
        let bench = Bench::start();
        let dir = bench.mkdir(1, "d");
        let make = |names: Vec<String>| {
            bench.worker.elsewhere(|tree| {
                for name in &names {
                    tree.make(dir, name.as_bytes(), 0o100_644, (0, 0), 0).unwrap();
                }
                vec![Changed { dir, names: names.iter().map(|name| Bytes::from(name.clone())).collect(), inos: vec![] }]
            });
            bench.wait_for("it is told", || bench.invalidations.try_iter().any(|it| it == Invalidation::Dir(dir)));
        };
        make((0..10).map(old).collect());
        bench.names(dir);
        let [kept, first] = [(); 2].map(|()| bench.fs.opendir(dir, true));
        make((0..300).map(new).collect());
        // The kernel has a part of it, which it gives to the other handle; then that is dropped.
        let mut listed: Vec<String> = match begins {
            true => page(&bench, first, 0, 40, plus).into_iter().map(|entry| entry.0).collect(),
            false => [".", ".."].map(String::from).into_iter().chain((0..38).map(new)).collect(),
        };
        bench.fs.releasedir(first);
        if begins {
            bench.worker.elsewhere(|tree| {
                tree.unlink(dir, b"new 000").unwrap();
                vec![changed(dir, &["new 000"], &[])]
            });
            bench.wait_for("it is told", || bench.invalidations.try_iter().any(|it| it == Invalidation::Dir(dir)));
        }
        let mut offset = 40;
        loop {
            let more = page(&bench, kept, offset, 99, plus);
            let Some(last) = more.last() else { break };
            offset = last.2;
            listed.extend(more.into_iter().map(|entry| entry.0));
        }
        let expected = [".", ".."].map(String::from).into_iter().chain((0..300).map(new)).chain((0..10).map(old));
        let (listed, expected): (Vec<_>, Vec<_>) =
            (listed.into_iter().filter(is_left).collect(), expected.filter(is_left).collect());
        assert_eq!(listed, expected, "with attributes: {plus}, through the other handle: {begins}");
        bench.fs.releasedir(kept);
    }
}
