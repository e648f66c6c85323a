//! A full disk: what is given up for room, what is refused meanwhile, and when it is over.
//!
//! Only the commit needs room that can be kept free for it (the ballast), so the disk counts as full for changes from the
//! moment the ballast is given up until it is back. In between are removals, and the commits they need.
//!
//! The ballast is enough for commits while contents take up the disk: those go without a commit, if need be. Names do not: a commit
//! of removals may write every directory anew, and what it replaces goes only after all has been written once more. So the
//! catalog may take a quarter of the disk. From then on it counts as full, with the room that removals need.

use std::sync::atomic::Ordering;

use delugefs_proto::errno::{FsError, FsResult};
use nix::errno::Errno;

use super::Engine;

/// The part of the disk that the catalog may take: what is there, a commit that writes all of it, a copy of that without what is
/// not needed any more, and what was changed before anybody looked.
const CATALOG_SHARE: u64 = 4;
/// Ballast and journal, which are there in any case.
const FIXED_BYTES: u64 = 16 << 20;

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
            self.refuse(FsError::new(Errno::ENOSPC, "the disk is full: delete something or add a disk"));
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

    /// After a commit: whether there is room for removals beside the names, if need be after having dropped what only earlier
    /// states need. Those kept for other disks are let go before it comes to that.
    pub(super) fn has_room_for_removals(&self) -> bool {
        let Ok(space) = self.store.free_space() else { return true };
        let limit = space.total.saturating_sub(FIXED_BYTES) / CATALOG_SHARE;
        let packs_bytes = || self.core_catalog().packs_bytes().unwrap_or(0);
        let bytes = packs_bytes();
        let was_lean = self.lean.swap(bytes > limit / 2, Ordering::Relaxed);
        if self.is_lean() && !was_lean {
            self.published.send_modify(|_| ()); // who keeps them looks
        }
        if bytes <= limit {
            return true;
        }
        if !was_lean {
            return self.refusal().is_none(); // so much at once: by the next commit they are gone
        }
        // Of one alone there is nothing to drop.
        if self.core_catalog().packs() > 1
            && let Err(error) = self.core_catalog().compact()
        {
            tracing::debug!("packs stay as they are: {error}");
        }
        packs_bytes() <= limit
    }

    /// Nothing but the committed state is to be kept.
    pub fn is_lean(&self) -> bool {
        self.lean.load(Ordering::Relaxed)
    }

    /// See to it that the ballast is there; whether it is.
    pub(super) fn fill_ballast(&self) -> bool {
        self.ballast.fill(|| self.store.free_space().map_or(0, |space| space.available))
    }
}
