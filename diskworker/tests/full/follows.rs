//! A full disk goes on taking what other disks have: what they removed is a way out for it, and it decides on what it knows.

use std::io::Read;

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

/// Nobody knows what a pack leads to before its end.
#[test]
fn a_pack_without_end_does_not_fill_a_disk() {
    on_small_disk(Kind::Ext4, 48, |small| {
        let (running, other) = (start(small), Disk::new());
        let (engine, other) = (&running.engine, other.engine());
        for n in 0..9000 {
            Posix::create(&**other, &[format!("n{n}").as_bytes()], 0o600, &noise(4000, n)).unwrap();
        }
        other.commit().unwrap();
        let (mut pack, offer) = (Vec::new(), Offer { state: other.committed(), base: None });
        other.export(&offer, &mut pack).unwrap();
        let free = || engine.free_space().unwrap().free_bytes;
        let (before, mut least) = (free(), u64::MAX);
        assert!(pack.len() as u64 > before / 5 * 4, "{} of {before}", pack.len());
        let mut watched = Watched { pack: &pack, look: || least = least.min(free()) };
        let error = engine.join(&mut watched, offer.state.commit, Some("cut")).unwrap_err();
        assert_eq!(error.errno, Errno::ENOSPC, "{error}");
        assert!(least > before / 5, "{least} of {before} were left");
        wait_until("the room to be free again", || free() > before / 10 * 9);
        mkdir(engine, "room").unwrap();
        running.stop().unwrap();
    });
}

/// Somebody looks whenever more is read.
struct Watched<'a, F> {
    pack: &'a [u8],
    look: F,
}

impl<F: FnMut()> Read for Watched<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        (self.look)();
        self.pack.read(into)
    }
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
