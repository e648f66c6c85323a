//! What is written down of a staged file when others have changed its file (`content/met.rs`): all that is known here and that the next start
//! cannot find in the record. Nothing else is written down. Of a file that nobody else has changed the record says all, and these
//! are few.

use std::time::{Duration, Instant};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::{ActorId, Ino};
use delugefs_proto::record::Dot;

use super::staged::{Staged, StagedTable};
use super::{Core, Engine};
use crate::content::Stamp;
use crate::namespace::Taken;

/// First byte of every note. One that begins with another is not read: then nothing is known.
const VERSION: u8 = 1;
/// A file has one version as a rule, and a writer starts from those of one place.
const BASE_MAX: usize = 10_000;

/// A note that could not be written is not tried again before: changes may come by the thousand.
const NOTE_PAUSE: Duration = Duration::from_secs(30);

impl Staged {
    /// What came of writing down what is known of it.
    pub(super) fn was_noted(&mut self, ino: Ino, written: FsResult<Vec<u8>>) {
        match written {
            Ok(bytes) => (self.noted, self.not_noted) = (bytes, None),
            Err(error) => {
                self.noted.clear();
                // Said once.
                if self.not_noted.replace(Instant::now()).is_none() {
                    tracing::warn!(
                        "what is known of file {ino}, which is being written, is forgotten at the next start: {error}"
                    );
                }
            }
        }
    }
}

/// See the module. Numbers are little-endian, and what may be missing has a byte 0 or 1 before it.
#[derive(Clone, Debug, Default)]
pub(super) struct Note {
    /// As those of [`Staged`].
    pub base: Vec<Dot>,
    pub dir: Ino,
    pub number: Option<Ino>,
    /// Time of the last change and length of the file while nothing was written to it; and when it was recorded last.
    pub made: Option<(i64, u64)>,
    pub recorded: Option<(i64, u64)>,
    pub taken: Option<Taken>,
}

impl Note {
    fn of(staged: &Staged) -> Self {
        let state = |stamp: Option<Stamp>| stamp.filter(Stamp::tells).map(|stamp| (stamp.mtime_ns, stamp.size));
        Self {
            base: staged.base.clone().unwrap_or_default(),
            dir: staged.dir,
            number: staged.number,
            made: state(staged.made.filter(|_| staged.unwritten)),
            recorded: state(staged.recorded),
            taken: staged.taken.clone(),
        }
    }

    /// The same for a file that replaces nothing.
    pub(super) fn of_nothing(self) -> Self {
        Self { base: Vec::new(), made: None, recorded: None, ..self }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend((self.base.len() as u64).to_le_bytes());
        for dot in &self.base {
            out.extend(dot.actor.0.to_le_bytes());
            out.extend(dot.seq.to_le_bytes());
        }
        out.extend(self.dir.0.to_le_bytes());
        out.push(u8::from(self.number.is_some()));
        out.extend(self.number.iter().flat_map(|number| number.0.to_le_bytes()));
        for state in [self.made, self.recorded] {
            out.push(u8::from(state.is_some()));
            out.extend(state.iter().flat_map(|(mtime_ns, size)| [mtime_ns.to_le_bytes(), size.to_le_bytes()].concat()));
        }
        out.push(u8::from(self.taken.is_some()));
        out.extend(self.taken.iter().flat_map(Taken::to_bytes));
        out
    }

    pub(super) fn from_bytes(ino: Ino, bytes: &[u8]) -> Option<Self> {
        let mut input = Reader(bytes);
        if input.byte()? != VERSION {
            return None;
        }
        let count = usize::try_from(input.word()?).ok().filter(|count| *count <= BASE_MAX)?;
        let dots = (0..count).map(|_| Some(Dot { actor: ActorId(input.word()?), seq: input.word()? }));
        let base = dots.collect::<Option<_>>()?;
        let dir = Ino(input.word()?);
        let number = if input.flag()? { Some(Ino(input.word()?)) } else { None };
        let mut state = || Some(if input.flag()? { Some((input.word()? as i64, input.word()?)) } else { None });
        let (made, recorded) = (state()?, state()?);
        let taken = match input.flag()? {
            true => Some(Taken::from_bytes(ino, input.0)?),
            false if input.0.is_empty() => None,
            false => return None,
        };
        Some(Self { base, dir, number, made, recorded, taken })
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn flag(&mut self) -> Option<bool> {
        self.byte().filter(|byte| *byte < 2).map(|byte| byte == 1)
    }

    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }
}

impl Engine {
    /// After a change: write down what is new of staged files that others have changed.
    pub(super) fn note_met(&self, core: &mut Core) {
        for ino in core.staged.met() {
            let Some(staged) = core.staged.get_mut(ino) else { continue };
            let is_soon = staged.not_noted.is_some_and(|failed| failed.elapsed() < NOTE_PAUSE);
            let note = Note::of(staged);
            let bytes = note.to_bytes();
            if is_soon || staged.noted == bytes {
                continue;
            }
            // That it has its name again is in the log, perhaps in that alone. Until that is on the disk the note is what a start finds it by.
            let had_lost_it = Note::from_bytes(ino, &staged.noted).is_some_and(|before| before.taken.is_some());
            if had_lost_it && note.taken.is_none() && self.sync_records().is_err() {
                continue;
            }
            // First, for what is known is as good as nothing if it cannot be written down.
            self.store.mark_met(ino);
            let written = self.store.note_met(ino, &bytes);
            staged.was_noted(ino, written.map(|()| bytes));
        }
    }

    /// Before a join takes the last names of these: what is known of them is written down as it will be then. What nobody else has of them is
    /// durable by then if it was fsynced, and so is the note. What was written of each is given back.
    pub(super) fn note_lost_names(&self, staged: &StagedTable, taken: &[Taken]) -> Vec<(Ino, FsResult<Vec<u8>>)> {
        let (mut noted, mut to_sync) = (Vec::new(), Vec::new());
        for taken in taken {
            let Some(staged) = staged.get(taken.ino) else { continue };
            let bytes = Note { taken: Some(taken.clone()), ..Note::of(staged) }.to_bytes();
            self.store.mark_met(taken.ino);
            let written = self.store.note_met(taken.ino, &bytes);
            if written.is_ok() && self.has_more(taken.ino, staged) {
                to_sync.push(taken.ino);
            }
            noted.push((taken.ino, written.map(|()| bytes)));
        }
        if let Err(error) = self.store.sync_notes(&to_sync) {
            tracing::warn!(
                "what was written and others have removed may be lost if the machine goes down now: {error}"
            );
        }
        noted
    }
}

#[cfg(test)]
mod tests {
    use delugefs_proto::local_pb as pb;

    use super::super::recover::tests::fresh;
    use super::*;
    use crate::engine::Opening;

    /// As on a disk without a free byte, where changes come by the thousand.
    #[test]
    fn a_note_that_cannot_be_written_is_tried_again_after_a_while() {
        let (_dir, running) = fresh();
        let engine = &running.engine;
        let q = pb::Create { dir: 1, name: "f".into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
        let (answer, opening) = engine.create(1, false, &q).unwrap();
        let (ino, Opening::File { handle, .. }) = (Ino(answer.node.unwrap().ino), &opening) else { panic!() };
        let in_the_way = engine.folder.path("staging").join(format!("{ino}.met"));
        std::fs::create_dir(&in_the_way).unwrap();
        {
            let mut core = engine.core();
            core.staged.has_met(ino);
            engine.note_met(&mut core);
            assert!(core.staged.is_unnoted(ino));
            std::fs::remove_dir(&in_the_way).unwrap();
            engine.note_met(&mut core);
            assert!(core.staged.is_unnoted(ino) && engine.store.noted(ino).is_none(), "at once");
            let staged = core.staged.get_mut(ino).unwrap();
            staged.not_noted = staged.not_noted.and_then(|failed| failed.checked_sub(NOTE_PAUSE));
            engine.note_met(&mut core);
            assert!(!core.staged.is_unnoted(ino));
            assert_eq!(engine.store.noted(ino).unwrap(), core.staged.get(ino).unwrap().noted);
            assert!(core.staged.get(ino).unwrap().not_noted.is_none());
        }
        let handle = *handle;
        drop(opening);
        engine.close(1, handle, false).unwrap();
        running.stop().unwrap();
    }

    #[test]
    fn what_is_written_down_is_read_and_nothing_else() {
        let dot = |seq| Dot { actor: ActorId(7), seq };
        let note = Note {
            base: vec![dot(1), dot(9)],
            dir: Ino(5),
            number: Some(Ino(6)),
            made: Some((-3, 4)),
            recorded: None,
            taken: None,
        };
        let bytes = note.to_bytes();
        let read = Note::from_bytes(Ino(1), &bytes).unwrap();
        assert_eq!((&read.base, read.dir, read.number), (&note.base, note.dir, note.number));
        assert_eq!((read.made, read.recorded, read.taken.is_none()), (note.made, note.recorded, true));
        for end in 0..bytes.len() {
            assert!(Note::from_bytes(Ino(1), &bytes[..end]).is_none(), "{end}");
        }
        assert!(Note::from_bytes(Ino(1), &[&bytes[..], &[0]].concat()).is_none());
        assert!(Note::from_bytes(Ino(1), &vec![0; bytes.len()]).is_none(), "it did not reach the disk");
        assert!(Note::from_bytes(Ino(1), &[u8::MAX; 100]).is_none());
    }
}
