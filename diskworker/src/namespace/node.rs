//! A node as users see it: what stat(2) needs, put together from elements.

use std::collections::BTreeSet;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::Ino;
use delugefs_proto::local_pb;
use delugefs_proto::record::{Body, Data, Element, Hlc, Name, Perm, Xattrs};
use nix::errno::Errno;

use super::{Located, Namespace};
use crate::view::{self, FileParts, What};

/// Of a file whose attributes a join has lost: nobody but root may touch it until somebody says whose it is.
const LOST_PERM: Perm = Perm { mode: 0o600, uid: 0, gid: 0 };

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub ino: Ino,
    /// A directory that holds a name of it; of the root, itself.
    pub dir: Ino,
    /// What it is.
    pub kind: Kind,
    /// Mode bits and owner.
    pub perm: Perm,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Nanoseconds since 1970.
    pub atime_ns: i64,
    /// Nanoseconds since 1970.
    pub ctime_ns: i64,
    /// When its content became what it is, as the catalog orders that; of a directory 0.
    pub written_ns: i64,
    /// Number of names.
    pub nlink: u32,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// Anything else.
    File(Data),
}

impl Node {
    /// In the protocol's form, with the size the catalog knows.
    pub fn attr(&self) -> local_pb::Attr {
        let (type_bits, size, rdev) = match &self.kind {
            Kind::Dir => (0o040000, 4096, 0),
            Kind::File(data) => {
                let rdev = if let Data::CharDevice(n) | Data::BlockDevice(n) = data { *n } else { 0 };
                (data.type_bits(), data.size(), rdev)
            }
        };
        local_pb::Attr {
            ino: self.ino.0,
            mode: type_bits | u32::from(self.perm.mode),
            nlink: self.nlink,
            uid: self.perm.uid,
            gid: self.perm.gid,
            rdev,
            size,
            blocks: size.div_ceil(512),
            mtime: self.mtime_ns,
            atime: self.atime_ns,
            ctime: self.ctime_ns,
            dir: self.dir.0,
            written: self.written_ns,
        }
    }

    /// What a regular file holds; EISDIR or EINVAL for anything else.
    pub fn regular(&self) -> FsResult<&Data> {
        match &self.kind {
            Kind::File(data) if data.is_regular() => Ok(data),
            Kind::File(_) => Err(Errno::EINVAL.into()),
            Kind::Dir => Err(Errno::EISDIR.into()),
        }
    }
}

/// Where the directory was last put.
pub(super) fn home(header: &[Element]) -> Option<(Ino, &Name)> {
    match &view::latest(header, |body| matches!(body, Body::Head { .. }))?.body {
        Body::Head { parent, name, .. } => Some((*parent, name)),
        _ => None,
    }
}

/// Mode, owner and extended attributes in a file's or directory's elements.
pub(super) fn attrs(element: Option<&Element>) -> (Perm, Option<&Xattrs>) {
    match element.map(|e| &e.body) {
        Some(Body::Attrs { perm, xattrs, .. } | Body::Head { perm, xattrs, .. }) => (*perm, Some(xattrs)),
        _ => (LOST_PERM, None),
    }
}

fn times(element: Option<&Element>, fallback: Hlc) -> (i64, i64) {
    match element.map(|e| &e.body) {
        Some(Body::Times { mtime_ns, atime_ns, .. }) => (*mtime_ns, *atime_ns),
        _ => (fallback.0 as i64, fallback.0 as i64),
    }
}

pub(super) fn of_file(parts: &FileParts<'_>, ino: Ino, dir: Ino, nlink: u32) -> Node {
    let elements = [Some(parts.content), parts.attrs, parts.times];
    let ctime_ns = elements.iter().flatten().map(|e| e.hlc.0).max().unwrap_or_default() as i64;
    let written_ns = parts.content.hlc.0 as i64;
    let (mtime_ns, atime_ns) = times(parts.times, parts.content.hlc);
    let perm = attrs(parts.attrs).0;
    let kind = Kind::File(parts.data().clone());
    Node { ino, dir, kind, perm, mtime_ns, atime_ns, ctime_ns, written_ns, nlink }
}

impl Namespace {
    /// The node at a place.
    pub fn node(&mut self, at: &Located) -> FsResult<Node> {
        match at {
            Located::Dir(ino) => self.dir_node(*ino),
            Located::Inode { ino, dir } => {
                let (ino, dir) = (*ino, *dir);
                let elements = self.inode(ino)?;
                // Two hosts may have made one reference anew at once.
                let names: BTreeSet<&Body> =
                    elements.iter().map(|e| &e.body).filter(|body| matches!(body, Body::Ref { .. })).collect();
                let nlink = names.len() as u32;
                match view::contents(elements).first() {
                    Some(parts) => Ok(of_file(parts, ino, dir, nlink)),
                    None => Err(damaged(ino)),
                }
            }
            Located::File { dir, name, tag, .. } => {
                let owner = *dir;
                let found = self.dir(owner)?;
                let shown = view::view(found.get(name)).into_iter().find(|s| s.tag == *tag);
                match shown {
                    Some(view::Shown { ino, what: What::File(parts), .. }) => Ok(of_file(&parts, ino, owner, 1)),
                    _ => Err(Errno::ENOENT.into()),
                }
            }
        }
    }

    /// The node of a directory.
    pub fn dir_node(&mut self, ino: Ino) -> FsResult<Node> {
        let dir = self.live_dir(ino)?;
        let header = dir.header();
        let head = view::latest(header, |body| matches!(body, Body::Head { .. }));
        let times_element = view::latest(header, |body| matches!(body, Body::Times { .. }));
        let latest = header.iter().map(|e| e.hlc).max().unwrap_or_default();
        let (mtime_ns, atime_ns) = times(times_element, latest);
        Ok(Node {
            ino,
            dir: home(header).map_or(ino, |(parent, _)| parent),
            kind: Kind::Dir,
            perm: attrs(head).0,
            mtime_ns,
            atime_ns,
            ctime_ns: latest.0 as i64,
            written_ns: 0,
            nlink: 2 + dir.subdirs(),
        })
    }
}

pub(super) fn damaged(ino: Ino) -> FsError {
    FsError::new(Errno::EIO, format!("the record of inode {ino} is missing in the catalog; run a scrub"))
}
