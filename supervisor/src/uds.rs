//! gRPC over unix sockets, both ends. Whoever is at the other end must be this user or root (root also asks the owner of the run directory): a run directory may lie
//! where others can write, and they must neither answer in our place nor give orders.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tonic::transport::server::UdsConnectInfo;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

/// A channel to a socket; fails when nobody answers there or somebody else does.
///
/// # Errors
/// Those of connect(2), and `PermissionDenied` for a foreign peer.
pub async fn connect(socket: &Path) -> io::Result<Channel> {
    // By hand, for the plain error; tonic wraps it beyond recognition. And once: one that hangs keeps in its queue whoever has called.
    let first = Arc::new(Mutex::new(Some(dial(socket.into()).await?)));
    let socket = socket.to_path_buf();
    let connector = tower::service_fn(move |_: Uri| {
        let (socket, first) = (socket.clone(), first.lock().take());
        async move {
            match first {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => dial(socket).await.map(TokioIo::new),
            }
        }
    });
    Endpoint::from_static("http://unix.socket").connect_with_connector(connector).await.map_err(io::Error::other)
}

async fn dial(socket: PathBuf) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(&socket).await?;
    let uid = stream.peer_cred()?.uid();
    // Root asks a service that runs as a user of its own, in that user's directory.
    let owner = || Some(std::fs::metadata(socket.parent()?).ok()?.uid());
    let is_service = nix::unistd::geteuid().is_root() && owner() == Some(uid);
    if !is_trusted(uid) && !is_service {
        let text = format!("{} is served by uid {uid}, neither by us nor by root", socket.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(stream)
}

/// Interceptor of a server: lets only this user and root in.
///
/// # Errors
/// `PermissionDenied` for everybody else.
#[allow(clippy::result_large_err)] // tonic's signature
pub fn check_peer(request: Request<()>) -> Result<Request<()>, Status> {
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    match peer.map(|peer| peer.uid()) {
        Some(uid) if is_trusted(uid) => Ok(request),
        Some(uid) => Err(Status::permission_denied(format!("uid {uid} may not use this socket"))),
        None => Err(Status::unauthenticated("the system does not say who you are")),
    }
}

fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that is stopped takes nobody out of its queue, and is asked every second.
    #[tokio::test]
    async fn who_asks_stands_in_the_queue_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let _channel = connect(&socket).await.unwrap();
        assert!(listener.accept().is_ok());
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
