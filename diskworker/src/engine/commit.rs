//! Group commits: about a second after the first change, or sooner when many have come together or others follow.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use delugefs_proto::errno::{FsError, FsResult};
use parking_lot::{Condvar, Mutex};

use super::Engine;
use super::clean::note;
use crate::catalog::{CONSOLIDATE_AT_PACKS, Changes};

/// Longest time an acknowledged change waits for its commit (it is in the journal meanwhile).
const DELAY: Duration = Duration::from_secs(1);
/// While other disks follow: changes that come together within this are one commit.
const GATHER: Duration = Duration::from_millis(3);
/// While other disks follow: pause between commits, as a multiple of what the last one took. A single change is seen elsewhere
/// at once, and many cost a fifth of the disk's time.
const PAUSE_FACTOR: u32 = 4;
/// Changed keys that make a commit due at once: bounds memory, the journal and the size of a pack.
const KEYS_MAX: usize = 20_000;
/// Pause after a failed commit.
const RETRY: Duration = Duration::from_secs(2);

/// Wakes the committing thread.
#[derive(Default)]
pub(super) struct Signal {
    dirty: AtomicBool,
    keys: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Signal {
    /// So many keys are pending now.
    pub fn note(&self, keys: usize) {
        self.keys.store(keys, Ordering::Relaxed);
        let was_dirty = keys == 0 || self.dirty.swap(true, Ordering::Relaxed);
        if !was_dirty || keys >= KEYS_MAX {
            let _guard = self.lock.lock();
            self.wake.notify_all();
        }
    }

    pub fn wake(&self) {
        let _guard = self.lock.lock();
        self.wake.notify_all();
    }

    /// Wait until this is so, or for so long. Looked at under the lock: what is noted before the wait begins is not missed.
    fn wait(&self, upto: Duration, until: impl Fn() -> bool) {
        let mut guard = self.lock.lock();
        self.wake.wait_while_for(&mut guard, |()| !until(), upto);
    }

    fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Relaxed)
    }

    fn is_full(&self) -> bool {
        self.keys.load(Ordering::Relaxed) >= KEYS_MAX
    }
}

impl Engine {
    /// Body of the committing thread.
    pub(super) fn commit_loop(&self) {
        let mut last = (Instant::now(), Duration::ZERO);
        while !self.is_stopping() {
            if !self.commits.is_dirty() {
                self.commits.wait(DELAY, || self.commits.is_dirty() || self.is_stopping());
                continue;
            }
            let since = Instant::now();
            let due = match self.is_followed() {
                true => (since + GATHER).max(last.0 + last.1 * PAUSE_FACTOR).min(since + DELAY),
                false => since + DELAY,
            };
            let left = due.saturating_duration_since(Instant::now());
            self.commits.wait(left, || self.commits.is_full() || self.is_stopping());
            if self.is_stopping() {
                break; // the stop commits
            }
            let begin = Instant::now();
            if self.commit().is_err() {
                self.commits.wait(RETRY, || self.is_stopping());
            }
            last = (Instant::now(), begin.elapsed());
        }
    }

    /// Commit everything that is pending. When that fails changes are refused until it succeeds.
    pub fn commit(&self) -> FsResult<()> {
        let _one = self.commit_lock.lock();
        self.commits.dirty.store(false, Ordering::Relaxed);
        let result = self.commit_pending();
        match &result {
            Ok(()) => self.reopen(),
            Err(error) => {
                self.commits.dirty.store(true, Ordering::Relaxed);
                self.refuse(error.clone());
            }
        }
        result
    }

    /// Commit what has been recorded by now. Of several who ask at once, one does it.
    pub(super) fn commit_recorded(&self) -> FsResult<()> {
        let is_committed = {
            let _one = self.commit_lock.lock();
            !self.core().ns.is_dirty()
        };
        match is_committed {
            true => {
                self.publish_commit(); // by a join that has failed since it may not be
                Ok(())
            }
            false => self.commit(),
        }
    }

    fn commit_pending(&self) -> FsResult<()> {
        let (changes, ctx) = self.core().ns.begin_commit()?;
        let attempt = || -> FsResult<()> {
            self.sync_named(&changes)?;
            self.catalog.commit(&changes, &ctx).map_err(|error| {
                FsError::new(crate::namespace::catalog_errno(&error), format!("cannot commit the catalog: {error}"))
            })?;
            Ok(())
        };
        let result = self.with_room(attempt);
        drop(changes);
        let mut core = self.core();
        match result {
            Ok(()) => {
                core.ns.committed();
                drop(core);
                self.publish_commit();
                self.journal.retire()?;
                self.consolidate();
                self.measure_names();
                Ok(())
            }
            Err(error) => {
                core.ns.commit_failed();
                Err(error)
            }
        }
    }

    /// Contents before the records that name them. What earlier commits have named was synced then, or is a disk's from which it came.
    pub(super) fn sync_named(&self, changes: &Changes) -> FsResult<()> {
        let mut named = HashSet::new();
        changes.sets.values().for_each(|elements| note(&mut named, elements));
        self.store.barrier_for(&named)
    }

    /// Rewrite the packs when there are many of them, and room to write before the old ones go.
    fn consolidate(&self) {
        let catalog = &self.catalog;
        if catalog.packs() < CONSOLIDATE_AT_PACKS {
            return;
        }
        let available = self.store.free_space().map_or(0, |space| space.available);
        if let Err(error) = catalog.consolidate(available) {
            tracing::warn!("packs stay as they are: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use delugefs_proto::ids::Ino;
    use delugefs_proto::local_pb as pb;

    use super::super::recover::tests::fresh;
    use super::*;
    use crate::engine::Opening;

    #[test]
    fn a_commit_syncs_the_contents_it_names() {
        let (_dir, running) = fresh();
        let engine = &running.engine;
        let q = pb::Create { dir: 1, name: "f".into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
        let (answer, opening) = engine.create(1, false, &q).unwrap();
        let Opening::File { handle, file } = opening else { panic!() };
        file.write_all_at(&[7; 10_000], 0).unwrap();
        drop(file);
        let ino = Ino(answer.node.unwrap().ino);
        {
            // So that no other commit comes first.
            let _one = engine.commit_lock.lock();
            engine.close(1, handle, false).unwrap();
            let begin = Instant::now();
            while engine.stored(ino).unwrap().is_none() {
                assert!(begin.elapsed() < Duration::from_secs(30), "it is not sealed");
                std::thread::yield_now();
            }
        }
        engine.commit_recorded().unwrap();
        assert!(engine.store.is_synced(engine.stored(ino).unwrap().unwrap().content));
        running.stop().unwrap();
    }

    /// The committing thread has seen that there is nothing to do, and is about to wait.
    #[test]
    fn what_is_noted_just_before_a_wait_ends_it() {
        let long = Duration::from_secs(600);
        let (signal, begin) = (Signal::default(), Instant::now());
        assert!(!signal.is_dirty());
        signal.note(1);
        signal.wait(long, || signal.is_dirty());
        signal.note(KEYS_MAX);
        signal.wait(long, || signal.is_full());
        assert!(begin.elapsed() < long);
    }
}
