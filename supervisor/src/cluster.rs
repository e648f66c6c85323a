//! Keeps this host's workers and the cluster together: joins their membership with the host's, admits the host's disks, and
//! tells every worker where others may be. Once a second, over the workers' own sockets; nothing here talks to the network.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;
use delugefs_proto::ids::{ClusterId, DiskId, HostId};
use delugefs_proto::worker_pb::{Hint, HintsRequest, MembersRequest, Peer, PeersRequest};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use tonic::{Code, Status};

use crate::addresses::Addresses;
use crate::log::Logged;
use crate::membership::Membership;
use crate::nearby::Nearby;
use crate::worker;

/// Between two looks.
const ROUND: Duration = Duration::from_secs(1);
/// Everything is told again after so many rounds: a worker may have been restarted in the same moment.
const AGAIN: u32 = 30;

/// What the tasks that find others put in.
#[derive(Debug)]
pub struct Found {
    /// Given by the user, without a disk: asked who is there.
    pub peers: Vec<String>,
    /// Found on the local network.
    pub nearby: Mutex<Nearby>,
}

/// What a worker was told last.
#[derive(Default)]
struct Told {
    pid: u32,
    /// Its disk was admitted in this life of the process: two hosts with copies of one disk must not admit it in turns.
    admitted: bool,
    members: Vec<u8>,
    hints: Vec<Hint>,
    rounds: u32,
    connection: worker::Kept,
}

/// This host's disks that cannot meet others, by their ids, and why.
pub type Apart = BTreeMap<String, String>;

/// Until the supervisor ends.
pub async fn follow(
    mut snapshots: watch::Receiver<Arc<pb::HostStatus>>,
    membership: Arc<Membership>,
    addresses: Arc<Addresses>,
    found: Arc<Found>,
    apart: watch::Sender<Apart>,
) {
    let mut told: HashMap<PathBuf, Told> = HashMap::new();
    let complained = Logged::default();
    loop {
        let host = snapshots.borrow_and_update().clone();
        let up: Vec<&pb::Disk> = host
            .disks
            .iter()
            .filter(|disk| disk.state() == pb::disk::State::Up && !disk.grpc_socket.is_empty())
            .collect();
        let local = up.iter().filter(|disk| disk.tcp_port != 0).filter_map(|disk| {
            // A disk that listens on one address does not answer on the others.
            let host = if disk.listen.is_empty() { "127.0.0.1" } else { &disk.listen };
            let address = match host.contains(':') {
                true => format!("[{host}]:{}", disk.tcp_port),
                false => format!("{host}:{}", disk.tcp_port),
            };
            Some(Hint { disk_id: DiskId::from_hex(&disk.disk_id)?.0.to_vec(), address })
        });
        let mut hints: Vec<Hint> = local.collect();
        hints.extend(addresses.hints());
        let nearby = |(disk, address): (DiskId, &str)| Hint { disk_id: disk.0.to_vec(), address: address.into() };
        hints.extend(found.nearby.lock().all().map(nearby));
        hints.extend(found.peers.iter().map(|address| Hint { disk_id: Vec::new(), address: address.clone() }));
        let hints = Arc::new(hints);
        let sockets: Arc<[PathBuf]> = up.iter().map(|disk| PathBuf::from(&disk.grpc_socket)).collect();
        let mut meetings = JoinSet::new();
        for disk in up.into_iter().cloned() {
            let socket = PathBuf::from(&disk.grpc_socket);
            let mut told = told.remove(&socket).filter(|told| told.pid == disk.pid).unwrap_or_default();
            if told.rounds >= AGAIN {
                told = Told { admitted: told.admitted, connection: told.connection, ..Told::default() };
            }
            told.pid = disk.pid;
            told.rounds += 1;
            if let Ok(port) = u16::try_from(disk.tcp_port)
                && port != 0
            {
                addresses.set_port(&disk.disk_id, port);
            }
            let (membership, addresses, hints) = (membership.clone(), addresses.clone(), hints.clone());
            let sockets = sockets.clone();
            // Side by side: a stuck worker keeps no other one waiting.
            meetings.spawn(async move {
                let met = meet(&disk, &sockets, &mut told, &membership, &addresses, &hints).await;
                (disk.disk_id, socket, told, met)
            });
        }
        told.clear();
        let mut now_apart = Apart::new();
        while let Some(met) = meetings.join_next().await {
            let Ok((disk_id, socket, its, met)) = met else { continue };
            // One that was told to end meanwhile answers nothing, by right.
            let is_up = |disk: &pb::Disk| disk.disk_id == disk_id && disk.state() == pb::disk::State::Up;
            if let Err(why) = met
                && snapshots.borrow().disks.iter().any(is_up)
            {
                if complained.insert(&format!("{disk_id} {why}")) {
                    tracing::warn!("disk {}: {why}", short_id(&disk_id));
                }
                now_apart.insert(disk_id, why);
            }
            told.insert(socket, its);
        }
        apart.send_replace(now_apart);
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return; // the owner has ended
                }
                tokio::time::sleep(ROUND / 20).await;
            }
        }
    }
}

/// `false`: the worker is busy, and is told again in a moment.
fn has_taken<T>(answer: Result<T, Status>) -> Result<bool, String> {
    match answer {
        Ok(_) => Ok(true),
        Err(status) if matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable | Code::Cancelled) => {
            Ok(false)
        }
        Err(status) => Err(status.message().to_owned()),
    }
}

async fn meet(
    disk: &pb::Disk,
    sockets: &[PathBuf],
    told: &mut Told,
    membership: &Membership,
    addresses: &Addresses,
    hints: &[Hint],
) -> Result<(), String> {
    // Until its worker has said of which cluster it is, in a moment, there is nothing to do.
    let ids = (ClusterId::from_hex(&disk.cluster_id), DiskId::from_hex(&disk.disk_id));
    let (Some(cluster), Some(id)) = ids else { return Ok(()) };
    let socket = Path::new(&disk.grpc_socket);
    let busy = |_| (); // it is asked again in a moment
    let answer = told.connection.peers(socket).await.map_err(busy);
    let Ok(peers) = answer else { return Ok(()) };
    addresses.learn_from(&peers.peers);
    membership.absorb(cluster, &peers.members).map_err(|error| format!("{error:#}"))?;
    if membership.is_revoked(cluster, id.into()) {
        return Err("it was revoked, which is for ever".into());
    }
    let host_id = membership.identity().host_id();
    if !told.admitted
        && let Some(host) = runs_at(id, host_id, sockets.iter().filter(|other| *other != socket)).await
    {
        return Err(format!(
            "{} is a copy of a disk that is in use on host {host}; stop one of the two, and keep the other",
            disk.root
        ));
    }
    if !told.admitted {
        told.admitted = membership.admit_disk(cluster, id).map_err(|error| format!("{error:#}"))?;
    }
    let Some(set) = membership.set(cluster) else {
        return Err("it was made before disks could meet, and stays alone: make a new disk and copy its files".into());
    };
    if let Some(out) = membership.shut_out(&set) {
        return Err(format!("{}; {}", out.message, out.hint.unwrap_or_default()));
    }
    if !set.is_disk(id) {
        return Err("neither this host nor the disk is a member of the cluster: `--join TOKEN` makes it one".into());
    }
    let members = set.encode();
    if told.members != members {
        let request =
            MembersRequest { set: members.clone(), host_label: membership.label().into(), host_id: host_id.0.to_vec() };
        let answer = worker::ask(socket, |mut client| async move { client.members(request).await }).await;
        if !has_taken(answer)? {
            return Ok(());
        }
        told.members = members;
    }
    if as_set(&told.hints) != as_set(hints) {
        let request = HintsRequest { hints: hints.to_vec() };
        let answer = worker::ask(socket, |mut client| async move { client.hints(request).await }).await;
        if !has_taken(answer)? {
            return Ok(());
        }
        told.hints = hints.to_vec();
    }
    Ok(())
}

/// The order of hints is no news: each disk of a host has its own.
fn as_set(hints: &[Hint]) -> BTreeSet<(&[u8], &str)> {
    hints.iter().map(|hint| (&hint.disk_id[..], &hint.address[..])).collect()
}

/// The name of another host where these workers see a disk in use.
async fn runs_at(id: DiskId, me: HostId, workers: impl Iterator<Item = &PathBuf>) -> Option<String> {
    for socket in workers {
        let request = PeersRequest {};
        let answer = worker::ask(socket, |mut client| async move { client.peers(request).await }).await;
        let is_it =
            |peer: &Peer| peer.linked && peer.disk_id == id.0 && !peer.host_id.is_empty() && peer.host_id != me.0;
        if let Some(peer) = answer.ok().and_then(|answer| answer.peers.into_iter().find(is_it)) {
            return Some(peer.host_label);
        }
    }
    None
}
