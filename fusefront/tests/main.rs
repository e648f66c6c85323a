//! The one integration-test binary of this crate.

mod core;
mod fake;
mod mount;
