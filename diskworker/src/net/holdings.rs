//! Who holds what: what each disk last said of itself, also those that are away. Every disk counts its own changes; others
//! keep what they hear and pass it on. A content is named by the first 16 bytes of its SHA-256: 2^64 contents would be
//! needed for one to be taken for another, and a wrong guess costs one refused request.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use delugefs_proto::ids::{ContentId, DiskId};
use delugefs_proto::peer_pb as pb;

/// Beginning of a content's id.
pub(super) type Short = [u8; 16];
/// Changes of one disk remembered, so that who is a little behind is sent the difference.
const LOG_MAX: usize = 8192;
/// Ids in one message.
const CHUNK: usize = 4096;

/// Most contents that a disk is taken to hold: any member may say of any disk that it holds more and more.
pub(super) const HELD_MAX: usize = 16 << 20;
/// The same of all disks together, of which each may have as many as fit into equal parts of it: what is said of some keeps nothing out
/// that is said of others. As many as take a third of the memory, and never more than twice that; and at least so many.
fn all_max() -> usize {
    const EACH_BYTES: u64 = 96;
    const MIN: u64 = 16 << 20;
    crate::os::memory_bytes().map_or(MIN, |bytes| (bytes / 3 / EACH_BYTES).max(MIN)) as usize
}

/// So long nobody asks for all that a disk holds after news of it were not taken in; twice as long each time, but not longer than this.
const DEAF: Duration = Duration::from_secs(60);
const DEAF_MAX: Duration = Duration::from_secs(3600);

/// No disk says of itself that its count is above this.
pub(super) const EPOCH_MAX: u64 = 1 << 62;

/// How far a clock may be ahead, in milliseconds: a hundred years.
const AHEAD_MAX_MS: u64 = 100 * 366 * 24 * 3_600_000;

/// Above what a count is nobody's: they are begun at the milliseconds since 1970. A bound that stays where it is could be claimed by
/// somebody who tells lies, and then not be outdone for ever; this one moves on, and the disk it was said of is heard again.
pub(super) fn latest() -> u64 {
    now_ms().saturating_add(AHEAD_MAX_MS).min(EPOCH_MAX - 1)
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What one disk holds.
#[derive(Debug, Default)]
struct Disk {
    epoch: u64,
    generation: u64,
    held: HashSet<Short>,
    /// Generation, and whether a content came or went with it.
    log: VecDeque<(u64, Short, bool)>,
    /// When news of it were not taken in last, and for how long nobody asks: what comes after them does not follow on what is known.
    refused: Option<(Instant, Duration)>,
}

impl Disk {
    /// What somebody lacks who knows it up to this epoch and generation.
    fn lacks(&self, id: DiskId, (epoch, generation): (u64, u64)) -> Vec<pb::Holdings> {
        if (epoch, generation) >= (self.epoch, self.generation) {
            return Vec::new();
        }
        if epoch == self.epoch && self.log.front().is_some_and(|first| first.0 <= generation + 1) {
            let newer = self.log.iter().filter(|entry| entry.0 > generation);
            // The last word on each counts.
            let last: HashMap<Short, bool> = newer.map(|(_, content, held)| (*content, *held)).collect();
            let part = |wanted| last.iter().filter(|(_, held)| **held == wanted).map(|(c, _)| *c).collect::<Vec<_>>();
            return split(message(id, epoch, generation, self.generation, &part(true), &part(false)));
        }
        let all: Vec<Short> = self.held.iter().copied().collect();
        split(message(id, self.epoch, 0, self.generation, &all, &[]))
    }
}

/// What every disk holds.
#[derive(Debug)]
pub(super) struct Holdings {
    disks: HashMap<DiskId, Disk>,
    /// Most of a disk, and of all together.
    limits: (usize, usize),
    /// So many are held in all, each counted for every disk that holds it.
    held: usize,
    /// Equal sets of disks are one in memory: there are many contents, and few sets.
    by_content: HashMap<Short, Arc<[DiskId]>>,
    sets: HashSet<Arc<[DiskId]>>,
    /// So many sets are cleared of those that nobody uses any more.
    sets_max: usize,
    version: u64,
    /// Epoch and generation of ourselves that others were told of.
    told: (u64, u64),
    /// How far those have counted that were met since the start, as they said; [`UNSAID`] where they have not said it yet.
    claims: HashMap<DiskId, (u64, u64)>,
    /// All that these held was heard since the start, from others.
    whole: HashSet<DiskId>,
}

/// Above any count.
const UNSAID: (u64, u64) = (u64::MAX, u64::MAX);

impl Default for Holdings {
    fn default() -> Self {
        Self {
            disks: HashMap::new(),
            limits: (HELD_MAX, all_max()),
            held: 0,
            by_content: HashMap::new(),
            sets: HashSet::new(),
            sets_max: 0,
            version: 0,
            told: (0, 0),
            claims: HashMap::new(),
            whole: HashSet::new(),
        }
    }
}

/// What a message did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Known already.
    Nothing,
    /// Taken in.
    News,
    /// It continues something we do not have: ask for all.
    Gap,
    /// No disk holds so much.
    TooMuch,
    /// Together with what the others hold it is more than there is memory for.
    NoRoom,
}

pub(super) fn short(content: ContentId) -> Short {
    let mut short = [0; 16];
    short.copy_from_slice(&content.0[..16]);
    short
}

impl Holdings {
    /// Begin a disk's own count: what it holds now.
    pub fn begin(&mut self, me: DiskId, epoch: u64, held: impl Iterator<Item = ContentId>) {
        self.replace(me, epoch, 1, held.map(short).collect());
        self.told = (epoch, 1);
    }

    /// Our own change; whether it is one.
    pub fn changed(&mut self, me: DiskId, content: ContentId, held: bool) -> bool {
        let content = short(content);
        let disk = self.disks.entry(me).or_default();
        if disk.held.contains(&content) == held {
            return false;
        }
        let generation = disk.generation + 1;
        let (added, removed) = if held { (vec![content], vec![]) } else { (vec![], vec![content]) };
        self.apply(me, generation, &added, &removed);
        true
    }

    /// What of ourselves is new since this was asked last, or the count was begun: messages for others.
    pub fn news(&mut self, me: DiskId) -> Vec<pb::Holdings> {
        let Some(disk) = self.disks.get(&me) else { return Vec::new() };
        let told = std::mem::replace(&mut self.told, (disk.epoch, disk.generation));
        disk.lacks(me, told)
    }

    /// What a peer says of some disk: a whole message ([`Parts`]).
    pub fn hear(&mut self, news: &pb::Holdings) -> Heard {
        let Some(id) = DiskId::from_slice(&news.disk_id) else { return Heard::Nothing };
        let disk = self.disks.entry(id).or_default();
        if (news.epoch, news.generation) <= (disk.epoch, disk.generation) || news.epoch > latest() {
            return Heard::Nothing;
        }
        let ids = |bytes: &[u8]| bytes.as_chunks::<16>().0.to_vec();
        let (added, removed) = (ids(&news.added), ids(&news.removed));
        if news.base == 0 {
            let held: HashSet<Short> = added.into_iter().collect();
            if let Some(refused) = self.refuses(id, held.len()) {
                return refused;
            }
            self.replace(id, news.epoch, news.generation, held);
            self.whole.insert(id);
        } else if news.epoch == disk.epoch && news.base <= disk.generation {
            let is_new = |content: &&Short| !disk.held.contains(*content);
            let new: HashSet<&Short> = added.iter().filter(is_new).collect();
            // As if nothing were removed: honest news are small.
            let after = disk.held.len() + new.len();
            if !new.is_empty()
                && let Some(refused) = self.refuses(id, after)
            {
                return refused;
            }
            self.apply(id, news.generation, &added, &removed);
        } else if disk.refused.is_some_and(|(at, deaf)| at.elapsed() < deaf) {
            return Heard::Nothing;
        } else {
            return Heard::Gap;
        }
        Heard::News
    }

    /// What was heard before the start.
    pub fn recall(&mut self, news: &pb::Holdings) {
        let id = DiskId::from_slice(&news.disk_id);
        let was_told = id.is_some_and(|id| self.whole.contains(&id)); // links may be up already
        self.hear(news);
        if let (Some(id), false) = (id, was_told) {
            self.whole.remove(&id);
        }
    }

    /// A disk was met: what it holds is not known until it says how far it has counted, and that has come.
    pub fn met(&mut self, id: DiskId) {
        self.claims.insert(id, UNSAID);
        self.whole.remove(&id);
    }

    /// What a disk said of how far it has counted itself.
    pub fn claimed(&mut self, id: DiskId, have: &pb::HoldingsHave) {
        if let Some(own) = have.disks.iter().find(|known| known.disk_id == id.0) {
            self.claims.insert(id, (own.epoch, own.generation));
        }
    }

    /// Whether a disk has said since the start what it holds, all of it, and so what nobody says it holds it has not. Of one that was never
    /// met, but that others are connected with, they say it. What they say of one that is away may be old: from before a power cut.
    pub fn has_told(&self, id: DiskId, is_there: bool) -> bool {
        match self.claims.get(&id) {
            Some(claim) => self.disks.get(&id).is_some_and(|disk| (disk.epoch, disk.generation) >= *claim),
            None => is_there && self.whole.contains(&id),
        }
    }

    /// What is to be done about news after which a disk would hold so many, if they are not taken in. Where there is no more room for all
    /// together they are not listened to.
    fn refuses(&mut self, id: DiskId, after: usize) -> Option<Heard> {
        let ((each, all), disks) = (self.limits, self.disks.len());
        let disk = self.disks.get_mut(&id)?;
        let heard = match after {
            _ if after > each => Heard::TooMuch,
            _ if self.held - disk.held.len() + after > all && after > all / disks => Heard::NoRoom,
            _ => return None,
        };
        let deaf = disk.refused.map_or(DEAF, |(_, before)| (2 * before).min(DEAF_MAX));
        disk.refused = Some((Instant::now(), deaf));
        Some(heard)
    }

    /// Others know of a later count of ours than we do, so they would not listen to this one: it is begun anew above that.
    /// That is so when the clock was far ahead once and the note of it is lost, or when a member tells lies. Whether it was.
    pub fn outdo(&mut self, me: DiskId, heard: &pb::Holdings) -> bool {
        let Some(disk) = self.disks.get_mut(&me) else { return false };
        let is_later = (heard.epoch, heard.generation) > (disk.epoch, disk.generation);
        if !is_later || heard.epoch > latest() {
            return false;
        }
        (disk.epoch, disk.generation) = (heard.epoch + 1, 1);
        disk.log.clear();
        self.told = (disk.epoch, disk.generation); // the caller tells all
        self.version += 1;
        true
    }

    /// What somebody lacks who knows this much of each disk.
    pub fn lacks(&self, known: &pb::HoldingsHave) -> Vec<pb::Holdings> {
        let known: HashMap<&[u8], (u64, u64)> =
            known.disks.iter().map(|disk| (&disk.disk_id[..], (disk.epoch, disk.generation))).collect();
        let known = |id: &DiskId| known.get(&id.0[..]).copied().unwrap_or_default();
        self.disks.iter().flat_map(|(id, disk)| disk.lacks(*id, known(id))).collect()
    }

    /// How much is known of each disk.
    pub fn have(&self) -> pb::HoldingsHave {
        let known = |(id, disk): (&DiskId, &Disk)| pb::HoldingsKnown {
            disk_id: id.0.to_vec(),
            epoch: disk.epoch,
            generation: disk.generation,
        };
        pb::HoldingsHave { disks: self.disks.iter().map(known).collect() }
    }

    /// Who holds a content, in the order of their ids.
    pub fn holders(&self, content: ContentId) -> Arc<[DiskId]> {
        self.by_content.get(&short(content)).cloned().unwrap_or_default()
    }

    /// All disks of which something is known.
    pub fn disks(&self) -> Vec<DiskId> {
        self.disks.keys().copied().collect()
    }

    /// How many contents a disk holds.
    pub fn count(&self, disk: DiskId) -> u64 {
        self.disks.get(&disk).map_or(0, |disk| disk.held.len() as u64)
    }

    /// Epoch of a disk; 0 when nothing is known of it.
    pub fn epoch(&self, disk: DiskId) -> u64 {
        self.disks.get(&disk).map_or(0, |disk| disk.epoch)
    }

    /// Everything about one disk, as messages.
    pub fn all_of(&self, id: DiskId) -> Vec<pb::Holdings> {
        self.disks.get(&id).map(|disk| disk.lacks(id, (0, 0))).unwrap_or_default()
    }

    /// Counts changes.
    pub fn version(&self) -> u64 {
        self.version
    }

    fn replace(&mut self, id: DiskId, epoch: u64, generation: u64, held: HashSet<Short>) {
        self.version += 1;
        let old = std::mem::take(&mut self.disks.entry(id).or_default().held);
        for gone in old.difference(&held) {
            self.unlist(*gone, id);
        }
        for new in held.difference(&old) {
            self.list(*new, id);
        }
        self.held = self.held - old.len() + held.len();
        self.disks.insert(id, Disk { epoch, generation, held, ..Disk::default() });
    }

    fn apply(&mut self, id: DiskId, generation: u64, added: &[Short], removed: &[Short]) {
        self.version += 1;
        for (contents, held) in [(removed, false), (added, true)] {
            for content in contents {
                let disk = self.disks.entry(id).or_default();
                disk.log.push_back((generation, *content, held));
                let changed = if held { disk.held.insert(*content) } else { disk.held.remove(content) };
                match (changed, held) {
                    (true, true) => {
                        self.held += 1;
                        self.list(*content, id);
                    }
                    (true, false) => {
                        self.held -= 1;
                        self.unlist(*content, id);
                    }
                    _ => {}
                }
            }
        }
        let disk = self.disks.entry(id).or_default();
        disk.generation = generation;
        while disk.log.len() > LOG_MAX {
            // Whole generations only.
            let first = disk.log.front().map(|entry| entry.0);
            while disk.log.front().map(|entry| entry.0) == first && !disk.log.is_empty() {
                disk.log.pop_front();
            }
        }
    }

    fn list(&mut self, content: Short, id: DiskId) {
        let before = self.by_content.get(&content);
        let mut holders: Vec<DiskId> = before.into_iter().flat_map(|set| set.iter().copied()).chain([id]).collect();
        holders.sort_unstable();
        holders.dedup();
        self.set(content, &holders);
    }

    fn unlist(&mut self, content: Short, id: DiskId) {
        let Some(before) = self.by_content.get(&content) else { return };
        let holders: Vec<DiskId> = before.iter().copied().filter(|holder| *holder != id).collect();
        match holders.is_empty() {
            true => drop(self.by_content.remove(&content)),
            false => self.set(content, &holders),
        }
    }

    fn set(&mut self, content: Short, holders: &[DiskId]) {
        let set = match self.sets.get(holders) {
            Some(set) => set.clone(),
            None => {
                if self.sets.len() >= self.sets_max {
                    self.sets.retain(|set| Arc::strong_count(set) > 1);
                    self.sets_max = 2 * self.sets.len() + 64;
                }
                let set: Arc<[DiskId]> = holders.into();
                self.sets.insert(set.clone());
                set
            }
        };
        self.by_content.insert(content, set);
    }
}

/// Puts messages together that came in parts, one after the other on one link.
#[derive(Debug, Default)]
pub(super) struct Parts {
    before: Option<pb::Holdings>,
    /// A part was missing, and its like is not to be told of again.
    broken: bool,
}

/// What came of a part.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    /// With it the message is whole.
    Whole(pb::Holdings),
    /// Others follow.
    More,
    /// One before it is missing: who began to listen in the middle, or heard something else in between. Told once for each series.
    Missing,
}

/// Most bytes of one message put together: a disk with 16 million contents.
const WHOLE_MAX_BYTES: usize = 16 * HELD_MAX;

impl Parts {
    /// Take the next part. `Err`: it is too long.
    pub fn add(&mut self, mut part: pb::Holdings) -> Result<Part, ()> {
        let before = self.before.take();
        if part.part == 0 {
            self.broken = false;
        } else {
            let id = |part: &pb::Holdings| (part.disk_id.clone(), part.epoch, part.generation, part.base);
            match before.filter(|before| id(before) == id(&part) && before.part + 1 == part.part) {
                Some(mut before) => {
                    before.added.append(&mut part.added);
                    before.removed.append(&mut part.removed);
                    part = pb::Holdings { added: before.added, removed: before.removed, ..part };
                }
                None if std::mem::replace(&mut self.broken, true) => return Ok(Part::More),
                None => return Ok(Part::Missing),
            }
        }
        if part.added.len() + part.removed.len() > WHOLE_MAX_BYTES {
            return Err(());
        }
        Ok(match part.more {
            true => {
                self.before = Some(part);
                Part::More
            }
            false => Part::Whole(pb::Holdings { part: 0, ..part }),
        })
    }
}

/// A message in parts that fit.
pub(super) fn split(whole: pb::Holdings) -> Vec<pb::Holdings> {
    const BYTES: usize = CHUNK * 16;
    if whole.added.len() + whole.removed.len() <= BYTES {
        return vec![whole];
    }
    let like = |added: &[u8], removed: &[u8]| pb::Holdings {
        added: added.to_vec(),
        removed: removed.to_vec(),
        more: true,
        disk_id: whole.disk_id.clone(),
        ..whole
    };
    let removed = whole.removed.chunks(BYTES).map(|removed| like(&[], removed));
    let mut parts: Vec<pb::Holdings> = removed.chain(whole.added.chunks(BYTES).map(|added| like(added, &[]))).collect();
    for (n, part) in parts.iter_mut().enumerate() {
        part.part = n as u32;
    }
    if let Some(last) = parts.last_mut() {
        last.more = false;
    }
    parts
}

/// That this much can be known of a disk: a change without content. Who does not know as much finds that what is before it is missing.
pub(super) fn announcement(of: &pb::Holdings) -> pb::Holdings {
    let (disk_id, epoch, generation) = (of.disk_id.clone(), of.epoch, of.generation);
    pb::Holdings { disk_id, epoch, base: generation, generation, ..pb::Holdings::default() }
}

/// Whether it is one.
pub(super) fn is_announcement(message: &pb::Holdings) -> bool {
    message.base > 0 && message.base == message.generation && message.added.is_empty() && message.removed.is_empty()
}

fn message(id: DiskId, epoch: u64, base: u64, generation: u64, added: &[Short], removed: &[Short]) -> pb::Holdings {
    let (added, removed) = (added.concat(), removed.concat());
    pb::Holdings { disk_id: id.0.to_vec(), epoch, base, generation, added, removed, more: false, part: 0 }
}

#[cfg(test)]
mod tests;
