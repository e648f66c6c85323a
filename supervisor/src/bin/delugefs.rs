//! The user's command; see `delugefs_supervisor::cli`.

use std::process::ExitCode;

use clap::Parser;
use delugefs_proto::exit::report_with;
use delugefs_supervisor::cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let here = cli.here();
    match cli::execute(cli).await {
        Ok(exit) => exit.into(),
        Err(error) => report_with("delugefs", error.as_ref(), |hint| here.say(hint)).into(),
    }
}
