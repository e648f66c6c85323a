//! The process that keeps a host's disks and mounts running (`delugefs-supervisor`), and the user's command
//! (`delugefs`), which talks to it. `DESIGN.md` beside this crate's manifest has the picture, the states and the formats.
//!
//! Reading order: [`run`] (the boot log), [`owner`] (all decisions), [`process`] (what it watches), [`server`] (the
//! control socket), [`cli`] (the command). [`policy`] stands alone: which contents this host's disks keep; [`replicate`] carries it out. This crate
//! knows nothing of catalogs, torrents or FUSE.

pub mod addresses;
pub mod browse;
pub mod cli;
pub mod cluster;
pub mod discovery;
pub mod drain;
pub mod failure;
pub mod farewell;
pub mod identity;
pub mod join;
pub mod libexec;
pub mod log;
pub mod logtail;
pub mod marks;
pub mod membership;
pub mod mountpoint;
pub mod nearby;
pub mod notes;
pub mod owner;
pub mod paths;
pub mod policy;
pub mod process;
pub mod remember;
pub mod replicate;
pub mod returned;
pub mod run;
pub mod server;
pub mod statefile;
pub mod sys;
pub mod uds;
pub mod worker;

pub use delugefs_proto::escape;
