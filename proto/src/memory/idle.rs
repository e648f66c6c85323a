//! Gives back what glibc's allocator keeps, when the program has worked and come to rest.

use std::time::Duration;

/// How often to look what the program has been doing.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A program that used less of a processor in that time is idle.
const IDLE: Duration = Duration::from_millis(500);
/// Looks after which memory is given back also where there is no rest.
const BUSY_LOOKS: u32 = 60;

/// Watch over it from now on.
pub fn watch() {
    let watch = || {
        let mut worked = Worked::default();
        let mut before = used();
        loop {
            std::thread::sleep(LOOK_EVERY);
            let now = used();
            if worked.is_over(now.saturating_sub(before)) {
                // SAFETY: it only returns pages that no allocation lies on, under the allocator's own locks.
                unsafe { nix::libc::malloc_trim(0) };
            }
            before = now;
        }
    };
    // It is a matter of thrift: whoever has no thread left for it has other troubles.
    drop(std::thread::Builder::new().name("memory".into()).spawn(watch));
}

/// Whether the program has worked since memory was last given back.
#[derive(Default)]
struct Worked {
    looks: u32,
}

impl Worked {
    /// Whether to give memory back, after another look at which the program had used that much of a processor.
    fn is_over(&mut self, used: Duration) -> bool {
        let is_idle = used < IDLE;
        if !is_idle {
            self.looks += 1;
        }
        let is_over = self.looks > 0 && is_idle || self.looks >= BUSY_LOOKS;
        if is_over {
            self.looks = 0;
        }
        is_over
    }
}

/// The time of processors that this process has used.
fn used() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_once_after_work_and_at_times_within_it() {
        let mut worked = Worked::default();
        assert!(!worked.is_over(Duration::ZERO), "it did nothing yet");
        assert!(!worked.is_over(IDLE));
        assert!(worked.is_over(Duration::ZERO));
        assert!(!worked.is_over(Duration::ZERO));
        let given = (0..BUSY_LOOKS * 3).filter(|_| worked.is_over(Duration::from_secs(20))).count();
        assert_eq!(given, 3);
    }
}
