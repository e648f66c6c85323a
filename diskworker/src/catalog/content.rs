//! A directory's entries: one leaf, or above [`LEAF_MAX_ENTRIES`] keys a tree of sixteen buckets by the next hex digit
//! of SHA-1(name), and so on. The shape is a pure function of the entries, so whatever changes them here must split
//! and collapse exactly where building from nothing would. Inodes under `i/` are directories with one nameless entry.

use std::collections::BTreeSet;

use aws_lc_rs::digest;
use delugefs_proto::codec::{Leaf, decode_leaf, decode_own_leaf, encode_leaf};
use delugefs_proto::ids::BlobId;
use delugefs_proto::limits::{LEAF_MAX_DEPTH, LEAF_MAX_ENTRIES, piece_count};
use delugefs_proto::record::{Body, Data, Element, Name, XattrValue, attachments};
use git2::{ObjectType, Oid};

use super::CatalogError;
use super::changes::to_oid;
use super::objects::Objects;
use super::tree::{self, HexTree, Kind, Node};

/// One level of a directory.
pub(super) enum Content {
    Leaf(Leaf),
    Buckets(HexTree),
}

/// A key's new set, in canonical form.
pub(super) struct Change<'a> {
    pub hash: NameHash,
    pub name: &'a Name,
    pub set: &'a [Element],
}

/// SHA-1 of a name: decides its bucket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NameHash([u8; 20]);

impl NameHash {
    pub(super) fn of(name: &Name) -> Self {
        let mut hash = [0; 20];
        hash.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, name.as_bytes()).as_ref());
        Self(hash)
    }

    /// The hex digit that chooses the bucket at this depth (below [`LEAF_MAX_DEPTH`]).
    pub(super) fn digit(&self, depth: usize) -> u64 {
        let byte = self.0[depth / 2];
        u64::from(if depth.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
    }
}

/// The attachments an element refers to, with the lengths they must have, in bytes.
pub(super) fn attachment_lengths(element: &Element) -> Vec<(BlobId, u64)> {
    let of_xattr = |value: &XattrValue| match value {
        XattrValue::Blob { blob, size } => Some((*blob, u64::from(*size))),
        XattrValue::Inline(_) => None,
    };
    match &element.body {
        Body::Content { data: Data::Inline { blob, size }, .. } => vec![(*blob, u64::from(*size))],
        Body::Content { data: Data::Stored { size, pieces: Some(blob), .. }, .. } => {
            vec![(*blob, piece_count(*size) * 20)]
        }
        Body::Attrs { xattrs, .. } | Body::Head { xattrs, .. } => xattrs.values().filter_map(of_xattr).collect(),
        _ => Vec::new(),
    }
}

/// The attachments of a leaf.
pub(super) fn leaf_attachments(leaf: &Leaf) -> BTreeSet<Oid> {
    leaf.values().flat_map(|set| attachments(set)).map(to_oid).collect()
}

/// Read one level.
pub(super) fn load(objects: &Objects<'_>, node: Node) -> Result<Content, CatalogError> {
    let entries = match node.kind {
        Kind::Blob => node.oid,
        Kind::Tree => {
            let data = objects.tree(node.oid)?;
            let damaged = |why| CatalogError::damaged(node.oid, why);
            if tree::is_buckets(&data) {
                return Ok(Content::Buckets(tree::parse_hex(&data, 1).map_err(damaged)?));
            }
            tree::parse_leaf(&data).map_err(damaged)?.entries
        }
    };
    let leaf = decode_own_leaf(&objects.blob(entries)?).map_err(CatalogError::undecodable(entries))?;
    Ok(Content::Leaf(leaf))
}

/// Read all entries below a node.
pub(super) fn load_all(objects: &Objects<'_>, node: Node, into: &mut Leaf) -> Result<(), CatalogError> {
    match load(objects, node)? {
        Content::Leaf(leaf) if into.is_empty() => *into = leaf,
        Content::Leaf(leaf) => into.extend(leaf),
        Content::Buckets(buckets) => {
            for (_, node) in buckets {
                load_all(objects, node, into)?;
            }
        }
    }
    Ok(())
}

/// Read the set of one name.
pub(super) fn find(objects: &Objects<'_>, node: Node, name: &Name) -> Result<Vec<Element>, CatalogError> {
    let hash = NameHash::of(name);
    let mut node = node;
    for depth in 0..=LEAF_MAX_DEPTH {
        match load(objects, node)? {
            Content::Leaf(mut leaf) => return Ok(leaf.remove(name).unwrap_or_default()),
            Content::Buckets(_) if depth == LEAF_MAX_DEPTH => break,
            Content::Buckets(buckets) => match tree::get(&buckets, hash.digit(depth)) {
                Some(below) => node = below,
                None => return Ok(Vec::new()),
            },
        }
    }
    Err(CatalogError::damaged(node.oid, "is split too deep"))
}

/// Stage a leaf.
fn put_leaf(objects: &mut Objects<'_>, leaf: &Leaf) -> Result<Node, CatalogError> {
    let bytes = encode_leaf(leaf);
    // What is written here is refused by nobody who reads it, this disk included.
    if decode_leaf(&bytes).as_ref() != Ok(leaf) {
        return Err(CatalogError::Invalid("a set has a value that no record can have".into()));
    }
    let attachments = leaf_attachments(leaf);
    let entries = objects.put(ObjectType::Blob, bytes)?;
    if attachments.is_empty() {
        return Ok(Node::blob(entries));
    }
    let tree = tree::serialize_leaf(entries, attachments.into_iter());
    objects.put(ObjectType::Tree, tree).map(Node::tree)
}

pub(super) fn put_buckets(objects: &mut Objects<'_>, buckets: &[(u64, Node)]) -> Result<Node, CatalogError> {
    objects.put(ObjectType::Tree, tree::serialize_hex(buckets, 1)).map(Node::tree)
}

/// Whether this many keys at this depth are one leaf.
pub(super) fn fits_leaf(keys: usize, depth: usize) -> bool {
    keys <= LEAF_MAX_ENTRIES || depth >= LEAF_MAX_DEPTH
}

/// Stage what these entries look like at this depth; `None` when there are none.
pub(super) fn build(objects: &mut Objects<'_>, leaf: Leaf, depth: usize) -> Result<Option<Node>, CatalogError> {
    if leaf.is_empty() {
        return Ok(None);
    }
    if fits_leaf(leaf.len(), depth) {
        return put_leaf(objects, &leaf).map(Some);
    }
    let mut parts: [Leaf; 16] = Default::default();
    for (name, set) in leaf {
        let digit = NameHash::of(&name).digit(depth);
        parts[digit as usize].insert(name, set);
    }
    let mut buckets = HexTree::new();
    for (digit, part) in parts.into_iter().enumerate() {
        if let Some(node) = build(objects, part, depth + 1)? {
            buckets.push((digit as u64, node));
        }
    }
    put_buckets(objects, &buckets).map(Some)
}

/// Number of keys in the leaves among these buckets; `None` when one is split itself, and so has more than a leaf can
/// have, or when they are too many for one leaf.
fn few_keys(objects: &Objects<'_>, buckets: &[(u64, Node)]) -> Result<Option<Leaf>, CatalogError> {
    let mut all = Leaf::new();
    for (_, node) in buckets {
        match load(objects, *node)? {
            Content::Buckets(_) => return Ok(None),
            Content::Leaf(leaf) => all.extend(leaf),
        }
        if all.len() > LEAF_MAX_ENTRIES {
            return Ok(None);
        }
    }
    Ok(Some(all))
}

/// What buckets look like from which keys may have gone: collapsed where they fit a leaf now.
pub(super) fn collapse(
    objects: &mut Objects<'_>,
    buckets: &[(u64, Node)],
    depth: usize,
) -> Result<Option<Node>, CatalogError> {
    match few_keys(objects, buckets)? {
        Some(leaf) => build(objects, leaf, depth),
        None => put_buckets(objects, buckets).map(Some),
    }
}

/// Apply changes, sorted by hash, below a node; `None` stands for no entries. Says also whether any key went away.
pub(super) fn apply(
    objects: &mut Objects<'_>,
    node: Option<Node>,
    changes: &[Change<'_>],
    depth: usize,
) -> Result<(Option<Node>, bool), CatalogError> {
    let content = match node {
        Some(node) => load(objects, node)?,
        None => Content::Leaf(Leaf::new()),
    };
    match content {
        Content::Leaf(mut leaf) => {
            let (mut changed, mut shrunk) = (false, false);
            for change in changes {
                let before = match change.set {
                    [] => leaf.remove(change.name),
                    set => leaf.insert(change.name.clone(), set.to_vec()),
                };
                changed |= before.as_deref().unwrap_or_default() != change.set;
                shrunk |= before.is_some() && change.set.is_empty();
            }
            let node = if changed { build(objects, leaf, depth)? } else { node };
            Ok((node, shrunk))
        }
        Content::Buckets(before) => {
            let (mut buckets, mut shrunk) = (before.clone(), false);
            for part in changes.chunk_by(|a, b| a.hash.digit(depth) == b.hash.digit(depth)) {
                let digit = part[0].hash.digit(depth);
                let (node, less) = apply(objects, tree::get(&buckets, digit), part, depth + 1)?;
                tree::update(&mut buckets, digit, node);
                shrunk |= less;
            }
            let node = match buckets == before {
                true => node,
                false if shrunk => collapse(objects, &buckets, depth)?,
                false => put_buckets(objects, &buckets).map(Some)?,
            };
            Ok((node, shrunk))
        }
    }
}
