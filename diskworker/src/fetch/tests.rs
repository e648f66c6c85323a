//! Contents between disks in one process, over the loopback interface: real engines, swarms and connections.

mod blame;
mod called_off;
mod corrupt;
mod damaged;
mod liars;
mod proof;
mod room;
mod small_disk;

use std::os::unix::fs::FileExt;

use delugefs_proto::codec::encode_version_vector;
use delugefs_proto::ids::Ino;
use delugefs_proto::limits::piece_length_bytes;
use delugefs_proto::local_pb::{Create, Lookup};
use delugefs_proto::peer_pb::PromiseRequest;
use delugefs_proto::worker_pb::CopiesRequest;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::engine::Opening;
use crate::net::Elsewhere;
use crate::net::tests::{Node, cluster, until};

mod versions;

/// Bytes that no two offsets share.
fn bytes(size: usize) -> Vec<u8> {
    (0..size as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(size).collect()
}

/// A file on a disk, sealed; what it is.
fn write(node: &Node, name: &str, content: &[u8]) -> Wanted {
    let engine = node.engine();
    let making = Create { dir: Ino::ROOT.0, name: name.to_owned().into(), mode: 0o644, uid: 1, gid: 1, ino: 0 };
    let (answer, opening) = engine.create(1, false, &making).unwrap();
    let Opening::File { handle, file } = opening else { panic!() };
    file.write_all_at(content, 0).unwrap();
    drop(file);
    engine.close(1, handle, false).unwrap();
    let ino = Ino(answer.node.unwrap().ino);
    sealed(node, ino, None)
}

/// What a file is once it is sealed and not this any more.
fn sealed(node: &Node, ino: Ino, not: Option<Wanted>) -> Wanted {
    let begin = Instant::now();
    loop {
        match node.engine().stored(ino).unwrap() {
            Some(wanted) if Some(wanted) != not => return wanted,
            _ => {}
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "it is not sealed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read(node: &Node, wanted: Wanted) -> Vec<u8> {
    let file = node.engine().store.open_content(wanted.content, wanted.size).unwrap();
    let mut found = vec![0; wanted.size as usize];
    file.read_exact_at(&mut found, 0).unwrap();
    found
}

async fn known(node: &Node, wanted: Wanted) {
    let knows = || !node.net().holders(wanted.content).is_empty() && node.catalog_has(wanted);
    until("the other disk to know of it", knows).await;
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn small_and_large_contents_are_mirrored() {
    let (_, _, nodes) = cluster(3, &[(0, 1), (1, 2), (0, 2)]).await;
    let (small, large) = (bytes(100_000), bytes(9 << 20));
    for content in [small, large] {
        let wanted = write(&nodes[0], &content.len().to_string(), &content);
        for node in &nodes[1..] {
            known(node, wanted).await;
            node.fetcher().mirror(wanted);
            node.fetcher().mirror(wanted);
            let holds = || node.engine().store.has(wanted.content).unwrap() == Some(wanted.size);
            until("the content", holds).await;
            assert_eq!(read(node, wanted), content);
            until("the end of it", || !node.fetcher().is_mirroring(wanted.content)).await;
        }
        until("all holders to be known", || nodes[0].net().holders(wanted.content).len() == 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_gets_what_he_reads_and_the_rest_follows() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let content = bytes((9 << 20) + 12_345);
    let wanted = write(&nodes[0], "file", &content);
    known(&nodes[1], wanted).await;
    let fetcher = nodes[1].fetcher().clone();
    let (handle, file) = {
        let fetcher = fetcher.clone();
        blocking(move || fetcher.open(7, wanted)).await.unwrap().unwrap()
    };
    // From the end first, across the border of two pieces, and one byte.
    let piece = u64::from(piece_length_bytes(wanted.size));
    for (offset, length) in [(wanted.size - 5, 5), (3 * piece - 10, 20), (0, 1), (wanted.size, 0)] {
        let needing = fetcher.clone();
        let ranges = blocking(move || needing.need(7, handle, offset, length)).await.unwrap();
        assert!(ranges.offset <= offset && ranges.offset + ranges.length >= offset + length, "{ranges:?}");
        let mut found = vec![0; ranges.length as usize];
        file.read_exact_at(&mut found, ranges.offset).unwrap();
        assert!(found == content[ranges.offset as usize..][..ranges.length as usize], "wrong bytes at {offset}");
    }
    let shows = |torrent: pb::Torrent| torrent.content == wanted.content.0 && torrent.seeding && torrent.peers == 1;
    until("the sender to show it", || nodes[0].fetcher().active(&[]).into_iter().any(shows)).await;
    assert_eq!(fetcher.need(8, handle, 0, 1).unwrap_err().errno, Errno::EBADF);
    assert_eq!(fetcher.need(7, handle, wanted.size, 1).unwrap_err().errno, Errno::EINVAL);
    until("all of it", || nodes[1].engine().store.has(wanted.content).unwrap().is_some()).await;
    assert_eq!(read(&nodes[1], wanted), content);
    assert!(fetcher.close(7, handle) && !fetcher.close(7, handle));
    until("the end of the transfer", || fetcher.transfers.lock().is_empty()).await;
}

/// Somebody looks into more files than can be fetched at once.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_read_comes_when_the_rest_of_others_is_being_fetched() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let content = bytes((9 << 20) + 12_345);
    let wanted = write(&nodes[0], "file", &content);
    known(&nodes[1], wanted).await;
    let fetcher = nodes[1].fetcher().clone();
    let others = fetcher.rests.clone().acquire_many_owned(RESTS_MAX as u32).await.unwrap();
    let (opening, needing) = (fetcher.clone(), fetcher.clone());
    let (handle, file) = blocking(move || opening.open(7, wanted)).await.unwrap().unwrap();
    for offset in [0, 5 << 20] {
        let needing = needing.clone();
        let ranges = blocking(move || needing.need(7, handle, offset, 10)).await.unwrap();
        assert!(!ranges.complete, "{ranges:?}");
        let mut found = vec![0; 10];
        file.read_exact_at(&mut found, offset).unwrap();
        assert!(found == content[offset as usize..][..10], "wrong bytes at {offset}");
    }
    assert!(fetcher.close(7, handle));
    until("the end of the transfer", || fetcher.transfers.lock().is_empty()).await;
    assert_eq!(nodes[1].engine().store.has(wanted.content).unwrap(), None);
    // Who waits for all of it gets it, and so does the next reader when there is a place.
    let waiting = fetcher.clone();
    blocking(move || waiting.whole(wanted)).await.unwrap();
    assert_eq!(read(&nodes[1], wanted), content);
    let other: Vec<u8> = content.iter().map(|byte| !byte).collect();
    let wanted = write(&nodes[0], "other", &other);
    known(&nodes[1], wanted).await;
    let opening = fetcher.clone();
    let (handle, _file) = blocking(move || opening.open(7, wanted)).await.unwrap().unwrap();
    drop(others);
    until("all of it", || nodes[1].engine().store.has(wanted.content).unwrap().is_some()).await;
    assert!(fetcher.close(7, handle));
}

/// What a reader has open is another file then, of which not all has come.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_gets_the_rest_when_the_same_bytes_are_written_here_meanwhile() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let content = bytes(9 << 20);
    let wanted = write(&nodes[0], "file", &content);
    known(&nodes[1], wanted).await;
    // Its end never comes.
    let path = nodes[0].engine().folder.path(&format!("data/{:02x}/{}", wanted.content.0[0], wanted.content));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let rotten = std::fs::File::options().write(true).open(&path).unwrap();
    rotten.write_all_at(b"rot", wanted.size - 10).unwrap();
    let fetcher = nodes[1].fetcher().clone();
    let (handle, file) = {
        let fetcher = fetcher.clone();
        blocking(move || fetcher.open(7, wanted)).await.unwrap().unwrap()
    };
    let needing = fetcher.clone();
    blocking(move || needing.need(7, handle, 0, 1)).await.unwrap();
    assert_eq!(write(&nodes[1], "again", &content).content, wanted.content);
    let needing = fetcher.clone();
    let ranges = blocking(move || needing.need(7, handle, wanted.size - 20, 20)).await.unwrap();
    assert!(ranges.offset <= wanted.size - 20 && ranges.offset + ranges.length == wanted.size, "{ranges:?}");
    let mut found = vec![0; 20];
    file.read_exact_at(&mut found, wanted.size - 20).unwrap();
    assert!(found == content[content.len() - 20..], "wrong bytes: {found:?}");
    until("the end of the transfer", || fetcher.transfers.lock().is_empty()).await;
    assert_eq!(read(&nodes[1], wanted), content);
    assert!(fetcher.close(7, handle));
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_bytes_are_noticed_and_come_from_another_disk() {
    let (_, _, nodes) = cluster(3, &[(0, 1), (1, 2), (0, 2)]).await;
    for content in [bytes(50_000), bytes(6 << 20)] {
        let wanted = write(&nodes[0], &format!("file{}", content.len()), &content);
        known(&nodes[1], wanted).await;
        let fetcher = nodes[1].fetcher().clone();
        blocking(move || fetcher.whole(wanted)).await.unwrap();
        // The disk of the first rots.
        let path = format!("data/{:02x}/{}", wanted.content.0[0], wanted.content);
        let path = nodes[0].engine().folder.path(&path);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"rot", content.len() as u64 / 2).unwrap();
        known(&nodes[2], wanted).await;
        until("both holders", || nodes[2].net().holders(wanted.content).len() == 2).await;
        let fetcher = nodes[2].fetcher().clone();
        blocking(move || fetcher.whole(wanted)).await.unwrap();
        assert_eq!(read(&nodes[2], wanted), content);
    }
}

/// Found by the scrub, or by who opens it where the length gives it away. That one stays until a good one has come.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_rotted_is_not_counted_on_and_fetched_anew() {
    for by_scrub in [true, false] {
        let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
        let content = bytes(50_000);
        let wanted = write(&nodes[0], "file", &content);
        known(&nodes[1], wanted).await;
        let fetcher = nodes[1].fetcher().clone();
        blocking(move || fetcher.whole(wanted)).await.unwrap();
        until("both holders", || nodes[0].net().holders(wanted.content).len() == 1).await;
        let path = format!("data/{:02x}/{}", wanted.content.0[0], wanted.content);
        let path = nodes[1].engine().folder.path(&path);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let engine = nodes[1].engine().clone();
        if by_scrub {
            file.write_all_at(b"rot", 25_000).unwrap();
            let others = Elsewhere::new(nodes[1].net(), CancellationToken::new());
            let report = blocking(move || engine.scrub(&others)).await.unwrap();
            assert!(report.problems.len() == 1 && report.problems[0].contains("set aside"), "{:?}", report.problems);
        } else {
            file.set_len(25_000).unwrap();
            let ino = Ino(engine.lookup(&Lookup { dir: Ino::ROOT.0, name: "file".into() }).unwrap().node.unwrap().ino);
            let absent = blocking(move || engine.absent(ino, Ino::ROOT)).await.unwrap();
            assert_eq!(absent, Some(wanted));
            assert!(path.exists() && nodes[1].net().is_suspect(wanted.content));
        }
        let is_counted_on = || !nodes[0].net().holders(wanted.content).is_empty();
        until("nobody to count on what is set aside", || !by_scrub || !is_counted_on()).await;
        let fetcher = nodes[1].fetcher().clone();
        blocking(move || fetcher.whole(wanted)).await.unwrap();
        assert_eq!(read(&nodes[1], wanted), content);
        until("both holders again", || nodes[0].net().holders(wanted.content).len() == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_holder_there_is_an_error_and_nothing_else() {
    let (_, _, nodes) = cluster(1, &[]).await;
    let wanted = Wanted { content: ContentId([5; 32]), size: 10_000, pieces: None };
    let fetcher = nodes[0].fetcher().clone();
    let error = blocking(move || fetcher.whole(wanted)).await.unwrap_err();
    assert_eq!(error.errno, Errno::EHOSTUNREACH, "{error}");
    until("the end of the transfer", || nodes[0].fetcher().transfers.lock().is_empty()).await;
    assert!(nodes[0].engine().store.has(wanted.content).unwrap().is_none());
}

/// A file that only the asker knows would lose its content with the files that others know.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_followed_promises_nothing() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let wanted = write(&nodes[0], "file", &bytes(70_000));
    known(&nodes[1], wanted).await;
    let (asker, keeper) = (nodes[0].engine().clone(), nodes[1].fetcher().clone());
    blocking(move || keeper.whole(wanted)).await.unwrap();
    nodes[1].fetcher().promises.settle();
    let ask = |seen: Vec<u8>| async {
        let request = PromiseRequest { content: wanted.content.0.to_vec(), seconds: 1, wanted: 2, seen };
        nodes[1].fetcher().promise(&request).await.unwrap()
    };
    let seen = blocking(move || asker.knowing(wanted.content)).await.unwrap();
    let now = encode_version_vector(&seen);
    assert!(ask(now).await.promised);
    // It has not seen what comes next, and nothing comes.
    let mut more = seen.clone();
    *more.0.get_mut(&nodes[0].engine().actor()).unwrap() += 1;
    for unseen in [encode_version_vector(&more), Vec::new(), b"nonsense".to_vec()] {
        let reply = ask(unseen).await;
        assert!(!reply.promised && reply.reason.contains("does not know yet"), "{reply:?}");
    }
    // And then it does.
    let (_, reply) = tokio::join!(
        blocking({
            let engine = nodes[0].engine().clone();
            move || {
                let q = Create { dir: Ino::ROOT.0, name: "more".into(), mode: 0o644, uid: 1, gid: 1, ino: 0 };
                let (_, Opening::File { handle, .. }) = engine.create(1, false, &q).unwrap() else { panic!() };
                engine.close(1, handle, true).unwrap();
            }
        }),
        ask(encode_version_vector(&more))
    );
    assert!(reply.promised, "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_only_when_another_is_promised() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let wanted = write(&nodes[0], "file", &bytes(70_000));
    known(&nodes[1], wanted).await;
    let (one, other) = (nodes[0].fetcher(), nodes[1].fetcher());
    let stays = one.let_go(wanted.content, 1, 1).await.unwrap().unwrap_err();
    assert!(stays.why.contains("just started") && (500..=601).contains(&stays.again_s()), "{stays:?}");
    one.promises.settle();
    assert_eq!(one.let_go(wanted.content, 0, 0).await.unwrap().unwrap_err().again, None);
    assert_eq!(one.let_go(wanted.content, 1, 1).await.unwrap().unwrap_err().again, None, "nobody else has it");
    let fetcher = other.clone();
    blocking(move || fetcher.whole(wanted)).await.unwrap();
    until("the second holder", || !nodes[0].net().holders(wanted.content).is_empty()).await;
    let stays = one.let_go(wanted.content, 1, 1).await.unwrap().unwrap_err();
    assert!((500..=602).contains(&stays.again_s()), "the other has just started, and says for how long: {stays:?}");
    other.promises.settle();
    // Two are wanted, as far as the other one knows.
    assert_eq!(one.let_go(wanted.content, 1, 1).await.unwrap().unwrap_err().again, None);
    let set = CopiesRequest { path: b"/".to_vec(), set: 1, inherit: false };
    nodes[0].engine().copies(&set).unwrap();
    let knows = || nodes[1].engine().ledger().unwrap().find(wanted.content).is_some_and(|entry| entry.wanted == 1);
    until("one to be enough", knows).await;
    one.let_go(wanted.content, 1, 1).await.unwrap().unwrap();
    assert!(nodes[0].engine().store.has(wanted.content).unwrap().is_none());
    until("the news", || nodes[1].net().holders(wanted.content).is_empty()).await;
    // It has promised.
    let stays = other.let_go(wanted.content, 1, 1).await.unwrap().unwrap_err();
    assert!(stays.why.contains("promised") && (500..=601).contains(&stays.again_s()), "{stays:?}");
    // And it comes back.
    let fetcher = one.clone();
    blocking(move || fetcher.whole(wanted)).await.unwrap();
    assert_eq!(read(&nodes[0], wanted), bytes(70_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_copies_that_was_set_is_taken_back_everywhere() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let wanted = write(&nodes[0], "file", &bytes(70_000));
    known(&nodes[1], wanted).await;
    let copies = |node: usize, path: &str, set, inherit| {
        let request = CopiesRequest { path: path.into(), set, inherit };
        let reply = nodes[node].engine().copies(&request).unwrap();
        (reply.wanted, String::from_utf8(reply.from).unwrap())
    };
    let in_ledger = |node: usize| nodes[node].engine().ledger().unwrap().find(wanted.content).map(|entry| entry.wanted);
    assert_eq!(copies(0, "/", 3, false), (3, "/".into()));
    assert_eq!(copies(0, "/file", 5, false), (5, "/file".into()));
    until("it to be heard of", || in_ledger(1) == Some(5)).await;
    // On the other disk; twice is not an error.
    for _ in 0..2 {
        assert_eq!(copies(1, "/file", 0, true), (3, "/".into()));
    }
    until("what the root says", || in_ledger(0) == Some(3)).await;
    assert_eq!(copies(0, "/", 0, true), (2, String::new()));
    until("the default", || in_ledger(1) == Some(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_takes_over_what_is_being_mirrored() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    for size in [5, 9, 13] {
        let content = bytes(size << 20);
        let wanted = write(&nodes[0], &format!("file{size}"), &content);
        known(&nodes[1], wanted).await;
        let fetcher = nodes[1].fetcher().clone();
        fetcher.mirror(wanted);
        let reader = fetcher.clone();
        if let Some((handle, file)) = blocking(move || reader.open(7, wanted)).await.unwrap() {
            let (reader, end) = (fetcher.clone(), wanted.size - 10);
            blocking(move || reader.need(7, handle, end, 10)).await.unwrap();
            let mut found = vec![0; 10];
            file.read_exact_at(&mut found, end).unwrap();
            assert!(found == content[end as usize..]);
            assert!(fetcher.close(7, handle));
        }
        until("all of it", || nodes[1].engine().store.has(wanted.content).unwrap().is_some()).await;
        assert!(read(&nodes[1], wanted) == content);
        until("the end of it", || !fetcher.is_mirroring(wanted.content) && fetcher.swarming.lock().is_empty()).await;
    }
    assert!(nodes[1].engine().store.incoming().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_is_used_and_readers_do_not_wait_for_it() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let content = bytes(9 << 20);
    let wanted = write(&nodes[0], "file", &content);
    known(&nodes[1], wanted).await;
    // As a fetch leaves it that was given up in the middle: the first half, and a piece that is wrong.
    let file = nodes[1].engine().store.incoming_file(wanted.content, wanted.size).unwrap();
    file.write_all_at(&content[..5 << 20], 0).unwrap();
    file.write_all_at(b"wrong", 1 << 20).unwrap();
    drop(file);
    let fetcher = nodes[1].fetcher().clone();
    blocking(move || fetcher.whole(wanted)).await.unwrap();
    assert!(read(&nodes[1], wanted) == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_torrent_session_large_contents_come_by_ranges() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let content = bytes(9 << 20);
    let wanted = write(&nodes[0], "file", &content);
    known(&nodes[1], wanted).await;
    let (engine, net) = (nodes[1].engine().clone(), nodes[1].net().clone());
    let fetcher = Fetcher::new(engine, Arc::new(Swarm::absent()), net, Handle::current());
    fetcher.mirror(wanted);
    assert!(fetcher.cancel(wanted.content).await.unwrap());
    until("the end of it", || fetcher.transfers.lock().is_empty() && !fetcher.is_mirroring(wanted.content)).await;
    fetcher.mirror(wanted);
    until("the content", || nodes[1].engine().store.has(wanted.content).unwrap() == Some(wanted.size)).await;
    assert!(read(&nodes[1], wanted) == content);
    assert!(nodes[0].net().given_bytes() >= wanted.size);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_gets_it_although_the_mirror_is_given_up() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    for size in [200_000, 20 << 20] {
        let content = bytes(size);
        let wanted = write(&nodes[0], &format!("file{size}"), &content);
        known(&nodes[1], wanted).await;
        let fetcher = nodes[1].fetcher();
        let waiting = fetcher.clone();
        let waiting = tokio::task::spawn_blocking(move || waiting.whole(wanted));
        let done = || nodes[1].engine().store.has(wanted.content).unwrap().is_some();
        while !done() {
            fetcher.mirror(wanted);
            tokio::time::sleep(Duration::from_millis(1)).await;
            fetcher.cancel(wanted.content).await.unwrap();
        }
        waiting.await.unwrap().unwrap();
        assert!(read(&nodes[1], wanted) == content);
        until("the end of it", || fetcher.transfers.lock().is_empty() && fetcher.swarming.lock().is_empty()).await;
        assert!(!fetcher.is_mirroring(wanted.content));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_cancelled_ends_and_another_one_works() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    for size in [200_000, 9 << 20] {
        let content = bytes(size);
        let wanted = write(&nodes[0], &format!("file{size}"), &content);
        known(&nodes[1], wanted).await;
        let fetcher = nodes[1].fetcher();
        fetcher.mirror(wanted);
        fetcher.cancel(wanted.content).await.unwrap();
        let at_rest = || {
            !fetcher.is_mirroring(wanted.content)
                && fetcher.transfers.lock().is_empty()
                && fetcher.swarming.lock().is_empty()
        };
        until("the end of it", at_rest).await;
        let again = fetcher.clone();
        blocking(move || again.whole(wanted)).await.unwrap();
        assert!(read(&nodes[1], wanted) == content);
    }
}
