//! Identifiers, each its own type so that they cannot be mixed up.

use std::fmt;

/// Inode number: 64 bits, the same on every host, stable for ever and never reused. A directory's inode number is
/// also its key in the catalog. Bits 62 and 63 are never set, so that it is positive in every signed type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory, as FUSE wants it.
    pub const ROOT: Ino = Ino(1);
    /// Where directories go that lost their place in a merge (`lost+found` in the root).
    pub const LOST_FOUND: Ino = Ino(2);
    /// Numbers below this are reserved.
    pub const FIRST_FREE: u64 = 16;

    /// Whether a stored record may carry this number.
    pub fn is_storable(self) -> bool {
        self.0 >> 62 == 0 && (self.0 >= Self::FIRST_FREE || self == Self::ROOT || self == Self::LOST_FOUND)
    }
}

impl Ino {
    /// A storable number from 64 evenly spread bits (random, or a hash).
    pub fn from_bits(bits: u64) -> Self {
        let ino = bits >> 2;
        Ino(if ino < Self::FIRST_FREE { ino + Self::FIRST_FREE } else { ino })
    }

    /// A new number; 62 random bits make a collision among ten million files less likely than one in 90,000.
    pub fn random() -> Self {
        Self::from_bits(random_u64())
    }
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ino({:x})", self.0)
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One writer of catalog changes. A disk draws a new one when it is created and whenever it cannot be sure that its
/// state includes everything it ever published (unclean stop, restore, clone).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ActorId(pub u64);

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// From raw bytes; `None` when the length is wrong.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// Lower-case hex, the only textual form.
            pub fn to_hex(self) -> String {
                hex(&self.0)
            }

            /// From exactly twice the length of hex digits, upper or lower case.
            pub fn from_hex(text: &str) -> Option<Self> {
                unhex(text).and_then(|bytes| Self::from_slice(&bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:.8}..)"), self.to_hex())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }
    };
}

hash_id!(
    /// SHA-256 of a whole file content: its identity everywhere.
    ContentId, 32
);
hash_id!(
    /// Git object id (SHA-1) of an attachment blob in the catalog.
    BlobId, 20
);
hash_id!(
    /// Ed25519 public key of a disk: its identity.
    DiskId, 32
);
hash_id!(
    /// Ed25519 public key of a host: its identity, whatever its name and addresses.
    HostId, 32
);
hash_id!(
    /// Ed25519 public key of whoever is at the other end: a host or a disk.
    NodeId, 32
);
hash_id!(
    /// Begins the SHA-256 of the cluster's genesis, so that the founder can prove it (see `members`). A disk made by hand
    /// without one draws it at random, and never meets another.
    ClusterId, 16
);

impl From<DiskId> for NodeId {
    fn from(id: DiskId) -> Self {
        Self(id.0)
    }
}

impl From<HostId> for NodeId {
    fn from(id: HostId) -> Self {
        Self(id.0)
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)] as char, DIGITS[usize::from(b & 15)] as char]).collect()
}

/// The bytes of a hex text; `None` on an odd length or a foreign character.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    let text = text.as_bytes();
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// 64 bits from the system's random source.
///
/// # Panics
/// When the system has no random source, which neither Linux nor FreeBSD reports after boot.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system's random source answers");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip_and_refusals() {
        let id = BlobId(*b"01234567890123456789");
        assert_eq!(BlobId::from_hex(&id.to_hex()), Some(id));
        assert_eq!(BlobId::from_hex(&id.to_hex().to_uppercase()), Some(id));
        assert_eq!(BlobId::from_hex("00"), None);
        assert_eq!(unhex("0g"), None);
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("+1"), None);
    }

    #[test]
    fn storable_numbers() {
        assert!(Ino::ROOT.is_storable() && Ino::LOST_FOUND.is_storable() && Ino(16).is_storable());
        assert!(!Ino(0).is_storable() && !Ino(3).is_storable() && !Ino(1 << 62).is_storable());
        assert!(Ino::from_bits(0).is_storable() && Ino::from_bits(u64::MAX).is_storable());
    }
}
