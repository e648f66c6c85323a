//! Files in different directories that have one number: one was moved on one host while it was written on another, and both are there.
//! Opened by its number one would be shown for the other. To see that at once would need an index of all numbers; who walks the whole
//! catalog anyway ([`super::ledger`]) sees them, and one of each pair gets another.

use std::collections::{HashMap, HashSet};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Element, Key, Name};

use super::Engine;
use crate::namespace::catalog_error;
use crate::view;

/// The numbers met in a walk.
#[derive(Default)]
pub(super) struct Numbers {
    met: HashSet<Ino>,
    doubled: HashSet<Ino>,
}

impl Numbers {
    /// What lies under a key. Versions of one file are in one set, and are told apart by the view.
    pub fn note(&mut self, key: &Key, elements: &[Element]) {
        match key {
            Key::Inode(ino) => self.meet(*ino),
            Key::Entry(..) => {
                let content = |e: &Element| if let Body::Content { ino, .. } = e.body { Some(ino) } else { None };
                let mut inos: Vec<Ino> = elements.iter().filter_map(content).collect();
                inos.sort_unstable();
                inos.dedup();
                inos.into_iter().for_each(|ino| self.meet(ino));
            }
        }
    }

    fn meet(&mut self, ino: Ino) {
        if !self.met.insert(ino) {
            self.doubled.insert(ino);
        }
    }
}

impl Engine {
    /// Give other numbers to all but one of the files that share one. Not while one of them is being written here: then after that.
    pub(super) fn mend_doubles(&self, numbers: Numbers) -> FsResult<()> {
        let doubled = numbers.doubled;
        if doubled.is_empty() {
            return Ok(());
        }
        let mut places: HashMap<Ino, Vec<(Ino, Name)>> = HashMap::new();
        let mut visit = |key: &Key, elements: &[Element]| {
            if let Key::Entry(dir, name) = key
                && !name.is_header()
            {
                for shown in view::view(elements).iter().filter(|shown| doubled.contains(&shown.ino)) {
                    places.entry(shown.ino).or_default().push((*dir, name.clone()));
                }
            }
            Ok(())
        };
        self.core_catalog().for_each(&mut visit).map_err(catalog_error)?;
        for (ino, mut places) in places {
            places.dedup();
            let renumbered = self.change(None, |core| match core.staged.get(ino) {
                Some(_) => Ok(0),
                None => core.ns.renumber_across(ino, &places),
            })?;
            if renumbered > 0 {
                tracing::info!(
                    "{renumbered} files had the number of another that was moved meanwhile, and have their own"
                );
            }
        }
        Ok(())
    }
}
