//! Places for callers that are not known to be members yet: so many at once, and not all of them for one address. Who is silent keeps
//! a place for some seconds, and one host could keep everybody else out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use delugefs_proto::source::source;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of one address. All disks of a host that come back at once need fewer, and try again.
const EACH_MAX: usize = 32;
/// Connections that are not known to be a member's, at once: a host with two addresses keeps nobody out. Each is a descriptor, of which
/// we ask for 65,536, and of 1,024 half would be left.
const ALL_MAX: usize = 16 * EACH_MAX;

/// See the module.
#[derive(Clone)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One of them, until it is dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    source: IpAddr,
}

impl Default for Places {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(ALL_MAX)), taken: Arc::default() }
    }
}

impl Places {
    /// A place for a caller, as soon as there is one; `None` when his address has its share.
    pub async fn take(&self, from: IpAddr) -> Option<Place> {
        let permit = self.free.clone().acquire_owned().await.ok()?;
        let source = source(from);
        let mut taken = self.taken.lock();
        let count = taken.entry(source).or_default();
        if *count >= EACH_MAX {
            return None;
        }
        *count += 1;
        Some(Place { _permit: permit, taken: self.taken.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_addresses_of_a_host_do_not_get_all_places_either() {
        let places = Places::default();
        let take = async |from: &str| places.take(from.parse().unwrap()).await;
        let mut held = Vec::new();
        for _ in 0..EACH_MAX {
            held.push(take("192.0.2.1").await.unwrap());
            held.push(take("fe80::1").await.unwrap());
        }
        assert!(places.free.available_permits() > 0, "who takes one would wait");
        assert!(take("192.0.2.1").await.is_none() && take("fe80::1").await.is_none());
        assert!(take("192.0.2.2").await.is_some());
        assert!(take("fe80::2").await.is_some(), "another host of the link");
    }

    #[tokio::test]
    async fn one_address_does_not_get_all_places() {
        let places = Places::default();
        let take = async |from: &str| places.take(from.parse().unwrap()).await;
        let mut held = Vec::new();
        for n in 0..EACH_MAX {
            held.push(take(&format!("2001:db8::{n:x}")).await.unwrap());
        }
        assert!(take("2001:db8::ffff").await.is_none());
        let others = [take("2001:db8:0:1::1").await, take("192.0.2.1").await, take("::ffff:192.0.2.1").await];
        assert!(others.iter().all(Option::is_some));
        held.pop();
        assert!(take("2001:db8::ffff").await.is_some());
        drop((held, others));
        assert!(places.taken.lock().is_empty() && places.free.available_permits() == ALL_MAX);
    }
}
