//! What `status` says of the contents, counted a second time.

use super::super::*;
use super::check::{Count, count, is_keeping};
use super::world::World;

impl World {
    pub fn check_health(&mut self, view: &View<'_>, now_s: u64) {
        self.totals.health_looks += 1;
        let said = health(view, now_s);
        let mut own = Health::default();
        let (mut long_least, mut long_most, mut stuck_least, mut stuck_most) = (0, 0, 0, 0);
        own.unheard = view.disks.iter().filter(|disk| !disk.forgotten && !disk.heard).map(|disk| disk.id).collect();
        let has_others = view.disks.iter().filter(|disk| !disk.forgotten && !disk.lazy).count() > 1;
        own.disks = view.disks.iter().filter(|disk| !disk.forgotten).map(empty).collect();
        own.disks.sort_by_key(|disk| disk.disk);
        for content in view.contents {
            let count = count(view, content, now_s);
            let Count { holders, firm, expected, readable } = &count;
            let (wanted, is_here) = (content.wanted as usize, *readable > 0);
            own.contents += 1;
            for disk in &mut own.disks {
                if holders.iter().any(|holder| holder.id == disk.disk) {
                    disk.contents += 1;
                    disk.bytes += content.size_bytes;
                    disk.only_here += u64::from(holders.len() == 1);
                }
            }
            if firm.len() < wanted {
                let is_waiting = expected.len() >= wanted;
                own.short += 1;
                own.short_waiting += u64::from(is_waiting);
                own.at_risk.push(AtRisk { present: firm.len() as u32, wanted: content.wanted, content: content.id });
                let here = holders.iter().map(|disk| disk.presence).filter(|presence| presence.is_here());
                let here_s = here.map(|presence| presence.since_s()).min().unwrap_or(now_s);
                let can_be = has_others && !is_waiting && now_s > content.changed_s.max(here_s) + 3600;
                let last = view.disks.iter().filter(|disk| content.holders.contains(&disk.id));
                let last = last.map(|disk| disk.changed_s.max(disk.presence.since_s() + view.settings.grace_s)).max();
                long_most += u64::from(can_be);
                long_least += u64::from(can_be && last.is_some_and(|last| now_s > last + 3600));
            }
            if holders.len() == 1 && wanted > 1 {
                own.single += 1;
                let (disk, present) = (holders[0].id, holders[0].presence.is_here());
                own.singles.push(Single { content: content.id, disk, present });
            }
            own.unreachable += u64::from(!is_here && (!holders.is_empty() || !own.unheard.is_empty()));
            if holders.is_empty() && own.unheard.is_empty() {
                own.gone += 1;
                own.gone_list.push(content.id);
            } else if holders.is_empty() {
                own.unknown += 1;
            }
            let (least, most) = stuck(view, content, &count);
            stuck_least += u64::from(least);
            stuck_most += u64::from(most);
        }
        own.at_risk.sort();
        own.at_risk.truncate(LIST_MAX);
        own.singles.truncate(LIST_MAX);
        own.gone_list.truncate(LIST_MAX);
        let long = said.short_long;
        assert!((long_least..=long_most).contains(&long), "short for long: {long_least}..={long_most}, said {long}");
        let is_told = (stuck_least..=stuck_most).contains(&said.stuck);
        assert!(is_told, "stuck: {stuck_least}..={stuck_most}, said {}", said.stuck);
        self.totals.stuck += said.stuck;
        (own.short_long, own.stuck, own.stuck_by) = (said.short_long, said.stuck, said.stuck_by.clone());
        assert_eq!(said.disks, own.disks);
        assert_eq!((&said.at_risk, &said.singles), (&own.at_risk, &own.singles));
        assert_eq!(said, own);
    }
}

fn empty(disk: &Disk) -> DiskHealth {
    DiskHealth { disk: disk.id, present: disk.presence.is_here(), contents: 0, bytes: 0, only_here: 0 }
}

/// Whether a content surely is, and whether it can be, one that cannot leave a disk of this host.
fn stuck(view: &View<'_>, content: &Content, count: &Count<'_>) -> (bool, bool) {
    let wanted = content.wanted as usize;
    let leaves = |disk: &&Disk| disk.host == view.me && disk.draining;
    let refusing = count.firm.iter().filter(|disk| disk.read_only).count();
    let is_coming = view.desk.fetchers(content.id).next().is_some();
    let needs = count.firm.len() >= wanted && count.firm.len() - refusing < wanted && !is_coming;
    let can_be = needs && count.holders.iter().copied().any(|disk| leaves(&disk));
    let has_place = |disk: &Disk| {
        let can_take = is_keeping(disk) && disk.presence.is_here() && !disk.read_only;
        let taken = if disk.host == view.me { view.desk.reserved_bytes(disk.id) } else { 0 };
        can_take && !content.holders.contains(&disk.id) && disk.free_bytes.saturating_sub(taken) >= content.size_bytes
    };
    (can_be && !view.disks.iter().any(has_place), can_be)
}
