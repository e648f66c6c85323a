//! Announces this host's disks on the local network (mDNS), as far as they have a TCP port there: service
//! `_delugefs._tcp`, TXT `v` (version of this announcement), `c` (which cluster, unreadable for others), `n` (its name, for who guesses it)
//! and `id` (the disk). Only hints: who answers at an address proves with its key who it is. [`crate::browse`] asks.
//!
//! What one has to know of libmdns 0.10: it hears questions on the interfaces that have an address when it is made, and never
//! on others; without any it cannot be made, unless there is a default route. Unasked it sends on the interface of the default route
//! only. What is registered before its task ran is not announced, and the goodbye is not sent when it is dropped at once. Hence it
//! is made anew when the machine's addresses are others than then (looked at every [`LOOK`]), with [`SETTLE`] in between, and
//! tried again every [`RETRY`] while it cannot be made.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;
use delugefs_proto::ids::{ClusterId, hex};
use libmdns::{Responder, Service};
use tokio::sync::watch;

/// Type of the service.
pub const SERVICE: &str = "_delugefs._tcp";
/// Version of the announcement; readers ignore what they do not know.
const VERSION: u32 = 1;
/// For libmdns's task to run before it is given work, and to finish it before it is dropped.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two looks at the machine's addresses.
const LOOK: Duration = Duration::from_secs(3);
/// Before a responder that could not be made is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// What is said about a disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Announcement {
    /// 64 hex digits.
    pub disk_id: String,
    /// First 8 hex digits of the SHA-256 of the cluster's id: members recognise it, nobody learns the id from it.
    pub cluster_hint: String,
    /// The same of the cluster's name: whoever has founded one of that name hears that there is another.
    pub name_hint: String,
    /// Where the disk listens.
    pub port: u16,
}

impl Announcement {
    /// Of a disk that is up and can be reached; `None` of every other.
    pub fn of(disk: &pb::Disk) -> Option<Self> {
        let port = u16::try_from(disk.tcp_port).ok().filter(|port| *port != 0)?;
        if disk.state() != pb::disk::State::Up {
            return None;
        }
        let cluster_hint = cluster_hint(ClusterId::from_hex(&disk.cluster_id)?);
        Some(Self { disk_id: disk.disk_id.clone(), cluster_hint, name_hint: name_hint(&disk.cluster), port })
    }
}

/// See [`Announcement::cluster_hint`].
pub fn cluster_hint(cluster: ClusterId) -> String {
    hint(&cluster.0)
}

/// See [`Announcement::name_hint`].
pub fn name_hint(cluster: &str) -> String {
    hint(cluster.as_bytes())
}

fn hint(bytes: &[u8]) -> String {
    hex(&aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref()[..4])
}

/// Announce what the snapshots say, until their sender is gone; then say goodbye.
pub async fn follow(mut snapshots: watch::Receiver<Arc<pb::HostStatus>>) {
    let mut announcer = Announcer::default();
    let mut said = None;
    loop {
        let wanted = snapshots.borrow_and_update().disks.iter().filter_map(Announcement::of).collect();
        let failed = announcer.announce(wanted).await.err().map(|error| error.to_string());
        let retry_at = failed.as_ref().map(|_| Instant::now() + RETRY);
        // A machine without a network says so once, not every half minute.
        if let Some(error) = failed.as_ref().filter(|error| said.as_ref() != Some(*error)) {
            tracing::warn!("cannot announce on the local network: {error}; tried again now and then");
        }
        said = failed;
        let is_due = || retry_at.is_some_and(|at| at <= Instant::now());
        loop {
            tokio::select! {
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return announcer.leave().await;
                    }
                    break;
                }
                () = tokio::time::sleep(LOOK) => {
                    if announcer.has_moved() || is_due() {
                        break;
                    }
                }
            }
        }
    }
}

/// IPv4 addresses of the machine by interface, but for its own.
fn addresses() -> BTreeSet<(String, Ipv4Addr)> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let found = all.filter_map(|one| Some((one.interface_name, one.address?.as_sockaddr_in()?.ip())));
    found.filter(|(_, ip)| !ip.is_loopback()).collect()
}

#[derive(Default)]
struct Announcer {
    responder: Option<Responder>,
    announced: BTreeMap<Announcement, Service>,
    /// Those of the machine when it last tried to make a responder.
    addresses: Option<BTreeSet<(String, Ipv4Addr)>>,
}

impl Announcer {
    /// Whether the machine has other addresses than the responder knows.
    fn has_moved(&self) -> bool {
        self.addresses.as_ref().is_some_and(|known| *known != addresses())
    }

    /// Exactly these from now on.
    async fn announce(&mut self, wanted: Vec<Announcement>) -> io::Result<()> {
        if self.has_moved() {
            tracing::debug!("other addresses: announces anew");
            self.leave().await;
        }
        self.announced.retain(|one, _| wanted.contains(one)); // dropping says goodbye
        for one in wanted.into_iter().filter(|one| !self.announced.contains_key(one)).collect::<Vec<_>>() {
            if self.responder.is_none() {
                // A name of our own: the host's may be announced by another responder, with other addresses.
                let name = format!("delugefs-{}", short_id(&one.disk_id));
                let runtime = tokio::runtime::Handle::current();
                self.addresses = Some(addresses());
                self.responder = Some(Responder::spawn_with_ip_list_and_hostname(&runtime, Vec::new(), name)?);
                tokio::time::sleep(SETTLE).await;
            }
            let (cluster, name) = (format!("c={}", one.cluster_hint), format!("n={}", one.name_hint));
            let txt = [format!("v={VERSION}"), cluster, name, format!("id={}", one.disk_id)];
            let txt = txt.each_ref().map(String::as_str);
            if let Some(responder) = &self.responder {
                let service = responder.register(SERVICE, short_id(&one.disk_id), one.port, &txt);
                tracing::info!(port = one.port, "announces disk {}", short_id(&one.disk_id));
                self.announced.insert(one, service);
            }
        }
        Ok(())
    }

    async fn leave(&mut self) {
        if !self.announced.is_empty() {
            self.announced.clear();
            tokio::time::sleep(SETTLE).await;
        }
        self.addresses = None;
        if self.responder.take().is_some() {
            tokio::time::sleep(SETTLE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_reached_is_announced() {
        let disk = pb::Disk {
            cluster_id: "ab".repeat(16),
            disk_id: "cd".repeat(32),
            state: pb::disk::State::Up.into(),
            tcp_port: 4711,
            ..Default::default()
        };
        let one = Announcement::of(&disk).unwrap();
        assert_eq!((one.port, one.cluster_hint.len()), (4711, 8));
        assert_eq!(Announcement::of(&pb::Disk { tcp_port: 0, ..disk.clone() }), None);
        let down = pb::disk::State::BackingOff.into();
        assert_eq!(Announcement::of(&pb::Disk { state: down, ..disk }), None);
    }
}
