//! Bringing a peer to librqbit. It never dials: both ends of a transfer see an incoming connection on their loopback
//! listener, play the 68-byte BitTorrent handshake with it here, and from then on bytes are only carried.

use std::net::SocketAddr;
use std::time::Duration;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::random_u64;
use nix::errno::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::live::{Reply, answer};

/// For connecting and both handshakes.
const KNOCK_DEADLINE: Duration = Duration::from_secs(2);
/// librqbit lets one failed handshake hold up the pending others until the next connection comes.
const KNOCKS_MAX: u32 = 3;
/// Bytes under way per direction.
const BUFFER_BYTES: usize = 128 << 10;
const HANDSHAKE_BYTES: usize = 68;

/// What the beginning of a BitTorrent connection looks like.
fn handshake(info_hash: [u8; 20], peer_id: [u8; 20]) -> [u8; HANDSHAKE_BYTES] {
    let mut bytes = [0; HANDSHAKE_BYTES];
    bytes[0] = 19;
    bytes[1..20].copy_from_slice(b"BitTorrent protocol");
    bytes[25] = 0x10; // knows the extension protocol
    bytes[28..48].copy_from_slice(&info_hash);
    bytes[48..].copy_from_slice(&peer_id);
    bytes
}

/// Connect to a librqbit session as a peer of this torrent; the stream comes back with both handshakes done.
///
/// # Errors
/// `ECONNREFUSED` when it does not answer, because the torrent is not live there.
pub(super) async fn knock(addr: SocketAddr, info_hash: [u8; 20]) -> FsResult<TcpStream> {
    let mut last = String::new();
    for _ in 0..KNOCKS_MAX {
        match timeout(KNOCK_DEADLINE, knock_once(addr, info_hash)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = "no answer".to_owned(),
        }
    }
    Err(FsError::new(Errno::ECONNREFUSED, format!("the torrent session at {addr} refused the connection: {last}")))
}

async fn knock_once(addr: SocketAddr, info_hash: [u8; 20]) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let mut peer_id = *b"-DF0001-            ";
    let random = format!("{:012x}", random_u64() >> 16);
    peer_id[8..].copy_from_slice(random.as_bytes());
    stream.write_all(&handshake(info_hash, peer_id)).await?;
    let mut answer = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut answer).await?;
    match answer[28..48] == info_hash {
        true => Ok(stream),
        false => Err(std::io::Error::other("it answered for another torrent")),
    }
}

/// Connect our session with another one on this host; `reply` hears when both have answered.
pub(super) async fn connect(ours: SocketAddr, theirs: SocketAddr, info_hash: [u8; 20], reply: Reply<FsResult<()>>) {
    let both = async { Ok((knock(theirs, info_hash).await?, knock(ours, info_hash).await?)) };
    match both.await {
        Ok((theirs, ours)) => {
            answer(reply, Ok(()));
            if let Err(error) = carry(ours, theirs).await {
                tracing::debug!(%error, "a connection between torrent sessions ended");
            }
        }
        Err(error) => answer(reply, Err(error)),
    }
}

/// Carry bytes both ways until one side closes; BitTorrent knows no half-closed connections. Bounded by the sessions at
/// both ends, which close a connection that is silent for longer than their read timeout.
pub(super) async fn carry(
    one: impl AsyncRead + AsyncWrite + Unpin,
    other: impl AsyncRead + AsyncWrite + Unpin,
) -> FsResult<()> {
    let (mut one_read, mut one_write) = tokio::io::split(one);
    let (mut other_read, mut other_write) = tokio::io::split(other);
    let ended = tokio::select! {
        ended = one_way(&mut one_read, &mut other_write) => ended,
        ended = one_way(&mut other_read, &mut one_write) => ended,
    };
    match ended {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(()),
    }
}

/// Flushed after each block: a TLS stream may keep the end of it otherwise.
async fn one_way(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut block = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut block).await? {
            0 => return to.shutdown().await,
            length => to.write_all(&block[..length]).await?,
        }
        to.flush().await?;
    }
}
