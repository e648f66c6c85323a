//! OPEN and CREATE.

use std::ffi::OsStr;
use std::sync::Arc;

use delugefs_proto::local_pb::Attr;
use fuser::{Errno, FileHandle, Generation, INodeNo, OpenFlags, ReplyCreate, ReplyOpen, Request};

use super::convert::{bytes, fopen_flags, noting, telling};
use super::doubtful::Doubtful;
use super::{Adapter, Done, Shared, Way, guarded};
use crate::call::{Caller, Outcome};
use crate::fs::{Fs, Invalidation, News, Opened, Opening, S_ISGID, S_ISUID};

/// Writing to an existing content up to this size is prepared at once; the worker copies a larger one first.
const OPEN_NOW_BYTES: u64 = 128 << 10;

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
    pub(super) fn serve_open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
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
        let doubtful = move |opened: &Outcome<Opened>| match opened {
            Ok(Opened { keep_pages: true, .. }) => Doubtful::default(),
            Err(_) if !truncate => Doubtful::default(),
            _ => Doubtful::of(Invalidation::Pages(ino.0)),
        };
        let way = if truncate { Way::CHANGING } else { Way::OPENING.slow_if(slow) };
        self.serve_opening((request, way), reply, open, settle, send, (unwanted, doubtful));
    }

    pub(super) fn serve_create(
        &self,
        request: &Request,
        (parent, name): (INodeNo, &OsStr),
        (mode, flags): (u32, i32),
        reply: ReplyCreate,
    ) {
        let name = bytes(name);
        // FreeBSD's kernel does not look again.
        let exclusive = flags & libc::O_EXCL != 0 || !cfg!(target_os = "linux");
        let is_direct = writes_only(mode, flags);
        let doubtful = Doubtful::name(parent.0, &name);
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
            unheard.noted(fs).drop_all(fs);
        };
        let doubtful = move |_: &Outcome<_>| doubtful;
        let settle = |shared: Arc<Shared>, made, done: Done<(News, (Attr, Opened))>| done(&shared.fs, Ok(made));
        self.serve_opening((request, Way::CHANGING), reply, noting(create), settle, send, (unwanted, doubtful));
    }
}
