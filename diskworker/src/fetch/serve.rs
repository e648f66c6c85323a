//! Giving contents to other disks by ranges.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use delugefs_proto::errno::FsError;
use delugefs_proto::ids::ContentId;
use delugefs_proto::peer_pb::{ReadContentReply, ReadContentRequest};
use nix::errno::Errno;
use tokio::sync::mpsc;
use tonic::Status;

use crate::engine::Engine;

/// Most bytes of one request.
const REQUEST_MAX_BYTES: u64 = 64 << 20;
/// Bytes of one message.
const CHUNK_BYTES: u64 = 256 << 10;

/// A range of a content that this disk holds, as messages.
pub fn read_content(
    engine: &Arc<Engine>,
    request: &ReadContentRequest,
) -> Result<mpsc::Receiver<Result<ReadContentReply, Status>>, Status> {
    let content = ContentId::from_slice(&request.content).ok_or_else(|| Status::invalid_argument("no content id"))?;
    let (size, mut offset, length) = (request.size_bytes, request.offset, request.length);
    let end = offset.checked_add(length).filter(|end| *end <= size && length <= REQUEST_MAX_BYTES);
    let end = end.ok_or_else(|| Status::invalid_argument("no such range"))?;
    let (sender, receiver) = mpsc::channel(4);
    let engine = engine.clone();
    tokio::task::spawn_blocking(move || {
        let mut read = || -> Result<(), FsError> {
            let file = engine.store.open_content(content, size)?;
            while offset < end {
                let mut data = vec![0; (end - offset).min(CHUNK_BYTES) as usize];
                file.read_exact_at(&mut data, offset)?;
                offset += data.len() as u64;
                if sender.blocking_send(Ok(ReadContentReply { data: Bytes::from(data) })).is_err() {
                    return Err(Errno::EPIPE.into()); // it wants no more
                }
            }
            Ok(())
        };
        match read() {
            Err(error) if error.errno != Errno::EPIPE => drop(sender.blocking_send(Err(Status::from(error)))),
            _ => {}
        }
    });
    Ok(receiver)
}
