//! Objects by id: those in the repository and those about to be written, as one.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::path::Path;

use bytes::Bytes;
use git2::{ObjectType, Odb, OdbObject, Oid, Repository};

use super::packdir::NewPack;
use super::tree;
use super::{CatalogError, OBJECT_MAX_BYTES};

/// See the module.
pub(super) struct Objects<'r> {
    odb: Odb<'r>,
    staged: HashMap<Oid, (ObjectType, Bytes)>,
}

/// An object's bytes.
pub(super) enum Data<'a> {
    Stored(OdbObject<'a>),
    Staged(&'a [u8]),
}

impl Deref for Data<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Data::Stored(object) => object.data(),
            Data::Staged(data) => data,
        }
    }
}

impl<'r> Objects<'r> {
    pub(super) fn new(repo: &'r Repository) -> Result<Self, CatalogError> {
        Ok(Self::of(repo.odb().map_err(CatalogError::git("open the catalog's objects"))?))
    }

    pub(super) fn of(odb: Odb<'r>) -> Self {
        Self { odb, staged: HashMap::new() }
    }

    /// Read an object; `None` when there is none with this id. libgit2 verifies the bytes against the id.
    pub(super) fn find(&self, oid: Oid) -> Result<Option<(ObjectType, Data<'_>)>, CatalogError> {
        if let Some((kind, data)) = self.staged.get(&oid) {
            return Ok(Some((*kind, Data::Staged(data))));
        }
        match self.insist(|| self.odb.read(oid)) {
            Ok(object) => Ok(Some((object.kind(), Data::Stored(object)))),
            Err(why) if why.code() == git2::ErrorCode::NotFound => Ok(None),
            Err(why) => Err(CatalogError::Git("read an object of the catalog", why)),
        }
    }

    /// Look once more for what is not there. libgit2 lists the packs again before it says so, but a consolidation may have
    /// replaced those of its list before it opened them, by one that came too late to be in it.
    fn insist<T>(&self, read: impl Fn() -> Result<T, git2::Error>) -> Result<T, git2::Error> {
        match read() {
            Err(why) if why.code() == git2::ErrorCode::NotFound => {
                self.odb.refresh()?;
                read()
            }
            done => done,
        }
    }

    /// Read an object that must be there and of this kind.
    pub(super) fn get(&self, kind: ObjectType, oid: Oid) -> Result<Data<'_>, CatalogError> {
        match self.find(oid)? {
            Some((found, data)) if found == kind => Ok(data),
            Some(_) => Err(CatalogError::damaged(oid, "is of the wrong kind")),
            None => Err(CatalogError::Missing(oid)),
        }
    }

    pub(super) fn blob(&self, oid: Oid) -> Result<Data<'_>, CatalogError> {
        self.get(ObjectType::Blob, oid)
    }

    pub(super) fn tree(&self, oid: Oid) -> Result<Data<'_>, CatalogError> {
        self.get(ObjectType::Tree, oid)
    }

    pub(super) fn hex_tree(&self, oid: Oid, width: usize) -> Result<tree::HexTree, CatalogError> {
        tree::parse_hex(&self.tree(oid)?, width).map_err(|why| CatalogError::damaged(oid, why))
    }

    /// Stage an object.
    pub(super) fn put(&mut self, kind: ObjectType, data: impl Into<Bytes>) -> Result<Oid, CatalogError> {
        let data = data.into();
        let oid = Oid::hash_object(kind, &data).map_err(CatalogError::git("hash an object"))?;
        self.put_as(oid, kind, data)?;
        Ok(oid)
    }

    /// Stage an object whose id is known.
    pub(super) fn put_as(&mut self, oid: Oid, kind: ObjectType, data: Bytes) -> Result<(), CatalogError> {
        if data.len() > OBJECT_MAX_BYTES {
            let len = data.len();
            return Err(CatalogError::Invalid(format!("an object of {len} bytes, at most {OBJECT_MAX_BYTES} can be")));
        }
        self.staged.entry(oid).or_insert((kind, data));
        Ok(())
    }

    /// Length in bytes of a blob that must be there.
    pub(super) fn blob_len(&self, oid: Oid) -> Result<u64, CatalogError> {
        let (len, kind) = match self.staged.get(&oid) {
            Some((kind, data)) => (data.len(), *kind),
            None => self.insist(|| self.odb.read_header(oid)).map_err(|why| match why.code() {
                git2::ErrorCode::NotFound => CatalogError::Missing(oid),
                _ => CatalogError::Git("read an object's header", why),
            })?,
        };
        if kind == ObjectType::Blob { Ok(len as u64) } else { Err(CatalogError::damaged(oid, "is no blob")) }
    }

    /// Write what is staged and reachable from `commit` (staged too) as one durable pack. Without staged objects
    /// under it, `commit` was there before and nothing is written.
    pub(super) fn write_pack(&self, dir: &Path, commit: Oid) -> Result<(), CatalogError> {
        let mut order = Vec::with_capacity(self.staged.len());
        let mut seen = HashSet::with_capacity(self.staged.len());
        self.collect_staged(commit, &mut seen, &mut order);
        if order.is_empty() {
            return Ok(());
        }
        let (pack, mut writer) = NewPack::begin(dir, order.len())?;
        for oid in order {
            let (kind, data) = &self.staged[&oid];
            writer.object(oid, *kind, data).map_err(CatalogError::io("write a pack in", dir))?;
        }
        pack.finish(writer).map(drop)
    }

    fn collect_staged(&self, oid: Oid, seen: &mut HashSet<Oid>, order: &mut Vec<Oid>) {
        let Some((kind, data)) = self.staged.get(&oid) else { return };
        if !seen.insert(oid) {
            return;
        }
        order.push(oid);
        match kind {
            ObjectType::Commit => {
                if let Some(tree) = tree::tree_of_commit(data) {
                    self.collect_staged(tree, seen, order);
                }
            }
            ObjectType::Tree => {
                tree::RawEntries(data).flatten().for_each(|(_, _, oid)| self.collect_staged(oid, seen, order));
            }
            _ => {}
        }
    }
}
