//! Hard links, and making a set unambiguous before it is changed.

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::Ino;
use delugefs_proto::limits::{LINK_NAMES_MAX_BYTES, LINKS_MAX};
use delugefs_proto::record::{Body, Data, Element, Key, Name};
use nix::errno::Errno;

use super::{Located, Namespace, Node, Txn};
use crate::view::{self, Shown, What};

impl Namespace {
    /// A further name for a file. EPERM for a directory, EMLINK beyond the limit, EEXIST when the name is taken.
    pub fn link(&mut self, ino: Ino, hint: Ino, dir: Ino, name: &Name) -> FsResult<Node> {
        let mut txn = self.txn();
        let at = self.locate(ino, hint)?;
        self.live_dir(dir)?;
        if self.in_the_way(dir, name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        let behind = self.clear_name(&mut txn, dir, name)?;
        let reference = |dir: Ino, name: &Name| Body::Ref { dir, name: name.clone() };
        let (ino, mut elements) = match self.settled(&mut txn, at)? {
            Located::Dir(_) => return Err(Errno::EPERM.into()),
            Located::Inode { ino, .. } => (ino, self.inode(ino)?.to_vec()),
            Located::File { dir: old_dir, name: old_name, ino, .. } => {
                let key = Key::Entry(old_dir, old_name.clone());
                let elements = self.set_in(&txn, &key)?;
                // An empty file that hides behind it stays there: somebody may be writing it.
                let is_written = |e: &Element| match &e.body {
                    Body::Content { ino: of, data: Data::Empty } => *of != ino,
                    _ => false,
                };
                let written: Vec<Ino> =
                    elements.iter().filter(|e| is_written(e)).filter_map(|e| e.body.ino()).collect();
                let is_hidden = |e: &Element| e.body.ino().is_some_and(|ino| written.contains(&ino));
                let (mut hidden, mut elements): (Vec<_>, Vec<_>) = elements.into_iter().partition(is_hidden);
                hidden.push(txn.element(Body::Link { ino }));
                txn.set(key, hidden);
                elements.push(txn.element(reference(old_dir, &old_name)));
                (ino, elements)
            }
        };
        if elements.iter().filter(|e| matches!(e.body, Body::Ref { .. })).count() >= LINKS_MAX as usize {
            return Err(Errno::EMLINK.into());
        }
        check_names(&elements, name.as_bytes().len())?;
        txn.after(&elements);
        renew(&mut txn, &mut elements);
        txn.set_times(&mut elements, ino, None, None);
        elements.push(txn.element(reference(dir, name)));
        txn.set(Key::Inode(ino), elements);
        let link = txn.element(Body::Link { ino });
        txn.set(Key::Entry(dir, name.clone()), [vec![link], behind].concat());
        self.touch_dir(&mut txn, dir)?;
        self.apply(txn)?;
        self.lookup(dir, name)
    }

    /// A conflict copy becomes a file of its own, before its content is recorded.
    pub fn settle_copy(&mut self, at: Located) -> FsResult<Located> {
        if !matches!(at, Located::File { tag: Some(_), .. }) {
            return Ok(at);
        }
        self.settle(at)
    }

    /// What conflicts with a node becomes files of their own, before somebody begins to write it: what is written replaces all
    /// that its set holds then.
    pub fn settle(&mut self, at: Located) -> FsResult<Located> {
        let mut txn = self.txn();
        let at = self.settled(&mut txn, at)?;
        self.apply(txn)?;
        Ok(at)
    }

    /// Put elements under a name beside what is there: a file of that very name may have been made of an earlier version.
    pub(super) fn add(&mut self, txn: &mut Txn, key: Key, mut elements: Vec<Element>) -> FsResult<()> {
        elements.extend(self.set_in(txn, &key)?);
        txn.set(key, elements);
        Ok(())
    }

    /// A set as this change leaves it.
    pub(super) fn set_in(&mut self, txn: &Txn, key: &Key) -> FsResult<Vec<Element>> {
        if let Some(elements) = txn.get(key) {
            return Ok(elements.clone());
        }
        Ok(match key {
            Key::Entry(dir, name) => self.dir(*dir)?.get(name).to_vec(),
            Key::Inode(ino) => self.inode(*ino)?.to_vec(),
        })
    }

    /// Make the set a node lies in hold that node alone: conflict copies in it become files of their own under the
    /// names they are shown with, so that no name changes under its users when one of them is changed.
    pub(super) fn settled(&mut self, txn: &mut Txn, at: Located) -> FsResult<Located> {
        let Located::File { dir, name, tag, ino } = &at else { return self.settled_inode(txn, at) };
        self.settle_set(txn, *dir, name)?;
        Ok(match tag {
            None => at,
            Some(tag) => {
                let name = view::conflict_name(name, *tag);
                Located::File { dir: *dir, name, tag: None, ino: *ino }
            }
        })
    }

    /// The same for everything shown from the set that a name is shown from: afterwards a conflict copy lies under its own.
    pub(super) fn settle_name(&mut self, txn: &mut Txn, dir: Ino, name: &Name) -> FsResult<()> {
        let base = self.dir(dir)?.resolve(name).map_or_else(|| name.clone(), |(base, _)| base);
        self.settle_set(txn, dir, &base)
    }

    /// The same for everything shown from the set under a name.
    pub(super) fn settle_set(&mut self, txn: &mut Txn, dir: Ino, name: &Name) -> FsResult<()> {
        let set = self.dir(dir)?.get(name).to_vec();
        let shown = view::view(&set);
        if shown.len() < 2 {
            return Ok(());
        }
        txn.after(&set);
        for copy in &shown[1..] {
            self.set_apart(txn, (dir, name), copy)?;
        }
        let main = shown[0].ino;
        // What hides behind all of these stays: somebody may be writing it.
        let hidden = hidden_in(&set, &shown);
        let is_place = |e: &Element| matches!(e.body, Body::Link { .. } | Body::Dir { .. });
        let mut rest = set.clone();
        rest.retain(|e| match (&shown[0].what, &e.body) {
            (_, body) if !is_place(e) && body.ino().is_some_and(|ino| hidden.contains(&ino)) => true,
            (What::File(parts), Body::Content { .. }) => e == parts.content && parts.stored_ino == main,
            (What::Dir, Body::Dir { ino }) | (What::Link, Body::Link { ino }) => *ino == main,
            (What::File(_), body) => body.ino() == Some(main) && !is_place(e),
            _ => false,
        });
        // It has another number than it is stored with where a link has that one.
        if let What::File(parts) = &shown[0].what
            && parts.stored_ino != main
        {
            txn.renewed.push((main, parts.content.dot));
            rest.extend(copied(txn, parts, main));
        }
        txn.set(Key::Entry(dir, name.clone()), rest);
        Ok(())
    }

    /// Within a change: a conflict copy of this set becomes a node of its own, under the name it is shown with.
    pub(super) fn set_apart(&mut self, txn: &mut Txn, (dir, name): (Ino, &Name), copy: &Shown<'_>) -> FsResult<()> {
        let full = view::conflict_name(name, copy.tag.unwrap_or_default());
        let key = Key::Entry(dir, full.clone());
        match &copy.what {
            What::File(parts) => {
                txn.renewed.push((copy.ino, parts.content.dot));
                self.add(txn, key, copied(txn, parts, copy.ino))
            }
            What::Dir => {
                self.add(txn, key, vec![txn.element(Body::Dir { ino: copy.ino })])?;
                let mut header = self.dir(copy.ino)?.header().to_vec();
                super::rename::set_home(txn, &mut header, dir, &full);
                txn.set(Key::header(copy.ino), header);
                Ok(())
            }
            What::Link => {
                self.add(txn, key, vec![txn.element(Body::Link { ino: copy.ino })])?;
                let mut inode = self.inode(copy.ino)?.to_vec();
                replace_ref(txn, &mut inode, (dir, name), Some((dir, &full)));
                renew(txn, &mut inode);
                txn.set(Key::Inode(copy.ino), inode);
                Ok(())
            }
        }
    }

    /// An inode with several names and several contents: the others become files beside its first name. Nothing shows them
    /// before that.
    pub(super) fn settled_inode(&mut self, txn: &mut Txn, at: Located) -> FsResult<Located> {
        let Located::Inode { ino, .. } = at else { return Ok(at) };
        let set = self.inode(ino)?.to_vec();
        let contents = view::view(&set);
        if contents.len() > 1 {
            txn.after(&set);
            let first = set.iter().find_map(|e| match &e.body {
                Body::Ref { dir, name } => Some((*dir, name.clone())),
                _ => None,
            });
            let Some((dir, name)) = first else { return Ok(at) }; // its names are gone, and all it was
            let mut rest = set.clone();
            for copy in &contents[1..] {
                if let (What::File(parts), Some(tag)) = (&copy.what, copy.tag) {
                    txn.renewed.push((copy.ino, parts.content.dot));
                    self.add(txn, Key::Entry(dir, view::conflict_name(&name, tag)), copied(txn, parts, copy.ino))?;
                    rest.retain(|e| e != parts.content);
                }
            }
            txn.set(Key::Inode(ino), rest);
        }
        Ok(at)
    }
}

impl Namespace {
    /// One name of a file that has several is as new as its content: it outlives a removal elsewhere, as what is written does.
    pub(super) fn renew_name(&mut self, txn: &mut Txn, ino: Ino, inode: &mut [Element]) -> FsResult<()> {
        let Some((element, dir, name)) = inode.iter_mut().find_map(|e| match e.body.clone() {
            Body::Ref { dir, name } => Some((e, dir, name)),
            _ => None,
        }) else {
            return Ok(());
        };
        element.dot = txn.dot;
        let key = Key::Entry(dir, name);
        let mut entry = self.set_in(txn, &key)?;
        entry.iter_mut().filter(|e| e.body == Body::Link { ino }).for_each(|e| e.dot = txn.dot);
        txn.set(key, entry);
        Ok(())
    }
}

/// The files of a set that it does not show.
pub(super) fn hidden_in(set: &[Element], shown: &[Shown<'_>]) -> Vec<Ino> {
    let is_shown = |ino: Ino| shown.iter().any(|s| matches!(&s.what, What::File(parts) if parts.stored_ino == ino));
    let written = |e: &&Element| matches!(e.body, Body::Content { .. });
    set.iter().filter(written).filter_map(|e| e.body.ino()).filter(|ino| !is_shown(*ino)).collect()
}

/// A conflict copy as a file of its own: everything with a new dot, but the times it had.
pub(super) fn copied(txn: &Txn, parts: &view::FileParts<'_>, ino: Ino) -> Vec<Element> {
    let with_ino = |body: &Body| match body.clone() {
        Body::Content { data, .. } => Body::Content { ino, data },
        Body::Attrs { perm, xattrs, .. } => Body::Attrs { ino, perm, xattrs },
        Body::Times { mtime_ns, atime_ns, .. } => Body::Times { ino, mtime_ns, atime_ns },
        other => other,
    };
    let elements = [Some(parts.content), parts.attrs, parts.times];
    elements.into_iter().flatten().map(|e| txn.element_of(with_ino(&e.body), e.hlc)).collect()
}

/// New dots for content and attributes, with the times they had: they outlive a concurrent removal of what they
/// were, and lose against concurrent changes of the same kind.
pub(super) fn renew(txn: &mut Txn, elements: &mut [Element]) {
    for element in elements {
        if let Body::Content { ino, .. } = &element.body {
            txn.renewed.push((*ino, element.dot));
        }
        if matches!(element.body, Body::Content { .. } | Body::Attrs { .. } | Body::Times { .. }) {
            element.dot = txn.dot;
        }
    }
}

/// EMLINK when an inode's names would be too long together with this many bytes more. What hosts have made apart may be.
pub(super) fn check_names(inode: &[Element], more: usize) -> FsResult<()> {
    let len = |e: &Element| match &e.body {
        Body::Ref { name, .. } => name.as_bytes().len(),
        _ => 0,
    };
    match inode.iter().map(len).sum::<usize>() + more > LINK_NAMES_MAX_BYTES {
        true => {
            Err(FsError::new(Errno::EMLINK, "the names of this file are too long together: use shorter ones, or fewer"))
        }
        false => Ok(()),
    }
}

/// One of an inode's names is gone or another one.
pub(super) fn replace_ref(txn: &Txn, inode: &mut Vec<Element>, old: (Ino, &Name), new: Option<(Ino, &Name)>) {
    inode.retain(|e| !matches!(&e.body, Body::Ref { dir, name } if (*dir, name) == old));
    if let Some((dir, name)) = new {
        inode.push(txn.element(Body::Ref { dir, name: name.clone() }));
    }
}
