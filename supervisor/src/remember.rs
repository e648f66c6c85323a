//! `STATE_DIR/added.toml`: disks and mounts that were added by command and are to be there after the next start too.
//! The format is that of `delugefs.toml`, but that file is the administrator's and this one is the supervisor's.

use std::path::Path;

use anyhow::Context;
use delugefs_proto::config::Config;

use crate::statefile;

const FILE: &str = "added.toml";

/// What an earlier supervisor was told to remember.
///
/// # Errors
/// When the file is there but cannot be used.
pub fn read(state_dir: &Path) -> anyhow::Result<Config> {
    let path = state_dir.join(FILE);
    if !path.exists() {
        return Ok(Config::default());
    }
    Ok(Config::read(&path)?)
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
