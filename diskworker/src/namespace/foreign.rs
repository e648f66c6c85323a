//! Changes that come from elsewhere: a joined state replaces the committed one under our feet.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ContentId, Ino};
use delugefs_proto::record::{Body, Data, Dot, Element, Key, Name, Perm, VersionVector, Xattrs};
use nix::errno::Errno;

use super::{Located, Namespace, Taken, Txn, Written, catalog_error, node, now_ns, rename};
use crate::catalog::{State, Succession};
use crate::view;

/// How far ahead of our clock others may be for us to follow, in nanoseconds. Of one key a change is later than what it replaces
/// anyway ([`Txn::after`]); and a single host with a clock years ahead would take all there.
pub(super) const FOLLOWED_NS: u64 = 60_000_000_000;

#[cfg(test)]
thread_local! {
    /// Called in this thread when a joined state is on the disk, and nothing that follows from it.
    pub(crate) static JOINED: std::cell::RefCell<Option<Box<dyn Fn()>>> = const { std::cell::RefCell::new(None) };
}

/// What a join brought.
pub struct Brought {
    /// Which contents came in place of which.
    pub successions: Vec<Succession>,
    /// The contents outside the catalog that the changed keys have now.
    pub stored: Vec<ContentId>,
    /// The versions that the changed keys have now, by each inode that they are about.
    pub versions: Vec<(Ino, Vec<Dot>)>,
    /// Files that were replaced, and can be read for a while.
    pub departed: Vec<Ino>,
    /// Files that are being written and have no name any more: to get it back when something was written.
    pub taken: Vec<Taken>,
    /// Those that have got it back, and the dots of the versions that hold the place for what was written.
    pub back: Vec<(Ino, Dot)>,
}

/// Places of a directory, by the directories they are in.
type Places = BTreeSet<(Ino, Name)>;

/// Where the homes of a directory lead.
enum Way {
    /// To the root.
    Root,
    /// To one that has no home.
    Lost(Ino),
    /// Round in a circle. The smallest number on that is moved out; the others then hang below it.
    Cycle(Ino),
}

impl Namespace {
    /// Join an imported state. Everything of our own must be committed first (`is_dirty` is false). What a merge can
    /// leave behind is repaired at once: a directory in two places, in none, or below itself. `written`: files whose content no record
    /// has yet.
    pub fn join(&mut self, theirs: &State, written: &Written<'_>) -> FsResult<Brought> {
        debug_assert!(!self.is_dirty());
        // Each start takes an actor of its own, so nobody can know more of it. What we change next would count as removed.
        let of_ours = |ctx: &VersionVector| ctx.0.get(&self.actor).copied().unwrap_or_default();
        let (said, made) = (of_ours(&theirs.ctx), of_ours(&self.ctx));
        if said > made {
            let why = format!("it knows of {said} changes of this disk, which has made {made}");
            return Err(FsError::new(Errno::EIO, format!("refused the state of another disk: {why}")));
        }
        let before = self.catalog.state();
        let mut taken = Vec::new();
        // A worker that is killed with the joined state on the disk and nothing else would come back to files without a name, and
        // remove them.
        let note = |changed: &BTreeMap<Key, Vec<Element>>| {
            taken = self.taken(&before, changed, &written.files).unwrap_or_else(|error| {
                tracing::error!("whether files that are being written lost their names cannot be told: {error}");
                Vec::new()
            });
            (written.note)(&taken);
        };
        let joined = self.catalog.join_noting(theirs, note).map_err(catalog_error)?;
        #[cfg(test)]
        JOINED.with_borrow(|then| then.iter().for_each(|then| then()));
        self.ctx = joined.state.ctx.clone();
        self.seq += 1;
        let departed = self.let_go(&joined.changed);
        let far = now_ns() as u64 + FOLLOWED_NS;
        for (key, elements) in &joined.changed {
            let seen = elements.iter().map(|e| e.hlc.0).filter(|hlc| *hlc < far);
            self.last_hlc = seen.fold(self.last_hlc, u64::max);
            self.note(key, elements);
        }
        for key in joined.changed.keys() {
            match key {
                Key::Entry(dir, _) => {
                    if let Some(dir) = self.dirs.remove(dir) {
                        self.cached_entries -= dir.cost();
                    }
                }
                Key::Inode(ino) => drop(self.inodes.remove(ino)),
            }
        }
        self.large_entries = 0; // of one that has gone with these, perhaps
        // Before all else: what was closed is in its staging file alone, and a start removes that of a file without a name.
        let (back, taken) = self.put_back_written(taken, written.has_more);
        // What could not be mended last time, as on a full disk, is looked at again with this.
        let again = std::mem::take(&mut self.unmended);
        let again = self.sets_now(again);
        let mut changed = joined.changed;
        for (key, elements) in again {
            changed.entry(key).or_insert(elements);
        }
        changed.extend(self.sets_now(back.keys().cloned().collect()));
        if let Err(error) = self.repair(&changed) {
            tracing::error!("what changed at once on several hosts is not all shown: {error}");
        }
        let stored = changed.values().flatten().filter_map(|element| match &element.body {
            Body::Content { data: Data::Stored { content, .. }, .. } => Some(*content),
            _ => None,
        });
        let versions = changed.values().flat_map(|elements| {
            let contents = || elements.iter().filter(|element| matches!(element.body, Body::Content { .. }));
            let dots: Vec<Dot> = contents().map(|element| element.dot).collect();
            contents().filter_map(move |element| Some((element.body.ino()?, dots.clone())))
        });
        let (stored, versions) = (stored.collect(), versions.collect());
        Ok(Brought {
            stored,
            versions,
            departed,
            taken,
            back: back.into_values().collect(),
            successions: joined.successions,
        })
    }

    /// Mend what these keys hold, as after a join.
    pub fn mend(&mut self, keys: BTreeSet<Key>) -> FsResult<()> {
        let sets = self.sets_now(keys);
        self.repair(&sets)
    }

    fn sets_now(&mut self, keys: BTreeSet<Key>) -> BTreeMap<Key, Vec<Element>> {
        let mut sets = BTreeMap::new();
        for key in keys {
            let now = match &key {
                Key::Entry(dir, name) => self.dir(*dir).map(|dir| dir.get(name).to_vec()),
                Key::Inode(ino) => self.inode(*ino).map(<[Element]>::to_vec),
            };
            match now {
                Ok(elements) => drop(sets.insert(key, elements)),
                Err(_) => drop(self.unmended.insert(key)),
            }
        }
        sets
    }

    /// Give every directory that the join touched exactly one place, every version of a file with several names a name, and
    /// every file in a directory a number of its own. All replicas make the same decision from the same
    /// state; where two make it at once, the equal results merge into one. What fails is for the next time, and does not keep the rest from
    /// being mended; the first error is given back.
    fn repair(&mut self, changed: &BTreeMap<Key, Vec<Element>>) -> FsResult<()> {
        let mut suspects: BTreeMap<Ino, Places> = BTreeMap::new();
        for (key, elements) in changed {
            let Key::Entry(dir, name) = key else { continue };
            suspects.entry(*dir).or_default();
            for element in elements {
                match &element.body {
                    Body::Dir { ino } => drop(suspects.entry(*ino).or_default().insert((*dir, name.clone()))),
                    // Of several one is made: where the others say that it is it may have to go from.
                    Body::Head { parent, name, .. } => {
                        suspects.entry(*dir).or_default().insert((*parent, name.clone()));
                    }
                    _ => {}
                }
            }
        }
        suspects.remove(&Ino::ROOT);
        let mut first = Ok(());
        for (key, elements) in changed {
            if let Key::Entry(dir, _) = key
                && elements.iter().filter(|e| matches!(e.body, Body::Head { .. })).count() > 1
                && let Err(error) = self.merge_heads(*dir)
            {
                self.unmended.insert(key.clone());
                first = first.and(Err(error));
            }
        }
        let mut reached = HashSet::from([Ino::ROOT]);
        for (ino, places) in suspects {
            if let Err(error) = self.repair_dir(ino, &places, &mut reached) {
                self.unmended.insert(Key::header(ino));
                self.unmended.extend(places.into_iter().map(|(dir, name)| Key::Entry(dir, name)));
                first = first.and(Err(error));
            }
        }
        let dirs: BTreeSet<Ino> =
            changed.keys().filter_map(|key| if let Key::Entry(dir, _) = key { Some(*dir) } else { None }).collect();
        for (key, elements) in changed {
            if let Err(error) = self.uncover(key, elements) {
                self.unmended.insert(key.clone());
                first = first.and(Err(error));
            }
        }
        for dir in dirs {
            if let Err(error) = self.renumber(dir) {
                self.unmended.insert(Key::header(dir));
                first = first.and(Err(error));
            }
        }
        for (key, elements) in changed {
            if let Key::Entry(dir, name) = key
                && view::bare(elements).next().is_some()
                && let Err(error) = self.carry_attrs(*dir, name)
            {
                self.unmended.insert(key.clone());
                first = first.and(Err(error));
            }
            if let Err(error) = self.drop_empty_links(key, elements) {
                self.unmended.insert(key.clone());
                first = first.and(Err(error));
            }
        }
        first
    }

    /// Versions under a key that nothing shows get names.
    fn uncover(&mut self, key: &Key, elements: &[Element]) -> FsResult<()> {
        match key {
            Key::Inode(ino) if view::is_nameless(key, elements) => self.drop_nameless(*ino)?,
            Key::Inode(ino) if view::contents(elements).len() > 1 => {
                let mut txn = self.txn();
                self.settled_inode(&mut txn, Located::Inode { ino: *ino, dir: Ino(0) })?;
                self.apply(txn)?;
            }
            Key::Entry(dir, name) if !name.is_header() => {
                let base = self.dir(*dir)?.base_of(name).cloned();
                for name in base.into_iter().chain([name.clone()]) {
                    if self.is_covered(*dir, &name)? {
                        let mut txn = self.txn();
                        self.settle_set(&mut txn, *dir, &name)?;
                        self.apply(txn)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Names under a key, or of what is under it, go where there is no version of the file.
    fn drop_empty_links(&mut self, key: &Key, elements: &[Element]) -> FsResult<()> {
        for element in elements {
            match (key, &element.body) {
                (Key::Inode(ino), Body::Ref { dir, name }) => self.drop_empty_link(*ino, *dir, name)?,
                (Key::Entry(dir, name), Body::Link { ino }) => self.drop_empty_link(*ino, *dir, name)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// It hangs at some of `places` at least. Directories in `reached` lead to the root, and go on doing so: only others are put elsewhere.
    fn repair_dir(&mut self, ino: Ino, places: &Places, reached: &mut HashSet<Ino>) -> FsResult<()> {
        let header = self.dir(ino)?.header().to_vec();
        let home = node::home(&header).map(|(parent, name)| (parent, name.clone()));
        let way = match &home {
            Some(_) => self.way_up(ino, reached)?,
            None => {
                if ino != Ino::LOST_FOUND && self.dir(ino)?.name_of(Ino::LOST_FOUND).is_some() {
                    self.repair_dir(Ino::LOST_FOUND, &Places::new(), reached)?; // not into itself
                }
                Way::Lost(ino)
            }
        };
        let is_lost = match way {
            Way::Root => false,
            Way::Cycle(top) => ino == top,
            // One without a home was removed on one side while something was put into it on the other, or is gone.
            Way::Lost(top) => (ino == top && self.has_entries(ino)?) || (ino == Ino::LOST_FOUND && home.is_some()),
        };
        let mut txn = self.txn();
        if is_lost {
            self.move_to_lost_and_found(&mut txn, ino, &header)?;
        } else if let Some(at) = &home {
            let key = Key::Entry(at.0, at.1.clone());
            let mut set = self.set_in(&txn, &key)?;
            if !set.iter().any(|e| e.body == Body::Dir { ino }) {
                set.push(txn.element(Body::Dir { ino }));
                txn.set(key, set);
                // Both are as new, or who removes it before he hears of this leaves a name without a directory.
                let mut header = header.clone();
                rename::renew_head(&txn, &mut header);
                txn.set(Key::header(ino), header);
            }
        }
        // Entries at places it is not at any more (two renames at once): the header says which one counts.
        let now_at = txn.get(&Key::header(ino)).or(Some(&header)).and_then(|h| node::home(h));
        let now_at = now_at.map(|(parent, name)| (parent, name.clone()));
        let mut others = places.clone();
        others.extend(header.iter().filter_map(|element| match &element.body {
            Body::Head { parent, name, .. } => Some((*parent, name.clone())),
            _ => None,
        }));
        for (parent, name) in others.into_iter().filter(|place| Some(place) != now_at.as_ref()) {
            // Of one that is gone the name is all that is left. That it goes leaves an element in the directory it is in.
            if now_at.is_none() && self.live_dir(parent).is_err() {
                continue;
            }
            let key = Key::Entry(parent, name);
            let mut set = self.set_in(&txn, &key)?;
            let before = set.len();
            set.retain(|e| e.body != Body::Dir { ino });
            if set.len() < before {
                txn.set(key, set);
                if now_at.is_none() {
                    self.touch_dir(&mut txn, parent)?;
                }
            }
        }
        if !txn.change.sets.is_empty() && !txn.leaves_its_dot() {
            self.touch_dir(&mut txn, ino)?;
        }
        self.apply(txn)?;
        match way {
            Way::Cycle(top) | Way::Lost(top) if top != ino && !is_lost => self.repair_dir(top, &Places::new(), reached),
            _ => Ok(()),
        }
    }

    /// Where following the homes of one that has a home leads. Each is looked at once in a repair: they may be deep.
    fn way_up(&mut self, ino: Ino, reached: &mut HashSet<Ino>) -> FsResult<Way> {
        let mut at = ino;
        let mut seen = HashSet::new();
        while !reached.contains(&at) {
            if !seen.insert(at) {
                let mut smallest = at;
                let mut next = at;
                loop {
                    next = node::home(self.dir(next)?.header()).map_or(Ino::ROOT, |(parent, _)| parent);
                    smallest = smallest.min(next);
                    if next == at {
                        break;
                    }
                }
                return Ok(Way::Cycle(smallest));
            }
            match node::home(self.dir(at)?.header()) {
                Some((parent, _)) => at = parent,
                None => return Ok(Way::Lost(at)),
            }
        }
        reached.extend(seen);
        Ok(Way::Root)
    }

    /// Whether the homes of `lost+found` lead to the root, and not by way of this directory.
    fn is_lost_and_found_safe(&mut self, from: Ino) -> FsResult<bool> {
        let (mut at, mut seen) = (Ino::LOST_FOUND, HashSet::new());
        while at != Ino::ROOT {
            if at == from || !seen.insert(at) {
                return Ok(false);
            }
            match node::home(self.dir(at)?.header()) {
                Some((parent, _)) => at = parent,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// `lost+found` is there, and stays there if somebody else removes it meanwhile. People may have put it elsewhere: it stays
    /// there unless it cannot be reached, or only by way of what is put into it.
    fn put_lost_and_found(&mut self, txn: &mut Txn, from: Ino) -> FsResult<()> {
        let is_name = |element: &Element| element.body == Body::Dir { ino: Ino::LOST_FOUND };
        let mut header = self.dir(Ino::LOST_FOUND)?.header().to_vec();
        let home = node::home(&header).map(|(parent, name)| (parent, name.clone()));
        let stays = home.is_some() && self.is_lost_and_found_safe(from)?;
        let place = (Ino::ROOT, Name::new(b"lost+found").unwrap_or_default());
        txn.after(&header);
        if home.is_none() {
            // What is in it belongs to somebody, and is for him alone.
            let perm = Perm { mode: 0o755, uid: 0, gid: 0 };
            header.push(txn.element(Body::Head {
                parent: place.0,
                name: place.1.clone(),
                perm,
                xattrs: Xattrs::new(),
            }));
        } else if stays {
            rename::renew_head(txn, &mut header);
        } else {
            rename::set_home(txn, &mut header, place.0, &place.1);
        }
        txn.set(Key::header(Ino::LOST_FOUND), header);
        if let (Some((parent, name)), false) = (&home, stays) {
            let key = Key::Entry(*parent, name.clone());
            let mut set = self.set_in(txn, &key)?;
            set.retain(|element| !is_name(element));
            txn.set(key, set);
        }
        let (parent, name) = home.filter(|_| stays).unwrap_or(place);
        let key = Key::Entry(parent, name);
        // Beside whatever else has that name.
        let mut set = self.set_in(txn, &key)?;
        let hlc = set.iter().filter(|element| is_name(element)).map(|element| element.hlc).max();
        set.retain(|element| !is_name(element));
        set.push(txn.element_of(Body::Dir { ino: Ino::LOST_FOUND }, hlc.unwrap_or(txn.hlc)));
        txn.set(key, set);
        Ok(())
    }

    fn move_to_lost_and_found(&mut self, txn: &mut Txn, ino: Ino, header: &[Element]) -> FsResult<()> {
        self.put_lost_and_found(txn, ino)?;
        if ino == Ino::LOST_FOUND {
            return Ok(());
        }
        let old_name = node::home(header).map(|(_, name)| name.as_bytes().to_vec()).unwrap_or_default();
        let mut bytes = old_name;
        bytes.truncate(200);
        bytes.extend(format!("{}{:016x}", if bytes.is_empty() { "" } else { "-" }, ino.0).bytes());
        let name = Name::new(&bytes).unwrap_or_default();
        let mut header = header.to_vec();
        // The place it is taken out of (a cycle) must not keep it.
        if let Some((parent, old)) = node::home(&header).map(|(p, n)| (p, n.clone())) {
            let key = Key::Entry(parent, old);
            let mut set = self.set_in(txn, &key)?;
            set.retain(|e| e.body != Body::Dir { ino });
            txn.set(key, set);
        }
        // Where it was, a directory above may have kept others out.
        let perm = match view::latest(&header, |body| matches!(body, Body::Head { .. })) {
            Some(head) => node::attrs(Some(head)).0,
            None => self.owner_inside(ino)?,
        };
        txn.after(&header);
        rename::set_home(txn, &mut header, Ino::LOST_FOUND, &name);
        for element in &mut header {
            if let Body::Head { perm: now, .. } = &mut element.body {
                *now = Perm { mode: 0o700, ..perm };
            }
        }
        txn.set(Key::header(ino), header);
        let key = Key::Entry(Ino::LOST_FOUND, name);
        let mut set = self.set_in(txn, &key)?;
        set.retain(|e| e.body != Body::Dir { ino });
        set.push(txn.element(Body::Dir { ino }));
        txn.set(key, set);
        Ok(())
    }

    /// Whose a directory is of which nothing is left but what is in it: that of the latest of this.
    fn owner_inside(&mut self, ino: Ino) -> FsResult<Perm> {
        let sets: Vec<Vec<Element>> = self.dir(ino)?.sets().map(|(_, elements)| elements.clone()).collect();
        let mut all: Vec<Element> = Vec::new();
        for element in sets.into_iter().flatten() {
            match element.body {
                Body::Dir { ino } => all.extend_from_slice(self.dir(ino)?.header()),
                Body::Link { ino } => all.extend_from_slice(self.inode(ino)?),
                _ => all.push(element),
            }
        }
        Ok(node::attrs(view::latest(&all, |body| matches!(body, Body::Attrs { .. } | Body::Head { .. }))).0)
    }
}
