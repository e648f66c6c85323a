//! Clients that say nothing, that do not listen, and too many of them. None may take anything from the others.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use delugefs_proto::local::client::{Client, op};
use delugefs_proto::local::frame;
use delugefs_proto::local_pb::{self as pb, request};
use nix::errno::Errno;

use crate::user::User;
use crate::worker::{Host, PATIENCE, SLACK, Worker, wait_until};

fn hello(worker: &Worker, session: u64, events: bool) -> UnixStream {
    let socket = UnixStream::connect(&worker.local).unwrap();
    let version = delugefs_proto::local::LOCAL_VERSION;
    frame::send(&socket, &op(request::Op::Hello(pb::Hello { version, session, events, ..pb::Hello::default() })), None)
        .unwrap();
    socket
}

#[test]
fn who_says_nothing_is_hung_up_on() {
    let host = Host::new();
    let worker = host.create(&[]);
    let mut silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&worker.local).unwrap()).collect();
    let mut client = worker.client(1);
    client.put(1, "a", b"a").unwrap();
    for socket in &mut silent {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(socket.read(&mut [0; 64]).unwrap(), 0, "hung up");
    }
    // Who has said hello may take all the time in the world.
    assert_eq!(client.lookup(1, "a").unwrap().size, 1);
    worker.assert_sound();
}

#[test]
fn who_does_not_listen_holds_up_nobody() {
    let host = Host::new();
    let worker = host.create(&[]);
    let mut client = worker.client(1);
    for n in 0..200 {
        client.put(1, &format!("{n:0>250}"), &[7; 4000]).unwrap();
    }
    // Ask and ask and never read an answer, until the worker's answers fill the socket and then our requests do.
    let deaf: Vec<UnixStream> = (0..8).map(|session| hello(&worker, 100 + session, false)).collect();
    for socket in &deaf {
        socket.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let list = op(request::Op::ReadDir(pb::ReadDir { dir: 1, after: Default::default(), limit: 4096 }));
        let stuck = (0..100_000).find_map(|_| frame::send(socket, &list, None).err()).unwrap();
        assert_eq!(stuck.kind(), std::io::ErrorKind::WouldBlock);
    }
    // Listen for events and never read one.
    let _deaf_to_events: Vec<UnixStream> = (0..8).map(|session| hello(&worker, 200 + session, true)).collect();
    for n in 0..6000 {
        client.mkdir(1, &format!("d{n}")).unwrap();
    }
    let mut other = worker.client(2);
    assert_eq!(other.list(1).unwrap().len(), 6200);
    other.put(1, "b", b"b").unwrap();
    assert!(!worker.status().read_only);
    worker.assert_sound();
}

#[test]
fn three_hundred_connections() {
    let host = Host::new();
    let worker = host.create(&[]);
    let before = worker.descriptors();
    let mut clients: Vec<Client> = Vec::new();
    let mut refused = 0;
    for session in 0..300 {
        match worker.try_client(session, false) {
            Ok(client) => clients.push(client),
            Err(error) => {
                assert!(error.to_string().contains("too many connections"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(clients.len() >= 200 && refused > 0, "{} served, {refused} refused", clients.len());
    for (n, client) in clients.iter_mut().enumerate() {
        client.put(1, &format!("f{n}"), b"x").unwrap();
    }
    drop(clients);
    wait_until("there is room again", || worker.try_client(1000, false).is_ok());
    wait_until("all descriptors are closed", || worker.descriptors() <= before + SLACK);
    worker.assert_sound();
}

#[test]
fn handles_without_end() {
    let host = Host::new();
    let worker = host.create(&[]);
    let _session = worker.try_client(1, true).unwrap();
    let mut client = worker.client(1);
    let attr = client.put(1, "a", &[1; 5000]).unwrap();
    wait_until("it is sealed", || worker.status().staged_files == 0);
    let before = worker.descriptors();
    let mut handles = Vec::new();
    for _ in 0..20_000 {
        let writer = client.open_write(&attr).unwrap();
        handles.push(writer.handle);
    }
    assert!(worker.descriptors() <= before + SLACK, "the worker keeps no descriptor of a handle");
    // Closing what was never opened, or twice, closes nothing.
    for handle in [0, 1, u64::MAX, handles[0], handles[0]] {
        client.ask(request::Op::Close(pb::Close { handle, ..Default::default() })).unwrap();
    }
    assert_eq!(worker.status().staged_files, 1, "still being written");
    for handle in handles {
        client.ask(request::Op::Close(pb::Close { handle, ..Default::default() })).unwrap();
    }
    wait_until("it is sealed", || worker.status().staged_files == 0);
    assert_eq!(client.read(&attr).unwrap(), [1; 5000]);
    worker.assert_sound();
}

#[test]
fn nobody_closes_or_adopts_what_is_not_his() {
    let host = Host::new();
    let worker = host.create(&[]);
    let (_one, _two) = (worker.try_client(1, true).unwrap(), worker.try_client(2, true).unwrap());
    let (mut mine, mut theirs) = (worker.client(1), worker.client(2));
    let writer = mine.create(1, "a").unwrap();
    let other = mine.create(1, "b").unwrap();
    for handle in [writer.handle, writer.handle + 1, 0, u64::MAX] {
        theirs.ask(request::Op::Close(pb::Close { handle, ..Default::default() })).unwrap();
    }
    let (read_end, _write_end) = nix::unistd::pipe().unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let temporary = tempfile::tempfile().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let folder = std::fs::File::open("/").unwrap();
    use std::os::fd::AsFd;
    let foreign =
        [read_end.as_fd(), socket.as_fd(), temporary.as_fd(), null.as_fd(), folder.as_fd(), other.file.as_fd()];
    let descriptors = worker.descriptors();
    for ino in [writer.attr.ino, 1, 0, u64::MAX, 12345] {
        for fd in foreign {
            let adopt = op(request::Op::Adopt(pb::Adopt { ino, dir: 1, ..Default::default() }));
            let (reply, _) = theirs.call(&adopt, Some(fd)).unwrap();
            assert_eq!(reply.errno, Errno::ESTALE as u32, "{ino}: {}", reply.message);
        }
        let (reply, _) =
            theirs.call(&op(request::Op::Adopt(pb::Adopt { ino, dir: 1, ..Default::default() })), None).unwrap();
        assert_eq!(reply.errno, Errno::EBADF as u32);
    }
    assert!(worker.descriptors() <= descriptors + SLACK);
    // The session that ends takes only its own handles with it.
    drop((theirs, _two));
    wait_until("the other session has ended", || worker.status().sessions == 1);
    assert_eq!(worker.status().staged_files, 2);
    std::os::unix::fs::FileExt::write_all_at(&writer.file, b"mine", 0).unwrap();
    let attr = writer.attr;
    mine.close(writer).unwrap();
    assert_eq!(mine.read(&attr).unwrap(), b"mine");
    mine.close(other).unwrap();
    worker.assert_sound();
}
