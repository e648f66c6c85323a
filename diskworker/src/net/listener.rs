//! The disk's TCP port: who calls proves a key, ALPN says what for, and the membership decides whether anything of it is
//! read. A stranger reaches TLS and the join message, and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use delugefs_proto::identity::tls::{ALPN_GRPC, ALPN_JOIN, ALPN_TORRENT, peer_id};
use delugefs_proto::ids::{DiskId, NodeId};
use delugefs_proto::message;
use delugefs_proto::peer_pb as pb;
use delugefs_proto::source::source;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::io::{PeerInfo, PeerIo};
use super::places::Places;
use super::{Net, join};

/// For a handshake and the first message.
const GREETING: Duration = Duration::from_secs(10);

/// Callers that wait in the kernel, as many as tokio would let.
const BACKLOG: u32 = 1024;

/// What the gRPC server is given.
pub(super) type Incoming = mpsc::Receiver<std::io::Result<PeerIo<TlsStream<TcpStream>>>>;
type Accepted = mpsc::Sender<std::io::Result<PeerIo<TlsStream<TcpStream>>>>;

/// Bind the port: the given one; else the last one if it is free, else any.
pub(super) fn bind(listen: Option<&str>, port: u16, last_port: u16) -> anyhow::Result<TcpListener> {
    let host: std::net::IpAddr = match listen {
        Some(host) => host.parse().map_err(|_| anyhow::anyhow!("--listen {host}: not an IP address"))?,
        None => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let wanted = if port != 0 { port } else { last_port };
    let at = |host, port| listen_at(SocketAddr::new(host, port));
    let mut bound = at(host, wanted);
    if listen.is_none() && bound.as_ref().is_err_and(|error| error.kind() != std::io::ErrorKind::AddrInUse) {
        // A machine without IPv6.
        bound = at(std::net::Ipv4Addr::UNSPECIFIED.into(), wanted);
    }
    match bound {
        Ok(listener) => Ok(listener),
        Err(_) if port == 0 && wanted != 0 => Ok(at(host, 0)?),
        Err(error) => Err(anyhow::anyhow!("cannot listen on port {wanted}: {error}")),
    }
}

/// On all addresses means those of IPv4 too. FreeBSD takes it for those of IPv6 alone, and so does Linux with `bindv6only`.
fn listen_at(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    if address.is_ipv6() && address.ip().is_unspecified() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accept until told to stop.
pub(super) async fn accept(net: Arc<Net>, listener: TcpListener, accepted: Accepted) {
    let acceptor = TlsAcceptor::from(net.identity.server_config(&[ALPN_GRPC, ALPN_TORRENT, ALPN_JOIN]));
    let places = Places::default();
    loop {
        let (tcp, from) = tokio::select! {
            result = listener.accept() => match result {
                Ok(accepted) => accepted,
                Err(error) => {
                    net.log.once("accept", &error.to_string(), || tracing::warn!("cannot accept a peer: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = net.stop.cancelled() => return,
        };
        // Without a place it waits in the kernel's queue or is dropped there: those who are in are served.
        let Some(place) = places.take(from.ip()).await else {
            tracing::debug!(%from, "its address has too many callers that have not greeted");
            continue;
        };
        let (net, acceptor, accepted) = (net.clone(), acceptor.clone(), accepted.clone());
        tokio::spawn(async move {
            let _ = tcp.set_nodelay(true);
            let greeted = timeout(GREETING, acceptor.accept(tcp)).await;
            let stream = match greeted {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%from, %error, "a caller did not greet"),
                Err(_) => return tracing::debug!(%from, "a caller said nothing"),
            };
            let (Some(key), Some(alpn)) =
                (peer_id(stream.get_ref().1), stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
            else {
                return;
            };
            if alpn == ALPN_JOIN {
                let served = timeout(join::PATIENCE, join::serve(&net, stream, key, from)).await;
                if let Ok(Err(error)) = served {
                    tracing::debug!(%from, %error, "a request to join ended");
                }
                return;
            }
            let disk = DiskId(key.0);
            if !net.members.is_disk(disk) {
                return net.log_stranger(key, from);
            }
            drop(place);
            if net.is_crowding(disk) {
                let id = disk.to_hex();
                let crowds = || tracing::warn!("disk {} has too many connections: a further one is refused", &id[..8]);
                return net.log.once("crowd", &id, crowds);
            }
            match &alpn[..] {
                ALPN_GRPC => {
                    let token = net.connection_token(disk);
                    let io = PeerIo::new(stream, PeerInfo { disk, from, token });
                    let _ = accepted.send(Ok(io)).await; // fails when the server has stopped
                }
                ALPN_TORRENT => serve_torrent(&net, stream, disk, from).await,
                _ => {}
            }
        });
    }
}

/// A torrent stream: which content, whether, and then BitTorrent until it ends.
async fn serve_torrent(net: &Arc<Net>, mut stream: TlsStream<TcpStream>, disk: DiskId, from: SocketAddr) {
    let token = net.connection_token(disk);
    let info = PeerInfo { disk, from, token: token.child_token() };
    let limited = |stream| PeerIo::new(stream, info).limited(net.limits_for(disk, from.ip()));
    let work = async {
        let request =
            timeout(GREETING, message::read::<pb::StreamRequest>(&mut stream, message::REQUEST_MAX_BYTES)).await;
        let Ok(Ok(request)) = request else { return };
        let accepted = net.accept_torrent(&request).await;
        let error = accepted.as_ref().err().map(ToString::to_string).unwrap_or_default();
        if message::write(&mut stream, &pb::StreamReply { error }).await.is_err() {
            return;
        }
        if let Ok(content) = accepted
            && let Err(error) = net.swarm.attach(content, limited(stream)).await
        {
            tracing::debug!(%error, "a torrent stream ended");
        }
    };
    tokio::select! {
        () = work => {}
        () = token.cancelled() => {}
    }
    token.cancel();
}

impl Net {
    /// Once, and not each time: anybody can come as often as he likes.
    pub(super) fn log_stranger(&self, key: NodeId, from: SocketAddr) {
        let revoked = self.members.get().is_some_and(|members| members.is_revoked(key));
        let (kind, who) = stranger(key, from, revoked);
        self.log.once(kind, &who, || tracing::warn!("refused {from}: {kind} ({})", &key.to_hex()[..8]));
    }
}

/// What is logged once of one who is refused. He can invent keys, but neither one that was revoked nor, as easily, the place he calls from.
fn stranger(key: NodeId, from: SocketAddr, revoked: bool) -> (&'static str, String) {
    match revoked {
        true => ("revoked key", key.to_hex()),
        false => ("no member", source(from.ip()).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::process::Command;

    use super::*;

    #[test]
    fn a_stranger_who_invents_keys_is_logged_once_and_revoked_ones_each() {
        let from = |text: &str| text.parse::<SocketAddr>().unwrap();
        let kept = |n: u8, at: &str, revoked| stranger(NodeId([n; 32]), from(at), revoked);
        assert_eq!(kept(1, "192.0.2.7:1", false), kept(2, "192.0.2.7:2", false));
        assert_ne!(kept(1, "192.0.2.7:1", false), kept(1, "192.0.2.8:1", false));
        assert_eq!(kept(1, "[2001:db8::1]:1", false), kept(2, "[2001:db8::2]:1", false), "he has all of these");
        assert_ne!(kept(1, "192.0.2.7:1", true), kept(2, "192.0.2.7:1", true));
        assert_eq!(kept(1, "192.0.2.7:1", true), kept(1, "192.0.2.8:1", true));
    }

    /// Starts the test below again, on a machine whose default is that of FreeBSD.
    #[test]
    fn all_addresses_are_those_of_ipv4_too() {
        let script = "ip link set lo up && echo 1 > /proc/sys/net/ipv6/bindv6only";
        let inside = |script: &str| {
            let mut command = Command::new("unshare");
            command.args(["-Urn", "sh", "-c", script, "sh"]).arg(std::env::current_exe().unwrap());
            command
        };
        if !inside(script).output().is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: it needs `unshare -Urn`, IPv6 and a /proc that can be written");
            return;
        }
        let mut command = inside(&format!("{script} && exec \"$@\""));
        let output = command.args(["--ignored", "--exact", "net::listener::tests::inside"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    #[tokio::test]
    #[ignore = "only in a namespace of its own, see above"]
    async fn inside() {
        let listener = bind(None, 0, 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        // Where it was last; and another place when that is taken.
        drop(listener);
        let again = bind(None, 0, port).unwrap();
        assert_eq!(again.local_addr().unwrap().port(), port);
        assert_ne!(bind(None, 0, port).unwrap().local_addr().unwrap().port(), port);
        assert!(bind(None, port, 0).is_err());
    }
}
