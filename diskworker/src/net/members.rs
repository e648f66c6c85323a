//! The cluster's membership as this disk knows it: ROOT/members, one file that is replaced as a whole. Everybody who lets
//! another in looks here, and is told when it changes.
//!
//! A file and not an object of the catalog: it is needed before anything else of the disk is trusted to anybody, it is
//! at most 1 MiB, and it says who may write the catalog.

use std::io::{Read, Write};
use std::sync::Arc;

use delugefs_proto::errno::{FsError, FsResult};
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::ids::{ClusterId, DiskId};
use delugefs_proto::members::{Members, MembersError, SET_MAX_BYTES};
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::unistd::fsync;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::folder::DiskFolder;

const FILE: &str = "members";
const UNFINISHED: &str = "members.new";

/// Before anything of the disk is touched: whether its membership can be read.
///
/// # Errors
/// What to tell the user when it cannot.
pub fn check(folder: &DiskFolder) -> anyhow::Result<()> {
    let (exit, text, hint) = match read(folder)? {
        None | Some(Ok(_)) => return Ok(()),
        Some(Err(MembersError::Version(version))) => (
            Exit::NewerFormat,
            format!(
                "the membership on this disk, ROOT/members, has version {version}, which this delugefs does not know"
            ),
            "install the newest delugefs on this host, then run the same command",
        ),
        Some(Err(error)) => (
            Exit::BadDisk,
            format!("this disk cannot be used: ROOT/members: {error}"),
            "copy the file `members` of another disk of this cluster over it: it is the same on all",
        ),
    };
    Err(UserError::new(exit, text).hint(hint).into())
}

/// `None`: there is no such file.
fn read(folder: &DiskFolder) -> FsResult<Option<Result<Members, MembersError>>> {
    let mut bytes = Vec::new();
    match folder.open_file(FILE, OFlag::O_RDONLY) {
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(failed("open", errno)),
        Ok(file) => file.take(SET_MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?,
    };
    Ok(Some(Members::decode(folder.cluster_id(), &bytes)))
}

/// See the module.
pub struct MembersStore {
    folder: Arc<DiskFolder>,
    cluster: ClusterId,
    /// `None`: of a disk that no host has admitted yet.
    current: watch::Sender<Option<Arc<Members>>>,
    /// Whether what is in memory is not written yet.
    unsaved: Mutex<bool>,
}

impl MembersStore {
    /// Of a disk.
    ///
    /// # Errors
    /// When the file cannot be read or is not the membership of this disk's cluster.
    pub fn open(folder: Arc<DiskFolder>) -> FsResult<Self> {
        let cluster = folder.cluster_id();
        let members = read(&folder)?.transpose();
        let current =
            members.map_err(|error| FsError::new(Errno::EIO, format!("ROOT/members: {error}")))?.map(Arc::new);
        Ok(Self { folder, cluster, current: watch::channel(current).0, unsaved: Mutex::default() })
    }

    /// The membership now.
    pub fn get(&self) -> Option<Arc<Members>> {
        self.current.borrow().clone()
    }

    /// Told after each change.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Members>>> {
        self.current.subscribe()
    }

    /// Whether this disk may take part.
    pub fn is_disk(&self, id: DiskId) -> bool {
        self.current.borrow().as_ref().is_some_and(|members| members.is_disk(id))
    }

    /// Join another set, durably. Whether anything is new. It counts also when it cannot be written: then the next call tries
    /// to write it again.
    ///
    /// # Errors
    /// `EINVAL` when it is not a set of this cluster, and what the disk says.
    pub fn absorb(&self, set: &[u8]) -> FsResult<bool> {
        let mut unsaved = self.unsaved.lock();
        let invalid = |error| FsError::new(Errno::EINVAL, format!("refused a membership set: {error}"));
        let members = match self.get() {
            Some(members) => {
                let mut members = Members::clone(&members);
                if !members.absorb(set).map_err(invalid)?.changed && !*unsaved {
                    return Ok(false);
                }
                members
            }
            None => Members::decode(self.cluster, set).map_err(invalid)?,
        };
        let bytes = members.encode();
        self.current.send_replace(Some(Arc::new(members)));
        *unsaved = true;
        self.write(&bytes)?;
        *unsaved = false;
        Ok(true)
    }

    fn write(&self, bytes: &[u8]) -> FsResult<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let mut file = self.folder.open_file(UNFINISHED, flags).map_err(|errno| failed("make", errno))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        let root = self.folder.root_fd();
        renameat(root, UNFINISHED, root, FILE).map_err(|errno| failed("replace", errno))?;
        fsync(root).map_err(|errno| failed("sync", errno))
    }
}

fn failed(what: &str, errno: Errno) -> FsError {
    FsError::new(errno, format!("cannot {what} the disk's membership file"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use delugefs_proto::identity::Identity;
    use delugefs_proto::members::Role;

    #[test]
    fn it_grows_and_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let host = Identity::from_pkcs8(&Identity::generate_pkcs8().unwrap()).unwrap();
        let mut set = Members::found(&host, [1; 16], "test", "tower", 1).unwrap();
        let root = dir.path().join("d");
        let folder = Arc::new(DiskFolder::create(&root, "test", Some(set.cluster_id())).unwrap());
        let store = MembersStore::open(folder.clone()).unwrap();
        let disk = folder.disk_id();
        assert!(store.get().is_none() && !store.is_disk(disk));
        assert!(store.absorb(&set.encode()).unwrap() && !store.absorb(&set.encode()).unwrap());
        set.admit(Role::Disk, disk.into(), "tower", 2, &host).unwrap();
        assert!(store.absorb(&set.encode()).unwrap() && store.is_disk(disk));
        assert_eq!(store.absorb(b"nonsense").unwrap_err().errno, Errno::EINVAL);
        let other = Members::found(&host, [2; 16], "test", "tower", 1).unwrap();
        assert_eq!(store.absorb(&other.encode()).unwrap_err().errno, Errno::EINVAL);
        let again = MembersStore::open(folder).unwrap();
        assert!(again.is_disk(disk) && *again.get().unwrap() == set);
    }

    #[test]
    fn what_cannot_be_read_is_refused_before_anything_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let host = Identity::from_pkcs8(&Identity::generate_pkcs8().unwrap()).unwrap();
        let set = Members::found(&host, [1; 16], "test", "tower", 1).unwrap();
        let root = dir.path().join("d");
        let folder = DiskFolder::create(&root, "test", Some(set.cluster_id())).unwrap();
        check(&folder).unwrap();
        let mut newer = set.encode();
        std::fs::write(root.join(FILE), &newer).unwrap();
        check(&folder).unwrap();
        newer[0] = 2;
        for (bytes, exit) in [(&newer[..], Exit::NewerFormat), (b"\x01nonsense", Exit::BadDisk), (b"", Exit::BadDisk)] {
            std::fs::write(root.join(FILE), bytes).unwrap();
            let error = check(&folder).unwrap_err();
            assert_eq!(error.downcast_ref::<UserError>().map(|error| error.exit), Some(exit), "{error:#}");
        }
    }
}
