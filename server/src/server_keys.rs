//! The server's own keys: TLS and ledger. Files under `keys/`, mode 0600.
//!
//! Neither opens a backup. A stolen TLS key lets somebody pose as the server until it is replaced,
//! a stolen ledger key lets somebody sign heads; both are noticed by clients that remember the
//! last head.

use std::path::Path;

use ed25519_dalek::SigningKey;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use strongroom_protocol::id::{PublicKey, TlsKeyDigest};
use strongroom_protocol::lend;
use strongroom_protocol::promotion::vouched_digest;
use strongroom_protocol::signature::{SignedType, sign};

use crate::durable;
use crate::error::ServerError;

const TLS_KEY_FILE: &str = "keys/tls.key";
const TLS_CERTIFICATE_FILE: &str = "keys/tls.crt";
const LEDGER_KEY_FILE: &str = "keys/ledger.key";

/// The keys of a repository, loaded.
pub struct ServerKeys {
    /// Signs checkpoints, and vouches for the TLS key.
    pub ledger: SigningKey,
    /// Private key of the TLS certificate.
    pub tls_key: PrivateKeyDer<'static>,
    /// Self-signed certificate.
    pub tls_certificate: CertificateDer<'static>,
    /// What clients pin.
    pub tls_key_digest: TlsKeyDigest,
}

impl ServerKeys {
    /// Makes new keys in `folder`; the certificate names `hosts`.
    pub fn create(folder: &Path, hosts: &[String]) -> Result<Self, ServerError> {
        let bug = |error: rcgen::Error| ServerError::Operator(format!("make certificate: {error}"));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(bug)?;
        let params = CertificateParams::new(hosts.to_vec()).map_err(bug)?;
        let certificate = params.self_signed(&key).map_err(bug)?;
        let ledger = random_bytes::<32>()?;
        durable::make_folder(&folder.join("keys"))?;
        durable::write(&folder.join(TLS_KEY_FILE), key.serialize_pem().as_bytes())?;
        durable::write(&folder.join(TLS_CERTIFICATE_FILE), certificate.pem().as_bytes())?;
        durable::write(&folder.join(LEDGER_KEY_FILE), &ledger)?;
        Self::load(folder)
    }

    /// Loads the keys of `folder`.
    pub fn load(folder: &Path) -> Result<Self, ServerError> {
        let bad = |file: &str| {
            ServerError::Operator(format!("{}: not readable as a key", folder.join(file).display()))
        };
        let key = durable::read(&folder.join(TLS_KEY_FILE))?;
        let tls_key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| bad(TLS_KEY_FILE))?;
        let certificate = durable::read(&folder.join(TLS_CERTIFICATE_FILE))?;
        let tls_certificate = CertificateDer::from_pem_slice(&certificate)
            .map_err(|_| bad(TLS_CERTIFICATE_FILE))?
            .into_owned();
        let ledger: [u8; 32] = durable::read(&folder.join(LEDGER_KEY_FILE))?
            .try_into()
            .map_err(|_| bad(LEDGER_KEY_FILE))?;
        let tls_key_digest =
            pin_of_certificate(&tls_certificate).ok_or_else(|| bad(TLS_CERTIFICATE_FILE))?;
        Ok(Self {
            ledger: SigningKey::from_bytes(&ledger),
            tls_key,
            tls_certificate,
            tls_key_digest,
        })
    }

    /// Public half of the ledger key.
    pub fn ledger_public(&self) -> PublicKey {
        PublicKey(self.ledger.verifying_key().to_bytes())
    }

    /// The ledger key's proof that a connection with this exporter is lent by this server.
    pub fn prove_lending(&self, exporter: &[u8; 32]) -> String {
        lend::prove(&self.ledger, exporter)
    }

    /// The ledger key's word for the TLS key: signature over
    /// `BLAKE3("SRV1" || TLS key digest || ledger key)`.
    pub fn vouch(&self) -> [u8; 64] {
        let digest = vouched_digest(&self.tls_key_digest, &self.ledger_public());
        sign(&self.ledger, SignedType::TlsKey, &digest)
    }
}

/// The pin of a certificate: BLAKE3 of its SubjectPublicKeyInfo, or nothing if it does not parse.
pub fn pin_of_certificate(certificate: &[u8]) -> Option<TlsKeyDigest> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(TlsKeyDigest(*blake3::hash(parsed.tbs_certificate.subject_pki.raw).as_bytes()))
}

/// The pin of a bare Ed25519 key, as the kit's access key is one (RFC 8410 section 4).
pub fn pin_of_ed25519(key: &PublicKey) -> TlsKeyDigest {
    const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0];
    let digest = blake3::Hasher::new().update(&PREFIX).update(&key.0).finalize();
    TlsKeyDigest(*digest.as_bytes())
}

/// Bytes from the system's generator.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], ServerError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| ServerError::Bug(format!("random bytes: {e}")))?;
    Ok(bytes)
}
