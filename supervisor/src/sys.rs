//! What differs between Linux and FreeBSD: the mount table, asking about a process, detaching a dead mount. None of it
//! touches a mounted file system, so none of it can hang on one whose frontend is dead or stuck.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Which mount this is, among all that were or will be on its mountpoint. The system uses a number again after the mount
/// is gone, so this says something only of a mount that nobody has unmounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountId(String);

#[cfg(test)]
impl MountId {
    pub(crate) fn of_test(text: &str) -> Self {
        Self(text.into())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    dir: PathBuf,
    id: MountId,
    is_ours: bool,
}

/// Seconds on a clock of this machine that never steps and goes on while it sleeps.
pub fn uptime_s() -> u64 {
    #[cfg(target_os = "linux")]
    let clock = nix::time::ClockId::CLOCK_BOOTTIME;
    // FreeBSD's goes on during a suspend, and has had the other name only since 14.
    #[cfg(not(target_os = "linux"))]
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    nix::time::clock_gettime(clock).map_or(0, |now| now.tv_sec() as u64)
}

/// Mountpoints of DelugeFS on this machine, whether alive or dead.
///
/// # Errors
/// When the mount table cannot be read.
pub fn delugefs_mounts() -> io::Result<Vec<PathBuf>> {
    Ok(mount_table()?.into_iter().filter(|entry| entry.is_ours).map(|entry| entry.dir).collect())
}

/// The uppermost mount at this place, if it is one of DelugeFS.
///
/// # Errors
/// When the mount table cannot be read.
pub fn delugefs_at(dir: &Path) -> io::Result<Option<MountId>> {
    let top = mount_table()?.into_iter().rfind(|entry| entry.dir == dir);
    Ok(top.filter(|entry| entry.is_ours).map(|entry| entry.id))
}

/// All mounts of DelugeFS at this place, the uppermost last: a mount covers the dead ones of earlier processes.
///
/// # Errors
/// When the mount table cannot be read.
pub fn layers_at(dir: &Path) -> io::Result<Vec<MountId>> {
    let here = mount_table()?.into_iter().filter(|entry| entry.dir == dir && entry.is_ours);
    Ok(here.map(|entry| entry.id).collect())
}

fn mount_table() -> io::Result<Vec<Entry>> {
    #[cfg(target_os = "linux")]
    let table = parse_mountinfo(&std::fs::read("/proc/self/mountinfo")?);
    #[cfg(not(target_os = "linux"))]
    let asked = Command::new("/sbin/mount").arg("-v").stdin(Stdio::null()).output();
    #[cfg(not(target_os = "linux"))]
    let asked = asked.map_err(|error| io::Error::new(error.kind(), format!("cannot run /sbin/mount: {error}")));
    #[cfg(not(target_os = "linux"))]
    let table = parse_mount(&asked?.stdout);
    Ok(table)
}

/// `/proc/self/mountinfo`: "id parent major:minor root mountpoint options [optional...] - type source options".
#[cfg(any(target_os = "linux", test))]
fn parse_mountinfo(table: &[u8]) -> Vec<Entry> {
    let entry = |line: &[u8]| {
        let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let fs_type = words.iter().skip_while(|word| **word != b"-").nth(1)?;
        let id = [words[0], words.get(2)?].map(String::from_utf8_lossy).join(" ");
        Some(Entry { dir: unescape_octal(words.get(4)?), id: MountId(id), is_ours: *fs_type == b"fuse.delugefs" })
    };
    table.split(|b| *b == b'\n').filter_map(entry).collect()
}

/// `mount -v` of FreeBSD writes "device on mountpoint (type, options, fsid hex)". Nothing in it is escaped, as in `mount -p`, where a
/// mountpoint with a blank could not be told from what follows. All mounts of FUSE have the same device; only root is told the fsid.
#[cfg(any(not(target_os = "linux"), test))]
fn parse_mount(table: &[u8]) -> Vec<Entry> {
    let entry = |line: &[u8]| {
        let (place, options) = line.split_at(line.windows(2).rposition(|two| two == b" (")?);
        let on = place.windows(4).position(|four| four == b" on ")?;
        let options = String::from_utf8_lossy(options.get(2..)?.strip_suffix(b")")?);
        let mut words = options.split(", ");
        let is_ours = words.next()? == "fusefs.delugefs";
        let id = words.find_map(|word| word.strip_prefix("fsid ").map(str::to_owned));
        let id = id.unwrap_or_else(|| String::from_utf8_lossy(&place[..on]).into_owned());
        Some(Entry { dir: std::ffi::OsString::from_vec(place[on + 4..].to_vec()).into(), id: MountId(id), is_ours })
    };
    table.split(|b| *b == b'\n').filter_map(entry).collect()
}

/// A blank in a path is written as `\040`, and a backslash as `\134`.
#[cfg(any(target_os = "linux", test))]
fn unescape_octal(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let digits = text
            .get(at + 1..at + 4)
            .filter(|digits| text[at] == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        match digits.map(|digits| digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'))) {
            Some(value) if value < 256 => {
                out.push(value as u8);
                at += 4;
            }
            _ => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Whether this process was started with a signal ignored. To be asked once, at the start, and not of one that has a handler.
#[allow(unsafe_code)]
pub fn ignores(signal: Signal) -> bool {
    use nix::sys::signal::{SigHandler, signal as set};
    // SAFETY: no handler is set that could run at a bad moment.
    let before = unsafe { set(signal, SigHandler::SigIgn) };
    let is_ignored = matches!(before, Ok(SigHandler::SigIgn));
    if !is_ignored {
        // SAFETY: as above.
        let restored = unsafe { set(signal, SigHandler::SigDfl) };
        debug_assert!(restored.is_ok(), "it could be ignored");
    }
    is_ignored
}

/// Whether process `pid` lives and runs `program`. A process id alone proves nothing: the system uses it again.
pub fn is_running(pid: u32, program: &str) -> bool {
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1) else { return false };
    if kill(Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH) {
        return false;
    }
    // The system keeps only the first 15 (Linux) or 19 (FreeBSD) bytes of a name.
    command_of(pid)
        .is_some_and(|command| command.len() >= program.len().min(15) && program.as_bytes().starts_with(&command))
}

/// The name of the program a living process runs; none for a zombie.
#[cfg(target_os = "linux")]
fn command_of(pid: i32) -> Option<Vec<u8>> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?; // "pid (name) state ..."
    let open = stat.iter().position(|b| *b == b'(')?;
    let close = stat.iter().rposition(|b| *b == b')')?;
    let state = *stat.get(close + 2)?;
    (open < close && state != b'Z' && state != b'X').then(|| stat[open + 1..close].to_vec())
}

/// The name of the program a living process runs; none for a zombie.
#[cfg(not(target_os = "linux"))]
fn command_of(pid: i32) -> Option<Vec<u8>> {
    let asked = Command::new("/bin/ps").args(["-o", "state=", "-o", "comm=", "-p", &pid.to_string()]).output().ok()?;
    let line = asked.stdout.trim_ascii();
    let (state, command) = line.split_at(line.iter().position(|b| b.is_ascii_whitespace())?);
    (!state.starts_with(b"Z")).then(|| command.trim_ascii().to_vec())
}

/// Take a mount that nobody serves any more out of the namespace, without waiting for it.
pub fn detach(dir: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::mount::MntFlags;
        // Who owns a folder above could have put a link to another mount there.
        let flags = MntFlags::MNT_FORCE | MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        match nix::mount::umount2(dir, flags) {
            Ok(()) => return Ok(()),
            Err(nix::errno::Errno::EPERM) => {} // not root: the helper of fuse may
            Err(error) => return Err(error.into()),
        }
    }
    let (helper, flag) = if cfg!(target_os = "linux") { ("fusermount3", "-uz") } else { ("/sbin/umount", "-f") };
    let done = Command::new(helper).arg(flag).arg("--").arg(dir).stdin(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_our_mounts_in_both_tables() {
        let linux = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            40 22 0:40 / /mnt/my\\040films rw,nosuid shared:7 master:2 - fuse.delugefs home rw,user_id=0\n\
            41 22 0:41 / /mnt/other rw - fuse.sshfs x rw\n\
            42 22 0:42 / /mnt/b\\134 rw - fuse.delugefs home rw\ngarbage\n";
        let ours = |table: Vec<Entry>| {
            let ours = table.into_iter().filter(|entry| entry.is_ours);
            ours.map(|entry| (entry.dir.display().to_string(), entry.id.0)).collect::<Vec<_>>()
        };
        let pair = |dir: &str, id: &str| (dir.to_string(), id.to_string());
        assert_eq!(ours(parse_mountinfo(linux)), [pair("/mnt/my films", "40 0:40"), pair("/mnt/b\\", "42 0:42")]);
        let freebsd = b"/dev/ada0p2 on / (ufs, local, soft-updates, writes: sync 5 async 7, fsid 1c2d)\n\
            devfs on /dev (devfs, local, fsid 00ff)\n\
            /dev/fuse on /mnt/my films on (2) tapes (fusefs.delugefs, local, nosuid, mounted by alice, fsid 04ff0037)\n\
            /dev/fuse on /mnt/b (fusefs.delugefs)\n/dev/fuse on /mnt/other (fusefs.sshfs, fsid 07)\ngarbage\n";
        let (films, b) = (pair("/mnt/my films on (2) tapes", "04ff0037"), pair("/mnt/b", "/dev/fuse"));
        assert_eq!(ours(parse_mount(freebsd)), [films, b]);
    }

    #[test]
    fn a_process_is_known_by_its_name_too() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        assert!(is_running(child.id(), "sleep"));
        assert!(!is_running(child.id(), "delugefs-diskworker"));
        assert!(!is_running(0, "init") && !is_running(u32::MAX, "sleep"));
        child.kill().unwrap();
        while is_running(child.id(), "sleep") {
            std::thread::yield_now(); // the signal is on its way; what is left is a zombie, which does not count
        }
        child.wait().unwrap();
        assert!(!is_running(child.id(), "sleep"));
    }
}
