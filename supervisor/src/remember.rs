//! `STATE_DIR/added.toml`: disks and mounts that were added by command and are to be there after the next start too.
//! The format is that of `delugefs.toml`, but that file is the administrator's and this one is the supervisor's.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use delugefs_proto::config::Config;

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
    let (path, new) = (state_dir.join(FILE), state_dir.join("added.toml.new"));
    let text = toml::to_string(config).context("cannot encode it")?;
    let write = || {
        let mut file = fs::File::create(&new)?;
        file.write_all(b"# Written by delugefs-supervisor; `delugefs disk` and `delugefs mount` change it.\n")?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(state_dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
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
