//! See `run.rs` for what happens.

use std::process::ExitCode;

fn main() -> ExitCode {
    delugefs_proto::memory::return_early();
    delugefs_proto::filesize::fail_instead_of_dying();
    delugefs_fusefront::run::run().into()
}
