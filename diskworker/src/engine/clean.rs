//! Housekeeping: seals left over, contents nobody refers to, the reserve.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::ContentId;
use delugefs_proto::record::{Body, Data, Element, Key};

use super::Engine;
use crate::namespace::catalog_error;

/// How often leftovers are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often the store is compared with the catalog.
const COLLECT_EVERY: Duration = Duration::from_secs(600);

impl Engine {
    /// Body of the cleaning thread.
    pub(super) fn clean_loop(&self) {
        let mut collected = Instant::now();
        let mut collect_every = COLLECT_EVERY;
        while !self.is_stopping() {
            self.halt.wait_for(&mut self.halt_lock.lock(), TICK);
            if self.is_stopping() {
                return;
            }
            for ino in self.core().staged.waiting() {
                self.seals.push(ino);
            }
            if collected.elapsed() >= collect_every.min(self.retention.max(TICK)) {
                let begin = Instant::now();
                if let Err(error) = self.collect() {
                    tracing::warn!("cannot clean up the store: {error}");
                }
                collected = Instant::now();
                // Never more than a hundredth of the time, however large the catalog is.
                collect_every = COLLECT_EVERY.max(begin.elapsed() * 100);
            }
            if self.refusal().is_none() {
                self.ballast.fill();
            }
        }
    }

    /// Put contents nobody refers to into the trash, and empty what has been there long enough.
    pub fn collect(&self) -> FsResult<()> {
        // What is sealed from here on is spared by the store: its record may be younger than the state looked at.
        self.commit()?;
        let mut live: HashSet<ContentId> = HashSet::new();
        let mut visit = |_: &Key, elements: &[Element]| {
            live.extend(elements.iter().filter_map(|e| match &e.body {
                Body::Content { data: Data::Stored { content, .. }, .. } => Some(*content),
                _ => None,
            }));
            Ok(())
        };
        self.core_catalog().for_each(&mut visit).map_err(catalog_error)?;
        let collected = self.store.collect(&live, self.retention, SystemTime::now())?;
        if collected.moved + collected.deleted > 0 {
            tracing::info!("{} contents to the trash, {} deleted from it", collected.moved, collected.deleted);
        }
        Ok(())
    }
}
