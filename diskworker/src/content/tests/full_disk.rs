//! What happens when the disk is full: on a tiny tmpfs in a mount namespace of one thread, so only as root on Linux.
#![cfg(target_os = "linux")]

use super::*;
use nix::mount::{MsFlags, mount};

/// Run on a file system of `mib` MiB. The mount is visible to one thread only and goes with it.
pub(crate) fn on_tiny_disk(mib: u64, test: impl FnOnce(&Path) + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: skipped");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            #[allow(unsafe_code)]
            // SAFETY: changes nothing but the mount namespace and the working directory of this thread.
            let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) };
            if unshared != 0 {
                return eprintln!("no mount namespace here: skipped");
            }
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let size = format!("size={mib}m");
            mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
            test(dir.path());
        });
        thread.join().unwrap();
    });
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
}

#[test]
fn the_trash_makes_room_and_then_it_is_enospc() {
    on_tiny_disk(16, |dir| {
        let folder = DiskFolder::create(&dir.join("disk"), "test", None).unwrap();
        let store = ContentStore::open(Arc::new(folder), 1 << 20).unwrap();
        let seal = |ino: u64, bytes: &[u8]| {
            store.stage_new(Ino(ino)).unwrap().write_all_at(bytes, 0).unwrap();
            let Seal::Large(job) = store.begin_seal(Ino(ino)).unwrap() else { panic!("large") };
            let sealed = job.run().unwrap();
            store.finish_seal(&sealed).unwrap();
            (sealed.content, sealed.pieces)
        };
        let ((kept, kept_pieces), (gone, _)) = (seal(1, &noise(5 << 20)), seal(2, &noise((5 << 20) + 1)));
        let live = HashSet::from([kept]);
        for _ in 0..2 {
            store.collect(&live, Duration::from_secs(3600), SystemTime::now()).unwrap();
        }
        assert_eq!(fs::read_dir(dir.join("disk/trash")).unwrap().count(), 1);
        // 16 less 10 less the reserve does not hold the copy; without the trash it does.
        let copy = store.stage_copy(Ino(3), kept, 5 << 20, u64::MAX, None).unwrap();
        copy.write_all_at(b"mine", 0).unwrap();
        assert_eq!(store.has(gone).unwrap(), None);
        let error = store.stage_copy(Ino(4), kept, 5 << 20, u64::MAX, None).unwrap_err();
        assert!(error.errno == Errno::ENOSPC && error.message.contains("the disk is full"), "{error}");
        assert_eq!(store.incoming_file(gone, 6 << 20).unwrap_err().errno, Errno::ENOSPC);
        // The version before is not copied into the reserve either.
        let file = store.incoming_file(gone, 1 << 20).unwrap();
        file.set_len(5 << 20).unwrap();
        let copy_it = |found: &mut Vec<usize>| {
            let hashes = kept_pieces.as_ref().unwrap();
            store.note_version(Ino(1), Some(gone), Some(kept));
            let mut older = store.open_earlier(gone, 5 << 20).unwrap();
            hashes.chunks(20).enumerate().try_for_each(|(piece, hash)| {
                let copied = store.copy_piece(&mut older, &file, (piece, hash), &|| false)?;
                found.extend(copied.then_some(piece));
                FsResult::Ok(())
            })
        };
        let mut found = Vec::new();
        assert_eq!(copy_it(&mut found).unwrap_err().errno, Errno::ENOSPC);
        let allocated = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
        assert!(found.len() < 20 && allocated == found.len() as u64 * (256 << 10), "{found:?}");
        drop(file);
        store.remove_incoming(gone).unwrap();
        // A writer with a descriptor may go on into the reserve until nothing is left; then nothing new begins.
        let writer = store.stage_new(Ino(5)).unwrap();
        let mut full = 0;
        while writer.write_all_at(&[7; 65536], full).is_ok() {
            full += 65536;
        }
        let stage_new = store.stage_new(Ino(6)).unwrap_err();
        assert_eq!((stage_new.errno, store.free_space().unwrap().free), (Errno::ENOSPC, 0));
        assert_eq!(store.stage_bytes(Ino(6), &[1; 4096], None).unwrap_err().errno, Errno::ENOSPC);
        let mut staged = store.staged().unwrap();
        staged.sort();
        assert_eq!(staged, [Ino(3), Ino(5)]);
        assert_eq!(fs::read_dir(dir.join("disk/staging")).unwrap().count(), 3, "and the mark of the copy");
        store.check(kept, 5 << 20).unwrap();
        // Sealing needs no room, and what is removed makes some.
        drop(copy);
        let Seal::Large(job) = store.begin_seal(Ino(3)).unwrap() else { panic!("large") };
        store.finish_seal(&job.run().unwrap()).unwrap();
        store.remove_staged(Ino(5)).unwrap();
        drop(writer);
        store.stage_new(Ino(6)).unwrap();
    });
}

#[test]
fn what_is_being_fetched_gets_the_trash_s_room() {
    on_tiny_disk(16, |dir| {
        let folder = DiskFolder::create(&dir.join("disk"), "test", None).unwrap();
        let store = ContentStore::open(Arc::new(folder), 1 << 20).unwrap();
        store.stage_new(Ino(1)).unwrap().write_all_at(&noise(5 << 20), 0).unwrap();
        let Seal::Large(job) = store.begin_seal(Ino(1)).unwrap() else { panic!("large") };
        let sealed = job.run().unwrap();
        store.finish_seal(&sealed).unwrap();
        for _ in 0..2 {
            store.collect(&HashSet::new(), Duration::from_secs(3600), SystemTime::now()).unwrap();
        }
        // It fits when it begins; then somebody else writes.
        let file = store.incoming_file(ContentId([1; 32]), 8 << 20).unwrap();
        let writer = store.stage_new(Ino(2)).unwrap();
        writer.write_all_at(&vec![7; 9 << 20], 0).unwrap();
        assert!(store.free_space().unwrap().free < 2 << 20);
        assert_eq!(fs::read_dir(dir.join("disk/trash")).unwrap().count(), 1);
        store.make_room(2 << 20).unwrap();
        file.write_all_at(&vec![8; 2 << 20], 0).unwrap();
        assert_eq!(fs::read_dir(dir.join("disk/trash")).unwrap().count(), 0);
        let error = store.make_room(6 << 20).unwrap_err();
        assert!(error.errno == Errno::ENOSPC && error.message.contains("no room"), "{error}");
    });
}

#[test]
fn without_a_free_inode_there_is_no_room() {
    on_tiny_disk(16, |dir| {
        let folder = DiskFolder::create(&dir.join("disk"), "test", None).unwrap();
        let store = ContentStore::open(Arc::new(folder), 1 << 20).unwrap();
        let vfs = nix::sys::statvfs::statvfs(dir).unwrap();
        let used = vfs.files() - vfs.files_free();
        let inodes = |count: u64| {
            let (none, option): (Option<&str>, _) = (None, format!("nr_inodes={count}"));
            mount(none, dir, none, MsFlags::MS_REMOUNT, Some(option.as_str())).unwrap();
            store.free_space().unwrap()
        };
        let full = inodes(used);
        assert!(full.free == 0 && full.available > 8 << 20, "{full:?}");
        assert!(inodes(used + 1).free > 8 << 20);
    });
}
