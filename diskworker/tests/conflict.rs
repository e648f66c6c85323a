//! Files that were changed in two places at once: both versions are there, and stay whatever is done to one of them.

use std::io::Read;
use std::os::unix::fs::FileExt;

use delugefs_diskworker::engine::{Alone, Opening};
use delugefs_proto::ids::{ContentId, Ino};
use delugefs_proto::local_pb as pb;

use crate::disk::{Disk, Posix, SESSION};
use crate::worker::wait_until;

/// In the catalog itself, and with a file of its own.
const SIZES: [usize; 2] = [10, 20_000];

fn text(what: u8, size: usize) -> Vec<u8> {
    vec![what; size]
}

/// All names of a disk's root with their contents, which lie there or on the other disk.
fn shown(disk: &Disk, other: &Disk) -> Vec<(String, Vec<u8>)> {
    disk.wait_until_sealed();
    let read = |name: &[u8]| {
        disk.engine().read(&[name]).unwrap_or_else(|_| {
            let at = disk.engine().where_is(name).unwrap();
            let content = ContentId(at.content.try_into().unwrap());
            let mut file = other.engine().store.open_content(content, at.size_bytes).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let list = disk.engine().list(Ino::ROOT.0).unwrap();
    list.into_iter().map(|(name, _)| (String::from_utf8(name.clone()).unwrap(), read(&name))).collect()
}

/// The first bytes of all files, in order.
fn contents(disk: &Disk, other: &Disk) -> Vec<u8> {
    let mut first: Vec<u8> = shown(disk, other).iter().map(|(_, text)| text[0]).collect();
    first.sort_unstable();
    first
}

fn exchange(one: &Disk, two: &Disk) {
    one.wait_until_sealed();
    two.wait_until_sealed();
    one.exchange(two);
    one.exchange(two); // what the first one made of it
}

/// Two disks that changed `f` at once, with what each wrote.
fn conflict(size: usize, linked: bool, created: bool) -> (Disk, Disk) {
    let (one, two) = (Disk::new(), Disk::new());
    if !created {
        Posix::create(&**one.engine(), &[b"f"], 0o644, &text(b'0', size)).unwrap();
        one.wait_until_sealed();
        if linked {
            let attr = one.engine().resolve(&[b"f"]).unwrap();
            let q = pb::Link { ino: attr.ino, ino_dir: attr.dir, dir: Ino::ROOT.0, name: "g".into() };
            one.engine().link(SESSION, false, &q).unwrap();
        }
        exchange(&one, &two);
    }
    for (disk, what) in [(&one, b'1'), (&two, b'2')] {
        match created {
            true => Posix::create(&**disk.engine(), &[b"f"], 0o644, &text(what, size)).unwrap(),
            false => disk.engine().write(&[b"f"], 0, &text(what, size), true).unwrap(),
        }
    }
    exchange(&one, &two);
    (one, two)
}

#[test]
fn writing_to_a_conflicted_file_keeps_the_other_version() {
    for size in SIZES {
        for (created, truncate) in [(false, false), (false, true), (true, false), (true, true)] {
            let (one, two) = conflict(size, false, created);
            assert_eq!([contents(&one, &two), contents(&two, &one)], [*b"12", *b"12"]);
            let before = shown(&one, &two);
            let copy = before.iter().find(|(name, _)| name != "f").unwrap();
            // The later version has the plain name, and lies on the disk that it was written on.
            two.engine().write(&[b"f"], 0, &text(b'3', size), truncate).unwrap();
            exchange(&one, &two);
            for (disk, other) in [(&one, &two), (&two, &one)] {
                let now = shown(disk, other);
                assert_eq!(now.len(), 2, "{created} {truncate} {size}: {now:?}");
                assert!(now.contains(copy) && now.contains(&("f".into(), text(b'3', size))));
            }
        }
    }
}

#[test]
fn truncating_a_conflicted_file_keeps_the_other_version() {
    let (one, two) = conflict(10, false, false);
    let attr = one.engine().resolve(&[b"f"]).unwrap();
    let q = pb::SetAttr { ino: attr.ino, dir: attr.dir, size: Some(1), ..Default::default() };
    one.engine().set_attr(SESSION, &q).unwrap();
    exchange(&one, &two);
    assert_eq!(contents(&one, &two), *b"12");
    assert_eq!(shown(&one, &two), shown(&two, &one));
}

#[test]
fn a_writer_who_began_before_the_conflict_leaves_both() {
    let (one, two) = (Disk::new(), Disk::new());
    Posix::create(&**one.engine(), &[b"f"], 0o644, b"0").unwrap();
    exchange(&one, &two);
    let attr = one.engine().resolve(&[b"f"]).unwrap();
    let open = pb::Open { ino: attr.ino, dir: attr.dir, write: true, truncate: true };
    let Opening::File { handle, file } = one.engine().open(SESSION, &open).unwrap().1 else { panic!() };
    two.engine().write(&[b"f"], 0, b"2", true).unwrap();
    two.wait_until_sealed();
    one.exchange(&two);
    let events = one.engine().begin_session(SESSION);
    file.write_all_at(b"1", 0).unwrap();
    drop(file);
    one.engine().close(SESSION, handle, false).unwrap();
    // The mount that wrote it is told of the name that this has made.
    let changed = events.next().unwrap().changed;
    let name = changed.iter().flat_map(|changed| &changed.names).next().unwrap();
    assert!(name.starts_with(b"f.conflict-"), "{changed:?}");
    exchange(&one, &two);
    assert_eq!([contents(&one, &two), contents(&two, &one)], [*b"12", *b"12"]);
}

/// A new file is empty for others until it is closed, and one that has content hides it.
#[test]
fn a_new_file_that_is_still_written_is_not_lost_to_another_of_that_name() {
    for size in SIZES {
        let (one, two) = (Disk::new(), Disk::new());
        let q = pb::Create { dir: Ino::ROOT.0, name: "f".into(), mode: 0o644, ..Default::default() };
        let (_, Opening::File { handle, file }) = one.engine().create(SESSION, false, &q).unwrap() else { panic!() };
        Posix::create(&**two.engine(), &[b"f"], 0o644, &text(b'2', size)).unwrap();
        two.wait_until_sealed();
        one.exchange(&two);
        file.write_all_at(&text(b'1', size), 0).unwrap();
        drop(file);
        one.engine().close(SESSION, handle, false).unwrap();
        exchange(&one, &two);
        assert_eq!([contents(&one, &two), contents(&two, &one)], [*b"12", *b"12"], "{size}");
    }
}

/// What a writer started from is known in memory only.
#[test]
fn a_writer_whose_worker_crashed_leaves_the_version_that_came_meanwhile() {
    for (created, size) in [(false, 10), (false, 20_000), (true, 10)] {
        let (mut one, two) = (Disk::new(), Disk::new());
        if !created {
            Posix::create(&**one.engine(), &[b"f"], 0o644, &text(b'0', size)).unwrap();
            exchange(&one, &two);
        }
        let engine = one.engine().clone();
        let (opening, dir) = match created {
            true => {
                let q = pb::Create { dir: Ino::ROOT.0, name: "f".into(), mode: 0o644, ..Default::default() };
                (engine.create(SESSION, false, &q).unwrap().1, Ino::ROOT.0)
            }
            false => {
                let attr = engine.resolve(&[b"f"]).unwrap();
                let open = pb::Open { ino: attr.ino, dir: attr.dir, write: true, truncate: true };
                (engine.open(SESSION, &open).unwrap().1, attr.dir)
            }
        };
        assert_eq!(dir, Ino::ROOT.0);
        let Opening::File { file, .. } = opening else { panic!() };
        file.write_all_at(&text(b'1', size), 0).unwrap();
        match created {
            true => Posix::create(&**two.engine(), &[b"f"], 0o644, &text(b'2', size)).unwrap(),
            false => two.engine().write(&[b"f"], 0, &text(b'2', size), true).unwrap(),
        }
        two.wait_until_sealed();
        one.exchange(&two);
        drop((file, engine));
        one.crash();
        exchange(&one, &two);
        assert_eq!([contents(&one, &two), contents(&two, &one)], [*b"12", *b"12"], "{created} {size}");
    }
}

/// What it replaces is what was there when the worker came back.
#[test]
fn a_writer_whose_worker_was_restarted_leaves_the_version_that_comes_later() {
    for size in SIZES {
        let (mut one, two) = (Disk::new(), Disk::new());
        Posix::create(&**one.engine(), &[b"f"], 0o644, &text(b'0', size)).unwrap();
        exchange(&one, &two);
        let attr = one.engine().resolve(&[b"f"]).unwrap();
        let open = pb::Open { ino: attr.ino, dir: attr.dir, write: true, truncate: false };
        let Opening::File { file, .. } = one.engine().open(SESSION, &open).unwrap().1 else { panic!() };
        file.write_all_at(b"1", 0).unwrap();
        // The program goes on, with the descriptor that it has.
        one.restart();
        two.engine().write(&[b"f"], 0, &text(b'2', size), true).unwrap();
        two.wait_until_sealed();
        one.take(&two.give());
        drop(file);
        exchange(&one, &two);
        assert_eq!([contents(&one, &two), contents(&two, &one)], [*b"12", *b"12"], "{size}");
    }
}

/// Nobody else has changed it: then there is nothing to keep beside what was written.
#[test]
fn a_writer_whose_worker_crashed_leaves_one_version() {
    let (mut one, two) = (Disk::new(), Disk::new());
    Posix::create(&**one.engine(), &[b"f"], 0o644, &text(b'0', 10)).unwrap();
    exchange(&one, &two);
    let attr = one.engine().resolve(&[b"f"]).unwrap();
    let open = pb::Open { ino: attr.ino, dir: attr.dir, write: true, truncate: true };
    let Opening::File { file, .. } = one.engine().open(SESSION, &open).unwrap().1 else { panic!() };
    file.write_all_at(&text(b'1', 10), 0).unwrap();
    let q = pb::SetAttr { ino: attr.ino, dir: attr.dir, mode: Some(0o600), ..Default::default() };
    two.engine().set_attr(SESSION, &q).unwrap();
    one.exchange(&two);
    drop(file);
    one.crash();
    exchange(&one, &two);
    assert_eq!([contents(&one, &two), contents(&two, &one)], [*b"1", *b"1"]);
}

#[test]
fn all_versions_of_a_file_with_several_names_are_shown_and_stay() {
    for size in SIZES {
        let (one, two) = conflict(size, true, false);
        for (disk, other) in [(&one, &two), (&two, &one)] {
            let now = shown(disk, other);
            assert_eq!(now.len(), 3, "{size}: {now:?}");
            assert_eq!(now.iter().filter(|(name, _)| name.contains(".conflict-")).count(), 1, "{now:?}");
            let text = |name: &str| now.iter().find(|(n, _)| n == name).unwrap().1.clone();
            assert_eq!(text("f"), text("g"));
        }
        assert_eq!(shown(&one, &two), shown(&two, &one));
        one.engine().write(&[b"g"], 0, &text(b'3', size), true).unwrap();
        exchange(&one, &two);
        assert_eq!(contents(&one, &two).len(), 3);
        assert!(contents(&one, &two).starts_with(b"1") || contents(&one, &two).starts_with(b"2"));
        assert!(contents(&one, &two).ends_with(b"33"));
        assert_eq!(shown(&one, &two), shown(&two, &one));
    }
}

/// Removed here, so that its content is in the trash, and renamed there, where its content is not.
#[test]
fn a_content_that_has_a_file_again_is_not_purged_from_the_trash() {
    let (one, two) = (Disk::new(), Disk::new());
    Posix::create(&**one.engine(), &[b"f"], 0o644, &text(b'1', 20_000)).unwrap();
    exchange(&one, &two);
    let q = pb::Unlink { dir: Ino::ROOT.0, name: "f".into(), ..Default::default() };
    one.engine().unlink(SESSION, false, &q).unwrap();
    let in_trash = || one.engine().store.held().next().is_none();
    while !in_trash() {
        one.engine().collect().unwrap();
    }
    let (dir, dir2) = (Ino::ROOT.0, Ino::ROOT.0);
    let q = pb::Rename { dir, name: "f".into(), dir2, name2: "g".into(), ..Default::default() };
    two.engine().rename(SESSION, false, &q).unwrap();
    exchange(&one, &two);
    one.engine().store.purge_trash().unwrap();
    assert_eq!(one.engine().read(&[b"g"]).unwrap(), text(b'1', 20_000));
}

/// The record of a content is there, and giving the file its name in `data/` fails: the file stays staged, and is written again.
/// Of two names each was removed on another disk. Nothing could take away what is left.
#[test]
fn a_file_whose_names_were_all_removed_on_several_disks_takes_no_room() {
    for is_down in [false, true] {
        let (one, mut two) = (Disk::new(), Disk::new());
        Posix::create(&**two.engine(), &[b"f"], 0o644, &text(b'0', 20_000)).unwrap();
        two.wait_until_sealed();
        let attr = two.engine().resolve(&[b"f"]).unwrap();
        let q = pb::Link { ino: attr.ino, ino_dir: attr.dir, dir: Ino::ROOT.0, name: "g".into() };
        two.engine().link(SESSION, false, &q).unwrap();
        exchange(&one, &two);
        for (disk, name) in [(&one, "f"), (&two, "g")] {
            let q = pb::Unlink { dir: Ino::ROOT.0, name: name.into(), ..Default::default() };
            disk.engine().unlink(SESSION, false, &q).unwrap();
        }
        match is_down {
            true => two.crash_with_join(&one.give()),
            false => exchange(&one, &two),
        }
        // What came before the second of them is not spared for having come.
        (0..2).for_each(|_| two.engine().collect().unwrap());
        assert_eq!(two.engine().store.usage().contents, 0, "after a crash: {is_down}");
        assert_eq!(two.engine().scrub(&Alone).unwrap().problems, Vec::<String>::new());
    }
}

/// It was written, and then one of its names removed, by a host that has not heard of the removal of the other.
#[test]
fn what_was_written_to_a_file_outlives_the_removal_of_its_last_name_elsewhere() {
    for (here, there) in [("f", "g"), ("g", "f")] {
        let (one, two) = (Disk::new(), Disk::new());
        Posix::create(&**two.engine(), &[b"f"], 0o644, b"0").unwrap();
        two.wait_until_sealed();
        let attr = two.engine().resolve(&[b"f"]).unwrap();
        let q = pb::Link { ino: attr.ino, ino_dir: attr.dir, dir: Ino::ROOT.0, name: "g".into() };
        two.engine().link(SESSION, false, &q).unwrap();
        exchange(&one, &two);
        two.engine().write(&[b"f"], 0, b"1", true).unwrap();
        two.wait_until_sealed();
        for (disk, name) in [(&one, there), (&two, here)] {
            let q = pb::Unlink { dir: Ino::ROOT.0, name: name.into(), ..Default::default() };
            disk.engine().unlink(SESSION, false, &q).unwrap();
        }
        exchange(&one, &two);
        for (disk, other) in [(&one, &two), (&two, &one)] {
            assert_eq!(shown(disk, other), [(there.to_owned(), b"1".to_vec())]);
        }
    }
}

#[test]
fn a_seal_that_failed_halfway_is_no_conflict_with_the_next_one() {
    let disk = Disk::new();
    let engine = disk.engine();
    let (first, second) = (text(b'1', 20_000), text(b'2', 20_000));
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &first);
    let in_the_way = engine.folder.path(&format!("data/{:02x}", hash.as_ref()[0]));
    std::fs::write(&in_the_way, "no directory").unwrap();
    Posix::create(&**engine, &[b"f"], 0o644, &first).unwrap();
    let content = ContentId(hash.as_ref().try_into().unwrap());
    wait_until("it is recorded", || engine.find_content(content).unwrap().is_some());
    engine.write(&[b"f"], 0, &second, true).unwrap();
    std::fs::remove_file(&in_the_way).unwrap();
    disk.wait_until_sealed();
    assert_eq!(shown(&disk, &disk), [("f".to_owned(), second)]);
}

/// Two directories that were renamed to one name at once: the copy can be removed, and another can take its place.
#[test]
fn a_directory_under_a_conflict_name_can_be_removed_and_replaced() {
    let names = |engine: &delugefs_diskworker::engine::Engine, dir| -> Vec<String> {
        let list = engine.list(dir).unwrap();
        list.into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect()
    };
    for replaced in [false, true] {
        let (one, two) = (Disk::new(), Disk::new());
        let mkdir = |name: &str| {
            let q = pb::Mkdir { dir: Ino::ROOT.0, name: name.to_owned().into(), mode: 0o755, uid: 1, gid: 2, token: 0 };
            one.engine().mkdir(SESSION, false, &q).unwrap();
        };
        ["a", "b", "c"].into_iter().for_each(mkdir);
        Posix::create(&**one.engine(), &[b"c", b"file"], 0o644, b"inside").unwrap();
        exchange(&one, &two);
        let rename = |disk: &Disk, name: &str, to: &str| {
            let (dir, dir2) = (Ino::ROOT.0, Ino::ROOT.0);
            let (name, name2) = (name.to_owned().into(), to.to_owned().into());
            disk.engine().rename(SESSION, false, &pb::Rename { dir, name, dir2, name2, ..Default::default() }).unwrap();
        };
        rename(&one, "a", "both");
        rename(&two, "b", "both");
        exchange(&one, &two);
        let before = names(one.engine(), Ino::ROOT.0);
        let copy = before.iter().find(|name| name.starts_with("both.conflict-")).expect("a conflict copy").clone();
        if replaced {
            rename(&one, "c", &copy);
        } else {
            let q = pb::Rmdir { dir: Ino::ROOT.0, name: copy.clone().into(), ..Default::default() };
            one.engine().rmdir(SESSION, false, &q).unwrap();
        }
        exchange(&one, &two);
        for disk in [&one, &two] {
            let expected = if replaced { vec!["both", &copy] } else { vec!["both", "c"] };
            assert_eq!(names(disk.engine(), Ino::ROOT.0), expected);
            let full: &[u8] = if replaced { copy.as_bytes() } else { b"c" };
            assert_eq!(disk.engine().read(&[full, b"file"]).unwrap(), b"inside");
            assert!(names(disk.engine(), disk.engine().resolve(&[b"both"]).unwrap().ino).is_empty());
            assert_eq!(disk.engine().scrub(&Alone).unwrap().problems, Vec::<String>::new());
        }
    }
}

/// Removed on one host while a file was put into it on another: nothing is left of the directory but that it is somebody's.
#[test]
fn what_was_put_into_a_removed_directory_is_its_owners_in_lost_and_found() {
    let (one, two) = (Disk::new(), Disk::new());
    let q = pb::Mkdir { dir: Ino::ROOT.0, name: "dir".into(), mode: 0o755, uid: 1, gid: 2, token: 0 };
    one.engine().mkdir(SESSION, false, &q).unwrap();
    exchange(&one, &two);
    let q = pb::Rmdir { dir: Ino::ROOT.0, name: "dir".into(), ..Default::default() };
    one.engine().rmdir(SESSION, false, &q).unwrap();
    Posix::create(&**two.engine(), &[b"dir", b"file"], 0o644, b"inside").unwrap();
    exchange(&one, &two);
    for disk in [&one, &two] {
        let lost = disk.engine().resolve(&[b"lost+found"]).unwrap();
        assert_eq!((lost.mode & 0o7777, lost.uid), (0o755, 0));
        let found = disk.engine().list(lost.ino).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].1.mode & 0o7777, found[0].1.uid, found[0].1.gid), (0o700, 1, 2));
        assert_eq!(disk.engine().read(&[b"lost+found", &found[0].0, b"file"]).unwrap(), b"inside");
    }
}

/// Two disks with a file `a/f`, which the first has moved to `b/g` since they met; and both directories.
fn moved() -> (Disk, Disk, [u64; 2]) {
    let (one, two) = (Disk::new(), Disk::new());
    for name in ["a", "b"] {
        let q = pb::Mkdir { dir: Ino::ROOT.0, name: name.into(), mode: 0o755, uid: 1, gid: 2, token: 0 };
        one.engine().mkdir(SESSION, false, &q).unwrap();
    }
    Posix::create(&**one.engine(), &[b"a", b"f"], 0o644, b"before").unwrap();
    exchange(&one, &two);
    let [dir, dir2] = [b"a", b"b"].map(|name| one.engine().resolve(&[name]).unwrap().ino);
    let q = pb::Rename { dir, name: "f".into(), dir2, name2: "g".into(), ..Default::default() };
    one.engine().rename(SESSION, false, &q).unwrap();
    (one, two, [dir, dir2])
}

/// Moved to another directory here, and written there: two files then, and one must not be shown for the other.
#[test]
fn what_was_moved_and_written_at_once_is_two_files_with_numbers_of_their_own() {
    let (one, two, _) = moved();
    Posix::write(&**two.engine(), &[b"a", b"f"], 0, b"written", true).unwrap();
    exchange(&one, &two);
    for disk in [&one, &two] {
        disk.engine().ledger().unwrap();
    }
    exchange(&one, &two);
    let commits = [&one, &two].map(|disk| disk.engine().committed().commit);
    assert_eq!(commits[0], commits[1]);
    for disk in [&one, &two] {
        let file = |path: &[&[u8]]| {
            let attr = disk.engine().resolve(path).unwrap();
            (attr.ino, (attr.mode & 0o777, attr.uid), disk.engine().read(path).unwrap())
        };
        let (moved, written) = (file(&[b"b", b"g"]), file(&[b"a", b"f"]));
        assert_ne!(moved.0, written.0, "one number at two places");
        assert_eq!((moved.2, written.2), (b"before".to_vec(), b"written".to_vec()));
        assert!(moved.1 == (0o644, 1) && written.1 == moved.1);
    }
}

/// The same while the one that gets another number is open for writing on another host.
#[test]
fn what_is_written_to_a_file_that_got_another_number_goes_to_that_file() {
    for is_removed in [false, true] {
        let (one, two, [dir, dir2]) = moved();
        let moved = one.engine().resolve(&[b"b", b"g"]).unwrap();
        let q = pb::Open { ino: moved.ino, dir: dir2, write: true, truncate: true };
        let (_, Opening::File { handle, file }) = one.engine().open(SESSION, &q).unwrap() else { panic!() };
        file.write_all_at(b"open", 0).unwrap();
        drop(file);
        Posix::write(&**two.engine(), &[b"a", b"f"], 0, b"written", true).unwrap();
        two.wait_until_sealed();
        one.exchange(&two);
        two.engine().ledger().unwrap();
        assert_ne!(two.engine().resolve(&[b"b", b"g"]).unwrap().ino, moved.ino);
        if is_removed {
            let q = pb::Unlink { dir, name: "f".into(), ..Default::default() };
            two.engine().unlink(SESSION, false, &q).unwrap();
        }
        one.exchange(&two);
        one.engine().close(SESSION, handle, false).unwrap();
        exchange(&one, &two);
        for disk in [&one, &two] {
            assert_eq!(disk.engine().read(&[b"b", b"g"]).unwrap(), b"open");
            let other = disk.engine().read(&[b"a", b"f"]).ok();
            assert_eq!(other, (!is_removed).then(|| b"written".to_vec()));
        }
    }
}

/// Renamed elsewhere while it is open here, with another file in its place that keeps its number there.
#[test]
fn what_is_written_to_a_file_that_was_renamed_is_not_shown_as_the_one_in_its_place() {
    for (size, is_later) in SIZES.into_iter().flat_map(|size| [(size, false), (size, true)]) {
        let (one, two) = (Disk::new(), Disk::new());
        Posix::create(&**one.engine(), &[b"report"], 0o644, &text(b'0', size)).unwrap();
        exchange(&one, &two);
        let attr = one.engine().resolve(&[b"report"]).unwrap();
        let open = |what: u8| {
            let q = pb::Open { ino: attr.ino, dir: attr.dir, write: true, truncate: true };
            let (_, Opening::File { handle, file }) = one.engine().open(SESSION, &q).unwrap() else { panic!() };
            file.write_all_at(&text(what, size), 0).unwrap();
            (handle, file)
        };
        // Recorded here, which keeps the version under its old name, and written on.
        let (first, file) = open(b'1');
        drop(file);
        one.engine().close(SESSION, first, false).unwrap();
        one.wait_until_sealed();
        if !is_later {
            one.engine().commit().unwrap();
        }
        let q = pb::Rename { dir: 1, name: "report".into(), dir2: 1, name2: "final".into(), ..Default::default() };
        two.engine().rename(SESSION, false, &q).unwrap();
        two.engine().write(&[b"final"], 0, &text(b'2', size), true).unwrap();
        let (handle, file) = open(b'3');
        two.wait_until_sealed();
        one.take(&two.give());
        let here = one.engine().resolve(&[b"final"]).unwrap();
        assert_eq!((here.ino, here.size), (attr.ino, size as u64));
        let q = pb::Open { ino: here.ino, dir: here.dir, write: false, truncate: false };
        match one.engine().open(SESSION, &q) {
            Ok((_, Opening::Inline(bytes))) => assert_eq!(bytes, text(b'2', size)),
            Ok((_, Opening::File { .. })) => panic!("another file's descriptor"),
            Err(_) => assert!(size > 4096, "its content is on the other disk"),
        }
        let q = pb::Open { write: true, ..q };
        assert!(one.engine().open(SESSION, &q).is_err(), "what is written would go to the other");
        drop(file);
        one.engine().close(SESSION, handle, false).unwrap();
        exchange(&one, &two);
        for (disk, other) in [(&one, &two), (&two, &one)] {
            let shown = shown(disk, other);
            let first = |name: &str| shown.iter().find(|(is, _)| is == name).map(|(_, text)| text[0]);
            assert_eq!((first("final"), first("report")), (Some(b'2'), Some(b'3')), "{size} bytes");
        }
    }
}

/// The file has another number than its staging file then.
#[test]
fn a_renumbered_file_that_is_removed_or_moved_here_leaves_the_other_alone() {
    for what in ["removed", "moved", "closed"] {
        let (one, two) = (Disk::new(), Disk::new());
        Posix::create(&**one.engine(), &[b"report"], 0o644, b"0").unwrap();
        let q = pb::Mkdir { dir: 1, name: "sub".into(), mode: 0o755, uid: 1, gid: 1, token: 0 };
        let sub = one.engine().mkdir(SESSION, false, &q).unwrap().node.unwrap().ino;
        exchange(&one, &two);
        one.engine().write(&[b"report"], 0, b"1", true).unwrap();
        one.wait_until_sealed();
        let attr = one.engine().resolve(&[b"report"]).unwrap();
        let q = pb::Open { ino: attr.ino, dir: attr.dir, write: true, truncate: true };
        let (_, Opening::File { handle, file }) = one.engine().open(SESSION, &q).unwrap() else { panic!() };
        file.write_all_at(b"3", 0).unwrap();
        let q = pb::Rename { dir: 1, name: "report".into(), dir2: 1, name2: "final".into(), ..Default::default() };
        two.engine().rename(SESSION, false, &q).unwrap();
        two.engine().write(&[b"final"], 0, b"2", true).unwrap();
        two.wait_until_sealed();
        one.take(&two.give());
        assert_eq!(one.engine().resolve(&[b"final"]).unwrap().ino, attr.ino);
        match what {
            "removed" => {
                let q = pb::Unlink { dir: 1, name: "report".into(), ..Default::default() };
                one.engine().unlink(SESSION, false, &q).map(drop).unwrap();
            }
            "moved" => {
                let (name, name2) = ("report".into(), "report".into());
                let q = pb::Rename { dir: 1, name, dir2: sub, name2, ..Default::default() };
                one.engine().rename(SESSION, false, &q).map(drop).unwrap();
            }
            _ => {}
        }
        drop(file);
        one.engine().close(SESSION, handle, false).unwrap();
        one.wait_until_sealed();
        let list = |dir: u64| {
            let names = one.engine().list(dir).unwrap().into_iter();
            names.map(|(name, _)| String::from_utf8(name).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(one.engine().read(&[b"final"]).unwrap(), b"2", "{what}");
        let (here, there): (&[&str], &[&str]) = match what {
            "removed" => (&["final", "sub"], &[]),
            "moved" => (&["final", "sub"], &["report"]),
            _ => (&["final", "report", "sub"], &[]),
        };
        assert_eq!(
            (list(1), list(sub)),
            (here.iter().map(|n| n.to_string()).collect(), there.iter().map(|n| n.to_string()).collect()),
            "{what}"
        );
        let report: Option<&[&[u8]]> = match what {
            "removed" => None,
            "moved" => Some(&[b"sub", b"report"]),
            _ => Some(&[b"report"]),
        };
        if let Some(path) = report {
            assert_eq!(one.engine().read(path).unwrap(), b"3", "{what}");
        }
    }
}
