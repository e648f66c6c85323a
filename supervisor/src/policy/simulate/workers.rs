//! What the workers do by themselves: they end what they were told, look after what is damaged, and remove what no file has. A worker that
//! hangs does none of that, and goes on when it wakes, also with what its supervisor has given up long ago.

use std::collections::BTreeMap;

use super::host::{Fetch, Trimming};
use super::oracle::{Farewell, Fate};
use super::world::{Place, Set, TICK_S, World, has};

/// What a worker knows as long as it runs. Who promises by desks (`act`) needs but the first.
#[derive(Debug, Default)]
pub struct Worker {
    /// Counts the starts.
    pub life: u64,
    /// When promises of an earlier life have ended; true time, like the next.
    pub settled_t: u64,
    /// Until when it keeps which contents.
    pub promised: BTreeMap<usize, u64>,
    /// What it is about to let go.
    pub leaving: Set,
}

/// A supervisor gives a fetch up after so long of which its worker says nothing.
const MUTE_S: u64 = 2 * TICK_S;

impl World {
    /// Whether the worker of a disk does anything.
    pub fn works(&self, disk: usize) -> bool {
        self.disks[disk].hangs_until <= self.t
    }

    /// The worker of a disk is gone, and with it what it was about to let go.
    pub fn end_worker(&mut self, disk: usize) {
        for host in &mut self.hosts {
            for trim in host.trims.extract_if(.., |trim| trim.farewell.disk == disk) {
                host.desk.end_trim(self.disks[disk].id, self.contents[trim.farewell.content].id);
            }
        }
    }

    pub fn restart_worker(&mut self, disk: usize) {
        if matches!(self.disks[disk].place, Place::In(_)) {
            self.totals.worker_restarts += 1;
            self.end_worker(disk);
            self.start_worker(disk);
        }
    }

    /// Whether anything of what the workers of a host were told ended in this step.
    pub fn work(&mut self, at: usize, now_s: u64) -> bool {
        let fetched = self.end_fetches(at, now_s);
        let trimmed = self.end_trims(at);
        self.set_aside(at);
        self.collect(at);
        fetched | trimmed
    }

    /// A disk that has the true bytes and gives them to a host.
    pub fn source(&self, at: usize, content: usize) -> Option<usize> {
        (0..self.disks.len()).find(|d| has(self.disks[*d].good, content) && self.gives(at, *d))
    }

    fn gives(&self, at: usize, disk: usize) -> bool {
        let Place::In(host) = self.disks[disk].place else { return false };
        self.works(disk) && self.connected(at, host) && !self.hosts[at].seen[disk].is_out()
    }

    fn end_fetches(&mut self, at: usize, now_s: u64) -> bool {
        let mut busy = false;
        for mut fetch in std::mem::take(&mut self.hosts[at].fetches) {
            let Fetch { disk, content, life, end, .. } = fetch;
            let (id, name) = (self.disks[disk].id, self.contents[content].id);
            let (works, here) = (self.works(disk), self.disks[disk].place == Place::In(at));
            let is_alive = here && self.disks[disk].worker.life == life;
            if is_alive && (!works || end > self.t) {
                if !works && !fetch.given_up && self.t >= end + MUTE_S {
                    fetch.given_up = true;
                    self.hosts[at].desk.fetch_ended(id, name);
                    self.hosts[at].desk.failed(id, name, now_s);
                }
                if works && !fetch.given_up && self.rng.chance(50) {
                    self.hosts[at].desk.fetching(id, name, self.contents[content].size_bytes / 2);
                }
                self.hosts[at].fetches.push(fetch);
                continue;
            }
            busy = true;
            let done = is_alive && self.fetch(at, disk, content);
            self.totals.woken += u64::from(done && fetch.given_up);
            if !fetch.given_up {
                if !done {
                    self.hosts[at].desk.failed(id, name, now_s);
                }
                self.hosts[at].desk.fetch_ended(id, name);
            }
        }
        busy
    }

    /// The last bytes came, and are verified.
    fn fetch(&mut self, at: usize, disk: usize, content: usize) -> bool {
        let truth = &self.disks[disk];
        if has(truth.holds, content) {
            return true;
        }
        if truth.read_only || self.free(disk) < self.contents[content].size_bytes {
            return false;
        }
        if self.source(at, content).is_none() && !truth.lies {
            // What a source gave was not it: the source has a look.
            let giving: Vec<usize> = (0..self.disks.len()).filter(|d| self.gives(at, *d)).collect();
            giving.into_iter().for_each(|d| self.look(d, 1 << content));
            return false;
        }
        self.come(disk, content, Fate::Copied);
        self.hosts[at].seen[disk].holds |= 1 << content;
        true
    }

    /// A disk looks at its copies of these contents.
    pub fn look(&mut self, disk: usize, contents: Set) {
        let truth = &mut self.disks[disk];
        if truth.lies {
            return;
        }
        let vanished = truth.holds & truth.missing & contents;
        if vanished != 0 {
            (truth.holds, truth.missing) = (truth.holds & !vanished, truth.missing & !vanished);
            truth.version += 1;
        }
        truth.suspect |= truth.holds & !truth.good & contents;
    }

    /// What is damaged is given up when somebody else has it whole.
    fn set_aside(&mut self, at: usize) {
        for disk in 0..self.disks.len() {
            if self.disks[disk].place != Place::In(at) || !self.works(disk) || self.hosts[at].seen[disk].is_out() {
                continue;
            }
            let suspect = self.disks[disk].suspect;
            for content in (0..self.contents.len()).filter(|c| has(suspect, *c)) {
                if self.source(at, content).is_some() {
                    let truth = &mut self.disks[disk];
                    truth.holds &= !(1 << content);
                    truth.suspect &= !(1 << content);
                    truth.version += 1;
                    self.hosts[at].seen[disk].holds &= !(1 << content);
                    self.totals.set_aside += 1;
                }
            }
        }
    }

    pub fn end_trims(&mut self, at: usize) -> bool {
        let t = self.t;
        // A worker whose supervisor is gone does it before its deadline, or never.
        let is_late = |trim: &Trimming| trim.orphan && t >= trim.end + TICK_S;
        self.hosts[at].trims.retain(|trim| !is_late(trim));
        let works: Vec<bool> = (0..self.disks.len()).map(|disk| self.works(disk)).collect();
        let ended = |trim: &mut Trimming| trim.end <= t && works[trim.farewell.disk];
        let ended: Vec<Trimming> = self.hosts[at].trims.extract_if(.., ended).collect();
        let busy = !ended.is_empty();
        for Trimming { farewell, orphan, end } in ended {
            let (disk, content) = (farewell.disk, farewell.content);
            self.totals.woken += u64::from(t > end);
            self.let_go(at, farewell);
            self.disks[disk].worker.leaving &= !(1 << content);
            if !orphan {
                self.hosts[at].desk.end_trim(self.disks[disk].id, self.contents[content].id);
            }
        }
        busy
    }

    fn let_go(&mut self, at: usize, farewell: Farewell) {
        let bit = 1 << farewell.content;
        let held = &mut self.disks[farewell.disk];
        if held.place != Place::In(at) || (held.read_only && !held.full) || held.holds & !held.missing & bit == 0 {
            return;
        }
        held.holds &= !bit;
        held.good &= !bit;
        held.suspect &= !bit;
        held.version += 1;
        self.totals.trims += 1;
        let copy = (farewell.disk, farewell.content);
        if self.quiet && !self.hasty && self.fresh.contains(&copy) {
            self.totals.wasted += 1;
            self.undone.push(copy);
        }
        self.totals.evictions += u64::from(self.disks[farewell.disk].lazy);
        let seen = &mut self.hosts[at].seen[farewell.disk];
        seen.holds &= !bit;
        self.totals.drained += u64::from(seen.draining);
        self.check_gone(farewell);
    }

    /// Disks remove what no file has, now and then, but for what they have promised.
    fn collect(&mut self, at: usize) {
        if !self.quiet && self.rng.chance(60) {
            return;
        }
        let host = &self.hosts[at];
        let removed = |c: &usize| host.catalog[*c].0 == 0 && host.catalog[*c].1 > 0;
        let dead = (0..host.catalog.len()).filter(removed).fold(0, |set: Set, c| set | 1 << c);
        for disk in 0..self.disks.len() {
            let truth = &self.disks[disk];
            if truth.place != Place::In(at) || !self.works(disk) || truth.lies {
                continue;
            }
            let kept = truth.worker.promised.iter().filter(|(_, until)| **until > self.t).map(|(c, _)| *c);
            let dead = dead & truth.holds & !kept.fold(0, |set: Set, c| set | 1 << c);
            if dead != 0 {
                self.destroy(disk, dead, "removed by a user");
                let truth = &mut self.disks[disk];
                truth.holds &= !dead;
                truth.missing &= !dead;
                truth.suspect &= !dead;
                truth.version += 1;
                self.hosts[at].seen[disk].holds = truth.holds;
            }
        }
    }
}
