//! Files being written: `staging/<16 hex digits of the inode number>`.
//!
//! A writer's descriptor carries a shared flock, which lives as long as any copy of it in any process, even if this one
//! dies. A file that does not start empty is made under another name and renamed: under its own name it is never seen
//! half-made. Such other names contain a dot; what a crash leaves of them is removed when the store is opened.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::{ContentId, Ino};
use nix::errno::Errno;
use nix::fcntl::{FlockArg, OFlag, renameat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, fsync, ftruncate, unlinkat};

use super::met::WRITTEN;
use super::{ContentStore, Stamp, fail, ino_of, stat_regular};
use crate::folder::Dir;
use crate::os;

/// What must not change while it is decided whether a file can be sealed.
#[derive(Default)]
pub(super) struct State {
    /// Seals under way; set to true when the file may be written again.
    pub seals: HashMap<Ino, Weak<AtomicBool>>,
    /// Files whose name is known to be on stable storage.
    durable_names: HashSet<Ino>,
    /// Files of which a sync has failed, see [`super::doubt`].
    pub doubtful: HashSet<Ino>,
    /// Copies that are not known to be on stable storage, see [`super::copies`].
    pub copies: HashMap<Ino, super::copies::Mark>,
    /// Files of which something may be written down, see [`super::met`].
    pub noted: HashMap<Ino, super::met::Note>,
    /// Files made so far.
    pub made: u64,
}

impl State {
    /// The name goes, or is another file's.
    pub fn gone(&mut self, ino: Ino) {
        self.durable_names.remove(&ino);
        self.doubtful.remove(&ino);
    }

    /// Whatever is being sealed of this file is out of date.
    pub fn supersede(&mut self, ino: Ino) {
        if let Some(flag) = self.seals.remove(&ino).and_then(|flag| flag.upgrade()) {
            flag.store(true, Ordering::SeqCst);
        }
    }
}

/// Length, times (nanoseconds since 1970) and allocated blocks of 512 bytes of a staging file.
#[derive(Clone, Copy, Debug)]
pub struct StagedStat {
    /// Length in bytes.
    pub size: u64,
    /// Last change of content.
    pub mtime_ns: i64,
    /// Last change of anything.
    pub ctime_ns: i64,
    /// What it had when it was written last, whatever this process has changed of it since: see [`super::retouched`].
    pub written: Stamp,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
}

pub(super) fn staging_path(ino: Ino) -> String {
    format!("staging/{ino}")
}

impl ContentStore {
    /// A new empty file to write, with the writer's lock. `EEXIST` when there is one already.
    pub fn stage_new(&self, ino: Ino) -> FsResult<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let make = || {
            // So that nobody tries to seal it before its writer has the lock.
            let mut state = self.staging.lock();
            let file = os::open_file(self.dir(Dir::Staging), &ino.to_string(), flags)?;
            // It is no copy, whatever had this number before: a start would take it for one that lacks nearly all.
            let made = match self.forget_note(&mut state, ino).and_then(|()| self.unmark_copy(&mut state, ino)) {
                Ok(_) => os::flock(&file, FlockArg::LockSharedNonblock).map(|()| file),
                Err(error) => Err(error.errno),
            };
            if made.is_err() {
                let _ = unlinkat(self.dir(Dir::Staging), ino.to_string().as_str(), UnlinkatFlags::NoRemoveDir);
            }
            made
        };
        self.with_room(0, make).map_err(|errno| fail(errno, "make", &staging_path(ino)))
    }

    /// A new file that starts with these bytes (what the catalog held), with the writer's lock. `mtime_ns` is the time of
    /// the last change it starts with; `None` for now. `EEXIST` when there is one already.
    pub fn stage_bytes(&self, ino: Ino, bytes: &[u8], mtime_ns: Option<i64>) -> FsResult<File> {
        self.stage_made(ino, bytes.len() as u64, mtime_ns, !bytes.is_empty(), |file| {
            file.write_all_at(bytes, 0).map_err(|error| os::errno(&error))
        })
    }

    /// A new file that starts with the first `keep_bytes` of a content of `size` bytes, with the writer's lock. Shares
    /// the blocks where the file system can, keeps holes. `mtime_ns` as in [`ContentStore::stage_bytes`].
    pub fn stage_copy(
        &self,
        ino: Ino,
        content: ContentId,
        size: u64,
        keep_bytes: u64,
        mtime_ns: Option<i64>,
    ) -> FsResult<File> {
        let from = self.open_to_read(content, size)?;
        let keep = keep_bytes.min(size);
        // What cannot be read here may come from another disk, once that is known.
        let failed = |range| drop(self.is_unreadable(content, range));
        self.stage_made(ino, 0, mtime_ns, keep > 0, |to| self.fill_from(to, &from, size, keep, &failed))
    }

    /// A new file that is what another staging file is now, with its time. Nobody has it open. `ENOENT` without that file,
    /// `EBUSY` when it was cut meanwhile.
    pub fn stage_copy_of(&self, ino: Ino, of: Ino) -> FsResult<()> {
        let failed = |errno| fail(errno, "copy", &staging_path(of));
        let from = self.open_staged(of, false)?.ok_or_else(|| failed(Errno::ENOENT))?;
        let stat = fstat(&from).map_err(failed)?;
        let (size, mtime_ns) = (stat.st_size as u64, Some(os::mtime_ns(&stat)));
        let is_doubtful = self.is_doubtful(of)?;
        // Nothing says that it is the whole of a file that is on stable storage.
        let made = self.stage_made(ino, 0, mtime_ns, false, |to| match is_doubtful {
            true => self.copy_cached(&from, to, size, &|| false),
            false => self.fill_from(to, &from, size, size, &drop),
        });
        made.map(drop).map_err(|error| match fstat(&from) {
            Ok(stat) if (stat.st_size as u64) < size => failed(Errno::EBUSY),
            _ => error,
        })
    }

    /// `failed` is told where a copy has failed (EIO), which may be for either of the two.
    fn fill_from(
        &self,
        to: &File,
        from: &File,
        size: u64,
        keep: u64,
        failed: &dyn Fn(Range<u64>),
    ) -> Result<(), Errno> {
        if keep > 0 && os::reflink(from, to)? {
            return if keep < size { ftruncate(to, keep as i64) } else { Ok(()) };
        }
        ftruncate(to, keep as i64)?;
        let mut copied = 0;
        while let Some((start, end)) = os::next_data(from, copied, keep)? {
            // The reserve belongs to the catalog: a large copy stops before it.
            let room = self.free_space().map_or(u64::MAX, |space| space.free);
            let end = end.min(start + (64 << 20));
            if room < end - start {
                return Err(Errno::ENOSPC);
            }
            os::copy_range(from, to, start, end).inspect_err(|errno| {
                if *errno == Errno::EIO {
                    failed(start..end);
                }
            })?;
            copied = end;
        }
        Ok(())
    }

    fn stage_made(
        &self,
        ino: Ino,
        bytes: u64,
        mtime_ns: Option<i64>,
        is_copy: bool,
        fill: impl Fn(&File) -> Result<(), Errno>,
    ) -> FsResult<File> {
        let at = self.dir(Dir::Staging);
        let (temporary, file) = self.make_temporary(ino, bytes, mtime_ns, fill)?;
        lock_shared(&file, ino)?;
        // Only this process makes names here, so under its lock looking and renaming is as good as one step.
        let renamed = self.with_room(0, || {
            let mut state = self.staging.lock();
            match stat_regular(at, &ino.to_string()) {
                Err(Errno::ENOENT) => {}
                Ok(_) => return Err(Errno::EEXIST),
                Err(errno) => return Err(errno),
            }
            self.forget_note(&mut state, ino).map_err(|error| error.errno)?;
            if is_copy {
                self.mark_copy(&mut state, ino)?;
            }
            renameat(at, temporary.as_str(), at, ino.to_string().as_str())
        });
        if renamed.is_err() {
            self.remove_temporary(&temporary);
        }
        renamed.map(|()| file).map_err(|errno| fail(errno, "make", &staging_path(ino)))
    }

    /// Make a file under another name than its own, and fill it; the name and the file.
    pub(super) fn make_temporary(
        &self,
        ino: Ino,
        bytes: u64,
        mtime_ns: Option<i64>,
        fill: impl Fn(&File) -> Result<(), Errno>,
    ) -> FsResult<(String, File)> {
        let temporary = self.temporary_of(ino);
        let made = self.with_room(bytes, || self.fill_temporary(&temporary, mtime_ns, &fill));
        made.map(|file| (temporary, file)).map_err(|errno| fail(errno, "make", &staging_path(ino)))
    }

    /// A name that nothing has yet.
    pub(super) fn temporary_of(&self, ino: Ino) -> String {
        let mut state = self.staging.lock();
        state.made += 1;
        format!("{ino}.{}", state.made)
    }

    /// Make a file under such a name, wherever the room comes from.
    pub(super) fn fill_temporary(
        &self,
        temporary: &str,
        mtime_ns: Option<i64>,
        fill: &dyn Fn(&File) -> Result<(), Errno>,
    ) -> Result<File, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = os::open_file(self.dir(Dir::Staging), temporary, flags)?;
        let filled = fill(&file).and_then(|()| match mtime_ns {
            Some(ns) => {
                let time = TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
                futimens(&file, &time, &time)
            }
            None => Ok(()),
        });
        if filled.is_err() {
            self.remove_temporary(temporary);
        }
        filled.map(|()| file)
    }

    pub(super) fn remove_temporary(&self, temporary: &str) {
        // What stays is removed at the next start.
        let _ = unlinkat(self.dir(Dir::Staging), temporary, UnlinkatFlags::NoRemoveDir);
    }

    /// A description of its own of a staging file, if there is one. With `write` it carries the writer's lock, and a seal
    /// under way becomes out of date; so it must be used for everything that changes the file, truncation too.
    pub fn open_staged(&self, ino: Ino, write: bool) -> FsResult<Option<File>> {
        let mut state = self.staging.lock();
        let flags = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        match os::open_file(self.dir(Dir::Staging), &ino.to_string(), flags) {
            Ok(file) => {
                if write {
                    lock_shared(&file, ino)?;
                    state.supersede(ino);
                }
                Ok(Some(file))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(fail(errno, "open", &staging_path(ino))),
        }
    }

    /// Make what was written to a staging file durable, without its name; `false` without such a file. When that fails, the
    /// file is doubtful from then on.
    pub fn sync_staged_data(&self, ino: Ino) -> FsResult<bool> {
        self.sync_staged_file(ino).map(|file| file.is_some())
    }

    fn sync_staged_file(&self, ino: Ino) -> FsResult<Option<File>> {
        let Some(file) = self.open_staged(ino, false)? else { return Ok(None) };
        match fsync(&file) {
            Ok(()) => Ok(Some(file)),
            Err(errno) => {
                self.sync_failed(ino, &file, errno);
                Err(fail(errno, "sync", &staging_path(ino)))
            }
        }
    }

    /// The same and its name. Needs no writer's descriptor and does not disturb a seal.
    pub fn sync_staged(&self, ino: Ino) -> FsResult<bool> {
        let Some(file) = self.sync_staged_file(ino)? else { return Ok(false) };
        let failed = |errno| fail(errno, "sync", &staging_path(ino));
        let inode = fstat(&file).map_err(failed)?.st_ino;
        let was_unsynced = self.copy_was_synced(ino)?;
        if !was_unsynced && self.staging.lock().durable_names.contains(&ino) {
            return Ok(true);
        }
        self.sync_staging_dir()?;
        // Unless it was replaced by another file of the same name meanwhile.
        let mut state = self.staging.lock();
        if stat_regular(self.dir(Dir::Staging), &ino.to_string()).is_ok_and(|stat| stat.st_ino == inode) {
            state.durable_names.insert(ino);
        }
        Ok(true)
    }

    /// Whether there is a staging file.
    pub fn is_staged(&self, ino: Ino) -> FsResult<bool> {
        self.staged_stat(ino).map(|stat| stat.is_some())
    }

    /// All staging files.
    pub fn staged(&self) -> FsResult<Vec<Ino>> {
        let names = os::names(self.folder.root_fd(), Dir::Staging.name()).map_err(|e| fail(e, "list", "staging"))?;
        Ok(names.iter().filter_map(|name| ino_of(name)).collect())
    }

    /// Length, time and blocks of a staging file, if there is one.
    pub fn staged_stat(&self, ino: Ino) -> FsResult<Option<StagedStat>> {
        match stat_regular(self.dir(Dir::Staging), &ino.to_string()) {
            Ok(stat) => Ok(Some(StagedStat {
                size: stat.st_size as u64,
                mtime_ns: os::mtime_ns(&stat),
                ctime_ns: os::ctime_ns(&stat),
                written: self.retouched.written(ino, Stamp::of(&stat)),
                blocks: stat.st_blocks as u64,
            })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(fail(errno, "look at", &staging_path(ino))),
        }
    }

    /// Set the time of the last change of a staging file, if there is one. Of one that was written no stamp shows that then, so it is marked:
    /// `is_written` is asked at the last moment, with the stamp of the last write. Of an empty one its length tells.
    pub fn set_staged_mtime(&self, ino: Ino, mtime_ns: i64, is_written: impl FnOnce(&Stamp) -> bool) -> FsResult<()> {
        let Some(file) = self.open_staged(ino, false)? else { return Ok(()) };
        let mtime = TimeSpec::new(mtime_ns.div_euclid(1_000_000_000), mtime_ns.rem_euclid(1_000_000_000));
        let set = |stat: &FileStat, written: Stamp| {
            let mode = Mode::from_bits_truncate(stat.st_mode);
            if stat.st_size > 0 && !mode.contains(WRITTEN) && is_written(&written) {
                fchmod(&file, mode | WRITTEN)?;
            }
            futimens(&file, &TimeSpec::UTIME_OMIT, &mtime)
        };
        self.retouch(ino, &file, set).map_err(|errno| fail(errno, "set the time of", &staging_path(ino)))
    }

    /// Make the names of all staging files durable.
    pub fn sync_staging_dir(&self) -> FsResult<()> {
        nix::unistd::fsync(self.dir(Dir::Staging)).map_err(|errno| fail(errno, "sync", "staging"))
    }

    /// Remove a staging file, if there is one. Who has it open keeps it.
    pub fn remove_staged(&self, ino: Ino) -> FsResult<()> {
        let mut state = self.staging.lock();
        state.supersede(ino);
        self.unlink_staged(&mut state, ino)
    }

    pub(super) fn unlink_staged(&self, state: &mut State, ino: Ino) -> FsResult<()> {
        state.seals.remove(&ino);
        state.gone(ino);
        self.retouched.forget(ino);
        match unlinkat(self.dir(Dir::Staging), ino.to_string().as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {
                self.unmark_gone_copy(state, ino);
                self.forget_gone_note(state, ino);
                Ok(())
            }
            Err(errno) => Err(fail(errno, "remove", &staging_path(ino))),
        }
    }

    pub(super) fn remove_half_made(&self) -> FsResult<()> {
        let names = os::names(self.folder.root_fd(), Dir::Staging.name()).map_err(|e| fail(e, "list", "staging"))?;
        let half_made = |name: &&String| {
            name.split_once('.').is_some_and(|(ino, number)| ino_of(ino).is_some() && number.parse::<u64>().is_ok())
        };
        for name in names.iter().filter(half_made) {
            unlinkat(self.dir(Dir::Staging), name.as_str(), UnlinkatFlags::NoRemoveDir)
                .map_err(|errno| fail(errno, "remove", &format!("staging/{name}")))?;
        }
        Ok(())
    }
}

/// Never waits: exclusive locks are only tried under the `staging` lock, or on a file nobody knows yet.
fn lock_shared(file: &File, ino: Ino) -> FsResult<()> {
    os::flock(file, FlockArg::LockSharedNonblock).map_err(|errno| fail(errno, "lock", &staging_path(ino)))
}
