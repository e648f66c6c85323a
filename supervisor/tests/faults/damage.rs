//! Damaged and missing contents, seen through a mount: an I/O error and a sentence in the log, and never wrong bytes.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::PathBuf;

use nix::libc::EIO;

use super::lab::{Lab, errno, noise, with_lab};

/// The file of the only content.
fn content(lab: &Lab) -> PathBuf {
    let shards = fs::read_dir(lab.root("data")).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = shards.flat_map(|dir| fs::read_dir(dir).unwrap().map(|e| e.unwrap().path())).collect();
    assert_eq!(files.len(), 1);
    files[0].clone()
}

fn damaged(damage: impl FnOnce(&Lab, PathBuf) + Send, sentence: &str) {
    damaged_with(damage, EIO, sentence);
}

fn damaged_with(damage: impl FnOnce(&Lab, PathBuf) + Send, wanted: i32, sentence: &str) {
    with_lab(40, &["--reserve-bytes", "0"], |lab| {
        fs::write(lab.at("a"), noise(100_000, 1)).unwrap();
        fs::write(lab.at("small"), b"small").unwrap();
        lab.wait_until("it is sealed", || lab.status().staged_files == 0);
        // From here on nothing is in the kernel's cache.
        lab.stop();
        damage(lab, content(lab));
        lab.start();
        for _ in 0..3 {
            assert_eq!(errno(&fs::read(lab.at("a")).unwrap_err()), wanted);
            let append = File::options().append(true).open(lab.at("a")).unwrap_err();
            assert_eq!(errno(&append), wanted, "{append}");
        }
        assert_eq!(fs::metadata(lab.at("a")).unwrap().len(), 100_000, "it is there, and says how long it was");
        assert_eq!(fs::read(lab.at("small")).unwrap(), b"small");
        let log = lab.log();
        assert!(log.contains(sentence), "{log}");
        // The frontend's sentence, once for reading and once for writing.
        assert!(log.lines().filter(|line| line.contains("ERROR") && line.contains(sentence)).count() <= 4, "{log}");
        let problems = lab.problems();
        assert!(problems.len() == 1 && problems[0].starts_with("content of /a: "), "{problems:?}");
        // What replaces it is good again, and so is the disk.
        fs::write(lab.at("a"), b"").unwrap();
        fs::remove_file(lab.at("a")).unwrap();
        fs::write(lab.at("a"), noise(100_000, 1)).unwrap();
        assert!(fs::read(lab.at("a")).unwrap() == noise(100_000, 1));
        lab.wait_until("it is sealed", || lab.status().staged_files == 0);
        assert!(fs::read(lab.at("a")).unwrap() == noise(100_000, 1));
        lab.assert_sound();
    });
}

#[test]
fn missing() {
    // It may be on another disk, as far as this one knows; there is none.
    let remove = |_: &Lab, path| fs::remove_file(path).unwrap();
    damaged_with(remove, nix::libc::EHOSTUNREACH, "no disk that holds the content can be reached");
}

#[test]
fn cut() {
    // Its length gives it away. It stays: most of it may be right.
    let cut = |_: &Lab, path: PathBuf| {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        File::options().write(true).open(path).unwrap().set_len(99_999).unwrap();
    };
    damaged(cut, "is damaged: it is not what its name says");
}

#[test]
fn a_link_to_something_else() {
    damaged(
        |lab, path| {
            // Of the same length, so that only its kind gives it away.
            let other = lab.path("other");
            fs::write(&other, noise(100_000, 2)).unwrap();
            fs::remove_file(&path).unwrap();
            symlink(other, path).unwrap();
        },
        "is damaged: it is a symbolic link",
    );
}

/// What belongs into a directory that is a link stays staged until the link is removed.
#[test]
fn the_whole_directory_is_a_link() {
    with_lab(40, &["--reserve-bytes", "0"], |lab| {
        fs::write(lab.at("a"), noise(100_000, 1)).unwrap();
        lab.wait_until("it is sealed", || lab.status().staged_files == 0);
        lab.stop();
        let path = content(lab);
        let shard = path.parent().unwrap();
        let elsewhere = lab.path("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join(path.file_name().unwrap()), noise(100_000, 2)).unwrap();
        fs::remove_dir_all(shard).unwrap();
        symlink(&elsewhere, shard).unwrap();
        lab.start();
        assert_eq!(errno(&fs::read(lab.at("a")).unwrap_err()), EIO);
        fs::remove_file(lab.at("a")).unwrap();
        fs::write(lab.at("a"), noise(100_000, 1)).unwrap();
        lab.wait_until("it is noticed", || lab.log().contains("stays staged"));
        assert!(fs::read(lab.at("a")).unwrap() == noise(100_000, 1));
        fs::remove_file(shard).unwrap();
        lab.wait_until("it is sealed", || lab.status().staged_files == 0);
        assert!(fs::read(lab.at("a")).unwrap() == noise(100_000, 1));
        assert!(fs::read(elsewhere.join(path.file_name().unwrap())).unwrap() == noise(100_000, 2));
        lab.assert_sound();
    });
}

/// An open file is read through its descriptor: what happens to the name does not matter to it. A file that gets shorter
/// under its reader ends; the kernel and the reader know how long it should be.
#[test]
fn under_an_open_file() {
    with_lab(40, &["--reserve-bytes", "0"], |lab| {
        fs::write(lab.at("a"), noise(300_000, 1)).unwrap();
        lab.wait_until("it is sealed", || lab.status().staged_files == 0);
        lab.restart();
        let mut file = File::open(lab.at("a")).unwrap();
        let path = content(lab);
        fs::rename(&path, lab.path("disk/away")).unwrap();
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        assert!(all == noise(300_000, 1));
        fs::rename(lab.path("disk/away"), &path).unwrap();
        lab.assert_sound();
    });
}

/// The file `a` has wrong bytes on the disk, behind 5 MiB, and nobody has looked: what it should be, and where that is.
fn rotten(lab: &mut Lab) -> (Vec<u8>, PathBuf) {
    let bytes = noise(6 << 20, 1);
    fs::write(lab.at("a"), &bytes).unwrap();
    lab.wait_until("it is sealed", || lab.status().staged_files == 0);
    lab.stop();
    let path = content(lab);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(b"rot", 5 << 20).unwrap();
    lab.start();
    (bytes, path)
}

/// Of the same version, so nothing but the file tells that they are others.
#[test]
fn wrong_bytes_that_the_kernel_has_kept_are_dropped_when_they_were_found() {
    with_lab(40, &["--reserve-bytes", "0"], |lab| {
        let (bytes, _) = rotten(lab);
        // Whoever reads before somebody has looked gets what is there, and the kernel keeps it.
        assert!(fs::read(lab.at("a")).unwrap() != bytes);
        let before = File::open(lab.at("a")).unwrap();
        assert_eq!(lab.problems().len(), 1);
        let mut some = vec![0; 100];
        assert_eq!(errno(&fs::read(lab.at("a")).unwrap_err()), EIO);
        assert_eq!(errno(&before.read_exact_at(&mut some, 5 << 20).unwrap_err()), EIO);
        // And where it is replaced.
        fs::write(lab.at("b"), &bytes).unwrap();
        lab.wait_until("it is sealed", || lab.status().staged_files == 0);
        assert!(fs::read(lab.at("a")).unwrap() == bytes);
        before.read_exact_at(&mut some, 5 << 20).unwrap();
        assert_eq!(some, bytes[5 << 20..][..100]);
        lab.assert_sound();
    });
}

/// The only copy: what of it is right can be read, and what is wrong is not shown, nor becomes a new version.
#[test]
fn wrong_bytes_that_a_scrub_has_found_are_not_shown() {
    with_lab(40, &["--reserve-bytes", "0"], |lab| {
        let (bytes, path) = rotten(lab);
        let problems = lab.problems();
        assert!(
            problems.len() == 1 && problems[0].contains("is damaged") && problems[0].contains("stays"),
            "{problems:?}"
        );
        for is_again in [false, true] {
            if is_again {
                lab.restart();
            }
            assert_eq!(lab.status().damaged_contents, 1);
            let file = File::open(lab.at("a")).unwrap();
            let mut begin = vec![0; 1 << 20];
            file.read_exact_at(&mut begin, 0).unwrap();
            assert!(begin == bytes[..1 << 20]);
            assert_eq!(errno(&file.read_exact_at(&mut begin, 5 << 20).unwrap_err()), EIO);
            assert_eq!(errno(&File::options().append(true).open(lab.at("a")).unwrap_err()), EIO);
        }
        assert!(path.exists());
        // Whoever has it writes it again.
        fs::write(lab.at("b"), &bytes).unwrap();
        lab.wait_until("it is sealed", || lab.status().staged_files == 0);
        assert!(fs::read(lab.at("a")).unwrap() == bytes && lab.status().damaged_contents == 0);
        lab.assert_sound();
    });
}
