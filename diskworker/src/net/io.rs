//! A TLS connection of a member, as gRPC carries it: it knows whose it is, and ends at once when its owner's membership
//! does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use delugefs_proto::ids::DiskId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// The key it proved.
    pub disk: DiskId,
    /// Where it called from.
    pub from: std::net::SocketAddr,
    /// Cancelled when the connection is to end.
    pub token: CancellationToken,
}

/// See the module.
pub struct PeerIo<S> {
    stream: S,
    info: PeerInfo,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> PeerIo<S> {
    /// Over a stream whose owner is known.
    pub fn new(stream: S, info: PeerInfo) -> Self {
        Self { stream, ended: Box::pin(info.token.clone().cancelled_owned()), info }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ended.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "no member any more")),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S> Drop for PeerIo<S> {
    fn drop(&mut self) {
        self.info.token.cancel();
    }
}

impl<S> Connected for PeerIo<S> {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PeerIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PeerIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
