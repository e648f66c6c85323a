//! The rules of a plan, seen by what the host believes, counted here anew and plainly: only what is allowed on what is allowed, nothing
//! before its time, nothing that is not needed, the most urgent first. What is true is the matter of [`super::oracle`].

use std::collections::BTreeMap;

use delugefs_proto::ids::DiskId;

use super::super::*;
use super::world::World;

/// The copies of one content as a view has them.
pub struct Count<'a> {
    /// Known disks that say they have it, each once, but for forgotten ones.
    pub holders: Vec<&'a Disk>,
    /// Those whose copies count and are here,
    pub firm: Vec<&'a Disk>,
    /// and those whose copies count until they have been away for too long.
    pub expected: Vec<&'a Disk>,
    pub readable: usize,
}

pub fn is_keeping(disk: &Disk) -> bool {
    !disk.lazy && !disk.draining && !disk.forgotten
}

pub fn count<'a>(view: &View<'a>, content: &Content, now_s: u64) -> Count<'a> {
    let has = |disk: &&Disk| content.holders.contains(&disk.id) && !disk.forgotten;
    let holders: Vec<&Disk> = view.disks.iter().filter(has).collect();
    let firm: Vec<&Disk> = holders.iter().copied().filter(|disk| is_keeping(disk) && disk.presence.is_here()).collect();
    let is_leaving = holders.iter().any(|disk| disk.draining && disk.presence.is_here());
    let settings = view.settings;
    let grace_s = if content.wanted >= 2 && firm.len() <= 1 { settings.grace_last_s } else { settings.grace_s };
    let counts = |disk: &&&Disk| {
        let is_awaited = match disk.presence {
            Presence::Here { .. } => true,
            Presence::Absent { since_s } => now_s < since_s + grace_s,
        };
        is_keeping(disk) && is_awaited && !(is_leaving && disk.read_only)
    };
    let expected = holders.iter().filter(counts).copied().collect();
    let readable = holders.iter().filter(|disk| disk.presence.is_here()).count();
    Count { holders, firm, expected, readable }
}

impl World {
    /// See the module. A plan also keeps its bounds and is right about when to look again.
    pub fn check_plan(&mut self, view: &View<'_>, plan: &Plan, now_s: u64) {
        let settings = view.settings;
        let host = view.me;
        assert!(plan.decisions.len() <= settings.max_decisions + settings.max_small_transfers);
        let cluster = Cluster::new(view.me, view.disks, view.desk, settings);
        let mut transfers = view.desk.transfers();
        let mut taken: BTreeMap<DiskId, u64> = BTreeMap::new();
        for decision in &plan.decisions {
            let (id, content) = match decision {
                Decision::Mirror { disk, content, .. }
                | Decision::Confirm { disk, content, .. }
                | Decision::Trim { disk, content, .. } => (*disk, *content),
            };
            let disk = view.disks.iter().find(|disk| disk.id == id).unwrap();
            let content = view.contents.iter().find(|known| known.id == content).unwrap();
            assert!(disk.host == view.me && disk.presence.is_here() && !disk.forgotten);
            assert!(!disk.read_only || (disk.full && !matches!(decision, Decision::Mirror { .. })));
            assert!(!disk.lazy || disk.draining);
            match decision {
                Decision::Mirror { size_bytes, reason, .. } => {
                    transfers.add(*size_bytes);
                    *taken.entry(id).or_insert(view.desk.reserved_bytes(id)) += size_bytes;
                    assert!(taken[&id] <= disk.free_bytes, "{decision:?} has no room");
                    check_mirror(view, content, disk, *reason, now_s);
                }
                Decision::Confirm { keepers, wanted, .. } => {
                    assert_eq!(*wanted, content.wanted);
                    check_release(view, content, disk, keepers, now_s);
                }
                Decision::Trim { relying_on, .. } => {
                    assert!(relying_on.len() >= content.wanted as usize);
                    check_release(view, content, disk, relying_on, now_s);
                }
            }
        }
        assert!(transfers.large <= settings.max_transfers || transfers.large_bytes <= settings.queue_bytes);
        // The last bytes of large ones are among them.
        assert!(transfers.small <= settings.max_small_transfers + settings.max_transfers);
        if self.rng.chance(8) {
            check_order(&cluster, view, plan, now_s);
        }
        if self.rng.chance(5) && !view.contents.is_empty() {
            let content = &view.contents[self.rng.index(view.contents.len())];
            let verdict = decide_content(&cluster, content, now_s);
            let again_s = verdict.again_s.unwrap_or(now_s + 100_000);
            assert!(again_s > now_s);
            if verdict.wishes.is_empty() && again_s > now_s + 1 {
                let between_s = now_s + 1 + self.rng.below(again_s.min(now_s + 1_000_000) - now_s - 1);
                let early = decide_content(&cluster, content, between_s);
                assert_eq!(early.wishes, [], "{host:?}: nothing was to happen before {again_s}, this at {between_s}");
            }
        }
    }
}

/// A further copy is needed: too few count, with those that come; or they lie badly, since long enough.
fn check_mirror(view: &View<'_>, content: &Content, disk: &Disk, reason: Reason, now_s: u64) {
    let count = count(view, content, now_s);
    let wanted = content.wanted as usize;
    assert!(is_keeping(disk) && !content.holders.contains(&disk.id) && count.readable > 0, "{content:?}");
    if reason != Reason::Spread {
        let comes = |id: &DiskId| {
            let fetching = view.disks.iter().find(|disk| disk.id == *id);
            fetching
                .is_some_and(|disk| is_keeping(disk) && disk.presence.is_here() && !content.holders.contains(&disk.id))
        };
        let coming = view.desk.fetchers(content.id).filter(|(id, _)| comes(id)).count();
        assert!(count.expected.len() + coming < wanted, "a copy of {content:?} that is not needed ({reason:?})");
        return;
    }
    let since_s = content.changed_s + view.settings.spread_delay_s;
    assert!(count.expected.len() >= wanted && now_s >= since_s, "{content:?} is spread too early");
    let hosts = distinct(count.expected.iter().map(|disk| disk.host).collect());
    let sites = distinct(count.expected.iter().map(|disk| &disk.site).collect());
    let is_better = (hosts.len() < wanted && !hosts.contains(&disk.host))
        || (sites.len() < wanted && !sites.contains(&&disk.site) && !hosts.contains(&disk.host));
    assert!(is_better, "{content:?} is spread no better by {disk:?}");
}

/// As many others as copies are wanted are here, and fit to keep them. A copy that counts goes late, and none of those that make the rest
/// lie well.
fn check_release(view: &View<'_>, content: &Content, own: &Disk, keepers: &[DiskId], now_s: u64) {
    let count = count(view, content, now_s);
    let wanted = content.wanted as usize;
    let fit: Vec<&Disk> = count.firm.iter().copied().filter(|disk| !disk.read_only && disk.id != own.id).collect();
    let asked: Vec<&&Disk> = fit.iter().filter(|disk| keepers.contains(&disk.id)).collect();
    assert_eq!(asked.len(), distinct(keepers.to_vec()).len(), "who is asked is not fit: {content:?} {keepers:?}");
    assert!(wanted > 0 && fit.len() >= wanted && content.holders.contains(&own.id), "{content:?} is needed");
    if !is_keeping(own) {
        return;
    }
    let since_s = |disk: &Disk| disk.presence.since_s().max(disk.changed_s);
    let is_settled = |since_s: u64| now_s >= since_s + view.settings.trim_delay_s;
    let settled = fit.iter().filter(|disk| is_settled(since_s(disk))).count();
    let is_late = is_settled(content.changed_s.max(own.changed_s)) && settled >= wanted;
    assert!(is_late, "{content:?} is let go too early by {:?}", own.id);
    let with_own = || fit.iter().copied().chain([own]);
    let hosts = |disks: Vec<&Disk>| distinct(disks.iter().map(|disk| disk.host).collect()).len().min(wanted);
    assert_eq!(hosts(fit.clone()), hosts(with_own().collect()), "{content:?} lies on fewer hosts then");
    let sites = |disks: Vec<&Disk>| distinct(disks.iter().map(|disk| &disk.site).collect()).len();
    if hosts(fit.clone()) == 1 {
        let (with, without) = (sites(with_own().collect()), sites(fit.clone()));
        assert!(without.min(wanted) == with.min(wanted), "{content:?} lies at fewer sites then");
    }
}

/// Fetches begin in the order of their urgency, those of each kind.
fn check_order(cluster: &Cluster<'_>, view: &View<'_>, plan: &Plan, now_s: u64) {
    let wishes: Vec<Wish> = view.contents.iter().flat_map(|c| decide_content(cluster, c, now_s).wishes).collect();
    let mut before = [None; 2];
    for decision in &plan.decisions {
        let Decision::Mirror { reason, size_bytes, .. } = decision else { continue };
        let wish = wishes.iter().find(|wish| wish.decision == *decision).expect("one of the wishes");
        let urgency = (*reason == Reason::Spread, wish.failures, wish.readable, wish.steps, wish.since_s);
        let before = &mut before[usize::from(*size_bytes <= delugefs_proto::limits::TORRENT_MIN_BYTES)];
        assert!(before.is_none_or(|before| before <= urgency), "{before:?} before {urgency:?}");
        *before = Some(urgency);
    }
    // Nobody is passed over but for want of room, or because its only source has enough to do.
    let first = wishes.iter().filter(|wish| matches!(wish.decision, Decision::Mirror { .. }));
    let first = first.min_by_key(|wish| (wish.failures, wish.readable, wish.steps, wish.since_s));
    if let Some(first) = first.filter(|_| view.desk.transfers() == Default::default()) {
        let begun = plan.decisions.iter().any(|decision| matches!(decision, Decision::Mirror { .. }));
        assert!(begun, "nothing begins, not even {first:?}");
    }
}

pub fn distinct<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list.dedup();
    list
}
