//! What a mount costs: the same work on the bare disk, through DelugeFS, and through bindfs and mergerfs, the FUSE
//! filesystems of Debian that only pass things on. All in one run and in turns, since only the ratios mean something.
//!
//! `DELUGEFS_FIGURES_SCALE` in per cent makes it shorter (default 100, about four minutes). `DELUGEFS_FIGURES_DIR` is where the
//! folders are made (default /tmp). It should be on a file system with a journal: ext4 without one looks at every inode that
//! was removed in the last minutes before it makes a file, and is what is measured then.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::host::{Host, which};
use super::work::{self, Work};
use super::{setting, wait_for};

/// Each work is done so often in each place, in turns; the best counts.
const ROUNDS: usize = 3;

/// A folder to work in.
struct Place {
    name: &'static str,
    dir: PathBuf,
    /// Mounted here, to be detached.
    is_mount: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_mount {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        }
    }
}

impl Place {
    fn plain(name: &'static str, dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).unwrap();
        Self { name, dir, is_mount: false }
    }

    /// One of the filesystems to compare with, if it is installed.
    fn other(host: &Host, name: &'static str, arguments: &[&str]) -> Option<Self> {
        which(name)?;
        let (below, dir) = (host.path(&format!("{name}-below")), host.path(name));
        fs::create_dir(&below).unwrap();
        fs::create_dir(&dir).unwrap();
        let status = Command::new(name).args(arguments).arg(&below).arg(&dir).status().unwrap();
        assert!(status.success(), "{name} does not mount");
        Some(Self { name, dir, is_mount: true })
    }
}

#[test]
#[ignore = "a measurement, in the README; run with DELUGEFS_BIN set to a release build, and bindfs and mergerfs installed"]
fn mount_figures() {
    let parent = std::env::var_os("DELUGEFS_FIGURES_DIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let Some(mut host) = Host::new_in(&parent) else { return };
    host.start();
    let scale = setting("DELUGEFS_FIGURES_SCALE").unwrap_or(100);
    let mut places = vec![Place::plain("disk", host.path("plain")), Place::plain("delugefs", host.mount().join("w"))];
    places.extend(Place::other(&host, "bindfs", &[]));
    places.extend(Place::other(&host, "mergerfs", &["-o", "cache.files=auto-full"]));
    println!("| work | {} | to the better other | to the disk |", names(&places));
    println!("|---|{}---|---|", "---|".repeat(places.len()));
    for work in work::all() {
        let mut best = vec![0.0_f64; places.len()];
        for round in 0..ROUNDS {
            for (place, best) in places.iter().zip(&mut best) {
                *best = best.max(measure(&host, place, &work, round, scale));
            }
        }
        let others = best[2..].iter().copied().fold(0.0, f64::max);
        let rates: Vec<String> = best.iter().map(|rate| format!("{rate:.0}")).collect();
        let ratio = |of: f64| if of > 0.0 { format!("{:.2}", best[1] / of) } else { "-".into() };
        println!("| {} | {} | {} | {} |", work.name, rates.join(" | "), ratio(others), ratio(best[0]));
    }
    drop(places);
    after_a_remount(&mut host, scale);
    assert_eq!(host.stop().0, 0);
}

fn names(places: &[Place]) -> String {
    let names: Vec<&str> = places.iter().map(|place| place.name).collect();
    names.join(" | ")
}

/// One time one work in one place, in a folder of its own: units per second.
fn measure(host: &Host, place: &Place, work: &Work, round: usize, scale: u64) -> f64 {
    let dir = place.dir.join(format!("r{round}"));
    fs::create_dir(&dir).unwrap();
    let count = usize::try_from(work.count as u64 * scale / 100).unwrap().max(1);
    let prepared = (work.prepare)(&dir, count);
    wait_until_sealed(host, place);
    let start = Instant::now();
    let done = (work.run)(&dir, count, prepared);
    let rate = done / start.elapsed().as_secs_f64();
    (work.check)(&dir, count);
    match fs::remove_dir_all(&dir) {
        // libfuse hides a file whose closing it has not heard of yet, instead of removing it; ours is not made with it.
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty && place.name != "delugefs" => {
            let why = || format!("{} in {}", place.name, dir.display());
            wait_for("hidden files to go", why, || fs::remove_dir_all(&dir).is_ok());
        }
        removed => removed.unwrap_or_else(|error| panic!("{}: {error}", place.name)),
    }
    // What one work leaves to do must not be done during the next.
    wait_until_sealed(host, place);
    nix::unistd::sync();
    rate
}

fn wait_until_sealed(host: &Host, place: &Place) {
    if place.name == "delugefs" {
        let staged = || host.status()["disks"][0]["worker"]["staged_files"].as_u64();
        wait_for("everything to be sealed", || host.logs(), || staged() == Some(0));
    }
}

/// How long it takes to list a tree that was made before the mount.
fn after_a_remount(host: &mut Host, scale: u64) {
    let (folders, files) = ((450 * scale / 100).max(1), 100);
    for folder in 0..folders {
        let dir = host.mount().join(format!("d{folder}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..files {
            fs::File::create(dir.join(format!("f{file}"))).unwrap();
        }
    }
    assert_eq!(host.stop().0, 0);
    host.start();
    let (start, mut count) = (Instant::now(), 0);
    count_below(&host.mount(), &mut count);
    let took: Duration = start.elapsed();
    assert_eq!(count, folders * (files + 1) + 1, "and the folder of the works");
    println!("every name and attribute of {count} files after a remount: {:.2} s", took.as_secs_f64());
}

fn count_below(dir: &Path, count: &mut u64) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        *count += 1;
        if entry.metadata().unwrap().is_dir() {
            count_below(&entry.path(), count);
        }
    }
}
