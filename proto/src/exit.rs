//! Exit codes of all DelugeFS programs: one meaning each, so that scripts and the supervisor can tell failures apart.

/// How a program ended. The number is the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Ok = 0,
    /// Anything not listed here; the message says what.
    Failure = 1,
    /// The command line was wrong (clap's own code).
    Usage = 2,
    /// The disk's folder does not exist, or is no disk folder.
    NoDisk = 10,
    /// `--create` on a folder that has something in it.
    NotEmpty = 11,
    /// The disk belongs to another cluster.
    WrongCluster = 12,
    /// The disk was written by a newer version.
    NewerFormat = 13,
    /// Another process has it: disk folder, run directory or mountpoint.
    InUse = 14,
    /// The mountpoint cannot be mounted on.
    BadMountpoint = 15,
    /// The system refused: permissions, a missing /dev/fuse.
    NotPermitted = 16,
    /// No supervisor answers.
    NoSupervisor = 17,
    /// The disk is full, failing, or its contents are damaged.
    BadDisk = 18,
    /// A check found something wrong (`status -x`, `scrub`).
    Unhealthy = 20,
}

impl Exit {
    /// Of a finished child process.
    pub fn from_code(code: i32) -> Self {
        use Exit::*;
        let known = [
            Ok,
            Usage,
            NoDisk,
            NotEmpty,
            WrongCluster,
            NewerFormat,
            InUse,
            BadMountpoint,
            NotPermitted,
            NoSupervisor,
            BadDisk,
            Unhealthy,
        ];
        known.into_iter().find(|exit| *exit as i32 == code).unwrap_or(Failure)
    }

    /// Whether starting the program again could help. The supervisor backs off and retries only then.
    pub fn is_worth_retrying(self) -> bool {
        !matches!(
            self,
            Exit::Usage | Exit::NoDisk | Exit::NotEmpty | Exit::WrongCluster | Exit::NewerFormat | Exit::NotPermitted
        )
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

/// An error that knows its exit code and what the user should type next; put it into the `anyhow` chain, and
/// [`report`] prints it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct UserError {
    /// The code to exit with.
    pub exit: Exit,
    /// What is wrong.
    pub message: String,
    /// What to do about it; printed on a line of its own.
    pub hint: Option<String>,
    /// What it comes from, if that says more.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl UserError {
    /// Without a hint.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, source: None }
    }

    /// With its cause. (As a context of an `anyhow` error it would not be found in the chain by [`report`].)
    pub fn because(self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// With what to type next.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// Print an error chain once, at the edge, and give its exit code.
pub fn report(program: &str, error: &(dyn std::error::Error + 'static)) -> Exit {
    report_with(program, error, str::to_owned)
}

/// The same with the hints as this says them.
pub fn report_with(program: &str, error: &(dyn std::error::Error + 'static), say: impl Fn(&str) -> String) -> Exit {
    use std::io::Write;
    let mut exit = Exit::Failure;
    let mut hints = Vec::new();
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let sentence = error.to_string();
        if !text.contains(&sentence) {
            text += if text.is_empty() { "" } else { ": " };
            text += &sentence;
        }
        if let Some(user) = error.downcast_ref::<UserError>() {
            exit = user.exit;
            hints.extend(user.hint.clone());
        }
        next = error.source();
    }
    // Whoever reads it may have gone: that changes nothing about how this ends.
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{program}: {text}");
    for hint in hints {
        let _ = writeln!(stderr, "Hint: {}", say(&hint));
    }
    exit
}
