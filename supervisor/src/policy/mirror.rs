//! One content: what the local disks should do about it now.

use delugefs_proto::ids::ContentId;

use super::cluster::{Cluster, Node, Spread};
use super::release::{Release, release_node};
use super::view::{Content, Presence};
use super::{Decision, Reason, weight};

/// Whatever a host says about its queue, it is passed over after that, in seconds.
const BACKLOG_MAX_S: u64 = 6 * 3600;

/// A decision, and what tells how urgent it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// What to do.
    pub decision: Decision,
    /// Copies that can be read now, on whatever disks.
    pub readable: u32,
    /// Since when there is a reason for it.
    pub since_s: u64,
}

/// What came of looking at one content.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// At most one for each local disk.
    pub wishes: Vec<Wish>,
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
    /// Copies that can be read now.
    pub readable: u32,
    /// Copies that count and are here.
    pub firm: u32,
    /// Copies on disks that are here and being emptied.
    pub draining: u32,
    /// When the last of the other copies stopped counting.
    pub opened_s: u64,
    /// When the first of the awaited disks will have been away for too long.
    pub patience_s: Option<u64>,
}

/// Counts.
pub(super) fn tally(cluster: &Cluster<'_>, content: &Content, now_s: u64) -> Tally {
    let holders = cluster.holders(content);
    let count = |test: &dyn Fn(&Node) -> bool| holders.iter().filter(|at| test(&cluster.nodes[**at])).count() as u32;
    let firm = count(&Node::firm);
    let readable = count(&|node| node.source);
    let draining = count(&|node| node.source && node.draining);
    let alone = content.wanted >= 2 && firm <= 1;
    let grace_s = if alone { cluster.settings.grace_last_s } else { cluster.settings.grace_s };
    let mut tally = Tally {
        expected: Vec::with_capacity(holders.len()),
        holders,
        readable,
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
        if !node.counts {
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
            verdict.wishes.push(Wish { decision, readable: tally.readable, since_s });
        }
    }
    verdict
}

/// Adds the wishes for new copies.
fn mirror(cluster: &Cluster<'_>, content: &Content, tally: &mut Tally, now_s: u64, verdict: &mut Verdict) {
    let wanted = content.wanted as usize;
    if (tally.firm as usize) < wanted
        && let Some(at_s) = tally.patience_s
    {
        verdict.look_at(at_s);
    }
    let mut spread = Spread::of(tally.expected.iter().map(|at| &cluster.nodes[*at]));
    if tally.expected.len() >= wanted && !spread.improvable(cluster, wanted) {
        return;
    }
    for disk in cluster.desk.fetchers(content.id) {
        if let Some(at) = cluster.find(disk).filter(|at| cluster.nodes[*at].counts && !tally.expected.contains(at)) {
            tally.expected.push(at);
            spread.add(&cluster.nodes[at]);
        }
    }
    Search::new(cluster, content, tally, spread, now_s).run(verdict);
}

/// The order of the candidates for further copies, and when each one's turn is.
struct Search<'a> {
    cluster: &'a Cluster<'a>,
    content: &'a Content,
    tally: &'a Tally,
    now_s: u64,
    spread: Spread,
    /// Copies that are missing; 0 when there are enough, but badly spread.
    missing: usize,
    /// Candidates with their cost.
    pool: Vec<(usize, u128)>,
}

impl<'a> Search<'a> {
    fn new(cluster: &'a Cluster<'a>, content: &'a Content, tally: &'a Tally, spread: Spread, now_s: u64) -> Self {
        let wanted = content.wanted as usize;
        let missing = wanted.saturating_sub(tally.expected.len());
        let key = weight::key(&content.id.0);
        let fits = |at: usize, node: &Node| {
            node.target
                && node.room_bytes >= content.size_bytes
                && (missing > 0 || spread.improved_by(node, wanted))
                && !tally.holders.contains(&at)
                && !tally.expected.contains(&at)
                && !(node.local && cluster.desk.refused_until_s(node.id, content.id, now_s).is_some())
        };
        let nodes = cluster.nodes.iter().enumerate();
        let mut pool: Vec<_> = nodes.filter(|(at, node)| fits(*at, node)).map(|(at, _)| (at, 0)).collect();
        // Logarithms only when it may concern this host.
        if pool.iter().any(|(at, _)| cluster.nodes[*at].local) {
            pool.iter_mut().for_each(|(at, cost)| *cost = cluster.nodes[*at].cost(key));
        } else {
            pool.clear();
        }
        Self { cluster, content, tally, now_s, spread, missing, pool }
    }

    fn run(mut self, verdict: &mut Verdict) {
        let settings = self.cluster.settings;
        let wanted = self.content.wanted as usize;
        let mut locals = self.pool.iter().filter(|(at, _)| self.cluster.nodes[*at].local).count();
        let step_s = settings.takeover_s + self.content.size_bytes / settings.takeover_bytes_per_s.max(1);
        let spreading = self.missing == 0;
        let mut since_s = self.content.changed_s.max(self.tally.opened_s);
        if spreading {
            // Those who are here long enough, first; a visitor does not set off a move.
            since_s = since_s.saturating_add(settings.spread_delay_s);
        }
        let (mut turn, mut steps, mut ahead_s, mut backlog_s) = (0, 0, 0, 0);
        while locals > 0
            && let Some(node) = self.next()
        {
            let settled_s = node.presence.since_s().max(node.changed_s);
            let first = if spreading { self.spread.improved_by(node, wanted) } else { turn < self.missing };
            let due_s = if first {
                if spreading { since_s.max(settled_s.saturating_add(settings.spread_delay_s)) } else { since_s }
            } else {
                // Those before had their chance since the need arose and they could act: time enough for their queue.
                steps += 1;
                since_s.max(ahead_s).saturating_add(step_s.saturating_mul(steps)).saturating_add(backlog_s)
            };
            if due_s > self.now_s {
                verdict.look_at(due_s);
                return;
            }
            if node.local {
                locals -= 1;
                let decision = Decision::Mirror {
                    disk: node.id,
                    content: self.content.id,
                    size_bytes: self.content.size_bytes,
                    reason: self.reason(),
                };
                verdict.wishes.push(Wish { decision, readable: self.tally.readable, since_s });
            }
            turn += 1;
            ahead_s = ahead_s.max(settled_s);
            backlog_s = backlog_s.max(node.backlog_s.min(BACKLOG_MAX_S));
            self.spread.add(node);
        }
    }

    /// Takes the best of the remaining candidates.
    fn next(&mut self) -> Option<&'a Node> {
        let nodes = &self.cluster.nodes;
        let rank = |(at, cost): &(usize, u128)| (self.spread.crowding(&nodes[*at]), *cost, nodes[*at].id);
        let best = (0..self.pool.len()).min_by_key(|i| rank(&self.pool[*i]))?;
        Some(&nodes[self.pool.swap_remove(best).0])
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
        let rank = |(at, cost): &(usize, u128)| (spread.crowding(&cluster.nodes[*at]), *cost, *at);
        let Some(best) = (0..left.len()).min_by_key(|i| rank(&left[*i])) else { return order };
        let (at, _) = left.swap_remove(best);
        spread.add(&cluster.nodes[at]);
        order.push(at);
    }
}
