//! Whether what no reader waits for is fetched too. For a few contents at a time, and only where that leaves the disk room for what its
//! users write: somebody who looks into three hundred films (a program that makes thumbnails) does not want them all, and they
//! would keep back the one that is watched. What is fetched to be kept, or waited for as a whole, always comes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Transfer;
use crate::content::ContentStore;
use crate::fetch::evict::LOW_SHARE;

/// Of one transfer.
pub(in crate::fetch) struct Rest<F> {
    places: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
    give_up: F,
}

impl<F: Fn() -> bool> Rest<F> {
    /// With one of these places; `give_up` ends the transfer unless somebody uses it.
    pub fn new(places: Arc<Semaphore>, give_up: F) -> Self {
        Self { places, place: None, give_up }
    }

    /// Whether the rest may be asked for now.
    pub fn may_come(&mut self, transfer: &Transfer, store: &ContentStore) -> bool {
        if transfer.pieces.is_none() || transfer.wholes.load(Ordering::Acquire) > 0 {
            return true;
        }
        let missing = transfer.wanted.size.saturating_sub(transfer.state.lock().have_bytes);
        let has_room = || store.free_space().is_ok_and(|space| space.free >= missing + space.total / LOW_SHARE);
        if self.place.is_none() {
            self.place = self.places.clone().try_acquire_owned().ok();
        }
        let may_come = self.place.is_some() && has_room();
        if !may_come {
            self.place = None;
        }
        may_come
    }

    /// Nobody waits for anything: end the transfer, unless somebody has it open.
    pub fn give_up(&self) -> bool {
        (self.give_up)()
    }
}
