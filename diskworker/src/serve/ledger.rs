//! The answer to Contents: every content with its wanted copies and holders, in messages of bounded size.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::DiskId;
use delugefs_proto::worker_pb as pb;

use crate::engine::Engine;
use crate::net::Net;

/// Contents in one message.
const CHUNK: usize = 10_000;

/// The messages, unless nothing has changed since the answer with this generation. Walks the catalog when it has changed.
pub fn contents(engine: &Engine, net: &Net, last: u64) -> FsResult<Vec<pb::ContentsReply>> {
    let ledger = engine.ledger()?;
    let mut hasher = DefaultHasher::new();
    (ledger.commit.as_bytes(), net.holdings_version()).hash(&mut hasher);
    let generation = hasher.finish() | 1;
    if generation == last {
        return Ok(vec![pb::ContentsReply { generation, unchanged: true, ..Default::default() }]);
    }
    let mut numbers: HashMap<DiskId, u32> = HashMap::new();
    let mut disks: Vec<Vec<u8>> = Vec::new();
    let mut number = |disk: DiskId| {
        *numbers.entry(disk).or_insert_with(|| {
            disks.push(disk.0.to_vec());
            disks.len() as u32 - 1
        })
    };
    let mut describe = |entry: &crate::engine::LedgerEntry| pb::Content {
        content: entry.content.0.to_vec(),
        size_bytes: entry.size,
        pieces: entry.pieces.map(|pieces| pieces.0.to_vec()).unwrap_or_default(),
        wanted: entry.wanted,
        holders: net.known_holders(entry.content).into_iter().map(&mut number).collect(),
    };
    let contents: Vec<pb::Content> = ledger.entries.iter().map(&mut describe).collect();
    let mut messages: Vec<pb::ContentsReply> = contents
        .chunks(CHUNK)
        .map(|chunk| pb::ContentsReply { generation, contents: chunk.to_vec(), ..Default::default() })
        .collect();
    if messages.is_empty() {
        messages.push(pb::ContentsReply { generation, ..Default::default() });
    }
    messages[0].disks = disks;
    Ok(messages)
}
