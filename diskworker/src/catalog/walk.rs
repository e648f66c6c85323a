//! Lists the objects that one state has and another one lacks, by walking both trees at once and skipping what is equal at
//! the same path. It looks at nothing but git's own structure, so it works for whatever a ref of the repository holds.

use std::collections::{HashMap, HashSet};

use git2::{ObjectType, Oid};

use super::CatalogError;
use super::objects::Objects;
use super::tree::{RawEntries, tree_of_commit};

/// See the module.
pub(super) struct Walk<'a, 'r> {
    objects: &'a Objects<'r>,
    /// Listed already, or not to be listed.
    pub seen: HashSet<Oid>,
    /// Commits and trees before what they refer to.
    pub order: Vec<Oid>,
}

impl<'a, 'r> Walk<'a, 'r> {
    pub(super) fn new(objects: &'a Objects<'r>, seen: HashSet<Oid>) -> Self {
        Self { objects, seen, order: Vec::new() }
    }

    /// List a commit and what it has that the tree `have` lacks.
    pub(super) fn commit(&mut self, commit: Oid, have: Option<Oid>) -> Result<(), CatalogError> {
        let mut waiting = vec![commit];
        while let Some(commit) = waiting.pop() {
            if !self.list(commit) {
                continue;
            }
            let bytes = self.objects.get(ObjectType::Commit, commit)?;
            // States have no parents, snapshots may.
            let text = String::from_utf8_lossy(&bytes);
            let header = text.lines().take_while(|line| !line.is_empty());
            waiting.extend(header.filter_map(|line| line.strip_prefix("parent ")?.parse::<Oid>().ok()));
            let tree = tree_of_commit(&bytes).ok_or_else(|| CatalogError::damaged(commit, "is no commit"))?;
            self.tree(tree, have)?;
        }
        Ok(())
    }

    fn list(&mut self, oid: Oid) -> bool {
        let new = self.seen.insert(oid);
        if new {
            self.order.push(oid);
        }
        new
    }

    fn tree(&mut self, new: Oid, old: Option<Oid>) -> Result<(), CatalogError> {
        if old == Some(new) || !self.list(new) {
            return Ok(());
        }
        // The old state may have been dropped meanwhile; then more is listed than need be.
        let old = match old {
            Some(old) => self.objects.find(old)?.filter(|(kind, _)| *kind == ObjectType::Tree),
            None => None,
        };
        let old = old.as_ref().map_or(&[][..], |(_, data)| data);
        let old: HashMap<&[u8], Oid> = RawEntries(old).flatten().map(|(_, name, oid)| (name, oid)).collect();
        let data = self.objects.tree(new)?;
        for entry in RawEntries(&data) {
            let (mode, name, oid) = entry.map_err(|why| CatalogError::damaged(new, why))?;
            let before = old.get(name).copied();
            match mode {
                b"40000" => self.tree(oid, before)?,
                _ if before != Some(oid) => drop(self.list(oid)),
                _ => {}
            }
        }
        Ok(())
    }
}
