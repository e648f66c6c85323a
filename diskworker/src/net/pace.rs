//! Bandwidth limits: what contents may take of the line, each direction for all connections together. Catalogs, holdings and
//! questions are not held up: they are small, and what waits behind a limit would look dead. Disks of one host are not
//! limited among each other.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

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

    /// [`Self::pass`], and wait so long.
    pub async fn passed(&self, bytes: usize) {
        if let Some(wait) = self.pass(bytes) {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Both directions.
#[derive(Clone, Debug)]
pub struct Limits {
    /// What this disk sends.
    pub up: Arc<Pace>,
    /// What it receives.
    pub down: Arc<Pace>,
}

impl Limits {
    /// In bytes per second; 0 is no limit.
    pub fn new(up: u64, down: u64) -> Self {
        Self { up: Pace::new(up), down: Pace::new(down) }
    }

    /// Those that hold for a peer at this address.
    pub fn towards(&self, peer: IpAddr) -> Option<&Self> {
        (!peer.to_canonical().is_loopback()).then_some(self)
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
    fn disks_of_one_host_are_not_limited() {
        let limits = Limits::new(1, 1);
        for (address, limited) in
            [("127.0.0.1", false), ("::1", false), ("::ffff:127.0.0.1", false), ("10.0.0.1", true)]
        {
            assert_eq!(limits.towards(address.parse().unwrap()).is_some(), limited, "{address}");
        }
    }
}
