//! When a staging file was written, whatever else is done with it.

use super::*;

const INO: Ino = Ino(0x66);

fn stat(lab: &Lab) -> StagedStat {
    lab.store.staged_stat(INO).unwrap().unwrap()
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
    assert_eq!(made.written_ns, made.ctime_ns);
    let set_time = || lab.store.set_staged_mtime(INO, 5).unwrap();
    let doubt = || lab.store.doubt_staged(INO);
    for act in [&set_time as &dyn Fn(), &set_time, &doubt, &set_time] {
        assert_eq!(moved(&lab, act).written_ns, made.ctime_ns);
    }
    let written = moved(&lab, || file.write_all_at(b"x", 0).unwrap());
    assert_eq!(written.written_ns, written.ctime_ns);
    assert_eq!(moved(&lab, set_time).written_ns, written.ctime_ns);
    lab.store.remove_staged(INO).unwrap();
    assert!(lab.store.retouched.is_empty());
}
