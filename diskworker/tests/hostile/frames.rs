//! Bytes that are no frames, frames that are no requests, and descriptors where none belong.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use delugefs_proto::limits::FRAME_MAX_BYTES;
use delugefs_proto::local::client::op;
use delugefs_proto::local::{LOCAL_VERSION, frame};
use delugefs_proto::local_pb::{self as pb, Reply, request};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use prost::Message;

use crate::user::User;
use crate::worker::{Host, PATIENCE, SLACK, Worker, wait_until};

/// A small generator with a fixed seed, so that a failure can be repeated (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn connect(worker: &Worker) -> UnixStream {
    let socket = UnixStream::connect(&worker.local).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A greeted connection, raw.
fn greeted(worker: &Worker) -> UnixStream {
    let socket = connect(worker);
    let version = delugefs_proto::local::LOCAL_VERSION;
    frame::send(
        &socket,
        &op(request::Op::Hello(pb::Hello { version, session: 5, events: false, ..pb::Hello::default() })),
        None,
    )
    .unwrap();
    let (reply, _) = frame::Receiver::default().receive::<Reply>(&socket).unwrap().unwrap();
    assert_eq!(reply.errno, 0);
    socket
}

/// All the worker answers until it hangs up.
fn to_the_end(socket: &mut UnixStream) {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => {}
        // It hung up with bytes of ours unread.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the worker neither answers nor hangs up: {error}"),
    }
}

/// With this many descriptors to its first byte.
fn send_with(socket: &UnixStream, bytes: &[u8], descriptors: usize) {
    let null = File::open("/dev/null").unwrap();
    let raw = vec![null.as_raw_fd(); descriptors];
    let rights = [ControlMessage::ScmRights(&raw)];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None);
    assert_eq!(sent, Ok(bytes.len()));
}

fn framed(bytes: &[u8], mark: u32) -> Vec<u8> {
    let mut frame = (bytes.len() as u32 | mark).to_le_bytes().to_vec();
    frame.extend(bytes);
    frame
}

fn stat_fs() -> Vec<u8> {
    op(request::Op::StatFs(pb::StatFs {})).encode_to_vec()
}

#[test]
fn what_is_no_frame_ends_the_connection_and_nothing_else() {
    let host = Host::new();
    let worker = host.create(&[]);
    let mut client = worker.client(1);
    client.put(1, "a", b"kept").unwrap();
    let (tree, descriptors) = (client.tree(), worker.descriptors());
    let frames: Vec<Vec<u8>> = vec![
        vec![0xff; 4],
        ((FRAME_MAX_BYTES + 1) as u32).to_le_bytes().to_vec(),
        0x7fff_ffff_u32.to_le_bytes().to_vec(),
        framed(&[0xff; 100], 0),
        framed(&[0x08], 0),                               // a field without its value
        framed(&[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f], 0), // an operation of 4 GiB
        framed(&[0x0a; 5000], 0),
        framed(&stat_fs(), 1 << 31),         // announces a descriptor and has none
        vec![9, 0],                          // cut in the header
        framed(&stat_fs(), 0)[..5].to_vec(), // cut
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ];
    for frame in &frames {
        for make in [connect, greeted] {
            let mut socket = make(&worker);
            socket.write_all(frame).unwrap();
            socket.shutdown(std::net::Shutdown::Write).unwrap();
            to_the_end(&mut socket);
        }
    }
    // Frames, but not what is to be said first.
    for frame in [framed(&[], 0), framed(&stat_fs(), 0)] {
        let mut socket = connect(&worker);
        socket.write_all(&frame).unwrap();
        to_the_end(&mut socket);
    }
    // Another version is told so.
    for version in [0, 1, LOCAL_VERSION - 1, LOCAL_VERSION + 1, u32::MAX] {
        let mut socket = connect(&worker);
        frame::send(
            &socket,
            &op(request::Op::Hello(pb::Hello { version, session: 5, events: false, ..pb::Hello::default() })),
            None,
        )
        .unwrap();
        let (reply, _) = frame::Receiver::default().receive::<Reply>(&socket).unwrap().unwrap();
        assert_eq!(reply.errno, nix::errno::Errno::EPROTONOSUPPORT as u32);
        assert!(reply.message.contains("use programs of one release"), "{}", reply.message);
        to_the_end(&mut socket);
    }
    // An operation of the future is refused, and the connection goes on.
    let socket = greeted(&worker);
    let mut receiver = frame::Receiver::default();
    for unknown in [framed(&[], 0), framed(&[0xfa, 0x3f, 0x00], 0)] {
        (&socket).write_all(&unknown).unwrap();
        let (reply, _) = receiver.receive::<Reply>(&socket).unwrap().unwrap();
        assert_eq!(reply.errno, nix::errno::Errno::ENOSYS as u32);
    }
    assert_eq!(client.tree(), tree);
    drop(socket);
    wait_until("all descriptors are closed", || worker.descriptors() <= descriptors + SLACK);
    worker.assert_sound();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let host = Host::new();
    let worker = host.create(&[]);
    let mut client = worker.client(1);
    client.put(1, "a", b"kept").unwrap();
    let tree = client.tree();
    let descriptors = worker.descriptors();
    for _ in 0..50 {
        for many in [1, 2, 3, 5, 100, 253] {
            // To a frame that announces one, to one that announces none, to a part of a header.
            for frame in [framed(&stat_fs(), 1 << 31), framed(&stat_fs(), 0), vec![7, 0]] {
                for make in [connect, greeted] {
                    let mut socket = make(&worker);
                    send_with(&socket, &frame, many);
                    socket.shutdown(std::net::Shutdown::Write).unwrap();
                    to_the_end(&mut socket);
                }
            }
        }
    }
    wait_until("all descriptors are closed", || worker.descriptors() <= descriptors + SLACK);
    // A request that takes none, with one: answered as if it had none.
    let null = File::open("/dev/null").unwrap();
    for _ in 0..200 {
        let (reply, fd) = client.call(&op(request::Op::StatFs(pb::StatFs {})), Some(null.as_fd())).unwrap();
        assert_eq!((reply.errno, fd.is_none()), (0, true));
        let (reply, _) =
            client.call(&op(request::Op::GetAttr(pb::GetAttr { ino: 1, dir: 0 })), Some(null.as_fd())).unwrap();
        assert_eq!(reply.errno, 0);
    }
    assert_eq!(client.tree(), tree);
    wait_until("all descriptors are closed", || worker.descriptors() <= descriptors + SLACK);
    worker.assert_sound();
}

/// Two thousand frames of garbage: whole or cut, random through and through or a request with some bytes changed.
#[test]
fn garbage() {
    let host = Host::new();
    let worker = host.create(&[]);
    let mut client = worker.client(1);
    let kept = client.put(1, "kept", &[9; 10_000]).unwrap();
    let mut dice = Dice(20_261_120);
    let mut socket = greeted(&worker);
    let mut receiver = frame::Receiver::default();
    for _ in 0..2000 {
        let frame = match dice.below(4) {
            0 => (0..1 + dice.below(200)).map(|_| dice.next() as u8).collect(),
            1 => framed(&(0..dice.below(200)).map(|_| dice.next() as u8).collect::<Vec<_>>(), 0),
            _ => {
                let (dir, name) = (1, bytes::Bytes::from(format!("g{}", dice.below(9))));
                let request = match dice.below(4) {
                    0 => request::Op::Mkdir(pb::Mkdir { dir, name, mode: 0o755, uid: 1, gid: 2, token: 0 }),
                    1 => request::Op::Unlink(pb::Unlink { dir, name, expect_ino: 0 }),
                    2 => request::Op::Mknod(pb::Mknod { dir, name, mode: 0o100644, ..Default::default() }),
                    _ => request::Op::ReadDir(pb::ReadDir { dir, after: name, limit: 10 }),
                };
                let mut bytes = op(request).encode_to_vec();
                for _ in 0..dice.below(4) {
                    let at = dice.below(bytes.len());
                    bytes[at] ^= 1 << dice.below(8);
                }
                framed(&bytes, 0)
            }
        };
        // Where a random header asks for more bytes the end of the stream is what the worker sees next.
        let whole = frame.len() >= 4 && frame.len() - 4 == u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize;
        let sent = socket.write_all(&frame);
        if !whole {
            drop(socket.shutdown(std::net::Shutdown::Write));
            to_the_end(&mut socket);
        }
        if !whole || sent.is_err() || !matches!(receiver.receive::<Reply>(&socket), Ok(Some(_))) {
            socket = greeted(&worker);
            receiver = frame::Receiver::default();
        }
    }
    assert_eq!(client.read(&kept).unwrap(), [9; 10_000]);
    worker.assert_sound();
}
