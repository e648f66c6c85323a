//! A few open handles of one repository, so that readers wait neither for each other nor for a writer: a `Repository` is
//! `Send` but not `Sync`. Handles of one process share their mapped packs.

use std::ops::Deref;
use std::path::PathBuf;

use git2::Repository;
use parking_lot::Mutex;

use super::{CatalogError, libgit2};

/// Handles kept open while nobody uses them.
const IDLE_MAX: usize = 4;

/// See the module.
pub(super) struct Handles {
    dir: PathBuf,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    generation: u64,
    repos: Vec<Repository>,
}

/// A handle, given back when dropped.
pub(super) struct Handle<'a> {
    of: &'a Handles,
    generation: u64,
    repo: Option<Repository>,
}

impl Handles {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, idle: Mutex::default() }
    }

    /// An idle handle, or a new one.
    pub(super) fn get(&self) -> Result<Handle<'_>, CatalogError> {
        let (generation, repo) = {
            let mut idle = self.idle.lock();
            (idle.generation, idle.repos.pop())
        };
        let repo = match repo {
            Some(repo) => repo,
            None => libgit2::open(&self.dir)?,
        };
        Ok(Handle { of: self, generation, repo: Some(repo) })
    }

    /// Close all handles, those in use when they are given back: they hold on to packs that were removed.
    pub(super) fn renew(&self) {
        let mut idle = self.idle.lock();
        idle.generation += 1;
        idle.repos.clear();
    }
}

impl Deref for Handle<'_> {
    type Target = Repository;

    fn deref(&self) -> &Repository {
        self.repo.as_ref().expect("a handle has its repository until it is dropped")
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        let mut idle = self.of.idle.lock();
        if idle.generation == self.generation && idle.repos.len() < IDLE_MAX {
            idle.repos.extend(self.repo.take());
        }
    }
}
