//! A file that is replaced again and again by renaming another one over it: whoever opens it by its name gets one of them, whole.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::host::{Host, is_fuse};
use super::wait_for;

/// Times that it is replaced.
const TIMES: usize = 400;

/// The file's sizes in turn: in the catalog, and outside it.
const SIZES: [usize; 2] = [100, 20_000];

/// What is of one version, and not all of that.
const CUT: &str = "cut";

/// Open and read it until all is done: what was not one version of it.
fn read_all(path: &Path, is_done: &AtomicBool, reads: &AtomicUsize) -> Vec<String> {
    let mut wrong = Vec::new();
    while !is_done.load(Ordering::Relaxed) {
        match fs::read(path) {
            Ok(bytes) if SIZES.contains(&bytes.len()) && bytes.iter().all(|byte| *byte == bytes[0]) => {}
            Ok(bytes) => {
                let is_one = bytes.iter().all(|byte| *byte == bytes[0]);
                let what = if is_one { CUT } else { "mixed" };
                wrong.push(format!("{what}: {} bytes, {:?}", bytes.len(), bytes.first()));
            }
            Err(error) => wrong.push(error.to_string()),
        }
        reads.fetch_add(1, Ordering::Relaxed);
    }
    wrong
}

#[test]
fn who_opens_a_file_that_is_replaced_all_the_time_gets_it() {
    let Some(mut host) = Host::new() else { return };
    host.start();
    let (mount, other) = (host.mount(), host.path("second"));
    fs::create_dir(&other).unwrap();
    let (code, said) = host.says(&["mount", other.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    wait_for("the second mount", || host.logs(), || is_fuse(&other));
    let (path, new) = (mount.join("f"), mount.join("new"));
    fs::write(&path, [b'a'; SIZES[0]]).unwrap();
    wait_for("the file there", || host.logs(), || fs::read(other.join("f")).is_ok_and(|read| !read.is_empty()));
    let (is_done, reads) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    std::thread::scope(|scope| {
        let readers = [&mount, &mount, &other].map(|mount| {
            let (path, reads) = (mount.join("f"), &reads[usize::from(mount == &other)]);
            let is_done = &is_done;
            scope.spawn(move || read_all(&path, is_done, reads))
        });
        let replace = |n: usize| fs::write(&new, vec![n as u8; SIZES[n % 2]]).and_then(|()| fs::rename(&new, &path));
        let mut replaced = Ok(());
        for n in 0..TIMES {
            replaced = replaced.and_then(|()| replace(n));
        }
        is_done.store(true, Ordering::Relaxed);
        let wrong = readers.map(|reader| reader.join().unwrap());
        replaced.unwrap();
        assert_eq!(wrong[..2].concat(), Vec::<String>::new(), "through the same mount, {reads:?} reads");
        // Whose kernel hears of it a moment later: a read at that moment may be cut off where an older one ended.
        let failed: Vec<&String> = wrong[2].iter().filter(|wrong| !wrong.starts_with(CUT)).collect();
        assert_eq!(failed, Vec::<&String>::new(), "through another mount, {reads:?} reads");
    });
    assert!(reads.iter().all(|reads| reads.load(Ordering::Relaxed) > 0));
    assert_eq!(host.stop().0, 0, "{}", host.logs());
    host.assert_gone();
}
