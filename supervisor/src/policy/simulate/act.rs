//! What a host does about what it believes: it asks the policy and carries out what that says. Promises are made by the desks here, as the
//! policy describes it; how workers do it by themselves is in [`super::own`].

use delugefs_proto::ids::{ContentId, DiskId, HostId};

use super::super::*;
use super::host::{Fetch, Reply, Trimming};
use super::oracle::{Farewell, PROMISE_MIN_S};
use super::world::{Place, TICK_S, World, has};

pub fn index(id: &[u8; 32]) -> usize {
    usize::from(id[31])
}

impl World {
    pub fn think(&mut self, at: usize, now_s: u64) -> bool {
        let names: Vec<(HostId, String)> = self.hosts.iter().map(|host| (host.id, host.site.clone())).collect();
        let host = &mut self.hosts[at];
        host.desk.expire(now_s);
        host.forgive(&self.contents);
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
        self.check_plan(&view, &plan, now_s);
        if self.rng.chance(6) {
            self.check_health(&view, now_s);
        }
        let evicts = !self.quiet && self.rng.chance(10);
        let evictions = if evicts && !self.own_promises { evictions(&view, now_s) } else { Vec::new() };
        self.hosts[at].desk = desk;
        self.hosts[at].backlog_s = plan.waiting * TICK_S;
        let busy = plan.decisions.iter().any(|decision| !self.is_doubtful(decision));
        for decision in plan.decisions.into_iter().chain(evictions) {
            match decision {
                Decision::Mirror { disk, content, size_bytes, .. } => self.mirror(at, disk, content, size_bytes, now_s),
                Decision::Confirm { disk, content, keepers, wanted } if self.own_promises => {
                    self.ask_worker(at, disk, content, &keepers, wanted, now_s);
                }
                Decision::Confirm { content, keepers, wanted, .. } => {
                    self.confirm(at, content, &keepers, wanted, now_s);
                }
                Decision::Trim { disk, content, relying_on } => self.trim(at, disk, content, &relying_on, now_s),
            }
        }
        if evicts && self.own_promises {
            self.evict_own(at);
        }
        busy
    }

    /// A question that is put again and again, as long as a copy is known to be damaged and none that is whole is within reach.
    fn is_doubtful(&self, decision: &Decision) -> bool {
        let Decision::Confirm { content, .. } = decision else { return false };
        self.disks.iter().any(|disk| has(disk.suspect, index(&content.0)))
    }

    fn mirror(&mut self, at: usize, id: DiskId, name: ContentId, size_bytes: u64, now_s: u64) {
        let (disk, content) = (index(&id.0), index(&name.0));
        self.totals.mirrors += 1;
        if self.quiet {
            self.totals.quiet_mirrors += 1;
            assert!(!self.undone.contains(&(disk, content)), "copied, let go and copied again without any event");
            self.fresh.push((disk, content));
        }
        let truth = &self.disks[disk];
        if truth.refuses_until > self.t {
            let for_s = if truth.refuses_until == u64::MAX { 1 << 30 } else { 600 };
            return self.hosts[at].desk.refused(id, name, now_s + for_s);
        }
        let (life, end) = (truth.worker.life, self.t + TICK_S * (1 + self.rng.below(3)));
        self.hosts[at].desk.fetching(id, name, size_bytes);
        self.hosts[at].fetches.push(Fetch { disk, content, end, life, given_up: false });
    }

    fn confirm(&mut self, at: usize, name: ContentId, keepers: &[DiskId], asked_wanted: u32, now_s: u64) {
        let names: Vec<(HostId, String)> = self.hosts.iter().map(|host| (host.id, host.site.clone())).collect();
        let content = index(&name.0);
        for id in keepers {
            self.totals.confirms += 1;
            let keeper = index(&id.0);
            self.hosts[at].desk.asking(name, *id, now_s);
            let Place::In(other) = self.disks[keeper].place else {
                self.hosts[at].desk.declined(name, *id, now_s + 120);
                continue;
            };
            if !self.reaches(at, keeper) || self.rng.chance(4) {
                self.hosts[at].desk.declined(name, *id, now_s + 120);
                continue;
            }
            self.change_when_asked(other, keeper);
            let their_now_s = self.hosts[other].now_s(self.t);
            let record = self.hosts[other].record(keeper, *id, &names);
            let own_wanted = Some(self.hosts[other].catalog[content].0);
            self.look_at_file(keeper, content);
            let holds = has(self.disks[keeper].holds & !self.disks[keeper].suspect, content);
            let desk = &mut self.hosts[other].desk;
            let answer = desk.grant(&record, name, holds, own_wanted, asked_wanted, their_now_s);
            if answer.is_ok() {
                assert!(!record.lazy && !record.draining && !record.read_only && record.presence.is_here());
                assert!(own_wanted.is_some_and(|own| own > 0 && own <= asked_wanted), "it knew better");
            }
            let answer = answer.map(|lease_s| (lease_s, self.promise(keeper, content)));
            if self.rng.chance(4) {
                self.hosts[at].desk.declined(name, *id, now_s + 120);
                continue;
            }
            let at_t = self.t + if self.rng.chance(self.slow) { TICK_S * (1 + self.rng.below(12)) } else { 0 };
            self.hosts[at].replies.push(Reply { at: at_t, content, keeper, asked_s: now_s, answer });
        }
        self.take_replies(at, now_s);
    }

    fn trim(&mut self, at: usize, id: DiskId, name: ContentId, relying_on: &[DiskId], now_s: u64) {
        assert!(!self.own_promises, "no answer is known to any desk");
        let (disk, content) = (index(&id.0), index(&name.0));
        if !self.hosts[at].desk.begin_trim(id, name, relying_on, now_s) {
            self.totals.forbidden += 1;
            return;
        }
        let promise = |id: &DiskId| self.hosts[at].promises[&(index(&id.0), content)];
        let keepers: Vec<_> = relying_on.iter().map(promise).collect();
        for promise in &keepers {
            assert!(promise.t + PROMISE_MIN_S >= self.t, "at {} s: {promise:?} may be over", self.t);
        }
        let farewell = Farewell { disk, content, needed: self.hosts[at].catalog[content].0, keepers };
        self.check_begin(&farewell);
        if self.rng.chance(5) {
            self.hosts[at].desk.end_trim(id, name);
            return self.hosts[at].desk.refused(id, name, now_s + 600);
        }
        // Now and then a worker takes its time, longer than any promise.
        let delay = if self.rng.chance(self.slow) { TICK_S * self.rng.below(30) } else { 0 };
        self.totals.late_trims += u64::from(delay > PROMISE_S);
        self.hosts[at].trims.push(Trimming { farewell, end: self.t + delay, orphan: false });
        self.end_trims(at);
    }
}

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
