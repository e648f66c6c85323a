//! The folder of packs: writes into it durably, and clears away what a crash left.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use delugefs_proto::ids::random_u64;

use super::CatalogError;
use super::pack::{Index, PackWriter};
use super::scan::{ScanLimits, scan};

/// Names of files that are being written begin so.
const TEMPORARY: &[u8] = b"tmp_";

pub(super) fn path(catalog: &Path) -> PathBuf {
    catalog.join("objects/pack")
}

fn temporary(dir: &Path) -> PathBuf {
    dir.join(format!("tmp_{:016x}", random_u64()))
}

fn file_name(checksum: git2::Oid, extension: &str) -> String {
    format!("pack-{checksum}.{extension}")
}

/// Make renames in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), CatalogError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(CatalogError::io("sync", dir))
}

/// A new file nobody else has.
pub(super) fn create(path: &Path) -> Result<File, CatalogError> {
    OpenOptions::new().write(true).create_new(true).mode(0o400).open(path).map_err(CatalogError::io("create", path))
}

/// A pack being written. Dropped unfinished, it leaves nothing.
pub(super) struct NewPack {
    dir: PathBuf,
    temporary: PathBuf,
    kept: bool,
}

impl NewPack {
    /// Begin one in this folder, of exactly `count` objects.
    pub(super) fn begin(dir: &Path, count: usize) -> Result<(Self, PackWriter<File>), CatalogError> {
        let temporary = temporary(dir);
        let file = create(&temporary)?;
        let new = Self { dir: dir.into(), temporary, kept: false };
        let writer = PackWriter::new(file, count).map_err(CatalogError::io("write", &new.temporary))?;
        Ok((new, writer))
    }

    /// Make it durable and visible. Returns its name's stem.
    pub(super) fn finish(mut self, writer: PackWriter<File>) -> Result<String, CatalogError> {
        let (file, index) = writer.finish().map_err(CatalogError::io("write", &self.temporary))?;
        file.sync_all().map_err(CatalogError::io("sync", &self.temporary))?;
        drop(file);
        install(&self.temporary, &self.dir, &index)?;
        self.kept = true;
        Ok(format!("pack-{}", index.checksum))
    }
}

impl Drop for NewPack {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort: opening the catalog removes it too.
            drop(fs::remove_file(&self.temporary));
        }
    }
}

/// Move a synced pack to its place, with its index beside it. A pack becomes visible by its index, so that comes last.
pub(super) fn install(pack: &Path, dir: &Path, index: &Index) -> Result<(), CatalogError> {
    let temporary = temporary(dir);
    let written = write_synced(&temporary, &index.serialize()).and_then(|()| {
        let to = dir.join(file_name(index.checksum, "pack"));
        fs::rename(pack, &to).map_err(CatalogError::io("rename", pack))?;
        let to = dir.join(file_name(index.checksum, "idx"));
        fs::rename(&temporary, &to).map_err(CatalogError::io("rename", &temporary))?;
        sync_dir(dir)
    });
    if written.is_err() {
        drop(fs::remove_file(&temporary));
    }
    written
}

/// Replace a small file durably, all or nothing; `through` a temporary file in this folder of the same file system.
pub(super) fn replace_file(through: &Path, path: &Path, bytes: &[u8]) -> Result<(), CatalogError> {
    let temporary = temporary(through);
    let replaced = write_synced(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path).map_err(CatalogError::io("replace", path)));
    if replaced.is_err() {
        drop(fs::remove_file(&temporary));
    }
    replaced?;
    sync_dir(path.parent().unwrap_or(through))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), CatalogError> {
    let mut file = create(path)?;
    io::Write::write_all(&mut file, bytes).map_err(CatalogError::io("write", path))?;
    file.sync_all().map_err(CatalogError::io("sync", path))
}

/// The names (without extension) of all complete packs.
pub(super) fn list(dir: &Path) -> Result<Vec<String>, CatalogError> {
    let files = files(dir)?;
    let stems = files.iter().filter(|path| is(path, "idx")).filter_map(|path| path.file_stem()?.to_str());
    let mut stems: Vec<String> = stems.map(str::to_owned).collect();
    stems.sort_unstable();
    Ok(stems)
}

/// Size of a pack, in bytes.
pub(super) fn size_bytes(dir: &Path, stem: &str) -> Result<u64, CatalogError> {
    let path = dir.join(format!("{stem}.pack"));
    fs::metadata(&path).map(|meta| meta.len()).map_err(CatalogError::io("look at", path))
}

/// Remove packs, each index first: it is what makes a pack visible.
pub(super) fn remove(dir: &Path, stems: &[String]) -> Result<(), CatalogError> {
    for stem in stems {
        for extension in ["idx", "pack"] {
            let path = dir.join(format!("{stem}.{extension}"));
            match fs::remove_file(&path) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(CatalogError::io("remove", path)(why)),
                _ => {}
            }
        }
    }
    sync_dir(dir)
}

/// The files in the folder.
fn files(dir: &Path) -> Result<Vec<PathBuf>, CatalogError> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    Ok(entries.map_err(CatalogError::io("list", dir))?.into_iter().map(|entry| entry.path()).collect())
}

fn is(path: &Path, extension: &str) -> bool {
    path.extension() == Some(OsStr::new(extension))
}

/// Index the packs that have no index. Such a pack was synced before it got its name; whether anything needs it is not to
/// be guessed.
pub(super) fn index_missing(dir: &Path) -> Result<(), CatalogError> {
    for path in files(dir)? {
        if is(&path, "pack") && !path.with_extension("idx").exists() {
            index_again(dir, &path)?;
        }
    }
    Ok(())
}

/// Clear away what a crash left: unfinished files, and an index whose pack was removed.
pub(super) fn tidy(dir: &Path) -> Result<(), CatalogError> {
    for path in files(dir)? {
        let is_unfinished = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(TEMPORARY));
        if is_unfinished || is(&path, "idx") && !path.with_extension("pack").exists() {
            fs::remove_file(&path).map_err(CatalogError::io("remove", &path))?;
        }
    }
    sync_dir(dir)
}

fn index_again(dir: &Path, pack: &Path) -> Result<(), CatalogError> {
    let file = File::open(pack).map_err(CatalogError::io("open", pack))?;
    let unlimited = ScanLimits {
        pack_bytes: u64::MAX,
        objects: u64::MAX,
        object_bytes: super::OBJECT_MAX_BYTES as u64,
        inflated_bytes: u64::MAX,
    };
    match scan(&mut BufReader::new(file), &mut io::sink(), unlimited) {
        Ok(index) => {
            tracing::info!(pack = %pack.display(), "made the missing index of a pack");
            install(pack, dir, &index)
        }
        Err(why) => {
            tracing::warn!(pack = %pack.display(), ?why, "a pack without index is damaged: left as it is");
            Ok(())
        }
    }
}
