//! Rewrites many packs into one, and so drops what no state needs any more. Looking an object up takes longer with
//! every pack, and every commit adds one.
//!
//! One large pack, the *base*, holds a complete state. As long as the other packs are small beside it, only they are
//! rewritten, without what the base has: so a change a minute in a million files does not write 100 MB every half an
//! hour. When they have grown to half of it, all is rewritten and becomes the new base; where there is no room for that, only they are,
//! for packs must not pile up on a full disk.
//!
//! The long part, writing, runs beside commits and imports. At the end both are held up for a moment: what came in
//! meanwhile may rely on objects of the old packs, so everything reachable then and not yet rewritten is written too, and
//! only then are the old packs removed. A crash leaves the old packs, the new ones, or both: all of them complete.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use git2::{ObjectType, Oid, Repository};

use super::objects::Objects;
use super::packdir::{self, NewPack};
use super::tree::tree_of_commit;
use super::walk::Walk;
use super::{Catalog, CatalogError, libgit2};

/// Number of packs from which on [`Catalog::consolidate`] is due. A lookup that misses takes 13 us with one pack, 60 us
/// with 50 and 3 ms with 1,000.
pub const CONSOLIDATE_AT_PACKS: usize = 32;

/// File in the catalog that names the base: its pack and a state that is complete in it. Without it, or when it names
/// a pack that is not there, there is no base.
const BASE: &str = "base";

/// See the module.
struct Base {
    /// Name of its pack without extension.
    pack: String,
    /// Root of the state that is complete in it.
    tree: Oid,
    bytes: u64,
}

impl Catalog {
    /// Rewrite what any ref or living [`State`](super::State) reaches into one pack (or two, see the module) and remove
    /// the other packs. At most `room` bytes are written beside the old packs: without room for any of that nothing is done.
    ///
    /// # Errors
    /// When an object cannot be read or written. Nothing was removed then.
    pub fn consolidate(&self, room: u64) -> Result<(), CatalogError> {
        let _one = self.consolidation.lock();
        let dir = packdir::path(&self.dir);
        let mut old = packdir::list(&dir)?;
        let repo = libgit2::open(&self.dir)?;
        let mut base = self.base(&repo, &dir, &old)?;
        let mut bytes = self.packs_bytes()?;
        if let Some(found) = &base {
            let others_bytes = bytes.saturating_sub(found.bytes);
            if others_bytes * 2 <= found.bytes || bytes > room {
                old.retain(|stem| *stem != found.pack);
                bytes = others_bytes;
            } else {
                base = None;
            }
        }
        if old.len() < 2 || bytes > room {
            return Ok(());
        }
        self.rewrite_packs(&repo, &dir, base, old, room)
    }

    /// Keep nothing but the committed state, what somebody holds and what other refs reach, in one pack: for a disk that
    /// needs the room. The states before this one are forgotten. At most `room` bytes are written beside the old packs.
    ///
    /// # Errors
    /// As [`Catalog::consolidate`]; `ENOSPC` also when it would be more.
    pub fn compact(&self, room: u64) -> Result<(), CatalogError> {
        let _one = self.consolidation.lock();
        self.forget_earlier_states();
        let dir = packdir::path(&self.dir);
        let old = packdir::list(&dir)?;
        self.rewrite_packs(&libgit2::open(&self.dir)?, &dir, None, old, room)
    }

    /// Rewrite what is not in the base into a new pack, and remove the old ones.
    fn rewrite_packs(
        &self,
        repo: &Repository,
        dir: &Path,
        base: Option<Base>,
        mut old: Vec<String>,
        room: u64,
    ) -> Result<(), CatalogError> {
        let state = self.current();
        let (mut new, mut seen) = (Vec::new(), HashSet::new());
        let have = base.as_ref().map(|base| base.tree);
        self.rewrite(repo, dir, (have, room), &mut seen, &mut new)?;
        if let (None, Some(pack)) = (&base, new.first()) {
            // The first pack of a rewrite from nothing is complete.
            packdir::replace_file(&self.dir, &self.dir.join(BASE), format!("{pack} {}\n", state.commit).as_bytes())?;
        }
        {
            let _removal = self.removal.write();
            let _writer = self.writer.lock();
            self.rewrite(repo, dir, (have, room), &mut seen, &mut new)?;
            old.retain(|stem| !new.contains(stem));
            packdir::remove(dir, &old)?;
        }
        self.handles.renew();
        Ok(())
    }

    /// Bytes of all packs, with what earlier states have left in them.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn packs_bytes(&self) -> Result<u64, CatalogError> {
        let dir = packdir::path(&self.dir);
        packdir::list(&dir)?.iter().map(|stem| packdir::size_bytes(&dir, stem)).sum()
    }

    /// The base, if there is one.
    fn base(&self, repo: &Repository, dir: &Path, packs: &[String]) -> Result<Option<Base>, CatalogError> {
        let path = self.dir.join(BASE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(CatalogError::io("read", path)(why)),
        };
        let named = text.trim_end().split_once(' ').and_then(|(pack, commit)| Some((pack, commit.parse().ok()?)));
        let Some((pack, commit)) = named.filter(|(pack, _)| packs.iter().any(|stem| stem == pack)) else {
            return Ok(None);
        };
        let bytes = packdir::size_bytes(dir, pack)?;
        let objects = Objects::new(repo)?;
        let found = objects.find(commit)?.filter(|(kind, _)| *kind == ObjectType::Commit);
        let tree = found.and_then(|(_, bytes)| tree_of_commit(&bytes));
        Ok(tree.map(|tree| Base { pack: pack.to_owned(), tree, bytes }))
    }

    /// Write a pack of all that is reachable now, neither in `seen` nor in the tree `have`, if it is not larger than `room`.
    fn rewrite(
        &self,
        repo: &Repository,
        dir: &Path,
        (have, room): (Option<Oid>, u64),
        seen: &mut HashSet<Oid>,
        new: &mut Vec<String>,
    ) -> Result<(), CatalogError> {
        let objects = Objects::new(repo)?;
        let mut walk = Walk::new(&objects, std::mem::take(seen));
        for commit in self.roots(repo)? {
            walk.commit(commit, have)?;
        }
        let order = walk.order;
        *seen = walk.seen;
        if order.is_empty() {
            return Ok(());
        }
        let (pack, mut writer) = NewPack::begin(dir, order.len())?;
        for oid in order {
            let (kind, data) = objects.find(oid)?.ok_or(CatalogError::Missing(oid))?;
            if writer.bytes() > room {
                let full = std::io::Error::from_raw_os_error(nix::libc::ENOSPC);
                return Err(CatalogError::io("leave room beside a pack in", dir)(full));
            }
            writer.object(oid, kind, &data).map_err(CatalogError::io("write a pack in", dir))?;
        }
        new.push(pack.finish(writer)?);
        Ok(())
    }

    /// The commits whose objects are kept: the committed state's first, then those of living states and of other refs.
    fn roots(&self, repo: &Repository) -> Result<Vec<Oid>, CatalogError> {
        let list = || CatalogError::git("list the catalog's refs");
        let mut roots = vec![self.current().commit];
        roots.extend(self.pins.commits());
        for name in repo.references().map_err(list())? {
            let name = name.map_err(list())?;
            roots.push(name.peel_to_commit().map_err(list())?.id());
        }
        Ok(roots)
    }
}
