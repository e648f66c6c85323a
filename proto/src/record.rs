//! The model of what the catalog says: a map from [`Key`] to a set of dotted [`Element`]s.
//!
//! An entry of a directory is not one record but a small set of elements, each with its own *dot* (who made it, as his
//! how-manieth change). Two states are joined element by element: an element stays if the other side has it too or has
//! not seen its dot. That is an observed-remove map; it needs no common ancestor, no tombstones and no clocks.
//!
//! A file is three elements under its name, so that three kinds of change made at different places all survive:
//! [`Body::Content`] (its bytes), [`Body::Attrs`] (mode, owner, extended attributes) and [`Body::Times`]. Rules for
//! whoever changes a state, without which content gets lost in joins:
//! - every change draws a new dot, and removes exactly the elements it replaces;
//! - creating and renaming give all elements of the entry a new dot;
//! - writing content gives the attributes a new dot too, **with their old `hlc`**: so they outlive a concurrent delete
//!   of the file but lose against a concurrent chmod;
//! - making a hard link gives content and attributes of the inode new dots, for the same reason.
//!
//! Several contents of one inode, or several inodes under one name, are a conflict: all are kept; which one is shown
//! under the name is decided by the view, deterministically. This module knows nothing of storage.

use std::collections::BTreeMap;
use std::fmt;

use crate::ids::{ActorId, BlobId, ContentId, Ino};
use crate::limits::NAME_MAX_BYTES;

/// Extended attributes of the root that say what people have decided about a disk; followed by its id in hex. The worker's
/// gRPC sets them: every disk acts on them, so a mount only shows them.
pub const DISK_MARK_XATTR: &str = "user.delugefs.disk.";

/// A name within a directory: 1 to 255 bytes, any but `/` and NUL, not `.` or `..`. The empty name exists too: it is
/// the key of the directory's own header.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Name(Box<[u8]>);

/// Why bytes are not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, `.`, `..`, or with a slash or NUL.
    #[error("not a file name")]
    Invalid,
    /// More than 255 bytes.
    #[error("file name longer than 255 bytes")]
    TooLong,
}

impl Name {
    /// The key of a directory's header.
    pub fn header() -> Self {
        Self::default()
    }

    /// A checked name.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.len() > NAME_MAX_BYTES {
            return Err(NameError::TooLong);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(NameError::Invalid);
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes; empty for the header's key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the key of the header.
    pub fn is_header(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::borrow::Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Name {
    /// Safe to print on a terminal: control and non-ASCII bytes are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// Which change of which actor made an element.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dot {
    /// The writer.
    pub actor: ActorId,
    /// Counts from 1.
    pub seq: u64,
}

/// Highest change seen of every actor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VersionVector(pub BTreeMap<ActorId, u64>);

impl VersionVector {
    /// Whether this dot is covered.
    pub fn has_seen(&self, dot: Dot) -> bool {
        self.0.get(&dot.actor).is_some_and(|seq| dot.seq <= *seq)
    }

    /// Cover a dot (and all before it of its actor).
    pub fn advance(&mut self, dot: Dot) {
        let seq = self.0.entry(dot.actor).or_default();
        *seq = dot.seq.max(*seq);
    }

    /// Cover everything the other one covers.
    pub fn merge(&mut self, other: &Self) {
        for (&actor, &seq) in &other.0 {
            self.advance(Dot { actor, seq });
        }
    }

    /// Whether everything the other one covers is covered here.
    pub fn dominates(&self, other: &Self) -> bool {
        other.0.iter().all(|(&actor, &seq)| self.has_seen(Dot { actor, seq }))
    }
}

/// Hybrid logical clock: nanoseconds since 1970, moved forward where needed so that every change is later than all
/// that its maker had seen. Decides only what is shown, never what is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Hlc(pub u64);

/// Where a set of elements lies.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// An entry of a directory, or (empty name) its header.
    Entry(Ino, Name),
    /// An inode that has (or had) several names.
    Inode(Ino),
}

impl Key {
    /// The key of a directory's header.
    pub fn header(dir: Ino) -> Self {
        Key::Entry(dir, Name::header())
    }
}

/// One dotted fact.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Element {
    /// Who made it.
    pub dot: Dot,
    /// What it says.
    pub body: Body,
    /// When, for the view.
    pub hlc: Hlc,
}

/// What an element says. The order of the variants is part of the canonical order of elements.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Body {
    /// A subdirectory hangs under this name.
    Dir {
        /// The directory.
        ino: Ino,
    },
    /// A name of an inode that is kept under [`Key::Inode`].
    Link {
        /// The inode.
        ino: Ino,
    },
    /// What a non-directory is and holds. Under a name, or under [`Key::Inode`].
    Content {
        /// The inode.
        ino: Ino,
        /// What it holds.
        data: Data,
    },
    /// Mode, owner and extended attributes of the non-directory with this inode number.
    Attrs {
        /// The inode.
        ino: Ino,
        /// Mode and owner.
        perm: Perm,
        /// Extended attributes.
        xattrs: Xattrs,
    },
    /// Times. In a header `ino` is the directory.
    Times {
        /// The node.
        ino: Ino,
        /// Last change of content, nanoseconds since 1970.
        mtime_ns: i64,
        /// Last access as set explicitly, nanoseconds since 1970. Reading does not change it.
        atime_ns: i64,
    },
    /// In a header: the directory's own attributes, and the place it was last put at.
    Head {
        /// The directory it hangs in. The root's is itself.
        parent: Ino,
        /// Its name there.
        name: Name,
        /// Mode and owner.
        perm: Perm,
        /// Extended attributes.
        xattrs: Xattrs,
    },
    /// Under [`Key::Inode`]: one of the inode's names. Has the dot of the [`Body::Link`] at that name.
    Ref {
        /// The directory.
        dir: Ino,
        /// The name in it.
        name: Name,
    },
}

impl Body {
    /// The inode number of a file's element; `None` for a directory's header and for [`Body::Ref`].
    pub fn ino(&self) -> Option<Ino> {
        match self {
            Body::Dir { ino }
            | Body::Link { ino }
            | Body::Content { ino, .. }
            | Body::Attrs { ino, .. }
            | Body::Times { ino, .. } => Some(*ino),
            Body::Head { .. } | Body::Ref { .. } => None,
        }
    }
}

/// Permission bits (07777) and owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Perm {
    /// The low twelve bits of the mode.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What a non-directory is and holds.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Data {
    /// A regular file without content (or whose first content is still being written).
    Empty,
    /// A regular file whose content is an attachment in the catalog.
    Inline {
        /// The attachment.
        blob: BlobId,
        /// Its length in bytes.
        size: u32,
    },
    /// A regular file whose content is a file in the disks' stores.
    Stored {
        /// SHA-256 of the whole.
        content: ContentId,
        /// Length in bytes.
        size: u64,
        /// Attachment with the SHA-1 of every piece, 20 bytes each; present above the torrent limit.
        pieces: Option<BlobId>,
    },
    /// A symbolic link.
    Symlink(Box<[u8]>),
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
    /// A character device, with its number as stat(2) gives it.
    CharDevice(u64),
    /// A block device, with its number as stat(2) gives it.
    BlockDevice(u64),
}

impl Data {
    /// Length in bytes as stat(2) shows it.
    pub fn size(&self) -> u64 {
        match self {
            Data::Inline { size, .. } => u64::from(*size),
            Data::Stored { size, .. } => *size,
            Data::Symlink(target) => target.len() as u64,
            _ => 0,
        }
    }

    /// Whether this is a regular file.
    pub fn is_regular(&self) -> bool {
        matches!(self, Data::Empty | Data::Inline { .. } | Data::Stored { .. })
    }

    /// The S_IFMT bits.
    pub fn type_bits(&self) -> u32 {
        match self {
            Data::Empty | Data::Inline { .. } | Data::Stored { .. } => 0o100000,
            Data::Symlink(_) => 0o120000,
            Data::Fifo => 0o010000,
            Data::Socket => 0o140000,
            Data::CharDevice(_) => 0o020000,
            Data::BlockDevice(_) => 0o060000,
        }
    }
}

/// Extended attributes, sorted by name.
pub type Xattrs = BTreeMap<Box<[u8]>, XattrValue>;

/// Value of an extended attribute.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum XattrValue {
    /// Small: part of the record.
    Inline(Box<[u8]>),
    /// Large: an attachment.
    Blob {
        /// The attachment.
        blob: BlobId,
        /// Its length in bytes.
        size: u32,
    },
}

/// The attachments that elements refer to; a catalog leaf keeps exactly these reachable.
pub fn attachments(elements: &[Element]) -> impl Iterator<Item = BlobId> + '_ {
    elements.iter().flat_map(|element| {
        let (data, xattrs) = match &element.body {
            Body::Content { data, .. } => (Some(data), None),
            Body::Attrs { xattrs, .. } | Body::Head { xattrs, .. } => (None, Some(xattrs)),
            _ => (None, None),
        };
        let of_data = match data {
            Some(Data::Inline { blob, .. }) => Some(*blob),
            Some(Data::Stored { pieces, .. }) => *pieces,
            _ => None,
        };
        let of_xattrs = xattrs.into_iter().flat_map(BTreeMap::values).filter_map(|value| match value {
            XattrValue::Blob { blob, .. } => Some(*blob),
            XattrValue::Inline(_) => None,
        });
        of_data.into_iter().chain(of_xattrs)
    })
}
