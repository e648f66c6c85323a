//! Programs at work on the mount: threads that each have a folder of their own there, do what programs do with files,
//! and know after every call what must be there ([`Shelf`]).
//!
//! A worker that dies must not make any call fail. When a frontend dies, calls fail with "not connected"; then a writer
//! waits for the mount to come back, looks which of the two possible outcomes of the call that was cut short is there,
//! and goes on from that. Anything else is recorded as a failure.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

use super::random::Random;
use super::shelf::{FileId, Shelf};
use super::{tree, wait_for};

/// Names a writer has at most.
const NAMES_MAX: usize = 48;
/// What it did last, so many, is told with a failure.
const LAST_MAX: usize = 24;
/// Folders a writer uses below its own.
const FOLDERS: [&str; 3] = ["", "a/", "b/"];

/// Running writers.
pub struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Shelf>>,
}

#[derive(Default)]
struct Shared {
    mount: PathBuf,
    stop: AtomicBool,
    /// A frontend may be dead: "not connected" is no surprise.
    shaky: AtomicBool,
    /// Every writer is to compare its folder with its shelf when this grows.
    round: AtomicU64,
    checked: Vec<AtomicU64>,
    operations: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Writers {
    /// Start this many on the mount.
    pub fn start(mount: &Path, count: usize, seed: u64) -> Self {
        let checked = (0..count).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared { mount: mount.into(), checked, ..Shared::default() });
        let threads = (0..count).map(|number| {
            let shared = shared.clone();
            let random = Random::new(seed ^ (number as u64 + 1).wrapping_mul(0x1234_5678_9abc_def1));
            let body = move || Writer::new(shared, number, random).work();
            std::thread::Builder::new().name(format!("writer {number}")).spawn(body).unwrap()
        });
        Self { threads: threads.collect(), shared }
    }

    /// From now on a frontend may die, or not any more.
    pub fn expect_lost_frontend(&self, may_be_lost: bool) {
        self.shared.shaky.store(may_be_lost, Ordering::SeqCst);
    }

    /// Have every writer compare all it wrote with what is there; the failures so far.
    pub fn check(&self, why: impl Fn() -> String) -> Vec<String> {
        let round = self.shared.round.fetch_add(1, Ordering::SeqCst) + 1;
        let why = || format!("{}\n{}", self.failures().join("\n"), why());
        wait_for("the writers to compare", why, || {
            self.shared.checked.iter().all(|checked| checked.load(Ordering::SeqCst) >= round)
                || !self.failures().is_empty()
        });
        self.failures()
    }

    /// What went wrong.
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().unwrap().clone()
    }

    /// Calls that changed something so far.
    pub fn operations(&self) -> u64 {
        self.shared.operations.load(Ordering::Relaxed)
    }

    /// End them; what each knows to be in its folder (`w0`, `w1`, ...), and the failures.
    pub fn stop(self) -> (Vec<Shelf>, Vec<String>) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let shelves = self.threads.into_iter().map(|thread| thread.join().expect("a writer panicked")).collect();
        let failures = std::mem::take(&mut *self.shared.failures.lock().unwrap());
        (shelves, failures)
    }
}

/// The call did not succeed; the operation ends.
struct Cut;

struct Writer {
    shared: Arc<Shared>,
    number: usize,
    random: Random,
    shelf: Shelf,
    /// Other outcomes of the call that was cut short.
    doubt: Vec<Shelf>,
    base: Option<(File, PathBuf)>,
    /// A file that stays open for appending.
    log: Option<(File, FileId)>,
    names: u64,
    /// What it did last, the newest at the end.
    last: VecDeque<String>,
}

impl Writer {
    fn new(shared: Arc<Shared>, number: usize, random: Random) -> Self {
        let (shelf, last) = (Shelf::default(), VecDeque::new());
        Self { shared, number, random, shelf, doubt: Vec::new(), base: None, log: None, names: 0, last }
    }

    fn work(mut self) -> Shelf {
        while !self.shared.stop.load(Ordering::SeqCst) && self.shared.failures.lock().unwrap().is_empty() {
            if self.base.is_none() && !self.connect() {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            let round = self.shared.round.load(Ordering::SeqCst);
            if self.shared.checked[self.number].load(Ordering::SeqCst) < round {
                if self.compare() {
                    self.shared.checked[self.number].store(round, Ordering::SeqCst);
                }
                continue;
            }
            let _cut_or_not = self.operate();
            self.shelf.tidy();
        }
        self.shelf.tidy();
        self.shelf
    }

    fn fail(&self, what: String) {
        let last = self.last.iter().map(String::as_str).collect::<Vec<_>>().join("; ");
        self.shared.failures.lock().unwrap().push(format!("writer {}: {what} (last: {last})", self.number));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.as_ref().map_or_else(PathBuf::new, |(_, path)| path.join(name))
    }

    /// Get hold of the mount: a descriptor of its root, so that no path leads into the folder below when the mount is
    /// gone for a moment.
    fn connect(&mut self) -> bool {
        let open = || -> io::Result<(File, PathBuf)> {
            let root = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY).open(&self.shared.mount)?;
            let outside = fs::metadata(self.shared.mount.parent().unwrap())?;
            if root.metadata()?.dev() == outside.dev() {
                return Err(io::Error::other("nothing is mounted"));
            }
            let path = match cfg!(target_os = "linux") {
                true => format!("/proc/self/fd/{}", root.as_raw_fd()).into(),
                false => self.shared.mount.clone(),
            };
            let base = path.join(format!("w{}", self.number));
            for dir in ["", "a", "b"] {
                match fs::create_dir(base.join(dir)) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
            }
            Ok((root, base))
        };
        match open() {
            Ok(base) => {
                self.base = Some(base);
                self.shelf.dirs.extend(["a".into(), "b".into()]);
                self.doubt.iter_mut().for_each(|shelf| shelf.dirs.extend(["a".into(), "b".into()]));
                self.doubt.is_empty() || self.compare()
            }
            Err(error) => {
                if !self.shared.shaky.load(Ordering::SeqCst) {
                    self.fail(format!("cannot use the mount: {error}"));
                }
                false
            }
        }
    }

    fn does(&mut self, what: &str) {
        if self.last.len() == LAST_MAX {
            self.last.pop_front();
        }
        self.last.push_back(what.to_owned());
    }

    /// Compare everything with what must be there.
    fn compare(&mut self) -> bool {
        let tree = match tree::read(&self.path("")) {
            Ok(tree) => tree,
            Err(error) => return self.lost("reading everything", &error),
        };
        let mut reasons = Vec::new();
        for shelf in std::iter::once(&self.shelf).chain(&self.doubt) {
            match shelf.matches(&tree) {
                Ok(found) => {
                    self.shelf = found;
                    self.doubt.clear();
                    return true;
                }
                Err(reason) => reasons.push(reason),
            }
        }
        let again = match tree::read(&self.path("")) {
            Ok(tree) => self.shelf.matches(&tree).map_or_else(|what| what, |_| "all is well".into()),
            Err(error) => error.to_string(),
        };
        self.fail(format!("{}; a moment later: {again}", reasons.join("; or ")));
        false
    }

    /// A call failed: is it no surprise? The mount is looked for anew then. Always false.
    fn lost(&mut self, what: &str, error: &io::Error) -> bool {
        // EIO: of a request that the process was just reading when it was killed (the kernel's fs/fuse/dev.c).
        let gone = [Errno::ENOTCONN, Errno::ECONNABORTED, Errno::ENODEV, Errno::EIO].map(|errno| errno as i32);
        let expected = error.raw_os_error().is_some_and(|errno| gone.contains(&errno));
        if !(expected && self.shared.shaky.load(Ordering::SeqCst)) {
            self.fail(format!("{what}: {error}"));
        }
        self.base = None;
        self.log = None;
        false
    }

    /// Make a call that changes something.
    fn step<T>(
        &mut self,
        what: String,
        call: impl FnOnce(&Self) -> io::Result<T>,
        change: impl FnOnce(&mut Shelf),
    ) -> Result<T, Cut> {
        self.does(&what);
        let result = call(self);
        self.shared.operations.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(done) => {
                change(&mut self.shelf);
                Ok(done)
            }
            Err(error) => {
                let mut after = self.shelf.clone();
                change(&mut after);
                self.doubt.push(after);
                self.lost(&what, &error);
                Err(Cut)
            }
        }
    }

    fn write(&mut self, file: &File, id: FileId, offset: usize, bytes: Vec<u8>) -> Result<(), Cut> {
        let what = format!("writing {} bytes at {offset} of file {id}", bytes.len());
        self.does(&what);
        self.shared.operations.fetch_add(1, Ordering::Relaxed);
        match file.write_all_at(&bytes, offset as u64) {
            Ok(()) => {
                self.shelf.write(id, offset, &bytes);
                Ok(())
            }
            Err(error) => {
                let file = self.shelf.file(id);
                (file.partial, file.mtime) = (Some((offset, Arc::new(bytes))), None);
                self.lost(&what, &error);
                Err(Cut)
            }
        }
    }

    fn fsync(&mut self, file: &File) -> Result<(), Cut> {
        self.step("fsync".into(), |_| file.sync_all(), |_| {})
    }

    fn size(&mut self) -> usize {
        let bound = match self.random.below(40) {
            0 => 6 << 20,
            1..=3 => 2 << 20,
            4..=9 => 200 << 10,
            10..=19 => 9000,
            _ => 4100,
        };
        self.random.below(bound) as usize
    }

    fn new_name(&mut self) -> String {
        self.names += 1;
        format!("{}n{}", FOLDERS[self.random.below(3) as usize], self.names)
    }

    fn a_name(&mut self) -> Option<String> {
        let names: Vec<&String> = self.shelf.names.keys().filter(|name| *name != "log").collect();
        self.random.pick(&names).map(|name| (*name).clone())
    }

    fn create(&mut self, name: &str) -> Result<(File, FileId), Cut> {
        let id = self.shelf.next_id();
        let create = |w: &Self| OpenOptions::new().read(true).write(true).create_new(true).open(w.path(name));
        let file = self.step(format!("creating {name}"), create, |shelf| {
            shelf.create(name);
        })?;
        Ok((file, id))
    }

    /// In pieces, as programs write.
    fn fill(&mut self, file: &File, id: FileId) -> Result<(), Cut> {
        let size = self.size();
        let piece = (size / (1 + self.random.below(3) as usize)).max(1);
        let mut at = 0;
        while at < size {
            let len = piece.min(size - at);
            let bytes = self.random.bytes(len);
            self.write(file, id, at, bytes)?;
            at += len;
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Cut> {
        let call = |w: &Self| fs::rename(w.path(from), w.path(to));
        self.step(format!("renaming {from} to {to}"), call, |shelf| shelf.rename(from, to))
    }

    fn unlink(&mut self, name: &str) -> Result<(), Cut> {
        let call = |w: &Self| fs::remove_file(w.path(name));
        self.step(format!("removing {name}"), call, |shelf| {
            shelf.names.remove(name);
        })
    }

    /// One thing programs do.
    fn operate(&mut self) -> Result<(), Cut> {
        if self.shelf.names.len() > NAMES_MAX
            && let Some(name) = self.a_name()
        {
            return self.unlink(&name);
        }
        match self.random.below(32) {
            0..=5 => {
                let name = self.new_name();
                let (file, id) = self.create(&name)?;
                self.fill(&file, id)?;
                if self.random.one_in(6) {
                    self.fsync(&file)?;
                }
                if self.random.one_in(8) {
                    let other = self.new_name();
                    self.rename(&name, &other)?;
                    let bytes = self.random.bytes(100);
                    self.write(&file, id, 10, bytes)?;
                }
                Ok(())
            }
            6..=8 => {
                // As editors save: all of it under another name, then in place of the old one.
                let to = self.a_name().filter(|_| !self.random.one_in(4));
                let to = to.unwrap_or_else(|| self.new_name());
                let temporary = self.new_name();
                let (file, id) = self.create(&temporary)?;
                self.fill(&file, id)?;
                if self.random.one_in(3) {
                    self.fsync(&file)?;
                }
                drop(file);
                self.rename(&temporary, &to)
            }
            9..=11 => self.overwrite(),
            12..=14 => self.patch(),
            15..=16 => self.append(),
            17 => {
                let Some(name) = self.a_name() else { return Ok(()) };
                let (id, size) = (self.shelf.names[&name], self.size().min(100_000));
                let call = |w: &Self| nix::unistd::truncate(&w.path(&name), size as i64).map_err(Into::into);
                self.step(format!("truncating {name} to {size}"), call, |shelf| shelf.resize(id, size))
            }
            18..=19 => {
                let Some(name) = self.a_name() else { return Ok(()) };
                let link = self.new_name();
                let call = |w: &Self| fs::hard_link(w.path(&name), w.path(&link));
                self.step(format!("linking {name} as {link}"), call, |shelf| {
                    shelf.names.insert(link.clone(), shelf.names[&name]);
                })
            }
            20..=21 => match (self.a_name(), self.random.one_in(3)) {
                (Some(from), false) => {
                    let to = self.new_name();
                    self.rename(&from, &to)
                }
                (Some(from), true) => match self.a_name() {
                    Some(to) => self.rename(&from, &to),
                    None => Ok(()),
                },
                _ => Ok(()),
            },
            22 => self.exchange(),
            23 => match self.a_name() {
                Some(name) => self.unlink(&name),
                None => Ok(()),
            },
            24 => self.attributes(),
            25 => self.folder(),
            26 => self.nameless(),
            27..=29 => self.append_to_log(),
            _ => self.read_back(),
        }
    }

    fn overwrite(&mut self) -> Result<(), Cut> {
        let Some(name) = self.a_name() else { return Ok(()) };
        let id = self.shelf.names[&name];
        let open = |w: &Self| OpenOptions::new().write(true).truncate(true).open(w.path(&name));
        let file = self.step(format!("emptying {name}"), open, |shelf| shelf.resize(id, 0))?;
        self.fill(&file, id)
    }

    fn patch(&mut self) -> Result<(), Cut> {
        let Some(name) = self.a_name() else { return Ok(()) };
        let id = self.shelf.names[&name];
        let open = |w: &Self| OpenOptions::new().read(true).write(true).open(w.path(&name));
        let file = self.step(format!("opening {name}"), open, |_| {})?;
        for _ in 0..self.random.below(3) {
            let size = self.shelf.files[&id].bytes.len();
            let at = self.random.below(size as u64 + 50) as usize;
            let len = 1 + self.random.below(5000) as usize;
            let bytes = self.random.bytes(len);
            self.write(&file, id, at, bytes)?;
        }
        if self.random.one_in(5) {
            let size = self.random.below(10_000) as usize;
            let call = |_: &Self| file.set_len(size as u64);
            self.step(format!("truncating open {name} to {size}"), call, |shelf| shelf.resize(id, size))?;
        }
        if self.random.one_in(6) {
            self.fsync(&file)?;
        }
        Ok(())
    }

    fn append(&mut self) -> Result<(), Cut> {
        let Some(name) = self.a_name() else { return Ok(()) };
        let id = self.shelf.names[&name];
        let open = |w: &Self| OpenOptions::new().append(true).open(w.path(&name));
        let file = self.step(format!("opening {name} to append"), open, |_| {})?;
        self.append_some(&file, id)
    }

    fn append_some(&mut self, mut file: &File, id: FileId) -> Result<(), Cut> {
        let len = 1 + self.random.below(3000) as usize;
        let bytes = self.random.bytes(len);
        let at = self.shelf.files[&id].bytes.len();
        let what = format!("appending {len} bytes to file {id} of {at}");
        self.does(&what);
        self.shared.operations.fetch_add(1, Ordering::Relaxed);
        match file.write_all(&bytes) {
            Ok(()) => {
                self.shelf.write(id, at, &bytes);
                Ok(())
            }
            Err(error) => {
                let file = self.shelf.file(id);
                (file.partial, file.mtime) = (Some((at, Arc::new(bytes))), None);
                self.lost(&what, &error);
                Err(Cut)
            }
        }
    }

    fn append_to_log(&mut self) -> Result<(), Cut> {
        if self.log.is_none() {
            let known = self.shelf.names.get("log").copied();
            let id = known.unwrap_or_else(|| self.shelf.next_id());
            let open = |w: &Self| OpenOptions::new().append(true).create(true).open(w.path("log"));
            let create = |shelf: &mut Shelf| {
                if known.is_none() {
                    shelf.create("log");
                }
            };
            let file = self.step("opening the log".into(), open, create)?;
            self.log = Some((file, id));
        }
        let Some((file, id)) = self.log.take() else { return Ok(()) };
        self.append_some(&file, id)?;
        if self.random.one_in(4) {
            self.fsync(&file)?;
        }
        self.log = Some((file, id));
        Ok(())
    }

    fn exchange(&mut self) -> Result<(), Cut> {
        let (Some(one), Some(other)) = (self.a_name(), self.a_name()) else { return Ok(()) };
        #[cfg(target_os = "linux")]
        {
            use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
            let call = |w: &Self| {
                let (one, other) = (w.path(&one), w.path(&other));
                Ok(renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE)?)
            };
            self.step(format!("exchanging {one} and {other}"), call, |shelf| shelf.exchange(&one, &other))
        }
        #[cfg(not(target_os = "linux"))]
        self.rename(&one, &other)
    }

    fn attributes(&mut self) -> Result<(), Cut> {
        let Some(name) = self.a_name() else { return Ok(()) };
        let id = self.shelf.names[&name];
        if self.random.one_in(2) {
            let mode = 0o600 | self.random.below(0o100) as u32;
            let call = |w: &Self| fs::set_permissions(w.path(&name), Permissions::from_mode(mode));
            return self.step(format!("chmod {mode:o} {name}"), call, |shelf| shelf.file(id).mode = Some(mode));
        }
        let time =
            SystemTime::UNIX_EPOCH + Duration::new(self.random.below(1 << 31), self.random.below(1 << 29) as u32);
        let call = |w: &Self| File::open(w.path(&name))?.set_modified(time);
        self.step(format!("setting the time of {name}"), call, |shelf| shelf.file(id).mtime = Some(time))
    }

    fn folder(&mut self) -> Result<(), Cut> {
        let dir = format!("a/d{}", self.random.below(3));
        if self.shelf.dirs.contains(&dir) {
            let call = |w: &Self| fs::remove_dir(w.path(&dir));
            self.step(format!("rmdir {dir}"), call, |shelf| {
                shelf.dirs.remove(&dir);
            })
        } else {
            let call = |w: &Self| fs::create_dir(w.path(&dir));
            self.step(format!("mkdir {dir}"), call, |shelf| {
                shelf.dirs.insert(dir.clone());
            })
        }
    }

    /// A file that lives on without a name while it is open.
    fn nameless(&mut self) -> Result<(), Cut> {
        let name = self.new_name();
        let (file, id) = self.create(&name)?;
        self.fill(&file, id)?;
        self.unlink(&name)?;
        let bytes = self.random.bytes(500);
        self.write(&file, id, 100, bytes)?;
        let mut read = Vec::new();
        let mut reader = &file;
        let result = reader.rewind().and_then(|()| reader.read_to_end(&mut read));
        match result {
            Ok(_) if read == *self.shelf.files[&id].bytes => Ok(()),
            Ok(_) => {
                self.fail(format!("{name}, which is open and has no name, has lost bytes"));
                Err(Cut)
            }
            Err(error) => {
                self.lost("reading a file without a name", &error);
                Err(Cut)
            }
        }
    }

    fn read_back(&mut self) -> Result<(), Cut> {
        let Some(name) = self.a_name() else { return Ok(()) };
        let id = self.shelf.names[&name];
        let what = format!("reading {name}");
        self.does(&what);
        match fs::read(self.path(&name)) {
            Ok(bytes) if bytes == *self.shelf.files[&id].bytes => Ok(()),
            Ok(bytes) => {
                let what = self.shelf.differs(id, &bytes.into());
                let again = fs::read(self.path(&name)).map(|bytes| self.shelf.differs(id, &bytes.into()));
                self.fail(format!("{name} is not what was written: {what}; a moment later: {again:?}"));
                Err(Cut)
            }
            Err(error) => {
                self.lost(&what, &error);
                Err(Cut)
            }
        }
    }
}
