//! The namespace: POSIX operations on the catalog, in memory and in the journal.
//!
//! State is `committed catalog` + `committing` + `pending`, each over the one before. Decoded directories are cached
//! with all of it applied, when they are loaded too; one that has uncommitted changes stays in the cache, so that what is
//! not there can be searched in the catalog alone. An operation reads the sets it needs, builds a [`Txn`] of what the touched keys become, and [`Namespace::apply`] appends that to the journal first
//! and to memory second: what is acknowledged is in the journal.
//!
//! One owner: the engine holds it behind a mutex. It knows nothing of file contents beyond their records, of sockets
//! or of who has what open. It makes no permission checks (the kernel does).
//!
//! The rules a change has to follow so that joins lose nothing are in `delugefs_proto::record`; the operations are in
//! the files below this one, a kind each.

mod departed;
mod dir;
mod edit;
mod foreign;
mod free;
mod heads;
mod links;
mod list;
mod locate;
mod make;
mod mend;
mod node;
mod remove;
mod removed;
mod rename;
mod taken;
#[cfg(test)]
mod tests;
mod txn;
mod xattr;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ActorId, Ino};
use delugefs_proto::local_pb;
use delugefs_proto::record::{Body, Dot, Element, Key, Name, VersionVector};
use nix::errno::Errno;

pub use self::edit::{Edit, NewContent};
pub use self::foreign::Brought;
#[cfg(test)]
pub(crate) use self::foreign::JOINED;
pub use self::heads::FORGOTTEN;
pub use self::list::Page;
pub use self::locate::Located;
pub use self::make::{Making, is_made_with};
pub use self::node::{Kind, Node};
pub use self::rename::Renamed;
pub use self::taken::{Taken, Written};
pub use self::txn::{Txn, now_ns};

use self::dir::Dir;
use self::removed::RemovedDirs;
use crate::catalog::{Catalog, CatalogError, Changes};
use crate::journal::Journal;

/// Entries in cached clean directories before the least recently used ones are dropped: about 120 MB.
const CACHED_ENTRIES_MAX: usize = 300_000;
/// A directory with more than this part of these is large: to decode it again takes a second or more, in which nobody gets anything.
const LARGE_SHARE: usize = 3;
/// Large ones that were used within this are not counted and stay,
const LARGE_KEPT: Duration = Duration::from_secs(60);
/// as long as they have no more than so many times these entries together; the one used last in any case.
const LARGE_FACTOR: usize = 3;
/// Cached clean inode sets before they are dropped.
const CACHED_INODES_MAX: usize = 20_000;

/// See the module.
pub struct Namespace {
    catalog: Arc<Catalog>,
    journal: Arc<Journal>,
    dirs: HashMap<Ino, Dir>,
    cached_entries: usize,
    /// [`CACHED_ENTRIES_MAX`], but for tests.
    cached_entries_max: usize,
    /// [`LARGE_KEPT`], but for tests.
    large_kept: Duration,
    /// Entries of large directories that stay, as of the last look.
    large_entries: usize,
    tick: u64,
    /// What was used at this tick or later stays in the cache, however large it is.
    kept_since: u64,
    inodes: HashMap<Ino, Vec<Element>>,
    /// Changed since the last commit began.
    pending: Changes,
    /// Being committed.
    committing: Arc<Changes>,
    ctx: VersionVector,
    actor: ActorId,
    last_hlc: u64,
    /// Counts changes; orders answers against events.
    seq: u64,
    /// Directories removed since the start: their numbers are not given out again.
    removed_dirs: RemovedDirs,
    /// Files replaced a moment ago.
    departed: departed::Departed,
    /// What the last applied changes touched, until the engine takes it to tell the mounts.
    touched: Touched,
    /// Contents that got a new dot and are the same: file, old dot, new dot. Until the engine takes it.
    renewed: Vec<(Ino, Dot, Dot)>,
    /// Keys that are to be mended and could not be.
    unmended: BTreeSet<Key>,
}

/// What changes touched, for the mounts.
#[derive(Default)]
pub struct Touched(BTreeMap<Ino, (Vec<Name>, Vec<Ino>)>);

impl Touched {
    /// In the form of an event.
    pub fn into_changed(self) -> Vec<local_pb::Changed> {
        let raw = |(dir, (names, inos)): (Ino, (Vec<Name>, Vec<Ino>))| local_pb::Changed {
            dir: if names.is_empty() { 0 } else { dir.0 },
            names: names.into_iter().map(|n| n.as_bytes().to_vec().into()).collect(),
            inos: inos.into_iter().map(|i| i.0).collect(),
        };
        self.0.into_iter().map(raw).collect()
    }

    /// Note a node whose attributes or content changed.
    pub fn node(&mut self, dir: Ino, ino: Ino) {
        self.0.entry(dir).or_default().1.push(ino);
    }

    /// Whether a name shows something else than before, or there is none or a new one.
    pub fn has_names(&self) -> bool {
        self.0.values().any(|(names, _)| !names.is_empty())
    }

    /// Whether nothing was touched.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The errno behind a catalog error; EIO where it is not the system's.
pub(crate) fn catalog_errno(error: &CatalogError) -> Errno {
    match error {
        CatalogError::Io { source, .. } => crate::os::errno(source),
        CatalogError::Refused(_) => Errno::EPROTO,
        _ => Errno::EIO,
    }
}

/// A catalog that cannot be read is an I/O error for whoever asked.
pub(crate) fn catalog_error(error: CatalogError) -> FsError {
    tracing::error!("catalog: {error}");
    FsError::new(Errno::EIO, format!("the catalog of this disk cannot be read: {error}"))
}

impl Namespace {
    /// On an open catalog whose journal has been replayed and committed.
    pub fn new(catalog: Arc<Catalog>, journal: Arc<Journal>, actor: ActorId) -> Self {
        let ctx = catalog.state().ctx.clone();
        Self {
            catalog,
            journal,
            dirs: HashMap::new(),
            cached_entries: 0,
            cached_entries_max: CACHED_ENTRIES_MAX,
            large_kept: LARGE_KEPT,
            large_entries: 0,
            tick: 0,
            kept_since: u64::MAX,
            inodes: HashMap::new(),
            pending: Changes::default(),
            committing: Arc::default(),
            ctx,
            actor,
            last_hlc: 0,
            seq: 1,
            removed_dirs: RemovedDirs::default(),
            departed: departed::Departed::default(),
            touched: Touched::default(),
            renewed: Vec::new(),
            unmended: BTreeSet::new(),
        }
    }

    /// The change counter.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// A file that is being written has another size: answers from before are older, though no record has changed.
    pub fn resized(&mut self) {
        self.seq += 1;
    }

    /// What was touched since the last call.
    pub fn take_touched(&mut self) -> Touched {
        let mut touched = std::mem::take(&mut self.touched);
        for (names, inos) in touched.0.values_mut() {
            names.sort_unstable();
            names.dedup();
            inos.sort_unstable();
            inos.dedup();
        }
        touched
    }

    /// The directories and inodes touched since then that match.
    pub fn touched(&self, matches: impl Fn(Ino) -> bool) -> Vec<(Ino, Ino)> {
        let all = self.touched.0.iter().flat_map(|(dir, (_, inos))| inos.iter().map(|ino| (*dir, *ino)));
        all.filter(|(_, ino)| matches(*ino)).collect()
    }

    /// Contents renamed or linked since the last call, with the dots they had and have.
    pub fn take_renewed(&mut self) -> Vec<(Ino, Dot, Dot)> {
        std::mem::take(&mut self.renewed)
    }

    /// Keys changed since the last commit began.
    pub fn pending_len(&self) -> usize {
        self.pending.sets.len()
    }

    /// Keys whose changes no commit has yet, those that one is being made of among them.
    pub fn uncommitted_len(&self) -> usize {
        let again = self.pending.sets.keys().filter(|key| self.committing.sets.contains_key(key)).count();
        self.pending.sets.len() + self.committing.sets.len() - again
    }

    /// What was changed since the last commit. While one is under way that is not all that is uncommitted.
    pub fn pending_sets(&self) -> BTreeMap<Key, Vec<Element>> {
        self.pending.sets.clone()
    }

    /// Whether anything is not committed yet.
    pub fn is_dirty(&self) -> bool {
        !self.pending.sets.is_empty() || !self.committing.sets.is_empty()
    }

    /// The committed state and what is on top of it, for checks.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// An attachment, committed or not.
    pub fn attachment(&self, id: delugefs_proto::ids::BlobId) -> FsResult<bytes::Bytes> {
        if let Some(bytes) = self.pending.blobs.get(&id).or_else(|| self.committing.blobs.get(&id)) {
            return Ok(bytes.clone());
        }
        self.catalog
            .attachment(id)
            .map_err(catalog_error)?
            .ok_or_else(|| FsError::new(Errno::EIO, format!("attachment {id} is missing in the catalog; run a scrub")))
    }

    /// Make a change: into the journal, then into memory. On an error nothing has changed.
    pub fn apply(&mut self, txn: Txn) -> FsResult<()> {
        if txn.change.sets.is_empty() {
            return Ok(());
        }
        // First: afterwards nothing may fail.
        self.load(&txn.change)?;
        self.journal.append(&txn.change).map_err(|error| {
            let error = FsError::from(error);
            let what_to_do = match error.errno {
                Errno::EFBIG => {
                    "; it takes more at once than the journal can hold: remove some of the names it is about first"
                }
                Errno::EAGAIN => "; this disk is being stopped: try again when it is back",
                _ => "",
            };
            FsError::new(error.errno, format!("cannot write the journal: {}{what_to_do}", error.errno.desc()))
        })?;
        // Not from what it had to be later than.
        if txn.hlc.0 < now_ns() as u64 + foreign::FOLLOWED_NS {
            self.last_hlc = self.last_hlc.max(txn.hlc.0);
        }
        self.renewed.extend(txn.renewed.iter().map(|(ino, old)| (*ino, *old, txn.dot)));
        self.absorb(txn.change);
        Ok(())
    }

    /// Whether a change of the journal goes on from what is known by now: of all it consists of, nothing is new but what it made
    /// itself, and that is its maker's next. A copy of a disk in use may have a catalog from before and a journal from after many
    /// changes: to take such a change would be to say that we know all before it, and what we do not have of that would be
    /// removed everywhere.
    pub fn follows(&self, change: &Changes) -> bool {
        let mut new = change.sets.values().flatten().map(|element| element.dot).filter(|dot| !self.ctx.has_seen(*dot));
        let Some(first) = new.next() else { return true };
        let last = self.ctx.0.get(&first.actor).copied().unwrap_or_default();
        first.seq == last + 1 && new.all(|dot| dot == first)
    }

    /// Take a change of an earlier life, which is in the journal already, unless the committed state has it: a commit
    /// that includes a change covers its dot, and every change leaves an element with its own.
    pub fn replay(&mut self, change: Changes) -> FsResult<()> {
        let mut dots = change.sets.values().flatten().map(|element| element.dot).peekable();
        let committed = &self.catalog.state().ctx;
        if dots.peek().is_some() && dots.all(|dot| committed.has_seen(dot)) {
            return Ok(());
        }
        // As far as they do not exist yet, the change makes them.
        self.load(&change)?;
        self.absorb(change);
        self.touched = Touched::default();
        Ok(())
    }

    /// Whatever these dots were of is known here, also where it is not kept.
    pub fn cover(&mut self, elements: &[Element]) {
        elements.iter().for_each(|element| self.ctx.advance(element.dot));
    }

    /// What a key is set to now.
    pub fn set(&mut self, key: &Key) -> FsResult<Vec<Element>> {
        Ok(match key {
            Key::Entry(dir, name) => self.dir(*dir)?.get(name).to_vec(),
            Key::Inode(ino) => self.inode(*ino)?.to_vec(),
        })
    }

    /// Load all that a change is about to change.
    fn load(&mut self, change: &Changes) -> FsResult<()> {
        self.kept_since = self.tick + 1;
        let mut keys = change.sets.keys();
        let loaded = keys.try_for_each(|key| match key {
            Key::Entry(dir, _) => self.dir(*dir).map(drop),
            Key::Inode(ino) => self.inode(*ino).map(drop),
        });
        self.kept_since = u64::MAX;
        loaded
    }

    /// Take a change that is in the journal into memory.
    fn absorb(&mut self, change: Changes) {
        self.seq += 1;
        for elements in change.sets.values() {
            elements.iter().for_each(|element| self.ctx.advance(element.dot));
        }
        // Names that go first: what is renamed would else be there twice for a moment.
        let (gone, set): (Vec<_>, Vec<_>) = change.sets.into_iter().partition(|(_, elements)| elements.is_empty());
        for (key, elements) in gone.into_iter().chain(set) {
            self.note(&key, &elements);
            match &key {
                Key::Entry(ino, name) => {
                    if let Some(dir) = self.dirs.get_mut(ino) {
                        let before = dir.cost();
                        dir.put(name.clone(), elements.clone());
                        self.cached_entries = self.cached_entries + dir.cost() - before;
                    }
                }
                Key::Inode(ino) => {
                    self.inodes.insert(*ino, elements.clone());
                }
            }
            self.pending.sets.insert(key, elements);
        }
        self.pending.blobs.extend(change.blobs);
        self.shrink();
    }

    /// Note in `touched` what setting a key to these elements changes for the mounts.
    fn note(&mut self, key: &Key, new: &[Element]) {
        match key {
            Key::Entry(dir, name) if name.is_header() => self.touched.node(*dir, *dir),
            Key::Entry(dir, name) => {
                let old = self.dirs.get(dir).map(|d| dir::shown(name, d.get(name)));
                let now = dir::shown(name, new);
                let new = new.iter().filter_map(|e| e.body.ino());
                let (names, inos) = self.touched.0.entry(*dir).or_default();
                inos.extend(old.iter().flatten().map(|(_, ino)| *ino));
                inos.extend(new);
                match old {
                    // Names that are what they were need not be looked up again, as after every seal of a written file.
                    Some(old) => names.extend(old.symmetric_difference(&now).map(|(name, _)| name.clone())),
                    None => names.extend(now.into_iter().map(|(name, _)| name).chain([name.clone()])),
                }
            }
            Key::Inode(ino) => {
                self.touched.node(Ino(0), *ino);
                // Files of the same content that went with it: they may be open.
                let others = new.iter().filter(|e| matches!(e.body, Body::Content { .. })).filter_map(|e| e.body.ino());
                for other in others.filter(|other| other != ino) {
                    let refs =
                        new.iter().filter_map(|e| if let Body::Ref { dir, .. } = e.body { Some(dir) } else { None });
                    refs.for_each(|dir| self.touched.node(dir, other));
                }
            }
        }
    }

    /// Drop clean cached things beyond the limits.
    fn shrink(&mut self) {
        if self.cached_entries > self.cached_entries_max + self.large_entries {
            let mut by_age: Vec<_> = self.dirs.iter().map(|(ino, dir)| (dir.used, *ino)).collect();
            by_age.sort_unstable();
            let large = self.large_in_use(&by_age);
            for (used, ino) in by_age {
                let most = self.cached_entries_max * 3 / 4 + self.large_entries;
                if self.cached_entries <= most || used >= self.tick.min(self.kept_since) {
                    break;
                }
                if !large.contains(&ino)
                    && !self.is_dirty_dir(ino)
                    && let Some(dir) = self.dirs.remove(&ino)
                {
                    self.cached_entries -= dir.cost();
                }
            }
        }
        if self.inodes.len() > CACHED_INODES_MAX {
            let (pending, committing) = (&self.pending.sets, &self.committing.sets);
            self.inodes.retain(|ino, _| {
                let key = Key::Inode(*ino);
                pending.contains_key(&key) || committing.contains_key(&key)
            });
        }
    }

    /// The large directories that stay, of all in the order in which they were used: whoever works in one beside others would have it
    /// decoded again at every commit.
    fn large_in_use(&mut self, by_age: &[(u64, Ino)]) -> HashSet<Ino> {
        let mut large = HashSet::new();
        self.large_entries = 0;
        for (_, ino) in by_age.iter().rev() {
            let Some(dir) = self.dirs.get(ino) else { continue };
            let is_large =
                dir.cost() > self.cached_entries_max / LARGE_SHARE && dir.used_at.elapsed() < self.large_kept;
            let have_room = self.large_entries + dir.cost() <= self.cached_entries_max * LARGE_FACTOR;
            if is_large && (large.is_empty() || have_room) {
                self.large_entries += dir.cost();
                large.insert(*ino);
            }
        }
        large
    }

    fn is_dirty_dir(&self, ino: Ino) -> bool {
        let range = Key::header(ino)..Key::header(Ino(ino.0 + 1));
        [&self.pending, &*self.committing].iter().any(|c| c.sets.range(range.clone()).next().is_some())
    }

    /// A directory, loaded if need be. Unknown numbers give an empty one without a header, impossible ones ENOENT.
    fn dir(&mut self, ino: Ino) -> FsResult<&Dir> {
        if !ino.is_storable() {
            return Err(Errno::ENOENT.into());
        }
        self.tick += 1;
        if !self.dirs.contains_key(&ino) {
            let leaf = self.catalog.directory(ino).map_err(catalog_error)?;
            let mut dir = Dir::new(leaf);
            // It should have stayed in the cache with these.
            let range = Key::header(ino)..Key::header(Ino(ino.0 + 1));
            for changes in [&*self.committing, &self.pending] {
                for (key, elements) in changes.sets.range(range.clone()) {
                    if let Key::Entry(_, name) = key {
                        dir.put(name.clone(), elements.clone());
                    }
                }
            }
            // Else it would be the oldest, and the first to go when the cache is full.
            dir.used_now(self.tick);
            self.cached_entries += dir.cost();
            self.dirs.insert(ino, dir);
            self.shrink();
        }
        let tick = self.tick;
        match self.dirs.get_mut(&ino) {
            Some(dir) => {
                dir.used_now(tick);
                Ok(dir)
            }
            None => Err(Errno::EIO.into()),
        }
    }

    /// A directory that exists, or ENOENT.
    fn live_dir(&mut self, ino: Ino) -> FsResult<&Dir> {
        let dir = self.dir(ino)?;
        if dir.header().is_empty() { Err(Errno::ENOENT.into()) } else { Ok(dir) }
    }

    /// The set of an inode kept on its own, loaded if need be; empty if there is none.
    fn inode(&mut self, ino: Ino) -> FsResult<&[Element]> {
        if !self.inodes.contains_key(&ino) {
            let elements = self.catalog.set(&Key::Inode(ino)).map_err(catalog_error)?;
            self.inodes.insert(ino, elements);
        }
        Ok(self.inodes.get(&ino).map_or(&[], Vec::as_slice))
    }

    /// Start a change.
    pub fn txn(&self) -> Txn {
        let seq = self.ctx.0.get(&self.actor).copied().unwrap_or_default() + 1;
        Txn::new(Dot { actor: self.actor, seq }, self.last_hlc)
    }

    /// Take what is pending for a commit: the changes and the version vector of the state they lead to. The journal
    /// begins a new segment; [`Self::committed`] or [`Self::commit_failed`] must follow.
    pub fn begin_commit(&mut self) -> FsResult<(Arc<Changes>, VersionVector)> {
        self.journal.rotate()?;
        self.committing = Arc::new(std::mem::take(&mut self.pending));
        Ok((self.committing.clone(), self.ctx.clone()))
    }

    /// What was taken is durable in git.
    pub fn committed(&mut self) {
        self.committing = Arc::default();
        // Those that were large and in use may be so no more.
        self.large_entries = 0;
        self.shrink();
    }

    /// What was taken could not be committed: it is pending again, under what came after it.
    pub fn commit_failed(&mut self) {
        let mut changes = Arc::unwrap_or_clone(std::mem::take(&mut self.committing));
        changes.sets.append(&mut self.pending.sets);
        changes.blobs.append(&mut self.pending.blobs);
        self.pending = changes;
    }
}
