//! Contents that nothing refers to: moved to `trash/`, kept there for a while, then deleted. Late on purpose: whoever
//! decides what is referred to may be wrong or behind, and a content in the trash comes back when it is asked for.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::ContentId;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, UtimensatFlags, fchmodat, fstatat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};
use parking_lot::Mutex;

use super::damaged::{self, Damage};
use super::{ContentStore, Shard, content_of, data_path, fail, stat_regular};
use crate::folder::Dir;
use crate::os;

/// Contents to be kept whatever the catalog says.
#[derive(Default)]
pub(super) struct Keep {
    /// Finished or taken back since the last collection began: they may be recorded only after the live set was made.
    fresh: Mutex<BTreeSet<ContentId>>,
    pins: Mutex<HashMap<ContentId, u32>>,
    /// Pinned at the last collection, and no file's.
    unwanted: Mutex<HashSet<ContentId>>,
    /// How many of these were unpinned.
    loosened: AtomicU64,
    /// Promised to other disks, until when.
    promised: Mutex<HashMap<ContentId, Instant>>,
    /// About to be let go, and whether another file has got them since that began.
    leaving: Mutex<HashMap<ContentId, bool>>,
    /// So many others are being given these.
    giving: Mutex<HashMap<ContentId, u32>>,
}

/// Somebody is given a content, until this is dropped.
pub struct Giving {
    store: Arc<ContentStore>,
    content: ContentId,
}

impl Drop for Giving {
    fn drop(&mut self) {
        let mut giving = self.store.keep.giving.lock();
        if let Some(count) = giving.get_mut(&self.content) {
            *count -= 1;
            if *count == 0 {
                giving.remove(&self.content);
            }
        }
    }
}

impl Keep {
    pub(super) fn finished(&self, content: ContentId) {
        self.fresh.lock().insert(content);
        if let Some(got) = self.leaving.lock().get_mut(&content) {
            *got = true;
        }
    }

    fn is_used(&self, content: ContentId) -> bool {
        self.pins.lock().contains_key(&content)
    }

    fn is_promised(&self, content: ContentId) -> bool {
        self.promised_for(content).is_some()
    }

    fn promised_for(&self, content: ContentId) -> Option<Duration> {
        let until = self.promised.lock().get(&content).copied()?;
        Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    fn holds(&self, content: ContentId) -> bool {
        self.fresh.lock().contains(&content) || self.is_used(content) || self.is_promised(content)
    }
}

/// Contents above which the trash is listed, to see which of them are in it.
const LOOKED_UP_MAX: usize = 1000;

/// For how long what nobody refers to is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// In `incoming/`, and in the trash what came there by `stable`.
    pub usual: Duration,
    /// In the trash what came later.
    pub most: Duration,
    /// What is in the trash since then nobody can refer to any more.
    pub stable: SystemTime,
}

impl From<Duration> for Retention {
    fn from(usual: Duration) -> Self {
        Self { usual, most: usual, stable: UNIX_EPOCH }
    }
}

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Contents moved to the trash.
    pub moved: u64,
    /// Their bytes.
    pub moved_bytes: u64,
    /// Contents deleted from the trash, and abandoned fetches.
    pub deleted: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Contents that are referred to again and were taken back.
    pub restored: u64,
}

impl ContentStore {
    /// Keep a content, whatever [`ContentStore::collect`] is told, until it is unpinned as often.
    pub fn pin(&self, content: ContentId) {
        *self.keep.pins.lock().entry(content).or_default() += 1;
    }

    /// Take back one [`ContentStore::pin`].
    pub fn unpin(&self, content: ContentId) {
        let mut pins = self.keep.pins.lock();
        if let Some(count) = pins.get_mut(&content) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&content);
                if self.keep.unwanted.lock().remove(&content) {
                    self.keep.loosened.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Whether a content is pinned that no file had at the last collection: who has pinned it had better let it go.
    pub fn is_unwanted(&self, content: ContentId) -> bool {
        self.keep.unwanted.lock().contains(&content)
    }

    /// Grows when such a one is unpinned: then another collection finds something.
    pub fn loosened(&self) -> u64 {
        self.keep.loosened.load(Ordering::Relaxed)
    }

    /// Keep a content for so long, whatever anybody says: other disks let their copies go relying on it. Does not survive
    /// the process.
    pub fn promise(&self, content: ContentId, lasts: Duration) {
        let now = Instant::now();
        let mut promised = self.keep.promised.lock();
        promised.retain(|_, until| *until > now);
        let until = promised.entry(content).or_insert(now);
        *until = (*until).max(now + lasts);
    }

    /// Whether a content has to be kept because of [`ContentStore::promise`].
    pub fn is_promised(&self, content: ContentId) -> bool {
        self.keep.is_promised(content)
    }

    /// For how long it still has to be.
    pub fn promised_for(&self, content: ContentId) -> Option<Duration> {
        self.keep.promised_for(content)
    }

    /// Move what is not in `live` to the trash, take back what is, and delete what has been in the trash (or lies in
    /// `incoming/` untouched) for as long as `lasts` says. `live` must have been made after the last call of this returned; contents
    /// finished since that call began are spared, so a content must be recorded before the next call but one.
    pub fn collect(
        &self,
        live: &HashSet<ContentId>,
        lasts: impl Into<Retention>,
        now: SystemTime,
    ) -> FsResult<Collected> {
        let lasts = lasts.into();
        let spared = std::mem::take(&mut *self.keep.fresh.lock());
        self.keep.unwanted.lock().clear();
        let mut done = Collected::default();
        for (content, size) in self.contents().flatten() {
            if live.contains(&content) || spared.contains(&content) {
                continue;
            }
            if self.discard(content, now)? {
                done.moved += 1;
                done.moved_bytes += size;
            } else if self.keep.is_used(content) {
                self.keep.unwanted.lock().insert(content);
            }
        }
        self.collect_aside(live);
        for dir in [Dir::Trash, Dir::Incoming] {
            for content in self.in_dir(dir)? {
                if live.contains(&content) {
                    done.restored += u64::from(dir == Dir::Trash && self.take_back(content)?.is_some());
                } else if let Some(bytes) = self.delete_old(dir, content, lasts, now)? {
                    done.deleted += 1;
                    done.deleted_bytes += bytes;
                }
            }
        }
        Ok(done)
    }

    /// Empty the trash now, because room is needed; the bytes that were freed.
    pub fn purge_trash(&self) -> FsResult<u64> {
        self.shed_trash(Duration::ZERO)
    }

    /// Delete what has been in the trash for so long; the bytes that were freed.
    pub fn shed_trash(&self, lasts: Duration) -> FsResult<u64> {
        let mut freed = 0;
        for content in self.in_dir(Dir::Trash)? {
            freed += self.delete_old(Dir::Trash, content, lasts.into(), SystemTime::now())?.unwrap_or(0);
        }
        Ok(freed)
    }

    /// Other disks are about to be asked to keep a content for those files that have it by now, until
    /// [`ContentStore::end_leaving`].
    pub fn begin_leaving(&self, content: ContentId) {
        self.keep.leaving.lock().insert(content, false);
    }

    /// Whether this is so.
    pub fn is_leaving(&self, content: ContentId) -> bool {
        self.keep.leaving.lock().contains_key(&content)
    }

    /// To be kept by who gives a content to another disk, as long as that lasts. `None` when it is about to go: then it is given to nobody.
    pub fn give(self: &Arc<Self>, content: ContentId) -> Option<Giving> {
        // Both as one step: who begins to let it go asks afterwards whether it is being given.
        let mut giving = self.keep.giving.lock();
        if self.is_leaving(content) {
            return None;
        }
        *giving.entry(content).or_default() += 1;
        Some(Giving { store: self.clone(), content })
    }

    /// Whether it is being given to somebody.
    pub fn is_given(&self, content: ContentId) -> bool {
        self.keep.giving.lock().contains_key(&content)
    }

    /// Whether something on this disk reads it.
    pub fn is_used(&self, content: ContentId) -> bool {
        self.keep.is_used(content)
    }

    /// It went, or stays.
    pub fn end_leaving(&self, content: ContentId) {
        self.keep.leaving.lock().remove(&content);
    }

    /// Delete a content although files have it, because others keep it. `false` when something here keeps it, or it is not
    /// here, or another file has got it since [`ContentStore::begin_leaving`]. Not through the trash: from there it would come back.
    pub fn let_go(&self, content: ContentId) -> FsResult<bool> {
        let mut shard = self.shard(content).lock();
        let has_got = self.keep.leaving.lock().get(&content) == Some(&true);
        if has_got || self.keep.is_used(content) || self.keep.is_promised(content) {
            return Ok(false);
        }
        self.keep.fresh.lock().remove(&content);
        let deleted = self.open_shard(content).and_then(|from| {
            let size = stat_regular(&from, &content.to_hex())?.st_size as u64;
            unlinkat(&from, content.to_hex().as_str(), UnlinkatFlags::NoRemoveDir).map(|()| size)
        });
        match deleted {
            Ok(size) => Ok(self.gone(&mut shard, content, size)),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(fail(errno, "delete", &data_path(content))),
        }
    }

    /// As if a collection had begun since it came.
    #[cfg(test)]
    pub(super) fn unspare(&self, content: ContentId) {
        self.keep.fresh.lock().remove(&content);
    }

    /// As if the time of all promises were over.
    #[cfg(test)]
    pub(crate) fn break_promises(&self) {
        self.keep.promised.lock().clear();
    }

    /// Move one content to the trash unless something keeps it.
    pub(super) fn discard(&self, content: ContentId, now: SystemTime) -> FsResult<bool> {
        let name = content.to_hex();
        let mut shard = self.shard(content).lock();
        if self.keep.holds(content) {
            return Ok(false);
        }
        let moved = self.open_shard(content).and_then(|from| {
            let size = stat_regular(&from, &name)?.st_size as u64;
            if self.damage(content) == Some(Damage::Wrong) {
                // Nobody counts it while it is no file's; but it may come back, and then this must be known.
                let mode = Mode::from_bits_truncate(0o400 | damaged::MARK);
                fchmodat(&from, name.as_str(), mode, FchmodatFlags::FollowSymlink)?;
            }
            // The time first: a crash in between must not leave a file in the trash that looks old.
            let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
            let time = TimeSpec::from_duration(now);
            utimensat(&from, name.as_str(), &time, &time, UtimensatFlags::NoFollowSymlink)?;
            renameat(&from, name.as_str(), self.dir(Dir::Trash), name.as_str()).map(|()| size)
        });
        match moved {
            Ok(size) => Ok(self.gone(&mut shard, content, size)),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(fail(errno, "move to the trash", &data_path(content))),
        }
    }

    /// A content was looked for and is not there. Nobody of this program may have removed it.
    pub(super) fn missed(&self, content: ContentId) {
        let _shard = self.shard(content).lock();
        if matches!(self.stat(content), Ok(None)) {
            self.damaged.forget(content);
            self.tell(content, false);
        }
    }

    /// A content has left `data/`: always `true`.
    pub(super) fn gone(&self, shard: &mut Shard, content: ContentId, size: u64) -> bool {
        if let Some(usage) = shard {
            usage.contents = usage.contents.saturating_sub(1);
            usage.bytes = usage.bytes.saturating_sub(size);
        }
        self.damaged.forget(content);
        self.tell(content, false);
        true
    }

    /// Take a content back from the trash; what is in `data/` then. Durable when it returns: a crash must not put a content
    /// back into the trash that somebody has relied on since.
    pub(super) fn take_back(&self, content: ContentId) -> FsResult<Option<FileStat>> {
        let failed = |errno| fail(errno, "take back", &format!("trash/{content}"));
        let mut shard = self.shard(content).lock();
        // Somebody else may have been faster.
        if let Some(stat) = self.stat(content).map_err(failed)? {
            return Ok(Some(stat));
        }
        match stat_regular(self.dir(Dir::Trash), &content.to_hex()) {
            Ok(_) => {}
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        }
        let back = self.put(&mut shard, Dir::Trash, &content.to_hex(), content).and_then(|()| {
            fsync(&self.open_shard(content)?)?;
            fsync(self.dir(Dir::Data))?;
            fsync(self.dir(Dir::Trash))?;
            self.stat(content)
        });
        back.map_err(failed)
    }

    /// Take back those of them that are in the trash.
    pub fn take_back_all(&self, contents: &[ContentId]) -> FsResult<()> {
        // A collection that has begun knows nothing of whose they are now.
        self.keep.fresh.lock().extend(contents);
        // Whatever it moves for not having seen that is in the trash by now.
        self.shards.iter().for_each(|shard| drop(shard.lock()));
        // Each looks for itself: with a month's trash that is less than to list it.
        if contents.len() <= LOOKED_UP_MAX {
            return contents.iter().try_for_each(|content| self.take_back(*content).map(drop));
        }
        let trash: HashSet<ContentId> = self.in_dir(Dir::Trash)?.into_iter().collect();
        contents
            .iter()
            .filter(|content| trash.contains(content))
            .try_for_each(|content| self.take_back(*content).map(drop))
    }

    /// Contents named in a flat directory. Other names are left alone.
    pub(super) fn in_dir(&self, dir: Dir) -> FsResult<Vec<ContentId>> {
        let names = os::names(self.folder.root_fd(), dir.name()).map_err(|errno| fail(errno, "list", dir.name()))?;
        Ok(names.iter().filter_map(|name| content_of(name)).collect())
    }

    fn delete_old(&self, dir: Dir, content: ContentId, lasts: Retention, now: SystemTime) -> FsResult<Option<u64>> {
        let name = content.to_hex();
        let _shard = self.shard(content).lock();
        if self.keep.holds(content) {
            return Ok(None);
        }
        let deleted = || {
            let stat = fstatat(self.dir(dir), name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let since = Duration::from_nanos(u64::try_from(os::mtime_ns(&stat)).unwrap_or(0));
            let age = now.duration_since(UNIX_EPOCH).unwrap_or_default().checked_sub(since);
            let is_settled = dir == Dir::Incoming || UNIX_EPOCH + since <= lasts.stable;
            let lasts = if is_settled { lasts.usual } else { lasts.most };
            if !lasts.is_zero() && age.is_none_or(|age| age < lasts) {
                return Ok(None);
            }
            unlinkat(self.dir(dir), name.as_str(), UnlinkatFlags::NoRemoveDir)
                .map(|()| Some(stat.st_blocks as u64 * 512))
        };
        match deleted() {
            Err(Errno::ENOENT) => Ok(None),
            other => other.map_err(|errno| fail(errno, "delete", &format!("{}/{content}", dir.name()))),
        }
    }
}
