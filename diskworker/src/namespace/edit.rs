//! Changing a node: mode, owner, times, content.

use bytes::Bytes;
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::{BlobId, ContentId, Ino};
use delugefs_proto::limits::INLINE_MAX_BYTES;
use delugefs_proto::record::{Body, Data, Dot, Element, Hlc, Key, Perm, Xattrs};

use super::{Located, Namespace, Node, Txn, node};
use crate::view::{self, What};

/// What setattr changes; `None` leaves it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Edit {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Nanoseconds since 1970.
    pub mtime_ns: Option<i64>,
    /// Nanoseconds since 1970.
    pub atime_ns: Option<i64>,
}

/// A content that has been written and is safe.
pub enum NewContent {
    /// Small enough for the catalog, with its id there.
    Small(BlobId, Bytes),
    /// In the store.
    Stored {
        /// SHA-256.
        content: ContentId,
        /// Length in bytes.
        size: u64,
        /// SHA-1 of the pieces, if it has a torrent.
        pieces: Option<Bytes>,
    },
}

impl Namespace {
    /// Change mode, owner or times; ctime becomes now.
    pub fn edit(&mut self, at: Located, edit: &Edit) -> FsResult<Node> {
        let mut txn = self.txn();
        let at = self.settled(&mut txn, at)?;
        let (key, ino) = self.key_of(&at)?;
        let mut elements = self.set_in(&txn, &key)?;
        txn.after(&elements);
        if edit.mode.is_some() || edit.uid.is_some() || edit.gid.is_some() {
            change_attrs(&txn, &mut elements, ino, |perm, _| {
                perm.mode = edit.mode.unwrap_or(perm.mode) & 0o7777;
                perm.uid = edit.uid.unwrap_or(perm.uid);
                perm.gid = edit.gid.unwrap_or(perm.gid);
            });
        }
        if edit.mtime_ns.is_some() || edit.atime_ns.is_some() {
            txn.set_times(&mut elements, ino, edit.mtime_ns, edit.atime_ns);
        }
        txn.set(key, elements);
        self.apply(txn)?;
        self.node(&at)
    }

    /// The versions of a file's content: what a writer who opens it now is about to replace. Also other files under its name that have the
    /// same content, but not those that hide behind it: somebody may be writing them.
    pub fn content_dots(&mut self, at: &Located) -> FsResult<Vec<Dot>> {
        let (key, _) = self.key_of(at)?;
        let elements = match &key {
            Key::Entry(dir, name) => self.dir(*dir)?.get(name),
            Key::Inode(ino) => self.inode(*ino)?,
        };
        let shown = view::view(elements);
        let parts = match at {
            Located::File { tag, .. } => shown.iter().find(|shown| shown.tag == *tag).map(|shown| &shown.what),
            _ => None,
        };
        let is_of = |e: &&Element| match (&e.body, parts) {
            (Body::Content { ino, data }, Some(What::File(parts))) => *ino == parts.stored_ino || data == parts.data(),
            (Body::Content { .. }, _) => true,
            _ => false,
        };
        Ok(elements.iter().filter(is_of).map(|e| e.dot).collect())
    }

    /// The record of a file's content, as it is shown; `None` of a directory.
    pub fn content_at(&mut self, at: &Located) -> FsResult<Option<Element>> {
        Ok(match at {
            Located::Dir(_) => None,
            Located::Inode { ino, .. } => view::contents(self.inode(*ino)?).first().map(|parts| parts.content.clone()),
            Located::File { dir, name, tag, .. } => {
                let shown = view::view(self.dir(*dir)?.get(name)).into_iter().find(|shown| shown.tag == *tag);
                shown.and_then(|shown| match shown.what {
                    What::File(parts) => Some(parts.content.clone()),
                    _ => None,
                })
            }
        })
    }

    /// A file has new content, written at `mtime_ns` and last touched at `ctime_ns`. It replaces the versions in
    /// `replaces` (`None`: all); one that came from elsewhere since the writer opened the file stays, as a conflict.
    /// ESTALE or ENOENT when the file is gone by now.
    pub fn set_content(
        &mut self,
        at: Located,
        new: NewContent,
        replaces: Option<&[Dot]>,
        mtime_ns: i64,
        ctime_ns: i64,
    ) -> FsResult<Node> {
        let at = self.settle_copy(at)?;
        let mut txn = self.txn();
        let (key, ino) = self.key_of(&at)?;
        let mut elements = self.set_in(&txn, &key)?;
        // The time of the last write, not of this record: a ctime that moves after close(2) makes tools read again.
        txn.hlc = Hlc(ctime_ns.max(0) as u64);
        txn.after(&elements);
        let data = match new {
            NewContent::Small(_, bytes) if bytes.is_empty() => Data::Empty,
            NewContent::Small(blob, bytes) => {
                debug_assert!(bytes.len() as u64 <= INLINE_MAX_BYTES);
                let size = bytes.len() as u32;
                txn.change.blobs.insert(blob, bytes);
                Data::Inline { size, blob }
            }
            NewContent::Stored { content, size, pieces } => {
                Data::Stored { content, size, pieces: pieces.map(|pieces| txn.attach(pieces)) }
            }
        };
        let is_replaced = |e: &Element| replaces.is_none_or(|dots| dots.contains(&e.dot));
        elements.retain(|e| !matches!(e.body, Body::Content { .. }) || !is_replaced(e));
        elements.push(txn.element(Body::Content { ino, data }));
        for element in &mut elements {
            if matches!(element.body, Body::Attrs { ino: of, .. } if of == ino) {
                element.dot = txn.dot; // and its old time: see the rules in delugefs_proto::record
            }
        }
        txn.set_times(&mut elements, ino, Some(mtime_ns), None);
        if matches!(at, Located::Inode { .. }) {
            self.renew_name(&mut txn, ino, &mut elements)?;
        }
        txn.set(key, elements);
        self.apply(txn)?;
        if matches!(at, Located::Inode { .. }) {
            self.settle(at.clone())?;
        }
        self.node(&at)
    }

    /// The key of an unambiguous node's elements, and the number they carry.
    pub(super) fn key_of(&mut self, at: &Located) -> FsResult<(Key, Ino)> {
        Ok(match at {
            Located::Dir(ino) => {
                self.live_dir(*ino)?;
                (Key::header(*ino), *ino)
            }
            Located::Inode { ino, .. } => (Key::Inode(*ino), *ino),
            Located::File { dir, name, ino, .. } => (Key::Entry(*dir, name.clone()), *ino),
        })
    }
}

/// Replace the attributes of a node by changed ones. Those of what hides behind it are not its own.
pub(super) fn change_attrs(
    txn: &Txn,
    elements: &mut Vec<Element>,
    ino: Ino,
    change: impl FnOnce(&mut Perm, &mut Xattrs),
) {
    let is_attrs = |body: &Body| match body {
        Body::Attrs { ino: of, .. } => *of == ino,
        body => matches!(body, Body::Head { .. }),
    };
    let latest = view::latest(elements, is_attrs).cloned();
    let (mut perm, xattrs) = node::attrs(latest.as_ref());
    let mut xattrs = xattrs.cloned().unwrap_or_default();
    change(&mut perm, &mut xattrs);
    elements.retain(|e| !is_attrs(&e.body));
    let body = match latest.map(|e| e.body) {
        Some(Body::Head { parent, name, .. }) => Body::Head { parent, name, perm, xattrs },
        _ => Body::Attrs { ino, perm, xattrs },
    };
    elements.push(txn.element(body));
}
