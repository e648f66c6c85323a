//! Telling the kernel what to forget. Not every kernel knows every message: one it refuses is replaced by others where
//! there are any, and never ends anything. It knows nothing of why something is to be forgotten.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::device::Kernel;
use crate::fs::{Fs, Invalidation};

/// After so long the kernel is told again of an inode that it did not know: our answer that tells it of the inode may have been
/// on its way.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Carry out what comes, until nothing can come any more.
pub(super) fn carry_out_all(fs: &Fs, kernel: &impl Kernel, invalidations: &Receiver<Invalidation>) {
    let mut again: VecDeque<(Instant, u64)> = VecDeque::new();
    loop {
        let due = again.front().map(|(at, _)| *at);
        let next = match due {
            None => invalidations.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) if at <= Instant::now() => Err(RecvTimeoutError::Timeout),
            Some(at) => invalidations.recv_deadline(at),
        };
        let (what, is_again) = match next {
            Ok(what) => (what, false),
            Err(RecvTimeoutError::Timeout) => match again.pop_front() {
                Some((_, ino)) => (Invalidation::Pages(ino), true),
                None => continue,
            },
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut missing = Vec::new();
        // A kernel that does not know the message, or is gone: the next may be heard.
        if let Err(error) = carry_out(fs, kernel, &what, &mut missing) {
            tracing::debug!(%error, ?what, "invalidation");
        }
        if !is_again {
            let at = Instant::now() + AGAIN_AFTER;
            again.extend(missing.into_iter().filter(|ino| fs.knows(*ino)).map(|ino| (at, ino)));
        }
    }
}

/// Inodes that the kernel does not have are added to `missing`.
fn carry_out(fs: &Fs, kernel: &impl Kernel, what: &Invalidation, missing: &mut Vec<u64>) -> io::Result<()> {
    let mut inode = |ino, content| {
        kernel.inode(ino, content).inspect_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                missing.push(ino);
            }
        })
    };
    match what {
        Invalidation::Name { dir, name } => kernel.name(*dir, name),
        Invalidation::Attr(ino) => inode(*ino, false),
        Invalidation::Content(ino) => inode(*ino, !fs.pages_are_current(*ino)),
        Invalidation::Pages(ino) | Invalidation::Dir(ino) => inode(*ino, true),
        Invalidation::All => {
            fs.invalidating_all();
            let names = all_names(kernel, fs.told_names());
            // What is refused does not keep the rest from the kernel; the last refusal is given back.
            fs.known_inodes().into_iter().fold(names, |result, ino| inode(ino, true).and(result))
        }
    }
}

/// Every name; the last refusal is given back.
fn all_names(kernel: &impl Kernel, names: Vec<(u64, Box<[u8]>)>) -> io::Result<()> {
    let mut result = Ok(());
    if let Err(error) = kernel.all_names() {
        tracing::debug!(%error, "dropping names one by one");
        for (dir, name) in names {
            result = kernel.name(dir, &name).and(result);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::Path;

    use crossbeam_channel::Sender;
    use delugefs_proto::local_pb::Attr;
    use nix::errno::Errno;

    use super::*;
    use crate::worker::Worker;

    /// Writes down what it is told, and refuses messages about one number.
    struct Listening {
        knows_epochs: bool,
        refuses: u64,
        heard: RefCell<Vec<String>>,
    }

    impl Listening {
        fn hear(&self, ino: u64, what: String) -> io::Result<()> {
            if ino == self.refuses {
                return Err(Errno::ENOSYS.into());
            }
            self.heard.borrow_mut().push(what);
            Ok(())
        }
    }

    impl Kernel for Listening {
        fn name(&self, dir: u64, name: &[u8]) -> io::Result<()> {
            self.hear(dir, format!("{dir}/{}", String::from_utf8_lossy(name)))
        }

        fn inode(&self, ino: u64, content: bool) -> io::Result<()> {
            self.hear(ino, format!("{ino} {content}"))
        }

        fn all_names(&self) -> io::Result<()> {
            if self.knows_epochs { self.hear(0, "all names".into()) } else { Err(Errno::ENOSYS.into()) }
        }
    }

    /// A file system without a worker, of which the kernel knows these.
    fn knowing(inodes: &[u64]) -> Fs {
        let fs = Fs::new(Worker::new(Path::new("/nonexistent")), 100, crossbeam_channel::unbounded().0);
        inodes.iter().for_each(|ino| fs.remember(&Attr { ino: *ino, ..Attr::default() }));
        fs
    }

    fn told_by_name(knows_epochs: bool, refuses: u64) -> (Vec<String>, Option<i32>) {
        let kernel = Listening { knows_epochs, refuses, heard: RefCell::default() };
        let names = vec![(1, Box::from(&b"a"[..])), (7, Box::from(&b"b"[..])), (8, Box::from(&b"c"[..]))];
        let result = all_names(&kernel, names);
        (kernel.heard.into_inner(), result.err().and_then(|error| error.raw_os_error()))
    }

    #[test]
    fn names_are_dropped_one_by_one_where_the_kernel_does_not_know_epochs() {
        assert_eq!(told_by_name(true, u64::MAX).0, ["all names"]);
        assert_eq!(told_by_name(false, u64::MAX), (["1/a", "7/b", "8/c"].map(String::from).into(), None));
    }

    #[test]
    fn what_is_refused_does_not_keep_the_rest_from_the_kernel() {
        let (heard, errno) = told_by_name(false, 7);
        assert_eq!(heard, ["1/a", "8/c"]);
        assert_eq!(errno, Some(Errno::ENOSYS as i32));
        let kernel = Listening { knows_epochs: true, refuses: 7, heard: RefCell::default() };
        let result = carry_out(&knowing(&[7, 8]), &kernel, &Invalidation::All, &mut Vec::new());
        assert_eq!(result.err().and_then(|error| error.raw_os_error()), Some(Errno::ENOSYS as i32));
        let mut heard = kernel.heard.into_inner();
        heard.sort();
        // The root among them, which no kernel looks up.
        assert_eq!(heard, ["1 true", "8 true", "all names"]);
    }

    /// Does not know an inode at first; hangs up when it was told of one it knows.
    struct Late {
        sender: RefCell<Option<Sender<Invalidation>>>,
        heard: RefCell<Vec<(u64, bool)>>,
    }

    impl Kernel for Late {
        fn name(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn inode(&self, ino: u64, content: bool) -> io::Result<()> {
            let heard = &mut *self.heard.borrow_mut();
            let is_first = heard.iter().all(|(other, _)| *other != ino);
            heard.push((ino, content));
            if is_first {
                return Err(Errno::ENOENT.into());
            }
            self.sender.take();
            Ok(())
        }

        fn all_names(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_inode_the_kernel_is_just_being_told_of_is_named_again() {
        let (sender, invalidations) = crossbeam_channel::unbounded();
        sender.send(Invalidation::Attr(9)).unwrap();
        sender.send(Invalidation::Attr(7)).unwrap();
        let kernel = Late { sender: RefCell::new(Some(sender)), heard: RefCell::default() };
        // Of the other one it was not told, or has forgotten it.
        carry_out_all(&knowing(&[7]), &kernel, &invalidations);
        assert_eq!(kernel.heard.into_inner(), [(9, false), (7, false), (7, true)]);
    }
}
