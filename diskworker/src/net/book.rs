//! Where disks may be reached. Addresses are hints: whoever answers there proves a key, and only that counts.

use std::collections::{HashMap, VecDeque};

use delugefs_proto::ids::DiskId;
use delugefs_proto::token::is_address;

/// Addresses kept of one disk.
const PER_DISK_MAX: usize = 8;
/// Disks and unnamed hints kept.
const DISKS_MAX: usize = 4096;

/// Addresses by disk, the most promising first.
#[derive(Debug, Default)]
pub(super) struct Book {
    disks: HashMap<DiskId, VecDeque<String>>,
    /// Of whom it is not known who is there.
    unnamed: VecDeque<String>,
}

impl Book {
    /// A hint; tried after those known. Whether it is new.
    pub fn hint(&mut self, disk: Option<DiskId>, address: &str) -> bool {
        if !is_address(address) {
            return false;
        }
        let known = match disk {
            Some(disk) if self.disks.len() < DISKS_MAX || self.disks.contains_key(&disk) => {
                self.disks.entry(disk).or_default()
            }
            Some(_) => return false,
            None => &mut self.unnamed,
        };
        if known.iter().any(|one| one == address) {
            return false;
        }
        if known.len() >= PER_DISK_MAX {
            known.pop_back();
        }
        known.push_back(address.to_owned());
        true
    }

    /// It worked: first from now on, and of nobody else.
    pub fn worked(&mut self, disk: DiskId, address: &str) {
        for (other, addresses) in &mut self.disks {
            if *other != disk {
                addresses.retain(|one| one != address);
            }
        }
        let addresses = self.disks.entry(disk).or_default();
        addresses.retain(|one| one != address);
        addresses.push_front(address.to_owned());
        addresses.truncate(PER_DISK_MAX);
    }

    /// About to be tried: behind the others until it has worked.
    pub fn trying(&mut self, disk: DiskId, address: &str) {
        if let Some(addresses) = self.disks.get_mut(&disk)
            && let Some(at) = addresses.iter().position(|one| one == address)
        {
            let one = addresses.remove(at);
            addresses.extend(one);
        }
    }

    /// Whether there is somewhere to look for a disk.
    pub fn knows(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|addresses| !addresses.is_empty())
    }

    /// Where to look for a disk.
    pub fn of(&self, disk: DiskId) -> Vec<String> {
        self.disks.get(&disk).into_iter().flatten().cloned().collect()
    }

    /// Where somebody may be.
    pub fn unnamed(&self) -> Vec<String> {
        self.unnamed.iter().cloned().collect()
    }

    /// All that is known of disks.
    pub fn all(&self) -> impl Iterator<Item = (DiskId, &VecDeque<String>)> {
        self.disks.iter().map(|(disk, addresses)| (*disk, addresses))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_worked_is_tried_first_and_nothing_grows_without_end() {
        let mut book = Book::default();
        let (one, other) = (DiskId([1; 32]), DiskId([2; 32]));
        assert!(book.hint(Some(one), "10.0.0.1:7") && !book.hint(Some(one), "10.0.0.1:7"));
        assert!(book.hint(Some(one), "10.0.0.2:7") && !book.hint(Some(one), "nonsense"));
        book.worked(one, "10.0.0.2:7");
        assert_eq!(book.of(one), ["10.0.0.2:7", "10.0.0.1:7"]);
        book.trying(one, "10.0.0.2:7");
        assert_eq!(book.of(one), ["10.0.0.1:7", "10.0.0.2:7"]);
        book.worked(one, "10.0.0.2:7");
        // The address has a new owner.
        book.worked(other, "10.0.0.2:7");
        assert_eq!((book.of(one), book.of(other)), (vec!["10.0.0.1:7".to_owned()], vec!["10.0.0.2:7".to_owned()]));
        for n in 0..100 {
            book.hint(Some(one), &format!("10.1.0.{n}:7"));
            book.hint(None, &format!("10.1.0.{n}:7"));
        }
        assert_eq!((book.of(one).len(), book.unnamed().len()), (PER_DISK_MAX, PER_DISK_MAX));
    }
}
