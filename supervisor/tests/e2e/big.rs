//! A file of more than 4 GiB: the old system could have none.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::host::Host;
use super::wait_for;

const SIZE: u64 = 5 << 30;
/// Around the end of what 32 bits can count, and at both ends.
const MARKS: [(u64, &[u8]); 4] =
    [(0, b"begin"), ((1 << 32) - 3, b"across"), ((1 << 32) + 4096, b"behind"), (SIZE - 3, b"end")];

fn assert_marks(host: &Host) {
    let file = File::open(host.mount().join("big")).unwrap();
    for (offset, mark) in MARKS {
        let mut found = vec![0; mark.len()];
        file.read_exact_at(&mut found, offset).unwrap();
        assert_eq!(found, mark, "at {offset}");
    }
    let mut hole = [1; 4096];
    file.read_exact_at(&mut hole, 3 << 30).unwrap();
    assert_eq!(hole, [0; 4096]);
}

#[test]
fn a_sparse_file_of_five_gibibytes() {
    let Some(mut host) = Host::new() else { return };
    host.start();
    let path = host.mount().join("big");
    let file = File::create(&path).unwrap();
    for (offset, mark) in MARKS {
        file.write_all_at(mark, offset).unwrap();
    }
    drop(file);
    let staged = || host.status()["disks"][0]["worker"]["staged_files"].as_u64();
    wait_for("it to be sealed", || host.logs(), || staged() == Some(0));
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.len(), SIZE);
    assert!(meta.blocks() * 512 < 64 << 20, "its holes take {} bytes", meta.blocks() * 512);
    assert_marks(&host);
    assert_eq!(host.stop().0, 0);
    host.start();
    assert_marks(&host);
    // Changed behind 4 GiB: a copy that keeps the holes.
    let file = File::options().write(true).open(host.mount().join("big")).unwrap();
    file.write_all_at(b"begun", 0).unwrap();
    file.set_len(SIZE + 1).unwrap();
    drop(file);
    wait_for("it to be sealed", || host.logs(), || host.status()["disks"][0]["worker"]["staged_files"] == 0);
    assert_eq!(fs::metadata(host.mount().join("big")).unwrap().len(), SIZE + 1);
    assert_eq!(host.stop().0, 0);
}
