#![allow(unsafe_code)] // getdents64(2) has no safe wrapper
//! Programs that list a directory through the listing that the kernel keeps, with a buffer as small as musl has it.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::os::fd::AsRawFd;

use super::{Mounted, wait_until};

/// What one call gives of a directory.
fn some_names(dir: &File) -> Vec<String> {
    // Of struct linux_dirent64: the length of the record, and the name.
    const LENGTH: usize = 16;
    const NAME: usize = 19;
    let mut buffer = [0_u8; 2048];
    // SAFETY: the kernel writes at most so many bytes.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    let mut rest = &buffer[..usize::try_from(n).unwrap()];
    let mut names = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(u16::from_ne_bytes([rest[LENGTH], rest[LENGTH + 1]]));
        let name: Vec<u8> = rest[NAME..length].iter().copied().take_while(|byte| *byte != 0).collect();
        names.push(String::from_utf8(name).unwrap());
        rest = &rest[length..];
    }
    names
}

/// The same to its end, without the dots.
fn rest_of(dir: &File) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let more = some_names(dir);
        if more.is_empty() {
            return names;
        }
        names.extend(more.into_iter().filter(|name| !name.starts_with('.')));
    }
}

/// Whatever of it the kernel keeps: who has begun in one listing does not go on in another one.
#[test]
fn names_that_nobody_touches_are_listed_once() {
    let mounted = Mounted::start();
    for count in [10, 20, 30, 40, 60] {
        let dir = mounted.path(&format!("d{count}"));
        std::fs::create_dir(&dir).unwrap();
        let name = |n: usize| format!("f{n:02}");
        (0..count).for_each(|n| drop(File::create(dir.join(name(n))).unwrap()));
        wait_until("all are sealed", || mounted.worker.open_handles() == 0);
        let expected = |gone: usize| -> Vec<String> { (gone..count).map(name).collect() };
        let open = || File::open(&dir).unwrap();
        assert_eq!(rest_of(&open()), expected(0));
        for gone in 0..3 {
            let first = open();
            let mut names = some_names(&first).split_off(2);
            std::fs::remove_file(dir.join(name(gone))).unwrap();
            assert_eq!(rest_of(&open()), expected(gone + 1));
            names.extend(rest_of(&first));
            // It may have been told of the one that is gone by now.
            assert_eq!(names, expected(gone), "of {count}");
        }
    }
}
