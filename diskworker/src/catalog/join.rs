//! Joins two states: an observed-remove map, element by element, directly on the git trees. Equal subtrees are skipped
//! without reading them. A subtree that only one side has is still walked: the other side may have seen its elements
//! and removed them.
//!
//! There is no shortcut for the case that one side includes all the other one knows: there the walk ends up with a tree
//! that is already there, writes nothing, and finds what changed on its way. So it needs no assumption on how removals
//! are counted.

use std::collections::{BTreeMap, BTreeSet};

use delugefs_proto::codec::{Leaf, canonicalize};
use delugefs_proto::limits::LEAF_MAX_DEPTH;
use delugefs_proto::record::{Element, Key, Name, VersionVector};

use super::content::{self, Content};
use super::layout::{self, Place, SHARD_LEVELS, Space, width};
use super::objects::Objects;
use super::packdir;
use super::tree::{self, HexTree, Node};
use super::versions::{Succession, succession};
use super::{Catalog, CatalogError, State};

/// Successions one join reports.
const SUCCESSIONS_MAX: usize = 1024;

/// What a join made.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The committed state now.
    pub state: State,
    /// Keys whose set differs from the state before, with their new set (empty: gone).
    pub changed: BTreeMap<Key, Vec<Element>>,
    /// Large contents that came in place of others: the first ones, when there are very many.
    pub successions: Vec<Succession>,
}

impl Catalog {
    /// Join the committed state with an imported one, durably. Afterwards the committed state includes both.
    ///
    /// # Errors
    /// When an object cannot be read or written. The state is then the old one.
    pub fn join(&self, theirs: &State) -> Result<Joined, CatalogError> {
        self.join_noting(theirs, |_| ())
    }

    /// The same. Who has to write something down of what the join takes does so in `note`, given the keys that change and what they are set
    /// to then: from the next moment on the joined state is the committed one, whatever becomes of this process. Unless the join fails then.
    pub fn join_noting(
        &self,
        theirs: &State,
        note: impl FnOnce(&BTreeMap<Key, Vec<Element>>),
    ) -> Result<Joined, CatalogError> {
        let _writer = self.writer.lock();
        let (ours, handle) = (self.current(), self.handles.get()?);
        if ours.commit == theirs.commit {
            return Ok(Joined { state: State::clone(&ours), changed: BTreeMap::new(), successions: Vec::new() });
        }
        let mut objects = Objects::new(&handle)?;
        let (root, their_root) = (layout::root(&objects, ours.tree)?, layout::root(&objects, theirs.tree)?);
        let (changed, successions) = (BTreeMap::new(), Vec::new());
        let mut join = Join { objects: &mut objects, ours: &ours.ctx, theirs: &theirs.ctx, changed, successions };
        let dirs = join.shards(Space::Dirs, root.dirs, their_root.dirs, 0, Place::TOP)?;
        let inodes = join.shards(Space::Inodes, root.inodes, their_root.inodes, 0, Place::TOP)?;
        let (changed, successions) = (join.changed, join.successions);
        let mut ctx = ours.ctx.clone();
        ctx.merge(&theirs.ctx);
        let (commit, tree) = layout::put_state(&mut objects, dirs, inodes, &ctx)?;
        let state = if commit == ours.commit {
            State::clone(&ours)
        } else {
            if commit != theirs.commit {
                objects.write_pack(&packdir::path(&self.dir), commit)?;
            }
            note(&changed);
            self.publish(self.pins.pin(commit, tree, ctx))?
        };
        Ok(Joined { state, changed, successions })
    }
}

/// The elements of two sets, in canonical order and each with what its side has seen, that stay.
fn join_sets((a, seen_a): (&[Element], &VersionVector), (b, seen_b): (&[Element], &VersionVector)) -> Vec<Element> {
    /// Whether a set has this element. By dot and body: the clock only decides what is shown.
    fn has(set: &[Element], element: &Element) -> bool {
        let from = set.partition_point(|other| other.dot < element.dot);
        set[from..].iter().take_while(|other| other.dot == element.dot).any(|other| other.body == element.body)
    }
    let of_a = a.iter().filter(|element| !seen_b.has_seen(element.dot) || has(b, element));
    let of_b = b.iter().filter(|element| !seen_a.has_seen(element.dot) || has(a, element));
    let mut joined: Vec<Element> = of_a.chain(of_b).cloned().collect();
    canonicalize(&mut joined);
    joined
}

struct Join<'a, 'r> {
    objects: &'a mut Objects<'r>,
    ours: &'a VersionVector,
    theirs: &'a VersionVector,
    changed: BTreeMap<Key, Vec<Element>>,
    successions: Vec<Succession>,
}

/// The keys of two trees.
fn keys(a: &[(u64, Node)], b: &[(u64, Node)]) -> BTreeSet<u64> {
    a.iter().chain(b).map(|(key, _)| *key).collect()
}

impl Join<'_, '_> {
    /// Join the trees above the directories.
    fn shards(
        &mut self,
        space: Space,
        a: Option<Node>,
        b: Option<Node>,
        level: usize,
        place: Place,
    ) -> Result<Option<Node>, CatalogError> {
        if a == b {
            return Ok(a);
        }
        let (ours, theirs) = (self.shard_tree(a, level)?, self.shard_tree(b, level)?);
        let mut joined = HexTree::new();
        for key in keys(&ours, &theirs) {
            let (a, b) = (tree::get(&ours, key), tree::get(&theirs, key));
            let place = place.below(level, key);
            let node = match level {
                SHARD_LEVELS => self.content(&|name| space.key(place.ino(), name), a, b, 0)?,
                _ => self.shards(space, a, b, level + 1, place)?,
            };
            joined.extend(node.map(|node| (key, node)));
        }
        if joined == ours {
            Ok(a)
        } else if joined == theirs {
            Ok(b)
        } else {
            layout::put_tree(self.objects, &joined, level)
        }
    }

    fn shard_tree(&self, node: Option<Node>, level: usize) -> Result<HexTree, CatalogError> {
        node.map_or(Ok(HexTree::new()), |node| self.objects.hex_tree(node.oid, width(level)))
    }

    /// Join two directories, or the same bucket of both.
    fn content(
        &mut self,
        key: &dyn Fn(Name) -> Key,
        a: Option<Node>,
        b: Option<Node>,
        depth: usize,
    ) -> Result<Option<Node>, CatalogError> {
        if a == b {
            return Ok(a);
        }
        let load = |node: Option<Node>| node.map(|node| content::load(self.objects, node)).transpose();
        match (load(a)?, load(b)?) {
            (Some(Content::Buckets(ours)), Some(Content::Buckets(theirs))) => {
                self.buckets(key, (a, ours), (b, theirs), depth)
            }
            (Some(Content::Buckets(ours)), None) => self.buckets(key, (a, ours), (b, HexTree::new()), depth),
            (None, Some(Content::Buckets(theirs))) => self.buckets(key, (a, HexTree::new()), (b, theirs), depth),
            (ours, theirs) => {
                let ours = self.whole(a, ours)?;
                let theirs = self.whole(b, theirs)?;
                self.leaves(key, (a, ours), (b, theirs), depth)
            }
        }
    }

    /// All entries of one level, and of those below where it is split.
    fn whole(&self, node: Option<Node>, content: Option<Content>) -> Result<Leaf, CatalogError> {
        match (content, node) {
            (Some(Content::Leaf(leaf)), _) => Ok(leaf),
            (Some(Content::Buckets(_)), Some(node)) => {
                let mut leaf = Leaf::new();
                content::load_all(self.objects, node, &mut leaf)?;
                Ok(leaf)
            }
            _ => Ok(Leaf::new()),
        }
    }

    fn buckets(
        &mut self,
        key: &dyn Fn(Name) -> Key,
        (a, ours): (Option<Node>, HexTree),
        (b, theirs): (Option<Node>, HexTree),
        depth: usize,
    ) -> Result<Option<Node>, CatalogError> {
        if depth >= LEAF_MAX_DEPTH {
            return Err(CatalogError::Damaged("a directory is split too deep".into()));
        }
        let mut joined = HexTree::new();
        for digit in keys(&ours, &theirs) {
            let (a, b) = (tree::get(&ours, digit), tree::get(&theirs, digit));
            let node = self.content(key, a, b, depth + 1)?;
            joined.extend(node.map(|node| (digit, node)));
        }
        // What is equal to a side's is as canonical as that side is.
        if joined == ours {
            Ok(a)
        } else if joined == theirs {
            Ok(b)
        } else {
            content::collapse(self.objects, &joined, depth)
        }
    }

    fn leaves(
        &mut self,
        key: &dyn Fn(Name) -> Key,
        (a, ours): (Option<Node>, Leaf),
        (b, theirs): (Option<Node>, Leaf),
        depth: usize,
    ) -> Result<Option<Node>, CatalogError> {
        let mut joined = Leaf::new();
        let names: BTreeSet<&Name> = ours.keys().chain(theirs.keys()).collect();
        for name in names {
            let before = ours.get(name).map_or(&[][..], Vec::as_slice);
            let other = theirs.get(name).map_or(&[][..], Vec::as_slice);
            let set = join_sets((before, self.ours), (other, self.theirs));
            if set != before {
                if self.successions.len() < SUCCESSIONS_MAX {
                    self.successions.extend(succession(before, &set));
                }
                self.changed.insert(key(name.clone()), set.clone());
            }
            if !set.is_empty() {
                joined.insert(name.clone(), set);
            }
        }
        if joined == ours {
            Ok(a)
        } else if joined == theirs {
            Ok(b)
        } else {
            content::build(self.objects, joined, depth)
        }
    }
}
