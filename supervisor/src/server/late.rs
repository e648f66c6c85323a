//! Processes that were started and do not say that they are ready: they may hang on a disk or a file system that does not answer, for
//! as long as that does not, and nothing else would tell.

use std::path::Path;

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;

use crate::notes;

/// A start takes seconds, also after a crash.
const LATE_S: u64 = 60;

/// One sentence for each. `now_s` is the machine's uptime.
pub(super) fn late(host: &pb::HostStatus, run_dir: &Path, now_s: u64) -> Vec<String> {
    let for_s = |since_s: u64| Some(now_s.saturating_sub(since_s)).filter(|for_s| since_s != 0 && *for_s >= LATE_S);
    let look = |log: &Path| {
        format!("look at what it said last ({}), and whether the kernel complains (`dmesg`)", log.display())
    };
    let disks = host.disks.iter().filter_map(|disk| {
        let (for_s, root) = (for_s(disk.starting_since_s)?, Path::new(&disk.root));
        let name = match short_id(&disk.disk_id) {
            "" => format!("disk {}", disk.root),
            short => format!("disk {short} ({})", disk.root),
        };
        let log = notes::log_beside(&notes::worker_note(run_dir, root));
        Some(format!(
            "{name} has been starting for {for_s} s (pid {}): it has much to recover after a crash, or its file system or device does \
             not answer; {}",
            disk.pid,
            look(&log)
        ))
    });
    let mounts = host.mounts.iter().filter_map(|mount| {
        let for_s = for_s(mount.starting_since_s)?;
        let log = notes::log_beside(&notes::frontend_note(run_dir, Path::new(&mount.dir)));
        Some(format!(
            "mount {} has been starting for {for_s} s (pid {}): its disk or the kernel does not answer; {}",
            mount.dir,
            mount.pid,
            look(&log)
        ))
    });
    disks.chain(mounts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_become_ready_is_a_problem_after_a_minute() {
        let (root, dir, disk_id) = ("/d".to_owned(), "/m".to_owned(), "1a".repeat(32));
        let disk = pb::Disk { root, disk_id, pid: 7, starting_since_s: 100, ..Default::default() };
        let mount = pb::Mount { dir, pid: 8, starting_since_s: 130, ..Default::default() };
        let host = pb::HostStatus { disks: vec![disk, pb::Disk::default()], mounts: vec![mount], ..Default::default() };
        let said = |now_s| late(&host, Path::new("/r"), now_s);
        assert_eq!(said(159), Vec::<String>::new());
        assert_eq!(said(160).len(), 1);
        let said = said(200);
        assert!(said[0].starts_with("disk 1a1a1a1a (/d) has been starting for 100 s (pid 7): "), "{said:?}");
        assert!(said[0].contains("(/r/disk-") && said[0].contains(".log)"), "{said:?}");
        assert!(said[1].starts_with("mount /m has been starting for 70 s (pid 8): "), "{said:?}");
        assert_eq!(said.len(), 2);
    }
}
