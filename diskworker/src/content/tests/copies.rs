//! Staging files that began as a copy, and the marks they have until they are synced.

use super::*;

const INO: Ino = Ino(0x55);

fn mark(lab: &Lab) -> PathBuf {
    lab.path(format!("staging/{INO}.copy"))
}

/// A file that was opened for writing, and its first bytes.
fn copied(lab: &Lab) -> Vec<u8> {
    let bytes = noise(3000);
    drop(lab.store.stage_bytes(INO, &bytes, None).unwrap());
    assert!(mark(lab).is_file());
    bytes
}

/// As on a disk that cannot remove it now.
fn stick(lab: &Lab) {
    fs::remove_file(mark(lab)).unwrap();
    fs::create_dir(mark(lab)).unwrap();
}

#[test]
fn one_that_cannot_be_opened_is_synced_the_next_time() {
    let lab = Lab::new();
    copied(&lab);
    let (path, aside) = (lab.path(format!("staging/{INO}")), lab.path("staging/aside"));
    fs::rename(&path, &aside).unwrap();
    std::os::unix::fs::symlink("aside", &path).unwrap();
    lab.store.sync_copies();
    assert!(mark(&lab).is_file() && lab.store.is_unsynced_copy(INO));
    fs::rename(&aside, &path).unwrap();
    lab.store.sync_copies();
    assert!(!mark(&lab).exists() && !lab.store.is_unsynced_copy(INO));
}

#[test]
fn nobody_is_told_that_it_is_safe_while_it_is_marked() {
    let lab = Lab::new();
    copied(&lab);
    stick(&lab);
    lab.store.sync_copies();
    assert!(lab.store.copy_was_synced(INO).is_err() && lab.store.sync_staged(INO).is_err());
    fs::remove_dir(mark(&lab)).unwrap();
    assert!(lab.store.sync_staged(INO).unwrap());
    assert!(!lab.store.is_unsynced_copy(INO));
}

#[test]
fn a_new_file_of_that_number_has_no_mark() {
    let lab = Lab::new();
    copied(&lab);
    stick(&lab);
    lab.store.remove_staged(INO).unwrap();
    assert!(lab.store.stage_new(INO).is_err());
    assert!(!lab.store.is_staged(INO).unwrap());
    // The second mark is that of the file before, which nothing could remove.
    fs::remove_dir(mark(&lab)).unwrap();
    fs::write(mark(&lab), "another life").unwrap();
    drop(lab.store.stage_new(INO).unwrap());
    assert!(!mark(&lab).exists());
}

#[test]
fn a_doubtful_one_keeps_its_mark_until_another_takes_its_place() {
    let lab = Lab::new();
    drop(lab.store.stage_bytes(INO, &noise(9000), None).unwrap());
    lab.store.doubt_staged(INO);
    lab.store.sync_copies();
    assert!(mark(&lab).is_file());
    let Seal::Doubtful(job) = lab.store.begin_seal(INO).unwrap() else { panic!("it is taken as it is") };
    lab.store.renew_staged(job).unwrap();
    assert!(!mark(&lab).exists() && !lab.store.is_unsynced_copy(INO));
}

#[test]
fn what_is_missing_of_a_copy_is_told_from_what_was_written() {
    let bytes = noise(700_000);
    let mut changed = bytes.clone();
    changed[600_000..600_010].fill(1);
    let mut zeroed = bytes.clone();
    zeroed[512..5120].fill(0);
    let mut both = changed.clone();
    both[512..5120].fill(0);
    let longer = [&bytes[..], b"more"].concat();
    let cases = [
        (&bytes[..], Copied::Whole),
        (&changed, Copied::Whole),
        (&longer, Copied::Whole),
        (&[], Copied::Lacking),
        (&bytes[..1000], Copied::Lacking),
        (&zeroed, Copied::Lacking),
        (&both, Copied::Changed),
        (&changed[..650_000], Copied::Changed),
    ];
    for (at, (staged, expected)) in cases.into_iter().enumerate() {
        let lab = Lab::new();
        lab.stage(INO.0, staged);
        let read = |into: &mut [u8], at: u64| {
            into.copy_from_slice(&bytes[at as usize..at as usize + into.len()]);
            Ok(())
        };
        assert_eq!(lab.store.compare_copy(INO, bytes.len() as u64, read).unwrap(), expected, "case {at}");
    }
}
