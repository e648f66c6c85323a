//! What this disk knows of the others: who is connected, what they last said of themselves, and when to try again.
//! Pure bookkeeping behind one mutex; nothing here waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::DiskId;
use delugefs_proto::peer_pb::About;
use nix::errno::Errno;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::ABOUT_EVERY;
use super::said::Brief;

/// Pause before the first new try; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause between tries.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// A connection on which two disks talk.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// Tells links apart.
    pub id: u64,
    /// Ends it.
    pub token: CancellationToken,
    /// Whether we opened it.
    pub ours: bool,
    /// It is to end, as it is not needed.
    pub parting: Arc<Notify>,
}

/// What becomes of a link that has greeted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It is the one on which the two disks talk.
    Kept,
    /// They talk on another one.
    Spare,
    /// Another process with the same key is connected: one of the two is a copy of the disk. Who came first stays.
    Copy,
}

/// What it meant that somebody is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Still {
    /// That was known, or it says so itself.
    Old,
    There,
    /// It had been away.
    Arrived,
    /// What it said before is not known here.
    Unknown,
}

/// Another disk.
#[derive(Debug, Default)]
pub(super) struct Other {
    pub about: Option<About>,
    /// Of that.
    brief: Option<Brief>,
    pub link: Option<Link>,
    /// Since when this disk need not be met.
    spare_since: Option<Instant>,
    /// The link ends, and the disk is there still.
    pub parts: bool,
    pub last_seen: Option<Instant>,
    /// The state it announced last.
    pub state: Option<git2::Oid>,
    /// The newest change of this disk that is in the state taken from it last.
    pub has_of_ours: u64,
    /// Why the last try failed.
    pub error: Option<String>,
    pub failures: u32,
    pub next_try: Option<Instant>,
    /// A try of ours has not ended, see [`Other::begin`].
    trying: bool,
    /// When somebody else last had news of it.
    sighted: Option<Instant>,
    /// When it last failed to give a content, unless it has given one since.
    failed_to_give: Option<Instant>,
    /// When it was lately said that it is connected.
    said: Vec<Instant>,
}

/// So often in so long it is said that a disk is connected, and that it is not: it can come and go as often as it likes.
const SAID_MAX: usize = 10;
const SAID_IN: Duration = Duration::from_secs(600);

/// So long a disk that failed to give a content is asked for others only where nobody else has them.
const DOUBT: Duration = Duration::from_secs(60);

/// A link that is not needed any more is kept for so long: what is needed changes while disks come and go.
const LINGERS: Duration = Duration::from_secs(60);
/// So many are closed at once.
const PARTINGS: usize = 4;

/// So long after the last news of a disk it is taken to be there. Every disk has news of itself more often.
const SIGHTED: Duration = Duration::from_secs(4 * ABOUT_EVERY.as_secs() + 5);

impl Other {
    /// Whether it is to be met now. If so a try begins, and lasts until [`Other::tried`]: while it dials and talks, and whatever
    /// the other end opens meanwhile.
    pub fn begin(&mut self, now: Instant) -> bool {
        let may_try = self.link.is_none() && !self.trying && self.next_try.is_none_or(|at| at <= now);
        self.trying |= may_try;
        may_try
    }

    /// It says this of itself.
    pub fn says(&mut self, about: About) {
        self.brief = Some(Brief::of(&about));
        self.about = Some(about);
    }

    /// It says what it said before, but for what is brief. Whether that is known here.
    pub fn says_still(&mut self, brief: Brief) -> bool {
        let Some(about) = self.about.as_ref().filter(|_| self.brief.is_some_and(|known| brief.continues(&known)))
        else {
            return false;
        };
        self.about = Some(brief.applied_to(about));
        self.brief = Some(brief);
        true
    }

    /// The try has ended: it failed, or the link is over, or was one too many.
    pub fn tried(&mut self, met: FsResult<()>) {
        self.trying = false;
        if let Err(error) = met {
            self.failed(&error);
        }
    }

    fn is_sighted(&mut self) {
        self.sighted = Some(Instant::now());
        self.last_seen = self.sighted;
        if let Some(state) = self.brief.and_then(|brief| brief.state) {
            self.state = Some(state);
        }
    }

    fn failed(&mut self, error: &FsError) {
        self.error = Some(error.to_string());
        if error.errno == Errno::EEXIST {
            self.failures = self.failures.max(10); // a copy of a disk: a person must do something
        }
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures += 1;
        self.next_try = Some(Instant::now() + pause);
    }
}

/// All others.
#[derive(Debug)]
pub(super) struct Table {
    me: DiskId,
    pub disks: HashMap<DiskId, Other>,
}

impl Table {
    pub fn new(me: DiskId) -> Self {
        Self { me, disks: HashMap::new() }
    }

    /// A link has greeted. When both ends opened one at the same time, both keep the one that the disk with the smaller id
    /// opened.
    pub fn connect(&mut self, disk: DiskId, link: Link, about: About) -> Met {
        let preferred = |link: &Link| link.ours == (self.me < disk);
        let other = self.disks.entry(disk).or_default();
        if let Some(old) = &other.link {
            let is_same = other.about.as_ref().is_none_or(|old| old.run == about.run);
            if !is_same && !old.token.is_cancelled() {
                return Met::Copy;
            }
            if preferred(old) && !preferred(&link) && !old.token.is_cancelled() {
                return Met::Spare;
            }
            old.token.cancel();
        }
        other.link = Some(link);
        (other.spare_since, other.parts) = (None, false);
        other.says(about);
        other.last_seen = Some(Instant::now());
        other.sighted = None;
        other.error = None;
        other.failures = 0;
        other.next_try = None;
        other.failed_to_give = None;
        Met::Kept
    }

    /// Whether it is to be said that a disk is connected now; `Some(true)`: for the last time in a while.
    pub fn say(&mut self, disk: DiskId, now: Instant) -> Option<bool> {
        let said = &mut self.disks.entry(disk).or_default().said;
        said.retain(|at| now.saturating_duration_since(*at) < SAID_IN);
        let may = said.len() < SAID_MAX;
        may.then(|| {
            said.push(now);
            said.len() == SAID_MAX
        })
    }

    /// A link has ended. Whether it was the one in use.
    pub fn disconnect(&mut self, disk: DiskId, id: u64) -> bool {
        let Some(other) = self.disks.get_mut(&disk) else { return false };
        let current = other.link.as_ref().is_some_and(|link| link.id == id);
        if current {
            other.link = None;
            other.last_seen = Some(Instant::now());
            other.sighted = other.last_seen.filter(|_| other.parts);
            other.next_try = Some(Instant::now() + PAUSE_MIN);
        }
        current
    }

    /// Those that are to be met have been. Whom of the others this disk has called, and need not hear from any more: each was to be met once, and
    /// with everybody who comes it is others. Who calls wants to meet this one.
    pub fn begin_parting(&mut self, chosen: &[DiskId], now: Instant) -> Vec<DiskId> {
        let mut spare = Vec::new();
        for (disk, other) in &mut self.disks {
            let is_spare = other.link.as_ref().is_some_and(|link| link.ours) && chosen.binary_search(disk).is_err();
            // An older one would take this one for gone.
            if !is_spare || !other.about.as_ref().is_some_and(|about| about.knows_still) {
                other.spare_since = None;
            } else if now >= *other.spare_since.get_or_insert(now) + LINGERS && !other.parts {
                spare.push(*disk);
            }
        }
        spare.truncate(PARTINGS);
        spare
    }

    pub fn is_connected(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|other| other.link.is_some())
    }

    /// Whether a disk is there, connected with this one or with others.
    pub fn is_there(&self, disk: DiskId) -> bool {
        let was_sighted = |other: &Other| other.sighted.is_some_and(|at| at.elapsed() < SIGHTED);
        self.disks.get(&disk).is_some_and(|other| other.link.is_some() || was_sighted(other))
    }

    /// A disk was asked for a content; whether it gave it.
    pub fn asked(&mut self, disk: DiskId, gave: bool, now: Instant) {
        if let Some(other) = self.disks.get_mut(&disk) {
            other.failed_to_give = (!gave).then_some(now);
        }
    }

    /// Whether a disk failed when it was last asked for a content, a short time ago.
    pub fn is_in_doubt(&self, disk: DiskId, now: Instant) -> bool {
        let failed = self.disks.get(&disk).and_then(|other| other.failed_to_give);
        failed.is_some_and(|at| now.saturating_duration_since(at) < DOUBT)
    }

    /// Somebody says what a disk said of itself. Whether it had been away.
    pub fn sight(&mut self, disk: DiskId, about: &About) -> bool {
        let was_there = self.is_there(disk);
        let other = self.disks.entry(disk).or_default();
        let order = |about: &About| (about.epoch, about.uptime_s);
        let is_news = other.about.as_ref().is_none_or(|known| order(known) < order(about));
        if !is_news || other.link.is_some() {
            return false;
        }
        other.says(about.clone());
        other.is_sighted();
        !was_there
    }

    /// The same in brief.
    pub fn sight_still(&mut self, disk: DiskId, brief: Brief) -> Still {
        let was_there = self.is_there(disk);
        let Some(other) = self.disks.get_mut(&disk) else { return Still::Unknown };
        let Some(known) = other.brief else { return Still::Unknown };
        if other.link.is_some() || known.order() >= brief.order() {
            return Still::Old;
        }
        if !other.says_still(brief) {
            return Still::Unknown;
        }
        other.is_sighted();
        if was_there { Still::There } else { Still::Arrived }
    }

    /// What the disks that are there said of themselves, but one.
    pub fn sightings(&self, but: DiskId) -> impl Iterator<Item = (DiskId, &About, Brief)> {
        let there = self.disks.iter().filter(move |(disk, _)| **disk != but && self.is_there(**disk));
        there.filter_map(|(disk, other)| Some((*disk, other.about.as_ref()?, other.brief?)))
    }

    /// Close the links of those who are not members any more.
    pub fn retain(&self, is_member: impl Fn(DiskId) -> bool) {
        for (disk, other) in &self.disks {
            if let Some(link) = other.link.as_ref().filter(|_| !is_member(*disk)) {
                link.token.cancel();
            }
        }
    }
}

/// So many other disks or fewer: everybody meets everybody.
pub(super) const ALL_MAX: usize = 8;

/// Whom to meet: in a small cluster all; in a large one those that follow at distances 1, 2, 4 … in the circle of all ids,
/// so that news reaches everybody in a few steps and each holds a few connections. Of those at a distance that cannot be
/// reached, the next that may be.
pub(super) fn whom_to_meet(me: DiskId, all: &[DiskId], is_hopeless: impl Fn(DiskId) -> bool) -> Vec<DiskId> {
    let mut others: Vec<DiskId> = all.iter().copied().filter(|disk| *disk != me).collect();
    others.sort_unstable();
    others.dedup();
    if others.len() <= ALL_MAX {
        return others;
    }
    let first = others.partition_point(|disk| *disk < me);
    let count = others.len();
    let mut chosen = Vec::new();
    let mut distance = 1;
    while distance <= count {
        let candidates = (distance - 1..(distance * 2 - 1).min(count)).map(|step| others[(first + step) % count]);
        let mut tried = candidates.clone().filter(|disk| !is_hopeless(*disk));
        chosen.extend(tried.next().or_else(|| candidates.clone().next()));
        distance *= 2;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u16) -> DiskId {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        DiskId(id)
    }

    fn link(ours: bool) -> Link {
        Link { id: delugefs_proto::ids::random_u64(), token: CancellationToken::new(), ours, parting: Arc::default() }
    }

    #[test]
    fn who_comes_and_goes_is_not_said_each_time() {
        let (mut table, begin) = (Table::new(id(1)), Instant::now());
        let said: Vec<bool> = (0..100).filter_map(|_| table.say(id(2), begin)).collect();
        assert_eq!((said.len(), said.iter().position(|is_last| *is_last)), (SAID_MAX, Some(SAID_MAX - 1)));
        assert_eq!(table.say(id(3), begin), Some(false), "another one");
        assert_eq!((table.say(id(2), begin), table.say(id(2), begin + SAID_IN)), (None, Some(false)));
    }

    #[test]
    fn both_ends_keep_the_same_of_two_links() {
        let (mut small, mut large) = (Table::new(id(1)), Table::new(id(2)));
        let by_small = (link(true), link(false));
        let by_large = (link(false), link(true));
        // Each end sees its own first.
        assert_eq!(small.connect(id(2), by_small.0.clone(), About::default()), Met::Kept);
        assert_eq!(large.connect(id(1), by_large.1.clone(), About::default()), Met::Kept);
        assert_eq!(small.connect(id(2), by_large.0.clone(), About::default()), Met::Spare);
        assert_eq!(large.connect(id(1), by_small.1.clone(), About::default()), Met::Kept);
        assert!(by_large.1.token.is_cancelled() && !by_small.1.token.is_cancelled());
        assert!(small.is_connected(id(2)) && large.is_connected(id(1)));
        assert!(!large.disconnect(id(1), by_large.1.id) && large.is_connected(id(1)));
        assert!(large.disconnect(id(1), by_small.1.id) && !large.is_connected(id(1)));
    }

    /// Its link was one too many, or the other end had opened one before it got so far.
    #[test]
    fn who_was_met_otherwise_is_tried_again_when_that_has_ended() {
        for is_early in [true, false] {
            let mut table = Table::new(id(2));
            let start = Instant::now();
            let later = start + PAUSE_MAX;
            let begin = |table: &mut Table, at| table.disks.entry(id(1)).or_default().begin(at);
            let theirs = link(false);
            if is_early {
                assert_eq!(table.connect(id(1), theirs.clone(), About::default()), Met::Kept);
                assert!(!begin(&mut table, later), "they talk");
                assert!(table.disconnect(id(1), theirs.id));
            }
            assert!(begin(&mut table, later) && !begin(&mut table, later), "one at a time");
            assert_eq!(table.connect(id(1), theirs.clone(), About::default()), Met::Kept);
            assert_eq!(table.connect(id(1), link(true), About::default()), Met::Spare);
            table.disks.get_mut(&id(1)).unwrap().tried(Ok(()));
            assert!(!begin(&mut table, later), "they talk");
            assert!(table.disconnect(id(1), theirs.id));
            assert!(!begin(&mut table, start) && begin(&mut table, later + PAUSE_MAX));
            table.disks.get_mut(&id(1)).unwrap().tried(Err(Errno::EHOSTUNREACH.into()));
            assert!(!begin(&mut table, start) && begin(&mut table, later + 2 * PAUSE_MAX));
        }
    }

    #[test]
    fn of_two_copies_of_a_disk_the_first_stays_until_it_is_gone() {
        let mut table = Table::new(id(1));
        let about = |run| About { run, ..About::default() };
        let first = link(true);
        assert_eq!(table.connect(id(2), first.clone(), about(7)), Met::Kept);
        for ours in [true, false] {
            assert_eq!(table.connect(id(2), link(ours), about(8)), Met::Copy);
        }
        assert!(!first.token.is_cancelled());
        assert!(table.disconnect(id(2), first.id));
        assert_eq!(table.connect(id(2), link(false), about(8)), Met::Kept);
    }

    #[test]
    fn who_is_heard_of_is_there() {
        let said = |epoch, uptime_s| About { epoch, uptime_s, free_bytes: epoch, ..About::default() };
        let mut table = Table::new(id(1));
        assert!(!table.is_there(id(2)) && table.sightings(id(1)).next().is_none());
        assert!(table.sight(id(2), &said(7, 10)) && table.is_there(id(2)) && !table.is_connected(id(2)));
        assert_eq!((table.sightings(id(1)).count(), table.sightings(id(2)).count()), (1, 0));
        // News of one that was there are no arrival; and what was said before is no news.
        assert!(!table.sight(id(2), &said(7, 20)) && !table.sight(id(2), &said(7, 10)));
        assert_eq!(table.disks[&id(2)].about.as_ref().unwrap().uptime_s, 20);
        table.disks.get_mut(&id(2)).unwrap().sighted = Instant::now().checked_sub(SIGHTED);
        assert!(!table.is_there(id(2)) && table.sightings(id(1)).next().is_none());
        assert!(!table.sight(id(2), &said(7, 20)) && !table.is_there(id(2)), "old news wake nobody");
        assert!(table.sight(id(2), &said(8, 0)) && table.is_there(id(2)), "started anew");
        // Itself knows best, and a connection that ends is the end.
        let link = link(true);
        table.connect(id(2), link.clone(), said(8, 5));
        assert!(!table.sight(id(2), &said(9, 0)) && table.disks[&id(2)].about.as_ref().unwrap().epoch == 8);
        assert!(table.disconnect(id(2), link.id) && !table.is_there(id(2)));
    }

    #[test]
    fn links_that_are_not_needed_any_more_end_after_a_while() {
        let (mut table, start) = (Table::new(id(1)), Instant::now());
        let about = |knows_still| About { knows_still, ..About::default() };
        for n in 2..20 {
            // One is an older version, and one has called.
            assert_eq!(table.connect(id(n), link(n != 3), about(n != 2)), Met::Kept);
        }
        let chosen = [id(10), id(11)];
        assert_eq!(table.begin_parting(&chosen, start), []);
        assert_eq!(table.begin_parting(&chosen, start + LINGERS / 2), []);
        // One that is to be met again meanwhile stays.
        assert_eq!(table.begin_parting(&[id(10), id(11), id(12)], start + LINGERS / 2), []);
        let mut gone = Vec::new();
        for _ in 0..10 {
            let parting = table.begin_parting(&chosen, start + LINGERS);
            assert!(parting.len() <= PARTINGS);
            for disk in parting {
                let other = table.disks.get_mut(&disk).unwrap();
                other.parts = true;
                let link = other.link.clone().unwrap();
                assert!(table.disconnect(disk, link.id) && !table.is_connected(disk) && table.is_there(disk));
                gone.push(disk);
            }
        }
        gone.sort_unstable();
        let spare = (4..20).filter(|n| ![10, 11, 12].contains(n)).map(id);
        assert_eq!(gone, spare.collect::<Vec<_>>());
        // It is missed when there are no news of it; and who ends without a word is gone.
        table.disks.get_mut(&id(4)).unwrap().sighted = start.checked_sub(SIGHTED);
        assert!(!table.is_there(id(4)));
        assert_eq!(table.connect(id(5), link(true), about(true)), Met::Kept);
        let link = table.disks[&id(5)].link.clone().unwrap();
        assert!(table.disconnect(id(5), link.id) && !table.is_there(id(5)));
    }

    #[test]
    fn who_gave_nothing_is_in_doubt_for_a_while() {
        let (mut table, now) = (Table::new(id(1)), Instant::now());
        table.connect(id(2), link(true), About::default());
        let asked = |table: &mut Table, gave| table.asked(id(2), gave, now);
        assert!(!table.is_in_doubt(id(2), now));
        asked(&mut table, false);
        assert!(
            table.is_in_doubt(id(2), now) && !table.is_in_doubt(id(2), now + DOUBT) && !table.is_in_doubt(id(3), now)
        );
        asked(&mut table, true);
        assert!(!table.is_in_doubt(id(2), now));
        asked(&mut table, false);
        table.connect(id(2), link(true), About::default());
        assert!(!table.is_in_doubt(id(2), now), "it may have been started anew");
    }

    #[test]
    fn few_connections_reach_everybody_in_few_steps() {
        let all: Vec<DiskId> = (0..100).map(id).collect();
        assert_eq!(whom_to_meet(id(3), &all[..9], |_| false).len(), 8);
        let meets = |me: DiskId| whom_to_meet(me, &all, |disk| disk.0[1] % 3 == 0 && disk != id(0));
        let mut reached = vec![id(1)];
        for step in 0..8 {
            let more: Vec<DiskId> = reached.iter().flat_map(|disk| meets(*disk)).collect();
            assert!(more.len() <= reached.len() * 7, "step {step}");
            reached.extend(more);
            reached.sort_unstable();
            reached.dedup();
        }
        let wanted = all.iter().filter(|disk| disk.0[1] % 3 != 0 || **disk == id(0));
        assert!(wanted.into_iter().all(|disk| reached.contains(disk)));
    }
}
