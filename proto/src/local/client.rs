//! The calling side of the local protocol: one connection, one request at a time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::errno::{FsError, FsResult};
use crate::local::{LOCAL_VERSION, frame};
use crate::local_pb::{Event, Hello, Reply, Request, Welcome, reply, request};

/// A greeted connection.
pub struct Client {
    socket: Arc<UnixStream>,
    receiver: frame::Receiver,
    /// What the worker said of itself.
    pub welcome: Welcome,
}

/// How a call ended other than with an answer of the worker.
#[derive(Debug, thiserror::Error)]
#[error("connection to the diskworker lost: {0}")]
pub struct Disconnected(#[from] pub io::Error);

impl Client {
    /// Connect and greet. `events` makes it the connection that carries pushed events and holds the session.
    pub fn connect(path: &Path, session: u64, events: bool) -> io::Result<Self> {
        Self::greet(UnixStream::connect(path)?.into(), hello(session, events))
    }

    /// The same for a few requests that must not wait: no message takes longer than this.
    pub fn connect_within(path: &Path, session: u64, patience: Duration) -> io::Result<Self> {
        let socket = connect_now(path)?;
        set_patience(&socket, Some(patience))?;
        Self::greet(socket.into(), hello(session, false))
    }

    /// The same for any number of requests, each of which may take as long as it takes. Before anything is said, `watch` gets the
    /// socket, to shut it down from another thread.
    pub fn connect_watched(path: &Path, session: u64, watch: impl FnOnce(Arc<UnixStream>)) -> io::Result<Self> {
        let socket = Arc::new(connect_now(path)?);
        watch(socket.clone());
        Self::greet(socket, hello(session, false))
    }

    /// The connection for events, greeted within this time. The events themselves come when they come. `mount`: where what is asked
    /// for through the session is mounted.
    pub fn connect_events(path: &Path, session: u64, mount: &Path, patience: Duration) -> io::Result<Self> {
        let socket = connect_now(path)?;
        set_patience(&socket, Some(patience))?;
        let mount = mount.as_os_str().as_bytes().to_vec().into();
        let client = Self::greet(socket.into(), Hello { mount, ..hello(session, true) })?;
        set_patience(&client.socket, None)?;
        Ok(client)
    }

    fn greet(socket: Arc<UnixStream>, hello: Hello) -> io::Result<Self> {
        let mut client = Self { socket, receiver: frame::Receiver::default(), welcome: Welcome::default() };
        let (reply, _) = client.call(&op(request::Op::Hello(hello)), None).map_err(|error| error.0)?;
        match check(reply).map_err(io::Error::other)?.body {
            Some(reply::Body::Welcome(welcome)) => client.welcome = welcome,
            _ => return Err(io::Error::other("the diskworker did not answer the greeting")),
        }
        Ok(client)
    }

    /// Send a request and wait for its answer, whatever errno it carries.
    pub fn call(
        &mut self,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Option<OwnedFd>), Disconnected> {
        match frame::send(&self.socket, request, fd) {
            // Who hangs up on us may have said why before we spoke.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                let said = self.receiver.receive(&self.socket).ok().flatten();
                return said.ok_or(Disconnected(error));
            }
            sent => sent?,
        }
        match self.receiver.receive(&self.socket)? {
            Some(answer) => Ok(answer),
            None => Err(Disconnected(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Wait for the next pushed event; `None` when the worker has closed the connection.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        Ok(self.receiver.receive(&self.socket)?.map(|(event, _)| event))
    }

    /// The socket, to shut it down from another thread.
    pub fn socket(&self) -> Arc<UnixStream> {
        self.socket.clone()
    }
}

fn hello(session: u64, events: bool) -> Hello {
    Hello { version: LOCAL_VERSION, session, events, ..Hello::default() }
}

/// Connect, or fail at once: a process that hangs takes nobody out of its queue, and who finds that full would wait for as
/// long as it does. On Linux that is EAGAIN; on FreeBSD ECONNREFUSED, as where nobody listens.
///
/// # Errors
/// Those of socket(2) and connect(2).
pub fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false)?;
    Ok(socket)
}

fn set_patience(socket: &UnixStream, patience: Option<Duration>) -> io::Result<()> {
    socket.set_read_timeout(patience)?;
    socket.set_write_timeout(patience)
}

/// A first try of an operation.
pub fn op(op: request::Op) -> Request {
    Request { op: Some(op), ..Request::default() }
}

/// Turn the errno of a reply into an error.
pub fn check(reply: Reply) -> FsResult<Reply> {
    match reply.errno {
        0 => Ok(reply),
        errno => Err(FsError::from_reply(errno, reply.message)),
    }
}

/// What the worker said when it refused a connection; `None` of one that could not be made for any other reason.
pub fn refusal(error: &io::Error) -> Option<&FsError> {
    error.get_ref()?.downcast_ref()
}

impl From<Disconnected> for FsError {
    fn from(error: Disconnected) -> Self {
        FsError::new(Errno::EIO, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{Backlog, bind, listen};

    use super::*;

    #[test]
    fn who_never_accepts_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let deaf = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(deaf.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&deaf, Backlog::new(1).unwrap()).unwrap();
        let (sender, told) = std::sync::mpsc::channel();
        // More than its queue holds.
        std::thread::spawn(move || {
            for _ in 0..4 {
                let patience = Duration::from_millis(10);
                let tries = [
                    Client::connect_within(&path, 1, patience).is_err(),
                    Client::connect_events(&path, 1, Path::new(""), patience).is_err(),
                ];
                sender.send(tries).unwrap();
            }
        });
        for _ in 0..4 {
            assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok([true, true]));
        }
    }
    #[test]
    fn a_connection_that_is_watched_takes_one_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let greets = std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            frame::Receiver::default().receive::<Request>(&socket).unwrap().unwrap();
            let body = Some(reply::Body::Welcome(Welcome::default()));
            frame::send(&socket, &Reply { body, ..Reply::default() }, None).unwrap();
        });
        let mut watched = None;
        let client = Client::connect_watched(&path, 1, |socket| watched = Some(socket)).unwrap();
        assert_eq!(watched.unwrap().as_raw_fd(), client.socket().as_raw_fd());
        greets.join().unwrap();
    }
}
