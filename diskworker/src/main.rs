//! delugefs-diskworker: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use delugefs_diskworker::{cli::Cli, run};
use delugefs_proto::exit::{self, Exit};
use delugefs_proto::{filesize, memory};

/// What is logged unless RUST_LOG says otherwise. librqbit calls every ordinary pause of a torrent an error, and warns of every message of
/// a peer that it does not like, as h2 does of connections: of those any disk can send and open as many as it likes.
const LOG: &str = "info,librqbit_core=off,librqbit=error,h2=error";

fn main() -> ExitCode {
    memory::return_early();
    filesize::fail_instead_of_dying();
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| LOG.into());
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    // Whoever reads the log may end before us: that must not end the disk.
    log.with_writer(std::io::stderr).with_ansi(is_terminal).log_internal_errors(false).init();
    memory::give_back_when_idle();
    match run::run(&cli) {
        Ok(()) => Exit::Ok.into(),
        Err(error) => exit::report("delugefs-diskworker", error.as_ref()).into(),
    }
}
