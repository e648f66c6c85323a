//! The owner of everything about live torrents: waits for a command, for the end of a task, for news of a transfer or for
//! the clock, does one thing, and waits again. It alone talks to the session; slow work runs in tasks that report back.
//!
//! ```text
//!   Start -> Starting -> Running -> Verifying (a fetch that is complete) -> Starting (as a seed) -> Running -> gone
//!               |           |           |
//!               +-----------+-----------+--> Failed (shown for a while) -> gone
//! ```
//! A torrent is stopped in the middle of Starting or Verifying by marking it; the end of that task finds the mark. One that is offered
//! and whose content is to be fetched is looked for first: what was set aside is offered no more.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::ContentId;
use librqbit::api::TorrentIdOrHash;
use librqbit_core::Id20;
use nix::errno::Errno;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::live::{Live, Phase, Reply, Role, answer, not_live, peers};
use super::policy::{self, LIVE_MAX, RESTARTS_MAX};
use super::session::Engine;
use super::start::{self, STEP_DEADLINE, Start, Started, within_any};
use super::{ActiveTorrent, splice};
use crate::content::ContentStore;
use crate::content::torrent::torrent;

/// How often transfers are looked at when nothing happens.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the handle asks for; see its methods.
pub(super) enum Command {
    Start { content: ContentId, size: u64, pieces: Bytes, role: Role, reply: Reply<FsResult<[u8; 20]>> },
    Stop { content: ContentId, reply: Reply<()> },
    List { reply: Reply<Vec<ActiveTorrent>> },
    Ready { content: ContentId, reply: Reply<FsResult<[u8; 20]>> },
    Finished { content: ContentId, reply: Reply<FsResult<()>> },
    AddPeer { content: ContentId, peer: SocketAddr, reply: Reply<FsResult<()>> },
    Shutdown,
}

/// The end of a task.
enum Event {
    Started(ContentId, FsResult<Started>),
    Verified(ContentId, FsResult<()>),
    /// What is offered is to be fetched; whether it is still here.
    Looked {
        content: ContentId,
        size: u64,
        pieces: Bytes,
        reply: Reply<FsResult<[u8; 20]>>,
        is_here: bool,
    },
}

/// See the module.
pub(super) struct Manager {
    store: Arc<ContentStore>,
    engine: Engine,
    second: Handle,
    commands: mpsc::UnboundedReceiver<Command>,
    tasks: JoinSet<Event>,
    news: Arc<Notify>,
    live: HashMap<ContentId, Live>,
    next_id: usize,
}

impl Manager {
    pub fn new(
        store: Arc<ContentStore>,
        engine: Engine,
        second: Handle,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        let (tasks, news, live) = (JoinSet::new(), Arc::new(Notify::new()), HashMap::new());
        Self { store, engine, second, commands, tasks, news, live, next_id: 0 }
    }

    /// Until the handle says so or is gone.
    pub async fn run(mut self) {
        let news = self.news.clone();
        // Not a sleep begun anew in each round: frequent commands would put it off for ever.
        let mut clock = tokio::time::interval(LOOK_EVERY);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    None | Some(Command::Shutdown) => break,
                    Some(command) => self.command(command).await,
                },
                Some(event) = self.tasks.join_next(), if !self.tasks.is_empty() => match event {
                    Ok(Event::Started(content, started)) => self.started(content, started).await,
                    Ok(Event::Verified(content, verified)) => self.verified(content, verified).await,
                    Ok(Event::Looked { content, size, pieces, reply, is_here }) => {
                        if !is_here && self.is_offered(content) {
                            self.remove(content).await;
                        }
                        // As what is here it is only offered.
                        let role = if is_here { Role::Seed } else { Role::Fetch };
                        self.start(content, size, pieces, role, reply).await;
                    }
                    Err(error) => tracing::error!("a task of the torrent session ended badly: {error}"),
                },
                () = news.notified() => self.look().await,
                _ = clock.tick(), if !self.live.is_empty() => self.look().await,
            }
        }
        for content in self.live.keys().copied().collect::<Vec<_>>() {
            self.remove(content).await;
        }
        self.tasks.abort_all();
        self.engine.stop();
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Start { content, size, pieces, role, reply } => {
                self.start(content, size, pieces, role, reply).await;
            }
            Command::Stop { content, reply } => match self.live.get_mut(&content) {
                None => answer(reply, ()),
                Some(live) => {
                    live.stopped.push(reply);
                    match live.phase {
                        Phase::Starting | Phase::Verifying => live.stop.store(true, Ordering::Relaxed),
                        Phase::Running { .. } | Phase::Failed(_) => self.remove(content).await,
                    }
                }
            },
            Command::List { reply } => {
                let mut list: Vec<_> = self.live.iter().map(|(content, live)| live.describe(*content)).collect();
                list.sort_by_key(|torrent| torrent.content);
                answer(reply, list);
            }
            Command::Ready { content, reply } => match self.live.get_mut(&content) {
                None => answer(reply, Err(not_live(content))),
                Some(live) => live.when_running(reply),
            },
            Command::Finished { content, reply } => match self.live.get_mut(&content) {
                None => answer(reply, Err(not_live(content))),
                Some(Live { phase: Phase::Failed(error), .. }) => answer(reply, Err(error.clone())),
                Some(Live { phase: Phase::Running { .. }, role: Role::Seed, .. }) => answer(reply, Ok(())),
                Some(live) => live.finished.push(reply),
            },
            Command::AddPeer { content, peer, reply } => match self.live.get_mut(&content) {
                Some(live) if matches!(live.phase, Phase::Running { .. }) => {
                    live.connections.spawn(splice::connect(self.engine.addr, peer, live.info_hash, reply));
                }
                _ => answer(reply, Err(not_live(content))),
            },
            // Handled by the loop.
            Command::Shutdown => {}
        }
    }

    async fn start(
        &mut self,
        content: ContentId,
        size: u64,
        pieces: Bytes,
        role: Role,
        reply: Reply<FsResult<[u8; 20]>>,
    ) {
        if role == Role::Fetch && self.is_offered(content) {
            let store = self.store.clone();
            // Not here: the disk may hang.
            self.tasks.spawn_blocking(move || {
                let is_here = store.has(content) == Ok(Some(size));
                Event::Looked { content, size, pieces, reply, is_here }
            });
            return;
        }
        match self.live.get_mut(&content) {
            Some(Live { phase: Phase::Failed(_), .. }) => self.remove(content).await,
            Some(live) => {
                live.last_use = Instant::now();
                return live.when_running(reply);
            }
            None => {}
        }
        if self.live.len() >= LIVE_MAX {
            let idle =
                self.live.iter().filter(|(_, live)| live.may_go()).map(|(content, live)| (*content, live.last_use));
            match policy::to_evict(idle) {
                Some(other) => self.remove(other).await,
                None => {
                    let error = FsError::new(Errno::EAGAIN, format!("{LIVE_MAX} torrents are busy; try again later"));
                    return answer(reply, Err(error));
                }
            }
        }
        let info_hash = match torrent(content, size, &pieces) {
            Ok(torrent) => torrent.info_hash,
            Err(error) => return answer(reply, Err(FsError::new(Errno::EINVAL, error.to_string()))),
        };
        let now = Instant::now();
        self.store.pin(content);
        let live = Live {
            role,
            size,
            pieces,
            info_hash,
            phase: Phase::Starting,
            stop: Arc::default(),
            stopped: Vec::new(),
            running: vec![reply],
            finished: Vec::new(),
            last_use: now,
            uploaded: 0,
            have: 0,
            last_progress: now,
            restarts: 0,
            connections: JoinSet::new(),
        };
        self.live.insert(content, live);
        self.begin(content);
    }

    fn is_offered(&self, content: ContentId) -> bool {
        matches!(self.live.get(&content), Some(Live { phase: Phase::Running { .. }, role: Role::Seed, .. }))
    }

    /// Start the task that brings a torrent into the session.
    fn begin(&mut self, content: ContentId) {
        let Some(live) = self.live.get_mut(&content) else { return };
        live.phase = Phase::Starting;
        let start = Start {
            store: self.store.clone(),
            engine: self.engine.clone(),
            second: self.second.clone(),
            content,
            size: live.size,
            pieces: live.pieces.clone(),
            role: live.role,
            id: self.next_id,
            stop: live.stop.clone(),
            news: self.news.clone(),
        };
        self.next_id += 1;
        self.tasks.spawn(async move { Event::Started(content, start.run().await) });
    }

    async fn started(&mut self, content: ContentId, started: FsResult<Started>) {
        let Some(live) = self.live.get_mut(&content) else { return };
        let started = match started {
            _ if live.stop.load(Ordering::Relaxed) => return self.remove(content).await,
            Ok(started) => started,
            Err(error) => return self.fail(content, error).await,
        };
        // Its tasks shall run on this thread; so it is not started where it was added.
        if let Err(error) = within_any(STEP_DEADLINE, self.engine.session.unpause(&started.handle)).await {
            return self.fail(content, error).await;
        }
        live.role = started.role;
        live.phase = Phase::Running { handle: started.handle, gate: started.gate };
        live.last_progress = Instant::now();
        for reply in live.running.drain(..) {
            answer(reply, Ok(live.info_hash));
        }
        if live.role == Role::Seed {
            for reply in live.finished.drain(..) {
                answer(reply, Ok(()));
            }
        }
        self.look_at(content).await;
    }

    /// A fetch is complete: nothing may write its file any more while it is verified.
    async fn verify(&mut self, content: ContentId) {
        self.take_out(content).await;
        let Some(live) = self.live.get_mut(&content) else { return };
        live.phase = Phase::Verifying;
        let verifying = start::verify(self.store.clone(), content, live.size, live.stop.clone());
        self.tasks.spawn(async move { Event::Verified(content, verifying.await) });
    }

    async fn verified(&mut self, content: ContentId, verified: FsResult<()>) {
        let Some(live) = self.live.get_mut(&content) else { return };
        if let Err(error) = verified {
            return self.fail(content, error).await;
        }
        for reply in live.finished.drain(..) {
            answer(reply, Ok(()));
        }
        if live.stop.load(Ordering::Relaxed) {
            return self.remove(content).await;
        }
        live.role = Role::Seed;
        live.last_use = Instant::now();
        live.restarts = 0;
        self.begin(content);
    }

    async fn look(&mut self) {
        for content in self.live.keys().copied().collect::<Vec<_>>() {
            self.look_at(content).await;
        }
    }

    /// See what became of one torrent.
    async fn look_at(&mut self, content: ContentId) {
        let now = Instant::now();
        let Some(live) = self.live.get_mut(&content) else { return };
        while live.connections.try_join_next().is_some() {}
        let Phase::Running { handle, gate } = &live.phase else {
            if matches!(live.phase, Phase::Failed(_)) && policy::is_idle(now, live.last_use) {
                self.remove(content).await;
            }
            return;
        };
        let stats = handle.stats();
        let peers = peers(&stats);
        let broken = gate.error().or_else(|| stats.error.map(|text| FsError::new(Errno::EIO, text)));
        if let Some(error) = broken {
            return self.fail(content, error).await;
        }
        if peers > 0 || stats.uploaded_bytes > live.uploaded {
            live.last_use = now;
        }
        live.uploaded = stats.uploaded_bytes;
        if stats.progress_bytes > live.have {
            live.restarts = 0;
        }
        if stats.progress_bytes != live.have || peers == 0 {
            live.last_progress = now;
        }
        live.have = stats.progress_bytes;
        match live.role {
            Role::Fetch if stats.finished => self.verify(content).await,
            Role::Fetch if policy::is_stalled(now, live.last_progress, peers) => {
                live.restarts += 1;
                if live.restarts > RESTARTS_MAX {
                    let message = format!("no peer delivers the missing pieces of content {content}");
                    return self.fail(content, FsError::new(Errno::ETIMEDOUT, message)).await;
                }
                tracing::warn!(%content, restarts = live.restarts, "a fetch makes no progress; beginning it anew");
                self.take_out(content).await;
                self.begin(content);
            }
            Role::Seed if policy::is_idle(now, live.last_use) || self.store.is_unwanted(content) => {
                self.remove(content).await
            }
            _ => {}
        }
    }

    /// Take a torrent out of the session, with its connections. Nothing touches its file afterwards.
    async fn take_out(&mut self, content: ContentId) {
        let Some(live) = self.live.get_mut(&content) else { return };
        live.connections.abort_all();
        if let Phase::Running { gate, .. } = &live.phase {
            gate.close();
        }
        // One that was being added is in there too, and one that failed may be.
        let id = TorrentIdOrHash::Hash(Id20::new(live.info_hash));
        if self.engine.session.get(id).is_some()
            && let Err(error) = within_any(STEP_DEADLINE, self.engine.session.delete(id, false)).await
        {
            tracing::warn!(%content, %error, "cannot take a torrent out of the session");
        }
    }

    async fn fail(&mut self, content: ContentId, error: FsError) {
        self.take_out(content).await;
        let Some(live) = self.live.get_mut(&content) else { return };
        if live.stop.load(Ordering::Relaxed) {
            return self.remove(content).await;
        }
        tracing::warn!(%content, %error, "a torrent failed");
        for reply in live.running.drain(..) {
            answer(reply, Err(error.clone()));
        }
        for reply in live.finished.drain(..) {
            answer(reply, Err(error.clone()));
        }
        live.last_use = Instant::now();
        live.phase = Phase::Failed(error);
    }

    async fn remove(&mut self, content: ContentId) {
        self.take_out(content).await;
        if let Some(live) = self.live.remove(&content) {
            self.store.unpin(content);
            live.stop.store(true, Ordering::Relaxed);
            for reply in live.running {
                answer(reply, Err(not_live(content)));
            }
            for reply in live.finished {
                answer(reply, Err(not_live(content)));
            }
            for reply in live.stopped {
                answer(reply, ());
            }
        }
    }
}
