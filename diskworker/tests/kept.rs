//! What a worker that comes back knows of files that were open: what their writers started from, whether anything was written, and what
//! others have taken.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, UNIX_EPOCH};

use delugefs_diskworker::engine::Opening;
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;

use crate::disk::{Disk, Posix, SESSION};
use crate::taken::{SIZES, Writer, pair, set_mtime, shown, text, unlink};

const F: [&[u8]; 2] = [b"dir", b"f"];

/// A program goes on with the descriptor that it has; its frontend hands that to the worker when it is back.
fn adopt(disk: &Disk, (ino, dir): (u64, u64), file: File) -> Writer {
    let fd = OwnedFd::from(file.try_clone().unwrap());
    let q = pb::Adopt { ino, dir, sync_failed: false };
    let (_, handle) = disk.engine().adopt(SESSION, &q, fd).unwrap();
    Writer { handle, file }
}

/// Both have met, and nobody writes any more.
fn end(one: &Disk, two: &Disk) -> Vec<(String, u8)> {
    for disk in [one, two] {
        disk.wait_until_sealed();
    }
    one.exchange(two);
    one.exchange(two);
    assert_eq!(one.engine().committed().commit, two.engine().committed().commit);
    shown(one, 1)
}

/// Nothing was fsynced, and nothing is promised but that no process's death takes it.
#[test]
fn what_was_written_after_others_took_the_name_outlives_the_worker() {
    for size in SIZES {
        // When the frontend has ended too.
        let (mut one, two, dir) = pair(size);
        let writer = Writer::open(&one, &F);
        unlink(&two, dir, "f").unwrap();
        one.take(&two.give());
        assert_eq!(shown(&one, 1), []);
        writer.file.write_all_at(b"1", 0).unwrap();
        one.crash();
        drop(writer);
        assert_eq!(end(&one, &two), [("f".to_owned(), b'1')], "{size} bytes");

        // And when it goes on: whatever is written before and after the worker is back.
        for is_before in [true, false] {
            let (mut one, two, dir) = pair(size);
            let ino = one.engine().resolve(&F).unwrap().ino;
            let writer = Writer::open(&one, &F);
            unlink(&two, dir, "f").unwrap();
            one.take(&two.give());
            if is_before {
                writer.file.write_all_at(b"1", 0).unwrap();
            }
            one.restart();
            let writer = adopt(&one, (ino, dir), writer.file);
            if !is_before {
                assert_eq!(shown(&one, 1), []);
                one.restart();
                writer.file.write_all_at(b"1", 0).unwrap();
            }
            let writer = if is_before { writer } else { adopt(&one, (ino, dir), writer.file) };
            writer.close(&one, false);
            assert_eq!(end(&one, &two), [("f".to_owned(), b'1')], "{size} bytes, before: {is_before}");
        }
    }
}

#[test]
fn what_was_not_written_after_others_took_the_name_goes() {
    for size in SIZES {
        let (mut one, two, dir) = pair(size);
        let ino = one.engine().resolve(&F).unwrap().ino;
        let writer = Writer::open(&one, &F);
        unlink(&two, dir, "f").unwrap();
        one.take(&two.give());
        // Nor as long as somebody may still write it.
        one.restart();
        assert!(one.engine().store.is_staged(Ino(ino)).unwrap(), "{size} bytes");
        one.crash();
        drop(writer);
        assert_eq!(end(&one, &two), [], "{size} bytes");
    }
}

/// What a loss of power leaves of a copy that was never synced: its length, and nothing of it or not all.
#[test]
fn zeros_do_not_come_back_under_a_name_that_others_took() {
    for size in SIZES {
        for is_written in [false, true] {
            let (mut one, two, dir) = pair(size);
            let ino = Ino(one.engine().resolve(&F).unwrap().ino);
            let writer = Writer::open(&one, &F);
            unlink(&two, dir, "f").unwrap();
            one.take(&two.give());
            one.crash_with(|root| {
                let staged = root.join(format!("staging/{ino}"));
                let file = File::create(&staged).unwrap();
                file.set_len(size as u64).unwrap();
                if is_written {
                    file.write_all_at(b"1", 0).unwrap();
                }
                fs::write(staged.with_extension("copy"), "another life").unwrap();
            });
            drop(writer);
            let shown = end(&one, &two);
            let mut firsts: Vec<u8> = shown.iter().map(|(_, first)| *first).collect();
            firsts.sort_unstable();
            let expected = match (is_written, size > 512) {
                (false, _) => &b""[..],
                (true, false) => b"1", // in one block nothing tells
                // Beside what it was: of that nothing is lost.
                (true, true) => b"01",
            };
            assert_eq!(firsts, expected, "{size} bytes, written: {is_written}: {shown:?}");
        }
    }
}

/// The note on the disk is older than the name that the file has again, and so is the time of the file: fdatasync(2) does not care for it.
#[test]
fn what_was_fsynced_after_others_took_the_name_is_there_whatever_an_older_note_says() {
    for size in SIZES {
        let (mut one, two, dir) = pair(size);
        let ino = one.engine().resolve(&F).unwrap().ino;
        let writer = Writer::open(&one, &F);
        unlink(&two, dir, "f").unwrap();
        one.take(&two.give());
        let note = one.engine().folder.path("staging").join(format!("{}.met", Ino(ino)));
        let older = fs::read(&note).unwrap();
        writer.file.write_all_at(b"1", 0).unwrap();
        let q = pb::Fsync { ino, handle: writer.handle, dir, writes: true, ..Default::default() };
        one.engine().fsync(&q).unwrap();
        assert_ne!(fs::read(&note).unwrap(), older);
        assert!(!one.engine().store.sync_note(Ino(ino)).unwrap(), "it was synced with the file");
        one.crash_with(|root| {
            let staged = root.join(format!("staging/{}", Ino(ino)));
            fs::write(staged.with_extension("met"), &older).unwrap();
            let mtime = UNIX_EPOCH + Duration::from_secs(1);
            File::options().write(true).open(&staged).unwrap().set_modified(mtime).unwrap();
        });
        drop(writer);
        assert_eq!(end(&one, &two), [("f".to_owned(), b'1')], "{size} bytes");
    }
}

/// As a data base is for days.
#[test]
fn a_file_that_was_merely_open_when_the_worker_was_restarted_is_removed_by_others() {
    for size in SIZES {
        for (is_open, is_before) in [(true, true), (true, false), (false, true)] {
            let (mut one, two, dir) = pair(size);
            let writer = Writer::open(&one, &F);
            if is_before {
                unlink(&two, dir, "f").unwrap();
            }
            match is_open {
                true => one.restart(),
                false => one.crash(),
            }
            if !is_open {
                one.wait_until_sealed();
            }
            if !is_before {
                unlink(&two, dir, "f").unwrap();
            }
            one.take(&two.give());
            assert_eq!(shown(&one, 1), [], "{size} bytes, open: {is_open}, before: {is_before}");
            drop(writer);
            assert_eq!(end(&one, &two), [], "{size} bytes, open: {is_open}, before: {is_before}");
        }
    }
}

#[test]
fn a_file_that_was_merely_open_when_the_worker_was_restarted_is_no_conflict() {
    for size in SIZES {
        for is_before in [true, false] {
            let (mut one, two, dir) = pair(size);
            let ino = one.engine().resolve(&F).unwrap().ino;
            let writer = Writer::open(&one, &F);
            if !is_before {
                one.restart();
            }
            two.engine().write(&F, 0, &text(b'2', size), true).unwrap();
            two.wait_until_sealed();
            one.take(&two.give());
            one.restart();
            adopt(&one, (ino, dir), writer.file).close(&one, true);
            for disk in [&one, &two] {
                disk.wait_until_sealed();
            }
            one.exchange(&two);
            assert_eq!(shown(&two, 1), [("f".to_owned(), b'2')], "{size} bytes, before: {is_before}");
        }
    }
}

/// `cp -p`, `rsync --inplace`: the time is that of the record by then, and the length may be.
#[test]
fn what_was_written_before_its_time_was_set_is_known_after_a_restart() {
    for size in SIZES {
        for is_taken in [true, false] {
            let (mut one, two, dir) = pair(size);
            let writer = Writer::open(&one, &F);
            writer.file.write_all_at(b"1", 0).unwrap();
            set_mtime(&one, &F, 1_000_000_000);
            one.restart();
            if is_taken {
                unlink(&two, dir, "f").unwrap();
                one.take(&two.give());
                assert_eq!(shown(&one, 1), [("f".to_owned(), b'1')], "{size} bytes");
            }
            drop(writer);
            assert_eq!(end(&one, &two), [("f".to_owned(), b'1')], "{size} bytes, taken: {is_taken}");
        }
    }
}

/// When a file `b/g` is opened that another host knows as `a/f` still, and has written: then two files have one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opened {
    /// Before the two met, and it has got another number since.
    Renumbered,
    /// Before the two met.
    Before,
    /// After that.
    After,
}

#[test]
fn what_is_written_to_a_file_with_the_number_of_another_is_not_taken_for_the_others_after_a_restart() {
    // Which of the directories is met first is left to chance.
    for opened in [Opened::Renumbered, Opened::Before, Opened::After, Opened::After, Opened::After, Opened::After] {
        let (mut one, two) = (Disk::new(), Disk::new());
        for name in ["a", "b"] {
            let q = pb::Mkdir { dir: 1, name: name.into(), mode: 0o755, uid: 1, gid: 2, token: 0 };
            one.engine().mkdir(SESSION, false, &q).unwrap();
        }
        Posix::create(&**one.engine(), &[b"a", b"f"], 0o644, b"before").unwrap();
        one.wait_until_sealed();
        one.exchange(&two);
        let [dir, dir2] = [b"a", b"b"].map(|name| one.engine().resolve(&[name]).unwrap().ino);
        let q = pb::Rename { dir, name: "f".into(), dir2, name2: "g".into(), ..Default::default() };
        one.engine().rename(SESSION, false, &q).unwrap();
        Posix::write(&**two.engine(), &[b"a", b"f"], 0, b"written", true).unwrap();
        two.wait_until_sealed();
        if opened == Opened::After {
            one.exchange(&two);
        }
        let ino = one.engine().resolve(&[b"b", b"g"]).unwrap().ino;
        let q = pb::Open { ino, dir: dir2, write: true, truncate: true };
        let Opening::File { file, .. } = one.engine().open(SESSION, &q).unwrap().1 else { panic!() };
        file.write_all_at(b"open", 0).unwrap();
        if opened != Opened::After {
            one.exchange(&two);
        }
        if opened == Opened::Renumbered {
            two.engine().ledger().unwrap();
            assert_ne!(two.engine().resolve(&[b"b", b"g"]).unwrap().ino, ino);
            one.exchange(&two);
        }
        one.crash();
        drop(file);
        end(&one, &two);
        for disk in [&one, &two] {
            let has = |first| shown(disk, 1).iter().any(|(_, shown)| *shown == first);
            match opened {
                // Whose it is cannot be told: in the one directory or the other it is a version beside that one's.
                Opened::After => assert!(has(b'w') && has(b'o'), "{:?}", shown(disk, 1)),
                _ => {
                    assert_eq!(disk.engine().read(&[b"a", b"f"]).unwrap(), b"written", "{opened:?}");
                    assert_eq!(disk.engine().read(&[b"b", b"g"]).unwrap(), b"open", "{opened:?}");
                }
            }
        }
    }
}
