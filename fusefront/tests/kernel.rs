//! The whole frontend against a kernel that is played: FreeBSD's fusefs as its sources have it, speaking over a pair of
//! sockets instead of /dev/fuse, with one thread reading requests as on FreeBSD. It runs wherever the tests run.
//!
//! What a socket cannot do is refuse a single message, as FreeBSD does with notifications it does not know: that is
//! tested beside the code that sends them, `src/adapter/invalidate.rs`.

#[path = "kernel/export.rs"]
mod export;
#[path = "kernel/files.rs"]
mod files;
#[path = "kernel/names.rs"]
mod names;
#[path = "kernel/requests.rs"]
mod requests;
#[path = "kernel/session.rs"]
mod session;
#[path = "kernel/unheard.rs"]
mod unheard;
#[path = "kernel/wire.rs"]
mod wire;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use delugefs_fusefront::adapter;
use delugefs_fusefront::cache::CAPACITY_ENTRIES;
use delugefs_fusefront::events::Events;
use delugefs_fusefront::fs::Fs;
use delugefs_fusefront::os::FuseKernel;
use delugefs_fusefront::pool::Pool;
use delugefs_fusefront::worker::Worker;

use self::wire::{Body, Device, Reply, op};
use crate::fake::FakeWorker;

/// What the kernels differ in.
#[derive(Clone, Copy)]
struct Kernel {
    /// Version of the protocol: 7 and this.
    minor: u32,
    /// Capabilities in INIT.
    offered: u32,
}

/// FreeBSD 12.1, 13.0, and 14.
const KERNELS: [Kernel; 3] = [
    Kernel { minor: 23, offered: OFFERED },
    Kernel { minor: 28, offered: OFFERED },
    Kernel { minor: 28, offered: OFFERED | NO_OPEN_SUPPORT | NO_OPENDIR_SUPPORT },
];
/// FUSE_ASYNC_READ, FUSE_POSIX_LOCKS, FUSE_EXPORT_SUPPORT, FUSE_BIG_WRITES, FUSE_WRITEBACK_CACHE: what all offer.
const OFFERED: u32 = ASYNC_READ | 1 << 1 | EXPORT_SUPPORT | BIG_WRITES | 1 << 16;
const ASYNC_READ: u32 = 1;
const EXPORT_SUPPORT: u32 = 1 << 4;
const BIG_WRITES: u32 = 1 << 5;
const NO_OPEN_SUPPORT: u32 = 1 << 17;
const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
/// FreeBSD, but for what it is told after each of its own changes: that has tests of its own, and others look at what else it is told.
const QUIET: FuseKernel = FuseKernel { lets_killed_go: None, ..FuseKernel::FREEBSD };
/// MAXBCACHEBUF: FreeBSD reads no further ahead, and reads and writes no more at once.
const BLOCK_BYTES: u32 = 64 << 10;
const ROOT: u64 = 1;

/// A frontend, mounted by a kernel that is played. Unmounted when dropped.
struct Mount {
    kernel: Device,
    /// What the frontend answered to INIT.
    greeting: Reply,
    worker: FakeWorker,
    fs: Arc<Fs>,
    pool: Arc<Pool>,
    events: Option<Events>,
    serving: Option<JoinHandle<std::io::Result<()>>>,
}

impl Mount {
    fn new(kernel: Kernel) -> Self {
        Self::with_capacity(kernel, CAPACITY_ENTRIES)
    }

    /// `entries` is the most the frontend may keep in memory.
    fn with_capacity(kernel: Kernel, entries: usize) -> Self {
        Self::with(kernel, entries, QUIET)
    }

    fn with(kernel: Kernel, entries: usize, habits: FuseKernel) -> Self {
        let worker = FakeWorker::start();
        let (sender, invalidations) = crossbeam_channel::unbounded();
        let fs = Arc::new(Fs::new(Worker::new(&worker.socket), entries, sender));
        let (events, _) = Events::start(fs.clone()).unwrap();
        let pool = Arc::<Pool>::default();
        let (mut device, fuse): (Device, OwnedFd) = Device::open();
        let init = device.send(op::INIT, 0, &Body::new().u32(7).u32(kernel.minor).u32(BLOCK_BYTES).u32(kernel.offered));
        let session = adapter::connect(fs.clone(), pool.clone(), fuse, invalidations, habits).unwrap();
        let serving = Some(std::thread::spawn(move || session.run()));
        let greeting = device.reply_to(init);
        Self { kernel: device, greeting, worker, fs, pool, events: Some(events), serving }
    }

    /// Wait for what goes on behind answers, such as closing: of all requests but the last one.
    fn settle(&self) {
        assert!(self.pool.drain(Duration::from_secs(20)), "operations are still under way");
    }

    /// Unmount as FreeBSD does: DESTROY, whose answer is waited for. What the frontend's serving returned.
    fn unmount(&mut self) -> std::io::Result<()> {
        assert_eq!(self.kernel.call(op::DESTROY, 0, &Body::new()).body, b"");
        let served = self.serving.take().unwrap().join().unwrap();
        self.pool.close();
        self.settle();
        self.fs.release_all();
        self.events.take().unwrap().stop();
        served
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Whoever waits for the worker must not wait for ever.
            return self.worker.answer();
        }
        if self.serving.is_some() {
            self.unmount().unwrap();
        }
        assert_eq!(self.worker.broken_promises(), Vec::<String>::new());
        assert_eq!(self.worker.open_handles(), 0);
    }
}
