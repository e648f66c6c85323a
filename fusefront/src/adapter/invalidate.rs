//! Telling the kernel what to forget. Not every kernel knows every message: one it refuses is replaced by others where
//! there are any, and never ends anything. It knows nothing of why something is to be forgotten.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, Notifier};

use crate::fs::{Fs, Invalidation};

/// The messages, as a kernel takes or refuses them.
pub(super) trait Kernel {
    /// What is known of a name.
    fn name(&self, dir: u64, name: &[u8]) -> io::Result<()>;
    /// The attributes of an inode, and its content if `content`.
    fn inode(&self, ino: u64, content: bool) -> io::Result<()>;
    /// Every name, also those known to be absent.
    fn all_names(&self) -> io::Result<()>;
}

/// The kernel behind a descriptor of /dev/fuse.
pub(super) struct Device {
    notifier: Notifier,
    device: File,
}

impl Device {
    pub(super) fn new(notifier: Notifier, device: File) -> Self {
        Self { notifier, device }
    }
}

impl Kernel for Device {
    fn name(&self, dir: u64, name: &[u8]) -> io::Result<()> {
        self.notifier.inval_entry(INodeNo(dir), OsStr::from_bytes(name))
    }

    fn inode(&self, ino: u64, content: bool) -> io::Result<()> {
        // A negative offset spares the pages.
        self.notifier.inval_inode(INodeNo(ino), if content { 0 } else { -1 }, 0)
    }

    /// FUSE_NOTIFY_INC_EPOCH: Linux 6.16; FreeBSD says ENOSYS.
    fn all_names(&self) -> io::Result<()> {
        const HEADER_BYTES: u32 = 16;
        const FUSE_NOTIFY_INC_EPOCH: i32 = 8;
        let mut message = [0; HEADER_BYTES as usize];
        message[..4].copy_from_slice(&HEADER_BYTES.to_ne_bytes());
        message[4..8].copy_from_slice(&FUSE_NOTIFY_INC_EPOCH.to_ne_bytes());
        (&self.device).write(&message).map(drop)
    }
}

pub(super) fn carry_out(fs: &Fs, kernel: &impl Kernel, what: &Invalidation) -> io::Result<()> {
    match what {
        Invalidation::Name { dir, name } => kernel.name(*dir, name),
        Invalidation::Attr(ino) => kernel.inode(*ino, false),
        Invalidation::Content(ino) => kernel.inode(*ino, !fs.pages_are_current(*ino)),
        Invalidation::Pages(ino) | Invalidation::Dir(ino) => kernel.inode(*ino, true),
        Invalidation::All => {
            fs.invalidating_all();
            everything(kernel, || fs.cached_names(), &fs.known_inodes())
        }
    }
}

/// Every name and inode. What the kernel refuses does not keep the rest from it; the last refusal is given back.
fn everything(kernel: &impl Kernel, names: impl FnOnce() -> Vec<(u64, Box<[u8]>)>, inodes: &[u64]) -> io::Result<()> {
    let mut result = Ok(());
    if let Err(error) = kernel.all_names() {
        tracing::debug!(%error, "dropping names one by one");
        for (dir, name) in names() {
            result = kernel.name(dir, &name).and(result);
        }
    }
    for &ino in inodes {
        result = kernel.inode(ino, true).and(result);
    }
    result
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use nix::errno::Errno;

    use super::*;

    /// Writes down what it is told, and refuses messages about one number.
    struct Listening {
        knows_epochs: bool,
        refuses: u64,
        heard: RefCell<Vec<String>>,
    }

    impl Listening {
        fn hear(&self, ino: u64, what: String) -> io::Result<()> {
            if ino == self.refuses {
                return Err(Errno::ENOSYS.into());
            }
            self.heard.borrow_mut().push(what);
            Ok(())
        }
    }

    impl Kernel for Listening {
        fn name(&self, dir: u64, name: &[u8]) -> io::Result<()> {
            self.hear(dir, format!("{dir}/{}", String::from_utf8_lossy(name)))
        }

        fn inode(&self, ino: u64, content: bool) -> io::Result<()> {
            self.hear(ino, format!("{ino} {content}"))
        }

        fn all_names(&self) -> io::Result<()> {
            if self.knows_epochs { self.hear(0, "all names".into()) } else { Err(Errno::ENOSYS.into()) }
        }
    }

    fn told(knows_epochs: bool, refuses: u64) -> (Vec<String>, Option<i32>) {
        let kernel = Listening { knows_epochs, refuses, heard: RefCell::default() };
        let names = || vec![(1, Box::from(&b"a"[..])), (7, Box::from(&b"b"[..])), (8, Box::from(&b"c"[..]))];
        let result = everything(&kernel, names, &[1, 7, 8]);
        (kernel.heard.into_inner(), result.err().and_then(|error| error.raw_os_error()))
    }

    #[test]
    fn names_are_dropped_one_by_one_where_the_kernel_does_not_know_epochs() {
        assert_eq!(told(true, u64::MAX).0, ["all names", "1 true", "7 true", "8 true"]);
        let one_by_one = ["1/a", "7/b", "8/c", "1 true", "7 true", "8 true"];
        assert_eq!(told(false, u64::MAX), (one_by_one.map(String::from).into(), None));
    }

    #[test]
    fn what_is_refused_does_not_keep_the_rest_from_the_kernel() {
        let (heard, errno) = told(false, 7);
        assert_eq!(heard, ["1/a", "8/c", "1 true", "8 true"]);
        assert_eq!(errno, Some(Errno::ENOSYS as i32));
    }
}
