//! Finds disks of our clusters on the local network: asks by multicast DNS, on every interface, for answers to us alone.
//! What comes back are hints: who answers at an address has to prove a key.
//!
//! libmdns only announces. Its answers to one question are small messages, and only what we need of them is read here: port
//! (SRV) and text (TXT) of each service; the address is where the answer came from.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use delugefs_proto::control_pb as pb;
use delugefs_proto::disk::short_id;
use delugefs_proto::ids::{ClusterId, DiskId};
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;

use crate::cluster::Found;
use crate::discovery::{SERVICE, cluster_hint, name_hint};
use crate::membership::Membership;
use crate::nearby;

/// Where questions go.
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 251), 5353);
/// How long answers are waited for.
const LISTEN: Duration = Duration::from_millis(500);
/// Between two questions; the first ones come sooner.
const EVERY: Duration = Duration::from_secs(10);
const FIRST: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];
/// Longest chain of compressed names.
const JUMPS_MAX: usize = 16;
/// Kinds of records.
const TXT: u16 = 16;
const SRV: u16 = 33;

/// A disk that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Nearby {
    disk: DiskId,
    hint: String,
    /// Of the cluster's name; empty from older versions.
    name: String,
    port: u16,
}

/// Ask now and then, until the supervisor ends.
pub async fn follow(
    mut snapshots: watch::Receiver<Arc<pb::HostStatus>>,
    membership: Arc<Membership>,
    found: Arc<Found>,
) {
    let (mut asked, mut is_told) = (0, false);
    loop {
        let host = snapshots.borrow_and_update().clone();
        if let Some(cluster) = ClusterId::from_hex(&host.cluster_id) {
            let set = membership.set(cluster);
            let members: BTreeSet<DiskId> = set.iter().flat_map(|set| set.disks().keys()).copied().collect();
            let known = members.clone();
            let answers = tokio::task::spawn_blocking(move || ask(&known)).await.unwrap_or_default();
            // Who is not alone in his cluster has joined it, or was joined: he knows which one he wants.
            let is_alone = set.is_some_and(|set| set.hosts().len() == 1);
            if let Some(one) = namesake(&answers, cluster, &host.cluster).filter(|_| is_alone && !is_told) {
                tell(one, &host.cluster);
                is_told = true; // anybody can answer, as often as he likes
            }
            let (mut nearby, now, hint) = (found.nearby.lock(), Instant::now(), cluster_hint(cluster));
            for (disk, address) in answers.into_iter().filter(|(one, _)| one.hint == hint).map(located) {
                nearby.hear(disk, address, members.contains(&disk), now);
            }
            nearby.forget(now);
        }
        let pause = FIRST.get(asked).copied().unwrap_or(EVERY);
        asked += 1;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return; // the owner has ended
                }
                tokio::time::sleep(FIRST[0]).await;
            }
        }
    }
}

/// A disk that answered of another cluster with this name.
fn namesake<'a>(
    answers: &'a [(Nearby, SocketAddr)],
    cluster: ClusterId,
    name: &str,
) -> Option<&'a (Nearby, SocketAddr)> {
    let (ours, name) = (cluster_hint(cluster), name_hint(name));
    answers.iter().find(|(one, _)| one.hint != ours && one.name == name)
}

fn tell((one, from): &(Nearby, SocketAddr), name: &str) {
    tracing::warn!("{}", of_namesake(&one.disk.to_hex(), from, name));
}

fn of_namesake(disk: &str, from: &SocketAddr, name: &str) -> String {
    format!(
        "another cluster on this network is called {name} too (disk {} at {}). It may be somebody else's, and then all is well: clusters \
         of one name stay apart. If this host was to be in that one, end this, type `delugefs invite` on a host of that one, and here \
         with a new folder `delugefs run {name} ROOT --join INVITATION`",
        short_id(disk),
        from.ip()
    )
}

fn located((nearby, from): (Nearby, SocketAddr)) -> (DiskId, String) {
    (nearby.disk, SocketAddr::new(from.ip(), nearby.port).to_string())
}

/// One question on every interface, and what is answered; of those that are no members, so many as are remembered.
fn ask(members: &BTreeSet<DiskId>) -> Vec<(Nearby, SocketAddr)> {
    let mut sockets = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let address = interface.address.as_ref().and_then(|address| address.as_sockaddr_in().map(|v4| v4.ip()));
        if let Some(ip) = address.filter(|ip| !ip.is_loopback()) {
            match question_on(ip) {
                Ok(socket) => sockets.push(socket),
                Err(error) => tracing::debug!(%ip, %error, "cannot ask on this interface"),
            }
        }
    }
    let (mut answers, mut strangers) = (Vec::new(), 0);
    let end = Instant::now() + LISTEN;
    let mut buffer = [0; 9000];
    for socket in &sockets {
        loop {
            // Those behind the first one have been listening meanwhile.
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            // Anybody can send as much as he likes.
            if Instant::now() > end + LISTEN || answers.len() >= nearby::MAX * 2 {
                break;
            }
            if socket.set_read_timeout(Some(left)).is_err() {
                break;
            }
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { break };
            for one in parse(&buffer[..length]) {
                let is_member = members.contains(&one.disk);
                strangers += usize::from(!is_member);
                if is_member || strangers <= nearby::MAX {
                    answers.push((one, from));
                }
            }
        }
    }
    answers
}

fn question_on(ip: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.bind(&SocketAddr::from((ip, 0)).into())?;
    socket.set_multicast_if_v4(&ip)?;
    socket.set_multicast_ttl_v4(255)?;
    let socket = UdpSocket::from(socket);
    socket.send_to(&question(), GROUP)?;
    Ok(socket)
}

/// PTR of the service, answer to the asker alone.
fn question() -> Vec<u8> {
    let mut question = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in SERVICE.split('.').chain(["local"]) {
        question.push(label.len() as u8);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 12, 0x80, 1]);
    question
}

/// The disks in an answer. What cannot be read is left out.
fn parse(message: &[u8]) -> Vec<Nearby> {
    let mut ports: BTreeMap<Vec<u8>, u16> = BTreeMap::new();
    let mut texts: BTreeMap<Vec<u8>, BTreeMap<String, String>> = BTreeMap::new();
    let _ = records(message, |name, kind, data| match (kind, data) {
        (SRV, [_, _, _, _, high, low, ..]) => drop(ports.insert(name, u16::from_be_bytes([*high, *low]))),
        (TXT, data) => drop(texts.insert(name, pairs(data))),
        _ => {}
    });
    let nearby = |(name, text): (Vec<u8>, BTreeMap<String, String>)| {
        Some(Nearby {
            disk: DiskId::from_hex(text.get("id")?)?,
            hint: text.get("c")?.clone(),
            name: text.get("n").cloned().unwrap_or_default(),
            port: ports.get(&name).copied().filter(|port| *port != 0)?,
        })
    };
    texts.into_iter().filter_map(nearby).collect()
}

/// Call a function for every record; `None` when the message ends too early.
fn records(message: &[u8], mut each: impl FnMut(Vec<u8>, u16, &[u8])) -> Option<()> {
    let count = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let mut at = 12;
    for _ in 0..count(4)? {
        at = name(message, at)?.1 + 4;
    }
    let records = u32::from(count(6)?) + u32::from(count(8)?) + u32::from(count(10)?);
    for _ in 0..records {
        let (owner, next) = name(message, at)?;
        let (kind, length) = (count(next)?, usize::from(count(next + 8)?));
        let data = message.get(next + 10..next + 10 + length)?;
        each(owner, kind, data);
        at = next + 10 + length;
    }
    Some(())
}

/// A name in lower case, its labels ended by dots, and where it ends.
fn name(message: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
    let (mut name, mut end) = (Vec::new(), None);
    for _ in 0..=JUMPS_MAX {
        loop {
            let length = usize::from(*message.get(at)?);
            match length {
                0 => return Some((name, end.unwrap_or(at + 1))),
                1..=63 => {
                    name.extend(message.get(at + 1..at + 1 + length)?.to_ascii_lowercase());
                    name.push(b'.');
                    if name.len() > 255 {
                        return None;
                    }
                    at += 1 + length;
                }
                // The rest is elsewhere.
                192.. => {
                    let low = usize::from(*message.get(at + 1)?);
                    end = end.or(Some(at + 2));
                    at = (length & 63) << 8 | low;
                    break;
                }
                _ => return None,
            }
        }
    }
    None
}

fn pairs(mut data: &[u8]) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    while let Some((&length, rest)) = data.split_first() {
        let Some((text, rest)) = rest.split_at_checked(usize::from(length)) else { break };
        if let Some((key, value)) = std::str::from_utf8(text).ok().and_then(|text| text.split_once('=')) {
            pairs.insert(key.to_owned(), value.to_owned());
        }
        data = rest;
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One service, as libmdns says it: names by reference to the question.
    fn answer() -> Vec<u8> {
        let mut message = question();
        message[2] = 0x84;
        message[7] = 3; // answers
        let instance = message.len() + 12;
        message.extend([0xc0, 12, 0, 12, 0, 1, 0, 0, 0, 60, 0, 11, 8]);
        message.extend(b"0101abcd");
        message.extend([0xc0, 12]);
        let at = [0xc0 | (instance >> 8) as u8, instance as u8];
        message.extend(at);
        message.extend([0, 33, 0, 1, 0, 0, 0, 60, 0, 8, 0, 0, 0, 0, 0x12, 0x67, 0xc0, 12]);
        message.extend(at);
        let id = format!("id={}", "ab".repeat(32));
        let mut text = vec![3];
        text.extend(b"v=1");
        text.push(10);
        text.extend(b"n=89abcdef");
        text.push(10);
        text.extend(b"c=01234567");
        text.push(id.len() as u8);
        text.extend(id.bytes());
        message.extend([0, 16, 0, 1, 0, 0, 0, 60, 0, text.len() as u8]);
        message.extend(text);
        message
    }

    #[test]
    fn an_answer_is_read() {
        let disk = DiskId([0xab; 32]);
        assert_eq!(parse(&answer()), [Nearby { disk, hint: "01234567".into(), name: "89abcdef".into(), port: 0x1267 }]);
    }

    #[test]
    fn only_another_cluster_of_the_same_name_is_a_namesake() {
        let (ours, other) = (ClusterId([1; 16]), ClusterId([2; 16]));
        let answer = |cluster, name: String| {
            let one = Nearby { disk: DiskId([7; 32]), hint: cluster_hint(cluster), name, port: 1 };
            [(one, SocketAddr::from(([10, 0, 0, 2], 5353)))]
        };
        let is_one = |answers: [_; 1]| namesake(&answers, ours, "home").is_some();
        assert!(is_one(answer(other, name_hint("home"))));
        assert!(!is_one(answer(ours, name_hint("home"))), "a disk of ours");
        assert!(!is_one(answer(other, name_hint("work"))));
        assert!(!is_one(answer(other, String::new())), "an older version");
        let (one, from) = &answer(other, name_hint("home"))[0];
        let said = of_namesake(&one.disk.to_hex(), from, "home");
        assert!(said.contains("called home too (disk 07070707 at 10.0.0.2). It may"), "{said}");
        assert!(!said.contains("  "), "{said}");
    }

    #[test]
    fn nonsense_harms_nobody() {
        let whole = answer();
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).len() <= 1);
        }
        let mut bits = 1_u64;
        for _ in 0..20_000 {
            let mut message = whole.clone();
            for _ in 0..4 {
                bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (bits >> 33) as usize % message.len();
                message[at] = (bits >> 24) as u8;
            }
            let _ = parse(&message);
        }
        // A name that refers to itself.
        let mut circle = vec![0; 12];
        circle[5] = 1;
        circle.extend([0xc0, 12, 0, 12, 0, 1]);
        assert!(parse(&circle).is_empty());
    }
}
