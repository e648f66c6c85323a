//! Two mounts of one host: what one program writes through the first is what another sees through the second.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use super::host::{Host, is_fuse};
use super::wait_for;

#[test]
fn two_mounts_of_a_host_write_the_same_files() {
    let Some(mut host) = Host::new() else { return };
    host.start();
    let (one, other) = (host.mount(), host.path("second"));
    fs::create_dir(&other).unwrap();
    let (code, said) = host.says(&["mount", other.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    wait_for("the second mount", || host.logs(), || is_fuse(&other));

    // Both have it open; then each opens it anew for every line.
    let append = |path: &std::path::Path| OpenOptions::new().append(true).create(true).open(path).unwrap();
    let mut expected = String::new();
    {
        let (mut first, mut second) = (append(&one.join("log")), append(&other.join("log")));
        for n in 0..20 {
            first.write_all(format!("a{n}\n").as_bytes()).unwrap();
            second.write_all(format!("b{n}\n").as_bytes()).unwrap();
            expected += &format!("a{n}\nb{n}\n");
        }
    }
    for n in 0..100 {
        let mount = if n % 2 == 0 { &one } else { &other };
        append(&mount.join("log")).write_all(format!("c{n}\n").as_bytes()).unwrap();
        expected += &format!("c{n}\n");
    }
    for mount in [&one, &other] {
        let read = || fs::read_to_string(mount.join("log")).unwrap();
        wait_for("all lines", || format!("{}\n{}", read(), host.logs()), || read() == expected);
    }

    // Each writes a page of its own, and has the other one's in its page cache.
    let page = |byte: u8| vec![byte; 4096];
    let (a, b) = (one.join("pages"), other.join("pages"));
    fs::write(&a, page(b'0').repeat(3)).unwrap();
    let seen = |path: &std::path::Path| fs::read(path).map(|bytes| (bytes.len(), bytes[0], bytes[4096], bytes[8192]));
    let is = |path, what| seen(path).is_ok_and(|seen| seen == what);
    wait_for("the file", || host.logs(), || is(&b, (12_288, b'0', b'0', b'0')));
    {
        let open = |path| OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (first, second): (File, File) = (open(&a), open(&b));
        first.write_all_at(&page(b'A'), 0).unwrap();
        second.write_all_at(&page(b'B'), 8192).unwrap();
        drop(first);
        drop(second);
    }
    for path in [&a, &b] {
        let why = || format!("{:?}\n{}", seen(path), host.logs());
        wait_for("both pages", why, || is(path, (12_288, b'A', b'0', b'B')));
    }
    assert_eq!(host.stop().0, 0, "{}", host.logs());
    host.assert_gone();
}
