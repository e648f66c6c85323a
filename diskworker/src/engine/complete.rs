//! A file that gets a name by rename(2) or link(2) is complete under it. Other disks know a file by its record, and a record
//! has no content before the file is sealed; so what was written until the call is recorded before the name is. Otherwise
//! other hosts would see an empty file in the place of an older one, and if this disk were lost in that moment, the older
//! content had no name any more.
//!
//! Nothing is held back in the catalog instead: a change that is not in a commit while later ones of the same disk are would
//! count there as seen and removed.

use std::time::{Duration, Instant};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::Ino;
use delugefs_proto::record::Name;
use nix::errno::Errno;

use super::room::is_full;
use super::seal::{Size, stored};
use super::staged::Work;
use super::{Engine, SessionId};
use crate::content::{Seal, StagedStat};
use crate::namespace::{Kind, NewContent};

/// A file that comes in no other one's place is sealed before it comes when it is no larger: hashing that takes some 20 ms,
/// and the kernel keeps the directory locked meanwhile.
const QUICK_MAX_BYTES: u64 = 16 << 20;
/// A close that was sent before the rename has come by then; more for larger files, as a copy costs more.
const CLOSE_COMES: Duration = Duration::from_millis(2);
/// Seals in vain before a copy is made (each time somebody has opened the file for writing), and copies before the name
/// comes all the same (each time somebody has cut it).
const TRIES: u32 = 3;

impl Engine {
    /// To be called before a node gets the second name: instead of the first, or beside it.
    pub(super) fn complete(&self, from: (Ino, &Name), to: (Ino, &Name), exchange: bool) -> FsResult<()> {
        let (ino, other) = {
            let mut core = self.core();
            if core.staged.len() == 0 {
                return Ok(());
            }
            let Ok(moved) = core.ns.lookup(from.0, from.1) else { return Ok(()) };
            let other = core.ns.lookup(to.0, to.1).ok().filter(|other| matches!(other.kind, Kind::File(_)));
            (moved.ino, other.map(|other| other.ino))
        };
        match other {
            Some(other) if exchange => {
                self.complete_file(other, u64::MAX)?;
                self.complete_file(ino, u64::MAX)
            }
            Some(_) => {
                self.complete_file(ino, u64::MAX)?;
                self.sync_open(ino)
            }
            None => self.complete_new(ino),
        }
    }

    /// One that stays open is sealed from its staging file in the end, also after a loss of power: what is there of it then takes the
    /// place of the other one, so it must be there. A file that is sealed needs no such wait: where its bytes did not reach the disk
    /// the start sees that (`lost.rs`), and the other one has its name still. Nor does one that is recorded and whose staging file goes:
    /// it is there for as long as a commit takes when another disk has the content, and to sync gigabytes of it would be in vain.
    fn sync_open(&self, ino: Ino) -> FsResult<()> {
        let is_sealed_later = self.core().staged.get(ino).is_some_and(|staged| staged.work != Work::Making);
        if is_sealed_later { self.store.sync_staged(ino).map(drop) } else { Ok(()) }
    }

    /// The same for a name that was free: nothing is lost if it fails.
    pub(super) fn complete_new(&self, ino: Ino) -> FsResult<()> {
        self.complete_file(ino, QUICK_MAX_BYTES).or_else(|error| {
            tracing::debug!("file {ino} gets another name while it is not sealed: {error}");
            Ok(())
        })
    }

    fn complete_file(&self, ino: Ino, max_bytes: u64) -> FsResult<()> {
        if self.core().staged.get(ino).is_none() {
            return Ok(());
        }
        let Some(size) = self.store.staged_stat(ino)?.map(|stat| stat.size).filter(|size| *size <= max_bytes) else {
            return Ok(());
        };
        // Copying a gigabyte takes about a second.
        let deadline = Instant::now() + CLOSE_COMES + Duration::from_nanos(size);
        for _ in 0..TRIES {
            match self.wait_for_writers(ino, deadline) {
                None => return Ok(()),
                Some(true) => self.try_seal(ino, Size::Any)?,
                Some(false) => break,
            }
        }
        for _ in 0..TRIES {
            match self.record_copy(ino) {
                Err(error) if error.errno == Errno::EBUSY => {}
                Err(error) if is_full(error.errno) => {
                    self.refuse(error.clone());
                    return Err(error);
                }
                result => return result,
            }
        }
        Ok(())
    }

    /// Wait until nobody writes the file or works on it. `false`: somebody has it open still; `None`: it is recorded as it is.
    fn wait_for_writers(&self, ino: Ino, deadline: Instant) -> Option<bool> {
        let mut core = self.core();
        loop {
            let staged = core.staged.get(ino)?;
            match staged.work {
                // A copy for a writer is being made, or what was sealed is being removed.
                Work::Making => return None,
                Work::Sealing => self.idle.wait(&mut core),
                Work::None if staged.writers == 0 => return Some(true),
                Work::None => {
                    if self.idle.wait_until(&mut core, deadline).timed_out() {
                        return Some(false);
                    }
                }
            }
        }
    }

    /// Record what was written so far of a file that stays open. The file is sealed once more when it is closed.
    fn record_copy(&self, ino: Ino) -> FsResult<()> {
        let Some((entry, session)) = self.core().staged.get(ino).map(|staged| (staged.entry, staged.session)) else {
            return Ok(());
        };
        // Of the version that the copy has for certain: with the time of the copy it would pass for one with what is written meanwhile.
        let Some(seen) = self.store.staged_stat(ino)? else { return Ok(()) };
        // Under a number of its own. What a crash leaves of it has no name, and is removed at the next start.
        let copy = Ino::random();
        let made = self.with_room(|| self.store.stage_copy_of(copy, ino));
        let recorded = match made {
            Err(error) if error.errno == Errno::ENOENT => return Ok(()), // sealed or removed meanwhile
            made => made.and_then(|()| self.record_from(session, (ino, entry, seen), copy)),
        };
        self.discard_staged(copy);
        recorded
    }

    fn record_from(
        &self,
        session: Option<SessionId>,
        (ino, entry, seen): (Ino, u64, StagedStat),
        copy: Ino,
    ) -> FsResult<()> {
        let (small, large) = match self.store.begin_seal(copy)? {
            Seal::Small(small) => (Some(small), None),
            Seal::Large(job) => (None, Some(job.run()?)),
            // Nobody knows its number, to open or to sync it.
            Seal::Busy | Seal::Doubtful(_) => {
                return Err(FsError::new(Errno::EBUSY, format!("the copy of file {ino} is open")));
            }
        };
        self.change_content(session, |core| {
            let Some(staged) = core.staged.same(ino, entry) else { return Ok(()) };
            let (dir, base) = (staged.dir, staged.base.clone());
            let at = match core.ns.locate(ino, dir) {
                Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESTALE) => return Ok(()),
                at => at?,
            };
            let (content, mtime_ns) = match (&small, &large) {
                (Some(small), _) => (NewContent::Small(small.blob, small.bytes.clone()), small.mtime_ns),
                (_, Some(sealed)) => {
                    // The content first: there is no staged file to find it in after a crash.
                    self.store.finish_seal(sealed)?;
                    (stored(sealed), sealed.mtime_ns)
                }
                _ => return Ok(()),
            };
            core.record(ino, at, content, base.as_deref(), (mtime_ns, seen.ctime_ns), seen.written)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use delugefs_proto::local_pb as pb;

    use super::super::recover::tests::fresh;
    use super::super::staged::Staged;
    use super::*;
    use crate::engine::Opening;

    fn with_engine(test: impl FnOnce(&Engine)) {
        let (_dir, running) = fresh();
        test(&running.engine);
        running.stop().unwrap();
    }

    /// The content of one is on another disk of the host, or in the catalog, and its staging file is about to go.
    #[test]
    fn only_what_is_sealed_later_is_synced_for_a_rename() {
        with_engine(|engine| {
            let ino = Ino::random();
            // Who tries to sync it fails.
            let staged = engine.folder.path("staging").join(ino.to_string());
            std::os::unix::fs::symlink("nothing", &staged).unwrap();
            for (writers, work) in [(1, Work::None), (1, Work::Sealing), (0, Work::Sealing), (0, Work::Making)] {
                engine.core().staged.insert(ino, Staged { writers, work, ..Staged::default() });
                assert_eq!(engine.sync_open(ino).is_ok(), work == Work::Making, "{work:?}");
                engine.core().staged.remove(ino);
            }
            std::fs::remove_file(staged).unwrap();
        });
    }

    fn ctime(file: &File) -> i64 {
        crate::os::ctime_ns(&nix::sys::stat::fstat(file).unwrap())
    }

    /// What is written while the copy is made need not be in it.
    #[test]
    fn a_copy_that_is_recorded_is_of_the_time_before_it_was_made() {
        with_engine(|engine| {
            let q = pb::Create { dir: 1, name: "f".into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
            let (answer, opening) = engine.create(1, false, &q).unwrap();
            let Opening::File { handle, file } = opening else { panic!() };
            let ino = Ino(answer.node.unwrap().ino);
            let written = |engine: &Engine| {
                let mut core = engine.core();
                let at = core.ns.locate(ino, Ino::ROOT).unwrap();
                core.ns.node(&at).unwrap().written_ns
            };
            // Each is later than what was before it, as file systems count the time.
            let begin = Instant::now();
            let write_after = |time: i64, file: &File, bytes: &[u8]| {
                while ctime(file) <= time {
                    assert!(begin.elapsed() < Duration::from_secs(30), "no time passes");
                    file.write_all_at(bytes, 0).unwrap();
                }
            };
            for size in [100, 10_000] {
                write_after(written(engine), &file, &vec![7; size]);
                write_after(ctime(&file), &tempfile::tempfile().unwrap(), b"x");
                engine.record_copy(ino).unwrap();
                assert_eq!(written(engine), ctime(&file), "{size} bytes");
            }
            drop(file);
            engine.close(1, handle, false).unwrap();
        });
    }
}
