//! The sentences of the store's errors: what was attempted, on which file, and what to do about it.

use delugefs_proto::errno::FsError;
use nix::errno::Errno;

/// A system call failed.
pub(super) fn fail(errno: Errno, attempt: &str, name: &str) -> FsError {
    let advice = match errno {
        Errno::ENOSPC | Errno::EDQUOT => ": the disk is full; delete something, or add a disk and drain this one",
        Errno::EIO | Errno::ENXIO | Errno::ENODEV => ": the disk may be failing; look at dmesg",
        Errno::EROFS => ": the file system is read-only; look at dmesg, then remount it",
        Errno::ELOOP | Errno::ENOTDIR | Errno::EISDIR => {
            return damaged(name, "it is a symbolic link or something else that does not belong there; remove it");
        }
        _ => "",
    };
    FsError::new(errno, format!("cannot {attempt} {name}{advice}"))
}

/// A file is not what it should be.
pub(super) fn damaged(name: &str, what: &str) -> FsError {
    FsError::new(Errno::EIO, format!("{name} is damaged: {what}"))
}
