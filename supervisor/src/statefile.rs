//! Small files in the state directory, each replaced as a whole and durably.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;

/// Read a file; `None` when there is none.
///
/// # Errors
/// Those of the file system.
pub fn read(dir: &Path, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let path = dir.join(name);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Replace a file in one step. Only its owner can read it.
///
/// # Errors
/// Those of the file system; the file is then the old one.
pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let (path, new) = (dir.join(name), dir.join(format!("{name}.new")));
    let replace = || {
        make(&new, bytes)?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    replace().with_context(|| format!("cannot write {}", path.display()))
}

/// Make a file that is not there in one step; of several who do so at once one does, and all read what that one has written.
///
/// # Errors
/// Those of the file system.
pub fn make_once(dir: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (path, new) = (dir.join(name), dir.join(format!("{name}.new-{}", std::process::id())));
    let linked = || {
        make(&new, bytes)?;
        match fs::hard_link(&new, &path) {
            Err(error) if has_no_links(&error) => make_here(&path, bytes)?,
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::remove_file(&new)?;
        File::open(dir)?.sync_all()
    };
    linked().with_context(|| format!("cannot write {}", path.display()))?;
    read(dir, name)?.with_context(|| format!("{} has gone again", path.display()))
}

/// FAT has none, nor have some file servers.
fn has_no_links(error: &std::io::Error) -> bool {
    [Errno::EPERM, Errno::EOPNOTSUPP, Errno::ENOSYS].iter().any(|none| error.raw_os_error() == Some(*none as i32))
}

/// The same where there are no links: whoever comes in this moment may read a part of it, and who ends in it leaves one.
fn make_here(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        opened => opened?,
    };
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.inspect_err(|_| drop(fs::remove_file(path))) // what is there would be taken for it
}

/// A new file, durable; one that a crash has left goes. Never through a link that somebody has put there.
fn make(new: &Path, bytes: &[u8]) -> std::io::Result<()> {
    match fs::remove_file(new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Remove a file durably, if it is there.
///
/// # Errors
/// Those of the file system.
pub fn remove(dir: &Path, name: &str) -> anyhow::Result<()> {
    let path = dir.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed
            .and_then(|()| File::open(dir)?.sync_all())
            .with_context(|| format!("cannot remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_who_make_a_file_at_once_all_have_the_same() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(make_once(dir.path(), "key", b"first").unwrap(), b"first");
        assert_eq!(make_once(dir.path(), "key", b"second").unwrap(), b"first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn where_there_are_no_links_the_first_file_stays_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        make_here(&path, b"first").unwrap();
        make_here(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        let refused = |code| has_no_links(&std::io::Error::from_raw_os_error(code));
        assert!(refused(nix::libc::EPERM) && refused(nix::libc::EOPNOTSUPP) && !refused(nix::libc::EEXIST));
    }

    #[test]
    fn a_link_in_the_place_of_the_new_file_is_not_written_through() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = other.path().join("theirs");
        fs::write(&target, "theirs").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("key.new")).unwrap();
        write(dir.path(), "key", b"ours").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        assert_eq!(read(dir.path(), "key").unwrap().unwrap(), b"ours");
    }
}
