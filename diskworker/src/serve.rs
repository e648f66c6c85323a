//! The worker's sockets: framed requests of frontends ([`local`]) and gRPC for the supervisor ([`grpc`]). Both check
//! who is calling before anything of a request is looked at.

pub mod grpc;
pub mod local;

use nix::unistd::Uid;

/// Who may call: the user this process runs as, root, and whom the command line names.
#[derive(Clone, Debug)]
pub struct AllowedUids(Vec<u32>);

impl AllowedUids {
    /// With these in addition.
    pub fn new(more: &[u32]) -> Self {
        let mut uids = vec![0, Uid::effective().as_raw()];
        uids.extend(more);
        Self(uids)
    }

    /// Whether this user may call.
    pub fn has(&self, uid: u32) -> bool {
        self.0.contains(&uid)
    }
}
