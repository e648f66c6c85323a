//! What an NFS server asks of a mount: nodes by number, long after the kernel forgot them, and files opened without a
//! name. FreeBSD asks for ".." as well, not only for NFS, when EXPORT_SUPPORT was granted.

use std::time::{Duration, Instant};

use bytes::Bytes;
use delugefs_proto::local_pb::Changed;
use nix::errno::Errno;

use super::{KERNELS, Mount, ROOT};

/// So few that what is not used is soon out of memory.
const FEW_ENTRIES: usize = 64;

/// Make the frontend forget what it has in memory: look at a lot of other things.
fn forget_everything(mount: &mut Mount) {
    mount.settle();
    {
        let mut tree = mount.worker.shared.tree.lock();
        for n in 0..8 {
            let dir = tree.make(ROOT, format!("big{n}").as_bytes(), 0o040_755, (0, 0), 0).unwrap();
            for m in 0..100 {
                tree.make(dir, format!("{m}").as_bytes(), 0o100_644, (0, 0), 0).unwrap();
            }
        }
    }
    mount.worker.elsewhere(|_| {
        let names = (0..8).map(|n| Bytes::from(format!("big{n}")));
        vec![Changed { dir: ROOT, names: names.collect(), inos: vec![] }]
    });
    for _ in 0..8 {
        mount.kernel.notice_of_name();
    }
    for n in 0..8 {
        let dir = mount.lookup(ROOT, &format!("big{n}")).unwrap().ino;
        mount.lookup(dir, "1").unwrap();
    }
}

#[test]
fn a_node_is_found_by_its_number_after_the_kernel_forgot_it() {
    for kernel in KERNELS {
        let mut mount = Mount::with_capacity(kernel, FEW_ENTRIES);
        let top = mount.mkdir(ROOT, "top");
        let dir = mount.mkdir(top.ino, "d");
        let file = mount.file(dir.ino, "f", b"text");
        assert_eq!(mount.lookup(file.ino, ".").unwrap().ino, file.ino);
        for (ino, lookups) in [(file.ino, 2), (dir.ino, 1), (top.ino, 1)] {
            mount.forget(ino, lookups);
        }
        forget_everything(&mut mount);
        let asked = mount.worker.count("getattr");
        let found = mount.lookup(file.ino, ".").unwrap();
        assert_eq!((found.ino, found.size, found.mode), (file.ino, 4, 0o100_644));
        assert_eq!(mount.worker.count("getattr"), asked + 1, "it was in memory all the time");
        // nfsd reads without a name and without open(2).
        let handle = mount.open(file.ino, libc::O_RDONLY).unwrap();
        assert_eq!(mount.read(file.ino, handle, 0), b"text");
        mount.release(file.ino, handle);
        assert_eq!(mount.lookup(dir.ino, ".").unwrap().ino, dir.ino);
        assert_eq!(mount.lookup(dir.ino, "f").unwrap().ino, file.ino);
        // The way up.
        assert_eq!(mount.lookup(dir.ino, "..").unwrap().ino, top.ino);
        assert_eq!(mount.lookup(top.ino, "..").unwrap().ino, ROOT);
        assert_eq!(mount.lookup(ROOT, "..").unwrap().ino, ROOT);
        assert_eq!(mount.lookup(ROOT, ".").unwrap().ino, ROOT);
    }
}

#[test]
fn a_listing_goes_on_through_another_handle() {
    for kernel in KERNELS {
        // Once held in memory, once read in pages.
        for entries in [1000, FEW_ENTRIES] {
            let mut mount = Mount::with_capacity(kernel, entries);
            let expected: Vec<_> = (0..200).map(|n| format!("{n:03}")).collect();
            let dir = {
                let mut tree = mount.worker.shared.tree.lock();
                let dir = tree.make(ROOT, b"d", 0o040_755, (0, 0), 0).unwrap();
                for name in &expected {
                    tree.make(dir, name.as_bytes(), 0o100_644, (0, 0), 0).unwrap();
                }
                dir
            };
            let (mut seen, mut offset) = (Vec::new(), 0);
            loop {
                // nfsd has no handle that lives from one READDIR to the next.
                let handle = mount.opendir(dir);
                let listed = mount.readdir(dir, handle, offset, 1024);
                mount.releasedir(dir, handle);
                let Some(last) = listed.last() else { break };
                offset = last.offset;
                seen.extend(listed.into_iter().map(|listed| listed.name));
            }
            assert_eq!(seen[..2], [".", ".."]);
            assert!(seen[2..] == expected, "{:?}", &seen[2..]);
        }
    }
}

#[test]
fn a_lookup_by_number_counts_like_any_other() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let (file, handle) = mount.create(ROOT, "f");
        mount.lookup(file.ino, ".").unwrap();
        mount.unlink(ROOT, "f");
        mount.release(file.ino, handle);
        mount.forget(file.ino, 1);
        assert_eq!(mount.getattr(file.ino).unwrap().nlink, 0, "the kernel still knows it by the lookup of \".\"");
        mount.forget(file.ino, 1);
        assert_eq!(mount.lookup(file.ino, "."), Err(Errno::ESTALE));
    }
}

#[test]
fn the_parent_is_the_one_of_now() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let (a, b) = (mount.mkdir(ROOT, "a").ino, mount.mkdir(ROOT, "b").ino);
        let dir = mount.mkdir(a, "d").ino;
        assert_eq!(mount.lookup(dir, "..").unwrap().ino, a);
        mount.rename((a, "d"), (b, "d"));
        assert_eq!(mount.lookup(dir, "..").unwrap().ino, b);
        // And back, by somebody else.
        mount.worker.elsewhere(|tree| {
            tree.rename((b, b"d"), (a, b"d"), false, false).unwrap();
            let changed = |dir, inos| Changed { dir, names: vec![Bytes::from_static(b"d")], inos };
            vec![changed(b, vec![dir]), changed(a, vec![dir])]
        });
        for _ in 0..2 {
            mount.kernel.notice_of_name();
        }
        assert_eq!(mount.lookup(dir, "..").unwrap().ino, a);
        // Removed while it is somebody's working directory.
        mount.kernel.call(super::op::RMDIR, a, &super::Body::new().name("d"));
        assert_eq!(mount.lookup(dir, "..").unwrap().ino, a);
        assert_eq!(mount.lookup(dir, ".").unwrap().ino, dir);
    }
}

#[test]
fn what_cannot_be_found_is_stale() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let file = mount.file(ROOT, "f", b"text");
        assert_eq!(mount.lookup(file.ino, ".."), Err(Errno::ENOTDIR));
        mount.unlink(ROOT, "f");
        mount.forget(file.ino, 1);
        // Closing and forgetting are not waited for: until both are done it can be looked up, which counts as a use again.
        let begin = Instant::now();
        while mount.lookup(file.ino, ".").is_ok() || mount.lookup(file.ino, "..") != Err(Errno::ESTALE) {
            mount.forget(file.ino, 1);
            assert!(begin.elapsed() < Duration::from_secs(20), "it can be looked up for ever");
        }
        for name in [".", ".."] {
            assert_eq!(mount.lookup(file.ino, name), Err(Errno::ESTALE));
            assert_eq!(mount.lookup(0x1234_5678_9abc, name), Err(Errno::ESTALE));
        }
    }
}
