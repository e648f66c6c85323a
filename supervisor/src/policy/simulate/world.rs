//! What is true, as opposed to what each host believes.

use delugefs_proto::ids::{ContentId, DiskId, HostId};

use super::super::{Desk, Settings};
use super::Rng;
use super::host::{Host, Seen};

/// One step of time. News spread within three of them, a promise holds for ten.
pub const TICK_S: u64 = 60;
pub const GIB: u64 = 1 << 30;
/// Sets of contents are sets of bits.
pub const CONTENTS_MAX: usize = 128;
pub const DISKS_MAX: usize = 24;

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
    pub holds: Set,
    /// What a copy of the whole disk, made some time ago, holds.
    pub old: Set,
    pub refuses_until: u64,
    /// Counts what it publishes.
    pub version: u64,
    /// When it last lost something by an event.
    pub harmed: u64,
    /// When it last became lazy.
    pub lazy_since: u64,
}

pub struct SimContent {
    pub id: ContentId,
    pub size_bytes: u64,
}

/// How often things happened: a simulation that does not do much proves nothing.
#[derive(Default, Debug)]
pub struct Totals {
    pub events: u64,
    pub ticks: u64,
    pub mirrors: u64,
    pub confirms: u64,
    pub declines: u64,
    pub trims: u64,
    pub forbidden: u64,
    pub late_trims: u64,
    pub evictions: u64,
    pub drained: u64,
    /// Copies made in the quiet and let go in the same quiet.
    pub wasted: u64,
    /// Copies made in the quiet.
    pub quiet_mirrors: u64,
    /// Contents that events (never decisions) destroyed.
    pub destroyed: u64,
    /// Trims that relied on a disk which broke or was set back after its promise.
    pub excused: u64,
}

impl Totals {
    pub fn add(&mut self, other: &Totals) {
        let pairs: [(&mut u64, u64); 14] = [
            (&mut self.events, other.events),
            (&mut self.ticks, other.ticks),
            (&mut self.mirrors, other.mirrors),
            (&mut self.confirms, other.confirms),
            (&mut self.declines, other.declines),
            (&mut self.trims, other.trims),
            (&mut self.forbidden, other.forbidden),
            (&mut self.late_trims, other.late_trims),
            (&mut self.evictions, other.evictions),
            (&mut self.drained, other.drained),
            (&mut self.wasted, other.wasted),
            (&mut self.quiet_mirrors, other.quiet_mirrors),
            (&mut self.destroyed, other.destroyed),
            (&mut self.excused, other.excused),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum += more);
    }
}

pub struct World {
    pub rng: Rng,
    pub t: u64,
    pub hosts: Vec<Host>,
    pub disks: Vec<SimDisk>,
    pub contents: Vec<SimContent>,
    /// Partition each host is in, and single cut links.
    pub group: Vec<u64>,
    pub cut: Vec<(usize, usize)>,
    /// Counts edits of the catalog.
    pub edits: u64,
    pub settings: Settings,
    /// (asking host, keeper, content) -> when granted.
    pub granted: std::collections::BTreeMap<(usize, usize, usize), u64>,
    /// (disk, content) mirrored since all became quiet.
    pub fresh: Vec<(usize, usize)>,
    /// Those of them that were let go again.
    pub undone: Vec<(usize, usize)>,
    pub quiet: bool,
    /// Delays shorter than news take: much is done in vain then, but nothing wrong.
    pub hasty: bool,
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
            granted: std::collections::BTreeMap::new(),
            fresh: Vec::new(),
            undone: Vec::new(),
            quiet: false,
            hasty: false,
            totals: Totals::default(),
        };
        if seed.is_multiple_of(3) {
            world.hasty = true;
            let settings = &mut world.settings;
            (settings.grace_s, settings.grace_last_s, settings.takeover_s) = (240, 60, 30);
            (settings.spread_delay_s, settings.trim_delay_s) = (60, 60);
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
            world.new_disk();
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

    pub fn new_disk(&mut self) {
        if self.disks.len() == DISKS_MAX {
            return;
        }
        let id = DiskId(self.id(self.disks.len()));
        let small = self.rng.chance(20);
        self.disks.push(SimDisk {
            id,
            total_bytes: GIB * if small { 30 + self.rng.below(200) } else { 1000 + self.rng.below(4000) },
            foreign_bytes: 0,
            lazy: self.rng.chance(12),
            read_only: false,
            full: false,
            place: Place::In(self.rng.index(self.hosts.len())),
            holds: 0,
            old: 0,
            refuses_until: 0,
            version: 1,
            harmed: 0,
            lazy_since: 0,
        });
        self.hosts.iter_mut().for_each(|host| host.seen.push(Seen::default()));
    }

    /// A new content on a disk that is in a host, written through that host.
    pub fn new_content(&mut self) {
        let fit: Vec<usize> = (0..self.disks.len()).filter(|d| self.writable(*d)).collect();
        let content = self.contents.len();
        if fit.is_empty() || content == CONTENTS_MAX {
            return;
        }
        let disk = fit[self.rng.index(fit.len())];
        let size_bytes = GIB * (1 + self.rng.below(30));
        if self.free(disk) < size_bytes {
            return;
        }
        let id = ContentId(self.id(content));
        self.contents.push(SimContent { id, size_bytes });
        self.disks[disk].holds |= 1 << content;
        self.disks[disk].version += 1;
        let wanted = [1, 2, 2, 2, 2, 3, 3][self.rng.index(7)];
        self.hosts.iter_mut().for_each(Host::one_more_content);
        let Place::In(host) = self.disks[disk].place else { unreachable!() };
        self.set_wanted(host, content, wanted);
    }

    pub fn set_wanted(&mut self, host: usize, content: usize, wanted: u32) {
        self.edits += 1;
        self.hosts[host].catalog[content] = (wanted, self.edits);
    }

    /// Wanted copies by the last edit, and its number.
    pub fn newest(&self, content: usize) -> (u32, u64) {
        self.hosts.iter().map(|host| host.catalog[content]).max_by_key(|(_, edit)| *edit).unwrap_or_default()
    }

    fn writable(&self, disk: usize) -> bool {
        let disk = &self.disks[disk];
        matches!(disk.place, Place::In(host) if self.hosts[host].awake(self.t)) && !disk.read_only
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

    /// Whether a host reaches a disk that it believes to be in another one.
    pub fn reaches(&self, host: usize, disk: usize) -> bool {
        let believed = self.hosts[host].seen[disk].host;
        self.disks[disk].place == Place::In(believed) && self.connected(host, believed)
    }

    /// One step of time; whether anything was done in it.
    pub fn tick(&mut self) -> bool {
        self.t += TICK_S;
        self.totals.ticks += 1;
        let (count, first) = (self.hosts.len(), self.rng.index(self.hosts.len()));
        let mut busy = false;
        for i in 0..count {
            let host = (first + i) % count;
            if self.hosts[host].awake(self.t) {
                busy |= self.host_tick(host);
            }
        }
        busy
    }
}
