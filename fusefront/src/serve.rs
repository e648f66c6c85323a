//! The serving half: linked to the worker first, then attached to the kernel, then served until the mount is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::Receiver;
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::ids::Ino;
use delugefs_proto::local::client::refusal;
use fuser::Session;
use nix::errno::Errno;
use parking_lot::Mutex;

use crate::adapter::{self, Adapter};
use crate::cli::Args;
use crate::events::Events;
use crate::fs::{Fs, Invalidation};
use crate::os::FuseKernel;
use crate::pool::Pool;
use crate::privileges;
use crate::worker::{FAILOVER_AFTER, Worker};

/// How long the end waits for operations under way.
const DRAIN_WAIT: Duration = Duration::from_secs(20);

/// A file system linked to its worker.
pub struct Server {
    fs: Arc<Fs>,
    pool: Arc<Pool>,
    events: Mutex<Option<Events>>,
    invalidations: Receiver<Invalidation>,
    /// Name of the cluster.
    pub cluster: String,
}

impl Server {
    /// Reach the worker, and make sure it is the right one.
    pub fn connect(args: &Args) -> anyhow::Result<Self> {
        let socket = args.worker.as_deref().context("no socket given")?;
        let (sender, invalidations) = crossbeam_channel::unbounded();
        let mut worker = Worker::new(socket);
        if let Some(folder) = &args.fallback {
            worker = worker.with_fallback(folder, FAILOVER_AFTER);
        }
        if let Some(dir) = &args.mount {
            worker = worker.mounted_on(dir);
        }
        let fs = Arc::new(Fs::new(worker, args.cache_entries, sender));
        let (events, welcome) = Events::start(fs.clone()).map_err(|error| refused(socket, &error))?;
        let server = Self {
            fs,
            pool: Arc::default(),
            events: Mutex::new(Some(events)),
            invalidations,
            cluster: welcome.cluster,
        };
        if let Some(name) = &args.name
            && *name != server.cluster
        {
            let message = format!("the disk belongs to the cluster {}, not to {name}", server.cluster);
            return Err(UserError::new(Exit::WrongCluster, message).hint("look at `delugefs disks`").into());
        }
        anyhow::ensure!(welcome.root == Ino::ROOT.0, "the diskworker's root is inode {:x}, not 1", welcome.root);
        tracing::info!(cluster = %server.cluster, disk = %welcome.disk_id, "linked to the diskworker");
        Ok(server)
    }

    /// Answer the kernel's greeting on this descriptor of /dev/fuse.
    pub fn attach(&self, fuse: OwnedFd) -> anyhow::Result<Session<Adapter>> {
        if cfg!(target_os = "linux") {
            self.fs.hold_back();
        }
        delugefs_proto::memory::give_back_when_idle();
        let (fs, pool, invalidations) = (self.fs.clone(), self.pool.clone(), self.invalidations.clone());
        let session = adapter::connect(fs, pool, fuse, invalidations, FuseKernel::OURS);
        session.context("answering the kernel")
    }

    /// Hand everything over to the worker, once; nothing is served any more.
    pub fn finish(&self) {
        let Some(events) = self.events.lock().take() else { return };
        // A file can be closed only with a connection to tell the worker.
        privileges::use_descriptor_reserve();
        // Programs that still use a detached mount would keep the pool busy for ever.
        self.pool.close();
        if !self.pool.drain(DRAIN_WAIT) {
            tracing::warn!("giving up on operations under way");
        }
        self.fs.release_all();
        events.stop();
        tracing::info!("finished");
    }
}

/// Why the worker cannot be used, for the user.
fn refused(socket: &Path, error: &io::Error) -> UserError {
    match refusal(error).map(|said| said.errno) {
        Some(Errno::EACCES) => {
            let uid = nix::unistd::geteuid();
            UserError::new(Exit::NotPermitted, format!("the diskworker at {} refuses: {error}", socket.display()))
                .hint(format!("start it with --allow-uid {uid}"))
        }
        Some(_) => UserError::new(Exit::Failure, format!("the diskworker at {} refuses: {error}", socket.display())),
        None => UserError::new(Exit::NoDisk, format!("no diskworker answers at {}: {error}", socket.display()))
            .hint("start it with `delugefs run` or delugefs-diskworker, and look at `delugefs disks`"),
    }
}
