//! How fast a file is sealed: `cargo run --release --example seal_bench -- DIR [MIB]` makes a disk folder in DIR, writes
//! MIB (default 1024) of noise through a staging file, seals it, and prints what the steps cost.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use delugefs_diskworker::content::{ContentStore, Seal};
use delugefs_diskworker::folder::DiskFolder;
use delugefs_proto::ids::Ino;
use nix::sys::resource::{UsageWho, getrusage};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().context("usage: seal_bench DIR [MIB]")?);
    let mib: u64 = args.next().map_or(Ok(1024), |text| text.parse()).context("MIB is a number")?;
    let root = dir.join(format!("seal_bench.{}", std::process::id()));
    let measured = measure(&root, mib);
    std::fs::remove_dir_all(&root)?;
    measured
}

fn measure(root: &std::path::Path, mib: u64) -> anyhow::Result<()> {
    let store = ContentStore::open(Arc::new(DiskFolder::create(root, "bench", None)?), 0)?;
    let file = store.stage_new(Ino(16))?;
    let mut state = 1u64;
    let mut block = vec![0; 1 << 20];
    step("write", mib, || {
        for n in 0..mib {
            for word in block.chunks_exact_mut(8) {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                word.copy_from_slice(&state.to_le_bytes());
            }
            file.write_all_at(&block, n << 20)?;
        }
        Ok(())
    })?;
    drop(file);
    let sealed = step("hash (SHA-256 and pieces)", mib, || match store.begin_seal(Ino(16))? {
        Seal::Large(job) => Ok(job.run()?),
        _ => anyhow::bail!("choose a larger size"),
    })?;
    step("rename", mib, || Ok(store.finish_seal(&sealed)?))?;
    step("barrier (fsync)", mib, || Ok(store.barrier()?))?;
    step("check (SHA-256 alone)", mib, || Ok(store.check(sealed.content, sealed.size)?))?;
    step("copy to change", mib, || Ok(store.stage_copy(Ino(17), sealed.content, sealed.size, u64::MAX, None)?))?;
    Ok(())
}

/// Do one step and print its speed by the clock and per second of CPU.
fn step<T>(name: &str, mib: u64, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let (begin, cpu) = (Instant::now(), cpu()?);
    let done = act()?;
    let (wall, cpu) = (begin.elapsed(), self::cpu()? - cpu);
    let speed = |time: Duration| mib as f64 * 1.048_576 / time.as_secs_f64().max(1e-6);
    println!(
        "{name:<26} {:>8.3} s wall {:>9.0} MB/s {:>8.3} s CPU {:>9.0} MB/s per core",
        wall.as_secs_f64(),
        speed(wall),
        cpu.as_secs_f64(),
        speed(cpu)
    );
    Ok(done)
}

fn cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |time: nix::sys::time::TimeVal| (time.tv_sec() as u64) * 1_000_000 + time.tv_usec() as u64;
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}
