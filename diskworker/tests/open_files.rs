//! Files that are open while their names change, and sessions that end or begin again at bad moments.

use std::sync::Arc;

use delugefs_diskworker::fetch::Fetcher;
use delugefs_diskworker::net::{Net, NetSettings};
use delugefs_diskworker::serve::local;
use delugefs_diskworker::serve::neighbours::Neighbours;
use delugefs_diskworker::swarm::Swarm;
use std::fs::File;
use std::os::unix::fs::FileExt;

use delugefs_diskworker::engine::Opening;
use delugefs_proto::ids::Ino;
use delugefs_proto::local::client::{Client, op};
use delugefs_proto::local_pb as pb;

use tokio_util::sync::CancellationToken;

use crate::disk::{Disk, Posix, SESSION};

/// Open a file for writing: its number, the handle and the descriptor.
fn open(disk: &Disk, path: &[&[u8]]) -> (u64, u64, File) {
    let attr = disk.engine().resolve(path).unwrap();
    let q = pb::Open { ino: attr.ino, dir: attr.dir, write: true, truncate: false };
    match disk.engine().open(SESSION, &q).unwrap().1 {
        Opening::File { handle, file } => (attr.ino, handle, file),
        Opening::Inline(_) => panic!("a writer gets a descriptor"),
    }
}

fn names(disk: &Disk) -> Vec<String> {
    let all = disk.engine().list(Ino::ROOT.0).unwrap();
    all.into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect()
}

#[test]
fn a_file_renamed_or_linked_while_it_is_written_is_no_conflict_with_itself() {
    let rename = |from: &'static [u8], to: &'static [u8]| pb::Rename {
        dir: Ino::ROOT.0,
        name: from.into(),
        dir2: Ino::ROOT.0,
        name2: to.into(),
        ..Default::default()
    };
    for size in [100, 20_000] {
        let disk = Disk::new();
        let engine = disk.engine();
        Posix::create(&**engine, &[b"a"], 0o644, &vec![1; size]).unwrap();
        let (ino, handle, file) = open(&disk, &[b"a"]);
        file.write_all_at(&[2; 10], 0).unwrap();
        engine.rename(SESSION, false, &rename(b"a", b"b")).unwrap();
        engine.rename(SESSION, false, &rename(b"b", b"c")).unwrap();
        let link = pb::Link { ino, ino_dir: Ino::ROOT.0, dir: Ino::ROOT.0, name: (&b"d"[..]).into() };
        engine.link(SESSION, false, &link).unwrap();
        drop(file);
        engine.close(SESSION, handle, false).unwrap();
        let mut expected = vec![1; size];
        expected[..10].fill(2);
        disk.wait_until_sealed();
        assert_eq!(names(&disk), ["c", "d"]);
        assert_eq!(engine.read(&[b"c"]).unwrap(), expected);
        assert_eq!(engine.read(&[b"d"]).unwrap(), expected);
    }
}

#[test]
fn opened_again_at_the_moment_it_was_sealed() {
    let disk = Disk::new();
    Posix::create(&**disk.engine(), &[b"a"], 0o644, &[0; 5000]).unwrap();
    let mut expected = vec![0; 5000];
    for n in 0..1500_u32 {
        let (_, handle, file) = open(&disk, &[b"a"]);
        let at = (n as usize * 4) % 5000;
        file.write_all_at(&n.to_le_bytes(), at as u64).unwrap();
        expected[at..at + 4].copy_from_slice(&n.to_le_bytes());
        drop(file);
        disk.engine().close(SESSION, handle, false).unwrap();
        if n % 3 == 0 {
            // The seal is finished, and its thread may or may not have left the table yet.
            while disk.engine().store.is_staged(Ino(disk.engine().resolve(&[b"a"]).unwrap().ino)).unwrap() {
                std::thread::yield_now();
            }
        }
    }
    disk.wait_until_sealed();
    assert!(disk.engine().read(&[b"a"]).unwrap() == expected, "a write was lost");
}

#[test]
fn a_create_whose_answer_was_lost_is_answered_also_when_its_file_was_sealed_since() {
    let disk = Disk::new();
    let engine = disk.engine();
    let q = pb::Create { dir: Ino::ROOT.0, name: (&b"a"[..]).into(), mode: 0o644, uid: 1, gid: 2, ino: 1234 };
    let (_, Opening::File { handle, file }) = engine.create(SESSION, false, &q).unwrap() else { panic!() };
    drop(file);
    engine.close(SESSION, handle, false).unwrap();
    disk.wait_until_sealed();

    let (answer, opening) = engine.create(SESSION, true, &q).unwrap();
    let Opening::File { handle, file } = opening else { panic!() };
    assert_eq!((answer.node.unwrap().ino, answer.dir.unwrap().ino), (1234, Ino::ROOT.0));
    file.write_all_at(b"text", 0).unwrap();
    drop(file);
    engine.close(SESSION, handle, false).unwrap();
    assert_eq!(engine.read(&[b"a"]).unwrap(), b"text");
    // Somebody else's file of that name is none of ours.
    let other = engine.create(SESSION, true, &pb::Create { ino: 1235, ..q }).err().unwrap();
    assert_eq!(other.errno, nix::errno::Errno::EEXIST);
}

/// A disk served on a socket, until dropped.
struct Served {
    path: std::path::PathBuf,
    listener: std::os::unix::net::UnixListener,
    serving: Option<std::thread::JoinHandle<()>>,
    _socket_dir: tempfile::TempDir,
}

impl Served {
    fn new(disk: &Disk) -> Self {
        let socket_dir = tempfile::tempdir().unwrap();
        let path = socket_dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let (engine, accepting) = (disk.engine().clone(), listener.try_clone().unwrap());
        let allowed = delugefs_diskworker::serve::AllowedUids::new(&[]);
        let run_dir = socket_dir.path().to_owned();
        let serving = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let swarm = Arc::new(Swarm::absent());
            let settings = NetSettings { listen: Some("127.0.0.1".into()), ..NetSettings::default() };
            let net = runtime.block_on(Net::start(engine.clone(), swarm.clone(), settings)).unwrap();
            let fetcher = Fetcher::new(engine.clone(), swarm, net.clone(), runtime.handle().clone());
            let neighbours = Arc::new(Neighbours::new(net.clone(), run_dir));
            local::serve(&engine, &fetcher, &neighbours, &accepting, &allowed, &CancellationToken::new());
            net.shutdown();
        });
        Self { path, listener, serving: Some(serving), _socket_dir: socket_dir }
    }

    fn client(&self, events: bool) -> Client {
        Client::connect(&self.path, 99, events).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd;
        // FreeBSD does it, and says that one that listens is not connected.
        let shut = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        assert!(matches!(shut, Ok(()) | Err(nix::errno::Errno::ENOTCONN)));
        let served = self.serving.take().unwrap().join();
        assert!(served.is_ok() || std::thread::panicking());
    }
}

fn create_a() -> pb::Request {
    let name = (&b"a"[..]).into();
    op(pb::request::Op::Create(pb::Create { dir: Ino::ROOT.0, name, mode: 0o644, uid: 1, gid: 2, ino: 0 }))
}

#[test]
fn what_is_opened_after_the_end_of_its_session_is_closed_with_its_connection() {
    let disk = Disk::new();
    let served = Served::new(&disk);
    // No connection for events, as if it had just closed.
    let mut client = served.client(false);
    let (reply, fd) = client.call(&create_a(), None).unwrap();
    assert_eq!(reply.errno, 0);
    let file = File::from(fd.unwrap());
    file.write_all_at(b"text", 0).unwrap();
    drop((client, file));
    disk.wait_until_sealed();
    assert_eq!(disk.engine().read(&[b"a"]).unwrap(), b"text");
}

/// On FreeBSD who sends is not told that the other has shut his end for reading.
#[test]
#[cfg(target_os = "linux")]
fn what_was_opened_for_an_answer_that_cannot_be_sent_is_closed() {
    let disk = Disk::new();
    let served = Served::new(&disk);
    let _session = served.client(true);
    let attr = || disk.engine().resolve(&[b"a"]);
    let unheard = |request: &pb::Request| {
        let mut client = served.client(false);
        client.socket().shutdown(std::net::Shutdown::Read).unwrap();
        assert!(client.call(request, None).is_err());
        client // of one who has gone it would not be carried out
    };
    let _deaf = unheard(&create_a());
    let begin = std::time::Instant::now();
    while attr().is_err() {
        assert!(begin.elapsed() < std::time::Duration::from_secs(30), "it is not made");
        std::thread::yield_now();
    }
    disk.wait_until_sealed();
    // What was there stays as it is. One that was emptied is a new version.
    let (_, handle, file) = open(&disk, &[b"a"]);
    file.write_all_at(b"text", 0).unwrap();
    drop(file);
    disk.engine().close(SESSION, handle, false).unwrap();
    for truncate in [false, true] {
        let (ino, dir) = (attr().unwrap().ino, Ino::ROOT.0);
        let _deaf = unheard(&op(pb::request::Op::Open(pb::Open { ino, dir, write: true, truncate })));
        while disk.engine().read(&[b"a"]).unwrap().is_empty() != truncate {
            assert!(begin.elapsed() < std::time::Duration::from_secs(30), "it is not opened");
            std::thread::yield_now();
        }
        disk.wait_until_sealed();
    }
}

/// A large file takes a while to be opened for writing.
#[test]
fn an_open_tells_the_attributes_as_they_are_when_it_is_done() {
    let disk = Disk::new();
    Posix::create(&**disk.engine(), &[b"a"], 0o644, &vec![1; 64 << 20]).unwrap();
    disk.wait_until_sealed();
    let attr = disk.engine().resolve(&[b"a"]).unwrap();
    let (ino, dir) = (attr.ino, attr.dir);
    let engine = disk.engine().clone();
    let opening =
        std::thread::spawn(move || engine.open(SESSION, &pb::Open { ino, dir, write: true, truncate: false }).unwrap());
    let staging = disk.engine().folder.path("staging");
    while std::fs::read_dir(&staging).unwrap().next().is_none() && !opening.is_finished() {
        std::thread::yield_now();
    }
    let q = pb::SetAttr { ino, dir, mode: Some(0o600), ..Default::default() };
    let changed = disk.engine().set_attr(SESSION, &q).unwrap();
    let (answer, _opened) = opening.join().unwrap();
    // Whoever goes by the counter takes the later answer for the newer one.
    assert!(answer.seq < changed.seq || answer.node.unwrap().mode & 0o777 == 0o600);
}

#[test]
fn a_seal_tells_of_new_content_and_of_no_new_name() {
    let disk = Disk::new();
    let events = disk.engine().begin_session(8);
    Posix::create(&**disk.engine(), &[b"a"], 0o644, &[1; 20_000]).unwrap();
    disk.wait_until_sealed();
    let ino = disk.engine().resolve(&[b"a"]).unwrap().ino;
    let changed: Vec<_> = (0..2).flat_map(|_| events.next().unwrap().changed).collect();
    let names: Vec<_> = changed.iter().flat_map(|changed| &changed.names).collect();
    assert_eq!(names, [&b"a"[..]], "{changed:?}");
    let sealed = changed.last().unwrap();
    assert_eq!((sealed.dir, &sealed.inos[..]), (0, &[ino][..]));
}

/// What is removed through another mount of the disk need not outlast a crash, for who has it open.
#[test]
fn it_is_told_whether_a_file_was_removed_through_another_mount() {
    let (disk, elsewhere) = (Disk::new(), Disk::new());
    for name in [b"a", b"b"] {
        Posix::create(&**disk.engine(), &[&name[..]], 0o644, b"text").unwrap();
    }
    disk.wait_until_sealed();
    disk.exchange(&elsewhere);
    let inos = [b"a", b"b"].map(|name| disk.engine().resolve(&[&name[..]]).unwrap().ino);
    let events = disk.engine().begin_session(8);
    for (disk, name) in [(&disk, "a"), (&elsewhere, "b")] {
        let q = pb::Unlink { dir: Ino::ROOT.0, name: name.into(), expect_ino: 0 };
        disk.engine().unlink(SESSION, false, &q).unwrap();
    }
    disk.exchange(&elsewhere);
    for (ino, here) in inos.into_iter().zip([true, false]) {
        let event = events.next().unwrap();
        assert!(event.changed.iter().any(|changed| changed.inos.contains(&ino)), "{event:?}");
        assert_eq!(event.here, here, "{event:?}");
    }
}

#[test]
fn a_time_set_while_the_file_is_sealed_stays() {
    let disk = Disk::new();
    let engine = disk.engine();
    Posix::create(&**engine, &[b"a"], 0o644, &[0; 100]).unwrap();
    for n in 0..80 {
        let (ino, handle, file) = open(&disk, &[b"a"]);
        file.write_all_at(&[n as u8; 100], 0).unwrap();
        drop(file);
        let mut mtime = 0;
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| engine.close(SESSION, handle, false).unwrap());
            while mtime == 0 || !closing.is_finished() {
                mtime += 1;
                let q = pb::SetAttr { ino, dir: Ino::ROOT.0, mtime: Some(mtime), ..Default::default() };
                engine.set_attr(SESSION, &q).unwrap();
            }
        });
        disk.wait_until_sealed();
        assert_eq!(engine.resolve(&[b"a"]).unwrap().mtime, mtime, "round {n}");
    }
}

/// Where the clock of files is slow, a write right after the opening leaves all their times as they were.
#[test]
fn what_was_written_is_told_by_the_writer_and_by_no_time() {
    for size in [100, 20_000] {
        let disk = Disk::new();
        let engine = disk.engine();
        Posix::create(&**engine, &[b"a"], 0o644, &vec![1; size]).unwrap();
        disk.wait_until_sealed();
        let (before, seq) = (engine.resolve(&[b"a"]).unwrap(), engine.seq());
        // Nobody wrote: it goes as it came, and nothing is recorded.
        let (_, handle, file) = open(&disk, &[b"a"]);
        drop(file);
        engine.close(SESSION, handle, true).unwrap();
        disk.wait_until_sealed();
        assert_eq!((engine.resolve(&[b"a"]).unwrap(), engine.seq()), (before, seq));
        // One of two wrote, and left the time of change as it was.
        let (ino, handle, file) = open(&disk, &[b"a"]);
        let (_, other, idle) = open(&disk, &[b"a"]);
        file.write_all_at(&[2; 10], 5).unwrap();
        let q = pb::SetAttr { ino, dir: Ino::ROOT.0, mtime: Some(before.mtime), ..Default::default() };
        engine.set_attr(SESSION, &q).unwrap();
        drop(file);
        engine.close(SESSION, handle, false).unwrap();
        drop(idle);
        engine.close(SESSION, other, true).unwrap();
        disk.wait_until_sealed();
        let mut expected = vec![1; size];
        expected[5..15].fill(2);
        assert_eq!(engine.read(&[b"a"]).unwrap(), expected);
    }
}

/// A frontend that has asked from several threads puts the newest answer over the others, whichever comes last.
#[test]
fn answers_with_one_counter_have_one_size() {
    let disk = Disk::new();
    let engine = disk.engine();
    Posix::create(&**engine, &[b"a"], 0o644, &[]).unwrap();
    let (ino, handle, file) = open(&disk, &[b"a"]);
    file.write_all_at(&[7; 100], 0).unwrap();
    let ask = || {
        let answer = engine.get_attr(&pb::GetAttr { ino, dir: Ino::ROOT.0 }).unwrap();
        (answer.seq, answer.node.unwrap().size)
    };
    let before = ask();
    assert_eq!(before.1, 100);
    // Somebody cuts it while it is open, then while its writer's close is on its way.
    let cut = |size| {
        let q = pb::SetAttr { ino, dir: Ino::ROOT.0, size: Some(size), ..Default::default() };
        let answer = engine.set_attr(SESSION, &q).unwrap();
        (answer.seq, answer.node.unwrap().size)
    };
    let first = cut(300_000);
    assert_eq!(first.1, 300_000);
    assert!(first.0 > before.0, "{first:?} after {before:?}");
    drop(file);
    let closed = engine.close(SESSION, handle, false).unwrap();
    assert_eq!(closed.node.map(|node| node.size), Some(300_000));
    let second = cut(400_000);
    assert_eq!(second.1, 400_000);
    assert!(second.0 > closed.seq, "{second:?} after {}", closed.seq);
    assert_eq!(ask().1, 400_000);
}

/// Each of two mounts knows only what it wrote itself.
#[test]
fn a_file_that_two_sessions_wrote_is_news_to_both() {
    for size in [100, 20_000] {
        let disk = Disk::new();
        let engine = disk.engine();
        Posix::create(&**engine, &[b"a"], 0o644, &vec![1; size]).unwrap();
        disk.wait_until_sealed();
        let other = SESSION + 1;
        let queues = [engine.begin_session(SESSION), engine.begin_session(other)];
        let (ino, handle, file) = open(&disk, &[b"a"]);
        let q = pb::Open { ino, dir: Ino::ROOT.0, write: true, truncate: false };
        let (answer, opening) = engine.open(other, &q).unwrap();
        let Opening::File { handle: theirs, file: their_file } = opening else { panic!() };
        assert!(answer.shared);
        file.write_all_at(&[2; 10], 0).unwrap();
        their_file.write_all_at(&[3; 10], 20).unwrap();
        drop((file, their_file));
        assert!(engine.close(SESSION, handle, false).unwrap().shared);
        assert!(engine.close(other, theirs, false).unwrap().shared);
        disk.wait_until_sealed();
        for queue in queues {
            let event = queue.next().unwrap();
            assert!(event.changed.iter().any(|changed| changed.inos.contains(&ino)), "{event:?}");
        }
    }
}

/// Long before it is sealed: a mount that has been told a size shows nothing behind it.
#[test]
fn what_one_of_two_sessions_has_written_is_news_to_the_other() {
    let disk = Disk::new();
    let engine = disk.engine();
    Posix::create(&**engine, &[b"a"], 0o644, &[1; 100]).unwrap();
    disk.wait_until_sealed();
    let other = SESSION + 1;
    let (ino, handle, file) = open(&disk, &[b"a"]);
    engine.synced(SESSION, Ino(ino)); // nobody else has it
    let q = pb::Open { ino, dir: Ino::ROOT.0, write: true, truncate: false };
    let theirs = [(), ()].map(|()| match engine.open(other, &q).unwrap() {
        (_, Opening::File { handle, .. }) => handle,
        _ => panic!(),
    });
    let [ours, news] = [SESSION, other].map(|session| engine.begin_session(session));
    file.write_all_at(&[2; 10], 100).unwrap();
    let mut before = engine.seq();
    let mut is_told = |seq: u64| {
        let event = news.next().unwrap();
        assert!(event.seq > before && event.seq <= seq, "{event:?}");
        assert!(event.changed.iter().any(|changed| changed.inos == [ino]), "{event:?}");
        before = event.seq;
    };
    engine.synced(SESSION, Ino(ino));
    is_told(engine.seq());
    let answer = engine.get_attr(&pb::GetAttr { ino, dir: Ino::ROOT.0 }).unwrap();
    assert_eq!(answer.node.unwrap().size, 110);
    drop(file);
    // Of a handle that nothing was written through there is nothing to tell.
    engine.close(other, theirs[0], true).unwrap();
    is_told(engine.close(SESSION, handle, false).unwrap().seq);
    engine.close(other, theirs[1], true).unwrap();
    disk.wait_until_sealed();
    let event = ours.next().unwrap();
    assert!(event.seq > before, "it was told what it wrote itself: {event:?}");
}

/// Everybody was told of the copy that the writer had, which nobody wrote to.
#[test]
fn a_version_that_came_while_a_file_was_open_unwritten_is_news_to_all() {
    for size in [100, 20_000] {
        let (disk, elsewhere) = (Disk::new(), Disk::new());
        let engine = disk.engine();
        Posix::create(&**engine, &[b"a"], 0o644, &vec![1; size]).unwrap();
        disk.wait_until_sealed();
        disk.exchange(&elsewhere);
        let (ino, handle, file) = open(&disk, &[b"a"]);
        Posix::write(&**elsewhere.engine(), &[b"a"], 0, &[2; 30], true).unwrap();
        elsewhere.wait_until_sealed();
        disk.exchange(&elsewhere);
        // As one does who hears of the new version.
        let ask = || {
            let answer = engine.get_attr(&pb::GetAttr { ino, dir: Ino::ROOT.0 }).unwrap();
            (answer.seq, answer.node.unwrap().size)
        };
        let before = ask();
        assert_eq!(before.1, size as u64);
        let queues = [engine.begin_session(SESSION), engine.begin_session(SESSION + 1)];
        drop(file);
        let closed = engine.close(SESSION, handle, true).unwrap();
        assert_eq!(closed.node.map(|node| node.size), Some(30));
        disk.wait_until_sealed();
        assert_eq!(ask().1, 30);
        // What nobody is told of is not waited for.
        engine.set_attr(SESSION + 2, &pb::SetAttr { ino: 1, dir: 1, atime: Some(5), ..Default::default() }).unwrap();
        for queue in queues {
            let event = queue.next().unwrap();
            assert!(event.seq > before.0 && event.seq <= closed.seq, "{event:?}");
            assert!(event.changed.iter().any(|changed| changed.inos == [ino]), "{event:?}");
        }
    }
}

#[test]
fn the_times_of_a_new_file_do_not_move_by_themselves() {
    let disk = Disk::new();
    let engine = disk.engine();
    for unwritten in [true, false] {
        let name = if unwritten { &b"a"[..] } else { b"b" };
        let q = pb::Create { dir: Ino::ROOT.0, name: name.into(), mode: 0o644, uid: 1, gid: 2, ino: 0 };
        let (answer, opening) = engine.create(SESSION, false, &q).unwrap();
        let Opening::File { handle, file } = opening else { panic!("a writer gets a descriptor") };
        let made = answer.node.unwrap();
        let times = |attr: &pb::Attr| (attr.mtime, attr.ctime, attr.atime);
        let now = || engine.get_attr(&pb::GetAttr { ino: made.ino, dir: made.dir }).unwrap().node.unwrap();
        let stat = file.metadata().unwrap();
        assert_eq!(
            made.mtime,
            std::os::unix::fs::MetadataExt::mtime(&stat) * 1_000_000_000
                + std::os::unix::fs::MetadataExt::mtime_nsec(&stat)
        );
        assert!(made.ctime >= made.mtime);
        assert_eq!(times(&now()), times(&made), "while it is open");
        drop(file);
        engine.close(SESSION, handle, unwritten).unwrap();
        disk.wait_until_sealed();
        // Who does not say that nothing was written may have written something: then the record is a new one.
        assert_eq!((now().size, now().mtime), (0, made.mtime));
        if unwritten {
            assert_eq!(times(&now()), times(&made), "when it is closed");
        }
    }
    // What was written is another matter.
    let q = pb::Create { dir: Ino::ROOT.0, name: (&b"c"[..]).into(), mode: 0o644, uid: 1, gid: 2, ino: 0 };
    let (answer, opening) = engine.create(SESSION, false, &q).unwrap();
    let Opening::File { handle, file } = opening else { panic!("a writer gets a descriptor") };
    file.write_all_at(b"text", 0).unwrap();
    drop(file);
    engine.close(SESSION, handle, false).unwrap();
    disk.wait_until_sealed();
    assert_eq!(engine.read(&[b"c"]).unwrap(), b"text");
    assert!(engine.resolve(&[b"c"]).unwrap().mtime >= answer.node.unwrap().mtime);
}
