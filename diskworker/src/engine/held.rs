//! Whether the copy of a content on this disk is good enough for who needs all of it, or is better fetched from another disk.

use std::fs::File;
use std::sync::OnceLock;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::ContentId;
use nix::errno::Errno;

use super::Engine;
use crate::content::{Damage, Space};

/// Whether another disk that is there, and gives what it is asked for, says that it holds a content.
type IsElsewhere = dyn Fn(ContentId) -> bool + Send + Sync;

/// What is known of the other disks' copies.
#[derive(Default)]
pub(super) struct Elsewhere(OnceLock<Box<IsElsewhere>>);

impl Engine {
    /// Ask this whether another disk gives a content. Once.
    pub fn look_elsewhere_with(&self, is_elsewhere: Box<IsElsewhere>) {
        let _ = self.elsewhere.0.set(is_elsewhere); // there is one
    }

    /// Whether this disk has a content in its right length. One that has another is looked at, and known to be damaged from then on. It
    /// stays: most of its bytes may be right, and nobody else may have them.
    pub fn holds(&self, content: ContentId, size: u64) -> FsResult<bool> {
        let found = self.store.has(content)?;
        if found.is_some_and(|found| found != size)
            && self.store.damage(content).is_none()
            && let Err(error) = self.store.look_at(content)
        {
            tracing::debug!("not held: {error}");
        }
        Ok(found == Some(size))
    }

    /// Whether who needs all of a content should have it fetched although it is here: it has wrong bytes, or it cannot be read in places
    /// and another disk gives it. That one is read where it lies as long as nobody does, or there is no room for another copy.
    pub fn is_better_fetched(&self, content: ContentId, size: u64) -> bool {
        match self.store.damage(content) {
            None => false,
            Some(Damage::Wrong) => true,
            Some(Damage::Unreadable) => {
                let has_room = |space: Space| space.free >= self.store.incoming_needs(content, size);
                self.is_elsewhere(content) && self.store.free_space().is_ok_and(has_room)
            }
        }
    }

    fn is_elsewhere(&self, content: ContentId) -> bool {
        self.elsewhere.0.get().is_some_and(|is_elsewhere| is_elsewhere(content))
    }

    /// A descriptor for who reads through another disk of this host: a damaged copy only if nobody else gives the content.
    ///
    /// # Errors
    /// As those of [`Engine::open_content`].
    pub fn open_for_neighbour(&self, content: ContentId, size: u64) -> FsResult<File> {
        match self.store.damage(content) {
            Some(_) if self.is_elsewhere(content) => Err(damaged(content)),
            _ => self.open_content(content, size),
        }
    }

    /// A descriptor for who does not verify what he reads: a reader, or who makes a new file of it.
    ///
    /// # Errors
    /// As those of the store; `EIO` also for what is better fetched.
    pub fn open_content(&self, content: ContentId, size: u64) -> FsResult<File> {
        self.check_content(content, size)?;
        self.store.open_to_read(content, size)
    }

    /// `EIO` for what is better fetched.
    pub(super) fn check_content(&self, content: ContentId, size: u64) -> FsResult<()> {
        match self.is_better_fetched(content, size) {
            true => Err(damaged(content)),
            false => Ok(()),
        }
    }
}

fn damaged(content: ContentId) -> FsError {
    FsError::new(Errno::EIO, format!("the copy of content {content} on this disk is damaged"))
}
