//! What comes of fetches that fail.

use super::*;

/// Plays `hours` of host b with one content after the other in the order of its plans: each takes five minutes, and fails
/// unless it is the last one. How often each was tried.
fn play_failures(lab: &mut Lab, hours: u64) -> Vec<u32> {
    let ids: Vec<ContentId> = lab.contents.iter().map(|content| content.id).collect();
    let mut tries = vec![0; ids.len()];
    let mut fetches: Vec<(u64, ContentId)> = Vec::new();
    for now_s in (NOW_S..NOW_S + hours * 3600).step_by(20) {
        for (_, content) in fetches.extract_if(.., |(end_s, _)| *end_s <= now_s) {
            lab.desk.fetch_ended(id("b1"), content);
            if ids.last() == Some(&content) {
                lab.contents.pop();
            } else {
                lab.desk.failed(id("b1"), content, now_s);
            }
        }
        lab.desk.expire(now_s);
        for decision in lab.plan('b', now_s).decisions {
            let Decision::Mirror { content, size_bytes, .. } = decision else { panic!("{decision:?}") };
            lab.desk.fetching(id("b1"), content, size_bytes);
            fetches.push((now_s + 300, content));
            tries[ids.iter().position(|known| *known == content).unwrap()] += 1;
        }
    }
    tries
}

#[test]
fn what_always_fails_does_not_keep_others_from_being_copied_and_is_tried_again() {
    // Half of them could be read from two disks.
    let mut contents = missing(0..13, "a1");
    contents.iter_mut().step_by(2).for_each(|content| *content = Content { wanted: 3, ..content.clone() });
    contents[12].holders = ["a1", "c1"].map(id).into();
    let disks = vec![disk("a1"), disk("b1"), Disk { read_only: true, ..disk("c1") }];
    let mut lab = Lab::new(disks, contents);
    lab.settings = Settings { max_transfers: 4, max_from_one: 4, ..lab.settings };
    let tries = play_failures(&mut lab.clone(), 1);
    assert_eq!(tries[12], 1, "it was chosen, and is there: {tries:?}");
    let tries = play_failures(&mut lab, 48);
    // After 1, 2, 4, ... minutes, and every six hours then.
    assert!(tries[..12].iter().all(|tries| (12..20).contains(tries)), "{tries:?}");
}

#[test]
fn the_pause_after_a_failure_grows_and_starts_over_when_something_is_new() {
    let mut lab = Lab::new(vec![disk("a1"), disk("b1")], missing(1..2, "a1"));
    let (disk, content) = (id("b1"), lab.contents[0].id);
    let mut now_s = NOW_S;
    for pause_s in [60, 120, 240, 480, 960, 1920, 3840, 7680, 15_360, 21_600, 21_600] {
        lab.desk.failed(disk, content, now_s);
        lab.desk.expire(now_s + pause_s);
        assert_eq!(lab.plan('b', now_s).again_s, Some(now_s + pause_s));
        assert_eq!((lab.targets(now_s + pause_s - 1).len(), lab.targets(now_s + pause_s).len()), (0, 1));
        now_s += pause_s;
    }
    lab.desk.failed(disk, content, now_s);
    lab.desk.forgive(|_, failed_s| failed_s != now_s);
    assert_eq!(lab.targets(now_s + 60), [], "nothing is new since");
    lab.desk.forgive(|of, failed_s| of == content && failed_s == now_s);
    assert_eq!((lab.targets(now_s + 59), lab.targets(now_s + 60)), (vec![], vec![disk]));
    lab.desk.failed(disk, content, now_s);
    assert_eq!(lab.targets(now_s + 60), [disk], "like the first one");
    lab.desk.failed(disk, content, now_s);
    lab.desk.arrived(disk, now_s);
    assert_eq!(lab.targets(now_s), [disk], "the worker is another one");
}
