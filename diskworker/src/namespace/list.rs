//! Listing directories, a page at a time.

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Body, Name};
use nix::errno::Errno;

use super::{Located, Namespace, Node, node};
use crate::view::{self, What};

/// Part of a directory, in byte order of names.
pub struct Page {
    /// Entries, with everything stat(2) needs.
    pub entries: Vec<(Name, Node)>,
    /// There are more behind them.
    pub more: bool,
}

enum Found {
    Ready(Node),
    Later(Located),
}

impl Namespace {
    /// Entries behind `after` (the empty name: all), at most `limit`.
    pub fn list(&mut self, dir: Ino, after: &Name, limit: usize) -> FsResult<Page> {
        let found = self.live_dir(dir)?;
        let mut names: Vec<(Name, Found)> = Vec::new();
        let mut more = false;
        for (shown_name, base, tag) in found.names_after(after) {
            if names.len() == limit {
                more = true;
                break;
            }
            let Some(shown) = view::view(found.get(base)).into_iter().find(|s| s.tag == tag) else { continue };
            let entry = match shown.what {
                What::Dir => Found::Later(Located::Dir(shown.ino)),
                What::Link => Found::Later(Located::Inode { ino: shown.ino, dir }),
                What::File(parts) => Found::Ready(node::of_file(&parts, shown.ino, dir, 1)),
            };
            names.push((shown_name.clone(), entry));
        }
        let mut entries = Vec::with_capacity(names.len());
        for (name, entry) in names {
            let node = match entry {
                Found::Ready(node) => node,
                Found::Later(at) => self.node(&at)?,
            };
            entries.push((name, node));
        }
        Ok(Page { entries, more })
    }

    /// The target of a symbolic link.
    pub fn read_link(&mut self, at: &Located) -> FsResult<Box<[u8]>> {
        match self.node(at)?.kind {
            super::Kind::File(delugefs_proto::record::Data::Symlink(target)) => Ok(target),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    /// A path from the root, for people's questions; ENOENT, ENOTDIR as open(2) would say. Follows no links.
    pub fn walk(&mut self, path: &[u8]) -> FsResult<Located> {
        let mut at = Located::Dir(Ino::ROOT);
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
            let Located::Dir(dir) = at else { return Err(Errno::ENOTDIR.into()) };
            at = if part == b".." {
                Located::Dir(self.parent(dir)?)
            } else {
                self.locate_name(dir, &Name::new(part).map_err(|_| Errno::EINVAL)?)?
            };
        }
        Ok(at)
    }

    /// The directories that a file with several names has them in.
    pub fn dirs_of(&mut self, at: &Located) -> FsResult<Vec<Ino>> {
        Ok(match at {
            Located::Dir(ino) => vec![self.parent(*ino)?],
            Located::File { dir, .. } => vec![*dir],
            Located::Inode { ino, .. } => {
                let refs = self.inode(*ino)?.iter();
                refs.filter_map(|e| if let Body::Ref { dir, .. } = &e.body { Some(*dir) } else { None }).collect()
            }
        })
    }
}
