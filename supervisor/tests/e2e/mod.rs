//! The real programs on a real mount: what survives when they are killed. Needs /dev/fuse, and root or fusermount3;
//! where a machine cannot mount at all, a test says so and passes.
//!
//! `DELUGEFS_E2E_SEED` repeats a run, `DELUGEFS_E2E_ROUNDS` makes the long ones longer (default 20).

mod big;
mod crash;
mod host;
mod many_files;
mod mount_figures;
mod random;
mod replaced;
mod shelf;
#[cfg(target_os = "linux")]
mod times;
mod tree;
mod two_mounts;
mod unplugged;
mod work;
mod writers;

use std::time::{Duration, Instant};

pub use crash::assert_at_rest;
pub use host::{bin, children, clean, is_ours, kill_noted, noted, said, signal, usage};
pub use random::Random;

/// Longest wait for anything: more than an operation may wait for its worker.
const PATIENCE: Duration = Duration::from_secs(60);

/// Wait for a condition; `why` is asked when it does not come true.
fn wait_for(what: &str, why: impl Fn() -> String, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}\n{}", why());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A number from the environment.
pub fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}
