//! More is read than a lazy disk holds: on a tiny tmpfs, see [`on_tiny_disk`].
#![cfg(target_os = "linux")]

use tempfile::TempDir;
use tokio_util::sync::DropGuard;

use super::room::one_copy_is_enough;
use super::*;
use crate::content::tests::full_disk::on_tiny_disk;
use crate::net::tests::cluster_in;

/// Keep room on a disk until this is dropped.
fn keep_room(node: &Node, goes: Goes) -> DropGuard {
    let stop = CancellationToken::new();
    tokio::spawn(node.fetcher().clone().keep_room(goes, stop.clone()));
    stop.drop_guard()
}

/// With a disk that has all files, and one of so many MiB.
fn with_small_disk<T: Future>(mib: u64, test: impl FnOnce(TempDir) -> T + Send) {
    on_tiny_disk(mib, |dir| {
        // Its threads see the small disk as this one does.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let small = tempfile::tempdir_in(dir).unwrap();
        runtime.block_on(test(small));
    });
}

fn size_of(number: usize, mib: usize) -> usize {
    (mib << 20) + 4 * number
}

/// Files of so many MiB on the first of two disks; the second is the small one.
async fn with_files(small: TempDir, mibs: &[usize]) -> (Vec<Node>, Vec<Wanted>) {
    let longest = bytes(size_of(mibs.len(), mibs.iter().copied().max().unwrap_or(0)));
    let (_, _, nodes) = cluster_in(vec![tempfile::tempdir().unwrap(), small], &[(0, 1)]).await;
    let file = |n: usize| write(&nodes[0], &format!("file{n}"), &longest[..size_of(n, mibs[n])]);
    let files: Vec<Wanted> = (0..mibs.len()).map(file).collect();
    for file in &files {
        known(&nodes[1], *file).await;
    }
    one_copy_is_enough(&nodes, &files).await;
    (nodes, files)
}

#[test]
fn more_is_read_than_the_disk_holds() {
    with_small_disk(64, |small| async {
        let (nodes, files) = with_files(small, &[6; 16]).await;
        let _keeping = keep_room(&nodes[1], Goes::Copies);
        for (number, wanted) in files.iter().copied().enumerate() {
            let fetcher = nodes[1].fetcher().clone();
            if number % 2 == 0 {
                blocking(move || fetcher.whole(wanted)).await.unwrap();
            } else {
                let end = wanted.size - 10;
                let read = move || -> FsResult<Vec<u8>> {
                    let (handle, file) = fetcher.open(7, wanted)?.unwrap();
                    fetcher.need(7, handle, 0, wanted.size)?;
                    let mut found = vec![0; 10];
                    file.read_exact_at(&mut found, end)?;
                    assert!(fetcher.close(7, handle));
                    Ok(found)
                };
                assert_eq!(blocking(read).await.unwrap(), bytes(size_of(number, 6))[end as usize..]);
            }
        }
        // What would not fit on an empty disk drives nothing out.
        let before = nodes[1].engine().store.usage();
        let huge = Wanted { content: ContentId([5; 32]), size: 1 << 40, pieces: None };
        let fetcher = nodes[1].fetcher().clone();
        assert_eq!(blocking(move || fetcher.whole(huge)).await.unwrap_err().errno, Errno::ENOSPC);
        assert!(before.contents > 2 && nodes[1].engine().store.usage().contents >= before.contents);
    });
}

/// Fetch these, so many after each other.
async fn fetch(node: &Node, files: &[Wanted], each: usize) {
    let readers = files.chunks(each).map(|files| {
        let (fetcher, files) = (node.fetcher().clone(), files.to_vec());
        tokio::task::spawn_blocking(move || files.into_iter().try_for_each(|file| fetcher.whole(file)))
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap().unwrap();
    }
}

#[test]
fn several_readers_share_a_small_disk() {
    with_small_disk(64, |small| async {
        let (nodes, files) = with_files(small, &[6; 16]).await;
        let _keeping = keep_room(&nodes[1], Goes::Copies);
        fetch(&nodes[1], &files, 4).await;
    });
}

/// What waits for room is more than a connection takes before somebody reads, and the promises for all that must go come on
/// the same one.
#[test]
fn large_contents_that_wait_for_room_keep_back_no_promise() {
    with_small_disk(200, |small| async {
        let (nodes, files) = with_files(small, &[[6; 28].as_slice(), &[40; 4]].concat()).await;
        let _keeping = keep_room(&nodes[1], Goes::Copies);
        let (old, large) = files.split_at(28);
        fetch(&nodes[1], old, 28).await;
        fetch(&nodes[1], large, 1).await;
    });
}

#[test]
fn who_finds_no_room_is_told_so_when_nothing_can_go() {
    with_small_disk(64, |small| async {
        let (nodes, files) = with_files(small, &[6]).await;
        for number in 0.. {
            let space = nodes[1].engine().store.free_space().unwrap();
            if space.free < files[0].size {
                break;
            }
            // Nobody else has it.
            write(&nodes[1], &format!("own{number}"), &bytes((5 << 20) + 4 * number));
        }
        let whole = || {
            let (fetcher, wanted) = (nodes[1].fetcher().clone(), files[0]);
            blocking(move || fetcher.whole(wanted))
        };
        // With nobody who makes room, and with somebody who cannot.
        assert_eq!(whole().await.unwrap_err().errno, Errno::ENOSPC);
        let _keeping = keep_room(&nodes[1], Goes::Copies);
        assert_eq!(whole().await.unwrap_err().errno, Errno::ENOSPC);
    });
}

/// Also on a disk that lets no copy go.
#[test]
fn what_a_fetch_has_left_makes_room_for_others() {
    with_small_disk(64, |small| async {
        let (nodes, files) = with_files(small, &[30, 35]).await;
        let store = &nodes[1].engine().store;
        let left = store.incoming_file(files[0].content, files[0].size).unwrap();
        left.write_all_at(&bytes(files[0].size as usize), 0).unwrap();
        drop(left);
        let whole = || {
            let (fetcher, wanted) = (nodes[1].fetcher().clone(), files[1]);
            blocking(move || fetcher.whole(wanted))
        };
        assert_eq!(whole().await.unwrap_err().errno, Errno::ENOSPC, "nobody makes room");
        let _keeping = keep_room(&nodes[1], Goes::LeftOvers);
        // It may not have begun yet.
        let begin = Instant::now();
        while let Err(error) = whole().await {
            assert!(error.errno == Errno::ENOSPC && begin.elapsed() < Duration::from_secs(30), "{error}");
        }
        assert_eq!(read(&nodes[1], files[1]), bytes(size_of(1, 35)));
        assert!(store.incoming_used(files[0].content).is_none());
    });
}

/// And what no file has any more, which is collected now and then only.
#[test]
fn what_no_file_has_makes_room_for_who_fetches() {
    with_small_disk(64, |small| async {
        let (nodes, files) = with_files(small, &[30, 35]).await;
        let whole = |wanted| {
            let fetcher = nodes[1].fetcher().clone();
            blocking(move || fetcher.whole(wanted))
        };
        whole(files[0]).await.unwrap();
        let q = delugefs_proto::local_pb::Unlink { dir: Ino::ROOT.0, name: "file0".into(), ..Default::default() };
        nodes[0].engine().unlink(1, false, &q).unwrap();
        until("it to be removed", || !nodes[1].catalog_has(files[0])).await;
        assert_eq!(whole(files[1]).await.unwrap_err().errno, Errno::ENOSPC, "nobody makes room");
        let _keeping = keep_room(&nodes[1], Goes::LeftOvers);
        let begin = Instant::now();
        while let Err(error) = whole(files[1]).await {
            assert!(error.errno == Errno::ENOSPC && begin.elapsed() < Duration::from_secs(30), "{error}");
        }
        assert_eq!(read(&nodes[1], files[1]), bytes(size_of(1, 35)));
    });
}
