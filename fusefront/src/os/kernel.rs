//! How the FUSE of a system treats who serves it, where the code that answers has to know. Both are known everywhere: tests play
//! either.

use std::time::Duration;

/// The FUSE of a system.
#[derive(Clone, Copy, Debug)]
pub struct FuseKernel {
    /// Threads that read requests, at least one.
    pub threads: usize,
    /// It has to have an answer by then: a little later it gives the request up, and takes an answer that comes after that without a word.
    pub answers_within: Option<Duration>,
    /// So it does at once when the program that waits is killed. Then nobody can know whether an answer was heard that took so long: what
    /// takes less counts as heard, or everything would be told twice.
    pub lets_killed_go: Option<Duration>,
    /// It drops the attributes of an inode only when nobody uses that, as it does with the content.
    pub holds_attributes: bool,
}

impl FuseKernel {
    /// The one this program was built for.
    pub const OURS: Self = if cfg!(target_os = "linux") { Self::LINUX } else { Self::FREEBSD };

    /// All threads but one may wait for the worker, and what finds none free goes over to the pool, which costs two more wake-ups. Four
    /// programs that make files need twice as many, since each has a file being closed, too.
    pub const LINUX: Self = Self { threads: 8, answers_within: None, lets_killed_go: None, holds_attributes: false };

    /// The session library allows no more than one thread. The time is a little less than the longest that the kernel can be told to wait
    /// (FUSE_MAX_DAEMON_TIMEOUT), since a request may have waited before it was read.
    pub const FREEBSD: Self = Self {
        threads: 1,
        answers_within: Some(Duration::from_secs(570)),
        lets_killed_go: Some(Duration::from_millis(5)),
        holds_attributes: true,
    };
}
