//! The requests FreeBSD sends, with the bodies it gives them, and what it reads from the answers.

use nix::errno::Errno;

use super::wire::{Body, Reply, op};
use super::{BLOCK_BYTES, Mount};

/// Bytes of fuse_attr.
const ATTR_BYTES: usize = 88;
/// Where the attributes begin in fuse_entry_out and fuse_attr_out.
const ENTRY_ATTR: usize = 40;
const ATTR_ATTR: usize = 16;

/// What a kernel takes from an answer with attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub ino: u64,
    pub size: u64,
    pub mode: u32,
    pub nlink: u32,
    pub owner: (u32, u32),
}

impl Node {
    fn from(reply: &Reply, at: usize) -> Self {
        Self {
            ino: reply.u64(at),
            size: reply.u64(at + 8),
            mode: reply.u32(at + 60),
            nlink: reply.u32(at + 64),
            owner: (reply.u32(at + 68), reply.u32(at + 72)),
        }
    }

    /// Of an answer that makes a vnode: FreeBSD wants the node's number to be that of its attributes.
    fn entry(reply: &Reply) -> Self {
        let node = Self::from(reply, ENTRY_ATTR);
        assert_eq!((reply.u64(0), reply.u64(8)), (node.ino, 0), "node and generation");
        node
    }
}

/// One line of a listing.
#[derive(Debug, PartialEq, Eq)]
pub struct Listed {
    pub ino: u64,
    pub offset: u64,
    /// DT_ of dirent.h.
    pub kind: u32,
    pub name: String,
}

impl Mount {
    pub fn lookup(&mut self, dir: u64, name: &str) -> Result<Node, Errno> {
        let reply = self.kernel.ask(op::LOOKUP, dir, &Body::new().name(name));
        match reply.errno {
            0 if reply.u64(0) == 0 => Err(Errno::ENOENT),
            0 => Ok(Node::entry(&reply)),
            errno => Err(Errno::from_raw(errno)),
        }
    }

    /// The vnode is recycled: everything that was looked up is forgotten. There is no answer.
    pub fn forget(&mut self, ino: u64, lookups: u64) {
        self.kernel.send(op::FORGET, ino, &Body::new().u64(lookups));
    }

    pub fn getattr(&mut self, ino: u64) -> Result<Node, Errno> {
        let reply = self.kernel.ask(op::GETATTR, ino, &getattr());
        match reply.errno {
            0 => Ok(attributes(&reply)),
            errno => Err(Errno::from_raw(errno)),
        }
    }

    pub fn mkdir(&mut self, dir: u64, name: &str) -> Node {
        Node::entry(&self.kernel.call(op::MKDIR, dir, &Body::new().u32(0o040_755).u32(0o022).name(name)))
    }

    /// The new file and its handle, open for reading and writing.
    pub fn create(&mut self, dir: u64, name: &str) -> (Node, u64) {
        let (node, handle, _) = self.create_with(dir, name, libc::O_RDWR);
        (node, handle)
    }

    /// The new file, its handle, and how the kernel is to treat that.
    pub fn create_with(&mut self, dir: u64, name: &str, flags: i32) -> (Node, u64, u32) {
        let flags = (libc::O_CREAT | flags) as u32;
        let body = Body::new().u32(flags).u32(0o100_644).u32(0o022).u32(0).name(name);
        let reply = self.kernel.call(op::CREATE, dir, &body);
        assert_eq!(reply.body.len(), ENTRY_ATTR + ATTR_BYTES + 16);
        let opened = ENTRY_ATTR + ATTR_BYTES;
        (Node::entry(&reply), reply.u64(opened), reply.u32(opened + 8))
    }

    pub fn open(&mut self, ino: u64, flags: i32) -> Result<u64, Errno> {
        let reply = self.kernel.ask(op::OPEN, ino, &Body::new().u32(flags as u32).u32(0));
        if reply.errno == 0 { Ok(reply.u64(0)) } else { Err(Errno::from_raw(reply.errno)) }
    }

    /// Write everything, a block at a time.
    pub fn write(&mut self, ino: u64, handle: u64, bytes: &[u8]) {
        for (offset, block) in (0..).step_by(BLOCK_BYTES as usize).zip(bytes.chunks(BLOCK_BYTES as usize)) {
            let size = block.len() as u32;
            let body = Body::new().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(libc::O_RDWR as u32).u32(0);
            let reply = self.kernel.call(op::WRITE, ino, &body.bytes(block));
            assert_eq!((reply.u32(0), reply.body.len()), (size, 8));
        }
    }

    /// Send one write, and do not wait for it: its number.
    #[cfg(target_os = "linux")]
    pub fn begin_write(&mut self, ino: u64, handle: u64, bytes: &[u8]) -> u64 {
        let body = Body::new().u64(handle).u64(0).u32(bytes.len() as u32).u32(0).u64(0).u32(libc::O_RDWR as u32).u32(0);
        self.kernel.send(op::WRITE, ino, &body.bytes(bytes))
    }

    /// Read one block.
    pub fn read(&mut self, ino: u64, handle: u64, offset: u64) -> Vec<u8> {
        let body = Body::new().u64(handle).u64(offset).u32(BLOCK_BYTES).u32(0).u64(0).u32(0).u32(0);
        self.kernel.call(op::READ, ino, &body).body
    }

    pub fn release(&mut self, ino: u64, handle: u64) {
        self.kernel.call(op::RELEASE, ino, &Body::new().u64(handle).u32(0).u32(0).u64(0));
    }

    /// A file with this content, closed again.
    pub fn file(&mut self, dir: u64, name: &str, bytes: &[u8]) -> Node {
        let (node, handle) = self.create(dir, name);
        self.write(node.ino, handle, bytes);
        self.release(node.ino, handle);
        node
    }

    /// Give a file this size.
    pub fn truncate(&mut self, ino: u64, size: u64) -> Node {
        const FATTR_SIZE: u32 = 1 << 3;
        let body = Body::new().u32(FATTR_SIZE).u32(0).u64(0).u64(size).bytes(&[0; 64]);
        attributes(&self.kernel.call(op::SETATTR, ino, &body))
    }

    pub fn unlink(&mut self, dir: u64, name: &str) {
        self.kernel.call(op::UNLINK, dir, &Body::new().name(name));
    }

    pub fn rename(&mut self, (dir, name): (u64, &str), (dir2, name2): (u64, &str)) {
        self.kernel.call(op::RENAME, dir, &Body::new().u64(dir2).name(name).name(name2));
    }

    pub fn opendir(&mut self, ino: u64) -> u64 {
        self.kernel.call(op::OPENDIR, ino, &Body::new().u32(0).u32(0)).u64(0)
    }

    /// What fits into a buffer of this many bytes, from an offset on.
    pub fn readdir(&mut self, ino: u64, handle: u64, offset: u64, bytes: u32) -> Vec<Listed> {
        let body = Body::new().u64(handle).u64(offset).u32(bytes).u32(0).u64(0).u32(0).u32(0);
        let reply = self.kernel.call(op::READDIR, ino, &body);
        assert!(reply.body.len() <= bytes as usize, "more than was asked for");
        let (mut listed, mut at) = (Vec::new(), 0);
        while at < reply.body.len() {
            let length = reply.u32(at + 16) as usize;
            let name = String::from_utf8(reply.body[at + 24..at + 24 + length].to_vec()).unwrap();
            listed.push(Listed { ino: reply.u64(at), offset: reply.u64(at + 8), kind: reply.u32(at + 20), name });
            at += (24 + length).next_multiple_of(8);
        }
        listed
    }

    pub fn releasedir(&mut self, ino: u64, handle: u64) {
        self.kernel.call(op::RELEASEDIR, ino, &Body::new().u64(handle).u32(0).u32(0).u64(0));
    }
}

/// The body of GETATTR.
pub fn getattr() -> Body {
    Body::new().u32(0).u32(0).u64(0)
}

/// The attributes of an answer to GETATTR or SETATTR.
pub fn attributes(reply: &Reply) -> Node {
    assert_eq!(reply.body.len(), ATTR_ATTR + ATTR_BYTES);
    Node::from(reply, ATTR_ATTR)
}
