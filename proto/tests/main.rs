//! Formats that other processes, other hosts and our own past depend on.

#![allow(clippy::unwrap_used)] // a failed unwrap is how a test fails

mod formats;
