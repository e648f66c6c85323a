//! One task's decisions, without workers, or with such as do not answer.

use delugefs_proto::ids::ActorId;
use delugefs_proto::record::VersionVector;

use super::*;

fn disk(id: DiskId, host: DiskId, since_s: u64) -> Disk {
    Disk {
        id,
        host: HostId(host.0),
        site: String::new(),
        presence: Presence::Here { since_s },
        here_s: since_s,
        heard: true,
        changed_s: 0,
        lazy: false,
        draining: false,
        read_only: false,
        full: false,
        forgotten: false,
        free_bytes: 1000,
        backlog_s: 0,
    }
}

#[test]
fn as_many_disks_fetch_a_small_file_as_copies_are_missing() {
    let (me, content) = (DiskId([1; 32]), ContentId([7; 32]));
    let ids: Vec<DiskId> = (1..=4).map(|n| DiskId([n; 32])).collect();
    let known: Vec<Option<DiskId>> = ids.iter().copied().map(Some).collect();
    let place = |id: &DiskId| u32::try_from(ids.iter().position(|known| known == id).unwrap()).unwrap();
    for comes in [true, false] {
        let mut this = Replicator::new(Settings::default());
        ids.iter().for_each(|id| drop(this.disks.insert(*id, disk(*id, me, 0))));
        let walked = |this: &mut Replicator, holders: Vec<u32>| {
            let (content, pieces) = (content.0.to_vec(), Vec::new());
            let said = wpb::Content { content, size_bytes: 5, wanted: 2, holders, pieces };
            this.contents = Contents::default();
            this.contents.add(&Contents::default(), &known, &[said], 1999); // later others take over
            this.contents.end();
        };
        // Who is told to fetch it.
        let told = |this: &mut Replicator| {
            let disks: Vec<Disk> = this.disks.values().cloned().collect();
            let (contents, desk, settings) = (this.contents.all(), &this.desk, &this.settings);
            let view = View { me: HostId(me.0), disks: &disks, contents, desk, settings };
            let decided = policy::decide(&view, 2000);
            let told: Vec<DiskId> = decided
                .iter()
                .filter_map(|decision| match decision {
                    policy::Decision::Mirror { disk, .. } => Some(*disk),
                    _ => None,
                })
                .collect();
            for disk in &told {
                this.desk.fetching(*disk, content, 5);
                this.fetches.insert((*disk, content), None);
            }
            told
        };
        walked(&mut this, vec![0]);
        this.told = Some(Instant::now());
        let first = told(&mut this);
        assert_eq!(first.len(), 1);
        // It has it before the catalog is walked again; and that walk may be too early to say so.
        let key = (first[0], content);
        for _ in 0..3 {
            this.left_off(key.0, content, 2000);
            assert_eq!(told(&mut this), [], "another disk is told to fetch the same");
            this.told = Some(Instant::now());
        }
        if comes {
            walked(&mut this, vec![0, place(&key.0)]);
        }
        this.told = this.fetches[&key].map(|since| since + NEWS);
        this.left_off(key.0, content, 2000);
        assert!(this.fetches.is_empty());
        let next = told(&mut this);
        assert_eq!((next.len(), next.contains(&key.0)), (usize::from(!comes), false), "it failed, or it did not");
    }
}

#[test]
fn what_failed_is_tried_anew_when_another_disk_has_it_or_one_that_does_has_come() {
    let (here, source, content) = (DiskId([1; 32]), DiskId([2; 32]), ContentId([7; 32]));
    let said = wpb::Content {
        content: content.0.to_vec(),
        size_bytes: 5,
        wanted: 2,
        holders: vec![0],
        ..wpb::Content::default()
    };
    let asked_again = |walked_s, came_s| {
        let mut this = Replicator::new(Settings::default());
        this.contents.add(&Contents::default(), &[Some(source)], std::slice::from_ref(&said), walked_s);
        this.contents.end();
        for (id, since_s) in [(here, 0), (source, came_s)] {
            this.disks.insert(id, disk(id, id, since_s));
        }
        this.desk.failed(here, content, 1000);
        this.desk.failed(here, content, 2000);
        this.forgive();
        let disks: Vec<Disk> = this.disks.values().cloned().collect();
        let (contents, desk, settings) = (this.contents.all(), &this.desk, &this.settings);
        let view = View { me: HostId(here.0), disks: &disks, contents, desk, settings };
        !policy::decide(&view, 2060).is_empty()
    };
    assert_eq!([asked_again(900, 900), asked_again(2001, 900), asked_again(900, 2001)], [false, true, true]);
}

#[tokio::test]
async fn a_worker_that_says_nothing_does_not_keep_the_others_from_being_asked() {
    let dir = tempfile::tempdir().unwrap();
    let workers: Vec<(DiskId, PathBuf)> =
        (1..=3).map(|n| (DiskId([n; 32]), dir.path().join(format!("{n}.sock")))).collect();
    // All take calls and never answer.
    let _silent: Vec<_> =
        workers.iter().map(|(_, socket)| std::os::unix::net::UnixListener::bind(socket).unwrap()).collect();
    let mut this = Replicator { silence: Duration::from_millis(20), ..Replicator::new(Settings::default()) };
    for (_, socket) in workers.iter().chain(&workers) {
        this.walked.0 = None;
        assert!(!this.walk(&workers, 1).await);
        assert_eq!(this.walked.1, Duration::ZERO, "the next one is not kept waiting");
        assert_eq!(this.failed.as_ref(), Some(socket));
    }
    // The one that was asked last has become full, or fails: another one knows more, if there is one.
    let socket = |at: usize| workers[at].1.clone();
    for (willing, asked) in [(&[0, 1, 2][..], 0), (&[2], 2), (&[1, 2], 1), (&[], 0)] {
        this.willing = willing.iter().map(|at| socket(*at)).collect();
        (this.source, this.failed, this.walked.0) = ((socket(0), 5), None, None);
        assert!(!this.walk(&workers, 1).await);
        assert_eq!(this.failed, Some(socket(asked)), "{willing:?}");
    }
    // It answers, but knows less than the others and gets no further.
    let knows = |seq| VersionVector([(ActorId(1), seq)].into());
    for (minute, firsts) in [(0, 1), (1, 1)] {
        let known = [(0, firsts), (1, 5), (2, 5)].map(|(at, seq): (usize, u64)| (workers[at].0, knows(seq)));
        this.lag.look(known.into(), Instant::now() + Duration::from_secs(60 * minute));
    }
    this.willing = workers.iter().map(|(_, socket)| socket.clone()).collect();
    (this.source, this.failed, this.walked.0) = ((socket(0), 5), None, None);
    assert!(!this.walk(&workers, 1).await);
    assert_eq!(this.failed, Some(socket(1)), "another one is asked");
}

/// One bad host may say that it is many, or that it is this one.
#[test]
fn a_disk_is_in_the_host_that_has_let_it_in() {
    let [me, bad, other] = [1, 2, 3].map(|n| HostId([n; 32]));
    let (disk, here) = (DiskId([7; 32]), [(DiskId([8; 32]), PathBuf::new())]);
    let host = |disk, by: &[u8], said: &[u8]| {
        let said = wpb::Peer { admitted_by: by.to_vec(), host_id: said.to_vec(), ..wpb::Peer::default() };
        host_of(disk, &said, me, &here)
    };
    assert_eq!(host(disk, &bad.0, &other.0), bad);
    assert_eq!(host(disk, &bad.0, &me.0), bad);
    // An older worker does not say who has; it has moved away; nothing is known; it runs here.
    assert_eq!(host(disk, &[], &other.0), other);
    assert_eq!(host(disk, &me.0, &other.0), other);
    assert_eq!(host(disk, &[], &[]), HostId(disk.0));
    assert_eq!(host(here[0].0, &other.0, &[]), me);
}

#[test]
fn an_absence_that_is_short_does_not_begin_a_disks_time_anew() {
    let id = DiskId([1; 32]);
    let seen = |times: &[(bool, u64)]| {
        let begin = disk(id, id, 100);
        let step = |before: Disk, (is_here, since_s): &(bool, u64)| {
            let since_s = *since_s;
            let presence = if *is_here { Presence::Here { since_s } } else { Presence::Absent { since_s } };
            Disk { here_s: here_s(&before, presence, 600), presence, ..before }
        };
        times.iter().fold(begin, step).here_s
    };
    assert_eq!(seen(&[(true, 100), (false, 1000), (true, 1599), (false, 2000), (true, 2010)]), 100);
    assert_eq!(seen(&[(false, 1000), (false, 1000), (true, 1600), (false, 2000), (true, 2010)]), 1600);
}
