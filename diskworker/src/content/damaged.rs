//! What was found damaged and stays where it is, over a restart: ROOT/damaged, a line for each content. Nobody is to rely on such a copy, and
//! that must not be forgotten with the process: it would be promised, and counted as a good one, until somebody meets it again.
//!
//! The file is a note and no truth: what it says is looked at again. A file that is lost or damaged costs that somebody has to meet the
//! damage once more.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::ContentId;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::libc::mode_t;
use nix::unistd::fsync;
use parking_lot::Mutex;

use super::ContentStore;
use crate::folder::DiskFolder;

const FILE: &str = "damaged";
const UNFINISHED: &str = "damaged.new";
/// The first line. Another one is that of a version which knows more.
const HEAD: &str = "delugefs damaged 1";
/// What is remembered. With more it is the disk.
const MAX: usize = 10_000;
/// Larger than the file can be, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The permission bit of a copy in the trash that has wrong bytes.
pub(super) const MARK: mode_t = 0o100;

/// What is wrong with a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It has other bytes than its name says.
    Wrong,
    /// It cannot be read: a bad sector, or rot that the file system has met.
    Unreadable,
}

impl Damage {
    fn word(self) -> &'static str {
        match self {
            Damage::Wrong => "wrong",
            Damage::Unreadable => "unreadable",
        }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Damaged {
    known: Mutex<Known>,
    /// Held while the file is written: the later state is the last one.
    writing: Mutex<()>,
}

#[derive(Default)]
struct Known {
    contents: BTreeMap<ContentId, Damage>,
    is_written: bool,
}

impl Damaged {
    /// As it was written; nothing of what cannot be read.
    pub fn recall(folder: &DiskFolder) -> Self {
        let contents = match read(folder) {
            Ok(text) => parse(&text),
            Err(Errno::ENOENT) => BTreeMap::new(),
            Err(errno) => {
                tracing::warn!(
                    "ROOT/damaged cannot be read: {}; what was found damaged is looked for anew",
                    errno.desc()
                );
                BTreeMap::new()
            }
        };
        Self { known: Mutex::new(Known { contents, is_written: true }), writing: Mutex::default() }
    }

    pub fn note(&self, content: ContentId, damage: Damage) {
        let mut known = self.known.lock();
        let has_place = known.contents.len() < MAX || known.contents.contains_key(&content);
        if has_place && known.contents.insert(content, damage) != Some(damage) {
            known.is_written = false;
        }
    }

    /// The copy is gone, or another one, or whole after all.
    pub fn forget(&self, content: ContentId) {
        let mut known = self.known.lock();
        if known.contents.remove(&content).is_some() {
            known.is_written = false;
        }
    }

    fn save(&self, folder: &DiskFolder) -> FsResult<()> {
        let _writing = self.writing.lock();
        let text = {
            let mut known = self.known.lock();
            if std::mem::replace(&mut known.is_written, true) {
                return Ok(());
            }
            render(&known.contents)
        };
        write(folder, &text).inspect_err(|_| self.known.lock().is_written = false)
    }
}

impl ContentStore {
    /// What is damaged here and stays: neither to be promised nor to be vouched for.
    pub fn damaged(&self) -> Vec<ContentId> {
        self.damaged.known.lock().contents.keys().copied().collect()
    }

    /// How many that are.
    pub fn damaged_len(&self) -> usize {
        self.damaged.known.lock().contents.len()
    }

    /// What is wrong with the copy here, as far as that is known.
    pub fn damage(&self, content: ContentId) -> Option<Damage> {
        self.damaged.known.lock().contents.get(&content).copied()
    }

    /// What a person has removed meanwhile is damaged no more.
    pub(super) fn forget_gone(&self) {
        let gone = self.damaged().into_iter().filter(|content| matches!(self.stat(*content), Ok(None)));
        gone.for_each(|content| self.damaged.forget(content));
    }

    /// Write down what has changed of that. Where it cannot be, the next call tries again; it is known until the process ends.
    ///
    /// # Errors
    /// What the disk says.
    pub fn save_damaged(&self) -> FsResult<()> {
        self.damaged.save(&self.folder)
    }
}

fn read(folder: &DiskFolder) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let file = folder.open_file(FILE, OFlag::O_RDONLY)?;
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|error| crate::os::errno(&error))?;
    Ok(bytes)
}

/// What makes sense of it.
fn parse(bytes: &[u8]) -> BTreeMap<ContentId, Damage> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    if lines.next() != Some(HEAD) {
        tracing::warn!("ROOT/damaged is not what it should be; what was found damaged is looked for anew");
        return BTreeMap::new();
    }
    let line = |line: &str| {
        let (content, word) = line.split_once(' ')?;
        let damage = [Damage::Wrong, Damage::Unreadable].into_iter().find(|damage| damage.word() == word)?;
        Some((ContentId::from_hex(content)?, damage))
    };
    lines.filter_map(line).take(MAX).collect()
}

fn render(contents: &BTreeMap<ContentId, Damage>) -> String {
    let lines = contents.iter().map(|(content, damage)| format!("{content} {}\n", damage.word()));
    std::iter::once(format!("{HEAD}\n")).chain(lines).collect()
}

fn write(folder: &DiskFolder, text: &str) -> FsResult<()> {
    let mut file = folder.open_file(UNFINISHED, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    renameat(folder.root_fd(), UNFINISHED, folder.root_fd(), FILE)?;
    Ok(fsync(folder.root_fd())?)
}
