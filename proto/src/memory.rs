//! How the programs treat memory they no longer need.
//!
//! A walk of a large catalog takes tens of megabytes for a moment. glibc's allocator keeps what is freed, in an arena for
//! each thread, and raises the size from which it asks the kernel for pages of their own. With 100,000 contents an idle
//! host had 177 MB that way, and 140 MB with what is set here. FreeBSD's jemalloc returns pages by itself.
//!
//! What lies between what is still used it keeps even then: 180 of 322 MB after 190,000 files were made. So that is given back when the
//! program has nothing to do.
//!
//! The buffers that contents travel in, 256 KiB each, must not be large in this sense: pages taken from the kernel anew for each
//! message were a sixth of what it cost to read a remote file.

// The calls to the allocator.
#![allow(unsafe_code)]

use std::time::Duration;

/// How often to look what the program has been doing.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A program that used less of a processor in that time is idle.
const IDLE: Duration = Duration::from_millis(500);
/// Looks after which memory is given back also where there is no rest.
const BUSY_LOOKS: u32 = 60;

/// Give memory back to the system early. To be called once, before there are threads.
pub fn return_early() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const ARENAS: nix::libc::c_int = 2;
        /// From this size on memory comes from the kernel, and goes back at once.
        const LARGE_BYTES: nix::libc::c_int = 1 << 20;
        /// Of each arena, at its end.
        const KEPT_BYTES: nix::libc::c_int = 8 << 20;
        // SAFETY: mallopt only sets numbers of the allocator; no thread but this one exists yet.
        unsafe {
            nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS);
            nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE_BYTES);
            nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        }
    }
}

/// From now on give back what the allocator keeps whenever the program has worked and come to rest. To be called once; takes a thread
/// where there is something to do for it. Without one nothing is given back.
pub fn give_back_when_idle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
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
#[cfg(all(target_os = "linux", target_env = "gnu"))]
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
