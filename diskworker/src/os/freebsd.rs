//! FreeBSD: neither reflink nor syncfs(2).

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

/// What getxattr says when there is no such attribute.
pub const ENOATTR: Errno = Errno::ENOATTR;

/// Which life of the machine this is; `None` where that cannot be told: before FreeBSD 13. (kern.boottime is no such thing, it moves
/// when the clock is set.)
#[allow(unsafe_code)]
pub fn boot_id() -> Option<String> {
    let mut id = [0_u8; 16];
    let mut length = id.len();
    // SAFETY: the name ends with a zero, `length` is the room in `id`, both outlive the call, and nothing is set.
    let told = unsafe {
        libc::sysctlbyname(c"kern.boot_id".as_ptr(), id.as_mut_ptr().cast(), &raw mut length, std::ptr::null(), 0)
    };
    let is_whole = told == 0 && length == id.len();
    is_whole.then(|| id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// How much memory the machine has.
#[allow(unsafe_code)]
pub fn memory_bytes() -> Option<u64> {
    let mut bytes: libc::c_ulong = 0;
    let mut length = size_of_val(&bytes);
    // SAFETY: the name ends with a zero, `length` is the room in `bytes`, both outlive the call, and nothing is set.
    let told = unsafe {
        libc::sysctlbyname(c"hw.physmem".as_ptr(), (&raw mut bytes).cast(), &raw mut length, std::ptr::null(), 0)
    };
    let is_whole = told == 0 && length == size_of_val(&bytes);
    is_whole.then_some(bytes as u64)
}

/// Nothing counts the lives of a disk.
pub fn disk_count(_device: libc::dev_t) -> Option<u64> {
    None
}

/// Whether a path lies in a mount of DelugeFS.
pub fn is_in_mount_of_ours(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type_name().starts_with("fusefs.delugefs"))
}

/// Always `false`: there is no call that only clones.
pub fn reflink(_from: &File, _to: &File) -> Result<bool, Errno> {
    Ok(false)
}

/// Always `false`: sync(2) neither waits nor reports errors, so the caller syncs file by file.
pub fn sync_filesystem(_of: impl AsFd) -> Result<bool, Errno> {
    Ok(false)
}

/// Nothing: there is no such call.
pub fn begin_sync(_file: &File) -> Result<(), Errno> {
    Ok(())
}

/// Give the file `bytes` of length, with blocks behind them where the file system can (ZFS cannot: EINVAL).
pub fn preallocate(file: &File, bytes: u64) -> Result<(), Errno> {
    let length = i64::try_from(bytes).map_err(|_| Errno::EFBIG)?;
    match nix::fcntl::posix_fallocate(file, 0, length) {
        Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENODEV) => {
            nix::unistd::ftruncate(file, length.max(nix::sys::stat::fstat(file)?.st_size))
        }
        other => other,
    }
}

/// The user who has the other end of a unix socket.
pub fn peer_uid(socket: &std::os::unix::net::UnixStream) -> Result<u32, Errno> {
    nix::unistd::getpeereid(socket).map(|(uid, _)| uid.as_raw())
}
