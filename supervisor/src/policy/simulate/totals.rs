//! How often things happened: a simulation that does not do much proves nothing.

macro_rules! totals {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// See the module.
        #[derive(Default, Debug)]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Totals {
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

totals! {
    events,
    ticks,
    mirrors,
    confirms,
    declines,
    trims,
    forbidden,
    /// Ended after the promises did.
    late_trims,
    evictions,
    /// Relying on fewer than are wanted, where fewer may keep copies.
    meagre_evictions,
    drained,
    /// Copies made in the quiet and let go in the same quiet.
    wasted,
    /// Copies made in the quiet.
    quiet_mirrors,
    /// Contents that events (never decisions) destroyed.
    destroyed,
    /// Copies that went relying on one that an event destroyed after its promise, or before it and nobody could know.
    excused,
    /// Of these such that were the last ones.
    excused_last,
    damaged,
    vanished,
    /// Damaged copies that were found, and given up for a good one.
    set_aside,
    changed_when_asked,
    /// Moved to another host while bound by promises.
    carried,
    hangs,
    /// Machines of which the clock stood still.
    stood_still,
    /// Fetches and farewells that a hanging worker ended after it woke.
    woken,
    worker_restarts,
    supervisor_restarts,
    liars,
    revoked,
    forgotten,
    came_back,
    retired,
    reads,
    rewritten,
    set_back,
    /// Copies that lacked at a quiet end, for want of room.
    lacking,
    /// Contents that had all their copies then.
    complete,
    stuck,
    health_looks,
}

impl Totals {
    /// Enough happened for the run to mean something, and little was done in vain.
    pub fn check(&self, by_workers: bool) {
        let often = [
            (self.mirrors, 3000, "copies made"),
            (self.trims, 1000, "copies let go"),
            (self.drained, 100, "let go by disks that are emptied"),
            (self.evictions, 50, "evicted"),
            (self.meagre_evictions, u64::from(by_workers), "evicted where few may keep"),
            (self.stood_still, 5 * u64::from(by_workers), "clocks that stood still"),
            (self.late_trims, 50, "let go late"),
            (self.declines, 500, "not promised"),
            (self.excused, 5, "let go for a copy that was destroyed"),
            (self.damaged, 200, "damaged"),
            (self.set_aside, 100, "found damaged"),
            (self.vanished, 100, "vanished"),
            (self.changed_when_asked, 50, "changed when asked to promise"),
            (self.carried, 20, "carried to another host"),
            (self.hangs, 50, "hanging workers"),
            (self.woken, 10, "ended by workers that had hung"),
            (self.worker_restarts, 50, "workers started anew"),
            (self.supervisor_restarts, 100, "supervisors started anew"),
            (self.liars, 2, "liars"),
            (self.revoked, 10, "revoked"),
            (self.forgotten, 20, "forgotten"),
            (self.came_back, 5, "back after that"),
            (self.retired, 2, "taken away when empty"),
            (self.reads, 20, "read through a lazy disk"),
            (self.rewritten, 50, "written again"),
            (self.set_back, 20, "disks set back"),
            (self.complete, 1000, "complete"),
            (self.health_looks, 1000, "looks at the health"),
        ];
        for (count, least, what) in often {
            assert!(count >= least, "{what}: only {count} times; {self:#?}");
        }
        assert!(self.wasted * 25 < self.quiet_mirrors, "{self:#?}");
    }
}
