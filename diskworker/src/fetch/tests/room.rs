//! A lazy disk makes room: what goes, and what stays.

use std::time::SystemTime;

use super::*;

/// They may promise and let go, and know that one copy of each is wanted.
pub(super) async fn one_copy_is_enough(nodes: &[Node], files: &[Wanted]) {
    nodes[0].engine().copies(&CopiesRequest { path: b"/".to_vec(), set: 1, inherit: false }).unwrap();
    settled(nodes, files, 1).await;
}

/// Until all disks know that so many copies of these files are wanted, and may promise.
async fn settled(nodes: &[Node], files: &[Wanted], wanted: u32) {
    for node in nodes {
        node.fetcher().promises.settle();
        let knows = || {
            let ledger = node.engine().ledger().unwrap();
            files.iter().all(|one| ledger.find(one.content).is_some_and(|entry| entry.wanted == wanted))
        };
        until("all to know what is wanted", knows).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_is_away_keeps_nothing() {
    let (_, _, mut nodes) = cluster(3, &[(0, 1), (0, 2), (1, 2)]).await;
    let shared = write(&nodes[0], "shared", &bytes(70_000));
    known(&nodes[1], shared).await;
    let fetcher = nodes[1].fetcher().clone();
    blocking(move || fetcher.whole(shared)).await.unwrap();
    one_copy_is_enough(&nodes[..2], &[shared]).await;
    until("all to meet", || nodes[1].net().keepers(shared.content) == [nodes[0].id()]).await;
    let away = nodes.remove(0);
    away.stop().await;
    until("it to be missed", || nodes[0].net().keepers(shared.content).is_empty()).await;
    // It is not even asked.
    assert_eq!(nodes[0].net().holders(shared.content).len(), 1);
    assert_eq!(nodes[0].fetcher().make_room(1, Goes::Copies).await.unwrap().gone, 0);
    assert!(nodes[0].fetcher().kept.lock().is_empty());
    assert!(nodes[0].engine().store.has(shared.content).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_fetch_has_left_goes_unless_it_goes_on() {
    let (_, _, nodes) = cluster(1, &[]).await;
    let (fetcher, store) = (nodes[0].fetcher(), &nodes[0].engine().store);
    // What has just come up has nothing to wait for: this needs no promise.
    assert!(!fetcher.promises.is_settled());
    let (left, going) = (ContentId([1; 32]), [2, 3, 4].map(|n| ContentId([n; 32])));
    for content in going.into_iter().chain([left]) {
        store.incoming_file(content, 1 << 20).unwrap().write_all_at(&bytes(4096), 0).unwrap();
    }
    // By BitTorrent, by who waits for room, twice, and by a mirror between its tries.
    fetcher.swarming.lock().insert(going[0], CancellationToken::new());
    let begins = [(); 2].map(|()| Beginning::new(fetcher, going[1]));
    let mirroring = Mirroring { size: 1 << 20, stop: CancellationToken::new() };
    fetcher.mirroring.lock().insert(going[2], mirroring);
    assert_eq!(fetcher.make_room(u64::MAX, Goes::Copies).await.unwrap().gone, 0);
    assert_eq!(fetcher.make_room(1, Goes::Copies).await.unwrap().gone, 1);
    let is_here = |content: &ContentId| store.incoming_used(*content).is_some();
    assert!(!is_here(&left) && going.iter().all(is_here));
    assert!(going.iter().all(|content| !fetcher.remove_left(*content).unwrap()));
    // However much is free, nothing lies about for ever: what a file has for a day, else for some minutes.
    let later = |minutes: u64| SystemTime::now() + Duration::from_secs(60 * minutes);
    let named = write(&nodes[0], "named", &bytes(70_000)).content;
    until("it to be in the catalog", || nodes[0].engine().ledger().unwrap().find(named).is_some()).await;
    for content in [left, named] {
        store.incoming_file(content, 1 << 20).unwrap().write_all_at(&bytes(4096), 0).unwrap();
    }
    let drop_left = |minutes, is_there| fetcher.drop_left(later(minutes), &|_| is_there).unwrap();
    assert_eq!([drop_left(5, true), drop_left(15, false)], [0, 1]);
    assert!(!is_here(&left) && is_here(&named));
    assert_eq!([drop_left(12 * 60, true), drop_left(25 * 60, false), drop_left(25 * 60, true)], [0, 0, 1]);
    assert!(!is_here(&named) && going.iter().all(is_here));
    let [first, last] = begins;
    drop(first);
    assert!(!fetcher.remove_left(going[1]).unwrap());
    drop(last);
    assert!(fetcher.remove_left(going[1]).unwrap() && !is_here(&going[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_made_with_what_others_keep_and_with_nothing_else() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let shared = write(&nodes[0], "shared", &bytes(70_000));
    let own = write(&nodes[1], "own", &bytes(80_000));
    known(&nodes[1], shared).await;
    let lazy = nodes[1].fetcher();
    let fetcher = lazy.clone();
    blocking(move || fetcher.whole(shared)).await.unwrap();
    settled(&nodes, &[shared, own], 2).await;
    let holds = |wanted: Wanted| nodes[1].engine().store.has(wanted.content).unwrap().is_some();
    // There is room: nothing goes.
    assert_eq!(lazy.make_room(u64::MAX, Goes::Copies).await.unwrap().gone, 0);
    assert!(holds(shared) && holds(own));
    // As if the whole disk had to be free. Two copies are wanted, and there is no third disk that could have one.
    assert_eq!(lazy.make_room(1, Goes::Copies).await.unwrap().gone, 1);
    assert!(!holds(shared) && holds(own));
    let fetcher = lazy.clone();
    blocking(move || fetcher.whole(shared)).await.unwrap();
    assert_eq!(read(&nodes[1], shared), bytes(70_000));
}
