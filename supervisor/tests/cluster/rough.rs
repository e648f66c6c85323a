//! Processes and whole hosts are killed at random moments while programs write on all of them: nothing that was closed is
//! lost anywhere, and in the end all is as if nothing had happened. `DELUGEFS_E2E_SEED` repeats a run,
//! `DELUGEFS_E2E_ROUNDS` makes it longer.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::ending::Ending;
use super::lab::{Host, KILLS, Lab};
use super::load::{Known, Load, Manifest, differences};
use super::stories::joined;
use super::wait_for;
use crate::e2e::{Random, children, setting, signal};

/// Kills.
const ROUNDS: u64 = 10;

/// What is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Worker,
    /// The process that mounts.
    Frontend,
    /// The process that serves the mount.
    Server,
    Supervisor,
    /// All its processes at once; started again by hand.
    Host,
}

const VICTIMS: [Victim; 7] =
    [Victim::Worker, Victim::Worker, Victim::Frontend, Victim::Server, Victim::Supervisor, Victim::Host, Victim::Host];

/// Process ids of a host: supervisor, worker, frontend.
fn pids(host: &Host) -> Option<[u32; 3]> {
    let status = host.json(&["status"]);
    let up = |it: &Value| it["state"] == "up";
    let pid = |it: &Value| u32::try_from(it["pid"].as_u64()?).ok();
    let (disk, mount) = (&status["disks"][0], &status["mounts"][0]);
    if !up(disk) || !up(mount) {
        return None;
    }
    Some([pid(&status)?, pid(disk)?, pid(mount)?])
}

/// Wait until all of a host is up, and none of it in a process that was killed.
fn wait_until_up(lab: &Lab, at: usize, dead: &[u32]) -> [u32; 3] {
    let mut up = None;
    wait_for(
        "the host to be up again",
        || lab.logs(),
        || {
            up = pids(&lab.hosts[at]).filter(|pids| !pids.iter().any(|pid| dead.contains(pid)));
            up.is_some()
        },
    );
    up.unwrap()
}

/// Kill it; the processes that others must replace.
fn strike(lab: &mut Lab, at: usize, victim: Victim, random: &mut Random, dead: &[u32]) -> Vec<u32> {
    let [supervisor, worker, frontend] = wait_until_up(lab, at, dead);
    let kill = |pid: u32| {
        signal(pid, Signal::SIGKILL);
        vec![pid]
    };
    match victim {
        Victim::Worker => kill(worker),
        Victim::Frontend => kill(frontend),
        Victim::Server => {
            kill(children(frontend).first().copied().unwrap_or(frontend));
            vec![frontend]
        }
        Victim::Supervisor => kill(supervisor),
        Victim::Host => {
            lab.hosts[at].kill();
            // The others go on without it for some time.
            std::thread::sleep(Duration::from_millis(random.below(800)));
            lab.hosts[at].start("d", &["--no-mdns"]);
            Vec::new()
        }
    }
}

#[test]
fn nothing_is_lost_whoever_is_killed_on_three_hosts_at_work() {
    let Some(mut lab) = joined(3) else { return };
    let seed = Random::seed();
    println!("DELUGEFS_E2E_SEED={seed}");
    let mut random = Random::new(seed);
    for at in 0..3 {
        fs::create_dir(lab.hosts[at].file(&format!("h{at}"))).unwrap();
    }
    let mounts: Vec<PathBuf> = lab.hosts.iter().map(|host| host.path("m")).collect();
    let load = Load::start(&mounts, seed);
    let mut dead = [const { Vec::new() }; 3];
    for round in 0..setting("DELUGEFS_E2E_ROUNDS").unwrap_or(ROUNDS) {
        // The random moment.
        std::thread::sleep(Duration::from_millis(100 + random.below(700)));
        let at = random.below(3) as usize;
        let victim = *random.pick(&VICTIMS).unwrap();
        println!("round {round}: {victim:?} of host {at}");
        dead[at] = strike(&mut lab, at, victim, &mut random, &dead[at].clone());
        assert!(load.failures().is_empty(), "{}\n{}", load.failures().join("\n"), lab.logs());
    }
    for (at, dead) in dead.iter().enumerate() {
        wait_until_up(&lab, at, dead);
    }
    let failures = load.failures();
    let manifest = load.stop();
    assert!(failures.is_empty(), "{}\n{}", failures.join("\n"), lab.logs());
    let closed = manifest.values().filter(|known| matches!(known, Known::Closed(_))).count();
    println!("{} names, {closed} closed files", manifest.len());
    end_well(lab, &manifest);
}

/// All hosts agree, have everything, and leave nothing behind.
fn end_well(lab: Lab, manifest: &Manifest) {
    lab.wait_for_peers(&[0, 1, 2], 2);
    lab.wait_for_one_catalog(&[0, 1, 2]);
    for host in &lab.hosts {
        let mut wrong = Vec::new();
        let right = || {
            wrong = differences(manifest, &host.path("m"));
            wrong.is_empty()
        };
        wait_for("all that was closed", || lab.logs(), right);
        assert!(host.json(&["conflicts"])["paths"].as_array().unwrap().is_empty());
    }
    wait_for(
        "two copies of everything",
        || lab.hosts[0].says(&["status", "-x"]).1 + &lab.logs(),
        || copied(&lab, manifest),
    );
    let readers = [
        ("cannot be reached", "a reader finds the only disk with a content away"),
        ("no disk that holds the content", "the same"),
    ];
    lab.end(&Ending {
        expected: &[&KILLS[..], &readers].concat(),
        incomplete: Some("what was being fetched when a host was killed stays for the next time"),
        ..Ending::default()
    });
}

/// Whether what is not in the catalog itself is on two disks at least.
fn copied(lab: &Lab, manifest: &Manifest) -> bool {
    let host = &lab.hosts[0];
    let closed = manifest.iter().filter(|(_, known)| matches!(known, Known::Closed(_)));
    let paths: Vec<String> = closed.map(|(name, _)| host.file(name).to_str().unwrap().to_owned()).collect();
    let arguments: Vec<&str> = std::iter::once("whereis").chain(paths.iter().map(String::as_str)).collect();
    let answer = host.json(&arguments);
    let enough = |file: &Value| match file["place"].as_str() {
        Some("none" | "catalog") => true,
        Some("store" | "missing") => file["disk_ids"].as_array().is_some_and(|disks| disks.len() >= 2),
        _ => false,
    };
    answer.as_array().is_some_and(|files| files.len() == paths.len() && files.iter().all(enough))
}
