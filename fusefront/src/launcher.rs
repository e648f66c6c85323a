//! The process that stays root: it mounts, hands /dev/fuse to the serving process, and unmounts at the end. When that
//! one crashed, the dead mount stays until the next start. It serves nothing itself and opens nothing from the cluster.
//!
//! ```text
//!  launcher (root) ---- socket, the child's standard input ---- delugefs-fusefront --serve (--user)
//!    the child is linked to the worker                <- LINKED
//!    mount(2), then                           MOUNTED + fd ->
//!    the kernel's greeting is answered                <- ATTACHED      read-ahead is raised, `ready` printed
//!    only when a normal unmount is refused            STOP ->
//! ```
//! The end of the socket means that the other one is gone: a child without its launcher exits, for nobody would
//! unmount what it serves. (The socket would also be the way to FUSE passthrough, whose descriptors only root may
//! register. It is not used: the kernel lets an inode be passed through or cached, not both (its fs/fuse/iomode.c), so a
//! passed-through reader would make every open for writing fail with EIO.)

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use delugefs_proto::escape::quoted;
use delugefs_proto::exit::{Exit, UserError};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

use crate::cli::Args;
use crate::os::Mounted;
use crate::serve::Server;
use crate::{fdpass, mounts, os, privileges};

const LINKED: u8 = b'L';
const MOUNTED: u8 = b'M';
const ATTACHED: u8 = b'A';
const STOP: u8 = b'S';

/// Read-ahead of the mount: eight times the default, because each piece is a request. Measured: no gain above.
const READ_AHEAD_KIB: u32 = 1024;
/// How long a busy mount is waited for before it is detached.
const UNMOUNT_WAIT: Duration = Duration::from_secs(2);
const UNMOUNT_PAUSE: Duration = Duration::from_millis(50);
/// How often the child is looked at.
const DYING_POLL: Duration = Duration::from_millis(250);
/// How long the child may take to hand everything over to the worker.
const CHILD_WAIT: Duration = Duration::from_secs(40);

/// Mount, start the serving process, and stay until it is over.
pub fn run(args: &Args, cluster_dir: &Path) -> anyhow::Result<Exit> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    // Blocked for good: they are waited for, never delivered.
    signals.thread_block().context("blocking signals")?;
    if let Some(user) = &args.user {
        privileges::find(user)?;
    }
    let probe = |dir: &Path, not_by| {
        let mut ask = this_program();
        ask.arg("--probe").arg(dir);
        mounts::probe(ask, || os::is_served(dir, not_by))
    };
    let dir = mounts::prepare(cluster_dir, args.exact, |dir| probe(dir, None))?;
    let fuse = open_fuse()?;

    let (ours, theirs) = UnixStream::pair().context("making a socket")?;
    let mut child = start_child(args, theirs)?;
    tracing::debug!(pid = child.id(), "serving process started");
    let Some(cluster) = expect(&ours, LINKED)? else { return Ok(exit_of(child.wait()?)) };

    let clear = |dir: &Path| os::abort(dir).context("clearing away a dead mount");
    // Our own child looks like one that serves what is there.
    let served_by = child.id();
    let others = |dir: &Path| probe(dir, Some(served_by));
    let covered = mounts::can_cover(&dir, others, clear)?;
    if covered.is_none() {
        mounts::clear(&dir, others, clear)?;
        mounts::check_empty(&dir)?;
    }
    os::mount(fuse.as_fd(), &dir, &cluster, covered.as_ref()).map_err(|error| match error.raw_os_error() {
        Some(code) if covered.is_some() && code == Errno::EBUSY as i32 => {
            UserError::new(Exit::InUse, format!("something else was mounted on {} just now", dir.display()))
                .hint(format!("run `umount {}` first, or choose another directory", dir.display()))
        }
        _ => UserError::new(Exit::NotPermitted, format!("cannot mount on {}: {error}", dir.display()))
            .hint("check that FUSE is available: `modprobe fuse`, or `kldload fusefs`"),
    })?;
    tracing::info!(dir = %dir.display(), "mounted");
    let mount = Mount { mounted: mounts::top(&dir)?, dir };
    fdpass::send(&ours, MOUNTED, Some(fuse.as_fd())).context("handing over /dev/fuse")?;
    // The serving process has the only descriptor now: when it dies, the kernel gives up on its requests at once.
    drop(fuse);
    if expect(&ours, ATTACHED)?.is_none() {
        mount.detach(); // it has never answered
        return mount.after(child.wait()?);
    }
    if let Some(mounted) = &mount.mounted
        && let Err(error) = os::set_read_ahead(mounted, READ_AHEAD_KIB)
    {
        tracing::warn!(%error, "cannot raise the read-ahead of the mount");
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "ready").and_then(|()| stdout.flush()).context("saying ready")?;

    let exit = match wait(signals, &ours, child.id())? {
        Happened::Signal(signal) => {
            tracing::info!(%signal, "unmounting");
            unmount(&mount, &ours);
            // Before the child has finished, which may take longer than we are given.
            clear_covered(&mount.dir, others, clear);
            finish(&mount, &mut child)
        }
        Happened::ChildGone => mount.after(child.wait()?),
        Happened::ChildDying => {
            mount.give_up();
            mount.after(child.wait()?)
        }
    }?;
    clear_covered(&mount.dir, others, clear);
    Ok(exit)
}

/// When ours is unmounted: what it has covered is nobody's any more.
fn clear_covered(dir: &Path, probe: impl Fn(&Path) -> mounts::Liveness, clear: impl Fn(&Path) -> anyhow::Result<()>) {
    if let Err(error) = mounts::clear(dir, probe, clear) {
        tracing::warn!("what was mounted on {} before is still there: {error:#}", dir.display());
    }
}

enum Happened {
    Signal(Signal),
    ChildGone,
    /// Killed, but a thread of it waits in the kernel for somebody who waits for it: it keeps its descriptors, the socket
    /// among them, until the connection is aborted.
    ChildDying,
}

/// The first thing that happens: a signal, the end of the child's socket, or its death without that. (Not SIGCHLD:
/// FreeBSD throws it away where nobody handles it, also when it is waited for.)
fn wait(signals: SigSet, socket: &UnixStream, child: u32) -> anyhow::Result<Happened> {
    let (sender, happened) = crossbeam_channel::bounded(3);
    let socket = socket.try_clone()?;
    let on_signal = sender.clone();
    let named = |name: &str| std::thread::Builder::new().name(name.into());
    // Whatever comes second finds nobody listening any more.
    named("signals").spawn(move || match signals.wait() {
        Ok(signal) => drop(on_signal.send(Happened::Signal(signal))),
        Err(error) => tracing::error!(%error, "cannot wait for signals"),
    })?;
    let on_dying = sender.clone();
    named("dying").spawn(move || {
        let mut seen = 0;
        // Twice: a process that ends in order is in that state for a moment, too.
        while seen < 2 {
            std::thread::sleep(DYING_POLL);
            seen = if os::is_dying(child) { seen + 1 } else { 0 };
        }
        drop(on_dying.send(Happened::ChildDying));
    })?;
    named("child").spawn(move || {
        while let Ok(Some(_)) = fdpass::receive(&socket) {}
        drop(sender.send(Happened::ChildGone));
    })?;
    happened.recv().context("waiting for a signal")
}

fn this_program() -> Command {
    Command::new(std::env::current_exe().unwrap_or_else(|_| "delugefs-fusefront".into()))
}

fn open_fuse() -> anyhow::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/fuse").map_err(|error| {
        UserError::new(Exit::NotPermitted, format!("cannot open /dev/fuse: {error}"))
            .hint("load the driver: `modprobe fuse`, or `kldload fusefs`")
    })?;
    Ok(file.into())
}

fn start_child(args: &Args, socket: UnixStream) -> anyhow::Result<Child> {
    let mut command = this_program();
    command.arg("--serve");
    for (option, value) in [("--worker", &args.worker), ("--mount", &args.mount)] {
        command.arg(option).args(value);
    }
    if let Some(folder) = &args.fallback {
        command.arg("--fallback").arg(folder);
    }
    for (option, value) in [("--user", &args.user), ("--name", &args.name)] {
        if let Some(value) = value {
            command.arg(option).arg(value);
        }
    }
    command.arg("--cache-entries").arg(args.cache_entries.to_string());
    // A group of its own: Ctrl-C is for the launcher, which then unmounts in order.
    command.process_group(0);
    command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(Stdio::null());
    command.spawn().context("starting the serving process")
}

/// Wait for the child's message, and the text in it; `None` if the child is gone.
fn expect(socket: &UnixStream, message: u8) -> anyhow::Result<Option<String>> {
    let Some((byte, _)) = fdpass::receive(socket)? else { return Ok(None) };
    if byte != message {
        bail!("the serving process said {byte:#x} instead of {message:#x}");
    }
    let mut text = Vec::new();
    loop {
        match fdpass::receive(socket)? {
            None => return Ok(None),
            Some((b'\n', _)) => return Ok(Some(String::from_utf8_lossy(&text).into_owned())),
            Some((byte, _)) => text.push(byte),
        }
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::from_code(code),
        (None, signal) => {
            tracing::error!(?signal, "the serving process was killed");
            Exit::Failure
        }
    }
}

struct Mount {
    dir: PathBuf,
    mounted: Option<Mounted>,
}

impl Mount {
    /// Whether what is on the directory is what we mounted.
    fn is_there(&self) -> bool {
        self.mounted.is_some() && mounts::top(&self.dir).is_ok_and(|top| top == self.mounted)
    }

    fn detach(&self) {
        if self.is_there()
            && let Err(error) = os::unmount(&self.dir, true)
        {
            tracing::error!(%error, "cannot unmount; run `{}`", umount(os::UMOUNT_DEAD, &self.dir));
        }
    }

    /// For a serving process that is dying and cannot.
    fn give_up(&self) {
        tracing::error!("the serving process was killed inside the kernel: giving up what waits for it");
        if let Some(mounted) = &self.mounted
            && let Err(error) = os::give_up(mounted)
        {
            tracing::error!(%error, "cannot give it up; run `{}`", umount("umount -f", &self.dir));
        }
    }

    /// The serving process has ended by itself: unmounted by somebody, or crashed. Then the dead mount stays, until the
    /// next one takes its place: in the bare directory programs would go on without noticing.
    fn after(&self, status: ExitStatus) -> anyhow::Result<Exit> {
        let exit = exit_of(status);
        if exit != Exit::Ok {
            let error = UserError::new(exit, format!("the process that served {} ended", self.dir.display()));
            let hint = format!("start it again, or `{}`", umount(os::UMOUNT_DEAD, &self.dir));
            bail!(error.hint(hint));
        }
        Ok(exit)
    }
}

/// The command, as it is typed into a shell.
fn umount(command: &str, dir: &Path) -> String {
    format!("{command} {}", quoted(&dir.display().to_string()))
}

/// Unmount; what is in use is detached, and the child told to end all the same.
fn unmount(mount: &Mount, socket: &UnixStream) {
    let deadline = Instant::now() + UNMOUNT_WAIT;
    while mount.is_there() {
        match os::unmount(&mount.dir, false) {
            Ok(()) => break,
            Err(Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(UNMOUNT_PAUSE),
            Err(error) => {
                tracing::warn!(%error, "in use; detaching");
                mount.detach();
                // Fails only if the child is gone already.
                let _gone = fdpass::send(socket, STOP, None);
                break;
            }
        }
    }
}

/// Let the child finish.
fn finish(mount: &Mount, child: &mut Child) -> anyhow::Result<Exit> {
    let deadline = Instant::now() + CHILD_WAIT;
    let (mut dying_since, mut killed) = (None, false);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline && !killed {
            child.kill().context("ending the serving process")?;
            killed = true;
        }
        if os::is_dying(child.id()) {
            let since = *dying_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= DYING_POLL {
                mount.give_up(); // again and again, should it not help the first time
            }
        }
        std::thread::sleep(UNMOUNT_PAUSE);
    };
    if killed {
        bail!("the serving process did not finish in time; the diskworker will seal what it left open");
    }
    Ok(exit_of(status))
}

/// The serving process: the launcher's socket is its standard input.
pub fn child(args: &Args) -> anyhow::Result<Exit> {
    privileges::raise_descriptor_limit();
    match (&args.user, &args.worker) {
        (Some(user), _) => privileges::drop_to(user)?,
        (None, Some(worker)) => privileges::drop_rights_of_root(worker)?,
        (None, None) => {}
    }
    let launcher = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let server = Arc::new(Server::connect(args)?);
    say(&launcher, LINKED, &server.cluster)?;
    let fuse = match fdpass::receive(&launcher)? {
        Some((MOUNTED, Some(fuse))) => fuse,
        // It could not mount, and says why itself.
        None => return Ok(Exit::Failure),
        Some((byte, _)) => bail!("the launcher said {byte:#x} instead of handing over /dev/fuse"),
    };
    let session = server.attach(fuse)?;
    say(&launcher, ATTACHED, "")?;
    {
        let server = server.clone();
        std::thread::Builder::new().name("launcher".into()).spawn(move || {
            let told = fdpass::receive(&launcher);
            if !matches!(told, Ok(Some(_))) {
                // Nobody would unmount what we serve, and the next launcher waits for the place. No byte that was
                // written is only here: the diskworker seals what the session leaves open.
                tracing::error!(?told, "the launcher is gone");
                std::process::exit(Exit::Failure as i32);
            }
            // The mount is detached; what is still open in it cannot be served any longer.
            server.finish();
            std::process::exit(Exit::Ok as i32);
        })?;
    }
    let served = session.run();
    server.finish();
    served.context("serving the mount")?;
    Ok(Exit::Ok)
}

fn say(launcher: &UnixStream, message: u8, text: &str) -> anyhow::Result<()> {
    let text = text.replace('\n', " ");
    let mut line = vec![message];
    line.extend(text.bytes());
    line.push(b'\n');
    let mut socket: &UnixStream = launcher;
    socket.write_all(&line).context("answering the launcher")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_takes_the_directory_as_one_word() {
        assert_eq!(umount("umount -f", Path::new("/mnt/my films")), "umount -f '/mnt/my films'");
        assert_eq!(umount("umount -l", Path::new("/films")), "umount -l /films");
    }
}
