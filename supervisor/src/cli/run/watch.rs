//! What has become of what `delugefs run` serves: its disk may go while other disks of the host go on, and with them its mount.

use delugefs_proto::control_pb::{self as pb, disk, mount};
use delugefs_proto::exit::Exit;

use crate::failure::Failure;

/// What is watched, and how its disk was when it was looked at last.
#[derive(Debug)]
pub(super) struct Watched {
    /// The disk's folder.
    pub root: String,
    /// The mountpoint, if it has one.
    pub dir: Option<String>,
    /// All disks of the host are served with it: it has started the supervisor.
    pub whole_host: bool,
    /// What was said last of the disk, which is not there; others go on.
    pub away: Option<String>,
}

/// What a look says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// As before.
    Same,
    /// A person should know.
    Note(String),
    /// There is nothing left to serve.
    End(Failure),
}

impl Watched {
    /// Compare with what was there.
    pub fn look(&mut self, host: &pb::HostStatus) -> Seen {
        let unknown = || Failure::new(Exit::Failure, "it ended");
        let failure = |failure: &Option<pb::Failure>| failure.clone().map_or_else(unknown, Failure::from);
        let removed = |what: String| Failure::new(Exit::Ok, format!("{what} was taken away by another command"));
        if let Some(dir) = &self.dir {
            match host.mounts.iter().find(|mount| mount.dir == *dir) {
                None => return Seen::End(removed(format!("the mount at {dir}"))),
                Some(mount) if mount.state() == mount::State::Stopped => return Seen::End(failure(&mount.failure)),
                Some(_) => {}
            }
        }
        let root = &self.root;
        let gone = match host.disks.iter().find(|disk| disk.root == *root) {
            None => Some(removed(format!("the disk at {root}"))),
            Some(disk) if disk.state() == disk::State::Stopped => Some(failure(&disk.failure)),
            Some(_) => None,
        };
        let is_up = host.disks.iter().any(|disk| disk.root == *root && disk.state() == disk::State::Up);
        match gone {
            Some(gone) if !self.has_more() => Seen::End(gone),
            Some(gone) if others(host, root).next().is_none() => {
                // Its own was taken away earlier, in peace: what ends it is how the others ended.
                let earlier = self.away.is_some() && gone.exit == Exit::Ok;
                let stopped = |disk: &&pb::Disk| disk.root != *root && disk.state() == disk::State::Stopped;
                let last = host.disks.iter().filter(|_| earlier).filter(stopped).find_map(|disk| disk.failure.clone());
                Seen::End(last.map_or(gone, Failure::from))
            }
            Some(gone) => {
                let is_any = |state| others(host, root).any(|disk| disk.state() == state);
                let then = if is_any(disk::State::Up) {
                    "goes on with the other disks of this host"
                } else if self.away.is_none() || is_any(disk::State::BackingOff) {
                    "none of the other disks of this host is up: waits for them (`delugefs status -x` says what is wrong)"
                } else {
                    return Seen::Same; // in a moment it is known
                };
                let note = format!("{}; {then}", gone.message);
                if self.away.as_ref() == Some(&note) {
                    return Seen::Same;
                }
                Seen::Note(self.away.insert(note).clone())
            }
            None if is_up && self.away.take().is_some() => Seen::Note(format!("the disk at {root} is back")),
            None => Seen::Same,
        }
    }

    /// Something is served besides the disk.
    fn has_more(&self) -> bool {
        self.whole_host || self.dir.is_some()
    }
}

/// The disks at other folders that serve, or will without anybody's help.
pub(super) fn others<'a>(host: &'a pb::HostStatus, root: &'a str) -> impl Iterator<Item = &'a pb::Disk> {
    let serves = |disk: &&pb::Disk| !matches!(disk.state(), disk::State::Stopped | disk::State::Stopping);
    host.disks.iter().filter(move |disk| disk.root != root).filter(serves)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(root: &str, state: disk::State) -> pb::Disk {
        let message = format!("{root} does not exist");
        let failure = Some(Failure::new(Exit::NoDisk, message).to_pb()).filter(|_| state == disk::State::Stopped);
        pb::Disk { root: root.into(), state: state.into(), failure, ..pb::Disk::default() }
    }

    fn host(disks: Vec<pb::Disk>) -> pb::HostStatus {
        let mount = pb::Mount { dir: "/m".into(), state: mount::State::Up.into(), ..pb::Mount::default() };
        pb::HostStatus { disks, mounts: vec![mount], ..pb::HostStatus::default() }
    }

    fn watched(dir: Option<&str>, whole_host: bool) -> Watched {
        Watched { root: "/a".into(), dir: dir.map(Into::into), whole_host, away: None }
    }

    #[test]
    fn it_ends_with_its_disk_only_if_nothing_else_is_left_to_serve() {
        use disk::State::{Starting, Stopped, Up};
        let ends = |watched: &mut Watched, disks| match watched.look(&host(disks)) {
            Seen::End(failure) => Some(failure.exit),
            _ => None,
        };
        for (dir, whole_host) in [(Some("/m"), true), (Some("/m"), false), (None, true)] {
            let one = || watched(dir, whole_host);
            assert_eq!(ends(&mut one(), vec![disk("/a", Stopped), disk("/b", Up)]), None);
            assert_eq!(ends(&mut one(), vec![disk("/a", Stopped), disk("/b", Starting)]), None);
            assert_eq!(ends(&mut one(), vec![disk("/b", Up)]), None, "removed");
            assert_eq!(ends(&mut one(), vec![disk("/a", Stopped), disk("/b", Stopped)]), Some(Exit::NoDisk));
            assert_eq!(ends(&mut one(), vec![disk("/a", Stopped)]), Some(Exit::NoDisk));
            assert_eq!(ends(&mut one(), vec![]), Some(Exit::Ok));
        }
        let mut it = watched(Some("/m"), true);
        assert_eq!(ends(&mut it, vec![disk("/b", Up)]), None, "its own is removed");
        assert_eq!(ends(&mut it, vec![disk("/b", Stopped)]), Some(Exit::NoDisk), "the last one went by itself");
        let mut it = watched(Some("/m"), true);
        assert_eq!(ends(&mut it, vec![disk("/b", Stopped)]), Some(Exit::Ok), "its own was the last one");
        let alone = || watched(None, false);
        assert_eq!(ends(&mut alone(), vec![disk("/a", Stopped), disk("/b", Up)]), Some(Exit::NoDisk));
        assert_eq!(ends(&mut alone(), vec![disk("/b", Up)]), Some(Exit::Ok), "the others are another command's");
        let unmounted = pb::HostStatus { mounts: vec![], ..host(vec![disk("/a", Up), disk("/b", Up)]) };
        assert!(matches!(watched(Some("/m"), true).look(&unmounted), Seen::End(_)));
    }

    #[test]
    fn a_disk_that_goes_and_comes_is_said_once_each() {
        use disk::State::{Starting, Stopped, Up};
        let mut it = watched(Some("/m"), true);
        let with = |state| host(vec![disk("/a", state), disk("/b", Up)]);
        assert_eq!(it.look(&with(Up)), Seen::Same);
        let note = "/a does not exist; goes on with the other disks of this host";
        assert_eq!(it.look(&with(Stopped)), Seen::Note(note.into()));
        assert_eq!(it.look(&with(Stopped)), Seen::Same);
        // It is tried to be started whenever its folder seems to be back.
        assert_eq!(it.look(&with(Starting)), Seen::Same);
        assert_eq!(it.look(&with(Stopped)), Seen::Same);
        assert_eq!(it.look(&with(Up)), Seen::Note("the disk at /a is back".into()));
        assert_eq!(it.look(&with(Up)), Seen::Same);
    }

    #[test]
    fn it_does_not_go_on_with_disks_that_are_not_up() {
        use disk::State::{BackingOff, Starting, Stopped, Up};
        let mut it = watched(Some("/m"), true);
        let with = |other| host(vec![disk("/a", Stopped), disk("/b", other)]);
        let waits = "/a does not exist; none of the other disks of this host is up: waits for them (`delugefs status -x` says what is wrong)";
        let (waits, goes_on) =
            (Seen::Note(waits.into()), "/a does not exist; goes on with the other disks of this host");
        assert_eq!(it.look(&with(BackingOff)), waits);
        assert_eq!([it.look(&with(Starting)), it.look(&with(BackingOff))], [Seen::Same, Seen::Same]);
        assert_eq!(it.look(&with(Up)), Seen::Note(goes_on.into()));
        assert_eq!(it.look(&with(Starting)), Seen::Same, "as for a new mount's user");
        assert_eq!(it.look(&with(BackingOff)), waits, "what is so again is said again");
        // Another reason is news, and the one before it then, too.
        let failure = Some(Failure::new(Exit::WrongCluster, "it is another one").to_pb());
        let other = pb::Disk { failure, ..disk("/a", Stopped) };
        let note = "it is another one; goes on with the other disks of this host";
        assert_eq!(it.look(&host(vec![other, disk("/b", Up)])), Seen::Note(note.into()));
        assert_eq!(it.look(&with(Up)), Seen::Note(goes_on.into()));
    }
}
