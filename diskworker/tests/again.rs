//! Requests that are sent again, since their answers were lost, when somebody else has used the name meanwhile.

use delugefs_diskworker::engine::{Answer, Engine};
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;
use nix::errno::Errno;

use crate::disk::{Disk, Posix, SESSION};

const OTHER: u64 = SESSION + 1;

fn make(engine: &Engine, name: &str, text: &[u8]) -> u64 {
    Posix::create(engine, &[name.as_bytes()], 0o644, text).unwrap();
    ino(engine, name).unwrap()
}

fn ino(engine: &Engine, name: &str) -> Option<u64> {
    engine.resolve(&[name.as_bytes()]).ok().map(|attr| attr.ino)
}

fn names(engine: &Engine) -> Vec<String> {
    engine.list(Ino::ROOT.0).unwrap().into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect()
}

fn unlink(engine: &Engine, retry: bool, name: &str, expect_ino: u64) -> FsResult<Answer> {
    let q = pb::Unlink { dir: Ino::ROOT.0, name: name.to_owned().into(), expect_ino };
    engine.unlink(if retry { SESSION } else { OTHER }, retry, &q)
}

fn rename(engine: &Engine, retry: bool, name: &str, name2: &str, expect_ino: u64) -> FsResult<Answer> {
    let (name, name2) = (name.to_owned().into(), name2.to_owned().into());
    let q = pb::Rename { dir: Ino::ROOT.0, name, dir2: Ino::ROOT.0, name2, expect_ino, ..Default::default() };
    engine.rename(if retry { SESSION } else { OTHER }, retry, &q)
}

#[test]
fn a_removal_takes_nothing_that_came_after_it() {
    let disk = Disk::new();
    let engine = disk.engine();
    // Carried out, and somebody has made a file of that name since.
    let first = make(engine, "f", b"first");
    unlink(engine, false, "f", 0).unwrap();
    let second = make(engine, "f", b"second");
    let answer = unlink(engine, true, "f", first).unwrap();
    assert!(answer.node.is_none() && answer.dir.is_some());
    assert_eq!(engine.read(&[b"f"]).unwrap(), b"second");
    // Not carried out: now it is. Then it is done, also when it is asked for a third time.
    assert_eq!(unlink(engine, true, "f", second).unwrap().node.map(|node| node.ino), Some(second));
    assert!(unlink(engine, true, "f", second).unwrap().node.is_none());
    assert_eq!(names(engine), Vec::<String>::new());
    // Who does not know what it was gets what it always got.
    make(engine, "f", b"third");
    unlink(engine, true, "f", 0).unwrap();
    assert_eq!(names(engine), Vec::<String>::new());

    let rmdir = |retry, expect_ino| {
        engine.rmdir(SESSION, retry, &pb::Rmdir { dir: Ino::ROOT.0, name: (&b"d"[..]).into(), expect_ino })
    };
    let mkdir = || {
        let q = pb::Mkdir { dir: Ino::ROOT.0, name: (&b"d"[..]).into(), mode: 0o755, uid: 1, gid: 2, token: 0 };
        engine.mkdir(SESSION, false, &q).unwrap().node.unwrap().ino
    };
    let first = mkdir();
    rmdir(false, 0).unwrap();
    let second = mkdir();
    assert_ne!(first, second);
    assert!(rmdir(true, first).unwrap().node.is_none());
    assert_eq!(ino(engine, "d"), Some(second));
    assert!(rmdir(true, second).unwrap().node.is_some() && names(engine).is_empty());
}

/// As with a lock: of two who make it one has it.
#[test]
fn a_directory_that_somebody_else_has_made_is_not_ones_own() {
    let mut disk = Disk::new();
    let mkdir = |disk: &Disk, retry, token| {
        let q = pb::Mkdir { dir: Ino::ROOT.0, name: (&b"lock"[..]).into(), mode: 0o755, uid: 1, gid: 2, token };
        let made = disk.engine().mkdir(if retry { SESSION } else { OTHER }, retry, &q);
        made.map(|answer| answer.node.unwrap().ino).map_err(|error| error.errno)
    };
    let (mine, yours) = (0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321);
    let made = mkdir(&disk, false, mine);
    assert!(made.is_ok());
    for _ in 0..2 {
        assert_eq!(mkdir(&disk, true, mine), made);
        assert_eq!(mkdir(&disk, true, yours), Err(Errno::EEXIST));
        assert_eq!(mkdir(&disk, false, mine), Err(Errno::EEXIST));
        // The answer was lost because the worker died, and others may have used it since.
        disk.crash();
        Posix::create(disk.engine().as_ref(), &[b"lock", b"owner"], 0o644, b"me").unwrap();
        disk.wait_until_sealed();
        assert_eq!(mkdir(&disk, true, mine), made);
        disk.engine()
            .unlink(OTHER, false, &pb::Unlink { dir: made.unwrap(), name: (&b"owner"[..]).into(), expect_ino: 0 })
            .unwrap();
    }
    let q = pb::Rmdir { dir: Ino::ROOT.0, name: (&b"lock"[..]).into(), expect_ino: 0 };
    disk.engine().rmdir(OTHER, false, &q).unwrap();
    assert!(mkdir(&disk, true, yours).is_ok());
    assert_eq!(mkdir(&disk, true, mine), Err(Errno::EEXIST));
}

/// As with a lock, too: of two who make the attribute one has it, also when the worker dies before either is answered.
#[test]
fn an_attribute_that_somebody_else_has_made_is_not_ones_own() {
    let mut disk = Disk::new();
    let ino = make(disk.engine(), "f", b"");
    let set = |disk: &Disk, retry, value: &[u8], create, replace| {
        let (name, value) = ("user.lock".into(), value.to_vec().into());
        let q = pb::SetXattr { ino, dir: Ino::ROOT.0, name, value, create, replace };
        let set = disk.engine().set_xattr(if retry { SESSION } else { OTHER }, retry, &q);
        set.map(|answer| assert_eq!(answer.node.unwrap().ino, ino)).map_err(|error| error.errno)
    };
    let get = |disk: &Disk| {
        disk.engine().get_xattr(&pb::GetXattr { ino, dir: Ino::ROOT.0, name: "user.lock".into() }).unwrap()
    };
    // In the record of the file, and beside it.
    for size in [1, 5_000] {
        let (mine, yours) = (vec![1; size], vec![2; size]);
        assert_eq!(set(&disk, false, &mine, true, false), Ok(()));
        for _ in 0..2 {
            assert_eq!(set(&disk, true, &mine, true, false), Ok(()));
            assert_eq!(set(&disk, true, &yours, true, false), Err(Errno::EEXIST));
            assert_eq!(set(&disk, false, &mine, true, false), Err(Errno::EEXIST));
            assert_eq!(get(&disk), mine);
            disk.crash();
        }
        // What is not to be made anew is set, however often it is asked for.
        assert_eq!(set(&disk, true, &yours, false, true), Ok(()));
        assert_eq!(get(&disk), yours);
        let q = pb::RemoveXattr { ino, dir: Ino::ROOT.0, name: "user.lock".into(), value: None };
        disk.engine().remove_xattr(OTHER, false, &q).unwrap();
        assert_eq!(set(&disk, true, &mine, false, true), Err(delugefs_diskworker::os::ENOATTR));
        // Not carried out before.
        assert_eq!(set(&disk, true, &yours, true, false), Ok(()));
        assert_eq!(get(&disk), yours);
        disk.engine().remove_xattr(OTHER, false, &q).unwrap();
    }
}

/// The same of one that is removed, as a lock is given back.
#[test]
fn an_attribute_that_somebody_else_has_set_is_not_removed_by_who_did_so_before() {
    let mut disk = Disk::new();
    let ino = make(disk.engine(), "f", b"");
    let set = |disk: &Disk, value: &'static [u8]| {
        let (name, value) = ("user.lock".into(), value.into());
        let q = pb::SetXattr { ino, dir: Ino::ROOT.0, name, value, create: true, replace: false };
        disk.engine().set_xattr(OTHER, false, &q).unwrap();
    };
    let remove = |disk: &Disk, retry, value: Option<&'static [u8]>| {
        let q = pb::RemoveXattr { ino, dir: Ino::ROOT.0, name: "user.lock".into(), value: value.map(Into::into) };
        let removed = disk.engine().remove_xattr(SESSION, retry, &q);
        removed.map(|answer| assert_eq!(answer.node.unwrap().ino, ino)).map_err(|error| error.errno)
    };
    let get =
        |disk: &Disk| disk.engine().get_xattr(&pb::GetXattr { ino, dir: Ino::ROOT.0, name: "user.lock".into() }).ok();
    set(&disk, b"mine");
    assert_eq!(remove(&disk, false, Some(b"mine")), Ok(()));
    assert_eq!(remove(&disk, false, Some(b"mine")), Err(delugefs_diskworker::os::ENOATTR));
    set(&disk, b"yours");
    for _ in 0..2 {
        assert_eq!(remove(&disk, true, Some(b"mine")), Ok(()));
        assert_eq!(get(&disk).as_deref(), Some(&b"yours"[..]));
        disk.crash();
    }
    // Not carried out before; then it is, also when it is asked for once more.
    for _ in 0..2 {
        assert_eq!(remove(&disk, true, Some(b"yours")), Ok(()));
        assert_eq!(get(&disk), None);
    }
    // Who does not know what it was, or asks for the first time, removes what there is.
    for (retry, value) in [(true, None), (false, Some(&b"other"[..])), (false, None)] {
        set(&disk, b"any");
        assert_eq!(remove(&disk, retry, value), Ok(()));
        assert_eq!(get(&disk), None);
    }
}

#[test]
fn a_rename_moves_nothing_that_came_after_it() {
    let disk = Disk::new();
    let engine = disk.engine();
    let moved = make(engine, "from", b"moved");
    rename(engine, false, "from", "to", 0).unwrap();
    let later = make(engine, "from", b"later");
    let answer = rename(engine, true, "from", "to", moved).unwrap();
    assert_eq!(answer.moved.map(|node| node.ino), Some(moved));
    assert_eq!((ino(engine, "from"), ino(engine, "to")), (Some(later), Some(moved)));
    // What it moved has gone elsewhere: nothing is moved in its place, and nobody is told that it is there.
    rename(engine, false, "to", "elsewhere", 0).unwrap();
    assert_eq!(rename(engine, true, "from", "to", moved).err().unwrap().errno, Errno::ENOENT);
    assert_eq!(names(engine), ["elsewhere", "from"]);
    assert_eq!(engine.read(&[b"from"]).unwrap(), b"later");
    // Not carried out before.
    assert!(rename(engine, true, "from", "to", later).unwrap().moved.is_some());
    assert_eq!(names(engine), ["elsewhere", "to"]);
}

/// Another host brings a file of the same name before the request comes again: one of the two has a conflict name then.
#[test]
fn what_is_shown_as_a_conflict_by_then_is_meant_all_the_same() {
    for (is_ours_first, removes) in [(false, false), (false, true), (true, false), (true, true)] {
        let (here, there) = (Disk::new(), Disk::new());
        here.exchange(&there);
        let write = |disk: &Disk, text| make(disk.engine(), "f", text);
        let (ours, theirs) = match is_ours_first {
            true => (write(&here, b"ours"), write(&there, b"theirs")),
            false => {
                let theirs = write(&there, b"theirs");
                (write(&here, b"ours"), theirs)
            }
        };
        here.exchange(&there);
        let engine = here.engine();
        assert_eq!(names(engine).len(), 2);
        assert_eq!(ino(engine, "f"), Some(if is_ours_first { theirs } else { ours }));
        // Neither was carried out before, and both are done when they come a third time.
        for _ in 0..2 {
            match removes {
                true => drop(unlink(engine, true, "f", ours).unwrap()),
                false => drop(rename(engine, true, "f", "g", ours).unwrap()),
            }
            let text = |name: &String| engine.read(&[name.as_bytes()]).unwrap();
            let shown: Vec<_> = names(engine).iter().map(|name| (name == "g", text(name))).collect();
            let theirs = (false, b"theirs".to_vec());
            match removes {
                true => assert_eq!(shown, [theirs]),
                false => assert_eq!(shown, [theirs, (true, b"ours".to_vec())]),
            }
        }
    }
}
