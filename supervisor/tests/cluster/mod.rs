//! Several hosts on one machine: each in a network namespace of its own, with a cable to a switch in another one. Real
//! programs, real mounts; no packet leaves the namespaces. Needs root, /dev/fuse and `ip`; where they are missing a test
//! says so and passes. Every story ends with `Lab::finish`, which has the last look at all of it (`ending`).

#[cfg(target_os = "linux")]
mod bad_calls;
#[cfg(target_os = "linux")]
mod bad_member;
mod disks;
mod ending;
mod figures;
#[cfg(target_os = "linux")]
mod forged;
mod hostile;
mod killed;
mod lab;
mod letting_go;
#[cfg(target_os = "linux")]
mod liar;
mod limits;
mod load;
mod members;
mod readers;
mod rough;
#[cfg(target_os = "linux")]
mod slow;
mod stories;
mod trouble;
mod wander;

use std::time::{Duration, Instant};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(90);

/// Wait for a condition; `why` is asked when it does not come true.
fn wait_for(what: &str, why: impl Fn() -> String, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}\n{}", why());
        std::thread::sleep(Duration::from_millis(20));
    }
}
