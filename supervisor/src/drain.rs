//! What is still to go from a disk of this host that is being emptied, and whether it may be taken away. Asked anew each time: people
//! pull out a disk because of the answer.

use std::path::Path;
use std::time::Duration;

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;
use delugefs_proto::ids::hex;
use delugefs_proto::worker_pb::{Content, Mark, Peer, WorkerStatus};
use tokio::time::timeout;
use tonic::Status;

use crate::worker;

/// A worker that says nothing for so long is stuck; the first part takes a walk of its catalog.
const SILENCE: Duration = Duration::from_secs(60);

/// What of the contents that files have is on a disk that is to be emptied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Left {
    contents: u64,
    bytes: u64,
    /// Those of them that have fewer copies than wanted on disks that stay and can promise to keep them.
    uncopied: u64,
    /// Those of these that would have enough if the disks that stay took changes.
    unpromised: u64,
}

/// Say it of those of these disks that are being emptied and are up. `disks` have answered before `peers` were asked: then what somebody
/// wrote before either is in the states that are compared.
pub async fn describe(disks: &mut [pb::Disk], peers: &[Peer]) {
    for disk in disks {
        let me = peers.iter().find(|peer| hex(&peer.disk_id) == disk.disk_id && peer.mark() == Mark::Draining);
        let (Some(me), Some(status)) = (me, &disk.status) else { continue };
        let left = left(Path::new(&disk.grpc_socket), me, peers).await;
        disk.drain = Some(drain(left, status, me, peers));
    }
}

/// Connected, and not to be emptied too: what is there is safe when this one has gone.
fn stays(peer: &Peer, me: &Peer) -> bool {
    peer.connected && peer.mark() == Mark::None && peer.disk_id != me.disk_id
}

fn drain(left: Result<Left, Status>, status: &WorkerStatus, me: &Peer, peers: &[Peer]) -> pb::Drain {
    let has_names = |peer: &Peer| !me.state_commit.is_empty() && peer.state_commit == me.state_commit;
    let it = *left.as_ref().unwrap_or(&Left::default());
    let waits_for = match &left {
        Err(error) => format!("it is not known what is left: {}", error.message()),
        Ok(Left { uncopied: 1.., .. }) => format!(
            "{} of them have fewer copies than wanted on other disks: they are copied where there is room. If there are too few \
             disks, add one, or want fewer copies: `delugefs copies PATH N`{}",
            it.uncopied,
            unpromised(it.unpromised, me, peers)
        ),
        Ok(Left { contents: 1.., .. }) => {
            "all of them are on enough other disks, and go here when those have promised to keep them (ten minutes after a start at the earliest)"
                .into()
        }
        Ok(_) if status.staged_files > 0 => format!("{} files are being written there", status.staged_files),
        Ok(_) if status.uncommitted_changes > 0 || !peers.iter().any(|peer| stays(peer, me) && has_names(peer)) => {
            "the last changes of names are not on another disk yet".into()
        }
        Ok(_) => String::new(),
    };
    pb::Drain { contents: it.contents, bytes: it.bytes, uncopied: it.uncopied, waits_for }
}

/// What has copies, too, but cannot promise to keep them.
fn unpromised(contents: u64, me: &Peer, peers: &[Peer]) -> String {
    if contents == 0 {
        return String::new();
    }
    let refuse = peers.iter().filter(|peer| stays(peer, me) && !peer.lazy && peer.read_only);
    let say = |peer: &Peer| {
        let id = hex(&peer.disk_id);
        let (id, host) = (short_id(&id), &peer.host_label);
        match peer.full {
            true => format!("{id} (host {host}; it is full: delete something, or make room there)"),
            false => format!("{id} (host {host}; `delugefs status -x` there says what is wrong with it)"),
        }
    };
    let disks: Vec<String> = refuse.map(say).collect();
    format!(
        ". Of {contents} there would be enough, but nobody relies on a disk that takes no changes: {}",
        disks.join(", ")
    )
}

/// As its worker knows.
async fn left(socket: &Path, me: &Peer, peers: &[Peer]) -> Result<Left, Status> {
    let late = |_| Status::deadline_exceeded("the worker stopped saying what there is");
    let mut messages = timeout(SILENCE, worker::all_contents(socket)).await.map_err(late)??;
    let (mut ids, mut left) = (Vec::new(), Left::default());
    while let Some(message) = timeout(SILENCE, messages.message()).await.map_err(late)?? {
        if !message.disks.is_empty() {
            ids = message.disks; // in the first one
        }
        count(&mut left, &ids, &message.contents, me, peers);
    }
    Ok(left)
}

fn count(left: &mut Left, ids: &[Vec<u8>], contents: &[Content], me: &Peer, peers: &[Peer]) {
    let mine: Vec<bool> = ids.iter().map(|id| *id == me.disk_id).collect();
    let are = |test: &dyn Fn(&&Peer) -> bool| -> Vec<bool> {
        ids.iter().map(|id| peers.iter().filter(test).any(|peer| peer.disk_id == *id)).collect()
    };
    let keepers = are(&|peer| stays(peer, me) && !peer.lazy);
    let promising = are(&|peer| stays(peer, me) && !peer.lazy && !peer.read_only);
    let among = |content: &Content, disks: &[bool]| {
        content.holders.iter().filter(|at| disks.get(**at as usize).copied().unwrap_or(false)).count()
    };
    for content in contents.iter().filter(|content| content.wanted > 0 && among(content, &mine) > 0) {
        left.contents += 1;
        left.bytes = left.bytes.saturating_add(content.size_bytes);
        let wanted = content.wanted as usize;
        if among(content, &promising) < wanted {
            left.uncopied += 1;
            left.unpromised += u64::from(among(content, &keepers) >= wanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8, state: &str) -> Peer {
        Peer { disk_id: vec![n; 32], connected: true, state_commit: state.into(), ..Peer::default() }
    }

    fn me() -> Peer {
        Peer { mark: Mark::Draining.into(), ..peer(0, "c1") }
    }

    #[test]
    fn a_disk_may_go_when_neither_contents_nor_names_are_only_there() {
        let waits = |left, status: WorkerStatus, other: Peer| {
            let said = drain(left, &status, &me(), &[me(), other]);
            (said.contents, said.waits_for)
        };
        let idle = WorkerStatus::default;
        let empty = || Ok(Left::default());
        let some = |uncopied| Ok(Left { contents: 3, bytes: 9, uncopied, unpromised: 0 });
        assert_eq!(waits(empty(), idle(), peer(2, "c1")), (0, String::new()));
        assert!(waits(some(2), idle(), peer(2, "c1")).1.starts_with("2 of them have fewer copies"));
        assert!(waits(some(0), idle(), peer(2, "c1")).1.contains("promised"));
        assert!(waits(empty(), WorkerStatus { staged_files: 1, ..idle() }, peer(2, "c1")).1.contains("1 files"));
        let of_names = |status, other| waits(empty(), status, other).1.contains("changes of names");
        assert!(of_names(WorkerStatus { uncommitted_changes: 1, ..idle() }, peer(2, "c1")));
        assert!(of_names(idle(), peer(2, "c0")));
        assert!(of_names(idle(), Peer { connected: false, ..peer(2, "c1") }));
        assert!(of_names(idle(), Peer { mark: Mark::Draining.into(), ..peer(2, "c1") }), "it is to go too");
        let full = Peer { read_only: true, full: true, host_label: "attic".into(), ..peer(2, "c1") };
        let said = waits(Ok(Left { contents: 3, bytes: 9, uncopied: 2, unpromised: 1 }), idle(), full).1;
        assert!(said.contains(". Of 1 there would be enough, but nobody relies on a disk that takes no changes: 02020202 (host attic; it is full"), "{said}");
        assert!(waits(Err(Status::unavailable("no")), idle(), peer(2, "c1")).1.contains("not known"));
    }

    #[test]
    fn only_what_files_have_is_left_and_copies_that_stay_count() {
        let ids: Vec<Vec<u8>> = (0..4).map(|n| vec![n; 32]).collect();
        let content = |holders: &[u32], wanted| Content {
            holders: holders.to_vec(),
            wanted,
            size_bytes: 10,
            ..Content::default()
        };
        let lazy = Peer { lazy: true, ..peer(2, "") };
        let away = Peer { connected: false, ..peer(3, "") };
        let left = |contents: &[Content]| {
            let mut left = Left::default();
            count(&mut left, &ids, contents, &me(), &[me(), peer(1, ""), lazy.clone(), away.clone()]);
            (left.contents, left.bytes, left.uncopied)
        };
        assert_eq!(left(&[content(&[1, 2], 2), content(&[0], 0)]), (0, 0, 0), "not there, or no file has it");
        assert_eq!(left(&[content(&[0, 1], 1)]), (1, 10, 0));
        let refuses = Peer { read_only: true, ..peer(2, "") };
        let mut of_refusing = Left::default();
        let contents = [content(&[0, 1, 2], 2), content(&[0, 1, 2], 1), content(&[0, 2], 3)];
        count(&mut of_refusing, &ids, &contents, &me(), &[me(), peer(1, ""), refuses]);
        assert_eq!((of_refusing.uncopied, of_refusing.unpromised), (2, 1), "it promises nothing");
        assert_eq!(left(&[content(&[0], 1), content(&[0, 1], 2)]), (2, 20, 2));
        assert_eq!(left(&[content(&[0, 2], 1), content(&[0, 3], 1), content(&[0, 9], 1)]), (3, 30, 3));
    }
}
