//! rename(2), with NOREPLACE and EXCHANGE. Moving a directory changes its entry and its header: O(1).

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Element, Key, Name};
use nix::errno::Errno;

use super::links::{check_names, renew, replace_ref};
use super::{Kind, Located, Namespace, Node, Txn, node};
use crate::view;

/// What a rename did.
pub struct Renamed {
    /// The node that moved.
    pub moved: Node,
    /// The node that was under the second name: replaced (`nlink` says if it is gone), or exchanged.
    pub other: Option<Node>,
}

impl Namespace {
    /// Rename `from` to `to`. A name that belongs to the same inode already is left alone.
    pub fn rename(
        &mut self,
        from: (Ino, &Name),
        to: (Ino, &Name),
        no_replace: bool,
        exchange: bool,
    ) -> FsResult<Renamed> {
        let source = self.locate_name(from.0, from.1)?;
        let moved = self.node(&source)?;
        let target = self.in_the_way(to.0, to.1)?;
        self.live_dir(to.0)?;
        match &target {
            None if exchange => return Err(Errno::ENOENT.into()),
            Some(_) if no_replace => return Err(Errno::EEXIST.into()),
            Some(at) if at.ino() == source.ino() => return Ok(Renamed { moved, other: None }),
            _ => {}
        }
        if moved.kind == Kind::Dir && self.is_below(to.0, moved.ino)? {
            return Err(Errno::EINVAL.into());
        }
        let other = target.as_ref().map(|at| self.node(at)).transpose()?;
        let mut txn = self.txn();
        if exchange {
            if let (Some(target), Some(other)) = (&target, &other) {
                if other.kind == Kind::Dir && self.is_below(from.0, other.ino)? {
                    return Err(Errno::EINVAL.into());
                }
                let (_, source) = self.lift(&mut txn, from, &source)?;
                let (_, target) = self.lift(&mut txn, to, target)?;
                self.put_down(&mut txn, source, from, to)?;
                self.put_down(&mut txn, target, to, from)?;
            }
        } else {
            let behind = match (&target, &other) {
                (Some(target), Some(other)) => {
                    self.make_way(&mut txn, to, target, &moved, other)?;
                    Vec::new()
                }
                _ => self.clear_name(&mut txn, to.0, to.1)?,
            };
            let (key, lifted) = self.lift(&mut txn, from, &source)?;
            txn.set(key, Vec::new());
            self.put_down(&mut txn, lifted, from, to)?;
            self.add(&mut txn, Key::Entry(to.0, to.1.clone()), behind)?;
        }
        self.touch_dir(&mut txn, from.0)?;
        self.touch_dir(&mut txn, to.0)?;
        let ctime_ns = txn.now_ns();
        self.apply(txn)?;
        let moved = self.lookup(to.0, to.1)?;
        let other = match other {
            Some(_) if exchange => Some(self.lookup(from.0, from.1)?),
            Some(other) if other.kind == Kind::Dir => {
                self.removed_dirs.add(other.ino);
                Some(Node { nlink: 0, ..other })
            }
            Some(other) => Some(self.after_unlink(other, ctime_ns)?),
            None => None,
        };
        if let Some(gone) = other.as_ref().filter(|other| other.nlink == 0) {
            self.departed.insert(gone.clone());
        }
        Ok(Renamed { moved, other })
    }

    /// What is under the second name goes, if that is allowed.
    fn make_way(
        &mut self,
        txn: &mut Txn,
        to: (Ino, &Name),
        target: &Located,
        moved: &Node,
        other: &Node,
    ) -> FsResult<()> {
        match (&moved.kind, &other.kind) {
            (Kind::Dir, Kind::File(_)) => Err(Errno::ENOTDIR.into()),
            (Kind::File(_), Kind::Dir) => Err(Errno::EISDIR.into()),
            (Kind::Dir, Kind::Dir) => {
                self.settle_name(txn, to.0, to.1)?;
                self.take_dir(txn, other.ino)
            }
            _ => self.take_name(txn, to.0, to.1, target),
        }
    }

    /// The elements under a name, made unambiguous, and the key they lie under.
    fn lift(&mut self, txn: &mut Txn, from: (Ino, &Name), at: &Located) -> FsResult<(Key, Vec<Element>)> {
        self.settle_name(txn, from.0, from.1)?;
        let key = Key::Entry(from.0, from.1.clone());
        let elements = self.set_in(txn, &key)?;
        txn.after(&elements);
        debug_assert!(elements.iter().any(|e| e.body.ino() == Some(at.ino())));
        Ok((key, elements))
    }

    /// Put lifted elements down under another name.
    fn put_down(
        &mut self,
        txn: &mut Txn,
        mut elements: Vec<Element>,
        from: (Ino, &Name),
        to: (Ino, &Name),
    ) -> FsResult<()> {
        // What hides behind it goes along: somebody may be writing it.
        let is_place = |e: &Element| matches!(e.body, Body::Dir { .. } | Body::Link { .. });
        let mut hidden: Vec<Element> = elements.iter().filter(|e| !is_place(e)).cloned().collect();
        match elements.iter().find(|e| is_place(e)).or(elements.first()).map(|e| e.body.clone()) {
            Some(Body::Dir { ino }) => {
                let mut header = self.set_in(txn, &Key::header(ino))?;
                txn.after(&header);
                set_home(txn, &mut header, to.0, to.1);
                txn.set(Key::header(ino), header);
                renew(txn, &mut hidden);
                hidden.push(txn.element(Body::Dir { ino }));
                elements = hidden;
            }
            Some(Body::Link { ino }) => {
                let mut inode = self.set_in(txn, &Key::Inode(ino))?;
                txn.after(&inode);
                if to.1.as_bytes().len() > from.1.as_bytes().len() {
                    check_names(&inode, to.1.as_bytes().len() - from.1.as_bytes().len())?;
                }
                replace_ref(txn, &mut inode, from, Some(to));
                renew(txn, &mut inode); // its last name may be removed elsewhere meanwhile, and all it is with that
                txn.set_times(&mut inode, ino, None, None);
                txn.set(Key::Inode(ino), inode);
                renew(txn, &mut hidden);
                hidden.push(txn.element(Body::Link { ino }));
                elements = hidden;
            }
            Some(_) => {
                renew(txn, &mut elements);
                if let Some(ino) = view::view(&elements).first().map(|shown| shown.ino) {
                    txn.set_times(&mut elements, ino, None, None);
                }
            }
            None => return Err(Errno::ENOENT.into()),
        }
        txn.set(Key::Entry(to.0, to.1.clone()), elements);
        Ok(())
    }
}

/// A directory's header after it was put somewhere.
pub(super) fn set_home(txn: &Txn, header: &mut Vec<Element>, parent: Ino, name: &Name) {
    let head = view::latest(header, |body| matches!(body, Body::Head { .. }));
    let (perm, xattrs) = node::attrs(head);
    let xattrs = xattrs.cloned().unwrap_or_default();
    header.retain(|e| !matches!(e.body, Body::Head { .. }));
    header.push(txn.element(Body::Head { parent, name: name.clone(), perm, xattrs }));
}

/// A directory's header outlives a removal of it elsewhere, as something that was put into it does, and loses against later changes.
pub(super) fn renew_head(txn: &Txn, header: &mut Vec<Element>) {
    let is_head = |body: &Body| matches!(body, Body::Head { .. });
    if let Some(head) = view::latest(header, is_head).cloned() {
        header.retain(|e| !is_head(&e.body));
        header.push(txn.element_of(head.body, head.hlc));
    }
}
