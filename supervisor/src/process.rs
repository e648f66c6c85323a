//! One task per process: starts it or finds it, reads its `ready` line, hands on its log, carries signals to it, and
//! tells the owner when it has ended and why. It decides nothing.
//!
//! ```text
//! owner --Signal--> task --SIGTERM/SIGKILL--> process
//! owner <--News---- task <--stdout: ready---- process --stderr--> run_dir/*.log --> task --> our stderr
//! ```
//!
//! A started process leads its own process group (a Ctrl-C meant for `delugefs run` must not reach it) and is not
//! killed when this task or the supervisor ends: mounts survive the supervisor.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use delugefs_proto::exit::Exit;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::libexec;
use crate::logtail::LogTail;
use crate::notes::{FRONTEND, Note, WORKER};
use crate::owner::{Event, News, Run, Served};
use crate::sys::{self, MountId};

/// How often a process that is not our child is looked at.
const WATCH: Duration = Duration::from_millis(250);

/// How to end a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// A process to look after.
#[derive(Debug)]
pub struct Job {
    /// Its life, for the owner.
    pub run: Run,
    /// [`WORKER`] or [`FRONTEND`].
    pub program: &'static str,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// The disk's folder, or the mountpoint.
    pub path: PathBuf,
    /// Mounts: local socket of the worker.
    pub socket: Option<PathBuf>,
    /// Where its note is kept.
    pub note: PathBuf,
    /// Stands before each line of its log; the disk's short id as soon as it is known.
    pub prefix: String,
}

/// What the owner gets to hear.
pub type Events = mpsc::UnboundedSender<Event>;

impl Job {
    /// Start the process, or adopt the frontend that is alive on the mountpoint.
    pub async fn start(self, events: Events, ends: mpsc::UnboundedReceiver<End>) {
        let news = |news| events.send(Event::Child { run: self.run, news }).is_ok();
        let failure = match self.living_frontend() {
            Some((pid, mounted)) => {
                news(News::Adopted { pid, mounted: Some(mounted) });
                self.watch(pid, &news, ends).await
            }
            None => self.child(&news, ends).await,
        };
        news(News::Ended(failure));
    }

    /// Watch a process that is not our child.
    pub async fn adopt(self, pid: u32, events: Events, ends: mpsc::UnboundedReceiver<End>) {
        // The owner ends only with the supervisor.
        let news = |news| events.send(Event::Child { run: self.run, news }).is_ok();
        let failure = self.watch(pid, &news, ends).await;
        news(News::Ended(failure));
    }

    /// A frontend that an earlier supervisor started for the same worker and that still serves the mountpoint.
    fn living_frontend(&self) -> Option<(u32, MountId)> {
        let note = Note::read_living(&self.note, self.program).filter(|note| note.path == self.path)?;
        let mounted = self.mounted()?;
        (note.socket == self.socket).then_some((note.pid, mounted))
    }

    /// What DelugeFS mount is on the mountpoint now.
    fn mounted(&self) -> Option<MountId> {
        let frontend = self.program == FRONTEND;
        frontend.then(|| sys::delugefs_at(&self.path).ok().flatten()).flatten()
    }

    async fn child(&self, news: &impl Fn(News) -> bool, mut ends: mpsc::UnboundedReceiver<End>) -> Failure {
        let before = self.mounted();
        let (mut child, pid, mut log) = match self.spawn() {
            Ok(started) => started,
            Err(error) => {
                let failure = Failure::new(Exit::Failure, format!("cannot start {}: {error}", self.program));
                let hint =
                    format!("install it beside delugefs-supervisor, or say where it is in {}", libexec::LIBEXEC_ENV);
                return if error.kind() == io::ErrorKind::NotFound { failure.hint(hint) } else { failure };
            }
        };
        news(News::Started { pid, at_s: sys::uptime_s() });
        let mut lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        let mut asked = None;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                line = next_line(&mut lines) => match line.map(|line| self.parse_ready(&line)) {
                    Some(Ok(ready)) => {
                        let served = if let News::WorkerReady(served) = &ready { Some(served) } else { None };
                        self.write_note(pid, served);
                        if let Some(served) = served {
                            log.set_prefix(delugefs_proto::disk::short_id(&served.disk_id));
                        }
                        news(ready);
                    }
                    Some(Err(line)) => tracing::debug!(program = self.program, line, "not a ready line"),
                    None => lines = None,
                },
                Some(end) = ends.recv() => {
                    asked = Some(end);
                    signal(&child, end);
                }
                () = tokio::time::sleep(log.pause()) => self.pump(&mut log),
            }
        };
        if let Err(error) = log.finish() {
            tracing::warn!(%error, program = self.program, "cannot read its log");
        }
        self.clean_up(pid, asked.is_some());
        let failure = match status {
            Ok(status) => self.explain(status, &log),
            Err(error) => Failure::new(Exit::Failure, format!("cannot wait for {}: {error}", self.program)),
        };
        // It may have mounted without coming to say so, or without our coming to hear it; an earlier supervisor's may have, too.
        if !matches!(failure.exit, Exit::Ok | Exit::InUse)
            && let Some(mounted) = self.mounted()
        {
            match asked {
                Some(End::Kill) if before.as_ref() != Some(&mounted) => detach_dead(&self.path, &[mounted], false),
                _ => {
                    news(News::Left { mounted });
                }
            }
        }
        failure
    }

    fn spawn(&self) -> io::Result<(Child, u32, LogTail)> {
        let (log, stderr) = LogTail::open(&crate::notes::log_beside(&self.note), &self.prefix)?;
        let mut command = Command::new(libexec::find(self.program));
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).process_group(0);
        let child = command.spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("it ended before it began"))?;
        // Not in the place of one that lives: that one has the folder, and ours will say so and end.
        if Note::read_living(&self.note, self.program).is_none() {
            self.write_note(pid, None);
        }
        Ok((child, pid, log))
    }

    fn write_note(&self, pid: u32, served: Option<&Served>) {
        let note = Note { pid, path: self.path.clone(), socket: self.socket.clone(), served: served.cloned() };
        if let Err(error) = note.write(&self.note) {
            tracing::error!(%error, "cannot write {}: the next supervisor will not know the process", self.note.display());
        }
    }

    async fn watch(&self, pid: u32, news: &impl Fn(News) -> bool, mut ends: mpsc::UnboundedReceiver<End>) -> Failure {
        // A worker started by hand logs to where its starter wanted.
        let log = crate::notes::log_beside(&self.note);
        let mut log = log.exists().then(|| LogTail::open(&log, &self.prefix).ok()).flatten().map(|(log, _)| log);
        let mut poll = tokio::time::interval(WATCH);
        let mounted = self.mounted();
        let mut asked = false;
        while sys::is_running(pid, self.program) {
            tokio::select! {
                Some(end) = ends.recv() => {
                    asked = true;
                    // Just seen alive under its name: the number has not been given to another process.
                    send(pid, end, false);
                }
                _ = poll.tick() => {}
            }
            if let Some(log) = &mut log {
                self.pump(log);
            }
        }
        self.clean_up(pid, asked);
        // Its exit code went to whoever is its parent. A frontend that unmounted ended well, whoever wanted it; one that was found
        // while it was about to mount may have covered what a dead one had left.
        let layers = sys::layers_at(&self.path).unwrap_or_default();
        let well = match (self.program == FRONTEND, &mounted) {
            (true, Some(mounted)) => !layers.contains(mounted),
            (frontend, _) => asked && !frontend,
        };
        if !well && let Some(mounted) = self.mounted() {
            news(News::Left { mounted });
        }
        let exit = if well { Exit::Ok } else { Exit::Failure };
        let reported = log.and_then(|mut log| log.finish().ok().and_then(|()| log.reported(self.program, exit)));
        reported.unwrap_or_else(|| Failure::new(exit, format!("{} ended", self.program)))
    }

    fn pump(&self, log: &mut LogTail) {
        if let Err(error) = log.pump() {
            tracing::warn!(%error, program = self.program, "cannot read its log");
        }
    }

    fn clean_up(&self, pid: u32, asked: bool) {
        if Note::read(&self.note).is_some_and(|note| note.pid == pid) {
            let _ = std::fs::remove_file(&self.note); // it is checked before use in any case
        }
        if asked {
            let _ = std::fs::remove_file(crate::notes::log_beside(&self.note)); // read to its end
        }
    }

    fn parse_ready(&self, line: &str) -> Result<News, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (self.program, words.as_slice()) {
            (FRONTEND, ["ready"]) => Ok(News::FrontendReady { mounted: self.mounted() }),
            (WORKER, ["ready", disk_id, local, grpc]) => Ok(News::WorkerReady(Served {
                disk_id: (*disk_id).into(),
                local_socket: local.into(),
                grpc_socket: grpc.into(),
            })),
            _ => Err(line.into()),
        }
    }

    fn explain(&self, status: ExitStatus, log: &LogTail) -> Failure {
        let Some(code) = status.code() else {
            let signal = status.signal().unwrap_or(0);
            let name = Signal::try_from(signal).map_or_else(|_| signal.to_string(), |signal| signal.to_string());
            return Failure::new(Exit::Failure, format!("{} was killed by {name}", self.program));
        };
        let exit = Exit::from_code(code);
        if exit == Exit::Ok {
            return Failure::new(exit, format!("{} ended", self.program));
        }
        log.reported(self.program, exit).unwrap_or_else(|| {
            let words = log.last_line().map(|line| format!(": {line}")).unwrap_or_default();
            Failure::new(exit, format!("{} ended with exit code {code}{words}", self.program))
        })
    }
}

/// How long a mount gets to say that it is dead.
const PROBE_WAIT: Duration = Duration::from_secs(3);
const PROBE_POLL: Duration = Duration::from_millis(10);

/// Detach these mounts, if one of them is still the uppermost one at its place: then its frontend died without unmounting. `only_dead`: it
/// may be somebody else's, who serves it.
pub fn detach_dead(dir: &Path, mounted: &[MountId], only_dead: bool) {
    let detach = || -> io::Result<bool> {
        let layers = sys::layers_at(dir)?;
        let top = sys::delugefs_at(dir)?;
        if !top.is_some_and(|top| mounted.contains(&top)) || (only_dead && !is_dead(dir)) {
            return Ok(false);
        }
        for layer in layers.iter().rev() {
            if sys::delugefs_at(dir)?.as_ref() == Some(layer) {
                sys::detach(dir)?;
            }
        }
        Ok(true)
    };
    match detach() {
        Ok(true) => tracing::info!(dir = %dir.display(), "detached the dead mount"),
        Ok(false) => {}
        Err(error) => tracing::error!(dir = %dir.display(), %error, "cannot detach the dead mount"),
    }
}

/// Whether a mount says that nobody serves it. Asked by a process of its own, which may get stuck.
fn is_dead(dir: &Path) -> bool {
    let mut ask = std::process::Command::new(libexec::find(FRONTEND));
    ask.arg("--probe").arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let asked = ask.spawn().inspect_err(|error| tracing::warn!(%error, "cannot ask an old mount"));
    asked.is_ok_and(|asked| says_yes(asked, PROBE_WAIT))
}

/// Whether a process ends within this time, and well. Else it is killed, and waited for by a thread of its own: it may be stuck for good.
fn says_yes(mut asked: std::process::Child, wait: Duration) -> bool {
    let end = Instant::now() + wait;
    loop {
        match asked.try_wait() {
            Ok(None) if Instant::now() < end => std::thread::sleep(PROBE_POLL),
            Ok(Some(status)) => return status.success(),
            _ => {
                let _it_may_be_stuck_for_good = asked.kill();
                let waits = std::thread::Builder::new().name("probe".into()).spawn(move || asked.wait());
                if let Err(error) = waits {
                    tracing::warn!(%error, "nobody waits for the end of what asked an old mount");
                }
                return false;
            }
        }
    }
}

/// `None` at the end; never when there is nothing to read from.
async fn next_line(lines: &mut Option<Lines<BufReader<ChildStdout>>>) -> Option<String> {
    match lines {
        Some(lines) => lines.next_line().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

/// A child that was not waited for keeps its process id, so this cannot reach another process.
fn signal(child: &Child, end: End) {
    if let Some(pid) = child.id() {
        send(pid, end, true);
    }
}

fn send(pid: u32, end: End, leads_group: bool) {
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw) else { return };
    let sent = match end {
        End::Terminate => kill(pid, Signal::SIGTERM),
        End::Kill if leads_group => killpg(pid, Signal::SIGKILL),
        End::Kill => kill(pid, Signal::SIGKILL),
    };
    if let Err(error) = sent {
        tracing::debug!(%pid, %error, "cannot signal");
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn nothing_is_left_of_a_probe_that_says_nothing() {
        let run = |command: &str, argument: &str| std::process::Command::new(command).arg(argument).spawn().unwrap();
        assert!(says_yes(run("true", ""), PROBE_WAIT) && !says_yes(run("false", ""), PROBE_WAIT));
        let stuck = run("sleep", "1000");
        let pid = Pid::from_raw(stuck.id() as i32);
        assert!(!says_yes(stuck, Duration::ZERO));
        // As a zombie it would have its number still.
        let end = Instant::now() + Duration::from_secs(30);
        while kill(pid, None) != Err(Errno::ESRCH) {
            assert!(Instant::now() < end, "it is there still");
            std::thread::yield_now();
        }
    }
}
