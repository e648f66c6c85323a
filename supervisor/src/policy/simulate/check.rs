//! The rules. At every decision: only what is allowed, on what is allowed. At every trim: as many copies as wanted
//! stay, on disks that promised, unless one of these was broken or set back by an event since. At rest: everything is
//! as it should be, and nobody wants to do anything.

use super::super::*;
use super::host::Trimming;
use super::world::{Place, SimDisk, Totals, World, has};

impl World {
    /// A plan keeps its bounds, looks at nothing twice, and is right about when to look again.
    pub fn check_plan(&mut self, at: usize, view: &View<'_>, plan: &Plan, now_s: u64) {
        let settings = view.settings;
        assert!(plan.decisions.len() <= settings.max_decisions + settings.max_small_transfers);
        let cluster = Cluster::new(view.me, view.disks, view.desk, settings);
        let mut transfers = view.desk.transfers();
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
            if let Decision::Mirror { size_bytes, .. } = decision {
                transfers.add(*size_bytes);
                assert!(!content.holders.contains(&id) && !disk.draining && disk.free_bytes >= *size_bytes);
            } else {
                assert!(content.holders.contains(&id));
            }
        }
        assert!(transfers.large <= settings.max_transfers || transfers.large_bytes <= settings.queue_bytes);
        // The last bytes of large ones are among them.
        assert!(transfers.small <= settings.max_small_transfers + settings.max_transfers);
        if self.rng.chance(5) && !view.contents.is_empty() {
            let content = &view.contents[self.rng.index(view.contents.len())];
            let verdict = decide_content(&cluster, content, now_s);
            let again_s = verdict.again_s.unwrap_or(now_s + 100_000);
            assert!(again_s > now_s);
            if verdict.wishes.is_empty() && again_s > now_s + 1 {
                let between_s = now_s + 1 + self.rng.below(again_s - now_s - 1);
                let early = decide_content(&cluster, content, between_s);
                assert_eq!(early.wishes, [], "host {at}: nothing was to happen before {again_s}, this at {between_s}");
            }
        }
    }

    /// A trim begins. Returns when the oldest promise was given.
    pub fn check_begin(&mut self, at: usize, disk: usize, content: usize, keepers: &[usize], wanted: u32) -> u64 {
        assert!(!keepers.contains(&disk) && wanted > 0);
        let removed = self.newest(content).0 == 0;
        let mut oldest = u64::MAX;
        let mut excused = 0;
        for keeper in keepers {
            let promised = self.granted[&(at, *keeper, content)];
            oldest = oldest.min(promised);
            assert!(promised + PROMISE_S >= self.t, "a promise that ran out");
            let SimDisk { lazy, lazy_since, holds, harmed, place, .. } = self.disks[*keeper];
            if removed || harmed >= promised || (lazy && lazy_since >= promised) {
                excused += 1;
            } else {
                assert!(
                    has(holds, content) && place != Place::Lost && !lazy,
                    "disk {keeper} broke its promise of {promised}: {:?}",
                    self.disks[*keeper]
                );
            }
        }
        assert!(keepers.len() >= wanted as usize);
        self.totals.excused += u64::from(excused > 0);
        oldest
    }

    /// A copy has gone, perhaps long after the trim began.
    pub fn check_gone(&mut self, trim: &Trimming) {
        let mut left = 0;
        let mut excused = 0;
        for (_, disk) in self.disks.iter().enumerate().filter(|(number, _)| *number != trim.disk) {
            let harmed = disk.harmed >= trim.promised || (disk.lazy && disk.lazy_since >= trim.promised);
            let good = has(disk.holds, trim.content) && disk.place != Place::Lost && !disk.lazy;
            left += u32::from(good);
            excused += u32::from(harmed && !good);
        }
        let lowered = self.hosts.iter().map(|host| host.catalog[trim.content].0).min().unwrap_or(0);
        assert!(
            left + excused >= trim.wanted.min(lowered),
            "at {} s: content {} was let go by disk {}, {left} copies are left of {}",
            self.t,
            trim.content,
            trim.disk,
            trim.wanted
        );
    }

    /// All is quiet and at rest.
    pub fn check_rest(&mut self) {
        for content in 0..self.contents.len() {
            self.check_content(content);
        }
        self.quiet = false;
        // Refusals for ever end here.
        self.disks.iter_mut().for_each(|disk| disk.refuses_until = 0);
        (0..self.hosts.len()).for_each(|host| self.restart(host));
    }

    fn check_content(&self, content: usize) {
        let (wanted, edit) = self.hosts[0].catalog[content];
        assert!(self.hosts.iter().all(|host| host.catalog[content].1 == edit), "the catalog did not spread");
        let wanted = wanted as usize;
        let mut readable = 0;
        let (mut firm, mut fit, mut targets, mut leaving) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (number, disk) in self.disks.iter().enumerate() {
            let Place::In(host) = disk.place else { continue };
            let seen = &self.hosts[0].seen[number];
            if seen.forgotten {
                continue;
            }
            assert!(seen.present && seen.holds == disk.holds, "the news of disk {number} did not spread");
            let counts = !disk.lazy && !seen.draining;
            if has(disk.holds, content) {
                readable += 1;
                firm.extend(counts.then_some(host));
                fit.extend((counts && !disk.read_only).then_some(host));
                leaving.extend((seen.draining && (!disk.read_only || disk.full)).then_some(number));
            } else if counts
                && !disk.read_only
                && disk.refuses_until == 0
                && self.free(number) >= self.contents[content].size_bytes
            {
                targets.push(host);
            }
        }
        if wanted == 0 || readable == 0 {
            return;
        }
        let what = format!(
            "at {} s, content {content}: wanted {wanted}, copies in hosts {firm:?}, room in hosts {targets:?}",
            self.t
        );
        let site = |host: &usize| self.hosts[*host].site.clone();
        let hosts = distinct(firm.clone());
        let sites = distinct(hosts.iter().map(site).collect());
        if firm.len() < wanted {
            assert!(targets.is_empty(), "too few: {what}");
        }
        if hosts.len() < wanted {
            assert!(targets.iter().all(|target| hosts.contains(target)), "too few hosts: {what}");
        }
        if sites.len() < wanted {
            assert!(targets.iter().all(|t| hosts.contains(t) || sites.contains(&site(t))), "too few sites: {what}");
        }
        assert!(fit.len() <= wanted, "too many: {what}");
        assert!(leaving.is_empty() || fit.len() < wanted, "not drained: {what}");
    }
}

fn distinct<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list.dedup();
    list
}

impl Totals {
    /// Enough happened for the run to mean something, and little was done in vain.
    pub fn check(&self) {
        assert!(self.mirrors > 1000 && self.trims > 500 && self.drained > 10 && self.evictions > 10, "{self:?}");
        assert!(self.late_trims > 0 && self.declines > 0, "{self:?}");
        assert!(self.wasted * 25 < self.quiet_mirrors, "{self:?}");
    }
}
