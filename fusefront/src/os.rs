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

use delugefs_proto::plain::is_plain;
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

/// Copy bytes inside the kernel; the number of bytes copied. [`COPY_BY_HAND`] where the file system is not trusted with that.
pub fn copy_range(from: &File, from_offset: u64, to: &File, to_offset: u64, length: usize) -> Result<usize, Errno> {
    if !is_plain(from) {
        return Err(COPY_BY_HAND);
    }
    let mut from_offset = i64::try_from(from_offset).map_err(|_| Errno::EINVAL)?;
    let mut to_offset = i64::try_from(to_offset).map_err(|_| Errno::EINVAL)?;
    nix::fcntl::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), length)
}

/// Where the next data or hole begins; `whence` is SEEK_DATA or SEEK_HOLE. Moves the descriptor's own position, which
/// nothing here uses. Where the file system is not trusted with holes all is data.
pub fn seek_hole_or_data(file: &File, offset: i64, whence: i32) -> Result<i64, Errno> {
    if !is_plain(file) {
        let end = file.metadata().map_err(|error| Errno::try_from(error).unwrap_or(Errno::EIO))?.len();
        return seek_without_holes(i64::try_from(end).unwrap_or(i64::MAX), offset, whence);
    }
    let whence = match whence {
        libc::SEEK_DATA => nix::unistd::Whence::SeekData,
        libc::SEEK_HOLE => nix::unistd::Whence::SeekHole,
        _ => return Err(Errno::EINVAL),
    };
    nix::unistd::lseek(file, offset, whence)
}

/// The same in a file of which nobody knows the holes, and that ends there.
pub fn seek_without_holes(end: i64, offset: i64, whence: i32) -> Result<i64, Errno> {
    match whence {
        _ if !(0..end).contains(&offset) => Err(Errno::ENXIO),
        libc::SEEK_DATA => Ok(offset),
        libc::SEEK_HOLE => Ok(end),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_trusted_with_holes_has_none_and_is_copied_by_hand() {
        // A file system that knows neither, and says so otherwise.
        let foreign = File::open(if cfg!(target_os = "linux") { "/proc/version" } else { "/dev/null" }).unwrap();
        let to = tempfile::tempfile().unwrap();
        assert_eq!(copy_range(&foreign, 0, &to, 0, 10), Err(COPY_BY_HAND));
        assert_eq!(seek_hole_or_data(&foreign, 0, libc::SEEK_DATA), Err(Errno::ENXIO));
        let seek = |offset, whence| seek_without_holes(10, offset, whence);
        assert_eq!((seek(3, libc::SEEK_DATA), seek(3, libc::SEEK_HOLE)), (Ok(3), Ok(10)));
        assert_eq!((seek(10, libc::SEEK_HOLE), seek(-1, libc::SEEK_DATA)), (Err(Errno::ENXIO), Err(Errno::ENXIO)));
        assert_eq!(seek(3, libc::SEEK_SET), Err(Errno::EINVAL));
    }
}
