//! `STATE_DIR/added.toml`: disks and mounts that were added by command and are to be there after the next start too.
//! The format is that of `delugefs.toml`, but that file is the administrator's and this one is the supervisor's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use delugefs_proto::config::Config;
use delugefs_proto::exit::Exit;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::statefile;

const FILE: &str = "added.toml";
/// Before what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What the file has, and what it is to have.
#[derive(Debug)]
pub struct Memory {
    state_dir: PathBuf,
    written: Config,
    /// What could not be written, when that is tried again, and why.
    waiting: Option<(Config, Instant, String)>,
}

impl Memory {
    /// `written`: what the file has.
    pub fn new(state_dir: PathBuf, written: Config) -> Self {
        Self { state_dir, written, waiting: None }
    }

    /// Have this remembered instead.
    ///
    /// # Errors
    /// It is not, for now, which whoever asked for it has to know.
    pub fn keep(&mut self, config: Config) -> Result<(), Failure> {
        if config == self.written {
            self.waiting = None;
            return Ok(());
        }
        let Err(error) = write(&self.state_dir, &config) else {
            (self.written, self.waiting) = (config, None);
            return Ok(());
        };
        let why = format!("{error:#}");
        if self.waiting.is_none() {
            tracing::error!("what was added or removed cannot be remembered for the next start: {why}");
        }
        let text = format!("it is done, but would not be remembered at the next start: {why}");
        self.waiting = Some((config, Instant::now() + AGAIN, why));
        Err(Failure::new(Exit::Failure, text).hint(
            "make room there; it is tried again every few seconds, and `delugefs status -x` says so until it is written",
        ))
    }

    /// When [`Memory::again`] is due.
    pub fn again_at(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|(_, at, _)| *at)
    }

    /// Try again.
    pub fn again(&mut self) {
        if let Some((config, ..)) = self.waiting.clone()
            && self.keep(config).is_ok()
        {
            tracing::info!("what was added or removed is remembered now");
        }
    }

    /// What is wrong, for people.
    pub fn problem(&self) -> Option<String> {
        let (.., why) = self.waiting.as_ref()?;
        Some(format!("what was added or removed is not remembered for the next start: {why}; make room there"))
    }
}

/// What an earlier supervisor was told to remember.
///
/// # Errors
/// When the file is there but cannot be used.
pub fn read(state_dir: &Path) -> anyhow::Result<Config> {
    // Not there is not the same as not to be read: that would be overwritten by the next change.
    match statefile::read(state_dir, FILE)? {
        Some(_) => Ok(Config::read(&state_dir.join(FILE))?),
        None => Ok(Config::default()),
    }
}

/// Replace it in one step.
///
/// # Errors
/// Those of the file system.
pub fn write(state_dir: &Path, config: &Config) -> anyhow::Result<()> {
    let text = toml::to_string(config).context("cannot encode it")?;
    let head = "# Written by delugefs-supervisor; `delugefs disk` and `delugefs mount` change it.\n";
    statefile::write(state_dir, FILE, [head, &text].concat().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Config::default());
        let config =
            Config::parse("cluster = 'home'\n[[disk]]\nroot = '/a'\n[[mount]]\ndir = '/b'\nuser = 'u'").unwrap();
        write(dir.path(), &config).unwrap();
        assert_eq!(read(dir.path()).unwrap(), config);
    }
}
