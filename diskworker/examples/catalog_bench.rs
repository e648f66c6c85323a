//! Measures the catalog with many files: `cargo run --release -p delugefs-diskworker --example catalog_bench [FILES] [FOLDER]`.
//!
//! Times are CPU milliseconds of this process, so syncing to a disk does not count; wall time is shown beside. The
//! catalog is made in a folder of its own in FOLDER (default: the system's temporary folder) and removed afterwards.

use std::time::Instant;

use anyhow::{Context, Result};
use delugefs_diskworker::catalog::{Catalog, Changes, ImportLimits};
use delugefs_proto::ids::{ActorId, ContentId, Ino};
use delugefs_proto::record::{Body, Data, Dot, Element, Hlc, Key, Name, Perm, VersionVector, Xattrs};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// Files in one commit while building.
const BATCH_FILES: u64 = 20_000;

/// xorshift64*: the same catalog every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

struct Timer(Instant, i64);

fn cpu_us() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("getrusage answers for this process");
    usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
}

impl Timer {
    fn start() -> Self {
        Self(Instant::now(), cpu_us())
    }

    /// Print the time since the start, divided by a number of repetitions.
    fn print(&self, what: &str, repetitions: u32) {
        let wall_ms = self.0.elapsed().as_secs_f64() * 1e3 / f64::from(repetitions);
        let cpu_ms = (cpu_us() - self.1) as f64 / 1e3 / f64::from(repetitions);
        println!("{what}: {cpu_ms:.3} ms CPU ({wall_ms:.3} ms)");
    }
}

struct Maker {
    random: Random,
    actor: ActorId,
    ctx: VersionVector,
}

impl Maker {
    fn new(actor: u64, ctx: VersionVector) -> Self {
        Self { random: Random(actor | 1), actor: ActorId(actor), ctx }
    }

    fn dot(&mut self) -> Dot {
        let seq = self.ctx.0.get(&self.actor).copied().unwrap_or_default() + 1;
        let dot = Dot { actor: self.actor, seq };
        self.ctx.advance(dot);
        dot
    }

    /// A file as the namespace makes it: content, attributes, times.
    fn file(&mut self) -> Vec<Element> {
        let (dot, ino) = (self.dot(), Ino(self.random.next() >> 2 | 16));
        let mut content = [0; 32];
        content.chunks_mut(8).for_each(|part| part.copy_from_slice(&self.random.next().to_le_bytes()));
        let hlc = Hlc(1_700_000_000_000_000_000 + dot.seq * 1_000_003);
        let data =
            Data::Stored { content: ContentId(content), size: 5_000 + self.random.below(4_000_000), pieces: None };
        let perm = Perm { mode: 0o644, uid: 1001, gid: 1001 };
        let mtime_ns = hlc.0 as i64 - self.random.below(1 << 50) as i64;
        vec![
            Element { dot, hlc, body: Body::Content { ino, data } },
            Element { dot, hlc, body: Body::Attrs { ino, perm, xattrs: Xattrs::new() } },
            Element { dot, hlc, body: Body::Times { ino, mtime_ns, atime_ns: mtime_ns } },
        ]
    }

    fn directory(&mut self, changes: &mut Changes, parent: Ino, name: &str) -> Result<Ino> {
        let (dot, ino) = (self.dot(), Ino(self.random.next() >> 2 | 16));
        let (hlc, name) = (Hlc(1_700_000_000_000_000_000 + dot.seq), Name::new(name.as_bytes())?);
        let perm = Perm { mode: 0o755, uid: 1001, gid: 1001 };
        let entry = Element { dot, hlc, body: Body::Dir { ino } };
        changes.sets.insert(Key::Entry(parent, name.clone()), vec![entry]);
        let times = Body::Times { ino, mtime_ns: hlc.0 as i64, atime_ns: hlc.0 as i64 };
        let head = Body::Head { parent, name, perm, xattrs: Xattrs::new() };
        let header = vec![Element { dot, hlc, body: times }, Element { dot, hlc, body: head }];
        changes.sets.insert(Key::header(ino), header);
        Ok(ino)
    }

    /// One changed file in each of so many random directories.
    fn edits(&mut self, dirs: &[Ino], count: u64) -> Result<Changes> {
        let mut changes = Changes::default();
        for _ in 0..count {
            let dir = dirs[self.random.below(dirs.len() as u64) as usize];
            let name = Name::new(format!("new {:07}.flac", self.random.below(10_000_000)).as_bytes())?;
            changes.sets.insert(Key::Entry(dir, name), self.file());
        }
        Ok(changes)
    }
}

/// How many files a directory has: albums, photo folders, and a rare heap.
fn directory_files(random: &mut Random) -> u64 {
    match random.below(1000) {
        0 => 20_000,
        1..=30 => 200 + random.below(400),
        _ => 8 + random.below(16),
    }
}

fn build(catalog: &Catalog, files: u64) -> Result<(Vec<Ino>, VersionVector)> {
    let (mut maker, mut random) = (Maker::new(1, VersionVector::default()), Random(99));
    let (mut changes, mut dirs, mut in_batch) = (Changes::default(), Vec::new(), 0);
    let (mut parent, mut made) = (Ino::ROOT, 0);
    while made < files {
        if dirs.len() % 40 == 0 {
            parent = maker.directory(&mut changes, Ino::ROOT, &format!("Artist {:05}", dirs.len() / 40))?;
        }
        let dir = maker.directory(&mut changes, parent, &format!("Some album title {:05}", dirs.len()))?;
        dirs.push(dir);
        for n in 0..directory_files(&mut random).min(files - made) {
            let name = format!("{:02} track title {n:05}.flac", n % 30);
            changes.sets.insert(Key::Entry(dir, Name::new(name.as_bytes())?), maker.file());
            (made, in_batch) = (made + 1, in_batch + 1);
            if in_batch == BATCH_FILES {
                catalog.commit(&std::mem::take(&mut changes), &maker.ctx)?;
                in_batch = 0;
            }
        }
    }
    catalog.commit(&changes, &maker.ctx)?;
    Ok((dirs, maker.ctx))
}

fn disk_bytes(dir: &std::path::Path) -> Result<u64> {
    let entries = std::fs::read_dir(dir.join("objects/pack"))?;
    entries.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

fn rss_mib() -> i64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss() >> 10)
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let files: u64 = args.next().map_or(Ok(1_000_000), |text| text.parse()).context("FILES is a number")?;
    let folder = args.next().map_or_else(std::env::temp_dir, Into::into);
    let scratch = tempfile::tempdir_in(folder)?;
    let dir = scratch.path().join("catalog.git");

    let catalog = Catalog::create(&dir)?;
    let timer = Timer::start();
    let (dirs, ctx) = build(&catalog, files)?;
    timer.print(&format!("build {files} files in {} directories, {} packs", dirs.len(), catalog.packs()), 1);
    let timer = Timer::start();
    catalog.consolidate(u64::MAX)?;
    timer.print("consolidate to one pack", 1);
    println!("on disk: {:.1} bytes per file", disk_bytes(&dir)? as f64 / files as f64);
    drop(catalog);

    let timer = Timer::start();
    let catalog = Catalog::open(&dir)?;
    timer.print("open", 1);
    let mut random = Random(7);
    for pass in ["first", "second"] {
        let timer = Timer::start();
        let mut entries = 0;
        for _ in 0..1000 {
            entries += catalog.directory(dirs[random.below(dirs.len() as u64) as usize])?.len();
        }
        timer.print(&format!("read a random directory, {pass} time ({entries} entries in 1,000)"), 1000);
    }

    let (mut maker, before) = (Maker::new(2, ctx.clone()), disk_bytes(&dir)?);
    let timer = Timer::start();
    for _ in 0..30 {
        catalog.commit(&maker.edits(&dirs, 1)?, &maker.ctx)?;
    }
    timer.print("commit one change", 30);
    println!("one change writes {} bytes", (disk_bytes(&dir)? - before) / 30);
    let timer = Timer::start();
    catalog.commit(&maker.edits(&dirs, 1000)?, &maker.ctx)?;
    timer.print("commit 1,000 changes in as many directories", 1);
    let timer = Timer::start();
    catalog.consolidate(u64::MAX)?;
    timer.print(&format!("consolidate again, to {} packs", catalog.packs()), 1);

    // Another disk with the same state.
    let other = Catalog::create(&scratch.path().join("other.git"))?;
    let (mut pack, timer) = (Vec::new(), Timer::start());
    let commit = export(&catalog, None, &mut pack)?;
    timer.print(&format!("export everything, {} bytes", pack.len()), 1);
    let timer = Timer::start();
    let theirs = other.import(&mut pack.as_slice(), commit, &ImportLimits::default(), None)?;
    timer.print("import everything", 1);
    drop(pack);
    let timer = Timer::start();
    println!("joining changed {} keys", other.join(&theirs)?.changed.len());
    timer.print("join it into nothing", 1);
    drop(theirs);
    for count in [1, 1000] {
        let common = catalog.state();
        let (mut a, mut b) = (Maker::new(10 + count, common.ctx.clone()), Maker::new(11 + count, common.ctx));
        catalog.commit(&a.edits(&dirs, count)?, &a.ctx)?;
        other.commit(&b.edits(&dirs, count)?, &b.ctx)?;
        let (mut pack, timer) = (Vec::new(), Timer::start());
        let commit = export(&other, Some(common.commit), &mut pack)?;
        timer.print(&format!("export {count}, {} bytes", pack.len()), 1);
        let timer = Timer::start();
        let theirs = catalog.import(&mut pack.as_slice(), commit, &ImportLimits::default(), None)?;
        timer.print(&format!("import {count}"), 1);
        let timer = Timer::start();
        let joined = catalog.join(&theirs)?;
        timer.print(&format!("join {count} + {count}, {} changed", joined.changed.len()), 1);
        let (mut pack, back) = (Vec::new(), other.state().commit);
        let commit = export(&catalog, Some(back), &mut pack)?;
        let theirs = other.import(&mut pack.as_slice(), commit, &ImportLimits::default(), None)?;
        other.join(&theirs)?;
        anyhow::ensure!(other.state().commit == catalog.state().commit, "the two diverged");
    }
    println!("largest resident size: {} MiB", rss_mib());
    let timer = Timer::start();
    let report = catalog.verify()?;
    timer.print(&format!("verify {} objects, {} problems", report.objects, report.problems.len()), 1);
    anyhow::ensure!(report.problems.is_empty(), "{:?}", report.problems);
    Ok(())
}

fn export(catalog: &Catalog, have: Option<git2::Oid>, out: &mut dyn std::io::Write) -> anyhow::Result<git2::Oid> {
    let state = catalog.state();
    catalog.export(&state, have, out)?;
    Ok(state.commit)
}
