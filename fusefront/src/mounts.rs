//! The place to mount on: found in the mount table, never by looking into a file system that may not answer. What an
//! earlier run of ours left dead there is cleared away; what is alive, or holds something, is left alone.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use delugefs_proto::escape::quoted;
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::ids::random_u64;

use crate::os::{self, Mounted};

/// Dead mounts of ours that are cleared away at a time.
const LAYERS_MAX: usize = 8;
/// A mount that says nothing for this long is alive but stuck: somebody else's business.
const PROBE_WAIT: Duration = Duration::from_secs(3);
const PROBE_POLL: Duration = Duration::from_millis(10);

/// How a mount answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It does, or it is slow, and a living process serves it.
    Alive,
    /// Nobody serves it any more, and the kernel says so.
    Dead,
    /// No living process serves it, and yet the kernel waits for one.
    Silent,
}

/// Look whether the directory can be mounted on; its absolute path. A dead mount of ours stays until [`clear`]. `exact`: that path has to be
/// the one that was given.
pub fn prepare(given: &Path, exact: bool, probe: impl Fn(&Path) -> Liveness) -> anyhow::Result<PathBuf> {
    let dir = resolve(given)?;
    if exact && dir != given {
        let message = format!("{} leads to {} by a symbolic link", given.display(), dir.display());
        let hint = format!("if that is meant, `delugefs umount {}` and mount it anew", typed(given));
        return Err(UserError::new(Exit::BadMountpoint, message).hint(hint).into());
    }
    match top(&dir)? {
        Some(mounted) if mounted.kind == os::MOUNT_KIND => drop(refuse_living(&dir, probe)?),
        _ => check_empty(&dir)?,
    }
    Ok(dir)
}

/// The dead mount of ours that lies there, if the next one may be put over it; of several that lie upon each other all but the lowest are
/// cleared away. Not where programs still wait for it: that is to be cleared away.
///
/// As long as a dead mount is there, programs get an error. In the bare directory, for the moment between two mounts, they would write
/// files that the next one hides, or that keep it from coming back.
pub fn can_cover(
    dir: &Path,
    probe: impl Fn(&Path) -> Liveness,
    clear: impl Fn(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<Option<Mounted>> {
    let dead = || -> anyhow::Result<Option<Mounted>> {
        let Some(ours) = top(dir)?.filter(|mounted| mounted.kind == os::MOUNT_KIND) else { return Ok(None) };
        Ok((refuse_living(dir, &probe)? == Liveness::Dead).then_some(ours))
    };
    // With nothing else between them.
    let layers = || {
        let table = os::mount_table()?;
        let upper = table.iter().rev().filter(|other| other.dir == dir);
        Ok::<_, io::Error>(upper.take_while(|other| other.kind == os::MOUNT_KIND).count())
    };
    if !os::MOUNTS_OVER_DEAD {
        return Ok(None);
    }
    // The one below keeps programs out as well.
    while layers()? > 1 && dead()?.is_some() {
        clear(dir)?;
    }
    dead()
}

/// Clear away what is dead. Right before mounting, see [`can_cover`]; and what our own mount has covered, when that is gone.
pub fn clear(
    dir: &Path,
    probe: impl Fn(&Path) -> Liveness,
    clear: impl Fn(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for _ in 0..=LAYERS_MAX + 1 {
        match top(dir)? {
            Some(mounted) if mounted.kind == os::MOUNT_KIND => {
                refuse_living(dir, &probe)?;
                tracing::info!(dir = %dir.display(), "clearing away a dead mount");
                clear(dir)?;
            }
            _ => break,
        }
    }
    Ok(())
}

fn refuse_living(dir: &Path, probe: impl Fn(&Path) -> Liveness) -> anyhow::Result<Liveness> {
    match probe(dir) {
        dead @ (Liveness::Dead | Liveness::Silent) => Ok(dead),
        Liveness::Alive => {
            let message = format!("{} is already mounted", dir.display());
            let hint = format!("run `umount {}` first, or choose another directory", typed(dir));
            Err(UserError::new(Exit::InUse, message).hint(hint).into())
        }
    }
}

/// What is mounted on the directory, uppermost.
pub fn top(dir: &Path) -> io::Result<Option<Mounted>> {
    Ok(os::mount_table()?.into_iter().rfind(|mounted| mounted.dir == dir))
}

/// The absolute path, without asking the directory itself if it is a mountpoint: it may be dead.
fn resolve(dir: &Path) -> anyhow::Result<PathBuf> {
    let bad = |error: io::Error| unusable(dir, &error);
    if let Some(name) = dir.file_name() {
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let path = parent.canonicalize().map_err(bad)?.join(name);
        if top(&path)?.is_some() {
            return Ok(path);
        }
    }
    Ok(dir.canonicalize().map_err(bad)?)
}

/// The directory as a part of a command.
fn typed(dir: &Path) -> String {
    quoted(&dir.display().to_string())
}

/// Something in it would be hidden.
pub fn check_empty(dir: &Path) -> anyhow::Result<()> {
    let mut entries = std::fs::read_dir(dir).map_err(|error| unusable(dir, &error))?;
    if entries.next().is_some() {
        let what = format!("{} is not empty: what is in it would be hidden", dir.display());
        return Err(UserError::new(Exit::BadMountpoint, what).hint("choose an empty directory").into());
    }
    Ok(())
}

/// Why the directory cannot be looked at, and what to do about that.
fn unusable(dir: &Path, error: &io::Error) -> UserError {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => format!("run `mkdir -p {}`", typed(dir)),
        io::ErrorKind::PermissionDenied => "choose a directory that is yours, and that you can reach".to_owned(),
        // Some other program's: ours are not looked into.
        _ if is_unserved(error) => {
            format!(
                "what is mounted there is dead: run `{} {}`, or choose another directory",
                os::UMOUNT_DEAD,
                typed(dir)
            )
        }
        _ => "choose an empty directory".to_owned(),
    };
    UserError::new(Exit::BadMountpoint, format!("cannot mount on {}: {error}", dir.display())).hint(hint)
}

/// Ask a mount whether it is alive, from a process of its own: one that has asked a stuck mount cannot even be killed.
/// `ask` is that process: it exits with 0 if the mount is dead. One that gives no answer is dead too when `is_served`
/// knows of no living process behind it.
pub fn probe(mut ask: Command, is_served: impl Fn() -> bool) -> Liveness {
    let asked = ask.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = asked.inspect_err(|error| tracing::warn!(%error, "cannot ask an old mount")) else {
        return Liveness::Alive;
    };
    let deadline = Instant::now() + PROBE_WAIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Liveness::Dead,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(PROBE_POLL),
            Ok(None) => {
                let _it_may_be_stuck_for_good = child.kill();
                return if is_served() { Liveness::Alive } else { Liveness::Silent };
            }
            _ => return Liveness::Alive,
        }
    }
}

/// In the asking process: whether nobody serves the mount. Asks for a name that nobody can have asked for: about the
/// root itself the kernel answers from memory, for an hour after the last one who served it died.
pub fn is_dead(dir: &Path) -> bool {
    let name = format!(".delugefs-probe-{:016x}", random_u64());
    std::fs::symlink_metadata(dir.join(name)).is_err_and(|error| is_unserved(&error))
}

fn is_unserved(error: &io::Error) -> bool {
    const NOT_CONNECTED: [i32; 3] = [nix::libc::ENOTCONN, nix::libc::ECONNABORTED, nix::libc::ENXIO];
    error.raw_os_error().is_some_and(|code| NOT_CONNECTED.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare_plain(dir: &Path) -> anyhow::Result<PathBuf> {
        let dir = prepare(dir, false, |_| panic!("there is no mount to ask"))?;
        let ask = |_: &Path| panic!("there is no mount to ask");
        assert_eq!(can_cover(&dir, ask, |_| panic!("there is no mount to clear away"))?, None);
        clear(&dir, ask, |_| panic!("there is no mount to clear away"))?;
        check_empty(&dir)?;
        Ok(dir)
    }

    fn exit_of(error: &anyhow::Error) -> (Exit, bool) {
        let user = error.downcast_ref::<UserError>().expect("an error for users");
        (user.exit, user.hint.is_some())
    }

    #[test]
    fn takes_an_empty_directory_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("mnt");
        let missing = prepare_plain(&dir).unwrap_err();
        assert_eq!(exit_of(&missing), (Exit::BadMountpoint, true));
        std::fs::create_dir(&dir).unwrap();
        assert_eq!(prepare_plain(&dir).unwrap(), dir.canonicalize().unwrap());
        std::fs::write(dir.join("file"), "x").unwrap();
        assert_eq!(exit_of(&prepare_plain(&dir).unwrap_err()), (Exit::BadMountpoint, true));
        assert_eq!(exit_of(&prepare_plain(&dir.join("file")).unwrap_err()), (Exit::BadMountpoint, true));
    }

    /// Somebody may have put it there since it was mounted first.
    #[test]
    fn a_link_is_followed_only_for_who_types_it() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, link) = (temp.path().canonicalize().unwrap().join("mnt"), temp.path().join("link"));
        std::fs::create_dir(&dir).unwrap();
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        let ask = |_: &Path| panic!("there is no mount to ask");
        assert_eq!(prepare(&link, false, ask).unwrap(), dir);
        assert_eq!(prepare(&dir, true, ask).unwrap(), dir);
        let refused = prepare(&link, true, ask).unwrap_err();
        assert_eq!(exit_of(&refused), (Exit::BadMountpoint, true));
    }

    #[test]
    fn what_is_to_be_typed_is_safe_to_type() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("my files; rm x");
        let hint = |error: anyhow::Error| error.downcast::<UserError>().unwrap().hint.unwrap();
        let missing = hint(prepare_plain(&dir).unwrap_err());
        assert_eq!(missing, format!("run `mkdir -p '{}'`", dir.display()));
        let living = hint(refuse_living(&dir, |_| Liveness::Alive).unwrap_err());
        assert!(living.starts_with(&format!("run `umount '{}'` first", dir.display())), "{living}");
    }

    #[test]
    fn each_reason_has_its_own_way_out() {
        let hint = |code: i32| unusable(Path::new("/m"), &io::Error::from_raw_os_error(code)).hint.unwrap();
        assert_eq!(hint(nix::libc::ENOENT), "run `mkdir -p /m`");
        assert!(hint(nix::libc::EACCES).contains("that is yours"));
        assert!(hint(nix::libc::ENOTCONN).contains(&format!("run `{} /m`", os::UMOUNT_DEAD)));
        assert_eq!(hint(nix::libc::ENOTDIR), "choose an empty directory");
    }

    #[test]
    fn a_silent_process_means_alive() {
        let probe = |program: &str| probe(Command::new(program), || true);
        assert_eq!(probe("true"), Liveness::Dead);
        assert_eq!(probe("false"), Liveness::Alive);
        assert_eq!(probe("/nonexistent"), Liveness::Alive);
        assert!(!is_dead(Path::new("/")));
    }
}
