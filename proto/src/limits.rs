//! Every limit that two processes must agree on, with its unit and its reason.

/// Longest name in a directory, in bytes: what Linux and FreeBSD allow.
pub const NAME_MAX_BYTES: usize = 255;
/// Longest symlink target, in bytes (PATH_MAX less its NUL).
pub const TARGET_MAX_BYTES: usize = 4095;
/// Longest extended attribute name, in bytes (Linux's XATTR_NAME_MAX).
pub const XATTR_NAME_MAX_BYTES: usize = 255;
/// Largest extended attribute value, in bytes (Linux's XATTR_SIZE_MAX).
pub const XATTR_VALUE_MAX_BYTES: usize = 64 << 10;
/// Most extended attributes of one node: keeps the list of names below Linux's XATTR_LIST_MAX. With the longest names and values they are
/// 100 KiB of its record, and 7 MiB of a leaf: far below what a catalog's object may be where hosts have set others before they meet.
pub const XATTRS_MAX: usize = 200;
/// Extended attribute values above this size are attachments instead of part of the record.
pub const XATTR_INLINE_MAX_BYTES: usize = 256;
/// Contents up to this size live in the catalog, and so on every disk. One page: the smallest unit the kernel caches,
/// and what a file costs a disk at least anyway.
pub const INLINE_MAX_BYTES: u64 = 4096;
/// Contents above this size carry piece hashes and move as torrents; smaller ones move as one verified object.
pub const TORRENT_MIN_BYTES: u64 = 4 << 20;
/// Entries in one leaf of a directory before it is split sixteen ways, and at or below which it is joined again.
pub const LEAF_MAX_ENTRIES: usize = 64;
/// Deepest split of a directory: 40 nibbles of SHA-1; equal hashes end up in one leaf there.
pub const LEAF_MAX_DEPTH: usize = 40;
/// Largest frame on the local socket, in bytes: a whole page of directory entries with the longest names fits.
pub const FRAME_MAX_BYTES: usize = 4 << 20;
/// Most entries in one answer to ReadDir.
pub const READDIR_MAX_ENTRIES: u32 = 4096;
/// Hard links of one inode (ext4 has 65,000). Each is a record in the inode's own leaf.
pub const LINKS_MAX: u32 = 32_000;
/// All names of one inode together, in bytes: for the same reason.
pub const LINK_NAMES_MAX_BYTES: usize = 2 << 20;
/// Largest file size, in bytes: what the piece arithmetic holds (131,072 pieces of 512 MiB; see `piece_length_bytes`).
pub const FILE_MAX_BYTES: u64 = 64 << 40;

/// Piece length of a content's torrent, in bytes: a pure function of the content's length, so that every disk that
/// holds the same bytes makes the same info hash. About 16,384 pieces, between 256 KiB and 16 MiB; larger only where
/// there would be more than 131,072 pieces, which librqbit cannot transfer.
pub fn piece_length_bytes(content_bytes: u64) -> u32 {
    let usual = (content_bytes / 16_384).next_power_of_two().clamp(256 << 10, 16 << 20);
    let fewest = content_bytes.div_ceil(131_072).next_power_of_two();
    u32::try_from(usual.max(fewest)).unwrap_or(1 << 31)
}

/// Number of pieces of a content.
pub fn piece_count(content_bytes: u64) -> u64 {
    content_bytes.div_ceil(u64::from(piece_length_bytes(content_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_up_to_many_tebibytes() {
        for (bytes, length, count) in [
            (1, 256 << 10, 1),
            (4 << 20, 256 << 10, 16),
            (5 << 30, 512 << 10, 10_240),
            (256 << 30, 16 << 20, 16_384),
            (2 << 40, 16 << 20, 131_072),
            ((2 << 40) + 1, 32 << 20, 65_537),
            (FILE_MAX_BYTES, 512 << 20, 131_072),
        ] {
            assert_eq!((piece_length_bytes(bytes), piece_count(bytes)), (length, count), "{bytes} bytes");
        }
        let mut bytes = 1;
        while bytes <= FILE_MAX_BYTES {
            for b in [bytes - 1, bytes, bytes + 1] {
                assert!(piece_count(b) <= 131_073, "{b} bytes");
            }
            bytes *= 2;
        }
    }
}
