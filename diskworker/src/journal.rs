//! The operation log: every acknowledged change of the catalog, until a commit has made it part of git.
//!
//! ROOT/journal/ holds preallocated *segments*, `log-<first lsn>`, and `state`. A record is what the catalog's keys were
//! set to, so replaying is idempotent. Appending is one write(2): a process crash loses nothing that was appended.
//! [`Journal::sync`] is one fdatasync of a file whose blocks exist already, which is why fsync(2) through a mount is
//! cheap; it is shared by all who wait for it at the same time. A commit moves the log to a new segment
//! ([`Journal::rotate`]) and drops the old ones when it is durable ([`Journal::retire`]).
//!
//! A record: length (4 bytes), CRC-32 of the rest (4), lsn (8), then the change. Lsns count on without gaps; a record
//! that is cut, damaged or out of sequence ends the log. All numbers are little endian.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use delugefs_proto::codec;
use delugefs_proto::ids::{ActorId, random_u64};
use parking_lot::Mutex;

use crate::catalog::{Changes, blob_id};

/// Room a segment is given in advance: what about ten thousand changes take.
const SEGMENT_BYTES: u64 = 4 << 20;
const HEADER_BYTES: usize = 16;
/// Largest record, in bytes: an attribute value and an inline content with a lot of room. Anything larger is damage.
const RECORD_MAX_BYTES: usize = 16 << 20;

/// The log of one disk. All methods take `&self`; appends are ordered by the caller's own lock.
pub struct Journal {
    dir: PathBuf,
    inner: Mutex<Inner>,
    synced: Mutex<u64>,
}

struct Inner {
    current: Segment,
    /// Rotated away, not yet retired.
    old: Vec<Segment>,
    /// Emptied segment to be used again, so that its blocks need not be allocated anew.
    spare: Option<PathBuf>,
    next_lsn: u64,
}

struct Segment {
    path: PathBuf,
    file: std::sync::Arc<File>,
    first_lsn: u64,
    end: u64,
}

/// What [`Journal::open`] found.
pub struct Recovered {
    /// Changes that no commit has taken over (or has, when a crash came in between: replaying them is harmless).
    pub changes: Vec<Changes>,
    /// Who this disk is as a writer from now on.
    pub actor: ActorId,
    /// The last stop was a clean one.
    pub clean: bool,
    /// The machine has not been restarted since this disk was last open (or the stop was clean): nothing that was
    /// written can have been lost.
    pub same_boot: bool,
    /// A sentence about a damaged end of the log, if there was one.
    pub damage: Option<String>,
}

impl Journal {
    /// Open the log of a disk, making it when the folder is empty.
    pub fn open(dir: &Path) -> io::Result<(Self, Recovered)> {
        let mut paths: Vec<(u64, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let lsn = name.to_str().and_then(|n| n.strip_prefix("log-")).and_then(|n| u64::from_str_radix(n, 16).ok());
            match lsn {
                Some(lsn) => paths.push((lsn, entry.path())),
                None if name.to_str().is_some_and(|n| n.starts_with("tmp-")) => std::fs::remove_file(entry.path())?,
                None => {}
            }
        }
        paths.sort();
        let mut changes = Vec::new();
        let mut damage = None;
        let mut next_lsn = paths.first().map_or(1, |(lsn, _)| *lsn);
        for (first, path) in &paths {
            // A segment begun after an unclean start jumps ahead (below); its writer knew all that could be read before.
            next_lsn = next_lsn.max(*first);
            if let Err(text) = replay(&std::fs::read(path)?, &mut next_lsn, &mut changes) {
                damage = Some(format!("journal: {text} in {}", path.display()));
            }
        }
        let (stored, clean, same_boot) = read_state(dir);
        // After anything but a clean stop this disk may have published what it no longer knows: it becomes somebody else.
        let actor = stored.filter(|_| clean && damage.is_none()).unwrap_or_else(|| ActorId(random_u64()));
        write_state(dir, actor, false)?;
        // Never write behind a possibly damaged end: always begin a new segment. Lsns jump so that they cannot collide
        // with records behind the damage.
        let next_lsn = next_lsn + (1 << 20);
        let current = Segment::create(dir, next_lsn)?;
        let old = paths
            .into_iter()
            .map(|(first_lsn, path)| Ok(Segment { file: File::open(&path)?.into(), path, first_lsn, end: 0 }))
            .collect::<io::Result<_>>()?;
        let inner = Inner { current, old, spare: None, next_lsn };
        let journal = Self { dir: dir.into(), inner: inner.into(), synced: next_lsn.into() };
        Ok((
            journal,
            Recovered { changes, actor, clean: clean && damage.is_none(), same_boot: clean || same_boot, damage },
        ))
    }

    /// Append a change. When this returns, the change survives the end of this process; [`Self::sync`] makes it survive
    /// the end of the machine. On an error nothing was appended.
    pub fn append(&self, change: &Changes) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let mut record = encode(inner.next_lsn, change);
        let at = inner.current.end;
        inner.current.end += record.len() as u64;
        // Behind it an empty header, which the next record replaces: in a segment used again there is the middle of
        // some old record, and a reader would take it for damage.
        record.resize(record.len() + HEADER_BYTES, 0);
        if let Err(error) = inner.current.file.write_all_at(&record, at) {
            inner.current.end = at;
            return Err(error);
        }
        inner.next_lsn += 1;
        Ok(())
    }

    /// Make everything appended before the call durable.
    pub fn sync(&self) -> io::Result<()> {
        let want = self.inner.lock().next_lsn;
        let mut synced = self.synced.lock();
        if *synced >= want {
            return Ok(());
        }
        let (files, upto) = {
            let inner = self.inner.lock();
            // Old segments too: until retired they hold what is being committed.
            let files: Vec<_> = inner.old.iter().chain([&inner.current]).map(|s| s.file.clone()).collect();
            (files, inner.next_lsn)
        };
        for file in files {
            file.sync_data()?;
        }
        *synced = upto;
        Ok(())
    }

    /// Begin a new segment; what was appended so far can be retired once it is committed.
    pub fn rotate(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let first_lsn = inner.next_lsn;
        if inner.current.first_lsn == first_lsn {
            return Ok(());
        }
        let segment = match inner.spare.take() {
            Some(spare) => Segment::reuse(&self.dir, &spare, first_lsn)?,
            None => Segment::create(&self.dir, first_lsn)?,
        };
        let old = std::mem::replace(&mut inner.current, segment);
        inner.old.push(old);
        Ok(())
    }

    /// Drop all segments before the current one: a commit has made what they hold durable.
    pub fn retire(&self) -> io::Result<()> {
        let old = std::mem::take(&mut self.inner.lock().old);
        for segment in old {
            let fits = segment.end <= SEGMENT_BYTES && segment.end > 0;
            let spare = self.dir.join("tmp-spare");
            if fits && self.inner.lock().spare.is_none() {
                // The old records in it have lower lsns than any new one, so they cannot be taken for new ones.
                std::fs::rename(&segment.path, &spare)?;
                self.inner.lock().spare = Some(spare);
            } else {
                std::fs::remove_file(&segment.path)?;
            }
        }
        Ok(())
    }

    /// Bytes appended to the current segment.
    pub fn len_bytes(&self) -> u64 {
        self.inner.lock().current.end
    }

    /// Note that everything is committed and this disk stops cleanly.
    pub fn close(&self, actor: ActorId) -> io::Result<()> {
        write_state(&self.dir, actor, true)
    }
}

impl Segment {
    fn path(dir: &Path, first_lsn: u64) -> PathBuf {
        dir.join(format!("log-{first_lsn:016x}"))
    }

    fn create(dir: &Path, first_lsn: u64) -> io::Result<Self> {
        let tmp = dir.join(format!("tmp-{first_lsn:016x}"));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&tmp)?;
        // Real zeros, not a hole: an fdatasync then has no block to allocate and no size to record.
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < SEGMENT_BYTES {
            file.write_all_at(&zeros, at)?;
            at += zeros.len() as u64;
        }
        file.sync_all()?;
        Self::place(dir, &tmp, file, first_lsn)
    }

    fn reuse(dir: &Path, spare: &Path, first_lsn: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(spare)?;
        Self::place(dir, spare, file, first_lsn)
    }

    fn place(dir: &Path, from: &Path, file: File, first_lsn: u64) -> io::Result<Self> {
        let path = Self::path(dir, first_lsn);
        std::fs::rename(from, &path)?;
        File::open(dir)?.sync_all()?;
        Ok(Self { path, file: file.into(), first_lsn, end: 0 })
    }
}

fn encode(lsn: u64, change: &Changes) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    let block = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
    };
    out.extend((change.sets.len() as u32).to_le_bytes());
    for (key, elements) in &change.sets {
        block(&mut out, &codec::encode_key(key));
        block(&mut out, &codec::encode_elements(elements));
    }
    for blob in change.blobs.values() {
        block(&mut out, blob);
    }
    let len = (out.len() - HEADER_BYTES) as u32;
    out[..4].copy_from_slice(&len.to_le_bytes());
    out[8..16].copy_from_slice(&lsn.to_le_bytes());
    let crc = crc32(&out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Append the records of a segment to `changes`. `Err` when it ends in a record that was begun but is not whole.
fn replay(mut bytes: &[u8], next_lsn: &mut u64, changes: &mut Vec<Changes>) -> Result<(), String> {
    loop {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(()) };
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap_or_default());
        let (len, crc) = (word(0) as usize, word(4));
        let lsn = u64::from(word(8)) | u64::from(word(12)) << 32;
        if len == 0 || lsn < *next_lsn {
            return Ok(()); // zeros of the preallocation, or a record of the segment's earlier life
        }
        if lsn != *next_lsn || len > RECORD_MAX_BYTES {
            return Err(format!("record {next_lsn} is damaged"));
        }
        let Some(body) = rest.get(..len) else { return Err(format!("record {lsn} is cut short")) };
        let mut checked = flate2::Crc::new();
        checked.update(&header[8..]);
        checked.update(body);
        if checked.sum() != crc {
            return Err(format!("record {lsn} is damaged"));
        }
        changes.push(decode(body).ok_or_else(|| format!("record {lsn} does not decode"))?);
        *next_lsn += 1;
        bytes = &rest[len..];
    }
}

fn decode(mut body: &[u8]) -> Option<Changes> {
    fn block<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (len, rest) = body.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        *body = rest;
        Some(bytes)
    }
    let (count, rest) = body.split_first_chunk()?;
    body = rest;
    let mut change = Changes { sets: BTreeMap::new(), blobs: BTreeMap::new() };
    for _ in 0..u32::from_le_bytes(*count) {
        let key = codec::decode_key(block(&mut body)?).ok()?;
        let elements = codec::decode_elements(block(&mut body)?).ok()?;
        change.sets.insert(key, elements);
    }
    while !body.is_empty() {
        let blob = block(&mut body)?;
        change.blobs.insert(blob_id(blob), Bytes::copy_from_slice(blob));
    }
    Some(change)
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// `state`: one line, `<actor, 16 hex digits> clean|open <boot id>`.
fn read_state(dir: &Path) -> (Option<ActorId>, bool, bool) {
    let text = std::fs::read_to_string(dir.join("state")).unwrap_or_default();
    let mut words = text.split_whitespace();
    let actor = words.next().and_then(|w| u64::from_str_radix(w, 16).ok()).map(ActorId);
    let clean = words.next() == Some("clean");
    (actor, clean, words.next().is_some_and(|boot| Some(boot) == crate::os::boot_id().as_deref()))
}

fn write_state(dir: &Path, actor: ActorId, clean: bool) -> io::Result<()> {
    let tmp = dir.join("tmp-state");
    let word = if clean { "clean" } else { "open" };
    let boot = crate::os::boot_id().unwrap_or_default();
    let file = File::create(&tmp)?;
    file.write_all_at(format!("{:016x} {word} {boot}\n", actor.0).as_bytes(), 0)?;
    file.sync_all()?;
    std::fs::rename(&tmp, dir.join("state"))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use delugefs_proto::ids::Ino;
    use delugefs_proto::record::{Body, Dot, Element, Hlc, Key, Name};

    use super::*;

    fn change(n: u64) -> Changes {
        let body = Body::Dir { ino: Ino(n + 16) };
        let element = Element { dot: Dot { actor: ActorId(7), seq: n + 1 }, body, hlc: Hlc(n) };
        let blob = Bytes::from(format!("blob {n}"));
        let key = Key::Entry(Ino::ROOT, Name::new(format!("n{n}").as_bytes()).unwrap());
        Changes { sets: [(key, vec![element])].into(), blobs: [(blob_id(&blob), blob)].into() }
    }

    fn found(dir: &Path) -> (Journal, Recovered, Vec<u64>) {
        let (journal, recovered) = Journal::open(dir).unwrap();
        let numbers = recovered.changes.iter().map(|c| c.sets.values().next().unwrap()[0].hlc.0).collect();
        (journal, recovered, numbers)
    }

    #[test]
    fn replays_what_was_appended_until_it_is_retired() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, recovered, numbers) = found(dir.path());
        assert!(numbers.is_empty() && !recovered.clean);
        (0..5).for_each(|n| journal.append(&change(n)).unwrap());
        journal.sync().unwrap();
        journal.rotate().unwrap();
        (5..8).for_each(|n| journal.append(&change(n)).unwrap());
        drop(journal);
        let (journal, again, numbers) = found(dir.path());
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_ne!(again.actor, recovered.actor, "a new writer after an unclean stop");
        journal.append(&change(8)).unwrap();
        journal.rotate().unwrap();
        journal.append(&change(9)).unwrap();
        journal.retire().unwrap();
        // The emptied segment is used again; its old records must not come back.
        journal.rotate().unwrap();
        journal.append(&change(10)).unwrap();
        journal.close(again.actor).unwrap();
        drop(journal);
        let (_, third, numbers) = found(dir.path());
        assert_eq!(numbers, [9, 10]);
        assert!(third.clean && third.actor == again.actor && third.damage.is_none());
    }

    #[test]
    fn a_segment_used_again_ends_where_its_records_end() {
        let long = |n: u64| {
            let mut change = change(n);
            let blob = Bytes::from(vec![0xee; 3000]);
            change.blobs.insert(blob_id(&blob), blob);
            change
        };
        let dir = tempfile::tempdir().unwrap();
        let (journal, ..) = found(dir.path());
        (0..5).for_each(|n| journal.append(&long(n)).unwrap());
        journal.rotate().unwrap();
        journal.retire().unwrap();
        journal.append(&change(5)).unwrap();
        journal.rotate().unwrap();
        journal.retire().unwrap();
        // The first segment is in use again, and the record ends inside of an old one.
        journal.append(&change(6)).unwrap();
        drop(journal);
        let (_, recovered, numbers) = found(dir.path());
        assert_eq!((numbers, recovered.damage), (vec![6], None));
    }

    #[test]
    fn a_damaged_tail_ends_the_log_and_nothing_before_it() {
        for cut in [1usize, 20, 60] {
            let dir = tempfile::tempdir().unwrap();
            let (journal, ..) = found(dir.path());
            (0..4).for_each(|n| journal.append(&change(n)).unwrap());
            let end = journal.len_bytes() as usize;
            let path = journal.inner.lock().current.path.clone();
            drop(journal);
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(b"\xff", (end - cut) as u64).unwrap();
            let (journal, recovered, numbers) = found(dir.path());
            assert_eq!(numbers, [0, 1, 2], "damage {cut} bytes before the end");
            assert!(recovered.damage.is_some() && !recovered.clean);
            // Work goes on, and the next start finds both.
            journal.append(&change(7)).unwrap();
            drop(journal);
            let (journal, _, numbers) = found(dir.path());
            assert_eq!(numbers, [0, 1, 2, 7]);
            journal.retire().unwrap();
            assert!(found(dir.path()).2.is_empty());
        }
    }
}
