//! Answers about the disk: status, where a path's content lies, and the scrub.

use std::collections::{HashMap, HashSet};

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::escape::escape_bytes;
use delugefs_proto::ids::{BlobId, ContentId, Ino};
use delugefs_proto::record::{Body, Data, Element, Key, Name};
use delugefs_proto::worker_pb as pb;

use nix::errno::Errno;

use super::Engine;
use super::room::is_full;
use crate::content::torrent;
use crate::namespace::{Kind, catalog_error};
use crate::view;

/// Problems in one scrub from which on others are not asked for what is damaged: it is noted, and stays. And so many copies are set aside
/// for being unreadable. With more it is the disk.
pub const PROBLEMS_MAX: usize = 100;

/// What a scrub looked at and found.
#[derive(Default)]
pub struct ScrubReport {
    /// Entries of the catalog.
    pub entries: u64,
    /// Git objects.
    pub objects: u64,
    /// Contents hashed.
    pub contents: u64,
    /// Bytes hashed.
    pub content_bytes: u64,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
}

/// Other disks, as a scrub needs them.
pub trait Others {
    /// Whether one has said that it holds a content. It may be gone for ever.
    fn say_they_hold(&self, content: ContentId) -> bool;

    /// Look at a copy here that seems to be bad, and set it aside if another disk has just verified its own; with `ask` only.
    ///
    /// # Errors
    /// Why it could not be looked at.
    fn judge(&self, content: ContentId, ask: bool) -> FsResult<Fate>;

    /// Whether whoever has asked for all this still waits for it. Asked for every block of a content: some take an hour.
    fn is_awaited(&self) -> bool {
        true
    }
}

/// What became of a copy that seemed to be bad.
#[derive(Debug)]
pub enum Fate {
    /// There is none.
    Absent,
    /// It is what its name says.
    Whole,
    /// It was bad, and is set aside: what was wrong, and where it is.
    SetAside(FsError),
    /// It is bad and stays: what is wrong, and why.
    Stays(FsError),
}

/// No other disks.
pub struct Alone;

impl Others for Alone {
    fn say_they_hold(&self, _: ContentId) -> bool {
        false
    }

    fn judge(&self, _: ContentId, _: bool) -> FsResult<Fate> {
        Err(Errno::ENOSYS.into())
    }
}

impl Engine {
    /// FreeSpace.
    pub fn free_space(&self) -> FsResult<pb::FreeSpaceReply> {
        let space = self.store.free_space()?;
        let refusal = self.refusal();
        Ok(pb::FreeSpaceReply {
            total_bytes: space.total,
            free_bytes: space.free,
            read_only: refusal.is_some(),
            full: refusal.as_ref().is_some_and(|error| super::room::is_full(error.errno)),
            reason: refusal.or(self.cramped.check().err()).map(|error| error.to_string()).unwrap_or_default(),
        })
    }

    /// Status, without what only the server knows (sockets).
    pub fn status(&self) -> FsResult<pb::WorkerStatus> {
        let space = self.free_space()?;
        let usage = self.store.usage();
        let identity = self.folder.identity();
        let core = self.core();
        Ok(pb::WorkerStatus {
            cluster: identity.cluster.clone(),
            cluster_id: identity.cluster_id.clone(),
            disk_id: identity.disk_id.clone(),
            root: self.folder.root().display().to_string(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            read_only: space.read_only,
            reason: space.reason.clone(),
            space: Some(space),
            contents: usage.contents,
            content_bytes: usage.bytes,
            staged_files: core.staged.len() as u64,
            catalog_commit: core.ns.catalog().state().commit.to_string(),
            uncommitted_changes: core.ns.uncommitted_len() as u64,
            packs: core.ns.catalog().packs() as u64,
            sessions: self.events.len() as u64,
            mounts: self.events.mounts(),
            seq: core.ns.seq(),
            ..Default::default()
        })
    }

    /// WhereIs.
    pub fn where_is(&self, path: &[u8]) -> FsResult<pb::WhereIsReply> {
        use pb::where_is_reply::Place;
        let mut core = self.core();
        let at = core.ns.walk(path)?;
        let node = core.ns.node(&at)?;
        let attr = core.attr(&self.store, &node);
        let mut reply =
            pb::WhereIsReply { ino: attr.ino, mode: attr.mode, size_bytes: attr.size, ..Default::default() };
        let me = || vec![self.folder.identity().disk_id.clone()];
        let place = match &node.kind {
            _ if core.staged.get(node.ino).is_some() => {
                reply.disk_ids = me();
                Place::Staging
            }
            Kind::File(Data::Inline { .. }) => {
                reply.disk_ids = me();
                Place::Catalog
            }
            Kind::File(Data::Stored { content, size, pieces }) => {
                reply.content = content.0.to_vec();
                if let Some(pieces) = pieces {
                    reply.info_hash = info_hash(*content, *size, &core.ns.attachment(*pieces)?)?.to_vec();
                }
                if self.store.has(*content)? == Some(*size) {
                    reply.disk_ids = me();
                    reply.damaged = self.store.damage(*content).is_some();
                    Place::Store
                } else {
                    Place::Missing
                }
            }
            _ => Place::NoContent,
        };
        reply.place = place.into();
        Ok(reply)
    }

    /// The recorded size and piece hashes of a content, if any file has it.
    ///
    /// # Errors
    /// That of a commit; not that of a full disk, where letting contents go is the way out: then as of the commit before.
    pub fn find_content(&self, wanted: ContentId) -> FsResult<Option<(u64, Option<BlobId>)>> {
        self.commit_recorded().or_else(|error| if is_full(error.errno) { Ok(()) } else { Err(error) })?;
        // Asked for one after the other when copies are let go: the whole catalog is not walked for each.
        Ok(self.ledger()?.find(wanted).map(|entry| (entry.size, entry.pieces)))
    }

    /// An attachment of the catalog.
    pub fn attachment(&self, id: BlobId) -> FsResult<bytes::Bytes> {
        self.core().ns.attachment(id)
    }

    /// Check everything on this disk: every object and record of the catalog, that every directory has its place, and
    /// every content on it byte by byte. A content that others hold need not be here.
    pub fn scrub(&self, others: &dyn Others) -> FsResult<ScrubReport> {
        self.commit()?;
        let verified = self.catalog.verify().map_err(catalog_error)?;
        let mut report = ScrubReport { objects: verified.objects, problems: verified.problems, ..Default::default() };
        let mut live: HashMap<ContentId, (u64, Ino, Place)> = HashMap::new();
        let mut entries = 0;
        let mut dirs = Dirs::default();
        let mut hanging: Vec<(Ino, Place)> = Vec::new();
        let mut visit = |key: &Key, elements: &[Element]| {
            match key {
                Key::Entry(dir, name) if name.is_header() => {
                    let head = elements.iter().find_map(|element| match &element.body {
                        Body::Head { parent, name, .. } => Some((*parent, name.clone())),
                        _ => None,
                    });
                    dirs.0.insert(*dir, head);
                }
                _ if view::is_nameless(key, elements) => return Ok(()), // it may be collected
                _ => entries += 1,
            }
            for element in elements {
                match &element.body {
                    Body::Content { ino, data: Data::Stored { content, size, .. } } => {
                        live.entry(*content).or_insert_with(|| (*size, *ino, Place::of(key, elements)));
                    }
                    Body::Dir { ino } => hanging.push((*ino, Place::of(key, elements))),
                    _ => {}
                }
            }
            Ok(())
        };
        self.catalog.for_each(&mut visit).map_err(catalog_error)?;
        report.entries = entries;
        for (ino, place) in hanging {
            if !dirs.0.contains_key(&ino) {
                report.problems.push(format!("{} is a directory without a header", dirs.path(&place)));
            }
        }
        for (content, (size, ino, place)) in live {
            let checked = self.store.check_or_take_back(content, size, &|| !others.is_awaited());
            if !others.is_awaited() {
                return Err(FsError::new(Errno::ECANCELED, "nobody waits for this scrub any more"));
            }
            let checked = match checked {
                // A disk that is failing altogether keeps what it has: it may come to itself.
                Err(error) if error.errno != Errno::ENOENT => {
                    match others.judge(content, report.problems.len() < PROBLEMS_MAX) {
                        Ok(Fate::SetAside(error) | Fate::Stays(error)) => Err(error),
                        // Replaced or removed meanwhile, or of another length than the catalog says.
                        Ok(Fate::Whole | Fate::Absent) => self.store.check(content, size),
                        Err(_) => Err(error),
                    }
                }
                checked => checked,
            };
            match checked {
                Ok(()) => {
                    report.contents += 1;
                    report.content_bytes += size;
                }
                // Replaced or removed since the walk: then it may be in the trash by right.
                Err(error) if error.errno == Errno::ENOENT && others.say_they_hold(content) => {}
                // Recorded, and about to get its name in `data/`, or it has got it just now.
                Err(error)
                    if error.errno == Errno::ENOENT
                        && (self.core().staged.get(ino).is_some() || self.store.check(content, size).is_ok()) => {}
                Err(error) => report.problems.push(format!("content of {}: {error}", dirs.path(&place))),
            }
        }
        Ok(report)
    }
}

fn info_hash(content: ContentId, size: u64, pieces: &[u8]) -> FsResult<[u8; 20]> {
    let torrent = torrent::torrent(content, size, pieces);
    torrent.map(|torrent| torrent.info_hash).map_err(|error| FsError::new(Errno::EIO, error.to_string()))
}

/// Where something was found in the catalog.
enum Place {
    Name(Ino, Name),
    /// A file with several names, of which none is known.
    Inode(Ino),
}

impl Place {
    fn of(key: &Key, elements: &[Element]) -> Self {
        let name = elements.iter().find_map(|element| match &element.body {
            Body::Ref { dir, name } => Some(Place::Name(*dir, name.clone())),
            _ => None,
        });
        match key {
            Key::Entry(dir, name) => Place::Name(*dir, name.clone()),
            Key::Inode(ino) => name.unwrap_or(Place::Inode(*ino)),
        }
    }
}

/// Names of one path that are said.
const STEPS_MAX: usize = 1_000;

/// All directories, with the names that they have.
#[derive(Default)]
struct Dirs(HashMap<Ino, Option<(Ino, Name)>>);

impl Dirs {
    /// As a person knows it: from the root on, or from the directory on where nothing leads to the root.
    fn path(&self, place: &Place) -> String {
        let (mut dir, last) = match place {
            Place::Name(dir, name) => (*dir, name),
            Place::Inode(ino) => return format!("inode {ino}"),
        };
        let (mut names, mut met) = (vec![last], HashSet::new());
        // What is damaged may go round in a circle.
        while dir != Ino::ROOT && names.len() < STEPS_MAX && met.insert(dir) {
            let Some(Some((parent, name))) = self.0.get(&dir) else { break };
            names.push(name);
            dir = *parent;
        }
        let path: String = names.iter().rev().map(|name| format!("/{}", escape_bytes(name.as_bytes()))).collect();
        if dir == Ino::ROOT { path } else { format!("{path} in directory {dir}") }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use delugefs_proto::local_pb as pb;

    use super::super::recover::tests::fresh;
    use super::*;
    use crate::engine::Opening;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    /// It is asked once and then has gone.
    struct Gone(AtomicU32);

    impl Others for Gone {
        fn say_they_hold(&self, _: ContentId) -> bool {
            false
        }

        fn judge(&self, _: ContentId, _: bool) -> FsResult<Fate> {
            panic!("nothing is wrong")
        }

        fn is_awaited(&self) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed) == 0
        }
    }

    #[test]
    fn a_scrub_that_nobody_waits_for_ends_within_a_content() {
        let (_dir, running) = fresh();
        let engine = &running.engine;
        let q = pb::Create { dir: 1, name: "f".into(), mode: 0o600, uid: 1, gid: 1, ino: 0 };
        let (_, Opening::File { handle, file }) = engine.create(1, false, &q).unwrap() else { panic!() };
        file.write_all_at(&vec![7; 5 << 20], 0).unwrap();
        drop(file);
        engine.close(1, handle, false).unwrap();
        let begin = Instant::now();
        while engine.status().unwrap().staged_files > 0 {
            assert!(begin.elapsed() < Duration::from_secs(30), "it is not sealed");
            std::thread::yield_now();
        }
        assert_eq!(engine.scrub(&Alone).unwrap().contents, 1);
        let gone = Gone(AtomicU32::new(0));
        assert_eq!(engine.scrub(&gone).err().map(|error| error.errno), Some(Errno::ECANCELED));
        assert!(gone.0.load(Ordering::Relaxed) < 5, "it is read to its end");
        running.stop().unwrap();
    }

    #[test]
    fn what_is_in_a_circle_is_said_once() {
        let circle = (2..1_000).map(|n| (Ino(n), Some((Ino(if n == 999 { 2 } else { n + 1 }), name(&n.to_string())))));
        let dirs = Dirs(circle.chain([(Ino(1_000), Some((Ino::ROOT, name("d"))))]).collect());
        let path = |dir| dirs.path(&Place::Name(Ino(dir), name("f")));
        assert_eq!((path(1), path(1_000)), ("/f".into(), "/d/f".into()));
        assert_eq!(path(4_000), format!("/f in directory {}", Ino(4_000)));
        assert!(path(998).ends_with(&format!("/2/999/998/f in directory {}", Ino(998))), "{}", path(998));
        assert_eq!(path(998).matches("/998/").count(), 1);
    }

    #[test]
    fn a_long_way_is_not_said_to_its_end() {
        let way = (2..100_000).map(|n| (Ino(n), Some((Ino(n - 1), name(&"x".repeat(255))))));
        let path = Dirs(way.collect()).path(&Place::Name(Ino(99_999), name("f")));
        assert!(path.len() < 256 * STEPS_MAX + 100, "{} bytes", path.len());
        assert!(path.contains(" in directory "));
    }
}
