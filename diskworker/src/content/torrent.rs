//! The torrent of a content, as a pure function of it: every disk that holds the same bytes makes the same info hash.
//!
//! Single file, v1, private, named by the SHA-256 in hex, with the piece length of `proto::limits`. Built here and not by
//! librqbit, whose builder cannot say `private` and adds a piece too many when the length is a multiple of the piece's.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use bytes::Bytes;
use delugefs_proto::ids::ContentId;
use delugefs_proto::limits::{piece_count, piece_length_bytes};
use librqbit_buffers::ByteBuf;
use librqbit_core::torrent_metainfo::TorrentMetaV1Info;

/// What a swarm needs to know of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torrent {
    /// The .torrent file.
    pub file: Bytes,
    /// SHA-1 of its info dictionary.
    pub info_hash: [u8; 20],
}

/// Make the torrent of a content; `pieces` is the SHA-1 of every piece, 20 bytes each.
///
/// # Errors
/// When the number of piece hashes does not fit the size (librqbit would accept that and never finish), or the content
/// is empty (which has no torrent).
pub fn torrent(content: ContentId, size: u64, pieces: &[u8]) -> anyhow::Result<Torrent> {
    let count = piece_count(size);
    anyhow::ensure!(size > 0, "an empty content has no torrent");
    anyhow::ensure!(
        pieces.len() as u64 == count * 20,
        "content {content} of {size} bytes has {count} pieces, but {} bytes of piece hashes were given",
        pieces.len()
    );
    let name = content.to_hex();
    let info = TorrentMetaV1Info::<ByteBuf<'_>> {
        name: Some(ByteBuf(name.as_bytes())),
        pieces: ByteBuf(pieces),
        piece_length: piece_length_bytes(size),
        length: Some(size),
        md5sum: None,
        files: None,
        attr: None,
        sha1: None,
        symlink_path: None,
        private: true,
    };
    let mut file = b"d4:info".to_vec();
    librqbit_bencode::bencode_serialize_to_writer(&info, &mut file)?;
    let mut info_hash = [0; 20];
    info_hash.copy_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, &file[b"d4:info".len()..]).as_ref());
    file.push(b'e');
    Ok(Torrent { file: file.into(), info_hash })
}

#[cfg(test)]
mod tests {
    use super::*;
    use delugefs_proto::ids::hex;

    #[test]
    fn the_same_for_ever() {
        let made = torrent(ContentId([0xab; 32]), 700_000, &[7; 60]).unwrap();
        let mut info =
            format!("d6:lengthi700000e4:name64:{}12:piece lengthi262144e6:pieces60:", "ab".repeat(32)).into_bytes();
        info.extend([7; 60]);
        info.extend(b"7:privatei1ee");
        assert_eq!(made.file, [b"d4:info", &info[..], b"e"].concat());
        // As Python's hashlib.sha1 makes it of the same text.
        assert_eq!(hex(&made.info_hash), "eaad370af58460afdf25482f61cd411adf732549");
    }

    #[test]
    fn a_whole_number_of_pieces_makes_no_extra_one() {
        let size = 8 << 20;
        assert!(torrent(ContentId([1; 32]), size, &vec![0; 32 * 20]).is_ok());
        for count in [0, 31, 33] {
            assert!(torrent(ContentId([1; 32]), size, &vec![0; count * 20]).is_err());
        }
        assert!(torrent(ContentId([1; 32]), 0, &[]).is_err());
    }
}
