//! At a quiet end: everything is as it should be, in truth, and nobody wants to do anything.

use super::check::distinct;
use super::world::{Place, SimDisk, World, has};

impl World {
    /// All is quiet and at rest.
    pub fn check_rest(&mut self) {
        for content in 0..self.contents.len() {
            self.check_content(content);
        }
        self.quiet = false;
        // Refusals for ever end here, and so do workers that hang.
        for disk in &mut self.disks {
            (disk.refuses_until, disk.hangs_until) = (0, 0);
        }
        (0..self.hosts.len()).for_each(|host| self.restart(host));
    }

    fn check_content(&mut self, content: usize) {
        let (wanted, edit) = self.hosts[0].catalog[content];
        assert!(self.hosts.iter().all(|host| host.catalog[content].1 == edit), "the catalog did not spread");
        let wanted = wanted as usize;
        let mut readable = 0;
        let (mut firm, mut fit, mut targets, mut leaving) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (number, disk) in self.disks.iter().enumerate() {
            let seen = &self.hosts[0].seen[number];
            let Place::In(host) = disk.place else { continue };
            if !self.works(number) || disk.revoked {
                continue;
            }
            assert!(!seen.forgotten, "it is here again");
            assert!(seen.present && seen.holds == disk.holds, "the news of disk {number} did not spread");
            assert_eq!(disk.missing, 0);
            let counts = !disk.lazy && !seen.draining;
            if has(disk.good, content) {
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
        let says_so = |disk: &SimDisk| matches!(disk.place, Place::In(_)) && has(disk.suspect, content);
        let suspect = (0..self.disks.len()).any(|d| self.works(d) && !self.disks[d].revoked && says_so(&self.disks[d]));
        assert!(!suspect, "a damaged copy of {content} stays beside a good one");
        let what = format!(
            "at {} s, content {content}: wanted {wanted}, copies in hosts {firm:?}, room in hosts {targets:?}\n{}",
            self.t,
            self.story(content)
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
        self.totals.lacking += u64::from(firm.len() < wanted);
        self.totals.complete += u64::from(firm.len() >= wanted);
    }
}
