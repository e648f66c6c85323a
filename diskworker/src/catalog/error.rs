//! What can go wrong in a catalog. Messages say what was attempted; causes are chained, not repeated.

use std::path::PathBuf;

use delugefs_proto::codec::DecodeError;
use git2::Oid;

/// Why a catalog operation failed. Whatever the error, the committed state is the one before the operation.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file system refused.
    #[error("cannot {doing} {path}")]
    Io {
        /// Verb.
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// libgit2 refused.
    #[error("cannot {0}")]
    Git(&'static str, #[source] git2::Error),
    /// Not a catalog at all.
    #[error("{0} is not a catalog: the folder of a disk has one as catalog.git, made by --create")]
    NotACatalog(PathBuf),
    /// It is not all in its folder.
    #[error("{0} is a link, or names another folder: no disk of DelugeFS has one there; nothing was touched")]
    Elsewhere(PathBuf),
    /// Written by a newer version.
    #[error(
        "the catalog has format {found}, this version of delugefs knows up to {}: upgrade delugefs; nothing was touched",
        super::STATE_FORMAT
    )]
    Newer {
        /// Its format.
        found: u32,
    },
    /// An object of the committed state is not there.
    #[error("the catalog lacks object {0}: this disk is damaged; fetch the catalog again from another disk")]
    Missing(Oid),
    /// An object is there and is not what it must be.
    #[error("the catalog is damaged: {0}; fetch the catalog again from another disk")]
    Damaged(String),
    /// What a peer sent is not acceptable. Nothing of it was kept.
    #[error("refused the state a peer sent: {0}")]
    Refused(String),
    /// The caller asked for a state that must not exist. Nothing was written.
    #[error("cannot commit: {0}")]
    Invalid(String),
    /// The caller's function given to `for_each` failed.
    #[error("stopped")]
    Visitor(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl CatalogError {
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    pub(super) fn git(doing: &'static str) -> impl FnOnce(git2::Error) -> Self {
        move |source| Self::Git(doing, source)
    }

    /// An object of our own that cannot be decoded.
    pub(super) fn undecodable(oid: Oid) -> impl FnOnce(DecodeError) -> Self {
        move |why| Self::Damaged(format!("object {oid}: {why}"))
    }

    pub(super) fn damaged(oid: Oid, what: &str) -> Self {
        Self::Damaged(format!("object {oid}: {what}"))
    }
}
