//! Reading and writing through the descriptors the worker passed. Nothing here sends a request, but for fsync.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use delugefs_proto::errno::FsError;
use delugefs_proto::limits::FILE_MAX_BYTES;
use delugefs_proto::local_pb::{Fsync, Need, reply, request};
use nix::errno::Errno;

use super::{Fs, Invalidation};
use crate::call::{Caller, Outcome, Stop, Unread};
use crate::handles::{Content, FileHandle, Partial, Ticket};
use crate::known::Version;
use crate::os;

/// Times a reader looks again because the content changed under it, before it takes what it finds.
const READ_TRIES: usize = 8;

impl Fs {
    /// Read into the buffer until it is full or the file ends; the number of bytes read.
    pub fn read(&self, caller: &Caller, file: &FileHandle, offset: u64, buf: &mut [u8]) -> Outcome<usize> {
        self.came_with(file);
        let mut fills = false;
        for _ in 0..READ_TRIES {
            self.prepare_read(caller, file)?;
            // From here on whoever has the kernel drop its pages has to do so again.
            let (generation, is_first) = file.inode.fill();
            fills |= is_first;
            if let Some(writer) = &*file.inode.writer.read() {
                if fills {
                    self.known.fill(file.inode.ino, None, || false);
                }
                let before = writer.reached();
                let read = read_full(writer.file(), offset, buf).map_err(|error| failed("read", file, error))?;
                // By that the kernel learns where the end is, which another mount may have moved.
                if read < buf.len() {
                    writer.ends_at(offset + read as u64, before);
                }
                return Ok(read);
            }
            let source = file.source.read();
            if source.generation != generation {
                continue;
            }
            self.give_pages(file, (generation, source.version), std::mem::take(&mut fills));
            match &source.content {
                Content::File(content) => {
                    let content = content.clone();
                    drop(source); // a failing disk may take long
                    let is_tried = matches!(caller.unread.get(), Unread::Failed | Unread::Told);
                    let error = match if is_tried { Err(Errno::EIO.into()) } else { read_full(&content, offset, buf) } {
                        Err(error) if is_eio(&error) => error,
                        read => return read.map_err(|error| failed("read", file, error)),
                    };
                    if !is_tried && caller.unread.replace(Unread::Failed) == Unread::Reopened {
                        return Err(failed("read", file, error));
                    }
                    // Another disk may have it.
                    if !self.reopen_unread(caller, file, offset, buf.len() as u64)? {
                        return Err(failed("read", file, error));
                    }
                }
                Content::Inline(bytes) => {
                    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                    let n = buf.len().min(bytes.len() - start);
                    buf[..n].copy_from_slice(&bytes[start..start + n]);
                    return Ok(n);
                }
                Content::Partial(partial) => {
                    let (partial, ticket) = (partial.clone(), source.ticket);
                    drop(source); // what follows may take long
                    let result = self.read_partial(caller, &partial, ticket, offset, buf);
                    // The worker was restarted, or has given up: the next read begins anew.
                    if matches!(result, Ok(None) | Err(Stop::Failed(_))) {
                        self.drop_partial(file, &partial);
                    }
                    if let Some(read) = result? {
                        return Ok(read);
                    }
                }
                Content::None => {}
            }
        }
        Err(Errno::EIO.into())
    }

    /// The kernel is about to be given pages of this version. Two who opened the file at the same time may have got different
    /// ones: then they are dropped again.
    fn give_pages(&self, file: &FileHandle, (generation, content): (u64, Option<(Version, u64)>), is_first: bool) {
        let is_other = file.inode.gives(content);
        let is_overtaken = || file.inode.generation() != generation;
        let is_mixed = (is_first || is_other) && self.known.fill(file.inode.ino, content, is_overtaken);
        if is_mixed && self.holds_back().is_some() {
            self.invalidate(Invalidation::Content(file.inode.ino));
        }
    }

    /// Read from a content that is still being fetched, after having waited for what is read. `None`: its handle is gone.
    fn read_partial(
        &self,
        caller: &Caller,
        partial: &Partial,
        ticket: Option<Ticket>,
        offset: u64,
        buf: &mut [u8],
    ) -> Outcome<Option<usize>> {
        let end = offset.saturating_add(buf.len() as u64).min(partial.size);
        if offset >= end {
            return Ok(Some(0));
        }
        if !partial.here.lock().covers(offset..end) {
            if !caller.fetches {
                return Err(Stop::Later);
            }
            let Some(Ticket { link, handle }) = ticket else { return Err(Errno::EIO.into()) };
            let need = request::Op::Need(Need { handle, offset, length: end - offset });
            let Some(reply) = self.worker.call_through(link, need) else { return Ok(None) };
            match (reply.errno, reply.body) {
                (0, Some(reply::Body::Ranges(ranges))) => {
                    partial.here.lock().add(ranges.offset..ranges.offset.saturating_add(ranges.length));
                }
                (0, _) => return Err(Errno::EIO.into()),
                // Another reader of this handle has opened a newer version meanwhile, and closed this one.
                (errno, _) if errno == Errno::EBADF as u32 => return Ok(None),
                (errno, _) => return Err(FsError::from_reply(errno, reply.message).into()),
            }
            if !partial.here.lock().covers(offset..end) {
                return Err(Errno::EIO.into());
            }
        }
        let read = read_full(&partial.file, offset, &mut buf[..(end - offset) as usize])?;
        Ok(Some(read))
    }

    /// Forget a partial content, unless somebody has opened another one since.
    fn drop_partial(&self, file: &FileHandle, partial: &Arc<Partial>) {
        let mut source = file.source.write();
        if !matches!(&source.content, Content::Partial(now) if Arc::ptr_eq(now, partial)) {
            return;
        }
        let old = std::mem::take(&mut *source);
        drop(source);
        let ticket = old.ticket;
        drop(old);
        self.close_ticket(ticket);
    }

    /// Whether reading this handle may have to wait for another disk.
    pub fn is_partial(&self, handle: u64) -> bool {
        if self.partials.load(Ordering::Acquire) == 0 {
            return false;
        }
        self.files.get(handle).is_some_and(|file| {
            file.inode.writer.read().is_none() && matches!(file.source.read().content, Content::Partial(_))
        })
    }

    /// Write; fewer bytes than given only if an error stopped it behind the first of them.
    pub fn write(&self, file: &FileHandle, offset: u64, data: &[u8]) -> Outcome<usize> {
        let done =
            self.write_by(file, offset, data, |file, done| file.write_at(&data[done..], offset + done as u64))?;
        reached(file, offset + done as u64);
        Ok(done)
    }

    /// Write behind what others have appended by now, of whom the kernel knows nothing. The number of bytes written, and
    /// whether they may be elsewhere than at this offset, where the kernel takes the end to be. Where it knows that there is more,
    /// the program has said that this is not to be appended (RWF_NOAPPEND).
    pub fn append(&self, file: &FileHandle, offset: u64, data: &[u8]) -> Outcome<(usize, bool)> {
        if file.inode.writer.read().as_ref().is_some_and(|writer| offset < writer.reached()) {
            return Ok((self.write(file, offset, data)?, false));
        }
        let mut is_elsewhere = false;
        let done = self.write_by(file, offset, data, |file, done| {
            let n = os::append(file, &data[done..])?;
            is_elsewhere |= file.metadata().map_or(true, |now| now.len() != offset + (done + n) as u64);
            Ok(n)
        })?;
        if !is_elsewhere {
            reached(file, offset + done as u64);
        }
        Ok((done, is_elsewhere))
    }

    fn write_by(
        &self,
        file: &FileHandle,
        offset: u64,
        data: &[u8],
        mut write: impl FnMut(&File, usize) -> std::io::Result<usize>,
    ) -> Outcome<usize> {
        if !file.writes {
            return Err(Errno::EBADF.into());
        }
        if offset.saturating_add(data.len() as u64) > FILE_MAX_BYTES {
            return Err(Errno::EFBIG.into());
        }
        self.came_with(file);
        let writer = file.inode.writer.read();
        let Some(writer) = &*writer else { return Err(Errno::EBADF.into()) };
        // The kernel drops the times it has when it writes.
        file.inode.told.store(false, Ordering::Release);
        let mut done = 0;
        while done < data.len() {
            match write(writer.to_change(), done) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(failed("write", file, error)),
            }
        }
        Ok(done)
    }

    /// Bring a file to stable storage: its bytes through our descriptor, and the worker's records. When that fails the worker
    /// has to know: nobody tells it, and it would seal what is in memory only.
    pub fn fsync(&self, caller: &Caller, handle: u64, data_only: bool) -> Outcome<()> {
        let file = self.file(handle)?;
        let ino = file.inode.ino;
        let mut q = Fsync { ino, data_only, dir: self.dir_of(ino), ..Fsync::default() };
        let mut synced = Ok(());
        if let Some(writer) = file.inode.in_use() {
            synced = writer.sync(data_only).map_err(|error| failed("sync", &file, error));
            q.writes = true;
            q.sync_failed = writer.is_doubtful();
            let current = self.worker.link();
            q.handle = writer.ticket().filter(|ticket| Some(ticket.link) == current).map_or(0, |t| t.handle);
        }
        // One that has lost its names elsewhere gets one back for what was written, which is to outlast a crash, too. Only of what this mount
        // has taken it is certain that it is none of these: what another mount has renamed another host may have removed since.
        let answer = match self.known.was_removed_here(ino) {
            true if q.sync_failed => Err(Errno::EIO.into()),
            true => Ok(()),
            false => self.ask_fsync(caller, q),
        };
        let answer = match answer {
            Err(Stop::Failed(error)) if error.errno == Errno::EIO && q.writes && !q.sync_failed => {
                self.refused_fsync(caller, &file, error)
            }
            answer => answer,
        };
        match answer {
            // To be told by a thread that may wait.
            Err(Stop::Later) => answer,
            answer => synced.and(answer),
        }
    }

    /// What comes of one that the worker has refused: a worker that was restarted has nothing of a file that had lost its names before, and
    /// takes it for one of another disk.
    fn refused_fsync(&self, caller: &Caller, file: &FileHandle, error: FsError) -> Outcome<()> {
        let ino = file.inode.ino;
        let ticket = file.inode.in_use().and_then(|writer| writer.ticket());
        let is_known = ticket.is_some_and(|ticket| Some(ticket.link) == self.worker.link());
        if is_known {
            return Err(error.into());
        }
        match self.getattr(caller, ino) {
            Ok(attr) if attr.nlink == 0 => {}
            Err(Stop::Later) => return Err(Stop::Later),
            _ => return Err(error.into()),
        }
        // Nothing is to outlast a crash of a file that was removed here.
        if self.known.was_removed_on_disk(ino) {
            return Ok(());
        }
        let why = match self.awaited.is_elsewhere(ino) {
            true => "the disk it is written on is away: what becomes of that shows when that disk is back",
            false => "the diskworker was restarted while it was open: what is written to it is gone when it is closed",
        };
        let message = format!("file {ino:016x} was removed or replaced elsewhere, and {why}; copy it to another file");
        Err(FsError::new(Errno::EIO, message).into())
    }

    /// Bring a directory to stable storage.
    pub fn fsync_dir(&self, caller: &Caller, ino: u64, data_only: bool) -> Outcome<()> {
        match self.known.orphan_attr(ino) {
            Some(_) => Ok(()),
            None => self.ask_fsync(caller, Fsync { ino, data_only, dir: self.dir_of(ino), ..Fsync::default() }),
        }
    }

    fn ask_fsync(&self, caller: &Caller, q: Fsync) -> Outcome<()> {
        self.worker.ask(caller, request::Op::Fsync(q))?.check()?;
        Ok(())
    }

    /// Reserve or punch out space; `mode` as for fallocate(2).
    pub fn fallocate(&self, handle: u64, offset: u64, length: u64, mode: i32) -> Outcome<()> {
        let file = self.file(handle)?;
        if offset.saturating_add(length) > FILE_MAX_BYTES {
            return Err(Errno::EFBIG.into());
        }
        let Some(writer) = file.inode.in_use().filter(|_| file.writes) else { return Err(Errno::EBADF.into()) };
        Ok(os::fallocate(writer.to_change(), offset, length, mode)?)
    }

    /// Find data or a hole; `whence` is SEEK_DATA or SEEK_HOLE.
    pub fn lseek(&self, caller: &Caller, handle: u64, offset: i64, whence: i32) -> Outcome<i64> {
        let file = self.file(handle)?;
        for _ in 0..READ_TRIES {
            self.prepare_read(caller, &file)?;
            if let Some(writer) = &*file.inode.writer.read() {
                // The kernel asks before it has written what was changed through maps: a hole may have been filled so.
                return match writer.may_be_mapped() {
                    true => Ok(os::seek_without_holes(writer.file().metadata()?.len() as i64, offset, whence)?),
                    false => Ok(os::seek_hole_or_data(writer.file(), offset, whence)?),
                };
            }
            let source = file.source.read();
            if source.generation != file.inode.generation() {
                continue;
            }
            // Of what is not here nobody knows the holes.
            let end = match &source.content {
                Content::File(file) => return Ok(os::seek_hole_or_data(file, offset, whence)?),
                Content::Partial(partial) => partial.size as i64,
                Content::Inline(bytes) => bytes.len() as i64,
                Content::None => continue,
            };
            return Ok(os::seek_without_holes(end, offset, whence)?);
        }
        Err(Errno::EIO.into())
    }

    /// Copy between two open files without the bytes passing through here; the number of bytes copied.
    pub fn copy_range(
        &self,
        caller: &Caller,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        length: u64,
    ) -> Outcome<usize> {
        let (from, to) = (self.file(from)?, self.file(to)?);
        if to_offset.saturating_add(length) > FILE_MAX_BYTES {
            return Err(Errno::EFBIG.into());
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        for _ in 0..READ_TRIES {
            self.prepare_read(caller, &from)?;
            let Some(writer) = to.inode.in_use().filter(|_| to.writes) else { return Err(Errno::EBADF.into()) };
            if let Some(source) = from.inode.in_use() {
                return Ok(os::copy_range(source.file(), from_offset, writer.to_change(), to_offset, length)?);
            }
            let source = from.source.read();
            if source.generation != from.inode.generation() {
                continue;
            }
            return match &source.content {
                Content::File(content) => {
                    let content = content.clone();
                    drop(source); // what follows may take long
                    match os::copy_range(&content, from_offset, writer.to_change(), to_offset, length) {
                        // The kernel then reads and writes, and what cannot be read here may come from another disk.
                        Err(Errno::EIO) => Err(os::COPY_BY_HAND.into()),
                        copied => Ok(copied?),
                    }
                }
                Content::Inline(bytes) => {
                    let start = usize::try_from(from_offset).unwrap_or(usize::MAX).min(bytes.len());
                    let n = length.min(bytes.len() - start);
                    writer.to_change().write_all_at(&bytes[start..start + n], to_offset)?;
                    Ok(n)
                }
                // The kernel then reads and writes.
                Content::Partial(_) => Err(os::COPY_BY_HAND.into()),
                Content::None => continue,
            };
        }
        Err(Errno::EIO.into())
    }
}

/// The kernel is being answered that what was written ends here.
fn reached(file: &FileHandle, end: u64) {
    if let Some(writer) = &*file.inode.writer.read() {
        writer.has_reached(end);
    }
}

/// An error of the disk, with a sentence where a person should know of it.
fn failed(doing: &str, file: &FileHandle, error: std::io::Error) -> Stop {
    let mut error = FsError::from(error);
    if error.errno == Errno::EIO {
        error.message = format!("cannot {doing} file {:016x}: the disk may be failing; look at dmesg", file.inode.ino);
    }
    Stop::Failed(error)
}

fn is_eio(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

fn read_full(file: &File, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
