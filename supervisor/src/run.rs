//! `delugefs-supervisor`: reads like its boot log.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use delugefs_proto::config::Config;
use delugefs_proto::control_pb::control_server::ControlServer;
use delugefs_proto::control_pb::{HostStatus, NetSettings};
use delugefs_proto::disk::{DiskToml, is_cluster_name};
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::rundir;
use delugefs_proto::token::is_address;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::interceptor::InterceptedService;

use crate::addresses::Addresses;
use crate::browse;
use crate::cluster::{self, Found};
use crate::escape::quoted;
use crate::membership::Membership;
use crate::notes::{self, Note};
use crate::owner::{DiskSpec, Event, MountSpec, Owner, Registration, State};
use crate::policy::Settings;
use crate::process::Events;
use crate::remember::Memory;
use crate::replicate::{self, Shown};
use crate::server::{Server, no_cluster_name, uid_of};
use crate::{discovery, identity, paths, remember, returned, sys, uds};

/// How long open calls get to finish after everything has stopped.
const GOODBYE: Duration = Duration::from_secs(2);
/// A lock that somebody has is asked for again: `delugefs stop` takes it for a moment to see whether it is free.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Keeps the disks and mounts of a host running.
#[derive(Debug, Parser)]
#[command(name = "delugefs-supervisor", version)]
pub struct Options {
    /// Where the sockets are [default: /var/run/delugefs, or the user's]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// What the next start has to know [default: /var/db/delugefs, or the user's]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Disks and mounts to start (delugefs.toml)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Neither announce this host's disks on the local network nor look for others there (also: DELUGEFS_NO_MDNS=1)
    #[arg(long, env = "DELUGEFS_NO_MDNS", hide_env = true, value_parser = clap::builder::FalseyValueParser::new())]
    pub no_mdns: bool,
    /// Address of a disk of the cluster that multicast does not reach; may be given several times
    #[arg(long = "peer", value_name = "HOST:PORT")]
    pub peers: Vec<String>,
    /// Print the id of the cluster of this name that this host is a member of, and end; found it if there is none
    #[arg(long, value_name = "CLUSTER")]
    pub found: Option<String>,
}

/// Run until stopped by a signal or the Stop call.
///
/// # Errors
/// [`UserError`]s: another supervisor has the run directory; an unusable directory or configuration.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let run_dir = options.run_dir.unwrap_or_else(rundir::default_run_dir);
    let state_dir = options.state_dir.unwrap_or_else(rundir::default_state_dir);
    if let Some(cluster) = &options.found {
        rundir::prepare(&state_dir).map_err(|error| directory(&state_dir, "--state-dir", &error))?;
        if !is_cluster_name(cluster) {
            return Err(UserError::from(no_cluster_name(cluster)).into());
        }
        println!("{}", Membership::open(state_dir)?.cluster_for(cluster).map_err(UserError::from)?.to_hex());
        return Ok(());
    }
    rundir::prepare(&run_dir).map_err(|error| directory(&run_dir, "--run-dir", &error))?;
    rundir::prepare(&state_dir).map_err(|error| directory(&state_dir, "--state-dir", &error))?;
    let run_dir = run_dir.canonicalize().with_context(|| format!("cannot resolve {}", run_dir.display()))?;
    let (events, inbox) = mpsc::unbounded_channel();
    stop_on_signals(&events)?;
    let run_lock = take_lock(&rundir::supervisor_lock(&run_dir), "--run-dir", None, |pid, _| {
        let text = format!("a supervisor (pid {pid}) has {}", run_dir.display());
        UserError::new(Exit::InUse, text).hint(
            "`delugefs status` asks it, `delugefs stop` ends it; --run-dir DIR --state-dir DIR runs another one beside it",
        )
    })?;
    let _kept = keep_from_tidying(&run_dir);
    tracing::info!(run_dir = %run_dir.display(), version = env!("CARGO_PKG_VERSION"), "has the run directory");
    // Two would overwrite each other's members and what is to be started.
    let state_lock = take_lock(&rundir::state_lock(&state_dir), "--state-dir", Some(&run_dir), |pid, of| {
        let text =
            format!("a supervisor (pid {pid}) of another run directory keeps its state in {}", state_dir.display());
        let of = if of.is_empty() { "DIR".to_owned() } else { quoted(of) };
        UserError::new(Exit::InUse, text).hint(format!(
            "`delugefs --run-dir {of} status` asks it; or give this one a directory of its own for that too: --state-dir DIR"
        ))
    })?;

    let configured = options.config.as_deref().map(Config::read).transpose().map_err(|error| configuration(&error))?;
    let configured = configured.unwrap_or_default();
    let added = remember::read(&state_dir).map_err(|error| {
        UserError::new(Exit::Usage, format!("{error:#}"))
            .hint("mend it; or move it away: what was added by command is forgotten then, and can be added again")
    })?;
    let cluster = configured.cluster.clone().or_else(|| added.cluster.clone());

    let membership = Arc::new(Membership::open(state_dir.clone()).context("cannot use this host's membership")?);
    let addresses = Arc::new(Addresses::open(state_dir.clone()));
    let mut peers = options.peers;
    peers.extend(configured.peers.iter().cloned());
    if let Some(peer) = peers.iter().find(|peer| !is_address(peer)) {
        return Err(no_peer_address(peer).into());
    }
    let found = Arc::new(Found { peers, nearby: Default::default() });

    let socket = rundir::control_socket(&run_dir);
    let listener = listen(&socket)?;
    let (snapshots, watcher) = watch::channel(Arc::new(HostStatus::default()));
    let owner = Owner {
        state: State::new(configured.cluster.clone()),
        run_dir,
        events,
        snapshots,
        membership: membership.clone(),
        addresses: addresses.clone(),
        founded: Default::default(),
        memory: Memory::new(state_dir, added.clone()),
    };
    let events = owner.events.clone();
    notes::sweep(&owner.run_dir)?;
    find_living(&events, &owner.run_dir).await?;
    wish(&events, &configured, cluster.as_deref(), false).await?;
    wish(&events, &added, cluster.as_deref(), true).await?;
    let (noted_apart, apart) = watch::channel(cluster::Apart::new());
    let meeting = cluster::follow(watcher.clone(), membership.clone(), addresses.clone(), found.clone(), noted_apart);
    tokio::spawn(meeting);
    tokio::spawn(returned::follow(watcher.clone(), events.clone()));
    let (shown, replicated) = watch::channel(Shown::default());
    tokio::spawn(replicate::run(watcher.clone(), membership.clone(), shown, Settings::default()));
    if !options.no_mdns {
        tokio::spawn(browse::follow(watcher.clone(), membership.clone(), found.clone()));
    }
    let discovery = (!options.no_mdns).then(|| tokio::spawn(discovery::follow(watcher.clone())));

    let run_dir = owner.run_dir.clone();
    let service = Server {
        apart,
        events,
        snapshots: watcher,
        run_dir: run_dir.clone(),
        membership,
        addresses,
        found,
        replicated,
        refusals: Default::default(),
    };
    let service = InterceptedService::new(ControlServer::new(service), uds::check_peer);
    let (goodbye, leave) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming_shutdown(
        UnixListenerStream::new(listener),
        async { drop(leave.await) }, // an error is the owner's end too
    );
    let server = tokio::spawn(server);
    tracing::info!(socket = %socket.display(), "serves");
    println!("ready");

    owner.run(inbox).await;
    tracing::info!("all stopped");
    drop(goodbye);
    if let Ok(ended) = tokio::time::timeout(GOODBYE, server).await {
        ended.context("the control server panicked")?.context("the control server failed")?;
    }
    if let Some(discovery) = discovery {
        // It says goodbye for what it announced when the last snapshot's sender is gone.
        drop(tokio::time::timeout(GOODBYE, discovery).await);
    }
    std::fs::remove_file(&socket).with_context(|| format!("cannot remove {}", socket.display()))?;
    notes::sweep(&run_dir)?;
    drop(state_lock);
    drop(run_lock); // last: who finds it free may use both
    Ok(())
}

/// Where it lies in /tmp, systemd-tmpfiles removes it when nothing in it was used for days, unless somebody has a lock (flock) on it: the
/// mounts would answer EIO, and `delugefs` find no supervisor.
fn keep_from_tidying(run_dir: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(run_dir).ok()?, FlockArg::LockSharedNonblock).ok()
}

/// One supervisor per directory: a lock that ends with the process, and in the file its process id for people, and its run directory where that is
/// another one.
fn take_lock(
    path: &Path,
    flag: &str,
    run_dir: Option<&Path>,
    is_taken: impl Fn(&str, &str) -> UserError,
) -> anyhow::Result<Flock<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o644);
    let file = options.open(path).map_err(|error| directory(path.parent().unwrap_or(path), flag, &error))?;
    let pause = || std::thread::sleep(LOCK_PAUSE); // nothing else runs yet
    let mut lock = take_lock_in(LOCK_TRIES, file, pause, |holder| {
        let (pid, of) = holder.split_once('\n').unwrap_or((holder, ""));
        is_taken(pid, of)
    })?;
    let mut note = || -> std::io::Result<()> {
        lock.set_len(0)?;
        let of = run_dir.map_or(String::new(), |dir| format!("{}\n", dir.display()));
        write!(lock, "{}\n{of}", std::process::id())
    };
    // A file system of its own may be full there, and no disk.
    note().map_err(|error| directory(path.parent().unwrap_or(path), flag, &error))?;
    Ok(lock)
}

fn take_lock_in(
    mut tries: u32,
    mut file: File,
    mut pause: impl FnMut(),
    is_taken: impl Fn(&str) -> UserError,
) -> anyhow::Result<Flock<File>> {
    loop {
        tries -= 1;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((busy, Errno::EWOULDBLOCK)) if tries > 0 => file = busy,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid)?;
                return Err(is_taken(pid.trim()).into());
            }
            Err((_, error)) => return Err(anyhow::Error::from(error).context("cannot take the lock of a directory")),
        }
        pause();
    }
}

/// Only this user can connect; what is there is left over, because the lock is ours.
fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(anyhow::Error::from(error).context(format!("cannot remove {}", socket.display())));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// What an earlier supervisor left running goes on. Workers first: a mount is matched with the disk it shows.
async fn find_living(events: &Events, run_dir: &Path) -> anyhow::Result<()> {
    let workers = Note::living_workers(run_dir)?;
    let mounted = sys::delugefs_mounts().context("cannot read the mount table")?;
    // As `wish` has them.
    let roots = workers.iter().map(|(note, _)| note.path.clone()).collect();
    let roots = paths::resolve_each(roots, mounted, identity::PATIENCE).await;
    let identities = identities(roots.iter().cloned()).await;
    for (((note, served), root), identity) in workers.into_iter().zip(roots).zip(identities) {
        let Some(identity) = identity else { continue }; // it registers by itself, too
        let (reply, _) = tokio::sync::oneshot::channel();
        let (cluster_id, cluster, pid) = (identity.cluster_id(), identity.cluster, note.pid);
        let (tcp_port, inherited) = (0, true);
        let it = Registration { root, cluster, cluster_id, pid, served, tcp_port, inherited, reply };
        send(events, Event::Register(it));
    }
    for note in Note::living_frontends(run_dir)? {
        let socket = note.socket.unwrap_or_default();
        let mounted = sys::delugefs_at(&note.path)?;
        send(events, Event::MountFound { dir: note.path, pid: note.pid, socket, mounted });
    }
    Ok(())
}

/// What folders say, all within the time that one of them gets.
async fn identities(roots: impl Iterator<Item = PathBuf>) -> Vec<Option<DiskToml>> {
    let looks: Vec<_> = roots.map(identity::look).collect();
    let deadline = tokio::time::Instant::now() + identity::PATIENCE;
    let mut found = Vec::new();
    for look in looks {
        let read = tokio::time::timeout_at(deadline, look).await;
        found.push(read.ok().and_then(Result::ok).and_then(Result::ok));
    }
    found
}

/// Mounts first: the workers let in the users of the mounts that are known when they start.
async fn wish(events: &Events, config: &Config, cluster: Option<&str>, remember: bool) -> anyhow::Result<()> {
    let mounted = sys::delugefs_mounts().context("cannot read the mount table")?;
    let resolved = async |paths| paths::resolve_each(paths, mounted.clone(), identity::PATIENCE).await;
    let dirs: Vec<PathBuf> = config.mounts.iter().map(|mount| mount.dir.clone()).collect();
    // What is remembered was resolved when it was said. A link that is there since is not followed: who owns a folder above could
    // have root mount on any directory.
    let dirs = if remember { dirs } else { resolved(dirs).await };
    for (mount, dir) in config.mounts.iter().zip(dirs) {
        let spec = |uid| MountSpec { dir: dir.clone(), user: mount.user.clone(), uid, root: None };
        match uid_of(mount.user.as_deref()) {
            Ok(uid) => send(events, Event::AddMount { spec: spec(uid), remember, reply: None }),
            // Somebody who was removed: no reason for the disks not to start.
            Err(failure) => {
                tracing::error!("the mount {} is not started: {}", dir.display(), failure.message);
                let failure = match remember {
                    true => failure
                        .hint(format!("`delugefs umount {}` forgets the mount", quoted(&dir.display().to_string()))),
                    false => failure.hint("name another user for the mount in the configuration"),
                };
                send(events, Event::MountStuck { spec: spec(None), remember, failure });
            }
        }
    }
    if !config.disks.is_empty() && cluster.is_none() {
        let error = UserError::new(Exit::Usage, "the configuration has disks, but does not say of which cluster");
        return Err(error.hint("add a line `cluster = \"NAME\"` at its top").into());
    }
    // Of a disk it is followed in any case: by its worker, who then says where it is.
    let roots = resolved(config.disks.iter().map(|disk| disk.root.clone()).collect()).await;
    let identities = identities(roots.iter().cloned()).await;
    for ((disk, root), identity) in config.disks.iter().zip(roots).zip(identities) {
        let spec = DiskSpec {
            root,
            cluster: cluster.unwrap_or_default().into(),
            create: false,
            reserve_bytes: disk.reserve_bytes,
            retention_s: disk.retention_s,
            allow_uids: Vec::new(),
            net: NetSettings {
                listen: disk.listen.clone(),
                port: Some(disk.btport.into()),
                lazy: Some(disk.lazy),
                site: Some(disk.site.clone()),
                upload_bytes_per_s: disk.upload_bytes_per_s.unwrap_or(0),
                download_bytes_per_s: disk.download_bytes_per_s.unwrap_or(0),
            },
            cluster_id: None,
            disk_id: None,
            other_name: None,
        };
        let spec = spec.found(identity.as_ref());
        send(events, Event::AddDisk { spec, remember, reply: None });
    }
    Ok(())
}

fn stop_on_signals(events: &Events) -> anyhow::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("cannot handle signals")?;
        let events = events.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                tracing::info!("asked to stop");
                send(&events, Event::Stop { reply: None });
            }
        });
    }
    // A closed terminal is no reason to end: the disks of this host do not belong to it.
    let mut hangups = signal(SignalKind::hangup()).context("cannot handle signals")?;
    tokio::spawn(async move { while hangups.recv().await.is_some() {} });
    Ok(())
}

fn send(events: &Events, event: Event) {
    let _ = events.send(event); // fails only when the owner has ended
}

/// The one that `flag` names cannot be made, is not ours, or cannot be written to.
fn directory(dir: &Path, flag: &str, error: &std::io::Error) -> UserError {
    if error.raw_os_error().is_none() {
        // It names the directory, and says what to do.
        return UserError::new(Exit::NotPermitted, format!("cannot use the directory: {error}"));
    }
    let failed = UserError::new(Exit::NotPermitted, format!("cannot use the directory {}: {error}", dir.display()));
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let then = match error.kind() {
        StorageFull | QuotaExceeded => "its file system is full: make room there",
        ReadOnlyFilesystem => "its file system is read-only",
        _ => "one that cannot be written to needs `chown` or `chmod`",
    };
    failed.hint(format!("{flag} DIR names another one; {then}"))
}

/// What was said as a peer's.
pub(crate) fn no_peer_address(peer: &str) -> UserError {
    let error = UserError::new(Exit::Usage, format!("{peer:?} is no address of a peer"));
    error.hint("write HOST:PORT, such as nas.lan:40999 or [fd00::2]:40999")
}

fn configuration(error: &delugefs_proto::config::ConfigError) -> UserError {
    use std::error::Error;
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    UserError::new(Exit::Usage, format!("{error}{cause}")).hint("correct it there, and start again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_only_looked_at_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let in_use = |pid: &str| UserError::new(Exit::InUse, format!("pid {pid} has it"));
        std::fs::write(&path, "7\n").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let look = || Flock::lock(open(), FlockArg::LockSharedNonblock).unwrap();
        let looked_at = look();
        assert_eq!(take_lock_in(3, open(), || {}, in_use).unwrap_err().to_string(), "pid 7 has it", "not for ever");
        drop(looked_at);
        let mut looked_at = Some(look());
        take_lock_in(LOCK_TRIES, open(), || drop(looked_at.take()), in_use).unwrap();
    }
}
