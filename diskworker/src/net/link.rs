//! Two disks talk: one Meet stream, the same at both ends whoever opened it. One task reads, one writes. What changes fast
//! (state, membership, what we say of ourselves) is not queued: the writer sends what is true when it gets to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::escape::escape_line;
use delugefs_proto::ids::DiskId;
use delugefs_proto::members::Members;
use delugefs_proto::peer_pb::{self as pb, news, peer_client::PeerClient};
use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::Net;
use super::holdings::{EPOCH_MAX, Heard, Part, Parts, announcement, is_announcement, latest, split};
use super::io::PeerInfo;
use super::said::{Heard as Spoken, Told};
use super::table::{ALL_MAX, Link, Met, Still};

/// Interval of the pings that tell a dead peer, and how long one may take.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Flow control windows: a fast LAN's bandwidth times its delay, with room.
pub(super) const STREAM_WINDOW_BYTES: u32 = 4 << 20;
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest message between disks, in bytes: a membership set.
pub(super) const MESSAGE_MAX_BYTES: usize = 2 << 20;
/// Version of what is said on a link.
const VERSION: u32 = 1;
/// For the first message.
const GREETING: Duration = Duration::from_secs(10);
/// For one message to get into the connection.
const STALLED: Duration = Duration::from_secs(30);
/// Second processes of disks that are remembered.
const COPIES_MAX: usize = 1000;
/// A connection of a disk that has died is noticed in less.
const COPY_AFTER: Duration = Duration::from_secs(3 * KEEP_ALIVE.as_secs());
/// Messages under way.
const QUEUE: usize = 16;
/// Disks in one message about others, the longest text about one, and the longest life of a process.
const SIGHTINGS: usize = 1000;
const TEXT_MAX_BYTES: usize = 512;
const UPTIME_MAX_S: u64 = 100 * 366 * 24 * 3600;
/// How often some of the addresses that were told are told anew.
const ADDRESSES_ANEW: Duration = Duration::from_secs(60);

/// Open a link on a channel, and talk until it ends.
pub(super) async fn open(net: &Arc<Net>, mut client: PeerClient<Channel>, info: PeerInfo) -> FsResult<()> {
    let (out, messages) = mpsc::channel(QUEUE);
    // The other end answers when it has read our greeting.
    let _ = out.send(net.about()).await;
    let met = timeout(GREETING, client.meet(ReceiverStream::new(messages))).await;
    let refused = |why: String| FsError::new(Errno::ECONNREFUSED, why);
    match met {
        Ok(Ok(reply)) => talk(net, info, true, reply.into_inner(), out).await,
        Ok(Err(status)) => {
            net.introduce_to(info.disk).await;
            Err(refused(format!("it refused: {}", status.message())))
        }
        Err(_) => Err(refused("it does not greet".into())),
    }
}

/// A peer opened one: talk in a task of its own.
pub(super) fn opened(net: &Arc<Net>, info: PeerInfo, incoming: Streaming<pb::News>) -> mpsc::Receiver<pb::News> {
    let (out, messages) = mpsc::channel(QUEUE);
    let net = net.clone();
    tokio::spawn(async move {
        let _ = out.send(net.about()).await;
        let disk = info.disk;
        if let Err(error) = talk(&net, info, false, incoming, out).await {
            tracing::debug!(disk = &disk.to_hex()[..8], %error, "a link ended");
        }
    });
    messages
}

async fn talk(
    net: &Arc<Net>,
    info: PeerInfo,
    ours: bool,
    mut incoming: Streaming<pb::News>,
    out: mpsc::Sender<pb::News>,
) -> FsResult<()> {
    let disk = info.disk;
    let bad = |why: &str| FsError::new(Errno::EPROTO, why.to_owned());
    let first = timeout(GREETING, incoming.message()).await.map_err(|_| bad("it does not greet"))?;
    let first = match first {
        Ok(first) => first,
        Err(status) => {
            if ours {
                net.introduce_to(disk).await;
            }
            return Err(bad(status.message()));
        }
    };
    let Some(pb::News { news: Some(news::News::About(about)) }) = first else { return Err(bad("it does not greet")) };
    if about.version != VERSION {
        let id = disk.to_hex();
        let program = line(&about.program);
        net.log.once("version", &id, || tracing::warn!("disk {} runs another version: {program}", &id[..8]));
        return Err(bad("it speaks another version: use the same version of delugefs everywhere"));
    }
    if about.cluster_id != net.engine.folder.cluster_id().0 {
        return Err(bad("it belongs to another cluster"));
    }
    if !is_bounded(&about) {
        return Err(bad("what it says of itself is too long, or cannot be"));
    }
    let address = std::net::SocketAddr::new(info.from.ip().to_canonical(), about.port as u16).to_string();
    let is_told = !ours && about.port != 0;
    if is_told {
        net.book.lock().hint(Some(disk), &address, |disk| net.members.is_disk(disk));
    }
    let id = net.links.fetch_add(1, Ordering::Relaxed);
    let link = Link { id, token: info.token.child_token(), ours, parting: Arc::default() };
    let (token, parting) = (link.token.clone(), link.parting.clone());
    let (run, is_brief) = (about.run, about.knows_still);
    let asked = Arc::new(Asked::default());
    asked.spoken.lock().about(&about);
    let met = net.table.lock().connect(disk, link, about);
    if is_told && !matches!(met, Met::Copy) {
        net.book.lock().called(disk, &address); // it is there now, wherever it was before
    }
    match met {
        Met::Kept => net.holdings.lock().met(disk),
        Met::Spare => return Ok(()),
        Met::Copy => return refuse_copy(net, disk, run, info, &out).await,
    }
    let is_refused = net.copies.lock().contains_key(&(net.engine.folder.disk_id(), 0));
    let said = if is_refused { None } else { net.table.lock().say(disk, Instant::now()) };
    if let Some(is_last) = said {
        let often = if is_last { "; it comes and goes often, which is not said any more for some minutes" } else { "" };
        tracing::info!("connected with disk {} at {}{often}", &disk.to_hex()[..8], info.from);
    }
    let writer = tokio::spawn(write(net.clone(), out, asked.clone(), id, parting, is_brief, info));
    let ended = tokio::select! {
        ended = read(net, disk, id, &mut incoming, &asked) => ended,
        () = token.cancelled() => Ok(()),
    };
    token.cancel();
    writer.abort();
    let is_refused = ended.as_ref().is_err_and(|error| error.errno == Errno::EEXIST);
    if net.table.lock().disconnect(disk, id) && !is_refused {
        if said.is_some() {
            tracing::info!("connection with disk {} ended", &disk.to_hex()[..8]);
        }
        net.wake.notify_one();
    }
    ended
}

/// Another process with the disk's key is connected. Perhaps it has just died and the disk was started again: then the
/// connection ends in some seconds, and the new one is let in. If not, one of the two is a copy, and to follow both would mix
/// up what the disk holds.
async fn refuse_copy(net: &Net, disk: DiskId, run: u64, info: PeerInfo, out: &mpsc::Sender<pb::News>) -> FsResult<()> {
    let id = disk.to_hex();
    let why = format!("disk {} is connected from elsewhere: one of the two folders is a copy of the other", &id[..8]);
    let news = pb::News { news: Some(news::News::Refused(why.clone())) };
    let _ = timeout(GREETING, out.send(news)).await;
    let first = {
        let mut copies = net.copies.lock();
        if copies.len() >= COPIES_MAX {
            copies.retain(|(one, _), _| *one == net.engine.folder.disk_id()); // others may make up as many as they like
        }
        *copies.entry((disk, run)).or_insert_with(Instant::now)
    };
    if first.elapsed() > COPY_AFTER {
        net.log.once("copy", &format!("{id} {run}"), || tracing::warn!("refused {}: {why}", info.from));
    }
    Err(FsError::new(Errno::EEXIST, why))
}

/// What the other end asked to be sent.
#[derive(Default)]
struct Asked {
    have: Mutex<Option<pb::HoldingsHave>>,
    ask_again: Mutex<bool>,
    /// What it told of disks, and what of that it asks for.
    spoken: Mutex<Spoken>,
    /// Numbers of disks of which all is to be asked for.
    what: Mutex<Vec<u32>>,
    notify: Notify,
}

async fn read(
    net: &Arc<Net>,
    disk: DiskId,
    link: u64,
    incoming: &mut Streaming<pb::News>,
    asked: &Asked,
) -> FsResult<()> {
    let mut parts = Parts::default();
    loop {
        let message =
            incoming.message().await.map_err(|status| FsError::new(Errno::ECONNRESET, status.message().to_owned()))?;
        let Some(message) = message else { return Ok(()) };
        match message.news {
            Some(news::News::State(state)) => {
                let commit = git2::Oid::from_bytes(&state.commit).map_err(|_| Errno::EPROTO)?;
                net.copies.lock().remove(&(net.engine.folder.disk_id(), 0)); // we are let in
                if let Some(other) = net.table.lock().disks.get_mut(&disk) {
                    other.state = Some(commit);
                }
                net.states.notify_one();
            }
            Some(news::News::Members(members)) => {
                let net = net.clone();
                let absorbing = tokio::task::spawn_blocking(move || net.members.absorb(&members.set));
                match absorbing.await.map_err(|_| Errno::EIO)? {
                    Err(error) if error.errno == Errno::EINVAL => return Err(error),
                    Err(error) => tracing::debug!("membership is not written down: {error}"),
                    Ok(_) => {}
                }
            }
            Some(news::News::Holdings(holdings)) => {
                let (of, me) = (DiskId::from_slice(&holdings.disk_id), net.engine.folder.disk_id());
                // Of itself a disk knows best.
                if of == Some(me) {
                    let own = {
                        let mut ours = net.holdings.lock();
                        if ours.outdo(me, &holdings) { ours.all_of(me) } else { Vec::new() }
                    };
                    own.into_iter().for_each(|part| net.tell(None, part));
                }
                if !of.is_some_and(|disk| disk != me && net.members.is_disk(disk)) {
                    continue;
                }
                let (heard, holdings) = match parts.add(holdings).map_err(|()| Errno::EMSGSIZE)? {
                    Part::More => continue,
                    Part::Missing => (Heard::Gap, pb::Holdings::default()),
                    Part::Whole(holdings) => (net.holdings.lock().hear(&holdings), holdings),
                };
                match heard {
                    // All that a disk holds is asked for by who lacks it.
                    Heard::News if holdings.base == 0 => net.tell(Some(link), announcement(&holdings)),
                    Heard::News => split(holdings).into_iter().for_each(|part| net.tell(Some(link), part)),
                    // It says so itself: where everybody meets everybody, all would send it to all.
                    Heard::Gap
                        if is_announcement(&holdings) && of.is_some_and(|of| net.table.lock().is_connected(of)) => {}
                    Heard::Gap => {
                        *asked.ask_again.lock() = true;
                        asked.notify.notify_one();
                    }
                    Heard::Nothing => {}
                    Heard::NoRoom => {
                        let id = of.map(|of| of.to_hex()).unwrap_or_default();
                        let log = || {
                            tracing::warn!(
                                "there is not memory enough to know what disk {} holds: its copies count for nothing here",
                                &id[..8]
                            );
                        };
                        net.log.once("holdings", &id, log);
                    }
                    Heard::TooMuch => {
                        return Err(FsError::new(Errno::EMSGSIZE, "it says that a disk holds more than any can"));
                    }
                }
            }
            Some(news::News::HoldingsHave(have)) => {
                net.holdings.lock().claimed(disk, &have);
                *asked.have.lock() = Some(have);
                asked.notify.notify_one();
            }
            Some(news::News::Addresses(addresses)) => {
                let (mut book, mut is_new) = (net.book.lock(), false);
                for known in addresses.disks.iter().take(1000) {
                    let Some(id) = DiskId::from_slice(&known.disk_id) else { continue };
                    if net.members.is_disk(id) && id != net.engine.folder.disk_id() {
                        for address in known.addresses.iter().take(8) {
                            is_new |= book.hint(Some(id), address, |disk| net.members.is_disk(disk));
                        }
                    }
                }
                if is_new {
                    net.wake.notify_one();
                }
            }
            Some(news::News::About(about)) => {
                if !is_bounded(&about) {
                    return Err(FsError::new(Errno::EPROTO, "what it says of itself is too long, or cannot be"));
                }
                asked.spoken.lock().about(&about);
                if let Some(other) = net.table.lock().disks.get_mut(&disk) {
                    other.says(about);
                }
            }
            Some(news::News::Sightings(sightings)) => {
                let me = net.engine.folder.disk_id();
                let mut has_arrived = false;
                for sighting in sightings.disks {
                    let Some(disk) = DiskId::from_slice(&sighting.disk_id) else { continue };
                    let Some(about) = sighting.about.filter(is_plausible) else { continue };
                    // Also of one that is no member yet: what follows continues this.
                    asked.spoken.lock().sighting(sighting.number, disk, &about);
                    if disk != me && net.members.is_disk(disk) {
                        has_arrived |= net.table.lock().sight(disk, &about);
                    }
                }
                if has_arrived {
                    net.has_arrived();
                }
            }
            Some(news::News::Still(still)) => {
                let me = net.engine.folder.disk_id();
                let said = asked.spoken.lock().still(&still, UPTIME_MAX_S);
                let (known, mut missing) = said.map_err(|()| Errno::EPROTO)?;
                let mut has_arrived = false;
                for (number, of, brief) in known {
                    let mut table = net.table.lock();
                    let sighted = match of {
                        None if table.disks.get_mut(&disk).is_some_and(|other| other.says_still(brief)) => Still::Old,
                        None => Still::Unknown,
                        Some(of) if of == me || !net.members.is_disk(of) => Still::Old,
                        Some(of) => table.sight_still(of, brief),
                    };
                    has_arrived |= sighted == Still::Arrived;
                    if sighted == Still::Unknown {
                        missing.push(number);
                    }
                }
                if has_arrived {
                    net.has_arrived();
                }
                if !missing.is_empty() {
                    *asked.what.lock() = missing;
                    asked.notify.notify_one();
                }
            }
            Some(news::News::Parting(_)) => {
                if let Some(other) = net.table.lock().disks.get_mut(&disk) {
                    other.parts = true;
                }
                return Ok(());
            }
            Some(news::News::StillWhat(what)) => asked.spoken.lock().what(&what.numbers),
            Some(news::News::Refused(why)) => {
                let why = line(&why);
                let first = *net.copies.lock().entry((net.engine.folder.disk_id(), 0)).or_insert_with(Instant::now);
                if first.elapsed() > COPY_AFTER {
                    // Nobody has heard of what was written here meanwhile.
                    let hint = "stop one of the two, and keep the other: this one is let in when the other one is stopped, with \
                                all that it has; if this one goes, first copy what was written to it, which no other disk has";
                    net.log.once("refused", "", || tracing::error!("{why}; {hint}"));
                }
                return Err(FsError::new(Errno::EEXIST, why));
            }
            None => {} // from a newer version
        }
    }
}

async fn write(
    net: Arc<Net>,
    out: mpsc::Sender<pb::News>,
    asked: Arc<Asked>,
    link: u64,
    parting: Arc<Notify>,
    is_brief: bool,
    info: PeerInfo,
) {
    let mut members = net.members.watch();
    members.mark_changed();
    let mut teller = Teller {
        is_here: info.from.ip().to_canonical().is_loopback(),
        net: &net,
        out,
        asked: &asked,
        disk: info.disk,
        is_brief,
        members,
        told: Told::default(),
        turned: Instant::now(),
    };
    let ended = tokio::select! {
        ended = write_until(&mut teller, link) => ended.map(|()| false),
        () = parting.notified() => Ok(true),
    };
    if ended == Ok(true) {
        let _ = teller.send(news::News::Parting(pb::Parting {})).await; // fails when it has ended meanwhile
        // The other end closes it then, and has read what it was told.
        if timeout(GREETING, teller.out.closed()).await.is_ok() {
            return;
        }
    }
    tracing::debug!(?ended, "a link's writer ended");
    info.token.cancel();
}

/// What is told on a link, and to whom.
struct Teller<'a> {
    net: &'a Arc<Net>,
    out: mpsc::Sender<pb::News>,
    asked: &'a Asked,
    disk: DiskId,
    is_here: bool,
    is_brief: bool,
    /// Changed: since it was told.
    members: watch::Receiver<Option<Arc<Members>>>,
    told: Told,
    turned: Instant,
}

impl Teller<'_> {
    async fn send(&self, news: news::News) -> Result<(), String> {
        match timeout(STALLED, self.out.send(pb::News { news: Some(news) })).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("closed".into()),
            Err(_) => Err("it does not read what it is told".into()),
        }
    }

    /// The members that the other end has been told. What is said of others before it knows them it does not listen to, and nothing is said
    /// twice: so they come first.
    async fn members(&mut self) -> Result<Option<Arc<Members>>, String> {
        let is_new = self.members.has_changed().map_err(|_| "the network has stopped")?;
        let members = self.members.borrow_and_update().clone();
        if let Some(set) = members.as_ref().filter(|_| is_new).map(|members| members.encode()) {
            self.send(news::News::Members(pb::Members { set })).await?;
            // What was said of disks that were no members then was not listened to.
            let have = self.net.holdings.lock().have();
            self.send(news::News::HoldingsHave(have)).await?;
        }
        Ok(members)
    }

    /// Members that are new, where they are, who is there, and what we say of ourselves.
    async fn tell(&mut self) -> Result<(), String> {
        let Some(members) = self.members().await? else { return Ok(()) };
        let is_turn = self.turned.elapsed() >= ADDRESSES_ANEW;
        if is_turn {
            self.turned = Instant::now();
        }
        let known = self.net.addresses(self.is_here, &members);
        for part in self.told.addresses(&known, is_turn).chunks(SIGHTINGS) {
            self.send(news::News::Addresses(pb::Addresses { disks: part.to_vec() })).await?;
        }
        let own = self.net.about_now();
        let (about, full, still) = {
            let (mut spoken, table) = (self.asked.spoken.lock(), self.net.table.lock());
            // Where everybody meets everybody, who is connected says enough.
            let is_large = members.disks().len() > ALL_MAX + 1;
            let others = is_large.then(|| table.sightings(self.disk).filter(|(disk, ..)| members.is_disk(*disk)));
            self.told.news(&own, others, &mut spoken, self.is_brief)
        };
        if let Some(about) = about {
            self.send(news::News::About(about)).await?;
        }
        for part in full.chunks(SIGHTINGS) {
            self.send(news::News::Sightings(pb::Sightings { disks: part.to_vec() })).await?;
        }
        match still {
            Some(still) => self.send(news::News::Still(still)).await,
            None => Ok(()),
        }
    }
}

async fn write_until(teller: &mut Teller<'_>, link: u64) -> Result<(), String> {
    let (net, asked) = (teller.net, teller.asked);
    let mut commits = net.engine.commits();
    let mut members = teller.members.clone();
    let mut abouts = net.about_changed.subscribe();
    let mut told = net.told.subscribe();
    commits.mark_changed();
    if teller.members.borrow().is_none() {
        let have = net.holdings.lock().have();
        teller.send(news::News::HoldingsHave(have)).await?;
    }
    teller.tell().await?;
    loop {
        tokio::select! {
            changed = commits.changed() => {
                changed.map_err(|_| "the engine has stopped")?;
                let commit = commits.borrow_and_update().as_bytes().to_vec();
                teller.send(news::News::State(pb::State { commit })).await?;
            }
            changed = members.changed() => {
                changed.map_err(|_| "the network has stopped")?;
                // Who is new is to be met.
                teller.tell().await?;
            }
            changed = abouts.changed() => {
                changed.map_err(|_| "the network has stopped")?;
                teller.tell().await?;
            }
            news = told.recv() => match news {
                Ok((from, holdings)) if from != Some(link) => {
                    teller.send(news::News::Holdings(pb::Holdings::clone(&holdings))).await?;
                }
                Ok(_) => {}
                // A new link begins with what the other lacks.
                Err(broadcast::error::RecvError::Lagged(_)) => return Err("too slow for the news".into()),
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
            () = asked.notify.notified() => {
                let numbers = std::mem::take(&mut *asked.what.lock());
                if !numbers.is_empty() {
                    teller.send(news::News::StillWhat(pb::StillWhat { numbers })).await?;
                }
                let again = std::mem::take(&mut *asked.ask_again.lock());
                if again {
                    let have = net.holdings.lock().have();
                    teller.send(news::News::HoldingsHave(have)).await?;
                }
                let have = asked.have.lock().take();
                let lacks = have.map(|have| net.holdings.lock().lacks(&have)).unwrap_or_default();
                for holdings in lacks {
                    teller.send(news::News::Holdings(holdings)).await?;
                }
            }
        }
    }
}

/// What another disk says for people, as one line that is no longer than it should be.
fn line(text: &str) -> String {
    escape_line(&text.chars().take(TEXT_MAX_BYTES).collect::<String>())
}

/// Whether this may be what another disk said, and can be outdone by what it will say.
fn is_plausible(about: &pb::About) -> bool {
    // Before its supervisor has told it a disk does not know where it is.
    about.host_id.len() == 32 && is_bounded(about) && about.epoch <= latest()
}

/// Whether a disk may say this of itself. It is passed on, many of them in one message.
fn is_bounded(about: &pb::About) -> bool {
    let texts = [&about.program, &about.host_label, &about.site];
    about.host_id.len() <= 32
        && about.cluster_id.len() == 16
        && about.state.len() <= 20
        && texts.iter().all(|text| text.len() <= TEXT_MAX_BYTES)
        && about.epoch <= EPOCH_MAX
        && about.uptime_s <= UPTIME_MAX_S
}

#[cfg(test)]
mod tests {
    use delugefs_proto::worker_pb::{Hint, HintsRequest};

    use super::*;
    use crate::net::tests::{cluster, until};

    #[tokio::test(flavor = "multi_thread")]
    async fn where_a_disk_comes_from_is_where_it_is() {
        let (_, _, nodes) = cluster(2, &[]).await;
        let (one, other) = (nodes[0].net(), nodes[1].net());
        let of_other = || one.book.lock().of(nodes[1].id());
        // Where it was before.
        one.book.lock().worked(nodes[1].id(), "127.0.0.1:9");
        let (disk_id, address) = (nodes[0].id().0.to_vec(), format!("127.0.0.1:{}", one.port()));
        other.take_hints(&HintsRequest { hints: vec![Hint { disk_id, address }] });
        until("the two to meet", || one.table.lock().is_connected(nodes[1].id())).await;
        // A moment later.
        let is_first = || of_other().first() == Some(&format!("127.0.0.1:{}", other.port()));
        until("it to be looked for where it came from", is_first).await;
    }

    #[test]
    fn what_a_disk_says_for_people_is_one_line() {
        let said = line(&"\u{1b}[2J\n2026-01-01 ERROR ".repeat(1000));
        assert!(said.len() < 4 * TEXT_MAX_BYTES && !said.contains(['\n', '\u{1b}']), "{said}");
        assert_eq!(line("disk 1 is a copy: stop it"), "disk 1 is a copy: stop it");
    }

    #[test]
    fn what_a_disk_says_of_itself_has_bounds() {
        let good = pb::About { cluster_id: vec![1; 16], host_id: vec![2; 32], ..Default::default() };
        assert!(is_plausible(&good));
        let new = pb::About { host_id: Vec::new(), ..good.clone() };
        assert!(is_bounded(&new) && !is_plausible(&new));
        let late = pb::About { epoch: EPOCH_MAX, ..good.clone() };
        assert!(is_bounded(&late) && !is_plausible(&late), "somebody else says so");
        let label = |len| "x".repeat(len);
        for bad in [
            pb::About { host_label: label(TEXT_MAX_BYTES + 1), ..good.clone() },
            pb::About { site: label(1 << 20), ..good.clone() },
            pb::About { program: label(1 << 20), ..good.clone() },
            pb::About { cluster_id: vec![1; 1 << 20], ..good.clone() },
            pb::About { host_id: vec![1; 1 << 20], ..good.clone() },
            pb::About { epoch: EPOCH_MAX + 1, ..good.clone() },
            pb::About { uptime_s: u64::MAX, ..good.clone() },
            pb::About { state: vec![1; 21], ..good.clone() },
        ] {
            assert!(!is_bounded(&bad), "{bad:?}");
        }
    }
}
