//! The operation log: every acknowledged change of the catalog, until a commit has made it part of git.
//!
//! ROOT/journal/ holds preallocated *segments*, `log-<first lsn>`, and `state`. A record is what the catalog's keys were
//! set to, so replaying is idempotent. Appending is one write(2): a process crash loses nothing that was appended.
//! [`Journal::sync`] is one fdatasync of a file whose blocks exist already, which is why fsync(2) through a mount is
//! cheap; it is shared by all who wait for it at the same time. A commit moves the log to a new segment
//! ([`Journal::rotate`]) and drops the old ones when it is durable ([`Journal::retire`]).
//!
//! **On a full disk** the log must go on: removals are written to it. So an emptied segment is kept to be used again, also
//! over a restart, and where there is none the log stays in the segment it has. Then it holds records that a commit has
//! taken over. Such records are recognised when they are replayed: the committed version vector covers their dots.
//!
//! Everything is opened relative to the folder's descriptor, and never through a symbolic link.

mod record;
mod segment;
mod state;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use delugefs_proto::ids::{ActorId, random_u64};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::Mutex;

use self::record::{HEADER_BYTES, RECORD_MAX_BYTES};
use self::segment::{SEGMENT_BYTES, SPARE, Segment};
use crate::catalog::Changes;
use crate::os;

/// Lsns skipped at each start: they must not collide with records behind a damaged one.
const LSN_JUMP: u64 = 1 << 20;

/// The log of one disk. All methods take `&self`; appends are ordered by the caller's own lock.
pub struct Journal {
    dir: File,
    inner: Mutex<Inner>,
    synced: Mutex<u64>,
}

struct Inner {
    current: Segment,
    /// Rotated away, not yet retired. The oldest first.
    old: Vec<Segment>,
    /// There is an emptied segment to be used again, so that its blocks need not be allocated anew.
    has_spare: bool,
    /// A segment was dropped, and may come back when the machine goes down.
    has_dropped: bool,
    /// The last segment that was begun is not used, for the folder could not be synced.
    has_unused: bool,
    /// Nothing is appended any more.
    has_ended: bool,
    next_lsn: u64,
}

/// See [`Journal::to_sync`].
struct ToSync {
    /// The folder, for a segment was dropped.
    has_dropped: bool,
    /// Their first lsns, files, and errors of earlier syncs.
    segments: Vec<(u64, Arc<File>, Option<Errno>)>,
    /// The lsn behind the last record in them.
    upto: u64,
}

/// What [`Journal::open`] found.
pub struct Recovered {
    /// Changes that no commit has taken over, and perhaps some before them that one has.
    pub changes: Vec<Changes>,
    /// Who this disk is as a writer from now on.
    pub actor: ActorId,
    /// The last stop was a clean one.
    pub clean: bool,
    /// A sentence about a damaged end of the log, if there was one.
    pub damage: Option<String>,
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("cannot {0} the journal")]
    Io(&'static str, #[source] io::Error),
    /// A whole record that does not decode: what it says was acknowledged, and must not be dropped.
    #[error(
        "record {lsn} of the journal was written by a newer version of delugefs: upgrade delugefs; nothing was touched"
    )]
    Newer {
        /// Its number.
        lsn: u64,
    },
}

impl JournalError {
    /// The errno behind it.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io(_, source) => os::errno(source),
            Self::Newer { .. } => Errno::EIO,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(os::errno(error), Errno::ENOSPC | Errno::EDQUOT)
}

/// Begin a segment. One that got its name but whose folder could not be synced is not used: the log may go on in the one before, and
/// then that name would be behind later records, as one that has lost its end. It goes with the `old` ones.
fn begin(dir: &File, with_spare: bool, first_lsn: u64, old: &mut Vec<Segment>) -> io::Result<Segment> {
    let segment = match with_spare {
        true => Segment::reuse(dir, first_lsn)?,
        false => Segment::create(dir, first_lsn)?,
    };
    // An attempt before this one had the same name.
    old.retain(|failed| failed.first_lsn != first_lsn);
    match segment::sync_folder(dir) {
        Ok(()) => Ok(segment),
        Err(errno) => {
            old.push(segment);
            Err(errno.into())
        }
    }
}

impl Journal {
    /// Open the log in a disk's journal folder, making it when the folder is empty.
    ///
    /// # Errors
    /// Nothing was changed when a record is of a newer version or cannot be read. `ENOSPC` when there is no room for a
    /// new segment.
    pub fn open(dir: File) -> Result<(Self, Recovered), JournalError> {
        let io = |doing: &'static str| move |errno: Errno| JournalError::Io(doing, errno.into());
        let names = os::names(&dir, ".").map_err(io("list"))?;
        let mut first_lsns: Vec<u64> = names.iter().filter_map(|name| segment::first_lsn(name)).collect();
        first_lsns.sort_unstable();
        let mut changes = Vec::new();
        let (mut damage, mut is_cut) = (None, false);
        let mut next_lsn = first_lsns.first().map_or(1, |lsn| *lsn);
        let mut old = Vec::with_capacity(first_lsns.len());
        for first_lsn in first_lsns {
            // A segment begun after an unclean start jumps ahead (below); its writer knew all that could be read before. One that
            // follows closer is of the same life as the one before, which has lost its end: a change must not be taken without
            // those before it, nor was any behind a loss ever said to be on stable storage.
            let gap = first_lsn.saturating_sub(next_lsn);
            is_cut = gap < LSN_JUMP && (is_cut || gap > 0);
            next_lsn = next_lsn.max(first_lsn);
            let name = segment::name(first_lsn);
            let file = os::open_file(&dir, &name, OFlag::O_RDWR).map_err(io("open"))?;
            let mut end = 0;
            let mut behind = Vec::new();
            let into = if is_cut { &mut behind } else { &mut changes };
            let replayed = record::replay(&file, &mut end, &mut next_lsn, into);
            if !behind.is_empty() {
                damage = Some(format!("journal: {} changes in {name} follow on lost ones", behind.len()));
            }
            if let Err(why) = replayed {
                match why {
                    record::End::Damaged(text) => damage = Some(format!("journal: {text} in {name}")),
                    record::End::Newer(lsn) => return Err(JournalError::Newer { lsn }),
                    record::End::Io(error) => return Err(JournalError::Io("read", error)),
                }
            }
            old.push(Segment { first_lsn, file: Arc::new(file), end, failed: None });
        }
        let clean = state::is_clean(&dir);
        // What a crash left unfinished goes. A spare segment stays: without old ones it is not certain that all its lsns
        // are lower than those to come.
        let has_spare = !old.is_empty() && names.iter().any(|name| name == SPARE);
        for name in names.iter().filter(|name| name.starts_with("tmp-") && !(has_spare && *name == SPARE)) {
            unlinkat(&dir, name.as_str(), UnlinkatFlags::NoRemoveDir).map_err(io("tidy"))?;
        }
        // This disk may have published what it no longer knows: after anything but a clean stop, and also after a clean one
        // when it was put back to an older state (a restored backup, a snapshot rolled back) or is a clone, which cannot
        // be told from the folder. With the same numbers for other changes both would be lost: it becomes somebody else.
        let actor = ActorId(random_u64());
        state::write(&dir, actor, false).map_err(|error| JournalError::Io("note the start in", error))?;
        // Never write behind a possibly damaged end: begin a new segment.
        let jumped = next_lsn.saturating_add(LSN_JUMP);
        let mut failed = Vec::new();
        let (current, next_lsn) = match begin(&dir, has_spare, jumped, &mut failed) {
            Ok(segment) => (segment, jumped),
            // Without room for that the end is not damaged, and the log goes on there.
            Err(error) if is_full(&error) && damage.is_none() && !old.is_empty() => {
                (old.remove(old.len() - 1), next_lsn)
            }
            Err(error) => return Err(JournalError::Io("begin a segment of", error)),
        };
        let has_unused = !failed.is_empty();
        old.extend(failed);
        let inner =
            Inner { current, old, has_spare: false, has_dropped: false, has_unused, has_ended: false, next_lsn };
        let journal = Self { dir, inner: inner.into(), synced: 0.into() };
        Ok((journal, Recovered { changes, actor, clean: clean && damage.is_none(), damage }))
    }

    /// Append a change. When this returns, the change survives the end of this process; [`Self::sync`] makes it survive
    /// the end of the machine. On an error nothing was appended.
    ///
    /// # Errors
    /// `EFBIG` for what would not be taken back at the next start, nor anything after it; `EAGAIN` after [`Self::end`].
    pub fn append(&self, change: &Changes) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if inner.has_ended {
            return Err(Errno::EAGAIN.into());
        }
        let mut record = record::encode(inner.next_lsn, change);
        if record.len() - HEADER_BYTES > RECORD_MAX_BYTES {
            return Err(Errno::EFBIG.into());
        }
        let at = inner.current.end;
        inner.current.end += record.len() as u64;
        // Behind it an empty header, which the next record replaces: in a segment used again there is the middle of
        // some old record, and a reader would take it for damage.
        record.resize(record.len() + HEADER_BYTES, 0);
        if let Err(error) = inner.current.file.write_all_at(&record, at) {
            inner.current.end = at;
            return Err(error);
        }
        inner.next_lsn += 1;
        Ok(())
    }

    /// Make everything appended before the call durable.
    ///
    /// # Errors
    /// That of the sync. It lasts until a commit has taken the records over: what the sync was about may be lost although
    /// a later one succeeds.
    pub fn sync(&self) -> io::Result<()> {
        let want = self.inner.lock().next_lsn;
        let mut synced = self.synced.lock();
        if *synced >= want {
            return Ok(());
        }
        let to_sync = self.to_sync();
        self.sync_these(&mut synced, to_sync)
    }

    /// All that a sync is about, as of one moment.
    fn to_sync(&self) -> ToSync {
        let mut inner = self.inner.lock();
        let has_dropped = std::mem::take(&mut inner.has_dropped);
        // Old segments too: until retired they hold what is being committed.
        let all = inner.old.iter().chain([&inner.current]);
        let segments = all.map(|s| (s.first_lsn, s.file.clone(), s.failed)).collect();
        ToSync { has_dropped, segments, upto: inner.next_lsn }
    }

    fn sync_these(&self, synced: &mut u64, ToSync { has_dropped, segments, upto }: ToSync) -> io::Result<()> {
        // A dropped one that comes back, perhaps without its records, would have a gap behind it: what is in the next would not be
        // believed. One that is dropped from here on is among the segments.
        if has_dropped && let Err(errno) = segment::sync_folder(&self.dir) {
            self.inner.lock().has_dropped = true;
            return Err(errno.into());
        }
        for (first_lsn, file, failed) in segments {
            let synced = failed.map_or_else(|| file.sync_data(), |errno| Err(errno.into()));
            if let Err(error) = synced {
                let mut inner = self.inner.lock();
                let Inner { current, old, .. } = &mut *inner;
                let failed = old.iter_mut().chain([current]).find(|segment| segment.first_lsn == first_lsn);
                // Retired meanwhile: then a commit has it.
                if let Some(segment) = failed {
                    segment.failed = Some(os::errno(&error));
                    return Err(error);
                }
            }
        }
        *synced = upto;
        Ok(())
    }

    /// Begin a new segment; what was appended so far can be retired once it is committed. Without room for one the log
    /// goes on in the segment it has.
    pub fn rotate(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let first_lsn = inner.next_lsn;
        if inner.current.first_lsn == first_lsn {
            return Ok(());
        }
        let begun = match inner.has_unused {
            // Before another one is made: there would be one more for each attempt, and no commit drops them while none succeeds.
            true => segment::sync_folder(&self.dir).map_err(io::Error::from),
            false => Ok(()),
        };
        let begun = begun.and_then(|()| {
            let with_spare = std::mem::take(&mut inner.has_spare);
            let begun = begin(&self.dir, with_spare, first_lsn, &mut inner.old);
            inner.has_unused = begun.is_err() && inner.old.last().is_some_and(|unused| unused.first_lsn == first_lsn);
            begun
        });
        if begun.is_err() {
            // It may have got its new name, and then failed.
            inner.has_spare = fstatat(&self.dir, SPARE, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok();
        }
        let segment = match begun {
            Err(error) if is_full(&error) => return Ok(()),
            begun => begun?,
        };
        let old = std::mem::replace(&mut inner.current, segment);
        inner.old.push(old);
        Ok(())
    }

    /// Drop all segments before the current one: a commit has made what they hold durable. The oldest first, and none
    /// behind one that cannot be dropped: replaying must never go back from a later record to an earlier one.
    pub fn retire(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        while let Some(segment) = inner.old.first() {
            let name = segment::name(segment.first_lsn);
            // The old records in it have lower lsns than any new one, so they cannot be taken for new ones.
            let is_fit =
                !inner.has_spare && segment.failed.is_none() && segment.file.metadata()?.len() == SEGMENT_BYTES;
            if is_fit {
                renameat(&self.dir, name.as_str(), &self.dir, SPARE)?;
                inner.has_spare = true;
            } else {
                unlinkat(&self.dir, name.as_str(), UnlinkatFlags::NoRemoveDir)?;
            }
            inner.old.remove(0);
            inner.has_dropped = true;
        }
        Ok(())
    }

    /// Whether all of it is on stable storage.
    #[cfg(test)]
    pub fn is_synced(&self) -> bool {
        let want = self.inner.lock().next_lsn;
        *self.synced.lock() >= want
    }

    /// Whether the next segment is there already.
    #[cfg(test)]
    pub fn has_spare(&self) -> bool {
        self.inner.lock().has_spare
    }

    /// Bytes appended to the current segment.
    pub fn len_bytes(&self) -> u64 {
        self.inner.lock().current.end
    }

    /// Append nothing from now on: a commit after that has all.
    pub fn end(&self) {
        self.inner.lock().has_ended = true;
    }

    /// Whether [`Self::end`] was called.
    pub fn has_ended(&self) -> bool {
        self.inner.lock().has_ended
    }

    /// Note that everything is committed and this disk stops cleanly. Only after [`Self::end`]: what was changed between the last commit
    /// and this would not be looked at by the next start.
    pub fn close(&self, actor: ActorId) -> io::Result<()> {
        state::write(&self.dir, actor, true)
    }
}
