//! How well the contents are kept, for `delugefs status`.

use std::collections::BTreeSet;

use delugefs_proto::ids::{ContentId, DiskId};

use super::cluster::Cluster;
use super::mirror::{Tally, tally};
use super::view::{Content, Disk, View};

/// Most entries of each list; the totals count all.
pub const LIST_MAX: usize = 100;

/// So long copies may be missing before a person should look at it, in seconds: as long as a host needs to step in for
/// another one, and then to copy a large content.
const SHORT_LONG_S: u64 = 3600;

/// A content with too few copies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AtRisk {
    /// Copies that are present and count.
    pub present: u32,
    /// Copies that there should be.
    pub wanted: u32,
    /// Which content.
    pub content: ContentId,
}

/// A content of which one copy exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Single {
    /// Which content.
    pub content: ContentId,
    /// Where the copy is.
    pub disk: DiskId,
    /// Whether that disk is connected.
    pub present: bool,
}

/// What one disk holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskHealth {
    /// Which disk.
    pub disk: DiskId,
    /// Whether it is connected.
    pub present: bool,
    /// Contents on it that some file has.
    pub contents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that no other disk has: lost if this disk is. Of a disk that is being emptied, what is missing
    /// until it may be taken away.
    pub only_here: u64,
}

/// See the module. Copies on forgotten disks do not exist; contents that no file has are left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// Contents in all.
    pub contents: u64,
    /// Contents with fewer present copies that count than wanted.
    pub short: u64,
    /// Those of them that lack only copies on disks which were seen recently: nothing is done yet.
    pub short_waiting: u64,
    /// Those of `short` that are not waiting, can be read, and have been so for more than an hour, but for absences that are short: no
    /// host gets a further copy made. None in a cluster of one disk, where that is no news.
    pub short_long: u64,
    /// Contents on disks of this host that are being emptied which have enough copies elsewhere only with those of disks that take no
    /// changes, and so promise nothing; and nobody has made, or can make, another one. They do not go.
    pub stuck: u64,
    /// The disks that take no changes.
    pub stuck_by: BTreeSet<DiskId>,
    /// The worst of those that are short first.
    pub at_risk: Vec<AtRisk>,
    /// Contents of which one copy exists (on whatever disk, present or not) although more are wanted.
    pub single: u64,
    /// Some of them.
    pub singles: Vec<Single>,
    /// Contents that cannot be read now, but from a disk that is absent.
    pub unreachable: u64,
    /// Those of them that no disk is known to hold, while one of these may.
    pub unknown: u64,
    /// The disks that have not said since the start what they hold.
    pub unheard: Vec<DiskId>,
    /// Contents without any copy.
    pub gone: u64,
    /// Some of them.
    pub gone_list: Vec<ContentId>,
    /// Every disk that was not forgotten, by id.
    pub disks: Vec<DiskHealth>,
}

/// Looks at every content of the view, which therefore should have all.
pub fn health(view: &View<'_>, now_s: u64) -> Health {
    let cluster = Cluster::new(view.me, view.disks, view.desk, view.settings);
    let mut disks: Vec<DiskHealth> = cluster
        .nodes
        .iter()
        .map(|n| DiskHealth { disk: n.id, present: n.source, contents: 0, bytes: 0, only_here: 0 })
        .collect();
    // With one disk that keeps copies, nothing can be done but to add another.
    let has_others = view.disks.iter().filter(|disk| !disk.forgotten && !disk.lazy).count() > 1;
    let is_unheard = |disk: &&Disk| !disk.forgotten && !disk.heard;
    let mut health =
        Health { unheard: view.disks.iter().filter(is_unheard).map(|disk| disk.id).collect(), ..Health::default() };
    for content in view.contents.iter().filter(|content| content.wanted > 0) {
        let mut tally = tally(&cluster, content, now_s);
        tally.holders.retain(|at| !cluster.nodes[*at].forgotten);
        health.contents += 1;
        for at in &tally.holders {
            disks[*at].contents += 1;
            disks[*at].bytes = disks[*at].bytes.saturating_add(content.size_bytes);
        }
        if tally.firm < content.wanted {
            health.short += 1;
            let is_waiting = tally.expected.len() >= content.wanted as usize;
            // One that comes and goes gives as little time to copy it, and is not to begin anew with each coming.
            let sources = tally.holders.iter().map(|at| &cluster.nodes[*at]).filter(|node| node.source);
            let readable_s = sources.map(|node| node.here_s).min().unwrap_or(0);
            let since_s = content.changed_s.max(tally.opened_s).max(readable_s);
            let is_long =
                has_others && !is_waiting && tally.readable > 0 && since_s.saturating_add(SHORT_LONG_S) < now_s;
            health.short_waiting += u64::from(is_waiting);
            health.short_long += u64::from(is_long);
            health.at_risk.push(AtRisk { present: tally.firm, wanted: content.wanted, content: content.id });
        }
        if cluster.drains && tally.firm >= content.wanted {
            stuck(&cluster, content, &tally, now_s, &mut health);
        }
        match tally.holders[..] {
            // Who holds what is heard of again after a start: until then it is not known to be nowhere.
            [] if !health.unheard.is_empty() => {
                health.unknown += 1;
                health.unreachable += 1;
            }
            [] => {
                health.gone += 1;
                push(&mut health.gone_list, content.id);
            }
            [at] => {
                disks[at].only_here += 1;
                if content.wanted > 1 {
                    health.single += 1;
                    let node = &cluster.nodes[at];
                    push(&mut health.singles, Single { content: content.id, disk: node.id, present: node.source });
                }
            }
            _ => {}
        }
        health.unreachable += u64::from(tally.readable == 0 && !tally.holders.is_empty());
        if health.at_risk.len() >= 64 * LIST_MAX {
            cut(&mut health.at_risk);
        }
    }
    cut(&mut health.at_risk);
    health.disks = disks.into_iter().zip(&cluster.nodes).filter(|(_, n)| !n.forgotten).map(|(disk, _)| disk).collect();
    health
}

/// See [`Health::stuck`].
fn stuck(cluster: &Cluster<'_>, content: &Content, tally: &Tally, now_s: u64, health: &mut Health) {
    let (nodes, holders) = (&cluster.nodes, &tally.holders);
    let refusing = || holders.iter().filter(|at| nodes[**at].firm() && nodes[**at].read_only);
    let is_enough = tally.firm as usize - refusing().count() >= content.wanted as usize;
    let is_leaving = holders.iter().any(|at| nodes[*at].local && nodes[*at].draining);
    // What is being copied has taken the room that it needs.
    let is_coming = cluster.desk.fetchers(content.id).next().is_some();
    if is_enough || !is_leaving || is_coming {
        return;
    }
    let has_place = |at: &usize| !holders.contains(at) && nodes[*at].room_bytes >= content.size_bytes;
    let since_s = content.changed_s.max(tally.opened_s);
    if since_s.saturating_add(SHORT_LONG_S) < now_s || !cluster.targets.iter().any(has_place) {
        health.stuck += 1;
        health.stuck_by.extend(refusing().map(|at| nodes[*at].id));
    }
}

fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() < LIST_MAX {
        list.push(item);
    }
}

/// Leaves the worst.
fn cut(list: &mut Vec<AtRisk>) {
    list.sort_unstable();
    list.truncate(LIST_MAX);
}
