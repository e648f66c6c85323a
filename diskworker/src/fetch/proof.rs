//! Before a promise counts, the disk that gave it shows that it has the content: some ranges of it, which nobody can know beforehand, are
//! read from it and compared with the copy here. A promise is a word, and so is what a disk says it holds: of two bad disks that say both, and
//! hold nothing, all honest copies would rely.
//!
//! Who asks gives the content to nobody meanwhile, and does not begin to ask while somebody is reading it (`ContentStore::give`); who promised
//! keeps his. So a disk that has nothing and passes on what it gets elsewhere can show nothing any more when one honest copy is left. One that
//! has it, shows it and then loses it on purpose is not found out.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ContentId, DiskId, random_u64};
use delugefs_proto::peer_pb::ReadContentRequest;
use nix::errno::Errno;
use tokio::time::timeout;

use super::Fetcher;

/// Ranges that are read, and their length: who has half of a content passes one time in sixteen. Up to all of them together, the whole.
const RANGES: u64 = 4;
const RANGE_BYTES: u64 = 16 << 10;
/// For all of them.
const WITHIN: Duration = Duration::from_secs(10);

/// What a disk has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// It has what is here.
    Same,
    /// It sent something else: its copy is damaged, or the one here.
    Other,
    /// It did not send it, or not in time.
    Nothing,
}

impl Fetcher {
    /// Whether another disk has what this one has of a content.
    ///
    /// # Errors
    /// When the copy here cannot be read.
    pub(super) async fn shown_by(&self, disk: DiskId, content: ContentId) -> FsResult<Shown> {
        let engine = self.engine.clone();
        let reading = tokio::task::spawn_blocking(move || -> FsResult<_> {
            let file = engine.store.open_as_it_is(content)?;
            let size = file.metadata()?.len();
            let read = |(offset, length): (u64, u64)| {
                let mut data = vec![0; length as usize];
                file.read_exact_at(&mut data, offset).map(|()| (offset, data))
            };
            Ok((size, ranges(size, random_u64).into_iter().map(read).collect::<Result<Vec<_>, _>>()?))
        });
        let (size, ours) = reading.await.map_err(|_| FsError::from(Errno::EIO))??;
        let showing = async {
            for (offset, data) in &ours {
                let request = ReadContentRequest {
                    content: content.0.to_vec(),
                    size_bytes: size,
                    offset: *offset,
                    length: data.len() as u64,
                };
                match self.read_from(disk, request).await {
                    Some(theirs) if theirs == *data => {}
                    Some(_) => return Shown::Other,
                    None => return Shown::Nothing,
                }
            }
            Shown::Same
        };
        Ok(timeout(WITHIN, showing).await.unwrap_or(Shown::Nothing))
    }

    /// One range; `None` if it does not come to its end.
    async fn read_from(&self, disk: DiskId, request: ReadContentRequest) -> Option<Vec<u8>> {
        let length = request.length as usize;
        let mut client = self.net.client(disk).await.ok()?;
        let mut replies = client.read_content(request).await.ok()?.into_inner();
        let mut data = Vec::with_capacity(length);
        while let Some(reply) = replies.message().await.ok()? {
            data.extend_from_slice(&reply.data);
            if data.len() > length {
                break; // more than it was asked for, perhaps without end
            }
        }
        (data.len() >= length).then_some(data)
    }
}

/// What is to be shown of a content of this size: where each range begins, and its length.
fn ranges(size: u64, mut random: impl FnMut() -> u64) -> Vec<(u64, u64)> {
    match size {
        0 => Vec::new(),
        size if size <= RANGES * RANGE_BYTES => vec![(0, size)],
        _ => (0..RANGES).map(|_| (random() % (size - RANGE_BYTES + 1), RANGE_BYTES)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_byte_may_be_asked_for_and_few_are() {
        let all = RANGES * RANGE_BYTES;
        assert_eq!((ranges(0, || 7), ranges(5, || 7), ranges(all, || 7)), (vec![], vec![(0, 5)], vec![(0, all)]));
        let last = 1_000_000 - RANGE_BYTES;
        for (random, begin) in [(0, 0), (5, 5), (last, last), (last + 1, 0), (u64::MAX, u64::MAX % (last + 1))] {
            assert_eq!(ranges(1_000_000, || random), vec![(begin, RANGE_BYTES); 4]);
        }
    }
}
