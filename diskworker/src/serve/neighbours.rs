//! The other disks of this host. What one of them holds is read from its file, through a descriptor its worker passes: no
//! copy is made, and reading is as fast as from this disk. And what is written here goes to the one with the most room, by a
//! descriptor too.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use delugefs_proto::disk::short_id;
use delugefs_proto::ids::{ContentId, DiskId, random_u64};
use delugefs_proto::local::client::{Client, check, op};
use delugefs_proto::local_pb::{OpenContent, TakeContent, Unread, request};
use delugefs_proto::rundir;
use nix::sys::stat::fstat;
use parking_lot::Mutex;

use crate::engine::{Engine, PLACED_MIN_BYTES};
use crate::fetch::Wanted;
use crate::net::Net;
use crate::os;

/// For one message: more than a busy worker needs, and the longest that a stuck disk keeps a reader from other sources.
const PATIENCE: Duration = Duration::from_secs(2);
/// For a look at what could not be read: a failing disk tries for that long.
const UNREAD: Duration = Duration::from_secs(60);
/// A worker that did not answer is not asked again for so long.
const SULK: Duration = Duration::from_secs(30);
/// One that did not take a content.
const REFUSED: Duration = Duration::from_secs(3);
/// So much more of a disk must be free for a content to be copied there: two hundredths.
const WORTH: f64 = 0.02;
/// A worker that is taking a content is given up when it has not greeted so often, one time after the other.
const PROBES: u32 = 3;
/// The slowest that a disk may take a content, in bytes per second, after [`PATIENCE`].
const SLOW_BYTES_PER_S: u64 = 1 << 20;

/// See the module.
pub struct Neighbours {
    net: Arc<Net>,
    run_dir: PathBuf,
    /// Whom not to ask before.
    silent: Mutex<HashMap<DiskId, Instant>>,
    /// What was given to a disk since it last said how much is free, and what it said.
    given: Mutex<HashMap<DiskId, (u64, u64)>>,
    /// Bytes that are being given to a disk now.
    under_way: Mutex<HashMap<DiskId, u64>>,
}

impl Neighbours {
    /// The disks whose workers have their sockets in this folder.
    pub fn new(net: Arc<Net>, run_dir: PathBuf) -> Self {
        Self { net, run_dir, silent: Mutex::default(), given: Mutex::default(), under_way: Mutex::default() }
    }

    /// The content's file on another disk of this host.
    pub fn open(&self, wanted: &Wanted) -> Option<File> {
        self.net.holders(wanted.content).into_iter().find_map(|disk| {
            if !self.may_ask(disk) {
                return None;
            }
            match ask(&self.socket(disk), disk, wanted) {
                Ok(file) => Some(file),
                Err(error) => {
                    tracing::debug!(%error, "disk {} of this host does not give a content", short_id(&disk.to_hex()));
                    if is_silence(&error) {
                        self.silent.lock().insert(disk, Instant::now() + SULK);
                    }
                    None
                }
            }
        })
    }

    /// Somebody could not read this range of a content, which another disk of this host gave.
    pub fn unread(&self, content: ContentId, range: Range<u64>) {
        let (offset, length) = (range.start, range.end - range.start);
        let unread = Unread { content: content.0.to_vec().into(), offset, length, ..Unread::default() };
        for disk in self.net.holders(content).into_iter().filter(|disk| self.may_ask(*disk)) {
            let told = connect(&self.socket(disk), disk, PATIENCE).and_then(|mut client| {
                client.socket().set_read_timeout(Some(UNREAD))?;
                let (reply, _) =
                    client.call(&op(request::Op::Unread(unread.clone())), None).map_err(|error| error.0)?;
                check(reply).map(drop).map_err(io::Error::other)
            });
            if let Err(error) = told {
                tracing::debug!(%error, "disk {} of this host was not told of what it cannot read", short_id(&disk.to_hex()));
                if is_silence(&error) {
                    self.silent.lock().insert(disk, Instant::now() + SULK);
                }
            }
        }
    }

    /// Give a content that was written here to the disk that has the most room, if that is another one. Which one holds it
    /// now, durably.
    pub fn place(&self, engine: &Engine, content: ContentId, size: u64, file: &File) -> Option<DiskId> {
        let disk = self.best(engine, size)?;
        // Several are given at once: all of it must fit, and one may stand behind the others' syncs.
        let under_way = {
            let mut under_way = self.under_way.lock();
            let under_way = under_way.entry(disk).or_default();
            *under_way += size;
            *under_way
        };
        let take = TakeContent { content: content.0.to_vec().into(), size };
        let whole = Duration::from_secs(under_way / SLOW_BYTES_PER_S);
        let given = give(&self.socket(disk), disk, take, file, whole, PATIENCE);
        if let Some(under_way) = self.under_way.lock().get_mut(&disk) {
            *under_way -= size;
        }
        match given {
            Ok(()) => {
                self.given.lock().entry(disk).or_default().1 += size;
                self.silent.lock().remove(&disk);
                Some(disk)
            }
            Err(error) => {
                tracing::debug!(%error, "disk {} of this host does not take a content", short_id(&disk.to_hex()));
                let pause = if is_silence(&error) { SULK } else { REFUSED };
                self.silent.lock().insert(disk, Instant::now() + pause);
                None
            }
        }
    }

    /// Whether another disk of this host takes what is written next, however small.
    pub fn has_room(&self, engine: &Engine) -> bool {
        self.best(engine, PLACED_MIN_BYTES).is_some()
    }

    /// The disk with the most room for so many bytes, if that is another one.
    fn best(&self, engine: &Engine, size: u64) -> Option<DiskId> {
        let mates = self.net.roommates();
        if mates.is_empty() {
            return None;
        }
        let (marks, space) = (engine.marks().ok()?, engine.store.free_space().ok()?);
        // A disk that is to be emptied, or keeps nothing for others, takes only what nobody else can.
        let stays = !self.net.is_lazy() && !marks.contains_key(&engine.folder.disk_id());
        let own = stays.then_some((space.total, space.free));
        let others = mates.into_iter().filter(|(disk, ..)| !marks.contains_key(disk) && self.may_ask(*disk));
        let others = others.map(|(disk, total, free)| {
            (disk, total, free.saturating_sub(self.given_to(disk, free) + self.under_way(disk)))
        });
        roomiest(size, own, others)
    }

    /// What was given to it since it said that so much is free.
    fn given_to(&self, disk: DiskId, free: u64) -> u64 {
        let mut given = self.given.lock();
        let given = given.entry(disk).or_default();
        if given.0 != free {
            *given = (free, 0);
        }
        given.1
    }

    fn under_way(&self, disk: DiskId) -> u64 {
        self.under_way.lock().get(&disk).copied().unwrap_or(0)
    }

    fn may_ask(&self, disk: DiskId) -> bool {
        self.socket(disk).exists() && self.silent.lock().get(&disk).is_none_or(|until| *until <= Instant::now())
    }

    fn socket(&self, disk: DiskId) -> PathBuf {
        rundir::local_socket(&self.run_dir, short_id(&disk.to_hex()))
    }
}

/// Whether it gave no answer, rather than a wrong one.
fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The disk with the greatest part of it free, if that is so much more than here that it is worth a copy. `None`: here.
fn roomiest(size: u64, own: Option<(u64, u64)>, others: impl Iterator<Item = (DiskId, u64, u64)>) -> Option<DiskId> {
    let part = |total: u64, free: u64| free.saturating_sub(size) as f64 / total.max(1) as f64;
    let best = others
        .filter(|(_, _, free)| *free >= size)
        .map(|(disk, total, free)| (part(total, free), disk))
        .max_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)))?;
    let here = own.map_or(f64::NEG_INFINITY, |(total, free)| if free < size { -1.0 } else { part(total, free) });
    (best.0 > here + WORTH).then_some(best.1)
}

fn ask(socket: &Path, disk: DiskId, wanted: &Wanted) -> io::Result<File> {
    let mut client = connect(socket, disk, PATIENCE)?;
    let open = OpenContent { content: wanted.content.0.to_vec().into(), size: wanted.size };
    let (reply, fd) = client.call(&op(request::Op::OpenContent(open)), None).map_err(|error| error.0)?;
    check(reply).map_err(io::Error::other)?;
    let file = File::from(fd.ok_or_else(|| io::Error::other("no descriptor came"))?);
    let stat = fstat(&file)?;
    match os::is_regular(&stat) && stat.st_size as u64 == wanted.size {
        true => Ok(file),
        false => Err(io::Error::other("what came is not the content")),
    }
}

/// Have a disk take a content. It may need so long as a `whole`, but it must be there: a worker that hangs greets nobody either, and
/// who waits for `patience` for that, some times over, gives it up.
fn give(
    path: &Path,
    disk: DiskId,
    take: TakeContent,
    file: &File,
    whole: Duration,
    patience: Duration,
) -> io::Result<()> {
    let mut client = connect(path, disk, patience)?;
    let socket = client.socket();
    socket.set_read_timeout(Some(patience + whole))?;
    let take = op(request::Op::TakeContent(take));
    let (done, answer) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let gives = move || {
            let answered = client.call(&take, Some(file.as_fd()));
            drop(done.send(answered)); // who waited may have given up
        };
        // (`scope.spawn` would panic, and the file not be sealed.) That we have no thread is no silence of the disk.
        let given = std::thread::Builder::new().name("neighbour".into()).spawn_scoped(scope, gives);
        given.map_err(io::Error::other)?;
        let mut silent = 0;
        loop {
            match answer.recv_timeout(patience) {
                Ok(answered) => {
                    let (reply, _) = answered.map_err(|error| error.0)?;
                    return check(reply).map(drop).map_err(io::Error::other);
                }
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let is_silent = connect(path, disk, patience).is_err_and(|error| is_silence(&error));
            silent = if is_silent { silent + 1 } else { 0 };
            if silent == PROBES {
                socket.shutdown(std::net::Shutdown::Both)?;
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    })
}

fn connect(socket: &Path, disk: DiskId, patience: Duration) -> io::Result<Client> {
    let client = Client::connect_within(socket, random_u64(), patience)?;
    match client.welcome.disk_id == disk.to_hex() {
        true => Ok(client),
        false => Err(io::Error::other("another disk has its socket")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use delugefs_proto::local::{LOCAL_VERSION, frame};
    use delugefs_proto::local_pb::{Reply, Request, Welcome, reply};

    use super::*;

    /// It hangs before it greets, or after it has said that it takes the content.
    #[test]
    fn a_disk_that_hangs_is_given_up_however_large_the_content() {
        for greets in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let listener = UnixListener::bind(&path).unwrap();
            let disk = DiskId([7; 32]);
            let hanging = std::thread::spawn(move || {
                if greets {
                    let (socket, _) = listener.accept().unwrap();
                    let mut receiver = frame::Receiver::default();
                    receiver.receive::<Request>(&socket).unwrap().unwrap();
                    let (version, disk_id) = (LOCAL_VERSION, disk.to_hex());
                    let welcome = Welcome { version, disk_id, ..Welcome::default() };
                    let body = Some(reply::Body::Welcome(welcome));
                    frame::send(&socket, &Reply { body, ..Reply::default() }, None).unwrap();
                    receiver.receive::<Request>(&socket).unwrap().unwrap();
                    while receiver.receive::<Request>(&socket).is_ok_and(|more| more.is_some()) {}
                }
                listener
            });
            let take = TakeContent { content: vec![1; 32].into(), size: 1 << 40 };
            let (file, week) = (tempfile::tempfile().unwrap(), Duration::from_secs(7 * 24 * 3600));
            let error = give(&path, disk, take, &file, week, Duration::from_millis(50)).unwrap_err();
            assert!(is_silence(&error), "{error}");
            drop(hanging.join().unwrap());
        }
    }

    #[test]
    fn contents_go_where_the_greatest_part_is_free() {
        let disk = |n: u8| DiskId([n; 32]);
        let mut free = [(100_000_u64, 100_000_u64), (400_000, 400_000), (200_000, 150_000)];
        for _ in 0..500 {
            let others = [(disk(1), free[1].0, free[1].1), (disk(2), free[2].0, free[2].1)].into_iter();
            let at = roomiest(1000, Some(free[0]), others).map_or(0, |disk| disk.0[0] as usize);
            free[at].1 -= 1000;
        }
        for (total, free) in free {
            // 150,000 of 700,000 are left.
            assert!((free as f64 / total as f64 - 150.0 / 700.0).abs() < 0.03, "{free} of {total}");
        }
        // A little more elsewhere is not worth it; a full disk, or one that keeps nothing, gives what it can.
        let other = |free| [(disk(1), 100, free)].into_iter();
        assert_eq!(roomiest(10, Some((100, 60)), other(61)), None);
        assert_eq!(roomiest(10, Some((100, 5)), other(10)), Some(disk(1)));
        assert_eq!(roomiest(10, None, other(11)), Some(disk(1)));
        assert_eq!(roomiest(10, None, other(9)), None);
    }
}
