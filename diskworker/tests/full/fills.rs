//! Disks filled by their users.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use delugefs_proto::errno::FsResult;
use nix::errno::Errno;

use crate::small::{Kind, noise, on_small_disk};
use crate::user::User;
use crate::worker::{Host, Worker, wait_until};
use delugefs_proto::local::client::Client;
use delugefs_proto::local_pb::{Rmdir, Unlink, request};

const BALLAST: &str = "journal/ballast";
const BALLAST_BYTES: u64 = 8 << 20;

fn is_full<T>(result: &FsResult<T>) -> bool {
    matches!(result, Err(error) if error.errno == Errno::ENOSPC)
}

/// All files are what was acknowledged.
fn check(client: &mut Client, files: &BTreeMap<String, Vec<u8>>) {
    let shown = client.list(1).unwrap();
    let names: Vec<String> = shown.iter().map(|(name, _)| String::from_utf8(name.to_vec()).unwrap()).collect();
    assert_eq!(names, files.keys().cloned().collect::<Vec<_>>());
    for ((name, bytes), (_, attr)) in files.iter().zip(shown) {
        assert_eq!(attr.size, bytes.len() as u64, "size of {name}");
        assert!(client.read(&attr).unwrap() == *bytes, "content of {name}");
    }
}

/// Write files until nothing more is taken: through the descriptors into the last byte of the file system.
fn fill(client: &mut Client, files: &mut BTreeMap<String, Vec<u8>>, size: usize) {
    for n in 0.. {
        let name = format!("big{n:03}");
        let writer = match client.create(1, &name) {
            Ok(writer) => writer,
            Err(error) => {
                assert_eq!(error.errno, Errno::ENOSPC, "{error}");
                break;
            }
        };
        let bytes = noise(size, n);
        let mut written = 0;
        for part in bytes.chunks(65_536) {
            match writer.file.write_at(part, written as u64) {
                Ok(n) => written += n,
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC));
                    break;
                }
            }
        }
        // As far as write(2) said so.
        files.insert(name, bytes[..written].to_vec());
        client.close(writer).unwrap();
    }
}

fn fills_up_and_recovers(kind: Kind) {
    on_small_disk(kind, 48, |small| {
        let host = Host::on(small.root());
        let worker: Worker = host.create(&["--reserve-bytes", "1000000"]);
        let _session = worker.try_client(1, true).unwrap();
        let mut client = worker.client(1);
        let mut files = BTreeMap::new();
        for (n, size) in [0usize, 10, 4096, 4097, 300_000, 5_000_000].into_iter().enumerate() {
            let (name, bytes) = (format!("a{n}"), noise(size, 77 + n as u64));
            client.put(1, &name, &bytes).unwrap();
            files.insert(name, bytes);
        }
        wait_until("the ballast is there", || small.size_of(BALLAST) == BALLAST_BYTES);
        fill(&mut client, &mut files, 6_000_000);
        assert!(is_full(&client.create(1, "one more")));
        let old = client.lookup(1, "a5").unwrap();
        assert!(is_full(&client.open_write(&old)), "a copy to write to does not fit");
        check(&mut client, &files);

        // Names take little; at last there is no room for a commit either, and then it says so.
        let mut made = 0;
        while !worker.status().read_only {
            assert!(made < 100_000, "it takes everything: {:?}", worker.status());
            match client.mkdir(1, &format!("d{made}")) {
                Ok(_) => made += 1,
                Err(error) => assert_eq!(error.errno, Errno::ENOSPC),
            }
        }
        let status = worker.status();
        assert!(status.reason.contains("No space left") || status.reason.contains("full"), "{}", status.reason);
        assert!(status.space.unwrap().full, "others learn that it may let contents go");
        assert!(is_full(&client.mkdir(1, "x")) && is_full(&client.create(1, "x")));
        assert!(client.lookup(1, "a5").is_ok());

        // Removing is possible, and all it needs.
        for n in 0..made {
            let q = Rmdir { dir: 1, name: format!("d{n}").into(), expect_ino: 0 };
            client.ask(request::Op::Rmdir(q)).unwrap();
        }
        check(&mut client, &files);
        for name in ["big000", "big001"] {
            client.unlink(1, name).unwrap();
            files.remove(name);
        }
        let late = noise(7_000_000, 5);
        wait_until("there is room again", || match client.put(1, "late", &late) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.errno, Errno::ENOSPC, "{error}");
                drop(client.unlink(1, "late"));
                false
            }
        });
        files.insert("late".into(), late);
        client.unlink(1, "big002").unwrap();
        files.remove("big002");
        wait_until("the ballast is restored", || small.size_of(BALLAST) == BALLAST_BYTES);
        wait_until("all is sealed", || worker.status().staged_files == 0);
        assert!(!worker.status().read_only);
        check(&mut client, &files);
        assert_eq!(worker.problems(), Vec::<String>::new());
        worker.crash();
        let worker = host.start(&["--reserve-bytes", "1000000"]);
        check(&mut worker.client(1), &files);
        worker.assert_sound();
    });
}

#[test]
fn a_tmpfs_fills_up_and_recovers() {
    fills_up_and_recovers(Kind::Tmpfs);
}

#[test]
fn an_ext4_fills_up_and_recovers() {
    fills_up_and_recovers(Kind::Ext4);
}

/// Nothing but names, until the catalog and the journal have taken everything.
#[test]
fn empty_files_until_it_is_full() {
    on_small_disk(Kind::Tmpfs, 32, |small| {
        let host = Host::on(small.root());
        let worker: Worker = host.create(&[]);
        let _session = worker.try_client(1, true).unwrap();
        let mut client = worker.client(1);
        let mut made = 0;
        for dir in 0..1000 {
            let Ok(ino) = client.mkdir(1, &format!("{dir:04}")) else { break };
            // The first file of each for certain, the others as long as it goes.
            let Ok(()) = (0..100).try_for_each(|n| {
                client.put(ino, &format!("{n:0>200}"), b"").map(drop).inspect(|()| made += 1).map_err(|error| {
                    assert_eq!(error.errno, Errno::ENOSPC, "{error}");
                })
            }) else {
                break;
            };
        }
        assert!(made > 1000, "{made}");
        let shown = |client: &mut Client| {
            let dirs = client.list(1).unwrap();
            dirs.iter().map(|(_, attr)| client.list(attr.ino).unwrap().len()).sum::<usize>()
        };
        assert_eq!(shown(&mut client), made);
        eprintln!("{made} files, {} bytes free", small.free());
        // One directory after the other goes, until it is writable.
        let mut removed = 0;
        for (name, attr) in client.list(1).unwrap() {
            for (name, _) in client.list(attr.ino).unwrap() {
                client.unlink(attr.ino, std::str::from_utf8(&name).unwrap()).unwrap();
                removed += 1;
            }
            let q = Rmdir { dir: 1, name, expect_ino: 0 };
            client.ask(request::Op::Rmdir(q)).unwrap();
            if removed > made / 2 {
                break;
            }
        }
        wait_until("it is writable again", || client.mkdir(1, "again").is_ok());
        assert_eq!(shown(&mut client), made - removed);
        wait_until("the ballast is restored", || small.size_of(BALLAST) == BALLAST_BYTES);
        worker.assert_sound();
    });
}

/// Directories and empty files for as long as it takes them, and then they go again: the catalog is all there is.
fn names_fill_it_and_go(kind: Kind, mib: u64) {
    on_small_disk(kind, mib, |small| {
        let host = Host::on(small.root());
        let worker: Worker = host.create(&[]);
        let _session = worker.try_client(1, true).unwrap();
        let mut client = worker.client(1);
        let mut made: Vec<String> = Vec::new();
        let mut refused = 0;
        // Some fit again when what earlier states needed is gone.
        while refused < 3000 {
            // Names that do not compress.
            let name: String = noise(90, made.len() as u64).iter().map(|b| format!("{b:02x}")).collect();
            let result = match made.len() % 2 {
                0 => client.mkdir(1, &name).map(drop),
                _ => client.put(1, &name, b"").map(drop),
            };
            match result {
                Ok(()) => made.push(name),
                Err(error) => {
                    assert_eq!(error.errno, Errno::ENOSPC, "{error}");
                    refused += 1;
                }
            }
        }
        assert!(made.len() > 10_000, "{}", made.len());
        assert_eq!(client.list(1).unwrap().len(), made.len());
        for (n, name) in made.iter().enumerate() {
            let name = name.clone().into();
            client
                .ask(match n % 2 {
                    0 => request::Op::Rmdir(Rmdir { dir: 1, name, expect_ino: 0 }),
                    _ => request::Op::Unlink(Unlink { dir: 1, name, expect_ino: 0 }),
                })
                .unwrap_or_else(|error| panic!("removal {n}: {error}, {} bytes free", small.free()));
        }
        wait_until("it is writable again", || client.mkdir(1, "again").is_ok());
        wait_until("the ballast is restored", || small.size_of(BALLAST) == BALLAST_BYTES);
        worker.assert_sound();
    });
}

#[test]
fn names_fill_a_tmpfs_and_go() {
    names_fill_it_and_go(Kind::Tmpfs, 32);
}

#[test]
fn names_fill_an_ext4_and_go() {
    names_fill_it_and_go(Kind::Ext4Journal, 48);
}
