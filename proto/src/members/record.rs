//! One membership record: what it says, its one encoding, its signature. FORMATS.md shows the bytes.

use crate::identity::{self, Identity, SIGNATURE_BYTES};
use crate::ids::{ClusterId, HostId, NodeId};

use super::{KEEPS_MAX, MembersError, NAME_MAX_BYTES};

/// First byte of every record and of a set. A reader refuses any other.
pub(super) const VERSION: u8 = 1;
/// Goes before what is signed, so that no other signature of the same key can be taken for one of these.
const CONTEXT: &[u8] = b"delugefs member record v1\0";

/// Length of a genesis' nonce, in bytes.
pub const NONCE_BYTES: usize = 16;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Runs supervisors; may admit and revoke.
    Host,
    /// Holds data; may take part, and nothing more.
    Disk,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// "I begin the cluster whose id follows from my key and this nonce."
    Genesis {
        /// Signs it, and is a host from the beginning.
        founder: HostId,
        /// Makes clusters of one founder different.
        nonce: [u8; NONCE_BYTES],
        /// For people.
        name: String,
    },
    /// "This key belongs to a member."
    Admission {
        /// As what.
        role: Role,
        /// Who.
        subject: NodeId,
        /// Signs it.
        by: HostId,
        /// When, in seconds since 1970. For people; nothing is decided by it.
        at_s: u64,
        /// Name of the subject's host, for people.
        label: String,
    },
    /// "This key belongs to nobody any more."
    Revocation {
        /// Whose.
        target: NodeId,
        /// Signs it.
        by: HostId,
        /// When, in seconds since 1970. For people.
        at_s: u64,
        /// Members admitted by the target that stay, ascending.
        keeps: Vec<NodeId>,
    },
}

/// A record whose form and signature are right. Whether it counts depends on the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    bytes: Box<[u8]>,
    statement: Statement,
}

/// Whether this is a fit name of a cluster or host in a record.
pub fn is_label(text: &str) -> bool {
    crate::disk::is_cluster_name(text)
}

/// A host's own name made fit for a record.
pub fn clean_label(text: &str) -> String {
    let kept = text.bytes().map(|b| b as char).filter(|&c| is_label(&format!("x{c}")));
    let kept: String = kept.skip_while(|&c| !is_label(&c.to_string())).take(NAME_MAX_BYTES).collect();
    if kept.is_empty() { "host".into() } else { kept }
}

impl Record {
    /// Sign a statement.
    pub(super) fn sign(cluster: ClusterId, statement: Statement, by: &Identity) -> Self {
        let mut bytes = body(cluster, &statement);
        let signature = by.sign(&[CONTEXT, &bytes].concat());
        bytes.extend(signature);
        Self { bytes: bytes.into(), statement }
    }

    /// Decode a record of this cluster and check its signature.
    pub(super) fn decode(cluster: ClusterId, bytes: &[u8]) -> Result<Self, MembersError> {
        let Some((signed, signature)) = bytes.split_last_chunk::<SIGNATURE_BYTES>() else {
            return Err(MembersError::Malformed("record is cut short"));
        };
        let statement = parse(cluster, signed)?;
        if body(cluster, &statement) != signed {
            return Err(MembersError::Malformed("record is not in canonical form"));
        }
        if !identity::verify(statement.author().into(), &[CONTEXT, signed].concat(), signature) {
            return Err(MembersError::Forged);
        }
        Ok(Self { bytes: bytes.into(), statement })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it says.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }
}

impl Statement {
    /// Whose signature it bears.
    pub fn author(&self) -> HostId {
        match self {
            Self::Genesis { founder, .. } => *founder,
            Self::Admission { by, .. } | Self::Revocation { by, .. } => *by,
        }
    }
}

/// The id that follows from a genesis.
pub fn cluster_id(founder: HostId, nonce: &[u8; NONCE_BYTES]) -> ClusterId {
    let text = [b"delugefs cluster v1", &founder.0[..], nonce].concat();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_ref()[..16]);
    ClusterId(id)
}

fn body(cluster: ClusterId, statement: &Statement) -> Vec<u8> {
    let mut out = vec![VERSION];
    let mut head = |kind: u8| {
        out.push(kind);
        out.extend(cluster.0);
    };
    match statement {
        Statement::Genesis { founder, nonce, name } => {
            head(0);
            out.extend(founder.0);
            out.extend(nonce);
            out.extend(name.as_bytes());
        }
        Statement::Admission { role, subject, by, at_s, label } => {
            head(match role {
                Role::Host => 1,
                Role::Disk => 2,
            });
            out.extend(subject.0);
            out.extend(by.0);
            out.extend(at_s.to_le_bytes());
            out.extend(label.as_bytes());
        }
        Statement::Revocation { target, by, at_s, keeps } => {
            head(3);
            out.extend(target.0);
            out.extend(by.0);
            out.extend(at_s.to_le_bytes());
            keeps.iter().for_each(|kept| out.extend(kept.0));
        }
    }
    out
}

fn parse(cluster: ClusterId, bytes: &[u8]) -> Result<Statement, MembersError> {
    let mut input = bytes;
    let [version, kind] = take::<2>(&mut input)?;
    if version != VERSION {
        return Err(MembersError::Version(version));
    }
    if take::<16>(&mut input)? != cluster.0 {
        return Err(MembersError::ForeignCluster);
    }
    let label = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).ok().filter(|text| is_label(text));
        text.map(str::to_owned).ok_or(MembersError::Malformed("record has an unfit name"))
    };
    match kind {
        0 => {
            let (founder, nonce) = (HostId(take(&mut input)?), take(&mut input)?);
            if cluster_id(founder, &nonce) != cluster {
                return Err(MembersError::ForeignCluster);
            }
            Ok(Statement::Genesis { founder, nonce, name: label(input)? })
        }
        1 | 2 => Ok(Statement::Admission {
            role: if kind == 1 { Role::Host } else { Role::Disk },
            subject: NodeId(take(&mut input)?),
            by: HostId(take(&mut input)?),
            at_s: u64::from_le_bytes(take(&mut input)?),
            label: label(input)?,
        }),
        3 => {
            let (target, by) = (NodeId(take(&mut input)?), HostId(take(&mut input)?));
            let at_s = u64::from_le_bytes(take(&mut input)?);
            let (keeps, rest) = input.as_chunks::<32>();
            let keeps: Vec<NodeId> = keeps.iter().copied().map(NodeId).collect();
            if !rest.is_empty() || keeps.len() > KEEPS_MAX || !keeps.is_sorted_by(|a, b| a < b) {
                return Err(MembersError::Malformed("revocation with a bad list"));
            }
            Ok(Statement::Revocation { target, by, at_s, keeps })
        }
        _ => Err(MembersError::Malformed("unknown kind of record")),
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], MembersError> {
    let (head, rest) = input.split_first_chunk::<N>().ok_or(MembersError::Malformed("record is cut short"))?;
    *input = rest;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_of_a_host_can_be_made_fit() {
        for (name, clean) in [("tower", "tower"), ("-a b.c\u{1b}", "ab.c"), ("", "host"), ("\u{fc}", "host")] {
            assert_eq!(clean_label(name), clean);
        }
        assert!(is_label(&clean_label(&"x".repeat(1000))));
    }
}
