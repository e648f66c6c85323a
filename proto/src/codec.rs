//! The one encoding of catalog records: [`encode_leaf`] and [`decode_leaf`] for a directory's entries,
//! [`encode_elements`] and [`decode_elements`] for a single set, [`encode_key`] for journal records, and the version
//! vector. FORMATS.md shows the bytes.
//!
//! Canonical: a value has exactly one encoding, and the decoder accepts nothing else (it encodes again and compares).
//! Equal states must have equal object ids, and a peer must not be able to send two spellings of one state.

use std::collections::BTreeMap;

use crate::ids::{ActorId, BlobId, ContentId, Ino};
use crate::limits::{NAME_MAX_BYTES, TARGET_MAX_BYTES, XATTR_NAME_MAX_BYTES, XATTR_VALUE_MAX_BYTES, XATTRS_MAX};
use crate::record::{Body, Data, Dot, Element, Hlc, Key, Name, Perm, VersionVector, XattrValue, Xattrs};

/// First byte of every leaf, element set and version vector. A reader refuses any other.
pub const RECORD_VERSION: u8 = 1;

/// Entries of one leaf.
pub type Leaf = BTreeMap<Name, Vec<Element>>;

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Ends too early.
    #[error("record is cut short")]
    Short,
    /// Written by a newer (or no) DelugeFS.
    #[error("record version {0} is unknown to this version of delugefs")]
    Version(u8),
    /// A field holds what it must not hold.
    #[error("record is malformed: {0}")]
    Malformed(&'static str),
    /// Decodes, but not in the one encoding.
    #[error("record is not in canonical form")]
    NotCanonical,
}

const KIND_DIR: u8 = 0;
const KIND_LINK: u8 = 1;
const KIND_CONTENT: u8 = 2;
const KIND_ATTRS: u8 = 3;
const KIND_TIMES: u8 = 4;
const KIND_HEAD: u8 = 5;
const KIND_REF: u8 = 6;
/// Flags in the upper bits of an element's first byte: the same as in the element before it in the set.
const SAME_DOT: u8 = 0x10;
const SAME_HLC: u8 = 0x20;
const SAME_INO: u8 = 0x40;
/// Times: atime equals mtime.
const SAME_TIMES: u8 = 0x80;

/// Put elements into canonical order and drop exact duplicates. Every set that is stored has passed this.
pub fn canonicalize(elements: &mut Vec<Element>) {
    elements.sort_unstable();
    elements.dedup();
}

/// Encode a leaf. Empty sets must not be in it.
pub fn encode_leaf(leaf: &Leaf) -> Vec<u8> {
    let mut out = Writer::new(leaf.values().flatten());
    out.varint(leaf.len() as u64);
    for (name, elements) in leaf {
        out.bytes(name.as_bytes());
        out.elements(elements);
    }
    out.buf
}

/// Decode a leaf; refuses anything [`encode_leaf`] would not have written.
pub fn decode_leaf(bytes: &[u8]) -> Result<Leaf, DecodeError> {
    let mut input = Reader::new(bytes)?;
    let count = input.varint()?;
    let mut leaf = Leaf::new();
    for _ in 0..count {
        let name = input.name_or_header()?;
        let elements = input.elements()?;
        leaf.insert(name, elements);
    }
    input.finish()?;
    if encode_leaf(&leaf) == bytes { Ok(leaf) } else { Err(DecodeError::NotCanonical) }
}

/// Decode a leaf whose bytes this disk wrote itself and whose object id git has verified: without the second encoding.
pub fn decode_own_leaf(bytes: &[u8]) -> Result<Leaf, DecodeError> {
    let mut input = Reader::new(bytes)?;
    let count = input.varint()?;
    let mut pairs = Vec::with_capacity(count.min(4096) as usize);
    for _ in 0..count {
        pairs.push((input.name_or_header()?, input.elements()?));
    }
    input.finish()?;
    Ok(pairs.into_iter().collect())
}

/// Encode one set of elements (an inode's leaf, a journal record).
pub fn encode_elements(elements: &[Element]) -> Vec<u8> {
    let mut out = Writer::new(elements.iter());
    out.elements(elements);
    out.buf
}

/// Decode one set of elements; refuses anything [`encode_elements`] would not have written.
pub fn decode_elements(bytes: &[u8]) -> Result<Vec<Element>, DecodeError> {
    let mut input = Reader::new(bytes)?;
    let elements = input.elements_maybe_empty()?;
    input.finish()?;
    if encode_elements(&elements) == bytes { Ok(elements) } else { Err(DecodeError::NotCanonical) }
}

/// Encode a key.
pub fn encode_key(key: &Key) -> Vec<u8> {
    let mut buf = Vec::with_capacity(32);
    match key {
        Key::Entry(dir, name) => {
            buf.push(0);
            buf.extend(dir.0.to_le_bytes());
            buf.extend(name.as_bytes());
        }
        Key::Inode(ino) => {
            buf.push(1);
            buf.extend(ino.0.to_le_bytes());
        }
    }
    buf
}

/// Decode a key.
pub fn decode_key(bytes: &[u8]) -> Result<Key, DecodeError> {
    let (kind, rest) = bytes.split_first().ok_or(DecodeError::Short)?;
    let (ino, name) = rest.split_first_chunk().ok_or(DecodeError::Short)?;
    let ino = Ino(u64::from_le_bytes(*ino));
    match (kind, name) {
        (0, []) => Ok(Key::header(ino)),
        (0, name) => Ok(Key::Entry(ino, Name::new(name).map_err(|_| DecodeError::Malformed("name"))?)),
        (1, []) => Ok(Key::Inode(ino)),
        _ => Err(DecodeError::Malformed("key")),
    }
}

/// Encode a version vector.
pub fn encode_version_vector(vector: &VersionVector) -> Vec<u8> {
    let mut buf = vec![RECORD_VERSION];
    for (actor, seq) in &vector.0 {
        buf.extend(actor.0.to_le_bytes());
        buf.extend(seq.to_le_bytes());
    }
    buf
}

/// Decode a version vector.
pub fn decode_version_vector(bytes: &[u8]) -> Result<VersionVector, DecodeError> {
    let (&version, rest) = bytes.split_first().ok_or(DecodeError::Short)?;
    if version != RECORD_VERSION {
        return Err(DecodeError::Version(version));
    }
    let (pairs, tail) = rest.as_chunks::<16>();
    if !tail.is_empty() {
        return Err(DecodeError::Short);
    }
    let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).map_err(|_| DecodeError::Short);
    let mut vector = VersionVector::default();
    for pair in pairs {
        vector.0.insert(ActorId(word(&pair[..8])?), word(&pair[8..])?);
    }
    if encode_version_vector(&vector) == bytes { Ok(vector) } else { Err(DecodeError::NotCanonical) }
}

struct Writer {
    buf: Vec<u8>,
    actors: Vec<ActorId>,
}

impl Writer {
    /// Begins with the version and the table of actors, so that a dot costs a byte or two instead of sixteen.
    fn new<'a>(elements: impl Iterator<Item = &'a Element>) -> Self {
        let mut actors: Vec<ActorId> = Vec::new();
        for element in elements {
            if actors.last() != Some(&element.dot.actor) {
                actors.push(element.dot.actor);
                if actors.len() > 64 {
                    actors.sort_unstable();
                    actors.dedup();
                }
            }
        }
        actors.sort_unstable();
        actors.dedup();
        let mut out = Self { buf: vec![RECORD_VERSION], actors };
        out.varint(out.actors.len() as u64);
        for i in 0..out.actors.len() {
            out.buf.extend(out.actors[i].0.to_le_bytes());
        }
        out
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.buf.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.buf.push(value as u8);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.buf.extend(bytes);
    }

    fn signed(&mut self, value: i64) {
        self.varint((value << 1 ^ value >> 63) as u64);
    }

    fn perm(&mut self, perm: Perm) {
        self.varint(u64::from(perm.mode));
        self.varint(u64::from(perm.uid));
        self.varint(u64::from(perm.gid));
    }

    fn xattrs(&mut self, xattrs: &Xattrs) {
        self.varint(xattrs.len() as u64);
        for (name, value) in xattrs {
            self.bytes(name);
            match value {
                XattrValue::Inline(value) => {
                    self.buf.push(0);
                    self.bytes(value);
                }
                XattrValue::Blob { blob, size } => {
                    self.buf.push(1);
                    self.buf.extend(blob.0);
                    self.varint(u64::from(*size));
                }
            }
        }
    }

    fn data(&mut self, data: &Data) {
        match data {
            Data::Empty => self.buf.push(0),
            Data::Inline { blob, size } => {
                self.buf.push(1);
                self.buf.extend(blob.0);
                self.varint(u64::from(*size));
            }
            Data::Stored { content, size, pieces } => {
                self.buf.push(if pieces.is_some() { 3 } else { 2 });
                self.buf.extend(content.0);
                self.varint(*size);
                if let Some(pieces) = pieces {
                    self.buf.extend(pieces.0);
                }
            }
            Data::Symlink(target) => {
                self.buf.push(4);
                self.bytes(target);
            }
            Data::Fifo => self.buf.push(5),
            Data::Socket => self.buf.push(6),
            Data::CharDevice(number) => {
                self.buf.push(7);
                self.varint(*number);
            }
            Data::BlockDevice(number) => {
                self.buf.push(8);
                self.varint(*number);
            }
        }
    }

    fn elements(&mut self, elements: &[Element]) {
        self.varint(elements.len() as u64);
        let mut before: Option<&Element> = None;
        for element in elements {
            let mut first = match element.body {
                Body::Dir { .. } => KIND_DIR,
                Body::Link { .. } => KIND_LINK,
                Body::Content { .. } => KIND_CONTENT,
                Body::Attrs { .. } => KIND_ATTRS,
                Body::Times { .. } => KIND_TIMES,
                Body::Head { .. } => KIND_HEAD,
                Body::Ref { .. } => KIND_REF,
            };
            let same_dot = before.is_some_and(|b| b.dot == element.dot);
            let same_hlc = before.is_some_and(|b| b.hlc == element.hlc);
            let same_ino = element.body.ino().is_some() && before.is_some_and(|b| b.body.ino() == element.body.ino());
            first |= if same_dot { SAME_DOT } else { 0 };
            first |= if same_hlc { SAME_HLC } else { 0 };
            first |= if same_ino { SAME_INO } else { 0 };
            if matches!(element.body, Body::Times { mtime_ns, atime_ns, .. } if mtime_ns == atime_ns) {
                first |= SAME_TIMES;
            }
            self.buf.push(first);
            if !same_dot {
                let index = self.actors.binary_search(&element.dot.actor).unwrap_or_default();
                self.varint(index as u64);
                self.varint(element.dot.seq);
            }
            if !same_hlc {
                self.buf.extend(element.hlc.0.to_le_bytes());
            }
            if let Some(ino) = element.body.ino()
                && !same_ino
            {
                self.buf.extend(ino.0.to_le_bytes());
            }
            match &element.body {
                Body::Dir { .. } | Body::Link { .. } => {}
                Body::Content { data, .. } => self.data(data),
                Body::Attrs { perm, xattrs, .. } => {
                    self.perm(*perm);
                    self.xattrs(xattrs);
                }
                Body::Times { mtime_ns, atime_ns, .. } => {
                    self.signed(mtime_ns.wrapping_sub(element.hlc.0 as i64));
                    if mtime_ns != atime_ns {
                        self.signed(atime_ns.wrapping_sub(*mtime_ns));
                    }
                }
                Body::Head { parent, name, perm, xattrs } => {
                    self.buf.extend(parent.0.to_le_bytes());
                    self.bytes(name.as_bytes());
                    self.perm(*perm);
                    self.xattrs(xattrs);
                }
                Body::Ref { dir, name } => {
                    self.buf.extend(dir.0.to_le_bytes());
                    self.bytes(name.as_bytes());
                }
            }
            before = Some(element);
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    actors: Vec<ActorId>,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut input = Self { rest: bytes, actors: Vec::new() };
        let version = input.byte()?;
        if version != RECORD_VERSION {
            return Err(DecodeError::Version(version));
        }
        let count = input.varint()?;
        for _ in 0..count {
            let actor = ActorId(input.word()?);
            input.actors.push(actor);
        }
        Ok(input)
    }

    fn finish(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Malformed("bytes behind the end")) }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    fn word(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Malformed("number too large"))
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.varint()?.try_into().map_err(|_| DecodeError::Malformed("number too large"))
    }

    fn signed(&mut self) -> Result<i64, DecodeError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn bytes(&mut self, max: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = self.varint()?;
        if len > max as u64 {
            return Err(DecodeError::Malformed(what));
        }
        self.take(len as usize)
    }

    fn name_or_header(&mut self) -> Result<Name, DecodeError> {
        match self.bytes(NAME_MAX_BYTES, "name too long")? {
            [] => Ok(Name::header()),
            bytes => Name::new(bytes).map_err(|_| DecodeError::Malformed("name")),
        }
    }

    fn ino(&mut self) -> Result<Ino, DecodeError> {
        let ino = Ino(self.word()?);
        if ino.is_storable() { Ok(ino) } else { Err(DecodeError::Malformed("inode number")) }
    }

    fn perm(&mut self) -> Result<Perm, DecodeError> {
        let mode = self.varint()?;
        if mode > 0o7777 {
            return Err(DecodeError::Malformed("mode"));
        }
        Ok(Perm { mode: mode as u16, uid: self.u32()?, gid: self.u32()? })
    }

    fn xattrs(&mut self) -> Result<Xattrs, DecodeError> {
        let count = self.varint()?;
        if count > XATTRS_MAX as u64 {
            return Err(DecodeError::Malformed("too many extended attributes"));
        }
        let mut xattrs = Xattrs::new();
        for _ in 0..count {
            let name = self.bytes(XATTR_NAME_MAX_BYTES, "attribute name too long")?;
            let value = match self.byte()? {
                0 => XattrValue::Inline(self.bytes(XATTR_VALUE_MAX_BYTES, "attribute too large")?.into()),
                1 => XattrValue::Blob { blob: BlobId(self.array()?), size: self.u32()? },
                _ => return Err(DecodeError::Malformed("attribute value")),
            };
            xattrs.insert(name.into(), value);
        }
        Ok(xattrs)
    }

    fn data(&mut self) -> Result<Data, DecodeError> {
        Ok(match self.byte()? {
            0 => Data::Empty,
            1 => Data::Inline { blob: BlobId(self.array()?), size: self.u32()? },
            2 => Data::Stored { content: ContentId(self.array()?), size: self.varint()?, pieces: None },
            3 => Data::Stored {
                content: ContentId(self.array()?),
                size: self.varint()?,
                pieces: Some(BlobId(self.array()?)),
            },
            4 => Data::Symlink(self.bytes(TARGET_MAX_BYTES, "link target too long")?.into()),
            5 => Data::Fifo,
            6 => Data::Socket,
            7 => Data::CharDevice(self.varint()?),
            8 => Data::BlockDevice(self.varint()?),
            _ => return Err(DecodeError::Malformed("data kind")),
        })
    }

    fn elements(&mut self) -> Result<Vec<Element>, DecodeError> {
        let elements = self.elements_maybe_empty()?;
        if elements.is_empty() { Err(DecodeError::Malformed("empty set")) } else { Ok(elements) }
    }

    fn elements_maybe_empty(&mut self) -> Result<Vec<Element>, DecodeError> {
        let count = self.varint()?;
        let mut elements: Vec<Element> = Vec::with_capacity(count.min(8) as usize);
        for _ in 0..count {
            let element = self.element(elements.last())?;
            if elements.last().is_some_and(|before| *before >= element) {
                return Err(DecodeError::NotCanonical);
            }
            elements.push(element);
        }
        Ok(elements)
    }

    fn element(&mut self, before: Option<&Element>) -> Result<Element, DecodeError> {
        const NO_BEFORE: DecodeError = DecodeError::Malformed("refers to an element before the first");
        let first = self.byte()?;
        let dot = if first & SAME_DOT != 0 {
            before.ok_or(NO_BEFORE)?.dot
        } else {
            let index = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
            let actor = *self.actors.get(index).ok_or(DecodeError::Malformed("actor"))?;
            Dot { actor, seq: self.varint()? }
        };
        let hlc = if first & SAME_HLC != 0 { before.ok_or(NO_BEFORE)?.hlc } else { Hlc(self.word()?) };
        let ino = |input: &mut Self| match first & SAME_INO {
            0 => input.ino(),
            _ => before.and_then(|b| b.body.ino()).ok_or(NO_BEFORE),
        };
        let body = match first & 0x0f {
            KIND_DIR => Body::Dir { ino: ino(self)? },
            KIND_LINK => Body::Link { ino: ino(self)? },
            KIND_CONTENT => Body::Content { ino: ino(self)?, data: self.data()? },
            KIND_ATTRS => Body::Attrs { ino: ino(self)?, perm: self.perm()?, xattrs: self.xattrs()? },
            KIND_TIMES => {
                let ino = ino(self)?;
                let mtime_ns = self.signed()?.wrapping_add(hlc.0 as i64);
                let atime_ns = if first & SAME_TIMES != 0 { mtime_ns } else { mtime_ns.wrapping_add(self.signed()?) };
                Body::Times { ino, mtime_ns, atime_ns }
            }
            KIND_HEAD => Body::Head {
                parent: self.ino()?,
                name: self.name_or_header()?,
                perm: self.perm()?,
                xattrs: self.xattrs()?,
            },
            KIND_REF => Body::Ref { dir: self.ino()?, name: self.name_or_header()? },
            _ => return Err(DecodeError::Malformed("element kind")),
        };
        Ok(Element { dot, body, hlc })
    }
}
