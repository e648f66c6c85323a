//! FreeBSD: neither reflink nor syncfs(2); copy_file_range(2), which [`super::copy_range`] calls, clones blocks on ZFS.
//! Type-checked, never run.

use std::fs::File;
use std::os::fd::AsFd;

use nix::errno::Errno;

/// What getxattr says when there is no such attribute.
pub const ENOATTR: Errno = Errno::ENOATTR;

/// Always `false`: there is no call that only clones.
pub fn reflink(_from: &File, _to: &File) -> Result<bool, Errno> {
    Ok(false)
}

/// Always `false`: sync(2) neither waits nor reports errors, so the caller syncs file by file.
pub fn sync_filesystem(_of: impl AsFd) -> Result<bool, Errno> {
    Ok(false)
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

/// A text that changes with every boot of this machine: the time of boot. It also changes when the clock is set, which
/// the caller takes for a reboot; that costs a check and no data.
#[allow(unsafe_code)]
pub fn boot_id() -> Option<String> {
    let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut length = std::mem::size_of_val(&time);
    // SAFETY: the name is NUL-terminated, and the kernel writes at most `length` bytes into `time`, which is that long.
    let answer = unsafe {
        let into = std::ptr::from_mut(&mut time).cast();
        libc::sysctlbyname(c"kern.boottime".as_ptr(), into, &mut length, std::ptr::null(), 0)
    };
    (answer == 0).then(|| format!("{}.{:06}", time.tv_sec, time.tv_usec))
}

/// The user who has the other end of a unix socket.
pub fn peer_uid(socket: &std::os::unix::net::UnixStream) -> Result<u32, Errno> {
    nix::unistd::getpeereid(socket).map(|(uid, _)| uid.as_raw())
}
