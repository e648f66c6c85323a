//! Who may take part in a cluster: a grow-only set of signed records ([`record`]), of which everybody works out the same
//! members ([`validity`]). Two sets are joined by union, so it does not matter who told whom first. Nobody is asked, and
//! no clock decides. Knows nothing of the network, nor where the set is kept.

use std::collections::{BTreeMap, BTreeSet};

use crate::identity::Identity;
use crate::ids::{ClusterId, DiskId, HostId, NodeId};

mod record;
mod room;
#[cfg(test)]
mod tests;
mod validity;

use record::Record;
pub use record::{NONCE_BYTES, Role, Statement, clean_label, cluster_id, is_label};
use room::Room;
pub use room::{ADMISSIONS_MAX, HOSTS_MAX, REVOCATIONS_EACH, REVOCATIONS_MAX, SHORT_EACH};
pub use validity::Member;

/// Most members that one revocation keeps; and those that it keeps where there is no room for more.
pub const KEEPS_MAX: usize = 1000;
pub const KEEPS_FEW: usize = 4;
/// Largest set, in bytes.
pub const SET_MAX_BYTES: usize = 1 << 20;
/// Largest proof that one key belongs to a member, in bytes: what a stranger may show.
pub const PROOF_MAX_BYTES: usize = 16 << 10;
/// Longest name in a record.
const NAME_MAX_BYTES: usize = 64;

/// Why records are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// Bytes that are no records.
    #[error("membership: {0}")]
    Malformed(&'static str),
    /// From the future.
    #[error("membership record version {0} is unknown to this version of delugefs: upgrade it")]
    Version(u8),
    /// Of another cluster.
    #[error("membership record of another cluster")]
    ForeignCluster,
    /// The signature does not fit.
    #[error("membership record with a wrong signature")]
    Forged,
    /// Nothing can be verified without it.
    #[error("membership without a genesis: the cluster's beginning is missing")]
    NoGenesis,
    /// Only hosts of the cluster may.
    #[error("host {0} is no member, so it cannot admit or revoke")]
    NotAMember(HostId),
    /// Once revoked, always revoked.
    #[error("the key {0} was revoked, which is for ever; a new key is needed")]
    Revoked(NodeId),
    /// Nobody to revoke.
    #[error("nobody with the key {0} was ever admitted")]
    Unknown(NodeId),
    /// See the limits of this module.
    #[error("the cluster has as many membership records as it can have")]
    Full,
}

/// What joining another set did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// Records came in.
    pub changed: bool,
    /// Records that were left out: the set is full.
    pub left_out: usize,
}

/// What becomes of those hosts that are members only because a revoked one has let them in, or somebody whom it had let in. A bad one may
/// have made them up: only people can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// They stay.
    pub stay: Vec<HostId>,
    /// They are out, too: a revocation keeps so many at most.
    pub out: Vec<HostId>,
}

/// The membership of one cluster.
#[derive(Clone, Debug)]
pub struct Members {
    cluster: ClusterId,
    /// By their bytes: the order of the encoding.
    records: BTreeMap<Box<[u8]>, Record>,
    view: validity::View,
}

impl PartialEq for Members {
    fn eq(&self, other: &Self) -> bool {
        self.cluster == other.cluster && self.records.keys().eq(other.records.keys())
    }
}

impl Members {
    /// Begin a cluster, with its founder as the first host.
    ///
    /// # Errors
    /// When a name is unfit.
    pub fn found(
        founder: &Identity,
        nonce: [u8; NONCE_BYTES],
        name: &str,
        label: &str,
        at_s: u64,
    ) -> Result<Self, MembersError> {
        if !is_label(name) {
            return Err(MembersError::Malformed("unfit name of a cluster"));
        }
        let by = founder.host_id();
        let cluster = cluster_id(by, &nonce);
        let mut this = Self { cluster, records: BTreeMap::new(), view: Default::default() };
        this.insert(Record::sign(cluster, Statement::Genesis { founder: by, nonce, name: name.to_owned() }, founder));
        this.sign_admission(Role::Host, by.into(), label, at_s, founder)?;
        Ok(this)
    }

    /// Read a whole set of a cluster that was kept, and check everything in it. One in which hosts take up more than they may stays as it is:
    /// earlier versions took it all, and without some revocations their targets would be members again.
    ///
    /// # Errors
    /// When anything is wrong with it.
    pub fn decode(cluster: ClusterId, bytes: &[u8]) -> Result<Self, MembersError> {
        let mut this = Self { cluster, records: BTreeMap::new(), view: Default::default() };
        this.join(bytes, false)?;
        if this.view.founder.is_none() { Err(MembersError::NoGenesis) } else { Ok(this) }
    }

    /// The set in its one encoding.
    pub fn encode(&self) -> Vec<u8> {
        encode(self.records.values())
    }

    /// Join another set of this cluster. Only the records that are new are verified. A record whose signer no record
    /// makes a host says nothing and is not kept, nor is a revocation of a key that nobody was let in with: whoever sends it again
    /// sends its support too. Nor is a second genesis: a founder who has turned bad would give the cluster another name.
    ///
    /// # Errors
    /// When the bytes hold anything but well-formed, well-signed records of this cluster; nothing was taken then.
    pub fn absorb(&mut self, set: &[u8]) -> Result<Joined, MembersError> {
        self.join(set, true)
    }

    fn join(&mut self, set: &[u8], is_limited: bool) -> Result<Joined, MembersError> {
        if set.len() > SET_MAX_BYTES {
            return Err(MembersError::Full);
        }
        let mut new = Vec::new();
        for bytes in split(set)? {
            if !self.records.contains_key(bytes) {
                new.push(Record::decode(self.cluster, bytes)?);
            }
        }
        let mut wanted: Vec<&Record> = new.iter().collect();
        let mut has_genesis = self.view.founder.is_some();
        wanted.retain(|record| !is_genesis(record) || !std::mem::replace(&mut has_genesis, true));
        self.keep_supported(&mut wanted);
        let before = wanted.len();
        if is_limited {
            self.cut_to_limits(&mut wanted);
        }
        let left_out = before - wanted.len();
        if left_out > 0 {
            // What was left out may have been another's support.
            self.keep_supported(&mut wanted);
        }
        let wanted: Vec<Record> = wanted.into_iter().cloned().collect();
        let changed = !wanted.is_empty();
        self.records.extend(wanted.into_iter().map(|record| (record.bytes().into(), record)));
        if changed {
            self.view = validity::view(self.records.values());
        }
        Ok(Joined { changed, left_out })
    }

    /// Drop what nothing that is here, or comes along, supports.
    fn keep_supported(&self, wanted: &mut Vec<&Record>) {
        let ever = validity::ever(self.records.values().chain(wanted.iter().copied()));
        wanted.retain(|record| ever.supports(record.statement()));
    }

    /// Drop what does not fit beside the records that are here; revocations come first. Whom one shuts out for which there is no room is not
    /// let in by what comes with it, either.
    fn cut_to_limits(&self, wanted: &mut Vec<&Record>) {
        let target = |record: &Record| match record.statement() {
            Statement::Revocation { target, .. } => Some(*target),
            _ => None,
        };
        let mut room = Room::of(self.records.values());
        let mut out = BTreeSet::new();
        let mut kept = Vec::new();
        wanted.sort_by_key(|record| target(record).is_none());
        for record in wanted.drain(..) {
            match record.statement() {
                Statement::Admission { subject, .. } if out.contains(subject) => {}
                _ if room.take(record) => kept.push(record),
                _ => out.extend(target(record)),
            }
        }
        *wanted = kept;
    }

    /// Admit a host or a disk. Nothing happens when this host admitted it before as the same and nobody else did since.
    /// Otherwise the new record is the latest, also where this host's clock is behind: what is said last counts.
    ///
    /// # Errors
    /// When `by` is no host of this cluster, the subject was revoked, the label is unfit, or the set is full.
    pub fn admit(
        &mut self,
        role: Role,
        subject: NodeId,
        label: &str,
        at_s: u64,
        by: &Identity,
    ) -> Result<(), MembersError> {
        let host = by.host_id();
        if !self.is_host(host) {
            return Err(MembersError::NotAMember(host));
        }
        if self.is_revoked(subject) {
            return Err(MembersError::Revoked(subject));
        }
        let known = match role {
            Role::Host => self.view.hosts.get(&HostId(subject.0)),
            Role::Disk => self.view.disks.get(&DiskId(subject.0)),
        };
        if known.is_some_and(|member| member.by == host && member.label == label) {
            return Ok(());
        }
        let at_s = known.map_or(at_s, |member| at_s.max(member.at_s.saturating_add(1)));
        self.sign_admission(role, subject, label, at_s, by)
    }

    fn sign_admission(
        &mut self,
        role: Role,
        subject: NodeId,
        label: &str,
        at_s: u64,
        by: &Identity,
    ) -> Result<(), MembersError> {
        if !is_label(label) {
            return Err(MembersError::Malformed("unfit name of a host"));
        }
        let statement = Statement::Admission { role, subject, by: by.host_id(), at_s, label: label.to_owned() };
        self.add(Record::sign(self.cluster, statement, by))
    }

    /// Revoke a host or a disk, for ever. The hosts that a revoked host admitted stay, as far as there is room to say so: the one through which
    /// `by` is a member, and the earliest ones; its disks do not.
    ///
    /// # Errors
    /// When `by` is no host of this cluster, nobody knows the target, or the set is full.
    pub fn revoke(&mut self, target: NodeId, at_s: u64, by: &Identity) -> Result<Brought, MembersError> {
        if self.is_revoked(target) && self.is_host(by.host_id()) {
            return Ok(Brought::default());
        }
        self.revoke_keeping(KEEPS_MAX, target, at_s, by)
    }

    /// The same, but those whom it admitted are out, too, unless somebody else has admitted them, or `by` is a member through them: a bad one
    /// may have made them up. They may be let in anew. Also when it was revoked already.
    ///
    /// # Errors
    /// As [`Members::revoke`].
    pub fn revoke_with_hosts(&mut self, target: NodeId, at_s: u64, by: &Identity) -> Result<Brought, MembersError> {
        self.revoke_keeping(0, target, at_s, by)
    }

    /// Keep so many of those whom it admitted.
    fn revoke_keeping(
        &mut self,
        most: usize,
        target: NodeId,
        at_s: u64,
        by: &Identity,
    ) -> Result<Brought, MembersError> {
        if !self.is_host(by.host_id()) {
            return Err(MembersError::NotAMember(by.host_id()));
        }
        let mut known = false;
        let mut admitted: BTreeMap<NodeId, u64> = BTreeMap::new();
        for record in self.records.values() {
            let Statement::Admission { subject, by, at_s, .. } = record.statement() else { continue };
            known |= *subject == target;
            if NodeId::from(*by) == target && *subject != target && self.is_host(HostId(subject.0)) {
                admitted.entry(*subject).and_modify(|first| *first = (*first).min(*at_s)).or_insert(*at_s);
            }
        }
        if !known {
            return Err(MembersError::Unknown(target));
        }
        // Nobody else might be left to let it in again. It comes first: when others were let in, a bad one says as it likes.
        let (own_link, through) = self.chain_of(by.id(), target);
        let mut earliest: Vec<NodeId> = admitted.keys().copied().filter(|subject| Some(*subject) != own_link).collect();
        earliest.sort_by_key(|subject| (admitted[subject], *subject));
        let (cluster, by_host) = (self.cluster, by.host_id());
        let revocation = |most: usize| {
            let least = most.saturating_sub(usize::from(own_link.is_some()));
            let mut keeps: Vec<NodeId> = own_link.into_iter().chain(earliest.iter().copied().take(least)).collect();
            keeps.sort_unstable();
            Record::sign(cluster, Statement::Revocation { target, by: by_host, at_s, keeps }, by)
        };
        // Those who are in without it have somebody else to thank.
        let none = revocation(0);
        let without = validity::view(self.records.values().chain([&none]));
        let is_out = |host: &HostId| NodeId::from(*host) != target && !without.hosts.contains_key(host);
        let is_brought = |host: &&HostId| is_out(host) || through.contains(host);
        let brought: Vec<HostId> = self.view.hosts.keys().filter(is_brought).copied().collect();
        if !self.is_said(&revocation(most)) {
            match self.add(revocation(most)) {
                Err(MembersError::Full) => self.add(revocation(most.min(KEEPS_FEW)))?,
                added => added?,
            }
        }
        let (stay, out) = brought.into_iter().partition(|host| self.is_host(*host));
        Ok(Brought { stay, out })
    }

    /// Whether its author has revoked the same, and kept nobody else.
    fn is_said(&self, record: &Record) -> bool {
        let Statement::Revocation { target, by, keeps, .. } = record.statement() else { return false };
        self.records.values().any(|known| match known.statement() {
            Statement::Revocation { target: of, by: author, keeps: kept, .. } => {
                of == target && author == by && kept.iter().all(|id| keeps.contains(id))
            }
            _ => false,
        })
    }

    /// Whom `target` has let in so that this host is a member, and through whom it is so from there on, without itself.
    fn chain_of(&self, id: NodeId, target: NodeId) -> (Option<NodeId>, BTreeSet<HostId>) {
        let (mut link, mut through) = (None, BTreeSet::new());
        for record in validity::proof(self.records.values(), &self.view, id).into_iter().flatten() {
            let Statement::Admission { subject, by, .. } = record.statement() else { continue };
            if NodeId::from(*by) == target {
                link = Some(*subject);
                break; // it goes from this host up to the founder
            }
            through.insert(*by);
        }
        if link.is_none() { (None, BTreeSet::new()) } else { (link, through) }
    }

    /// A record of our own.
    fn add(&mut self, record: Record) -> Result<(), MembersError> {
        let mut one = vec![&record];
        self.cut_to_limits(&mut one);
        if one.is_empty() {
            return Err(MembersError::Full);
        }
        self.insert(record);
        Ok(())
    }

    fn insert(&mut self, record: Record) {
        self.records.insert(record.bytes().into(), record);
        self.view = validity::view(self.records.values());
    }

    /// The fewest records that show that this key belongs to a member, as a set; `None` when it does not.
    pub fn proof(&self, id: NodeId) -> Option<Vec<u8>> {
        let mut chain = validity::proof(self.records.values(), &self.view, id)?;
        chain.sort_by_key(|record| record.bytes());
        Some(encode(chain.into_iter()))
    }

    /// The fewest records that show to the owner of this key that it was revoked, or that the host was which admitted it, as a set; `None` when
    /// it is a member, or was none.
    pub fn farewell(&self, id: NodeId) -> Option<Vec<u8>> {
        if self.is_host(HostId(id.0)) || self.is_disk(DiskId(id.0)) {
            return None;
        }
        Some(encode(validity::farewell(self.records.values(), id)?.into_iter()))
    }

    /// Whose membership this is.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster
    }

    /// The cluster's name, for people.
    pub fn cluster_name(&self) -> &str {
        &self.view.name
    }

    /// Whether this disk may take part.
    pub fn is_disk(&self, id: DiskId) -> bool {
        self.view.disks.contains_key(&id)
    }

    /// Whether this host may take part, admit and revoke.
    pub fn is_host(&self, id: HostId) -> bool {
        self.view.hosts.contains_key(&id)
    }

    /// Whether this key was revoked.
    pub fn is_revoked(&self, id: NodeId) -> bool {
        self.view.revoked.contains_key(&id)
    }

    /// The disks that may take part.
    pub fn disks(&self) -> &BTreeMap<DiskId, Member> {
        &self.view.disks
    }

    /// The hosts that may take part.
    pub fn hosts(&self) -> &BTreeMap<HostId, Member> {
        &self.view.hosts
    }

    /// The revoked keys, and who revoked them.
    pub fn revoked(&self) -> &BTreeMap<NodeId, HostId> {
        &self.view.revoked
    }

    /// A host, for people: its name and the beginning of its id.
    pub fn host_name(&self, id: HostId) -> String {
        let hex = id.to_hex();
        let short = crate::disk::short_id(&hex);
        match self.view.hosts.get(&id) {
            Some(member) => format!("{} ({short})", member.label),
            None => format!("host {short}"),
        }
    }

    /// What the records say, in the order of the encoding.
    pub fn statements(&self) -> impl Iterator<Item = &Statement> {
        self.records.values().map(Record::statement)
    }
}

fn is_genesis(record: &Record) -> bool {
    matches!(record.statement(), Statement::Genesis { .. })
}

fn encode<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<u8> {
    let mut out = vec![record::VERSION];
    for record in records {
        out.extend((record.bytes().len() as u32).to_le_bytes());
        out.extend(record.bytes());
    }
    out
}

/// The records in a set: each once, ascending.
fn split(set: &[u8]) -> Result<Vec<&[u8]>, MembersError> {
    let short = MembersError::Malformed("set is cut short");
    let (&version, mut rest) = set.split_first().ok_or(short.clone())?;
    if version != record::VERSION {
        return Err(MembersError::Version(version));
    }
    let mut records = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (bytes, tail) = tail.split_at_checked(length).ok_or(short.clone())?;
        records.push(bytes);
        rest = tail;
    }
    match rest {
        [] if records.is_sorted_by(|a, b| a < b) => Ok(records),
        [] => Err(MembersError::Malformed("set is not in canonical form")),
        _ => Err(short),
    }
}
