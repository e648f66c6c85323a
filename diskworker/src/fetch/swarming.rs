//! Large contents by BitTorrent: make it live, bring it streams to the disks that hold it, and watch that it gets on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{BlobId, ContentId, DiskId};
use delugefs_proto::peer_pb::StreamRequest;
use nix::errno::Errno;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Fetcher, Wanted};

/// Sources at once.
const SOURCES_MAX: usize = 4;
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Longest fetch, as long as it makes progress.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// Without progress for so long, it is begun anew.
/// A piece of 1 MiB takes a while on a limited line.
const STUCK: Duration = Duration::from_secs(120);
/// A source that ended is tried again after this.
const AGAIN: Duration = Duration::from_secs(3);

/// A content that BitTorrent fetches, until this is dropped: by the fetch, and by what it left running in the background.
pub(super) struct Swarming(Arc<Fetcher>, ContentId);

impl Drop for Swarming {
    fn drop(&mut self) {
        self.0.swarming.lock().remove(&self.1);
    }
}

impl Fetcher {
    pub(super) async fn swarm_fetch(self: &Arc<Self>, wanted: Wanted, pieces: BlobId) -> FsResult<()> {
        let (engine, content) = (self.engine.clone(), wanted.content);
        let reading = tokio::task::spawn_blocking(move || engine.attachment(pieces));
        let hashes = reading.await.map_err(|_| FsError::from(Errno::EIO))??;
        let stop = CancellationToken::new();
        let swarming = {
            let transfers = self.transfers.lock();
            if transfers.contains_key(&content) {
                return Err(FsError::new(Errno::EAGAIN, "somebody reads it: it comes that way"));
            }
            let mut swarming = self.swarming.lock();
            if swarming.contains_key(&content) {
                return Err(FsError::new(Errno::EAGAIN, "an earlier fetch of it is ending"));
            }
            swarming.insert(content, stop.clone());
            drop(swarming);
            Arc::new(Swarming(self.clone(), content))
        };
        let fetching = async {
            self.fill_for_swarm(wanted, hashes.clone(), swarming.clone()).await;
            self.swarm.fetch(content, wanted.size, hashes).await?;
            self.feed(wanted, pieces).await
        };
        let result = tokio::select! {
            result = fetching => result,
            () = stop.cancelled() => Err(FsError::new(Errno::EAGAIN, "somebody reads it: it comes that way")),
        };
        if result.is_err() {
            self.swarm.deactivate(content).await?;
        }
        result
    }

    async fn feed(self: &Arc<Self>, wanted: Wanted, pieces: BlobId) -> FsResult<()> {
        let content = wanted.content;
        let mut streams: JoinSet<DiskId> = JoinSet::new();
        let mut connected: HashSet<DiskId> = HashSet::new();
        let mut last = (0, Instant::now());
        let mut finished = std::pin::pin!(self.swarm.finished(content, LONGEST));
        loop {
            for disk in self.net.holders(content) {
                if connected.len() < SOURCES_MAX && connected.insert(disk) {
                    let this = self.clone();
                    let request = StreamRequest {
                        content: content.0.to_vec(),
                        size_bytes: wanted.size,
                        pieces: pieces.0.to_vec(),
                    };
                    streams.spawn(async move {
                        let ended = match this.net.torrent_stream(disk, request).await {
                            Ok(stream) => this.swarm.attach(content, stream).await,
                            Err(error) => Err(error),
                        };
                        if let Err(error) = ended {
                            tracing::debug!("torrent of {content} with disk {}: {error}", &disk.to_hex()[..8]);
                        }
                        tokio::time::sleep(AGAIN).await;
                        disk
                    });
                }
            }
            tokio::select! {
                finished = &mut finished => return finished,
                () = tokio::time::sleep(LOOK) => {}
                Some(Ok(disk)) = streams.join_next() => drop(connected.remove(&disk)),
            }
            let active = self.swarm.active().await?;
            let have = active.iter().find(|torrent| torrent.content == content).map_or(0, |torrent| torrent.have);
            // Complete: it is being verified, and the session has a deadline of its own for that.
            if have != last.0 || have == wanted.size {
                last = (have, Instant::now());
            } else if last.1.elapsed() > STUCK {
                return Err(FsError::new(Errno::ETIMEDOUT, "no progress: the disks that hold it do not answer"));
            }
        }
    }
}
