//! The supervisor of a host; see `delugefs_supervisor::run`.

use std::process::ExitCode;

use clap::Parser;
use delugefs_proto::exit::{Exit, report_with};
use delugefs_proto::memory;
use delugefs_supervisor::cli::Here;
use delugefs_supervisor::{log, run};

fn main() -> ExitCode {
    memory::return_early();
    serve()
}

#[tokio::main]
async fn serve() -> ExitCode {
    let options = run::Options::parse();
    log::init("info");
    memory::give_back_when_idle();
    let here = Here::new(options.run_dir.as_deref(), options.state_dir.as_deref());
    match run::run(options).await {
        Ok(()) => Exit::Ok.into(),
        Err(error) => report_with("delugefs-supervisor", error.as_ref(), |hint| here.say(hint)).into(),
    }
}
