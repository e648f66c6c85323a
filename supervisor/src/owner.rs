//! The owner: one task that holds everything the supervisor knows. It takes events one at a time, lets [`State::apply`]
//! decide, and carries the effects out. Nobody else may change anything, so there are no locks.
//!
//! ```text
//! control calls ---\
//! process tasks ----> Event -> State::apply (pure) -> Effect -> process tasks, answers, files
//! timers ----------/                              \-> snapshot -> Watch, Status, discovery
//! ```

mod child;
mod disks;
mod mounts;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;
use delugefs_proto::exit::Exit;
use delugefs_proto::ids::ClusterId;
use tokio::sync::{mpsc, watch};

pub use child::{Reply, Run};
pub(crate) use disks::other_cluster;
pub use snapshot::{problems, snapshot};
pub use state::{DiskSpec, Effect, Event, MountSpec, News, Registration, Served, State};

use crate::addresses::Addresses;
use crate::failure::Failure;
use crate::identity;
use crate::membership::Membership;
use crate::notes::{self, FRONTEND, WORKER};
use crate::process::{End, Events, Job, detach_dead};
use crate::remember::Memory;

/// The task's surroundings.
#[derive(Debug)]
pub struct Owner {
    /// What is known.
    pub state: State,
    /// Sockets, notes and logs.
    pub run_dir: PathBuf,
    /// Where process tasks send their news; the other end is what [`Owner::run`] reads.
    pub events: Events,
    /// Who may take part.
    pub membership: Arc<Membership>,
    /// Ports of the last start.
    pub addresses: Arc<Addresses>,
    /// Renewed after every change.
    pub snapshots: watch::Sender<Arc<pb::HostStatus>>,
    /// Clusters that were founded for a first disk that is being made: which start of a worker, and its folder.
    pub founded: HashMap<Run, (ClusterId, PathBuf)>,
    /// What is remembered, and what is to be.
    pub memory: Memory,
}

impl Owner {
    /// Runs until everything was stopped by [`Event::Stop`].
    pub async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Event>) {
        let mut processes: HashMap<Run, mpsc::UnboundedSender<End>> = HashMap::new();
        loop {
            let deadline = self.state.next_deadline().map(tokio::time::Instant::from_std);
            let event = tokio::select! {
                event = inbox.recv() => event.unwrap_or(Event::Stop { reply: None }),
                () = sleep_until(deadline) => Event::Tick,
                () = sleep_until(self.memory.again_at()) => {
                    self.memory.again();
                    self.publish();
                    continue;
                }
            };
            self.log(&event);
            match &event {
                Event::Child { run, news: News::Ended(_) } => {
                    processes.remove(run);
                    self.unfound(*run).await;
                }
                Event::Child { run, news: News::WorkerReady(_) } => drop(self.founded.remove(run)),
                _ => {}
            }
            let effects = self.state.apply(event, Instant::now());
            let mut forgotten = None;
            self.publish();
            for effect in effects {
                // It comes before the answers to those who asked for it.
                let effect = match (effect, &forgotten) {
                    (Effect::Remember(config), _) => {
                        forgotten = self.memory.keep(config).err();
                        self.publish();
                        continue;
                    }
                    (Effect::Answer(reply, Ok(_)), Some(failure)) => Effect::Answer(reply, Err(failure.clone())),
                    (effect, _) => effect,
                };
                if matches!(effect, Effect::Exit) {
                    return;
                }
                self.carry_out(effect, &mut processes).await;
            }
        }
    }

    /// A worker has ended: if it was to make the first disk of a new cluster and did not, there is no such cluster.
    async fn unfound(&mut self, run: Run) {
        if let Some((cluster, root)) = self.founded.remove(&run)
            && identity::read(&root).await.is_err_and(|failure| failure.exit == Exit::NoDisk)
            && self.state.disks.iter().all(|disk| disk.spec.root == root)
        // another one may be about to be of that cluster
        {
            if let Err(error) = self.membership.unfound(cluster) {
                tracing::warn!("a cluster without disks is remembered: {error:#}");
            }
            // Started again, it begins another one.
            self.state.disks.iter_mut().for_each(|disk| disk.spec.cluster_id = None);
        }
    }

    fn publish(&self) {
        let mut now = snapshot(&self.state);
        now.problems.extend(self.memory.problem());
        self.snapshots.send_if_modified(|last| {
            let changed = **last != now;
            if changed {
                *last = Arc::new(now);
            }
            changed
        });
    }

    async fn carry_out(&mut self, effect: Effect, processes: &mut HashMap<Run, mpsc::UnboundedSender<End>>) {
        let (ends, receiver) = mpsc::unbounded_channel();
        match effect {
            Effect::StartWorker { run, spec } => {
                processes.insert(run, ends);
                match self.worker_job(run, &spec) {
                    Ok(job) => drop(tokio::spawn(job.start(self.events.clone(), receiver))),
                    // As if it had said so itself.
                    Err(failure) => {
                        let _ = self.events.send(Event::Child { run, news: News::Ended(failure) }); // we hold the other end
                    }
                }
            }
            Effect::StartFrontend { run, spec, socket, cluster } => {
                processes.insert(run, ends);
                tokio::spawn(self.frontend_job(run, &spec, &socket, &cluster).start(self.events.clone(), receiver));
            }
            Effect::WatchWorker { run, pid, root, disk_id } => {
                processes.insert(run, ends);
                let note = notes::worker_note(&self.run_dir, &root);
                let prefix = short_id(&disk_id).to_string();
                let job = Job { run, program: WORKER, args: Vec::new(), path: root, socket: None, note, prefix };
                tokio::spawn(job.adopt(pid, self.events.clone(), receiver));
            }
            Effect::WatchFrontend { run, pid, dir } => {
                processes.insert(run, ends);
                let note = notes::frontend_note(&self.run_dir, &dir);
                let prefix = dir.display().to_string();
                let job = Job { run, program: FRONTEND, args: Vec::new(), path: dir, socket: None, note, prefix };
                tokio::spawn(job.adopt(pid, self.events.clone(), receiver));
            }
            Effect::Terminate { run } => end(processes, run, End::Terminate),
            Effect::Kill { run } => end(processes, run, End::Kill),
            Effect::Detach { dir, mounted, only_dead } => {
                if tokio::task::spawn_blocking(move || detach_dead(&dir, &mounted, only_dead)).await.is_err() {
                    tracing::error!("detaching a mount panicked");
                }
            }
            Effect::Answer(reply, result) => drop(reply.send(result)), // the caller may have gone away
            Effect::Remember(_) | Effect::Exit => {}                   // see `run`
        }
    }

    fn worker_job(&mut self, run: Run, spec: &DiskSpec) -> Result<Job, Failure> {
        let mut args = arguments([
            ("--root", spec.root.as_os_str().into()),
            ("--cluster", spec.cluster.clone().into()),
            ("--run-dir", self.run_dir.as_os_str().into()),
            ("--reserve-bytes", spec.reserve_bytes.to_string().into()),
            ("--retention-s", spec.retention_s.to_string().into()),
        ]);
        for uid in &spec.allow_uids {
            args.extend(arguments([("--allow-uid", uid.to_string().into())]));
        }
        let mut cluster_id = spec.cluster_id;
        if spec.create {
            args.push("--create".into());
            // Disks of one cluster carry one id: a new one takes it from the invitation, from those that are here, or from
            // the clusters that this host is a member of, and else begins one.
            if cluster_id.is_none() {
                let is_known = self.membership.known(&spec.cluster)?.is_some();
                let id = self.membership.cluster_for(&spec.cluster)?;
                if !is_known {
                    self.founded.insert(run, (id, spec.root.clone()));
                }
                cluster_id = Some(id);
            }
        }
        if let Some(id) = cluster_id {
            if let Some(disk) = self.state.disks.iter_mut().find(|disk| disk.child.run == Some(run)) {
                disk.spec.cluster_id = Some(id);
            }
            args.extend(arguments([("--cluster-id", id.to_hex().into())]));
        }
        if nix::unistd::geteuid().is_root() {
            args.push("--allow-root".into()); // whoever runs us as root has said so
        }
        args.extend(network(&spec.net));
        let last_port = spec.disk_id.as_ref().map_or(0, |disk_id| self.addresses.port(disk_id));
        if spec.net.port() == 0 && last_port != 0 {
            args.extend(arguments([("--last-port", last_port.to_string().into())]));
        }
        let prefix = spec.disk_id.as_ref().map(|disk_id| short_id(disk_id).to_string());
        Ok(Job {
            run,
            program: WORKER,
            args,
            path: spec.root.clone(),
            socket: None,
            note: notes::worker_note(&self.run_dir, &spec.root),
            prefix: prefix.unwrap_or_else(|| "new disk".into()),
        })
    }

    fn frontend_job(&self, run: Run, spec: &MountSpec, socket: &Path, cluster: &str) -> Job {
        let mut args = arguments([
            ("--worker", socket.into()),
            ("--mount", spec.dir.as_os_str().into()),
            ("--name", cluster.into()),
            ("--fallback", self.run_dir.as_os_str().into()),
        ]);
        args.push("--exact".into()); // it was resolved when it was said
        args.extend(spec.user.iter().flat_map(|user| arguments([("--user", user.into())])));
        Job {
            run,
            program: FRONTEND,
            args,
            path: spec.dir.clone(),
            socket: Some(socket.into()),
            note: notes::frontend_note(&self.run_dir, &spec.dir),
            prefix: spec.dir.display().to_string(),
        }
    }

    /// What an operator wants to read. ERROR means a person must look.
    fn log(&self, event: &Event) {
        let Event::Child { run, news } = event else { return };
        let disk = self.state.disks.iter().find(|disk| disk.child.run == Some(*run));
        let mount = self.state.mounts.iter().find(|mount| mount.child.run == Some(*run));
        let (what, path, child) = match (disk, mount) {
            (Some(disk), _) => ("disk", disk.spec.root.display(), &disk.child),
            (_, Some(mount)) => ("mount", mount.spec.dir.display(), &mount.child),
            (None, None) => return,
        };
        match news {
            News::Started { pid, .. } => tracing::info!(pid, "{what} {path}: started"),
            News::WorkerReady(served) => tracing::info!("{what} {path}: up as {}", short_id(&served.disk_id)),
            News::FrontendReady { .. } => tracing::info!("{what} {path}: up"),
            News::Adopted { pid, .. } => tracing::info!(pid, "{what} {path}: was alive, adopted"),
            News::Left { .. } => {}
            News::Ended(failure) if matches!(child.phase, child::Phase::Stopping { .. }) => {
                tracing::info!("{what} {path}: stopped ({})", failure.message);
            }
            // A first start that failed: whoever asked for it says so.
            News::Ended(failure) if !child.established => tracing::debug!("{what} {path}: {}", failure.message),
            News::Ended(failure) if failure.exit.is_worth_retrying() => {
                tracing::warn!("{what} {path}: {}", failure.message)
            }
            News::Ended(failure) => tracing::error!("{what} {path}: {}", failure.message),
        }
    }
}

fn network(net: &pb::NetSettings) -> Vec<OsString> {
    let mut args = Vec::new();
    if !net.listen().is_empty() {
        args.extend(arguments([("--listen", net.listen().into())]));
    }
    if net.port() != 0 {
        args.extend(arguments([("--btport", net.port().to_string().into())]));
    }
    if !net.site().is_empty() {
        args.extend(arguments([("--site", net.site().into())]));
    }
    for (flag, limit) in [("--upload-limit", net.upload_bytes_per_s), ("--download-limit", net.download_bytes_per_s)] {
        if limit != 0 {
            args.extend(arguments([(flag, limit.to_string().into())]));
        }
    }
    if net.lazy() {
        args.push("--lazy".into());
    }
    args
}

fn end(processes: &HashMap<Run, mpsc::UnboundedSender<End>>, run: Run, how: End) {
    if let Some(process) = processes.get(&run) {
        let _ = process.send(how); // it has just ended by itself
    }
}

fn arguments<const N: usize>(pairs: [(&str, OsString); N]) -> Vec<OsString> {
    pairs.into_iter().flat_map(|(flag, value)| [flag.into(), value]).collect()
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
