//! One frame: four bytes (little endian) of length, with the top bit set when a descriptor belongs to the frame, then
//! that many bytes of a protobuf message. The descriptor travels with the frame's first bytes. Blocking; one thread
//! reads and one writes at a time.
//!
//! The bit is needed because a stream read may end inside the next frame: the kernel hands out that frame's descriptor
//! early. Descriptors and marked frames have the same order.
//!
//! SOCK_STREAM because SEQPACKET messages end near 200 KiB, and directory pages are larger.

// The one place of this crate that takes ownership of raw descriptors, as they come out of a control message.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, sendmsg};
use prost::Message;

use super::spin::Spin;
use crate::limits::FRAME_MAX_BYTES;

const HEADER_BYTES: usize = 4;
/// Set in the header of a frame that has a descriptor.
const HAS_FD: u32 = 1 << 31;
/// Descriptors received ahead of their frames: one read can bring one, and the peer waits for answers.
const FDS_AHEAD_MAX: usize = 2;
/// Descriptors one message can carry: Linux's SCM_MAX_FD. There is room for all of them, for those that did not fit would
/// be open in this process and known to nobody.
const FDS_MAX: usize = 253;
/// First read of a frame: takes most frames whole, in one system call.
const FIRST_READ_BYTES: usize = 16 << 10;

/// Send a message, with a descriptor if there is one.
pub fn send(socket: &UnixStream, message: &impl Message, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let len = message.encoded_len();
    if len > FRAME_MAX_BYTES {
        return Err(io::Error::new(ErrorKind::InvalidInput, format!("frame of {len} bytes is over the limit")));
    }
    let mut buf = Vec::with_capacity(HEADER_BYTES + len);
    let mark = if fd.is_some() { HAS_FD } else { 0 };
    buf.extend((len as u32 | mark).to_le_bytes());
    message.encode(&mut buf).map_err(io::Error::other)?;
    let raw: [RawFd; 1] = [fd.map_or(-1, |fd| fd.as_raw_fd())];
    let rights = [ControlMessage::ScmRights(&raw)];
    let mut control: &[ControlMessage<'_>] = if fd.is_some() { &rights } else { &[] };
    let mut rest = &buf[..];
    while !rest.is_empty() {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(rest)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(sent) => {
                rest = &rest[sent..];
                control = &[];
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether receiving would not have to wait, be it for an error.
fn has_something(socket: &UnixStream) -> bool {
    let look = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
    recv(socket.as_raw_fd(), &mut [0], look) != Err(nix::errno::Errno::EAGAIN)
}

/// Whether that says that the table of descriptors has no room, where the call fails for it: on FreeBSD. The kernel has closed what was
/// passed, and kept the bytes (but for a moment in which the sender fills their place: then they are gone).
fn is_table_full(errno: nix::errno::Errno) -> bool {
    cfg!(target_os = "freebsd") && matches!(errno, nix::errno::Errno::EMSGSIZE | nix::errno::Errno::EMFILE)
}

/// Whether a frame that has a descriptor begins here.
fn is_marked(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|header| u32::from_le_bytes(*header) & HAS_FD != 0)
}

/// Receives frames; keeps what it read ahead of the current one.
#[derive(Default)]
pub struct Receiver {
    /// Room to read into; what is between `start` and `end` was read and not taken yet.
    buf: Vec<u8>,
    start: usize,
    end: usize,
    /// In order; `None` stands for one that was passed and could not be taken.
    fds: VecDeque<Option<OwnedFd>>,
    control: Vec<u8>,
    spin: Spin,
}

impl Receiver {
    /// The next frame and its descriptor; `None` at a clean end of the stream. A frame over the limit, one that does
    /// not parse, or one cut off by the end is an error, after which the connection is of no use. A frame comes without its
    /// descriptor when this process may not have more of them: what the sender opened for it is still to be closed, and only
    /// who knows the message can do that.
    pub fn receive<M: Message + Default>(&mut self, socket: &UnixStream) -> io::Result<Option<(M, Option<OwnedFd>)>> {
        while self.end - self.start < HEADER_BYTES {
            if self.fill(socket, FIRST_READ_BYTES)? == 0 {
                return match self.end - self.start {
                    0 => Ok(None),
                    _ => Err(ErrorKind::UnexpectedEof.into()),
                };
            }
        }
        let header = self.buf[self.start..][..HEADER_BYTES].try_into().unwrap_or_default();
        let header = u32::from_le_bytes(header);
        let len = (header & !HAS_FD) as usize;
        if len > FRAME_MAX_BYTES {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("frame of {len} bytes is over the limit")));
        }
        while self.end - self.start < HEADER_BYTES + len {
            let missing = HEADER_BYTES + len - (self.end - self.start);
            if self.fill(socket, missing)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        let message = M::decode(&self.buf[self.start + HEADER_BYTES..][..len])
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        self.start += HEADER_BYTES + len;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            // The room for a large frame is not kept for small ones.
            self.buf.truncate(FIRST_READ_BYTES);
            self.buf.shrink_to(FIRST_READ_BYTES);
        }
        match header & HAS_FD {
            0 => Ok(Some((message, None))),
            _ => match self.fds.pop_front() {
                Some(fd) => Ok(Some((message, fd))),
                None => Err(io::Error::new(ErrorKind::InvalidData, "a frame came without its descriptor")),
            },
        }
    }

    /// Read up to `want` bytes more; how many came.
    fn fill(&mut self, socket: &UnixStream, want: usize) -> io::Result<usize> {
        if self.buf.len() < self.end + want && self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buf.len() < self.end + want {
            self.buf.resize(self.end + want, 0);
        }
        let read = self.fill_at(socket, want)?;
        self.end += read;
        Ok(read)
    }

    fn fill_at(&mut self, socket: &UnixStream, want: usize) -> io::Result<usize> {
        if self.control.capacity() == 0 {
            self.control = nix::cmsg_space!([RawFd; FDS_MAX]);
        }
        let mut is_lost = false;
        loop {
            let mut iov = [IoSliceMut::new(&mut self.buf[self.end..][..want])];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let begun = self.spin.stay_awake(|| has_something(socket));
            let message = match recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut self.control), flags) {
                Err(nix::errno::Errno::EINTR) => continue,
                // A descriptor comes with the first bytes of a frame.
                Err(errno) if is_table_full(errno) && !is_lost && self.start == self.end => {
                    is_lost = true;
                    continue;
                }
                other => other?,
            };
            self.spin.waited(begun);
            let known = self.fds.len();
            if message.flags.contains(MsgFlags::MSG_CTRUNC) {
                // There was room for all, so the table of descriptors has none. The kernel has closed what was passed.
                self.fds.push_back(None);
            } else {
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(raw) = control {
                        // SAFETY: the kernel has just made these descriptors for us; nobody else knows their numbers.
                        self.fds.extend(raw.into_iter().map(|fd| Some(unsafe { OwnedFd::from_raw_fd(fd) })));
                    }
                }
            }
            let read = message.bytes;
            if is_lost {
                let is_behind = self.fds.len() == known && is_marked(&self.buf[self.end..][..read]);
                self.fds.push_back(None);
                if !is_behind {
                    return Err(io::Error::new(ErrorKind::InvalidData, "a frame was lost with its descriptor"));
                }
            }
            if self.fds.len() > FDS_AHEAD_MAX {
                return Err(io::Error::new(ErrorKind::InvalidData, "more descriptors than frames for them"));
            }
            return Ok(read);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::local_pb::{Reply, Request, request};

    #[test]
    fn frames_and_descriptors_arrive_in_order() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"through the socket", 0).unwrap();
        let writer = std::thread::spawn(move || {
            for seq in 0..100 {
                let data = vec![seq as u8; (seq as usize) * 700].into();
                let reply = Reply { seq, body: Some(crate::local_pb::reply::Body::Data(data)), ..Reply::default() };
                send(&a, &reply, (seq % 3 == 0).then_some(file.as_fd())).unwrap();
            }
        });
        let mut receiver = Receiver::default();
        for seq in 0..100 {
            let (reply, fd) = receiver.receive::<Reply>(&b).unwrap().unwrap();
            assert_eq!(reply.seq, seq);
            assert_eq!(fd.is_some(), seq % 3 == 0, "frame {seq}");
            if let Some(fd) = fd {
                let mut text = [0; 18];
                std::fs::File::from(fd).read_exact_at(&mut text, 0).unwrap();
                assert_eq!(&text, b"through the socket");
            }
        }
        writer.join().unwrap();
        assert!(receiver.receive::<Reply>(&b).unwrap().is_none());
    }

    #[test]
    fn oversized_garbage_and_cut_frames_are_errors() {
        for (bytes, what) in [
            (&[0xff, 0xff, 0xff, 0xff][..], "oversized"),
            (&[3, 0, 0, 0, 0xff, 0xff, 0xff], "garbage"),
            (&[9, 0, 0, 0, 1], "cut"),
            (&[9, 0], "cut in the header"),
        ] {
            let (mut a, b) = UnixStream::pair().unwrap();
            a.write_all(bytes).unwrap();
            drop(a);
            assert!(Receiver::default().receive::<Request>(&b).is_err(), "{what}");
        }
        let (a, _b) = UnixStream::pair().unwrap();
        let name = vec![b'x'; FRAME_MAX_BYTES].into();
        let lookup = request::Op::Lookup(crate::local_pb::Lookup { dir: 1, name });
        assert!(send(&a, &Request { op: Some(lookup), ..Request::default() }, None).is_err());
    }
}
