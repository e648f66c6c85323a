//! Nodes by number, as the kernel's own NFS server asks for them: handles outlive the mount they were taken on.

// The two calls have no safe wrapper.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use super::Mounted;

/// Bytes of the header of struct file_handle: length and type.
const HEADER_BYTES: usize = 8;

/// A file handle as NFS servers have them.
#[repr(C, align(8))]
struct Handle([u8; HEADER_BYTES + libc::MAX_HANDLE_SZ as usize]);

fn handle_of(path: &Path) -> Handle {
    let mut handle = Handle([0; _]);
    handle.0[..4].copy_from_slice(&(libc::MAX_HANDLE_SZ as u32).to_ne_bytes());
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut mount = 0;
    // SAFETY: the path ends with a NUL, and the handle has the room its first word says.
    let done =
        unsafe { libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), (&raw mut handle).cast(), &raw mut mount, 0) };
    Errno::result(done).unwrap();
    handle
}

fn open(mount: &Path, handle: &mut Handle) -> io::Result<File> {
    let root = File::open(mount)?;
    // SAFETY: the handle was filled in by name_to_handle_at.
    let fd = unsafe { libc::open_by_handle_at(root.as_raw_fd(), (&raw mut *handle).cast(), libc::O_RDONLY) };
    let fd = Errno::result(fd)?;
    // SAFETY: nobody else has the descriptor.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[test]
fn a_handle_outlives_the_mount_and_a_rename() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: only root may open by handle");
    }
    let mut mounted = Mounted::start();
    std::fs::create_dir_all(mounted.path("a/b/c")).unwrap();
    std::fs::write(mounted.path("a/b/c/f"), "text").unwrap();
    std::fs::write(mounted.path("gone"), "text").unwrap();
    let [mut file, mut dir, mut gone] = ["a/b/c/f", "a/b/c", "gone"].map(|name| handle_of(&mounted.path(name)));
    std::fs::rename(mounted.path("a/b"), mounted.path("b")).unwrap();
    std::fs::remove_file(mounted.path("gone")).unwrap();
    // A new mount and a new frontend: neither has heard of any of them.
    mounted.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(mounted.wait(), Some(0));
    mounted.run(mounted.command());
    let mut text = String::new();
    open(&mounted.dir, &mut file).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "text");
    // The kernel connects a directory to the root by "..", all the way up.
    let dir = open(&mounted.dir, &mut dir).unwrap();
    let path = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).unwrap();
    assert_eq!(path, mounted.path("b/c"));
    let error = open(&mounted.dir, &mut gone).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
}
