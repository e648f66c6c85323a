//! Records of the log: length (4 bytes), CRC-32 of the rest (4), lsn (8), then the change. Lsns count on without gaps; a
//! record that is cut, damaged or out of sequence ends the log. All numbers are little endian.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};

use bytes::Bytes;
use delugefs_proto::codec;

use crate::catalog::{Changes, OBJECT_MAX_BYTES, blob_id};

pub(super) const HEADER_BYTES: usize = 16;
/// Largest record after its header, in bytes: what a change of the largest set that a catalog can have takes. None larger is appended,
/// so what says it is larger is damage, and to read one costs no more memory than to make it did.
pub(super) const RECORD_MAX_BYTES: usize = OBJECT_MAX_BYTES;

/// Why a segment was not read to its end.
pub(super) enum End {
    /// It ends in a record that was begun but is not whole.
    Damaged(String),
    /// This whole record does not decode.
    Newer(u64),
    /// It cannot be read.
    Io(io::Error),
}

pub(super) fn encode(lsn: u64, change: &Changes) -> Vec<u8> {
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
    let mut crc = flate2::Crc::new();
    crc.update(&out[8..]);
    out[4..8].copy_from_slice(&crc.sum().to_le_bytes());
    out
}

/// Append the records of a segment to `changes`, from its beginning. `end` is moved behind the last good one.
pub(super) fn replay(file: &File, end: &mut u64, next_lsn: &mut u64, changes: &mut Vec<Changes>) -> Result<(), End> {
    let mut reader = BufReader::with_capacity(256 << 10, file);
    loop {
        let mut header = [0; HEADER_BYTES];
        match reader.read_exact(&mut header) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read.map_err(End::Io)?,
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap_or_default());
        let (len, crc) = (word(0) as usize, word(4));
        let lsn = u64::from(word(8)) | u64::from(word(12)) << 32;
        if len == 0 || lsn < *next_lsn {
            return Ok(()); // zeros of the preallocation, or a record of the segment's earlier life
        }
        if lsn != *next_lsn || len > RECORD_MAX_BYTES {
            return Err(End::Damaged(format!("record {next_lsn} is damaged")));
        }
        let mut body = Vec::new();
        if reader.by_ref().take(len as u64).read_to_end(&mut body).map_err(End::Io)? < len {
            return Err(End::Damaged(format!("record {lsn} is cut short")));
        }
        let mut checked = flate2::Crc::new();
        checked.update(&header[8..]);
        checked.update(&body);
        if checked.sum() != crc {
            return Err(End::Damaged(format!("record {lsn} is damaged")));
        }
        changes.push(decode(&body).ok_or(End::Newer(lsn))?);
        *next_lsn += 1;
        *end += (HEADER_BYTES + len) as u64;
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
