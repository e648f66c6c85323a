//! What is said of a disk that is being emptied: by `disks`, and by `disk remove`, which does not wait for the end of it.

use std::time::Duration;

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;

use super::client::Control;
use super::table::size;
use crate::escape::{escape_line, quoted};

/// For what is only said besides: a disk that hangs is removed all the same.
const PATIENCE: Duration = Duration::from_secs(10);

/// How far a disk has got that is being emptied.
pub(super) fn draining(drain: &pb::Drain, disk_id: &str, root: &str) -> String {
    let waits_for = escape_line(&drain.waits_for);
    match (drain.contents, waits_for.as_str()) {
        (0, "") => {
            let (root, id) = (quoted(root), short_id(disk_id));
            format!(
                "nothing is left, it may be taken away: `delugefs disk remove {root}`, then `delugefs disk forget {id}` where another disk is"
            )
        }
        (0, why) => format!("nearly done: {why}"),
        (contents, why) => format!("{contents} contents of files are left, {}: {why}", size(drain.bytes)),
    }
}

/// The disk at this folder, if it is being emptied and says how far it is.
pub(super) async fn look(control: &mut Control, root: &str) -> Option<pb::Disk> {
    let asked = tokio::time::timeout(PATIENCE, control.disks(pb::DisksRequest {})).await;
    let disks = asked.ok()?.ok()?.into_inner().disks;
    disks.into_iter().find(|disk| disk.root == root && disk.drain.is_some())
}

/// It is served no longer, and was as far as that.
pub(super) fn removed(disk: &pb::Disk) -> String {
    let (id, root) = (short_id(&disk.disk_id), &disk.root);
    let drain = disk.drain.clone().unwrap_or_default();
    if drain.contents == 0 && drain.waits_for.is_empty() {
        return format!(
            "disk {id} was emptied: nothing is left on it, it may be taken away; then `delugefs disk forget {id}` where another disk is, else it is waited for"
        );
    }
    format!(
        "disk {id} was being emptied, and is not done ({}). What is on it stays; `delugefs disk add {}` goes on with it",
        draining(&drain, id, root),
        quoted(root)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(contents: u64, waits_for: &str) -> pb::Drain {
        pb::Drain { contents, bytes: 2048, waits_for: waits_for.into(), ..Default::default() }
    }

    #[test]
    fn it_is_said_what_a_drained_disk_waits_for_and_when_it_may_go() {
        let said = |contents, waits_for: &str| draining(&drain(contents, waits_for), "1a1a1a1a2b", "/d");
        let then = "then `delugefs disk forget 1a1a1a1a` where another disk is";
        assert_eq!(said(0, ""), format!("nothing is left, it may be taken away: `delugefs disk remove /d`, {then}"));
        assert!(draining(&drain(0, ""), "1a", "/mnt/My Disk").contains(": `delugefs disk remove '/mnt/My Disk'`, "));
        assert_eq!(said(0, "a name"), "nearly done: a name");
        assert_eq!(said(3, "others"), "3 contents of files are left, 2.0 KiB: others");
    }

    #[test]
    fn who_removes_a_disk_that_is_being_emptied_is_told_how_far_it_was() {
        let said = |contents, waits_for: &str| {
            let drain = Some(drain(contents, waits_for));
            removed(&pb::Disk { disk_id: "1a".repeat(32), root: "/d".into(), drain, ..Default::default() })
        };
        assert_eq!(
            said(0, ""),
            "disk 1a1a1a1a was emptied: nothing is left on it, it may be taken away; then `delugefs disk forget 1a1a1a1a` where another \
             disk is, else it is waited for"
        );
        assert_eq!(
            said(3, "others"),
            "disk 1a1a1a1a was being emptied, and is not done (3 contents of files are left, 2.0 KiB: others). What is on it stays; \
             `delugefs disk add /d` goes on with it"
        );
    }
}
