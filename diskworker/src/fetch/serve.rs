//! Giving contents to other disks by ranges.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use delugefs_proto::errno::FsError;
use delugefs_proto::ids::ContentId;
use delugefs_proto::limits::piece_length_bytes;
use delugefs_proto::peer_pb::{ReadContentReply, ReadContentRequest};
use nix::errno::Errno;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use crate::content::Giving;
use crate::engine::Engine;
use crate::net::pace::Pace;
use crate::net::shares::Share;

/// Most bytes of one request, unless a piece has more: nobody asks for parts of pieces.
const REQUEST_MAX_BYTES: u64 = 64 << 20;
/// A peer that takes nothing for so long is given up.
const UNREAD: Duration = Duration::from_secs(30);
/// Bytes of one message.
const CHUNK_BYTES: u64 = 256 << 10;

/// The answer of who is about to let a content go. Its asker leaves it alone for a while as far as that content goes, and for others does not.
pub const LEAVING: Code = Code::FailedPrecondition;

/// A range of a content that this disk holds, as messages, with a place for that and one on a limited line; `count` is told how many bytes
/// were given, and `failed` that the content cannot be read, or has another length.
pub fn read_content(
    engine: &Arc<Engine>,
    request: &ReadContentRequest,
    (place, pace, giving): (Share, Option<(Arc<Pace>, Share)>, Giving),
    mut count: impl FnMut(u64) + Send + 'static,
    failed: impl FnOnce(ContentId) + Send + 'static,
) -> Result<mpsc::Receiver<Result<ReadContentReply, Status>>, Status> {
    let content = ContentId::from_slice(&request.content).ok_or_else(|| Status::invalid_argument("no content id"))?;
    let (size, mut offset, length) = (request.size_bytes, request.offset, request.length);
    let end = end_of(size, offset, length).ok_or_else(|| Status::invalid_argument("no such range"))?;
    let (sender, receiver) = mpsc::channel(4);
    let engine = engine.clone();
    tokio::task::spawn_blocking(move || {
        let mut is_odd = false;
        let mut read = || -> Result<(), FsError> {
            // Who asks verifies what comes: of a copy that was cut most may be right.
            let file = engine.store.open_as_it_is(content)?;
            is_odd = file.metadata()?.len() != size;
            let block = pace.as_ref().map_or(CHUNK_BYTES, |(pace, _)| pace.block(CHUNK_BYTES));
            while offset < end {
                let mut data = vec![0; (end - offset).min(block) as usize];
                file.read_exact_at(&mut data, offset)?;
                offset += data.len() as u64;
                count(data.len() as u64);
                if let Some(wait) = pace.as_ref().and_then(|(pace, _)| pace.pass(data.len())) {
                    std::thread::sleep(wait);
                }
                if !hand_over(&sender, Ok(ReadContentReply { data: Bytes::from(data) })) {
                    return Err(Errno::EPIPE.into()); // it wants no more
                }
            }
            Ok(())
        };
        let done = read();
        if is_odd || done.as_ref().is_err_and(|error| error.errno == Errno::EIO) {
            failed(content);
        }
        if let Err(error) = done
            && error.errno != Errno::EPIPE
        {
            hand_over(&sender, Err(Status::from(error)));
        }
        drop((place, pace, giving));
    });
    Ok(receiver)
}

/// Send from a blocking thread of the runtime; `false` when nobody takes it. A peer that does not read gives the thread
/// back after a while: there are not many of them.
pub(crate) fn hand_over<T>(sender: &mpsc::Sender<T>, message: T) -> bool {
    let sending = tokio::time::timeout(UNREAD, sender.send(message));
    matches!(tokio::runtime::Handle::current().block_on(sending), Ok(Ok(())))
}

/// Where a range ends that may be asked for.
fn end_of(size: u64, offset: u64, length: u64) -> Option<u64> {
    let most = REQUEST_MAX_BYTES.max(piece_length_bytes(size).into());
    offset.checked_add(length).filter(|end| *end <= size && length <= most)
}

#[cfg(test)]
mod tests {
    use delugefs_proto::limits::{FILE_MAX_BYTES, piece_count};

    use super::*;

    #[test]
    fn every_piece_may_be_asked_for() {
        let mut size = 1;
        while size <= FILE_MAX_BYTES {
            for size in [size, size + 1, size * 3 / 2].into_iter().filter(|size| *size <= FILE_MAX_BYTES) {
                let (length, last) = (u64::from(piece_length_bytes(size)), piece_count(size) - 1);
                assert_eq!(end_of(size, 0, length.min(size)), Some(length.min(size)), "{size}");
                assert_eq!(end_of(size, last * length, size - last * length), Some(size), "{size}");
            }
            size *= 2;
        }
        assert_eq!(end_of(1 << 30, 0, REQUEST_MAX_BYTES), Some(REQUEST_MAX_BYTES));
        for (offset, length) in [(0, REQUEST_MAX_BYTES + 1), (1 << 30, 1), (u64::MAX, 2)] {
            assert_eq!(end_of(1 << 30, offset, length), None);
        }
    }
}
