//! Which file systems are trusted with more than reading and writing: with holes, clones, and syncing all of it. ZFS before 2.2.2 is
//! not: it tells a hole where something has just been written (github.com/openzfs/zfs/issues/15526), and what is copied by that
//! is zeros; 2.2.0 damages what it clones.

use std::os::fd::AsFd;

use nix::sys::statfs::{Statfs, fstatfs};

/// Whether it lies on a file system of which holes, clones and syncs are known to work.
pub fn is_plain(file: impl AsFd) -> bool {
    fstatfs(file).is_ok_and(|stat| is_known(&stat))
}

/// ext2 to ext4, XFS, btrfs, f2fs, tmpfs. On what is served by a program (FUSE, 9p) the whole of it cannot even be synced: the
/// kernel answers syncfs(2) without asking it.
#[cfg(target_os = "linux")]
fn is_known(stat: &Statfs) -> bool {
    use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC};
    let known = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC];
    known.contains(&stat.filesystem_type())
}

/// UFS and tmpfs.
#[cfg(target_os = "freebsd")]
fn is_known(stat: &Statfs) -> bool {
    ["ufs", "tmpfs"].contains(&stat.filesystem_type_name())
}
