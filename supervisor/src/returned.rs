//! Disks whose folder was not there: unplugged, or not mounted yet. A worker ends for good on that, so that nothing is ever stored in
//! the bare directory below. When the folder is the disk again, the worker is started again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::DiskToml;
use delugefs_proto::exit::Exit;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::owner::Event;
use crate::process::Events;

/// Between two looks at a folder.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest pause: it doubles while a disk that is there does not stay up.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A folder that does not answer for so long is looked at no further in this round.
const PATIENCE: Duration = Duration::from_secs(5);

/// Until the supervisor ends.
pub async fn follow(mut snapshots: watch::Receiver<Arc<pb::HostStatus>>, events: Events) {
    let mut pauses: HashMap<PathBuf, (Instant, Duration)> = HashMap::new();
    loop {
        let host = snapshots.borrow_and_update().clone();
        let gone: Vec<pb::Disk> = host.disks.iter().filter(|disk| is_gone(disk)).cloned().collect();
        let is_waiting = !gone.is_empty();
        for disk in gone {
            let root = PathBuf::from(&disk.root);
            let looked = tokio::task::spawn_blocking(move || is_back(&disk));
            // One that hangs goes on in its thread, and is looked at again.
            if !matches!(timeout(PATIENCE, looked).await, Ok(Ok(true))) {
                pauses.remove(&root);
                continue;
            }
            let (next, pause) = pauses.entry(root.clone()).or_insert((Instant::now(), PAUSE));
            if Instant::now() >= *next {
                *next = Instant::now() + *pause;
                *pause = (*pause * 2).min(PAUSE_MAX);
                let _ = events.send(Event::FolderBack { root }); // fails only when the owner has ended
            }
        }
        tokio::select! {
            () = sleep(PAUSE), if is_waiting => {}
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return; // the owner has ended
                }
            }
        }
    }
}

/// It is stopped because its folder was no disk.
pub(crate) fn is_gone(disk: &pb::Disk) -> bool {
    let no_disk = |failure: &pb::Failure| failure.exit == Exit::NoDisk as u32;
    disk.state() == pb::disk::State::Stopped && disk.failure.as_ref().is_some_and(no_disk)
}

/// The folder is this disk. One that was never up since this supervisor's start has no id yet: then any of the cluster is it, as at a start.
fn is_back(disk: &pb::Disk) -> bool {
    DiskToml::read(Path::new(&disk.root))
        .is_ok_and(|found| found.cluster == disk.cluster && (disk.disk_id.is_empty() || found.disk_id == disk.disk_id))
}

#[cfg(test)]
mod tests {
    use delugefs_proto::disk::{DISK_FORMAT, DISK_TOML};

    use super::*;

    #[test]
    fn only_the_same_disk_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let failure = |exit: Exit| Some(pb::Failure { exit: exit as u32, ..pb::Failure::default() });
        let disk = |id: &str| pb::Disk {
            root: dir.path().display().to_string(),
            disk_id: id.into(),
            cluster: "home".into(),
            state: pb::disk::State::Stopped.into(),
            failure: failure(Exit::NoDisk),
            ..pb::Disk::default()
        };
        assert!(is_gone(&disk("aa")));
        assert!(!is_gone(&pb::Disk { failure: failure(Exit::NewerFormat), ..disk("aa") }));
        assert!(!is_gone(&pb::Disk { state: pb::disk::State::Up.into(), ..disk("aa") }));
        assert!(!is_back(&disk("aa")) && !is_back(&disk("")), "the directory that it was mounted on");
        let toml = DiskToml {
            format: DISK_FORMAT,
            cluster: "home".into(),
            cluster_id: "c".repeat(32),
            disk_id: "a".repeat(64),
        };
        std::fs::write(dir.path().join(DISK_TOML), toml::to_string(&toml).unwrap()).unwrap();
        assert!(is_back(&disk(&"a".repeat(64))) && is_back(&disk("")));
        assert!(!is_back(&disk(&"b".repeat(64))), "another one was plugged in there");
        assert!(!is_back(&pb::Disk { cluster: "work".into(), ..disk("") }));
    }
}
