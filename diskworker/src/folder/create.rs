//! Making a disk folder, in an order that makes every interruption recognisable.
//!
//! First `lock` and `README`, then `disk.toml.new` with the identity, then everything else, then all of it is synced, and
//! last comes the rename to `disk.toml`. A folder with nothing but the first two, or with a `disk.toml.new` and no
//! `disk.toml`, was never a disk and may be made again. A folder that lost its `disk.toml` has neither shape and is
//! refused: it holds files.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use delugefs_proto::disk::{self, DISK_FORMAT, DISK_TOML, DiskToml};
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::ids::{ClusterId, hex, random_u64};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Dir, DirectoryOnly, DiskFolder, make_dir, read_small, refusal, take_lock};
use crate::os;

const README: &str = include_str!("readme.txt");
const UNFINISHED: &str = "disk.toml.new";

/// Whether making this folder began and did not end.
pub(super) fn is_unfinished(root: &File) -> bool {
    let ours = read_small(root, disk::README).is_ok_and(|text| README.as_bytes().starts_with(&text));
    ours && !exists(root, DISK_TOML) && (exists(root, UNFINISHED) || !exists(root, disk::NODE_KEY))
}

impl DiskFolder {
    /// Make a disk folder: in a new directory whose parent exists, or in an empty one. Without `cluster_id` a new cluster
    /// begins. The folder comes back open and locked.
    ///
    /// # Errors
    /// A [`UserError`] with [`Exit::NotEmpty`], [`Exit::NoDisk`] (no such parent), [`Exit::Usage`] (no name for a
    /// cluster), or as [`DiskFolder::open`].
    pub fn create(path: &Path, cluster: &str, cluster_id: Option<ClusterId>) -> anyhow::Result<Self> {
        Self::create_with(path, cluster, cluster_id, |_| Ok(()))
    }

    /// As [`DiskFolder::create`]; `fill` makes what belongs to others (such as the catalog's repository, for which an
    /// empty directory is there) before the folder counts as a disk. It gets the path of the folder.
    pub fn create_with(
        path: &Path,
        cluster: &str,
        cluster_id: Option<ClusterId>,
        fill: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        if !disk::is_cluster_name(cluster) {
            let error = UserError::new(Exit::Usage, format!("{cluster:?} cannot be the name of a cluster"));
            return Err(error
                .hint("use 1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or digit")
                .into());
        }
        check_place(path)?;
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let message = format!("the folder that {} should be made in does not exist", path.display());
                let hint = "mount the disk first if it is not mounted, or make that folder";
                return Err(UserError::new(Exit::NoDisk, message).hint(hint).into());
            }
            made => made.map_err(|error| refusal(path, "", os::errno(&error)))?,
        }
        let root =
            File::options().read(true).custom_flags_dir().open(path).map_err(|e| refusal(path, "", os::errno(&e)))?;
        check_empty(&root, path)?;
        let lock = take_lock(&root, path)?;
        // Again, now that nobody else can be at it.
        check_empty(&root, path)?;
        root.set_permissions(PermissionsExt::from_mode(0o700)).map_err(|error| refusal(path, "", os::errno(&error)))?;
        build(&root, path, cluster, cluster_id, fill)?;
        drop((lock, root));
        Self::open(path, Some(cluster))
    }
}

/// Not inside another disk, whose files are not to be touched, nor inside a mount of ours: what a disk there stores would be stored in
/// files that it stores.
fn check_place(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // What is wrong with it is found out when it is made.
    let Ok(place) = path.canonicalize().or_else(|_| parent.canonicalize()) else { return Ok(()) };
    let outside = |what: String| {
        let error = UserError::new(Exit::NotEmpty, format!("{} would be {what}", path.display()));
        Err(error.hint("name a folder that is outside of it").into())
    };
    for above in place.ancestors() {
        // Itself: that is another error.
        if path.canonicalize().is_ok_and(|path| path == above) {
            continue;
        }
        if above.join(DISK_TOML).is_file() && above.join(disk::CATALOG).is_dir() {
            return outside(format!("inside the disk at {}", above.display()));
        }
    }
    if os::is_in_mount_of_ours(&place) {
        return outside("inside a mount of DelugeFS".into());
    }
    Ok(())
}

fn build(
    root: &File,
    path: &Path,
    cluster: &str,
    cluster_id: Option<ClusterId>,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let failed = |name: &'static str| move |errno| refusal(path, name, errno);
    let key = Ed25519KeyPair::generate().map_err(|_| anyhow::anyhow!("cannot make an Ed25519 key"))?;
    let pkcs8 = key.to_pkcs8v1().map_err(|_| anyhow::anyhow!("cannot encode an Ed25519 key"))?;
    let mut random = [0; 16];
    random[..8].copy_from_slice(&random_u64().to_le_bytes());
    random[8..].copy_from_slice(&random_u64().to_le_bytes());
    let identity = DiskToml {
        format: DISK_FORMAT,
        cluster: cluster.to_owned(),
        cluster_id: cluster_id.unwrap_or(ClusterId(random)).to_hex(),
        disk_id: hex(key.public_key().as_ref()),
    };
    write_file(root, disk::README, README.as_bytes()).map_err(failed(disk::README))?;
    write_file(root, UNFINISHED, toml::to_string(&identity)?.as_bytes()).map_err(failed(UNFINISHED))?;
    write_file(root, disk::NODE_KEY, pkcs8.as_ref()).map_err(failed(disk::NODE_KEY))?;
    for dir in Dir::ALL {
        make_dir(root, dir.name()).map_err(failed(dir.name()))?;
    }
    // An interrupted attempt may have left half a repository. Nothing was ever served from it.
    match std::fs::remove_dir_all(path.join(disk::CATALOG)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed(disk::CATALOG)(os::errno(&error)));
        }
        _ => {}
    }
    make_dir(root, disk::CATALOG).map_err(failed(disk::CATALOG))?;
    fill(path)?;
    root.sync_all().map_err(|error| failed("")(os::errno(&error)))?;
    renameat(root, UNFINISHED, root, DISK_TOML).map_err(failed(DISK_TOML))?;
    root.sync_all().map_err(|error| failed("")(os::errno(&error)))?;
    // The parent may belong to somebody else; then the folder was there before and needs no sync.
    if let Some(parent) = path.canonicalize().ok().as_deref().and_then(Path::parent).and_then(|p| File::open(p).ok()) {
        parent.sync_all().map_err(|error| failed("")(os::errno(&error)))?;
    }
    Ok(())
}

/// Write a file anew and sync it.
fn write_file(root: &File, name: &str, bytes: &[u8]) -> Result<(), Errno> {
    match unlinkat(root, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno),
    }
    let mut file = os::open_file(root, name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| os::errno(&error))
}

fn exists(at: impl AsFd, name: &str) -> bool {
    fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}

/// Refuse a folder that holds anything but what a fresh file system or an interrupted attempt leaves.
fn check_empty(root: &File, path: &Path) -> anyhow::Result<()> {
    let not_empty = |message: String, hint: &str| Err(UserError::new(Exit::NotEmpty, message).hint(hint).into());
    if exists(root, DISK_TOML) {
        return not_empty(
            format!("{} is a DelugeFS disk already", path.display()),
            "leave out --create to use it, or name another folder to make a new disk",
        );
    }
    let unfinished = is_unfinished(root);
    let started = unfinished && exists(root, UNFINISHED);
    let strangers = os::names(root, ".").map_err(|errno| refusal(path, "", errno))?;
    let strangers = strangers.into_iter().filter(|name| match name.as_str() {
        "lost+found" | ".snap" => !is_roots_directory(root, name),
        disk::LOCK => !(unfinished || exists_empty_or_pid(root)),
        disk::README => !unfinished,
        UNFINISHED | disk::NODE_KEY | disk::CATALOG | disk::JOURNAL => !started,
        disk::DATA | disk::STAGING | disk::INCOMING | disk::TRASH => {
            !started || os::names(root, name).is_ok_and(|inside| !inside.is_empty())
        }
        _ => true,
    });
    let mut strangers: Vec<String> = strangers.collect();
    strangers.sort();
    match strangers.first() {
        None => Ok(()),
        Some(first) => not_empty(
            format!("{} is not empty: it has {}", path.display(), first.escape_default()),
            "name an empty or a new folder, for example one inside this one",
        ),
    }
}

/// A lock file that an attempt made before it was interrupted right away: at most the number of a process.
fn exists_empty_or_pid(root: &File) -> bool {
    read_small(root, disk::LOCK)
        .is_ok_and(|text| text.len() <= 16 && text.iter().all(|b| b.is_ascii_digit() || b.is_ascii_whitespace()))
}

/// What mkfs makes in every new file system.
fn is_roots_directory(root: &File, name: &str) -> bool {
    fstatat(root, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| stat.st_uid == 0 && SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}
