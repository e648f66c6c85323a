//! How much of a set there is room for, and how much of that one host may fill. What a host signs everybody keeps and verifies for ever, also after
//! it has turned bad, and it can let in as many more as it likes, who sign too. So every host has room for a few short revocations that nobody else
//! can fill, and a part of the rest. There are so few hosts that all of that fits: whatever some have signed, any other one can still shut
//! one of them out, and with it all whom it has made up, unless it had shut out a few before.
//!
//! Whether records fit depends on which they are, and not on the order in which they came; what fits, fits also without some of them.

use std::collections::BTreeMap;

use crate::ids::HostId;

use super::record::{Record, Role, Statement};
use super::{KEEPS_FEW, SET_MAX_BYTES};

/// Most geneses and admissions in a set.
pub const ADMISSIONS_MAX: usize = 2048;
/// Most of them that let in hosts.
pub const HOSTS_MAX: usize = 256;
/// Short revocations that every host has room for.
pub const SHORT_EACH: usize = 4;
/// Most revocations in a set beside these, and those of them that one host has signed.
pub const REVOCATIONS_MAX: usize = 1024;
pub const REVOCATIONS_EACH: usize = 512;
/// The same in bytes: with the admissions and the revocations that each host may have it makes less than a set may have.
const REVOCATIONS_BYTES: usize = 192 << 10;
const EACH_BYTES: usize = 64 << 10;
/// A short revocation is taken to be so long, in bytes: which of a host's are those it has room for does not matter then.
const SHORT_BYTES: usize = 290;

/// What one host has signed.
#[derive(Default)]
struct Signed {
    short: usize,
    /// Beside the first [`SHORT_EACH`] short ones.
    more: usize,
    more_bytes: usize,
}

/// What is taken up of a set.
#[derive(Default)]
pub(super) struct Room {
    bytes: usize,
    admissions: usize,
    hosts: usize,
    more: usize,
    more_bytes: usize,
    signed: BTreeMap<HostId, Signed>,
}

impl Room {
    /// Of these records.
    pub fn of<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        let mut room = Self::default();
        records.for_each(|record| room.count(record));
        room
    }

    /// Take a record if there is room for it.
    pub fn take(&mut self, record: &Record) -> bool {
        let fits = self.fits(record);
        if fits {
            self.count(record);
        }
        fits
    }

    fn fits(&self, record: &Record) -> bool {
        if 1 + self.bytes + 4 + record.bytes().len() > SET_MAX_BYTES {
            return false;
        }
        let Some(bytes) = revocation_bytes(record) else {
            return self.admissions < ADMISSIONS_MAX && (!lets_in_host(record) || self.hosts < HOSTS_MAX);
        };
        let none = Signed::default();
        let signed = self.signed.get(&record.statement().author()).unwrap_or(&none);
        let is_first = is_short(record) && signed.short < SHORT_EACH;
        let fits_each = signed.more < REVOCATIONS_EACH && signed.more_bytes + bytes <= EACH_BYTES;
        let fits_all = self.more < REVOCATIONS_MAX && self.more_bytes + bytes <= REVOCATIONS_BYTES;
        is_first || fits_each && fits_all
    }

    fn count(&mut self, record: &Record) {
        self.bytes += 4 + record.bytes().len();
        let Some(bytes) = revocation_bytes(record) else {
            self.admissions += 1;
            self.hosts += usize::from(lets_in_host(record));
            return;
        };
        let signed = self.signed.entry(record.statement().author()).or_default();
        if is_short(record) && signed.short < SHORT_EACH {
            signed.short += 1;
            return;
        }
        (signed.more, signed.more_bytes) = (signed.more + 1, signed.more_bytes + bytes);
        (self.more, self.more_bytes) = (self.more + 1, self.more_bytes + bytes);
    }
}

fn lets_in_host(record: &Record) -> bool {
    matches!(record.statement(), Statement::Admission { role: Role::Host, .. })
}

fn is_short(record: &Record) -> bool {
    matches!(record.statement(), Statement::Revocation { keeps, .. } if keeps.len() <= KEEPS_FEW)
}

fn revocation_bytes(record: &Record) -> Option<usize> {
    let is_revocation = matches!(record.statement(), Statement::Revocation { .. });
    is_revocation.then(|| if is_short(record) { SHORT_BYTES } else { 4 + record.bytes().len() })
}
