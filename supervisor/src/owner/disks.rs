//! What happens to disks: wanted, ready, registered by a worker that was there before, ended, not wanted any more.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use delugefs_proto::control_pb::NetSettings;
use delugefs_proto::disk::{DiskToml, own_supervisor};
use delugefs_proto::exit::Exit;
use delugefs_proto::ids::ClusterId;

use super::child::{Child, Next, Phase, Reply, Then};
use super::state::{
    Disk, DiskSpec, Effect, Mount, News, REGISTER_WAIT, Registration, Served, State, WORKER_STOP, stop,
};
use crate::escape::quoted;
use crate::failure::Failure;

/// What there is to do with a disk that runs already.
const SHOWN: &str = "`delugefs status` shows it; `delugefs mount DIR` mounts it";
/// `disk add` says something of one that `run` serves.
const OF_A_RUN: &str = "a `delugefs run` serves it, and what that one names holds for its run: name what you want there; or end it, and \
    `disk add` serves the disk at every start";

impl State {
    pub(super) fn add_disk(&mut self, spec: DiskSpec, remember: bool, reply: Option<Reply>, now: Instant) {
        if self.is_stopping() {
            return self.answer(reply, Err(Self::is_ending()));
        }
        let root = spec.root.display().to_string();
        let known = self.disks.iter().any(|disk| disk.spec.root == spec.root);
        let named = self.cluster().filter(|cluster| *cluster != spec.cluster);
        let refused = named
            .map(|cluster| other_cluster(cluster, &spec.cluster))
            .or_else(|| self.is_of_another(&spec.root, spec.cluster_id, &spec.cluster, spec.other_name.as_deref()));
        if let Some(failure) = refused {
            if reply.is_none() && !known {
                // Of the configuration, or remembered: shown, for it is wanted.
                let mut child = Child::new(true, remember);
                (child.phase, child.failure) = (Phase::Stopped, Some(failure.clone()));
                self.disks.push(Disk::new(spec, child));
            }
            return self.answer(reply, Err(failure));
        }
        // The state file only remembers it: the first that asks for it has it.
        let claims = reply.is_some() || !remember;
        let Some(at) = self.disks.iter().position(|disk| disk.spec.root == spec.root) else {
            let established = reply.is_none();
            let mut child = Child::new(established, remember);
            child.claimed = claims;
            child.added.extend(reply);
            self.disks.push(Disk::new(spec, child));
            return self.start_worker(self.disks.len() - 1);
        };
        let disk = &mut self.disks[at];
        let claimed = disk.child.claimed;
        disk.child.claimed |= claims;
        let is_kept = disk.child.remember && disk.child.established;
        if is_kept && !remember && reply.is_some() && !spec.create && is_news(&disk.spec.net, &spec.net) {
            disk.child.claimed = claimed;
            let failure = Failure::new(Exit::InUse, format!("the disk at {root} was added, and keeps its settings"));
            return self.answer(
                reply,
                Err(failure.hint(format!(
                    "`delugefs disk add {}` with what is to be changed changes it for good; or leave it out here",
                    quoted(&root)
                ))),
            );
        }
        match disk.child.phase {
            phase if spec.create && is_kept && !matches!(phase, Phase::Up { .. } | Phase::Stopping { .. }) => {
                disk.child.claimed = claimed;
                let failure =
                    Failure::new(Exit::NotEmpty, format!("{root} is remembered as a disk of this host already"));
                self.answer(reply, Err(failure.hint(no_longer_there("leave out --create, and "))));
            }
            Phase::Up { .. } if spec.create => {
                disk.child.claimed = claimed;
                let failure =
                    Failure::new(Exit::NotEmpty, format!("{root} is a disk of cluster {} already", spec.cluster));
                self.answer(reply, Err(failure.hint("leave out --create")));
            }
            Phase::BackingOff { .. } | Phase::Stopped => {
                disk.child.added.extend(reply);
                if remember || !disk.child.remember {
                    disk.spec.net = renewed(&disk.spec.net, &spec.net);
                }
                disk.spec.allow_uids = spec.allow_uids;
                disk.spec.cluster_id = spec.cluster_id.or(disk.spec.cluster_id);
                disk.spec.disk_id = spec.disk_id.or(disk.spec.disk_id.take());
                disk.child.remember |= remember;
                self.start_worker(at);
            }
            Phase::Stopping { .. } => {
                disk.child.claimed = claimed;
                let failure = Failure::new(Exit::InUse, format!("the disk at {root} is being stopped"));
                self.answer(reply, Err(failure.hint("try again in a few seconds")));
            }
            // `disk add` says something new of one that runs.
            Phase::Up { .. } if remember && disk.child.remember && is_news(&disk.spec.net, &spec.net) => {
                disk.child.claimed = claimed;
                let net = renewed(&disk.spec.net, &spec.net);
                disk.net_before = Some(std::mem::replace(&mut disk.spec.net, net));
                disk.child.added.extend(reply); // answered, and remembered, when it is up again
                restart(&mut disk.child, now, &mut self.effects);
            }
            _ if claimed || disk.child.remember && (remember || spec.create) => {
                disk.child.claimed = claimed;
                let is_of_run = remember && !disk.child.remember;
                let failure = Failure::new(Exit::InUse, format!("the disk at {root} is running already"));
                self.answer(reply, Err(failure.hint(if is_of_run { OF_A_RUN } else { SHOWN })));
            }
            // A worker that was there before this supervisor, or is remembered: now it is ours to watch.
            phase => {
                // Who repeats `run` says what an inherited worker runs with. Nobody knows that of one started by hand, nor has
                // `disk add` said it before: that one has to be started anew for it.
                let is_said = reply.is_some() && spec.net != NetSettings::default();
                let anew = is_said && (remember || !disk.child.watched) && !disk.child.remember;
                disk.child.watched = true;
                match disk.child.remember {
                    true => disk.spec.allow_uids = spec.allow_uids, // the rest as it was added
                    false => disk.spec = DiskSpec { create: false, ..spec },
                }
                disk.child.remember |= remember;
                match (phase, disk.served.as_ref().map(|served| served.disk_id.clone()), anew) {
                    (Phase::Up { .. }, _, true) => {
                        disk.child.added.extend(reply); // as above
                        restart(&mut disk.child, now, &mut self.effects);
                    }
                    (Phase::Up { .. }, Some(disk_id), false) => {
                        let is_news = remember && reply.is_some(); // as for a mount
                        self.answer(reply, Ok(disk_id));
                        if is_news {
                            self.remember();
                        }
                    }
                    _ => disk.child.added.extend(reply),
                }
            }
        }
    }

    pub(super) fn remove_disk(
        &mut self,
        root: &Path,
        release: bool,
        shown: &HashMap<PathBuf, PathBuf>,
        reply: Reply,
        now: Instant,
    ) {
        let Some(at) = self.disks.iter().position(|disk| disk.spec.root == root) else {
            let failure = Failure::new(Exit::NoDisk, format!("no disk at {} is known to this host", root.display()));
            return self.answer([reply], Err(failure.hint("`delugefs disks` lists them")));
        };
        let child = &mut self.disks[at].child;
        if release && child.remember && child.established {
            child.claimed = false;
            return self.answer([reply], Ok(String::new()));
        }
        let shows_it = |mount: &&Mount| {
            let shows = shown.get(&mount.spec.dir).or(mount.root.as_ref());
            shows.is_some_and(|shows| shows == root) && mount.child.is_running()
        };
        if let Some(mount) = self.mounts.iter().find(shows_it) {
            let dir = mount.spec.dir.display().to_string();
            let failure = Failure::new(Exit::InUse, format!("the mount at {dir} shows the disk at {}", root.display()));
            return self.answer([reply], Err(failure.hint(format!("`delugefs umount {}` first", quoted(&dir)))));
        }
        let child = &mut self.disks[at].child;
        child.removed.push(reply);
        if child.is_running() {
            stop(child, now + WORKER_STOP, &mut self.effects);
        } else {
            self.drop_disk(at, Err(Failure::new(Exit::Failure, "the disk was removed")));
        }
    }

    pub(super) fn folder_back(&mut self, root: &Path, found: &DiskToml) {
        let no_disk = |child: &Child| child.failure.as_ref().is_some_and(|failure| failure.exit == Exit::NoDisk);
        let waits = |disk: &Disk| disk.spec.root == root && disk.child.phase == Phase::Stopped && no_disk(&disk.child);
        if let Some(at) = self.disks.iter().position(waits).filter(|_| !self.is_stopping()) {
            let disk = &mut self.disks[at];
            disk.child.restarts += 1;
            disk.spec = disk.spec.clone().found(Some(found));
            self.start_worker(at);
        }
    }

    /// Why a disk of this cluster is refused: that of the host's other disks is another one, which has the same name or another.
    fn is_of_another(
        &self,
        root: &Path,
        cluster_id: Option<ClusterId>,
        cluster: &str,
        other_name: Option<&str>,
    ) -> Option<Failure> {
        let ours = self.cluster_id(Some(root))?;
        (cluster_id? != ours).then(|| match other_name {
            Some(other) => other_disk(root, other, cluster),
            None => same_name(root, cluster),
        })
    }

    pub(super) fn register(&mut self, it: Registration, now: Instant) {
        if self.is_stopping() {
            return self.answer([it.reply], Err(Self::is_ending()));
        }
        if let Some(cluster) = self.cluster().filter(|cluster| *cluster != it.cluster) {
            let failure = other_cluster(cluster, &it.cluster);
            return self.answer([it.reply], Err(failure));
        }
        // It says where its folder is now, and it may be known by a path that leads there by a link. It is one process either way.
        let is_its = |disk: &Disk| disk.child.pid == Some(it.pid);
        let by_root = || self.disks.iter().position(|disk| disk.spec.root == it.root);
        let known = self.disks.iter().position(is_its).or_else(by_root);
        let root = known.map_or(&it.root, |at| &self.disks[at].spec.root);
        if let Some(failure) = self.is_of_another(root, it.cluster_id, &it.cluster, None) {
            self.answer([it.reply], Err(failure));
            return self.turn_away(known.filter(|at| self.disks[*at].child.pid == Some(it.pid)), now);
        }
        let at = known.unwrap_or_else(|| {
            let mut child = Child::new(false, false);
            (child.claimed, child.watched) = (false, it.inherited);
            let spec = DiskSpec {
                root: it.root.clone(),
                cluster: it.cluster.clone(),
                create: false,
                reserve_bytes: delugefs_proto::config::default_reserve_bytes(),
                retention_s: delugefs_proto::config::default_retention_s(),
                allow_uids: Vec::new(),
                net: Default::default(),
                cluster_id: it.cluster_id,
                disk_id: Some(it.served.disk_id.clone()),
                other_name: None,
            };
            self.disks.push(Disk::new(spec, child));
            self.disks.len() - 1
        });
        let disk = &mut self.disks[at];
        if disk.child.phase == Phase::Starting && disk.child.pid.is_none() {
            let earlier = disk.early.replace(it).map(|earlier| earlier.reply);
            return self.answer(earlier, Ok(String::new()));
        }
        self.adopt(at, it, now);
    }

    /// A worker that runs is of another cluster, which could not be known before: started again it finds that out by itself, and stays
    /// stopped. One that is not ours goes on without us.
    fn turn_away(&mut self, at: Option<usize>, now: Instant) {
        let Some(at) = at else { return };
        let child = &mut self.disks[at].child;
        match child.phase {
            Phase::Up { .. } if child.watched => restart(child, now, &mut self.effects),
            Phase::Up { .. } => self.drop_disk(at, Ok(String::new())),
            _ => {}
        }
    }

    fn adopt(&mut self, at: usize, it: Registration, now: Instant) {
        self.answer([it.reply], Ok(String::new()));
        let disk = &mut self.disks[at];
        disk.spec.cluster_id = it.cluster_id.or(disk.spec.cluster_id);
        disk.tcp_port = it.tcp_port;
        if disk.child.pid == Some(it.pid) {
            return; // our own, or one that registers again
        }
        // Holding the lock, it is the folder's only live worker: whatever we started there has ended or will at once.
        let run = self.new_run();
        let disk_id = it.served.disk_id.clone();
        self.disks[at].child.adopted(run, it.pid, now);
        let root = self.disks[at].spec.root.clone();
        self.effects.push(Effect::WatchWorker { run, pid: it.pid, root, disk_id });
        self.worker_up(at, it.served, now);
    }

    pub(super) fn worker_news(&mut self, at: usize, news: News, now: Instant) {
        match news {
            News::Started { pid, .. } | News::Adopted { pid, .. } => {
                let at_s = if let News::Started { at_s, .. } = news { at_s } else { 0 };
                self.disks[at].child.begun(pid, at_s);
                if let Some(registration) = self.disks[at].early.take() {
                    self.adopt(at, registration, now);
                }
            }
            News::WorkerReady(served) if self.disks[at].child.phase == Phase::Starting => {
                self.disks[at].child.up(now);
                self.worker_up(at, served, now);
            }
            News::WorkerReady(_) | News::FrontendReady { .. } | News::Left { .. } => {} // asked to stop in the meantime
            News::Ended(failure) => self.worker_ended(at, failure, now),
        }
    }

    fn worker_up(&mut self, at: usize, served: Served, now: Instant) {
        let disk = &mut self.disks[at];
        let is_new = std::mem::take(&mut disk.spec.create);
        disk.contested = false;
        disk.net_before = None;
        let disk_id = served.disk_id.clone();
        disk.served = Some(served);
        let early = disk.early.take().map(|early| early.reply); // its own, or one that lost the lock to it
        let replies = std::mem::take(&mut disk.child.added);
        let news = !replies.is_empty() && disk.child.remember;
        self.answer(early, Ok(String::new()));
        self.answer(replies, Ok(disk_id));
        if news {
            self.remember();
        }
        // Whose mount has begun while it was being made, on another disk, does not ask any more.
        if is_new {
            let users: Vec<u32> = self.mounts.iter().filter_map(|mount| mount.spec.uid).collect();
            users.into_iter().for_each(|uid| self.disks[at].let_in(uid, now, &mut self.effects));
        }
    }

    fn worker_ended(&mut self, at: usize, failure: Failure, now: Instant) {
        let stopping = self.is_stopping();
        if let Some(registration) = self.disks[at].early.take() {
            return self.adopt(at, registration, now); // ours never began
        }
        let disk = &mut self.disks[at];
        let starting = disk.child.phase == Phase::Starting;
        disk.tcp_port = 0;
        // The folder was ours a moment ago: it is what was said, a port that another disk has for instance.
        if let Some(before) = disk.net_before.take_if(|_| starting) {
            disk.spec.net = before;
            let replies = std::mem::take(&mut disk.child.added);
            self.answer(replies, Err(failure.hint("the disk goes on with the settings that it had")));
            return self.start_worker(at);
        }
        if starting && failure.exit == Exit::InUse && !disk.contested {
            // A live worker has the folder, perhaps one that lost its supervisor: it will register.
            disk.contested = true;
            disk.child.run = None;
            disk.child.pid = None;
            disk.child.phase = Phase::Contested { until: now + REGISTER_WAIT };
            return;
        }
        disk.contested = false;
        let failure = match failure.exit {
            Exit::NoDisk if disk.child.remember && disk.child.established => {
                failure.hint(no_longer_there("this host remembers a disk there: "))
            }
            _ => failure,
        };
        match disk.child.ended(failure.clone(), now) {
            Next::Remove => self.drop_disk(at, Err(failure)),
            Next::Start if stopping => {} // quiesce says the rest
            Next::Start => self.start_worker(at),
            Next::Wait => {
                // Who waits is told of the failure and goes away again.
                disk.child.claimed &= disk.child.added.is_empty() || !disk.child.remember;
                let replies = std::mem::take(&mut disk.child.added);
                self.answer(replies, Err(failure));
            }
        }
    }

    pub(super) fn start_worker(&mut self, at: usize) {
        let run = self.new_run();
        let users = self.mounts.iter().filter_map(|mount| mount.spec.uid);
        let cluster_id = self.cluster_id(Some(&self.disks[at].spec.root));
        let disk = &mut self.disks[at];
        let mut spec = disk.spec.clone();
        // What the others are it is to be too, whatever was in its folder before.
        spec.cluster_id = cluster_id.or(spec.cluster_id);
        spec.disk_id = disk.served.as_ref().map(|served| served.disk_id.clone()).or(spec.disk_id);
        spec.allow_uids.extend(users);
        spec.allow_uids.sort_unstable();
        spec.allow_uids.dedup();
        disk.allowed.clone_from(&spec.allow_uids);
        disk.child.starting(run);
        self.effects.push(Effect::StartWorker { run, spec });
    }

    /// A mount's user is not let in by a running worker: start the worker again with him. Frontends reconnect. One that is making its disk is
    /// not interrupted: the mount waits for it, and asks once more.
    pub(super) fn let_in(&mut self, uid: u32, now: Instant) {
        for disk in &mut self.disks {
            disk.let_in(uid, now, &mut self.effects);
        }
    }

    pub(super) fn drop_disk(&mut self, at: usize, to_adders: Result<String, Failure>) {
        let disk = self.disks.remove(at);
        self.answer(disk.child.added, to_adders.clone());
        self.answer(disk.early.map(|early| early.reply), to_adders);
        if disk.child.remember && disk.child.established {
            self.remember();
        }
        self.answer(disk.child.removed, Ok(String::new()));
    }
}

impl Disk {
    /// See [`State::let_in`].
    fn let_in(&mut self, uid: u32, now: Instant, effects: &mut Vec<Effect>) {
        let makes = self.child.phase == Phase::Starting && self.spec.create;
        let running = matches!(self.child.phase, Phase::Up { .. } | Phase::Starting) && !makes;
        if running && (!self.child.foreign || self.child.watched) && !self.allowed.contains(&uid) {
            restart(&mut self.child, now, effects);
        }
    }
}

/// What was asked for before, but for what is said now. Commands set no limits.
fn renewed(before: &NetSettings, asked: &NetSettings) -> NetSettings {
    let word = |asked: &Option<String>, before: &Option<String>| {
        asked.as_ref().or(before.as_ref()).filter(|word| !word.is_empty()).cloned()
    };
    NetSettings {
        listen: word(&asked.listen, &before.listen),
        port: asked.port.or(before.port).filter(|port| *port != 0),
        lazy: asked.lazy.or(before.lazy).filter(|lazy| *lazy),
        site: word(&asked.site, &before.site),
        ..*before
    }
}

/// Whether that changes anything.
fn is_news(before: &NetSettings, asked: &NetSettings) -> bool {
    renewed(before, asked) != renewed(before, &NetSettings::default())
}

/// Have a running worker started anew, with what is asked of it now.
fn restart(child: &mut Child, now: Instant, effects: &mut Vec<Effect>) {
    if let Some(run) = child.run {
        child.phase = Phase::Stopping { kill_at: Some(now + WORKER_STOP), then: Then::Restart };
        effects.push(Effect::Terminate { run });
    }
}

/// A supervisor has one cluster.
pub(crate) fn other_cluster(ours: &str, asked: &str) -> Failure {
    Failure::new(Exit::WrongCluster, format!("this host's supervisor runs cluster {ours}, not {asked}"))
        .hint("give another cluster a supervisor of its own: --run-dir DIR --state-dir DIR")
}

fn other_disk(root: &Path, cluster: &str, ours: &str) -> Failure {
    let text = format!("the disk at {} belongs to the cluster {cluster}, not to {ours}", root.display());
    Failure::new(Exit::WrongCluster, text).hint(own_supervisor(cluster, root))
}

/// Nor two of one name: they have other files.
fn same_name(root: &Path, cluster: &str) -> Failure {
    let root_shown = root.display();
    let text = format!("the cluster of the disk at {root_shown} has the same name, {cluster}, but is another cluster");
    Failure::new(Exit::WrongCluster, text).hint(own_supervisor(cluster, root))
}

/// What to do about a folder that was a disk when it was added, and is none, or seems to be none.
fn no_longer_there(first: &str) -> String {
    format!(
        "{first}mount what belongs there if it is not mounted; for a new disk choose another folder, or take this one out of \
         `added.toml` in the state directory"
    )
}
