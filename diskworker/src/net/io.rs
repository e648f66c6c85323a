//! A TLS connection of a member, as gRPC carries it: it knows whose it is, and ends at once when its owner's membership
//! does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use delugefs_proto::ids::DiskId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::pace::Limits;

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
    limits: Option<Limits>,
    /// Until more may be read, and written.
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
}

impl<S> PeerIo<S> {
    /// Over a stream whose owner is known.
    pub fn new(stream: S, info: PeerInfo) -> Self {
        Self {
            stream,
            ended: Box::pin(info.token.clone().cancelled_owned()),
            info,
            limits: None,
            reading: None,
            writing: None,
        }
    }

    /// The same for a stream of contents.
    pub fn limited(mut self, limits: Option<Limits>) -> Self {
        self.limits = limits;
        self
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ended.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "no member any more")),
            Poll::Pending => Ok(()),
        }
    }
}

/// Whether a pause is over.
fn rested(pause: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    if let Some(resting) = pause {
        ready!(resting.as_mut().poll(cx));
        *pause = None;
    }
    Poll::Ready(())
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
        ready!(rested(&mut self.reading, cx));
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        self.reading = self.limits.as_ref().and_then(|limits| limits.down.pass(read)).map(|wait| Box::pin(sleep(wait)));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PeerIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        ready!(rested(&mut self.writing, cx));
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.writing =
            self.limits.as_ref().and_then(|limits| limits.up.pass(written)).map(|wait| Box::pin(sleep(wait)));
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
