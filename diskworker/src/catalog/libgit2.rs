//! libgit2's process-wide settings, which have no safe wrapper, and the one way a catalog's repository is opened.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Once;

use git2::{ConfigLevel, Repository, RepositoryOpenFlags};

use super::CatalogError;

/// Objects kept decoded by libgit2, all catalogs of the process together, in bytes. It keeps small trees only: the
/// upper levels of the catalog. Decoded directories are cached above the catalog.
const OBJECT_CACHE_MAX_BYTES: isize = 32 << 20;

/// Set once, before the first repository is opened.
#[allow(unsafe_code)]
fn configure() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Every object is hashed when it is read: damage is an error and never a wrong record. The default, relied on.
        git2::opts::strict_hash_verification(true);
        // SAFETY: these set global variables of libgit2, which no other thread uses yet: every use of libgit2 in this
        // process goes through this function first. An error would leave the default, which is safe too.
        unsafe {
            // Refs are durable when `reference()` returns.
            let on: std::ffi::c_int = 1;
            libgit2_sys::git_libgit2_opts(libgit2_sys::GIT_OPT_ENABLE_FSYNC_GITDIR as std::ffi::c_int, on);
            // A disk brought along from another host belongs to whatever uid it had there. The check protects
            // people from foreign hooks and filters; nothing here runs any.
            git2::opts::set_verify_owner_validation(false).ok();
            git2::opts::set_cache_max_size(OBJECT_CACHE_MAX_BYTES).ok();
            // The user's and the system's gitconfig have no say in what a catalog is.
            for level in [ConfigLevel::System, ConfigLevel::Global, ConfigLevel::XDG, ConfigLevel::ProgramData] {
                git2::opts::set_search_path(level, "").ok();
            }
        }
    });
}

/// Refuse a repository that is not all in its own folder: whoever gave us the disk may have put links there, or git's own ways to name
/// another folder, and what we tidy away would be somebody else's. To be asked before it is opened.
pub(super) fn refuse_elsewhere(dir: &Path) -> Result<(), CatalogError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(CatalogError::NotACatalog(dir.into())),
        entries => entries.map_err(CatalogError::io("list", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(CatalogError::io("list", dir))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(CatalogError::io("list", dir))?);
        let names_another = ["commondir", "alternates"].iter().any(|name| entry.file_name() == *name);
        match kind.is_dir() {
            true => refuse_elsewhere(&path)?,
            false if kind.is_file() && !names_another => {}
            false => return Err(CatalogError::Elsewhere(path)),
        }
    }
    Ok(())
}

/// Open a catalog's repository, exactly this folder.
pub(super) fn open(dir: &Path) -> Result<Repository, CatalogError> {
    configure();
    let flags = RepositoryOpenFlags::BARE | RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::NO_DOTGIT;
    Repository::open_ext(dir, flags, std::iter::empty::<&OsStr>()).map_err(|why| match why.code() {
        git2::ErrorCode::NotFound => CatalogError::NotACatalog(dir.into()),
        _ => CatalogError::Git("open the catalog", why),
    })
}

/// Make an empty repository.
pub(super) fn init(dir: &Path) -> Result<Repository, CatalogError> {
    configure();
    let mut options = git2::RepositoryInitOptions::new();
    options.bare(true).no_reinit(true).external_template(false).initial_head("state");
    Repository::init_opts(dir, &options).map_err(CatalogError::git("make the catalog"))
}
