//! What a disk's worker and a mount's frontend have in common: the phases of a watched process, and what happens when
//! it ends. Knows nothing of processes, sockets or clocks: times come in as arguments.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::failure::Failure;

/// One life of one process; events of an earlier life are told apart by it.
pub type Run = u64;

/// Where the answer to a call goes: the disk id for a disk, nothing for a mount.
pub type Reply = oneshot::Sender<Result<String, Failure>>;

/// First wait before a restart.
pub const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest wait before a restart.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A wait above this is too long for who waits for a first start.
const PATIENCE: Duration = Duration::from_secs(3);
/// A process that was up this long starts with the shortest wait again.
pub const BACKOFF_RESET: Duration = Duration::from_secs(60);

/// What the process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A mount that waits for a disk that is up.
    Waiting,
    /// Started; has not said `ready` yet.
    Starting,
    /// A disk whose folder is locked by a live worker, which should register until then.
    Contested {
        /// When to try once more.
        until: Instant,
    },
    /// It said `ready`, or was found alive.
    Up {
        /// When.
        since: Instant,
    },
    /// It ended and is started again.
    BackingOff {
        /// When.
        until: Instant,
    },
    /// It was asked to end.
    Stopping {
        /// When it is killed.
        kill_at: Option<Instant>,
        /// What comes after.
        then: Then,
    },
    /// It ended, and starting it again would not help.
    Stopped,
}

/// What follows an end that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It is watched no longer.
    Remove,
    /// It is started again at once, with new arguments.
    Restart,
}

/// What the owner has to do after a process ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Forget it.
    Remove,
    /// Start it now.
    Start,
    /// Nothing; the phase says when it goes on.
    Wait,
}

/// One watched process.
#[derive(Debug)]
pub struct Child {
    /// See [`Phase`].
    pub phase: Phase,
    /// The process's life, while there is one.
    pub run: Option<Run>,
    /// Its process id, while there is one.
    pub pid: Option<u32>,
    /// When that was started, by [`crate::sys::uptime_s`]; 0 of one that was found alive.
    pub started_s: u64,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended last.
    pub failure: Option<Failure>,
    /// It is not a child of this supervisor.
    pub foreign: bool,
    /// Somebody asked this supervisor for it, so a second request is a mistake.
    pub claimed: bool,
    /// It is started again when it ends, and stopped with the supervisor.
    pub watched: bool,
    /// It was up once or is in the configuration: a failure to start does not make it forgotten.
    pub established: bool,
    /// The next supervisor starts it again.
    pub remember: bool,
    /// Calls that wait until it is up.
    pub added: Vec<Reply>,
    /// Calls that wait until it is gone.
    pub removed: Vec<Reply>,
    wait: Duration,
}

impl Child {
    /// Not started yet. `established`: it comes from the configuration.
    pub fn new(established: bool, remember: bool) -> Self {
        Self {
            phase: Phase::Waiting,
            run: None,
            pid: None,
            started_s: 0,
            restarts: 0,
            failure: None,
            foreign: false,
            claimed: true,
            watched: true,
            established,
            remember,
            added: Vec::new(),
            removed: Vec::new(),
            wait: BACKOFF_MIN,
        }
    }

    /// Whether there is a process.
    pub fn is_running(&self) -> bool {
        self.run.is_some()
    }

    /// It was started as `run`.
    pub fn starting(&mut self, run: Run) {
        self.phase = Phase::Starting;
        self.run = Some(run);
        self.foreign = false;
    }

    /// There is a process.
    pub fn begun(&mut self, pid: u32, at_s: u64) {
        (self.pid, self.started_s) = (Some(pid), at_s);
    }

    /// It answers.
    pub fn up(&mut self, now: Instant) {
        self.phase = Phase::Up { since: now };
        self.established = true;
    }

    /// Somebody else's process was found to do the work.
    pub fn adopted(&mut self, run: Run, pid: u32, now: Instant) {
        self.run = Some(run);
        self.pid = Some(pid);
        self.foreign = true;
        self.up(now);
    }

    /// It ended. The pending calls stay in `added`, to be answered with `failure` by the caller.
    pub fn ended(&mut self, failure: Failure, now: Instant) -> Next {
        let phase = self.phase;
        self.run = None;
        self.pid = None;
        self.foreign = false;
        if let Phase::Stopping { then, .. } = phase {
            return if then == Then::Remove { Next::Remove } else { Next::Start };
        }
        let exit = failure.exit;
        self.failure = Some(failure);
        if !self.established || !self.watched {
            return Next::Remove;
        }
        if !exit.is_worth_retrying() {
            self.phase = Phase::Stopped;
            return Next::Wait;
        }
        if matches!(phase, Phase::Up { since } if now.duration_since(since) >= BACKOFF_RESET) {
            self.wait = BACKOFF_MIN;
        }
        self.phase = Phase::BackingOff { until: now + self.wait };
        self.wait = (self.wait * 2).min(BACKOFF_MAX);
        Next::Wait
    }

    /// Whether who waits for it has not waited for long yet.
    pub fn is_soon(&self) -> bool {
        self.wait <= PATIENCE
    }

    /// It ended because what it needs was not there at that moment: it is started again, and who waits goes on waiting, for as long as
    /// [`Self::is_soon`]. `false`: of one that has never worked, after that.
    pub fn again(&mut self, failure: Failure, now: Instant) -> bool {
        if !self.established && !self.is_soon() {
            return false;
        }
        (self.run, self.pid, self.foreign, self.failure) = (None, None, false, Some(failure));
        self.phase = Phase::BackingOff { until: now + self.wait };
        self.wait = (self.wait * 2).min(BACKOFF_MAX);
        true
    }

    /// When the phase ends by itself.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::BackingOff { until } | Phase::Contested { until } => Some(until),
            Phase::Stopping { kill_at, .. } => kill_at,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use delugefs_proto::exit::Exit;

    fn crash() -> Failure {
        Failure::new(Exit::Failure, "killed by signal 9")
    }

    #[test]
    fn waits_twice_as_long_each_time_and_starts_over_after_a_good_minute() {
        let start = Instant::now();
        let mut child = Child::new(true, false);
        let mut waits = Vec::new();
        for run in 1..=10 {
            child.starting(run);
            assert_eq!(child.ended(crash(), start), Next::Wait);
            waits.push(child.deadline().unwrap().duration_since(start).as_millis());
        }
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        child.starting(11);
        child.up(start);
        child.ended(crash(), start + BACKOFF_RESET);
        assert_eq!(child.phase, Phase::BackingOff { until: start + BACKOFF_RESET + BACKOFF_MIN });
    }

    #[test]
    fn gives_up_where_another_try_cannot_help() {
        let mut child = Child::new(true, false);
        child.starting(1);
        assert_eq!(child.ended(Failure::new(Exit::WrongCluster, "no"), Instant::now()), Next::Wait);
        assert_eq!(child.phase, Phase::Stopped);
    }

    #[test]
    fn forgets_what_never_worked_and_what_was_not_its_own() {
        let mut child = Child::new(false, false);
        child.starting(1);
        assert_eq!(child.ended(crash(), Instant::now()), Next::Remove);
        let mut child = Child::new(true, false);
        child.watched = false;
        child.adopted(1, 7, Instant::now());
        assert_eq!(child.ended(crash(), Instant::now()), Next::Remove);
    }
}
