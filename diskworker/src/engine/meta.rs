//! Operations on names and attributes, as a session asks for them.

use bytes::Bytes;
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb::{self as pb, Attr};
use delugefs_proto::record::{Data, Name, NameError, Perm};
use nix::errno::Errno;

use super::room::is_full;
use super::{Core, Engine, SessionId, asker};
use crate::content::Stamp;
use crate::namespace::{Edit, Located, Making, Node, Touched, is_made_with};

/// The attributes an operation answers with.
#[derive(Default)]
pub struct Answer {
    /// The change counter.
    pub seq: u64,
    /// The node.
    pub node: Option<Attr>,
    /// The directory of the first name.
    pub dir: Option<Attr>,
    /// The directory of the second name.
    pub dir2: Option<Attr>,
    /// The node that moved.
    pub moved: Option<Attr>,
    /// The file is, or was, open for writing by another session too.
    pub shared: bool,
    /// It is now, of a file that was opened to be read.
    pub written: bool,
}

/// A name from a request.
pub(super) fn name(bytes: &Bytes) -> FsResult<Name> {
    Name::new(bytes).map_err(|error| match error {
        NameError::TooLong => Errno::ENAMETOOLONG.into(),
        NameError::Invalid => Errno::EINVAL.into(),
    })
}

pub(super) fn perm(mode: u32, uid: u32, gid: u32) -> Perm {
    Perm { mode: (mode & 0o7777) as u16, uid, gid }
}

/// The inode number a frontend proposes, or one of our own.
pub(super) fn proposed(ino: u64) -> Ino {
    let ino = Ino(ino);
    if ino.is_storable() && ino.0 >= Ino::FIRST_FREE { ino } else { Ino::random() }
}

/// Whether a node is the one that was to be made, or linked, with this number.
fn numbered(ino: Ino) -> impl FnOnce(&Node) -> bool {
    move |node| node.ino == ino
}

/// See [`Engine::renamed_before`].
enum Before {
    /// It was carried out; the answer.
    Done(Box<Answer>),
    /// It was not; the name that what is to be moved has.
    Not(Name),
}

impl Engine {
    /// Run a change under the lock, tell the other sessions, and see to the commit. Not for who has gone meanwhile.
    pub(super) fn change<T>(
        &self,
        session: Option<SessionId>,
        change: impl FnOnce(&mut Core) -> FsResult<T>,
    ) -> FsResult<T> {
        let change = |core: &mut Core| {
            asker::check_asked()?;
            change(core)
        };
        self.change_and_tell(change, |_| session)
    }

    /// The same for what is done on behalf of a session when a file is sealed: that it has written it is no news to it, but a
    /// name that this makes is one, as of a version that conflicts.
    pub(super) fn change_content<T>(
        &self,
        session: Option<SessionId>,
        change: impl FnOnce(&mut Core) -> FsResult<T>,
    ) -> FsResult<T> {
        self.change_and_tell(change, |touched| session.filter(|_| !touched.has_names()))
    }

    fn change_and_tell<T>(
        &self,
        change: impl FnOnce(&mut Core) -> FsResult<T>,
        by: impl FnOnce(&Touched) -> Option<SessionId>,
    ) -> FsResult<T> {
        let mut core = self.core();
        let result = change(&mut core);
        core.show_written();
        core.renew_bases();
        self.note_met(&mut core);
        let touched = core.ns.take_touched();
        let session = by(&touched);
        if !touched.is_empty() && self.events.has_others(session) {
            self.events.send(session, core.ns.seq(), &touched.into_changed());
        }
        let pending = core.ns.pending_len();
        drop(core);
        self.commits.note(pending);
        result
    }

    fn answer(&self, core: &mut Core, node: Option<&Node>, dir: Option<Ino>) -> Answer {
        Answer {
            seq: core.ns.seq(),
            node: node.map(|node| core.attr(&self.store, node)),
            dir: dir.and_then(|dir| core.dir_attr(dir)),
            ..Answer::default()
        }
    }

    /// See `local.proto`, as for all that follow.
    pub fn lookup(&self, q: &pb::Lookup) -> FsResult<Answer> {
        let name = name(&q.name)?;
        let mut core = self.core();
        let node = core.ns.lookup(Ino(q.dir), &name)?;
        Ok(self.answer(&mut core, Some(&node), None))
    }

    /// GetAttr.
    pub fn get_attr(&self, q: &pb::GetAttr) -> FsResult<Answer> {
        let mut core = self.core();
        let node = core.ns.node_to_read(Ino(q.ino), Ino(q.dir))?;
        Ok(self.answer(&mut core, Some(&node), None))
    }

    /// ReadDir.
    pub fn read_dir(&self, q: &pb::ReadDir) -> FsResult<(Answer, pb::Listing)> {
        let after = if q.after.is_empty() { Name::header() } else { name(&q.after)? };
        let limit = q.limit.clamp(1, delugefs_proto::limits::READDIR_MAX_ENTRIES) as usize;
        let mut core = self.core();
        let page = core.ns.list(Ino(q.dir), &after, limit)?;
        let entry = |(name, node): (Name, Node)| pb::Entry {
            name: Bytes::copy_from_slice(name.as_bytes()),
            attr: Some(core.attr(&self.store, &node)),
        };
        let entries = page.entries.into_iter().map(entry).collect();
        let parent = core.ns.parent(Ino(q.dir))?.0;
        let answer = self.answer(&mut core, None, Some(Ino(q.dir)));
        Ok((answer, pb::Listing { entries, more: page.more, parent }))
    }

    /// Mknod: every kind of node but directories and links.
    pub fn mknod(&self, session: SessionId, retry: bool, q: &pb::Mknod) -> FsResult<Answer> {
        let data = match q.mode & 0o170000 {
            0 | 0o100000 => Data::Empty,
            0o010000 => Data::Fifo,
            0o140000 => Data::Socket,
            0o020000 => Data::CharDevice(q.rdev),
            0o060000 => Data::BlockDevice(q.rdev),
            _ => return Err(Errno::EINVAL.into()),
        };
        let ino = proposed(q.ino);
        self.make(session, retry, (q.dir, &q.name), numbered(ino), |core, dir, name| {
            let making = Making { dir, name, perm: perm(q.mode, q.uid, q.gid) };
            core.check_unstaged(ino)?;
            core.ns.make_file(&making, ino, data.clone(), None)
        })
    }

    /// Symlink.
    pub fn symlink(&self, session: SessionId, retry: bool, q: &pb::Symlink) -> FsResult<Answer> {
        let ino = proposed(q.ino);
        self.make(session, retry, (q.dir, &q.name), numbered(ino), |core, dir, name| {
            let making = Making { dir, name, perm: perm(0o777, q.uid, q.gid) };
            core.check_unstaged(ino)?;
            core.ns.make_file(&making, ino, Data::Symlink(q.target.to_vec().into()), None)
        })
    }

    /// Mkdir.
    pub fn mkdir(&self, session: SessionId, retry: bool, q: &pb::Mkdir) -> FsResult<Answer> {
        let is_ours = |node: &Node| is_made_with(node, q.token);
        self.make(session, retry, (q.dir, &q.name), is_ours, |core, dir, name| {
            core.ns.make_dir(&Making { dir, name, perm: perm(q.mode, q.uid, q.gid) }, q.token)
        })
    }

    /// Link.
    pub fn link(&self, session: SessionId, retry: bool, q: &pb::Link) -> FsResult<Answer> {
        self.check_writable()?;
        self.complete_new(Ino(q.ino))?;
        self.make(session, retry, (q.dir, &q.name), numbered(Ino(q.ino)), |core, dir, name| {
            core.ns.link(Ino(q.ino), Ino(q.ino_dir), dir, name)
        })
    }

    /// What all makers share. A request sent again that finds its own work done is answered as if it did it now.
    fn make(
        &self,
        session: SessionId,
        retry: bool,
        (dir, raw_name): (u64, &Bytes),
        is_ours: impl FnOnce(&Node) -> bool,
        make: impl FnOnce(&mut Core, Ino, &Name) -> FsResult<Node>,
    ) -> FsResult<Answer> {
        self.check_creatable()?;
        let (dir, name) = (Ino(dir), name(raw_name)?);
        self.change(Some(session), |core| {
            let node = match make(core, dir, &name) {
                Err(error) if retry && error.errno == Errno::EEXIST => {
                    let node = core.ns.lookup(dir, &name)?;
                    if is_ours(&node) { node } else { return Err(error) }
                }
                other => other?,
            };
            Ok(self.answer(core, Some(&node), Some(dir)))
        })
    }

    /// Unlink.
    pub fn unlink(&self, session: SessionId, retry: bool, q: &pb::Unlink) -> FsResult<Answer> {
        self.remove(session, retry, (q.dir, &q.name, q.expect_ino), |core, dir, name| {
            let node = core.ns.unlink(dir, name)?;
            let answer = self.answer(core, Some(&node), Some(dir));
            self.forget_if_gone(core, &node);
            Ok(answer)
        })
    }

    /// Rmdir.
    pub fn rmdir(&self, session: SessionId, retry: bool, q: &pb::Rmdir) -> FsResult<Answer> {
        self.remove(session, retry, (q.dir, &q.name, q.expect_ino), |core, dir, name| {
            let node = core.ns.rmdir(dir, name)?;
            Ok(self.answer(core, Some(&node), Some(dir)))
        })
    }

    /// What all removals share. One sent again that does not find what it is about was carried out before: what has the name
    /// by now is somebody else's.
    fn remove(
        &self,
        session: SessionId,
        retry: bool,
        (dir, raw_name, expect): (u64, &Bytes, u64),
        remove: impl Fn(&mut Core, Ino, &Name) -> FsResult<Answer>,
    ) -> FsResult<Answer> {
        self.check_removable()?;
        let (dir, name) = (Ino(dir), name(raw_name)?);
        let attempt = || {
            self.change(Some(session), |core| {
                let now = match retry && expect != 0 {
                    true => core.ns.shown_as(dir, &name, Ino(expect))?,
                    false => Some(name.clone()),
                };
                match now.ok_or_else(|| Errno::ENOENT.into()).and_then(|name| remove(core, dir, &name)) {
                    Err(error) if retry && error.errno == Errno::ENOENT => Ok(self.answer(core, None, Some(dir))),
                    other => other,
                }
            })
        };
        match self.with_room(attempt) {
            // What is in the log takes the last room there is: a commit empties it.
            Err(error) if is_full(error.errno) && self.commit().is_ok() => attempt(),
            done => done,
        }
    }

    /// Rename.
    pub fn rename(&self, session: SessionId, retry: bool, q: &pb::Rename) -> FsResult<Answer> {
        self.check_writable()?;
        let (from, to) = (name(&q.name)?, name(&q.name2)?);
        let (dir, dir2) = (Ino(q.dir), Ino(q.dir2));
        if q.no_replace && q.exchange {
            return Err(Errno::EINVAL.into());
        }
        self.complete((dir, &from), (dir2, &to), q.exchange)?;
        self.change(Some(session), |core| {
            let from = match retry && q.expect_ino != 0 {
                true => match self.renamed_before(core, (dir, &from), (dir2, &to), Ino(q.expect_ino))? {
                    Before::Done(answer) => return Ok(*answer),
                    Before::Not(from) => from,
                },
                false => from,
            };
            let renamed = core.ns.rename((dir, &from), (dir2, &to), q.no_replace, q.exchange)?;
            let mut answer = self.answer(core, renamed.other.as_ref(), Some(dir));
            answer.dir2 = core.dir_attr(dir2);
            answer.moved = Some(core.attr(&self.store, &renamed.moved));
            if let Some(other) = &renamed.other {
                self.forget_if_gone(core, other);
            }
            for node in [Some(&renamed.moved), renamed.other.as_ref()].into_iter().flatten() {
                if let Some(staged) = core.staged.get_mut(node.ino) {
                    staged.dir = node.dir;
                }
            }
            Ok(answer)
        })
    }

    /// What has come of a rename that is sent again: what it moves is at the second name, or at the first one still. Either may
    /// have become a conflict since. Anything else there is none of what was to be moved.
    fn renamed_before(&self, core: &mut Core, from: (Ino, &Name), to: (Ino, &Name), expect: Ino) -> FsResult<Before> {
        if let Some(name) = core.ns.shown_as(from.0, from.1, expect)? {
            return Ok(Before::Not(name));
        }
        let name = core.ns.shown_as(to.0, to.1, expect)?.ok_or(Errno::ENOENT)?;
        let mut answer = self.answer(core, None, Some(from.0));
        answer.dir2 = core.dir_attr(to.0);
        if name == *to.1 {
            let moved = core.ns.lookup(to.0, to.1)?;
            answer.moved = Some(core.attr(&self.store, &moved));
        }
        Ok(Before::Done(answer.into()))
    }

    /// The last name of a file is gone: what was staged of it belongs to its open descriptors alone.
    fn forget_if_gone(&self, core: &mut Core, node: &Node) {
        if node.nlink > 0 || core.staged.get(node.ino).is_none() {
            return;
        }
        // What was recorded of it is older than what was written.
        core.ns.forget_departed(node.ino);
        // A file that is being hashed stays; the sealer finds the name gone and removes it.
        if core.staged.is_idle(node.ino) {
            core.staged.remove(node.ino);
            if let Err(error) = self.store.remove_staged(node.ino) {
                tracing::warn!("cannot remove staged file {}: {error}", node.ino);
            }
        }
    }

    /// SetAttr without a size.
    pub(super) fn set_attr_only(&self, session: SessionId, q: &pb::SetAttr) -> FsResult<Answer> {
        self.check_writable()?;
        self.change(Some(session), |core| {
            let at = core.ns.locate(Ino(q.ino), Ino(q.dir))?;
            let now = crate::namespace::now_ns();
            let time = |value: Option<i64>, is_now: bool| if is_now { Some(now) } else { value };
            let edit = Edit {
                mode: q.mode.map(|mode| (mode & 0o7777) as u16),
                uid: q.uid,
                gid: q.gid,
                mtime_ns: time(q.mtime, q.mtime_now),
                atime_ns: time(q.atime, q.atime_now),
            };
            let node = core.ns.edit(at, &edit)?;
            if let Some(mtime_ns) = edit.mtime_ns
                && let Some(staged) = core.staged.get_mut(node.ino)
            {
                staged.opened += 1; // a seal under way would record the time it has seen
                let made = staged.made.filter(Stamp::tells);
                let is_written = |now: &Stamp| made.is_none_or(|made| !made.is_same(now));
                self.store.set_staged_mtime(node.ino, mtime_ns, is_written)?;
            }
            Ok(self.answer(core, Some(&node), None))
        })
    }

    fn with_node<T>(&self, ino: u64, dir: u64, f: impl FnOnce(&mut Core, &Located) -> FsResult<T>) -> FsResult<T> {
        let mut core = self.core();
        let at = core.ns.locate(Ino(ino), Ino(dir))?;
        f(&mut core, &at)
    }

    /// ReadLink.
    pub fn read_link(&self, q: &pb::ReadLink) -> FsResult<Bytes> {
        self.with_node(q.ino, q.dir, |core, at| Ok(core.ns.read_link(at)?.into_vec().into()))
    }

    /// ListXattr.
    pub fn list_xattr(&self, q: &pb::ListXattr) -> FsResult<Bytes> {
        self.with_node(q.ino, q.dir, |core, at| core.ns.list_xattr(at))
    }

    /// GetXattr.
    pub fn get_xattr(&self, q: &pb::GetXattr) -> FsResult<Bytes> {
        self.with_node(q.ino, q.dir, |core, at| core.ns.get_xattr(at, &q.name))
    }

    /// SetXattr.
    pub fn set_xattr(&self, session: SessionId, retry: bool, q: &pb::SetXattr) -> FsResult<Answer> {
        self.check_writable()?;
        self.change(Some(session), |core| {
            let at = core.ns.locate(Ino(q.ino), Ino(q.dir))?;
            let node = match core.ns.set_xattr(at.clone(), &q.name, q.value.clone(), q.create, q.replace) {
                // It was carried out before if the value is ours. Any other is one that somebody else was told he has made.
                Err(error) if retry && error.errno == Errno::EEXIST => {
                    match core.ns.get_xattr(&at, &q.name)? == q.value {
                        true => core.ns.node(&at)?,
                        false => return Err(error),
                    }
                }
                other => other?,
            };
            Ok(self.answer(core, Some(&node), None))
        })
    }

    /// RemoveXattr.
    pub fn remove_xattr(&self, session: SessionId, retry: bool, q: &pb::RemoveXattr) -> FsResult<Answer> {
        self.check_removable()?;
        self.change(Some(session), |core| {
            let at = core.ns.locate(Ino(q.ino), Ino(q.dir))?;
            if retry && let Some(value) = &q.value {
                match core.ns.get_xattr(&at, &q.name) {
                    // It was carried out before, and somebody was told since that this one is set.
                    Ok(now) if now != *value => {
                        let node = core.ns.node(&at)?;
                        return Ok(self.answer(core, Some(&node), None));
                    }
                    _ => {}
                }
            }
            let node = match core.ns.remove_xattr(at.clone(), &q.name) {
                Err(error) if retry && error.errno == crate::os::ENOATTR => core.ns.node(&at)?,
                other => other?,
            };
            Ok(self.answer(core, Some(&node), None))
        })
    }
}
