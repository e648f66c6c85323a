//! Who may be fetched now of the small contents that are to be kept. One disk that gives nothing, or slowly, must not keep
//! waiting what others give, however many contents it alone has: those of one disk wait for each other, in their order, and
//! have a part of the places. Of a disk that failed last ([`crate::net::Net::is_in_doubt`]) one is tried at a time, until it gives again;
//! those that wait for that too long are given up, so that the policy has others fetched, and asks again later.
//!
//! Knows nothing of contents and connections: the caller says from which disks a content may come.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::ids::DiskId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Small contents fetched at once, and those of them that one disk alone can give.
const PLACES: usize = 10;
const ONE_SOURCE: usize = 8;
/// How often who waits looks whether it may come from elsewhere by now.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How long one waits for a disk that is in doubt.
const PATIENCE: Duration = Duration::from_secs(300);

/// See the module.
pub(super) struct Places {
    patience: Duration,
    look_every: Duration,
    all: Arc<Semaphore>,
    sources: Mutex<HashMap<DiskId, Source>>,
}

/// A disk that alone can give something.
#[derive(Clone)]
struct Source {
    turns: Arc<Semaphore>,
    /// While it is in doubt.
    trial: Arc<Semaphore>,
}

/// Given back when it is dropped.
#[derive(Default)]
pub(super) struct Place {
    turn: Option<OwnedSemaphorePermit>,
    trial: Option<OwnedSemaphorePermit>,
    place: Option<OwnedSemaphorePermit>,
}

impl Default for Places {
    fn default() -> Self {
        let all = Arc::new(Semaphore::new(PLACES));
        Self { patience: PATIENCE, look_every: LOOK_EVERY, all, sources: Mutex::default() }
    }
}

impl Place {
    /// One that is no place here.
    pub fn of(place: OwnedSemaphorePermit) -> Self {
        Self { place: Some(place), ..Self::default() }
    }
}

impl Places {
    /// Wait for a place for what these disks can give, each with whether it is in doubt. `None`: the only one that can gives
    /// nothing.
    pub async fn take(&self, sources: impl Fn() -> Vec<(DiskId, bool)>) -> Option<Place> {
        let only = || only_source(&sources());
        let begin = Instant::now();
        loop {
            let mut place = Place::default();
            let chosen = only().map(|(disk, _)| disk);
            if let Some(disk) = chosen {
                let is_too_long = || only() == Some((disk, true)) && begin.elapsed() > self.patience;
                let source = self.source(disk);
                let is_it = || only().is_some_and(|(now, _)| now == disk) && !is_too_long();
                place.turn = self.wait(&source.turns, is_it).await;
                if only() == Some((disk, true)) && place.turn.is_some() {
                    place.trial = self.wait(&source.trial, || only() == Some((disk, true)) && !is_too_long()).await;
                }
                if only() == Some((disk, false)) {
                    place.trial = None;
                } else if is_too_long() && place.trial.is_none() {
                    return None;
                } else if place.turn.is_none() {
                    continue; // it may come from elsewhere
                }
            }
            place.place = self.wait(&self.all, || true).await;
            // It may have taken long.
            let is_right = match only() {
                Some((disk, is_in_doubt)) => {
                    chosen == Some(disk) && place.turn.is_some() && (place.trial.is_some() || !is_in_doubt)
                }
                None => chosen.is_none(),
            };
            if is_right {
                return Some(place);
            }
        }
    }

    /// Wait for one of these as long as it holds that they are the right ones. The place in their queue is kept.
    async fn wait(&self, places: &Arc<Semaphore>, holds: impl Fn() -> bool) -> Option<OwnedSemaphorePermit> {
        let mut taking = std::pin::pin!(places.clone().acquire_owned());
        loop {
            match timeout(self.look_every, &mut taking).await {
                Ok(taken) => return taken.ok(), // they are never closed
                Err(_) if holds() => {}
                Err(_) => return None,
            }
        }
    }

    fn source(&self, disk: DiskId) -> Source {
        let new = || Source { turns: Arc::new(Semaphore::new(ONE_SOURCE)), trial: Arc::new(Semaphore::new(1)) };
        self.sources.lock().entry(disk).or_insert_with(new).clone()
    }
}

/// The one it depends on, and whether that is in doubt: of several the one that is not, or where all are, the first.
fn only_source(sources: &[(DiskId, bool)]) -> Option<(DiskId, bool)> {
    let mut good = sources.iter().filter(|(_, is_in_doubt)| !is_in_doubt);
    match (good.next(), good.next()) {
        (Some(_), Some(_)) => None,
        (Some(one), None) => Some(*one),
        (None, _) => sources.iter().min().copied(),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const SLOW: DiskId = DiskId([1; 32]);
    const GOOD: DiskId = DiskId([2; 32]);
    const THIRD: DiskId = DiskId([3; 32]);

    type Taking<'a> = Pin<Box<dyn Future<Output = Option<Place>> + 'a>>;

    /// What has got a place by now; the others go on waiting.
    fn taken<'a>(waiting: &mut Vec<Taking<'a>>) -> Vec<Place> {
        let mut taken = Vec::new();
        waiting.retain_mut(|taking| match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(place) => {
                taken.push(place.unwrap());
                false
            }
            Poll::Pending => true,
        });
        taken
    }

    #[tokio::test]
    async fn one_source_leaves_places_for_others_and_one_in_doubt_all_but_one() {
        let places = Places::default();
        let doubt = Mutex::new(Vec::new());
        let from = |disks: &'static [DiskId]| {
            let (places, doubt) = (&places, &doubt);
            let sources = move || -> Vec<_> { disks.iter().map(|disk| (*disk, doubt.lock().contains(disk))).collect() };
            move || Box::pin(places.take(sources)) as Taking<'_>
        };
        let (slow, good, both, none) = (from(&[SLOW]), from(&[GOOD]), from(&[SLOW, GOOD]), from(&[]));
        let mut slow: Vec<_> = (0..100).map(|_| slow()).collect();
        let mut held = taken(&mut slow);
        assert_eq!(held.len(), ONE_SOURCE);
        assert_eq!(taken(&mut vec![good()]).len(), 1);
        assert_eq!(taken(&mut vec![none()]).len(), 1);
        let mut of_both = vec![both(), both(), both()];
        let two = taken(&mut of_both);
        assert_eq!(two.len(), PLACES - ONE_SOURCE);
        // It gave nothing: one at a time. What others have too is theirs.
        doubt.lock().push(SLOW);
        assert_eq!(taken(&mut slow).len(), 0);
        drop((held, two));
        held = taken(&mut slow);
        assert_eq!(held.len(), 1);
        of_both.extend((0..20).map(|_| both()));
        let mut more = taken(&mut of_both);
        assert_eq!(more.len(), ONE_SOURCE);
        drop(std::mem::take(&mut more));
        assert_eq!(taken(&mut of_both).len(), ONE_SOURCE);
        // It gives again, and the one that was tried is done.
        doubt.lock().clear();
        held.clear();
        assert_eq!(taken(&mut slow).len(), ONE_SOURCE);
        // Nobody waits for those who wait.
        assert_eq!(taken(&mut vec![good()]).len(), 1);
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_for_one_that_gives_nothing() {
        let (patience, look_every) = (Duration::ZERO, Duration::from_millis(1));
        let places = Places { patience, look_every, ..Places::default() };
        let in_doubt = || vec![(SLOW, true)];
        let trial = places.take(in_doubt).await.unwrap();
        assert!(places.take(in_doubt).await.is_none());
        assert!(places.take(|| vec![(SLOW, true), (GOOD, false)]).await.is_some());
        assert!(places.take(|| vec![(SLOW, false)]).await.is_some());
        drop(trial);
        assert!(places.take(in_doubt).await.is_some());
    }

    #[test]
    fn what_it_depends_on() {
        let only = |sources: &[(DiskId, bool)]| only_source(sources);
        assert_eq!(only(&[]), None);
        assert_eq!(only(&[(SLOW, true)]), Some((SLOW, true)));
        assert_eq!(only(&[(SLOW, true), (GOOD, false)]), Some((GOOD, false)));
        assert_eq!(only(&[(SLOW, true), (GOOD, false), (THIRD, false)]), None);
        assert_eq!(only(&[(THIRD, true), (SLOW, true)]), Some((SLOW, true)));
    }
}
