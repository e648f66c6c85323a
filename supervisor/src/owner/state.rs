//! Everything the supervisor knows, and the one function that changes it: `apply(event, now) -> effects`.
//!
//! Pure: no I/O, no clock, no tasks. The owner task (`super::task`) feeds it and carries the effects out; tests feed it
//! directly. What happens to disks is in `disks.rs`, to mounts in `mounts.rs`; this file holds the types, the timers
//! and the orderly end.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use delugefs_proto::config::{Config, DiskConfig, MountConfig};
use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::DiskToml;
use delugefs_proto::exit::Exit;
use delugefs_proto::ids::ClusterId;
use serde::{Deserialize, Serialize};

use super::child::{Child, Phase, Reply, Run, Then};
use crate::failure::Failure;
use crate::sys::MountId;

/// How long a frontend gets to unmount before it is killed.
pub const FRONTEND_STOP: Duration = Duration::from_secs(10);
/// How long a worker gets to commit and close its disk before it is killed.
pub const WORKER_STOP: Duration = Duration::from_secs(20);
/// How long a live worker that holds a folder's lock gets to register. Workers retry at least every two seconds.
pub const REGISTER_WAIT: Duration = Duration::from_secs(5);

/// What a worker is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// The disk's folder, absolute.
    pub root: PathBuf,
    /// Name of the cluster.
    pub cluster: String,
    /// Make a new disk of an empty folder; only the first start may do that.
    pub create: bool,
    /// Bytes the worker leaves free.
    pub reserve_bytes: u64,
    /// Seconds an unreferenced content is kept.
    pub retention_s: u64,
    /// Users other than its own whose frontends may connect.
    pub allow_uids: Vec<u32>,
    /// How it takes part in the network.
    pub net: pb::NetSettings,
    /// Of the cluster, as the folder says, and then its worker; with `create` of the one that was joined.
    pub cluster_id: Option<ClusterId>,
    /// 64 hex digits, as the folder says.
    pub disk_id: Option<String>,
    /// Name of the cluster, as the folder says where it says another one.
    pub other_name: Option<String>,
}

impl DiskSpec {
    /// With what the disk's folder says.
    #[must_use]
    pub fn found(self, identity: Option<&DiskToml>) -> Self {
        let (cluster_id, disk_id) = (self.cluster_id, self.disk_id);
        let cluster_id = identity.and_then(DiskToml::cluster_id).or(cluster_id);
        let other_name = identity.map(|identity| identity.cluster.clone()).filter(|name| *name != self.cluster);
        Self { cluster_id, disk_id: identity.map(|identity| identity.disk_id.clone()).or(disk_id), other_name, ..self }
    }
}

/// What a frontend is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// The mountpoint, absolute.
    pub dir: PathBuf,
    /// User it serves as after mounting.
    pub user: Option<String>,
    /// His uid, which the worker has to let in.
    pub uid: Option<u32>,
    /// Folder of the disk that it is to show; any, without.
    pub root: Option<PathBuf>,
}

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Served {
    /// 64 hex digits.
    pub disk_id: String,
    /// For frontends.
    pub local_socket: PathBuf,
    /// For the control plane.
    pub grpc_socket: PathBuf,
}

/// A disk and its worker.
#[derive(Debug)]
pub struct Disk {
    /// How to start it.
    pub spec: DiskSpec,
    /// The process.
    pub child: Child,
    /// Known once it was up.
    pub served: Option<Served>,
    /// Where other hosts reach it; 0 while it has no port.
    pub tcp_port: u16,
    /// Users the running worker lets in.
    pub allowed: Vec<u32>,
    /// A worker that should register was waited for already.
    pub contested: bool,
    /// What it took part in the network with, until a worker with what `disk add` has said since is up.
    pub net_before: Option<pb::NetSettings>,
    /// A registration that came before we knew the process id of the worker we had just started: it may be its own.
    pub early: Option<Registration>,
}

impl Disk {
    /// Not started yet.
    pub fn new(spec: DiskSpec, child: Child) -> Self {
        Self {
            spec,
            child,
            served: None,
            tcp_port: 0,
            allowed: Vec::new(),
            contested: false,
            net_before: None,
            early: None,
        }
    }
}

/// Mounts of one place that are remembered: a frontend clears away some before it puts one more over so many.
const LAYERS_MAX: usize = 16;

/// A mount and its frontend.
#[derive(Debug)]
pub struct Mount {
    /// How to start it.
    pub spec: MountSpec,
    /// The process.
    pub child: Child,
    /// Folder of the disk it shows.
    pub root: Option<PathBuf>,
    /// What its frontends serve, or left there when they died, the oldest first: each covers the dead one before it.
    pub mounted: Vec<MountId>,
    /// Something else may be in their place by now, so only what is dead is taken away.
    pub doubtful: bool,
}

impl Mount {
    /// Not started yet.
    pub fn new(spec: MountSpec, child: Child) -> Self {
        Self { root: spec.root.clone(), spec, child, mounted: Vec::new(), doubtful: false }
    }

    /// Its frontend has mounted this.
    pub(super) fn has_mounted(&mut self, mounted: Option<MountId>) {
        self.mounted.retain(|one| Some(one) != mounted.as_ref());
        self.mounted.extend(mounted);
        let surplus = self.mounted.len().saturating_sub(LAYERS_MAX);
        self.mounted.drain(..surplus);
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A disk is wanted; without `reply` it comes from the configuration.
    AddDisk {
        /// How to start it.
        spec: DiskSpec,
        /// The next supervisor starts it again.
        remember: bool,
        /// Answered when it is up, or cannot be.
        reply: Option<Reply>,
    },
    /// A disk is not wanted any more.
    RemoveDisk {
        /// Its folder.
        root: PathBuf,
        /// Only by the one that claimed it: a remembered one goes on.
        release: bool,
        /// The disks that mounts show now, as far as these say so: others may have taken them over.
        shown: HashMap<PathBuf, PathBuf>,
        /// Answered when it has stopped.
        reply: Reply,
    },
    /// The folder of a disk that was stopped because it was none is that disk again.
    FolderBack {
        /// Which.
        root: PathBuf,
        /// What it says.
        found: DiskToml,
    },
    /// A mount is wanted; without `reply` it comes from the configuration.
    AddMount {
        /// How to start it.
        spec: MountSpec,
        /// The next supervisor starts it again.
        remember: bool,
        /// Answered when the mount answers, or cannot.
        reply: Option<Reply>,
    },
    /// A mount that is configured, or remembered, cannot be started as it is.
    MountStuck {
        /// What was wanted.
        spec: MountSpec,
        /// It is remembered.
        remember: bool,
        /// Why.
        failure: Failure,
    },
    /// A mount is not wanted any more.
    RemoveMount {
        /// The mountpoint.
        dir: PathBuf,
        /// As for a disk.
        release: bool,
        /// Answered when it is unmounted.
        reply: Reply,
    },
    /// A worker made itself known.
    Register(Registration),
    /// A frontend that an earlier supervisor had started was found alive.
    MountFound {
        /// The mountpoint.
        dir: PathBuf,
        /// The frontend.
        pid: u32,
        /// Local socket of the worker it was started for.
        socket: PathBuf,
        /// What it serves.
        mounted: Option<MountId>,
    },
    /// News of a process.
    Child {
        /// Which life.
        run: Run,
        /// What.
        news: News,
    },
    /// The user wants everything to end.
    Stop {
        /// Answered when all processes have ended.
        reply: Option<Reply>,
    },
    /// A deadline may have passed.
    Tick,
}

/// The Register call.
#[derive(Debug)]
pub struct Registration {
    /// The disk's folder.
    pub root: PathBuf,
    /// Its cluster.
    pub cluster: String,
    /// And that one's id, if it is known.
    pub cluster_id: Option<ClusterId>,
    /// The worker.
    pub pid: u32,
    /// How to reach it.
    pub served: Served,
    /// Its TCP port, or 0.
    pub tcp_port: u16,
    /// An earlier supervisor of this host had started it.
    pub inherited: bool,
    /// Answered at once.
    pub reply: Reply,
}

/// What a process did.
#[derive(Debug)]
pub enum News {
    /// It exists.
    Started {
        /// Process id.
        pid: u32,
        /// When, by [`crate::sys::uptime_s`].
        at_s: u64,
    },
    /// The worker serves.
    WorkerReady(Served),
    /// The mount answers.
    FrontendReady {
        /// What it serves, if the mount table has it.
        mounted: Option<MountId>,
    },
    /// Instead of starting a frontend, a live one was found on the mountpoint.
    Adopted {
        /// Process id.
        pid: u32,
        /// What it serves.
        mounted: Option<MountId>,
    },
    /// This is mounted, now that a frontend has ended that did not unmount.
    Left {
        /// What is there.
        mounted: MountId,
    },
    /// It is gone (or could not be started).
    Ended(Failure),
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Start a worker.
    StartWorker {
        /// Its life.
        run: Run,
        /// With what.
        spec: DiskSpec,
    },
    /// Look for a live frontend on the mountpoint, else start one.
    StartFrontend {
        /// Its life.
        run: Run,
        /// With what.
        spec: MountSpec,
        /// The worker's local socket.
        socket: PathBuf,
        /// Shown as the file system's name.
        cluster: String,
    },
    /// Watch a worker that is not our child.
    WatchWorker {
        /// Its life.
        run: Run,
        /// Process id.
        pid: u32,
        /// The disk's folder.
        root: PathBuf,
        /// 64 hex digits.
        disk_id: String,
    },
    /// Watch a frontend that is not our child.
    WatchFrontend {
        /// Its life.
        run: Run,
        /// Process id.
        pid: u32,
        /// The mountpoint.
        dir: PathBuf,
    },
    /// Ask a process to end.
    Terminate {
        /// Which life.
        run: Run,
    },
    /// End it.
    Kill {
        /// Which life.
        run: Run,
    },
    /// Detach mounts that no frontend serves any more, if one of them is still uppermost.
    Detach {
        /// The mountpoint.
        dir: PathBuf,
        /// Which mounts; another one is not ours to touch.
        mounted: Vec<MountId>,
        /// Not if somebody serves it.
        only_dead: bool,
    },
    /// Keep this for the next supervisor.
    Remember(Config),
    /// Answer a call.
    Answer(Reply, Result<String, Failure>),
    /// All has ended; leave.
    Exit,
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct State {
    /// Name of the cluster, when the configuration says so.
    pub configured_cluster: Option<String>,
    /// In the order they were added.
    pub disks: Vec<Disk>,
    /// In the order they were added.
    pub mounts: Vec<Mount>,
    pub(super) effects: Vec<Effect>,
    last_run: Run,
    stopping: Option<Vec<Reply>>,
    exited: bool,
}

impl State {
    /// With nothing in it. `cluster`: what the configuration says.
    pub fn new(cluster: Option<String>) -> Self {
        Self { configured_cluster: cluster, ..Self::default() }
    }

    /// The cluster this host takes part in: configured, or that of its first disk.
    pub fn cluster(&self) -> Option<&str> {
        self.configured_cluster.as_deref().or_else(|| self.disks.first().map(|disk| disk.spec.cluster.as_str()))
    }

    /// That one's id, as the first disk says of which it is known, but for the one at `but`. One that was refused for it does not count.
    pub fn cluster_id(&self, but: Option<&Path>) -> Option<ClusterId> {
        let is_refused = |disk: &Disk| {
            let is_other = |failure: &Failure| failure.exit == Exit::WrongCluster;
            disk.child.phase == Phase::Stopped && disk.child.failure.as_ref().is_some_and(is_other)
        };
        let mut others = self.disks.iter().filter(|disk| Some(&*disk.spec.root) != but && !is_refused(disk));
        others.find_map(|disk| disk.spec.cluster_id)
    }

    /// The only way anything changes.
    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        match event {
            Event::AddDisk { spec, remember, reply } => self.add_disk(spec, remember, reply, now),
            Event::RemoveDisk { root, release, shown, reply } => self.remove_disk(&root, release, &shown, reply, now),
            Event::FolderBack { root, found } => self.folder_back(&root, &found),
            Event::AddMount { spec, remember, reply } => self.add_mount(spec, remember, reply),
            Event::MountStuck { spec, remember, failure } => self.mount_stuck(spec, remember, failure),
            Event::RemoveMount { dir, release, reply } => self.remove_mount(&dir, release, reply, now),
            Event::Register(registration) => self.register(registration, now),
            Event::MountFound { dir, pid, socket, mounted } => self.mount_found((dir, mounted), pid, &socket, now),
            Event::Child { run, news } => self.child(run, news, now),
            Event::Stop { reply } => self.stopping.get_or_insert_default().extend(reply),
            Event::Tick => {}
        }
        self.quiesce();
        self.pass_deadlines(now);
        self.settle_mounts(now);
        self.advance_stop(now);
        let mut effects = std::mem::take(&mut self.effects);
        // What is acknowledged is remembered, also when this process ends in between.
        effects.sort_by_key(|effect| !matches!(effect, Effect::Remember(_)));
        effects
    }

    /// When [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.children().filter_map(Child::deadline).min()
    }

    /// Whether everything is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    pub(super) fn new_run(&mut self) -> Run {
        self.last_run += 1;
        self.last_run
    }

    pub(super) fn answer(&mut self, reply: impl IntoIterator<Item = Reply>, result: Result<String, Failure>) {
        // Its process has ended well, before it was ready: for who waits that is no success.
        let result = result.map_err(|failure| match failure.exit {
            Exit::Ok => Failure::new(Exit::Failure, format!("{} before it was ready", failure.message)),
            _ => failure,
        });
        self.effects.extend(reply.into_iter().map(|reply| Effect::Answer(reply, result.clone())));
    }

    pub(super) fn is_ending() -> Failure {
        Failure::new(Exit::InUse, "the supervisor is stopping").hint("try again in a few seconds")
    }

    /// Ask for what is to be kept to be written.
    pub(super) fn remember(&mut self) {
        if self.stopping.is_some() {
            return; // stopping is not removing
        }
        // Not what may yet fail to start for the first time.
        let is_kept = |child: &Child| child.remember && child.established;
        let disks = self.disks.iter().filter(|disk| is_kept(&disk.child));
        let mounts = self.mounts.iter().filter(|mount| is_kept(&mount.child));
        let config = Config {
            cluster: None,
            peers: Vec::new(),
            disks: disks
                // What is said anew counts when it has started with that.
                .map(|disk| (disk, disk.net_before.as_ref().unwrap_or(&disk.spec.net)))
                .map(|(disk, net)| DiskConfig {
                    root: disk.spec.root.clone(),
                    reserve_bytes: disk.spec.reserve_bytes,
                    retention_s: disk.spec.retention_s,
                    listen: net.listen.clone().filter(|listen| !listen.is_empty()),
                    btport: u16::try_from(net.port()).unwrap_or(0),
                    lazy: net.lazy(),
                    site: net.site().into(),
                    upload_bytes_per_s: Some(net.upload_bytes_per_s).filter(|limit| *limit != 0),
                    download_bytes_per_s: Some(net.download_bytes_per_s).filter(|limit| *limit != 0),
                })
                .collect(),
            mounts: mounts
                .map(|mount| MountConfig { dir: mount.spec.dir.clone(), user: mount.spec.user.clone() })
                .collect(),
        };
        let cluster = (!config.disks.is_empty()).then(|| self.cluster().map(Into::into)).flatten();
        self.effects.push(Effect::Remember(Config { cluster, ..config }));
    }

    fn children(&self) -> impl Iterator<Item = &Child> {
        self.disks.iter().map(|disk| &disk.child).chain(self.mounts.iter().map(|mount| &mount.child))
    }

    fn child(&mut self, run: Run, news: News, now: Instant) {
        if let Some(at) = self.disks.iter().position(|disk| disk.child.run == Some(run)) {
            self.worker_news(at, news, now);
        } else if let Some(at) = self.mounts.iter().position(|mount| mount.child.run == Some(run)) {
            self.frontend_news(at, news, now);
        }
        // Else: an earlier life, which nobody asks about any more.
    }

    /// While stopping nothing starts again, whatever it was waiting for.
    fn quiesce(&mut self) {
        if self.is_stopping() {
            let disks = self.disks.iter_mut().map(|disk| &mut disk.child);
            let mounts = self.mounts.iter_mut().map(|mount| &mut mount.child);
            for child in disks.chain(mounts).filter(|child| !child.is_running()) {
                child.phase = Phase::Stopped;
            }
        }
    }

    fn pass_deadlines(&mut self, now: Instant) {
        let due = |child: &Child| child.deadline().is_some_and(|deadline| deadline <= now);
        for at in 0..self.disks.len() {
            if due(&self.disks[at].child) {
                match self.disks[at].child.phase {
                    Phase::Stopping { .. } => kill(&mut self.disks[at].child, &mut self.effects),
                    Phase::BackingOff { .. } => {
                        self.disks[at].child.restarts += 1;
                        self.start_worker(at);
                    }
                    _ => self.start_worker(at),
                }
            }
        }
        for mount in &mut self.mounts {
            if due(&mount.child) {
                match mount.child.phase {
                    Phase::Stopping { .. } => kill(&mut mount.child, &mut self.effects),
                    _ => {
                        mount.child.restarts += 1;
                        mount.child.phase = Phase::Waiting; // settle_mounts starts it when its disk is up
                    }
                }
            }
        }
    }

    /// While stopping: first the frontends, because they need their workers to close files; then the workers.
    fn advance_stop(&mut self, now: Instant) {
        if self.stopping.is_none() || self.exited {
            return;
        }
        for at in (0..self.mounts.len()).rev() {
            if self.mounts[at].child.is_running() {
                stop(&mut self.mounts[at].child, now + FRONTEND_STOP, &mut self.effects);
            } else {
                self.drop_mount(at, Err(Self::is_ending()));
            }
        }
        if !self.mounts.is_empty() {
            return;
        }
        for at in (0..self.disks.len()).rev() {
            let child = &mut self.disks[at].child;
            if child.is_running() && child.watched {
                stop(child, now + WORKER_STOP, &mut self.effects);
            } else {
                self.drop_disk(at, Err(Self::is_ending())); // by hand: its worker goes on without a supervisor
            }
        }
        if self.disks.is_empty() {
            let replies = self.stopping.replace(Vec::new()).unwrap_or_default();
            self.answer(replies, Ok(String::new()));
            self.effects.push(Effect::Exit);
            self.exited = true;
        }
    }
}

/// Ask a running process to end, once; it is killed at `kill_at`, and then not watched any more.
pub(super) fn stop(child: &mut Child, kill_at: Instant, effects: &mut Vec<Effect>) {
    match (&mut child.phase, child.run) {
        (Phase::Stopping { then, .. }, _) => *then = Then::Remove,
        (_, Some(run)) => {
            child.phase = Phase::Stopping { kill_at: Some(kill_at), then: Then::Remove };
            effects.push(Effect::Terminate { run });
        }
        (_, None) => {}
    }
}

fn kill(child: &mut Child, effects: &mut Vec<Effect>) {
    if let Phase::Stopping { kill_at, .. } = &mut child.phase {
        *kill_at = None;
    }
    effects.extend(child.run.map(|run| Effect::Kill { run }));
}
