//! What one host knows, as the policy takes it: disks, contents, settings.
//!
//! All times are seconds of one clock of this host that never steps and goes on while the machine sleeps (on Linux
//! `CLOCK_BOOTTIME`, not `CLOCK_MONOTONIC`: a promise that ran out during a suspend must not look fresh). They say
//! when *this host* first saw something; no other host's clock enters anywhere.

use std::sync::Arc;

use delugefs_proto::ids::{ContentId, DiskId, HostId};

use super::Desk;

/// Whether a disk can be reached from this host now, and since when (seconds of this host's clock).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// Its worker runs here or is connected.
    Here {
        /// First moment of this unbroken presence.
        since_s: u64,
    },
    /// It is not connected: pulled out, its host is off, or the network is cut; nobody can tell which.
    Absent {
        /// First moment of this absence; after a start of the supervisor that moment, unless it remembers better.
        since_s: u64,
    },
}

impl Presence {
    /// Whether it can be reached.
    pub fn is_here(self) -> bool {
        matches!(self, Self::Here { .. })
    }

    /// When this state began.
    pub fn since_s(self) -> u64 {
        match self {
            Self::Here { since_s } | Self::Absent { since_s } => since_s,
        }
    }
}

/// One disk of the cluster, wherever it is.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its key.
    pub id: DiskId,
    /// The host it is in, or was last seen in.
    pub host: HostId,
    /// Where that host stands; hosts without a site share the empty one. A site belongs to a host: where its disks
    /// disagree, that of the disk with the smallest id counts.
    pub site: String,
    /// Whether it is connected.
    pub presence: Presence,
    /// Since when it comes and goes, or is here, at most: of an absence shorter than [`Settings::grace_last_s`] nothing is known here.
    pub here_s: u64,
    /// What it holds has been told since the start of this host's workers, and is in `holders`: what no disk is known to hold is not
    /// there either.
    pub heard: bool,
    /// When this host last saw any of the flags below, or the host, change.
    pub changed_s: u64,
    /// It fetches only what is read and evicts by itself: no target, and its copies do not count.
    pub lazy: bool,
    /// It is to be emptied: no target, and its copies do not count.
    pub draining: bool,
    /// It takes nothing and gives nothing up, unless it is just full. Its copies count, but nobody trims relying on them: disks that turn
    /// read-only by themselves are often about to fail.
    pub read_only: bool,
    /// It is read-only for want of room alone: it does let go, for that is the way out.
    pub full: bool,
    /// It was forgotten or revoked: it cannot connect, and its copies do not exist.
    pub forgotten: bool,
    /// What new contents may use, as its worker last said, in bytes.
    pub free_bytes: u64,
    /// How long its host's queue of fetches takes, as that host last said (0 when it said nothing), in seconds.
    pub backlog_s: u64,
}

/// One content of the cluster.
#[derive(Clone, Debug)]
pub struct Content {
    /// SHA-256.
    pub id: ContentId,
    /// Its length.
    pub size_bytes: u64,
    /// How many copies there should be: the highest number that any of its files asks for. 0 when no file has it any
    /// more; the policy leaves such a content alone, removing it is up to the retention of each disk.
    pub wanted: u32,
    /// The disks that say they hold it, absent ones included.
    pub holders: Arc<[DiskId]>,
    /// When this host last saw `holders` or `wanted` change; after a start of the supervisor, that moment.
    pub changed_s: u64,
}

/// What can be tuned. Hosts of one cluster may differ; it makes them less smooth together, never unsafe.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long an absent disk's copies go on counting, in seconds.
    pub grace_s: u64,
    /// The same for contents of which at most one copy that counts is present: a restart takes no longer.
    pub grace_last_s: u64,
    /// How much longer each next candidate waits when those before it do not act, in seconds. Longer than holdings
    /// take to spread, else copies are made that are not needed.
    pub takeover_s: u64,
    /// The rate at which a slow disk may still be fetching, in bytes per second: waiting grows with the size.
    pub takeover_bytes_per_s: u64,
    /// How long enough copies may be badly spread (and a newcomer be present) before a better copy is made, in seconds.
    pub spread_delay_s: u64,
    /// How long a surplus and the disks that make it have to be unchanged before a copy is let go, in seconds.
    pub trim_delay_s: u64,
    /// Most decisions of one call, beside fetches of small contents.
    pub max_decisions: usize,
    /// Most fetches at once on this host of contents that travel as torrents,
    pub max_transfers: usize,
    /// but for more of them that have fewer bytes together: the workers have something to do until the next call.
    pub queue_bytes: u64,
    /// Most of them from one disk that alone has them, but for more that have fewer than half as many bytes. Fewer than a
    /// worker fetches side by side, so that a disk that gives nothing, or slowly, leaves a place for what others give.
    pub max_from_one: usize,
    /// Most fetches at once of smaller ones: what the workers have to do until the next call. Half of them from one disk
    /// that alone has them.
    pub max_small_transfers: usize,
    /// Most bytes in the fetches of large ones; one bigger content may still be fetched alone.
    pub max_transfer_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            grace_s: 3600,
            grace_last_s: 600,
            takeover_s: 120,
            takeover_bytes_per_s: 4 << 20,
            spread_delay_s: 3600,
            trim_delay_s: 6 * 3600,
            max_decisions: 256,
            max_transfers: 8,
            queue_bytes: 1 << 30,
            max_from_one: 3,
            max_small_transfers: 8192,
            max_transfer_bytes: 64 << 30,
        }
    }
}

/// Everything a host decides from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The host that decides; it does so for the disks that are in it, and for no others.
    pub me: HostId,
    /// All disks known.
    pub disks: &'a [Disk],
    /// All contents, or only those that changed or are due again.
    pub contents: &'a [Content],
    /// What this host's own disks are doing and have promised.
    pub desk: &'a Desk,
    /// The tuning.
    pub settings: &'a Settings,
}
