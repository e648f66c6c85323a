//! What is wrong with our own disk is not blamed on who sends.

use super::*;

/// What comes of a transfer into this file.
async fn transferred(node: &Node, wanted: Wanted, file: File) -> FsResult<()> {
    let pieces = wanted.pieces.map(|pieces| node.engine().attachment(pieces).unwrap());
    let transfer = Arc::new(Transfer::new(wanted, pieces, file, Arc::default()).unwrap());
    let rest = Rest::new(Arc::new(Semaphore::new(1)), || false);
    let whole = transfer.clone();
    let waiting = blocking(move || whole.wait_whole(STALLED, &|| false));
    let running = async {
        let ended = transfer.run(node.engine(), node.net(), &Arc::new(Semaphore::new(1)), rest).await;
        transfer.end(ended.clone());
        ended
    };
    tokio::join!(running, waiting).0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_our_own_disk_does_wrong_is_not_blamed_on_who_sends() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    for content in [bytes(50_000), bytes(6 << 20)] {
        let wanted = write(&nodes[0], &content.len().to_string(), &content);
        known(&nodes[1], wanted).await;
        let (store, sender) = (&nodes[1].engine().store, nodes[0].id());
        let is_blamed = || nodes[1].net().has_told(sender, wanted.content) || nodes[1].net().is_in_doubt(sender);
        // Its file system takes nothing.
        drop(store.incoming_file(wanted.content, wanted.size).unwrap());
        let file = store.open_incoming(wanted.content).unwrap().unwrap();
        let error = transferred(&nodes[1], wanted, file).await.unwrap_err();
        assert!(error.errno == Errno::EBADF && !is_blamed(), "{error}");
        // It says that it has written what it has not.
        let file = tempfile::tempfile().unwrap();
        file.set_len(wanted.size).unwrap();
        let error = transferred(&nodes[1], wanted, file).await.unwrap_err();
        assert!(error.errno == Errno::EIO && error.message.contains("incoming/") && !is_blamed(), "{error}");
        // Next time it does.
        let fetcher = nodes[1].fetcher().clone();
        blocking(move || fetcher.whole(wanted)).await.unwrap();
        assert!(read(&nodes[1], wanted) == content && !nodes[0].net().is_suspect(wanted.content));
    }
}
