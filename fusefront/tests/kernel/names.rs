//! Directories: what is in them, what changes them, and what the kernel is told when others do.

use bytes::Bytes;
use delugefs_proto::local_pb::Changed;
use nix::errno::Errno;

use super::wire::{Body, CALLER, notice, op};
use super::{KERNELS, Kernel, Mount, ROOT};

const DT_DIR: u32 = 4;
const DT_REG: u32 = 8;
const DT_LNK: u32 = 10;

#[test]
fn names_come_and_go() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        assert_eq!(mount.lookup(ROOT, "d"), Err(Errno::ENOENT));
        let dir = mount.mkdir(ROOT, "d");
        assert_eq!((dir.mode, dir.owner.0, mount.lookup(ROOT, "d")), (0o040_755, CALLER.0, Ok(dir)));
        assert_eq!(mount.getattr(ROOT).unwrap().nlink, 3);
        let file = mount.file(ROOT, "f", b"text");
        mount.rename((ROOT, "f"), (dir.ino, "g"));
        assert_eq!(mount.lookup(ROOT, "f"), Err(Errno::ENOENT));
        assert_eq!(mount.lookup(dir.ino, "g").unwrap().ino, file.ino);
        let linked = mount.kernel.call(op::LINK, ROOT, &Body::new().u64(file.ino).name("h"));
        assert_eq!(linked.u64(0), file.ino);
        assert_eq!(mount.getattr(file.ino).unwrap().nlink, 2);
        mount.unlink(dir.ino, "g");
        assert_eq!(mount.getattr(file.ino).unwrap().nlink, 1);
        mount.kernel.call(op::RMDIR, ROOT, &Body::new().name("d"));
        assert_eq!(mount.lookup(ROOT, "d"), Err(Errno::ENOENT));
        let mknod = Body::new().u32(0o010_600).u32(0).u32(0o022).u32(0).name("fifo");
        let fifo = mount.kernel.call(op::MKNOD, ROOT, &mknod).u64(0);
        assert_eq!(mount.getattr(fifo).unwrap().mode, 0o010_600);
        let link = mount.kernel.call(op::SYMLINK, ROOT, &Body::new().name("s").name("d/e"));
        assert_eq!(mount.kernel.call(op::READLINK, link.u64(0), &Body::new()).body, b"d/e");
    }
}

#[test]
fn a_directory_is_read_in_small_pieces() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let dir = mount.mkdir(ROOT, "d").ino;
        mount.mkdir(dir, "a");
        mount.kernel.call(op::SYMLINK, dir, &Body::new().name("b").name("target"));
        for n in 0..20 {
            mount.file(dir, &format!("file number {n:02}"), b"");
        }
        let handle = mount.opendir(dir);
        let (mut seen, mut offsets, mut offset) = (Vec::new(), Vec::new(), 0);
        loop {
            // Room for two or three names.
            let listed = mount.readdir(dir, handle, offset, 128);
            let Some(last) = listed.last() else { break };
            offset = last.offset;
            // Others may change it meanwhile; a reader sees what was there when it began.
            mount.file(dir, &format!("late {offset:02}"), b"");
            offsets.extend(listed.iter().map(|listed| listed.offset));
            seen.extend(listed.into_iter().map(|listed| (listed.kind, listed.name)));
        }
        let files = (0..20).map(|n| (DT_REG, format!("file number {n:02}")));
        let others = [(DT_DIR, "."), (DT_DIR, ".."), (DT_DIR, "a"), (DT_LNK, "b")];
        let expected: Vec<_> = others.map(|(kind, name)| (kind, name.to_owned())).into_iter().chain(files).collect();
        assert_eq!(seen, expected);
        // Back to the middle, as seekdir does.
        let listed = mount.readdir(dir, handle, offsets[9], 128);
        assert_eq!(listed[0].name, expected[10].1);
        mount.kernel.call(op::FSYNCDIR, dir, &Body::new().u64(handle).u32(0).u32(0));
        mount.releasedir(dir, handle);
    }
}

#[test]
fn the_kernel_is_told_of_names_changed_elsewhere() {
    for kernel in KERNELS {
        let mut mount = Mount::new(kernel);
        let dir = mount.mkdir(ROOT, "d").ino;
        let file = mount.file(dir, "f", b"text");
        assert_eq!(mount.lookup(dir, "new"), Err(Errno::ENOENT));
        // Of a file that is gone when it is closed the kernel would be told more.
        mount.settle();
        mount.worker.elsewhere(|tree| {
            tree.unlink(dir, b"f").unwrap();
            tree.make(dir, b"new", 0o100_644, (0, 0), 0).unwrap();
            let names = ["f", "new"].map(|name| Bytes::from_static(name.as_bytes()));
            vec![Changed { dir, names: names.into(), inos: vec![] }]
        });
        let mut waiting = vec!["f", "new"];
        let mut pages = false;
        while !waiting.is_empty() || !pages {
            let told = mount.kernel.notice();
            if told.errno == notice::INVAL_INODE {
                assert_eq!(told.u64(0), dir);
                pages |= told.u64(8) == 0;
                continue;
            }
            let name = waiting.remove(0);
            // Directory, length of the name, the name and a NUL. FreeBSD refuses other lengths.
            assert_eq!((told.errno, told.u64(0), told.u32(8)), (notice::INVAL_ENTRY, dir, name.len() as u32));
            assert_eq!(told.body[16..], [name.as_bytes(), b"\0"].concat());
        }
        assert_eq!(mount.lookup(dir, "f"), Err(Errno::ENOENT));
        assert_ne!(mount.lookup(dir, "new").unwrap().ino, file.ino);
    }
}

#[test]
fn an_absent_name_is_not_believed_for_long_where_names_cannot_all_be_dropped() {
    for minor in [28, 43, 44] {
        let mut mount = Mount::new(Kernel { minor, ..KERNELS[2] });
        let absent = mount.kernel.call(op::LOOKUP, ROOT, &Body::new().name("absent"));
        // For how long, in seconds. FUSE_NOTIFY_INC_EPOCH came with 7.44.
        assert_eq!((absent.u64(0), absent.u64(16)), (0, if minor < 44 { 1 } else { 3600 }), "7.{minor}");
    }
}

#[test]
fn a_kernel_that_cannot_drop_all_names_is_told_each_it_knows() {
    for minor in [43, 44] {
        // Hardly any are held in memory.
        let mut mount = Mount::with_capacity(Kernel { minor, ..KERNELS[2] }, 8);
        let mut names: Vec<_> = (0..20).map(|n| (mount.mkdir(ROOT, &format!("d{n:02}")).ino, "f")).collect();
        for (dir, name) in &names {
            mount.file(*dir, name, b"");
        }
        let file = mount.lookup(names[0].0, "f").unwrap();
        mount.kernel.call(op::LINK, names[1].0, &Body::new().u64(file.ino).name("g"));
        mount.unlink(names[0].0, "f");
        mount.rename((names[2].0, "f"), (names[3].0, "h"));
        (names[0], names[2]) = ((names[1].0, "g"), (names[3].0, "h"));
        names.sort_unstable();
        let told = mount.fs.told_names();
        let mut told: Vec<_> = told.iter().map(|(dir, name)| (*dir, std::str::from_utf8(name).unwrap())).collect();
        told.retain(|(dir, _)| *dir != ROOT);
        told.sort_unstable();
        assert_eq!(told, if minor < 44 { names } else { Vec::new() }, "7.{minor}");
    }
}
