//! What a newer content takes over from the version before.

use super::*;

const SIZE: usize = 6 << 20;
const PIECE: usize = 256 << 10;

/// A store with a content, and the next version of it: another piece, and more at the end.
fn versions() -> (Lab, ContentId, Vec<u8>, bytes::Bytes) {
    let lab = Lab::new();
    let mut bytes = noise(SIZE);
    let older = lab.seal(1, &bytes);
    bytes[SIZE / 2] ^= 1;
    bytes.extend_from_slice(&noise(1000));
    lab.stage(2, &bytes);
    let sealed = lab.job(2).run().unwrap();
    lab.store.remove_staged(Ino(2)).unwrap();
    (lab, older, bytes, sealed.pieces.unwrap())
}

fn fill(lab: &Lab, content: ContentId, size: usize, pieces: &[u8], stop: bool) -> FsResult<Vec<usize>> {
    let file = lab.store.incoming_file(content, size as u64).unwrap();
    let have = lab.store.incoming_pieces(&file, content, size as u64, pieces, &|| false).unwrap();
    let mut found = Vec::new();
    let Some(mut older) = lab.store.open_earlier(content, size as u64) else { return Ok(found) };
    for (piece, hash) in pieces.chunks(20).enumerate() {
        if have[piece / 8] & (0x80 >> (piece % 8)) == 0
            && lab.store.copy_piece(&mut older, &file, (piece, hash), &|| stop)?
        {
            found.push(piece);
        }
    }
    lab.store.forget_earlier(content);
    Ok(found)
}

#[test]
fn what_is_the_same_is_copied_once() {
    let (lab, older, bytes, pieces) = versions();
    let (content, size) = (sha256(&bytes), bytes.len());
    let fill = |stop| fill(&lab, content, size, &pieces, stop);
    // Nothing is known; then what is known is not here.
    assert_eq!(fill(false), Ok(vec![]));
    lab.store.note_version(Ino(1), Some(content), Some(ContentId([9; 32])));
    assert!(lab.store.has_earlier(content));
    assert_eq!(fill(false), Ok(vec![]));
    // Two versions on. Stopped, it may be begun again.
    lab.store.note_version(Ino(1), Some(ContentId([9; 32])), Some(older));
    assert_eq!(fill(true).unwrap_err().errno, Errno::EBUSY);
    let found = fill(false).unwrap();
    assert_eq!(found.len(), SIZE / PIECE - 1);
    assert!(!found.contains(&12) && found[22] == 23);
    let file = lab.store.incoming_file(content, size as u64).unwrap();
    let have = lab.store.incoming_pieces(&file, content, size as u64, &pieces, &|| false).unwrap();
    assert_eq!(have, [0xff, 0b1111_0111, 0xff, 0]);
    assert!(!lab.store.has_earlier(content));
    file.write_all_at(&bytes[SIZE / 2..], (SIZE / 2) as u64).unwrap();
    drop(file);
    lab.store.finish_incoming(content, size as u64, &|| false).unwrap();
    lab.store.check(older, SIZE as u64).unwrap();
}

#[test]
fn a_wrong_whole_is_not_made_again() {
    let (lab, older, bytes, pieces) = versions();
    // The catalog lies: the hashes are of other bytes than the name.
    let lie = ContentId([7; 32]);
    lab.store.note_version(Ino(1), Some(lie), Some(older));
    assert_eq!(fill(&lab, lie, bytes.len(), &pieces, false).unwrap().len(), 23);
    assert_eq!(lab.store.finish_incoming(lie, bytes.len() as u64, &|| false).unwrap_err().errno, Errno::EIO);
    assert_eq!(lab.store.incoming().unwrap(), []);
    assert_eq!(fill(&lab, lie, bytes.len(), &pieces, false), Ok(vec![]));
}

#[test]
fn a_file_that_took_the_name_before_it_was_sealed() {
    let lab = Lab::new();
    let (one, two) = (ContentId([1; 32]), ContentId([2; 32]));
    lab.store.note_version(Ino(6), Some(two), None);
    assert!(!lab.store.has_earlier(two));
    lab.store.note_version(Ino(6), None, Some(one));
    lab.store.note_version(Ino(7), Some(two), None);
    assert!(!lab.store.has_earlier(two));
    lab.store.note_version(Ino(6), Some(two), None);
    assert!(lab.store.has_earlier(two));
    // The oldest are forgotten.
    for n in 0..2000u64 {
        let mut other = [3; 32];
        other[..8].copy_from_slice(&n.to_le_bytes());
        lab.store.note_version(Ino(100 + n), Some(ContentId(other)), Some(one));
    }
    assert!(!lab.store.has_earlier(two));
}
