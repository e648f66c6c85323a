//! Threads for what may take long, so that those that read requests stay free. They come when there is work and go
//! when there is none.

use std::io;
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
    /// How long a thread without work stays.
    stay: Duration,
}

#[derive(Default)]
struct Counts {
    threads: usize,
    /// Jobs taken in and not finished.
    jobs: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self::staying(IDLE)
    }
}

impl Pool {
    fn staying(stay: Duration) -> Self {
        let (jobs, waiting) = unbounded();
        Self {
            jobs,
            shared: Arc::new(Shared {
                waiting,
                counts: Mutex::default(),
                idle: Condvar::new(),
                closed: AtomicBool::new(false),
                stay,
            }),
        }
    }

    /// Run it soon. Where the system gives no thread, and there is none, before this returns.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.run_on(job, |shared| {
            std::thread::Builder::new().name("fs-pool".into()).spawn(move || shared.work()).map(drop)
        });
    }

    fn run_on(&self, job: impl FnOnce() + Send + 'static, start: impl FnOnce(Arc<Shared>) -> io::Result<()>) {
        let needs_thread = {
            let mut counts = self.shared.counts.lock();
            counts.jobs += 1;
            let needs = counts.jobs > counts.threads && counts.threads < THREADS_MAX;
            counts.threads += usize::from(needs);
            // Under the lock: the thread that this counts on may be about to go, and looks once more when it has the lock.
            let sent = self.jobs.send(Box::new(job));
            debug_assert!(sent.is_ok(), "the receiver lives as long as the pool");
            needs
        };
        if needs_thread && let Err(error) = start(self.shared.clone()) {
            let threads = {
                let mut counts = self.shared.counts.lock();
                counts.threads -= 1;
                counts.threads
            };
            tracing::warn!(%error, threads, "cannot start another thread");
            // Else it would wait for a thread that comes with some later job.
            while let Some(job) = self.shared.unserved() {
                self.shared.carry_out(job);
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
            match self.waiting.recv_timeout(self.stay) {
                Ok(job) => self.carry_out(job),
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

    fn carry_out(&self, job: Job) {
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("an operation panicked; this is a bug in delugefs-fusefront");
        }
        let mut counts = self.counts.lock();
        counts.jobs -= 1;
        if counts.jobs == 0 {
            self.idle.notify_all();
        }
    }

    /// The next job, if no thread is there to take it.
    fn unserved(&self) -> Option<Job> {
        let counts = self.counts.lock();
        if counts.threads == 0 { self.waiting.try_recv().ok() } else { None }
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

    /// It goes at the very moment in which the next job counts on it.
    #[test]
    fn a_thread_that_goes_leaves_no_job_behind() {
        let pool = Pool::staying(Duration::ZERO);
        let done = Arc::new(AtomicUsize::new(0));
        for round in 1..=10_000 {
            let counted = done.clone();
            pool.run(move || counted.store(round, Ordering::Release));
            // Not by waiting for the pool: whoever has slept comes too late for that moment.
            let deadline = Instant::now() + Duration::from_secs(20);
            while done.load(Ordering::Acquire) < round {
                assert!(Instant::now() < deadline, "in round {round}");
                std::hint::spin_loop();
            }
            (0..round % 512).for_each(|_| std::hint::spin_loop());
        }
    }

    #[test]
    fn a_job_is_done_where_no_thread_can_be_had() {
        let pool = Pool::default();
        let done = Arc::new(AtomicUsize::new(0));
        let job = |done: &Arc<AtomicUsize>| {
            let done = done.clone();
            move || {
                done.fetch_add(1, Ordering::Relaxed);
            }
        };
        for n in 1..=3 {
            pool.run_on(job(&done), |_| Err(io::ErrorKind::WouldBlock.into()));
            assert_eq!(done.load(Ordering::Relaxed), n);
        }
        // One is enough for those that come while there is no second one.
        let (go, wait) = unbounded::<()>();
        pool.run(move || assert!(wait.recv().is_err(), "the sender goes"));
        pool.run_on(job(&done), |_| Err(io::ErrorKind::WouldBlock.into()));
        assert_eq!(done.load(Ordering::Relaxed), 3);
        drop(go);
        assert!(pool.drain(Duration::from_secs(20)));
        assert_eq!(done.load(Ordering::Relaxed), 4);
    }
}
