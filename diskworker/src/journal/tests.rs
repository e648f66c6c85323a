//! The log after every kind of end: what was appended is replayed, and nothing without what was before it.

use std::path::Path;

use bytes::Bytes;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Dot, Element, Hlc, Key, Name};

use super::*;
use crate::catalog::blob_id;

fn change(n: u64) -> Changes {
    let body = Body::Dir { ino: Ino(n + 16) };
    let element = Element { dot: Dot { actor: ActorId(7), seq: n + 1 }, body, hlc: Hlc(n) };
    let blob = Bytes::from(format!("blob {n}"));
    let key = Key::Entry(Ino::ROOT, Name::new(format!("n{n}").as_bytes()).unwrap());
    Changes { sets: [(key, vec![element])].into(), blobs: [(blob_id(&blob), blob)].into() }
}

fn found(dir: &Path) -> (Journal, Recovered, Vec<u64>) {
    let (journal, recovered) = Journal::open(File::open(dir).unwrap()).unwrap();
    let numbers = recovered.changes.iter().map(|c| c.sets.values().next().unwrap()[0].hlc.0).collect();
    (journal, recovered, numbers)
}

#[test]
fn replays_what_was_appended_until_it_is_retired() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, recovered, numbers) = found(dir.path());
    assert!(numbers.is_empty() && !recovered.clean);
    (0..5).for_each(|n| journal.append(&change(n)).unwrap());
    journal.sync().unwrap();
    journal.rotate().unwrap();
    (5..8).for_each(|n| journal.append(&change(n)).unwrap());
    drop(journal);
    let (journal, again, numbers) = found(dir.path());
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_ne!(again.actor, recovered.actor, "a new writer");
    journal.append(&change(8)).unwrap();
    journal.rotate().unwrap();
    journal.append(&change(9)).unwrap();
    journal.retire().unwrap();
    // The emptied segment is used again; its old records must not come back.
    journal.rotate().unwrap();
    journal.append(&change(10)).unwrap();
    journal.close(again.actor).unwrap();
    drop(journal);
    let (_, third, numbers) = found(dir.path());
    assert_eq!(numbers, [9, 10]);
    assert!(third.clean && third.damage.is_none());
    assert_ne!(third.actor, again.actor, "a new writer after a clean stop too: it may be an older state");
}

/// It has its name by then, and the log goes on in the one before.
#[test]
fn a_segment_whose_folder_cannot_be_synced_takes_nothing_along() {
    for (errno, has_spare) in [(Errno::EIO, true), (Errno::ENOSPC, true), (Errno::EIO, false)] {
        let dir = tempfile::tempdir().unwrap();
        let (journal, ..) = found(dir.path());
        journal.append(&change(0)).unwrap();
        if has_spare {
            journal.rotate().unwrap();
            journal.retire().unwrap();
            journal.append(&change(1)).unwrap();
        }
        segment::FOLDER_FAILS.set(Some(errno));
        for _ in 0..2 {
            assert_eq!(journal.rotate().is_ok(), errno == Errno::ENOSPC);
        }
        journal.append(&change(2)).unwrap();
        assert_eq!(journal.rotate().is_ok(), errno == Errno::ENOSPC);
        segment::FOLDER_FAILS.set(None);
        journal.append(&change(3)).unwrap();
        // Only the process ends here.
        let image = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
            std::fs::copy(entry.path(), image.path().join(entry.file_name())).unwrap();
        }
        let before: &[u64] = if has_spare { &[1, 2, 3] } else { &[0, 2, 3] };
        assert_eq!(found(image.path()).2, before);
        journal.rotate().unwrap();
        journal.append(&change(4)).unwrap();
        journal.retire().unwrap();
        assert!(journal.inner.lock().has_dropped, "it may come back");
        journal.append(&change(5)).unwrap();
        drop(journal);
        let (_, recovered, numbers) = found(dir.path());
        assert_eq!((numbers, recovered.damage), (vec![4, 5], None));
    }
}

/// No commit succeeds meanwhile, and none drops them.
#[test]
fn a_folder_that_cannot_be_synced_does_not_fill_with_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, ..) = found(dir.path());
    segment::FOLDER_FAILS.set(Some(Errno::EIO));
    for n in 0..5 {
        journal.append(&change(n)).unwrap();
        assert!(journal.rotate().is_err());
    }
    segment::FOLDER_FAILS.set(None);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "with `state`, and the one in use");
    journal.rotate().unwrap();
    journal.retire().unwrap();
    journal.append(&change(5)).unwrap();
    drop(journal);
    assert_eq!(found(dir.path()).2, [5]);
}

#[test]
fn a_spare_segment_that_is_gone_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, ..) = found(dir.path());
    journal.append(&change(0)).unwrap();
    journal.rotate().unwrap();
    journal.retire().unwrap();
    std::fs::remove_file(dir.path().join(SPARE)).unwrap();
    journal.append(&change(1)).unwrap();
    assert!(journal.rotate().is_err());
    journal.append(&change(2)).unwrap();
    journal.rotate().unwrap();
    journal.retire().unwrap();
    journal.append(&change(3)).unwrap();
    drop(journal);
    assert_eq!(found(dir.path()).2, [3]);
}

/// A commit comes while somebody syncs: the next one must not rely on what that sync has seen.
#[test]
fn a_segment_dropped_during_a_sync_is_gone_for_good_before_a_record_behind_it_is_safe() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, ..) = found(dir.path());
    journal.append(&change(0)).unwrap();
    let mut synced = 0;
    let under_way = journal.to_sync();
    assert!(!under_way.has_dropped && under_way.segments.len() == 1);
    journal.rotate().unwrap();
    journal.retire().unwrap();
    journal.append(&change(1)).unwrap();
    journal.sync_these(&mut synced, under_way).unwrap();
    assert!(synced < journal.inner.lock().next_lsn, "it knows nothing of the later record");
    let next = journal.to_sync();
    assert!(next.has_dropped && next.upto == journal.inner.lock().next_lsn);
}

/// The machine goes down after a spare segment was taken, and before any of its names but the first reached the disk.
#[test]
fn a_segment_used_again_is_whole_under_its_old_name() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, ..) = found(dir.path());
    let name = |journal: &Journal| segment::name(journal.inner.lock().current.first_lsn);
    (0..3).for_each(|n| journal.append(&change(n)).unwrap());
    let first = name(&journal);
    journal.rotate().unwrap();
    (3..6).for_each(|n| journal.append(&change(n)).unwrap());
    let second = name(&journal);
    journal.sync().unwrap();
    journal.retire().unwrap();
    journal.rotate().unwrap();
    let again = name(&journal);
    drop(journal);
    std::fs::rename(dir.path().join(again), dir.path().join(first)).unwrap();
    assert!(dir.path().join(second).exists());
    let (_, recovered, numbers) = found(dir.path());
    assert_eq!((numbers, recovered.damage), (vec![0, 1, 2, 3, 4, 5], None), "what was synced is there");
}

/// The end of a segment did not reach the disk, and the one begun after it did.
#[test]
fn nothing_is_taken_without_what_was_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, ..) = found(dir.path());
    (0..5).for_each(|n| journal.append(&change(n)).unwrap());
    let first = segment::name(journal.inner.lock().current.first_lsn);
    journal.rotate().unwrap();
    (5..8).for_each(|n| journal.append(&change(n)).unwrap());
    drop(journal);
    let path = dir.path().join(first);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|six| six == b"blob 3").unwrap();
    bytes[at..].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let (journal, recovered, numbers) = found(dir.path());
    assert_eq!(numbers, [0, 1, 2]);
    assert!(recovered.damage.is_some(), "{:?}", recovered.damage);
    // The next life begins far behind that, and goes on from what was taken.
    journal.append(&change(3)).unwrap();
    drop(journal);
    assert_eq!(found(dir.path()).2, [0, 1, 2, 3]);
}

#[test]
fn a_segment_used_again_ends_where_its_records_end() {
    let long = |n: u64| {
        let mut change = change(n);
        let blob = Bytes::from(vec![0xee; 3000]);
        change.blobs.insert(blob_id(&blob), blob);
        change
    };
    let dir = tempfile::tempdir().unwrap();
    let (journal, ..) = found(dir.path());
    (0..5).for_each(|n| journal.append(&long(n)).unwrap());
    journal.rotate().unwrap();
    journal.retire().unwrap();
    journal.append(&change(5)).unwrap();
    journal.rotate().unwrap();
    journal.retire().unwrap();
    // The first segment is in use again, and the record ends inside of an old one.
    journal.append(&change(6)).unwrap();
    drop(journal);
    let (_, recovered, numbers) = found(dir.path());
    assert_eq!((numbers, recovered.damage), (vec![6], None));
}

#[test]
fn what_could_not_be_replayed_is_not_appended() {
    let with = |n: u64, len: usize| {
        let mut change = change(n);
        let blob = Bytes::from(vec![7; len]);
        change.blobs.insert(blob_id(&blob), blob);
        change
    };
    let dir = tempfile::tempdir().unwrap();
    let (journal, ..) = found(dir.path());
    journal.append(&change(0)).unwrap();
    let end = journal.len_bytes();
    let refused = journal.append(&with(1, RECORD_MAX_BYTES)).unwrap_err();
    assert_eq!((os::errno(&refused), journal.len_bytes()), (Errno::EFBIG, end));
    journal.append(&with(2, RECORD_MAX_BYTES - 1000)).unwrap();
    journal.append(&change(3)).unwrap();
    drop(journal);
    let (_, recovered, numbers) = found(dir.path());
    assert_eq!((numbers, recovered.damage), (vec![0, 2, 3], None));
}

#[test]
fn a_damaged_tail_ends_the_log_and_nothing_before_it() {
    for cut in [1usize, 20, 60] {
        let dir = tempfile::tempdir().unwrap();
        let (journal, ..) = found(dir.path());
        (0..4).for_each(|n| journal.append(&change(n)).unwrap());
        let end = journal.len_bytes() as usize;
        let path = dir.path().join(segment::name(journal.inner.lock().current.first_lsn));
        drop(journal);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"\xff", (end - cut) as u64).unwrap();
        let (journal, recovered, numbers) = found(dir.path());
        assert_eq!(numbers, [0, 1, 2], "damage {cut} bytes before the end");
        assert!(recovered.damage.is_some() && !recovered.clean);
        // Work goes on, and the next start finds both.
        journal.append(&change(7)).unwrap();
        drop(journal);
        let (journal, _, numbers) = found(dir.path());
        assert_eq!(numbers, [0, 1, 2, 7]);
        journal.retire().unwrap();
        assert!(found(dir.path()).2.is_empty());
    }
}
