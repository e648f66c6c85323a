//! Changing attributes. The size of a file that is being written here changes on its descriptor; everything else goes
//! to the worker, unless the inode has no name any more: then nobody else will ever see it.

use std::time::{SystemTime, UNIX_EPOCH};

use delugefs_proto::limits::FILE_MAX_BYTES;
use delugefs_proto::local_pb::{Attr, SetAttr, request};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;

use super::open::node_of;
use super::{Fs, S_IFMT, is_gone, with_stat};
use crate::call::{Caller, Outcome, Stop};
use crate::known::Version;

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Nanoseconds since 1970.
    At(i64),
    /// The time of the call.
    Now,
}

/// The attributes to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Permission bits; the kind is left as it is.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of the content, in bytes.
    pub size: Option<u64>,
    /// Last change of the content.
    pub mtime: Option<Time>,
    /// Last access.
    pub atime: Option<Time>,
}

impl Fs {
    /// Change attributes; what they are then.
    pub fn setattr(&self, caller: &Caller, ino: u64, change: &Change) -> Outcome<Attr> {
        if change.size.is_some_and(|size| size > FILE_MAX_BYTES) {
            return Err(Errno::EFBIG.into());
        }
        if self.known.orphan_attr(ino).is_some() {
            return self.setattr_orphan(ino, change);
        }
        let mut rest = *change;
        if let Some(size) = change.size
            && (caller.resized.get() || self.resize_staged(ino, size)?)
        {
            caller.resized.set(true);
            rest.size = None;
            if rest == Change::default() {
                return self.getattr(caller, ino);
            }
        }
        if rest.size.is_some_and(|size| size > 0) {
            self.is_not_behind(caller, ino)?;
        }
        let (news, asked) = (self.news(), self.awaited.since());
        match self.ask_setattr(caller, ino, &rest) {
            // One disk has said so, and another one is asked by now.
            Err(Stop::Failed(error)) if is_gone(error.errno) && self.awaited.since() != asked => {
                self.setattr(caller, ino, &rest)
            }
            Err(Stop::Failed(error)) if is_gone(error.errno) && self.is_unheard(ino, news) => {
                Err(if self.open.get(ino).is_some() { Self::unheard_of(ino) } else { Stop::Failed(error) })
            }
            Err(Stop::Failed(error)) if is_gone(error.errno) => match self.bereave(ino) {
                Some(_) => self.setattr_orphan(ino, &rest),
                None => Err(self.to_be_looked_up(ino, Stop::Failed(error))),
            },
            other => other,
        }
    }

    /// Set the size on the descriptor, if the inode is being written here.
    fn resize_staged(&self, ino: u64, size: u64) -> Outcome<bool> {
        let Some(inode) = self.open.get(ino) else { return Ok(false) };
        let Some(writer) = inode.in_use() else { return Ok(false) };
        writer.to_change().set_len(size)?;
        writer.is_cut(size);
        Ok(true)
    }

    fn ask_setattr(&self, caller: &Caller, ino: u64, change: &Change) -> Outcome<Attr> {
        let since = self.moment();
        let watch = self.cache.begin_fetch(ino);
        let before = self.cache.attr(ino);
        let kind = before.map_or(0, |attr| attr.mode & S_IFMT);
        let (mtime, mtime_now) = split(change.mtime);
        let (atime, atime_now) = split(change.atime);
        let op = request::Op::SetAttr(SetAttr {
            ino,
            dir: self.dir_of(ino),
            mode: change.mode.map(|mode| if kind == 0 { mode } else { mode & !S_IFMT | kind }),
            uid: change.uid,
            gid: change.gid,
            size: change.size,
            mtime,
            mtime_now,
            atime,
            atime_now,
        });
        let answer = self.worker.change(caller, op).and_then(|answer| Ok((node_of(&answer)?, answer)));
        let (node, answer) = answer.inspect_err(|_| self.cache.drop_fetch(&watch))?;
        if let Some(before) = before.filter(|before| is_same_content(before, &node, change)) {
            // An event about what came in between may come after this: it is told by its number.
            self.known.same_content(ino, Version::of(&before), Version::of(&node), answer.stamp());
        }
        // Or it was here already.
        if !self.cache.finish_quiet(&watch) {
            self.known.doubt_pages(ino);
        }
        self.cache.apply(answer.stamp(), |patch| {
            match change.size.is_some() || change.mtime.is_some() {
                true => patch.changed(node, change.size.is_some()),
                false => patch.node(Some(node)),
            }
            patch.node(answer.reply.dir);
        });
        if change.size == Some(0) {
            self.awaited.forget(ino);
        }
        if change.size.is_some() {
            // The kernel cuts its pages itself; what is open here has the old content.
            if let Some(inode) = self.open.get(ino) {
                inode.content_changed();
            }
        }
        self.current(caller, since, node)
    }

    /// The same for an inode without a name.
    fn setattr_orphan(&self, ino: u64, change: &Change) -> Outcome<Attr> {
        let inode = self.open.get(ino);
        let slot = inode.as_ref().map(|inode| inode.writer.read());
        let writer = slot.as_ref().and_then(|slot| slot.as_ref());
        if let Some(size) = change.size {
            // Who has it open to be written has it staged. This one came by a name, which is another file's by now.
            let writer = writer.ok_or(Errno::ESTALE)?;
            writer.to_change().set_len(size)?;
            writer.is_cut(size);
        }
        let now = now_ns();
        let at = |time: Time| match time {
            Time::At(ns) => ns,
            Time::Now => now,
        };
        if let (Some(writer), Some(mtime)) = (writer, change.mtime) {
            let mtime = at(mtime);
            let spec = TimeSpec::new(mtime.div_euclid(1_000_000_000), mtime.rem_euclid(1_000_000_000));
            nix::sys::stat::futimens(writer.file(), &TimeSpec::UTIME_OMIT, &spec)?;
        }
        let attr = self.known.amend_orphan(ino, |attr| {
            if let Some(mode) = change.mode {
                attr.mode = attr.mode & S_IFMT | mode & !S_IFMT;
            }
            attr.uid = change.uid.unwrap_or(attr.uid);
            attr.gid = change.gid.unwrap_or(attr.gid);
            attr.mtime = change.mtime.map_or(attr.mtime, at);
            attr.atime = change.atime.map_or(attr.atime, at);
            attr.ctime = now;
            if let Some(writer) = writer {
                *attr = with_stat(*attr, writer);
            }
        });
        Ok(attr.ok_or(Errno::ESTALE)?)
    }
}

/// Whether an inode we changed so may have the content it had before, but for what was cut off or added.
fn is_same_content(before: &Attr, after: &Attr, change: &Change) -> bool {
    let is_same = |ours: bool, same: bool| ours || same;
    is_same(change.size.is_some(), before.size == after.size)
        && is_same(change.size.is_some() || change.mtime.is_some(), before.mtime == after.mtime)
}

fn split(time: Option<Time>) -> (Option<i64>, bool) {
    match time {
        None => (None, false),
        Some(Time::At(ns)) => (Some(ns), false),
        Some(Time::Now) => (None, true),
    }
}

fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}
