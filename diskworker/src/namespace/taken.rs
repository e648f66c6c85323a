//! Files that are written here and whose last name a join takes: another host has removed or replaced them, and cannot have seen what no
//! record has yet. An edit is never lost to a removal elsewhere, so such a file gets its name back, with new dots; beside what has come
//! there it gets a conflict name. What was recorded of it before comes back with it, until what was written is recorded.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Element, Key, Name};

use super::links::copied;
use super::{Namespace, catalog_error};
use crate::catalog::State;
use crate::view;

/// A file that is being written, or was and is not recorded.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// The directory that has it.
    pub dir: Ino,
    /// Somebody was told that it is written: it gets its name back at once. Else that is for who closes it to say.
    pub is_promised: bool,
}

/// Such a file without a name.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its number.
    pub ino: Ino,
    /// The directory it was in.
    pub dir: Ino,
    name: Name,
    /// Its version, attributes and times.
    elements: Vec<Element>,
}

impl Namespace {
    /// Which of these files have lost their last name by a join, as they were before it.
    pub(super) fn taken(
        &self,
        before: &State,
        changed: &BTreeMap<Key, Vec<Element>>,
        written: &HashMap<Ino, Written>,
    ) -> FsResult<Vec<Taken>> {
        if written.is_empty() {
            return Ok(Vec::new());
        }
        let dirs: HashSet<Ino> = written.values().map(|written| written.dir).collect();
        let mut taken = Vec::new();
        for key in changed.keys() {
            match key {
                Key::Entry(dir, name) if !name.is_header() && dirs.contains(dir) => {}
                Key::Inode(ino) if written.contains_key(ino) => {}
                _ => continue,
            }
            let old = self.catalog.set_in(before, key).map_err(catalog_error)?;
            for ino in old.iter().filter(|e| matches!(e.body, Body::Content { .. })).filter_map(|e| e.body.ino()) {
                let place = match key {
                    Key::Entry(dir, name) => Some((*dir, name.clone())),
                    Key::Inode(_) => old.iter().find_map(|e| match &e.body {
                        Body::Ref { dir, name } => Some((*dir, name.clone())),
                        _ => None,
                    }),
                };
                if let Some((dir, name)) = place.filter(|_| written.contains_key(&ino)) {
                    let elements = old.iter().filter(|e| is_of_file(e, ino)).cloned().collect();
                    taken.push(Taken { ino, dir, name, elements });
                }
            }
        }
        // Most are there still, changed or elsewhere.
        let live = |(key, elements): (&Key, &Vec<Element>)| {
            let has_place = match key {
                Key::Entry(_, name) => !name.is_header(),
                Key::Inode(_) => elements.iter().any(|e| matches!(e.body, Body::Ref { .. })),
            };
            let files = elements.iter().filter(|e| matches!(e.body, Body::Content { .. }));
            files.filter_map(|e| e.body.ino()).filter(|_| has_place).collect::<Vec<Ino>>()
        };
        let stay: HashSet<Ino> =
            if taken.is_empty() { HashSet::new() } else { changed.iter().flat_map(live).collect() };
        // One that got another number is found by that ([`Namespace::locate_written`]).
        let numbers = |taken: &Taken| {
            let versions = taken.elements.iter().filter(|e| matches!(e.body, Body::Content { .. }));
            let derived: Vec<Ino> = versions.map(|e| view::derived_ino(taken.ino, e.dot)).collect();
            [vec![taken.ino], derived].concat()
        };
        taken.retain(|taken: &Taken| !numbers(taken).iter().any(|number| stay.contains(number)));
        Ok(taken)
    }

    /// Put those back at once that must be; the keys they are under, to be mended, and the others.
    pub(super) fn put_back_promised(
        &mut self,
        taken: Vec<Taken>,
        written: &HashMap<Ino, Written>,
    ) -> (BTreeSet<Key>, Vec<Taken>) {
        let (mut back, mut left) = (BTreeSet::new(), Vec::new());
        for taken in taken {
            let is_promised = written.get(&taken.ino).is_some_and(|written| written.is_promised);
            match is_promised.then(|| self.give_name(&taken)) {
                Some(Ok(key)) => back.extend(key),
                Some(Err(error)) => {
                    tracing::error!("file {}, which is not recorded yet, has no name: {error}", taken.ino);
                    left.push(taken);
                }
                None => left.push(taken),
            }
        }
        (back, left)
    }

    /// The file is there again, under its name or as a conflict copy of what has that now.
    pub fn put_back(&mut self, taken: &Taken) -> FsResult<()> {
        match self.give_name(taken)? {
            Some(key) => self.mend(BTreeSet::from([key])), // its directory may be gone
            None => Ok(()),
        }
    }

    /// The same; the key it is under, which is to be mended.
    fn give_name(&mut self, taken: &Taken) -> FsResult<Option<Key>> {
        let Some((parts, tag)) = view::version(&taken.elements, taken.ino) else { return Ok(None) };
        let is_free = self.in_the_way(taken.dir, &taken.name)?.is_none();
        let name = if is_free { taken.name.clone() } else { view::conflict_name(&taken.name, tag) };
        let mut txn = self.txn();
        txn.renewed.push((taken.ino, parts.content.dot));
        let elements = copied(&txn, &parts, taken.ino);
        let key = Key::Entry(taken.dir, name);
        self.add(&mut txn, key.clone(), elements)?;
        self.apply(txn)?;
        Ok(Some(key))
    }
}

fn is_of_file(element: &Element, of: Ino) -> bool {
    match element.body {
        Body::Content { ino, .. } | Body::Attrs { ino, .. } | Body::Times { ino, .. } => ino == of,
        _ => false,
    }
}
