//! What a bad member asks the others, and tells them: bytes that nobody sends, questions that nobody has, news that are none. See
//! [`bad_member`](super::bad_member).

use std::any::Any;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use delugefs_proto::identity::tls::{ALPN_GRPC, ALPN_JOIN, ALPN_TORRENT};
use delugefs_proto::ids::{ContentId, DiskId};
use delugefs_proto::message;
use delugefs_proto::peer_pb::{self as pb, news::News};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::bad_member::{EXPECTED, Stage, id_of};
use super::ending::Ending;
use super::forged::{self, pieces_of};
use super::liar::{Lies, Manner, framed};
use super::stories::bytes;
use super::wait_for;

/// Write bytes after TLS, and take what comes, for a while.
async fn throw(lies: &Lies, (disk, address): (DiskId, Ipv4Addr), alpn: &[u8], rounds: usize, bytes: &[u8]) {
    let Ok(mut stream) = lies.dial(disk, address, alpn).await else { return };
    let _ = timeout(Duration::from_secs(10), async {
        for _ in 0..rounds {
            stream.write_all(bytes).await?;
        }
        stream.flush().await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut Vec::new()).await
    })
    .await;
}

/// A frame of HTTP/2.
fn h2(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Nobody speaks like that.
fn garbage() -> Vec<(usize, Vec<u8>)> {
    let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &h2(4, 0, 0, &[])].concat();
    let of = |frames: Vec<u8>| [&begin[..], &frames].concat();
    let reset =
        |n: u32| [h2(1, 4, 2 * n + 1, &[0x82, 0x86, 0x84, 0x41, 1, b'x']), h2(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat();
    vec![
        (1, forged::filler(100_000)),
        (20_000, vec![0xff; 4096]),
        (1, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (1, of(vec![0xff; 100])),
        (1, of([h2(1, 0, 1, &[0x82]), h2(9, 0, 1, &[b'x'; 16_000]).repeat(2000)].concat())),
        (1, of((0..20_000).flat_map(reset).collect())),
        (1, of(h2(6, 0, 0, &[0; 8]).repeat(50_000))),
        (1, of(h2(4, 0, 0, &[0, 4, 0, 0, 0, 0]).repeat(50_000))),
    ]
}

#[test]
fn what_a_bad_member_asks_harms_nobody() {
    let Some(mut stage) = Stage::new(None) else { return };
    let large = bytes((9 << 20) + 5);
    stage.single("one/large", &large);
    let target = stage.disks[0];
    let content = id_of(&large);
    let lies = || stage.liar.lies.clone();

    for alpn in [ALPN_GRPC, ALPN_TORRENT, ALPN_JOIN] {
        let lies = lies();
        stage.liar.run(async move {
            for (rounds, bytes) in garbage() {
                throw(&lies, target, alpn, rounds, &bytes).await;
            }
        });
    }
    stage.goes_on("bytes");

    let held = stage.liar.run(questions(stage.liar.lies.clone(), target, content, large.len() as u64));
    stage.goes_on("questions");
    drop(held);

    // With no link of theirs, each of its links is the one.
    stage.liar.begin(Manner::Mute);
    stage.liar.run(news(stage.liar.lies.clone(), target, stage.disks[1].0));
    stage.goes_on("news");
    stage.liar.begin(Manner::Wrong);
    stage.wait_until_met();
    let copies = || [0, 1].map(|at| stage.lab.hosts[at].copies("one/large"));
    wait_for("what others hold to be known again", || stage.why(), || copies() == [1, 1]);

    // As if it wanted a content by BitTorrent.
    let deep = [&[0][..], b"d1:x", &[b'l'; 20_000]].concat();
    let metadata = [&[3][..], b"d8:msg_typei0e5:piecei0ee"].concat();
    let request = framed(6, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0]);
    for (what, rounds, bytes) in [
        ("a length", 1, vec![0xff; 4]),
        ("pieces that there are not", 100, framed(4, &[0xff; 4]).repeat(1000)),
        ("depth", 1, framed(20, &deep)),
        ("kinds", 1, framed(99, &[0; 9])),
        ("metadata", 100, framed(20, &metadata).repeat(1000)),
        ("requests without end", 10_000, [framed(2, &[]), request.repeat(1000)].concat()),
    ] {
        let (lies, request) = (stage.liar.lies.clone(), stream_request(&large));
        let accepted = stage.liar.run(async move {
            let mut stream = lies.dial(target.0, target.1, ALPN_TORRENT).await.unwrap();
            message::write(&mut stream, &request).await.unwrap();
            let reply = message::read::<pb::StreamReply>(&mut stream, 4096).await.unwrap();
            // Nothing is read.
            let _ = timeout(Duration::from_secs(20), async {
                for _ in 0..rounds {
                    stream.write_all(&bytes).await?;
                }
                stream.flush().await
            })
            .await;
            reply.error
        });
        assert_eq!(accepted, "");
        stage.goes_on(what);
    }
    stage.shut_out(&Ending { expected: &EXPECTED, ..Ending::default() });
}

fn stream_request(content: &[u8]) -> pb::StreamRequest {
    let size_bytes = content.len() as u64;
    pb::StreamRequest { content: id_of(content).0.into(), size_bytes, pieces: pieces_of(content).into() }
}

/// Requests that nobody makes; the connections of those that are not answered yet.
async fn questions(
    lies: Arc<Lies>,
    (disk, at): (DiskId, Ipv4Addr),
    content: ContentId,
    size: u64,
) -> Vec<Box<dyn Any + Send>> {
    let patience = Duration::from_secs(20);
    let mut client = lies.client(disk, at).await.unwrap();
    for length in [0, 31, 33, 1 << 20] {
        let request = pb::ReadContentRequest { content: vec![7; length], ..Default::default() };
        assert!(timeout(patience, client.read_content(request)).await.unwrap().is_err());
    }
    for size_bytes in [0, 1, size, u64::MAX] {
        for (offset, length) in
            [(0, u64::MAX), (u64::MAX, u64::MAX), (u64::MAX, 1), (size, 1), (size - 1, 2), (1, u64::MAX)]
        {
            let request = pb::ReadContentRequest { content: content.0.into(), size_bytes, offset, length };
            let all = async {
                let mut replies = client.read_content(request).await?.into_inner();
                let mut got = 0;
                while let Some(reply) = replies.message().await? {
                    got += reply.data.len() as u64;
                }
                Ok::<_, tonic::Status>(got)
            };
            let got = timeout(patience, all).await.unwrap();
            assert!(got.as_ref().map_or(true, |got| *got <= size), "{size_bytes} {offset} {length}: {got:?}");
        }
    }
    let seen = vec![0xff; 1 << 20];
    let promise = pb::PromiseRequest { content: content.0.into(), seconds: u32::MAX, wanted: u32::MAX, seen };
    let _any = timeout(patience, client.promise(promise)).await.unwrap();
    for n in 0..2000_u32 {
        let content = if n % 2 == 0 { content.0.to_vec() } else { [n.to_le_bytes(); 8].concat() };
        let _any =
            timeout(patience, client.report_corrupt(pb::ReportCorruptRequest { content: content.clone() })).await;
        if n % 100 == 0 {
            let _any = timeout(patience, client.verify(pb::VerifyRequest { content })).await;
        }
    }
    let have = vec![vec![9; 20]; 50_000];
    for (have, resume_offset) in [(have, 0), (vec![vec![]; 9], u64::MAX), (Vec::new(), 1)] {
        let request = pb::FetchPackRequest { have, resume_offset, resume_commit: vec![9; 20], resume_base: vec![9; 3] };
        let _any = timeout(patience, client.fetch_pack(request)).await.unwrap();
    }
    // It asks, and takes nothing.
    let mut held: Vec<Box<dyn Any + Send>> = Vec::new();
    for _ in 0..8 {
        let client = lies.client(disk, at).await.unwrap();
        for _ in 0..200 {
            let mut client = client.clone();
            let request =
                pb::ReadContentRequest { content: content.0.into(), size_bytes: size, offset: 0, length: size };
            let asking = tokio::spawn(async move { client.read_content(request).await });
            held.push(Box::new(asking));
        }
    }
    held
}

/// News that are none, and links that end as they begin.
async fn news(lies: Arc<Lies>, (disk, at): (DiskId, Ipv4Addr), other: DiskId) {
    let Some(News::About(about)) = lies.about().news else { panic!() };
    let holdings = |of: DiskId, epoch, base| pb::Holdings {
        disk_id: of.0.into(),
        epoch,
        base,
        generation: u64::MAX,
        added: vec![5; 1000],
        ..Default::default()
    };
    let now = 2_000_000_000_000;
    let address =
        |disk: DiskId| pb::DiskAddresses { disk_id: disk.0.into(), addresses: vec!["10.77.0.99:1".into(); 9] };
    let known = News::About(pb::About { knows_still: true, ..about.clone() });
    let changed =
        [0, 1, 7, u32::MAX].map(|number| pb::StillChanged { number, commit: number, free_bytes: Some(u64::MAX) });
    let numbers = [0, 1, u32::MAX].repeat(1000);
    let still = pb::Still { numbers, later_s: vec![1], changed: changed.into(), commits: vec![vec![1; 3], vec![]] };
    let all = [
        vec![News::State(pb::State { commit: vec![1; 20] })],
        vec![News::About(pb::About { version: 99, ..about.clone() })],
        vec![News::About(pb::About { cluster_id: vec![1; 16], ..about.clone() })],
        vec![News::About(pb::About { host_label: "x".repeat(1 << 20), ..about.clone() })],
        vec![News::About(pb::About { host_id: Vec::new(), site: "\u{1b}[2J\n ERROR".into(), ..about.clone() })],
        vec![News::About(about.clone()), News::State(pb::State { commit: vec![1; 3] })],
        vec![News::About(about.clone()), News::Members(pb::Members { set: vec![9; 1 << 20] })],
        vec![News::About(about.clone()), News::Members(pb::Members { set: vec![0xff; 3 << 20] })],
        vec![
            News::About(about.clone()),
            News::Holdings(holdings(other, now, 0)),
            News::Holdings(holdings(disk, now, 0)),
        ],
        vec![
            News::About(about.clone()),
            News::Holdings(holdings(other, u64::MAX, 0)),
            News::Holdings(holdings(disk, now, 77)),
        ],
        vec![News::About(about.clone()), News::Addresses(pb::Addresses { disks: vec![address(other); 3000] })],
        vec![
            News::About(about.clone()),
            News::Sightings(pb::Sightings {
                disks: vec![
                    pb::Sighting { disk_id: other.0.into(), about: Some(about.clone()), number: u32::MAX };
                    1000
                ],
            }),
        ],
        vec![
            known.clone(),
            News::Still(still.clone()),
            News::Still(pb::Still { later_s: vec![u32::MAX; 1000], ..still }),
        ],
        vec![known.clone(), News::StillWhat(pb::StillWhat { numbers: (0..100_000).collect() })],
        vec![known, News::Parting(pb::Parting {})],
        vec![News::About(about.clone()), News::Refused("\u{1b}[2J\n go away".into())],
    ];
    let many = std::iter::repeat_n(vec![News::About(about.clone())], 300);
    for news in all.into_iter().chain(many) {
        let Ok(mut client) = lies.client(disk, at).await else { continue };
        let news = news.into_iter().map(|news| pb::News { news: Some(news) });
        let _any = timeout(Duration::from_secs(10), async {
            let mut met = client.meet(tokio_stream::iter(news)).await?.into_inner();
            while met.message().await?.is_some() {}
            Ok::<_, tonic::Status>(())
        })
        .await;
    }
}
