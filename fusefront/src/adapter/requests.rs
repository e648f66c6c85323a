//! What each request of the kernel becomes.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use delugefs_proto::local_pb::{Attr, StatFsReply};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, Version, WriteFlags,
};

use super::convert::{
    absent_ttl, attr_or_error, bytes, changed_or_error, entry, entry_or_error, file_attr, link_or_error, noting,
    ok_or_error, time, xattr_or_error,
};
use super::doubtful::Doubtful;
use super::{Adapter, Place, Way, errno, guarded, may_block};
use crate::call::{Caller, Patience, Stop};
use crate::fs::{Change, Fs, Invalidation, Making, News, RenameHow};

/// Largest write request, and largest read, in bytes.
const IO_MAX_BYTES: u32 = 1 << 20;
/// Requests the kernel may have under way that nobody waits for, such as read-ahead. The default of 16 starves them.
const BACKGROUND_MAX: u16 = 128;
/// Files up to this size are handed over to the worker one after the other when closed; a larger one on a pool thread, because
/// the worker reads it.
const CLOSE_NOW_BYTES: u64 = 128 << 10;
/// Version of the protocol that brought FUSE_NOTIFY_INC_EPOCH.
const EPOCHS_SINCE: Version = Version(7, 44);
/// RENAME_WHITEOUT and whatever comes after it.
const RENAME_KNOWN: u32 = 3;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Adapter {
    fn make(&self, request: &Request, (parent, name): (INodeNo, &OsStr), making: Making, reply: ReplyEntry) {
        let name = bytes(name);
        let doubtful = Doubtful::name(parent.0, &name);
        let send = entry_or_error(parent.0, name.clone());
        let make = move |fs: &Fs, caller: &Caller| fs.make(caller, parent.0, &name, &making);
        self.serve_changing(request, Way::CHANGING, reply, noting(make), send, doubtful);
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // One by one: a refused one must not take the others with it.
        for capability in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Of what is read past the pages while another mount writes it.
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_EXPORT_SUPPORT,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel does not have it");
            }
        }
        let limits = [
            config.set_max_write(IO_MAX_BYTES).err(),
            config.set_max_background(BACKGROUND_MAX).err().map(u32::from),
            // The largest the kernel allows is named when it refuses.
            config.set_max_readahead(IO_MAX_BYTES).err().and_then(|most| config.set_max_readahead(most).err()),
        ];
        let knows_epochs = config.kernel_abi() >= EPOCHS_SINCE;
        self.shared.knows_epochs.store(knows_epochs, Ordering::Release);
        if !knows_epochs {
            self.shared.fs.note_names();
        }
        tracing::debug!(abi = %config.kernel_abi(), ?limits, "greeted by the kernel");
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // Most are answered from memory: without copying the name.
        let memory = Caller::new(0, 0, Patience::Cached);
        let knows_epochs = self.shared.knows_epochs.load(Ordering::Acquire);
        let send =
            move |fs: &Fs, reply: ReplyEntry, name: &[u8], result: Result<(News, Option<Attr>), Errno>| match result {
                Ok((since, Some(attr))) => entry(fs, reply, (parent.0, name), (since, attr)),
                // Number 0: the kernel may remember that there is none.
                Ok((since, None)) => {
                    let ttl = absent_ttl(fs, since, knows_epochs);
                    reply.entry(&ttl, &file_attr(&Attr::default()), Generation(0));
                }
                Err(errno) => reply.error(errno),
            };
        let remembered = noting(|fs, caller| fs.lookup(caller, parent.0, name.as_bytes()));
        match guarded(|| remembered(&self.shared.fs, &memory)) {
            Err(Stop::Later) => {
                let name = bytes(name);
                let found = name.clone();
                let send = move |fs: &Fs, reply, result| send(fs, reply, &found, result);
                self.serve(request, reply, noting(move |fs, caller| fs.lookup(caller, parent.0, &name)), send);
            }
            result => send(&self.shared.fs, reply, name.as_bytes(), result.map_err(errno)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.shared.fs.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        if let Some(handle) = handle {
            self.shared.fs.came_with_handle(handle.0);
        }
        self.serve(request, reply, noting(move |fs, caller| fs.getattr(caller, ino.0)), attr_or_error);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change { mode, uid, gid, size, mtime: mtime.map(time), atime: atime.map(time) };
        let setattr = move |fs: &Fs, caller: &Caller| {
            if size.is_some() {
                may_block(caller)?;
            }
            fs.setattr(caller, ino.0, &change)
        };
        let doubtful = Doubtful::of(match size {
            Some(_) => Invalidation::Pages(ino.0),
            None => Invalidation::Attr(ino.0),
        });
        let send = move |fs: &Fs, reply: ReplyAttr, result: Result<(News, Attr), Errno>| {
            if let (Ok((_, attr)), Some(_)) = (&result, size) {
                fs.tell_resized(attr);
            }
            changed_or_error(fs, reply, result);
        };
        self.serve_changing(request, Way::CHANGING, reply, noting(setattr), send, doubtful);
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let send = |_: &Fs, reply: ReplyData, result: Result<Bytes, Errno>| match result {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        };
        self.serve(request, reply, move |fs, caller| fs.readlink(caller, ino.0), send);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.make(request, (parent, name), Making::Node { mode, rdev: u64::from(rdev) }, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        self.make(request, (parent, name), Making::Dir { mode }, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.make(request, (parent, name), Making::Symlink(bytes(target.as_os_str())), reply);
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = bytes(name);
        let doubtful = Doubtful::name(parent.0, &name).and(Invalidation::Attr(ino.0));
        let send = link_or_error(parent.0, name.clone());
        let link = move |fs: &Fs, caller: &Caller| fs.link(caller, ino.0, parent.0, &name);
        self.serve_changing(request, Way::CHANGING, reply, noting(link), send, doubtful);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        let doubtful = Doubtful::name(parent.0, &name);
        let unlink = move |fs: &Fs, caller: &Caller| fs.unlink(caller, parent.0, &name);
        self.serve_changing(request, Way::CHANGING, reply, unlink, ok_or_error, doubtful);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        let doubtful = Doubtful::name(parent.0, &name);
        let rmdir = move |fs: &Fs, caller: &Caller| fs.rmdir(caller, parent.0, &name);
        self.serve_changing(request, Way::CHANGING, reply, rmdir, ok_or_error, doubtful);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        // As renameat2(2) has them: 1 not over an existing name, 2 exchange.
        let flags = flags.bits();
        let how = RenameHow { no_replace: flags & 1 != 0, exchange: flags & 2 != 0 };
        if flags & !RENAME_KNOWN != 0 || how.no_replace && how.exchange {
            return reply.error(Errno::EINVAL);
        }
        let (name, new_name) = (bytes(name), bytes(new_name));
        let slow = self.shared.fs.moving_bytes(parent.0, &name) > CLOSE_NOW_BYTES;
        let doubtful = Doubtful::names((parent.0, &name), (new_parent.0, &new_name));
        let rename =
            move |fs: &Fs, caller: &Caller| fs.rename(caller, (parent.0, &name), (new_parent.0, &new_name), how);
        self.serve_changing(request, Way::CHANGING.slow_if(slow), reply, rename, ok_or_error, doubtful);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.serve_open(request, ino, flags, reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.serve_create(request, (parent, name), (mode, flags), reply);
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = move |fs: &Fs, caller: &Caller| {
            may_block(caller)?;
            let file = fs.file(handle.0)?;
            BUFFER.with_borrow_mut(|buffer| {
                let size = size as usize;
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                fs.read(caller, &file, offset, &mut buffer[..size])
            })
        };
        // On the thread that has read: its buffer holds the bytes.
        let send = |_: &Fs, reply: ReplyData, result: Result<usize, Errno>| match result {
            Ok(n) => BUFFER.with_borrow(|buffer| reply.data(&buffer[..n])),
            Err(errno) => reply.error(errno),
        };
        let way = match self.shared.fs.is_partial(handle.0) {
            true => Way::OPENING.at(Place::Remote).slow_if(true),
            false => Way::READING,
        };
        self.serve_changing(request, way, reply, read, send, Doubtful::default());
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.serve_write(request, (ino, handle, offset), data, (write_flags, flags), reply);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Nothing to do at close(2); the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        let fs = &self.shared.fs;
        let is_quick = fs.can_close_now() && fs.closing_bytes(handle.0) <= CLOSE_NOW_BYTES;
        if is_quick && self.shared.closing.close(fs, &self.pools.pool, handle.0) {
            return;
        }
        match self.shared.permit() {
            Some(_permit) if is_quick => {
                let _reported = guarded(|| {
                    fs.release(handle.0);
                    Ok(())
                });
            }
            _ => {
                let fs = fs.clone();
                self.pools.pool.run(move || fs.release(handle.0));
            }
        }
    }

    fn fsync(&self, request: &Request, _: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let sync = move |fs: &Fs, caller: &Caller| {
            may_block(caller)?;
            fs.fsync(caller, handle.0, data_only)
        };
        self.serve(request, reply, sync, ok_or_error);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let fs = &self.shared.fs;
        // The kernel may keep a short listing: its own changes and our invalidations drop it.
        let is_kept = fs.is_read_at_once(ino.0);
        let flags = match (fs.keeps_listing(ino.0), is_kept) {
            (true, true) => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
            (false, true) => FopenFlags::FOPEN_CACHE_DIR,
            (_, false) => FopenFlags::empty(),
        };
        reply.opened(FileHandle(fs.opendir(ino.0, is_kept)), flags);
    }

    fn readdir(&self, request: &Request, _: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.serve_listing(request, (handle, offset), reply);
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.serve_listing_with_attributes(request, ino, (handle, offset), reply);
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.shared.fs.releasedir(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.serve(request, reply, move |fs, caller| fs.fsync_dir(caller, ino.0, data_only), ok_or_error);
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        let send = |_: &Fs, reply: ReplyStatfs, result: Result<StatFsReply, Errno>| match result {
            Ok(fs) => {
                let block = u32::try_from(fs.block_bytes).unwrap_or(4096);
                let (all, free, available) = (fs.blocks, fs.blocks_free, fs.blocks_available);
                let name_max = delugefs_proto::limits::NAME_MAX_BYTES as u32;
                reply.statfs(all, free, available, fs.files, fs.files_free, block, name_max, block);
            }
            Err(errno) => reply.error(errno),
        };
        self.serve(request, reply, |fs, caller| fs.statfs(caller), send);
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        // XATTR_CREATE and XATTR_REPLACE of Linux; FreeBSD has no such flags.
        let how = (flags & 1 != 0, flags & 2 != 0);
        let (name, value) = (bytes(name), Bytes::copy_from_slice(value));
        let set = move |fs: &Fs, caller: &Caller| fs.setxattr(caller, ino.0, &name, &value, how);
        let doubtful = Doubtful::of(Invalidation::Attr(ino.0));
        self.serve_changing(request, Way::CHANGING, reply, set, ok_or_error, doubtful);
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let memory = Caller::new(0, 0, Patience::Cached);
        match guarded(|| self.shared.fs.getxattr(&memory, ino.0, name.as_bytes())) {
            Err(Stop::Later) => {
                let name = bytes(name);
                let get = move |fs: &Fs, caller: &Caller| fs.getxattr(caller, ino.0, &name);
                self.serve(request, reply, get, xattr_or_error(size));
            }
            result => xattr_or_error(size)(&self.shared.fs, reply, result.map_err(errno)),
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(request, reply, move |fs, caller| fs.listxattr(caller, ino.0), xattr_or_error(size));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        let remove = move |fs: &Fs, caller: &Caller| fs.removexattr(caller, ino.0, &name);
        let doubtful = Doubtful::of(Invalidation::Attr(ino.0));
        self.serve_changing(request, Way::CHANGING, reply, remove, ok_or_error, doubtful);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel decides by the attributes (default_permissions), and does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let fallocate = move |fs: &Fs, _: &Caller| fs.fallocate(handle.0, offset, length, mode);
        let doubtful = Doubtful::of(Invalidation::Pages(ino.0));
        self.serve_changing(request, Way::CHANGING.slow_if(true), reply, fallocate, ok_or_error, doubtful);
    }

    fn lseek(&self, request: &Request, _: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let send = |_: &Fs, reply: ReplyLseek, result: Result<i64, Errno>| match result {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        };
        let seek = move |fs: &Fs, caller: &Caller| {
            may_block(caller)?;
            fs.lseek(caller, handle.0, offset, whence)
        };
        self.serve(request, reply, seek, send);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _: INodeNo,
        from: FileHandle,
        from_offset: u64,
        to_ino: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The answer has 32 bits; the program goes on behind what was copied.
        let length = length.min(1 << 30);
        let copy =
            move |fs: &Fs, caller: &Caller| fs.copy_range(caller, (from.0, from_offset), (to.0, to_offset), length);
        let send = |_: &Fs, reply: ReplyWrite, result: Result<usize, Errno>| match result {
            Ok(n) => reply.written(n as u32),
            Err(errno) => reply.error(errno),
        };
        let doubtful = Doubtful::of(Invalidation::Pages(to_ino.0));
        self.serve_changing(request, Way::CHANGING.slow_if(true), reply, copy, send, doubtful);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
