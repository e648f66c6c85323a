//! How long a disk reads because other disks ask it to: a tenth of the time, and what it has saved of that. Who asks now and then is
//! answered at once, however large the content; who asks for one after the other is told no, and the disk is its users'.
//!
//! One for all who ask: a disk that used up what is there costs the others an answer, and they ask again.

use std::time::{Duration, Instant};

/// The part of the time.
const SHARE: u32 = 10;
/// What is saved at most.
const SAVED: Duration = Duration::from_secs(60);
/// Who had a content of terabytes read owes days; others must not wait for that.
const OWED: Duration = Duration::from_secs(3_600);

/// See the module.
pub(super) struct Allowance {
    /// When all is saved that can be, if nothing is read until then. What is read is read to its end.
    full_at: Instant,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { full_at: Instant::now() }
    }
}

impl Allowance {
    /// How long until there is something left; nothing when there is.
    pub fn wait(&self, now: Instant) -> Duration {
        self.full_at.saturating_duration_since(now).saturating_sub(SAVED * SHARE)
    }

    /// Whether there is something left.
    pub fn has_some(&self, now: Instant) -> bool {
        self.wait(now).is_zero()
    }

    /// It has read for so long.
    pub fn spend(&mut self, read: Duration, now: Instant) {
        let full_at = self.full_at.max(now) + read.saturating_mul(SHARE);
        self.full_at = full_at.min(now + SAVED * SHARE + OWED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_time_and_what_was_saved() {
        let (s, begin) = (Duration::from_secs, Instant::now());
        let mut allowance = Allowance { full_at: begin };
        // Who asks all the time: a minute at once, and then a tenth of each hour.
        let (mut now, mut read) = (begin, Duration::ZERO);
        while now < begin + s(36_000) {
            match allowance.has_some(now) {
                true => {
                    now += s(7);
                    read += s(7);
                    allowance.spend(s(7), now);
                }
                false => now += s(1),
            }
        }
        assert!(read >= s(3_600) && read <= s(3_600 + 60 + 14), "{read:?}");
        // What is read is read to its end, and paid for, but not for days.
        allowance.spend(s(300), now);
        assert!(!allowance.has_some(now + s(2_000)) && allowance.has_some(now + s(3_100)));
        allowance.spend(s(7_200), now);
        assert!(!allowance.has_some(now + s(3_599)) && allowance.has_some(now + s(3_600)));
        // Nothing is saved beyond the minute.
        let later = now + s(1_000_000);
        allowance.spend(s(59), later);
        assert!(allowance.has_some(later));
        allowance.spend(s(2), later);
        assert_eq!((allowance.has_some(later), allowance.wait(later)), (false, s(10)));
    }
}
