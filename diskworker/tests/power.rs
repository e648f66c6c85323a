//! The machine goes down: what the journal says of contents that are not on this disk.

use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb as pb;
use nix::errno::Errno;

use crate::disk::{Disk, Posix, SESSION};

#[test]
fn a_file_whose_content_is_elsewhere_keeps_its_new_name() {
    let mut disk = Disk::new();
    let engine = disk.engine();
    Posix::create(&**engine, &[b"old"], 0o644, &[7; 5000]).unwrap();
    disk.wait_until_sealed();
    engine.commit().unwrap();
    // As on a disk that was told of the file and never fetched it.
    let (content, _) = engine.store.contents().next().unwrap().unwrap();
    assert!(engine.store.let_go(content).unwrap());
    let rename = pb::Rename {
        dir: Ino::ROOT.0,
        name: (&b"old"[..]).into(),
        dir2: Ino::ROOT.0,
        name2: (&b"new"[..]).into(),
        ..pb::Rename::default()
    };
    engine.rename(SESSION, false, &rename).unwrap();
    disk.power_loss();
    let engine = disk.engine();
    assert_eq!(engine.resolve(&[b"old"]).err().map(|error| error.errno), Some(Errno::ENOENT));
    let found = engine.resolve(&[b"new"]).unwrap();
    assert_eq!(found.size, 5000);
    let wanted = engine.absent(Ino(found.ino), Ino::ROOT).unwrap().unwrap();
    assert_eq!((wanted.content, wanted.size), (content, 5000));
}
