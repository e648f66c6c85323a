//! Copies that turn out to be corrupt. Who gets wrong bytes tells the disk that sent them, and that one looks at its copy itself, as
//! a scrub does: what is damaged is set aside, so that nobody counts on it any more, and the policy has a good one fetched. So it does
//! with what it could not read for somebody.
//!
//! A report is nothing but a hint: who lies costs a read. Copies are looked at one after the other, for half of the time at most, each
//! once in some minutes; only so many wait, and those that one disk reports are a part of them.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::disk::short_id;
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ContentId, DiskId};
use delugefs_proto::peer_pb::ReportCorruptRequest;
use nix::errno::Errno;
use tokio::time::timeout;

use super::Net;
use crate::content::Suspect;
use crate::engine::{Elsewhere, PROBLEMS_MAX};

/// A copy is not looked at again, and a disk not told of it again, for so long.
const AGAIN: Duration = Duration::from_secs(300);
/// Copies that wait to be looked at, and those of them that one disk has reported.
const WAITING_MAX: usize = 256;
const WAITING_EACH: usize = 16;
/// What is remembered of either kind.
const REMEMBERED_MAX: usize = 10_000;
/// How long a disk may take to hear of it.
const ANSWER: Duration = Duration::from_secs(8);

/// What is known of corrupt copies, here and elsewhere.
#[derive(Default)]
pub(super) struct Suspects {
    /// By whom it was reported, and what.
    waiting: VecDeque<(DiskId, ContentId)>,
    reported: Recently<ContentId>,
    told: Recently<(DiskId, ContentId)>,
    /// Copies that were found bad. With many of them it is the disk: then it keeps what it cannot read.
    bad: usize,
}

/// What was done a short time ago.
struct Recently<K>(HashMap<K, Instant>);

impl<K> Default for Recently<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Recently<K> {
    /// Whether it may be done now; then it was.
    fn may(&mut self, what: K, now: Instant) -> bool {
        let is_recent = |at: &Instant| now.duration_since(*at) < AGAIN;
        if self.0.get(&what).is_some_and(is_recent) {
            return false;
        }
        if self.0.len() >= REMEMBERED_MAX {
            self.0.retain(|_, at| is_recent(at));
        }
        let may = self.0.len() < REMEMBERED_MAX;
        if may {
            self.0.insert(what, now);
        }
        may
    }
}

impl Suspects {
    /// A disk says that the copy here is corrupt. Whether it is to be looked at.
    fn report(&mut self, by: DiskId, content: ContentId, now: Instant) -> bool {
        let of_it = self.waiting.iter().filter(|(other, _)| *other == by).count();
        let may = self.waiting.len() < WAITING_MAX && of_it < WAITING_EACH && self.reported.may(content, now);
        if may {
            self.waiting.push_back((by, content));
        }
        may
    }
}

impl Net {
    /// Tell a disk that what it sent of a content is corrupt. On the runtime.
    pub fn report_corrupt(self: &Arc<Self>, disk: DiskId, content: ContentId) {
        if !self.suspects.lock().told.may((disk, content), Instant::now()) {
            return;
        }
        let (id, hex) = (disk.to_hex(), content.to_hex());
        self.log.once("corrupt", &format!("{id} {hex}"), || {
            tracing::warn!(
                "disk {} sent corrupt bytes of content {hex}; it is told to look at its copy",
                short_id(&id)
            );
        });
        let net = self.clone();
        tokio::spawn(async move {
            let telling = async {
                let mut client = net.client(disk).await?;
                let told = client.report_corrupt(ReportCorruptRequest { content: content.0.to_vec() }).await;
                told.map(drop).map_err(|status| FsError::new(Errno::ECONNRESET, status.message().to_owned()))
            };
            let told: FsResult<()> = timeout(ANSWER, telling).await.unwrap_or(Err(Errno::ETIMEDOUT.into()));
            if let Err(error) = told {
                tracing::debug!("disk {} does not hear that its copy of {hex} is corrupt: {error}", short_id(&id));
            }
        });
    }

    /// The copy here is said to be corrupt, or could not be read: it is looked at soon.
    pub fn suspect(&self, by: DiskId, content: ContentId) {
        if self.suspects.lock().report(by, content, Instant::now()) {
            self.suspected.notify_one();
        }
    }

    /// The same, found on this disk.
    pub fn suspect_own(&self, content: ContentId) {
        self.suspect(self.engine.folder.disk_id(), content);
    }

    /// Blocks.
    fn look_at(&self, by: DiskId, content: ContentId) {
        let is_failing = self.suspects.lock().bad >= PROBLEMS_MAX;
        let is_elsewhere = !is_failing && self.elsewhere(content) == Elsewhere::Kept;
        let found = self.engine.store.suspect(content, is_elsewhere);
        if matches!(found, Ok(Suspect::SetAside) | Err(_)) {
            self.suspects.lock().bad += 1;
        }
        match found {
            Ok(Suspect::Whole) => self.log.once("suspect", &by.to_hex(), || {
                tracing::info!(
                    "disk {} got corrupt bytes of content {content}, and it is whole here",
                    short_id(&by.to_hex())
                );
            }),
            // The store has said so.
            Ok(Suspect::SetAside | Suspect::Absent) => {}
            Err(error) => tracing::warn!("content {content} cannot be checked: {error}"),
        }
    }
}

/// Look at what is reported, for as long as the network runs.
pub(super) async fn look_at_suspects(net: Arc<Net>) {
    let looking = async {
        loop {
            net.suspected.notified().await;
            loop {
                let Some((by, content)) = net.suspects.lock().waiting.pop_front() else { break };
                let (looks, began) = (net.clone(), Instant::now());
                if let Err(error) = tokio::task::spawn_blocking(move || looks.look_at(by, content)).await {
                    tracing::error!("looking at a content panicked: {error}");
                }
                tokio::time::sleep(began.elapsed()).await;
            }
        }
    };
    tokio::select! {
        () = looking => {}
        () = net.stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(n: usize) -> ContentId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        ContentId(id)
    }

    #[test]
    fn who_lies_costs_little() {
        let (liar, other, now) = (DiskId([1; 32]), DiskId([2; 32]), Instant::now());
        let mut suspects = Suspects::default();
        let taken = (0..1000).filter(|n| suspects.report(liar, content(*n), now)).count();
        assert_eq!(taken, WAITING_EACH);
        // Others are heard, and nothing twice within some minutes, whoever says it.
        assert!(suspects.report(other, content(5000), now) && !suspects.report(other, content(0), now));
        suspects.waiting.clear();
        assert!(!suspects.report(other, content(5000), now) && !suspects.report(liar, content(0), now));
        assert!(suspects.report(liar, content(0), now + AGAIN));
        for n in 0..2 * WAITING_MAX {
            suspects.report(DiskId([(n % 250) as u8; 32]), content(10_000 + n), now);
        }
        assert_eq!(suspects.waiting.len(), WAITING_MAX);
        // What is remembered has a bound, and is forgotten in time.
        let mut recently = Recently::default();
        assert_eq!((0..2 * REMEMBERED_MAX).filter(|n| recently.may(*n, now)).count(), REMEMBERED_MAX);
        assert!(recently.may(REMEMBERED_MAX + 1, now + AGAIN) && recently.0.len() == 1);
    }
}
