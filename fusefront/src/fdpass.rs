//! One byte with at most one descriptor over a unix socket: how the launcher and fusermount3 hand over /dev/fuse.

// Takes ownership of a raw descriptor, as it comes out of a control message.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Send a byte, with a descriptor if there is one.
pub fn send(socket: &UnixStream, byte: u8, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let raw: [RawFd; 1] = [fd.map_or(-1, |fd| fd.as_raw_fd())];
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if fd.is_some() { &rights } else { &[] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[byte])], control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// The next byte, and its descriptor; `None` at the end.
pub fn receive(socket: &UnixStream) -> io::Result<Option<(u8, Option<OwnedFd>)>> {
    let mut byte = [0];
    loop {
        let mut space = nix::cmsg_space!(RawFd);
        let mut iov = [IoSliceMut::new(&mut byte)];
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for us; nobody else knows their numbers.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if message.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::new(ErrorKind::InvalidData, "more than one descriptor"));
        }
        return Ok((message.bytes > 0).then(|| (byte[0], fds.pop())));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_byte() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"text").unwrap();
        send(&a, b'x', Some(file.as_fd())).unwrap();
        send(&a, b'y', None).unwrap();
        drop(a);
        let (byte, fd) = receive(&b).unwrap().unwrap();
        let mut text = [0; 4];
        std::fs::File::from(fd.unwrap()).read_exact_at(&mut text, 0).unwrap();
        assert_eq!((byte, &text), (b'x', b"text"));
        assert!(matches!(receive(&b), Ok(Some((b'y', None)))));
        assert!(matches!(receive(&b), Ok(None)));
    }
}
