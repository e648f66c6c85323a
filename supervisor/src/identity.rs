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
    look_by(move || DiskToml::read(&root))
}

/// The same, however it is read.
pub(crate) fn look_by(read: impl FnOnce() -> Result<DiskToml, DiskTomlError> + Send + 'static) -> Look {
    let (sender, look) = oneshot::channel();
    let looks = move || drop(sender.send(read())); // who asked may have gone
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
    within(PATIENCE, look(root.to_owned()), root).await
}

async fn within(patience: Duration, look: Look, root: &Path) -> Result<DiskToml, Failure> {
    match timeout(patience, look).await {
        Ok(Ok(read)) => read.map_err(|error| Failure::new(Exit::NoDisk, error.to_string())),
        _ => Err(Failure::new(Exit::BadDisk, format!("the folder {} does not answer", root.display()))
            .hint("see whether its disk fails, or its file server is away")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_folder_that_hangs_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (go_on, hangs) = mpsc::channel::<()>();
        let look = look_by(move || {
            let _ended = hangs.recv();
            Err(DiskTomlError::Absent("d".into()))
        });
        assert_eq!(within(Duration::from_millis(20), look, dir.path()).await.unwrap_err().exit, Exit::BadDisk);
        drop(go_on); // lets the thread go
        assert_eq!(read(dir.path()).await.unwrap_err().exit, Exit::NoDisk);
    }
}
