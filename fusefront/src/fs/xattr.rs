//! Extended attributes. The kernel asks for `security.capability` at every write and for ACLs at every listing with
//! details; there are none here, and the worker is not asked.

use bytes::Bytes;
use delugefs_proto::ids::Ino;
use delugefs_proto::limits::{XATTR_NAME_MAX_BYTES, XATTR_VALUE_MAX_BYTES};
use delugefs_proto::local_pb::{GetXattr, ListXattr, RemoveXattr, SetXattr, reply, request};
use delugefs_proto::record::DISK_MARK_XATTR;
use nix::errno::Errno;

use super::Fs;
use crate::call::{Caller, Outcome};
use crate::os::ENOATTR;

impl Fs {
    /// The value of an attribute.
    pub fn getxattr(&self, caller: &Caller, ino: u64, name: &[u8]) -> Outcome<Bytes> {
        check(name)?;
        if name.starts_with(b"security.") || self.cache.has_no_xattrs(ino) {
            return Err(ENOATTR.into());
        }
        self.has_name(ino)?;
        let op = request::Op::GetXattr(GetXattr { ino, dir: self.dir_of(ino), name: Bytes::copy_from_slice(name) });
        let answer = self.worker.ask(caller, op)?.check().map_err(|error| self.to_be_looked_up(ino, error.into()))?;
        data(answer.reply.body)
    }

    /// The names of all attributes the caller may see, each ended by a NUL.
    pub fn listxattr(&self, caller: &Caller, ino: u64) -> Outcome<Bytes> {
        if self.cache.has_no_xattrs(ino) {
            return Ok(Bytes::new());
        }
        self.has_name(ino)?;
        let watch = self.cache.begin_fetch(ino);
        let answer = self.worker.ask(caller, request::Op::ListXattr(ListXattr { ino, dir: self.dir_of(ino) }));
        let names = answer.and_then(|answer| {
            let answer = answer.check()?;
            Ok((answer.link, data(answer.reply.body)?))
        });
        match &names {
            Ok((link, names)) if names.is_empty() => self.cache.finish_no_xattrs(&watch, *link),
            _ => self.cache.drop_fetch(&watch),
        }
        let (_, names) = names.map_err(|stop| self.to_be_looked_up(ino, stop))?;
        Ok(visible(names, caller.uid))
    }

    /// Set an attribute; `create`: there must be none of this name, `replace`: there must be one.
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: u64,
        name: &Bytes,
        value: &Bytes,
        (create, replace): (bool, bool),
    ) -> Outcome<()> {
        self.check_change(ino, name)?;
        if value.len() > XATTR_VALUE_MAX_BYTES {
            return Err(Errno::E2BIG.into());
        }
        let (name, value) = (name.clone(), value.clone());
        let op = request::Op::SetXattr(SetXattr { ino, dir: self.dir_of(ino), name, value, create, replace });
        let answer = self.worker.change(caller, op).map_err(|stop| self.to_be_looked_up(ino, stop))?;
        self.cache.apply(answer.stamp(), |patch| {
            patch.node(answer.reply.node);
            patch.has_xattrs(ino);
        });
        Ok(())
    }

    /// Remove an attribute.
    pub fn removexattr(&self, caller: &Caller, ino: u64, name: &Bytes) -> Outcome<()> {
        self.check_change(ino, name)?;
        // Asked once, before anything is sent: sent again it is not to remove what somebody else has set since.
        if caller.removed_value.borrow().is_none() && !caller.sent.get() {
            *caller.removed_value.borrow_mut() = Some(self.getxattr(caller, ino, name)?);
        }
        let value = caller.removed_value.borrow().clone();
        let op = request::Op::RemoveXattr(RemoveXattr { ino, dir: self.dir_of(ino), name: name.clone(), value });
        let answer = self.worker.change(caller, op).map_err(|stop| self.to_be_looked_up(ino, stop))?;
        self.cache.apply(answer.stamp(), |patch| patch.node(answer.reply.node));
        Ok(())
    }

    fn check_change(&self, ino: u64, name: &[u8]) -> Outcome<()> {
        check(name)?;
        if name.starts_with(b"security.") {
            return Err(Errno::EOPNOTSUPP.into());
        }
        // Whoever may write to the root would decide which disks every host relies on.
        if ino == Ino::ROOT.0 && name.starts_with(DISK_MARK_XATTR.as_bytes()) {
            return Err(Errno::EPERM.into());
        }
        self.has_name(ino)
    }

    /// Of one that has no name any more nobody keeps these attributes. Who came by a name does not get to see that: with ESTALE the
    /// kernel looks up whose it is now. It comes in the same way from who has the file open, and he gets to see it.
    fn has_name(&self, ino: u64) -> Outcome<()> {
        if self.known.orphan_attr(ino).is_some() { Err(Errno::ESTALE.into()) } else { Ok(()) }
    }
}

fn check(name: &[u8]) -> Result<(), Errno> {
    if name.len() > XATTR_NAME_MAX_BYTES {
        return Err(Errno::ERANGE);
    }
    match [&b"user."[..], b"trusted.", b"security."].iter().find_map(|space| name.strip_prefix(*space)) {
        Some(b"") => Err(Errno::EINVAL),
        Some(_) => Ok(()),
        // ACLs would be enforced by nobody, and what else there may be is nothing we know of.
        None => Err(Errno::EOPNOTSUPP),
    }
}

/// Those that the user may see. Of the others the kernel keeps the values, and leaves the names to us.
fn visible(names: Bytes, uid: u32) -> Bytes {
    const HIDDEN: &[u8] = b"trusted.";
    let each = || names.split_inclusive(|byte| *byte == 0);
    match uid != 0 && each().any(|name| name.starts_with(HIDDEN)) {
        true => each().filter(|name| !name.starts_with(HIDDEN)).flatten().copied().collect(),
        false => names,
    }
}

fn data(body: Option<reply::Body>) -> Outcome<Bytes> {
    match body {
        Some(reply::Body::Data(data)) => Ok(data),
        // An empty value is the default of the field, and may have been left out.
        None => Ok(Bytes::new()),
        _ => Err(Errno::EIO.into()),
    }
}
