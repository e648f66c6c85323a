//! Disks of a host that others do not know enough of: one that was not heard of since a power cut, one that was shut out.

use std::fs;
use std::path::Path;

use delugefs_proto::disk::short_id;
use delugefs_proto::ids::DiskId;

use super::disks::write_on;
use super::ending::Ending;
use super::lab::{KILLS, Lab};
use super::stories::{bytes, wait_for_content};
use super::wait_for;

/// One host with a second disk in `d2`, and that one's id.
fn two_disks() -> Option<(Lab, String)> {
    let mut lab = Lab::new(1)?;
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    let second = lab.hosts[0].path("d2");
    assert_eq!(lab.hosts[0].says(&["disk", "add", second.to_str().unwrap(), "--create"]).0, 0);
    lab.wait_for_peers(&[0], 1);
    let id = disk_id(&lab, &second);
    Some((lab, id))
}

fn disk_id(lab: &Lab, folder: &Path) -> String {
    let status = lab.hosts[0].json(&["status"]);
    let found = status["disks"].as_array().unwrap().iter().find(|disk| disk["root"] == folder.to_str().unwrap());
    found.unwrap()["disk_id"].as_str().unwrap().to_owned()
}

/// What `status` says of copies.
fn copies(lab: &Lab) -> serde_json::Value {
    lab.hosts[0].json(&["status"])["replication"].clone()
}

#[test]
fn what_an_absent_disk_may_have_after_a_power_cut_is_not_gone() {
    let Some((mut lab, id)) = two_disks() else { return };
    let root = lab.hosts[0].file("");
    assert_eq!(lab.hosts[0].says(&["copies", root.to_str().unwrap(), "1"]).0, 0);
    lab.wait_for_one_catalog(&[0]);
    // Who holds what is written down at the end, and once a minute.
    lab.hosts[0].stop();
    let before = fs::read(lab.hosts[0].path("d/holdings")).unwrap();
    let second = DiskId::from_hex(&id).unwrap();
    assert!(before.windows(32).any(|bytes| bytes == second.0), "that it has nothing is known");
    lab.hosts[0].start("d", &["--no-mdns"]);
    lab.wait_for_peers(&[0], 1);
    let socket = delugefs_proto::rundir::local_socket(&lab.hosts[0].path("r"), short_id(&id));
    write_on(&socket, "file", &bytes(70_000));
    wait_for_content(&lab, &lab.hosts[0].file("file"), &bytes(70_000));
    wait_for("its place", || lab.logs(), || lab.hosts[0].copies("file") == 1);
    lab.wait_for_one_catalog(&[0]);
    lab.hosts[0].kill();
    fs::write(lab.hosts[0].path("d/holdings"), before).unwrap();
    fs::rename(lab.hosts[0].path("d2"), lab.hosts[0].path("away")).unwrap();

    lab.hosts[0].start("d", &["--no-mdns"]);
    wait_for("the first look", || lab.logs(), || copies(&lab)["contents"] == 1);
    let said = copies(&lab);
    assert_eq!((&said["unreachable"], &said["gone"]), (&1.into(), &0.into()), "{said}");
    let may = format!("no disk is known to have 1 contents; disk {}, which has not said since", short_id(&id));
    let problems = || lab.hosts[0].says(&["status", "-x"]).1;
    wait_for("it to be named", || problems() + &lab.logs(), || problems().contains(&may));
    let file = lab.hosts[0].file("file");
    let whereis = lab.hosts[0].json(&["whereis", file.to_str().unwrap()]);
    assert_eq!(
        (&whereis[0]["disk_ids"], &whereis[0]["may_have"]),
        (&Vec::<String>::new().into(), &vec![id.clone()].into())
    );
    assert!(lab.hosts[0].says(&["whereis", file.to_str().unwrap()]).1.contains(&format!("perhaps  {}", short_id(&id))));
    let (code, said) = lab.hosts[0].says(&["revoke", short_id(&id)]);
    assert!(code == 14 && said.contains("may have them") && said.contains("--yes"), "{code} {said}");

    fs::rename(lab.hosts[0].path("away"), lab.hosts[0].path("d2")).unwrap();
    wait_for_content(&lab, &file, &bytes(70_000));
    let is_well = || copies(&lab)["unreachable"] == 0 && copies(&lab)["gone"] == 0;
    let why = || format!("{}\n{}", copies(&lab), lab.logs());
    wait_for("it to be heard", why, || is_well() && lab.hosts[0].copies("file") >= 1);
    let away = [("there is no folder", "the supervisor, of the disk that is away at the start")];
    lab.finish(&[&KILLS[..], &away].concat());
}

/// Every disk has said what it holds: it is no question any more.
#[test]
fn what_the_only_disk_has_lost_is_gone() {
    let Some(mut lab) = Lab::new(1) else { return };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    let file = lab.hosts[0].file("file");
    fs::write(&file, bytes(70_000)).unwrap();
    wait_for("it to be there", || lab.logs(), || lab.hosts[0].copies("file") == 1);
    let content = lab.hosts[0].json(&["whereis", file.to_str().unwrap()])[0]["content"].as_str().unwrap().to_owned();
    lab.hosts[0].stop();
    fs::remove_file(lab.hosts[0].path("d/data").join(&content[..2]).join(&content)).unwrap();
    lab.hosts[0].start("d", &["--no-mdns"]);
    let said = || copies(&lab).to_string();
    wait_for("it to be gone", || said() + &lab.logs(), || copies(&lab)["gone"] == 1);
    assert_eq!(copies(&lab)["unreachable"], 0);
    fs::remove_file(&file).unwrap();
    wait_for("it to be wanted no more", || said() + &lab.logs(), || copies(&lab)["gone"] == 0);
    lab.finish(&[]);
}

#[test]
fn a_disk_that_was_shut_out_counts_for_nothing_on_its_host() {
    let Some((lab, second)) = two_disks() else { return };
    fs::write(lab.hosts[0].file("file"), bytes(70_000)).unwrap();
    wait_for("two copies", || lab.logs(), || copies(&lab)["contents"] == 1 && copies(&lab)["short"] == 0);
    let first = disk_id(&lab, &lab.hosts[0].path("d"));
    assert_eq!(lab.hosts[0].says(&["revoke", short_id(&first), "--yes"]).0, 0);
    wait_for("a copy to be missing", || copies(&lab).to_string() + &lab.logs(), || copies(&lab)["short"] == 1);
    let peers = lab.hosts[0].json(&["peers"])["disks"].clone();
    let ids: Vec<&str> = peers.as_array().unwrap().iter().filter_map(|disk| disk["disk_id"].as_str()).collect();
    assert_eq!(ids, [second], "{peers}");
    // Its mount shows it still.
    let file = lab.hosts[0].file("file");
    let (code, said) = lab.hosts[0].says(&["copies", file.to_str().unwrap(), "3"]);
    assert!(code == 16 && said.contains(short_id(&first)) && said.contains("reaches no other disk"), "{code} {said}");
    assert_eq!(lab.hosts[0].says(&["copies", "/file", "3"]).0, 0, "of the cluster, another disk is asked");
    assert_eq!(lab.hosts[0].says(&["whereis", file.to_str().unwrap()]).0, 0);
    lab.end(&Ending {
        out: &[&first],
        expected: &[
            ("it was revoked, which is for ever", "the supervisor, of the disk"),
            (": revoked key", "the other disk, to which it comes"),
            ("this disk is out", "itself"),
        ],
        ..Ending::default()
    });
}
