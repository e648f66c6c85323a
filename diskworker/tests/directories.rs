//! Directories that were removed, moved or changed in several places at once: they and all in them are somewhere, once, and can be
//! listed, and the disks come to one state. `lost+found` is no exception: people may remove it and put it anywhere.

use std::collections::{BTreeSet, HashMap};

use delugefs_diskworker::engine::Alone;
use delugefs_proto::ids::{DiskId, Ino};
use delugefs_proto::local_pb as pb;
use delugefs_proto::worker_pb::Mark;

use crate::disk::{Disk, Posix, SESSION};

const ROOT: u64 = Ino::ROOT.0;

/// What a user does, with the number of the directory and a name in it.
trait Dirs {
    fn mkdir(&self, dir: u64, name: &str) -> u64;
    fn rmdir(&self, dir: u64, name: &str);
    fn mv(&self, from: (u64, &str), to: (u64, &str));
    fn number(&self, path: &[&str]) -> u64;
    fn file(&self, path: &[&str], text: &str);
    fn chmod(&self, ino: u64, mode: u32);
    /// All paths, with the texts of files.
    fn all(&self) -> BTreeSet<String>;
}

impl Dirs for Disk {
    fn mkdir(&self, dir: u64, name: &str) -> u64 {
        let q = pb::Mkdir { dir, name: name.to_owned().into(), mode: 0o755, uid: 1, gid: 2, token: 0 };
        self.engine().mkdir(SESSION, false, &q).unwrap().node.unwrap().ino
    }

    fn rmdir(&self, dir: u64, name: &str) {
        let q = pb::Rmdir { dir, name: name.to_owned().into(), ..Default::default() };
        self.engine().rmdir(SESSION, false, &q).unwrap();
    }

    fn mv(&self, from: (u64, &str), to: (u64, &str)) {
        let (name, name2) = (from.1.to_owned().into(), to.1.to_owned().into());
        let q = pb::Rename { dir: from.0, name, dir2: to.0, name2, ..Default::default() };
        self.engine().rename(SESSION, false, &q).unwrap();
    }

    fn number(&self, path: &[&str]) -> u64 {
        let path: Vec<&[u8]> = path.iter().map(|name| name.as_bytes()).collect();
        self.engine().resolve(&path).unwrap().ino
    }

    fn file(&self, path: &[&str], text: &str) {
        let path: Vec<&[u8]> = path.iter().map(|name| name.as_bytes()).collect();
        Posix::create(&**self.engine(), &path, 0o644, text.as_bytes()).unwrap();
    }

    fn chmod(&self, ino: u64, mode: u32) {
        let q = pb::SetAttr { ino, dir: 0, mode: Some(mode), ..Default::default() };
        self.engine().set_attr(SESSION, &q).unwrap();
    }

    fn all(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let mut dirs = vec![(ROOT, Vec::<Vec<u8>>::new())];
        let mut met = BTreeSet::from([ROOT]);
        while let Some((dir, path)) = dirs.pop() {
            for (name, attr) in self.engine().list(dir).unwrap() {
                let path: Vec<Vec<u8>> = path.iter().cloned().chain([name]).collect();
                let full = String::from_utf8(path.join(&b'/')).unwrap();
                if attr.mode & 0o170_000 == 0o040_000 {
                    assert!(met.insert(attr.ino), "{full} is a directory in two places");
                    all.insert(full + "/");
                    dirs.push((attr.ino, path));
                } else {
                    let path: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
                    let text = String::from_utf8(self.engine().read(&path).unwrap()).unwrap();
                    all.insert(format!("{full} = {text}"));
                }
            }
        }
        all
    }
}

/// Two disks that have the same.
fn two(make: impl FnOnce(&Disk)) -> (Disk, Disk) {
    let (one, two) = (Disk::new(), Disk::new());
    make(&one);
    one.exchange(&two);
    one.exchange(&two);
    (one, two)
}

/// They take each other's state as it is now.
fn meet(one: &Disk, two: &Disk) {
    let (of_one, of_two) = (one.give(), two.give());
    one.take(&of_two);
    two.take(&of_one);
}

/// After the disks have met they are one, which shows just this: its paths, each file with its text.
fn end(one: &Disk, two: &Disk, what: &str) -> BTreeSet<String> {
    for _ in 0..4 {
        meet(one, two);
    }
    assert_eq!(one.engine().committed().commit, two.engine().committed().commit, "{what}: they do not come to an end");
    let shown = one.all();
    assert_eq!(shown, two.all(), "{what}");
    for disk in [one, two] {
        assert_eq!(disk.engine().scrub(&Alone).unwrap().problems, Vec::<String>::new(), "{what}");
    }
    shown
}

/// Some path shown ends in this.
fn has(shown: &BTreeSet<String>, end: &str) -> bool {
    shown.iter().any(|path| path.ends_with(end))
}

#[test]
fn a_directory_that_was_changed_here_and_removed_there_twice_leaves_no_name_without_it() {
    for is_moved in [false, true] {
        let (one, two) = two(|one| {
            let p = one.mkdir(ROOT, "p");
            one.mkdir(p, "d");
        });
        let p = one.number(&["p"]);
        one.rmdir(p, "d");
        match is_moved {
            false => two.chmod(two.number(&["p", "d"]), 0o700),
            true => two.mv((p, "d"), (p, "e")),
        }
        meet(&one, &two);
        one.rmdir(p, if is_moved { "e" } else { "d" });
        let shown = end(&one, &two, "removed twice");
        for path in &shown {
            if let Some(name) =
                path.strip_prefix("p/").and_then(|name| name.strip_suffix('/')).filter(|n| !n.is_empty())
            {
                two.rmdir(p, name);
            }
        }
        two.rmdir(ROOT, "p");
        assert!(end(&one, &two, "all removed").is_empty());
    }
}

/// The number a path has, and its mode.
fn mode(disk: &Disk, path: &[&[u8]]) -> (u64, u32) {
    let attr = disk.engine().resolve(path).unwrap();
    (attr.ino, attr.mode & 0o777)
}

/// Both change one element of its header.
#[test]
fn a_directory_that_was_moved_here_and_changed_there_is_both() {
    for (is_moved_first, is_down) in [(false, false), (true, false), (false, true), (true, true)] {
        let (one, mut two) = two(|one| {
            let d = one.mkdir(ROOT, "d");
            one.mkdir(d, "inside");
            one.mkdir(ROOT, "p");
        });
        let [d, p] = ["d", "p"].map(|name| one.number(&[name]));
        if is_moved_first {
            one.mv((ROOT, "d"), (p, "e"));
        }
        two.chmod(d, 0o700);
        if !is_moved_first {
            one.mv((ROOT, "d"), (p, "e"));
        }
        if is_down {
            two.crash_with_join(&one.give());
            two.engine().ledger().unwrap();
        }
        let shown = end(&one, &two, "moved and changed");
        assert_eq!(shown.into_iter().collect::<Vec<_>>(), ["p/", "p/e/", "p/e/inside/"]);
        for disk in [&one, &two] {
            assert_eq!(mode(disk, &[b"p", b"e"]), (d, 0o700), "moved first: {is_moved_first}, down: {is_down}");
        }
    }
}

/// Two hosts move it, and a third, whose state comes last, changes its mode.
#[test]
fn a_directory_that_was_moved_twice_and_changed_is_in_one_place_with_its_mode() {
    let (one, two) = two(|one| {
        for name in ["d", "p", "q"] {
            one.mkdir(ROOT, name);
        }
    });
    let three = Disk::new();
    three.take(&one.give());
    let [d, p, q] = ["d", "p", "q"].map(|name| one.number(&[name]));
    three.chmod(d, 0o711);
    one.mv((ROOT, "d"), (p, "e"));
    two.mv((ROOT, "d"), (q, "f"));
    meet(&one, &two);
    one.take(&three.give());
    let shown = end(&one, &two, "moved twice");
    assert_eq!(shown.into_iter().collect::<Vec<_>>(), ["p/", "q/", "q/f/"]);
    assert_eq!(mode(&two, &[b"q", b"f"]), (d, 0o711));
}

#[test]
fn what_was_said_of_disks_on_several_hosts_at_once_counts_all() {
    let (one, two) = two(|_| {});
    let [a, b, c] = [1, 2, 3].map(|n| DiskId([n; 32]));
    one.engine().mark(a, Mark::Draining).unwrap();
    one.engine().mark(b, Mark::Forgotten).unwrap();
    two.engine().mark(c, Mark::Draining).unwrap();
    two.engine().mark(b, Mark::Draining).unwrap();
    two.chmod(ROOT, 0o711);
    end(&one, &two, "marked");
    for disk in [&one, &two] {
        let marks = disk.engine().marks().unwrap();
        let said = HashMap::from([(a, Mark::Draining), (b, Mark::Forgotten), (c, Mark::Draining)]);
        assert_eq!(*marks, said);
        assert_eq!(mode(disk, &[]).1, 0o711);
    }
}

/// With a second name it is kept on its own.
#[test]
fn a_file_that_got_a_name_here_and_another_mode_there_has_both() {
    for (is_linked, is_named_first, is_down) in (0..8).map(|n| (n & 1 != 0, n & 2 != 0, n & 4 != 0)) {
        let (one, mut two) = two(|one| one.file(&["f"], "text"));
        let ino = one.number(&["f"]);
        let name = || match is_linked {
            true => {
                let q = pb::Link { ino, ino_dir: ROOT, dir: ROOT, name: "g".into() };
                one.engine().link(SESSION, false, &q).map(drop).unwrap();
            }
            false => one.mv((ROOT, "f"), (ROOT, "g")),
        };
        if is_named_first {
            name();
        }
        two.chmod(ino, 0o600);
        if !is_named_first {
            name();
        }
        if is_down {
            two.crash_with_join(&one.give());
            two.engine().ledger().unwrap();
        }
        end(&one, &two, "named and changed");
        for disk in [&one, &two] {
            assert_eq!(mode(disk, &[b"g"]), (ino, 0o600), "linked: {is_linked}, down: {is_down}");
        }
        // What was changed later on the host that named it stays.
        one.chmod(ino, 0o640);
        end(&one, &two, "changed again");
        assert_eq!(mode(&two, &[b"g"]), (ino, 0o640));
    }
}

/// With a `lost+found` that has nothing in it, or one directory with a file.
fn with_lost_and_found(is_empty: bool) -> (Disk, Disk) {
    let (one, two) = two(|one| {
        one.mkdir(ROOT, "dir");
    });
    one.rmdir(ROOT, "dir");
    two.file(&["dir", "file"], "inside");
    end(&one, &two, "to have a lost+found");
    let found = one.engine().list(Ino::LOST_FOUND.0).unwrap();
    if is_empty {
        empty_lost_and_found(&one);
        end(&one, &two, "to have an empty one");
    } else {
        assert_eq!(found.len(), 1);
    }
    (one, two)
}

fn empty_lost_and_found(disk: &Disk) {
    for (name, attr) in disk.engine().list(Ino::LOST_FOUND.0).unwrap() {
        let q = pb::Unlink { dir: attr.ino, name: "file".into(), ..Default::default() };
        disk.engine().unlink(SESSION, false, &q).unwrap();
        disk.rmdir(Ino::LOST_FOUND.0, std::str::from_utf8(&name).unwrap());
    }
}

#[test]
fn lost_and_found_is_removed_while_something_is_put_there() {
    // By a mend, which the one that removed it has not heard of.
    let (one, two) = with_lost_and_found(true);
    one.mkdir(ROOT, "other");
    end(&one, &two, "another directory");
    one.rmdir(ROOT, "other");
    let before = one.give();
    one.rmdir(ROOT, "lost+found");
    two.file(&["other", "file"], "put in");
    two.take(&before);
    assert!(has(&two.all(), "/file = put in"));
    let shown = end(&one, &two, "removed while it was mended");
    assert!(has(&shown, "/file = put in") && shown.contains("lost+found/"), "{shown:?}");
    // By a person.
    let (one, two) = with_lost_and_found(false);
    empty_lost_and_found(&one);
    one.rmdir(ROOT, "lost+found");
    two.file(&["lost+found", "file"], "put there");
    let shown = end(&one, &two, "removed while a file was put there");
    assert!(shown.contains("lost+found/file = put there"), "{shown:?}");
}

#[test]
fn lost_and_found_is_moved_and_ends_up_in_no_circle() {
    // Into a directory that is moved into it.
    let (one, two) = with_lost_and_found(false);
    let a = one.mkdir(ROOT, "a");
    end(&one, &two, "a");
    one.mv((ROOT, "lost+found"), (a, "x"));
    two.mv((ROOT, "a"), (Ino::LOST_FOUND.0, "a"));
    let shown = end(&one, &two, "moved into each other");
    assert!(has(&shown, "/file = inside") && has(&shown, "a/"), "{shown:?}");
    // Into one of two that are moved into each other.
    let (one, two) = with_lost_and_found(false);
    let (a, b) = (one.mkdir(ROOT, "a"), one.mkdir(ROOT, "b"));
    for (dir, name) in [("a", a), ("b", b)] {
        assert_eq!(one.number(&[dir]), name);
        one.file(&[dir, "f"], dir);
    }
    one.mv((ROOT, "lost+found"), (a.min(b), "x"));
    end(&one, &two, "moved");
    one.mv((ROOT, "a"), (b, "a"));
    two.mv((ROOT, "b"), (a, "b"));
    let shown = end(&one, &two, "above it two are moved into each other");
    for text in ["/file = inside", "/f = a", "/f = b"] {
        assert!(has(&shown, text), "{text}: {shown:?}");
    }
    // Into one that is removed.
    let (one, two) = with_lost_and_found(false);
    let a = one.mkdir(ROOT, "a");
    end(&one, &two, "a");
    one.rmdir(ROOT, "a");
    two.mv((ROOT, "lost+found"), (a, "x"));
    let shown = end(&one, &two, "moved into what is removed");
    assert!(has(&shown, "/file = inside"), "{shown:?}");
}

#[test]
fn what_has_the_name_of_lost_and_found_stays() {
    let (one, two) = two(|one| {
        one.mkdir(ROOT, "dir");
        one.file(&["lost+found"], "a user's");
    });
    one.rmdir(ROOT, "dir");
    two.file(&["dir", "file"], "inside");
    let shown = end(&one, &two, "a file of that name");
    assert!(has(&shown, "/file = inside") && has(&shown, " = a user's"), "{shown:?}");
}

/// The one that is taken out of a circle need not be one that was moved.
#[test]
fn a_long_circle_is_opened() {
    let (one, two) = two(|one| {
        let (_, b) = (one.mkdir(ROOT, "a"), one.mkdir(ROOT, "b"));
        for n in 0..40 {
            one.mkdir(b, &n.to_string());
        }
    });
    let (a, b) = (one.number(&["a"]), one.number(&["b"]));
    let (between, attr) = one.engine().list(b).unwrap().into_iter().min_by_key(|(_, attr)| attr.ino).unwrap();
    assert!(attr.ino < a.min(b), "choose other names");
    one.mv((ROOT, "a"), (attr.ino, "a"));
    two.mv((ROOT, "b"), (a, "b"));
    one.file(&["b", std::str::from_utf8(&between).unwrap(), "a", "f"], "inside");
    meet(&one, &two);
    for disk in [&one, &two] {
        assert!(has(&disk.all(), "/b/"), "{:?}", disk.all());
    }
    let shown = end(&one, &two, "a circle of three");
    assert!(has(&shown, "/a/f = inside"), "{shown:?}");
}

/// A directory that somebody changed hangs in one that is removed.
#[test]
fn a_directory_that_was_changed_in_one_that_is_removed_is_shown_at_once() {
    let (one, two) = two(|one| {
        let p = one.mkdir(ROOT, "p");
        one.mkdir(p, "d");
    });
    let p = one.number(&["p"]);
    one.rmdir(p, "d");
    one.rmdir(ROOT, "p");
    let d = two.number(&["p", "d"]);
    two.chmod(d, 0o700);
    meet(&one, &two);
    for disk in [&one, &two] {
        assert!(has(&disk.all(), "/d/"), "{:?}", disk.all());
    }
    end(&one, &two, "changed in a removed one");
}

/// The joined state is on the disk, and of the mends nothing.
#[test]
fn what_a_join_left_is_mended_by_the_first_walk_after_a_power_loss() {
    let (one, mut two) = two(|one| {
        let p = one.mkdir(ROOT, "p");
        one.mkdir(p, "d");
        one.mkdir(ROOT, "q");
        one.mkdir(ROOT, "moved");
    });
    let [p, q, moved] = ["p", "q", "moved"].map(|name| one.number(&[name]));
    let places = |disk: &Disk| disk.engine().list(ROOT).unwrap().iter().filter(|(_, attr)| attr.ino == moved).count();
    // One that lost its place, one that has two, and a circle.
    one.rmdir(p, "d");
    two.file(&["p", "d", "file"], "inside");
    one.mv((ROOT, "moved"), (ROOT, "here"));
    two.mv((ROOT, "moved"), (ROOT, "there"));
    one.mv((ROOT, "p"), (q, "p"));
    two.mv((ROOT, "q"), (p, "q"));
    two.crash_with_join(&one.give());
    if places(&two) == 1 {
        eprintln!("the mends were committed before the crash");
    }
    two.engine().ledger().unwrap();
    let shown = two.all();
    assert!(has(&shown, "/file = inside") && has(&shown, "/q/") | has(&shown, "/p/"), "{shown:?}");
    assert_eq!(places(&two), 1);
    end(&one, &two, "mended after a power loss");
}
