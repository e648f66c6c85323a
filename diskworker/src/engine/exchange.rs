//! Taking in a state of another disk, and giving ours.

use std::io::{Read, Write};

use delugefs_proto::errno::{FsError, FsResult};

use super::Engine;
use crate::catalog::ImportLimits;
use crate::namespace::{catalog_errno, catalog_error};

impl Engine {
    /// Write our committed state as a pack for somebody who has the state `have`; the state commit it leads to.
    pub fn export(&self, have: Option<git2::Oid>, out: &mut dyn Write) -> FsResult<git2::Oid> {
        self.commit()?;
        self.core_catalog().export(have, out).map_err(catalog_error)
    }

    /// Take in a pack another disk exported, check all of it, and join the state it leads to into ours. On an error
    /// nothing of it is kept.
    pub fn join(&self, pack: &mut dyn Read, commit: git2::Oid) -> FsResult<()> {
        self.check_writable()?;
        let theirs = self.core_catalog().import(pack, commit, &ImportLimits::default()).map_err(|error| {
            FsError::new(catalog_errno(&error), format!("refused the state of another disk: {error}"))
        })?;
        loop {
            self.commit()?;
            let _one = self.commit_lock.lock();
            let joined = self.change(None, |core| {
                // Changed again between the commit and here: commit that first.
                if core.ns.is_dirty() { Ok(false) } else { core.ns.join(&theirs).map(|()| true) }
            })?;
            if joined {
                return Ok(());
            }
        }
    }
}
