//! Asks the workers of this host to do what the policy decided.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use delugefs_proto::disk::short_id;
use delugefs_proto::ids::{ContentId, DiskId};
use delugefs_proto::worker_pb as wpb;

use super::Replicator;
use crate::policy::{self, Decision};
use crate::worker;

/// The longest time that one round asks; the rest is decided anew.
const ROUND_MAX: Duration = Duration::from_secs(2);

impl Replicator {
    /// All of it, one after the other. A worker that does not answer is not asked again before the next round.
    pub(super) async fn carry_out(&mut self, decisions: Vec<Decision>, workers: &[(DiskId, PathBuf)], now: u64) {
        // One connection with each worker: there may be thousands of questions. None where it cannot be had.
        let mut clients: HashMap<DiskId, Option<worker::Client>> = HashMap::new();
        let begin = Instant::now();
        for decision in decisions {
            // Who is slow must not keep this from seeing what else happens.
            if begin.elapsed() > ROUND_MAX {
                break;
            }
            let (Decision::Mirror { disk, .. } | Decision::Confirm { disk, .. } | Decision::Trim { disk, .. }) =
                decision;
            let Some((_, socket)) = workers.iter().find(|(id, _)| *id == disk) else { continue };
            if let Entry::Vacant(vacant) = clients.entry(disk) {
                vacant.insert(worker::client(socket).await.ok());
            }
            let Some(client) = clients.get_mut(&disk) else { continue };
            // Who did not answer is not asked again before the next round.
            if let Some(mut asked) = client.take() {
                let answered = match decision {
                    Decision::Mirror { content, size_bytes, reason, .. } => {
                        self.mirror(&mut asked, disk, content, size_bytes, reason, now).await
                    }
                    Decision::Confirm { content, keepers, wanted, .. } => {
                        self.let_go(&mut asked, disk, content, &keepers, wanted, now).await
                    }
                    // Never decided: no promise is ever recorded at this desk.
                    Decision::Trim { .. } => true,
                };
                *client = answered.then_some(asked);
            }
        }
    }

    /// Whether the worker answered.
    async fn mirror(
        &mut self,
        client: &mut worker::Client,
        disk: DiskId,
        content: ContentId,
        size_bytes: u64,
        reason: policy::Reason,
        now: u64,
    ) -> bool {
        use wpb::please_mirror_reply::Outcome;
        let pieces = self.contents.pieces(content);
        let request = wpb::PleaseMirrorRequest { content: content.0.to_vec(), size_bytes, pieces };
        match worker::within(client.please_mirror(request)).await {
            Ok(reply) if reply.outcome() == Outcome::Fetching => {
                tracing::debug!(?reason, "disk {} fetches {content}", short_id(&disk.to_hex()));
                self.desk.fetching(disk, content, size_bytes);
                self.fetches.insert((disk, content));
                return true;
            }
            Ok(reply) if reply.outcome() == Outcome::AlreadyHere => {
                self.desk.refused(disk, content, now + policy::FAILED_S);
                return true;
            }
            Ok(reply) => tracing::debug!("disk {} refuses {content}: {}", short_id(&disk.to_hex()), reply.reason),
            Err(error) => {
                tracing::debug!(error = error.message(), "please_mirror failed");
                if !is_there(&error) {
                    self.desk.refused(disk, content, now + policy::FAILED_S);
                    return false;
                }
            }
        }
        self.desk.failed(disk, content, now);
        true
    }

    /// Whether the worker answered.
    async fn let_go(
        &mut self,
        client: &mut worker::Client,
        disk: DiskId,
        content: ContentId,
        keepers: &[DiskId],
        wanted: u32,
        now: u64,
    ) -> bool {
        let until = now + policy::PROMISE_S;
        let request = wpb::StopMirroringRequest { content: content.0.to_vec(), others: wanted };
        let answer = worker::within(client.stop_mirroring(request)).await;
        match &answer {
            Ok(reply) => {
                let what = reply.outcome();
                let (disk, why) = (disk.to_hex(), &reply.reason);
                tracing::info!("disk {}: surplus copy of {content}: {what:?} {why}", short_id(&disk));
            }
            Err(error) => tracing::debug!(error = error.message(), "stop_mirroring failed"),
        }
        self.desk.refused(disk, content, until);
        keepers.iter().for_each(|keeper| self.desk.declined(content, *keeper, until));
        answer.err().is_none_or(|error| is_there(&error))
    }
}

/// Whether this is a worker's answer.
fn is_there(error: &tonic::Status) -> bool {
    !matches!(error.code(), tonic::Code::Unavailable | tonic::Code::DeadlineExceeded)
}
