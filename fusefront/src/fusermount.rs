//! Mounting as a plain user on Linux: the set-user-id helper fusermount3 mounts, and passes /dev/fuse over a socket.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use delugefs_proto::exit::{Exit, UserError};

use crate::fdpass;

const HELPER: &str = "fusermount3";

/// Mount on the directory for the calling user. The descriptor of /dev/fuse.
pub fn mount(dir: &Path, source: &str) -> anyhow::Result<OwnedFd> {
    let source: String = source.chars().map(|c| if matches!(c, ',' | '\\') { '_' } else { c }).collect();
    let (ours, theirs) = UnixStream::pair()?;
    let child = Command::new(HELPER)
        .arg("-o")
        .arg(format!("fsname={source},subtype=delugefs,default_permissions,nosuid,nodev"))
        .arg("--")
        .arg(dir)
        // The helper's end is its standard input: that one is inherited without more ado.
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .env("_FUSE_COMMFD", "0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| not_there(&error))?;
    let received = fdpass::receive(&ours);
    let output = child.wait_with_output().context("waiting for fusermount3")?;
    match received {
        Ok(Some((_, Some(fuse)))) => Ok(fuse),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(UserError::new(Exit::NotPermitted, format!("cannot mount on {}: {said}", dir.display()))
                .hint("check that /dev/fuse exists and that the directory is yours, or run as root")
                .into())
        }
    }
}

/// Unmount; `lazy` also if it is in use or dead.
pub fn unmount(dir: &Path, lazy: bool) -> anyhow::Result<()> {
    let output = Command::new(HELPER)
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(dir)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_there(&error))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "cannot unmount {}: {}", dir.display(), said.trim());
    Ok(())
}

fn not_there(error: &std::io::Error) -> UserError {
    UserError::new(Exit::NotPermitted, format!("cannot run {HELPER}: {error}"))
        .hint("install the fuse3 package, or run as root")
}
