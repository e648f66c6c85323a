//! The directories that were removed last. Programs may have them open or stand in them, so a new one must not get the number of one.

use std::collections::{HashSet, VecDeque};

use delugefs_proto::ids::Ino;

/// So many are remembered: some megabytes.
const REMOVED_MAX: usize = 100_000;

/// See the module.
#[derive(Default)]
pub(super) struct RemovedDirs {
    inos: HashSet<Ino>,
    /// The first removed first.
    order: VecDeque<Ino>,
}

impl RemovedDirs {
    /// One was removed; the one that was removed longest ago may be forgotten for it.
    pub fn add(&mut self, ino: Ino) {
        if !self.inos.insert(ino) {
            return;
        }
        self.order.push_back(ino);
        if self.order.len() > REMOVED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.inos.remove(&oldest);
        }
    }

    /// Whether it is among them.
    pub fn contains(&self, ino: Ino) -> bool {
        self.inos.contains(&ino)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered() {
        let mut removed = RemovedDirs::default();
        let all = REMOVED_MAX as u64 + 10;
        (0..all).chain(0..all).for_each(|n| removed.add(Ino(n)));
        assert_eq!((removed.inos.len(), removed.order.len()), (REMOVED_MAX, REMOVED_MAX));
        assert!(removed.contains(Ino(all - 1)) && removed.contains(Ino(10)) && !removed.contains(Ino(9)));
    }
}
