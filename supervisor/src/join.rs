//! Becoming a member: this host shows an invitation to the disk that gave it, and is told who the members are.

use std::net::SocketAddr;
use std::time::Duration;

use delugefs_proto::disk::is_cluster_name;
use delugefs_proto::exit::Exit;
use delugefs_proto::identity::tls::ALPN_JOIN;
use delugefs_proto::ids::ClusterId;
use delugefs_proto::members::{Members, SET_MAX_BYTES};
use delugefs_proto::message;
use delugefs_proto::peer_pb::{JoinReply, JoinRequest};
use delugefs_proto::token::Token;

use crate::failure::Failure;
use crate::membership::Membership;

/// For one address.
const DIAL: Duration = Duration::from_secs(5);
/// For the answer: the inviter writes to its disk first.
const ANSWER: Duration = Duration::from_secs(20);
/// Version of the join conversation.
const VERSION: u32 = 1;

/// Use an invitation; does nothing when this host is a member already. Besides the addresses in it those in `more` are
/// tried: the inviter may have moved. The cluster's id.
///
/// # Errors
/// What is wrong with the invitation, or that its giver cannot be reached.
pub async fn join(
    membership: &Membership,
    token: &Token,
    cluster: &str,
    more: &[String],
) -> Result<ClusterId, Failure> {
    let me = membership.identity().host_id();
    if let Some(set) = membership.set(token.cluster).filter(|set| set.is_host(me)) {
        check_name(&set, cluster)?;
        return Ok(token.cluster);
    }
    if let Some(out) = membership.set(token.cluster).and_then(|set| membership.shut_out(&set)) {
        return Err(out);
    }
    let mut last = "the invitation names no address".to_owned();
    let others = more.iter().filter(|address| !token.addresses.contains(address));
    for text in token.addresses.iter().chain(others) {
        let Ok(Ok(found)) = tokio::time::timeout(DIAL, tokio::net::lookup_host(text.clone())).await else {
            last = format!("{text}: no such address");
            continue;
        };
        for address in found.take(4) {
            match ask(membership, token, cluster, address).await {
                Ok(reply) if reply.error.is_empty() => {
                    let bad =
                        |why: String| Failure::new(Exit::Failure, format!("the inviter's answer is wrong: {why}"));
                    let set = Members::decode(token.cluster, &reply.members).map_err(|error| bad(error.to_string()))?;
                    check_name(&set, cluster)?;
                    if !set.is_host(me) {
                        return Err(bad("it does not admit this host".into()));
                    }
                    membership.absorb(token.cluster, &reply.members)?;
                    return Ok(token.cluster);
                }
                Ok(reply) if is_cluster_name(&reply.cluster) => return Err(other_name(&reply.cluster, cluster)),
                Ok(reply) => {
                    let shown = Members::decode(token.cluster, &reply.members).ok();
                    if let Some(out) = shown.and_then(|set| membership.shut_out(&set)) {
                        return Err(out); // signed by hosts of the cluster
                    }
                    let failure = Failure::new(Exit::NotPermitted, format!("not admitted: {}", reply.error));
                    return Err(failure.hint("`delugefs invite` on a member makes a new invitation"));
                }
                Err(error) => last = format!("{text}: {error}"),
            }
        }
    }
    let failure = Failure::new(Exit::Failure, format!("the host that invited cannot be reached: {last}"));
    Err(failure.hint("is it running, and does a firewall let its port through? `--btport PORT` there fixes the port"))
}

fn check_name(set: &Members, typed: &str) -> Result<(), Failure> {
    let name = set.cluster_name();
    if typed.is_empty() || typed == name {
        return Ok(());
    }
    Err(other_name(name, typed))
}

fn other_name(name: &str, typed: &str) -> Failure {
    let failure = Failure::new(Exit::WrongCluster, format!("the invitation is to the cluster {name}, not to {typed}"));
    failure.hint(format!("`delugefs run {name} ROOT --join TOKEN`"))
}

async fn ask(membership: &Membership, token: &Token, cluster: &str, address: SocketAddr) -> std::io::Result<JoinReply> {
    let mut stream = membership.identity().dial(Some(token.inviter.into()), address, ALPN_JOIN, DIAL).await?;
    let request = JoinRequest {
        version: VERSION,
        cluster_id: token.cluster.0.to_vec(),
        secret: token.secret.to_vec(),
        label: membership.label().to_owned(),
        proof: Vec::new(),
        cluster: cluster.to_owned(),
    };
    let conversation = async {
        message::write(&mut stream, &request).await?;
        message::read(&mut stream, 2 * SET_MAX_BYTES).await
    };
    match tokio::time::timeout(ANSWER, conversation).await {
        Ok(reply) => reply,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}
