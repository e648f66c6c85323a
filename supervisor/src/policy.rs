//! The replication policy: which contents the disks of this host fetch, and which copies they let go.
//!
//! Pure functions over a snapshot: no I/O, no clock, no randomness. There is no master: every host decides for the
//! disks that are in it, from what it knows, and what it knows is a little old and differs from what others know. How
//! that still comes together:
//!
//! **Counting.** A copy counts while its disk is here or has been absent for less than the grace period (a shorter one
//! when at most one counting copy is present). Copies on lazy, draining and forgotten disks do not count; lazy disks
//! may evict whenever they like. Missing = wanted - counting - being fetched on this host.
//!
//! **Who copies.** All hosts rank the disks that could take a content alike, by rendezvous hashing weighted by free
//! space (`weight`): a host that has no copy first, then a site, then the hash. As many disks as copies are missing act
//! at once, each told by its own host. If nothing comes of it (refused, full, gone, or known only to us), the next ones
//! act, one after the other, each a takeover time later than the one before (longer for big contents and for hosts that
//! say they have a queue). So nobody has to agree, a need is not met a hundred times, and never stalls. Time counts
//! from when the need arose, the disks ahead appeared, or the first that can give it came, whichever is last.
//!
//! **Spread.** Enough copies on too few hosts or sites are improved the same way, but late; that makes a surplus.
//!
//! **Who lets go.** Copies are never moved or dropped because of a rank alone. Only when more than the wanted number
//! are *present* (a copy that cannot be seen may have been dropped by someone who could not see ours), unchanged for
//! the trim delay, a disk that ranks behind `wanted` others asks exactly these to confirm their copy and to promise to
//! keep it (`desk`), and lets go when all have. A promise and a trim of the same copy exclude each other, so differing
//! views can delay a trim and never make it wrong: also across partitions and for disks that return with an old state.
//! A draining disk lets go in the same way, without the delay. Nothing else removes a copy.
//!
//! **Why it comes to rest.** Enough counting copies on distinct hosts and sites: no fetch. No more than wanted present:
//! no trim. What is kept of a surplus is as well spread as the whole, so a trim causes no fetch, and copies stay where
//! they are when ranks change with free space.
//!
//! **Order and bounds.** Fewest readable copies first, then oldest need; limited in transfers, bytes and decisions. What
//! failed is put off for twice as long each time, up to six hours, and comes behind what did not; contents that one disk
//! alone has never take all places. So neither what always fails nor a slow disk keeps the others from being copied.
//!
//! Reading order: `view` (what goes in), `mirror`, `release`, `desk` (promises), `plan` (order), `health`. The caller
//! keeps one [`Desk`], calls [`plan()`] with what changed or is due, carries decisions out and tells the desk.

mod cluster;
mod desk;
mod health;
mod mirror;
mod plan;
mod release;
#[cfg(test)]
mod simulate;
#[cfg(test)]
mod tests;
mod view;
mod weight;

use delugefs_proto::ids::{ContentId, DiskId};

pub use cluster::Cluster;
pub use desk::{ANSWER_S, Decline, Desk, FAILED_S, PROMISE_S};
pub use health::{AtRisk, DiskHealth, Health, LIST_MAX, Single, health};
pub use mirror::{Verdict, Wish, decide_content};
pub use plan::{Plan, choose, decide, plan};
pub use release::{Release, release};
pub use view::{Content, Disk, Presence, Settings, View};

/// Why another copy is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// At most one copy can be read now.
    LastCopy,
    /// Fewer copies than wanted.
    TooFew,
    /// A disk with a copy is being emptied.
    Drain,
    /// Enough copies, but on too few hosts or sites.
    Spread,
}

/// What to do with a disk of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Fetch and keep (`please_mirror`). Then [`Desk::fetching`] and [`Desk::fetch_ended`], or [`Desk::failed`].
    Mirror {
        /// Onto this disk.
        disk: DiskId,
        /// What.
        content: ContentId,
        /// How long it is.
        size_bytes: u64,
        /// Why.
        reason: Reason,
    },
    /// Ask other disks, through their hosts, to keep their copies ([`Desk::grant`] there), so that this one may let go.
    /// Before sending [`Desk::asking`], then for each [`Desk::promised`], or [`Desk::declined`] for no, and for no
    /// answer.
    Confirm {
        /// The disk that has a surplus copy.
        disk: DiskId,
        /// Of what.
        content: ContentId,
        /// Whom to ask.
        keepers: Vec<DiskId>,
        /// The number of copies that the asker knows to be wanted, to send along.
        wanted: u32,
    },
    /// Let a copy go (`stop_mirroring`), between [`Desk::begin_trim`], which may forbid it, and [`Desk::end_trim`].
    Trim {
        /// From this disk.
        disk: DiskId,
        /// What.
        content: ContentId,
        /// The disks that promised to keep theirs, for [`Desk::begin_trim`].
        relying_on: Vec<DiskId>,
    },
}
