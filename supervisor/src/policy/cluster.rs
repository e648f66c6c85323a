//! The disks of a view, prepared so that looking at one content is cheap.

use delugefs_proto::ids::{DiskId, HostId};

use super::view::{Content, Disk, Presence, Settings};
use super::{Desk, weight};

/// A disk with what follows from it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub id: DiskId,
    /// Hosts and sites are numbered; the numbers mean nothing outside.
    pub host: usize,
    pub site: usize,
    /// In the host that decides.
    pub local: bool,
    pub presence: Presence,
    pub here_s: u64,
    pub changed_s: u64,
    pub draining: bool,
    pub read_only: bool,
    pub full: bool,
    pub forgotten: bool,
    /// A content can be fetched from it now.
    pub source: bool,
    /// Its copies count, while it is here or not away for too long.
    pub counts: bool,
    /// For contents that fit into `room_bytes`.
    pub target: bool,
    /// Free and not yet taken by fetches (which are known of local disks only).
    pub room_bytes: u64,
    pub backlog_s: u64,
    key: u64,
    inverse_weight: u64,
}

impl Node {
    /// Its copies count, and it is here.
    pub fn firm(&self) -> bool {
        self.counts && self.presence.is_here()
    }

    pub fn cost(&self, content_key: u64) -> u64 {
        weight::cost(content_key, self.key, self.inverse_weight)
    }
}

/// See the module. Build it once per round, or whenever a disk or the desk changed.
#[derive(Debug)]
pub struct Cluster<'a> {
    pub(super) settings: &'a Settings,
    pub(super) desk: &'a Desk,
    pub(super) nodes: Vec<Node>,
    /// Hosts and sites, by number, with a disk that may take something.
    open_hosts: Vec<bool>,
    open_sites: Vec<bool>,
    /// The nodes that may take something.
    pub(super) targets: Vec<usize>,
    /// When the last of them became what it is now.
    pub(super) settled_s: u64,
    /// Whether any local disk is to be emptied, and any may take something.
    pub(super) drains: bool,
    pub(super) takes: bool,
}

impl<'a> Cluster<'a> {
    /// From the parts of a view that do not depend on the contents.
    pub fn new(me: HostId, disks: &[Disk], desk: &'a Desk, settings: &'a Settings) -> Self {
        let mut disks: Vec<&Disk> = disks.iter().collect();
        // One id twice is a cloned disk: one copy, whatever it says. The one that is here wins.
        disks.sort_by_key(|disk| (disk.id, !disk.presence.is_here(), disk.host != me));
        disks.dedup_by_key(|disk| disk.id);
        let mut hosts: Vec<HostId> = Vec::new();
        let mut host_sites: Vec<usize> = Vec::new();
        let mut sites: Vec<&str> = Vec::new();
        let mut nodes = Vec::with_capacity(disks.len());
        for disk in disks {
            let host = position(&mut hosts, disk.host);
            if host == host_sites.len() {
                host_sites.push(position(&mut sites, &disk.site));
            }
            let local = disk.host == me;
            let counts = !disk.lazy && !disk.draining && !disk.forgotten;
            let here = disk.presence.is_here();
            nodes.push(Node {
                id: disk.id,
                host,
                site: host_sites[host],
                local,
                presence: disk.presence,
                here_s: disk.here_s,
                changed_s: disk.changed_s,
                draining: disk.draining,
                read_only: disk.read_only,
                full: disk.full,
                forgotten: disk.forgotten,
                source: here && !disk.forgotten,
                counts,
                target: here && counts && !disk.read_only,
                room_bytes: disk.free_bytes.saturating_sub(if local { desk.reserved_bytes(disk.id) } else { 0 }),
                backlog_s: disk.backlog_s,
                key: weight::key(&disk.id.0),
                inverse_weight: weight::inverse_weight(disk.free_bytes),
            });
        }
        let open_hosts = (0..hosts.len()).map(|host| nodes.iter().any(|n| n.target && n.host == host)).collect();
        let open_sites = (0..sites.len()).map(|site| nodes.iter().any(|n| n.target && n.site == site)).collect();
        let drains = nodes.iter().any(|node| node.local && node.draining);
        let takes = nodes.iter().any(|node| node.local && node.target);
        let targets: Vec<usize> = (0..nodes.len()).filter(|at| nodes[*at].target).collect();
        let settled_s =
            targets.iter().map(|at| nodes[*at].presence.since_s().max(nodes[*at].changed_s)).max().unwrap_or(0);
        Self { settings, desk, nodes, targets, settled_s, open_hosts, open_sites, drains, takes }
    }

    pub(super) fn find(&self, id: DiskId) -> Option<usize> {
        self.nodes.binary_search_by_key(&id, |node| node.id).ok()
    }

    /// The known disks that say they hold a content, each once.
    pub(super) fn holders(&self, content: &Content) -> Vec<usize> {
        let mut found = Vec::with_capacity(content.holders.len());
        for id in content.holders.iter() {
            if let Some(at) = self.find(*id).filter(|at| !found.contains(at)) {
                found.push(at);
            }
        }
        found
    }
}

/// The place of something in a list, at the end of it when it is new.
fn position<T: PartialEq>(list: &mut Vec<T>, item: T) -> usize {
    list.iter().position(|known| *known == item).unwrap_or_else(|| {
        list.push(item);
        list.len() - 1
    })
}

/// Bits of [`Spread::crowding`]; a used host weighs more than a used site.
pub(super) const HOST_USED: u8 = 2;
pub(super) const SITE_USED: u8 = 1;

/// Hosts and sites that have a copy, while copies are chosen one after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Spread {
    hosts: Vec<usize>,
    sites: Vec<usize>,
}

impl Spread {
    pub fn of<'n>(nodes: impl Iterator<Item = &'n Node>) -> Self {
        let mut spread = Self::default();
        nodes.for_each(|node| spread.add(node));
        spread
    }

    pub fn add(&mut self, node: &Node) {
        position(&mut self.hosts, node.host);
        position(&mut self.sites, node.site);
    }

    /// How bad a place is for one more copy: another host first, then another site.
    #[inline]
    pub fn crowding(&self, node: &Node) -> u8 {
        let host_used = if self.hosts.contains(&node.host) { HOST_USED } else { 0 };
        let site_used = if self.sites.contains(&node.site) { SITE_USED } else { 0 };
        host_used | site_used
    }

    /// Whether a copy there makes `wanted` copies lie on more hosts, or on as many in more sites.
    pub fn improved_by(&self, node: &Node, wanted: usize) -> bool {
        match self.crowding(node) {
            0 => self.sites.len() < wanted,
            SITE_USED => self.hosts.len() < wanted,
            _ => false,
        }
    }

    /// Whether some disk of the cluster may be able to improve it.
    pub fn improvable(&self, cluster: &Cluster<'_>, wanted: usize) -> bool {
        let other = |open: &[bool], used: &[usize]| (0..open.len()).any(|i| open[i] && !used.contains(&i));
        (self.hosts.len() < wanted && other(&cluster.open_hosts, &self.hosts))
            || (self.sites.len() < wanted && other(&cluster.open_sites, &self.sites))
    }
}
