//! What is told of missing copies.

use super::*;

#[test]
fn health_counts_and_names() {
    let disks =
        vec![disk("a1"), disk("b1"), absent("c1", 99_999), absent("d1", 10), Disk { forgotten: true, ..disk("e1") }];
    let contents = vec![
        content(0, &["a1", "b1"]),
        content(1, &["a1", "c1"]),
        content(2, &["a1", "d1"]),
        content(3, &["c1"]),
        content(4, &["b1"]),
        content(5, &["e1"]),
    ];
    let ids: Vec<ContentId> = contents.iter().map(|content| content.id).collect();
    let health = Lab::new(disks, contents).health();
    assert_eq!((health.contents, health.short, health.short_waiting), (6, 5, 1));
    assert_eq!((health.single, health.unreachable, health.gone), (2, 1, 1));
    assert_eq!(health.gone_list, [ids[5]]);
    assert_eq!(health.singles[0], Single { content: ids[3], disk: id("c1"), present: false });
    assert_eq!(health.singles[1], Single { content: ids[4], disk: id("b1"), present: true });
    assert_eq!(health.at_risk[0].present, 0);
    assert_eq!(health.at_risk[4].present, 1);
    assert_eq!(health.disks.len(), 4);
    let a1 = DiskHealth { disk: id("a1"), present: true, contents: 3, bytes: 3 * GIB, only_here: 0 };
    assert_eq!(health.disks[0], a1);
    assert_eq!(health.disks[2].only_here, 1);
}

#[test]
fn what_nobody_is_known_to_hold_may_be_on_a_disk_that_was_not_heard() {
    let unheard = || Disk { heard: false, ..absent("b1", 10) };
    let said = |other: Disk| {
        let health = Lab::new(vec![disk("a1"), other], vec![content(1, &[]), content(2, &["a1"])]).health();
        (health.unreachable, health.unknown, health.gone, health.unheard)
    };
    assert_eq!(said(unheard()), (1, 1, 0, vec![id("b1")]));
    assert_eq!(said(absent("b1", 10)), (0, 0, 1, vec![]), "it has said what it holds");
    assert_eq!(said(Disk { forgotten: true, ..unheard() }), (0, 0, 1, vec![]), "it was given up");
    assert_eq!(said(Disk { heard: false, ..disk("b1") }), (1, 1, 0, vec![id("b1")]), "it has just come");
}

#[test]
fn copies_missing_for_more_than_an_hour_are_counted() {
    let full = Disk { read_only: true, full: true, ..disk("b1") };
    let one = |disks: Vec<Disk>, content: Content| Lab::new(disks, vec![content]);
    let new = |holders| Content { changed_s: NOW_S, ..content(1, holders) };
    let counted = |lab: &Lab, after_s| lab.health_at(NOW_S + after_s).short_long;
    let lab = one(vec![disk("a1"), full.clone()], new(&["a1"]));
    assert_eq!([counted(&lab, 3600), counted(&lab, 3601)], [0, 1]);
    // A disk that went away is waited for first, for ten minutes where it leaves one copy.
    let lab = one(vec![disk("a1"), full.clone(), absent("c1", 0)], content(1, &["a1", "c1"]));
    assert_eq!([counted(&lab, 3700), counted(&lab, 600 + 3600), counted(&lab, 600 + 3601)], [0, 0, 1]);
    // What is on no disk that is here is another problem, and a single disk none.
    let lab = one(vec![disk("a1"), full, absent("c1", 0)], new(&["c1"]));
    assert_eq!(counted(&lab, 99_999), 0);
    // Nor what came within reach a moment ago: it is about to be copied.
    let back = |here_s| Disk { presence: Presence::Here { since_s: NOW_S }, here_s, ..disk("a1") };
    let came = |here_s| one(vec![back(here_s), disk("b1"), absent("c1", 99_999)], content(1, &["a1", "c1"]));
    let lab = came(NOW_S);
    assert_eq!([counted(&lab, 0), counted(&lab, 3600), counted(&lab, 3601)], [0, 0, 1]);
    // Unless it comes and goes all the time.
    assert_eq!(counted(&came(NOW_S - 3601), 0), 1);
    for none in [Disk { forgotten: true, ..disk("b1") }, Disk { lazy: true, ..disk("b1") }] {
        let lab = one(vec![disk("a1"), none], new(&["a1"]));
        assert_eq!(counted(&lab, 99_999), 0);
    }
}

#[test]
fn what_waits_for_a_disk_that_promises_nothing_is_counted() {
    let leaving = || Disk { draining: true, ..disk("a1") };
    let full = || Disk { read_only: true, full: true, free_bytes: 0, ..disk("c1") };
    let lab = |disks: Vec<Disk>| Lab::new(disks, vec![Content { changed_s: NOW_S, ..content(1, &["a1", "b1", "c1"]) }]);
    let counted = |lab: &Lab, after_s| lab.health_at(NOW_S + after_s).stuck;
    let stuck = lab(vec![leaving(), disk("b1"), full()]);
    assert_eq!(counted(&stuck, 0), 1);
    assert_eq!(stuck.health_at(NOW_S).stuck_by, [id("c1")].into());
    // Elsewhere there is room: it is copied there, unless nobody does.
    let roomy = lab(vec![leaving(), disk("b1"), full(), disk("d1")]);
    assert_eq!([counted(&roomy, 3600), counted(&roomy, 3601)], [0, 1]);
    assert_eq!(roomy.targets(NOW_S), [id("d1")]);
    for fine in [vec![leaving(), disk("b1"), disk("c1")], vec![disk("a1"), disk("b1"), full()]] {
        let fine = lab(fine);
        assert_eq!((counted(&fine, 99_999), fine.targets(NOW_S)), (0, vec![]));
    }
}
