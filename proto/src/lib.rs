//! Everything two DelugeFS processes, or a process and its own past on disk, must agree on: identifiers, catalog
//! records and their one encoding, names, limits, errors, configuration, the local socket protocol and the gRPC services.
//!
//! This crate knows nothing of git, torrents or FUSE: `git2`, `librqbit` and `fuser` never enter it. What the bytes
//! look like is written down in `FORMATS.md` beside this crate's manifest, and golden tests hold it to that.
//!
//! Reading order: [`ids`], [`record`] (the model of a file system entry), [`codec`] (its bytes), [`local`] (the socket).

pub mod codec;
pub mod config;
pub mod disk;
pub mod errno;
pub mod escape;
pub mod exit;
pub mod filesize;
#[cfg(feature = "identity")]
pub mod identity;
pub mod ids;
pub mod limits;
pub mod local;
#[cfg(feature = "identity")]
pub mod members;
pub mod memory;
#[cfg(feature = "identity")]
pub mod message;
pub mod plain;
pub mod record;
pub mod rundir;
pub mod source;
pub mod times;
#[cfg(feature = "identity")]
pub mod token;

pub use pb::control::v1 as control_pb;
pub use pb::local::v1 as local_pb;
pub use pb::peer::v1 as peer_pb;
pub use pb::worker::v1 as worker_pb;

/// Generated from the `.proto` files, in the module layout the generator expects.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
mod pb {
    pub mod local {
        pub mod v1 {
            tonic::include_proto!("delugefs.local.v1");
        }
    }
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("delugefs.peer.v1");
        }
    }
    pub mod worker {
        pub mod v1 {
            tonic::include_proto!("delugefs.worker.v1");
        }
    }
    pub mod control {
        pub mod v1 {
            tonic::include_proto!("delugefs.control.v1");
        }
    }
}
