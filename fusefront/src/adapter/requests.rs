//! What each request of the kernel becomes.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use delugefs_proto::local_pb::{Attr, StatFsReply};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, Version, WriteFlags,
};

use super::convert::{
    absent_ttl, attr_or_error, bytes, changed_or_error, entry, entry_or_error, file_attr, file_type, fopen_flags,
    link_or_error, noting, ok_or_error, telling, time, xattr_or_error,
};
use super::{Adapter, Done, Place, Shared, Way, errno, guarded, may_block};
use crate::call::{Caller, Outcome, Patience, Stop};
use crate::fs::{Change, Fs, Invalidation, Making, News, Opened, Opening, Page, RenameHow, S_ISGID, S_ISUID};

/// Largest write request, and largest read, in bytes.
const IO_MAX_BYTES: u32 = 1 << 20;
/// Requests the kernel may have under way that nobody waits for, such as read-ahead. The default of 16 starves them.
const BACKGROUND_MAX: u16 = 128;
/// Files up to this size are handed over to the worker one after the other when closed; a larger one on a pool thread, because
/// the worker reads it.
const CLOSE_NOW_BYTES: u64 = 128 << 10;
/// Writing to an existing content up to this size is prepared at once; the worker copies a larger one first.
const OPEN_NOW_BYTES: u64 = 128 << 10;
/// Version of the protocol that brought FUSE_NOTIFY_INC_EPOCH.
const EPOCHS_SINCE: Version = Version(7, 44);
/// RENAME_WHITEOUT and whatever comes after it.
const RENAME_KNOWN: u32 = 3;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Whatever the kernel may know wrongly when these names were changed without its hearing of it.
fn doubtful_names(names: Vec<(u64, Bytes)>) -> impl Fn(&Fs) -> Vec<Invalidation> + Clone + Send + 'static {
    move |fs| {
        let mut doubtful = Vec::new();
        for &(dir, ref name) in &names {
            doubtful.extend(fs.named(dir, name).map(Invalidation::Attr));
            doubtful.push(Invalidation::Name { dir, name: Box::from(&name[..]) });
            doubtful.push(Invalidation::Dir(dir));
        }
        doubtful
    }
}

/// Whether a new file is best written past the kernel's pages: then Linux does not ask for the capabilities of each one first, which is
/// a round trip. Not where the kernel does more than write ([`Adapter::serve_write`]), or needs the pages.
fn writes_only(mode: u32, flags: i32) -> bool {
    let is_plain = flags & (libc::O_APPEND | libc::O_SYNC | libc::O_DSYNC) == 0 && mode & (S_ISUID | S_ISGID) == 0;
    cfg!(target_os = "linux") && is_plain && flags & libc::O_ACCMODE == libc::O_WRONLY
}

/// Whether what is opened so can be changed through a shared map.
fn is_mappable(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDWR
}

impl Adapter {
    fn make(&self, request: &Request, (parent, name): (INodeNo, &OsStr), making: Making, reply: ReplyEntry) {
        let name = bytes(name);
        let doubtful = doubtful_names(vec![(parent.0, name.clone())]);
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
        let doubtful = move |_: &Fs| match size {
            Some(_) => vec![Invalidation::Pages(ino.0)],
            None => vec![Invalidation::Attr(ino.0)],
        };
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
        let doubtful = {
            let names = doubtful_names(vec![(parent.0, name.clone())]);
            move |fs: &Fs| [names(fs), vec![Invalidation::Attr(ino.0)]].concat()
        };
        let send = link_or_error(parent.0, name.clone());
        let link = move |fs: &Fs, caller: &Caller| fs.link(caller, ino.0, parent.0, &name);
        self.serve_changing(request, Way::CHANGING, reply, noting(link), send, doubtful);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        let doubtful = doubtful_names(vec![(parent.0, name.clone())]);
        let unlink = move |fs: &Fs, caller: &Caller| fs.unlink(caller, parent.0, &name);
        self.serve_changing(request, Way::CHANGING, reply, unlink, ok_or_error, doubtful);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        let doubtful = doubtful_names(vec![(parent.0, name.clone())]);
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
        let doubtful = doubtful_names(vec![(parent.0, name.clone()), (new_parent.0, new_name.clone())]);
        let rename =
            move |fs: &Fs, caller: &Caller| fs.rename(caller, (parent.0, &name), (new_parent.0, &new_name), how);
        self.serve_changing(request, Way::CHANGING.slow_if(slow), reply, rename, ok_or_error, doubtful);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncate = flags.0 & libc::O_TRUNC != 0;
        let write = flags.0 & libc::O_ACCMODE != libc::O_RDONLY || truncate;
        let open = move |fs: &Fs, caller: &Caller| fs.begin_open(caller, ino.0, write, truncate);
        let settle = move |shared: Arc<Shared>, opening: Opening, done: Done<Opened>| {
            let fs = shared.fs.clone();
            let finish = move |opening| {
                let opened = guarded(|| fs.finish_open(opening));
                if let (Ok(opened), true) = (&opened, is_mappable(flags.0)) {
                    fs.make_mappable(opened.handle);
                }
                done(&fs, opened);
            };
            shared.telling.before(ino.0, opening, finish);
        };
        let send = |_: &Fs, reply: ReplyOpen, result: Result<Opened, Errno>| match result {
            Ok(opened) => reply.opened(FileHandle(opened.handle), fopen_flags(&opened)),
            Err(errno) => reply.error(errno),
        };
        let slow = write && !truncate && self.shared.fs.opening_bytes(ino.0) > OPEN_NOW_BYTES;
        // An open empties the file, also one that fails, and decides whether the pages the kernel has are good: neither was heard
        // of there.
        let unwanted = move |fs: &Fs, unused: Result<Opened, Errno>| match unused {
            Ok(unused) => fs.release_unheard(unused.handle),
            Err(_) => fs.invalidate(Invalidation::Pages(ino.0)),
        };
        // Where the answer says that the pages are old it has to be heard.
        let doubtful = move |_: &Fs, opened: &Outcome<Opened>| match opened {
            Ok(Opened { keep_pages: true, .. }) => Vec::new(),
            Err(_) if !truncate => Vec::new(),
            _ => vec![Invalidation::Pages(ino.0)],
        };
        let way = if truncate { Way::CHANGING } else { Way::READING.slow_if(slow) };
        self.serve_opening((request, way), reply, open, settle, send, (unwanted, doubtful));
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
        let name = bytes(name);
        // FreeBSD's kernel does not look again.
        let exclusive = flags & libc::O_EXCL != 0 || !cfg!(target_os = "linux");
        let is_direct = writes_only(mode, flags);
        let doubtful = doubtful_names(vec![(parent.0, name.clone())]);
        let (made, unheard) = (name.clone(), doubtful.clone());
        let create = move |fs: &Fs, caller: &Caller| {
            let (attr, opened) = fs.create(caller, parent.0, &name, mode, exclusive)?;
            if is_mappable(flags) {
                fs.make_mappable(opened.handle);
            }
            Ok((attr, if is_direct { fs.make_direct(opened) } else { opened }))
        };
        let send = move |fs: &Fs, reply: ReplyCreate, result: Result<(News, (Attr, Opened)), Errno>| match result {
            Ok((since, (attr, opened))) => {
                fs.remember_as(&attr, parent.0, &made);
                let ((attr, ttl), flags) = (telling(fs, (since, attr)), fopen_flags(&opened));
                reply.created(&ttl, &attr, Generation(0), FileHandle(opened.handle), flags);
            }
            Err(errno) => reply.error(errno),
        };
        let unwanted = move |fs: &Fs, unused: Result<(News, (Attr, Opened)), Errno>| {
            if let Ok((_, (_, unused))) = unused {
                fs.release(unused.handle);
            }
            unheard(fs).into_iter().for_each(|what| fs.invalidate(what));
        };
        let doubtful = move |fs: &Fs, _: &Outcome<_>| doubtful(fs);
        let settle = |shared: Arc<Shared>, made, done: Done<(News, (Attr, Opened))>| done(&shared.fs, Ok(made));
        self.serve_opening((request, Way::CHANGING), reply, noting(create), settle, send, (unwanted, doubtful));
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
            true => Way::READING.at(Place::Remote).slow_if(true),
            // One who handles the signal is not to lose a page fault to it for a disk that spins up.
            false => Way::CHANGING.at(Place::Reading),
        };
        self.serve_changing(request, way, reply, read, send, |_| Vec::new());
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
        let flags = match (fs.keeps_listing(ino.0), fs.is_read_at_once(ino.0)) {
            (true, true) => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
            (false, true) => FopenFlags::FOPEN_CACHE_DIR,
            (_, false) => FopenFlags::empty(),
        };
        reply.opened(FileHandle(fs.opendir(ino.0)), flags);
    }

    fn readdir(&self, request: &Request, _: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        let read = move |fs: &Fs, caller: &Caller| fs.read_dir(caller, handle.0, offset, false);
        let send = move |fs: &Fs, mut reply: ReplyDirectory, result: Result<Page, Errno>| {
            let page = match result {
                Ok(page) => page,
                Err(errno) => return reply.error(errno),
            };
            let mut taken = None;
            for (count, entry) in (1..).zip(page.iter()) {
                let name = OsStr::from_bytes(entry.name);
                if reply.add(INodeNo(entry.ino), entry.offset, file_type(entry.kind), name) {
                    break;
                }
                taken = Some((count, entry));
            }
            // Before the answer: the reader may go on at once, on another thread.
            if let Some((count, last)) = taken {
                fs.taken(handle.0, count, last);
            }
            reply.ok();
        };
        self.serve(request, reply, read, send);
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let read = move |fs: &Fs, caller: &Caller| fs.read_dir(caller, handle.0, offset, true);
        let send = move |fs: &Fs, mut reply: ReplyDirectoryPlus, result: Result<(News, Page), Errno>| {
            let (since, page) = match result {
                Ok(noted) => noted,
                Err(errno) => return reply.error(errno),
            };
            let mut taken = None;
            for (count, entry) in (1..).zip(page.iter()) {
                // Of "." and ".." the kernel takes only number and kind.
                let mode = u32::from(entry.kind) << 12;
                let dot = Attr { ino: entry.ino, mode, ..Attr::default() };
                let (attr, ttl) = match entry.attr {
                    Some(attr) => {
                        fs.remember_as(&attr, ino.0, entry.name);
                        telling(fs, (since, attr))
                    }
                    None => (file_attr(&dot), Duration::ZERO),
                };
                let name = OsStr::from_bytes(entry.name);
                if reply.add(INodeNo(entry.ino), entry.offset, name, &ttl, &attr, Generation(0)) {
                    // There is no room for it: the kernel is not told after all.
                    if entry.attr.is_some() {
                        fs.forget(entry.ino, 1);
                    }
                    break;
                }
                taken = Some((count, entry));
            }
            if let Some((count, last)) = taken {
                fs.taken(handle.0, count, last);
            }
            reply.ok();
        };
        self.serve(request, reply, noting(read), send);
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
        let doubtful = move |_: &Fs| vec![Invalidation::Attr(ino.0)];
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
        let doubtful = move |_: &Fs| vec![Invalidation::Attr(ino.0)];
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
        let doubtful = move |_: &Fs| vec![Invalidation::Pages(ino.0)];
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
        let doubtful = move |_: &Fs| vec![Invalidation::Pages(to_ino.0)];
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
