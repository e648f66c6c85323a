//! What was found damaged is known after a restart, until it is mended or gone.

use super::*;

fn spoil(lab: &Lab, content: ContentId) {
    let path = lab.path(data_path(content));
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    File::options().write(true).open(path).unwrap().write_all_at(b"rot", 5_000).unwrap();
}

fn found(lab: &Lab, content: ContentId) -> Option<Damage> {
    assert!(matches!(lab.store.look_at(content).unwrap(), Look::Bad(_)));
    lab.store.damage(content)
}

#[test]
fn what_was_found_damaged_is_known_after_a_restart_until_it_is_mended_or_gone() {
    let lab = Lab::new();
    let bytes = [10_000, 11_000, 12_000].map(noise);
    let [mended, gone, unreadable] = [1, 2, 3].map(|ino| lab.seal(ino, &bytes[ino as usize - 1]));
    assert!(matches!(lab.store.look_at(mended).unwrap(), Look::Whole));
    [mended, gone].iter().for_each(|content| spoil(&lab, *content));
    assert_eq!([mended, gone].map(|content| found(&lab, content)), [Some(Damage::Wrong); 2]);
    hash::UNREADABLE.set(true);
    assert_eq!(found(&lab, unreadable), Some(Damage::Unreadable));
    hash::UNREADABLE.set(false);

    let lab = lab.reopen();
    let damage = |lab: &Lab| [mended, gone, unreadable].map(|content| lab.store.damage(content));
    assert_eq!(damage(&lab), [Some(Damage::Wrong), Some(Damage::Wrong), Some(Damage::Unreadable)]);
    assert_eq!((lab.store.damaged_len(), held(&lab).len()), (3, 3), "they stay");
    // A person has removed one; a good one comes in the place of another; and the cable was loose.
    fs::remove_file(lab.path(data_path(gone))).unwrap();
    let lab = lab.reopen();
    assert_eq!(damage(&lab), [Some(Damage::Wrong), None, Some(Damage::Unreadable)]);
    lab.seal(4, &bytes[0]);
    assert!(matches!(lab.store.look_at(unreadable).unwrap(), Look::Whole));
    assert_eq!(damage(&lab), [None; 3]);
    lab.store.save_damaged().unwrap();
    let lab = lab.reopen();
    assert_eq!((damage(&lab), lab.store.damaged()), ([None; 3], vec![]));
}

fn held(lab: &Lab) -> Vec<ContentId> {
    lab.store.held().map(Result::unwrap).collect()
}

/// Else it would be shown, copied and promised when a disk that was away brings a file that has it.
#[test]
fn what_went_to_the_trash_damaged_comes_back_damaged() {
    let lab = Lab::new();
    let [bad, good] = [1, 2].map(|ino| lab.seal(ino, &noise(10_000 + ino as usize)));
    spoil(&lab, bad);
    found(&lab, bad);
    for content in [bad, good] {
        lab.store.unspare(content);
        assert!(lab.store.discard(content, SystemTime::now()).unwrap());
    }
    assert!(lab.store.damaged().is_empty(), "it is no file's, and no problem");
    lab.store.save_damaged().unwrap();
    let lab = lab.reopen();
    lab.store.take_back_all(&[bad, good]).unwrap();
    assert_eq!([bad, good].map(|content| lab.store.damage(content)), [Some(Damage::Wrong), None]);
}

/// A scrub has found it, and the cable was loose.
#[test]
fn what_is_whole_at_the_next_scrub_is_damaged_no_more() {
    let lab = Lab::new();
    let content = lab.seal(1, &noise(10_000));
    for is_scrub in [true, false] {
        hash::UNREADABLE.set(true);
        assert_eq!(found(&lab, content), Some(Damage::Unreadable));
        hash::UNREADABLE.set(false);
        match is_scrub {
            true => lab.store.check_or_take_back(content, 10_000, &|| false).unwrap(),
            false => assert_eq!(lab.store.suspect(content, false).unwrap(), Suspect::Whole),
        }
        assert_eq!(lab.store.damage(content), None);
    }
}

#[test]
fn what_is_set_aside_is_none_of_them() {
    let lab = Lab::new();
    let content = lab.seal(1, &noise(10_000));
    spoil(&lab, content);
    found(&lab, content);
    assert!(matches!(lab.store.suspect(content, false).unwrap(), Suspect::SetAside(_)));
    assert!(lab.store.damaged().is_empty());
}

/// It is a note: what can be read of it counts, and what cannot is met again.
#[test]
fn a_note_that_is_damaged_itself_keeps_no_disk_from_starting() {
    let lab = Lab::new();
    let content = lab.seal(1, &noise(10_000));
    spoil(&lab, content);
    found(&lab, content);
    let path = lab.path("damaged");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text, format!("delugefs damaged 1\n{content} wrong\n"));
    let with = |bytes: &[u8], lab: Lab| {
        fs::write(&path, bytes).unwrap();
        let lab = lab.reopen();
        (lab.store.damaged(), lab)
    };
    let more = format!("{text}\nnonsense\n{content} odd\n{} wrong", &content.to_hex()[1..]);
    let (known, mut lab) = with(&[more.as_bytes(), b"\xff\0"].concat(), lab);
    assert_eq!(known, [content]);
    for bytes in [&b""[..], b"\xff\xfe\0", b"delugefs damaged 2\n", &text.as_bytes()[..40]] {
        let (known, again) = with(bytes, lab);
        assert!(known.is_empty(), "{bytes:?}");
        lab = again;
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(lab.reopen().store.damaged().is_empty());
}
