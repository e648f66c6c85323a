//! Owners, modes, times and extended attributes.

use delugefs_proto::local_pb::Changed;

use super::*;

#[test]
fn attributes() {
    same(|dir, told| {
        let p = |name: &str| dir.join(name);
        fs::write(p("f"), "content").unwrap();
        fs::create_dir(p("d")).unwrap();
        for (name, mode) in [("f", 0o4755), ("f", 0o600), ("d", 0o2775), ("d", 0o1700)] {
            told.push(said(fs::set_permissions(p(name), PermissionsExt::from_mode(mode))));
            told.push(describe(&p(name)));
        }
        told.push(said(std::os::unix::fs::chown(p("f"), Some(11), Some(22))));
        told.push(describe(&p("f")));
        fs::set_permissions(p("f"), PermissionsExt::from_mode(0o6755)).unwrap();
        told.push(said(std::os::unix::fs::chown(p("f"), Some(12), None)));
        told.push(describe(&p("f")));
        // A directory's group is inherited where it says so.
        std::os::unix::fs::chown(p("d"), None, Some(33)).unwrap();
        fs::set_permissions(p("d"), PermissionsExt::from_mode(0o2777)).unwrap();
        fs::write(p("d/f"), "").unwrap();
        fs::create_dir(p("d/d")).unwrap();
        symlink("x", p("d/s")).unwrap();
        let time = |seconds, ns| TimeSpec::new(seconds, ns);
        for (mtime, atime) in [
            (time(1_234_567_890, 123_456_789), time(5, 6)),
            (time(-2, 800_000_000), time(-1, 0)),
            (time(3_000_000_000, 1), time(0, 0)),
        ] {
            let result = utimensat(AT_FDCWD, &p("f"), &atime, &mtime, nix::sys::stat::UtimensatFlags::FollowSymlink);
            told.push(errno(result));
            let meta = fs::metadata(p("f")).unwrap();
            let (m, a) = ((meta.mtime(), meta.mtime_nsec()), (meta.atime(), meta.atime_nsec()));
            told.push(format!("{m:?} {a:?}"));
        }
        // Also while it is open for writing, and after it was closed.
        let file = OpenOptions::new().write(true).open(p("f")).unwrap();
        file.write_all_at(b"C", 0).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_000_000_007)).unwrap();
        let times = || fs::metadata(p("f")).map(|meta| (meta.mtime(), meta.mtime_nsec()));
        told.push(said(times()));
        drop(file);
        told.push(said(times()));
        told.push(said(fs::read(p("f"))));
        let meta = fs::metadata(dir).unwrap();
        let links = meta.nlink();
        told.push(format!("{links}"));
    });
}

#[test]
fn times_move_as_they_should() {
    let mounted = Mounted::start();
    let p = |name: &str| mounted.path(name);
    let times = |name: &str| {
        let meta = fs::symlink_metadata(p(name)).unwrap();
        let ns = |seconds: i64, ns: i64| seconds * 1_000_000_000 + ns;
        (ns(meta.mtime(), meta.mtime_nsec()), ns(meta.ctime(), meta.ctime_nsec()))
    };
    let later = || std::thread::sleep(std::time::Duration::from_millis(12));
    fs::create_dir(p("d")).unwrap();
    fs::write(p("d/f"), "x").unwrap();
    let (dir, file) = (times("d"), times("d/f"));
    later();
    fs::hard_link(p("d/f"), p("d/g")).unwrap();
    assert!(times("d").0 > dir.0 && times("d/f").1 > file.1 && times("d/f").0 == file.0);
    let (dir, file) = (times("d"), times("d/f"));
    later();
    // Opening changes nothing, reading neither.
    drop(OpenOptions::new().write(true).open(p("d/f")).unwrap());
    fs::read(p("d/f")).unwrap();
    assert_eq!((times("d"), times("d/f")), (dir, file));
    fs::set_permissions(p("d/f"), PermissionsExt::from_mode(0o600)).unwrap();
    assert!(times("d/f").0 == file.0 && times("d/f").1 > file.1);
    let file = times("d/f");
    later();
    let open = OpenOptions::new().append(true).open(p("d/f")).unwrap();
    (&open).write_all(b"y").unwrap();
    let written = times("d/f");
    assert!(written.0 > file.0 && written.1 > file.1);
    drop(open);
    later();
    assert_eq!(times("d/f"), written, "closing changes nothing");
    fs::remove_file(p("d/g")).unwrap();
    assert!(times("d").0 > dir.0 && times("d/f").1 > written.1);
}

#[test]
fn extended_attributes() {
    same(|dir, told| {
        fs::write(dir.join("f"), "x").unwrap();
        let path = CString::new(dir.join("f").as_os_str().as_bytes()).unwrap();
        let mut set = |name: &str, value: &[u8], flags| {
            let name = CString::new(name).unwrap();
            // SAFETY: all pointers are to live buffers of the given lengths.
            let result =
                unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
            told.push(errno(Errno::result(result)));
        };
        set("user.a", b"one", libc::XATTR_REPLACE);
        set("user.a", b"one", libc::XATTR_CREATE);
        set("user.a", b"two", libc::XATTR_CREATE);
        set("user.a", b"three", libc::XATTR_REPLACE);
        set("user.empty", b"", 0);
        set("trusted.t", &[7; 3000], 0);
        for name in ["foo.bar", "foo", "user.", "trusted", "systems.x"] {
            set(name, b"in no namespace", 0);
        }
        set(&format!("user.{}", "n".repeat(250)), b"long", 0);
        let get = |name: &str, size: usize| {
            let mut buf = vec![0_u8; size];
            let name = CString::new(name).unwrap();
            // SAFETY: as above.
            let result = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), size) };
            errno(Errno::result(result).map(|n| (n, buf.iter().map(|byte| u64::from(*byte)).sum::<u64>())))
        };
        for (name, size) in
            [("user.a", 0), ("user.a", 2), ("user.a", 64), ("user.none", 64), ("trusted.t", 4096), ("foo.bar", 64)]
        {
            told.push(get(name, size));
        }
        told.push(get("user.empty", 8));
        let list = |size: usize| {
            let mut buf = vec![0_u8; size];
            // SAFETY: as above.
            let result = unsafe { libc::listxattr(path.as_ptr(), buf.as_mut_ptr().cast(), size) };
            let names = Errno::result(result).map(|n| {
                let mut names: Vec<_> =
                    buf[..n as usize].split(|b| *b == 0).map(|n| String::from_utf8_lossy(n).into_owned()).collect();
                names.retain(|name| !name.is_empty() && !name.starts_with("security."));
                names.sort();
                names
            });
            errno(names)
        };
        told.push(list(1));
        told.push(list(4096));
        let remove = |name: &str| {
            let name = CString::new(name).unwrap();
            // SAFETY: as above.
            errno(Errno::result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }))
        };
        for name in ["user.a", "user.a", "user.empty", "trusted.t"] {
            told.push(remove(name));
        }
        told.push(list(4096));
    });
}

#[test]
fn set_user_id_bits_are_cleared_by_writers() {
    let mounted = Mounted::start();
    let path = mounted.path("f");
    let reset = || {
        fs::write(&path, "content").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o6777)).unwrap();
    };
    let as_daemon = |script: &str| {
        use std::os::unix::process::CommandExt;
        let status =
            std::process::Command::new("sh").args(["-ec", script, "sh"]).arg(&path).uid(1).gid(1).status().unwrap();
        assert!(status.success(), "{script}");
        fs::metadata(&path).unwrap().mode() & 0o7777
    };
    reset();
    assert_eq!(as_daemon("echo more >> $1"), 0o777, "appending");
    reset();
    assert_eq!(as_daemon("echo new > $1"), 0o777, "truncating and writing");
    reset();
    assert_eq!(as_daemon(": > $1"), 0o777, "truncating");
    reset();
    assert_eq!(as_daemon("cat $1 > /dev/null"), 0o6777, "reading");
}

/// Emptied by its owner while it is open for writing elsewhere, with a mode that was changed since.
#[test]
fn emptying_an_open_file_clears_bits_of_the_mode_it_has_now() {
    same(|dir, told| {
        use std::os::unix::process::CommandExt;
        fs::set_permissions(dir, PermissionsExt::from_mode(0o777)).unwrap();
        for (made, changed) in [(0o4755, 0o600), (0o6755, 0o4711), (0o644, 0o6755), (0o600, 0o640)] {
            let script = format!(
                "import os,sys\nos.umask(0)\nf=os.open(sys.argv[1],os.O_CREAT|os.O_WRONLY,{made})\n\
                os.chmod(sys.argv[1],{changed})\nos.open(sys.argv[1],os.O_WRONLY|os.O_TRUNC)\n"
            );
            let path = dir.join(format!("{made:o}"));
            let mut python = std::process::Command::new("python3");
            let status = python.arg("-c").arg(script).arg(&path).uid(1).gid(1).status().unwrap();
            assert!(status.success());
            told.push(describe(&path));
        }
    });
}

/// What `delugefs disk drain` and `disk forget` say is kept there, and counts on every host.
#[test]
fn marks_of_disks_are_seen_and_not_touched() {
    let mounted = Mounted::start();
    fs::write(mounted.path("f"), "x").unwrap();
    let mark = format!("user.delugefs.disk.{}", "ab".repeat(32));
    let run = |program: &str, args: &[&str], path: &Path| {
        std::process::Command::new(program).args(args).arg(path).output().unwrap()
    };
    let (root, file) = (mounted.dir.clone(), mounted.path("f"));
    let refused = |args: &[&str], path: &Path| {
        let output = run("setfattr", args, path);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains("Operation not permitted"), "{args:?}: {said}");
    };
    refused(&["-n", &mark, "-v", "forgotten"], &root);
    // Set in the proper way.
    let value = b"draining".to_vec();
    mounted.worker.elsewhere(|tree| {
        tree.node(1).unwrap().xattrs.insert(mark.clone().into_bytes(), value.clone());
        vec![Changed { dir: 0, names: vec![], inos: vec![1] }]
    });
    super::super::wait_until("it is seen", || run("getfattr", &["-d"], &root).stdout.windows(8).any(|it| it == value));
    refused(&["-n", &mark, "-v", "forgotten"], &root);
    refused(&["-x", &mark], &root);
    assert_eq!(mounted.worker.shared.tree.lock().node(1).unwrap().xattrs[mark.as_bytes()], value);
    // Elsewhere it means nothing, and others mean something else.
    for (name, path) in [(&mark[..], &file), ("user.delugefs.copies", &root)] {
        for args in [&["-n", name, "-v", "3"][..], &["-x", name]] {
            let output = run("setfattr", args, path);
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
