//! Programs at work on the mounts of all hosts while things go wrong, and what they know: which files they closed, with the
//! SHA-256 of their content. A file is written under a passing name and renamed when it is whole, as careful programs do;
//! so under a final name there is all of it or nothing, or all of the one before. Every writer also reads what the others say they have closed.
//!
//! A call may fail when the mount's frontend is dead ("not connected"), and then both outcomes are right. Any other failure
//! is recorded, and so is a wrong byte, whenever it is seen.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;

use crate::e2e::Random;

/// Files a writer makes at most: about 30 MiB.
const FILES_MAX: u32 = 200;
/// Pause after a file, so that the machine has time for what is tested.
const PAUSE: Duration = Duration::from_millis(25);

/// SHA-256 and length.
pub type Digest = ([u8; 32], usize);

/// What a name must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// This content.
    Closed(Digest),
    /// No file.
    Removed,
    /// This content or no file: the call that decides was cut short.
    Unsure(Digest),
    /// The first content or the second: the same.
    Either(Digest, Digest),
}

/// Every name that was ever made, below the mount.
pub type Manifest = BTreeMap<String, Known>;

/// Running writers, one for each mount.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    manifest: Mutex<Manifest>,
    /// What names have or had: others may see that for a while, also when it is replaced or removed.
    ever: Mutex<BTreeMap<String, Vec<Digest>>>,
    failures: Mutex<Vec<String>>,
}

/// What a content is known by.
pub fn digest(content: &[u8]) -> Digest {
    let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
    (sha256.as_ref().try_into().unwrap(), content.len())
}

impl Load {
    /// Begin to write below `h0`, `h1`, ... of these mounts; the folders are there.
    pub fn start(mounts: &[PathBuf], seed: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = mounts.iter().enumerate().map(|(number, mount)| {
            let random = Random::new(seed ^ (number as u64 + 1).wrapping_mul(0x1234_5678_9abc_def1));
            let mut writer = Writer { shared: shared.clone(), number, mount: mount.clone(), random };
            std::thread::Builder::new().name(format!("writer {number}")).spawn(move || writer.work()).unwrap()
        });
        Self { threads: threads.collect(), shared }
    }

    /// What went wrong so far.
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().unwrap().clone()
    }

    /// End them; all that they know.
    pub fn stop(mut self) -> Manifest {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a writer panicked");
        }
        self.shared.manifest.lock().unwrap().clone()
    }
}

impl Drop for Load {
    /// Not joined: a call may hang until the lab has ended its mount.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

/// What a mount has that it must not have, and what it lacks, of all that was written. Empty when all is well.
pub fn differences(manifest: &Manifest, mount: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, known) in manifest {
        let found = match fs::read(mount.join(name)) {
            Ok(content) => Some(digest(&content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let right = match known {
            Known::Closed(digest) => found == Some(*digest),
            Known::Removed => found.is_none(),
            Known::Unsure(digest) => found.is_none_or(|found| found == *digest),
            Known::Either(one, other) => found.is_some_and(|found| found == *one || found == *other),
        };
        if !right {
            wrong.push(format!("{name}: {}, but {known:?}", found.map_or("no file".into(), |d| format!("{d:?}"))));
        }
    }
    wrong
}

struct Writer {
    shared: Arc<Shared>,
    number: usize,
    mount: PathBuf,
    random: Random,
}

impl Writer {
    fn work(&mut self) {
        let mut mounted = None;
        let mut files = 0;
        while files < FILES_MAX && !self.shared.stop.load(Ordering::SeqCst) {
            let Some((_, base)) = &mounted else {
                mounted = attach(&self.mount).ok();
                std::thread::sleep(PAUSE);
                continue;
            };
            let base = base.clone();
            files += 1;
            let name = match self.random.one_in(4) {
                true => self.own().map(|(name, digest)| (name, Some(digest))),
                false => None,
            };
            let (name, before) = name.unwrap_or_else(|| (format!("h{}/f{files}", self.number), None));
            let done = self.write(&base, files, &name, before).and_then(|()| self.read(&base));
            let done = done.and_then(|()| if self.random.one_in(5) { self.remove(&base) } else { Ok(()) });
            if done.is_err() {
                mounted = None;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn know(&self, name: &str, known: Known) {
        self.shared.manifest.lock().unwrap().insert(name.into(), known);
    }

    /// The call's result; a failure that cannot be explained by a dead frontend is recorded. EIO is what the kernel says when the
    /// frontend was killed while it took the request; an EIO of its own is in its log, which is looked at in the end.
    fn result<T>(&self, what: &str, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            let gone = [Errno::ENOTCONN, Errno::ECONNABORTED, Errno::ENODEV, Errno::EIO];
            if !gone.iter().any(|errno| error.raw_os_error() == Some(*errno as i32)) {
                self.fail(format!("{what}: {error}"));
            }
        })
    }

    fn fail(&self, what: String) {
        self.shared.failures.lock().unwrap().push(format!("on host {}: {what}", self.number));
    }

    /// One of its own files.
    fn own(&mut self) -> Option<(String, Digest)> {
        let own = format!("h{}/", self.number);
        let closed = |(name, known): (&String, &Known)| match known {
            Known::Closed(digest) if name.starts_with(&own) => Some((name.clone(), *digest)),
            _ => None,
        };
        let closed: Vec<_> = self.shared.manifest.lock().unwrap().iter().filter_map(closed).collect();
        self.random.pick(&closed).cloned()
    }

    /// A new file, or one in the place of one that has this content.
    fn write(&mut self, base: &Path, number: u32, name: &str, before: Option<Digest>) -> io::Result<()> {
        let bound = match self.random.below(12) {
            0 => 6 << 20,
            1..=3 => 400 << 10,
            _ => 8 << 10,
        };
        let size = self.random.below(bound) as usize;
        let content = self.random.bytes(size);
        // What a dead frontend has left unfinished is under another number.
        let (passing, last) = (base.join(format!("{name}.{number}.part")), base.join(name));
        let writing = || -> io::Result<()> {
            let mut file = File::create_new(&passing)?;
            content.chunks(1 << 20).try_for_each(|piece| file.write_all(piece))
        };
        self.result(&format!("writing {name}"), writing())?;
        let digest = digest(&content);
        self.shared.ever.lock().unwrap().entry(name.into()).or_default().push(digest);
        self.know(name, before.map_or(Known::Unsure(digest), |before| Known::Either(before, digest)));
        self.result(&format!("renaming to {name}"), fs::rename(&passing, &last))?;
        self.know(name, Known::Closed(digest));
        Ok(())
    }

    /// Read a file of any host: late (an older content too) and failing is allowed, wrong is not.
    fn read(&mut self, base: &Path) -> io::Result<()> {
        let closed: Vec<(String, Digest)> = {
            let manifest = self.shared.manifest.lock().unwrap();
            let closed = |(name, known): (&String, &Known)| match known {
                Known::Closed(digest) => Some((name.clone(), *digest)),
                _ => None,
            };
            manifest.iter().filter_map(closed).collect()
        };
        let Some((name, expected)) = self.random.pick(&closed) else { return Ok(()) };
        match fs::read(base.join(name)) {
            Ok(content) if digest(&content) != *expected && !self.had(name, &digest(&content)) => {
                let zeros = content.iter().rev().take_while(|byte| **byte == 0).count();
                let found = format!("{} bytes instead of {}, the last {zeros} are 0", content.len(), expected.1);
                let again = fs::read(base.join(name)).map(|content| digest(&content) == *expected);
                self.fail(format!("{name} has wrong bytes: {found}; right a moment later: {again:?}"));
            }
            Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => return Err(error),
            _ => {}
        }
        Ok(())
    }

    /// Whether the name has had this content at any time.
    fn had(&self, name: &str, found: &Digest) -> bool {
        self.shared.ever.lock().unwrap().get(name).is_some_and(|ever| ever.contains(found))
    }

    /// Remove one of its own files.
    fn remove(&mut self, base: &Path) -> io::Result<()> {
        let Some((name, digest)) = self.own() else { return Ok(()) };
        self.know(&name, Known::Unsure(digest));
        self.result(&format!("removing {name}"), fs::remove_file(base.join(&name)))?;
        self.know(&name, Known::Removed);
        Ok(())
    }
}

/// Hold the mount: by a descriptor, so that no path leads into the folder below when the mount is gone for a moment.
fn attach(mount: &Path) -> io::Result<(File, PathBuf)> {
    let root = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY).open(mount)?;
    if root.metadata()?.dev() == fs::metadata(mount.parent().unwrap())?.dev() {
        return Err(io::Error::other("nothing is mounted"));
    }
    let path = format!("/proc/self/fd/{}", root.as_raw_fd()).into();
    Ok((root, path))
}
