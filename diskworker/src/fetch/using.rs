//! Who uses a transfer: readers with a handle, and those who wait for the whole. One that is used is not given up with the
//! mirror it may have begun as.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use delugefs_proto::ids::ContentId;

use tokio_util::sync::CancellationToken;

use super::transfer::Transfer;
use super::{Fetcher, Wanted};

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

/// A mirror that somebody asks for, while it is considered whether it begins. Who calls it off meanwhile is heard.
pub struct Asked {
    fetcher: Arc<Fetcher>,
    content: ContentId,
    stop: CancellationToken,
    number: u64,
}

impl Asked {
    pub(super) fn new(fetcher: Arc<Fetcher>, content: ContentId) -> Self {
        let (stop, number) = (CancellationToken::new(), fetcher.engine.new_handle());
        fetcher.asked.lock().insert(number, (content, stop.clone()));
        Self { fetcher, content, stop, number }
    }

    /// It begins, unless it was called off: then `false`.
    pub fn mirror(self, wanted: Wanted) -> bool {
        debug_assert_eq!(wanted.content, self.content);
        self.fetcher.mirror_until(wanted, self.stop.clone())
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.fetcher.asked.lock().remove(&self.number);
    }
}
