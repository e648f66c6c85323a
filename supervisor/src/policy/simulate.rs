//! A world of hosts, disks and contents in which everything goes wrong, played from a seed: the same number gives the
//! same story. Each epoch is a storm of events, then quiet, in which all must come to rest as it should be. What the hosts
//! believe is one thing (`host`), what is true another (`world`, `oracle`): every copy that a decision lets go is measured by
//! what truly is left, and events are known by what they destroyed. A failing seed is printed, and
//! `DELUGEFS_POLICY_SEED=n cargo test ... policy::simulate` plays exactly that one; `DELUGEFS_POLICY_SEEDS=n` plays more.
//!
//! Reading order: `world` (what there is), `events` and `harm` (what happens), `host` (who believes what), `act` and `own`
//! (what is done about it; promises by desks, and by workers), `workers`, and the checks: `oracle`, `check`, `rest`, `look`.

mod act;
mod check;
mod events;
mod harm;
mod host;
mod look;
mod oracle;
mod own;
mod rest;
mod totals;
mod workers;
mod world;

use super::weight::mix;
use totals::Totals;
use world::World;

/// Seeds of each kind in an ordinary run.
const SEEDS: u64 = 12;
const EPOCHS: u32 = 8;
/// Storms of this many events; 8 of them make about 1,300 events for a seed.
const EVENTS: u64 = 160;
/// Ticks until all is at rest after a storm, at most.
const QUIET_TICKS: u32 = 900;
/// Ticks without any activity that count as rest: longer than every delay of the settings used.
const REST_TICKS: u32 = 60;

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Says how to repeat a failure.
struct Say(u64);

impl Drop for Say {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("play it again with DELUGEFS_POLICY_SEED={}", self.0);
        }
    }
}

fn play(seed: u64) -> Totals {
    let _say = Say(seed);
    let mut world = World::new(seed);
    for _ in 0..EPOCHS {
        let mut left = EVENTS;
        while left > 0 {
            let burst = (1 + world.rng.below(4)).min(left);
            left -= burst;
            (0..burst).for_each(|_| world.event());
            // Mostly a few ticks, now and then long enough for every delay to run out.
            let ticks = if world.rng.chance(6) { 10 + world.rng.below(50) } else { 1 + world.rng.below(4) };
            (0..ticks).for_each(|_| _ = world.tick());
        }
        world.calm();
        let mut rest = 0;
        for _ in 0..QUIET_TICKS {
            rest = if world.tick() { 0 } else { rest + 1 };
            if rest == REST_TICKS {
                break;
            }
        }
        assert!(rest == REST_TICKS, "at {} s: it does not come to rest", world.t);
        world.check_rest();
    }
    world.totals
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Odd seeds have the promises made by desks, even ones by workers.
fn play_all(by_workers: bool) {
    let first = if by_workers { 2 } else { 1 };
    let mut totals = Totals::default();
    if let Some(seed) = number("DELUGEFS_POLICY_SEED") {
        if seed.is_multiple_of(2) == by_workers {
            println!("{:#?}", play(seed));
        }
        return;
    }
    let seeds = number("DELUGEFS_POLICY_SEEDS").unwrap_or(SEEDS);
    (0..seeds).for_each(|n| totals.add(&play(first + 2 * n)));
    println!("{totals:#?}");
    totals.check(by_workers);
}

#[test]
fn storms_and_quiet_with_promises_by_desks() {
    play_all(false);
}

#[test]
fn storms_and_quiet_with_promises_by_workers() {
    play_all(true);
}
