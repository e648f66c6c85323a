//! Bringing a torrent into the session: the slow steps that run beside the manager, each with a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::ContentId;
use delugefs_proto::limits::piece_count;
use librqbit::ManagedTorrent;
use nix::errno::Errno;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::live::Role;
use super::session::Engine;
use super::storage::Gate;
use crate::content::ContentStore;
use crate::content::torrent::{Torrent, torrent};

/// For one step of librqbit: adding, starting, deleting a torrent.
pub(super) const STEP_DEADLINE: Duration = Duration::from_secs(60);
/// A disk slower than this while a file is hashed counts as hanging, in bytes per second.
pub(super) const SLOWEST_BYTES_PER_S: u64 = 5 << 20;

/// A torrent in the session, not running yet.
pub(super) struct Started {
    pub handle: Arc<ManagedTorrent>,
    pub gate: Arc<Gate>,
    pub role: Role,
}

/// What is to be started.
pub(super) struct Start {
    pub store: Arc<ContentStore>,
    pub engine: Engine,
    /// The runtime on the second thread.
    pub second: Handle,
    pub content: ContentId,
    pub size: u64,
    pub pieces: Bytes,
    pub role: Role,
    /// Not in use for any other torrent of the session.
    pub id: usize,
    /// Ends the hashing early.
    pub stop: Arc<AtomicBool>,
    /// Told when a piece is complete.
    pub news: Arc<Notify>,
}

impl Start {
    /// Open, look what is there, and add to the session, paused.
    pub async fn run(self) -> FsResult<Started> {
        let (engine, second, id, size) = (self.engine.clone(), self.second.clone(), self.id, self.size);
        let preparing = tokio::task::spawn_blocking(move || self.prepare());
        let (torrent, gate, role) = within(hashing(size), "preparing a torrent", preparing).await??;
        let adding = second.spawn({
            let gate = gate.clone();
            async move { engine.add(torrent, gate, id).await }
        });
        let handle = within(STEP_DEADLINE, "adding a torrent", adding).await?.map_err(session_error)?;
        Ok(Started { handle, gate, role })
    }

    /// Open the file, find out which pieces are there, and write that down for the session.
    fn prepare(&self) -> FsResult<(Torrent, Arc<Gate>, Role)> {
        let (content, size) = (self.content, self.size);
        let torrent =
            torrent(content, size, &self.pieces).map_err(|error| FsError::new(Errno::EINVAL, error.to_string()))?;
        let (gate, bits, role) = if self.role == Role::Seed || self.store.has(content)? == Some(size) {
            let count = piece_count(size) as usize;
            let mut bits = vec![0xff; count.div_ceil(8)];
            if let (Some(last), odd @ 1..) = (bits.last_mut(), count % 8) {
                *last = 0xff << (8 - odd);
            }
            (Gate::held(self.store.open_content(content, size)?), bits, Role::Seed)
        } else {
            let file = self.store.incoming_file(content, size)?;
            let stop = || self.stop.load(Ordering::Relaxed);
            let bits = self.store.incoming_pieces(&file, content, size, &self.pieces, &stop)?;
            let store = self.store.clone();
            let room = Box::new(move || store.make_room(1).is_ok());
            (Gate::fetching(file, self.news.clone(), room), bits, Role::Fetch)
        };
        self.engine.hand_in(torrent.info_hash, &bits)?;
        Ok((torrent, gate, role))
    }
}

/// Verify a fetched content and give it its name.
pub(super) async fn verify(
    store: Arc<ContentStore>,
    content: ContentId,
    size: u64,
    stop: Arc<AtomicBool>,
) -> FsResult<()> {
    let stop = move || stop.load(Ordering::Relaxed);
    let verifying = tokio::task::spawn_blocking(move || store.finish_incoming(content, size, &stop));
    within(hashing(size), "verifying a fetched content", verifying).await?
}

/// How long hashing so much may take.
fn hashing(size: u64) -> Duration {
    STEP_DEADLINE + Duration::from_secs(size / SLOWEST_BYTES_PER_S)
}

fn session_error(error: anyhow::Error) -> FsError {
    match error.downcast_ref::<FsError>() {
        Some(error) => error.clone(),
        None => FsError::new(Errno::EIO, format!("the torrent session: {error:#}")),
    }
}

/// Wait for a task, but not for ever.
async fn within<T>(deadline: Duration, what: &str, task: tokio::task::JoinHandle<T>) -> FsResult<T> {
    let abort = task.abort_handle();
    match timeout(deadline, task).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(FsError::new(Errno::EIO, format!("{what} ended badly: {error}"))),
        Err(_) => {
            abort.abort();
            Err(FsError::new(Errno::ETIMEDOUT, format!("{what} took longer than {} s", deadline.as_secs())))
        }
    }
}

/// The same for a step of librqbit.
pub(super) async fn within_any<T>(deadline: Duration, step: impl Future<Output = anyhow::Result<T>>) -> FsResult<T> {
    match timeout(deadline, step).await {
        Ok(done) => done.map_err(session_error),
        Err(_) => Err(FsError::new(Errno::ETIMEDOUT, "the torrent session hangs")),
    }
}
