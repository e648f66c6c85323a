//! Threads for what may take long, so that those that read requests stay free. They come when there is work and go
//! when there is none.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Condvar, Mutex};

/// Most threads at a time: each may be waiting for a lost worker, and a request behind them should not.
const THREADS_MAX: usize = 64;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The pool.
pub struct Pool {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
}

struct Shared {
    waiting: Receiver<Job>,
    counts: Mutex<Counts>,
    idle: Condvar,
    closed: AtomicBool,
}

#[derive(Default)]
struct Counts {
    threads: usize,
    /// Jobs taken in and not finished.
    jobs: usize,
}

impl Default for Pool {
    fn default() -> Self {
        let (jobs, waiting) = unbounded();
        Self {
            jobs,
            shared: Arc::new(Shared {
                waiting,
                counts: Mutex::default(),
                idle: Condvar::new(),
                closed: AtomicBool::new(false),
            }),
        }
    }
}

impl Pool {
    /// Run it soon.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let needs_thread = {
            let mut counts = self.shared.counts.lock();
            counts.jobs += 1;
            let needs = counts.jobs > counts.threads && counts.threads < THREADS_MAX;
            counts.threads += usize::from(needs);
            needs
        };
        let sent = self.jobs.send(Box::new(job));
        debug_assert!(sent.is_ok(), "the receiver lives as long as the pool");
        if needs_thread {
            let shared = self.shared.clone();
            let spawned = std::thread::Builder::new().name("fs-pool".into()).spawn(move || shared.work());
            if let Err(error) = spawned {
                let mut counts = self.shared.counts.lock();
                counts.threads -= 1;
                tracing::warn!(%error, threads = counts.threads, "cannot start another thread");
            }
        }
    }

    /// Nothing new is to be begun: whoever asks [`Self::is_closed`] first has to say no.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
    }

    /// Whether the end has come.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// Wait until all jobs are done; whether they were in time.
    pub fn drain(&self, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut counts = self.shared.counts.lock();
        while counts.jobs > 0 {
            if self.shared.idle.wait_until(&mut counts, deadline).timed_out() {
                break;
            }
        }
        counts.jobs == 0
    }
}

impl Shared {
    fn work(&self) {
        loop {
            match self.waiting.recv_timeout(IDLE) {
                Ok(job) => {
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        tracing::error!("an operation panicked; this is a bug in delugefs-fusefront");
                    }
                    let mut counts = self.counts.lock();
                    counts.jobs -= 1;
                    if counts.jobs == 0 {
                        self.idle.notify_all();
                    }
                }
                Err(_) => {
                    let mut counts = self.counts.lock();
                    // A job may have come in between that counts on this thread.
                    if self.waiting.is_empty() {
                        counts.threads -= 1;
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn runs_everything_also_after_a_panic() {
        let pool = Pool::default();
        let done = Arc::new(AtomicUsize::new(0));
        for n in 0..500 {
            let done = done.clone();
            pool.run(move || {
                assert!(n % 100 != 7, "on purpose");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(pool.drain(Duration::from_secs(20)));
        assert_eq!(done.load(Ordering::Relaxed), 495);
    }
}
