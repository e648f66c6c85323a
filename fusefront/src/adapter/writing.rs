//! WRITE, on Linux: on FreeBSD the one thread that reads requests writes as well, for there a program that is killed is gone at once, and
//! what it wrote last must not come after what others write then. As long as the disk does what it should, the thread that has read the bytes writes them, into the page cache of the disk's
//! file system; there it waits when the disk is slow, or hangs, so it needs the permission that waiting needs. A kernel
//! that writes back a memory map sends a hundred of them that no program waits for: where no thread may wait any more they go
//! to a pool of their own, and everything else is served.

use std::sync::Arc;

use fuser::{Errno, FileHandle, INodeNo, OpenFlags, ReplyWrite, Request, WriteFlags};

use super::doubtful::Doubtful;
use super::{Adapter, Shared, Way, errno, guarded};
use crate::call::{Caller, Outcome};
use crate::fs::{Fs, Invalidation};
use crate::handles;

/// What a request writes, but for the bytes, and what comes with it.
struct Writing {
    file: Arc<handles::FileHandle>,
    handle: u64,
    offset: u64,
    appends: bool,
    /// The set-user-id bits go first.
    clears: bool,
    /// It has to be durable when it is answered; `Some(true)`: its bytes and what it takes to find them.
    syncs: Option<bool>,
}

impl Adapter {
    pub(super) fn serve_write(
        &self,
        request: &Request,
        (ino, FileHandle(handle), offset): (INodeNo, FileHandle, u64),
        data: &[u8],
        (write_flags, OpenFlags(flags)): (WriteFlags, OpenFlags),
        reply: ReplyWrite,
    ) {
        let fs = &self.shared.fs;
        let file = match fs.file(handle) {
            Ok(file) => file,
            Err(stop) => return reply.error(errno(stop)),
        };
        // What goes past the kernel's pages also goes past what the kernel does before and after it writes to them.
        let is_direct = file.is_direct();
        let kills = is_direct && write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let writing = Writing {
            file,
            handle,
            offset,
            // What comes from a memory map has its place, whatever file it is mapped through.
            appends: flags & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            clears: kills && fs.has_privileges(ino.0),
            syncs: (is_direct && flags & libc::O_DSYNC != 0).then_some(flags & libc::O_SYNC != libc::O_SYNC),
        };
        if writing.clears || writing.syncs.is_some() {
            let (data, shared) = (data.to_vec(), self.shared.clone());
            let write = move |_: &Fs, caller: &Caller| writing.carry_out(&shared, caller, &data);
            let send = |_: &Fs, reply: ReplyWrite, result: Result<u32, Errno>| match result {
                Ok(n) => reply.written(n),
                Err(errno) => reply.error(errno),
            };
            let doubtful = Doubtful::of(Invalidation::Pages(ino.0));
            return self.serve_changing(request, Way::CHANGING.slow_if(true), reply, write, send, doubtful);
        }
        match self.shared.permit() {
            Some(_permit) => writing.serve(&self.shared, data, reply),
            None if !cfg!(target_os = "linux") => writing.serve(&self.shared, data, reply),
            None => {
                let (shared, data) = (self.shared.clone(), Box::<[u8]>::from(data));
                self.writing.run(move || writing.serve(&shared, &data, reply));
            }
        }
    }
}

impl Writing {
    /// Write, and answer.
    fn serve(self, shared: &Shared, data: &[u8], reply: ReplyWrite) {
        match guarded(|| self.write(shared, data)) {
            Ok((n, is_elsewhere)) => {
                reply.written(n);
                // Only now: the kernel holds the pages until it has the answer.
                if is_elsewhere {
                    shared.fs.invalidate(Invalidation::Pages(self.file.inode.ino));
                }
            }
            Err(stop) => reply.error(errno(stop)),
        }
    }

    /// The number of bytes written, and whether they may be elsewhere than the kernel takes them to be.
    fn write(&self, shared: &Shared, data: &[u8]) -> Outcome<(u32, bool)> {
        let (n, is_elsewhere) = match self.appends {
            true => shared.fs.append(&self.file, self.offset, data)?,
            false => (shared.fs.write(&self.file, self.offset, data)?, false),
        };
        // The kernel has dropped its pages of that before it asked; a reader may have had them filled with what was there then.
        if self.file.is_direct() && self.file.inode.is_shared() {
            shared.telling.written(self.file.inode.ino, self.offset, n);
        }
        Ok((u32::try_from(n).unwrap_or(u32::MAX), is_elsewhere))
    }

    /// The same with what else it takes. May be done again.
    fn carry_out(&self, shared: &Shared, caller: &Caller, data: &[u8]) -> Outcome<u32> {
        if self.clears {
            shared.fs.clear_privileges(caller, self.file.inode.ino)?;
        }
        let (n, _) = self.write(shared, data)?;
        if let Some(data_only) = self.syncs {
            shared.fs.fsync(caller, self.handle, data_only)?;
        }
        Ok(n)
    }
}
