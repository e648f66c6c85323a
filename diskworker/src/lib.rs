//! The process that owns one disk of a DelugeFS cluster.
//!
//! Reading order: [`folder`] (what is on the disk), [`catalog`] (git as the store of names), [`view`] and [`namespace`]
//! (POSIX on top of it), [`journal`] (what makes an answer safe), [`content`] (the files' bytes), [`engine`] (all of it
//! at work), [`swarm`] (torrents), [`net`] (other disks), [`fetch`] (their contents), [`serve`] (the sockets), `run` (the process).

pub mod catalog;
pub mod cli;
pub mod content;
pub mod engine;
pub mod fetch;
pub mod folder;
pub mod journal;
pub mod namespace;
pub mod net;
pub mod os;
pub mod register;
pub mod run;
pub mod serve;
pub mod swarm;
pub mod view;
