use super::*;
use crate::folder::DiskFolder;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use delugefs_proto::limits::{INLINE_MAX_BYTES, TORRENT_MIN_BYTES};

struct Lab {
    dir: tempfile::TempDir,
    store: ContentStore,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = DiskFolder::create(&dir.path().join("disk"), "test", None).unwrap();
        Self { store: ContentStore::open(Arc::new(folder), 0).unwrap(), dir }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join("disk").join(name)
    }

    fn stage(&self, ino: u64, bytes: &[u8]) {
        self.store.stage_new(Ino(ino)).unwrap().write_all_at(bytes, 0).unwrap();
    }

    fn job(&self, ino: u64) -> SealJob {
        match self.store.begin_seal(Ino(ino)).unwrap() {
            Seal::Large(job) => job,
            Seal::Small(..) => panic!("small"),
            Seal::Busy | Seal::Doubtful(_) => panic!("busy, or doubtful"),
        }
    }

    /// Write and seal; the content.
    fn seal(&self, ino: u64, bytes: &[u8]) -> ContentId {
        self.stage(ino, bytes);
        let sealed = self.job(ino).run().unwrap();
        assert!(self.store.can_finish(&sealed.ticket).unwrap());
        self.store.finish_seal(&sealed).unwrap();
        sealed.content
    }

    fn reopen(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let folder = DiskFolder::open(&dir.path().join("disk"), None).unwrap();
        Self { store: ContentStore::open(Arc::new(folder), 0).unwrap(), dir }
    }
}

fn sha256(bytes: &[u8]) -> ContentId {
    ContentId::from_slice(digest(&SHA256, bytes).as_ref()).unwrap()
}

fn read(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = length as u64 | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn written_sealed_read_again() {
    let lab = Lab::new();
    let bytes = noise(10_000);
    lab.stage(0x123, &bytes);
    assert_eq!(lab.store.staged().unwrap(), [Ino(0x123)]);
    let stat = lab.store.staged_stat(Ino(0x123)).unwrap().unwrap();
    let reader = lab.store.open_staged(Ino(0x123), false).unwrap().unwrap();
    assert!(lab.store.sync_staged(Ino(0x123)).unwrap() && lab.store.sync_staged(Ino(0x123)).unwrap());
    assert!(!lab.store.sync_staged(Ino(0x124)).unwrap());
    let sealed = lab.job(0x123).run().unwrap();
    assert_eq!((sealed.content, sealed.size, sealed.mtime_ns), (sha256(&bytes), 10_000, stat.mtime_ns));
    assert!(sealed.pieces.is_none());
    assert_eq!(lab.store.has(sealed.content).unwrap(), None);
    assert_eq!(lab.store.usage(), Usage::default());
    lab.store.finish_seal(&sealed).unwrap();
    assert!(!lab.store.is_staged(Ino(0x123)).unwrap());
    assert_eq!(lab.store.has(sealed.content).unwrap(), Some(10_000));
    assert_eq!(read(&lab.store.open_content(sealed.content, 10_000).unwrap()), bytes);
    assert_eq!(read(&reader), bytes);
    let path = lab.path(data_path(sealed.content));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o400);
    lab.store.check(sealed.content, 10_000).unwrap();
    lab.store.barrier().unwrap();
    assert_eq!(lab.store.usage(), Usage { contents: 1, bytes: 10_000 });
    assert_eq!(lab.store.finish_seal(&sealed).unwrap_err().errno, Errno::EBUSY);
    assert_eq!(lab.store.begin_seal(Ino(0x123)).err().unwrap().errno, Errno::ENOENT);
    let lab = lab.reopen();
    assert_eq!(lab.store.usage(), Usage { contents: 1, bytes: 10_000 });
    assert_eq!(lab.store.contents().collect::<FsResult<Vec<_>>>().unwrap(), [(sealed.content, 10_000)]);
    let space = lab.store.free_space().unwrap();
    assert!(space.free <= space.total && space.total > 0);
}

#[test]
fn small_files_stay_until_they_are_recorded_and_large_ones_have_pieces() {
    let lab = Lab::new();
    for size in [0, 1, INLINE_MAX_BYTES] {
        let bytes = noise(size as usize);
        lab.stage(1, &bytes);
        let begin = || match lab.store.begin_seal(Ino(1)).unwrap() {
            Seal::Small(small) => small,
            _ => panic!("{size} bytes are small"),
        };
        let early = begin();
        assert_eq!(early.bytes, bytes);
        assert_eq!(early.mtime_ns, lab.store.staged_stat(Ino(1)).unwrap().unwrap().mtime_ns);
        // A writer that comes and goes between looking and removing, leaving size and time as they were.
        drop(lab.store.open_staged(Ino(1), true).unwrap().unwrap());
        assert!(!lab.store.can_finish(&early.ticket).unwrap());
        let late = begin();
        assert!(lab.store.can_finish(&late.ticket).unwrap() && lab.store.is_staged(Ino(1)).unwrap());
        lab.store.remove_staged(Ino(1)).unwrap();
    }
    for (size, pieces) in [(INLINE_MAX_BYTES + 1, None), (TORRENT_MIN_BYTES, None), (TORRENT_MIN_BYTES + 1, Some(17))] {
        lab.stage(1, &noise(size as usize));
        let sealed = lab.job(1).run().unwrap();
        assert_eq!(sealed.pieces.as_ref().map(|pieces| pieces.len() / 20), pieces);
        if let Some(pieces) = &sealed.pieces {
            torrent::torrent(sealed.content, size, pieces).unwrap();
        }
        lab.store.finish_seal(&sealed).unwrap();
    }
}

#[test]
fn a_file_somebody_can_write_is_never_sealed() {
    let lab = Lab::new();
    let writer = lab.store.stage_new(Ino(1)).unwrap();
    assert_eq!(lab.store.stage_new(Ino(1)).unwrap_err().errno, Errno::EEXIST);
    writer.write_all_at(&noise(9000), 0).unwrap();
    let copy = writer.try_clone().unwrap();
    drop(writer);
    assert!(matches!(lab.store.begin_seal(Ino(1)).unwrap(), Seal::Busy));
    drop(copy);
    // A writer that comes while it is hashed, and one that comes after.
    let job = lab.job(1);
    drop(lab.store.open_staged(Ino(1), true).unwrap().unwrap());
    assert_eq!(job.run().unwrap_err().errno, Errno::EBUSY);
    let sealed = lab.job(1).run().unwrap();
    let writer = lab.store.open_staged(Ino(1), true).unwrap().unwrap();
    assert!(!lab.store.can_finish(&sealed.ticket).unwrap());
    assert_eq!(lab.store.finish_seal(&sealed).unwrap_err().errno, Errno::EBUSY);
    assert!(matches!(lab.store.begin_seal(Ino(1)).unwrap(), Seal::Busy));
    drop(writer);
    assert_eq!(lab.store.finish_seal(&sealed).unwrap_err().errno, Errno::EBUSY);
    // A seal that was begun again, a changed time, a removed and a replaced file.
    let first = lab.job(1).run().unwrap();
    let second = lab.job(1).run().unwrap();
    assert!(!lab.store.can_finish(&first.ticket).unwrap() && lab.store.can_finish(&second.ticket).unwrap());
    let reader = lab.store.open_staged(Ino(1), false).unwrap().unwrap();
    reader.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    // Not to be recorded any more; of one that is, only the content counts.
    assert!(!lab.store.can_finish(&second.ticket).unwrap());
    let third = lab.job(1).run().unwrap();
    assert_eq!(third.mtime_ns, 0);
    fs::remove_file(lab.path("staging/0000000000000001")).unwrap();
    assert_eq!(lab.store.finish_seal(&third).unwrap_err().errno, Errno::EBUSY);
    assert_eq!(lab.store.open_staged(Ino(1), true).unwrap().map(drop), None);
    assert_eq!(lab.store.contents().count(), 0);
}

#[test]
fn equal_contents_are_stored_once_and_a_rotten_one_is_replaced() {
    let lab = Lab::new();
    let bytes = noise(50_000);
    let content = lab.seal(1, &bytes);
    let path = lab.path(data_path(content));
    let inode = fs::metadata(&path).unwrap().ino();
    assert_eq!(lab.seal(2, &bytes), content);
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(lab.store.usage(), Usage { contents: 1, bytes: 50_000 });
    assert_eq!(lab.store.staged().unwrap(), []);

    for damage in [&b"rot"[..], b""] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        match damage.is_empty() {
            true => file.set_len(77).unwrap(),
            false => file.write_all_at(damage, 20_000).unwrap(),
        }
        let error = lab.store.check(content, 50_000).unwrap_err();
        assert!(error.errno == Errno::EIO && error.message.contains(&data_path(content)), "{error}");
        lab.seal(3, &bytes);
        lab.store.check(content, 50_000).unwrap();
        assert_eq!(lab.store.contents().flatten().map(|(_, size)| size).sum::<u64>(), 50_000);
    }
    assert_eq!(lab.reopen().store.usage(), Usage { contents: 1, bytes: 50_000 });
}

#[test]
fn a_copy_starts_as_the_content_with_its_holes_and_time() {
    let lab = Lab::new();
    let file = lab.store.stage_new(Ino(1)).unwrap();
    file.set_len(40 << 20).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", 20 << 20).unwrap();
    drop(file);
    let sealed = lab.job(1).run().unwrap();
    lab.store.finish_seal(&sealed).unwrap();
    let (content, size) = (sealed.content, sealed.size);
    let original = read(&lab.store.open_content(content, size).unwrap());
    for (ino, keep) in [(2, u64::MAX), (3, size), (4, (20 << 20) + 3), (5, 0)] {
        let copy = lab.store.stage_copy(Ino(ino), content, size, keep, Some(-1_500_000_000)).unwrap();
        assert_eq!(read(&copy), original[..keep.min(size) as usize]);
        let stat = lab.store.staged_stat(Ino(ino)).unwrap().unwrap();
        assert_eq!((stat.size, stat.mtime_ns), (keep.min(size), -1_500_000_000));
        assert!(stat.blocks * 512 < 4 << 20, "{} blocks", stat.blocks);
        assert!(matches!(lab.store.begin_seal(Ino(ino)).unwrap(), Seal::Busy));
        copy.write_all_at(b"changed", 0).unwrap();
    }
    assert_eq!(read(&lab.store.open_content(content, size).unwrap()), original);
    assert_eq!(lab.store.stage_copy(Ino(2), content, size, size, None).unwrap_err().errno, Errno::EEXIST);
    assert_eq!(lab.store.stage_copy(Ino(9), content, size + 1, 0, None).unwrap_err().errno, Errno::EIO);
    assert_eq!(lab.store.stage_copy(Ino(9), sha256(b""), 1, 0, None).unwrap_err().errno, Errno::ENOENT);
    let file = lab.store.stage_bytes(Ino(9), b"inline", Some(5)).unwrap();
    assert_eq!((read(&file), lab.store.staged_stat(Ino(9)).unwrap().unwrap().mtime_ns), (b"inline".to_vec(), 5));
    assert_eq!(lab.store.staged().unwrap().len(), 5);
    let marked = |ino| lab.store.is_unsynced_copy(Ino(ino));
    assert_eq!([2, 3, 4, 5, 9].map(marked), [true, true, true, false, true]);
    lab.store.sync_copies();
    assert_eq!(fs::read_dir(lab.path("staging")).unwrap().count(), 5);
}

#[test]
fn what_a_crash_leaves_is_cleaned_up_and_the_rest_kept() {
    let lab = Lab::new();
    lab.stage(0xabc, b"acknowledged");
    for name in ["0000000000000abc.1", "0000000000000def.77", "note.txt", "0000000000000ABC"] {
        fs::write(lab.path("staging").join(name), "half").unwrap();
    }
    let lab = lab.reopen();
    assert_eq!(lab.store.staged().unwrap(), [Ino(0xabc)]);
    let mut names: Vec<_> =
        fs::read_dir(lab.path("staging")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["0000000000000ABC", "0000000000000abc", "note.txt"]);
    assert_eq!(read(&lab.store.open_staged(Ino(0xabc), false).unwrap().unwrap()), b"acknowledged");
}

#[test]
fn garbage_goes_to_the_trash_and_comes_back_when_asked_for() {
    let lab = Lab::new();
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    let kept = lab.seal(1, &noise(5000));
    let gone = lab.seal(2, &noise(6000));
    let pinned = lab.seal(3, &noise(7000));
    let live = HashSet::from([kept]);
    lab.store.pin(pinned);
    lab.store.pin(pinned);
    // Finished since the last collection: perhaps not recorded yet when `live` was made.
    assert_eq!(lab.store.collect(&live, day, now).unwrap(), Collected::default());
    let done = lab.store.collect(&live, day, now).unwrap();
    assert_eq!(done, Collected { moved: 1, moved_bytes: 6000, ..Collected::default() });
    assert_eq!(lab.store.usage(), Usage { contents: 2, bytes: 12_000 });
    lab.store.unpin(pinned);
    assert_eq!(lab.store.collect(&live, day, now).unwrap().moved, 0);
    assert!(lab.store.is_unwanted(pinned) && !lab.store.is_unwanted(kept) && lab.store.loosened() == 0);
    lab.store.unpin(pinned);
    assert!(!lab.store.is_unwanted(pinned) && lab.store.loosened() == 1);
    assert_eq!(lab.store.collect(&live, day, now).unwrap().moved, 1);

    // Whoever asks gets it back, and it is spared once more.
    assert_eq!(lab.store.has(gone).unwrap(), Some(6000));
    assert_eq!(read(&lab.store.open_content(pinned, 7000).unwrap()), noise(7000));
    assert!(fs::read_dir(lab.path("trash")).unwrap().next().is_none());
    assert_eq!(lab.store.collect(&live, day, now).unwrap().moved, 0);
    assert_eq!(lab.store.collect(&live, day, now).unwrap().moved, 2);

    // Referred to again; then its time is over.
    let done = lab.store.collect(&HashSet::from([kept, gone]), day, now + day / 2).unwrap();
    assert_eq!((done.restored, done.deleted), (1, 0));
    let done = lab.store.collect(&HashSet::from([kept, gone]), day, now + day).unwrap();
    assert_eq!((done.restored, done.deleted), (0, 1));
    assert_eq!(lab.store.has(pinned).unwrap(), None);
    assert_eq!(lab.store.has(gone).unwrap(), Some(6000));
    assert_eq!(lab.store.collect(&live, day, now).unwrap().moved, 1);
    assert!(lab.store.purge_trash().unwrap() >= 6000);
    assert_eq!(lab.store.has(gone).unwrap(), None);
    assert_eq!(lab.store.usage(), Usage { contents: 1, bytes: 5000 });
}

/// A collection began without it; then a disk brought a file that has it.
#[test]
fn what_a_join_brings_is_spared_by_a_collection_that_has_begun() {
    for count in [1, 1001] {
        let lab = Lab::new();
        let content = lab.seal(1, &noise(5000));
        let none = HashSet::new();
        lab.store.collect(&none, Duration::MAX, SystemTime::now()).unwrap(); // it is no longer new
        let others = (1..count).map(|n: u32| sha256(&n.to_le_bytes()));
        lab.store.take_back_all(&others.chain([content]).collect::<Vec<_>>()).unwrap();
        assert!(!lab.store.discard(content, SystemTime::now()).unwrap());
        lab.store.collect(&none, Duration::MAX, SystemTime::now()).unwrap();
        assert_eq!(lab.store.collect(&none, Duration::MAX, SystemTime::now()).unwrap().moved, 1);
    }
}

#[test]
fn what_a_disk_that_is_away_may_still_refer_to_stays_in_the_trash() {
    let lab = Lab::new();
    let [hour, month] = [3600, 30 * 86_400].map(Duration::from_secs);
    let (now, live) = (SystemTime::now(), HashSet::new());
    let lasts = |stable| Retention { usual: hour, most: month, stable };
    let [first, second] = [1, 2].map(|n| {
        let content = lab.seal(n, &noise(5000 + n as usize));
        lab.store.collect(&live, lasts(UNIX_EPOCH), now).unwrap();
        assert_eq!(lab.store.collect(&live, lasts(UNIX_EPOCH), now + hour * n as u32).unwrap().moved, 1);
        content
    });
    let collect = |stable, at| lab.store.collect(&live, lasts(stable), at).unwrap().deleted;
    assert_eq!(collect(UNIX_EPOCH, now + month), 0);
    // The first is settled, and the second is not.
    assert_eq!(collect(now + hour, now + hour * 2 - hour / 2), 0);
    assert_eq!(collect(now + hour, now + month), 1);
    assert!(!lab.path(format!("trash/{first}")).exists() && lab.path(format!("trash/{second}")).exists());
    // Room is low.
    assert_eq!((lab.store.shed_trash(hour).unwrap(), lab.store.purge_trash().unwrap() > 0), (0, true));
}

/// To empty it may take seconds, and who holds a lock has none.
#[test]
fn a_file_made_in_the_room_there_is_leaves_the_trash() {
    let lab = Lab::new();
    let gone = lab.seal(1, &noise(5000));
    for _ in 0..2 {
        lab.store.collect(&HashSet::new(), Duration::from_secs(3600), SystemTime::now()).unwrap();
    }
    // A disk on which nothing is free.
    let store = ContentStore::open(lab.store.folder().clone(), u64::MAX).unwrap();
    let wanted = ContentId([1; 32]);
    let is_full = |made: FsResult<File>| made.unwrap_err().errno == Errno::ENOSPC;
    let is_in_trash = || lab.path(format!("trash/{gone}")).exists();
    assert!(is_full(store.incoming_file_in_room(wanted, 9000)) && is_in_trash());
    assert!(is_full(store.incoming_file(wanted, 9000)) && !is_in_trash());
    assert_eq!(store.incoming().unwrap(), []);
}

#[test]
fn a_fetched_file_is_verified_as_a_whole() {
    let lab = Lab::new();
    let bytes = noise(300_000);
    let content = sha256(&bytes);
    let file = lab.store.incoming_file(content, 300_000).unwrap();
    file.write_all_at(&bytes[..100_000], 0).unwrap();
    assert_eq!(lab.store.has(content).unwrap(), None);
    assert_eq!(lab.store.finish_incoming(content, 300_000, &|| false).unwrap_err().errno, Errno::EIO);
    assert_eq!(lab.store.incoming().unwrap(), []);
    let file = lab.store.incoming_file(content, 300_000).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let lab = lab.reopen();
    assert_eq!(read(&lab.store.incoming_file(content, 300_000).unwrap()), bytes);
    assert_eq!(lab.store.incoming().unwrap(), [content]);
    assert_eq!(lab.store.finish_incoming(content, 300_000, &|| true).unwrap_err().errno, Errno::EBUSY);
    lab.store.finish_incoming(content, 300_000, &|| false).unwrap();
    lab.store.finish_incoming(content, 300_000, &|| false).unwrap();
    assert_eq!(lab.store.incoming().unwrap(), []);
    lab.store.check(content, 300_000).unwrap();
    lab.store.sync_content(content).unwrap();
    assert_eq!(lab.store.incoming_file(content, u64::MAX >> 2).unwrap_err().errno, Errno::ENOSPC);
}

/// Whoever is no superuser cannot open it again if it is read-only.
#[test]
fn a_fetched_file_that_cannot_be_finished_can_be_gone_on_with() {
    let lab = Lab::new();
    let bytes = noise(5000);
    let content = sha256(&bytes);
    lab.store.incoming_file(content, 5000).unwrap().write_all_at(&bytes, 0).unwrap();
    let at = lab.path(data_path(content));
    fs::create_dir_all(&at).unwrap(); // in its place
    lab.store.finish_incoming(content, 5000, &|| false).unwrap_err();
    let file = lab.store.incoming_file(content, 5000).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    fs::remove_dir(&at).unwrap();
    lab.store.finish_incoming(content, 5000, &|| false).unwrap();
    assert_eq!(fs::metadata(&at).unwrap().mode() & 0o777, 0o400);
}

#[test]
fn planted_links_are_not_followed() {
    let lab = Lab::new();
    let secret = lab.dir.path().join("secret");
    let bytes = noise(9000);
    fs::write(&secret, &bytes).unwrap();
    let content = sha256(&bytes);
    let link = |name: &str| {
        fs::create_dir_all(lab.path(name).parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&secret, lab.path(name)).unwrap();
    };
    link(&data_path(content));
    link("staging/0000000000000001");
    link(&format!("incoming/{content}"));
    for error in [
        lab.store.has(content).unwrap_err(),
        lab.store.open_content(content, 9000).unwrap_err(),
        lab.store.open_staged(Ino(1), true).unwrap_err(),
        lab.store.open_staged(Ino(1), false).unwrap_err(),
        lab.store.staged_stat(Ino(1)).unwrap_err(),
        lab.store.begin_seal(Ino(1)).err().unwrap(),
        lab.store.incoming_file(content, 9000).unwrap_err(),
        lab.store.finish_incoming(content, 9000, &|| false).unwrap_err(),
        lab.store.contents().next().unwrap().unwrap_err(),
    ] {
        assert!(error.errno == Errno::EIO && error.message.contains("symbolic link"), "{error}");
    }
    for error in [lab.store.stage_new(Ino(1)).unwrap_err(), lab.store.stage_bytes(Ino(1), b"x", None).unwrap_err()] {
        assert!(matches!(error.errno, Errno::EEXIST | Errno::EIO), "{error}");
    }
    // Writing the same content puts a real file in place of the link.
    assert_eq!(lab.seal(2, &bytes), content);
    lab.store.check(content, 9000).unwrap();
    assert_eq!(fs::read(&secret).unwrap(), bytes);

    // A whole shard that is a link elsewhere.
    let other = noise(8000);
    let shard = lab.path("data").join(shard_of(sha256(&other)));
    std::os::unix::fs::symlink(lab.dir.path(), &shard).unwrap();
    assert_eq!(lab.store.has(sha256(&other)).unwrap_err().errno, Errno::EIO);
    lab.stage(3, &other);
    let sealed = lab.job(3).run().unwrap();
    assert_eq!(lab.store.finish_seal(&sealed).unwrap_err().errno, Errno::EIO);
    fs::remove_file(&shard).unwrap();
    lab.store.finish_seal(&sealed).unwrap();
    assert!(!lab.dir.path().join(sha256(&other).to_hex()).exists());
}

#[test]
fn threads_that_seal_collect_and_read_lose_nothing() {
    let lab = Lab::new();
    let all: Vec<Vec<u8>> = (0..8).map(|n| noise(5000 + n)).collect();
    let live: HashSet<ContentId> = all.iter().step_by(2).map(|bytes| sha256(bytes)).collect();
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (lab, all) = (&lab, &all);
            scope.spawn(move || {
                for round in 0..60u64 {
                    let bytes = &all[(round + thread) as usize % all.len()];
                    let content = lab.seal(thread << 32 | round, bytes);
                    assert_eq!(&read(&lab.store.open_content(content, bytes.len() as u64).unwrap()), bytes);
                }
            });
        }
        for _ in 0..40 {
            lab.store.collect(&live, Duration::from_secs(3600), SystemTime::now()).unwrap();
            lab.store.barrier().unwrap();
        }
    });
    for bytes in &all {
        lab.store.check(sha256(bytes), bytes.len() as u64).unwrap();
    }
    let counted = lab.store.usage();
    assert_eq!(counted, lab.reopen().store.usage());
}

/// By its name, without a descriptor of a writer: what is missing is no fault of the disk.
#[test]
fn what_is_made_shorter_while_it_is_hashed_is_sealed_later() {
    let lab = Lab::new();
    lab.stage(1, &noise(100_000));
    let job = lab.job(1);
    let path = lab.path(staging::staging_path(Ino(1)));
    File::options().write(true).open(path).unwrap().set_len(5_000).unwrap();
    assert_eq!(job.run().unwrap_err().errno, Errno::EBUSY);
}

#[test]
fn a_large_sparse_file_is_sealed() {
    // 5 GiB take a few seconds of SHA-256; the usual run has the same shape in small.
    let size: u64 = if std::env::var_os("DELUGEFS_LARGE_TESTS").is_some() { 5 << 30 } else { 300 << 20 };
    let lab = Lab::new();
    let file = lab.store.stage_new(Ino(1)).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(&noise(100_000), size / 2 - 777).unwrap();
    drop(file);
    let sealed = lab.job(1).run().unwrap();
    assert_eq!(sealed.pieces.as_ref().unwrap().len() as u64, delugefs_proto::limits::piece_count(size) * 20);
    lab.store.finish_seal(&sealed).unwrap();
    lab.store.check(sealed.content, size).unwrap();
    assert!(lab.store.staged().unwrap().is_empty());
    assert!(fs::metadata(lab.path(data_path(sealed.content))).unwrap().blocks() * 512 < size / 10);
}

mod aside;
mod copies;
mod damaged;
mod doubt;
mod durable;
mod earlier;
pub(crate) mod full_disk;
mod met;
mod retouched;
