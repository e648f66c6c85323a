//! A change being put together: what each touched key becomes, under one dot and one time.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use delugefs_proto::codec;
use delugefs_proto::ids::{BlobId, Ino};
use delugefs_proto::record::{Body, Dot, Element, Hlc, Key};

use crate::catalog::{COUNT_MAX, Changes, blob_id};
use crate::view;

/// See the module. Nothing happens before [`super::Namespace::apply`].
pub struct Txn {
    /// What the keys become.
    pub change: Changes,
    /// Dot of everything it makes.
    pub dot: Dot,
    /// Time of everything it makes: now, or later where what it replaces is later.
    pub hlc: Hlc,
    now_ns: i64,
    /// Contents that only get a new dot: files, and the dots they had.
    pub renewed: Vec<(Ino, Dot)>,
}

impl Txn {
    pub(super) fn new(dot: Dot, last_hlc: u64) -> Self {
        let now_ns = now_ns();
        let hlc = Hlc((now_ns as u64).max(last_hlc + 1).min(COUNT_MAX));
        Self { change: Changes::default(), dot, hlc, now_ns, renewed: Vec::new() }
    }

    /// The wall clock, nanoseconds since 1970: what mtime becomes "now". Another host's clock may be far ahead.
    pub fn now_ns(&self) -> i64 {
        self.now_ns
    }

    /// An element of this change.
    pub fn element(&self, body: Body) -> Element {
        Element { dot: self.dot, body, hlc: self.hlc }
    }

    /// An element of this change that keeps an older time: it does not compete with later ones of its kind.
    pub fn element_of(&self, body: Body, hlc: Hlc) -> Element {
        Element { dot: self.dot, body, hlc }
    }

    /// Never earlier than what is being replaced.
    pub fn after(&mut self, replaced: &[Element]) {
        let latest = replaced.iter().map(|e| e.hlc.0).max().unwrap_or_default();
        self.hlc.0 = self.hlc.0.max(latest + 1).min(COUNT_MAX);
    }

    /// Set a key.
    pub fn set(&mut self, key: Key, mut elements: Vec<Element>) {
        codec::canonicalize(&mut elements);
        self.change.sets.insert(key, elements);
    }

    /// What this change has already set a key to.
    pub fn get(&self, key: &Key) -> Option<&Vec<Element>> {
        self.change.sets.get(key)
    }

    /// Whether it leaves an element of its own, by which a replay of the journal can tell that a commit has it.
    pub fn leaves_its_dot(&self) -> bool {
        self.change.sets.values().flatten().any(|element| element.dot == self.dot)
    }

    /// Add an attachment.
    pub fn attach(&mut self, bytes: Bytes) -> BlobId {
        let id = blob_id(&bytes);
        self.change.blobs.insert(id, bytes);
        id
    }

    /// New times for a node: `None` keeps what it has. Replaces every older element of times.
    pub fn set_times(&self, elements: &mut Vec<Element>, of: Ino, mtime: Option<i64>, atime: Option<i64>) {
        let is_times = |body: &Body| matches!(body, Body::Times { ino, .. } if *ino == of);
        let (old_mtime, old_atime) = match view::latest(elements, is_times).map(|e| &e.body) {
            Some(Body::Times { mtime_ns, atime_ns, .. }) => (*mtime_ns, *atime_ns),
            _ => (self.now_ns(), self.now_ns()),
        };
        elements.retain(|e| !is_times(&e.body));
        let (mtime_ns, atime_ns) = (mtime.unwrap_or(old_mtime), atime.unwrap_or(old_atime));
        elements.push(self.element(Body::Times { ino: of, mtime_ns, atime_ns }));
    }
}

/// The wall clock, nanoseconds since 1970.
pub fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

#[cfg(test)]
mod tests {
    use delugefs_proto::ids::ActorId;

    use super::*;

    #[test]
    fn another_hosts_clock_that_is_ahead_orders_changes_and_sets_no_time() {
        let ahead = now_ns() as u64 + (1 << 60);
        let txn = Txn::new(Dot { actor: ActorId(1), seq: 1 }, ahead);
        assert!(txn.hlc.0 > ahead && (txn.now_ns() as u64) < ahead);
        // Nobody makes what others refuse, whatever it replaces.
        let mut last = Txn::new(Dot { actor: ActorId(1), seq: 1 }, COUNT_MAX);
        let body = Body::Dir { ino: Ino(30) };
        last.after(&[Element { dot: last.dot, body, hlc: Hlc(COUNT_MAX) }]);
        assert_eq!(last.hlc.0, COUNT_MAX);
    }
}
