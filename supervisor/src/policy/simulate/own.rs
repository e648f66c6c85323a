//! The promises as the workers make them, which is how it is in a cluster (`diskworker/src/fetch/promise.rs`, `evict.rs`): the supervisor
//! asks its worker to let a copy go, and that asks the others itself. Played here so that the policy is seen with what it really has:
//! no answer ever gets to a desk but that a copy stayed.

use delugefs_proto::ids::{ContentId, DiskId};

use super::super::{FAILED_S, PROMISE_S};
use super::act::index;
use super::host::Trimming;
use super::oracle::{Farewell, Promise};
use super::world::{Place, TICK_S, World, has};

/// What may be over at any time is asked for again after that.
const SOON_S: u64 = 30;

/// What a worker that is asked to let a copy go answers.
enum Reply {
    Goes,
    /// Seconds until it may be asked again; 0 when that is no matter of time.
    Stays(u64),
    /// Nothing, or nothing in time.
    Silent,
}

impl World {
    /// As the supervisor carries out a `Confirm`.
    pub fn ask_worker(&mut self, at: usize, id: DiskId, name: ContentId, keepers: &[DiskId], wanted: u32, now_s: u64) {
        self.totals.confirms += 1;
        let (disk, content) = (index(&id.0), index(&name.0));
        let for_s = match self.stop_mirroring(at, disk, content, wanted, wanted) {
            Reply::Stays(again_s) if again_s > 0 => again_s.clamp(5, PROMISE_S),
            Reply::Silent => FAILED_S,
            Reply::Goes | Reply::Stays(_) => PROMISE_S,
        };
        let desk = &mut self.hosts[at].desk;
        desk.refused(id, name, now_s + for_s);
        keepers.iter().for_each(|keeper| desk.declined(name, *keeper, now_s + for_s));
    }

    /// A lazy disk wants room: what may go, by itself.
    pub fn evict_own(&mut self, at: usize) {
        for disk in 0..self.disks.len() {
            let truth = &self.disks[disk];
            let is_lazy = truth.lazy && !truth.read_only && !truth.revoked;
            if !is_lazy || truth.place != Place::In(at) || !self.works(disk) {
                continue;
            }
            let seen = &self.hosts[at].seen;
            let may_keep = |d: &usize| {
                *d != disk && seen[*d].version > 0 && !seen[*d].lazy && !seen[*d].draining && !seen[*d].is_gone()
            };
            let most = (0..seen.len()).filter(may_keep).count().max(1) as u32;
            for content in (0..self.contents.len()).filter(|c| has(self.disks[disk].holds, *c)).collect::<Vec<_>>() {
                let wanted = self.hosts[at].catalog[content].0;
                if wanted > 0 {
                    let reply = self.stop_mirroring(at, disk, content, wanted, wanted.min(most));
                    self.totals.meagre_evictions += u64::from(matches!(reply, Reply::Goes) && wanted > most);
                }
            }
        }
    }

    /// Let the copy of a disk go if so many others promise to keep theirs.
    fn stop_mirroring(&mut self, at: usize, disk: usize, content: usize, wanted: u32, needed: u32) -> Reply {
        if self.disks[disk].place != Place::In(at) || !self.works(disk) {
            return Reply::Silent;
        }
        self.look_at_file(disk, content);
        let truth = &mut self.disks[disk];
        let bit = 1 << content;
        if truth.holds & bit == 0 || needed == 0 {
            return Reply::Stays(0);
        }
        if truth.worker.settled_t > self.t {
            return Reply::Stays(truth.worker.settled_t - self.t);
        }
        if let Some(until) = truth.worker.promised.get(&content).filter(|until| **until > self.t) {
            return Reply::Stays(*until - self.t);
        }
        if truth.worker.leaving & bit != 0 {
            return Reply::Stays(SOON_S);
        }
        truth.worker.leaving |= bit;
        let (count, first) = (self.disks.len(), self.rng.index(self.disks.len()));
        let (mut promises, mut later) = (Vec::new(), false);
        for keeper in (0..count).map(|i| (first + i) % count) {
            let seen = &self.hosts[at].seen[keeper];
            let may = keeper != disk && has(seen.holds, content) && !seen.lazy && seen.version > 0;
            if !may || !self.reaches(at, keeper) || promises.len() == needed as usize {
                continue;
            }
            match self.promise_own(at, keeper, content, wanted) {
                Ok(promise) => promises.push(promise),
                Err(soon) => {
                    later |= soon;
                    self.totals.declines += 1;
                }
            }
        }
        if promises.len() < needed as usize {
            self.disks[disk].worker.leaving &= !bit;
            return Reply::Stays(if later { SOON_S } else { 0 });
        }
        let farewell = Farewell { disk, content, needed, keepers: promises };
        self.check_begin(&farewell);
        // Now and then a worker takes its time, longer than any promise, and than its supervisor waits.
        let delay = if self.rng.chance(self.slow) { TICK_S * self.rng.below(30) } else { 0 };
        self.totals.late_trims += u64::from(delay > PROMISE_S);
        self.hosts[at].trims.push(Trimming { farewell, end: self.t + delay, orphan: false });
        self.end_trims(at);
        if delay > 0 { Reply::Silent } else { Reply::Goes }
    }

    /// Another disk is asked to keep a content; whether it may soon, when it does not promise it.
    fn promise_own(&mut self, asking: usize, keeper: usize, content: usize, asked: u32) -> Result<Promise, bool> {
        if self.rng.chance(4) {
            return Err(true);
        }
        self.look_at_file(keeper, content);
        let Place::In(host) = self.disks[keeper].place else { return Err(true) };
        self.change_when_asked(host, keeper);
        let (truth, seen) = (&self.disks[keeper], &self.hosts[host].seen[keeper]);
        if truth.worker.settled_t > self.t {
            return Err(true);
        }
        if truth.lazy || truth.read_only || seen.draining || seen.is_gone() {
            return Err(false);
        }
        let ((own, edit), (_, asked_edit)) = (self.hosts[host].catalog[content], self.hosts[asking].catalog[content]);
        if has(truth.suspect, content) || edit < asked_edit || has(truth.worker.leaving, content) {
            return Err(true);
        }
        if !has(truth.holds, content) {
            return Err(false);
        }
        self.disks[keeper].worker.promised.insert(content, self.t + PROMISE_S);
        if own == 0 || own > asked {
            return Err(false); // bound all the same
        }
        let promise = self.promise(keeper, content);
        // The answer may be lost.
        if self.rng.chance(4) { Err(true) } else { Ok(promise) }
    }

    /// Who is asked for a content sees whether there is a file.
    pub fn look_at_file(&mut self, disk: usize, content: usize) {
        if has(self.disks[disk].missing, content) {
            self.look(disk, 1 << content);
        }
    }
}
