//! The folder of one disk (ROOT): making it, opening it, and the directory descriptors everything else opens files
//! through. Knows the names in `proto::disk` and whose disk this is; nothing of what catalog and content store put there.
//!
//! The identity is in the folder, not in the machine: it may be unplugged here and opened on another host. So nothing in
//! it is trusted to be what its name says: every name is opened relative to a directory descriptor and never through a
//! symbolic link. `disk.toml` is the last thing that making a folder writes and the first that opening it reads. Opening
//! checks everything before it takes the lock, and touches nothing when it refuses.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use delugefs_proto::disk::{self, DISK_TOML, DiskToml, DiskTomlError};
use delugefs_proto::escape::quoted;
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::ids::{ClusterId, DiskId};
use nix::errno::Errno;
use nix::fcntl::{FlockArg, OFlag};
use nix::sys::stat::{Mode, mkdirat};

use crate::os;

mod create;

/// A subdirectory that holds files of the content store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dir {
    /// Whole contents, in one subdirectory per first byte of their names.
    Data,
    /// Contents being fetched.
    Incoming,
    /// Files being written.
    Staging,
    /// Contents nobody refers to.
    Trash,
}

impl Dir {
    const ALL: [Dir; 4] = [Dir::Data, Dir::Incoming, Dir::Staging, Dir::Trash];

    /// Its name in the folder.
    pub fn name(self) -> &'static str {
        match self {
            Dir::Data => disk::DATA,
            Dir::Incoming => disk::INCOMING,
            Dir::Staging => disk::STAGING,
            Dir::Trash => disk::TRASH,
        }
    }
}

/// An open disk folder. Its lock is held until this is dropped or the process ends, however it ends.
pub struct DiskFolder {
    path: PathBuf,
    root: File,
    dirs: [File; 4],
    identity: DiskToml,
    cluster_id: ClusterId,
    disk_id: DiskId,
    key: Ed25519KeyPair,
    _lock: Lock,
}

/// Held while this exists. Given up and not left to the closing, for a process that is being made just now has a copy of the descriptor.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = os::flock(&self.0, FlockArg::Unlock); // the closing does it, too
    }
}

impl DiskFolder {
    /// Open a disk folder and lock it for this process.
    ///
    /// # Errors
    /// A [`UserError`] with [`Exit::NoDisk`], [`Exit::WrongCluster`], [`Exit::NewerFormat`], [`Exit::InUse`],
    /// [`Exit::NotPermitted`] or [`Exit::BadDisk`] and a hint what to do; nothing was touched then.
    pub fn open(path: &Path, expect_cluster: Option<&str>) -> anyhow::Result<Self> {
        let shown = path.display();
        let root =
            File::options().read(true).custom_flags_dir().open(path).map_err(|e| refusal(path, "", os::errno(&e)))?;
        let identity = read_identity(&root, path)?;
        if let Some(wanted) = expect_cluster.filter(|wanted| *wanted != identity.cluster) {
            let message = format!("the disk {shown} belongs to the cluster {}, not to {wanted}", identity.cluster);
            let hint = format!("to use it: delugefs run {} {}", identity.cluster, typed(path));
            return Err(UserError::new(Exit::WrongCluster, message).hint(hint).into());
        }
        let (Some(cluster_id), Some(disk_id)) = (identity.cluster_id(), identity.disk_id()) else {
            return Err(damaged(path, "an id in disk.toml is not hexadecimal"));
        };
        for needed in [disk::DATA, disk::CATALOG] {
            os::open_dir(&root, needed).map_err(|errno| refusal(path, needed, errno))?;
        }
        let key = read_key(&root, path, disk_id)?;
        let lock = take_lock(&root, path)?;
        // An incomplete copy of a folder (git, rsync -m) may lack directories that were empty.
        let mut dirs = Vec::with_capacity(Dir::ALL.len());
        for dir in Dir::ALL {
            make_dir(&root, dir.name()).map_err(|errno| refusal(path, dir.name(), errno))?;
            dirs.push(os::open_dir(&root, dir.name()).map_err(|errno| refusal(path, dir.name(), errno))?);
        }
        let Ok(dirs) = dirs.try_into() else { unreachable!("one descriptor for each of Dir::ALL") };
        Ok(Self { path: path.to_owned(), root, dirs, identity, cluster_id, disk_id, key, _lock: lock })
    }

    /// What `disk.toml` says.
    pub fn identity(&self) -> &DiskToml {
        &self.identity
    }

    /// The cluster this disk belongs to.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// The public key of this disk.
    pub fn disk_id(&self) -> DiskId {
        self.disk_id
    }

    /// The key of this disk.
    pub fn key(&self) -> &Ed25519KeyPair {
        &self.key
    }

    /// The path the folder was opened by. For messages, and for libraries that take only paths.
    pub fn root(&self) -> &Path {
        &self.path
    }

    /// The path of something directly in the folder, for libraries that take only paths.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The folder itself.
    pub fn root_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A subdirectory of the content store.
    pub fn dir(&self, dir: Dir) -> BorrowedFd<'_> {
        self.dirs[dir as usize].as_fd()
    }

    /// Open (with `O_CREAT`: make, mode 0600) a regular file directly in the folder, such as the journal.
    pub fn open_file(&self, name: &str, flags: OFlag) -> Result<File, Errno> {
        os::open_file(&self.root, name, flags)
    }
}

/// `O_DIRECTORY` for the one open that follows links: the path to the folder is the user's own.
trait DirectoryOnly {
    fn custom_flags_dir(&mut self) -> &mut Self;
}

impl DirectoryOnly for std::fs::OpenOptions {
    fn custom_flags_dir(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, OFlag::O_DIRECTORY.bits())
    }
}

fn read_identity(root: &File, path: &Path) -> anyhow::Result<DiskToml> {
    let shown = path.display();
    let text = match read_small(root, DISK_TOML) {
        Ok(text) => text,
        Err(Errno::ENOENT) => {
            let error = UserError::new(Exit::NoDisk, DiskTomlError::Absent(shown.to_string()).to_string());
            let typed = typed(path);
            let hint = match create::is_unfinished(root) {
                true => "making it was interrupted; run the same command with --create again".to_owned(),
                false => format!(
                    "to make a new disk of an empty folder: `delugefs disk add {typed} --create` where delugefs runs, \
                     or `delugefs run NAME {typed} --create`"
                ),
            };
            return Err(error.hint(hint).into());
        }
        Err(errno) => return Err(refusal(path, DISK_TOML, errno)),
    };
    let text = String::from_utf8(text).map_err(|_| damaged(path, "disk.toml is not text"))?;
    DiskToml::parse(&text, shown.to_string()).map_err(|error| match error {
        DiskTomlError::Newer { .. } => {
            let hint = "install the newest delugefs on this host, then run the same command";
            UserError::new(Exit::NewerFormat, error.to_string()).hint(hint).into()
        }
        other => damaged(path, &other.to_string()),
    })
}

fn read_key(root: &File, path: &Path, disk_id: DiskId) -> anyhow::Result<Ed25519KeyPair> {
    let bytes = read_small(root, disk::NODE_KEY).map_err(|errno| refusal(path, disk::NODE_KEY, errno))?;
    match Ed25519KeyPair::from_pkcs8(&bytes) {
        Ok(key) if key.public_key().as_ref() == disk_id.0 => Ok(key),
        Ok(_) => Err(damaged(path, "node.key is not the key of the disk that disk.toml names")),
        Err(_) => Err(damaged(path, "node.key is not an Ed25519 key")),
    }
}

/// The beginning of a small file directly in the folder.
fn read_small(root: &File, name: &str) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let file = os::open_file(root, name, OFlag::O_RDONLY)?;
    file.take(64 << 10).read_to_end(&mut bytes).map_err(|error| os::errno(&error))?;
    Ok(bytes)
}

/// Take the lock and write this process's id into it, for the message that the next one gets.
fn take_lock(root: &File, path: &Path) -> anyhow::Result<Lock> {
    let refused = |errno| refusal(path, disk::LOCK, errno);
    let lock = os::open_file(root, disk::LOCK, OFlag::O_RDWR | OFlag::O_CREAT).map_err(refused)?;
    match os::flock(&lock, FlockArg::LockExclusiveNonblock) {
        Ok(()) => {}
        Err(Errno::EWOULDBLOCK) => {
            let mut digits = [0; 16];
            let length = lock.read_at(&mut digits, 0).unwrap_or(0);
            let pid = String::from_utf8_lossy(&digits[..length]);
            let pid = pid.trim().parse::<u32>().map_or("another process".to_owned(), |pid| format!("process {pid}"));
            let message = format!("the disk {} is in use by {pid}", path.display());
            let hint = "see it with: delugefs disks; stop that process first to start the disk here";
            return Err(UserError::new(Exit::InUse, message).hint(hint).into());
        }
        Err(errno) => return Err(refused(errno)),
    }
    let pid = format!("{:<15}\n", std::process::id());
    let lock = Lock(lock);
    lock.0.write_all_at(pid.as_bytes(), 0).map_err(|error| refused(os::errno(&error)))?;
    Ok(lock)
}

fn make_dir(at: impl AsFd, name: &str) -> Result<(), Errno> {
    match mkdirat(at, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The folder as a part of a command.
fn typed(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// Why `name` in the folder (or, when empty, the folder itself) cannot be used.
fn refusal(path: &Path, name: &str, errno: Errno) -> anyhow::Error {
    let shown = path.join(name);
    let shown = shown.display();
    let (root, typed) = (path.display(), typed(path));
    let (exit, message, hint) = match errno {
        Errno::ENOTDIR if name.is_empty() && path.exists() => (
            Exit::NoDisk,
            format!("{root} is a file, not a folder"),
            "name the folder of a disk; to make a new disk, add --create and name an empty folder".to_owned(),
        ),
        Errno::ENOENT | Errno::ENOTDIR if name.is_empty() => (
            Exit::NoDisk,
            format!("there is no folder {root}"),
            format!(
                "mount the disk first if it is not mounted; to make a new disk: `delugefs disk add {typed} --create` where \
                 delugefs runs, or `delugefs run NAME {typed} --create`"
            ),
        ),
        Errno::ENOENT => (
            Exit::BadDisk,
            format!("{shown} is missing"),
            "was the folder copied incompletely? Copy it again, or start a new disk in another folder".to_owned(),
        ),
        Errno::ELOOP | Errno::ENOTDIR => (
            Exit::BadDisk,
            format!("{shown} is not what it should be (a symbolic link?)"),
            format!("look at it with: ls -l {typed}; nothing of this disk was touched"),
        ),
        Errno::EACCES | Errno::EPERM => (
            Exit::NotPermitted,
            format!("no permission for {shown}"),
            format!("run as the owner of the folder, or make it yours: chown -R $(id -un) {typed}"),
        ),
        Errno::EROFS => (
            Exit::BadDisk,
            format!("{shown} is on a file system that is mounted read-only"),
            "mount it read-write; if the system made it read-only itself, check the disk (dmesg, fsck)".to_owned(),
        ),
        Errno::ENOSPC | Errno::EDQUOT => (
            Exit::BadDisk,
            format!("no space left for {shown}"),
            format!("free some space on the file system of {root}"),
        ),
        errno => (
            Exit::BadDisk,
            format!("cannot use {shown}: {}", errno.desc()),
            "the disk may be failing: look at dmesg, and copy what you can".to_owned(),
        ),
    };
    UserError::new(exit, message).hint(hint).into()
}

fn damaged(path: &Path, what: &str) -> anyhow::Error {
    let hint = format!("its files are still in {}/data; start a new disk in another folder", path.display());
    UserError::new(Exit::BadDisk, format!("the disk {} is damaged: {what}", path.display())).hint(hint).into()
}

#[cfg(test)]
mod tests;
