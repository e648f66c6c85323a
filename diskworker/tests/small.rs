//! File systems of a few MiB, to be filled to the last byte. They are mounted in a mount namespace of one thread and of
//! what it starts, and go with these: nothing is left behind, whatever happens.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;

/// Which file system.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Tmpfs,
    /// Directories take room here too, and blocks are only reserved when a file is written.
    Ext4,
    /// The same with its own journal, as it is used.
    Ext4Journal,
    /// The first ext4 on a device that has a third of the room it says it has.
    Thin,
}

/// The mounted file system.
pub struct Small {
    pub dir: PathBuf,
}

/// Run on a file system of so many MiB, if that can be had here.
pub fn on_small_disk(kind: Kind, mib: u64, test: impl FnOnce(&Small) + Send) {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("not root, cannot mount: skipped");
    }
    let around = tempfile::tempdir().unwrap();
    let dir = around.path().join("disk");
    fs::create_dir(&dir).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if !own_mounts() {
                return eprintln!("no mount namespace here: skipped");
            }
            match kind {
                Kind::Tmpfs => {
                    let size = format!("size={mib}m");
                    mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
                }
                Kind::Ext4 | Kind::Ext4Journal | Kind::Thin => {
                    if matches!(kind, Kind::Thin) {
                        let size = format!("size={}m", mib / 3);
                        mount(Some("tmpfs"), around.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
                            .unwrap();
                        fs::create_dir(&dir).unwrap();
                    }
                    let image = around.path().join("image");
                    File::create(&image).unwrap().set_len(mib << 20).unwrap();
                    let mut mkfs = vec!["-q", "-m", "0"];
                    if !matches!(kind, Kind::Ext4Journal) {
                        mkfs.extend(["-O", "^has_journal"]);
                    }
                    let made = Command::new("mkfs.ext4").args(mkfs).arg(&image).status();
                    if !made.is_ok_and(|status| status.success()) {
                        return eprintln!("no mkfs.ext4 here: skipped");
                    }
                    let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir).status();
                    if !mounted.is_ok_and(|status| status.success()) {
                        return eprintln!("no loop device here: skipped");
                    }
                }
            }
            test(&Small { dir: dir.clone() });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(fs::read_dir(&dir).unwrap().next().is_none(), "still mounted here");
}

/// Give this thread, and what it starts, mounts of its own.
fn own_mounts() -> bool {
    #[allow(unsafe_code)]
    // SAFETY: changes nothing but the mount namespace and the working directory of this thread.
    let unshared = unsafe { nix::libc::unshare(nix::libc::CLONE_NEWNS) };
    let none: Option<&str> = None;
    unshared == 0 && mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).is_ok()
}

impl Small {
    /// The disk's folder.
    pub fn root(&self) -> PathBuf {
        self.dir.join("d")
    }

    /// Free bytes.
    pub fn free(&self) -> u64 {
        let vfs = statvfs(&self.dir).unwrap();
        vfs.blocks_available() * vfs.fragment_size()
    }

    /// What a loss of power at this moment leaves, mounted beside it: the blocks that were written by now. Not on tmpfs.
    pub fn after_power_loss(&self) -> PathBuf {
        let (image, dir) = (self.dir.with_file_name("image-after"), self.dir.with_file_name("after"));
        fs::copy(self.dir.with_file_name("image"), &image).unwrap();
        fs::create_dir(&dir).unwrap();
        assert!(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir).status().unwrap().success());
        dir.join("d")
    }

    fn filler(&self) -> PathBuf {
        self.dir.join("filler")
    }

    /// Take all but this many bytes, with a file that does not belong to the disk.
    pub fn fill(&self, leave: u64) {
        let filler = File::options().create(true).append(true).open(self.filler()).unwrap();
        let mut chunk = 1 << 30;
        while self.free() > leave && chunk >= 4096 {
            chunk = chunk.min(self.free() - leave);
            let end = filler.metadata().unwrap().len();
            if fallocate(&filler, FallocateFlags::empty(), end as i64, chunk as i64).is_err() {
                chunk /= 2;
            }
        }
    }

    /// Give it all back.
    pub fn release(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    /// Take all the room there is below a thin one.
    pub fn fill_below(&self) {
        let mut filler = File::create(self.dir.with_file_name("filler-below")).unwrap();
        while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
    }

    /// Give it back.
    pub fn release_below(&self) {
        fs::remove_file(self.dir.with_file_name("filler-below")).unwrap();
    }

    /// Size of a file of the disk, 0 without it.
    pub fn size_of(&self, name: &str) -> u64 {
        fs::metadata(self.root().join(name)).map_or(0, |meta| meta.len())
    }
}

/// Bytes that do not compress and are the same for the same salt.
pub fn noise(len: usize, salt: u64) -> Vec<u8> {
    let mut word = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend(word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Names in a folder.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
