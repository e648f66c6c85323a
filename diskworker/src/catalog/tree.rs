//! The bytes of git trees and commits as the catalog has them: strict, in one form only.
//!
//! Three forms of trees are enough: entries named by hex digits of one width (shards and buckets), a leaf with its
//! attachments, and the root. Names in them never are a prefix of another's followed by something below `/`, so git's
//! peculiar order is plain byte order here.

use git2::Oid;

/// What an entry of a tree points at. There are no other kinds in a catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Blob,
    Tree,
}

/// A subtree or blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub kind: Kind,
    pub oid: Oid,
}

impl Node {
    pub(super) fn blob(oid: Oid) -> Self {
        Self { kind: Kind::Blob, oid }
    }

    pub(super) fn tree(oid: Oid) -> Self {
        Self { kind: Kind::Tree, oid }
    }
}

/// Entries of a tree whose names are hex numbers of one width, by number.
pub(super) type HexTree = Vec<(u64, Node)>;

/// The entry of a leaf tree that holds the records. No attachment's id is spelled like that.
const ENTRIES: &[u8] = b"entries";

/// A leaf with attachments.
pub(super) struct LeafTree {
    pub entries: Oid,
    pub attachments: Vec<Oid>,
}

const BLOB_MODE: &[u8] = b"100644";
const TREE_MODE: &[u8] = b"40000";
const MALFORMED: &str = "is no tree of a catalog";

/// The entries of any git tree as they come: mode, name, id.
pub(super) struct RawEntries<'a>(pub &'a [u8]);

impl<'a> Iterator for RawEntries<'a> {
    type Item = Result<(&'a [u8], &'a [u8], Oid), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut split = || {
            let space = self.0.iter().position(|b| *b == b' ')?;
            let (mode, rest) = (&self.0[..space], &self.0[space + 1..]);
            let nul = rest.iter().position(|b| *b == 0)?;
            let (name, rest) = (&rest[..nul], &rest[nul + 1..]);
            let (id, rest) = rest.split_at_checked(20)?;
            self.0 = rest;
            Some((mode, name, Oid::from_bytes(id).ok()?))
        };
        let entry = split().ok_or(MALFORMED);
        if entry.is_err() {
            self.0 = &[];
        }
        Some(entry)
    }
}

/// The entries of a catalog's tree: modes and order checked.
fn strict(bytes: &[u8]) -> impl Iterator<Item = Result<(&[u8], Node), &'static str>> {
    let mut before: &[u8] = &[];
    RawEntries(bytes).map(move |entry| {
        let (mode, name, oid) = entry?;
        let kind = match mode {
            BLOB_MODE => Kind::Blob,
            TREE_MODE => Kind::Tree,
            _ => return Err("has an entry of a foreign kind"),
        };
        if before >= name {
            return Err("is not in order");
        }
        before = name;
        Ok((name, Node { kind, oid }))
    })
}

fn push(out: &mut Vec<u8>, name: &[u8], node: Node) {
    out.extend(if node.kind == Kind::Blob { BLOB_MODE } else { TREE_MODE });
    out.push(b' ');
    out.extend(name);
    out.push(0);
    out.extend(node.oid.as_bytes());
}

/// Parse a tree whose names all are lower-case hex numbers of this width. An empty tree is refused: none is stored.
pub(super) fn parse_hex(bytes: &[u8], width: usize) -> Result<HexTree, &'static str> {
    let mut tree = Vec::with_capacity(bytes.len() / (28 + width) + 1);
    for entry in strict(bytes) {
        let (name, node) = entry?;
        if name.len() != width || width > 16 {
            return Err("has a name of the wrong length");
        }
        let mut key = 0;
        for byte in name {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                _ => return Err("has a name that is no hex number"),
            };
            key = key << 4 | u64::from(digit);
        }
        tree.push((key, node));
    }
    if tree.is_empty() { Err("is empty") } else { Ok(tree) }
}

/// The bytes of such a tree.
pub(super) fn serialize_hex(tree: &[(u64, Node)], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(tree.len() * (28 + width));
    for (key, node) in tree {
        push(&mut out, format!("{key:0width$x}").as_bytes(), *node);
    }
    out
}

/// Replace, insert or remove one entry.
pub(super) fn update(tree: &mut HexTree, key: u64, node: Option<Node>) {
    match (tree.binary_search_by_key(&key, |(key, _)| *key), node) {
        (Ok(at), Some(node)) => tree[at].1 = node,
        (Ok(at), None) => drop(tree.remove(at)),
        (Err(at), Some(node)) => tree.insert(at, (key, node)),
        (Err(_), None) => {}
    }
}

/// The entry with this key.
pub(super) fn get(tree: &[(u64, Node)], key: u64) -> Option<Node> {
    tree.binary_search_by_key(&key, |(key, _)| *key).ok().map(|at| tree[at].1)
}

/// Whether a directory's tree is one of buckets; else it is a leaf with attachments.
pub(super) fn is_buckets(bytes: &[u8]) -> bool {
    matches!(RawEntries(bytes).next(), Some(Ok((_, name, _))) if name.len() == 1)
}

/// Parse a leaf with attachments.
pub(super) fn parse_leaf(bytes: &[u8]) -> Result<LeafTree, &'static str> {
    let mut entries = None;
    let mut attachments = Vec::new();
    for entry in strict(bytes) {
        let (name, node) = entry?;
        match (name, node.kind) {
            (ENTRIES, Kind::Blob) => entries = Some(node.oid),
            (name, Kind::Blob) if name == node.oid.to_string().as_bytes() => attachments.push(node.oid),
            _ => return Err("has an entry that is no attachment"),
        }
    }
    match entries {
        Some(entries) if !attachments.is_empty() => Ok(LeafTree { entries, attachments }),
        _ => Err("is no leaf with attachments"),
    }
}

/// The bytes of a leaf with attachments, which are given in ascending order.
pub(super) fn serialize_leaf(entries: Oid, attachments: impl Iterator<Item = Oid>) -> Vec<u8> {
    let mut names: Vec<(Vec<u8>, Oid)> = attachments.map(|oid| (oid.to_string().into_bytes(), oid)).collect();
    names.push((ENTRIES.to_vec(), entries));
    names.sort_unstable();
    let mut out = Vec::with_capacity(names.len() * 68);
    for (name, oid) in names {
        push(&mut out, &name, Node::blob(oid));
    }
    out
}

/// The root of a state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root {
    pub ctx: Oid,
    pub dirs: Option<Node>,
    pub inodes: Option<Node>,
    pub version: Oid,
}

/// Parse the root of a state.
pub(super) fn parse_root(bytes: &[u8]) -> Result<Root, &'static str> {
    let (mut ctx, mut dirs, mut inodes, mut version) = (None, None, None, None);
    for entry in strict(bytes) {
        match entry? {
            (b"ctx", Node { kind: Kind::Blob, oid }) => ctx = Some(oid),
            (b"d", node @ Node { kind: Kind::Tree, .. }) => dirs = Some(node),
            (b"i", node @ Node { kind: Kind::Tree, .. }) => inodes = Some(node),
            (b"version", Node { kind: Kind::Blob, oid }) => version = Some(oid),
            _ => return Err("has an entry that no state has"),
        }
    }
    match (ctx, version) {
        (Some(ctx), Some(version)) => Ok(Root { ctx, dirs, inodes, version }),
        _ => Err("is no state"),
    }
}

/// The bytes of a state's root.
pub(super) fn serialize_root(root: &Root) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    push(&mut out, b"ctx", Node::blob(root.ctx));
    if let Some(node) = root.dirs {
        push(&mut out, b"d", node);
    }
    if let Some(node) = root.inodes {
        push(&mut out, b"i", node);
    }
    push(&mut out, b"version", Node::blob(root.version));
    out
}

/// The commit of a state: a pure function of its tree.
pub(super) fn serialize_commit(tree: Oid) -> Vec<u8> {
    const WHO: &str = "delugefs <delugefs> 0 +0000";
    format!("tree {tree}\nauthor {WHO}\ncommitter {WHO}\n\nstate\n").into_bytes()
}

/// The tree of any commit.
pub(super) fn tree_of_commit(bytes: &[u8]) -> Option<Oid> {
    let hex = bytes.strip_prefix(b"tree ")?.get(..40)?;
    std::str::from_utf8(hex).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oid(byte: u8) -> Oid {
        Oid::from_bytes(&[byte; 20]).unwrap()
    }

    #[test]
    fn hex_trees_round_trip_and_refuse() {
        let tree = vec![(1, Node::blob(oid(1))), (10, Node::tree(oid(2))), (15, Node::blob(oid(3)))];
        let bytes = serialize_hex(&tree, 1);
        assert_eq!(parse_hex(&bytes, 1).unwrap(), tree);
        assert!(is_buckets(&bytes));
        assert!(parse_hex(&bytes, 2).is_err());
        assert!(parse_hex(&[], 1).is_err());
        assert!(parse_hex(&bytes[..bytes.len() - 1], 1).is_err());
        let twice = [bytes.clone(), bytes].concat();
        assert!(parse_hex(&twice, 1).is_err());
        let mut foreign = serialize_hex(&tree[..1], 1);
        foreign[5] = b'5';
        assert_eq!(parse_hex(&foreign, 1), Err("has an entry of a foreign kind"));
        assert!(parse_hex(b"100644 A\0aaaaaaaaaaaaaaaaaaaa", 1).is_err());
    }

    #[test]
    fn git_accepts_these_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let repo = git2::Repository::init_bare(dir.path()).unwrap();
        let odb = repo.odb().unwrap();
        let blob = odb.write(git2::ObjectType::Blob, b"x").unwrap();
        let other = odb.write(git2::ObjectType::Blob, b"y").unwrap();
        let leaf = odb.write(git2::ObjectType::Tree, &serialize_leaf(blob, [other].into_iter())).unwrap();
        let (a, b) = (Node::tree(leaf), Node::blob(blob));
        let dirs = odb.write(git2::ObjectType::Tree, &serialize_hex(&[(0xabc, a), (0xdef, b)], 14)).unwrap();
        let root = Root { ctx: blob, dirs: Some(Node::tree(dirs)), inodes: None, version: other };
        let root = odb.write(git2::ObjectType::Tree, &serialize_root(&root)).unwrap();
        let commit = odb.write(git2::ObjectType::Commit, &serialize_commit(root)).unwrap();
        assert_eq!(repo.find_commit(commit).unwrap().tree().unwrap().get_name("d").unwrap().id(), dirs);
        let found = repo.find_tree(dirs).unwrap();
        assert_eq!(found.get_name("00000000000abc").unwrap().id(), leaf);
        assert_eq!(repo.find_tree(leaf).unwrap().len(), 2);
    }
}
