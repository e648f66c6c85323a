//! The works that mounts are measured with. Each prepares a folder, does something countable in it, and checks what came
//! of it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

const KIB4: usize = 4096;
const MIB: usize = 1 << 20;
/// Names in a folder, where a work makes many.
const PER_FOLDER: usize = 500;

/// Opened before the time is taken.
pub type Prepared = Option<File>;

/// One work.
pub struct Work {
    /// In the table, with the unit.
    pub name: &'static str,
    /// How many files, calls or MiB.
    pub count: usize,
    pub prepare: fn(&Path, usize) -> Prepared,
    /// How many units were done.
    pub run: fn(&Path, usize, Prepared) -> f64,
    pub check: fn(&Path, usize),
}

/// All of them, in the order of the table.
pub fn all() -> Vec<Work> {
    vec![
        Work {
            name: "create, write 4 KiB, close: files/s",
            count: 3000,
            prepare: nothing,
            run: create,
            check: files_are_right,
        },
        Work {
            name: "the same by four at once",
            count: 6000,
            prepare: nothing,
            run: create_by_four,
            check: files_are_right,
        },
        Work { name: "untar: files/s", count: 2000, prepare: an_archive, run: untar, check: untarred_is_right },
        Work { name: "rm -r: files/s", count: 3000, prepare: files, run: remove_all, check: nothing_is_left },
        Work { name: "rename: calls/s", count: 3000, prepare: files, run: rename, check: renamed_are_there },
        Work { name: "unlink: calls/s", count: 3000, prepare: files, run: unlink, check: nothing_is_left },
        Work { name: "stat, known: calls/s", count: 30_000, prepare: known_files, run: stat, check: unchecked },
        Work { name: "find, known: names/s", count: 3000, prepare: known_files, run: find, check: unchecked },
        Work { name: "write in order: MB/s", count: 512, prepare: nothing, run: write, check: big_is_right },
        Work {
            name: "read in order, not in memory: MB/s",
            count: 512,
            prepare: a_cold_file,
            run: read,
            check: unchecked,
        },
        Work {
            name: "read in order, in memory: MB/s",
            count: 512,
            prepare: a_read_file,
            run: read_again,
            check: unchecked,
        },
        Work {
            name: "read 4 KiB anywhere, in memory: calls/s",
            count: 200_000,
            prepare: a_small_read_file,
            run: read_anywhere,
            check: unchecked,
        },
        Work {
            name: "write 4 KiB anywhere: calls/s",
            count: 20_000,
            prepare: a_small_file,
            run: write_anywhere,
            check: unchecked,
        },
        Work {
            name: "append 4 KiB and fsync: calls/s",
            count: 300,
            prepare: nothing,
            run: append_and_sync,
            check: appended_is_right,
        },
    ]
}

/// Bytes that differ from file to file, so that nothing is found to be there already, and cost next to nothing to make.
fn content(of: usize, length: usize) -> Vec<u8> {
    static RANDOM: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15 ^ u64::from(std::process::id()) << 32;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        (0..2 * MIB / 8).flat_map(next).collect()
    });
    let start = of * 40_507 % MIB;
    RANDOM[start..start + length].to_vec()
}

fn path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("d{}", n / PER_FOLDER)).join(format!("f{n}"))
}

fn folders(dir: &Path, count: usize) {
    for folder in 0..count.div_ceil(PER_FOLDER) {
        fs::create_dir_all(dir.join(format!("d{folder}"))).unwrap();
    }
}

fn nothing(dir: &Path, count: usize) -> Prepared {
    folders(dir, count);
    None
}

fn unchecked(_: &Path, _: usize) {}

fn create(dir: &Path, count: usize, _: Prepared) -> f64 {
    (0..count).for_each(|n| fs::write(path(dir, n), content(n, KIB4)).unwrap());
    count as f64
}

fn create_by_four(dir: &Path, count: usize, _: Prepared) -> f64 {
    std::thread::scope(|scope| {
        for part in 0..4 {
            let of_part = (0..count).filter(move |n| n / PER_FOLDER % 4 == part);
            scope.spawn(move || of_part.for_each(|n| fs::write(path(dir, n), content(n, KIB4)).unwrap()));
        }
    });
    count as f64
}

fn files(dir: &Path, count: usize) -> Prepared {
    folders(dir, count);
    create(dir, count, None);
    None
}

fn files_are_right(dir: &Path, count: usize) {
    (0..count).for_each(|n| assert!(fs::read(path(dir, n)).unwrap() == content(n, KIB4), "{n} is wrong"));
}

fn archive(dir: &Path) -> PathBuf {
    // Beside the places, on the bare disk.
    std::env::temp_dir().join(format!("delugefs-figures-{}-{}.tar", std::process::id(), dir.metadata().unwrap().ino()))
}

fn an_archive(dir: &Path, count: usize) -> Prepared {
    let from = tempfile::tempdir().unwrap();
    folders(from.path(), count);
    for n in 0..count {
        fs::write(path(from.path(), n), content(n, 200 + n * 7919 % 16_000)).unwrap();
    }
    let status = Command::new("tar").arg("-cf").arg(archive(dir)).arg("-C").arg(from.path()).arg(".").status();
    assert!(status.unwrap().success());
    None
}

fn untar(dir: &Path, count: usize, _: Prepared) -> f64 {
    let status = Command::new("tar").arg("-xf").arg(archive(dir)).arg("-C").arg(dir).status();
    assert!(status.unwrap().success());
    count as f64
}

fn untarred_is_right(dir: &Path, count: usize) {
    fs::remove_file(archive(dir)).unwrap();
    (0..count).for_each(|n| assert!(fs::read(path(dir, n)).unwrap() == content(n, 200 + n * 7919 % 16_000)));
}

fn remove_all(dir: &Path, count: usize, _: Prepared) -> f64 {
    for folder in 0..count.div_ceil(PER_FOLDER) {
        fs::remove_dir_all(dir.join(format!("d{folder}"))).unwrap();
    }
    count as f64
}

fn nothing_is_left(dir: &Path, count: usize) {
    (0..count).for_each(|n| assert!(fs::symlink_metadata(path(dir, n)).is_err()));
}

fn rename(dir: &Path, count: usize, _: Prepared) -> f64 {
    (0..count).for_each(|n| fs::rename(path(dir, n), path(dir, n).with_extension("new")).unwrap());
    count as f64
}

fn renamed_are_there(dir: &Path, count: usize) {
    (0..count).for_each(|n| assert!(fs::read(path(dir, n).with_extension("new")).unwrap() == content(n, KIB4)));
}

fn unlink(dir: &Path, count: usize, _: Prepared) -> f64 {
    (0..count).for_each(|n| fs::remove_file(path(dir, n)).unwrap());
    count as f64
}

fn known_files(dir: &Path, count: usize) -> Prepared {
    let count = count.min(3000);
    files(dir, count);
    find(dir, count, None);
    None
}

fn stat(dir: &Path, count: usize, _: Prepared) -> f64 {
    for n in 0..count {
        assert_eq!(fs::metadata(path(dir, n % count.min(3000))).unwrap().len(), KIB4 as u64);
    }
    count as f64
}

fn find(dir: &Path, _: usize, _: Prepared) -> f64 {
    let (mut found, mut ahead) = (0.0, vec![dir.to_owned()]);
    while let Some(dir) = ahead.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            found += 1.0;
            if entry.metadata().unwrap().is_dir() {
                ahead.push(entry.path());
            }
        }
    }
    found
}

fn write(dir: &Path, count: usize, _: Prepared) -> f64 {
    let block = content(1, MIB);
    let mut file = File::create(dir.join("big")).unwrap();
    (0..count).for_each(|n| {
        file.write_all(&n.to_le_bytes()).unwrap();
        file.write_all(&block[8..]).unwrap();
    });
    file.sync_all().unwrap();
    (count * MIB) as f64 / 1e6
}

fn read(dir: &Path, count: usize, file: Prepared) -> f64 {
    let mut file = file.unwrap_or_else(|| File::open(dir.join("big")).unwrap());
    let (mut buffer, block) = (vec![0; MIB], content(1, MIB));
    for n in 0..count {
        file.read_exact(&mut buffer).unwrap();
        assert!(buffer[..8] == n.to_le_bytes() && buffer[8..] == block[8..], "MiB {n} is wrong");
    }
    (count * MIB) as f64 / 1e6
}

fn big_is_right(dir: &Path, count: usize) {
    read(dir, count, None);
}

fn a_cold_file(dir: &Path, count: usize) -> Prepared {
    write(dir, count, None);
    // For all places, those on the way included; only root can.
    if fs::write("/proc/sys/vm/drop_caches", "3").is_err() {
        println!("(what follows is in memory: only root can empty it)");
    }
    None
}

fn a_read_file(dir: &Path, count: usize) -> Prepared {
    write(dir, count, None);
    let file = File::open(dir.join("big")).unwrap();
    read(dir, count, Some(file.try_clone().unwrap()));
    Some(file)
}

fn read_again(dir: &Path, count: usize, file: Prepared) -> f64 {
    use std::io::Seek;
    let mut file = file.unwrap();
    file.rewind().unwrap();
    read(dir, count, Some(file))
}

const SMALL_MIB: usize = 64;

fn a_small_read_file(dir: &Path, _: usize) -> Prepared {
    a_read_file(dir, SMALL_MIB)
}

fn anywhere(n: usize) -> u64 {
    (n as u64 * 0x9e37_79b9 % (SMALL_MIB * MIB / KIB4) as u64) * KIB4 as u64
}

fn read_anywhere(_: &Path, count: usize, file: Prepared) -> f64 {
    let (file, mut buffer) = (file.unwrap(), vec![0; KIB4]);
    (0..count).for_each(|n| file.read_exact_at(&mut buffer, anywhere(n)).unwrap());
    count as f64
}

fn a_small_file(dir: &Path, _: usize) -> Prepared {
    write(dir, SMALL_MIB, None);
    None
}

fn write_anywhere(dir: &Path, count: usize, _: Prepared) -> f64 {
    // Opening is part of it: DelugeFS copies what it has sealed.
    let (file, block) = (File::options().write(true).open(dir.join("big")).unwrap(), content(2, KIB4));
    (0..count).for_each(|n| file.write_all_at(&block, anywhere(n)).unwrap());
    file.sync_all().unwrap();
    count as f64
}

fn append_and_sync(dir: &Path, count: usize, _: Prepared) -> f64 {
    let mut file = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    for n in 0..count {
        file.write_all(&content(n, KIB4)).unwrap();
        file.sync_data().unwrap();
    }
    count as f64
}

fn appended_is_right(dir: &Path, count: usize) {
    let found = fs::read(dir.join("log")).unwrap();
    assert!(found.len() == count * KIB4 && found.chunks(KIB4).enumerate().all(|(n, chunk)| chunk == content(n, KIB4)));
}
