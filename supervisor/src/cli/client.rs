//! The way to the host's supervisor.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use delugefs_proto::control_pb as pb;
use delugefs_proto::control_pb::control_client::ControlClient;
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::rundir;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::failure::Failure;
use crate::uds;

/// Calls on the control socket.
pub type Control = ControlClient<Channel>;

/// Largest answer, in bytes: the problems of badly damaged disks.
const ANSWER_MAX_BYTES: usize = 64 << 20;

/// Connect to the supervisor of this run directory.
///
/// # Errors
/// `NoSupervisor` when none answers, `NotPermitted` when it is not ours to talk to.
pub async fn connect(run_dir: &Path) -> Result<Control, UserError> {
    let socket = rundir::control_socket(run_dir);
    match uds::connect(&socket).await {
        Ok(channel) => Ok(ControlClient::new(channel).max_decoding_message_size(ANSWER_MAX_BYTES)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let error = UserError::new(Exit::NotPermitted, format!("cannot use {}: {error}", socket.display()));
            Err(error.hint("run it as the user who runs the supervisor, or as root"))
        }
        Err(_) => {
            let error = UserError::new(Exit::NoSupervisor, format!("no supervisor answers at {}", socket.display()));
            // One that has a run directory of its own has a state directory, too: what it knows is not in the default one.
            let own = if run_dir == rundir::default_run_dir() { "" } else { " --state-dir DIR" };
            Err(error.hint(format!(
                "`delugefs run CLUSTER ROOT{own}` starts one; --run-dir DIR names another one's directory"
            )))
        }
    }
}

/// Longest a supervisor that has stopped everything may take to end.
const END: Duration = Duration::from_secs(10);

/// Stop the supervisor of this run directory, and wait until both its directories are free for the next one: it answers
/// a moment before that.
///
/// # Errors
/// When it fails, or does not let go.
pub async fn stop(control: &mut Control, run_dir: &Path) -> Result<(), UserError> {
    let lock = rundir::supervisor_lock(run_dir);
    let pid = fs::read(&lock).ok(); // not that of one started meanwhile
    answer(control.stop(pb::StopRequest {}).await)?;
    wait_until_free(&lock, pid).await
}

async fn wait_until_free(lock: &Path, pid: Option<Vec<u8>>) -> Result<(), UserError> {
    let end = Instant::now() + END;
    while is_held(lock) && fs::read(lock).ok() == pid {
        if Instant::now() >= end {
            return Err(UserError::new(Exit::Failure, "all is stopped, but the supervisor does not end"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn is_held(lock: &Path) -> bool {
    let Ok(file) = fs::File::open(lock) else { return false };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}

/// The answer, or the failure that came instead.
///
/// # Errors
/// The failure, with its exit code and hint.
pub fn answer<T>(result: Result<Response<T>, Status>) -> Result<T, UserError> {
    result.map(Response::into_inner).map_err(|status| Failure::from_status(&status).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_is_waited_for_unless_it_is_another_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "7\n").unwrap();
        let lock = Flock::lock(fs::File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        wait_until_free(&path, Some(b"6\n".into())).await.unwrap();
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { wait_until_free(&path, Some(b"7\n".into())).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!waiting.is_finished());
        drop(lock);
        waiting.await.unwrap().unwrap();
    }
}
