//! What is known of other disks' holdings, over a restart: ROOT/holdings, a sequence of messages as they travel, the first
//! with our own epoch. Losing it costs hearing it again; only the epoch must never go back.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use delugefs_proto::errno::FsResult;
use delugefs_proto::peer_pb as pb;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use prost::Message;

use super::Net;
use super::holdings::{Part, Parts};

const FILE: &str = "holdings";
const UNFINISHED: &str = "holdings.new";
/// Largest file that is read, in bytes: 100 disks with a million contents each.
const MAX_BYTES: u64 = 2 << 30;

impl Net {
    /// Take up what was known, and begin our own count with what this disk holds. Blocks on the disk.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn recall_holdings(&self) -> FsResult<()> {
        let me = self.engine.folder.disk_id();
        let mut bytes = Vec::new();
        if let Ok(file) = self.engine.folder.open_file(FILE, OFlag::O_RDONLY) {
            file.take(MAX_BYTES).read_to_end(&mut bytes)?;
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
                last_epoch = message.epoch;
            } else if !is_counted {
                parts = Parts::default();
            } else if let Ok(Part::Whole(message)) = parts.add(message) {
                self.holdings.lock().hear(&message);
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let mut held = HashSet::new();
        for content in self.engine.store.held() {
            match content {
                Ok(content) => drop(held.insert(content)),
                Err(error) => tracing::warn!("not counted as held: {error}"),
            }
        }
        self.holdings.lock().begin(me, now.max(last_epoch + 1), held.into_iter());
        // Links may be up already, and have said that nothing is known of this disk.
        let known = self.holdings.lock().own(me);
        known.into_iter().for_each(|message| self.tell(None, message));
        // On a full disk it is not written: then the clock alone makes the next epoch greater.
        if let Err(error) = self.remember_holdings() {
            tracing::warn!("what other disks hold is not written down: {error}");
        }
        Ok(())
    }

    /// Write down what is known. Blocks on the disk.
    ///
    /// # Errors
    /// What the disk says; the file is then the old one.
    pub fn remember_holdings(&self) -> FsResult<()> {
        let me = self.engine.folder.disk_id();
        let mut bytes = Vec::new();
        {
            let holdings = self.holdings.lock();
            let own = pb::Holdings { disk_id: me.0.to_vec(), epoch: holdings.epoch(me), ..pb::Holdings::default() };
            for message in std::iter::once(own).chain(holdings.dump(me)) {
                message.encode_length_delimited(&mut bytes).map_err(|_| Errno::EIO)?;
            }
        }
        let folder = &self.engine.folder;
        let mut file = folder.open_file(UNFINISHED, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        renameat(folder.root_fd(), UNFINISHED, folder.root_fd(), FILE)?;
        Ok(())
    }
}
