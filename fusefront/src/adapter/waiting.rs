//! Answers to programs that are to end. fuser tells nobody of FUSE_INTERRUPT, and without an answer a killed program stays
//! in the kernel until its operation comes to an end: for a file that another host holds and does not give, many seconds.
//! So an operation that may take long leaves its reply here; who has waited for a moment and has a deadly signal by then
//! is answered EINTR. What has not been sent to the worker by then is not done any more; what has been ends for itself.
//!
//! A program that catches the signal lives on, and would be told that nothing was done while it is being done. So it is
//! answered only where nothing is changed.
//!
//! FreeBSD lets a killed program go by itself, and anybody after some minutes, and whatever is answered then is lost without our hearing of
//! it. So who has waited for so long is answered before that, ETIMEDOUT as the kernel would say.

use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fuser::Errno;
use parking_lot::{Condvar, Mutex};

use crate::call::Watched;
use crate::fs::Fs;
use crate::os::{self, Called};

/// Between two looks, and as long as nobody is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// The replies of operations under way.
pub(super) struct Waiting {
    state: Mutex<State>,
    changed: Condvar,
    /// Nobody waits longer.
    within: Option<Duration>,
}

#[derive(Default)]
struct State {
    list: Vec<Entry>,
    /// The thread that looks waits to be told of the first reply. While it only pauses nobody wakes it: that would cost every
    /// open a switch of threads.
    asleep: bool,
    ended: bool,
}

struct Entry {
    /// Thread of the program, as the kernel numbers it.
    tid: u32,
    /// What it takes to be let go, as long as it cannot be stopped.
    by: Called,
    watched: Arc<Watched>,
    since: Instant,
    reply: Weak<dyn Abandon>,
}

/// A reply that nobody has sent yet, and how to send it.
pub(super) struct Pending<T, R, S> {
    reply: Mutex<Option<(R, S)>>,
    watched: Arc<Watched>,
    result: PhantomData<fn(T)>,
}

trait Abandon: Send + Sync {
    fn abandon(&self, fs: &Fs, errno: Errno);
}

impl<T, R, S: FnOnce(&Fs, R, Result<T, Errno>)> Pending<T, R, S> {
    /// In which it is noted when it was answered that the operation was interrupted.
    pub fn watched(&self) -> Arc<Watched> {
        self.watched.clone()
    }

    /// Send the reply; the result is given back when somebody else has answered.
    pub fn finish(&self, fs: &Fs, result: Result<T, Errno>) -> Option<Result<T, Errno>> {
        let taken = self.reply.lock().take();
        match taken {
            Some((reply, send)) => {
                send(fs, reply, result);
                None
            }
            None => Some(result),
        }
    }
}

impl<T, R: Send, S: FnOnce(&Fs, R, Result<T, Errno>) + Send> Abandon for Pending<T, R, S> {
    fn abandon(&self, fs: &Fs, errno: Errno) {
        self.watched.is_let_go.store(true, Ordering::Release);
        // Nobody is left to use it: whatever becomes of the operation is given back by `finish`.
        let _answered = self.finish(fs, Err(errno));
    }
}

impl Entry {
    /// With what it is to be answered now, if it is.
    fn ends_with(&self, within: Option<Duration>) -> Option<Errno> {
        let waited = self.since.elapsed();
        let by = if self.watched.can_be_stopped.load(Ordering::Acquire) { Called::ToStop } else { self.by };
        match within {
            Some(within) if waited >= within => Some(Errno::ETIMEDOUT),
            _ => (waited >= LOOK && os::called(self.tid) >= by).then_some(Errno::EINTR),
        }
    }
}

impl Waiting {
    /// Whoever has waited for so long is answered in any case.
    pub fn new(within: Option<Duration>) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), within }
    }

    /// Leave a reply here until it is sent, or the thread is called in this way.
    pub fn add<T, R, S>(&self, (tid, by): (u32, Called), reply: R, send: S) -> Arc<Pending<T, R, S>>
    where
        T: 'static,
        R: Send + 'static,
        S: FnOnce(&Fs, R, Result<T, Errno>) + Send + 'static,
    {
        let reply = Mutex::new(Some((reply, send)));
        let watched = Arc::<Watched>::default();
        let pending = Arc::new(Pending { reply, watched: watched.clone(), result: PhantomData });
        let here: Weak<Pending<T, R, S>> = Arc::downgrade(&pending);
        let mut state = self.state.lock();
        state.list.retain(|entry| entry.reply.strong_count() > 0);
        state.list.push(Entry { tid, by, watched, since: Instant::now(), reply: here });
        if std::mem::take(&mut state.asleep) {
            self.changed.notify_one();
        }
        pending
    }

    /// Body of the thread that looks.
    pub fn watch(&self, fs: &Fs) {
        let mut state = self.state.lock();
        while !state.ended {
            state.list.retain(|entry| entry.reply.strong_count() > 0);
            if state.list.is_empty() {
                state.asleep = true;
                self.changed.wait(&mut state);
                continue;
            }
            self.changed.wait_for(&mut state, LOOK);
            let ending = |entry: &Entry| Some((entry.ends_with(self.within)?, entry.reply.upgrade()?));
            let ending: Vec<_> = state.list.iter().filter_map(ending).collect();
            parking_lot::MutexGuard::unlocked(&mut state, || {
                ending.iter().for_each(|(errno, reply)| reply.abandon(fs, *errno));
            });
        }
    }

    /// The thread that looks shall end.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }
}
