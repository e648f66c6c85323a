//! The version before: which content another one came in place of, and its bytes as a beginning of the newer one.
//!
//! A file that was changed in a few places, or appended to, has most pieces in common with what it was. Whoever fetches the
//! new content and has the old one (in `data/`, or in `trash/` for as long as it lies there) copies those pieces instead of
//! fetching them. Only pieces at the same offset are found: what moves all bytes along is fetched as if it was new.
//!
//! What came in place of what is known in memory only: after a restart, what was not fetched yet comes whole. It is a hint and
//! nothing else: a piece is taken over because its hash is right.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::{ContentId, Ino};
use delugefs_proto::limits::piece_length_bytes;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use parking_lot::Mutex;

use super::{ContentStore, fail};
use crate::folder::Dir;
use crate::os;

/// Successions remembered; the oldest are forgotten.
const KNOWN_MAX: usize = 1024;
/// Versions between the one that is here and the one that is fetched.
const STEPS_MAX: usize = 16;
/// Bytes read at once.
const BLOCK_BYTES: usize = 1 << 20;

/// What is remembered.
#[derive(Default)]
pub(super) struct Earlier(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Newer, older.
    contents: VecDeque<(ContentId, ContentId)>,
    /// Files whose first content is still being written, and what they came in place of.
    files: VecDeque<(Ino, ContentId)>,
}

impl Known {
    fn before(&self, content: ContentId) -> Option<ContentId> {
        self.contents.iter().find(|(newer, _)| *newer == content).map(|(_, older)| *older)
    }
}

fn remember<T: PartialEq>(known: &mut VecDeque<(T, ContentId)>, newer: T, older: ContentId) {
    known.retain(|(other, _)| *other != newer);
    known.push_back((newer, older));
    if known.len() > KNOWN_MAX {
        known.pop_front();
    }
}

/// The version before a content, open.
pub struct Older {
    content: ContentId,
    file: File,
    length: u64,
    newer: ContentId,
    /// Of the newer one.
    size: u64,
    block: Vec<u8>,
}

impl ContentStore {
    /// Remember that a file's content came in place of another; of `newer` nothing is known while the first content of a file
    /// that took another one's name is still being written, and of `older` when that content comes.
    pub fn note_version(&self, ino: Ino, newer: Option<ContentId>, older: Option<ContentId>) {
        let mut known = self.earlier.0.lock();
        let waiting = || known.files.iter().find(|(other, _)| *other == ino).map(|(_, older)| *older);
        let Some(older) = older.or_else(waiting) else { return };
        match newer {
            Some(newer) => remember(&mut known.contents, newer, older),
            None => remember(&mut known.files, ino, older),
        }
    }

    /// Whether something is known that may help to fetch a content.
    pub fn has_earlier(&self, content: ContentId) -> bool {
        self.earlier.0.lock().before(content).is_some()
    }

    /// The latest version before this one that is on this disk. What is in the trash stays there: nobody relies on it.
    pub fn open_earlier(&self, content: ContentId, size: u64) -> Option<Older> {
        let mut at = content;
        for _ in 0..STEPS_MAX {
            at = self.earlier.0.lock().before(at)?;
            let name = at.to_hex();
            let held = self.open_shard(at).and_then(|dir| os::open_file(dir, &name, OFlag::O_RDONLY));
            let file = held.or_else(|_| os::open_file(self.dir(Dir::Trash), &name, OFlag::O_RDONLY));
            if let Ok(file) = file {
                let length = file.metadata().map_or(0, |metadata| metadata.len());
                return Some(Older { content: at, file, length, newer: content, size, block: Vec::new() });
            }
        }
        None
    }

    /// The version before was looked through to the end. Another attempt, perhaps because this one ended with a wrong whole,
    /// begins with nothing of it.
    pub fn forget_earlier(&self, content: ContentId) {
        self.earlier.0.lock().contents.retain(|(newer, _)| *newer != content);
    }

    /// Copy a piece, by its number and hash, into a file of [`ContentStore::incoming_file`]; whether the version before has it.
    ///
    /// # Errors
    /// `EBUSY` as soon as `stop` says so, `ENOSPC`, and what the disk says when writing.
    pub fn copy_piece(
        &self,
        older: &mut Older,
        to: &File,
        (number, wanted): (usize, &[u8]),
        stop: &dyn Fn() -> bool,
    ) -> FsResult<bool> {
        let piece_bytes = u64::from(piece_length_bytes(older.size));
        let (start, end) = (number as u64 * piece_bytes, older.size.min((number as u64 + 1) * piece_bytes));
        if end > older.length {
            return Ok(false);
        }
        match sha1(&older.file, start, end, &mut older.block, stop) {
            Ok(Some(sha1)) if sha1 == wanted => {}
            Ok(_) => return Ok(false),
            Err(Errno::EBUSY) => return Err(Errno::EBUSY.into()),
            // It is fetched instead, as is all else: more of a failing disk is not read for this.
            Err(errno) => {
                tracing::debug!(
                    "content {}, the version before {}, cannot be read: {errno}",
                    older.content,
                    older.newer
                );
                older.length = 0;
                return Ok(false);
            }
        }
        self.make_room(end - start)?;
        os::copy_range(&older.file, to, start, end)
            .map_err(|errno| fail::fail(errno, "copy from the version before", &format!("incoming/{}", older.newer)))?;
        Ok(true)
    }
}

/// The SHA-1 of a stretch of a file; `None` for a hole, which an incoming file has of its own where it belongs.
fn sha1(
    file: &File,
    start: u64,
    end: u64,
    block: &mut Vec<u8>,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<u8>>, Errno> {
    if os::next_data(file, start, end)?.is_none() {
        return if stop() { Err(Errno::EBUSY) } else { Ok(None) };
    }
    let mut sha1 = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    let mut here = start;
    while here < end {
        if stop() {
            return Err(Errno::EBUSY);
        }
        block.resize((end - here).min(BLOCK_BYTES as u64) as usize, 0);
        file.read_exact_at(block, here).map_err(|error| os::errno(&error))?;
        sha1.update(block);
        here += block.len() as u64;
    }
    Ok(Some(sha1.finish().as_ref().to_vec()))
}
