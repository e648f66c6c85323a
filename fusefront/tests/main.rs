//! The one integration-test binary of this crate.

#![allow(clippy::unwrap_used)]

mod core;
mod fake;
mod kernel;
mod model;
// Compared call by call with what Linux does on a local file system.
#[cfg(target_os = "linux")]
mod mount;
