//! Files that others have just taken the place of. Who opens a file by its name looks the name up first and opens the number then; where
//! somebody replaces the file again and again in between, he would never get any. So one that was replaced a moment ago can still be
//! opened to be read, as if he had come a moment earlier.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::Ino;
use delugefs_proto::record::{Element, Key};

use super::{Namespace, Node, node};
use crate::view::{self, What};

/// For how long.
const KEPT: Duration = Duration::from_secs(5);
/// How many, those that went last.
const MAX: usize = 1000;

/// See the module.
#[derive(Default)]
pub(super) struct Departed {
    nodes: HashMap<Ino, Node>,
    order: VecDeque<(Instant, Ino)>,
}

impl Departed {
    /// A file has lost its last name to another one.
    pub fn insert(&mut self, node: Node) {
        let ino = node.ino;
        // What is no file is not opened here.
        if node.regular().is_ok() && self.nodes.insert(ino, Node { nlink: 0, ..node }).is_none() {
            self.order.push_back((Instant::now(), ino));
        }
        self.shrink();
    }

    fn shrink(&mut self) {
        while let Some((since, ino)) = self.order.front()
            && (since.elapsed() > KEPT || self.order.len() > MAX)
        {
            self.nodes.remove(ino);
            self.order.pop_front();
        }
    }

    fn get(&mut self, ino: Ino) -> Option<&Node> {
        self.shrink();
        self.nodes.get(&ino)
    }
}

impl Namespace {
    /// A file cannot be read any more.
    pub fn forget_departed(&mut self, ino: Ino) {
        self.departed.nodes.remove(&ino);
    }

    /// The file with a number, to be read. `hint` is a directory that probably has it. One without a name was replaced a moment ago.
    pub fn node_to_read(&mut self, ino: Ino, hint: Ino) -> FsResult<Node> {
        // Before everything is searched for it.
        if let Some(departed) = self.departed.get(ino).cloned()
            && self.locate_in(ino, hint)?.is_none()
            && self.inode(ino)?.is_empty()
        {
            return Ok(departed);
        }
        let at = self.locate(ino, hint)?;
        self.node(&at)
    }

    /// Keep the files that these sets take the names of, and give none; which. Those that have got one live, whatever was heard of them.
    pub(super) fn let_go(&mut self, changed: &BTreeMap<Key, Vec<Element>>) -> Vec<Ino> {
        let stay: HashSet<Ino> = changed.values().flatten().filter_map(|element| element.body.ino()).collect();
        self.departed.nodes.retain(|ino, _| !stay.contains(ino));
        // What a host brings that has been away is no race with anybody.
        if changed.len() > MAX {
            return Vec::new();
        }
        let mut replaced: HashMap<Ino, Node> = HashMap::new();
        for (key, elements) in changed {
            let Key::Entry(dir, name) = key else { continue };
            let Some(known) = self.dirs.get(dir).filter(|_| !name.is_header() && !elements.is_empty()) else {
                continue;
            };
            for shown in view::view(known.get(name)) {
                if let What::File(parts) = shown.what {
                    replaced.insert(shown.ino, node::of_file(&parts, shown.ino, *dir, 0));
                }
            }
        }
        replaced.retain(|ino, _| !stay.contains(ino));
        let departed = replaced.keys().copied().collect();
        replaced.into_values().for_each(|node| self.departed.insert(node));
        departed
    }
}
