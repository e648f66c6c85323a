//! What has been renamed into `data/` and is not known to be on stable storage yet.

use std::collections::BTreeSet;

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::ContentId;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::fsync;
use parking_lot::Mutex;

use super::{ContentStore, data_path, fail};
use crate::folder::Dir;
use crate::os;

/// Up to this many files are synced one by one; above, one sync of the whole file system is faster.
const ONE_BY_ONE_MAX: usize = 16;

#[derive(Default)]
pub(super) struct Durable {
    pending: Mutex<Pending>,
    /// Held while syncing: who comes second must not return before what the first one took is durable.
    syncing: Mutex<()>,
}

#[derive(Default)]
struct Pending {
    contents: BTreeSet<ContentId>,
    /// A directory was made in `data/`.
    made_shard: bool,
    /// A sync failed. What it was about may be lost although a later sync succeeds, so none does any more.
    failed: Option<Errno>,
}

impl Durable {
    pub(super) fn renamed(&self, content: ContentId) {
        self.pending.lock().contents.insert(content);
    }

    /// The sync of a content has failed.
    pub(super) fn failed(&self, errno: Errno) {
        self.pending.lock().failed = Some(errno);
    }

    pub(super) fn made_shard(&self) {
        self.pending.lock().made_shard = true;
    }
}

impl ContentStore {
    /// It is not known whether this content is on stable storage: an earlier process put it into `data/` and ended.
    pub fn doubt(&self, content: ContentId) {
        self.durable.renamed(content);
    }

    /// When this returns, everything that got its name in `data/` before the call is on stable storage. To be called before a
    /// catalog that refers to it is committed.
    ///
    /// # Errors
    /// That of the sync. It is final: every later call fails too, until the disk is opened anew and checked.
    pub fn barrier(&self) -> FsResult<()> {
        let _syncing = self.durable.syncing.lock();
        let taken: Vec<ContentId> = self.durable.pending.lock().contents.iter().copied().collect();
        self.sync(&taken)
    }

    /// The same for one content.
    pub fn sync_content(&self, content: ContentId) -> FsResult<()> {
        let _syncing = self.durable.syncing.lock();
        let pending = self.durable.pending.lock().contents.contains(&content);
        self.sync(if pending { std::slice::from_ref(&content) } else { &[] })
    }

    /// The caller holds `syncing`.
    fn sync(&self, contents: &[ContentId]) -> FsResult<()> {
        let (failed, made_shard) = {
            let mut pending = self.durable.pending.lock();
            (pending.failed, std::mem::take(&mut pending.made_shard))
        };
        let mut result = match failed {
            Some(errno) => Err((errno, "data".to_owned())),
            None if contents.len() > ONE_BY_ONE_MAX => match os::sync_filesystem(self.folder.root_fd()) {
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
                for content in contents {
                    pending.contents.remove(content);
                }
                Ok(())
            }
            Err((errno, name)) => {
                pending.failed = Some(errno);
                Err(fail(errno, "sync", &name))
            }
        }
    }

    fn sync_each(&self, contents: &[ContentId]) -> Result<(), (Errno, String)> {
        let mut shards = BTreeSet::new();
        for &content in contents {
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
