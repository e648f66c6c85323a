//! A few blocks left, fewer with every round: whatever step fails for lack of room, nothing of it is lost or half done.

use std::sync::Arc;
use std::time::Duration;

use delugefs_diskworker::engine::{Alone, Engine, Running, Settings, make_catalog};
use delugefs_diskworker::folder::DiskFolder;
use delugefs_proto::ids::ClusterId;
use delugefs_proto::local_pb as pb;
use nix::errno::Errno;

use crate::disk::{Posix, SESSION};
use crate::small::{Kind, Small, names, noise, on_small_disk};
use crate::worker::wait_until;

pub fn start(small: &Small) -> Running {
    let root = small.root();
    let folder = match root.exists() {
        true => crate::disk::open(&root),
        false => DiskFolder::create_with(&root, "test", Some(ClusterId([1; 16])), make_catalog).unwrap(),
    };
    let settings = Settings { reserve_bytes: 0, retention: Duration::from_secs(3600) };
    Running::start(Arc::new(folder), settings).unwrap()
}

pub fn mkdir(engine: &Engine, name: &str) -> Result<(), Errno> {
    let q = pb::Mkdir { dir: 1, name: name.to_owned().into(), mode: 0o755, uid: 1, gid: 2, token: 0 };
    engine.mkdir(SESSION, false, &q).map(drop).map_err(|error| error.errno)
}

fn listed(engine: &Engine) -> Vec<String> {
    let names = engine.list(1).unwrap().into_iter().map(|(name, _)| String::from_utf8(name).unwrap());
    names.collect()
}

fn sweep(kind: Kind) {
    on_small_disk(kind, 40, |small| {
        let mut running = start(small);
        let mut acknowledged: Vec<String> = Vec::new();
        let mut full = [0; 2];
        for round in 0..14u64 {
            let engine = running.engine.clone();
            // The ballast would hide what is looked for here. It comes back whenever there is room.
            drop(std::fs::remove_file(small.root().join("journal/ballast")));
            small.fill(4096 * (13 - round));
            for n in 0..4 {
                let name = format!("r{round:02}-{n}");
                match mkdir(&engine, &name) {
                    Ok(()) => acknowledged.push(name),
                    Err(errno) => assert_eq!(errno, Errno::ENOSPC),
                }
                let (name, bytes) = (format!("r{round:02}-{n}-file"), noise(3000 * n, n as u64));
                match Posix::create(&*engine, &[name.as_bytes()], 0o600, &bytes) {
                    Ok(()) => acknowledged.push(name),
                    Err(error) => {
                        assert_eq!(error.errno, Errno::ENOSPC, "{error}");
                        full[0] += 1;
                        // Made, and then its bytes did not fit: then it is there, as open(2) said.
                        if engine.resolve(&[name.as_bytes()]).is_ok() {
                            acknowledged.push(name);
                        }
                    }
                }
                if let Err(error) = engine.commit() {
                    assert_eq!(error.errno, Errno::ENOSPC, "{error}");
                    full[1] += 1;
                }
            }
            acknowledged.sort();
            assert_eq!(listed(&engine), acknowledged, "round {round}");
            // Removing always works.
            let gone = acknowledged.iter().position(|name| !name.ends_with("-file")).unwrap();
            let name = acknowledged.remove(gone).into();
            engine.rmdir(SESSION, false, &pb::Rmdir { dir: 1, name, expect_ino: 0 }).unwrap();
            if round % 3 == 2 {
                // A crash in the middle of it. The copy has more room: what is looked at is what was left.
                let image = tempfile::tempdir().unwrap();
                let copy = || {
                    let mut cp = std::process::Command::new("cp");
                    cp.arg("-a").arg(small.root()).arg(image.path()).status().unwrap().success()
                };
                // Its threads go on: a file may vanish while it is copied.
                while !copy() {
                    std::fs::remove_dir_all(image.path().join("d")).unwrap();
                }
                let folder = crate::disk::open(&image.path().join("d"));
                let settings = Settings { reserve_bytes: 0, retention: Duration::from_secs(3600) };
                let again = Running::start(Arc::new(folder), settings).unwrap();
                assert_eq!(listed(&again.engine), acknowledged, "round {round}, after a crash");
                assert_eq!(again.engine.scrub(&Alone).unwrap().problems, Vec::<String>::new());
                again.stop().unwrap();
            }
            small.release();
            engine.commit().unwrap();
            assert_eq!(engine.refusal(), None);
            assert_eq!(engine.scrub(&Alone).unwrap().problems, Vec::<String>::new(), "round {round}");
            let leftovers = names(&small.root().join("catalog.git/objects/pack"));
            assert!(leftovers.iter().all(|name| name.starts_with("pack-")), "{leftovers:?}");
            let journal = names(&small.root().join("journal"));
            assert!(journal.len() <= 4, "{journal:?}");
            drop(engine);
            if round % 4 == 3 {
                running.stop().unwrap();
                running = start(small);
            }
        }
        assert!(full[0] > 0 && full[1] > 0, "never full: {full:?}");
        assert_eq!(listed(&running.engine), acknowledged);
        running.stop().unwrap();
    });
}

#[test]
fn the_last_blocks_of_a_tmpfs() {
    sweep(Kind::Tmpfs);
}

#[test]
fn the_last_blocks_of_an_ext4() {
    sweep(Kind::Ext4);
}

/// Consolidation needs room for a second copy of the catalog. Without it the packs stay, and the next time is another.
#[test]
fn no_room_to_consolidate() {
    on_small_disk(Kind::Tmpfs, 120, |small| {
        let running = start(small);
        let engine = &running.engine;
        // Names that do not compress, so that the packs are large beside what a commit takes.
        let mut made = 0;
        let mut more = |engine: &Engine, names: usize| {
            for _ in 0..names {
                let name: String = noise(120, made).iter().map(|b| format!("{b:02x}")).collect();
                mkdir(engine, &name).unwrap();
                made += 1;
            }
            engine.commit().unwrap();
        };
        let packs = || names(&small.root().join("catalog.git/objects/pack")).len() / 2;
        while packs() < 30 {
            more(engine, 200);
        }
        small.fill(1 << 20);
        // New names are not taken any more, but changes are.
        let list = engine.list(1).unwrap();
        let mut dirs = list.iter().cycle();
        while small.free() > 300_000 && packs() < 40 {
            for (mode, (_, attr)) in dirs.by_ref().take(2).enumerate() {
                let q = pb::SetAttr { ino: attr.ino, dir: 1, mode: Some(0o700 + mode as u32), ..Default::default() };
                engine.set_attr(SESSION, &q).unwrap();
            }
            engine.commit().unwrap();
        }
        assert!(packs() > 32, "{} packs, {} bytes free", packs(), small.free());
        assert_eq!(engine.refusal(), None);
        assert_eq!(engine.scrub(&Alone).unwrap().problems, Vec::<String>::new());
        small.release();
        engine.commit().unwrap();
        more(engine, 2);
        assert!(packs() < 5, "{} packs", packs());
        assert_eq!(engine.list(1).unwrap().len() as u64, made);
        assert_eq!(engine.scrub(&Alone).unwrap().problems, Vec::<String>::new());
        running.stop().unwrap();
    });
}

/// Written, closed, and then there is no room for the directory in `data/` it belongs into.
#[test]
fn no_room_to_seal() {
    on_small_disk(Kind::Ext4, 40, |small| {
        let running = start(small);
        let engine = &running.engine;
        let content = |n: u64| noise(9000, n);
        let mut open = Vec::new();
        for n in 0..20 {
            let q = pb::Create { dir: 1, name: format!("f{n}").into(), mode: 0o600, uid: 1, gid: 2, ino: 0 };
            let (_, opening) = Engine::create(engine, SESSION, false, &q).unwrap();
            let delugefs_diskworker::engine::Opening::File { handle, file } = opening else { panic!() };
            std::os::unix::fs::FileExt::write_all_at(&file, &content(n), 0).unwrap();
            file.sync_all().unwrap();
            open.push(handle);
        }
        engine.commit().unwrap();
        drop(std::fs::remove_file(small.root().join("journal/ballast")));
        small.fill(0);
        for handle in open {
            engine.close(SESSION, handle, false).unwrap();
        }
        wait_until("it is noticed", || engine.refusal().is_some());
        for n in 0..20 {
            assert!(engine.read(&[format!("f{n}").as_bytes()]).unwrap() == content(n));
        }
        assert!(engine.status().unwrap().staged_files > 0);
        small.release();
        wait_until("all is sealed", || engine.status().unwrap().staged_files == 0);
        wait_until("it is writable", || engine.refusal().is_none());
        for n in 0..20 {
            assert!(engine.read(&[format!("f{n}").as_bytes()]).unwrap() == content(n));
        }
        assert_eq!(engine.scrub(&Alone).unwrap().problems, Vec::<String>::new());
        running.stop().unwrap();
    });
}
