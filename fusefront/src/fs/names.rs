//! What changes names: making nodes, linking, removing, renaming. One request each; the answer's attributes go into
//! the cache, so that nothing needs to be asked for afterwards.

use bytes::Bytes;
use delugefs_proto::limits::TARGET_MAX_BYTES;
use delugefs_proto::local_pb::{Attr, Link, Mkdir, Mknod, Rename, Rmdir, Symlink, Unlink, request};
use nix::errno::Errno;

use super::lookup::check_name;
use super::{Fs, S_IFDIR, S_IFMT, S_ISGID, required};
use crate::cache::{Found, Patch};
use crate::call::{Caller, Outcome, Stop};
use crate::worker::Answer;

/// A node to be made, other than a regular file that is opened at once ([`Fs::create`]).
#[derive(Clone, Debug)]
pub enum Making {
    /// A file, a pipe, a socket or a device.
    Node {
        /// With the S_IFMT bits.
        mode: u32,
        /// Of a device.
        rdev: u64,
    },
    /// A directory.
    Dir {
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link to this target.
    Symlink(Bytes),
}

/// Ways to rename.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameHow {
    /// Fail if the new name is taken.
    pub no_replace: bool,
    /// Swap the two names.
    pub exchange: bool,
}

impl Fs {
    /// Make a node.
    pub fn make(&self, caller: &Caller, dir: u64, name: &Bytes, making: &Making) -> Outcome<Attr> {
        check_name(name)?;
        let (gid, inherits) = self.group_for(caller, dir)?;
        let (uid, ino, name) = (caller.uid, caller.proposal(), name.clone());
        let op = match making {
            &Making::Node { mode, rdev } => {
                request::Op::Mknod(Mknod { dir, name: name.clone(), mode, uid, gid, rdev, ino })
            }
            &Making::Dir { mode } => {
                let mode = mode & !S_IFMT | S_IFDIR | if inherits { S_ISGID } else { 0 };
                request::Op::Mkdir(Mkdir { dir, name: name.clone(), mode, uid, gid, token: ino })
            }
            Making::Symlink(target) if target.len() > TARGET_MAX_BYTES => return Err(Errno::ENAMETOOLONG.into()),
            Making::Symlink(target) => {
                request::Op::Symlink(Symlink { dir, name: name.clone(), target: target.clone(), uid, gid, ino })
            }
        };
        let answer = self.worker.change(caller, op)?;
        self.made(&answer, dir, &name)
    }

    /// Take in the answer to a request that made a node.
    pub(super) fn made(&self, answer: &Answer, dir: u64, name: &[u8]) -> Outcome<Attr> {
        let node = required(answer.reply.node)?;
        self.cache.apply(answer.stamp(), |patch| {
            patch.node(answer.reply.dir);
            patch.set(dir, name, node);
            if node.mode & S_IFMT == S_IFDIR && !answer.retried {
                patch.new_dir(node.ino, dir);
            }
        });
        Ok(node)
    }

    /// The group of a new node in this directory, and whether it comes from there.
    pub(super) fn group_for(&self, caller: &Caller, dir: u64) -> Outcome<(u32, bool)> {
        // On the BSDs a node always takes its directory's group; on Linux if the directory says so.
        let parent = self.getattr(caller, dir)?;
        let inherits = parent.mode & S_ISGID != 0;
        let takes = inherits || cfg!(target_os = "freebsd");
        Ok((if takes { parent.gid } else { caller.gid }, inherits))
    }

    /// Give a node another name.
    pub fn link(&self, caller: &Caller, ino: u64, dir: u64, name: &Bytes) -> Outcome<Attr> {
        check_name(name)?;
        if self.known.orphan_attr(ino).is_some() {
            return Err(self.to_be_looked_up(ino, Errno::ESTALE.into()));
        }
        if self.cache.attr(ino).is_some_and(|attr| attr.mode & S_IFMT == S_IFDIR) {
            return Err(Errno::EPERM.into());
        }
        let op = request::Op::Link(Link { ino, ino_dir: self.dir_of(ino), dir, name: name.clone() });
        let since = self.moment();
        let answer = self.worker.change(caller, op).map_err(|stop| match stop.errno() {
            Errno::ESTALE => self.to_be_looked_up(ino, stop),
            // It is the directory that is not there.
            _ => stop,
        })?;
        let attr = self.made(&answer, dir, name)?;
        self.current(caller, since, attr)
    }

    /// Remove a name of something other than a directory.
    pub fn unlink(&self, caller: &Caller, dir: u64, name: &Bytes) -> Outcome<()> {
        check_name(name)?;
        let expect_ino = self.to_be_removed(caller, dir, name)?;
        let op = request::Op::Unlink(Unlink { dir, name: name.clone(), expect_ino });
        let answer = self.removed(caller, self.worker.change_subject(caller, op)?, expect_ino)?;
        self.lost_name(answer.reply.node, dir, name);
        self.cache.apply(answer.stamp(), |patch| {
            patch.node(answer.reply.dir);
            if answer.reply.node.is_none() {
                patch.doubt(dir, name);
            }
            patch.unset(dir, name);
            stays_or_goes(patch, answer.reply.node);
        });
        Ok(())
    }

    /// Remove an empty directory.
    pub fn rmdir(&self, caller: &Caller, dir: u64, name: &Bytes) -> Outcome<()> {
        check_name(name)?;
        let known = match self.cache.lookup(dir, name) {
            Found::Node(attr) => Some(attr),
            _ => None,
        };
        let expect_ino = self.to_be_removed(caller, dir, name)?;
        let op = request::Op::Rmdir(Rmdir { dir, name: name.clone(), expect_ino });
        let answer = self.removed(caller, self.worker.change_subject(caller, op)?, expect_ino)?;
        let gone = answer.reply.node.or(known).map(|attr| Attr { nlink: 0, ..attr });
        self.lost_name(gone, dir, name);
        self.cache.apply(answer.stamp(), |patch| {
            patch.node(answer.reply.dir);
            patch.unset(dir, name);
            if let Some(gone) = gone {
                patch.gone(gone.ino);
            }
        });
        Ok(())
    }

    /// An answer to a removal, unless it says of a node that it is not there and comes from a disk that may not have heard of it. What
    /// was not removed would come back with the disk that has it.
    fn removed(&self, caller: &Caller, answer: Answer, ino: u64) -> Outcome<Answer> {
        let was_absent = answer.retried && answer.reply.node.is_none();
        if was_absent && self.awaited.is_another(&caller.subject_disk.borrow(), answer.link) {
            return Err(Self::unheard_of(ino));
        }
        Ok(answer)
    }

    /// The subject is about to be looked for.
    fn note_disk(&self, caller: &Caller) {
        *caller.subject_disk.borrow_mut() = self.awaited.disk(|| self.worker.newest_link());
        caller.subject_link.set(self.worker.newest_link());
    }

    /// The inode a removal is about, as it was when it was asked for; 0 when there is none. The kernel has just looked the name
    /// up, so that it is nearly always in the cache. Found once it stays: what a later attempt finds may have come since.
    fn to_be_removed(&self, caller: &Caller, dir: u64, name: &[u8]) -> Outcome<u64> {
        if caller.subject.get() == 0 && !caller.sent.get() {
            self.note_disk(caller);
            let found = match self.named(dir, name) {
                None => self.lookup_one(caller, dir, name)?.map(|attr| attr.ino),
                known => known,
            };
            caller.subject.set(found.unwrap_or(0));
        }
        Ok(caller.subject.get())
    }

    /// Give a node another name instead of the one it has.
    pub fn rename(
        &self,
        caller: &Caller,
        (dir, name): (u64, &Bytes),
        (dir2, name2): (u64, &Bytes),
        how: RenameHow,
    ) -> Outcome<()> {
        check_name(name)?;
        check_name(name2)?;
        // Once a request went out, the names may say what has come of it, and not what was asked for; nor do they after a wait.
        if caller.subject.get() == 0 {
            self.note_disk(caller);
            // Both are nearly always in the cache, since the kernel has just looked them up.
            let moving = self.lookup(caller, dir, name)?.ok_or(Errno::ENOENT)?.ino;
            if !how.no_replace && self.lookup(caller, dir2, name2)?.is_some_and(|there| there.ino == moving) {
                // Two names of one inode: POSIX wants nothing to happen.
                return Ok(());
            }
            caller.subject.set(moving);
        }
        let expect_ino = caller.subject.get();
        let op = request::Op::Rename(Rename {
            dir,
            name: name.clone(),
            dir2,
            name2: name2.clone(),
            no_replace: how.no_replace,
            exchange: how.exchange,
            expect_ino,
        });
        let is_another = || self.awaited.is_another(&caller.subject_disk.borrow(), self.worker.newest_link());
        let answer = self.worker.change_subject(caller, op).map_err(|stop| match stop {
            Stop::Failed(error) if error.errno == Errno::ENOENT && is_another() => Self::unheard_of(expect_ino),
            other => other,
        })?;
        let (node, moved) = (answer.reply.node, answer.reply.moved);
        if !how.exchange {
            self.lost_name(node, dir2, name2);
        }
        if self.notes_names() {
            // As the kernel does it, when it hears that it was done.
            self.drop_name(self.known.renamed(expect_ino, (dir, name), (dir2, name2)));
            if let Some(other) = node.filter(|_| how.exchange) {
                self.drop_name(self.known.renamed(other.ino, (dir2, name2), (dir, name)));
            }
        }
        for attr in [moved, node].into_iter().flatten() {
            self.known.moved(&attr);
        }
        self.cache.apply(answer.stamp(), |patch| {
            patch.node(answer.reply.dir);
            patch.node(answer.reply.dir2);
            let Some(moved) = moved else {
                patch.forget_dir(dir);
                return patch.forget_dir(dir2);
            };

            match (how.exchange, node) {
                (true, Some(node)) => {
                    patch.set(dir, name, node);
                    patch.moved(node.ino, dir);
                }
                // Exchanged by the first sending: what was under the second name is under the first one now.
                (true, None) => patch.forget_dir(dir),
                _ => {
                    if node.is_none() {
                        patch.doubt(dir2, name2);
                    }
                    patch.unset(dir, name);
                    stays_or_goes(patch, node);
                }
            }
            patch.set(dir2, name2, moved);
            patch.moved(moved.ino, dir2);
        });
        Ok(())
    }

    /// A node has lost a name; without any it lives on for those who have it open.
    fn lost_name(&self, node: Option<Attr>, dir: u64, name: &[u8]) {
        if let Some(node) = node {
            if self.notes_names() {
                self.known.unnamed(node.ino, dir, name);
            }
            match node.nlink {
                // What is written to it from now on is looked at when it is asked for.
                0 => {
                    self.awaited.was_removed(&node);
                    self.known.removed_here(node);
                }
                _ => self.known.moved(&node),
            }
        }
    }
}

/// What a node that lost a name is now: one with fewer names, or gone.
fn stays_or_goes(patch: &mut Patch<'_>, node: Option<Attr>) {
    match node {
        Some(node) if node.nlink == 0 || node.mode & S_IFMT == S_IFDIR => patch.gone(node.ino),
        node => patch.node(node),
    }
}
