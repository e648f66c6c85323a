//! Checks a whole catalog as it lies on the disk.

use super::check::{CheckLimits, Checker, OnProblem};
use super::objects::Objects;
use super::{Catalog, CatalogError, libgit2};

/// What [`Catalog::verify`] found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Objects read and hashed; one that is referred to twice counts twice.
    pub objects: u64,
    /// Directories, and inodes with several names.
    pub directories: u64,
    /// Keys.
    pub keys: u64,
    /// Attachments.
    pub attachments: u64,
    /// What is wrong, a sentence each. Empty: nothing.
    pub problems: Vec<String>,
}

impl Catalog {
    /// Read and hash every object of the committed state, decode every record strictly, and check shapes, attachments
    /// and dots. Reads every object anew, past the caches of this process.
    ///
    /// # Errors
    /// Only when it could not be begun. Damage is in the report.
    pub fn verify(&self) -> Result<VerifyReport, CatalogError> {
        let state = self.current();
        let repo = libgit2::open(&self.dir)?;
        let objects = Objects::new(&repo)?;
        let unlimited = CheckLimits { keys: u64::MAX, bytes: u64::MAX, memory_bytes: u64::MAX };
        let mut checker = Checker::new(&objects, OnProblem::Collect(Vec::new()), unlimited);
        checker.read_attachments = true;
        let ctx = checker.state(state.commit, None)?;
        let mut report = VerifyReport {
            objects: checker.counts.objects,
            directories: checker.counts.directories,
            keys: checker.counts.keys,
            attachments: checker.counts.attachments,
            problems: Vec::new(),
        };
        if let OnProblem::Collect(problems) = checker.on_problem {
            report.problems = problems;
        }
        if ctx.is_some_and(|found| found != (state.tree, state.ctx.clone())) {
            report.problems.push(format!("commit {} has changed under the running worker", state.commit));
        }
        Ok(report)
    }
}
