//! Carries out the replication policy ([`crate::policy`]): looks at what the workers of this host know, lets the policy
//! decide, and asks the workers. Once a second at most, and the whole catalog only when it or the holdings changed.
//!
//! The round trip of a promise is the worker's own: `stop_mirroring` with the number of disks that must promise asks
//! them and lets go only then. So of the policy's two steps the first, [`Decision::Confirm`], is all that is needed here.

mod carry_out;
mod contents;
mod lag;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use delugefs_proto::codec::decode_version_vector;
use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;
use delugefs_proto::ids::{ContentId, DiskId, HostId, hex};
use delugefs_proto::worker_pb as wpb;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use self::contents::Contents;
use self::lag::Lag;
use crate::membership::Membership;
use crate::policy::{self, Desk, Disk, Health, Presence, Settings, View};
use crate::{farewell, sys, worker};

/// Between two looks.
const ROUND: Duration = Duration::from_secs(1);
/// At least this long between two walks of the catalog, and [`WALK_SHARE`] times what the last one took.
const WALK_MIN: Duration = Duration::from_secs(2);
/// A walk may take this part of the time.
const WALK_SHARE: u32 = 20;
/// A worker that says nothing for so long while its catalog is walked is stuck: another one is asked next.
const SILENCE: Duration = Duration::from_secs(60);
/// What a worker has come to hold is known to the others of this host after so long.
const NEWS: Duration = Duration::from_secs(2);
/// All contents are looked at again after this many seconds even if nothing changed; sooner while a disk is away or a content
/// lacks copies: then time alone changes what counts, and who may be asked again.
const QUIET_S: u64 = 60;
const RESTLESS_S: u64 = 10;

/// What `status` and `whereis` show of the policy's view.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// How well contents are kept; `None` before the first look.
    pub health: Option<Health>,
    /// Fetches that wait for others to end.
    pub waiting: u64,
}

impl Shown {
    /// Of the contents that disks hold, count only those that files have: the others go by themselves.
    pub fn count_files(&self, disks: &mut [wpb::Peer]) {
        for known in self.health.iter().flat_map(|health| &health.disks) {
            for disk in disks.iter_mut().filter(|disk| disk.disk_id == known.disk.0) {
                disk.contents = known.contents;
            }
        }
    }

    /// What is to be said of contents that no disk is known to hold, while one that was not heard of since the start may have them.
    pub fn unheard(&self) -> Option<String> {
        let health = self.health.as_ref().filter(|health| health.unknown > 0)?;
        // One that is here says it in a moment.
        let is_here = |disk: &DiskId| health.disks.iter().any(|known| known.disk == *disk && known.present);
        let away = health.unheard.iter().filter(|disk| !is_here(disk));
        let ids: Vec<String> = away.map(|disk| short_id(&disk.to_hex()).to_owned()).collect();
        if ids.is_empty() {
            return None;
        }
        let (disks, have, hold) = match ids.len() {
            1 => ("disk", "has", "it holds"),
            _ => ("disks", "have", "they hold"),
        };
        Some(format!(
            "no disk is known to have {} contents; {disks} {}, which {have} not said since the start here what {hold}, may have them: \
             connect what is away, or give up what is lost (`delugefs disk forget ID`)",
            health.unknown,
            ids.join(", ")
        ))
    }

    /// As `status` says it.
    pub fn describe(&self) -> Option<pb::Replication> {
        let health = self.health.as_ref()?;
        let at_risk = health.at_risk.iter().map(|one| pb::AtRisk {
            content: one.content.0.to_vec(),
            present: one.present,
            wanted: one.wanted,
        });
        let disks = health.disks.iter().map(|disk| pb::DiskCopies {
            disk_id: disk.disk.0.to_vec(),
            present: disk.present,
            contents: disk.contents,
            bytes: disk.bytes,
            only_here: disk.only_here,
        });
        Some(pb::Replication {
            contents: health.contents,
            short: health.short,
            short_waiting: health.short_waiting,
            short_long: health.short_long,
            single: health.single,
            unreachable: health.unreachable,
            gone: health.gone,
            waiting: self.waiting,
            at_risk: at_risk.take(10).collect(),
            stuck: health.stuck,
            stuck_by: health.stuck_by.iter().map(|disk| disk.0.to_vec()).collect(),
            disks: disks.collect(),
        })
    }
}

/// A disk that says nothing of its fetches for so long has given them up.
const MUTE: Duration = Duration::from_secs(60);

/// The host that a disk is in. What it says itself is a claim: one host that says it is many would get all copies. Who let it in signed that,
/// and does so anew when it has moved. Only of those that run here more is known.
fn host_of(disk: DiskId, said: &wpb::Peer, me: HostId, workers: &[(DiskId, PathBuf)]) -> HostId {
    if workers.iter().any(|(here, _)| *here == disk) {
        return me;
    }
    let signed = HostId::from_slice(&said.admitted_by).filter(|host| *host != me); // it has left, and was not let in there yet
    signed.or_else(|| HostId::from_slice(&said.host_id)).unwrap_or(HostId(disk.0))
}

/// The task's state.
#[derive(Debug)]
struct Replicator {
    desk: Desk,
    settings: Settings,
    disks: BTreeMap<DiskId, Disk>,
    contents: Contents,
    /// Workers that answered in this round and take changes; what the others know may be old.
    willing: Vec<PathBuf>,
    lag: Lag,
    connections: HashMap<PathBuf, worker::Kept>,
    /// Which worker's answer `contents` is, and its generation.
    source: (PathBuf, u64),
    /// Whose walk failed last.
    failed: Option<PathBuf>,
    /// See [`SILENCE`].
    silence: Duration,
    walked: (Option<Instant>, Duration),
    /// When the last walk that told who holds what began, by either clock.
    told: Option<Instant>,
    told_s: u64,
    /// Fetches that workers of this host were asked for, and since when the worker does not fetch any more: that it has the
    /// content, or failed, is known by a walk that begins later.
    fetches: HashMap<(DiskId, ContentId), Option<Instant>>,
    /// Since when a disk that fetches does not say how far it is.
    mute: HashMap<DiskId, Instant>,
    again_s: Option<u64>,
    health_s: u64,
}

/// Until the supervisor ends.
pub async fn run(
    mut snapshots: watch::Receiver<Arc<pb::HostStatus>>,
    membership: Arc<Membership>,
    shown: watch::Sender<Shown>,
    settings: Settings,
) {
    let mut this = Replicator::new(settings);
    loop {
        let host = snapshots.borrow_and_update().clone();
        // What one cluster has says nothing of another, also of one with the same name; nor does a disk that was shut out: it gives
        // the others nothing, however good its copies are.
        let up = |disk: &&pb::Disk| {
            let is_ours = !disk.cluster_id.is_empty() && disk.cluster_id == host.cluster_id;
            let is_up = disk.state() == pb::disk::State::Up && !disk.grpc_socket.is_empty();
            is_up && is_ours && !farewell::is_out(&membership, disk)
        };
        let workers: Vec<(DiskId, PathBuf)> = host
            .disks
            .iter()
            .filter(up)
            .filter_map(|disk| Some((DiskId::from_hex(&disk.disk_id)?, disk.grpc_socket.clone().into())))
            .collect();
        if workers.is_empty() {
            // What was said before is of disks that take no part any more. What they know when they are back may look as before.
            shown.send_replace(Shown::default());
            (this.source, this.health_s) = (Default::default(), 0);
        }
        this.round(&workers, &shown).await;
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return; // the owner has ended
                }
                tokio::time::sleep(ROUND / 4).await;
            }
        }
    }
}

impl Replicator {
    fn new(settings: Settings) -> Self {
        Self {
            desk: Desk::new(sys::uptime_s()),
            settings,
            disks: BTreeMap::new(),
            contents: Contents::default(),
            willing: Vec::new(),
            lag: Lag::default(),
            connections: HashMap::new(),
            source: Default::default(),
            failed: None,
            silence: SILENCE,
            walked: (None, Duration::ZERO),
            told: None,
            told_s: 0,
            fetches: HashMap::new(),
            mute: HashMap::new(),
            again_s: None,
            health_s: 0,
        }
    }

    async fn round(&mut self, workers: &[(DiskId, PathBuf)], shown: &watch::Sender<Shown>) {
        let now = sys::uptime_s();
        let Some((me, moved)) = self.look(workers, now).await else { return };
        let changed = self.walk(workers, now).await || moved;
        self.follow_fetches(workers, now).await;
        if changed {
            self.forgive();
        }
        self.desk.expire(now);
        let disks: Vec<Disk> = self.disks.values().cloned().collect();
        let is_away = |disk: &Disk| !disk.presence.is_here() && !disk.forgotten;
        let is_short = disks.len() > 1 && shown.borrow().health.as_ref().is_none_or(|health| health.short > 0);
        let quiet_s = if is_short || disks.iter().any(is_away) { RESTLESS_S } else { QUIET_S };
        let mut waiting = shown.borrow().waiting;
        if changed || self.again_s.is_some_and(|at| at <= now) || self.again_s.is_none() {
            // All of them: a hundred thousand take some ten milliseconds.
            let contents = self.contents.all();
            let view = View { me, disks: &disks, contents, desk: &self.desk, settings: &self.settings };
            let plan = policy::plan(&view, now);
            waiting = plan.waiting;
            self.again_s = Some(match plan.decisions.is_empty() && plan.waiting == 0 {
                true => plan.again_s.unwrap_or(now + quiet_s).clamp(now + 1, now + quiet_s),
                false => now + 1,
            });
            self.carry_out(plan.decisions, workers, now).await;
        }
        if changed || now >= self.health_s {
            self.health_s = now + quiet_s;
            let contents = self.contents.all();
            let view = View { me, disks: &disks, contents, desk: &self.desk, settings: &self.settings };
            let health = policy::health(&view, now);
            shown.send_replace(Shown { health: Some(health), waiting });
        } else {
            shown.send_modify(|shown| shown.waiting = waiting);
        }
    }

    /// Who is in the cluster and who is here: a disk that any worker of this host is connected with. This host's key, and
    /// whether any of that changed.
    async fn look(&mut self, workers: &[(DiskId, PathBuf)], now: u64) -> Option<(HostId, bool)> {
        let mut moved = false;
        let sure = |peer: &wpb::Peer| (peer.linked, peer.connected);
        let mut seen: BTreeMap<DiskId, wpb::Peer> = BTreeMap::new();
        let mut me = None;
        self.willing.clear();
        // What a disk that takes no changes says of its own mark may be old.
        let mut marks: BTreeMap<DiskId, wpb::Mark> = BTreeMap::new();
        let (mut known, mut heard) = (BTreeMap::new(), BTreeSet::new());
        self.connections.retain(|kept, _| workers.iter().any(|(_, socket)| socket == kept));
        for (_, socket) in workers {
            let Ok(reply) = self.connections.entry(socket.clone()).or_default().peers(socket).await else { continue };
            me = me.or_else(|| HostId::from_slice(&reply.me.as_ref()?.host_id));
            let takes_changes = reply.me.as_ref().is_some_and(|disk| !disk.read_only);
            if takes_changes {
                self.willing.push(socket.clone());
            }
            if let Some(disk) = reply.me.as_ref().filter(|disk| disk.mark() == wpb::Mark::Forgotten) {
                remember(socket, disk).await;
            }
            if let Some(me) = reply.me
                && let Some(id) = DiskId::from_slice(&me.disk_id)
            {
                if let Ok(vector) = decode_version_vector(&me.seen)
                    && takes_changes
                {
                    known.insert(id, vector); // an older worker does not say it
                }
                if me.told {
                    heard.insert(id);
                }
                seen.insert(id, me); // of itself a disk knows best
            }
            for peer in reply.peers {
                let Some(id) = DiskId::from_slice(&peer.disk_id) else { continue };
                if takes_changes {
                    marks.insert(id, peer.mark());
                }
                if peer.told {
                    heard.insert(id); // and has told the others of this host
                }
                match seen.get_mut(&id) {
                    Some(known) if sure(known) >= sure(&peer) => {}
                    _ => drop(seen.insert(id, peer)),
                }
            }
        }
        let me = me?;
        self.lag.look(known, Instant::now());
        for (id, peer) in &mut seen {
            if let Some(mark) = marks.get(id).filter(|_| peer.read_only) {
                peer.set_mark(*mark);
            }
        }
        for (id, peer) in &seen {
            let before = self.disks.get(id);
            let presence = match before.map(|disk| disk.presence) {
                Some(before) if before.is_here() == peer.connected => before,
                _ if peer.connected => Presence::Here { since_s: now },
                _ => Presence::Absent { since_s: now },
            };
            // Of a disk that is away only the membership record is known after a restart: what it was stays.
            let host = host_of(*id, peer, me, workers);
            let said = peer.connected || before.is_none();
            let mut disk = match before {
                Some(before) if !said => Disk { presence, ..before.clone() },
                _ => Disk {
                    id: *id,
                    host,
                    site: peer.site.clone(),
                    presence,
                    here_s: now,
                    heard: false,
                    changed_s: before.map_or(now, |disk| disk.changed_s),
                    lazy: peer.lazy,
                    draining: false,
                    read_only: peer.read_only,
                    full: peer.full,
                    forgotten: false,
                    free_bytes: peer.free_bytes,
                    backlog_s: 0,
                },
            };
            disk.here_s = before.map_or(now, |before| here_s(before, presence, self.settings.grace_last_s));
            // Of one that is away too.
            disk.heard = match before {
                _ if !peer.connected => heard.contains(id),
                Some(before) if before.heard => true,
                _ => heard.contains(id) && self.told_s > presence.since_s() + NEWS.as_secs(),
            };
            disk.draining = peer.mark() == wpb::Mark::Draining;
            disk.forgotten = peer.mark() == wpb::Mark::Forgotten;
            if let Some(before) = before {
                let flags = |disk: &Disk| (disk.lazy, disk.read_only, disk.full, disk.draining, disk.forgotten);
                let same = (before.host, &before.site, flags(before)) == (disk.host, &disk.site, flags(&disk));
                if !same {
                    disk.changed_s = now;
                }
                moved |= !same || before.presence != presence || before.heard != disk.heard;
                if before.host != me && disk.host == me {
                    self.desk.arrived(*id, now);
                }
            } else {
                moved = true;
                if disk.host == me {
                    self.desk.arrived(*id, now);
                }
            }
            self.disks.insert(*id, disk);
        }
        // Not a member any more: revoked.
        for (id, disk) in &mut self.disks {
            if !seen.contains_key(id) && !disk.forgotten {
                (disk.forgotten, disk.changed_s, moved) = (true, now, true);
            }
        }
        Some((me, moved))
    }

    /// Read what the catalog says, if it changed and the last look is not too recent. Whether anything is new.
    async fn walk(&mut self, workers: &[(DiskId, PathBuf)], now: u64) -> bool {
        // Every catalog says the same, but of a disk that takes no changes, or is behind: those come last. Else whose does not
        // matter. After one that failed comes the next one's turn.
        let follows = |(disk, socket): &&(DiskId, PathBuf)| self.willing.contains(socket) && !self.lag.is_behind(*disk);
        let (mut order, others): (Vec<_>, Vec<_>) = workers.iter().partition(follows);
        let may_stay = order.is_empty() || order.iter().any(|(_, socket)| *socket == self.source.0);
        order.extend(others);
        let order: Vec<&PathBuf> = order.into_iter().map(|(_, socket)| socket).collect();
        let at = |of: &Path| order.iter().position(|socket| *socket == of);
        let next = self.failed.as_deref().and_then(at).map_or(0, |at| (at + 1) % order.len());
        let source = at(&self.source.0).filter(|_| may_stay);
        let Some(socket) = order.get(source.unwrap_or(next)).copied() else { return false };
        let pause = WALK_MIN.max(self.walked.1 * WALK_SHARE);
        if self.walked.0.is_some_and(|last| last.elapsed() < pause) {
            return false;
        }
        let last = if *socket == self.source.0 { self.source.1 } else { 0 };
        let begin = Instant::now();
        let connection = self.connections.get(socket);
        let walked = Self::read(socket, connection, last, &self.contents, now, self.silence).await;
        self.walked = (Some(begin), begin.elapsed());
        match walked {
            Ok((generation, contents)) => {
                (self.source, self.failed) = ((socket.clone(), generation), None);
                (self.told, self.told_s) = (Some(begin), now);
                let Some(contents) = contents else { return false };
                self.contents = contents;
                true
            }
            Err(error) => {
                tracing::debug!(error = error.message(), "no contents");
                (self.source, self.failed) = (Default::default(), Some(socket.clone()));
                self.walked.1 = Duration::ZERO; // it was no walk: the next worker is asked soon
                false
            }
        }
    }

    /// The generation of what a worker says, and the contents unless they are as they were.
    async fn read(
        socket: &Path,
        connection: Option<&worker::Kept>,
        last: u64,
        before: &Contents,
        now: u64,
        silence: Duration,
    ) -> Result<(u64, Option<Contents>), tonic::Status> {
        let late = |_| tonic::Status::deadline_exceeded("the worker stopped saying what there is");
        let asked = async {
            let client = match connection {
                Some(kept) => kept.client(socket).await?,
                None => worker::client(socket).await?,
            };
            worker::contents(client, last).await
        };
        let mut messages = timeout(silence, asked).await.map_err(late)??;
        let empty = || tonic::Status::data_loss("the worker said nothing");
        let first = timeout(silence, messages.message()).await.map_err(late)??.ok_or_else(empty)?;
        if first.unchanged {
            return Ok((first.generation, None));
        }
        let ids: Vec<Option<DiskId>> = first.disks.iter().map(|id| DiskId::from_slice(id)).collect();
        let mut contents = Contents::default();
        contents.add(before, &ids, &first.contents, now);
        let generation = first.generation;
        drop(first);
        while let Some(message) = timeout(silence, messages.message()).await.map_err(late)?? {
            contents.add(before, &ids, &message.contents, now);
        }
        contents.end();
        Ok((generation, Some(contents)))
    }

    /// What failed may go well where other disks hold a content since then, or one that does has come.
    fn forgive(&mut self) {
        let Self { desk, contents, disks, .. } = self;
        let has_come = |disk: &DiskId, since_s: u64| {
            disks.get(disk).is_some_and(|disk| disk.presence.is_here() && disk.presence.since_s() > since_s)
        };
        desk.forgive(|content, failed_s| {
            contents.get(content).is_some_and(|known| {
                known.changed_s > failed_s || known.holders.iter().any(|disk| has_come(disk, failed_s))
            })
        });
    }

    /// Which fetches have ended, and how far the others are.
    async fn follow_fetches(&mut self, workers: &[(DiskId, PathBuf)], now: u64) {
        // Those of a disk that is gone have ended with it.
        let is_up = |disk: &DiskId| workers.iter().any(|(up, _)| up == disk);
        for ((disk, content), _) in self.fetches.extract_if(|(disk, _), _| !is_up(disk)) {
            self.desk.fetch_ended(disk, content);
        }
        self.mute.retain(|disk, _| is_up(disk));
        for (disk, socket) in workers {
            if !self.fetches.keys().any(|(fetching, _)| fetching == disk) {
                self.mute.remove(disk);
                continue;
            }
            let ours = |fetches: &HashMap<(DiskId, ContentId), _>| -> Vec<ContentId> {
                fetches.keys().filter(|(fetching, _)| fetching == disk).map(|(_, content)| *content).collect()
            };
            let request = wpb::ActiveTorrentsRequest {};
            let Ok(active) =
                worker::ask(socket, |mut client| async move { client.active_torrents(request).await }).await
            else {
                // It hangs: others are to fetch it, and their places are not for what does not move.
                if self.mute.entry(*disk).or_insert_with(Instant::now).elapsed() > MUTE {
                    ours(&self.fetches).into_iter().for_each(|content| self.fetched(*disk, content, false, now));
                }
                continue;
            };
            self.mute.remove(disk);
            // `None`: it failed.
            let left: HashMap<&[u8], Option<u64>> = active
                .torrents
                .iter()
                .filter(|torrent| !torrent.seeding)
                .map(|torrent| {
                    let left = torrent.size_bytes.saturating_sub(torrent.have_bytes);
                    (&torrent.content[..], torrent.error.is_empty().then_some(left))
                })
                .collect();
            for content in ours(&self.fetches) {
                match left.get(&content.0[..]) {
                    Some(Some(left)) => {
                        self.desk.fetching(*disk, content, *left);
                        self.fetches.insert((*disk, content), None);
                    }
                    Some(None) => self.fetched(*disk, content, false, now),
                    None => self.left_off(*disk, content, now),
                }
            }
        }
    }

    /// A worker does not fetch any more: it has the content, or failed. Small ones come within a round, sooner than the
    /// catalog says so: to take that for a failure would have another disk fetch the same, and one more than is wanted keep it.
    fn left_off(&mut self, disk: DiskId, content: ContentId, now: u64) {
        let is_held = self.contents.get(content).is_some_and(|known| known.holders.contains(&disk));
        if !is_held {
            let since = *self.fetches.entry((disk, content)).or_default().get_or_insert_with(Instant::now);
            if self.told.is_none_or(|begin| begin < since + NEWS) {
                return self.desk.fetching(disk, content, 0);
            }
        }
        self.fetched(disk, content, is_held, now);
    }

    /// It is known what came of a fetch.
    fn fetched(&mut self, disk: DiskId, content: ContentId, is_held: bool, now: u64) {
        self.fetches.remove(&(disk, content));
        self.desk.fetch_ended(disk, content);
        if !is_held {
            self.desk.failed(disk, content, now);
        }
        self.again_s = Some(now);
    }
}

/// Since when a disk comes and goes or is here, see [`Disk::here_s`], with this presence.
fn here_s(before: &Disk, presence: Presence, grace_s: u64) -> u64 {
    match (before.presence, presence) {
        (Presence::Absent { since_s }, Presence::Here { since_s: now }) if now.saturating_sub(since_s) >= grace_s => {
            now
        }
        _ => before.here_s,
    }
}

/// A disk that was given up is here again: what it holds counts as before.
async fn remember(socket: &Path, disk: &wpb::Peer) {
    let request = wpb::MarkDiskRequest { disk_id: disk.disk_id.clone(), mark: wpb::Mark::None.into() };
    let answer = worker::ask(socket, |mut client| async move { client.mark_disk(request).await }).await;
    match answer {
        Ok(_) => tracing::info!("disk {}: it was forgotten, and is here again", short_id(&hex(&disk.disk_id))),
        Err(error) => tracing::debug!(error = error.message(), "its mark stays for now"),
    }
}
