//! Packs that a liar sends: the state of an honest disk with something of it replaced, and all that leads there hashed anew. To git
//! they are sound; what they say is not.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use delugefs_proto::codec::{Leaf, decode_leaf, decode_version_vector, encode_leaf, encode_version_vector};
use delugefs_proto::ids::{ActorId, BlobId, ContentId, Ino};
use delugefs_proto::limits::{FILE_MAX_BYTES, piece_length_bytes};
use delugefs_proto::record::{Body, Data, Dot, Element, Hlc, Name, Perm, VersionVector, Xattrs};
use flate2::Compression;
use flate2::bufread::ZlibDecoder;
use flate2::write::ZlibEncoder;

pub type Id = [u8; 20];

/// A name that the root directory has, and no other.
const KNOWN: &[u8] = b"one";

/// Numbers of kinds in a pack.
const COMMIT: u8 = 1;
const TREE: u8 = 2;
const BLOB: u8 = 3;

/// All objects of a state.
#[derive(Clone)]
pub struct Objects {
    all: BTreeMap<Id, (u8, Vec<u8>)>,
    pub commit: Id,
}

/// A pack, and the commit that it is said to lead to.
pub type Pack = (Id, Vec<u8>);

fn sha1(bytes: &[u8]) -> Id {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().try_into().unwrap()
}

/// The id of an attachment with the hashes of a content's pieces.
pub fn pieces_of(content: &[u8]) -> Id {
    let piece = piece_length_bytes(content.len() as u64) as usize;
    id(BLOB, &content.chunks(piece).flat_map(sha1).collect::<Vec<u8>>())
}

fn id(kind: u8, data: &[u8]) -> Id {
    let kind = ["commit", "tree", "blob"][usize::from(kind) - 1];
    sha1(&[format!("{kind} {}\0", data.len()).as_bytes(), data].concat())
}

fn hex(id: &Id) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One object as it is in a pack.
fn packed(kind: u8, size: u64, data: &[u8], level: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut rest, mut byte) = (size >> 4, kind << 4 | (size & 15) as u8);
    while rest > 0 {
        out.push(byte | 0x80);
        (byte, rest) = ((rest & 0x7f) as u8, rest >> 7);
    }
    out.push(byte);
    let mut deflated = ZlibEncoder::new(out, Compression::new(level));
    deflated.write_all(data).unwrap();
    deflated.finish().unwrap()
}

/// The beginning of a pack with so many objects.
pub fn begin(count: u32) -> Vec<u8> {
    [&b"PACK\0\0\0\x02"[..], &count.to_be_bytes()].concat()
}

fn sealed(mut pack: Vec<u8>) -> Vec<u8> {
    pack.extend(sha1(&pack));
    pack
}

/// An object of a pack that has no end: bytes that cannot be compressed, so that they take the room that they say.
pub fn filler(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let data: Vec<u8> = (0..size).map(|_| next()).collect();
    packed(BLOB, size as u64, &data, 0)
}

/// All that there is of a file under its name.
fn file_of(ino: Ino, data: Data) -> Vec<Body> {
    let perm = Perm { mode: 0o644, uid: 0, gid: 0 };
    let attrs = Body::Attrs { ino, perm, xattrs: Xattrs::new() };
    vec![Body::Content { ino, data }, attrs, Body::Times { ino, mtime_ns: 1, atime_ns: 1 }]
}

impl Objects {
    /// What a disk has sent: whole objects, as all packs of catalogs have.
    pub fn parse(commit: Id, pack: &[u8]) -> Self {
        let count = u32::from_be_bytes(pack[8..12].try_into().unwrap());
        let (mut all, mut at) = (BTreeMap::new(), 12);
        for _ in 0..count {
            let kind = pack[at] >> 4 & 7;
            while pack[at] & 0x80 != 0 {
                at += 1;
            }
            let (mut inflate, mut data) = (ZlibDecoder::new(&pack[at + 1..]), Vec::new());
            inflate.read_to_end(&mut data).unwrap();
            at += 1 + inflate.total_in() as usize;
            all.insert(id(kind, &data), (kind, data));
        }
        Self { all, commit }
    }

    pub fn pack(&self) -> Pack {
        let object = |(kind, data): &(u8, Vec<u8>)| packed(*kind, data.len() as u64, data, 1);
        let objects: Vec<u8> = self.all.values().flat_map(object).collect();
        (self.commit, sealed([begin(self.all.len() as u32), objects].concat()))
    }

    /// The same with other bytes in one object.
    fn with(&self, old: Id, data: Vec<u8>) -> Self {
        let mut new = self.clone();
        let mut changed = vec![(old, data)];
        while let Some((old, data)) = changed.pop() {
            let (kind, _) = new.all.remove(&old).unwrap();
            let now = id(kind, &data);
            new.all.insert(now, (kind, data));
            if new.commit == old {
                new.commit = now;
            }
            for (name, (kind, data)) in &new.all {
                let (from, to) = match *kind {
                    COMMIT => (hex(&old).into_bytes(), hex(&now).into_bytes()),
                    TREE => (old.to_vec(), now.to_vec()),
                    _ => continue,
                };
                if let Some(at) = data.windows(from.len()).position(|part| part == from) {
                    let after = &data[at + from.len()..];
                    changed.push((*name, [&data[..at], &to, after].concat()));
                }
            }
        }
        new
    }

    /// What the root of the state has under a name.
    fn of_root(&self, name: &str) -> Id {
        let tree = std::str::from_utf8(&self.all[&self.commit].1[5..45]).unwrap();
        let (_, (_, root)) = self.all.iter().find(|(id, _)| hex(id) == tree).unwrap();
        let name = format!(" {name}\0").into_bytes();
        let at = root.windows(name.len()).position(|part| part == name).unwrap() + name.len();
        root[at..at + 20].try_into().unwrap()
    }

    fn seen(&self) -> VersionVector {
        decode_version_vector(&self.all[&self.of_root("ctx")].1).unwrap()
    }

    /// A state that includes this one, and nobody has yet: somebody has changed something, and taken it back.
    pub fn later(&self, actor: u64) -> Self {
        let mut seen = self.seen();
        seen.0.insert(ActorId(actor), 1);
        self.with(self.of_root("ctx"), encode_version_vector(&seen))
    }

    /// Other records in the root directory; dots of `actor` are covered.
    fn with_root(&self, actor: u64, change: impl FnOnce(&mut Leaf) -> Option<Vec<u8>>) -> Self {
        let leaf = |(id, (kind, data)): (&Id, &(u8, Vec<u8>))| {
            let leaf = decode_leaf(data).ok().filter(|leaf| *kind == BLOB && leaf.contains_key(KNOWN))?;
            Some((*id, leaf))
        };
        let (old, mut leaf) = self.all.iter().find_map(leaf).expect("the root directory");
        let bytes = change(&mut leaf);
        let mut seen = self.seen();
        seen.0.insert(ActorId(actor), 100);
        let new = self.with(old, bytes.unwrap_or_else(|| encode_leaf(&leaf)));
        new.with(new.of_root("ctx"), encode_version_vector(&seen))
    }

    /// The same with one more name in the root directory.
    fn with_entry(&self, actor: u64, name: &str, bodies: Vec<Body>) -> Self {
        self.with_root(actor, |leaf| {
            let element =
                |(n, body): (u64, Body)| Element { dot: Dot { actor: ActorId(actor), seq: n + 1 }, body, hlc: Hlc(9) };
            leaf.insert(Name::new(name.as_bytes()).unwrap(), (0..).zip(bodies).map(element).collect());
            None
        })
    }

    /// Whether some directory has this name.
    pub fn has(&self, name: &str) -> bool {
        let leaves = self.all.values().filter_map(|(_, data)| decode_leaf(data).ok());
        leaves.into_iter().any(|leaf| leaf.contains_key(name.as_bytes()))
    }

    /// No packs, and packs of states that must not be, each with why.
    pub fn bad(&self) -> Vec<(&'static str, Pack)> {
        let (commit, good) = self.later(7).pack();
        let middle = good.len() / 2;
        let mut flipped = good.clone();
        flipped[middle] ^= 0x10;
        let bomb = vec![0; 64 << 20];
        let of = |objects: Self| objects.pack();
        let ctx = |bytes: Vec<u8>| of(self.with(self.of_root("ctx"), bytes));
        let file = |data| of(self.with_entry(7, "bad", file_of(Ino(1 << 40), data)));
        let stored = |size| file(Data::Stored { content: ContentId([1; 32]), size, pieces: None });
        let tree = self.all[&self.commit].1.clone();
        vec![
            ("no pack", (commit, vec![b'x'; 3 << 20])),
            ("cut short", (commit, good[..middle].to_vec())),
            ("a flipped bit", (commit, flipped)),
            ("another commit", ([0xab; 20], good)),
            ("very many objects", (commit, sealed(begin(u32::MAX)))),
            ("an object of 1 PiB", (commit, sealed([begin(1), packed(BLOB, 1 << 50, b"x", 1)].concat()))),
            ("an object that is not what it says", (commit, sealed([begin(1), packed(BLOB, 9, &bomb, 1)].concat()))),
            ("a bomb", (commit, sealed([begin(1), packed(BLOB, bomb.len() as u64, &bomb, 1)].concat()))),
            ("a delta", (commit, sealed([begin(1), packed(6, 9, b"x", 1)].concat()))),
            ("a commit with an author", of(self.with(self.commit, [&tree[..], b"and more"].concat()))),
            ("a format that is newer", of(self.with(self.of_root("version"), b"9\n".to_vec()))),
            ("no version vector", ctx(vec![1; 16])),
            ("a version vector that covers less", ctx(encode_version_vector(&VersionVector::default()))),
            ("bytes behind a leaf", self.behind_a_leaf()),
            ("an empty leaf", of(self.with_root(7, |_| Some(encode_leaf(&Leaf::new()))))),
            ("random bytes in place of a leaf", of(self.with_root(7, |_| Some(filler(1000))))),
            ("an attachment that is not there", file(Data::Inline { blob: BlobId([3; 20]), size: 3 })),
            ("a time of the far future", {
                of(self.with_root(7, |leaf| {
                    leaf.values_mut().flatten().for_each(|element| element.hlc = Hlc(u64::MAX));
                    None
                }))
            }),
            ("a file that is larger than any", stored(u64::MAX)),
            ("a file that is a little larger than any", stored(FILE_MAX_BYTES + 1)),
        ]
    }

    /// One of these.
    pub fn behind_a_leaf(&self) -> Pack {
        self.with_root(7, |leaf| Some([&encode_leaf(leaf)[..], b"\0"].concat())).pack()
    }

    /// With a file `flood` of this content, whose pieces nobody can verify: there are no hashes of them.
    pub fn with_flood(&self, content: ContentId, size: u64) -> Self {
        let ino = Ino(1 << 42);
        self.with_entry(9, "flood", file_of(ino, Data::Stored { content, size, pieces: None }))
    }

    /// What can be read, and makes no sense: a worker may refuse it or make the best of it.
    pub fn odd(&self) -> Self {
        let ino = |n: u64| Ino((1 << 41) + n);
        let perm = Perm { mode: 0o755, uid: 0, gid: 0 };
        let times = |n| Body::Times { ino: ino(n), mtime_ns: i64::MIN, atime_ns: i64::MAX };
        let attrs = |n| Body::Attrs { ino: ino(n), perm, xattrs: Xattrs::new() };
        let empty = |n| Body::Content { ino: ino(n), data: Data::Empty };
        let link = |target: &[u8]| Body::Content { ino: ino(9), data: Data::Symlink(target.into()) };
        let odd = [
            ("odd-dir", vec![Body::Dir { ino: ino(1) }]),
            ("odd-root", vec![Body::Dir { ino: Ino::ROOT }]),
            (
                "odd-dirs",
                vec![Body::Dir { ino: ino(1) }, Body::Dir { ino: ino(2) }, Body::Dir { ino: Ino::LOST_FOUND }],
            ),
            ("odd-link", vec![Body::Link { ino: ino(3) }]),
            ("odd-ref", vec![Body::Ref { dir: Ino::ROOT, name: Name::new(b"odd-link").unwrap() }]),
            ("odd-times", vec![times(4)]),
            ("odd-attrs", vec![attrs(5), times(6), empty(7)]),
            ("odd-mix", vec![Body::Dir { ino: ino(8) }, Body::Link { ino: ino(8) }, empty(8), attrs(8)]),
            ("odd-symlink", vec![link(b"a\0b"), link(b"/"), link(&[b'x'; 4095])]),
            ("odd-twice", vec![empty(7)]),
            ("odd-head", vec![Body::Head { parent: Ino::ROOT, name: Name::header(), perm, xattrs: Xattrs::new() }]),
        ];
        odd.into_iter().zip(100..).fold(self.clone(), |state, ((name, bodies), actor)| {
            let mut bodies = bodies;
            bodies.sort();
            state.with_entry(actor, name, bodies)
        })
    }
}
