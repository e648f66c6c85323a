//! What is written down of a staging file.

use super::*;

const INO: Ino = Ino(0x77);

fn note(lab: &Lab) -> PathBuf {
    lab.path(format!("staging/{INO}.met"))
}

/// Those of a file that is gone would be taken for those of the new one.
#[test]
fn a_new_file_of_that_number_has_no_note() {
    let lab = Lab::new();
    lab.stage(INO.0, b"text");
    lab.store.note_met(INO, b"note").unwrap();
    // As on a disk that cannot remove it now.
    fs::remove_file(note(&lab)).unwrap();
    fs::create_dir(note(&lab)).unwrap();
    lab.store.remove_staged(INO).unwrap();
    assert!(lab.store.stage_new(INO).is_err() && lab.store.stage_bytes(INO, b"other", None).is_err());
    assert!(!lab.store.is_staged(INO).unwrap());
    fs::remove_dir(note(&lab)).unwrap();
    fs::write(note(&lab), "note").unwrap();
    drop(lab.store.stage_new(INO).unwrap());
    assert!(lab.store.noted(INO).is_none() && !note(&lab).exists());
    assert_eq!(fs::read_dir(lab.path("staging")).unwrap().count(), 1);
}

/// It takes some of the reserve, which is for such things, and not the trash, which is for people.
#[test]
fn a_note_needs_none_of_the_room_for_contents() {
    let lab = Lab::new();
    let removed = lab.seal(1, &noise(10_000));
    lab.stage(INO.0, b"text");
    for _ in 0..2 {
        lab.store.collect(&HashSet::new(), Duration::from_secs(3600), SystemTime::now()).unwrap();
    }
    let full = ContentStore::open(lab.store.folder().clone(), u64::MAX).unwrap();
    assert_eq!(full.stage_new(Ino(2)).unwrap_err().errno, Errno::ENOSPC);
    let removed = lab.path(format!("trash/{removed}"));
    fs::write(&removed, b"in the trash").unwrap();
    full.note_met(INO, b"note").unwrap();
    assert_eq!(full.noted(INO).unwrap(), b"note");
    assert!(removed.exists());
    assert!(full.sync_note(INO).unwrap() && !full.sync_note(INO).unwrap(), "once for each");
    full.note_met(INO, b"another").unwrap();
    full.sync_notes(&[INO, Ino(2)]).unwrap();
    assert!(!full.sync_note(INO).unwrap());
}
