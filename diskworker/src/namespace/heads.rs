//! Headers of directories that several hosts have changed at once. Place, mode, owner and extended attributes of a directory are one
//! element, made anew by each change: who moves a directory writes its mode along as he knows it, and who changes its mode its place.
//! The latest alone would undo what the others have done. So what each of them has changed goes into one.
//!
//! The place is that of the latest which the directory hangs at: one that only changed its mode names the place that it was moved away
//! from. The attributes are those of the latest that names such a place, and else the latest's. Where a directory that was moved had its
//! mode changed by both hosts, nothing tells whose was later, and that of who did not move it counts.

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::limits::XATTRS_MAX;
use delugefs_proto::record::{Body, DISK_MARK_XATTR, Element, Hlc, Key, XattrValue, Xattrs};

use super::{Namespace, node};
use crate::catalog::COUNT_MAX;

/// A disk is gone for good: the value of its mark, and it outweighs others.
pub const FORGOTTEN: &[u8] = b"forgotten";

impl Namespace {
    /// Make one head of several. The same on all hosts, and what several make is as good as one.
    pub(super) fn merge_heads(&mut self, ino: Ino) -> FsResult<()> {
        let header = self.dir(ino)?.header().to_vec();
        let is_head = |body: &Body| matches!(body, Body::Head { .. });
        let mut heads: Vec<&Element> = header.iter().filter(|e| is_head(&e.body)).collect();
        heads.sort_by_key(|head| std::cmp::Reverse((head.hlc, head.dot)));
        let [latest, _, ..] = heads[..] else { return Ok(()) };
        let (mut at, mut left) = (None, None);
        for head in &heads {
            match self.hangs_at(ino, &head.body)? {
                true => drop(at.get_or_insert(*head)),
                false => drop(left.get_or_insert(*head)),
            }
        }
        let Body::Head { parent, name, .. } = &at.unwrap_or(latest).body else { return Ok(()) };
        // What was put there is for its owner alone, whatever it was before.
        let changed = if *parent == Ino::LOST_FOUND { at } else { left };
        let Body::Head { perm, xattrs, .. } = &changed.unwrap_or(latest).body else { return Ok(()) };
        let mut xattrs = xattrs.clone();
        if ino == Ino::ROOT {
            heads.iter().for_each(|head| take_marks(&mut xattrs, &head.body));
        }
        let body = Body::Head { parent: *parent, name: name.clone(), perm: *perm, xattrs };
        // A place that is given up would look like one that it was moved away from, to the next that comes.
        if body == latest.body
            && heads.iter().all(|head| node::home(std::slice::from_ref(*head)) == Some((*parent, name)))
        {
            return Ok(());
        }
        // What has the changes of others, too, outweighs what another host has made of some of them, or who wins is left to chance.
        let hlc = Hlc(latest.hlc.0.saturating_add(u64::from(body != latest.body)).min(COUNT_MAX));
        let mut txn = self.txn();
        let merged = txn.element_of(body, hlc);
        let rest = header.iter().filter(|e| !is_head(&e.body)).cloned();
        txn.set(Key::header(ino), rest.chain([merged]).collect());
        self.apply(txn)
    }

    /// Whether a directory is at the place that a head of it names.
    fn hangs_at(&mut self, ino: Ino, head: &Body) -> FsResult<bool> {
        Ok(match head {
            Body::Head { .. } if ino == Ino::ROOT => true,
            Body::Head { parent, name, .. } if parent.is_storable() => {
                self.dir(*parent)?.get(name).iter().any(|e| e.body == Body::Dir { ino })
            }
            _ => false,
        })
    }
}

/// What people have said of disks at once on several hosts counts all.
fn take_marks(into: &mut Xattrs, head: &Body) {
    let Body::Head { xattrs, .. } = head else { return };
    for (name, value) in xattrs.iter().filter(|(name, _)| name.starts_with(DISK_MARK_XATTR.as_bytes())) {
        let is_forgotten = matches!(value, XattrValue::Inline(value) if **value == *FORGOTTEN);
        match into.get(name) {
            Some(_) if is_forgotten => drop(into.insert(name.clone(), value.clone())),
            // Nobody takes a header with more.
            None if into.len() < XATTRS_MAX => drop(into.insert(name.clone(), value.clone())),
            _ => {}
        }
    }
}
