//! The librqbit session: how it is set up so that it never talks to the network, and how a torrent gets into it without
//! being hashed there.
//!
//! **Why not simply let librqbit look at the file.** It would hash the whole of it at every activation, reading a large
//! film for minutes before the first byte is served, and it would do so on the session's only thread, so that every other
//! transfer stands still meanwhile. What is in `data/` was verified when it got there; what is in `incoming/` we verify
//! piece by piece ourselves, on another thread. The result is handed in the one way librqbit offers: as the `.bitv` file
//! of a fast resume. It is written right before, for this one torrent, into a folder that is emptied at every start; one
//! that was left over is never believed. librqbit still checks a few random pieces. Should a held file have rotted since,
//! the peers' own check of every piece keeps wrong bytes out.
//!
//! **Two threads.** Adding a torrent, those checks, and syncing the `.bitv` file of a fetch run on the runtime of a second
//! thread, to which librqbit's own tasks stay bound; torrents are added paused there and started on the session's.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use librqbit::storage::StorageFactoryExt;
use librqbit::{
    AddTorrent, AddTorrentOptions, AddTorrentResponse, ConnectionOptions, ListenerMode, ListenerOptions,
    ManagedTorrent, PeerConnectionOptions, Session, SessionOptions, SessionPersistenceConfig,
};

use super::storage::{Factory, Gate};
use crate::content::torrent::Torrent;

/// librqbit drops idle peers after its read timeout; above the 120 s between keep-alives they stay.
const PEER_SILENCE: Duration = Duration::from_secs(150);
/// In `incoming/`, where no content can have this name.
const SCRATCH: &str = ".session";

/// A running session.
#[derive(Clone)]
pub(super) struct Engine {
    pub session: Arc<Session>,
    pub addr: SocketAddr,
    scratch: PathBuf,
}

impl Engine {
    /// Start a session that listens on a free port of the loopback interface and knows no other way to find or be found
    /// by anybody. (librqbit also binds a UDP socket for trackers that it never uses.)
    pub async fn start(incoming: &Path) -> anyhow::Result<Self> {
        let scratch = incoming.join(SCRATCH);
        // librqbit handles some paths as text only.
        scratch.to_str().context("the path of the disk folder must be UTF-8 for its torrents to work")?;
        empty(&scratch).with_context(|| format!("cannot make the torrent session's folder {}", scratch.display()))?;
        let peers = PeerConnectionOptions { read_write_timeout: Some(PEER_SILENCE), ..Default::default() };
        let options = SessionOptions {
            dht: None,
            disable_trackers: true,
            disable_local_service_discovery: true,
            fastresume: true,
            persistence: Some(SessionPersistenceConfig::Json { folder: Some(scratch.clone()) }),
            listen: Some(ListenerOptions {
                mode: ListenerMode::TcpOnly,
                listen_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                ipv4_only: true,
                ..Default::default()
            }),
            connect: Some(ConnectionOptions { peer_opts: Some(peers), ..Default::default() }),
            ipv4_only: true,
            // Only the size of a semaphore; too few permits freeze the session.
            runtime_worker_threads: Some(1024),
            concurrent_init_limit: Some(64),
            ..Default::default()
        };
        let session =
            Session::new_with_opts(scratch.clone(), options).await.context("cannot start a torrent session")?;
        let addr = session.listen_addr().context("the torrent session does not listen")?;
        Ok(Self { session, addr, scratch })
    }

    /// Write down which pieces are there, for [`Engine::add`]. Blocks.
    pub fn hand_in(&self, info_hash: [u8; 20], bits: &[u8]) -> std::io::Result<()> {
        std::fs::write(self.scratch.join(format!("{}.bitv", delugefs_proto::ids::hex(&info_hash))), bits)
    }

    /// Add a torrent, paused. To be run on the second thread. `id` must not be in use: librqbit draws colliding ones when
    /// torrents are added at the same time.
    pub async fn add(&self, torrent: Torrent, gate: Arc<Gate>, id: usize) -> anyhow::Result<Arc<ManagedTorrent>> {
        let options = AddTorrentOptions {
            paused: true,
            overwrite: true,
            disable_trackers: true,
            output_folder: self.scratch.to_str().map(str::to_owned),
            preferred_id: Some(id),
            storage_factory: Some(Factory(gate).boxed()),
            ..Default::default()
        };
        let added = self.session.add_torrent(AddTorrent::from_bytes(torrent.file), Some(options)).await?;
        let AddTorrentResponse::Added(_, handle) = added else {
            anyhow::bail!("the torrent session knows this torrent already");
        };
        anyhow::ensure!(handle.info_hash().0 == torrent.info_hash, "librqbit finds another info hash");
        handle.wait_until_initialized().await?;
        Ok(handle)
    }

    /// Stop everything; the runtimes are to be dropped next.
    pub fn stop(self) {
        self.session.cancellation_token().cancel();
        if let Err(error) = empty(&self.scratch) {
            tracing::warn!("cannot empty {}: {error}", self.scratch.display());
        }
    }
}

/// Make a folder, or empty it. It is not made anew each time: on a full disk that would fail.
fn empty(folder: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(folder) {
        Ok(meta) if meta.is_dir() => {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                match entry.file_type()?.is_dir() {
                    true => std::fs::remove_dir_all(entry.path())?,
                    false => std::fs::remove_file(entry.path())?,
                }
            }
            return Ok(());
        }
        Ok(_) => std::fs::remove_file(folder)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    std::fs::DirBuilder::new().mode(0o700).create(folder)
}
