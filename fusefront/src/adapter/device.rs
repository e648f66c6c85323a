//! The messages by which the kernel is told what to forget. They are written to /dev/fuse here, and not by fuser: that takes "I do
//! not have it" for success.

use std::fs::File;
use std::io::{self, Write};

const HEADER_BYTES: usize = 16;
const FUSE_NOTIFY_INVAL_INODE: i32 = 2;
const FUSE_NOTIFY_INVAL_ENTRY: i32 = 3;
const FUSE_NOTIFY_INC_EPOCH: i32 = 8;

/// The messages, as a kernel takes or refuses them. ENOENT: it has nothing of the kind.
pub(super) trait Kernel: Send + Sync + 'static {
    /// What is known of a name. It waits for whoever changes the directory.
    fn name(&self, dir: u64, name: &[u8]) -> io::Result<()>;
    /// The attributes of an inode, and its content if `content`. For the content it waits for whoever reads or writes it; for the
    /// attributes alone Linux waits for nobody, and so they may be dropped while a request about the inode is being answered.
    fn inode(&self, ino: u64, content: bool) -> io::Result<()>;
    /// The attributes of an inode, and so many bytes of its content from this offset. It waits as [`Self::inode`] does.
    fn range(&self, ino: u64, offset: u64, length: u64) -> io::Result<()>;
    /// Every name, also those known to be absent. It waits for nobody.
    fn all_names(&self) -> io::Result<()>;
}

/// The kernel behind a descriptor of /dev/fuse.
pub(super) struct Device<W = File>(pub W);

impl<W> Device<W>
where
    for<'a> &'a W: Write,
{
    /// A message that has these parts.
    fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        let bytes = HEADER_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut message = Vec::with_capacity(bytes);
        message.extend(u32::try_from(bytes).unwrap_or(u32::MAX).to_ne_bytes());
        message.extend(code.to_ne_bytes());
        message.extend([0; 8]);
        parts.iter().for_each(|part| message.extend(*part));
        // A message is taken whole or not at all.
        (&self.0).write(&message).map(drop)
    }
}

impl<W: Send + Sync + 'static> Kernel for Device<W>
where
    for<'a> &'a W: Write,
{
    fn name(&self, dir: u64, name: &[u8]) -> io::Result<()> {
        let bytes = u32::try_from(name.len()).unwrap_or(u32::MAX);
        let (dir, bytes, flags) = (dir.to_ne_bytes(), bytes.to_ne_bytes(), 0_u32.to_ne_bytes());
        self.notify(FUSE_NOTIFY_INVAL_ENTRY, &[&dir, &bytes, &flags, name, b"\0"])
    }

    fn inode(&self, ino: u64, content: bool) -> io::Result<()> {
        // A negative offset spares the pages; no length is all there is behind it.
        self.range(ino, if content { 0 } else { u64::MAX }, 0)
    }

    fn range(&self, ino: u64, offset: u64, length: u64) -> io::Result<()> {
        self.notify(FUSE_NOTIFY_INVAL_INODE, &[&ino.to_ne_bytes(), &offset.to_ne_bytes(), &length.to_ne_bytes()])
    }

    /// Linux 6.16; FreeBSD says ENOSYS.
    fn all_names(&self) -> io::Result<()> {
        self.notify(FUSE_NOTIFY_INC_EPOCH, &[])
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use parking_lot::Mutex;

    use super::*;

    /// Has nothing of what it is told about.
    #[derive(Default)]
    struct Absent(Mutex<Vec<Vec<u8>>>);

    impl Write for &Absent {
        fn write(&mut self, message: &[u8]) -> io::Result<usize> {
            self.0.lock().push(message.to_vec());
            Err(Errno::ENOENT.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_kernel_does_not_have_is_heard_of() {
        let kernel = Device(Absent::default());
        let told = [
            kernel.inode(7, true),
            kernel.inode(8, false),
            kernel.name(9, b"abc"),
            kernel.all_names(),
            kernel.range(7, 3, 4),
        ];
        for result in told {
            assert_eq!(result.map_err(|error| error.raw_os_error()), Err(Some(Errno::ENOENT as i32)));
        }
        let words = |message: &[u8]| -> Vec<u64> {
            message.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect()
        };
        let header = |bytes: u64, code: u64| bytes | code << 32;
        let heard = kernel.0.0.into_inner();
        assert_eq!(words(&heard[0]), [header(40, 2), 0, 7, 0, 0]);
        assert_eq!(words(&heard[1]), [header(40, 2), 0, 8, u64::MAX, 0]);
        assert_eq!((words(&heard[2]), &heard[2][32..]), (vec![header(36, 3), 0, 9, 3], &b"abc\0"[..]));
        assert_eq!(words(&heard[3]), [header(16, 8), 0]);
        assert_eq!(words(&heard[4]), [header(40, 2), 0, 7, 3, 4]);
    }
}
