//! Which workers of this host do not take in any more what its others know. Such a one answers as ever, but its catalog is old: the
//! policy would decide by it for ever.
//!
//! Each says what it has seen (its version vector, committed). What some of them had seen a minute ago all must have by now.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use delugefs_proto::disk::short_id;
use delugefs_proto::ids::DiskId;
use delugefs_proto::record::VersionVector;
use tokio::time::Instant;

/// A worker gets so long to follow. One that joins a large catalog needs longer, and is no good source either.
const FOLLOWS: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// What each had seen, and when.
    before: Option<(Instant, BTreeMap<DiskId, VersionVector>)>,
    behind: BTreeSet<DiskId>,
}

impl Lag {
    /// What those have seen that answer now and take changes.
    pub fn look(&mut self, seen: BTreeMap<DiskId, VersionVector>, now: Instant) {
        let Some((then, before)) = &self.before else { return self.before = Some((now, seen)) };
        if now < *then + FOLLOWS {
            return;
        }
        // Who is gone may have told nobody of his last changes.
        let mut all = VersionVector::default();
        before.iter().filter(|(disk, _)| seen.contains_key(disk)).for_each(|(_, vector)| all.merge(vector));
        let behind = seen.iter().filter(|(_, vector)| !vector.dominates(&all)).map(|(disk, _)| *disk);
        let mut behind: BTreeSet<DiskId> = behind.collect();
        if behind.len() == seen.len() {
            behind.clear(); // no two know of each other: none is better
        }
        for disk in behind.difference(&self.behind) {
            let id = disk.to_hex();
            tracing::warn!(
                "disk {} does not take in what the other disks of this host know: copies are decided about without it",
                short_id(&id)
            );
        }
        self.behind = behind;
        self.before = Some((now, seen));
    }

    /// Whether another one knows more.
    pub fn is_behind(&self, disk: DiskId) -> bool {
        self.behind.contains(&disk)
    }
}

#[cfg(test)]
mod tests {
    use delugefs_proto::ids::ActorId;

    use super::*;

    #[test]
    fn who_does_not_follow_within_a_minute_is_behind_until_it_does() {
        let (start, disks) = (Instant::now(), [1, 2, 3].map(|n| DiskId([n; 32])));
        let mut lag = Lag::default();
        // How far each has seen the changes of the first two.
        let mut look = |minute: u32, seen: &[[u64; 2]]| {
            let vector = |[a, b]: &[u64; 2]| VersionVector([(ActorId(1), *a), (ActorId(2), *b)].into());
            lag.look(disks.iter().copied().zip(seen.iter().map(vector)).collect(), start + FOLLOWS * minute);
            disks.map(|disk| lag.is_behind(disk))
        };
        assert_eq!(look(0, &[[9, 5], [8, 5], [4, 5]]), [false; 3]);
        // Busy: nobody has ever seen the very last of another.
        assert_eq!(look(1, &[[20, 5], [12, 6], [11, 5]]), [false; 3]);
        assert_eq!(look(2, &[[30, 7], [25, 9], [11, 5]]), [false, false, true]);
        assert_eq!(look(3, &[[40, 9], [30, 9], [30, 9]]), [false; 3]);
        // None follows another any more: none is better. And one that is gone is not waited for.
        assert_eq!(look(4, &[[50, 9], [40, 12]]), [false; 3]);
        assert_eq!(look(5, &[[60, 9], [40, 19]]), [false; 3]);
        assert_eq!(look(6, &[[70, 9]]), [false; 3]);
    }
}
