//! Bandwidth limits: what contents may take of the line, each direction for all connections together. Catalogs, holdings and
//! questions are not held up: they are small, and what waits behind a limit would look dead. Disks of one host are not
//! limited among each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::shares::Shares;

/// What may pass at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// One direction.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: u64,
    /// When everything that has passed would be through at this rate.
    through: Mutex<Instant>,
}

impl Pace {
    /// So many bytes a second; as fast as it goes when 0.
    pub fn new(bytes_per_s: u64) -> Arc<Self> {
        Arc::new(Self { bytes_per_s, through: Mutex::new(Instant::now()) })
    }

    /// So many bytes pass now. How long to wait before more may.
    pub fn pass(&self, bytes: usize) -> Option<Duration> {
        self.pass_at(bytes, Instant::now())
    }

    fn pass_at(&self, bytes: usize, now: Instant) -> Option<Duration> {
        if self.bytes_per_s == 0 || bytes == 0 {
            return None;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        let mut through = self.through.lock();
        *through = (*through).max(now) + takes;
        through.checked_duration_since(now + BURST).filter(|wait| !wait.is_zero())
    }

    /// As many bytes of `most` as should pass at once: others wait meanwhile.
    pub fn block(&self, most: u64) -> u64 {
        match self.bytes_per_s {
            0 => most,
            rate => (rate / 8).clamp(16 << 10, most),
        }
    }

    /// So many bytes will pass as fast as they can, once those before are through. How long to wait for that.
    pub fn turn(&self, bytes: u64) -> Option<Duration> {
        self.turn_at(bytes, Instant::now())
    }

    fn turn_at(&self, bytes: u64, now: Instant) -> Option<Duration> {
        if self.bytes_per_s == 0 {
            return None;
        }
        let mut through = self.through.lock();
        let begin = (*through).max(now);
        *through = begin + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        begin.checked_duration_since(now + BURST).filter(|wait| !wait.is_zero())
    }
}

/// Both directions.
#[derive(Clone, Debug)]
pub struct Limits {
    /// What this disk sends.
    pub up: Arc<Pace>,
    /// What it receives.
    pub down: Arc<Pace>,
    /// Streams that share `up`: with more, each would be silent for longer than who waits for it endures.
    pub places: Shares,
}

/// See [`Limits::places`].
const STREAMS_MAX: usize = 16;
/// Of one disk, where others may ask too: a reader there and what it copies meanwhile.
const STREAMS_EACH: usize = 12;

impl Limits {
    /// In bytes per second; 0 is no limit.
    pub fn new(up: u64, down: u64) -> Self {
        Self { up: Pace::new(up), down: Pace::new(down), places: Shares::new(STREAMS_MAX, STREAMS_EACH) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_some_time_no_more_passes_than_may() {
        let pace = Pace::new(1_000_000);
        let start = Instant::now();
        let (mut now, mut passed) = (start, 0);
        while passed < 10_000_000 {
            let block = 1 + passed % 131_072;
            passed += block;
            now += pace.pass_at(block, now).unwrap_or_default();
        }
        let took = (now - start).as_secs_f64();
        assert!((9.5..10.5).contains(&took), "{took}");
        // Nothing is saved up over a pause but the burst.
        now += Duration::from_secs(60);
        assert_eq!(pace.pass_at(100_000, now), None);
        assert!(pace.pass_at(100_000, now).is_some());
        assert_eq!(Pace::new(0).pass(usize::MAX), None);
    }

    #[test]
    fn turns_come_one_after_the_other() {
        let pace = Pace::new(1_000_000);
        let now = Instant::now();
        assert_eq!(pace.turn_at(2_000_000, now), None);
        let wait = pace.turn_at(1_000_000, now).unwrap().as_secs_f64();
        assert!((1.8..2.1).contains(&wait), "{wait}");
        let wait = pace.turn_at(1, now).unwrap().as_secs_f64();
        assert!((2.8..3.1).contains(&wait), "{wait}");
        assert_eq!(pace.turn_at(1, now + Duration::from_secs(60)), None);
    }
}
