//! What a host believes, and how it comes to believe it. With [`super::act`] this plays the caller of the policy.

use delugefs_proto::ids::{DiskId, HostId};

use super::super::*;
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
    /// By the catalog, with the number of the edit.
    pub draining: bool,
    pub forgotten: bool,
    pub edit: u64,
    pub changed_s: u64,
    /// What `changed_s` watches.
    last: (usize, [bool; 5]),
}

pub struct Fetch {
    pub disk: usize,
    pub content: usize,
    pub end: u64,
}

pub struct Trimming {
    pub disk: usize,
    pub content: usize,
    pub end: u64,
    /// The supervisor that began it is gone; the worker gives up at `end`.
    pub orphan: bool,
    pub wanted: u32,
    /// When the oldest promise was given.
    pub promised: u64,
}

pub struct Reply {
    pub at: u64,
    pub content: usize,
    pub keeper: usize,
    pub asked_s: u64,
    pub answer: Result<u64, Decline>,
}

pub struct Host {
    pub id: HostId,
    pub site: String,
    pub up: bool,
    pub asleep_until: u64,
    /// The difference of its clock to the true one, and by how many thousandths it runs faster (or, below 5, slower).
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
}

impl Host {
    pub fn new(id: HostId, site: String, desk: Desk) -> Self {
        Self {
            id,
            site,
            up: true,
            asleep_until: 0,
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
        }
    }

    pub fn awake(&self, t: u64) -> bool {
        self.up && self.asleep_until <= t
    }

    pub fn now_s(&self, t: u64) -> u64 {
        self.skew_s + t * (995 + self.fast) / 1000
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
            heard: true,
            changed_s: seen.changed_s,
            lazy: seen.lazy,
            draining: seen.draining,
            read_only: seen.read_only,
            full: seen.full,
            forgotten: seen.forgotten,
            free_bytes: seen.free_bytes,
            backlog_s: seen.backlog_s,
        }
    }
}

impl World {
    /// The supervisor starts anew. Workers go on with what they were told, for a while.
    pub fn restart(&mut self, at: usize) {
        let t = self.t;
        let host = &mut self.hosts[at];
        let now_s = host.now_s(t);
        host.desk = Desk::new(now_s);
        host.fetches.clear();
        host.replies.clear();
        for trim in &mut host.trims {
            trim.orphan = true;
            trim.end = trim.end.min(t + PROMISE_S / 2);
        }
        for seen in &mut host.seen {
            (seen.since_s, seen.changed_s, seen.present) = (now_s, now_s, false);
        }
        host.last.iter_mut().for_each(|(_, since_s)| *since_s = now_s);
    }

    /// The machine starts anew, with a clock that has nothing to do with the one before.
    pub fn boot(&mut self, at: usize) {
        let skew_s = self.rng.below(20 * 86_400);
        let fast = self.rng.below(11);
        let host = &mut self.hosts[at];
        (host.up, host.asleep_until, host.skew_s, host.fast) = (true, 0, skew_s, fast);
        host.trims.clear();
        self.restart(at);
    }

    /// What a host does in a step of time; whether it did anything.
    pub fn host_tick(&mut self, at: usize) -> bool {
        let now_s = self.hosts[at].now_s(self.t);
        self.look_at_own_disks(at, now_s);
        self.hear(at, now_s);
        let mut busy = self.end_fetches(at, now_s);
        busy |= self.end_trims(at);
        busy |= self.take_replies(at, now_s);
        self.collect(at);
        self.note_changes(at, now_s);
        busy |= self.think(at, now_s);
        let host = &self.hosts[at];
        busy || !host.fetches.is_empty() || !host.trims.is_empty() || !host.replies.is_empty()
    }

    fn look_at_own_disks(&mut self, at: usize, now_s: u64) {
        for disk in 0..self.disks.len() {
            if self.disks[disk].place != Place::In(at) || self.hosts[at].seen[disk].forgotten {
                continue;
            }
            let free_bytes = self.free(disk);
            let host = &mut self.hosts[at];
            let (truth, seen) = (&mut self.disks[disk], &mut host.seen[disk]);
            if !(seen.present && seen.host == at) {
                host.desk.arrived(truth.id, now_s);
                (seen.present, seen.since_s) = (true, now_s);
                truth.version += 1;
            }
            if seen.backlog_s != host.backlog_s || seen.free_bytes != free_bytes {
                truth.version += 1;
            }
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
            let reached = self.reaches(at, disk) && !self.hosts[at].seen[disk].forgotten;
            let noticed = self.rng.chance(70);
            let seen = &mut self.hosts[at].seen[disk];
            let own = seen.host == at;
            let changes = if reached { own || heard[seen.host] } else { own || noticed };
            if seen.version > 0 && reached != seen.present && changes {
                (seen.present, seen.since_s) = (reached, now_s);
            }
        }
    }

    fn end_fetches(&mut self, at: usize, now_s: u64) -> bool {
        let ended: Vec<Fetch> = self.hosts[at].fetches.extract_if(.., |fetch| fetch.end <= self.t).collect();
        for Fetch { disk, content, .. } in &ended {
            let (disk, content) = (*disk, *content);
            let source =
                |from: &SimPlace| has(from.1, content) && matches!(from.0, Place::In(h) if self.connected(at, h));
            let found = self.disks.iter().map(|disk| (disk.place, disk.holds)).any(|from| source(&from));
            let here = self.disks[disk].place == Place::In(at);
            let (id, name) = (self.disks[disk].id, self.contents[content].id);
            if here && found && self.free(disk) >= self.contents[content].size_bytes && !self.disks[disk].read_only {
                self.disks[disk].holds |= 1 << content;
                self.disks[disk].version += 1;
                self.hosts[at].seen[disk].holds |= 1 << content;
            } else {
                self.hosts[at].desk.failed(id, name, now_s);
            }
            self.hosts[at].desk.fetch_ended(id, name);
        }
        !ended.is_empty()
    }

    pub fn end_trims(&mut self, at: usize) -> bool {
        let t = self.t;
        let ended: Vec<Trimming> = self.hosts[at].trims.extract_if(.., |trim| trim.end <= t).collect();
        for trim in &ended {
            // A worker whose supervisor is gone does it before its deadline, or never.
            if !trim.orphan || t < trim.end + TICK_S {
                self.let_go(at, trim);
            }
            if !trim.orphan {
                let (id, name) = (self.disks[trim.disk].id, self.contents[trim.content].id);
                self.hosts[at].desk.end_trim(id, name);
            }
        }
        !ended.is_empty()
    }

    fn let_go(&mut self, at: usize, trim: &Trimming) {
        let disk = &mut self.disks[trim.disk];
        if disk.place != Place::In(at) || (disk.read_only && !disk.full) || !has(disk.holds, trim.content) {
            return;
        }
        disk.holds &= !(1 << trim.content);
        disk.version += 1;
        self.hosts[at].seen[trim.disk].holds &= !(1 << trim.content);
        self.totals.trims += 1;
        self.totals.evictions += u64::from(self.disks[trim.disk].lazy);
        self.totals.drained += u64::from(self.hosts[at].seen[trim.disk].draining);
        self.check_gone(trim);
    }

    pub fn take_replies(&mut self, at: usize, now_s: u64) -> bool {
        let t = self.t;
        let host = &mut self.hosts[at];
        let arrived: Vec<Reply> = host.replies.extract_if(.., |reply| reply.at <= t).collect();
        for Reply { content, keeper, asked_s, answer, .. } in &arrived {
            let (id, name) = (self.disks[*keeper].id, self.contents[*content].id);
            match answer {
                Ok(lease_s) => host.desk.promised(name, id, *asked_s, *lease_s),
                Err(_) => host.desk.declined(name, id, now_s + 300),
            }
            self.totals.declines += u64::from(answer.is_err());
        }
        !arrived.is_empty()
    }

    /// Disks remove what no file has.
    fn collect(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let removed = |c: &usize| host.catalog[*c].0 == 0 && host.catalog[*c].1 > 0;
        let dead = (0..host.catalog.len()).filter(removed).fold(0, |set: Set, c| set | 1 << c);
        for (disk, seen) in self.disks.iter_mut().zip(&mut host.seen) {
            if disk.place == Place::In(at) && disk.holds & dead != 0 {
                disk.holds &= !dead;
                disk.version += 1;
                seen.holds = disk.holds;
            }
        }
    }

    fn note_changes(&mut self, at: usize, now_s: u64) {
        let host = &mut self.hosts[at];
        for seen in &mut host.seen {
            let state = (seen.host, [seen.lazy, seen.draining, seen.read_only, seen.full, seen.forgotten]);
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

type SimPlace = (Place, Set);
