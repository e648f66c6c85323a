//! Reads a pack from somebody we do not trust, in one pass and in bounded memory: every object is inflated, measured
//! and hashed (with git's detection of SHA-1 collision attacks), deltas are refused, and the bytes are copied
//! to `out` as they come. It knows nothing of what the objects mean.

use std::io::{self, Read, Write};

use aws_lc_rs::digest;
use flate2::{Crc, Decompress, FlushDecompress, Status};
use git2::{ObjectType, Oid};

use super::pack::{Entry, Index, PACK_MAGIC, sha1};

/// What a pack may be at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScanLimits {
    /// Of the whole pack, in bytes.
    pub pack_bytes: u64,
    /// Number of objects.
    pub objects: u64,
    /// Of one object, inflated, in bytes.
    pub object_bytes: u64,
    /// Of all objects together, inflated, in bytes.
    pub inflated_bytes: u64,
}

/// Why a pack was not read to its end.
#[derive(Debug)]
pub(super) enum ScanError {
    /// The pack is not as it must be.
    Refused(String),
    /// Reading it failed.
    Read(io::Error),
    /// Copying it failed.
    Write(io::Error),
}

fn refused<T>(why: impl Into<String>) -> Result<T, ScanError> {
    Err(ScanError::Refused(why.into()))
}

/// Reads from `input`, and copies, counts and hashes what was taken.
struct Taker<'a> {
    input: &'a mut dyn Read,
    out: &'a mut dyn Write,
    buf: Vec<u8>,
    at: usize,
    /// Bytes taken so far.
    taken: u64,
    limit: u64,
    sha: digest::Context,
    crc: Crc,
}

impl Taker<'_> {
    /// What is there, at least one byte; empty only at the end of the input.
    fn peek(&mut self) -> Result<&[u8], ScanError> {
        if self.at == self.buf.len() {
            self.buf.resize(64 << 10, 0);
            self.at = 0;
            let len = loop {
                match self.input.read(&mut self.buf) {
                    Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                    read => break read,
                }
            };
            self.buf.truncate(*len.as_ref().unwrap_or(&0));
            len.map_err(ScanError::Read)?;
            if self.taken + self.buf.len() as u64 > self.limit {
                return refused(format!("it is larger than {} bytes", self.limit));
            }
            self.out.write_all(&self.buf).map_err(ScanError::Write)?;
        }
        Ok(&self.buf[self.at..])
    }

    fn take(&mut self, len: usize) {
        let taken = &self.buf[self.at..self.at + len];
        self.sha.update(taken);
        self.crc.update(taken);
        self.at += len;
        self.taken += len as u64;
    }

    fn byte(&mut self) -> Result<u8, ScanError> {
        match self.peek()?.first().copied() {
            Some(byte) => {
                self.take(1);
                Ok(byte)
            }
            None => refused("it is cut short"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ScanError> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.byte()?;
        }
        Ok(bytes)
    }
}

/// Read a whole pack, and nothing may follow it. The index is of what was written to `out`.
pub(super) fn scan(input: &mut dyn Read, out: &mut dyn Write, limits: ScanLimits) -> Result<Index, ScanError> {
    let limit = limits.pack_bytes;
    let mut input = Taker { input, out, buf: Vec::new(), at: 0, taken: 0, limit, sha: sha1(), crc: Crc::new() };
    if input.array()? != PACK_MAGIC {
        return refused("it is no git pack of version 2");
    }
    let count = u32::from_be_bytes(input.array()?);
    if u64::from(count) > limits.objects {
        return refused(format!("it has {count} objects, more than {}", limits.objects));
    }
    let mut entries = Vec::with_capacity(count.min(1 << 16) as usize);
    let mut inflate = Decompress::new(true);
    let mut data = Vec::new();
    let mut inflated = 0;
    for _ in 0..count {
        let offset = input.taken;
        input.crc = Crc::new();
        let (kind, size) = header(&mut input)?;
        inflated += size;
        if size > limits.object_bytes || inflated > limits.inflated_bytes {
            return refused(format!(
                "an object has {size} bytes, all so far {inflated}: more than {} and {}",
                limits.object_bytes, limits.inflated_bytes
            ));
        }
        inflate.reset(true);
        object(&mut input, &mut inflate, size as usize, &mut data)?;
        let oid = Oid::hash_object(kind, &data).or_else(|why| refused(why.message().to_owned()))?;
        entries.push(Entry { oid, crc: input.crc.sum(), offset });
    }
    let computed = std::mem::replace(&mut input.sha, sha1()).finish();
    let checksum: [u8; 20] = input.array()?;
    if computed.as_ref() != checksum {
        return refused("its checksum is wrong");
    }
    if !input.peek()?.is_empty() {
        return refused("something follows its end");
    }
    let checksum = Oid::from_bytes(&checksum).map_err(|why| ScanError::Refused(why.message().to_owned()))?;
    let index = Index::new(entries, checksum);
    match index.entries.windows(2).find(|pair| pair[0].oid == pair[1].oid) {
        Some(twice) => refused(format!("object {} is in it twice", twice[0].oid)),
        None => Ok(index),
    }
}

fn header(input: &mut Taker<'_>) -> Result<(ObjectType, u64), ScanError> {
    let mut byte = input.byte()?;
    let kind = match byte >> 4 & 7 {
        1 => ObjectType::Commit,
        2 => ObjectType::Tree,
        3 => ObjectType::Blob,
        other => return refused(format!("it has an object of kind {other}, which no catalog has")),
    };
    let mut size = u64::from(byte & 15);
    let mut shift = 4;
    while byte & 0x80 != 0 {
        byte = input.byte()?;
        if shift > 46 {
            return refused("an object's size is out of bounds");
        }
        size |= u64::from(byte & 0x7f) << shift;
        shift += 7;
    }
    Ok((kind, size))
}

/// Inflate one object of exactly this size.
fn object(input: &mut Taker<'_>, inflate: &mut Decompress, size: usize, data: &mut Vec<u8>) -> Result<(), ScanError> {
    data.clear();
    loop {
        if data.len() == data.capacity() {
            // One byte more than announced, so that more is noticed.
            data.reserve((size + 1 - data.len()).min(256 << 10));
        }
        let (before_in, before_out) = (inflate.total_in(), data.len());
        let bytes = input.peek()?;
        if bytes.is_empty() {
            return refused("it is cut short");
        }
        let status = inflate.decompress_vec(bytes, data, FlushDecompress::None);
        let used = (inflate.total_in() - before_in) as usize;
        input.take(used);
        if data.len() > size {
            return refused("an object is larger than it says");
        }
        match status {
            Ok(Status::StreamEnd) if data.len() == size => return Ok(()),
            Ok(Status::StreamEnd) => return refused("an object is smaller than it says"),
            Ok(_) if used > 0 || data.len() > before_out || data.len() == data.capacity() => {}
            Ok(_) => return refused("an object's compression stalls"),
            Err(_) => return refused("an object's compression is damaged"),
        }
    }
}
