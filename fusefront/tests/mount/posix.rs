#![allow(unsafe_code)] // xattr calls have no safe wrapper here
//! The same operations on a local folder and on a mount must have the same results: values, errnos, contents,
//! attributes.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek};

use super::Mounted;

mod attributes;
mod random;

/// What is the same everywhere: no inode numbers, no times but those set, no sizes of directories.
fn describe(path: &Path) -> String {
    match fs::symlink_metadata(path) {
        Ok(meta) => {
            let size = if meta.is_dir() { 0 } else { meta.size() };
            let (mode, nlink, uid, gid, rdev) = (meta.mode(), meta.nlink(), meta.uid(), meta.gid(), meta.rdev());
            format!("{mode:o} links {nlink} of {uid}:{gid} size {size} rdev {rdev:x}")
        }
        Err(error) => short(&error),
    }
}

fn short(error: &io::Error) -> String {
    format!("{:?}", Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

fn said<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => short(&error),
    }
}

fn errno<T: std::fmt::Debug>(result: nix::Result<T>) -> String {
    said(result.map_err(io::Error::from))
}

/// Every name below, with attributes and content.
fn tree(dir: &Path, below: &str, out: &mut String) {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()).collect();
    names.sort_by_key(|entry| entry.file_name());
    for entry in names {
        let path = entry.path();
        let name = format!("{below}/{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().unwrap();
        write!(out, "{name}: {}", describe(&path)).unwrap();
        if kind.is_symlink() {
            writeln!(out, " -> {:?}", fs::read_link(&path).unwrap()).unwrap();
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap();
            let sum = content.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            writeln!(out, " sum {sum:x}").unwrap();
        } else {
            writeln!(out).unwrap();
        }
        if kind.is_dir() {
            tree(&path, &name, out);
        }
    }
}

/// Run it in a local folder and on a mount, and compare what it tells.
fn same(script: impl Fn(&Path, &mut Vec<String>)) {
    let mounted = Mounted::start();
    same_on(&mounted, script);
}

fn same_on(mounted: &Mounted, script: impl Fn(&Path, &mut Vec<String>)) {
    let local = tempfile::tempdir().unwrap();
    fs::set_permissions(local.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let run = |dir: &Path| {
        let mut told = Vec::new();
        script(dir, &mut told);
        let mut all = String::new();
        tree(dir, "", &mut all);
        (told, all)
    };
    let (expected, got) = (run(local.path()), run(&mounted.dir));
    for (step, (expected, got)) in expected.0.iter().zip(&got.0).enumerate() {
        assert_eq!(expected, got, "step {step}");
    }
    assert_eq!(expected.0.len(), got.0.len());
    assert_eq!(expected.1, got.1);
}

#[test]
fn names_and_kinds() {
    same(|dir, told| {
        let p = |name: &str| dir.join(name);
        told.push(said(fs::create_dir(p("d"))));
        told.push(said(fs::create_dir(p("d"))));
        told.push(said(fs::write(p("d/f"), "x")));
        told.push(said(fs::remove_dir(p("d"))));
        told.push(said(fs::remove_file(p("d"))));
        told.push(said(fs::remove_dir(p("d/f"))));
        told.push(said(fs::create_dir(p("none/d"))));
        told.push(said(fs::create_dir(p("d/f/g"))));
        told.push(said(symlink("d/f", p("s"))));
        told.push(said(symlink("x".repeat(4096), p("long"))));
        told.push(said(symlink("x".repeat(4000), p("long"))));
        told.push(said(fs::read_to_string(p("s"))));
        told.push(said(fs::write(p(&"n".repeat(255)), "x")));
        told.push(said(fs::write(p(&"n".repeat(256)), "x")));
        told.push(said(fs::metadata(p(&"m".repeat(256))).map(drop)));
        told.push(said(fs::hard_link(p("d/f"), p("l"))));
        told.push(said(fs::hard_link(p("d"), p("ld"))));
        told.push(said(fs::hard_link(p("d/f"), p("l"))));
        told.push(describe(&p("l")));
        for (name, kind, device) in [
            ("fifo", SFlag::S_IFIFO, 0),
            ("sock", SFlag::S_IFSOCK, 0),
            ("chr", SFlag::S_IFCHR, makedev(4, 77)),
            ("blk", SFlag::S_IFBLK, makedev(300, 70_000)),
            ("reg", SFlag::S_IFREG, 0),
        ] {
            told.push(errno(mknod(&p(name), kind, Mode::from_bits_truncate(0o640), device)));
        }
        told.push(said(fs::read_dir(p("d/f")).map(drop)));
        told.push(said(File::open(p("d")).and_then(|mut dir| dir.read(&mut [0; 1]))));
        told.push(said(OpenOptions::new().write(true).open(p("d")).map(drop)));
        told.push(said(OpenOptions::new().write(true).create_new(true).open(p("d/f")).map(drop)));
        told.push(said(OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(p("s")).map(drop)));
    });
}

#[test]
fn renames() {
    same(|dir, told| {
        let p = |name: &str| dir.join(name);
        let flags = |from: &str, to: &str, flags| errno(renameat2(AT_FDCWD, &p(from), AT_FDCWD, &p(to), flags));
        for name in ["d1/sub", "d2", "full/x"] {
            fs::create_dir_all(p(name)).unwrap();
        }
        for name in ["a", "b", "d1/c"] {
            fs::write(p(name), name).unwrap();
        }
        told.push(said(fs::rename(p("a"), p("b"))));
        told.push(said(fs::rename(p("a"), p("b"))));
        told.push(said(fs::rename(p("b"), p("d1"))));
        told.push(said(fs::rename(p("d1"), p("b"))));
        told.push(said(fs::rename(p("d2"), p("full"))));
        told.push(said(fs::rename(p("d1"), p("d1/sub/x"))));
        told.push(said(fs::rename(p("full/x"), p("d2"))));
        told.push(said(fs::rename(p("d1/sub"), p("d2/sub"))));
        told.push(flags("b", "d1/c", RenameFlags::RENAME_NOREPLACE));
        told.push(flags("b", "d1/new", RenameFlags::RENAME_NOREPLACE));
        told.push(flags("d1/new", "d2", RenameFlags::RENAME_EXCHANGE));
        told.push(flags("d1/c", "d2", RenameFlags::RENAME_EXCHANGE));
        told.push(flags("d1/c", "none", RenameFlags::RENAME_EXCHANGE));
        fs::write(p("e"), "e").unwrap();
        fs::hard_link(p("e"), p("f")).unwrap();
        told.push(said(fs::rename(p("e"), p("f"))));
        told.push(describe(&p("e")));
        fs::write(p("g"), "g").unwrap();
        told.push(said(fs::rename(p("g"), p("f"))));
        told.push(describe(&p("e")));
        told.push(said(fs::rename(p("."), p("x"))));
        for name in ["d1", "d2", "full", "d1/new"] {
            told.push(describe(&p(name)));
        }
    });
    // The only place where we differ from ext4: no whiteouts.
    let mounted = Mounted::start();
    fs::write(mounted.path("a"), "a").unwrap();
    let result = renameat2(AT_FDCWD, &mounted.path("a"), AT_FDCWD, &mounted.path("b"), RenameFlags::RENAME_WHITEOUT);
    assert_eq!(result, Err(Errno::EINVAL));
}

#[test]
fn contents() {
    same(|dir, told| {
        let p = |name: &str| dir.join(name);
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true);
            options
        };
        let mut buf = vec![0; 1 << 20];
        let pattern: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 3 + n / 1000) as u8).collect();
        // Sizes around the bounds between ways of keeping a content.
        for size in [0, 1, 4095, 4096, 4097, 65_536, 1_048_576, 1_048_577, 3_000_000] {
            let name = format!("size{size}");
            told.push(said(fs::write(p(&name), &pattern[..size])));
            told.push(described_content(&p(&name)));
            // Overwritten in the middle, through a handle opened anew.
            let file = OpenOptions::new().write(true).open(p(&name)).unwrap();
            told.push(said(file.write_at(b"MIDDLE", size as u64 / 2)));
            drop(file);
            told.push(described_content(&p(&name)));
            told.push(said(File::create(p(&name)).map(drop)));
            told.push(described_content(&p(&name)));
        }
        // A hole, and reading behind the end.
        let file = open().open(p("hole")).unwrap();
        told.push(said(file.write_at(b"end", 100_000)));
        told.push(said(file.read_at(&mut buf, 99_999)));
        told.push(said(file.read_at(&mut buf, 200_000)));
        told.push(said(file.set_len(50_000)));
        told.push(said(file.set_len(150_000)));
        told.push(said(file.read_at(&mut buf[..10], 99_995).map(|_| buf[..10].to_vec())));
        drop(file);
        told.push(described_content(&p("hole")));
        // Appending, by two handles.
        let mut a = OpenOptions::new().append(true).create(true).open(p("log")).unwrap();
        let mut b = OpenOptions::new().append(true).open(p("log")).unwrap();
        for n in 0..50 {
            a.write_all(format!("a{n}\n").as_bytes()).unwrap();
            b.write_all(format!("b{n}\n").as_bytes()).unwrap();
        }
        told.push(described_content(&p("log")));
        drop((a, b));
        told.push(described_content(&p("log")));
        // Truncation by path, while open and not.
        let file = open().open(p("cut")).unwrap();
        file.write_all_at(&pattern[..10_000], 0).unwrap();
        told.push(errno(nix::unistd::truncate(&p("cut"), 6_000)));
        told.push(said(file.read_at(&mut buf, 0)));
        drop(file);
        told.push(errno(nix::unistd::truncate(&p("cut"), 3_000)));
        told.push(errno(nix::unistd::truncate(&p("cut"), 7_000)));
        told.push(described_content(&p("cut")));
        // A reader that was there before the writer.
        fs::write(p("seen"), "before").unwrap();
        let mut reader = File::open(p("seen")).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        fs::write(p("seen"), "after it was written").unwrap();
        reader.seek(SeekFrom::Start(0)).unwrap();
        text.clear();
        reader.read_to_string(&mut text).unwrap();
        told.push(text);
        told.push(said(reader.write(b"x")));
        let mut only = OpenOptions::new().write(true).open(p("seen")).unwrap();
        told.push(said(only.read(&mut buf)));
        told.push(said(only.sync_all()));
        told.push(said(reader.sync_all()));
        told.push(said(File::open(dir).and_then(|dir| dir.sync_all())));
    });
}

fn described_content(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let sum = bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    format!("{} sum {sum:x} {}", bytes.len(), describe(path))
}

#[test]
fn holes_and_copies() {
    let mounted = Mounted::start();
    same_on(&mounted, |dir, told| {
        let p = |name: &str| dir.join(name);
        // Who has it open for both may change it through a map: then it counts as without holes.
        let file = File::options().write(true).create(true).truncate(true).open(p("f")).unwrap();
        let reader = File::open(p("f")).unwrap();
        told.push(errno(fallocate(&file, FallocateFlags::empty(), 0, 1 << 20)));
        told.push(describe(&p("f")));
        file.write_all_at(&[1; 1 << 20], 0).unwrap();
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        told.push(errno(fallocate(&file, punch, 65_536, 131_072)));
        told.push(errno(fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 1 << 20, 4096)));
        told.push(errno(lseek(&reader, 0, Whence::SeekHole)));
        told.push(errno(lseek(&reader, 65_536, Whence::SeekData)));
        told.push(errno(lseek(&reader, 1 << 21, Whence::SeekData)));
        told.push(described_content(&p("f")));
        let copy = File::options().read(true).write(true).create(true).truncate(true).open(p("copy")).unwrap();
        let (mut from, mut to) = (1000, 10);
        told.push(errno(nix::fcntl::copy_file_range(&reader, Some(&mut from), &copy, Some(&mut to), 300_000)));
        told.push(format!("{from} {to}"));
        drop((file, reader, copy));
        told.push(described_content(&p("copy")));
        // From a small content, which has no descriptor.
        fs::write(p("small"), "small content").unwrap();
        let small = File::open(p("small")).unwrap();
        told.push(errno(lseek(&small, 3, Whence::SeekHole)));
        told.push(errno(lseek(&small, 13, Whence::SeekData)));
        told.push(said(fs::copy(p("small"), p("small2"))));
        told.push(said(fs::copy(p("f"), p("f2"))));
        told.push(described_content(&p("small2")));
    });
}

#[test]
fn unlinked_but_open() {
    same(|dir, told| {
        let p = |name: &str| dir.join(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(p("f")).unwrap();
        file.write_all_at(b"content", 0).unwrap();
        fs::write(p("closed"), "x").unwrap();
        let reader = File::open(p("closed")).unwrap();
        fs::remove_file(p("f")).unwrap();
        fs::remove_file(p("closed")).unwrap();
        let told_of = |file: &File| {
            let meta = file.metadata().unwrap();
            format!("{:o} {} {} {}", meta.mode(), meta.nlink(), meta.size(), meta.uid())
        };
        told.push(told_of(&file));
        told.push(told_of(&reader));
        told.push(said(file.set_permissions(PermissionsExt::from_mode(0o640))));
        told.push(errno(nix::unistd::fchown(&file, Some(5.into()), None)));
        told.push(said(file.set_len(3)));
        told.push(said(file.write_at(b"!!", 3)));
        let mut buf = [0; 16];
        told.push(said(file.read_at(&mut buf, 0).map(|n| buf[..n].to_vec())));
        told.push(said(reader.read_at(&mut buf, 0).map(|n| buf[..n].to_vec())));
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(77)).unwrap();
        told.push(said(file.metadata().map(|meta| meta.mtime())));
        told.push(said(file.sync_all()));
        told.push(told_of(&file));
        // Replaced by a rename.
        fs::write(p("a"), "a").unwrap();
        fs::write(p("b"), "b").unwrap();
        let b = File::open(p("b")).unwrap();
        fs::rename(p("a"), p("b")).unwrap();
        told.push(told_of(&b));
        told.push(said(b.read_at(&mut buf, 0).map(|n| buf[..n].to_vec())));
        // A directory.
        fs::create_dir(p("d")).unwrap();
        let d = File::open(p("d")).unwrap();
        fs::remove_dir(p("d")).unwrap();
        told.push(format!("{}", d.metadata().unwrap().nlink()));
    });
}

#[test]
fn mapped_files_are_written_back() {
    let mounted = Mounted::start();
    let path = mounted.path("mapped");
    fs::write(&path, vec![b'.'; 20_000]).unwrap();
    // Python maps files without unsafe code of ours.
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[9990:10000]=b'0123456789'\nf.close()\nm[5:8]=b'abc'\n";
    let status = std::process::Command::new("python3").arg("-c").arg(script).arg(&path).status().unwrap();
    assert!(status.success());
    let bytes = fs::read(&path).unwrap();
    assert_eq!((&bytes[5..8], &bytes[9990..10_000], bytes.len()), (&b"abc"[..], &b"0123456789"[..], 20_000));
    super::wait_until("it is sealed", || mounted.worker.open_handles() == 0);
    let tree = mounted.worker.shared.tree.lock();
    let ino = tree.lookup(1, b"mapped").unwrap().ino;
    assert!(!tree.nodes[&ino].staged);
    assert_eq!(tree.content(ino), bytes);
}

#[test]
fn what_was_written_through_a_map_is_not_taken_for_a_hole() {
    let mounted = Mounted::start();
    let path = mounted.path("mapped");
    let script = "import mmap,os,sys\nf=open(sys.argv[1],'w+b')\nf.truncate(1<<20)\nm=mmap.mmap(f.fileno(),0)\nf.close()\n\
        m[500000:500005]=b'hello'\nr=os.open(sys.argv[1],os.O_RDONLY)\ndata=os.lseek(r,0,os.SEEK_DATA)\n\
        hole=os.lseek(r,data,os.SEEK_HOLE)\nassert data<=500000 and hole>=500005,(data,hole)\n\
        try: os.lseek(r,1<<20,os.SEEK_DATA)\nexcept OSError as e: assert e.errno==6,e\n";
    let status = std::process::Command::new("python3").arg("-c").arg(script).arg(&path).status().unwrap();
    assert!(status.success());
}
