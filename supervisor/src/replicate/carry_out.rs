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
use crate::{sys, worker};

/// The longest time that one round asks; the rest is decided anew.
const ROUND_MAX: Duration = Duration::from_secs(2);
/// A worker that refuses for now is not asked for the same sooner, whatever it says.
const AGAIN_MIN_S: u64 = 5;

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
                        self.let_go(&mut asked, disk, content, &keepers, wanted).await
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
                self.fetches.insert((disk, content), None);
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
    ) -> bool {
        let request = wpb::StopMirroringRequest { content: content.0.to_vec(), others: wanted };
        let answer = worker::within(client.stop_mirroring(request)).await;
        match &answer {
            Ok(reply) => {
                let what = reply.outcome();
                let (disk, why) = (disk.to_hex(), &reply.reason);
                match reply.again_s {
                    0 => tracing::info!("disk {}: surplus copy of {content}: {what:?} {why}", short_id(&disk)),
                    // There may be a hundred thousand, and more than once.
                    again_s => tracing::debug!(again_s, "disk {}: surplus copy of {content}: {why}", short_id(&disk)),
                }
            }
            Err(error) => tracing::debug!(error = error.message(), "stop_mirroring failed"),
        }
        // From the answer on: a round may take longer than what is left.
        let until = sys::uptime_s() + again_s(&answer);
        self.desk.refused(disk, content, until);
        keepers.iter().for_each(|keeper| self.desk.declined(content, *keeper, until));
        answer.err().is_none_or(|error| is_there(&error))
    }
}

/// Seconds until a copy is asked for again: its worker knows when, where that is a matter of time. Else promises that others
/// gave meanwhile may be over then.
fn again_s(answer: &Result<wpb::StopMirroringReply, tonic::Status>) -> u64 {
    match answer {
        Ok(reply) if reply.again_s > 0 => u64::from(reply.again_s).clamp(AGAIN_MIN_S, policy::PROMISE_S),
        Err(error) if !is_there(error) => policy::FAILED_S,
        _ => policy::PROMISE_S,
    }
}

/// Whether this is a worker's answer.
fn is_there(error: &tonic::Status) -> bool {
    !matches!(error.code(), tonic::Code::Unavailable | tonic::Code::DeadlineExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_asked_for_again_when_its_worker_says() {
        let refused = |again_s| Ok(wpb::StopMirroringReply { again_s, ..wpb::StopMirroringReply::default() });
        assert_eq!([0, 1, 9, 3600].map(|said| again_s(&refused(said))), [600, 5, 9, 600]);
        // It hangs, or starts again.
        assert_eq!(again_s(&Err(tonic::Status::deadline_exceeded("late"))), 60);
        assert_eq!(again_s(&Err(tonic::Status::unavailable("gone"))), 60);
        assert_eq!(again_s(&Err(tonic::Status::internal("EIO"))), 600);
    }
}
