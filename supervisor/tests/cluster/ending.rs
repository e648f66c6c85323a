//! How every story ends that ends well: the hosts that run are connected and have one catalog, all contents have as many copies as are
//! wanted and there are disks for, what they hold is whole, nobody has said anything that the story does not expect, and nothing is left of the programs: not in them as long as they run, and
//! nowhere after a clean stop. A lab that is dropped without it fails, so no story can forget it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use delugefs_proto::disk::{CATALOG, INCOMING, STAGING};
use serde_json::Value;

use super::lab::{Host, Lab};
use super::wait_for;
use crate::e2e::assert_at_rest;

/// A warning or an error that a story has brought about: a part of the line, and why it is right that it is said.
pub type Expected = (&'static str, &'static str);

/// So often everything is asked while descriptors are counted.
const QUESTIONS: usize = 8;

/// Whether warnings that a story does not name, and descriptors that stay, fail it; else warnings are only printed. Not by default: a slow
/// machine brings about what does not come again in many runs. Errors, panics and whatever else is left always fail it.
fn is_strict() -> bool {
    std::env::var_os("DELUGEFS_STRICT").is_some()
}

/// What a story leaves on purpose.
#[derive(Default)]
pub struct Ending<'a> {
    /// Hosts that are connected with each other, where not all that run are.
    pub groups: Option<&'a [&'a [usize]]>,
    /// Disks that the others do not know any more.
    pub out: &'a [&'a str],
    /// See [`Expected`].
    pub expected: &'a [Expected],
    /// Why there are not as many copies as are wanted.
    pub short: Option<&'a str>,
    /// Why something that was being fetched is still in `incoming/`.
    pub incomplete: Option<&'a str>,
}

impl Lab {
    /// The end of a story in which all hosts that run are connected.
    pub fn finish(self, expected: &[Expected]) {
        self.end(&Ending { expected, ..Ending::default() });
    }

    /// The end of a story.
    pub fn end(mut self, ending: &Ending) {
        let running: Vec<usize> = (0..self.hosts.len()).filter(|at| self.hosts[*at].runs()).collect();
        for group in ending.groups.unwrap_or(&[&running[..]]).iter().filter(|group| !group.is_empty()) {
            self.assert_agreed(group, ending.out);
            if ending.short.is_none() {
                self.assert_copied(group);
            }
        }
        let mut wrong = Vec::new();
        for at in &running {
            let (code, text) = self.hosts[*at].says(&["scrub"]);
            wrong.extend((code != 0).then(|| format!("scrub of host {at}: {text}")));
            if is_strict() {
                self.assert_no_descriptors_stay(*at);
            }
        }
        let disks: Vec<PathBuf> = running.iter().flat_map(|at| up(&self.hosts[*at])).map(|disk| disk.root).collect();
        let networks: BTreeSet<u64> = self.hosts.iter().map(Host::network).collect();
        running.iter().for_each(|at| self.hosts[*at].ask_to_end());
        for at in running {
            let code = self.hosts[at].wait_for_end();
            wrong.extend((code != 0).then(|| format!("host {at} ended with code {code}")));
        }
        for host in &self.hosts {
            host.assert_gone();
            // Who was killed could not take anything away.
            let left = if host.ended_well() { in_run_dir(&host.path("r")) } else { Vec::new() };
            wrong.extend(left.into_iter().map(|name| format!("left in a run directory: {name}")));
        }
        wrong.extend(in_networks(&networks).into_iter().map(|process| format!("still running: {process}")));
        let empty = if ending.incomplete.is_some() { &[STAGING][..] } else { &[STAGING, INCOMING] };
        for disk in disks {
            assert_at_rest(&disk, empty, || self.logs());
            let quarantine = names(&disk.join(CATALOG).join("quarantine"));
            wrong.extend(quarantine.into_iter().map(|name| format!("left of {}: {name}", disk.display())));
        }
        let is_stray = |line: &String| line.contains("WARN") && !line.contains("panicked at");
        let (strays, mut odd): (Vec<_>, Vec<_>) = self.unexpected(ending.expected).into_iter().partition(is_stray);
        match is_strict() {
            true => odd.extend(strays),
            false => strays.iter().for_each(|line| eprintln!("not expected: {line}")),
        }
        wrong.extend(odd.into_iter().map(|line| format!("not expected: {line}")));
        assert!(wrong.is_empty(), "in the end:\n{}\n--- of\n{}", wrong.join("\n"), self.logs());
        let kept = self.remove();
        assert!(kept.is_empty(), "left behind: {kept:?}");
    }

    /// All disks of these hosts are connected and have one catalog, with nothing uncommitted.
    fn assert_agreed(&self, hosts: &[usize], out: &[&str]) {
        let disks = || -> Vec<Disk> {
            let disks = hosts.iter().flat_map(|at| up(&self.hosts[*at]));
            disks.filter(|disk| !out.contains(&&*disk.id)).collect()
        };
        let ids: BTreeSet<String> = disks().into_iter().map(|disk| disk.id).collect();
        for at in hosts {
            let lacks = || -> Vec<String> {
                let peers = self.hosts[*at].json(&["peers"])["disks"].as_array().cloned().unwrap_or_default();
                let connected = peers.iter().filter(|disk| disk["connected"] == true);
                let connected: BTreeSet<&str> = connected.filter_map(|disk| disk["disk_id"].as_str()).collect();
                ids.iter().filter(|id| !connected.contains(id.as_str())).cloned().collect()
            };
            let why = || format!("host {at} lacks {:?}\n{}", lacks(), self.logs());
            wait_for("all to be connected in the end", why, || lacks().is_empty());
        }
        let states = || -> Vec<(Value, Value)> {
            let state =
                |disk: Disk| (disk.worker["catalog_commit"].clone(), disk.worker["uncommitted_changes"].clone());
            disks().into_iter().map(state).collect()
        };
        let is_one = |states: &[(Value, Value)]| {
            states.len() == ids.len()
                && states.iter().all(|one| one.0.is_string() && one.0 == states[0].0 && one.1 == 0)
        };
        wait_for("one catalog in the end", || format!("{:?}\n{}", states(), self.logs()), || is_one(&states()));
    }

    /// No content is gone or only on a disk that is away, and of each there are as many copies as are wanted, or as there are disks to keep one.
    fn assert_copied(&self, hosts: &[usize]) {
        for host in hosts.iter().map(|at| &self.hosts[*at]) {
            let lacks = || -> Vec<String> {
                let status = host.json(&["status"]);
                if up(host).is_empty() {
                    return Vec::new(); // nobody has looked
                }
                let (copies, peers) = (&status["replication"], host.json(&["peers"]));
                let disks = peers["disks"].as_array().cloned().unwrap_or_default();
                let keeps = |disk: &&Value| {
                    let is_set = |what: &str| disk[what] == true;
                    is_set("connected") && !is_set("lazy") && !is_set("read_only") && disk["mark"] == ""
                };
                let keepers = disks.iter().filter(keeps).count() as u64;
                let is_short = |one: &&Value| one["present"].as_u64() < one["wanted"].as_u64().map(|n| n.min(keepers));
                let at_risk = copies["at_risk"].as_array().cloned().unwrap_or_default();
                let lost = ["gone", "unreachable"].iter().filter(|what| copies[**what] != 0);
                let lost = lost.map(|what| format!("{what}: {}", copies[*what]));
                lost.chain(at_risk.iter().filter(is_short).map(Value::to_string)).collect()
            };
            let why = || format!("{:?}\n{}", lacks(), self.logs());
            wait_for("as many copies as are wanted in the end", why, || lacks().is_empty());
        }
    }

    /// Whatever is asked and done again and again, the host's workers have no more open than before. And no file that is gone.
    fn assert_no_descriptors_stay(&self, at: usize) {
        let host = &self.hosts[at];
        let work = || {
            host.says(&["status"]);
            host.says(&["peers"]);
            host.says(&["whereis", host.file("").to_str().unwrap()]);
        };
        work(); // what is opened once and kept
        let workers = up(host);
        let before: Vec<usize> = workers.iter().map(|disk| open_files(disk.pid).len()).collect();
        (0..QUESTIONS).for_each(|_| work());
        for (disk, before) in workers.iter().zip(before) {
            let open = || open_files(disk.pid);
            let gone = |name: &String| name.ends_with(" (deleted)") && Path::new(name).starts_with(&disk.root);
            let why = || format!("{before} before, now {:?}\n{}", open(), self.logs());
            wait_for("descriptors to be closed", why, || {
                let open = open();
                open.len() < before + QUESTIONS / 2 && !open.iter().any(gone)
            });
        }
    }
}

/// A disk whose worker runs.
struct Disk {
    id: String,
    root: PathBuf,
    pid: u32,
    worker: Value,
}

/// Those of a host.
fn up(host: &Host) -> Vec<Disk> {
    let disks = host.json(&["status"])["disks"].as_array().cloned().unwrap_or_default();
    let disk = |disk: Value| {
        Some(Disk {
            id: disk["disk_id"].as_str()?.to_owned(),
            root: disk["root"].as_str()?.into(),
            pid: u32::try_from(disk["pid"].as_u64()?).ok()?,
            worker: disk["worker"].clone(),
        })
    };
    disks.into_iter().filter(|disk| disk["state"] == "up").filter_map(disk).collect()
}

/// What a process has open.
fn open_files(pid: u32) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    descriptors.filter_map(|one| Some(fs::read_link(one.path()).ok()?.to_string_lossy().into_owned())).collect()
}

/// What a stopped supervisor has not taken away.
fn in_run_dir(run_dir: &Path) -> Vec<String> {
    let is_odd = |name: &String| [".pid", ".log", ".sock"].iter().any(|end| name.ends_with(end));
    names(run_dir).into_iter().filter(is_odd).collect()
}

/// Of a folder that need not be there.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Processes in these network namespaces, whoever started them.
fn in_networks(networks: &BTreeSet<u64>) -> Vec<String> {
    let is_there = |pid: &String| {
        let network = fs::metadata(format!("/proc/{pid}/ns/net"));
        network.is_ok_and(|network| networks.contains(&network.ino()))
    };
    let name =
        |pid: String| format!("{pid} {}", fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default());
    names(Path::new("/proc"))
        .into_iter()
        .filter(|name| name.parse::<u32>().is_ok())
        .filter(is_there)
        .map(name)
        .collect()
}
