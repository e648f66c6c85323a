//! Becoming somebody else for good, before the first request is served.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, ensure};
use delugefs_proto::exit::{Exit, UserError};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::unistd::{Uid, User, setgid, setgroups, setuid};

use crate::os;

/// Become this user, with no group but his own.
pub fn drop_to(name: &str) -> anyhow::Result<()> {
    let user = find(name)?;
    setgroups(&[user.gid]).context("leaving the groups")?;
    setgid(user.gid).context("changing the group")?;
    setuid(user.uid).context("changing the user")?;
    ensure!(user.uid.is_root() || setuid(Uid::from_raw(0)).is_err(), "root can be had back after becoming {name}");
    Ok(())
}

/// Stay root in name only, if that is enough. Where the diskworker at this socket is another user's, or its folder is behind one
/// that is closed to root as to anybody else, it takes root's rights to reach it.
pub fn drop_rights_of_root(worker: &Path) -> anyhow::Result<()> {
    // Before its worker is there the folder has to do.
    let is_roots = |path: &Path| path.metadata().map(|metadata| metadata.uid() == 0);
    let folder = worker.parent().unwrap_or(Path::new("/"));
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let is_reached =
        folder.ancestors().all(|dir| dir.metadata().is_ok_and(|dir| dir.uid() == 0 || dir.mode() & 1 == 1));
    if is_reached && is_roots(worker).or_else(|_| is_roots(&folder)).unwrap_or(false) {
        os::give_up_capabilities().context("giving up root's capabilities")?;
    } else {
        tracing::info!(
            "served with root's capabilities: the disk is not root's; --user NAME has another user serve it"
        );
    }
    Ok(())
}

/// The user of this name or number.
pub fn find(name: &str) -> anyhow::Result<User> {
    let by_name = User::from_name(name).context("reading the user database")?;
    let user = match (by_name, name.parse()) {
        (None, Ok(uid)) => User::from_uid(Uid::from_raw(uid)).context("reading the user database")?,
        (user, _) => user,
    };
    user.ok_or_else(|| {
        UserError::new(Exit::Usage, format!("there is no user {name}"))
            .hint("create it, or name another with --user")
            .into()
    })
}

/// Descriptors kept free for the end: for what has to be closed with the worker then, and for the program that unmounts.
const RESERVE: rlim_t = 16;

/// Each open file of the mount is a descriptor here: allow as many as the system does, but for a few.
pub fn raise_descriptor_limit() {
    limit_descriptors(|most| most.saturating_sub(RESERVE).max(most / 2));
}

/// The end has come: what was kept free may be used.
pub fn use_descriptor_reserve() {
    limit_descriptors(|most| most);
}

fn limit_descriptors(of: impl FnOnce(rlim_t) -> rlim_t) {
    let limited =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, of(hard), hard));
    if let Err(error) = limited {
        tracing::warn!(%error, "cannot set the limit of open files");
    }
}
