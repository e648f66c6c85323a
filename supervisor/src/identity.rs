//! Who a disk is, as its folder says. A folder may hang for ever (a disk that fails, a file server that is away), and who reads there
//! hangs with it: so it is read by a thread of its own, which is waited for only so long, and which the end of the supervisor, other than
//! for the threads of its runtime, does not wait for. What is running is not read: its worker says who it is, and never becomes another.

use std::path::{Path, PathBuf};
use std::time::Duration;

use delugefs_proto::disk::{DiskToml, DiskTomlError};
use delugefs_proto::exit::Exit;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::failure::Failure;

/// How long a folder gets to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What is being read. Its sender goes without a word where no thread could be started.
pub type Look = oneshot::Receiver<Result<DiskToml, DiskTomlError>>;

/// Begin to read.
pub fn look(root: PathBuf) -> Look {
    let (sender, look) = oneshot::channel();
    let looks = move || drop(sender.send(DiskToml::read(&root))); // who asked may have gone
    if let Err(error) = std::thread::Builder::new().name("disk-folder".into()).spawn(looks) {
        tracing::warn!("cannot look into the folder of a disk: {error}");
    }
    look
}

/// Read, within [`PATIENCE`].
///
/// # Errors
/// There is no disk, or the folder does not answer.
pub async fn read(root: &Path) -> Result<DiskToml, Failure> {
    read_within(root, PATIENCE).await
}

async fn read_within(root: &Path, patience: Duration) -> Result<DiskToml, Failure> {
    match timeout(patience, look(root.to_owned())).await {
        Ok(Ok(read)) => read.map_err(|error| Failure::new(Exit::NoDisk, error.to_string())),
        _ => Err(Failure::new(Exit::BadDisk, format!("the folder {} does not answer", root.display()))
            .hint("see whether its disk fails, or its file server is away")),
    }
}

#[cfg(test)]
mod tests {
    use delugefs_proto::disk::DISK_TOML;

    use super::*;

    /// A pipe takes the place of a file on a disk that hangs.
    #[tokio::test]
    async fn a_folder_that_hangs_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join(DISK_TOML);
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read_within(dir.path(), Duration::from_millis(20)).await.unwrap_err().exit, Exit::BadDisk);
        // Lets the thread go.
        drop(std::fs::File::options().write(true).open(&pipe).unwrap());
        std::fs::remove_file(&pipe).unwrap();
        assert!(look(dir.path().to_owned()).await.unwrap().is_err());
    }
}
