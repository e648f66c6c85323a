//! The other disks of this host: what one of them holds is read from its file, through a descriptor its worker passes. No
//! copy is made, and reading is as fast as from this disk.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::disk::short_id;
use delugefs_proto::ids::{DiskId, random_u64};
use delugefs_proto::local::client::{Client, check, op};
use delugefs_proto::local_pb::{OpenContent, request};
use delugefs_proto::rundir;
use nix::sys::stat::fstat;
use parking_lot::Mutex;

use crate::fetch::Wanted;
use crate::net::Net;
use crate::os;

/// For one message: more than a busy worker needs, and the longest that a stuck disk keeps a reader from other sources.
const PATIENCE: Duration = Duration::from_secs(2);
/// A worker that did not answer is not asked again for so long.
const SULK: Duration = Duration::from_secs(30);

/// See the module.
pub struct Neighbours {
    net: Arc<Net>,
    run_dir: PathBuf,
    silent: Mutex<HashMap<DiskId, Instant>>,
}

impl Neighbours {
    /// The disks whose workers have their sockets in this folder.
    pub fn new(net: Arc<Net>, run_dir: PathBuf) -> Self {
        Self { net, run_dir, silent: Mutex::default() }
    }

    /// The content's file on another disk of this host.
    pub fn open(&self, wanted: &Wanted) -> Option<File> {
        self.net.holders(wanted.content).into_iter().find_map(|disk| {
            let socket = rundir::local_socket(&self.run_dir, short_id(&disk.to_hex()));
            if !socket.exists() || self.silent.lock().get(&disk).is_some_and(|at| at.elapsed() < SULK) {
                return None;
            }
            match ask(&socket, disk, wanted) {
                Ok(file) => Some(file),
                Err(error) => {
                    tracing::debug!(%error, "disk {} of this host does not give a content", short_id(&disk.to_hex()));
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
                        self.silent.lock().insert(disk, Instant::now());
                    }
                    None
                }
            }
        })
    }
}

fn ask(socket: &Path, disk: DiskId, wanted: &Wanted) -> io::Result<File> {
    let mut client = Client::connect_within(socket, random_u64(), PATIENCE)?;
    if client.welcome.disk_id != disk.to_hex() {
        return Err(io::Error::other("another disk has its socket"));
    }
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
