//! The reference: what a POSIX file system does, in a hundred lines of maps.

use std::collections::BTreeMap;

use nix::errno::Errno;

pub type Path = Vec<&'static [u8]>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Dir(BTreeMap<Vec<u8>, usize>),
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Debug)]
pub struct Reference {
    pub nodes: Vec<Node>,
}

type Done = Result<(), Errno>;

impl Reference {
    pub fn new() -> Self {
        Self { nodes: vec![Node { kind: Kind::Dir(BTreeMap::new()), mode: 0o755, xattrs: BTreeMap::new() }] }
    }

    pub fn dir(&self, id: usize) -> Result<&BTreeMap<Vec<u8>, usize>, Errno> {
        match &self.nodes[id].kind {
            Kind::Dir(entries) => Ok(entries),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn dir_mut(&mut self, id: usize) -> &mut BTreeMap<Vec<u8>, usize> {
        match &mut self.nodes[id].kind {
            Kind::Dir(entries) => entries,
            _ => panic!("checked before"),
        }
    }

    pub fn find(&self, path: &Path) -> Result<usize, Errno> {
        path.iter().try_fold(0, |at, name| self.dir(at)?.get(*name).copied().ok_or(Errno::ENOENT))
    }

    /// Directory and name of a path whose last part need not exist.
    fn place(&self, path: &Path) -> Result<(usize, Vec<u8>), Errno> {
        let (name, dirs) = path.split_last().unwrap();
        let dir = self.find(&dirs.to_vec())?;
        self.dir(dir)?;
        Ok((dir, name.to_vec()))
    }

    fn add(&mut self, path: &Path, kind: Kind, mode: u32) -> Done {
        let (dir, name) = self.place(path)?;
        if self.dir(dir)?.contains_key(&name) {
            return Err(Errno::EEXIST);
        }
        self.nodes.push(Node { kind, mode, xattrs: BTreeMap::new() });
        let id = self.nodes.len() - 1;
        self.dir_mut(dir).insert(name, id);
        Ok(())
    }

    pub fn create(&mut self, path: &Path, mode: u32, data: Vec<u8>) -> Done {
        self.add(path, Kind::File(data), mode)
    }

    pub fn mkdir(&mut self, path: &Path) -> Done {
        // A set-group-id directory hands the bit down.
        let mode = self.place(path).map_or(0o755, |(dir, _)| 0o755 | self.nodes[dir].mode & 0o2000);
        self.add(path, Kind::Dir(BTreeMap::new()), mode)
    }

    pub fn symlink(&mut self, path: &Path, target: &[u8]) -> Done {
        self.add(path, Kind::Symlink(target.to_vec()), 0o777)
    }

    pub fn write(&mut self, path: &Path, at: usize, data: &[u8], truncate: bool) -> Done {
        let id = self.find(path)?;
        match &mut self.nodes[id].kind {
            Kind::File(old) => {
                if truncate {
                    old.clear();
                }
                if !data.is_empty() {
                    old.resize(old.len().max(at + data.len()), 0);
                    old[at..at + data.len()].copy_from_slice(data);
                }
                Ok(())
            }
            Kind::Dir(_) => Err(Errno::EISDIR),
            Kind::Symlink(_) => Err(Errno::EINVAL),
        }
    }

    pub fn truncate(&mut self, path: &Path, size: usize) -> Done {
        let id = self.find(path)?;
        match &mut self.nodes[id].kind {
            Kind::File(old) => {
                old.resize(size, 0);
                Ok(())
            }
            Kind::Dir(_) => Err(Errno::EISDIR),
            Kind::Symlink(_) => Err(Errno::EINVAL),
        }
    }

    pub fn unlink(&mut self, path: &Path) -> Done {
        let (dir, name) = self.place(path)?;
        let id = *self.dir(dir)?.get(&name).ok_or(Errno::ENOENT)?;
        if matches!(self.nodes[id].kind, Kind::Dir(_)) {
            return Err(if cfg!(target_os = "linux") { Errno::EISDIR } else { Errno::EPERM });
        }
        self.dir_mut(dir).remove(&name);
        Ok(())
    }

    pub fn rmdir(&mut self, path: &Path) -> Done {
        let (dir, name) = self.place(path)?;
        let id = *self.dir(dir)?.get(&name).ok_or(Errno::ENOENT)?;
        if !self.dir(id)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.dir_mut(dir).remove(&name);
        Ok(())
    }

    pub fn link(&mut self, from: &Path, to: &Path) -> Done {
        let id = self.find(from)?;
        let (dir, name) = self.place(to)?;
        if self.dir(dir)?.contains_key(&name) {
            return Err(Errno::EEXIST);
        }
        if matches!(self.nodes[id].kind, Kind::Dir(_)) {
            return Err(Errno::EPERM);
        }
        self.dir_mut(dir).insert(name, id);
        Ok(())
    }

    pub fn rename(&mut self, from: &Path, to: &Path, no_replace: bool, exchange: bool) -> Done {
        let (dir, name) = self.place(from)?;
        let (dir2, name2) = self.place(to)?;
        let id = *self.dir(dir)?.get(&name).ok_or(Errno::ENOENT)?;
        let other = self.dir(dir2)?.get(&name2).copied();
        let is_dir = |id: usize| matches!(self.nodes[id].kind, Kind::Dir(_));
        match other {
            None if exchange => return Err(Errno::ENOENT),
            Some(_) if no_replace => return Err(Errno::EEXIST),
            Some(other) if other == id => return Ok(()),
            _ => {}
        }
        if self.is_below(dir2, id) || exchange && other.is_some_and(|other| self.is_below(dir, other)) {
            return Err(Errno::EINVAL);
        }
        if let Some(other) = other
            && !exchange
        {
            match (is_dir(id), is_dir(other)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.dir(other)?.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        self.dir_mut(dir).remove(&name);
        self.dir_mut(dir2).insert(name2, id);
        if let (true, Some(other)) = (exchange, other) {
            self.dir_mut(dir).insert(name, other);
        }
        Ok(())
    }

    fn is_below(&self, dir: usize, ancestor: usize) -> bool {
        match &self.nodes[ancestor].kind {
            Kind::Dir(entries) => dir == ancestor || entries.values().any(|child| self.is_below(dir, *child)),
            _ => false,
        }
    }

    pub fn nlink(&self, id: usize) -> usize {
        let live = self.live();
        match &self.nodes[id].kind {
            Kind::Dir(entries) => 2 + entries.values().filter(|c| matches!(self.nodes[**c].kind, Kind::Dir(_))).count(),
            _ => live.iter().filter_map(|d| self.dir(*d).ok()).flat_map(|e| e.values()).filter(|c| **c == id).count(),
        }
    }

    fn live(&self) -> Vec<usize> {
        let mut live = vec![0];
        let mut at = 0;
        while at < live.len() {
            if let Kind::Dir(entries) = &self.nodes[live[at]].kind {
                live.extend(entries.values());
            }
            at += 1;
        }
        live.sort_unstable();
        live.dedup();
        live
    }
}
