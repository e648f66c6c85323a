//! The worker's sockets: framed requests of frontends ([`local`]) and gRPC for the supervisor ([`grpc`]). Both check
//! who is calling before anything of a request is looked at.

mod absent;
pub mod grpc;
mod ledger;
pub mod local;
pub mod neighbours;

use std::collections::HashSet;
use std::sync::Arc;

use nix::unistd::Uid;
use parking_lot::Mutex;

/// Strangers remembered as logged.
const LOGGED_MAX: usize = 1000;

/// Who may call: the user this process runs as, root, and whom the command line names.
#[derive(Clone, Debug)]
pub struct AllowedUids {
    own: [u32; 2],
    more: Vec<u32>,
    logged: Arc<Mutex<HashSet<u32>>>,
}

impl AllowedUids {
    /// With these in addition.
    pub fn new(more: &[u32]) -> Self {
        Self { own: [0, Uid::effective().as_raw()], more: more.to_vec(), logged: Arc::default() }
    }

    /// Whether this user may say what the worker is to do. Who serves a mount may not: he neither ends it nor says who is a member.
    pub fn commands(&self, uid: u32) -> bool {
        let may = self.own.contains(&uid);
        if !may {
            self.admits(uid); // logged, unless he may serve files
        }
        may
    }

    /// Whether this user may ask for files. The first refusal of each user is logged: anybody can come as often as he likes.
    pub fn admits(&self, uid: u32) -> bool {
        if self.own.contains(&uid) || self.more.contains(&uid) {
            return true;
        }
        let mut logged = self.logged.lock();
        if logged.len() < LOGGED_MAX && logged.insert(uid) {
            tracing::warn!("uid {uid} is refused; start the worker with --allow-uid {uid} to serve it");
        }
        false
    }
}
