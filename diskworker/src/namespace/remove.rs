//! Taking names away.

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Dot, Element, Key, Name};
use nix::errno::Errno;

use super::links::{self, replace_ref};
use super::{Kind, Located, Namespace, Node, Txn};

/// Whether a name of a file that has several is as new as its content, and so outlives a removal by who knows an older one.
fn has_new_name(inode: &[Element]) -> bool {
    let is_content = |dot: Dot| inode.iter().any(|e| e.dot == dot && matches!(e.body, Body::Content { .. }));
    inode.iter().any(|e| matches!(e.body, Body::Ref { .. }) && is_content(e.dot))
}

impl Namespace {
    /// Remove a name of a file. The node as it is afterwards; `nlink` 0 when that was its last name.
    pub fn unlink(&mut self, dir: Ino, name: &Name) -> FsResult<Node> {
        let mut txn = self.txn();
        let at = self.locate_name(dir, name)?;
        let node = self.node(&at)?;
        if node.kind == Kind::Dir {
            return Err(if cfg!(target_os = "linux") { Errno::EISDIR } else { Errno::EPERM }.into());
        }
        self.take_name(&mut txn, dir, name, &at)?;
        self.touch_dir(&mut txn, dir)?;
        let ctime_ns = txn.now_ns();
        self.apply(txn)?;
        self.after_unlink(node, ctime_ns)
    }

    /// Remove an empty directory.
    pub fn rmdir(&mut self, dir: Ino, name: &Name) -> FsResult<Node> {
        let mut txn = self.txn();
        let Located::Dir(ino) = self.locate_name(dir, name)? else { return Err(Errno::ENOTDIR.into()) };
        let mut node = self.dir_node(ino)?;
        self.settle_name(&mut txn, dir, name)?;
        self.take_dir(&mut txn, ino)?;
        txn.set(Key::Entry(dir, name.clone()), Vec::new());
        self.touch_dir(&mut txn, dir)?;
        self.apply(txn)?;
        self.removed_dirs.add(ino);
        node.nlink = 0;
        Ok(node)
    }

    /// A file after one of its names went: looked up again where it has more.
    pub(super) fn after_unlink(&mut self, before: Node, ctime_ns: i64) -> FsResult<Node> {
        if before.nlink > 1
            && let Ok(at) = self.locate(before.ino, Ino(0))
        {
            return self.node(&at);
        }
        Ok(Node { nlink: 0, ctime_ns, ..before })
    }

    /// Within a change: the file's name is gone.
    pub(super) fn take_name(&mut self, txn: &mut Txn, dir: Ino, name: &Name, at: &Located) -> FsResult<()> {
        match self.settled(txn, at.clone())? {
            Located::Dir(_) => return Err(Errno::EISDIR.into()),
            Located::File { dir, name, .. } => txn.set(Key::Entry(dir, name), Vec::new()),
            Located::Inode { ino, .. } => {
                // The name's own set may hold conflicts beside the link.
                self.settle_name(txn, dir, name)?;
                txn.set(Key::Entry(dir, name.clone()), Vec::new());
                let mut inode = self.set_in(txn, &Key::Inode(ino))?;
                txn.after(&inode);
                let was_new = has_new_name(&inode);
                replace_ref(txn, &mut inode, (dir, name), None);
                if inode.iter().any(|e| matches!(e.body, Body::Ref { .. })) {
                    txn.set_times(&mut inode, ino, None, None);
                    // Else a host that removes the others now, and has not heard of what was written, would remove that with them.
                    if was_new && !has_new_name(&inode) {
                        links::renew(txn, &mut inode); // with one dot again, for the next that goes
                        self.renew_name(txn, ino, &mut inode)?;
                    }
                } else {
                    inode.clear();
                }
                txn.set(Key::Inode(ino), inode);
            }
        }
        Ok(())
    }

    /// Within a change: the directory itself is gone. ENOTEMPTY when it shows anything.
    pub(super) fn take_dir(&mut self, txn: &mut Txn, ino: Ino) -> FsResult<()> {
        self.live_dir(ino)?;
        if self.has_entries(ino)? {
            return Err(Errno::ENOTEMPTY.into());
        }
        let dir = self.dir(ino)?;
        let remains: Vec<Name> = dir.sets().map(|(name, _)| name.clone()).collect();
        for name in remains {
            txn.set(Key::Entry(ino, name), Vec::new());
        }
        txn.set(Key::header(ino), Vec::new());
        Ok(())
    }
}
