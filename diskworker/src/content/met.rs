//! Staging files whose file others have changed since it was opened here. Which versions a writer started from is known in memory
//! only; a worker that comes back after a crash would take what was written for a successor of all there are. For most files
//! that is right. For these it is not. So what is known of them is written down when the other change comes, in `staging/<inode number>.met`
//! (`engine/noted.rs`), and they are marked in a bit of their mode: that takes no room on a full disk, and says of one whose note is
//! not there, or cannot be read, that nothing is known.
//!
//! Another bit says that what was written no time of the file shows any more: this process has set it, for utimes(2).

use std::fs::File;
use std::os::unix::fs::FileExt;

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::staging::{State, staging_path};
use super::{ContentStore, fail, ino_of, stat_regular};
use crate::folder::Dir;
use crate::os;

/// Of a staging file, which no group may execute.
const MET: Mode = Mode::S_IXGRP;
/// Nor anybody else.
const WRITTEN: Mode = Mode::S_IXOTH;
/// How the names of the notes end.
const NOTE: &str = ".met";
/// A longer one is none of ours: a name and the attributes of a file are its largest part.
const NOTE_MAX_BYTES: u64 = 4 << 20;

fn note_of(ino: Ino) -> String {
    format!("{ino}{NOTE}")
}

impl ContentStore {
    /// Mark a staging file, if there is one.
    pub fn mark_met(&self, ino: Ino) {
        self.mark(ino, MET);
    }

    /// Its time is about to be set, and it was written.
    pub fn mark_written(&self, ino: Ino) {
        self.mark(ino, WRITTEN);
    }

    fn mark(&self, ino: Ino, bit: Mode) {
        let _state = self.staging.lock();
        // Nor is that a write: nobody else's removal is to be undone for it.
        let mark = |file: &File, stat: &FileStat| fchmod(file, Mode::from_bits_truncate(stat.st_mode) | bit);
        let marked = os::open_file(self.dir(Dir::Staging), &ino.to_string(), OFlag::O_RDONLY).and_then(|file| {
            match Mode::from_bits_truncate(fstat(&file)?.st_mode).contains(bit) {
                true => Ok(()),
                false => self.retouch_mode(ino, &file, |stat| mark(&file, stat)),
            }
        });
        match marked {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => tracing::warn!("{}", fail(errno, "mark for the next start", &staging_path(ino))),
        }
    }

    /// Whether a staging file is marked; also when that cannot be told.
    pub fn is_met(&self, ino: Ino) -> bool {
        self.is_marked(ino, MET)
    }

    /// Whether something was written to a staging file before its time was set; also when that cannot be told.
    pub fn is_marked_written(&self, ino: Ino) -> bool {
        self.is_marked(ino, WRITTEN)
    }

    fn is_marked(&self, ino: Ino, bit: Mode) -> bool {
        let stat = stat_regular(self.dir(Dir::Staging), &ino.to_string());
        stat.map_or(true, |stat| Mode::from_bits_truncate(stat.st_mode).contains(bit))
    }

    /// Write down what is known of a staging file, in the place of what was written down before.
    pub fn note_met(&self, ino: Ino, note: &[u8]) -> FsResult<()> {
        let fill = |file: &File| file.write_all_at(note, 0).map_err(|error| os::errno(&error));
        let made = self.make_temporary(ino, note.len() as u64, None, fill).and_then(|(temporary, _)| {
            let mut state = self.staging.lock();
            state.noted.insert(ino);
            let at = self.dir(Dir::Staging);
            renameat(at, temporary.as_str(), at, note_of(ino).as_str()).map_err(|errno| {
                self.remove_temporary(&temporary);
                fail(errno, "make", &format!("staging/{}", note_of(ino)))
            })
        });
        if made.is_err() {
            // What it says is not so any more.
            self.forget_note(&mut self.staging.lock(), ino);
        }
        made
    }

    /// What was written down of a staging file.
    pub fn noted(&self, ino: Ino) -> Option<Vec<u8>> {
        let file = os::open_file(self.dir(Dir::Staging), &note_of(ino), OFlag::O_RDONLY).ok()?;
        let size = fstat(&file).ok().map(|stat| stat.st_size as u64).filter(|size| *size <= NOTE_MAX_BYTES)?;
        let mut note = vec![0; size as usize];
        file.read_exact_at(&mut note, 0).ok()?;
        Some(note)
    }

    /// The file that a note is of is gone, or is made anew. The caller holds the `staging` lock and gives it.
    pub(super) fn forget_note(&self, state: &mut State, ino: Ino) {
        if !state.noted.contains(&ino) {
            return;
        }
        match unlinkat(self.dir(Dir::Staging), note_of(ino).as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => drop(state.noted.remove(&ino)),
            Err(errno) => tracing::warn!("{}", fail(errno, "remove", &format!("staging/{}", note_of(ino)))),
        }
    }

    /// The same for one that does not say what is so.
    pub fn forget_noted(&self, ino: Ino) {
        self.forget_note(&mut self.staging.lock(), ino);
    }

    /// The notes of an earlier life; those without a file go. Nobody else uses the store yet.
    pub(super) fn find_notes(&self) -> FsResult<()> {
        let names = os::names(self.folder.root_fd(), Dir::Staging.name()).map_err(|e| fail(e, "list", "staging"))?;
        for ino in names.iter().filter_map(|name| ino_of(name.strip_suffix(NOTE)?)) {
            let is_staged = self.is_staged(ino)?;
            let mut state = self.staging.lock();
            state.noted.insert(ino);
            if !is_staged {
                self.forget_note(&mut state, ino);
            }
        }
        Ok(())
    }
}

/// What takes the place of a staging file is marked as that is.
pub(super) fn keep_mark(old: &File, new: &File) -> Result<(), Errno> {
    match Mode::from_bits_truncate(fstat(old)?.st_mode) & (MET | WRITTEN) {
        marks if marks.is_empty() => Ok(()),
        marks => fchmod(new, Mode::from_bits_truncate(fstat(new)?.st_mode) | marks),
    }
}
