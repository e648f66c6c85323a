//! [`Catalog`]: opens the folder, reads, and commits.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use delugefs_proto::codec::{Leaf, canonicalize};
use delugefs_proto::ids::{BlobId, Ino};
use delugefs_proto::record::{Element, Key, VersionVector};
use git2::{ObjectType, Oid};
use parking_lot::{Mutex, RwLock};

use super::changes::{Pins, blob_id, to_oid};
use super::content::attachment_lengths;
use super::handles::Handles;
use super::layout::{self, Space};
use super::objects::Objects;
use super::packdir::{self, sync_dir};
use super::tree::{serialize_commit, tree_of_commit};
use super::{CatalogError, Changes, State, Visit, exchange, libgit2};

/// The ref that is the committed state.
const STATE_REF: &str = "refs/heads/state";
/// So many of the last states are kept, so that a peer who has one of them is sent the difference only.
const RECENT_STATES: usize = 16;

/// The catalog of one disk. Reading is concurrent with everything; commits and joins wait for each other.
pub struct Catalog {
    pub(super) dir: PathBuf,
    state: RwLock<Arc<State>>,
    recent: Mutex<VecDeque<Arc<State>>>,
    pub(super) handles: Handles,
    /// Held while the ref moves from one state to the next.
    pub(super) writer: Mutex<()>,
    /// Shared by imports, which rely on objects that no pinned state need reach; exclusive for who removes packs.
    /// Taken before `writer`.
    pub(super) removal: RwLock<()>,
    /// One consolidation at a time. Taken before `removal`.
    pub(super) consolidation: Mutex<()>,
    pub(super) pins: Pins,
}

impl Catalog {
    /// Make a catalog with an empty state as a new folder, durably. The folder appears complete or not at all.
    ///
    /// # Errors
    /// When the folder exists or cannot be written.
    pub fn create(dir: &Path) -> Result<Catalog, CatalogError> {
        let parent = dir.parent().unwrap_or(Path::new("."));
        if fs::symlink_metadata(dir).is_ok() {
            let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(CatalogError::io("create", dir)(exists));
        }
        let unfinished = dir.with_extension("unfinished");
        if fs::symlink_metadata(&unfinished).is_ok() {
            fs::remove_dir_all(&unfinished).map_err(CatalogError::io("remove", &unfinished))?;
        }
        let repo = libgit2::init(&unfinished)?;
        let mut objects = Objects::new(&repo)?;
        let (commit, _) = layout::put_state(&mut objects, None, None, &VersionVector::default())?;
        objects.write_pack(&packdir::path(&unfinished), commit)?;
        move_ref(&unfinished, commit)?;
        drop(objects);
        drop(repo);
        sync_all(&unfinished)?;
        fs::rename(&unfinished, dir).map_err(CatalogError::io("rename", &unfinished))?;
        sync_dir(parent)?;
        Self::open(dir)
    }

    /// Open a catalog, after clearing away what a crash may have left. Only one process may have it open.
    ///
    /// # Errors
    /// [`CatalogError::NotACatalog`], [`CatalogError::Elsewhere`], [`CatalogError::Newer`], or that it cannot be read.
    pub fn open(dir: &Path) -> Result<Catalog, CatalogError> {
        libgit2::refuse_elsewhere(dir)?;
        let repo = libgit2::open(dir)?;
        packdir::index_missing(&packdir::path(dir))?;
        let pins = Pins::default();
        let state = {
            let objects = Objects::new(&repo)?;
            let commit = repo.refname_to_id(STATE_REF).map_err(CatalogError::git("find the catalog's state"))?;
            read_state(&objects, commit, &pins)?
        };
        drop(repo);
        // Nothing is removed before the format is known to be ours.
        packdir::tidy(&packdir::path(dir))?;
        packdir::tidy(dir)?;
        exchange::clear_quarantine(dir)?;
        remove_locks(&dir.join("refs"))?;
        let state = Arc::new(state);
        Ok(Self {
            dir: dir.into(),
            recent: Mutex::new(VecDeque::from([state.clone()])),
            state: RwLock::new(state),
            handles: Handles::new(dir.into()),
            writer: Mutex::default(),
            removal: RwLock::default(),
            consolidation: Mutex::default(),
            pins,
        })
    }

    /// The committed state.
    pub fn state(&self) -> State {
        State::clone(&self.current())
    }

    pub(super) fn current(&self) -> Arc<State> {
        self.state.read().clone()
    }

    /// All entries of a directory with its header (the empty name). Empty for an unknown directory.
    pub fn directory(&self, dir: Ino) -> Result<Leaf, CatalogError> {
        let (state, handle) = (self.current(), self.handles.get()?);
        layout::directory(&Objects::new(&handle)?, state.tree, dir)
    }

    /// The set of one key; empty when it is not there. Reads one path only.
    pub fn set(&self, key: &Key) -> Result<Vec<Element>, CatalogError> {
        let (state, handle) = (self.current(), self.handles.get()?);
        layout::set(&Objects::new(&handle)?, state.tree, key)
    }

    /// The same of another state.
    pub fn set_in(&self, state: &State, key: &Key) -> Result<Vec<Element>, CatalogError> {
        let handle = self.handles.get()?;
        layout::set(&Objects::new(&handle)?, state.tree, key)
    }

    /// An attachment's bytes; `None` when there is none with this id.
    pub fn attachment(&self, id: BlobId) -> Result<Option<Bytes>, CatalogError> {
        let handle = self.handles.get()?;
        match Objects::new(&handle)?.find(to_oid(id))? {
            Some((ObjectType::Blob, data)) => Ok(Some(Bytes::copy_from_slice(&data))),
            _ => Ok(None),
        }
    }

    /// Call a function for every key of the state as it is now, in the order of the layout, until it fails.
    pub fn for_each(&self, f: &mut Visit<'_>) -> Result<(), CatalogError> {
        let (state, handle) = (self.current(), self.handles.get()?);
        let objects = Objects::new(&handle)?;
        let root = layout::root(&objects, state.tree)?;
        for space in [Space::Dirs, Space::Inodes] {
            layout::for_each(&objects, space, space.node(&root), f)?;
        }
        Ok(())
    }

    /// Commit changes and the version vector that includes them: durable when it returns. Without any difference
    /// nothing is written.
    ///
    /// # Errors
    /// [`CatalogError::Invalid`] when the new state must not exist: `ctx` does not cover every dot or what it covered
    /// before, an attachment is not there, a value cannot be encoded. On every error the state is the old one.
    pub fn commit(&self, changes: &Changes, ctx: &VersionVector) -> Result<State, CatalogError> {
        let canonical = canonical(changes);
        let changes = canonical.as_ref().unwrap_or(changes);
        let _writer = self.writer.lock();
        let (state, handle) = (self.current(), self.handles.get()?);
        if !ctx.dominates(&state.ctx) {
            return Err(CatalogError::Invalid("the version vector covers less than before".into()));
        }
        let mut objects = Objects::new(&handle)?;
        for (id, data) in &changes.blobs {
            if blob_id(data) != *id {
                return Err(CatalogError::Invalid(format!("attachment {id} has other bytes than its id says")));
            }
            objects.put_as(to_oid(*id), ObjectType::Blob, data.clone())?;
        }
        for (key, set) in &changes.sets {
            check_set(&objects, key, set, ctx)?;
        }
        let root = layout::root(&objects, state.tree)?;
        let (dirs, inodes) = layout::apply(&mut objects, &root, changes)?;
        let (commit, tree) = layout::put_state(&mut objects, dirs, inodes, ctx)?;
        if commit == state.commit {
            return Ok(State::clone(&state));
        }
        objects.write_pack(&packdir::path(&self.dir), commit)?;
        self.publish(self.pins.pin(commit, tree, ctx.clone()))
    }

    /// Move the ref to a state whose objects are durable. The caller holds `writer`.
    pub(super) fn publish(&self, state: State) -> Result<State, CatalogError> {
        move_ref(&self.dir, state.commit)?;
        let shared = Arc::new(state.clone());
        *self.state.write() = shared.clone();
        let mut recent = self.recent.lock();
        recent.push_back(shared);
        if recent.len() > RECENT_STATES {
            recent.pop_front();
        }
        Ok(state)
    }

    /// Peers who have one of the states before the current one are sent everything.
    pub(super) fn forget_earlier_states(&self) {
        let mut recent = self.recent.lock();
        let current = self.current();
        recent.retain(|state| state.commit == current.commit);
    }

    /// Number of packs. Every commit adds one; [`Catalog::consolidate`] is due at
    /// [`CONSOLIDATE_AT_PACKS`](super::CONSOLIDATE_AT_PACKS).
    pub fn packs(&self) -> usize {
        packdir::list(&packdir::path(&self.dir)).map_or(0, |stems| stems.len())
    }
}

/// Read a state by its commit.
pub(super) fn read_state(objects: &Objects<'_>, commit: Oid, pins: &Pins) -> Result<State, CatalogError> {
    let tree = {
        let bytes = objects.get(ObjectType::Commit, commit)?;
        tree_of_commit(&bytes).ok_or_else(|| CatalogError::damaged(commit, "is no state"))?
    };
    let root = layout::root(objects, tree)?;
    if *objects.get(ObjectType::Commit, commit)? != *serialize_commit(tree) {
        return Err(CatalogError::damaged(commit, "is no commit of a state"));
    }
    Ok(pins.pin(commit, tree, layout::context(objects, &root)?))
}

/// As git does it, but for the errors: libgit2 does not say that the disk is full. The temporary file is not where
/// libgit2 would take it for a ref.
fn move_ref(dir: &Path, commit: Oid) -> Result<(), CatalogError> {
    packdir::replace_file(dir, &dir.join(STATE_REF), format!("{commit}\n").as_bytes())
}

/// The changes with every set in canonical form, unless they all are.
fn canonical(changes: &Changes) -> Option<Changes> {
    let is_canonical = |set: &Vec<Element>| set.windows(2).all(|pair| pair[0] < pair[1]);
    if changes.sets.values().all(is_canonical) {
        return None;
    }
    let mut changes = changes.clone();
    changes.sets.values_mut().for_each(canonicalize);
    Some(changes)
}

/// Refuse a set that would make a state no peer accepts.
fn check_set(objects: &Objects<'_>, key: &Key, set: &[Element], ctx: &VersionVector) -> Result<(), CatalogError> {
    let (Key::Entry(ino, _) | Key::Inode(ino)) = key;
    if !ino.is_storable() {
        return Err(CatalogError::Invalid(format!("inode number {ino} is reserved")));
    }
    for element in set {
        if !ctx.has_seen(element.dot) {
            return Err(CatalogError::Invalid(format!(
                "the version vector does not cover {:?} of {key:?}",
                element.dot
            )));
        }
        for (id, len) in attachment_lengths(element) {
            let found = match objects.blob_len(to_oid(id)) {
                Ok(found) => found,
                Err(CatalogError::Missing(_)) => {
                    return Err(CatalogError::Invalid(format!("attachment {id} of {key:?} is not there")));
                }
                Err(why) => return Err(why),
            };
            if found != len {
                let why = format!("attachment {id} of {key:?} has {found} bytes, the record says {len}");
                return Err(CatalogError::Invalid(why));
            }
        }
    }
    Ok(())
}

/// Sync everything below a folder, and the folder.
fn sync_all(dir: &Path) -> Result<(), CatalogError> {
    for entry in fs::read_dir(dir).map_err(CatalogError::io("list", dir))? {
        let path = entry.map_err(CatalogError::io("list", dir))?.path();
        if path.is_dir() {
            sync_all(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(CatalogError::io("sync", &path))?;
        }
    }
    sync_dir(dir)
}

/// Remove the lock files that a crash in the middle of moving a ref leaves: they would make it immovable.
fn remove_locks(dir: &Path) -> Result<(), CatalogError> {
    for entry in fs::read_dir(dir).map_err(CatalogError::io("list", dir))? {
        let entry = entry.map_err(CatalogError::io("list", dir))?;
        let path = entry.path();
        if entry.file_type().map_err(CatalogError::io("list", dir))?.is_dir() {
            remove_locks(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "lock") {
            fs::remove_file(&path).map_err(CatalogError::io("remove", &path))?;
        }
    }
    Ok(())
}
