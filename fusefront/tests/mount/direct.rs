//! New files that are only written go past the kernel's pages, and nobody notices.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::sharing::Ending;
use super::{Mounted, wait_until};

/// Times that a file is changed beside readers.
const ROUNDS: u64 = 3000;

#[test]
fn readers_see_each_write_when_it_returns() {
    let mounted = Mounted::start();
    let path = mounted.path("f");
    let writer = File::create(&path).unwrap();
    writer.write_all_at(&[0; 3 * 4096], 0).unwrap();
    let (reader, is_done) = (File::open(&path).unwrap(), AtomicBool::new(false));
    let at = 4096 + 8;
    let read = || {
        let mut bytes = [0; 8];
        reader.read_exact_at(&mut bytes, at).unwrap();
        u64::from_ne_bytes(bytes)
    };
    std::thread::scope(|scope| {
        let _ending = Ending(&is_done);
        // Has the pages filled at any moment.
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                read();
            }
        });
        for round in 1..=ROUNDS {
            writer.write_all_at(&round.to_ne_bytes(), at).unwrap();
            assert_eq!(read(), round, "older than what was written");
        }
    });
    // The same of what is mapped.
    let script = "import mmap,os,sys\nw=os.open(sys.argv[1]+'2',os.O_WRONLY|os.O_CREAT)\nos.write(w,bytes(9000))\n\
        r=os.open(sys.argv[1]+'2',os.O_RDONLY)\nm=mmap.mmap(r,0,prot=mmap.PROT_READ)\n\
        for n in range(500):\n os.pwrite(w,n.to_bytes(2,'big'),5000)\n assert m[5000:5002]==n.to_bytes(2,'big')\n";
    assert!(Command::new("python3").arg("-c").arg(script).arg(&path).status().unwrap().success());
}

#[test]
fn a_write_that_has_to_be_durable_is() {
    let mounted = Mounted::start();
    let file = File::create(mounted.path("f")).unwrap();
    (&file).write_all(b"not yet").unwrap();
    assert_eq!(mounted.worker.count("fsync"), 0);
    let bytes = [std::io::IoSlice::new(b"now")];
    // SAFETY: the descriptor and the bytes live until it returns.
    #[allow(unsafe_code)]
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), bytes.as_ptr().cast(), 1, 7, libc::RWF_DSYNC) };
    assert_eq!(written, 3);
    assert_eq!(mounted.worker.count("fsync"), 1);
    assert_eq!(std::fs::read(mounted.path("f")).unwrap(), b"not yetnow");
    // Of the whole file.
    let mut options = OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_SYNC);
    let mut file = options.write(true).create_new(true).open(mounted.path("g")).unwrap();
    file.write_all(b"each").unwrap();
    file.write_all(b"time").unwrap();
    assert_eq!(mounted.worker.count("fsync"), 3);
}

#[test]
fn writing_clears_bits_that_were_set_since() {
    let mounted = Mounted::start();
    std::fs::set_permissions(&mounted.dir, PermissionsExt::from_mode(0o777)).unwrap();
    let script = "import os,sys\nw=os.open(sys.argv[1],os.O_WRONLY|os.O_CREAT,0o755)\nos.write(w,b'a')\n\
        os.fchmod(w,0o6755)\nassert os.fstat(w).st_mode&0o7777==0o6755\nos.write(w,b'b')\nprint(oct(os.fstat(w).st_mode))\n";
    let mut python = Command::new("python3");
    std::os::unix::process::CommandExt::uid(&mut python, 1);
    std::os::unix::process::CommandExt::gid(&mut python, 1);
    let said = python.arg("-c").arg(script).arg(mounted.path("f")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "0o100755\n", "{}", String::from_utf8_lossy(&said.stderr));
    wait_until("it is sealed", || mounted.worker.open_handles() == 0);
    assert_eq!(std::fs::metadata(mounted.path("f")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(std::fs::read(mounted.path("f")).unwrap(), b"ab");
}
