//! What the whole catalog says about contents, for the replication policy: every content that a file has, and how many
//! copies of it are wanted. And the list of conflicts. Both walk the whole catalog: 0.6 s of CPU for a million files, so
//! the answer is kept until the catalog changes.

use std::collections::HashMap;
use std::sync::Arc;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::{BlobId, ContentId, Ino};
use delugefs_proto::local_pb;
use delugefs_proto::record::{Body, Data, Element, Key, XattrValue, Xattrs};
use delugefs_proto::worker_pb as pb;
use nix::errno::Errno;

use super::Engine;
use super::doubles::Numbers;
use super::loose::Loose;
use crate::namespace::catalog_error;
use crate::os::ENOATTR;
use crate::view;

/// The extended attribute of a directory or file that says how many copies of what is in it are wanted.
pub const COPIES_XATTR: &[u8] = b"user.delugefs.copies";
/// Copies wanted where nobody says anything.
pub const COPIES_DEFAULT: u32 = 2;
/// Most copies that can be wanted.
pub const COPIES_MAX: u32 = 100;
/// Conflicts in one answer.
const CONFLICTS_MAX: usize = 10_000;
/// Directories above each other; more is a circle.
const DEPTH_MAX: usize = 4096;

/// A content that files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub content: ContentId,
    /// Length in bytes.
    pub size: u64,
    /// Attachment with its piece hashes.
    pub pieces: Option<BlobId>,
    /// Most copies that one of its files wants.
    pub wanted: u32,
}

/// All contents, as of one state.
#[derive(Debug)]
pub struct Ledger {
    /// The state's commit.
    pub commit: git2::Oid,
    /// In order of their ids.
    pub entries: Vec<Entry>,
}

impl Ledger {
    /// What is known of one content; `None` when no file has it.
    pub fn find(&self, content: ContentId) -> Option<&Entry> {
        let at = self.entries.binary_search_by_key(&content, |entry| entry.content).ok()?;
        self.entries.get(at)
    }
}

/// A directory while the catalog is walked.
struct Directory {
    parent: Ino,
    copies: Option<u32>,
}

/// Copies as an attribute says them; what is no number from 1 to [`COPIES_MAX`] says nothing.
fn copies(xattrs: &Xattrs) -> Option<u32> {
    match xattrs.get(COPIES_XATTR)? {
        XattrValue::Inline(value) => parse(value),
        XattrValue::Blob { .. } => None,
    }
}

fn parse(value: &[u8]) -> Option<u32> {
    let number = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
    (1..=COPIES_MAX).contains(&number).then_some(number)
}

impl Engine {
    /// All contents of the committed state.
    pub fn ledger(&self) -> FsResult<Arc<Ledger>> {
        let (ledger, numbers, loose) = self.look_through()?;
        if let Some(loose) = loose
            && let Err(error) = self.mend_loose(loose)
        {
            tracing::error!("what changed at once on several hosts is not all shown: {error}");
        }
        if let Err(error) = self.mend_doubles(numbers) {
            tracing::debug!("two files keep one number: {error}");
        }
        Ok(ledger)
    }

    /// The same, and what was met in a walk, if one was needed.
    fn look_through(&self) -> FsResult<(Arc<Ledger>, Numbers, Option<Loose>)> {
        let (mut kept, mut numbers) = (self.ledger.lock(), Numbers::default());
        let mut loose = kept.is_none().then(Loose::default);
        let commit = self.catalog.state().commit;
        if let Some(ledger) = kept.as_ref().filter(|ledger| ledger.commit == commit) {
            return Ok((ledger.clone(), numbers, None));
        }
        let mut directories: HashMap<Ino, Directory> = HashMap::new();
        // Of each file: its content, what it says itself, and a directory it is in.
        let mut files: Vec<(Entry, Option<u32>, Ino)> = Vec::new();
        let mut visit = |key: &Key, elements: &[Element]| {
            numbers.note(key, elements);
            if let Some(loose) = &mut loose {
                loose.note(key, elements);
            }
            match key {
                Key::Entry(dir, name) if name.is_header() => {
                    if let Some(Element { body: Body::Head { parent, xattrs, .. }, .. }) =
                        view::latest(elements, |body| matches!(body, Body::Head { .. }))
                    {
                        directories.insert(*dir, Directory { parent: *parent, copies: copies(xattrs) });
                    }
                }
                Key::Entry(dir, _) => collect(elements, *dir, &mut files),
                Key::Inode(_) => {
                    // Each name counts: the one that wants most decides.
                    for element in elements {
                        if let Body::Ref { dir, .. } = element.body {
                            collect(elements, dir, &mut files);
                        }
                    }
                }
            }
            Ok(())
        };
        self.catalog.for_each(&mut visit).map_err(catalog_error)?;
        let mut known: HashMap<Ino, u32> = HashMap::new();
        let mut entries: HashMap<ContentId, Entry> = HashMap::new();
        for (mut entry, own, dir) in files {
            entry.wanted = own.unwrap_or_else(|| inherited(&directories, &mut known, dir));
            let merged = entries.entry(entry.content).or_insert(entry);
            merged.wanted = merged.wanted.max(entry.wanted);
            merged.pieces = merged.pieces.or(entry.pieces);
        }
        let mut entries: Vec<Entry> = entries.into_values().collect();
        entries.sort_unstable_by_key(|entry| entry.content);
        let ledger = Arc::new(Ledger { commit, entries });
        *kept = Some(ledger.clone());
        Ok((ledger, numbers, loose))
    }

    /// Files and directories that are shown beside the one of their name, as paths from the root; whether there are more.
    pub fn conflicts(&self) -> FsResult<(Vec<Vec<u8>>, bool)> {
        let mut found: Vec<(Ino, Vec<u8>)> = Vec::new();
        let mut places: HashMap<Ino, (Ino, Vec<u8>)> = HashMap::new();
        let mut more = false;
        let mut visit = |key: &Key, elements: &[Element]| {
            match key {
                Key::Entry(dir, name) if name.is_header() => {
                    if let Some(Element { body: Body::Head { parent, name, .. }, .. }) =
                        view::latest(elements, |body| matches!(body, Body::Head { .. }))
                    {
                        places.insert(*dir, (*parent, name.as_bytes().to_vec()));
                    }
                }
                Key::Entry(dir, name) => {
                    // As written, or as a copy that was given its name for good.
                    let shown = view::view(elements);
                    for tag in shown.iter().filter_map(|shown| shown.tag) {
                        found.push((*dir, view::conflict_name(name, tag).as_bytes().to_vec()));
                    }
                    if view::is_conflict_name(name) && !shown.is_empty() {
                        found.push((*dir, name.as_bytes().to_vec()));
                    }
                }
                Key::Inode(_) => {
                    let tags: Vec<u32> = view::view(elements).iter().filter_map(|shown| shown.tag).collect();
                    for element in elements {
                        if let Body::Ref { dir, name } = &element.body {
                            let copies = tags.iter().map(|tag| view::conflict_name(name, *tag).as_bytes().to_vec());
                            found.extend(copies.map(|copy| (*dir, copy)));
                        }
                    }
                }
            }
            if found.len() > CONFLICTS_MAX {
                found.truncate(CONFLICTS_MAX);
                more = true;
            }
            Ok(())
        };
        self.commit()?;
        self.catalog.for_each(&mut visit).map_err(catalog_error)?;
        let mut paths: Vec<Vec<u8>> = found.into_iter().map(|(dir, name)| path(&places, dir, name)).collect();
        paths.sort();
        paths.dedup();
        Ok((paths, more))
    }

    /// Copies: what is wanted of a path, after setting it.
    pub fn copies(&self, request: &pb::CopiesRequest) -> FsResult<pb::CopiesReply> {
        if request.set > COPIES_MAX {
            return Err(FsError::new(Errno::EINVAL, format!("between 1 and {COPIES_MAX} copies can be wanted")));
        }
        let parts = || request.path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        if request.set > 0 || request.inherit {
            let (ino, dir) = {
                let mut core = self.core();
                let at = core.ns.walk(&request.path)?;
                let node = core.ns.node(&at)?;
                (node.ino.0, node.dir.0)
            };
            let name = COPIES_XATTR.into();
            let done = match request.set {
                0 => self.remove_xattr(0, false, &local_pb::RemoveXattr { ino, dir, name, value: None }),
                wanted => {
                    let value = wanted.to_string().into();
                    let setting = local_pb::SetXattr { ino, dir, name, value, create: false, replace: false };
                    self.set_xattr(0, false, &setting)
                }
            };
            let had_none = |error: &FsError| request.set == 0 && error.errno == ENOATTR;
            if let Err(error) = done
                && !had_none(&error)
            {
                return Err(error);
            }
        }
        let mut core = self.core();
        for length in (0..=parts().count()).rev() {
            let prefix = parts().take(length).collect::<Vec<_>>().join(&b'/');
            let at = core.ns.walk(&prefix)?;
            match core.ns.get_xattr(&at, COPIES_XATTR) {
                Ok(value) => {
                    if let Some(wanted) = parse(&value) {
                        let from = [b"/", &prefix[..]].concat();
                        return Ok(pb::CopiesReply { wanted, from });
                    }
                }
                Err(error) if error.errno == ENOATTR => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pb::CopiesReply { wanted: COPIES_DEFAULT, from: Vec::new() })
    }
}

/// The contents of one name's or inode's versions: all are kept, also those shown as conflicts.
fn collect(elements: &[Element], dir: Ino, files: &mut Vec<(Entry, Option<u32>, Ino)>) {
    for element in elements {
        let Body::Content { ino, data: Data::Stored { content, size, pieces } } = &element.body else { continue };
        let attrs = view::latest(elements, |body| matches!(body, Body::Attrs { ino: of, .. } if of == ino));
        let own = match attrs.map(|attrs| &attrs.body) {
            Some(Body::Attrs { xattrs, .. }) => copies(xattrs),
            _ => None,
        };
        files.push((Entry { content: *content, size: *size, pieces: *pieces, wanted: 0 }, own, dir));
    }
}

/// What the nearest directory above says.
fn inherited(directories: &HashMap<Ino, Directory>, known: &mut HashMap<Ino, u32>, dir: Ino) -> u32 {
    let (mut at, mut passed) = (dir, Vec::new());
    let wanted = loop {
        if let Some(wanted) = known.get(&at) {
            break *wanted;
        }
        let Some(directory) = directories.get(&at) else { break COPIES_DEFAULT };
        passed.push(at);
        if let Some(wanted) = directory.copies {
            break wanted;
        }
        if directory.parent == at || passed.len() > DEPTH_MAX {
            break COPIES_DEFAULT;
        }
        at = directory.parent;
    };
    known.extend(passed.into_iter().map(|passed| (passed, wanted)));
    wanted
}

fn path(places: &HashMap<Ino, (Ino, Vec<u8>)>, dir: Ino, name: Vec<u8>) -> Vec<u8> {
    let (mut parts, mut at) = (vec![name], dir);
    while at != Ino::ROOT && parts.len() < DEPTH_MAX {
        let Some((parent, name)) = places.get(&at) else { break };
        parts.push(name.clone());
        at = *parent;
    }
    parts.push(Vec::new());
    parts.reverse();
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_directory_above_decides() {
        let directory = |parent, copies| Directory { parent: Ino(parent), copies };
        let directories = HashMap::from([
            (Ino(1), directory(1, None)),
            (Ino(20), directory(1, Some(3))),
            (Ino(21), directory(20, None)),
            (Ino(22), directory(21, Some(1))),
            // A circle, as concurrent renames leave it.
            (Ino(30), directory(31, None)),
            (Ino(31), directory(30, None)),
        ]);
        let mut known = HashMap::new();
        for (dir, wanted) in
            [(1, COPIES_DEFAULT), (21, 3), (22, 1), (20, 3), (30, COPIES_DEFAULT), (99, COPIES_DEFAULT)]
        {
            assert_eq!(inherited(&directories, &mut known, Ino(dir)), wanted, "{dir}");
        }
        for (text, number) in [("3", Some(3)), (" 12\n", Some(12)), ("0", None), ("101", None), ("x", None), ("", None)]
        {
            assert_eq!(parse(text.as_bytes()), number, "{text:?}");
        }
    }
}
