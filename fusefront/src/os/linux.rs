//! Linux: mount(2), /proc/self/mountinfo, fallocate(2), and the read-ahead of a mount in /sys.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::Mode;

use super::{Called, Mounted};
use crate::fusermount;

/// What getxattr says when there is no such attribute.
pub const ENOATTR: Errno = Errno::ENODATA;
/// What COPY_FILE_RANGE is answered where the kernel is to read and write instead: it does so for this copy, and the programs do not notice.
pub const COPY_BY_HAND: Errno = Errno::EOPNOTSUPP;
/// Takes away a mount that is in use or dead, with the directory behind it.
pub const UMOUNT_DEAD: &str = "umount -l";
/// Type of our mounts in the mount table.
pub const MOUNT_KIND: &str = "fuse.delugefs";
/// Whether a mount can be put over a dead one.
pub const MOUNTS_OVER_DEAD: bool = true;
/// Longest that a mount shows as its source.
const SOURCE_MAX_BYTES: usize = 255;

/// What the signals of a thread, anybody's, ask of it. [`Called::No`] when nobody can tell.
///
/// Of the signals with a handler SIGINT alone counts. The others are not for the call that is under way, as a timer's: who has set
/// SA_RESTART does not expect to see anything of them, and a call in a file system cannot be begun again behind his back.
pub fn called(tid: u32) -> Called {
    std::fs::read_to_string(format!("/proc/{tid}/status")).map_or(Called::No, |status| called_by(&status))
}

fn called_by(status: &str) -> Called {
    const SIGNALS: [i32; 5] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGALRM, libc::SIGTERM];
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
    };
    let bits = |signals: &[i32]| signals.iter().fold(0_u64, |set, signal| set | 1 << (signal - 1));
    let pending = set("SigPnd") | set("ShdPnd");
    let asked = pending & bits(&SIGNALS) & !set("SigBlk") & !set("SigIgn");
    let caught = set("SigCgt");
    if pending & bits(&[libc::SIGKILL]) != 0 || asked & !caught != 0 {
        Called::ToEnd
    } else if asked & bits(&[libc::SIGINT]) != 0 {
        Called::ToStop
    } else {
        Called::No
    }
}

/// Mount on the directory, an absolute path without symbolic links. The descriptor is /dev/fuse. `covers`: over this dead mount, which cannot
/// be looked into.
///
/// # Errors
/// When something else was mounted since that was found dead: it would be hidden. When the path leads elsewhere by now, or to something that is not empty: who owns a directory above could put a link in its
/// place after we have looked, and root would cover any directory with files that others write.
pub fn mount(fuse: BorrowedFd<'_>, dir: &Path, source: &str, covers: Option<&Mounted>) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let place = nix::fcntl::open(dir, flags, Mode::empty())?;
    let through = format!("/proc/self/fd/{}", place.as_raw_fd());
    if std::fs::read_link(&through)? != dir {
        return Err(Errno::ELOOP.into());
    }
    match covers {
        None if std::fs::read_dir(&through)?.next().is_some() => return Err(Errno::ENOTEMPTY.into()),
        Some(dead) if mount_table()?.iter().rfind(|other| other.dir == dir) != Some(dead) => {
            return Err(Errno::EBUSY.into());
        }
        _ => {}
    }
    let options = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions,allow_other",
        fuse.as_raw_fd(),
        libc::S_IFDIR,
        nix::unistd::geteuid(),
        nix::unistd::getegid(),
    );
    let source: String = source.chars().take(SOURCE_MAX_BYTES).collect();
    // Other hosts decide what is in the files: neither their set-user-id bits nor their device nodes count here.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some(source.as_str()), through.as_str(), Some(MOUNT_KIND), flags, Some(options.as_str()))?;
    Ok(())
}

/// Mount for the calling user alone. The descriptor of /dev/fuse.
pub fn mount_as_user(dir: &Path, source: &str) -> anyhow::Result<OwnedFd> {
    fusermount::mount(dir, source)
}

/// Unmount what [`mount_as_user`] has mounted; `lazy` also if it is in use or dead.
pub fn unmount_as_user(dir: &Path, lazy: bool) -> anyhow::Result<()> {
    fusermount::unmount(dir, lazy)
}

/// Unmount; `lazy` also if it is in use or dead.
pub fn unmount(dir: &Path, lazy: bool) -> Result<(), Errno> {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    nix::mount::umount2(dir, flags | MntFlags::UMOUNT_NOFOLLOW)
}

/// Give up every request that waits for an answer on this mount, and detach it: for one whose server is gone. Without
/// that, a server killed while it waited inside the kernel for a program that waits for the server would keep both,
/// the connection and itself, for ever.
pub fn abort(dir: &Path) -> Result<(), Errno> {
    nix::mount::umount2(dir, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
}

/// The same, but the dead mount stays where it is, if the control file system of FUSE is there. Only while the server is
/// dying: it keeps the device number, which would be given out again.
pub fn give_up(mounted: &Mounted) -> io::Result<()> {
    let minor = mounted.device.rsplit(':').next().unwrap_or_default();
    match std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1") {
        Err(_) if mount_table()?.iter().rfind(|other| other.dir == mounted.dir) == Some(mounted) => {
            Ok(abort(&mounted.dir)?)
        }
        done => done,
    }
}

/// Have this thread, and those that it starts, do without what root may and others may not, for good.
#[allow(unsafe_code)]
pub fn give_up_capabilities() -> io::Result<()> {
    /// _LINUX_CAPABILITY_VERSION_3.
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    // Effective, permitted and inheritable, of 64 bits each.
    let none = [0_u32; 6];
    // What is executed would have them again.
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: both point to as many words as the call reads.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) })?;
    Ok(())
}

/// Whether a process that was not waited for yet has been killed, though some thread of it may still be in the kernel.
pub fn is_dying(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Whether a living process, other than this one, serves a mount on this directory. A dying one has no command line
/// any more.
pub fn is_served(dir: &Path, not_by: Option<u32>) -> bool {
    let not_by = not_by.map(|pid| pid.to_string());
    let serves = |entry: std::fs::DirEntry| {
        if not_by.as_ref().is_some_and(|pid| entry.file_name() == pid.as_str()) {
            return false;
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        words.next().is_some_and(|program| program.ends_with(b"delugefs-fusefront"))
            && words.any(|word| word == b"--serve")
            && command.split(|byte| *byte == 0).any(|word| word == dir.as_os_str().as_encoded_bytes())
    };
    std::fs::read_dir("/proc").into_iter().flatten().flatten().any(serves)
}

/// The mount table, oldest first.
pub fn mount_table() -> io::Result<Vec<Mounted>> {
    Ok(parse_mountinfo(&std::fs::read("/proc/self/mountinfo")?))
}

fn parse_mountinfo(table: &[u8]) -> Vec<Mounted> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
        let dir = OsString::from_vec(unescape(fields.nth(1)?)).into();
        fields.find(|field| *field == b"-")?;
        let kind = String::from_utf8_lossy(fields.next()?).into_owned();
        Some(Mounted { dir, kind, device })
    };
    table.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Blank, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, behind)) = rest.split_first() {
        match behind {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..] if byte == b'\\' => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = behind;
            }
            _ => {
                out.push(byte);
                rest = behind;
            }
        }
    }
    out
}

/// Read ahead this much, in KiB. Only after the mount has answered its first request, which sets it back. For root.
pub fn set_read_ahead(mounted: &Mounted, kib: u32) -> io::Result<()> {
    std::fs::write(format!("/sys/class/bdi/{}/read_ahead_kb", mounted.device), kib.to_string())
}

/// Write behind the last byte of the file, wherever others of this host have brought that; the number of bytes written.
pub fn append(file: &File, bytes: &[u8]) -> io::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the one part is `bytes`, which outlives the call and is only read.
    #[allow(unsafe_code)]
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, 0, libc::RWF_APPEND) };
    Ok(usize::try_from(Errno::result(written)?).unwrap_or(0))
}

/// Reserve or punch out space; `mode` as for fallocate(2).
pub fn fallocate(file: &File, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
    let allowed = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
    if mode & !allowed != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let length = i64::try_from(length).map_err(|_| Errno::EFBIG)?;
    nix::fcntl::fallocate(file, FallocateFlags::from_bits_retain(mode), offset, length)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_took_the_place_of_a_mountpoint_is_not_covered() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let nothing: OwnedFd = File::open("/dev/null").unwrap().into();
        let attempt = |path: &str| mount(nothing.as_fd(), &root.join(path), "test", None).unwrap_err().raw_os_error();
        std::fs::create_dir_all(root.join("etc/m")).unwrap();
        std::os::unix::fs::symlink("etc", root.join("home")).unwrap();
        std::os::unix::fs::symlink("etc/m", root.join("link")).unwrap();
        assert_eq!(attempt("home/m"), Some(libc::ELOOP));
        assert_eq!(attempt("link"), Some(libc::ENOTDIR)); // O_DIRECTORY of a link that is not followed
        assert_eq!(attempt("etc"), Some(libc::ENOTEMPTY));
        // Found dead there, and gone or covered since.
        let dead = Mounted { dir: root.join("etc/m"), kind: MOUNT_KIND.into(), device: "0:1".into() };
        let covering = mount(nothing.as_fd(), &dead.dir, "test", Some(&dead)).unwrap_err();
        assert_eq!(covering.raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn signals_with_a_handler_do_not_end_a_program() {
        let status = |private: u64, shared: u64, blocked: u64, ignored: u64, caught: u64| {
            called_by(&format!(
                "Name:\tx\nSigQ:\t1/2\nSigPnd:\t{private:016x}\nShdPnd:\t{shared:016x}\n\
                SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
            ))
        };
        let bit = |signal: i32| 1_u64 << (signal - 1);
        let (int, alarm, term, kill) = (bit(libc::SIGINT), bit(libc::SIGALRM), bit(libc::SIGTERM), bit(libc::SIGKILL));
        assert_eq!(status(0, 0, 0, 0, 0), Called::No);
        assert_eq!(status(0, int, 0, 0, alarm), Called::ToEnd);
        assert_eq!(status(alarm, 0, 0, 0, 0), Called::ToEnd);
        assert_eq!(status(0, alarm | term, 0, 0, alarm | term), Called::No);
        assert_eq!(status(0, alarm | int, 0, 0, alarm | int), Called::ToStop);
        assert_eq!(status(0, alarm | int, int, 0, alarm | int), Called::No);
        assert_eq!(status(0, int, 0, int, 0), Called::No);
        assert_eq!(status(int, term, 0, 0, int), Called::ToEnd);
        assert_eq!(status(kill, int, int | term, int, int), Called::ToEnd);
        assert_eq!(status(0, bit(libc::SIGCHLD), 0, 0, 0), Called::No);
        assert_eq!(called(std::process::id()), Called::No);
        assert_eq!(called_by("rubbish"), Called::No);
    }

    #[test]
    fn reads_the_mount_table() {
        let table = b"22 1 0:20 / /proc rw,nosuid - proc proc rw\n\
            90 22 0:55 / /mnt/a\\040b\\134c rw,relatime shared:5 master:2 - fuse.delugefs home rw,user_id=0\nrubbish\n";
        let mounts = parse_mountinfo(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[1].dir, Path::new("/mnt/a b\\c"));
        assert_eq!((&mounts[1].kind[..], &mounts[1].device[..]), (MOUNT_KIND, "0:55"));
        assert!(mount_table().unwrap().iter().any(|mounted| mounted.dir == Path::new("/")));
    }
}
