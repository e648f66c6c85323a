//! READDIR and READDIRPLUS.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use delugefs_proto::local_pb::Attr;
use fuser::{Errno, FileHandle, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, Request};

use super::Adapter;
use super::convert::{file_attr, file_type, noting, telling};
use crate::call::Caller;
use crate::fs::{Fs, News, Page};

impl Adapter {
    pub(super) fn serve_listing(&self, request: &Request, (handle, offset): (FileHandle, u64), reply: ReplyDirectory) {
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

    pub(super) fn serve_listing_with_attributes(
        &self,
        request: &Request,
        ino: INodeNo,
        (handle, offset): (FileHandle, u64),
        reply: ReplyDirectoryPlus,
    ) {
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
}
