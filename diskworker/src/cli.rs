//! The worker's command line.

use std::path::PathBuf;

use delugefs_proto::{config, rundir};

/// Owns one disk of a DelugeFS cluster: its store, its catalog, its torrents. One process per disk; usually started by
/// delugefs-supervisor.
#[derive(clap::Parser, Debug)]
#[command(name = "delugefs-diskworker", version)]
pub struct Cli {
    /// The disk's folder
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// Name of the cluster the disk belongs to (with --create: is to belong to)
    #[arg(long, value_name = "NAME")]
    pub cluster: String,
    /// Make the folder a new disk; it must not exist or be empty
    #[arg(long)]
    pub create: bool,
    /// With --create: the id of the existing cluster the disk is to join; without it a new cluster begins
    #[arg(long, value_name = "HEX", requires = "create")]
    pub cluster_id: Option<String>,
    /// Where the sockets go
    #[arg(long, value_name = "DIR", default_value_os_t = rundir::default_run_dir())]
    pub run_dir: PathBuf,
    /// A user besides root and the worker's own that may connect (the one the frontend runs as)
    #[arg(long = "allow-uid", value_name = "UID")]
    pub allow_uids: Vec<u32>,
    /// Bytes of the disk's file system to leave free
    #[arg(long, value_name = "BYTES", default_value_t = config::default_reserve_bytes())]
    pub reserve_bytes: u64,
    /// Seconds to keep contents that no file has any more
    #[arg(long, value_name = "SECONDS", default_value_t = config::default_retention_s())]
    pub retention_s: u64,
    /// Do not tell the host's supervisor about this disk
    #[arg(long)]
    pub no_register: bool,
}
