//! When a staging file was written, whatever else is done with it.

use super::*;

const INO: Ino = Ino(0x66);

fn stat(lab: &Lab) -> StagedStat {
    lab.store.staged_stat(INO).unwrap().unwrap()
}

/// The file itself.
fn of(lab: &Lab) -> Stamp {
    let path = lab.dir.path().join("disk/staging").join(INO.to_string());
    Stamp::of(&nix::sys::stat::stat(&path).unwrap())
}

/// Do something until the file's change time moves.
fn moved(lab: &Lab, act: impl Fn()) -> StagedStat {
    let (before, begin) = (stat(lab), std::time::Instant::now());
    while stat(lab).ctime_ns == before.ctime_ns {
        assert!(begin.elapsed() < Duration::from_secs(30), "it does not move");
        act();
    }
    stat(lab)
}

#[test]
fn only_a_write_is_one() {
    let lab = Lab::new();
    let file = lab.store.stage_new(INO).unwrap();
    let made = stat(&lab);
    assert!(made.written.is_same(&of(&lab)));
    let set_time = || lab.store.set_staged_mtime(INO, 5, |_| false).unwrap();
    let doubt = || lab.store.doubt_staged(INO);
    for act in [&set_time as &dyn Fn(), &set_time, &doubt, &set_time] {
        assert!(moved(&lab, act).written.is_same(&made.written));
    }
    let written = moved(&lab, || file.write_all_at(b"x", 0).unwrap());
    assert!(written.written.is_same(&of(&lab)));
    assert!(moved(&lab, set_time).written.is_same(&written.written));
    lab.store.remove_staged(INO).unwrap();
    assert!(lab.store.retouched.is_empty());
}

/// Another version comes at any moment.
#[test]
fn a_mark_right_after_a_write_is_none() {
    let lab = Lab::new();
    let file = lab.store.stage_new(INO).unwrap();
    for mark in [ContentStore::mark_written, ContentStore::mark_met, ContentStore::mark_met] {
        file.write_all_at(b"x", 0).unwrap();
        let written = stat(&lab).written;
        mark(&lab.store, INO);
        assert!(stat(&lab).written.is_same(&written));
    }
    assert!(lab.store.is_met(INO) && lab.store.is_marked_written(INO));
    let marked = of(&lab);
    lab.store.mark_met(INO);
    assert!(of(&lab).is_same(&marked), "it was marked already");
}

/// Kernels before 6.13 leave the change time as it is then.
#[test]
fn a_write_in_the_tick_of_a_mark_is_one() {
    let lab = Lab::new();
    let file = lab.store.stage_new(INO).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    let begin = std::time::Instant::now();
    while !stat(&lab).written.tells() {
        assert!(begin.elapsed() < Duration::from_secs(30), "no time passes");
    }
    let before = of(&lab);
    lab.store.mark_met(INO);
    let marked = of(&lab);
    assert!(lab.store.retouched.written(INO, marked).is_same(&before));
    let written = marked.at(marked.ctime_ns, marked.ctime_ns);
    assert!(lab.store.retouched.written(INO, written).is_same(&written));
}
