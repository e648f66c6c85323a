//! What is not the same on Linux and FreeBSD, behind one set of functions.

#[cfg(target_os = "freebsd")]
mod freebsd;
mod kernel;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "freebsd")]
pub use self::freebsd::*;
pub use self::kernel::FuseKernel;
#[cfg(target_os = "linux")]
pub use self::linux::*;

use std::fs::File;
use std::path::PathBuf;

use nix::errno::Errno;

/// What signals ask of a thread that waits in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Called {
    /// To go on.
    No,
    /// A person wants it to stop (SIGINT), and it has a handler for that.
    ToStop,
    /// It will end when it leaves the kernel.
    ToEnd,
}

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is mounted.
    pub dir: PathBuf,
    /// Type of the file system, as `mount` shows it.
    pub kind: String,
    /// What the system calls its device: on Linux `major:minor`.
    pub device: String,
}

/// Copy bytes inside the kernel; the number of bytes copied.
pub fn copy_range(from: &File, from_offset: u64, to: &File, to_offset: u64, length: usize) -> Result<usize, Errno> {
    let mut from_offset = i64::try_from(from_offset).map_err(|_| Errno::EINVAL)?;
    let mut to_offset = i64::try_from(to_offset).map_err(|_| Errno::EINVAL)?;
    nix::fcntl::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), length)
}

/// Where the next data or hole begins; `whence` is SEEK_DATA or SEEK_HOLE. Moves the descriptor's own position, which
/// nothing here uses.
pub fn seek_hole_or_data(file: &File, offset: i64, whence: i32) -> Result<i64, Errno> {
    let whence = match whence {
        libc::SEEK_DATA => nix::unistd::Whence::SeekData,
        libc::SEEK_HOLE => nix::unistd::Whence::SeekHole,
        _ => return Err(Errno::EINVAL),
    };
    nix::unistd::lseek(file, offset, whence)
}
