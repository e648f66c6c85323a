//! Sends states to peers and takes theirs in: one pack with what the other side lacks.
//!
//! What a peer sends is trusted in nothing. It goes into a folder of its own, measured, inflated and hashed on its way
//! (`scan.rs`); then the state in it is checked as a whole, with our own objects to fill the gaps (`check.rs`); only then is the
//! pack moved to ours. Our state does not change by that: [`Catalog::join`] does it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use delugefs_proto::ids::random_u64;
use git2::{ObjectType, Oid};

use super::check::{CheckLimits, Checker, OnProblem};
use super::layout;
use super::objects::Objects;
use super::pack::PackWriter;
use super::packdir;
use super::scan::{ScanError, ScanLimits, scan};
use super::tree::tree_of_commit;
use super::walk::Walk;
use super::{Catalog, CatalogError, OBJECT_MAX_BYTES, State, libgit2};

/// What came of a pack that was cut off is kept from this size on, in bytes.
const CUT_MIN_BYTES: u64 = 256 << 10;
/// Folder in the catalog for what is not trusted yet.
const QUARANTINE: &str = "quarantine";

/// What a peer may send at most. How deep a state may be nested is limited by the layout.
#[derive(Clone, Copy, Debug)]
pub struct ImportLimits {
    /// Size of the pack, in bytes.
    pub pack_bytes: u64,
    /// Number of objects in the pack. Each takes 32 bytes of memory meanwhile.
    pub objects: u64,
    /// Size of all objects in the pack, inflated, in bytes; and of all records that differ from ours.
    pub inflated_bytes: u64,
    /// Number of keys that differ from ours.
    pub keys: u64,
    /// Memory that these keys and their records take, about, in bytes: a join holds all that it changes.
    pub memory_bytes: u64,
}

/// What a join may take of the memory: half of what the machine has, about a million files for each gigabyte of it; and at least this much.
const JOIN_MIN_BYTES: u64 = 1 << 30;

impl Default for ImportLimits {
    /// Room for ten times the catalog of a million files.
    fn default() -> Self {
        let memory_bytes = crate::os::memory_bytes().map_or(0, |bytes| bytes / 2).max(JOIN_MIN_BYTES);
        Self { pack_bytes: 2 << 30, objects: 8 << 20, inflated_bytes: 16 << 30, keys: 32 << 20, memory_bytes }
    }
}

impl Catalog {
    /// The first of these states that is known here.
    ///
    /// # Errors
    /// When an object cannot be read.
    pub fn known(&self, commits: &[Oid]) -> Result<Option<Oid>, CatalogError> {
        let handle = self.handles.get()?;
        let objects = Objects::new(&handle)?;
        for commit in commits {
            if let Some((ObjectType::Commit, _)) = objects.find(*commit)? {
                return Ok(Some(*commit));
            }
        }
        Ok(None)
    }

    /// Write a pack with what a peer lacks of a state who has the state `base`; without one, or when it is not known here
    /// any more, everything. For the same two states the pack is the same, byte by byte.
    ///
    /// # Errors
    /// When an object cannot be read, or `out` refuses.
    pub fn export(&self, state: &State, base: Option<Oid>, out: &mut dyn Write) -> Result<(), CatalogError> {
        let handle = self.handles.get()?;
        let objects = Objects::new(&handle)?;
        let base = match base {
            Some(base) => objects.find(base)?.and_then(|(_, bytes)| tree_of_commit(&bytes)),
            None => None,
        };
        let mut walk = Walk::new(&objects, HashSet::new());
        walk.commit(state.commit, base)?;
        let cannot_send = || CatalogError::io("send", "a pack to a peer");
        let mut writer = PackWriter::new(out, walk.order.len()).map_err(cannot_send())?;
        for oid in walk.order {
            let (kind, data) = objects.find(oid)?.ok_or(CatalogError::Missing(oid))?;
            writer.object(oid, kind, &data).map_err(cannot_send())?;
        }
        writer.finish().map(drop).map_err(cannot_send())
    }

    /// Take in a pack that leads to the state `commit`, and check that state in every respect. Our own state is not
    /// changed.
    ///
    /// # Errors
    /// [`CatalogError::Refused`] when anything is not as it must be, [`CatalogError::Newer`] when the peer is ahead of
    /// us, or that it cannot be read or written. Nothing of it is kept then, but for what came of a pack that cannot be read
    /// to its end: that is kept as `cut`, for [`Self::open_cut`].
    pub fn import(
        &self,
        pack: &mut dyn Read,
        commit: Oid,
        limits: &ImportLimits,
        cut: Option<&str>,
    ) -> Result<State, CatalogError> {
        let quarantine = Quarantine::new(&self.dir)?;
        let file_path = quarantine.packs().join("tmp_incoming");
        let mut file = packdir::create(&file_path)?;
        let limits_of_pack = ScanLimits {
            pack_bytes: limits.pack_bytes,
            objects: limits.objects,
            object_bytes: OBJECT_MAX_BYTES as u64,
            inflated_bytes: limits.inflated_bytes,
        };
        let index = scan(pack, &mut file, limits_of_pack).map_err(|why| match why {
            ScanError::Refused(why) => CatalogError::Refused(why),
            ScanError::Read(why) => {
                if let Some(cut) = cut.filter(|_| file.metadata().is_ok_and(|meta| meta.len() >= CUT_MIN_BYTES)) {
                    // Else it comes once more.
                    let _ = fs::rename(&file_path, self.dir.join(QUARANTINE).join(cut));
                }
                CatalogError::io("receive", "a pack from a peer")(why)
            }
            ScanError::Write(why) => CatalogError::io("write", &file_path)(why),
        })?;
        file.sync_all().map_err(CatalogError::io("sync", &file_path))?;
        drop(file);
        packdir::install(&file_path, &quarantine.packs(), &index)?;
        let file_path = quarantine.packs().join(format!("pack-{}.pack", index.checksum));

        // From here on until it is pinned, what it relies on must not be removed.
        let _shared = self.removal.read();
        let ours = self.current();
        let (tree, ctx) = {
            let repo = libgit2::open(&self.dir)?;
            let odb = repo.odb().map_err(CatalogError::git("open the catalog's objects"))?;
            odb.add_disk_alternate(quarantine.text()?).map_err(CatalogError::git("open a pack from a peer"))?;
            let objects = Objects::of(odb);
            let our_root = layout::root(&objects, ours.tree)?;
            let limits =
                CheckLimits { keys: limits.keys, bytes: limits.inflated_bytes, memory_bytes: limits.memory_bytes };
            let mut checker = Checker::new(&objects, OnProblem::Refuse, limits);
            let checked = checker.state(commit, Some(&our_root))?;
            checked.ok_or_else(|| CatalogError::Refused("it is no state".into()))?
        };
        if !index.entries.is_empty() {
            packdir::install(&file_path, &packdir::path(&self.dir), &index)?;
        }
        Ok(self.pins.pin(commit, tree, ctx))
    }
}

impl Catalog {
    /// What came of a pack before it was cut off.
    pub fn open_cut(&self, name: &str) -> Option<File> {
        File::open(self.dir.join(QUARANTINE).join(name)).ok()
    }

    /// Remove it.
    pub fn drop_cut(&self, name: &str) {
        let _ = fs::remove_file(self.dir.join(QUARANTINE).join(name)); // else the next start does
    }
}

/// Remove what imports left that a crash interrupted.
pub(super) fn clear_quarantine(catalog: &Path) -> Result<(), CatalogError> {
    let dir = catalog.join(QUARANTINE);
    match fs::remove_dir_all(&dir) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(CatalogError::io("remove", dir)(why)),
        _ => Ok(()),
    }
}

/// A folder of one import, laid out as git's `objects`.
struct Quarantine(PathBuf);

impl Quarantine {
    fn new(catalog: &Path) -> Result<Self, CatalogError> {
        let new = Self(catalog.join(QUARANTINE).join(format!("{:016x}", random_u64())));
        fs::create_dir_all(new.packs()).map_err(CatalogError::io("create", new.packs()))?;
        Ok(new)
    }

    fn packs(&self) -> PathBuf {
        self.0.join("pack")
    }

    /// Its path, as git2 wants it.
    fn text(&self) -> Result<&str, CatalogError> {
        let odd = || io::Error::new(io::ErrorKind::InvalidInput, "move the disk's folder to a path that is UTF-8");
        self.0.to_str().ok_or_else(odd).map_err(CatalogError::io("open", &self.0))
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        if let Err(why) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %why, "cannot remove what an import left; the next start will");
        }
    }
}
