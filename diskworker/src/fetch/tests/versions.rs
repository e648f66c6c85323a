//! A new version of a large file: what travels is what has changed.

use std::fs;

use delugefs_proto::local_pb::{Lookup, Open, Rename};

use super::*;

const SIZE: usize = 20 << 20;
/// Of contents of that size, and somewhat larger ones.
const PIECE: u64 = 256 << 10;

fn ino(node: &Node, name: &str) -> Ino {
    let found = node.engine().lookup(&Lookup { dir: Ino::ROOT.0, name: name.to_owned().into() }).unwrap();
    Ino(found.node.unwrap().ino)
}

/// Write to a file that is there; what it is then.
fn change(node: &Node, name: &str, offset: usize, bytes: &[u8]) -> Wanted {
    let (engine, ino) = (node.engine(), ino(node, name));
    let before = engine.stored(ino).unwrap();
    let open = Open { ino: ino.0, dir: Ino::ROOT.0, write: true, truncate: false };
    let (_, Opening::File { handle, file }) = engine.open(1, &open).unwrap() else { panic!() };
    file.write_all_at(bytes, offset as u64).unwrap();
    drop(file);
    engine.close(1, handle, false).unwrap();
    sealed(node, ino, before)
}

async fn fetch(node: &Node, wanted: Wanted) {
    known(node, wanted).await;
    let fetcher = node.fetcher().clone();
    blocking(move || fetcher.whole(wanted)).await.unwrap();
}

/// How many bytes the holder gives while somebody fetches this.
async fn given(nodes: &[Node], wanted: Wanted, content: &[u8]) -> u64 {
    let before = nodes[0].net().given_bytes();
    fetch(&nodes[1], wanted).await;
    assert!(read(&nodes[1], wanted) == content);
    until("the end of it", || nodes[1].fetcher().transfers.lock().is_empty()).await;
    nodes[0].net().given_bytes() - before
}

/// Two disks that both hold a file.
async fn both_hold() -> (Vec<Node>, Vec<u8>, Wanted) {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let content = bytes(SIZE);
    let wanted = write(&nodes[0], "file", &content);
    fetch(&nodes[1], wanted).await;
    assert_eq!(nodes[0].net().given_bytes(), SIZE as u64);
    (nodes, content, wanted)
}

fn held_at(node: &Node, wanted: Wanted) -> std::path::PathBuf {
    node.engine().folder.path(&format!("data/{:02x}/{}", wanted.content.0[0], wanted.content))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_pieces_that_differ_come() {
    let (nodes, mut content, old) = both_hold().await;
    // One byte is changed, and some are appended: a whole piece and one in part.
    content[7 << 20] ^= 1;
    let byte = content[7 << 20];
    let second = change(&nodes[0], "file", 7 << 20, &[byte]);
    assert_eq!(given(&nodes, second, &content).await, PIECE);
    content.extend_from_slice(&[5; 300_000]);
    let third = change(&nodes[0], "file", SIZE, &[5; 300_000]);
    assert_eq!(given(&nodes, third, &content).await, 300_000);
    // Two versions on: the one between was never here. What was of the last piece has changed with it.
    known(&nodes[1], change(&nodes[0], "file", 0, b"x")).await;
    content[0] = b'x';
    content.push(7);
    let fifth = change(&nodes[0], "file", content.len() - 1, &[7]);
    assert_eq!(given(&nodes, fifth, &content).await, PIECE + (content.len() as u64) % PIECE);
    // Another file takes the name, and the old content lies in the trash, where it stays.
    for _ in 0..3 {
        nodes[1].engine().collect().unwrap();
    }
    assert!(!held_at(&nodes[1], old).exists());
    content[9 << 20] ^= 1;
    write(&nodes[0], "new", &content);
    let to = Rename {
        dir: Ino::ROOT.0,
        name: b"new".to_vec().into(),
        dir2: Ino::ROOT.0,
        name2: b"file".to_vec().into(),
        ..Rename::default()
    };
    nodes[0].engine().rename(1, false, &to).unwrap();
    let sixth = nodes[0].engine().stored(ino(&nodes[0], "file")).unwrap().unwrap();
    until("the name to be taken", || ino(&nodes[1], "file") == ino(&nodes[0], "file")).await;
    for _ in 0..3 {
        nodes[1].engine().collect().unwrap();
    }
    assert!(!held_at(&nodes[1], fifth).exists());
    assert_eq!(given(&nodes, sixth, &content).await, PIECE);
    assert!(!held_at(&nodes[1], fifth).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn bittorrent_fetches_only_what_differs() {
    let (nodes, mut content, _) = both_hold().await;
    let before = nodes[0].net().given_bytes();
    content[3 << 20..4 << 20].fill(9);
    content.extend_from_slice(&[5; 300_000]);
    let fresh = content[3 << 20..].to_vec();
    let wanted = change(&nodes[0], "file", 3 << 20, &fresh);
    known(&nodes[1], wanted).await;
    nodes[1].fetcher().mirror(wanted);
    until("the content", || nodes[1].engine().store.has(wanted.content).unwrap() == Some(wanted.size)).await;
    assert!(read(&nodes[1], wanted) == content);
    assert_eq!(nodes[0].net().given_bytes(), before);
    let active = nodes[0].fetcher().swarm.active().await.unwrap();
    let given = active.iter().find(|torrent| torrent.content == wanted.content).unwrap().uploaded;
    assert!((1..=(1 << 20) + 300_000 + PIECE).contains(&given), "{given}");
    until("the end of it", || !nodes[1].fetcher().is_mirroring(wanted.content)).await;
    assert!(nodes[1].engine().store.incoming().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_a_cut_off_and_a_vanished_version_before_only_cost_bytes() {
    let (nodes, mut content, old) = both_hold().await;
    // Rot in two pieces, and the end is missing.
    let path = held_at(&nodes[1], old);
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"rot", 1 << 20).unwrap();
    file.write_all_at(b"rot", 5 << 20).unwrap();
    file.set_len(15 << 20).unwrap();
    content.truncate(SIZE - 5);
    content[SIZE - 6] = 1;
    let cut = delugefs_proto::local_pb::SetAttr {
        ino: ino(&nodes[0], "file").0,
        dir: Ino::ROOT.0,
        size: Some(SIZE as u64 - 5),
        ..Default::default()
    };
    nodes[0].engine().set_attr(1, &cut).unwrap();
    let second = sealed(&nodes[0], ino(&nodes[0], "file"), Some(old));
    known(&nodes[1], second).await;
    let third = change(&nodes[0], "file", SIZE - 6, &[1]);
    let came = given(&nodes, third, &content).await;
    assert_eq!(came, (5 << 20) - 5 + 2 * PIECE);
    // Nothing of it is here.
    fs::remove_file(held_at(&nodes[1], third)).unwrap();
    fs::remove_file(path).unwrap();
    content[0] = 77;
    let fourth = change(&nodes[0], "file", 0, &[77]);
    assert_eq!(given(&nodes, fourth, &content).await, fourth.size);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_given_up_while_it_copies_leaves_nothing_wrong() {
    let (nodes, mut content, _) = both_hold().await;
    for n in 0..6 {
        content[n << 21] ^= 1;
        let byte = content[n << 21];
        let wanted = change(&nodes[0], "file", n << 21, &[byte]);
        known(&nodes[1], wanted).await;
        let fetcher = nodes[1].fetcher();
        fetcher.mirror(wanted);
        tokio::time::sleep(Duration::from_millis(n as u64 * 3)).await;
        fetcher.cancel(wanted.content).await.unwrap();
        fetch(&nodes[1], wanted).await;
        assert!(read(&nodes[1], wanted) == content);
        let at_rest = || fetcher.transfers.lock().is_empty() && fetcher.swarming.lock().is_empty();
        until("the end of it", at_rest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_gets_right_bytes_while_they_are_copied() {
    let (nodes, mut content, _) = both_hold().await;
    content.extend_from_slice(&bytes(60 << 20));
    let wanted = change(&nodes[0], "file", SIZE, &content[SIZE..]);
    fetch(&nodes[1], wanted).await;
    content[7 << 20] ^= 1;
    let byte = content[7 << 20];
    let wanted = change(&nodes[0], "file", 7 << 20, &[byte]);
    known(&nodes[1], wanted).await;
    let before = nodes[0].net().given_bytes();
    let fetcher = nodes[1].fetcher().clone();
    let found = blocking(move || {
        let (handle, file) = fetcher.open(7, wanted).unwrap().unwrap();
        let mut found = vec![0; wanted.size as usize];
        for (n, part) in found.chunks_mut(128 << 10).enumerate() {
            let offset = (n as u64) * (128 << 10);
            fetcher.need(7, handle, offset, part.len() as u64).unwrap();
            file.read_exact_at(part, offset).unwrap();
        }
        fetcher.close(7, handle);
        found
    })
    .await;
    assert!(found == content);
    // What he waits for is looked for in the version before first; at most what he asks for before that begins is fetched.
    let given = nodes[0].net().given_bytes() - before;
    assert!((PIECE..SIZE as u64).contains(&given), "{given}");
}
