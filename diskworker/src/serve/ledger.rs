//! The answer to Contents: every content with its wanted copies and holders, in messages of bounded size.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::DiskId;
use delugefs_proto::worker_pb as pb;

use crate::engine::{Engine, Ledger, LedgerEntry};
use crate::net::Net;

/// Contents in one message.
const CHUNK: usize = 5_000;

/// The messages, made one by one as they are sent.
pub enum Messages {
    /// Nothing has changed since the answer with this generation.
    Unchanged(u64),
    /// All contents.
    All {
        /// Of the answer.
        generation: u64,
        /// What there is to say.
        ledger: Arc<Ledger>,
        /// Entries said.
        at: usize,
        /// The disks, by the numbers that holders are said by.
        numbers: HashMap<DiskId, u32>,
    },
    /// All is said.
    End,
}

/// The messages, unless nothing has changed since the answer with this generation. Walks the catalog when it has changed.
pub fn contents(engine: &Engine, net: &Net, last: u64) -> FsResult<Messages> {
    let ledger = engine.ledger()?;
    let mut hasher = DefaultHasher::new();
    (ledger.commit.as_bytes(), net.holdings_version()).hash(&mut hasher);
    let generation = hasher.finish() | 1;
    if generation == last {
        return Ok(Messages::Unchanged(generation));
    }
    let numbers = net.holding_disks().into_iter().zip(0..).collect();
    Ok(Messages::All { generation, ledger, at: 0, numbers })
}

impl Messages {
    /// The next message. Who is first heard of meanwhile is left out: then there is a new generation to be asked for.
    pub fn next(&mut self, net: &Net) -> Option<pb::ContentsReply> {
        match self {
            Self::Unchanged(generation) => {
                let generation = *generation;
                *self = Self::End;
                Some(pb::ContentsReply { generation, unchanged: true, ..Default::default() })
            }
            Self::All { generation, ledger, at, numbers } => {
                let mut message = pb::ContentsReply { generation: *generation, ..Default::default() };
                if *at == 0 {
                    message.disks = vec![vec![]; numbers.len()];
                    numbers.iter().for_each(|(disk, n)| message.disks[*n as usize] = disk.0.to_vec());
                }
                let end = ledger.entries.len().min(*at + CHUNK);
                let said = |entry: &LedgerEntry| {
                    let holders = net.known_holders(entry.content);
                    describe(entry, holders.iter().filter_map(|disk| numbers.get(disk).copied()).collect())
                };
                message.contents = ledger.entries[*at..end].iter().map(said).collect();
                *at = end;
                if end == ledger.entries.len() {
                    *self = Self::End;
                }
                Some(message)
            }
            Self::End => None,
        }
    }
}

fn describe(entry: &LedgerEntry, holders: Vec<u32>) -> pb::Content {
    pb::Content {
        content: entry.content.0.to_vec(),
        size_bytes: entry.size,
        pieces: entry.pieces.map(|pieces| pieces.0.to_vec()).unwrap_or_default(),
        wanted: entry.wanted,
        holders,
    }
}
