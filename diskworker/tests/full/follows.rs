//! A full disk goes on taking what other disks have: what they removed is a way out for it, and it decides on what it knows.

use delugefs_diskworker::engine::{Alone, Engine, Offer};
use delugefs_proto::local_pb as pb;
use nix::errno::Errno;

use super::brim::{mkdir, start};
use crate::disk::{Disk, Posix, SESSION};
use crate::small::{Kind, Small, noise, on_small_disk};
use crate::worker::wait_until;

fn take(from: &Engine, to: &Engine) -> Result<(), Errno> {
    let mut pack = Vec::new();
    from.commit().unwrap();
    let base = from.known_base(&[to.committed().commit]).unwrap();
    let offer = Offer { state: from.committed(), base };
    from.export(&offer, &mut pack).unwrap();
    to.join(&mut &pack[..], offer.state.commit, None).map(drop).map_err(|error| error.errno)
}

/// Until not even a commit fits beside the reserve.
fn fill(small: &Small, engine: &Engine, prefix: &str) {
    small.fill(0);
    for n in 0.. {
        assert!(n < 100_000, "it takes everything");
        let _ = mkdir(engine, &format!("{prefix}{n}"));
        let _ = engine.commit();
        if engine.refusal().is_some() {
            break;
        }
    }
    assert_eq!(mkdir(engine, "x"), Err(Errno::ENOSPC));
}

#[test]
fn what_others_removed_makes_room_on_a_full_disk() {
    on_small_disk(Kind::Ext4, 48, |small| {
        let (running, other) = (start(small), Disk::new());
        let (engine, other) = (&running.engine, other.engine());
        for n in 0..16 {
            let (name, bytes) = (format!("f{n}"), noise(1_500_000, n));
            Posix::create(&**engine, &[name.as_bytes()], 0o600, &bytes).unwrap();
        }
        wait_until("all is sealed", || engine.status().unwrap().staged_files == 0);
        engine.commit().unwrap();
        take(engine, other).unwrap();
        fill(small, engine, "d");
        for n in 0..12 {
            let q = pb::Unlink { dir: 1, name: format!("f{n}").into(), ..Default::default() };
            other.unlink(SESSION, false, &q).unwrap();
        }
        take(other, engine).unwrap();
        wait_until("there is room", || engine.refusal().is_none());
        mkdir(engine, "room").unwrap();

        // More than there is room for comes, and goes, and takes nothing with it.
        fill(small, engine, "e");
        for n in 0..3000 {
            Posix::create(&**other, &[format!("n{n}").as_bytes()], 0o600, &noise(4000, n)).unwrap();
        }
        let free = small.free();
        assert_eq!(take(other, engine), Err(Errno::ENOSPC));
        assert!(small.free() + (1 << 20) > free, "{} bytes are left of {free}", small.free());
        assert_eq!(engine.scrub(&Alone).unwrap().problems, Vec::<String>::new());
        small.release();
        wait_until("there is room", || engine.refusal().is_none());
        take(other, engine).unwrap();
        assert_eq!(engine.read(&[b"n2999"]).unwrap(), noise(4000, 2999));
        running.stop().unwrap();
    });
}
