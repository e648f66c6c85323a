//! Checks that a commit is a state in every respect: each object there and in its one form, every set strictly
//! decodable, every directory in the shape its entries call for, every attachment there and of the right length, every
//! dot covered. Of an imported state what is equal to our own at the same path is not looked at again: we hold
//! it, and checked it before.
//!
//! Whether the version vector covers dots in such equal parts is not checked either, and need not be: a join keeps
//! what both sides have, and the joined version vector includes ours, which covers them.

use std::collections::{BTreeSet, HashSet};

use delugefs_proto::codec::{Leaf, decode_leaf, decode_version_vector};
use delugefs_proto::limits::{
    FILE_MAX_BYTES, INLINE_MAX_BYTES, LEAF_MAX_DEPTH, LEAF_MAX_ENTRIES, XATTR_VALUE_MAX_BYTES,
};
use delugefs_proto::record::{Body, Data, Element, VersionVector, XattrValue};
use git2::{ObjectType, Oid};

use super::CatalogError;
use super::changes::to_oid;
use super::content::{self, Content, NameHash, attachment_lengths, fits_leaf, leaf_attachments};
use super::layout::{self, Place, SHARD_LEVELS, Space, width};
use super::objects::{self, Objects};
use super::tree::{self, HexTree, Kind, Node, Root};

/// What to do about a problem.
pub(super) enum OnProblem {
    /// Refuse the state.
    Refuse,
    /// Note it and go on, as far as it goes.
    Collect(Vec<String>),
}

/// What to look at, at most: a small tree can refer to one subtree very often.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckLimits {
    pub keys: u64,
    /// Of records and trees.
    pub bytes: u64,
    /// Of memory that the keys and elements take when they are joined.
    pub memory_bytes: u64,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub objects: u64,
    bytes: u64,
    memory_bytes: u64,
    /// Leaves that were met before, at another place.
    repeated: u64,
    pub directories: u64,
    pub keys: u64,
    pub attachments: u64,
}

/// See the module.
pub(super) struct Checker<'a, 'r> {
    pub objects: &'a Objects<'r>,
    pub on_problem: OnProblem,
    pub counts: Counts,
    limits: CheckLimits,
    /// Whether to read attachments too, or only to look whether they are there.
    pub read_attachments: bool,
    ctx: VersionVector,
    leaves: HashSet<Oid>,
}

/// Largest time and number of a change: far beyond all that is honest (the year 2116), and far from where they end.
pub const COUNT_MAX: u64 = 1 << 62;
/// Most actors of a version vector. Each start of a disk takes one: a thousand disks that start every day need seven years for that. It is
/// a quarter of what an object may have room for, so that whoever has joined one can still commit.
const ACTORS_MAX: usize = 1 << 20;
/// Largest number of elements under one name, or of one inode but for its names: to tell what a set shows takes the square of it. Each
/// host that changes the same at the same time adds three.
const SET_MAX: usize = 4096;
/// A leaf may be at several places: both names of a file that gets a second one get one dot, so that a directory whose files were all linked
/// into another one, under their names, has the same leaves. So many times more often than there are leaves, and so often in any state.
const REPEATED_MAX: u64 = 4;
const REPEATED_FEW: u64 = 4096;
/// What a key takes in memory beside its elements, about.
const KEY_BYTES: u64 = 128;

/// What a parent must know of a bucket to tell whether it should be split.
#[derive(Clone, Copy)]
enum Shape {
    Leaf(usize),
    Split,
}

/// Where in the layout the checker is.
#[derive(Clone, Copy)]
struct At {
    space: Space,
    place: Place,
    /// Digits of the buckets above.
    path: [u8; LEAF_MAX_DEPTH],
    depth: usize,
}

type Checked<T> = Result<Option<T>, CatalogError>;

impl<'a, 'r> Checker<'a, 'r> {
    pub(super) fn new(objects: &'a Objects<'r>, on_problem: OnProblem, limits: CheckLimits) -> Self {
        let (counts, ctx) = (Counts::default(), VersionVector::default());
        Self { objects, on_problem, counts, limits, read_attachments: false, ctx, leaves: HashSet::new() }
    }

    /// Note a problem, or refuse the state because of it.
    fn problem<T>(&mut self, what: String) -> Checked<T> {
        match &mut self.on_problem {
            OnProblem::Refuse => Err(CatalogError::Refused(what)),
            OnProblem::Collect(problems) => {
                problems.push(what);
                Ok(None)
            }
        }
    }

    /// An error of reading as a problem of the state, where it is one.
    fn note<T>(&mut self, result: Result<T, CatalogError>) -> Checked<T> {
        match (result, &self.on_problem) {
            (Ok(value), _) => Ok(Some(value)),
            (Err(CatalogError::Missing(oid)), _) => self.problem(format!("object {oid} is missing")),
            (Err(CatalogError::Damaged(what)), _) => self.problem(what),
            (Err(CatalogError::Git(doing, why)), OnProblem::Collect(_)) => {
                self.problem(format!("cannot {doing}: {}", why.message()))
            }
            (Err(why), _) => Err(why),
        }
    }

    fn read(&mut self, kind: ObjectType, oid: Oid) -> Checked<objects::Data<'a>> {
        self.counts.objects += 1;
        let objects = self.objects;
        let data = self.note(objects.get(kind, oid))?;
        self.counts.bytes += data.as_ref().map_or(0, |data| data.len() as u64);
        if self.counts.bytes > self.limits.bytes {
            return Err(CatalogError::Refused(format!("it has more than {} bytes of records", self.limits.bytes)));
        }
        Ok(data)
    }

    /// Check a state. `trusted` is the root of one that needs no check. Returns its tree and version vector; `None`
    /// when problems were collected that leave nothing to return.
    pub(super) fn state(&mut self, commit: Oid, trusted: Option<&Root>) -> Checked<(Oid, VersionVector)> {
        let Some(bytes) = self.read(ObjectType::Commit, commit)? else { return Ok(None) };
        let tree = match tree::tree_of_commit(&bytes) {
            Some(tree) if *tree::serialize_commit(tree) == *bytes => tree,
            _ => return self.problem(format!("commit {commit} is no commit of a state")),
        };
        let objects = self.objects;
        let Some(root) = self.note(layout::root(objects, tree))? else { return Ok(None) };
        let Some(bytes) = self.read(ObjectType::Blob, root.ctx)? else { return Ok(None) };
        self.ctx = match decode_version_vector(&bytes) {
            Ok(ctx) => ctx,
            Err(why) => return self.problem(format!("version vector {}: {why}", root.ctx)),
        };
        if let Some((actor, seq)) = self.ctx.0.iter().find(|(_, seq)| **seq > COUNT_MAX) {
            let text = format!("version vector {}: {seq} changes of actor {actor:?}", root.ctx);
            self.problem::<()>(text)?;
        }
        if self.ctx.0.len() > ACTORS_MAX {
            let text = format!("version vector {}: {} actors, not {ACTORS_MAX} at most", root.ctx, self.ctx.0.len());
            self.problem::<()>(text)?;
        }
        self.counts.objects += 2;
        for space in [Space::Dirs, Space::Inodes] {
            let at = At { space, place: Place::TOP, path: [0; LEAF_MAX_DEPTH], depth: 0 };
            if let Some(node) = space.node(&root) {
                self.shards(at, node, trusted.and_then(|root| space.node(root)), 0)?;
            }
        }
        Ok(Some((tree, self.ctx.clone())))
    }

    fn shards(&mut self, at: At, node: Node, trusted: Option<Node>, level: usize) -> Result<(), CatalogError> {
        if Some(node) == trusted {
            return Ok(());
        }
        let Some(tree) = self.hex_tree(node, width(level))? else { return Ok(()) };
        let trusted = match trusted {
            Some(trusted) => self.objects.hex_tree(trusted.oid, width(level))?,
            None => HexTree::new(),
        };
        for (key, node) in tree {
            let at = At { place: at.place.below(level, key), ..at };
            let trusted = tree::get(&trusted, key);
            if level < SHARD_LEVELS {
                self.shards(at, node, trusted, level + 1)?;
            } else if !at.place.ino().is_storable() {
                self.problem::<()>(format!("inode number {} is reserved", at.place.ino()))?;
            } else if Some(node) != trusted {
                self.counts.directories += 1;
                self.content(at, node, trusted)?;
            }
        }
        Ok(())
    }

    fn hex_tree(&mut self, node: Node, width: usize) -> Checked<HexTree> {
        if node.kind != Kind::Tree {
            return self.problem(format!("object {} is where a tree must be", node.oid));
        }
        let Some(bytes) = self.read(ObjectType::Tree, node.oid)? else { return Ok(None) };
        match tree::parse_hex(&bytes, width) {
            Ok(tree) => Ok(Some(tree)),
            Err(why) => self.problem(format!("tree {} {why}", node.oid)),
        }
    }

    /// Check a directory or one of its buckets.
    fn content(&mut self, at: At, node: Node, trusted: Option<Node>) -> Checked<Shape> {
        let mut entries = node.oid;
        let mut attached = Vec::new();
        if node.kind == Kind::Tree {
            let Some(bytes) = self.read(ObjectType::Tree, node.oid)? else { return Ok(None) };
            if tree::is_buckets(&bytes) {
                return self.buckets(at, node, trusted);
            }
            match tree::parse_leaf(&bytes) {
                Ok(leaf) => (entries, attached) = (leaf.entries, leaf.attachments),
                Err(why) => return self.problem(format!("tree {} {why}", node.oid)),
            }
        }
        let Some(bytes) = self.read(ObjectType::Blob, entries)? else { return Ok(None) };
        self.note_leaf(entries)?;
        match decode_leaf(&bytes) {
            Ok(leaf) => {
                let ours = match trusted.map(|node| content::load(self.objects, node)).transpose()? {
                    Some(Content::Leaf(ours)) => ours,
                    _ => Leaf::new(),
                };
                self.note_memory(bytes.len(), &leaf, &ours)?;
                self.leaf(at, node, &leaf, &attached)?;
                Ok(Some(Shape::Leaf(leaf.len())))
            }
            Err(why) => self.problem(format!("leaf {entries} of {}: {why}", at.place.ino())),
        }
    }

    /// What is repeated costs who sends it nothing, and who joins it as much as anything else.
    fn note_leaf(&mut self, entries: Oid) -> Result<(), CatalogError> {
        let is_ours = matches!(self.on_problem, OnProblem::Collect(_));
        if is_ours || self.leaves.insert(entries) {
            return Ok(());
        }
        self.counts.repeated += 1;
        if self.counts.repeated > REPEATED_FEW + REPEATED_MAX * self.leaves.len() as u64 {
            return Err(CatalogError::Refused(format!("it refers to the same leaf {entries} too often")));
        }
        Ok(())
    }

    /// A join holds the sets that differ, and of those that were changed here and there alone they are few in a leaf.
    fn note_memory(&mut self, encoded: usize, leaf: &Leaf, ours: &Leaf) -> Result<(), CatalogError> {
        let differing = leaf.iter().filter(|(name, set)| ours.get(*name) != Some(*set));
        let (keys, elements) = differing.fold((0, 0), |(keys, elements), (_, set)| (keys + 1, elements + set.len()));
        let encoded = encoded * keys / leaf.len().max(1);
        self.counts.memory_bytes += (encoded + elements * size_of::<Element>()) as u64 + KEY_BYTES * keys as u64;
        match self.counts.memory_bytes > self.limits.memory_bytes {
            true => Err(CatalogError::Refused("it has more records than there is memory for here".into())),
            false => Ok(()),
        }
    }

    fn leaf(&mut self, at: At, node: Node, leaf: &Leaf, attached: &[Oid]) -> Result<(), CatalogError> {
        let ino = at.place.ino();
        self.counts.keys += leaf.len() as u64;
        if self.counts.keys > self.limits.keys {
            return Err(CatalogError::Refused(format!("it has more than {} keys", self.limits.keys)));
        }
        if leaf.is_empty() || !fits_leaf(leaf.len(), at.depth) {
            self.problem::<()>(format!("a leaf of {ino} has {} keys", leaf.len()))?;
        }
        if at.space == Space::Inodes && (leaf.len() != 1 || !leaf.keys().all(|name| name.is_header())) {
            self.problem::<()>(format!("inode {ino} is no single set"))?;
        }
        for name in leaf.keys() {
            let hash = NameHash::of(name);
            if (0..at.depth).any(|depth| hash.digit(depth) != u64::from(at.path[depth])) {
                self.problem::<()>(format!("entry {name} of {ino} is in the wrong bucket"))?;
            }
        }
        if let Some(element) = leaf.values().flatten().find(|element| !self.ctx.has_seen(element.dot)) {
            let dot = element.dot;
            self.problem::<()>(format!("the version vector does not cover {dot:?} of {ino}"))?;
        }
        if let Some(late) = leaf.values().flatten().find(|element| element.hlc.0 > COUNT_MAX) {
            let hlc = late.hlc;
            self.problem::<()>(format!("a time of {ino} is {hlc:?}"))?;
        }
        let is_large = |set: &&Vec<Element>| {
            set.len() > SET_MAX && set.iter().filter(|e| !matches!(e.body, Body::Ref { .. })).count() > SET_MAX
        };
        if let Some(set) = leaf.values().find(is_large) {
            self.problem::<()>(format!("a set of {ino} has {} elements", set.len()))?;
        }
        if let Some(size) = leaf.values().flatten().find_map(too_large) {
            self.problem::<()>(format!("what {ino} has in the catalog is too large for it: {size} bytes"))?;
        }
        if let Some(size) = leaf.values().flatten().find_map(too_long) {
            self.problem::<()>(format!("a file of {ino} is longer than any: {size} bytes"))?;
        }
        if !leaf_attachments(leaf).iter().eq(attached) {
            self.problem::<()>(format!("leaf {} of {ino} has other attachments than its records say", node.oid))?;
        }
        let lengths: BTreeSet<_> = leaf.values().flatten().flat_map(attachment_lengths).collect();
        for (id, len) in lengths {
            self.attachment(to_oid(id), len)?;
        }
        Ok(())
    }

    fn attachment(&mut self, oid: Oid, len: u64) -> Result<(), CatalogError> {
        self.counts.attachments += 1;
        let found = if self.read_attachments {
            self.read(ObjectType::Blob, oid)?.map(|data| data.len() as u64)
        } else {
            let objects = self.objects;
            self.note(objects.blob_len(oid))?
        };
        match found {
            Some(found) if found != len => {
                self.problem::<()>(format!("attachment {oid} has {found} bytes instead of {len}")).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn buckets(&mut self, at: At, node: Node, trusted: Option<Node>) -> Checked<Shape> {
        let ino = at.place.ino();
        if at.depth >= LEAF_MAX_DEPTH || at.space == Space::Inodes {
            return self.problem(format!("{ino} is split too deep"));
        }
        let Some(buckets) = self.hex_tree(node, 1)? else { return Ok(None) };
        let trusted = match trusted.map(|node| content::load(self.objects, node)).transpose()? {
            Some(Content::Buckets(trusted)) => trusted,
            _ => HexTree::new(),
        };
        let (mut keys, mut unread) = (0, Vec::new());
        let mut is_split = false;
        let mut is_whole = true;
        for (digit, node) in buckets {
            let mut below = At { depth: at.depth + 1, ..at };
            below.path[at.depth] = digit as u8;
            let trusted = tree::get(&trusted, digit);
            if Some(node) == trusted {
                unread.push(node);
                continue;
            }
            match self.content(below, node, trusted)? {
                Some(Shape::Leaf(more)) => keys += more,
                Some(Shape::Split) => is_split = true,
                None => is_whole = false,
            }
        }
        for node in unread {
            if is_split || keys > LEAF_MAX_ENTRIES {
                break;
            }
            match content::load(self.objects, node)? {
                Content::Leaf(leaf) => keys += leaf.len(),
                Content::Buckets(_) => is_split = true,
            }
        }
        if is_whole && !is_split && keys <= LEAF_MAX_ENTRIES {
            return self.problem(format!("{ino} is split for {keys} keys"));
        }
        Ok(Some(Shape::Split))
    }
}

/// The length of a file that is longer than any can be written: sums of such lengths would overflow.
fn too_long(element: &Element) -> Option<u64> {
    match &element.body {
        Body::Content { data: Data::Stored { size, .. }, .. } => Some(*size).filter(|size| *size > FILE_MAX_BYTES),
        _ => None,
    }
}

/// The length of what an element has beside it, if that is more than anybody puts there: it is read as a whole, and sent in one answer.
fn too_large(element: &Element) -> Option<u64> {
    let xattrs = match &element.body {
        Body::Content { data: Data::Inline { size, .. }, .. } => {
            return Some(u64::from(*size)).filter(|size| *size > INLINE_MAX_BYTES);
        }
        Body::Attrs { xattrs, .. } | Body::Head { xattrs, .. } => xattrs,
        _ => return None,
    };
    let mut sizes = xattrs.values().filter_map(|value| match value {
        XattrValue::Blob { size, .. } => Some(u64::from(*size)),
        XattrValue::Inline(_) => None,
    });
    sizes.find(|size| *size > XATTR_VALUE_MAX_BYTES as u64)
}
