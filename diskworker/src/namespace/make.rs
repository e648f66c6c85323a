//! Making nodes: files of every kind, symbolic links, directories.

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::ids::Ino;
use delugefs_proto::limits::TARGET_MAX_BYTES;
use delugefs_proto::record::{Body, Data, Element, Hlc, Key, Name, Perm, Xattrs};
use nix::errno::Errno;

use super::{Kind, Namespace, Node, Txn, node};
use crate::view;

const S_ISGID: u16 = 0o2000;
/// Directories of one name, while those before are there or were removed in this life, whose numbers hosts agree on.
const GENERATIONS: u32 = 8;
/// The part of a new directory's access time that tells who has made it: below a millisecond.
const MARK_NS: i64 = 1_000_000;

/// What all makers say.
pub struct Making<'a> {
    /// Where.
    pub dir: Ino,
    /// Under which name.
    pub name: &'a Name,
    /// Permission bits and owner.
    pub perm: Perm,
}

impl Namespace {
    /// The root directory of a new disk. Every disk makes one before it meets others: owner and mode of the first made
    /// count, until somebody changes them. So their clock is far in the past, the further the later they are made.
    pub fn make_root(&mut self, perm: Perm) -> FsResult<()> {
        const BEFORE_ALL: u64 = 1 << 40;
        let mut txn = self.txn();
        let mut elements = header(&mut txn, Ino::ROOT, Ino::ROOT, Name::header(), perm);
        let now_s = txn.now_ns() as u64 / 1_000_000_000;
        for element in elements.iter_mut().filter(|element| matches!(element.body, Body::Head { .. })) {
            element.hlc = Hlc(BEFORE_ALL.saturating_sub(now_s));
        }
        txn.set(Key::header(Ino::ROOT), elements);
        self.apply(txn)
    }

    /// A new file that is no directory, with this time (`None`: now). EEXIST when the name is taken, or the number by a node that
    /// is in use.
    pub fn make_file(&mut self, making: &Making<'_>, ino: Ino, data: Data, made_ns: Option<i64>) -> FsResult<Node> {
        if let Data::Symlink(target) = &data {
            match target.len() {
                0 => return Err(Errno::ENOENT.into()),
                len if len > TARGET_MAX_BYTES => return Err(Errno::ENAMETOOLONG.into()),
                _ => {}
            }
        }
        let mut txn = self.txn();
        let (perm, behind) = self.prepare(&mut txn, making, false)?;
        if self.is_in_use(ino, making.dir)? {
            return Err(FsError::new(Errno::EEXIST, format!("the inode number {ino} is another node's")));
        }
        let made_ns = made_ns.unwrap_or(txn.now_ns());
        let mut elements = vec![
            txn.element(Body::Content { ino, data }),
            txn.element(Body::Attrs { ino, perm, xattrs: Xattrs::new() }),
            txn.element(Body::Times { ino, mtime_ns: made_ns, atime_ns: made_ns }),
        ];
        elements.extend(behind);
        txn.set(Key::Entry(making.dir, making.name.clone()), elements);
        self.apply(txn)?;
        self.lookup(making.dir, making.name)
    }

    /// A new directory. EEXIST when the name is taken. Who makes it can tell it from others by `token`: [`is_made_with`].
    pub fn make_dir(&mut self, making: &Making<'_>, token: u64) -> FsResult<Node> {
        let mut txn = self.txn();
        let (perm, behind) = self.prepare(&mut txn, making, true)?;
        let ino = self.free_dir_ino(making)?;
        let place = txn.element(Body::Dir { ino });
        txn.set(Key::Entry(making.dir, making.name.clone()), [vec![place], behind].concat());
        let mut elements = header(&mut txn, ino, making.dir, making.name.clone(), perm);
        txn.set_times(&mut elements, ino, None, Some(marked(txn.now_ns(), token)));
        txn.set(Key::header(ino), elements);
        self.apply(txn)?;
        self.dir_node(ino)
    }

    /// Common to all: the name is free, the directory is there and gets new times; the permissions the node gets, and what stays
    /// behind it.
    fn prepare(&mut self, txn: &mut Txn, making: &Making<'_>, is_dir: bool) -> FsResult<(Perm, Vec<Element>)> {
        if self.in_the_way(making.dir, making.name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        let dir = self.live_dir(making.dir)?;
        txn.after(dir.get(making.name));
        let parent = node::attrs(view::latest(dir.header(), |b| matches!(b, Body::Head { .. }))).0;
        let mut perm = making.perm;
        // BSD gives a node its directory's group always, Linux in set-group-id directories, which hand the bit down.
        let inherits = parent.mode & S_ISGID != 0;
        if inherits || cfg!(target_os = "freebsd") {
            perm.gid = parent.gid;
        }
        if inherits && is_dir {
            perm.mode |= S_ISGID;
        }
        let behind = self.clear_name(txn, making.dir, making.name)?;
        self.touch_dir(txn, making.dir)?;
        Ok((perm, behind))
    }

    /// Whether a proposed number is another node's, as far as that can be told without searching everything. Numbers
    /// are drawn from 2^62; only a frontend that does not draw proposes one twice.
    fn is_in_use(&mut self, ino: Ino, dir: Ino) -> FsResult<bool> {
        let is_dir = self.dirs.get(&ino).is_some_and(|dir| dir.len() > 0);
        let has_names = self.inodes.get(&ino).is_some_and(|elements| !elements.is_empty());
        Ok(is_dir || has_names || self.dir(dir)?.name_of(ino).is_some())
    }

    /// New mtime and ctime for a directory whose entries change.
    pub(super) fn touch_dir(&mut self, txn: &mut Txn, dir: Ino) -> FsResult<()> {
        let key = Key::header(dir);
        let mut elements = match txn.get(&key) {
            Some(elements) => elements.clone(),
            None => self.live_dir(dir)?.header().to_vec(),
        };
        txn.after(&elements);
        txn.set_times(&mut elements, dir, Some(txn.now_ns()), None);
        txn.set(key, elements);
        Ok(())
    }

    /// The number for a directory about to be made: the same on hosts that make it without knowing of each other, but
    /// none that is or was in use. Of a name that is used over and over (a lock, what is moved away when it is done) any number: each
    /// one that is not free costs a look, and hosts that take turns know of each other.
    fn free_dir_ino(&mut self, making: &Making<'_>) -> FsResult<Ino> {
        for generation in 0..GENERATIONS {
            let ino = view::directory_ino(making.dir, making.name, generation);
            if self.is_free_dir(ino)? {
                return Ok(ino);
            }
        }
        loop {
            let ino = Ino::random();
            if self.is_free_dir(ino)? {
                return Ok(ino);
            }
        }
    }

    fn is_free_dir(&mut self, ino: Ino) -> FsResult<bool> {
        // Entries without a header are those of a directory removed elsewhere: not ours to revive either.
        Ok(!self.removed_dirs.contains(ino) && self.dir(ino)?.len() == 0 && self.inode(ino)?.is_empty())
    }
}

/// The last moment before this one whose part of a millisecond is that of the token. The number of a directory does not tell who has
/// made it, and its access time is nobody's business and moved by nobody: so the answer survives the worker, and costs no
/// record of its own.
fn marked(now_ns: i64, token: u64) -> i64 {
    let at = now_ns - now_ns.rem_euclid(MARK_NS) + mark_of(token);
    if at > now_ns { at - MARK_NS } else { at }
}

/// Whether the directory was made with this token, and nobody has set its times since. One in a million others looks as if it were.
pub fn is_made_with(node: &Node, token: u64) -> bool {
    // Frontends of before have none: as for them, any directory is.
    node.kind == Kind::Dir && (token == 0 || node.atime_ns.rem_euclid(MARK_NS) == mark_of(token))
}

fn mark_of(token: u64) -> i64 {
    (token % MARK_NS as u64) as i64
}

/// The elements of a new directory's header.
fn header(txn: &mut Txn, ino: Ino, parent: Ino, name: Name, perm: Perm) -> Vec<Element> {
    vec![
        txn.element(Body::Head { parent, name, perm, xattrs: Xattrs::new() }),
        txn.element(Body::Times { ino, mtime_ns: txn.now_ns(), atime_ns: txn.now_ns() }),
    ]
}
