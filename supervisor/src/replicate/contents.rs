//! All contents that files have, as the catalog of a worker says them. Kept small, for there are many: equal sets of
//! holders are one set in memory, and the policy looks at the list as it is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use delugefs_proto::ids::{ContentId, DiskId};
use delugefs_proto::worker_pb as wpb;

use crate::policy::Content;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// In the order of their ids.
    list: Vec<Content>,
    /// Of those that have piece hashes: the attachment with them.
    pieces: HashMap<ContentId, Box<[u8]>>,
    sets: HashSet<Arc<[DiskId]>>,
}

impl Contents {
    /// All of them.
    pub fn all(&self) -> &[Content] {
        &self.list
    }

    /// One of them.
    pub fn get(&self, id: ContentId) -> Option<&Content> {
        let at = self.list.binary_search_by_key(&id, |content| content.id).ok()?;
        self.list.get(at)
    }

    /// Which attachment has the piece hashes of a content; empty without any.
    pub fn pieces(&self, id: ContentId) -> Vec<u8> {
        self.pieces.get(&id).map_or_else(Vec::new, |pieces| pieces.to_vec())
    }

    /// Take in a part of a new walk. What is as it was in the one `before` keeps the time it last changed.
    pub fn add(&mut self, before: &Self, ids: &[Option<DiskId>], said: &[wpb::Content], now: u64) {
        for said in said {
            let Some(id) = ContentId::from_slice(&said.content) else { continue };
            let holders = self.set(said.holders.iter().filter_map(|at| ids.get(*at as usize).copied().flatten()));
            let same = |old: &&Content| old.holders == holders && old.wanted == said.wanted;
            let changed_s = before.get(id).filter(same).map_or(now, |old| old.changed_s);
            self.list.push(Content { id, size_bytes: said.size_bytes, wanted: said.wanted, holders, changed_s });
            if !said.pieces.is_empty() {
                self.pieces.insert(id, said.pieces.clone().into());
            }
        }
    }

    /// After the last part.
    pub fn end(&mut self) {
        self.list.sort_unstable_by_key(|content| content.id);
        self.list.shrink_to_fit();
    }

    fn set(&mut self, holders: impl Iterator<Item = DiskId>) -> Arc<[DiskId]> {
        let mut holders: Vec<DiskId> = holders.collect();
        holders.sort_unstable();
        match self.sets.get(&holders[..]) {
            Some(set) => set.clone(),
            None => {
                let set: Arc<[DiskId]> = holders.into();
                self.sets.insert(set.clone());
                set
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_change_keeps_its_time() {
        let said = |n: u8, wanted, holders: &[u32], pieces: &[u8]| wpb::Content {
            content: vec![n; 32],
            size_bytes: 5,
            wanted,
            holders: holders.to_vec(),
            pieces: pieces.to_vec(),
        };
        let ids = [Some(DiskId([8; 32])), None, Some(DiskId([7; 32]))];
        let mut first = Contents::default();
        first.add(&Contents::default(), &ids, &[said(2, 2, &[0, 2], b"p"), said(1, 2, &[2, 1, 0, 9], b"")], 10);
        first.end();
        let id = |n| ContentId([n; 32]);
        assert_eq!(first.all().iter().map(|content| content.id).collect::<Vec<_>>(), [id(1), id(2)]);
        assert_eq!(*first.all()[0].holders, [DiskId([7; 32]), DiskId([8; 32])], "in order, without what is no id");
        assert!(Arc::ptr_eq(&first.all()[0].holders, &first.all()[1].holders));
        assert_eq!((first.pieces(id(2)), first.pieces(id(1))), (b"p".to_vec(), vec![]));
        let mut second = Contents::default();
        second.add(&first, &ids, &[said(1, 2, &[0, 2], b""), said(2, 3, &[0, 2], b""), said(3, 2, &[0], b"")], 20);
        second.end();
        assert_eq!(second.all().iter().map(|content| content.changed_s).collect::<Vec<_>>(), [10, 20, 20]);
        assert!(second.get(id(4)).is_none());
    }
}
