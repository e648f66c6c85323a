use super::*;
use crate::content::{Seal, Sealed};
use crate::folder::DiskFolder;
use delugefs_proto::ids::Ino;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Instant;
use tempfile::TempDir;

/// One at a time: the threads of one test shall not be taken for another's.
static ALONE: Mutex<()> = Mutex::new(());
const PATIENCE: Duration = Duration::from_secs(60);

struct Disk {
    swarm: Swarm,
    store: Arc<ContentStore>,
    /// Last, so that the session ends before its folder does.
    dir: TempDir,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = DiskFolder::create(&dir.path().join("disk"), "test", None).unwrap();
        let store = Arc::new(ContentStore::open(Arc::new(folder), 0).unwrap());
        Self { swarm: Swarm::start(store.clone()).unwrap(), dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("disk").join(name)
    }

    /// Write a file and seal it.
    fn seal(&self, bytes: &[u8]) -> Sealed {
        self.store.stage_new(Ino(77)).unwrap().write_all_at(bytes, 0).unwrap();
        let Seal::Large(job) = self.store.begin_seal(Ino(77)).unwrap() else { panic!("not large") };
        let sealed = job.run().unwrap();
        self.store.finish_seal(&sealed).unwrap();
        sealed
    }

    async fn activate(&self, sealed: &Sealed) -> FsResult<()> {
        self.swarm.activate(sealed.content, sealed.size, sealed.pieces.clone().unwrap()).await
    }

    async fn fetch(&self, sealed: &Sealed) -> FsResult<()> {
        self.swarm.fetch(sealed.content, sealed.size, sealed.pieces.clone().unwrap()).await
    }

    async fn meet(&self, other: &Disk, content: ContentId) {
        self.swarm.add_peer(content, SocketAddr::from(([127, 0, 0, 1], other.swarm.port().unwrap()))).await.unwrap();
    }

    /// What there is of one torrent, once it is as wanted.
    async fn wait_for(&self, content: ContentId, want: impl Fn(&ActiveTorrent) -> bool) -> ActiveTorrent {
        let begin = Instant::now();
        loop {
            let active = self.swarm.active().await.unwrap();
            let last = active.into_iter().find(|torrent| torrent.content == content);
            match last {
                Some(torrent) if want(&torrent) => return torrent,
                last => assert!(begin.elapsed() < PATIENCE, "waited in vain; last was {last:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn flip_a_bit(&self, content: ContentId, offset: u64) {
        let path = self.path(&format!("data/{:02x}/{content}", content.0[0]));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }

    fn incoming(&self) -> Vec<ContentId> {
        self.store.incoming().unwrap()
    }
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn run(test: impl Future<Output = ()>) {
    let _alone = ALONE.lock();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(PATIENCE * 3, test).await.expect("the test hangs") });
    runtime.shutdown_timeout(Duration::from_secs(5));
    // A thread that was joined may still be on its way out of the kernel's list: wait for the list to be without it. Those
    // that hash pieces are left out: tests of other modules have them at the same time.
    #[cfg(target_os = "linux")]
    {
        let begin = Instant::now();
        while let Some(name) = thread_left() {
            assert!(begin.elapsed() < PATIENCE, "a thread is left: {name}");
            std::thread::yield_now();
        }
    }
}

#[cfg(target_os = "linux")]
fn thread_left() -> Option<String> {
    fs::read_dir("/proc/self/task").unwrap().find_map(|task| {
        let name = fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
        ["swarm", "swarm-check", "swarm-pool"].contains(&name.trim()).then_some(name)
    })
}

#[test]
fn a_content_travels_from_one_disk_to_another() {
    run(async {
        let (one, other) = (Disk::new(), Disk::new());
        let sealed = one.seal(&noise(20 << 20, 5));
        assert_eq!(other.fetch(&sealed).await, Ok(()));
        assert_eq!(other.incoming(), [sealed.content]);
        assert_eq!(one.activate(&sealed).await, Ok(()));
        let seed = one.wait_for(sealed.content, |_| true).await;
        assert_eq!((seed.size, seed.have, seed.seeding, seed.error), (20 << 20, 20 << 20, true, None));
        other.meet(&one, sealed.content).await;
        assert_eq!(other.swarm.finished(sealed.content, PATIENCE).await, Ok(()));
        assert_eq!(other.incoming(), []);
        assert_eq!(other.store.has(sealed.content), Ok(Some(20 << 20)));
        other.store.check(sealed.content, 20 << 20).unwrap();
        // From now on it is offered there too, with the same info hash.
        let offered = other.wait_for(sealed.content, |torrent| torrent.seeding && torrent.error.is_none()).await;
        assert_eq!(offered.info_hash, seed.info_hash);
        let third = Disk::new();
        third.fetch(&sealed).await.unwrap();
        one.swarm.deactivate(sealed.content).await.unwrap();
        third.meet(&other, sealed.content).await;
        third.swarm.finished(sealed.content, PATIENCE).await.unwrap();
        third.store.check(sealed.content, 20 << 20).unwrap();
    });
}

#[test]
fn peers_are_brought_by_a_stream_of_ours() {
    run(async {
        let (one, other) = (Disk::new(), Disk::new());
        let sealed = one.seal(&noise(6 << 20, 11));
        one.activate(&sealed).await.unwrap();
        other.fetch(&sealed).await.unwrap();
        let (left, right) = tokio::io::duplex(100_000);
        // The connection ends by itself when neither needs the other any more.
        let (one_end, other_end, done) = tokio::join!(
            one.swarm.attach(sealed.content, left),
            other.swarm.attach(sealed.content, right),
            other.swarm.finished(sealed.content, PATIENCE),
        );
        assert_eq!((one_end, other_end, done), (Ok(()), Ok(()), Ok(())));
        other.store.check(sealed.content, sealed.size).unwrap();
    });
}

#[test]
fn a_rotten_source_never_makes_a_wrong_content() {
    run(async {
        let (rotten, good, other) = (Disk::new(), Disk::new(), Disk::new());
        let bytes = noise(8 << 20, 6);
        let sealed = rotten.seal(&bytes);
        rotten.flip_a_bit(sealed.content, 3 << 20);
        rotten.activate(&sealed).await.unwrap();
        other.fetch(&sealed).await.unwrap();
        other.meet(&rotten, sealed.content).await;
        let piece = u64::from(delugefs_proto::limits::piece_length_bytes(sealed.size));
        other.wait_for(sealed.content, |torrent| torrent.have > 0 && torrent.have <= sealed.size - piece).await;
        let early = other.swarm.finished(sealed.content, Duration::from_secs(3)).await;
        assert_eq!(early.unwrap_err().errno, Errno::ETIMEDOUT);
        assert_eq!(other.store.has(sealed.content), Ok(None));
        // A good source completes it; what came from the other one is still used.
        good.seal(&bytes);
        good.activate(&sealed).await.unwrap();
        other.meet(&good, sealed.content).await;
        other.swarm.finished(sealed.content, PATIENCE).await.unwrap();
        other.store.check(sealed.content, sealed.size).unwrap();
    });
}

#[test]
fn a_wrong_catalog_is_found_out_by_the_sha256() {
    run(async {
        let (one, other) = (Disk::new(), Disk::new());
        let sealed = one.seal(&noise(5 << 20, 7));
        let lie = ContentId([7; 32]);
        // The piece hashes are of other bytes than the name says: both disks believe the same lie.
        fs::create_dir_all(one.path("data/07")).unwrap();
        let from = one.path(&format!("data/{:02x}/{}", sealed.content.0[0], sealed.content));
        fs::copy(from, one.path(&format!("data/07/{lie}"))).unwrap();
        let pieces = sealed.pieces.clone().unwrap();
        one.swarm.activate(lie, sealed.size, pieces.clone()).await.unwrap();
        other.swarm.fetch(lie, sealed.size, pieces).await.unwrap();
        other.meet(&one, lie).await;
        let error = other.swarm.finished(lie, PATIENCE).await.unwrap_err();
        assert!(error.errno == Errno::EIO && error.message.contains("SHA-256"), "{error}");
        assert_eq!((other.store.has(lie), other.incoming()), (Ok(None), vec![]));
        let failed = other.wait_for(lie, |torrent| torrent.error.is_some()).await;
        assert!(!failed.seeding);
    });
}

#[test]
fn only_what_is_missing_travels() {
    run(async {
        let (one, other) = (Disk::new(), Disk::new());
        let bytes = noise(16 << 20, 8);
        let sealed = one.seal(&bytes);
        // As an earlier attempt, or the previous version of the file, left it.
        let file = other.store.incoming_file(sealed.content, sealed.size).unwrap();
        file.write_all_at(&bytes[..12 << 20], 0).unwrap();
        file.write_all_at(&[0; 10], 5 << 20).unwrap();
        drop(file);
        other.fetch(&sealed).await.unwrap();
        let piece = u64::from(delugefs_proto::limits::piece_length_bytes(sealed.size));
        other.wait_for(sealed.content, |torrent| torrent.have == (12 << 20) - piece).await;
        other.swarm.deactivate(sealed.content).await.unwrap();
        assert_eq!((other.swarm.active().await.unwrap(), other.incoming()), (vec![], vec![sealed.content]));
        one.activate(&sealed).await.unwrap();
        other.fetch(&sealed).await.unwrap();
        other.meet(&one, sealed.content).await;
        other.swarm.finished(sealed.content, PATIENCE).await.unwrap();
        other.store.check(sealed.content, sealed.size).unwrap();
    });
}

/// It is offered as long as somebody is connected: who fetches it anew was told that it is here.
#[test]
fn what_was_set_aside_while_it_was_offered_is_fetched_anew() {
    run(async {
        let (one, other) = (Disk::new(), Disk::new());
        let bytes = noise(5 << 20, 12);
        let sealed = one.seal(&bytes);
        other.seal(&bytes);
        one.activate(&sealed).await.unwrap();
        one.flip_a_bit(sealed.content, 1 << 20);
        assert_eq!(one.store.verify(sealed.content, sealed.size).unwrap_err().errno, Errno::EIO);
        assert_eq!(one.store.has(sealed.content), Ok(None));
        one.fetch(&sealed).await.unwrap();
        one.wait_for(sealed.content, |torrent| !torrent.seeding).await;
        other.activate(&sealed).await.unwrap();
        one.meet(&other, sealed.content).await;
        one.swarm.finished(sealed.content, PATIENCE).await.unwrap();
        one.store.check(sealed.content, sealed.size).unwrap();
    });
}

#[test]
fn listing_refusals_and_the_end() {
    run(async {
        let one = Disk::new();
        let many: Vec<Sealed> = (0..5).map(|n| one.seal(&noise((4 << 20) + 1 + n, n as u64))).collect();
        assert_eq!(one.swarm.active().await.unwrap(), []);
        let all = many.iter().map(|sealed| one.activate(sealed));
        for started in futures(all).await {
            started.unwrap();
        }
        let mut contents: Vec<_> = many.iter().map(|sealed| sealed.content).collect();
        contents.sort();
        let listed: Vec<_> = one.swarm.active().await.unwrap().iter().map(|torrent| torrent.content).collect();
        assert_eq!(listed, contents);
        one.activate(&many[0]).await.unwrap();
        // What is held is not fetched again.
        one.fetch(&many[0]).await.unwrap();
        one.swarm.finished(many[0].content, PATIENCE).await.unwrap();
        one.swarm.deactivate(many[0].content).await.unwrap();
        one.swarm.deactivate(many[0].content).await.unwrap();
        one.fetch(&many[0]).await.unwrap();
        one.swarm.finished(many[0].content, PATIENCE).await.unwrap();
        assert!(one.wait_for(many[0].content, |torrent| torrent.seeding).await.have == many[0].size);
        assert_eq!(one.incoming(), []);

        let unknown = ContentId([1; 32]);
        let pieces = many[0].pieces.clone().unwrap();
        assert_eq!(one.swarm.activate(unknown, many[0].size, pieces.clone()).await.unwrap_err().errno, Errno::ENOENT);
        assert_eq!(one.swarm.activate(unknown, 1, pieces.clone()).await.unwrap_err().errno, Errno::EINVAL);
        assert_eq!(one.swarm.fetch(unknown, 1 << 45, Bytes::new()).await.unwrap_err().errno, Errno::EINVAL);
        let huge = 1 << 43;
        let hashes = vec![0; delugefs_proto::limits::piece_count(huge) as usize * 20].into();
        assert_eq!(one.swarm.fetch(unknown, huge, hashes).await.unwrap_err().errno, Errno::ENOSPC);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(one.swarm.add_peer(ContentId([2; 32]), nowhere).await.unwrap_err().errno, Errno::ENOENT);
        assert_eq!(one.swarm.add_peer(many[1].content, nowhere).await.unwrap_err().errno, Errno::ECONNREFUSED);
        let waiting = one.swarm.finished(ContentId([2; 32]), PATIENCE).await;
        assert_eq!(waiting.unwrap_err().errno, Errno::ENOENT);

        one.swarm.shutdown();
        assert_eq!(one.swarm.active().await.unwrap_err().errno, Errno::ESHUTDOWN);
        assert_eq!(std::fs::read_dir(one.path("incoming/.session")).unwrap().count(), 0);
    });
}

async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    let mut done = Vec::new();
    // Polled together: each is begun before the first is done.
    std::future::poll_fn(|cx| {
        all.retain_mut(|one| match one.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => {
                done.push(value);
                false
            }
            std::task::Poll::Pending => true,
        });
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done
}

#[test]
fn a_seed_whose_file_cannot_be_read_fails_visibly() {
    run(async {
        let (one, other) = (Disk::new(), Disk::new());
        let sealed = one.seal(&noise(5 << 20, 9));
        one.activate(&sealed).await.unwrap();
        // The file is cut off under the torrent, as a failing disk might read.
        let path = one.path(&format!("data/{:02x}/{}", sealed.content.0[0], sealed.content));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        other.fetch(&sealed).await.unwrap();
        other.meet(&one, sealed.content).await;
        let failed = one.wait_for(sealed.content, |torrent| torrent.error.is_some()).await;
        assert_eq!(failed.error.unwrap().errno, Errno::EIO);
        assert_eq!(one.activate(&sealed).await.unwrap_err().errno, Errno::EIO);
        assert_eq!(other.store.has(sealed.content), Ok(None));
    });
}
