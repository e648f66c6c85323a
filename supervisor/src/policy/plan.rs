//! All contents: what to do first, and how much of it now.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use delugefs_proto::ids::DiskId;

use super::cluster::Cluster;
use super::desk::{Transfers, is_small};
use super::mirror::{Wish, decide_content};
use super::view::{Settings, View};
use super::{Decision, Reason};

/// What a host does next.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// To be carried out, the most urgent first.
    pub decisions: Vec<Decision>,
    /// When to plan again even if nothing changes until then; what waits for room (below) is due when there is some.
    pub again_s: Option<u64>,
    /// Fetches that are due and wait for others to end.
    pub waiting: u64,
    /// Their bytes. Publish how long these take as [`super::Disk::backlog_s`].
    pub waiting_bytes: u64,
}

/// The decisions for a whole view; see [`plan`].
pub fn decide(view: &View<'_>, now_s: u64) -> Vec<Decision> {
    plan(view, now_s).decisions
}

/// Looks at every content of the view, and chooses.
pub fn plan(view: &View<'_>, now_s: u64) -> Plan {
    let cluster = Cluster::new(view.me, view.disks, view.desk, view.settings);
    let (mut wishes, mut under_way) = (Vec::new(), Vec::new());
    let mut again_s: Option<u64> = None;
    for content in view.contents {
        let verdict = decide_content(&cluster, content, now_s);
        wishes.extend(verdict.wishes);
        under_way.extend(verdict.under_way);
        again_s = [again_s, verdict.again_s].into_iter().flatten().min();
    }
    Plan { again_s, ..choose(&cluster, wishes, &under_way) }
}

/// Orders wishes by urgency and keeps as many as the limits allow: what failed behind what did not, then contents with the
/// fewest readable copies first, then those whose turn it is by rank, then those that wait longest; better spread and
/// trimming after that. Small contents and large ones do not wait for each other. A large one that does not fit into the
/// limit of bytes holds up those behind it, so that it gets its turn. A disk that alone has many contents holds up only
/// these: `under_way` are the fetches of such ones, see [`super::Verdict::under_way`].
pub fn choose(cluster: &Cluster<'_>, wishes: Vec<Wish>, under_way: &[(DiskId, u64)]) -> Plan {
    let settings = cluster.settings;
    let mut transfers = cluster.desk.transfers();
    let mut sources: BTreeMap<DiskId, Source> = BTreeMap::new();
    under_way.iter().for_each(|(from, left_bytes)| sources.entry(*from).or_default().transfers.add(*left_bytes));
    let large_before = transfers.large;
    let mut room: BTreeMap<_, u64> = cluster.nodes.iter().filter(|n| n.local).map(|n| (n.id, n.room_bytes)).collect();
    let mut plan = Plan::default();
    // Heaps: of a hundred thousand wishes only the first few are ever put in order.
    let (mut small, mut large, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for (i, wish) in wishes.iter().enumerate() {
        let (list, late) = match &wish.decision {
            Decision::Mirror { reason, size_bytes, .. } => {
                (if is_small(*size_bytes) { &mut small } else { &mut large }, *reason == Reason::Spread)
            }
            Decision::Trim { .. } => (&mut others, false),
            Decision::Confirm { .. } => (&mut others, true),
        };
        list.push(Reverse((late, wish.failures, wish.readable, wish.steps, wish.since_s, i)));
    }
    let mut fetches = [BinaryHeap::from(small), BinaryHeap::from(large)];
    let mut left = [settings.max_small_transfers.saturating_sub(transfers.small), settings.max_decisions];
    // The more urgent of both, as long as more of its kind may be begun.
    while let Some(kind) =
        (0..2).filter(|kind| left[*kind] > 0).max_by(|a, b| fetches[*a].peek().cmp(&fetches[*b].peek()))
        && let Some(Reverse((.., i))) = fetches[kind].pop()
    {
        let Decision::Mirror { disk, size_bytes, .. } = &wishes[i].decision else { continue };
        let Some(room) = room.get_mut(disk).filter(|room| **room >= *size_bytes) else { continue };
        let sum = transfers.large_bytes.saturating_add(*size_bytes);
        let is_too_much = (transfers.large >= settings.max_transfers && sum > settings.queue_bytes)
            || (transfers.large > 0 && sum > settings.max_transfer_bytes);
        if !is_small(*size_bytes) && is_too_much {
            plan.wait(*size_bytes);
            left[kind] = 0;
            continue;
        }
        if let Some(from) = wishes[i].only_from {
            let source = sources.entry(from).or_default();
            if source.is_busy(settings, *size_bytes) {
                plan.wait(*size_bytes);
                continue;
            }
            source.transfers.add(*size_bytes);
        }
        *room -= size_bytes;
        transfers.add(*size_bytes);
        left[kind] -= 1;
        plan.decisions.push(wishes[i].decision.clone());
    }
    for Reverse((.., i)) in fetches.into_iter().flatten() {
        if let Decision::Mirror { disk, size_bytes, .. } = &wishes[i].decision
            && room.get(disk).is_some_and(|room| room >= size_bytes)
        {
            plan.wait(*size_bytes);
        }
    }
    let mut others = BinaryHeap::from(others);
    for _ in 0..settings.max_decisions.saturating_sub(transfers.large - large_before) {
        let Some(Reverse((.., i))) = others.pop() else { break };
        plan.decisions.push(wishes[i].decision.clone());
    }
    plan
}

/// What is fetched from a disk that alone has it.
#[derive(Default)]
struct Source {
    transfers: Transfers,
    /// A large one waits for its turn.
    is_awaited: bool,
}

impl Source {
    /// Whether one more of so many bytes has to wait.
    fn is_busy(&mut self, settings: &Settings, size_bytes: u64) -> bool {
        if is_small(size_bytes) {
            return self.transfers.small >= settings.max_small_transfers.div_ceil(2);
        }
        let sum = self.transfers.large_bytes.saturating_add(size_bytes);
        self.is_awaited |= self.transfers.large >= settings.max_from_one && sum > settings.queue_bytes / 2;
        self.is_awaited
    }
}

impl Plan {
    fn wait(&mut self, size_bytes: u64) {
        self.waiting += 1;
        self.waiting_bytes = self.waiting_bytes.saturating_add(size_bytes);
    }
}
