//! What people have said about disks: that one is to be emptied, or is gone for good. Kept as extended attributes of the
//! root, so that every disk knows it and it survives like everything else in the catalog. Of what is said on several hosts at once all
//! counts ([`crate::namespace`]); so a mark that was taken away at that moment may be there again.

use std::collections::HashMap;
use std::sync::Arc;

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::{DiskId, Ino};
use delugefs_proto::local_pb;
use delugefs_proto::record::DISK_MARK_XATTR;
use delugefs_proto::worker_pb::Mark;

use super::Engine;
use crate::namespace::FORGOTTEN;
use crate::os::ENOATTR;

const DRAINING: &[u8] = b"draining";

/// All of them.
pub type Marks = HashMap<DiskId, Mark>;
/// As of which commit.
pub(super) type Known = (git2::Oid, Arc<Marks>);

impl Engine {
    /// All marks of the committed state, or newer ones. Does not wait for those who change the catalog while nothing is new.
    pub fn marks(&self) -> FsResult<Arc<Marks>> {
        let commit = *self.published.borrow();
        if let Some((of, marks)) = &*self.marks.lock()
            && *of == commit
        {
            return Ok(marks.clone());
        }
        let marks = Arc::new(self.read_marks()?);
        *self.marks.lock() = Some((commit, marks.clone()));
        Ok(marks)
    }

    fn read_marks(&self) -> FsResult<Marks> {
        let mut core = self.core();
        let root = core.ns.locate(Ino::ROOT, Ino::ROOT)?;
        let names = core.ns.list_xattr(&root)?;
        let mut marks = HashMap::new();
        for name in names.split(|byte| *byte == 0) {
            let hex = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix(DISK_MARK_XATTR));
            let Some(disk) = hex.and_then(DiskId::from_hex) else { continue };
            match &core.ns.get_xattr(&root, name)?[..] {
                DRAINING => drop(marks.insert(disk, Mark::Draining)),
                FORGOTTEN => drop(marks.insert(disk, Mark::Forgotten)),
                _ => {} // of a newer version
            }
        }
        Ok(marks)
    }

    /// Mark a disk, or take its mark away.
    pub fn mark(&self, disk: DiskId, mark: Mark) -> FsResult<()> {
        let name: bytes::Bytes = format!("{DISK_MARK_XATTR}{}", disk.to_hex()).into();
        let (ino, dir) = (Ino::ROOT.0, Ino::ROOT.0);
        let value = match mark {
            Mark::None => {
                return match self.remove_xattr(0, false, &local_pb::RemoveXattr { ino, dir, name, value: None }) {
                    Err(error) if error.errno == ENOATTR => Ok(()),
                    other => other.map(drop),
                };
            }
            Mark::Draining => DRAINING,
            Mark::Forgotten => FORGOTTEN,
        };
        let value = bytes::Bytes::from_static(value);
        let set = local_pb::SetXattr { ino, dir, name, value, create: false, replace: false };
        self.set_xattr(0, false, &set).map(drop)
    }
}
