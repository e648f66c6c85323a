//! Writes git packs (version 2) and their indexes (version 2): whole objects, no deltas.

use std::io::{self, Write};

use aws_lc_rs::digest;
use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use git2::{ObjectType, Oid};

/// First bytes of a pack: signature and version.
pub(super) const PACK_MAGIC: [u8; 8] = *b"PACK\0\0\0\x02";
const INDEX_MAGIC: [u8; 8] = *b"\xfftOc\0\0\0\x02";

/// The type numbers of pack entries.
pub(super) fn type_number(kind: ObjectType) -> Option<u8> {
    match kind {
        ObjectType::Commit => Some(1),
        ObjectType::Tree => Some(2),
        ObjectType::Blob => Some(3),
        _ => None,
    }
}

pub(super) fn sha1() -> digest::Context {
    digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY)
}

/// Where an object lies in a pack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub oid: Oid,
    /// Of its bytes in the pack, header and compressed data.
    pub crc: u32,
    /// From the pack's beginning, in bytes.
    pub offset: u64,
}

/// What a pack's index says.
#[derive(Debug)]
pub(super) struct Index {
    /// In ascending order of ids.
    pub entries: Vec<Entry>,
    /// The pack's checksum, which is also its name.
    pub checksum: Oid,
}

impl Index {
    pub(super) fn new(mut entries: Vec<Entry>, checksum: Oid) -> Self {
        entries.sort_unstable_by_key(|entry| entry.oid);
        Self { entries, checksum }
    }

    /// The bytes of the `.idx` file.
    pub(super) fn serialize(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + 1024 + self.entries.len() * 28 + 40);
        out.extend(INDEX_MAGIC);
        let mut fanout = [0u32; 256];
        for entry in &self.entries {
            fanout[usize::from(entry.oid.as_bytes()[0])] += 1;
        }
        let mut sum = 0;
        for count in fanout {
            sum += count;
            out.extend(sum.to_be_bytes());
        }
        for entry in &self.entries {
            out.extend(entry.oid.as_bytes());
        }
        for entry in &self.entries {
            out.extend(entry.crc.to_be_bytes());
        }
        let mut far = Vec::new();
        for entry in &self.entries {
            match u32::try_from(entry.offset) {
                Ok(offset) if offset < 1 << 31 => out.extend(offset.to_be_bytes()),
                _ => {
                    out.extend((1 << 31 | far.len() as u32).to_be_bytes());
                    far.push(entry.offset);
                }
            }
        }
        out.extend(far.into_iter().flat_map(u64::to_be_bytes));
        out.extend(self.checksum.as_bytes());
        let mut sha = sha1();
        sha.update(&out);
        out.extend(sha.finish().as_ref());
        out
    }
}

/// Writes one pack to `out`, which should not be buffered: it gets few and large pieces.
pub(super) struct PackWriter<W: Write> {
    out: W,
    sha: digest::Context,
    deflate: Compress,
    buf: Vec<u8>,
    entries: Vec<Entry>,
    written: u64,
    count: u32,
}

/// Of an index, for each object of its pack: id, checksum and offset.
const INDEX_ENTRY_BYTES: u64 = 28;
/// The writer hands on what it has when it is this many bytes.
const BUFFER_BYTES: usize = 256 << 10;

impl<W: Write> PackWriter<W> {
    /// Begin a pack of exactly `count` objects.
    pub(super) fn new(out: W, count: usize) -> io::Result<Self> {
        let count = u32::try_from(count).map_err(|_| io::Error::other("more than 2^32 objects in one pack"))?;
        let mut buf = Vec::with_capacity(BUFFER_BYTES + (64 << 10));
        buf.extend(PACK_MAGIC);
        buf.extend(count.to_be_bytes());
        // Level 1: records are mostly hashes, and higher levels gain 2 % for three times the time.
        let deflate = Compress::new(Compression::new(1), true);
        Ok(Self { out, sha: sha1(), deflate, buf, entries: Vec::with_capacity(count as usize), written: 0, count })
    }

    /// Append one object. Its id must be the right one and not be in the pack yet.
    pub(super) fn object(&mut self, oid: Oid, kind: ObjectType, data: &[u8]) -> io::Result<()> {
        let start = self.buf.len();
        let number = type_number(kind).ok_or_else(|| io::Error::other("no kind of object for a pack"))?;
        let mut size = data.len();
        let mut byte = number << 4 | (size & 15) as u8;
        size >>= 4;
        while size > 0 {
            self.buf.push(byte | 0x80);
            byte = (size & 0x7f) as u8;
            size >>= 7;
        }
        self.buf.push(byte);
        self.deflate.reset();
        // The bound of zlib's deflateBound, so that one call does it.
        self.buf.reserve(data.len() + data.len() / 8 + 256);
        loop {
            let done = self.deflate.total_in() as usize;
            match self.deflate.compress_vec(&data[done..], &mut self.buf, FlushCompress::Finish) {
                Ok(Status::StreamEnd) => break,
                Ok(_) => self.buf.reserve(4096),
                Err(why) => return Err(io::Error::other(why)),
            }
        }
        let mut crc = Crc::new();
        crc.update(&self.buf[start..]);
        self.entries.push(Entry { oid, crc: crc.sum(), offset: self.written + start as u64 });
        if self.buf.len() >= BUFFER_BYTES { self.hand_on() } else { Ok(()) }
    }

    /// Bytes so far, with what an index of this many objects takes.
    pub(super) fn bytes(&self) -> u64 {
        self.written + self.buf.len() as u64 + u64::from(self.count) * INDEX_ENTRY_BYTES
    }

    fn hand_on(&mut self) -> io::Result<()> {
        self.sha.update(&self.buf);
        self.out.write_all(&self.buf)?;
        self.written += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }

    /// Write the checksum. Fails when the number of objects is not the announced one.
    pub(super) fn finish(mut self) -> io::Result<(W, Index)> {
        if self.entries.len() != self.count as usize {
            return Err(io::Error::other("a pack with a wrong number of objects"));
        }
        self.hand_on()?;
        let checksum = self.sha.finish();
        self.out.write_all(checksum.as_ref())?;
        self.out.flush()?;
        let checksum = Oid::from_bytes(checksum.as_ref()).map_err(io::Error::other)?;
        Ok((self.out, Index::new(self.entries, checksum)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_behind_two_gibibytes() {
        let oid = |byte| Oid::from_bytes(&[byte; 20]).unwrap();
        let entries = [(9, 5 << 30), (1, 12), (5, (1 << 31) - 1), (7, 1 << 31)];
        let entries = entries.map(|(byte, offset)| Entry { oid: oid(byte), crc: 0, offset });
        let bytes = Index::new(entries.to_vec(), oid(0)).serialize();
        let offsets = &bytes[8 + 1024 + 4 * 24..];
        assert_eq!(offsets[..4], 12u32.to_be_bytes());
        assert_eq!(offsets[4..8], 0x7fff_ffff_u32.to_be_bytes());
        assert_eq!(offsets[8..16], [0x80, 0, 0, 0, 0x80, 0, 0, 1]);
        assert_eq!(offsets[16..24], (1u64 << 31).to_be_bytes());
        assert_eq!(offsets[24..32], (5u64 << 30).to_be_bytes());
        assert_eq!(bytes.len(), 8 + 1024 + 4 * 28 + 16 + 40);
    }
}
