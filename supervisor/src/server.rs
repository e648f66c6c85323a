//! The control socket: turns calls into events for the owner, and asks the workers what only they know.

mod asking;
mod late;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use delugefs_proto::control_pb as pb;
use delugefs_proto::control_pb::control_server::Control;
use delugefs_proto::disk::{DiskToml, is_cluster_name, short_id};
use delugefs_proto::exit::Exit;
use delugefs_proto::ids::{ClusterId, HostId, hex};
use delugefs_proto::members::clean_label;
use delugefs_proto::peer_pb::JoinReply;
use delugefs_proto::source::source;
use delugefs_proto::token::{ADDRESSES_MAX, Token, TokenError};
use delugefs_proto::worker_pb::where_is_reply::Place;
use delugefs_proto::{config, worker_pb};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use self::asking::{ids, in_turn, show_disks, split};
use crate::addresses::Addresses;
use crate::cluster::{Apart, Found};
use crate::escape::{escape_bytes, quoted};
use crate::failure::Failure;
use crate::log::Logged;
use crate::membership::{Membership, Refused};
use crate::notes::{self, Note, WORKER};
use crate::owner::{DiskSpec, Event, MountSpec, Registration, Reply, Served, other_cluster, problems};
use crate::process::Events;
use crate::replicate::Shown;
use crate::{drain, farewell, identity, join, marks, paths, sys, worker};

/// The service; cheap to clone.
#[derive(Clone, Debug)]
pub struct Server {
    /// To the owner.
    pub events: Events,
    /// From the owner.
    pub snapshots: watch::Receiver<Arc<pb::HostStatus>>,
    /// Where notes are.
    pub run_dir: PathBuf,
    /// Who may take part.
    pub membership: Arc<Membership>,
    /// Where others are.
    pub addresses: Arc<Addresses>,
    /// Where others may be.
    pub found: Arc<Found>,
    /// What the replication policy sees.
    pub replicated: watch::Receiver<Shown>,
    /// Disks of this host that cannot meet others.
    pub apart: watch::Receiver<Apart>,
    /// Why hosts were not admitted, and from where, as was logged.
    pub refusals: Arc<Logged>,
}

/// Longest life of an invitation, in seconds.
const INVITE_MAX_S: u64 = 30 * 24 * 3600;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Control for Server {
    type WatchStream = ReceiverStream<Result<pb::HostStatus, Status>>;

    async fn status(&self, _: Request<pb::StatusRequest>) -> Answer<pb::HostStatus> {
        let mut host = self.now();
        host.disks = self.disks_with_status().await;
        if host.cluster_id.is_empty() {
            let said = host.disks.iter().find_map(|disk| disk.status.as_ref()).map(|status| status.cluster_id.clone());
            host.cluster_id = said.unwrap_or_default();
        }
        host.replication = self.replicated.borrow().describe();
        let unheard = self.replicated.borrow().unheard();
        // Of those that nobody is known to hold that says more.
        let unknown = self.replicated.borrow().health.as_ref().map_or(0, |health| health.unknown);
        let unreachable = host.replication.as_ref().map_or(0, |replication| replication.unreachable);
        if let Some(replication) = &mut host.replication {
            replication.unreachable = unreachable.saturating_sub(unknown);
        }
        host.problems = problems(&host);
        if let Some(replication) = &mut host.replication {
            replication.unreachable = unreachable;
        }
        host.problems.extend(unheard);
        host.problems.extend(late::late(&host, &self.run_dir, sys::uptime_s()));
        show_disks(&mut host.mounts, &host.disks);
        let mut out = Vec::new();
        if let Some(set) = ClusterId::from_hex(&host.cluster_id).and_then(|cluster| self.membership.set(cluster)) {
            out = farewell::shut_out(&set, &self.membership, &host.disks);
        }
        let is_host_out = ClusterId::from_hex(&host.cluster_id)
            .is_some_and(|cluster| self.membership.is_revoked(cluster, self.membership.identity().host_id().into()));
        for (disk_id, why) in self.apart.borrow().clone() {
            let Some(disk) = host.disks.iter().find(|disk| disk.disk_id == disk_id) else { continue };
            // What is said of one that is revoked, or of its host, says more.
            if !is_host_out && !farewell::is_out(&self.membership, disk) {
                host.problems.push(format!("disk {} ({}) meets no other disk: {why}", short_id(&disk_id), disk.root));
            }
        }
        host.problems.extend(out);
        Ok(Response::new(host))
    }

    async fn watch(&self, _: Request<pb::WatchRequest>) -> Answer<Self::WatchStream> {
        let mut snapshots = self.snapshots.clone();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let now = pb::HostStatus::clone(&snapshots.borrow_and_update());
                if sender.send(Ok(now)).await.is_err() {
                    return; // the watcher has gone
                }
                let changed = tokio::select! {
                    changed = snapshots.changed() => changed.is_ok(),
                    () = sender.closed() => false,
                };
                if !changed {
                    return; // the owner has gone, or the watcher
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn disks(&self, _: Request<pb::DisksRequest>) -> Answer<pb::DisksReply> {
        let mut disks = self.disks_with_status().await;
        drain::describe(&mut disks, &self.members_disks().await).await;
        Ok(Response::new(pb::DisksReply { disks }))
    }

    async fn torrents(&self, _: Request<pb::TorrentsRequest>) -> Answer<pb::TorrentsReply> {
        let answers = self.ask_all(|socket| async move {
            let request = worker_pb::ActiveTorrentsRequest {};
            worker::ask(&socket, |mut client| async move { client.active_torrents(request).await }).await
        });
        let disks = answers.await.into_iter().map(|(disk, answer)| {
            let (torrents, error) = split(answer.map(|answer| answer.torrents));
            pb::DiskTorrents { disk_id: disk.disk_id, root: disk.root, torrents: torrents.unwrap_or_default(), error }
        });
        Ok(Response::new(pb::TorrentsReply { disks: disks.collect() }))
    }

    async fn where_is(&self, request: Request<pb::WhereIsRequest>) -> Answer<pb::WhereIsReply> {
        let (path, disks) = self.place(&request.into_inner().path).await?;
        let ask = |mut client: worker::Client| {
            let request = worker_pb::WhereIsRequest { path: path.clone() };
            async move { client.where_is(request).await }
        };
        let mut answer = in_turn(&disks, ask).await.map_err(|error| not_there(error, &path))?;
        // The worker that was asked knows of its own disk.
        let is_here = |id: &String| disks.iter().any(|disk| disk.disk_id == *id);
        if answer.place() == Place::Missing && answer.disk_ids.iter().any(is_here) {
            answer.set_place(Place::Store);
            // Of what another one has, that one's says whether it is damaged.
            answer.damaged = true;
            for disk in disks.iter().filter(|disk| answer.disk_ids.contains(&disk.disk_id)) {
                let own = in_turn(std::slice::from_ref(disk), ask).await;
                answer.damaged &= own.is_ok_and(|own| own.damaged);
            }
        }
        Ok(Response::new(pb::WhereIsReply { answer: Some(answer) }))
    }

    async fn scrub(&self, _: Request<pb::ScrubRequest>) -> Answer<pb::ScrubReply> {
        let answers = self.ask_all(|socket| async move { worker::scrub(&socket).await }).await;
        if answers.is_empty() {
            return Err(no_disk().into());
        }
        let asked = answers.into_iter().map(|(disk, answer)| (disk, split(answer)));
        let mut disks: Vec<(pb::Disk, (Option<_>, String))> = asked.collect();
        // Of those that are not up nothing was looked at: that is not «all good».
        let rest = self.now().disks.into_iter().filter(|disk| disks.iter().all(|(asked, _)| asked.root != disk.root));
        let rest: Vec<_> = rest.map(|disk| (disk, (None, "it is not up".into()))).collect();
        disks.extend(rest);
        let disks = disks.into_iter().map(|(disk, (result, error))| {
            let (disk_id, root) = (disk.disk_id, disk.root);
            pb::DiskScrub { disk_id, root, result, error }
        });
        Ok(Response::new(pb::ScrubReply { disks: disks.collect() }))
    }

    async fn add_disk(&self, request: Request<pb::AddDiskRequest>) -> Answer<pb::AddDiskReply> {
        let request = request.into_inner();
        let root = absolute(&request.root)?;
        if request.create && request.was_up {
            // An empty folder is where it was mounted: what is written to a new disk there is hidden by the old one later.
            return Err(Failure::new(Exit::Usage, "a disk that was served already is not made anew").into());
        }
        let found = if request.create { None } else { Some(identity::read(&root).await) };
        let cluster = self.cluster_for(&request, &root, found.as_ref())?;
        let spec = DiskSpec {
            root,
            cluster,
            create: request.create,
            reserve_bytes: config::default_reserve_bytes(),
            retention_s: config::default_retention_s(),
            allow_uids: request.allow_uids,
            net: request.net.unwrap_or_default(),
            cluster_id: ClusterId::from_slice(&request.cluster_id),
            disk_id: None,
            other_name: None,
        };
        // What is wrong with the folder its worker says better.
        let spec = spec.found(found.and_then(Result::ok).as_ref());
        let remember = request.remember;
        let again = spec.clone();
        let added = self.ask(|reply| Event::AddDisk { spec, remember, reply: Some(reply) }).await;
        let is_lasting = |exit| matches!(exit, Exit::InUse | Exit::Usage | Exit::NoSupervisor);
        let is_away = |error: &Status| !is_lasting(Failure::from_status(error).exit);
        if request.was_up && added.as_ref().is_err_and(is_away) {
            // As one of the configuration: it is kept, shown, and started when its folder is back or it is worth another try.
            let _ =
                self.events.send(Event::AddDisk { spec: DiskSpec { create: false, ..again }, remember, reply: None }); // fails only when the owner has ended
        }
        Ok(Response::new(pb::AddDiskReply { disk_id: added? }))
    }

    async fn add_mount(&self, request: Request<pb::AddMountRequest>) -> Answer<pb::AddMountReply> {
        let request = request.into_inner();
        let user = Some(request.user).filter(|user| !user.is_empty());
        let root = Some(request.root).filter(|root| !root.is_empty()).map(|root| absolute(&root)).transpose()?;
        let spec = MountSpec { dir: absolute(&request.dir)?, uid: uid_of(user.as_deref())?, user, root };
        let remember = request.remember;
        self.ask(|reply| Event::AddMount { spec, remember, reply: Some(reply) }).await?;
        Ok(Response::new(pb::AddMountReply {}))
    }

    async fn remove_disk(&self, request: Request<pb::RemoveDiskRequest>) -> Answer<pb::RemoveDiskReply> {
        let request = request.into_inner();
        let (root, release) = (absolute(&request.root)?, request.release);
        let mut mounts = self.now().mounts;
        if !mounts.is_empty() {
            show_disks(&mut mounts, &self.disks_with_status().await);
        }
        let shown = mounts.into_iter().map(|mount| (mount.dir.into(), mount.root.into())).collect();
        self.ask(|reply| Event::RemoveDisk { root, release, shown, reply }).await?;
        Ok(Response::new(pb::RemoveDiskReply {}))
    }

    async fn remove_mount(&self, request: Request<pb::RemoveMountRequest>) -> Answer<pb::RemoveMountReply> {
        let request = request.into_inner();
        let (dir, release) = (absolute(&request.dir)?, request.release);
        self.ask(|reply| Event::RemoveMount { dir, release, reply }).await?;
        Ok(Response::new(pb::RemoveMountReply {}))
    }

    async fn register(&self, request: Request<pb::RegisterRequest>) -> Answer<pb::RegisterReply> {
        // The kernel knows the caller's process id better than the caller, where it tells at all.
        let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred?.pid());
        let request = request.into_inner();
        let pid = peer.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(request.pid);
        let mut root = absolute(&request.root)?;
        let known = self.now().disks.into_iter().find(|disk| Path::new(&disk.root) == root);
        if known.is_none() {
            let mounts = sys::delugefs_mounts().map_err(|error| Status::internal(error.to_string()))?;
            root = paths::resolve(&root, &mounts); // as those who add disks write it
        }
        let said = known.map(|disk| disk.cluster_id).filter(|_| request.cluster_id.is_empty());
        let mut cluster_id = ClusterId::from_hex(said.as_ref().unwrap_or(&request.cluster_id));
        if cluster_id.is_none() {
            // An older worker: it does not say.
            cluster_id = identity::read(&root).await.ok().and_then(|found| found.cluster_id());
        }
        let tcp_port = u16::try_from(request.tcp_port).map_err(|_| Failure::new(Exit::Usage, "no such TCP port"))?;
        let note = Note::read_living(&notes::worker_note(&self.run_dir, &root), WORKER);
        let (disk_id, local_socket) = (request.disk_id, request.local_socket.into());
        let served = Served { disk_id, local_socket, grpc_socket: request.grpc_socket.into() };
        let inherited = note.is_some_and(|note| note.pid == pid);
        let registration = |reply| Registration {
            root,
            cluster: request.cluster,
            cluster_id,
            pid,
            served,
            tcp_port,
            inherited,
            reply,
        };
        self.ask(|reply| Event::Register(registration(reply))).await?;
        Ok(Response::new(pb::RegisterReply {}))
    }

    async fn invite(&self, request: Request<pb::InviteRequest>) -> Answer<pb::InviteReply> {
        let expires_s = u64::from(request.get_ref().expires_s).max(1);
        if expires_s > INVITE_MAX_S {
            return Err(too_long().into());
        }
        let disks = self.members_up();
        let disk = disks.iter().find(|disk| disk.tcp_port != 0).ok_or_else(|| match disks.is_empty() {
            true => self.none_up(),
            false => Failure::new(Exit::Failure, "no disk of this host has said yet where others reach it")
                .hint("it has just started: try again in a moment"),
        })?;
        let (cluster, inviter) = ids(disk)?;
        let addresses = own_addresses(&disk.listen, disk.tcp_port);
        let token = self.membership.invite(cluster, inviter, addresses, expires_s)?;
        Ok(Response::new(pb::InviteReply { token: token.to_string() }))
    }

    async fn redeem(&self, request: Request<pb::RedeemRequest>) -> Answer<JoinReply> {
        let request = request.into_inner();
        let join = request.join.unwrap_or_default();
        let refused = |it: Refused| JoinReply { error: it.why, cluster: it.cluster, members: it.farewell };
        let (Some(host), Some(cluster)) =
            (HostId::from_slice(&request.host_id), ClusterId::from_slice(&join.cluster_id))
        else {
            return Ok(Response::new(refused("this is no request to join".into())));
        };
        let reply = match self.membership.redeem(cluster, &join.cluster, &join.secret, host, &join.label) {
            Ok(set) => {
                tracing::info!(
                    "admitted host {} ({}) from {}",
                    clean_label(&join.label),
                    short_id(&host.to_hex()),
                    request.from
                );
                JoinReply { error: String::new(), cluster: set.cluster_name().into(), members: set.encode() }
            }
            Err(refusal) => {
                if self.refusals.insert(&refusal_key(&refusal, &request.from)) {
                    tracing::warn!(
                        "did not admit host {} from {}: {}",
                        short_id(&host.to_hex()),
                        request.from,
                        refusal.why
                    );
                }
                refused(refusal)
            }
        };
        Ok(Response::new(reply))
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Answer<pb::JoinReply> {
        let request = request.into_inner();
        let token: Token = request.token.parse().map_err(|error| no_token(&error))?;
        // Else the invitation would be used up, and the disk be refused then.
        let now = self.now();
        if !request.cluster.is_empty() && !now.cluster.is_empty() && request.cluster != now.cluster {
            return Err(other_cluster(&now.cluster, &request.cluster).into());
        }
        if ClusterId::from_hex(&now.cluster_id).is_some_and(|ours| ours != token.cluster) {
            return Err(not_ours(&now.cluster).into());
        }
        let mut more = self.addresses.of(token.inviter);
        more.extend(self.found.nearby.lock().of(token.inviter));
        more.extend(self.found.peers.iter().cloned());
        let cluster = join::join(&self.membership, &token, &request.cluster, &more).await?;
        self.addresses.learn(token.inviter, &token.addresses);
        Ok(Response::new(pb::JoinReply { cluster_id: cluster.0.to_vec() }))
    }

    async fn peers(&self, _: Request<pb::PeersRequest>) -> Answer<pb::PeersReply> {
        let mut reply =
            pb::PeersReply { host_id: self.membership.identity().host_id().0.to_vec(), ..Default::default() };
        reply.disks = self.members_disks().await;
        self.replicated.borrow().count_files(&mut reply.disks);
        let cluster = self.disks_up().first().and_then(|disk| ids(disk).ok()).map(|(cluster, _)| cluster);
        if let Some(set) = cluster.and_then(|cluster| self.membership.set(cluster)) {
            let host = |(id, member): (&HostId, &delugefs_proto::members::Member)| pb::PeerHost {
                host_id: id.0.to_vec(),
                label: member.label.clone(),
                admitted_s: member.at_s,
                revoked: false,
            };
            reply.hosts = set.hosts().iter().map(host).collect();
            let revoked = set.revoked().keys();
            reply.hosts.extend(revoked.map(|id| pb::PeerHost {
                host_id: id.0.to_vec(),
                revoked: true,
                ..Default::default()
            }));
        }
        Ok(Response::new(reply))
    }

    async fn copies(&self, request: Request<worker_pb::CopiesRequest>) -> Answer<worker_pb::CopiesReply> {
        let request = request.into_inner();
        let (path, disks) = self.place(&request.path).await?;
        if let Some(out) = disks.iter().find(|disk| farewell::is_out(&self.membership, disk)) {
            return Err(farewell::refuse(&self.membership, out).into());
        }
        let ask = |mut client: worker::Client| {
            let request = worker_pb::CopiesRequest { path: path.clone(), ..request.clone() };
            async move { client.copies(request).await }
        };
        // One that is full or fails cannot note it; every disk of the cluster hears of it from any of them.
        Ok(Response::new(in_turn(&disks, ask).await.map_err(|error| not_there(error, &path))?))
    }

    async fn revoke(&self, request: Request<pb::RevokeRequest>) -> Answer<pb::RevokeReply> {
        let request = request.into_inner();
        let peers = self.members_disks().await;
        let disks = self.willing_first(&peers);
        let (cluster, _) = ids(disks.first().ok_or_else(|| self.none_up())?)?;
        if !request.yes {
            let leaving = self.membership.leaving(cluster, &request.id, request.with_hosts)?;
            farewell::check_idle(&leaving, &disks)?;
            farewell::check(&leaving, &peers, &disks).await?;
        }
        let revoked = self.membership.revoke(cluster, &request.id, request.with_hosts)?;
        let what = if revoked.is_host { "host" } else { "disk" };
        let id = revoked.id.to_hex();
        tracing::info!(stay = ?revoked.stay, out = ?revoked.out, "revoked the {what} {id}");
        Ok(Response::new(pb::RevokeReply { id, what: what.into(), stay: revoked.stay, out: revoked.out }))
    }

    async fn mark_disk(&self, request: Request<pb::MarkDiskRequest>) -> Answer<pb::MarkDiskReply> {
        let request = request.into_inner();
        let peers = self.members_disks().await;
        let disks = self.willing_first(&peers);
        let peer = marks::find(peers.into_iter(), &request.id, request.mark())?;
        let mut failure = Status::from(self.none_up());
        // Every disk of the cluster hears of it from any of them; one that is full or fails cannot note it.
        for disk in disks {
            let marking = worker_pb::MarkDiskRequest { disk_id: peer.disk_id.clone(), mark: request.mark };
            let socket = Path::new(&disk.grpc_socket);
            match worker::ask(socket, |mut client| async move { client.mark_disk(marking).await }).await {
                Ok(_) => return Ok(Response::new(pb::MarkDiskReply { disk_id: hex(&peer.disk_id) })),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn conflicts(&self, _: Request<pb::ConflictsRequest>) -> Answer<pb::ConflictsReply> {
        let mut failure = Status::from(self.none_up());
        for disk in self.answering_first().await {
            match worker::conflicts(Path::new(&disk.grpc_socket), worker_pb::ConflictsRequest {}).await {
                Ok(answer) => return Ok(Response::new(pb::ConflictsReply { paths: answer.paths, more: answer.more })),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn stop(&self, _: Request<pb::StopRequest>) -> Answer<pb::StopReply> {
        self.ask(|reply| Event::Stop { reply: Some(reply) }).await?;
        Ok(Response::new(pb::StopReply {}))
    }
}

impl Server {
    async fn ask(&self, event: impl FnOnce(Reply) -> Event) -> Result<String, Status> {
        let (reply, answer) = oneshot::channel();
        let stopping = |_| Failure::new(Exit::NoSupervisor, "the supervisor is stopping");
        self.events.send(event(reply)).map_err(|_| stopping(()))?;
        Ok(answer.await.map_err(|_| stopping(()))??)
    }

    fn now(&self) -> pb::HostStatus {
        self.snapshots.borrow().as_ref().clone()
    }

    /// The cluster a disk is added to: as asked, else the host's, else what the folder says.
    fn cluster_for(
        &self,
        request: &pb::AddDiskRequest,
        root: &Path,
        found: Option<&Result<DiskToml, Failure>>,
    ) -> Result<String, Failure> {
        let current = self.now().cluster;
        if !request.cluster.is_empty() {
            if is_cluster_name(&request.cluster) {
                return Ok(request.cluster.clone());
            }
            return Err(no_cluster_name(&request.cluster));
        }
        if !current.is_empty() {
            return Ok(current);
        }
        let shown = quoted(&root.display().to_string());
        let Some(found) = found else {
            return Err(Failure::new(Exit::Usage, "the cluster of the new disk is not known")
                .hint(format!("`delugefs run CLUSTER {shown} --create` makes the first disk of one")));
        };
        let found = found.clone().map_err(|failure| match failure.hint {
            None => failure.hint(format!(
                "mount the disk if it is not mounted; `delugefs run CLUSTER {shown} --create` makes a new one"
            )),
            Some(_) => failure,
        });
        Ok(found?.cluster)
    }
}

/// What is logged once of a host that is not admitted: anybody can come as often as he likes, with as many keys, but from one place.
fn refusal_key(refusal: &Refused, from: &str) -> String {
    let address =
        from.parse::<std::net::SocketAddr>().map_or_else(|_| from.into(), |from| source(from.ip()).to_string());
    format!("{} {address}", refusal.why)
}

/// What a worker that does not know the path says, for people.
fn not_there(error: Status, path: &[u8]) -> Status {
    if error.code() != tonic::Code::NotFound {
        return error;
    }
    let text = format!("there is no file or folder {}", escape_bytes(path));
    let failure = Failure::new(Exit::Failure, text);
    failure.hint("name a file or folder below a mount of this host (`delugefs status` shows them), or from the root of the filesystem").into()
}

/// This host's addresses with a port; loopback only when there is no other. One that listens on a particular address has only that.
fn own_addresses(listen: &str, port: u32) -> Vec<String> {
    let port = u16::try_from(port).unwrap_or(0);
    if let Some(ip) = listen.parse::<std::net::IpAddr>().ok().filter(|ip| !ip.is_unspecified()) {
        return vec![std::net::SocketAddr::new(ip, port).to_string()];
    }
    let mut found: Vec<std::net::IpAddr> = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let address = interface.address.as_ref();
        let ip = address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
        });
        // A link-local address means nothing without an interface of the other host.
        let is_link_local = |ip: &std::net::IpAddr| match ip {
            std::net::IpAddr::V4(ip) => ip.is_link_local(),
            std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        found.extend(ip.filter(|ip| !is_link_local(ip)));
    }
    found.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6()));
    let loopback_only = found.iter().all(std::net::IpAddr::is_loopback);
    let usable = found.into_iter().filter(|ip| loopback_only || !ip.is_loopback());
    usable.take(ADDRESSES_MAX).map(|ip| std::net::SocketAddr::new(ip, port).to_string()).collect()
}

/// What was typed for an invitation is one to another cluster than this supervisor's.
fn not_ours(cluster: &str) -> Failure {
    let text = format!("this invitation is to another cluster than {cluster}, which this host's supervisor runs");
    Failure::new(Exit::WrongCluster, text)
        .hint("give another cluster a supervisor of its own: --run-dir DIR --state-dir DIR")
}

/// What was typed for the life of an invitation.
fn too_long() -> Failure {
    let days = INVITE_MAX_S / (24 * 3600);
    Failure::new(Exit::Usage, format!("an invitation works for {days} days at most"))
        .hint(format!("leave --expires out (ten minutes), or write a time up to {days}d"))
}

/// What was typed for a cluster's.
pub(crate) fn no_cluster_name(typed: &str) -> Failure {
    Failure::new(Exit::Usage, format!("{typed:?} is no name for a cluster"))
        .hint("use letters, digits, '-', '_' and '.'")
}

/// What was typed for an invitation.
pub(crate) fn no_token(error: &TokenError) -> Failure {
    Failure::new(Exit::Usage, error.to_string())
        .hint("`delugefs invite` on a host of the cluster prints one: a single word, all of which is needed")
}

fn no_disk() -> Failure {
    Failure::new(Exit::NoDisk, "no disk is up on this host").hint("`delugefs disks` shows their states")
}

fn absolute(path: &str) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Failure::new(Exit::Usage, format!("{} is not an absolute path", path.display())))
}

/// The uid of a user, by name or number.
pub(crate) fn uid_of(user: Option<&str>) -> Result<Option<u32>, Failure> {
    let Some(name) = user else { return Ok(None) };
    let known = nix::unistd::User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    match known.or_else(|| name.parse().ok()) {
        Some(uid) => Ok(Some(uid)),
        None => Err(Failure::new(Exit::Usage, format!("there is no user {name:?} on this machine"))
            .hint("`getent passwd` lists the users")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_invents_keys_or_calls_from_many_ports_is_logged_once_for_each_reason() {
        let key = |why: &str, from: &str| refusal_key(&why.into(), from);
        assert_eq!(key("unknown", "192.0.2.7:1"), key("unknown", "192.0.2.7:2"));
        assert_eq!(key("unknown", "[fd00::1]:1"), key("unknown", "[fd00::2]:2"), "he has all of these");
        assert_ne!(key("unknown", "[fd00::1]:1"), key("unknown", "[fd00:0:0:1::1]:1"));
        assert_ne!(key("unknown", "[fe80::1]:1"), key("unknown", "[fe80::2]:1"), "two hosts of a link");
        assert_eq!(key("unknown", "[::ffff:192.0.2.7]:1"), key("unknown", "192.0.2.7:1"));
        assert_ne!(key("unknown", "192.0.2.7:1"), key("expired", "192.0.2.7:1"));
        assert_ne!(key("unknown", "192.0.2.7:1"), key("unknown", "192.0.2.8:1"));
    }

    #[test]
    fn an_invitation_names_only_addresses_at_which_the_disk_listens() {
        assert_eq!(own_addresses("192.0.2.7", 4711), ["192.0.2.7:4711"]);
        assert_eq!(own_addresses("fd00::2", 4711), ["[fd00::2]:4711"]);
        let all = own_addresses("", 4711);
        assert!(!all.is_empty() && own_addresses("0.0.0.0", 4711) == all && !all.contains(&"0.0.0.0:4711".into()));
    }
}
