//! `state`, one line: `<actor, 16 hex digits> clean|open`; what else is in it is not read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use delugefs_proto::ids::ActorId;
use nix::fcntl::{OFlag, renameat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::os;

const STATE: &str = "state";
const TEMPORARY: &str = "tmp-state";

/// Whether the last stop was clean. Not where it is not readable: that is the careful answer. The actor is for people: every
/// start takes a new one.
pub(super) fn is_clean(dir: &File) -> bool {
    let mut text = String::new();
    let read = os::open_file(dir, STATE, OFlag::O_RDONLY).map(|file| file.take(256).read_to_string(&mut text));
    if !matches!(read, Ok(Ok(_))) {
        text.clear();
    }
    text.split_whitespace().nth(1) == Some("clean")
}

pub(super) fn write(dir: &File, actor: ActorId, clean: bool) -> io::Result<()> {
    let word = if clean { "clean" } else { "open" };
    let line = format!("{:016x} {word}\n", actor.0);
    match replace(dir, line.as_bytes()) {
        // Then into the block it has, which is one sector's write. A mixture of both lines would do no harm either: it
        // is taken for an unclean stop.
        Err(error) if super::is_full(&error) => {
            let _ = unlinkat(dir, TEMPORARY, UnlinkatFlags::NoRemoveDir);
            let Ok(file) = os::open_file(dir, STATE, OFlag::O_RDWR) else { return Err(error) };
            file.write_all_at(line.as_bytes(), 0)?;
            file.set_len(line.len() as u64)?;
            file.sync_all()
        }
        replaced => replaced,
    }
}

fn replace(dir: &File, line: &[u8]) -> io::Result<()> {
    let file = os::open_file(dir, TEMPORARY, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC)?;
    file.write_all_at(line, 0)?;
    file.sync_all()?;
    renameat(dir, TEMPORARY, dir, STATE)?;
    Ok(fsync(dir)?)
}
