//! Whether what no reader waits for is fetched too. For a few contents at a time, and only where that leaves the disk room for what its
//! users write: somebody who looks into three hundred films (a program that makes thumbnails) does not want them all, and they
//! would keep back the one that is watched. What is fetched to be kept, or waited for as a whole, always comes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use delugefs_proto::errno::FsResult;
use tokio::sync::oneshot::{self, Receiver, error::TryRecvError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Transfer;
use crate::content::{ContentStore, Space};
use crate::fetch::evict::LOW_SHARE;

/// What a disk says of its room is believed for so long.
const ROOM_ASKED_EVERY: Duration = Duration::from_secs(1);

/// Of one transfer.
pub(in crate::fetch) struct Rest<F> {
    places: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
    give_up: F,
    room: Room,
}

/// The room on the disk, as it was a moment ago. It is asked by a thread: a disk that hangs must not hang what others do.
#[derive(Default)]
struct Room {
    known: Option<(Instant, FsResult<Space>)>,
    asked: Option<Receiver<FsResult<Space>>>,
}

impl Room {
    /// `None` while it is not known yet; then there is news of the transfer once it is.
    fn space(&mut self, transfer: &Arc<Transfer>, store: &Arc<ContentStore>) -> Option<&FsResult<Space>> {
        match self.asked.as_mut().map(Receiver::try_recv) {
            Some(Ok(told)) => (self.known, self.asked) = (Some((Instant::now(), told)), None),
            Some(Err(TryRecvError::Closed)) => self.asked = None,
            Some(Err(TryRecvError::Empty)) | None => {}
        }
        let is_old = self.known.as_ref().is_none_or(|(at, _)| at.elapsed() >= ROOM_ASKED_EVERY);
        if self.asked.is_none() && is_old {
            let (tell, asked) = oneshot::channel();
            let (transfer, store) = (transfer.clone(), store.clone());
            tokio::task::spawn_blocking(move || {
                if tell.send(store.free_space()).is_ok() {
                    transfer.news.notify_one();
                }
            });
            self.asked = Some(asked);
        }
        self.known.as_ref().map(|(_, space)| space)
    }
}

impl<F: Fn() -> bool> Rest<F> {
    /// With one of these places; `give_up` ends the transfer unless somebody uses it.
    pub fn new(places: Arc<Semaphore>, give_up: F) -> Self {
        Self { places, place: None, give_up, room: Room::default() }
    }

    /// Whether the rest may be asked for now.
    pub fn may_come(&mut self, transfer: &Arc<Transfer>, store: &Arc<ContentStore>) -> bool {
        if transfer.pieces.is_none() || transfer.wholes.load(Ordering::Acquire) > 0 {
            return true;
        }
        let missing = transfer.wanted.size.saturating_sub(transfer.state.lock().have_bytes);
        let Some(space) = self.room.space(transfer, store) else { return false };
        let has_room = space.as_ref().is_ok_and(|space| space.free >= missing + space.total / LOW_SHARE);
        if self.place.is_none() {
            self.place = self.places.clone().try_acquire_owned().ok();
        }
        let may_come = self.place.is_some() && has_room;
        if !may_come {
            self.place = None;
        }
        may_come
    }

    /// Nobody waits for anything: end the transfer, unless somebody has it open.
    pub fn give_up(&self) -> bool {
        self.room.known.is_some() && (self.give_up)()
    }
}
