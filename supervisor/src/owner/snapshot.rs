//! The state as the control socket shows it, and what of it a person should look at.

use delugefs_proto::control_pb::{self as pb, disk, mount};
use delugefs_proto::disk::short_id;
use delugefs_proto::exit::Exit;
use delugefs_proto::ids::hex;

use super::child::{Child, Phase, Then};
use super::state::State;
use crate::escape::quoted;
use crate::returned;

/// Everything but what only the workers know.
pub fn snapshot(state: &State) -> pb::HostStatus {
    let disks = state.disks.iter().map(|disk| pb::Disk {
        root: disk.spec.root.display().to_string(),
        disk_id: disk.served.as_ref().map(|served| served.disk_id.clone()).unwrap_or_default(),
        state: state_number(&disk.child),
        pid: disk.child.pid.unwrap_or(0),
        restarts: disk.child.restarts,
        last_error: last_error(&disk.child),
        status: None,
        by_hand: disk.child.foreign && !disk.child.watched,
        failure: disk.child.failure.as_ref().map(|failure| failure.to_pb()),
        cluster: disk.spec.cluster.clone(),
        listen: disk.spec.net.listen().into(),
        tcp_port: disk.tcp_port.into(),
        grpc_socket: disk.served.as_ref().map(|served| served.grpc_socket.display().to_string()).unwrap_or_default(),
        drain: None,
        cluster_id: disk.spec.cluster_id.map(|id| id.to_hex()).unwrap_or_default(),
        starting_since_s: starting_since_s(&disk.child),
    });
    let mounts = state.mounts.iter().map(|mount| pb::Mount {
        dir: mount.spec.dir.display().to_string(),
        state: state_number(&mount.child),
        pid: mount.child.pid.unwrap_or(0),
        restarts: mount.child.restarts,
        last_error: last_error(&mount.child),
        by_hand: mount.child.foreign && !mount.child.watched,
        failure: mount.child.failure.as_ref().map(|failure| failure.to_pb()),
        root: mount.root.as_ref().map(|root| root.display().to_string()).unwrap_or_default(),
        starting_since_s: starting_since_s(&mount.child),
    });
    pb::HostStatus {
        cluster: state.cluster().unwrap_or_default().into(),
        cluster_id: state.cluster_id(None).map(|id| id.to_hex()).unwrap_or_default(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        disks: disks.collect(),
        mounts: mounts.collect(),
        problems: Vec::new(),
        replication: None,
    }
}

/// Both enumerations of control.proto have the same numbers.
fn state_number(child: &Child) -> i32 {
    let state = match child.phase {
        Phase::Waiting | Phase::Starting | Phase::Contested { .. } => disk::State::Starting,
        // It is there again in a moment, without anybody's help: who asks whether anything is left to serve is to count it.
        Phase::Stopping { then: Then::Restart, .. } => disk::State::Starting,
        Phase::Up { .. } => disk::State::Up,
        Phase::BackingOff { .. } => disk::State::BackingOff,
        Phase::Stopping { then: Then::Remove, .. } => disk::State::Stopping,
        Phase::Stopped => disk::State::Stopped,
    };
    state.into()
}

fn starting_since_s(child: &Child) -> u64 {
    if child.phase == Phase::Starting && child.pid.is_some() { child.started_s } else { 0 }
}

fn last_error(child: &Child) -> String {
    child.failure.as_ref().map(|failure| failure.to_pb().message).unwrap_or_default()
}

const MAKE_ROOM: &str = "delete something, or add a disk (`delugefs disk add ROOT --create`) and have this one emptied (`delugefs disk drain DISK`)";

/// What a person should look at, one sentence each; the disks carry what their workers said, if they answered.
pub fn problems(host: &pb::HostStatus) -> Vec<String> {
    let mut problems = host.problems.clone(); // the owner's own

    for disk in &host.disks {
        let name = match short_id(&disk.disk_id) {
            "" => format!("disk {}", disk.root),
            short => format!("disk {short} ({})", disk.root),
        };
        match (disk.state(), &disk.status) {
            (disk::State::BackingOff, _) => problems.push(format!("{name} is started again: {}", disk.last_error)),
            (disk::State::Stopped, _) => {
                let (why, root) = (&disk.last_error, quoted(&disk.root));
                let is_other = disk.failure.as_ref().is_some_and(|failure| failure.exit == Exit::WrongCluster as u32);
                let then = match returned::is_gone(disk) {
                    true => format!(
                        "it goes on when its folder is there again; `delugefs disk remove {root}` if it will not be"
                    ),
                    false if is_other => format!("`delugefs disk remove {root}` takes it from this supervisor"),
                    false => format!("`delugefs disk add {root}` starts it again"),
                };
                problems.push(format!("{name} is stopped: {why}; {then}"));
            }
            (disk::State::Up, None) => problems.push(format!("{name} does not answer")),
            (disk::State::Up, Some(status)) if status.read_only => {
                problems.push(format!("{name} is read-only: {}", status.reason));
            }
            (disk::State::Up, Some(status)) => {
                if !status.reason.is_empty() {
                    problems.push(format!("{name} takes no new names: {}", status.reason));
                }
                if status.damaged_contents > 0 {
                    problems.push(format!(
                        "{name}: {} of its contents are damaged, and no other disk says that it has them whole; `delugefs scrub` names them",
                        status.damaged_contents
                    ));
                }
                // What is left is the reserve, which is for the catalog. Read-only it is when that has no room either.
                if status.space.as_ref().is_some_and(|space| space.total_bytes > 0 && space.free_bytes == 0) {
                    problems.push(format!("{name} is full: what is written to it may fail; {MAKE_ROOM}"));
                }
            }
            _ => {}
        }
    }
    for mount in &host.mounts {
        let (dir, error) = (&mount.dir, &mount.last_error);
        match mount.state() {
            mount::State::Starting
                if mount.pid == 0 && host.disks.iter().all(|it| it.state() == disk::State::Stopped) =>
            {
                problems.push(format!(
                    "mount {dir} waits for a disk, and none runs on this host: `delugefs disk add ROOT` starts one"
                ));
            }
            mount::State::BackingOff => problems.push(format!("mount {dir} is started again: {error}")),
            mount::State::Stopped => {
                // Of a user who is gone: said by nobody who has asked for it.
                let then = mount.failure.iter().filter(|failure| failure.exit == Exit::Usage as u32);
                let then: String = then.map(|failure| format!("; {}", failure.hint)).collect();
                problems.push(format!("mount {dir} is stopped: {error}{then}"));
            }
            _ => {}
        }
    }
    if let Some(replication) = &host.replication {
        if replication.gone > 0 {
            problems.push(format!("{} contents are on no disk any more", replication.gone));
        }
        if replication.unreachable > 0 {
            problems.push(format!("{} contents are only on disks that are away", replication.unreachable));
        }
        if replication.stuck > 0 {
            let ids: Vec<String> = replication.stuck_by.iter().map(|id| short_id(&hex(id)).to_owned()).collect();
            problems.push(format!(
                "{} contents stay on a disk that is being emptied: nobody relies on their copies on disks that are full or take no changes \
                 ({}), and there is no room for others; make room on these or mend them, add a disk, or want fewer copies: \
                 `delugefs copies PATH N`",
                replication.stuck,
                ids.join(", ")
            ));
        }
        if replication.short_long > 0 {
            let what = "contents have had fewer copies than wanted for more than an hour";
            let then =
                "add a disk if those in `delugefs peers` are full or away, or want fewer: `delugefs copies PATH N`";
            problems.push(format!("{} {what}: {then}", replication.short_long));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use delugefs_proto::worker_pb::{FreeSpaceReply, WorkerStatus};

    use super::*;

    #[test]
    fn copies_that_are_missing_for_long_are_a_problem() {
        let said = |short_long| {
            let replication = Some(pb::Replication { short: 7, short_long, ..Default::default() });
            problems(&pb::HostStatus { replication, ..Default::default() })
        };
        assert_eq!(said(0), Vec::<String>::new());
        assert!(said(3)[0].starts_with("3 contents have had fewer copies than wanted"), "{:?}", said(3));
    }

    #[test]
    fn what_does_not_get_off_a_disk_that_is_being_emptied_is_a_problem() {
        let replication = pb::Replication { stuck: 3, stuck_by: vec![vec![0x1a; 32]], ..Default::default() };
        let said = problems(&pb::HostStatus { replication: Some(replication), ..Default::default() });
        assert!(
            said[0].starts_with("3 contents stay on a disk that is being emptied") && said[0].contains("(1a1a1a1a)")
        );
    }

    #[test]
    fn of_a_disk_that_is_stopped_it_is_said_what_starts_it() {
        let said = |exit: Exit| {
            let failure = Some(pb::Failure { exit: exit as u32, ..Default::default() });
            let state = disk::State::Stopped.into();
            let disk =
                pb::Disk { root: "/my d".into(), state, failure, last_error: "why".into(), ..Default::default() };
            problems(&pb::HostStatus { disks: vec![disk], ..Default::default() }).remove(0)
        };
        assert_eq!(said(Exit::NewerFormat), "disk /my d is stopped: why; `delugefs disk add '/my d'` starts it again");
        assert!(said(Exit::NoDisk).contains("it goes on when its folder is there again"), "{}", said(Exit::NoDisk));
    }

    #[test]
    fn a_mount_that_waits_where_no_disk_is_coming_is_a_problem() {
        let said = |states: &[disk::State]| {
            let disks = states.iter().map(|state| pb::Disk { state: (*state).into(), ..Default::default() }).collect();
            let mount = pb::Mount { dir: "/m".into(), state: mount::State::Starting.into(), ..Default::default() };
            let said = problems(&pb::HostStatus { disks, mounts: vec![mount], ..Default::default() });
            said.iter().any(|problem| problem.starts_with("mount /m waits for a disk"))
        };
        assert!(said(&[]) && said(&[disk::State::Stopped]));
        assert!(!said(&[disk::State::Stopped, disk::State::Starting]) && !said(&[disk::State::Up]));
    }

    #[test]
    fn a_disk_without_room_is_a_problem() {
        let said = |read_only, reason: &str, free_bytes| {
            let space = Some(FreeSpaceReply { total_bytes: 100, free_bytes, ..Default::default() });
            let status = Some(WorkerStatus { read_only, reason: reason.into(), space, ..Default::default() });
            let disk = pb::Disk { root: "/d".into(), state: disk::State::Up.into(), status, ..Default::default() };
            problems(&pb::HostStatus { disks: vec![disk], ..Default::default() })
        };
        assert_eq!(said(false, "", 1), Vec::<String>::new());
        assert!(said(false, "", 0)[0].starts_with("disk /d is full: "), "{:?}", said(false, "", 0));
        assert_eq!(said(true, "the disk is full", 0), ["disk /d is read-only: the disk is full"], "said once");
        assert_eq!(said(false, "the names", 1), ["disk /d takes no new names: the names"]);
    }

    #[test]
    fn both_enumerations_agree() {
        for number in 0..=disk::State::Stopping as i32 {
            let name = disk::State::try_from(number).unwrap().as_str_name();
            assert_eq!(mount::State::try_from(number).unwrap().as_str_name(), name);
        }
    }
}
