//! What can happen to a cluster.

use super::world::{GIB, Place, TICK_S, World};

impl World {
    fn some_host(&mut self) -> usize {
        self.rng.index(self.hosts.len())
    }

    fn some_disk(&mut self) -> usize {
        self.rng.index(self.disks.len())
    }

    fn plugged(&self) -> usize {
        self.disks.iter().filter(|disk| matches!(disk.place, Place::In(_))).count()
    }

    /// One event, drawn from the seed. Some draws come to nothing.
    pub fn event(&mut self) {
        self.totals.events += 1;
        let (host, disk, t) = (self.some_host(), self.some_disk(), self.t);
        match self.rng.below(100) {
            0..12 => self.new_content(),
            12..16 => self.change_wanted(host, true),
            16..22 => self.change_wanted(host, false),
            22..32 => self.pull(disk),
            32..48 => self.plug(disk),
            48..51 => self.boot(host),
            51..54 => self.restart(host),
            54..57 => self.hosts[host].up = false,
            57..61 if !self.hosts[host].up => self.boot(host),
            57..61 => {}
            61..64 => self.hosts[host].asleep_until = t + TICK_S * (1 + self.rng.below(50)),
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
            85..86 => self.forget(host, disk),
            86..87 => self.lose(disk),
            87..90 if self.plugged() < 2 * self.hosts.len() => self.new_disk(),
            87..90 => {}
            90..91 => self.toggle_lazy(disk),
            91..93 => {
                self.disks[disk].read_only ^= true;
                self.disks[disk].full = self.disks[disk].read_only && self.rng.chance(50);
                self.disks[disk].version += 1;
            }
            _ => self.disks[disk].old = self.disks[disk].holds,
        }
    }

    /// Everything is mended that an administrator would mend; some disks stay in their drawer.
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
        }
        for disk in 0..self.disks.len() {
            if self.rng.chance(50) {
                self.plug(disk);
            }
        }
        self.remove_destroyed();
        self.quiet = true;
        self.fresh.clear();
        self.undone.clear();
    }

    fn remove_destroyed(&mut self) {
        for content in 0..self.contents.len() {
            let gone = !self.disks.iter().any(|d| d.place != Place::Lost && d.holds >> content & 1 == 1);
            if gone && self.newest(content).0 > 0 {
                self.totals.destroyed += 1;
                self.set_wanted(0, content, 0);
            }
        }
    }

    fn change_wanted(&mut self, host: usize, remove: bool) {
        if self.contents.is_empty() || !self.hosts[host].awake(self.t) {
            return;
        }
        let content = self.rng.index(self.contents.len());
        let (wanted, _) = self.hosts[host].catalog[content];
        // A content that was removed stays so.
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

    /// A disk that goes takes its worker along, and what that was about to do.
    fn end_worker(&mut self, disk: usize) {
        for host in &mut self.hosts {
            for trim in host.trims.extract_if(.., |trim| trim.disk == disk) {
                host.desk.end_trim(self.disks[disk].id, self.contents[trim.content].id);
            }
        }
    }

    /// Plugged in again, perhaps elsewhere, perhaps as the copy that was made of it some time ago.
    fn plug(&mut self, disk: usize) {
        let host = self.some_host();
        let old = self.rng.chance(15);
        let (quiet, t) = (self.quiet, self.t);
        let disk = &mut self.disks[disk];
        if disk.place != Place::Drawer {
            return;
        }
        disk.place = Place::In(host);
        disk.version += 1;
        if old && !quiet {
            disk.holds = disk.old;
            disk.harmed = t;
        }
    }

    fn fill(&mut self, disk: usize) {
        let free_bytes = self.free(disk);
        let leave_bytes = GIB * self.rng.below(20);
        let disk = &mut self.disks[disk];
        disk.foreign_bytes = if disk.foreign_bytes > 0 { 0 } else { free_bytes.saturating_sub(leave_bytes) };
        disk.version += 1;
    }

    fn drain(&mut self, host: usize, disk: usize) {
        self.edits += 1;
        let edit = self.edits;
        let seen = &mut self.hosts[host].seen[disk];
        if seen.version > 0 {
            (seen.draining, seen.edit) = (!seen.draining, edit);
        }
    }

    /// Forgotten is what lies in a drawer or is broken; it never comes back.
    fn forget(&mut self, host: usize, disk: usize) {
        if matches!(self.disks[disk].place, Place::In(_)) || self.hosts[host].seen[disk].version == 0 {
            return;
        }
        (self.disks[disk].place, self.disks[disk].harmed) = (Place::Lost, self.t);
        self.edits += 1;
        let edit = self.edits;
        let seen = &mut self.hosts[host].seen[disk];
        (seen.forgotten, seen.edit) = (true, edit);
    }

    fn lose(&mut self, disk: usize) {
        if self.plugged() > 3 {
            (self.disks[disk].place, self.disks[disk].harmed) = (Place::Lost, self.t);
            self.end_worker(disk);
        }
    }

    fn toggle_lazy(&mut self, disk: usize) {
        let t = self.t;
        let disk = &mut self.disks[disk];
        disk.lazy ^= true;
        disk.lazy_since = t;
        disk.version += 1;
    }
}
