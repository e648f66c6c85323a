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
    store: Compress,
    buf: Vec<u8>,
    entries: Vec<Entry>,
    written: u64,
    count: u32,
}

/// Of an index, for each object of its pack: id, checksum and offset.
const INDEX_ENTRY_BYTES: u64 = 28;
/// Below this many bytes it is not worth looking whether an object can be compressed.
const SAMPLED_MIN_BYTES: usize = 1 << 10;
/// Bytes of an object that are looked at for that.
const SAMPLE_BYTES: usize = 512;
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
        let store = Compress::new(Compression::none(), true);
        let entries = Vec::with_capacity(count as usize);
        Ok(Self { out, sha: sha1(), deflate, store, buf, entries, written: 0, count })
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
        // What a small file of pictures or keys would gain is nothing, and deflating it is half the work of a commit.
        let deflate = if looks_random(data) { &mut self.store } else { &mut self.deflate };
        deflate.reset();
        // The bound of zlib's deflateBound, so that one call does it.
        self.buf.reserve(data.len() + data.len() / 8 + 256);
        loop {
            let done = deflate.total_in() as usize;
            match deflate.compress_vec(&data[done..], &mut self.buf, FlushCompress::Finish) {
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

/// Whether the bytes are spread so evenly that compressing them is in vain.
fn looks_random(data: &[u8]) -> bool {
    if data.len() < SAMPLED_MIN_BYTES {
        return false;
    }
    // From all of it, as many formats begin with text; and in no step with the numbers or pixels of an array.
    let mut step = (data.len() / SAMPLE_BYTES) | 1;
    while step > 1 && (step.is_multiple_of(3) || step.is_multiple_of(5)) {
        step += 2;
    }
    let (mut counts, mut sampled) = ([0usize; 256], 0);
    for byte in data.iter().step_by(step) {
        counts[usize::from(*byte)] += 1;
        sampled += 1;
    }
    // How many pairs are of one value: of 256 with bytes that are spread evenly, one; of base64 four, of text fifteen.
    let pairs: usize = counts.iter().map(|count| count * count.saturating_sub(1)).sum();
    pairs * 128 <= sampled * sampled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(data: &[u8]) -> Vec<u8> {
        let mut writer = PackWriter::new(Vec::new(), 1).unwrap();
        let oid = Oid::hash_object(ObjectType::Blob, data).unwrap();
        writer.object(oid, ObjectType::Blob, data).unwrap();
        let (pack, index) = writer.finish().unwrap();
        assert_eq!(index.entries.len(), 1);
        // What git makes of it.
        let dir = tempfile::tempdir().unwrap();
        let repository = git2::Repository::init_bare(dir.path()).unwrap();
        let file = |kind| dir.path().join(format!("objects/pack/pack-{}.{kind}", index.checksum));
        std::fs::write(file("pack"), &pack).unwrap();
        std::fs::write(file("idx"), index.serialize()).unwrap();
        assert_eq!(repository.find_blob(oid).unwrap().content(), data);
        pack
    }

    #[test]
    fn what_cannot_be_compressed_is_stored_as_it_is() {
        let mut state = 1u64;
        let mut random = |len: usize| -> Vec<u8> {
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            (0..len).map(|_| next()).collect()
        };
        for len in [SAMPLED_MIN_BYTES, 1025, 4096, 70_000] {
            let bytes = random(len);
            assert!(looks_random(&bytes), "{len}");
            assert!(packed(&bytes).len() < len + 100);
            let text: Vec<u8> = b"Many a small file is text.\n".iter().copied().cycle().take(len).collect();
            assert!(!looks_random(&text), "{len}");
            assert!(packed(&text).len() < len / 4);
        }
        assert!(!looks_random(&random(SAMPLED_MIN_BYTES - 1)));
        let base64: Vec<u8> = random(4096).iter().map(|byte| byte % 64 + b' ').collect();
        assert!(!looks_random(&base64));
        assert!(!looks_random(&[0; 4096]));
        // Numbers of eight bytes of which the low ones are noise.
        for len in [1024, 2048, 4096] {
            let numbers: Vec<u8> = random(len / 8).iter().flat_map(|low| u64::from(*low).to_le_bytes()).collect();
            assert!(!looks_random(&numbers), "{len}");
        }
    }

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
