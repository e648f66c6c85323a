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
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use super::copies::ONE_BY_ONE_MAX;
use super::staging::{State, staging_path};
use super::{ContentStore, fail, ino_of, stat_regular};
use crate::folder::Dir;
use crate::os;

/// Of a staging file, which no group may execute.
const MET: Mode = Mode::S_IXGRP;
/// Nor anybody else.
pub(super) const WRITTEN: Mode = Mode::S_IXOTH;
/// How the names of the notes end.
const NOTE: &str = ".met";
/// A longer one is none of ours: a name and the attributes of a file are its largest part.
const NOTE_MAX_BYTES: u64 = 4 << 20;

/// A note that is, or may be, in the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// It is not known to be on stable storage.
    Unsynced,
    Synced,
}

fn note_of(ino: Ino) -> String {
    format!("{ino}{NOTE}")
}

impl ContentStore {
    /// Mark a staging file, if there is one.
    pub fn mark_met(&self, ino: Ino) {
        self.mark(ino, MET);
    }

    /// It was written, and no time of it shows that.
    #[cfg(test)]
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

    /// Write down what is known of a staging file, in the place of what was written down before. That takes a few hundred bytes: they may be
    /// of the reserve, and no trash goes for them.
    pub fn note_met(&self, ino: Ino, note: &[u8]) -> FsResult<()> {
        let temporary = self.temporary_of(ino);
        let fill = |file: &File| file.write_all_at(note, 0).map_err(|error| os::errno(&error));
        let made = self.fill_temporary(&temporary, None, &fill).and_then(|_| {
            let mut state = self.staging.lock();
            state.noted.insert(ino, Note::Unsynced);
            let at = self.dir(Dir::Staging);
            renameat(at, temporary.as_str(), at, note_of(ino).as_str())
                .inspect_err(|_| self.remove_temporary(&temporary))
        });
        if made.is_err() {
            // What it says is not so any more.
            self.forget_gone_note(&mut self.staging.lock(), ino);
        }
        made.map_err(|errno| fail(errno, "make", &format!("staging/{}", note_of(ino))))
    }

    /// Make what is written down of a staging file durable, without its name; whether it was not yet.
    pub fn sync_note(&self, ino: Ino) -> FsResult<bool> {
        match self.staging.lock().noted.get_mut(&ino) {
            // Before it is done, for it may be written anew meanwhile.
            Some(note @ Note::Unsynced) => *note = Note::Synced,
            _ => return Ok(false),
        }
        let synced =
            os::open_file(self.dir(Dir::Staging), &note_of(ino), OFlag::O_RDONLY).and_then(|file| fsync(&file));
        match synced {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => {
                self.staging.lock().noted.entry(ino).and_modify(|note| *note = Note::Unsynced);
                Err(fail(errno, "sync", &format!("staging/{}", note_of(ino))))
            }
        }
    }

    /// The same of several, with their names.
    pub fn sync_notes(&self, inos: &[Ino]) -> FsResult<()> {
        // Above, one sync of the whole file system is faster.
        if inos.len() > ONE_BY_ONE_MAX && matches!(self.sync_whole(), Ok(true)) {
            return Ok(());
        }
        let mut was_unsynced = false;
        for ino in inos {
            was_unsynced |= self.sync_note(*ino)?;
        }
        if was_unsynced { self.sync_staging_dir() } else { Ok(()) }
    }

    /// What was written down of a staging file.
    pub fn noted(&self, ino: Ino) -> Option<Vec<u8>> {
        let file = os::open_file(self.dir(Dir::Staging), &note_of(ino), OFlag::O_RDONLY).ok()?;
        let size = fstat(&file).ok().map(|stat| stat.st_size as u64).filter(|size| *size <= NOTE_MAX_BYTES)?;
        let mut note = vec![0; size as usize];
        file.read_exact_at(&mut note, 0).ok()?;
        Some(note)
    }

    /// A file is made anew, and a note is of the one that had its number. The caller holds the `staging` lock and gives it.
    ///
    /// # Errors
    /// The note is there still, and a start would take it for one of the new file.
    pub(super) fn forget_note(&self, state: &mut State, ino: Ino) -> FsResult<()> {
        if !state.noted.contains_key(&ino) {
            return Ok(());
        }
        match unlinkat(self.dir(Dir::Staging), note_of(ino).as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {
                state.noted.remove(&ino);
                Ok(())
            }
            Err(errno) => Err(fail(errno, "remove", &format!("staging/{}", note_of(ino)))),
        }
    }

    /// The same where the file is gone: who makes another of its number tries again.
    pub(super) fn forget_gone_note(&self, state: &mut State, ino: Ino) {
        if let Err(error) = self.forget_note(state, ino) {
            tracing::warn!("{error}");
        }
    }

    /// The same for one that does not say what is so.
    pub fn forget_noted(&self, ino: Ino) {
        self.forget_gone_note(&mut self.staging.lock(), ino);
    }

    /// The notes of an earlier life; those without a file go. Nobody else uses the store yet.
    pub(super) fn find_notes(&self) -> FsResult<()> {
        let names = os::names(self.folder.root_fd(), Dir::Staging.name()).map_err(|e| fail(e, "list", "staging"))?;
        for ino in names.iter().filter_map(|name| ino_of(name.strip_suffix(NOTE)?)) {
            let is_staged = self.is_staged(ino)?;
            let mut state = self.staging.lock();
            state.noted.insert(ino, Note::Unsynced);
            if !is_staged {
                self.forget_gone_note(&mut state, ino);
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
