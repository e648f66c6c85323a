//! The machine goes down: what the journal says of contents that are not on this disk.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use delugefs_diskworker::engine::Engine;
use delugefs_diskworker::engine::{Opening, Running, Settings};
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

/// Whoever else syncs something makes the name and the length of a copy durable, long before its bytes.
#[cfg(target_os = "linux")]
#[test]
fn what_was_opened_for_writing_just_before_a_loss_of_power_is_what_it_was() {
    for size in [1000, 100_000] {
        on_small_disk(Kind::Ext4Journal, 64, |small| {
            let running = disk::new_at(&small.root());
            let engine = &running.engine;
            let data = vec![7; size];
            Posix::create(&**engine, &[b"f"], 0o644, &data).unwrap();
            let ino = Ino(engine.resolve(&[b"f"]).unwrap().ino);
            while engine.store.is_staged(ino).unwrap() {
                std::thread::yield_now();
            }
            engine.commit().unwrap();
            let open = pb::Open { ino: ino.0, dir: Ino::ROOT.0, write: true, ..Default::default() };
            let (_, Opening::File { handle, file }) = engine.open(SESSION, &open).unwrap() else { panic!() };
            std::fs::File::create(small.dir.join("another")).unwrap().sync_all().unwrap();
            let after = small.after_power_loss();
            // The machine is another one after that.
            std::fs::write(after.join(format!("staging/{ino}.copy")), "another life").unwrap();
            let after = disk::start(disk::open(&after));
            while after.engine.store.is_staged(ino).unwrap() {
                std::thread::yield_now();
            }
            assert!(after.engine.read(&[b"f"]).unwrap() == data);
            after.stop().unwrap();
            drop(file);
            engine.close(SESSION, handle, true).unwrap();
            running.stop().unwrap();
            assert_eq!(crate::small::names(&small.root().join("staging")), [""; 0]);
        });
    }
}

/// What only a process lost is written on, also in the second before a copy is synced.
#[test]
fn what_was_written_to_a_copy_is_kept_when_the_worker_crashes() {
    let mut disk = Disk::new();
    Posix::create(&**disk.engine(), &[b"f"], 0o644, &[7; 100_000]).unwrap();
    disk.wait_until_sealed();
    let ino = Ino(disk.engine().resolve(&[b"f"]).unwrap().ino);
    let open = pb::Open { ino: ino.0, dir: Ino::ROOT.0, write: true, ..Default::default() };
    let (_, Opening::File { file, .. }) = disk.engine().open(SESSION, &open).unwrap() else { panic!() };
    file.write_all_at(&[8; 10], 50).unwrap();
    drop(file);
    disk.crash();
    disk.wait_until_sealed();
    let mut expected = vec![7; 100_000];
    expected[50..60].fill(8);
    assert!(disk.engine().read(&[b"f"]).unwrap() == expected);
    assert_eq!(disk.engine().list(Ino::ROOT.0).unwrap().len(), 1, "a conflict copy");
}

/// Nothing tells whether only a process ended, as where there is no boot id: what was cut is not taken for what did not reach the disk.
#[test]
fn what_was_cut_is_kept_when_the_worker_crashes_and_nothing_tells_the_life_of_the_machine() {
    for is_open in [false, true] {
        let mut disk = Disk::new();
        Posix::create(&**disk.engine(), &[b"f"], 0o644, &[7; 100_000]).unwrap();
        disk.wait_until_sealed();
        let ino = Ino(disk.engine().resolve(&[b"f"]).unwrap().ino);
        disk.engine().commit().unwrap();
        let open = pb::Open { ino: ino.0, dir: Ino::ROOT.0, write: true, ..Default::default() };
        let (_, Opening::File { file, .. }) = disk.engine().open(SESSION, &open).unwrap() else { panic!() };
        file.set_len(5000).unwrap();
        drop(file);
        let held = disk.crash_with(|root| {
            // Of a life that was not this one, where somebody has it open all the same.
            std::fs::write(root.join(format!("staging/{ino}.copy")), if is_open { "another 1" } else { "" }).unwrap();
            let staged = root.join(format!("staging/{ino}"));
            is_open.then(|| {
                let file = std::fs::File::options().write(true).open(staged).unwrap();
                file.lock_shared().unwrap();
                file
            })
        });
        assert!(held.is_none() || disk.engine().store.is_staged(ino).unwrap());
        drop(held);
        disk.wait_until_sealed();
        let listed = disk.engine().list(Ino::ROOT.0).unwrap();
        let mut lengths: Vec<u64> = listed.iter().map(|(_, attr)| attr.size).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, if is_open { &[5000][..] } else { &[5000, 100_000] });
    }
}

/// `mv tmp f` without fsync, then an fsync of the directory: that makes the log durable, and of tmp not even that it is sealed. Its staging
/// file may have its name on the disk already, and nothing else.
#[cfg(target_os = "linux")]
#[test]
fn what_a_file_without_fsync_replaced_is_there_after_a_loss_of_power() {
    for (size, stays_open) in [(1000, false), (100_000, false), (100_000, true)] {
        on_small_disk(Kind::Ext4Journal, 64, |small| {
            let running = disk::new_at(&small.root());
            let engine = &running.engine;
            let (old, new) = (vec![7; size], vec![8; size]);
            Posix::create(&**engine, &[b"f"], 0o644, &old).unwrap();
            let ino = Ino(engine.resolve(&[b"f"]).unwrap().ino);
            while engine.store.is_staged(ino).unwrap() {
                std::thread::yield_now();
            }
            engine.commit().unwrap();
            let sync =
                || engine.fsync(&pb::Fsync { ino: Ino::ROOT.0, dir: Ino::ROOT.0, ..Default::default() }).unwrap();
            sync(); // the next one needs no other names
            let q = pb::Create { dir: Ino::ROOT.0, name: (&b"tmp"[..]).into(), mode: 0o644, ..Default::default() };
            let (_, opening) = engine.create(SESSION, false, &q).unwrap();
            let Opening::File { handle, file } = opening else { panic!("a writer gets a descriptor") };
            file.write_all_at(&new, 0).unwrap();
            let sync_another = |name| std::fs::File::create(small.dir.join(name)).unwrap().sync_all().unwrap();
            sync_another("one");
            let close = |file| {
                drop(file);
                engine.close(SESSION, handle, false).unwrap();
            };
            let open = if stays_open {
                Some(file)
            } else {
                close(file);
                None
            };
            let rename = pb::Rename {
                dir: Ino::ROOT.0,
                name: (&b"tmp"[..]).into(),
                dir2: Ino::ROOT.0,
                name2: (&b"f"[..]).into(),
                ..Default::default()
            };
            engine.rename(SESSION, false, &rename).unwrap();
            if let Some(file) = &open {
                // It is later than what was recorded of it, and what is added need not be there.
                file.write_all_at(b"more", size as u64).unwrap();
                sync_another("another");
            }
            sync();
            let root = small.after_power_loss();
            let staged = crate::small::names(&root.join("staging"));
            let after = disk::start(disk::open(&root));
            while !after.engine.store.staged().unwrap().is_empty() {
                std::thread::yield_now();
            }
            let found = after.engine.read(&[b"f"]).unwrap();
            assert!(found == old || found.starts_with(&new), "{} bytes, {staged:?}", found.len());
            after.stop().unwrap();
            open.into_iter().for_each(close);
            running.stop().unwrap();
        });
    }
}

/// `echo new > f`, then an fsync of something else: that makes the log durable, and the new content has nothing but the name of its staging
/// file on the disk.
#[cfg(target_os = "linux")]
#[test]
fn what_a_file_was_before_it_was_written_anew_is_there_after_a_loss_of_power() {
    for size in [1000, 100_000] {
        on_small_disk(Kind::Ext4Journal, 64, |small| {
            let running = disk::new_at(&small.root());
            let engine = &running.engine;
            let (old, new) = (vec![7; size], vec![8; size]);
            Posix::create(&**engine, &[b"f"], 0o644, &old).unwrap();
            let ino = Ino(engine.resolve(&[b"f"]).unwrap().ino);
            let wait_until_sealed = |engine: &Engine| {
                let begin = Instant::now();
                while !engine.store.staged().unwrap().is_empty() {
                    assert!(begin.elapsed() < Duration::from_secs(30), "something stays staged");
                    std::thread::yield_now();
                }
            };
            wait_until_sealed(engine);
            engine.commit().unwrap();
            let sync =
                || engine.fsync(&pb::Fsync { ino: Ino::ROOT.0, dir: Ino::ROOT.0, ..Default::default() }).unwrap();
            sync(); // the next one needs no other names
            let open = pb::Open { ino: ino.0, dir: Ino::ROOT.0, write: true, truncate: true };
            let (_, Opening::File { handle, file }) = engine.open(SESSION, &open).unwrap() else { panic!() };
            file.write_all_at(&new, 0).unwrap();
            std::fs::File::create(small.dir.join("one")).unwrap().sync_all().unwrap();
            drop(file);
            engine.close(SESSION, handle, false).unwrap();
            wait_until_sealed(engine);
            sync();
            let root = small.after_power_loss();
            let staged = crate::small::names(&root.join("staging"));
            let after = disk::start(disk::open(&root));
            wait_until_sealed(&after.engine);
            let found = after.engine.read(&[b"f"]).unwrap();
            assert!(found == old || found == new, "{} bytes, {staged:?}", found.len());
            after.stop().unwrap();
            running.stop().unwrap();
        });
    }
}

/// The bytes were there already, under another file's name and not on the disk yet.
#[cfg(target_os = "linux")]
#[test]
fn what_was_fsynced_is_there_after_a_loss_of_power_when_a_file_without_fsync_has_the_same_content() {
    on_small_disk(Kind::Ext4Journal, 64, |small| {
        let running = disk::new_at(&small.root());
        let engine = &running.engine;
        let data = vec![7; 100_000];
        let begin = |name: &'static [u8]| {
            let q = pb::Create { dir: Ino::ROOT.0, name: name.into(), mode: 0o644, ..Default::default() };
            let (answer, opening) = engine.create(SESSION, false, &q).unwrap();
            let Opening::File { handle, file } = opening else { panic!("a writer gets a descriptor") };
            file.write_all_at(&data, 0).unwrap();
            (Ino(answer.node.unwrap().ino), handle, file)
        };
        let end = |(ino, handle, file): (Ino, u64, std::fs::File)| {
            drop(file);
            engine.close(SESSION, handle, false).unwrap();
            while engine.store.is_staged(ino).unwrap() {
                std::thread::yield_now();
            }
        };
        end(begin(b"twin"));
        let (ino, handle, file) = begin(b"f");
        file.sync_all().unwrap();
        engine.fsync(&pb::Fsync { ino: ino.0, handle, dir: Ino::ROOT.0, ..Default::default() }).unwrap();
        end((ino, handle, file));
        std::fs::File::create(small.dir.join("another")).unwrap().sync_all().unwrap();
        let after = disk::start(disk::open(&small.after_power_loss()));
        assert!(after.engine.read(&[b"f"]).unwrap() == data);
        after.stop().unwrap();
        running.stop().unwrap();
    });
}

/// The segment of the log before it was dropped a moment ago, which is not on the disk yet.
#[cfg(target_os = "linux")]
#[test]
fn an_fsynced_record_right_after_a_commit_is_there_after_a_loss_of_power() {
    on_small_disk(Kind::Ext4Journal, 64, |small| {
        let running = disk::new_at(&small.root());
        let engine = &running.engine;
        let mkdir = |name: &'static [u8]| {
            let q = pb::Mkdir { dir: Ino::ROOT.0, name: name.into(), mode: 0o755, ..Default::default() };
            engine.mkdir(SESSION, false, &q).unwrap();
        };
        mkdir(b"before");
        engine.commit().unwrap();
        mkdir(b"d");
        engine.fsync(&pb::Fsync { ino: Ino::ROOT.0, dir: Ino::ROOT.0, ..Default::default() }).unwrap();
        let after = disk::start(disk::open(&small.after_power_loss()));
        assert!(after.engine.resolve(&[b"d"]).is_ok());
        after.stop().unwrap();
        running.stop().unwrap();
    });
}
