//! Small files in the state directory, each replaced as a whole and durably.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

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
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    replace().with_context(|| format!("cannot write {}", path.display()))
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
