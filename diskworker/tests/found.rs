//! What a scrub finds, and what people are told of it.

use std::os::unix::fs::{FileExt, PermissionsExt};

use delugefs_diskworker::engine::Alone;
use delugefs_proto::ids::{ContentId, Ino};
use delugefs_proto::local_pb as pb;

use crate::disk::{Disk, Posix, SESSION};

/// A number nobody can look up is of no use to who has to restore the file.
#[test]
fn a_damaged_content_is_told_by_the_path_of_its_file() {
    for is_linked in [false, true] {
        let disk = Disk::new();
        let mut dir = Ino::ROOT.0;
        for name in ["a", "b"] {
            let q = pb::Mkdir { dir, name: name.into(), mode: 0o755, uid: 1, gid: 1, token: 0 };
            dir = disk.engine().mkdir(SESSION, false, &q).unwrap().node.unwrap().ino;
        }
        Posix::create(&**disk.engine(), &[b"a", b"b", b"photo"], 0o644, &[7; 20_000]).unwrap();
        disk.wait_until_sealed();
        let attr = disk.engine().resolve(&[b"a", b"b", b"photo"]).unwrap();
        if is_linked {
            let q = pb::Link { ino: attr.ino, ino_dir: dir, dir, name: "photo 2".into() };
            disk.engine().link(SESSION, false, &q).unwrap();
        }
        let found = || disk.engine().where_is(b"a/b/photo").unwrap();
        assert!(!found().damaged);
        let hex = ContentId(found().content.try_into().unwrap()).to_hex();
        let path = disk.engine().folder.path(&format!("data/{}/{hex}", &hex[..2]));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::File::options().write(true).open(path).unwrap().write_all_at(b"rot", 100).unwrap();
        // No other disk has it: it stays, and is known.
        let problems = disk.engine().scrub(&Alone).unwrap().problems;
        assert!(problems.len() == 1 && problems[0].starts_with("content of /a/b/photo"), "{problems:?}");
        disk.engine().store.look_at(ContentId::from_hex(&hex).unwrap()).unwrap();
        assert!(found().damaged);
    }
}
