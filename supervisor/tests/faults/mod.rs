//! Full and failing disks, seen through a mount: the real worker and the real frontend on a file system of a few MiB.
//! Everything is mounted in a mount namespace of the test's own thread and goes with it. Needs root and /dev/fuse; where
//! they are missing a test says so and passes.
#![cfg(target_os = "linux")]

mod damage;
mod full;
mod lab;
