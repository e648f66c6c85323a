//! What has been renamed into `data/` and is not known to be on stable storage yet.
//!
//! A commit waits for what its records name and for nothing else: what was fetched (its bytes were synced before it got its name) and what
//! was written over again are synced by a thread of its own, a second or two later.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::ContentId;
use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::unistd::fsync;
use parking_lot::Mutex;

use super::{ContentStore, data_path, fail};
use crate::folder::Dir;
use crate::os;

/// Up to this many files are synced one by one; above, all of the file system at once. That takes along what others have written: with
/// 400 MB of it, 190 ms where 64 files of 20 kB take 15 one by one (ext4 on an SSD). On a quiet machine these take 12 ms, and the whole 2;
/// 200 take 33 and 4. A disk that turns has not been measured; there each file costs a turn or two, hence no more of them.
const ONE_BY_ONE_MAX: usize = 32;

#[derive(Default)]
pub(super) struct Durable {
    pending: Mutex<Pending>,
    /// Held while syncing: who comes second must not return before what the first one took is durable.
    pub(super) syncing: Mutex<()>,
    /// Held while all of the file system is synced, and until it is noted that this failed: an error is told once.
    whole: Mutex<()>,
}

#[derive(Default)]
struct Pending {
    /// With the number of the rename: one that got its name anew while it was synced stays.
    contents: BTreeMap<ContentId, u64>,
    renames: u64,
    /// `renames` when the rest was synced last.
    renames_before: u64,
    /// A directory was made in `data/`.
    made_shard: bool,
    /// A sync failed. What it was about may be lost although a later sync succeeds, so none does any more.
    failed: Option<Errno>,
}

impl Pending {
    fn are_synced(&mut self, contents: &[(ContentId, u64)]) {
        for (content, number) in contents {
            if self.contents.get(content) == Some(number) {
                self.contents.remove(content);
            }
        }
    }
}

impl Durable {
    pub(super) fn renamed(&self, content: ContentId) {
        let mut pending = self.pending.lock();
        pending.renames += 1;
        let number = pending.renames;
        pending.contents.insert(content, number);
    }

    /// Those of these that are not known to be on stable storage.
    fn among(&self, named: &HashSet<ContentId>) -> FsResult<Vec<(ContentId, u64)>> {
        let pending = self.pending.lock();
        match pending.failed {
            Some(errno) => Err(is_unknown(errno, "data")),
            None => Ok(named.iter().filter_map(|content| pending.contents.get_key_value(content)).map(pair).collect()),
        }
    }

    /// The sync of a content has failed.
    pub(super) fn failed(&self, errno: Errno) {
        self.pending.lock().failed = Some(errno);
    }

    pub(super) fn made_shard(&self) {
        self.pending.lock().made_shard = true;
    }
}

/// Errors of opening, not of syncing, which only say that somebody has all there is of something just now.
fn is_passing(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE)
}

/// A sync has failed, for good. Never `ENOSPC`, as btrfs and network file systems tell it: it would be taken for a full disk, which
/// gets well when something is deleted.
fn is_unknown(errno: Errno, what: &str) -> FsError {
    let advice = "what of it is on the disk is not known; look at dmesg, then start this diskworker again";
    FsError::new(Errno::EIO, format!("cannot sync {what} ({}): {advice}", errno.desc()))
}

fn pair((content, number): (&ContentId, &u64)) -> (ContentId, u64) {
    (*content, *number)
}

impl ContentStore {
    /// Like [`ContentStore::verify`], by what is on the disk: after a failed sync the pages in memory are right, and nothing will
    /// write them any more.
    pub fn verify_on_disk(&self, content: ContentId, size: u64) -> FsResult<()> {
        if let Ok(file) = self.open_content(content, size) {
            // Best effort. What waits for being written stays, as it should.
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        self.verify(content, size)
    }

    /// It is not known whether this content is on stable storage: an earlier process put it into `data/` and ended.
    pub fn doubt(&self, content: ContentId) {
        self.durable.renamed(content);
    }

    /// When this returns, everything that got its name in `data/` before the call is on stable storage.
    ///
    /// # Errors
    /// That of the sync. It is final: every later call fails too, until the disk is opened anew and checked.
    pub fn barrier(&self) -> FsResult<()> {
        let _syncing = self.durable.syncing.lock();
        let taken: Vec<_> = self.durable.pending.lock().contents.iter().map(pair).collect();
        self.sync(&taken)
    }

    /// The same for what a commit names: to be called before it. One that names nothing waits for nobody.
    pub fn barrier_for(&self, named: &HashSet<ContentId>) -> FsResult<()> {
        if self.durable.among(named)?.is_empty() {
            return Ok(());
        }
        let _syncing = self.durable.syncing.lock();
        let taken = self.durable.among(named)?;
        self.sync(&taken)
    }

    /// The same for one content.
    pub fn sync_content(&self, content: ContentId) -> FsResult<()> {
        let _syncing = self.durable.syncing.lock();
        let pending = self.durable.pending.lock().contents.get_key_value(&content).map(pair);
        self.sync(pending.as_slice())
    }

    /// The same for what no commit has asked for since the last call: now and then, so that what was fetched is soon safe under its name.
    /// No commit waits for that longer than for one file.
    pub fn sync_rest(&self) -> FsResult<()> {
        let rest: Vec<_> = {
            let mut pending = self.durable.pending.lock();
            let upto = pending.renames_before;
            pending.renames_before = pending.renames;
            pending.contents.iter().map(pair).filter(|(_, number)| *number <= upto).collect()
        };
        // Without the lock. It hides no error from those who sync a file.
        let is_synced = rest.len() > ONE_BY_ONE_MAX && self.sync_whole().map_err(|errno| is_unknown(errno, "data"))?;
        if !is_synced {
            return rest.iter().try_for_each(|(content, _)| self.sync_content(*content));
        }
        let _syncing = self.durable.syncing.lock();
        let mut pending = self.durable.pending.lock();
        // Who synced one of them meanwhile may have got its error in our place.
        if pending.failed.is_none() {
            pending.are_synced(&rest);
        }
        Ok(())
    }

    /// Whether nothing of it is waiting for a sync.
    #[cfg(test)]
    pub(crate) fn is_synced(&self, content: ContentId) -> bool {
        !self.durable.pending.lock().contents.contains_key(&content)
    }

    /// The caller holds `syncing`.
    fn sync(&self, contents: &[(ContentId, u64)]) -> FsResult<()> {
        let (failed, made_shard) = {
            let mut pending = self.durable.pending.lock();
            (pending.failed, std::mem::take(&mut pending.made_shard))
        };
        let mut result = match failed {
            Some(errno) => Err((errno, "data".to_owned())),
            None if contents.len() > ONE_BY_ONE_MAX => match self.sync_whole() {
                Ok(true) => Ok(()),
                Ok(false) => self.sync_each(contents),
                Err(errno) => Err((errno, "data".to_owned())),
            },
            None => self.sync_each(contents),
        };
        if result.is_ok() && made_shard {
            result = fsync(self.dir(Dir::Data)).map_err(|errno| (errno, "data".to_owned()));
        }
        let mut pending = self.durable.pending.lock();
        match result {
            Ok(()) => {
                pending.are_synced(contents);
                Ok(())
            }
            Err((errno, name)) => {
                if is_passing(errno) {
                    // Nothing was synced, and nothing is lost: the next one may come to it.
                    pending.made_shard |= made_shard;
                    return Err(fail(errno, "sync", &name));
                }
                pending.failed = Some(errno);
                Err(is_unknown(errno, &name))
            }
        }
    }

    /// Sync all of the file system; `false` where that cannot be done. The only way to do so: an error is told once, and may be about a content.
    pub(super) fn sync_whole(&self) -> Result<bool, Errno> {
        let _one = self.durable.whole.lock();
        let synced = os::sync_filesystem(self.folder.root_fd());
        let mut pending = self.durable.pending.lock();
        if let Err(errno) = synced {
            pending.failed = Some(errno);
        }
        pending.failed.map_or(synced, Err)
    }

    fn sync_each(&self, contents: &[(ContentId, u64)]) -> Result<(), (Errno, String)> {
        if contents.len() > 1 {
            // All are on their way while the first one is waited for. What cannot be opened fails below; an error that this tells the
            // fsync may not tell again.
            for (content, _) in contents {
                let opened =
                    self.open_shard(*content).and_then(|dir| os::open_file(dir, &content.to_hex(), OFlag::O_RDONLY));
                if let Ok(file) = opened {
                    os::begin_sync(&file).map_err(|errno| (errno, data_path(*content)))?;
                }
            }
        }
        let mut shards = BTreeSet::new();
        for &(content, _) in contents {
            let synced = self.open_shard(content).and_then(|shard| {
                fsync(&os::open_file(&shard, &content.to_hex(), OFlag::O_RDONLY)?)?;
                if shards.insert(content.0[0]) { fsync(&shard) } else { Ok(()) }
            });
            match synced {
                // Moved to the trash meanwhile: nothing refers to it, or it will be taken back, which syncs it.
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err((errno, data_path(content))),
            }
        }
        Ok(())
    }
}
