//! The commands that only show something. Everything that comes from the file system is escaped on its way out.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;
use delugefs_proto::exit::Exit;
use delugefs_proto::ids::hex;
use delugefs_proto::worker_pb::where_is_reply::Place;
use delugefs_proto::worker_pb::{Mark, Peer, WhereIsReply};
use serde::Serialize;

use super::Here;
use super::client::{Control, answer};
use super::drain::draining;
use super::json::{self, disk_state, mount_state};
use super::table::{row, size, table};
use crate::escape::{escape_bytes, escape_line};
use crate::failure::Failure;
use crate::{mountpoint, paths, sys};

pub(super) async fn status(
    control: &mut Control,
    here: &Here,
    only_problems: bool,
    as_json: bool,
) -> anyhow::Result<Exit> {
    let host = answer(control.status(pb::StatusRequest {}).await)?;
    let exit = if only_problems && !host.problems.is_empty() { Exit::Unhealthy } else { Exit::Ok };
    if as_json {
        print_json(&json::Status::from(host))?;
        return Ok(exit);
    }
    let problems: String = host.problems.iter().map(|problem| here.say(&escape_line(problem)) + "\n").collect();
    if only_problems {
        print(&problems)?;
        return Ok(exit);
    }
    let cluster = if host.cluster.is_empty() { "none yet" } else { &host.cluster };
    let mut out = format!("cluster {cluster}, supervisor {} (pid {})\n", host.version, host.pid);
    if !host.disks.is_empty() {
        out += "\n";
        out += &disk_table(&host.disks);
    }
    if !host.mounts.is_empty() {
        let mut rows = vec![row(["MOUNT", "RESTARTS", "DISK", "FOLDER"])];
        rows.extend(host.mounts.iter().map(|mount| {
            let shown = host.disks.iter().find(|disk| disk.root == mount.root && !disk.disk_id.is_empty());
            let id = shown.map_or("-", |disk| short_id(&disk.disk_id));
            row([mount_state(mount), &mount.restarts.to_string(), id, &escape_bytes(mount.dir.as_bytes())])
        }));
        out += "\n";
        out += &table(&rows, &[1]);
    }
    if let Some(replication) = &host.replication {
        out += "\n";
        out += &copies(replication);
    }
    if !problems.is_empty() {
        out += "\nproblems:\n";
        out += &problems.lines().map(|problem| format!("  {problem}\n")).collect::<String>();
    }
    print(&out)?;
    Ok(exit)
}

/// How well contents are kept.
fn copies(it: &pb::Replication) -> String {
    let mut out =
        format!("contents: {}, {} with all the copies that are wanted\n", it.contents, it.contents - it.short);
    let mut line = |count: u64, text: &str| {
        if count > 0 {
            out += &format!("  {count} {text}\n");
        }
    };
    line(it.short, "with fewer copies than wanted");
    line(it.short_waiting, "of these only because a disk has been away for a short time");
    line(it.single, "with a single copy although more are wanted");
    line(it.unreachable, "only on disks that are away");
    line(it.gone, "on no disk any more");
    line(it.waiting, "wait to be fetched to this host");
    for disk in it.disks.iter().filter(|disk| disk.only_here > 0) {
        let away = if disk.present { "" } else { ", which is away" };
        out += &format!("  {} are only on disk {}{away}\n", disk.only_here, short_id(&hex(&disk.disk_id)));
    }
    for one in &it.at_risk {
        let content = hex(&one.content);
        let content = content.get(..16).unwrap_or_default();
        out += &format!("  at risk: {content} has {} of {} copies\n", one.present, one.wanted);
    }
    out
}

fn disk_table(disks: &[pb::Disk]) -> String {
    let mut rows = vec![row(["DISK", "STATE", "FREE", "OF", "RESTARTS", "FOLDER"])];
    rows.extend(disks.iter().map(|disk| {
        let space = disk.status.as_ref().and_then(|status| status.space.clone());
        let (free, of) = space.map_or(("-".into(), "-".into()), |s| (size(s.free_bytes), size(s.total_bytes)));
        let id = if disk.disk_id.is_empty() { "-" } else { short_id(&disk.disk_id) };
        let restarts = disk.restarts.to_string();
        row([id, disk_state(disk), &free, &of, &restarts, &escape_bytes(disk.root.as_bytes())])
    }));
    table(&rows, &[2, 3, 4])
}

pub(super) async fn disks(control: &mut Control, here: &Here, as_json: bool) -> anyhow::Result<Exit> {
    let disks = answer(control.disks(pb::DisksRequest {}).await)?.disks;
    if as_json {
        print_json(&disks.into_iter().map(json::Disk::from).collect::<Vec<_>>())?;
        return Ok(Exit::Ok);
    }
    let mut out = String::new();
    for disk in &disks {
        if !out.is_empty() {
            out += "\n";
        }
        out += &format!("{}\n", escape_bytes(disk.root.as_bytes()));
        let by_hand = if disk.by_hand { ", started by hand" } else { "" };
        let pid = if disk.pid == 0 { String::new() } else { format!(", pid {}", disk.pid) };
        let mut line = |name: &str, text: &str| {
            if !text.is_empty() {
                out += &format!("  {name:<11} {text}\n");
            }
        };
        line("disk", &disk.disk_id);
        line("state", &format!("{}{pid}{by_hand}, {} restarts", disk_state(disk), disk.restarts));
        // How it ended before says nothing of one that is up again.
        let last_error = if disk.state() == pb::disk::State::Up { "" } else { &disk.last_error };
        line("last error", &escape_line(last_error));
        let hint = disk.failure.as_ref().filter(|_| disk.status.is_none()).map(|failure| failure.hint.as_str());
        line("hint", &here.say(&escape_line(hint.unwrap_or_default())));
        let Some(status) = &disk.status else { continue };
        line(if status.read_only { "read-only" } else { "refuses" }, &escape_line(&status.reason));
        let space = status.space.clone().unwrap_or_default();
        line("space", &format!("{} free of {}", size(space.free_bytes), size(space.total_bytes)));
        line("contents", &format!("{}, {}", status.contents, size(status.content_bytes)));
        let drain = disk.drain.as_ref().map(|drain| here.say(&draining(drain, &disk.disk_id, &disk.root)));
        line("draining", &drain.unwrap_or_default());
        line("unfinished", &format!("{} files being written", status.staged_files));
        let changes = status.uncommitted_changes;
        line(
            "catalog",
            &format!("{}, {changes} changes in the journal, {} packs", short(&status.catalog_commit), status.packs),
        );
        line("frontends", &status.sessions.to_string());
    }
    print(&out)?;
    Ok(Exit::Ok)
}

fn short(commit: &str) -> &str {
    if commit.is_empty() { "no commit yet" } else { commit.get(..12).unwrap_or(commit) }
}

pub(super) async fn torrents(control: &mut Control, as_json: bool) -> anyhow::Result<Exit> {
    let disks = answer(control.torrents(pb::TorrentsRequest {}).await)?.disks;
    let exit = if disks.iter().all(|disk| disk.error.is_empty()) { Exit::Ok } else { Exit::Failure };
    let all = || disks.iter().flat_map(|disk| disk.torrents.iter().map(|torrent| (disk.disk_id.as_str(), torrent)));
    if as_json {
        print_json(&all().map(|(disk_id, torrent)| json::Torrent::new(disk_id, torrent)).collect::<Vec<_>>())?;
        return Ok(exit);
    }
    let mut rows = vec![row(["DISK", "CONTENT", "SIZE", "HAVE", "PEERS", "DOWN/s", "UP/s", "STATE"])];
    rows.extend(all().map(|(disk_id, torrent)| {
        let error = escape_line(&torrent.error);
        let state = match (error.is_empty(), torrent.seeding) {
            (false, _) => &error,
            (true, true) => "complete",
            (true, false) => "fetching",
        };
        row([
            short_id(disk_id),
            hex(&torrent.content).get(..16).unwrap_or_default(),
            &size(torrent.size_bytes),
            &size(torrent.have_bytes),
            &torrent.peers.to_string(),
            &size(torrent.down_bytes_per_s),
            &size(torrent.up_bytes_per_s),
            state,
        ])
    }));
    for disk in disks.iter().filter(|disk| !disk.error.is_empty()) {
        eprintln!("delugefs: disk {}: {}", short_id(&disk.disk_id), escape_line(&disk.error));
    }
    print(&if rows.len() == 1 { "no torrent is live\n".into() } else { table(&rows, &[2, 3, 4, 5, 6]) })?;
    Ok(exit)
}

/// What a path on the command line can mean.
pub(super) struct Places {
    host: pb::HostStatus,
    ours: Vec<PathBuf>,
    boundaries: Vec<PathBuf>,
}

impl Places {
    /// Our supervisor's mounts, whatever the mount table says of them, and everybody's DelugeFS mounts in it.
    pub async fn look(control: &mut Control) -> anyhow::Result<Self> {
        let mut watch = answer(control.watch(pb::WatchRequest {}).await)?;
        let host = answer(watch.message().await.map(|host| tonic::Response::new(host.unwrap_or_default())))?;
        let ours: Vec<PathBuf> = host.mounts.iter().map(|mount| PathBuf::from(&mount.dir)).collect();
        let mut boundaries = sys::delugefs_mounts()?;
        boundaries.extend_from_slice(&ours);
        Ok(Self { host, ours, boundaries })
    }

    /// Whether a mountpoint is clear of this host's disks, and of all mounts of DelugeFS.
    pub fn check_mountpoint(&self, dir: &Path) -> Result<(), Failure> {
        let disks = self.host.disks.iter().map(|disk| Path::new(&disk.root));
        mountpoint::check_place(dir, disks, self.boundaries.iter().map(PathBuf::as_path))
    }

    /// The disk that is meant by this folder, as the supervisor knows it.
    pub fn disk(&self, typed: &Path) -> anyhow::Result<String> {
        paths::typed_among(typed, self.host.disks.iter().map(|disk| &disk.root))
    }

    /// The same for a mount.
    pub fn mount(&self, typed: &Path) -> anyhow::Result<String> {
        paths::typed_among(typed, self.host.mounts.iter().map(|mount| &mount.dir))
    }

    /// What is sent to the supervisor: below one of its mounts as resolved, else as typed, from the root of the file system.
    pub fn path(&self, typed: &Path) -> anyhow::Result<Vec<u8>> {
        let resolved = paths::resolve_here(typed, &self.boundaries)?;
        let below_ours = self.ours.iter().any(|mount| resolved.starts_with(mount));
        let path = if below_ours { &resolved } else { typed };
        Ok(path.as_os_str().as_bytes().to_vec())
    }
}

pub(super) async fn whereis(
    control: &mut Control,
    here: &Here,
    typed: &[PathBuf],
    as_json: bool,
) -> anyhow::Result<Exit> {
    let places = Places::look(control).await?;
    let host = &places.host;
    let (mut exit, mut forms, mut out) = (Exit::Ok, Vec::new(), String::new());
    let mut hints = BTreeSet::new();
    for typed in typed {
        let request = pb::WhereIsRequest { path: places.path(typed)? };
        let name = escape_bytes(typed.as_os_str().as_bytes());
        match answer(control.where_is(request).await) {
            Ok(reply) => {
                let found = reply.answer.unwrap_or_default();
                let may_have = match is_nowhere(&found) {
                    true => unheard(&answer(control.peers(pb::PeersRequest {}).await)?.disks),
                    false => Vec::new(),
                };
                match as_json {
                    true => forms.push(json::WhereIs::new(name, found, may_have)),
                    false => out += &place(&name, &found, &may_have, &host.disks),
                }
            }
            Err(error) => {
                exit = Exit::Failure;
                if as_json {
                    forms.push(json::WhereIs::failed(name, error.message));
                } else {
                    eprintln!("delugefs: {name}: {}", escape_line(&error.message));
                    hints.extend(error.hint);
                }
            }
        }
    }
    for hint in hints {
        eprintln!("Hint: {}", here.say(&escape_line(&hint)));
    }
    if as_json {
        print_json(&forms)?;
    } else {
        print(&out)?;
    }
    Ok(exit)
}

/// No disk that was not given up is known to have it.
fn is_nowhere(answer: &WhereIsReply) -> bool {
    answer.place() == Place::Missing && answer.disk_ids.iter().all(|id| answer.forgotten.contains(id))
}

/// The disks that have not said since the start here what they hold.
fn unheard(disks: &[Peer]) -> Vec<String> {
    let is_unheard = |disk: &&Peer| !disk.told && disk.mark() != Mark::Forgotten;
    disks.iter().filter(is_unheard).map(|disk| hex(&disk.disk_id)).collect()
}

fn place(name: &str, answer: &WhereIsReply, may_have: &[String], disks: &[pb::Disk]) -> String {
    let is_ours = |id: &String| disks.iter().any(|disk| disk.disk_id == *id);
    let place = match answer.place() {
        Place::Unspecified => "not known",
        Place::NoContent => "nothing to store",
        Place::Catalog => "in the catalog, on every disk",
        Place::Staging => "being written, on this host only",
        Place::Store if answer.damaged => "damaged, on a disk of this host: see `scrub`",
        Place::Store => "whole, on a disk of this host",
        Place::Missing if answer.disk_ids.iter().any(is_ours) => "on a disk of this host, which is not up",
        Place::Missing => "not on this host",
    };
    let mut out = format!("{name}\n");
    let mut line = |name: &str, text: &str| {
        if !text.is_empty() {
            out += &format!("  {name:<8} {text}\n");
        }
    };
    line("place", place);
    line("size", &format!("{} ({} bytes)", size(answer.size_bytes), answer.size_bytes));
    line("content", &hex(&answer.content));
    line("torrent", &hex(&answer.info_hash));
    for disk_id in &answer.disk_ids {
        let here = disks.iter().find(|disk| disk.disk_id == *disk_id);
        let root = here.map(|disk| format!(" ({})", escape_bytes(disk.root.as_bytes()))).unwrap_or_default();
        let is_in = |list: &[String]| list.contains(disk_id);
        let away = if is_in(&answer.away) { " (away)" } else { "" };
        let forgotten = if is_in(&answer.forgotten) { " (forgotten)" } else { "" };
        line("disk", &format!("{}{root}{away}{forgotten}", escape_line(short_id(disk_id))));
    }
    for disk_id in may_have {
        line("perhaps", &format!("{} (away, and not heard of since the start here)", short_id(disk_id)));
    }
    out
}

pub(super) async fn scrub(control: &mut Control, as_json: bool) -> anyhow::Result<Exit> {
    let disks = answer(control.scrub(pb::ScrubRequest {}).await)?.disks;
    let forms: Vec<json::Scrub> = disks.iter().cloned().map(json::Scrub::from).collect();
    let healthy = forms.iter().all(|form| form.problems.is_empty());
    let exit = if healthy { Exit::Ok } else { Exit::Unhealthy };
    if as_json {
        print_json(&forms)?;
        return Ok(exit);
    }
    let mut out = String::new();
    for (disk, form) in disks.iter().zip(&forms) {
        let result = disk.result.clone().unwrap_or_default();
        out += &format!(
            "{} ({}): {} entries, {} catalog objects, {} contents ({}): {}\n",
            short_id(&disk.disk_id),
            escape_bytes(disk.root.as_bytes()),
            result.entries,
            result.objects,
            result.contents,
            size(result.content_bytes),
            if form.problems.is_empty() { "all good".into() } else { format!("problems: {}", form.problems.len()) },
        );
        out += &form.problems.iter().map(|problem| format!("  {}\n", escape_line(problem))).collect::<String>();
    }
    print(&out)?;
    Ok(exit)
}

pub(super) fn print_json(form: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(form)? + "\n"))
}

pub(super) fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to stdout")
}
