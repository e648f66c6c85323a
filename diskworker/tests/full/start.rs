//! Disks that are full when the worker starts.

use crate::small::{Kind, noise, on_small_disk};
use crate::user::User;
use crate::worker::{Host, wait_until};

/// Killed with everything under way; then somebody takes all the room there is.
fn starts_on_a_full_disk(kind: Kind, ballast: bool) {
    on_small_disk(kind, 40, |small| {
        let host = Host::on(small.root());
        let worker = host.create(&[]);
        let mut client = worker.client(1);
        for n in 0..5 {
            client.put(1, &format!("old{n}"), &noise(100_000, n)).unwrap();
        }
        wait_until("it is committed", || worker.status().uncommitted_changes == 0);
        for n in 0..5 {
            client.put(1, &format!("new{n}"), &noise(50_000 + n, n as u64)).unwrap();
            client.mkdir(1, &format!("dir{n}")).unwrap();
        }
        let open = client.create(1, "open").unwrap();
        std::os::unix::fs::FileExt::write_all_at(&open.file, &[5; 30_000], 0).unwrap();
        client.unlink(1, "old0").unwrap();
        let attr = open.attr;
        // What is staged has other block counts than what is sealed.
        wait_until("the others are sealed", || worker.status().staged_files == 1);
        let mut tree = client.tree();
        worker.crash();
        drop(open.file);
        if !ballast {
            std::fs::remove_file(small.root().join("journal/ballast")).unwrap();
        }
        small.fill(0);
        let worker = host.start(&["--reserve-bytes", "0"]);
        let mut client = worker.client(1);
        let mut now = client.tree();
        // Its times are those of the last write, as sealed or not.
        let name = "/b\"open\"";
        let (before, after) = (tree.remove(name).unwrap(), now.remove(name).unwrap());
        assert_eq!((before.1, before.0.ino), (after.1, attr.ino));
        for (path, was) in &tree {
            assert_eq!(now.get(path), Some(was), "{path}");
        }
        assert_eq!(now.len(), tree.len());
        client.unlink(1, "old1").unwrap();
        tree.remove("/b\"old1\"");
        small.release();
        wait_until("it is writable", || client.mkdir(1, "writable").is_ok());
        wait_until("all is sealed", || worker.status().staged_files == 0);
        wait_until("the ballast is there", || small.size_of("journal/ballast") == 8 << 20);
        assert_eq!(client.read(&attr).unwrap(), [5; 30_000]);
        worker.assert_sound();
    });
}

#[test]
fn starts_on_a_full_tmpfs() {
    starts_on_a_full_disk(Kind::Tmpfs, true);
}

#[test]
fn starts_on_a_full_ext4() {
    starts_on_a_full_disk(Kind::Ext4, true);
}

#[test]
fn starts_on_a_full_disk_that_gave_its_ballast_up() {
    starts_on_a_full_disk(Kind::Tmpfs, false);
}

#[test]
fn starts_on_a_full_ext4_that_gave_its_ballast_up() {
    starts_on_a_full_disk(Kind::Ext4, false);
}
