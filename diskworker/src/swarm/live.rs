//! What the manager remembers of one live torrent, and how that is shown.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::ContentId;
use librqbit::ManagedTorrent;
use nix::errno::Errno;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::ActiveTorrent;
use super::storage::Gate;

/// What a torrent is live for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Offered from `data/`.
    Seed,
    /// Fetched into `incoming/`, and offered as far as it is there.
    Fetch,
}

pub(super) type Reply<T> = oneshot::Sender<T>;

/// See the picture in the manager.
pub(super) enum Phase {
    Starting,
    Running { handle: Arc<ManagedTorrent>, gate: Arc<Gate> },
    Verifying,
    Failed(FsError),
}

/// One torrent.
pub(super) struct Live {
    pub role: Role,
    pub size: u64,
    pub pieces: Bytes,
    pub info_hash: [u8; 20],
    pub phase: Phase,
    /// Tells the task under way to hurry, and its end that nobody wants the result.
    pub stop: Arc<AtomicBool>,
    pub stopped: Vec<Reply<()>>,
    pub running: Vec<Reply<FsResult<[u8; 20]>>>,
    pub finished: Vec<Reply<FsResult<()>>>,
    pub last_use: Instant,
    pub uploaded: u64,
    pub have: u64,
    pub last_progress: Instant,
    pub restarts: u32,
    pub connections: JoinSet<()>,
}

impl Live {
    /// Answer as soon as it runs.
    pub fn when_running(&mut self, reply: Reply<FsResult<[u8; 20]>>) {
        match &self.phase {
            Phase::Running { .. } => answer(reply, Ok(self.info_hash)),
            Phase::Failed(error) => answer(reply, Err(error.clone())),
            Phase::Starting | Phase::Verifying => self.running.push(reply),
        }
    }

    /// Whether this may be dropped to make place: offered, and nobody is connected.
    pub fn may_go(&self) -> bool {
        match &self.phase {
            Phase::Running { handle, .. } => self.role == Role::Seed && peers(&handle.stats()) == 0,
            Phase::Failed(_) => true,
            Phase::Starting | Phase::Verifying => false,
        }
    }

    /// What people see.
    pub fn describe(&self, content: ContentId) -> ActiveTorrent {
        let mut torrent = ActiveTorrent {
            content,
            info_hash: self.info_hash,
            size: self.size,
            have: if self.role == Role::Seed { self.size } else { self.have },
            seeding: self.role == Role::Seed,
            peers: 0,
            down_bps: 0,
            up_bps: 0,
            uploaded: self.uploaded,
            error: None,
        };
        match &self.phase {
            Phase::Running { handle, .. } => {
                let stats = handle.stats();
                torrent.have = stats.progress_bytes;
                torrent.peers = peers(&stats);
                torrent.uploaded = stats.uploaded_bytes;
                if let Some(live) = &stats.live {
                    torrent.down_bps = live.download_speed.as_bytes();
                    torrent.up_bps = live.upload_speed.as_bytes();
                }
            }
            Phase::Failed(error) => torrent.error = Some(error.clone()),
            Phase::Starting | Phase::Verifying => {}
        }
        torrent
    }
}

/// Connected peers.
pub(super) fn peers(stats: &librqbit::TorrentStats) -> u32 {
    stats.live.as_ref().map_or(0, |live| live.snapshot.peer_stats.live)
}

/// Whoever asked may have stopped waiting.
pub(super) fn answer<T>(reply: Reply<T>, with: T) {
    let _ = reply.send(with);
}

pub(super) fn not_live(content: ContentId) -> FsError {
    FsError::new(Errno::ENOENT, format!("content {content} is not live in the torrent session"))
}
