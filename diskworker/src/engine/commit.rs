//! Group commits: about a second after the first change, or sooner when many have come together.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use delugefs_proto::errno::{FsError, FsResult};
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use super::Engine;
use crate::catalog::CONSOLIDATE_AT_PACKS;

/// Longest time an acknowledged change waits for its commit (it is in the journal meanwhile).
const DELAY: Duration = Duration::from_secs(1);
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

    fn wait(&self, upto: Duration) {
        let mut guard = self.lock.lock();
        self.wake.wait_for(&mut guard, upto);
    }
}

impl Engine {
    /// Body of the committing thread.
    pub(super) fn commit_loop(&self) {
        while !self.is_stopping() {
            if !self.commits.dirty.load(Ordering::Relaxed) {
                self.commits.wait(DELAY);
                continue;
            }
            let since = Instant::now();
            while since.elapsed() < DELAY && self.commits.keys.load(Ordering::Relaxed) < KEYS_MAX && !self.is_stopping()
            {
                self.commits.wait(DELAY.saturating_sub(since.elapsed()));
            }
            if self.is_stopping() {
                break; // the stop commits
            }
            match self.commit() {
                Ok(()) => {}
                Err(error) => {
                    self.refuse(error);
                    self.commits.wait(RETRY);
                }
            }
        }
    }

    /// Commit everything that is pending. On success changes are possible again.
    pub fn commit(&self) -> FsResult<()> {
        let _one = self.commit_lock.lock();
        self.commits.dirty.store(false, Ordering::Relaxed);
        let result = self.commit_pending();
        match &result {
            Ok(()) => {
                if let Some(error) = self.refusal.lock().take() {
                    tracing::warn!("writable again (was: {error})");
                }
            }
            Err(_) => self.commits.dirty.store(true, Ordering::Relaxed),
        }
        result
    }

    fn commit_pending(&self) -> FsResult<()> {
        let (changes, ctx) = self.core().ns.begin_commit()?;
        let attempt = || -> FsResult<()> {
            // Contents before the records that name them.
            self.store.barrier()?;
            self.core_catalog().commit(&changes, &ctx).map_err(|error| {
                FsError::new(crate::namespace::catalog_errno(&error), format!("cannot commit the catalog: {error}"))
            })?;
            Ok(())
        };
        let result = match attempt() {
            Err(error) if error.errno == Errno::ENOSPC => {
                self.make_room();
                attempt()
            }
            other => other,
        };
        drop(changes);
        let mut core = self.core();
        match result {
            Ok(()) => {
                core.ns.committed();
                drop(core);
                self.journal.retire()?;
                if self.core_catalog().packs() >= CONSOLIDATE_AT_PACKS
                    && let Err(error) = self.core_catalog().consolidate()
                {
                    tracing::warn!("packs stay as they are: {error}");
                }
                Ok(())
            }
            Err(error) => {
                core.ns.commit_failed();
                Err(error)
            }
        }
    }

    /// Room for a commit on a full disk: what is in the trash, and the ballast kept for this.
    fn make_room(&self) {
        if let Err(error) = self.store.purge_trash() {
            tracing::warn!("cannot empty the trash: {error}");
        }
        self.ballast.release();
    }
}
