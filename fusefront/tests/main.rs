//! The one integration-test binary of this crate.

mod core;
mod fake;
mod model;
mod mount;
