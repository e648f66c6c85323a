//! Who asks, how long the answer may take, and the two ways an operation can stop: with an errno, or with "not on this
//! thread". The second is how a thread that must stay free for others refuses to wait; the operation is then started
//! again from its beginning on a pool thread. It knows nothing of what the operations do.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use delugefs_proto::errno::FsError;
use delugefs_proto::ids::{Ino, random_u64};
use nix::errno::Errno;

/// How long a call may wait for the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Answer from memory or not at all.
    Cached,
    /// The same, but it may wait for what is open on the disk.
    Local,
    /// One round trip to the worker, but no waiting for a lost connection.
    Brief,
    /// Wait for a lost connection to come back, for a bounded time.
    Patient,
}

/// How far a read has come that the disk has failed. Each try may take a failing disk a minute: none is made twice where an operation begins
/// anew on another thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    No,
    /// EIO came.
    Failed,
    /// The worker knows.
    Told,
    /// What it gave then is what is read now.
    Reopened,
}

/// What those who work on an operation and who looks after whoever waits for it tell each other.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// Nobody waits any more.
    pub is_let_go: AtomicBool,
    /// A signal that a person sends lets him go, also if he has a handler for it.
    pub can_be_stopped: AtomicBool,
}

/// The process that asks and what it is owed.
#[derive(Debug)]
pub struct Caller {
    /// User id of the process, for new nodes.
    pub uid: u32,
    /// Group id of the process, for new nodes.
    pub gid: u32,
    /// How long this attempt may take.
    pub patience: Patience,
    /// Whether it may wait for what other disks have to send.
    pub fetches: bool,
    /// If somebody looks after whoever waits for this operation.
    pub(crate) watched: Option<Arc<Watched>>,
    /// A changing request went out and its answer was lost: the next one must say `retry`.
    pub(crate) sent: Cell<bool>,
    /// The file has the size that is asked for: set once more, on another thread, it would cut what others have written since.
    pub(crate) resized: Cell<bool>,
    /// What has come of a read that the disk failed.
    pub(crate) unread: Cell<Unread>,
    proposal: Cell<u64>,
    /// The value of the attribute that this operation removes, as it was when it was asked for.
    pub(crate) removed_value: RefCell<Option<Bytes>>,
    /// The inode this operation moves or removes, as it was found when it was asked for; 0 before that.
    pub(crate) subject: Cell<u64>,
    /// Number of the link then.
    pub(crate) subject_link: Cell<u64>,
    /// Id of the disk that was asked then.
    pub(crate) subject_disk: RefCell<Arc<str>>,
}

impl Caller {
    /// A new operation of this user.
    pub fn new(uid: u32, gid: u32, patience: Patience) -> Self {
        let cell = || Cell::new(0);
        let (fetches, sent, watched) = (patience == Patience::Patient, Cell::new(false), None);
        let (subject, subject_link, subject_disk) = (cell(), cell(), RefCell::default());
        let (resized, unread, proposal) = (Cell::new(false), Cell::new(Unread::No), cell());
        Self {
            uid,
            gid,
            patience,
            fetches,
            watched,
            sent,
            resized,
            unread,
            proposal,
            removed_value: RefCell::default(),
            subject,
            subject_link,
            subject_disk,
        }
    }

    /// The frontend itself, ready to wait.
    pub fn own() -> Self {
        Self::new(0, 0, Patience::Patient)
    }

    /// Whether the operation is to end here: nobody waits for it, and nothing of it has been done yet. Carried out later it would
    /// undo what others do meanwhile.
    pub(crate) fn is_let_go(&self) -> bool {
        !self.sent.get() && self.watched.as_ref().is_some_and(|watched| watched.is_let_go.load(Ordering::Acquire))
    }

    /// From here on it may take very long, and can be told to have been interrupted.
    pub(crate) fn can_be_stopped(&self) {
        self.watched.iter().for_each(|watched| watched.can_be_stopped.store(true, Ordering::Release));
    }

    /// The inode number this operation proposes for what it makes: the same in every attempt.
    pub(crate) fn proposal(&self) -> u64 {
        if self.proposal.get() == 0 {
            self.proposal.set(propose(random_u64()));
        }
        self.proposal.get()
    }
}

/// A random number that can be an inode number: bits 62 and 63 clear, and none of the reserved ones.
fn propose(random: u64) -> u64 {
    let ino = random >> 2;
    if ino < Ino::FIRST_FREE { ino + Ino::FIRST_FREE } else { ino }
}

/// Why an operation has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It failed; the caller gets the errno.
    Failed(FsError),
    /// It would have to wait longer than its patience: start it again on a thread that may wait.
    Later,
}

/// Result of a file system operation in this process.
pub type Outcome<T> = Result<T, Stop>;

impl Stop {
    /// The errno the calling process gets.
    pub fn errno(&self) -> Errno {
        match self {
            Stop::Failed(error) => error.errno,
            Stop::Later => Errno::EAGAIN,
        }
    }
}

impl From<FsError> for Stop {
    fn from(error: FsError) -> Self {
        Stop::Failed(error)
    }
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Stop::Failed(errno.into())
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Failed(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposals_are_storable_and_stay_the_same() {
        for random in [0, 1, 63, 64, u64::MAX, 1 << 63] {
            let ino = propose(random);
            assert!(ino >= Ino::FIRST_FREE && ino >> 62 == 0, "{random} gave {ino}");
        }
        let caller = Caller::own();
        assert_eq!(caller.proposal(), caller.proposal());
    }
}
