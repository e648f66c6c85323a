//! What changes on several hosts at once can leave under names, mended: files that are written and that nothing shows, two files
//! with one number, names of files without a version, copies behind other files. All hosts that see one of these do the same, and what
//! several make of it is one.

use std::collections::BTreeSet;

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Dot, Element, Key, Name};

use super::dir::Dir;
use super::links::copied;
use super::{Located, Namespace};
use crate::view::{self, What};

/// Versions of one file under one name are shown with numbers of their own: when the first gets another one, the next has the file's.
const ROUNDS_MAX: usize = 64;

impl Namespace {
    /// A file in this directory that is being written: if something that has come under its name hides it, since it is empty as far as
    /// its record says or has the same content, it becomes a file of its own under a conflict name. `None` when it is not hidden, or
    /// not there.
    pub fn unhide(&mut self, ino: Ino, dir: Ino) -> FsResult<Option<Located>> {
        if !dir.is_storable() || self.dir(dir)?.name_of(ino).is_some() {
            return Ok(None);
        }
        let sets = self.dir(dir)?.sets();
        let Some((name, set)) = sets.into_iter().find(|(_, set)| view::hidden(set, ino).is_some()) else {
            return Ok(None);
        };
        let (name, mut set) = (name.clone(), set.clone());
        let mut txn = self.txn();
        let Some((parts, tag)) = view::hidden(&set, ino) else { return Ok(None) };
        let full = view::conflict_name(&name, tag);
        txn.renewed.push((ino, parts.content.dot));
        let elements = copied(&txn, &parts, ino);
        self.add(&mut txn, Key::Entry(dir, full.clone()), elements)?;
        set.retain(|e| e.body.ino() != Some(ino));
        txn.set(Key::Entry(dir, name), set);
        self.apply(txn)?;
        Ok(Some(Located::File { dir, name: full, tag: None, ino }))
    }

    /// The same for one that had the content of another, and went with that when it got a second name. Its writers started from `base`:
    /// what they replace stays as the content of the other.
    pub fn part(&mut self, ino: Ino, dir: Ino, base: &[Dot]) -> FsResult<()> {
        if !dir.is_storable() || self.dir(dir)?.name_of(ino).is_some() {
            return Ok(());
        }
        let mut links = Vec::new();
        for (name, set) in self.dir(dir)?.sets() {
            links.extend(set.iter().filter_map(|e| match e.body {
                Body::Link { ino } => Some((name.clone(), ino)),
                _ => None,
            }));
        }
        for (name, other) in links {
            let mut set = self.inode(other)?.to_vec();
            let before = set.clone();
            let Some((parts, tag)) = view::hidden(&before, ino) else { continue };
            let mut txn = self.txn();
            txn.renewed.extend(base.iter().map(|dot| (ino, *dot)));
            let elements = copied(&txn, &parts, ino);
            self.add(&mut txn, Key::Entry(dir, view::conflict_name(&name, tag)), elements)?;
            set.retain(|e| e.body.ino() != Some(ino));
            txn.set(Key::Inode(other), set);
            return self.apply(txn);
        }
        Ok(())
    }

    /// Of several files with one number in a directory the latest keeps it: one was renamed on one host while it was written on
    /// another, so that both are there. Opened by its number one of them would be shown for the other. All hosts decide alike, and
    /// what several make of it is one.
    pub(super) fn renumber(&mut self, dir: Ino) -> FsResult<()> {
        for _ in 0..ROUNDS_MAX {
            self.dir(dir)?; // loads it
            let namesakes = self.dirs.get_mut(&dir).map(Dir::namesakes).unwrap_or_default();
            if namesakes.is_empty() {
                break;
            }
            for (ino, name, tag) in namesakes {
                self.renumber_one(dir, &name, ino, tag)?;
            }
        }
        Ok(())
    }

    /// The same for files in several directories: the places where this number may be, of all there are; how many got another.
    pub fn renumber_across(&mut self, ino: Ino, places: &[(Ino, Name)]) -> FsResult<usize> {
        let is_linked = self.inode(ino)?.iter().any(|e| matches!(e.body, Body::Ref { .. }));
        let mut renumbered = 0;
        for _ in 0..ROUNDS_MAX {
            let mut files = Vec::new();
            for (dir, name) in places {
                for shown in view::view(self.dir(*dir)?.get(name)).iter().filter(|shown| shown.ino == ino) {
                    if let What::File(parts) = &shown.what {
                        files.push(((parts.content.hlc, parts.content.dot), *dir, name.clone(), shown.tag));
                    }
                }
            }
            files.sort_unstable();
            if !is_linked {
                files.pop();
            }
            if files.is_empty() {
                break;
            }
            for (_, dir, name, tag) in &files {
                self.renumber_one(*dir, name, ino, *tag)?;
            }
            renumbered += files.len();
        }
        Ok(renumbered)
    }

    fn renumber_one(&mut self, dir: Ino, name: &Name, ino: Ino, tag: Option<u32>) -> FsResult<()> {
        let mut txn = self.txn();
        let mut set = self.dir(dir)?.get(name).to_vec();
        let before = set.clone();
        let shown = view::view(&before);
        let Some(What::File(parts)) = shown.iter().find(|s| s.ino == ino && s.tag == tag).map(|s| &s.what) else {
            return Ok(());
        };
        let number = view::derived_ino(ino, parts.content.dot);
        txn.renewed.push((number, parts.content.dot));
        let elements = copied(&txn, parts, number);
        let has_version = |e: &Element| matches!(&e.body, Body::Content { ino, .. } if *ino == parts.stored_ino);
        set.retain(|e| e != parts.content);
        if !set.iter().any(has_version) {
            set.retain(|e| {
                e.body.ino() != Some(parts.stored_ino) || matches!(e.body, Body::Link { .. } | Body::Dir { .. })
            });
        }
        match tag {
            None => set.extend(elements),
            Some(tag) => self.add(&mut txn, Key::Entry(dir, view::conflict_name(name, tag)), elements)?,
        }
        txn.set(Key::Entry(dir, name.clone()), set);
        self.apply(txn)
    }

    /// A name of a file with several that has no version any more: its last one was removed by somebody who knew of no other. What is
    /// left of it goes too: it could be neither looked at nor removed.
    pub(super) fn drop_empty_link(&mut self, ino: Ino, dir: Ino, name: &Name) -> FsResult<()> {
        if self.inode(ino)?.iter().any(|e| matches!(e.body, Body::Content { .. })) {
            return Ok(());
        }
        let mut set = self.dir(dir)?.get(name).to_vec();
        let before = set.len();
        set.retain(|e| e.body != Body::Link { ino });
        if set.len() == before || self.live_dir(dir).is_err() {
            return Ok(());
        }
        let mut txn = self.txn();
        txn.set(Key::Entry(dir, name.clone()), set);
        txn.set(Key::Inode(ino), Vec::new());
        // It leaves an element of its own by that, as every change must.
        self.touch_dir(&mut txn, dir)?;
        self.apply(txn)
    }

    /// What is left of a file whose names were removed on several hosts, each another one. Who has written it meanwhile, or given it another
    /// name, has made all of it and a name anew.
    pub(super) fn drop_nameless(&mut self, ino: Ino) -> FsResult<()> {
        let key = Key::Inode(ino);
        let set = self.inode(ino)?;
        if set.is_empty() || !view::is_nameless(&key, set) {
            return Ok(());
        }
        let mut txn = self.txn();
        txn.set(key, Vec::new());
        // It leaves an element of its own by that. Where it was nobody knows any more.
        self.touch_dir(&mut txn, Ino::ROOT)?;
        self.apply(txn)
    }

    /// Attributes of a file that were changed under a name which another host has taken away go where it is now, if they are later than
    /// what it has: in the same directory, or on its own with several names. To find it elsewhere all would have to be looked through.
    pub(super) fn carry_attrs(&mut self, dir: Ino, name: &Name) -> FsResult<()> {
        let set = self.dir(dir)?.get(name).to_vec();
        let left: BTreeSet<Ino> = view::bare(&set).collect();
        for ino in left {
            let is_attrs = |body: &Body| matches!(body, Body::Attrs { ino: of, .. } if *of == ino);
            let is_content = |e: &Element| matches!(&e.body, Body::Content { ino: of, .. } if *of == ino);
            let Some(changed) = view::latest(&set, is_attrs) else { continue };
            // Under the name that its set has, which is not that of a conflict copy.
            let found = self.dir(dir)?;
            let other = found.name_of(ino).and_then(|name| found.resolve(name)).map(|(base, _)| base);
            let keys = [Some(Key::Inode(ino)), other.map(|other| Key::Entry(dir, other))];
            for key in keys.into_iter().flatten() {
                let mut txn = self.txn();
                let mut elements = self.set_in(&txn, &key)?;
                let now = view::latest(&elements, is_attrs).map(|e| e.hlc);
                if !elements.iter().any(is_content) || view::is_nameless(&key, &elements) || now >= Some(changed.hlc) {
                    continue;
                }
                elements.retain(|e| !is_attrs(&e.body));
                elements.push(txn.element_of(changed.body.clone(), changed.hlc));
                txn.set(key, elements);
                let mut rest = self.dir(dir)?.get(name).to_vec();
                rest.retain(|e| !is_attrs(&e.body));
                txn.set(Key::Entry(dir, name.clone()), rest);
                self.apply(txn)?;
                break;
            }
        }
        Ok(())
    }

    /// Whether a conflict copy from this name has the name of a file of its own, which is shown in its place.
    pub(super) fn is_covered(&mut self, dir: Ino, name: &Name) -> FsResult<bool> {
        let dir = self.dir(dir)?;
        let tags = view::view(dir.get(name)).into_iter().filter_map(|shown| shown.tag);
        let names: Vec<Name> = tags.map(|tag| view::conflict_name(name, tag)).collect();
        Ok(names.iter().any(|name| !view::view(dir.get(name)).is_empty()))
    }
}
