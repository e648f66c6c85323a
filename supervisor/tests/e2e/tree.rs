//! Everything a mount shows below a folder, to compare it with what was written or with what it was before.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// What is under one name.
#[derive(Clone, PartialEq, Eq)]
pub enum Seen {
    Dir,
    File { ino: u64, nlink: u64, mode: u32, mtime: SystemTime, bytes: Arc<Vec<u8>> },
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Seen::Dir => f.write_str("a directory"),
            Seen::File { ino, nlink, mode, mtime, bytes } => {
                write!(f, "file {ino:x} nlink {nlink} mode {mode:o} {} bytes {mtime:?}", bytes.len())
            }
        }
    }
}

/// Names relative to the folder, with `/` between their parts.
pub type Tree = BTreeMap<String, Seen>;

/// Read all of it. A size that is not that of the bytes is an error too.
pub fn read(base: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    read_into(base, "", &mut tree)?;
    Ok(tree)
}

fn read_into(dir: &Path, prefix: &str, tree: &mut Tree) -> io::Result<()> {
    let names: Result<Vec<_>, _> = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name())).collect();
    for name in names? {
        let path = dir.join(&name);
        let name = format!("{prefix}{}", name.to_string_lossy());
        let meta = fs::symlink_metadata(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{name} is listed, but: {error}")))?;
        if meta.is_dir() {
            tree.insert(name.clone(), Seen::Dir);
            read_into(&path, &format!("{name}/"), tree)?;
            continue;
        }
        let bytes =
            fs::read(&path).map_err(|error| io::Error::new(error.kind(), format!("{name} cannot be read: {error}")))?;
        if bytes.len() as u64 != meta.len() {
            return Err(io::Error::other(format!("{name} has size {} and {} bytes", meta.len(), bytes.len())));
        }
        let (ino, nlink, mode) = (meta.ino(), meta.nlink(), meta.permissions().mode() & 0o7777);
        tree.insert(name, Seen::File { ino, nlink, mode, mtime: meta.modified()?, bytes: Arc::new(bytes) });
    }
    Ok(())
}

/// The first few differences, one a line; empty when there are none.
pub fn differences(before: &Tree, after: &Tree) -> String {
    let mut out = Vec::new();
    for (name, was) in before {
        match after.get(name) {
            None => out.push(format!("{name} is gone; it was {was:?}")),
            Some(is) if is != was => out.push(format!("{name} was {was:?} and is {is:?}")),
            Some(_) => {}
        }
    }
    out.extend(
        after.iter().filter(|(name, _)| !before.contains_key(*name)).map(|(name, is)| format!("{name}: {is:?}")),
    );
    out.truncate(10);
    out.join("\n")
}
