//! Between the kernel's types and ours: attributes, times, flags, and the answers that several requests share.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use delugefs_proto::local_pb::Attr;
use fuser::{
    Errno, FileAttr, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr,
    TimeOrNow,
};

use crate::call::{Caller, Outcome};
use crate::fs::{Fs, News, Opened, Time};

/// How long the kernel may answer from what it was told: until we say otherwise, for we are told of every change.
const TTL: Duration = Duration::from_secs(3600);
/// The same of a name's absence where the kernel cannot be told to drop all names: which ones it was told of as absent nobody
/// here remembers.
const ABSENT_TTL: Duration = Duration::from_secs(1);
/// The same of attributes that the kernel takes in also if it was told since then to drop them, as it does with what LINK and SETATTR
/// give it: so long it can be wrong.
const UNCHECKED_TTL: Duration = Duration::from_secs(1);
/// What programs take as the best size of a read or write, in bytes: each is a request to us.
const BLOCK_BYTES: u32 = 64 << 10;

/// The operation, with what had been heard of others before it.
pub(super) fn noting<T>(operation: impl Fn(&Fs, &Caller) -> Outcome<T>) -> impl Fn(&Fs, &Caller) -> Outcome<(News, T)> {
    move |fs, caller| {
        let since = fs.news();
        Ok((since, operation(fs, caller)?))
    }
}

/// How long the kernel may answer from what an operation found. Of an inode it must have been remembered before.
pub(super) fn ttl(fs: &Fs, since: News) -> Duration {
    if fs.news() == since { TTL } else { Duration::ZERO }
}

/// Attributes as the kernel is to be told them, and how long it may answer from them. The inode must have been remembered before.
pub(super) fn telling(fs: &Fs, (since, attr): (News, Attr)) -> (FileAttr, Duration) {
    let (attr, is_all) = fs.tell(attr);
    (file_attr(&attr), if is_all { ttl(fs, since) } else { Duration::ZERO })
}

/// The same for a name that is absent.
pub(super) fn absent_ttl(fs: &Fs, since: News, knows_epochs: bool) -> Duration {
    ttl(fs, since).min(if knows_epochs { TTL } else { ABSENT_TTL })
}

pub(super) fn bytes(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

pub(super) fn ok_or_error(_: &Fs, reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Of the node that has this name in a directory.
pub(super) fn entry(fs: &Fs, reply: ReplyEntry, (dir, name): (u64, &[u8]), (since, attr): (News, Attr)) {
    fs.remember_as(&attr, dir, name);
    let (attr, ttl) = telling(fs, (since, attr));
    reply.entry(&ttl, &attr, Generation(0));
}

pub(super) fn entry_or_error(
    dir: u64,
    name: Bytes,
) -> impl FnOnce(&Fs, ReplyEntry, Result<(News, Attr), Errno>) + Send + 'static {
    move |fs, reply, result| match result {
        Ok(found) => entry(fs, reply, (dir, &name), found),
        Err(errno) => reply.error(errno),
    }
}

/// The same of one that has got a further name.
pub(super) fn link_or_error(
    dir: u64,
    name: Bytes,
) -> impl FnOnce(&Fs, ReplyEntry, Result<(News, Attr), Errno>) + Send + 'static {
    move |fs, reply, result| match result {
        Ok((since, attr)) => {
            fs.remember_as(&attr, dir, &name);
            let (attr, ttl) = telling(fs, (since, attr));
            reply.entry(&ttl.min(UNCHECKED_TTL), &attr, Generation(0));
        }
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn attr_or_error(fs: &Fs, reply: ReplyAttr, result: Result<(News, Attr), Errno>) {
    match result {
        Ok(found) => {
            let (attr, ttl) = telling(fs, found);
            reply.attr(&ttl, &attr);
        }
        Err(errno) => reply.error(errno),
    }
}

/// The same of what has been changed: the kernel takes it in also if it was told of news since.
pub(super) fn changed_or_error(fs: &Fs, reply: ReplyAttr, result: Result<(News, Attr), Errno>) {
    match result {
        Ok(found) => {
            let (attr, ttl) = telling(fs, found);
            reply.attr(&ttl.min(UNCHECKED_TTL), &attr);
        }
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn xattr_or_error(size: u32) -> impl FnOnce(&Fs, ReplyXattr, Result<Bytes, Errno>) {
    move |_, reply, result| match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn file_type(kind: u8) -> FileType {
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

pub(super) fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
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
pub(super) fn time(time: TimeOrNow) -> Time {
    match time {
        TimeOrNow::Now => Time::Now,
        TimeOrNow::SpecificTime(time) => Time::At(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
            // fuser 0.18 takes the nanoseconds off a negative number of seconds, where they are to be added.
            Err(before) => {
                let (seconds, ns) = (before.duration().as_secs(), before.duration().subsec_nanos());
                let ns = i128::from(ns) - i128::from(seconds) * 1_000_000_000;
                i64::try_from(ns).unwrap_or(i64::MIN)
            }
        }),
    }
}

pub(super) fn fopen_flags(opened: &Opened) -> FopenFlags {
    // Closing needs no request before RELEASE.
    let keep = if opened.keep_pages { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
    let direct = if opened.direct { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() };
    keep | direct | FopenFlags::FOPEN_NOFLUSH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive_both_ways() {
        for ns in [0, 1, -1, 1_234_567_890_123_456_789, -1_200_000_000, i64::MIN] {
            let shown = system_time(ns);
            // As fuser 0.18 hands a time to set from the kernel, whose nanoseconds count upwards.
            let (seconds, rest) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000) as u32);
            let handed = match u64::try_from(seconds) {
                Ok(seconds) => UNIX_EPOCH + Duration::new(seconds, rest),
                Err(_) => UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), rest),
            };
            assert_eq!(time(TimeOrNow::SpecificTime(handed)), Time::At(ns), "{ns}");
            let distance = Duration::from_nanos(ns.unsigned_abs());
            assert_eq!(if ns < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }, shown);
        }
    }

    #[test]
    fn every_kind_has_its_type() {
        let kinds = [
            (0o010_000, FileType::NamedPipe),
            (0o020_000, FileType::CharDevice),
            (0o040_000, FileType::Directory),
            (0o060_000, FileType::BlockDevice),
            (0o100_000, FileType::RegularFile),
            (0o120_000, FileType::Symlink),
            (0o140_000, FileType::Socket),
        ];
        for (mode, kind) in kinds {
            let attr = Attr { ino: 7, mode: mode | 0o4755, rdev: 0x1_2345, ..Attr::default() };
            let given = file_attr(&attr);
            assert_eq!((given.kind, given.perm, given.rdev), (kind, 0o4755, 0x1_2345));
        }
    }
}
