//! Letting copies go: only when enough other disks that hold the content have just promised to keep theirs, and shown that they have it
//! (`proof.rs`). A disk that has promised lets nothing go until the promise ends, and one that is about to promises nothing: so no two rely on
//! each other. Promises end with the process; a disk that has just started neither promises nor lets go for as long as
//! one lasts.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use delugefs_proto::codec::{decode_version_vector, encode_version_vector};
use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::ContentId;
use delugefs_proto::peer_pb::{PromiseReply, PromiseRequest};
use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::Fetcher;
use super::proof::Shown;
use crate::content::ContentStore;

/// How long a promise lasts that we ask for.
const PROMISE: Duration = Duration::from_secs(600);
/// Longest promise that we give.
const PROMISE_MAX: Duration = Duration::from_secs(3600);
/// A disk that is asked for one waits for the asker's state so long.
const FOLLOWS: Duration = Duration::from_secs(8);
/// For one answer.
const ANSWER: Duration = Duration::from_secs(10);
/// What may be over at any time is asked for again after that.
const SOON: Duration = Duration::from_secs(30);

/// Why a copy stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stays {
    pub why: String,
    /// When to ask again, if it is a matter of time.
    pub again: Option<Duration>,
}

impl Stays {
    fn now(why: impl Into<String>) -> Self {
        Self { why: why.into(), again: None }
    }

    fn until(why: &str, again: Duration) -> Self {
        Self { why: why.into(), again: Some(again) }
    }

    /// As it is sent: 0 for what is no matter of time.
    pub fn again_s(&self) -> u32 {
        // Never too early by a part of a second.
        self.again.map_or(0, |again| u32::try_from(again.as_secs() + 1).unwrap_or(u32::MAX))
    }
}

/// What this disk is about to let go. What it has promised the store knows.
pub(super) struct Promises {
    start: Instant,
    /// Set by tests only.
    settled: AtomicBool,
    leaving: Mutex<HashSet<ContentId>>,
}

impl Default for Promises {
    fn default() -> Self {
        Self { start: Instant::now(), settled: AtomicBool::new(false), leaving: Mutex::default() }
    }
}

impl Promises {
    /// Whether promises of an earlier life of this process have ended.
    pub(super) fn is_settled(&self) -> bool {
        self.unsettled_for().is_none()
    }

    /// When they will have, if they have not.
    fn unsettled_for(&self) -> Option<Duration> {
        let left = PROMISE.saturating_sub(self.start.elapsed());
        Some(left).filter(|left| !left.is_zero() && !self.settled.load(Ordering::Relaxed))
    }

    /// As if a promise's time had passed.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    /// Give one, unless the content is on its way out.
    fn give(&self, store: &ContentStore, content: ContentId, lasts: Duration) -> bool {
        let leaving = self.leaving.lock();
        let given = !leaving.contains(&content);
        if given {
            store.promise(content, lasts.min(PROMISE_MAX));
        }
        given
    }

    /// Begin to let a content go, unless it was promised.
    fn begin(&self, store: &ContentStore, content: ContentId) -> bool {
        let mut leaving = self.leaving.lock();
        let begun = !store.is_promised(content) && leaving.insert(content);
        if begun {
            store.begin_leaving(content);
        }
        begun
    }

    fn end(&self, store: &ContentStore, content: ContentId) {
        let mut leaving = self.leaving.lock();
        store.end_leaving(content);
        leaving.remove(&content);
    }
}

impl Fetcher {
    /// Another disk asks this one to keep a content.
    pub async fn promise(&self, request: &PromiseRequest) -> FsResult<PromiseReply> {
        let not_now =
            |stays: &Stays| Ok(PromiseReply { promised: false, reason: stays.why.clone(), again_s: stays.again_s() });
        let no = |reason: &str| not_now(&Stays::now(reason));
        let soon = |reason: &str| not_now(&Stays::until(reason, SOON));
        let Some(content) = ContentId::from_slice(&request.content) else { return no("no content id") };
        if let Some(left) = self.promises.unsettled_for() {
            return not_now(&Stays::until("it has just started", left));
        }
        if self.net.is_lazy() || self.engine.refusal().is_some() {
            return no("nobody should rely on it");
        }
        if self.net.is_suspect(content) {
            return soon("its copy may be damaged");
        }
        if !self.follows(&request.seen).await {
            return soon("it does not know yet what the asker knows");
        }
        // Before promising: whoever is refused must not bind it.
        let (engine, me) = (self.engine.clone(), self.engine.folder.disk_id());
        let checking = tokio::task::spawn_blocking(move || -> FsResult<bool> {
            Ok(!engine.marks()?.contains_key(&me) && engine.store.has(content)?.is_some())
        });
        if !checking.await.map_err(|_| FsError::from(Errno::EIO))?? {
            return no("it does not hold it, or is to be emptied");
        }
        if !self.promises.give(&self.engine.store, content, Duration::from_secs(request.seconds.into())) {
            return soon("it lets its own copy go");
        }
        let (engine, asked) = (self.engine.clone(), request.wanted);
        // After promising: what is there now stays.
        let held = tokio::task::spawn_blocking(move || {
            // By what this disk knows: it may be behind, and would let the content go when the promise has ended.
            let size = match engine.ledger()?.find(content) {
                Some(entry) if entry.wanted <= asked => entry.size,
                _ => return Ok(false),
            };
            let held = engine.holds(content, size)?;
            if held {
                // Also what an earlier process may have put there.
                engine.store.doubt(content);
                engine.store.sync_content(content)?;
            }
            Ok(held)
        });
        let held: Result<FsResult<bool>, _> = held.await;
        match held {
            // It was looked at meanwhile.
            Ok(Ok(true)) if self.net.is_suspect(content) => soon("its copy may be damaged"),
            Ok(Ok(true)) => Ok(PromiseReply { promised: true, ..PromiseReply::default() }),
            Ok(Ok(false)) => no("it does not hold it, or knows more of what is wanted"),
            Ok(Err(error)) => Err(error),
            Err(_) => no("it is stopping"),
        }
    }

    /// Whether this disk has what the asker has seen, or has it soon. Else a file that nobody but the asker knows would lose its content
    /// here when the files known here are removed.
    async fn follows(&self, seen: &[u8]) -> bool {
        let Ok(seen) = decode_version_vector(seen) else { return false };
        let mut commits = self.engine.commits();
        let followed = async {
            while !self.engine.committed().ctx.dominates(&seen) {
                if commits.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        timeout(FOLLOWS, followed).await == Ok(true)
    }

    /// Let this disk's copy go, if so many `others` promise to keep theirs, to whom no more copies than `wanted` are known to be wanted. Why
    /// not, if so.
    pub async fn let_go(self: &Arc<Self>, content: ContentId, wanted: u32, others: u32) -> FsResult<Result<(), Stays>> {
        if others == 0 {
            return Ok(Err(Stays::now("this may be the last copy of a file's content")));
        }
        if let Some(left) = self.promises.unsettled_for() {
            return Ok(Err(Stays::until("this disk has just started: it waits until older promises have ended", left)));
        }
        if !self.promises.begin(&self.engine.store, content) {
            return Ok(Err(match self.engine.store.promised_for(content) {
                Some(left) => Stays::until("this disk has promised to keep its copy", left),
                None => Stays::until("it was asked already to let it go", SOON),
            }));
        }
        let this = self.clone();
        // A caller who hangs up must not stop it halfway.
        let letting_go = tokio::spawn(async move {
            let result = this.let_go_if_promised(content, wanted, others).await;
            this.promises.end(&this.engine.store, content);
            result
        });
        letting_go.await.map_err(|_| FsError::from(Errno::EIO))?
    }

    async fn let_go_if_promised(&self, content: ContentId, wanted: u32, others: u32) -> FsResult<Result<(), Stays>> {
        // Somebody may be fetching it from here; and nobody is to be bound in vain.
        if self.engine.store.is_used(content) {
            return Ok(Err(Stays::until("something on this disk uses it", SOON)));
        }
        // Nobody begins to any more. Who gets it now could show that, and have nothing.
        if self.engine.store.is_given(content) {
            return Ok(Err(Stays::until("another disk is reading it from here", SOON)));
        }
        let engine = self.engine.clone();
        let seen = tokio::task::spawn_blocking(move || engine.knowing(content)).await;
        let seen = encode_version_vector(&seen.map_err(|_| FsError::from(Errno::EIO))??);
        // How many do, and when more may.
        let (mut promised, mut later) = (0, Vec::new());
        for disk in self.net.keepers(content) {
            if promised == others {
                break;
            }
            let seconds = PROMISE.as_secs() as u32;
            let asked = async {
                let seen = seen.clone();
                let request = PromiseRequest { content: content.0.to_vec(), seconds, wanted, seen };
                let reply = self.net.client(disk).await.ok()?.promise(request).await.ok()?;
                Some(reply.into_inner())
            };
            match timeout(ANSWER, asked).await.ok().flatten() {
                Some(reply) if reply.promised => match self.shown_by(disk, content).await {
                    Ok(Shown::Same) => promised += 1,
                    Ok(Shown::Other) => self.net.differs(disk, content),
                    Ok(Shown::Nothing) => later.push(SOON),
                    Err(error) => {
                        self.net.suspect_own(content);
                        return Err(error);
                    }
                },
                Some(PromiseReply { again_s: 0, .. }) => {}
                Some(reply) => later.push(Duration::from_secs(reply.again_s.into())),
                None => later.push(SOON),
            }
        }
        if promised < others {
            let why =
                format!("only {promised} other disks promise to keep it and show that they have it, not {others}");
            return Ok(Err(Stays { why, again: enough_at(later, others - promised) }));
        }
        let engine = self.engine.clone();
        let moved = tokio::task::spawn_blocking(move || engine.store.let_go(content)).await;
        match moved {
            Ok(Ok(true)) => Ok(Ok(())),
            Ok(Ok(false)) => Ok(Err(Stays::until("something on this disk uses it", SOON))),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(Err(Stays::now("this disk is stopping"))),
        }
    }
}

/// When so many more may promise, of whom each may after one of these times.
fn enough_at(mut later: Vec<Duration>, missing: u32) -> Option<Duration> {
    later.sort_unstable();
    later.get(missing.checked_sub(1)? as usize).copied()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::folder::DiskFolder;

    #[test]
    fn a_promise_and_a_farewell_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Arc::new(DiskFolder::create(&dir.path().join("d"), "test", None).unwrap());
        let store = ContentStore::open(folder, 0).unwrap();
        let promises = Promises::default();
        let (one, other) = (ContentId([1; 32]), ContentId([2; 32]));
        assert!(promises.give(&store, one, PROMISE) && !promises.begin(&store, one));
        assert!(promises.begin(&store, other) && !promises.begin(&store, other));
        assert!(!promises.give(&store, other, PROMISE));
        promises.end(&store, other);
        assert!(promises.give(&store, other, Duration::ZERO) && promises.begin(&store, other));
    }

    #[test]
    fn what_is_about_to_go_is_begun_to_be_given_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Arc::new(DiskFolder::create(&dir.path().join("d"), "test", None).unwrap());
        let store = Arc::new(ContentStore::open(folder, 0).unwrap());
        let content = ContentId([1; 32]);
        let given = [store.give(content), store.give(content)];
        store.begin_leaving(content);
        assert!(store.is_given(content) && store.give(content).is_none());
        given.into_iter().for_each(|given| {
            assert!(store.is_given(content));
            drop(given);
        });
        assert!(!store.is_given(content) && store.give(content).is_none());
        store.end_leaving(content);
        assert!(store.give(content).is_some() && !store.is_given(content));
    }

    #[test]
    fn who_is_refused_for_now_knows_when_to_ask_again() {
        let s = Duration::from_secs;
        let promises = Promises::default();
        assert!(promises.unsettled_for().is_some_and(|left| left <= PROMISE && left > s(500)));
        promises.settle();
        assert_eq!(promises.unsettled_for(), None);
        let enough = [1, 2, 3, 4].map(|missing| enough_at(vec![s(90), s(3), s(20)], missing));
        assert_eq!(enough, [Some(s(3)), Some(s(20)), Some(s(90)), None]);
        assert_eq!([Stays::until("", s(3)).again_s(), Stays::now("").again_s()], [4, 0]);
    }

    #[test]
    fn what_was_promised_stays_whatever_the_catalog_says() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Arc::new(DiskFolder::create(&dir.path().join("d"), "test", None).unwrap());
        let store = ContentStore::open(folder.clone(), 0).unwrap();
        let content = |text: &[u8]| {
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text);
            let id = ContentId::from_slice(hash.as_ref()).unwrap();
            let file = store.incoming_file(id, text.len() as u64).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, text, 0).unwrap();
            drop(file);
            store.finish_incoming(id, text.len() as u64, &|| false).unwrap();
            id
        };
        let (promised, other) = (content(b"promised"), content(b"other"));
        store.promise(promised, PROMISE);
        // Twice: what was finished since the last collection is spared.
        for _ in 0..2 {
            store.collect(&HashSet::new(), Duration::ZERO, SystemTime::now()).unwrap();
        }
        assert!(!store.let_go(promised).unwrap());
        // A further file gets what is about to go: those who keep it may not know of that one.
        let leaving = content(b"leaving");
        for is_got in [true, false] {
            store.begin_leaving(leaving);
            if is_got {
                content(b"leaving");
            }
            assert_eq!(store.let_go(leaving).unwrap(), !is_got);
            store.end_leaving(leaving);
        }
        assert_eq!((store.has(promised).unwrap(), store.has(other).unwrap()), (Some(8), None));
    }
}
