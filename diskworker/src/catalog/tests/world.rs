//! What the tests share: scratch catalogs, random elements, and the model.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use delugefs_proto::codec::canonicalize;
use delugefs_proto::ids::{ActorId, BlobId, Ino};
use delugefs_proto::record::*;
use tempfile::TempDir;

use crate::catalog::{Catalog, CatalogError, Changes, State, blob_id};

/// A folder in memory where there is one: the tests are about what is written, and not about how fast it is synced.
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A new, empty catalog in a folder of its own.
pub fn new_catalog() -> (TempDir, Catalog) {
    let dir = scratch();
    let catalog = Catalog::create(&dir.path().join("catalog.git")).unwrap();
    (dir, catalog)
}

/// The plain model of a state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub sets: BTreeMap<Key, Vec<Element>>,
    pub ctx: VersionVector,
}

impl Model {
    /// The next dot of an actor.
    pub fn draw(&mut self, actor: ActorId) -> Dot {
        let seq = self.ctx.0.get(&actor).copied().unwrap_or_default() + 1;
        let dot = Dot { actor, seq };
        self.ctx.advance(dot);
        dot
    }

    /// Join by definition.
    pub fn join(&self, other: &Model) -> Model {
        let mut joined = Model { sets: BTreeMap::new(), ctx: self.ctx.clone() };
        joined.ctx.merge(&other.ctx);
        for key in self.sets.keys().chain(other.sets.keys()) {
            let none = Vec::new();
            let (a, b) = (self.sets.get(key).unwrap_or(&none), other.sets.get(key).unwrap_or(&none));
            let mut set = Vec::new();
            for e in a {
                if b.iter().any(|f| (f.dot, &f.body) == (e.dot, &e.body)) || !other.ctx.has_seen(e.dot) {
                    set.push(e.clone());
                }
            }
            for e in b {
                if a.iter().any(|f| (f.dot, &f.body) == (e.dot, &e.body)) || !self.ctx.has_seen(e.dot) {
                    set.push(e.clone());
                }
            }
            canonicalize(&mut set);
            if !set.is_empty() {
                joined.sets.insert(key.clone(), set);
            }
        }
        joined
    }

    /// The changes that lead from another model here.
    pub fn changes_from(&self, before: &Model) -> Changes {
        let mut changes = Changes::default();
        for (key, set) in &self.sets {
            if before.sets.get(key) != Some(set) {
                changes.sets.insert(key.clone(), set.clone());
            }
        }
        for key in before.sets.keys().filter(|key| !self.sets.contains_key(*key)) {
            changes.sets.insert(key.clone(), Vec::new());
        }
        for set in changes.sets.values() {
            for id in attachments(set) {
                changes.blobs.insert(id, attachment_of(id));
            }
        }
        changes
    }

    /// Commit the whole model into a new catalog, as one change.
    pub fn build_anew(&self) -> (TempDir, Catalog, State) {
        let (dir, catalog) = new_catalog();
        let state = catalog.commit(&self.changes_from(&Model::default()), &self.ctx).unwrap();
        (dir, catalog, state)
    }

    /// Assert that a catalog says exactly this, by every way of asking.
    pub fn assert_is(&self, catalog: &Catalog) {
        let mut found = BTreeMap::new();
        catalog
            .for_each(&mut |key, set| {
                assert!(found.insert(key.clone(), set.to_vec()).is_none(), "{key:?} twice");
                Ok(())
            })
            .unwrap();
        assert_eq!(found, self.sets);
        assert_eq!(catalog.state().ctx, self.ctx);
        let mut dirs: BTreeMap<Ino, usize> = BTreeMap::new();
        for (key, set) in &self.sets {
            assert_eq!(catalog.set(key).unwrap(), *set);
            if let Key::Entry(dir, _) = key {
                *dirs.entry(*dir).or_default() += 1;
            }
            for id in attachments(set) {
                assert_eq!(catalog.attachment(id).unwrap(), Some(attachment_of(id)));
            }
        }
        for (dir, entries) in dirs {
            let leaf = catalog.directory(dir).unwrap();
            assert_eq!(leaf.len(), entries);
            for (name, set) in leaf {
                assert_eq!(self.sets.get(&Key::Entry(dir, name)), Some(&set));
            }
        }
    }
}

/// The attachments that tests use: number i has i bytes.
pub fn small_attachment(number: u32) -> (BlobId, Bytes) {
    let bytes = Bytes::from(vec![b'a' + (number % 26) as u8; number as usize]);
    (blob_id(&bytes), bytes)
}

fn attachment_of(id: BlobId) -> Bytes {
    (0..64).map(small_attachment).find(|(found, _)| *found == id).unwrap().1
}

/// A name from a small alphabet.
pub fn name(number: u16) -> Name {
    if number == 0 { Name::header() } else { Name::new(format!("n{number}").as_bytes()).unwrap() }
}

/// An element of one of several kinds, with and without attachments.
pub fn element(dot: Dot, variant: u8) -> Element {
    let ino = Ino(1000 + dot.seq);
    let perm = Perm { mode: 0o644, uid: 1, gid: 2 };
    let body = match variant % 6 {
        0 => Body::Dir { ino },
        1 => Body::Content { ino, data: Data::Empty },
        2 => {
            let size = u32::from(variant) % 50;
            Body::Content { ino, data: Data::Inline { blob: small_attachment(size).0, size } }
        }
        3 => {
            let size = u32::from(variant) % 40;
            let value = XattrValue::Blob { blob: small_attachment(size).0, size };
            Body::Attrs { ino, perm, xattrs: Xattrs::from([(b"user.x"[..].into(), value)]) }
        }
        4 => Body::Times { ino, mtime_ns: i64::from(variant), atime_ns: -5 },
        _ => Body::Head { parent: Ino::ROOT, name: name(7), perm, xattrs: Xattrs::new() },
    };
    Element { dot, body, hlc: Hlc(u64::from(variant)) }
}

/// Write the committed state for somebody who has one; its commit.
pub fn export(
    catalog: &Catalog,
    have: Option<git2::Oid>,
    out: &mut dyn std::io::Write,
) -> Result<git2::Oid, CatalogError> {
    let state = catalog.state();
    catalog.export(&state, have, out)?;
    Ok(state.commit)
}
