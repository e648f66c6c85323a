//! What hosts that have turned bad can do to the membership, and what not.

use super::*;

fn key() -> Identity {
    Identity::from_pkcs8(&Identity::generate_pkcs8().unwrap()).unwrap()
}

/// A cluster with three hosts; the last is to turn bad.
fn three() -> (Members, [Identity; 3]) {
    let keys = [key(), key(), key()];
    let mut set = Members::found(&keys[0], [1; 16], "test", "tower", 1).unwrap();
    for host in &keys[1..] {
        set.admit(Role::Host, host.id(), "laptop", 2, &keys[0]).unwrap();
    }
    (set, keys)
}

/// What somebody signs who keeps to no rule.
fn signed(set: &Members, by: &Identity, statements: impl Iterator<Item = Statement>) -> Vec<u8> {
    let mut records: Vec<Record> = statements.map(|one| Record::sign(set.cluster_id(), one, by)).collect();
    records.sort_by(|a, b| a.bytes().cmp(b.bytes()));
    encode(records.iter())
}

fn made_up(n: u64) -> NodeId {
    let mut id = [0xee; 32];
    id[..8].copy_from_slice(&n.to_be_bytes());
    NodeId(id)
}

fn admissions(by: &Identity, count: u64, at_s: u64) -> impl Iterator<Item = Statement> {
    let by = by.host_id();
    (0..count).map(move |n| Statement::Admission { role: Role::Host, subject: made_up(n), by, at_s, label: "x".into() })
}

fn revocations(by: &Identity, of: impl Iterator<Item = NodeId>, keeps: u64) -> impl Iterator<Item = Statement> {
    let by = by.host_id();
    let keeps: Vec<NodeId> = (0..keeps).map(made_up).collect();
    of.map(move |target| Statement::Revocation { target, by, at_s: 3, keeps: keeps.clone() })
}

/// Joined in both orders, with the same result.
fn joined(one: &Members, other: &Members) -> Members {
    let (mut a, mut b) = (one.clone(), other.clone());
    a.absorb(&other.encode()).unwrap();
    b.absorb(&one.encode()).unwrap();
    assert!(a == b, "it depends on the order");
    a
}

#[test]
fn a_host_that_has_made_up_very_many_can_be_shut_out() {
    let (mut set, [founder, honest, bad]) = three();
    let friend = key();
    set.admit(Role::Host, friend.id(), "friend", 3, &bad).unwrap();
    set.admit(Role::Host, honest.id(), "laptop", 3, &bad).unwrap();
    set.absorb(&signed(&set, &bad, admissions(&bad, 2000, 4))).unwrap();
    assert_eq!(set.hosts().len(), HOSTS_MAX - 1, "one was admitted twice");
    let brought = set.revoke(bad.id(), 5, &honest).unwrap();
    assert!(!set.is_host(bad.host_id()) && set.is_host(founder.host_id()) && set.is_host(honest.host_id()));
    // Who stays is said: only people can tell which of them are made up.
    assert_eq!(brought.stay.len() + brought.out.len(), HOSTS_MAX - 4, "{brought:?}");
    assert!(brought.stay.contains(&friend.host_id()) && !brought.stay.contains(&honest.host_id()));
    assert!(brought.stay.iter().all(|host| set.is_host(*host)) && !brought.out.iter().any(|host| set.is_host(*host)));
    // And all of them can be shut out at once, also later; who was let in by others, too, stays, and who was not can come back.
    let brought = set.revoke_with_hosts(bad.id(), 6, &founder).unwrap();
    assert_eq!((brought.stay.len(), brought.out.len(), set.hosts().len()), (0, HOSTS_MAX - 4, 2));
    assert!(set.is_host(honest.host_id()) && !set.is_host(friend.host_id()));
    set.admit(Role::Host, friend.id(), "friend", 7, &honest).unwrap_err();
    // All that a revocation can keep, before there were so few hosts.
    let (mut set, [_, honest, bad]) = three();
    set.records.extend(
        admissions(&bad, 1001, 4)
            .map(|one| Record::sign(set.cluster, one, &bad))
            .map(|record| (record.bytes().into(), record)),
    );
    set.view = validity::view(set.records.values());
    let brought = set.revoke(bad.id(), 5, &honest).unwrap();
    assert_eq!((brought.stay.len(), brought.out.len(), set.is_host(bad.host_id())), (KEEPS_MAX, 1, false));
}

#[test]
fn whoever_has_filled_the_set_can_be_shut_out_by_any_other_host() {
    let (mut set, [founder, honest, bad]) = three();
    // Who has shut out some before still can.
    for n in 1..SHORT_EACH as u64 {
        set.admit(Role::Disk, made_up(u64::MAX - n), "old", 2, &honest).unwrap();
        set.revoke(made_up(u64::MAX - n), 3, &honest).unwrap();
    }
    for (others, keeps) in [(0, 1000), (0, 0), (60, 1000), (500, 0), (500, 4)] {
        let mut full = set.clone();
        // Also by those it has made up for that.
        let accomplices: Vec<Identity> = (0..others).map(|_| key()).collect();
        let by = bad.host_id();
        let let_in = accomplices.iter().map(|other| Statement::Admission {
            role: Role::Host,
            subject: other.id(),
            by,
            at_s: 3,
            label: "x".into(),
        });
        full.absorb(&signed(&set, &bad, let_in)).unwrap();
        full.absorb(&signed(&set, &bad, admissions(&bad, 3000, 4))).unwrap();
        let targets: Vec<NodeId> = full.hosts().keys().map(|host| NodeId::from(*host)).collect();
        let each = if others > 0 { 3 + SHORT_EACH } else { REVOCATIONS_EACH };
        let of = targets.iter().copied().filter(|id| ![founder.id(), honest.id()].contains(id)).take(each);
        let of: Vec<NodeId> = of.collect();
        let by = [&bad].into_iter().chain(&accomplices);
        let all =
            by.flat_map(|by| revocations(by, of.iter().copied(), keeps).map(|one| Record::sign(full.cluster, one, by)));
        let mut all: Vec<Record> = all.collect();
        all.sort_by(|a, b| a.bytes().cmp(b.bytes()));
        for some in all.chunks(if keeps > 100 { 30 } else { 2000 }) {
            full.absorb(&encode(some.iter())).unwrap();
        }
        assert!(full.encode().len() <= SET_MAX_BYTES);
        let mut told = full.clone();
        if !told.is_revoked(bad.id()) {
            told.revoke(bad.id(), 5, &honest).unwrap();
        }
        if others == 500 {
            let one_more = signed(&set, &honest, revocations(&honest, of.iter().copied().take(1), 0));
            assert_eq!(told.clone().absorb(&one_more).unwrap().left_out, 1, "it is not full");
        }
        let mut mine = full.clone();
        mine.absorb(&signed(&set, &honest, revocations(&honest, [bad.id()].into_iter(), 0))).unwrap();
        assert!(mine.is_revoked(bad.id()) && mine.revoked()[&bad.id()] <= honest.host_id());
        // Everybody hears of it, and whoever joins takes it all.
        let again = Members::decode(told.cluster_id(), &told.encode()).unwrap();
        assert!(again == told && joined(&told, &full) == told);
    }
}

#[test]
fn only_who_was_let_in_can_be_shut_out() {
    let (set, [_, honest, bad]) = three();
    for some in [0..20, 20..40] {
        let flood = signed(&set, &bad, revocations(&bad, some.map(made_up), 1000));
        assert_eq!(set.clone().absorb(&flood).unwrap(), Joined::default());
    }
    // In whatever order it comes that somebody is let in and shut out, both count.
    let mut let_in = set.clone();
    let_in.admit(Role::Disk, made_up(5), "laptop", 4, &honest).unwrap();
    let mut out = let_in.clone();
    out.revoke(made_up(5), 5, &bad).unwrap();
    for order in [[&set, &let_in, &out], [&out, &let_in, &set], [&let_in, &out, &set]] {
        let mut mine = set.clone();
        for other in order {
            mine.absorb(&other.encode()).unwrap();
        }
        assert!(mine == out && mine.is_revoked(made_up(5)) && joined(&mine, &let_in) == out);
    }
    // What is told to who is out is enough by itself.
    let told = Members::decode(set.cluster_id(), &out.farewell(made_up(5)).unwrap()).unwrap();
    assert!(told.is_revoked(made_up(5)));
}

#[test]
fn a_founder_cannot_give_his_cluster_another_name() {
    let (set, [founder, ..]) = three();
    let other = Members::found(&founder, [1; 16], "aaa", "tower", 1).unwrap();
    assert_eq!(other.cluster_id(), set.cluster_id());
    let mut mine = set.clone();
    mine.absorb(&other.encode()).unwrap();
    assert_eq!(mine.cluster_name(), "test");
    let geneses = |set: &Members| set.statements().filter(|one| matches!(one, Statement::Genesis { .. })).count();
    assert_eq!(geneses(&mine), 1);
    // Nor where both come at once.
    let both: BTreeMap<_, _> = set.records.iter().chain(&other.records).collect();
    assert_eq!(geneses(&Members::decode(set.cluster_id(), &encode(both.into_values())).unwrap()), 1);
}

#[test]
fn who_is_out_can_be_shown_why_and_nobody_else_is() {
    let (founder, second, third) = (key(), key(), key());
    let [disk, other, stranger] = [1, 2, 3].map(|n| NodeId([n; 32]));
    let mut set = Members::found(&founder, [1; 16], "test", "tower", 1).unwrap();
    set.admit(Role::Host, second.id(), "laptop", 2, &founder).unwrap();
    set.admit(Role::Disk, disk, "laptop", 3, &second).unwrap();
    set.admit(Role::Disk, other, "tower", 3, &founder).unwrap();
    let theirs = set.clone();
    // By a host that they have never heard of.
    set.admit(Role::Host, third.id(), "box", 4, &founder).unwrap();
    set.revoke(second.id(), 5, &third).unwrap();
    assert!([other, stranger, founder.id()].iter().all(|id| set.farewell(*id).is_none()));
    assert!(theirs.farewell(disk).is_none());
    for id in [disk, second.id()] {
        let mut told = theirs.clone();
        let farewell = set.farewell(id).unwrap();
        assert!(told.absorb(&farewell).unwrap().changed && farewell.len() < set.encode().len());
        assert!(!told.is_disk(DiskId(disk.0)) && told.is_disk(DiskId(other.0)));
        assert!(told.host_name(told.revoked()[&second.id()]).starts_with("box ("));
        let mut forged = farewell.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert!(theirs.clone().absorb(&forged).is_err());
    }
}

#[test]
fn who_shuts_out_the_one_that_let_it_in_stays() {
    let (founder, second, third, made_up) = (key(), key(), key(), key());
    let mut set = Members::found(&founder, [1; 16], "test", "tower", 1).unwrap();
    set.admit(Role::Host, second.id(), "laptop", 2, &founder).unwrap();
    set.admit(Role::Host, third.id(), "box", 3, &second).unwrap();
    set.admit(Role::Host, made_up.id(), "x", 1, &founder).unwrap();
    set.admit(Role::Disk, third.id(), "box", 3, &third).unwrap();
    for (by, stay) in [(&second, vec![]), (&third, vec![second.host_id()])] {
        let mut alone = set.clone();
        let brought = alone.revoke_with_hosts(founder.id(), 5, by).unwrap();
        assert_eq!((brought.stay, brought.out), (stay, vec![made_up.host_id()]));
        let left: Vec<HostId> = alone.hosts().keys().copied().collect();
        let mut ours = vec![second.host_id(), third.host_id()];
        ours.sort_unstable();
        assert!(left == ours && alone.is_disk(third.disk_id()) && !alone.is_disk(made_up.disk_id()));
        // Once more is no more.
        let said = alone.encode();
        alone.revoke_with_hosts(founder.id(), 6, by).unwrap();
        assert!(alone.encode() == said);
    }
    // Also where there is room for a few only, and those whom it let in earlier come first.
    for n in 0..10 {
        let early = Statement::Admission {
            role: Role::Host,
            subject: self::made_up(n),
            by: founder.host_id(),
            at_s: 0,
            label: "x".into(),
        };
        set.absorb(&signed(&set, &founder, [early].into_iter())).unwrap();
    }
    set.revoke_keeping(KEEPS_FEW, founder.id(), 5, &third).unwrap();
    assert!(set.is_host(third.host_id()) && set.is_host(second.host_id()));
    assert_eq!(set.hosts().len(), 1 + KEEPS_FEW);
}

/// Versions before there was a limit for each host.
#[test]
fn a_set_of_an_earlier_version_stays_as_it_is() {
    let (mut set, [_, honest, _]) = three();
    let count = REVOCATIONS_MAX as u64 + 100;
    let disks = (0..count).map(|n| Statement::Admission {
        role: Role::Disk,
        subject: made_up(n),
        by: honest.host_id(),
        at_s: 3,
        label: "d".into(),
    });
    let all = disks.chain(revocations(&honest, (0..count).map(made_up), 0));
    let all: Vec<Record> = all.map(|one| Record::sign(set.cluster, one, &honest)).collect();
    let mut earlier = set.clone();
    earlier.records.extend(all.into_iter().map(|record| (record.bytes().into(), record)));
    let bytes = earlier.encode();
    let kept = Members::decode(set.cluster_id(), &bytes).unwrap();
    assert!(kept == earlier && kept.disks().is_empty());
    // Who has no room for all of that lets nobody in for whom there was no room to be shut out.
    assert!(set.absorb(&bytes).unwrap().left_out > 0);
    assert!(set.disks().is_empty() && set.revoked().len() >= REVOCATIONS_EACH / 4);
}
