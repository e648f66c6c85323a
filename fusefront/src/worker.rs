//! The way to the diskworker: a pool of greeted connections that belong to one link. A link is one session with one
//! run of the worker; it lives as long as its events connection, which the events thread owns ([`crate::events`]).
//! That thread takes links down and publishes new ones; everybody else only waits for one and calls through it.
//!
//! A worker that hangs keeps its connections. So while a request waits for long, the worker is asked whether it still greets; if not, and
//! another worker of this host does, the link is given up with all its connections ([`Worker::desert`]).
//!
//! A request whose answer was lost is sent again with `retry` set. What was open in a lost link is gone for the
//! worker, so answers carry the number of the link they came through.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::random_u64;
use delugefs_proto::local::client::{Client, Disconnected, refusal};
use delugefs_proto::local_pb::{Reply, Request, Welcome, request};
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use crate::call::{Caller, Outcome, Patience, Stop};

/// How long an operation waits for the worker to come back before its caller gets EIO: a restart of the worker with
/// a journal to replay takes seconds, and a program is better off waiting than failing.
pub const RECONNECT_WAIT: Duration = Duration::from_secs(30);
/// How long the worker may be away before another one of this host is taken: a restart does not take that long, and what
/// it alone knows (changes of the last second, files being written) is out of sight until it comes back.
pub const FAILOVER_AFTER: Duration = Duration::from_secs(12);
/// Of the time until another one is taken: a request that waits for so long makes us ask whether the worker hangs. Nothing else does.
const SUSPICION: u32 = 6;
/// Of the same: so often the worker may leave the greeting unanswered.
const GREETINGS: u32 = 2;
/// Pause between two tries to connect.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long a worker may take to greet. Links are made by one thread, which must not wait for a worker that hangs: another may
/// be there to serve, or ours come back meanwhile.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to take one open file back, for which it looks at its disk.
const ADOPTING_PATIENCE: Duration = Duration::from_secs(10);
/// Connections kept for the next request; more are closed after use.
const IDLE_MAX: usize = 16;

/// An answer with what is needed to judge its age.
#[derive(Debug)]
pub struct Answer {
    /// The worker's words, errno included.
    pub reply: Reply,
    /// The descriptor that came with them.
    pub fd: Option<OwnedFd>,
    /// Number of the link it came through.
    pub link: u64,
    /// The request was sent before, and may have been carried out then.
    pub retried: bool,
}

impl Answer {
    /// When it was made.
    pub fn stamp(&self) -> Stamp {
        Stamp { link: self.link, seq: self.reply.seq }
    }

    /// Turn the errno of the answer into an error.
    pub fn check(self) -> FsResult<Self> {
        match self.reply.errno {
            0 => Ok(self),
            errno => Err(FsError::from_reply(errno, self.reply.message)),
        }
    }
}

/// A point in the worker's history; comparable only within one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the link.
    pub link: u64,
    /// The worker's change counter.
    pub seq: u64,
}

/// A link being set up: connected, greeted, not yet published.
#[derive(Debug)]
pub struct NewLink {
    /// Its number: counts up from 1, with those that came to nothing.
    pub number: u64,
    /// What the worker said of itself.
    pub welcome: Welcome,
    session: u64,
}

/// The pool. Shared by all threads.
#[derive(Debug)]
pub struct Worker {
    path: Mutex<PathBuf>,
    /// Where we are mounted, for who asks the worker.
    mount: PathBuf,
    /// Folder with the sockets of this host's other workers, and when to turn to them.
    fallback: Option<(PathBuf, Duration)>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    up: bool,
    link: u64,
    /// Number of the newest one that was begun.
    begun: u64,
    session: u64,
    run: u64,
    idle: Vec<Line>,
    /// Connections with a request under way, by number: how to break them off, and since when.
    busy: HashMap<u64, (Arc<UnixStream>, Instant)>,
    /// Of the newest connection.
    number: u64,
    /// Of the link that was lost.
    lost: Option<Instant>,
    /// That one's worker hangs: it is not asked first, nor waited for.
    hangs: bool,
    /// What the worker has said since to a connection that it refused, if that was the last that could not be made.
    refused: Option<String>,
    /// Name and id: another cluster may have the same name, and has other files.
    cluster: (String, String),
}

impl State {
    /// A connection that waits for a request, marked as busy.
    fn next_idle(&mut self) -> Option<Line> {
        let line = self.idle.pop()?;
        self.busy.insert(line.number, (line.socket.clone(), Instant::now()));
        Some(line)
    }
}

/// A connection for requests.
struct Line {
    client: Client,
    number: u64,
    socket: Arc<UnixStream>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("up", &self.up).field("link", &self.link).finish_non_exhaustive()
    }
}

impl Worker {
    /// A pool for the worker at this socket; no connection is made yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: Mutex::new(path.to_owned()),
            mount: PathBuf::new(),
            fallback: None,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Tell the worker where the file system is mounted.
    #[must_use]
    pub fn mounted_on(self, dir: &Path) -> Self {
        Self { mount: dir.to_owned(), ..self }
    }

    /// When it is away for so long, take another worker of its cluster that has a socket in this folder.
    #[must_use]
    pub fn with_fallback(self, folder: &Path, after: Duration) -> Self {
        Self { fallback: Some((folder.to_owned(), after)), ..self }
    }

    /// The socket's path.
    pub fn path(&self) -> PathBuf {
        self.path.lock().clone()
    }

    /// Connect the events connection of a new link. For the events thread, one at a time.
    pub fn connect(&self) -> io::Result<(Client, NewLink)> {
        // A new session each time: the worker may only now find out that the old one ended, and would take the new
        // one with it if they had the same number.
        let session = random_u64();
        let instead = if self.state.lock().hangs { self.other(session) } else { None };
        let client = match instead {
            Some(client) => client,
            None => match Client::connect_events(&self.path(), session, &self.mount, GREETING_PATIENCE) {
                Ok(client) => client,
                Err(error) => {
                    self.note(&error);
                    self.other(session).ok_or(error)?
                }
            },
        };
        let number = {
            let mut state = self.state.lock();
            state.begun += 1;
            state.begun
        };
        let link = NewLink { number, welcome: client.welcome.clone(), session };
        Ok((client, link))
    }

    /// The events connection of another worker, if it is time for that.
    fn other(&self, session: u64) -> Option<Client> {
        let (_, after) = self.fallback.as_ref()?;
        {
            let state = self.state.lock();
            state.lost.filter(|since| state.hangs || since.elapsed() >= *after)?;
        }
        let (path, client) =
            self.others(|path| Client::connect_events(path, session, &self.mount, GREETING_PATIENCE))?;
        tracing::warn!("the disk is away: disk {} serves from now on", client.welcome.disk_id);
        *self.path.lock() = path;
        Some(client)
    }

    /// The first other worker of the cluster that greets.
    fn others(&self, connect: impl Fn(&Path) -> io::Result<Client>) -> Option<(PathBuf, Client)> {
        let (folder, _) = self.fallback.as_ref()?;
        let (cluster, ours) = (self.state.lock().cluster.clone(), self.path());
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "sock") && *path != ours);
        paths.into_iter().find_map(|path| {
            // The supervisor's socket does not understand the greeting, and hangs up.
            let client = connect(&path).ok()?;
            (cluster_of(&client.welcome) == cluster).then_some((path, client))
        })
    }

    /// How often [`Worker::is_waited_for`] is to be asked; `None` where no other worker can be turned to.
    pub fn suspicion(&self) -> Option<Duration> {
        Some(self.fallback.as_ref()?.1 / SUSPICION)
    }

    /// The link, if a request has waited on it for longer than [`Worker::suspicion`].
    pub fn is_waited_for(&self) -> Option<u64> {
        let long = self.suspicion()?;
        let state = self.state.lock();
        let waits = state.busy.values().any(|(_, since)| since.elapsed() >= long);
        (state.up && waits).then_some(state.link)
    }

    /// Whether the worker does not greet in the time that it is given, so often. Disks that are slow keep no worker from that.
    pub fn hangs(&self, goes_on: impl Fn() -> bool) -> bool {
        let Some((_, after)) = &self.fallback else { return false };
        // What is left of it when the first request has waited, and then up to as long for us to see it.
        let patience = (*after - *after / SUSPICION * 2) / GREETINGS;
        (0..GREETINGS).all(|_| {
            let greeted = Client::connect_within(&self.path(), random_u64(), patience);
            let silent =
                |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
            goes_on() && greeted.is_err_and(|error| silent(&error))
        })
    }

    /// Give up the link to a worker that hangs, if it is still this one and another worker is there: whoever waits asks that one instead.
    pub fn desert(&self, link: u64) -> bool {
        if self.others(|path| Client::connect_within(path, random_u64(), GREETING_PATIENCE)).is_none() {
            return false;
        }
        let mut state = self.state.lock();
        if !state.up || state.link != link {
            return false;
        }
        state.up = false;
        state.hangs = true;
        state.lost.get_or_insert_with(Instant::now);
        state.idle.clear();
        for (_, (socket, _)) in state.busy.drain() {
            // Fails only if the connection is gone already.
            let _gone = socket.shutdown(Shutdown::Both);
        }
        true
    }

    /// A connection of a link that is not published yet, to adopt handles through. Its calls do not wait for long either.
    pub fn connect_to(&self, link: &NewLink) -> io::Result<Client> {
        Client::connect_within(&self.path(), link.session, ADOPTING_PATIENCE)
            .and_then(|client| of_run(client, link.welcome.worker_run))
            .inspect_err(|error| self.note(error))
    }

    /// Let everybody use the link.
    pub fn publish(&self, link: &NewLink) {
        let mut state = self.state.lock();
        state.up = true;
        state.link = link.number;
        state.session = link.session;
        state.run = link.welcome.worker_run;
        state.lost = None;
        state.hangs = false;
        state.refused = None;
        state.cluster = cluster_of(&link.welcome);
        self.changed.notify_all();
    }

    /// The link is lost: its idle connections are closed, and calls wait or stop.
    pub fn take_down(&self) {
        let mut state = self.state.lock();
        state.up = false;
        state.lost.get_or_insert_with(Instant::now);
        state.idle.clear();
    }

    /// The number of the link if it is up.
    pub fn link(&self) -> Option<u64> {
        let state = self.state.lock();
        state.up.then_some(state.link)
    }

    /// The number of the link, or of the last one.
    pub fn newest_link(&self) -> u64 {
        self.state.lock().link
    }

    /// Wait until a link is up; `None` when the time is over.
    pub fn wait_for_link(&self, wait: Duration) -> Option<u64> {
        let deadline = Instant::now() + wait;
        let mut state = self.state.lock();
        while !state.up {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.up.then_some(state.link)
    }

    /// A request that changes nothing: it may be sent any number of times.
    pub fn ask(&self, caller: &Caller, op: request::Op) -> Outcome<Answer> {
        self.send(caller, Request { op: Some(op), ..Request::default() }, None, false)
    }

    /// A request that changes something: sent again with `retry` when the answer to an earlier sending was lost.
    pub fn change(&self, caller: &Caller, op: request::Op) -> Outcome<Answer> {
        let answer =
            self.send(caller, Request { retry: caller.sent.get(), op: Some(op), ..Request::default() }, None, true)?;
        Ok(answer.check()?)
    }

    /// The same of one that moves or removes the caller's subject. When it has waited for a link, the name may be another
    /// node's by now, which others have made while nobody here could know. So it goes as one that is sent again: what it is
    /// about is looked for, and what is not there any more was removed or moved before.
    pub fn change_subject(&self, caller: &Caller, op: request::Op) -> Outcome<Answer> {
        let request = Request { retry: caller.sent.get(), op: Some(op), ..Request::default() };
        let answer = self.send(caller, request, Some(caller.subject_link.get()), true)?;
        caller.subject.set(0);
        Ok(answer.check()?)
    }

    /// A request about a handle of that link. `None` when the link is gone, and with it the handle.
    pub fn call_through(&self, link: u64, op: request::Op) -> Option<Reply> {
        let line = match self.take(link)? {
            Some(line) => line,
            None => self.fresh(link)?,
        };
        let answer = self.call(line, link, &Request { op: Some(op), ..Request::default() });
        answer.ok().map(|(reply, _)| reply)
    }

    /// The same, which must not be left out: tried again while no connection can be had, for as long as the link is up and
    /// `goes_on`. What is adopted through a link may have to be closed before that is up: then it is waited for.
    pub fn insist_through(&self, link: u64, op: &request::Op, goes_on: impl Fn() -> bool) -> Option<Reply> {
        let deadline = Instant::now() + RECONNECT_WAIT;
        let is_coming = || self.newest_link() < link && Instant::now() < deadline;
        loop {
            match self.call_through(link, op.clone()) {
                None if (self.link() == Some(link) || is_coming()) && goes_on() => {
                    self.changed.wait_for(&mut self.state.lock(), RETRY_PAUSE);
                }
                done => return done,
            }
        }
    }

    fn send(&self, caller: &Caller, mut request: Request, asked_at: Option<u64>, changes: bool) -> Outcome<Answer> {
        request.here = !caller.fetches;
        let mut deadline = None;
        loop {
            let (line, link) = self.check_out(caller, &mut deadline)?;
            if caller.is_let_go() {
                self.put_back(line, link);
                return Err(Errno::EINTR.into());
            }
            request.retry |= asked_at.is_some_and(|asked_at| asked_at != link);
            match self.call(line, link, &request) {
                Ok((reply, fd)) => {
                    // What only asks says nothing about a change that is still to be sent again.
                    if changes {
                        caller.sent.set(false);
                    }
                    if request.here && reply.errno == Errno::EAGAIN as u32 {
                        return Err(Stop::Later);
                    }
                    return Ok(Answer { reply, fd, link, retried: request.retry });
                }
                Err(error) => {
                    tracing::debug!(%error, "answer lost");
                    if changes {
                        caller.sent.set(true);
                        request.retry = true;
                    }
                    if caller.patience != Patience::Patient {
                        return Err(Stop::Later);
                    }
                    self.pause(&mut deadline)?;
                }
            }
        }
    }

    /// A connection of the current link.
    fn check_out(&self, caller: &Caller, deadline: &mut Option<Instant>) -> Outcome<(Line, u64)> {
        if matches!(caller.patience, Patience::Cached | Patience::Local) {
            return Err(Stop::Later);
        }
        loop {
            let link = {
                let mut state = self.state.lock();
                while !state.up {
                    if caller.patience != Patience::Patient {
                        return Err(Stop::Later);
                    }
                    let until = *deadline.get_or_insert_with(|| Instant::now() + RECONNECT_WAIT);
                    if self.changed.wait_until(&mut state, until).timed_out() && !state.up {
                        return Err(self.gone(&state).into());
                    }
                }
                if let Some(line) = state.next_idle() {
                    return Ok((line, state.link));
                }
                state.link
            };
            match self.fresh(link) {
                Some(line) => return Ok((line, link)),
                None if caller.patience != Patience::Patient => return Err(Stop::Later),
                None => self.pause(deadline)?,
            }
        }
    }

    fn take(&self, link: u64) -> Option<Option<Line>> {
        let mut state = self.state.lock();
        (state.up && state.link == link).then(|| state.next_idle())
    }

    /// A new connection, unless another run of the worker answers: then the link is lost, which its owner will see.
    fn fresh(&self, link: u64) -> Option<Line> {
        let (session, run, number) = {
            let mut state = self.state.lock();
            if !state.up || state.link != link {
                return None;
            }
            state.number += 1;
            (state.session, state.run, state.number)
        };
        let mut watched = None;
        let connected = Client::connect_watched(&self.path(), session, |socket| {
            let mut state = self.state.lock();
            match state.up && state.link == link {
                true => drop(state.busy.insert(number, (socket.clone(), Instant::now()))),
                // Given up in between.
                false => drop(socket.shutdown(Shutdown::Both)),
            }
            watched = Some(socket);
        });
        match connected.and_then(|client| of_run(client, run)) {
            Ok(client) => Some(Line { client, number, socket: watched? }),
            Err(error) => {
                tracing::debug!(%error, "cannot connect");
                self.note(&error);
                self.state.lock().busy.remove(&number);
                None
            }
        }
    }

    /// One request on a connection that is marked as busy. The connection is kept for the next one.
    fn call(&self, mut line: Line, link: u64, request: &Request) -> Result<(Reply, Option<OwnedFd>), Disconnected> {
        let answer = line.client.call(request, None);
        match &answer {
            Ok(_) => self.put_back(line, link),
            Err(_) => drop(self.state.lock().busy.remove(&line.number)),
        }
        answer
    }

    /// A connection that can be used again.
    fn put_back(&self, line: Line, link: u64) {
        let mut state = self.state.lock();
        state.busy.remove(&line.number);
        if state.up && state.link == link && state.idle.len() < IDLE_MAX {
            state.idle.push(line);
        }
    }

    /// Wait a moment before the next try, or give up when the time is over.
    fn pause(&self, deadline: &mut Option<Instant>) -> FsResult<()> {
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + RECONNECT_WAIT);
        let mut state = self.state.lock();
        if Instant::now() >= deadline {
            return Err(self.gone(&state));
        }
        self.changed.wait_for(&mut state, RETRY_PAUSE);
        Ok(())
    }

    /// Why a connection could not be made. A worker that refuses says what a person has to do: once to the log, and to all who wait
    /// in vain. Before the first link the program ends with it.
    fn note(&self, error: &io::Error) {
        let why = refusal(error).map(|said| said.why().to_owned());
        let is_news = {
            let mut state = self.state.lock();
            let is_news = state.link > 0 && why.is_some() && state.refused != why;
            state.refused.clone_from(&why);
            is_news
        };
        if let Some(why) = why.filter(|_| is_news) {
            tracing::warn!("the diskworker at {} refuses: {why}", self.path().display());
        }
    }

    /// For who has waited in vain.
    fn gone(&self, state: &State) -> FsError {
        let path = self.path();
        let text = match &state.refused {
            Some(why) => format!("the diskworker at {} refuses: {why}", path.display()),
            None => format!("no diskworker answers at {}; see `delugefs status`", path.display()),
        };
        FsError::new(Errno::EIO, text)
    }
}

/// Of an older worker the id is empty: it is taken for one of the cluster of another such one only.
fn cluster_of(welcome: &Welcome) -> (String, String) {
    (welcome.cluster.clone(), welcome.cluster_id.clone())
}

fn of_run(client: Client, run: u64) -> io::Result<Client> {
    match client.welcome.worker_run == run {
        true => Ok(client),
        false => Err(io::Error::other("the diskworker was restarted")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use delugefs_proto::local::frame;

    use super::*;

    #[test]
    fn a_worker_that_refuses_is_not_called_absent() {
        const SAID: &str = "use programs of one release";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let worker = Worker::new(&path);
        let refuses = || {
            let error = worker.pause(&mut Some(Instant::now())).unwrap_err();
            assert_eq!(error.errno, Errno::EIO);
            assert_ne!(error.message.contains(SAID), error.message.starts_with("no diskworker answers"), "{error}");
            error.message.contains(SAID)
        };
        assert!(worker.connect().is_err() && !refuses());
        let listener = UnixListener::bind(&path).unwrap();
        let serving = std::thread::spawn(move || {
            for _ in 0..3 {
                let (socket, _) = listener.accept().unwrap();
                let reply = Reply { errno: Errno::EPROTONOSUPPORT as u32, message: SAID.into(), ..Reply::default() };
                frame::send(&socket, &reply, None).unwrap();
            }
        });
        assert!(worker.connect().is_err() && refuses());
        // One that has let us in, and has no room for more.
        let link = NewLink { number: 1, welcome: Welcome::default(), session: 7 };
        worker.publish(&link);
        assert!(!refuses());
        assert!(worker.fresh(1).is_none() && refuses());
        worker.publish(&link);
        assert!(worker.connect_to(&link).is_err() && refuses());
        serving.join().unwrap();
        worker.take_down();
        assert!(worker.connect().is_err() && !refuses());
    }
}
