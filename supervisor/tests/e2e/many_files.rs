//! What a mount is like that has very many files: a measurement, in the README.
//!
//! `DELUGEFS_FIGURES_FILES` is how many (default 1,000,000, in folders of 100; about ten minutes). `DELUGEFS_FIGURES_DIR` is where the folders are
//! made (default /tmp).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::host::{Host, usage};
use super::{setting, wait_for};

const IN_FOLDER: u64 = 100;
/// Changes that are timed each by itself.
const CHANGES: u64 = 1000;

#[test]
#[ignore = "a measurement, in the README; run with DELUGEFS_BIN set to a release build"]
fn a_million_files() {
    let parent = std::env::var_os("DELUGEFS_FIGURES_DIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let Some(mut host) = Host::new_in(&parent) else { return };
    host.start();
    let folders = setting("DELUGEFS_FIGURES_FILES").unwrap_or(1_000_000).div_ceil(IN_FOLDER);
    let files = folders * IN_FOLDER;
    let start = Instant::now();
    for folder in 0..folders {
        let dir = host.mount().join(format!("d{folder}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..IN_FOLDER {
            fs::write(dir.join(format!("f{file}")), format!("{folder} {file}")).unwrap();
        }
    }
    say(&format!("{files} small files made"), files as f64 / start.elapsed().as_secs_f64(), "files/s");
    wait_until_committed(&host);
    say("memory then", usage(&host.path("r")).1 as f64, "MiB");
    let changed = spread(folders).map(|folder| timed(|| fs::write(of(&host, folder).join("new"), b"x").unwrap()));
    say_times("one more", changed.collect());
    let renamed = spread(folders).map(|folder| {
        let dir = of(&host, folder);
        timed(|| fs::rename(dir.join("new"), dir.join("f0")).unwrap())
    });
    say_times("renamed over another", renamed.collect());
    wait_until_committed(&host);
    let bytes = bytes_below(&host.disk().join("catalog.git"));
    say("catalog on the disk", bytes as f64 / files as f64, "bytes a file");

    let start = Instant::now();
    assert_eq!(host.stop().0, 0);
    say("stop", start.elapsed().as_secs_f64(), "s");
    let start = Instant::now();
    host.start();
    say("start until the mount answers", start.elapsed().as_secs_f64(), "s");
    let start = Instant::now();
    let last = of(&host, folders - 1).join("f1");
    assert_eq!(fs::read(&last).unwrap(), format!("{} 1", folders - 1).into_bytes());
    say("the first file read", start.elapsed().as_secs_f64() * 1000.0, "ms");
    let start = Instant::now();
    assert_eq!(walk(&host.mount()), folders * (IN_FOLDER + 1));
    say("every name and attribute", start.elapsed().as_secs_f64(), "s");
    say("memory then", usage(&host.path("r")).1 as f64, "MiB");
    let (cpu, start) = (usage(&host.path("r")).0, Instant::now());
    let scrubbed = host.says(&["scrub"]);
    assert_eq!(scrubbed.0, 0, "{}", scrubbed.1);
    say("scrub", start.elapsed().as_secs_f64(), "s");
    say("CPU of that", usage(&host.path("r")).0 - cpu, "s");
    assert_eq!(host.stop().0, 0);
}

fn of(host: &Host, folder: u64) -> PathBuf {
    host.mount().join(format!("d{folder}"))
}

/// Folders all over the tree.
fn spread(folders: u64) -> impl Iterator<Item = u64> {
    let count = CHANGES.min(folders);
    (0..count).map(move |n| n * folders / count)
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn wait_until_committed(host: &Host) {
    let worker = || host.status()["disks"][0]["worker"].clone();
    let is_done = || worker()["staged_files"] == 0 && worker()["uncommitted_changes"] == 0;
    wait_for("everything to be committed", || host.logs(), is_done);
}

fn walk(dir: &Path) -> u64 {
    let below = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let is_dir = entry.metadata().unwrap().is_dir();
        1 + if is_dir { walk(&entry.path()) } else { 0 }
    };
    fs::read_dir(dir).unwrap().map(below).sum()
}

fn bytes_below(dir: &Path) -> u64 {
    let bytes = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        if meta.is_dir() { bytes_below(&entry.path()) } else { meta.len() }
    };
    fs::read_dir(dir).unwrap().map(bytes).sum()
}

fn say(what: &str, figure: f64, unit: &str) {
    println!("| {what} | {figure:.1} {unit} |");
}

fn say_times(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let ms = |at: usize| times[at.min(times.len() - 1)].as_secs_f64() * 1000.0;
    println!("| {what}, p50 / p99 | {:.2} / {:.2} ms |", ms(times.len() / 2), ms(times.len() * 99 / 100));
}
