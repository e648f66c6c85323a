//! Integration tests of the diskworker.

mod disk;
mod model;
mod reference;
