//! The state machine, fed with events. `Sim` keeps what the owner task would: the time, and the effects to carry out.

use std::time::Duration;

use delugefs_proto::control_pb::NetSettings;
use delugefs_proto::disk::DiskToml;
use tokio::sync::oneshot;

use super::child::{Phase, Reply, Run};
use super::state::{FRONTEND_STOP, REGISTER_WAIT, WORKER_STOP};
use super::*;
use crate::failure::Failure;
use crate::sys::MountId;

mod mounts;
mod random;

type Answer = oneshot::Receiver<Result<String, Failure>>;

struct Sim {
    state: State,
    now: Instant,
    effects: Vec<Effect>,
}

impl Sim {
    fn new() -> Self {
        Self { state: State::new(None), now: Instant::now(), effects: Vec::new() }
    }

    fn event(&mut self, event: Event) {
        for effect in self.state.apply(event, self.now) {
            match effect {
                Effect::Answer(reply, result) => drop(reply.send(result)),
                other => self.effects.push(other),
            }
        }
    }

    fn asks(&mut self, event: impl FnOnce(Reply) -> Event) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.event(event(reply));
        answer
    }

    fn add_disk(&mut self, root: &str) -> Answer {
        self.add_disk_of("home", root, false)
    }

    fn add_disk_of(&mut self, cluster: &str, root: &str, create: bool) -> Answer {
        self.add_disk_with(cluster, root, create, None)
    }

    fn add_disk_with(&mut self, cluster: &str, root: &str, create: bool, cluster_id: Option<ClusterId>) -> Answer {
        let spec = Self::spec(cluster, root, create, cluster_id);
        self.asks(|reply| Event::AddDisk { spec, remember: false, reply: Some(reply) })
    }

    fn spec(cluster: &str, root: &str, create: bool, cluster_id: Option<ClusterId>) -> DiskSpec {
        DiskSpec {
            root: root.into(),
            cluster: cluster.into(),
            create,
            reserve_bytes: 1,
            retention_s: 2,
            allow_uids: Vec::new(),
            net: Default::default(),
            cluster_id,
            disk_id: None,
            other_name: None,
        }
    }

    fn add_mount(&mut self, dir: &str, uid: Option<u32>) -> Answer {
        let spec = MountSpec { dir: dir.into(), user: None, uid, root: None };
        self.asks(|reply| Event::AddMount { spec, remember: false, reply: Some(reply) })
    }

    fn register(&mut self, root: &str, pid: u32, inherited: bool) -> Answer {
        self.register_as(root, pid, inherited, None)
    }

    fn register_as(&mut self, root: &str, pid: u32, inherited: bool, cluster_id: Option<ClusterId>) -> Answer {
        self.asks(|reply| {
            let (root, cluster, served) = (root.into(), "home".into(), served());
            Event::Register(Registration { root, cluster, cluster_id, pid, served, tcp_port: 0, inherited, reply })
        })
    }

    fn news(&mut self, run: Run, news: News) {
        self.event(Event::Child { run, news });
    }

    fn ends(&mut self, run: Run, exit: Exit) {
        self.news(run, News::Ended(Failure::new(exit, "it ended")));
    }

    fn later(&mut self, time: Duration) {
        self.now += time;
        self.event(Event::Tick);
    }

    /// The only effect there is.
    fn effect(&mut self) -> Effect {
        assert_eq!(self.effects.len(), 1, "{:?}", self.effects);
        self.effects.remove(0)
    }

    fn started(&mut self) -> Run {
        match self.effect() {
            Effect::StartWorker { run, .. } | Effect::StartFrontend { run, .. } => run,
            other => panic!("{other:?}"),
        }
    }

    /// What is to be detached, and whether only if it is dead.
    fn detached(&mut self) -> (Vec<MountId>, bool) {
        let found = self.effects.iter().find_map(|effect| match effect {
            Effect::Detach { mounted, only_dead, .. } => Some((mounted.clone(), *only_dead)),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("{:?}", self.effects))
    }

    /// A disk that is up.
    fn with_disk() -> (Self, Run) {
        let mut sim = Self::new();
        let mut answer = sim.add_disk("/a");
        let run = sim.started();
        sim.news(run, News::Started { pid: 100, at_s: 7 });
        assert_eq!(snapshot(&sim.state).disks[0].starting_since_s, 7);
        assert!(answer.try_recv().is_err(), "answered before it is up");
        sim.news(run, News::WorkerReady(served()));
        assert_eq!(answer.try_recv().unwrap(), Ok("1a2b3c4d".into()));
        (sim, run)
    }

    /// A disk and a mount that are up.
    fn with_mount() -> (Self, Run, Run) {
        let (mut sim, worker) = Self::with_disk();
        let mut answer = sim.add_mount("/m", None);
        let frontend = sim.started();
        sim.news(frontend, News::Started { pid: 200, at_s: 8 });
        let now = snapshot(&sim.state);
        assert_eq!((now.disks[0].starting_since_s, now.mounts[0].starting_since_s), (0, 8));
        sim.news(frontend, News::FrontendReady { mounted: None });
        assert_eq!(answer.try_recv().unwrap(), Ok(String::new()));
        (sim, worker, frontend)
    }
}

fn id(n: u8) -> ClusterId {
    ClusterId([n; 16])
}

fn served() -> Served {
    Served { disk_id: "1a2b3c4d".into(), local_socket: "/r/1.sock".into(), grpc_socket: "/r/1.grpc".into() }
}

fn exit_of(answer: &mut Answer) -> Exit {
    answer.try_recv().expect("answered").expect_err("a failure").exit
}

/// `shown`: what the workers say about the mounts.
fn remove(root: &str, shown: &[(&str, &str)], reply: Reply) -> Event {
    let shown = shown.iter().map(|(dir, root)| (dir.into(), root.into())).collect();
    Event::RemoveDisk { root: root.into(), release: false, shown, reply }
}

#[test]
fn a_worker_that_dies_is_started_again_and_its_mount_is_left_alone() {
    let (mut sim, worker, _) = Sim::with_mount();
    sim.ends(worker, Exit::Failure);
    assert!(sim.effects.is_empty());
    sim.later(Duration::from_millis(199));
    assert!(sim.effects.is_empty(), "too early");
    sim.later(Duration::from_millis(1));
    let again = sim.started();
    sim.news(again, News::WorkerReady(served()));
    assert!(sim.effects.is_empty(), "the frontend reconnects by itself");
    assert_eq!(sim.state.disks[0].child.restarts, 1);
}

#[test]
fn a_disk_of_another_cluster_with_the_same_name_is_refused() {
    let mut sim = Sim::new();
    let (ours, other) = (Some(id(1)), Some(id(2)));
    let _answer = sim.add_disk_with("home", "/a", false, ours);
    let run = sim.started();
    sim.news(run, News::Started { pid: 100, at_s: 7 });
    sim.news(run, News::WorkerReady(served()));
    let mut answer = sim.add_disk_with("home", "/b", false, other);
    let failure = answer.try_recv().unwrap().unwrap_err();
    assert_eq!(failure.exit, Exit::WrongCluster);
    assert!(failure.message.contains("has the same name, home, but is another cluster"), "{failure:?}");
    assert_eq!(exit_of(&mut sim.register_as("/b", 300, false, other)), Exit::WrongCluster);
    assert!(sim.effects.is_empty() && sim.state.disks.len() == 1);
    // Of one with another name that is what is said, and what to type is what works.
    let toml = DiskToml { format: 1, cluster: "work".into(), cluster_id: id(2).to_hex(), disk_id: "1b".repeat(32) };
    let spec = Sim::spec("home", "/c", false, None).found(Some(&toml));
    let mut answer = sim.asks(|reply| Event::AddDisk { spec, remember: false, reply: Some(reply) });
    let failure = answer.try_recv().unwrap().unwrap_err();
    assert_eq!(failure.message, "the disk at /c belongs to the cluster work, not to home");
    assert!(failure.hint.as_ref().is_some_and(|hint| hint.contains("run work /c")), "{failure:?}");

    // One that is remembered is shown, and does not count when it comes to which cluster this is.
    sim.event(Event::AddDisk { spec: Sim::spec("home", "/b", false, other), remember: true, reply: None });
    assert!(sim.effects.is_empty(), "{:?}", sim.effects);
    assert_eq!((sim.state.disks[1].child.phase, sim.state.cluster_id(Some(Path::new("/a")))), (Phase::Stopped, None));

    // What could not be read is told whose it has to be.
    let _answer = sim.add_disk("/c");
    let Effect::StartWorker { spec, .. } = sim.effect() else { panic!() };
    assert_eq!(spec.cluster_id, ours);
}

#[test]
fn a_running_worker_that_turns_out_to_be_of_another_cluster_is_not_kept() {
    let (mut sim, _) = Sim::with_disk();
    assert_eq!(sim.register_as("/a", 100, false, Some(id(1))).try_recv().unwrap(), Ok(String::new()));
    let _answer = sim.add_disk("/b");
    let run = sim.started();
    sim.news(run, News::Started { pid: 101, at_s: 7 });
    sim.news(run, News::WorkerReady(served()));
    assert_eq!(exit_of(&mut sim.register_as("/b", 101, false, Some(id(2)))), Exit::WrongCluster);
    assert!(matches!(sim.effect(), Effect::Terminate { run: stopped } if stopped == run));
    sim.ends(run, Exit::Ok);
    let Effect::StartWorker { run, spec } = sim.effect() else { panic!() };
    assert_eq!(spec.cluster_id, Some(id(1)));
    sim.ends(run, Exit::WrongCluster);
    assert_eq!(sim.state.disks[1].child.phase, Phase::Stopped);

    // One that was started by hand goes on without us.
    sim.register("/c", 300, false).try_recv().unwrap().unwrap();
    assert!(matches!(sim.effects.pop(), Some(Effect::WatchWorker { .. })));
    assert_eq!(exit_of(&mut sim.register_as("/c", 300, false, Some(id(2)))), Exit::WrongCluster);
    assert!(sim.effects.is_empty() && sim.state.disks.len() == 2);
}

#[test]
fn what_cannot_help_is_not_tried_again() {
    let (mut sim, worker) = Sim::with_disk();
    sim.ends(worker, Exit::NewerFormat);
    assert_eq!(sim.state.next_deadline(), None);
    assert_eq!(sim.state.disks[0].child.phase, Phase::Stopped);
    let mut answer = sim.add_disk("/a");
    let run = sim.started();
    sim.ends(run, Exit::NewerFormat);
    assert_eq!(exit_of(&mut answer), Exit::NewerFormat);
    assert_eq!(sim.state.disks.len(), 1, "a disk that once worked is not forgotten");
}

#[test]
fn a_disk_starts_again_when_its_folder_is_back() {
    let (mut sim, worker) = Sim::with_disk();
    let found = || DiskToml { format: 1, cluster: "home".into(), cluster_id: id(1).to_hex(), disk_id: "1a".repeat(32) };
    let back = || Event::FolderBack { root: "/a".into(), found: found() };
    sim.event(back());
    assert!(sim.effects.is_empty(), "it is up");
    sim.ends(worker, Exit::NoDisk);
    assert_eq!(sim.state.disks[0].child.phase, Phase::Stopped);
    sim.event(Event::FolderBack { root: "/b".into(), found: found() });
    assert!(sim.effects.is_empty());
    sim.event(back());
    let Effect::StartWorker { run, spec } = sim.effect() else { panic!() };
    assert!(!spec.create);
    sim.news(run, News::WorkerReady(served()));
    // What stopped it for another reason stays so.
    sim.ends(run, Exit::WrongCluster);
    sim.event(back());
    assert!(sim.effects.is_empty());
}

#[test]
fn a_first_start_that_fails_adds_nothing() {
    let mut sim = Sim::new();
    let (mut disk, mut mount) = (sim.add_disk("/a"), sim.add_mount("/m", None));
    let run = sim.started();
    sim.ends(run, Exit::NotEmpty);
    assert_eq!(exit_of(&mut disk), Exit::NotEmpty);
    assert_eq!(exit_of(&mut mount), Exit::NoDisk, "and a mount does not wait for it for ever");
    assert!(sim.state.disks.is_empty() && sim.state.mounts.is_empty() && sim.effects.is_empty());
    assert_eq!(exit_of(&mut sim.add_mount("/m", None)), Exit::NoDisk);
}

#[test]
fn only_the_first_start_creates() {
    let mut sim = Sim::new();
    let _answer = sim.add_disk_of("home", "/a", true);
    let Effect::StartWorker { run, spec } = sim.effect() else { panic!() };
    assert!(spec.create);
    sim.news(run, News::WorkerReady(served()));
    sim.ends(run, Exit::Failure);
    sim.later(Duration::from_secs(1));
    let Effect::StartWorker { spec, .. } = sim.effect() else { panic!() };
    assert!(!spec.create);
}

#[test]
fn a_second_request_for_the_same_is_a_mistake() {
    let (mut sim, ..) = Sim::with_mount();
    assert_eq!(exit_of(&mut sim.add_disk("/a")), Exit::InUse);
    assert_eq!(exit_of(&mut sim.add_mount("/m", None)), Exit::InUse);
    assert_eq!(exit_of(&mut sim.add_disk_of("home", "/a", true)), Exit::NotEmpty);
    assert_eq!(exit_of(&mut sim.add_disk_of("other", "/b", false)), Exit::WrongCluster);
    assert!(sim.effects.is_empty());
}

#[test]
fn a_live_worker_is_adopted_when_it_registers_in_time() {
    let mut sim = Sim::new();
    let mut answer = sim.add_disk("/a");
    let run = sim.started();
    sim.ends(run, Exit::InUse);
    assert!(answer.try_recv().is_err(), "it may register yet");
    let mut registered = sim.register("/a", 77, true);
    assert_eq!(registered.try_recv().unwrap(), Ok(String::new()));
    assert_eq!(answer.try_recv().unwrap(), Ok("1a2b3c4d".into()));
    let Effect::WatchWorker { run, pid: 77, .. } = sim.effect() else { panic!() };
    assert!(!snapshot(&sim.state).disks[0].by_hand, "a supervisor of this host has started it");
    assert!(sim.state.disks[0].child.foreign);
    let _again = sim.register("/a", 77, true);
    assert!(sim.effects.is_empty(), "registering again changes nothing");
    sim.ends(run, Exit::Failure);
    sim.later(Duration::from_secs(1));
    sim.started(); // from now on our own child
    assert!(!sim.state.disks[0].child.foreign);
}

#[test]
fn a_worker_may_register_before_its_process_id_is_known() {
    let mut sim = Sim::new();
    let mut answer = sim.add_disk("/a");
    let run = sim.started();
    let mut registered = sim.register("/a", 77, false);
    assert!(registered.try_recv().is_err());
    sim.news(run, News::Started { pid: 77, at_s: 7 });
    assert_eq!(registered.try_recv().unwrap(), Ok(String::new()));
    assert!(sim.effects.is_empty() && answer.try_recv().is_err(), "it is our own, and says itself when it is ready");

    let mut sim = Sim::new();
    let mut answer = sim.add_disk("/a");
    let run = sim.started();
    let _registered = sim.register("/a", 77, false);
    sim.news(run, News::Started { pid: 78, at_s: 7 });
    assert!(matches!(sim.effect(), Effect::WatchWorker { pid: 77, .. }), "somebody else's");
    assert!(answer.try_recv().unwrap().is_ok());
}

/// `mv /data /big/data; ln -s /big/data /data`: who starts it says one path, and it says the other.
#[test]
fn a_worker_that_says_another_path_of_its_folder_is_the_one_that_was_started() {
    let (mut sim, worker) = Sim::with_disk();
    assert_eq!(sim.register("/big/a", 100, false).try_recv().unwrap(), Ok(String::new()));
    assert_eq!((sim.state.disks.len(), &*sim.state.disks[0].spec.root), (1, Path::new("/a")));
    assert!(sim.effects.is_empty(), "{:?}", sim.effects);
    // Also where somebody has added it under that path.
    let _added = sim.add_disk("/big/a");
    let second = sim.started();
    sim.ends(second, Exit::InUse);
    sim.register("/big/a", 100, false).try_recv().unwrap().unwrap();
    assert!(sim.effects.is_empty(), "{:?}", sim.effects);
    let mut removed = sim.asks(|reply| remove("/a", &[], reply));
    assert!(matches!(sim.effect(), Effect::Terminate { run } if run == worker));
    sim.ends(worker, Exit::Ok);
    assert_eq!(removed.try_recv().unwrap(), Ok(String::new()));
}

#[test]
fn a_folder_that_stays_locked_is_tried_once_more_and_then_reported() {
    let mut sim = Sim::new();
    let mut answer = sim.add_disk("/a");
    let run = sim.started();
    sim.ends(run, Exit::InUse);
    sim.later(REGISTER_WAIT);
    let run = sim.started();
    sim.ends(run, Exit::InUse);
    assert_eq!(exit_of(&mut answer), Exit::InUse);
    assert!(sim.state.disks.is_empty());
}

#[test]
fn a_worker_left_by_an_earlier_supervisor_is_claimed_without_a_start() {
    let mut sim = Sim::new();
    let _registered = sim.register("/a", 77, true);
    sim.effects.clear();
    assert_eq!(exit_of(&mut sim.add_disk_of("home", "/a", true)), Exit::NotEmpty);
    assert_eq!(sim.add_disk("/a").try_recv().unwrap(), Ok("1a2b3c4d".into()));
    assert_eq!(exit_of(&mut sim.add_disk("/a")), Exit::InUse, "the second one is a mistake");
    assert!(sim.effects.is_empty());
}

/// The file has it already, and more that has not been read yet.
#[test]
fn what_is_found_alive_and_remembered_is_not_written_down_again() {
    let mut sim = Sim::new();
    let _registered = sim.register("/a", 77, true);
    sim.event(Event::MountFound { dir: "/m".into(), pid: 5, socket: "/r/1.sock".into(), mounted: None });
    sim.effects.clear();
    let spec = MountSpec { dir: "/m".into(), user: Some("eve".into()), uid: Some(1001), root: None };
    sim.event(Event::AddMount { spec, remember: true, reply: None });
    sim.event(Event::AddDisk { spec: Sim::spec("home", "/a", false, None), remember: true, reply: None });
    assert!(sim.effects.is_empty(), "{:?}", sim.effects);
    assert!(sim.state.disks[0].child.remember && sim.state.mounts[0].child.remember);
    assert_eq!(sim.state.mounts[0].spec.user.as_deref(), Some("eve"), "else it would be forgotten");
}

#[test]
fn what_is_only_remembered_belongs_to_the_first_that_asks() {
    let mut sim = Sim::new();
    let spec = |lazy: bool| DiskSpec {
        root: "/a".into(),
        cluster: "home".into(),
        create: false,
        reserve_bytes: 1,
        retention_s: 2,
        allow_uids: Vec::new(),
        net: pb::NetSettings { lazy: lazy.then_some(true), ..Default::default() },
        cluster_id: None,
        disk_id: None,
        other_name: None,
    };
    sim.event(Event::AddMount {
        spec: MountSpec { dir: "/m".into(), user: None, uid: None, root: None },
        remember: true,
        reply: None,
    });
    sim.event(Event::AddDisk { spec: spec(true), remember: true, reply: None });
    let run = sim.started();
    let mut first = sim.add_disk("/a");
    assert_eq!(exit_of(&mut sim.add_disk("/a")), Exit::InUse, "while it starts, too");
    sim.news(run, News::WorkerReady(served()));
    assert_eq!(first.try_recv().unwrap(), Ok("1a2b3c4d".into()));
    let mount = sim.effects.iter().find_map(|effect| match effect {
        Effect::StartFrontend { run, .. } => Some(*run),
        _ => None,
    });
    let mut mounted = sim.add_mount("/m", None);
    sim.news(mount.unwrap(), News::FrontendReady { mounted: None });
    assert_eq!(mounted.try_recv().unwrap(), Ok(String::new()));
    assert_eq!(exit_of(&mut sim.add_mount("/m", None)), Exit::InUse);
    assert_eq!(exit_of(&mut sim.add_disk("/a")), Exit::InUse);
    assert!(sim.state.disks[0].spec.net.lazy(), "what was added stays as it was");

    // It ends: both go on, as if it had not been there, and the next may have them.
    sim.effects.clear();
    let mut unmounted = sim.asks(|reply| Event::RemoveMount { dir: "/m".into(), release: true, reply });
    let mut removed =
        sim.asks(|reply| Event::RemoveDisk { root: "/a".into(), release: true, shown: HashMap::new(), reply });
    assert_eq!((unmounted.try_recv().unwrap(), removed.try_recv().unwrap()), (Ok(String::new()), Ok(String::new())));
    assert!(sim.effects.is_empty(), "{:?}", sim.effects);
    let again = |remember| move |reply| Event::AddDisk { spec: spec(false), remember, reply: Some(reply) };
    assert_eq!(exit_of(&mut sim.asks(again(true))), Exit::InUse, "it is remembered already");
    assert!(sim.asks(again(false)).try_recv().unwrap().is_ok());
}

#[test]
fn a_worker_started_by_hand_is_neither_restarted_nor_stopped() {
    let mut sim = Sim::new();
    let _registered = sim.register("/a", 77, false);
    let Effect::WatchWorker { run, .. } = sim.effect() else { panic!() };
    assert!(snapshot(&sim.state).disks[0].by_hand);
    sim.ends(run, Exit::Failure);
    assert!(sim.state.disks.is_empty());
    let _registered = sim.register("/a", 78, false);
    sim.effects.clear();
    let mut stopped = sim.asks(|reply| Event::Stop { reply: Some(reply) });
    assert!(matches!(sim.effect(), Effect::Exit));
    assert_eq!(stopped.try_recv().unwrap(), Ok(String::new()));
}

#[test]
fn a_worker_started_by_hand_is_started_anew_for_other_settings() {
    let mut sim = Sim::new();
    let _registered = sim.register("/a", 77, false);
    let Effect::WatchWorker { run, .. } = sim.effect() else { panic!() };
    let net = pb::NetSettings { lazy: Some(true), site: Some("x".into()), ..pb::NetSettings::default() };
    let spec = DiskSpec { net: net.clone(), ..Sim::spec("home", "/a", false, None) };
    let mut answer = sim.asks(|reply| Event::AddDisk { spec, remember: true, reply: Some(reply) });
    assert!(matches!(sim.effect(), Effect::Terminate { run: ended } if ended == run));
    assert!(answer.try_recv().is_err(), "answered before they hold");
    sim.ends(run, Exit::Ok);
    let Effect::StartWorker { run, spec } = sim.effect() else { panic!() };
    assert_eq!(spec.net, net);
    sim.news(run, News::WorkerReady(served()));
    assert_eq!(answer.try_recv().unwrap(), Ok("1a2b3c4d".into()));
    let Effect::Remember(config) = sim.effect() else { panic!() };
    assert!(config.disks[0].lazy);
}

#[test]
fn stopping_ends_frontends_first_then_workers_and_is_bounded() {
    let (mut sim, worker, frontend) = Sim::with_mount();
    let mut stopped = sim.asks(|reply| Event::Stop { reply: Some(reply) });
    assert!(matches!(sim.effect(), Effect::Terminate { run } if run == frontend));
    assert_eq!(exit_of(&mut sim.add_disk("/b")), Exit::InUse, "nothing new while stopping");
    assert_eq!(exit_of(&mut sim.register("/b", 9, false)), Exit::InUse);
    sim.event(Event::Stop { reply: None });
    assert!(sim.effects.is_empty(), "asking twice changes nothing");
    sim.later(FRONTEND_STOP);
    assert!(matches!(sim.effect(), Effect::Kill { run } if run == frontend));
    sim.ends(frontend, Exit::Failure);
    assert!(matches!(sim.effect(), Effect::Terminate { run } if run == worker));
    sim.later(WORKER_STOP);
    assert!(matches!(sim.effect(), Effect::Kill { run } if run == worker));
    assert!(stopped.try_recv().is_err());
    sim.ends(worker, Exit::Failure);
    assert!(matches!(sim.effect(), Effect::Exit));
    assert_eq!(stopped.try_recv().unwrap(), Ok(String::new()));
}

#[test]
fn stopping_does_not_start_again_what_was_about_to_be() {
    let (mut sim, worker, frontend) = Sim::with_mount();
    sim.ends(worker, Exit::Failure);
    sim.ends(frontend, Exit::Failure);
    sim.event(Event::Stop { reply: None });
    assert!(matches!(sim.effects[..], [Effect::Exit]), "{:?}", sim.effects);
}

#[test]
fn only_what_is_to_be_remembered_is_written_down() {
    let (mut sim, _) = Sim::with_disk();
    let spec = MountSpec { dir: "/m".into(), user: None, uid: None, root: None };
    let _answer = sim.asks(|reply| Event::AddMount { spec, remember: true, reply: Some(reply) });
    let run = sim.started();
    sim.news(run, News::FrontendReady { mounted: None });
    let Effect::Remember(config) = sim.effect() else { panic!() };
    assert_eq!((config.disks.len(), config.mounts.len()), (0, 1));
    let _answer = sim.asks(|reply| Event::RemoveMount { dir: "/m".into(), release: false, reply });
    sim.effects.clear();
    sim.ends(run, Exit::Ok);
    let Effect::Remember(config) = sim.effect() else { panic!() };
    assert_eq!(config, delugefs_proto::config::Config::default());
}

/// Another disk has that port.
#[test]
fn run_is_told_that_it_cannot_say_how_an_added_disk_takes_part() {
    let (mut sim, worker) = Sim::with_disk();
    sim.state.disks[0].child.remember = true;
    sim.state.disks[0].child.claimed = false;
    let run = |sim: &mut Sim, listen: Option<&str>| {
        let net = NetSettings { listen: listen.map(Into::into), ..Default::default() };
        let spec = DiskSpec { net, ..Sim::spec("home", "/a", false, None) };
        sim.asks(|reply| Event::AddDisk { spec, remember: false, reply: Some(reply) })
    };
    let failure = run(&mut sim, Some("127.0.0.1")).try_recv().unwrap().unwrap_err();
    assert_eq!(failure.exit, Exit::InUse);
    assert!(failure.hint.is_some_and(|hint| hint.contains("`delugefs disk add /a`")));
    sim.ends(worker, Exit::NewerFormat);
    assert_eq!(exit_of(&mut run(&mut sim, Some("127.0.0.1"))), Exit::InUse);
    let _answer = run(&mut sim, None);
    sim.started();
}

#[test]
fn what_has_not_started_yet_is_not_written_down() {
    let (mut sim, _) = Sim::with_disk();
    let add = |sim: &mut Sim, root: &str| {
        let spec = Sim::spec("home", root, false, None);
        sim.asks(|reply| Event::AddDisk { spec, remember: true, reply: Some(reply) })
    };
    let _contested = add(&mut sim, "/c");
    let run = sim.started();
    sim.ends(run, Exit::InUse);
    let _other = add(&mut sim, "/d");
    let run = sim.started();
    sim.news(run, News::WorkerReady(served()));
    let Effect::Remember(config) = sim.effect() else { panic!() };
    assert_eq!(config.disks.iter().map(|disk| disk.root.to_str().unwrap()).collect::<Vec<_>>(), ["/d"]);
}

#[test]
fn a_disk_that_cannot_start_with_what_is_said_anew_goes_on_with_what_it_had() {
    let mut sim = Sim::new();
    let add = |sim: &mut Sim, site: &str| {
        let net = pb::NetSettings { site: Some(site.into()), ..pb::NetSettings::default() };
        let spec = DiskSpec { net, ..Sim::spec("home", "/a", false, None) };
        sim.asks(|reply| Event::AddDisk { spec, remember: true, reply: Some(reply) })
    };
    let _answer = add(&mut sim, "attic");
    let run = sim.started();
    sim.news(run, News::WorkerReady(served()));
    sim.effects.clear();
    let mut answer = add(&mut sim, "cellar");
    let Effect::Terminate { run } = sim.effect() else { panic!() };
    sim.ends(run, Exit::Ok);
    let site = |sim: &mut Sim| {
        let Effect::StartWorker { run, spec } = sim.effect() else { panic!() };
        (run, spec.net.site)
    };
    let (run, now) = site(&mut sim);
    assert_eq!(now.as_deref(), Some("cellar"));
    sim.ends(run, Exit::InUse);
    assert_eq!(exit_of(&mut answer), Exit::InUse);
    let (run, now) = site(&mut sim);
    assert_eq!(now.as_deref(), Some("attic"), "at once");
    sim.news(run, News::WorkerReady(served()));
    assert!(sim.effects.is_empty(), "what it had is remembered already");
}

#[test]
fn how_an_added_disk_takes_part_in_the_network_is_remembered_until_it_is_said_anew() {
    let mut sim = Sim::new();
    let net = |lazy: Option<bool>, site: Option<&str>, upload_bytes_per_s| pb::NetSettings {
        lazy,
        site: site.map(Into::into),
        upload_bytes_per_s,
        ..pb::NetSettings::default()
    };
    let add = |sim: &mut Sim, net, remember| {
        let spec = DiskSpec { net, ..Sim::spec("home", "/a", false, None) };
        let mut answer = sim.asks(|reply| Event::AddDisk { spec, remember, reply: Some(reply) });
        if matches!(sim.effects[..], [Effect::Terminate { .. }]) {
            let Effect::Terminate { run } = sim.effect() else { panic!() };
            assert!(answer.try_recv().is_err(), "answered before they hold");
            sim.ends(run, Exit::Ok);
        }
        let run = sim.started();
        sim.news(run, News::WorkerReady(served()));
        let Effect::Remember(config) = sim.effect() else { panic!() };
        assert_eq!(config.disks[0].upload_bytes_per_s, Some(7));
        (run, (config.disks[0].lazy, config.disks[0].site.clone()))
    };
    let is = |lazy, site: &str| (lazy, site.to_owned());
    let stopped = |sim: &mut Sim, (run, known)| {
        sim.ends(run, Exit::WrongCluster);
        known
    };
    let known = add(&mut sim, net(Some(true), Some("attic"), 7), true);
    assert_eq!(stopped(&mut sim, known), is(true, "attic"));
    let known = add(&mut sim, net(None, None, 0), true);
    assert_eq!(stopped(&mut sim, known), is(true, "attic"));
    let spec = DiskSpec { net: net(None, Some("cellar"), 0), ..Sim::spec("home", "/a", false, None) };
    let mut answer = sim.asks(|reply| Event::AddDisk { spec, remember: false, reply: Some(reply) });
    assert_eq!(exit_of(&mut answer), Exit::InUse, "`run` does not change what was added");
    assert_eq!(add(&mut sim, net(None, Some("cellar"), 0), true).1, is(true, "cellar"), "what is not said stays");
    // It is up, too.
    assert_eq!(add(&mut sim, net(Some(false), None, 0), true).1, is(false, "cellar"));
    assert_eq!(add(&mut sim, net(None, Some(""), 0), true).1, is(false, ""));
    for nothing_new in [net(None, None, 0), net(Some(false), Some(""), 0)] {
        let spec = DiskSpec { net: nothing_new, ..Sim::spec("home", "/a", false, None) };
        let mut answer = sim.asks(|reply| Event::AddDisk { spec, remember: true, reply: Some(reply) });
        assert_eq!(exit_of(&mut answer), Exit::InUse);
    }
}
