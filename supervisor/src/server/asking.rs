//! Whom to ask: which of this host's disks are up, which of them answer, and which one knows of a path.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;
use delugefs_proto::exit::Exit;
use delugefs_proto::ids::{ClusterId, DiskId, hex};
use delugefs_proto::worker_pb;
use tokio::task::JoinSet;
use tonic::{Response, Status};

use super::{Server, no_disk};
use crate::failure::Failure;
use crate::{farewell, worker};

impl Server {
    /// All disks of the cluster, each as the worker sees it that is connected with it. Members that the workers know of are
    /// known here afterwards.
    pub(super) async fn members_disks(&self) -> Vec<worker_pb::Peer> {
        let answers = self.ask_all(|socket| async move {
            let request = worker_pb::PeersRequest {};
            worker::ask(&socket, |mut client| async move { client.peers(request).await }).await
        });
        let mut disks: BTreeMap<Vec<u8>, worker_pb::Peer> = Default::default();
        // What a disk that takes no changes says of its own mark may be old.
        let mut marks: BTreeMap<Vec<u8>, worker_pb::Mark> = Default::default();
        for (asked, answer) in answers.await {
            let Ok(answer) = answer else { continue };
            if let Ok((cluster, _)) = ids(&asked)
                && let Err(error) = self.membership.absorb(cluster, &answer.members)
            {
                tracing::debug!("members of disk {}: {error:#}", short_id(&asked.disk_id));
            }
            // It hears nothing of the others any more, and they not of it.
            if farewell::is_out(&self.membership, &asked) {
                continue;
            }
            if answer.me.as_ref().is_some_and(|me| !me.read_only) {
                marks.extend(answer.peers.iter().map(|peer| (peer.disk_id.clone(), peer.mark())));
            }
            let sure = |peer: &worker_pb::Peer| (peer.linked, peer.connected);
            for mut peer in answer.peers {
                let known = disks.get_mut(&peer.disk_id);
                // What one has heard, the others have been told.
                let absent_s = known.as_ref().map_or(u32::MAX, |known| known.absent_s).min(peer.absent_s);
                let told = peer.told || known.as_ref().is_some_and(|known| known.told);
                match known {
                    Some(known) if sure(known) >= sure(&peer) => (known.absent_s, known.told) = (absent_s, told),
                    _ => {
                        (peer.absent_s, peer.told) = (absent_s, told);
                        disks.insert(peer.disk_id.clone(), peer);
                    }
                }
            }
            // Of itself a disk knows best.
            disks.extend(answer.me.map(|me| (me.disk_id.clone(), me)));
        }
        for disk in disks.values_mut().filter(|disk| disk.read_only) {
            if let Some(mark) = marks.get(&disk.disk_id) {
                disk.set_mark(*mark);
            }
        }
        disks.into_values().collect()
    }

    /// This host's disks that are up, those last that take no changes: they may not know what the others know.
    pub(super) fn willing_first(&self, peers: &[worker_pb::Peer]) -> Vec<pb::Disk> {
        let mut disks = self.members_up();
        let refuses = |disk: &pb::Disk| peers.iter().any(|peer| hex(&peer.disk_id) == disk.disk_id && peer.read_only);
        disks.sort_by_key(refuses);
        disks
    }

    /// This host's disks that are up, in the order to ask: those whose workers answer, first those that take changes.
    pub(super) async fn answering_first(&self) -> Vec<pb::Disk> {
        let mut disks = self.all_answering_first().await;
        disks.retain(|disk| !farewell::is_out(&self.membership, disk));
        disks
    }

    /// Also those that were revoked.
    async fn all_answering_first(&self) -> Vec<pb::Disk> {
        let mut disks = self.disks_with_status().await;
        disks.retain(|disk| disk.state() == pb::disk::State::Up);
        disks.sort_by_key(|disk| disk.status.as_ref().map_or((true, true), |status| (false, status.read_only)));
        disks
    }

    /// A path as a person types it: what it is from the root of the file system, and the disks to ask. One that was revoked is among them
    /// only if the mount shows it: what is there it alone may know.
    pub(super) async fn place(&self, path: &[u8]) -> Result<(Vec<u8>, Vec<pb::Disk>), Failure> {
        let disks = self.all_answering_first().await;
        let (inside, root, mut disks) = place(path, self.now().mounts, disks);
        disks.retain(|disk| disk.root == root || !farewell::is_out(&self.membership, disk));
        if disks.is_empty() { Err(self.none_up()) } else { Ok((inside, disks)) }
    }

    pub(super) fn disks_up(&self) -> Vec<pb::Disk> {
        self.now().disks.into_iter().filter(|disk| disk.state() == pb::disk::State::Up).collect()
    }

    /// Those of them that were not revoked.
    pub(super) fn members_up(&self) -> Vec<pb::Disk> {
        let mut disks = self.disks_up();
        disks.retain(|disk| !farewell::is_out(&self.membership, disk));
        disks
    }

    /// There is nobody to ask.
    pub(super) fn none_up(&self) -> Failure {
        let disks = self.disks_up();
        let out = disks.iter().find(|disk| farewell::is_out(&self.membership, disk));
        out.map_or_else(no_disk, |disk| farewell::refuse(&self.membership, disk))
    }

    /// One question to all workers that are up, at the same time: a stuck disk does not keep the others waiting. Given up with its caller.
    pub(super) async fn ask_all<T: Send + 'static, F: Future<Output = Result<T, Status>> + Send + 'static>(
        &self,
        question: impl Fn(PathBuf) -> F,
    ) -> Vec<(pb::Disk, Result<T, Status>)> {
        let asked: Vec<_> =
            self.disks_up().into_iter().map(|disk| (question(disk.grpc_socket.clone().into()), disk)).collect();
        let mut running = JoinSet::new();
        let mut answers = Vec::new();
        for (at, (answer, disk)) in asked.into_iter().enumerate() {
            running.spawn(async move { (at, answer.await) });
            answers.push((disk, Err(Status::internal("the question was not answered"))));
        }
        while let Some(answered) = running.join_next().await {
            match answered {
                Ok((at, answer)) => answers[at].1 = answer,
                Err(error) => tracing::error!("asking a worker: {error}"),
            }
        }
        answers
    }

    /// All disks; those that are up with what their workers say.
    pub(super) async fn disks_with_status(&self) -> Vec<pb::Disk> {
        let mut disks = self.now().disks;
        let answers = self.ask_all(|socket| async move {
            let request = worker_pb::StatusRequest {};
            worker::ask(&socket, |mut client| async move { client.status(request).await }).await
        });
        for (asked, answer) in answers.await {
            let disk = disks.iter_mut().find(|disk| disk.root == asked.root);
            match (disk, answer) {
                (Some(disk), Ok(status)) => disk.status = Some(status),
                (_, Ok(_)) => {}
                (_, Err(error)) => tracing::debug!(disk = asked.root, error = error.message(), "no status"),
            }
        }
        disks
    }
}

/// Another disk takes over when that of a mount is away or hangs, and keeps it: which one a mount shows is known by the disks that answer.
pub(super) fn show_disks(mounts: &mut [pb::Mount], disks: &[pb::Disk]) {
    for mount in mounts {
        let serves = |disk: &&pb::Disk| {
            disk.status.as_ref().is_some_and(|status| status.mounts.iter().any(|dir| *dir == mount.dir.as_bytes()))
        };
        let serving: Vec<&str> = disks.iter().filter(serves).map(|disk| disk.root.as_str()).collect();
        if !serving.contains(&mount.root.as_str())
            && let Some(root) = serving.first()
        {
            mount.root = (*root).to_owned();
        }
    }
}

/// What a path is from the root of the file system, the folder of the disk that its mount shows now, and whom to ask: first that disk,
/// unless it does not answer.
fn place(path: &[u8], mut mounts: Vec<pb::Mount>, mut disks: Vec<pb::Disk>) -> (Vec<u8>, String, Vec<pb::Disk>) {
    show_disks(&mut mounts, &disks);
    let below = |mount: &pb::Mount| Some((below(path, mount.dir.as_bytes())?.to_vec(), mount.root.clone()));
    let (inside, root) = mounts.iter().find_map(below).unwrap_or((path.to_vec(), String::new()));
    disks.sort_by_key(|disk| (disk.status.is_none(), disk.root != root));
    (inside, root, disks)
}

/// An answer, or the sentence that came instead.
pub(super) fn split<T>(answer: Result<T, Status>) -> (Option<T>, String) {
    match answer {
        Ok(answer) => (Some(answer), String::new()),
        Err(error) => (None, error.message().into()),
    }
}

/// Ask the first of these disks, and the next when it does not answer, or cannot do it because it is full or fails. When none can, what the
/// first said.
pub(super) async fn in_turn<T, F: Future<Output = Result<Response<T>, Status>>>(
    disks: &[pb::Disk],
    question: impl Fn(worker::Client) -> F,
) -> Result<T, Status> {
    use tonic::Code;
    let mut failure = None;
    for disk in disks {
        match worker::ask(Path::new(&disk.grpc_socket), &question).await {
            Err(error)
                if failure.is_some()
                    || !matches!(error.code(), Code::NotFound | Code::InvalidArgument | Code::PermissionDenied) =>
            {
                failure.get_or_insert(error);
            }
            answer => return answer,
        }
    }
    Err(failure.unwrap_or_else(|| no_disk().into()))
}

/// The cluster's id and the disk's.
pub(super) fn ids(disk: &pb::Disk) -> Result<(ClusterId, DiskId), Failure> {
    let ids = ClusterId::from_hex(&disk.cluster_id).zip(DiskId::from_hex(&disk.disk_id));
    ids.ok_or_else(|| {
        let failure = Failure::new(Exit::BadDisk, format!("{} has not said yet who it is", disk.root));
        failure.hint("try again in a few seconds")
    })
}

/// What is left of `path` below `dir`; `None` when it is not below it.
pub(super) fn below<'a>(path: &'a [u8], dir: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(dir)?;
    (rest.is_empty() || rest.starts_with(b"/") || dir.ends_with(b"/")).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that says that it serves these mounts, or says nothing.
    fn disk(root: &str, mounts: Option<&[&str]>) -> pb::Disk {
        let status = mounts.map(|mounts| worker_pb::WorkerStatus {
            mounts: mounts.iter().map(|dir| dir.as_bytes().to_vec()).collect(),
            ..Default::default()
        });
        pb::Disk { root: root.into(), status, ..Default::default() }
    }

    #[test]
    fn of_a_path_in_a_mount_the_disk_is_asked_that_serves_it() {
        let asked = |disks: &[pb::Disk]| {
            let mounts = vec![pb::Mount { dir: "/m".into(), root: "/a".into(), ..Default::default() }];
            let (inside, _, disks) = place(b"/m/x", mounts, disks.to_vec());
            assert_eq!(inside, b"/x");
            disks.into_iter().map(|disk| disk.root).collect::<Vec<_>>()
        };
        assert_eq!(asked(&[disk("/b", Some(&[])), disk("/a", Some(&["/m"]))]), ["/a", "/b"]);
        assert_eq!(
            asked(&[disk("/a", Some(&[])), disk("/b", Some(&["/m"]))]),
            ["/b", "/a"],
            "it may not know of it yet"
        );
        assert_eq!(asked(&[disk("/a", None), disk("/b", Some(&[]))]), ["/b", "/a"], "it hangs");
    }

    #[test]
    fn a_mount_shows_the_disk_that_serves_it() {
        let shown = |disks: &[pb::Disk]| {
            let mut mounts = [pb::Mount { dir: "/m".into(), root: "/a".into(), ..Default::default() }];
            show_disks(&mut mounts, disks);
            mounts[0].root.clone()
        };
        assert_eq!(shown(&[disk("/a", Some(&["/m"])), disk("/b", Some(&[]))]), "/a");
        assert_eq!(shown(&[disk("/a", None), disk("/b", Some(&["/x", "/m"]))]), "/b", "the first hangs");
        assert_eq!(shown(&[disk("/a", Some(&[])), disk("/b", Some(&["/m"]))]), "/b", "and has come back");
        assert_eq!(shown(&[disk("/a", None), disk("/b", Some(&["/x"]))]), "/a", "nobody says anything else");
    }

    #[test]
    fn paths_below_a_mount() {
        assert_eq!(below(b"/mnt/a/x/y", b"/mnt/a"), Some(&b"/x/y"[..]));
        assert_eq!(below(b"/mnt/a", b"/mnt/a"), Some(&b""[..]));
        assert_eq!(below(b"/mnt/ab", b"/mnt/a"), None);
        assert_eq!(below(b"/x", b"/"), Some(&b"x"[..]));
    }
}
