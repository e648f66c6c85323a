//! How a receiver waits: awake for a moment where messages have come at once lately, else asleep.
//!
//! To wake a thread costs more than to answer most requests, above all where the processor sleeps meanwhile: on a virtual
//! machine of two cores a rename took twice as long. So who is answered within [`MOMENT`] again and again looks for the
//! answer itself; who has waited for longer goes to sleep at once until that has changed.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest time to stay awake for one message. A program that renames one file after the other has 150 us between two calls
/// while everybody sleeps in between: less than that would never begin.
const MOMENT: Duration = Duration::from_micros(250);
/// Giving up the processor for a moment takes so long when others want it who have nothing to do with this.
const CROWDED: Duration = Duration::from_micros(50);
/// So many short waits in a row make the next one be spent awake.
const ENOUGH: u8 = 3;
/// A long row ends after as many long waits as it takes to halve this below [`ENOUGH`].
const MOST: u8 = 8;

/// Threads of this process that are waiting awake. Never more than half the processors: there is work to be done, too.
static AWAKE: AtomicUsize = AtomicUsize::new(0);
static AWAKE_MAX: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)));

/// What is known of the waits of one receiver.
#[derive(Default)]
pub(super) struct Spin {
    /// Short waits in a row.
    short: u8,
}

/// Permission to wait awake.
struct Turn;

impl Turn {
    fn take() -> Option<Self> {
        let turn = Self; // gives back what it took also when it was one too many
        (AWAKE.fetch_add(1, Ordering::Relaxed) < *AWAKE_MAX).then_some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        AWAKE.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Spin {
    /// Before receiving: stay awake until `is_ready`, if that has been worth it lately. Returns when that began.
    pub fn stay_awake(&mut self, is_ready: impl Fn() -> bool) -> Instant {
        let begun = Instant::now();
        if self.short < ENOUGH {
            return begun;
        }
        let Some(_turn) = Turn::take() else { return begun };
        let mut now = begun;
        while now - begun < MOMENT && !is_ready() {
            // Whoever is to answer may need this processor. If others do it comes back late: who sleeps is served before them.
            let before = now;
            std::thread::yield_now();
            now = Instant::now();
            if now - before > CROWDED && !is_ready() {
                self.short /= 2;
                break;
            }
        }
        begun
    }

    /// After receiving: note how long that took.
    pub fn waited(&mut self, begun: Instant) {
        self.short = match begun.elapsed() <= MOMENT {
            true => (self.short + 1).min(MOST),
            false => self.short / 2,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn stays_awake_only_where_that_was_worth_it() {
        let looks = Cell::new(0);
        let asks = |spin: &mut Spin| {
            looks.set(0);
            let begun = spin.stay_awake(|| {
                looks.set(looks.get() + 1);
                true
            });
            (looks.get(), begun)
        };
        let long_ago = Instant::now().checked_sub(MOMENT * 2).unwrap();
        let mut spin = Spin::default();
        for _ in 0..ENOUGH {
            assert_eq!(asks(&mut spin).0, 0, "nothing is known yet");
            // As if it had taken no time, whatever this machine is doing.
            spin.waited(Instant::now() + MOMENT);
        }
        // Others of this process may be awake just now: then it is not, and has to be asked again.
        let deadline = Instant::now() + Duration::from_secs(20);
        while asks(&mut spin).0 == 0 {
            assert!(Instant::now() < deadline, "it never stays awake");
            std::thread::yield_now();
        }
        for _ in 0..MOST {
            spin.waited(long_ago);
        }
        assert_eq!(asks(&mut spin).0, 0, "it was not worth it");
    }

    #[test]
    fn no_more_are_awake_than_half_the_processors() {
        let turns: Vec<_> = std::iter::repeat_with(Turn::take).take(*AWAKE_MAX + 1).collect();
        assert!(turns.iter().any(Option::is_none));
    }
}
