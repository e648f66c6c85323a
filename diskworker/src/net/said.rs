//! What was said on one link of the disks of the cluster, so that only what is new is said again. Each link begins with all, and carries its
//! messages in order; so what was said is known at the other end, and a disk that goes on as before costs two bytes: its number, and how
//! much longer it runs. Who misses something all the same asks for it ([`pb::StillWhat`]).
//!
//! News also go to those that have them: on each link that has not brought them itself.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use delugefs_proto::ids::DiskId;
use delugefs_proto::peer_pb::{self as pb, About};
use git2::Oid;
use prost::Message;

/// Disks that have numbers on a link. Of further ones all is said each time.
const NUMBERS_MAX: u32 = 4096;
/// Free space is said again when it has changed by this part of itself: it never rests, and nobody needs it as exactly.
const FREE_PART: u64 = 256;
/// All addresses are said anew in so many turns, some with each: the other end may have dropped what it was told.
const TURNS: usize = 60;

/// What changes all the time of what a disk says of itself, and a hash of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Brief {
    pub epoch: u64,
    pub uptime_s: u64,
    pub free_bytes: u64,
    pub state: Option<Oid>,
    rest: u64,
}

impl Brief {
    pub fn of(about: &About) -> Self {
        // What it can read is no matter of who hears of it.
        let rest = About { uptime_s: 0, free_bytes: 0, state: Vec::new(), knows_still: false, ..about.clone() };
        let mut hasher = DefaultHasher::new();
        rest.encode_to_vec().hash(&mut hasher);
        Self {
            epoch: about.epoch,
            uptime_s: about.uptime_s,
            free_bytes: about.free_bytes,
            state: Oid::from_bytes(&about.state).ok(),
            rest: hasher.finish(),
        }
    }

    /// News of a disk are later than others if these are.
    pub fn order(&self) -> (u64, u64) {
        (self.epoch, self.uptime_s)
    }

    /// Whether all is the same but what can be said in brief.
    pub fn continues(&self, other: &Self) -> bool {
        (self.epoch, self.rest) == (other.epoch, other.rest)
    }

    /// What its disk says now, which said this before.
    pub fn applied_to(&self, about: &About) -> About {
        let state = self.state.map_or_else(Vec::new, |state| state.as_bytes().to_vec());
        About { uptime_s: self.uptime_s, free_bytes: self.free_bytes, state, ..about.clone() }
    }

    fn is_free_changed(&self, before: &Self) -> bool {
        let (now, then) = (self.free_bytes, before.free_bytes);
        now.abs_diff(then) > now.min(then) / FREE_PART
    }
}

/// A disk that was spoken of at the other end.
#[derive(Clone, Copy, Debug)]
struct Spoken {
    number: u32,
    brief: Brief,
}

/// What this end has told the other.
#[derive(Debug, Default)]
pub(super) struct Told {
    disks: HashMap<DiskId, Spoken>,
    /// The greatest number.
    numbers: u32,
    own: Option<Brief>,
    addresses: HashSet<u64>,
    /// The last disk whose addresses were said anew.
    turn: Option<DiskId>,
}

/// What the other end has told this one.
#[derive(Debug, Default)]
pub(super) struct Heard {
    numbers: HashMap<u32, DiskId>,
    disks: HashMap<DiskId, Brief>,
    own: Option<Brief>,
    /// Numbers of which it asks for all.
    what: Vec<u32>,
}

/// Makes a [`pb::Still`].
#[derive(Default)]
struct Making {
    still: pb::Still,
    commits: HashMap<Oid, u32>,
}

impl Making {
    /// The other end was told `before`; what it knows then.
    fn add(&mut self, number: u32, before: &Brief, now: &Brief) -> Brief {
        let free_bytes = now.is_free_changed(before).then_some(now.free_bytes);
        let commit = match now.state.filter(|_| now.state != before.state) {
            None => 0,
            Some(commit) => *self.commits.entry(commit).or_insert_with(|| {
                self.still.commits.push(commit.as_bytes().to_vec());
                self.still.commits.len() as u32
            }),
        };
        self.still.numbers.push(number);
        self.still.later_s.push(u32::try_from(now.uptime_s - before.uptime_s).unwrap_or(u32::MAX));
        if commit != 0 || free_bytes.is_some() {
            self.still.changed.push(pb::StillChanged { number, commit, free_bytes });
        }
        Brief { free_bytes: free_bytes.unwrap_or(before.free_bytes), state: now.state.or(before.state), ..*now }
    }
}

impl Told {
    /// What there is to say about this disk and others that the other end has not told itself: what has to be said in full, and the rest.
    /// `None` for `others`: everybody meets everybody, and how long one runs does not matter. `is_brief`: the other end knows [`pb::Still`].
    pub fn news<'a>(
        &mut self,
        own: &About,
        others: Option<impl Iterator<Item = (DiskId, &'a About, Brief)>>,
        heard: &mut Heard,
        is_brief: bool,
    ) -> (Option<About>, Vec<pb::Sighting>, Option<pb::Still>) {
        for number in std::mem::take(&mut heard.what) {
            if number == 0 {
                self.own = None;
            }
            // It keeps its number, and counts as never spoken of.
            let of_it = self.disks.values_mut().find(|spoken| spoken.number == number && number > 0);
            of_it.into_iter().for_each(|spoken| (spoken.brief.epoch, spoken.brief.uptime_s) = (0, 0));
        }
        let (mut making, mut full) = (Making::default(), Vec::new());
        let now = Brief::of(own);
        let greeting =
            match self.own.filter(|before| is_brief && now.continues(before) && before.uptime_s <= now.uptime_s) {
                None => {
                    self.own = Some(now);
                    Some(own.clone())
                }
                Some(before) => {
                    let is_same = before.state == now.state && !now.is_free_changed(&before);
                    if others.is_some() || !is_same {
                        self.own = Some(making.add(0, &before, &now));
                    }
                    None
                }
            };
        for (disk, about, now) in others.into_iter().flatten() {
            let is_known = heard.disks.get(&disk).is_some_and(|brief| brief.order() >= now.order());
            let before = self.disks.get(&disk).copied();
            if is_known || before.is_some_and(|before| before.brief.order() >= now.order()) {
                continue;
            }
            match before.filter(|before| is_brief && before.number > 0 && now.continues(&before.brief)) {
                Some(Spoken { number, brief }) => {
                    let brief = making.add(number, &brief, &now);
                    self.disks.insert(disk, Spoken { number, brief });
                }
                None => {
                    let number = before.map_or_else(|| self.next_number(), |before| before.number);
                    self.disks.insert(disk, Spoken { number, brief: now });
                    let about = Some(About { knows_still: false, ..about.clone() });
                    full.push(pb::Sighting { disk_id: disk.0.to_vec(), about, number });
                }
            }
        }
        (greeting, full, (!making.still.numbers.is_empty()).then_some(making.still))
    }

    /// One that nobody has; 0 when there is none any more.
    fn next_number(&mut self) -> u32 {
        if self.numbers == NUMBERS_MAX {
            return 0;
        }
        self.numbers += 1;
        self.numbers
    }

    /// Of these addresses those that are new, and all of some disks when it is their turn.
    pub fn addresses(&mut self, known: &BTreeMap<DiskId, Vec<String>>, is_turn: bool) -> Vec<pb::DiskAddresses> {
        let hash = |disk: &DiskId, address: &String| {
            let mut hasher = DefaultHasher::new();
            (disk.0, address).hash(&mut hasher);
            hasher.finish()
        };
        let mut anew = HashSet::new();
        if is_turn && !known.is_empty() {
            let disks: Vec<DiskId> = known.keys().copied().collect();
            let first = self.turn.map_or(0, |last| disks.partition_point(|disk| *disk <= last));
            let chosen = (first..first + disks.len().div_ceil(TURNS)).map(|at| disks[at % disks.len()]);
            anew.extend(chosen.inspect(|disk| self.turn = Some(*disk)));
        }
        // What is not known any more is new when it is back.
        let told = std::mem::take(&mut self.addresses);
        let mut news = Vec::new();
        for (disk, addresses) in known {
            let is_new = |address: &&String| {
                let address = hash(disk, address);
                self.addresses.insert(address);
                !told.contains(&address) || anew.contains(disk)
            };
            let addresses: Vec<String> = addresses.iter().filter(is_new).cloned().collect();
            if !addresses.is_empty() {
                news.push(pb::DiskAddresses { disk_id: disk.0.to_vec(), addresses });
            }
        }
        news
    }
}

impl Heard {
    /// The other end has said this of itself.
    pub fn about(&mut self, about: &About) {
        self.own = Some(Brief::of(about));
    }

    /// All about a disk, under a number.
    pub fn sighting(&mut self, number: u32, disk: DiskId, about: &About) {
        if !(1..=NUMBERS_MAX).contains(&number) {
            return;
        }
        if let Some(other) = self.numbers.insert(number, disk).filter(|other| *other != disk) {
            self.disks.remove(&other);
        }
        self.disks.insert(disk, Brief::of(about));
    }

    /// What disks are still, each with its number and what it says now; `None` is the other end itself. Those that have not been spoken of
    /// are asked for by [`Heard::what`] of the other end, and come second. `Err`: it is none.
    #[allow(clippy::type_complexity)]
    pub fn still(
        &mut self,
        still: &pb::Still,
        uptime_max_s: u64,
    ) -> Result<(Vec<(u32, Option<DiskId>, Brief)>, Vec<u32>), ()> {
        if still.numbers.len() != still.later_s.len() || still.numbers.len() > NUMBERS_MAX as usize + 1 {
            return Err(());
        }
        let changed: HashMap<u32, &pb::StillChanged> = still.changed.iter().map(|one| (one.number, one)).collect();
        let (mut known, mut missing) = (Vec::new(), Vec::new());
        for (number, later_s) in still.numbers.iter().zip(&still.later_s) {
            let disk = self.numbers.get(number).copied();
            let brief = match disk {
                _ if *number == 0 => self.own.as_mut(),
                Some(disk) => self.disks.get_mut(&disk),
                None => None,
            };
            let Some(brief) = brief else {
                missing.push(*number);
                continue;
            };
            brief.uptime_s += u64::from(*later_s);
            if brief.uptime_s > uptime_max_s {
                return Err(());
            }
            if let Some(changed) = changed.get(number) {
                brief.free_bytes = changed.free_bytes.unwrap_or(brief.free_bytes);
                if let Some(at) = changed.commit.checked_sub(1) {
                    let commit = still.commits.get(at as usize).ok_or(())?;
                    brief.state = Some(Oid::from_bytes(commit).map_err(drop)?);
                }
            }
            known.push((*number, disk, *brief));
        }
        Ok((known, missing))
    }

    /// The other end asks for all about these.
    pub fn what(&mut self, numbers: &[u32]) {
        self.what = numbers.iter().take(NUMBERS_MAX as usize + 1).copied().collect();
    }
}

#[cfg(test)]
mod tests;
