//! What happens to mounts: wanted, found alive, ready, ended, not wanted any more. A mount waits for a disk that is up;
//! after that its frontend lives through restarts of the worker by itself.

use std::path::{Path, PathBuf};
use std::time::Instant;

use delugefs_proto::exit::Exit;

use super::child::{Child, Next, Phase, Reply};
use super::state::{Disk, Effect, FRONTEND_STOP, Mount, MountSpec, News, State, stop};
use crate::escape::quoted;
use crate::failure::Failure;
use crate::mountpoint;
use crate::sys::MountId;

impl State {
    pub(super) fn add_mount(&mut self, spec: MountSpec, remember: bool, reply: Option<Reply>) {
        if self.is_stopping() {
            return self.answer(reply, Err(Self::is_ending()));
        }
        let dir = spec.dir.display().to_string();
        let disks = self.disks.iter().map(|disk| disk.spec.root.as_path());
        let mounts = self.mounts.iter().map(|mount| mount.spec.dir.as_path());
        if let Err(failure) = mountpoint::check_place(&spec.dir, disks, mounts) {
            match reply {
                Some(reply) => self.answer([reply], Err(failure)),
                None => self.mount_stuck(spec, remember, failure),
            }
            return;
        }
        let claims = reply.is_some() || !remember; // as for a disk
        let Some(at) = self.mounts.iter().position(|mount| mount.spec.dir == spec.dir) else {
            let mut child = Child::new(reply.is_none(), remember);
            child.claimed = claims;
            child.added.extend(reply);
            self.mounts.push(Mount::new(spec, child));
            return; // settle_mounts starts it
        };
        let mount = &mut self.mounts[at];
        let claimed = mount.child.claimed;
        mount.child.claimed |= claims;
        let free = mount.child.added.is_empty();
        let is_other_user = spec.user.is_some() && mount.spec.user != spec.user;
        match mount.child.phase {
            // `run` does not change what is remembered.
            Phase::BackingOff { .. } | Phase::Stopped | Phase::Waiting
                if mount.child.remember && !remember && is_other_user =>
            {
                mount.child.claimed = claimed;
                let failure = Failure::new(Exit::InUse, format!("{dir} is remembered as a mount of another user"));
                let hint = format!("leave out --user; or `delugefs umount {}` forgets that mount", quoted(&dir));
                self.answer(reply, Err(failure.hint(hint)));
            }
            Phase::BackingOff { .. } | Phase::Stopped => retry(mount, spec, remember, reply),
            // It is not mounted: whoever asks is told when it is, or why it cannot be.
            Phase::Waiting if free && reply.is_some() => retry(mount, spec, remember, reply),
            Phase::Stopping { .. } => {
                mount.child.claimed = claimed;
                let failure = Failure::new(Exit::InUse, format!("{dir} is being unmounted"));
                self.answer(reply, Err(failure.hint("try again in a few seconds")));
            }
            _ if claimed || mount.child.remember && (remember || mount.spec.user != spec.user) => {
                mount.child.claimed = claimed;
                let failure = Failure::new(Exit::InUse, format!("{dir} is mounted already"));
                let hint = format!("`delugefs umount {}` unmounts it; or choose another folder", quoted(&dir));
                self.answer(reply, Err(failure.hint(hint)));
            }
            // Left by an earlier supervisor and alive, or remembered: nothing to start.
            phase => {
                mount.child.remember |= remember;
                if mount.spec.user.is_none() {
                    // One that was found alive does not say whom it serves as: his worker is to let him in when it starts again.
                    (mount.spec.user, mount.spec.uid) = (spec.user, spec.uid);
                }
                if !mount.child.remember {
                    mount.spec.root = spec.root; // that of `run`
                }
                if matches!(phase, Phase::Up { .. }) {
                    let is_news = remember && reply.is_some(); // else the file has it, and more that is to come from there
                    self.answer(reply, Ok(String::new()));
                    if is_news {
                        self.remember();
                    }
                } else {
                    mount.child.added.extend(reply);
                }
            }
        }
    }

    /// It is shown as stopped: nothing else has to wait for somebody to look at it.
    pub(super) fn mount_stuck(&mut self, spec: MountSpec, remember: bool, failure: Failure) {
        if let Some(mount) = self.mounts.iter_mut().find(|mount| mount.spec.dir == spec.dir) {
            mount.child.remember |= remember; // it was alive, and goes on
            return;
        }
        let mut child = Child::new(true, remember);
        (child.phase, child.failure, child.claimed) = (Phase::Stopped, Some(failure), false);
        self.mounts.push(Mount::new(spec, child));
    }

    pub(super) fn remove_mount(&mut self, dir: &Path, release: bool, reply: Reply, now: Instant) {
        let Some(at) = self.mounts.iter().position(|mount| mount.spec.dir == dir) else {
            let failure = Failure::new(Exit::BadMountpoint, format!("{} is no mount of this host", dir.display()));
            return self.answer([reply], Err(failure.hint("`delugefs status` lists them")));
        };
        let child = &mut self.mounts[at].child;
        if release && child.remember && child.established {
            child.claimed = false;
            return self.answer([reply], Ok(String::new()));
        }
        child.removed.push(reply);
        if child.is_running() {
            stop(child, now + FRONTEND_STOP, &mut self.effects);
        } else {
            self.drop_mount(at, Err(Failure::new(Exit::Failure, "the mount was removed")));
        }
    }

    pub(super) fn mount_found(
        &mut self,
        (dir, mounted): (PathBuf, Option<MountId>),
        pid: u32,
        socket: &Path,
        now: Instant,
    ) {
        if self.mounts.iter().any(|mount| mount.spec.dir == dir) {
            return; // wanted meanwhile; starting it finds the frontend too
        }
        let run = self.new_run();
        let mut child = Child::new(false, false);
        child.claimed = false;
        child.adopted(run, pid, now);
        let shown = |disk: &&Disk| disk.served.as_ref().is_some_and(|served| served.local_socket == socket);
        let root = self.disks.iter().find(shown).map(|disk| disk.spec.root.clone());
        let mut mount = Mount::new(MountSpec { dir: dir.clone(), user: None, uid: None, root: None }, child);
        mount.root = root;
        mount.has_mounted(mounted);
        self.mounts.push(mount);
        self.effects.push(Effect::WatchFrontend { run, pid, dir });
    }

    pub(super) fn frontend_news(&mut self, at: usize, news: News, now: Instant) {
        let mount = &mut self.mounts[at];
        let child = &mut mount.child;
        match news {
            News::Started { pid, at_s } => child.begun(pid, at_s),
            News::FrontendReady { mounted } | News::Adopted { mounted, .. } if child.phase != Phase::Starting => {
                mount.has_mounted(mounted); // asked to stop in the meantime
            }
            News::FrontendReady { .. } | News::Adopted { .. } => {
                let mounted = match (news, child.run) {
                    (News::Adopted { pid, mounted }, Some(run)) => {
                        child.adopted(run, pid, now);
                        mounted
                    }
                    (News::FrontendReady { mounted }, _) => {
                        child.up(now);
                        mounted
                    }
                    _ => None,
                };
                if std::mem::take(&mut mount.doubtful) {
                    mount.mounted.clear();
                }
                mount.has_mounted(mounted);
                let child = &mut mount.child;
                let replies = std::mem::take(&mut child.added);
                let news = !replies.is_empty() && child.remember;
                self.answer(replies, Ok(String::new()));
                if news {
                    self.remember();
                }
            }
            News::WorkerReady(_) => {} // no frontend says so
            News::Left { mounted } if mount.mounted.contains(&mounted) => {}
            News::Left { mounted } => {
                mount.has_mounted(Some(mounted));
                mount.doubtful = true; // somebody else may have mounted in between
            }
            News::Ended(failure) => self.frontend_ended(at, failure, now),
        }
    }

    fn frontend_ended(&mut self, at: usize, failure: Failure, now: Instant) {
        let mount = &mut self.mounts[at];
        let child = &mut mount.child;
        let was_up = matches!(child.phase, Phase::Up { .. });
        // The worker was up, and did not answer at that moment: it is started again, for another user of a mount perhaps.
        let is_early = child.phase == Phase::Starting && failure.exit == Exit::NoDisk;
        let is_soon = child.is_soon();
        if is_early && child.again(failure.clone(), now) {
            if !is_soon {
                self.fail_adders(at, failure);
            }
            return;
        }
        // It has unmounted, or found something alive there: somebody else's, or its predecessor in its last moment.
        mount.doubtful |= matches!(failure.exit, Exit::Ok | Exit::InUse);
        match child.ended(failure.clone(), now) {
            Next::Remove => self.drop_mount(at, Err(failure)),
            Next::Start => child.phase = Phase::Waiting,
            Next::Wait => {
                // Somebody unmounted it by hand and will have meant it.
                if was_up && failure.exit == Exit::Ok {
                    child.phase = Phase::Stopped;
                    child.failure =
                        Some(Failure::new(Exit::Ok, format!("{} was unmounted by hand", mount.spec.dir.display())));
                }
                self.fail_adders(at, failure);
            }
        }
    }

    /// Who waits is told of the failure and goes away again: the next may ask for it.
    fn fail_adders(&mut self, at: usize, failure: Failure) {
        let child = &mut self.mounts[at].child;
        child.claimed &= child.added.is_empty() || !child.remember;
        let replies = std::mem::take(&mut child.added);
        self.answer(replies, Err(failure));
    }

    /// Start what waits and can start; fail the calls that wait for a disk that will not come.
    pub(super) fn settle_mounts(&mut self, now: Instant) {
        if self.is_stopping() {
            return;
        }
        for at in (0..self.mounts.len()).rev() {
            if self.mounts[at].child.phase == Phase::Waiting {
                if let Some(uid) = self.mounts[at].spec.uid {
                    self.let_in(uid, now);
                }
                self.start_frontend(at);
            }
        }
    }

    fn start_frontend(&mut self, at: usize) {
        // One that is gone for good, or seems to be, leaves its mount to any other, as it does while the frontend lives.
        let is_out = |disk: &Disk| match disk.child.phase {
            Phase::Stopped => true,
            Phase::BackingOff { .. } => disk.child.failure.as_ref().is_some_and(|it| it.exit == Exit::BadDisk),
            _ => false,
        };
        let mount = &self.mounts[at];
        let is_there = |root: &&PathBuf| self.disks.iter().any(|disk| disk.spec.root == **root && !is_out(disk));
        let bound = mount.spec.root.as_ref().filter(is_there).cloned();
        let up = |disk: &&Disk| matches!(disk.child.phase, Phase::Up { .. });
        let fits = |disk: &&Disk| bound.as_ref().is_none_or(|root| disk.spec.root == *root);
        // Where none was asked for, the one that it showed last comes first, and any other before none at all.
        let shown = |disk: &&Disk| mount.root.as_ref() == Some(&disk.spec.root);
        let ready = || self.disks.iter().filter(fits).filter(up);
        let target = ready().find(shown).or_else(|| ready().next()).and_then(|disk| {
            let socket = disk.served.as_ref()?.local_socket.clone();
            Some((disk.spec.root.clone(), socket, disk.spec.cluster.clone()))
        });
        // Its disk may have been named after it.
        let roots = self.disks.iter().map(|disk| disk.spec.root.as_path());
        if let Err(failure) = mountpoint::check_place(&self.mounts[at].spec.dir, roots, []) {
            let child = &mut self.mounts[at].child;
            if !child.established {
                return self.drop_mount(at, Err(failure));
            }
            (child.phase, child.failure) = (Phase::Stopped, Some(failure.clone()));
            return self.fail_adders(at, failure);
        }
        if let Some((root, socket, cluster)) = target {
            let run = self.new_run();
            let mount = &mut self.mounts[at];
            mount.root = Some(root);
            mount.child.starting(run);
            self.effects.push(Effect::StartFrontend { run, spec: mount.spec.clone(), socket, cluster });
        } else if !self.disks.iter().filter(fits).any(|disk| disk.child.phase != Phase::Stopped) {
            let failure = Failure::new(Exit::NoDisk, "no disk is running on this host, so there is nothing to mount")
                .hint("`delugefs disk add ROOT` starts one");
            if self.mounts[at].child.established {
                self.fail_adders(at, failure);
            } else {
                self.drop_mount(at, Err(failure));
            }
        }
    }

    pub(super) fn drop_mount(&mut self, at: usize, to_adders: Result<String, Failure>) {
        let mount = self.mounts.remove(at);
        self.answer(mount.child.added, to_adders);
        // What a frontend left that ended without unmounting.
        if !mount.mounted.is_empty() {
            let (dir, mounted, only_dead) = (mount.spec.dir, mount.mounted, mount.doubtful);
            self.effects.push(Effect::Detach { dir, mounted, only_dead });
        }
        if mount.child.remember && mount.child.established {
            self.remember();
        }
        self.answer(mount.child.removed, Ok(String::new()));
    }
}

/// Once more, for one more that asks; settle_mounts starts it.
fn retry(mount: &mut Mount, mut spec: MountSpec, remember: bool, reply: Option<Reply>) {
    if mount.child.remember && !remember {
        (spec.user, spec.uid) = (mount.spec.user.take(), mount.spec.uid); // as it was added
    }
    mount.child.added.extend(reply);
    mount.child.remember |= remember;
    mount.root = spec.root.clone().or(mount.root.take());
    mount.spec = spec;
    mount.child.phase = Phase::Waiting;
}
