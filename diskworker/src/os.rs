//! What the operating systems do differently, and the file calls the rest of the crate shares. The only place with
//! `cfg(target_os)`: each function of `sys` exists once per system with the same meaning.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime};

use delugefs_proto::plain::is_plain;
use delugefs_proto::times::nanoseconds;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FlockArg, OFlag};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{Whence, lseek};

#[cfg(target_os = "freebsd")]
#[path = "os/freebsd.rs"]
mod sys;
#[cfg(target_os = "linux")]
#[path = "os/linux.rs"]
mod sys;

pub use sys::{
    ENOATTR, begin_sync, boot_id, disk_count, is_in_mount_of_ours, memory_bytes, peer_uid, preallocate, reflink,
    sync_filesystem,
};

/// Take or change the flock(2) of this open file description without waiting; `EWOULDBLOCK` when somebody else's is in
/// the way. Unlike a guard object it stays until the last copy of the descriptor is closed, in whatever process.
#[allow(deprecated)] // nix's guard unlocks when dropped, which is just what must not happen here
pub fn flock(file: &File, arg: FlockArg) -> Result<(), Errno> {
    nix::fcntl::flock(file.as_raw_fd(), arg)
}

/// Whether the other end of a stream has gone, or has shut it down both ways. What it had sent before can be read all the same.
#[allow(unsafe_code)]
pub fn has_hung_up(socket: &UnixStream) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one element, which outlives the call; it does not wait.
    let found = unsafe { libc::poll(&raw mut poll, 1, 0) };
    found > 0 && poll.revents & libc::POLLHUP != 0
}

/// Open a directory relative to another one, never through a symbolic link.
pub fn open_dir(at: impl AsFd, name: &str) -> Result<File, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::openat(at, name, flags, Mode::empty()).map(File::from)
}

/// Open a regular file relative to a directory: never through a symbolic link, and never waiting for a pipe's other end.
/// Anything that is not a regular file is `ELOOP`. New files get mode 0600.
pub fn open_file(at: impl AsFd, name: &str, flags: OFlag) -> Result<File, Errno> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = nix::fcntl::openat(at, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from).map_err(symlink)?;
    match is_regular(&fstat(&file)?) {
        true => Ok(file),
        false => Err(Errno::ELOOP),
    }
}

/// The names in a directory, opened relative to another one, in no order, without `.` and `..`. A name that is not
/// UTF-8 comes out altered: none of ours is.
pub fn names(at: impl AsFd, dir: &str) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in nix::dir::Dir::from_fd(open_dir(at, dir)?.into())?.iter() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// The same, of regular files only: without a look at each where the file system says it in the directory.
pub fn file_names(at: impl AsFd, dir: &str) -> Result<Vec<String>, Errno> {
    let at = open_dir(at, dir)?;
    let mut names = Vec::new();
    for entry in nix::dir::Dir::from_fd(at.try_clone().map_err(|error| errno(&error))?.into())?.iter() {
        let entry = entry?;
        let is_file = match entry.file_type() {
            Some(kind) => kind == nix::dir::Type::File,
            None => fstatat(&at, entry.file_name(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| is_regular(&stat)),
        };
        if is_file {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// FreeBSD answers EMLINK where Linux and POSIX say ELOOP.
fn symlink(errno: Errno) -> Errno {
    if errno == Errno::EMLINK { Errno::ELOOP } else { errno }
}

/// Whether this is a regular file.
pub fn is_regular(stat: &nix::sys::stat::FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

/// Time of the last change of content, nanoseconds since 1970.
pub fn mtime_ns(stat: &nix::sys::stat::FileStat) -> i64 {
    nanoseconds(stat.st_mtime, stat.st_mtime_nsec)
}

/// Time of the last access that was noted, nanoseconds since 1970.
pub fn atime_ns(stat: &nix::sys::stat::FileStat) -> i64 {
    nanoseconds(stat.st_atime, stat.st_atime_nsec)
}

/// So many nanoseconds after 1970.
pub fn time(ns: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}

/// Time of the last change of anything, nanoseconds since 1970.
pub fn ctime_ns(stat: &nix::sys::stat::FileStat) -> i64 {
    nanoseconds(stat.st_ctime, stat.st_ctime_nsec)
}

/// The error number of a standard library error.
pub fn errno(error: &std::io::Error) -> Errno {
    match error.raw_os_error().map(Errno::from_raw) {
        None => Errno::EIO,
        Some(Errno::UnknownErrno) => {
            // Nobody can tell from EIO which it was.
            tracing::warn!("the system says: {error}");
            Errno::EIO
        }
        Some(errno) => errno,
    }
}

/// The next stretch of data at or behind `from`, as start and end in bytes; `None` when only a hole is left. Where the
/// file system knows no holes everything up to `size` is data, and also where it cannot be trusted with them: a content hashed as
/// zeros is lost.
pub fn next_data(file: &File, from: u64, size: u64) -> Result<Option<(u64, u64)>, Errno> {
    if from >= size {
        return Ok(None);
    }
    if !is_plain(file) {
        return Ok(Some((from, size)));
    }
    let at = |offset: u64, whence| lseek(file, offset as i64, whence);
    let start = match at(from, Whence::SeekData) {
        Ok(start) => start as u64,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL | Errno::ENOTTY | Errno::EOPNOTSUPP) => return Ok(Some((from, size))),
        Err(errno) => return Err(errno),
    };
    let end = match at(start, Whence::SeekHole) {
        Ok(end) => end as u64,
        Err(Errno::ENXIO | Errno::EINVAL | Errno::ENOTTY | Errno::EOPNOTSUPP) => size,
        Err(errno) => return Err(errno),
    };
    Ok((start < size).then_some((start, end.min(size).max(start + 1))))
}

/// Copy a stretch between two files at the same offset, in the kernel where it can.
pub fn copy_range(from: &File, to: &File, start: u64, end: u64) -> Result<(), Errno> {
    if !is_plain(from) {
        return copy_by_hand(from, to, start, end);
    }
    let (mut here, mut there) = (start as i64, start as i64);
    while (here as u64) < end {
        let left = usize::try_from(end - here as u64).unwrap_or(usize::MAX).min(1 << 30);
        match nix::fcntl::copy_file_range(from, Some(&mut here), to, Some(&mut there), left) {
            // The source is shorter than the caller was told.
            Ok(0) => return Err(Errno::EIO),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EBADF) => {
                return copy_by_hand(from, to, here as u64, end);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, mut here: u64, end: u64) -> Result<(), Errno> {
    use std::os::unix::fs::FileExt;
    let mut block = vec![0; 1 << 20];
    while here < end {
        let block = &mut block[..(end - here).min(1 << 20) as usize];
        from.read_exact_at(block, here).map_err(|error| errno(&error))?;
        to.write_all_at(block, here).map_err(|error| errno(&error))?;
        here += block.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::fs::FileExt;

    #[test]
    fn who_has_hung_up_is_known_though_he_can_still_be_read() {
        for closes in [false, true] {
            let (mut one, mut other) = UnixStream::pair().unwrap();
            other.write_all(b"x").unwrap();
            assert!(!has_hung_up(&one));
            match closes {
                true => drop(other),
                false => other.shutdown(Shutdown::Both).unwrap(),
            }
            assert!(has_hung_up(&one));
            assert_eq!(one.read(&mut [0; 4]).unwrap(), 1);
        }
    }

    #[test]
    fn stretches_of_data_cover_what_was_written() {
        let file = tempfile::tempfile().unwrap();
        let size = 64 << 20;
        file.set_len(size).unwrap();
        file.write_all_at(b"x", 10 << 20).unwrap();
        file.write_all_at(b"y", 40 << 20).unwrap();
        let mut seen = Vec::new();
        let mut from = 0;
        while let Some((start, end)) = next_data(&file, from, size).unwrap() {
            assert!(start >= from && end > start && end <= size);
            seen.push(start..end);
            from = end;
        }
        for offset in [10 << 20, 40 << 20] {
            assert!(seen.iter().any(|range| range.contains(&offset)));
        }
        assert_eq!(next_data(&file, size, size), Ok(None));
        let copy = tempfile::tempfile().unwrap();
        copy_range(&file, &copy, 10 << 20, (10 << 20) + 3).unwrap();
        copy_by_hand(&file, &copy, 40 << 20, (40 << 20) + 1).unwrap();
        let mut byte = [0];
        for (offset, want) in [(10 << 20, b'x'), (40 << 20, b'y')] {
            copy.read_exact_at(&mut byte, offset).unwrap();
            assert_eq!(byte[0], want);
        }
        assert_eq!(copy_range(&file, &copy, size, size + 1), Err(Errno::EIO));
    }

    #[test]
    fn a_lock_lives_as_long_as_a_copy_of_its_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::options().create(true).truncate(false).write(true).open(dir.path().join("l")).unwrap();
        let (one, other) = (open(), open());
        flock(&one, FlockArg::LockSharedNonblock).unwrap();
        let copy = one.try_clone().unwrap();
        drop(one);
        assert_eq!(flock(&other, FlockArg::LockExclusiveNonblock), Err(Errno::EWOULDBLOCK));
        drop(copy);
        flock(&other, FlockArg::LockExclusiveNonblock).unwrap();
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), Mode::S_IRUSR).unwrap();
        let at = File::open(dir.path()).unwrap();
        assert!(open_file(&at, "file", OFlag::O_RDONLY).is_ok());
        for name in ["link", "pipe", "."] {
            assert_eq!(open_file(&at, name, OFlag::O_RDONLY).err(), Some(Errno::ELOOP), "{name}");
        }
        assert_eq!(open_file(&at, "none", OFlag::O_RDONLY).err(), Some(Errno::ENOENT));
        let file = open_file(&at, "file", OFlag::O_RDWR).unwrap();
        preallocate(&file, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }
}
