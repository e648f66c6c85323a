//! What a host remembers of its own disks' doings: fetches, refusals, and both sides of the promise protocol.
//!
//! ```text
//! host A, wants to let go of a copy on disk D      host B, disk K holds a copy too
//!   Decision::Confirm -> asking(K)  ---- ask --->   grant(K): looks into K's store; from now on
//!   promised(K), valid from when A asked  <------   K does not begin a trim for PROMISE_S
//!   Decision::Trim, enough promises
//!   begin_trim(D): promises still valid, D gave none itself; from now on D grants none
//!   stop_mirroring on D's worker ... end_trim(D)
//! ```
//!
//! Why no two trims can rely on each other: a disk that promised cannot begin a trim before the promise ends, and a
//! disk that began one grants nothing until it is over. So at any moment the copies that a trim relied on when it began
//! are there, or were themselves let go relying on as many others, none of which is on its way out. How long the worker
//! takes to delete does not matter. A promise counts from the asking at one end and from the granting at the other, so
//! it ends earlier for who relies on it; only the rates of the two clocks have to agree, to a tenth.
//!
//! The desk is lost with the supervisor, and stays behind when a disk moves to another host. Therefore a new desk, and
//! every disk new to a desk, neither grants nor trims for PROMISE_S: by then all that was agreed before has run out,
//! and a worker has finished or given up what it was told (give `stop_mirroring` a deadline of at most half of that).

use std::collections::{BTreeMap, BTreeSet};

use delugefs_proto::ids::{ContentId, DiskId};
use delugefs_proto::limits::TORRENT_MIN_BYTES;

use super::view::Disk;

/// How long a promise holds, in seconds. Part of the protocol, therefore no setting: see the module's last paragraph.
pub const PROMISE_S: u64 = 600;
/// How long to wait for the answer to a question, in seconds.
pub const ANSWER_S: u64 = 60;
/// How long a disk that failed to fetch a content is left alone with it, in seconds: twice as long after each further
/// failure, up to a time in which an administrator would still like to see that it is tried.
pub const FAILED_S: u64 = 60;
const FAILED_MAX_S: u64 = 6 * 3600;

/// Why a disk does not promise to keep a content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decline {
    /// It does not have it (its published holdings may say otherwise).
    NotHere,
    /// It is lazy, draining, read-only, forgotten or absent: nobody should rely on it.
    Unfit,
    /// This host knows a higher number of wanted copies, or no file that has this content.
    KnowsBetter,
    /// It is letting its own copy go.
    LettingGo,
    /// It came here, or its supervisor started, too recently.
    TooNew,
}

/// What another disk said when asked to keep its copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// Nothing so far.
    Pending,
    Promised,
    Declined,
}

/// Fetches of a content that came to nothing on a disk, one after the other.
#[derive(Clone, Copy, Debug)]
struct Failure {
    disk: DiskId,
    /// How many, since the content last could be fetched from somewhere else.
    count: u32,
    /// When the last one ended.
    last_s: u64,
}

impl Failure {
    /// When it may be tried again.
    fn until_s(&self) -> u64 {
        let pause_s = FAILED_S.checked_shl(self.count.saturating_sub(1)).unwrap_or(FAILED_MAX_S);
        self.last_s + pause_s.min(FAILED_MAX_S)
    }

    /// Who was not tried again for so long, because others always came first, is not put off any more. What is forgiven is forgotten
    /// after the pause: it is most of what was ever copied.
    fn is_known(&self, now_s: u64) -> bool {
        let more_s = if self.count == 0 { 0 } else { FAILED_MAX_S };
        self.until_s() + more_s > now_s
    }
}

/// All that is going on about one content.
#[derive(Clone, Debug, Default)]
struct Matter {
    fetches: Vec<(DiskId, u64)>,
    failures: Vec<Failure>,
    refusals: Vec<(DiskId, u64)>,
    answers: Vec<(DiskId, Answer, u64)>,
}

impl Matter {
    fn expire(&mut self, now_s: u64) -> bool {
        self.failures.retain(|failure| failure.is_known(now_s));
        self.refusals.retain(|(_, until_s)| *until_s > now_s);
        self.answers.retain(|(.., until_s)| *until_s > now_s);
        !(self.fetches.is_empty() && self.failures.is_empty() && self.refusals.is_empty() && self.answers.is_empty())
    }
}

/// Fetches under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Transfers {
    /// Of contents that travel as torrents.
    pub large: usize,
    /// What is still to come of them, in bytes.
    pub large_bytes: u64,
    /// Of the others; what is left of a large one counts as small in the end.
    pub small: usize,
}

impl Transfers {
    /// One more, of so many bytes.
    pub fn add(&mut self, bytes: u64) {
        if is_small(bytes) {
            self.small += 1;
        } else {
            self.large += 1;
            self.large_bytes = self.large_bytes.saturating_add(bytes);
        }
    }
}

/// Whether a content of so many bytes travels in one piece: many of them at once cost less than one torrent.
pub(super) fn is_small(bytes: u64) -> bool {
    bytes <= TORRENT_MIN_BYTES
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Desk {
    start_s: u64,
    arrivals: BTreeMap<DiskId, u64>,
    matters: BTreeMap<ContentId, Matter>,
    given: BTreeMap<(DiskId, ContentId), u64>,
    leaving: BTreeSet<(DiskId, ContentId)>,
}

impl Desk {
    /// Of a supervisor that starts now.
    pub fn new(now_s: u64) -> Self {
        Self {
            start_s: now_s,
            arrivals: BTreeMap::new(),
            matters: BTreeMap::new(),
            given: BTreeMap::new(),
            leaving: BTreeSet::new(),
        }
    }

    /// A worker of this disk registered here. Its fetches and trims of an earlier run have ended with that run.
    pub fn arrived(&mut self, disk: DiskId, now_s: u64) {
        self.arrivals.insert(disk, now_s);
        self.leaving.retain(|(leaving, _)| *leaving != disk);
        for matter in self.matters.values_mut() {
            matter.fetches.retain(|(fetching, _)| *fetching != disk);
            matter.failures.retain(|failure| failure.disk != disk);
        }
    }

    /// A disk of this host fetches a content; `left_bytes` are still to come. Repeat it to report progress.
    pub fn fetching(&mut self, disk: DiskId, content: ContentId, left_bytes: u64) {
        let fetches = &mut self.matters.entry(content).or_default().fetches;
        fetches.retain(|(fetching, _)| *fetching != disk);
        fetches.push((disk, left_bytes));
    }

    /// That fetch ended, one way or the other.
    pub fn fetch_ended(&mut self, disk: DiskId, content: ContentId) {
        if let Some(matter) = self.matters.get_mut(&content) {
            matter.fetches.retain(|(fetching, _)| *fetching != disk);
        }
    }

    /// A disk of this host refused to fetch a content, or failed to: leave it alone for [`FAILED_S`], for longer if that
    /// was so before, and let others have their turn first.
    pub fn failed(&mut self, disk: DiskId, content: ContentId, now_s: u64) {
        let failures = &mut self.matters.entry(content).or_default().failures;
        match failures.iter_mut().find(|failure| failure.disk == disk) {
            Some(known) => (known.count, known.last_s) = (known.count.saturating_add(1), now_s),
            None => failures.push(Failure { disk, count: 1, last_s: now_s }),
        }
    }

    /// What failed may go well now: `anew` says of a content, and of the moment at which a fetch of it last failed, whether
    /// other disks hold it since then, or one that does has come. It may be tried [`FAILED_S`] after that moment, like
    /// one that failed once.
    pub fn forgive(&mut self, anew: impl Fn(ContentId, u64) -> bool) {
        for (content, matter) in &mut self.matters {
            let changed = matter.failures.iter_mut().filter(|failure| anew(*content, failure.last_s));
            changed.for_each(|failure| failure.count = 0);
        }
    }

    /// A disk of this host is to be left alone with a content until then: it refused to let it go, say.
    pub fn refused(&mut self, disk: DiskId, content: ContentId, until_s: u64) {
        let refusals = &mut self.matters.entry(content).or_default().refusals;
        refusals.retain(|(refusing, _)| *refusing != disk);
        refusals.push((disk, until_s));
    }

    /// Another disk is being asked to keep its copy. Without an answer it counts as asked for [`ANSWER_S`].
    pub fn asking(&mut self, content: ContentId, disk: DiskId, now_s: u64) {
        self.answer(content, disk, Answer::Pending, now_s + ANSWER_S);
    }

    /// It promised to keep it for `lease_s`; `asked_s` is when the question left here.
    pub fn promised(&mut self, content: ContentId, disk: DiskId, asked_s: u64, lease_s: u64) {
        self.answer(content, disk, Answer::Promised, asked_s + lease_s - lease_s / 10);
    }

    /// It did not, or could not be asked: do not count on it, and do not ask again until then.
    pub fn declined(&mut self, content: ContentId, disk: DiskId, until_s: u64) {
        self.answer(content, disk, Answer::Declined, until_s);
    }

    fn answer(&mut self, content: ContentId, disk: DiskId, answer: Answer, until_s: u64) {
        let answers = &mut self.matters.entry(content).or_default().answers;
        answers.retain(|(answering, ..)| *answering != disk);
        answers.push((disk, answer, until_s));
    }

    /// Asked by another host (or by this one, for another disk): promise to keep a copy on a disk of this host.
    /// `holds` is what the worker found in its store just now, `own_wanted` the number of copies that this host knows
    /// to be wanted, `asked_wanted` what the other one knows.
    ///
    /// # Errors
    /// Why it does not; nothing has changed then. Otherwise the promise is given, and its duration in seconds returned.
    pub fn grant(
        &mut self,
        disk: &Disk,
        content: ContentId,
        holds: bool,
        own_wanted: Option<u32>,
        asked_wanted: u32,
        now_s: u64,
    ) -> Result<u64, Decline> {
        if !holds {
            return Err(Decline::NotHere);
        }
        if disk.lazy || disk.draining || disk.read_only || disk.forgotten || !disk.presence.is_here() {
            return Err(Decline::Unfit);
        }
        if own_wanted.is_none_or(|own| own == 0 || own > asked_wanted) {
            return Err(Decline::KnowsBetter);
        }
        if self.leaving.contains(&(disk.id, content)) {
            return Err(Decline::LettingGo);
        }
        if self.settled_s(disk.id) > now_s {
            return Err(Decline::TooNew);
        }
        self.given.insert((disk.id, content), now_s + PROMISE_S);
        Ok(PROMISE_S)
    }

    /// About to tell a worker of this host to let go of a copy, relying on these disks: the last check, and from now
    /// on the disk promises this content to nobody. `false` forbids it. Follow with [`Desk::end_trim`] once the worker
    /// has answered or its process has ended, not when merely the waiting did.
    #[must_use]
    pub fn begin_trim(&mut self, disk: DiskId, content: ContentId, relying_on: &[DiskId], now_s: u64) -> bool {
        let promised =
            |keeper: &DiskId| *keeper != disk && self.answer_of(content, *keeper, now_s) == Some(Answer::Promised);
        if relying_on.is_empty()
            || !relying_on.iter().all(promised)
            || self.bound_until_s(disk, content, now_s).is_some()
        {
            return false;
        }
        self.leaving.insert((disk, content))
    }

    /// The worker is done with it, or refused (then also tell [`Desk::refused`]).
    pub fn end_trim(&mut self, disk: DiskId, content: ContentId) {
        self.leaving.remove(&(disk, content));
    }

    /// Forgets what has run out. Changes no decision; call it now and then.
    pub fn expire(&mut self, now_s: u64) {
        self.matters.retain(|_, matter| matter.expire(now_s));
        self.given.retain(|_, until_s| *until_s > now_s);
        self.arrivals.retain(|_, arrived_s| *arrived_s + PROMISE_S > now_s);
    }

    /// Until when this disk may not begin to let this content go; `None` when it may.
    pub(super) fn bound_until_s(&self, disk: DiskId, content: ContentId, now_s: u64) -> Option<u64> {
        if self.leaving.contains(&(disk, content)) {
            return Some(u64::MAX);
        }
        let given_s = self.given.get(&(disk, content)).copied().unwrap_or(0);
        let refused_s = self.refused_until_s(disk, content, now_s).unwrap_or(0);
        Some(given_s.max(refused_s).max(self.settled_s(disk))).filter(|until_s| *until_s > now_s)
    }

    /// Until when this disk is to be left alone with this content.
    pub(super) fn refused_until_s(&self, disk: DiskId, content: ContentId, now_s: u64) -> Option<u64> {
        let matter = self.matters.get(&content)?;
        let refused = matter.refusals.iter().find(|(id, _)| *id == disk).map(|(_, until_s)| *until_s);
        let failed = matter.failures.iter().find(|failure| failure.disk == disk).map(Failure::until_s);
        refused.max(failed).filter(|until_s| *until_s > now_s)
    }

    /// How often a fetch of this content came to nothing on this disk, one after the other.
    pub(super) fn failures(&self, disk: DiskId, content: ContentId, now_s: u64) -> u32 {
        let failures = self.matters.get(&content).map_or(&[][..], |matter| &matter.failures);
        failures.iter().find(|failure| failure.disk == disk && failure.is_known(now_s)).map_or(0, |known| known.count)
    }

    /// The disks of this host that fetch this content now, and how many bytes are still to come.
    pub(super) fn fetchers(&self, content: ContentId) -> impl Iterator<Item = (DiskId, u64)> {
        self.matters.get(&content).into_iter().flat_map(|matter| matter.fetches.iter().copied())
    }

    /// The fetches on this host.
    pub(super) fn transfers(&self) -> Transfers {
        let mut transfers = Transfers::default();
        let all = self.matters.values().flat_map(|matter| &matter.fetches);
        // One that only waits for the catalog to say that it is done keeps no other from beginning.
        all.filter(|(_, left_bytes)| *left_bytes > 0).for_each(|(_, left_bytes)| transfers.add(*left_bytes));
        transfers
    }

    /// What the fetches of a disk still need of its free space, in bytes.
    pub(super) fn reserved_bytes(&self, disk: DiskId) -> u64 {
        self.matters
            .values()
            .flat_map(|matter| &matter.fetches)
            .filter(|(id, _)| *id == disk)
            .map(|(_, bytes)| *bytes)
            .fold(0, u64::saturating_add) // any member may say that a file is very long
    }

    pub(super) fn answer_of(&self, content: ContentId, disk: DiskId, now_s: u64) -> Option<Answer> {
        let answers = &self.matters.get(&content)?.answers;
        answers.iter().find(|(id, _, until_s)| *id == disk && *until_s > now_s).map(|(_, answer, _)| *answer)
    }

    /// When answers of a kind about this content run out, one after the other.
    pub(super) fn ends_s(&self, content: ContentId, kind: Answer, now_s: u64) -> impl Iterator<Item = u64> {
        let answers = self.matters.get(&content).into_iter().flat_map(|matter| &matter.answers);
        answers.filter(move |(_, answer, until_s)| *answer == kind && *until_s > now_s).map(|(.., until_s)| *until_s)
    }

    fn settled_s(&self, disk: DiskId) -> u64 {
        self.arrivals.get(&disk).copied().unwrap_or(0).max(self.start_s) + PROMISE_S
    }
}
