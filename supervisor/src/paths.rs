//! What a user types becomes an absolute path without touching any DelugeFS mount on the way: one whose frontend is
//! dead answers with an error, and one whose frontend is stuck never answers.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use delugefs_proto::exit::{Exit, UserError};
use tokio::sync::oneshot;

use crate::sys;

/// Symbolic links followed before we take it for a loop (Linux's own limit).
const LINKS_MAX: usize = 40;

/// What a user typed for a disk's folder or a mountpoint, as the control socket wants it. It need not exist, and what
/// is mounted there is not touched.
///
/// # Errors
/// When it cannot be resolved or is not UTF-8.
pub fn typed(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str().is_empty() {
        // Joined to the current directory it would be that one, which nobody has named.
        let error = UserError::new(Exit::Usage, "the name of a folder is empty");
        return Err(error.hint("name the folder; `.` is the current one").into());
    }
    text(resolve_here(path, &sys::delugefs_mounts()?)?)
}

/// The same where it may be one of these, as which it is taken if it was typed so: what was resolved when it was said may lead elsewhere by
/// now, by a link that was made since. It could not be named otherwise.
///
/// # Errors
/// As of [`typed`].
pub fn typed_among<'a>(path: &Path, mut known: impl Iterator<Item = &'a String>) -> anyhow::Result<String> {
    let absolute = std::path::absolute(path).ok(); // an empty one is none
    let is_meant = |known: &&String| absolute.as_deref() == Some(Path::new(known));
    known.find(is_meant).cloned().map_or_else(|| typed(path), Ok)
}

/// Make a mountpoint that does not exist, if the folder it is in exists. Where that fails, the frontend says why it
/// cannot mount there.
pub fn make_mountpoint(dir: &str) {
    // Does not look at what is there: making a directory over a dead mount is refused without asking it.
    if std::fs::create_dir(dir).is_ok() {
        crate::log::say(&format!("made the folder {}", crate::escape::escape_bytes(dir.as_bytes())));
    }
}

fn text(path: PathBuf) -> anyhow::Result<String> {
    path.into_os_string().into_string().map_err(|path| {
        let text = format!("{} is not UTF-8", crate::escape::escape_bytes(path.as_encoded_bytes()));
        UserError::new(Exit::Usage, text).hint("choose a folder with another name").into()
    })
}

/// [`resolve`], from the current directory on.
///
/// # Errors
/// When there is no current directory and the path needs one.
pub fn resolve_here(typed: &Path, mounts: &[PathBuf]) -> anyhow::Result<PathBuf> {
    if typed.is_absolute() {
        return Ok(resolve(typed, mounts));
    }
    let here = std::env::current_dir().context("cannot tell the current directory")?;
    Ok(resolve(&here.join(typed), mounts))
}

/// The same of paths that are already absolute, of which some may lead to what hangs for ever: those are taken as they are written. Each by a
/// thread of its own, see [`crate::identity`].
pub async fn resolve_each(paths: Vec<PathBuf>, mounts: Vec<PathBuf>, patience: Duration) -> Vec<PathBuf> {
    let mounts = Arc::new(mounts);
    let begin = |path: &PathBuf| {
        let (sender, resolved) = oneshot::channel();
        let (path, mounts) = (path.clone(), mounts.clone());
        let resolves = move || drop(sender.send(resolve(&path, &mounts))); // who asked may have gone
        drop(std::thread::Builder::new().name("path".into()).spawn(resolves)); // without a thread: as it is written
        resolved
    };
    let begun: Vec<_> = paths.iter().map(begin).collect();
    let deadline = tokio::time::Instant::now() + patience;
    let mut all = Vec::with_capacity(paths.len());
    for (path, resolved) in paths.into_iter().zip(begun) {
        let resolved = tokio::time::timeout_at(deadline, resolved).await;
        all.push(resolved.ok().and_then(Result::ok).unwrap_or(path));
    }
    all
}

/// Follow symbolic links and `..` as far as the system lets us, but stop looking at the first of `mounts`: below it
/// the path is taken as it is written. What does not exist is taken as it is written too.
pub fn resolve(path: &Path, mounts: &[PathBuf]) -> PathBuf {
    let parts = |path: &Path| path.components().map(|part| part.as_os_str().to_owned()).collect::<VecDeque<OsString>>();
    let (mut done, mut rest, mut links) = (PathBuf::from("/"), parts(path), 0);
    while let Some(part) = rest.pop_front() {
        match Path::new(&part).components().next() {
            Some(Component::RootDir) => done = "/".into(),
            Some(Component::ParentDir) => drop(done.pop()),
            Some(Component::Normal(name)) => {
                let untouchable = mounts.iter().any(|mount| done.starts_with(mount) || done.join(name) == *mount);
                done.push(name);
                if let Some(target) = (!untouchable && links < LINKS_MAX).then(|| done.read_link().ok()).flatten() {
                    links += 1;
                    done.pop();
                    let mut followed = parts(&target);
                    followed.append(&mut rest);
                    rest = followed;
                }
            }
            _ => {}
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_known_is_meant_wherever_it_leads_by_now() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        symlink("big", top.join("data")).unwrap();
        let path = |name: &str| top.join(name).into_os_string().into_string().unwrap();
        let meant = |typed: &str, known: &[String]| typed_among(&top.join(typed), known.iter()).unwrap();
        assert_eq!(meant("data/d/", &[path("big/d"), path("data/d")]), path("data/d"));
        assert_eq!(meant("data/d", &[path("big/d")]), path("big/d"));
        assert_eq!(meant("data/d", &[]), path("big/d"));
        assert!(typed_among(Path::new(""), [].iter()).is_err());
    }

    #[test]
    fn follows_links_but_not_into_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(top.join("mnt/inside")).unwrap();
        symlink("mnt", top.join("link")).unwrap();
        symlink("elsewhere", top.join("mnt/sub")).unwrap();
        symlink(top.join("loop"), top.join("loop")).unwrap();
        let mounts = [top.join("mnt")];
        let resolve = |typed: &str| resolve(&top.join(typed), &mounts).strip_prefix(&top).unwrap().to_path_buf();
        assert_eq!(resolve("link/inside"), Path::new("mnt/inside"));
        assert_eq!(resolve("link/sub/x"), Path::new("mnt/sub/x"), "a link inside the mount is not read");
        assert_eq!(resolve("./link/../mnt/a/../b"), Path::new("mnt/b"));
        assert_eq!(resolve("not/there"), Path::new("not/there"));
        assert_eq!(resolve("loop/x"), Path::new("loop/x"));
    }
}
