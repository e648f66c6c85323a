//! A large content begins with what the version before it has in common with it, where that is on this disk
//! ([`crate::content::ContentStore::copy_piece`]). Both ways of fetching do so before they ask others for anything, but for what a
//! reader waits for and the version before has not. One content at a time: it is bound by the disk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use delugefs_proto::errno::FsResult;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::swarming::Swarming;
use super::transfer::Transfer;
use super::{Fetcher, Wanted, is_set};
use crate::engine::Engine;

/// How long somebody who waits for the content lets others have the disk first; then all of it is fetched.
const TURN: Duration = Duration::from_secs(10);
/// The same for a mirror. It has one of few places meanwhile.
const MIRROR_TURN: Duration = Duration::from_secs(600);

impl Fetcher {
    /// For BitTorrent, which looks afterwards which pieces are there. When this is dropped the copying ends soon; until it has,
    /// `swarming` keeps others away from the file.
    pub(super) async fn fill_for_swarm(&self, wanted: Wanted, hashes: Bytes, swarming: Arc<Swarming>) {
        if !self.engine.store.has_earlier(wanted.content) {
            return;
        }
        let Ok(Ok(place)) = timeout(MIRROR_TURN, self.fills.clone().acquire_owned()).await else { return };
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let engine = self.engine.clone();
        let filling = tokio::task::spawn_blocking(move || -> FsResult<u64> {
            let _until_done = (place, swarming);
            let (store, stop) = (&engine.store, || stop.is_cancelled());
            let file = store.incoming_file(wanted.content, wanted.size)?;
            let have = store.incoming_pieces(&file, wanted.content, wanted.size, &hashes, &stop)?;
            let Some(mut older) = store.open_earlier(wanted.content, wanted.size) else { return Ok(0) };
            let mut copied = 0;
            for (number, hash) in hashes.chunks(20).enumerate() {
                if !is_set(&have, number) {
                    copied += u64::from(store.copy_piece(&mut older, &file, (number, hash), &stop)?);
                }
            }
            store.forget_earlier(wanted.content);
            Ok(copied)
        });
        report(wanted, filling.await.unwrap_or(Ok(0)));
    }
}

/// For a transfer; each piece may be read as soon as it is there.
pub(super) async fn fill(transfer: Arc<Transfer>, engine: Arc<Engine>, fills: Arc<Semaphore>) {
    let (wanted, hashes, file) = match transfer.parts() {
        (wanted, Some(hashes), Some(file)) if engine.store.has_earlier(wanted.content) => (wanted, hashes, file),
        _ => return,
    };
    let place = tokio::select! {
        place = timeout(TURN, fills.acquire_owned()) => place,
        () = transfer.stopped().cancelled() => return,
    };
    let Ok(Ok(place)) = place else { return };
    let filler = transfer.clone();
    let filling = tokio::task::spawn_blocking(move || -> FsResult<u64> {
        let (_until_done, transfer) = (place, filler);
        let (store, stop) = (&engine.store, || transfer.stopped().is_cancelled());
        let Some(mut older) = store.open_earlier(wanted.content, wanted.size) else { return Ok(0) };
        let (mut number, mut copied) = (transfer.begin_copying(), 0);
        while let Some(piece) = number {
            let hash = &hashes[piece * 20..piece * 20 + 20];
            let is_here = store.copy_piece(&mut older, &file, (piece, hash), &stop)?;
            copied += u64::from(is_here);
            number = transfer.copied(piece, is_here);
        }
        store.forget_earlier(wanted.content);
        Ok(copied)
    });
    let filled = filling.await;
    transfer.end_copying();
    report(wanted, filled.unwrap_or(Ok(0)));
}

/// A failure is none of the fetch: what could not be copied is fetched, and meets what is wrong with the disk itself.
fn report(wanted: Wanted, filled: FsResult<u64>) {
    match filled {
        Ok(0) => {}
        Ok(count) => tracing::debug!("content {}: {count} pieces are those of the version before", wanted.content),
        Err(error) => tracing::debug!("content {}: {error}", wanted.content),
    }
}
