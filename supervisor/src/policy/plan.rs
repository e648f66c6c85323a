//! All contents: what to do first, and how much of it now.

use std::collections::BTreeMap;

use super::cluster::Cluster;
use super::mirror::{Wish, decide_content};
use super::view::View;
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
    let mut wishes = Vec::new();
    let mut again_s: Option<u64> = None;
    for content in view.contents {
        let verdict = decide_content(&cluster, content, now_s);
        wishes.extend(verdict.wishes);
        again_s = [again_s, verdict.again_s].into_iter().flatten().min();
    }
    Plan { again_s, ..choose(&cluster, wishes) }
}

/// Orders wishes by urgency and keeps as many as the limits allow: contents with the fewest readable copies first, then
/// those that wait longest; better spread and trimming after that. A content that does not fit into the limit of bytes
/// holds up those behind it, so that big ones get their turn.
pub fn choose(cluster: &Cluster<'_>, mut wishes: Vec<Wish>) -> Plan {
    let settings = cluster.settings;
    wishes.sort_unstable_by_key(|wish| {
        let (class, disk, content) = match &wish.decision {
            Decision::Mirror { disk, content, reason, .. } => (u8::from(*reason == Reason::Spread), *disk, *content),
            Decision::Trim { disk, content, .. } => (2, *disk, *content),
            Decision::Confirm { disk, content, .. } => (3, *disk, *content),
        };
        (class, wish.readable, wish.since_s, content, disk)
    });
    let mut plan = Plan::default();
    let (mut transfers, mut transfer_bytes) = cluster.desk.transfers();
    let mut room: BTreeMap<_, u64> = cluster.nodes.iter().filter(|n| n.local).map(|n| (n.id, n.room_bytes)).collect();
    for wish in wishes {
        if let Decision::Mirror { disk, size_bytes, .. } = &wish.decision {
            let Some(left) = room.get_mut(disk).filter(|left| **left >= *size_bytes) else { continue };
            let full = transfers >= settings.max_transfers
                || (transfers > 0 && transfer_bytes.saturating_add(*size_bytes) > settings.max_transfer_bytes)
                || plan.decisions.len() >= settings.max_decisions;
            if full || plan.waiting > 0 {
                plan.waiting += 1;
                plan.waiting_bytes = plan.waiting_bytes.saturating_add(*size_bytes);
                continue;
            }
            *left -= size_bytes;
            transfers += 1;
            transfer_bytes = transfer_bytes.saturating_add(*size_bytes);
        } else if plan.decisions.len() >= settings.max_decisions {
            break;
        }
        plan.decisions.push(wish.decision);
    }
    plan
}
