//! This host as a member: its key (`STATE_DIR/host.key`), the membership sets of the clusters it takes part in
//! (`STATE_DIR/members-ID`), and the invitations it gave (`STATE_DIR/invites.json`).
//!
//! The host's key may admit and revoke. The set is joined with those of the disks by [`crate::cluster`]; which of them
//! said something first does not matter.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use delugefs_proto::disk::short_id;
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::identity::Identity;
use delugefs_proto::ids::{ClusterId, DiskId, HostId, NodeId, hex};
use delugefs_proto::members::{Members, MembersError, Role, clean_label};
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

    /// Revoke a host or disk, by the beginning of its id. Its whole id, and whether it is a host.
    ///
    /// # Errors
    /// When nobody or several have such an id, or this host may not.
    pub fn revoke(&self, cluster: ClusterId, beginning: &str) -> Result<(NodeId, bool), Failure> {
        let (set, id, is_host) = self.without(cluster, beginning)?;
        self.save(set).map_err(Failure::from)?;
        Ok((id, is_host))
    }

    /// The disks that are out when this host or disk is revoked: a host's go with it.
    ///
    /// # Errors
    /// As [`Membership::revoke`].
    pub fn leaving(&self, cluster: ClusterId, beginning: &str) -> Result<Vec<DiskId>, Failure> {
        let (left, ..) = self.without(cluster, beginning)?;
        let set = self.set(cluster).ok_or_else(no_member)?;
        Ok(set.disks().keys().copied().filter(|disk| !left.is_disk(*disk)).collect())
    }

    /// The set with one revoked.
    fn without(&self, cluster: ClusterId, beginning: &str) -> Result<(Members, NodeId, bool), Failure> {
        let mut set = self.set(cluster).ok_or_else(no_member)?;
        let beginning = beginning.to_ascii_lowercase();
        if beginning.len() < 8 || !beginning.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            let failure = Failure::new(Exit::Usage, "an id has at least 8 hexadecimal digits");
            return Err(failure.hint("`delugefs peers` shows ids"));
        }
        let hosts = set.hosts().keys().map(|id| (NodeId::from(*id), true));
        let disks = set.disks().keys().map(|id| (NodeId::from(*id), false));
        let found: Vec<(NodeId, bool)> =
            hosts.chain(disks).filter(|(id, _)| id.to_hex().starts_with(&beginning)).collect();
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
        set.revoke(id, now_s(), &self.identity).map_err(|error| match error {
            MembersError::NotAMember(_) => self.shut_out(&set).unwrap_or_else(no_member),
            error => Failure::new(Exit::Failure, error.to_string()),
        })?;
        Ok((set, id, is_host))
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

/// The clusters of which a set is kept.
/// Wait until nobody else founds a cluster with this state directory, for moments.
fn alone(state_dir: &Path) -> anyhow::Result<Flock<File>> {
    let path = state_dir.join(KEY); // whoever has it, has its key
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| anyhow::Error::from(error).context("cannot take a lock"))
}

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
mod tests {
    use super::*;

    fn host() -> (tempfile::TempDir, Membership) {
        let dir = tempfile::tempdir().unwrap();
        let membership = Membership::open(dir.path().into()).unwrap();
        (dir, membership)
    }

    #[test]
    fn a_cluster_that_another_process_founds_meanwhile_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let running = Membership::open(dir.path().into()).unwrap();
        let founded = |name: &str| Membership::open(dir.path().into()).unwrap().cluster_for(name).unwrap();
        let (home, work) = (founded("home"), founded("work"));
        assert_eq!(running.cluster_for("home").unwrap(), home, "no second one of that name");
        assert!(running.admit_disk(work, DiskId([8; 32])).unwrap());
        assert_eq!(running.known("garden"), Ok(None));
    }

    #[test]
    fn an_invitation_works_once_also_over_a_restart() {
        let (dir, one) = host();
        let cluster = one.cluster_for("home").unwrap();
        assert_eq!(one.cluster_for("home").unwrap(), cluster);
        let token = one.invite(cluster, DiskId([1; 32]), vec!["127.0.0.1:7".into()], 60).unwrap();
        let expired = one.invite(cluster, DiskId([1; 32]), vec![], 0).unwrap();
        drop(one);
        let one = Membership::open(dir.path().into()).unwrap();
        let (_other_dir, other) = host();
        let (_third_dir, third) = host();
        let ask = |who: &Membership, secret: &[u8]| one.redeem(cluster, "home", secret, who.identity().host_id(), "x");
        assert!(ask(&other, b"wrong").unwrap_err().why.contains("unknown"));
        assert!(ask(&other, &expired.secret).is_err());
        // A wrong name uses nothing up, and only who has the secret is told the right one.
        let named = |secret: &[u8]| one.redeem(cluster, "work", secret, third.identity().host_id(), "x").unwrap_err();
        assert_eq!((named(&token.secret).cluster, named(b"wrong").cluster), ("home".into(), String::new()));
        assert!(!one.set(cluster).unwrap().is_host(third.identity().host_id()));
        let set = ask(&other, &token.secret).unwrap();
        assert!(set.is_host(other.identity().host_id()) && set.is_disk(DiskId([1; 32])));
        // The answer was lost.
        assert!(ask(&other, &token.secret).is_ok());
        assert!(ask(&third, &token.secret).unwrap_err().why.contains("used already"));
        // The new member admits its disk, the old one revokes it.
        assert!(other.absorb(cluster, &set.encode()).unwrap());
        let disk = DiskId([9; 32]);
        assert!(other.admit_disk(cluster, disk).unwrap() && !third.admit_disk(cluster, disk).unwrap());
        assert!(one.absorb(cluster, &other.set(cluster).unwrap().encode()).unwrap());
        assert!(one.set(cluster).unwrap().is_disk(disk));
        assert_eq!(one.revoke(cluster, "0909").unwrap_err().exit, Exit::Usage);
        assert_eq!(one.leaving(cluster, "09090909").unwrap(), [disk]);
        assert_eq!(one.revoke(cluster, "09090909").unwrap(), (disk.into(), false));
        assert!(!one.set(cluster).unwrap().is_disk(disk));
        let again = one.revoke(cluster, "09090909").unwrap_err();
        assert!(again.message.contains("revoked already") && again.hint.is_some(), "{again:?}");
        assert!(third.invite(cluster, disk, vec![], 60).is_err());
        let myself = one.identity().host_id().to_hex();
        assert!(one.revoke(cluster, &myself).unwrap_err().message.contains("itself"));
    }

    #[test]
    fn of_two_clusters_of_one_name_a_new_disk_is_of_the_one_with_other_hosts() {
        let (_right_dir, right) = host();
        let cluster = right.cluster_for("home").unwrap();
        // Whichever has the smaller id.
        for _ in 0..8 {
            let (dir, one) = host();
            let mistake = one.cluster_for("home").unwrap();
            let token = right.invite(cluster, DiskId([1; 32]), vec![], 60).unwrap();
            let me = one.identity().host_id();
            one.absorb(cluster, &right.redeem(cluster, "home", &token.secret, me, "x").unwrap().encode()).unwrap();
            assert_eq!(one.cluster_for("home"), Ok(cluster));
            // It let somebody into the wrong one, too.
            let token = one.invite(mistake, DiskId([2; 32]), vec![], 60).unwrap();
            one.redeem(mistake, "home", &token.secret, right.identity().host_id(), "x").unwrap();
            let failure = Membership::open(dir.path().into()).unwrap().cluster_for("home").unwrap_err();
            let names = |id: ClusterId| failure.message.contains(&id.to_hex()[..8]);
            assert!(failure.exit == Exit::WrongCluster && names(cluster) && names(mistake), "{failure:?}");
            assert!(failure.hint.unwrap().contains("`delugefs run home ROOT --join TOKEN`"));
        }
    }

    #[test]
    fn a_key_that_was_revoked_uses_up_no_invitation_and_is_told_why() {
        let (_dir, one) = host();
        let (_other_dir, other) = host();
        let cluster = one.cluster_for("home").unwrap();
        let invite = || one.invite(cluster, DiskId([1; 32]), vec![], 60).unwrap().secret;
        let me = other.identity().host_id();
        one.redeem(cluster, "", &invite(), me, "x").unwrap();
        one.revoke(cluster, &me.to_hex()).unwrap();
        let secret = invite();
        let refused = one.redeem(cluster, "", &secret, me, "x").unwrap_err();
        assert!(refused.why.contains("was revoked by "), "{refused:?}");
        let out = other.shut_out(&Members::decode(cluster, &refused.farewell).unwrap()).unwrap();
        assert!(out.hint.unwrap().contains("host.key away, and join anew"));
        let (_new_dir, new) = host();
        assert!(one.redeem(cluster, "", &secret, new.identity().host_id(), "x").is_ok());
    }

    #[test]
    fn a_cluster_whose_first_disk_could_not_be_made_is_forgotten() {
        let (dir, one) = host();
        let files = || std::fs::read_dir(dir.path()).unwrap().count();
        let (before, cluster) = (files(), one.cluster_for("home").unwrap());
        one.unfound(cluster).unwrap();
        assert_eq!((one.known("home"), files()), (Ok(None), before));
        one.unfound(cluster).unwrap();
        let cluster = one.cluster_for("home").unwrap();
        assert!(one.admit_disk(cluster, DiskId([9; 32])).unwrap());
        one.unfound(cluster).unwrap();
        assert_eq!(one.known("home"), Ok(Some(cluster)), "it has a disk");
    }

    #[test]
    fn a_disk_that_moves_is_admitted_once_whatever_the_clocks_say() {
        let (_dir, one) = host();
        let cluster = one.cluster_for("home").unwrap();
        let token = one.invite(cluster, DiskId([1; 32]), vec![], 60).unwrap();
        let (_other_dir, other) = host();
        let set = one.redeem(cluster, "", &token.secret, other.identity().host_id(), "x").unwrap();
        other.absorb(cluster, &set.encode()).unwrap();
        let disk = DiskId([9; 32]);
        // Admitted by a host whose clock is days ahead.
        let mut ahead = one.set(cluster).unwrap();
        ahead.admit(Role::Disk, disk.into(), "ahead", now_s() + 500_000, one.identity()).unwrap();
        other.absorb(cluster, &ahead.encode()).unwrap();
        let count = |membership: &Membership| membership.set(cluster).unwrap().statements().count();
        let before = count(&other);
        for _ in 0..5 {
            assert!(other.admit_disk(cluster, disk).unwrap());
        }
        assert_eq!(count(&other), before + 1);
        assert_eq!(other.set(cluster).unwrap().disks()[&disk].by, other.identity().host_id());
    }
}
