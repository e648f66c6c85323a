//! Hosts that found, invite, join and revoke, without a network.

use super::*;

fn host() -> (tempfile::TempDir, Membership) {
    let dir = tempfile::tempdir().unwrap();
    let membership = Membership::open(dir.path().into()).unwrap();
    (dir, membership)
}

#[test]
fn a_cluster_that_another_process_founds_meanwhile_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let running = Membership::open(dir.path().into()).unwrap();
    let founded = |name: &str| Membership::open(dir.path().into()).unwrap().cluster_for(name).unwrap();
    let (home, work) = (founded("home"), founded("work"));
    assert_eq!(running.cluster_for("home").unwrap(), home, "no second one of that name");
    assert!(running.admit_disk(work, DiskId([8; 32])).unwrap());
    assert_eq!(running.known("garden"), Ok(None));
}

#[test]
fn an_invitation_works_once_also_over_a_restart() {
    let (dir, one) = host();
    let cluster = one.cluster_for("home").unwrap();
    assert_eq!(one.cluster_for("home").unwrap(), cluster);
    let token = one.invite(cluster, DiskId([1; 32]), vec!["127.0.0.1:7".into()], 60).unwrap();
    let expired = one.invite(cluster, DiskId([1; 32]), vec![], 0).unwrap();
    drop(one);
    let one = Membership::open(dir.path().into()).unwrap();
    let (_other_dir, other) = host();
    let (_third_dir, third) = host();
    let ask = |who: &Membership, secret: &[u8]| one.redeem(cluster, "home", secret, who.identity().host_id(), "x");
    assert!(ask(&other, b"wrong").unwrap_err().why.contains("unknown"));
    assert!(ask(&other, &expired.secret).is_err());
    // A wrong name uses nothing up, and only who has the secret is told the right one.
    let named = |secret: &[u8]| one.redeem(cluster, "work", secret, third.identity().host_id(), "x").unwrap_err();
    assert_eq!((named(&token.secret).cluster, named(b"wrong").cluster), ("home".into(), String::new()));
    assert!(!one.set(cluster).unwrap().is_host(third.identity().host_id()));
    let set = ask(&other, &token.secret).unwrap();
    assert!(set.is_host(other.identity().host_id()) && set.is_disk(DiskId([1; 32])));
    // The answer was lost.
    assert!(ask(&other, &token.secret).is_ok());
    assert!(ask(&third, &token.secret).unwrap_err().why.contains("used already"));
    // The new member admits its disk, the old one revokes it.
    assert!(other.absorb(cluster, &set.encode()).unwrap());
    let disk = DiskId([9; 32]);
    assert!(other.admit_disk(cluster, disk).unwrap() && !third.admit_disk(cluster, disk).unwrap());
    assert!(one.absorb(cluster, &other.set(cluster).unwrap().encode()).unwrap());
    assert!(one.set(cluster).unwrap().is_disk(disk));
    assert_eq!(one.revoke(cluster, "0909", false).unwrap_err().exit, Exit::Usage);
    assert_eq!(one.leaving(cluster, "09090909", false).unwrap(), [disk]);
    let revoked = Revoked { id: disk.into(), is_host: false, stay: vec![], out: vec![] };
    assert_eq!(one.revoke(cluster, "09090909", false).unwrap(), revoked);
    assert!(!one.set(cluster).unwrap().is_disk(disk));
    let again = one.revoke(cluster, "09090909", false).unwrap_err();
    assert!(again.message.contains("revoked already") && again.hint.is_some(), "{again:?}");
    assert!(third.invite(cluster, disk, vec![], 60).is_err());
    let myself = one.identity().host_id().to_hex();
    assert!(one.revoke(cluster, &myself, false).unwrap_err().message.contains("itself"));
}

#[test]
fn who_revokes_a_host_hears_whom_it_has_let_in() {
    let [(_one_dir, one), (_two_dir, other), (_three_dir, third)] = [host(), host(), host()];
    let cluster = one.cluster_for("home").unwrap();
    let invite = |by: &Membership| by.invite(cluster, DiskId([1; 32]), vec![], 60).unwrap();
    let join = |by: &Membership, who: &Membership, label| {
        let me = who.identity().host_id();
        let set = by.redeem(cluster, "", &invite(by).secret, me, label).unwrap();
        who.absorb(cluster, &set.encode()).unwrap();
    };
    join(&one, &other, "bad");
    join(&other, &third, "new");
    one.absorb(cluster, &other.set(cluster).unwrap().encode()).unwrap();
    let (bad, new) = (other.identity().host_id(), third.identity().host_id());
    let revoked = one.revoke(cluster, &bad.to_hex(), false).unwrap();
    let name = format!("new ({})", short_id(&new.to_hex()));
    assert_eq!((revoked.stay, revoked.out), (vec![name.clone()], vec![]));
    assert!(one.set(cluster).unwrap().is_host(new));
    // It turns out that nobody knows that one.
    assert_eq!(one.leaving(cluster, &bad.to_hex(), true).unwrap(), []);
    let revoked = one.revoke(cluster, &bad.to_hex(), true).unwrap();
    assert_eq!((revoked.id, revoked.stay, revoked.out), (bad.into(), vec![], vec![name]));
    assert!(!one.set(cluster).unwrap().is_host(new) && !one.is_revoked(cluster, new.into()));
}

#[test]
fn of_two_clusters_of_one_name_a_new_disk_is_of_the_one_with_other_hosts() {
    let (_right_dir, right) = host();
    let cluster = right.cluster_for("home").unwrap();
    // Whichever has the smaller id.
    for _ in 0..8 {
        let (dir, one) = host();
        let mistake = one.cluster_for("home").unwrap();
        let token = right.invite(cluster, DiskId([1; 32]), vec![], 60).unwrap();
        let me = one.identity().host_id();
        one.absorb(cluster, &right.redeem(cluster, "home", &token.secret, me, "x").unwrap().encode()).unwrap();
        assert_eq!(one.cluster_for("home"), Ok(cluster));
        // It let somebody into the wrong one, too.
        let token = one.invite(mistake, DiskId([2; 32]), vec![], 60).unwrap();
        one.redeem(mistake, "home", &token.secret, right.identity().host_id(), "x").unwrap();
        let failure = Membership::open(dir.path().into()).unwrap().cluster_for("home").unwrap_err();
        let names = |id: ClusterId| failure.message.contains(&id.to_hex()[..8]);
        assert!(failure.exit == Exit::WrongCluster && names(cluster) && names(mistake), "{failure:?}");
        assert!(failure.hint.unwrap().contains("`delugefs run home ROOT --join TOKEN`"));
    }
}

#[test]
fn a_key_that_was_revoked_uses_up_no_invitation_and_is_told_why() {
    let (_dir, one) = host();
    let (_other_dir, other) = host();
    let cluster = one.cluster_for("home").unwrap();
    let invite = || one.invite(cluster, DiskId([1; 32]), vec![], 60).unwrap().secret;
    let me = other.identity().host_id();
    one.redeem(cluster, "", &invite(), me, "x").unwrap();
    one.revoke(cluster, &me.to_hex(), false).unwrap();
    let secret = invite();
    let refused = one.redeem(cluster, "", &secret, me, "x").unwrap_err();
    assert!(refused.why.contains("was revoked by "), "{refused:?}");
    let out = other.shut_out(&Members::decode(cluster, &refused.farewell).unwrap()).unwrap();
    assert!(out.hint.unwrap().contains("host.key away, and join anew"));
    let (_new_dir, new) = host();
    assert!(one.redeem(cluster, "", &secret, new.identity().host_id(), "x").is_ok());
}

#[test]
fn a_cluster_whose_first_disk_could_not_be_made_is_forgotten() {
    let (dir, one) = host();
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    let (before, cluster) = (files(), one.cluster_for("home").unwrap());
    one.unfound(cluster).unwrap();
    assert_eq!((one.known("home"), files()), (Ok(None), before));
    one.unfound(cluster).unwrap();
    let cluster = one.cluster_for("home").unwrap();
    assert!(one.admit_disk(cluster, DiskId([9; 32])).unwrap());
    one.unfound(cluster).unwrap();
    assert_eq!(one.known("home"), Ok(Some(cluster)), "it has a disk");
}

#[test]
fn a_disk_that_moves_is_admitted_once_whatever_the_clocks_say() {
    let (_dir, one) = host();
    let cluster = one.cluster_for("home").unwrap();
    let token = one.invite(cluster, DiskId([1; 32]), vec![], 60).unwrap();
    let (_other_dir, other) = host();
    let set = one.redeem(cluster, "", &token.secret, other.identity().host_id(), "x").unwrap();
    other.absorb(cluster, &set.encode()).unwrap();
    let disk = DiskId([9; 32]);
    // Admitted by a host whose clock is days ahead.
    let mut ahead = one.set(cluster).unwrap();
    ahead.admit(Role::Disk, disk.into(), "ahead", now_s() + 500_000, one.identity()).unwrap();
    other.absorb(cluster, &ahead.encode()).unwrap();
    let count = |membership: &Membership| membership.set(cluster).unwrap().statements().count();
    let before = count(&other);
    for _ in 0..5 {
        assert!(other.admit_disk(cluster, disk).unwrap());
    }
    assert_eq!(count(&other), before + 1);
    assert_eq!(other.set(cluster).unwrap().disks()[&disk].by, other.identity().host_id());
}
