//! What is typed beside a supervisor that runs.

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
