//! Files that are open while their names change, and sessions that end or begin again at bad moments.

use std::fs::File;
use std::os::unix::fs::FileExt;

use delugefs_diskworker::engine::Opening;
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;

use crate::disk::{Disk, Posix, SESSION};

/// Open a file for writing: its number, the handle and the descriptor.
fn open(disk: &Disk, path: &[&[u8]]) -> (u64, u64, File) {
    let attr = disk.engine().resolve(path).unwrap();
    let q = pb::Open { ino: attr.ino, dir: attr.dir, write: true, truncate: false };
    match disk.engine().open(SESSION, &q).unwrap().1 {
        Opening::File { handle, file } => (attr.ino, handle, file),
        Opening::Inline(_) => panic!("a writer gets a descriptor"),
    }
}

fn names(disk: &Disk) -> Vec<String> {
    let all = disk.engine().list(Ino::ROOT.0).unwrap();
    all.into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect()
}

#[test]
fn a_file_renamed_or_linked_while_it_is_written_is_no_conflict_with_itself() {
    let rename = |from: &'static [u8], to: &'static [u8]| pb::Rename {
        dir: Ino::ROOT.0,
        name: from.into(),
        dir2: Ino::ROOT.0,
        name2: to.into(),
        ..Default::default()
    };
    for size in [100, 20_000] {
        let disk = Disk::new();
        let engine = disk.engine();
        Posix::create(&**engine, &[b"a"], 0o644, &vec![1; size]).unwrap();
        let (ino, handle, file) = open(&disk, &[b"a"]);
        file.write_all_at(&[2; 10], 0).unwrap();
        engine.rename(SESSION, false, &rename(b"a", b"b")).unwrap();
        engine.rename(SESSION, false, &rename(b"b", b"c")).unwrap();
        let link = pb::Link { ino, ino_dir: Ino::ROOT.0, dir: Ino::ROOT.0, name: (&b"d"[..]).into() };
        engine.link(SESSION, false, &link).unwrap();
        drop(file);
        engine.close(SESSION, handle).unwrap();
        let mut expected = vec![1; size];
        expected[..10].fill(2);
        disk.wait_until_sealed();
        assert_eq!(names(&disk), ["c", "d"]);
        assert_eq!(engine.read(&[b"c"]).unwrap(), expected);
        assert_eq!(engine.read(&[b"d"]).unwrap(), expected);
    }
}

#[test]
fn opened_again_at_the_moment_it_was_sealed() {
    let disk = Disk::new();
    Posix::create(&**disk.engine(), &[b"a"], 0o644, &[0; 5000]).unwrap();
    let mut expected = vec![0; 5000];
    for n in 0..1500_u32 {
        let (_, handle, file) = open(&disk, &[b"a"]);
        let at = (n as usize * 4) % 5000;
        file.write_all_at(&n.to_le_bytes(), at as u64).unwrap();
        expected[at..at + 4].copy_from_slice(&n.to_le_bytes());
        drop(file);
        disk.engine().close(SESSION, handle).unwrap();
        if n % 3 == 0 {
            // The seal is finished, and its thread may or may not have left the table yet.
            while disk.engine().store.is_staged(Ino(disk.engine().resolve(&[b"a"]).unwrap().ino)).unwrap() {
                std::thread::yield_now();
            }
        }
    }
    disk.wait_until_sealed();
    assert!(disk.engine().read(&[b"a"]).unwrap() == expected, "a write was lost");
}
