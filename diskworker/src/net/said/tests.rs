use super::*;

const DAY_S: u64 = 86_400;

fn id(n: u8) -> DiskId {
    DiskId([n; 32])
}

fn about(n: u8, uptime_s: u64) -> About {
    About {
        version: 1,
        program: "1.2.3".into(),
        cluster_id: vec![1; 16],
        host_id: vec![n; 32],
        host_label: format!("host{n}"),
        epoch: 1 << 40,
        uptime_s,
        total_bytes: 4 << 40,
        free_bytes: 1 << 40,
        state: vec![9; 20],
        run: u64::from(n) << 50,
        knows_still: true,
        ..About::default()
    }
}

/// Both ends of what one tells the other.
#[derive(Default)]
struct Link {
    told: Told,
    /// What the one that tells has heard.
    heard: Heard,
    /// What the other has.
    others: Heard,
    own: About,
    known: HashMap<DiskId, About>,
    bytes: usize,
}

impl Link {
    /// Tell, and take in what was told. How many were told in full and in brief.
    fn tell(&mut self, own: &About, others: &[(u8, About)]) -> (usize, usize) {
        let said = others.iter().map(|(n, about)| (id(*n), about, Brief::of(about)));
        let (greeting, full, still) = self.told.news(own, Some(said), &mut self.heard, true);
        let in_full = usize::from(greeting.is_some()) + full.len();
        if let Some(about) = greeting {
            self.bytes += about.encoded_len();
            self.others.about(&about);
            self.own = about;
        }
        for sighting in full {
            self.bytes += sighting.encoded_len();
            let (disk, about) = (DiskId::from_slice(&sighting.disk_id).unwrap(), sighting.about.unwrap());
            self.others.sighting(sighting.number, disk, &about);
            self.known.insert(disk, about);
        }
        let still = still.unwrap_or_default();
        self.bytes += still.encoded_len();
        let (known, missing) = self.others.still(&still, 1 << 40).unwrap();
        self.heard.what(&missing);
        for (_, disk, brief) in &known {
            let about = match disk {
                None => &mut self.own,
                Some(disk) => self.known.get_mut(disk).unwrap(),
            };
            assert!(brief.continues(&Brief::of(about)));
            *about = brief.applied_to(about);
        }
        (in_full, known.len())
    }

    fn knows(&self, others: &[(u8, About)]) -> bool {
        let shown = |about: &About| About { knows_still: false, ..about.clone() };
        others.iter().all(|(n, about)| self.known.get(&id(*n)) == Some(&shown(about)))
    }
}

#[test]
fn who_goes_on_as_before_costs_some_bytes_and_is_known_as_well() {
    let mut link = Link::default();
    let all = |uptime_s| (1..=99).map(|n| (n, about(n, uptime_s + u64::from(n)))).collect::<Vec<_>>();
    assert_eq!(link.tell(&about(100, DAY_S), &all(DAY_S)), (100, 0));
    assert!(link.knows(&all(DAY_S)));
    let begin = std::mem::take(&mut link.bytes);
    for round in 1..=6 {
        let now = all(DAY_S + 10 * round);
        assert_eq!(link.tell(&about(100, DAY_S + 10 * round), &now), (0, 100));
        assert!(link.knows(&now) && link.own.uptime_s == DAY_S + 10 * round);
    }
    assert!(begin > 15_000 && link.bytes < 1_500, "{begin}, then {} bytes in a minute", link.bytes);
    // What is no news is not said.
    link.bytes = 0;
    link.tell(&about(100, DAY_S + 61), &all(DAY_S + 60));
    assert!(link.bytes < 10, "{}", link.bytes);
}

#[test]
fn what_changes_is_said_and_the_rest_in_full() {
    let mut link = Link::default();
    let (own, mut others) = (about(1, 5), vec![(2, about(2, 5)), (3, about(3, 5))]);
    link.tell(&own, &others);
    // Another state, and other free space; both have the same state.
    for (_, about) in &mut others {
        (about.uptime_s, about.state) = (20, vec![7; 20]);
    }
    others[0].1.free_bytes /= 2;
    assert_eq!(link.tell(&own, &others), (0, 3));
    assert!(link.knows(&others));
    // Free space never rests. It is said when that adds up.
    let exact = others[1].1.free_bytes;
    for step in 1..=3 {
        (others[1].1.uptime_s, others[1].1.free_bytes) = (20 + step, exact - step * (exact >> 10));
        link.tell(&own, &others);
        assert_eq!(link.known[&id(3)].uptime_s, 20 + step);
    }
    assert_eq!(link.known[&id(3)].free_bytes, exact);
    (others[1].1.uptime_s, others[1].1.free_bytes) = (25, exact - 5 * (exact >> 10));
    link.tell(&own, &others);
    assert!(link.knows(&others));
    // What else it says of itself; and a new start, whatever its clock says of how long it runs.
    (others[0].1.uptime_s, others[0].1.read_only) = (30, true);
    (others[1].1.epoch, others[1].1.uptime_s, others[1].1.run) = ((1 << 40) + 1, 2, 77);
    assert_eq!(link.tell(&About { site: "attic".into(), ..own.clone() }, &others), (3, 0));
    assert!(link.knows(&others) && link.own.site == "attic");
    // An earlier life of it says nothing any more.
    assert_eq!(link.tell(&About { site: "attic".into(), ..own }, &[(3, about(3, 999))]), (0, 1));
}

#[test]
fn what_the_other_end_has_told_it_is_not_told_back() {
    let mut link = Link::default();
    let own = about(1, 5);
    link.heard.sighting(7, id(2), &about(2, 100));
    assert_eq!(link.tell(&own, &[(2, about(2, 100))]), (1, 0), "itself");
    assert_eq!(link.tell(&own, &[(2, about(2, 110))]), (1, 1), "others have later news");
    let still = pb::Still { numbers: vec![7], later_s: vec![20], ..Default::default() };
    assert_eq!(link.heard.still(&still, 1 << 40).unwrap().0.len(), 1);
    assert_eq!(link.tell(&own, &[(2, about(2, 120))]), (0, 1));
    assert_eq!(link.tell(&own, &[(2, about(2, 130))]), (0, 2));
}

#[test]
fn who_lacks_something_asks_and_is_told_all() {
    let mut link = Link::default();
    let (own, others) = (about(1, 5), |at| vec![(2, about(2, at)), (3, about(3, at))]);
    link.tell(&own, &others(5));
    link.others = Heard::default(); // as if it had been lost
    assert_eq!(link.tell(&own, &others(15)), (0, 0));
    assert_eq!(link.tell(&own, &others(15)), (3, 0));
    assert_eq!(link.tell(&own, &others(25)), (0, 3));
    assert!(link.knows(&others(25)));
    // Numbers that nobody has mean nothing.
    link.heard.what(&[4, 5, u32::MAX]);
    assert_eq!(link.tell(&own, &others(35)), (0, 3));
}

#[test]
fn an_older_one_is_told_all_that_is_new() {
    let mut link = Link::default();
    let others = [(2, about(2, 5))];
    let mut said = |own: &About, others: &[(u8, About)]| {
        let others = others.iter().map(|(n, about)| (id(*n), about, Brief::of(about)));
        let (greeting, full, still) = link.told.news(own, Some(others), &mut link.heard, false);
        assert_eq!(still, None);
        (greeting.is_some(), full.len())
    };
    assert_eq!(said(&about(1, 5), &others), (true, 1));
    assert_eq!(said(&about(1, 5), &others), (true, 0));
    assert_eq!(said(&about(1, 15), &[(2, about(2, 15))]), (true, 1));
}

#[test]
fn where_everybody_meets_everybody_who_changes_nothing_says_nothing() {
    let (mut told, mut heard) = (Told::default(), Heard::default());
    let mut said = |own: &About| {
        let none: Option<std::iter::Empty<_>> = None;
        let (greeting, full, still) = told.news(own, none, &mut heard, true);
        assert!(full.is_empty());
        (greeting.is_some(), still.is_some())
    };
    assert_eq!(said(&about(1, 5)), (true, false));
    assert_eq!(said(&about(1, 15)), (false, false));
    assert_eq!(said(&About { free_bytes: 7, ..about(1, 25) }), (false, true));
    assert_eq!(said(&About { free_bytes: 7, full: true, ..about(1, 35) }), (true, false));
}

#[test]
fn nonsense_is_refused_and_what_is_kept_has_bounds() {
    let mut heard = Heard::default();
    heard.sighting(1, id(1), &about(1, 5));
    let mut bad = |still: pb::Still| heard.still(&still, 1000).is_err();
    let still = pb::Still { numbers: vec![1], later_s: vec![1], ..Default::default() };
    let changed = |commit| vec![pb::StillChanged { number: 1, commit, ..Default::default() }];
    assert!(bad(pb::Still { later_s: vec![], ..still.clone() }));
    assert!(bad(pb::Still { later_s: vec![2000], ..still.clone() }), "it ran so long before it was made");
    let mut heard = Heard::default();
    heard.sighting(1, id(1), &about(1, 5));
    assert!(heard.still(&pb::Still { changed: changed(1), ..still.clone() }, 1000).is_err());
    let commits = vec![vec![1; 19]];
    assert!(heard.still(&pb::Still { changed: changed(1), commits, ..still.clone() }, 1000).is_err());
    assert!(heard.still(&pb::Still { numbers: vec![9; 10_000], later_s: vec![1; 10_000], ..still }, 1000).is_err());
    for n in 0..3 * NUMBERS_MAX {
        let disk = DiskId(std::array::from_fn(|at| n.to_le_bytes().get(at).copied().unwrap_or(1)));
        heard.sighting(n, disk, &about(1, 5));
        heard.sighting(1, disk, &about(1, 5));
    }
    assert!(heard.numbers.len() <= NUMBERS_MAX as usize && heard.disks.len() <= NUMBERS_MAX as usize);
    // Those without a number are told of in full.
    let mut told = Told { numbers: NUMBERS_MAX - 1, ..Told::default() };
    for (at, in_full) in [(5, 2), (15, 1)] {
        let others = [(2, about(2, at)), (3, about(3, at))];
        let others = others.iter().map(|(n, about)| (id(*n), about, Brief::of(about)));
        let (_, full, still) = told.news(&about(1, at), Some(others), &mut Heard::default(), true);
        assert_eq!((full.len(), still.map_or(0, |still| still.numbers.len())), (in_full, (at as usize - 5) / 5));
    }
}

#[test]
fn of_addresses_those_are_told_that_are_new_and_all_in_the_course_of_an_hour() {
    let mut told = Told::default();
    let mut known: BTreeMap<DiskId, Vec<String>> =
        (1..=100).map(|n| (id(n), vec![format!("10.0.0.{n}:7"), format!("10.1.0.{n}:7")])).collect();
    let count = |said: Vec<pb::DiskAddresses>| -> Vec<usize> { said.iter().map(|one| one.addresses.len()).collect() };
    assert_eq!(count(told.addresses(&known, false)), [2; 100]);
    assert_eq!(count(told.addresses(&known, false)), [0; 0]);
    // In another order they are no news: one that does not answer goes to the end each time.
    known.get_mut(&id(3)).unwrap().reverse();
    assert_eq!(count(told.addresses(&known, false)), [0; 0]);
    known.get_mut(&id(3)).unwrap().push("10.2.0.3:7".into());
    known.insert(id(101), vec!["10.0.0.101:7".into()]);
    let said = told.addresses(&known, false);
    assert_eq!((said[0].addresses.as_slice(), said.len()), (&["10.2.0.3:7".to_owned()][..], 2));
    // What was forgotten meanwhile is news when it is back.
    let old = known.insert(id(3), vec![]).unwrap();
    assert_eq!(count(told.addresses(&known, false)), [0; 0]);
    known.insert(id(3), old);
    assert_eq!(count(told.addresses(&known, false)), [3]);
    let mut anew: HashSet<Vec<u8>> = HashSet::new();
    for _ in 0..TURNS {
        let said = told.addresses(&known, true);
        assert!((1..=2).contains(&said.len()));
        anew.extend(said.into_iter().map(|one| one.disk_id));
    }
    assert_eq!(anew.len(), known.len());
    assert_eq!(count(told.addresses(&BTreeMap::new(), true)), [0; 0]);
}
