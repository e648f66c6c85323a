//! Anything at any time.

use proptest::prelude::*;

use super::*;

/// What may happen at any time, for the random test.
#[derive(Clone, Debug)]
enum Step {
    AddDisk(u8),
    AddMount(u8, Option<u8>),
    RemoveDisk(u8),
    RemoveMount(u8),
    Register(u8, u8, bool),
    Found(u8),
    Ready(u8),
    Ends(u8, u8),
    Later(u16),
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2u8).prop_map(Step::AddDisk),
        4 => (0..2u8, proptest::option::of(0..2u8)).prop_map(|(dir, uid)| Step::AddMount(dir, uid)),
        1 => (0..2u8).prop_map(Step::RemoveDisk),
        1 => (0..2u8).prop_map(Step::RemoveMount),
        2 => (0..2u8, 0..3u8, any::<bool>()).prop_map(|(root, pid, own)| Step::Register(root, pid, own)),
        1 => (0..2u8).prop_map(Step::Found),
        8 => any::<u8>().prop_map(Step::Ready),
        6 => (any::<u8>(), 0..4u8).prop_map(|(which, exit)| Step::Ends(which, exit)),
        6 => (0..35_000u16).prop_map(Step::Later),
        1 => Just(Step::Stop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens in whatever order: never two of our processes for one disk or mountpoint, nothing starts after a
    /// stop was asked for, every call is answered, and once asked to stop it comes to an end.
    #[test]
    fn whatever_happens(steps in proptest::collection::vec(step(), 0..60)) {
        let mut sim = Sim::new();
        let mut living: Vec<(Run, std::path::PathBuf, bool)> = Vec::new();
        let mut answers: Vec<Answer> = Vec::new();
        let mut exited = false;
        let mut stopping = false;
        let ending = std::iter::once(Step::Stop).chain((0..60).flat_map(|_| [Step::Ends(0, 0), Step::Later(35_000)]));
        for step in steps.into_iter().chain(ending) {
            if exited { break }
            match step {
                Step::AddDisk(n) => answers.push(sim.add_disk(&format!("/d{n}"))),
                Step::AddMount(n, uid) => answers.push(sim.add_mount(&format!("/m{n}"), uid.map(u32::from))),
                Step::RemoveDisk(n) => answers.push(sim.asks(|reply| remove(&format!("/d{n}"), &[], reply))),
                Step::RemoveMount(n) => answers.push(sim.asks(|reply| Event::RemoveMount { dir: format!("/m{n}").into(), release: false, reply })),
                Step::Register(n, pid, own) => answers.push(sim.register(&format!("/d{n}"), 1000 + u32::from(pid), own)),
                Step::Found(n) if !stopping => {
                    sim.event(Event::MountFound { dir: format!("/m{n}").into(), pid: 5, socket: "/r/1.sock".into(), mounted: None });
                }
                Step::Found(_) => {}
                Step::Ready(which) => if let Some((run, path, _)) = pick(&living, which) {
                    let worker = path.starts_with("/d0") || path.starts_with("/d1");
                    sim.news(run, if worker { News::WorkerReady(served()) } else { News::FrontendReady { mounted: None } });
                },
                Step::Ends(which, exit) => if let Some((run, ..)) = pick(&living, which) {
                    living.retain(|(other, ..)| *other != run);
                    sim.ends(run, [Exit::Ok, Exit::Failure, Exit::InUse, Exit::WrongCluster][usize::from(exit)]);
                },
                Step::Later(ms) => sim.later(Duration::from_millis(ms.into())),
                Step::Stop => { stopping = true; answers.push(sim.asks(|reply| Event::Stop { reply: Some(reply) })) }
            }
            for effect in std::mem::take(&mut sim.effects) {
                match effect {
                    Effect::StartWorker { run, spec } => start(&mut living, run, spec.root, stopping)?,
                    Effect::StartFrontend { run, spec, .. } => start(&mut living, run, spec.dir, stopping)?,
                    Effect::WatchWorker { run, root: path, .. } | Effect::WatchFrontend { run, dir: path, .. } => {
                        // Whatever of ours was there has lost the lock and is on its way out.
                        living.iter_mut().filter(|(_, other, _)| *other == path).for_each(|(.., ours)| *ours = false);
                        living.push((run, path, false));
                    }
                    Effect::Exit => { prop_assert!(stopping); exited = true }
                    _ => {}
                }
            }
        }
        prop_assert!(exited, "did not come to an end: {:?}", sim.state);
        for mut answer in answers {
            prop_assert!(answer.try_recv().is_ok(), "a call was not answered");
        }
    }
}

fn pick(living: &[(Run, std::path::PathBuf, bool)], which: u8) -> Option<(Run, std::path::PathBuf, bool)> {
    living.get(usize::from(which) % living.len().max(1)).cloned()
}

/// One of ours at a time.
fn start(
    living: &mut Vec<(Run, std::path::PathBuf, bool)>,
    run: Run,
    path: std::path::PathBuf,
    stopping: bool,
) -> Result<(), TestCaseError> {
    prop_assert!(!stopping, "{path:?} was started after a stop was asked for");
    let twice = living.iter().any(|(_, other, ours)| *ours && *other == path);
    prop_assert!(!twice, "{path:?} was started twice");
    living.push((run, path, true));
    Ok(())
}
