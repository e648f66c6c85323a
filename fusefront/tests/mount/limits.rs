//! What is at the end of what a number can hold.

use std::os::unix::fs::MetadataExt;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::{Mounted, wait_until};

#[test]
fn the_earliest_time_there_is_ends_nothing() {
    let mounted = Mounted::start();
    let path = mounted.path("f");
    std::fs::write(&path, "text").unwrap();
    wait_until("it is sealed", || mounted.worker.open_handles() == 0);
    // More than there are threads that read requests. On threads of their own: without an answer they could not even be killed.
    for _ in 0..20 {
        let path = path.clone();
        let setting = std::thread::spawn(move || {
            let earliest = TimeSpec::new(i64::MIN, 0);
            utimensat(AT_FDCWD, &path, &earliest, &earliest, UtimensatFlags::NoFollowSymlink)
        });
        wait_until("it is answered", || setting.is_finished());
        setting.join().unwrap().unwrap();
    }
    // What nanoseconds in 64 bits can say.
    let shown = std::fs::metadata(&path).unwrap();
    assert_eq!(
        (shown.mtime(), shown.atime()),
        (i64::MIN.div_euclid(1_000_000_000), i64::MIN.div_euclid(1_000_000_000))
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"text");
}
