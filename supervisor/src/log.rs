//! Log output of both programs: to stderr, `RUST_LOG` chooses what; a terminal that has gone away ends nothing.

use std::io::Write;

use tracing_subscriber::EnvFilter;

/// Start logging, once per process. `level`: what is shown when `RUST_LOG` says nothing.
pub fn init(level: &str) {
    use std::io::IsTerminal;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    log.with_ansi(std::io::stderr().is_terminal()).log_internal_errors(false).init();
}

/// A line for whoever has typed the command. Where the terminal or the pipe is gone nobody hears it, and that ends nothing either
/// (`eprintln!` would panic).
pub fn say(line: &str) {
    let _nobody_reads = writeln!(std::io::stderr(), "{line}");
}

/// Remembers what was logged, so that nobody fills the log by asking often.
#[derive(Debug, Default)]
pub struct Logged(parking_lot::Mutex<std::collections::BTreeSet<String>>);

impl Logged {
    /// Whether it is to be logged.
    pub fn insert(&self, what: &str) -> bool {
        let mut logged = self.0.lock();
        logged.len() < 1000 && logged.insert(what.to_owned())
    }
}
