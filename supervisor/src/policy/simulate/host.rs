//! What a host believes, and how it comes to believe it; and what it does about it. This plays the caller of the policy.

use delugefs_proto::ids::{ContentId, DiskId, HostId};

use super::super::*;
use super::world::{Place, Set, TICK_S, World, has};

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
    pub backlog_s: u64,
    pub present: bool,
    pub since_s: u64,
    /// By the catalog, with the number of the edit.
    pub draining: bool,
    pub forgotten: bool,
    pub edit: u64,
    pub changed_s: u64,
    /// What `changed_s` watches.
    last: (usize, [bool; 4]),
}

struct Fetch {
    disk: usize,
    content: usize,
    end: u64,
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

struct Reply {
    at: u64,
    content: usize,
    keeper: usize,
    asked_s: u64,
    answer: Result<u64, Decline>,
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
    last: Vec<((u64, u32), u64)>,
    pulled: Vec<u64>,
    backlog_s: u64,
    fetches: Vec<Fetch>,
    pub trims: Vec<Trimming>,
    replies: Vec<Reply>,
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

    pub fn one_more_content(&mut self) {
        self.catalog.push((0, 0));
        self.last.push(((0, 0), 0));
    }

    fn record(&self, disk: usize, id: DiskId, hosts: &[(HostId, String)]) -> Disk {
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
            changed_s: seen.changed_s,
            lazy: seen.lazy,
            draining: seen.draining,
            read_only: seen.read_only,
            forgotten: seen.forgotten,
            free_bytes: seen.free_bytes,
            backlog_s: seen.backlog_s,
        }
    }
}

fn index(id: &[u8; 32]) -> usize {
    usize::from(id[31])
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
            (seen.lazy, seen.read_only, seen.backlog_s) = (truth.lazy, truth.read_only, host.backlog_s);
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
                    (seen.lazy, seen.read_only) = (new.lazy, new.read_only);
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
                self.hosts[at].desk.refused(id, name, now_s + 300);
            }
            self.hosts[at].desk.fetch_ended(id, name);
        }
        !ended.is_empty()
    }

    fn end_trims(&mut self, at: usize) -> bool {
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
        if disk.place != Place::In(at) || disk.read_only || !has(disk.holds, trim.content) {
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

    fn take_replies(&mut self, at: usize, now_s: u64) -> bool {
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
            let state = (seen.host, [seen.lazy, seen.draining, seen.read_only, seen.forgotten]);
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

    fn think(&mut self, at: usize, now_s: u64) -> bool {
        let names: Vec<(HostId, String)> = self.hosts.iter().map(|host| (host.id, host.site.clone())).collect();
        let host = &mut self.hosts[at];
        host.desk.expire(now_s);
        let known = (0..self.disks.len()).filter(|d| host.seen[*d].version > 0);
        let disks: Vec<Disk> = known.map(|d| host.record(d, self.disks[d].id, &names)).collect();
        let live = (0..host.catalog.len()).filter(|c| host.catalog[*c].0 > 0);
        let contents: Vec<Content> = live
            .map(|c| {
                let ((mask, wanted), changed_s) = host.last[c];
                let holders = (0..self.disks.len()).filter(|d| mask >> d & 1 == 1).map(|d| self.disks[d].id).collect();
                Content { id: self.contents[c].id, size_bytes: self.contents[c].size_bytes, wanted, holders, changed_s }
            })
            .collect();
        // Taken out for as long as the view needs it.
        let desk = std::mem::replace(&mut host.desk, Desk::new(0));
        let settings = self.settings.clone();
        let view = View { me: host.id, disks: &disks, contents: &contents, desk: &desk, settings: &settings };
        let plan = plan(&view, now_s);
        self.check_plan(at, &view, &plan, now_s);
        let evictions = if !self.quiet && self.rng.chance(10) { evictions(&view, now_s) } else { Vec::new() };
        self.hosts[at].desk = desk;
        self.hosts[at].backlog_s = plan.waiting * TICK_S;
        let busy = !plan.decisions.is_empty();
        for decision in plan.decisions.into_iter().chain(evictions) {
            match decision {
                Decision::Mirror { disk, content, size_bytes, .. } => self.mirror(at, disk, content, size_bytes, now_s),
                Decision::Confirm { content, keepers, wanted, .. } => {
                    self.confirm(at, content, &keepers, wanted, now_s)
                }
                Decision::Trim { disk, content, relying_on } => self.trim(at, disk, content, &relying_on, now_s),
            }
        }
        busy
    }

    fn mirror(&mut self, at: usize, id: DiskId, name: ContentId, size_bytes: u64, now_s: u64) {
        let (disk, content) = (index(&id.0), index(&name.0));
        self.totals.mirrors += 1;
        if self.quiet {
            self.totals.quiet_mirrors += 1;
            assert!(!self.undone.contains(&(disk, content)), "copied, let go and copied again without any event");
            self.fresh.push((disk, content));
        }
        if self.disks[disk].refuses_until > self.t {
            return self.hosts[at].desk.refused(id, name, now_s + 600);
        }
        let end = self.t + TICK_S * (1 + self.rng.below(3));
        self.hosts[at].desk.fetching(id, name, size_bytes);
        self.hosts[at].fetches.push(Fetch { disk, content, end });
    }

    fn confirm(&mut self, at: usize, name: ContentId, keepers: &[DiskId], asked_wanted: u32, now_s: u64) {
        let names: Vec<(HostId, String)> = self.hosts.iter().map(|host| (host.id, host.site.clone())).collect();
        let content = index(&name.0);
        for id in keepers {
            self.totals.confirms += 1;
            let keeper = index(&id.0);
            self.hosts[at].desk.asking(name, *id, now_s);
            if !self.reaches(at, keeper) || self.rng.chance(4) {
                self.hosts[at].desk.declined(name, *id, now_s + 120);
                continue;
            }
            let other = self.hosts[at].seen[keeper].host;
            let their_now_s = self.hosts[other].now_s(self.t);
            let record = self.hosts[other].record(keeper, *id, &names);
            let own_wanted = Some(self.hosts[other].catalog[content].0);
            let holds = has(self.disks[keeper].holds, content);
            let desk = &mut self.hosts[other].desk;
            let answer = desk.grant(&record, name, holds, own_wanted, asked_wanted, their_now_s);
            if answer.is_ok() {
                assert!(holds && !record.lazy && !record.draining && !record.read_only && record.presence.is_here());
                assert!(own_wanted.is_some_and(|own| own > 0 && own <= asked_wanted), "it knew better");
                self.granted.insert((at, keeper, content), self.t);
            }
            if self.rng.chance(4) {
                self.hosts[at].desk.declined(name, *id, now_s + 120);
                continue;
            }
            let at_t = self.t + if self.rng.chance(15) { TICK_S * (1 + self.rng.below(12)) } else { 0 };
            self.hosts[at].replies.push(Reply { at: at_t, content, keeper, asked_s: now_s, answer });
        }
        self.take_replies(at, now_s);
    }

    fn trim(&mut self, at: usize, id: DiskId, name: ContentId, relying_on: &[DiskId], now_s: u64) {
        let (disk, content) = (index(&id.0), index(&name.0));
        if !self.hosts[at].desk.begin_trim(id, name, relying_on, now_s) {
            self.totals.forbidden += 1;
            return;
        }
        let keepers: Vec<usize> = relying_on.iter().map(|id| index(&id.0)).collect();
        let wanted = self.hosts[at].catalog[content].0;
        let promised = self.check_begin(at, disk, content, &keepers, wanted);
        if self.rng.chance(5) {
            self.hosts[at].desk.end_trim(id, name);
            return self.hosts[at].desk.refused(id, name, now_s + 600);
        }
        if self.quiet && !self.hasty && self.fresh.contains(&(disk, content)) {
            self.totals.wasted += 1;
            self.undone.push((disk, content));
        }
        // Now and then a worker takes its time, longer than any promise.
        let delay = if self.rng.chance(15) { TICK_S * self.rng.below(30) } else { 0 };
        self.totals.late_trims += u64::from(delay > PROMISE_S);
        let end = self.t + delay;
        self.hosts[at].trims.push(Trimming { disk, content, end, orphan: false, wanted, promised });
        self.end_trims(at);
    }
}

type SimPlace = (Place, Set);

/// What the lazy disks of a host would like to evict: everything that they may.
fn evictions(view: &View<'_>, now_s: u64) -> Vec<Decision> {
    let cluster = Cluster::new(view.me, view.disks, view.desk, view.settings);
    let mut wishes = Vec::new();
    for disk in view.disks.iter().filter(|disk| disk.host == view.me && disk.lazy) {
        for content in view.contents.iter().filter(|content| content.holders.contains(&disk.id)) {
            let answer = release(&cluster, content, disk.id, now_s);
            let (disk, content, wanted) = (disk.id, content.id, content.wanted);
            match answer {
                Release::Ask { keepers } => wishes.push(Decision::Confirm { disk, content, keepers, wanted }),
                Release::Yes { relying_on } => wishes.push(Decision::Trim { disk, content, relying_on }),
                Release::No | Release::Later { .. } => {}
            }
        }
    }
    wishes
}
