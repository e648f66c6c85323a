//! The worker's gRPC service: the control plane.

use std::sync::Arc;

use bytes::Bytes;
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::ContentId;
use delugefs_proto::worker_pb::{self as pb, worker_server::Worker};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::AllowedUids;
use crate::engine::Engine;
use crate::swarm::Swarm;

/// The connections of those who may call. Others are hung up on here: a stranger who could hold on to connections would
/// take the descriptors the disk needs.
pub fn admitted(
    listener: UnixListener,
    allowed: AllowedUids,
) -> impl tokio_stream::Stream<Item = std::io::Result<UnixStream>> {
    UnixListenerStream::new(listener).filter(move |accepted| match accepted {
        Ok(socket) => socket.peer_cred().is_ok_and(|peer| allowed.admits(peer.uid())),
        Err(_) => true,
    })
}

/// Largest request this service reads, in bytes: all of them are small.
pub const REQUEST_MAX_BYTES: usize = 64 << 10;

/// The service.
#[derive(Clone)]
pub struct WorkerService {
    engine: Arc<Engine>,
    swarm: Arc<Swarm>,
    allowed: AllowedUids,
    sockets: (String, String),
    shutdown: tokio_util::sync::CancellationToken,
}

type Answer<T> = Result<Response<T>, Status>;

impl WorkerService {
    /// `sockets`: paths of the framed and the gRPC socket, for the status. `shutdown` is cancelled on request.
    pub fn new(
        engine: Arc<Engine>,
        swarm: Arc<Swarm>,
        allowed: AllowedUids,
        sockets: (String, String),
        shutdown: tokio_util::sync::CancellationToken,
    ) -> Self {
        Self { engine, swarm, allowed, sockets, shutdown }
    }

    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let uid = request
            .extensions()
            .get::<tonic::transport::server::UdsConnectInfo>()
            .and_then(|info| info.peer_cred)
            .map(|cred| cred.uid());
        match uid {
            Some(uid) if self.allowed.admits(uid) => Ok(()),
            Some(uid) => Err(Status::permission_denied(format!("uid {uid} is not served by this diskworker"))),
            None => Err(Status::unauthenticated("the system did not say who is calling")),
        }
    }

    /// Run what reads the disk where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> FsResult<T> + Send + 'static,
    ) -> Result<T, Status> {
        let engine = self.engine.clone();
        let joined = tokio::task::spawn_blocking(move || work(&engine)).await;
        joined.map_err(|error| Status::internal(error.to_string()))?.map_err(Status::from)
    }
}

fn content(bytes: &[u8]) -> Result<ContentId, Status> {
    ContentId::from_slice(bytes).ok_or_else(|| Status::invalid_argument("a content id has 32 bytes"))
}

type Mirroring = (pb::please_mirror_reply::Outcome, String, Option<(u64, Bytes)>);

/// Whether this disk takes a content: the answer, and size and piece hashes where a torrent is to be live for it.
fn consider_mirroring(engine: &Engine, content: ContentId) -> FsResult<Mirroring> {
    use pb::please_mirror_reply::Outcome;
    let refused = |reason: String| Ok((Outcome::Refused, reason, None));
    let here = engine.store.has(content)?.is_some();
    let Some((size, pieces)) = engine.find_content(content)? else {
        return match here {
            true => Ok((Outcome::AlreadyHere, "no file has it any more".into(), None)),
            false => refused("no file of this cluster has this content".into()),
        };
    };
    let torrent = match pieces {
        Some(pieces) => Some((size, engine.attachment(pieces)?)),
        None => None,
    };
    if here {
        return Ok((Outcome::AlreadyHere, String::new(), torrent));
    }
    if let Some(error) = engine.refusal() {
        return refused(error.to_string());
    }
    let space = engine.store.free_space()?;
    if space.free < size {
        return refused(format!("{size} bytes do not fit into the {} that are free", space.free));
    }
    match torrent {
        Some(_) => Ok((Outcome::Fetching, String::new(), torrent)),
        None => refused("it has no torrent: contents up to 4 MiB move between disks as one object".into()),
    }
}

#[tonic::async_trait]
impl Worker for WorkerService {
    /// What is here and has a torrent becomes live, for peers to fetch; what is not here is fetched.
    async fn please_mirror(&self, request: Request<pb::PleaseMirrorRequest>) -> Answer<pb::PleaseMirrorReply> {
        use pb::please_mirror_reply::Outcome;
        self.check(&request)?;
        let content = content(&request.get_ref().content)?;
        let (outcome, reason, torrent) = self.blocking(move |engine| consider_mirroring(engine, content)).await?;
        if let Some((size, pieces)) = torrent {
            match outcome {
                Outcome::AlreadyHere => self.swarm.activate(content, size, pieces).await?,
                _ => self.swarm.fetch(content, size, pieces).await?,
            }
        }
        Ok(Response::new(pb::PleaseMirrorReply { outcome: outcome.into(), reason }))
    }

    async fn stop_mirroring(&self, request: Request<pb::StopMirroringRequest>) -> Answer<pb::StopMirroringReply> {
        use pb::stop_mirroring_reply::Outcome;
        self.check(&request)?;
        let content = content(&request.get_ref().content)?;
        let was_live = self.swarm.active().await?.iter().any(|torrent| torrent.content == content);
        self.swarm.deactivate(content).await?;
        let (outcome, reason) = self
            .blocking(move |engine| {
                if engine.store.has(content)?.is_none() {
                    let outcome = if was_live { Outcome::Stopped } else { Outcome::NotHere };
                    return Ok((outcome, String::new()));
                }
                if engine.find_content(content)?.is_some() {
                    // No other disk's holdings are known before disks talk to each other.
                    return Ok((Outcome::Refused, "this may be the last copy of a file's content".into()));
                }
                engine.collect()?;
                Ok((Outcome::Stopped, "no file has it: it is in the trash until its retention ends".into()))
            })
            .await?;
        Ok(Response::new(pb::StopMirroringReply { outcome: outcome.into(), reason }))
    }

    async fn active_torrents(&self, request: Request<pb::ActiveTorrentsRequest>) -> Answer<pb::ActiveTorrentsReply> {
        self.check(&request)?;
        let torrents = self.swarm.active().await?.into_iter().map(|t| pb::Torrent {
            content: t.content.0.to_vec(),
            info_hash: t.info_hash.to_vec(),
            size_bytes: t.size,
            have_bytes: t.have,
            seeding: t.seeding,
            peers: t.peers,
            down_bytes_per_s: t.down_bps,
            up_bytes_per_s: t.up_bps,
            error: t.error.map(|error| error.to_string()).unwrap_or_default(),
        });
        Ok(Response::new(pb::ActiveTorrentsReply { torrents: torrents.collect() }))
    }

    async fn free_space(&self, request: Request<pb::FreeSpaceRequest>) -> Answer<pb::FreeSpaceReply> {
        self.check(&request)?;
        Ok(Response::new(self.blocking(Engine::free_space).await?))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::WorkerStatus> {
        self.check(&request)?;
        let mut status = self.blocking(Engine::status).await?;
        (status.local_socket, status.grpc_socket) = self.sockets.clone();
        Ok(Response::new(status))
    }

    async fn where_is(&self, request: Request<pb::WhereIsRequest>) -> Answer<pb::WhereIsReply> {
        self.check(&request)?;
        let path = request.into_inner().path;
        Ok(Response::new(self.blocking(move |engine| engine.where_is(&path)).await?))
    }

    async fn scrub(&self, request: Request<pb::ScrubRequest>) -> Answer<pb::ScrubReply> {
        self.check(&request)?;
        let report = self.blocking(Engine::scrub).await?;
        Ok(Response::new(pb::ScrubReply {
            entries: report.entries,
            objects: report.objects,
            contents: report.contents,
            content_bytes: report.content_bytes,
            problems: report.problems,
        }))
    }

    async fn shutdown(&self, request: Request<pb::ShutdownRequest>) -> Answer<pb::ShutdownReply> {
        self.check(&request)?;
        self.shutdown.cancel();
        Ok(Response::new(pb::ShutdownReply {}))
    }
}
