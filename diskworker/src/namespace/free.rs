//! Names that are free, though something lies under them: what changed at once on several hosts, or an older version, may have left a name
//! without a node. It is in nobody's way; what its set has besides stays.

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Element, Name};
use nix::errno::Errno;

use super::links::hidden_in;
use super::{Located, Namespace, Txn};
use crate::view::{self, What};

impl Namespace {
    /// What a name is taken by, if it is.
    pub(super) fn in_the_way(&mut self, dir: Ino, name: &Name) -> FsResult<Option<Located>> {
        match self.locate_name(dir, name) {
            Ok(at) => Ok(self.is_there(&at)?.then_some(at)),
            Err(error) if error.errno == Errno::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Within a change that puts a node under a free name, before it looks at anything else there: conflict copies become nodes of their
    /// own. What is to stay in the set beside the new node, as somebody may be writing it.
    pub(super) fn clear_name(&mut self, txn: &mut Txn, dir: Ino, name: &Name) -> FsResult<Vec<Element>> {
        let set = self.dir(dir)?.get(name).to_vec();
        let shown = view::view(&set);
        let Some((_gone, copies)) = shown.split_first() else { return Ok(Vec::new()) };
        txn.after(&set);
        for copy in copies {
            let at = match copy.what {
                What::Dir => Located::Dir(copy.ino),
                What::Link => Located::Inode { ino: copy.ino, dir },
                What::File(_) => Located::File { dir, name: name.clone(), tag: copy.tag, ino: copy.ino },
            };
            if self.is_there(&at)? {
                self.set_apart(txn, (dir, name), copy)?;
            }
        }
        let hidden = hidden_in(&set, &shown);
        Ok(set.iter().filter(|e| e.body.ino().is_some_and(|ino| hidden.contains(&ino))).cloned().collect())
    }
}
