//! Where disks were reached, over restarts (`STATE_DIR/addresses.json`), and the port each disk of this host had last.
//! Hints only: the workers check keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use delugefs_proto::ids::DiskId;
use delugefs_proto::worker_pb::{Hint, Peer};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::statefile;

const FILE: &str = "addresses.json";
/// Addresses kept of one disk.
const PER_DISK_MAX: usize = 8;
/// Disks kept.
const DISKS_MAX: usize = 1000;

/// See the module.
#[derive(Debug)]
pub struct Addresses {
    state_dir: PathBuf,
    known: Mutex<Known>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// By disk id in hex.
    #[serde(default)]
    addresses: BTreeMap<String, Vec<String>>,
    /// TCP ports of this host's disks.
    #[serde(default)]
    ports: BTreeMap<String, u16>,
}

impl Addresses {
    /// Read what there is; a damaged file is begun anew.
    pub fn open(state_dir: PathBuf) -> Self {
        let bytes = statefile::read(&state_dir, FILE).unwrap_or_else(|error| {
            tracing::warn!("{error:#}");
            None
        });
        let known = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { state_dir, known: Mutex::new(known) }
    }

    /// An address of a disk was learned.
    pub fn learn(&self, disk: DiskId, addresses: &[String]) {
        self.change(|known| {
            let list = known.addresses.entry(disk.to_hex()).or_default();
            for address in addresses.iter().rev() {
                list.retain(|one| one != address);
                list.insert(0, address.clone());
            }
            list.truncate(PER_DISK_MAX);
            while known.addresses.len() > DISKS_MAX {
                known.addresses.pop_first();
            }
        });
    }

    /// What a worker says of other disks: where those are that it is connected with itself.
    pub fn learn_from(&self, peers: &[Peer]) {
        for peer in peers.iter().filter(|peer| peer.linked && !peer.addresses.is_empty()) {
            if let Some(disk) = DiskId::from_slice(&peer.disk_id) {
                self.learn(disk, &peer.addresses);
            }
        }
    }

    /// Where a disk was reached.
    pub fn of(&self, disk: DiskId) -> Vec<String> {
        self.known.lock().addresses.get(&disk.to_hex()).cloned().unwrap_or_default()
    }

    /// All that is known, for a worker.
    pub fn hints(&self) -> Vec<Hint> {
        let known = self.known.lock();
        let hints = known.addresses.iter().filter_map(|(disk, addresses)| Some((DiskId::from_hex(disk)?, addresses)));
        hints
            .flat_map(|(disk, addresses)| {
                addresses.iter().map(move |address| Hint { disk_id: disk.0.to_vec(), address: address.clone() })
            })
            .collect()
    }

    /// The port that a disk of this host had last; 0 when none is known.
    pub fn port(&self, disk_id: &str) -> u16 {
        self.known.lock().ports.get(disk_id).copied().unwrap_or(0)
    }

    /// A disk of this host has this port.
    pub fn set_port(&self, disk_id: &str, port: u16) {
        self.change(|known| {
            known.ports.insert(disk_id.to_owned(), port);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.known.lock();
        let before = known.clone();
        change(&mut known);
        if *known == before {
            return;
        }
        let written = serde_json::to_vec_pretty(&*known).map_err(anyhow::Error::from);
        if let Err(error) = written.and_then(|bytes| statefile::write(&self.state_dir, FILE, &bytes)) {
            tracing::warn!("addresses are not remembered: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_come_first_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = Addresses::open(dir.path().into());
        let disk = DiskId([1; 32]);
        for n in 0..20 {
            addresses.learn(disk, &[format!("10.0.0.{n}:7")]);
        }
        addresses.set_port(&disk.to_hex(), 4711);
        let again = Addresses::open(dir.path().into());
        let hints = again.hints();
        assert_eq!((hints.len(), hints[0].address.as_str()), (PER_DISK_MAX, "10.0.0.19:7"));
        assert_eq!((again.port(&disk.to_hex()), again.port("other")), (4711, 0));
        std::fs::write(dir.path().join(FILE), b"{").unwrap();
        assert!(Addresses::open(dir.path().into()).hints().is_empty());
    }
}
