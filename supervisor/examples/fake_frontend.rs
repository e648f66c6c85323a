//! Stands in for `delugefs-fusefront` in this crate's tests. A file `fake-frontend` in the run directory changes its
//! manners: `exit-before-ready CODE`; `mount`: really mount (as root, with /dev/fuse), but never answer the kernel, so
//! that whoever touches the mountpoint is caught; `stubborn`: do not end on SIGTERM. `--probe DIR` as the real one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use delugefs_proto::exit::{Exit, UserError, report};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => Exit::Ok.into(),
        Err(error) => report("delugefs-fusefront", error.as_ref()).into(),
    }
}

async fn serve() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| args.iter().position(|arg| arg == flag).and_then(|at| args.get(at + 1)).cloned();
    if let Some(dir) = value("--probe") {
        let asked = std::fs::symlink_metadata(Path::new(&dir).join("nobody"));
        let is_dead = asked.is_err_and(|error| error.raw_os_error() == Some(nix::libc::ENOTCONN));
        anyhow::ensure!(is_dead, "it lives");
        return Ok(());
    }
    let need = |flag: &str| value(flag).ok_or_else(|| UserError::new(Exit::Usage, format!("{flag} is missing")));
    let (worker, dir) = (PathBuf::from(need("--worker")?), PathBuf::from(need("--mount")?));
    let run_dir = worker.parent().context("the socket is in the run directory")?;
    let manners = std::fs::read_to_string(run_dir.join("fake-frontend")).unwrap_or_default();
    let manner =
        |word: &str| manners.lines().find_map(|line| line.strip_prefix(word).map(|rest| rest.trim().to_string()));
    eprintln!("fake frontend started with {}", args[1..].join(" "));
    if let Some(code) = manner("exit-before-ready") {
        let exit = Exit::from_code(code.parse()?);
        return Err(UserError::new(exit, "told to fail").hint("tell it to mount").into());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let device = manner("mount").map(|_| mount_unanswered(&dir)).transpose()?;
    if device.is_none() && !dir.is_dir() {
        let error = UserError::new(Exit::BadMountpoint, format!("{} is no folder", dir.display()));
        return Err(error.hint("make the folder first").into());
    }
    println!("ready");
    terminate.recv().await;
    if manner("stubborn").is_some() {
        std::future::pending::<()>().await;
    }
    if device.is_some() {
        delugefs_supervisor::sys::detach(&dir)?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn mount_unanswered(_: &Path) -> anyhow::Result<std::fs::File> {
    anyhow::bail!("only on Linux")
}

#[cfg(target_os = "linux")]
fn mount_unanswered(dir: &Path) -> anyhow::Result<std::fs::File> {
    if delugefs_supervisor::sys::delugefs_mounts()?.iter().any(|mount| mount == dir) {
        delugefs_supervisor::sys::detach(dir).context("cannot detach the dead mount")?;
    }
    use nix::mount::{MsFlags, mount};
    use std::os::fd::AsRawFd;
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("fake"), dir, Some("fuse.delugefs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))?;
    Ok(device)
}
