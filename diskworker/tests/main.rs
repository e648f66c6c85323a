//! Integration tests of the diskworker.

#![allow(clippy::unwrap_used)] // a failed unwrap is how a test fails

mod disk;
mod model;
mod open_files;
mod reference;
