//! What is heard of holdings, in parts, late, twice, and from those who tell lies.

use super::*;
use std::collections::BTreeSet;

const ME: DiskId = DiskId([1; 32]);

fn content(n: u32) -> ContentId {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    ContentId(id)
}

/// What comes of these messages, put together.
fn hear(holdings: &mut Holdings, messages: Vec<pb::Holdings>) -> Vec<Heard> {
    whole(messages).into_iter().map(|message| holdings.hear(&message)).collect()
}

fn whole(messages: Vec<pb::Holdings>) -> Vec<pb::Holdings> {
    let mut parts = Parts::default();
    let added = messages.into_iter().filter_map(|message| match parts.add(message).unwrap() {
        Part::Whole(message) => Some(message),
        Part::More => None,
        Part::Missing => panic!("nothing is missing"),
    });
    added.collect()
}

fn held(holdings: &Holdings) -> BTreeSet<Short> {
    holdings.disks[&ME].held.iter().copied().collect()
}

/// Being connected with a disk is not to know what it has.
#[test]
fn a_disk_has_told_when_all_that_it_claimed_has_come() {
    let (mut mine, mut near) = (Holdings::default(), Holdings::default());
    mine.begin(ME, 7, (0..3000).map(content));
    assert!(!near.has_told(ME, true), "it is not known at all");
    near.met(ME);
    assert!(!near.has_told(ME, true), "it has not said how far it has counted");
    near.claimed(ME, &mine.have());
    assert!(!near.has_told(ME, true));
    let lacks = mine.lacks(&near.have());
    hear(&mut near, lacks);
    assert!(near.has_told(ME, true));
    // It comes back from a restart.
    mine.begin(ME, 8, (0..3001).map(content));
    near.met(ME);
    near.claimed(ME, &mine.have());
    assert!(!near.has_told(ME, true));
    let lacks = mine.lacks(&near.have());
    hear(&mut near, lacks);
    assert!(near.has_told(ME, true));
    // Who has never met it hears it from others.
    let mut far = Holdings::default();
    let lacks = near.lacks(&far.have());
    hear(&mut far, lacks);
    assert!(far.has_told(ME, true));
    assert!(!far.has_told(ME, false), "they may have heard it long ago");
    // Nor is it told what was known before the start.
    let mut again = Holdings::default();
    whole(near.lacks(&again.have())).iter().for_each(|message| again.recall(message));
    assert!(held(&again) == held(&mine) && !again.has_told(ME, true));
    // What was heard on a link that was there before is.
    let lacks = near.lacks(&Holdings::default().have());
    whole(lacks).iter().for_each(|message| far.recall(message));
    assert!(far.has_told(ME, true));
}

#[test]
fn others_follow_by_differences_or_from_nothing() {
    let (mut mine, mut near, mut far) = (Holdings::default(), Holdings::default(), Holdings::default());
    mine.begin(ME, 7, (0..10_000).map(content));
    let lacks = mine.lacks(&near.have());
    hear(&mut near, lacks);
    assert!(held(&near) == held(&mine));
    let mut bits = 1_u64;
    for n in 0..5000 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        mine.changed(ME, content((bits >> 40) as u32 % 12_000), bits >> 63 == 0);
        // Some at a time, and some do not arrive.
        if n % 3 != 0 {
            continue;
        }
        let news = mine.news(ME);
        if n % 7 != 0 && hear(&mut near, news).contains(&Heard::Gap) {
            let lacks = mine.lacks(&near.have());
            hear(&mut near, lacks);
        }
    }
    let lacks = mine.lacks(&near.have());
    assert!(hear(&mut near, lacks.clone()).iter().all(|heard| *heard == Heard::News));
    assert!(hear(&mut near, lacks).iter().all(|heard| *heard == Heard::Nothing));
    assert!(near.have() == mine.have());
    assert!(held(&near) == held(&mine));
    // Second hand.
    let messages = near.lacks(&far.have());
    assert!(messages.len() > 1);
    // In parts of another size on the way.
    hear(&mut far, whole(messages).into_iter().flat_map(split).collect());
    assert!(held(&far) == held(&mine));
    for n in 0..12_000 {
        let is_held = mine.disks[&ME].held.contains(&short(content(n)));
        assert_eq!(*far.holders(content(n)), *if is_held { &[ME][..] } else { &[] });
    }
    assert!(far.lacks(&mine.have()).is_empty());
    // A new count replaces the old one, and what comes late of the old one is ignored.
    assert!(mine.changed(ME, content(77_777), true) && !mine.changed(ME, content(77_777), true));
    let late = mine.news(ME).remove(0);
    assert!(late.added.len() == 16 && mine.news(ME).is_empty());
    mine.begin(ME, 8, [content(1)].into_iter());
    let lacks = mine.lacks(&far.have());
    hear(&mut far, lacks);
    assert_eq!(far.hear(&late), Heard::Nothing);
    assert_eq!((far.count(ME), far.epoch(ME), &*far.holders(content(1))), (1, 8, &[ME][..]));
}

/// A member tells lies about another one, until it is revoked.
#[test]
fn whatever_is_said_of_a_disk_it_can_be_heard_again() {
    let (mut mine, mut others) = (Holdings::default(), Holdings::default());
    let claim = |epoch| message(ME, epoch, 0, 1, &[], &[]);
    mine.begin(ME, 7, [content(1)].into_iter());
    hear(&mut others, mine.all_of(ME));
    for epoch in [1 << 44, EPOCH_MAX / 2, EPOCH_MAX - 1, EPOCH_MAX, u64::MAX] {
        assert_eq!(others.hear(&claim(epoch)), Heard::Nothing, "{epoch}");
        assert!(!mine.outdo(ME, &claim(epoch)), "{epoch}");
    }
    let last = claim(latest());
    assert_eq!(others.hear(&last), Heard::News);
    assert!(mine.outdo(ME, &last));
    let begin = std::time::Instant::now();
    while mine.all_of(ME).iter().any(|message| others.hear(message) != Heard::News) {
        assert!(begin.elapsed().as_secs() < 30, "it is not heard");
        std::thread::yield_now();
    }
    assert_eq!(*others.holders(content(1)), [ME]);
}

/// Nobody removes anything.
#[test]
fn what_is_said_of_disks_has_a_bound() {
    let other = DiskId([2; 32]);
    let shorts = |from: u32, count: u32| (from..from + count).map(|n| short(content(n))).collect::<Vec<_>>();
    let said = |id, generation: u64, added: &[Short]| message(id, 7, generation - 1, generation, added, &[]);
    for limits in [(1000, 10_000), (10_000, 2000)] {
        let mut mine = Holdings { limits, ..Holdings::default() };
        assert_eq!(mine.hear(&said(other, 1, &shorts(0, 5))), Heard::News);
        let mut heard = Vec::new();
        for round in 0..30 {
            heard.push(mine.hear(&said(ME, round + 1, &shorts(round as u32 * 100, 100))));
        }
        let (each, all) = limits;
        let refused = if each < all { Heard::TooMuch } else { Heard::NoRoom };
        let most = each.min(all) as u64;
        assert!(mine.count(ME) <= most && mine.count(ME) > most - 200, "{}", mine.count(ME));
        // And it does not ask for all of it again and again.
        let first = heard.iter().position(|heard| *heard == refused).unwrap();
        assert!(heard[first + 1..].iter().all(|heard| *heard == Heard::Nothing), "{heard:?}");
        let (count, epoch) = (mine.count(ME), 8);
        let anew = |count| message(ME, epoch, 0, 1, &shorts(0, count), &[]);
        assert_eq!((mine.hear(&anew(3000)), mine.count(ME)), (refused, count));
        // Who is said to hold too much keeps out nobody else; it can be heard again, and what is removed makes room.
        assert_eq!(mine.hear(&said(other, 2, &shorts(20_000, 500))), Heard::News);
        assert_eq!((mine.hear(&anew(300)), mine.count(ME), mine.held), (Heard::News, 300, 805));
        let removal = message(ME, epoch, 1, 2, &[], &shorts(0, 100));
        assert_eq!((mine.hear(&removal), mine.count(ME), mine.held), (Heard::News, 200, 705));
    }
}

#[test]
fn many_parts_are_put_together_in_order() {
    let mut mine = Holdings::default();
    mine.begin(ME, 7, (0..100_000).map(content));
    let series = mine.all_of(ME);
    let all: Vec<u8> = series.iter().flat_map(|part| part.added.iter().copied()).collect();
    assert!(series.len() > 20 && all.len() == 1_600_000);
    let mut parts = Parts::default();
    let last = series.into_iter().map(|part| parts.add(part).unwrap()).last();
    let Some(Part::Whole(whole)) = last else { panic!() };
    assert!(whole.added == all && (whole.part, whole.more) == (0, false));
}

/// Another message may come in between, and who is connected while they are on their way hears the last ones only. What is
/// left must not be taken for all that the disk holds.
#[test]
fn what_lacks_a_part_is_not_taken_for_the_whole() {
    let mut mine = Holdings::default();
    mine.begin(ME, 7, (0..10_000).map(content));
    let series: Vec<_> = mine.lacks(&Holdings::default().have());
    assert!(series.len() > 2);
    let other = message(DiskId([2; 32]), 1, 0, 1, &[short(content(5))], &[]);
    let mut parts = Parts::default();
    let mut all: Vec<_> = series.iter().cloned().map(|part| parts.add(part).unwrap()).collect();
    assert!(matches!(all.pop(), Some(Part::Whole(_))) && all.iter().all(|part| *part == Part::More));
    for lost in 0..series.len() - 1 {
        let mut heard = Vec::new();
        for (n, part) in series.iter().enumerate() {
            match n == lost {
                true => assert_eq!(parts.add(other.clone()), Ok(Part::Whole(other.clone()))),
                false => heard.push(parts.add(part.clone()).unwrap()),
            }
        }
        assert_eq!(heard.iter().filter(|part| **part == Part::Missing).count(), 1, "{lost}");
        assert!(!heard.iter().any(|part| matches!(part, Part::Whole(_))), "{lost}");
        // It comes once more, from the beginning.
        all = series.iter().cloned().map(|part| parts.add(part).unwrap()).collect();
        assert!(matches!(all.last(), Some(Part::Whole(whole)) if whole.added.len() == 16 * 10_000));
    }
}
