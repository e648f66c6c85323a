//! Files that are written here and whose last name a join takes: another host has removed or replaced them, and cannot have seen what no
//! record has yet. An edit is never lost to a removal elsewhere, so such a file gets its name back, with new dots; beside what has come
//! there it gets a conflict name. What was recorded of it before comes back with it, until what was written is recorded.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use delugefs_proto::codec::{canonicalize, decode_elements, decode_key, encode_elements, encode_key};
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Data, Dot, Element, Key, Name};

use super::links::copied;
use super::{Namespace, catalog_error};
use crate::catalog::State;
use crate::view;

/// The files that are being written, or were and are not recorded.
pub struct Written<'a> {
    /// Each with the directory that has it.
    pub files: HashMap<Ino, Ino>,
    /// Whether one has something that no record has: it gets its name back at once. Of another one nobody knows yet whether it is written.
    pub has_more: &'a dyn Fn(Ino) -> bool,
    /// To write down that these have lost their last name, while nothing is on the disk of the join that takes it. That may fail yet.
    pub note: &'a dyn Fn(&[Taken]),
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

impl Taken {
    /// What was recorded of it: its versions.
    pub fn versions(&self) -> impl Iterator<Item = (Dot, &Data)> {
        self.elements.iter().filter_map(|element| match &element.body {
            Body::Content { data, .. } => Some((element.dot, data)),
            _ => None,
        })
    }

    /// To be written down beside its staged file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let key = encode_key(&Key::Entry(self.dir, self.name.clone()));
        let mut elements = self.elements.clone();
        canonicalize(&mut elements);
        [&(key.len() as u32).to_le_bytes(), &key[..], &encode_elements(&elements)].concat()
    }

    /// What was written down; `None` for anything else.
    pub fn from_bytes(ino: Ino, bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (key, elements) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let Key::Entry(dir, name) = decode_key(key).ok()? else { return None };
        Some(Self { ino, dir, name, elements: decode_elements(elements).ok()? })
    }
}

impl Namespace {
    /// Which of these files have lost their last name by a join, as they were before it.
    pub(super) fn taken(
        &self,
        before: &State,
        changed: &BTreeMap<Key, Vec<Element>>,
        written: &HashMap<Ino, Ino>,
    ) -> FsResult<Vec<Taken>> {
        let dirs: HashSet<Ino> = written.values().copied().collect();
        let mut taken: Vec<Taken> = Vec::new();
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
                // One version of it is enough: the others were removed by who saw them, and what is written comes in its place.
                let is_new = written.contains_key(&ino) && taken.iter().all(|taken| taken.ino != ino);
                if let Some((dir, name)) = place.filter(|_| is_new) {
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

    /// Put those back at once that have more than their record; the keys they are under, to be mended, with their new dots, and the others.
    pub(super) fn put_back_written(
        &mut self,
        taken: Vec<Taken>,
        has_more: &dyn Fn(Ino) -> bool,
    ) -> (BTreeMap<Key, (Ino, Dot)>, Vec<Taken>) {
        let (mut back, mut left) = (BTreeMap::new(), Vec::new());
        for taken in taken {
            match has_more(taken.ino).then(|| self.give_name(&taken)) {
                Some(Ok(given)) => back.extend(given.map(|(key, dot)| (key, (taken.ino, dot)))),
                Some(Err(error)) => {
                    tracing::error!("file {}, which is not recorded yet, has no name: {error}", taken.ino);
                    left.push(taken);
                }
                None => left.push(taken),
            }
        }
        (back, left)
    }

    /// The file is there again, under its name or as a conflict copy of what has that now. The dot of its version, which holds the place for
    /// what was written.
    pub fn put_back(&mut self, taken: &Taken) -> FsResult<Option<Dot>> {
        let Some((key, dot)) = self.give_name(taken)? else { return Ok(None) };
        self.mend(BTreeSet::from([key]))?; // its directory may be gone
        Ok(Some(dot))
    }

    /// The same; the key it is under, which is to be mended.
    fn give_name(&mut self, taken: &Taken) -> FsResult<Option<(Key, Dot)>> {
        let Some((parts, tag)) = view::version(&taken.elements, taken.ino) else { return Ok(None) };
        let is_free = self.in_the_way(taken.dir, &taken.name)?.is_none();
        let name = if is_free { taken.name.clone() } else { view::conflict_name(&taken.name, tag) };
        let mut txn = self.txn();
        let dot = txn.dot;
        let elements = copied(&txn, &parts, taken.ino);
        let key = Key::Entry(taken.dir, name);
        self.add(&mut txn, key.clone(), elements)?;
        self.apply(txn)?;
        Ok(Some((key, dot)))
    }
}

fn is_of_file(element: &Element, of: Ino) -> bool {
    match element.body {
        Body::Content { ino, .. } | Body::Attrs { ino, .. } | Body::Times { ino, .. } => ino == of,
        _ => false,
    }
}
