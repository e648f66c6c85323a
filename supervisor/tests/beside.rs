//! What is typed beside a supervisor that runs, or of a host that is in more than one cluster of a name.

use std::fs;
use std::path::Path;

use delugefs_proto::disk::DiskToml;
use delugefs_supervisor::membership::Membership;

use crate::lab::{Lab, terminate};

#[test]
fn what_is_the_supervisors_is_not_ignored_in_silence() {
    let mut lab = Lab::new();
    lab.supervisor("sup", &["--no-mdns"]);
    // The same directory is no news.
    let run = lab.run(&["--create"]);
    assert!(!lab.err("run").contains("Note:"), "{}", lab.err("run"));
    let more = ["run", "home", "b", "--create", "--state-dir", "elsewhere", "--peer", "192.0.2.1:7"];
    let beside = lab.spawn(lab.delugefs(&more), "beside");
    lab.wait_for("the second disk", || lab.out("beside") == "ready\n");
    insta::assert_snapshot!(lab.err("beside"), @"Note: a supervisor runs here already, so this does nothing: --state-dir, --peer. It is the supervisor's, and heeded at its start: stop it (`delugefs stop`) and repeat this, or name it to `delugefs-supervisor`");
    assert!(!lab.path("elsewhere").exists());
    for pid in [beside, run] {
        terminate(pid);
        assert_eq!(lab.wait(pid), 0, "{}", lab.logs());
    }
}

#[test]
fn a_new_disk_is_not_made_for_whichever_of_two_clusters_of_a_name() {
    let mut lab = Lab::new();
    // Two founded by one host that does not know of the first.
    let found = |dir: &Path| Membership::open(dir.into()).unwrap().cluster_for("home").unwrap().to_hex();
    let (state, other) = (lab.path("s"), lab.path("s2"));
    fs::create_dir(&state).unwrap();
    fs::create_dir(&other).unwrap();
    let first = found(&state);
    fs::copy(state.join("host.key"), other.join("host.key")).unwrap();
    let second = found(&other);
    let set = format!("members-{second}");
    fs::copy(other.join(&set), state.join(&set)).unwrap();

    let said = lab.says(&["run", "home", "a", "--create", "--state-dir", "s"]);
    assert_eq!(said.code, 12, "{said:?}");
    assert!([&first, &second].iter().all(|id| said.stderr.contains(&id[..8])), "{said:?}");
    assert!(said.stderr.contains("Hint: start a disk of the right one first"), "{said:?}");
    assert_eq!(fs::read_dir(lab.path("a")).unwrap().count(), 0);
    fs::remove_file(state.join(&set)).unwrap();
    let run = lab.run(&["--create"]);
    assert_eq!(DiskToml::read(&lab.path("a")).unwrap().cluster_id, first);
    terminate(run);
    assert_eq!(lab.wait(run), 0);
}
