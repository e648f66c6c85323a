//! What can happen to a cluster: to its hosts, its network, its files, and where its disks are. What harms disks is in [`super::harm`].

use super::oracle::Fate;
use super::world::{GIB, Place, Set, SimDisk, TICK_S, World, has};

impl World {
    pub fn some_host(&mut self) -> usize {
        self.rng.index(self.hosts.len())
    }

    fn some_disk(&mut self) -> usize {
        self.rng.index(self.disks.len())
    }

    pub fn plugged(&self) -> usize {
        let is_used = |disk: &&SimDisk| matches!(disk.place, Place::In(_)) && !disk.revoked;
        self.disks.iter().filter(is_used).count()
    }

    /// One event, drawn from the seed. Some draws come to nothing.
    pub fn event(&mut self) {
        self.totals.events += 1;
        let (host, disk, t) = (self.some_host(), self.some_disk(), self.t);
        match self.rng.below(125) {
            0..12 => self.new_content(),
            12..16 => self.change_wanted(host, true),
            16..22 => self.change_wanted(host, false),
            22..32 => self.pull(disk),
            32..48 => self.plug(disk),
            48..51 => self.boot(host),
            51..54 => self.restart_some(host),
            54..57 => self.hosts[host].up = false,
            57..61 if !self.hosts[host].up => self.boot(host),
            57..61 => {}
            61..64 => self.sleep(host),
            64..67 => (0..self.hosts.len()).for_each(|host| self.group[host] = self.rng.below(2)),
            67..72 => {
                self.group.fill(0);
                self.cut.clear();
            }
            72..75 => {
                let other = self.some_host();
                self.cut.push((host.min(other), host.max(other)));
            }
            75..79 => self.fill(disk),
            79..82 => self.disks[disk].refuses_until = t + TICK_S * (5 + self.rng.below(60)),
            82..85 => self.drain(host, disk),
            85..87 => self.forget(host, disk),
            87..88 => self.lose(disk),
            88..91 if self.plugged() < 2 * self.hosts.len() => _ = self.new_disk(),
            88..91 => {}
            91..92 => self.toggle_lazy(disk),
            92..94 => {
                self.disks[disk].read_only ^= true;
                self.disks[disk].full = self.disks[disk].read_only && self.rng.chance(50);
                self.disks[disk].version += 1;
            }
            94..99 => self.disks[disk].old = (self.disks[disk].holds, self.disks[disk].good),
            99..102 => self.hang(disk),
            102..105 => self.restart_worker(disk),
            105..108 => self.damage(disk),
            108..110 => self.vanish(disk),
            110..112 => self.look(disk, Set::MAX),
            112..113 => self.turn_liar(disk),
            113..114 if self.rng.chance(50) => self.revoke(host, disk),
            113..114 => {}
            114..117 => self.retire(disk),
            117..120 => self.read(),
            120..122 => self.carry(host),
            _ => self.write_again(),
        }
    }

    /// Everything is mended that an administrator would mend; some disks stay in their drawer, some workers hang.
    pub fn calm(&mut self) {
        self.group.fill(0);
        self.cut.clear();
        for host in 0..self.hosts.len() {
            self.hosts[host].asleep_until = 0;
            if !self.hosts[host].up {
                self.boot(host);
            }
        }
        for disk in 0..self.disks.len() {
            // Some go on refusing: others have to step in.
            self.disks[disk].refuses_until = if self.rng.chance(12) { u64::MAX } else { 0 };
            if self.rng.chance(50) {
                self.plug(disk);
            }
            self.disks[disk].hangs_until = if self.rng.chance(5) { u64::MAX } else { 0 };
            if self.rng.chance(60) {
                let truth = &mut self.disks[disk];
                (truth.read_only, truth.full, truth.foreign_bytes) = (false, false, 0);
                truth.version += 1;
                if self.hosts[0].seen[disk].draining {
                    self.drain(0, disk);
                }
            }
            self.look(disk, Set::MAX);
            if self.disks[disk].lies {
                self.revoke(0, disk);
            }
        }
        // What broke is replaced.
        while self.plugged() < self.hosts.len() + 2 && self.new_disk() {}
        self.remove_destroyed();
        self.quiet = true;
        self.fresh.clear();
        self.undone.clear();
    }

    fn remove_destroyed(&mut self) {
        for content in 0..self.contents.len() {
            let gone = !(0..self.disks.len()).any(|d| self.is_true(d, content));
            if gone && self.newest(content).0 > 0 {
                self.totals.destroyed += 1;
                self.set_wanted(0, content, 0);
            }
        }
    }

    /// Its clock goes on, but where it may stand still: what desks promise each other needs clocks that go.
    fn sleep(&mut self, host: usize) {
        let until_t = self.t + TICK_S * (1 + self.rng.below(50));
        let stands = self.rng.chance(30) && self.own_promises && self.hosts[host].awake(self.t);
        self.totals.stood_still += u64::from(stands);
        let still_since = stands.then_some(self.t);
        let host = &mut self.hosts[host];
        (host.asleep_until, host.still_since) = (host.asleep_until.max(until_t), host.still_since.or(still_since));
    }

    /// A supervisor starts anew; mostly one that has something under way.
    fn restart_some(&mut self, host: usize) {
        let busy = (0..self.hosts.len()).find(|at| !self.hosts[*at].trims.is_empty());
        let mostly = self.rng.chance(60);
        self.restart(busy.filter(|_| mostly).unwrap_or(host));
    }

    fn change_wanted(&mut self, host: usize, remove: bool) {
        if self.contents.is_empty() || !self.hosts[host].awake(self.t) {
            return;
        }
        let content = self.rng.index(self.contents.len());
        let (wanted, _) = self.hosts[host].catalog[content];
        // What was removed comes back only with its bytes.
        if wanted > 0 && self.newest(content).0 > 0 && (!remove || self.rng.chance(60)) {
            let wanted = if remove { 0 } else { 1 + self.rng.below(4) as u32 };
            self.set_wanted(host, content, wanted);
        }
    }

    fn pull(&mut self, disk: usize) {
        if matches!(self.disks[disk].place, Place::In(_)) {
            self.disks[disk].place = Place::Drawer;
            self.end_worker(disk);
        }
    }

    /// Plugged in again, perhaps elsewhere, perhaps as the copy that was made of it some time ago.
    fn plug(&mut self, disk: usize) {
        let host = self.some_host();
        let old = self.rng.chance(15);
        if self.disks[disk].place != Place::Drawer {
            return;
        }
        if old && !self.quiet {
            self.set_back(disk);
        }
        self.disks[disk].place = Place::In(host);
        self.start_worker(disk);
    }

    /// A disk that others rely on is taken to another host, where nobody knows what it has promised, perhaps to be emptied there.
    fn carry(&mut self, host: usize) {
        let bound = self.oracle.bound(self.t);
        let Some(disk) = bound.get(self.rng.index(bound.len().max(1))).copied() else { return };
        if !matches!(self.disks[disk].place, Place::In(from) if from != host) {
            return;
        }
        self.totals.carried += 1;
        self.pull(disk);
        self.disks[disk].place = Place::In(host);
        self.start_worker(disk);
        if self.rng.chance(50) && !self.hosts[host].seen[disk].draining {
            self.drain(host, disk);
        }
    }

    fn fill(&mut self, disk: usize) {
        let free_bytes = self.free(disk);
        let leave_bytes = GIB * self.rng.below(20);
        let disk = &mut self.disks[disk];
        disk.foreign_bytes = if disk.foreign_bytes > 0 { 0 } else { free_bytes.saturating_sub(leave_bytes) };
        disk.version += 1;
    }

    pub fn drain(&mut self, host: usize, disk: usize) {
        self.edits += 1;
        let edit = self.edits;
        let seen = &mut self.hosts[host].seen[disk];
        if seen.version > 0 {
            (seen.draining, seen.edit) = (!seen.draining, edit);
        }
    }

    /// A disk that is being emptied is taken away for good when nothing that its host knows of is on it any more.
    fn retire(&mut self, disk: usize) {
        let Place::In(host) = self.disks[disk].place else { return };
        let (seen, catalog) = (&self.hosts[host].seen[disk], &self.hosts[host].catalog);
        let left = (0..catalog.len()).any(|c| catalog[c].0 > 0 && has(self.disks[disk].holds, c));
        if seen.draining && !left && self.plugged() > 3 {
            self.totals.retired += 1;
            self.lose(disk);
        }
    }

    /// A file is read through a lazy disk.
    fn read(&mut self) {
        let lazy: Vec<usize> = (0..self.disks.len()).filter(|d| self.disks[*d].lazy).collect();
        let Some(disk) = lazy.get(self.rng.index(lazy.len().max(1))).copied() else { return };
        let Place::In(host) = self.disks[disk].place else { return };
        let truth = &self.disks[disk];
        let works = self.hosts[host].awake(self.t) && self.works(disk) && !truth.read_only && !truth.lies;
        if !works || self.contents.is_empty() {
            return;
        }
        let content = self.rng.index(self.contents.len());
        let is_known = self.hosts[host].catalog[content].0 > 0 && !has(self.disks[disk].holds, content);
        if is_known && self.source(host, content).is_some() && self.free(disk) >= self.contents[content].size_bytes {
            self.totals.reads += 1;
            self.come(disk, content, Fate::Copied);
        }
    }
}
