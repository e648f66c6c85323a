//! FreeBSD: nmount(2), getfsstat(2), posix_fallocate(2).

// getfsstat has no safe wrapper.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use delugefs_proto::exit::{Exit, UserError};
use nix::errno::Errno;
use nix::mount::{MntFlags, Nmount};

use super::{Called, Mounted};

/// What getxattr says when there is no such attribute.
pub const ENOATTR: Errno = Errno::ENOATTR;
/// Whether a mount can be put over a dead one: not tried here, what is dead is unmounted first.
pub const MOUNTS_OVER_DEAD: bool = false;
/// What COPY_FILE_RANGE is answered where the kernel is to read and write instead: it does so from then on. Any other error is the
/// program's, and of these cp(1) takes EINVAL alone for what it is.
pub const COPY_BY_HAND: Errno = Errno::ENOSYS;
/// Takes away a mount that is in use or dead, with the directory behind it.
pub const UMOUNT_DEAD: &str = "umount -f";
/// Type of our mounts in the mount table.
pub const MOUNT_KIND: &str = "fusefs.delugefs";
/// After how long the kernel gives up on a request, in seconds: the longest it can be told to wait. We answer before
/// ([`super::FuseKernel::answers_within`]).
const TIMEOUT_S: u32 = 600;

/// Not asked here: this kernel ends the wait of a program that gets SIGKILL without an answer.
pub fn called(_: u32) -> Called {
    Called::No
}

/// Mount on the directory for everybody. The descriptor is /dev/fuse.
pub fn mount(fuse: BorrowedFd<'_>, dir: &Path, source: &str, _covers: Option<&Mounted>) -> io::Result<()> {
    nmount(fuse, dir, source, true)
}

/// Mount for the calling user alone, where vfs.usermount allows it. The descriptor of /dev/fuse.
pub fn mount_as_user(dir: &Path, source: &str) -> anyhow::Result<OwnedFd> {
    let refused = |what: String, hint: &str| UserError::new(Exit::NotPermitted, what).hint(hint);
    let fuse = File::options().read(true).write(true).open("/dev/fuse").map_err(|error| {
        refused(format!("cannot open /dev/fuse: {error}"), "`kldload fusefs` as root if it is missing, or run as root")
    })?;
    let fuse = OwnedFd::from(fuse);
    nmount(fuse.as_fd(), dir, source, false).map_err(|error| {
        let hint = "`sysctl vfs.usermount=1` as root lets users mount on directories of their own; or run as root";
        refused(format!("cannot mount on {}: {error}", dir.display()), hint)
    })?;
    Ok(fuse)
}

/// Unmount what [`mount_as_user`] has mounted; `lazy` also if it is in use or dead.
pub fn unmount_as_user(dir: &Path, lazy: bool) -> anyhow::Result<()> {
    Ok(unmount(dir, lazy)?)
}

fn nmount(fuse: BorrowedFd<'_>, dir: &Path, source: &str, for_all: bool) -> io::Result<()> {
    let fd = fuse.as_raw_fd().to_string();
    let timeout = TIMEOUT_S.to_string();
    let mut request = Nmount::new();
    request
        .str_opt_owned("fstype", "fusefs")
        .str_opt_owned("fspath", dir)
        .str_opt_owned("from", "/dev/fuse")
        .str_opt_owned("fd", fd.as_str())
        .str_opt_owned("subtype=", "delugefs")
        .str_opt_owned("fsname=", source)
        .str_opt_owned("timeout=", timeout.as_str())
        .null_opt(c"default_permissions");
    if for_all {
        request.null_opt(c"allow_other");
    }
    // Without the second a newer kernel (13.1) sets the access time of what was read when it is closed, on every host.
    request.nmount(MntFlags::MNT_NOSUID | MntFlags::MNT_NOATIME).map_err(io::Error::other)
}

/// Unmount; `lazy` also if it is in use or dead.
pub fn unmount(dir: &Path, lazy: bool) -> Result<(), Errno> {
    nix::mount::unmount(dir, if lazy { MntFlags::MNT_FORCE } else { MntFlags::empty() })
}

/// Give up every request that waits for an answer on this mount, and unmount it: for one whose server is gone.
pub fn abort(dir: &Path) -> Result<(), Errno> {
    unmount(dir, true)
}

/// The same: a dead mount cannot be left standing here.
pub fn give_up(mounted: &Mounted) -> io::Result<()> {
    Ok(abort(&mounted.dir)?)
}

/// There are none.
pub fn give_up_capabilities() -> io::Result<()> {
    Ok(())
}

/// Whether a process that was not waited for yet has been killed, though some thread of it may still be in the kernel.
/// The sleeps of such a thread end with the process here.
pub fn is_dying(_pid: u32) -> bool {
    false
}

/// Whether a living process may serve a mount on this directory. Not told apart here: a silent mount is left alone.
pub fn is_served(_dir: &Path, _not_by: Option<u32>) -> bool {
    true
}

/// The mount table, oldest first.
pub fn mount_table() -> io::Result<Vec<Mounted>> {
    // SAFETY: a null buffer asks for the number of mounts only.
    let count = unsafe { libc::getfsstat(std::ptr::null_mut(), 0, libc::MNT_NOWAIT) };
    let count = Errno::result(count)?;
    // Some room for those that come in between.
    let mut mounts: Vec<libc::statfs> = Vec::with_capacity(usize::try_from(count).unwrap_or(0) + 16);
    let bytes = mounts.capacity() * size_of::<libc::statfs>();
    // SAFETY: the buffer has room for `bytes` bytes, and the kernel fills whole elements from its beginning.
    let got = unsafe { libc::getfsstat(mounts.as_mut_ptr(), bytes as _, libc::MNT_NOWAIT) };
    let got = usize::try_from(Errno::result(got)?).unwrap_or(0).min(mounts.capacity());
    // SAFETY: so many elements were filled in.
    unsafe { mounts.set_len(got) };
    // SAFETY: the kernel ends both names with a NUL inside their arrays.
    let text = |chars: &[libc::c_char]| unsafe { CStr::from_ptr(chars.as_ptr()) }.to_bytes().to_vec();
    let mounted = |mount: &libc::statfs| Mounted {
        dir: PathBuf::from(OsStr::from_bytes(&text(&mount.f_mntonname))),
        kind: String::from_utf8_lossy(&text(&mount.f_fstypename)).into_owned(),
        device: String::from_utf8_lossy(&text(&mount.f_mntfromname)).into_owned(),
    };
    Ok(mounts.iter().map(mounted).collect())
}

/// The kernel decides how far to read ahead.
pub fn set_read_ahead(_mounted: &Mounted, _kib: u32) -> io::Result<()> {
    Ok(())
}

/// Write behind the last byte of the file; the number of bytes written. Another process may come in between here.
pub fn append(file: &File, bytes: &[u8]) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, bytes, file.metadata()?.len())
}

/// Reserve space; there is no punching out here.
pub fn fallocate(file: &File, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
    if mode != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let length = i64::try_from(length).map_err(|_| Errno::EFBIG)?;
    nix::fcntl::posix_fallocate(file, offset, length)
}
