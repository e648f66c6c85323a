//! What harms disks. The oracle is told of all that is destroyed here; the hosts see what they can see.

use super::oracle::Fate;
use super::world::{Place, Set, TICK_S, World, has};

impl World {
    /// Some of what is on a disk.
    fn some_of(&mut self, set: Set) -> Set {
        let there: Vec<usize> = (0..self.contents.len()).filter(|c| has(set, *c)).collect();
        let share = [5, 20, 60][self.rng.index(3)];
        there.into_iter().filter(|_| self.rng.chance(share)).fold(0, |some, content| some | 1 << content)
    }

    /// Rot: nobody knows before somebody looks.
    pub fn damage(&mut self, disk: usize) {
        let hit = self.some_of(self.disks[disk].good);
        self.totals.damaged += u64::from(hit.count_ones());
        self.destroy(disk, hit, "damaged");
    }

    /// Somebody takes files away behind the worker's back.
    pub fn vanish(&mut self, disk: usize) {
        if self.disks[disk].lies {
            return;
        }
        let hit = self.some_of(self.disks[disk].good);
        self.totals.vanished += u64::from(hit.count_ones());
        self.destroy(disk, hit, "vanished");
        self.disks[disk].missing |= hit;
    }

    /// From now on the disk has nothing, and says that it has it.
    pub fn turn_liar(&mut self, disk: usize) {
        let liars = self.disks.iter().filter(|disk| disk.lies).count();
        if liars == 0 && self.plugged() > 3 && self.rng.chance(60) {
            self.totals.liars += 1;
            self.destroy(disk, Set::MAX, "it lies");
            let truth = &mut self.disks[disk];
            (truth.lies, truth.missing, truth.suspect, truth.old) = (true, 0, 0, (truth.holds, 0));
        }
    }

    /// Shut out for ever, as soon as it is heard of.
    pub fn revoke(&mut self, host: usize, disk: usize) {
        let truth = &self.disks[disk];
        let is_known = truth.lies || self.hosts[host].seen[disk].version > 0;
        if is_known && !truth.revoked && (truth.lies || self.plugged() > 3) {
            self.totals.revoked += 1;
            self.give_up(disk, self.disks[disk].good, "revoked");
            self.disks[disk].revoked = true;
            self.hosts[host].seen[disk].revoked = true;
        }
    }

    /// What lies in a drawer is given up; it may come back all the same.
    pub fn forget(&mut self, host: usize, disk: usize) {
        if matches!(self.disks[disk].place, Place::In(_)) || self.hosts[host].seen[disk].version == 0 {
            return;
        }
        self.totals.forgotten += 1;
        self.edits += 1;
        let edit = self.edits;
        let seen = &mut self.hosts[host].seen[disk];
        (seen.forgotten, seen.edit) = (true, edit);
    }

    /// It is broken, or wiped.
    pub fn lose(&mut self, disk: usize) {
        if self.plugged() > 3 {
            self.destroy(disk, Set::MAX, "the disk is lost");
            self.disks[disk].place = Place::Lost;
            self.end_worker(disk);
        }
    }

    /// A copy of the whole disk, made some time ago, takes its place.
    pub fn set_back(&mut self, disk: usize) {
        let (holds, good) = self.disks[disk].old;
        self.totals.set_back += 1;
        self.destroy(disk, !good, "set back");
        let back = good & !self.disks[disk].good;
        let truth = &mut self.disks[disk];
        (truth.holds, truth.good, truth.missing, truth.suspect) = (holds, good, 0, 0);
        for content in (0..self.contents.len()).filter(|c| has(back, *c)) {
            self.tell(disk, content, Fate::Restored);
        }
        if self.disks[disk].revoked {
            self.give_up(disk, good, "revoked");
        }
    }

    pub fn toggle_lazy(&mut self, disk: usize) {
        let moment = self.oracle.next_moment();
        let disk = &mut self.disks[disk];
        disk.lazy ^= true;
        disk.lazy_since = moment;
        disk.version += 1;
    }

    /// In the moment in which a disk is asked to keep something, and who asks cannot know it yet, it ceases to be one to rely on.
    pub fn change_when_asked(&mut self, host: usize, disk: usize) {
        if self.quiet || !self.rng.chance(1) {
            return;
        }
        self.totals.changed_when_asked += 1;
        match self.rng.below(3) {
            0 if !self.hosts[host].seen[disk].draining => self.drain(host, disk),
            1 if !self.disks[disk].lazy => self.toggle_lazy(disk),
            _ => (self.disks[disk].read_only, self.disks[disk].full) = (true, false),
        }
        let (truth, seen) = (&mut self.disks[disk], &mut self.hosts[host].seen[disk]);
        truth.version += 1;
        (seen.lazy, seen.read_only, seen.full) = (truth.lazy, truth.read_only, truth.full);
    }

    /// Its worker does nothing for a while, and then goes on; or it is killed, and another one starts.
    pub fn hang(&mut self, disk: usize) {
        if matches!(self.disks[disk].place, Place::In(_)) {
            self.totals.hangs += 1;
            self.disks[disk].hangs_until = self.t + TICK_S * (1 + self.rng.below(40));
        }
    }
}
