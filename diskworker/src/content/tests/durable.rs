//! What a commit waits for.

use super::*;

#[test]
fn many_at_once_are_made_durable_together() {
    let lab = Lab::new();
    let contents: Vec<ContentId> = (0..100).map(|n| lab.seal(n, &noise(5000 + n as usize))).collect();
    lab.store.sync_content(contents[0]).unwrap();
    lab.store.barrier_for(&contents[..40].iter().copied().collect()).unwrap();
    lab.store.barrier().unwrap();
    lab.store.barrier().unwrap();
    assert!(contents.iter().all(|content| lab.store.is_synced(*content)));
    assert_eq!(lab.store.usage().contents, 100);
}

#[test]
fn a_commit_syncs_what_it_names_and_waits_for_nothing_else() {
    let lab = Lab::new();
    let (named, other) = (lab.seal(1, &noise(5000)), lab.seal(2, &noise(6000)));
    lab.store.barrier_for(&[named].into()).unwrap();
    assert!(lab.store.is_synced(named) && !lab.store.is_synced(other));
    std::thread::scope(|scope| {
        // Somebody else's sync takes its time.
        let syncing = lab.store.durable.syncing.lock();
        let (done, is_done) = std::sync::mpsc::channel();
        let lab = &lab;
        scope.spawn(move || {
            for names in [HashSet::new(), [named].into()] {
                lab.store.barrier_for(&names).unwrap();
            }
            done.send(()).unwrap();
        });
        let waited = is_done.recv_timeout(Duration::from_secs(30));
        drop(syncing);
        waited.unwrap();
    });
}

/// Of btrfs or a network file system. Whoever deletes something then gets no room, and the disk is not well.
#[test]
fn a_sync_that_fails_for_want_of_room_is_no_full_disk() {
    let lab = Lab::new();
    lab.seal(1, &noise(5000));
    lab.store.durable.failed(Errno::ENOSPC);
    for _ in 0..2 {
        let error = lab.store.barrier().unwrap_err();
        assert_eq!(error.errno, Errno::EIO);
        assert!(error.message.contains("No space left"), "{error}");
    }
}

#[test]
fn the_rest_is_synced_by_the_second_call() {
    for count in [3, 100] {
        let lab = Lab::new();
        let contents: Vec<ContentId> = (0..count).map(|n| lab.seal(n, &noise(5000 + n as usize))).collect();
        lab.store.sync_rest().unwrap();
        assert!(contents.iter().all(|content| !lab.store.is_synced(*content)), "a commit may be about to");
        let late = lab.seal(count, &noise(4500));
        lab.store.sync_rest().unwrap();
        assert!(contents.iter().all(|content| lab.store.is_synced(*content)) && !lab.store.is_synced(late));
    }
}

/// It has its name, and what is there is not on the disk: no commit goes on, not even one that does not name it.
#[test]
fn after_a_failed_sync_no_commit_succeeds() {
    let lab = Lab::new();
    let content = lab.seal(1, &noise(5000));
    let path = lab.path(data_path(content));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("nothing", &path).unwrap();
    assert!(lab.store.barrier_for(&HashSet::new()).is_ok());
    assert!(lab.store.barrier_for(&[content].into()).is_err());
    assert!(lab.store.barrier_for(&HashSet::new()).is_err());
    lab.store.sync_rest().unwrap();
    assert!(lab.store.sync_rest().is_err() && !lab.store.is_synced(content));
}
