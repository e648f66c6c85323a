//! What is true, as opposed to what each host believes.

use delugefs_proto::ids::{ContentId, DiskId, HostId};

use super::super::{Desk, PROMISE_S, Settings};
use super::Rng;
use super::host::{Host, Seen};
use super::oracle::{Fate, Oracle};
use super::totals::Totals;
use super::workers::Worker;

/// One step of time. News spread within three of them, a promise holds for ten.
pub const TICK_S: u64 = 60;
pub const GIB: u64 = 1 << 30;
/// Sets of contents are sets of bits.
pub const CONTENTS_MAX: usize = 128;
pub const DISKS_MAX: usize = 48;

/// A set of contents.
pub type Set = u128;

pub fn has(set: Set, content: usize) -> bool {
    set >> content & 1 == 1
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    In(usize),
    Drawer,
    Lost,
}

/// A disk as it is.
#[derive(Debug)]
pub struct SimDisk {
    pub id: DiskId,
    pub total_bytes: u64,
    /// Used by others than this cluster.
    pub foreign_bytes: u64,
    pub lazy: bool,
    pub read_only: bool,
    /// Only for want of room.
    pub full: bool,
    pub place: Place,
    /// What it says it holds, and of that
    pub holds: Set,
    /// what is there and right,
    pub good: Set,
    /// what somebody took away behind its back,
    pub missing: Set,
    /// and what it knows to be damaged, and promises to nobody.
    pub suspect: Set,
    /// What a copy of the whole disk, made some time ago, says it holds, and what of that is right.
    pub old: (Set, Set),
    /// Says of everything it ever had, or is asked to fetch, that it has it.
    pub lies: bool,
    /// Shut out, whether or not that is known everywhere.
    pub revoked: bool,
    pub refuses_until: u64,
    /// Its worker does nothing and answers nobody.
    pub hangs_until: u64,
    pub worker: Worker,
    /// Counts what it publishes.
    pub version: u64,
    /// The moment when it last became lazy.
    pub lazy_since: u64,
}

pub struct SimContent {
    pub id: ContentId,
    pub size_bytes: u64,
}

pub struct World {
    pub rng: Rng,
    pub t: u64,
    pub hosts: Vec<Host>,
    pub disks: Vec<SimDisk>,
    pub contents: Vec<SimContent>,
    pub oracle: Oracle,
    /// Partition each host is in, and single cut links.
    pub group: Vec<u64>,
    pub cut: Vec<(usize, usize)>,
    /// Counts edits of the catalog.
    pub edits: u64,
    pub settings: Settings,
    /// (disk, content) mirrored since all became quiet.
    pub fresh: Vec<(usize, usize)>,
    /// Those of them that were let go again.
    pub undone: Vec<(usize, usize)>,
    pub quiet: bool,
    /// Delays shorter than news take: much is done in vain then, but nothing wrong.
    pub hasty: bool,
    /// The workers ask each other for promises (`workers`), as it is in a cluster; else the hosts' desks do.
    pub own_promises: bool,
    /// So many of a hundred answers take their time.
    pub slow: u64,
    /// So many of a hundred disks are lazy.
    pub lazy: u64,
    pub totals: Totals,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut world = World {
            rng: Rng(seed),
            t: 100_000,
            hosts: Vec::new(),
            disks: Vec::new(),
            contents: Vec::new(),
            oracle: Oracle::default(),
            group: Vec::new(),
            cut: Vec::new(),
            edits: 1,
            settings: Settings {
                grace_s: 1200,
                grace_last_s: 300,
                takeover_s: 480,
                takeover_bytes_per_s: GIB,
                spread_delay_s: 900,
                trim_delay_s: 1200,
                max_decisions: 12,
                max_transfers: 4,
                queue_bytes: 9 * GIB,
                max_from_one: 2,
                max_small_transfers: 6,
                max_transfer_bytes: 100 * GIB,
            },
            fresh: Vec::new(),
            undone: Vec::new(),
            quiet: false,
            hasty: seed.is_multiple_of(3),
            own_promises: seed.is_multiple_of(2),
            slow: 15,
            lazy: 12,
            totals: Totals::default(),
        };
        if world.hasty {
            let settings = &mut world.settings;
            (settings.grace_s, settings.grace_last_s, settings.takeover_s) = (240, 60, 30);
            (settings.spread_delay_s, settings.trim_delay_s) = (60, 60);
        }
        if world.rng.chance(30) {
            world.slow = 60;
        }
        if world.rng.chance(15) {
            world.lazy = 70;
        }
        let hosts = 2 + world.rng.index(5);
        let sites = 1 + world.rng.index(3);
        for at in 0..hosts {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&world.rng.number().to_le_bytes());
            let site = format!("site {}", world.rng.index(sites));
            world.hosts.push(Host::new(HostId(id), site, Desk::new(0)));
            world.group.push(0);
            world.boot(at);
        }
        for _ in 0..hosts + 3 {
            _ = world.new_disk();
        }
        for _ in 0..25 {
            world.new_content();
        }
        world
    }

    /// An id that ends in its number.
    fn id(&mut self, number: usize) -> [u8; 32] {
        let mut id = [0; 32];
        id.chunks_mut(8).for_each(|word| word.copy_from_slice(&self.rng.number().to_le_bytes()));
        id[31] = number as u8;
        id
    }

    /// Whether there is room for one more.
    pub fn new_disk(&mut self) -> bool {
        if self.disks.len() == DISKS_MAX {
            return false;
        }
        let id = DiskId(self.id(self.disks.len()));
        let small = self.rng.chance(20);
        self.disks.push(SimDisk {
            id,
            total_bytes: GIB * if small { 30 + self.rng.below(200) } else { 1000 + self.rng.below(4000) },
            foreign_bytes: 0,
            lazy: self.rng.chance(self.lazy),
            read_only: false,
            full: false,
            place: Place::In(self.rng.index(self.hosts.len())),
            holds: 0,
            good: 0,
            missing: 0,
            suspect: 0,
            old: (0, 0),
            lies: false,
            revoked: false,
            refuses_until: 0,
            hangs_until: 0,
            worker: Worker::default(),
            version: 1,
            lazy_since: 0,
        });
        self.start_worker(self.disks.len() - 1);
        self.hosts.iter_mut().for_each(|host| host.seen.push(Seen::default()));
        true
    }

    /// A new content on a disk that is in a host, written through that host.
    pub fn new_content(&mut self) {
        let content = self.contents.len();
        if content == CONTENTS_MAX {
            return;
        }
        // Some travel in one piece.
        let size_bytes = if self.rng.chance(25) { 1 << 20 } else { GIB * (1 + self.rng.below(30)) };
        let Some((host, disk)) = self.place_to_write(size_bytes) else { return };
        let id = ContentId(self.id(content));
        self.contents.push(SimContent { id, size_bytes });
        self.hosts.iter_mut().for_each(Host::one_more_content);
        self.write(host, disk, content);
    }

    /// A host and one of its disks that take changes and so many bytes.
    fn place_to_write(&mut self, size_bytes: u64) -> Option<(usize, usize)> {
        let fit: Vec<usize> = (0..self.disks.len()).filter(|d| self.is_writable(*d)).collect();
        let disk = *fit.get(self.rng.index(fit.len().max(1)))?;
        let Place::In(host) = self.disks[disk].place else { return None };
        (self.free(disk) >= size_bytes).then_some((host, disk))
    }

    fn write(&mut self, host: usize, disk: usize, content: usize) {
        self.come(disk, content, Fate::Written);
        let wanted = [1, 2, 2, 2, 2, 3, 3][self.rng.index(7)];
        self.set_wanted(host, content, wanted);
    }

    /// The same bytes as in a file that was removed, perhaps not heard of as removed or not collected everywhere.
    pub fn write_again(&mut self) {
        let removed: Vec<usize> = (0..self.contents.len()).filter(|c| self.newest(*c).0 == 0).collect();
        let Some(content) = removed.get(self.rng.index(removed.len().max(1))).copied() else { return };
        let Some((host, disk)) = self.place_to_write(self.contents[content].size_bytes) else { return };
        self.totals.rewritten += 1;
        self.write(host, disk, content);
    }

    /// A disk gets a whole content, verified; a liar only says so.
    pub fn come(&mut self, disk: usize, content: usize, fate: Fate) {
        let bit = 1 << content;
        let truth = &mut self.disks[disk];
        truth.holds |= bit;
        truth.missing &= !bit;
        truth.suspect &= !bit;
        truth.version += 1;
        truth.good |= bit;
        self.tell(disk, content, fate);
        if self.disks[disk].lies {
            self.destroy(disk, bit, "it lies");
        } else if self.disks[disk].revoked {
            self.give_up(disk, bit, "revoked");
        }
    }

    pub fn set_wanted(&mut self, host: usize, content: usize, wanted: u32) {
        self.edits += 1;
        self.hosts[host].catalog[content] = (wanted, self.edits);
    }

    /// Wanted copies by the last edit, and its number.
    pub fn newest(&self, content: usize) -> (u32, u64) {
        self.hosts.iter().map(|host| host.catalog[content]).max_by_key(|(_, edit)| *edit).unwrap_or_default()
    }

    fn is_writable(&self, disk: usize) -> bool {
        let Place::In(host) = self.disks[disk].place else { return false };
        let truth = &self.disks[disk];
        self.hosts[host].awake(self.t) && self.works(disk) && !truth.read_only && !truth.lies && !truth.revoked
    }

    pub fn free(&self, disk: usize) -> u64 {
        let disk = &self.disks[disk];
        let held = (0..self.contents.len()).filter(|c| has(disk.holds, *c)).map(|c| self.contents[c].size_bytes);
        disk.total_bytes.saturating_sub(disk.foreign_bytes + held.sum::<u64>())
    }

    /// Whether a host reaches another now.
    pub fn connected(&self, a: usize, b: usize) -> bool {
        let both = self.hosts[a].awake(self.t) && self.hosts[b].awake(self.t);
        both && (a == b || (self.group[a] == self.group[b] && !self.cut.contains(&(a.min(b), a.max(b)))))
    }

    /// Whether a host reaches a disk where it believes it to be, and lets it in.
    pub fn reaches(&self, host: usize, disk: usize) -> bool {
        let seen = &self.hosts[host].seen[disk];
        self.disks[disk].place == Place::In(seen.host)
            && self.works(disk)
            && !seen.is_out()
            && self.connected(host, seen.host)
    }

    /// One step of time; whether anything was done in it.
    pub fn tick(&mut self) -> bool {
        self.t += TICK_S;
        self.totals.ticks += 1;
        let t = self.t;
        self.hosts.iter_mut().filter(|host| host.awake(t)).for_each(|host| host.go_on(t));
        let (count, first) = (self.hosts.len(), self.rng.index(self.hosts.len()));
        let mut busy = false;
        for i in 0..count {
            let host = (first + i) % count;
            if self.hosts[host].awake(self.t) {
                busy |= self.host_tick(host);
            }
        }
        self.check_step();
        busy
    }

    /// A worker of this disk starts: what the one before had been told, and promised, it does not know.
    pub fn start_worker(&mut self, disk: usize) {
        let life = self.disks[disk].worker.life + 1;
        self.disks[disk].worker = Worker { life, settled_t: self.t + PROMISE_S, ..Worker::default() };
        self.disks[disk].hangs_until = 0;
        self.disks[disk].version += 1;
    }
}
