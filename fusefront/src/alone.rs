//! Serving as a plain user: one process, which mounts for its own user and unmounts on a signal.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use delugefs_proto::exit::{Exit, UserError};
use nix::sys::signal::{SigSet, Signal};

use crate::cli::Args;
use crate::serve::Server;
use crate::{mounts, os, privileges};

/// How long a busy mount is waited for before it is detached.
const UNMOUNT_WAIT: Duration = Duration::from_secs(2);
const UNMOUNT_PAUSE: Duration = Duration::from_millis(100);

/// Mount and serve until it is over.
pub fn run(args: &Args, dir: &Path) -> anyhow::Result<Exit> {
    if args.user.is_some() {
        let message = "only root can serve as another user";
        return Err(UserError::new(Exit::NotPermitted, message).hint("leave --user out, or run as root").into());
    }
    privileges::raise_descriptor_limit();
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    // Before any thread is there: all inherit it.
    signals.thread_block().context("blocking signals")?;
    let probe = |dir: &Path| if mounts::is_dead(dir) { mounts::Liveness::Dead } else { mounts::Liveness::Alive };
    let dir = mounts::prepare(dir, args.exact, probe)?;
    let server = Arc::new(Server::connect(args)?);
    mounts::clear(&dir, probe, |dir| os::unmount_as_user(dir, true))?;
    mounts::check_empty(&dir)?;
    let fuse = os::mount_as_user(&dir, &server.cluster)?;
    tracing::info!(dir = %dir.display(), "mounted for this user only");
    let session = server.attach(fuse)?;
    {
        let (server, dir) = (server.clone(), dir.clone());
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            match signals.wait() {
                Ok(signal) => tracing::info!(%signal, "unmounting"),
                Err(error) => tracing::error!(%error, "cannot wait for signals"),
            }
            // What unmounts is another program, which cannot be started without.
            privileges::use_descriptor_reserve();
            if !unmount(&dir) {
                // Detached but in use: what is still open in it cannot be served any longer.
                server.finish();
                std::process::exit(Exit::Ok as i32);
            }
        })?;
    }
    println!("ready");
    std::io::stdout().flush().context("saying ready")?;
    let served = session.run();
    server.finish();
    served.context("serving the mount")?;
    Ok(Exit::Ok)
}

/// Whether it was free; else it is detached.
fn unmount(dir: &Path) -> bool {
    let deadline = Instant::now() + UNMOUNT_WAIT;
    loop {
        match os::unmount_as_user(dir, false) {
            Ok(()) => return true,
            Err(_) if Instant::now() < deadline => std::thread::sleep(UNMOUNT_PAUSE),
            Err(error) => {
                tracing::warn!(%error, "in use; detaching");
                if let Err(error) = os::unmount_as_user(dir, true) {
                    tracing::error!(%error, "cannot unmount");
                }
                return false;
            }
        }
    }
}
