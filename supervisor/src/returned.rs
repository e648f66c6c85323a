//! Disks whose folder was not there: unplugged, or not mounted yet. A worker ends for good on that, so that nothing is ever stored in
//! the bare directory below. When the folder is the disk again, the worker is started again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::DiskToml;
use delugefs_proto::exit::Exit;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::identity;
use crate::owner::Event;
use crate::process::Events;

/// Between two looks at a folder.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest pause: it doubles while a disk that is there does not stay up.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A folder that does not answer for so long is looked at no further in this round.
const PATIENCE: Duration = identity::PATIENCE;

/// Until the supervisor ends.
pub async fn follow(mut snapshots: watch::Receiver<Arc<pb::HostStatus>>, events: Events) {
    let mut pauses: HashMap<PathBuf, (Instant, Duration)> = HashMap::new();
    let mut looks = Looks::default();
    loop {
        let host = snapshots.borrow_and_update().clone();
        let gone: Vec<pb::Disk> = host.disks.iter().filter(|disk| is_gone(disk)).cloned().collect();
        let is_waiting = !gone.is_empty();
        for disk in gone {
            let root = PathBuf::from(&disk.root);
            let Some(found) = looks.find(&disk, PATIENCE).await else {
                pauses.remove(&root);
                continue;
            };
            let (next, pause) = pauses.entry(root.clone()).or_insert((Instant::now(), PAUSE));
            if Instant::now() >= *next {
                *next = Instant::now() + *pause;
                *pause = (*pause * 2).min(PAUSE_MAX);
                let _ = events.send(Event::FolderBack { root, found }); // fails only when the owner has ended
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

/// Looks at folders that have not ended: a folder may hang for ever, and one thread for it is enough.
#[derive(Default)]
struct Looks(HashMap<PathBuf, identity::Look>);

impl Looks {
    /// The disk, if it is back, as far as its folder says so in time. The next call waits for the same look.
    async fn find(&mut self, disk: &pb::Disk, patience: Duration) -> Option<DiskToml> {
        let root = PathBuf::from(&disk.root);
        let mut look = self.0.remove(&root).unwrap_or_else(|| identity::look(root.clone()));
        match timeout(patience, &mut look).await {
            Ok(read) => read.ok()?.ok().filter(|found| is_back(disk, found)),
            Err(_) => {
                self.0.insert(root, look);
                None
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
fn is_back(disk: &pb::Disk, found: &DiskToml) -> bool {
    found.cluster == disk.cluster && (disk.disk_id.is_empty() || found.disk_id == disk.disk_id)
}

#[cfg(test)]
mod tests {
    use delugefs_proto::disk::{DISK_FORMAT, DiskTomlError};

    use super::*;

    #[tokio::test]
    async fn a_folder_that_hangs_is_looked_at_by_one_thread() {
        let dir = tempfile::tempdir().unwrap();
        let disk = pb::Disk { root: dir.path().display().to_string(), ..pb::Disk::default() };
        let (go_on, hangs) = std::sync::mpsc::channel::<()>();
        let look = identity::look_by(move || {
            let _ended = hangs.recv();
            Err(DiskTomlError::Absent("d".into()))
        });
        let mut looks = Looks::default();
        looks.0.insert(dir.path().into(), look);
        for _ in 0..3 {
            // Another look would find at once that there is no disk.
            assert!(looks.find(&disk, Duration::from_millis(20)).await.is_none());
            assert_eq!(looks.0.len(), 1);
        }
        drop(go_on);
        assert!(looks.find(&disk, Duration::from_secs(60)).await.is_none());
        assert!(looks.0.is_empty());
    }

    #[test]
    fn only_the_same_disk_is_back() {
        let failure = |exit: Exit| Some(pb::Failure { exit: exit as u32, ..pb::Failure::default() });
        let disk = |id: &str| pb::Disk {
            disk_id: id.into(),
            cluster: "home".into(),
            state: pb::disk::State::Stopped.into(),
            failure: failure(Exit::NoDisk),
            ..pb::Disk::default()
        };
        assert!(is_gone(&disk("aa")));
        assert!(!is_gone(&pb::Disk { failure: failure(Exit::NewerFormat), ..disk("aa") }));
        assert!(!is_gone(&pb::Disk { state: pb::disk::State::Up.into(), ..disk("aa") }));
        let toml = DiskToml {
            format: DISK_FORMAT,
            cluster: "home".into(),
            cluster_id: "c".repeat(32),
            disk_id: "a".repeat(64),
        };
        assert!(is_back(&disk(&"a".repeat(64)), &toml) && is_back(&disk(""), &toml));
        assert!(!is_back(&disk(&"b".repeat(64)), &toml), "another one was plugged in there");
        assert!(!is_back(&pb::Disk { cluster: "work".into(), ..disk("") }, &toml));
    }
}
