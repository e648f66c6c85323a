//! Processes are killed at random moments while programs write: nothing that a call has promised is lost.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::host::{Host, children, signal};
use super::random::Random;
use super::shelf::Shelf;
use super::writers::Writers;
use super::{setting, tree};

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Worker,
    /// The process that mounts; the one that serves follows.
    Frontend,
    /// The process that serves the mount.
    Server,
    /// `delugefs run` starts it again.
    Supervisor,
    /// Everything at once, `delugefs run` too.
    All,
}

#[test]
fn nothing_is_lost_when_the_worker_dies() {
    storm(&[Victim::Worker], 3);
}

#[test]
fn nothing_is_lost_when_the_frontend_dies() {
    storm(&[Victim::Frontend, Victim::Server], 3);
}

#[test]
fn nothing_is_lost_whoever_dies() {
    storm(&[Victim::Worker, Victim::Supervisor, Victim::Frontend, Victim::Server, Victim::All], 4);
}

/// A program that goes by path finds the dead mount, or the next one, and never the bare directory below: what it wrote there would be in
/// no catalog, and would keep the mount from coming back.
#[test]
fn nothing_goes_into_the_bare_directory() {
    let Some(mut host) = Host::new() else { return };
    host.start();
    let stop = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut made = Vec::new();
            for n in 0..1_000_000 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("gap{n}");
                if std::fs::write(host.mount().join(&name), &name).is_ok() {
                    made.push(name);
                }
            }
            made
        });
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..4 {
                let frontend = host.pids().frontends[0];
                signal(children(frontend).first().copied().unwrap_or(frontend), Signal::SIGKILL);
                host.wait_until_up(&[frontend]);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let made = writer.join().unwrap();
        rounds.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        made
    });
    for name in &made {
        let found = std::fs::read(host.mount().join(name));
        assert!(found.as_ref().is_ok_and(|found| found == name.as_bytes()), "{name}: {found:?}\n{}", host.logs());
    }
    assert_eq!(host.stop().0, 0, "{}", host.logs());
    host.assert_gone();
    assert_eq!(std::fs::read_dir(host.mount()).unwrap().count(), 0, "something is in the bare directory");
}

fn storm(victims: &[Victim], rounds: u64) {
    let Some(mut host) = Host::new() else { return };
    let seed = Random::seed();
    println!("DELUGEFS_E2E_SEED={seed}");
    let mut random = Random::new(seed);
    host.start();
    let writers = Writers::start(&host.mount(), 4, seed);
    for round in 0..setting("DELUGEFS_E2E_ROUNDS").unwrap_or(rounds) {
        let victim = *random.pick(victims).unwrap();
        // The random moment.
        std::thread::sleep(Duration::from_millis(20 + random.below(700)));
        let before = writers.operations();
        writers.expect_lost_frontend(!matches!(victim, Victim::Worker | Victim::Supervisor));
        let dead = strike(&mut host, victim);
        host.wait_until_up(&dead);
        let failures = writers.check(|| host.logs());
        writers.expect_lost_frontend(false);
        println!("round {round}: {victim:?} killed after {before} calls, {} now", writers.operations());
        assert!(failures.is_empty(), "{}\n{}", failures.join("\n"), host.logs());
    }
    let (shelves, failures) = writers.stop();
    assert!(failures.is_empty(), "{}\n{}", failures.join("\n"), host.logs());
    end_well(&mut host, &shelves);
}

/// Kill it; the processes that have to be replaced.
fn strike(host: &mut Host, victim: Victim) -> Vec<u32> {
    let pids = host.pids();
    let [supervisor, worker, frontend] =
        [pids.supervisor, pids.worker, pids.frontends.first().copied()].map(|pid| pid.expect("all are up"));
    match victim {
        Victim::Worker => signal(worker, Signal::SIGKILL),
        Victim::Frontend => signal(frontend, Signal::SIGKILL),
        Victim::Server => signal(children(frontend).first().copied().unwrap_or(frontend), Signal::SIGKILL),
        Victim::Supervisor => signal(supervisor, Signal::SIGKILL),
        Victim::All => {
            host.kill_run();
            let server = children(frontend);
            for pid in [supervisor, frontend, worker].into_iter().chain(server) {
                signal(pid, Signal::SIGKILL);
            }
            host.wait_until_gone(&[supervisor, frontend, worker]);
            host.start();
        }
    }
    match victim {
        Victim::Worker => vec![worker],
        Victim::Frontend | Victim::Server => vec![frontend],
        Victim::Supervisor => vec![supervisor],
        Victim::All => vec![supervisor, worker, frontend],
    }
}

/// Stop, and look at everything that is left: on the disk, in git, and once more through a mount.
pub fn end_well(host: &mut Host, shelves: &[Shelf]) {
    let before = tree::read(&host.mount()).unwrap();
    for (number, shelf) in shelves.iter().enumerate() {
        if let Err(what) = shelf.matches(&below(&before, &format!("w{number}/"))) {
            panic!("writer {number}: {what}\n{}", host.logs());
        }
    }
    let (code, said) = host.says(&["scrub"]);
    assert_eq!(code, 0, "scrub: {said}\n{}", host.logs());
    let (code, _) = host.stop();
    assert_eq!(code, 0, "{}", host.logs());
    host.assert_gone();
    assert_at_rest(&host.disk(), &["staging", "incoming"], || host.logs());

    host.start();
    let after = tree::read(&host.mount()).unwrap();
    let differences = tree::differences(&before, &after);
    assert!(differences.is_empty(), "after a clean stop and a start:\n{differences}\n{}", host.logs());
    let (code, said) = host.says(&["scrub"]);
    assert_eq!(code, 0, "scrub: {said}\n{}", host.logs());
    assert_eq!(host.stop().0, 0, "{}", host.logs());
    host.assert_gone();
}

/// What a writer's folder has.
pub fn below(tree: &tree::Tree, prefix: &str) -> tree::Tree {
    let inside = tree.iter().filter_map(|(name, seen)| Some((name.strip_prefix(prefix)?.to_owned(), seen.clone())));
    inside.collect()
}

/// A disk that was stopped cleanly has no work left to do, and these folders are empty.
pub fn assert_at_rest(disk: &Path, empty: &[&str], why: impl Fn() -> String) {
    for folder in empty {
        let names = fs::read_dir(disk.join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        // The folder the torrent session works in stays, so that there is room for it on a full disk.
        let left: Vec<_> = names.filter(|name| name != ".session").collect();
        assert!(left.is_empty(), "{folder}/ has {left:?}\n{}", why());
    }
    let state = fs::read_to_string(disk.join("journal/state")).unwrap();
    assert!(state.contains(" clean"), "journal/state says {state}\n{}", why());
    let git = Command::new("git")
        .arg("--git-dir")
        .arg(disk.join("catalog.git"))
        .args(["fsck", "--full", "--strict"])
        .output();
    match git {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && !said.contains("error"), "git fsck: {said}");
        }
        Err(error) => println!("git fsck left out: {error}"),
    }
}
