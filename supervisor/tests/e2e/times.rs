//! A disk on a file system that can show times of all ages, as tmpfs, btrfs and ZFS do.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use super::host::Host;
use super::{assert_at_rest, wait_for};

/// 0001-01-01, in seconds since 1970: what some programs take for "no time".
const YEAR_ONE: i64 = -62_135_596_800;

#[test]
fn a_file_of_the_year_one_is_sealed_when_it_is_closed() {
    let Some(mut host) = Host::new_in(Path::new("/dev/shm")) else { return };
    host.start();
    let path = host.mount().join("old");
    let mut file = File::create(&path).unwrap();
    file.write_all(&[7; 100_000]).unwrap();
    let year_one = TimeSpec::new(YEAR_ONE, 0);
    futimens(&file, &year_one, &year_one).unwrap();
    // What nanoseconds in 64 bits can say.
    assert_eq!(file.metadata().unwrap().mtime(), i64::MIN.div_euclid(1_000_000_000));
    let written = fs::metadata(&path).unwrap();
    drop(file);
    let staged = || fs::read_dir(host.disk().join("staging")).unwrap().count();
    wait_for("it to be sealed", || host.logs(), || staged() == 0);
    assert_eq!(fs::read(&path).unwrap(), [7; 100_000]);
    let sealed = fs::metadata(&path).unwrap();
    assert_eq!((sealed.mtime(), sealed.mtime_nsec()), (written.mtime(), written.mtime_nsec()));
    assert_eq!(host.stop().0, 0, "{}", host.logs());
    assert_at_rest(&host.disk(), &["staging"], || host.logs());
    host.assert_gone();
}
