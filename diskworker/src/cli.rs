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
    /// The id of the cluster, for another one may have the same name; with --create: of the existing cluster the disk is to join,
    /// without it a new one begins
    #[arg(long, value_name = "HEX")]
    pub cluster_id: Option<String>,
    /// Where the sockets go
    #[arg(long, value_name = "DIR", default_value_os_t = rundir::default_run_dir())]
    pub run_dir: PathBuf,
    /// A user besides root and the worker's own that may ask for files, any of them, as the one the frontend runs as does: an
    /// account for nothing else
    #[arg(long = "allow-uid", value_name = "UID")]
    pub allow_uids: Vec<u32>,
    /// Bytes of the disk's file system to leave free
    #[arg(long, value_name = "BYTES", default_value_t = config::default_reserve_bytes())]
    pub reserve_bytes: u64,
    /// Seconds to keep contents that no file has any more
    #[arg(long, value_name = "SECONDS", default_value_t = config::default_retention_s())]
    pub retention_s: u64,
    /// IP address to listen on for other disks [default: all]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// TCP port to listen on for other disks [default: any]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    pub btport: u16,
    /// Port to try when none is asked for: the one of the last start
    #[arg(long, value_name = "PORT", default_value_t = 0, hide = true)]
    pub last_port: u16,
    /// Fetch contents only to read them
    #[arg(long)]
    pub lazy: bool,
    /// Where the disk is: copies are spread over sites
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub site: String,
    /// Most bytes of contents to send to other hosts in a second, at least 262144 [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(config::LIMIT_MIN_BYTES_PER_S..))]
    pub upload_limit: Option<u64>,
    /// The same for what is received
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(config::LIMIT_MIN_BYTES_PER_S..))]
    pub download_limit: Option<u64>,
    /// Run as root all the same: everything in the disk's folder then belongs to root
    #[arg(long)]
    pub allow_root: bool,
    /// Do not tell the host's supervisor about this disk
    #[arg(long)]
    pub no_register: bool,
}
