//! The machine goes down: what the journal says of contents that are not on this disk.

#[cfg(target_os = "linux")]
use std::os::unix::fs::FileExt;
use std::sync::Arc;

#[cfg(target_os = "linux")]
use delugefs_diskworker::engine::Opening;
use delugefs_diskworker::engine::{Running, Settings};
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;
use nix::errno::Errno;

#[cfg(target_os = "linux")]
use crate::disk;
use crate::disk::{Disk, Posix, SESSION};
#[cfg(target_os = "linux")]
use crate::small::{Kind, on_small_disk};

#[test]
fn a_file_whose_content_is_elsewhere_keeps_its_new_name() {
    let mut disk = Disk::new();
    let engine = disk.engine();
    Posix::create(&**engine, &[b"old"], 0o644, &[7; 5000]).unwrap();
    disk.wait_until_sealed();
    engine.commit().unwrap();
    // As on a disk that was told of the file and never fetched it.
    let (content, _) = engine.store.contents().next().unwrap().unwrap();
    assert!(engine.store.let_go(content).unwrap());
    let rename = pb::Rename {
        dir: Ino::ROOT.0,
        name: (&b"old"[..]).into(),
        dir2: Ino::ROOT.0,
        name2: (&b"new"[..]).into(),
        ..pb::Rename::default()
    };
    engine.rename(SESSION, false, &rename).unwrap();
    disk.crash();
    let engine = disk.engine();
    assert_eq!(engine.resolve(&[b"old"]).err().map(|error| error.errno), Some(Errno::ENOENT));
    let found = engine.resolve(&[b"new"]).unwrap();
    assert_eq!(found.size, 5000);
    let wanted = engine.absent(Ino(found.ino), Ino::ROOT).unwrap().unwrap();
    assert_eq!((wanted.content, wanted.size), (content, 5000));
}

/// Whoever else syncs something on that file system makes all its names durable, and with them that a staged file is gone.
#[cfg(target_os = "linux")]
#[test]
fn what_was_fsynced_is_there_after_a_loss_of_power_just_after_it_was_closed() {
    for size in [1000, 100_000] {
        on_small_disk(Kind::Ext4Journal, 64, |small| {
            let running = disk::new_at(&small.root());
            let engine = &running.engine;
            Posix::create(&**engine, &[b"before"], 0o644, b"x").unwrap();
            engine.commit().unwrap();
            let q = pb::Create { dir: Ino::ROOT.0, name: (&b"f"[..]).into(), mode: 0o644, ..Default::default() };
            let (answer, opening) = engine.create(SESSION, false, &q).unwrap();
            let Opening::File { handle, file } = opening else { panic!("a writer gets a descriptor") };
            let data = vec![7; size];
            file.write_all_at(&data, 0).unwrap();
            file.sync_all().unwrap();
            let ino = answer.node.unwrap().ino;
            engine.fsync(&pb::Fsync { ino, handle, dir: Ino::ROOT.0, ..Default::default() }).unwrap();
            drop(file);
            engine.close(SESSION, handle, false).unwrap();
            while engine.store.is_staged(Ino(ino)).unwrap() {
                std::thread::yield_now();
            }
            std::fs::File::create(small.dir.join("another")).unwrap().sync_all().unwrap();
            let after = disk::start(disk::open(&small.after_power_loss()));
            assert_eq!(after.engine.read(&[b"f"]).unwrap(), data);
            after.stop().unwrap();
            running.stop().unwrap();
        });
    }
}

/// A copy made file by file while the disk is in use: the catalog first, the journal last. The changes in between are in neither.
#[test]
fn a_journal_that_does_not_go_on_from_the_catalog_is_refused() {
    let (mut disk, other) = (Disk::new(), Disk::new());
    let name = |n: usize| format!("f{n:03}").into_bytes();
    let write = |disk: &Disk, n: usize| {
        Posix::create(&**disk.engine(), &[&name(n)], 0o644, b"x").unwrap();
        disk.wait_until_sealed();
    };
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    write(&disk, 0);
    disk.engine().commit().unwrap();
    let before = tempfile::tempdir().unwrap();
    copy(&disk.engine().folder.path("catalog.git"), before.path());
    (1..20).for_each(|n| write(&disk, n));
    disk.exchange(&other);
    write(&disk, 20);
    disk.crash_with(|root| {
        std::fs::remove_dir_all(root.join("catalog.git")).unwrap();
        copy(&before.path().join("catalog.git"), root);
        let settings = Settings { reserve_bytes: 0, retention: std::time::Duration::from_secs(3600) };
        let refused = Running::start(Arc::new(crate::disk::open(root)), settings).err().unwrap();
        assert!(refused.to_string().contains("goes on from a later state"), "{refused:#}");
        // The way out that it names.
        for entry in std::fs::read_dir(root.join("journal")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    });
    assert_eq!(disk.engine().list(Ino::ROOT.0).unwrap().len(), 1);
    // It makes its changes under another name now, and takes nothing away from others.
    write(&disk, 21);
    disk.exchange(&other);
    for disk in [&disk, &other] {
        assert_eq!(disk.engine().list(Ino::ROOT.0).unwrap().len(), 21);
    }
}
