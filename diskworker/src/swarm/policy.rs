//! When a torrent is dropped, and when a transfer counts as stuck. Pure functions of times, no clock.

use std::time::{Duration, Instant};

use delugefs_proto::ids::ContentId;

/// Torrents live at once. A live one costs about 25 kB and 0.005 % of a core even when idle.
pub(super) const LIVE_MAX: usize = 200;
/// A content nobody fetches from here for so long is no longer offered; the next peer that asks brings it back.
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(300);
/// A fetch that has peers but gets no piece for so long is begun anew: librqbit can lose a piece for ever.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(120);
/// So many new beginnings in a row without a single piece, and the fetch has failed: the peers have nothing, or rot.
pub(super) const RESTARTS_MAX: u32 = 3;

/// Whether something was used too long ago to stay live.
pub(super) fn is_idle(now: Instant, last_use: Instant) -> bool {
    now.saturating_duration_since(last_use) >= IDLE_AFTER
}

/// Whether a fetch is stuck. Without peers it only waits.
pub(super) fn is_stalled(now: Instant, last_progress: Instant, peers: u32) -> bool {
    peers > 0 && now.saturating_duration_since(last_progress) >= STALLED_AFTER
}

/// The one to give up when there are too many: the longest unused of those that may go.
pub(super) fn to_evict(candidates: impl Iterator<Item = (ContentId, Instant)>) -> Option<ContentId> {
    candidates.min_by_key(|(content, last_use)| (*last_use, *content)).map(|(content, _)| content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_after_five_minutes_and_not_before() {
        let then = Instant::now();
        assert!(!is_idle(then, then));
        assert!(!is_idle(then + IDLE_AFTER - Duration::from_millis(1), then));
        assert!(is_idle(then + IDLE_AFTER, then));
        // A clock reading that is older than the use, as another thread may have taken it.
        assert!(!is_idle(then, then + Duration::from_secs(1)));
    }

    #[test]
    fn stuck_only_with_peers() {
        let then = Instant::now();
        assert!(is_stalled(then + STALLED_AFTER, then, 1));
        assert!(!is_stalled(then + STALLED_AFTER, then, 0));
        assert!(!is_stalled(then + STALLED_AFTER / 2, then, 5));
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let then = Instant::now();
        let of = |n: u8, age: u64| (ContentId([n; 32]), then - Duration::from_secs(age));
        assert_eq!(to_evict([of(1, 5), of(2, 9), of(3, 1)].into_iter()), Some(ContentId([2; 32])));
        assert_eq!(to_evict([of(2, 5), of(1, 5)].into_iter()), Some(ContentId([1; 32])));
        assert_eq!(to_evict(std::iter::empty()), None);
    }
}
