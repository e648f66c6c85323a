//! Which bytes of a file that is still being fetched may be read: a set of ranges, kept merged and in order.

use std::collections::BTreeMap;
use std::ops::Range;

/// See the module. Offsets in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// These bytes may be read from now on.
    pub fn add(&mut self, range: Range<u64>) {
        let (mut start, mut end) = (range.start, range.end);
        if start >= end {
            return;
        }
        // Those that touch it become part of it.
        while let Some((&before, &until)) = self.0.range(..=end).next_back() {
            if until < start {
                break;
            }
            (start, end) = (start.min(before), end.max(until));
            self.0.remove(&before);
        }
        self.0.insert(start, end);
    }

    /// Whether all of these may be read.
    pub fn covers(&self, range: Range<u64>) -> bool {
        range.is_empty() || self.0.range(..=range.start).next_back().is_some_and(|(_, until)| *until >= range.end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_the_set_of_its_bytes(adds in prop::collection::vec((0_u64..40, 0_u64..12), 0..20)) {
            let mut ranges = Ranges::default();
            let mut bytes = [false; 64];
            for (start, length) in adds {
                ranges.add(start..start + length);
                bytes[start as usize..(start + length) as usize].fill(true);
            }
            for start in 0..60 {
                for end in start..60 {
                    let all = bytes[start..end].iter().all(|byte| *byte);
                    prop_assert_eq!(ranges.covers(start as u64..end as u64), all);
                }
            }
            // Merged: as few as there are runs of bytes.
            let runs = (0..64).filter(|at| bytes[*at] && (*at == 0 || !bytes[at - 1])).count();
            prop_assert_eq!(ranges.0.len(), runs);
        }
    }
}
