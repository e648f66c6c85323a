//! Housekeeping: seals left over, contents nobody refers to, the reserve.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::ContentId;
use delugefs_proto::record::{Body, Data, Element, Key};

use super::Engine;
use super::room::is_full;
use crate::catalog::State;
use crate::namespace::catalog_error;
use crate::view;

/// How often leftovers are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Copies made within this are synced together.
const COPIES_TOGETHER: Duration = Duration::from_secs(1);
/// How often the store is compared with the catalog.
const COLLECT_EVERY: Duration = Duration::from_secs(600);
/// Collections after the last change on a full disk: what was finished since the one before is spared by each.
const PRESSED_ROUNDS: u32 = 2;

/// When the store is compared with the catalog next.
struct Collecting {
    last: Instant,
    every: Duration,
    /// Change counter, committed state and contents unpinned at the last collection on a full disk, and collections since any of them
    /// moved: what was removed takes room until it is committed too.
    seen: Option<(u64, git2::Oid, u64)>,
    rounds: u32,
    took: Duration,
}

impl Engine {
    /// Body of the thread that syncs copies soon after their writers got them.
    pub(super) fn copies_loop(&self) {
        while !self.is_stopping() {
            self.store.wait_for_copies(|| self.is_stopping());
            // What comes together is synced together, and what is closed by then not at all.
            {
                let mut asleep = self.halt_lock.lock();
                if !self.is_stopping() {
                    self.halt.wait_for(&mut asleep, COPIES_TOGETHER);
                }
            }
            self.store.sync_copies();
        }
    }

    /// Body of the thread that syncs what no commit waits for, and writes down what is damaged no more. On a slow disk that others write to
    /// it may take minutes.
    pub(super) fn rest_loop(&self) {
        let (mut has_failed, mut was_unsaved) = (false, false);
        let warn = |done: FsResult<()>, had_failed: bool| {
            if let Err(error) = &done
                && !had_failed
            {
                tracing::warn!("{error}");
            }
            done.is_err()
        };
        while !self.is_stopping() {
            self.halt.wait_for(&mut self.halt_lock.lock(), TICK);
            has_failed = warn(self.store.sync_rest(), has_failed);
            // After that: what has come in place of a damaged one is on the disk.
            if !has_failed {
                was_unsaved = warn(self.store.save_damaged(), was_unsaved);
            }
        }
    }

    /// Body of the cleaning thread.
    pub(super) fn clean_loop(&self) {
        let now = Instant::now();
        let mut collecting =
            Collecting { last: now, every: COLLECT_EVERY, seen: None, rounds: 0, took: Duration::ZERO };
        while !self.is_stopping() {
            self.halt.wait_for(&mut self.halt_lock.lock(), TICK);
            if self.is_stopping() {
                return;
            }
            // Looked up first: a lock taken in the head of a loop is held to its end.
            let waiting = {
                let mut core = self.core();
                self.note_met(&mut core); // what could not be written down, if nothing is changed any more
                core.staged.waiting(Instant::now())
            };
            waiting.into_iter().for_each(|ino| self.seals.push(ino));
            if self.is_collection_due(&mut collecting) {
                let begin = Instant::now();
                if let Err(error) = self.collect() {
                    tracing::warn!("cannot clean up the store: {error}");
                }
                collecting.last = Instant::now();
                collecting.took = begin.elapsed();
                // Never more than a hundredth of the time, however large the catalog is.
                collecting.every = COLLECT_EVERY.max(collecting.took * 100);
            }
            self.shed_trash();
            self.make_room_for_names();
            match self.refusal() {
                None => drop(self.fill_ballast()),
                // Somebody else may have made room, and then nothing of ours would notice.
                Some(error) if is_full(error.errno) && self.fill_ballast() => drop(self.commit()),
                Some(_) => {}
            }
        }
    }

    /// Now and then; on a full disk whenever something may have been removed, as what it takes up is needed.
    fn is_collection_due(&self, collecting: &mut Collecting) -> bool {
        let since = collecting.last.elapsed();
        if since >= collecting.every.min(self.retention.max(TICK)) {
            return true;
        }
        if !self.is_pressed() || since < collecting.took * 10 {
            return false;
        }
        let now = Some((self.seq(), *self.published.borrow(), self.store.loosened()));
        if now != collecting.seen {
            (collecting.seen, collecting.rounds) = (now, 0);
        }
        collecting.rounds += 1;
        collecting.rounds <= PRESSED_ROUNDS
    }

    /// Put contents nobody refers to into the trash, and empty what has been there long enough. On a full disk all of it
    /// goes, and what the catalog has of earlier states.
    ///
    /// One at a time: what is finished during one is spared by that and by the next, and by nobody else.
    pub fn collect(&self) -> FsResult<()> {
        let _one = self.collecting.lock();
        let (lasts, begin) = (self.trash_lasts(), SystemTime::now());
        let (live, committed) = self.live_contents()?;
        let collected = self.store.collect(&live, lasts, SystemTime::now())?;
        // Not what this one has moved: a state that was joined since may name it, and whoever follows may have followed that.
        if let Some(state) = committed {
            self.watch_state(begin, &state);
        }
        let purged = if self.is_pressed() { self.purge_trash() } else { 0 };
        if self.refusal().is_some_and(|error| is_full(error.errno)) {
            // Names removed are still in the packs.
            self.let_states_go();
            let _no_commit = self.commit_lock.lock();
            if let Err(error) = self.catalog.compact(u64::MAX) {
                tracing::debug!("packs stay as they are: {error}");
            }
        }
        if collected.moved + collected.deleted + purged > 0 {
            tracing::info!(
                "{} contents to the trash, {} deleted from it, {purged} bytes purged",
                collected.moved,
                collected.deleted
            );
        }
        Ok(())
    }

    /// The contents that files have now, and a committed state in which they have no others. What is sealed from here on is spared by
    /// the store: its record may be younger than the state looked at.
    fn live_contents(&self) -> FsResult<(HashSet<ContentId>, Option<State>)> {
        let committed = self.commit();
        let _no_commit = self.commit_lock.lock();
        let pending = self.core().ns.pending_sets();
        let replaced = match committed {
            Ok(()) => None,
            // Without room for a commit what was removed since the last one still takes up the room it needs. So what the
            // journal says counts, once that is as durable as a commit: then no crash brings back a record whose
            // content is gone.
            Err(error) if is_full(error.errno) => {
                self.store.barrier()?;
                self.journal.sync()?;
                Some(&pending)
            }
            Err(error) => return Err(error),
        };
        let state = replaced.is_none().then(|| self.catalog.state());
        let mut live: HashSet<ContentId> = HashSet::new();
        let mut visit = |key: &Key, elements: &[Element]| {
            if !replaced.is_some_and(|sets| sets.contains_key(key)) && !view::is_nameless(key, elements) {
                note(&mut live, elements);
            }
            Ok(())
        };
        self.catalog.for_each(&mut visit).map_err(catalog_error)?;
        let named = pending.iter().filter(|(key, elements)| !view::is_nameless(key, elements));
        named.for_each(|(_, elements)| note(&mut live, elements));
        Ok((live, state))
    }
}

/// Note the contents outside the catalog that these name.
pub(super) fn note(live: &mut HashSet<ContentId>, elements: &[Element]) {
    live.extend(elements.iter().filter_map(|e| match &e.body {
        Body::Content { data: Data::Stored { content, .. }, .. } => Some(*content),
        _ => None,
    }));
}
