//! Mounts: which disk they show, who may have them, and what is left of them.

use super::*;

#[test]
fn a_frontend_that_dies_is_started_again_when_its_disk_is_up() {
    let (mut sim, worker, frontend) = Sim::with_mount();
    sim.ends(worker, Exit::Failure);
    sim.ends(frontend, Exit::Failure);
    sim.later(Duration::from_millis(200));
    let worker = sim.started();
    sim.later(Duration::from_millis(200));
    assert!(sim.effects.is_empty(), "no worker to connect to");
    sim.news(worker, News::WorkerReady(served()));
    assert!(matches!(sim.effect(), Effect::StartFrontend { .. }));
}

#[test]
fn a_mount_shows_the_disk_it_was_asked_for() {
    let (mut sim, _) = Sim::with_disk();
    let _answer = sim.add_disk("/b");
    let second = sim.started();
    let socket = |disk: &str| std::path::PathBuf::from(format!("/r{disk}"));
    let of = |disk: &str| Served { local_socket: socket(disk), ..served() };
    sim.news(second, News::WorkerReady(of("/b")));
    for (root, shown) in [("/b", socket("/b")), ("/gone", served().local_socket)] {
        let spec = MountSpec { dir: format!("/m{root}").into(), user: None, uid: None, root: Some(root.into()) };
        let _answer = sim.asks(|reply| Event::AddMount { spec, remember: false, reply: Some(reply) });
        let Effect::StartFrontend { socket, .. } = sim.effect() else { panic!() };
        assert_eq!(socket, shown, "{root}");
    }
}

#[test]
fn a_frontend_that_dies_while_its_disk_is_out_shows_another_one() {
    for exit in [Exit::NoDisk, Exit::BadDisk] {
        let (mut sim, worker, frontend) = Sim::with_mount();
        let _answer = sim.add_disk("/b");
        let second = sim.started();
        let served = Served { local_socket: "/r/b.sock".into(), ..served() };
        sim.news(second, News::WorkerReady(served.clone()));
        sim.ends(worker, exit);
        assert!(sim.effects.is_empty(), "the frontend turns to another by itself");
        sim.ends(frontend, Exit::Failure);
        sim.later(Duration::from_millis(200));
        // A damaged one is tried again first.
        let again = sim.effects.iter().find_map(|effect| match effect {
            Effect::StartWorker { run, .. } => Some(*run),
            _ => None,
        });
        again.into_iter().for_each(|run| sim.ends(run, exit));
        let shown = sim.effects.iter().find_map(|effect| match effect {
            Effect::StartFrontend { socket, .. } => Some(socket),
            _ => None,
        });
        assert_eq!(shown, Some(&served.local_socket), "{:?}", sim.effects);
    }
}

#[test]
fn a_frontend_that_dies_while_its_disk_fails_shows_another_one_unless_it_was_asked_for() {
    for asked in [false, true] {
        let (mut sim, worker) = Sim::with_disk();
        let root = asked.then(|| "/a".into());
        let spec = MountSpec { dir: "/m".into(), user: None, uid: None, root };
        let _mounted = sim.asks(|reply| Event::AddMount { spec, remember: false, reply: Some(reply) });
        let frontend = sim.started();
        sim.news(frontend, News::FrontendReady { mounted: None });
        let _answer = sim.add_disk("/b");
        let second = sim.started();
        let served = Served { local_socket: "/r/b.sock".into(), ..served() };
        sim.news(second, News::WorkerReady(served.clone()));
        sim.ends(worker, Exit::Failure);
        sim.ends(frontend, Exit::Failure);
        sim.later(Duration::from_millis(200));
        let shown = sim.effects.iter().find_map(|effect| match effect {
            Effect::StartFrontend { socket, .. } => Some(socket),
            _ => None,
        });
        assert_eq!(shown, Some(&served.local_socket).filter(|_| !asked), "{:?}", sim.effects);
    }
}

#[test]
fn a_frontend_that_was_unmounted_by_hand_stays_so_until_it_is_asked_for() {
    let (mut sim, _, frontend) = Sim::with_mount();
    sim.ends(frontend, Exit::Ok);
    sim.later(Duration::from_secs(100));
    assert!(sim.effects.is_empty());
    assert_eq!(sim.state.mounts[0].child.phase, Phase::Stopped);
    let _answer = sim.add_mount("/m", None);
    sim.started();
}

#[test]
fn who_was_refused_a_mount_does_not_keep_it_from_the_next() {
    let (mut sim, worker) = Sim::with_disk();
    let spec = MountSpec { dir: "/m".into(), user: None, uid: None, root: None };
    sim.event(Event::AddMount { spec, remember: true, reply: None });
    let mut first = sim.add_mount("/m", None);
    let frontend = sim.started();
    sim.ends(frontend, Exit::BadMountpoint);
    assert_eq!(exit_of(&mut first), Exit::BadMountpoint);
    // It comes up by itself, and the next has it.
    sim.later(Duration::from_millis(200));
    let frontend = sim.started();
    sim.news(frontend, News::FrontendReady { mounted: None });
    assert_eq!(sim.add_mount("/m", None).try_recv().unwrap(), Ok(String::new()));
    let mut released = sim.asks(|reply| Event::RemoveMount { dir: "/m".into(), release: true, reply });
    assert_eq!(released.try_recv().unwrap(), Ok(String::new()));

    // The same when there is no disk for it: it says so each time, not that it is mounted.
    sim.ends(worker, Exit::NewerFormat);
    sim.ends(frontend, Exit::Failure);
    sim.later(Duration::from_millis(200));
    for _ in 0..2 {
        assert_eq!(exit_of(&mut sim.add_mount("/m", None)), Exit::NoDisk);
    }
    let mut disk = sim.add_disk("/a");
    let worker = sim.started();
    sim.news(worker, News::WorkerReady(served()));
    let frontend = sim.started();
    sim.news(frontend, News::FrontendReady { mounted: None });
    assert!(disk.try_recv().unwrap().is_ok());
    assert_eq!(sim.add_mount("/m", None).try_recv().unwrap(), Ok(String::new()));
}

#[test]
fn a_live_frontend_is_adopted() {
    let (mut sim, _) = Sim::with_disk();
    sim.event(Event::MountFound { dir: "/m".into(), pid: 5, socket: "/r/1.sock".into(), mounted: None });
    assert!(matches!(sim.effect(), Effect::WatchFrontend { pid: 5, .. }));
    assert_eq!(sim.add_mount("/m", None).try_recv().unwrap(), Ok(String::new()));
    assert_eq!(exit_of(&mut sim.add_mount("/m", None)), Exit::InUse);
    let mut answer = sim.add_mount("/n", None);
    let run = sim.started();
    sim.news(run, News::Adopted { pid: 6, mounted: None });
    assert_eq!(answer.try_recv().unwrap(), Ok(String::new()));
    assert!(sim.state.mounts.iter().all(|mount| mount.child.foreign));
    assert!(snapshot(&sim.state).mounts.iter().all(|mount| !mount.by_hand));
}

#[test]
fn removing_waits_for_the_end_and_protects_a_disk_that_is_mounted() {
    let (mut sim, worker, frontend) = Sim::with_mount();
    let remove_disk = |reply| remove("/a", &[], reply);
    assert_eq!(exit_of(&mut sim.asks(remove_disk)), Exit::InUse);
    let mut unmounted = sim.asks(|reply| Event::RemoveMount { dir: "/m".into(), release: false, reply });
    assert!(matches!(sim.effect(), Effect::Terminate { run } if run == frontend));
    assert_eq!(exit_of(&mut sim.add_mount("/m", None)), Exit::InUse, "still on its way out");
    sim.later(FRONTEND_STOP);
    assert!(matches!(sim.effect(), Effect::Kill { run } if run == frontend));
    assert!(unmounted.try_recv().is_err());
    sim.ends(frontend, Exit::Failure);
    assert_eq!(unmounted.try_recv().unwrap(), Ok(String::new()));
    let mut removed = sim.asks(remove_disk);
    assert!(matches!(sim.effect(), Effect::Terminate { run } if run == worker));
    sim.ends(worker, Exit::Ok);
    assert_eq!(removed.try_recv().unwrap(), Ok(String::new()));
    assert!(sim.state.disks.is_empty() && sim.state.mounts.is_empty());
    assert_eq!(exit_of(&mut sim.asks(remove_disk)), Exit::NoDisk);
}

#[test]
fn the_disk_that_serves_a_mount_is_protected_whichever_it_was_mounted_with() {
    let (mut sim, worker, _) = Sim::with_mount();
    let mut added = sim.add_disk("/b");
    let other = sim.started();
    sim.news(other, News::WorkerReady(served()));
    assert!(added.try_recv().unwrap().is_ok());
    assert_eq!(exit_of(&mut sim.asks(|reply| remove("/a", &[("/m", "/a")], reply))), Exit::InUse);
    assert_eq!(exit_of(&mut sim.asks(|reply| remove("/b", &[("/m", "/b")], reply))), Exit::InUse);
    // Its folder is gone, and the other disk has taken over.
    sim.ends(worker, Exit::NoDisk);
    assert_eq!(exit_of(&mut sim.asks(|reply| remove("/a", &[("/m", "/a")], reply))), Exit::InUse, "nobody has");
    let mut removed = sim.asks(|reply| remove("/a", &[("/m", "/b")], reply));
    assert_eq!(removed.try_recv().unwrap(), Ok(String::new()));
    assert_eq!(sim.state.disks.len(), 1);
    assert!(matches!(sim.state.mounts[0].child.phase, Phase::Up { .. }));
}

fn mount_id(text: &str) -> MountId {
    MountId::of_test(text)
}

#[test]
fn a_dead_mount_that_is_not_wanted_any_more_is_detached_and_no_other() {
    let left = |last: Exit| {
        let (mut sim, _) = Sim::with_disk();
        let _answer = sim.add_mount("/m", None);
        let frontend = sim.started();
        sim.news(frontend, News::FrontendReady { mounted: Some(mount_id("40")) });
        sim.ends(frontend, Exit::Failure);
        sim.later(Duration::from_millis(200));
        let frontend = sim.started();
        sim.ends(frontend, last);
        let mut unmounted = sim.asks(|reply| Event::RemoveMount { dir: "/m".into(), release: false, reply });
        assert_eq!(unmounted.try_recv().unwrap(), Ok(String::new()));
        sim.detached()
    };
    assert_eq!(left(Exit::Failure), (vec![mount_id("40")], false));
    // What is there now may be somebody else's, or may be ours whose server was alive for a moment still.
    assert_eq!(left(Exit::InUse), (vec![mount_id("40")], true));
}

/// The frontend was killed, is being started again, and the user stops all of it.
#[test]
fn a_stop_while_a_frontend_starts_again_leaves_no_dead_mount() {
    let starting_again = || {
        let (mut sim, _) = Sim::with_disk();
        let _answer = sim.add_mount("/m", None);
        let frontend = sim.started();
        sim.news(frontend, News::FrontendReady { mounted: Some(mount_id("40")) });
        sim.ends(frontend, Exit::Failure);
        sim.later(Duration::from_millis(200));
        let frontend = sim.started();
        sim.event(Event::Stop { reply: None });
        assert!(matches!(sim.effect(), Effect::Terminate { run } if run == frontend));
        (sim, frontend)
    };
    // Before it has mounted.
    let (mut sim, frontend) = starting_again();
    sim.ends(frontend, Exit::Failure);
    assert_eq!(sim.detached(), (vec![mount_id("40")], false));
    // When it had mounted over the dead one, and died before it was heard.
    let (mut sim, frontend) = starting_again();
    sim.news(frontend, News::Left { mounted: mount_id("41") });
    sim.ends(frontend, Exit::Failure);
    assert_eq!(sim.detached(), (vec![mount_id("40"), mount_id("41")], true));
    // When it had unmounted its own, and was killed while it cleared away the dead one.
    let (mut sim, frontend) = starting_again();
    sim.news(frontend, News::FrontendReady { mounted: Some(mount_id("41")) });
    sim.ends(frontend, Exit::Failure);
    assert_eq!(sim.detached(), (vec![mount_id("40"), mount_id("41")], false));
}

#[test]
fn a_new_user_of_a_mount_restarts_the_worker_once_and_then_mounts() {
    let (mut sim, worker) = Sim::with_disk();
    let mut answer = sim.add_mount("/m", Some(1001));
    assert!(matches!(sim.effect(), Effect::Terminate { run } if run == worker));
    assert_eq!(snapshot(&sim.state).disks[0].state(), pb::disk::State::Starting, "it comes back by itself");
    sim.ends(worker, Exit::Ok);
    let Effect::StartWorker { run, spec } = sim.effect() else { panic!() };
    assert_eq!(spec.allow_uids, [1001]);
    sim.news(run, News::WorkerReady(served()));
    let frontend = sim.started();
    sim.news(frontend, News::FrontendReady { mounted: None });
    assert_eq!(answer.try_recv().unwrap(), Ok(String::new()));
    assert_eq!(sim.state.disks[0].child.restarts, 0);
}

#[test]
fn a_new_user_of_a_mount_is_let_in_by_a_worker_that_an_earlier_supervisor_left() {
    for inherited in [true, false] {
        let mut sim = Sim::new();
        let _registered = sim.register("/a", 77, inherited);
        let Effect::WatchWorker { run: worker, .. } = sim.effect() else { panic!() };
        let _answer = sim.add_mount("/m", Some(1001));
        let ended = sim.effects.iter().any(|effect| matches!(effect, Effect::Terminate { run } if *run == worker));
        assert_eq!(ended, inherited, "one that was started by hand is left alone");
    }
}

#[test]
fn what_is_to_be_typed_next_is_so_for_a_shell() {
    let (mut sim, _) = Sim::with_disk();
    let _mounted = sim.add_mount("/my mount", None);
    let frontend = sim.started();
    sim.news(frontend, News::FrontendReady { mounted: None });
    let hint = |mut answer: Answer| answer.try_recv().unwrap().unwrap_err().hint.unwrap();
    assert_eq!(
        hint(sim.add_mount("/my mount", None)),
        "`delugefs umount '/my mount'` unmounts it; or choose another folder"
    );
    assert_eq!(hint(sim.asks(|reply| remove("/a", &[], reply))), "`delugefs umount '/my mount'` first");
}

/// Interrupted, it would leave a cluster that nobody can join, or be told that its disk is there already.
#[test]
fn a_disk_that_is_being_made_is_not_started_again_for_the_user_of_a_mount() {
    let mut sim = Sim::new();
    let _disk = sim.add_disk_of("home", "/a", true);
    let run = sim.started();
    sim.news(run, News::Started { pid: 100, at_s: 7 });
    let _mount = sim.add_mount("/m", Some(1001));
    assert!(sim.effects.is_empty(), "{:?}", sim.effects);
    sim.news(run, News::WorkerReady(served()));
    assert!(matches!(sim.effect(), Effect::Terminate { run: stopped } if stopped == run), "he is let in now");
    sim.ends(run, Exit::Ok);
    let Effect::StartWorker { run, spec } = sim.effect() else { panic!() };
    assert_eq!((spec.allow_uids, spec.create), (vec![1001], false));
    sim.news(run, News::WorkerReady(served()));
    assert!(matches!(sim.effect(), Effect::StartFrontend { .. }));
}

/// It is served by the disk that was there already, and would be refused by this one if it turned to it.
#[test]
fn a_disk_that_was_made_lets_in_the_user_of_a_mount_that_began_meanwhile() {
    let (mut sim, worker) = Sim::with_disk();
    let _made = sim.add_disk_of("home", "/b", true);
    let making = sim.started();
    sim.news(making, News::Started { pid: 101, at_s: 7 });
    let _mounts = [(1001, "/m"), (1002, "/n")].map(|(uid, dir)| sim.add_mount(dir, Some(uid)));
    assert!(matches!(sim.effect(), Effect::Terminate { run } if run == worker));
    sim.ends(worker, Exit::Ok);
    let worker = sim.started();
    sim.news(worker, News::WorkerReady(served()));
    assert_eq!(sim.effects.drain(..).filter(|effect| matches!(effect, Effect::StartFrontend { .. })).count(), 2);
    sim.news(making, News::WorkerReady(served()));
    assert!(matches!(sim.effect(), Effect::Terminate { run } if run == making), "once, and not the other disk");
    sim.ends(making, Exit::Ok);
    let Effect::StartWorker { run, spec } = sim.effect() else { panic!() };
    assert_eq!((spec.root.to_str(), spec.allow_uids), (Some("/b"), vec![1001, 1002]));
    sim.news(run, News::WorkerReady(served()));
    assert!(sim.effects.is_empty(), "{:?}", sim.effects);
}

#[test]
fn who_asks_for_a_mount_that_has_worked_is_told_when_its_worker_says_nothing() {
    let (mut sim, _, frontend) = Sim::with_mount();
    sim.ends(frontend, Exit::Failure);
    let mut answer = sim.add_mount("/m", None);
    let mut tries = 0;
    let told = loop {
        if let Ok(told) = answer.try_recv() {
            break told;
        }
        let run = sim.started();
        sim.ends(run, Exit::NoDisk);
        sim.later(Duration::from_secs(60));
        tries += 1;
        assert!(tries < 10, "he waits for ever");
    };
    assert_eq!(told.unwrap_err().exit, Exit::NoDisk);
    assert!(tries > 3, "{tries}");
    let run = sim.started();
    sim.news(run, News::FrontendReady { mounted: None });
    assert!(matches!(sim.state.mounts[0].child.phase, Phase::Up { .. }), "it is tried all the same");
}

/// It would be listed, and nobody has it.
#[test]
fn a_mount_that_has_never_worked_is_not_kept_when_a_disk_is_added_where_it_is() {
    let mut sim = Sim::new();
    let _disk = sim.add_disk("/a");
    let run = sim.started();
    let spec = MountSpec { dir: "/b/m".into(), user: None, uid: None, root: Some("/a".into()) };
    let mut answer = sim.asks(|reply| Event::AddMount { spec, remember: false, reply: Some(reply) });
    let _other = sim.add_disk("/b");
    sim.started();
    sim.news(run, News::WorkerReady(served()));
    assert_eq!(exit_of(&mut answer), Exit::BadMountpoint);
    assert!(sim.state.mounts.is_empty() && sim.effects.is_empty(), "{:?}", sim.effects);
}

/// The worker is started again for the other mount's user while the frontend of this one greets it.
#[test]
fn a_frontend_whose_worker_does_not_answer_at_that_moment_is_started_again() {
    let (mut sim, _) = Sim::with_disk();
    let mut answer = sim.add_mount("/m", None);
    let first = sim.started();
    sim.ends(first, Exit::NoDisk);
    assert!(answer.try_recv().is_err(), "it may come yet");
    sim.later(Duration::from_secs(1));
    let second = sim.started();
    sim.news(second, News::FrontendReady { mounted: None });
    assert_eq!(answer.try_recv().unwrap(), Ok(String::new()));
    // One that has worked is never given up for that.
    sim.ends(second, Exit::Failure);
    for _ in 0..20 {
        sim.later(Duration::from_secs(60));
        let again = sim.started();
        sim.ends(again, Exit::NoDisk);
    }
    assert!(matches!(sim.state.mounts[0].child.phase, Phase::BackingOff { .. }));
    // One that has not is, after some seconds.
    let mut answer = sim.add_mount("/n", None);
    let mut tries = 0;
    while answer.try_recv().is_err() {
        let started = std::mem::take(&mut sim.effects);
        for effect in started {
            let Effect::StartFrontend { run, spec, .. } = effect else { panic!("{effect:?}") };
            tries += u32::from(spec.dir == Path::new("/n"));
            sim.ends(run, Exit::NoDisk);
        }
        sim.later(Duration::from_secs(60));
        assert!(tries < 10);
    }
    assert!(tries > 3 && sim.state.mounts.len() == 1);
}

#[test]
fn who_waits_for_a_mount_that_is_taken_away_is_not_told_that_it_is_there() {
    let (mut sim, _) = Sim::with_disk();
    let mut waits = sim.add_mount("/m", None);
    let frontend = sim.started();
    let _gone = sim.asks(|reply| Event::RemoveMount { dir: "/m".into(), release: false, reply });
    sim.effects.clear();
    sim.ends(frontend, Exit::Ok);
    let failure = waits.try_recv().unwrap().unwrap_err();
    assert_eq!((failure.exit, failure.message.as_str()), (Exit::Failure, "it ended before it was ready"));
}

#[test]
fn run_does_not_change_whom_a_remembered_mount_serves_as() {
    let (mut sim, _) = Sim::with_disk();
    let add = |sim: &mut Sim, user: Option<&str>, remember| {
        let spec = MountSpec { dir: "/m".into(), user: user.map(Into::into), uid: user.map(|_| 0), root: None };
        sim.asks(|reply| Event::AddMount { spec, remember, reply: Some(reply) })
    };
    sim.state.disks[0].allowed.push(0);
    let _answer = add(&mut sim, Some("joe"), true);
    let run = sim.started();
    sim.news(run, News::FrontendReady { mounted: None });
    sim.effects.clear();
    sim.ends(run, Exit::Ok); // unmounted by hand
    assert_eq!(exit_of(&mut add(&mut sim, Some("ann"), false)), Exit::InUse);
    let _answer = add(&mut sim, None, false);
    let Effect::StartFrontend { spec, .. } = sim.effect() else { panic!() };
    assert_eq!(spec.user.as_deref(), Some("joe"));
}

/// A disk may be named after the mount, and nobody waits for the answer.
#[test]
fn a_configured_mount_in_a_disk_or_in_another_mount_is_shown_as_stopped() {
    let mut sim = Sim::new();
    for dir in ["/m", "/m/x", "/a/m"] {
        let spec = MountSpec { dir: dir.into(), user: None, uid: None, root: None };
        sim.event(Event::AddMount { spec, remember: false, reply: None });
    }
    sim.event(Event::AddDisk { spec: Sim::spec("home", "/a", false, None), remember: false, reply: None });
    let run = sim.started();
    sim.news(run, News::WorkerReady(served()));
    assert!(matches!(sim.effect(), Effect::StartFrontend { spec, .. } if spec.dir == Path::new("/m")));
    let shown = snapshot(&sim.state).mounts;
    let stopped: Vec<_> = shown.iter().filter(|mount| !mount.last_error.is_empty()).map(|mount| &mount.dir).collect();
    assert_eq!(stopped, ["/m/x", "/a/m"]);
}
