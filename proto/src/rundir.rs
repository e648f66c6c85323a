//! Names below a host's run directory: sockets and locks of the running processes. Nothing in it outlives a reboot. And the
//! lock of the state directory, where the rest is the supervisor's own business.

use std::io;
use std::path::{Path, PathBuf};

use crate::escape::quoted;

/// sun_path holds 104 bytes on FreeBSD (108 on Linux), with its NUL.
pub const SOCKET_PATH_MAX_BYTES: usize = 103;

/// The supervisor's control socket (gRPC).
pub fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}

/// Held (flock) by the host's supervisor while it runs.
pub fn supervisor_lock(run_dir: &Path) -> PathBuf {
    run_dir.join("supervisor.lock")
}

/// In the state directory: held (flock) by the supervisor that keeps its state there while it runs.
pub fn state_lock(state_dir: &Path) -> PathBuf {
    state_dir.join("state.lock")
}

/// Framed socket of the worker of the disk whose id starts with `short_id` (8 hex digits).
pub fn local_socket(run_dir: &Path, short_id: &str) -> PathBuf {
    run_dir.join(format!("{short_id}.sock"))
}

/// gRPC socket of that worker.
pub fn grpc_socket(run_dir: &Path, short_id: &str) -> PathBuf {
    run_dir.join(format!("{short_id}.grpc"))
}

/// The run directory when none is given: `/var/run/delugefs` for root, else the user's runtime folder.
pub fn default_run_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/run/delugefs".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("delugefs"),
        _ => std::env::temp_dir().join(format!("delugefs-{}", nix::unistd::geteuid())),
    }
}

/// The state directory when none is given: `/var/db/delugefs` for root, else the user's.
pub fn default_state_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/db/delugefs".into();
    }
    match (std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")) {
        (Some(dir), _) if !dir.is_empty() => PathBuf::from(dir).join("delugefs"),
        (_, Some(home)) if !home.is_empty() => PathBuf::from(home).join(".local/state/delugefs"),
        _ => std::env::temp_dir().join(format!("delugefs-state-{}", nix::unistd::geteuid())),
    }
}

/// Make a private directory (0755, ours), and refuse one that belongs to somebody else or that others may write:
/// whoever can write there can put his own socket in our place. Nor is it a symbolic link where others may put one: that would lead us
/// to a directory of their choosing. What is above it may be one, as `/var/run` is.
pub fn prepare(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    // With a slash at its end a link would be followed.
    let dir: &Path = &dir.components().collect::<PathBuf>();
    make(dir)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if std::fs::symlink_metadata(dir)?.is_symlink() && std::fs::metadata(parent)?.mode() & 0o022 != 0 {
        return Err(io::Error::other(format!(
            "{} is a symbolic link in a directory that others may write; choose another with --run-dir",
            dir.display()
        )));
    }
    let meta = std::fs::metadata(dir)?;
    let me = nix::unistd::geteuid().as_raw();
    if meta.uid() != me && meta.uid() != 0 {
        return Err(io::Error::other(format!(
            "{} belongs to uid {}, not to us (uid {me}); choose another with --run-dir",
            dir.display(),
            meta.uid()
        )));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(io::Error::other(format!(
            "{} may be written by others; run `chmod go-w {}`",
            dir.display(),
            quoted(&dir.display().to_string())
        )));
    }
    // The longest name below it.
    let longest = local_socket(dir, "12345678.grpc");
    if longest.as_os_str().len() > SOCKET_PATH_MAX_BYTES {
        return Err(io::Error::other(format!(
            "{} is too long for the path of a socket; choose a shorter one with --run-dir",
            dir.display()
        )));
    }
    Ok(())
}

/// Make a directory, and those above it that are missing, with the mode 0755 whatever the umask: frontends of other users have to reach
/// the sockets, and who may write above them may put a directory of his own there.
fn make(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o755);
    let made = match builder.create(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => make(parent).and_then(|()| builder.create(dir)),
            _ => Err(error),
        },
        made => made,
    };
    match made {
        Ok(()) => std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_to_be_typed_is_safe_to_type() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a b");
        prepare(&dir).unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).unwrap();
        let error = prepare(&dir).unwrap_err().to_string();
        assert!(error.ends_with(&format!("run `chmod go-w '{}'`", dir.display())), "{error}");
    }

    /// In a process of its own, for the umask is the whole process's.
    #[test]
    fn what_is_made_above_it_has_its_mode_whatever_the_umask() {
        const DIR: &str = "DELUGEFS_TEST_PREPARE";
        if let Some(dir) = std::env::var_os(DIR) {
            return prepare(Path::new(&dir)).unwrap();
        }
        for umask in ["000", "022", "077"] {
            let temp = tempfile::tempdir().unwrap();
            let dir = temp.path().join("a/b/c");
            let test = "rundir::tests::what_is_made_above_it_has_its_mode_whatever_the_umask";
            let run = format!("umask {umask}; exec \"$0\" --exact {test}");
            let exe = std::env::current_exe().unwrap();
            let done = std::process::Command::new("sh").args(["-c", &run]).arg(exe).env(DIR, &dir).output().unwrap();
            assert!(done.status.success(), "{done:?}");
            for made in [temp.path().join("a"), temp.path().join("a/b"), dir] {
                let mode = std::fs::metadata(&made).unwrap().permissions().mode() & 0o7777;
                assert_eq!(mode, 0o755, "{} with umask {umask}", made.display());
            }
        }
    }

    #[test]
    fn a_link_that_others_may_have_put_there_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let above = temp.path().join("above");
        prepare(&temp.path().join("real/run")).unwrap();
        std::fs::create_dir(&above).unwrap();
        std::os::unix::fs::symlink(temp.path().join("real/run"), above.join("link")).unwrap();
        std::os::unix::fs::symlink(temp.path().join("real"), above.join("parent")).unwrap();
        for mode in [0o1777, 0o777, 0o775] {
            std::fs::set_permissions(&above, PermissionsExt::from_mode(mode)).unwrap();
            for dir in ["link", "link/", "link/."] {
                let error = prepare(&above.join(dir)).unwrap_err().to_string();
                assert!(error.contains("is a symbolic link in a directory that others may write"), "{error}");
            }
            prepare(&above.join("parent/run")).unwrap();
        }
        std::fs::set_permissions(&above, PermissionsExt::from_mode(0o755)).unwrap();
        prepare(&above.join("link")).unwrap();
    }
}
