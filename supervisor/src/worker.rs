//! Questions to workers, over their gRPC sockets. Every one has a deadline, so that one stuck disk does not silence the
//! others; a scrub has none, because it reads a whole disk.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use delugefs_proto::worker_pb as pb;
use delugefs_proto::worker_pb::worker_client::WorkerClient;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::uds;

/// How long a worker gets to answer.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Largest answer, in bytes: the problems of a badly damaged disk.
const ANSWER_MAX_BYTES: usize = 16 << 20;

/// Connect and ask one thing, within [`PATIENCE`].
///
/// # Errors
/// The worker's, `Unavailable` when it cannot be reached, `DeadlineExceeded` when it does not answer.
pub async fn ask<T, F: Future<Output = Result<tonic::Response<T>, Status>>>(
    socket: &Path,
    question: impl FnOnce(WorkerClient<Channel>) -> F,
) -> Result<T, Status> {
    within(async { question(client(socket).await?).await }).await
}

/// What a worker answers within [`PATIENCE`].
///
/// # Errors
/// The worker's, or `DeadlineExceeded`.
pub async fn within<T>(answer: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    let late = || Status::deadline_exceeded(format!("the worker did not answer within {} s", PATIENCE.as_secs()));
    let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(late()));
    answer.map(tonic::Response::into_inner)
}

/// A connection with a worker.
pub type Client = WorkerClient<Channel>;

/// A connection for what is asked every second: to make one costs more than most answers.
#[derive(Debug, Default)]
pub struct Kept(Option<Client>);

impl Kept {
    /// The connection: the one that worked last, or a new one.
    ///
    /// # Errors
    /// As [`client`].
    pub async fn client(&self, socket: &Path) -> Result<Client, Status> {
        match &self.0 {
            Some(client) => Ok(client.clone()),
            None => client(socket).await,
        }
    }

    /// Who is in the cluster and who is here, as the worker sees it.
    ///
    /// # Errors
    /// As [`ask`].
    pub async fn peers(&mut self, socket: &Path) -> Result<pb::PeersReply, Status> {
        if let Some(mut client) = self.0.take() {
            match within(client.peers(pb::PeersRequest {})).await {
                Ok(reply) => {
                    self.0 = Some(client);
                    return Ok(reply);
                }
                Err(status) if status.code() == Code::DeadlineExceeded => return Err(status),
                Err(_) => {} // it may have been started anew since
            }
        }
        let begun = async {
            let mut client = client(socket).await?;
            let reply = client.peers(pb::PeersRequest {}).await?;
            Ok(reply.map(|reply| (reply, client)))
        };
        let (reply, client) = within(begun).await?;
        self.0 = Some(client);
        Ok(reply)
    }
}

/// What the catalog of a worker says about contents, unless nothing changed since the answer with generation `last`.
///
/// # Errors
/// The worker's, or `Unavailable`.
pub async fn contents(mut client: Client, last: u64) -> Result<Streaming<pb::ContentsReply>, Status> {
    let request = pb::ContentsRequest { generation: last };
    client.contents(request).await.map(tonic::Response::into_inner)
}

/// All that it says.
///
/// # Errors
/// The worker's, or `Unavailable`.
pub async fn all_contents(socket: &Path) -> Result<Streaming<pb::ContentsReply>, Status> {
    contents(client(socket).await?, 0).await
}

/// Files that exist in several versions. Walks the whole catalog.
///
/// # Errors
/// The worker's, or `Unavailable`.
pub async fn conflicts(socket: &Path, request: pb::ConflictsRequest) -> Result<pb::ConflictsReply, Status> {
    client(socket).await?.conflicts(request).await.map(tonic::Response::into_inner)
}

/// Check everything on a disk.
///
/// # Errors
/// The worker's, or `Unavailable`.
pub async fn scrub(socket: &Path) -> Result<pb::ScrubReply, Status> {
    client(socket).await?.scrub(pb::ScrubRequest {}).await.map(tonic::Response::into_inner)
}

/// A connection with a worker, to ask it several things.
///
/// # Errors
/// `Unavailable` when it cannot be reached.
pub async fn client(socket: &Path) -> Result<WorkerClient<Channel>, Status> {
    let channel = uds::connect(socket).await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(WorkerClient::new(channel).max_decoding_message_size(ANSWER_MAX_BYTES))
}
