//! What a set of elements under one name looks like to a user: the shown node, and copies of what conflicts with it.
//!
//! Pure: elements in, names and nodes out; the same on every host that has the same state. All versions that a join
//! kept are shown somewhere. One has the plain name: directories before others, then the latest by `(hlc, dot)`. The
//! rest appear as `name.conflict-<8 hex digits of the content's hash>`. Identical content is no conflict, and an empty
//! file is none against one that has content.

use delugefs_proto::ids::Ino;
use delugefs_proto::limits::NAME_MAX_BYTES;
use delugefs_proto::record::{Body, Data, Dot, Element, Hlc, Key, Name};

/// What stands between a name and the tag of a conflict copy.
pub const CONFLICT: &[u8] = b".conflict-";

/// One node that a set of elements shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown<'a> {
    /// `None`: it has the plain name. Else the tag of its conflict name.
    pub tag: Option<u32>,
    /// Inode number it has for users.
    pub ino: Ino,
    /// What it is.
    pub what: What<'a>,
}

/// What a shown node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// A directory; its header says the rest.
    Dir,
    /// A name of an inode kept on its own.
    Link,
    /// A file of any kind, complete here.
    File(FileParts<'a>),
}

/// The elements that make up a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileParts<'a> {
    /// The inode number its elements carry.
    pub stored_ino: Ino,
    /// A [`Body::Content`].
    pub content: &'a Element,
    /// A [`Body::Attrs`], unless a join left none.
    pub attrs: Option<&'a Element>,
    /// A [`Body::Times`], unless a join left none.
    pub times: Option<&'a Element>,
}

impl<'a> FileParts<'a> {
    /// What it holds.
    pub fn data(&self) -> &'a Data {
        match &self.content.body {
            Body::Content { data, .. } => data,
            _ => &Data::Empty,
        }
    }
}

/// Everything a set of elements under one name shows; the plainly named node first. Empty when the set has only
/// remains (attributes of a file that was deleted elsewhere).
pub fn view(elements: &[Element]) -> Vec<Shown<'_>> {
    let mut shown: Vec<(bool, Hlc, Dot, Shown<'_>)> = Vec::with_capacity(1);
    for element in elements {
        let (is_dir, ino, what) = match &element.body {
            Body::Dir { ino } => (true, *ino, What::Dir),
            Body::Link { ino } => (false, *ino, What::Link),
            Body::Content { ino, .. } => (false, *ino, What::File(parts(elements, *ino, element))),
            _ => continue,
        };
        let rank = (is_dir, element.hlc, element.dot);
        match shown.iter_mut().find(|(.., other)| is_same(&other.what, other.ino, &what, ino)) {
            Some(other) if (other.0, other.1, other.2) >= rank => {}
            Some(other) => *other = (rank.0, rank.1, rank.2, Shown { tag: None, ino, what }),
            None => shown.push((rank.0, rank.1, rank.2, Shown { tag: None, ino, what })),
        }
    }
    if shown.len() > 1 {
        // The number of a link is the key of its inode.
        let is_link = |what: &What<'_>| matches!(what, What::Link);
        let mut numbers: Vec<Ino> = shown.iter().filter(|s| is_link(&s.3.what)).map(|s| s.3.ino).collect();
        shown.sort_by_key(|s| std::cmp::Reverse((s.0, s.1, s.2)));
        // An empty file hides behind anything; it holds nothing that could be lost. Where it is being written it is shown: see `hidden`.
        let mut first = true;
        shown.retain(|(.., s)| std::mem::take(&mut first) || !is_empty(&s.what));
        if shown.len() > 1 && is_empty(&shown[0].3.what) {
            shown.remove(0);
        }
        // Versions of one file are several here, each with a number of its own.
        for (at, (.., dot, other)) in shown.iter_mut().enumerate() {
            other.tag = (at > 0).then(|| tag(&other.what, other.ino));
            if matches!(other.what, What::File(_)) {
                if numbers.contains(&other.ino) {
                    other.ino = derived_ino(other.ino, *dot);
                }
                numbers.push(other.ino);
            }
        }
    }
    shown.into_iter().map(|(.., shown)| shown).collect()
}

/// The file with this number that is not shown, and the tag of its conflict name if it is to be: an empty one behind something else,
/// or one whose content another file has too. Somebody may be writing it, which no element tells.
pub fn hidden(elements: &[Element], of: Ino) -> Option<(FileParts<'_>, u32)> {
    let version = version(elements, of)?;
    let is_shown = view(elements).iter().any(|shown| shown.ino == of);
    (!is_shown).then_some(version)
}

/// A version of the file with this number, shown or not, and the tag that its conflict name has or would have.
pub fn version(elements: &[Element], of: Ino) -> Option<(FileParts<'_>, u32)> {
    let content = elements.iter().find(|e| matches!(&e.body, Body::Content { ino, .. } if *ino == of))?;
    let parts = parts(elements, of, content);
    Some((parts, tag(&What::File(parts), of)))
}

/// The winner among the contents of an inode kept on its own, and the others.
pub fn contents(elements: &[Element]) -> Vec<FileParts<'_>> {
    let shown = view(elements);
    shown.into_iter().filter_map(|s| if let What::File(parts) = s.what { Some(parts) } else { None }).collect()
}

/// Whether these are of a file that has no name any more: of two, each was removed on another host. What is left of it is no file's.
pub fn is_nameless(key: &Key, elements: &[Element]) -> bool {
    matches!(key, Key::Inode(_)) && !elements.iter().any(|e| matches!(e.body, Body::Ref { .. }))
}

/// The files of which a set has attributes and nothing else: they were changed under a name that another host took away, or made one of
/// several.
pub fn bare(elements: &[Element]) -> impl Iterator<Item = Ino> + '_ {
    let is_here = |of: Ino| elements.iter().any(|e| matches!(&e.body, Body::Content { ino, .. } if *ino == of));
    elements.iter().filter_map(move |e| match e.body {
        Body::Attrs { ino, .. } if !is_here(ino) => Some(ino),
        _ => None,
    })
}

/// The latest element of a kind.
pub fn latest(elements: &[Element], is_kind: impl Fn(&Body) -> bool) -> Option<&Element> {
    elements.iter().filter(|e| is_kind(&e.body)).max_by_key(|e| (e.hlc, e.dot))
}

fn parts<'a>(elements: &'a [Element], of: Ino, content: &'a Element) -> FileParts<'a> {
    FileParts {
        stored_ino: of,
        content,
        attrs: latest(elements, |body| matches!(body, Body::Attrs { ino, .. } if *ino == of)),
        times: latest(elements, |body| matches!(body, Body::Times { ino, .. } if *ino == of)),
    }
}

fn is_same(a: &What<'_>, a_ino: Ino, b: &What<'_>, b_ino: Ino) -> bool {
    match (a, b) {
        (What::Dir, What::Dir) | (What::Link, What::Link) => a_ino == b_ino,
        // Empty files of two hosts stay two nodes unless they are one inode: somebody may be writing them.
        (What::File(a), What::File(b)) => a.data() == b.data() && (a_ino == b_ino || *a.data() != Data::Empty),
        _ => false,
    }
}

fn is_empty(what: &What<'_>) -> bool {
    matches!(what, What::File(parts) if *parts.data() == Data::Empty)
}

fn tag(what: &What<'_>, ino: Ino) -> u32 {
    let first = |bytes: &[u8]| bytes.first_chunk().map_or(0, |c| u32::from_be_bytes(*c));
    match what {
        What::File(parts) => match parts.data() {
            Data::Inline { blob, .. } => first(&blob.0),
            Data::Stored { content, .. } => first(&content.0),
            _ => (mix(ino.0) >> 32) as u32,
        },
        What::Dir | What::Link => (mix(ino.0) >> 32) as u32,
    }
}

/// Inode number of a conflict copy that shares its stored number with the shown node.
pub fn derived_ino(ino: Ino, dot: Dot) -> Ino {
    Ino::from_bits(mix(mix(ino.0 ^ mix(dot.actor.0)) ^ dot.seq))
}

/// Inode number of a directory made under a name: the same on hosts that make it without knowing of each other.
pub fn directory_ino(parent: Ino, name: &Name, generation: u32) -> Ino {
    let mut hash = mix(parent.0 ^ u64::from(generation) << 32);
    for chunk in name.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash ^ u64::from_le_bytes(word)).wrapping_add(chunk.len() as u64);
    }
    Ino::from_bits(mix(hash))
}

/// Finalizer of SplitMix64: spreads every input bit over the whole word.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The name of a conflict copy; the base is cut where the whole would be too long.
pub fn conflict_name(base: &Name, tag: u32) -> Name {
    let suffix_len = CONFLICT.len() + 8;
    let keep = base.as_bytes().len().min(NAME_MAX_BYTES - suffix_len);
    let mut bytes = base.as_bytes()[..keep].to_vec();
    bytes.extend(CONFLICT);
    bytes.extend(format!("{tag:08x}").bytes());
    // Cannot fail: made of a name's bytes, not too long, and not "." or "..".
    Name::new(&bytes).unwrap_or_else(|_| base.clone())
}

/// Whether a name looks like one that [`conflict_name`] makes.
pub fn is_conflict_name(name: &Name) -> bool {
    let bytes = name.as_bytes();
    let Some((rest, tag)) = bytes.split_last_chunk::<8>() else { return false };
    rest.ends_with(CONFLICT) && tag.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use delugefs_proto::ids::{ActorId, ContentId};
    use delugefs_proto::record::Perm;

    use super::*;

    fn element(actor: u64, seq: u64, hlc: u64, body: Body) -> Element {
        Element { dot: Dot { actor: ActorId(actor), seq }, body, hlc: Hlc(hlc) }
    }

    fn stored(ino: u64, byte: u8) -> Body {
        let data = Data::Stored { content: ContentId([byte; 32]), size: 5000, pieces: None };
        Body::Content { ino: Ino(ino), data }
    }

    fn attrs(ino: u64, mode: u16) -> Body {
        Body::Attrs { ino: Ino(ino), perm: Perm { mode, uid: 0, gid: 0 }, xattrs: Default::default() }
    }

    #[test]
    fn chmod_here_and_write_there_both_survive() {
        // The writer gave the attributes a new dot with the old clock; the chmod has a later clock.
        let set = [
            element(1, 5, 100, stored(20, 7)),
            element(1, 5, 50, attrs(20, 0o644)),
            element(2, 9, 90, attrs(20, 0o600)),
        ];
        let shown = view(&set);
        assert_eq!(shown.len(), 1);
        let What::File(parts) = &shown[0].what else { panic!() };
        assert!(matches!(&parts.attrs.unwrap().body, Body::Attrs { perm, .. } if perm.mode == 0o600));
    }

    #[test]
    fn conflicts_are_all_shown_and_equal_content_once() {
        let set = [
            element(1, 1, 10, stored(20, 1)),
            element(2, 1, 30, stored(20, 2)),
            element(3, 1, 20, stored(21, 3)),
            element(4, 1, 5, stored(22, 2)),
            element(5, 1, 99, Body::Content { ino: Ino(23), data: Data::Empty }),
        ];
        let shown = view(&set);
        let tags: Vec<_> = shown.iter().map(|s| s.tag).collect();
        assert_eq!(tags, [None, Some(0x03030303), Some(0x01010101)]);
        assert_eq!(shown[0].ino, Ino(20));
        assert_eq!(shown[1].ino, Ino(21));
        assert!(shown[2].ino != Ino(20) && shown[2].ino.is_storable(), "a copy of the same inode has its own number");
    }

    #[test]
    fn remains_show_nothing_and_directories_win() {
        assert!(view(&[element(1, 1, 1, attrs(20, 0o644))]).is_empty());
        let set = [element(1, 1, 1, Body::Dir { ino: Ino(30) }), element(2, 1, 9, stored(20, 1))];
        assert!(matches!(view(&set)[0].what, What::Dir));
    }

    #[test]
    fn conflict_names_fit() {
        let name = Name::new(b"song.flac").unwrap();
        let copy = conflict_name(&name, 0xab12);
        assert_eq!(copy.as_bytes(), b"song.flac.conflict-0000ab12");
        assert!(is_conflict_name(&copy) && !is_conflict_name(&name));
        let long = conflict_name(&Name::new(&[b'x'; 255]).unwrap(), 1);
        assert_eq!(long.as_bytes().len(), 255);
    }

    #[test]
    fn directory_numbers_differ() {
        let (a, b) = (Name::new(b"a").unwrap(), Name::new(b"a\x01").unwrap());
        let all = [
            directory_ino(Ino(1), &a, 0),
            directory_ino(Ino(1), &a, 1),
            directory_ino(Ino(16), &a, 0),
            directory_ino(Ino(1), &b, 0),
        ];
        assert!(all.iter().all(|i| i.is_storable()));
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), 4);
    }
}
