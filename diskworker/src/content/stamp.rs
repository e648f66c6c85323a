//! What tells one state of a staging file from another. A write sets both times of a file to one value, that of the kernel's clock of files,
//! and that clock ticks as slowly as every ten milliseconds: a write in the tick of the change before it leaves the change time as it
//! is. So states are compared by both times and the length, never by the change time alone, and of a state after which a write could
//! leave all three as they are nothing is said.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::stat::FileStat;

use crate::os;

/// Longest tick of a clock of files.
const TICK_NS: i64 = 10_000_000;
/// Of file systems that keep whole seconds.
const SECOND_NS: i64 = 1_000_000_000;

/// A state of a staging file, and when it was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamp {
    /// Change time, nanoseconds since 1970.
    pub ctime_ns: i64,
    /// Last change of content, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Length in bytes.
    pub size: u64,
    seen_ns: i64,
}

impl Stamp {
    /// Of what a file is now.
    pub fn of(stat: &FileStat) -> Self {
        let seen_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64);
        Self { ctime_ns: os::ctime_ns(stat), mtime_ns: os::mtime_ns(stat), size: stat.st_size as u64, seen_ns }
    }

    /// The state that has these, seen earlier.
    pub fn at(self, ctime_ns: i64, mtime_ns: i64) -> Self {
        Self { ctime_ns, mtime_ns, ..self }
    }

    /// Whether nothing tells the two apart.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.ctime_ns, self.mtime_ns, self.size) == (other.ctime_ns, other.mtime_ns, other.size)
    }

    /// Whether a file with this stamp has what it had when that was seen. A write after it leaves both times equal; where they were equal
    /// already it must be in a later tick. What has no bytes is all the same.
    pub fn tells(&self) -> bool {
        let tick_ns = if self.ctime_ns % SECOND_NS == 0 { SECOND_NS } else { TICK_NS };
        self.size == 0 || self.mtime_ns != self.ctime_ns || self.seen_ns >= self.ctime_ns.saturating_add(tick_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_the_times_may_hide_is_reckoned_with() {
        let now = Stamp { ctime_ns: 5_000_000_001, mtime_ns: 5_000_000_001, size: 1, seen_ns: 5_001_000_000 };
        assert!(!now.tells(), "written in this tick");
        assert!(Stamp { seen_ns: 5_010_000_001, ..now }.tells(), "a tick ago");
        assert!(Stamp { mtime_ns: 4_999_999_999, ..now }.tells(), "a copy with the time of what it is a copy of");
        assert!(Stamp { size: 0, ..now }.tells(), "new and empty");
        let whole = Stamp { ctime_ns: 5_000_000_000, mtime_ns: 5_000_000_000, ..now };
        assert!(!Stamp { seen_ns: 5_900_000_000, ..whole }.tells(), "whole seconds");
        assert!(Stamp { seen_ns: 6_000_000_000, ..whole }.tells());
        assert!(now.is_same(&Stamp { seen_ns: 0, ..now }) && !now.is_same(&Stamp { mtime_ns: 1, ..now }));
    }
}
