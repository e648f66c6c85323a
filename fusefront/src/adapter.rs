//! The only module that touches fuser: kernel requests in, calls of [`Fs`], replies out; and invalidations the other way.
//!
//! Which thread works: a request is answered where it was read if that is quick. At least one reading thread stays
//! free of waiting (for the worker or the disk), so that what is in memory is always answered: when the others are all
//! taken, and for anything known to be slow, the operation moves to the pool. What turns out to need a content that other disks
//! have to send moves on to a pool of its own: however much of that there is, it keeps nothing else waiting. Reading what is open has
//! one, too: it asks no worker, and goes on behind any number of requests that wait for one that hangs.

mod closing;
mod convert;
mod device;
mod doubtful;
mod invalidate;
mod lanes;
mod listing;
mod opening;
mod requests;
mod waiting;
mod writing;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::Receiver;
use fuser::{Config, Errno, Request, Session, SessionACL};

use self::closing::Closing;
use self::device::Device;
use self::doubtful::Doubtful;
use self::invalidate::Telling;
use self::waiting::Waiting;
use crate::call::{Caller, Outcome, Patience, Stop};
use crate::fs::{Fs, Invalidation};
use crate::os::{Called, FuseKernel};
use crate::pool::Pool;
use crate::{panics, trouble};

/// The kernel's side of a file system.
pub struct Adapter {
    shared: Arc<Shared>,
    pools: Pools,
    /// For writes that the disk is slow with.
    writing: Pool,
}

/// Where operations are done that the threads which read requests do not do.
#[derive(Clone, Default)]
struct Pools {
    /// For what waits for the worker.
    pool: Arc<Pool>,
    /// For what waits for another disk: however much there is, everything else is served.
    remote: Arc<Pool>,
    /// For reading what is open on the disk: that no worker is asked for, and so it does not stand behind what waits for one.
    reading: Arc<Pool>,
}

/// One of [`Pools`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Reading,
    Pool,
    Remote,
}

impl Place {
    /// Where it goes on when it takes more than it may wait for here.
    fn next(self) -> Option<Self> {
        match self {
            Self::Reading => Some(Self::Pool),
            Self::Pool => Some(Self::Remote),
            Self::Remote => None,
        }
    }
}

struct Shared {
    fs: Arc<Fs>,
    kernel: FuseKernel,
    /// The threads that read requests and are waiting for something.
    waiting: AtomicUsize,
    /// Replies of what may take long.
    replies: Waiting,
    closing: Arc<Closing>,
    telling: Telling<Device>,
    /// The kernel can be told to drop all names, also those it knows to be absent.
    knows_epochs: AtomicBool,
}

/// Where an operation is done, and who may leave it alone before it is.
#[derive(Clone, Copy)]
struct Way {
    /// What is in memory may be all it takes.
    remembers: bool,
    /// On a pool in any case.
    slow: bool,
    /// Where it is done if not on the thread that has read it.
    place: Place,
    /// What it takes to let its caller go.
    lets_go: Called,
    /// The same where it waits for another disk.
    lets_go_remote: Called,
}

impl Way {
    /// For what may change something: a caller that lives on has to hear what came of it.
    const CHANGING: Self = Self {
        remembers: false,
        slow: false,
        place: Place::Pool,
        lets_go: Called::ToEnd,
        lets_go_remote: Called::ToEnd,
    };
    /// For what changes nothing, and is done soon.
    const ASKING: Self = Self { remembers: true, ..Self::CHANGING };
    /// For what changes nothing, and can be told to have been interrupted.
    const OPENING: Self = Self { lets_go: Called::ToStop, lets_go_remote: Called::ToStop, ..Self::CHANGING };
    /// The same of what is open already. One who handles the signal is not to lose a page fault to it for a disk that spins up; another disk
    /// may never send what he waits for.
    const READING: Self = Self { place: Place::Reading, lets_go_remote: Called::ToStop, ..Self::CHANGING };

    fn slow_if(self, slow: bool) -> Self {
        Self { slow, ..self }
    }

    fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }
}

/// What is done with the outcome of an operation.
type Done<T> = Box<dyn FnOnce(&Fs, Outcome<T>) + Send>;

/// Permission for a reading thread to wait.
struct Permit<'a>(&'a AtomicUsize);

impl Shared {
    fn permit(&self) -> Option<Permit<'_>> {
        let most = self.kernel.threads - 1;
        if self.waiting.fetch_add(1, Ordering::AcqRel) < most {
            return Some(Permit(&self.waiting));
        }
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        None
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Answer the greeting of the kernel on this descriptor of /dev/fuse. The session serves when it is run; the thread
/// that carries out invalidations runs from now on.
pub fn connect(
    fs: Arc<Fs>,
    pool: Arc<Pool>,
    fuse: OwnedFd,
    invalidations: Receiver<Invalidation>,
    kernel: FuseKernel,
) -> io::Result<Session<Adapter>> {
    let telling = Telling::new(fs.clone(), Device(File::from(fuse.try_clone()?)), kernel.holds_attributes);
    let waiting = AtomicUsize::new(0);
    let shared = Arc::new(Shared {
        fs,
        kernel,
        waiting,
        replies: Waiting::new(kernel.answers_within),
        closing: Arc::default(),
        telling,
        knows_epochs: AtomicBool::new(false),
    });
    let watching = shared.clone();
    std::thread::Builder::new().name("interrupts".into()).spawn(move || watching.replies.watch(&watching.fs))?;
    let mut config = Config::default();
    config.n_threads = Some(kernel.threads);
    // Who may come in is the kernel's decision, by the mount's options.
    let telling = shared.clone();
    let session = Session::from_fd(
        Adapter { shared, pools: Pools { pool, ..Pools::default() }, writing: Pool::default() },
        fuse,
        SessionACL::All,
        config,
    )?;
    let invalidate = move || telling.telling.carry_out_all(&invalidations);
    std::thread::Builder::new().name("invalidations".into()).spawn(invalidate)?;
    Ok(session)
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.shared.replies.end();
    }
}

impl Adapter {
    /// Do an operation that changes nothing from memory, here if that is quick, else on a pool, and send its result.
    fn serve<T, R>(
        &self,
        request: &Request,
        reply: R,
        operation: impl Fn(&Fs, &Caller) -> Outcome<T> + Send + 'static,
        send: impl FnOnce(&Fs, R, Result<T, Errno>) + Send + 'static,
    ) where
        T: 'static,
        R: Send + 'static,
    {
        self.serve_changing(request, Way::ASKING, reply, operation, send, Doubtful::default());
    }

    /// The same for what changes something. Whoever is killed meanwhile is let go and a change that has begun goes on, so that the
    /// kernel does not learn what comes of it: what it may then know wrongly is `doubtful`. Where the kernel lets him go by itself that is
    /// dropped after every change that took a while, for nobody knows who was killed.
    fn serve_changing<T, R>(
        &self,
        request: &Request,
        way: Way,
        reply: R,
        operation: impl Fn(&Fs, &Caller) -> Outcome<T> + Send + 'static,
        send: impl FnOnce(&Fs, R, Result<T, Errno>) + Send + 'static,
        doubtful: Doubtful,
    ) where
        T: 'static,
        R: Send + 'static,
    {
        if self.pools.pool.is_closed() {
            return send(&self.shared.fs, reply, Err(Errno::ENOTCONN));
        }
        let fs = self.shared.fs.clone();
        let mut caller = Caller::new(request.uid(), request.gid(), Patience::Cached);
        if way.remembers && !way.slow {
            match guarded(|| operation(&fs, &caller)) {
                Err(Stop::Later) => {}
                result => return send(&fs, reply, result.map_err(errno)),
            }
        }
        // What is not answered from memory waits, be it for a worker that hangs: also here its caller can be let go.
        let pending = self.shared.replies.add((request.pid(), way.lets_go), reply, send);
        caller.watched = Some(pending.watched());
        let doubtful = doubtful.noted(&fs);
        let (lets_killed_go, begun) = (self.shared.kernel.lets_killed_go, Instant::now());
        let end = move |fs: &Fs, result: Outcome<T>| {
            let is_unsure = lets_killed_go.is_some_and(|long| begun.elapsed() >= long);
            // Also of one that failed: a part of it may have been done.
            if pending.finish(fs, result.map_err(errno)).is_some() || is_unsure {
                doubtful.drop_all(fs);
            }
        };
        if !way.slow
            && let Some(_permit) = self.shared.permit()
        {
            caller.patience = Patience::Brief;
            match guarded(|| operation(&fs, &caller)) {
                Err(Stop::Later) => {}
                result => return end(&fs, result),
            }
        }
        self.pools.run(way, fs, caller, operation, end);
    }

    /// The same for what gives a handle: whoever is killed meanwhile is let go, and what came of it is given to `unwanted`. The
    /// operation's result becomes the one that is sent when `settle` says so. Of what is sent and may not have been heard, the kernel may know
    /// wrongly what is `doubtful`.
    fn serve_opening<A, T, R>(
        &self,
        (request, way): (&Request, Way),
        reply: R,
        operation: impl Fn(&Fs, &Caller) -> Outcome<A> + Send + 'static,
        settle: impl FnOnce(Arc<Shared>, A, Done<T>) + Send + 'static,
        send: impl FnOnce(&Fs, R, Result<T, Errno>) + Send + 'static,
        (unwanted, doubtful): (
            impl FnOnce(&Fs, Result<T, Errno>) + Send + 'static,
            impl FnOnce(&Outcome<T>) -> Doubtful + Send + 'static,
        ),
    ) where
        A: 'static,
        T: 'static,
        R: Send + 'static,
    {
        let fs = self.shared.fs.clone();
        if self.pools.pool.is_closed() {
            return send(&fs, reply, Err(Errno::ENOTCONN));
        }
        let permit = if way.slow { None } else { self.shared.permit() };
        let patience = if permit.is_some() { Patience::Brief } else { Patience::Cached };
        let mut caller = Caller::new(request.uid(), request.gid(), patience);
        let pending = self.shared.replies.add((request.pid(), way.lets_go), reply, send);
        caller.watched = Some(pending.watched());
        let (lets_killed_go, begun) = (self.shared.kernel.lets_killed_go, Instant::now());
        let done = move |fs: &Fs, result: Outcome<T>| {
            let is_unsure = lets_killed_go.is_some_and(|long| begun.elapsed() >= long);
            let doubtful = is_unsure.then(|| doubtful(&result).noted(fs));
            match (pending.finish(fs, result.map_err(errno)), doubtful) {
                (Some(unused), _) => unwanted(fs, unused),
                (None, Some(doubtful)) => doubtful.drop_all(fs),
                (None, None) => {}
            }
        };
        let shared = self.shared.clone();
        let end = move |fs: &Fs, result: Outcome<A>| match result {
            Ok(result) => settle(shared, result, Box::new(done)),
            Err(stop) => done(fs, Err(stop)),
        };
        let result = if way.slow { Err(Stop::Later) } else { guarded(|| operation(&fs, &caller)) };
        match result {
            Err(Stop::Later) => {
                drop(permit);
                self.pools.run(way, fs.clone(), caller, operation, end);
            }
            result => end(&fs, result),
        }
    }
}

impl Pools {
    /// Do an operation on a pool, and give its result to `end`.
    fn run<T: 'static>(
        &self,
        way: Way,
        fs: Arc<Fs>,
        mut caller: Caller,
        operation: impl Fn(&Fs, &Caller) -> Outcome<T> + Send + 'static,
        end: impl FnOnce(&Fs, Outcome<T>) + Send + 'static,
    ) {
        let pools = self.clone();
        let place = way.place;
        if place == Place::Remote && way.lets_go_remote == Called::ToStop {
            caller.can_be_stopped();
        }
        let pool = match place {
            Place::Reading => &self.reading,
            Place::Pool => &self.pool,
            Place::Remote => &self.remote,
        };
        caller.patience = if place == Place::Reading { Patience::Local } else { Patience::Patient };
        caller.fetches = place == Place::Remote;
        pool.run(move || match (unless_let_go(&caller, || operation(&fs, &caller)), place.next()) {
            (Err(Stop::Later), Some(next)) => pools.run(way.at(next), fs, caller, operation, end),
            (result, _) => end(&fs, result),
        });
    }
}

/// The disk may be slow, too: what waits for it needs the same permission as what waits for the worker.
fn may_block(caller: &Caller) -> Outcome<()> {
    if caller.patience == Patience::Cached { Err(Stop::Later) } else { Ok(()) }
}

/// Nothing is begun for a caller that is gone.
fn unless_let_go<T>(caller: &Caller, operation: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    if caller.is_let_go() { Err(nix::errno::Errno::EINTR.into()) } else { guarded(operation) }
}

/// A panic in an operation must not take the thread with it: the caller gets EIO.
fn guarded<T>(operation: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    panics::caught(operation).unwrap_or_else(|| Err(nix::errno::Errno::EIO.into()))
}

fn errno(stop: Stop) -> Errno {
    match &stop {
        Stop::Failed(error) => trouble::log(error),
        Stop::Later => {}
    }
    tracing::trace!(?stop, "failed");
    Errno::from_i32(stop.errno() as i32)
}
