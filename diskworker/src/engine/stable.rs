//! What every disk of the cluster is known to have followed (causal stability). A file that was renamed or linked by one that was away
//! outlives its removal here, and its content may be nowhere but in the trash: so that is kept until no such change can come any more.
//!
//! One state of ours at a time is watched: it is stable when from each other member a state was taken, or is known to be part of ours, that
//! includes it. What no file had in it then is no file's on any disk. In memory only: after a start a later state is watched.

use std::collections::HashSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use delugefs_proto::ids::DiskId;
use delugefs_proto::record::VersionVector;
use delugefs_proto::worker_pb::Mark;
use git2::Oid;
use parking_lot::Mutex;

use super::Engine;
use crate::catalog::State;
use crate::content::Retention;

/// The trash is kept for so long for disks that are away,
const AWAY: Duration = Duration::from_secs(30 * 24 * 3600);
/// as long as this part of the file system is free: what a disk has room for is judged by what is free, and a lazy one lets contents go
/// for room before it empties the trash.
const FREE_SHARE: u64 = 4;
/// States that are known to include the one that is watched.
const STATES_MAX: usize = 4096;

/// The members of the cluster, without this disk.
type Others = dyn Fn() -> Vec<DiskId> + Send + Sync;

/// See the module.
#[derive(Default)]
pub(super) struct Stable {
    others: OnceLock<Box<Others>>,
    /// The trash may have what is only kept for disks that are away.
    keeps: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// When the last state was looked at that turned out to be stable.
    until: Option<SystemTime>,
    watched: Option<Watched>,
    /// Members that are not waited for, as of the last collection.
    forgotten: HashSet<DiskId>,
}

struct Watched {
    at: SystemTime,
    ctx: VersionVector,
    /// States that include it, and are part of ours.
    states: HashSet<Oid>,
    followers: HashSet<DiskId>,
}

impl Known {
    /// A state that is part of ours.
    fn includes(&mut self, commit: Oid, ctx: &VersionVector) {
        if let Some(watched) = &mut self.watched
            && !watched.states.contains(&commit)
            && ctx.dominates(&watched.ctx)
        {
            if watched.states.len() >= STATES_MAX {
                watched.states.clear();
            }
            watched.states.insert(commit);
        }
    }

    /// A disk was in this state.
    fn was_in(&mut self, disk: DiskId, commit: Oid) {
        if let Some(watched) = self.watched.as_mut().filter(|watched| watched.states.contains(&commit)) {
            watched.followers.insert(disk);
        }
    }

    /// These are all.
    fn conclude(&mut self, others: &[DiskId]) {
        let forgotten = &self.forgotten;
        let is_done =
            |w: &mut Watched| others.iter().all(|disk| forgotten.contains(disk) || w.followers.contains(disk));
        if let Some(watched) = self.watched.take_if(is_done) {
            self.until = Some(watched.at);
        }
    }

    /// Nothing is stable for a disk that was forgotten and is not any more.
    fn remember_again(&mut self, is_forgotten: impl Fn(&DiskId) -> bool) {
        if !self.forgotten.iter().all(is_forgotten) {
            *self = Self::default();
        }
    }

    /// When something was stable last. After the clock was set back no time of before tells anything.
    fn until(&mut self, now: SystemTime) -> Option<SystemTime> {
        if self.until.is_some_and(|until| until > now) || self.watched.as_ref().is_some_and(|w| w.at > now) {
            *self = Self::default();
        }
        self.until
    }

    fn watch(&mut self, at: SystemTime, state: &State) {
        if self.watched.is_none() {
            let (states, followers) = ([state.commit].into(), HashSet::new());
            self.watched = Some(Watched { at, ctx: state.ctx.clone(), states, followers });
        }
    }
}

impl Engine {
    /// Who the other disks of the cluster are. Once.
    pub fn watch_members(&self, others: Box<Others>) {
        let _ = self.stable.others.set(others); // there is one
    }

    /// Our state, and what other disks have announced.
    pub fn note_states(&self, ours: &State, announced: impl Iterator<Item = (DiskId, Oid)>) {
        let mut known = self.stable.known.lock();
        if known.watched.is_some() {
            known.includes(ours.commit, &ours.ctx);
            announced.for_each(|(disk, commit)| known.was_in(disk, commit));
            known.conclude(&self.others());
        }
    }

    /// The state of another disk was taken, and is part of ours now.
    pub fn note_taken(&self, disk: DiskId, theirs: &State) {
        let mut known = self.stable.known.lock();
        known.includes(theirs.commit, &theirs.ctx);
        known.was_in(disk, theirs.commit);
        known.conclude(&self.others());
    }

    /// How long the trash is kept. To be asked before it is found out what files have: what a disk that follows brings is looked at then.
    pub(super) fn trash_lasts(&self) -> Retention {
        let usual = Retention::from(self.retention);
        let marks = self.marks().unwrap_or_default();
        let is_forgotten = |disk: &DiskId| marks.get(disk) == Some(&Mark::Forgotten);
        // Before the lock: the disk may hang, and who follows other disks waits for the lock.
        let (others, is_low) = (self.others(), self.is_low());
        let mut known = self.stable.known.lock();
        known.remember_again(is_forgotten);
        let stable = known.until(SystemTime::now());
        // From the next collection on: this one may not know yet what they brought last.
        known.forgotten = others.iter().copied().filter(is_forgotten).collect();
        known.conclude(&others);
        if is_low || others.iter().all(is_forgotten) {
            return usual;
        }
        self.stable.keeps.store(true, Ordering::Relaxed);
        Retention { most: AWAY.max(self.retention), stable: stable.unwrap_or(SystemTime::UNIX_EPOCH), ..usual }
    }

    /// As soon as room gets low, delete from the trash what is only kept for disks that are away: a writer is faster than collections are.
    pub(super) fn shed_trash(&self) {
        if !self.stable.keeps.load(Ordering::Relaxed) || !self.is_low() {
            return;
        }
        self.stable.keeps.store(false, Ordering::Relaxed);
        match self.store.shed_trash(self.retention) {
            Ok(freed) => tracing::info!("room is low: {freed} bytes of the trash went"),
            Err(error) => tracing::warn!("cannot make room in the trash: {error}"),
        }
    }

    fn is_low(&self) -> bool {
        #[cfg(test)]
        if tests::ROOMY.load(Ordering::Relaxed) {
            return false;
        }
        self.store.free_space().is_ok_and(|space| space.free < space.total / FREE_SHARE)
    }

    /// What was moved to the trash by then is no file's in this state.
    pub(super) fn watch_state(&self, at: SystemTime, state: &State) {
        self.stable.known.lock().watch(at, state);
    }

    fn others(&self) -> Vec<DiskId> {
        self.stable.others.get().map_or_else(Vec::new, |others| others())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use delugefs_proto::ids::ActorId;

    use super::*;

    /// Whether the machine that runs the tests is taken to have room.
    pub(crate) static ROOMY: AtomicBool = AtomicBool::new(false);

    fn vector(seq: u64) -> VersionVector {
        VersionVector([(ActorId(1), seq)].into())
    }

    fn commit(n: u8) -> Oid {
        Oid::from_bytes(&[n; 20]).unwrap()
    }

    #[test]
    fn a_state_is_stable_when_all_have_followed_it() {
        let at = SystemTime::now();
        let [one, two] = [1, 2].map(|n| DiskId([n; 32]));
        let watched = |at| Watched { at, ctx: vector(5), states: HashSet::new(), followers: HashSet::new() };
        let mut known = Known { watched: Some(watched(at)), ..Known::default() };
        known.includes(commit(4), &vector(4));
        known.includes(commit(5), &vector(5));
        known.includes(commit(6), &vector(6));
        known.was_in(one, commit(5));
        known.was_in(two, commit(4));
        known.conclude(&[one, two]);
        assert_eq!(known.until(at), None);
        known.was_in(two, commit(6));
        known.conclude(&[one, two]);
        assert_eq!(known.until(at), Some(at));
        // The clock was set back.
        assert_eq!(known.until(at - AWAY), None);
        // Who is away is forgotten, or a member no more.
        known.watched = Some(watched(at));
        known.forgotten = [two].into();
        known.conclude(&[one, two]);
        assert_eq!(known.until(at), None);
        known.conclude(&[two]);
        assert_eq!(known.until(at), Some(at));
        known.remember_again(|disk| *disk == two);
        assert_eq!(known.until(at), Some(at));
        known.remember_again(|_| false);
        assert_eq!(known.until(at), None);
    }
}
