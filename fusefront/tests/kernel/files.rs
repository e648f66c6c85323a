//! Files: contents, sizes, extended attributes, and what is left of one that was removed.

use delugefs_fusefront::os::ENOATTR;
use delugefs_proto::local_pb::Changed;
use nix::errno::Errno;

use super::wire::{Body, CALLER, op};
use super::{BLOCK_BYTES, KERNELS, Mount, ROOT};

/// More than three blocks.
fn content() -> Vec<u8> {
    (0..3 * BLOCK_BYTES + 1000).map(|n| (n / 7) as u8).collect()
}

#[test]
fn a_file_of_several_blocks_comes_back_as_written() {
    for kernel in KERNELS {
        let (mut mount, bytes) = (Mount::new(kernel), content());
        let (file, handle) = mount.create(ROOT, "f");
        assert_eq!((file.mode, file.nlink, file.size), (0o100_644, 1, 0));
        assert_eq!(file.owner.0, CALLER.0);
        mount.write(file.ino, handle, &bytes);
        mount.kernel.call(op::FSYNC, file.ino, &Body::new().u64(handle).u32(0).u32(0));
        mount.release(file.ino, handle);
        assert_eq!(mount.lookup(ROOT, "f").unwrap().size, bytes.len() as u64);
        let handle = mount.open(file.ino, libc::O_RDONLY).unwrap();
        let mut read = Vec::new();
        loop {
            let block = mount.read(file.ino, handle, read.len() as u64);
            if block.is_empty() {
                break;
            }
            assert!(block.len() == BLOCK_BYTES as usize || read.len() + block.len() == bytes.len());
            read.extend(block);
        }
        assert!(read == bytes);
        mount.release(file.ino, handle);
    }
}

/// FreeBSD's kernel has one write of a file under way at a time.
#[test]
#[cfg(target_os = "linux")]
fn writes_that_the_disk_hangs_with_keep_nothing_else_waiting() {
    let mut mount = Mount::new(KERNELS[0]);
    let (other, (file, handle)) = (mount.file(ROOT, "other", b"x"), mount.create(ROOT, "f"));
    // More than there are threads for them.
    let (fs, mut begun) = (mount.fs.clone(), Vec::new());
    let open = fs.file(handle).unwrap();
    let stuck = open.inode.writer.write();
    begun.extend((0..100_u8).map(|n| mount.begin_write(file.ino, handle, &[n])));
    assert_eq!(mount.lookup(ROOT, "other").unwrap().ino, other.ino);
    assert_eq!(mount.getattr(other.ino).unwrap().size, 1);
    mount.mkdir(ROOT, "d");
    drop(stuck);
    for write in begun {
        assert_eq!(mount.kernel.reply_to(write).u32(0), 1);
    }
    assert_eq!(mount.read(file.ino, handle, 0).len(), 1);
    mount.release(file.ino, handle);
}

/// Newer kernels do that themselves.
#[test]
#[cfg(target_os = "linux")]
fn what_is_written_past_the_pages_of_readers_is_dropped_from_them() {
    use super::wire::notice;

    const FOPEN_DIRECT_IO: u32 = 1;
    let mut mount = Mount::new(KERNELS[0]);
    let (file, handle, flags) = mount.create_with(ROOT, "f", libc::O_WRONLY);
    assert_eq!(flags & FOPEN_DIRECT_IO, FOPEN_DIRECT_IO);
    mount.write(file.ino, handle, b"nobody reads");
    let reader = mount.open(file.ino, libc::O_RDONLY).unwrap();
    mount.write(file.ino, handle, b"somebody");
    // Before the answer: nothing else has been said.
    let told = mount.kernel.notice();
    assert_eq!((told.errno, told.u64(0), told.u64(8), told.u64(16)), (notice::INVAL_INODE, file.ino, 0, 8));
    for handle in [reader, handle] {
        mount.release(file.ino, handle);
    }
    for not_alone in [libc::O_RDWR, libc::O_WRONLY | libc::O_APPEND, libc::O_WRONLY | libc::O_SYNC] {
        let (file, handle, flags) = mount.create_with(ROOT, &format!("f{not_alone}"), not_alone);
        assert_eq!(flags & FOPEN_DIRECT_IO, 0);
        mount.release(file.ino, handle);
    }
}

#[test]
fn setattr_truncates_and_extends() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let file = mount.file(ROOT, "f", &content());
        assert_eq!(mount.truncate(file.ino, 3).size, 3);
        assert_eq!(mount.truncate(file.ino, 6).size, 6);
        let handle = mount.open(file.ino, libc::O_RDONLY).unwrap();
        assert_eq!(mount.read(file.ino, handle, 0), [&content()[..3], &[0; 3]].concat());
        mount.release(file.ino, handle);
    }
}

#[test]
fn what_came_with_later_protocols_works() {
    // LSEEK came with 7.24, COPY_FILE_RANGE with 7.28.
    for kernel in KERNELS.into_iter().filter(|kernel| kernel.minor >= 28) {
        let mut mount = Mount::new(kernel);
        let from = mount.file(ROOT, "from", &content());
        let handle = mount.open(from.ino, libc::O_RDONLY).unwrap();
        let seek = |whence: i32| Body::new().u64(handle).u64(5).u32(whence as u32).u32(0);
        assert_eq!(mount.kernel.call(op::LSEEK, from.ino, &seek(libc::SEEK_DATA)).u64(0), 5);
        assert_eq!(mount.kernel.call(op::LSEEK, from.ino, &seek(libc::SEEK_HOLE)).u64(0), content().len() as u64);
        let (to, to_handle) = mount.create(ROOT, "to");
        let copy = Body::new().u64(handle).u64(10).u64(to.ino).u64(to_handle).u64(0).u64(1000).u64(0);
        assert_eq!(mount.kernel.call(op::COPY_FILE_RANGE, from.ino, &copy).u32(0), 1000);
        assert_eq!(mount.read(to.ino, to_handle, 0), content()[10..1010]);
        mount.release(to.ino, to_handle);
        mount.release(from.ino, handle);
    }
}

#[test]
fn a_removed_file_lives_until_it_is_closed() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let (file, handle) = mount.create(ROOT, "f");
        mount.write(file.ino, handle, b"before");
        mount.unlink(ROOT, "f");
        assert_eq!(mount.lookup(ROOT, "f"), Err(Errno::ENOENT));
        mount.write(file.ino, handle, b"behind");
        let left = mount.getattr(file.ino).unwrap();
        assert_eq!((left.nlink, left.size), (0, 6));
        assert_eq!(mount.read(file.ino, handle, 0), b"behind");
        mount.release(file.ino, handle);
        // Once by CREATE.
        mount.forget(file.ino, 1);
        assert_eq!(mount.getattr(file.ino), Err(Errno::ESTALE));
    }
}

#[test]
fn extended_attributes_with_freebsds_short_header() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let file = mount.file(ROOT, "f", b"");
        // Eight bytes: size and flags. The third and fourth word came with 7.33.
        let set = |name, value: &[u8]| Body::new().u32(value.len() as u32).u32(0).name(name).bytes(value);
        for (name, value) in [("user.a", &b"first"[..]), ("user.b", b""), ("user.a", b"second")] {
            mount.kernel.call(op::SETXATTR, file.ino, &set(name, value));
        }
        let get = |name, size| Body::new().u32(size).u32(0).name(name);
        // FreeBSD asks for the size first.
        assert_eq!(mount.kernel.call(op::GETXATTR, file.ino, &get("user.a", 0)).u32(0), 6);
        assert_eq!(mount.kernel.call(op::GETXATTR, file.ino, &get("user.a", 6)).body, b"second");
        assert_eq!(mount.kernel.fail(op::GETXATTR, file.ino, &get("user.a", 5)), Errno::ERANGE);
        assert_eq!(mount.kernel.fail(op::GETXATTR, file.ino, &get("user.none", 0)), ENOATTR);
        let list = |size| Body::new().u32(size).u32(0);
        assert_eq!(mount.kernel.call(op::LISTXATTR, file.ino, &list(0)).u32(0), 14);
        assert_eq!(mount.kernel.call(op::LISTXATTR, file.ino, &list(14)).body, b"user.a\0user.b\0");
        mount.kernel.call(op::REMOVEXATTR, file.ino, &Body::new().name("user.a"));
        // Whoever asks here may not know of these, and there are no others.
        mount.kernel.call(op::SETXATTR, file.ino, &set("trusted.t", b"hidden"));
        for name in ["foo.bar", "system.posix_acl_access", "security.selinux"] {
            assert_eq!(mount.kernel.fail(op::SETXATTR, file.ino, &set(name, b"x")), Errno::EOPNOTSUPP, "{name}");
        }
        assert_eq!(mount.kernel.call(op::LISTXATTR, file.ino, &list(64)).body, b"user.b\0");
    }
}

#[test]
fn what_changes_while_the_kernel_is_being_told_of_it_is_not_kept() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let ino = mount.worker.shared.tree.lock().make(ROOT, b"f", 0o100_644, (0, 0), 0).unwrap();
        mount.worker.withhold("readdir");
        let lookup = mount.kernel.send(op::LOOKUP, ROOT, &Body::new().name("f"));
        while mount.worker.withheld() == 0 {
            std::thread::yield_now();
        }
        // Nothing is told to the kernel of the inode, which it does not know yet; a name shows that it was heard of.
        mount.worker.elsewhere(|tree| {
            tree.replace(ino, b"newer");
            let other = Changed { dir: 4711, names: vec!["other".into()], inos: vec![] };
            vec![Changed { dir: 0, names: vec![], inos: vec![ino] }, other]
        });
        assert_eq!(mount.kernel.notice_of_name().0, 4711);
        mount.worker.answer();
        let found = mount.kernel.reply_to(lookup);
        // For how long, in seconds: the name, and the attributes.
        assert_eq!((found.u64(0), found.u64(16), found.u64(24)), (ino, 0, 0), "an hour old");
        assert_eq!(mount.lookup(ROOT, "f").unwrap().size, 5);
        let found = mount.kernel.call(op::LOOKUP, ROOT, &Body::new().name("f"));
        assert_eq!((found.u64(16), found.u64(24)), (3600, 3600));
    }
}

#[test]
fn what_is_appended_goes_to_the_end_wherever_the_kernel_takes_that_to_be() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let (file, handle) = mount.create(ROOT, "f");
        let append = |offset: u64, bytes: &[u8]| {
            let (size, flags) = (bytes.len() as u32, (libc::O_WRONLY | libc::O_APPEND) as u32);
            Body::new().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(flags).u32(0).bytes(bytes)
        };
        assert_eq!(mount.kernel.call(op::WRITE, file.ino, &append(0, b"one\n")).u32(0), 4);
        // Another mount of the same worker has the same staging file.
        let staged = mount.worker.shared.tree.lock().staging(file.ino);
        std::io::Write::write_all(&mut std::fs::File::options().append(true).open(staged).unwrap(), b"two\n").unwrap();
        assert_eq!(mount.kernel.call(op::WRITE, file.ino, &append(4, b"three\n")).u32(0), 6);
        assert_eq!(mount.read(file.ino, handle, 0), b"one\ntwo\nthree\n");
        // The kernel has the bytes in the wrong place, and the wrong size: it drops both.
        assert_eq!(mount.kernel.notice_of_pages(), file.ino);
        // Behind what the kernel has written itself it knows the end to be: the program has said RWF_NOAPPEND.
        assert_eq!(mount.kernel.call(op::WRITE, file.ino, &append(1, b"w")).u32(0), 1);
        assert_eq!(mount.read(file.ino, handle, 0), b"owe\ntwo\nthree\n");
        // But not once the file was cut, or the kernel was told that it is shorter.
        assert_eq!(mount.truncate(file.ino, 2).size, 2);
        assert_eq!(mount.kernel.call(op::WRITE, file.ino, &append(2, b"l")).u32(0), 1);
        let staged = mount.worker.shared.tree.lock().staging(file.ino);
        let other = std::fs::File::options().write(true).open(staged).unwrap();
        other.set_len(1).unwrap();
        assert_eq!(mount.getattr(file.ino).unwrap().size, 1);
        std::os::unix::fs::FileExt::write_all_at(&other, b"n", 1).unwrap();
        drop(other);
        assert_eq!(mount.kernel.call(op::WRITE, file.ino, &append(1, b"e")).u32(0), 1);
        assert_eq!(mount.read(file.ino, handle, 0), b"one");
        mount.release(file.ino, handle);
    }
}

#[test]
fn the_kernel_is_told_of_a_content_written_elsewhere() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let file = mount.file(ROOT, "f", b"old");
        let handle = mount.open(file.ino, libc::O_RDONLY).unwrap();
        assert_eq!(mount.read(file.ino, handle, 0), b"old");
        mount.settle();
        mount.worker.elsewhere(|tree| {
            tree.replace(file.ino, b"newer");
            vec![Changed { dir: 0, names: vec![], inos: vec![file.ino] }]
        });
        assert_eq!(mount.kernel.notice_of_pages(), file.ino);
        assert_eq!(mount.getattr(file.ino).unwrap().size, 5);
        assert_eq!(mount.read(file.ino, handle, 0), b"newer");
        mount.release(file.ino, handle);
    }
}
