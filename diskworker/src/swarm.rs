//! The torrents of one disk: contents above the torrent limit being offered or fetched right now.
//!
//! librqbit is the engine, not the truth: what is held the [`ContentStore`] knows, and what was fetched counts only after
//! the store has verified its SHA-256. The engine never talks to the network: it listens on the loopback interface, and
//! the network layer brings peers to it ([`Swarm::attach`]). Nothing is live until it is asked for, and what nobody uses
//! is dropped again (`policy`).
//!
//! Any local process that knows an info hash can connect to the loopback port and read that content while it is live. An
//! info hash depends on every byte of the content, so this tells nobody anything new; still it is not to be published.
//!
//! One owner, `manager`, on the session's thread decides everything; the handle here only sends it commands.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc as sync_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::ContentId;
use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::content::ContentStore;
use live::Role;
use manager::{Command, Manager};
use start::SLOWEST_BYTES_PER_S;

mod live;
mod manager;
mod policy;
mod session;
mod splice;
mod start;
mod storage;

/// For every answer of the manager, except to [`Swarm::finished`].
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);
/// For starting the session.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// For what still runs on the pool at the end, such as hashing.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Threads for opening, hashing and renaming files.
const POOL_THREADS_MAX: usize = 4;

/// A torrent that is live, starting, or has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveTorrent {
    /// What it is of.
    pub content: ContentId,
    /// SHA-1 of its info dictionary.
    pub info_hash: [u8; 20],
    /// Length in bytes.
    pub size: u64,
    /// Bytes that are here and verified.
    pub have: u64,
    /// Whether it is offered; otherwise it is being fetched.
    pub seeding: bool,
    /// Connected peers.
    pub peers: u32,
    /// Bytes per second coming in.
    pub down_bps: u64,
    /// Bytes per second going out.
    pub up_bps: u64,
    /// Bytes given to peers since it is live.
    pub uploaded: u64,
    /// Why it failed.
    pub error: Option<FsError>,
}

/// A running torrent session. Its methods may be awaited on any tokio runtime.
pub struct Swarm {
    commands: mpsc::UnboundedSender<Command>,
    /// `None` without a session.
    addr: Option<SocketAddr>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Swarm {
    /// Start the session of a disk on two threads of its own.
    pub fn start(store: Arc<ContentStore>) -> anyhow::Result<Self> {
        let (commands, receive) = mpsc::unbounded_channel();
        let (stop_second, stopped) = oneshot::channel::<()>();
        let (tell_second, second) = sync_mpsc::channel();
        let second_thread = std::thread::Builder::new().name("swarm-check".into()).spawn(move || {
            match runtime() {
                Ok(runtime) => {
                    let _ = tell_second.send(Ok(runtime.handle().clone()));
                    // Ends as well when the first thread is gone.
                    let _ = runtime.block_on(stopped);
                    runtime.shutdown_timeout(STOP_DEADLINE);
                }
                Err(error) => drop(tell_second.send(Err(error))),
            }
        })?;
        let (tell_addr, addr) = sync_mpsc::channel();
        let first_thread = std::thread::Builder::new().name("swarm".into()).spawn(move || {
            let run = || -> anyhow::Result<()> {
                let second = second.recv_timeout(START_DEADLINE).context("no answer from the second thread")??;
                let runtime = runtime()?;
                runtime.block_on(async {
                    let incoming = store.folder().path(delugefs_proto::disk::INCOMING);
                    let engine = timeout(START_DEADLINE, session::Engine::start(&incoming)).await??;
                    let _ = tell_addr.send(Ok(engine.addr));
                    Manager::new(store, engine, second, receive).run().await;
                    anyhow::Ok(())
                })?;
                runtime.shutdown_timeout(STOP_DEADLINE);
                Ok(())
            };
            if let Err(error) = run() {
                let _ = tell_addr.send(Err(error));
            }
            drop(stop_second);
        })?;
        let threads = Mutex::new(vec![first_thread, second_thread]);
        let addr = addr.recv_timeout(START_DEADLINE * 2).context("the torrent session did not start")??;
        Ok(Self { commands, addr: Some(addr), threads })
    }

    /// None at all: nothing is ever live, and what is to be made live is `ESHUTDOWN`. For a disk whose session does not start.
    pub fn absent() -> Self {
        Self { commands: mpsc::unbounded_channel().0, addr: None, threads: Mutex::default() }
    }

    /// Whether there is no session.
    pub fn is_absent(&self) -> bool {
        self.addr.is_none()
    }

    /// Offer a content this disk holds. Answers when it is live. Does nothing when it is live already; may drop the
    /// longest unused other one.
    ///
    /// # Errors
    /// `ENOENT` when it is not held, `EINVAL` when the piece hashes do not fit its size, `EAGAIN` when too many are live
    /// and none can be dropped.
    pub async fn activate(&self, content: ContentId, size: u64, pieces: Bytes) -> FsResult<()> {
        self.ask(|reply| Command::Start { content, size, pieces, role: Role::Seed, reply }).await?.map(drop)
    }

    /// Begin to fetch a content; what an earlier attempt left is used. Answers when peers can be brought;
    /// [`Swarm::finished`] tells when it is there. It is offered from then on. A content held already is only offered.
    ///
    /// # Errors
    /// As [`Swarm::activate`], and `ENOSPC`.
    pub async fn fetch(&self, content: ContentId, size: u64, pieces: Bytes) -> FsResult<()> {
        // What is there of it is hashed first.
        let deadline = ANSWER_DEADLINE + Duration::from_secs(size / SLOWEST_BYTES_PER_S);
        let start = |reply| Command::Start { content, size, pieces, role: Role::Fetch, reply };
        self.ask_within(deadline, start).await?.map(drop)
    }

    /// Wait until a content that is being fetched is held and verified. `ENOENT` when it is not live, `ETIMEDOUT` after
    /// `deadline`, else why the fetch failed.
    pub async fn finished(&self, content: ContentId, deadline: Duration) -> FsResult<()> {
        self.ask_within(deadline, |reply| Command::Finished { content, reply }).await?
    }

    /// Stop offering or fetching. What was fetched so far stays in `incoming/` for the next attempt, or until the store
    /// is told to remove it. Does nothing when it is not live.
    pub async fn deactivate(&self, content: ContentId) -> FsResult<()> {
        if self.is_absent() {
            return Ok(());
        }
        self.ask(|reply| Command::Stop { content, reply }).await
    }

    /// What is live, starting, or has failed not long ago.
    pub async fn active(&self) -> FsResult<Vec<ActiveTorrent>> {
        if self.is_absent() {
            return Ok(Vec::new());
        }
        self.ask(|reply| Command::List { reply }).await
    }

    /// The session's port on the loopback interface, if there is a session.
    pub fn port(&self) -> Option<u16> {
        self.addr.map(|addr| addr.port())
    }

    /// Connect a live torrent with a peer, by a stream to the same call at the other end; both must name the same content
    /// before. Returns when the connection ends; dropping it ends the connection.
    ///
    /// # Errors
    /// `ENOENT` when the content is not live.
    pub async fn attach(&self, content: ContentId, stream: impl AsyncRead + AsyncWrite + Unpin) -> FsResult<()> {
        let info_hash = self.ask(|reply| Command::Ready { content, reply }).await??;
        let addr = self.addr.ok_or(Errno::ESHUTDOWN)?;
        let local = splice::knock(addr, info_hash).await?;
        splice::carry(local, stream).await
    }

    /// Connect a live torrent with another session on this host by that one's loopback address. Returns when connected.
    pub async fn add_peer(&self, content: ContentId, peer: SocketAddr) -> FsResult<()> {
        self.ask(|reply| Command::AddPeer { content, peer, reply }).await?
    }

    /// Stop everything and wait for the threads; blocks for some seconds at most. Also done when dropped.
    pub fn shutdown(&self) {
        // Fails when the manager is gone, which is what is wanted.
        let _ = self.commands.send(Command::Shutdown);
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the torrent session panicked");
            }
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> FsResult<T> {
        self.ask_within(ANSWER_DEADLINE, command).await
    }

    async fn ask_within<T>(
        &self,
        deadline: Duration,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> FsResult<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || FsError::new(Errno::ESHUTDOWN, "the torrent session has ended");
        self.commands.send(command(reply)).map_err(|_| gone())?;
        match timeout(deadline, answer).await {
            Ok(answer) => answer.map_err(|_| gone()),
            Err(_) => Err(FsError::new(Errno::ETIMEDOUT, "the torrent session did not answer in time")),
        }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().max_blocking_threads(POOL_THREADS_MAX).thread_name("swarm-pool");
    builder.build().context("cannot start a runtime")
}

#[cfg(test)]
mod tests;
