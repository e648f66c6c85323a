//! Whether a local disk may let a copy go: for surplus copies, for disks that are being emptied, and for lazy disks
//! that want to evict.

use delugefs_proto::ids::DiskId;

use super::cluster::Cluster;
use super::desk::Answer;
use super::mirror::keeping_order;
use super::view::Content;

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Release {
    /// It is needed; or not known to be superfluous.
    No,
    /// Perhaps, when nothing changes until then.
    Later {
        /// Seconds of this host's clock.
        at_s: u64,
    },
    /// It is superfluous if these promise to keep theirs.
    Ask {
        /// Whom to ask.
        keepers: Vec<DiskId>,
    },
    /// As many others as copies are wanted have promised. Pass them to [`super::Desk::begin_trim`].
    Yes {
        /// Who promised.
        relying_on: Vec<DiskId>,
    },
}

/// Whether `disk`, in this host, may let its copy go. Disks that are being emptied and lazy ones may as soon as enough
/// others keep theirs; any other disk only with a copy that ranks behind enough others, all of them unchanged for the
/// trim delay. Only copies on disks that are here and fit to keep them are counted, and only what they promised.
pub fn release(cluster: &Cluster<'_>, content: &Content, disk: DiskId, now_s: u64) -> Release {
    let holders = cluster.holders(content);
    match cluster.find(disk).filter(|at| holders.contains(at)) {
        Some(at) => release_node(cluster, content, &holders, at, now_s),
        None => Release::No,
    }
}

pub(super) fn release_node(
    cluster: &Cluster<'_>,
    content: &Content,
    holders: &[usize],
    own: usize,
    now_s: u64,
) -> Release {
    let node = &cluster.nodes[own];
    let wanted = content.wanted as usize;
    if wanted == 0 || !node.local || !node.source || (node.read_only && !node.full) {
        return Release::No;
    }
    let answer = |at: usize| cluster.desk.answer_of(content.id, cluster.nodes[at].id, now_s);
    let fit = |at: &usize| {
        let other = &cluster.nodes[*at];
        *at != own && other.firm() && !other.read_only && answer(*at) != Some(Answer::Declined)
    };
    let mut ranked: Vec<usize> = holders.iter().copied().filter(fit).collect();
    // Who declined may be asked again later, and that may change everything.
    let asked_again_s = cluster.desk.ends_s(content.id, Answer::Declined, now_s).min();
    let unless_declined = || asked_again_s.map_or(Release::No, |at_s| Release::Later { at_s });
    let later = |at_s: u64| Release::Later { at_s: asked_again_s.map_or(at_s, |again_s| again_s.min(at_s)) };
    if ranked.len() < wanted {
        return unless_declined();
    }
    // A disk that counts competes with the others; one that is to be emptied, or lazy, does not.
    if node.counts {
        ranked.push(own);
    }
    let order = keeping_order(cluster, content.id, &ranked);
    let keepers = &order[..wanted];
    if keepers.contains(&own) {
        return unless_declined();
    }
    let mut ready_s = cluster.desk.bound_until_s(node.id, content.id, now_s).unwrap_or(0);
    if node.counts {
        let unchanged_s = |at: &usize| cluster.nodes[*at].presence.since_s().max(cluster.nodes[*at].changed_s);
        let since_s = keepers.iter().map(unchanged_s).max().unwrap_or(0).max(content.changed_s).max(node.changed_s);
        ready_s = ready_s.max(since_s.saturating_add(cluster.settings.trim_delay_s));
    }
    if ready_s > now_s {
        return later(ready_s);
    }
    let promised = order.iter().filter(|at| **at != own && answer(**at) == Some(Answer::Promised));
    let relying_on: Vec<DiskId> = promised.map(|at| cluster.nodes[*at].id).collect();
    if relying_on.len() >= wanted {
        return Release::Yes { relying_on };
    }
    match cluster.desk.ends_s(content.id, Answer::Pending, now_s).max() {
        Some(at_s) => later(at_s),
        None => {
            let silent = keepers.iter().filter(|at| answer(**at).is_none());
            Release::Ask { keepers: silent.map(|at| cluster.nodes[*at].id).collect() }
        }
    }
}
