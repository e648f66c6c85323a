//! SHA-256 of a whole file and, in the same pass, SHA-1 of each of its torrent pieces.
//!
//! Holes are not read: their zeros come from a constant block, and a piece that lies in a hole has a known hash, so only
//! SHA-256 pays for them. For files of [`TWO_THREADS_MIN_BYTES`] and more a second thread makes the piece hashes.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;

use aws_lc_rs::digest::{Context, Digest, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use bytes::Bytes;
use delugefs_proto::ids::ContentId;
use delugefs_proto::limits::{piece_count, piece_length_bytes};
use nix::errno::Errno;

use crate::os;

/// Bytes per read: enough for sequential speed, few enough to stay in a cache until hashed.
const BLOCK_BYTES: usize = 1 << 20;
/// Below this a second thread is not worth starting. Above it costs no more CPU and saves a third of the time, even when
/// the cores are busy (1 GiB on two shared cores: 1.4 s instead of 1.9 s; `examples/seal_bench.rs`).
const TWO_THREADS_MIN_BYTES: u64 = 64 << 20;
/// So many blocks of a file that was begun may be unreadable: with more it is the disk.
const UNREAD_MAX: usize = 100;
/// Blocks the first thread may be ahead of the second.
const BLOCKS_AHEAD: usize = 4;

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

#[cfg(test)]
thread_local! {
    /// Whether this thread's disk is one that cannot read its files any more.
    pub(crate) static UNREADABLE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    /// Where a bad sector is in its files.
    static BAD_SECTOR: std::cell::Cell<u64> = const { std::cell::Cell::new(u64::MAX) };
    /// Files that this thread has hashed.
    pub(crate) static HASHED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// What a pass over a file gives.
pub(super) struct Hashes {
    pub content: ContentId,
    /// 20 bytes per piece.
    pub pieces: Option<Bytes>,
}

/// Read a range, for nothing but to see whether it can be read. `EIO` also when the file ends before it does.
pub(super) fn read_through(file: &File, range: Range<u64>) -> Result<(), Errno> {
    let mut reader = Reader { file, here: range.start, data_end: 0, size: range.end, stop: &|| false };
    let mut block = Vec::new();
    while let Some(run) = reader.next(block)? {
        block = run.block;
    }
    Ok(())
}

/// Hash the first `size` bytes. `EBUSY` as soon as `stop` says so, `EIO` when the file is shorter.
pub(super) fn hash(file: &File, size: u64, pieces: bool, stop: &dyn Fn() -> bool) -> Result<Hashes, Errno> {
    #[cfg(test)]
    HASHED.set(HASHED.get() + 1);
    let mut reader = Reader { file, here: 0, data_end: 0, size, stop };
    let mut whole = Whole(Context::new(&SHA256));
    let pieces = match pieces {
        true if size >= TWO_THREADS_MIN_BYTES => Some(with_second_thread(&mut reader, &mut whole)?),
        true => {
            let mut pieces = Pieces::new(size);
            let mut block = Vec::new();
            while let Some(run) = reader.next(block)? {
                run.feed(&mut whole);
                run.feed(&mut pieces);
                block = run.block;
            }
            Some(pieces.finish())
        }
        false => {
            let mut block = Vec::new();
            while let Some(run) = reader.next(block)? {
                run.feed(&mut whole);
                block = run.block;
            }
            None
        }
    };
    let content = ContentId::from_slice(whole.0.finish().as_ref()).ok_or(Errno::EIO)?;
    Ok(Hashes { content, pieces: pieces.map(Bytes::from) })
}

fn with_second_thread(reader: &mut Reader<'_>, whole: &mut Whole) -> Result<Vec<u8>, Errno> {
    let mut pieces = Pieces::new(reader.size);
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel::<Run>(BLOCKS_AHEAD);
        let (give_back, used) = mpsc::channel::<Vec<u8>>();
        let second = std::thread::Builder::new().name("piece-hash".into()).spawn_scoped(scope, move || {
            for run in receive {
                run.feed(&mut pieces);
                // Nobody takes blocks back once the file is read.
                let _ = give_back.send(run.block);
            }
            pieces.finish()
        });
        let second = second.map_err(|error| os::errno(&error))?;
        let mut read = || {
            while let Some(run) = reader.next(used.try_recv().unwrap_or_default())? {
                run.feed(whole);
                send.send(run).map_err(|_| Errno::EIO)?;
            }
            Ok(())
        };
        let all = read();
        drop(send);
        let pieces = second.join().map_err(|_| Errno::EIO)?;
        all.map(|()| pieces)
    })
}

/// One block of data, or zeros.
struct Run {
    zeros: u64,
    block: Vec<u8>,
}

impl Run {
    fn feed(&self, sink: &mut impl Sink) {
        match self.zeros {
            0 => sink.data(&self.block),
            zeros => sink.zeros(zeros),
        }
    }
}

struct Reader<'a> {
    file: &'a File,
    here: u64,
    data_end: u64,
    size: u64,
    stop: &'a dyn Fn() -> bool,
}

impl Reader<'_> {
    /// The next run, in the block given.
    fn next(&mut self, mut block: Vec<u8>) -> Result<Option<Run>, Errno> {
        if self.here >= self.size {
            return Ok(None);
        }
        if (self.stop)() {
            return Err(Errno::EBUSY);
        }
        if self.here >= self.data_end {
            let (start, end) = os::next_data(self.file, self.here, self.size)?.unwrap_or((self.size, self.size));
            self.data_end = end;
            if start > self.here {
                // At most 1 GiB at once, so that `stop` is asked now and then.
                let zeros = (start - self.here).min(1 << 30);
                self.here += zeros;
                self.data_end = if self.here == start { end } else { self.here };
                // A file that was cut off must not pass for one that ends in a hole.
                let length = self.file.metadata().map_err(|error| os::errno(&error))?.len();
                return if length < self.here { Err(Errno::EIO) } else { Ok(Some(Run { zeros, block })) };
            }
        }
        #[cfg(test)]
        if UNREADABLE.get() {
            return Err(Errno::EIO);
        }
        block.resize((self.data_end - self.here).min(BLOCK_BYTES as u64) as usize, 0);
        #[cfg(test)]
        if (self.here..self.here + block.len() as u64).contains(&BAD_SECTOR.get()) {
            return Err(Errno::EIO);
        }
        self.file.read_exact_at(&mut block, self.here).map_err(|error| os::errno(&error))?;
        self.here += block.len() as u64;
        Ok(Some(Run { zeros: 0, block }))
    }

    /// Behind what could not be read, of which this is the begin; `false` when that is not known.
    fn skip_unread(&mut self, from: u64) -> bool {
        self.here = self.here.max(self.data_end.min(from + BLOCK_BYTES as u64));
        self.here > from
    }
}

trait Sink {
    fn data(&mut self, bytes: &[u8]);
    fn zeros(&mut self, count: u64);
}

struct Whole(Context);

impl Sink for Whole {
    fn data(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn zeros(&mut self, count: u64) {
        for_zeros(count, |zeros| self.0.update(zeros));
    }
}

fn for_zeros(mut count: u64, mut each: impl FnMut(&[u8])) {
    while count > 0 {
        let now = count.min(BLOCK_BYTES as u64);
        each(&ZEROS[..now as usize]);
        count -= now;
    }
}

struct Pieces {
    length: u64,
    filled: u64,
    current: Context,
    /// The hash of a whole piece of zeros, once one was met.
    zero_piece: Option<Digest>,
    out: Vec<u8>,
}

impl Pieces {
    fn new(size: u64) -> Self {
        let out = Vec::with_capacity(piece_count(size) as usize * 20);
        let length = u64::from(piece_length_bytes(size));
        Self { length, filled: 0, current: Self::empty(), zero_piece: None, out }
    }

    fn empty() -> Context {
        Context::new(&SHA1_FOR_LEGACY_USE_ONLY)
    }

    fn add(&mut self, bytes: &[u8]) {
        self.current.update(bytes);
        self.filled += bytes.len() as u64;
        if self.filled == self.length {
            let piece = std::mem::replace(&mut self.current, Self::empty()).finish();
            self.out.extend_from_slice(piece.as_ref());
            self.filled = 0;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        if self.filled > 0 {
            self.out.extend_from_slice(self.current.finish().as_ref());
        }
        self.out
    }
}

impl Sink for Pieces {
    fn data(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min((self.length - self.filled) as usize));
            self.add(now);
            bytes = rest;
        }
    }

    fn zeros(&mut self, mut count: u64) {
        while count > 0 {
            if self.filled == 0 && count >= self.length {
                let length = self.length;
                let piece = self.zero_piece.get_or_insert_with(|| {
                    let mut piece = Self::empty();
                    for_zeros(length, |zeros| piece.update(zeros));
                    piece.finish()
                });
                self.out.extend_from_slice(piece.as_ref());
                count -= length;
                continue;
            }
            let now = count.min(self.length - self.filled);
            for_zeros(now, |zeros| self.add(zeros));
            count -= now;
        }
    }
}

/// Which pieces of a file are as they should be: one bit each, the first piece is the highest bit of the first byte. Those that
/// cannot be read are not.
pub(super) fn good_pieces(file: &File, size: u64, expected: &[u8], stop: &dyn Fn() -> bool) -> Result<Vec<u8>, Errno> {
    let mut pieces = Pieces::new(size);
    let mut reader = Reader { file, here: 0, data_end: 0, size, stop };
    let mut block = Vec::new();
    let mut unread: Vec<std::ops::RangeInclusive<u64>> = Vec::new();
    loop {
        let from = reader.here;
        match reader.next(std::mem::take(&mut block)) {
            Ok(None) => break,
            Ok(Some(run)) => {
                run.feed(&mut pieces);
                block = run.block;
            }
            // They can be had again, and with a bad sector the rest would never be had.
            Err(Errno::EIO) if unread.len() < UNREAD_MAX && reader.skip_unread(from) => {
                pieces.zeros(reader.here - from); // so that the others keep their places
                unread.push(from / pieces.length..=(reader.here - 1) / pieces.length);
            }
            Err(errno) => return Err(errno),
        }
    }
    let found = pieces.finish();
    let mut bits = vec![0; (found.len() / 20).div_ceil(8)];
    for (number, (found, expected)) in found.chunks(20).zip(expected.chunks(20)).enumerate() {
        let is_good = found == expected && !unread.iter().any(|pieces| pieces.contains(&(number as u64)));
        bits[number / 8] |= u8::from(is_good) << (7 - number % 8);
    }
    Ok(bits)
}

/// Whether two files of `size` bytes hold the same.
pub(super) fn same_bytes(one: &File, other: &File, size: u64, stop: &dyn Fn() -> bool) -> Result<bool, Errno> {
    let (mut left, mut right) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    let mut here = 0;
    while here < size {
        if stop() {
            return Err(Errno::EBUSY);
        }
        let now = (size - here).min(BLOCK_BYTES as u64) as usize;
        one.read_exact_at(&mut left[..now], here).map_err(|error| os::errno(&error))?;
        // What cannot be read of the other one differs.
        if other.read_exact_at(&mut right[..now], here).is_err() || left[..now] != right[..now] {
            return Ok(false);
        }
        here += now as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::digest::digest;

    /// Hash as the definition says.
    fn plainly(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let length = piece_length_bytes(bytes.len() as u64) as usize;
        let pieces = bytes.chunks(length).flat_map(|piece| digest(&SHA1_FOR_LEGACY_USE_ONLY, piece).as_ref().to_vec());
        (digest(&SHA256, bytes).as_ref().to_vec(), pieces.collect())
    }

    #[test]
    fn as_the_definition_says_with_and_without_holes() {
        const P: usize = 256 << 10;
        for size in [1, P - 1, P, P + 1, 4 * P, BLOCK_BYTES + 1, (64 << 20) + 5, 70 << 20] {
            for step in [usize::MAX, 1, 3 << 20, 20 << 20] {
                let file = tempfile::tempfile().unwrap();
                file.set_len(size as u64).unwrap();
                let mut bytes = vec![0; size];
                let step = if step == 1 { if size > 1 << 21 { continue } else { 4096 } } else { step };
                for offset in (0..size).step_by(step).skip(usize::from(step < usize::MAX)) {
                    let written = [offset as u8 | 1; 5000];
                    let end = size.min(offset + written.len());
                    bytes[offset..end].copy_from_slice(&written[..end - offset]);
                    file.write_all_at(&bytes[offset..end], offset as u64).unwrap();
                }
                let (whole, pieces) = plainly(&bytes);
                let found = hash(&file, size as u64, true, &|| false).unwrap();
                assert_eq!(found.content.0, whole[..], "{size} {step}");
                assert_eq!(found.pieces.unwrap(), pieces, "{size} {step}");
                assert_eq!(hash(&file, size as u64, false, &|| false).unwrap().content.0, whole[..]);
                let good = good_pieces(&file, size as u64, &pieces, &|| false).unwrap();
                assert_eq!(good.iter().map(|byte| byte.count_ones() as usize).sum::<usize>(), pieces.len() / 20);
                let mut wrong = pieces.clone();
                wrong[pieces.len() - 20] ^= 1;
                let number = pieces.len() / 20 - 1;
                let bits = good_pieces(&file, size as u64, &wrong, &|| false).unwrap();
                assert_eq!(bits[number / 8], good[number / 8] & !(0x80 >> (number % 8)));
                let copy = tempfile::tempfile().unwrap();
                copy.write_all_at(&bytes, 0).unwrap();
                assert!(same_bytes(&file, &copy, size as u64, &|| false).unwrap());
                copy.write_all_at(&[bytes[size - 1] ^ 1], size as u64 - 1).unwrap();
                assert!(!same_bytes(&file, &copy, size as u64, &|| false).unwrap());
            }
        }
        assert_eq!(hash(&tempfile::tempfile().unwrap(), 0, false, &|| false).unwrap().content.0, plainly(b"").0[..]);
    }

    #[test]
    fn what_cannot_be_read_of_a_begun_file_is_not_here_and_the_rest_is() {
        const P: usize = 256 << 10;
        let mut bytes = vec![7; 40 * P];
        // Zeros as they are expected, which nobody has read.
        bytes[24 * P..32 * P].fill(0);
        let (_, expected) = plainly(&bytes);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let good = |size: usize| {
            let bits = good_pieces(&file, size as u64, &expected, &|| false)?;
            Ok::<_, Errno>((0..40).filter(|n| bits[n / 8] & 0x80 >> (n % 8) == 0).collect::<Vec<_>>())
        };
        assert_eq!(good(40 * P), Ok(vec![]));
        for (sector, missing) in [(0, 0..4), (9 * P + 7, 8..12), (25 * P, 24..28), (40 * P - 1, 36..40)] {
            BAD_SECTOR.set(sector as u64);
            assert_eq!(good(40 * P), Ok(missing.collect()));
        }
        BAD_SECTOR.set(u64::MAX);
        // A disk that is gone is no bad sector.
        let (large, pieces) = (tempfile::tempfile().unwrap(), vec![0; 20 * 512]);
        (0..128).for_each(|n| large.write_all_at(b"x", n << 20).unwrap());
        UNREADABLE.set(true);
        let found = good_pieces(&large, 128 << 20, &pieces, &|| false);
        UNREADABLE.set(false);
        assert_eq!(found, Err(Errno::EIO));
    }

    #[test]
    fn a_shorter_file_and_a_stop_are_errors() {
        for size in [3 << 20, 80 << 20] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            assert_eq!(hash(&file, size + 1, true, &|| false).err(), Some(Errno::EIO));
            file.write_all_at(b"x", size - 1).unwrap();
            assert_eq!(hash(&file, size + 1, true, &|| false).err(), Some(Errno::EIO));
            assert_eq!(hash(&file, size, true, &|| true).err(), Some(Errno::EBUSY));
        }
    }
}
