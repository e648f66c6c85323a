//! Files in different directories that have one number: one was moved on one host while it was written on another, and both are there.
//! Opened by its number one would be shown for the other. To see that at once would need an index of all numbers; who walks the whole
//! catalog anyway ([`super::ledger`]) sees them, and one of each pair gets another. Who is writing that one on another host finds it by the
//! version he began from ([`crate::namespace::Namespace::locate_written`]).

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
    /// What lies under a key.
    pub fn note(&mut self, key: &Key, elements: &[Element]) {
        match key {
            Key::Inode(ino) => {
                if elements.iter().any(|e| matches!(e.body, Body::Ref { .. })) {
                    self.meet(*ino);
                }
            }
            Key::Entry(..) => {
                let mut contents = elements.iter().filter(|e| matches!(e.body, Body::Content { .. }));
                match (contents.next().and_then(|one| one.body.ino()), contents.next()) {
                    (Some(ino), None) if !elements.iter().any(|e| matches!(e.body, Body::Link { .. })) => {
                        self.meet(ino)
                    }
                    (None, _) => {}
                    // Some of it may be shown with another number.
                    _ => {
                        let shown = view::view(elements).into_iter();
                        let files = shown.filter(|shown| matches!(shown.what, view::What::File(_)));
                        files.for_each(|shown| self.meet(shown.ino));
                    }
                }
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
        self.catalog.for_each(&mut visit).map_err(catalog_error)?;
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
