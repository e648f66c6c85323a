//! Whether a staged file has something that no record has. Two things depend on that: whether it has its name again that others took
//! without having seen it (`namespace/taken.rs`), and whether anything is to be recorded when it is sealed. One rule for both: a state that
//! is known, as it was made or recorded, is told by its stamp ([`crate::content::Stamp`]), and what cannot be told counts as written.

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::Data;

use super::Engine;
use super::seal::Seen;
use super::staged::{Staged, Work};
use crate::content::{Sealed, SealedSmall};

/// What a seal has found.
pub(super) enum SealedAs<'a> {
    Small(&'a SealedSmall),
    Large(&'a Sealed),
}

impl Engine {
    /// Whether a staged file may have something that no record has.
    pub(super) fn has_more(&self, ino: Ino, staged: &Staged) -> bool {
        let Ok(Some(stat)) = self.store.staged_stat(ino) else { return false };
        let made = staged.made.filter(|_| staged.unwritten);
        let mut known = made.into_iter().chain(staged.recorded).filter(crate::content::Stamp::tells);
        // Of one that is recorded the file just goes, or a copy is being made.
        staged.work != Work::Making && !known.any(|known| known.is_same(&stat.written))
    }

    /// The same while it is being sealed.
    pub(super) fn may_have_more(&self, seen: &Seen, staged: &Staged) -> bool {
        !seen.unwritten && self.has_more(seen.ino, staged)
    }

    /// Whether a file that is being sealed has the stamp it was made with.
    pub(super) fn is_as_made(&self, seen: &Seen) -> bool {
        let Ok(Some(stat)) = self.store.staged_stat(seen.ino) else { return false };
        self.core().staged.same(seen.ino, seen.entry).is_some_and(|staged| staged.is_as_made(&stat.written))
    }

    /// Whether what is being sealed is what a start found recorded, and is held: nobody wrote it, and a version of its own would undo what
    /// others did meanwhile.
    pub(super) fn is_as_found(&self, seen: &Seen, sealed: &SealedAs<'_>) -> bool {
        let mut core = self.core();
        let found = core.staged.same(seen.ino, seen.entry).and_then(|staged| staged.found.as_ref());
        match (found, sealed) {
            (Some((Data::Empty, mtime_ns)), SealedAs::Small(small)) => {
                small.bytes.is_empty() && small.mtime_ns == *mtime_ns
            }
            (Some((Data::Inline { blob, .. }, mtime_ns)), SealedAs::Small(small)) => {
                small.blob == *blob && small.mtime_ns == *mtime_ns
            }
            // The record may be older than the name in `data/`: then the staged file is all there is.
            (Some((Data::Stored { content, .. }, mtime_ns)), SealedAs::Large(sealed)) => {
                sealed.content == *content && sealed.mtime_ns == *mtime_ns && sealed.is_held_already()
            }
            _ => false,
        }
    }

    /// Where a join has taken the last name of a file that was written: it has one again.
    pub(super) fn give_name_back(&self, ino: Ino) -> FsResult<()> {
        if self.core().staged.get(ino).is_none_or(|staged| staged.taken.is_none()) {
            return Ok(());
        }
        self.change_content(None, |core| {
            // Else who took the name saw all of it.
            let has_more = core.staged.get(ino).is_some_and(|staged| self.has_more(ino, staged));
            let taken = core.staged.get_mut(ino).filter(|_| has_more).and_then(|staged| staged.taken.take());
            let Some(taken) = taken else { return Ok(()) };
            if core.ns.locate(ino, taken.dir).is_ok() {
                return Ok(()); // another join has brought one
            }
            let back = core.ns.put_back(&taken);
            if let Some(staged) = core.staged.get_mut(ino) {
                staged.dir = taken.dir;
                staged.taken = back.is_err().then_some(taken);
            }
            if let Some(dot) = back? {
                core.staged.began_from(ino, dot);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, Instant};

    use delugefs_proto::local_pb as pb;

    use super::super::recover::tests::fresh;
    use super::*;
    use crate::content::{StagedStat, Stamp};
    use crate::engine::Opening;

    fn stat(engine: &Engine, ino: Ino) -> StagedStat {
        engine.store.staged_stat(ino).unwrap().unwrap()
    }

    fn has_more(engine: &Engine, ino: Ino) -> bool {
        engine.core().staged.get(ino).is_some_and(|staged| engine.has_more(ino, staged))
    }

    /// A file of some bytes that is open again and not written yet.
    fn open(engine: &Engine) -> (Ino, u64, File) {
        let q = pb::Create { dir: 1, name: "f".into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
        let (answer, Opening::File { handle, file }) = engine.create(1, false, &q).unwrap() else { panic!() };
        file.write_all_at(b"text", 0).unwrap();
        drop(file);
        engine.close(1, handle, false).unwrap();
        let ino = Ino(answer.node.unwrap().ino);
        assert!(!engine.store.is_staged(ino).unwrap());
        let q = pb::SetAttr { ino: ino.0, dir: 1, mtime: Some(7), ..Default::default() };
        engine.set_attr(1, &q).unwrap();
        let q = pb::Open { ino: ino.0, dir: 1, write: true, truncate: false };
        let Opening::File { handle, file } = engine.open(1, &q).unwrap().1 else { panic!() };
        (ino, handle, file)
    }

    /// Kernels before 6.13 leave the change time as it is then.
    #[test]
    fn a_write_in_the_tick_of_the_copy_is_one() {
        let (_dir, running) = fresh();
        let engine = &running.engine;
        let (ino, handle, file) = open(engine);
        assert!(!has_more(engine, ino));
        file.write_all_at(b"T", 0).unwrap();
        let in_a_tick = |engine: &Engine| {
            let now = stat(engine, ino).ctime_ns;
            let mut core = engine.core();
            let staged = core.staged.get_mut(ino).unwrap();
            staged.made = staged.made.map(|made| made.at(now, made.mtime_ns));
        };
        in_a_tick(engine);
        assert!(has_more(engine, ino));
        drop(file);
        engine.close(1, handle, false).unwrap();
        running.stop().unwrap();
    }

    /// Nothing else says after a restart that it was.
    #[test]
    fn what_was_written_in_the_tick_of_the_copy_is_marked_when_its_time_is_set() {
        let (_dir, running) = fresh();
        let engine = &running.engine;
        let (ino, handle, file) = open(engine);
        let set_time = |mtime| {
            let q = pb::SetAttr { ino: ino.0, dir: 1, mtime: Some(mtime), ..Default::default() };
            engine.set_attr(1, &q).unwrap();
        };
        set_time(8);
        assert!(!engine.store.is_marked_written(ino), "it was not written");
        file.write_all_at(b"T", 0).unwrap();
        let now = stat(engine, ino).written;
        assert_eq!(now.ctime_ns, now.mtime_ns);
        {
            let mut core = engine.core();
            let staged = core.staged.get_mut(ino).unwrap();
            staged.made = staged.made.map(|made| made.at(now.ctime_ns, now.mtime_ns));
            assert!(staged.is_as_made(&now) && !staged.made.unwrap().tells());
        }
        set_time(9);
        assert!(engine.store.is_marked_written(ino));
        drop(file);
        engine.close(1, handle, false).unwrap();
        running.stop().unwrap();
    }

    /// At a start on a full disk the record of what was fsynced may be in the log alone, and that not on the disk.
    #[test]
    fn what_was_found_recorded_does_not_go_before_that_record_is_safe() {
        let (_dir, running) = fresh();
        let engine = &running.engine;
        let (ino, handle, file) = open(engine);
        drop(file);
        engine.close(1, handle, true).unwrap();
        assert!(!engine.store.is_staged(ino).unwrap());
        let mut core = engine.core();
        let at = core.ns.locate(ino, Ino(1)).unwrap();
        let node = core.ns.node(&at).unwrap();
        let base = Some(core.ns.content_dots(&at).unwrap());
        let found = Some((node.regular().unwrap().clone(), node.mtime_ns));
        drop(engine.store.stage_bytes(ino, b"text", Some(node.mtime_ns)).unwrap());
        core.staged.insert(ino, Staged { dir: Ino(1), base, found, promised: true, ..Staged::default() });
        drop(core);
        let q = pb::Mkdir { dir: 1, name: "d".into(), mode: 0o700, ..Default::default() };
        engine.mkdir(1, false, &q).unwrap();
        engine.seal(ino, super::super::seal::Size::Any);
        assert!(!engine.store.is_staged(ino).unwrap() && engine.journal.is_synced());
        running.stop().unwrap();
    }

    /// A mark is set whenever another version comes, right after a write too.
    #[test]
    fn what_is_marked_after_it_was_recorded_has_no_more() {
        let (_dir, running) = fresh();
        let engine = &running.engine;
        let (ino, handle, file) = open(engine);
        file.write_all_at(b"T", 0).unwrap();
        // Marked before it is recorded, and again.
        engine.store.mark_written(ino);
        let begin = Instant::now();
        while !Stamp::tells(&stat(engine, ino).written) {
            assert!(begin.elapsed() < Duration::from_secs(30), "no time passes");
            std::thread::yield_now();
        }
        let q = pb::Link { ino: ino.0, ino_dir: 1, dir: 1, name: "g".into() };
        engine.link(1, false, &q).unwrap();
        assert!(engine.core().staged.get(ino).unwrap().recorded.is_some() && !has_more(engine, ino));
        let begin = Instant::now();
        let before = stat(engine, ino).ctime_ns;
        while stat(engine, ino).ctime_ns == before {
            assert!(begin.elapsed() < Duration::from_secs(30), "it does not move");
            engine.store.doubt_staged(ino);
        }
        engine.store.mark_met(ino);
        engine.store.mark_met(ino);
        assert!(!has_more(engine, ino));
        drop(file);
        engine.close(1, handle, false).unwrap();
        running.stop().unwrap();
    }
}
