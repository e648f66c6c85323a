//! One content: what the local disks should do about it now.

use delugefs_proto::ids::{ContentId, DiskId};

use super::cluster::{Cluster, HOST_USED, Node, SITE_USED, Spread};
use super::release::{Release, release_node};
use super::view::{Content, Presence};
use super::{Decision, Reason, weight};

/// Whatever a host says about its queue, it is passed over after that, in seconds.
const BACKLOG_MAX_S: u64 = 24 * 3600;

/// A decision, and what tells how urgent it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// What to do.
    pub decision: Decision,
    /// Copies that can be read now, on whatever disks.
    pub readable: u32,
    /// The disk from which alone it can be fetched.
    pub only_from: Option<DiskId>,
    /// How often that came to nothing.
    pub failures: u32,
    /// How many times others were passed over: those whose turn it is by rank come before those who step in.
    pub steps: u64,
    /// Since when there is a reason for it.
    pub since_s: u64,
}

/// What came of looking at one content.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// At most one for each local disk.
    pub wishes: Vec<Wish>,
    /// Fetches of it under way: the disk from which alone it can be fetched, and the bytes that are still to come.
    pub under_way: Vec<(DiskId, u64)>,
    /// When to look again even if nothing changes until then.
    pub again_s: Option<u64>,
}

impl Verdict {
    fn look_at(&mut self, at_s: u64) {
        self.again_s = Some(self.again_s.map_or(at_s, |again_s| again_s.min(at_s)));
    }
}

/// The copies of a content.
#[derive(Debug)]
pub(super) struct Tally {
    /// All known disks that say they hold it.
    pub holders: Vec<usize>,
    /// Of these, whose copies count here and now, or will when their disk comes back in time.
    pub expected: Vec<usize>,
    /// Copies that can be read now,
    pub readable: u32,
    /// and since when one of them can be, without a break.
    pub readable_s: u64,
    /// Copies that count and are here.
    pub firm: u32,
    /// Copies on disks that are here and being emptied.
    pub draining: u32,
    /// When the last of the other copies stopped counting.
    pub opened_s: u64,
    /// When the first of the awaited disks will have been away for too long.
    pub patience_s: Option<u64>,
}

impl Tally {
    /// The disk that has the only copy that can be read now.
    fn only_source(&self, cluster: &Cluster<'_>) -> Option<DiskId> {
        let mut sources = self.holders.iter().map(|at| &cluster.nodes[*at]).filter(|node| node.source);
        sources.next().filter(|_| self.readable == 1).map(|node| node.id)
    }
}

/// Counts.
pub(super) fn tally(cluster: &Cluster<'_>, content: &Content, now_s: u64) -> Tally {
    let holders = cluster.holders(content);
    let count = |test: &dyn Fn(&Node) -> bool| holders.iter().filter(|at| test(&cluster.nodes[**at])).count() as u32;
    let firm = count(&Node::firm);
    let readable = count(&|node| node.source);
    let sources = holders.iter().map(|at| &cluster.nodes[*at]).filter(|node| node.source);
    let readable_s = sources.map(|node| node.presence.since_s()).min().unwrap_or(0);
    let draining = count(&|node| node.source && node.draining);
    let alone = content.wanted >= 2 && firm <= 1;
    let grace_s = if alone { cluster.settings.grace_last_s } else { cluster.settings.grace_s };
    let mut tally = Tally {
        expected: Vec::with_capacity(holders.len()),
        holders,
        readable,
        readable_s,
        firm,
        draining,
        opened_s: 0,
        patience_s: None,
    };
    for at in &tally.holders {
        let node = &cluster.nodes[*at];
        let end_s = match node.presence {
            Presence::Here { .. } => u64::MAX,
            Presence::Absent { since_s } => since_s.saturating_add(grace_s),
        };
        // One that promises nothing keeps a copy, but not so that another can go that is to be emptied.
        if !node.counts || (draining > 0 && node.read_only) {
            tally.opened_s = tally.opened_s.max(node.changed_s);
        } else if end_s <= now_s {
            tally.opened_s = tally.opened_s.max(end_s);
        } else {
            tally.expected.push(*at);
            if end_s != u64::MAX {
                tally.patience_s = Some(tally.patience_s.map_or(end_s, |first_s| first_s.min(end_s)));
            }
        }
    }
    tally
}

/// What the local disks should do about a content. Looks at nothing but its arguments; see the module [`super`].
pub fn decide_content(cluster: &Cluster<'_>, content: &Content, now_s: u64) -> Verdict {
    let mut verdict = Verdict::default();
    if content.wanted == 0 {
        return verdict;
    }
    let mut tally = tally(cluster, content, now_s);
    if cluster.takes && tally.readable > 0 {
        mirror(cluster, content, &mut tally, now_s, &mut verdict);
    }
    // Looked at only where a copy may be surplus: enough others that are here.
    if tally.firm > content.wanted || (cluster.drains && tally.firm >= content.wanted) {
        for at in &tally.holders {
            let node = &cluster.nodes[*at];
            if !node.local || !(node.firm() || node.draining) {
                continue;
            }
            let (disk, id) = (node.id, content.id);
            let decision = match release_node(cluster, content, &tally.holders, *at, now_s) {
                Release::No => continue,
                Release::Later { at_s } => {
                    verdict.look_at(at_s);
                    continue;
                }
                Release::Ask { keepers } => Decision::Confirm { disk, content: id, keepers, wanted: content.wanted },
                Release::Yes { relying_on } => Decision::Trim { disk, content: id, relying_on },
            };
            let since_s = content.changed_s.max(node.changed_s);
            let readable = tally.readable;
            verdict.wishes.push(Wish { decision, readable, only_from: None, failures: 0, steps: 0, since_s });
        }
    }
    verdict
}

/// Adds the wishes for new copies.
fn mirror(cluster: &Cluster<'_>, content: &Content, tally: &mut Tally, now_s: u64, verdict: &mut Verdict) {
    let wanted = content.wanted as usize;
    if let Some(at_s) = tally.patience_s {
        verdict.look_at(at_s);
    }
    let mut spread = Spread::of(tally.expected.iter().map(|at| &cluster.nodes[*at]));
    if tally.expected.len() >= wanted && !spread.improvable(cluster, wanted) {
        return;
    }
    let only_from = tally.only_source(cluster);
    for (disk, left_bytes) in cluster.desk.fetchers(content.id) {
        verdict.under_way.extend(only_from.filter(|_| left_bytes > 0).map(|from| (from, left_bytes)));
        // What a disk fetches that hangs may never come.
        let comes = |at: &usize| {
            let node = &cluster.nodes[*at];
            node.counts && node.presence.is_here() && !tally.expected.contains(at)
        };
        if let Some(at) = cluster.find(disk).filter(comes) {
            tally.expected.push(at);
            spread.add(&cluster.nodes[at]);
        }
    }
    Search::new(cluster, content, tally, spread, now_s, verdict).run(verdict);
}

/// A disk that could take the content.
struct Candidate {
    /// How crowded its place is in the two highest bits, then its cost.
    rank: u64,
    at: usize,
    host: usize,
    site: usize,
}

const CROWDING_SHIFT: u32 = 62;

/// The order of the candidates for further copies, and when each one's turn is.
struct Search<'a> {
    cluster: &'a Cluster<'a>,
    content: &'a Content,
    tally: &'a Tally,
    now_s: u64,
    spread: Spread,
    /// Copies that are missing; 0 when there are enough, but badly spread.
    missing: usize,
    pool: Vec<Candidate>,
    /// Candidates in this host.
    locals: usize,
}

impl<'a> Search<'a> {
    fn new(
        cluster: &'a Cluster<'a>,
        content: &'a Content,
        tally: &'a Tally,
        spread: Spread,
        now_s: u64,
        verdict: &mut Verdict,
    ) -> Self {
        let wanted = content.wanted as usize;
        let missing = wanted.saturating_sub(tally.expected.len());
        let key = weight::key(&content.id.0);
        let mut pool = Vec::with_capacity(cluster.targets.len());
        let mut locals = 0;
        for at in &cluster.targets {
            let node = &cluster.nodes[*at];
            if node.room_bytes < content.size_bytes || (missing == 0 && !spread.improved_by(node, wanted)) {
                continue;
            }
            let crowding = spread.crowding(node);
            // A target that holds it, or fetches it, is among the expected ones, and its host is in use.
            if crowding & HOST_USED != 0 && tally.expected.contains(at) {
                continue;
            }
            if node.local {
                if let Some(until_s) = cluster.desk.refused_until_s(node.id, content.id, now_s) {
                    verdict.look_at(until_s);
                    continue;
                }
                locals += 1;
            }
            let rank = u64::from(crowding) << CROWDING_SHIFT | node.cost(key) >> 2;
            pool.push(Candidate { rank, at: *at, host: node.host, site: node.site });
        }
        Self { cluster, content, tally, now_s, spread, missing, pool, locals }
    }

    fn run(mut self, verdict: &mut Verdict) {
        let settings = self.cluster.settings;
        let wanted = self.content.wanted as usize;
        let step_s = settings.takeover_s + self.content.size_bytes / settings.takeover_bytes_per_s.max(1);
        let spreading = self.missing == 0;
        // Those who have been here long enough come first; a visitor does not set off a move.
        let delay_s = if spreading { settings.spread_delay_s } else { 0 };
        let since_s = self.content.changed_s.max(self.tally.opened_s).saturating_add(delay_s);
        // Nobody could act before there was somebody to fetch it from.
        let (mut turn, mut steps, mut ahead_s, mut backlog_s) = (0, 0, self.tally.readable_s, 0);
        while self.locals > 0 {
            // Whose turn comes after the missing ones steps in when those before had their chance since the need arose
            // and they could act, and time enough for their queue.
            let step_in_s = |steps: u64, ahead_s: u64, backlog_s: u64| {
                since_s.max(ahead_s).saturating_add(step_s.saturating_mul(steps)).saturating_add(backlog_s)
            };
            if !spreading && turn >= self.missing {
                let due_s = step_in_s(steps + 1, ahead_s, backlog_s);
                if due_s > self.now_s {
                    return verdict.look_at(due_s);
                }
                let settled_s = self.cluster.settled_s.max(ahead_s);
                if step_in_s(steps + self.pool.len() as u64, settled_s, BACKLOG_MAX_S) <= self.now_s {
                    return self.all(steps + 1, since_s, verdict);
                }
            }
            let Some(node) = self.next() else { return };
            let settled_s = node.presence.since_s().max(node.changed_s);
            let first = if spreading { self.spread.improved_by(node, wanted) } else { turn < self.missing };
            let due_s = if !first {
                steps += 1;
                step_in_s(steps, ahead_s, backlog_s)
            } else if spreading {
                since_s.max(settled_s.saturating_add(delay_s))
            } else {
                since_s
            };
            if due_s > self.now_s {
                return verdict.look_at(due_s);
            }
            if node.local {
                self.locals -= 1;
                verdict.wishes.push(self.wish(node, steps, since_s));
            }
            turn += 1;
            ahead_s = ahead_s.max(settled_s.saturating_add(delay_s));
            backlog_s = backlog_s.max(node.backlog_s.min(BACKLOG_MAX_S));
            self.take(node);
        }
    }

    /// Everybody's turn has come: the order does not matter any more.
    fn all(&self, steps: u64, since_s: u64, verdict: &mut Verdict) {
        let nodes = self.pool.iter().map(|candidate| &self.cluster.nodes[candidate.at]);
        verdict.wishes.extend(nodes.filter(|node| node.local).map(|node| self.wish(node, steps, since_s)));
    }

    fn wish(&self, node: &Node, steps: u64, since_s: u64) -> Wish {
        let (content, size_bytes) = (self.content.id, self.content.size_bytes);
        Wish {
            decision: Decision::Mirror { disk: node.id, content, size_bytes, reason: self.reason() },
            readable: self.tally.readable,
            only_from: self.tally.only_source(self.cluster),
            failures: self.cluster.desk.failures(node.id, content, self.now_s),
            steps,
            since_s,
        }
    }

    /// Takes the best of the remaining candidates. Nodes are sorted by id, so a tie is broken alike everywhere.
    fn next(&mut self) -> Option<&'a Node> {
        let better = |a: &Candidate, b: &Candidate| a.rank < b.rank || (a.rank == b.rank && a.at < b.at);
        let pool = &self.pool;
        let best = (0..pool.len()).reduce(|best, i| if better(&pool[i], &pool[best]) { i } else { best })?;
        Some(&self.cluster.nodes[self.pool.swap_remove(best).at])
    }

    /// Goes on as if that disk had the content.
    fn take(&mut self, node: &Node) {
        self.spread.add(node);
        for candidate in &mut self.pool {
            let host_used = if candidate.host == node.host { HOST_USED } else { 0 };
            let site_used = if candidate.site == node.site { SITE_USED } else { 0 };
            candidate.rank |= u64::from(host_used | site_used) << CROWDING_SHIFT;
        }
    }

    fn reason(&self) -> Reason {
        if self.missing == 0 {
            Reason::Spread
        } else if self.tally.firm + self.tally.draining >= self.content.wanted {
            Reason::Drain
        } else if self.tally.readable <= 1 {
            Reason::LastCopy
        } else {
            Reason::TooFew
        }
    }
}

/// The holders in the order in which their copies are worth keeping: another host first, then another site, then by
/// cost. The best `n` of it lie on as many hosts and sites as any `n` of them can.
pub(super) fn keeping_order(cluster: &Cluster<'_>, content: ContentId, holders: &[usize]) -> Vec<usize> {
    let key = weight::key(&content.0);
    let mut left: Vec<_> = holders.iter().map(|at| (*at, cluster.nodes[*at].cost(key))).collect();
    let mut spread = Spread::default();
    let mut order = Vec::with_capacity(left.len());
    loop {
        let rank = |(at, cost): &(usize, u64)| (spread.crowding(&cluster.nodes[*at]), *cost, *at);
        let Some(best) = (0..left.len()).min_by_key(|i| rank(&left[*i])) else { return order };
        let (at, _) = left.swap_remove(best);
        spread.add(&cluster.nodes[at]);
        order.push(at);
    }
}
