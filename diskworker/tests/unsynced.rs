//! A sync of a file that is being written fails. From then on the kernel says that all is well, and what was written is in
//! memory only: it is never sealed like that.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use delugefs_diskworker::engine::{Alone, Engine, Opening};
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;
use nix::errno::Errno;

use crate::disk::{Disk, Posix, SESSION};

/// A new file that is open: its number, the handle and the descriptor.
fn create(engine: &Engine, name: &'static str) -> (u64, u64, fs::File) {
    let q = pb::Create { dir: Ino::ROOT.0, name: name.into(), mode: 0o644, ..Default::default() };
    match engine.create(SESSION, false, &q).unwrap() {
        (answer, Opening::File { handle, file }) => (answer.node.unwrap().ino, handle, file),
        _ => panic!("a writer gets a descriptor"),
    }
}

fn fsync(engine: &Engine, ino: u64, handle: u64, sync_failed: bool) -> Result<(), Errno> {
    let q = pb::Fsync { ino, handle, dir: Ino::ROOT.0, sync_failed, ..Default::default() };
    engine.fsync(&q).map_err(|error| error.errno)
}

/// The files below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let below = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    below.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn staged_inode(engine: &Engine) -> u64 {
    let staged = files(&engine.folder.path("staging"));
    assert_eq!(staged.len(), 1, "{staged:?}");
    fs::metadata(&staged[0]).unwrap().ino()
}

#[test]
fn what_is_sealed_is_another_file_than_the_one_that_could_not_be_synced() {
    for (told_by, is_copied) in [("nobody", false), ("fsync", true), ("close", true), ("fsync, and a restart", true)] {
        let mut disk = Disk::new();
        let engine = disk.engine().clone();
        let (ino, handle, file) = create(&engine, "f");
        let bytes = [7; 100_000];
        file.write_all_at(&bytes, 0).unwrap();
        assert_eq!(fsync(&engine, ino, handle, false), Ok(()), "it was promised something before");
        let mut before = staged_inode(&engine);
        if told_by.starts_with("fsync") {
            assert_eq!(fsync(&engine, ino, handle, true), Err(Errno::EIO));
            // The program tries again, and so does another one that reads it; the kernel says that all is well.
            assert_eq!(fsync(&engine, ino, handle, false), Err(Errno::EIO));
            assert_eq!(fsync(&engine, ino, 0, false), Err(Errno::EIO));
        }
        if told_by == "close" {
            engine.doubt(SESSION, handle);
        }
        drop(file);
        if told_by.ends_with("restart") {
            // Nobody comes back for it.
            drop(engine);
            let inode = disk.crash_with(|root| {
                let staged = files(&root.join("staging"));
                fs::metadata(&staged[0]).unwrap().ino()
            });
            before = inode;
        } else {
            engine.close(SESSION, handle, false).unwrap();
        }
        disk.wait_until_sealed();
        let engine = disk.engine();
        let sealed = files(&engine.folder.path("data"));
        assert_eq!(sealed.len(), 1);
        assert_eq!(fs::metadata(&sealed[0]).unwrap().ino() != before, is_copied, "told by {told_by}");
        assert!(engine.read(&[b"f"]).unwrap() == bytes);
        // It is good again.
        assert_eq!(fsync(engine, ino, 0, false), Ok(()));
        assert_eq!(engine.scrub(&Alone).unwrap().problems, Vec::<String>::new());
    }
}

#[test]
fn one_that_is_renamed_over_another_while_it_is_open_is_copied_for_that_too() {
    let disk = Disk::new();
    let engine = disk.engine();
    Posix::create(&**engine, &[b"old"], 0o644, &[1; 9000]).unwrap();
    let (ino, handle, file) = create(engine, "new");
    file.write_all_at(&[2; 9000], 0).unwrap();
    assert_eq!(fsync(engine, ino, handle, true), Err(Errno::EIO));
    let rename = pb::Rename {
        dir: Ino::ROOT.0,
        name: (&b"new"[..]).into(),
        dir2: Ino::ROOT.0,
        name2: (&b"old"[..]).into(),
        ..Default::default()
    };
    engine.rename(SESSION, false, &rename).unwrap();
    assert_eq!(fsync(engine, ino, handle, false), Err(Errno::EIO), "the open file is what it was");
    drop(file);
    engine.close(SESSION, handle, false).unwrap();
    disk.wait_until_sealed();
    assert!(engine.read(&[b"old"]).unwrap() == [2; 9000]);
}

/// A disk that has promised more room than there is below it: so do thin volumes, and a failing disk is no different.
#[cfg(target_os = "linux")]
#[test]
fn what_a_failing_disk_did_not_take_is_on_it_when_it_is_sealed() {
    use crate::small::{Kind, on_small_disk};
    use crate::worker::wait_until;
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

    for by_worker in [false, true] {
        on_small_disk(Kind::Thin, 128, |small| {
            let running = crate::disk::new_at(&small.root());
            let engine = &running.engine;
            let (ino, handle, file) = create(engine, "f");
            let bytes = crate::small::noise(3 << 20, 5);
            file.write_all_at(&bytes[..1 << 20], 0).unwrap();
            engine.commit().unwrap();
            // What belongs to no file is written now, and only the rest of the bytes is not.
            nix::unistd::syncfs(&file).unwrap();
            small.fill_below();
            file.write_all_at(&bytes[1 << 20..], 1 << 20).unwrap();
            match by_worker {
                true => assert!(fsync(engine, ino, 0, false).is_err()),
                false => {
                    assert!(file.sync_all().is_err());
                    assert_eq!(fsync(engine, ino, handle, true), Err(Errno::EIO));
                }
            }
            small.release_below();
            assert!(file.sync_all().is_ok() || by_worker, "the kernel has forgotten it");
            assert_eq!(fsync(engine, ino, handle, false), Err(Errno::EIO));
            drop(file);
            engine.close(SESSION, handle, false).unwrap();
            wait_until("it is sealed", || engine.status().unwrap().staged_files == 0);
            engine.commit().unwrap();
            // What is in memory goes, and what is on the disk is read.
            let sealed = files(&engine.folder.path("data"));
            let content = fs::File::open(&sealed[0]).unwrap();
            posix_fadvise(&content, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            assert!(fs::read(&sealed[0]).unwrap() == bytes, "by worker: {by_worker}");
            assert_eq!(engine.scrub(&Alone).unwrap().problems, Vec::<String>::new());
            running.stop().unwrap();
        });
    }
}

/// The frontend goes on with another disk of the host, which knows nothing of what was written.
#[test]
fn a_disk_that_took_over_does_not_say_that_all_is_safe() {
    let (disk, other) = (Disk::new(), Disk::new());
    let (ino, handle, file) = create(disk.engine(), "f");
    file.write_all_at(&[1; 9000], 0).unwrap();
    let ask = |disk: &Disk, handle| {
        let q = pb::Fsync { ino, handle, dir: Ino::ROOT.0, writes: true, ..Default::default() };
        disk.engine().fsync(&q).map_err(|error| error.errno)
    };
    assert_eq!(ask(&other, 0), Err(Errno::EIO), "it has not heard of the file");
    disk.exchange(&other);
    assert_eq!(ask(&other, 0), Err(Errno::EIO), "it has heard of the name");
    assert_eq!((ask(&disk, handle), ask(&disk, 0)), (Ok(()), Ok(())));
    // Without a name nothing of it is to be kept.
    disk.engine().unlink(SESSION, false, &pb::Unlink { dir: Ino::ROOT.0, name: "f".into(), expect_ino: 0 }).unwrap();
    assert_eq!(ask(&disk, handle), Ok(()));
    drop(file);
    disk.engine().close(SESSION, handle, false).unwrap();
}
