//! What a host believes, and how it comes to believe it. With [`super::act`] this plays the caller of the policy.

use std::collections::BTreeMap;

use delugefs_proto::ids::{DiskId, HostId};

use super::super::*;
use super::oracle::{Farewell, Promise};
use super::world::{Place, Set, SimContent, TICK_S, World, has};

/// What a host believes about a disk.
#[derive(Clone, Default)]
pub struct Seen {
    /// Of what the disk published; 0 is never heard of.
    pub version: u64,
    pub holds: Set,
    pub host: usize,
    pub free_bytes: u64,
    pub lazy: bool,
    pub read_only: bool,
    pub full: bool,
    pub backlog_s: u64,
    pub present: bool,
    pub since_s: u64,
    /// It was here since this supervisor started.
    pub heard: bool,
    /// By the catalog, with the number of the edit.
    pub draining: bool,
    pub forgotten: bool,
    pub edit: u64,
    /// By the members; for ever.
    pub revoked: bool,
    pub changed_s: u64,
    /// Which worker of it this host has met.
    life: u64,
    /// What `changed_s` watches.
    last: (usize, [bool; 5]),
}

impl Seen {
    /// It gets in nowhere where that is known.
    pub fn is_out(&self) -> bool {
        self.revoked
    }

    /// Its copies do not exist.
    pub fn is_gone(&self) -> bool {
        self.forgotten || self.revoked
    }
}

pub struct Fetch {
    pub disk: usize,
    pub content: usize,
    pub end: u64,
    /// Of the worker that fetches it.
    pub life: u64,
    /// The supervisor does not know of it any more.
    pub given_up: bool,
}

pub struct Trimming {
    pub farewell: Farewell,
    pub end: u64,
    /// The supervisor that began it is gone; the worker gives up at `end`.
    pub orphan: bool,
}

pub struct Reply {
    pub at: u64,
    pub content: usize,
    pub keeper: usize,
    pub asked_s: u64,
    pub answer: Result<(u64, Promise), Decline>,
}

pub struct Host {
    pub id: HostId,
    pub site: String,
    pub up: bool,
    pub asleep_until: u64,
    /// Since when it and its clock stand still: somebody stopped the machine from outside.
    pub still_since: Option<u64>,
    /// The difference of its clock to the true one, and by how many thousandths it runs faster (or, below 45, slower).
    skew_s: u64,
    fast: u64,
    pub desk: Desk,
    pub seen: Vec<Seen>,
    /// Wanted copies and number of the edit, by content.
    pub catalog: Vec<(u32, u64)>,
    /// Holders (disks as bits) and wanted copies as last seen, and since when.
    pub last: Vec<((u64, u32), u64)>,
    pulled: Vec<u64>,
    pub backlog_s: u64,
    pub fetches: Vec<Fetch>,
    pub trims: Vec<Trimming>,
    pub replies: Vec<Reply>,
    /// The promises that the desk believes in.
    pub promises: BTreeMap<(usize, usize), Promise>,
}

impl Host {
    pub fn new(id: HostId, site: String, desk: Desk) -> Self {
        Self {
            id,
            site,
            up: true,
            asleep_until: 0,
            still_since: None,
            skew_s: 0,
            fast: 0,
            desk,
            seen: Vec::new(),
            catalog: Vec::new(),
            last: Vec::new(),
            pulled: vec![0; 8],
            backlog_s: 0,
            fetches: Vec::new(),
            trims: Vec::new(),
            replies: Vec::new(),
            promises: BTreeMap::new(),
        }
    }

    pub fn awake(&self, t: u64) -> bool {
        self.up && self.asleep_until <= t
    }

    /// Two clocks differ in their rates by almost a tenth.
    pub fn now_s(&self, t: u64) -> u64 {
        self.skew_s + t * (955 + self.fast) / 1000
    }

    /// Its clock goes on from where it stood.
    pub fn go_on(&mut self, t: u64) {
        if let Some(since_t) = self.still_since.take() {
            self.skew_s -= (t - since_t) * (955 + self.fast) / 1000;
        }
    }

    /// As the supervisor does it.
    pub fn forgive(&mut self, contents: &[SimContent]) {
        let Self { desk, seen, last, .. } = self;
        desk.forgive(|id, failed_s| {
            let content = contents.iter().position(|content| content.id == id).unwrap();
            let came = |seen: &Seen| has(seen.holds, content) && seen.present && seen.since_s > failed_s;
            last[content].1 > failed_s || seen.iter().any(came)
        });
    }

    pub fn one_more_content(&mut self) {
        self.catalog.push((0, 0));
        self.last.push(((0, 0), 0));
    }

    pub fn record(&self, disk: usize, id: DiskId, hosts: &[(HostId, String)]) -> Disk {
        let seen = &self.seen[disk];
        let (host, site) = hosts[seen.host].clone();
        Disk {
            id,
            host,
            site,
            presence: match seen.present {
                true => Presence::Here { since_s: seen.since_s },
                false => Presence::Absent { since_s: seen.since_s },
            },
            here_s: seen.since_s,
            heard: seen.heard,
            changed_s: seen.changed_s,
            lazy: seen.lazy,
            draining: seen.draining,
            read_only: seen.read_only,
            full: seen.full,
            forgotten: seen.is_gone(),
            free_bytes: seen.free_bytes,
            backlog_s: seen.backlog_s,
        }
    }
}

impl World {
    /// The supervisor starts anew. Workers go on with what they were told, for a while.
    pub fn restart(&mut self, at: usize) {
        let (t, own_promises) = (self.t, self.own_promises);
        self.totals.supervisor_restarts += 1;
        let host = &mut self.hosts[at];
        host.go_on(t);
        let now_s = host.now_s(t);
        host.desk = Desk::new(now_s);
        host.fetches.iter_mut().for_each(|fetch| fetch.given_up = true);
        host.replies.clear();
        host.promises.clear();
        for trim in host.trims.iter_mut().filter(|_| !own_promises) {
            trim.orphan = true;
            trim.end = trim.end.min(t + PROMISE_S / 2);
        }
        for seen in &mut host.seen {
            (seen.since_s, seen.changed_s, seen.present, seen.heard) = (now_s, now_s, false, false);
        }
        host.last.iter_mut().for_each(|(_, since_s)| *since_s = now_s);
    }

    /// The machine starts anew, with a clock that has nothing to do with the one before.
    pub fn boot(&mut self, at: usize) {
        let skew_s = 86_400 * 10 + self.rng.below(20 * 86_400);
        let fast = self.rng.below(91);
        let host = &mut self.hosts[at];
        (host.up, host.asleep_until, host.skew_s, host.fast) = (true, 0, skew_s, fast);
        host.still_since = None;
        host.trims.clear();
        host.fetches.clear();
        for disk in 0..self.disks.len() {
            if self.disks[disk].place == Place::In(at) {
                self.start_worker(disk);
            }
        }
        self.restart(at);
    }

    /// What a host does in a step of time; whether it did anything.
    pub fn host_tick(&mut self, at: usize) -> bool {
        let now_s = self.hosts[at].now_s(self.t);
        self.look_at_own_disks(at, now_s);
        self.hear(at, now_s);
        let mut busy = self.work(at, now_s);
        busy |= self.take_replies(at, now_s);
        self.note_changes(at, now_s);
        busy |= self.think(at, now_s);
        let host = &self.hosts[at];
        let fetches = host.fetches.iter().any(|fetch| self.works(fetch.disk));
        let trims = host.trims.iter().any(|trim| self.works(trim.farewell.disk));
        busy || fetches || trims || !host.replies.is_empty()
    }

    fn look_at_own_disks(&mut self, at: usize, now_s: u64) {
        for disk in 0..self.disks.len() {
            let is_here = self.disks[disk].place == Place::In(at) && self.works(disk);
            if !is_here || self.hosts[at].seen[disk].is_out() {
                continue;
            }
            let free_bytes = self.free(disk);
            let host = &mut self.hosts[at];
            let (truth, seen) = (&mut self.disks[disk], &mut host.seen[disk]);
            if (seen.life, seen.host) != (truth.worker.life, at) {
                host.desk.arrived(truth.id, now_s);
                seen.life = truth.worker.life;
            }
            if !(seen.present && seen.host == at) {
                (seen.present, seen.since_s) = (true, now_s);
                truth.version += 1;
            }
            if seen.forgotten {
                // It is here again.
                self.edits += 1;
                (seen.forgotten, seen.edit) = (false, self.edits);
                self.totals.came_back += 1;
            }
            if seen.backlog_s != host.backlog_s || seen.free_bytes != free_bytes {
                truth.version += 1;
            }
            seen.heard = true;
            (seen.version, seen.host, seen.holds, seen.free_bytes) = (truth.version, at, truth.holds, free_bytes);
            (seen.lazy, seen.read_only, seen.full) = (truth.lazy, truth.read_only, truth.full);
            seen.backlog_s = host.backlog_s;
        }
    }

    /// News from the hosts that are in reach, with luck; with certainty every third time.
    fn hear(&mut self, at: usize, now_s: u64) {
        let mut heard = vec![false; self.hosts.len()];
        for (from, heard) in heard.iter_mut().enumerate() {
            let due = self.rng.chance(60) || self.t >= self.hosts[at].pulled[from] + 3 * TICK_S;
            if from == at || !due || !self.connected(at, from) {
                continue;
            }
            *heard = true;
            let news = (self.hosts[from].seen.clone(), self.hosts[from].catalog.clone());
            let host = &mut self.hosts[at];
            host.pulled[from] = self.t;
            for (seen, new) in host.seen.iter_mut().zip(news.0) {
                seen.revoked |= new.revoked;
                if new.version > seen.version {
                    (seen.version, seen.host, seen.holds) = (new.version, new.host, new.holds);
                    (seen.free_bytes, seen.backlog_s) = (new.free_bytes, new.backlog_s);
                    (seen.lazy, seen.read_only, seen.full) = (new.lazy, new.read_only, new.full);
                }
                if new.edit > seen.edit {
                    (seen.draining, seen.forgotten, seen.edit) = (new.draining, new.forgotten, new.edit);
                }
            }
            for (own, new) in host.catalog.iter_mut().zip(news.1) {
                if new.1 > own.1 {
                    *own = new;
                }
            }
        }
        for disk in 0..self.disks.len() {
            let reached = self.reaches(at, disk);
            let noticed = self.rng.chance(70);
            let seen = &mut self.hosts[at].seen[disk];
            let own = seen.host == at;
            let changes = if reached { own || heard[seen.host] } else { own || noticed };
            if seen.version > 0 && reached != seen.present && changes {
                (seen.present, seen.since_s) = (reached, now_s);
            }
            seen.heard |= seen.present;
        }
    }

    pub fn take_replies(&mut self, at: usize, now_s: u64) -> bool {
        let t = self.t;
        let host = &mut self.hosts[at];
        let arrived: Vec<Reply> = host.replies.extract_if(.., |reply| reply.at <= t).collect();
        for Reply { content, keeper, asked_s, answer, .. } in &arrived {
            let (id, name) = (self.disks[*keeper].id, self.contents[*content].id);
            match answer {
                Ok((lease_s, promise)) => {
                    host.desk.promised(name, id, *asked_s, *lease_s);
                    host.promises.insert((*keeper, *content), *promise);
                }
                Err(_) => host.desk.declined(name, id, now_s + 300),
            }
            self.totals.declines += u64::from(answer.is_err());
        }
        !arrived.is_empty()
    }

    fn note_changes(&mut self, at: usize, now_s: u64) {
        let host = &mut self.hosts[at];
        for seen in &mut host.seen {
            let state = (seen.host, [seen.lazy, seen.draining, seen.read_only, seen.full, seen.is_gone()]);
            if seen.version > 0 && state != seen.last {
                (seen.last, seen.changed_s) = (state, now_s);
            }
        }
        for (content, (last, since_s)) in host.last.iter_mut().enumerate() {
            let mask = |(d, seen): (usize, &Seen)| u64::from(has(seen.holds, content)) << d;
            let state = (host.seen.iter().enumerate().map(mask).sum(), host.catalog[content].0);
            if state != *last {
                (*last, *since_s) = (state, now_s);
            }
        }
    }
}
