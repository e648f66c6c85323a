//! `delugefs run`: one foreground command. Starts the host's supervisor if there is none, a worker for the disk and a
//! frontend on the mountpoint; says `ready` on stdout; on SIGINT, SIGTERM or SIGHUP stops what it started.

mod watch;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::{DISK_TOML, DiskToml, is_cluster_name};
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::rundir;
use delugefs_proto::token::{Token, is_address};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use self::watch::{Seen, Watched, others};
use super::client::{self, Control, answer};
use super::here::Here;
use super::net::Net;
use crate::escape::{escape_line, quoted};
use crate::failure::Failure;
use crate::libexec;
use crate::log::say;
use crate::run::no_peer_address;
use crate::server::{no_cluster_name, no_token, uid_of};
use crate::{mountpoint, paths, sys};

/// Longest orderly stop: frontends (10 s), then workers (20 s), then the supervisor itself.
const STOP: Duration = Duration::from_secs(35);
/// Before a supervisor that died is started again.
const AGAIN: Duration = Duration::from_millis(200);
/// Starts of the supervisor in a row that did not lead to `ready`, after which we give up.
const TRIES: u32 = 5;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name of the cluster
    cluster: String,
    /// The disk's folder
    root: PathBuf,
    /// Make a new disk of this folder, which must be empty
    #[arg(long)]
    create: bool,
    /// Mount the filesystem on this folder
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// Serve the mount as this user (when run as root)
    #[arg(long, value_name = "NAME", requires = "mount")]
    user: Option<String>,
    /// What the next start has to know [default: /var/db/delugefs, or the user's]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Neither announce this host's disks on the local network nor look for others there (also: DELUGEFS_NO_MDNS=1)
    #[arg(long, env = "DELUGEFS_NO_MDNS", hide_env = true, value_parser = clap::builder::FalseyValueParser::new())]
    no_mdns: bool,
    /// Join the cluster with an invitation from one of its hosts (`delugefs invite`); the disk is made if it is not there
    #[arg(long, value_name = "TOKEN", conflicts_with = "create")]
    join: Option<String>,
    #[command(flatten)]
    net: Net,
    /// Where a disk of the cluster is that multicast does not reach; may be given several times
    #[arg(long = "peer", value_name = "HOST:PORT")]
    peers: Vec<String>,
}

/// What is asked of the supervisor.
struct Wish {
    disk: pb::AddDiskRequest,
    mount: Option<pb::AddMountRequest>,
}

/// Why we stop.
enum Ending {
    /// Because we were asked to.
    Signal,
    /// A process ended for good; the disk or the mount was taken away.
    Child(Failure),
    /// Our supervisor ended, or the one we found.
    Supervisor,
}

/// What was started or added, and so has to be stopped or removed.
#[derive(Default)]
struct Started {
    supervisor: Option<Child>,
    disk: bool,
    mount: bool,
    /// There may be processes that a supervisor that dies leaves running.
    processes: bool,
}

pub(super) async fn run(run_dir: &Path, here: Here, arguments: Arguments) -> anyhow::Result<Exit> {
    let mut wish = wish(&arguments)?;
    let mut signals = Signals::new()?;
    let progress = Progress { here, ..Progress::default() };
    let mut outcome = None;
    loop {
        progress.tries.set(progress.tries.get() + 1);
        let mut started = Started::default();
        let ending = {
            let mut serving = pin!(serve(run_dir, &arguments, &wish, &mut started, &progress));
            loop {
                tokio::select! {
                    ending = &mut serving => break ending,
                    () = signals.recv() => {
                        // What a dead supervisor left running has to be found by the next one before it can be stopped.
                        if !progress.orphans.get() || progress.leaving.replace(true) {
                            break Ok(Ending::Signal);
                        }
                    }
                }
            }
        };
        let ended = match ending {
            Ok(Ending::Supervisor) if started.supervisor.is_some() && progress.tries.get() < TRIES => {
                progress.orphans.set(progress.orphans.get() || started.processes);
                say("delugefs: the supervisor died; it is started again and finds its processes");
                let mut gone = pin!(wait_for_end(started.supervisor));
                loop {
                    tokio::select! {
                        () = &mut gone => break,
                        () = signals.recv() => progress.leaving.set(true),
                    }
                }
                wish.disk.create &= !started.disk;
                continue;
            }
            Ok(Ending::Supervisor) => {
                let error =
                    UserError::new(Exit::NoSupervisor, "the supervisor ended; disks and mounts go on without it");
                return Err(error.hint("the same command again finds them").into());
            }
            Ok(Ending::Signal) => Ok(Exit::Ok),
            Ok(Ending::Child(failure)) if failure.exit == Exit::Ok => {
                say(&format!("delugefs: {}", escape_line(&failure.message)));
                Ok(Exit::Ok)
            }
            Ok(Ending::Child(failure)) => Err(UserError::from(failure).into()),
            Err(Ended::Reported(exit)) => return Ok(exit),
            Err(Ended::Error(error)) => Err(error),
        };
        let stopped = {
            let mut stopping = pin!(stop(run_dir, &wish, started));
            loop {
                tokio::select! {
                    stopped = &mut stopping => break stopped?,
                    // Some senders signal a whole group and the process in it: twice is not more than once.
                    () = signals.recv() => {}
                }
            }
        };
        let ended = outcome.take().unwrap_or(ended);
        if stopped || progress.tries.get() >= TRIES {
            return ended;
        }
        outcome = Some(ended);
        // The supervisor died while it was to stop the others: let the next one do that.
        progress.orphans.set(true);
        progress.leaving.set(true);
        wish.disk.create = false;
    }
}

/// What is known over the deaths of supervisors.
#[derive(Default)]
struct Progress {
    /// What was typed.
    here: Here,
    /// Starts in a row that did not lead to a mount that answers.
    tries: Cell<u32>,
    was_ready: Cell<bool>,
    /// A supervisor of ours died and may have left processes running.
    orphans: Cell<bool>,
    /// We were asked to stop.
    leaving: Cell<bool>,
    /// What was said of our disk, which is away while others go on.
    away: RefCell<Option<String>>,
    /// Our disk was taken away by another command, and others go on: it is neither added again nor ours to stop.
    is_removed: Cell<bool>,
}

/// A process that is being killed closes its connections first and its listening socket later.
async fn wait_for_end(supervisor: Option<Child>) {
    if let Some(mut supervisor) = supervisor {
        // If it does not end, its lock says so to the next one.
        drop(tokio::time::timeout(STOP, supervisor.wait()).await);
    }
    tokio::time::sleep(AGAIN).await;
}

/// Why [`serve`] failed.
enum Ended {
    /// The supervisor said so on our stderr.
    Reported(Exit),
    Error(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

async fn serve(
    run_dir: &Path,
    arguments: &Arguments,
    wish: &Wish,
    started: &mut Started,
    progress: &Progress,
) -> Result<Ending, Ended> {
    let mut control = match client::connect(run_dir).await {
        Ok(control) => {
            let is_first = progress.tries.get() == 1 && !progress.was_ready.get();
            let unheeded = is_first.then(|| unheeded(run_dir, arguments)).flatten();
            unheeded.iter().for_each(|note| say(&format!("Note: {}", progress.here.say(note))));
            control
        }
        Err(error) if error.exit == Exit::NoSupervisor => {
            start_supervisor(run_dir, arguments, &mut started.supervisor).await?;
            client::connect(run_dir).await?
        }
        Err(error) => return Err(error.into()),
    };
    let mut wish = Wish { disk: wish.disk.clone(), mount: wish.mount.clone() };
    // It was there: when it is not now, others may be, and the supervisor is to take it when it comes back.
    wish.disk.was_up = progress.was_ready.get();
    if let Some(token) = &arguments.join {
        let request = pb::JoinRequest { token: token.clone(), cluster: arguments.cluster.clone() };
        wish.disk.cluster_id = answer(control.join(request).await)?.cluster_id;
        // A disk that is there just starts; if it is another cluster's, its worker says so.
        wish.disk.create = !Path::new(&wish.disk.root).join(DISK_TOML).exists();
    }
    // Once it was there, a folder without it is where it is to be mounted again: no place for a new one.
    wish.disk.create &= !wish.disk.was_up;
    let wish = &wish;
    let added = add(&mut control, wish, started, progress.is_removed.get()).await;
    match added {
        Ok(()) => {}
        Err(error) if error.exit == Exit::NoSupervisor || is_gone(&mut started.supervisor)? => {
            return Ok(Ending::Supervisor);
        }
        Err(error) => return Err(error.into()),
    }
    progress.orphans.set(false);
    if progress.leaving.get() {
        return Ok(Ending::Signal);
    }
    if !progress.was_ready.replace(true) {
        writeln!(std::io::stdout(), "ready").context("cannot say `ready` on stdout")?;
    }
    progress.tries.set(0);
    let mut changes = match answer(control.watch(pb::WatchRequest {}).await) {
        Err(error) if error.exit == Exit::NoSupervisor => return Ok(Ending::Supervisor),
        changes => changes?,
    };
    let mut watched = Watched {
        root: wish.disk.root.clone(),
        dir: wish.mount.as_ref().map(|mount| mount.dir.clone()),
        whole_host: started.supervisor.is_some(),
        away: progress.away.borrow().clone(),
    };
    let mut was_known = false;
    while let Ok(Some(host)) = changes.message().await {
        let seen = watched.look(&host);
        progress.away.borrow_mut().clone_from(&watched.away);
        let is_known = host.disks.iter().any(|disk| disk.root == watched.root);
        if was_known && !is_known {
            // For good: if it is there again, another command has added it, and it is that one's to stop.
            progress.is_removed.set(true);
            started.disk = false;
        }
        was_known = is_known;
        match seen {
            Seen::Same => {}
            Seen::Note(note) => say(&format!("delugefs: {}", progress.here.say(&escape_line(&note)))),
            Seen::End(failure) => return Ok(Ending::Child(failure)),
        }
    }
    Ok(Ending::Supervisor)
}

fn is_gone(supervisor: &mut Option<Child>) -> std::io::Result<bool> {
    match supervisor {
        Some(child) => Ok(child.try_wait()?.is_some()),
        None => Ok(false),
    }
}

async fn add(control: &mut Control, wish: &Wish, started: &mut Started, is_removed: bool) -> Result<(), UserError> {
    // True also while the call is under way: interrupted now, it has to be taken back.
    started.disk = !is_removed;
    started.processes = true;
    let refused = |error: &UserError| error.exit != Exit::NoSupervisor;
    if !is_removed && let Err(error) = answer(control.add_disk(wish.disk.clone()).await) {
        // That others have it, or that the request is wrong, no disk that comes back mends.
        let is_away = match wish.disk.was_up {
            true => !matches!(error.exit, Exit::InUse | Exit::Usage | Exit::NoSupervisor),
            false => error.exit == Exit::NoDisk,
        };
        if is_away {
            without(control, wish, started, error).await?;
        } else {
            started.disk = !refused(&error);
            started.processes = started.disk;
            return Err(error);
        }
    }
    if let Some(mount) = &wish.mount {
        started.mount = true;
        paths::make_mountpoint(&mount.dir);
        answer(control.add_mount(mount.clone()).await).inspect_err(|error| started.mount = !refused(error))?;
    }
    Ok(())
}

/// The disk's folder is not there, or what was served cannot be now. If it was before, the host's other disks go on; who starts anew
/// may have mistyped it, and is told of them.
async fn without(control: &mut Control, wish: &Wish, started: &mut Started, error: UserError) -> Result<(), UserError> {
    let root = &wish.disk.root;
    let host = answer(control.status(pb::StatusRequest {}).await)?;
    let is_ours = started.supervisor.is_some();
    if wish.disk.was_up && (is_ours || wish.mount.is_some()) && others(&host, root).next().is_some() {
        return Ok(()); // the watch says so
    }
    (started.disk, started.processes) = (false, false);
    let Some(other) = others(&host, root).next().filter(|_| !wish.disk.create) else { return Err(error) };
    let (cluster, folder) = (&wish.disk.cluster, quoted(&other.root));
    let mount = wish.mount.as_ref().map(|mount| quoted(&mount.dir));
    let then = match (is_ours, mount) {
        (true, None) => format!("without it this host runs from its other disks by `delugefs run {cluster} {folder}`"),
        (true, Some(dir)) => {
            format!("without it this host runs from its other disks by `delugefs run {cluster} {folder} --mount {dir}`")
        }
        (false, None) => "`delugefs disks` lists the disks of this host that are there".to_owned(),
        (false, Some(dir)) => format!("`delugefs mount {dir}` mounts another disk of this host"),
    };
    let hint = error.hint.clone().map(|hint| hint + "; ").unwrap_or_default();
    Err(error.hint(hint + &then))
}

/// What is wrong with the arguments is said before anything is started.
fn check(arguments: &Arguments) -> Result<(), UserError> {
    if !is_cluster_name(&arguments.cluster) {
        return Err(no_cluster_name(&arguments.cluster).into());
    }
    if let Some(token) = &arguments.join {
        let token = token.parse().map_err(|error| UserError::from(no_token(&error)))?;
        check_disk(&arguments.root, &token, &arguments.cluster)?;
    }
    arguments.net.check()?;
    match arguments.peers.iter().find(|peer| !is_address(peer)) {
        Some(peer) => Err(no_peer_address(peer)),
        None => Ok(()),
    }
}

/// What was typed for the supervisor, which one that runs already does not hear of.
fn unheeded(run_dir: &Path, arguments: &Arguments) -> Option<String> {
    // The first line; that of the state directory has a second one.
    let pid = |lock: &Path| std::fs::read_to_string(lock).ok()?.lines().next().map(str::to_owned);
    // The same one has both, unless it is another directory than its own.
    let is_other = |dir: &&PathBuf| pid(&rundir::state_lock(dir)) != pid(&rundir::supervisor_lock(run_dir));
    let named = [
        arguments.state_dir.as_ref().filter(is_other).map(|_| "--state-dir"),
        // Who sets the variable says it of every command.
        (arguments.no_mdns && std::env::var_os("DELUGEFS_NO_MDNS").is_none()).then_some("--no-mdns"),
        (!arguments.peers.is_empty()).then_some("--peer"),
    ];
    let named: Vec<&str> = named.into_iter().flatten().collect();
    (!named.is_empty()).then(|| {
        format!(
            "a supervisor runs here already, so this does nothing: {}. It is the supervisor's, and heeded at its start: stop it \
             (`delugefs stop`) and repeat this, or name it to `delugefs-supervisor`",
            named.join(", ")
        )
    })
}

fn wish(arguments: &Arguments) -> anyhow::Result<Wish> {
    check(arguments)?;
    let root = paths::typed(&arguments.root)?;
    let uid = uid_of(arguments.user.as_deref()).map_err(UserError::from)?;
    let dir = arguments.mount.as_deref().map(paths::typed).transpose()?;
    if let Some(dir) = &dir {
        mountpoint::check_driver().map_err(UserError::from)?;
        mountpoint::check(Path::new(dir), Path::new(&root), &sys::delugefs_mounts()?).map_err(UserError::from)?;
    }
    if !Path::new(&root).join(DISK_TOML).exists() {
        arguments.net.check_port()?; // that of a disk that is there may be in use by itself
    }
    let user = arguments.user.clone().unwrap_or_default();
    Ok(Wish {
        // Of all disks of this host it shows this one, which is there: another may be away, or go before.
        mount: dir.map(|dir| pb::AddMountRequest { dir, user, remember: false, root: root.clone() }),
        disk: pb::AddDiskRequest {
            root,
            create: arguments.create,
            cluster: arguments.cluster.clone(),
            allow_uids: uid.into_iter().collect(),
            remember: false,
            net: Some(arguments.net.settings()),
            cluster_id: Vec::new(),
            was_up: false,
        },
    })
}

/// A disk that is there already and belongs to another cluster would be refused when the invitation is used up.
fn check_disk(root: &Path, token: &Token, cluster: &str) -> Result<(), UserError> {
    let Ok(disk) = DiskToml::read(root) else { return Ok(()) };
    if disk.cluster == cluster && disk.cluster_id() == Some(token.cluster) {
        return Ok(());
    }
    let text = format!("{} is a disk of another cluster, which is called {}", root.display(), disk.cluster);
    Err(UserError::new(Exit::WrongCluster, text).hint("name an empty or a new folder to join with"))
}

/// `started` stays `None` when another one was faster; that one is used.
async fn start_supervisor(run_dir: &Path, arguments: &Arguments, started: &mut Option<Child>) -> Result<(), Ended> {
    const PROGRAM: &str = "delugefs-supervisor";
    let mut command = Command::new(libexec::find(PROGRAM));
    command.arg("--run-dir").arg(run_dir).stdin(Stdio::null()).stdout(Stdio::piped());
    if let Some(dir) = &arguments.state_dir {
        command.arg("--state-dir").arg(dir);
    }
    if arguments.no_mdns {
        command.arg("--no-mdns");
    }
    for peer in &arguments.peers {
        command.arg("--peer").arg(peer);
    }
    // A Ctrl-C is for us alone: the supervisor stops mounts and disks in their order when we say so.
    let child = command.process_group(0).spawn().with_context(|| format!("cannot start {PROGRAM}"))?;
    let child = started.insert(child); // to be stopped also when we are interrupted now
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said).await?;
    }
    if said.trim_end() == "ready" {
        return Ok(());
    }
    let status = child.wait().await?;
    *started = None;
    let exit = status.code().map_or(Exit::Failure, Exit::from_code);
    if exit == Exit::InUse && client::connect(run_dir).await.is_ok() {
        return Ok(());
    }
    // It has said why on the stderr we share.
    Err(Ended::Reported(if exit == Exit::Ok { Exit::Failure } else { exit }))
}

/// `false`: the supervisor was killed before it could.
async fn stop(run_dir: &Path, wish: &Wish, mut started: Started) -> anyhow::Result<bool> {
    let Some(mut supervisor) = started.supervisor.take() else {
        if let Ok(mut control) = client::connect(run_dir).await {
            let dir = wish.mount.as_ref().filter(|_| started.mount).map(|mount| mount.dir.clone());
            // What is not known any more somebody else has taken away. Whatever comes of the mount, the disk is ours to stop.
            let mut failed = None;
            if let Some(dir) = dir {
                let removed = answer(control.remove_mount(pb::RemoveMountRequest { dir, release: true }).await);
                failed = removed.err().filter(|error| error.exit != Exit::BadMountpoint);
            }
            if started.disk {
                let request = pb::RemoveDiskRequest { root: wish.disk.root.clone(), release: true };
                let removed = answer(control.remove_disk(request).await);
                failed = failed.or(removed.err().filter(|error| error.exit != Exit::NoDisk));
            }
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        return Ok(true);
    };
    if let Some(pid) = supervisor.id().and_then(|pid| i32::try_from(pid).ok()) {
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot stop the supervisor")?;
    }
    match tokio::time::timeout(STOP, supervisor.wait()).await {
        Ok(status) => match status?.code() {
            Some(0) => Ok(true),
            Some(_) => Err(UserError::new(Exit::Failure, "the supervisor did not stop cleanly").into()),
            None => Ok(!started.processes),
        },
        Err(_) => Err(UserError::new(Exit::Failure, "the supervisor does not stop")
            .hint("`delugefs status` shows what it is waiting for")
            .into()),
    }
}

/// SIGINT, SIGTERM, SIGHUP; the last not where it is ignored, as under nohup(1).
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let open = |kind| signal(kind).context("cannot handle signals");
        let hangup = (!sys::ignores(Signal::SIGHUP)).then(|| open(SignalKind::hangup())).transpose()?;
        Ok(Self { interrupt: open(SignalKind::interrupt())?, terminate: open(SignalKind::terminate())?, hangup })
    }

    async fn recv(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}
