//! FORMATS.md, held to its word: fixed values have fixed bytes, every value survives the round trip, and the decoder
//! accepts nothing that the encoder would not have written.

use std::collections::BTreeMap;

use delugefs_proto::codec::*;
use delugefs_proto::ids::{ActorId, BlobId, ContentId, Ino, hex};
use delugefs_proto::record::*;
use proptest::prelude::*;

fn element(seq: u64, hlc: u64, body: Body) -> Element {
    Element { dot: Dot { actor: ActorId(0x0102030405060708), seq }, body, hlc: Hlc(hlc) }
}

fn file() -> Vec<Element> {
    let ino = Ino(0x1122334455);
    let perm = Perm { mode: 0o644, uid: 1000, gid: 100 };
    let xattrs = [(b"user.a"[..].into(), XattrValue::Inline(b"v"[..].into()))].into();
    vec![
        element(300, 1_000_000, Body::Content { ino, data: Data::Inline { blob: BlobId([0xbb; 20]), size: 5 } }),
        element(300, 900_000, Body::Attrs { ino, perm, xattrs }),
        element(300, 1_000_000, Body::Times { ino, mtime_ns: 999_999, atime_ns: 999_999 }),
    ]
}

/// If this fails, the change breaks every existing disk: raise RECORD_VERSION, and keep reading version 1.
#[test]
fn golden_leaf() {
    let dir = vec![element(7, 5, Body::Dir { ino: Ino(0x20) })];
    let leaf: Leaf = [(Name::new(b"f").unwrap(), file()), (Name::new(b"d").unwrap(), dir)].into();
    let bytes = encode_leaf(&leaf);
    let expected = concat!(
        "01", // version
        "01",
        "0807060504030201", // one actor
        "02",               // two entries
        "0164",
        "01", // "d", one element
        "00",
        "00",
        "07",
        "0500000000000000",
        "2000000000000000",
        "0166",
        "03", // "f", three elements
        "02",
        "00",
        "ac02",
        "40420f0000000000",
        "5544332211000000",
        "01",
        "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
        "05",
        "53",
        "a0bb0d0000000000",
        "a403",
        "e807",
        "64",
        "01",
        "06757365722e61",
        "00",
        "0176",
        "d4",
        "40420f0000000000",
        "01",
    );
    assert_eq!(hex(&bytes), expected);
    assert_eq!(decode_leaf(&bytes).unwrap(), leaf);
    assert_eq!(decode_own_leaf(&bytes).unwrap(), leaf);
}

#[test]
fn golden_keys_and_vector() {
    let key = Key::Entry(Ino(0x10), Name::new(b"a").unwrap());
    assert_eq!(hex(&encode_key(&key)), "00100000000000000061");
    assert_eq!(hex(&encode_key(&Key::Inode(Ino(0x10)))), "011000000000000000");
    let vector = VersionVector([(ActorId(2), 5)].into());
    assert_eq!(hex(&encode_version_vector(&vector)), "0102000000000000000500000000000000");
    assert_eq!(decode_version_vector(&encode_version_vector(&vector)).unwrap(), vector);
    assert_eq!(decode_key(&[2, 0, 0, 0, 0, 0, 0, 0, 0]), Err(DecodeError::Malformed("key")));
}

#[test]
fn a_newer_version_is_named_as_such() {
    let mut bytes = encode_elements(&file());
    bytes[0] = 2;
    assert_eq!(decode_elements(&bytes), Err(DecodeError::Version(2)));
}

/// Sizes promised in DESIGN: about 114 bytes a file with everything; names and records only here.
#[test]
fn a_file_record_is_small() {
    let mut leaf = Leaf::new();
    for n in 0..64u64 {
        let ino = Ino(0x1234_5678_9abc_0000 >> 2 | n);
        let data = Data::Stored { content: ContentId([n as u8; 32]), size: 5_000_000 + n, pieces: None };
        let now = 1_700_000_000_000_000_000 + n;
        let body = Body::Attrs { ino, perm: Perm { mode: 0o644, uid: 1001, gid: 1001 }, xattrs: BTreeMap::new() };
        let elements = vec![
            element(n + 1000, now, Body::Content { ino, data }),
            element(n + 1000, now, body),
            element(n + 1000, now, Body::Times { ino, mtime_ns: now as i64 - 40_000, atime_ns: now as i64 - 40_000 }),
        ];
        leaf.insert(Name::new(format!("{n:02} track title.flac").as_bytes()).unwrap(), elements);
    }
    let per_file = encode_leaf(&leaf).len() / 64;
    assert!(per_file <= 100, "{per_file} bytes");
}

prop_compose! {
    fn any_name()(bytes in prop::collection::vec(any::<u8>(), 1..20)) -> Name {
        Name::new(&bytes).unwrap_or_else(|_| Name::new(b"n").unwrap())
    }
}

fn any_ino() -> impl Strategy<Value = Ino> {
    any::<u64>().prop_map(Ino::from_bits)
}

fn any_data() -> impl Strategy<Value = Data> {
    let pieces = prop::option::of(any::<[u8; 20]>().prop_map(BlobId));
    prop_oneof![
        Just(Data::Empty),
        Just(Data::Fifo),
        Just(Data::Socket),
        any::<u64>().prop_map(Data::CharDevice),
        any::<u64>().prop_map(Data::BlockDevice),
        (any::<[u8; 20]>(), any::<u32>()).prop_map(|(b, size)| Data::Inline { blob: BlobId(b), size }),
        (any::<[u8; 32]>(), any::<u64>(), pieces).prop_map(|(c, size, pieces)| Data::Stored {
            content: ContentId(c),
            size,
            pieces
        }),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|t| Data::Symlink(t.into())),
    ]
}

fn any_xattrs() -> impl Strategy<Value = Xattrs> {
    let value = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|v| XattrValue::Inline(v.into())),
        (any::<[u8; 20]>(), any::<u32>()).prop_map(|(b, size)| XattrValue::Blob { blob: BlobId(b), size }),
    ];
    prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..10).prop_map(Into::into), value, 0..3)
}

fn any_body() -> impl Strategy<Value = Body> {
    let perm = (0u16..0o10000, any::<u32>(), any::<u32>()).prop_map(|(mode, uid, gid)| Perm { mode, uid, gid });
    prop_oneof![
        any_ino().prop_map(|ino| Body::Dir { ino }),
        any_ino().prop_map(|ino| Body::Link { ino }),
        (any_ino(), any_data()).prop_map(|(ino, data)| Body::Content { ino, data }),
        (any_ino(), perm.clone(), any_xattrs()).prop_map(|(ino, perm, xattrs)| Body::Attrs { ino, perm, xattrs }),
        (any_ino(), any::<i64>(), any::<i64>()).prop_map(|(ino, mtime_ns, atime_ns)| Body::Times {
            ino,
            mtime_ns,
            atime_ns
        }),
        (any_ino(), any_name(), perm, any_xattrs()).prop_map(|(parent, name, perm, xattrs)| Body::Head {
            parent,
            name,
            perm,
            xattrs
        }),
        (any_ino(), any_name()).prop_map(|(dir, name)| Body::Ref { dir, name }),
    ]
}

fn any_set(min: usize) -> impl Strategy<Value = Vec<Element>> {
    let dot = (0u64..3, prop_oneof![0u64..4, any::<u64>()]).prop_map(|(a, seq)| Dot { actor: ActorId(a), seq });
    let hlc = prop_oneof![0u64..3, any::<u64>()];
    let element = (dot, any_body(), hlc).prop_map(|(dot, body, hlc)| Element { dot, body, hlc: Hlc(hlc) });
    prop::collection::vec(element, min..6).prop_map(|mut set| {
        canonicalize(&mut set);
        set
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn round_trips(leaf in prop::collection::btree_map(any_name(), any_set(1), 0..8), set in any_set(0)) {
        let bytes = encode_leaf(&leaf);
        prop_assert_eq!(&decode_leaf(&bytes).unwrap(), &leaf);
        prop_assert_eq!(&decode_own_leaf(&bytes).unwrap(), &leaf);
        prop_assert_eq!(decode_elements(&encode_elements(&set)).unwrap(), set);
    }

    /// One changed, cut or added byte: refused, or a different value that is canonical itself. Never a panic, never two
    /// spellings of one value.
    #[test]
    fn damaged_bytes(leaf in prop::collection::btree_map(any_name(), any_set(1), 0..5), at in any::<prop::sample::Index>(),
                     flip in 1u8.., cut in any::<bool>()) {
        let good = encode_leaf(&leaf);
        let mut bytes = good.clone();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
        if let Ok(other) = decode_leaf(&bytes) {
            prop_assert_ne!(&other, &leaf);
            prop_assert_eq!(encode_leaf(&other), bytes);
        }
        let mut longer = good;
        longer.push(flip);
        prop_assert!(decode_leaf(&longer).is_err());
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut versioned = vec![RECORD_VERSION];
        versioned.extend(&bytes);
        let _ = (decode_leaf(&versioned), decode_own_leaf(&versioned), decode_elements(&versioned));
        let _ = (decode_key(&bytes), decode_version_vector(&versioned));
    }
}
