//! A lazy disk makes room for what is read: when little is free, the contents that were read longest ago go first, each only
//! when as many other disks as copies are wanted have promised to keep theirs. A content that nobody else keeps stays, however
//! old it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::ContentId;
use nix::errno::Errno;
use tokio_util::sync::CancellationToken;

use super::Fetcher;
use crate::content::Space;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(30);
/// Below this part of the disk room is made, until twice as much is free.
const LOW_SHARE: u64 = 20;
/// Contents asked for in one look: each costs a question to the others.
const ASKED_MAX: usize = 256;
/// A content that had to stay is not asked for again for so long.
const KEPT: Duration = Duration::from_secs(600);

impl Fetcher {
    /// Keep room on a lazy disk, until told to stop.
    pub async fn keep_room(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = stop.cancelled() => return,
            }
            if let Err(error) = self.make_room(LOW_SHARE).await {
                tracing::debug!(%error, "no room is made");
            }
        }
    }

    /// Let go what was read longest ago while less than this share of the disk is free. The number of contents that went.
    pub(super) async fn make_room(self: &Arc<Self>, low_share: u64) -> FsResult<u64> {
        let engine = self.engine.clone();
        let oldest = tokio::task::spawn_blocking(move || -> FsResult<Vec<(SystemTime, ContentId, u32)>> {
            if missing(engine.store.free_space()?, low_share, 1) == 0 {
                return Ok(Vec::new());
            }
            let ledger = engine.ledger()?;
            let wanted: HashMap<ContentId, u32> =
                ledger.entries.iter().map(|entry| (entry.content, entry.wanted)).collect();
            let held = engine.store.contents().flatten();
            let used = |content| engine.store.last_used(content).unwrap_or(SystemTime::UNIX_EPOCH);
            // What no file has is the collector's.
            let mut oldest: Vec<_> = held
                .filter_map(|(content, _)| wanted.get(&content).map(|wanted| (used(content), content, *wanted)))
                .collect();
            oldest.sort_unstable();
            Ok(oldest)
        });
        let oldest = oldest.await.map_err(|_| FsError::from(Errno::EIO))??;
        let (mut gone, mut asked) = (0, 0);
        for (_, content, wanted) in oldest {
            if missing(self.engine.store.free_space()?, low_share, 2) == 0 {
                break;
            }
            // Whom nobody else could promise it, or who was refused lately, is not asked: what comes behind it must have its turn.
            let is_kept = self.kept.lock().get(&content).is_some_and(|at| at.elapsed() < KEPT);
            if is_kept || self.net.holders(content).len() < wanted as usize {
                continue;
            }
            asked += 1;
            match self.let_go(content, wanted).await? {
                Ok(()) => gone += 1,
                Err(why) => {
                    tracing::debug!("content {content} stays: {why}");
                    self.kept.lock().insert(content, Instant::now());
                }
            }
            if asked == ASKED_MAX {
                break;
            }
        }
        self.kept.lock().retain(|_, at| at.elapsed() < KEPT);
        if gone > 0 {
            tracing::info!("made room: {gone} contents went that other disks keep");
        }
        Ok(gone)
    }
}

/// Bytes to be freed until this many times the share of the disk is free.
fn missing(space: Space, share: u64, times: u64) -> u64 {
    (space.total / share.max(1)).saturating_mul(times).saturating_sub(space.free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_below_the_share_until_twice_as_much_is_free() {
        let space = |free| Space { total: 2000, free, available: free };
        assert_eq!((missing(space(100), 20, 1), missing(space(99), 20, 1)), (0, 1));
        assert_eq!((missing(space(150), 20, 2), missing(space(200), 20, 2)), (50, 0));
    }
}
