//! What a join says about the versions of a file: which content came in place of which. Nothing depends on it; who fetches
//! the newer one can begin with the bytes of the older one.

use delugefs_proto::ids::{ContentId, Ino};
use delugefs_proto::limits::TORRENT_MIN_BYTES;
use delugefs_proto::record::{Body, Data, Element};

/// One step in the life of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The file now.
    pub ino: Ino,
    /// Its content, if it has pieces; `None` while its first one is still being written.
    pub newer: Option<ContentId>,
    /// The content in whose place it came, if there was one.
    pub older: Option<ContentId>,
}

/// What the new set of a key says, compared with the one before.
pub(super) fn succession(before: &[Element], after: &[Element]) -> Option<Succession> {
    let held = |set: &[Element], content| set.iter().any(|element| stored(element) == Some(content));
    let (ino, newer) = after.iter().find_map(|element| match element.body {
        Body::Content { ino, data: Data::Stored { content, size, .. } } => {
            (size > TORRENT_MIN_BYTES && !held(before, content)).then_some((ino, Some(content)))
        }
        Body::Content { ino, data: Data::Empty } => Some((ino, None)),
        _ => None,
    })?;
    // What it replaces; where nothing is replaced (a conflict), the one beside it has the same origin.
    let gone = before.iter().filter_map(stored).find(|content| !held(after, *content));
    let older = gone.or_else(|| newer.and(before.iter().find_map(stored)));
    (newer.is_some() && !before.is_empty() || older.is_some()).then_some(Succession { ino, newer, older })
}

fn stored(element: &Element) -> Option<ContentId> {
    match element.body {
        Body::Content { data: Data::Stored { content, .. }, .. } => Some(content),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use delugefs_proto::ids::ActorId;
    use delugefs_proto::record::{Dot, Hlc};

    fn file(ino: u64, data: Data) -> Element {
        let dot = Dot { actor: ActorId(1), seq: ino };
        Element { dot, hlc: Hlc(1), body: Body::Content { ino: Ino(ino), data } }
    }

    fn large(n: u8) -> Data {
        Data::Stored { content: ContentId([n; 32]), size: TORRENT_MIN_BYTES + 1, pieces: None }
    }

    #[test]
    fn what_came_in_place_of_what() {
        let (one, two) = (ContentId([1; 32]), ContentId([2; 32]));
        let says = |ino, newer, older| Some(Succession { ino: Ino(ino), newer, older });
        let (before, after) = ([file(5, large(1))], [file(5, large(2))]);
        assert_eq!(succession(&before, &after), says(5, Some(two), Some(one)));
        // Another file was renamed over it, before or after its content was known.
        assert_eq!(succession(&before, &[file(6, large(2))]), says(6, Some(two), Some(one)));
        assert_eq!(succession(&before, &[file(6, Data::Empty)]), says(6, None, Some(one)));
        assert_eq!(succession(&[file(6, Data::Empty)], &[file(6, large(2))]), says(6, Some(two), None));
        // Changed in two places.
        let both = [before.clone(), after].concat();
        assert_eq!(succession(&before, &both), says(5, Some(two), Some(one)));
        // Nothing to be learned: new, gone, small, the same.
        let small = Data::Stored { content: two, size: TORRENT_MIN_BYTES, pieces: None };
        let empty = [file(6, Data::Empty)];
        for (before, after) in [(&[][..], &before[..]), (&before, &[]), (&before, &[file(5, small)]), (&[], &empty)] {
            assert_eq!(succession(before, after), None);
        }
        assert_eq!(succession(&before, &before), None);
    }
}
