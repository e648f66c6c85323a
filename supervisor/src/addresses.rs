//! Where disks were reached, over restarts (`STATE_DIR/addresses.json`), and the port each disk of this host had last.
//! Hints only: the workers check keys.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use delugefs_proto::ids::DiskId;
use delugefs_proto::token::is_address;
use delugefs_proto::worker_pb::{Hint, Peer};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::statefile;

const FILE: &str = "addresses.json";
/// Addresses kept of one disk.
const PER_DISK_MAX: usize = 8;
/// Disks kept.
const DISKS_MAX: usize = 1000;
/// Between two attempts to write what could not be written.
const FAILED_EVERY: Duration = Duration::from_secs(60);
/// How often other addresses in place of known ones are written at most, and a mere change of their order. The disks of a host reach
/// others at different addresses, and each says every second which one is the best.
const REPLACED_EVERY: Duration = Duration::from_secs(60);
const REORDERED_EVERY: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub struct Addresses {
    state_dir: PathBuf,
    known: Mutex<Known>,
    written: Mutex<Written>,
}

/// What is in the file.
#[derive(Debug)]
struct Written {
    known: Known,
    /// Since when, as far as it was written by us.
    since: Option<Instant>,
    /// When the last attempt failed that nothing has been written since.
    failed: Option<Instant>,
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

impl Known {
    /// How long this may wait to be written after another was.
    fn may_wait(&self, before: &Self) -> Duration {
        let both = || self.addresses.iter().map(|(disk, list)| (list, before.addresses.get(disk)));
        if self.ports != before.ports || !both().all(|(list, old)| old.is_some_and(|old| old.len() >= list.len())) {
            return Duration::ZERO;
        }
        let has_old = |(list, old): (&Vec<String>, Option<&Vec<String>>)| {
            old.is_some_and(|old| list.iter().all(|address| old.contains(address)))
        };
        if both().all(has_old) { REORDERED_EVERY } else { REPLACED_EVERY }
    }
}

impl Addresses {
    /// Read what there is; a damaged file is begun anew.
    pub fn open(state_dir: PathBuf) -> Self {
        let bytes = statefile::read(&state_dir, FILE).unwrap_or_else(|error| {
            tracing::warn!("{error:#}");
            None
        });
        let known: Known = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let written = Mutex::new(Written { known: known.clone(), since: None, failed: None });
        Self { state_dir, known: Mutex::new(known), written }
    }

    /// Addresses of a disk were learned, the best first. New ones come in place of those that are not among them.
    pub fn learn(&self, disk: DiskId, addresses: &[String]) {
        self.change(|known| {
            let list = known.addresses.entry(disk.to_hex()).or_default();
            for address in addresses.iter().take(PER_DISK_MAX).filter(|address| is_address(address)) {
                if list.contains(address) {
                    continue;
                }
                if list.len() >= PER_DISK_MAX
                    && let Some(at) = list.iter().rposition(|one| !addresses.contains(one))
                {
                    list.remove(at);
                }
                list.push(address.clone());
            }
            if let Some(at) = addresses.first().and_then(|best| list.iter().position(|one| one == best)) {
                list[..=at].rotate_right(1);
            }
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
        change(&mut known);
        let mut written = self.written.lock();
        let is_early = |at: Option<Instant>, pause| at.is_some_and(|at| at.elapsed() < pause);
        if *known == written.known
            || is_early(written.since, known.may_wait(&written.known))
            || is_early(written.failed, FAILED_EVERY)
        {
            return;
        }
        let now = Some(Instant::now());
        let bytes = serde_json::to_vec_pretty(&*known).map_err(anyhow::Error::from);
        match bytes.and_then(|bytes| statefile::write(&self.state_dir, FILE, &bytes)) {
            Ok(()) => *written = Written { known: known.clone(), since: now, failed: None },
            Err(error) => {
                tracing::warn!("addresses are not remembered: {error:#}");
                written.failed = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_do_not_agree_on_the_best_address_write_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = Addresses::open(dir.path().into());
        let disk = DiskId([1; 32]);
        let [one, other] = ["10.0.0.1:7", "192.168.0.1:7"].map(str::to_owned);
        let said = [[one.clone(), other.clone()], [other.clone(), one.clone()]];
        addresses.learn(disk, &said[0]);
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        for best in said.iter().chain(&said) {
            addresses.learn(disk, best);
            assert_eq!(addresses.of(disk), best);
        }
        assert!(!dir.path().join(FILE).exists());
        addresses.written.lock().since = None;
        addresses.learn(disk, &said[1]);
        assert_eq!(Addresses::open(dir.path().into()).of(disk), said[1]);
        // A new one is the best, or not; what is nonsense is none.
        let more = "10.0.0.2:7".to_owned();
        addresses.learn(disk, &[one.clone(), "nonsense".into(), more.clone()]);
        assert_eq!(Addresses::open(dir.path().into()).of(disk), [one.clone(), other, more.clone()]);
        let many: Vec<String> = (3..11).map(|n| format!("10.0.0.{n}:7")).collect();
        addresses.learn(disk, &[std::slice::from_ref(&one), &many[..]].concat());
        assert_eq!(addresses.of(disk)[0], one);
        assert!(addresses.of(disk).contains(&many[6]) && !addresses.of(disk).contains(&more));
    }

    #[test]
    fn what_could_not_be_written_is_written_later_though_nothing_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = Addresses::open(dir.path().join("state"));
        let (disk, said) = (DiskId([1; 32]), ["10.0.0.1:7".to_owned()]);
        addresses.learn(disk, &said);
        std::fs::create_dir(dir.path().join("state")).unwrap();
        addresses.learn(disk, &said);
        assert!(!dir.path().join("state").join(FILE).exists(), "too early");
        addresses.written.lock().failed = None;
        addresses.learn(disk, &said);
        assert_eq!(Addresses::open(dir.path().join("state")).of(disk), said);
    }

    #[test]
    fn the_latest_come_first_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = Addresses::open(dir.path().into());
        let disk = DiskId([1; 32]);
        for n in 0..20 {
            addresses.learn(disk, &[format!("10.0.0.{n}:7")]);
        }
        // In place of others, and so not at once; but with the next that is more.
        assert_eq!(Addresses::open(dir.path().into()).of(disk)[0], "10.0.0.7:7");
        addresses.set_port(&disk.to_hex(), 4711);
        let again = Addresses::open(dir.path().into());
        let hints = again.hints();
        assert_eq!((hints.len(), hints[0].address.as_str()), (PER_DISK_MAX, "10.0.0.19:7"));
        assert_eq!((again.port(&disk.to_hex()), again.port("other")), (4711, 0));
        std::fs::write(dir.path().join(FILE), b"{").unwrap();
        assert!(Addresses::open(dir.path().into()).hints().is_empty());
    }
}
