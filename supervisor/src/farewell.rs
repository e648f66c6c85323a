//! What goes with a host or disk that is revoked: contents that no disk of the others has, and what is written to it still.

use std::path::Path;
use std::time::Duration;

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;
use delugefs_proto::exit::Exit;
use delugefs_proto::ids::{ClusterId, DiskId};
use delugefs_proto::members::Members;
use delugefs_proto::worker_pb::{Content, Mark, Peer};
use tokio::time::timeout;
use tonic::Status;

use crate::escape::quoted;
use crate::failure::Failure;
use crate::membership::{Membership, revoked_by};
use crate::worker;

/// A worker that says nothing for so long is stuck; the first part takes a walk of its catalog.
const SILENCE: Duration = Duration::from_secs(60);

/// Whether nothing is lost with these disks, as the first of this host's disks knows that answers. `peers` are all disks of
/// the cluster.
///
/// # Errors
/// The number of contents that only they have, or may have; or no worker says what there is.
pub async fn check(leaving: &[DiskId], peers: &[Peer], asked: &[pb::Disk]) -> Result<(), Failure> {
    let exists = peers.iter().filter(|peer| peer.mark() != Mark::Forgotten);
    let staying: Vec<DiskId> =
        exists.filter_map(|peer| DiskId::from_slice(&peer.disk_id)).filter(|disk| !leaving.contains(disk)).collect();
    // What the others hold was told before the start, up to some minute: what came after that, no other disk may know of.
    let is_heard = |peer: &&Peer| peer.told || peer.mark() == Mark::Forgotten;
    let heard: Vec<DiskId> =
        peers.iter().filter(is_heard).filter_map(|peer| DiskId::from_slice(&peer.disk_id)).collect();
    let unheard: Vec<DiskId> = leaving.iter().copied().filter(|disk| !heard.contains(disk)).collect();
    let mut why = Status::unavailable("no disk is up on this host");
    for disk in asked {
        match lost(Path::new(&disk.grpc_socket), leaving, &staying, !unheard.is_empty()).await {
            Ok(Lost { known: 0, unknown: 0 }) => return Ok(()),
            Ok(lost) => return Err(refused(lost, leaving, &unheard)),
            Err(error) => why = error,
        }
    }
    let text = format!("it is not known what no other disk has: {}", why.message());
    Err(Failure::new(Exit::Failure, text).hint("--yes revokes it whatever it has"))
}

/// Whether none of these disks is at work on this host: what is written to one that is out, nobody else gets. `up` are this
/// host's disks that are up.
///
/// # Errors
/// The first that is.
pub fn check_idle(leaving: &[DiskId], up: &[pb::Disk]) -> Result<(), Failure> {
    let Some(disk) = up.iter().find(|disk| leaving.iter().any(|id| id.to_hex() == disk.disk_id)) else { return Ok(()) };
    let (id, root) = (short_id(&disk.disk_id), &disk.root);
    let text =
        format!("disk {id} ({root}) runs on this host: what is written to it would reach no other disk any more");
    let hint = format!(
        "`delugefs disk drain {id}` has its contents copied, then `delugefs disk remove {}`; --yes revokes it as it is",
        quoted(root)
    );
    Err(Failure::new(Exit::InUse, text).hint(hint))
}

/// Whether this disk of this host was revoked: it counts for nothing in the cluster any more.
pub fn is_out(membership: &Membership, disk: &pb::Disk) -> bool {
    let ids = ClusterId::from_hex(&disk.cluster_id).zip(DiskId::from_hex(&disk.disk_id));
    ids.is_some_and(|(cluster, id)| membership.is_revoked(cluster, id.into()))
}

/// What is asked of this disk of this host has to be asked of another one.
pub fn refuse(membership: &Membership, disk: &pb::Disk) -> Failure {
    let cluster = ClusterId::from_hex(&disk.cluster_id).and_then(|cluster| membership.set(cluster));
    let by = cluster.zip(DiskId::from_hex(&disk.disk_id)).map(|(set, id)| revoked_by(&set, id.into()));
    let (id, root, by) = (short_id(&disk.disk_id), &disk.root, by.unwrap_or_default());
    let text = format!("disk {id} ({root}) was revoked{by}: what is said to it reaches no other disk");
    Failure::new(Exit::NotPermitted, text).hint(format!(
        "copy what only it has to another, then `delugefs disk remove {}`; `delugefs mount DIR` shows another disk of this host",
        quoted(root)
    ))
}

/// What a person should know of this host and its disks that are out already, one sentence each.
pub fn shut_out(set: &Members, membership: &Membership, disks: &[pb::Disk]) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(out) = membership.shut_out(set) {
        let then = out.hint.unwrap_or_default();
        problems.push(format!("{}: what is written here reaches no other host any more; {then}", out.message));
    }
    for disk in disks {
        if let Some(id) = DiskId::from_hex(&disk.disk_id).filter(|id| set.is_revoked((*id).into())) {
            let (by, id, root) = (revoked_by(set, id.into()), short_id(&disk.disk_id), &disk.root);
            let then = format!("copy what only it has to another, then `delugefs disk remove {}`", quoted(root));
            problems.push(format!(
                "disk {id} ({root}) was revoked{by}: what is written to it reaches no other disk; {then}"
            ));
        }
    }
    problems
}

fn refused(lost: Lost, leaving: &[DiskId], unheard: &[DiskId]) -> Failure {
    let named = |disks: &[DiskId]| {
        let ids: Vec<String> = disks.iter().map(|disk| short_id(&disk.to_hex()).to_owned()).collect();
        format!("{} {}", if ids.len() == 1 { "disk" } else { "disks" }, ids.join(", "))
    };
    let known = format!("{} contents are only on {}, which could not give them any more", lost.known, named(leaving));
    let unknown = format!(
        "no disk is known to have {} contents, and {} may have them: what is there was not said since the start here",
        lost.unknown,
        named(unheard)
    );
    let drain = "`delugefs disk drain DISK` has them copied first; --yes revokes it without them";
    let (text, hint) = match (lost.known, lost.unknown) {
        (_, 0) => (known, drain.to_owned()),
        (0, _) => (
            unknown,
            "connect it first, for a moment: then it is known what it has; --yes revokes it without".to_owned(),
        ),
        _ => (format!("{known}; {unknown}"), format!("connect it first: then it is known what it has, and {drain}")),
    };
    Failure::new(Exit::InUse, text).hint(hint)
}

/// What nobody could give any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lost {
    /// Contents that only disks that leave are known to have.
    known: u64,
    /// Those that no disk is known to have, while one that leaves may.
    unknown: u64,
}

/// `is_unheard`: one of those that leave has not said what it has.
async fn lost(socket: &Path, leaving: &[DiskId], staying: &[DiskId], is_unheard: bool) -> Result<Lost, Status> {
    let late = |_| Status::deadline_exceeded("the worker stopped saying what there is");
    let mut messages = timeout(SILENCE, worker::all_contents(socket)).await.map_err(late)??;
    let (mut ids, mut lost) = (Vec::new(), Lost::default());
    while let Some(message) = timeout(SILENCE, messages.message()).await.map_err(late)?? {
        if !message.disks.is_empty() {
            ids = message.disks; // in the first one
        }
        count(&mut lost, &ids, &message.contents, leaving, staying, is_unheard);
    }
    Ok(lost)
}

/// The contents that files have, and no disk that stays.
fn count(
    lost: &mut Lost,
    ids: &[Vec<u8>],
    contents: &[Content],
    leaving: &[DiskId],
    staying: &[DiskId],
    is_unheard: bool,
) {
    let is_on = |content: &Content, disks: &[DiskId]| {
        let holders = content.holders.iter().filter_map(|at| ids.get(*at as usize));
        holders.filter_map(|id| DiskId::from_slice(id)).any(|holder| disks.contains(&holder))
    };
    for content in contents.iter().filter(|content| content.wanted > 0 && !is_on(content, staying)) {
        match is_on(content, leaving) {
            true => lost.known += 1,
            false => lost.unknown += u64::from(is_unheard),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_at_work_here_is_not_shut_out_unasked_and_one_that_is_out_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let membership = Membership::open(dir.path().into()).unwrap();
        let cluster = membership.cluster_for("home").unwrap();
        let ours =
            |n: u8| pb::Disk { disk_id: DiskId([n; 32]).to_hex(), root: format!("/my d{n}"), ..pb::Disk::default() };
        for n in [8, 9] {
            assert!(membership.admit_disk(cluster, DiskId([n; 32])).unwrap());
        }
        let leaving = membership.leaving(cluster, "09090909", false).unwrap();
        let failure = check_idle(&leaving, &[ours(8), ours(9)]).unwrap_err();
        assert_eq!(failure.exit, Exit::InUse);
        assert!(failure.message.starts_with("disk 09090909 (/my d9) runs on this host"), "{failure:?}");
        assert!(failure.hint.unwrap().contains("`delugefs disk remove '/my d9'`"));
        assert_eq!(check_idle(&leaving, &[ours(8)]), Ok(()));

        let me = membership.identity().host_id();
        let problems =
            || shut_out(&membership.set(cluster).unwrap(), &membership, &[ours(8), ours(9), pb::Disk::default()]);
        assert_eq!(problems(), Vec::<String>::new());
        membership.revoke(cluster, "09090909", false).unwrap();
        assert!(problems()[0].starts_with("disk 09090909 (/my d9) was revoked"), "{:?}", problems());
        assert!(problems()[0].ends_with("`delugefs disk remove '/my d9'`"), "{:?}", problems());

        // By another host.
        let token = membership.invite(cluster, DiskId([8; 32]), vec![], 60).unwrap();
        let other_dir = tempfile::tempdir().unwrap();
        let other = Membership::open(other_dir.path().into()).unwrap();
        let set = membership.redeem(cluster, "", &token.secret, other.identity().host_id(), "x").unwrap();
        other.absorb(cluster, &set.encode()).unwrap();
        other.revoke(cluster, &me.to_hex(), false).unwrap();
        membership.absorb(cluster, &other.set(cluster).unwrap().encode()).unwrap();
        assert!(problems()[0].starts_with("this host was revoked by "), "{:?}", problems());
        let key = dir.path().join("host.key");
        assert!(problems()[0].contains(&format!("move {} away", key.display())), "{:?}", problems());
        // Whatever it asks for.
        let id = other.identity().host_id().to_hex();
        let asked = [
            membership.invite(cluster, DiskId([8; 32]), vec![], 60).err(),
            membership.revoke(cluster, &id, false).err(),
        ];
        for failure in asked.map(Option::unwrap) {
            assert!(failure.hint.is_some_and(|hint| hint.contains("host.key")), "{}", failure.message);
        }
    }

    #[test]
    fn what_only_disks_that_leave_have_is_counted() {
        let ids: Vec<Vec<u8>> = (0..4).map(|n| vec![n; 32]).collect();
        let disk = |n| DiskId([n; 32]);
        let content = |holders: &[u32], wanted| Content { holders: holders.to_vec(), wanted, ..Content::default() };
        // Disk 3 was forgotten: its copies do not exist.
        let contents = [
            content(&[0], 1),
            content(&[0, 1], 2),
            content(&[1, 3], 2),
            content(&[0, 2], 2),
            content(&[0], 0),
            content(&[], 1),
            content(&[], 0),
        ];
        let lost = |leaving: &[DiskId], staying: &[DiskId], is_unheard| {
            let mut lost = Lost::default();
            count(&mut lost, &ids, &contents, leaving, staying, is_unheard);
            (lost.known, lost.unknown)
        };
        assert_eq!(lost(&[disk(0)], &[disk(1), disk(2)], false), (1, 0), "a file has it, and no other disk");
        assert_eq!(lost(&[disk(1)], &[disk(0), disk(2)], false), (1, 0), "or one that does not count");
        assert_eq!(lost(&[disk(0), disk(1)], &[disk(2)], false), (3, 0), "those that only disks of one host have");
        assert_eq!(lost(&[disk(2)], &[disk(0), disk(1)], false), (0, 0));
        assert_eq!(lost(&[disk(2)], &[disk(0), disk(1)], true), (0, 1), "what nobody is known to have it may have");
        let failure = refused(Lost { known: 0, unknown: 20 }, &[disk(2)], &[disk(2)]);
        assert!(
            failure.message.starts_with("no disk is known to have 20 contents, and disk 02020202 may"),
            "{failure:?}"
        );
        assert!(failure.hint.unwrap().starts_with("connect it first"));
    }
}
