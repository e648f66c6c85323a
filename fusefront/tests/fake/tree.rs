//! The fake worker's file system: POSIX rules on a map of nodes, contents in files.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use delugefs_proto::ids::random_u64;
use delugefs_proto::local_pb::{Attr, Entry, SetAttr};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::time::TimeSpec;

pub struct Tree {
    pub nodes: HashMap<u64, Node>,
    pub seq: u64,
    /// Files that were staged and of which a stand-in has nothing.
    pub lost: HashSet<u64>,
    root: PathBuf,
}

#[derive(Default)]
pub struct Node {
    pub attr: Attr,
    pub entries: Option<BTreeMap<Vec<u8>, u64>>,
    pub parent: u64,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub content: Content,
    pub staged: bool,
    /// Somebody has said so of the staged file.
    pub written: bool,
    /// Change time of the staged file when it was made as a copy.
    pub baseline: Option<i64>,
}

#[derive(Clone)]
pub enum Content {
    Inline(Vec<u8>),
    Stored(PathBuf),
}

impl Default for Content {
    fn default() -> Self {
        Content::Inline(Vec::new())
    }
}

pub const INLINE_MAX: u64 = 4096;

fn ctime_of(meta: &std::fs::Metadata) -> i64 {
    meta.ctime() * 1_000_000_000 + meta.ctime_nsec()
}

pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64
}

impl Tree {
    pub fn new(root: &Path) -> Self {
        std::fs::create_dir(root.join("staging")).unwrap();
        std::fs::create_dir(root.join("data")).unwrap();
        let mut tree = Self { nodes: HashMap::new(), seq: 1, lost: HashSet::new(), root: root.to_owned() };
        let attr = Attr { ino: 1, mode: 0o040_755, nlink: 2, dir: 1, size: 4096, ..Attr::default() };
        let attr = Attr { mtime: now(), ctime: now(), atime: now(), ..attr };
        tree.nodes.insert(1, Node { attr, entries: Some(BTreeMap::new()), parent: 1, ..Node::default() });
        tree
    }

    pub fn staging(&self, ino: u64) -> PathBuf {
        super::staging_path(&self.root, ino)
    }

    pub fn node(&mut self, ino: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)
    }

    pub fn attr(&self, ino: u64) -> Result<Attr, Errno> {
        let node = self.nodes.get(&ino).ok_or(Errno::ESTALE)?;
        let mut attr = node.attr;
        if node.staged
            && let Ok(meta) = std::fs::metadata(self.staging(ino))
        {
            attr.size = meta.size();
            attr.blocks = meta.blocks();
            attr.mtime = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
            let ctime = ctime_of(&meta);
            if node.baseline != Some(ctime) {
                attr.ctime = attr.ctime.max(ctime);
                attr.written = attr.written.max(ctime);
            }
        }
        Ok(attr)
    }

    fn dir(&self, dir: u64) -> Result<&BTreeMap<Vec<u8>, u64>, Errno> {
        self.nodes.get(&dir).ok_or(Errno::ESTALE)?.entries.as_ref().ok_or(Errno::ENOTDIR)
    }

    pub fn lookup(&self, dir: u64, name: &[u8]) -> Result<Attr, Errno> {
        self.attr(*self.dir(dir)?.get(name).ok_or(Errno::ENOENT)?)
    }

    pub fn read_dir(&self, dir: u64, after: &[u8], limit: usize) -> Result<(Vec<Entry>, bool, u64), Errno> {
        let from = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        let mut rest = self.dir(dir)?.range::<[u8], _>((from, Bound::Unbounded));
        let entry =
            |(name, ino): (&Vec<u8>, &u64)| Ok(Entry { name: name.clone().into(), attr: Some(self.attr(*ino)?) });
        let entries = rest.by_ref().take(limit).map(entry).collect::<Result<_, Errno>>()?;
        Ok((entries, rest.next().is_some(), self.nodes[&dir].parent))
    }

    fn insert(&mut self, dir: u64, name: &[u8], ino: u64) {
        let is_dir = self.nodes[&ino].entries.is_some();
        let parent = self.nodes.get_mut(&dir).unwrap();
        parent.entries.as_mut().unwrap().insert(name.to_vec(), ino);
        parent.attr.nlink += u32::from(is_dir);
        (parent.attr.mtime, parent.attr.ctime) = (now(), now());
        let node = self.nodes.get_mut(&ino).unwrap();
        (node.attr.ctime, node.attr.dir) = (now(), dir);
        if is_dir {
            node.parent = dir;
        }
        self.seq += 1;
    }

    fn remove(&mut self, dir: u64, name: &[u8]) -> u64 {
        let parent = self.nodes.get_mut(&dir).unwrap();
        let ino = parent.entries.as_mut().unwrap().remove(name).unwrap();
        (parent.attr.mtime, parent.attr.ctime) = (now(), now());
        let is_dir = self.nodes[&ino].entries.is_some();
        self.nodes.get_mut(&dir).unwrap().attr.nlink -= u32::from(is_dir);
        self.nodes.get_mut(&ino).unwrap().attr.ctime = now();
        self.seq += 1;
        ino
    }

    pub fn make(&mut self, dir: u64, name: &[u8], mode: u32, (uid, gid): (u32, u32), ino: u64) -> Result<u64, Errno> {
        if self.dir(dir)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let ino = if ino == 0 { (random_u64() >> 2).max(16) } else { ino };
        let is_dir = mode & 0o170_000 == 0o040_000;
        let (nlink, size) = if is_dir { (2, 4096) } else { (1, 0) };
        let attr =
            Attr { ino, mode, nlink, uid, gid, size, mtime: now(), atime: now(), ctime: now(), ..Attr::default() };
        self.nodes.insert(ino, Node { attr, entries: is_dir.then(BTreeMap::new), parent: dir, ..Node::default() });
        self.insert(dir, name, ino);
        Ok(ino)
    }

    pub fn link(&mut self, ino: u64, dir: u64, name: &[u8]) -> Result<(), Errno> {
        let node = self.node(ino)?;
        if node.entries.is_some() {
            return Err(Errno::EPERM);
        }
        node.attr.nlink += 1;
        self.insert(dir, name, ino);
        Ok(())
    }

    fn lose_name(&mut self, ino: u64) -> Attr {
        let mut attr = self.attr(ino).unwrap();
        attr.nlink -= 1;
        self.nodes.get_mut(&ino).unwrap().attr.nlink = attr.nlink;
        if attr.nlink == 0 {
            self.nodes.remove(&ino);
        } else if !self.nodes[&attr.dir].entries.as_ref().unwrap().values().any(|other| *other == ino) {
            let holds = |node: &Node| node.entries.as_ref().is_some_and(|entries| entries.values().any(|i| *i == ino));
            attr.dir = *self.nodes.iter().find(|(_, node)| holds(node)).unwrap().0;
            self.nodes.get_mut(&ino).unwrap().attr.dir = attr.dir;
        }
        attr
    }

    pub fn unlink(&mut self, dir: u64, name: &[u8]) -> Result<Attr, Errno> {
        let attr = self.lookup(dir, name)?;
        if self.nodes[&attr.ino].entries.is_some() {
            return Err(Errno::EISDIR);
        }
        let ino = self.remove(dir, name);
        Ok(self.lose_name(ino))
    }

    pub fn rmdir(&mut self, dir: u64, name: &[u8]) -> Result<Attr, Errno> {
        let attr = self.lookup(dir, name)?;
        if !self.dir(attr.ino)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.remove(dir, name);
        self.nodes.remove(&attr.ino);
        Ok(Attr { nlink: 0, ..attr })
    }

    pub fn rename(
        &mut self,
        (dir, name): (u64, &[u8]),
        (dir2, name2): (u64, &[u8]),
        no_replace: bool,
        exchange: bool,
    ) -> Result<(Attr, Option<Attr>), Errno> {
        let moved = self.lookup(dir, name)?;
        let there = match self.lookup(dir2, name2) {
            Err(Errno::ENOENT) => None,
            other => Some(other?),
        };
        let is_dir = |tree: &Self, ino: u64| tree.nodes[&ino].entries.is_some();
        let is_below = |tree: &Self, mut at: u64, ino: u64| {
            while at != 1 && at != ino {
                at = tree.nodes[&at].parent;
            }
            at == ino
        };
        if is_below(self, dir2, moved.ino) {
            return Err(Errno::EINVAL);
        }
        if let Some(there) = there {
            if no_replace {
                return Err(Errno::EEXIST);
            }
            if there.ino == moved.ino {
                return Ok((moved, Some(there)));
            }
            if exchange {
                if is_below(self, dir, there.ino) {
                    return Err(Errno::EINVAL);
                }
                let (a, b) = (self.remove(dir, name), self.remove(dir2, name2));
                self.insert(dir, name, b);
                self.insert(dir2, name2, a);
                return Ok((self.attr(a)?, Some(self.attr(b)?)));
            }
            match (is_dir(self, moved.ino), is_dir(self, there.ino)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.dir(there.ino)?.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        } else if exchange {
            return Err(Errno::ENOENT);
        }
        let lost = there.map(|there| {
            self.remove(dir2, name2);
            match is_dir(self, there.ino) {
                true => {
                    self.nodes.remove(&there.ino);
                    Attr { nlink: 0, ..there }
                }
                false => self.lose_name(there.ino),
            }
        });
        self.remove(dir, name);
        self.insert(dir2, name2, moved.ino);
        Ok((self.attr(moved.ino)?, lost))
    }

    pub fn set_attr(&mut self, op: &SetAttr) -> Result<(), Errno> {
        if let Some(size) = op.size {
            self.stage_file(op.ino)?.set_len(size).unwrap();
            self.seal(op.ino);
            let node = self.node(op.ino)?;
            (node.attr.mtime, node.attr.size) = (now(), size);
        }
        let staged = self.node(op.ino)?.staged.then(|| self.staging(op.ino));
        let node = self.node(op.ino)?;
        node.attr.mode = op.mode.unwrap_or(node.attr.mode);
        node.attr.uid = op.uid.unwrap_or(node.attr.uid);
        node.attr.gid = op.gid.unwrap_or(node.attr.gid);
        let at = |set: Option<i64>, to_now: bool| if to_now { Some(now()) } else { set };
        node.attr.atime = at(op.atime, op.atime_now).unwrap_or(node.attr.atime);
        if let Some(mtime) = at(op.mtime, op.mtime_now) {
            node.attr.mtime = mtime;
            if let Some(path) = staged {
                let spec = TimeSpec::new(mtime.div_euclid(1_000_000_000), mtime.rem_euclid(1_000_000_000));
                let file = File::open(path).unwrap();
                nix::sys::stat::futimens(&file, &TimeSpec::UTIME_OMIT, &spec).unwrap();
            }
        }
        self.node(op.ino)?.attr.ctime = now();
        self.seq += 1;
        Ok(())
    }

    fn stage_file(&mut self, ino: u64) -> Result<File, Errno> {
        let path = self.staging(ino);
        let node = self.node(ino)?;
        if !node.staged {
            match &node.content {
                Content::Inline(bytes) => std::fs::write(&path, bytes).unwrap(),
                Content::Stored(stored) => drop(std::fs::copy(stored, &path).unwrap()),
            }
            (node.staged, node.written) = (true, false);
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let mtime = node.attr.mtime;
            let spec = TimeSpec::new(mtime.div_euclid(1_000_000_000), mtime.rem_euclid(1_000_000_000));
            nix::sys::stat::futimens(&file, &TimeSpec::UTIME_OMIT, &spec).unwrap();
            node.baseline = Some(ctime_of(&file.metadata().unwrap()));
            return Ok(file);
        }
        Ok(OpenOptions::new().read(true).write(true).open(&path).unwrap())
    }

    /// The staging file, to be given away under its lock.
    pub fn stage(&mut self, ino: u64, truncate: bool) -> Result<File, Errno> {
        let file = self.stage_file(ino)?;
        if truncate {
            file.set_len(0).unwrap();
            self.node(ino)?.written = true;
        }
        // The lock belongs to the open file, and goes with it: it is not to be released here.
        #[allow(deprecated)]
        nix::fcntl::flock(std::os::fd::AsRawFd::as_raw_fd(&file), FlockArg::LockSharedNonblock).unwrap();
        Ok(file)
    }

    pub fn inline(&self, ino: u64) -> Result<Option<Vec<u8>>, Errno> {
        let node = self.nodes.get(&ino).ok_or(Errno::ESTALE)?;
        Ok(match &node.content {
            Content::Inline(bytes) if !node.staged => Some(bytes.clone()),
            _ => None,
        })
    }

    pub fn open_read(&self, ino: u64) -> Result<File, Errno> {
        let node = self.nodes.get(&ino).ok_or(Errno::ESTALE)?;
        let path = match &node.content {
            _ if node.staged => self.staging(ino),
            Content::Stored(path) => path.clone(),
            Content::Inline(_) => return Err(Errno::EIO),
        };
        Ok(File::open(path).unwrap())
    }

    /// Note whether a handle that is closed was written through; `false` if it says no, as all before, and that is not so.
    pub fn is_truly(&mut self, unwritten: bool, ino: u64) -> bool {
        let staging = self.staging(ino);
        let Some(node) = self.nodes.get_mut(&ino).filter(|node| node.staged) else { return true };
        node.written |= !unwritten;
        let before = match &node.content {
            Content::Inline(bytes) => bytes.clone(),
            Content::Stored(path) => std::fs::read(path).unwrap(),
        };
        node.written || std::fs::read(staging).unwrap() == before
    }

    /// Whether nobody has the staging file open any more; then it is sealed.
    pub fn seal_if_free(&mut self, ino: u64) -> bool {
        let path = self.staging(ino);
        let Ok(mut file) = File::open(&path) else { return true };
        // Another test of this process may be between fork and exec, with copies of all descriptors.
        let deadline = std::time::Instant::now() + std::time::Duration::from_millis(500);
        while let Err((back, _)) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            if std::time::Instant::now() > deadline {
                return false;
            }
            file = back;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.seal(ino);
        true
    }

    fn seal(&mut self, ino: u64) {
        let path = self.staging(ino);
        let Ok(attr) = self.attr(ino) else {
            std::fs::remove_file(&path).unwrap();
            return;
        };
        let bytes = std::fs::read(&path).unwrap();
        let stored = self.root.join("data").join(format!("{:016x}", random_u64()));
        let node = self.nodes.get_mut(&ino).unwrap();
        node.attr = attr;
        node.attr.blocks = attr.size.div_ceil(512);
        (node.staged, node.baseline) = (false, None);
        if attr.size <= INLINE_MAX {
            node.content = Content::Inline(bytes);
            std::fs::remove_file(&path).unwrap();
        } else {
            std::fs::rename(&path, &stored).unwrap();
            node.content = Content::Stored(stored);
        }
        self.seq += 1;
    }

    /// After a crash: what nobody has open is sealed.
    pub fn recover(&mut self) {
        let staged: Vec<u64> = self.nodes.iter().filter(|(_, node)| node.staged).map(|(ino, _)| *ino).collect();
        for ino in staged {
            self.seal_if_free(ino);
        }
    }

    /// What another disk of the host knows, which stands in for this one: nothing of what is being written.
    pub fn lose_staged(&mut self) {
        for (ino, node) in self.nodes.iter_mut().filter(|(_, node)| node.staged) {
            (node.staged, node.baseline) = (false, None);
            std::fs::remove_file(super::staging_path(&self.root, *ino)).unwrap();
            self.lost.insert(*ino);
        }
    }

    /// A file that was removed is there as another disk of the host knows it, which stands in for this one and has not heard of that.
    pub fn put_back(&mut self, dir: u64, name: &[u8], attr: Attr, bytes: &[u8]) {
        let content = Content::Inline(bytes.to_vec());
        self.nodes.insert(attr.ino, Node { attr, content, ..Node::default() });
        self.insert(dir, name, attr.ino);
    }

    /// The content, as another host would see it.
    pub fn content(&self, ino: u64) -> Vec<u8> {
        match &self.nodes[&ino].content {
            _ if self.nodes[&ino].staged => std::fs::read(self.staging(ino)).unwrap(),
            Content::Inline(bytes) => bytes.clone(),
            Content::Stored(path) => std::fs::read(path).unwrap(),
        }
    }

    /// New content, as another host would make it.
    pub fn replace(&mut self, ino: u64, bytes: &[u8]) {
        let stored = self.root.join("data").join(format!("{:016x}", random_u64()));
        let content = if bytes.len() as u64 <= INLINE_MAX {
            Content::Inline(bytes.to_vec())
        } else {
            std::fs::write(&stored, bytes).unwrap();
            Content::Stored(stored)
        };
        let node = self.nodes.get_mut(&ino).unwrap();
        node.content = content;
        (node.attr.size, node.attr.mtime, node.attr.ctime) = (bytes.len() as u64, now(), now());
        node.attr.written = node.attr.ctime;
        node.attr.blocks = node.attr.size.div_ceil(512);
    }
}
