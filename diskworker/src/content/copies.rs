//! Staging files that began as a copy of what the file was, and are not known to be on stable storage yet.
//!
//! When the machine goes down such a file may be there with its name and length, and without its bytes: zeros, or nothing. It
//! must not replace the version it is a copy of, which is whole and may be what somebody fsynced long ago. A sync of every copy before
//! its writer gets it would make opening a file wait for the disk, so each has a mark beside it, `staging/<inode number>.copy`,
//! until it was synced a second later; and a start that finds one, after the machine went down, compares. The mark is a file of its own, for
//! a bit of the staging file's mode could not be taken away without moving its change time. It says in which life of the machine it was
//! made: when only the worker ended the kernel has all of the file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::staging::{State, staging_path};
use super::{ContentStore, fail, ino_of};
use crate::folder::Dir;
use crate::os;

/// How the names of the marks end.
const MARK: &str = ".copy";
/// Up to this many are synced one by one; above, one sync of the whole file system is faster.
pub(super) const ONE_BY_ONE_MAX: usize = 16;
/// The smallest block that a file system may have written or not.
const BLOCK_BYTES: usize = 512;
/// Compared at once.
const PART_BYTES: u64 = 256 << 10;

/// A mark that is, or may be, in the folder.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// Each has another one.
    number: u64,
    /// A sync of it has failed, and a later one would say that all is well.
    is_doubtful: bool,
    /// It was said that it cannot be synced.
    is_told: bool,
}

fn mark_of(ino: Ino) -> String {
    format!("{ino}{MARK}")
}

impl ContentStore {
    /// A copy is about to get its name. The caller holds the `staging` lock and gives it.
    pub(super) fn mark_copy(&self, state: &mut State, ino: Ino) -> Result<(), Errno> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let mark = os::open_file(self.dir(Dir::Staging), &mark_of(ino), flags)?;
        mark.write_all_at(life_of(&mark)?.as_bytes(), 0).map_err(|error| os::errno(&error))?;
        state.made += 1;
        let copy = Mark { number: state.made, ..Mark::default() };
        state.copies.insert(ino, copy);
        self.copied.notify_all();
        Ok(())
    }

    /// It was synced, or is gone; whether there was a mark. The caller holds the `staging` lock and gives it.
    ///
    /// # Errors
    /// The mark is there still, and known: to go when this is called again, as it is every second.
    pub(super) fn unmark_copy(&self, state: &mut State, ino: Ino) -> FsResult<bool> {
        if !state.copies.contains_key(&ino) {
            return Ok(false);
        }
        match unlinkat(self.dir(Dir::Staging), mark_of(ino).as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {
                state.copies.remove(&ino);
                Ok(true)
            }
            Err(errno) => Err(fail(errno, "remove", &format!("staging/{}", mark_of(ino)))),
        }
    }

    /// The same where nobody relies on it at once. A file that is synced later, or made anew, under this number does.
    pub(super) fn unmark_gone_copy(&self, state: &mut State, ino: Ino) {
        if let Err(error) = self.unmark_copy(state, ino) {
            tracing::warn!("{error}");
            // Whatever kept it from being synced was about another file.
            state.copies.entry(ino).and_modify(|copy| copy.is_doubtful = false);
            self.copied.notify_all();
        }
    }

    /// Somebody has synced this staging file; whether it was not known to be on stable storage before. Then the folder must be synced
    /// too before that is relied upon: [`ContentStore::sync_staging_dir`].
    ///
    /// # Errors
    /// It is marked still: after a loss of power the start would take what was synced for a copy that lacks something.
    pub fn copy_was_synced(&self, ino: Ino) -> FsResult<bool> {
        let mut state = self.staging.lock();
        self.unmark_copy(&mut state, ino)
    }

    /// Whether a staging file is a copy that may not be on stable storage, or may not have been when the machine went down.
    pub fn is_unsynced_copy(&self, ino: Ino) -> bool {
        self.staging.lock().copies.contains_key(&ino)
    }

    /// The marks of an earlier life; those without a file go. Nobody else uses the store yet.
    pub(super) fn find_copies(&self) -> FsResult<()> {
        let names = os::names(self.folder.root_fd(), Dir::Staging.name()).map_err(|e| fail(e, "list", "staging"))?;
        for ino in names.iter().filter_map(|name| ino_of(name.strip_suffix(MARK)?)) {
            let is_staged = self.is_staged(ino)?;
            let mut state = self.staging.lock();
            state.made += 1;
            let copy = Mark { number: state.made, ..Mark::default() };
            state.copies.insert(ino, copy);
            if !is_staged {
                self.unmark_gone_copy(&mut state, ino);
            }
        }
        Ok(())
    }

    /// Wait until there are copies to sync, or `stop`, which is asked again after [`ContentStore::wake_for_copies`].
    pub fn wait_for_copies(&self, stop: impl Fn() -> bool) {
        let mut state = self.staging.lock();
        while state.copies.values().all(|copy| copy.is_doubtful) && !stop() {
            self.copied.wait(&mut state);
        }
    }

    /// See [`ContentStore::wait_for_copies`].
    pub fn wake_for_copies(&self) {
        let _asleep_or_looking = self.staging.lock();
        self.copied.notify_all();
    }

    /// Sync the copies that there are now. One that cannot be synced is doubtful from then on, and keeps its mark until another
    /// file takes its place; one that cannot be opened, or whose mark cannot be removed, is tried again the next time.
    pub fn sync_copies(&self) {
        let copies: Vec<(Ino, Mark)> = {
            let state = self.staging.lock();
            state.copies.iter().filter(|(_, copy)| !copy.is_doubtful).map(|(ino, copy)| (*ino, *copy)).collect()
        };
        let are_synced = copies.len() > ONE_BY_ONE_MAX && matches!(self.sync_whole(), Ok(true));
        for (ino, Mark { number, .. }) in copies {
            // A sync of one that is doubtful says that all is well.
            let synced = match self.is_doubtful(ino) {
                Ok(false) if !are_synced => self.sync_staged_data(ino).map(drop),
                found => found.map(drop),
            };
            let is_doubtful = self.is_doubtful(ino).unwrap_or(false);
            let mut state = self.staging.lock();
            // Else it is another file by now, or was dealt with.
            if state.copies.get(&ino).is_none_or(|copy| copy.number != number) {
                continue;
            }
            let done = match synced {
                Ok(()) if !is_doubtful => self.unmark_copy(&mut state, ino).map(drop),
                synced => synced,
            };
            if let Some(copy) = state.copies.get_mut(&ino) {
                copy.is_doubtful = is_doubtful;
                if let Err(error) = done
                    && !std::mem::replace(&mut copy.is_told, true)
                {
                    tracing::warn!("{error}");
                }
            }
        }
    }

    /// Whether a staging file that began as a copy of `size` bytes, which `read` gives, still has them all; to be asked at the start.
    pub fn compare_copy(
        &self,
        ino: Ino,
        size: u64,
        read: impl Fn(&mut [u8], u64) -> Result<(), Errno>,
    ) -> FsResult<Copied> {
        let failed = |errno| fail(errno, "compare", &staging_path(ino));
        let Some(file) = self.open_staged(ino, false)? else { return Ok(Copied::Whole) };
        compare(&file, size, read).map_err(failed)
    }

    /// Whether the machine has been up since a copy was marked: then all that its writer did is there.
    pub fn life_of_copy(&self, ino: Ino) -> Life {
        let Ok(mark) = os::open_file(self.dir(Dir::Staging), &mark_of(ino), OFlag::O_RDONLY) else {
            return Life::Unknown;
        };
        let mut said = [0; 100];
        let length = mark.read_at(&mut said, 0).unwrap_or(0);
        let said = String::from_utf8_lossy(&said[..length]);
        life_since(&said, &life_of(&mark).unwrap_or_default())
    }
}

/// Of the machine, and of the device that the disk is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// This one: only processes have ended since.
    This,
    /// One before: what had not been written to the disk is gone.
    Earlier,
    /// Nothing tells.
    Unknown,
}

/// This life of the machine, the file system's device, and which life of that it is, where the kernel counts them: who is pulled and plugged
/// in again may get the number it had. Empty where not even the machine's can be told.
fn life_of(file: &File) -> Result<String, Errno> {
    let device = fstat(file)?.st_dev;
    let count = os::disk_count(device).map(|count| format!(" {count}")).unwrap_or_default();
    Ok(os::boot_id().map(|boot| format!("{boot} {device}{count}")).unwrap_or_default())
}

fn life_since(then: &str, now: &str) -> Life {
    match (then.split_once(' '), now.split_once(' ')) {
        (Some((_, device)), Some(_)) if then == now && device.contains(' ') => Life::This,
        (Some((then, _)), Some((now, _))) if then != now => Life::Earlier,
        // It was pulled, or mounted anew, or may have been.
        _ => Life::Unknown,
    }
}

/// What of a copy has reached the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Nothing is missing.
    Whole,
    /// Something is missing: it is shorter, or has zeros where the original has something else. What is there is the original's.
    Lacking,
    /// The same, and something is there that the original does not have.
    Changed,
}

fn compare(file: &File, size: u64, read: impl Fn(&mut [u8], u64) -> Result<(), Errno>) -> Result<Copied, Errno> {
    let length = file.metadata().map_err(|error| os::errno(&error))?.len();
    let (mut lacks, mut has_more) = (length < size, length > size);
    let (mut have, mut want) = (vec![0; PART_BYTES as usize], vec![0; PART_BYTES as usize]);
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    for at in (0..size.min(length)).step_by(PART_BYTES as usize) {
        let count = (size.min(length) - at).min(PART_BYTES) as usize;
        let (have, want) = (&mut have[..count], &mut want[..count]);
        file.read_exact_at(have, at).map_err(|error| os::errno(&error))?;
        read(want, at)?;
        for (have, _) in have.chunks(BLOCK_BYTES).zip(want.chunks(BLOCK_BYTES)).filter(|(have, want)| have != want) {
            if is_zero(have) { lacks = true } else { has_more = true }
        }
    }
    Ok(match (lacks, has_more) {
        (false, _) => Copied::Whole,
        (true, false) => Copied::Lacking,
        (true, true) => Copied::Changed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_was_plugged_in_again_is_not_taken_for_one_that_stayed() {
        assert_eq!(life_since("boot 2049 7", "boot 2049 7"), Life::This);
        assert_eq!(life_since("boot 2049 7", "boot 2049 9"), Life::Unknown);
        assert_eq!(life_since("boot 2049 7", "boot 2065 7"), Life::Unknown);
        assert_eq!(life_since("boot 2049", "boot 2049"), Life::Unknown, "nothing counts its lives");
        assert_eq!(life_since("boot 2049", "boot 2049 7"), Life::Unknown);
        assert_eq!(life_since("boot 2049 7", "other 2049 7"), Life::Earlier);
        assert_eq!(life_since("", ""), Life::Unknown);
    }
}
