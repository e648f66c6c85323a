//! `delugefs.toml`: what a host's supervisor starts and with which settings. Unknown keys are refused, so that a
//! misspelt setting is an error and not a silent default.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the cluster this host takes part in.
    pub cluster: Option<String>,
    /// Where other disks of the cluster may be, as `host:port`: those that multicast does not reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    /// Folders of this host's disks.
    #[serde(default, rename = "disk")]
    pub disks: Vec<DiskConfig>,
    /// Mounts of this host.
    #[serde(default, rename = "mount")]
    pub mounts: Vec<MountConfig>,
}

/// One `[[disk]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The disk's folder.
    pub root: PathBuf,
    /// Bytes the worker leaves free on the disk's file system.
    #[serde(default = "default_reserve_bytes")]
    pub reserve_bytes: u64,
    /// Seconds a content that nobody refers to any more is kept.
    #[serde(default = "default_retention_s")]
    pub retention_s: u64,
    /// IP address to listen on for other disks; all without it.
    pub listen: Option<String>,
    /// TCP port to listen on; 0: any, the same again if it is free.
    #[serde(default)]
    pub btport: u16,
    /// Fetch contents only to read them.
    #[serde(default)]
    pub lazy: bool,
    /// Where the disk is: copies are spread over sites.
    #[serde(default)]
    pub site: String,
    /// Most bytes of contents to send to other hosts in a second; without it no limit.
    pub upload_bytes_per_s: Option<u64>,
    /// The same for what is received.
    pub download_bytes_per_s: Option<u64>,
}

/// Below this a content's pieces take too long: who waits for them gives up.
pub const LIMIT_MIN_BYTES_PER_S: u64 = 256 << 10;

/// One `[[mount]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountConfig {
    /// The mountpoint.
    pub dir: PathBuf,
    /// User the frontend serves as after mounting (when started as root).
    pub user: Option<String>,
}

/// 64 MiB: room for the catalog to commit and for a scrub to report when the disk is full of data.
pub fn default_reserve_bytes() -> u64 {
    64 << 20
}

/// An hour.
pub fn default_retention_s() -> u64 {
    3600
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Reading failed.
    #[error("cannot read {0}")]
    Io(PathBuf, #[source] std::io::Error),
    /// Not valid.
    #[error("{0}: {1}")]
    Invalid(PathBuf, String),
}

impl Config {
    /// Read and check.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Io(path.into(), error))?;
        Self::parse(&text).map_err(|message| ConfigError::Invalid(path.into(), message))
    }

    /// Parse and check.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if let Some(name) = &config.cluster
            && !crate::disk::is_cluster_name(name)
        {
            return Err(format!("cluster = {name:?} is not a cluster name (letters, digits, '-', '_', '.')"));
        }
        for dir in config.disks.iter().map(|d| &d.root).chain(config.mounts.iter().map(|m| &m.dir)) {
            if !dir.is_absolute() {
                return Err(format!("{} must be an absolute path", dir.display()));
            }
        }
        let limits = config.disks.iter().flat_map(|disk| [disk.upload_bytes_per_s, disk.download_bytes_per_s]);
        if let Some(limit) = limits.flatten().find(|limit| *limit < LIMIT_MIN_BYTES_PER_S) {
            return Err(format!("a limit of {limit} bytes a second is too low: at least {LIMIT_MIN_BYTES_PER_S}"));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_and_relative_paths_are_refused() {
        let good = Config::parse("cluster = 'home'\n[[disk]]\nroot = '/mnt/a'\n[[mount]]\ndir = '/d'\n").unwrap();
        assert_eq!(good.disks[0].retention_s, 3600);
        assert_eq!(Config::parse(&toml::to_string(&good).unwrap()).unwrap(), good);
        for bad in [
            "clutser = 'x'",
            "[[disk]]\nroot = 'a'",
            "[[disk]]\nroot = '/a'\nlazzy = true",
            "[[disk]]\nroot = '/a'\nupload_bytes_per_s = 1000",
            "cluster = '../x'",
        ] {
            assert!(Config::parse(bad).is_err(), "{bad}");
        }
    }
}
