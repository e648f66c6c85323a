//! The one integration-test binary of this crate.

#![allow(clippy::unwrap_used)]

mod core;
mod fake;
mod model;
mod mount;
