//! Where disks may be reached. Addresses are hints: whoever answers there proves a key, and only that counts.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use delugefs_proto::ids::DiskId;
use delugefs_proto::token::is_address;

/// Addresses kept of one disk.
const PER_DISK_MAX: usize = 8;
/// Disks kept.
const DISKS_MAX: usize = 4096;
/// Addresses kept of which it is not known who is there: a person has given them.
const UNNAMED_MAX: usize = 256;
/// Between two tries of such a one, at first and at last.
const UNNAMED_PAUSE_MIN: Duration = Duration::from_secs(3);
const UNNAMED_PAUSE_MAX: Duration = Duration::from_secs(15);
/// After this a try of which nothing was heard is made again. A name that stands for many addresses takes its time.
const TRY_MAX: Duration = Duration::from_secs(120);

/// Addresses by disk, the most promising first.
#[derive(Debug, Default)]
pub(super) struct Book {
    disks: HashMap<DiskId, VecDeque<String>>,
    unnamed: Vec<Unnamed>,
}

/// An address of which it is not known who is there.
#[derive(Debug)]
struct Unnamed {
    address: String,
    /// Who answered last; a name may stand for several.
    who: Vec<DiskId>,
    /// While it is being tried: when it is taken for granted that nothing comes of that.
    next_try: Instant,
    pause: Duration,
}

impl Book {
    /// A hint; tried after those known. Whether it is new. Anybody on the network can make up disks: where there are too many, those
    /// that are no member's go.
    pub fn hint(&mut self, disk: Option<DiskId>, address: &str, is_member: impl Fn(DiskId) -> bool) -> bool {
        if !is_address(address) {
            return false;
        }
        let Some(disk) = disk else { return self.hint_unnamed(address) };
        if self.disks.len() >= DISKS_MAX && !self.disks.contains_key(&disk) {
            if !is_member(disk) {
                return false;
            }
            self.disks.retain(|known, _| is_member(*known));
        }
        let known = self.disks.entry(disk).or_default();
        if known.iter().any(|one| one == address) {
            return false;
        }
        if known.len() >= PER_DISK_MAX {
            known.pop_back();
        }
        known.push_back(address.to_owned());
        true
    }

    fn hint_unnamed(&mut self, address: &str) -> bool {
        if self.unnamed.len() >= UNNAMED_MAX || self.unnamed.iter().any(|one| one.address == address) {
            return false;
        }
        let (who, pause) = (Vec::new(), UNNAMED_PAUSE_MIN);
        self.unnamed.push(Unnamed { address: address.to_owned(), who, next_try: Instant::now(), pause });
        true
    }

    /// It worked: first from now on, and of nobody else.
    pub fn worked(&mut self, disk: DiskId, address: &str) {
        for (other, addresses) in &mut self.disks {
            if *other != disk {
                addresses.retain(|one| one != address);
            }
        }
        self.called(disk, address);
    }

    /// It called from there: first from now on. Others may have it too, as behind one router: nobody has seen who answers there.
    pub fn called(&mut self, disk: DiskId, address: &str) {
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

    /// Where somebody may be who is not known to be there; to be tried now, and then [`Book::answered`].
    pub fn due(&mut self, now: Instant, is_there: impl Fn(DiskId) -> bool) -> Vec<String> {
        let mut due = Vec::new();
        for one in &mut self.unnamed {
            if !one.who.is_empty() && one.who.iter().all(|disk| is_there(*disk)) {
                one.pause = UNNAMED_PAUSE_MIN;
            } else if one.next_try <= now {
                one.next_try = now + TRY_MAX;
                due.push(one.address.clone());
            }
        }
        due
    }

    /// When one of them is due.
    pub fn next_due(&self, is_there: impl Fn(DiskId) -> bool) -> Option<Instant> {
        let is_sought = |one: &&Unnamed| one.who.is_empty() || !one.who.iter().all(|disk| is_there(*disk));
        self.unnamed.iter().filter(is_sought).map(|one| one.next_try).min()
    }

    /// Who was there, if anybody.
    pub fn answered(&mut self, address: &str, who: Vec<DiskId>, now: Instant) {
        if let Some(one) = self.unnamed.iter_mut().find(|one| one.address == address) {
            one.next_try = now + one.pause;
            one.pause = (one.pause * 2).min(UNNAMED_PAUSE_MAX);
            one.who = who;
        }
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
        assert!(book.hint(Some(one), "10.0.0.1:7", |_| true) && !book.hint(Some(one), "10.0.0.1:7", |_| true));
        assert!(book.hint(Some(one), "10.0.0.2:7", |_| true) && !book.hint(Some(one), "nonsense", |_| true));
        book.worked(one, "10.0.0.2:7");
        assert_eq!(book.of(one), ["10.0.0.2:7", "10.0.0.1:7"]);
        book.trying(one, "10.0.0.2:7");
        assert_eq!(book.of(one), ["10.0.0.1:7", "10.0.0.2:7"]);
        book.worked(one, "10.0.0.2:7");
        // The address has a new owner.
        book.worked(other, "10.0.0.2:7");
        assert_eq!((book.of(one), book.of(other)), (vec!["10.0.0.1:7".to_owned()], vec!["10.0.0.2:7".to_owned()]));
        for n in 0..100 {
            book.hint(Some(one), &format!("10.1.0.{n}:7"), |_| true);
        }
        assert_eq!(book.of(one).len(), PER_DISK_MAX);
    }

    /// Behind one router two may have one address, and who answers there is not said by a call.
    #[test]
    fn who_calls_is_looked_for_there_first_and_takes_no_address_from_another() {
        let mut book = Book::default();
        let (one, other) = (DiskId([1; 32]), DiskId([2; 32]));
        book.worked(one, "10.0.0.1:7");
        book.worked(other, "10.0.0.2:7");
        book.called(other, "10.0.0.1:7");
        assert_eq!(
            (book.of(one), book.of(other)),
            (vec!["10.0.0.1:7".to_owned()], vec!["10.0.0.1:7".into(), "10.0.0.2:7".into()])
        );
        book.called(other, "10.0.0.2:7");
        assert_eq!(book.of(other), ["10.0.0.2:7", "10.0.0.1:7"]);
    }

    #[test]
    fn disks_that_somebody_has_made_up_keep_no_member_out() {
        let mut book = Book::default();
        let stranger = |n: usize| DiskId(std::array::from_fn(|at| if at < 8 { n.to_le_bytes()[at] } else { 7 }));
        let (old, new) = (DiskId([1; 32]), DiskId([2; 32]));
        let is_member = |disk| disk == old || disk == new;
        assert!(book.hint(Some(old), "10.0.0.1:7", is_member));
        let taken = (0..2 * DISKS_MAX).filter(|n| book.hint(Some(stranger(*n)), "10.0.0.9:7", is_member)).count();
        assert_eq!(taken, DISKS_MAX - 1);
        assert!(book.hint(Some(new), "10.0.0.2:7", is_member));
        assert_eq!((book.of(old), book.of(new)), (vec!["10.0.0.1:7".to_owned()], vec!["10.0.0.2:7".to_owned()]));
    }

    #[test]
    fn all_addresses_without_a_name_are_tried_and_those_who_are_there_are_left_alone() {
        let mut book = Book::default();
        let addresses: Vec<String> = (0..300).map(|n| format!("10.1.{}.{}:7", n / 256, n % 256)).collect();
        for address in addresses.iter().chain(&addresses) {
            book.hint(None, address, |_| true);
        }
        let mut now = Instant::now();
        assert_eq!(book.due(now, |_| false), addresses[..UNNAMED_MAX]);
        assert!(book.due(now + UNNAMED_PAUSE_MAX, |_| false).is_empty(), "they are being tried");
        now += TRY_MAX;
        assert_eq!(book.due(now, |_| false), addresses[..UNNAMED_MAX], "nothing was heard of that");
        // Nobody, one who is not met, one who is, and two of whom one is.
        let [stranger, one, other] = [1, 2, 3].map(|n| DiskId([n; 32]));
        let is_there = |disk| disk == one;
        let who = [vec![], vec![stranger], vec![one], vec![one, other]];
        for pause in [1, 2, 4, 5, 5].map(|n| n * UNNAMED_PAUSE_MIN) {
            addresses.iter().zip(&who).for_each(|(address, who)| book.answered(address, who.clone(), now));
            assert!(book.due(now + pause / 2, is_there).is_empty(), "too early");
            assert_eq!((book.next_due(is_there), book.next_due(|_| true).is_some()), (Some(now + pause), true));
            now += pause;
            assert_eq!(book.due(now, is_there), [0, 1, 3].map(|n: usize| addresses[n].clone()));
        }
        // Who was there and is not any more, at once.
        assert_eq!(book.due(now, |_| false), [addresses[2].clone()]);
    }
}
