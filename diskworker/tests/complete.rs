//! What other disks see of a file that gets another name just after it was written, or while it is.

use std::fs::File;
use std::os::unix::fs::FileExt;

use delugefs_diskworker::engine::{Engine, Opening};
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;

use crate::disk::{Disk, Posix, SESSION};

/// In the catalog itself; hashed; with a torrent and a close that is waited for a little longer.
const SIZES: [usize; 3] = [100, 20_000, 5 << 20];

fn create(engine: &Engine, name: &'static [u8], data: &[u8]) -> (u64, u64, File) {
    let q = pb::Create { dir: Ino::ROOT.0, name: name.into(), mode: 0o644, uid: 1, gid: 2, ino: 0 };
    let (answer, opening) = engine.create(SESSION, false, &q).unwrap();
    let Opening::File { handle, file } = opening else { panic!("a writer gets a descriptor") };
    file.write_all_at(data, 0).unwrap();
    (answer.node.unwrap().ino, handle, file)
}

fn rename(engine: &Engine, from: &'static [u8], to: &'static [u8], exchange: bool) -> FsResult<u64> {
    let (dir, dir2) = (Ino::ROOT.0, Ino::ROOT.0);
    let q = pb::Rename { dir, name: from.into(), dir2, name2: to.into(), exchange, ..Default::default() };
    engine.rename(SESSION, false, &q).map(|answer| answer.moved.unwrap().size)
}

/// What another disk knows, once it has our catalog: the length and, where the catalog has it, the content.
fn expect(disk: &Disk, other: &Disk, name: &[u8], data: &[u8]) {
    disk.exchange(other);
    let size = other.engine().resolve(&[name]).unwrap().size;
    let content = other.engine().read(&[name]);
    assert_eq!(size, data.len() as u64);
    assert!(content.is_err() || content.is_ok_and(|content| content == data));
}

fn names(disk: &Disk) -> Vec<String> {
    let all = disk.engine().list(Ino::ROOT.0).unwrap();
    all.into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect()
}

#[test]
fn a_file_that_replaces_another_is_complete_for_all() {
    for size in SIZES {
        let (disk, other) = (Disk::new(), Disk::new());
        let engine = disk.engine();
        Posix::create(&**engine, &[b"f"], 0o644, b"the old one").unwrap();
        let new = vec![7; size];
        let (_, handle, file) = create(engine, b"f.new", &new);
        drop(file);
        engine.close(SESSION, handle, false).unwrap();
        assert_eq!(rename(engine, b"f.new", b"f", false).unwrap(), size as u64);
        expect(&disk, &other, b"f", &new);
        // Its close comes while it is waited for, or after.
        let newer = vec![8; size + 1];
        let (_, handle, file) = create(engine, b"f.new", &newer);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                drop(file);
                engine.close(SESSION, handle, false).unwrap();
            });
            rename(engine, b"f.new", b"f", false).unwrap();
            expect(&disk, &other, b"f", &newer);
        });
        disk.wait_until_sealed();
        expect(&disk, &other, b"f", &newer);
        assert_eq!((names(&disk), engine.read(&[b"f"]).unwrap()), (vec!["f".to_owned()], newer));
    }
}

#[test]
fn of_a_file_that_is_written_still_there_is_what_was_written() {
    for size in SIZES {
        let (disk, other) = (Disk::new(), Disk::new());
        let engine = disk.engine();
        Posix::create(&**engine, &[b"f"], 0o644, b"the old one").unwrap();
        let mut data = vec![7; size];
        let (ino, handle, file) = create(engine, b"f.new", &data);
        rename(engine, b"f.new", b"f", false).unwrap();
        expect(&disk, &other, b"f", &data);
        // The writer goes on, also through another name; nothing of that is a conflict.
        file.write_all_at(&[9; 50], size as u64 - 10).unwrap();
        let link = pb::Link { ino, ino_dir: Ino::ROOT.0, dir: Ino::ROOT.0, name: (&b"g"[..]).into() };
        engine.link(SESSION, false, &link).unwrap();
        data.truncate(size - 10);
        data.extend([9; 50]);
        expect(&disk, &other, b"g", &data);
        file.set_len(size as u64 - 20).unwrap();
        data.truncate(size - 20);
        drop(file);
        engine.close(SESSION, handle, false).unwrap();
        disk.wait_until_sealed();
        expect(&disk, &other, b"f", &data);
        assert_eq!((names(&disk), engine.read(&[b"g"]).unwrap()), (vec!["f".to_owned(), "g".to_owned()], data));
    }
}

#[test]
fn both_of_an_exchange_and_a_new_name_are_complete_too() {
    for size in SIZES {
        let (disk, other) = (Disk::new(), Disk::new());
        let engine = disk.engine();
        let (one, two) = (vec![1; size], vec![2; size + 3]);
        let (_, first, file) = create(engine, b"a", &one);
        let (_, second, file2) = create(engine, b"b", &two);
        drop(file);
        engine.close(SESSION, first, false).unwrap();
        rename(engine, b"a", b"b", true).unwrap();
        expect(&disk, &other, b"b", &one);
        expect(&disk, &other, b"a", &two);
        drop(file2);
        engine.close(SESSION, second, false).unwrap();
        let (_, third, file) = create(engine, b"c.part", &one);
        drop(file);
        engine.close(SESSION, third, false).unwrap();
        rename(engine, b"c.part", b"c", false).unwrap();
        expect(&disk, &other, b"c", &one);
        disk.wait_until_sealed();
        assert_eq!(names(&disk), ["a", "b", "c"]);
    }
}

#[test]
fn what_others_changed_meanwhile_stays_a_conflict() {
    let (disk, other) = (Disk::new(), Disk::new());
    let engine = disk.engine();
    Posix::create(&**engine, &[b"f"], 0o644, b"first").unwrap();
    Posix::create(&**engine, &[b"g"], 0o644, b"in the way").unwrap();
    disk.exchange(&other);
    let attr = engine.resolve(&[b"f"]).unwrap();
    let open = pb::Open { ino: attr.ino, dir: attr.dir, write: true, truncate: true };
    let Opening::File { handle, file } = engine.open(SESSION, &open).unwrap().1 else { panic!() };
    file.write_all_at(b"ours", 0).unwrap();
    other.engine().write(&[b"f"], 0, b"theirs", true).unwrap();
    disk.exchange(&other);
    rename(engine, b"f", b"g", false).unwrap();
    file.write_all_at(b"OURS", 0).unwrap();
    drop(file);
    engine.close(SESSION, handle, false).unwrap();
    disk.wait_until_sealed();
    disk.exchange(&other);
    for disk in [&disk, &other] {
        let contents: Vec<Vec<u8>> =
            names(disk).iter().map(|name| disk.engine().read(&[name.as_bytes()]).unwrap()).collect();
        assert!(contents.contains(&b"OURS".to_vec()) && contents.contains(&b"theirs".to_vec()), "{:?}", names(disk));
        assert_eq!(contents.len(), 2, "{:?}", names(disk));
    }
}
