//! The server's own keys: TLS and ledger. Files under `keys/`, mode 0600.
//!
//! Neither opens a backup. A stolen TLS key lets somebody pose as the server until it is replaced,
//! a stolen ledger key lets somebody sign heads; both are noticed by clients that remember the
//! last head.
//!
//! ```text
//! keys/ledger.key            never changes: it names the server
//! keys/tls.key, tls.crt      the first TLS key, number 1
//! keys/tls.pem               a later one: "serial N", certificate and key in one file
//! keys/tls-next.pem          one that is to take its place (`repository/tls_roll.rs`)
//! ```

use std::path::Path;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use parking_lot::RwLock;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use strongroom_protocol::id::{PublicKey, TlsKeyDigest};
use strongroom_protocol::lend;
use strongroom_protocol::message::{HexBytes, Identity};
use strongroom_protocol::promotion::vouched_digest;
use strongroom_protocol::signature::{SignedType, sign};
use strongroom_protocol::vouch::ServerTls;

use crate::durable;
use crate::error::ServerError;

const TLS_KEY_FILE: &str = "keys/tls.key";
const TLS_CERTIFICATE_FILE: &str = "keys/tls.crt";
const TLS_FILE: &str = "keys/tls.pem";
const NEXT_TLS_FILE: &str = "keys/tls-next.pem";
const LEDGER_KEY_FILE: &str = "keys/ledger.key";
const SERIAL_WORD: &str = "serial ";

/// The keys of a repository, loaded.
pub struct ServerKeys {
    /// Signs checkpoints, and vouches for the TLS key.
    pub ledger: SigningKey,
    shown: Arc<ShownKey>,
}

/// The TLS key that new connections are shown.
#[derive(Debug)]
pub struct ShownKey(RwLock<TlsKey>);

/// A TLS key with its certificate.
#[derive(Debug, Clone)]
pub struct TlsKey {
    /// What clients pin, and its number.
    pub tls: ServerTls,
    certified: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ShownKey {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().certified.clone())
    }
}

impl TlsKey {
    /// Reads certificate and key; `file` is named where they are none.
    fn read(serial: u64, certificate: &[u8], key: &[u8], file: &Path) -> Result<Self, ServerError> {
        let bad = || ServerError::Operator(format!("{}: not readable as a key", file.display()));
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| bad())?;
        let certificate =
            CertificateDer::from_pem_slice(certificate).map_err(|_| bad())?.into_owned();
        let tls_key = pin_of_certificate(&certificate).ok_or_else(bad)?;
        let key = any_supported_type(&key).map_err(|_| bad())?;
        let certified = CertifiedKey::new(vec![certificate], key);
        certified.keys_match().map_err(|_| bad())?;
        Ok(Self { tls: ServerTls { tls_key, serial }, certified: Arc::new(certified) })
    }

    /// Reads one of the files that have all in one; nothing, where there is none.
    fn load(path: &Path) -> Result<Option<Self>, ServerError> {
        if !path.exists() {
            return Ok(None);
        }
        let bytes = durable::read(path)?;
        let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let serial =
            std::str::from_utf8(first).ok().and_then(|line| line.strip_prefix(SERIAL_WORD));
        let serial = serial.and_then(|serial| serial.parse().ok()).ok_or_else(|| {
            ServerError::Operator(format!("{}: not readable as a key", path.display()))
        })?;
        Self::read(serial, &bytes, &bytes, path).map(Some)
    }
}

impl ServerKeys {
    /// Makes new keys in `folder`; the certificate names `hosts`.
    pub fn create(folder: &Path, hosts: &[String]) -> Result<Self, ServerError> {
        let (key, certificate) = generate(hosts)?;
        let ledger = random_bytes::<32>()?;
        durable::make_folder(&folder.join("keys"))?;
        durable::write(&folder.join(TLS_KEY_FILE), key.as_bytes())?;
        durable::write(&folder.join(TLS_CERTIFICATE_FILE), certificate.as_bytes())?;
        durable::write(&folder.join(LEDGER_KEY_FILE), &ledger)?;
        Self::load(folder)
    }

    /// Loads the keys of `folder`.
    pub fn load(folder: &Path) -> Result<Self, ServerError> {
        let file = folder.join(LEDGER_KEY_FILE);
        let ledger: [u8; 32] = durable::read(&file)?.try_into().map_err(|_| {
            ServerError::Operator(format!("{}: not readable as a key", file.display()))
        })?;
        let shown = match TlsKey::load(&folder.join(TLS_FILE))? {
            Some(later) => later,
            None => {
                let key = durable::read(&folder.join(TLS_KEY_FILE))?;
                let certificate = durable::read(&folder.join(TLS_CERTIFICATE_FILE))?;
                TlsKey::read(1, &certificate, &key, &folder.join(TLS_KEY_FILE))?
            }
        };
        let shown = Arc::new(ShownKey(RwLock::new(shown)));
        Ok(Self { ledger: SigningKey::from_bytes(&ledger), shown })
    }

    /// Public half of the ledger key.
    pub fn ledger_public(&self) -> PublicKey {
        PublicKey(self.ledger.verifying_key().to_bytes())
    }

    /// What new connections are shown, whatever it becomes.
    pub fn shown(&self) -> Arc<ShownKey> {
        self.shown.clone()
    }

    /// The TLS key that new connections are shown now.
    pub fn tls(&self) -> ServerTls {
        self.shown.0.read().tls
    }

    /// What clients pin now.
    pub fn tls_key_digest(&self) -> TlsKeyDigest {
        self.tls().tls_key
    }

    /// The ledger key's proof that a connection with this exporter is lent by this server.
    pub fn prove_lending(&self, exporter: &[u8; 32]) -> String {
        lend::prove(&self.ledger, exporter)
    }

    /// The ledger key's word for the TLS key: signature over
    /// `BLAKE3("SRV1" || TLS key digest || ledger key)`.
    pub fn vouch(&self) -> [u8; 64] {
        self.vouch_for(&self.tls_key_digest())
    }

    fn vouch_for(&self, tls_key: &TlsKeyDigest) -> [u8; 64] {
        let digest = vouched_digest(tls_key, &self.ledger_public());
        sign(&self.ledger, SignedType::TlsKey, &digest)
    }

    /// Who this server is.
    pub fn identity(&self) -> Identity {
        let tls = self.tls();
        Identity {
            protocol: strongroom_protocol::limits::PROTOCOL_VERSION,
            ledger_key: self.ledger_public(),
            tls_key: tls.tls_key,
            vouch: HexBytes(self.vouch_for(&tls.tls_key).to_vec()),
            tls_serial: tls.serial,
            tls_vouch: HexBytes(tls.vouch(&self.ledger).to_vec()),
        }
    }

    /// Makes the TLS key that is to take the place of the present one, and keeps it aside.
    pub fn make_next(
        folder: &Path,
        hosts: &[String],
        serial: u64,
    ) -> Result<ServerTls, ServerError> {
        let (key, certificate) = generate(hosts)?;
        let path = folder.join(NEXT_TLS_FILE);
        let text = format!("{SERIAL_WORD}{serial}\n{certificate}{key}");
        durable::write(&path, text.as_bytes())?;
        Self::next(folder)?
            .ok_or_else(|| ServerError::Bug("a key that was just made is not there".into()))
    }

    /// The TLS key that is kept aside.
    pub fn next(folder: &Path) -> Result<Option<ServerTls>, ServerError> {
        Ok(TlsKey::load(&folder.join(NEXT_TLS_FILE))?.map(|next| next.tls))
    }

    /// Gives up the TLS key that is kept aside.
    pub fn discard_next(folder: &Path) -> Result<(), ServerError> {
        remove(&folder.join(NEXT_TLS_FILE))
    }

    /// Shows the TLS key that is kept aside from now on; the one before is removed.
    pub fn show_next(&self, folder: &Path) -> Result<(), ServerError> {
        let (next, path) = (folder.join(NEXT_TLS_FILE), folder.join(TLS_FILE));
        durable::rename(&next, &path)?;
        let later = TlsKey::load(&path)?;
        let later = later.ok_or_else(|| ServerError::Bug("the TLS key is gone".into()))?;
        *self.shown.0.write() = later;
        Self::remove_first(folder)
    }

    /// Removes the first TLS key, if a later one is shown.
    pub fn remove_first(folder: &Path) -> Result<(), ServerError> {
        if !folder.join(TLS_FILE).exists() {
            return Ok(());
        }
        remove(&folder.join(TLS_KEY_FILE))?;
        remove(&folder.join(TLS_CERTIFICATE_FILE))
    }
}

/// A key and its certificate, as text.
fn generate(hosts: &[String]) -> Result<(String, String), ServerError> {
    let bug = |error: rcgen::Error| ServerError::Operator(format!("make certificate: {error}"));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(bug)?;
    let params = CertificateParams::new(hosts.to_vec()).map_err(bug)?;
    let certificate = params.self_signed(&key).map_err(bug)?;
    Ok((key.serialize_pem(), certificate.pem()))
}

fn remove(path: &Path) -> Result<(), ServerError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ServerError::file(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
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
