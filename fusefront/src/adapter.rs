//! The only file that touches fuser: kernel requests in, calls of [`Fs`], replies out; and invalidations the other way.
//!
//! Which thread works: a request is answered where it was read if that is quick. At least one reading thread stays
//! free of waiting (for the worker or the disk), so that what is in memory is always answered: when the others are all
//! taken, and for anything known to be slow, the operation moves to the pool.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use delugefs_proto::local_pb::Attr;
use fuser::{
    AccessFlags, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags,
    ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow,
    WriteFlags,
};

use crate::call::{Caller, Outcome, Patience, Stop};
use crate::fs::{Change, Fs, Invalidation, Making, Opened, Page, RenameHow, Time};
use crate::os;
use crate::pool::Pool;
use crate::trouble;

/// How long the kernel may answer from what it was told: until we say otherwise, for we are told of every change.
const TTL: Duration = Duration::from_secs(3600);
/// Largest write request, and largest read, in bytes.
const IO_MAX_BYTES: u32 = 1 << 20;
/// Requests the kernel may have under way that nobody waits for, such as read-ahead. The default of 16 starves them.
const BACKGROUND_MAX: u16 = 128;
/// What programs take as the best size of a read or write, in bytes: each is a request to us.
const BLOCK_BYTES: u32 = 64 << 10;
/// A file up to this size is handed over to the worker at once when closed; a larger one on a pool thread, because the
/// worker reads it.
const CLOSE_NOW_BYTES: u64 = 128 << 10;
/// Writing to an existing content up to this size is prepared at once; the worker copies a larger one first.
const OPEN_NOW_BYTES: u64 = 128 << 10;
/// RENAME_WHITEOUT and whatever comes after it.
const RENAME_KNOWN: u32 = 3;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The kernel's side of a file system.
pub struct Adapter {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
}

struct Shared {
    fs: Arc<Fs>,
    /// Reading threads that are waiting for something.
    waiting: AtomicUsize,
}

/// Permission for a reading thread to wait.
struct Permit<'a>(&'a AtomicUsize);

impl Shared {
    fn permit(&self) -> Option<Permit<'_>> {
        let most = os::FUSE_THREADS - 1;
        if self.waiting.fetch_add(1, Ordering::AcqRel) < most {
            return Some(Permit(&self.waiting));
        }
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        None
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Answer the greeting of the kernel on this descriptor of /dev/fuse. The session serves when it is run; the thread
/// that carries out invalidations runs from now on.
pub fn connect(
    fs: Arc<Fs>,
    pool: Arc<Pool>,
    fuse: OwnedFd,
    invalidations: Receiver<Invalidation>,
) -> io::Result<Session<Adapter>> {
    let device = File::from(fuse.try_clone()?);
    let shared = Arc::new(Shared { fs: fs.clone(), waiting: AtomicUsize::new(0) });
    let mut config = Config::default();
    config.n_threads = Some(os::FUSE_THREADS);
    // Who may come in is the kernel's decision, by the mount's options.
    let session = Session::from_fd(Adapter { shared, pool }, fuse, SessionACL::All, config)?;
    let notifier = session.notifier();
    let invalidate = move || {
        for what in invalidations {
            if let Err(error) = carry_out(&fs, &notifier, &device, &what) {
                tracing::debug!(%error, ?what, "invalidation");
            }
        }
    };
    std::thread::Builder::new().name("invalidations".into()).spawn(invalidate)?;
    Ok(session)
}

fn carry_out(fs: &Fs, notifier: &Notifier, device: &File, what: &Invalidation) -> io::Result<()> {
    match what {
        Invalidation::Name { dir, name } => notifier.inval_entry(INodeNo(*dir), OsStr::from_bytes(name)),
        Invalidation::Attr(ino) => notifier.inval_inode(INodeNo(*ino), -1, 0),
        Invalidation::Content(ino) if fs.pages_are_current(*ino) => notifier.inval_inode(INodeNo(*ino), -1, 0),
        Invalidation::Content(ino) | Invalidation::Dir(ino) => notifier.inval_inode(INodeNo(*ino), 0, 0),
        Invalidation::All => {
            fs.invalidating_all();
            if let Err(error) = drop_all_names(device) {
                tracing::debug!(%error, "dropping names one by one");
                for (dir, name) in fs.cached_names() {
                    notifier.inval_entry(INodeNo(dir), OsStr::from_bytes(&name))?;
                }
            }
            fs.known_inodes().into_iter().try_for_each(|ino| notifier.inval_inode(INodeNo(ino), 0, 0))
        }
    }
}

/// Make the kernel ask again for every name, also those it knows to be absent. FUSE_NOTIFY_INC_EPOCH: Linux 6.16.
fn drop_all_names(mut device: &File) -> io::Result<()> {
    const HEADER_BYTES: u32 = 16;
    const FUSE_NOTIFY_INC_EPOCH: i32 = 8;
    let mut message = [0; HEADER_BYTES as usize];
    message[..4].copy_from_slice(&HEADER_BYTES.to_ne_bytes());
    message[4..8].copy_from_slice(&FUSE_NOTIFY_INC_EPOCH.to_ne_bytes());
    device.write(&message).map(drop)
}

impl Adapter {
    /// Do an operation here if that is quick, else on the pool, and send its result.
    fn serve<T, R>(
        &self,
        request: &Request,
        reply: R,
        operation: impl Fn(&Fs, &Caller) -> Outcome<T> + Send + 'static,
        send: impl FnOnce(&Fs, R, Result<T, Errno>) + Send + 'static,
    ) where
        R: Send + 'static,
    {
        if self.pool.is_closed() {
            return send(&self.shared.fs, reply, Err(Errno::ENOTCONN));
        }
        let permit = self.shared.permit();
        let patience = if permit.is_some() { Patience::Brief } else { Patience::Cached };
        let caller = Caller::new(request.uid(), request.gid(), patience);
        match guarded(|| operation(&self.shared.fs, &caller)) {
            Err(Stop::Later) => {
                drop(permit);
                self.later(caller, reply, operation, send);
            }
            result => send(&self.shared.fs, reply, result.map_err(errno)),
        }
    }

    /// Do an operation on the pool.
    fn serve_slow<T, R>(
        &self,
        request: &Request,
        reply: R,
        operation: impl Fn(&Fs, &Caller) -> Outcome<T> + Send + 'static,
        send: impl FnOnce(&Fs, R, Result<T, Errno>) + Send + 'static,
    ) where
        R: Send + 'static,
    {
        self.later(Caller::new(request.uid(), request.gid(), Patience::Patient), reply, operation, send);
    }

    fn later<T, R>(
        &self,
        mut caller: Caller,
        reply: R,
        operation: impl Fn(&Fs, &Caller) -> Outcome<T> + Send + 'static,
        send: impl FnOnce(&Fs, R, Result<T, Errno>) + Send + 'static,
    ) where
        R: Send + 'static,
    {
        let fs = self.shared.fs.clone();
        if self.pool.is_closed() {
            return send(&fs, reply, Err(Errno::ENOTCONN));
        }
        caller.patience = Patience::Patient;
        self.pool.run(move || {
            let result = guarded(|| operation(&fs, &caller));
            send(&fs, reply, result.map_err(errno));
        });
    }
}

/// The disk may be slow, too: what waits for it needs the same permission as what waits for the worker.
fn may_block(caller: &Caller) -> Outcome<()> {
    if caller.patience == Patience::Cached { Err(Stop::Later) } else { Ok(()) }
}

/// A panic in an operation must not take the thread with it: the caller gets EIO.
fn guarded<T>(operation: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    catch_unwind(AssertUnwindSafe(operation)).unwrap_or_else(|_| {
        tracing::error!("an operation panicked; this is a bug in delugefs-fusefront");
        Err(nix::errno::Errno::EIO.into())
    })
}

fn errno(stop: Stop) -> Errno {
    match &stop {
        Stop::Failed(error) => trouble::log(error),
        Stop::Later => {}
    }
    tracing::trace!(?stop, "failed");
    Errno::from_i32(stop.errno() as i32)
}

fn bytes(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn ok_or_error(_: &Fs, reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn entry_or_error(fs: &Fs, reply: ReplyEntry, result: Result<Attr, Errno>) {
    match result {
        Ok(attr) => {
            fs.remember(&attr);
            reply.entry(&TTL, &file_attr(&attr), Generation(0));
        }
        Err(errno) => reply.error(errno),
    }
}

fn attr_or_error(_: &Fs, reply: ReplyAttr, result: Result<Attr, Errno>) {
    match result {
        Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
        Err(errno) => reply.error(errno),
    }
}

fn xattr_or_error(size: u32) -> impl FnOnce(&Fs, ReplyXattr, Result<Bytes, Errno>) {
    move |_, reply, result| match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

fn file_type(kind: u8) -> FileType {
    match kind {
        0o01 => FileType::NamedPipe,
        0o02 => FileType::CharDevice,
        0o04 => FileType::Directory,
        0o06 => FileType::BlockDevice,
        0o12 => FileType::Symlink,
        0o14 => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(crate::cache::kind_of(attr.mode)),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // Both ends use the system's own encoding, whose low 32 bits FUSE carries.
        rdev: attr.rdev as u32,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Nanoseconds since 1970 of a time to set.
fn time(time: TimeOrNow) -> Time {
    match time {
        TimeOrNow::Now => Time::Now,
        TimeOrNow::SpecificTime(time) => Time::At(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
            // fuser 0.18 takes the nanoseconds off a negative number of seconds, where they are to be added.
            Err(before) => {
                let (seconds, ns) = (before.duration().as_secs(), before.duration().subsec_nanos());
                let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                0_i64.saturating_sub(seconds.saturating_mul(1_000_000_000)).saturating_add(i64::from(ns))
            }
        }),
    }
}

fn fopen_flags(opened: &Opened) -> FopenFlags {
    // Closing needs no request before RELEASE.
    let keep = if opened.keep_pages { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
    keep | FopenFlags::FOPEN_NOFLUSH
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // One by one: a refused one must not take the others with it.
        for capability in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
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
        tracing::debug!(abi = %config.kernel_abi(), ?limits, "greeted by the kernel");
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // Most are answered from memory: without copying the name.
        let memory = Caller::new(0, 0, Patience::Cached);
        let send = |fs: &Fs, reply: ReplyEntry, result: Result<Option<Attr>, Errno>| match result {
            Ok(Some(attr)) => entry_or_error(fs, reply, Ok(attr)),
            // Number 0: the kernel may remember that there is none.
            Ok(None) => reply.entry(&TTL, &file_attr(&Attr::default()), Generation(0)),
            Err(errno) => reply.error(errno),
        };
        match guarded(|| self.shared.fs.lookup(&memory, parent.0, name.as_bytes())) {
            Err(Stop::Later) => {
                let name = bytes(name);
                self.serve(request, reply, move |fs, caller| fs.lookup(caller, parent.0, &name), send);
            }
            result => send(&self.shared.fs, reply, result.map_err(errno)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.shared.fs.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(request, reply, move |fs, caller| fs.getattr(caller, ino.0), attr_or_error);
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
        self.serve(request, reply, move |fs, caller| fs.setattr(caller, ino.0, &change), attr_or_error);
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
        let (name, making) = (bytes(name), Making::Node { mode, rdev: u64::from(rdev) });
        self.serve(request, reply, move |fs, caller| fs.make(caller, parent.0, &name, &making), entry_or_error);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (name, making) = (bytes(name), Making::Dir { mode });
        self.serve(request, reply, move |fs, caller| fs.make(caller, parent.0, &name, &making), entry_or_error);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, making) = (bytes(name), Making::Symlink(bytes(target.as_os_str())));
        self.serve(request, reply, move |fs, caller| fs.make(caller, parent.0, &name, &making), entry_or_error);
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = bytes(name);
        self.serve(request, reply, move |fs, caller| fs.link(caller, ino.0, parent.0, &name), entry_or_error);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        self.serve(request, reply, move |fs, caller| fs.unlink(caller, parent.0, &name), ok_or_error);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        self.serve(request, reply, move |fs, caller| fs.rmdir(caller, parent.0, &name), ok_or_error);
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
        let rename =
            move |fs: &Fs, caller: &Caller| fs.rename(caller, (parent.0, &name), (new_parent.0, &new_name), how);
        self.serve(request, reply, rename, ok_or_error);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncate = flags.0 & libc::O_TRUNC != 0;
        let write = flags.0 & libc::O_ACCMODE != libc::O_RDONLY || truncate;
        let open = move |fs: &Fs, caller: &Caller| fs.open(caller, ino.0, write, truncate);
        let send = |_: &Fs, reply: ReplyOpen, result: Result<Opened, Errno>| match result {
            Ok(opened) => reply.opened(FileHandle(opened.handle), fopen_flags(&opened)),
            Err(errno) => reply.error(errno),
        };
        match write && !truncate && self.shared.fs.opening_bytes(ino.0) > OPEN_NOW_BYTES {
            true => self.serve_slow(request, reply, open, send),
            false => self.serve(request, reply, open, send),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let name = bytes(name);
        let create = move |fs: &Fs, caller: &Caller| fs.create(caller, parent.0, &name, mode);
        let send = |fs: &Fs, reply: ReplyCreate, result: Result<(Attr, Opened), Errno>| match result {
            Ok((attr, opened)) => {
                fs.remember(&attr);
                let (attr, flags) = (file_attr(&attr), fopen_flags(&opened));
                reply.created(&TTL, &attr, Generation(0), FileHandle(opened.handle), flags);
            }
            Err(errno) => reply.error(errno),
        };
        self.serve(request, reply, create, send);
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
        self.serve(request, reply, read, send);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Always here: the bytes are in this thread's buffer, and go to the page cache.
        let fs = &self.shared.fs;
        match guarded(|| fs.write(&*fs.file(handle.0)?, offset, data)) {
            Ok(n) => reply.written(n as u32),
            Err(stop) => reply.error(errno(stop)),
        }
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
        let permit = self.shared.permit();
        if permit.is_some() && fs.can_close_now() && fs.closing_bytes(handle.0) <= CLOSE_NOW_BYTES {
            let _reported = guarded(|| {
                fs.release(handle.0);
                Ok(())
            });
        } else {
            let fs = fs.clone();
            self.pool.run(move || fs.release(handle.0));
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
        // The kernel may keep a listing: its own changes and our invalidations drop it.
        let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        reply.opened(FileHandle(self.shared.fs.opendir(ino.0)), flags);
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

    fn readdirplus(&self, request: &Request, _: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let read = move |fs: &Fs, caller: &Caller| fs.read_dir(caller, handle.0, offset, true);
        let send = move |fs: &Fs, mut reply: ReplyDirectoryPlus, result: Result<Page, Errno>| {
            let page = match result {
                Ok(page) => page,
                Err(errno) => return reply.error(errno),
            };
            let mut taken = None;
            for (count, entry) in (1..).zip(page.iter()) {
                // Of "." and ".." the kernel takes only number and kind.
                let mode = u32::from(entry.kind) << 12;
                let dot = Attr { ino: entry.ino, mode, ..Attr::default() };
                let (attr, ttl) = entry.attr.map_or((dot, Duration::ZERO), |attr| (attr, TTL));
                let name = OsStr::from_bytes(entry.name);
                if reply.add(INodeNo(entry.ino), entry.offset, name, &ttl, &file_attr(&attr), Generation(0)) {
                    break;
                }
                if let Some(attr) = &entry.attr {
                    fs.remember(attr);
                }
                taken = Some((count, entry));
            }
            if let Some((count, last)) = taken {
                fs.taken(handle.0, count, last);
            }
            reply.ok();
        };
        self.serve(request, reply, read, send);
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.shared.fs.releasedir(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.serve(request, reply, move |fs, caller| fs.fsync_dir(caller, ino.0, data_only), ok_or_error);
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        let send =
            |_: &Fs, reply: ReplyStatfs, result: Result<delugefs_proto::local_pb::StatFsReply, Errno>| match result {
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
        self.serve(request, reply, move |fs, caller| fs.setxattr(caller, ino.0, &name, &value, how), ok_or_error);
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
        self.serve(request, reply, move |fs, caller| fs.removexattr(caller, ino.0, &name), ok_or_error);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel decides by the attributes (default_permissions), and does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.serve_slow(request, reply, move |fs, _| fs.fallocate(handle.0, offset, length, mode), ok_or_error);
    }

    fn lseek(&self, request: &Request, _: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let send = |_: &Fs, reply: ReplyLseek, result: Result<i64, Errno>| match result {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        };
        self.serve(request, reply, move |fs, caller| fs.lseek(caller, handle.0, offset, whence), send);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _: INodeNo,
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
        self.serve_slow(request, reply, copy, send);
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
