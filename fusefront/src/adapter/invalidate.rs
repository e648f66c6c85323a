//! Telling the kernel what to forget. Not every kernel knows every message: one it refuses is replaced by others where
//! there are any, and never ends anything. It knows nothing of why something is to be forgotten.
//!
//! Dropping a name waits in the kernel for whoever changes its directory (a rename that waits for a file to be hashed, a create
//! that waits for room), and dropping pages for whoever reads them (from another host, say). So one thread takes in what
//! there is to tell, and what may wait goes to others, by directory and by inode: what is stuck holds up nothing but itself. What waits
//! for nobody, the attributes, is told at once where nothing is known of pages, or they are stuck. A kernel for which they wait as the
//! pages do (FreeBSD's, which locks the inode for either) is told of them in their turn.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select, unbounded};

use super::device::Kernel;
use super::lanes::Lanes;
use crate::fs::{Fs, Invalidation, Opening, Outdated};

/// After so long the kernel is told again of an inode that it did not know: our answer that tells it of the inode may have been
/// on its way.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Pages that are being dropped for so long are stuck.
const STUCK_AFTER: Duration = Duration::from_millis(200);
/// Names of one directory that wait; above it all names of all directories are dropped instead, where the kernel can do that: it
/// waits for nobody.
const NAMES_MAX: usize = 10_000;

/// What is done with the pages of an inode.
enum Pages {
    /// They stay, and the attributes are dropped.
    Attributes,
    /// What is not of the current version is dropped.
    Doubtful,
    /// They are dropped.
    Old,
    /// The same, and nobody needs to know if there are none.
    OldAgain,
    /// What is not of the version being opened is dropped, and then it is opened.
    Before(Opening, Box<dyn FnOnce(Opening) + Send>),
}

/// The kernel, and who tells it.
pub(super) struct Telling<K> {
    fs: Arc<Fs>,
    kernel: Arc<K>,
    /// By directory.
    names: Lanes<Box<[u8]>>,
    /// By inode.
    pages: Lanes<Pages>,
    /// Inodes that the kernel does not have.
    missing: Receiver<u64>,
    /// Dropping attributes waits, too.
    holds_attributes: bool,
}

impl<K: Kernel> Telling<K> {
    pub fn new(fs: Arc<Fs>, kernel: K, holds_attributes: bool) -> Self {
        let kernel = Arc::new(kernel);
        let (misses, missing) = unbounded();
        let names = {
            let kernel = kernel.clone();
            Lanes::new(move |dir, name: Box<[u8]>| note(&kernel.name(dir, &name), || format!("name in {dir:x}")))
        };
        let pages = {
            let (fs, kernel) = (fs.clone(), kernel.clone());
            Lanes::new(move |ino, pages| {
                let drop = |content| kernel.inode(ino, content);
                let told = match &pages {
                    Pages::Attributes => fs.drop_attr(ino, || drop(false)),
                    Pages::Doubtful => fs.renew(ino, drop),
                    Pages::Old | Pages::OldAgain => fs.turn(ino, || drop(true)),
                    Pages::Before(opening, _) => fs.make_way(opening, drop),
                };
                note(&told, || format!("pages of {ino:x}"));
                match pages {
                    Pages::Before(opening, next) => next(opening),
                    Pages::Attributes | Pages::Doubtful | Pages::Old if is_missing(&told) => {
                        // Nobody listens any more when there is nothing to tell any more.
                        let _unheard = misses.send(ino);
                    }
                    _ => {}
                }
            })
        };
        Self { fs, kernel, names, pages, missing, holds_attributes }
    }

    /// Have the kernel drop what is outdated of an inode that is being opened, and then do what is next: at once if there is nothing
    /// that waits for anybody, else on another thread. For those who answer the kernel.
    pub fn before(&self, ino: u64, opening: Opening, next: impl FnOnce(Opening) + Send + 'static) {
        if opening.outdated == Some(Outdated::Attributes) {
            let told = self.fs.drop_attr(ino, || self.kernel.inode(ino, false));
            note(&told, || format!("attributes of {ino:x}"));
        }
        // Somebody may have read of the version before by now.
        match self.fs.has_other_pages(&opening) {
            true => self.pages.put_awaited(ino, Pages::Before(opening, Box::new(next))),
            false => next(opening),
        }
    }

    /// So many bytes were written past the kernel's pages, at this offset: it drops what was read of them meanwhile. It waits for
    /// whoever reads.
    pub fn written(&self, ino: u64, offset: u64, bytes: usize) {
        if bytes > 0 {
            note(&self.kernel.range(ino, offset, bytes as u64), || format!("written pages of {ino:x}"));
        }
    }

    /// Carry out what comes, until nothing can come any more.
    pub fn carry_out_all(&self, invalidations: &Receiver<Invalidation>) {
        let mut again: VecDeque<(Instant, u64)> = VecDeque::new();
        loop {
            let due = again.front().map_or_else(never, |(due, _)| at(*due));
            let mut missing = Vec::new();
            select! {
                recv(invalidations) -> what => match what {
                    Ok(what) => self.carry_out(what, &mut missing),
                    Err(_) => return,
                },
                recv(self.missing) -> ino => missing.extend(ino),
                recv(due) -> _ => {
                    if let Some((_, ino)) = again.pop_front() {
                        self.drop_attr_before_pages(ino);
                        self.pages.put(ino, Pages::OldAgain, |_| false);
                    }
                }
            }
            let due = Instant::now() + AGAIN_AFTER;
            again.extend(missing.into_iter().filter(|ino| self.fs.knows(*ino)).map(|ino| (due, ino)));
        }
    }

    /// Inodes that the kernel does not have are added to `missing`.
    fn carry_out(&self, what: Invalidation, missing: &mut Vec<u64>) {
        match what {
            Invalidation::Name { dir, name } => self.drop_name(dir, name),
            Invalidation::Attr(ino) => self.drop_attr(ino, missing),
            Invalidation::Content(ino) => {
                if !self.holds_attributes && self.pages.is_stuck(ino, STUCK_AFTER) {
                    self.drop_attr(ino, missing);
                }
                let does_it = |last: &Pages| matches!(last, Pages::Doubtful | Pages::Old | Pages::OldAgain);
                self.pages.put(ino, Pages::Doubtful, does_it);
            }
            Invalidation::Pages(ino) | Invalidation::Dir(ino) => {
                self.drop_attr_before_pages(ino);
                self.drop_pages(ino);
            }
            Invalidation::All => {
                self.fs.invalidating_all();
                if let Err(error) = self.kernel.all_names() {
                    tracing::debug!(%error, "dropping names one by one");
                    self.fs.told_names().into_iter().for_each(|(dir, name)| self.drop_name(dir, name));
                }
                let inodes = self.fs.known_inodes();
                inodes.iter().for_each(|ino| self.drop_attr_before_pages(*ino));
                inodes.iter().for_each(|ino| self.drop_pages(*ino));
            }
        }
    }

    fn drop_name(&self, dir: u64, name: Box<[u8]>) {
        if self.names.waiting(dir) >= NAMES_MAX && self.kernel.all_names().is_ok() {
            return;
        }
        self.names.put(dir, name, |_| false);
    }

    fn drop_attr(&self, ino: u64, missing: &mut Vec<u64>) {
        if self.holds_attributes {
            let does_it = |last: &Pages| matches!(last, Pages::Attributes | Pages::Old | Pages::OldAgain);
            self.pages.put(ino, Pages::Attributes, does_it);
            return;
        }
        let told = self.fs.drop_attr(ino, || self.kernel.inode(ino, false));
        note(&told, || format!("attributes of {ino:x}"));
        missing.extend(is_missing(&told).then_some(ino));
    }

    /// Dropping the pages does it, too; but it may take long.
    fn drop_attr_before_pages(&self, ino: u64) {
        if !self.holds_attributes {
            self.drop_attr(ino, &mut Vec::new());
        }
    }

    fn drop_pages(&self, ino: u64) {
        self.pages.put(ino, Pages::Old, |last| matches!(last, Pages::Old));
    }

    #[cfg(test)]
    fn settle(&self) {
        self.names.settle();
        self.pages.settle();
    }
}

/// Whether the kernel does not have the inode.
fn is_missing(told: &io::Result<()>) -> bool {
    told.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// A kernel that does not know the message, does not have what it is about, or is gone: the next may be heard.
fn note(told: &io::Result<()>, what: impl FnOnce() -> String) {
    if let Err(error) = told {
        tracing::debug!(%error, what = what(), "invalidation");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crossbeam_channel::Sender;
    use delugefs_proto::local_pb::Attr;
    use nix::errno::Errno;
    use parking_lot::Mutex;

    use super::*;
    use crate::worker::Worker;

    type Answer = dyn Fn(&str) -> io::Result<()> + Send + Sync;

    /// Writes down what it is told and answers as it is made to.
    struct Listening {
        heard: Arc<Mutex<Vec<String>>>,
        answer: Box<Answer>,
    }

    impl Listening {
        fn hear(&self, what: String) -> io::Result<()> {
            (self.answer)(&what)?;
            self.heard.lock().push(what);
            Ok(())
        }
    }

    impl Kernel for Listening {
        fn name(&self, dir: u64, name: &[u8]) -> io::Result<()> {
            self.hear(format!("{dir}/{}", String::from_utf8_lossy(name)))
        }

        fn inode(&self, ino: u64, content: bool) -> io::Result<()> {
            self.hear(format!("{ino}{}", if content { " pages" } else { "" }))
        }

        fn range(&self, ino: u64, offset: u64, length: u64) -> io::Result<()> {
            self.hear(format!("{ino} {length} from {offset}"))
        }

        fn all_names(&self) -> io::Result<()> {
            self.hear("all names".into())
        }
    }

    type Heard = Arc<Mutex<Vec<String>>>;

    /// A file system without a worker, of which the kernel knows these by these names.
    fn telling(
        known: &[(u64, &str)],
        answer: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static,
    ) -> (Telling<Listening>, Heard) {
        let fs = Fs::new(Worker::new(Path::new("/nonexistent")), 100, unbounded().0);
        fs.note_names();
        known.iter().for_each(|(ino, name)| {
            fs.remember_as(&Attr { ino: *ino, ..Attr::default() }, *ino, name.as_bytes());
        });
        let heard = Heard::default();
        (Telling::new(fs.into(), Listening { heard: heard.clone(), answer: Box::new(answer) }, false), heard)
    }

    /// The same where dropping attributes waits.
    fn telling_freebsd(
        known: &[(u64, &str)],
        answer: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static,
    ) -> (Telling<Listening>, Heard) {
        let (telling, heard) = telling(known, answer);
        (Telling { holds_attributes: true, ..telling }, heard)
    }

    fn told_all(answer: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static) -> Vec<String> {
        let (telling, heard) = telling(&[(7, "b"), (8, "c")], answer);
        telling.carry_out(Invalidation::All, &mut Vec::new());
        telling.settle();
        let mut heard = std::mem::take(&mut *heard.lock());
        heard.sort();
        heard
    }

    #[test]
    fn everything_is_every_name_and_every_inode_and_the_root_among_them() {
        let inodes = ["1", "1 pages", "7", "7 pages", "8", "8 pages"];
        assert_eq!(told_all(|_| Ok(())), [&inodes[..], &["all names"]].concat());
        // A kernel that does not know epochs.
        let old = |what: &str| if what == "all names" { Err(Errno::ENOSYS.into()) } else { Ok(()) };
        assert_eq!(told_all(old), ["1", "1 pages", "7", "7 pages", "7/b", "8", "8 pages", "8/c"]);
        // What is refused does not keep the rest from the kernel.
        let refusing = |what: &str| match what.starts_with('7') || what == "all names" {
            true => Err(Errno::ENOSYS.into()),
            false => Ok(()),
        };
        assert_eq!(told_all(refusing), ["1", "1 pages", "8", "8 pages", "8/c"]);
    }

    #[test]
    fn an_inode_the_kernel_is_just_being_told_of_is_named_again() {
        let (sender, invalidations) = unbounded();
        sender.send(Invalidation::Attr(9)).unwrap();
        sender.send(Invalidation::Attr(7)).unwrap();
        let sender = Mutex::new(Some(sender));
        let asked = Mutex::new(Vec::new());
        // It knows an inode from the second time on, and then nothing more is to come.
        let (telling, heard) = telling(&[(7, "b")], move |what| {
            let mut asked = asked.lock();
            if asked.iter().any(|known| known == what) {
                sender.lock().take();
                return Ok(());
            }
            asked.push(what.to_owned());
            if what.ends_with("pages") { Ok(()) } else { Err(Errno::ENOENT.into()) }
        });
        // Of the other one it was not told, or has forgotten it.
        telling.carry_out_all(&invalidations);
        telling.settle();
        assert_eq!(*heard.lock(), ["7", "7 pages"]);
    }

    /// The kernel's answer for what is stuck until the sender sends, or goes.
    fn stuck(at: &'static str) -> (impl Fn(&str) -> io::Result<()> + Send + Sync, Sender<()>) {
        let (go, wait) = unbounded::<()>();
        let answer = move |what: &str| {
            if what == at {
                let _gone = wait.recv();
            }
            Ok(())
        };
        (answer, go)
    }

    /// Until the kernel has been told this.
    fn waits(heard: &Heard, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !heard.lock().iter().any(|it| it == what) {
            assert!(Instant::now() < deadline, "the kernel is not told {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_stuck_holds_up_itself_alone() {
        let name = |dir, name: &str| Invalidation::Name { dir, name: name.as_bytes().into() };
        // A directory that is being changed, and pages that are being read.
        for at in ["7/b", "7 pages"] {
            let (answer, go) = stuck(at);
            let (telling, heard) = telling(&[(7, "b"), (9, "c")], answer);
            let tell = |what| telling.carry_out(what, &mut Vec::new());
            for what in [name(7, "b"), Invalidation::Pages(7), name(8, "c"), Invalidation::Pages(9)] {
                tell(what);
            }
            for what in ["7", "8/c", "9", "9 pages"] {
                waits(&heard, what);
            }
            assert!(!heard.lock().iter().any(|it| it == at));
            drop(go);
            telling.settle();
            assert!(heard.lock().iter().any(|it| it == at));
        }
    }

    #[test]
    fn attributes_that_wait_hold_up_their_inode_alone() {
        let (answer, go) = stuck("7");
        let (telling, heard) = telling_freebsd(&[(7, "b"), (9, "c")], answer);
        let tell = |what| telling.carry_out(what, &mut Vec::new());
        tell(Invalidation::Attr(7));
        // Each waits behind the one that is stuck, and what does no more than the one before it is left out.
        for what in [Invalidation::Attr(7), Invalidation::Attr(7), Invalidation::Dir(7), Invalidation::Attr(7)] {
            tell(what);
        }
        tell(Invalidation::Attr(9));
        tell(Invalidation::Dir(9));
        waits(&heard, "9 pages");
        assert_eq!(*heard.lock(), ["9", "9 pages"]);
        drop(go);
        telling.settle();
        let of_7: Vec<_> = heard.lock().iter().filter(|it| it.starts_with('7')).cloned().collect();
        // The first may have been taken out before the second came.
        assert!([&["7", "7 pages"][..], &["7", "7", "7 pages"]].iter().any(|it| of_7 == *it), "{of_7:?}");
    }

    #[test]
    fn an_inode_the_kernel_is_just_being_told_of_is_named_again_where_attributes_wait() {
        let (sender, invalidations) = unbounded();
        sender.send(Invalidation::Attr(7)).unwrap();
        let sender = Mutex::new(Some(sender));
        let (telling, heard) = telling_freebsd(&[(7, "b")], move |what| match what {
            "7" => Err(Errno::ENOENT.into()),
            _ => {
                sender.lock().take();
                Ok(())
            }
        });
        telling.carry_out_all(&invalidations);
        telling.settle();
        assert_eq!(*heard.lock(), ["7 pages"]);
    }

    #[test]
    fn names_that_heap_up_are_dropped_with_all_others() {
        for knows_epochs in [true, false] {
            let (answer, go) = stuck("7/b");
            let asked = Arc::new(AtomicBool::new(false));
            let asks = asked.clone();
            let (telling, heard) = telling(&[], move |what| {
                asks.fetch_or(what == "all names", Ordering::Relaxed);
                match what {
                    "all names" if !knows_epochs => Err(Errno::ENOSYS.into()),
                    _ => answer(what),
                }
            });
            let count = NAMES_MAX + 100;
            for _ in 0..count {
                telling.carry_out(Invalidation::Name { dir: 7, name: b"b"[..].into() }, &mut Vec::new());
            }
            let is_told = || heard.lock().iter().any(|it| it == "all names");
            assert_eq!((is_told(), asked.load(Ordering::Relaxed)), (knows_epochs, true));
            drop(go);
            telling.settle();
            let names = heard.lock().iter().filter(|it| *it == "7/b").count();
            assert!(if knows_epochs { names <= NAMES_MAX + 1 } else { names == count }, "{names}");
        }
    }
}
