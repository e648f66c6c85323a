//! Directories that were removed, moved or changed in several places at once: they and all in them are somewhere, once, and can be
//! listed, and the disks come to one state. `lost+found` is no exception: people may remove it and put it anywhere.

use std::collections::BTreeSet;

use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;

use crate::disk::{Disk, Posix, SESSION};

const ROOT: u64 = Ino::ROOT.0;

/// What a user does, with the number of the directory and a name in it.
trait Dirs {
    fn mkdir(&self, dir: u64, name: &str) -> u64;
    fn rmdir(&self, dir: u64, name: &str);
    fn mv(&self, from: (u64, &str), to: (u64, &str));
    fn number(&self, path: &[&str]) -> u64;
    fn chmod(&self, ino: u64, mode: u32);
    /// All paths, with the texts of files.
    fn all(&self) -> BTreeSet<String>;
}

impl Dirs for Disk {
    fn mkdir(&self, dir: u64, name: &str) -> u64 {
        let q = pb::Mkdir { dir, name: name.to_owned().into(), mode: 0o755, uid: 1, gid: 2 };
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
        assert_eq!(disk.engine().scrub(&|_| false).unwrap().problems, Vec::<String>::new(), "{what}");
    }
    shown
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
