//! TLS 1.3 with raw public keys (RFC 7250) both ways: every connection proves both keys, nothing is resumed, and ALPN
//! says what the connection is for. Whoever dials names the key it wants; whoever listens learns the other's key and
//! decides afterwards.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    version,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Identity, from_spki};
use crate::ids::NodeId;

/// ALPN: gRPC between members.
pub const ALPN_GRPC: &[u8] = b"h2";
/// ALPN: a torrent stream between members.
pub const ALPN_TORRENT: &[u8] = b"dfs-bt/1";
/// ALPN: one request of somebody who is not known as a member (yet).
pub const ALPN_JOIN: &[u8] = b"dfs-join/1";

/// A TLS connection that we opened.
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

impl Identity {
    /// For a listener that offers these protocols.
    ///
    /// # Panics
    /// Never: the provider knows TLS 1.3.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let verifier = Arc::new(RawKey { wanted: None, provider: self.provider.clone() });
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .expect("aws-lc-rs has TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.certified.clone())));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        // No resumption: a key that has been revoked meanwhile must be looked at again.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Arc::new(config)
    }

    /// For a connection to the owner of the key `wanted` and to nobody else; without one, to whoever answers: the caller
    /// looks at [`peer_id`] before it says anything.
    ///
    /// # Panics
    /// Never: the provider knows TLS 1.3.
    pub fn client_config(&self, wanted: Option<NodeId>, alpn: &[u8]) -> Arc<ClientConfig> {
        let verifier = Arc::new(RawKey { wanted, provider: self.provider.clone() });
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .expect("aws-lc-rs has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.certified.clone())));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Arc::new(config)
    }

    /// Connect to the owner of a key at an address, for one protocol. `wanted` is as in [`Identity::client_config`].
    ///
    /// # Errors
    /// When nobody answers in time, or somebody who does not own the key or does not offer the protocol.
    pub async fn dial(
        &self,
        wanted: Option<NodeId>,
        address: SocketAddr,
        alpn: &[u8],
        deadline: Duration,
    ) -> io::Result<ClientStream> {
        let connecting = async {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            // Never sent; rustls wants one.
            let name = ServerName::from(address.ip());
            let stream = TlsConnector::from(self.client_config(wanted, alpn)).connect(name, tcp).await?;
            if stream.get_ref().1.alpn_protocol() != Some(alpn) {
                let text = format!("{address} does not offer {}", String::from_utf8_lossy(alpn));
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
            Ok(stream)
        };
        match tokio::time::timeout(deadline, connecting).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer"))),
        }
    }
}

/// The key that the other end has proved to own.
pub fn peer_id(connection: &rustls::CommonState) -> Option<NodeId> {
    from_spki(connection.peer_certificates()?.first()?)
}

/// Accepts whoever proves possession of an Ed25519 key, or only of the one that is wanted.
#[derive(Debug)]
struct RawKey {
    wanted: Option<NodeId>,
    provider: Arc<CryptoProvider>,
}

impl RawKey {
    fn check(&self, key: &CertificateDer<'_>) -> Result<(), Error> {
        match (from_spki(key), self.wanted) {
            (None, _) => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
            (Some(found), Some(wanted)) if found != wanted => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            _ => Ok(()),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.provider.signature_verification_algorithms)
    }
}

fn too_old() -> Error {
    Error::General("TLS 1.3 only".into())
}

impl ServerCertVerifier for RawKey {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(key).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for RawKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(key).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
