//! A host of two disks, the first of which is unplugged: `delugefs run` goes on, and its mount with the other disk.

use std::fs;

use nix::sys::signal::Signal;

use super::host::{Host, is_fuse, signal};
use super::wait_for;

#[test]
fn a_mount_goes_on_with_another_disk_when_the_one_of_run_is_unplugged() {
    let Some(mut host) = Host::new() else { return };
    host.start();
    let second = host.path("second");
    fs::create_dir(&second).unwrap();
    let (code, said) = host.says(&["disk", "add", second.to_str().unwrap(), "--create"]);
    assert_eq!(code, 0, "{said}");
    let write = |name: &str| fs::write(host.mount().join(name), name.repeat(20_000));
    let is_there =
        |name: &str| fs::read_to_string(host.mount().join(name)).is_ok_and(|text| text == name.repeat(20_000));
    write("before").unwrap();
    let whereis = |name: &str| {
        let output = host.delugefs(&["whereis", "--json"]).arg(host.mount().join(name)).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default()
    };
    let copies = |name: &str| whereis(name)[0]["disk_ids"].as_array().map_or(0, Vec::len);
    wait_for("a copy", || host.logs(), || copies("before") == 2);

    let away = host.path("away");
    fs::rename(host.disk(), &away).unwrap();
    signal(host.pids().worker.unwrap(), Signal::SIGKILL);
    let shows = |root: &std::path::Path| host.status()["mounts"][0]["root"] == root.to_str().unwrap();
    wait_for("the other disk to take over", || host.logs(), || shows(&second));
    assert!(host.logs().contains("goes on with the other disks of this host"), "{}", host.logs());
    wait_for("the mount", || host.logs(), || is_fuse(&host.mount()) && is_there("before"));
    write("during").unwrap();

    fs::rename(&away, host.disk()).unwrap();
    wait_for("it to be back", || host.logs(), || host.logs().contains("is back\n"));
    wait_for("a copy of what was written meanwhile", || host.logs(), || copies("during") == 2);
    assert!(is_there("before") && is_there("during"));
    assert_eq!(host.stop().0, 0, "{}", host.logs());
    host.assert_gone();
}
