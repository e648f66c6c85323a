//! Contents that turned out not to be what their names say, or that could not be read, and that another disk has whole: set aside
//! under `data/xx/<SHA-256>.damaged`. From then on this disk does not hold them: it neither announces nor promises them, and fetches them
//! where another disk has them. The file stays, for whoever wants to save a part of it, until it was replaced or no file has the
//! content any more. A scrub that finds it whole again, as when a cable was loose, takes it back.

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::ContentId;
use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise, renameat};
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::damaged::Damage;
use super::{ContentStore, content_of, data_path, fail, hash, shard_of, stat_regular};
use crate::folder::Dir;
use crate::os;

/// How the names of such files end.
const DAMAGED: &str = ".damaged";

/// Whether a content is to be set aside, by whether it was found whole.
type IsBad = fn(Result<bool, Errno>) -> Result<bool, Errno>;

/// What became of a copy that was found bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspect {
    /// This disk does not hold it.
    Absent,
    /// It is what its name says.
    Whole,
    /// It is bad, and is set aside as this file.
    SetAside(String),
}

/// What a look at a copy has found.
#[derive(Debug)]
pub enum Look {
    /// There is none.
    Absent,
    /// It is what its name says.
    Whole,
    /// It is not, or cannot be read: noted, as [`ContentStore::damage`] says from then on.
    Bad(FsError),
}

/// Whether what was found could be noted.
enum Noted {
    Yes,
    /// Replaced meanwhile by one that was verified when it came.
    Replaced,
    /// Gone, and nobody's any more.
    Gone,
}

fn aside_name(content: ContentId) -> String {
    format!("{}{DAMAGED}", content.to_hex())
}

/// The content that a name in `data/` is damaged remains of.
pub(super) fn aside_of(name: &str) -> Option<ContentId> {
    content_of(name.strip_suffix(DAMAGED)?)
}

impl ContentStore {
    /// Like [`ContentStore::check`]; what is damaged is set aside, with nobody asked: for a start after a crash, where it never was whole. Not
    /// what could not be read.
    ///
    /// # Errors
    /// `EIO` naming the file when it is not what its name says, otherwise as [`ContentStore::open_content`].
    pub fn verify(&self, content: ContentId, size: u64) -> FsResult<()> {
        let checked = self.check(content, size);
        checked.or_else(|error| self.verified(content, error, |read| read.map(|is_whole| !is_whole)))
    }

    /// Like [`ContentStore::check`]; what was set aside and is whole after all is taken back.
    ///
    /// # Errors
    /// As those of [`ContentStore::check`]. What is damaged stays where it is.
    pub fn check_or_take_back(&self, content: ContentId, size: u64, stop: &dyn Fn() -> bool) -> FsResult<()> {
        match self.check_unless(content, size, stop) {
            Err(error) if error.errno == Errno::ENOENT && self.take_from_aside(content, size) => Ok(()),
            // As when a cable was loose: that it was damaged is forgotten.
            Ok(()) if self.damage(content).is_some() => self.look_at(content).map(drop),
            checked => checked,
        }
    }

    /// Whether a copy is what its name says, whatever length somebody thinks it has. It stays where it is, and what is
    /// found is noted. Twice if it is bad, the second time from the disk: it may have been read wrongly.
    pub fn look_at(&self, content: ContentId) -> FsResult<Look> {
        let failed = |errno| fail(errno, "look at", &data_path(content));
        let name = content.to_hex();
        let file = match self.open_shard(content).and_then(|dir| os::open_file(dir, &name, OFlag::O_RDONLY)) {
            Ok(file) => file,
            Err(Errno::ENOENT) => {
                self.missed(content);
                return Ok(Look::Absent);
            }
            Err(errno) => return Err(failed(errno)),
        };
        let looked_at = fstat(&file).map_err(failed)?;
        let size = looked_at.st_size as u64;
        let found = match hash::hash(&file, size, false, &|| false).map(|found| found.content) {
            Ok(found) if found == content => None,
            _ => match is_whole(&file, content) {
                Ok(true) => None,
                Ok(false) => Some((Damage::Wrong, fail::damaged(&data_path(content), "it is not what its name says"))),
                Err(Errno::EIO) => Some((Damage::Unreadable, fail(Errno::EIO, "read", &data_path(content)))),
                Err(errno) => return Err(fail(errno, "read", &data_path(content))),
            },
        };
        let noted = self.note_damage(content, &looked_at, found.as_ref().map(|(damage, _)| *damage))?;
        if matches!(noted, Noted::Yes)
            && let Err(error) = self.save_damaged()
            && found.is_some()
        {
            tracing::warn!("{} is known to be damaged only until this process ends: {error}", data_path(content));
        }
        Ok(match noted {
            Noted::Yes => found.map_or(Look::Whole, |(_, error)| Look::Bad(error)),
            Noted::Replaced => Look::Whole,
            Noted::Gone => Look::Absent,
        })
    }

    /// Whether this range of a content cannot be read, as somebody says who has tried. Then that is noted, as
    /// [`ContentStore::damage`] says from then on, and written down by the next look at it: who asks does not wait for a sync of a failing
    /// disk. `false` for what is not here.
    pub fn is_unreadable(&self, content: ContentId, range: Range<u64>) -> FsResult<bool> {
        if self.damage(content).is_some() {
            return Ok(true);
        }
        let file = match self.open_as_it_is(content) {
            Err(error) if error.errno == Errno::ENOENT => return Ok(false),
            file => file?,
        };
        let looked_at = fstat(&file).map_err(|errno| fail(errno, "look at", &data_path(content)))?;
        let range = range.start..range.end.min(looked_at.st_size as u64);
        match hash::read_through(&file, range) {
            Ok(()) => Ok(false),
            Err(Errno::EIO) => {
                tracing::warn!("{}", fail(Errno::EIO, "read", &data_path(content)));
                Ok(matches!(self.note_damage(content, &looked_at, Some(Damage::Unreadable))?, Noted::Yes))
            }
            Err(errno) => Err(fail(errno, "read", &data_path(content))),
        }
    }

    /// Note what a look at a copy has found, if that is the one that is there still.
    fn note_damage(&self, content: ContentId, looked_at: &FileStat, found: Option<Damage>) -> FsResult<Noted> {
        let _shard = self.shard(content).lock();
        let now = self.stat(content).map_err(|errno| fail(errno, "look at", &data_path(content)))?;
        if now.is_none_or(|now| (now.st_ino, now.st_dev) != (looked_at.st_ino, looked_at.st_dev)) {
            return Ok(if now.is_some() { Noted::Replaced } else { Noted::Gone });
        }
        match found {
            Some(damage) => self.damaged.note(content, damage),
            None => self.damaged.forget(content),
        }
        Ok(Noted::Yes)
    }

    /// Set a copy aside that was found bad, if it still is, whatever length somebody thinks it has; one that cannot be read only with
    /// `unreadable`.
    ///
    /// # Errors
    /// What could not be read, and stays where it is.
    pub fn suspect(&self, content: ContentId, unreadable: bool) -> FsResult<Suspect> {
        let is_bad: IsBad = match unreadable {
            true => |read| match read {
                Err(Errno::EIO) => Ok(true),
                read => read.map(|is_whole| !is_whole),
            },
            false => |read| read.map(|is_whole| !is_whole),
        };
        if self.set_aside(content, is_bad)? {
            return Ok(Suspect::SetAside(aside_name(content)));
        }
        Ok(match self.stat(content).map_err(|errno| fail(errno, "look at", &data_path(content)))? {
            Some(_) => {
                self.damaged.forget(content);
                Suspect::Whole
            }
            None => Suspect::Absent,
        })
    }

    /// After a look that ended with this error.
    fn verified(&self, content: ContentId, error: FsError, is_bad: IsBad) -> FsResult<()> {
        match self.set_aside(content, is_bad)? {
            false => Err(error),
            true => {
                let text = format!("{}; it is set aside, as {}", error.message, aside_name(content));
                tracing::warn!("{text}");
                Err(FsError::new(error.errno, text))
            }
        }
    }

    /// Set a content aside if it is bad on a second look too, from the disk this time: it may have been read wrongly. Whatever
    /// length somebody has claimed it to have, only its own bytes count.
    fn set_aside(&self, content: ContentId, is_bad: IsBad) -> FsResult<bool> {
        let failed = |errno| fail(errno, "set aside", &data_path(content));
        let name = content.to_hex();
        let opened = self.open_shard(content).and_then(|dir| os::open_file(dir, &name, OFlag::O_RDONLY));
        let Ok(file) = opened else { return Ok(false) };
        if !is_bad(is_whole(&file, content)).map_err(failed)? {
            return Ok(false);
        }
        let mut shard = self.shard(content).lock();
        let dir = self.open_shard(content).map_err(failed)?;
        let Ok(now) = stat_regular(&dir, &name) else { return Ok(false) };
        let looked_at = fstat(&file).map_err(failed)?;
        if (now.st_ino, now.st_dev) != (looked_at.st_ino, looked_at.st_dev) {
            return Ok(false); // replaced meanwhile by a good one
        }
        renameat(&dir, name.as_str(), &dir, aside_name(content).as_str()).map_err(failed)?;
        Ok(self.gone(&mut shard, content, now.st_size as u64))
    }

    /// Take back what was set aside, if it is whole after all; whether it is there now.
    fn take_from_aside(&self, content: ContentId, size: u64) -> bool {
        let name = aside_name(content);
        let opened = self.open_shard(content).and_then(|dir| os::open_file(dir, &name, OFlag::O_RDONLY));
        let Ok(file) = opened else { return false };
        if !file.metadata().is_ok_and(|meta| meta.len() == size) || is_whole(&file, content) != Ok(true) {
            return false;
        }
        let mut shard = self.shard(content).lock();
        if let Err(errno) = self.put(&mut shard, Dir::Data, &format!("{}/{name}", shard_of(content)), content) {
            tracing::warn!("{}", fail(errno, "take back", &format!("{}{DAMAGED}", data_path(content))));
            return false;
        }
        tracing::warn!("{} is whole after all, and taken back", data_path(content));
        true
    }

    /// A good one is here. The caller holds the shard's lock.
    pub(super) fn drop_aside(&self, dir: &File, content: ContentId) {
        match unlinkat(dir, aside_name(content).as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => tracing::warn!("{}", fail(errno, "remove", &format!("{}{DAMAGED}", data_path(content)))),
        }
    }

    /// Remove what is set aside of contents that no file has.
    pub(super) fn collect_aside(&self, live: &HashSet<ContentId>) {
        for first in 0..=255 {
            let Ok(names) = os::file_names(self.dir(Dir::Data), &format!("{first:02x}")) else { continue };
            for content in names.iter().filter_map(|name| aside_of(name)).filter(|content| !live.contains(content)) {
                let _shard = self.shard(content).lock();
                if let Ok(dir) = self.open_shard(content) {
                    self.drop_aside(&dir, content);
                }
            }
        }
    }
}

fn is_whole(file: &File, content: ContentId) -> Result<bool, Errno> {
    let length = file.metadata().map_err(|error| os::errno(&error))?.len();
    // Best effort: what is in memory may be what is wrong.
    let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    Ok(hash::hash(file, length, false, &|| false)?.content == content)
}
