//! Linux: FICLONE, syncfs(2), fallocate(2).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::statfs::Statfs;

/// What getxattr says when there is no such attribute.
pub const ENOATTR: Errno = Errno::ENODATA;

mod ioctl {
    nix::ioctl_write_int!(ficlone, 0x94, 9);
}

/// ext2 to ext4, XFS, btrfs, f2fs, tmpfs. On what is served by a program (FUSE, 9p) the whole of it cannot even be synced: the
/// kernel answers syncfs(2) without asking it.
pub fn is_plain(stat: &Statfs) -> bool {
    use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC};
    let known = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC];
    known.contains(&stat.filesystem_type())
}

/// Make `to` share all blocks of `from` (btrfs, XFS); `false` where the file system cannot, or is not known for it.
#[allow(unsafe_code)]
pub fn reflink(from: &File, to: &File) -> Result<bool, Errno> {
    if !super::is_plain(from) {
        return Ok(false);
    }
    // SAFETY: FICLONE takes a descriptor by value and touches no memory of this process; both descriptors are open.
    match unsafe { ioctl::ficlone(to.as_raw_fd(), from.as_raw_fd() as _) } {
        Ok(_) => Ok(true),
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL | Errno::EXDEV | Errno::ENOSYS | Errno::EPERM) => {
            Ok(false)
        }
        Err(errno) => Err(errno),
    }
}

/// Write everything of the file system that holds this file to stable storage; `false` where there is no such call, or none
/// that is known to do it. Reports write-back errors since Linux 5.8.
pub fn sync_filesystem(of: impl AsFd) -> Result<bool, Errno> {
    if !super::is_plain(&of) {
        return Ok(false);
    }
    nix::unistd::syncfs(of).map(|()| true)
}

/// Give the file `bytes` of length, with blocks behind them where the file system can.
pub fn preallocate(file: &File, bytes: u64) -> Result<(), Errno> {
    let length = i64::try_from(bytes).map_err(|_| Errno::EFBIG)?;
    match nix::fcntl::fallocate(file, nix::fcntl::FallocateFlags::empty(), 0, length) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
            nix::unistd::ftruncate(file, length.max(nix::sys::stat::fstat(file)?.st_size))
        }
        other => other,
    }
}

/// The user who has the other end of a unix socket.
pub fn peer_uid(socket: &std::os::unix::net::UnixStream) -> Result<u32, Errno> {
    nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials).map(|cred| cred.uid())
}
