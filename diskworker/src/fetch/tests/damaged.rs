//! Reading copies that are known to be damaged: an only one, and one of which another disk has a better one.

use std::os::unix::fs::MetadataExt;

use super::corrupt::writable;
use super::*;
use crate::content::{Damage, Look, UNREADABLE};

fn ino_of(node: &Node, name: &str) -> Ino {
    Ino(node.engine().lookup(&Lookup { dir: Ino::ROOT.0, name: name.to_owned().into() }).unwrap().node.unwrap().ino)
}

/// Nobody else has it, and most of it is right.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_only_copy_of_a_wrong_length_stays_and_what_is_right_of_it_is_read() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    let content = bytes(6 << 20);
    for (n, length) in [5 << 20, 7 << 20].into_iter().enumerate() {
        let name = format!("file{n}");
        let wanted = write(&nodes[0], &name, &content[..content.len() - n]);
        known(&nodes[1], wanted).await;
        let (path, file) = writable(&nodes[0], wanted);
        file.set_len(length).unwrap();
        let (engine, ino) = (nodes[0].engine().clone(), ino_of(&nodes[0], &name));
        let damage = || nodes[0].engine().store.damage(wanted.content);
        assert_eq!(blocking(move || engine.absent(ino, Ino::ROOT)).await.unwrap(), Some(wanted));
        assert!(path.exists() && damage() == Some(Damage::Wrong), "it is set aside");
        // Here it is read where it lies, and on another host piece by piece.
        let last = wanted.size - 100;
        for node in &nodes {
            let fetcher = node.fetcher().clone();
            let opening = fetcher.clone();
            let (handle, file) = blocking(move || opening.open(7, wanted)).await.unwrap().unwrap();
            for offset in [1 << 20, last] {
                let needing = fetcher.clone();
                let need = blocking(move || needing.need(7, handle, offset, 100)).await;
                if offset == last && length < wanted.size {
                    need.unwrap_err();
                    continue;
                }
                let ranges = need.unwrap();
                assert!(ranges.offset <= offset && ranges.offset + ranges.length >= offset + 100, "{ranges:?}");
                let mut found = vec![0; ranges.length as usize];
                file.read_exact_at(&mut found, ranges.offset).unwrap();
                assert!(found == content[ranges.offset as usize..][..found.len()]);
            }
            assert!(fetcher.close(7, handle));
        }
        // Where all of it is right, and something behind it, who needs all makes it whole.
        let whole = nodes[0].fetcher().clone();
        let done = blocking(move || whole.whole(wanted)).await;
        assert_eq!((done.is_ok(), damage().is_none()), (length > wanted.size, length > wanted.size));
        assert!(path.exists());
    }
}

/// A bad sector: else there would be an error where nobody need see one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_cannot_be_read_in_places_comes_from_a_disk_that_gives_it() {
    let (_, _, nodes) = cluster(2, &[(0, 1)]).await;
    for (n, content) in [bytes(50_000), bytes(6 << 20)].into_iter().enumerate() {
        let wanted = write(&nodes[0], &format!("file{n}"), &content);
        let ino = ino_of(&nodes[0], &format!("file{n}"));
        let (engine, fetcher, net) = (nodes[0].engine().clone(), nodes[0].fetcher().clone(), nodes[0].net());
        let looking = engine.clone();
        let look = blocking(move || {
            UNREADABLE.set(true);
            let look = looking.store.look_at(wanted.content);
            UNREADABLE.set(false);
            look
        });
        assert!(matches!(look.await.unwrap(), Look::Bad(_)));
        assert_eq!(engine.store.damage(wanted.content), Some(Damage::Unreadable));
        let is_read_here = || {
            let engine = engine.clone();
            blocking(move || {
                let absent = engine.absent(ino, Ino::ROOT).unwrap();
                assert_eq!(absent.is_none(), engine.open_content(wanted.content, wanted.size).is_ok());
                absent.is_none()
            })
        };
        assert!(is_read_here().await, "nobody else has it");
        assert_eq!(write(&nodes[1], &format!("other{n}"), &content), wanted);
        known(&nodes[0], wanted).await;
        net.asked(nodes[1].id(), false);
        assert!(is_read_here().await, "the other one fails");
        net.asked(nodes[1].id(), true);
        assert!(!is_read_here().await, "the other one gives it");
        let before = writable(&nodes[0], wanted).1.metadata().unwrap().ino();
        let opening = fetcher.clone();
        if let Some((handle, file)) = blocking(move || opening.open(7, wanted)).await.unwrap() {
            let (needing, offset) = (fetcher.clone(), wanted.size / 2);
            blocking(move || needing.need(7, handle, offset, 100)).await.unwrap();
            let mut found = vec![0; 100];
            file.read_exact_at(&mut found, offset).unwrap();
            assert!(found == content[offset as usize..][..100]);
            assert!(fetcher.close(7, handle));
        }
        blocking(move || fetcher.whole(wanted)).await.unwrap();
        assert!(read(&nodes[0], wanted) == content && engine.store.damage(wanted.content).is_none());
        assert_ne!(writable(&nodes[0], wanted).1.metadata().unwrap().ino(), before, "it is the same file");
    }
}
