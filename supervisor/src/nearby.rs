//! Disks that answered on the local network, and where: hints, and no more, because anybody can answer. So there is room for only so
//! many, in which members of our clusters go before strangers, and who is not heard of for some time is forgotten.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use delugefs_proto::ids::DiskId;

/// Disks remembered.
pub const MAX: usize = 1000;
/// Disks that are there answer every few seconds.
const KEPT: Duration = Duration::from_secs(120);

/// See the module.
#[derive(Debug, Default)]
pub struct Nearby(BTreeMap<DiskId, Heard>);

#[derive(Debug)]
struct Heard {
    address: String,
    is_member: bool,
    at: Instant,
}

impl Nearby {
    /// A disk answered from this address.
    pub fn hear(&mut self, disk: DiskId, address: String, is_member: bool, now: Instant) {
        if self.0.len() >= MAX && !self.0.contains_key(&disk) {
            let strangers = self.0.iter().filter(|(_, heard)| !heard.is_member);
            let oldest = strangers.min_by_key(|(_, heard)| heard.at).map(|(stranger, _)| *stranger);
            match oldest.filter(|_| is_member) {
                Some(stranger) => drop(self.0.remove(&stranger)),
                None => return,
            }
        }
        self.0.insert(disk, Heard { address, is_member, at: now });
    }

    /// Forget those that have not answered for long.
    pub fn forget(&mut self, now: Instant) {
        self.0.retain(|_, heard| now.saturating_duration_since(heard.at) < KEPT);
    }

    /// Where this disk answered.
    pub fn of(&self, disk: DiskId) -> Option<String> {
        self.0.get(&disk).map(|heard| heard.address.clone())
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (DiskId, &str)> {
        self.0.iter().map(|(disk, heard)| (*disk, &*heard.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger(n: usize) -> DiskId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        DiskId(id)
    }

    #[test]
    fn strangers_shut_no_member_out_and_are_forgotten() {
        let (mut nearby, start) = (Nearby::default(), Instant::now());
        for n in 0..MAX * 2 {
            nearby.hear(stranger(n), "10.0.0.9:1".into(), false, start);
        }
        assert_eq!(nearby.all().count(), MAX);
        let member = DiskId([7; 32]);
        nearby.hear(member, "10.0.0.2:5".into(), true, start + Duration::from_secs(60));
        assert_eq!((nearby.of(member), nearby.all().count()), (Some("10.0.0.2:5".into()), MAX));
        // It has moved.
        nearby.hear(member, "10.0.0.3:5".into(), true, start + Duration::from_secs(61));
        assert_eq!(nearby.of(member), Some("10.0.0.3:5".into()));
        nearby.forget(start + KEPT);
        assert_eq!(nearby.all().collect::<Vec<_>>(), [(member, "10.0.0.3:5")], "who is unseen for two minutes is gone");
        nearby.hear(stranger(1), "10.0.0.9:1".into(), false, start + KEPT);
        assert_eq!(nearby.all().count(), 2);
    }
}
