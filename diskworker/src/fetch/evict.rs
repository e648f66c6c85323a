//! A lazy disk makes room for what is read: when little is free, or who fetches finds too little, what was read longest ago
//! goes first. A content goes only when as many other disks as copies are wanted have promised to keep theirs, or as many as there are that
//! may keep any where those are fewer: one that nobody else keeps stays, however old it is. What fetches that were given up have left goes too.
//! That goes from disks that are not lazy as well, and everywhere when it has lain for a day: it may be what keeps the disk from being
//! asked to go on with it. What no file has any more nobody goes on with: that goes after some minutes.
//!
//! In rounds: each makes one list of what may go, and ends when enough of it went. What goes is deleted, not moved to the
//! trash; the trash is emptied by who finds no room, before he asks for any here.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::ContentId;
use nix::errno::Errno;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Fetcher;
use super::room::{Shown, TICK, needed};
use crate::content::Space;

/// Between two looks when nothing more can be done and nobody waits; longer where one takes long.
const EVERY: Duration = Duration::from_secs(30);
/// After a round that did less than it should, or that was for nobody: each looks at all contents. Longer if it took longer.
const BREATH: Duration = Duration::from_secs(1);
/// Below this part of the disk room is made, until twice as much is free.
pub(super) const LOW_SHARE: u64 = 20;
/// What a fetch has left goes when nothing came to it for so long although a disk that has the content is there, however much is free.
const LEFT_MAX: Duration = Duration::from_secs(86_400);
/// The same when no file has the content: so long who reads a file that was removed may go on.
const NAMELESS_MAX: Duration = Duration::from_secs(600);
/// Contents that others are asked for at once.
const AT_ONCE: usize = 16;
/// Contents that had to stay until a round ends: each costs a question to the others.
const STAY_MAX: usize = 256;
/// A content that had to stay is not asked for again for so long. Often it was a short fault of the network alone.
const KEPT: Duration = Duration::from_secs(120);
/// So long a round waits until what went is shown as free.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// What a disk lets go for room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Goes {
    /// What fetches that were given up have left.
    LeftOvers,
    /// That, and copies that others keep.
    Copies,
}

/// Copies of a content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Keep {
    /// So many are wanted.
    wanted: u32,
    /// So many others must keep theirs.
    needed: u32,
}

/// One that may go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Old {
    used: SystemTime,
    content: ContentId,
    bytes: u64,
    /// `None` for what a fetch has left.
    keep: Option<Keep>,
}

/// What a round has done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// Contents that went, and left-overs.
    pub gone: u64,
    bytes: u64,
    stayed: usize,
    /// All contents were looked at, as room was missing.
    looked: bool,
    /// Until all that was to go went, or stayed.
    took: Duration,
    /// As much went as was missing, and somebody waited for it.
    served: bool,
    /// There was as much as anybody needed: who finds none now must ask again.
    enough: bool,
}

impl Round {
    /// Whether a further one may do more.
    fn goes_on(&self, is_needed: bool) -> bool {
        self.gone > 0 || is_needed && self.stayed >= STAY_MAX
    }

    /// How long others have the disk for themselves before a further one.
    fn breath(&self) -> Duration {
        if self.served { Duration::ZERO } else { BREATH.max(self.took) }
    }

    /// Whether who waited for it waits for nothing.
    fn is_in_vain(&self, is_needed: bool) -> bool {
        !self.enough && !self.goes_on(is_needed)
    }
}

impl Fetcher {
    /// Keep room on a disk, until told to stop.
    pub async fn keep_room(self: Arc<Self>, goes: Goes, stop: CancellationToken) {
        let keeping = self.room.keep();
        let rounds = async {
            loop {
                keeping.begin();
                let began = Instant::now();
                let round = self.make_room(LOW_SHARE, goes).await.unwrap_or_else(|error| {
                    tracing::debug!(%error, "no room is made");
                    Round { looked: true, took: began.elapsed(), ..Round::default() }
                });
                let is_needed = self.room.is_needed();
                keeping.end(round.is_in_vain(is_needed));
                match round.goes_on(is_needed) {
                    true => sleep(round.breath()).await,
                    false => self.pause(&round).await,
                }
            }
        };
        tokio::select! {
            () = rounds => {}
            () = stop.cancelled() => {}
        }
    }

    /// Until a further round may do more than one that was in vain.
    async fn pause(&self, round: &Round) {
        // As long as there is room a round costs nothing; when there was none, it is only for who waits.
        let asked = async {
            if round.looked {
                sleep(round.breath()).await;
            }
            loop {
                self.room.asked().await;
                if !round.looked || self.room.is_needed() {
                    return;
                }
            }
        };
        tokio::select! {
            () = asked => {}
            () = sleep(EVERY.max(round.took * 10)) => {}
        }
    }

    /// One round: let go what was read longest ago while less than this share of the disk is free, or somebody needs room.
    pub(super) async fn make_room(self: &Arc<Self>, low_share: u64, goes: Goes) -> FsResult<Round> {
        let (mut round, began) = (Round::default(), Instant::now());
        let this = self.clone();
        // Not right after a start: sources have just come, and nobody has asked for it again.
        if self.promises.is_settled() {
            let has_source = move |content| !this.net.keepers(content).is_empty();
            let this = self.clone();
            let dropping = tokio::task::spawn_blocking(move || this.drop_left(SystemTime::now(), &has_source));
            match dropping.await.map_err(|_| FsError::from(Errno::EIO))? {
                Ok(gone) => round.gone = gone,
                Err(error) => tracing::debug!("what fetches have left stays: {error}"),
            }
        }
        // Before it looks at the contents: that may take longer than anybody waits, and who comes next finds what was made.
        let needs = self.room.needs();
        let mut space = self.engine.store.free_space()?;
        // What is left is only a hindrance where somebody needs its room: the fetch may go on when its source is back.
        let is_low = goes == Goes::Copies && missing(space, low_share, 1) > 0;
        round.enough = !is_low && needed(&needs, u64::MAX) <= space.free;
        if round.enough {
            return Ok(round);
        }
        round.looked = true;
        if !needs.is_empty() && self.may_collect() {
            // What no file has any more goes before anything else; on a disk that lets no copy go it may be all there is.
            let engine = self.engine.clone();
            let collecting = tokio::task::spawn_blocking(move || -> FsResult<u64> {
                engine.collect()?;
                engine.collect()?; // what had just been finished is spared by the first
                engine.store.purge_trash()
            });
            match collecting.await.map_err(|_| FsError::from(Errno::EIO))? {
                Ok(freed) => tracing::debug!("made room: {freed} bytes that no file has any more"),
                Err(error) => tracing::debug!("what no file has any more stays: {error}"),
            }
            *self.collected.lock() = Some((Instant::now(), began.elapsed()));
            space = self.engine.store.free_space()?;
            round.served = needed(&needs, u64::MAX) <= space.free;
            if round.served {
                (round.gone, round.took) = (round.gone + 1, began.elapsed());
                return Ok(round);
            }
        }
        let this = self.clone();
        let oldest = tokio::task::spawn_blocking(move || this.oldest(goes)).await;
        let oldest = oldest.map_err(|_| FsError::from(Errno::EIO))??;
        let can_be = oldest.iter().fold(space.free, |sum, old| sum.saturating_add(old.bytes));
        let needed = needed(&needs, can_be).saturating_sub(space.free);
        let goal = if is_low { missing(space, low_share, 2).max(needed) } else { needed };
        // By what they should free, not by what is free: that may be shown later only.
        let (mut oldest, mut going, mut going_bytes) = (oldest.into_iter(), JoinSet::new(), 0);
        let mut shown = Shown::new(space.free);
        loop {
            while going.len() < AT_ONCE && round.bytes + going_bytes < goal && round.stayed < STAY_MAX {
                let Some(old) = oldest.next() else { break };
                going_bytes += old.bytes;
                let this = self.clone();
                going.spawn(async move { (old, this.let_old_go(old).await) });
            }
            let Some(done) = going.join_next().await else { break };
            let (old, why) = done.map_err(|_| FsError::from(Errno::EIO))?;
            going_bytes -= old.bytes;
            match why {
                None => (round.gone, round.bytes) = (round.gone + 1, round.bytes + old.bytes),
                Some(why) => {
                    tracing::debug!("content {} stays: {why}", old.content);
                    if old.keep.is_some() {
                        self.kept.lock().insert(old.content, Instant::now());
                    }
                    round.stayed += 1;
                }
            }
            shown.look(self.engine.store.free_space()?.free);
        }
        (round.took, round.served) = (began.elapsed(), needed > 0 && round.bytes >= goal);
        self.kept.lock().retain(|_, at| at.elapsed() < KEPT);
        if round.gone > 0 {
            tracing::info!("made room: {} contents went that other disks keep, or that had not come", round.gone);
        }
        let ended = Instant::now();
        while !shown.is_like(round.bytes) && ended.elapsed() < SHOWN_WITHIN {
            sleep(TICK).await;
            shown.look(self.engine.store.free_space()?.free);
        }
        Ok(round)
    }

    /// The whole catalog is walked for that: now and then.
    fn may_collect(&self) -> bool {
        self.collected.lock().is_none_or(|(ended, took)| ended.elapsed() > EVERY.max(took * 10))
    }

    /// What may go, longest unused first. Blocks.
    fn oldest(&self, goes: Goes) -> FsResult<Vec<Old>> {
        let mut oldest = self.left()?;
        // As long as nothing held may go, what was left still may: it needs no promise.
        if goes == Goes::Copies && self.promises.is_settled() {
            let (store, ledger) = (&self.engine.store, self.engine.ledger()?);
            // Where the cluster has one disk that is not lazy there are no two to promise it, ever: what was read would fill this one.
            let most = u32::try_from(self.net.may_keep(&*self.engine.marks()?)).unwrap_or(u32::MAX).max(1);
            oldest.extend(store.contents().flatten().filter_map(|(content, bytes)| {
                // What no file has is the collector's.
                let wanted = ledger.find(content)?.wanted;
                let used = store.last_used(content).unwrap_or(SystemTime::UNIX_EPOCH);
                Some(Old { used, content, bytes, keep: Some(Keep { wanted, needed: wanted.min(most) }) })
            }));
        }
        oldest.retain(|old| self.may_go(*old));
        oldest.sort_unstable();
        Ok(oldest)
    }

    /// What fetches have left, or are at work on.
    fn left(&self) -> FsResult<Vec<Old>> {
        let store = &self.engine.store;
        let left = store.incoming()?.into_iter().filter_map(|content| {
            let (used, bytes) = store.incoming_used(content)?;
            Some(Old { used, content, bytes, keep: None })
        });
        Ok(left.collect())
    }

    /// Remove what fetches have left long ago, or of what no file has any more; how many. Blocks.
    pub(super) fn drop_left(&self, now: SystemTime, has_source: &dyn Fn(ContentId) -> bool) -> FsResult<u64> {
        let is_older = |old: &Old, than| now.duration_since(old.used).is_ok_and(|age| age > than);
        let mut left = self.left()?;
        left.retain(|old| is_older(old, NAMELESS_MAX));
        if left.is_empty() {
            return Ok(0);
        }
        let ledger = self.engine.ledger()?;
        let may_go =
            |old: &Old| ledger.find(old.content).is_none() || is_older(old, LEFT_MAX) && has_source(old.content);
        let mut gone = 0;
        for old in left.into_iter().filter(may_go) {
            match self.remove_left(old.content) {
                Ok(removed) => gone += u64::from(removed),
                Err(error) => tracing::debug!("what a fetch has left stays: {error}"),
            }
        }
        Ok(gone)
    }

    /// Whom too few others could promise it, or who was refused lately, is not asked: what comes behind it must have its turn.
    fn may_go(&self, old: Old) -> bool {
        let is_kept = self.kept.lock().get(&old.content).is_some_and(|at| at.elapsed() < KEPT);
        match old.keep {
            Some(keep) => !is_kept && self.net.keepers(old.content).len() >= keep.needed as usize,
            None => !self.is_fetched(old.content),
        }
    }

    /// Why not, if so.
    async fn let_old_go(self: Arc<Self>, old: Old) -> Option<String> {
        let went = match old.keep {
            Some(Keep { wanted, needed }) => {
                self.let_go(old.content, wanted, needed).await.map(|went| went.map_err(|stays| stays.why))
            }
            None => {
                let removing = tokio::task::spawn_blocking(move || self.remove_left(old.content)).await;
                let removed = removing.unwrap_or_else(|_| Err(Errno::EIO.into()));
                removed.map(|removed| if removed { Ok(()) } else { Err("somebody fetches it again".into()) })
            }
        };
        went.unwrap_or_else(|error| Err(error.to_string())).err()
    }
}

/// Bytes to be freed until this many times the share of the disk is free.
fn missing(space: Space, share: u64, times: u64) -> u64 {
    (space.total / share.max(1)).saturating_mul(times).saturating_sub(space.free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_below_the_share_until_twice_as_much_is_free() {
        let space = |free| Space { total: 2000, free, available: free };
        assert_eq!((missing(space(100), 20, 1), missing(space(99), 20, 1)), (0, 1));
        assert_eq!((missing(space(150), 20, 2), missing(space(200), 20, 2)), (50, 0));
    }

    #[test]
    fn it_goes_on_while_something_goes_and_for_who_waits_past_those_that_stay() {
        let round = |gone, stayed| Round { gone, stayed, ..Round::default() };
        assert!(round(1, 0).goes_on(false) && !round(0, 3).goes_on(true));
        assert!(round(0, STAY_MAX).goes_on(true) && !round(0, STAY_MAX).goes_on(false));
        assert!(round(0, 3).is_in_vain(true) && !round(0, STAY_MAX).is_in_vain(true) && !round(1, 0).is_in_vain(true));
        assert_eq!(Round { served: true, ..round(1, 0) }.breath(), Duration::ZERO);
        let took = BREATH * 7;
        assert_eq!((round(1, 0).breath(), Round { took, ..round(1, 0) }.breath()), (BREATH, took));
        // Room that was there when it looked, and that others have taken since.
        assert!(!Round { enough: true, ..Round::default() }.is_in_vain(true));
    }
}
