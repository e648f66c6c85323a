//! What goes in and comes out: [`Changes`], [`State`], and the ids of attachments.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use aws_lc_rs::digest;
use bytes::Bytes;
use delugefs_proto::ids::BlobId;
use delugefs_proto::record::{Element, Key, VersionVector};
use git2::{ObjectType, Oid};
use parking_lot::Mutex;

use super::CatalogError;

/// What a commit does to the catalog.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The complete new set of every changed key. An empty one: the key is gone.
    pub sets: BTreeMap<Key, Vec<Element>>,
    /// Attachments the sets refer to that the catalog may not have yet.
    pub blobs: BTreeMap<BlobId, Bytes>,
}

/// What [`Catalog::for_each`](super::Catalog::for_each) calls for every key.
pub type Visit<'a> = dyn FnMut(&Key, &[Element]) -> Result<(), CatalogError> + 'a;

/// A state of the catalog: one that is or was committed here, or one imported from a peer. While it, or a clone of it,
/// is alive, everything it consists of stays in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Equal commits mean equal states.
    pub commit: Oid,
    /// Root of the state's objects.
    pub tree: Oid,
    /// The changes it includes.
    pub ctx: VersionVector,
    pub(super) pin: Arc<Oid>,
}

/// The commits of all [`State`]s alive, so that consolidation keeps their objects.
#[derive(Default)]
pub(super) struct Pins(Mutex<Vec<Weak<Oid>>>);

impl Pins {
    pub(super) fn pin(&self, commit: Oid, tree: Oid, ctx: VersionVector) -> State {
        let pin = Arc::new(commit);
        let mut pins = self.0.lock();
        pins.retain(|pin| pin.strong_count() > 0);
        pins.push(Arc::downgrade(&pin));
        State { commit, tree, ctx, pin }
    }

    pub(super) fn commits(&self) -> Vec<Oid> {
        self.0.lock().iter().filter_map(Weak::upgrade).map(|pin| *pin).collect()
    }
}

/// The id of an attachment: git's id of a blob with these bytes.
pub fn blob_id(data: &[u8]) -> BlobId {
    let mut sha = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha.update(format!("blob {}\0", data.len()).as_bytes());
    sha.update(data);
    BlobId::from_slice(sha.finish().as_ref()).unwrap_or(BlobId([0; BlobId::LEN]))
}

/// The id of these bytes if they can be an attachment: not larger than an object may be, and without the marks of a
/// SHA-1 collision attack, with which git refuses an object. Such a content must go into the store instead, which has
/// SHA-256. To be asked once, where bytes come in: looking for the marks takes ten times as long as [`blob_id`].
pub fn attachable(data: &[u8]) -> Option<BlobId> {
    if data.len() > super::OBJECT_MAX_BYTES {
        return None;
    }
    Oid::hash_object(ObjectType::Blob, data).ok().map(from_oid)
}

pub(super) fn from_oid(oid: Oid) -> BlobId {
    let mut id = [0; BlobId::LEN];
    id.copy_from_slice(oid.as_bytes());
    BlobId(id)
}

pub(super) fn to_oid(id: BlobId) -> Oid {
    Oid::from_bytes(&id.0).unwrap_or(Oid::ZERO_SHA1)
}
