//! Linux: FICLONE, syncfs(2), sync_file_range(2), fallocate(2).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use delugefs_proto::plain::is_plain;
use nix::errno::Errno;

/// What getxattr says when there is no such attribute.
pub const ENOATTR: Errno = Errno::ENODATA;

mod ioctl {
    nix::ioctl_write_int!(ficlone, 0x94, 9);
}

/// Which life of the machine this is; `None` where that cannot be told.
pub fn boot_id() -> Option<String> {
    let said = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(said.trim().to_owned()).filter(|id| !id.is_empty())
}

/// How much memory the machine has.
pub fn memory_bytes() -> Option<u64> {
    let said = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = said.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// How many disks the kernel had seen when this one was plugged in (Linux 5.15): two lives of one never have the same. Of a partition,
/// that of its disk; `None` for a file system that has no block device, or may have several.
pub fn disk_count(device: nix::libc::dev_t) -> Option<u64> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let read = |name| std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{name}")).ok();
    read("diskseq").or_else(|| read("../diskseq"))?.trim().parse().ok()
}

/// Whether an absolute path lies in a mount of DelugeFS.
pub fn is_in_mount_of_ours(path: &Path) -> bool {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    is_in(path, &table)
}

/// The mount that a path lies in is that with the longest name of all above it, and the last of these. Names with blanks are written
/// with octal digits there.
fn is_in(path: &Path, table: &[u8]) -> bool {
    let mut nearest = (0, false);
    for line in table.split(|byte| *byte == b'\n') {
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let kind = words.iter().skip_while(|word| **word != b"-").nth(1);
        let (Some(dir), Some(kind)) = (words.get(4), kind) else { continue };
        let name = String::from_utf8_lossy(dir).replace("\\040", " ").replace("\\134", "\\");
        if path.starts_with(&name) && name.len() >= nearest.0 {
            nearest = (name.len(), *kind == b"fuse.delugefs");
        }
    }
    nearest.1
}

/// Make `to` share all blocks of `from` (btrfs, XFS); `false` where the file system cannot, or is not known for it.
#[allow(unsafe_code)]
pub fn reflink(from: &File, to: &File) -> Result<bool, Errno> {
    if !is_plain(from) {
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
    if !is_plain(&of) {
        return Ok(false);
    }
    nix::unistd::syncfs(of).map(|()| true)
}

/// Have what was written to the file go to the disk, and do not wait for that: a hint to the fsync that follows.
#[allow(unsafe_code)]
pub fn begin_sync(file: &File) -> Result<(), Errno> {
    // SAFETY: takes a descriptor, which is open, and numbers.
    let begun = unsafe { nix::libc::sync_file_range(file.as_raw_fd(), 0, 0, nix::libc::SYNC_FILE_RANGE_WRITE) };
    match Errno::result(begun) {
        Err(errno @ (Errno::EIO | Errno::ENOSPC | Errno::EDQUOT)) => Err(errno),
        _ => Ok(()), // not every kernel and file system has it
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// On a kernel that numbers them.
    #[test]
    fn all_partitions_of_a_disk_have_its_number() {
        for entry in std::fs::read_dir("/sys/dev/block").into_iter().flatten().flatten() {
            let Ok(number) = std::fs::read_to_string(entry.path().join("diskseq")) else { continue };
            let device_of = |dir: &Path| {
                let text = std::fs::read_to_string(dir.join("dev")).ok()?;
                let (major, minor) = text.trim().split_once(':')?;
                Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
            };
            let parts = std::fs::read_dir(entry.path()).into_iter().flatten().flatten().map(|part| part.path());
            let parts = parts.filter(|part| part.join("partition").is_file());
            for device in parts.chain([entry.path()]).filter_map(|dir| device_of(&dir)) {
                assert_eq!(disk_count(device).map(|count| count.to_string()).as_deref(), Some(number.trim()));
            }
        }
    }

    #[test]
    fn what_lies_in_a_mount_of_ours() {
        let table = b"22 1 0:20 / / rw - ext4 sda rw\n\
            90 22 0:55 / /mnt/a\\040b rw,relatime shared:5 - fuse.delugefs home rw\n\
            91 90 0:56 / /mnt/a\\040b/in rw - tmpfs tmpfs rw\nrubbish\n";
        let is_in = |path: &str| is_in(Path::new(path), table);
        assert!(is_in("/mnt/a b") && is_in("/mnt/a b/c/d"));
        assert!(!is_in("/mnt/a b/in/c") && !is_in("/mnt/a bc") && !is_in("/mnt"));
    }
}
