//! The worker's gRPC service: the control plane.

use std::sync::Arc;

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::{ContentId, DiskId};
use delugefs_proto::worker_pb::{self as pb, worker_server::Worker};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::AllowedUids;
use crate::engine::Engine;
use crate::fetch::{Fetcher, Wanted};
use crate::net::{Elsewhere, Net};
use crate::swarm::Swarm;

/// The connections of those who may call. Others are hung up on here: a stranger who could hold on to connections would
/// take the descriptors the disk needs.
pub fn admitted(
    listener: UnixListener,
    allowed: AllowedUids,
) -> impl tokio_stream::Stream<Item = std::io::Result<UnixStream>> {
    UnixListenerStream::new(listener).filter(move |accepted| match accepted {
        Ok(socket) => socket.peer_cred().is_ok_and(|peer| allowed.commands(peer.uid())),
        Err(_) => true,
    })
}

/// Largest request this service reads, in bytes: a membership set.
pub const REQUEST_MAX_BYTES: usize = 2 << 20;

/// The service.
#[derive(Clone)]
pub struct WorkerService {
    engine: Arc<Engine>,
    swarm: Arc<Swarm>,
    net: Arc<Net>,
    fetcher: Arc<Fetcher>,
    allowed: AllowedUids,
    sockets: (String, String),
    scrubbing: Arc<tokio::sync::Mutex<()>>,
    shutdown: CancellationToken,
}

type Answer<T> = Result<Response<T>, Status>;

impl WorkerService {
    /// `sockets`: paths of the framed and the gRPC socket, for the status. `shutdown` is cancelled on request.
    pub fn new(
        engine: Arc<Engine>,
        swarm: Arc<Swarm>,
        net: Arc<Net>,
        fetcher: Arc<Fetcher>,
        allowed: AllowedUids,
        sockets: (String, String),
        shutdown: CancellationToken,
    ) -> Self {
        let scrubbing = Arc::default();
        Self { engine, swarm, net, fetcher, allowed, sockets, scrubbing, shutdown }
    }

    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let uid = request
            .extensions()
            .get::<tonic::transport::server::UdsConnectInfo>()
            .and_then(|info| info.peer_cred)
            .map(|cred| cred.uid());
        match uid {
            Some(uid) if self.allowed.commands(uid) => Ok(()),
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

/// Whether this disk takes a content: the answer, and what it is where it is to be fetched.
fn consider_mirroring(
    engine: &Engine,
    fetcher: &Fetcher,
    request: &pb::PleaseMirrorRequest,
    content: ContentId,
) -> FsResult<(pb::please_mirror_reply::Outcome, String, Option<Wanted>)> {
    use pb::please_mirror_reply::Outcome;
    let refused = |reason: String| Ok((Outcome::Refused, reason, None));
    let known = fetcher.look_up(content, request.size_bytes, &request.pieces)?;
    let is_here = match &known {
        Some(wanted) => engine.holds(content, wanted.size)?,
        None => engine.store.has(content)?.is_some(),
    };
    if is_here {
        return Ok((Outcome::AlreadyHere, String::new(), None));
    }
    let Some(wanted) = known else {
        return refused("no file of this cluster has this content".into());
    };
    if let Some(error) = engine.refusal() {
        return refused(error.to_string());
    }
    let space = engine.store.free_space()?;
    let needs = engine.store.incoming_needs(content, wanted.size);
    if space.free < needs {
        return refused(format!("{needs} bytes do not fit into the {} that are free", space.free));
    }
    Ok((Outcome::Fetching, String::new(), Some(wanted)))
}

#[tonic::async_trait]
impl Worker for WorkerService {
    type ContentsStream = tokio_stream::wrappers::ReceiverStream<Result<pb::ContentsReply, Status>>;

    async fn members(&self, request: Request<pb::MembersRequest>) -> Answer<pb::MembersReply> {
        self.check(&request)?;
        let net = self.net.clone();
        let request = request.into_inner();
        let reply = self.blocking(move |_| net.take_members(&request)).await?;
        Ok(Response::new(reply))
    }

    async fn hints(&self, request: Request<pb::HintsRequest>) -> Answer<pb::HintsReply> {
        self.check(&request)?;
        self.net.take_hints(request.get_ref());
        Ok(Response::new(pb::HintsReply {}))
    }

    async fn peers(&self, request: Request<pb::PeersRequest>) -> Answer<pb::PeersReply> {
        self.check(&request)?;
        let net = self.net.clone();
        Ok(Response::new(self.blocking(move |_| Ok(net.peers())).await?))
    }

    async fn contents(&self, request: Request<pb::ContentsRequest>) -> Answer<Self::ContentsStream> {
        self.check(&request)?;
        let (net, last) = (self.net.clone(), request.get_ref().generation);
        let mut messages = self.blocking(move |engine| super::ledger::contents(engine, &net, last)).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let net = self.net.clone();
        tokio::spawn(async move {
            while let Some(message) = messages.next(&net) {
                if sender.send(Ok(message)).await.is_err() {
                    return; // the caller has gone
                }
            }
        });
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(receiver)))
    }

    async fn conflicts(&self, request: Request<pb::ConflictsRequest>) -> Answer<pb::ConflictsReply> {
        self.check(&request)?;
        let (paths, more) = self.blocking(Engine::conflicts).await?;
        Ok(Response::new(pb::ConflictsReply { paths, more }))
    }

    async fn copies(&self, request: Request<pb::CopiesRequest>) -> Answer<pb::CopiesReply> {
        self.check(&request)?;
        let request = request.into_inner();
        Ok(Response::new(self.blocking(move |engine| engine.copies(&request)).await?))
    }

    async fn mark_disk(&self, request: Request<pb::MarkDiskRequest>) -> Answer<pb::MarkDiskReply> {
        self.check(&request)?;
        let (disk, mark) = (DiskId::from_slice(&request.get_ref().disk_id), request.get_ref().mark());
        let disk = disk.ok_or_else(|| Status::invalid_argument("a disk id has 32 bytes"))?;
        self.blocking(move |engine| engine.mark(disk, mark)).await?;
        Ok(Response::new(pb::MarkDiskReply {}))
    }

    async fn please_mirror(&self, request: Request<pb::PleaseMirrorRequest>) -> Answer<pb::PleaseMirrorReply> {
        self.check(&request)?;
        let content = content(&request.get_ref().content)?;
        // Who calls it off while it is being considered is heard.
        let asked = self.fetcher.ask(content);
        let (fetcher, request) = (self.fetcher.clone(), request.into_inner());
        let considered = self.blocking(move |engine| consider_mirroring(engine, &fetcher, &request, content));
        let (mut outcome, mut reason, wanted) = considered.await?;
        if let Some(wanted) = wanted
            && !asked.mirror(wanted)
        {
            (outcome, reason) = (pb::please_mirror_reply::Outcome::Refused, "it was called off meanwhile".into());
        }
        Ok(Response::new(pb::PleaseMirrorReply { outcome: outcome.into(), reason }))
    }

    async fn stop_mirroring(&self, request: Request<pb::StopMirroringRequest>) -> Answer<pb::StopMirroringReply> {
        use pb::stop_mirroring_reply::Outcome;
        self.check(&request)?;
        let (content, others) = (content(&request.get_ref().content)?, request.get_ref().others);
        let was_fetching = self.fetcher.cancel(content).await?;
        let here = self.blocking(move |engine| Ok((engine.store.has(content)?, engine.find_content(content)?))).await?;
        let mut again_s = 0;
        let (outcome, reason) = match here {
            (None, _) if was_fetching => (Outcome::Stopped, String::new()),
            (None, _) => (Outcome::NotHere, String::new()),
            (Some(_), Some(_)) => match self.fetcher.let_go(content, others, others).await? {
                Ok(()) => (Outcome::Stopped, format!("{others} other disks keep it")),
                Err(stays) => {
                    again_s = stays.again_s();
                    (Outcome::Refused, stays.why)
                }
            },
            (Some(_), None) => {
                self.blocking(Engine::collect).await?;
                (Outcome::Stopped, "no file has it: it is in the trash until its retention ends".into())
            }
        };
        Ok(Response::new(pb::StopMirroringReply { outcome: outcome.into(), reason, again_s }))
    }

    async fn active_torrents(&self, request: Request<pb::ActiveTorrentsRequest>) -> Answer<pb::ActiveTorrentsReply> {
        self.check(&request)?;
        let live = self.swarm.active().await?;
        let known: Vec<ContentId> = live.iter().map(|torrent| torrent.content).collect();
        let others = self.fetcher.active(&known);
        let torrents = live.into_iter().map(|t| pb::Torrent {
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
        let mut torrents: Vec<pb::Torrent> = torrents.chain(others).collect();
        // Averages go on for a while when nothing comes any more.
        let is_whole = |torrent: &&mut pb::Torrent| torrent.have_bytes >= torrent.size_bytes;
        torrents.iter_mut().filter(is_whole).for_each(|torrent| torrent.down_bytes_per_s = 0);
        Ok(Response::new(pb::ActiveTorrentsReply { torrents }))
    }

    async fn free_space(&self, request: Request<pb::FreeSpaceRequest>) -> Answer<pb::FreeSpaceReply> {
        self.check(&request)?;
        Ok(Response::new(self.blocking(Engine::free_space).await?))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::WorkerStatus> {
        self.check(&request)?;
        let mut status = self.blocking(Engine::status).await?;
        (status.local_socket, status.grpc_socket) = self.sockets.clone();
        status.tcp_port = self.net.port().into();
        status.damaged_contents = self.net.damaged_contents();
        Ok(Response::new(status))
    }

    async fn where_is(&self, request: Request<pb::WhereIsRequest>) -> Answer<pb::WhereIsReply> {
        self.check(&request)?;
        let path = request.into_inner().path;
        let net = self.net.clone();
        let reply = self.blocking(move |engine| {
            let mut reply = engine.where_is(&path)?;
            // Every disk that said it holds the content, also those that are away.
            if let Some(content) = ContentId::from_slice(&reply.content) {
                net.add_holders(content, &mut reply);
            }
            Ok(reply)
        });
        Ok(Response::new(reply.await?))
    }

    async fn scrub(&self, request: Request<pb::ScrubRequest>) -> Answer<pb::ScrubReply> {
        self.check(&request)?;
        // It reads the whole disk: not twice at a time, and not for somebody who has gone. Nor is another one begun before it has noticed that.
        let Ok(alone) = self.scrubbing.clone().try_lock_owned() else {
            return Err(Status::failed_precondition("a scrub of this disk runs already: wait for it"));
        };
        let given_up = CancellationToken::new();
        let _if_gone = given_up.clone().drop_guard();
        let others = Elsewhere::new(&self.net, given_up);
        let scrub = move |engine: &Engine| {
            let _alone = alone;
            engine.scrub(&others)
        };
        let report = self.blocking(scrub).await?;
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
