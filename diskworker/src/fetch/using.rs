//! Who uses a transfer: readers with a handle, and those who wait for the whole. One that is used is not given up with the
//! mirror it may have begun as.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use delugefs_proto::ids::ContentId;

use super::Fetcher;
use super::transfer::Transfer;

/// How many use it.
#[derive(Default)]
pub(super) struct Users(AtomicUsize);

impl Users {
    /// Nobody new comes as long as the caller has the lock on the table of transfers.
    pub fn is_none(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// A transfer, used until this is dropped.
pub(super) struct Using {
    transfer: Arc<Transfer>,
    counts: bool,
}

impl Using {
    /// To be called with the lock on the table of transfers. A mirror, which does not count, only watches.
    pub fn new(transfer: Arc<Transfer>, counts: bool) -> Self {
        if counts {
            transfer.users.0.fetch_add(1, Ordering::AcqRel);
        }
        Self { transfer, counts }
    }

    /// Whether it is this one.
    pub fn is(&self, transfer: &Arc<Transfer>) -> bool {
        Arc::ptr_eq(&self.transfer, transfer)
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        if self.counts {
            self.transfer.users.0.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Deref for Using {
    type Target = Transfer;

    fn deref(&self) -> &Transfer {
        &self.transfer
    }
}

/// A content that somebody begins to fetch, until this is dropped: what is here of it stays.
pub(super) struct Beginning<'a>(&'a Fetcher, ContentId);

impl<'a> Beginning<'a> {
    pub fn new(fetcher: &'a Fetcher, content: ContentId) -> Self {
        let _transfers = fetcher.transfers.lock();
        fetcher.beginning.lock().push(content);
        Self(fetcher, content)
    }
}

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        let _transfers = self.0.transfers.lock();
        let mut beginning = self.0.beginning.lock();
        if let Some(at) = beginning.iter().position(|content| *content == self.1) {
            beginning.swap_remove(at);
        }
    }
}
