//! The `--json` forms. Documented in supervisor/DESIGN.md and held by snapshot tests: fields are added, never renamed.

use delugefs_proto::ids::hex;
use delugefs_proto::{control_pb as pb, worker_pb};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Status {
    cluster: String,
    cluster_id: String,
    pid: u32,
    version: String,
    disks: Vec<Disk>,
    mounts: Vec<Mount>,
    problems: Vec<String>,
    replication: Option<Replication>,
}

#[derive(Debug, Serialize)]
struct Replication {
    contents: u64,
    short: u64,
    short_waiting: u64,
    short_long: u64,
    single: u64,
    unreachable: u64,
    gone: u64,
    waiting: u64,
    at_risk: Vec<AtRisk>,
    disks: Vec<DiskCopies>,
}

#[derive(Debug, Serialize)]
struct AtRisk {
    content: String,
    present: u32,
    wanted: u32,
}

#[derive(Debug, Serialize)]
struct DiskCopies {
    disk_id: String,
    present: bool,
    contents: u64,
    bytes: u64,
    only_here: u64,
}

impl From<pb::Replication> for Replication {
    fn from(it: pb::Replication) -> Self {
        let at_risk = |one: pb::AtRisk| AtRisk { content: hex(&one.content), present: one.present, wanted: one.wanted };
        let copies = |disk: pb::DiskCopies| DiskCopies {
            disk_id: hex(&disk.disk_id),
            present: disk.present,
            contents: disk.contents,
            bytes: disk.bytes,
            only_here: disk.only_here,
        };
        Self {
            contents: it.contents,
            short: it.short,
            short_waiting: it.short_waiting,
            short_long: it.short_long,
            single: it.single,
            unreachable: it.unreachable,
            gone: it.gone,
            waiting: it.waiting,
            at_risk: it.at_risk.into_iter().map(at_risk).collect(),
            disks: it.disks.into_iter().map(copies).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Disk {
    root: String,
    disk_id: String,
    state: &'static str,
    pid: Option<u32>,
    restarts: u32,
    by_hand: bool,
    last_error: Option<Failure>,
    worker: Option<Worker>,
    /// Only `disks` has it.
    drain: Option<Drain>,
}

#[derive(Debug, Serialize)]
struct Drain {
    contents: u64,
    bytes: u64,
    uncopied: u64,
    may_be_removed: bool,
    waits_for: Option<String>,
}

#[derive(Debug, Serialize)]
struct Failure {
    exit: u32,
    message: String,
    hint: Option<String>,
}

/// What only the worker knows; `null` when it is not up or does not answer.
#[derive(Debug, Serialize)]
struct Worker {
    read_only: bool,
    reason: Option<String>,
    total_bytes: u64,
    free_bytes: u64,
    contents: u64,
    content_bytes: u64,
    staged_files: u64,
    catalog_commit: String,
    uncommitted_changes: u64,
    packs: u64,
    sessions: u64,
}

#[derive(Debug, Serialize)]
struct Mount {
    dir: String,
    root: Option<String>,
    state: &'static str,
    pid: Option<u32>,
    restarts: u32,
    by_hand: bool,
    last_error: Option<Failure>,
}

#[derive(Debug, Serialize)]
pub(super) struct Torrent {
    disk_id: String,
    content: String,
    info_hash: Option<String>,
    size_bytes: u64,
    have_bytes: u64,
    seeding: bool,
    peers: u32,
    down_bytes_per_s: u64,
    up_bytes_per_s: u64,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct WhereIs {
    path: String,
    inode: Option<String>,
    mode: Option<u32>,
    size_bytes: Option<u64>,
    place: Option<&'static str>,
    content: Option<String>,
    info_hash: Option<String>,
    disk_ids: Vec<String>,
    away: Vec<String>,
    forgotten: Vec<String>,
    may_have: Vec<String>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Scrub {
    root: String,
    disk_id: String,
    entries: u64,
    objects: u64,
    contents: u64,
    content_bytes: u64,
    pub(super) problems: Vec<String>,
}

fn some<T: Default + PartialEq>(value: T) -> Option<T> {
    Some(value).filter(|value| *value != T::default())
}

/// What a state is called.
pub(super) fn disk_state(disk: &pb::Disk) -> &'static str {
    use pb::disk::State;
    match disk.state() {
        State::Unspecified => "unknown",
        State::Starting => "starting",
        State::Up => "up",
        State::BackingOff => "restarting",
        State::Stopped => "stopped",
        State::Stopping => "stopping",
    }
}

/// What a state is called.
pub(super) fn mount_state(mount: &pb::Mount) -> &'static str {
    disk_state(&pb::Disk { state: mount.state, ..Default::default() })
}

/// What a place is called.
pub(super) fn place(answer: &worker_pb::WhereIsReply) -> &'static str {
    use worker_pb::where_is_reply::Place;
    match answer.place() {
        Place::Unspecified => "unknown",
        Place::NoContent => "none",
        Place::Catalog => "catalog",
        Place::Staging => "staging",
        Place::Store if answer.damaged => "damaged",
        Place::Store => "store",
        Place::Missing => "missing",
    }
}

impl From<pb::HostStatus> for Status {
    fn from(host: pb::HostStatus) -> Self {
        Self {
            cluster: host.cluster,
            cluster_id: host.cluster_id,
            pid: host.pid,
            version: host.version,
            disks: host.disks.into_iter().map(Disk::from).collect(),
            mounts: host.mounts.into_iter().map(Mount::from).collect(),
            problems: host.problems,
            replication: host.replication.map(Replication::from),
        }
    }
}

impl From<pb::Disk> for Disk {
    fn from(disk: pb::Disk) -> Self {
        Self {
            state: disk_state(&disk),
            root: disk.root,
            disk_id: disk.disk_id,
            pid: some(disk.pid),
            restarts: disk.restarts,
            by_hand: disk.by_hand,
            last_error: disk.failure.map(Failure::from),
            worker: disk.status.map(Worker::from),
            drain: disk.drain.map(|it| Drain {
                contents: it.contents,
                bytes: it.bytes,
                uncopied: it.uncopied,
                may_be_removed: it.waits_for.is_empty(),
                waits_for: some(it.waits_for),
            }),
        }
    }
}

impl From<pb::Failure> for Failure {
    fn from(failure: pb::Failure) -> Self {
        Self { exit: failure.exit, message: failure.message, hint: some(failure.hint) }
    }
}

impl From<worker_pb::WorkerStatus> for Worker {
    fn from(status: worker_pb::WorkerStatus) -> Self {
        let space = status.space.unwrap_or_default();
        Self {
            read_only: status.read_only,
            reason: some(status.reason),
            total_bytes: space.total_bytes,
            free_bytes: space.free_bytes,
            contents: status.contents,
            content_bytes: status.content_bytes,
            staged_files: status.staged_files,
            catalog_commit: status.catalog_commit,
            uncommitted_changes: status.uncommitted_changes,
            packs: status.packs,
            sessions: status.sessions,
        }
    }
}

impl From<pb::Mount> for Mount {
    fn from(mount: pb::Mount) -> Self {
        Self {
            state: mount_state(&mount),
            dir: mount.dir,
            root: some(mount.root),
            pid: some(mount.pid),
            restarts: mount.restarts,
            by_hand: mount.by_hand,
            last_error: mount.failure.map(Failure::from),
        }
    }
}

impl Torrent {
    pub(super) fn new(disk_id: &str, torrent: &worker_pb::Torrent) -> Self {
        Self {
            disk_id: disk_id.into(),
            content: hex(&torrent.content),
            info_hash: some(hex(&torrent.info_hash)),
            size_bytes: torrent.size_bytes,
            have_bytes: torrent.have_bytes,
            seeding: torrent.seeding,
            peers: torrent.peers,
            down_bytes_per_s: torrent.down_bytes_per_s,
            up_bytes_per_s: torrent.up_bytes_per_s,
            error: some(torrent.error.clone()),
        }
    }
}

impl WhereIs {
    pub(super) fn new(path: String, answer: worker_pb::WhereIsReply, may_have: Vec<String>) -> Self {
        Self {
            path,
            inode: Some(format!("{:016x}", answer.ino)),
            mode: Some(answer.mode),
            size_bytes: Some(answer.size_bytes),
            place: Some(place(&answer)),
            content: some(hex(&answer.content)),
            info_hash: some(hex(&answer.info_hash)),
            disk_ids: answer.disk_ids,
            away: answer.away,
            forgotten: answer.forgotten,
            may_have,
            error: None,
        }
    }

    pub(super) fn failed(path: String, error: String) -> Self {
        Self {
            path,
            inode: None,
            mode: None,
            size_bytes: None,
            place: None,
            content: None,
            info_hash: None,
            disk_ids: Vec::new(),
            away: Vec::new(),
            forgotten: Vec::new(),
            may_have: Vec::new(),
            error: Some(error),
        }
    }
}

impl From<pb::DiskScrub> for Scrub {
    /// That it could not be done is a problem too.
    fn from(disk: pb::DiskScrub) -> Self {
        let result = disk.result.unwrap_or_default();
        let undone = some(disk.error).map(|error| format!("could not be checked: {error}"));
        Self {
            root: disk.root,
            disk_id: disk.disk_id,
            entries: result.entries,
            objects: result.objects,
            contents: result.contents,
            content_bytes: result.content_bytes,
            problems: undone.into_iter().chain(result.problems).collect(),
        }
    }
}
