//! Staging files of which a sync has failed.

use super::*;

const INO: Ino = Ino(0x77);

fn doubtful(lab: &Lab) -> SealJob {
    match lab.store.begin_seal(INO).unwrap() {
        Seal::Doubtful(job) => job,
        _ => panic!("it is taken as it is"),
    }
}

fn inode(lab: &Lab) -> u64 {
    fs::metadata(lab.path(format!("staging/{INO}"))).unwrap().ino()
}

#[test]
fn a_copy_takes_its_place_and_that_is_sealed() {
    for reopened in [false, true] {
        let mut lab = Lab::new();
        let mut bytes = noise(1_000_000);
        bytes[200_000..700_000].fill(0);
        lab.stage(INO.0, &bytes);
        let reader = lab.store.open_staged(INO, false).unwrap().unwrap();
        assert!(!lab.store.is_doubtful(INO).unwrap());
        // Also when it is hashed already, and about to get its name.
        let sealed = lab.job(INO.0).run().unwrap();
        lab.store.doubt_staged(INO);
        assert!(!lab.store.can_finish(&sealed.ticket).unwrap());
        assert_eq!(lab.store.finish_seal(&sealed).unwrap_err().errno, Errno::EBUSY);
        if reopened {
            lab = lab.reopen();
        }
        assert!(lab.store.is_doubtful(INO).unwrap());
        let (before, mtime) = (inode(&lab), lab.store.staged_stat(INO).unwrap().unwrap().mtime_ns);
        lab.store.renew_staged(doubtful(&lab)).unwrap();
        assert!(!lab.store.is_doubtful(INO).unwrap());
        assert_ne!(inode(&lab), before);
        let sealed = lab.job(INO.0).run().unwrap();
        assert_eq!((sealed.content, sealed.mtime_ns), (sha256(&bytes), mtime));
        let copy = inode(&lab);
        lab.store.finish_seal(&sealed).unwrap();
        assert_eq!(fs::metadata(lab.path(data_path(sealed.content))).unwrap().ino(), copy);
        assert!(read(&reader) == bytes);
        assert_eq!(fs::read_dir(lab.path("staging")).unwrap().count(), 0);
    }
}

#[test]
fn a_writer_who_comes_back_keeps_his_file_and_its_mark() {
    let lab = Lab::new();
    let bytes = noise(10_000);
    lab.stage(INO.0, &bytes);
    lab.store.doubt_staged(INO);
    let (job, before) = (doubtful(&lab), inode(&lab));
    let writer = lab.store.open_staged(INO, true).unwrap().unwrap();
    assert_eq!(lab.store.renew_staged(job).unwrap_err().errno, Errno::EBUSY);
    assert!(matches!(lab.store.begin_seal(INO).unwrap(), Seal::Busy));
    assert!((inode(&lab), lab.store.is_doubtful(INO).unwrap()) == (before, true));
    // What is recorded of it meanwhile is a copy of what is in memory, and good.
    lab.store.stage_copy_of(Ino(5), INO).unwrap();
    assert!(!lab.store.is_doubtful(Ino(5)).unwrap());
    assert_eq!(lab.job(5).run().unwrap().content, sha256(&bytes));
    drop(writer);
    lab.store.renew_staged(doubtful(&lab)).unwrap();
    assert_eq!(lab.job(INO.0).run().unwrap().content, sha256(&bytes));
    // The next one of that number is another file.
    lab.store.doubt_staged(INO);
    lab.store.remove_staged(INO).unwrap();
    lab.stage(INO.0, &bytes);
    assert!(!lab.store.is_doubtful(INO).unwrap());
    lab.job(INO.0);
}

/// What others have made of it meanwhile is not replaced by what is sealed after a crash.
#[test]
fn the_copy_of_one_that_others_have_changed_is_marked_too() {
    for is_met in [false, true] {
        let lab = Lab::new();
        lab.stage(INO.0, &noise(10_000));
        lab.store.doubt_staged(INO);
        let job = doubtful(&lab);
        if is_met {
            lab.store.mark_met(INO);
        }
        lab.store.renew_staged(job).unwrap();
        assert!(!lab.store.is_doubtful(INO).unwrap());
        assert_eq!(lab.reopen().store.is_met(INO), is_met);
    }
}

/// The bytes of a small file go into the catalog: that is a copy.
#[test]
fn a_small_one_is_recorded_as_it_is() {
    let lab = Lab::new();
    lab.stage(INO.0, b"text");
    lab.store.doubt_staged(INO);
    let Seal::Small(small) = lab.store.begin_seal(INO).unwrap() else { panic!("4 bytes are small") };
    assert_eq!(&small.bytes[..], b"text");
}

#[cfg(target_os = "linux")]
#[test]
fn without_room_for_the_copy_it_stays() {
    full_disk::on_tiny_disk(16, |dir| {
        let folder = DiskFolder::create(&dir.join("disk"), "test", None).unwrap();
        let store = ContentStore::open(Arc::new(folder), 0).unwrap();
        let bytes = noise(9 << 20);
        store.stage_new(INO).unwrap().write_all_at(&bytes, 0).unwrap();
        store.doubt_staged(INO);
        let Seal::Doubtful(job) = store.begin_seal(INO).unwrap() else { panic!("it is taken as it is") };
        // Not ENOSPC: others find room.
        let error = store.renew_staged(job).unwrap_err();
        assert_eq!(error.errno, Errno::EIO);
        assert!(error.message.contains("the disk is full"), "{error}");
        assert!(store.is_doubtful(INO).unwrap());
        assert_eq!(fs::read_dir(dir.join("disk/staging")).unwrap().count(), 1);
        assert!(read(&store.open_staged(INO, false).unwrap().unwrap()) == bytes);
    });
}
