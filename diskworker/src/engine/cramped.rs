//! A catalog that takes up so much of its disk that removing names could become impossible.
//!
//! While contents fill a disk the ballast is enough for the commits of removals: contents go without a commit, if need be. Names
//! do not. A commit of removals all over a large directory writes nearly all of the catalog, and what it replaces goes only after all that
//! is left has been written once more. So from [`SHARE`] on no new names are taken; removals, renames, and what comes from other disks go on.
//!
//! Before it comes to that, the cleaning thread drops what only earlier states have in the packs. Other parts of the program keep such
//! states for other disks ([`Engine::let_states_go`]); they are told before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use delugefs_proto::errno::{FsError, FsResult};
use nix::errno::Errno;
use parking_lot::Mutex;

use super::Engine;

/// The part that the catalog may take of what is free and what we have on the disk: it, a commit that writes all of it, a copy of that
/// without what is not needed any more, and what is changed before anybody looks.
const SHARE: u64 = 4;
/// Between being told and dropping: states are let go meanwhile.
const NOTICE: Duration = Duration::from_secs(1);
/// Pause after dropping, as a multiple of what it took, so that it takes a twentieth of the time at most.
const PAUSE_FACTOR: u32 = 20;
/// Pause after dropping was of no use and is not urgent; doubles.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// Attempts for each committed state: what was still needed at the first may not be at the second.
const ROUNDS: u32 = 2;

/// See the module.
#[derive(Default)]
pub(super) struct Cramped {
    /// How often states were asked to be let go.
    pub told: AtomicU64,
    /// The percentage that new names are refused for; 0: they are taken.
    percent: AtomicU64,
    /// Bytes of contents on the disk when they were needed last; 0 before that.
    contents_bytes: AtomicU64,
    dropping: Mutex<Dropping>,
}

/// When to drop what earlier states have left.
#[derive(Default)]
struct Dropping {
    /// States are being let go since then.
    told: Option<Instant>,
    /// The state it was last done in, when it was done, and how long it took.
    last: Option<(git2::Oid, Instant, Duration)>,
    /// How often in that state.
    rounds: u32,
    pause: Duration,
}

impl Dropping {
    /// Whether it may be done now.
    fn is_due(&self, commit: git2::Oid, is_urgent: bool) -> bool {
        let Some((before, ended, took)) = self.last else { return true };
        let pause = if is_urgent { Duration::ZERO } else { self.pause };
        (before != commit || self.rounds < ROUNDS) && ended.elapsed() >= pause.max(took * PAUSE_FACTOR)
    }

    fn note(&mut self, commit: git2::Oid, took: Duration, helped: bool) {
        self.rounds = if self.last.is_some_and(|(before, ..)| before == commit) { self.rounds + 1 } else { 1 };
        self.last = Some((commit, Instant::now(), took));
        self.told = None;
        self.pause = if helped { Duration::ZERO } else { (self.pause * 2).clamp(PAUSE, PAUSE_MAX) };
    }
}

/// Bytes of the catalog, and what they are compared with.
struct Measure {
    bytes: u64,
    limit: u64,
}

impl Cramped {
    /// New names are taken.
    pub(super) fn check(&self) -> FsResult<()> {
        match self.percent.load(Ordering::Relaxed) {
            0 => Ok(()),
            percent => Err(FsError::new(
                Errno::ENOSPC,
                format!(
                    "names and small files take {percent} % of this disk, and removing them needs the rest: \
                     remove some, or mount another disk"
                ),
            )),
        }
    }
}

impl Engine {
    /// Without the contents, for which the disk may have to look at each once: minutes for a million where it turns.
    fn measure(&self) -> Option<Measure> {
        let bytes = self.catalog.packs_bytes().ok()?;
        let available = self.store.free_space().ok()?.available;
        let contents = self.cramped.contents_bytes.load(Ordering::Relaxed);
        Some(Measure { bytes, limit: (bytes + available + contents) / SHARE })
    }

    fn set_cramped(&self, measure: &Measure, is_cramped: bool) {
        let percent = match is_cramped {
            true => (measure.bytes * 100 / (measure.limit * SHARE).max(1)).max(1),
            false => 0,
        };
        let before = self.cramped.percent.swap(percent, Ordering::Relaxed);
        match self.cramped.check() {
            Err(error) if before == 0 => tracing::warn!("no new names: {error}"),
            Ok(()) if before != 0 => tracing::warn!("new names are taken again"),
            _ => {}
        }
    }

    /// After a commit, so with what is known of the contents. Only when it is far beyond the limit this refuses names: else there may be
    /// something to drop.
    pub(super) fn measure_names(&self) {
        let Some(now) = self.measure() else { return };
        if now.bytes <= now.limit {
            self.set_cramped(&now, false);
        } else if self.cramped.contents_bytes.load(Ordering::Relaxed) > 0 && now.bytes > now.limit + now.limit / 2 {
            self.set_cramped(&now, true);
        }
    }

    /// Drop what earlier states have left when the catalog is large, and see whether it is small enough then.
    pub(super) fn make_room_for_names(&self) {
        let Some(mut before) = self.measure() else { return };
        if before.bytes > before.limit / 2 {
            // One more than there are, since 0 says that nobody knows.
            self.cramped.contents_bytes.store(self.store.usage().bytes + 1, Ordering::Relaxed);
            let Some(again) = self.measure() else { return };
            before = again;
        }
        if before.bytes <= before.limit / 2 {
            return self.set_cramped(&before, false);
        }
        let is_urgent = before.bytes > before.limit;
        if !is_urgent {
            self.set_cramped(&before, false);
        }
        let mut dropping = self.cramped.dropping.lock();
        let commit = *self.published.borrow();
        if !dropping.is_due(commit, is_urgent) {
            return;
        }
        if is_urgent {
            match dropping.told {
                None => {
                    dropping.told = Some(Instant::now());
                    return self.let_states_go();
                }
                Some(told) if told.elapsed() < NOTICE => return,
                Some(_) => {}
            }
        }
        let begin = Instant::now();
        // It writes what is needed before it removes anything; who writes files meanwhile is left half of what is free.
        let room = self.store.free_space().map_or(0, |space| space.available / 2);
        if let Err(error) = self.catalog.compact(room) {
            tracing::debug!("packs stay as they are: {error}");
        }
        let Some(after) = self.measure() else { return };
        self.set_cramped(&after, after.bytes > after.limit);
        dropping.note(commit, begin.elapsed(), after.bytes <= after.limit / 2);
    }
}
