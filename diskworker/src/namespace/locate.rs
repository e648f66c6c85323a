//! Finding nodes: by name, and by number with a hint where to look.

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Dot, Key, Name};
use nix::errno::Errno;

use super::{Namespace, Node, catalog_error};
use crate::view::{self, What};

/// Where the elements of a node lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// A directory: in its own header.
    Dir(Ino),
    /// A file with one name: under it.
    File {
        /// The directory.
        dir: Ino,
        /// The name its set has.
        name: Name,
        /// It is a conflict copy with this tag.
        tag: Option<u32>,
        /// Its number for users.
        ino: Ino,
    },
    /// A file with (once) several names: on its own.
    Inode {
        /// Its number.
        ino: Ino,
        /// A directory that has a name of it, as far as known.
        dir: Ino,
    },
}

impl Located {
    /// The node's number.
    pub fn ino(&self) -> Ino {
        match self {
            Located::Dir(ino) | Located::File { ino, .. } | Located::Inode { ino, .. } => *ino,
        }
    }
}

impl Namespace {
    /// The node under a name; ENOENT if there is none.
    pub fn lookup(&mut self, dir: Ino, name: &Name) -> FsResult<Node> {
        let at = self.locate_name(dir, name)?;
        self.node(&at)
    }

    /// Where the node under a name lies; ENOENT if there is none.
    pub fn locate_name(&mut self, dir: Ino, name: &Name) -> FsResult<Located> {
        let found = self.live_dir(dir)?;
        let (base, tag) = found.resolve(name).ok_or(Errno::ENOENT)?;
        let shown = view::view(found.get(&base)).into_iter().find(|s| s.tag == tag).ok_or(Errno::ENOENT)?;
        Ok(match shown.what {
            What::Dir => Located::Dir(shown.ino),
            What::Link => Located::Inode { ino: shown.ino, dir },
            What::File(_) => Located::File { dir, ino: shown.ino, name: base, tag },
        })
    }

    /// The name a node has that was known under this one: the same, or that of a conflict copy of it if another host has brought
    /// something else under that name since. `None` when it is neither.
    pub fn shown_as(&mut self, dir: Ino, name: &Name, ino: Ino) -> FsResult<Option<Name>> {
        let found = match self.live_dir(dir) {
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            found => found?,
        };
        let Some((base, _)) = found.resolve(name) else { return Ok(None) };
        let shown = view::view(found.get(&base)).into_iter().find(|shown| shown.ino == ino);
        Ok(shown.map(|shown| shown.tag.map_or_else(|| base.clone(), |tag| view::conflict_name(&base, tag))))
    }

    /// Where the node with a number lies. `hint` is a directory that probably has it; 0 is none.
    pub fn locate(&mut self, ino: Ino, hint: Ino) -> FsResult<Located> {
        if !ino.is_storable() {
            return Err(Errno::ESTALE.into());
        }
        if ino == Ino::ROOT || self.dirs.get(&ino).is_some_and(|dir| !dir.header().is_empty()) {
            return Ok(Located::Dir(ino));
        }
        if let Some(found) = self.locate_in(ino, hint)? {
            return Ok(found);
        }
        let first_ref = self.inode(ino)?.iter().find_map(|e| match &e.body {
            Body::Ref { dir, .. } => Some(*dir),
            _ => None,
        });
        if let Some(dir) = first_ref {
            return Ok(Located::Inode { ino, dir });
        }
        if !self.dir(ino)?.header().is_empty() {
            return Ok(Located::Dir(ino));
        }
        match self.search(ino)? {
            Some(dir) => self.locate_in(ino, dir)?.ok_or_else(|| Errno::ESTALE.into()),
            None => Err(Errno::ESTALE.into()),
        }
    }

    /// Whether a directory shows a node of this number.
    pub fn shows(&mut self, dir: Ino, ino: Ino) -> FsResult<bool> {
        Ok(dir.is_storable() && self.dir(dir)?.name_of(ino).is_some())
    }

    /// The number that a file with one of these versions has got in this directory since another file has its own: not that of a conflict
    /// copy, which is a version of that file.
    pub fn renumbered(&mut self, dir: Ino, ino: Ino, versions: &[Dot]) -> FsResult<Option<Ino>> {
        if !dir.is_storable() {
            return Ok(None);
        }
        let found = self.dir(dir)?;
        let is_its_own = |name: &Name| {
            let copies = found.name_of(ino).map(|name| [name.as_bytes(), view::CONFLICT].concat());
            found.resolve(name).is_some_and(|(_, tag)| tag.is_none())
                && !copies.is_some_and(|copies| name.as_bytes().starts_with(&copies))
        };
        let mut numbers = versions.iter().map(|dot| view::derived_ino(ino, *dot));
        Ok(numbers.find(|number| found.name_of(*number).is_some_and(&is_its_own)))
    }

    /// The same for a file that is being written, by the versions it began from: it may have got another number meanwhile
    /// ([`super::Namespace::renumber_across`]), and another file, here or elsewhere, has this one.
    pub fn locate_written(&mut self, ino: Ino, hint: Ino, base: &[Dot]) -> FsResult<Located> {
        if let Some(number) = self.renumbered(hint, ino, base)? {
            return self.locate(number, hint);
        }
        if ino.is_storable() && self.locate_in(ino, hint)?.is_none() {
            for number in base.iter().map(|dot| view::derived_ino(ino, *dot)) {
                if let Some(found) = self.locate_in(number, hint)? {
                    return Ok(found);
                }
            }
        }
        self.locate(ino, hint)
    }

    pub(super) fn locate_in(&mut self, ino: Ino, dir: Ino) -> FsResult<Option<Located>> {
        if !dir.is_storable() {
            return Ok(None); // no hint, or none that can be right
        }
        let Some(name) = self.dir(dir)?.name_of(ino).cloned() else { return Ok(None) };
        let found = self.locate_name(dir, &name)?;
        Ok((found.ino() == ino).then_some(found))
    }

    /// Search everything for a file by its number: only when the hint was wrong, as after a rename on another host.
    fn search(&mut self, ino: Ino) -> FsResult<Option<Ino>> {
        if let Some((dir, _)) = self.dirs.iter().find(|(_, dir)| dir.name_of(ino).is_some()) {
            return Ok(Some(*dir));
        }
        let mut found = None;
        let mut look = |key: &Key, elements: &[delugefs_proto::record::Element]| {
            if let Key::Entry(dir, name) = key
                && !name.is_header()
                && view::view(elements).iter().any(|s| s.ino == ino)
            {
                found = Some(*dir);
            }
            Ok(())
        };
        self.catalog.for_each(&mut look).map_err(catalog_error)?;
        Ok(found)
    }

    /// The directory a directory hangs in; the root hangs in itself.
    pub fn parent(&mut self, dir: Ino) -> FsResult<Ino> {
        let header = self.live_dir(dir)?.header();
        Ok(super::node::home(header).map_or(Ino::ROOT, |(parent, _)| parent))
    }

    /// Whether `dir` is `ancestor` or lies below it.
    pub(super) fn is_below(&mut self, dir: Ino, ancestor: Ino) -> FsResult<bool> {
        let mut at = dir;
        // Bounded, should a damaged catalog hold a cycle.
        for _ in 0..100_000 {
            if at == ancestor {
                return Ok(true);
            }
            if at == Ino::ROOT {
                return Ok(false);
            }
            at = self.parent(at)?;
        }
        Err(Errno::ELOOP.into())
    }
}
