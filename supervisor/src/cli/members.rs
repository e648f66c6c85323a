//! The commands about the cluster as a whole: who is in it, conflicts, wanted copies.

use std::path::Path;

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::ids::hex;
use delugefs_proto::worker_pb as wpb;
use serde::Serialize;

use super::Wanted;
use super::client::{Control, answer};
use super::show::{Places, print, print_json};
use super::table::{row, size, table};
use crate::escape::{escape_bytes, escape_line};
use crate::paths;

/// The id of the disk that was typed by its folder on this host, as other commands take it; an id has no slash, and is given back.
pub async fn disk_id(control: &mut Control, typed: String) -> anyhow::Result<String> {
    if !typed.contains('/') {
        return Ok(typed);
    }
    let host = answer(control.status(pb::StatusRequest {}).await)?;
    let root = paths::typed_among(Path::new(&typed), host.disks.iter().map(|disk| &disk.root))?;
    match host.disks.into_iter().find(|disk| disk.root == root && !disk.disk_id.is_empty()) {
        Some(disk) => Ok(disk.disk_id),
        None => {
            let error = UserError::new(Exit::Usage, format!("{root} is no disk that this host serves"));
            Err(error.hint("`delugefs disks` lists those; one of another host is named by its id").into())
        }
    }
}

#[derive(Serialize)]
struct Peers {
    host_id: String,
    hosts: Vec<Host>,
    disks: Vec<Disk>,
}

#[derive(Serialize)]
struct Host {
    host_id: String,
    label: String,
    admitted_s: u64,
    revoked: bool,
}

#[derive(Serialize)]
struct Disk {
    disk_id: String,
    host_id: String,
    host_label: String,
    site: String,
    lazy: bool,
    read_only: bool,
    mark: &'static str,
    connected: bool,
    absent_s: Option<u32>,
    free_bytes: Option<u64>,
    total_bytes: Option<u64>,
    contents: u64,
    catalog_commit: String,
    addresses: Vec<String>,
    error: String,
}

impl From<wpb::Peer> for Disk {
    fn from(peer: wpb::Peer) -> Self {
        let mark = match peer.mark() {
            wpb::Mark::None => "",
            wpb::Mark::Draining => "draining",
            wpb::Mark::Forgotten => "forgotten",
        };
        Self {
            disk_id: hex(&peer.disk_id),
            host_id: hex(&peer.host_id),
            host_label: peer.host_label,
            site: peer.site,
            lazy: peer.lazy,
            read_only: peer.read_only,
            mark,
            connected: peer.connected,
            absent_s: (peer.absent_s != u32::MAX).then_some(peer.absent_s),
            // One that has said nothing yet has no size; a full one does.
            free_bytes: (peer.total_bytes > 0).then_some(peer.free_bytes),
            total_bytes: (peer.total_bytes > 0).then_some(peer.total_bytes),
            contents: peer.contents,
            catalog_commit: peer.state_commit,
            addresses: peer.addresses,
            error: peer.error,
        }
    }
}

pub(super) async fn peers(control: &mut Control, as_json: bool) -> anyhow::Result<Exit> {
    let reply = answer(control.peers(pb::PeersRequest {}).await)?;
    let host = |host: &pb::PeerHost| Host {
        host_id: hex(&host.host_id),
        label: host.label.clone(),
        admitted_s: host.admitted_s,
        revoked: host.revoked,
    };
    let hosts: Vec<Host> = reply.hosts.iter().map(host).collect();
    let disks: Vec<Disk> = reply.disks.into_iter().map(Disk::from).collect();
    let me = hex(&reply.host_id);
    if as_json {
        print_json(&Peers { host_id: me, hosts, disks })?;
        return Ok(Exit::Ok);
    }
    let mut rows = vec![row(["HOST", "NAME", ""])];
    rows.extend(hosts.iter().map(|host| {
        let note = match (host.revoked, host.host_id == me) {
            (true, _) => "revoked",
            (_, true) => "this host",
            _ => "",
        };
        row([short_id(&host.host_id), &escape_line(&host.label), note])
    }));
    let mut out = table(&rows, &[]);
    let mut rows = vec![row(["DISK", "HOST", "STATE", "FREE", "OF", "CONTENTS", "ADDRESS"])];
    rows.extend(disks.iter().map(|disk| {
        let state = match (disk.connected, disk.absent_s) {
            (true, _) if disk.lazy => "connected, lazy".to_owned(),
            (true, _) => "connected".to_owned(),
            (false, Some(seconds)) => format!("away for {}", span(seconds)),
            (false, None) => "not seen yet".to_owned(),
        };
        let state = if disk.mark.is_empty() { state } else { format!("{state}, {}", disk.mark) };
        row([
            short_id(&disk.disk_id),
            &escape_line(&disk.host_label),
            &state,
            &disk.free_bytes.map_or_else(|| "-".into(), size),
            &disk.total_bytes.map_or_else(|| "-".into(), size),
            &disk.contents.to_string(),
            &escape_line(disk.addresses.first().map_or("", String::as_str)),
        ])
    }));
    out += "\n";
    out += &table(&rows, &[3, 4, 5]);
    print(&out)?;
    Ok(Exit::Ok)
}

/// Seconds, in the unit that fits.
fn span(seconds: u32) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

pub(super) async fn conflicts(control: &mut Control, as_json: bool) -> anyhow::Result<Exit> {
    #[derive(Serialize)]
    struct Conflicts {
        paths: Vec<String>,
        more: bool,
    }
    let reply = answer(control.conflicts(pb::ConflictsRequest {}).await)?;
    let paths: Vec<String> = reply.paths.iter().map(|path| escape_bytes(path)).collect();
    if as_json {
        print_json(&Conflicts { paths, more: reply.more })?;
        return Ok(Exit::Ok);
    }
    let mut out: String = paths.iter().map(|path| format!("{path}\n")).collect();
    if reply.more {
        out += "... and more\n";
    }
    print(&out)?;
    Ok(Exit::Ok)
}

pub(super) async fn copies(control: &mut Control, typed: &Path, wanted: Option<Wanted>) -> anyhow::Result<Exit> {
    let path = Places::look(control).await?.path(typed)?;
    let set = if let Some(Wanted::Number(number)) = wanted { number } else { 0 };
    let inherit = wanted == Some(Wanted::Inherit);
    let reply = answer(control.copies(wpb::CopiesRequest { path, set, inherit }).await)?;
    let from = match reply.from.is_empty() {
        true => "the default".to_owned(),
        false => format!("set for {}", escape_bytes(&reply.from)),
    };
    let copies = if reply.wanted == 1 { "copy" } else { "copies" };
    print(&format!("{} {copies} wanted ({from})\n", reply.wanted))?;
    if wanted.is_some() {
        let peers = answer(control.peers(pb::PeersRequest {}).await);
        let note = peers.ok().and_then(|peers| too_few(&peers.disks, reply.wanted));
        note.iter().for_each(|note| eprintln!("Note: {note}"));
    }
    Ok(Exit::Ok)
}

/// More copies are wanted than there are disks that keep some: they are made when there are, and it is not an error to say so before.
fn too_few(disks: &[wpb::Peer], wanted: u32) -> Option<String> {
    let keeps = |disk: &&wpb::Peer| disk.mark() == wpb::Mark::None && !disk.lazy;
    let keepers = disks.iter().filter(keeps).count();
    // Nobody has said anything of the cluster.
    if disks.is_empty() || keepers >= wanted as usize {
        return None;
    }
    let others =
        if keepers < disks.len() { " (lazy ones, and those that are emptied or forgotten, do not count)" } else { "" };
    let there_are = match keepers {
        1 => "there is only 1 disk that keeps copies".to_owned(),
        _ => format!("there are only {keepers} disks that keep copies"),
    };
    Some(format!("{there_are}{others}: with fewer than {wanted} of them `status` counts all of it as short of copies"))
}

/// What became of the hosts that a revoked one has let in: only people can tell whether somebody made them up.
pub fn brought(revoked: &pb::RevokeReply, with_hosts: bool) -> Vec<String> {
    const SHOWN: usize = 10;
    let names = |hosts: &[String]| {
        let shown: Vec<String> = hosts.iter().take(SHOWN).map(|name| escape_line(name)).collect();
        let more = hosts.len().saturating_sub(SHOWN);
        shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    };
    let mut sentences = Vec::new();
    if with_hosts && !revoked.stay.is_empty() {
        sentences.push(format!(
            "this host is a member only because it let these in, so they stay: {}",
            names(&revoked.stay)
        ));
    } else if !revoked.stay.is_empty() {
        sentences.push(format!(
            "members only because it let them in, and they stay: {}; if you do not know them all: `delugefs revoke {} --with-hosts`",
            names(&revoked.stay),
            revoked.id
        ));
    }
    if !revoked.out.is_empty() {
        sentences.push(format!(
            "out, too, as it had let them in: {}; an invitation lets them in again",
            names(&revoked.out)
        ));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_more_copies_than_there_are_disks_is_told() {
        let disk = wpb::Peer::default;
        let lazy = || wpb::Peer { lazy: true, ..disk() };
        let leaving = || wpb::Peer { mark: wpb::Mark::Draining.into(), ..disk() };
        assert_eq!(too_few(&[disk(), disk()], 2), None);
        assert_eq!(too_few(&[], 2), None, "not known");
        let said = |disks: &[wpb::Peer], wanted| too_few(disks, wanted).unwrap();
        assert!(said(&[disk()], 2).starts_with("there is only 1 disk that keeps copies: "));
        assert!(said(&[disk(), disk(), lazy()], 3).starts_with("there are only 2 disks that keep copies (lazy"));
        assert!(said(&[disk(), leaving()], 2).starts_with("there is only 1 disk"));
    }

    #[test]
    fn what_is_not_known_of_a_disk_is_not_0() {
        let unseen = Disk::from(wpb::Peer { absent_s: u32::MAX, ..wpb::Peer::default() });
        assert_eq!((unseen.free_bytes, unseen.total_bytes, unseen.absent_s), (None, None, None));
        let full = Disk::from(wpb::Peer { connected: true, total_bytes: 9, ..wpb::Peer::default() });
        assert_eq!((full.free_bytes, full.total_bytes), (Some(0), Some(9)));
    }

    #[test]
    fn whom_a_revoked_host_has_let_in_is_said() {
        let name = |n: usize| format!("box{n} (0000000{n})");
        let mut revoked = pb::RevokeReply { id: "ab".into(), what: "host".into(), ..Default::default() };
        assert!(brought(&revoked, false).is_empty());
        revoked.stay = (0..12).map(name).collect();
        revoked.out = vec![name(1)];
        let said = brought(&revoked, false);
        assert!(
            said[0].contains("box9 (00000009) and 2 more") && said[0].contains("`delugefs revoke ab --with-hosts`")
        );
        assert!(said[1].contains("box1 (00000001); an invitation"), "{said:?}");
        let said = brought(&revoked, true);
        assert!(
            said[0].starts_with("this host is a member only because it let these in") && !said[0].contains("--with")
        );
    }
}
