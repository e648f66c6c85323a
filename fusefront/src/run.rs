//! What the program does, in order: it is a launcher when root starts it, the launcher's serving process, or both in one
//! for a plain user.

use std::io::IsTerminal;

use clap::Parser;
use delugefs_proto::exit::{Exit, UserError, report};
use tracing_subscriber::EnvFilter;

use crate::cli::Args;
use crate::{alone, launcher, mounts, panics};

/// Name in messages.
const PROGRAM: &str = "delugefs-fusefront";
/// Environment variable with the log filter, such as `debug`.
const LOG_FILTER: &str = "DELUGEFS_LOG";

/// Run to the end; the exit code.
pub fn run() -> Exit {
    let args = Args::parse();
    if let Some(dir) = &args.probe {
        return if mounts::is_dead(dir) { Exit::Ok } else { Exit::Failure };
    }
    let filter = EnvFilter::try_from_env(LOG_FILTER).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .log_internal_errors(false)
        .init();
    panics::end_where_nobody_answers();
    match start(&args) {
        Ok(exit) => exit,
        Err(error) => report(PROGRAM, error.as_ref()),
    }
}

fn start(args: &Args) -> anyhow::Result<Exit> {
    if args.serve {
        return launcher::child(args);
    }
    let Some(dir) = args.mount.as_deref() else {
        return Err(UserError::new(Exit::Usage, "no directory to mount on").hint("add --mount DIR").into());
    };
    match nix::unistd::geteuid().is_root() {
        true => launcher::run(args, dir),
        false => alone::run(args, dir),
    }
}
