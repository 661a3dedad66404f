//! What this server shows another one: a TLS key and a signing key of their own for each, so that
//! they cannot tell each other who follows them, and one is revoked without the others. (To a
//! server that connections are lent to, the ledger key signs in the place of the signing key.)
//!
//! ```text
//! keys/primaries/NAME/, keys/feeds/NAME/, mode 0700, files 0600
//!   keys.pem                        "made MS", "signing SEED", certificate and key in one file
//!   next.pem                        keys that are to take their place (`rolling.rs`)
//!   tls.key, tls.crt, signing.key   in the place of keys.pem, by older versions
//! ```
//!
//! They are written before they are enrolled. *Crash before the enrolment: the next `replica add`
//! or `feed add` of that name uses them. Crash after it: the same token is answered again, because
//! the keys are the same.*

use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use strongroom_protocol::id::{Label, PublicKey, TlsKeyDigest, from_hex, to_hex};
use strongroom_protocol::roll::POINT_BYTES;

use crate::durable;
use crate::error::ServerError;
use crate::server_keys::{pin_of_certificate, random_bytes};

const FILE: &str = "keys.pem";
const NEXT_FILE: &str = "next.pem";
/// Files of older versions; the last of them says that all are there.
const FIRST_FILES: [&str; 3] = ["tls.key", "tls.crt", "signing.key"];
const MADE_WORD: &str = "made ";
const SIGNING_WORD: &str = "signing ";

/// For whom keys are.
#[derive(Debug, Clone, Copy)]
pub enum Whom<'a> {
    /// A primary that this server follows.
    Primary(&'a Label),
    /// A server that this one lends its connections to.
    Feed(&'a Label),
}

/// The keys for one other server.
pub struct PeerKeys {
    /// Private key of the certificate.
    pub tls_key: PrivateKeyDer<'static>,
    /// Self-signed.
    pub certificate: CertificateDer<'static>,
    /// What the other pins.
    pub tls_key_digest: TlsKeyDigest,
    /// Public half of the signing key.
    pub signing_key: PublicKey,
    /// When they were made, milliseconds since 1970; 0 where an older version did not write it.
    pub made_ms: u64,
    signing: SigningKey,
}

impl Whom<'_> {
    /// The folder of the keys, below `keys/`.
    pub fn folder(&self) -> String {
        match self {
            Self::Primary(name) => format!("primaries/{name}"),
            Self::Feed(name) => format!("feeds/{name}"),
        }
    }
}

impl PeerKeys {
    /// Loads the keys, or makes them.
    pub fn load_or_create(folder: &Path, whom: Whom<'_>, now_ms: u64) -> Result<Self, ServerError> {
        let own = folder_of(folder, whom);
        if ![FILE, "signing.key"].iter().any(|name| own.join(name).exists()) {
            durable::make_folder(&own)?;
            make(&own.join(FILE), now_ms)?;
        }
        Self::load(folder, whom)
    }

    /// Loads keys that were made.
    pub fn load(folder: &Path, whom: Whom<'_>) -> Result<Self, ServerError> {
        let folder = folder_of(folder, whom);
        if folder.join(FILE).exists() {
            return Self::read(&folder.join(FILE));
        }
        let bad = || unreadable(&folder);
        let [key, certificate, seed] = FIRST_FILES.map(|name| durable::read(&folder.join(name)));
        let seed: [u8; 32] = seed?.try_into().map_err(|_| bad())?;
        Self::of(&key?, &certificate?, &seed, 0).ok_or_else(bad)
    }

    /// Keys that are to take the place of these; nothing, where there are none.
    pub fn next(folder: &Path, whom: Whom<'_>) -> Result<Option<Self>, ServerError> {
        let path = folder_of(folder, whom).join(NEXT_FILE);
        path.exists().then(|| Self::read(&path)).transpose()
    }

    /// Makes keys that are to take the place of these, and keeps them aside.
    pub fn make_next(folder: &Path, whom: Whom<'_>, now_ms: u64) -> Result<Self, ServerError> {
        let path = folder_of(folder, whom).join(NEXT_FILE);
        make(&path, now_ms)?;
        Self::read(&path)
    }

    /// Gives up what is kept aside.
    pub fn discard_next(folder: &Path, whom: Whom<'_>) -> Result<(), ServerError> {
        remove(&folder_of(folder, whom).join(NEXT_FILE))
    }

    /// Puts what is kept aside in the place of the keys, which are gone then.
    pub fn adopt_next(folder: &Path, whom: Whom<'_>) -> Result<(), ServerError> {
        let own = folder_of(folder, whom);
        durable::rename(&own.join(NEXT_FILE), &own.join(FILE))?;
        Self::remove_first(folder, whom)
    }

    /// Removes keys of an older version, if there are later ones.
    pub fn remove_first(folder: &Path, whom: Whom<'_>) -> Result<(), ServerError> {
        let own = folder_of(folder, whom);
        match own.join(FILE).exists() {
            true => FIRST_FILES.iter().try_for_each(|name| remove(&own.join(name))),
            false => Ok(()),
        }
    }

    /// The same keys once more.
    pub fn copy(&self) -> Self {
        Self {
            tls_key: self.tls_key.clone_key(),
            certificate: self.certificate.clone(),
            tls_key_digest: self.tls_key_digest,
            signing_key: self.signing_key,
            made_ms: self.made_ms,
            signing: self.signing.clone(),
        }
    }

    /// Removes the keys.
    pub fn remove(folder: &Path, whom: Whom<'_>) -> Result<(), ServerError> {
        let folder = folder_of(folder, whom);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ServerError::file(format!("remove {}", folder.display()), error))
            }
            _ => Ok(()),
        }
    }

    /// The signing key itself.
    pub fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// The public half of the TLS key, an uncompressed point of P-256.
    pub fn point(&self) -> Option<[u8; POINT_BYTES]> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&self.certificate).ok()?;
        let point = &parsed.tbs_certificate.subject_pki.subject_public_key.data;
        <[u8; POINT_BYTES]>::try_from(&**point).ok()
    }

    /// Signs with the TLS key: ECDSA with SHA-256, DER.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let key = any_supported_type(&self.tls_key).ok()?;
        key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])?.sign(message).ok()
    }

    /// Reads a file that has all in one.
    fn read(path: &Path) -> Result<Self, ServerError> {
        let bytes = durable::read(path)?;
        let read = || {
            let mut lines = std::str::from_utf8(&bytes).ok()?.lines();
            let made_ms = lines.next()?.strip_prefix(MADE_WORD)?.parse().ok()?;
            let seed = from_hex(lines.next()?.strip_prefix(SIGNING_WORD)?)?;
            Self::of(&bytes, &bytes, &seed, made_ms)
        };
        read().ok_or_else(|| unreadable(path))
    }

    fn of(key: &[u8], certificate: &[u8], seed: &[u8; 32], made_ms: u64) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(certificate).ok()?.into_owned();
        let signing = SigningKey::from_bytes(seed);
        Some(Self {
            tls_key: PrivateKeyDer::from_pem_slice(key).ok()?,
            tls_key_digest: pin_of_certificate(&certificate)?,
            certificate,
            signing_key: PublicKey(signing.verifying_key().to_bytes()),
            made_ms,
            signing,
        })
    }
}

/// Makes keys, in a file that has all in one.
fn make(path: &Path, now_ms: u64) -> Result<(), ServerError> {
    let bad = |error: rcgen::Error| ServerError::Bug(format!("make certificate: {error}"));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(bad)?;
    let params = CertificateParams::new(vec!["strongroom".into()]).map_err(bad)?;
    let certificate = params.self_signed(&key).map_err(bad)?.pem();
    let (seed, key) = (to_hex(&random_bytes::<32>()?), key.serialize_pem());
    let text = format!("{MADE_WORD}{now_ms}\n{SIGNING_WORD}{seed}\n{certificate}{key}");
    durable::write(path, text.as_bytes())
}

fn unreadable(path: &Path) -> ServerError {
    let message = "keys are not readable; remove what they are for, and add it again";
    ServerError::Operator(format!("{}: {message}", path.display()))
}

fn remove(path: &Path) -> Result<(), ServerError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ServerError::file(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

fn folder_of(folder: &Path, whom: Whom<'_>) -> PathBuf {
    folder.join("keys").join(whom.folder())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::verify_p256;

    #[test]
    fn next_keys_take_the_place_of_the_older_ones_in_one_step() {
        let folder = tempfile::tempdir().unwrap();
        let name: Label = "office".parse().unwrap();
        let (path, whom) = (folder.path(), Whom::Primary(&name));
        let first = PeerKeys::load_or_create(path, whom, 7).unwrap();
        let same = PeerKeys::load_or_create(path, whom, 8).unwrap();
        assert_eq!((same.tls_key_digest, same.made_ms), (first.tls_key_digest, 7));
        let message = b"what is signed";
        let signature = first.sign(message).unwrap();
        assert!(verify_p256(&first.point().unwrap(), message, &signature));
        assert!(PeerKeys::next(path, whom).unwrap().is_none());
        let next = PeerKeys::make_next(path, whom, 9).unwrap();
        assert_ne!(next.tls_key_digest, first.tls_key_digest);
        assert_ne!(next.signing_key, first.signing_key);
        PeerKeys::adopt_next(path, whom).unwrap();
        let now = PeerKeys::load(path, whom).unwrap();
        assert_eq!((now.tls_key_digest, now.made_ms), (next.tls_key_digest, 9));
        assert_eq!(now.signing().to_bytes(), next.signing().to_bytes());
        assert!(PeerKeys::next(path, whom).unwrap().is_none());
        std::fs::write(path.join("keys/primaries/office/keys.pem"), "made 9\nsigning 12\n")
            .unwrap();
        assert!(PeerKeys::load(path, whom).is_err());
    }

    #[test]
    fn keys_of_older_versions_are_read_and_go_when_they_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let name: Label = "vault".parse().unwrap();
        let (path, whom) = (folder.path(), Whom::Feed(&name));
        let made = PeerKeys::load_or_create(path, whom, 7).unwrap();
        let own = path.join("keys/feeds/vault");
        let pem = std::fs::read(own.join(FILE)).unwrap();
        for name in ["tls.key", "tls.crt"] {
            std::fs::write(own.join(name), &pem).unwrap();
        }
        std::fs::write(own.join("signing.key"), made.signing().to_bytes()).unwrap();
        std::fs::remove_file(own.join(FILE)).unwrap();
        let older = PeerKeys::load_or_create(path, whom, 8).unwrap();
        assert_eq!((older.tls_key_digest, older.made_ms), (made.tls_key_digest, 0));
        assert_eq!(older.signing_key, made.signing_key);
        PeerKeys::make_next(path, whom, 9).unwrap();
        PeerKeys::adopt_next(path, whom).unwrap();
        assert!(FIRST_FILES.iter().all(|name| !own.join(name).exists()));
        assert_eq!(PeerKeys::load(path, whom).unwrap().made_ms, 9);
    }
}
