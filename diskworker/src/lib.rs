//! The process that owns one disk of a DelugeFS cluster.

pub mod catalog;
pub mod content;
pub mod folder;
pub mod os;
pub mod swarm;
