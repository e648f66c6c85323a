//! Stands in for `delugefs-diskworker` in this crate's tests: keeps the folder's lock and identity, serves and
//! registers like the real one, but stores nothing. A file `fake-worker` in the run directory changes its manners, one
//! word a line: `exit-before-ready CODE`, `read-only`, `damaged`,
//! `silent` (no gRPC answers), `never-ready`, `port N`, `member` (it is one of a cluster on the host `0909...`), `refuses
//! FOLDER` (the disk in that folder takes no changes), `hangs FOLDER` (it answers nothing of what people ask), `no-marks FOLDER` (no marks, and does not say so before), `draining FOLDER` (a
//! `member` that is being emptied).

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use delugefs_proto::control_pb::{RegisterRequest, control_client::ControlClient};
use delugefs_proto::disk::{DISK_FORMAT, DISK_TOML, DiskToml, LOCK, short_id};
use delugefs_proto::exit::{Exit, UserError, report};
use delugefs_proto::ids::{DiskId, hex};
use delugefs_proto::rundir;
use delugefs_proto::worker_pb::{self as pb, worker_server};
use delugefs_supervisor::uds;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => Exit::Ok.into(),
        Err(error) => report("delugefs-diskworker", error.as_ref()).into(),
    }
}

async fn serve() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| args.iter().position(|arg| arg == flag).and_then(|at| args.get(at + 1)).cloned();
    let need = |flag: &str| value(flag).ok_or_else(|| UserError::new(Exit::Usage, format!("{flag} is missing")));
    let (root, run_dir) = (PathBuf::from(need("--root")?), PathBuf::from(need("--run-dir")?));
    eprintln!("fake worker started with {}", args[1..].join(" "));
    if let Some(code) = manner(&run_dir, "exit-before-ready") {
        let exit = Exit::from_code(code.parse()?);
        return Err(UserError::new(exit, "told to fail").hint("tell it to work").into());
    }
    let disk = open(&root, &need("--cluster")?, args.contains(&"--create".into()), value("--cluster-id"))?;
    let _lock = lock(&root)?;

    let short = short_id(&disk.disk_id);
    let (local, grpc) = (rundir::local_socket(&run_dir, short), rundir::grpc_socket(&run_dir, short));
    for socket in [&local, &grpc] {
        let _ = fs::remove_file(socket);
    }
    let _local = UnixListener::bind(&local)?;
    let incoming = UnixListenerStream::new(UnixListener::bind(&grpc)?);
    let mut terminate = signal(SignalKind::terminate())?;
    if manner(&run_dir, "never-ready").is_some() {
        terminate.recv().await;
        return Ok(());
    }
    let worker = Fake { disk: disk.clone(), root: root.clone(), run_dir: run_dir.clone() };
    let server = tonic::transport::Server::builder().add_service(worker_server::WorkerServer::new(worker));
    tokio::spawn(server.serve_with_incoming(incoming));
    println!("ready {} {} {}", disk.disk_id, local.display(), grpc.display());

    let register = RegisterRequest {
        root: root.display().to_string(),
        disk_id: disk.disk_id,
        cluster: disk.cluster,
        cluster_id: disk.cluster_id,
        pid: std::process::id(),
        local_socket: local.display().to_string(),
        grpc_socket: grpc.display().to_string(),
        tcp_port: manner(&run_dir, "port").map(|port| port.parse()).transpose()?.unwrap_or(0),
    };
    if !args.contains(&"--no-register".into()) {
        tokio::spawn(keep_registered(run_dir, register));
    }
    terminate.recv().await;
    eprintln!("committed");
    Ok(())
}

fn open(root: &Path, cluster: &str, create: bool, cluster_id: Option<String>) -> anyhow::Result<DiskToml> {
    let shown = root.display();
    if !root.is_dir() {
        return Err(UserError::new(Exit::NoDisk, format!("{shown} does not exist"))
            .hint("make the folder first")
            .into());
    }
    let path = root.join(DISK_TOML);
    match (create, path.exists()) {
        (true, true) => {
            let error = UserError::new(Exit::NotEmpty, format!("{shown} is a disk already"));
            return Err(error.hint("leave out --create").into());
        }
        (true, false) => {
            let random = || hex(&delugefs_proto::ids::random_u64().to_le_bytes());
            let disk_id = random() + &random() + &random() + &random();
            let cluster_id = cluster_id.clone().unwrap_or_else(|| random() + &random());
            let disk = DiskToml { format: DISK_FORMAT, cluster: cluster.into(), cluster_id, disk_id };
            fs::write(&path, toml::to_string(&disk)?)?;
        }
        (false, _) => {}
    }
    let disk = DiskToml::read(root).map_err(|error| {
        UserError::new(Exit::NoDisk, error.to_string()).hint("--create makes a new disk of an empty folder")
    })?;
    if disk.cluster != cluster {
        return Err(UserError::new(Exit::WrongCluster, format!("{shown} belongs to cluster {}", disk.cluster)).into());
    }
    if cluster_id.is_some_and(|id| id != disk.cluster_id) {
        return Err(UserError::new(Exit::WrongCluster, format!("{shown} belongs to another cluster")).into());
    }
    Ok(disk)
}

fn lock(root: &Path) -> anyhow::Result<Flock<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(root.join(LOCK))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        UserError::new(Exit::InUse, format!("{} is in use by another worker", root.display()))
            .hint("stop it first")
            .into()
    })
}

async fn keep_registered(run_dir: PathBuf, request: RegisterRequest) {
    loop {
        if let Ok(channel) = uds::connect(&rundir::control_socket(&run_dir)).await
            && let Err(status) = ControlClient::new(channel).register(request.clone()).await
        {
            eprintln!("cannot register: {}", status.message());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// What stands behind a word in the file `fake-worker`.
fn manner(run_dir: &Path, word: &str) -> Option<String> {
    let text = fs::read_to_string(run_dir.join("fake-worker")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(word).map(|rest| rest.trim().to_string()))
}

struct Fake {
    disk: DiskToml,
    root: PathBuf,
    run_dir: PathBuf,
}

impl Fake {
    fn refuses(&self) -> bool {
        manner(&self.run_dir, "refuses").is_some_and(|folder| self.root.ends_with(folder))
    }

    async fn may_hang(&self) {
        if manner(&self.run_dir, "hangs").is_some_and(|folder| self.root.ends_with(folder)) {
            std::future::pending::<()>().await;
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl worker_server::Worker for Fake {
    type ContentsStream = tokio_stream::wrappers::ReceiverStream<Result<pb::ContentsReply, Status>>;

    async fn members(&self, _: Request<pb::MembersRequest>) -> Result<Response<pb::MembersReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn hints(&self, _: Request<pb::HintsRequest>) -> Result<Response<pb::HintsReply>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn peers(&self, _: Request<pb::PeersRequest>) -> Result<Response<pb::PeersReply>, Status> {
        if manner(&self.run_dir, "member").is_none() {
            return Err(Status::unimplemented(""));
        }
        let me = pb::Peer {
            disk_id: DiskId::from_hex(&self.disk.disk_id).unwrap_or(DiskId([0; 32])).0.to_vec(),
            host_id: vec![9; 32],
            connected: true,
            linked: true,
            read_only: self.refuses(),
            mark: match manner(&self.run_dir, "draining").is_some_and(|root| self.root.ends_with(root)) {
                true => pb::Mark::Draining.into(),
                false => pb::Mark::None.into(),
            },
            ..Default::default()
        };
        Ok(Response::new(pb::PeersReply { me: Some(me), ..Default::default() }))
    }
    async fn contents(&self, request: Request<pb::ContentsRequest>) -> Result<Response<Self::ContentsStream>, Status> {
        let unchanged = request.get_ref().generation == 1;
        if !unchanged {
            eprintln!("{} says all contents", self.root.display());
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let _ = sender.try_send(Ok(pb::ContentsReply { generation: 1, unchanged, ..Default::default() }));
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(receiver)))
    }
    async fn mark_disk(&self, _: Request<pb::MarkDiskRequest>) -> Result<Response<pb::MarkDiskReply>, Status> {
        eprintln!("{} is told of a mark", self.root.display());
        if self.refuses() || manner(&self.run_dir, "no-marks").is_some_and(|root| self.root.ends_with(root)) {
            return Err(Status::resource_exhausted("the disk is full"));
        }
        Ok(Response::new(pb::MarkDiskReply {}))
    }

    async fn copies(&self, request: Request<pb::CopiesRequest>) -> Result<Response<pb::CopiesReply>, Status> {
        self.may_hang().await;
        let request = request.into_inner();
        if request.path.ends_with(b"nosuch") {
            return Err(Status::not_found("No such file or directory"));
        }
        if request.set > 0 && self.refuses() {
            return Err(Status::resource_exhausted("the disk is full"));
        }
        let from = if request.inherit { Vec::new() } else { request.path };
        Ok(Response::new(pb::CopiesReply { wanted: request.set.max(2), from }))
    }
    async fn conflicts(&self, _: Request<pb::ConflictsRequest>) -> Result<Response<pb::ConflictsReply>, Status> {
        self.may_hang().await;
        let paths = vec![self.root.file_name().unwrap_or_default().as_encoded_bytes().to_vec()];
        Ok(Response::new(pb::ConflictsReply { paths, more: false }))
    }

    async fn please_mirror(&self, _: Request<pb::PleaseMirrorRequest>) -> Answer<pb::PleaseMirrorReply> {
        Err(Status::unimplemented("a fake"))
    }

    async fn stop_mirroring(&self, _: Request<pb::StopMirroringRequest>) -> Answer<pb::StopMirroringReply> {
        Err(Status::unimplemented("a fake"))
    }

    async fn active_torrents(&self, _: Request<pb::ActiveTorrentsRequest>) -> Answer<pb::ActiveTorrentsReply> {
        let torrent = |have_bytes, error: &str| pb::Torrent {
            content: vec![0xab; 32],
            info_hash: vec![0xcd; 20],
            size_bytes: 5 << 30,
            have_bytes,
            seeding: have_bytes == 5 << 30,
            peers: 2,
            down_bytes_per_s: 1_500_000,
            up_bytes_per_s: 0,
            error: error.into(),
        };
        let torrents = vec![torrent(5 << 30, ""), torrent(1 << 30, ""), torrent(0, "broken\u{1b}[2J")];
        Ok(Response::new(pb::ActiveTorrentsReply { torrents }))
    }

    async fn free_space(&self, _: Request<pb::FreeSpaceRequest>) -> Answer<pb::FreeSpaceReply> {
        Err(Status::unimplemented("a fake"))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Answer<pb::WorkerStatus> {
        if manner(&self.run_dir, "silent").is_some() {
            std::future::pending::<()>().await;
        }
        self.may_hang().await;
        let read_only = manner(&self.run_dir, "read-only").is_some() || self.refuses();
        let reason = if read_only { "the disk is full".to_string() } else { String::new() };
        let (total_bytes, free_bytes) = (20 << 30, 12 << 30);
        Ok(Response::new(pb::WorkerStatus {
            cluster: self.disk.cluster.clone(),
            cluster_id: self.disk.cluster_id.clone(),
            disk_id: self.disk.disk_id.clone(),
            root: self.root.display().to_string(),
            pid: std::process::id(),
            read_only,
            reason: reason.clone(),
            space: Some(pb::FreeSpaceReply { total_bytes, free_bytes, read_only, reason, full: read_only }),
            contents: 321,
            content_bytes: 7 << 30,
            staged_files: 1,
            catalog_commit: "c0ffee".repeat(6) + "c0ff",
            uncommitted_changes: 2,
            packs: 3,
            sessions: 1,
            ..Default::default()
        }))
    }

    async fn where_is(&self, request: Request<pb::WhereIsRequest>) -> Answer<pb::WhereIsReply> {
        self.may_hang().await;
        let path = request.into_inner().path;
        let place = match path.strip_prefix(b"/").unwrap_or(&path) {
            b"photos/a.jpg" => pb::where_is_reply::Place::Store,
            b"elsewhere" => pb::where_is_reply::Place::Missing, // and yet on this disk, as one asked about another's would say
            b"note.txt" => pb::where_is_reply::Place::Catalog,
            other => return Err(Status::not_found(format!("no {}", String::from_utf8_lossy(other)))),
        };
        let gone = "f".repeat(64);
        let stored = place == pb::where_is_reply::Place::Store;
        Ok(Response::new(pb::WhereIsReply {
            ino: 0x1234,
            mode: 0o100_644,
            size_bytes: if stored { 12_345_678 } else { 99 },
            place: place.into(),
            content: if stored { vec![0xab; 32] } else { Vec::new() },
            info_hash: if stored { vec![0xcd; 20] } else { Vec::new() },
            disk_ids: if stored {
                vec![self.disk.disk_id.clone(), gone.clone()]
            } else {
                vec![self.disk.disk_id.clone()]
            },
            away: if stored { vec![gone.clone()] } else { Vec::new() },
            forgotten: if stored { vec![gone] } else { Vec::new() },
            damaged: false,
        }))
    }

    async fn scrub(&self, _: Request<pb::ScrubRequest>) -> Answer<pb::ScrubReply> {
        let damaged = manner(&self.run_dir, "damaged").is_some();
        let problems = if damaged { vec!["data/ab/ab12 does not hash to its name".into()] } else { Vec::new() };
        Ok(Response::new(pb::ScrubReply { entries: 5, objects: 6, contents: 7, content_bytes: 8 << 20, problems }))
    }

    async fn shutdown(&self, _: Request<pb::ShutdownRequest>) -> Answer<pb::ShutdownReply> {
        Err(Status::unimplemented("a fake"))
    }
}
