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
        let (mut entries, mut after) = (Vec::new(), after.clone());
        loop {
            let found = self.live_dir(dir)?;
            let mut names: Vec<(Name, Found)> = Vec::new();
            let mut more = false;
            for (shown_name, base, tag) in found.names_after(&after) {
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
            if let Some((last, _)) = names.last() {
                after = last.clone();
            }
            for (name, entry) in names {
                match entry {
                    Found::Ready(node) => entries.push((name, node)),
                    Found::Later(at) if self.is_there(&at)? => entries.push((name, self.node(&at)?)),
                    // The others are there all the same.
                    Found::Later(at) => {
                        tracing::error!("{name} in directory {dir} is {at:?}, of which there is no record");
                    }
                }
            }
            if !entries.is_empty() || !more {
                return Ok(Page { entries, more });
            }
        }
    }

    /// Whether there is more of a node than its name: what changed at once on several hosts may have left that alone.
    pub(super) fn is_there(&mut self, at: &Located) -> FsResult<bool> {
        Ok(match at {
            Located::Dir(ino) => !self.dir(*ino)?.header().is_empty(),
            Located::Inode { ino, .. } => self.inode(*ino)?.iter().any(|e| matches!(e.body, Body::Content { .. })),
            Located::File { .. } => true,
        })
    }

    /// Whether a directory shows anything.
    pub(super) fn has_entries(&mut self, dir: Ino) -> FsResult<bool> {
        let mut places = Vec::new();
        for (_, elements) in self.dir(dir)?.sets() {
            for shown in view::view(elements) {
                match shown.what {
                    What::Dir => places.push(Located::Dir(shown.ino)),
                    What::Link => places.push(Located::Inode { ino: shown.ino, dir }),
                    What::File(_) => return Ok(true),
                }
            }
        }
        for at in places {
            if self.is_there(&at)? {
                return Ok(true);
            }
        }
        Ok(false)
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
