//! What FreeBSD's kernel does not wait for: it lets a killed program go at once, and anybody after some minutes, and takes the answer that
//! comes then without a word.

use std::time::Duration;

use delugefs_fusefront::cache::CAPACITY_ENTRIES;
use delugefs_fusefront::os::FuseKernel;
use nix::errno::Errno;

use super::wire::{Body, notice, op};
use super::{KERNELS, Mount, ROOT};

/// It gives up soon.
const HASTY: FuseKernel = FuseKernel { answers_within: Some(Duration::from_secs(1)), ..super::QUIET };

/// Whatever an answer takes, it may not have been heard.
const UNSURE: FuseKernel = FuseKernel { lets_killed_go: Some(Duration::ZERO), ..FuseKernel::FREEBSD };

fn mount(habits: FuseKernel) -> Mount {
    Mount::with(KERNELS[2], CAPACITY_ENTRIES, habits)
}

#[test]
fn who_waits_is_answered_before_the_kernel_gives_up_and_nothing_stays_open() {
    let mut mount = mount(HASTY);
    let ino = mount.worker.shared.tree.lock().make(ROOT, b"old", 0o100_644, (0, 0), 0).unwrap();
    let mkdir = Body::new().u32(0o040_755).u32(0o022).name("made");
    let open = Body::new().u32(libc::O_RDWR as u32).u32(0);
    let create = Body::new().u32((libc::O_CREAT | libc::O_RDWR) as u32).u32(0o100_644).u32(0o022).u32(0).name("new");
    for (request, node, silent_to, body, told) in [
        (op::MKDIR, ROOT, "mkdir", mkdir, (notice::INVAL_ENTRY, ROOT)),
        (op::OPEN, ino, "open", open, (notice::INVAL_INODE, ino)),
        (op::CREATE, ROOT, "create", create, (notice::INVAL_ENTRY, ROOT)),
    ] {
        mount.worker.be_silent_to(silent_to);
        assert_eq!(mount.kernel.fail(request, node, &body), Errno::ETIMEDOUT, "request {request}");
        mount.worker.answer();
        mount.settle();
        loop {
            let heard = mount.kernel.notice();
            if (heard.errno, heard.u64(0)) == told {
                break;
            }
        }
        assert_eq!(mount.worker.open_handles(), 0, "request {request}");
    }
}

#[test]
fn what_may_not_have_been_heard_is_dropped_after_every_change() {
    let mut mount = mount(UNSURE);
    let told = |mount: &mut Mount, names: &[&str]| {
        let mut names = names.to_vec();
        while !names.is_empty() {
            let (dir, name) = mount.kernel.notice_of_name();
            assert_eq!(dir, ROOT);
            assert_eq!(names.remove(0), name);
        }
    };
    mount.mkdir(ROOT, "d");
    told(&mut mount, &["d"]);
    let (file, handle) = mount.create(ROOT, "f");
    told(&mut mount, &["f"]);
    mount.write(file.ino, handle, b"text");
    mount.release(file.ino, handle);
    mount.rename((ROOT, "f"), (ROOT, "g"));
    told(&mut mount, &["f", "g"]);
    mount.unlink(ROOT, "g");
    told(&mut mount, &["g"]);
    assert_eq!(mount.lookup(ROOT, "g"), Err(Errno::ENOENT));
}

#[test]
fn pages_that_an_open_calls_old_are_dropped_if_it_was_not_heard_and_good_ones_stay() {
    let mut mount = mount(UNSURE);
    let ino = mount.worker.shared.tree.lock().make(ROOT, b"f", 0o100_644, (0, 0), 0).unwrap();
    mount.lookup(ROOT, "f").unwrap();
    for is_first in [true, false] {
        let handle = mount.open(ino, libc::O_RDONLY).unwrap();
        mount.read(ino, handle, 0);
        if is_first {
            assert_eq!(mount.kernel.notice_of_pages(), ino);
        }
        mount.release(ino, handle);
    }
    // Nothing else was said of it before this.
    mount.mkdir(ROOT, "d");
    loop {
        let heard = mount.kernel.notice();
        match heard.errno {
            notice::INVAL_INODE => assert_ne!(heard.u64(0), ino),
            _ => break,
        }
    }
}
