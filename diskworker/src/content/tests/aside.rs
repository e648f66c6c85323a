//! Damaged contents are set aside, and whole ones never.

use super::*;
use std::sync::Mutex as StdMutex;

fn aside(lab: &Lab, content: ContentId) -> PathBuf {
    lab.path(format!("{}.damaged", data_path(content)))
}

fn spoil(lab: &Lab, content: ContentId, spoil: impl FnOnce(&File)) {
    let path = lab.path(data_path(content));
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    spoil(&File::options().write(true).open(path).unwrap());
}

fn held(lab: &Lab) -> Vec<ContentId> {
    lab.store.held().map(Result::unwrap).collect()
}

#[test]
fn what_is_damaged_is_not_held_any_more_and_comes_back_when_it_is_written_again() {
    for (ino, is_cut) in [(1, false), (2, true)] {
        let lab = Lab::new();
        let told: Arc<StdMutex<Vec<bool>>> = Arc::default();
        let tells = told.clone();
        lab.store.watch(Box::new(move |_, held| tells.lock().unwrap().push(held)));
        let bytes = noise(10_000);
        let content = lab.seal(ino, &bytes);
        spoil(&lab, content, |file| match is_cut {
            true => file.set_len(9_999).unwrap(),
            false => file.write_all_at(b"rot", 5_000).unwrap(),
        });
        lab.store.usage();
        let error = lab.store.verify(content, 10_000).unwrap_err();
        assert!(error.errno == Errno::EIO && error.to_string().contains("is damaged"), "{error}");
        assert!(lab.store.has(content).unwrap().is_none() && held(&lab).is_empty());
        assert_eq!(lab.store.usage(), Usage::default());
        assert_eq!(*told.lock().unwrap(), [true, false]);
        assert!(aside(&lab, content).exists() && lab.store.contents().next().is_none());
        // It survives a start and a collection, as a file has it still.
        let lab = lab.reopen();
        let live = HashSet::from([content]);
        lab.store.collect(&live, Duration::ZERO, SystemTime::now()).unwrap();
        assert!(aside(&lab, content).exists() && lab.store.has(content).unwrap().is_none());
        lab.seal(ino, &bytes);
        assert!(!aside(&lab, content).exists());
        lab.store.verify(content, 10_000).unwrap();
        assert_eq!(held(&lab), [content]);
    }
}

/// Whatever length somebody says it has.
#[test]
fn what_somebody_says_is_damaged_is_looked_at() {
    let lab = Lab::new();
    let content = lab.seal(1, &noise(10_000));
    let look = || lab.store.suspect(content, false).unwrap();
    assert_eq!(look(), Suspect::Whole);
    assert_eq!(lab.store.suspect(ContentId([7; 32]), true).unwrap(), Suspect::Absent);
    spoil(&lab, content, |file| file.set_len(9_999).unwrap());
    assert_eq!((look(), look()), (Suspect::SetAside(format!("{content}.damaged")), Suspect::Absent));
    assert!(aside(&lab, content).exists() && held(&lab).is_empty());
}

#[test]
fn remains_go_when_no_file_has_them() {
    let lab = Lab::new();
    let content = lab.seal(1, &noise(10_000));
    spoil(&lab, content, |file| file.set_len(0).unwrap());
    lab.store.verify(content, 10_000).unwrap_err();
    lab.store.collect(&HashSet::new(), Duration::from_secs(3600), SystemTime::now()).unwrap();
    assert!(!aside(&lab, content).exists());
}

/// The catalog may say anything, and so may who asks.
#[test]
fn a_wrong_length_that_somebody_claims_sets_nothing_aside() {
    let lab = Lab::new();
    let content = lab.seal(1, &noise(10_000));
    lab.store.verify(content, 9_000).unwrap_err();
    assert_eq!((lab.store.has(content).unwrap(), held(&lab)), (Some(10_000), vec![content]));
    assert!(!aside(&lab, content).exists());
}

/// A bad sector, or a file system that has checksums of its own.
#[test]
fn what_a_scrub_cannot_read_is_not_held_until_it_can_be_read_again() {
    let lab = Lab::new();
    let content = lab.seal(1, &noise(10_000));
    hash::UNREADABLE.set(true);
    // Nobody but a scrub takes an error for the end of a file: a cable may be loose.
    assert_eq!(lab.store.verify(content, 10_000).unwrap_err().errno, Errno::EIO);
    assert_eq!(held(&lab), [content]);
    // Nor does a scrub; and where this is the only copy it stays: the rest of it may be readable.
    assert_eq!(lab.store.check_or_take_back(content, 10_000, &|| false).unwrap_err().errno, Errno::EIO);
    assert_eq!(lab.store.suspect(content, false).unwrap_err().errno, Errno::EIO);
    assert_eq!(held(&lab), [content]);
    assert!(matches!(lab.store.suspect(content, true).unwrap(), Suspect::SetAside(_)));
    assert!(held(&lab).is_empty() && aside(&lab, content).exists());
    assert_eq!(lab.store.check_or_take_back(content, 10_000, &|| false).unwrap_err().errno, Errno::ENOENT);

    hash::UNREADABLE.set(false);
    lab.store.check_or_take_back(content, 10_000, &|| false).unwrap();
    assert_eq!((held(&lab), lab.store.has(content).unwrap()), (vec![content], Some(10_000)));
    assert!(!aside(&lab, content).exists());
}

/// Who reads it has met an error.
#[test]
fn what_somebody_cannot_read_is_tried_and_noted() {
    let lab = Lab::new();
    let content = lab.seal(1, &noise(10_000));
    let unreadable = |range| lab.store.is_unreadable(content, range).unwrap();
    assert!(!unreadable(0..1 << 40), "it can be read, and ends where it ends");
    assert!(!lab.store.is_unreadable(ContentId([9; 32]), 0..10).unwrap(), "it is not here");
    assert_eq!(lab.store.damage(content), None);
    hash::UNREADABLE.set(true);
    assert!(unreadable(4096..8192));
    hash::UNREADABLE.set(false);
    assert_eq!(lab.store.damage(content), Some(Damage::Unreadable));
    assert!(unreadable(0..10), "it is known");
    assert_eq!(held(&lab), [content]);
    assert!(matches!(lab.store.look_at(content).unwrap(), Look::Whole));
    assert!(!unreadable(0..10));
}

/// Somebody has removed it by hand.
#[test]
fn what_is_looked_for_and_gone_is_told() {
    let lab = Lab::new();
    let told: Arc<StdMutex<Vec<bool>>> = Arc::default();
    let tells = told.clone();
    lab.store.watch(Box::new(move |_, held| tells.lock().unwrap().push(held)));
    let content = lab.seal(1, &noise(10_000));
    fs::remove_file(lab.path(data_path(content))).unwrap();
    assert_eq!(lab.store.open_content(content, 10_000).unwrap_err().errno, Errno::ENOENT);
    assert_eq!(*told.lock().unwrap(), [true, false]);
}
