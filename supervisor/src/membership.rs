//! This host as a member: its key (`STATE_DIR/host.key`), the membership sets of the clusters it takes part in
//! (`STATE_DIR/members-ID`), and the invitations it gave (`STATE_DIR/invites.json`).
//!
//! The host's key may admit and revoke. The set is joined with those of the disks by [`crate::cluster`]; which of them
//! said something first does not matter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use delugefs_proto::disk::short_id;
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::identity::Identity;
use delugefs_proto::ids::{ClusterId, DiskId, HostId, NodeId, hex};
use delugefs_proto::members::{Members, MembersError, Role, Statement, clean_label};
use delugefs_proto::token::{SECRET_BYTES, Token};
use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::escape::quoted;
use crate::failure::Failure;
use crate::statefile;

const KEY: &str = "host.key";
const INVITES: &str = "invites.json";
const SET_PREFIX: &str = "members-";
/// Invitations that wait at the same time.
const INVITES_MAX: usize = 1000;

/// See the module.
#[derive(Debug)]
pub struct Membership {
    state_dir: PathBuf,
    identity: Identity,
    label: String,
    sets: Mutex<BTreeMap<ClusterId, Members>>,
    invites: Mutex<Vec<Invite>>,
}

/// An invitation that was given. The secret itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Invite {
    cluster: String,
    /// SHA-256 of the secret, 64 hex digits.
    secret: String,
    expires_s: u64,
    /// The host that used it: it may ask again, should the answer have been lost.
    used_by: Option<String>,
}

/// Why a host was not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// A sentence for who asks.
    pub why: String,
    /// Name of the cluster, if that is why, and the secret was right.
    pub cluster: String,
    /// The records that show to who asks that it was revoked, if that is why.
    pub farewell: Vec<u8>,
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self { why, cluster: String::new(), farewell: Vec::new() }
    }
}

impl From<&str> for Refused {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

impl Membership {
    /// Read what there is, and make a key for a host that has none.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is damaged.
    pub fn open(state_dir: PathBuf) -> anyhow::Result<Self> {
        let key = match statefile::read(&state_dir, KEY)? {
            Some(key) => key,
            None => statefile::make_once(&state_dir, KEY, &Identity::generate_pkcs8()?)?,
        };
        let identity = Identity::from_pkcs8(&key).map_err(|error| {
            let text = format!("{}/{KEY} is damaged: {error}", state_dir.display());
            UserError::new(Exit::Failure, text)
                .hint("put a copy of it there; or move it away: this host is a new one then, and joins anew")
        })?;
        let mut sets = BTreeMap::new();
        for id in kept_sets(&state_dir)? {
            match read_set(&state_dir, id) {
                Ok(set) => sets.extend(set.map(|set| (id, set))),
                Err(error) => tracing::error!("the membership of cluster {} is damaged: {error:#}", id.to_hex()),
            }
        }
        let invites = match statefile::read(&state_dir, INVITES)? {
            Some(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!("invitations are lost: {INVITES} is damaged: {error}");
                Vec::new()
            }),
            None => Vec::new(),
        };
        let label = nix::unistd::gethostname().unwrap_or_default();
        let label = clean_label(&label.to_string_lossy());
        let (sets, invites) = (Mutex::new(sets), Mutex::new(invites));
        Ok(Self { state_dir, identity, label, sets, invites })
    }

    /// This host's key pair.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// This host's name, for people.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A cluster's membership as this host knows it.
    pub fn set(&self, cluster: ClusterId) -> Option<Members> {
        let mut sets = self.sets.lock();
        self.look_again(&mut sets, cluster);
        sets.get(&cluster).cloned()
    }

    /// Whether a host or disk was revoked in a cluster.
    pub fn is_revoked(&self, cluster: ClusterId, id: NodeId) -> bool {
        self.sets.lock().get(&cluster).is_some_and(|set| set.is_revoked(id))
    }

    /// Why this host can do nothing in a cluster any more, and what lets it in again, if it was revoked there.
    pub fn shut_out(&self, set: &Members) -> Option<Failure> {
        let me = NodeId::from(self.identity.host_id());
        let text = format!("this host was revoked{}, which is for ever", revoked_by(set, me));
        let key = std::path::absolute(self.state_dir.join(KEY)).unwrap_or_else(|_| self.state_dir.join(KEY));
        let hint = format!(
            "it can come back with another key: stop delugefs here, move {} away, and join anew with an invitation from another host: \
             `delugefs run {} ROOT --join TOKEN`",
            quoted(&key.display().to_string()),
            set.cluster_name()
        );
        set.is_revoked(me).then(|| Failure::new(Exit::NotPermitted, text).hint(hint))
    }

    /// The cluster of this name that this host is a member of. Who founds one by mistake and joins the right one then is in two: the
    /// right one has other hosts.
    ///
    /// # Errors
    /// When there are several, and that does not tell which.
    pub fn known(&self, name: &str) -> Result<Option<ClusterId>, Failure> {
        let mut sets = self.sets.lock();
        // One may have been founded, or joined, by another process.
        kept_sets(&self.state_dir).unwrap_or_default().into_iter().for_each(|id| self.look_again(&mut sets, id));
        let me = self.identity.host_id();
        let ours: Vec<&Members> = sets.values().filter(|set| set.cluster_name() == name && set.is_host(me)).collect();
        let has_others = |set: &Members| set.hosts().len() > 1 || set.hosts().get(&me).is_some_and(|it| it.by != me);
        let shared: Vec<&Members> = ours.iter().copied().filter(|set| has_others(set)).collect();
        match (&ours[..], &shared[..]) {
            ([], _) => Ok(None),
            ([one], _) | (_, [one]) => Ok(Some(one.cluster_id())),
            _ => Err(several(name, &ours)),
        }
    }

    /// `--found` of another process founds beside a supervisor that runs, as `service delugefs create` does.
    fn look_again(&self, sets: &mut BTreeMap<ClusterId, Members>, cluster: ClusterId) {
        // One that is damaged was complained about at the start.
        if !sets.contains_key(&cluster)
            && let Ok(Some(set)) = read_set(&self.state_dir, cluster)
        {
            tracing::info!("the cluster {} was founded meanwhile", set.cluster_name());
            sets.insert(cluster, set);
        }
    }

    /// Forget a cluster that this host has founded and whose first disk could not be made. One that has a disk or another host stays.
    ///
    /// # Errors
    /// When its set cannot be removed.
    pub fn unfound(&self, cluster: ClusterId) -> anyhow::Result<()> {
        let mut sets = self.sets.lock();
        let is_empty = |set: &Members| set.disks().is_empty() && set.hosts().len() == 1;
        if sets.get(&cluster).is_some_and(is_empty) {
            statefile::remove(&self.state_dir, &format!("{SET_PREFIX}{}", cluster.to_hex()))?;
            sets.remove(&cluster);
        }
        Ok(())
    }

    /// The cluster of this name that a new disk of this host belongs to: one that it is a member of, else a new one that
    /// it founds.
    ///
    /// # Errors
    /// As [`Membership::known`], or when the set cannot be written.
    pub fn cluster_for(&self, name: &str) -> Result<ClusterId, Failure> {
        if let Some(id) = self.known(name)? {
            return Ok(id);
        }
        // A supervisor and `--found` may both be about to found it.
        let _alone = alone(&self.state_dir)?;
        if let Some(id) = self.known(name)? {
            return Ok(id);
        }
        let mut nonce = [0; 16];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Failure::new(Exit::Failure, "no random numbers"))?;
        let set = Members::found(&self.identity, nonce, name, &self.label, now_s()).map_err(anyhow::Error::from)?;
        let id = set.cluster_id();
        self.save(set)?;
        tracing::info!("founded the cluster {name} ({})", id.to_hex());
        Ok(id)
    }

    /// Join what a disk or another host says into a cluster's set. Whether anything is new.
    ///
    /// # Errors
    /// When it is not a set of this cluster, or cannot be written.
    pub fn absorb(&self, cluster: ClusterId, bytes: &[u8]) -> anyhow::Result<bool> {
        if bytes.is_empty() {
            return Ok(false);
        }
        let set = match self.set(cluster) {
            Some(mut set) => {
                if !set.absorb(bytes)?.changed {
                    return Ok(false);
                }
                set
            }
            None => Members::decode(cluster, bytes)?,
        };
        self.save(set)?;
        Ok(true)
    }

    /// Admit a disk that is in this host. `false`: this host may not, because it is no member itself.
    ///
    /// # Errors
    /// When the disk was revoked, or the set cannot be written.
    pub fn admit_disk(&self, cluster: ClusterId, disk: DiskId) -> anyhow::Result<bool> {
        let Some(mut set) = self.set(cluster).filter(|set| set.is_host(self.identity.host_id())) else {
            return Ok(false);
        };
        let before = set.clone();
        set.admit(Role::Disk, disk.into(), &self.label, now_s(), &self.identity)?;
        if set != before {
            self.save(set)?;
        }
        Ok(true)
    }

    /// Give an invitation: the token to pass on.
    ///
    /// # Errors
    /// When this host is no member, or there are too many.
    pub fn invite(
        &self,
        cluster: ClusterId,
        inviter: DiskId,
        addresses: Vec<String>,
        expires_s: u64,
    ) -> Result<Token, Failure> {
        let known = self.set(cluster).ok_or_else(no_member)?;
        // Who comes must know the disk that invited: neither would ever call the other else. A moment after its start it may
        // not be admitted yet.
        let is_admitted = known.is_host(self.identity.host_id())
            && (known.is_disk(inviter) || self.admit_disk(cluster, inviter).map_err(Failure::from)?);
        if !is_admitted {
            return Err(self.shut_out(&known).unwrap_or_else(no_member));
        }
        let mut secret = [0; SECRET_BYTES];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| Failure::new(Exit::Failure, "no random numbers"))?;
        let expires_s = now_s() + expires_s;
        let mut invites = self.invites.lock();
        invites.retain(|invite| invite.expires_s > now_s());
        if invites.len() >= INVITES_MAX {
            return Err(Failure::new(Exit::Failure, "too many invitations wait; let some expire"));
        }
        invites.push(Invite { cluster: cluster.to_hex(), secret: hash(&secret), expires_s, used_by: None });
        self.save_invites(&invites)?;
        Ok(Token { cluster, inviter, secret, expires_s, addresses })
    }

    /// A host comes with a secret: admit it, once. `name`: what it takes the cluster's to be; empty: any.
    ///
    /// # Errors
    /// A sentence for the host that asks.
    pub fn redeem(
        &self,
        cluster: ClusterId,
        name: &str,
        secret: &[u8],
        host: HostId,
        label: &str,
    ) -> Result<Members, Refused> {
        let (hash, asking) = (hash(secret), host.to_hex());
        let mut invites = self.invites.lock();
        let now = now_s();
        let wanted = cluster.to_hex();
        // Hashes are compared: how long that takes tells nothing about the secret.
        let found = invites.iter_mut().find(|invite| invite.cluster == wanted && invite.secret == hash);
        let Some(invite) = found else { return Err("this invitation is unknown here".into()) };
        if invite.expires_s <= now {
            return Err("this invitation has expired: ask for a new one".into());
        }
        let Some(mut set) = self.set(cluster) else { return Err("this host knows no such cluster".into()) };
        // Who has typed another name means another cluster: nothing has happened, and the invitation can be used still.
        if !name.is_empty() && name != set.cluster_name() {
            let cluster = set.cluster_name().to_owned();
            let why = format!("the invitation is to the cluster {cluster}");
            return Err(Refused { why, cluster, farewell: Vec::new() });
        }
        // Nor could it be used by another key of that host else.
        if set.is_revoked(host.into()) {
            let by = revoked_by(&set, host.into());
            let why = format!("the key of this host was revoked{by}, which is for ever: it needs a new one");
            let farewell = set.farewell(host.into()).unwrap_or_default();
            return Err(Refused { why, cluster: String::new(), farewell });
        }
        match &invite.used_by {
            Some(other) if *other != asking => return Err("this invitation was used already: ask for a new one".into()),
            _ => invite.used_by = Some(asking),
        }
        // Before it has an effect: it must not work twice, whatever happens.
        self.save_invites(&invites).map_err(|failure| failure.message)?;
        drop(invites);
        set.admit(Role::Host, host.into(), &clean_label(label), now, &self.identity)
            .map_err(|error| error.to_string())?;
        Ok(self.save(set).map_err(|error| format!("{error:#}"))?)
    }

    /// Revoke a host or disk, by the beginning of its id; with `with_hosts` also those that are members by it alone. What became of whom.
    ///
    /// # Errors
    /// When nobody or several have such an id, or this host may not.
    pub fn revoke(&self, cluster: ClusterId, beginning: &str, with_hosts: bool) -> Result<Revoked, Failure> {
        let (set, revoked) = self.without(cluster, beginning, with_hosts)?;
        self.save(set).map_err(Failure::from)?;
        Ok(revoked)
    }

    /// The disks that are out when this host or disk is revoked: a host's go with it.
    ///
    /// # Errors
    /// As [`Membership::revoke`].
    pub fn leaving(&self, cluster: ClusterId, beginning: &str, with_hosts: bool) -> Result<Vec<DiskId>, Failure> {
        let (left, _) = self.without(cluster, beginning, with_hosts)?;
        let set = self.set(cluster).ok_or_else(no_member)?;
        Ok(set.disks().keys().copied().filter(|disk| !left.is_disk(*disk)).collect())
    }

    /// The set with one revoked.
    fn without(&self, cluster: ClusterId, beginning: &str, with_hosts: bool) -> Result<(Members, Revoked), Failure> {
        let mut set = self.set(cluster).ok_or_else(no_member)?;
        let beginning = beginning.to_ascii_lowercase();
        if beginning.len() < 8 || !beginning.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            let failure = Failure::new(Exit::Usage, "an id has at least 8 hexadecimal digits");
            return Err(failure.hint("`delugefs peers` shows ids"));
        }
        let mut hosts: Vec<(NodeId, bool)> = set.hosts().keys().map(|id| (NodeId::from(*id), true)).collect();
        if with_hosts {
            // Those that it let in can be shut out later, too.
            let out = set.statements().filter_map(|one| match one {
                Statement::Admission { role: Role::Host, subject, .. } if set.is_revoked(*subject) => Some(*subject),
                _ => None,
            });
            hosts.extend(out.collect::<BTreeSet<NodeId>>().into_iter().map(|id| (id, true)));
        }
        let disks = set.disks().keys().map(|id| (NodeId::from(*id), false));
        let found: Vec<(NodeId, bool)> =
            hosts.into_iter().chain(disks).filter(|(id, _)| id.to_hex().starts_with(&beginning)).collect();
        let (id, is_host) = match found[..] {
            [one] => one,
            [] if set.revoked().keys().any(|id| id.to_hex().starts_with(&beginning)) => {
                let failure = Failure::new(Exit::Failure, format!("{beginning} was revoked already"));
                return Err(failure.hint("nothing is left to do; `delugefs peers` lists who is in and who is out"));
            }
            [] => {
                let failure = Failure::new(Exit::Failure, format!("no member has an id that begins with {beginning}"));
                return Err(failure.hint("`delugefs peers` shows ids"));
            }
            _ => {
                return Err(Failure::new(Exit::Usage, format!("several members have ids that begin with {beginning}")));
            }
        };
        if id == self.identity.host_id().into() {
            let failure = Failure::new(Exit::Usage, "a host that shuts itself out can never come back");
            return Err(failure.hint("do it on another host of the cluster"));
        }
        let before = set.clone();
        let revoked = match with_hosts {
            true => set.revoke_with_hosts(id, now_s(), &self.identity),
            false => set.revoke(id, now_s(), &self.identity),
        };
        let brought = revoked.map_err(|error| match error {
            MembersError::NotAMember(_) => self.shut_out(&set).unwrap_or_else(no_member),
            error => Failure::new(Exit::Failure, error.to_string()),
        })?;
        let names = |hosts: Vec<HostId>| hosts.into_iter().map(|host| before.host_name(host)).collect();
        Ok((set, Revoked { id, is_host, stay: names(brought.stay), out: names(brought.out) }))
    }

    /// Joined with what is there: somebody else may have saved since this one was read. What is there now.
    fn save(&self, mut set: Members) -> anyhow::Result<Members> {
        let id = set.cluster_id();
        let mut sets = self.sets.lock();
        if let Some(now) = sets.get(&id) {
            set.absorb(&now.encode())?;
        }
        statefile::write(&self.state_dir, &format!("{SET_PREFIX}{}", id.to_hex()), &set.encode())?;
        sets.insert(id, set.clone());
        Ok(set)
    }

    fn save_invites(&self, invites: &[Invite]) -> Result<(), Failure> {
        let bytes =
            serde_json::to_vec_pretty(invites).map_err(|error| Failure::new(Exit::Failure, error.to_string()))?;
        statefile::write(&self.state_dir, INVITES, &bytes).map_err(Failure::from)
    }
}

/// Who was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    pub id: NodeId,
    pub is_host: bool,
    /// Hosts that are members only because it let them in, by their names.
    pub stay: Vec<String>,
    /// Those that are so no more.
    pub out: Vec<String>,
}

/// Wait until nobody else founds a cluster with this state directory, for moments.
fn alone(state_dir: &Path) -> anyhow::Result<Flock<File>> {
    let path = state_dir.join(KEY); // whoever has it, has its key
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| anyhow::Error::from(error).context("cannot take a lock"))
}

/// The clusters of which a set is kept.
fn kept_sets(state_dir: &Path) -> std::io::Result<Vec<ClusterId>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(state_dir)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| ClusterId::from_hex(name.strip_prefix(SET_PREFIX)?)));
    }
    Ok(found)
}

fn read_set(state_dir: &Path, cluster: ClusterId) -> anyhow::Result<Option<Members>> {
    let bytes = statefile::read(state_dir, &format!("{SET_PREFIX}{}", cluster.to_hex()))?;
    Ok(bytes.map(|bytes| Members::decode(cluster, &bytes)).transpose()?)
}

/// By whom somebody was revoked, if it is known.
pub(crate) fn revoked_by(set: &Members, id: NodeId) -> String {
    set.revoked().get(&id).map(|host| format!(" by {}", set.host_name(*host))).unwrap_or_default()
}

/// This host is in several clusters of one name.
fn several(name: &str, ours: &[&Members]) -> Failure {
    let one = |set: &&Members| {
        let id = set.cluster_id().to_hex();
        let hosts: Vec<String> = set.hosts().keys().map(|host| set.host_name(*host)).collect();
        format!("{} (hosts: {})", short_id(&id), hosts.join(", "))
    };
    let clusters: Vec<String> = ours.iter().map(one).collect();
    let text = format!("this host is in several clusters called {name}: {}", clusters.join("; "));
    Failure::new(Exit::WrongCluster, text).hint(format!(
        "start a disk of the right one first, and a new one is of that, too: `delugefs run {name} ROOT` with the folder of a disk that \
         is there; or name it by an invitation from another host of it: `delugefs run {name} ROOT --join TOKEN`"
    ))
}

fn no_member() -> Failure {
    Failure::new(Exit::NotPermitted, "this host is no member of the cluster").hint(
        "ask for an invitation on a member (`delugefs invite`) and use it: `delugefs run CLUSTER ROOT --join TOKEN`",
    )
}

fn hash(secret: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret).as_ref())
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
