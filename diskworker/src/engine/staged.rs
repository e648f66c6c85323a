//! The table of staged files: which inodes have one, who writes them, and what is being done with them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Data, Dot};

use super::SessionId;
use crate::content::Stamp;
use crate::namespace::Taken;
use crate::view::derived_ino;

/// Longest pause before a file that cannot be sealed is tried again.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// What somebody does with a staged file outside the lock, to come back to the table afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing.
    #[default]
    None,
    /// It is being made: whoever wants to write waits. Readers still get the recorded content.
    Making,
    /// It is being hashed. Opening it for writing makes the hash worthless (`opened` grows), no more.
    Sealing,
}

/// A file in ROOT/staging.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// Number of this entry. A file that was sealed and opened again has another one: who comes back to the table after
    /// working without the lock must not take it for his.
    pub entry: u64,
    /// Directory to look for the node in first.
    pub dir: Ino,
    /// Open write handles.
    pub writers: usize,
    /// The only session that has opened it. It knows what it wrote: the seal is no news to it. Of two none knows all.
    pub session: Option<SessionId>,
    /// The versions of the content its writers started from; after a restart those that were there then, or where others had changed it
    /// meanwhile what was noted, or none. `None`, in whose place all versions go, is no file's that has a writer.
    pub base: Option<Vec<Dot>>,
    /// The staged file when it was made, empty or as a copy: while it has that stamp, the change time of the record is shown.
    pub made: Option<Stamp>,
    /// It was made as a copy, or empty for a new record, and whoever had it open has said that nothing was written. Not every stamp tells
    /// that ([`Stamp::tells`]).
    pub unwritten: bool,
    /// What is being done with it outside the lock.
    pub work: Work,
    /// Grows when the file is opened for writing, or its time is set: what a seal has seen before is of no use.
    pub opened: u64,
    /// Seals that failed, one after the other.
    pub failures: u32,
    /// Not to be sealed before: a disk that cannot read a large file need not try every second.
    pub not_before: Option<Instant>,
    /// When it was closed first with something that is not recorded yet.
    pub closed: Option<Instant>,
    /// Its name in the folder has been made durable by an fsync.
    pub name_synced: bool,
    /// Somebody was told that what he wrote is on stable storage, or may have been before a restart: the staged file must
    /// not go before what replaces it is there.
    pub promised: bool,
    /// The staged file when it was recorded last, and stayed.
    pub recorded: Option<Stamp>,
    /// What was recorded of it at a start that found it, and with which time of the last change.
    pub found: Option<(Data, i64)>,
    /// What is written down of it for the next start.
    pub noted: Vec<u8>,
    /// When that failed last, until it succeeds.
    pub not_noted: Option<Instant>,
    /// The number that the file has got while it was written; this one is another file's.
    pub number: Option<Ino>,
    /// A join has taken its last name. It gets it back when what was written is recorded.
    pub taken: Option<Taken>,
}

/// A write handle that was closed.
pub(super) struct Closed {
    pub ino: Ino,
    /// Directory to look for the node in first; 0 when it is not staged any more.
    pub dir: Ino,
    /// Nobody else has it open for writing.
    pub is_last: bool,
    /// Another session had it open for writing too.
    pub shared: bool,
}

impl Staged {
    /// Whether the file with this stamp is as it was made.
    pub fn is_as_made(&self, now: &Stamp) -> bool {
        self.made.is_some_and(|made| made.is_same(now))
    }

    /// Whether it was closed so long ago, and nothing of that is recorded although nobody writes it now.
    pub fn is_overdue(&self, age: Duration) -> bool {
        let now = Instant::now();
        let may_be_sealed = self.writers == 0 && self.not_before.is_none_or(|time| time <= now);
        may_be_sealed && self.closed.is_some_and(|closed| now.saturating_duration_since(closed) >= age)
    }

    /// Sealing it has failed: the next try is later than the last one was.
    pub fn failed(&mut self) {
        self.failures += 1;
        let pause = Duration::from_secs(1 << self.failures.min(9)).min(RETRY_MAX);
        self.not_before = Some(Instant::now() + pause);
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct StagedTable {
    files: HashMap<Ino, Staged>,
    /// Of which session, and of which entry of which file.
    handles: HashMap<u64, (SessionId, Ino, u64)>,
    /// Entries so far.
    entries: u64,
    /// Files that others have changed since they were opened.
    met: HashSet<Ino>,
}

impl StagedTable {
    pub fn get(&self, ino: Ino) -> Option<&Staged> {
        self.files.get(&ino)
    }

    pub fn get_mut(&mut self, ino: Ino) -> Option<&mut Staged> {
        self.files.get_mut(&ino)
    }

    pub fn is_idle(&self, ino: Ino) -> bool {
        self.files.get(&ino).is_none_or(|s| s.work == Work::None)
    }

    /// A new entry; its number is given here.
    pub fn insert(&mut self, ino: Ino, staged: Staged) {
        self.entries += 1;
        self.met.remove(&ino);
        self.files.insert(ino, Staged { entry: self.entries, ..staged });
    }

    /// This very entry, if it is still there.
    pub fn same(&mut self, ino: Ino, entry: u64) -> Option<&mut Staged> {
        self.files.get_mut(&ino).filter(|staged| staged.entry == entry)
    }

    pub fn remove(&mut self, ino: Ino) {
        self.files.remove(&ino);
        self.met.remove(&ino);
    }

    /// A version has another dot now, and its writers still started from it. Without this a rename or a link between
    /// opening and sealing would leave the old version beside the new one, as a conflict.
    pub fn renew_base(&mut self, ino: Ino, old: Dot, new: Dot) {
        // One that has just got this number is known by another one here.
        let was = |(was, staged): (&Ino, &Staged)| {
            let had = staged.base.iter().flatten().any(|dot| *dot == old);
            (had && (staged.number == Some(ino) || derived_ino(*was, old) == ino)).then_some(*was)
        };
        let is_known = self.files.is_empty() || self.files.contains_key(&ino);
        let number = if is_known { None } else { self.files.iter().find_map(was) };
        self.met.extend(number);
        let staged = self.files.get_mut(&number.unwrap_or(ino));
        let base = staged.and_then(|staged| {
            staged.number = number.map(|_| ino).or(staged.number);
            staged.base.as_mut()
        });
        if let Some(dot) = base.into_iter().flatten().find(|dot| **dot == old) {
            *dot = new;
        }
    }

    /// All files here and the directories that have them, for a join.
    pub fn written(&self) -> HashMap<Ino, Ino> {
        self.files.iter().map(|(ino, staged)| (*ino, staged.dir)).collect()
    }

    /// What is written to a file comes in place of this version, too.
    pub fn began_from(&mut self, ino: Ino, dot: Dot) {
        if let Some(base) = self.files.get_mut(&ino).and_then(|staged| staged.base.as_mut()) {
            base.push(dot);
        }
    }

    /// A join has taken its last name.
    pub fn lose_name(&mut self, taken: &Taken) {
        if let Some(staged) = self.files.get_mut(&taken.ino) {
            staged.taken = Some(taken.clone());
            self.met.insert(taken.ino);
        }
    }

    /// It has another number now, and its own is another file's.
    pub fn renumber(&mut self, ino: Ino, number: Ino) {
        if let Some(staged) = self.files.get_mut(&ino) {
            staged.number.get_or_insert(number);
            self.met.insert(ino);
        }
    }

    /// There are these versions of a file: it has met another when it is being written, and they are not only such as its writers started from.
    pub fn meet(&mut self, ino: Ino, versions: &[Dot]) {
        let base = self.files.get(&ino).and_then(|staged| staged.base.as_ref());
        if base.is_some_and(|base| versions.iter().any(|dot| !base.contains(dot))) {
            self.met.insert(ino);
        }
    }

    /// Whether its writers start from all of these versions and no other.
    pub fn is_from(&self, ino: Ino, versions: &[Dot]) -> bool {
        let base = self.files.get(&ino).and_then(|staged| staged.base.as_ref());
        base.is_some_and(|base| base.len() == versions.len() && versions.iter().all(|dot| base.contains(dot)))
    }

    /// Something is written down of it, or was to be.
    pub fn has_met(&mut self, ino: Ino) {
        self.met.insert(ino);
    }

    /// Whether others have changed it since it was opened, and that is not written down.
    pub fn is_unnoted(&self, ino: Ino) -> bool {
        self.met.contains(&ino) && self.files.get(&ino).is_some_and(|staged| staged.noted.is_empty())
    }

    /// Files that others have changed since they were opened.
    pub fn met(&self) -> Vec<Ino> {
        self.met.iter().copied().collect()
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Note a write handle. The file must be in the table.
    pub fn open(&mut self, handle: u64, session: SessionId, ino: Ino) {
        if let Some(staged) = self.files.get_mut(&ino) {
            staged.writers += 1;
            staged.session = match staged.session {
                None if staged.opened == 0 => Some(session),
                before => before.filter(|before| *before == session),
            };
            staged.opened += 1;
            self.handles.insert(handle, (session, ino, staged.entry));
        }
    }

    /// A write handle is closed.
    pub fn close(&mut self, session: SessionId, handle: u64, unwritten: bool) -> Option<Closed> {
        let &(owner, ino, entry) = self.handles.get(&handle)?;
        if owner != session {
            return None;
        }
        self.handles.remove(&handle);
        // Not of an entry that the file has got since: it is not one of those that count there.
        Some(match self.same(ino, entry) {
            Some(staged) => {
                staged.writers -= 1;
                staged.unwritten &= unwritten;
                if staged.writers == 0 && !staged.unwritten {
                    staged.closed.get_or_insert_with(Instant::now);
                }
                Closed { ino, dir: staged.dir, is_last: staged.writers == 0, shared: staged.session.is_none() }
            }
            None => Closed { ino, dir: Ino(0), is_last: false, shared: false }, // unlinked meanwhile
        })
    }

    /// The file a session's write handle is of, while that is the staged one.
    pub fn file_of(&self, session: SessionId, handle: u64) -> Option<Ino> {
        let &(owner, ino, entry) = self.handles.get(&handle)?;
        (owner == session && self.files.get(&ino).is_some_and(|staged| staged.entry == entry)).then_some(ino)
    }

    /// Whether there is a handle of this number, of whatever session and file.
    pub fn has_handle(&self, handle: u64) -> bool {
        self.handles.contains_key(&handle)
    }

    /// All handles of a session.
    pub fn handles_of(&self, session: SessionId) -> Vec<u64> {
        self.handles.iter().filter(|(_, (owner, ..))| *owner == session).map(|(handle, _)| *handle).collect()
    }

    /// Files nobody writes and nobody works on, and that are not to be left alone at this time: what is left to be sealed.
    pub fn waiting(&self, now: Instant) -> Vec<Ino> {
        let is_waiting =
            |s: &Staged| s.writers == 0 && s.work == Work::None && s.not_before.is_none_or(|time| time <= now);
        self.files.iter().filter(|(_, s)| is_waiting(s)).map(|(ino, _)| *ino).collect()
    }

    /// Whatever kept files from being sealed may be over.
    pub fn retry_now(&mut self) {
        self.files.values_mut().for_each(|staged| staged.not_before = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_of_a_file_that_lost_its_name_is_none_of_its_successor() {
        let (mut table, ino) = (StagedTable::default(), Ino(77));
        table.insert(ino, Staged::default());
        table.open(1, 5, ino);
        table.remove(ino);
        table.insert(ino, Staged::default());
        table.open(2, 5, ino);
        assert!(table.close(5, 1, false).is_some_and(|closed| !closed.is_last));
        assert_eq!(table.get(ino).map(|staged| staged.writers), Some(1));
        assert!(table.close(6, 2, false).is_none(), "of another session");
        assert!(table.close(5, 2, false).is_some_and(|closed| closed.is_last));
    }
}
