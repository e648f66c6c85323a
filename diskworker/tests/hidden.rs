//! Files that hide behind another one of their name: empty ones that may be written somewhere, and those with the same content. What is
//! done to the one that is shown is not done to them, and the other way round.

use std::fs::File;
use std::os::unix::fs::FileExt;

use delugefs_diskworker::engine::Opening;
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;

use crate::disk::{Disk, Posix, SESSION};

const ROOT: u64 = Ino::ROOT.0;

fn create(disk: &Disk, uid: u32, mode: u32) -> (u64, u64, File) {
    let q = pb::Create { dir: ROOT, name: "f".into(), mode, uid, gid: uid, ino: 0 };
    let (answer, opening) = disk.engine().create(SESSION, false, &q).unwrap();
    let Opening::File { handle, file } = opening else { panic!() };
    (answer.node.unwrap().ino, handle, file)
}

fn close(disk: &Disk, handle: u64, file: File) {
    drop(file);
    disk.engine().close(SESSION, handle, false).unwrap();
    disk.wait_until_sealed();
}

fn link(disk: &Disk, to: &str) {
    let ino = disk.engine().resolve(&[b"f"]).unwrap().ino;
    let q = pb::Link { ino, ino_dir: ROOT, dir: ROOT, name: to.to_owned().into() };
    disk.engine().link(SESSION, false, &q).unwrap();
}

/// They take each other's state until both have the same.
fn end(one: &Disk, two: &Disk) {
    for _ in 0..3 {
        one.exchange(two);
    }
    let commits = [one, two].map(|disk| disk.engine().committed().commit);
    assert_eq!(commits[0], commits[1]);
}

/// All files of the root: name, owner, mode and text.
fn shown(disk: &Disk) -> Vec<(String, u32, u32, String)> {
    let file = |(name, attr): (Vec<u8>, pb::Attr)| {
        let text = disk.engine().read(&[&name]).unwrap();
        (String::from_utf8(name).unwrap(), attr.uid, attr.mode & 0o7777, String::from_utf8(text).unwrap())
    };
    disk.engine().list(ROOT).unwrap().into_iter().map(file).collect()
}

fn value(disk: &Disk, name: &[u8]) -> Option<Vec<u8>> {
    let attr = disk.engine().resolve(&[name]).unwrap();
    let q = pb::GetXattr { ino: attr.ino, dir: attr.dir, name: "user.a".into() };
    disk.engine().get_xattr(&q).ok().map(|value| value.to_vec())
}

/// A file of user 1 with `user.a`, and behind it an empty one of user 2, made later on the other disk, where it may be open.
#[test]
fn a_change_of_attributes_is_one_of_the_file_that_is_shown() {
    for is_open in [false, true] {
        let (one, two) = (Disk::new(), Disk::new());
        Posix::create(&**one.engine(), &[b"f"], 0o600, b"text").unwrap();
        let ino = one.engine().resolve(&[b"f"]).unwrap().ino;
        let q = pb::SetXattr { ino, dir: ROOT, name: "user.a".into(), value: "1".into(), ..Default::default() };
        one.engine().set_xattr(SESSION, false, &q).unwrap();
        let (_, handle, file) = create(&two, 2, 0o606);
        let mut open = Some((handle, file));
        if !is_open && let Some((handle, file)) = open.take() {
            close(&two, handle, file);
        }
        one.take(&two.give());
        let chmod = pb::SetAttr { ino, dir: ROOT, mode: Some(0o640), ..Default::default() };
        let attr = one.engine().set_attr(SESSION, &chmod).unwrap().node.unwrap();
        assert_eq!((attr.uid, attr.mode & 0o7777), (1, 0o640));
        let q = pb::SetXattr { value: "2".into(), ..q };
        one.engine().set_xattr(SESSION, false, &q).unwrap();
        two.take(&one.give());
        if let Some((handle, file)) = open {
            file.write_all_at(b"written", 0).unwrap();
            close(&two, handle, file);
        }
        end(&one, &two);
        for disk in [&one, &two] {
            let shown = shown(disk);
            assert!(shown.contains(&("f".into(), 1, 0o640, "text".into())), "{shown:?}");
            assert_eq!(value(disk, b"f"), Some(b"2".to_vec()));
            let written = shown.iter().find(|(.., text)| text == "written");
            assert_eq!(written.map(|(_, uid, mode, _)| (*uid, *mode)), is_open.then_some((2, 0o606)), "{shown:?}");
        }
    }
}

/// `ln` of the file that is shown, while another disk writes the empty one behind it.
#[test]
fn what_is_written_behind_a_file_that_gets_another_name_stays() {
    for is_later in [false, true] {
        let (one, two) = (Disk::new(), Disk::new());
        let early = (!is_later).then(|| create(&two, 2, 0o606));
        Posix::create(&**one.engine(), &[b"f"], 0o600, b"text").unwrap();
        let (_, handle, file) = early.unwrap_or_else(|| create(&two, 2, 0o606));
        one.take(&two.give());
        link(&one, "g");
        assert_eq!(shown(&one).len(), 2);
        two.take(&one.give());
        file.write_all_at(b"written", 0).unwrap();
        close(&two, handle, file);
        end(&one, &two);
        for disk in [&one, &two] {
            let shown = shown(disk);
            let owners = |wanted: &str| -> Vec<u32> {
                shown.iter().filter(|(.., text)| text == wanted).map(|(_, uid, ..)| *uid).collect()
            };
            assert_eq!((owners("text"), owners("written")), (vec![1, 1], vec![2]), "{shown:?}");
        }
    }
}

/// The same where both have the same content, and the one behind is written anew.
#[test]
fn what_is_written_to_a_file_of_the_same_content_as_one_that_gets_another_name_stays() {
    for is_cached in [true, false] {
        let (one, mut two) = (Disk::new(), Disk::new());
        let (ino, handle, file) = create(&two, 2, 0o606);
        file.write_all_at(b"text", 0).unwrap();
        close(&two, handle, file);
        Posix::create(&**one.engine(), &[b"f"], 0o600, b"text").unwrap();
        if !is_cached {
            two.restart();
        }
        let q = pb::Open { ino, dir: ROOT, write: true, truncate: true };
        let Opening::File { handle, file } = two.engine().open(SESSION, &q).unwrap().1 else { panic!() };
        one.take(&two.give());
        assert_eq!(shown(&one).len(), 1);
        link(&one, "g");
        assert_eq!(shown(&one).len(), 2, "the same content is no conflict");
        two.take(&one.give());
        file.write_all_at(b"written", 0).unwrap();
        close(&two, handle, file);
        end(&one, &two);
        for disk in [&one, &two] {
            let mut texts: Vec<(u32, String)> = shown(disk).into_iter().map(|(_, uid, _, text)| (uid, text)).collect();
            texts.sort();
            assert_eq!(texts, [(1, "text".into()), (1, "text".into()), (2, "written".to_owned())]);
        }
    }
}
