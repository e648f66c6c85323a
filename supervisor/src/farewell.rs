//! What goes with a host or disk that is revoked: contents that no disk of the others has.

use std::path::Path;
use std::time::Duration;

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;
use delugefs_proto::exit::Exit;
use delugefs_proto::ids::DiskId;
use delugefs_proto::worker_pb::{Content, Mark, Peer};
use tokio::time::timeout;
use tonic::Status;

use crate::failure::Failure;
use crate::worker;

/// A worker that says nothing for so long is stuck; the first part takes a walk of its catalog.
const SILENCE: Duration = Duration::from_secs(60);

/// Whether nothing is lost with these disks, as the first of this host's disks knows that answers. `peers` are all disks of
/// the cluster.
///
/// # Errors
/// The number of contents that only they have; or no worker says what there is.
pub async fn check(leaving: &[DiskId], peers: &[Peer], asked: &[pb::Disk]) -> Result<(), Failure> {
    let exists = peers.iter().filter(|peer| peer.mark() != Mark::Forgotten);
    let staying: Vec<DiskId> =
        exists.filter_map(|peer| DiskId::from_slice(&peer.disk_id)).filter(|disk| !leaving.contains(disk)).collect();
    let mut why = Status::unavailable("no disk is up on this host");
    for disk in asked {
        match lost(Path::new(&disk.grpc_socket), leaving, &staying).await {
            Ok(0) => return Ok(()),
            Ok(lost) => return Err(refused(lost, leaving)),
            Err(error) => why = error,
        }
    }
    let text = format!("it is not known what no other disk has: {}", why.message());
    Err(Failure::new(Exit::Failure, text).hint("--yes revokes it whatever it has"))
}

fn refused(lost: u64, leaving: &[DiskId]) -> Failure {
    let ids: Vec<String> = leaving.iter().map(|disk| short_id(&disk.to_hex()).to_owned()).collect();
    let disks = if ids.len() == 1 { "disk" } else { "disks" };
    let text = format!("{lost} contents are only on {disks} {}, which could not give them any more", ids.join(", "));
    Failure::new(Exit::InUse, text)
        .hint("`delugefs disk drain DISK` has them copied first; --yes revokes it without them")
}

async fn lost(socket: &Path, leaving: &[DiskId], staying: &[DiskId]) -> Result<u64, Status> {
    let late = |_| Status::deadline_exceeded("the worker stopped saying what there is");
    let mut messages = timeout(SILENCE, worker::contents(socket, 0)).await.map_err(late)??;
    let (mut ids, mut lost) = (Vec::new(), 0);
    while let Some(message) = timeout(SILENCE, messages.message()).await.map_err(late)?? {
        if !message.disks.is_empty() {
            ids = message.disks; // in the first one
        }
        lost += count(&ids, &message.contents, leaving, staying);
    }
    Ok(lost)
}

/// The contents that files have, and only disks have that leave.
fn count(ids: &[Vec<u8>], contents: &[Content], leaving: &[DiskId], staying: &[DiskId]) -> u64 {
    let is_on = |content: &Content, disks: &[DiskId]| {
        let holders = content.holders.iter().filter_map(|at| ids.get(*at as usize));
        holders.filter_map(|id| DiskId::from_slice(id)).any(|holder| disks.contains(&holder))
    };
    let is_lost = |content: &&Content| content.wanted > 0 && is_on(content, leaving) && !is_on(content, staying);
    contents.iter().filter(is_lost).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_disks_that_leave_have_is_counted() {
        let ids: Vec<Vec<u8>> = (0..4).map(|n| vec![n; 32]).collect();
        let disk = |n| DiskId([n; 32]);
        let content = |holders: &[u32], wanted| Content { holders: holders.to_vec(), wanted, ..Content::default() };
        // Disk 3 was forgotten: its copies do not exist.
        let contents =
            [content(&[0], 1), content(&[0, 1], 2), content(&[1, 3], 2), content(&[0, 2], 2), content(&[0], 0)];
        let lost = |leaving: &[DiskId], staying: &[DiskId]| count(&ids, &contents, leaving, staying);
        assert_eq!(lost(&[disk(0)], &[disk(1), disk(2)]), 1, "a file has it, and no other disk");
        assert_eq!(lost(&[disk(1)], &[disk(0), disk(2)]), 1, "or one that does not count");
        assert_eq!(lost(&[disk(0), disk(1)], &[disk(2)]), 3, "those that only disks of one host have");
        assert_eq!(lost(&[disk(2)], &[disk(0), disk(1)]), 0);
    }
}
