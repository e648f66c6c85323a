//! Mirrors that are called off before they have begun, or while somebody reads the same content.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_called_off_while_it_begins_does_not_go_on() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let wanted = write(&nodes[0], "file", &bytes(100_000));
    known(&nodes[1], wanted).await;
    let (fetcher, store) = (nodes[1].fetcher(), &nodes[1].engine().store);
    // As while BitTorrent is ending: until that is out of the way nobody gets the file.
    fetcher.swarming.lock().insert(wanted.content, CancellationToken::new());
    fetcher.mirror(wanted);
    until("it to begin", || fetcher.beginning.lock().contains(&wanted.content)).await;
    assert!(fetcher.cancel(wanted.content).await.unwrap());
    fetcher.swarming.lock().clear();
    until("that to end", || fetcher.beginning.lock().is_empty()).await;
    until("the end of it", || fetcher.transfers.lock().is_empty()).await;
    assert_eq!((store.has(wanted.content).unwrap(), store.incoming().unwrap()), (None, vec![]));
    // And while it is not decided yet whether it begins.
    let (asked, other) = (fetcher.ask(wanted.content), fetcher.ask(ContentId([7; 32])));
    assert!(fetcher.cancel(wanted.content).await.unwrap(), "somebody has asked for it");
    assert!(!asked.mirror(wanted) && !fetcher.is_mirroring(wanted.content));
    drop(other);
    assert!(fetcher.asked.lock().is_empty() && !fetcher.cancel(wanted.content).await.unwrap());
    fetcher.mirror(wanted);
    until("the content", || store.has(wanted.content).unwrap().is_some()).await;
}

/// The reader's transfer goes on, but fetches no more than he reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_called_off_beside_a_reader_waits_for_nothing() {
    let (_, _, nodes) = cluster(1, &[]).await;
    let fetcher = nodes[0].fetcher().clone();
    let wanted = Wanted { content: ContentId([7; 32]), size: 100_000, pieces: None };
    let file = tempfile::tempfile().unwrap();
    let transfer = Arc::new(Transfer::new(wanted, None, file, Arc::default()).unwrap());
    fetcher.transfers.lock().insert(wanted.content, transfer.clone());
    let reader = Using::new(transfer.clone(), true);
    let (stop, waiting) = (CancellationToken::new(), fetcher.clone());
    let called_off = stop.clone();
    let waiting = tokio::task::spawn_blocking(move || waiting.wait_whole(wanted, Some(&called_off)));
    until("it to wait for all of it", || transfer.is_awaited()).await;
    stop.cancel();
    fetcher.cancel(wanted.content).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().errno, Errno::ECANCELED, "it has waited to the end");
    assert!(!transfer.stopped().is_cancelled());
    drop(reader);
}
