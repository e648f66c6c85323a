//! Copies that turn out to be corrupt. Who gets wrong bytes tells the disk that sent them, and that one looks at its copy itself. So it
//! does with what it could not read for somebody. What is damaged is set aside, so that nobody counts on it any more and the policy has a
//! good one fetched, if another disk has just read its own and found it whole. Else it stays, and the store knows of it: of two that are
//! damaged at different places all can still be read, and of an only one most. Whoever looks at his copy neither promises it nor vouches
//! for it.
//!
//! A report is nothing but a hint: who lies costs a read. Copies are looked at one after the other, each once in some minutes, and less and
//! less often where that changes nothing. For others a disk reads a tenth of the time ([`allowance`]), for itself half of it.
//!
//! [`allowance`]: super::allowance

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::disk::short_id;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ContentId, DiskId};
use delugefs_proto::peer_pb::{ReportCorruptRequest, VerifyRequest};
use nix::errno::Errno;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Net;
use super::allowance::Allowance;
use crate::content::{Look, Suspect};
use crate::engine::{Fate, Others, PROBLEMS_MAX};

/// A copy is not looked at again, and a disk not told of it again, for so long; at most for so long where it was in vain.
const AGAIN: Duration = Duration::from_secs(300);
const AGAIN_MAX: Duration = Duration::from_secs(3600);
/// So long a copy counts as whole that was read for another disk: who could not wait for that asks again.
const WHOLE: Duration = Duration::from_secs(3600);
/// Copies that wait to be looked at, and those of them that one disk has reported.
const WAITING_MAX: usize = 256;
const WAITING_EACH: usize = 16;
/// What is remembered of either kind.
const REMEMBERED_MAX: usize = 10_000;
/// How long a disk may take to hear of it, and to read its copy.
const ANSWER: Duration = Duration::from_secs(8);
const READS: Duration = Duration::from_secs(600);
/// Disks that are asked for a whole one.
const ASKED_MAX: usize = 4;
/// A disk that did not answer is not asked for so long: who scrubs a disk with many damaged contents would wait for it each time. What it
/// has read to the end meanwhile it still knows then.
const SILENT: Duration = Duration::from_secs(1800);

/// What is to be looked at, and what was done about corrupt copies here and elsewhere.
#[derive(Default)]
pub(super) struct Suspects {
    /// By whom it was reported, and what.
    waiting: VecDeque<(DiskId, ContentId)>,
    looked_at: Option<ContentId>,
    reported: Recently<ContentId>,
    told: Recently<(DiskId, ContentId)>,
    /// Disks that did not say whether their copies are whole.
    silent: Recently<DiskId>,
    /// The last one that was looked at again.
    again: Option<ContentId>,
    /// Read for others, and whole.
    whole: Recently<ContentId>,
    /// For what others ask to be read.
    allowance: Allowance,
    /// Copies that were set aside. With many of them it is the disk: then it keeps what it cannot read.
    bad: usize,
}

/// What was done a short time ago: when, and for how long it is not done again.
struct Recently<K>(HashMap<K, (Instant, Duration)>);

impl<K> Default for Recently<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone> Recently<K> {
    fn has(&self, what: &K, now: Instant) -> bool {
        self.0.get(what).is_some_and(|(at, pause)| now.duration_since(*at) < *pause)
    }

    /// Whether it may be done now; then it was.
    fn may(&mut self, what: K, now: Instant) -> bool {
        if self.has(&what, now) {
            return false;
        }
        if self.0.len() >= REMEMBERED_MAX && !self.0.contains_key(&what) {
            self.0.retain(|_, (at, pause)| now.duration_since(*at) < *pause);
            // Half of them or more, the oldest: nobody may keep others from being heard by what he says.
            if self.0.len() >= REMEMBERED_MAX {
                let mut times: Vec<Instant> = self.0.values().map(|(at, _)| *at).collect();
                let middle = *times.select_nth_unstable(REMEMBERED_MAX / 2).1;
                self.0.retain(|_, (at, _)| *at > middle);
            }
        }
        let pause = self.0.get(&what).map_or(AGAIN, |(_, pause)| *pause);
        self.0.insert(what, (now, pause));
        true
    }

    /// It was done now, and is not to be done again for so long.
    fn note(&mut self, what: K, now: Instant, pause: Duration) {
        self.may(what.clone(), now);
        self.0.insert(what, (now, pause));
    }

    /// It was in vain.
    fn lengthen(&mut self, what: &K) {
        if let Some((_, pause)) = self.0.get_mut(what) {
            *pause = (*pause * 2).min(AGAIN_MAX);
        }
    }
}

impl Suspects {
    /// A disk says that the copy here is corrupt. Whether it is to be looked at.
    fn report(&mut self, by: DiskId, content: ContentId, now: Instant) -> bool {
        let of_it = self.waiting.iter().filter(|(other, _)| *other == by).count();
        let may = self.waiting.len() < WAITING_MAX && of_it < WAITING_EACH && self.reported.may(content, now);
        if may {
            self.waiting.push_back((by, content));
        }
        may
    }

    /// These are damaged and stay: another disk may have a whole one by now. As many as may wait, from where it ended last time: where many
    /// cannot be mended, they do not keep out the others.
    fn look_again(&mut self, me: DiskId, damaged: &[ContentId], now: Instant) {
        let first = self.again.map_or(0, |last| damaged.partition_point(|content| *content <= last));
        for content in damaged[first..].iter().chain(&damaged[..first]) {
            if self.report(me, *content, now) {
                self.again = Some(*content);
            }
        }
    }

    /// What others have reported waits until something may be read for them.
    fn next(&mut self, me: DiskId, now: Instant) -> Option<(DiskId, ContentId)> {
        let may_others = self.allowance.has_some(now);
        let at = self.waiting.iter().position(|(by, _)| may_others || *by == me);
        let next = at.and_then(|at| self.waiting.remove(at));
        self.looked_at = next.map(|(_, content)| content);
        next
    }

    /// The copy is not there any more, or is another one.
    pub fn forget(&mut self, content: ContentId) {
        self.whole.0.remove(&content);
    }

    /// How long there is nothing to do, if nobody says something.
    fn pause(&self, now: Instant) -> Duration {
        let wait = self.allowance.wait(now);
        if self.waiting.is_empty() || wait.is_zero() { AGAIN } else { wait.min(AGAIN) }
    }

    fn is_suspect(&self, content: ContentId) -> bool {
        self.looked_at == Some(content) || self.waiting.iter().any(|(_, waiting)| *waiting == content)
    }
}

impl Net {
    /// Tell a disk that what it sent of a content is corrupt. On the runtime.
    pub fn report_corrupt(self: &Arc<Self>, disk: DiskId, content: ContentId) {
        if !self.suspects.lock().told.may((disk, content), Instant::now()) {
            return;
        }
        let (id, hex) = (disk.to_hex(), content.to_hex());
        self.log.once_of("corrupt", disk, &hex, || {
            tracing::warn!(
                "disk {} sent corrupt bytes of content {hex}; it is told to look at its copy",
                short_id(&id)
            );
        });
        let net = self.clone();
        tokio::spawn(async move {
            let telling = async {
                let mut client = net.client(disk).await?;
                let told = client.report_corrupt(ReportCorruptRequest { content: content.0.to_vec() }).await;
                told.map(drop).map_err(|status| FsError::new(Errno::ECONNRESET, status.message().to_owned()))
            };
            let told: FsResult<()> = timeout(ANSWER, telling).await.unwrap_or(Err(Errno::ETIMEDOUT.into()));
            if let Err(error) = told {
                tracing::debug!("disk {} does not hear that its copy of {hex} is corrupt: {error}", short_id(&id));
            }
        });
    }

    /// A disk has other bytes of a content than are here. It looks at its copy; if it says that this is whole, the one here is looked at, as for
    /// any report of it. On the runtime.
    pub fn differs(self: &Arc<Self>, disk: DiskId, content: ContentId) {
        if !self.suspects.lock().told.may((disk, content), Instant::now()) {
            return;
        }
        tracing::warn!("disk {} has other bytes of content {content} than this one", short_id(&disk.to_hex()));
        let net = self.clone();
        tokio::spawn(async move {
            let asking = async {
                let mut client = net.client(disk).await.ok()?;
                let reply = client.verify(VerifyRequest { content: content.0.to_vec() }).await.ok()?;
                Some(reply.into_inner().whole)
            };
            if timeout(READS, asking).await == Ok(Some(true)) {
                net.suspect(disk, content);
            }
        });
    }

    /// The copy here is said to be corrupt, or could not be read: it is looked at soon.
    pub fn suspect(&self, by: DiskId, content: ContentId) {
        if self.suspects.lock().report(by, content, Instant::now()) {
            self.suspected.notify_one();
        }
    }

    /// The same, found on this disk.
    pub fn suspect_own(&self, content: ContentId) {
        self.suspect(self.engine.folder.disk_id(), content);
    }

    /// Nobody should rely on the copy here: it is damaged, or may be.
    pub fn is_suspect(&self, content: ContentId) -> bool {
        self.engine.store.damage(content).is_some() || self.suspects.lock().is_suspect(content)
    }

    /// How many contents are damaged here, and stay.
    pub fn damaged_contents(&self) -> u64 {
        self.engine.store.damaged_len() as u64
    }

    /// Read the copy here for another disk: whether it is whole. `false` also when there is no time for that.
    pub async fn is_whole(self: &Arc<Self>, content: ContentId) -> bool {
        let known = || {
            let is_suspect = self.is_suspect(content);
            (is_suspect || self.suspects.lock().whole.has(&content, Instant::now())).then_some(!is_suspect)
        };
        if let Some(known) = known() {
            return known;
        }
        // One after the other.
        let Ok(one) = timeout(ANSWER, self.verifying.clone().lock_owned()).await else { return false };
        // It may have been read meanwhile.
        if let Some(known) = known() {
            return known;
        }
        if !self.suspects.lock().allowance.has_some(Instant::now()) {
            return false;
        }
        let (net, (tell, told)) = (self.clone(), oneshot::channel());
        // To its end, also without whoever has asked: what was read counts for the next one.
        tokio::spawn(async move {
            let whole = net.verify_own(content).await;
            drop(one);
            let _unheard = tell.send(whole);
        });
        told.await.unwrap_or(false)
    }

    async fn verify_own(self: &Arc<Self>, content: ContentId) -> bool {
        let (look, read) = self.look(content).await;
        self.suspects.lock().allowance.spend(read, Instant::now());
        match look {
            Ok(Look::Whole) => {
                let (mut suspects, now) = (self.suspects.lock(), Instant::now());
                let is_whole = !suspects.is_suspect(content);
                if is_whole {
                    suspects.whole.note(content, now, WHOLE);
                }
                is_whole
            }
            Ok(Look::Bad(_)) => {
                self.suspect_own(content);
                false
            }
            Ok(Look::Absent) | Err(_) => false,
        }
    }

    /// What a look shows, and how long it took: to wait for a thread is no reading.
    async fn look(self: &Arc<Self>, content: ContentId) -> (FsResult<Look>, Duration) {
        let net = self.clone();
        let looking = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            (net.engine.store.look_at(content), began.elapsed())
        });
        let panicked = |error| FsError::new(Errno::EIO, format!("looking at a content: {error}"));
        looking.await.unwrap_or_else(|error| (Err(panicked(error)), Duration::ZERO))
    }

    /// Whether a disk was told not long ago that its copy is corrupt.
    #[cfg(test)]
    pub(crate) fn has_told(&self, disk: DiskId, content: ContentId) -> bool {
        self.suspects.lock().told.has(&(disk, content), Instant::now())
    }

    /// As if others had had so much read.
    #[cfg(test)]
    pub(crate) fn has_read_for_others(&self, read: Duration) {
        self.suspects.lock().allowance.spend(read, Instant::now());
    }

    /// Whether another disk that keeps it has read its copy, and found it whole.
    pub(crate) async fn is_whole_elsewhere(self: &Arc<Self>, content: ContentId) -> bool {
        self.is_whole_elsewhere_within(content, READS).await
    }

    pub(super) async fn is_whole_elsewhere_within(self: &Arc<Self>, content: ContentId, patience: Duration) -> bool {
        let mut keepers = self.keepers(content);
        {
            let (suspects, now) = (self.suspects.lock(), Instant::now());
            keepers.retain(|disk| !suspects.silent.has(disk, now));
        }
        let mut asking = JoinSet::new();
        for disk in keepers.into_iter().take(ASKED_MAX) {
            let net = self.clone();
            let asked = timeout(patience, async move {
                let mut client = net.client(disk).await.ok()?;
                let reply = client.verify(VerifyRequest { content: content.0.to_vec() }).await.ok()?;
                Some(reply.into_inner().whole)
            });
            asking.spawn(async move { (disk, asked.await) });
        }
        while let Some(answer) = asking.join_next().await {
            match answer {
                Ok((_, Ok(Some(true)))) => return true,
                Ok((disk, Err(_))) => self.suspects.lock().silent.note(disk, Instant::now(), SILENT),
                Ok((_, Ok(_))) | Err(_) => {}
            }
        }
        false
    }

    /// What becomes of a copy here, after a look at it. One that is bad is set aside if another disk has just verified its own, and else
    /// stays; it does without `ask`.
    async fn judge(self: &Arc<Self>, content: ContentId, look: Look, ask: bool) -> FsResult<Fate> {
        let error = match look {
            Look::Absent => return Ok(Fate::Absent),
            Look::Whole => return Ok(Fate::Whole),
            // The store has noted it: nobody relies on it while others are asked.
            Look::Bad(error) => error,
        };
        let with = |what: &str| FsError::new(error.errno, format!("{}; {what}", error.message));
        if !ask {
            return Ok(Fate::Stays(with("it stays: there is too much of that, the disk may be failing")));
        }
        if !self.is_whole_elsewhere(content).await {
            return Ok(Fate::Stays(with("it stays, for no other disk says that it has it whole")));
        }
        let unreadable = self.suspects.lock().bad < PROBLEMS_MAX;
        let net = self.clone();
        let setting = tokio::task::spawn_blocking(move || net.engine.store.suspect(content, unreadable)).await;
        match setting.map_err(|_| FsError::from(Errno::EIO))? {
            Ok(Suspect::SetAside(name)) => {
                self.suspects.lock().bad += 1;
                let error = with(&format!("it is set aside, as {name}"));
                tracing::warn!("{}", error.message);
                Ok(Fate::SetAside(error))
            }
            Ok(Suspect::Absent) => Ok(Fate::Absent),
            Ok(Suspect::Whole) => Ok(Fate::Whole),
            Err(error) => Ok(Fate::Stays(error)),
        }
    }

    /// Look at what a disk has reported. How long that took of the disk's time.
    async fn look_at_reported(self: &Arc<Self>, by: DiskId, content: ContentId) -> Duration {
        let (look, read) = self.look(content).await;
        if by != self.engine.folder.disk_id() {
            self.suspects.lock().allowance.spend(read, Instant::now());
        }
        let fate = async { self.judge(content, look?, true).await };
        if let Err(error) = fate.await.map(|fate| self.tell_fate(by, content, fate)) {
            tracing::debug!("content {content} cannot be looked at: {error}");
        }
        read
    }

    fn tell_fate(&self, by: DiskId, content: ContentId, fate: Fate) {
        match fate {
            Fate::SetAside(_) => {}
            Fate::Absent => self.suspects.lock().reported.lengthen(&content),
            Fate::Whole => {
                self.suspects.lock().reported.lengthen(&content);
                self.log.once("suspect", &by.to_hex(), || {
                    let by = by.to_hex();
                    tracing::info!(
                        "content {content} is whole here, of which disk {} got no good bytes",
                        short_id(&by)
                    );
                });
            }
            Fate::Stays(error) => {
                self.suspects.lock().reported.lengthen(&content);
                self.log.once("damaged", &content.to_hex(), || tracing::warn!("{error}"));
            }
        }
    }
}

/// The other disks, for a scrub that runs on a thread of its own.
pub struct Elsewhere(Arc<Net>, Handle, CancellationToken);

impl Elsewhere {
    /// On the runtime. The scrub ends early when `given_up` is cancelled.
    pub fn new(net: &Arc<Net>, given_up: CancellationToken) -> Self {
        Self(net.clone(), Handle::current(), given_up)
    }
}

impl Others for Elsewhere {
    fn say_they_hold(&self, content: ContentId) -> bool {
        !self.0.holders(content).is_empty()
    }

    fn judge(&self, content: ContentId, ask: bool) -> FsResult<Fate> {
        self.1.block_on(async { self.0.judge(content, self.0.look(content).await.0?, ask).await })
    }

    fn is_awaited(&self) -> bool {
        !self.2.is_cancelled()
    }
}

/// Look at what is reported, for as long as the network runs.
pub(super) async fn look_at_suspects(net: Arc<Net>) {
    let looking = async {
        let me = net.engine.folder.disk_id();
        let mut again_at = Instant::now() + AGAIN;
        loop {
            let now = Instant::now();
            let pause = net.suspects.lock().pause(now).min(again_at.saturating_duration_since(now));
            let _ = timeout(pause, net.suspected.notified()).await; // there may be something to do in any case
            let now = Instant::now();
            if again_at <= now {
                again_at = now + AGAIN;
                net.suspects.lock().look_again(me, &net.engine.store.damaged(), now);
            }
            loop {
                let Some((by, content)) = net.suspects.lock().next(me, Instant::now()) else { break };
                let read = net.look_at_reported(by, content).await;
                net.suspects.lock().looked_at = None;
                tokio::time::sleep(read.min(READS)).await;
            }
        }
    };
    tokio::select! {
        () = looking => {}
        () = net.stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(n: usize) -> ContentId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        ContentId(id)
    }

    #[test]
    fn who_lies_costs_little() {
        let (liar, other, now) = (DiskId([1; 32]), DiskId([2; 32]), Instant::now());
        let mut suspects = Suspects::default();
        let taken = (0..1000).filter(|n| suspects.report(liar, content(*n), now)).count();
        assert_eq!(taken, WAITING_EACH);
        // Others are heard, and nothing twice within some minutes, whoever says it.
        assert!(suspects.report(other, content(5000), now) && !suspects.report(other, content(0), now));
        suspects.waiting.clear();
        assert!(!suspects.report(other, content(5000), now) && !suspects.report(liar, content(0), now));
        assert!(suspects.report(liar, content(0), now + AGAIN));
        for n in 0..2 * WAITING_MAX {
            suspects.report(DiskId([(n % 250) as u8; 32]), content(10_000 + n), now);
        }
        assert_eq!(suspects.waiting.len(), WAITING_MAX);
        // What was read for others counts; what this disk has found itself does not wait for that.
        let mut suspects = Suspects::default();
        assert!(suspects.report(liar, content(0), now) && suspects.report(other, content(1), now));
        suspects.allowance.spend(Duration::from_secs(3600), now);
        assert_eq!(suspects.next(liar, now), Some((liar, content(0))));
        assert_eq!((suspects.next(liar, now), suspects.pause(now)), (None, AGAIN));
        assert_eq!(suspects.next(liar, now + Duration::from_secs(36_000)), Some((other, content(1))));
        // What is remembered has a bound, and is forgotten in time.
        let mut recently = Recently::default();
        // Nobody is kept out by that: the oldest half goes.
        assert!((0..3 * REMEMBERED_MAX).all(|n| recently.may(n, now)) && recently.0.len() <= REMEMBERED_MAX);
        assert!(!recently.may(3 * REMEMBERED_MAX - 1, now));
        let later = now + AGAIN;
        assert!(recently.may(0, later) && !recently.may(0, later));
        // What was in vain is done less and less often, and once an hour at least.
        recently.lengthen(&0);
        assert!(!recently.may(0, later + AGAIN) && recently.may(0, later + 2 * AGAIN));
        (0..20).for_each(|_| recently.lengthen(&0));
        assert!(recently.may(0, later + 2 * AGAIN + AGAIN_MAX));
    }

    /// With this many, those at the end would never be looked at: the others are due again before it is their turn.
    #[test]
    fn what_cannot_be_mended_does_not_keep_out_the_rest() {
        let (me, begin) = (DiskId([1; 32]), Instant::now());
        let mut damaged: Vec<ContentId> = (0..300).map(content).collect();
        damaged.sort_unstable();
        let (mut suspects, mut seen) = (Suspects::default(), std::collections::HashSet::new());
        for round in 0..2 * damaged.len().div_ceil(WAITING_EACH) as u32 {
            let now = begin + AGAIN * round;
            suspects.look_again(me, &damaged, now);
            while let Some((_, content)) = suspects.next(me, now) {
                suspects.reported.lengthen(&content);
                seen.insert(content);
            }
        }
        assert_eq!(seen.len(), damaged.len());
    }
}
