//! Single messages on a stream between hosts, for the two protocols beside gRPC: 4 bytes little endian length, so many
//! bytes.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest message a stranger may send, in bytes: a proof of membership and a little.
pub const REQUEST_MAX_BYTES: usize = 32 << 10;

/// Read a message of at most `max` bytes.
///
/// # Errors
/// `InvalidData` when it is longer or no such message, else those of the stream.
pub async fn read<M: Message + Default>(from: &mut (impl AsyncRead + Unpin), max: usize) -> io::Result<M> {
    let length = from.read_u32_le().await? as usize;
    if length > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("message of {length} bytes is over the limit")));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    M::decode(&bytes[..]).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Write a message.
///
/// # Errors
/// Those of the stream.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> io::Result<()> {
    let mut bytes = (message.encoded_len() as u32).to_le_bytes().to_vec();
    message.encode(&mut bytes).map_err(io::Error::other)?;
    to.write_all(&bytes).await?;
    to.flush().await
}
