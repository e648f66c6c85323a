//! What others change, seen through the kernel's caches.

use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use delugefs_proto::local_pb::Changed;
use parking_lot::Mutex;

use super::{Mounted, PATIENCE, wait_until};

#[test]
fn changes_of_others_are_seen_in_spite_of_long_ttls() {
    let mounted = Mounted::start();
    let (old, gone) = (mounted.path("old"), mounted.path("gone"));
    std::fs::write(&old, "old content").unwrap();
    std::fs::write(&gone, "x").unwrap();
    assert!(!mounted.path("new").exists());
    assert_eq!(std::fs::read(&old).unwrap(), b"old content");
    assert_eq!(std::fs::read_dir(&mounted.dir).unwrap().count(), 2);
    // Later closes would put their content over what comes now.
    wait_until("both are sealed", || mounted.worker.open_handles() == 0);
    mounted.worker.elsewhere(|tree| {
        let ino = tree.lookup(1, b"old").unwrap().ino;
        tree.replace(ino, b"new content, and longer");
        tree.make(1, b"new", 0o100_644, (0, 0), 0).unwrap();
        tree.unlink(1, b"gone").unwrap();
        let names = ["new", "gone"].map(|name| Bytes::from_static(name.as_bytes()));
        vec![Changed { dir: 1, names: names.into(), inos: vec![ino] }]
    });
    wait_until("the new name is seen", || mounted.path("new").exists());
    wait_until("the old name is not", || !gone.exists());
    wait_until("the new content is seen", || std::fs::read(&old).unwrap() == b"new content, and longer");
    let mut names: Vec<_> = std::fs::read_dir(&mounted.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["new", "old"]);
}

#[test]
fn a_restarted_worker_may_know_better() {
    let mut mounted = Mounted::start();
    std::fs::write(mounted.path("a"), "a").unwrap();
    assert!(!mounted.path("b").exists());
    let names = || {
        let entries = std::fs::read_dir(&mounted.dir).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["a"]);
    // What a close says of a file must have come, or it is asked for again.
    wait_until("it is sealed", || mounted.worker.open_handles() == 0);
    let file = std::fs::File::create(mounted.path("open")).unwrap();
    // Twice: the kernel keeps what it has read to the end.
    assert_eq!([names(), names()], [["a", "open"], ["a", "open"]]);
    let nlink = || std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata(&mounted.dir).unwrap());
    let links = nlink();
    mounted.worker.crash();
    {
        let mut tree = mounted.worker.shared.tree.lock();
        tree.make(1, b"b", 0o100_644, (0, 0), 0).unwrap();
        tree.unlink(1, b"a").unwrap();
        tree.make(1, b"d", 0o040_755, (0, 0), 0).unwrap();
    }
    // Served from memory meanwhile.
    assert_eq!(std::fs::metadata(mounted.path("a")).unwrap().len(), 1);
    std::os::unix::fs::FileExt::write_all_at(&file, b"written without a worker", 0).unwrap();
    mounted.worker.resume();
    wait_until("the kernel asks again", || mounted.path("b").exists() && !mounted.path("a").exists());
    wait_until("the root is listed anew", || names() == ["b", "d", "open"]);
    wait_until("and asked for its attributes", || nlink() == links + 1);
    drop(file);
    assert_eq!(std::fs::read(mounted.path("open")).unwrap(), b"written without a worker");
}

/// Tells other threads to end, also after a panic: nobody else does.
pub struct Ending<'a>(pub &'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Times that a file is changed elsewhere.
const VERSIONS: usize = 300;

#[test]
fn who_opens_a_file_that_others_replace_reads_one_version() {
    let mounted = Mounted::start();
    let path = mounted.path("f");
    // Of one page each: a call that began before may get some pages of each.
    let versions = [vec![b'A'; 100], vec![b'B'; 3000]];
    std::fs::write(&path, &versions[0]).unwrap();
    wait_until("it is sealed", || mounted.worker.open_handles() == 0);
    let ino = mounted.worker.shared.tree.lock().lookup(1, b"f").unwrap().ino;
    let (is_done, torn) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let begun = AtomicUsize::new(0);
    let read = || {
        let mut file = std::fs::File::open(&path).unwrap();
        let size = file.metadata().unwrap().len();
        // One call: what is read by several may be of several versions.
        let mut bytes = vec![0; 8192];
        let n = file.read(&mut bytes).unwrap();
        (size as usize, bytes[..n].to_vec())
    };
    std::thread::scope(|scope| {
        let _ending = Ending(&is_done);
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    let before = begun.load(Ordering::SeqCst);
                    let (size, bytes) = read();
                    // When another one comes meanwhile there may be some of each.
                    if !versions.contains(&bytes) && before == begun.load(Ordering::SeqCst) {
                        torn.lock().push((size, bytes.len(), bytes.first().copied(), bytes.last().copied()));
                    }
                }
            });
        }
        for (n, version) in (0..VERSIONS).zip(versions.iter().cycle().skip(1)) {
            begun.fetch_add(1, Ordering::SeqCst);
            mounted.worker.elsewhere(|tree| {
                tree.replace(ino, version);
                vec![Changed { inos: vec![ino], ..Changed::default() }]
            });
            let deadline = Instant::now() + PATIENCE;
            loop {
                let (size, bytes) = read();
                if (size, &bytes) == (version.len(), version) {
                    break;
                }
                let seen = (size, bytes.len(), bytes.first());
                assert!(Instant::now() < deadline, "version {n} is not seen, but {seen:?}");
            }
        }
    });
    assert_eq!(*torn.lock(), []);
}

#[test]
fn who_follows_a_file_that_grows_elsewhere_reads_what_was_written() {
    let mounted = Mounted::start();
    let path = mounted.path("log");
    std::fs::write(&path, "line 0\n").unwrap();
    wait_until("it is sealed", || mounted.worker.open_handles() == 0);
    let ino = mounted.worker.shared.tree.lock().lookup(1, b"log").unwrap().ino;
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = Ending(&is_done);
        // Lists the directory with attributes, from the worker each time.
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                std::fs::File::create(mounted.path("other")).unwrap();
                std::fs::read_dir(&mounted.dir).unwrap().for_each(|entry| drop(entry.unwrap().metadata()));
                std::fs::remove_file(mounted.path("other")).unwrap();
            }
        });
        let mut file = std::fs::File::open(&path).unwrap();
        let (mut written, mut read) = (String::from("line 0\n"), Vec::<u8>::new());
        for n in 1..VERSIONS {
            written += &format!("line {n}\n");
            mounted.worker.elsewhere(|tree| {
                tree.replace(ino, written.as_bytes());
                vec![Changed { inos: vec![ino], ..Changed::default() }]
            });
            let deadline = Instant::now() + PATIENCE;
            while read.len() < written.len() {
                let mut bytes = [0; 4096];
                let n = file.read(&mut bytes).unwrap();
                read.extend(&bytes[..n]);
                assert_eq!(read, written.as_bytes()[..read.len()]);
                assert!(Instant::now() < deadline, "{written} is not seen");
            }
        }
    });
}

#[test]
fn who_writes_at_the_end_writes_behind_what_others_have_written() {
    let mounted = Mounted::start();
    let path = mounted.path("notes");
    std::fs::write(&path, "first\n").unwrap();
    let mut expected = b"first\n".to_vec();
    let tree = || mounted.worker.shared.tree.lock();
    let ino = tree().lookup(1, b"notes").unwrap().ino;
    for n in 0..VERSIONS / 10 {
        wait_until("it is sealed", || mounted.worker.open_handles() == 0);
        // The kernel has it, with its size.
        assert_eq!(std::fs::read(&path).unwrap(), expected);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), expected.len() as u64);
        // The news of it has not come yet.
        expected.extend(format!("elsewhere {n}\n").bytes());
        tree().replace(ino, &expected);
        let mut file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), expected.len() as u64);
        assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), expected.len() as u64);
        let line = format!("here {n}\n");
        file.write_all(line.as_bytes()).unwrap();
        expected.extend(line.bytes());
    }
    wait_until("it is sealed", || mounted.worker.open_handles() == 0);
    assert_eq!(tree().content(ino), expected);
}

#[test]
fn what_is_in_memory_is_answered_while_changes_wait_for_the_worker() {
    let mut mounted = Mounted::start();
    std::fs::create_dir(mounted.path("d")).unwrap();
    for n in 0..10 {
        std::fs::write(mounted.path(&format!("d/f{n}")), format!("{n}")).unwrap();
    }
    let reader = std::fs::File::open(mounted.path("d/f0")).unwrap();
    let writer = std::fs::File::create(mounted.path("d/written")).unwrap();
    assert_eq!(std::fs::read_dir(mounted.path("d")).unwrap().count(), 11);
    let sizes = nix::sys::statvfs::statvfs(&mounted.dir).unwrap();
    assert_eq!((sizes.blocks(), sizes.blocks_free(), sizes.name_max()), (1000, 600, 255));
    mounted.worker.crash();
    let waiting: Vec<_> = (0..20)
        .map(|n| {
            let dir = mounted.path(&format!("new{n}"));
            std::thread::spawn(move || std::fs::create_dir(dir))
        })
        .collect();
    // More than there are threads for: none of them may be in the way of these.
    for _ in 0..50 {
        let meta = std::fs::symlink_metadata(mounted.path("d/f3")).unwrap();
        assert_eq!(meta.len(), 1);
        assert_eq!(std::fs::read_dir(mounted.path("d")).unwrap().count(), 11);
        assert!(!mounted.path("d/none").exists());
        assert_eq!(nix::sys::statvfs::statvfs(&mounted.dir).map(|all| all.blocks()), Ok(1000));
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_at(&reader, &mut byte, 0).unwrap();
        std::os::unix::fs::FileExt::write_at(&writer, b"x", 3).unwrap();
        assert_eq!(writer.metadata().unwrap().len(), 4);
    }
    assert!(waiting.iter().all(|thread| !thread.is_finished()));
    mounted.worker.resume();
    for thread in waiting {
        thread.join().unwrap().unwrap();
    }
    assert_eq!(std::fs::read_dir(&mounted.dir).unwrap().count(), 21);
}

#[test]
fn what_is_appended_is_behind_what_another_mount_has_appended() {
    use std::io::Write;
    let mounted = Mounted::start();
    let path = mounted.path("log");
    let open = |path: &std::path::Path| std::fs::File::options().create(true).append(true).open(path).unwrap();
    let mut here = open(&path);
    let ino = std::os::unix::fs::MetadataExt::ino(&here.metadata().unwrap());
    // As another mount of the same worker does: it has the same file.
    let mut there = open(&mounted.worker.shared.tree.lock().staging(ino));
    let mut expected = String::new();
    for n in 0..100 {
        let line = format!("line {n}\n");
        if n % 2 == 0 { &mut here } else { &mut there }.write_all(line.as_bytes()).unwrap();
        expected += &line;
    }
    here.write_all(b"end\n").unwrap();
    expected += "end\n";
    wait_until("all of it is seen", || std::fs::read_to_string(&path).unwrap() == expected);
    drop((here, there));
    assert_eq!(mounted.worker.shared.tree.lock().content(ino), expected.as_bytes());
}

#[test]
fn whoever_reads_an_open_file_waits_for_no_worker() {
    const STALLED: usize = 80;
    let mounted = Mounted::start();
    let path = mounted.path("f");
    std::fs::write(&path, vec![7; 200_000]).unwrap();
    wait_until("it is sealed", || mounted.worker.open_handles() == 0);
    let reader = std::fs::File::open(&path).unwrap();
    // What is open is opened anew when a worker came: not now.
    assert_eq!(std::os::unix::fs::FileExt::read_at(&reader, &mut [0; 8], 0).unwrap(), 8);
    // One that nothing is known of: whoever looks for a name there waits.
    mounted.worker.elsewhere(|tree| {
        let ino = tree.make(1, b"d", 0o040_755, (0, 0), 0).unwrap();
        vec![Changed { dir: 1, names: vec!["d".into()], inos: vec![ino] }]
    });
    let dir = mounted.path("d");
    wait_until("it is there", || dir.exists());
    mounted.worker.be_silent_to("readdir");
    let before = mounted.worker.count("readdir");
    std::thread::scope(|scope| {
        let absent = |n| dir.join(format!("absent {n}"));
        let asking: Vec<_> = (0..STALLED).map(|n| scope.spawn(move || absent(n).exists())).collect();
        wait_until("as many wait as can", || mounted.worker.count("readdir") >= before + 7 + 64);
        let reading = scope.spawn(|| std::os::unix::fs::FileExt::read_at(&reader, &mut [0; 8], 199_990));
        let begin = std::time::Instant::now();
        while !reading.is_finished() && begin.elapsed() < super::PATIENCE / 2 {
            std::thread::yield_now();
        }
        let is_read = reading.is_finished();
        mounted.worker.answer();
        assert!(is_read);
        assert_eq!(reading.join().unwrap().unwrap(), 8);
        assert!(asking.into_iter().all(|thread| !thread.join().unwrap()));
    });
}

#[test]
fn opens_that_wait_for_other_disks_keep_nothing_else_waiting() {
    const STALLED: usize = 80;
    let mounted = Mounted::start();
    let (far, near) = (mounted.path("far"), mounted.path("near"));
    for path in [&far, &near] {
        std::fs::write(path, vec![7; 20_000]).unwrap();
    }
    wait_until("both are sealed", || mounted.worker.open_handles() == 0);
    let before = mounted.worker.count("open");
    let reader = std::fs::File::open(&near).unwrap();
    mounted.worker.be_silent_to("open");
    std::thread::scope(|scope| {
        let opening: Vec<_> = (0..STALLED).map(|_| scope.spawn(|| std::fs::File::open(&far).map(drop))).collect();
        wait_until("as many wait as can", || mounted.worker.count("open") >= before + 1 + 64);
        std::fs::create_dir(mounted.path("dir")).unwrap();
        std::fs::write(mounted.path("file"), "text").unwrap();
        std::fs::rename(mounted.path("file"), mounted.path("dir/file")).unwrap();
        assert_eq!(std::os::unix::fs::FileExt::read_at(&reader, &mut [0; 8], 19_990).unwrap(), 8);
        assert!(opening.iter().all(|thread| !thread.is_finished()));
        mounted.worker.answer();
        opening.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    });
    drop(reader);
    wait_until("all are closed", || mounted.worker.open_handles() == 0);
}
