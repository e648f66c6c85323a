//! What somebody may say who is not known as a member: that he was invited (the host's supervisor decides), or that he is
//! one and here are the records that prove it. And the other end of the second.
//!
//! Who was one and is revoked is shown the signed records that say so: he need not believe whom he asks. Without them he would go on
//! writing what nobody gets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use delugefs_proto::control_pb::{RedeemRequest, control_client::ControlClient};
use delugefs_proto::identity::tls::ALPN_JOIN;
use delugefs_proto::ids::{DiskId, NodeId};
use delugefs_proto::members::{PROOF_MAX_BYTES, SET_MAX_BYTES};
use delugefs_proto::message;
use delugefs_proto::peer_pb as pb;
use delugefs_proto::rundir;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Net;

/// For the whole conversation.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Version of the join conversation.
const VERSION: u32 = 1;

/// Serve one request.
pub(super) async fn serve(
    net: &Arc<Net>,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    key: NodeId,
    from: SocketAddr,
) -> std::io::Result<()> {
    let request: pb::JoinRequest = message::read(&mut stream, message::REQUEST_MAX_BYTES).await?;
    let reply = answer(net, request, key, from).await;
    message::write(&mut stream, &reply).await
}

async fn answer(net: &Arc<Net>, request: pb::JoinRequest, key: NodeId, from: SocketAddr) -> pb::JoinReply {
    let refusal = |error: &str| pb::JoinReply { error: error.into(), ..pb::JoinReply::default() };
    if request.version != VERSION {
        return refusal("use the same version of delugefs on both hosts");
    }
    if request.cluster_id != net.engine.folder.cluster_id().0 {
        return refusal("this disk belongs to another cluster");
    }
    if !request.secret.is_empty() {
        return redeem(net, request, key, from).await.unwrap_or_else(|error| {
            let why = format!("{error:#}");
            net.log.once("redeem", &why, || tracing::warn!("a host with an invitation could not be admitted: {why}"));
            refusal("the inviting host's supervisor does not answer: start it there, and try again")
        });
    }
    // One at a time, and on no thread that serves members: anybody may ask for that as often as he likes.
    let one = net.joining.clone().lock_owned().await;
    let store = net.clone();
    let looking = tokio::task::spawn_blocking(move || {
        let _one = one;
        look_at_proof(&store, &request.proof, key, from)
    });
    looking.await.unwrap_or_else(|_| refusal("this disk is stopping"))
}

/// Blocks.
fn look_at_proof(net: &Net, proof: &[u8], key: NodeId, from: SocketAddr) -> pb::JoinReply {
    let refusal = |error: &str| pb::JoinReply { error: error.into(), ..pb::JoinReply::default() };
    let Some(mut members) = net.members.get().map(|members| members.as_ref().clone()) else {
        return refusal("this disk was not admitted itself yet");
    };
    // Looked at on a copy: only what makes this key a member's is kept.
    let is_read = proof.len() <= PROOF_MAX_BYTES && members.absorb(proof).is_ok();
    let chain = members.proof(key).filter(|_| is_read && members.is_disk(DiskId(key.0)));
    let Some(chain) = chain else {
        net.log_stranger(key, from);
        let farewell = members.farewell(key).unwrap_or_default();
        return pb::JoinReply { members: farewell, ..refusal("this key does not belong to a member of the cluster") };
    };
    match net.members.absorb(&chain) {
        Ok(_) => pb::JoinReply::default(),
        Err(error) => refusal(&error.to_string()),
    }
}

/// Ask the supervisor of this host.
async fn redeem(net: &Net, join: pb::JoinRequest, key: NodeId, from: SocketAddr) -> anyhow::Result<pb::JoinReply> {
    let channel = crate::register::connect(&rundir::control_socket(&net.settings.run_dir)).await?;
    let request = RedeemRequest { host_id: key.0.to_vec(), join: Some(join), from: from.to_string() };
    let mut client = ControlClient::new(channel).max_decoding_message_size(2 * SET_MAX_BYTES);
    Ok(client.redeem(request).await?.into_inner())
}

/// Show another disk the records that make us a member. Whether it accepted them.
pub(super) async fn introduce(net: &Arc<Net>, disk: Option<NodeId>, address: SocketAddr) -> std::io::Result<()> {
    let me = net.engine.folder.disk_id();
    let proof = net.members.get().and_then(|members| members.proof(me.into()));
    let proof = proof.ok_or_else(|| std::io::Error::other("this disk is no member"))?;
    let mut stream = net.identity.dial(disk, address, ALPN_JOIN, PATIENCE).await?;
    let cluster_id = net.engine.folder.cluster_id().0.to_vec();
    let request = pb::JoinRequest { version: VERSION, cluster_id, proof, ..pb::JoinRequest::default() };
    let talking = async {
        message::write(&mut stream, &request).await?;
        message::read::<pb::JoinReply>(&mut stream, 2 * SET_MAX_BYTES).await
    };
    let reply = tokio::time::timeout(PATIENCE, talking).await.map_err(|_| std::io::ErrorKind::TimedOut)??;
    if reply.error.is_empty() {
        return Ok(());
    }
    if !reply.members.is_empty() {
        net.hear_of_revocation(reply.members).await;
    }
    Err(std::io::Error::other(reply.error))
}

impl Net {
    /// Take in what another disk shows as the reason why we are out. Signed by hosts of the cluster, or it is not taken in.
    async fn hear_of_revocation(self: &Arc<Self>, set: Vec<u8>) {
        let net = self.clone();
        let absorbed = tokio::task::spawn_blocking(move || net.members.absorb(&set)).await;
        if let Ok(Err(error)) = &absorbed {
            tracing::debug!("what another disk says of a revocation: {error}");
        }
        let me = self.engine.folder.disk_id();
        let Some(members) = self.members.get().filter(|members| !members.is_disk(me)) else { return };
        let host = NodeId::from_slice(&self.host.lock().0);
        let by = [Some(me.into()), host].into_iter().flatten().find_map(|id| members.revoked().get(&id));
        let by = by.map(|host| members.host_name(*host)).unwrap_or_else(|| "a host of the cluster".into());
        self.log.once("revoked", "", || {
            tracing::error!("this disk is out: it or its host was revoked by {by}; what is written to it reaches no other disk any more");
        });
    }
}
