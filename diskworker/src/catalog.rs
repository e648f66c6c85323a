//! The catalog: the whole namespace as git objects, on every disk. Git is used as a store of objects, packs and refs
//! and nothing else: no index, no worktree, no history, no loose objects.
//!
//! What it is: a map from [`Key`](delugefs_proto::record::Key) to a set of dotted elements, plus one version vector
//! that says which changes it includes. What it knows nothing of: what the elements mean (the namespace engine), when
//! to commit or to talk to whom (the worker), and files in the store. It owns the folder `catalog.git`.
//!
//! # Layout
//! ```text
//! refs/heads/state -> commit, parentless, a pure function of its tree
//! tree  ctx                      blob: version vector
//!       d/<a>/<b>/<c>/<rest>     a directory, by inode number (see layout.rs)
//!       i/<a>/<b>/<c>/<rest>     an inode with several names
//!       version                  blob: "1\n"
//! directory := leaf | buckets
//! leaf      := blob of entries | tree { "entries" blob, <40 hex> attachment blobs... }
//! buckets   := tree of 16 directories by the next hex digit of SHA-1(name); only above 64 keys
//! ```
//! The tree is a pure function of the map and the version vector: equal states have equal ids, however they came
//! about. That is what lets two disks compare themselves by one id, skip equal subtrees without reading them when they
//! join or send, and see damage as a difference. A change rewrites one leaf and the path to it.
//!
//! Attachments (small contents, piece hashes, large extended attributes) hang in the tree of the leaf that refers to
//! them, so they are reachable exactly as long as they are referred to, and git's own notion of reachability is
//! enough to collect garbage and to send a state.
//!
//! # What lost
//! - A git tree that mirrors the namespace: renaming a directory is cheap there too, but `.git` and its spellings are
//!   refused as names, huge directories are rewritten whole, and there is no place for concurrent versions.
//! - Three-way merges with a merge base: lost data and diverged in simulation, and need history for ever.
//! - libgit2's pack writers and its indexer. They pack the whole tree where one path changed, and index by inflating
//!   and hashing again what we have just deflated and hashed. For what peers send, the indexer accepts deltas, and so a
//!   few bytes that inflate to gigabytes. Our packs have no deltas; `pack.rs` writes and `scan.rs` reads them in bounded memory,
//!   and git reads them like any other.
//!
//! # Durability
//! A commit writes one pack and its index under temporary names, syncs both, renames them, syncs the folder, then
//! moves the ref (synced too) and only then returns. Every state between is a valid catalog: the old one.
//!
//! Reading order: `changes.rs`, `layout.rs` (where a key lies), `content.rs` (leaves and buckets), `store.rs`
//! (the [`Catalog`]), `join.rs`, `versions.rs`, `exchange.rs` and `check.rs` (what a peer may send), `consolidate.rs`.

mod changes;
mod check;
mod consolidate;
mod content;
mod error;
mod exchange;
mod handles;
mod join;
mod layout;
mod libgit2;
mod objects;
mod pack;
mod packdir;
mod scan;
mod store;
mod tree;
mod verify;
mod versions;
mod walk;

pub use changes::{Changes, State, Visit, attachable, blob_id};
pub use check::COUNT_MAX;
pub use consolidate::CONSOLIDATE_AT_PACKS;
pub use error::CatalogError;
pub use exchange::ImportLimits;
pub use join::Joined;
pub use store::Catalog;
pub use verify::VerifyReport;
pub use versions::Succession;

/// Version of the layout, in the state's `version` blob. A reader refuses a newer one and touches nothing.
pub const STATE_FORMAT: u32 = 1;

/// Largest object of a catalog, in bytes. One host makes none above some 4 MB: an inode with 2 MiB of names, a leaf with all the
/// attributes that its files may have, the piece hashes of a 64 TiB file. But what hosts make apart becomes one when they meet, and
/// an object that is refused then is refused for ever: there is room for what twenty have made. It is bounded for memory.
pub const OBJECT_MAX_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests;
