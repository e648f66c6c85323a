//! What is known of other disks' holdings, over a restart: ROOT/holdings, a sequence of messages as they travel, the first
//! with our own epoch. Losing it costs hearing it again; only the epoch must never go back.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::time::Duration;

use delugefs_proto::errno::FsResult;
use delugefs_proto::peer_pb as pb;
use nix::fcntl::{OFlag, renameat};
use prost::Message;

use super::Net;
use super::holdings::{Part, Parts, latest, now_ms};

const FILE: &str = "holdings";
const UNFINISHED: &str = "holdings.new";
/// Largest file that is read, in bytes: 100 disks with a million contents each.
const MAX_BYTES: u64 = 2 << 30;
/// How often it is written at most,
const REMEMBER_EVERY: Duration = Duration::from_secs(60);
/// and how many bytes in a second on average.
const BYTES_PER_S: u64 = 64 << 10;

impl Net {
    /// Take up what was known, and begin our own count with what this disk holds. Blocks on the disk.
    pub fn recall_holdings(&self) {
        match self.engine.folder.open_file(FILE, OFlag::O_RDONLY) {
            Ok(file) => self.recall_from(file.take(MAX_BYTES)),
            Err(_) => self.recall_from(std::io::empty()),
        }
    }

    fn recall_from(&self, mut file: impl Read) {
        let me = self.engine.folder.disk_id();
        let mut bytes = Vec::new();
        // A bad sector in what is heard again keeps no disk from starting. What comes before it is of use: our epoch.
        if let Err(error) = file.read_to_end(&mut bytes) {
            tracing::warn!("ROOT/holdings cannot be read: {error}; what other disks hold is asked for again");
        }
        let mut rest = &bytes[..];
        let mut last_epoch = 0;
        let mut parts = Parts::default();
        let mut begun = None;
        while !rest.is_empty() {
            let Ok(message) = pb::Holdings::decode_length_delimited(&mut rest) else {
                tracing::warn!("ROOT/holdings is damaged: what other disks hold is asked for again");
                break;
            };
            // Before parts were counted the file had several first ones: what they are of is asked for again.
            let series = (message.disk_id.clone(), message.epoch, message.generation);
            let is_counted = message.part > 0 || begun.as_ref() != Some(&series);
            begun = message.more.then_some(series);
            if message.disk_id == me.0 {
                // What nobody would listen to is a wrong bit, or the last word of a quarrel with somebody who told lies.
                last_epoch = if message.epoch <= latest() { message.epoch } else { 0 };
            } else if !is_counted {
                parts = Parts::default();
            } else if let Ok(Part::Whole(message)) = parts.add(message) {
                self.holdings.lock().recall(&message);
            }
        }
        let mut held = HashSet::new();
        for content in self.engine.store.held() {
            match content {
                Ok(content) => drop(held.insert(content)),
                Err(error) => tracing::warn!("not counted as held: {error}"),
            }
        }
        self.holdings.lock().begin(me, now_ms().max(last_epoch + 1), held.into_iter());
        // Links may be up already, and have said that nothing is known of this disk.
        let known = self.holdings.lock().all_of(me);
        known.into_iter().for_each(|message| self.tell(None, message));
        // On a full disk it is not written: then the clock alone makes the next epoch greater.
        if let Err(error) = self.remember_holdings() {
            tracing::warn!("what other disks hold is not written down: {error}");
        }
    }

    /// Write down what is known. Blocks on the disk. How many bytes that are.
    ///
    /// # Errors
    /// What the disk says; the file is then the old one.
    pub fn remember_holdings(&self) -> FsResult<u64> {
        let me = self.engine.folder.disk_id();
        let folder = &self.engine.folder;
        let mut file = folder.open_file(UNFINISHED, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC)?;
        let mut written = 0;
        let mut write = |message: &pb::Holdings| {
            let bytes = message.encode_length_delimited_to_vec();
            written += bytes.len() as u64;
            file.write_all(&bytes)
        };
        let epoch = self.holdings.lock().epoch(me);
        write(&pb::Holdings { disk_id: me.0.to_vec(), epoch, ..pb::Holdings::default() })?;
        let others = self.holding_disks().into_iter().filter(|disk| *disk != me);
        for disk in others {
            // One at a time, and written without the lock: everybody who fetches, or hears of something, needs it.
            let known = self.holdings.lock().all_of(disk);
            known.iter().try_for_each(&mut write)?;
        }
        file.sync_all()?;
        renameat(folder.root_fd(), UNFINISHED, folder.root_fd(), FILE)?;
        Ok(written)
    }
}

/// How long to wait after so many bytes were written: a disk is not kept busy with what it could ask for again.
pub(super) fn pause_after(bytes: u64, took: Duration) -> Duration {
    let by_size = Duration::from_secs(bytes / BYTES_PER_S);
    REMEMBER_EVERY.max(by_size).max(took.saturating_mul(200))
}

#[cfg(test)]
mod tests {
    use delugefs_proto::ids::{ContentId, DiskId};
    use nix::errno::Errno;

    use super::*;
    use crate::net::tests::cluster;

    #[test]
    fn the_more_there_is_the_less_often_it_is_written() {
        let ms = Duration::from_millis;
        assert_eq!(pause_after(0, ms(1)), REMEMBER_EVERY);
        assert_eq!(pause_after(16 << 20, ms(100)), Duration::from_secs(256));
        assert_eq!(pause_after(16 << 20, ms(3000)), Duration::from_secs(600));
    }

    struct BadSector;

    impl Read for BadSector {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(Errno::EIO.into())
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_read_is_forgotten_and_what_can_is_not() {
        let (_, _, nodes) = cluster(1, &[]).await;
        let (net, me, other) = (nodes[0].net(), nodes[0].id(), DiskId([7; 32]));
        let epoch = net.holdings.lock().epoch(me) + 1_000_000_000;
        let own = pb::Holdings { disk_id: me.0.into(), epoch, ..Default::default() };
        let [first, second] = [1, 2].map(|n| ContentId([n; 32]));
        let message = |base, generation, content: ContentId| {
            let added = content.0[..16].into();
            pb::Holdings { disk_id: other.0.into(), epoch: 1, base, generation, added, ..Default::default() }
        };
        let mut bytes = Vec::new();
        for message in [own, message(0, 1, first), message(1, 2, second)] {
            message.encode_length_delimited(&mut bytes).unwrap();
        }
        net.recall_from(bytes[..bytes.len() - 1].chain(BadSector));
        assert!(net.holdings.lock().epoch(me) > epoch);
        assert_eq!((&*net.known_holders(first), &*net.known_holders(second)), (&[other][..], &[][..]));
        // Nor does a wrong bit keep it from that.
        let own = pb::Holdings { disk_id: me.0.into(), epoch: u64::MAX, ..Default::default() };
        net.recall_from(&own.encode_length_delimited_to_vec()[..]);
        assert!(net.holdings.lock().epoch(me) <= latest(), "others listen");
        net.recall_from(BadSector);
    }
}
