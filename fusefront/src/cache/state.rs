//! The cache's contents and the rules for changing them; [`super::Cache`] holds it under one lock.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use delugefs_proto::local_pb::{Attr, Changed};

use crate::worker::Stamp;

use super::{Fetched, Found, InoMap, Item, List, Snapshot};

/// A directory with more unknown names than this is fetched anew instead.
const HOLES_MAX: usize = 256;
/// Changed inodes noted for one question; with more, anything may have changed.
const INOS_MAX: usize = 4096;
/// Entries a directory weighs beside its names, so that a million empty directories are bounded too.
const DIR_WEIGHT: usize = 2;

#[derive(Default)]
pub(super) struct State {
    pub(super) link: u64,
    /// Counter of the newest event seen through this link.
    pub(super) newest_event: u64,
    pub(super) dirs: InoMap<Dir>,
    pub(super) nodes: InoMap<Node>,
    /// Entries in all directories, with their weights.
    pub(super) entries: usize,
    pub(super) fetches: InoMap<Watched>,
    next_fetch: u64,
    /// Files being handed over to the worker.
    handing: InoMap<Handing>,
    next_handing: u64,
    clock: AtomicU64,
}

/// What a written file is, by its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// In bytes.
    pub size: u64,
    /// Of 512 bytes.
    pub blocks: u64,
    /// Nanoseconds since 1970.
    pub mtime: i64,
    /// The same, if anything was written.
    pub ctime: Option<i64>,
    /// The same as it was then, whatever has been changed since.
    pub written: Option<i64>,
}

impl Written {
    /// Attributes with this in them.
    pub fn over(self, mut attr: Attr) -> Attr {
        (attr.size, attr.blocks, attr.mtime) = (self.size, self.blocks, self.mtime);
        attr.ctime = self.ctime.map_or(attr.ctime, |ctime| attr.ctime.max(ctime));
        attr.written = self.written.map_or(attr.written, |written| attr.written.max(written));
        attr
    }
}

struct Handing {
    number: u64,
    written: Written,
    /// Counter of the newest answer that this was put over: it may have been made before or after the hand-over.
    over: u64,
}

pub(super) struct Dir {
    pub(super) list: Arc<List>,
    pub(super) parent: u64,
    /// All names are in the list, but for the holes.
    pub(super) complete: bool,
    /// Too many entries for lookups to load it.
    pub(super) big: bool,
    /// Names of which nothing is known; never in the list.
    pub(super) holes: BTreeSet<Box<[u8]>>,
    /// It counts among the references of its own node.
    holds_node: bool,
    used: AtomicU64,
}

impl Dir {
    fn new(list: List, parent: u64, complete: bool) -> Self {
        Self {
            list: Arc::new(list),
            parent,
            complete,
            big: !complete,
            holes: BTreeSet::new(),
            holds_node: false,
            used: AtomicU64::new(0),
        }
    }
}

pub(super) struct Node {
    pub(super) attr: Attr,
    /// Counter of the answer the attributes come from.
    seq: u64,
    /// Cached names, plus one if it is a cached directory. A node without any is dropped at the next trimming.
    refs: u32,
    /// From the answer to a hand-over: others with the same counter may have been made before it.
    settled: bool,
    pub(super) fresh: bool,
    pub(super) no_xattrs: bool,
}

/// What happened to an inode while an answer about it was on its way.
#[derive(Default)]
pub(super) struct Watched {
    dir: u64,
    /// Counter of the newest change of its names or own attributes.
    newest: u64,
    /// Inodes changed by others, with the counter.
    inos: Vec<(u64, u64)>,
}

impl Watched {
    fn note(&mut self, ino: u64, seq: u64) {
        if self.inos.len() < INOS_MAX {
            self.inos.push((ino, seq));
        } else {
            self.newest = u64::MAX;
        }
    }

    /// Nothing changed after this counter, neither its names nor any inode.
    pub(super) fn is_quiet_since(&self, seq: u64) -> bool {
        self.newest <= seq && self.inos.iter().all(|(_, at)| *at <= seq)
    }

    /// Nothing happened to it.
    pub(super) fn is_quiet(&self) -> bool {
        self.newest == 0 && self.inos.iter().all(|(ino, _)| *ino != self.dir)
    }
}

impl State {
    pub(super) fn reset(&mut self, stamp: Stamp) {
        let (link, newest_event) = (stamp.link, stamp.seq);
        let (next_fetch, next_handing) = (self.next_fetch, self.next_handing);
        *self = State { link, newest_event, next_fetch, next_handing, ..State::default() };
    }

    pub(super) fn lookup(&self, dir: u64, name: &[u8]) -> Found {
        let Some(dir) = self.dirs.get(&dir) else { return Found::UnknownDir };
        self.touch(dir);
        match dir.list.get(name) {
            Some(item) => match self.nodes.get(&item.ino) {
                Some(node) if node.fresh => Found::Node(node.attr),
                _ => Found::Stale(item.ino),
            },
            None if dir.complete && !dir.holes.contains(name) => Found::Absent,
            None if dir.complete || dir.big => Found::Unknown,
            None => Found::UnknownDir,
        }
    }

    pub(super) fn snapshot(&self, dir: u64) -> Option<Snapshot> {
        let dir = self.dirs.get(&dir)?;
        self.touch(dir);
        (dir.complete && dir.holes.is_empty()).then(|| Snapshot { list: dir.list.clone(), parent: dir.parent })
    }

    fn touch(&self, dir: &Dir) {
        dir.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Put in newer attributes; older ones are ignored.
    fn put_node(&mut self, attr: Attr, seq: u64) {
        let attr = self.handing.get_mut(&attr.ino).map_or(attr, |handing| {
            handing.over = handing.over.max(seq);
            handing.written.over(attr)
        });
        let new = || Node { attr, seq, refs: 0, settled: false, fresh: true, no_xattrs: false };
        let node = self.nodes.entry(attr.ino).or_insert_with(new);
        if seq > node.seq || (seq == node.seq && !node.settled) {
            (node.attr, node.seq, node.settled, node.fresh) = (attr, seq, false, true);
        }
    }

    pub(super) fn begin_hand_over(&mut self, ino: u64, written: Written) -> (u64, Option<Attr>) {
        self.next_handing += 1;
        self.note_hand_over(ino);
        self.handing.insert(ino, Handing { number: self.next_handing, written, over: 0 });
        let node = self.nodes.get_mut(&ino);
        let attr = node.map(|node| {
            node.attr = written.over(node.attr);
            node.attr
        });
        (self.next_handing, attr)
    }

    /// What answers say of the inode may have been so before it was handed over, whatever their counter.
    fn note_hand_over(&mut self, ino: u64) {
        self.fetches.values_mut().for_each(|fetch| fetch.note(ino, u64::MAX));
    }

    /// The counter is of the worker's answer, if that says what the file is.
    pub(super) fn end_hand_over(&mut self, ino: u64, number: u64, seq: Option<u64>) -> Option<Written> {
        self.note_hand_over(ino);
        self.handing.get(&ino).filter(|handing| handing.number == number)?;
        let handing = self.handing.remove(&ino)?;
        // By the counter it is newer than the file that was handed over, and yet what was written was put over it. Without an
        // answer it was put over what may be all there is: another disk that stands in for ours has nothing of it.
        if seq.is_none_or(|seq| handing.over > seq) {
            self.make_stale(ino);
        }
        Some(handing.written)
    }

    /// Our own change of a file that is being handed over: the worker made it either in the file that was being written or
    /// in the one that was handed over, so it counts in both cases.
    fn change_handed(&mut self, attr: &Attr, is_resized: bool) {
        let Some(handing) = self.handing.get_mut(&attr.ino) else { return };
        if is_resized {
            (handing.written.size, handing.written.blocks) = (attr.size, attr.blocks);
        }
        (handing.written.mtime, handing.written.ctime) = (attr.mtime, Some(attr.ctime));
    }

    fn put_name(&mut self, dir: u64, name: &[u8], item: Item) {
        let Some(held) = self.dirs.get_mut(&dir) else { return };
        held.holes.remove(name);
        let old = Arc::make_mut(&mut held.list).insert(name.into(), item);
        if let Some(node) = self.nodes.get_mut(&item.ino) {
            node.refs += 1;
        }
        match old {
            Some(old) => self.drop_ref(old.ino),
            None => self.entries += 1,
        }
    }

    pub(super) fn take_name(&mut self, dir: u64, name: &[u8]) {
        let Some(held) = self.dirs.get_mut(&dir) else { return };
        held.holes.remove(name);
        // Do not copy a shared list for a name that is not in it.
        if held.list.contains_key(name)
            && let Some(old) = Arc::make_mut(&mut held.list).remove(name)
        {
            self.entries -= 1;
            self.drop_ref(old.ino);
        }
    }

    /// Nothing is known of the name any more.
    pub(super) fn make_hole(&mut self, dir: u64, name: &[u8]) {
        self.take_name(dir, name);
        let Some(held) = self.dirs.get_mut(&dir) else { return };
        if held.complete {
            held.holes.insert(name.into());
            if held.holes.len() > HOLES_MAX {
                self.drop_dir(dir);
            }
        }
    }

    fn drop_ref(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.refs = node.refs.saturating_sub(1);
            if node.refs == 0 {
                self.nodes.remove(&ino);
            }
        }
    }

    fn drop_dir(&mut self, dir: u64) {
        let Some(held) = self.dirs.remove(&dir) else { return };
        self.entries -= held.list.len() + DIR_WEIGHT;
        for item in held.list.values() {
            self.drop_ref(item.ino);
        }
        if held.holds_node {
            self.drop_ref(dir);
        }
    }

    fn put_dir(&mut self, dir: u64, mut held: Dir) {
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.refs += 1;
            held.holds_node = true;
        }
        self.drop_dir(dir);
        self.entries += held.list.len() + DIR_WEIGHT;
        for item in held.list.values() {
            if let Some(node) = self.nodes.get_mut(&item.ino) {
                node.refs += 1;
            }
        }
        self.touch(&held);
        self.dirs.insert(dir, held);
    }

    pub(super) fn begin_fetch(&mut self, dir: u64) -> u64 {
        self.next_fetch += 1;
        self.fetches.insert(self.next_fetch, Watched { dir, ..Watched::default() });
        self.next_fetch
    }

    pub(super) fn end_fetch(&mut self, id: u64) -> Option<Watched> {
        self.fetches.remove(&id)
    }

    pub(super) fn keep(&mut self, dir: u64, watched: &Watched, fetched: Fetched) -> bool {
        let oldest = fetched.pages.iter().map(|(seq, _)| *seq).min().unwrap_or(0);
        if oldest < watched.newest {
            return false;
        }
        let mut list = Vec::new();
        // A node must not be dropped between its coming in and the list that refers to it.
        for (seq, entries) in &fetched.pages {
            for entry in entries {
                let Some(attr) = entry.attr else { continue };
                self.put_node(attr, *seq);
                let changed_later = |(ino, at): &(u64, u64)| *ino == attr.ino && at > seq;
                if !watched.inos.is_empty() && watched.inos.iter().any(changed_later) {
                    self.make_stale(attr.ino);
                }
                if fetched.complete {
                    list.push((Box::from(&entry.name[..]), Item::of(&attr)));
                }
            }
        }
        let held = Dir::new(list.into_iter().collect(), fetched.parent, fetched.complete);
        // Nodes referred to by the old listing of this directory stay: the new one takes its references first.
        for item in held.list.values() {
            if let Some(node) = self.nodes.get_mut(&item.ino) {
                node.refs += 1;
            }
        }
        let list = held.list.clone();
        self.put_dir(dir, held);
        for item in list.values() {
            self.drop_ref(item.ino);
        }
        true
    }

    pub(super) fn make_stale(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.fresh = false;
            node.no_xattrs = false;
        }
    }

    pub(super) fn set_no_xattrs(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&ino).filter(|node| node.fresh) {
            node.no_xattrs = true;
        }
    }

    pub(super) fn event(&mut self, seq: u64, changed: &Changed) {
        self.newest_event = self.newest_event.max(seq);
        for fetch in self.fetches.values_mut() {
            if fetch.dir == changed.dir {
                fetch.newest = fetch.newest.max(seq);
            }
            changed.inos.iter().for_each(|ino| fetch.note(*ino, seq));
        }
        if changed.dir != 0 {
            self.make_stale(changed.dir);
            for name in &changed.names {
                self.make_hole(changed.dir, name);
            }
        }
        for ino in &changed.inos {
            self.make_stale(*ino);
        }
    }

    /// Back below the bound, with some room so that it is not done for every new entry.
    pub(super) fn trim(&mut self, capacity: usize) {
        if self.nodes.len() > self.entries + capacity / 4 {
            self.nodes.retain(|_, node| node.refs > 0);
        }
        if self.entries <= capacity {
            return;
        }
        let mut by_age: Vec<(u64, u64)> =
            self.dirs.iter().map(|(ino, dir)| (dir.used.load(Ordering::Relaxed), *ino)).collect();
        by_age.sort_unstable();
        for (_, dir) in by_age {
            if self.entries <= capacity / 8 * 7 {
                break;
            }
            self.drop_dir(dir);
        }
    }
}

/// The S_IFMT bits of a mode, shifted down.
pub(crate) fn kind_of(mode: u32) -> u8 {
    ((mode >> 12) & 0xf) as u8
}

/// Changes of one answer; see [`super::Cache::apply`].
pub struct Patch<'a> {
    state: &'a mut State,
    seq: u64,
    /// An event newer than the answer has been seen.
    late: bool,
}

impl<'a> Patch<'a> {
    pub(super) fn new(state: &'a mut State, seq: u64) -> Self {
        let late = seq < state.newest_event;
        Self { state, seq, late }
    }

    /// An inode's attributes, where the answer has them.
    pub fn node(&mut self, attr: Option<Attr>) {
        let Some(attr) = attr else { return };
        self.state.put_node(attr, self.seq);
        for fetch in self.state.fetches.values_mut() {
            fetch.note(attr.ino, self.seq);
        }
        if self.late {
            self.state.make_stale(attr.ino);
        }
    }

    /// The same after a change of its size or time by us.
    pub fn changed(&mut self, attr: Attr, is_resized: bool) {
        self.state.change_handed(&attr, is_resized);
        self.node(Some(attr));
    }

    /// The node of a file that was handed over: the last word with this counter. Of one that is not held nothing is put in:
    /// it may have been removed since the answer was made.
    pub(super) fn handed_over(&mut self, attr: Option<Attr>) {
        let Some(attr) = attr else { return };
        let Some(node) = self.state.nodes.get_mut(&attr.ino) else { return };
        node.settled = false;
        self.node(Some(attr));
        let node = self.state.nodes.get_mut(&attr.ino);
        if let Some(node) = node.filter(|node| node.seq == self.seq) {
            node.settled = true;
        }
    }

    /// The name now belongs to this node.
    pub fn set(&mut self, dir: u64, name: &[u8], attr: Attr) {
        self.changes_dir(dir);
        if self.late {
            self.node(Some(attr));
            return self.state.make_hole(dir, name);
        }
        self.found(dir, name, attr);
    }

    /// The name was found to belong to this node; nothing was changed.
    pub fn found(&mut self, dir: u64, name: &[u8], attr: Attr) {
        self.node(Some(attr));
        if !self.late {
            self.state.put_name(dir, name, Item::of(&attr));
        }
    }

    /// The node of this name may have changed, for the answer to the first sending is lost.
    pub fn doubt(&mut self, dir: u64, name: &[u8]) {
        let item = self.state.dirs.get(&dir).and_then(|held| held.list.get(name)).copied();
        if let Some(item) = item {
            self.state.make_stale(item.ino);
        }
    }

    /// The name is gone.
    pub fn unset(&mut self, dir: u64, name: &[u8]) {
        self.changes_dir(dir);
        match self.late {
            true => self.state.make_hole(dir, name),
            false => self.state.take_name(dir, name),
        }
    }

    /// The node has no name any more. If it was a directory, its list goes with it.
    pub fn gone(&mut self, ino: u64) {
        self.state.drop_dir(ino);
        self.state.nodes.remove(&ino);
    }

    /// The directory was just made: it is known to be empty.
    pub fn new_dir(&mut self, dir: u64, parent: u64) {
        if !self.late {
            self.state.put_dir(dir, Dir::new(List::new(), parent, true));
        }
    }

    /// The directory is now in another one.
    pub fn moved(&mut self, dir: u64, parent: u64) {
        if let Some(held) = self.state.dirs.get_mut(&dir) {
            held.parent = parent;
        }
    }

    /// Nothing is known of the directory any more.
    pub fn forget_dir(&mut self, dir: u64) {
        self.changes_dir(dir);
        self.state.drop_dir(dir);
    }

    /// The inode has extended attributes, as far as known.
    pub fn has_xattrs(&mut self, ino: u64) {
        self.changes_dir(ino);
        if let Some(node) = self.state.nodes.get_mut(&ino) {
            node.no_xattrs = false;
        }
    }

    fn changes_dir(&mut self, dir: u64) {
        let seq = self.seq;
        for fetch in self.state.fetches.values_mut().filter(|fetch| fetch.dir == dir) {
            fetch.newest = fetch.newest.max(seq);
        }
    }
}
