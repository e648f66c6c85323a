//! Taking in a state of another disk, and giving ours.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::Ordering;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{ActorId, ContentId};
use delugefs_proto::record::{Body, Data, Element, VersionVector};
use nix::errno::Errno;

use super::ballast::BALLAST_BYTES;
use super::room::is_full;
use super::{Core, Engine};
use crate::catalog::{CatalogError, ImportLimits, State};
use crate::namespace::{Brought, Taken, Written, catalog_errno, catalog_error};

/// Tries to join between two changes, before those who make changes have to wait.
const PATIENT_JOINS: u32 = 3;

/// Kept free for removals on a full disk, in bytes: half of what was given up for them.
const REMOVALS_BYTES: u64 = BALLAST_BYTES / 2;
/// A pack may have so many whatever there is: else what is little would not come to a disk that is about to be full.
const PACK_MIN_BYTES: u64 = 1 << 20;

/// Whether our own disk fails, or takes no writes any more: not what was sent, nor how it came.
fn is_our_disk(error: &CatalogError) -> bool {
    match error {
        CatalogError::Io { doing, source, .. } => {
            *doing != "receive" && matches!(source.raw_os_error(), Some(libc::EROFS | libc::EIO))
        }
        _ => false,
    }
}

/// Whether what was received did not fit.
fn is_unfitting(error: &CatalogError) -> bool {
    matches!(error, CatalogError::Io { doing: "receive", source, .. } if source.raw_os_error() == Some(libc::ENOSPC))
}

/// So many bytes; more do not fit.
struct Fitting<'a> {
    pack: &'a mut dyn Read,
    left: u64,
}

impl Read for Fitting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let fits = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if fits == 0 && !buffer.is_empty() {
            return match self.pack.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(Errno::ENOSPC.into()),
            };
        }
        let read = self.pack.read(&mut buffer[..fits])?;
        self.left -= read as u64;
        Ok(read)
    }
}

/// What another disk gets: a state, as the difference to another one.
pub struct Offer {
    /// The state.
    pub state: State,
    /// The other one; `None`: all of it.
    pub base: Option<git2::Oid>,
}

impl Engine {
    /// Told the committed state's commit after every change of it.
    pub fn commits(&self) -> tokio::sync::watch::Receiver<git2::Oid> {
        self.published.subscribe()
    }

    /// The committed state. Everything of it stays here for as long as this lives.
    pub fn committed(&self) -> State {
        self.catalog.state()
    }

    /// How often those who keep states have been told to let go of all but the current one: it takes room that is needed.
    pub fn states_to_go(&self) -> u64 {
        self.cramped.told.load(Ordering::Relaxed)
    }

    /// Tell them. They do so a little later.
    pub(super) fn let_states_go(&self) {
        self.cramped.told.fetch_add(1, Ordering::Relaxed);
        self.published.send_modify(|_| ());
    }

    /// Who makes the changes of this disk.
    pub fn actor(&self) -> ActorId {
        self.actor
    }

    /// Whether other disks are connected: one follows on their behalf, and each is told.
    pub(super) fn is_followed(&self) -> bool {
        self.published.receiver_count() > 1
    }

    pub(super) fn publish_commit(&self) {
        let commit = self.catalog.state().commit;
        self.published.send_if_modified(|last| std::mem::replace(last, commit) != commit);
    }

    /// What another disk must have seen to know every file that has this content as far as this disk knows.
    ///
    /// # Errors
    /// That of the commit; not on a full disk, unless one of these files is what is to be committed: to let contents go is the way out.
    pub fn knowing(&self, content: ContentId) -> FsResult<VersionVector> {
        if let Err(error) = self.commit_recorded() {
            let has_it = |element: &Element| match &element.body {
                Body::Content { data: Data::Stored { content: has, .. }, .. } => *has == content,
                _ => false,
            };
            if !is_full(error.errno) || self.core().ns.pending_sets().values().flatten().any(has_it) {
                return Err(error);
            }
        }
        Ok(self.committed().ctx)
    }

    /// The first of these states of which all is here.
    pub fn known_base(&self, have: &[git2::Oid]) -> FsResult<Option<git2::Oid>> {
        self.catalog.known(have).map_err(catalog_error)
    }

    /// Write a pack for another disk.
    pub fn export(&self, offer: &Offer, out: &mut dyn Write) -> FsResult<()> {
        self.catalog.export(&offer.state, offer.base, out).map_err(|error| match &error {
            // The other disk has gone away, or refuses: nothing is wrong with ours.
            CatalogError::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe => {
                FsError::new(Errno::EPIPE, error.to_string())
            }
            _ => catalog_error(error),
        })
    }

    /// What came of a pack before it was cut off.
    pub fn open_cut(&self, name: &str) -> Option<File> {
        self.catalog.open_cut(name)
    }

    /// Remove it.
    pub fn drop_cut(&self, name: &str) {
        self.catalog.drop_cut(name);
    }

    /// Take in a pack another disk exported, check all of it, and join the state it leads to into ours. On an error
    /// nothing of it is kept, but for what came of one that was cut off, under the name `cut`. What it gives back is the
    /// other disk's state.
    ///
    /// # Errors
    /// On a full disk only when it does not fit beside what removals need: what others removed is a way out too.
    pub fn join(&self, pack: &mut dyn Read, commit: git2::Oid, cut: Option<&str>) -> FsResult<State> {
        self.check_removable()?;
        let limits = ImportLimits::default();
        if self.refusal().is_some() {
            self.commit_recorded()?; // nothing can be joined without, and the pack would stay
        }
        let imported = match self.refusal() {
            // What it leads to is known at its end: until then it may be anything, and must not fill the disk.
            None => {
                let left = self.room_to_take();
                let imported = self.catalog.import(&mut Fitting { pack, left }, commit, &limits, cut);
                if let (Err(error), Some(cut)) = (&imported, cut)
                    && is_unfitting(error)
                {
                    self.catalog.drop_cut(cut); // to go on with it would not help
                }
                imported
            }
            Some(full) => match self.room_to_follow() {
                0 => return Err(full),
                left => self.catalog.import(&mut Fitting { pack, left }, commit, &limits, None),
            },
        };
        let theirs = imported.map_err(|error| match is_our_disk(&error) {
            // Nothing else may write here for a long time: who asks this disk what there is must know that it has stayed behind.
            true => {
                let text = format!("cannot take in the state of another disk: {error}");
                let error = FsError::new(catalog_errno(&error), text);
                // Each try fails at another path: it is no news.
                if self.refusal().is_none_or(|before| before.errno != error.errno) {
                    self.refuse(error.clone());
                }
                error
            }
            false => FsError::new(catalog_errno(&error), format!("refused the state of another disk: {error}")),
        })?;
        for attempt in 0.. {
            self.commit()?;
            if let Some(brought) = self.join_state(&theirs, attempt >= PATIENT_JOINS)? {
                // What had no file here any more may have one there: it must not go when room is needed.
                if let Err(error) = self.store.take_back_all(&brought.stored) {
                    tracing::warn!("what is needed again is still in the trash: {error}");
                }
                break;
            }
        }
        Ok(theirs)
    }

    /// Join a state into ours. `None`: something was changed since the commit, and that is not to be committed with writers waiting.
    fn join_state(&self, theirs: &State, may_commit: bool) -> FsResult<Option<Brought>> {
        let _one = self.commit_lock.lock();
        let mut has_committed = false;
        let joined = self.change(None, |core| {
            if self.has_ended() {
                return Err(FsError::new(Errno::EAGAIN, "this disk is being stopped"));
            }
            if core.ns.is_dirty() {
                if !may_commit {
                    return Ok(None);
                }
                self.commit_locked(core)?;
                has_committed = true;
            }
            let Core { ns, staged, .. } = core;
            let has_more = |ino| staged.get(ino).is_some_and(|staged| self.has_more(ino, staged));
            let noted = RefCell::new(Vec::new());
            let note = |taken: &[Taken]| *noted.borrow_mut() = self.note_lost_names(staged, taken);
            let joined = ns.join(theirs, &Written { files: staged.written(), has_more: &has_more, note: &note });
            // Also where the join has failed after that: what is written down is not so then, and is written anew.
            for (ino, written) in noted.into_inner() {
                if let Some(staged) = staged.get_mut(ino) {
                    staged.was_noted(ino, written);
                }
                staged.has_met(ino);
            }
            let brought = joined?;
            for taken in &brought.taken {
                core.staged.lose_name(taken);
            }
            // Before it is asked who has met what.
            core.renew_bases();
            for (ino, dot) in &brought.back {
                core.staged.began_from(*ino, *dot);
            }
            for (ino, versions) in &brought.versions {
                core.staged.meet(*ino, versions);
            }
            // What was recorded of one that is being written is older than that.
            brought
                .departed
                .iter()
                .filter(|ino| core.staged.get(**ino).is_some())
                .for_each(|ino| core.ns.forget_departed(*ino));
            Ok(Some(brought))
        });
        // With nobody waiting. Else the next commit would find no emptied segment, and write a new one with all waiting.
        if has_committed && let Err(error) = self.journal.retire() {
            tracing::warn!("cannot drop what is committed from the journal: {error}"); // the next commit tries again
        }
        let joined = joined?;
        if let Some(brought) = &joined {
            // What was fsynced has its name in the log only, and the joined state, without it, is on the disk.
            if !brought.back.is_empty() {
                self.sync_records()?;
            }
            for step in &brought.successions {
                self.store.note_version(step.ino, step.newer, step.older);
            }
            self.publish_commit();
        }
        Ok(joined)
    }

    /// How large what comes from others may be on a full disk, in bytes: it takes as much again to join it.
    fn room_to_follow(&self) -> u64 {
        self.store.free_space().map_or(0, |space| space.available.saturating_sub(REMOVALS_BYTES) / 2)
    }

    /// Most bytes of a pack that may come to a disk that is not full: a quarter of what is free stays, whatever it is.
    fn room_to_take(&self) -> u64 {
        let available = self.store.free_space().map_or(0, |space| space.available);
        (available / 4 * 3).max(PACK_MIN_BYTES)
    }

    /// Commit the rest with writers waiting: who writes all the time must not keep the states of others out.
    fn commit_locked(&self, core: &mut Core) -> FsResult<()> {
        let (changes, ctx) = core.ns.begin_commit()?;
        let done = self
            .sync_named(&changes)
            .and_then(|()| self.catalog.commit(&changes, &ctx).map(drop).map_err(catalog_error));
        drop(changes);
        match done {
            Ok(()) => core.ns.committed(),
            Err(_) => core.ns.commit_failed(),
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};

    use delugefs_proto::local_pb as pb;

    use super::super::recover::tests::{fresh, start};
    use super::*;
    use crate::engine::Opening;
    use crate::namespace::JOINED;

    #[test]
    fn what_is_wrong_with_our_own_disk_is_told_from_what_was_sent() {
        let failed = |doing, errno| CatalogError::Io {
            doing,
            path: "pack".into(),
            source: std::io::Error::from_raw_os_error(errno),
        };
        assert!(is_our_disk(&failed("create", libc::EROFS)) && is_our_disk(&failed("sync", libc::EIO)));
        assert!(!is_our_disk(&failed("receive", libc::EIO)) && !is_our_disk(&failed("write", libc::ENOSPC)));
        assert!(!is_our_disk(&CatalogError::Refused("it is no state".into())));
    }

    fn follow(engine: &Engine, other: &Engine) {
        other.commit().unwrap();
        let (offer, mut pack) = (Offer { state: other.committed(), base: None }, Vec::new());
        other.export(&offer, &mut pack).unwrap();
        engine.join(&mut &pack[..], offer.state.commit, None).unwrap();
    }

    /// With a large state that takes seconds, and the most memory.
    #[test]
    fn what_was_written_outlives_a_worker_that_is_killed_in_the_join_that_takes_its_name() {
        for is_closed in [true, false] {
            let ((dir, one), (_other, two)) = (fresh(), fresh());
            let q = pb::Create { dir: 1, name: "f".into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
            let (answer, Opening::File { handle, file }) = one.engine.create(1, false, &q).unwrap() else { panic!() };
            file.write_all_at(b"0", 0).unwrap();
            drop(file);
            one.engine.close(1, handle, false).unwrap();
            let ino = answer.node.unwrap().ino;
            let q = pb::SetAttr { ino, dir: 1, mtime: Some(7), ..Default::default() };
            one.engine.set_attr(1, &q).unwrap();
            follow(&two.engine, &one.engine);
            let q = pb::Open { ino, dir: 1, write: true, truncate: false };
            let Opening::File { handle, file } = one.engine.open(1, &q).unwrap().1 else { panic!() };
            // Its lock keeps it from being sealed.
            let (kept, image) = (file.try_clone().unwrap(), tempfile::tempdir().unwrap());
            if is_closed {
                file.write_all_at(b"1", 0).unwrap();
                one.engine.close(1, handle, false).unwrap();
            }
            let q = pb::Unlink { dir: 1, name: "f".into(), ..Default::default() };
            two.engine.unlink(1, false, &q).unwrap();
            let (root, to) = (dir.path().join("d"), image.path().to_owned());
            JOINED.set(Some(Box::new(move || {
                if !is_closed {
                    file.write_all_at(b"1", 0).unwrap();
                }
                assert!(std::process::Command::new("cp").arg("-a").args([&root, &to]).status().unwrap().success());
            })));
            follow(&one.engine, &two.engine);
            JOINED.set(None);
            let again = start(&image.path().join("d"));
            let begin = Instant::now();
            while again.engine.status().unwrap().staged_files > 0 {
                assert!(begin.elapsed() < Duration::from_secs(30), "something stays staged");
                std::thread::yield_now();
            }
            let (_, listing) = again.engine.read_dir(&pb::ReadDir { dir: 1, after: "".into(), limit: 10 }).unwrap();
            let names: Vec<_> = listing.entries.iter().map(|entry| &entry.name[..]).collect();
            assert_eq!(names, [b"f"], "closed: {is_closed}");
            let q = pb::Open { ino: listing.entries[0].attr.as_ref().unwrap().ino, dir: 1, ..Default::default() };
            let Opening::Inline(bytes) = again.engine.open(1, &q).unwrap().1 else { panic!() };
            assert_eq!(&bytes[..], b"1", "closed: {is_closed}");
            again.stop().unwrap();
            drop(kept);
            if !is_closed {
                one.engine.close(1, handle, false).unwrap();
            }
            [one, two].into_iter().for_each(|running| running.stop().unwrap());
        }
    }

    /// What was changed since the commit is committed with writers waiting; the next commit must not write 4 MiB while they wait.
    #[test]
    fn a_join_leaves_an_emptied_segment_for_the_next_commit() {
        let (_dir, running) = fresh();
        let engine = &running.engine;
        engine.commit().unwrap();
        let theirs = engine.committed();
        // Unless the committing thread comes first.
        for n in 0.. {
            let q = pb::SetAttr { ino: 1, dir: 1, mtime: Some(n), ..Default::default() };
            engine.set_attr(1, &q).unwrap();
            if engine.join_state(&theirs, false).unwrap().is_none() {
                break;
            }
        }
        assert!(engine.join_state(&theirs, true).unwrap().is_some());
        assert!(engine.journal.has_spare());
        running.stop().unwrap();
    }
}
