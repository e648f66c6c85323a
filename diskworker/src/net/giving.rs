//! Large contents that others read from this disk by ranges, for `torrents`: each for some seconds after the last of its bytes. Smaller
//! ones come and go too fast to be seen.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use delugefs_proto::ids::{ContentId, DiskId};
use delugefs_proto::limits::TORRENT_MIN_BYTES;
use delugefs_proto::worker_pb as pb;

/// So long after the last byte it is shown, and a disk is counted.
const SHOWN: Duration = Duration::from_secs(5);
/// Contents shown at once.
const SHOWN_MAX: usize = 256;

/// See the module.
#[derive(Default)]
pub(super) struct Giving(HashMap<ContentId, Given>);

struct Given {
    size: u64,
    /// When this began, and what was given since.
    begin: Instant,
    bytes: u64,
    last: Instant,
    disks: HashMap<DiskId, Instant>,
}

impl Giving {
    /// A disk asks for a range of a content that has this size.
    pub fn begin(&mut self, content: ContentId, size: u64, disk: DiskId, now: Instant) {
        if size <= TORRENT_MIN_BYTES {
            return;
        }
        self.0.retain(|_, given| now.duration_since(given.last) < SHOWN);
        if self.0.len() >= SHOWN_MAX && !self.0.contains_key(&content) {
            return;
        }
        let new = || Given { size, begin: now, bytes: 0, last: now, disks: HashMap::new() };
        let given = self.0.entry(content).or_insert_with(new);
        given.last = now;
        given.disks.retain(|_, at| now.duration_since(*at) < SHOWN);
        given.disks.insert(disk, now);
    }

    /// Bytes of it were given.
    pub fn gave(&mut self, content: ContentId, bytes: u64, now: Instant) {
        if let Some(given) = self.0.get_mut(&content) {
            (given.bytes, given.last) = (given.bytes + bytes, now);
        }
    }

    /// What is shown.
    pub fn list(&self, now: Instant) -> Vec<pb::Torrent> {
        let shown = self.0.iter().filter(|(_, given)| now.duration_since(given.last) < SHOWN);
        let describe = |(content, given): (&ContentId, &Given)| pb::Torrent {
            content: content.0.to_vec(),
            size_bytes: given.size,
            have_bytes: given.size,
            seeding: true,
            peers: given.disks.len() as u32,
            up_bytes_per_s: (given.bytes as f64 / now.duration_since(given.begin).as_secs_f64().max(0.1)) as u64,
            ..pb::Torrent::default()
        };
        shown.map(describe).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_shown_for_a_while() {
        let (large, small, begin) = (ContentId([1; 32]), ContentId([2; 32]), Instant::now());
        let mut giving = Giving::default();
        giving.begin(large, 1 << 30, DiskId([1; 32]), begin);
        giving.begin(large, 1 << 30, DiskId([2; 32]), begin);
        giving.begin(small, TORRENT_MIN_BYTES, DiskId([2; 32]), begin);
        let later = begin + Duration::from_secs(2);
        giving.gave(large, 8 << 20, later);
        giving.gave(small, 1 << 20, later);
        let shown = giving.list(later);
        assert_eq!((shown.len(), shown[0].peers, shown[0].up_bytes_per_s, shown[0].seeding), (1, 2, 4 << 20, true));
        assert_eq!(giving.list(later + SHOWN).len(), 0);
        for n in 0..2 * SHOWN_MAX {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_le_bytes());
            giving.begin(ContentId(id), 1 << 30, DiskId([1; 32]), later);
        }
        assert_eq!(giving.0.len(), SHOWN_MAX);
        giving.begin(large, 1 << 30, DiskId([1; 32]), later + SHOWN);
        assert_eq!(giving.0.len(), 1);
    }
}
