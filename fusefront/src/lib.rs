//! The process that shows a DelugeFS cluster as a FUSE mount. It keeps nothing of its own: names and attributes come
//! from the diskworker into a bounded cache, bytes go through descriptors the worker passes, and losing this process
//! loses no acknowledged data.
//!
//! Reading order: [`run`] (the steps of starting), [`fs`] (the file system, without a kernel), [`adapter`] (the kernel),
//! [`worker`] and [`events`] (the link to the worker). What users may rely on is in `SEMANTICS.md`.

pub mod adapter;
pub mod alone;
pub mod cache;
pub mod call;
pub mod cli;
pub mod events;
pub mod fdpass;
pub mod fs;
#[cfg(target_os = "linux")]
pub mod fusermount;
pub mod handles;
pub mod known;
pub mod launcher;
pub mod mounts;
pub mod os;
pub mod panics;
pub mod pool;
pub mod privileges;
pub mod ranges;
pub mod run;
pub mod serve;
pub mod trouble;
pub mod worker;
