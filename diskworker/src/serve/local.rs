//! Serving frontends: a thread per connection, one request at a time on each.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use delugefs_proto::errno::{FsError, FsResult, named};
use delugefs_proto::ids::{ContentId, Ino};
use delugefs_proto::limits::FRAME_MAX_BYTES;
use delugefs_proto::local::{LOCAL_VERSION, frame};
use delugefs_proto::local_pb::{Hello, Opened, Reply, Request, Welcome, reply, request};
use nix::errno::Errno;
use prost::Message;
use tokio_util::sync::CancellationToken;

use super::AllowedUids;
use super::absent::{Got, open, unread, with_content};
use super::neighbours::Neighbours;
use crate::engine::{Answer, Engine, Opening, SessionId, asked_over};
use crate::fetch::Fetcher;

/// Connections served at once, of all frontends together.
const CONNECTIONS_MAX: usize = 256;
/// How long a new connection may take to say what it is. Who says nothing would keep others out.
const GREETING_WAIT: Duration = Duration::from_secs(5);

/// Accept frontends until the listener is shut down, after `stop`.
pub fn serve(
    engine: &Arc<Engine>,
    fetcher: &Arc<Fetcher>,
    neighbours: &Arc<Neighbours>,
    listener: &UnixListener,
    allowed: &AllowedUids,
    stop: &CancellationToken,
) {
    let connections = Arc::new(AtomicUsize::new(0));
    while let Some(socket) = accept(listener, stop) {
        match crate::os::peer_uid(&socket) {
            Ok(uid) if allowed.admits(uid) => {}
            Ok(uid) => {
                refuse(&socket, FsError::new(Errno::EACCES, format!("uid {uid} is not served by this diskworker")));
                continue;
            }
            Err(error) => {
                tracing::warn!("cannot tell who is calling: {error}");
                continue;
            }
        }
        if connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            refuse(&socket, FsError::new(Errno::EAGAIN, "too many connections to this diskworker"));
            continue;
        }
        let counted = Counted::new(&connections);
        let (engine, fetcher, neighbours) = (engine.clone(), fetcher.clone(), neighbours.clone());
        let spawned = std::thread::Builder::new().name("frontend".into()).spawn(move || {
            let _counted = counted;
            if let Err(error) = Connection::new(&engine, &fetcher, &neighbours, &Arc::new(socket)).run() {
                match error.kind() {
                    // It has ended, and had not read all: by right, when it was told to.
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                        tracing::debug!("connection of a frontend: {error}");
                    }
                    _ => tracing::warn!("connection of a frontend: {error}"),
                }
            }
        });
        if let Err(error) = spawned {
            tracing::warn!("cannot serve a frontend: {error}");
        }
    }
}

/// The next frontend that calls; `None` when there is none any more.
fn accept(listener: &UnixListener, stop: &CancellationToken) -> Option<UnixStream> {
    loop {
        match listener.accept() {
            Ok((socket, _)) => return Some(socket),
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::EBADF)) => return None,
            // FreeBSD says once that it is shut down (ECONNABORTED), and waits for good from then on.
            Err(_) if stop.is_cancelled() => return None,
            Err(error) => {
                // Out of descriptors, say: give those that are served the time to finish.
                tracing::warn!("cannot accept a frontend: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// One of the connections, however it ends.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        Self(connections.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn refuse(socket: &UnixStream, error: FsError) {
    // Answers the greeting that is on its way; whether it arrives does not matter.
    drop(frame::send(socket, &failure(error, 0), None));
}

fn failure(error: FsError, seq: u64) -> Reply {
    Reply { errno: named(error.errno) as u32, message: error.message, seq, ..Reply::default() }
}

/// The answer to a greeting. It waits for no change, however long one takes: who is not greeted takes us for hung. So it has no `seq`,
/// which nobody needs before the first answer.
pub(crate) fn welcome(engine: &Engine) -> Reply {
    let identity = engine.folder.identity();
    let welcome = Welcome {
        version: LOCAL_VERSION,
        cluster: identity.cluster.clone(),
        disk_id: identity.disk_id.clone(),
        root: Ino::ROOT.0,
        worker_run: engine.run_id(),
        cluster_id: identity.cluster_id.clone(),
    };
    Reply { body: Some(reply::Body::Welcome(welcome)), ..Reply::default() }
}

struct Connection<'a> {
    engine: &'a Arc<Engine>,
    fetcher: &'a Arc<Fetcher>,
    neighbours: &'a Neighbours,
    socket: &'a Arc<UnixStream>,
    receiver: frame::Receiver,
}

impl<'a> Connection<'a> {
    fn new(
        engine: &'a Arc<Engine>,
        fetcher: &'a Arc<Fetcher>,
        neighbours: &'a Neighbours,
        socket: &'a Arc<UnixStream>,
    ) -> Self {
        Self { engine, fetcher, neighbours, socket, receiver: frame::Receiver::default() }
    }

    fn run(&mut self) -> std::io::Result<()> {
        self.socket.set_read_timeout(Some(GREETING_WAIT))?;
        let Some((first, _)) = self.receiver.receive::<Request>(self.socket)? else { return Ok(()) };
        self.socket.set_read_timeout(None)?;
        let Some(request::Op::Hello(hello)) = first.op else {
            let error = FsError::new(Errno::EPROTO, "the first request must be Hello");
            return frame::send(self.socket, &failure(error, 0), None);
        };
        if hello.version != LOCAL_VERSION {
            let text = format!(
                "frontend speaks version {} of the local protocol, diskworker {LOCAL_VERSION}; use programs of one release",
                hello.version
            );
            return frame::send(self.socket, &failure(FsError::new(Errno::EPROTONOSUPPORT, text), 0), None);
        }
        if hello.events {
            return self.push_events(&hello);
        }
        let result = self.answer_requests(&hello);
        self.engine.connection_lost(hello.session);
        self.forget_lost(hello.session);
        result
    }

    /// The session lives as long as this connection.
    fn push_events(&mut self, hello: &Hello) -> std::io::Result<()> {
        let queue = self.engine.begin_session(hello.session);
        self.engine.session_mounted(hello.session, &hello.mount);
        let result = frame::send(self.socket, &welcome(self.engine), None).and_then(|()| {
            std::thread::scope(|scope| {
                // The reading side notices the frontend's end; the frontend sends nothing here.
                let mut receiver = std::mem::take(&mut self.receiver);
                let (socket, events) = (self.socket, &queue);
                // Without it the session ends here, and the frontend comes again. (`scope.spawn` would panic, and the session stay.)
                std::thread::Builder::new().name("frontend-end".into()).spawn_scoped(scope, move || {
                    while let Ok(Some(_)) = receiver.receive::<Request>(socket) {}
                    events.close();
                })?;
                while let Some(event) = queue.next() {
                    if let Err(error) = frame::send(self.socket, &event, None) {
                        tracing::debug!("pushing events: {error}");
                        break;
                    }
                }
                self.socket.shutdown(std::net::Shutdown::Both)
            })
        });
        self.engine.session_lost(hello.session, &queue);
        self.forget_lost(hello.session);
        match result {
            Err(error) if error.kind() == std::io::ErrorKind::NotConnected => Ok(()),
            other => other,
        }
    }

    fn forget_lost(&self, session: SessionId) {
        if !self.engine.has_session(session) {
            self.fetcher.end_session(session);
        }
    }

    fn answer_requests(&mut self, hello: &Hello) -> std::io::Result<()> {
        frame::send(self.socket, &welcome(self.engine), None)?;
        while let Some((request, fd)) = self.receiver.receive::<Request>(self.socket)? {
            // We may have hung for so long that he was answered elsewhere. It is asked again when it is its turn to change something.
            if crate::os::has_hung_up(self.socket) {
                return Ok(());
            }
            let asked = asked_over(self.socket);
            // Who adopts has its descriptor already, and adopts again over another connection.
            let opens = matches!(request.op, Some(request::Op::Create(_) | request::Op::Open(_)));
            let (reply, fd) = match dispatch(self.engine, self.fetcher, self.neighbours, hello.session, request, fd) {
                Ok(done) => done,
                // Not an answer: it is asked again when the disk is back.
                Err(_) if self.engine.has_ended() => return Ok(()),
                Err(error) => (failure(error, self.engine.seq()), None),
            };
            drop(asked);
            let mut sent = frame::send(self.socket, &reply, fd.as_ref().map(|fd| fd.as_fd()));
            if let Err(error) = &sent
                && let Some(failed) = too_large(&reply, error)
            {
                sent = frame::send(self.socket, &failed, None);
            }
            if sent.is_err()
                && opens
                && let Some(reply::Body::Opened(opened)) = &reply.body
            {
                drop(fd);
                self.close_unsent(hello.session, opened.handle);
            }
            sent?;
        }
        Ok(())
    }

    /// Nobody has heard of this handle, nor will close it; the session may live on for days.
    fn close_unsent(&self, session: SessionId, handle: u64) {
        if !self.fetcher.close(session, handle)
            && let Err(error) = self.engine.close(session, handle, true)
        {
            tracing::warn!("closing a file whose opening could not be answered: {error}");
        }
    }
}

/// What to answer where an answer could not be sent because it is too large, of which nothing has gone out. Without one it would be asked for
/// again and again.
fn too_large(reply: &Reply, error: &std::io::Error) -> Option<Reply> {
    let is_too_large = error.kind() == std::io::ErrorKind::InvalidInput && reply.encoded_len() > FRAME_MAX_BYTES;
    is_too_large
        .then(|| failure(FsError::new(Errno::EIO, format!("an answer that cannot be sent: {error}")), reply.seq))
}

/// An answer, and the descriptor that goes with it.
pub(super) type Done = (Reply, Option<OwnedFd>);

fn dispatch(
    engine: &Engine,
    fetcher: &Arc<Fetcher>,
    neighbours: &Neighbours,
    session: SessionId,
    request: Request,
    fd: Option<OwnedFd>,
) -> FsResult<Done> {
    use request::Op;
    let (retry, here) = (request.retry, request.here);
    let op = request.op.ok_or_else(|| FsError::new(Errno::ENOSYS, "this diskworker does not know the operation"))?;
    let answer = match op {
        Op::Hello(_) => return Err(Errno::EPROTO.into()),
        Op::Lookup(q) => engine.lookup(&q)?,
        Op::GetAttr(q) => engine.get_attr(&q)?,
        Op::ReadDir(q) => {
            let (answer, listing) = engine.read_dir(&q)?;
            return Ok(with_body(answer, reply::Body::Listing(listing)));
        }
        Op::Create(q) => return Ok(opened(engine.create(session, retry, &q)?)),
        Op::Open(q) => return open(engine, fetcher, neighbours, (session, here), &q),
        Op::OpenContent(q) => {
            let content = ContentId::from_slice(&q.content).ok_or(Errno::EINVAL)?;
            let file = engine.open_for_neighbour(content, q.size).inspect_err(|error| {
                // Nobody else looks at what a neighbour reads here.
                if error.errno == Errno::EIO {
                    fetcher.suspect(content);
                }
            })?;
            let answer = Answer { seq: engine.seq(), ..Answer::default() };
            return Ok(opened((answer, Opening::File { handle: 0, file })));
        }
        Op::TakeContent(q) => {
            let content = ContentId::from_slice(&q.content).ok_or(Errno::EINVAL)?;
            let fd = fd.ok_or_else(|| no_descriptor("TakeContent"))?;
            engine.take_content(content, q.size, &File::from(fd))?;
            Answer { seq: engine.seq(), ..Answer::default() }
        }
        Op::Mknod(q) => engine.mknod(session, retry, &q)?,
        Op::Mkdir(q) => engine.mkdir(session, retry, &q)?,
        Op::Symlink(q) => engine.symlink(session, retry, &q)?,
        Op::Link(q) => engine.link(session, retry, &q)?,
        Op::Unlink(q) => engine.unlink(session, retry, &q)?,
        Op::Rmdir(q) => engine.rmdir(session, retry, &q)?,
        Op::Rename(q) => engine.rename(session, retry, &q)?,
        Op::SetAttr(q) => {
            let absent = || match q.size {
                Some(1..) => engine.absent(Ino(q.ino), Ino(q.dir)), // cutting a content needs it
                _ => Ok(None),
            };
            let fetch = |wanted| fetcher.whole(wanted).map(|()| Got::Whole);
            with_content(here, || engine.set_attr(session, &q), absent, fetch)?
        }
        Op::Close(q) if fetcher.close(session, q.handle) => Answer { seq: engine.seq(), ..Answer::default() },
        Op::Close(q) => {
            if q.sync_failed {
                engine.doubt(session, q.handle);
            }
            let answer = engine.close(session, q.handle, q.unwritten)?;
            Answer { node: answer.node.filter(|_| !answer.shared), ..answer }
        }
        Op::Fsync(q) => {
            engine.fsync(&q)?;
            if q.writes {
                engine.synced(session, Ino(q.ino));
            }
            Answer { seq: engine.seq(), ..Answer::default() }
        }
        Op::Adopt(q) => {
            let fd = fd.ok_or_else(|| no_descriptor("Adopt"))?;
            let (answer, handle) = engine.adopt(session, &q, fd)?;
            return Ok(with_body(answer, reply::Body::Opened(Opened { handle, ..Opened::default() })));
        }
        Op::GetXattr(q) => return Ok(data(engine, engine.get_xattr(&q)?)),
        Op::ListXattr(q) => return Ok(data(engine, engine.list_xattr(&q)?)),
        Op::ReadLink(q) => return Ok(data(engine, engine.read_link(&q)?)),
        Op::SetXattr(q) => engine.set_xattr(session, retry, &q)?,
        Op::RemoveXattr(q) => engine.remove_xattr(session, retry, &q)?,
        Op::Unread(q) => {
            unread(engine, fetcher, neighbours, &q)?;
            Answer { seq: engine.seq(), ..Answer::default() }
        }
        Op::Need(q) => {
            let ranges = fetcher.need(session, q.handle, q.offset, q.length)?;
            return Ok(with_body(Answer::default(), reply::Body::Ranges(ranges)));
        }
        Op::StatFs(_) => {
            let stat = engine.stat_fs()?;
            return Ok(with_body(Answer::default(), reply::Body::StatFs(stat)));
        }
    };
    Ok((reply(answer), None))
}

fn no_descriptor(op: &str) -> FsError {
    let text = format!("{op} came without a descriptor, or this diskworker has as many files open as it may");
    FsError::new(Errno::EBADF, text)
}

pub(super) fn reply(answer: Answer) -> Reply {
    Reply {
        seq: answer.seq,
        node: answer.node,
        dir: answer.dir,
        dir2: answer.dir2,
        moved: answer.moved,
        ..Reply::default()
    }
}

fn with_body(answer: Answer, body: reply::Body) -> Done {
    (Reply { body: Some(body), ..reply(answer) }, None)
}

#[cfg(test)]
thread_local! {
    /// What is answered from this thread has so many bytes: more than anything that is taken into a catalog.
    static DATA_BYTES: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
}

fn data(engine: &Engine, bytes: Bytes) -> Done {
    #[cfg(test)]
    let bytes = DATA_BYTES.get().map_or(bytes, |length| vec![0; length].into());
    with_body(Answer { seq: engine.seq(), ..Answer::default() }, reply::Body::Data(bytes))
}

pub(super) fn opened((answer, opening): (Answer, Opening)) -> Done {
    let (shared, written) = (answer.shared, answer.written);
    let (body, fd) = match opening {
        Opening::File { handle, file } => (Opened { handle, shared, written, ..Opened::default() }, Some(file.into())),
        Opening::Inline(inline) => (Opened { has_inline: true, inline, ..Opened::default() }, None),
    };
    (Reply { body: Some(reply::Body::Opened(body)), ..reply(answer) }, fd)
}

#[cfg(test)]
mod tests {
    use delugefs_proto::local_pb::{GetAttr, ReadLink, Symlink};

    use super::*;
    use crate::net::tests::cluster;

    /// An error that says nothing of a shutdown, as on FreeBSD.
    #[test]
    fn nobody_is_accepted_after_a_stop_whatever_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = CancellationToken::new();
        let (ended, ends) = std::sync::mpsc::channel();
        stop.cancel();
        std::thread::spawn(move || ended.send(accept(&listener, &stop).is_none()));
        assert_eq!(ends.recv_timeout(Duration::from_secs(30)), Ok(true));
    }

    /// Asked for again over another connection it would be the same, for ever.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_that_is_too_large_is_an_error() {
        let (_, _, nodes) = cluster(1, &[]).await;
        let (engine, fetcher) = (nodes[0].engine().clone(), nodes[0].fetcher().clone());
        let q = Symlink { dir: 1, name: "l".into(), target: "target".into(), ..Symlink::default() };
        let ino = engine.symlink(7, false, &q).unwrap().node.unwrap().ino;
        let neighbours = Neighbours::new(nodes[0].net().clone(), engine.folder.root().join("no sockets"));
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let serving = std::thread::spawn(move || {
            DATA_BYTES.set(Some(FRAME_MAX_BYTES));
            Connection::new(&engine, &fetcher, &neighbours, &Arc::new(ours)).run()
        });
        let mut receiver = frame::Receiver::default();
        let mut ask = |op| {
            frame::send(&theirs, &Request { op: Some(op), ..Request::default() }, None).unwrap();
            receiver.receive::<Reply>(&theirs).unwrap().expect("it has hung up").0
        };
        let hello = Hello { version: LOCAL_VERSION, session: 7, ..Hello::default() };
        assert!(matches!(ask(request::Op::Hello(hello)).body, Some(reply::Body::Welcome(_))));
        let failed = ask(request::Op::ReadLink(ReadLink { ino, dir: 1 }));
        assert_eq!(failed.errno, Errno::EIO as u32, "{failed:?}");
        assert!(failed.message.contains("cannot be sent"), "{failed:?}");
        // Nothing went out before that.
        let node = ask(request::Op::GetAttr(GetAttr { ino, dir: 1 })).node.unwrap();
        assert_eq!(node.ino, ino);
        drop(theirs);
        serving.join().unwrap().unwrap();
    }

    #[test]
    fn an_answer_that_could_not_be_sent_for_another_reason_is_none() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let large = |bytes| Reply { body: Some(reply::Body::Data(vec![1; bytes].into())), seq: 7, ..Reply::default() };
        let error = frame::send(&ours, &large(FRAME_MAX_BYTES), None).unwrap_err();
        assert_eq!(too_large(&large(FRAME_MAX_BYTES), &error).unwrap().seq, 7);
        assert!(too_large(&large(5), &error).is_none());
    }

    #[test]
    fn no_failure_is_answered_as_a_success() {
        let unknown = FsError { errno: Errno::UnknownErrno, message: "odd".into() };
        let reply = failure(unknown, 7);
        assert_eq!((reply.errno, reply.message.as_str(), reply.seq), (Errno::EIO as u32, "odd", 7));
        assert_eq!(failure(Errno::ENOENT.into(), 0).errno, Errno::ENOENT as u32);
        assert_eq!(crate::os::errno(&std::io::Error::from_raw_os_error(9524)), Errno::EIO);
    }
}
