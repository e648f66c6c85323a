//! Integration tests of the diskworker.

#![allow(clippy::unwrap_used)] // a failed unwrap is how a test fails

mod again;
mod complete;
#[cfg(target_os = "linux")]
mod conflict;
mod directories;
mod disk;
mod found;
#[cfg(target_os = "linux")]
mod full;
mod hidden;
#[cfg(target_os = "linux")]
mod hostile;
mod kept;
#[cfg(target_os = "linux")]
mod many;
mod model;
mod open_files;
mod power;
mod reference;
mod replicas;
#[cfg(target_os = "linux")]
mod small;
mod taken;
mod unsynced;
#[cfg(target_os = "linux")]
mod user;
#[cfg(target_os = "linux")]
mod worker;
