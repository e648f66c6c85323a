//! Disks filled through a mount, with the calls every program makes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::FileExt;

use nix::libc::{EDQUOT, EIO, ENOSPC};

use super::lab::{Lab, errno, noise, with_lab};

/// A file through open, write, fsync and close; how much of it is certain, and whether all calls said yes.
fn write(lab: &Lab, name: &str, bytes: &[u8], sync: bool) -> (usize, bool) {
    let mut file = match File::options().create_new(true).write(true).open(lab.at(name)) {
        Ok(file) => file,
        Err(error) => {
            assert_eq!(errno(&error), ENOSPC, "open of {name}");
            return (0, false);
        }
    };
    let mut good = true;
    let mut written = 0;
    for part in bytes.chunks(128 << 10) {
        match file.write(part) {
            Ok(n) => written += n,
            Err(error) => {
                assert_eq!(errno(&error), ENOSPC, "write to {name}");
                good = false;
                break;
            }
        }
    }
    if sync && let Err(error) = file.sync_all() {
        assert!([ENOSPC, EIO].contains(&errno(&error)), "fsync of {name}: {error}");
        good = false;
    }
    match nix::unistd::close(file.into_raw_fd()) {
        Ok(()) => {}
        Err(error) => {
            assert_eq!(error as i32, ENOSPC, "close of {name}");
            good = false;
        }
    }
    (written, good && written == bytes.len())
}

fn check(lab: &Lab, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let found = fs::read(lab.at(name)).unwrap_or_else(|error| panic!("{name}: {error}\n{}", lab.log()));
        assert_eq!(found.len(), bytes.len(), "length of {name}");
        assert!(found == *bytes, "content of {name}");
    }
}

#[test]
fn what_was_taken_is_kept_and_rm_is_all_it_needs() {
    with_lab(48, &["--reserve-bytes", "1000000"], |lab| {
        let mut files = BTreeMap::new();
        for (n, size) in [0usize, 100, 4096, 5000, 2_000_000].into_iter().enumerate() {
            let (name, bytes) = (format!("old{n}"), noise(size, n as u64));
            assert_eq!(write(lab, &name, &bytes, true), (size, true));
            files.insert(name, bytes);
        }
        let mut refused = 0;
        for n in 0..40u64 {
            let (name, bytes) = (format!("big{n:02}"), noise(3_000_000, 100 + n));
            let (written, good) = write(lab, &name, &bytes, n % 2 == 0);
            refused += u32::from(!good);
            // What write(2) took is there, whether there was an error behind it or not.
            if lab.at(&name).exists() {
                files.insert(name, bytes[..written].to_vec());
            } else {
                assert_eq!(written, 0);
            }
        }
        assert!(refused > 10, "never full");
        check(lab, &files);
        // Names, until a commit has no room.
        let mut made = Vec::new();
        lab.wait_until("it is full", || {
            assert!(made.len() < 100_000);
            let dir = lab.at(&format!("dir{}", made.len()));
            match fs::create_dir(&dir) {
                Ok(()) => made.push(dir),
                Err(error) => assert_eq!(errno(&error), ENOSPC),
            }
            lab.status().read_only
        });
        assert!(lab.status().reason.contains("the disk is full"), "{}", lab.status().reason);
        for error in [
            File::create(lab.at("x")).unwrap_err(),
            fs::create_dir(lab.at("x")).unwrap_err(),
            std::os::unix::fs::symlink("x", lab.at("x")).unwrap_err(),
            fs::rename(lab.at("old1"), lab.at("x")).unwrap_err(),
            fs::hard_link(lab.at("old1"), lab.at("x")).unwrap_err(),
        ] {
            assert_eq!(errno(&error), ENOSPC, "{error}");
        }
        check(lab, &files);
        assert!(
            lab.log().contains("the disk is full: delete something, or add a disk and drain this one"),
            "{}",
            lab.log()
        );
        // A restart in this state: the same is there, and it is full still.
        lab.restart();
        check(lab, &files);

        for dir in made {
            fs::remove_dir(dir).unwrap();
        }
        for n in 0..4 {
            let name = format!("big{n:02}");
            fs::remove_file(lab.at(&name)).unwrap();
            files.remove(&name);
        }
        let late = noise(5_000_000, 999);
        let mut tries = 0;
        lab.wait_until("there is room again", || {
            tries += 1;
            let name = format!("late{tries}");
            let (_, good) = write(lab, &name, &late, true);
            if good {
                files.insert(name, late.clone());
            } else {
                drop(fs::remove_file(lab.at(&name)));
            }
            good
        });
        lab.wait_until("the ballast is restored", || {
            fs::metadata(lab.root("journal/ballast")).is_ok_and(|meta| meta.len() == 8 << 20)
        });
        lab.wait_until("all is sealed", || lab.status().staged_files == 0);
        assert!(!lab.status().read_only);
        check(lab, &files);
        lab.restart();
        check(lab, &files);
        lab.assert_sound();
    });
}

#[test]
fn an_open_file_gets_the_rest_and_the_removal_of_it_frees_it() {
    with_lab(40, &["--reserve-bytes", "1000000"], |lab| {
        fs::write(lab.at("kept"), noise(100_000, 1)).unwrap();
        let file = File::options().create_new(true).read(true).write(true).open(lab.at("log")).unwrap();
        let block = noise(64 << 10, 2);
        let mut end = 0;
        let error = loop {
            match file.write_at(&block, end) {
                Ok(n) => end += n as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(errno(&error), ENOSPC);
        // Growing it by its size alone takes nothing and may go on; its bytes do not fit.
        file.set_len(end + (1 << 20)).unwrap();
        assert_eq!(errno(&file.write_all_at(&block, end + 500_000).unwrap_err()), ENOSPC);
        // By mapping: the error comes with msync(2).
        let writable = File::options().read(true).write(true).open(lab.at("log")).unwrap();
        let offset = end.next_multiple_of(4096);
        writable.set_len(offset + (1 << 20)).unwrap();
        #[allow(unsafe_code)]
        // SAFETY: a mapping of one's own; only touched through the pointer here, and unmapped before the file goes.
        let synced = unsafe {
            use nix::libc::{MAP_FAILED, MAP_SHARED, MS_SYNC, PROT_READ, PROT_WRITE, mmap, msync, munmap};
            let (prot, fd) = (PROT_READ | PROT_WRITE, writable.as_raw_fd());
            let at = mmap(std::ptr::null_mut(), 1 << 20, prot, MAP_SHARED, fd, offset as i64);
            assert_ne!(at, MAP_FAILED);
            at.cast::<u8>().write_bytes(7, 1 << 20);
            let synced = nix::errno::Errno::result(msync(at, 1 << 20, MS_SYNC));
            assert_eq!(munmap(at, 1 << 20), 0);
            synced
        };
        assert!([ENOSPC, EIO, EDQUOT].contains(&(synced.unwrap_err() as i32)));
        drop(writable);
        // Nothing is removed under an open file; with the last descriptor the room is back.
        fs::remove_file(lab.at("log")).unwrap();
        assert_eq!(fs::read(lab.at("kept")).unwrap(), noise(100_000, 1));
        let mut read = vec![0; block.len()];
        file.read_exact_at(&mut read, end - block.len() as u64 * 2).unwrap();
        drop(file);
        lab.wait_until("there is room again", || fs::write(lab.at("new"), noise(10_000_000, 3)).is_ok());
        assert_eq!(fs::read(lab.at("new")).unwrap(), noise(10_000_000, 3));
        lab.wait_until("it is writable", || !lab.status().read_only);
        lab.assert_sound();
    });
}

/// The worker dies on a full disk while files are open; the frontend gives them back to the next one.
#[test]
fn a_crash_on_a_full_disk() {
    with_lab(40, &["--reserve-bytes", "0"], |lab| {
        fs::write(lab.at("kept"), noise(100_000, 1)).unwrap();
        let file = File::create(lab.at("open")).unwrap();
        let block = noise(64 << 10, 2);
        let mut end = 0;
        while let Ok(n) = file.write_at(&block, end) {
            end += n as u64;
        }
        fs::remove_file(lab.root("journal/ballast")).unwrap();
        while let Ok(n) = file.write_at(&block, end) {
            end += n as u64;
        }
        lab.crash_worker();
        assert_eq!(fs::read(lab.at("kept")).unwrap(), noise(100_000, 1));
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&block, (1 << 20) - 10).unwrap();
        drop(file);
        lab.wait_until("it is writable", || fs::create_dir(lab.at("again")).is_ok());
        let expected: Vec<u8> =
            block.iter().copied().cycle().take((1 << 20) - 10).chain(block.iter().copied()).collect();
        assert!(fs::read(lab.at("open")).unwrap() == expected);
        lab.wait_until("it is sealed", || lab.status().staged_files == 0);
        lab.restart();
        assert!(fs::read(lab.at("open")).unwrap() == expected);
        lab.assert_sound();
    });
}
