//! A decoded directory: its sets, and what is derived from them for quick answers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Instant;

use delugefs_proto::codec::Leaf;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Dot, Element, Hlc, Name};

use crate::view::{self, Shown, What};

/// See the module.
pub(super) struct Dir {
    leaf: Leaf,
    /// A name of every node in it, and whether that is a name of a link.
    by_ino: HashMap<Ino, (Name, bool)>,
    /// Numbers of files that more than one name has had: one was renamed or linked here and written there.
    doubled: HashSet<Ino>,
    /// Conflict copies: shown name -> (name they lie under, tag).
    conflicts: BTreeMap<Name, (Name, u32)>,
    subdirs: u32,
    /// When it was last used, in ticks of the namespace.
    pub(super) used: u64,
    pub(super) used_at: Instant,
}

impl Dir {
    pub(super) fn new(leaf: Leaf) -> Self {
        let (by_ino, doubled, conflicts) = Default::default();
        let mut dir =
            Self { leaf: Leaf::new(), by_ino, doubled, conflicts, subdirs: 0, used: 0, used_at: Instant::now() };
        for (name, elements) in &leaf {
            dir.index(name, elements);
        }
        dir.leaf = leaf;
        dir
    }

    /// It is used, at this tick.
    pub(super) fn used_now(&mut self, tick: u64) {
        (self.used, self.used_at) = (tick, Instant::now());
    }

    /// Sets in it, the header's included.
    pub(super) fn len(&self) -> usize {
        self.leaf.len()
    }

    /// What it takes in the cache, in entries: an empty or absent one is not free.
    pub(super) fn cost(&self) -> usize {
        self.leaf.len() + 2
    }

    /// The header's set; empty when the directory does not exist.
    pub(super) fn header(&self) -> &[Element] {
        self.get(&Name::header())
    }

    /// The set under a name; empty if there is none.
    pub(super) fn get(&self, name: &Name) -> &[Element] {
        self.leaf.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn subdirs(&self) -> u32 {
        self.subdirs
    }

    pub(super) fn name_of(&self, ino: Ino) -> Option<&Name> {
        self.by_ino.get(&ino).map(|(name, _)| name)
    }

    /// The files that are to get another number, of all that share one: all but the latest, or all where links have it. Each by its
    /// number, the name of its set and its tag.
    pub(super) fn namesakes(&mut self) -> Vec<(Ino, Name, Option<u32>)> {
        if self.doubled.is_empty() {
            return Vec::new();
        }
        /// The files that have a number, the latest last once they are sorted, and whether links have it too.
        type Holders = (Vec<((Hlc, Dot), Name, Option<u32>)>, bool);
        let mut of_number: HashMap<Ino, Holders> = HashMap::new();
        for (name, elements) in self.leaf.iter().filter(|(name, _)| !name.is_header()) {
            for shown in view::view(elements).into_iter().filter(|shown| self.doubled.contains(&shown.ino)) {
                let (files, is_linked) = of_number.entry(shown.ino).or_default();
                match shown.what {
                    What::File(parts) => files.push(((parts.content.hlc, parts.content.dot), name.clone(), shown.tag)),
                    What::Link => *is_linked = true,
                    What::Dir => {}
                }
            }
        }
        self.doubled
            .retain(|ino| of_number.get(ino).is_some_and(|(files, linked)| files.len() + usize::from(*linked) > 1));
        let mut losers = Vec::new();
        for (ino, (mut files, is_linked)) in of_number {
            files.sort_unstable();
            if !is_linked {
                files.pop();
            }
            losers.extend(files.into_iter().map(|(_, name, tag)| (ino, name, tag)));
        }
        losers
    }

    /// A name that shows this number.
    fn find(&self, ino: Ino) -> Option<(Name, bool)> {
        self.sets().find_map(|(name, elements)| {
            let shown = view::view(elements).into_iter().find(|shown| shown.ino == ino)?;
            Some((shown_name(name, &shown), shown.what == What::Link))
        })
    }

    /// Where the node shown under a name lies: the name of its set, and its tag.
    pub(super) fn resolve(&self, name: &Name) -> Option<(Name, Option<u32>)> {
        if !view::view(self.get(name)).is_empty() {
            return Some((name.clone(), None));
        }
        self.conflicts.get(name).map(|(base, tag)| (base.clone(), Some(*tag)))
    }

    /// The name whose set shows a conflict copy under this name, whatever else is there.
    pub(super) fn base_of(&self, name: &Name) -> Option<&Name> {
        self.conflicts.get(name).map(|(base, _)| base)
    }

    /// All sets but the header.
    pub(super) fn sets(&self) -> impl Iterator<Item = (&Name, &Vec<Element>)> {
        self.leaf.iter().filter(|(name, _)| !name.is_header())
    }

    /// Shown names behind `after`, in byte order, with the set they lie in and their tag.
    pub(super) fn names_after<'a>(&'a self, after: &Name) -> impl Iterator<Item = (&'a Name, &'a Name, Option<u32>)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let bounds = || (Excluded(after.clone()), Unbounded);
        let mut plain = self.leaf.range(bounds()).filter(|(name, _)| !name.is_header()).peekable();
        let mut copies = self.conflicts.range(bounds()).peekable();
        std::iter::from_fn(move || {
            let take_copy = match (plain.peek(), copies.peek()) {
                (Some((a, _)), Some((b, _))) => b < a,
                (None, Some(_)) => true,
                _ => false,
            };
            if take_copy {
                copies.next().map(|(shown, (base, tag))| (shown, base, Some(*tag)))
            } else {
                plain.next().map(|(name, _)| (name, name, None))
            }
        })
    }

    /// Set what lies under a name.
    pub(super) fn put(&mut self, name: Name, elements: Vec<Element>) {
        let mut left = Vec::new();
        if let Some(old) = self.leaf.remove(&name) {
            for shown in view::view(&old) {
                if self.name_of(shown.ino).is_some_and(|n| *n == shown_name(&name, &shown)) {
                    self.by_ino.remove(&shown.ino);
                    if self.doubled.contains(&shown.ino) {
                        left.push(shown.ino);
                    }
                }
                if matches!(shown.what, What::Dir) {
                    self.subdirs -= 1;
                }
                if let Some(tag) = shown.tag {
                    self.conflicts.remove(&view::conflict_name(&name, tag));
                }
            }
        }
        if !elements.is_empty() {
            self.index(&name, &elements);
            self.leaf.insert(name, elements);
        }
        for ino in left {
            if !self.by_ino.contains_key(&ino) {
                match self.find(ino) {
                    Some(found) => drop(self.by_ino.insert(ino, found)),
                    None => drop(self.doubled.remove(&ino)),
                }
            }
        }
    }

    fn index(&mut self, name: &Name, elements: &[Element]) {
        if name.is_header() {
            return;
        }
        for shown in view::view(elements) {
            let full = shown_name(name, &shown);
            if let Some(tag) = shown.tag {
                self.conflicts.insert(full.clone(), (name.clone(), tag));
            }
            if matches!(shown.what, What::Dir) {
                self.subdirs += 1;
            }
            let is_link = shown.what == What::Link;
            if self.by_ino.get(&shown.ino).is_some_and(|(other, linked)| *other != full && !(is_link && *linked)) {
                self.doubled.insert(shown.ino);
            }
            self.by_ino.insert(shown.ino, (full, is_link));
        }
    }
}

/// What the elements under a name show: full names, and the nodes they belong to.
pub(super) fn shown(base: &Name, elements: &[Element]) -> BTreeSet<(Name, Ino)> {
    view::view(elements).iter().map(|shown| (shown_name(base, shown), shown.ino)).collect()
}

fn shown_name(name: &Name, shown: &Shown<'_>) -> Name {
    shown.tag.map_or_else(|| name.clone(), |tag| view::conflict_name(name, tag))
}
