//! What is true of every copy, and what took those that are gone: an event, a user, or a decision of the policy. Who decides sees nothing
//! of this.
//!
//! A copy that a decision lets go is measured by what is true then: so many others must be left as it was to rely on. Left is a copy
//! whose bytes are right, on a disk that keeps what it promised. The policy is excused for such a keeper, and for no other disk, whose
//! copy an event destroyed after it had promised, or before that in a way in which nobody could know it (`hollow`).

use std::collections::BTreeMap;

use super::super::PROMISE_S;
use super::world::{Place, Set, World, has};

/// The longest that a promise may be relied on, in true seconds: for so long it holds by the fastest clock.
pub const PROMISE_MIN_S: u64 = PROMISE_S * 1000 / 1045;

/// As it was given.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    pub keeper: usize,
    /// True time, and the order of all that happens.
    pub t: u64,
    pub moment: u64,
    /// The keeper says in good faith, or as a liar, what is not so.
    pub hollow: bool,
}

/// A copy that is about to go, or has gone, by a decision.
#[derive(Clone, Debug)]
pub struct Farewell {
    pub disk: usize,
    pub content: usize,
    /// So many copies must be left.
    pub needed: u32,
    pub keepers: Vec<Promise>,
}

/// What happened to a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Written,
    Copied,
    /// With an older image of its disk.
    Restored,
    /// By an event; or by a user, who removed the files that have it.
    Destroyed(&'static str),
    LetGo {
        excused: bool,
    },
}

#[derive(Default)]
pub struct Oracle {
    moment: u64,
    /// When an event last destroyed the copy of a content on a disk.
    destroyed: BTreeMap<(usize, usize), u64>,
    /// The last promise of each copy.
    given: BTreeMap<(usize, usize), Promise>,
    /// Copies that went by decisions, and when, by content.
    gone: BTreeMap<usize, Vec<(u64, Farewell)>>,
    /// All that happened to the copies of a content: time, disk, what.
    stories: BTreeMap<usize, Vec<(u64, usize, Fate)>>,
    /// Contents of which no copy was left at the last look.
    none_left: Set,
}

impl Oracle {
    pub fn next_moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// Disks that have promised something which others may rely on still.
    pub fn bound(&self, t: u64) -> Vec<usize> {
        let bound = self.given.iter().filter(|(_, promise)| promise.t + PROMISE_MIN_S > t);
        bound.map(|((disk, _), _)| *disk).collect()
    }

    fn was_destroyed_since(&self, promise: &Promise, content: usize) -> bool {
        self.destroyed.get(&(promise.keeper, content)).is_some_and(|at| *at > promise.moment)
    }
}

impl World {
    /// Whether a copy exists for those who keep to the rules.
    pub fn is_true(&self, disk: usize, content: usize) -> bool {
        let disk = &self.disks[disk];
        has(disk.good, content) && !disk.revoked && disk.place != Place::Lost
    }

    pub fn tell(&mut self, disk: usize, content: usize, fate: Fate) {
        let t = self.t;
        self.oracle.stories.entry(content).or_default().push((t, disk, fate));
    }

    /// An event takes the true bytes of these contents from a disk.
    pub fn destroy(&mut self, disk: usize, contents: Set, why: &'static str) {
        let hit = self.disks[disk].good & contents;
        self.give_up(disk, hit, why);
        self.disks[disk].good &= !contents;
    }

    /// These copies do not count any more from now on.
    pub fn give_up(&mut self, disk: usize, contents: Set, why: &'static str) {
        let moment = self.oracle.next_moment();
        for content in (0..self.contents.len()).filter(|c| has(contents, *c)) {
            self.oracle.destroyed.insert((disk, content), moment);
            self.tell(disk, content, Fate::Destroyed(why));
        }
    }

    /// A keeper has given its word.
    pub fn promise(&mut self, keeper: usize, content: usize) -> Promise {
        let hollow = !self.is_true(keeper, content);
        let (t, moment) = (self.t, self.oracle.next_moment());
        let disk = &self.disks[keeper];
        // Who looks sees whether there is a file, and knows what was found damaged.
        let seems_there = has(disk.holds & !disk.missing & !disk.suspect, content);
        assert!(seems_there, "at {t} s: disk {keeper} promised content {content}, which it knows not to have");
        let promise = Promise { keeper, t, moment, hollow };
        self.oracle.given.insert((keeper, content), promise);
        promise
    }

    fn is_excused(&self, promise: &Promise, content: usize) -> bool {
        promise.hollow || self.oracle.was_destroyed_since(promise, content)
    }

    /// A true copy on a disk that is not lazy, or has become so only after it promised.
    fn is_left(&self, disk: usize, content: usize, promise: Option<&Promise>) -> bool {
        let truth = &self.disks[disk];
        self.is_true(disk, content) && (!truth.lazy || promise.is_some_and(|promise| truth.lazy_since > promise.moment))
    }

    /// A disk begins to let a copy go: those it relies on have it.
    pub fn check_begin(&mut self, farewell: &Farewell) {
        let Farewell { disk, content, needed, keepers } = farewell;
        let mut distinct: Vec<usize> = keepers.iter().map(|promise| promise.keeper).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert!(*needed > 0 && distinct.len() >= *needed as usize && !distinct.contains(disk), "{farewell:?}");
        if self.newest(*content).0 == 0 {
            return;
        }
        for promise in keepers {
            let ok = self.is_left(promise.keeper, *content, Some(promise)) || self.is_excused(promise, *content);
            assert!(ok, "at {} s: disk {} broke {promise:?}\n{}", self.t, promise.keeper, self.story(*content));
        }
    }

    /// A copy has gone by a decision, perhaps long after that began: as many are left as it was to rely on, or as others that went since
    /// then were to.
    pub fn check_gone(&mut self, farewell: Farewell) {
        let Farewell { disk, content, mut needed, .. } = farewell;
        let is_bound = |promise: &&Promise| promise.t + PROMISE_MIN_S > self.t;
        if let Some(promise) = self.oracle.given.get(&(disk, content)).filter(is_bound) {
            panic!("at {} s: disk {disk} lets content {content} go: {promise:?}\n{}", self.t, self.story(content));
        }
        let mut relied: BTreeMap<usize, Promise> = BTreeMap::new();
        let first = farewell.keepers.iter().map(|promise| promise.moment).min().unwrap_or(0);
        let since = self.oracle.gone.get(&content).into_iter().flatten().filter(|(moment, _)| *moment > first);
        for other in since.map(|(_, other)| other) {
            needed = needed.min(other.needed);
            relied.extend(other.keepers.iter().map(|promise| (promise.keeper, *promise)));
        }
        relied.extend(farewell.keepers.iter().map(|promise| (promise.keeper, *promise)));
        relied.remove(&disk);
        let left = relied.values().filter(|promise| self.is_left(promise.keeper, content, Some(promise))).count();
        let excuses = |promise: &&Promise| !self.is_true(promise.keeper, content) && self.is_excused(promise, content);
        let excused = relied.values().filter(excuses).count();
        let is_wanted = self.newest(content).0 > 0;
        if is_wanted && left + excused < needed as usize {
            panic!(
                "at {} s: content {content} was let go by disk {disk}; {left} copies are left, {needed} must be: {farewell:?}\n{}",
                self.t,
                self.story(content)
            );
        }
        let is_excused = is_wanted && left < needed as usize;
        self.totals.excused += u64::from(is_excused);
        self.totals.excused_last += u64::from(is_excused && left == 0);
        self.tell(disk, content, Fate::LetGo { excused: is_excused });
        let moment = self.oracle.next_moment();
        self.oracle.gone.entry(content).or_default().push((moment, farewell));
    }

    /// After every step of time, of every content: the last true copy was taken by an event, or by a user.
    pub fn check_step(&mut self) {
        let kept = self.disks.iter().filter(|disk| !disk.revoked && disk.place != Place::Lost);
        let truly = kept.fold(0, |all: Set, disk| all | disk.good);
        let all: Set =
            if self.contents.len() == Set::BITS as usize { Set::MAX } else { (1 << self.contents.len()) - 1 };
        let lost = all & !truly & !self.oracle.none_left;
        for content in (0..self.contents.len()).filter(|c| has(lost, *c) && self.newest(*c).0 > 0) {
            let story = self.oracle.stories.get(&content).map_or(&[][..], |story| story);
            let taken = story.iter().rev().find(|(.., fate)| matches!(fate, Fate::Destroyed(_) | Fate::LetGo { .. }));
            let is_excused = taken.is_some_and(|(.., fate)| *fate != Fate::LetGo { excused: false });
            assert!(is_excused, "at {} s: the last copy of content {content} is gone\n{}", self.t, self.story(content));
        }
        self.oracle.none_left = all & !truly;
        for disk in &self.disks {
            assert_eq!(disk.good & !disk.holds, 0, "a copy that nobody knows of");
        }
    }

    /// What happened to the copies of a content, for who looks at a failure.
    pub fn story(&self, content: usize) -> String {
        let story = self.oracle.stories.get(&content).into_iter().flatten();
        let lines = story.map(|(t, disk, fate)| format!("  {t} s, disk {disk}: {fate:?}\n"));
        let wanted: Vec<(u32, u64)> = self.hosts.iter().map(|host| host.catalog[content]).collect();
        let last = lines.collect::<Vec<_>>();
        format!("wanted (number, edit), by host: {wanted:?}\n{}", last[last.len().saturating_sub(40)..].concat())
    }
}
