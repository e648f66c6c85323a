//! The user's command; see `delugefs_supervisor::cli`.

use std::process::ExitCode;

use clap::Parser;
use delugefs_proto::exit::report;
use delugefs_supervisor::cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match cli::execute(cli::Cli::parse()).await {
        Ok(exit) => exit.into(),
        Err(error) => report("delugefs", error.as_ref()).into(),
    }
}
