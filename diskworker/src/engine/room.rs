//! A full disk: what is given up for room, what is refused meanwhile, and when it is over.
//!
//! Only the commit needs room that can be kept free for it (the ballast), so the disk counts as full for changes from the
//! moment the ballast is given up until it is back. In between are removals, and the commits they need.

use delugefs_proto::errno::{FsError, FsResult};
use nix::errno::Errno;

use super::Engine;

/// What a person is told.
pub(super) const FULL: &str = "the disk is full: delete something, or add a disk and drain this one";

/// Whether this error means that there is no room.
pub(super) fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSPC | Errno::EDQUOT)
}

fn found_full<T>(result: &FsResult<T>) -> bool {
    matches!(result, Err(error) if is_full(error.errno))
}

impl Engine {
    /// Do something that must get room if there is any: first from the trash, then from the ballast.
    pub(super) fn with_room<T>(&self, act: impl Fn() -> FsResult<T>) -> FsResult<T> {
        let mut result = act();
        if found_full(&result) && self.purge_trash() > 0 {
            result = act();
        }
        if found_full(&result) && self.ballast.release() {
            self.refuse(FsError::new(Errno::ENOSPC, FULL));
            result = act();
        }
        result
    }

    /// Empty the trash; the bytes that were freed.
    pub(super) fn purge_trash(&self) -> u64 {
        self.store.purge_trash().unwrap_or_else(|error| {
            tracing::warn!("cannot empty the trash: {error}");
            0
        })
    }

    /// Nothing more fits.
    pub(super) fn is_pressed(&self) -> bool {
        self.refusal().is_some_and(|error| is_full(error.errno))
            || self.store.free_space().is_ok_and(|space| space.free == 0)
    }

    /// From now on changes are refused with this error. It is logged when it is news.
    pub(super) fn refuse(&self, error: FsError) {
        let mut refusal = self.refusal.lock();
        match &*refusal {
            Some(before) if is_full(before.errno) && is_full(error.errno) => {}
            Some(before) if *before == error => {}
            _ => {
                tracing::error!("read-only: {error}");
                *refusal = Some(error);
            }
        }
    }

    /// A commit went through: changes are possible again. After a full disk only when the ballast is back.
    pub(super) fn reopen(&self) {
        match self.refusal() {
            None => return,
            Some(error) if is_full(error.errno) && !self.fill_ballast() => return,
            Some(_) => {}
        }
        if let Some(error) = self.refusal.lock().take() {
            tracing::warn!("writable again (was: {error})");
            self.core().staged.retry_now();
        }
    }

    /// See to it that the ballast is there; whether it is.
    pub(super) fn fill_ballast(&self) -> bool {
        self.ballast.fill(|| self.store.free_space().map_or(0, |space| space.available))
    }
}
