//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::cache::CAPACITY_ENTRIES;

/// Show a DelugeFS cluster as a mount, through the diskworker of one disk.
///
/// Prints `ready` when the mount answers, and serves until it is unmounted or gets SIGTERM or SIGINT.
#[derive(Clone, Debug, Parser)]
#[command(name = "delugefs-fusefront", version)]
pub struct Args {
    /// Local socket of the diskworker
    #[arg(long, value_name = "SOCKET", required_unless_present = "probe")]
    pub worker: Option<PathBuf>,

    /// Folder with the sockets of this host's other diskworkers: one of them serves when the first is away for long
    #[arg(long, value_name = "DIR")]
    pub fallback: Option<PathBuf>,

    /// Empty directory to mount on
    #[arg(long, value_name = "DIR", required_unless_present = "probe")]
    pub mount: Option<PathBuf>,

    /// Mount on this directory only if no symbolic link leads there: what is mounted again later is not to be elsewhere
    #[arg(long, hide = true)]
    pub exact: bool,

    /// Serve as this user instead of root: an account for nothing else, since all its processes can read and change every file
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,

    /// Refuse if the diskworker belongs to another cluster
    #[arg(long, value_name = "CLUSTER")]
    pub name: Option<String>,

    /// Directory entries kept in memory
    #[arg(long, value_name = "N", default_value_t = CAPACITY_ENTRIES)]
    pub cache_entries: usize,

    /// The process that serves, started by the launcher with a socket as its standard input.
    #[arg(long, hide = true)]
    pub serve: bool,

    /// Exit with 0 if the mount on this directory is dead.
    #[arg(long, hide = true, value_name = "DIR")]
    pub probe: Option<PathBuf>,
}
