//! What one writer knows to be true: the names in its folder and what is in the files. Every call that returned has
//! changed it; a call that a crash cut short leaves two shelves that may both be true ([`Shelf::matches`] says which).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::tree::{Seen, Tree};

pub type FileId = u64;

/// See the module.
#[derive(Clone, Default)]
pub struct Shelf {
    pub names: BTreeMap<String, FileId>,
    pub dirs: BTreeSet<String>,
    pub files: BTreeMap<FileId, File>,
    next: FileId,
}

/// The content of a file, and what was set of its attributes.
#[derive(Clone, Default)]
pub struct File {
    pub bytes: Arc<Vec<u8>>,
    /// A write that did not return: some first part of it may be there.
    pub partial: Option<(usize, Arc<Vec<u8>>)>,
    pub mode: Option<u32>,
    /// Set, and nothing was written since.
    pub mtime: Option<SystemTime>,
}

impl Shelf {
    /// A name for a new empty file.
    pub fn create(&mut self, name: &str) -> FileId {
        self.next += 1;
        self.names.insert(name.into(), self.next);
        self.files.insert(self.next, File::default());
        self.next
    }

    /// The number the next new file gets.
    pub fn next_id(&self) -> FileId {
        self.next + 1
    }

    pub fn file(&mut self, id: FileId) -> &mut File {
        self.files.entry(id).or_default()
    }

    pub fn write(&mut self, id: FileId, offset: usize, bytes: &[u8]) {
        let file = self.file(id);
        file.mtime = None;
        apply(Arc::make_mut(&mut file.bytes), offset, bytes);
    }

    pub fn resize(&mut self, id: FileId, size: usize) {
        let file = self.file(id);
        file.mtime = None;
        Arc::make_mut(&mut file.bytes).resize(size, 0);
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        let from_id = self.names[from];
        if self.names.get(to) != Some(&from_id) {
            self.names.remove(from);
            self.names.insert(to.into(), from_id);
        }
    }

    #[cfg(target_os = "linux")]
    pub fn exchange(&mut self, one: &str, other: &str) {
        let (a, b) = (self.names[one], self.names[other]);
        self.names.insert(one.into(), b);
        self.names.insert(other.into(), a);
    }

    /// Forget files without a name.
    pub fn tidy(&mut self) {
        let named: BTreeSet<_> = self.names.values().copied().collect();
        self.files.retain(|id, _| named.contains(id));
    }

    /// How these bytes differ from what is in the file.
    pub fn differs(&self, id: FileId, bytes: &Arc<Vec<u8>>) -> String {
        let how = compare(&self.files[&id], bytes).err().unwrap_or_else(|| "they are the same".into());
        let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
        format!("{how}; the last {zeros} of them are 0")
    }

    /// Whether the tree is this shelf; what differs if not. A partial write becomes what there is of it.
    pub fn matches(&self, tree: &Tree) -> Result<Self, String> {
        let mut found = self.clone();
        found.tidy();
        let mut inos: BTreeMap<FileId, u64> = BTreeMap::new();
        for (name, seen) in tree {
            let expected = self.names.get(name);
            match (seen, expected) {
                (Seen::Dir, _) if self.dirs.contains(name) => {}
                (Seen::File { ino, nlink, mode, mtime, bytes }, Some(id)) => {
                    if *inos.entry(*id).or_insert(*ino) != *ino {
                        return Err(format!("{name}: its links have different inode numbers"));
                    }
                    let links = self.names.values().filter(|other| *other == id).count() as u64;
                    if *nlink != links {
                        return Err(format!("{name}: nlink is {nlink}, and it has {links} names"));
                    }
                    let file = &self.files[id];
                    let is = compare(file, bytes).map_err(|what| format!("{name}: {what}"))?;
                    if file.mode.is_some_and(|set| set != *mode) {
                        return Err(format!("{name}: mode {mode:o} instead of {:o}", file.mode.unwrap_or_default()));
                    }
                    if file.mtime.is_some_and(|set| set != *mtime) {
                        return Err(format!("{name}: mtime {mtime:?} instead of {:?}", file.mtime));
                    }
                    let file = found.file(*id);
                    (file.bytes, file.partial) = (is, None);
                }
                (seen, _) => return Err(format!("{name} should not be there: {seen:?}")),
            }
        }
        let missing = self.names.keys().chain(&self.dirs).find(|name| !tree.contains_key(*name));
        match missing {
            Some(name) => Err(format!("{name} is missing")),
            None => Ok(found),
        }
    }
}

fn apply(to: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if to.len() < offset + bytes.len() {
        to.resize(offset + bytes.len(), 0);
    }
    to[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn compare(file: &File, bytes: &Arc<Vec<u8>>) -> Result<Arc<Vec<u8>>, String> {
    if file.bytes == *bytes {
        return Ok(bytes.clone());
    }
    if let Some((offset, new)) = &file.partial {
        let there = bytes.get(*offset..).unwrap_or_default();
        let done = there.iter().zip(new.iter()).take_while(|(a, b)| a == b).count();
        let mut some = file.bytes.to_vec();
        if done > 0 {
            apply(&mut some, *offset, &new[..done]);
        }
        if some == **bytes {
            return Ok(bytes.clone());
        }
    }
    let at = file.bytes.iter().zip(bytes.iter()).position(|(a, b)| a != b);
    let at = at.map_or("one is the beginning of the other".into(), |at| format!("they differ from byte {at} on"));
    let partial = file.partial.as_ref().map(|(offset, new)| (offset, new.len()));
    Err(format!("{} bytes instead of {}; {at} (write under way: {partial:?})", bytes.len(), file.bytes.len()))
}
