//! The kernel's end of the device: messages out and in, as bytes.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// How long an answer may take before a test gives up, in seconds.
const PATIENCE_S: i64 = 30;
/// Largest message either way, in bytes, with room to spare: SEQPACKET sockets have it set by their buffers.
const MESSAGE_MAX_BYTES: usize = 192 << 10;
const HEADER_BYTES: usize = 16;
/// Who asks: user, group and process.
pub const CALLER: (u32, u32, u32) = (1001, 1002, 77);

/// Numbers of the requests.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
}

/// Numbers of the notifications.
pub mod notice {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
}

/// A request's body being put together.
#[derive(Default)]
pub struct Body(Vec<u8>);

impl Body {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// A string with the NUL that ends it.
    pub fn name(self, name: &str) -> Self {
        self.bytes(name.as_bytes()).bytes(b"\0")
    }
}

/// What came back for a request, or without one: then `errno` is the notification's number.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Positive as in errno.h; 0 is success.
    pub errno: i32,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.body[at..at + 4].try_into().unwrap())
    }

    pub fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.body[at..at + 8].try_into().unwrap())
    }
}

/// The device, seen from the kernel.
pub struct Device {
    socket: OwnedFd,
    /// Process that asks.
    pub pid: u32,
    unique: u64,
    replies: HashMap<u64, Reply>,
    notices: Vec<Reply>,
}

impl Device {
    /// The kernel's end and the frontend's.
    pub fn open() -> (Self, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (kernel, fuse) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        for end in [&kernel, &fuse] {
            setsockopt(end, sockopt::SndBuf, &(2 * MESSAGE_MAX_BYTES)).unwrap();
            setsockopt(end, sockopt::RcvBuf, &(2 * MESSAGE_MAX_BYTES)).unwrap();
        }
        setsockopt(&kernel, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_S)).unwrap();
        (Self { socket: kernel, pid: CALLER.2, unique: 0, replies: HashMap::new(), notices: Vec::new() }, fuse)
    }

    /// Send a request; its number, to ask for the reply by.
    pub fn send(&mut self, op: u32, node: u64, body: &Body) -> u64 {
        const REQUEST_HEADER_BYTES: usize = 40;
        self.unique += 2;
        let (uid, gid, pid) = (CALLER.0, CALLER.1, self.pid);
        let bytes = (REQUEST_HEADER_BYTES + body.0.len()) as u32;
        let header = Body::new().u32(bytes).u32(op).u64(self.unique).u64(node).u32(uid).u32(gid).u32(pid).u32(0);
        let message = header.bytes(&body.0).0;
        assert_eq!(nix::unistd::write(&self.socket, &message), Ok(message.len()));
        self.unique
    }

    /// Wait for the reply to a request; others that come meanwhile are kept.
    pub fn reply_to(&mut self, unique: u64) -> Reply {
        loop {
            if let Some(reply) = self.replies.remove(&unique) {
                return reply;
            }
            self.receive();
        }
    }

    /// Whether the reply to a request has come, without waiting.
    pub fn has_reply_to(&self, unique: u64) -> bool {
        self.replies.contains_key(&unique)
    }

    /// Wait for a notification.
    pub fn notice(&mut self) -> Reply {
        while self.notices.is_empty() {
            self.receive();
        }
        self.notices.remove(0)
    }

    /// Wait for a notification that drops the pages of an inode, from 0 on; which. That of its attributes alone comes before, those of
    /// others at any time.
    pub fn notice_of_pages(&mut self) -> u64 {
        loop {
            let told = self.notice();
            if told.errno == notice::INVAL_INODE && told.u64(8) == 0 {
                return told.u64(0);
            }
        }
    }

    /// Wait for a notification about a name; its directory and itself. Others before it are passed over.
    pub fn notice_of_name(&mut self) -> (u64, String) {
        loop {
            let told = self.notice();
            if told.errno == notice::INVAL_ENTRY {
                let name = told.body[16..16 + told.u32(8) as usize].to_vec();
                return (told.u64(0), String::from_utf8(name).unwrap());
            }
        }
    }

    /// Send a request and wait for its reply, whatever it is.
    pub fn ask(&mut self, op: u32, node: u64, body: &Body) -> Reply {
        let unique = self.send(op, node, body);
        self.reply_to(unique)
    }

    /// Send a request that must succeed.
    pub fn call(&mut self, op: u32, node: u64, body: &Body) -> Reply {
        let reply = self.ask(op, node, body);
        assert_eq!(Errno::from_raw(reply.errno), Errno::from_raw(0), "request {op} about {node:x}");
        reply
    }

    /// Send a request that must fail; with what.
    pub fn fail(&mut self, op: u32, node: u64, body: &Body) -> Errno {
        let reply = self.ask(op, node, body);
        assert_ne!(reply.errno, 0, "request {op} about {node:x} succeeded");
        assert_eq!(reply.body, b"", "an error with a body");
        Errno::from_raw(reply.errno)
    }

    fn receive(&mut self) {
        let mut message = vec![0; MESSAGE_MAX_BYTES];
        let bytes = nix::sys::socket::recv(self.socket.as_raw_fd(), &mut message, nix::sys::socket::MsgFlags::empty())
            .expect("the frontend is silent");
        message.truncate(bytes);
        let header = Reply { errno: 0, body: message[..HEADER_BYTES].to_vec() };
        assert_eq!(header.u32(0) as usize, bytes, "length in the header");
        let (error, unique) = (header.u32(4) as i32, header.u64(8));
        let body = message.split_off(HEADER_BYTES);
        match unique {
            0 => self.notices.push(Reply { errno: error, body }),
            _ => assert!(self.replies.insert(unique, Reply { errno: -error, body }).is_none(), "two replies to one"),
        }
    }
}
