//! Places that the members share when they ask for something that takes a thread of this disk: so many at once, and not all of them for one
//! disk. One that asks and takes nothing would keep all others out. Who waits for a place is a task and nothing more.

use std::collections::HashMap;
use std::sync::Arc;

use delugefs_proto::ids::DiskId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// See the module.
#[derive(Clone, Debug)]
pub struct Shares {
    free: Arc<Semaphore>,
    each: Arc<Mutex<HashMap<DiskId, Arc<Semaphore>>>>,
    each_max: usize,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Share {
    _of_its_own: Option<OwnedSemaphorePermit>,
    _place: OwnedSemaphorePermit,
}

impl Shares {
    /// So many in all, and for each disk.
    pub fn new(all_max: usize, each_max: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(all_max)), each: Arc::default(), each_max }
    }

    /// A place for a disk as soon as there is one; the only disk that could ask may have all. `None` when this disk is stopping.
    pub async fn take(&self, disk: DiskId, is_only: bool) -> Option<Share> {
        let own = (!is_only).then(|| {
            let new = || Arc::new(Semaphore::new(self.each_max));
            self.each.lock().entry(disk).or_insert_with(new).clone()
        });
        let of_its_own = match own {
            Some(own) => Some(own.acquire_owned().await.ok()?),
            None => None,
        };
        Some(Share { _of_its_own: of_its_own, _place: self.free.clone().acquire_owned().await.ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_disk_does_not_get_all_places() {
        let shares = Shares::new(4, 3);
        let (one, other) = (DiskId([1; 32]), DiskId([2; 32]));
        let at_once = async |disk, is_only| {
            tokio::select! {
                biased;
                share = shares.take(disk, is_only) => share,
                () = std::future::ready(()) => None,
            }
        };
        let mut held = Vec::new();
        for _ in 0..3 {
            held.extend(at_once(one, false).await);
        }
        assert_eq!((held.len(), at_once(one, false).await.is_none()), (3, true));
        let theirs = at_once(other, false).await;
        assert!(theirs.is_some() && at_once(other, false).await.is_none(), "there are four");
        drop(theirs);
        // Where there is nobody else.
        assert!(at_once(one, true).await.is_some());
        held.pop();
        assert!(at_once(one, false).await.is_some());
    }
}
