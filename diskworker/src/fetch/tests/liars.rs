//! Disks that say they hold a content and send something else, half of it, or nothing: who reads gets past them.

use super::*;
use crate::net::tests::liar::{Liar, Manner, among_liars};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_gets_past_liars_to_a_disk_that_has_the_content() {
    let manners = |_: &Node| {
        vec![Manner::Trickle, Manner::Stall, Manner::Garbage, Manner::Oversized, Manner::Truncated(Vec::new())]
    };
    let (nodes, liars) = among_liars(manners).await;
    until("the liars to be met", || liars.iter().all(|liar| liar.is_met_by(&nodes[1]))).await;
    for (epoch, content) in [bytes(100_000), bytes(6 << 20)].iter().enumerate() {
        let wanted = write(&nodes[0], &format!("file{epoch}"), content);
        known(&nodes[1], wanted).await;
        liars.iter().for_each(|liar| liar.claims(&nodes[1], wanted.content, 1 + epoch as u64));
        assert_eq!(nodes[1].net().holders(wanted.content).len(), 1 + liars.len());
        // A reader may have to try again, but not for ever; what he gets is right.
        let whole = || {
            let fetcher = nodes[1].fetcher().clone();
            blocking(move || fetcher.whole(wanted))
        };
        let mut tries = 1;
        while let Err(error) = whole().await {
            tries += 1;
            assert!(tries <= 5, "{error}");
        }
        println!("{} bytes: {tries} tries", content.len());
        assert!(read(&nodes[1], wanted) == *content);
    }
    assert!(liars.iter().map(Liar::asked).sum::<usize>() > 0);
}

/// It would be gathered in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_large_content_without_hashes_of_its_pieces_is_not_fetched() {
    let (nodes, liars) = among_liars(|_| vec![Manner::Garbage]).await;
    until("the liar to be met", || liars[0].is_met_by(&nodes[1])).await;
    let content = ContentId([1; 32]);
    liars[0].claims(&nodes[1], content, 1);
    for (size, is_refused) in [(TORRENT_MIN_BYTES + 1, true), (TORRENT_MIN_BYTES, false)] {
        let (fetcher, wanted) = (nodes[1].fetcher().clone(), Wanted { content, size, pieces: None });
        let error = blocking(move || fetcher.whole(wanted)).await.unwrap_err();
        assert_eq!(error.to_string().contains("no hashes of its pieces"), is_refused, "{size} bytes: {error}");
    }
}

/// It accepts requests, and answers none of them to the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_one_disk_does_not_give_keeps_nothing_waiting_that_others_give() {
    let (nodes, liars) = among_liars(|_| vec![Manner::Stall]).await;
    until("the liar to be met", || liars[0].is_met_by(&nodes[1])).await;
    let good = write(&nodes[0], "file", &bytes(100_000));
    known(&nodes[1], good).await;
    let ids: Vec<ContentId> = (0..50).map(|n| ContentId([n; 32])).collect();
    liars[0].claims_all(&nodes[1], &ids, 1);
    let fetcher = nodes[1].fetcher();
    for content in ids.iter().copied() {
        fetcher.mirror(Wanted { content, size: 100_000, pieces: None });
    }
    until("it to be asked", || liars[0].asked() > 0).await;
    fetcher.mirror(good);
    until("what the other has", || nodes[1].engine().store.has(good.content).unwrap().is_some()).await;
    assert!(ids.iter().any(|content| fetcher.is_mirroring(*content)), "they take longer");
}

/// It sends all the time; a piece of 256 KiB would take it 20 seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slow_disk_keeps_nobody_waiting_for_what_another_one_has() {
    let (nodes, liars) = among_liars(|_| vec![Manner::Slow]).await;
    until("it to be met", || liars[0].is_met_by(&nodes[1])).await;
    let content = bytes(6 << 20);
    let wanted = write(&nodes[0], "file", &content);
    known(&nodes[1], wanted).await;
    liars[0].claims(&nodes[1], wanted.content, 1);
    let (fetcher, begin) = (nodes[1].fetcher().clone(), Instant::now());
    blocking(move || fetcher.whole(wanted)).await.unwrap();
    let took = begin.elapsed();
    assert!(read(&nodes[1], wanted) == content && liars[0].asked() > 0);
    assert!(took < Duration::from_secs(15), "it took {took:?}");
}
