//! Extended attributes. Large values are attachments.

use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::limits::{XATTR_INLINE_MAX_BYTES, XATTR_NAME_MAX_BYTES, XATTR_VALUE_MAX_BYTES, XATTRS_MAX};
use delugefs_proto::record::{Body, XattrValue, Xattrs};
use nix::errno::Errno;

use super::edit::change_attrs;
use super::{Located, Namespace, Node, node};
use crate::os::ENOATTR;
use crate::view;

impl Namespace {
    fn xattrs(&mut self, at: &Located) -> FsResult<Xattrs> {
        let (set, of) = match at {
            // A conflict copy that was not settled yet has its attributes among those of its siblings.
            Located::File { dir, name, tag, .. } => {
                let set = self.dir(*dir)?.get(name);
                let shown = view::view(set).into_iter().find(|s| s.tag == *tag).ok_or(Errno::ENOENT)?;
                let view::What::File(parts) = shown.what else { return Err(Errno::ENOENT.into()) };
                return Ok(node::attrs(parts.attrs).1.cloned().unwrap_or_default());
            }
            Located::Dir(ino) => (self.live_dir(*ino)?.header(), *ino),
            Located::Inode { ino, .. } => (self.inode(*ino)?, *ino),
        };
        let latest = view::latest(set, |body| match body {
            Body::Attrs { ino, .. } => *ino == of,
            body => matches!(body, Body::Head { .. }),
        });
        Ok(node::attrs(latest).1.cloned().unwrap_or_default())
    }

    /// Names of a node's attributes, each ended by NUL.
    pub fn list_xattr(&mut self, at: &Located) -> FsResult<Bytes> {
        let mut list = Vec::new();
        for name in self.xattrs(at)?.keys() {
            list.extend_from_slice(name);
            list.push(0);
        }
        Ok(list.into())
    }

    /// Value of an attribute.
    pub fn get_xattr(&mut self, at: &Located, name: &[u8]) -> FsResult<Bytes> {
        match self.xattrs(at)?.get(name) {
            None => Err(ENOATTR.into()),
            Some(XattrValue::Inline(value)) => Ok(Bytes::copy_from_slice(value)),
            Some(XattrValue::Blob { blob, .. }) => self.attachment(*blob),
        }
    }

    /// Set an attribute. `create`: it must be new; `replace`: it must exist.
    pub fn set_xattr(&mut self, at: Located, name: &[u8], value: Bytes, create: bool, replace: bool) -> FsResult<Node> {
        if name.is_empty() || name.len() > XATTR_NAME_MAX_BYTES || name.contains(&0) {
            return Err(Errno::ERANGE.into());
        }
        if crate::catalog::attachable(&value).is_none() {
            return Err(FsError::new(Errno::EINVAL, "git cannot store this value: it has marks of an attack on SHA-1"));
        }
        if value.len() > XATTR_VALUE_MAX_BYTES {
            return Err(Errno::E2BIG.into());
        }
        let old = self.xattrs(&at)?;
        match old.contains_key(name) {
            true if create => return Err(Errno::EEXIST.into()),
            false if replace => return Err(ENOATTR.into()),
            false if old.len() >= XATTRS_MAX => {
                let text = format!("it has {XATTRS_MAX} extended attributes, which is the most: take some away");
                return Err(FsError::new(Errno::ENOSPC, text));
            }
            _ => {}
        }
        self.change_xattrs(at, Some((name, value)), None)
    }

    /// Remove an attribute.
    pub fn remove_xattr(&mut self, at: Located, name: &[u8]) -> FsResult<Node> {
        if !self.xattrs(&at)?.contains_key(name) {
            return Err(ENOATTR.into());
        }
        self.change_xattrs(at, None, Some(name))
    }

    fn change_xattrs(&mut self, at: Located, add: Option<(&[u8], Bytes)>, remove: Option<&[u8]>) -> FsResult<Node> {
        let mut txn = self.txn();
        let at = self.settled(&mut txn, at)?;
        let (key, ino) = self.key_of(&at)?;
        let mut elements = self.set_in(&txn, &key)?;
        txn.after(&elements);
        let add = add.map(|(name, value)| {
            let value = if value.len() > XATTR_INLINE_MAX_BYTES {
                XattrValue::Blob { size: value.len() as u32, blob: txn.attach(value) }
            } else {
                XattrValue::Inline(value.to_vec().into())
            };
            (name, value)
        });
        change_attrs(&txn, &mut elements, ino, |_, xattrs| {
            if let Some((name, value)) = add {
                xattrs.insert(name.into(), value);
            }
            if let Some(name) = remove {
                xattrs.remove(name);
            }
        });
        txn.set(key, elements);
        self.apply(txn)?;
        self.node(&at)
    }
}
