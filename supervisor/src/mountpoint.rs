//! Where the filesystem can be mounted, as far as that can be told before anything is made or started. The frontend has the
//! last word.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use delugefs_proto::exit::Exit;

use crate::failure::Failure;

/// Whether a mountpoint is clear of the disks' folders and of the mounts of DelugeFS. Both paths are resolved; nothing is looked at.
///
/// # Errors
/// What it would cover, or be in.
pub fn check_place<'a>(
    dir: &Path,
    disks: impl IntoIterator<Item = &'a Path>,
    mounts: impl IntoIterator<Item = &'a Path>,
) -> Result<(), Failure> {
    let bad = |what: String| Failure::new(Exit::BadMountpoint, format!("{} {what}", dir.display()));
    for root in disks {
        let text = match (dir.starts_with(root), root.starts_with(dir)) {
            (true, _) => "lies in the disk's own folder",
            (_, true) => "would cover the disk's folder",
            _ => continue,
        };
        return Err(bad(format!("{text} {}", root.display())).hint("mount on a folder outside of it"));
    }
    // The folder would be made there, and be on all hosts; the inner mount would keep the outer one busy, and hang with it.
    let inside = |mount: &&Path| *mount != dir && dir.starts_with(mount);
    if let Some(mount) = mounts.into_iter().find(inside) {
        let failure = bad(format!("is inside the mount of DelugeFS at {}", mount.display()));
        return Err(failure.hint(format!("choose a folder outside of {}", mount.display())));
    }
    Ok(())
}

/// As [`check_place`], and whether the folder is there, or can be made, and has nothing in it. What is mounted there is not touched.
///
/// # Errors
/// Why it is no mountpoint.
pub fn check(dir: &Path, root: &Path, mounts: &[PathBuf]) -> Result<(), Failure> {
    check_place(dir, [root], mounts.iter().map(PathBuf::as_path))?;
    if mounts.iter().any(|mount| mount == dir) {
        return Ok(()); // whether that one lives is found out later
    }
    let bad = |text: String, hint: &str| Err(Failure::new(Exit::BadMountpoint, text).hint(hint));
    let shown = dir.display();
    match std::fs::read_dir(dir).map(|mut inside| inside.next().is_some()) {
        Ok(true) => bad(format!("{shown} is not empty: what is in it would be hidden"), "choose an empty folder"),
        Err(error) if error.kind() == ErrorKind::NotFound && !dir.parent().is_some_and(Path::is_dir) => {
            bad(format!("the folder that {shown} should be made in does not exist"), "make that folder first")
        }
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            bad(format!("{shown} is no folder"), "choose an empty folder")
        }
        _ => Ok(()),
    }
}

/// Whether there is what every mount needs, before anything is made for one.
///
/// # Errors
/// With how to load the driver.
pub fn check_driver() -> Result<(), Failure> {
    match std::fs::symlink_metadata("/dev/fuse") {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let failure = Failure::new(Exit::NotPermitted, "nothing can be mounted here: there is no /dev/fuse");
            Err(failure.hint("load the driver: `modprobe fuse`, or `kldload fusefs`; or leave out --mount"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_covers_no_disk_and_is_inside_no_mount() {
        let place = |dir: &str| {
            let (disks, mounts) = ([Path::new("/d/a")], [Path::new("/m"), Path::new("/n/o")]);
            check_place(Path::new(dir), disks, mounts).map_err(|failure| {
                assert_eq!((failure.exit, failure.hint.is_some()), (Exit::BadMountpoint, true));
                failure.message
            })
        };
        for good in ["/x", "/m", "/mm", "/n", "/d/ab"] {
            assert_eq!(place(good), Ok(()), "{good}");
        }
        assert_eq!(place("/d/a/x").unwrap_err(), "/d/a/x lies in the disk's own folder /d/a");
        assert_eq!(place("/d").unwrap_err(), "/d would cover the disk's folder /d/a");
        assert_eq!(place("/m/x/y").unwrap_err(), "/m/x/y is inside the mount of DelugeFS at /m");
    }

    #[test]
    fn what_is_there_is_looked_at_unless_it_is_mounted() {
        let temp = tempfile::tempdir().unwrap();
        let dir = |name: &str| temp.path().join(name);
        std::fs::create_dir_all(dir("full/empty")).unwrap();
        std::fs::write(dir("file"), "").unwrap();
        let said =
            |name: &str, mounts: &[PathBuf]| check(&dir(name), Path::new("/disk"), mounts).map_err(|it| it.message);
        for good in ["full/empty", "new"] {
            assert_eq!(said(good, &[]), Ok(()), "{good}");
        }
        assert!(said("full", &[]).unwrap_err().contains("not empty"));
        assert!(said("file", &[]).unwrap_err().contains("is no folder"));
        assert!(said("no/where", &[]).unwrap_err().contains("does not exist"));
        assert_eq!(said("full", &[dir("full")]), Ok(()));
    }
}
