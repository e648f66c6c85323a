//! Contents being fetched: `incoming/<sha256>`. Whatever says the file is complete, it becomes a content only after its
//! whole SHA-256 was verified here. A partly fetched file survives a restart.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::ContentId;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat};
use nix::unistd::{UnlinkatFlags, ftruncate, unlinkat};

use super::{ContentStore, fail, hash};
use crate::folder::Dir;
use crate::os;

fn incoming_path(content: ContentId) -> String {
    format!("incoming/{content}")
}

impl ContentStore {
    /// The file to fetch a content into, of its full length, to read and write: new, or what an earlier attempt left.
    ///
    /// # Errors
    /// `ENOSPC` when what is missing of it would not fit on the disk, even with the trash emptied.
    pub fn incoming_file(&self, content: ContentId, size: u64) -> FsResult<File> {
        let made = self.with_room(self.incoming_needs(content, size), || self.make_incoming(content, size));
        made.map_err(|errno| fail(errno, "make", &incoming_path(content)))
    }

    /// The same without emptying the trash, which may take seconds: for who holds a lock, and has made room before.
    ///
    /// # Errors
    /// `ENOSPC` when what is missing of it would not fit on the disk.
    pub fn incoming_file_in_room(&self, content: ContentId, size: u64) -> FsResult<File> {
        let made = self.in_room(self.incoming_needs(content, size), || self.make_incoming(content, size));
        made.map_err(|errno| fail(errno, "make", &incoming_path(content)))
    }

    fn make_incoming(&self, content: ContentId, size: u64) -> Result<File, Errno> {
        let (at, name) = (self.dir(Dir::Incoming), content.to_hex());
        let open = || os::open_file(at, &name, OFlag::O_RDWR | OFlag::O_CREAT);
        let file = match open() {
            // Earlier releases made it read-only before they were done with it.
            Err(Errno::EACCES) => {
                fchmodat(at, name.as_str(), Mode::S_IRUSR | Mode::S_IWUSR, FchmodatFlags::FollowSymlink)?;
                open()?
            }
            file => file?,
        };
        let length = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
        if fstat(&file)?.st_size != length {
            ftruncate(&file, length)?;
        }
        Ok(file)
    }

    /// Bytes that its file still lacks on the disk.
    pub fn incoming_needs(&self, content: ContentId, size: u64) -> u64 {
        size.saturating_sub(self.incoming_used(content).map_or(0, |(_, allocated)| allocated))
    }

    /// When something last came into its file, and the bytes it takes up. `None` when there is none.
    pub fn incoming_used(&self, content: ContentId) -> Option<(SystemTime, u64)> {
        let stat = super::stat_regular(self.dir(Dir::Incoming), &content.to_hex()).ok()?;
        Some((os::time(os::mtime_ns(&stat)), stat.st_blocks as u64 * 512))
    }

    /// A descriptor to read what of a content is here already: of the file made by [`ContentStore::incoming_file`]. `None`
    /// when there is none (any more).
    pub fn open_incoming(&self, content: ContentId) -> FsResult<Option<File>> {
        match os::open_file(self.dir(Dir::Incoming), &content.to_hex(), OFlag::O_RDONLY) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(fail(errno, "open", &incoming_path(content))),
        }
    }

    /// Which pieces of a file made by [`ContentStore::incoming_file`] are there and right: one bit each, the first piece
    /// is the highest bit of the first byte. Holes cost nothing. `EBUSY` as soon as `stop` says so.
    pub fn incoming_pieces(
        &self,
        file: &File,
        content: ContentId,
        size: u64,
        pieces: &[u8],
        stop: &dyn Fn() -> bool,
    ) -> FsResult<Vec<u8>> {
        hash::good_pieces(file, size, pieces, stop).map_err(|errno| fail(errno, "read", &incoming_path(content)))
    }

    /// Verify a fetched file as a whole, make it durable, and give it its name in `data/`. Nobody may have it open for
    /// writing. Does nothing when the content is held already.
    ///
    /// # Errors
    /// `EIO` when it is not the content it was fetched as: then it is removed, as when it cannot be made durable. `EBUSY` as
    /// soon as `stop` says so.
    pub fn finish_incoming(&self, content: ContentId, size: u64, stop: &dyn Fn() -> bool) -> FsResult<()> {
        let failed = |errno| fail(errno, "verify", &incoming_path(content));
        let at = self.dir(Dir::Incoming);
        let name = content.to_hex();
        let file = match os::open_file(at, &name, OFlag::O_RDONLY) {
            Err(Errno::ENOENT) if self.has(content)? == Some(size) => return Ok(()),
            file => file.map_err(failed)?,
        };
        let wrong = |what: String| {
            let removed = self.remove_incoming(content);
            removed.and(Err(fail::damaged(&incoming_path(content), &what)))
        };
        let length = fstat(&file).map_err(failed)?.st_size as u64;
        if length != size {
            return wrong(format!("it has {length} bytes, not {size}; removed"));
        }
        let found = hash::hash(&file, size, false, stop).map_err(failed)?.content;
        if found != content {
            return wrong(format!("its SHA-256 is {found}; removed"));
        }
        if let Err(error) = file.sync_all() {
            // The next sync would succeed and say nothing of what is not on the disk (see `doubt`). It can be had again.
            self.remove_incoming(content)?;
            return Err(failed(os::errno(&error)));
        }
        self.put(&mut self.shard(content).lock(), Dir::Incoming, &name, content).map_err(failed)?;
        // Last: a read-only file in `incoming/` could not be opened again to go on with.
        file.set_permissions(PermissionsExt::from_mode(0o400)).map_err(|error| failed(os::errno(&error)))
    }

    /// Give up fetching a content.
    pub fn remove_incoming(&self, content: ContentId) -> FsResult<()> {
        match unlinkat(self.dir(Dir::Incoming), content.to_hex().as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(fail(errno, "remove", &incoming_path(content))),
        }
    }

    /// Contents of which something was fetched.
    pub fn incoming(&self) -> FsResult<Vec<ContentId>> {
        self.in_dir(Dir::Incoming)
    }
}
