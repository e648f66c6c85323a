//! What a join has left and its mends have not mended: they are changes like any other, and the machine may have gone down when the
//! joined state was on the disk and they were not. So the first walk through the whole catalog that a worker makes
//! ([`super::ledger`]) looks for all that a join may leave: directories without a place or with two, names without what they name,
//! versions that nothing shows. A marker on the disk, written before each join, would cost two syncs every time.

use std::collections::{BTreeSet, HashMap, HashSet};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Element, Key, Name};

use super::Engine;
use crate::namespace::catalog_error;
use crate::view;

/// What a walk has met.
#[derive(Default)]
pub(super) struct Loose {
    /// Where the headers say that directories are, and where these hang.
    homes: HashMap<Ino, (Ino, Name)>,
    hanging: HashMap<Ino, (Ino, Name)>,
    /// Directories with something in them.
    filled: HashSet<Ino>,
    /// Numbers that names refer to, and those of which there is a version.
    linked: HashSet<Ino>,
    there: HashSet<Ino>,
    keys: BTreeSet<Key>,
}

impl Loose {
    /// What lies under a key.
    pub fn note(&mut self, key: &Key, elements: &[Element]) {
        match key {
            Key::Entry(dir, name) if name.is_header() => {
                let head = view::latest(elements, |body| matches!(body, Body::Head { .. }));
                if let Some(Element { body: Body::Head { parent, name, .. }, .. }) = head {
                    self.homes.insert(*dir, (*parent, name.clone()));
                }
                if elements.iter().filter(|e| matches!(e.body, Body::Head { .. })).count() > 1 {
                    self.keys.insert(key.clone());
                }
            }
            Key::Entry(dir, name) => {
                self.filled.insert(*dir);
                for element in elements {
                    match &element.body {
                        Body::Dir { ino } => {
                            let other = self.hanging.insert(*ino, (*dir, name.clone()));
                            // Whichever of the two is its home: the header does not say where else it hangs.
                            if let Some((other, its_name)) = other
                                && (other, &its_name) != (*dir, name)
                            {
                                self.keys.extend([key.clone(), Key::Entry(other, its_name)]);
                            }
                        }
                        Body::Link { ino } => drop(self.linked.insert(*ino)),
                        _ => {}
                    }
                }
                // A copy may have the name of another file.
                if elements.len() > 1 && view::view(elements).len() > 1 || view::bare(elements).next().is_some() {
                    self.keys.insert(key.clone());
                }
            }
            Key::Inode(_) if view::is_nameless(key, elements) => drop(self.keys.insert(key.clone())),
            Key::Inode(ino) => match view::contents(elements).len() {
                0 => drop(self.keys.insert(key.clone())),
                1 => drop(self.there.insert(*ino)),
                _ => {
                    self.there.insert(*ino);
                    self.keys.insert(key.clone());
                }
            },
        }
    }

    /// The keys to be looked at again, and the numbers of which there are only names.
    fn found(mut self) -> (BTreeSet<Key>, HashSet<Ino>) {
        let mut reached = HashSet::from([Ino::ROOT]);
        for ino in self.homes.keys() {
            let (mut at, mut passed) = (*ino, HashSet::new());
            while !reached.contains(&at) {
                match self.homes.get(&at) {
                    Some((parent, _)) if passed.insert(at) => at = *parent,
                    _ => {
                        self.keys.insert(Key::header(*ino));
                        break;
                    }
                }
            }
            if reached.contains(&at) {
                reached.extend(passed);
            }
            if *ino != Ino::ROOT && self.hanging.get(ino) != self.homes.get(ino) {
                self.keys.insert(Key::header(*ino));
            }
        }
        let homeless = self.filled.iter().filter(|dir| !self.homes.contains_key(dir));
        self.keys.extend(homeless.map(|dir| Key::header(*dir)));
        for (ino, (dir, name)) in &self.hanging {
            if !self.homes.contains_key(ino) {
                self.keys.insert(Key::Entry(*dir, name.clone()));
            }
        }
        let gone = self.linked.difference(&self.there).copied().collect();
        (self.keys, gone)
    }
}

impl Engine {
    /// Mend what was found, as far as it is still so.
    pub(super) fn mend_loose(&self, loose: Loose) -> FsResult<()> {
        let (mut keys, gone) = loose.found();
        if !gone.is_empty() {
            let mut visit = |key: &Key, elements: &[Element]| {
                if elements.iter().any(|e| matches!(e.body, Body::Link { ino } if gone.contains(&ino))) {
                    keys.insert(key.clone());
                }
                Ok(())
            };
            self.catalog.for_each(&mut visit).map_err(catalog_error)?;
        }
        match keys.is_empty() {
            true => Ok(()),
            false => self.change(None, |core| core.ns.mend(keys)),
        }
    }
}
