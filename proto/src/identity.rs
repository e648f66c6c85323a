//! Who we are and who is at the other end: Ed25519 keys, signatures, and TLS 1.3 with raw public keys ([`tls`]).
//!
//! A public key *is* the id of a host or a disk: there are no certificates, no names and no authority. This module proves
//! the possession of a key; whether its owner may take part is for [`crate::members`] to say.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::CertifiedKey;

use crate::ids::{DiskId, HostId, NodeId};

pub mod tls;

/// Length of a signature, in bytes.
pub const SIGNATURE_BYTES: usize = 64;

/// What an Ed25519 key looks like as a SubjectPublicKeyInfo (RFC 8410): this, then the 32 bytes of the key.
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not what it should be.
    #[error("not an Ed25519 key in PKCS#8 form")]
    Malformed,
    /// The cryptographic library refuses.
    #[error("the cryptographic library cannot make or use an Ed25519 key")]
    Library,
}

/// A key pair: of a host (`host.key`) or of a disk (`node.key`).
pub struct Identity {
    id: NodeId,
    pair: Ed25519KeyPair,
    certified: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    /// A new private key, PKCS#8.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub fn generate_pkcs8() -> Result<Vec<u8>, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Library)?;
        Ok(pair.to_pkcs8v1().map_err(|_| KeyError::Library)?.as_ref().to_vec())
    }

    /// From the bytes of a key file.
    ///
    /// # Errors
    /// When they are no Ed25519 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(der).map_err(|_| KeyError::Malformed)?;
        let id = NodeId::from_slice(pair.public_key().as_ref()).ok_or(KeyError::Malformed)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivatePkcs8KeyDer::from(der.to_vec()).into();
        let key = provider.key_provider.load_private_key(key).map_err(|_| KeyError::Library)?;
        let certified = Arc::new(CertifiedKey::new(vec![spki(id).into()], key));
        Ok(Self { id, pair, certified, provider })
    }

    /// The public key.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The public key as that of a host.
    pub fn host_id(&self) -> HostId {
        HostId(self.id.0)
    }

    /// The public key as that of a disk.
    pub fn disk_id(&self) -> DiskId {
        DiskId(self.id.0)
    }

    /// Sign a message.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.id)
    }
}

/// Whether the owner of this key signed the message.
pub fn verify(by: NodeId, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, by.0).verify(message, signature).is_ok()
}

/// The public key as it travels in TLS.
fn spki(id: NodeId) -> Vec<u8> {
    [&SPKI[..], &id.0].concat()
}

/// The public key in a SubjectPublicKeyInfo; `None` when it is not an Ed25519 key.
fn from_spki(der: &[u8]) -> Option<NodeId> {
    NodeId::from_slice(der.strip_prefix(&SPKI)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_signs_and_only_its_owner_could_have() {
        let key = || Identity::from_pkcs8(&Identity::generate_pkcs8().unwrap()).unwrap();
        let (one, other) = (key(), key());
        let signature = one.sign(b"message");
        assert!(verify(one.id(), b"message", &signature));
        assert!(!verify(other.id(), b"message", &signature));
        assert!(!verify(one.id(), b"massage", &signature));
        assert!(!verify(one.id(), b"message", &signature[1..]));
        assert_eq!(from_spki(&spki(one.id())), Some(one.id()));
        assert_eq!(from_spki(&spki(one.id())[1..]), None);
        assert_eq!(Identity::from_pkcs8(b"no key").unwrap_err(), KeyError::Malformed);
        assert!(!format!("{one:?}").contains("pair"));
    }
}
