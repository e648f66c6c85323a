//! Work of which each piece has a key: pieces of one key are done one after the other, in order, and those of others do not wait
//! for them. For what may wait long in the kernel: a key that is stuck holds up nothing but itself.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cache::InoMap;
use crate::pool::Pool;

struct Lane<J> {
    pieces: VecDeque<J>,
    /// A thread does them.
    is_served: bool,
    /// The one before them was begun, or the first one put in.
    since: Instant,
}

/// See the module. Its threads come when there is work: as many as keys have some, up to the pool's bound.
pub(super) struct Lanes<J>(Arc<Shared<J>>);

struct Shared<J> {
    pool: Pool,
    /// For keys that somebody waits for: they do not stand behind others that may be stuck.
    awaited: Pool,
    /// A key is there as long as a job of a pool does its work, or will.
    waiting: Mutex<InoMap<Lane<J>>>,
    work: Box<dyn Fn(u64, J) + Send + Sync>,
}

impl<J: Send + 'static> Lanes<J> {
    /// `work` does each piece.
    pub fn new(work: impl Fn(u64, J) + Send + Sync + 'static) -> Self {
        let (pool, awaited, waiting) = (Pool::default(), Pool::default(), Mutex::default());
        Self(Arc::new(Shared { pool, awaited, waiting, work: Box::new(work) }))
    }

    /// Do it soon, unless `has_it` already with the last piece that waits; how many of the key are waiting then.
    pub fn put(&self, key: u64, piece: J, has_it: impl Fn(&J) -> bool) -> usize {
        let (count, needs_thread) = self.add(key, piece, has_it);
        if needs_thread {
            let shared = self.0.clone();
            self.0.pool.run(move || shared.serve(key));
        }
        count
    }

    /// Do it as soon as what was put in before of the key is done: somebody waits for it.
    pub fn put_awaited(&self, key: u64, piece: J) {
        self.add(key, piece, |_| false);
        let shared = self.0.clone();
        self.0.awaited.run(move || shared.serve(key));
    }

    /// How many of the key are waiting then, and whether it is the first.
    fn add(&self, key: u64, piece: J, has_it: impl Fn(&J) -> bool) -> (usize, bool) {
        let mut waiting = self.0.waiting.lock();
        match waiting.entry(key) {
            Entry::Occupied(mut lane) => {
                let pieces = &mut lane.get_mut().pieces;
                if !pieces.back().is_some_and(has_it) {
                    pieces.push_back(piece);
                }
                (pieces.len(), false)
            }
            Entry::Vacant(vacant) => {
                vacant.insert(Lane { pieces: VecDeque::from([piece]), is_served: false, since: Instant::now() });
                (1, true)
            }
        }
    }

    /// How many of the key are waiting.
    pub fn waiting(&self, key: u64) -> usize {
        self.0.waiting.lock().get(&key).map_or(0, |lane| lane.pieces.len())
    }

    /// Whether what is done of the key takes longer than this.
    pub fn is_stuck(&self, key: u64, time: Duration) -> bool {
        self.0.waiting.lock().get(&key).is_some_and(|lane| lane.since.elapsed() > time)
    }

    #[cfg(test)]
    pub fn settle(&self) {
        let is_done = self.0.pool.drain(Duration::from_secs(30)) && self.0.awaited.drain(Duration::from_secs(30));
        assert!(is_done, "it goes on for ever");
    }
}

impl<J> Shared<J> {
    fn serve(&self, key: u64) {
        match self.waiting.lock().get_mut(&key) {
            Some(lane) if !lane.is_served => lane.is_served = true,
            // Another thread does it, or has done it.
            _ => return,
        }
        while let Some(piece) = self.next(key) {
            // One that panics must not keep the others of its key from being done.
            if catch_unwind(AssertUnwindSafe(|| (self.work)(key, piece))).is_err() {
                tracing::error!("an invalidation panicked; this is a bug in delugefs-fusefront");
            }
        }
    }

    fn next(&self, key: u64) -> Option<J> {
        let mut waiting = self.waiting.lock();
        let lane = waiting.get_mut(&key)?;
        lane.since = Instant::now();
        let next = lane.pieces.pop_front();
        if next.is_none() {
            waiting.remove(&key);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, Sender, unbounded};

    use super::*;

    #[test]
    fn a_key_that_is_stuck_holds_up_itself_alone() {
        let (go, stuck): (Sender<()>, Receiver<()>) = unbounded();
        let (done, seen) = unbounded();
        let lanes = Lanes::new(move |key, piece: u32| {
            if piece == 0 {
                stuck.recv().unwrap();
            }
            assert_ne!(piece, 99, "on purpose");
            done.send((key, piece)).unwrap();
        });
        let put = |key, piece| lanes.put(key, piece, |last| *last == piece);
        for piece in [0, 1, 99, 2, 2] {
            put(7, piece);
        }
        put(9, 5);
        assert_eq!(seen.recv(), Ok((9, 5)));
        // The first may be under way.
        assert!((4..=5).contains(&put(7, 3)));
        go.send(()).unwrap();
        lanes.settle();
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [(7, 0), (7, 1), (7, 2), (7, 3)]);
        assert_eq!(lanes.waiting(7), 0);
    }

    #[test]
    fn what_is_awaited_does_not_stand_behind_other_keys_that_are_stuck() {
        let (go, stuck): (Sender<()>, Receiver<()>) = unbounded();
        let (done, seen) = unbounded();
        let lanes = Lanes::new(move |key, piece: u32| {
            if key < 1000 {
                // Until the sender goes.
                let _gone = stuck.recv();
            }
            done.send((key, piece)).unwrap();
        });
        // More than the pool has threads, and then one whose turn does not come.
        for key in 0..200 {
            lanes.put(key, 0, |_| false);
        }
        lanes.put(1000, 1, |_| false);
        lanes.put_awaited(1000, 2);
        lanes.put_awaited(1001, 3);
        let mut first: Vec<(u64, u32)> = seen.iter().take(3).collect();
        first.sort_unstable();
        assert_eq!(first, [(1000, 1), (1000, 2), (1001, 3)]);
        drop(go);
        lanes.settle();
        assert_eq!(seen.try_iter().count(), 200);
    }
}
