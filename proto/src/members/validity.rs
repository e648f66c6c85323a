//! Which members a set of records makes: a pure function of the set, so that hosts with equal sets agree.
//!
//! Two steps, because a revocation must win in whatever order the records came in, and because who may revoke must not
//! depend on who has been revoked (else two hosts that revoke each other would each void the other's word):
//! 1. *Ever admitted*: hosts with a chain of admissions up to the founder, revocations ignored. It only grows. Their
//!    records are *supported*; others say nothing and are not kept.
//! 2. *Valid*: never revoked, and a chain of admissions up to the founder in which every link by a revoked host is in the
//!    `keeps` of each revocation of that host. A thief can add neither members (they are not in `keeps`) nor himself.
//!    What a stolen host key can do is revoke others: that costs work, not data.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::{DiskId, HostId, NodeId};

use super::record::{Record, Role, Statement};

/// A member as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of its host.
    pub label: String,
    /// Who admitted it.
    pub by: HostId,
    /// When, by that one's clock, in seconds since 1970.
    pub at_s: u64,
}

/// The members that a set of records makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    pub name: String,
    pub founder: Option<HostId>,
    pub hosts: BTreeMap<HostId, Member>,
    pub disks: BTreeMap<DiskId, Member>,
    /// Revoked keys, and who revoked them (the first by key, where several did).
    pub revoked: BTreeMap<NodeId, HostId>,
}

/// Who was ever admitted.
pub(super) struct Ever {
    hosts: BTreeSet<HostId>,
    /// Hosts and disks.
    all: BTreeSet<NodeId>,
}

impl Ever {
    /// Whether what it says counts, or may some day. With more records it does all the more, so it does not matter which of them came first.
    pub fn supports(&self, statement: &Statement) -> bool {
        self.hosts.contains(&statement.author())
            && !matches!(statement, Statement::Revocation { target, .. } if !self.all.contains(target))
    }
}

/// Whom these records have ever admitted, whoever was revoked since.
pub(super) fn ever<'a>(records: impl Iterator<Item = &'a Record> + Clone) -> Ever {
    let hosts: BTreeSet<HostId> = closure(records.clone(), |_, _| true).into_keys().collect();
    let disks = records.filter_map(|record| match record.statement() {
        Statement::Admission { subject, by, .. } if hosts.contains(by) => Some(*subject),
        _ => None,
    });
    let all = disks.chain(hosts.iter().map(|host| NodeId::from(*host))).collect();
    Ever { hosts, all }
}

/// The admission that links a host to the founder by the shortest way; the founder itself needs none.
type Links<'a> = BTreeMap<HostId, Option<&'a Record>>;

/// Hosts that the founder, and hosts found so far, admit in a way that `counts`.
fn closure<'a>(
    records: impl Iterator<Item = &'a Record> + Clone,
    counts: impl Fn(HostId, NodeId) -> bool,
) -> Links<'a> {
    let mut admits: BTreeMap<HostId, Vec<(HostId, &Record)>> = BTreeMap::new();
    let mut found = Links::new();
    let mut open = VecDeque::new();
    for record in records {
        match record.statement() {
            Statement::Genesis { founder, .. } if found.insert(*founder, None).is_none() => open.push_back(*founder),
            Statement::Admission { role: Role::Host, subject, by, .. } if counts(*by, *subject) => {
                admits.entry(*by).or_default().push((HostId(subject.0), record));
            }
            _ => {}
        }
    }
    while let Some(by) = open.pop_front() {
        for (subject, record) in admits.remove(&by).into_iter().flatten() {
            if let Entry::Vacant(entry) = found.entry(subject) {
                entry.insert(Some(record));
                open.push_back(subject);
            }
        }
    }
    found
}

/// The fewest records that prove that this key is a member's, if it is: the genesis and a chain of admissions.
pub(super) fn proof<'a>(
    records: impl Iterator<Item = &'a Record> + Clone,
    view: &View,
    id: NodeId,
) -> Option<Vec<&'a Record>> {
    let keeps = keeps(records.clone());
    let counts = |by: HostId, subject: NodeId| is_kept(&keeps, by, subject);
    let links = closure(records.clone(), counts);
    let mut chain: Vec<&Record> =
        records.clone().find(|r| matches!(r.statement(), Statement::Genesis { .. })).into_iter().collect();
    let last = records.into_iter().find(|record| match record.statement() {
        Statement::Admission { subject, by, .. } => *subject == id && links.contains_key(by) && counts(*by, id),
        _ => false,
    });
    let mut next = last.filter(|_| !view.revoked.contains_key(&id));
    next?;
    while let Some(record) = next {
        chain.push(record);
        next = links.get(&record.statement().author()).copied().flatten();
    }
    Some(chain)
}

/// The fewest records that show that this key is out because it was revoked, or a host was that admitted it, if that is why: the genesis, the
/// revocations, and for each of their authors and of those whom they revoke a chain of admissions.
pub(super) fn farewell<'a>(records: impl Iterator<Item = &'a Record> + Clone, id: NodeId) -> Option<Vec<&'a Record>> {
    let mut targets = BTreeSet::from([id]);
    for record in records.clone() {
        match record.statement() {
            Statement::Admission { subject, by, .. } if *subject == id => drop(targets.insert((*by).into())),
            _ => {}
        }
    }
    let links = closure(records.clone(), |_, _| true);
    let mut shown: BTreeMap<&[u8], &Record> = BTreeMap::new();
    for record in records.clone() {
        if !matches!(record.statement(), Statement::Revocation { target, .. } if targets.contains(target)) {
            continue;
        }
        let Statement::Revocation { target, .. } = record.statement() else { continue };
        let let_in = records.clone().find(|other| match other.statement() {
            Statement::Admission { subject, by, .. } => subject == target && links.contains_key(by),
            _ => false,
        });
        for mut next in [Some(record), let_in] {
            while let Some(record) = next {
                if shown.insert(record.bytes(), record).is_some() {
                    break; // and so are those above it
                }
                next = links.get(&record.statement().author()).copied().flatten();
            }
        }
    }
    if shown.is_empty() {
        return None;
    }
    shown.extend(
        records.filter(|r| matches!(r.statement(), Statement::Genesis { .. })).map(|record| (record.bytes(), record)),
    );
    Some(shown.into_values().collect())
}

/// For each revoked key whom all of its revocations keep.
type Keeps = BTreeMap<NodeId, BTreeSet<NodeId>>;

fn keeps<'a>(records: impl Iterator<Item = &'a Record>) -> Keeps {
    let mut keeps = Keeps::new();
    for record in records {
        if let Statement::Revocation { target, keeps: kept, .. } = record.statement() {
            let kept: BTreeSet<NodeId> = kept.iter().copied().collect();
            keeps.entry(*target).and_modify(|all| all.retain(|id| kept.contains(id))).or_insert(kept);
        }
    }
    keeps
}

fn is_kept(keeps: &Keeps, by: HostId, subject: NodeId) -> bool {
    keeps.get(&by.into()).is_none_or(|kept| kept.contains(&subject))
}

/// The members. Every record is taken to be supported.
pub(super) fn view<'a>(records: impl Iterator<Item = &'a Record> + Clone) -> View {
    let mut view = View::default();
    for record in records.clone() {
        match record.statement() {
            // In order of bytes: the first, should a founder have signed two names.
            Statement::Genesis { founder, name, .. } if view.founder.is_none() => {
                view.founder = Some(*founder);
                view.name.clone_from(name);
            }
            Statement::Revocation { target, by, .. } => {
                view.revoked.entry(*target).and_modify(|first| *first = (*first).min(*by)).or_insert(*by);
            }
            _ => {}
        }
    }
    let keeps = keeps(records.clone());
    let counts = |by: HostId, subject: NodeId| is_kept(&keeps, by, subject);
    // A revoked host still links those that it admitted and that are kept.
    let linked = closure(records.clone(), counts);
    for record in records {
        let Statement::Admission { role, subject, by, at_s, label } = record.statement() else { continue };
        if !linked.contains_key(by) || !counts(*by, *subject) || view.revoked.contains_key(subject) {
            continue;
        }
        let member = Member { label: label.clone(), by: *by, at_s: *at_s };
        // The latest, where several admitted it: a disk that moved has the name of its new host.
        let newer = |old: &Member| (old.at_s, &old.label, old.by) < (member.at_s, &member.label, member.by);
        match role {
            Role::Host => {
                let id = HostId(subject.0);
                if view.hosts.get(&id).is_none_or(newer) {
                    view.hosts.insert(id, member);
                }
            }
            Role::Disk => {
                let id = DiskId(subject.0);
                if view.disks.get(&id).is_none_or(newer) {
                    view.disks.insert(id, member);
                }
            }
        }
    }
    view
}
