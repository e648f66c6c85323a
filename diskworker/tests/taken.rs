//! Files that are written on one disk and removed or replaced on another that has not seen it: the edit is there in the end.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use delugefs_diskworker::engine::Opening;
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;
use nix::errno::Errno;

use crate::disk::{Disk, Posix, SESSION};

/// In the catalog itself, and with a file of its own.
pub const SIZES: [usize; 2] = [10, 20_000];

/// A file that is open for writing.
pub struct Writer {
    pub handle: u64,
    pub file: File,
}

impl Writer {
    fn of(opening: Opening) -> Self {
        let Opening::File { handle, file } = opening else { panic!("a writer gets a descriptor") };
        Self { handle, file }
    }

    pub fn open(disk: &Disk, path: &[&[u8]]) -> Self {
        let attr = disk.engine().resolve(path).unwrap();
        let dir = disk.engine().parent(path).unwrap();
        let q = pb::Open { ino: attr.ino, dir, write: true, truncate: false };
        Self::of(disk.engine().open(SESSION, &q).unwrap().1)
    }

    /// Closed, and not sealed as long as the descriptor that comes back lives.
    fn close_unsealed(self, disk: &Disk) -> File {
        disk.engine().close(SESSION, self.handle, false).unwrap();
        self.file
    }

    pub fn close(self, disk: &Disk, unwritten: bool) {
        drop(self.file);
        disk.engine().close(SESSION, self.handle, unwritten).unwrap();
    }
}

pub fn text(what: u8, size: usize) -> Vec<u8> {
    vec![what; size]
}

pub fn unlink(disk: &Disk, dir: u64, name: &str) -> FsResult<()> {
    let q = pb::Unlink { dir, name: name.to_owned().into(), ..Default::default() };
    disk.engine().unlink(SESSION, false, &q).map(drop)
}

fn mkdir(disk: &Disk, name: &str) -> u64 {
    let q = pb::Mkdir { dir: 1, name: name.to_owned().into(), mode: 0o755, uid: 1, gid: 1, token: 0 };
    disk.engine().mkdir(SESSION, false, &q).unwrap().node.unwrap().ino
}

/// What was written in this moment could have the time of what follows.
pub fn set_mtime(disk: &Disk, path: &[&[u8]], mtime_ns: i64) {
    let attr = disk.engine().resolve(path).unwrap();
    let q = pb::SetAttr { ino: attr.ino, dir: attr.dir, mtime: Some(mtime_ns), ..Default::default() };
    disk.engine().set_attr(SESSION, &q).unwrap();
}

/// What is recorded in the tick of its last write might have been written since.
fn wait_for_a_later_tick() {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(20) {
        std::thread::yield_now();
    }
}

/// The first bytes of all files below a directory that lie here, with their names.
pub fn shown(disk: &Disk, dir: u64) -> Vec<(String, u8)> {
    let mut shown = Vec::new();
    for (name, attr) in disk.engine().list(dir).unwrap() {
        if attr.mode & 0o170_000 == 0o040_000 {
            shown.extend(self::shown(disk, attr.ino));
            continue;
        }
        let q = pb::Open { ino: attr.ino, dir, write: false, truncate: false };
        let first = match disk.engine().open(SESSION, &q).unwrap().1 {
            Opening::Inline(bytes) => bytes[0],
            Opening::File { file, .. } => {
                let mut first = [0];
                file.read_exact_at(&mut first, 0).unwrap();
                first[0]
            }
        };
        shown.push((String::from_utf8(name).unwrap(), first));
    }
    shown
}

/// Two disks with the file `dir/f`, and the directory's number.
pub fn pair(size: usize) -> (Disk, Disk, u64) {
    let (one, two) = (Disk::new(), Disk::new());
    let dir = mkdir(&one, "dir");
    Posix::create(&**one.engine(), &[b"dir", b"f"], 0o640, &text(b'0', size)).unwrap();
    one.wait_until_sealed();
    set_mtime(&one, &[b"dir", b"f"], 1_000_000_000);
    one.exchange(&two);
    (one, two, dir)
}

/// What the first disk shows when both have met after this, the edit being recorded only then.
fn after(size: usize, is_closed: bool, elsewhere: impl FnOnce(&Disk, u64)) -> Vec<(String, u8)> {
    let (one, two, dir) = pair(size);
    let writer = Writer::open(&one, &[b"dir", b"f"]);
    writer.file.write_all_at(&text(b'1', size), 0).unwrap();
    elsewhere(&two, dir);
    two.wait_until_sealed();
    if is_closed {
        let unsealed = writer.close_unsealed(&one);
        one.take(&two.give());
        drop(unsealed);
    } else {
        one.take(&two.give());
        writer.close(&one, false);
    }
    one.wait_until_sealed();
    one.exchange(&two);
    one.exchange(&two);
    assert_eq!(one.engine().committed().commit, two.engine().committed().commit);
    let names = |shown: &[(String, u8)]| shown.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    // A small one is on both.
    let there = shown(&one, 1);
    if size < 4096 {
        assert_eq!(names(&shown(&two, 1)), names(&there));
    }
    for (_, attr) in one.engine().list(dir).unwrap_or_default() {
        assert_eq!((attr.mode & 0o777, attr.uid), (0o640, 1), "it has the attributes that it had");
    }
    there
}

#[test]
fn what_was_removed_elsewhere_has_its_name_again_with_what_was_written() {
    for size in SIZES {
        for is_closed in [true, false] {
            let shown = after(size, is_closed, |two, dir| unlink(two, dir, "f").unwrap());
            assert_eq!(shown, [("f".to_owned(), b'1')], "{size} bytes, closed: {is_closed}");
        }
    }
}

/// It was open, and others have changed it before they removed it.
#[test]
fn what_was_not_written_here_stays_removed() {
    for size in SIZES {
        let (one, two, dir) = pair(size);
        let writer = Writer::open(&one, &[b"dir", b"f"]);
        two.engine().write(&[b"dir", b"f"], 0, &text(b'2', size), true).unwrap();
        two.wait_until_sealed();
        one.take(&two.give());
        unlink(&two, dir, "f").unwrap();
        one.take(&two.give());
        assert_eq!(one.engine().list(dir).unwrap().len(), 0, "{size} bytes");
        writer.close(&one, true);
        one.wait_until_sealed();
        one.exchange(&two);
        assert_eq!((shown(&one, 1), shown(&two, 1)), (vec![], vec![]), "{size} bytes");
    }
}

#[test]
fn what_was_replaced_elsewhere_is_a_conflict_copy() {
    for size in SIZES {
        for is_closed in [true, false] {
            let shown = after(size, is_closed, |two, dir| {
                Posix::create(&**two.engine(), &[b"dir", b"tmp"], 0o640, b"2").unwrap();
                let (name, name2) = ("tmp".into(), "f".into());
                let q = pb::Rename { dir, name, dir2: dir, name2, ..Default::default() };
                two.engine().rename(SESSION, false, &q).unwrap();
            });
            assert_eq!(shown.len(), 2, "{shown:?}");
            assert_eq!(shown[0], ("f".to_owned(), b'2'));
            assert!(shown[1].0.starts_with("f.conflict-") && shown[1].1 == b'1', "{shown:?}");
        }
    }
}

#[test]
fn what_was_removed_with_its_directory_is_in_lost_and_found() {
    for is_closed in [true, false] {
        let shown = after(10, is_closed, |two, dir| {
            unlink(two, dir, "f").unwrap();
            let q = pb::Rmdir { dir: 1, name: "dir".into(), ..Default::default() };
            two.engine().rmdir(SESSION, false, &q).unwrap();
        });
        assert_eq!(shown, [("f".to_owned(), b'1')]);
    }
}

#[test]
fn a_file_that_lost_all_its_names_elsewhere_has_one_again() {
    let (one, two, dir) = pair(10);
    let attr = one.engine().resolve(&[b"dir", b"f"]).unwrap();
    let q = pb::Link { ino: attr.ino, ino_dir: dir, dir, name: "g".into() };
    one.engine().link(SESSION, false, &q).unwrap();
    one.exchange(&two);
    let writer = Writer::open(&one, &[b"dir", b"g"]);
    writer.file.write_all_at(b"1", 0).unwrap();
    let unsealed = writer.close_unsealed(&one);
    ["f", "g"].into_iter().for_each(|name| unlink(&two, dir, name).unwrap());
    one.take(&two.give());
    drop(unsealed);
    one.wait_until_sealed();
    let shown = shown(&one, 1);
    assert!(shown.len() == 1 && shown[0].1 == b'1', "{shown:?}");
}

/// Others saw it empty.
#[test]
fn a_new_file_that_was_removed_elsewhere_before_it_was_recorded_is_there() {
    for is_closed in [true, false] {
        let (one, two) = (Disk::new(), Disk::new());
        let q = pb::Create { dir: 1, name: "f".into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
        let writer = Writer::of(one.engine().create(SESSION, false, &q).unwrap().1);
        writer.file.write_all_at(b"1", 0).unwrap();
        two.take(&one.give());
        unlink(&two, 1, "f").unwrap();
        if is_closed {
            let unsealed = writer.close_unsealed(&one);
            one.take(&two.give());
            assert!(one.engine().resolve(&[b"f"]).is_ok(), "at once");
            drop(unsealed);
        } else {
            one.take(&two.give());
            writer.close(&one, false);
        }
        one.wait_until_sealed();
        assert_eq!(shown(&one, 1), [("f".to_owned(), b'1')]);
    }
}

#[test]
fn what_was_not_written_stays_removed_and_so_does_what_is_removed_here() {
    let (one, two, dir) = pair(10);
    let writer = Writer::open(&one, &[b"dir", b"f"]);
    unlink(&two, dir, "f").unwrap();
    one.take(&two.give());
    writer.close(&one, true);
    one.wait_until_sealed();
    assert_eq!(shown(&one, 1), []);

    let (one, two, dir) = pair(10);
    let writer = Writer::open(&one, &[b"dir", b"f"]);
    writer.file.write_all_at(b"1", 0).unwrap();
    let unsealed = writer.close_unsealed(&one);
    unlink(&two, dir, "f").unwrap();
    one.take(&two.give());
    unlink(&one, dir, "f").unwrap();
    drop(unsealed);
    one.wait_until_sealed();
    assert_eq!(shown(&one, 1), []);
    assert_eq!(unlink(&one, dir, "f").unwrap_err().errno, Errno::ENOENT);
}

/// A start removes a staging file without a name.
#[test]
fn what_was_closed_or_fsynced_survives_a_crash_after_the_join() {
    for is_closed in [true, false] {
        let (mut one, two, dir) = pair(10);
        let ino = one.engine().resolve(&[b"dir", b"f"]).unwrap().ino;
        let writer = Writer::open(&one, &[b"dir", b"f"]);
        unlink(&two, dir, "f").unwrap();
        let kept = if is_closed {
            writer.file.write_all_at(b"1", 0).unwrap();
            let unsealed = writer.close_unsealed(&one);
            one.take(&two.give());
            unsealed
        } else {
            one.take(&two.give());
            assert!(one.engine().resolve(&[b"dir", b"f"]).is_err());
            writer.file.write_all_at(b"1", 0).unwrap();
            let q = pb::Fsync { ino, handle: writer.handle, dir, writes: true, ..Default::default() };
            one.engine().fsync(&q).unwrap();
            writer.file
        };
        one.crash();
        drop(kept);
        one.wait_until_sealed();
        assert_eq!(shown(&one, Ino::ROOT.0), [("f".to_owned(), b'1')], "closed: {is_closed}");
    }
}

#[test]
fn what_was_moved_elsewhere_first_has_its_name_there_again() {
    let (one, two, dir) = pair(10);
    let dir2 = mkdir(&two, "dir2");
    let writer = Writer::open(&one, &[b"dir", b"f"]);
    writer.file.write_all_at(b"1", 0).unwrap();
    let unsealed = writer.close_unsealed(&one);
    let q = pb::Rename { dir, name: "f".into(), dir2, name2: "g".into(), ..Default::default() };
    two.engine().rename(SESSION, false, &q).unwrap();
    one.take(&two.give());
    unlink(&two, dir2, "g").unwrap();
    one.take(&two.give());
    drop(unsealed);
    one.wait_until_sealed();
    assert_eq!(shown(&one, 1), [("g".to_owned(), b'1')]);
    assert!(one.engine().resolve(&[b"dir2", b"g"]).is_ok());
}

/// They removed it having seen that.
#[test]
fn what_others_had_written_and_removed_does_not_come_back_with_it() {
    let (one, two, dir) = pair(10);
    let writer = Writer::open(&one, &[b"dir", b"f"]);
    writer.file.write_all_at(b"1", 0).unwrap();
    two.engine().write(&[b"dir", b"f"], 0, b"2", false).unwrap();
    two.wait_until_sealed();
    one.take(&two.give());
    unlink(&two, dir, "f").unwrap();
    one.take(&two.give());
    writer.close(&one, false);
    one.wait_until_sealed();
    assert_eq!(shown(&one, 1), [("f".to_owned(), b'1')]);
}

/// All of it was seen by who removed it.
#[test]
fn what_is_recorded_and_open_still_stays_removed() {
    let (one, two, dir) = pair(10);
    Posix::create(&**one.engine(), &[b"dir", b"old"], 0o640, b"3").unwrap();
    one.wait_until_sealed();
    let writer = Writer::open(&one, &[b"dir", b"f"]);
    writer.file.write_all_at(b"1", 0).unwrap();
    set_mtime(&one, &[b"dir", b"f"], 2_000_000_000);
    wait_for_a_later_tick();
    // Recorded by that, and not closed.
    let q = pb::Rename { dir, name: "f".into(), dir2: dir, name2: "old".into(), ..Default::default() };
    one.engine().rename(SESSION, false, &q).unwrap();
    two.take(&one.give());
    assert_eq!(shown(&two, 1), [("old".to_owned(), b'1')]);
    unlink(&two, dir, "old").unwrap();
    one.take(&two.give());
    assert_eq!(shown(&one, 1), []);
    writer.close(&one, false);
    one.wait_until_sealed();
    assert_eq!(shown(&one, 1), []);
}
