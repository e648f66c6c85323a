//! Examples, one rule each. Hosts are letters, disks `a1`, `a2`, `b1`: host and number. It is 1,000,000 s by the clock.

use std::sync::Arc;

use delugefs_proto::ids::{ContentId, DiskId, HostId};

use super::*;

mod failures;
mod health;

const NOW_S: u64 = 1_000_000;
const GIB: u64 = 1 << 30;

fn host(name: char) -> HostId {
    HostId([name as u8; 32])
}

fn id(name: &str) -> DiskId {
    let mut id = [0; 32];
    id[..name.len()].copy_from_slice(name.as_bytes());
    DiskId(id)
}

fn disk(name: &str) -> Disk {
    Disk {
        id: id(name),
        host: host(name.chars().next().unwrap()),
        site: String::new(),
        presence: Presence::Here { since_s: 0 },
        here_s: 0,
        heard: true,
        changed_s: 0,
        lazy: false,
        draining: false,
        read_only: false,
        full: false,
        forgotten: false,
        free_bytes: 100 * GIB,
        backlog_s: 0,
    }
}

fn absent(name: &str, for_s: u64) -> Disk {
    Disk { presence: Presence::Absent { since_s: NOW_S - for_s }, ..disk(name) }
}

fn content(number: u32, holders: &[&str]) -> Content {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    let holders = holders.iter().map(|name| id(name)).collect();
    Content { id: ContentId(bytes), size_bytes: GIB, wanted: 2, holders, changed_s: 0 }
}

/// One cluster, seen by each of its hosts.
#[derive(Clone)]
struct Lab {
    disks: Vec<Disk>,
    contents: Vec<Content>,
    settings: Settings,
    desk: Desk,
}

impl Lab {
    fn new(disks: Vec<Disk>, contents: Vec<Content>) -> Self {
        Self { disks, contents, settings: Settings::default(), desk: Desk::new(0) }
    }

    fn plan(&self, me: char, now_s: u64) -> Plan {
        let (desk, settings) = (&self.desk, &self.settings);
        plan(&View { me: host(me), disks: &self.disks, contents: &self.contents, desk, settings }, now_s)
    }

    fn decisions(&self, now_s: u64) -> Vec<Decision> {
        let mut hosts: Vec<HostId> = self.disks.iter().map(|disk| disk.host).collect();
        hosts.sort();
        hosts.dedup();
        hosts.iter().flat_map(|me| self.plan(me.0[0] as char, now_s).decisions).collect()
    }

    /// Onto which disks the contents go, by the hosts' decisions.
    fn targets(&self, now_s: u64) -> Vec<DiskId> {
        let mut found: Vec<DiskId> = self.decisions(now_s).iter().filter_map(target).collect();
        found.sort();
        found
    }

    fn health(&self) -> Health {
        self.health_at(NOW_S)
    }

    fn health_at(&self, now_s: u64) -> Health {
        let (desk, settings) = (&self.desk, &self.settings);
        health(&View { me: host('a'), disks: &self.disks, contents: &self.contents, desk, settings }, now_s)
    }
}

fn target(decision: &Decision) -> Option<DiskId> {
    match decision {
        Decision::Mirror { disk, .. } => Some(*disk),
        _ => None,
    }
}

#[test]
fn one_disk_has_nothing_to_do() {
    assert_eq!(Lab::new(vec![disk("a1")], vec![content(1, &["a1"])]).plan('a', NOW_S), Plan::default());
}

#[test]
fn a_second_copy_goes_to_another_host_by_one_decision() {
    let disks = vec![disk("a1"), disk("a2"), disk("b1"), disk("c1"), disk("c2")];
    for number in 0..100 {
        let new = Content { changed_s: NOW_S, ..content(number, &["a1"]) };
        let targets = Lab::new(disks.clone(), vec![new]).targets(NOW_S);
        assert_eq!(targets.len(), 1, "{number}");
        assert!(targets[0] != id("a2"), "{number}");
    }
}

#[test]
fn without_another_host_another_disk_will_do() {
    let lab = Lab::new(vec![disk("a1"), disk("a2")], vec![content(1, &["a1"])]);
    assert_eq!(lab.targets(NOW_S), [id("a2")]);
}

#[test]
fn another_site_before_another_host() {
    let far = Disk { site: "hut".into(), ..disk("d1") };
    let lab = Lab::new(vec![disk("a1"), disk("b1"), disk("c1"), far], vec![content(1, &["a1"])]);
    let new = Content { changed_s: NOW_S, ..lab.contents[0].clone() };
    assert_eq!(Lab { contents: vec![new], ..lab }.targets(NOW_S), [id("d1")]);
}

#[test]
fn who_does_not_act_is_passed_over_one_after_the_other() {
    let disks: Vec<Disk> = ["a1", "b1", "c1", "d1", "e1"].map(disk).into();
    let new = Content { changed_s: NOW_S, ..content(1, &["a1"]) };
    let lab = Lab::new(disks, vec![new]);
    let step_s = lab.settings.takeover_s + GIB / lab.settings.takeover_bytes_per_s;
    let count = |at_s: u64| lab.targets(at_s).len();
    assert_eq!([count(NOW_S), count(NOW_S + step_s - 1), count(NOW_S + step_s)], [1, 1, 2]);
    assert_eq!([count(NOW_S + 2 * step_s), count(NOW_S + 100 * step_s)], [3, 4]);
    let first = lab.targets(NOW_S)[0];
    let other = lab.disks.iter().find(|disk| disk.id != first && disk.id != id("a1")).unwrap().host.0[0] as char;
    let again_s = lab.plan(other, NOW_S).again_s.unwrap();
    assert!(again_s > NOW_S && again_s <= NOW_S + 3 * step_s, "{again_s}");
}

#[test]
fn a_queue_is_waited_for() {
    let mut disks: Vec<Disk> = ["a1", "b1", "c1"].map(disk).into();
    let new = Content { changed_s: NOW_S, ..content(1, &["a1"]) };
    let first = Lab::new(disks.clone(), vec![new.clone()]).targets(NOW_S)[0];
    disks.iter_mut().find(|disk| disk.id == first).unwrap().backlog_s = 5000;
    let lab = Lab::new(disks, vec![new]);
    assert_eq!(lab.targets(NOW_S + 5000).len(), 1);
    assert_eq!(lab.targets(NOW_S + 5400).len(), 2);
}

#[test]
fn newcomers_to_an_old_need_do_not_all_act_at_once() {
    let fresh = |name| Disk { presence: Presence::Here { since_s: NOW_S }, ..disk(name) };
    let lab = Lab::new(vec![disk("a1"), fresh("b1"), fresh("c1"), fresh("d1")], vec![content(1, &["a1"])]);
    assert_eq!(lab.targets(NOW_S).len(), 1);
}

#[test]
fn what_only_a_disk_has_that_comes_back_is_not_copied_by_all_at_once() {
    let back = |since_s| Disk { presence: Presence::Here { since_s }, ..disk("f1") };
    let others = || ["a1", "b1", "c1", "d1", "e1"].map(disk).into_iter().chain([absent("g1", 2 * 86_400)]);
    let lab = |since_s| Lab::new(others().chain([back(since_s)]).collect(), vec![content(1, &["f1", "g1"])]);
    let step_s = Settings::default().takeover_s + GIB / Settings::default().takeover_bytes_per_s;
    let count = |for_s| lab(NOW_S - for_s).targets(NOW_S).len();
    assert_eq!([count(0), count(step_s - 1), count(step_s), count(100 * step_s)], [1, 1, 2, 5]);
    // It is due again when the next one's turn is, on whichever host.
    let lab = lab(NOW_S);
    let again = "abcde".chars().filter_map(|me| lab.plan(me, NOW_S).again_s).min();
    assert_eq!(again, Some(NOW_S + step_s));
}

#[test]
fn newcomers_do_not_all_improve_the_spread_at_once() {
    let fresh = |name| Disk { presence: Presence::Here { since_s: NOW_S }, ..disk(name) };
    let disks = vec![disk("a1"), disk("a2"), fresh("b1"), fresh("c1"), fresh("d1")];
    let lab = Lab::new(disks, vec![content(1, &["a1", "a2"])]);
    assert_eq!(lab.targets(NOW_S + 3599), []);
    assert_eq!(lab.targets(NOW_S + 3600).len(), 1);
}

#[test]
fn full_lazy_draining_read_only_forgotten_absent_and_refusing_disks_take_nothing() {
    let unfit = [
        Disk { free_bytes: GIB - 1, ..disk("b1") },
        Disk { lazy: true, ..disk("b1") },
        Disk { draining: true, ..disk("b1") },
        Disk { read_only: true, ..disk("b1") },
        Disk { forgotten: true, ..disk("b1") },
        absent("b1", 10),
    ];
    for unfit in unfit {
        let lab = Lab::new(vec![disk("a1"), unfit], vec![content(1, &["a1"])]);
        assert_eq!(lab.targets(NOW_S), []);
    }
    let mut lab = Lab::new(vec![disk("a1"), disk("b1")], vec![content(1, &["a1"])]);
    lab.desk.refused(id("b1"), lab.contents[0].id, NOW_S + 1);
    assert_eq!(lab.targets(NOW_S), []);
    assert_eq!(lab.targets(NOW_S + 1), [id("b1")]);
}

#[test]
fn what_is_being_fetched_here_is_not_fetched_again() {
    let mut lab = Lab::new(vec![disk("a1"), disk("b1"), disk("b2")], vec![content(1, &["a1"])]);
    lab.desk.fetching(id("b2"), lab.contents[0].id, GIB);
    assert_eq!(lab.targets(NOW_S), []);
    lab.desk.fetch_ended(id("b2"), lab.contents[0].id);
    assert!(!lab.targets(NOW_S).is_empty());
}

/// It hangs, or its host is gone: what it was fetching may never come.
#[test]
fn what_a_disk_fetches_that_is_not_there_is_fetched_by_another() {
    let mut lab = Lab::new(vec![disk("a1"), disk("b1"), absent("b2", 1)], vec![content(1, &["a1"])]);
    lab.desk.fetching(id("b2"), lab.contents[0].id, GIB);
    assert_eq!(lab.targets(NOW_S), [id("b1")]);
}

#[test]
fn an_absent_disk_is_waited_for_and_not_as_long_for_the_last_copy() {
    let lab = |holders: &[&str], away_s: u64| {
        let wanted = holders.len() as u32;
        let content = Content { wanted, ..content(1, holders) };
        Lab::new(vec![disk("a1"), disk("b1"), absent("c1", away_s), disk("d1")], vec![content])
    };
    assert_eq!(lab(&["a1", "b1", "c1"], 3599).targets(NOW_S), []);
    assert_eq!(lab(&["a1", "b1", "c1"], 3599).plan('d', NOW_S).again_s, Some(NOW_S + 1));
    assert_eq!(lab(&["a1", "b1", "c1"], 3600).targets(NOW_S), [id("d1")]);
    assert_eq!(lab(&["a1", "c1"], 599).targets(NOW_S), []);
    assert!(!lab(&["a1", "c1"], 600).targets(NOW_S).is_empty());
}

#[test]
fn copies_on_lazy_disks_do_not_count_but_can_be_read() {
    let lazy = Disk { lazy: true, ..disk("a1") };
    let lab = Lab::new(vec![lazy, disk("b1"), disk("c1")], vec![content(1, &["a1"])]);
    assert_eq!(lab.targets(NOW_S), [id("b1"), id("c1")]);
}

#[test]
fn nothing_is_fetched_that_nobody_can_give() {
    let lab = Lab::new(vec![absent("a1", 99_999), disk("b1"), disk("c1")], vec![content(1, &["a1"])]);
    assert_eq!(lab.targets(NOW_S), []);
    assert_eq!(lab.health().unreachable, 1);
}

#[test]
fn copies_in_one_host_are_spread_later_and_then_one_of_them_goes() {
    let mut lab = Lab::new(vec![disk("a1"), disk("a2"), disk("b1")], vec![content(1, &["a1", "a2"])]);
    lab.contents[0].changed_s = NOW_S - 3599;
    assert_eq!(lab.decisions(NOW_S), []);
    let Decision::Mirror { reason: Reason::Spread, .. } = lab.decisions(NOW_S + 1)[0] else { panic!() };
    assert_eq!(lab.targets(NOW_S + 1), [id("b1")]);
    lab.contents[0] = Content { changed_s: 0, ..content(1, &["a1", "a2", "b1"]) };
    let decisions = lab.decisions(NOW_S);
    let [Decision::Confirm { disk, keepers, .. }] = &decisions[..] else { panic!("{decisions:?}") };
    assert!(*disk != id("b1") && keepers.contains(&id("b1")));
}

fn surplus() -> Lab {
    Lab::new(["a1", "b1", "c1", "d1"].map(disk).into(), vec![content(1, &["a1", "b1", "c1"])])
}

fn confirm(lab: &Lab, now_s: u64) -> (DiskId, Vec<DiskId>) {
    match &lab.decisions(now_s)[..] {
        [Decision::Confirm { disk, keepers, wanted: 2, .. }] => (*disk, keepers.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_surplus_copy_goes_late_and_only_on_promises() {
    let mut lab = surplus();
    lab.contents[0].changed_s = NOW_S - lab.settings.trim_delay_s + 1;
    assert_eq!(lab.decisions(NOW_S), []);
    let now_s = NOW_S + 1;
    let (disk, keepers) = confirm(&lab, now_s);
    assert_eq!(keepers.len(), 2);
    let content = lab.contents[0].id;
    for keeper in &keepers {
        lab.desk.asking(content, *keeper, now_s);
    }
    assert_eq!(lab.decisions(now_s), []);
    lab.desk.promised(content, keepers[0], now_s, PROMISE_S);
    assert_eq!(lab.decisions(now_s), []);
    lab.desk.promised(content, keepers[1], now_s, PROMISE_S);
    let [Decision::Trim { disk: from, relying_on, .. }] = &lab.decisions(now_s)[..] else { panic!() };
    assert_eq!((*from, relying_on.len()), (disk, 2));
    assert!(!lab.desk.clone().begin_trim(disk, content, &[], now_s));
    assert!(!lab.desk.clone().begin_trim(disk, content, relying_on, now_s + PROMISE_S), "ran out");
    assert!(lab.desk.begin_trim(disk, content, relying_on, now_s));
    assert_eq!(lab.decisions(now_s), []);
}

#[test]
fn a_decline_makes_the_copy_needed() {
    let mut lab = surplus();
    let (_, keepers) = confirm(&lab, NOW_S);
    lab.desk.declined(lab.contents[0].id, keepers[0], NOW_S + 100);
    assert_eq!(lab.decisions(NOW_S), []);
}

#[test]
fn what_cannot_be_relied_on_makes_no_surplus() {
    let changes: [fn(&mut Disk); 5] = [
        |disk| disk.presence = Presence::Absent { since_s: NOW_S - 1 },
        |disk| disk.lazy = true,
        |disk| disk.read_only = true,
        |disk| disk.forgotten = true,
        |disk| disk.presence = Presence::Here { since_s: NOW_S - 60 },
    ];
    for change in changes {
        let mut lab = surplus();
        change(&mut lab.disks[2]);
        assert_eq!(lab.decisions(NOW_S), []);
    }
}

#[test]
fn a_holder_named_twice_is_one_copy_and_so_is_a_cloned_disk() {
    let mut lab = surplus();
    lab.contents[0].holders = ["a1", "b1", "b1"].map(id).to_vec().into();
    assert_eq!(lab.decisions(NOW_S), []);
    let clone = Disk { host: host('c'), ..disk("b1") };
    lab.disks.push(clone);
    assert_eq!(lab.decisions(NOW_S), []);
}

#[test]
fn a_draining_disk_is_copied_first_and_lets_go_then() {
    let draining = Disk { draining: true, changed_s: NOW_S, ..disk("a1") };
    let mut lab = Lab::new(vec![draining, disk("b1"), disk("c1"), disk("d1")], vec![content(1, &["a1", "b1"])]);
    let decisions = lab.decisions(NOW_S);
    let [Decision::Mirror { disk, reason: Reason::Drain, .. }] = decisions[..] else { panic!("{decisions:?}") };
    lab.contents[0].holders = ["a1", "b1"].map(id).into_iter().chain([disk]).collect();
    lab.contents[0].changed_s = NOW_S;
    assert_eq!(confirm(&lab, NOW_S).0, id("a1"));
}

#[test]
fn a_full_disk_lets_go_and_a_failing_one_does_not() {
    for full in [true, false] {
        // To be emptied, with enough copies elsewhere; and with a surplus copy, which ranks last for want of room.
        let emptied = Disk { draining: true, read_only: true, full, ..disk("a1") };
        let crowded = Disk { read_only: true, full, free_bytes: 0, ..disk("a1") };
        for a1 in [emptied, crowded] {
            let lab = Lab::new(vec![a1, disk("b1"), disk("c1")], vec![content(1, &["a1", "b1", "c1"])]);
            match full {
                true => assert_eq!(confirm(&lab, NOW_S).0, id("a1")),
                false => assert_eq!(lab.decisions(NOW_S), []),
            }
            let mut desk = lab.desk.clone();
            let declined = desk.grant(&lab.disks[0], lab.contents[0].id, true, Some(2), 2, NOW_S);
            assert_eq!(declined, Err(Decline::Unfit), "nobody relies on it");
        }
    }
}

#[test]
fn a_lazy_disk_may_evict_what_others_promise_to_keep() {
    let mut lab = surplus();
    lab.disks[2].lazy = true;
    let cluster = Cluster::new(host('c'), &lab.disks, &lab.desk, &lab.settings);
    let Release::Ask { keepers } = release(&cluster, &lab.contents[0], id("c1"), NOW_S) else { panic!() };
    assert_eq!(keepers.len(), 2);
    lab.contents[0].holders = ["a1", "c1"].map(id).to_vec().into();
    assert_eq!(release(&cluster, &lab.contents[0], id("c1"), NOW_S), Release::No);
}

#[test]
fn a_promise_and_a_trim_exclude_each_other() {
    let (content, now_s) = (content(1, &[]).id, NOW_S);
    let mut desk = Desk::new(0);
    for keeper in ["b1", "c1"] {
        desk.promised(content, id(keeper), now_s, PROMISE_S);
    }
    let keepers = [id("b1"), id("c1")];
    let mut other = desk.clone();
    assert_eq!(other.grant(&disk("a1"), content, true, Some(2), 2, now_s), Ok(PROMISE_S));
    assert!(!other.begin_trim(id("a1"), content, &keepers, now_s));
    assert!(desk.begin_trim(id("a1"), content, &keepers, now_s));
    assert_eq!(desk.grant(&disk("a1"), content, true, Some(2), 2, now_s), Err(Decline::LettingGo));
    desk.end_trim(id("a1"), content);
    assert_eq!(desk.grant(&disk("a1"), content, false, Some(2), 2, now_s), Err(Decline::NotHere));
}

#[test]
fn what_was_agreed_before_a_restart_or_a_move_runs_out_before_anything_new() {
    let (content, keepers) = (content(1, &[]).id, [id("b1"), id("c1")]);
    let try_at = |mut desk: Desk, now_s: u64| {
        keepers.iter().for_each(|keeper| desk.promised(content, *keeper, now_s, PROMISE_S));
        let granted = desk.clone().grant(&disk("a1"), content, true, Some(2), 2, now_s).is_ok();
        assert_eq!(granted, desk.begin_trim(id("a1"), content, &keepers, now_s));
        granted
    };
    let restarted = Desk::new(NOW_S);
    assert!(!try_at(restarted.clone(), NOW_S + PROMISE_S - 1) && try_at(restarted, NOW_S + PROMISE_S));
    let mut moved = Desk::new(0);
    assert!(try_at(moved.clone(), NOW_S));
    moved.arrived(id("a1"), NOW_S);
    moved.expire(NOW_S + PROMISE_S - 1);
    assert!(!try_at(moved.clone(), NOW_S + PROMISE_S - 1) && try_at(moved, NOW_S + PROMISE_S));
}

#[test]
fn promises_are_declined_by_disks_nobody_should_rely_on() {
    let id = content(1, &[]).id;
    let grant = |disk: &Disk, wanted, now_s| Desk::new(0).grant(disk, id, true, wanted, 2, now_s);
    let unfit = Err(Decline::Unfit);
    assert_eq!(grant(&Disk { lazy: true, ..disk("a1") }, Some(2), NOW_S), unfit);
    assert_eq!(grant(&Disk { draining: true, ..disk("a1") }, Some(2), NOW_S), unfit);
    assert_eq!(grant(&Disk { read_only: true, ..disk("a1") }, Some(2), NOW_S), unfit);
    assert_eq!(grant(&absent("a1", 1), Some(2), NOW_S), unfit);
    assert_eq!(grant(&disk("a1"), Some(3), NOW_S), Err(Decline::KnowsBetter));
    assert_eq!(grant(&disk("a1"), None, NOW_S), Err(Decline::KnowsBetter));
    assert_eq!(grant(&disk("a1"), Some(2), PROMISE_S - 1), Err(Decline::TooNew));
    assert_eq!(grant(&disk("a1"), Some(2), PROMISE_S), Ok(PROMISE_S));
}

#[test]
fn the_most_endangered_and_the_oldest_come_first_within_the_limits() {
    let far = |number, holders: &[&str], changed_s| Content { wanted: 3, changed_s, ..content(number, holders) };
    let contents = vec![far(1, &["a1", "c1"], 1), far(2, &["a1"], 9), far(3, &["a1"], 5), far(4, &["a1", "c1"], 0)];
    let ids: Vec<ContentId> = contents.iter().map(|content| content.id).collect();
    let mut lab = Lab::new(vec![disk("a1"), disk("b1"), disk("c1")], contents);
    let mirrored = |plan: &Plan| -> Vec<ContentId> {
        let pick = |decision: &Decision| match decision {
            Decision::Mirror { content, .. } => Some(*content),
            _ => None,
        };
        plan.decisions.iter().filter_map(pick).collect()
    };
    assert_eq!(mirrored(&lab.plan('b', NOW_S)), [ids[2], ids[1], ids[3], ids[0]]);
    lab.settings.max_transfers = 3;
    let plan = lab.plan('b', NOW_S);
    assert_eq!((plan.decisions.len(), plan.waiting, plan.waiting_bytes), (3, 1, GIB));
    lab.settings.max_transfer_bytes = GIB / 2;
    assert_eq!(mirrored(&lab.plan('b', NOW_S)), [ids[2]], "one is always possible");
    lab.desk.fetching(id("b1"), ids[2], GIB / 4);
    assert_eq!(mirrored(&lab.plan('b', NOW_S)), []);
    lab.settings = Settings { max_decisions: 1, ..Settings::default() };
    assert_eq!(mirrored(&lab.plan('b', NOW_S)), [ids[1]]);
    lab.disks[1].free_bytes = 3 * GIB;
    lab.settings = Settings::default();
    lab.desk.fetching(id("b1"), ids[2], GIB);
    assert_eq!(mirrored(&lab.plan('b', NOW_S)), [ids[1], ids[3]], "no more than fits");
}

#[test]
fn many_small_contents_are_fetched_beside_large_ones() {
    let sized = |number, size_bytes| Content { size_bytes, changed_s: 1, ..content(number, &["a1"]) };
    let mut contents: Vec<Content> = (0..100).map(|number| sized(number, GIB)).collect();
    contents.extend((100..200).map(|number| sized(number, 4 << 20)));
    let mut lab = Lab::new(vec![disk("a1"), disk("b1")], contents);
    lab.settings = Settings { max_transfers: 3, max_from_one: 64, max_small_transfers: 120, ..lab.settings };
    let count = |plan: &Plan| {
        let large = |decision: &&Decision| matches!(decision, Decision::Mirror { size_bytes: GIB, .. });
        let large = plan.decisions.iter().filter(large).count();
        (large, plan.decisions.len() - large, plan.waiting)
    };
    assert_eq!(count(&lab.plan('b', NOW_S)), (3, 60, 137));
    let ids: Vec<ContentId> = lab.contents.iter().map(|content| content.id).collect();
    ids[..2].iter().for_each(|id_of| lab.desk.fetching(id("b1"), *id_of, GIB));
    ids[100..150].iter().for_each(|id_of| lab.desk.fetching(id("b1"), *id_of, 5000));
    assert_eq!(count(&lab.plan('b', NOW_S)), (1, 10, 137));
    lab.settings.max_transfer_bytes = GIB;
    assert_eq!(count(&lab.plan('b', NOW_S)), (0, 10, 138), "bytes are counted of large ones");
    lab.settings = Settings { queue_bytes: 30 * GIB, max_transfer_bytes: 64 * GIB, ..lab.settings };
    assert_eq!(count(&lab.plan('b', NOW_S)), (28, 10, 110), "more of them as long as they are not very large");
}

/// Contents of which one copy is missing, the first ones for the longest time.
fn missing(numbers: std::ops::Range<u32>, holder: &str) -> Vec<Content> {
    numbers.map(|number| Content { changed_s: u64::from(number), ..content(number, &[holder]) }).collect()
}

#[test]
fn a_disk_that_alone_has_many_contents_leaves_places_for_others() {
    let mut contents = missing(0..20, "a1");
    contents.extend(missing(20..22, "c1"));
    let mut lab = Lab::new(vec![disk("a1"), disk("b1"), Disk { read_only: true, ..disk("c1") }], contents);
    let chosen = |plan: &Plan| plan.decisions.len();
    let last = |plan: &Plan| matches!(plan.decisions[..], [.., Decision::Mirror { content, .. }] if content.0[0] == 21);
    let plan = lab.plan('b', NOW_S);
    assert_eq!((chosen(&plan), plan.waiting), (5, 17), "three and two");
    assert!(last(&plan));
    let ids: Vec<ContentId> = lab.contents.iter().map(|content| content.id).collect();
    ids[..3].iter().for_each(|content| lab.desk.fetching(id("b1"), *content, GIB));
    let plan = lab.plan('b', NOW_S);
    assert_eq!((chosen(&plan), plan.waiting), (2, 17), "those under way count");
    lab.contents.iter_mut().for_each(|content| content.size_bytes = 100);
    lab.settings.max_small_transfers = 10;
    ids[..3].iter().for_each(|content| lab.desk.fetch_ended(id("b1"), *content));
    let plan = lab.plan('b', NOW_S);
    assert_eq!((chosen(&plan), plan.waiting), (7, 15), "half of the small ones");
    assert!(last(&plan));
}

#[test]
fn disks_fill_in_proportion_to_their_free_space() {
    let sized = |name, gib: u64| Disk { free_bytes: gib * GIB, ..disk(name) };
    let disks = vec![disk("a1"), sized("b1", 1 << 10), sized("c1", 2 << 10), sized("d1", 5 << 10)];
    let contents = (0..4000).map(|n| Content { changed_s: NOW_S, ..content(n, &["a1"]) }).collect();
    let mut lab = Lab::new(disks, contents);
    let most = Settings { max_decisions: 5000, max_transfers: 5000, max_from_one: 5000, ..lab.settings };
    lab.settings = Settings { max_transfer_bytes: u64::MAX, ..most };
    let targets = lab.targets(NOW_S);
    assert_eq!(targets.len(), 4000);
    for (name, share) in [("b1", 500usize), ("c1", 1000), ("d1", 2500)] {
        let got = targets.iter().filter(|disk| **disk == id(name)).count();
        assert!(got.abs_diff(share) < share / 8, "{name}: {got}");
    }
}

#[test]
fn contents_that_no_file_has_are_left_alone() {
    let mut lab = surplus();
    lab.contents[0].wanted = 0;
    assert_eq!(lab.decisions(NOW_S), []);
    assert_eq!(lab.health().contents, 0);
}

/// Run it with `--ignored --nocapture` (and `--release`): prints, asserts no time.
#[test]
#[ignore = "a measurement"]
fn a_hundred_thousand_contents_on_a_hundred_disks() {
    let names: Vec<String> = (0..100).map(|n| format!("{}{n}", (b'a' + (n % 20) as u8) as char)).collect();
    let disks: Vec<Disk> = names.iter().map(|name| disk(name)).collect();
    let holders = |n: u32, copies: usize| -> Arc<[DiskId]> {
        let at = |copy| weight::mix(u64::from(n)).wrapping_add(copy as u64 * 7) as usize % 100;
        (0..copies).map(|copy| id(&names[at(copy)])).collect()
    };
    for (what, copies) in [("enough copies", 2), ("one copy missing", 1), ("one copy too many", 3)] {
        for changed_s in [NOW_S, 0] {
            let contents =
                (0..100_000).map(|n| Content { holders: holders(n, copies), changed_s, ..content(n, &[]) }).collect();
            let lab = Lab::new(disks.clone(), contents);
            let start = std::time::Instant::now();
            let plan = lab.plan('a', NOW_S);
            let took = start.elapsed();
            println!("{what}, changed {} s ago: {took:?}, {} decisions", NOW_S - changed_s, plan.decisions.len());
        }
    }
}
