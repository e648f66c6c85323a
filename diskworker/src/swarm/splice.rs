//! Bringing a peer to librqbit. It never dials: both ends of a transfer see an incoming connection on their loopback
//! listener, play the 68-byte BitTorrent handshake with it here, and from then on bytes are only carried.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Requests of a peer that were not answered yet. librqbit has 128 at once, and takes as many as come: each is kept in memory until the
/// peer has taken the answer.
const ASKED_MAX: u64 = 4096;
/// Kinds of messages.
const REQUEST: u8 = 6;
const PIECE: u8 = 7;

/// Finds the messages in a stream of them.
#[derive(Default)]
struct Messages {
    /// The length and kind of the next one, as far as they have come.
    head: [u8; 5],
    come: usize,
    /// So much of the last one is still to come.
    rest: u64,
}

impl Messages {
    /// How many messages of a kind begin in these bytes.
    fn count(&mut self, mut bytes: &[u8], kind: u8) -> u64 {
        let mut count = 0;
        while !bytes.is_empty() {
            let skipped = usize::try_from(self.rest).unwrap_or(usize::MAX).min(bytes.len());
            bytes = &bytes[skipped..];
            self.rest -= skipped as u64;
            let taken = (self.head.len() - self.come).min(bytes.len());
            self.head[self.come..self.come + taken].copy_from_slice(&bytes[..taken]);
            (bytes, self.come) = (&bytes[taken..], self.come + taken);
            let [a, b, c, d, found] = self.head;
            let length = u32::from_be_bytes([a, b, c, d]);
            if self.come >= 4 && length == 0 {
                // It has no kind: that byte is of the next one.
                self.head[0] = found;
                self.come -= 4;
            } else if self.come == 5 {
                count += u64::from(found == kind);
                (self.come, self.rest) = (0, u64::from(length) - 1);
            }
        }
        count
    }
}

/// Carry bytes both ways until one side closes; BitTorrent knows no half-closed connections. Bounded by the sessions at
/// both ends, which close a connection that is silent for longer than their read timeout, and by what the peer may ask for.
pub(super) async fn carry(
    ours: impl AsyncRead + AsyncWrite + Unpin,
    peer: impl AsyncRead + AsyncWrite + Unpin,
) -> FsResult<()> {
    let (mut our_read, mut our_write) = tokio::io::split(ours);
    let (mut peer_read, mut peer_write) = tokio::io::split(peer);
    let (asked, (mut from, mut to)) = (AtomicU64::new(0), Default::default());
    let answered = |bytes: &[u8], to: &mut Messages| {
        let left = asked.load(Ordering::Relaxed).saturating_sub(to.count(bytes, PIECE));
        asked.store(left, Ordering::Relaxed);
        Ok(())
    };
    let asks = |bytes: &[u8], from: &mut Messages| {
        let more = from.count(bytes, REQUEST);
        let is_bounded = asked.fetch_add(more, Ordering::Relaxed) + more <= ASKED_MAX;
        is_bounded.then_some(()).ok_or_else(|| std::io::Error::other("it asks for more and more, and takes none of it"))
    };
    let ended = tokio::select! {
        ended = one_way(&mut our_read, &mut peer_write, |bytes| answered(bytes, &mut to)) => ended,
        ended = one_way(&mut peer_read, &mut our_write, |bytes| asks(bytes, &mut from)) => ended,
    };
    match ended {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(()),
    }
}

/// Flushed after each block: a TLS stream may keep the end of it otherwise. Each is looked at before.
async fn one_way(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut look: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut block = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut block).await? {
            0 => return to.shutdown().await,
            length => {
                look(&block[..length])?;
                to.write_all(&block[..length]).await?;
            }
        }
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, length: usize) -> Vec<u8> {
        [&(length as u32 + 1).to_be_bytes()[..], &[kind], &vec![REQUEST; length]].concat()
    }

    #[test]
    fn messages_are_found_however_they_come() {
        let keep_alive = vec![0; 4];
        let all = [
            message(1, 0),
            keep_alive.clone(),
            message(REQUEST, 12),
            message(PIECE, 40),
            keep_alive,
            message(REQUEST, 12),
        ];
        let bytes = all.concat();
        for size in 1..=bytes.len() {
            let (mut messages, mut pieces) = (Messages::default(), Messages::default());
            let count = |messages: &mut Messages, kind| -> u64 {
                bytes.chunks(size).map(|part| messages.count(part, kind)).sum()
            };
            assert_eq!((count(&mut messages, REQUEST), count(&mut pieces, PIECE)), (2, 1), "{size}");
        }
    }

    #[tokio::test]
    async fn who_asks_without_end_and_takes_nothing_is_left() {
        let ((ours, mut session), (peer, mut other)) = (tokio::io::duplex(1 << 20), tokio::io::duplex(1 << 20));
        let carried = tokio::spawn(carry(ours, peer));
        let (ask, answer) = (message(REQUEST, 12), message(PIECE, 40));
        // As many as he likes, if he takes them.
        for _ in 0..ASKED_MAX + 1000 {
            other.write_all(&ask).await.unwrap();
            session.read_exact(&mut vec![0; ask.len()]).await.unwrap();
            session.write_all(&answer).await.unwrap();
            other.read_exact(&mut vec![0; answer.len()]).await.unwrap();
        }
        let _hung_up = other.write_all(&ask.repeat(ASKED_MAX as usize + 1)).await;
        let error = timeout(KNOCK_DEADLINE * 10, carried).await.unwrap().unwrap().unwrap_err();
        assert!(error.to_string().contains("more and more"), "{error}");
    }
}
