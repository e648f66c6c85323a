//! What librqbit sees of a content: one open file. It never learns a path, so it cannot create, rename or delete
//! anything; of a held content it cannot write a byte.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use delugefs_proto::errno::FsError;
use librqbit::storage::filesystem::FilesystemStorageFactory;
use librqbit::storage::{BoxStorageFactory, StorageFactory, StorageFactoryExt, TorrentStorage};
use librqbit::{ManagedTorrentShared, TorrentMetadata};
use librqbit_core::lengths::ValidPieceIndex;
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

/// Bytes written between two looks at the free space.
const LOOK_FOR_ROOM_EVERY_BYTES: u64 = 16 << 20;

/// The file behind one torrent, shared with its owner.
pub(super) struct Gate {
    file: File,
    /// `None` for a held content.
    fetching: Option<Fetching>,
    closed: RwLock<bool>,
    /// librqbit does not report a seeder's failing disk at all, and others only as text.
    error: Mutex<Option<FsError>>,
}

struct Fetching {
    news: Arc<Notify>,
    /// Whether the disk has room left beyond the reserve, which belongs to the catalog.
    has_room: Box<dyn Fn() -> bool + Send + Sync>,
    unasked_bytes: AtomicU64,
}

impl Gate {
    /// Of a held content: read-only.
    pub fn held(file: File) -> Arc<Self> {
        Arc::new(Self { file, fetching: None, closed: RwLock::new(false), error: Mutex::new(None) })
    }

    /// Of a content being fetched; `news` is told when a piece is complete or something failed, `has_room` is asked now
    /// and then whether to go on writing.
    pub fn fetching(file: File, news: Arc<Notify>, has_room: Box<dyn Fn() -> bool + Send + Sync>) -> Arc<Self> {
        let fetching = Some(Fetching { news, has_room, unasked_bytes: AtomicU64::new(0) });
        Arc::new(Self { file, fetching, closed: RwLock::new(false), error: Mutex::new(None) })
    }

    /// When this returns nothing is being read or written through the torrent, and nothing ever will be.
    pub fn close(&self) {
        *self.closed.write() = true;
    }

    /// The first failure of the disk.
    pub fn error(&self) -> Option<FsError> {
        self.error.lock().clone()
    }

    fn access(&self, act: impl FnOnce(&File) -> std::io::Result<()>) -> anyhow::Result<()> {
        let closed = self.closed.read();
        anyhow::ensure!(!*closed, "this torrent is closed");
        act(&self.file).map_err(|error| {
            let error = match error.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => FsError::new(Errno::ENOSPC, "no room to fetch more on this disk"),
                _ => FsError::from(error),
            };
            self.error.lock().get_or_insert_with(|| error.clone());
            if let Some(fetching) = &self.fetching {
                fetching.news.notify_one();
            }
            error.into()
        })
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let fetching = self.fetching.as_ref().context("a held content is never written")?;
        self.access(|file| {
            let length = bytes.len() as u64;
            if fetching.unasked_bytes.fetch_add(length, Ordering::Relaxed) + length >= LOOK_FOR_ROOM_EVERY_BYTES {
                fetching.unasked_bytes.store(0, Ordering::Relaxed);
                if !(fetching.has_room)() {
                    return Err(std::io::Error::from_raw_os_error(libc::ENOSPC));
                }
            }
            file.write_all_at(bytes, offset)
        })
    }
}

/// Makes the storage of one torrent.
pub(super) struct Factory(pub Arc<Gate>);

impl StorageFactory for Factory {
    type Storage = Storage;

    fn create(&self, _: &ManagedTorrentShared, _: &TorrentMetadata) -> anyhow::Result<Storage> {
        Ok(Storage(self.0.clone()))
    }

    /// librqbit's session store, through which `session` hands in what is already there, refuses any other storage than
    /// the file system's, because it could not restore it after a restart. Nothing of ours is ever restored.
    fn is_type_id(&self, type_id: std::any::TypeId) -> bool {
        type_id == std::any::TypeId::of::<FilesystemStorageFactory>() || type_id == std::any::TypeId::of::<Self>()
    }

    fn clone_box(&self) -> BoxStorageFactory {
        Factory(self.0.clone()).boxed()
    }
}

/// The storage of one torrent.
pub(super) struct Storage(Arc<Gate>);

impl TorrentStorage for Storage {
    fn init(&mut self, _: &ManagedTorrentShared, _: &TorrentMetadata) -> anyhow::Result<()> {
        Ok(())
    }

    fn pread_exact(&self, _: usize, offset: u64, into: &mut [u8]) -> anyhow::Result<()> {
        self.0.access(|file| file.read_exact_at(into, offset))
    }

    fn pwrite_all(&self, _: usize, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.0.write(offset, bytes)
    }

    fn remove_file(&self, _: usize, _: &Path) -> anyhow::Result<()> {
        Ok(())
    }

    fn remove_directory_if_empty(&self, _: &Path) -> anyhow::Result<()> {
        Ok(())
    }

    /// It has its length already.
    fn ensure_file_length(&self, _: usize, _: u64) -> anyhow::Result<()> {
        Ok(())
    }

    fn take(&self) -> anyhow::Result<Box<dyn TorrentStorage>> {
        Ok(Box::new(Storage(self.0.clone())))
    }

    fn on_piece_completed(&self, _: ValidPieceIndex) -> anyhow::Result<()> {
        if let Some(fetching) = &self.0.fetching {
            fetching.news.notify_one();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_content_cannot_be_written_and_a_closed_gate_not_even_read() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"content", 0).unwrap();
        let gate = Gate::held(file.try_clone().unwrap());
        let storage = Storage(gate.clone());
        let mut bytes = [0; 7];
        storage.pread_exact(0, 0, &mut bytes).unwrap();
        assert!(bytes == *b"content" && storage.pwrite_all(0, 0, b"x").is_err() && gate.error().is_none());
        assert!(storage.pread_exact(0, 1, &mut bytes).is_err());
        assert!(gate.error().is_some());
        gate.close();
        assert!(storage.take().unwrap().pread_exact(0, 0, &mut bytes).is_err());
        assert_eq!(file.metadata().unwrap().len(), 7);
    }

    #[test]
    fn a_fetch_stops_before_the_reserve() {
        let (file, news) = (tempfile::tempfile().unwrap(), Arc::new(Notify::new()));
        let gate = Gate::fetching(file.try_clone().unwrap(), news, Box::new(|| false));
        let storage = Storage(gate.clone());
        let block = vec![1; 1 << 20];
        for n in 0..15 {
            storage.pwrite_all(0, n << 20, &block).unwrap();
        }
        assert!(storage.pwrite_all(0, 15 << 20, &block).is_err());
        assert_eq!(gate.error().unwrap().errno, Errno::ENOSPC);
        assert_eq!(file.metadata().unwrap().len(), 15 << 20);
    }
}
